//! Web sessions: made, ended and remembered by the rules.

mod bounds;
mod ending;
mod gateways;
mod keeping;

use std::time::Duration;

use super::harness::*;
use crate::registry::*;
use crate::session::*;

const IDLE: u64 = 600;
const LASTS: u64 = 8 * 3_600;

fn key(byte: u8) -> WebKey {
    WebKey::from_bytes([byte; 16])
}

fn digest(byte: u8) -> WebDigest {
    WebDigest::from_bytes([byte; 32])
}

fn token(byte: u8) -> WebTokenRecord {
    WebTokenRecord { digest: digest(byte), host: format!("{byte}.example"), wrapped: vec![byte; 60] }
}

/// Numbered so, with one token that is numbered so.
fn new_session(user: &str, number: u8, of: u8) -> NewWebSession {
    NewWebSession {
        key: key(number),
        realm: DEFAULT_REALM.into(),
        user: user.into(),
        peer: "192.0.2.1".into(),
        agent: "browser".into(),
        idle: Duration::from_secs(IDLE),
        lasts: Duration::from_secs(LASTS),
        token: token(of),
    }
}

/// A gateway of which nothing would tell that it has ended.
fn unseen(id: u64) -> Gateway {
    Gateway { id, process: None, table: false }
}

/// One whose process is watched.
fn seen(id: u64) -> Gateway {
    let pid = i32::try_from(id).unwrap();
    Gateway { process: Some(Process { pid, start: 1 }), ..unseen(id) }
}

/// One that keeps a table of its sockets as well.
fn with_table(id: u64) -> Gateway {
    Gateway { table: true, ..seen(id) }
}

/// A world in which a gateway watches, and what it was told since the last look.
struct Web {
    world: World,
    next: Request,
}

impl Web {
    fn new() -> Self {
        let mut world = World::new();
        // there is room to set it back
        world.now.wall = 1_000_000;
        Self { world, next: 10_000 }
    }

    fn request(&mut self, event: impl FnOnce(Request) -> Event) -> Option<WebAnswer> {
        self.next += 1;
        let request = self.next;
        self.world.give(event(request));
        self.answer(request)
    }

    fn answer(&self, request: Request) -> Option<WebAnswer> {
        self.world.effects.iter().find_map(|effect| match effect {
            Effect::WebAnswer { request: whose, answer } if *whose == request => Some(answer.clone()),
            _ => None,
        })
    }

    /// Key and digest are numbered alike.
    fn login(&mut self, user: &str, byte: u8) -> WebAnswer {
        self.login_to(DEFAULT_REALM, user, byte)
    }

    fn login_to(&mut self, realm: &str, user: &str, byte: u8) -> WebAnswer {
        let new = Box::new(NewWebSession { realm: realm.into(), ..new_session(user, byte, byte) });
        self.request(|request| Event::WebCreate { request, new }).unwrap()
    }

    /// By the gateway itself; `None`: it waits for the disk.
    fn end(&mut self, byte: u8) -> Option<WebAnswer> {
        self.request(|request| Event::WebEnd { request, which: Ok(key(byte)), cause: WebCause::Logout })
    }

    fn is_alive(&self, byte: u8) -> bool {
        self.world.registry.web_session_of(&digest(byte), self.world.now).is_some()
    }

    /// A gateway of that number, which cannot be seen, and which has gone through its list.
    fn watch(&mut self, watch: Watch) {
        self.begin(watch, unseen(watch));
        self.listed(watch);
    }

    /// A gateway begins to read.
    fn begin(&mut self, watch: Watch, gateway: Gateway) {
        self.world.give(Event::WebWatch { watch, gateway });
    }

    fn listed(&mut self, watch: Watch) {
        self.world.give(Event::WebAcknowledged { watch, closed: Vec::new(), listed: true });
    }

    fn close(&mut self, watch: Watch, byte: u8, sockets: u64) {
        self.world.give(Event::WebAcknowledged { watch, closed: vec![(key(byte), sockets)], listed: false });
    }

    /// Of which ends this watch was told.
    fn told(&self, watch: Watch) -> Vec<(WebKey, WebCause)> {
        let told = self.world.effects.iter().filter_map(|effect| match effect {
            Effect::WebEnded { watch: whom, key, cause, .. } if *whom == watch => Some((*key, *cause)),
            _ => None,
        });
        told.collect()
    }

    /// ocserv has neither workers nor cookies, and says so.
    fn ocserv_tells(&mut self) {
        self.world.list(vec![]);
        self.world.cookies(vec![]);
    }

    fn is_answered(&self, request: Request) -> bool {
        self.world.answers.contains_key(&request)
    }

    /// A user's sessions are revoked, and ocserv has nothing to add.
    fn revoke(&mut self, name: &str) -> Request {
        let request = self.world.revoke(user(name));
        self.ocserv_tells();
        request
    }

    /// What the daemon was asked to destroy by that gateway's table, since the last look.
    fn asked_to_destroy(&mut self, gateway: u64) -> Vec<Vec<WebKey>> {
        let asked = self.world.effects.iter().filter_map(|effect| match effect {
            Effect::WebDestroy { id, keys } if *id == gateway => Some(keys.clone()),
            _ => None,
        });
        let asked = asked.collect();
        self.world.effects.clear();
        asked
    }

    fn web_layer(&self, request: Request) -> LayerResult {
        layer(self.world.receipt(request), Layer::Web)
    }

    /// As the daemon does at its start and every minute.
    fn tell_time(&mut self) {
        self.world.registry.write(Write::Clock { wall: self.world.now.wall, boot_id: "b".into() });
        self.world.give(Event::Tick);
    }

    fn pass(&mut self, seconds: u64) {
        self.world.pass(seconds * 1_000);
    }
}

fn layer(receipt: &Receipt, which: Layer) -> LayerResult {
    receipt.layers.iter().find(|one| one.layer == which).unwrap().clone()
}

/// R3, R4: another gateway's record of a person ends what was there before it, and not what was let in after it, by whatever order
/// the two are learned of here.
#[test]
fn r3_r4_who_was_admitted_after_the_record_is_spared() {
    let mut web = Web::new();
    for byte in [1, 2] {
        assert!(matches!(web.login("alice", byte), WebAnswer::Alive(_)));
    }
    let spare = std::collections::BTreeSet::from([SessionId::Web(key(2))]);
    let target = Target::Person(identity("alice"));
    web.world.revoke(Order { spare, ..order(target.clone()) });
    assert!(!web.is_alive(1) && web.is_alive(2));
    let over: Vec<WebKey> = (web.world.effects.iter())
        .filter_map(|effect| match effect {
            Effect::WebOver { key } => Some(*key),
            _ => None,
        })
        .collect();
    assert_eq!(over, [key(1)], "its place is free, and no other");
    // the twin
    web.world.revoke(order(target));
    assert!(!web.is_alive(2));
}
