//! A real ocserv in a network namespace, and real clients in another. Small on purpose: the lab is elsewhere.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use enforcer::ocserv::Client;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Era {
    /// This machine's own.
    Host,
    /// 1.3.0.
    Trixie,
    /// 1.5.0: it can terminate.
    Sid,
}

impl Era {
    fn root(self) -> Option<PathBuf> {
        let name = match self {
            Self::Host => return None,
            Self::Trixie => "trixie",
            Self::Sid => "sid",
        };
        let roots = std::env::var_os("ENFORCER_LAB_ROOTS")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/roots"), PathBuf::from);
        let root = roots.join(name);
        assert!(
            root.join("usr/sbin/ocserv").exists(),
            "{} is no root with ocserv in it: set ENFORCER_LAB_ROOTS, or make the roots (`cargo xtask setup`)",
            root.display()
        );
        Some(root)
    }
}

fn run(line: &str) -> Output {
    Command::new("sh").args(["-c", line]).output().expect("a shell")
}

fn done(line: &str) -> String {
    let output = run(line);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "never seen: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub struct Gateway {
    era: Era,
    name: String,
    folder: tempfile::TempDir,
    own_pids: bool,
    pin: String,
    server: Option<Child>,
    clients: Vec<Child>,
}

impl Gateway {
    /// `test` names the namespaces. `own_pids`: ocserv gets a pid namespace of its own, as in a container.
    pub fn start(era: Era, test: &str, own_pids: bool) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests need root: namespaces, and ocserv itself");
        let name = format!("{test}-{era:?}-{}", std::process::id()).to_lowercase();
        let folder = tempfile::Builder::new().prefix("ocserv-").tempdir_in("/tmp").expect("a folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("permissions");
        let mut gateway =
            Self { era, name, folder, own_pids, pin: String::new(), server: None, clients: Vec::new() };
        gateway.prepare();
        gateway.run_server();
        gateway
    }

    fn prepare(&mut self) {
        let (name, dir) = (&self.name, self.folder.path().display());
        done(&format!(
            "set -e; ip netns add {name}-g; ip netns add {name}-c
             ip -n {name}-g link add outer type veth peer name outer netns {name}-c
             for side in g c; do ip -n {name}-$side link set lo up; ip -n {name}-$side link set outer up; done
             ip -n {name}-g addr add 192.0.2.1/24 dev outer; ip -n {name}-c addr add 192.0.2.2/24 dev outer
             openssl req -x509 -newkey rsa:2048 -nodes -keyout {dir}/key -out {dir}/cert -days 9 -subj /CN=gateway
             for user in alice bob; do printf 'pw\\npw\\n' | ocpasswd -c {dir}/passwd $user; done
             chmod 644 {dir}/passwd"
        ));
        self.pin = done(&format!(
            "openssl x509 -in {dir}/cert -pubkey -noout | openssl pkey -pubin -outform der \
             | openssl dgst -sha256 -binary | base64"
        ));
        self.script("hook", &format!("while [ -e {dir}/hold ]; do sleep 0.05; done; [ ! -e {dir}/refuse ]"));
        self.script(
            "up",
            "[ \"$reason\" = connect ] || exit 0
             ip link set \"$TUNDEV\" up; ip addr add \"$INTERNAL_IP4_ADDRESS/32\" dev \"$TUNDEV\"",
        );
        let config = format!(
            "auth = \"plain[passwd={dir}/passwd]\"
listen-host = 192.0.2.1
tcp-port = 443
udp-port = 443
run-as-user = nobody
run-as-group = nogroup
socket-file = {dir}/socket
use-occtl = true
occtl-socket-file = {dir}/occtl
server-cert = {dir}/cert
server-key = {dir}/key
isolate-workers = true
max-clients = 16
max-same-clients = 8
rate-limit-ms = 0
max-ban-score = 0
keepalive = 300
dpd = 30
try-mtu-discovery = false
cookie-timeout = 300
persistent-cookies = true
predictable-ips = true
device = vpns
ipv4-network = 10.9.0.0
ipv4-netmask = 255.255.255.0
route = 10.0.0.0/8
cisco-client-compat = true
connect-script = {dir}/hook
"
        );
        fs::write(self.path("config"), config).expect("the configuration");
    }

    fn script(&self, name: &str, body: &str) {
        let path = self.path(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).expect("a script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("permissions");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn touch(&self, name: &str) {
        fs::write(self.path(name), "").expect("a file");
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).expect("the file");
    }

    /// A program of this era, within a namespace. Its mounts are seen by itself alone, and end with it.
    fn program(&self, side: char, before: &[&str], line: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("{}-{side}", self.name)]).args(before);
        if let Some(root) = self.era.root() {
            let root = root.display();
            command.args(["sh", "-c"]).arg(format!(
                "mount --bind /tmp {root}/tmp && mount --rbind /dev {root}/dev && mount -t proc proc {root}/proc \
                 && exec chroot {root} \"$@\""
            ));
            command.arg("sh");
        }
        command.args(line);
        command
    }

    fn log(&self, name: &str) -> Stdio {
        let file = fs::File::options().create(true).append(true).open(self.path(name)).expect("a log");
        file.into()
    }

    pub fn run_server(&mut self) {
        let before: &[&str] =
            if self.own_pids { &["unshare", "--pid", "--fork", "--kill-child"] } else { &[] };
        let config = self.path("config").display().to_string();
        let mut command = self.program('g', before, &["/usr/sbin/ocserv", "-f", "-d", "1", "-c", &config]);
        command.stdin(Stdio::null()).stdout(self.log("server.log")).stderr(self.log("server.log"));
        self.server = Some(command.spawn().expect("ocserv"));
        let socket = self.path("occtl");
        let start = Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            let log = fs::read_to_string(self.path("server.log")).unwrap_or_default();
            assert!(start.elapsed() < Duration::from_secs(20), "ocserv does not start: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends ocserv and every process of its namespace.
    pub fn stop_server(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
        end_all(&format!("{}-g", self.name));
    }

    pub fn server_pid(&self) -> i32 {
        self.server.as_ref().expect("a server").id() as i32
    }

    pub fn client(&self) -> Client {
        Client::new(self.path("occtl"), Duration::from_secs(5))
    }

    /// A fresh authentication: openconnect's `COOKIE=`.
    pub fn log_in(&self, user: &str) -> String {
        let (user, pin) = (format!("--user={user}"), format!("pin-sha256:{}", self.pin));
        let line = [
            "openconnect",
            "--protocol=anyconnect",
            "--authenticate",
            &user,
            "--passwd-on-stdin",
            "--servercert",
            &pin,
            "https://192.0.2.1",
        ];
        let mut command = self.program('c', &[], &line);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(self.log("auth.log"))
            .spawn()
            .expect("openconnect");
        std::io::Write::write_all(&mut child.stdin.take().expect("its input"), b"pw\n")
            .expect("the password");
        let output = child.wait_with_output().expect("its output");
        let text = String::from_utf8_lossy(&output.stdout);
        let cookie = text.lines().find_map(|line| line.strip_prefix("COOKIE='")?.strip_suffix('\''));
        let log = || fs::read_to_string(self.path("auth.log")).unwrap_or_default();
        cookie.map(str::to_owned).unwrap_or_else(|| panic!("no cookie: {text} {}", log()))
    }

    /// A client with that cookie, on its way.
    pub fn connect(&mut self, cookie: &str) -> usize {
        let number = self.clients.len();
        let (pin, device) = (format!("pin-sha256:{}", self.pin), format!("tun{number}"));
        let script = self.path("up").display().to_string();
        let line = [
            "openconnect",
            "--protocol=anyconnect",
            "--cookie-on-stdin",
            "--servercert",
            &pin,
            "--interface",
            &device,
            "--script",
            &script,
            "https://192.0.2.1",
        ];
        let mut command = self.program('c', &[], &line);
        let log = format!("client{number}.log");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(self.log(&log))
            .stderr(self.log(&log))
            .spawn()
            .expect("openconnect");
        std::io::Write::write_all(
            &mut child.stdin.take().expect("its input"),
            format!("{cookie}\n").as_bytes(),
        )
        .expect("the cookie");
        self.clients.push(child);
        number
    }

    pub fn client_ended(&mut self, number: usize) -> bool {
        self.clients[number].try_wait().expect("its state").is_some()
    }
}

fn end_all(netns: &str) {
    let _ = run(&format!("ip netns pids {netns} | xargs -r kill -KILL"));
    let start = Instant::now();
    while !run(&format!("ip netns pids {netns}")).stdout.is_empty()
        && start.elapsed() < Duration::from_secs(5)
    {
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for log in ["server.log", "client0.log", "client1.log"] {
                eprintln!("{log}: {}", fs::read_to_string(self.path(log)).unwrap_or_default());
            }
        }
        for client in &mut self.clients {
            let _ = client.kill();
            let _ = client.wait();
        }
        self.stop_server();
        for side in ["g", "c"] {
            end_all(&format!("{}-{side}", self.name));
            let _ = run(&format!("ip netns del {}-{side}", self.name));
        }
    }
}
