//! `[gateway]`: the web gateway's own part. The daemon reads it for its errors alone.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use hyper::header::HeaderName;
use serde::Deserialize;

use super::is_name;
use crate::session::DEFAULT_REALM;
use crate::web::proxy::settings::time;
use crate::web::proxy::{Limits, Network, Times};
use crate::web::seal::Group;

/// The gateway: where it listens, who may log in, which applications are behind it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Gateway {
    /// Where browsers connect: TLS.
    pub listen: Vec<SocketAddr>,
    /// Plain HTTP where every request is answered with its address under https.
    pub redirect: Vec<SocketAddr>,
    /// Plain HTTP, for what ends TLS before the gateway; its addresses belong into `trusted-proxies`.
    pub plain: Vec<SocketAddr>,
    /// The port in the addresses that browsers are sent to; unset: that of the first of `listen`, or 443.
    pub public_port: Option<u16>,
    pub certificates: Vec<Certificate>,
    /// Peers whose `Forwarded` and `X-Forwarded-*` are believed.
    pub trusted_proxies: Vec<Network>,
    /// The gateway's own folder, mode 0700: its master keys and what sealing has learned.
    pub state: PathBuf,
    /// Whose names its users' names are.
    pub realm: String,
    /// A session ends when it was not used for so long, and in any case after the other one.
    #[serde(deserialize_with = "time::deserialize")]
    pub idle_timeout: Duration,
    #[serde(deserialize_with = "time::deserialize")]
    pub absolute_timeout: Duration,
    /// For how long what is known of sessions may be used when the daemon is gone. A revocation is not seen meanwhile.
    /// Unset: not at all.
    #[serde(deserialize_with = "some_time")]
    pub grace: Option<Duration>,
    /// Where a session is ended, on every host. Two are always there: [`LOGOUT_PATHS`].
    pub logout_paths: Vec<String>,
    /// What a logout asks browsers to forget beside the cookies of the host itself.
    pub logout_clears: LogoutClears,
    /// The host on which people log in; unset: the first origin's.
    pub login_host: Option<String>,
    pub users_file: Option<PathBuf>,
    pub trusted_header: Option<TrustedHeader>,
    pub oidc: Option<Oidc>,
    /// Header fields that no client may send, `x-remote-user` or `x-remote-*`, in place of a list of the usual ones by which
    /// applications are told who somebody is. Those of `user-header` and `trusted-header` are always among them.
    pub never_from_clients: Option<Vec<String>>,
    /// The header in which applications are told the user's name. From clients it is never taken.
    pub user_header: Option<String>,
    /// Threads that serve; unset: one for each processor.
    pub threads: Option<usize>,
    pub origins: Vec<Origin>,
    pub limits: Limits,
    pub times: Times,
}

/// Logout paths of old portals that are always there.
pub const LOGOUT_PATHS: [&str; 2] = ["/AGLogout", "/nesp/app/plogout"];

/// What is below it is the gateway's on every host.
pub const RESERVED: &str = "/.enforcer";

impl Default for Gateway {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            redirect: Vec::new(),
            plain: Vec::new(),
            public_port: None,
            certificates: Vec::new(),
            trusted_proxies: Vec::new(),
            state: PathBuf::from("/var/lib/enforcer-gateway"),
            realm: DEFAULT_REALM.into(),
            idle_timeout: Duration::from_secs(30 * 60),
            absolute_timeout: Duration::from_secs(12 * 3_600),
            grace: None,
            logout_paths: Vec::new(),
            logout_clears: LogoutClears::default(),
            login_host: None,
            users_file: None,
            trusted_header: None,
            oidc: None,
            never_from_clients: None,
            user_header: None,
            threads: None,
            origins: Vec::new(),
            limits: Limits::default(),
            times: Times::default(),
        }
    }
}

/// A certificate with its key, both PEM.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Certificate {
    /// The certificate, and then those that lead to a root.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// A server before the gateway says who the user is.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TrustedHeader {
    pub name: String,
    /// Who is believed; from everybody else the header is taken away.
    pub peers: Vec<Network>,
}

/// An identity provider says who the user is (OpenID Connect).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Oidc {
    /// The provider's name for itself, exactly as it stands in its tokens.
    pub issuer: String,
    /// What the provider calls this gateway.
    pub client_id: String,
    /// A file of one line that the gateway's user can read: root's with mode 0640 and its group, or its own with 0600.
    pub client_secret_file: PathBuf,
    /// The claim that has the user's name; unset: `preferred_username`, or a verified `email`.
    #[serde(default)]
    pub user_claim: Option<String>,
    /// What is asked for; unset: `openid`, `profile`, `email`.
    #[serde(default)]
    pub scopes: Option<Vec<String>>,
    /// PEM of the roots that the provider's certificate may lead to; unset: the system's.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// A login that somebody has at the provider already is good enough, also for the next person at that browser.
    #[serde(default)]
    pub single_sign_on: bool,
}

/// An application behind the gateway.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Origin {
    /// The host that browsers ask, without a port, or `*.example.com`.
    pub host: String,
    /// The paths that it serves: `/app` is `/app` and `/app/x`.
    #[serde(default = "slash")]
    pub path: String,
    /// Where it is: `http://127.0.0.1:8000`.
    pub to: String,
    /// What logs call it; unset: host and path.
    #[serde(default)]
    pub name: Option<String>,
    /// Origins of one group share their cookies; unset: the host.
    #[serde(default)]
    pub group: Option<String>,
    /// Cookies that scripts have to read: they are not sealed, and survive the session.
    #[serde(default)]
    pub readable: Vec<String>,
    #[serde(default)]
    pub oversized: Oversized,
    #[serde(default)]
    pub script_set: ScriptSet,
    /// PEM of the roots that its certificate must lead to; for `https`.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// The name that its certificate must be for, where it is not the host of `to`.
    #[serde(default)]
    pub server_name: Option<String>,
    /// The `Host` that it is told, where it is not what the browser asked for.
    #[serde(default)]
    pub host_header: Option<String>,
    /// The longest body of a request, in bytes.
    #[serde(default)]
    pub max_body: Option<u64>,
    /// What a connection may be upgraded to; unset: `websocket`.
    #[serde(default)]
    pub upgrades: Option<Vec<String>>,
}

fn slash() -> String {
    "/".into()
}

fn some_time<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    time::deserialize(from).map(Some)
}

/// `Clear-Site-Data` at a logout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogoutClears {
    /// The host's cache, and what its scripts have kept.
    #[default]
    Host,
    /// Also all cookies of all hosts below the same registrable domain, behind the gateway or not.
    Site,
}

/// A cookie that is too long for the browser once it is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Oversized {
    /// The answer is not sent.
    #[default]
    Refuse,
    /// The answer goes on without it.
    Strip,
    /// It passes unsealed.
    Pass,
}

/// A cookie that no answer has set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScriptSet {
    #[default]
    Pass,
    Strip,
}

/// Headers that a user's name must not come in, nor be handed on in: they mean something else.
const TAKEN: [&str; 9] = [
    "host",
    "cookie",
    "authorization",
    "connection",
    "content-length",
    "transfer-encoding",
    "upgrade",
    "forwarded",
    "x-forwarded-for",
];

impl Gateway {
    /// The host on which people log in, in lower case.
    pub fn login_host(&self) -> String {
        let first = || self.origins.first().map(|origin| origin.host.clone()).unwrap_or_default();
        self.login_host.clone().unwrap_or_else(first).to_ascii_lowercase()
    }

    pub fn public_port(&self) -> u16 {
        self.public_port.or_else(|| self.listen.first().map(SocketAddr::port)).unwrap_or(443)
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        let wrong = |text: String| Err(format!("[gateway] {text}"));
        if self.listen.is_empty() && self.plain.is_empty() {
            return wrong("listen = []: name at least one address, such as \"0.0.0.0:443\"".into());
        }
        if self.listen.is_empty() != self.certificates.is_empty() {
            return wrong(
                "listen and certificates belong together: TLS is spoken with a certificate and its key"
                    .into(),
            );
        }
        if !is_name(&self.realm) {
            return wrong(format!("realm = {:?}: a name is 1 to 64 characters without spaces", self.realm));
        }
        let seconds = crate::control::web_words::SECONDS;
        for (key, time) in [("idle-timeout", self.idle_timeout), ("absolute-timeout", self.absolute_timeout)]
        {
            if !seconds.contains(&time.as_secs()) {
                return wrong(format!("{key}: it is {} s to {} s", seconds.start(), seconds.end()));
            }
        }
        if self.users_file.is_none() && self.trusted_header.is_none() && self.oidc.is_none() {
            return wrong(
                "nobody could log in: name a users-file (made by `enforcer passwd`), oidc or a trusted-header"
                    .into(),
            );
        }
        if self.times.end >= crate::web::link::END_WITHIN {
            let most = crate::web::link::END_WITHIN.as_secs();
            return wrong(format!("times.end: the daemon waits for {most} s, it has to be less"));
        }
        self.validate_paths()?;
        self.validate_headers()?;
        self.validate_origins()
    }

    fn validate_paths(&self) -> Result<(), String> {
        let files = [("state", Some(&self.state)), ("users-file", self.users_file.as_ref())];
        for (key, path) in files {
            if let Some(path) = path.filter(|path| !path.is_absolute()) {
                return Err(format!("[gateway] {key} = {path:?}: it is an absolute path"));
            }
        }
        for path in &self.logout_paths {
            let plain = |byte: u8| byte.is_ascii_graphic() && !b"?#\\\"".contains(&byte);
            if !path.starts_with('/') || path.len() < 2 || !path.bytes().all(plain) || is_reserved(path) {
                return Err(format!(
                    "[gateway] logout-paths: {path:?}: it is a path such as \"/logout\", without a query, and none below \
                     {RESERVED}"
                ));
            }
        }
        Ok(())
    }

    fn validate_headers(&self) -> Result<(), String> {
        let check = |key: &str, name: &str| match HeaderName::from_bytes(name.as_bytes()) {
            Ok(name) if !TAKEN.contains(&name.as_str()) => Ok(()),
            _ => Err(format!("[gateway] {key} = {name:?}: it is no header that could hold a user's name")),
        };
        if let Some(header) = &self.trusted_header {
            check("trusted-header.name", &header.name)?;
            if header.peers.is_empty() {
                return Err(
                    "[gateway] trusted-header.peers = []: name the servers that are believed, such as \
                            \"10.0.0.7\""
                        .into(),
                );
            }
            if header.peers.iter().any(Network::is_everybody) {
                return Err(
                    "[gateway] trusted-header.peers: a network of /0 is everybody, and everybody could say to be anybody: \
                     name the servers that are believed, such as \"10.0.0.7\""
                        .into(),
                );
            }
        }
        self.user_header.as_ref().map_or(Ok(()), |name| check("user-header", name))
    }

    fn validate_origins(&self) -> Result<(), String> {
        if self.origins.is_empty() {
            return Err(
                "[gateway] there is no application behind it: add [[gateway.origins]] with host and to"
                    .into(),
            );
        }
        let mut names = BTreeSet::new();
        for origin in &self.origins {
            let wrong = |text: String| Err(format!("[[gateway.origins]] {}: {text}", origin.name()));
            if !names.insert(origin.name()) {
                return wrong("there are two of that name (without a name: of that host and path)".into());
            }
            if let Err(text) = Group::new(&origin.group()) {
                return wrong(format!("group: {text}"));
            }
            if is_reserved(&origin.path) {
                return wrong(format!("path: what is below {RESERVED} is the gateway's own"));
            }
            if origin.readable.iter().any(|name| name.starts_with(OWN_COOKIES)) {
                return wrong(format!("readable: names that begin with {OWN_COOKIES} are the gateway's own"));
            }
        }
        let login = self.login_host();
        if login.is_empty() || login.contains(['*', '/', ':', ' ']) {
            return Err(format!(
                "[gateway] login-host = {login:?}: name one host, without a port (without the key it is the first origin's)"
            ));
        }
        Ok(())
    }
}

/// What the names of the gateway's cookies begin with.
pub const OWN_COOKIES: &str = "__Host-enforcer";

fn is_reserved(path: &str) -> bool {
    path.strip_prefix(RESERVED).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Origin {
    pub fn name(&self) -> String {
        self.name.clone().unwrap_or_else(|| format!("{}{}", self.host, self.path))
    }

    /// In lower case where it is the host.
    pub fn group(&self) -> String {
        self.group.clone().unwrap_or_else(|| self.host.to_ascii_lowercase())
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    const LEAST: &str = r#"
        [web]
        [gateway]
        listen = ["192.0.2.1:443"]
        certificates = [{ certificate = "/c.pem", key = "/k.pem" }]
        users-file = "/etc/enforcer/web-users"
        [[gateway.origins]]
        host = "App.example.com"
        to = "http://127.0.0.1:8000"
    "#;

    fn with(head: &str, tail: &str) -> Result<Config, String> {
        Config::parse(
            &LEAST.replace("[gateway]\n", &format!("[gateway]\n{head}\n")).replace(
                "to = \"http://127.0.0.1:8000\"",
                &format!("to = \"http://127.0.0.1:8000\"\n{tail}"),
            ),
        )
    }

    #[test]
    fn the_least_and_what_it_becomes() {
        let gateway = with("", "").unwrap().gateway.unwrap();
        assert_eq!((gateway.login_host().as_str(), gateway.public_port()), ("app.example.com", 443));
        assert_eq!(
            (gateway.origins[0].group(), gateway.origins[0].name()),
            ("app.example.com".into(), "App.example.com/".into())
        );
        assert_eq!(gateway.idle_timeout.as_secs(), 1_800);
        assert!(gateway.grace.is_none());
    }

    #[test]
    fn everything_of_the_contract_is_read() {
        let config = with(
            r#"redirect = ["192.0.2.1:80"]
            state = "/var/lib/enforcer-gateway"
            realm = "default"
            idle-timeout = "30min"
            absolute-timeout = "12h"
            grace = "5s"
            logout-paths = ["/AGLogout", "/bye"]
            trusted-header = { name = "X-Remote-User", peers = ["10.0.0.0/8"] }
            user-header = "X-Forwarded-User"
            login-host = "login.example.com""#,
            r#"path = "/"
            group = "app"
            readable = ["csrftoken"]
            oversized = "strip"
            script-set = "strip""#,
        );
        let gateway = config.unwrap().gateway.unwrap();
        assert_eq!(gateway.grace.unwrap().as_secs(), 5);
        assert_eq!(gateway.login_host(), "login.example.com");
        assert_eq!(gateway.origins[0].group(), "app");
    }

    #[test]
    fn what_is_wrong_is_told_with_the_cure() {
        for (head, tail, said) in [
            ("idle-timeout = '1s'", "", "idle-timeout"),
            ("idle-timeout = 'soon'", "", "duration"),
            ("logout-paths = ['logout']", "", "logout-paths"),
            ("logout-paths = ['/']", "", "logout-paths"),
            ("logout-paths = ['/.enforcer/login']", "", "logout-paths"),
            ("trusted-header = { name = 'Cookie', peers = ['10.0.0.1'] }", "", "trusted-header.name"),
            ("trusted-header = { name = 'X-User', peers = [] }", "", "trusted-header.peers"),
            ("trusted-header = { name = 'X-User', peers = ['10.0.0.1', '0.0.0.0/0'] }", "", "everybody"),
            ("trusted-header = { name = 'X-User', peers = ['::/0'] }", "", "everybody"),
            ("user-header = 'a b'", "", "user-header"),
            ("login-host = 'login.example.com:443'", "", "login-host"),
            ("state = 'here'", "", "absolute"),
            ("realm = ''", "", "realm"),
            ("lissten = []", "", "did you mean `listen`"),
            ("", "group = 'A B'", "origin group"),
            ("", "path = '/.enforcer/x'", "gateway's own"),
            ("", "readable = ['__Host-enforcer']", "gateway's own"),
            (
                "",
                "[[gateway.origins]]\nhost = 'App.example.com'\nto = 'http://127.0.0.1:1'",
                "two of that name",
            ),
            ("times = { end = '3s' }", "", "times.end"),
            ("realm = 'staff'", "", "add it to [web] realms"),
        ] {
            let told = with(head, tail).unwrap_err();
            assert!(told.contains(said), "{head} {tail}: {told}");
        }
        for (gone, said) in [
            ("users-file = \"/etc/enforcer/web-users\"", "nobody could log in"),
            ("listen = [\"192.0.2.1:443\"]", "listen = []"),
            ("certificates = [{ certificate = \"/c.pem\", key = \"/k.pem\" }]", "belong together"),
            ("[web]", "[web]"),
        ] {
            let told = Config::parse(&LEAST.replace(gone, "")).unwrap_err();
            assert!(told.contains(said), "{gone}: {told}");
        }
    }
}
