//! How the gateways are to be; and building them.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use super::{A, B, C, Gateway, Gateways, NAMES};
use crate::enforcer::{Config, Enforcer, quoted};
use crate::era::Era;
use crate::etcd::{Etcd, Wanted};
use crate::lab::{LAN, LAN_V4, LAN_V6, Lab, WAN};
use crate::namespace::Namespace;
use crate::ocserv::Ocserv;

type Change = Box<dyn Fn(Ocserv) -> Ocserv>;

/// How they are to be. [`Plan::start`] builds them.
pub struct Plan {
    name: String,
    settings: Vec<(String, String, String)>,
    ocserv: Change,
    /// A gateway, and by how much its clock is wrong.
    skew: Option<(usize, String)>,
    guarded: bool,
    clustered: bool,
    web: bool,
}

impl Plan {
    /// `name` is the test's, as [`Lab::new`] has it.
    pub fn new(name: &str) -> Self {
        let plan = Self {
            name: name.to_owned(),
            settings: Vec::new(),
            ocserv: Box::new(|ocserv| ocserv),
            skew: None,
            guarded: true,
            clustered: true,
            web: false,
        };
        // one who is cut off notices it soon; a login waits longer than a busy machine takes
        plan.set("cluster", "insecure", "true")
            .set("cluster", "connect-timeout", "\"1s\"")
            .set("cluster", "request-timeout", "\"2s\"")
            .set("cluster", "lease", "\"5s\"")
            .set("cluster", "login-wait", "\"15s\"")
    }

    /// A key of every gateway's configuration; `value` as TOML has it.
    #[must_use]
    pub fn set(mut self, section: &str, key: &str, value: &str) -> Self {
        self.settings.retain(|(present, name, _)| (present.as_str(), name.as_str()) != (section, key));
        self.settings.push((section.to_owned(), key.to_owned(), value.to_owned()));
        self
    }

    /// So many sessions of a person at once.
    #[must_use]
    pub fn at_most(self, sessions: u32) -> Self {
        self.set("policy", "max-sessions", &sessions.to_string())
    }

    /// How every ocserv differs from the lab's usual one.
    #[must_use]
    pub fn ocserv(mut self, change: impl Fn(Ocserv) -> Ocserv + 'static) -> Self {
        self.ocserv = Box::new(change);
        self
    }

    /// One gateway's clock is wrong, in ocserv, the gate and the daemon: `by` as faketime(1) has it, such as `+1d`.
    #[must_use]
    pub fn skew(mut self, place: usize, by: &str) -> Self {
        self.skew = Some((place, by.to_owned()));
        self
    }

    /// Stock ocserv, without the gate; the daemons do not run.
    #[must_use]
    pub fn unguarded(mut self) -> Self {
        self.guarded = false;
        self
    }

    /// Each gateway for itself: there is no `[cluster]` in its configuration.
    #[must_use]
    pub fn alone(mut self) -> Self {
        self.clustered = false;
        self
    }

    /// Each daemon serves a web gateway, at [`Gateways::web`].
    #[must_use]
    pub fn web(mut self) -> Self {
        self.web = true;
        self
    }

    /// Builds all of it; all run, and know each other.
    #[track_caller]
    pub fn start(self) -> Gateways {
        let lab = Lab::new(&self.name);
        let etcd = Etcd::start(&lab, 3, Wanted::default());
        let all = [A, B, C].map(|place| self.gateway(&lab, &etcd, place)).into();
        let mut new = Gateways { all, etcd, lab };
        if self.guarded {
            for place in [A, B, C] {
                new[place].enforcer.launch();
            }
            for place in [A, B, C] {
                new[place].enforcer.answers();
            }
            if self.clustered {
                new.settled();
            }
        }
        new
    }

    fn gateway(&self, lab: &Lab, etcd: &Etcd, place: usize) -> Gateway {
        let number = u8::try_from(place).expect("few gateways");
        let namespace = if place == A { lab.gateway.clone() } else { another(lab, number) };
        let wire = etcd.wire(&namespace, number + 1);
        let mut ocserv = (self.ocserv)(Ocserv::new(lab, Era::Bookworm, number))
            .namespace(&namespace)
            .port(443)
            .set("device", "vpns")
            .address(Ipv4Addr::new(198, 51, 100 + number, 2));
        let endpoints: Vec<String> = etcd.endpoints().iter().map(|endpoint| quoted(endpoint)).collect();
        let mut config = Config::new(&[&ocserv]).name(NAMES[place]);
        if self.clustered {
            config = config.set("cluster", "endpoints", &format!("[{}]", endpoints.join(", "))).set(
                "cluster",
                "name",
                &quoted(NAMES[place]),
            );
        }
        if self.web {
            let socket = web_socket(lab, NAMES[place]);
            let table = socket.with_extension("d").join("sockets");
            config = config
                .set("web", "socket", &quoted(&socket.display().to_string()))
                .set("web", "user", "\"nobody\"")
                .set("web", "socket-table", &quoted(&table.display().to_string()));
        }
        for (section, key, value) in &self.settings {
            if section == "cluster" && !self.clustered {
                continue;
            }
            config = config.set(section, key, value);
        }
        let mut enforcer = Enforcer::prepare_in(lab, &namespace, &config);
        if let Some((_, by)) = self.skew.as_ref().filter(|(skewed, _)| *skewed == place) {
            for (key, value) in wrong_clock(by) {
                ocserv = ocserv.env(key, &value);
                enforcer.env(key, &value);
            }
        }
        let server = if self.guarded { enforcer.guard(ocserv).start() } else { ocserv.start() };
        Gateway { server, enforcer, wire, namespace, name: NAMES[place] }
    }
}

/// Where a gateway's daemon serves its web gateway.
pub(super) fn web_socket(lab: &Lab, name: &str) -> PathBuf {
    lab.work().join(format!("web-{name}"))
}

/// A further gateway's namespace: 198.51.(100 + `number`).2 before the router, 10.77.(`number`).1 before the LAN host.
fn another(lab: &Lab, number: u8) -> Namespace {
    let gateway = lab.namespace(&format!("gw{number}"));
    gateway.set("ipv4/ip_forward", "1");
    gateway.set("ipv6/conf/all/forwarding", "1");
    let net = 100 + number;
    gateway.ip(&format!(
        "link add {WAN} type veth peer name uplink{number} netns {router}\n\
         link add {LAN} type veth peer name eth{number} netns {lan}\n\
         addr add 198.51.{net}.2/24 dev {WAN}\naddr add 2001:db8:51:{number}::2/64 dev {WAN} nodad\n\
         addr add 10.77.{number}.1/24 dev {LAN}\naddr add fd77:{number}::1/64 dev {LAN} nodad\n\
         link set {WAN} up\nlink set {LAN} up\n",
        router = lab.router.name(),
        lan = lab.lan.name()
    ));
    lab.router.ip(&format!(
        "addr add 198.51.{net}.1/24 dev uplink{number}\naddr add 2001:db8:51:{number}::1/64 dev uplink{number} nodad\n\
         link set uplink{number} up\n"
    ));
    lab.lan.ip(&format!(
        "addr add 10.77.{number}.2/24 dev eth{number}\naddr add fd77:{number}::2/64 dev eth{number} nodad\n\
         link set eth{number} up\n\
         route add 10.88.{number}.0/24 via 10.77.{number}.1 src {LAN_V4}\n\
         route add fd88:{number}::/64 via fd77:{number}::1 src {LAN_V6}\n"
    ));
    gateway.ip(&format!(
        "route add default via 198.51.{net}.1\nroute add default via 2001:db8:51:{number}::1\n\
         route add {LAN_V4}/32 via 10.77.{number}.2\nroute add {LAN_V6}/128 via fd77:{number}::2\n"
    ));
    gateway
}

/// The variables under which a program's wall clock is wrong by so much, and its other clocks are not.
fn wrong_clock(by: &str) -> [(&'static str, String); 4] {
    let folders = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let library = folders
        .map(|folder| folder.path().join("faketime/libfaketime.so.1"))
        .find(|library: &PathBuf| library.exists())
        .expect("Debian's libfaketime: cargo xtask setup");
    [
        ("LD_PRELOAD", library.display().to_string()),
        ("FAKETIME", by.to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        // files keep the times that they have
        ("NO_FAKE_STAT", "1".to_owned()),
    ]
}
