//! The configuration: one TOML file, every key optional, unknown keys refused.

mod cluster;
mod explain;
pub mod gateway;
mod kernel;
mod policy;
mod servers;
mod web;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::session::{self, DEFAULT_REALM, Realms};

pub use cluster::{Cluster, WhenAway};
pub use gateway::Gateway;
pub use kernel::{Capacity, Kernel, Sockets, Tc, Xdp};
pub use policy::{Policy, WhenFull};
pub use servers::{Server, Servers};
pub use web::Web;

use explain::explain;

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
    /// `[gateway]`: the web gateway itself.
    pub gateway: Option<Gateway>,
    /// `[cluster]`: other gateways; without it there are none.
    pub cluster: Option<Cluster>,
    /// `[policy]`: how many sessions a person may have at once.
    pub policy: Policy,
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
        self.kernel.validate()?;
        self.ocserv.validate()?;
        if self.state.audit_rows == 0 || self.state.audit_days == 0 {
            return Err("[state] audit-days and audit-rows are at least 1".into());
        }
        if let Some(web) = &self.web {
            web.validate()?;
        }
        if let Some(cluster) = &self.cluster {
            cluster.validate()?;
        }
        self.validate_gateway()?;
        self.validate_realms()?;
        self.policy.validate(&self.realms(), &self.used_realms(), self.cluster.is_some())?;
        self.validate_paths()
    }

    fn validate_gateway(&self) -> Result<(), String> {
        let Some(gateway) = &self.gateway else { return Ok(()) };
        gateway.validate()?;
        let web = self.web.as_ref().ok_or(
            "[gateway] needs [web], which says by which socket and user it comes to the daemon: add that section, it \
             may be empty",
        )?;
        if !web.realms.contains(&gateway.realm) {
            return Err(format!("[gateway] realm = {:?}: add it to [web] realms", gateway.realm));
        }
        Ok(())
    }

    /// The realms that somebody is of.
    fn used_realms(&self) -> BTreeSet<&str> {
        let mut used: BTreeSet<&str> = BTreeSet::from([DEFAULT_REALM]);
        used.extend(self.web.iter().flat_map(|web| &web.realms).map(String::as_str));
        used.extend(self.ocserv.iter().flat_map(Server::realms));
        used
    }

    fn validate_realms(&self) -> Result<(), String> {
        let used = self.used_realms();
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
        Ok(())
    }

    fn validate_paths(&self) -> Result<(), String> {
        let paths = [
            ("[kernel] pin-path", &self.kernel.pin_path),
            ("[gate] socket", &self.gate.socket),
            ("[state] directory", &self.state.directory),
            ("[control] socket", &self.control.socket),
        ];
        let web = self
            .web
            .as_ref()
            .map(|web| [("[web] socket", &web.socket), ("[web] socket-table", &web.socket_table)]);
        for (key, path) in paths.into_iter().chain(web.into_iter().flatten()) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::ServerName;

    #[test]
    fn every_key_is_optional() {
        let config = Config::parse("").unwrap();
        assert_eq!(config.ocserv.iter().count(), 1);
        assert_eq!(config.control.socket, Path::new("/run/enforcer/control.sock"));
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
            "socket-table",
            "when-full",
            "endpoints",
            "login-wait",
            "when-away",
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
