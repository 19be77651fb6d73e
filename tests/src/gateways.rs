//! Three gateways that tell each other: a real ocserv and the enforcer on each, three members of etcd, one router before
//! them and one LAN behind.
//!
//! ```text
//!                        ┌── wan0 [gateway A] lan0 ──┐
//! clients ── router ─────┼── wan0 [gateway B] lan0 ──┼── LAN host 10.77.0.2
//!                        └── wan0 [gateway C] lan0 ──┘
//!                                  etcd0: a wire that can be cut
//!                                    │
//!                         bridge with etcd1, etcd2, etcd3
//! ```
//!
//! All three have the same users. A's outer address is the lab's own; B and C have 198.51.101.2 and 198.51.102.2. Their
//! clients get addresses of 10.88.0.0/24, 10.88.1.0/24 and 10.88.2.0/24.

mod hammer;
mod ledger;
mod many;
mod plan;
mod settled;

use std::net::Ipv4Addr;
use std::ops::{Index, IndexMut};

use crate::client::{Client, Connect, Cookie, Outcome, Tunnel};
use crate::enforcer::{Answer, Enforcer};
use crate::etcd::Etcd;
use crate::lab::Lab;
use crate::namespace::Namespace;
use crate::ocserv::Server;
use crate::process::{BOUND, eventually};
use crate::receipt;
use crate::scene::Pair;
use crate::web_link::WebLink;
use crate::wire::Wire;

pub use hammer::{Tried, hammered, none_let_in};
pub use ledger::Ledger;
pub use many::{revoke_all, revoke_many};
pub use plan::Plan;
pub use settled::{PREFIX, Shown};

/// Their places.
pub const A: usize = 0;
pub const B: usize = 1;
pub const C: usize = 2;
/// What stands in an openconnect's log once its server has let it in.
pub const LET_IN: &str = "200 CONNECTED";
/// What they call themselves.
pub const NAMES: [&str; 3] = ["gw-a", "gw-b", "gw-c"];

/// One gateway. The order of the members is the order in which they end.
pub struct Gateway {
    pub server: Server,
    pub enforcer: Enforcer,
    /// To etcd.
    pub wire: Wire,
    pub namespace: Namespace,
    pub name: &'static str,
}

impl Gateway {
    /// An order by its command line, as JSON, that waits for the other gateways for as long as the lab waits for anything.
    pub fn order(&self, words: &[&str]) -> Answer {
        self.enforcer.cli(&[words, &["--wait", "25s", "--json"]].concat())
    }

    /// The same without waiting for others longer than the command does by itself.
    pub fn order_at_once(&self, words: &[&str]) -> Answer {
        self.enforcer.cli(&[words, &["--json"]].concat())
    }

    /// What the daemon says of itself, once it does.
    #[track_caller]
    pub fn id(&self) -> String {
        let id = self.enforcer.status()["disk"]["gateway"].as_str().map(str::to_owned);
        id.expect("a daemon that runs knows who it is")
    }

    /// The safe_id of a session here, by its client's VPN address, once the daemon knows it as one that is let in.
    #[track_caller]
    pub fn knows(&self, user: &str, address: Ipv4Addr) -> String {
        eventually(&format!("{} knows {user} at {address}", self.name), BOUND, || {
            let shown = self.enforcer.cli(&["show", "sessions", "--json"]).json;
            let here = receipt::list(&shown, "sessions").iter().find(|session| {
                let addresses = session["addresses"].as_array().map(Vec::as_slice).unwrap_or_default();
                let at = |text: &str| text.split('/').next() == Some(&address.to_string());
                session["user"] == user
                    && session["state"] == "live"
                    && addresses.iter().filter_map(|one| one.as_str()).any(at)
            })?;
            here["safe_id"].as_str().filter(|id| !id.is_empty()).map(str::to_owned)
        })
    }

    /// Whether the daemon shows that session as one that is there.
    pub fn shows(&self, safe_id: &str) -> bool {
        let shown = self.enforcer.cli(&["show", "sessions", "--json"]).json;
        receipt::list(&shown, "sessions")
            .iter()
            .any(|session| session["safe_id"] == safe_id && session["state"] == "live")
    }
}

/// A user's session at one gateway.
pub struct Session {
    pub user: String,
    pub place: usize,
    pub cookie: Cookie,
    pub tunnel: Tunnel,
    pub safe_id: String,
}

/// The gateways, etcd and the lab around them. The order of the members is the order in which they end.
pub struct Gateways {
    all: Vec<Gateway>,
    pub etcd: Etcd,
    pub lab: Lab,
}

impl Index<usize> for Gateways {
    type Output = Gateway;

    fn index(&self, place: usize) -> &Gateway {
        &self.all[place]
    }
}

impl IndexMut<usize> for Gateways {
    fn index_mut(&mut self, place: usize) -> &mut Gateway {
        &mut self.all[place]
    }
}

impl Gateways {
    /// All running, and known to each other.
    #[track_caller]
    pub fn new(name: &str) -> Self {
        Plan::new(name).start()
    }

    /// A web gateway at that gateway's daemon.
    #[track_caller]
    pub fn web(&self, place: usize) -> WebLink {
        WebLink::start(&plan::web_socket(&self.lab, self[place].name))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Gateway> {
        self.all.iter()
    }

    /// A session of `user` at the gateway `place`, of which its daemon knows.
    #[track_caller]
    pub fn session(&self, place: usize, client: &Client, user: &str) -> Session {
        let cookie = client.authenticate(&self[place].server, user);
        self.session_of(place, client, user, cookie)
    }

    /// The same with a cookie that is there already.
    #[track_caller]
    pub fn session_of(&self, place: usize, client: &Client, user: &str, cookie: Cookie) -> Session {
        let tunnel = client.connect(&self[place].server, &cookie, &Connect::default()).up();
        let safe_id = self[place].knows(user, tunnel.v4);
        Session { user: user.to_owned(), place, cookie, tunnel, safe_id }
    }

    /// Tries a session's cookie at its gateway: it must be refused.
    #[track_caller]
    pub fn refused(&self, client: &Client, place: usize, cookie: &Cookie) {
        self.tried(client, place, cookie).refused();
    }

    /// Tries a cookie beside whatever its host has already.
    #[track_caller]
    pub fn tried(&self, client: &Client, place: usize, cookie: &Cookie) -> Outcome {
        let beside = Connect::default().device("tun9").no_routes();
        client.connect(&self[place].server, cookie, &beside)
    }

    /// A fresh login of `user` at each gateway, one after the other, must be let in; each logs out again. R4.
    #[track_caller]
    pub fn lets_in_everywhere(&self, client: &Client, user: &str) {
        for gateway in self.iter() {
            let beside = Connect::default().device("tun9").no_routes();
            let (_, tunnel) = client.session_by(&gateway.server, user, &beside);
            tunnel.log_out();
        }
    }

    /// A fresh login of `user` must be refused at each gateway.
    #[track_caller]
    pub fn refuses_everywhere(&self, client: &Client, user: &str) {
        for place in [A, B, C] {
            let cookie = client.authenticate(&self[place].server, user);
            self.refused(client, place, &cookie);
        }
    }

    /// Packets in both directions between a session and the LAN host.
    pub fn flood(&self, client: &Client, session: &Session, rate: u32) -> Pair {
        Pair::new(&self.lab, client, &session.tunnel, false, rate)
    }

    /// Waits until a session's client has given up.
    #[track_caller]
    pub fn ends(&self, session: &mut Session) {
        let what = format!("{} at {} ends", session.user, self[session.place].name);
        eventually(&what, BOUND, || session.tunnel.ended().then_some(()));
    }
}
