//! Requests to ocserv's main process: one connection each.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use prost::Message as _;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::frame::{Command, Frame, FrameError, FrameReader, encode};
use super::messages::{self, Cookies, Listing};
use super::{name, wire};
use crate::process::{self, ProcessError, Worker};
use crate::session::{Observed, Process, SafeId};

/// What this ocserv can do. Found out by asking it, not by its version.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Capabilities {
    /// `terminate user|id|session`: 1.4.2 and later.
    pub terminate: bool,
}

/// What ocserv says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Status {
    /// In ocserv's own pid namespace.
    pub main_pid: i32,
    /// Its sec-mod processes, likewise: each holds a part of the cookies.
    pub sec_mods: Vec<i32>,
    pub active_clients: u32,
    /// Unix seconds.
    pub start_time: u64,
}

/// The main process that answers, and what it can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Server {
    pub main: Process,
    pub capabilities: Capabilities,
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no ocserv answers at {}: {source}", .path.display())]
    Unreachable { path: PathBuf, source: io::Error },
    #[error("ocserv did not answer {command:?} within {after:?}")]
    TimedOut { command: Command, after: Duration },
    /// An unknown command is answered so.
    #[error("ocserv closed the connection without an answer to {0:?}")]
    NoReply(Command),
    #[error("the reply to {command:?} has the number {got}, not {}", .command.reply())]
    WrongReply { command: Command, got: u8 },
    #[error("{command:?}: {source}")]
    Frame { command: Command, source: FrameError },
    #[error("the reply to {command:?} is no message that we know: {source}")]
    Garbage { command: Command, source: prost::DecodeError },
    #[error("the name `{}` cannot be told to ocserv: {why}", super::printable(.name))]
    Name { name: String, why: &'static str },
    #[error("{0} is no id of an ocserv session")]
    Id(i32),
    #[error("process {0} is not a worker of this ocserv")]
    NotAWorker(i32),
    #[error("cannot tell which process answers at the socket: {0}")]
    Peer(String),
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// A client of one ocserv. Cheap to clone; holds nothing open.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
    timeout: Duration,
}

/// One connection to the socket.
pub(super) struct Connection {
    pub reader: FrameReader<tokio::net::unix::OwnedReadHalf>,
    pub writer: tokio::net::unix::OwnedWriteHalf,
    /// The process that called listen(2) (SO_PEERCRED), in our pid namespace; None if it is not visible there.
    pub listener: Option<i32>,
}

impl Client {
    /// `timeout` is that of one whole request.
    pub fn new(path: impl Into<PathBuf>, timeout: Duration) -> Self {
        Self { path: path.into(), timeout }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    pub(super) async fn connect(&self) -> Result<Connection, ClientError> {
        let unreachable = |source| ClientError::Unreachable { path: self.path.clone(), source };
        let stream = timeout(self.timeout, UnixStream::connect(&self.path))
            .await
            .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))
            .map_err(unreachable)?;
        let listener = stream.peer_cred().ok().and_then(|peer| peer.pid()).filter(|pid| *pid > 0);
        let (read, writer) = stream.into_split();
        Ok(Connection { reader: FrameReader::new(read), writer, listener })
    }

    async fn ask(&self, command: Command, body: &[u8]) -> Result<(Vec<u8>, Option<i32>), ClientError> {
        let failed = |source| ClientError::Frame { command, source };
        let request = encode(command.number(), body).map_err(failed)?;
        let exchange = async {
            let mut connection = self.connect().await?;
            let reset = |error: &io::Error| {
                matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
            };
            match connection.writer.write_all(&request).await {
                Err(error) if reset(&error) => return Err(ClientError::NoReply(command)),
                done => done.map_err(|error| failed(error.into()))?,
            }
            match connection.reader.next().await {
                Ok(Some(Frame { command: got, .. })) if got != command.reply() => {
                    Err(ClientError::WrongReply { command, got })
                }
                Ok(Some(frame)) => Ok((frame.body, connection.listener)),
                Ok(None) => Err(ClientError::NoReply(command)),
                Err(FrameError::Io(error)) if reset(&error) => Err(ClientError::NoReply(command)),
                Err(error) => Err(failed(error)),
            }
        };
        timeout(self.timeout, exchange)
            .await
            .unwrap_or(Err(ClientError::TimedOut { command, after: self.timeout }))
    }

    async fn yes_or_no(&self, command: Command, body: &[u8]) -> Result<bool, ClientError> {
        let (body, _) = self.ask(command, body).await?;
        let reply = wire::BoolReply::decode(body.as_slice());
        Ok(reply.map_err(|source| ClientError::Garbage { command, source })?.status.unwrap_or(false))
    }

    /// Everybody who is connected, in admission, or logging in.
    pub async fn list(&self) -> Result<Listing, ClientError> {
        Ok(self.list_from().await?.0)
    }

    /// Likewise, and the process that listens.
    pub(super) async fn list_from(&self) -> Result<(Listing, Option<i32>), ClientError> {
        let command = Command::List;
        let (body, listener) = self.ask(command, &[]).await?;
        let listing = messages::listing(&body).map_err(|source| ClientError::Garbage { command, source })?;
        Ok((listing, listener))
    }

    /// The session with that id; also while its connect-script runs. None if there is none (any more), or if its
    /// client has not logged in.
    pub async fn id_info(&self, id: i32) -> Result<Option<Observed>, ClientError> {
        let command = Command::IdInfo;
        let (body, _) = self.ask(command, &id_request(id)?).await?;
        let listing = messages::listing(&body).map_err(|source| ClientError::Garbage { command, source })?;
        Ok(listing.sessions.into_iter().find(|session| session.id == id))
    }

    /// The cookies that ocserv tells of. See [`Cookies`] for why that may not be all.
    pub async fn cookies(&self) -> Result<Cookies, ClientError> {
        let command = Command::ListCookies;
        let start = Instant::now();
        let (body, _) = self.ask(command, &[]).await?;
        let mut cookies =
            messages::cookies(&body).map_err(|source| ClientError::Garbage { command, source })?;
        cookies.took = start.elapsed();
        Ok(cookies)
    }

    pub async fn status(&self) -> Result<Status, ClientError> {
        Ok(self.status_from().await?.0)
    }

    async fn status_from(&self) -> Result<(Status, Option<i32>), ClientError> {
        let command = Command::Status;
        let (body, listener) = self.ask(command, &[]).await?;
        let reply = wire::StatusReply::decode(body.as_slice())
            .map_err(|source| ClientError::Garbage { command, source })?;
        let pid = |pid: u32| i32::try_from(pid).unwrap_or(0);
        let status = Status {
            main_pid: pid(reply.main_pid.unwrap_or(0)),
            sec_mods: reply.sec_mod_pids.into_iter().map(pid).collect(),
            active_clients: reply.active_clients.unwrap_or(0),
            start_time: u64::from(reply.start_time.unwrap_or(0)),
        };
        Ok((status, listener))
    }

    /// Asks every worker of that user to leave; their cookies stay valid. False: there was none.
    pub async fn disconnect_user(&self, user: &str) -> Result<bool, ClientError> {
        self.yes_or_no(Command::DisconnectName, &user_request(user)?).await
    }

    /// Asks that worker to leave; its cookie stays valid. False: there was none.
    pub async fn disconnect_id(&self, id: i32) -> Result<bool, ClientError> {
        self.yes_or_no(Command::DisconnectId, &id_request(id)?).await
    }

    /// Disconnects a user and invalidates cookies of hers; false: there was nothing. `NoReply` before 1.4.2.
    ///
    /// With several sec-mod processes only the first that finds a cookie is asked: seen with 1.5.0 and four of them,
    /// 12 cookies became 8, 6, 1 and 0 with one call each. [`Client::terminate_session`] for each cookie of
    /// [`Client::cookies`] is exact, and cannot hit a cookie that was made meanwhile.
    pub async fn terminate_user(&self, user: &str) -> Result<bool, ClientError> {
        self.yes_or_no(Command::TerminateUser, &user_request(user)?).await
    }

    /// Disconnects a session and invalidates its cookie; false: there was none. `NoReply` before 1.4.2.
    pub async fn terminate_id(&self, id: i32) -> Result<bool, ClientError> {
        self.yes_or_no(Command::TerminateId, &id_request(id)?).await
    }

    /// Invalidates exactly this cookie, whichever sec-mod process holds it; false: there was none. A live session
    /// of it **goes on** and has to be disconnected as well. `NoReply` before 1.4.2.
    pub async fn terminate_session(&self, safe_id: SafeId) -> Result<bool, ClientError> {
        self.yes_or_no(Command::TerminateSession, &session_request(safe_id.to_string().into_bytes())).await
    }

    /// The ban points of a client address (IPv6: of its /64); 0 if ocserv has none for it.
    pub async fn ban_score(&self, address: IpAddr) -> Result<u32, ClientError> {
        let command = Command::ListBanned;
        let (body, _) = self.ask(command, &[]).await?;
        let list = wire::BanList::decode(body.as_slice())
            .map_err(|source| ClientError::Garbage { command, source })?;
        let bytes = address_bytes(address);
        // ocserv keeps the first 64 bits of an IPv6 address, and zeroes
        let same = |ip: &[u8]| ip == bytes || (bytes.len() == 16 && ip.len() == 16 && ip[..8] == bytes[..8]);
        let scores = list
            .info
            .iter()
            .filter(|info| info.ip.as_deref().is_some_and(same))
            .filter_map(|info| info.score);
        Ok(scores.max().unwrap_or(0))
    }

    /// Forgets the ban points of a client address (IPv6: of its /64). A client that tries again and again against
    /// a gate that refuses it collects one point a connection, and is banned, with everybody behind its address,
    /// at `max-ban-score` (30 by default, 80 with 1.5.0). False: it had none.
    pub async fn unban(&self, address: IpAddr) -> Result<bool, ClientError> {
        let request = wire::UnbanRequest { ip: Some(address_bytes(address)) };
        self.yes_or_no(Command::UnbanIp, &request.encode_to_vec()).await
    }

    /// What this ocserv can do. Changes nothing: it asks for the end of a cookie that cannot exist, since the
    /// characters of its name are not base64. Before 1.4.2 that command closes the connection without a reply.
    pub async fn probe(&self) -> Result<Capabilities, ClientError> {
        let body = session_request(vec![b'-'; 28]);
        match self.yes_or_no(Command::TerminateSession, &body).await {
            Ok(_) => Ok(Capabilities { terminate: true }),
            Err(ClientError::NoReply(_)) => {
                // it may as well have died just now: then this fails
                self.status().await?;
                Ok(Capabilities { terminate: false })
            }
            Err(error) => Err(error),
        }
    }

    /// The main process that answers at the socket: who listens there by SO_PEERCRED, checked against what STATUS
    /// says of itself in the same exchange.
    pub async fn peer(&self) -> Result<Process, ClientError> {
        let (status, listener) = self.status_from().await?;
        if let Some(pid) = listener
            && let Ok(main) = process::identify(pid)
            && process::host_pid(main, status.main_pid).is_ok_and(|said| said == pid)
        {
            return Ok(main);
        }
        // listen(2) was called by a process that has gone since (a daemon that forked after it): what it says
        // itself holds if that is an ocserv of our pid namespace
        let name = std::fs::read_to_string(format!("/proc/{}/comm", status.main_pid)).unwrap_or_default();
        if name.starts_with("ocserv") {
            return Ok(process::identify(status.main_pid)?);
        }
        Err(ClientError::Peer(format!(
            "the listener is {}, and ocserv calls itself process {}",
            listener.map_or("in another pid namespace".to_owned(), |pid| format!("process {pid}")),
            status.main_pid
        )))
    }

    /// [`Client::peer`] and [`Client::probe`].
    pub async fn server(&self) -> Result<Server, ClientError> {
        Ok(Server { main: self.peer().await?, capabilities: self.probe().await? })
    }

    /// The process behind an id, held: a child of this ocserv's main process, never a stranger that was given the
    /// number since.
    pub async fn worker(&self, id: i32) -> Result<Worker, ClientError> {
        worker_of(self.peer().await?, id)
    }
}

/// The worker of `main` with that id; see [`Client::worker`].
pub fn worker_of(main: Process, id: i32) -> Result<Worker, ClientError> {
    if id <= 0 {
        return Err(ClientError::Id(id));
    }
    let pid = process::host_pid(main, id)?;
    let worker = Worker::open(process::identify(pid)?)?;
    // the pidfd is there: what is read now is read of this process, or it has exited
    if process::parent(pid)? != main.pid {
        return Err(ClientError::NotAWorker(pid));
    }
    if worker.has_exited() { Err(ProcessError::Gone(pid).into()) } else { Ok(worker) }
}

fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address.to_canonical() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn user_request(user: &str) -> Result<Vec<u8>, ClientError> {
    let refused = |why| ClientError::Name { name: user.to_owned(), why };
    // ocserv would take it for every worker whose client has not logged in yet
    if user.is_empty() {
        return Err(refused("it is empty"));
    }
    let username = name::to_wire(user).ok_or_else(|| refused("it holds a NUL"))?;
    let body = wire::UsernameRequest { username: Some(username) }.encode_to_vec();
    if body.len() > super::MAX_REQUEST {
        return Err(refused("it is longer than the 253 bytes that ocserv's control socket takes"));
    }
    Ok(body)
}

fn id_request(id: i32) -> Result<Vec<u8>, ClientError> {
    // -1 means something to ocserv
    if id <= 0 { Err(ClientError::Id(id)) } else { Ok(wire::IdRequest { id: Some(id) }.encode_to_vec()) }
}

fn session_request(safe_id: Vec<u8>) -> Vec<u8> {
    wire::SessionRequest { safe_id: Some(safe_id) }.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::super::messages::tests::{info, safe_id};
    use super::*;
    use std::future::Future;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::UnixListener;

    /// A server that gives one answer, and what it was sent.
    async fn answered<T>(answer: &[u8], hold_open: bool, ask: impl AsyncFnOnce(Client) -> T) -> (T, Vec<u8>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("occtl");
        let listener = UnixListener::bind(&path).unwrap();
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 512];
            let read = stream.read(&mut request).await.unwrap();
            request.truncate(read);
            for piece in answer.chunks(3) {
                let _ = stream.write_all(piece).await;
                tokio::task::yield_now().await;
            }
            if hold_open {
                std::future::pending::<()>().await;
            }
            drop(stream);
            request
        };
        let client = Client::new(&path, Duration::from_millis(300));
        let asked = ask(client);
        if hold_open {
            tokio::select! { _ = serve => unreachable!(), got = asked => (got, Vec::new()) }
        } else {
            let (request, got) = tokio::join!(serve, asked);
            (got, request)
        }
    }

    fn frame(command: u8, body: &[u8]) -> Vec<u8> {
        let mut frame = vec![command];
        frame.extend_from_slice(&(body.len() as u32).to_ne_bytes());
        frame.extend_from_slice(body);
        frame
    }

    fn body() -> Vec<u8> {
        wire::UserList { user: vec![info(7, b"alice", 1), info(8, b"bob", 2)] }.encode_to_vec()
    }

    #[tokio::test]
    async fn a_list_that_comes_in_pieces_is_read() {
        let (listing, request) =
            answered(&frame(104, &body()), false, async |client| client.list().await).await;
        assert_eq!(request, frame(4, &[]));
        let listing = listing.unwrap();
        assert_eq!(listing.sessions.len(), 2);
        assert_eq!(listing.sessions[1].safe_id, Some(safe_id(2)));
    }

    #[tokio::test]
    async fn what_is_not_an_answer_is_named() {
        let list = async |client: Client| client.list().await;
        assert!(matches!(answered(&[], false, list).await.0, Err(ClientError::NoReply(Command::List))));
        let wrong = answered(&frame(110, &body()), false, list).await.0;
        assert!(matches!(wrong, Err(ClientError::WrongReply { got: 110, .. })), "{wrong:?}");
        let garbage = answered(&frame(104, b"\x0a\xff"), false, list).await.0;
        assert!(matches!(garbage, Err(ClientError::Garbage { .. })), "{garbage:?}");
        let mut cut = frame(104, &body());
        cut.truncate(20);
        let cut = answered(&cut, false, list).await.0;
        assert!(
            matches!(cut, Err(ClientError::Frame { source: FrameError::Truncated { .. }, .. })),
            "{cut:?}"
        );
        let huge = answered(&[104, 255, 255, 255, 255], false, list).await.0;
        assert!(
            matches!(huge, Err(ClientError::Frame { source: FrameError::ReplyTooLong(_), .. })),
            "{huge:?}"
        );
        let slow = answered(&frame(104, &body())[..9], true, list).await.0;
        assert!(matches!(slow, Err(ClientError::TimedOut { .. })), "{slow:?}");
    }

    #[tokio::test]
    async fn nobody_there_is_named() {
        let gone = Client::new("/nonexistent/occtl", Duration::from_millis(100)).list().await;
        assert!(matches!(gone, Err(ClientError::Unreachable { .. })));
    }

    fn refused<T>(ask: impl Future<Output = Result<T, ClientError>>) -> ClientError {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(ask).err().unwrap()
    }

    #[test]
    fn what_ocserv_would_misunderstand_is_not_said() {
        let client = Client::new("/nonexistent/occtl", Duration::from_millis(100));
        let long = "x".repeat(254);
        assert!(matches!(refused(client.disconnect_user(&long)), ClientError::Name { .. }));
        assert!(matches!(refused(client.disconnect_user(&long[1..])), ClientError::Unreachable { .. }));
        assert!(matches!(refused(client.disconnect_user("")), ClientError::Name { .. }));
        assert!(matches!(refused(client.disconnect_user("a\0")), ClientError::Name { .. }));
        assert!(matches!(refused(client.disconnect_id(-1)), ClientError::Id(-1)));
        assert!(matches!(refused(client.id_info(0)), ClientError::Id(0)));
    }

    #[test]
    fn a_stranger_is_not_a_worker() {
        let me = process::identify(std::process::id() as i32).unwrap();
        let init = process::identify(1).unwrap();
        assert!(matches!(worker_of(me, 1), Err(ClientError::NotAWorker(1))), "{init:?}");
    }
}
