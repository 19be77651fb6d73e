//! What the configuration says, in the shape in which each request asks for it. Made anew at a reload.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};

use crate::config::gateway::{LOGOUT_PATHS, LogoutClears, Oversized, RESERVED, ScriptSet};
use crate::config::{self, Config};
use crate::session::Realms;
use crate::web::oidc;
use crate::web::proxy::{self, Certificate, Network, OriginSettings};
use crate::web::seal::Group;
use crate::web::sealing::{self, Policy};

use super::cookies;

pub(super) struct Rules {
    pub(super) realm: String,
    pub(super) idle: Duration,
    pub(super) lasts: Duration,
    /// All origin groups.
    pub(super) groups: Vec<Group>,
    /// The host on which people log in.
    pub(super) login_host: String,
    pub(super) clears: LogoutClears,
    realms: Realms,
    port: u16,
    hosts: Hosts,
    logout_paths: BTreeSet<String>,
    /// By the origin's name, with the hosts that it is for.
    policies: BTreeMap<String, (Hosts, Policy)>,
    user_header: Option<HeaderName>,
    trusted: Option<(HeaderName, Vec<Network>)>,
}

/// What a server before the gateway says of the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Named {
    /// It is none of those that may say.
    Unsaid,
    /// It may say, and has named this one.
    User(String),
    /// It may say, and has named nobody: nothing is served to nobody.
    Nobody,
}

/// The hosts that people can log in to.
#[derive(Debug, Default)]
struct Hosts {
    exact: BTreeSet<String>,
    /// `.example.com`: every name one label longer.
    below: Vec<String>,
}

impl Hosts {
    fn add(&mut self, host: &str) {
        let host = host.to_ascii_lowercase();
        match host.strip_prefix('*') {
            Some(below) => self.below.push(below.to_owned()),
            None => {
                self.exact.insert(host);
            }
        }
    }

    /// The name may be one that anybody has written into an address: what is no host's label there (`evil/x`, `evil#`)
    /// would lead a browser elsewhere.
    fn has(&self, host: &str) -> bool {
        let is_label = |label: &str| {
            !label.is_empty()
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        let is_below = |below: &String| host.strip_suffix(below.as_str()).is_some_and(is_label);
        self.exact.contains(host) || self.below.iter().any(is_below)
    }
}

impl Rules {
    /// # Errors
    /// What the configuration should have refused.
    pub(super) fn new(config: &Config, gateway: &config::Gateway) -> anyhow::Result<Self> {
        let mut hosts = Hosts::default();
        let mut policies = BTreeMap::new();
        let mut groups = BTreeSet::new();
        for origin in &gateway.origins {
            hosts.add(&origin.host);
            let policy = policy(origin).map_err(anyhow::Error::msg)?;
            groups.insert(policy.group.clone());
            let mut below = Hosts::default();
            below.add(&origin.host);
            policies.insert(origin.name(), (below, policy));
        }
        hosts.add(&gateway.login_host());
        let header = |name: &str| HeaderName::from_bytes(name.as_bytes());
        let trusted = gateway.trusted_header.as_ref();
        let trusted =
            trusted.map(|trusted| anyhow::Ok((header(&trusted.name)?, trusted.peers.clone()))).transpose()?;
        let logout_paths = LOGOUT_PATHS.iter().map(|path| (*path).to_owned());
        Ok(Self {
            realm: gateway.realm.clone(),
            idle: gateway.idle_timeout,
            lasts: gateway.absolute_timeout,
            groups: groups.into_iter().collect(),
            login_host: gateway.login_host(),
            clears: gateway.logout_clears,
            realms: config.realms(),
            port: gateway.public_port(),
            hosts,
            logout_paths: logout_paths.chain(gateway.logout_paths.iter().cloned()).collect(),
            policies,
            user_header: gateway.user_header.as_deref().map(header).transpose()?,
            trusted,
        })
    }

    /// The user as the realm's case rule leaves the name.
    pub(super) fn person(&self, user: &str) -> String {
        self.realms.person(&self.realm, user).name
    }

    /// Whether somebody can have a session on that host (in lower case, without a port).
    pub(super) fn has(&self, host: &str) -> bool {
        self.hosts.has(host)
    }

    pub(super) fn is_logout(&self, path: &str) -> bool {
        self.logout_paths.contains(path)
    }

    /// Of an origin, by its name.
    pub(super) fn policy(&self, origin: &str) -> Option<&Policy> {
        self.policies.get(origin).map(|(_, policy)| policy)
    }

    /// Of all origins below a host.
    pub(super) fn policies_of<'a>(&'a self, host: &'a str) -> impl Iterator<Item = &'a Policy> {
        self.policies.values().filter(|(hosts, _)| hosts.has(host)).map(|(_, policy)| policy)
    }

    /// The address of a path on one of the hosts.
    pub(super) fn address(&self, host: &str, path: &str) -> String {
        if self.port == 443 {
            format!("https://{host}{path}")
        } else {
            format!("https://{host}:{}{path}", self.port)
        }
    }

    /// Whom a server before the gateway names.
    ///
    /// `reserved`: what came under names that no client may use; the proxy has taken it out of the request.
    pub(super) fn named(&self, reserved: &HeaderMap, peer: IpAddr) -> Named {
        let Some((header, peers)) = &self.trusted else { return Named::Unsaid };
        if !peers.iter().any(|network| network.contains(peer)) {
            return Named::Unsaid;
        }
        let mut values = reserved.get_all(header).iter();
        match (values.next().and_then(|value| std::str::from_utf8(value.as_bytes()).ok()), values.next()) {
            // two names are none
            (Some(user), None) if !user.trim().is_empty() => Named::User(user.trim().to_owned()),
            _ => Named::Nobody,
        }
    }

    /// Tells an application who the user is, where that is configured.
    pub(super) fn tell_user(&self, headers: &mut HeaderMap, user: &str) {
        if let Some(name) = &self.user_header
            && let Ok(value) = HeaderValue::from_bytes(user.as_bytes())
        {
            headers.insert(name.clone(), value);
        }
    }
}

fn policy(origin: &config::gateway::Origin) -> Result<Policy, String> {
    let mut policy = Policy::new(Group::new(&origin.group())?)
        .with_own(cookies::TOKEN.as_bytes())
        .with_own(cookies::NONCE.as_bytes())
        .with_own(oidc::COOKIE.as_bytes());
    policy.readable = origin.readable.iter().map(|name| name.as_bytes().to_vec()).collect();
    policy.oversized = match origin.oversized {
        Oversized::Refuse => sealing::Oversized::Refuse,
        Oversized::Strip => sealing::Oversized::Strip,
        Oversized::Pass => sealing::Oversized::Pass,
    };
    policy.script_set = match origin.script_set {
        ScriptSet::Pass => sealing::ScriptSet::Pass,
        ScriptSet::Strip => sealing::ScriptSet::Strip,
    };
    Ok(policy)
}

/// What the proxy is told. `table`: where it writes down who has which socket, for the daemon.
pub(super) fn settings(gateway: &config::Gateway, table: &Path) -> proxy::Settings {
    let certificate = |one: &config::gateway::Certificate| Certificate {
        chain: one.certificate.clone(),
        key: one.key.clone(),
    };
    let usual = || proxy::Settings::default().never_from_clients;
    let mut never_from_clients = gateway.never_from_clients.clone().unwrap_or_else(usual);
    let ours = [gateway.user_header.as_ref(), gateway.trusted_header.as_ref().map(|header| &header.name)];
    never_from_clients.extend(ours.into_iter().flatten().map(|name| name.to_ascii_lowercase()));
    proxy::Settings {
        listen: gateway.listen.clone(),
        plain: gateway.plain.clone(),
        redirect: gateway.redirect.clone(),
        public_port: gateway.public_port(),
        certificates: gateway.certificates.iter().map(certificate).collect(),
        trusted_proxies: gateway.trusted_proxies.clone(),
        socket_table: Some(table.to_owned()),
        origins: gateway.origins.iter().map(origin).collect(),
        never_from_clients,
        limits: gateway.limits,
        times: gateway.times,
    }
}

fn origin(origin: &config::gateway::Origin) -> OriginSettings {
    OriginSettings {
        name: origin.name(),
        host: origin.host.clone(),
        path: origin.path.clone(),
        address: origin.to.clone(),
        ca: origin.ca.clone(),
        server_name: origin.server_name.clone(),
        host_header: origin.host_header.clone(),
        max_body: origin.max_body.unwrap_or(10 << 20),
        upgrades: origin.upgrades.clone().unwrap_or_else(|| vec!["websocket".into()]),
    }
}

/// Whether a path is the gateway's own.
pub(super) fn own(path: &str) -> Option<&str> {
    let rest = path.strip_prefix(RESERVED)?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(more: &str) -> Rules {
        let config = Config::parse(&format!(
            r#"
            [web]
            [realms.default]
            case = "fold"
            [gateway]
            plain = ["127.0.0.1:1"]
            users-file = "/u"
            {more}
            [[gateway.origins]]
            host = "App.example.com"
            to = "http://127.0.0.1:2"
            readable = ["csrftoken"]
            [[gateway.origins]]
            host = "*.wild.example.com"
            group = "wild"
            to = "http://127.0.0.1:3"
            oversized = "pass"
            "#
        ))
        .unwrap();
        Rules::new(&config, config.gateway.as_ref().unwrap()).unwrap()
    }

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&str, &str)| {
            (
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            )
        };
        fields.iter().map(field).collect()
    }

    #[test]
    fn hosts_addresses_and_logout_paths() {
        let rules = rules("logout-paths = ['/bye']\nlogin-host = 'login.example.com'\npublic-port = 8443");
        for host in ["app.example.com", "a.wild.example.com", "login.example.com"] {
            assert!(rules.has(host), "{host}");
        }
        for host in ["example.com", "a.b.wild.example.com", "wild.example.com", ".wild.example.com", "evil"] {
            assert!(!rules.has(host), "{host}");
        }
        // R3: what a browser takes for another host, and one that an address without dots names
        let odd = "evil/x evil# evil? evil\\ evil:8443 x@evil 3221225985/x [::1] \u{e9} %41";
        for label in odd.split(' ') {
            assert!(!rules.has(&format!("{label}.wild.example.com")), "{label}");
        }
        assert_eq!(rules.address("app.example.com", "/x"), "https://app.example.com:8443/x");
        assert!(["/AGLogout", "/nesp/app/plogout", "/bye"].iter().all(|path| rules.is_logout(path)));
        assert!(!rules.is_logout("/aglogout") && !rules.is_logout("/AGLogout/x"));
        assert_eq!(rules.person("ALICE"), "alice");
        let policy = rules.policy("App.example.com/").unwrap();
        assert_eq!(policy.group.as_str(), "app.example.com");
        assert!(policy.readable.contains(&b"csrftoken"[..]));
        assert_eq!(
            (own("/.enforcer/login"), own("/.enforcer"), own("/.enforcers")),
            (Some("/login"), Some(""), None)
        );
    }

    /// R3: nobody else's word counts for a name.
    #[test]
    fn r3_a_user_is_named_by_the_named_peers_alone() {
        let rules = rules(
            "trusted-header = { name = 'X-Remote-User', peers = ['10.0.0.0/8'] }\nuser-header = 'X-User'",
        );
        let (front, stranger) = ("10.1.2.3".parse().unwrap(), "192.0.2.1".parse().unwrap());
        let sent = headers(&[("x-remote-user", " alice "), ("x_remote_user", "eve"), ("x-user", "eve")]);
        assert_eq!(rules.named(&sent, front), Named::User("alice".into()));
        assert_eq!(rules.named(&sent, stranger), Named::Unsaid);
        for none in [&[][..], &[("x-remote-user", " ")], &[("x-remote-user", "a"), ("x-remote-user", "b")]] {
            assert_eq!(rules.named(&headers(none), front), Named::Nobody, "{none:?}");
        }
        assert_eq!(self::rules("").named(&sent, front), Named::Unsaid);
        let mut told = HeaderMap::new();
        rules.tell_user(&mut told, "alice");
        assert_eq!(told["x-user"], "alice");
    }

    /// R3: what the gateway tells an application no client can tell it.
    #[test]
    fn r3_the_names_that_are_ours_are_nobody_elses() {
        let config = Config::parse(
            "[web]\n[gateway]\nplain = ['127.0.0.1:1']\nuser-header = 'Our-User'\ntrusted-header = { name = 'Their-User', \
             peers = ['10.0.0.1'] }\n[[gateway.origins]]\nhost = 'a'\nto = 'http://127.0.0.1:2'",
        )
        .unwrap();
        let names = settings(config.gateway.as_ref().unwrap(), Path::new("/t")).never_from_clients;
        for name in ["our-user", "their-user", "x-remote-*"] {
            assert!(names.iter().any(|its| its == name), "{name}: {names:?}");
        }
    }
}
