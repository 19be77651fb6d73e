//! A web gateway in a process of its own, as its own user, that can be stopped and killed; an application behind it; and
//! its clients.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use enforcer::session::WebKey;
use enforcer::web::link::{Link, OnEnd, Settings as LinkSettings};
use enforcer::web::proxy::{
    Admission, Asked, Guard, Origin as ProxyOrigin, OriginSettings, Proxy, SessionKey, Settings,
};
use enforcer_tests::process::{copy_program, eventually};
use enforcer_tests::scene::Scene;
use hyper::body::Bytes;
use hyper::http::{Response, response};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{BOUND, USER, digest, new_session, socket};

/// Tells the child where everything is.
const CHILD: &str = "ENFORCER_WEB_TEST_GATEWAY";
/// How a line of the child begins that is meant for the test.
const TELLS: &str = "@ ";

/// Where the gateway keeps its table, beside the daemon's socket for it: in a folder of its own.
pub fn table_of(socket: &Path) -> PathBuf {
    socket.with_file_name("gateway").join("sockets")
}

/// `x-token: 7` is the token whose digest is all sevens.
struct Door(Arc<OnceLock<Link>>);

impl Guard for Door {
    type Context = ();

    async fn admit(&self, asked: Asked<'_>) -> Admission<()> {
        let token = asked.head.headers.get("x-token").and_then(|value| value.to_str().ok()?.parse().ok());
        let session = match (self.0.get(), token) {
            (Some(link), Some(byte)) => link.check(&digest(byte)).await,
            _ => Ok(None),
        };
        match session {
            Ok(Some(session)) => {
                Admission::Forward { session: Some(SessionKey(*session.key.as_bytes())), context: () }
            }
            Ok(None) => answer(401),
            Err(_) => answer(503),
        }
    }

    async fn outgoing(
        &self,
        (): &mut (),
        _: &ProxyOrigin,
        _: &mut response::Parts,
    ) -> Result<(), Response<Bytes>> {
        Ok(())
    }
}

fn answer(status: u16) -> Admission<()> {
    Admission::Answer(Response::builder().status(status).body(Bytes::new()).unwrap())
}

/// Not a test by itself: the gateway's process. `login USER TOKEN` makes a session; it ends with its input.
#[test]
fn gateway_of_its_own() {
    let Ok(work) = std::env::var(CHILD) else { return };
    let [socket, table, origin] = work.split(' ').collect::<Vec<_>>().try_into().unwrap();
    let origin = OriginSettings {
        name: "app".into(),
        host: "app.example".into(),
        path: "/".into(),
        address: format!("http://{origin}"),
        ca: None,
        server_name: None,
        host_header: None,
        max_body: 1 << 20,
        upgrades: Vec::new(),
    };
    let settings = Settings {
        plain: vec!["127.0.0.1:0".parse().unwrap()],
        socket_table: Some(table.into()),
        origins: vec![origin],
        ..Settings::default()
    };
    let link = Arc::new(OnceLock::new());
    let proxy = Proxy::bind(settings, Door(Arc::clone(&link))).unwrap();
    let address = proxy.addresses().unwrap()[0];
    let _threads = proxy.start(1).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let _entered = runtime.enter();
    say(&format!("table {address}"));
    let mut lines = std::io::stdin().lines().map_while(Result::ok);
    // the test may put something else in the table's place first
    assert_eq!(lines.next().as_deref(), Some("go"));
    let on_end: OnEnd = Arc::new(move |key: WebKey, _| {
        let proxy = proxy.clone();
        Box::pin(async move {
            let ended = proxy.end(SessionKey(*key.as_bytes())).await;
            (ended.upstream + ended.downstream) as u64
        })
    });
    let link = link.get_or_init(|| Link::start(LinkSettings::new(socket), on_end));
    runtime.block_on(link.connected());
    say("connected");
    for line in lines {
        let ["login", user, byte] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line:?}") };
        runtime.block_on(link.connected());
        let new = new_session(user, digest(byte.parse().unwrap()), vec![1; 60], "a browser");
        let session = runtime.block_on(link.create(new)).unwrap();
        say(&session.key.to_string());
    }
    // nothing is left to be waited for
    std::process::exit(0);
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "\n{TELLS}{text}").and_then(|()| out.flush()).is_err() {
        // the test is gone, and nobody else would end this
        std::process::exit(1);
    }
}

/// The gateway's process. Dropped: killed.
pub struct Child {
    process: std::process::Child,
    orders: ChildStdin,
    told: BufReader<std::process::ChildStdout>,
    address: SocketAddr,
}

impl Child {
    pub fn start(scene: &Scene, origin: &Origin) -> Self {
        Self::start_with(scene, origin, |_| {})
    }

    /// `change`: of the table's file, before the daemon sees it.
    pub fn start_with(scene: &Scene, origin: &Origin, change: impl FnOnce(&Path)) -> Self {
        let (socket, user) = (socket(scene), nix::unistd::User::from_name(USER).unwrap().unwrap());
        let table = table_of(&socket);
        let folder = table.parent().unwrap();
        std::fs::create_dir_all(folder).unwrap();
        nix::unistd::chown(folder, Some(user.uid), Some(user.gid)).unwrap();
        // the binary may be in a folder of root's alone
        let copy = socket.with_file_name("gateway-of-anybody");
        if !copy.exists() {
            copy_program(&std::env::current_exe().unwrap(), &copy);
        }
        let mut command = Command::new(&copy);
        command.args(["--exact", "process::gateway_of_its_own", "--nocapture"]);
        command.env(CHILD, format!("{} {} {}", socket.display(), table.display(), origin.address));
        command.current_dir("/").uid(user.uid.as_raw()).gid(user.gid.as_raw());
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (orders, told) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let address = "127.0.0.1:1".parse().unwrap();
        let mut child = Self { process, orders, told: BufReader::new(told), address };
        child.address = child.hears().strip_prefix("table ").unwrap().parse().unwrap();
        change(&table);
        child.order("go");
        assert_eq!(child.hears(), "connected");
        child
    }

    fn order(&mut self, order: &str) {
        writeln!(self.orders, "{order}").and_then(|()| self.orders.flush()).unwrap();
    }

    /// The next line that is meant for the test; the child's end is an error.
    #[track_caller]
    fn hears(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert!(self.told.read_line(&mut line).unwrap() > 0, "the gateway has ended");
            if let Some(told) = line.trim_end().strip_prefix(TELLS) {
                return told.to_owned();
            }
        }
    }

    pub fn login(&mut self, user: &str, byte: u8) -> WebKey {
        self.order(&format!("login {user} {byte}"));
        self.hears().parse().unwrap()
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = self.pid();
        kill(Pid::from_raw(pid), signal).unwrap();
        if signal == Signal::SIGSTOP {
            eventually("it is stopped", BOUND, || {
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
                stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')).then_some(())
            });
        }
    }

    /// What is answered to a fresh request with that token; `None`: the connection ended.
    pub fn status_for(&self, byte: u8) -> Option<u16> {
        let mut connection = connect(self, byte)?;
        let mut head = [0; 12];
        connection.read_exact(&mut head).ok()?;
        std::str::from_utf8(&head[9..]).ok()?.parse().ok()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn connect(child: &Child, byte: u8) -> Option<TcpStream> {
    let mut connection = TcpStream::connect(child.address).ok()?;
    connection.set_read_timeout(Some(BOUND)).unwrap();
    let request = format!("GET /{byte} HTTP/1.1\r\nhost: app.example\r\nx-token: {byte}\r\n\r\n");
    connection.write_all(request.as_bytes()).ok()?;
    Some(connection)
}

/// An answer that never ends by itself, as server-sent events are.
pub struct Stream(TcpStream);

impl Stream {
    #[track_caller]
    pub fn open(child: &Child, byte: u8) -> Self {
        let mut stream = Self(connect(child, byte).unwrap());
        stream.goes_on();
        stream
    }

    /// More of it comes: something that was sent after now.
    #[track_caller]
    pub fn goes_on(&mut self) {
        let mut some = vec![0; 65_536];
        self.0.set_nonblocking(true).unwrap();
        while self.0.read(&mut some).is_ok_and(|read| read > 0) {}
        self.0.set_nonblocking(false).unwrap();
        assert!(self.0.read(&mut some).is_ok_and(|read| read > 0), "it has ended");
    }

    /// It ends, by a reset or otherwise.
    #[track_caller]
    pub fn ends(&mut self) {
        let mut some = vec![0; 65_536];
        loop {
            match self.0.read(&mut some) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) => {
                    let still =
                        matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut);
                    assert!(!still, "it is open still");
                    return;
                }
            }
        }
    }
}

/// The application: it answers `/7` with an endless stream, until the connection ends.
pub struct Origin {
    pub address: SocketAddr,
    /// How many streams of each there are.
    open: Arc<Mutex<BTreeMap<u8, usize>>>,
}

impl Origin {
    /// Its threads end with their connections, and with the process.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let open = Arc::new(Mutex::new(BTreeMap::new()));
        let all = Arc::clone(&open);
        std::thread::spawn(move || {
            for connection in listener.incoming().map_while(Result::ok) {
                let all = Arc::clone(&all);
                std::thread::spawn(move || serve(connection, &all));
            }
        });
        Self { address, open }
    }

    /// Whose streams are open.
    pub fn open(&self) -> BTreeSet<u8> {
        self.open.lock().unwrap().iter().filter(|(_, count)| **count > 0).map(|(byte, _)| *byte).collect()
    }
}

fn serve(mut connection: TcpStream, open: &Mutex<BTreeMap<u8, usize>>) {
    let mut head = String::new();
    let mut reader = BufReader::new(connection.try_clone().unwrap());
    while !head.ends_with("\r\n\r\n") {
        match reader.read_line(&mut head) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
    let byte = head.strip_prefix("GET /").and_then(|rest| rest.split(' ').next()?.parse().ok()).unwrap();
    *open.lock().unwrap().entry(byte).or_default() += 1;
    let begun = connection.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
    if begun.is_ok() {
        while connection.write_all(b"4\r\ntick\r\n").is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    *open.lock().unwrap().entry(byte).or_default() -= 1;
}

/// Two ends of a connection of this process's.
pub fn socket_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let other = listener.accept().unwrap().0;
    one.set_read_timeout(Some(BOUND)).unwrap();
    (one, other)
}

pub fn lives(one: &mut TcpStream, other: &mut TcpStream) -> bool {
    let mut byte = [0];
    other.write_all(b"x").is_ok() && one.read_exact(&mut byte).is_ok()
}

/// A line of the table that tells of `socket` as an origin's of that session: where, and what. As `table.rs` has it.
pub fn forged(slot: u64, session: &WebKey, socket: &TcpStream) -> (u64, Vec<u8>) {
    let (mut cookie, mut length) = (0_u64, 8);
    // SAFETY: the kernel writes eight bytes into `cookie`
    let done = unsafe {
        let place = (&raw mut cookie).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_COOKIE, place, &mut length)
    };
    assert_eq!(done, 0);
    let (ours, theirs) = (socket.local_addr().unwrap(), socket.peer_addr().unwrap());
    let address = |end: SocketAddr| {
        let SocketAddr::V4(end) = end else { panic!("{end} is not IPv4") };
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&end.ip().octets());
        bytes
    };
    let rest = u64::from(ours.port()) | u64::from(theirs.port()) << 16 | 4 << 32 | 1 << 40;
    let mut bytes = Vec::new();
    bytes.extend(2_u64.to_ne_bytes());
    bytes.extend(cookie.to_ne_bytes());
    bytes.extend(session.as_bytes());
    bytes.extend(address(ours));
    bytes.extend(address(theirs));
    bytes.extend(rest.to_ne_bytes());
    bytes.extend(2_u64.to_ne_bytes());
    (64 + slot * 80, bytes)
}
