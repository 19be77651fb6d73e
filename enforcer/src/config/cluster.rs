//! `[cluster]`: the etcd by which gateways tell each other.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use hyper::Uri;
use serde::Deserialize;

use super::is_name;
use crate::cluster::{GatewayId, Known, Prefix, Settings, Tls, User};
use crate::web::proxy::settings::time;

/// How etcd is reached, and as whom; and what a login gets that etcd does not answer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Cluster {
    /// `https://HOST:PORT` of each member; at least one.
    pub endpoints: Vec<String>,
    /// What is before every key.
    pub prefix: String,
    /// PEM of the roots that etcd's certificate may lead to; for `https`. No other root is believed.
    pub ca: Option<PathBuf>,
    /// This gateway's certificate and key (mode 0600), PEM, where etcd asks for one.
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// Whom etcd knows this gateway as, where it has authentication.
    pub user: Option<String>,
    /// A file of one line, mode 0600.
    pub password_file: Option<PathBuf>,
    /// Plain `http` also to other hosts: everybody on the way can revoke, lift and read.
    pub insecure: bool,
    #[serde(deserialize_with = "time::deserialize")]
    pub connect_timeout: Duration,
    /// For each question to etcd.
    #[serde(deserialize_with = "time::deserialize")]
    pub request_timeout: Duration,
    /// How long this gateway is taken for alive after etcd has last heard of it.
    #[serde(deserialize_with = "time::deserialize")]
    pub lease: Duration,
    /// How many records of all gateways are read at most.
    pub max_records: u32,
    /// What the other gateways call this one before people; unset: the host's name.
    pub name: Option<String>,
    /// How long a login waits for etcd.
    #[serde(deserialize_with = "time::deserialize")]
    pub login_wait: Duration,
    /// What it gets then.
    pub when_away: WhenAway,
    /// What is special of a group of users, by ocserv's name of it.
    pub groups: BTreeMap<String, Group>,
}

/// What is not said here is as for everybody.
#[derive(Debug, Clone, Copy, Deserialize, Default)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Group {
    pub when_away: Option<WhenAway>,
}

/// What is done with a login while the other gateways cannot be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum WhenAway {
    /// It is refused.
    #[default]
    Closed,
    /// What is known here decides.
    Open,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            prefix: "/enforcer/v1/".into(),
            ca: None,
            certificate: None,
            key: None,
            user: None,
            password_file: None,
            insecure: false,
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(5),
            lease: Duration::from_secs(15),
            max_records: 1_000_000,
            name: None,
            login_wait: Duration::from_secs(2),
            when_away: WhenAway::Closed,
            groups: BTreeMap::new(),
        }
    }
}

const MOST_ENDPOINTS: usize = 16;
/// etcd's own limit is far above.
const MOST_USER: usize = 256;
const TIMES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(60)];
/// ocserv's own patience with a login is some ten times that.
const LOGIN_WAITS: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(30)];
const MOST_GROUPS: usize = 1_000;
const LEASES: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(3_600)];
/// Some hundred bytes of memory each.
const MOST_RECORDS: u32 = 16_000_000;

impl Cluster {
    /// What the adapter is told. `known`: the etcd of an earlier run.
    ///
    /// # Errors
    /// The prefix is none; [`super::Config::parse`] has refused that.
    pub fn settings(&self, gateway: GatewayId, known: Option<Known>) -> Result<Settings, String> {
        let own = self.certificate.clone().zip(self.key.clone());
        let user = self.user.clone().zip(self.password_file.clone());
        Ok(Settings {
            gateway,
            endpoints: self.endpoints.clone(),
            prefix: Prefix::new(&self.prefix)
                .map_err(|why| format!("[cluster] prefix = {:?}: {why}", self.prefix))?,
            tls: self.ca.clone().map(|ca| Tls { ca, own }),
            user: user.map(|(name, password_file)| User { name, password_file }),
            connect_timeout: self.connect_timeout,
            request_timeout: self.request_timeout,
            lease: self.lease,
            most: self.max_records as usize,
            known,
        })
    }

    /// What a login of that group gets while the other gateways cannot be asked. `group`: ocserv's; empty: none.
    pub fn when_away(&self, group: &str) -> WhenAway {
        self.groups.get(group).and_then(|group| group.when_away).unwrap_or(self.when_away)
    }

    /// What the other gateways call this one: as configured, else the host's name, else its id.
    pub fn display_name(&self, gateway: GatewayId) -> String {
        let host = || nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        let name = self.name.clone().or_else(host).filter(|name| is_name(name));
        name.unwrap_or_else(|| gateway.to_string())
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        let wrong = |text: String| Err(format!("[cluster] {text}"));
        if self.endpoints.is_empty() || self.endpoints.len() > MOST_ENDPOINTS {
            return wrong(format!(
                "endpoints: name 1 to {MOST_ENDPOINTS} members of etcd, such as \"https://etcd-1.example:2379\""
            ));
        }
        for endpoint in &self.endpoints {
            self.validate_endpoint(endpoint)
                .or_else(|why| wrong(format!("endpoints: {endpoint:?}: {why}")))?;
        }
        if let Err(why) = Prefix::new(&self.prefix) {
            return wrong(format!("prefix = {:?}: {why}", self.prefix));
        }
        if self.certificate.is_some() != self.key.is_some() {
            return wrong("certificate and key belong together: one is there without the other".into());
        }
        if self.certificate.is_some() && self.ca.is_none() {
            return wrong("certificate is for https, which needs ca as well".into());
        }
        if self.user.is_some() != self.password_file.is_some() {
            return wrong("user and password-file belong together: one is there without the other".into());
        }
        if self.user.as_ref().is_some_and(|user| user.is_empty() || user.len() > MOST_USER) {
            return wrong(format!("user: it is 1 to {MOST_USER} bytes long"));
        }
        let paths = [
            ("ca", &self.ca),
            ("certificate", &self.certificate),
            ("key", &self.key),
            ("password-file", &self.password_file),
        ];
        for (key, path) in paths {
            if let Some(path) = path.as_ref().filter(|path| !path.is_absolute()) {
                return wrong(format!("{key} = {path:?}: it is an absolute path"));
            }
        }
        let times = [("connect-timeout", self.connect_timeout), ("request-timeout", self.request_timeout)];
        for (key, time) in times {
            if time < TIMES[0] || time > TIMES[1] {
                return wrong(format!("{key}: it is 100ms to 60s"));
            }
        }
        if self.lease < LEASES[0] || self.lease > LEASES[1] || self.lease.subsec_nanos() != 0 {
            return wrong("lease: it is 2s to 1h, in whole seconds".into());
        }
        if self.max_records == 0 || self.max_records > MOST_RECORDS {
            return wrong(format!("max-records = {}: it is 1 to {MOST_RECORDS}", self.max_records));
        }
        if let Some(name) = self.name.as_ref().filter(|name| !is_name(name)) {
            return wrong(format!("name = {name:?}: a name is 1 to 64 characters without spaces"));
        }
        if self.login_wait < LOGIN_WAITS[0] || self.login_wait > LOGIN_WAITS[1] {
            return wrong("login-wait: it is 100ms to 30s".into());
        }
        if self.groups.len() > MOST_GROUPS {
            return wrong(format!("groups: {} of them, at most {MOST_GROUPS} are read", self.groups.len()));
        }
        if self.groups.contains_key("") {
            return wrong(
                "groups: the name of one is empty; who is in no group gets what [cluster] says".into(),
            );
        }
        Ok(())
    }

    fn validate_endpoint(&self, endpoint: &str) -> Result<(), String> {
        let form = "it is https://HOST:PORT";
        let uri: Uri = endpoint.parse().map_err(|_| form.to_owned())?;
        let host = uri.host().unwrap_or_default();
        let bare = uri.path_and_query().is_none_or(|path| path == "/") && !endpoint.ends_with('/');
        let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
        if host.is_empty() || uri.port_u16().is_none() || !bare || authority.contains('@') {
            return Err(form.into());
        }
        match uri.scheme_str() {
            Some("https") if self.ca.is_none() => {
                Err("https needs ca: the file with the root that etcd's certificate leads to".into())
            }
            Some("https") => Ok(()),
            Some("http") if self.insecure || is_loopback(host) => Ok(()),
            Some("http") => {
                Err("plain http to another host: whoever is on the way could revoke and lift. Use https, or \
                                 set insecure = true if nobody can be there"
                    .into())
            }
            _ => Err(form.into()),
        }
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn told(section: &str) -> String {
        Config::parse(&format!("[cluster]\n{section}")).unwrap_err()
    }

    #[test]
    fn there_is_no_cluster_unless_it_is_configured() {
        assert!(Config::parse("").unwrap().cluster.is_none());
        assert!(told("").contains("endpoints"));
    }

    #[test]
    fn every_key_reaches_the_adapter() {
        let text = "[cluster]\nendpoints = ['https://a:2379', 'https://[2001:db8::1]:2379']\nprefix = '/x/'\nca = '/ca'\n\
                    certificate = '/c'\nkey = '/k'\nuser = 'gw'\npassword-file = '/p'\nconnect-timeout = '1s'\n\
                    request-timeout = '500ms'\nlease = '9s'\nmax-records = 7";
        let cluster = Config::parse(text).unwrap().cluster.unwrap();
        let settings = cluster.settings(GatewayId::from_bytes([1; 16]), None).unwrap();
        assert_eq!((settings.endpoints.len(), settings.prefix.as_str(), settings.most), (2, "/x/", 7));
        let tls = settings.tls.unwrap();
        assert_eq!((tls.ca.to_str(), tls.own.unwrap().1.to_str()), (Some("/ca"), Some("/k")));
        let user = settings.user.unwrap();
        assert_eq!((user.name.as_str(), user.password_file.to_str()), ("gw", Some("/p")));
        assert_eq!(settings.connect_timeout.as_millis(), 1_000);
        assert_eq!(settings.request_timeout.as_millis(), 500);
        assert_eq!(settings.lease.as_secs(), 9);
    }

    #[test]
    fn a_login_that_etcd_does_not_answer_is_refused_unless_its_group_is_let_in() {
        let read = |text: &str| {
            let text = format!("[cluster]\nendpoints = ['http://127.0.0.1:1']\n{text}");
            Config::parse(&text).unwrap().cluster.unwrap()
        };
        let closed = read("");
        assert_eq!((closed.when_away("guests"), closed.login_wait.as_millis()), (WhenAway::Closed, 2_000));
        let some =
            read("login-wait = '300ms'\n[cluster.groups.guests]\nwhen-away = 'open'\n[cluster.groups.staff]");
        assert_eq!(some.login_wait.as_millis(), 300);
        let away =
            |cluster: &Cluster| ["guests", "staff", "", "Guests"].map(|group| cluster.when_away(group));
        assert_eq!(away(&some), [WhenAway::Open, WhenAway::Closed, WhenAway::Closed, WhenAway::Closed]);
        let others = read("when-away = 'open'\n[cluster.groups.guests]\nwhen-away = 'closed'");
        assert_eq!(away(&others), [WhenAway::Closed, WhenAway::Open, WhenAway::Open, WhenAway::Open]);
    }

    #[test]
    fn a_gateway_has_a_name_before_people() {
        let id = GatewayId::from_bytes([7; 16]);
        let named = Cluster { name: Some("vpn-1".into()), ..Cluster::default() };
        assert_eq!(named.display_name(id), "vpn-1");
        // the host's, whatever that is
        assert!(is_name(&Cluster::default().display_name(id)));
    }

    #[test]
    fn plain_http_is_for_this_host_alone_unless_it_is_said() {
        for own in
            ["http://127.0.0.1:2379", "http://localhost:2379", "http://[::1]:2379", "http://127.9.9.9:1"]
        {
            Config::parse(&format!("[cluster]\nendpoints = ['{own}']")).unwrap();
        }
        for other in ["http://10.0.0.1:2379", "http://etcd:2379", "http://localhost.example:2379"] {
            assert!(told(&format!("endpoints = ['{other}']")).contains("insecure"), "{other}");
            Config::parse(&format!("[cluster]\ninsecure = true\nendpoints = ['{other}']")).unwrap();
        }
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_name() {
        for (bad, says) in [
            ("endpoints = ['https://a:1']", "ca"),
            ("ca = '/ca'\nendpoints = ['a:2379']", "https://HOST:PORT"),
            ("ca = '/ca'\nendpoints = ['https://a']", "https://HOST:PORT"),
            ("ca = '/ca'\nendpoints = ['https://a:1/']", "https://HOST:PORT"),
            ("ca = '/ca'\nendpoints = ['https://a:1/v3']", "https://HOST:PORT"),
            ("ca = '/ca'\nendpoints = ['https://u:p@a:1']", "https://HOST:PORT"),
            ("ca = '/ca'\nendpoints = ['unix:///run/etcd']", "https://HOST:PORT"),
            ("endpoints = ['http://127.0.0.1:1']\nprefix = 'x'", "prefix"),
            ("endpoints = ['http://127.0.0.1:1']\nca = '/ca'\nkey = '/k'", "belong together"),
            ("endpoints = ['http://127.0.0.1:1']\nkey = '/k'\ncertificate = '/c'", "needs ca"),
            ("endpoints = ['http://127.0.0.1:1']\nuser = 'a'", "password-file"),
            ("endpoints = ['http://127.0.0.1:1']\nuser = ''\npassword-file = '/p'", "user"),
            ("endpoints = ['http://127.0.0.1:1']\nca = 'ca'", "absolute"),
            ("endpoints = ['http://127.0.0.1:1']\nuser = 'a'\npassword-file = 'p'", "absolute"),
            ("endpoints = ['http://127.0.0.1:1']\nlease = '1s'", "lease"),
            ("endpoints = ['http://127.0.0.1:1']\nlease = '2500ms'", "whole seconds"),
            ("endpoints = ['http://127.0.0.1:1']\nrequest-timeout = '99ms'", "request-timeout"),
            ("endpoints = ['http://127.0.0.1:1']\nconnect-timeout = '61s'", "connect-timeout"),
            ("endpoints = ['http://127.0.0.1:1']\nmax-records = 0", "max-records"),
            ("endpoints = ['http://127.0.0.1:1']\nname = ''", "name"),
            ("endpoints = ['http://127.0.0.1:1']\nname = 'vpn 1'", "without spaces"),
            ("endpoints = ['http://127.0.0.1:1']\nlogin-wait = '99ms'", "login-wait: it is 100ms to 30s"),
            ("endpoints = ['http://127.0.0.1:1']\nlogin-wait = '31s'", "login-wait: it is 100ms to 30s"),
            ("endpoints = ['http://127.0.0.1:1']\nwhen-away = 'ajar'", "closed"),
            ("endpoints = ['http://127.0.0.1:1']\nwhen-awy = 'open'", "did you mean `when-away`"),
            ("endpoints = ['http://127.0.0.1:1']\n[cluster.groups.'']", "is empty"),
            (
                "endpoints = ['http://127.0.0.1:1']\n[cluster.groups.a]\nwhen-awy = 'open'",
                "did you mean `when-away`",
            ),
            ("endpoints = ['http://127.0.0.1:1']\nmax-record = 5", "did you mean `max-records`"),
        ] {
            assert!(told(bad).contains(says), "{bad}: {}", told(bad));
        }
    }
}
