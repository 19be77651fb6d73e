//! A real ocserv of any era, in the gateway's namespace or in another one.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::era::{Era, profile_folder};
use crate::lab::{GATEWAY_V4, GATEWAY_V6, Lab, Shared};
use crate::namespace::Namespace;
use crate::occtl::{self, User};
use crate::process::{BOUND, Output, Process, command, eventually, succeed};

/// Everybody's password: a word that stands nowhere by accident.
pub const PASSWORD: &str = "Kestrel-4711-Umbra";

/// How an ocserv is to be; [`Ocserv::start`] writes its configuration.
#[derive(Clone)]
pub struct Ocserv {
    era: Era,
    name: String,
    number: u8,
    port: u16,
    address: Ipv4Addr,
    namespace: Namespace,
    shared: Arc<Shared>,
    users: Vec<String>,
    groups: Vec<(String, String)>,
    settings: Vec<(String, String)>,
    per_user: Vec<(String, String)>,
    environment: Vec<(String, String)>,
    tail: String,
}

impl Ocserv {
    /// The first one (`number` 0) listens on 443, has devices `vpns…` and gives out 10.88.0.0/24 and fd88::/64;
    /// each further one has port, devices and networks of its own.
    pub fn new(lab: &Lab, era: Era, number: u8) -> Self {
        let shared = Arc::clone(lab.shared());
        let device = if number == 0 { "vpns".to_owned() } else { format!("vpn{number}s") };
        let mut new = Self {
            era,
            name: format!("ocserv{number}"),
            number,
            port: 443 + u16::from(number) * 1000,
            address: GATEWAY_V4,
            namespace: lab.gateway.clone(),
            shared,
            users: ["alice", "bob", "carol"].map(str::to_owned).to_vec(),
            groups: Vec::new(),
            settings: Vec::new(),
            per_user: Vec::new(),
            environment: Vec::new(),
            tail: String::new(),
        };
        for (key, value) in [
            ("run-as-user", "nobody"),
            ("run-as-group", "nogroup"),
            ("use-occtl", "true"),
            ("isolate-workers", "true"),
            ("max-clients", "64"),
            ("max-same-clients", "8"),
            ("rate-limit-ms", "0"),
            ("max-ban-score", "0"),
            ("keepalive", "300"),
            ("dpd", "60"),
            ("mobile-dpd", "60"),
            ("try-mtu-discovery", "false"),
            ("cookie-timeout", "300"),
            ("persistent-cookies", "true"),
            ("deny-roaming", "false"),
            ("predictable-ips", "true"),
            ("cisco-client-compat", "true"),
            ("ipv4-netmask", "255.255.255.0"),
            ("ipv6-subnet-prefix", "128"),
            ("route", "10.77.0.0/24"),
            ("server-stats-reset-time", "604800"),
            ("switch-to-tcp-timeout", "0"),
            ("log-level", "3"),
        ] {
            new = new.set(key, value);
        }
        new.set("device", &device)
            .set("ipv4-network", &format!("10.88.{number}.0"))
            .set("ipv6-network", &format!("fd88:{number}::/64"))
    }

    /// Sets a key, in the place of what it was.
    #[must_use]
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.settings.retain(|(present, _)| present != key);
        self.add(key, value)
    }

    /// Adds one more line of a key that may come several times.
    #[must_use]
    pub fn add(mut self, key: &str, value: &str) -> Self {
        self.settings.push((key.to_owned(), value.to_owned()));
        self
    }

    /// ocserv's own default.
    #[must_use]
    pub fn unset(mut self, key: &str) -> Self {
        self.settings.retain(|(present, _)| present != key);
        self
    }

    #[must_use]
    pub fn user(mut self, name: &str) -> Self {
        self.users.push(name.to_owned());
        self
    }

    /// A user who belongs to a group.
    #[must_use]
    pub fn member(mut self, name: &str, group: &str) -> Self {
        self.groups.push((name.to_owned(), group.to_owned()));
        self
    }

    /// Lines for one user alone (`config-per-user`), such as `iroute = 10.66.0.0/24`.
    #[must_use]
    pub fn for_user(mut self, name: &str, lines: &str) -> Self {
        self.per_user.push((name.to_owned(), lines.to_owned()));
        self
    }

    /// Runs in another namespace than the gateway's own.
    #[must_use]
    pub fn namespace(mut self, namespace: &Namespace) -> Self {
        self.namespace = namespace.clone();
        self
    }

    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// Where its clients find it by IPv4; [`GATEWAY_V4`] unless told.
    #[must_use]
    pub fn address(mut self, address: Ipv4Addr) -> Self {
        self.address = address;
        self
    }

    /// Lines behind everything else: virtual hosts.
    #[must_use]
    pub fn tail(mut self, lines: &str) -> Self {
        self.tail.push_str(lines);
        self
    }

    /// A variable for ocserv, which hands its environment on to its scripts.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.environment.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Both scripts.
    #[must_use]
    pub fn scripts(self, script: &Path) -> Self {
        let script = script.display().to_string();
        self.set("connect-script", &script).set("disconnect-script", &script)
    }

    /// A connect-script of the test's own, in `sh`.
    #[must_use]
    pub fn connect_shell(self, body: &str) -> Self {
        let path = self.file("connect");
        write_script(&path, body);
        self.set("connect-script", &path.display().to_string())
    }

    fn file(&self, end: &str) -> PathBuf {
        self.shared.work().join(format!("{}.{end}", self.name))
    }

    /// The control socket that it will have.
    pub fn socket(&self) -> PathBuf {
        self.file("occtl")
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn number(&self) -> u8 {
        self.number
    }

    /// Starts it, and waits until it answers on its control socket.
    #[track_caller]
    pub fn start(self) -> Server {
        let certificate = Certificate::get();
        let (cert, key) = (self.file("crt"), self.file("key"));
        fs::write(&cert, &certificate.cert).expect("the certificate");
        fs::write(&key, &certificate.key).expect("the key");
        let passwords = self.file("passwd");
        for user in &self.users {
            let path = passwords.display().to_string();
            succeed(command("ocpasswd", ["-c", &path, user]), &format!("{PASSWORD}\n{PASSWORD}\n"));
        }
        for (user, group) in &self.groups {
            let path = passwords.display().to_string();
            let arguments = ["-c", &path, "-g", group, user];
            succeed(command("ocpasswd", arguments), &format!("{PASSWORD}\n{PASSWORD}\n"));
        }
        let mut text = format!("auth = \"plain[passwd={}]\"\n", passwords.display());
        let mut line = |key: &str, value: &str| text.push_str(&format!("{key} = {value}\n"));
        line("tcp-port", &self.port.to_string());
        if !self.settings.iter().any(|(key, _)| key == "udp-port") {
            line("udp-port", &self.port.to_string());
        }
        line("socket-file", &self.file("sock").display().to_string());
        line("occtl-socket-file", &self.socket().display().to_string());
        line("server-cert", &cert.display().to_string());
        line("server-key", &key.display().to_string());
        for (key, value) in self.settings.iter().filter(|(_, value)| !value.is_empty()) {
            line(key, value);
        }
        if !self.per_user.is_empty() {
            let folder = self.file("users");
            fs::create_dir_all(&folder).expect("a folder");
            for (user, lines) in &self.per_user {
                fs::write(folder.join(user), format!("{lines}\n")).expect("a user's configuration");
            }
            line("config-per-user", &folder.display().to_string());
        }
        text.push_str(&self.tail);
        fs::write(self.file("conf"), text).expect("a configuration");
        let process = self.spawn();
        let mut server = Server { config: self, process: Some(process) };
        server.ready();
        server
    }

    fn spawn(&self) -> Process {
        let work = self.shared.work();
        let this = std::env::current_exe().expect("the path of this program");
        let scratch = self.shared.scratch(&self.name);
        let mut command =
            self.era.command(&self.namespace, &scratch, &[&work, profile_folder(&this)], "ocserv");
        command.args(["-f", "-d", "3", "-c"]).arg(self.file("conf"));
        command.envs(self.environment.iter().map(|(key, value)| (key, value)));
        Process::start(&self.name, command, &self.file("log"), None)
    }
}

/// An executable shell script.
pub fn write_script(path: &Path, body: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::write(path, format!("#!/bin/sh\n{body}\n")).expect("a script");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("its mode");
}

/// A running ocserv.
pub struct Server {
    config: Ocserv,
    process: Option<Process>,
}

impl Server {
    #[track_caller]
    fn ready(&mut self) {
        let socket = self.config.socket();
        eventually(&format!("{} answers", self.config.name), BOUND, || {
            let process = self.process.as_mut().expect("a started ocserv");
            if let Some(status) = process.exited() {
                panic!("{} ended ({status}):\n{}", self.config.name, process.log());
            }
            occtl::list(&socket).ok()
        });
    }

    pub fn era(&self) -> Era {
        self.config.era
    }

    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// The file that it reads when it starts.
    pub fn conf(&self) -> PathBuf {
        self.config.file("conf")
    }

    pub fn config(&self) -> &Ocserv {
        &self.config
    }

    pub fn socket(&self) -> PathBuf {
        self.config.socket()
    }

    pub fn port(&self) -> u16 {
        self.config.port
    }

    pub fn namespace(&self) -> &Namespace {
        &self.config.namespace
    }

    /// Its main process.
    pub fn pid(&self) -> Pid {
        self.process.as_ref().expect("ocserv was stopped").pid()
    }

    /// What its clients compare the certificate with.
    pub fn pin(&self) -> &'static str {
        &Certificate::get().pin
    }

    pub fn url(&self, v6: bool) -> String {
        if v6 {
            format!("https://[{GATEWAY_V6}]:{}", self.port())
        } else {
            format!("https://{}:{}", self.config.address, self.port())
        }
    }

    pub fn log(&self) -> String {
        crate::process::read_log(&self.config.file("log"))
    }

    /// SIGTERM to main, and all its processes end.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.stop();
        }
    }

    /// SIGKILL to main.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Starts again with the same configuration, after [`Server::stop`] or [`Server::kill`] or while it runs.
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop();
        // sec-mod and workers see that main is gone, and leave; the port is free when they have
        let _ = fs::remove_file(self.config.socket());
        self.process = Some(self.config.spawn());
        self.ready();
    }

    /// Main alone, as SIGSTOP leaves it: workers and sec-mod run on.
    pub fn freeze(&self) {
        self.process.as_ref().expect("ocserv was stopped").signal(Signal::SIGSTOP);
    }

    pub fn thaw(&self) {
        self.process.as_ref().expect("ocserv was stopped").signal(Signal::SIGCONT);
    }

    /// The real occtl of this server's era.
    pub fn occtl(&self, arguments: &[&str]) -> Output {
        occtl::occtl(self.era(), self.pid(), &self.socket(), arguments)
    }

    /// Its sessions, of one user.
    pub fn sessions(&self, user: &str) -> Vec<User> {
        occtl::users(&self.occtl(&["-j", "show", "users"]).stdout)
            .into_iter()
            .filter(|session| session.name == user)
            .collect()
    }

    /// The safe ids of a user's cookies, in use or not.
    pub fn cookies(&self, user: &str) -> Vec<String> {
        occtl::cookies(&self.occtl(&["-j", "show", "cookies", "all"]).stdout, user)
    }

    /// The session whose client has this VPN address.
    #[track_caller]
    pub fn session_at(&self, user: &str, address: Ipv4Addr) -> User {
        eventually(&format!("a session of {user} at {address}"), Duration::from_secs(10), || {
            self.sessions(user).into_iter().find(|session| session.v4 == address.to_string())
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// One certificate for all servers of a test run.
struct Certificate {
    cert: Vec<u8>,
    key: Vec<u8>,
    pin: String,
}

impl Certificate {
    fn get() -> &'static Self {
        static ONE: OnceLock<Certificate> = OnceLock::new();
        ONE.get_or_init(|| {
            let folder = PathBuf::from(format!("/tmp/enforcer-cert-{}", std::process::id()));
            fs::create_dir_all(&folder).expect("a folder");
            let script = "openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=vpn.example.com \
                          -addext subjectAltName=DNS:vpn.example.com -keyout key -out cert 2>err || { cat err; exit 1; }
                          openssl x509 -in cert -noout -pubkey | openssl pkey -pubin -outform der |
                          openssl dgst -sha256 -binary | openssl base64";
            let mut shell = command("sh", ["-c", script]);
            shell.current_dir(&folder);
            let pin = format!("pin-sha256:{}", succeed(shell, "").trim());
            let read = |name: &str| fs::read(folder.join(name)).expect("openssl's output");
            let certificate = Certificate { cert: read("cert"), key: read("key"), pin };
            // the same folder in every later run of this pid would be the same name: not kept
            let _ = fs::remove_dir_all(&folder);
            certificate
        })
    }
}
