//! VPN clients: real openconnect, each on a host of its own.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::clock::Moment;
use crate::era::Era;
use crate::lab::Shared;
use crate::namespace::Namespace;
use crate::ocserv::{PASSWORD, Server, write_script};
use crate::process::{BOUND, Process, eventually, output, read_log};

/// A client's `webvpn` cookie: what is stolen when a session is stolen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cookie(pub String);

impl Cookie {
    /// As it could stand in a log or a file: its text, and its bytes in hexadecimal.
    pub fn spellings(&self) -> Vec<String> {
        let text = self.0.rsplit('=').find(|part| part.len() > 20).unwrap_or(&self.0).trim_end_matches('=');
        let engine = base64::engine::general_purpose::STANDARD_NO_PAD;
        let bytes = base64::Engine::decode(&engine, text).expect("a cookie is base64");
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        vec![text.to_owned(), hex.to_uppercase(), hex]
    }
}

/// A host with openconnect.
pub struct Client {
    shared: Arc<Shared>,
    name: String,
    pub namespace: Namespace,
    pub number: u8,
    pub outer_v4: Ipv4Addr,
    pub outer_v6: Ipv6Addr,
    tunnels: AtomicU32,
}

/// How to connect.
#[derive(Clone, Default)]
pub struct Connect {
    era: Option<Era>,
    url: Option<String>,
    outer_v6: bool,
    no_dtls: bool,
    device: Option<String>,
    no_routes: bool,
    more: Vec<String>,
}

impl Connect {
    /// The openconnect of this era instead of the host's.
    #[must_use]
    pub fn era(mut self, era: Era) -> Self {
        self.era = Some(era);
        self
    }

    /// Another way to the server than straight to its port on the gateway.
    #[must_use]
    pub fn url(mut self, url: &str) -> Self {
        self.url = Some(url.to_owned());
        self
    }

    /// Over IPv6 outside.
    #[must_use]
    pub fn outer_v6(mut self) -> Self {
        self.outer_v6 = true;
        self
    }

    /// TLS only.
    #[must_use]
    pub fn no_dtls(mut self) -> Self {
        self.no_dtls = true;
        self
    }

    /// The client's tun device; `tun0` unless told.
    #[must_use]
    pub fn device(mut self, device: &str) -> Self {
        self.device = Some(device.to_owned());
        self
    }

    /// No routes into the tunnel: for a second one on the same host.
    #[must_use]
    pub fn no_routes(mut self) -> Self {
        self.no_routes = true;
        self
    }

    #[must_use]
    pub fn option(mut self, option: &str) -> Self {
        self.more.push(option.to_owned());
        self
    }
}

/// How an attempt to connect ended.
pub enum Outcome {
    Up(Tunnel),
    /// The server did not take the cookie, and openconnect gave up.
    Refused {
        log: String,
    },
    /// openconnect ended for another reason.
    Failed {
        log: String,
    },
}

impl Outcome {
    #[track_caller]
    pub fn up(self) -> Tunnel {
        match self {
            Outcome::Up(tunnel) => tunnel,
            Outcome::Refused { log } => panic!("the client was refused:\n{log}"),
            Outcome::Failed { log } => panic!("the client did not come up:\n{log}"),
        }
    }

    #[track_caller]
    pub fn refused(self) {
        match self {
            Outcome::Up(tunnel) => panic!("the client was let in, with {}:\n{}", tunnel.v4, tunnel.log()),
            Outcome::Failed { log } => panic!("the client failed otherwise than by a refusal:\n{log}"),
            Outcome::Refused { .. } => {}
        }
    }

    pub fn is_up(&self) -> bool {
        matches!(self, Outcome::Up(_))
    }
}

impl Client {
    pub fn new(
        shared: Arc<Shared>,
        name: &str,
        namespace: Namespace,
        number: u8,
        outer_v4: Ipv4Addr,
        outer_v6: Ipv6Addr,
    ) -> Self {
        let tunnels = AtomicU32::new(0);
        Self { shared, name: name.to_owned(), namespace, number, outer_v4, outer_v6, tunnels }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    fn next_file(&self, kind: &str) -> PathBuf {
        let number = self.tunnels.fetch_add(1, Ordering::Relaxed);
        self.shared.work().join(format!("{}.{kind}{number}", self.name))
    }

    /// Logs in with a password; gives the cookie, or what openconnect said.
    ///
    /// # Errors
    /// The server did not let the user in.
    pub fn login(&self, server: &Server, user: &str, how: &Connect) -> Result<Cookie, String> {
        let mut command = self.openconnect(server, how, "login");
        command.args(["--authenticate", "--passwd-on-stdin", "--user", user]);
        command.args(&how.more);
        command.arg(Self::url(server, how));
        let output = output(command, &format!("{PASSWORD}\n"));
        let cookie = output.stdout.lines().find_map(|line| line.strip_prefix("COOKIE="));
        let log = || format!("exit {}\n{}{}", output.code, output.stdout, output.stderr);
        let cookie = cookie.map(|cookie| cookie.trim_matches('\'')).filter(|cookie| !cookie.is_empty());
        cookie.map(|cookie| Cookie(cookie.to_owned())).ok_or_else(log)
    }

    /// Logs in; panics if that fails.
    #[track_caller]
    pub fn authenticate(&self, server: &Server, user: &str) -> Cookie {
        self.login(server, user, &Connect::default())
            .unwrap_or_else(|log| panic!("{user} cannot log in: {log}"))
    }

    /// Connects with a cookie, and waits until the tunnel is up or openconnect has ended.
    ///
    /// In a network with room for one ocserv draws addresses by lot, and gives up after a few that are none: it
    /// says so, and then it is asked again.
    #[track_caller]
    pub fn connect(&self, server: &Server, cookie: &Cookie, how: &Connect) -> Outcome {
        let unlucky = || server.log().matches("could not figure out a valid IPv4 IP").count();
        for _ in 0..50 {
            let before = unlucky();
            let outcome = self.start(server, cookie, how).outcome();
            if !matches!(outcome, Outcome::Refused { .. }) || unlucky() == before {
                return outcome;
            }
        }
        self.start(server, cookie, how).outcome()
    }

    /// Logs in and connects, straight away.
    #[track_caller]
    pub fn session(&self, server: &Server, user: &str) -> (Cookie, Tunnel) {
        self.session_by(server, user, &Connect::default())
    }

    /// The same, in another way.
    #[track_caller]
    pub fn session_by(&self, server: &Server, user: &str, how: &Connect) -> (Cookie, Tunnel) {
        let cookie =
            self.login(server, user, how).unwrap_or_else(|log| panic!("{user} cannot log in: {log}"));
        let tunnel = self.connect(server, &cookie, how).up();
        (cookie, tunnel)
    }

    /// Starts to connect with a cookie, without waiting.
    pub fn start(&self, server: &Server, cookie: &Cookie, how: &Connect) -> Attempt {
        let up = self.next_file("up");
        let script = up.with_extension("script");
        let log = up.with_extension(format!("{}.log", up.extension().unwrap_or_default().to_string_lossy()));
        let routes = if how.no_routes { "" } else { ROUTES };
        write_script(&script, &SCRIPT.replace("@UP@", &up.display().to_string()).replace("@ROUTES@", routes));
        let device = how.device.as_deref().unwrap_or("tun0");
        let mut command =
            self.openconnect(server, how, &up.file_name().unwrap_or_default().to_string_lossy());
        command.args(["--cookie-on-stdin", "--interface", device, "--script"]).arg(&script);
        command.args(["-v", "--timestamp"]);
        if how.no_dtls {
            command.arg("--no-dtls");
        }
        command.args(&how.more);
        command.arg(Self::url(server, how));
        let process = Process::start(&self.name, command, &log, Some(&format!("{}\n", cookie.0)));
        Attempt { process: Some(process), up, log, device: device.to_owned(), client: self.name.clone() }
    }

    fn url(server: &Server, how: &Connect) -> String {
        how.url.clone().unwrap_or_else(|| server.url(how.outer_v6))
    }

    fn openconnect(&self, server: &Server, how: &Connect, name: &str) -> std::process::Command {
        let work = self.shared.work();
        let mut command = match how.era {
            None => self.namespace.command("openconnect"),
            Some(era) => {
                let scratch = self.shared.scratch(&format!("{}-{name}", self.name));
                era.command(&self.namespace, &scratch, &[&work], "openconnect")
            }
        };
        command.args(["--protocol=anyconnect", "--non-inter", "--servercert", server.pin()]);
        command
    }
}

/// What openconnect runs when the tunnel comes and goes: it sets the device up, and then says so in one step.
const SCRIPT: &str = r#"
case "$reason" in connect|reconnect) ;; *) exit 0 ;; esac
[ "$reason" = connect ] || { echo reconnect >>@UP@.reconnects; exit 0; }
six=${INTERNAL_IP6_NETMASK:-$INTERNAL_IP6_ADDRESS}
{
  echo "link set dev $TUNDEV up mtu ${INTERNAL_IP4_MTU:-1300} txqueuelen 3000"
  [ -z "$INTERNAL_IP4_ADDRESS" ] || echo "addr add $INTERNAL_IP4_ADDRESS/32 dev $TUNDEV"
  [ -z "$six" ] || echo "addr add ${six%/*}/128 dev $TUNDEV nodad"
  @ROUTES@
} | ip -batch - || exit 1
echo "$INTERNAL_IP4_ADDRESS ${six:--} ${INTERNAL_IP6_ADDRESS:--}" >@UP@.new
mv @UP@.new @UP@
"#;

const ROUTES: &str = r#"
  echo "route add 10.64.0.0/10 dev $TUNDEV"
  [ -z "$six" ] || { echo "route add fd77::/64 dev $TUNDEV"; echo "route add fd88::/16 dev $TUNDEV"; }"#;

/// A client that is connecting.
pub struct Attempt {
    process: Option<Process>,
    up: PathBuf,
    log: PathBuf,
    device: String,
    client: String,
}

impl Attempt {
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("an attempt that was not taken")
    }

    /// Waits until the tunnel is up or openconnect has ended.
    #[track_caller]
    pub fn outcome(mut self) -> Outcome {
        let what = format!("{} is up or refused", self.client);
        eventually(&what, BOUND, || self.poll())
    }

    /// What has come of it, once something has.
    pub fn poll(&mut self) -> Option<Outcome> {
        if let Ok(text) = fs::read_to_string(&self.up) {
            let mut words = text.split_whitespace();
            let v4 = words.next()?.parse().ok()?;
            let prefix = words.next()?.to_owned();
            let v6 = prefix.split('/').next().and_then(|address| address.parse().ok());
            let process = self.process.take()?;
            let (device, log, up) = (self.device.clone(), self.log.clone(), self.up.clone());
            return Some(Outcome::Up(Tunnel { process, v4, v6, prefix, device, log, up }));
        }
        self.process().exited()?;
        let log = read_log(&self.log);
        let refused = log.contains("Cookie was rejected") || log.contains("Cookie is not acceptable");
        Some(if refused { Outcome::Refused { log } } else { Outcome::Failed { log } })
    }
}

/// A client's tunnel, up when it was made.
pub struct Tunnel {
    process: Process,
    pub v4: Ipv4Addr,
    pub v6: Option<Ipv6Addr>,
    /// The IPv6 address with the length of the delegated prefix, as openconnect was told it.
    pub prefix: String,
    pub device: String,
    log: PathBuf,
    up: PathBuf,
}

impl Tunnel {
    pub fn ip(&self, v6: bool) -> IpAddr {
        if v6 { self.v6.expect("an IPv6 address in the tunnel").into() } else { self.v4.into() }
    }

    pub fn log(&self) -> String {
        read_log(&self.log)
    }

    /// When the client had its tunnel, and no packet had gone through it yet.
    pub fn since(&self) -> Moment {
        let written = fs::metadata(&self.up).and_then(|meta| meta.modified()).expect("a tunnel that was up");
        let since = written.duration_since(std::time::UNIX_EPOCH).expect("the clock is before 1970");
        Moment(u64::try_from(since.as_nanos()).expect("the clock is after 2500"))
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Whether openconnect has ended.
    pub fn ended(&mut self) -> bool {
        self.process.exited().is_some()
    }

    /// How often it came back by itself.
    pub fn reconnects(&self) -> usize {
        let mut path = self.up.clone().into_os_string();
        path.push(".reconnects");
        fs::read_to_string(path).map(|text| text.lines().count()).unwrap_or(0)
    }

    /// Waits until openconnect has ended by itself.
    #[track_caller]
    pub fn wait_end(&mut self) {
        self.process.wait(BOUND);
    }

    /// kill -9: the client is offline without a goodbye, and its cookie lives.
    pub fn kill(mut self) {
        self.process.kill();
    }

    /// Frozen: the client neither answers nor leaves.
    pub fn freeze(&self) {
        self.process.signal(Signal::SIGSTOP);
    }

    pub fn thaw(&self) {
        self.process.signal(Signal::SIGCONT);
    }

    /// Leaves by itself and keeps its cookie (SIGHUP: openconnect goes without a logout).
    pub fn leave(mut self) {
        self.process.signal(Signal::SIGHUP);
        self.process.wait(Duration::from_secs(10));
    }

    /// Logs out (SIGINT: openconnect says goodbye, and the server may drop the cookie).
    pub fn log_out(mut self) {
        self.process.signal(Signal::SIGINT);
        self.process.wait(Duration::from_secs(10));
    }
}
