//! `[ocserv]`: the ocserv servers of this host.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Deserialize;

use super::is_name;
use crate::session::{DEFAULT_REALM, ServerName};

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

    pub(super) fn validate(&self) -> Result<(), String> {
        let mut names = BTreeSet::new();
        let mut sockets = BTreeSet::new();
        for server in self.iter() {
            server.validate()?;
            let name = &server.name;
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
        }
        if names.is_empty() {
            return Err(
                "ocserv = []: at least one server is needed (leave the key out for the default one)".into()
            );
        }
        Ok(())
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

    /// The realms that its users are of.
    pub(super) fn realms(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.realm.as_str()).chain(self.vhost_realms.values().map(String::as_str))
    }

    fn validate(&self) -> Result<(), String> {
        if self.invalidate_on_disconnect && !self.feed {
            return Err(
                "[ocserv] invalidate-on-disconnect = true needs the feed, which tells who disconnected: \
                        leave feed = false out"
                    .into(),
            );
        }
        let name = &self.name;
        if !is_name(name) {
            return Err(format!("[[ocserv]] name = {name:?}: a name is 1 to 64 characters without spaces"));
        }
        if !self.control_socket.is_absolute() {
            return Err(format!(
                "[ocserv] control-socket = {:?}: it is an absolute path",
                self.control_socket
            ));
        }
        for script in [&self.next_script, &self.next_disconnect_script].into_iter().flatten() {
            // the design's own example writes "" for none
            if !script.as_os_str().is_empty() && !script.is_absolute() {
                return Err(format!(
                    "[ocserv]: the script {script:?} is to be an absolute path, or \"\" for none"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[test]
    fn one_server_or_many() {
        let one = Config::parse("[ocserv]\ncontrol-socket = '/a'").unwrap();
        assert_eq!(one.ocserv.iter().next().unwrap().name, "default");
        let two = "[[ocserv]]\nname='a'\ncontrol-socket='/a'\n[[ocserv]]\nname='b'\ncontrol-socket='/b'";
        assert_eq!(Config::parse(two).unwrap().ocserv.iter().count(), 2);
        let same = two.replace("name='b'", "name='a'");
        assert!(Config::parse(&same).unwrap_err().contains("given twice"));
    }
}
