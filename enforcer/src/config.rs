//! The configuration: one TOML file, every key optional, unknown keys refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use enforcer_ebpf::layout::OPENVPN_PORTS_MOST;
use serde::Deserialize;

use crate::session::{self, DEFAULT_REALM, Realms, ServerName};

/// Where the file is looked for when neither `--config` nor `ENFORCER_CONFIG` names one.
pub const DEFAULT_PATH: &str = "/etc/enforcer/enforcer.toml";

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{path}: cannot be read: {error}")]
    Unreadable { path: PathBuf, error: std::io::Error },
    #[error("{path}: {text}")]
    Invalid { path: PathBuf, text: String },
}

#[derive(Debug, Clone, Deserialize, Default)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Config {
    pub kernel: Kernel,
    pub ocserv: Servers,
    pub gate: Gate,
    pub state: State,
    pub control: Control,
    /// `[web]`; without it nothing is served to a web gateway.
    pub web: Option<Web>,
    /// `[realms.NAME]`: what is special of a realm. One that is not named here is as [`Realm::default`].
    pub realms: BTreeMap<String, Realm>,
}

/// Where a name means one person.
#[derive(Debug, Clone, Copy, Deserialize, Default)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Realm {
    pub case: Case,
}

/// Whether `Alice` and `alice` are two people or one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Case {
    #[default]
    Exact,
    Fold,
}

/// Where the BPF programs go.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Kernel {
    /// Interfaces that face the clients (XDP), names or patterns with `*`; unset: the default routes' ones.
    pub outer: Option<Vec<String>>,
    /// Interfaces that face the LAN (tc), names or patterns with `*`; unset: every other Ethernet one with an
    /// address, or the outer ones where there is no other.
    pub inner: Option<Vec<String>>,
    pub pin_path: PathBuf,
    pub xdp: Xdp,
    pub tc: Tc,
    /// How a session's sockets are ended; `kill` serves kernels without SOCK_DESTROY.
    pub sockets: Sockets,
    /// UDP ports of this host at which an OpenVPN server (or another peer) is spoken to: the session ids there are read.
    pub openvpn_ports: Vec<u16>,
    pub capacity: Capacity,
}

/// How many entries each of the kernel's tables can hold.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Capacity {
    pub flows: u32,
    pub addresses: u32,
    pub devices: u32,
    pub tokens: u32,
    pub safe_ids: u32,
    pub cutoffs: u32,
    pub locks: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            flows: 1_000_000,
            addresses: 1_000_000,
            devices: 65_536,
            tokens: 65_536,
            safe_ids: 262_144,
            cutoffs: 65_536,
            locks: 65_536,
        }
    }
}

impl Capacity {
    fn all(&self) -> [(&'static str, u32); 7] {
        [
            ("flows", self.flows),
            ("addresses", self.addresses),
            ("devices", self.devices),
            ("tokens", self.tokens),
            ("safe-ids", self.safe_ids),
            ("cutoffs", self.cutoffs),
            ("locks", self.locks),
        ]
    }
}

/// The kernel takes 16 bytes for each entry that could be there, at once.
const MAX_CAPACITY: u32 = 64 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Xdp {
    #[default]
    Auto,
    Native,
    Generic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Tc {
    #[default]
    Auto,
    Tcx,
    Clsact,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Sockets {
    /// SOCK_DESTROY, and the worker killed where the kernel lacks it.
    #[default]
    Auto,
    Kill,
}

impl Default for Kernel {
    fn default() -> Self {
        Self {
            outer: None,
            inner: None,
            pin_path: PathBuf::from("/sys/fs/bpf/enforcer"),
            xdp: Xdp::Auto,
            tc: Tc::Auto,
            sockets: Sockets::Auto,
            openvpn_ports: Vec::new(),
            capacity: Capacity::default(),
        }
    }
}

/// `[ocserv]` or `[[ocserv]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Servers {
    One(Box<Server>),
    Many(Vec<Server>),
}

impl Default for Servers {
    fn default() -> Self {
        Self::One(Box::default())
    }
}

impl Servers {
    pub fn iter(&self) -> impl Iterator<Item = &Server> {
        match self {
            Self::One(server) => std::slice::from_ref(server.as_ref()).iter(),
            Self::Many(servers) => servers.iter(),
        }
    }
}

/// One ocserv server on this host.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Server {
    pub name: String,
    /// ocserv's `occtl-socket-file`.
    pub control_socket: PathBuf,
    /// Its ocserv.conf, where it cannot be found by itself: to see whether the gate is named there.
    pub config: Option<PathBuf>,
    /// Whether to listen to ocserv's TOP feed. It has room for one listener: `false` leaves it to `occtl top`.
    pub feed: bool,
    /// What the gate runs after it lets a client in; its refusal counts.
    pub next_script: Option<PathBuf>,
    /// What the gate runs when it is called as disconnect-script.
    pub next_disconnect_script: Option<PathBuf>,
    /// Makes a revocation of a disconnect that somebody asks of the stock `occtl`. Needs the feed, which tells of it.
    pub invalidate_on_disconnect: bool,
    /// Interfaces in the server's own network namespace, where that is not the daemon's; as in `[kernel]`.
    pub outer: Option<Vec<String>>,
    pub inner: Option<Vec<String>>,
    /// Whose names its users' names are: servers of one realm share their people.
    pub realm: String,
    /// The realm of a virtual host, where it is another one.
    pub vhost_realms: BTreeMap<String, String>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            name: "default".into(),
            control_socket: PathBuf::from("/var/run/occtl.socket"),
            config: None,
            feed: true,
            next_script: None,
            next_disconnect_script: None,
            invalidate_on_disconnect: false,
            outer: None,
            inner: None,
            realm: DEFAULT_REALM.into(),
            vhost_realms: BTreeMap::new(),
        }
    }
}

impl Server {
    pub fn server_name(&self) -> ServerName {
        ServerName::new(&self.name)
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Gate {
    /// What the gate does when it can see neither the daemon nor the pinned maps, or not learn the safe_id.
    pub when_blind: WhenBlind,
    pub socket: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum WhenBlind {
    #[default]
    Refuse,
    Admit,
}

impl Default for Gate {
    fn default() -> Self {
        Self { when_blind: WhenBlind::Refuse, socket: PathBuf::from("/run/enforcer/gate.sock") }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct State {
    /// Mode 0700, the daemon's alone.
    pub directory: PathBuf,
    /// How long, and how many at the most, receipts are kept in the audit log.
    pub audit_days: u32,
    pub audit_rows: u32,
}

impl Default for State {
    fn default() -> Self {
        Self { directory: PathBuf::from("/var/lib/enforcer"), audit_days: 365, audit_rows: 100_000 }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Control {
    pub socket: PathBuf,
}

impl Default for Control {
    fn default() -> Self {
        Self { socket: PathBuf::from("/run/enforcer/control.sock") }
    }
}

/// What the daemon serves to the web gateway.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Web {
    /// Mode 0600, the gateway's own, in a folder that nobody but root can write to.
    pub socket: PathBuf,
    /// The system user that the gateway runs as. Nobody else but root is served.
    pub user: String,
    pub max_sessions: u32,
    /// The realms that its users may be of.
    pub realms: Vec<String>,
}

/// So many sessions are a hundred megabytes of the daemon's memory or more.
const MAX_WEB_SESSIONS: u32 = 1_000_000;

impl Default for Web {
    fn default() -> Self {
        Self {
            socket: PathBuf::from("/run/enforcer-web/web.sock"),
            user: "enforcer-web".into(),
            max_sessions: 100_000,
            realms: vec![DEFAULT_REALM.into()],
        }
    }
}

impl Config {
    /// Reads the named file; without a name the default one, which need not exist.
    pub fn load(named: Option<&Path>) -> Result<Self, ConfigError> {
        let path = named.unwrap_or(Path::new(DEFAULT_PATH));
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).map_err(|text| ConfigError::Invalid { path: path.into(), text }),
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            Err(error) => Err(ConfigError::Unreadable { path: path.into(), error }),
        }
    }

    /// The error is a text for people, with line and column where TOML's reader knows them.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: Self = match toml::from_str(text) {
            Ok(file) => file,
            Err(error) => return Err(explain(text, &error)),
        };
        file.validate()?;
        Ok(file)
    }

    /// Who is who, as configured.
    pub fn realms(&self) -> Realms {
        let mut realms = Realms::default();
        for (name, realm) in &self.realms {
            let case = match realm.case {
                Case::Exact => session::Case::Exact,
                Case::Fold => session::Case::Fold,
            };
            realms.set_case(name, case);
        }
        for server in self.ocserv.iter() {
            realms.set_server(server.server_name(), &server.realm);
            for (vhost, realm) in &server.vhost_realms {
                realms.set_vhost(server.server_name(), vhost, realm);
            }
        }
        realms
    }

    fn validate(&self) -> Result<(), String> {
        for (table, capacity) in self.kernel.capacity.all() {
            if capacity == 0 || capacity > MAX_CAPACITY {
                return Err(format!("[kernel.capacity] {table} = {capacity}: it is 1 to {MAX_CAPACITY}"));
            }
        }
        let ports = &self.kernel.openvpn_ports;
        if ports.len() > OPENVPN_PORTS_MOST || ports.contains(&0) {
            return Err(format!(
                "[kernel] openvpn-ports = {ports:?}: at most {OPENVPN_PORTS_MOST} UDP ports, each from 1 to 65535"
            ));
        }
        if self.state.audit_rows == 0 || self.state.audit_days == 0 {
            return Err("[state] audit-days and audit-rows are at least 1".into());
        }
        let mut used: BTreeSet<&str> = BTreeSet::from([DEFAULT_REALM]);
        if let Some(web) = &self.web {
            if web.max_sessions == 0 || web.max_sessions > MAX_WEB_SESSIONS {
                let most = web.max_sessions;
                return Err(format!("[web] max-sessions = {most}: it is 1 to {MAX_WEB_SESSIONS}"));
            }
            if web.realms.is_empty() {
                return Err(
                    "[web] realms = []: at least one is needed (leave the key out for the default one)"
                        .into(),
                );
            }
            if !is_name(&web.user) {
                return Err(format!("[web] user = {:?}: it is the name of a system user", web.user));
            }
            used.extend(web.realms.iter().map(String::as_str));
        }
        for server in self.ocserv.iter() {
            used.extend([server.realm.as_str()]);
            used.extend(server.vhost_realms.values().map(String::as_str));
        }
        if let Some(name) = used.iter().find(|name| !is_name(name)) {
            return Err(format!("realm = {name:?}: a name is 1 to 64 characters without spaces"));
        }
        if let Some(name) = self.realms.keys().find(|name| !used.contains(name.as_str())) {
            let known: Vec<&str> = used.into_iter().collect();
            return Err(format!(
                "[realms.{name}]: no server is of that realm, nor [web]; there are: {}",
                known.join(", ")
            ));
        }
        let mut names = BTreeSet::new();
        let mut sockets = BTreeSet::new();
        for server in self.ocserv.iter() {
            if server.invalidate_on_disconnect && !server.feed {
                return Err(
                    "[ocserv] invalidate-on-disconnect = true needs the feed, which tells who disconnected: \
                            leave feed = false out"
                        .into(),
                );
            }
            let name = &server.name;
            if !is_name(name) {
                return Err(format!(
                    "[[ocserv]] name = {name:?}: a name is 1 to 64 characters without spaces"
                ));
            }
            if !names.insert(name) {
                return Err(format!(
                    "[[ocserv]] name = {name:?} is given twice: each server needs a name of its own"
                ));
            }
            if !sockets.insert(&server.control_socket) {
                return Err(format!(
                    "[[ocserv]] control-socket = {:?} is given twice: each server has a socket of its own",
                    server.control_socket
                ));
            }
            if !server.control_socket.is_absolute() {
                return Err(format!(
                    "[ocserv] control-socket = {:?}: it is an absolute path",
                    server.control_socket
                ));
            }
            for script in [&server.next_script, &server.next_disconnect_script].into_iter().flatten() {
                // the design's own example writes "" for none
                if !script.as_os_str().is_empty() && !script.is_absolute() {
                    return Err(format!(
                        "[ocserv]: the script {script:?} is to be an absolute path, or \"\" for none"
                    ));
                }
            }
        }
        if names.is_empty() {
            return Err(
                "ocserv = []: at least one server is needed (leave the key out for the default one)".into()
            );
        }
        let paths = [
            ("[kernel] pin-path", &self.kernel.pin_path),
            ("[gate] socket", &self.gate.socket),
            ("[state] directory", &self.state.directory),
            ("[control] socket", &self.control.socket),
        ];
        let web = self.web.as_ref().map(|web| ("[web] socket", &web.socket));
        for (key, path) in paths.into_iter().chain(web) {
            if !path.is_absolute() {
                return Err(format!("{key} = {path:?}: it is an absolute path"));
            }
        }
        let sockets =
            [Some(&self.control.socket), Some(&self.gate.socket), self.web.as_ref().map(|web| &web.socket)];
        let sockets: Vec<&PathBuf> = sockets.into_iter().flatten().collect();
        if sockets.iter().collect::<BTreeSet<_>>().len() < sockets.len() {
            return Err(
                "[control], [gate] and [web] need a socket each: two of them name the same one".into()
            );
        }
        Ok(())
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 64 && !name.chars().any(|c| c.is_control() || c.is_whitespace())
}

/// serde's message, and for an unknown key the nearest known one.
fn explain(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().trim();
    // an untagged enum hides what was wrong within: read the section on its own to learn it
    if message.contains("untagged enum")
        && let Some(inner) = explain_servers(text)
    {
        return inner;
    }
    let mut told = match error.span() {
        Some(span) => {
            let before = text.get(..span.start).unwrap_or(text);
            let line = before.matches('\n').count() + 1;
            // where a value is wrong the message does not say whose
            let words = text.lines().nth(line - 1).unwrap_or_default().trim();
            format!("line {line} ({words}): {message}")
        }
        None => message.to_owned(),
    };
    if let Some(nearest) = nearest_key(message) {
        told.push_str(&format!("; did you mean `{nearest}`?"));
    }
    told
}

fn explain_servers(text: &str) -> Option<String> {
    let file: toml::Table = toml::from_str(text).ok()?;
    let servers = match file.get("ocserv")? {
        toml::Value::Array(servers) => servers.clone(),
        one => vec![one.clone()],
    };
    let error = servers.into_iter().find_map(|server| server.try_into::<Server>().err())?;
    let message = error.message().trim().to_owned();
    let hint = nearest_key(&message).map(|key| format!("; did you mean `{key}`?")).unwrap_or_default();
    Some(format!("[ocserv]: {message}{hint}"))
}

/// The known key that is nearest to the unknown one, from serde's "unknown field `a`, expected one of `b`, `c`".
fn nearest_key(message: &str) -> Option<String> {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = message.starts_with("unknown field").then(|| quoted.next())??;
    quoted.min_by_key(|known| strsim::damerau_levenshtein(unknown, known)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_optional() {
        let config = Config::parse("").unwrap();
        assert_eq!(config.ocserv.iter().count(), 1);
        assert_eq!(config.control.socket, Path::new("/run/enforcer/control.sock"));
    }

    #[test]
    fn one_server_or_many() {
        let one = Config::parse("[ocserv]\ncontrol-socket = '/a'").unwrap();
        assert_eq!(one.ocserv.iter().next().unwrap().name, "default");
        let two = "[[ocserv]]\nname='a'\ncontrol-socket='/a'\n[[ocserv]]\nname='b'\ncontrol-socket='/b'";
        assert_eq!(Config::parse(two).unwrap().ocserv.iter().count(), 2);
        let same = two.replace("name='b'", "name='a'");
        assert!(Config::parse(&same).unwrap_err().contains("given twice"));
    }

    #[test]
    fn a_realm_that_nobody_is_of_is_refused_and_a_servers_is_not() {
        let told = Config::parse("[realms.staf]\ncase = 'fold'\n[ocserv]\nrealm = 'staff'").unwrap_err();
        assert!(told.contains("staf") && told.contains("staff"), "{told}");
        let config = Config::parse("[realms.staff]\ncase = 'fold'\n[ocserv]\nrealm = 'staff'").unwrap();
        let name = ServerName::new("default");
        assert_eq!(
            config.realms().identity(&name, "", "ALICE"),
            config.realms().identity(&name, "", "alice")
        );
    }

    #[test]
    fn an_unknown_key_is_refused_and_the_nearest_named() {
        let told = Config::parse("[kernel]\noutter = ['eth0']").unwrap_err();
        assert!(told.contains("outter") && told.contains("did you mean `outer`"), "{told}");
        let told = Config::parse("[ocserv]\ncontrol-sokket = '/a'").unwrap_err();
        assert!(told.contains("control-sokket") && told.contains("did you mean `control-socket`"), "{told}");
    }

    #[test]
    fn openvpns_ports_are_few_and_none_by_default() {
        assert!(Config::parse("").unwrap().kernel.openvpn_ports.is_empty());
        let config = Config::parse("[kernel]\nopenvpn-ports = [1194, 443, 1, 65535]").unwrap();
        assert_eq!(config.kernel.openvpn_ports, [1194, 443, 1, 65535]);
        for bad in ["[0]", "[1, 2, 3, 4, 5]", "[65536]", "[-1]", "1194", "['udp']"] {
            let told = Config::parse(&format!("[kernel]\nopenvpn-ports = {bad}")).unwrap_err();
            assert!(told.contains("openvpn-ports"), "{told}");
        }
    }

    #[test]
    fn the_web_gateway_is_served_where_it_is_configured_alone() {
        assert!(Config::parse("").unwrap().web.is_none());
        let web = Config::parse("[web]").unwrap().web.unwrap();
        assert_eq!((web.max_sessions, web.realms), (100_000, vec![DEFAULT_REALM.to_owned()]));
        Config::parse("[web]\nrealms = ['staff']\n[realms.staff]\ncase = 'fold'").unwrap();
        for bad in [
            "socket = 'a'",
            "user = ''",
            "max-sessions = 0",
            "max-sessions = 1000001",
            "realms = []",
            "usr = 'x'",
        ] {
            let told = Config::parse(&format!("[web]\n{bad}")).unwrap_err();
            assert!(told.contains("web") || told.contains("did you mean"), "{bad}: {told}");
        }
        let told = Config::parse("[web]\nsocket = '/a'\n[gate]\nsocket = '/a'").unwrap_err();
        assert!(told.contains("the same one"), "{told}");
    }

    #[test]
    fn what_is_not_toml_says_the_line() {
        let told = Config::parse("[kernel]\nouter = [").unwrap_err();
        assert!(told.contains("line"), "{told}");
        assert!(Config::parse("[gate]\nwhen-blind = 'maybe'").unwrap_err().contains("refuse"));
        assert!(Config::parse("[control]\nsocket = 'relative'").unwrap_err().contains("absolute"));
    }

    /// The example names every key with its default: as it is, and with each key's `#` taken away.
    #[test]
    fn the_example_is_what_there_is() {
        let example = include_str!("../docs/enforcer.toml");
        Config::parse(example).unwrap();
        // a section that is not there by default is commented out as well
        let is_key = |line: &str| {
            line.starts_with('#') && line.chars().nth(1).is_some_and(|c| c.is_ascii_lowercase() || c == '[')
        };
        let all: Vec<&str> =
            example.lines().map(|line| if is_key(line) { &line[1..] } else { line }).collect();
        let all = all.join("\n");
        Config::parse(&all).unwrap();
        for key in [
            "pin-path",
            "when-blind",
            "next-disconnect-script",
            "invalidate-on-disconnect",
            "sockets",
            "openvpn-ports",
            "directory",
            "audit-rows",
            "safe-ids",
            "realm",
            "case",
            "max-sessions",
        ] {
            assert!(all.lines().any(|line| line.starts_with(&format!("{key} ="))), "{key} is missing");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,200}") {
            let _ = Config::parse(&text);
        }
    }
}
