//! The end of a worker: politely, then its sockets, then the process.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::diag::{Diag, Name};
use super::{DestroyError, Outcome, WorkerSocket, connected_sockets};
use crate::process::Worker;
use crate::session::{Flow, Protocol};

/// How long a killed process is waited for: it has nothing to do but to exit.
const AFTER_KILL: Duration = Duration::from_secs(2);
/// How long the kernel may go on sending what an exited worker has written.
const AFTER_EXIT: Duration = Duration::from_millis(10);
/// How often a socket is looked at that outlives its worker.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// SOCK_DESTROY where the kernel has it, else SIGKILL.
    Auto,
    /// SIGKILL at once: for kernels without SOCK_DESTROY, and to test that way on any kernel.
    Kill,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EndSettings {
    /// How long the worker may take to say goodbye and exit, which somebody else has asked it to.
    pub head_start: Duration,
    pub method: Method,
    /// How long it may live without its sockets.
    pub kill_after: Duration,
}

impl Default for EndSettings {
    fn default() -> Self {
        Self {
            head_start: Duration::from_millis(50),
            method: Method::Auto,
            kill_after: Duration::from_millis(100),
        }
    }
}

/// What was done.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ended {
    /// It exited within its head start.
    pub exited_by_itself: bool,
    pub destroyed: Vec<Flow>,
    /// It was sent SIGKILL.
    pub killed: bool,
    /// The kernel cannot destroy sockets, or was not to: only the kill ended them.
    pub unsupported: bool,
    /// Sockets that may still be there, and why.
    pub left: Vec<(Flow, String)>,
    /// What else went wrong; the process may still be there if it is said here.
    pub problems: Vec<String>,
}

impl Ended {
    /// Whether nothing of the session is left here.
    pub fn is_clean(&self) -> bool {
        self.left.is_empty() && self.problems.is_empty()
    }
}

/// Ends a worker. When this returns cleanly its process is gone, and no socket of it can send any more.
///
/// It is not enough to destroy the sockets. A connected UDP socket that is destroyed is left *unconnected and
/// bound to the server's port* (`udp_abort`, `__udp_disconnect`) as long as its process lives: a hung worker would
/// then take datagrams of other clients. And a process that exits leaves its TCP socket to the kernel, which goes
/// on sending what was written. So a worker that does not exit promptly without its sockets is killed (which a
/// stopped process cannot escape), and a socket that outlives its worker with unsent data is destroyed.
pub async fn end_worker(worker: &Worker, settings: EndSettings) -> Ended {
    let mut ended = Ended::default();
    // looked up first: after its exit nobody could say any more which sockets were its
    let mut sockets = find(worker, &mut ended);
    ended.exited_by_itself = matches!(timeout(settings.head_start, worker.exited()).await, Ok(Ok(())));
    if !ended.exited_by_itself {
        // it may have opened its DTLS socket meanwhile
        for socket in find(worker, &mut ended) {
            if sockets.iter().all(|known| known.cookie != socket.cookie) {
                sockets.push(socket);
            }
        }
        if settings.method == Method::Auto {
            destroy_all(&sockets, &mut ended);
        } else {
            ended.unsupported = true;
        }
        let patience = if ended.unsupported { Duration::ZERO } else { settings.kill_after };
        if !matches!(timeout(patience, worker.exited()).await, Ok(Ok(()))) && !worker.has_exited() {
            kill(worker, &mut ended).await;
        }
    }
    if worker.has_exited() {
        // the goodbye has gone out; its acknowledgement may never come, since what the client sends is dropped
        let deadline = Instant::now() + AFTER_EXIT;
        drain(&sockets, settings.method, deadline, &mut ended).await;
    }
    ended
}

fn find(worker: &Worker, ended: &mut Ended) -> Vec<WorkerSocket> {
    connected_sockets(worker).unwrap_or_else(|error| {
        let said = error.to_string();
        if !ended.problems.contains(&said) {
            ended.problems.push(said);
        }
        Vec::new()
    })
}

async fn kill(worker: &Worker, ended: &mut Ended) {
    ended.killed = true;
    if let Err(error) = worker.kill() {
        ended.problems.push(error.to_string());
    }
    match timeout(AFTER_KILL, worker.exited()).await {
        // what could not be found by its descriptors is closed with its process
        Ok(Ok(())) => ended.problems.clear(),
        _ => ended.problems.push(format!("process {} does not end", worker.process().pid)),
    }
}

fn destroy_all(sockets: &[WorkerSocket], ended: &mut Ended) {
    for socket in sockets {
        destroy_one(socket, ended);
    }
}

fn destroy_one(socket: &WorkerSocket, ended: &mut Ended) {
    ended.left.retain(|(flow, _)| *flow != socket.flow);
    match super::destroy(socket) {
        Ok(Outcome::Destroyed) if !ended.destroyed.contains(&socket.flow) => {
            ended.destroyed.push(socket.flow)
        }
        Ok(_) => {}
        Err(error) => {
            ended.unsupported |= matches!(error, DestroyError::Unsupported);
            ended.left.push((socket.flow, error.to_string()));
        }
    }
}

/// After the exit: UDP sockets are gone with the process, a TCP socket may still have data to send. It gets a
/// moment to put the goodbye on the wire.
async fn drain(sockets: &[WorkerSocket], method: Method, deadline: Instant, ended: &mut Ended) {
    // whatever could not be said of them before: closed now, or looked at below
    ended.left.clear();
    for socket in sockets.iter().filter(|socket| socket.flow.protocol() == Protocol::Tcp) {
        let look = || Diag::open(Some(&socket.netns_fd)).and_then(|mut diag| diag.lookup(&Name::of(socket)));
        loop {
            match look() {
                Ok(Some(found)) if found.can_still_send() => {}
                Ok(_) => break,
                Err(error) => {
                    ended.left.push((socket.flow, error.to_string()));
                    break;
                }
            }
            if Instant::now() < deadline {
                sleep(LOOK_AGAIN).await;
                continue;
            }
            if method == Method::Kill || ended.unsupported {
                ended
                    .left
                    .push((socket.flow, "unsent data stays with the kernel until the peer takes it".into()));
            } else {
                destroy_one(socket, ended);
            }
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::OwnedFd;
    use std::process::{Child, Command, Stdio};

    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt,
    };

    use crate::process::identify;
    use crate::sockets::{destroy, destroy_flow};

    /// A process that holds sockets and does not care what becomes of them: as a hung worker does.
    struct Holder(Child);

    impl Holder {
        fn new(tcp: OwnedFd, udp: Option<OwnedFd>, seconds: &str) -> Self {
            let second = udp.map_or(Stdio::null(), Stdio::from);
            Self(Command::new("sleep").arg(seconds).stdin(tcp).stdout(second).spawn().unwrap())
        }

        fn worker(&self) -> Worker {
            Worker::open(identify(self.0.id() as i32).unwrap()).unwrap()
        }
    }

    impl Drop for Holder {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn settings(head_start: u64, method: Method) -> EndSettings {
        let kill_after = Duration::from_millis(100);
        EndSettings { head_start: Duration::from_millis(head_start), method, kill_after }
    }

    fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = listener.accept().unwrap().0;
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        (client, server)
    }

    fn lives(client: &mut TcpStream, server: &mut TcpStream) -> bool {
        let mut byte = [0];
        server.write_all(b"x").is_ok() && client.read_exact(&mut byte).is_ok()
    }

    /// A UDP socket at the server's port, as ocserv shares it between its listener and its workers.
    fn shared_udp(port: u16) -> UdpSocket {
        let fd = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).unwrap();
        setsockopt(&fd, sockopt::ReuseAddr, &true).unwrap();
        bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrIn::new(127, 0, 0, 1, port)).unwrap();
        let udp = UdpSocket::from(fd);
        udp.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        udp
    }

    fn client_of(port: u16) -> UdpSocket {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.connect(("127.0.0.1", port)).unwrap();
        udp
    }

    /// R3: of two connections of one peer only the named one dies. R1: also when the worker hangs.
    #[tokio::test]
    async fn a_hung_worker_loses_its_sockets_and_its_life_and_its_twin_neither() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (mut client, server) = pair(&listener);
        let (mut twin, mut twin_server) = pair(&listener);
        let udp_listener = shared_udp(0);
        let port = udp_listener.local_addr().unwrap().port();
        let theirs = client_of(port);
        let tied = shared_udp(port);
        tied.connect(theirs.local_addr().unwrap()).unwrap();
        let holder = Holder::new(server.into(), Some(tied.into()), "60");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(holder.0.id() as i32), nix::sys::signal::SIGSTOP)
            .unwrap();
        let worker = holder.worker();
        assert_eq!(connected_sockets(&worker).unwrap().len(), 2);

        let ended = end_worker(&worker, settings(20, Method::Auto)).await;
        assert_eq!(ended.destroyed.len(), 2, "{ended:?}");
        assert!(
            ended.killed && !ended.exited_by_itself && !ended.unsupported && ended.is_clean(),
            "{ended:?}"
        );
        assert!(worker.has_exited());
        assert!(client.read(&mut [0]).is_err(), "it was reset");
        assert!(lives(&mut twin, &mut twin_server));
        // what it would have stolen goes to the listener
        let stranger = client_of(port);
        stranger.send(b"hello").unwrap();
        let mut got = [0; 8];
        assert_eq!(udp_listener.recv(&mut got).unwrap(), 5);
    }

    /// The trap that `end_worker` is about: it must not be enough to destroy a UDP socket.
    #[tokio::test]
    async fn a_destroyed_udp_socket_of_a_living_process_takes_other_clients_datagrams() {
        let udp_listener = shared_udp(0);
        let port = udp_listener.local_addr().unwrap().port();
        let theirs = client_of(port);
        let tied = shared_udp(port);
        tied.connect(theirs.local_addr().unwrap()).unwrap();
        let keep = tied.try_clone().unwrap();
        let holder = Holder::new(tied.into(), None, "60");
        let found = connected_sockets(&holder.worker()).unwrap();
        assert_eq!(destroy(&found[0]).unwrap(), Outcome::Destroyed);
        assert!(
            connected_sockets(&holder.worker()).unwrap().is_empty(),
            "it is unconnected, and never named again"
        );
        let stranger = client_of(port);
        stranger.send(b"hello").unwrap();
        let mut got = [0; 8];
        // the first read of the destroyed socket tells of its end
        assert!(keep.recv(&mut got).is_err());
        assert_eq!(keep.recv(&mut got).ok(), Some(5), "if this fails, the kernel has lost the trap: good");
        assert!(udp_listener.recv(&mut got).is_err());
    }

    #[tokio::test]
    async fn another_cookie_is_another_socket() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (mut client, mut server) = pair(&listener);
        let holder = Holder::new(server.try_clone().unwrap().into(), None, "60");
        let mut socket = connected_sockets(&holder.worker()).unwrap().remove(0);
        socket.cookie += 1;
        assert_eq!(destroy(&socket).unwrap(), Outcome::AlreadyGone);
        assert!(lives(&mut client, &mut server));
        socket.cookie -= 1;
        assert_eq!(destroy(&socket).unwrap(), Outcome::Destroyed);
        assert_eq!(destroy(&socket).unwrap(), Outcome::AlreadyGone);
    }

    #[tokio::test]
    async fn who_exits_in_time_is_not_killed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (_client, server) = pair(&listener);
        let holder = Holder::new(server.into(), None, "0.05");
        let ended = end_worker(&holder.worker(), settings(5000, Method::Auto)).await;
        assert!(
            ended.exited_by_itself && !ended.killed && ended.destroyed.is_empty() && ended.is_clean(),
            "{ended:?}"
        );
    }

    #[tokio::test]
    async fn without_sock_destroy_the_worker_is_killed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (mut client, server) = pair(&listener);
        let holder = Holder::new(server.into(), None, "60");
        let ended = end_worker(&holder.worker(), settings(0, Method::Kill)).await;
        assert!(
            ended.killed && ended.unsupported && ended.destroyed.is_empty() && ended.is_clean(),
            "{ended:?}"
        );
        assert_eq!(client.read(&mut [0]).unwrap_or(0), 0);
    }

    /// R1: the kernel goes on sending what a worker wrote before it exited.
    #[tokio::test]
    async fn unsent_data_does_not_outlive_its_worker() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (client, server) = pair(&listener);
        server.set_nonblocking(true).unwrap();
        while (&server).write(&[0; 65536]).is_ok() {}
        let holder = Holder::new(server.into(), None, "0.05");
        let worker = holder.worker();
        let named = connected_sockets(&worker).unwrap().remove(0);
        let ended = end_worker(&worker, settings(300, Method::Auto)).await;
        assert!(ended.exited_by_itself && ended.is_clean(), "{ended:?}");
        assert_eq!(ended.destroyed, [named.flow]);
        assert_eq!(destroy(&named).unwrap(), Outcome::AlreadyGone);
        drop(client);
    }

    #[tokio::test]
    async fn a_flow_is_destroyed_by_its_name_and_a_listener_never() {
        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (server, _) = listener.accept().unwrap();
        let flow =
            Flow::new(Protocol::Tcp, client.local_addr().unwrap(), client.peer_addr().unwrap()).unwrap();
        let other = Flow::new(Protocol::Tcp, "127.0.0.1:1".parse().unwrap(), flow.local()).unwrap();
        assert_eq!(destroy_flow(None, &other).unwrap(), Outcome::AlreadyGone);
        assert_eq!(destroy_flow(None, &flow).unwrap(), Outcome::Destroyed);
        assert!(client.read(&mut [0]).is_err());
        drop(server);
        assert!(TcpStream::connect(("127.0.0.1", port)).is_ok(), "the listener lives");

        let loose = UdpSocket::bind("127.0.0.1:0").unwrap();
        let from = client_of(loose.local_addr().unwrap().port());
        let flow = Flow::new(Protocol::Udp, from.local_addr().unwrap(), loose.local_addr().unwrap()).unwrap();
        assert_eq!(destroy_flow(None, &flow).unwrap(), Outcome::AlreadyGone);
        from.send(b"x").unwrap();
        assert_eq!(loose.recv(&mut [0; 4]).unwrap(), 1);
    }

    /// With `listen-netns` ocserv's sockets are of another network namespace than its processes.
    #[tokio::test]
    async fn a_socket_is_destroyed_in_its_own_namespace() {
        let (listener, mut client, server) = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("this test needs root");
            assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let (client, server) = pair(&listener);
            (listener, client, server)
        })
        .join()
        .unwrap();
        let holder = Holder::new(server.into(), None, "60");
        let worker = holder.worker();
        let found = connected_sockets(&worker).unwrap();
        assert_eq!(found.len(), 1);
        assert_ne!(found[0].netns, crate::process::netns_of(worker.process().pid).unwrap().0);
        assert_eq!(destroy_flow(None, &found[0].flow).unwrap(), Outcome::AlreadyGone, "it is not in ours");
        let ended = end_worker(&worker, settings(0, Method::Auto)).await;
        assert_eq!(ended.destroyed, [found[0].flow]);
        assert!(ended.is_clean(), "{ended:?}");
        assert!(client.read(&mut [0]).is_err());
        drop(listener);
    }
}
