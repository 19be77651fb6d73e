//! Web sessions in a random world: whatever happens in whatever order, what is over stays over, and nobody else's session
//! ends.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::harness::*;
use crate::registry::*;
use crate::session::*;

const IDLE: u64 = 100;
const LASTS: u64 = 1_000;
const PEOPLE: [&str; 3] = ["alice", "bob", "carol"];

#[derive(Debug, Clone)]
enum Op {
    Login(u8),
    AddToken(u8),
    Use(u8),
    End(u8),
    RevokeUser(u8),
    RevokeKey(u8),
    Lock(u8),
    Unlock(u8),
    Watch(u8),
    WatchGone(u8),
    GatewayGone(u8),
    /// What was asked to be destroyed by a table is, or is not.
    Destroyed(bool),
    /// The oldest so many of the ends that it was told.
    Acknowledge(u8, u8),
    Listed(u8),
    Pass(u16),
    Full(bool),
    Hang(bool),
    Restart,
    Reboot(u16),
}

fn op() -> impl Strategy<Value = Op> {
    let n = any::<u8>;
    prop_oneof![
        6 => n().prop_map(Op::Login),
        2 => n().prop_map(Op::AddToken),
        4 => n().prop_map(Op::Use),
        1 => n().prop_map(Op::End),
        2 => n().prop_map(Op::RevokeUser),
        2 => n().prop_map(Op::RevokeKey),
        1 => n().prop_map(Op::Lock),
        1 => n().prop_map(Op::Unlock),
        2 => n().prop_map(Op::Watch),
        1 => n().prop_map(Op::WatchGone),
        1 => n().prop_map(Op::GatewayGone),
        2 => any::<bool>().prop_map(Op::Destroyed),
        3 => (n(), n()).prop_map(|(watch, many)| Op::Acknowledge(watch, many)),
        1 => n().prop_map(Op::Listed),
        3 => (0..5_000_u16).prop_map(Op::Pass),
        1 => (0..60_000_u16).prop_map(Op::Pass),
        1 => any::<bool>().prop_map(Op::Full),
        1 => any::<bool>().prop_map(Op::Hang),
        1 => Just(Op::Restart),
        1 => (0..60_u16).prop_map(Op::Reboot),
    ]
}

/// Some gateways can be seen, some keep tables.
fn gateway(n: u8) -> Gateway {
    let id = u64::from(n % 4);
    let process = (id > 0).then(|| Process { pid: i32::from(n % 4), start: 1 });
    Gateway { id, process, table: id > 1 }
}

/// A session as it has to be.
#[derive(Debug)]
struct Session {
    user: &'static str,
    tokens: Vec<WebDigest>,
    used: Duration,
    made: Duration,
}

/// What is known of the world beside the registry. Its clock goes on over reboots.
#[derive(Default)]
struct Machine {
    world: Option<World>,
    clock: Duration,
    alive: BTreeMap<WebKey, Session>,
    /// Ended, and the disk was not seen to have heard of it: a restart may bring it back.
    doubtful: BTreeMap<WebKey, Session>,
    /// Never to be seen again.
    over: BTreeSet<WebKey>,
    /// Made, or used, since the disk was seen to have heard of everything: a restart may have lost it.
    unwritten: BTreeSet<WebKey>,
    locked: BTreeSet<&'static str>,
    /// Who is to be unlocked once the disk has heard of it.
    unlocking: Vec<(&'static str, Request)>,
    /// Whose stream it is, and what it was told and has not acknowledged.
    watches: BTreeMap<Watch, (Gateway, Vec<WebKey>)>,
    /// Gateways that have sessions in hand, with what each may have.
    serving: BTreeMap<u64, BTreeSet<WebKey>>,
    destroying: Vec<(u64, Vec<WebKey>)>,
    next: u64,
    requests: BTreeMap<Request, Vec<WebKey>>,
}

impl Machine {
    fn new() -> Self {
        let mut world = World::new();
        world.now.wall = 1_000_000;
        let mut new = Self { world: Some(world), next: 1_000, ..Self::default() };
        new.tell_time();
        new
    }

    fn world(&mut self) -> &mut World {
        self.world.as_mut().unwrap()
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn tell_time(&mut self) {
        let wall = self.world().now.wall;
        self.world().registry.write(Write::Clock { wall, boot_id: "b".into() });
        self.world().give(Event::Tick);
    }

    fn digest(&mut self) -> WebDigest {
        let number = self.number();
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        WebDigest::from_bytes(bytes)
    }

    fn pick(&self, n: u8) -> Option<WebKey> {
        let keys: Vec<WebKey> = self.alive.keys().copied().collect();
        (!keys.is_empty()).then(|| keys[usize::from(n) % keys.len()])
    }

    fn watch(&self, n: u8) -> Option<Watch> {
        let watches: Vec<Watch> = self.watches.keys().copied().collect();
        (!watches.is_empty()).then(|| watches[usize::from(n) % watches.len()])
    }

    fn give(&mut self, event: Event) {
        self.world().give(event);
        self.hear();
    }

    /// What the gateways are told, and what was answered.
    fn hear(&mut self) {
        for effect in std::mem::take(&mut self.world().effects) {
            match effect {
                Effect::WebEnded { watch, key, .. } => self.watches.get_mut(&watch).unwrap().1.push(key),
                Effect::WebBreak { watch } => drop(self.watches.remove(&watch)),
                Effect::WebDestroy { id, keys } => {
                    let registry = &self.world.as_ref().unwrap().registry;
                    assert!(
                        !keys.iter().any(|key| registry.is_web_alive(key)),
                        "one that lives is destroyed"
                    );
                    self.destroying.push((id, keys));
                }
                Effect::WebListed { keys, .. } => {
                    assert!(keys.iter().all(|key| !self.over.contains(key)), "a list has what is over");
                    assert!(self.alive.keys().all(|key| keys.contains(key)), "a list lacks what is alive");
                }
                _ => {}
            }
        }
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Login(n) => self.login(PEOPLE[usize::from(n) % PEOPLE.len()]),
            Op::AddToken(n) => {
                let Some(key) = self.pick(n) else { return };
                let (digest, request) = (self.digest(), self.number());
                let session = self.alive.get_mut(&key).unwrap();
                let known = session.tokens[usize::from(n) % session.tokens.len()];
                session.tokens.push(digest);
                self.unwritten.insert(key);
                let token = Box::new(WebTokenRecord { digest, host: "b".into(), wrapped: vec![2] });
                self.give(Event::WebAddToken { request, known, token });
            }
            Op::Use(n) => {
                let Some(key) = self.pick(n) else { return };
                self.alive.get_mut(&key).unwrap().used = self.clock;
                self.unwritten.insert(key);
                self.give(Event::WebSeen { uses: vec![(key, Duration::ZERO)] });
            }
            Op::End(n) => {
                let Some(key) = self.pick(n) else { return };
                let request = self.number();
                self.ended(key);
                self.give(Event::WebEnd { request, which: Ok(key), cause: WebCause::Logout });
            }
            Op::RevokeUser(n) => {
                let name = PEOPLE[usize::from(n) % PEOPLE.len()];
                self.revoke(user(name), |session| session.user == name);
            }
            Op::RevokeKey(n) => {
                let Some(key) = self.pick(n) else { return };
                let session = self.alive.remove(&key).unwrap();
                self.doubtful.insert(key, session);
                let request = self.world().revoke(order(Target::Web(key)));
                self.requests.insert(request, vec![key]);
                self.hear();
            }
            Op::Lock(n) => {
                let name = PEOPLE[usize::from(n) % PEOPLE.len()];
                self.locked.insert(name);
                // what is being taken back is another lock
                self.unlocking.retain(|(whose, _)| *whose != name);
                self.revoke(lock(name, None), |session| session.user == name);
            }
            Op::Unlock(n) => self.unlock(PEOPLE[usize::from(n) % PEOPLE.len()]),
            Op::Watch(n) if self.watches.len() < 4 => {
                let (watch, gateway) = (self.number(), gateway(n));
                self.watches.insert(watch, (gateway, Vec::new()));
                if gateway.process.is_some() {
                    // whoever is there may be given any session that is alive
                    self.serving.entry(gateway.id).or_default().extend(self.alive.keys());
                }
                self.give(Event::WebWatch { watch, gateway });
            }
            Op::WatchGone(n) => {
                let Some(watch) = self.watch(n) else { return };
                self.watches.remove(&watch);
                self.give(Event::WebWatchGone { watch });
            }
            Op::GatewayGone(n) => {
                let gateway = gateway(n);
                if gateway.process.is_none() {
                    return;
                }
                self.serving.remove(&gateway.id);
                self.give(Event::WebGatewayGone { id: gateway.id });
                assert!(self.watches.values().all(|(whose, _)| whose.id != gateway.id));
            }
            Op::Destroyed(done) => {
                for (id, keys) in std::mem::take(&mut self.destroying) {
                    let gone: Vec<_> = if done { keys.iter().map(|key| (*key, 1)).collect() } else { vec![] };
                    self.closed(id, gone.iter().map(|(key, _)| *key));
                    let trouble = (!done).then(|| "no".to_owned());
                    self.give(Event::WebDestroyed { id, gone, trouble });
                }
            }
            Op::Acknowledge(n, many) => {
                let Some(watch) = self.watch(n) else { return };
                let (gateway, told) = self.watches.get_mut(&watch).unwrap();
                let (id, many) = (gateway.id, usize::from(many).min(told.len()));
                let closed: Vec<_> = told.drain(..many).map(|key| (key, 1)).collect();
                self.closed(id, closed.iter().map(|(key, _)| *key));
                self.give(Event::WebAcknowledged { watch, closed, listed: false });
            }
            Op::Listed(n) => {
                let Some(watch) = self.watch(n) else { return };
                // of what it was told by the stream nothing is said with that
                let (gateway, told) = &self.watches[&watch];
                let (id, told): (u64, BTreeSet<WebKey>) = (gateway.id, told.iter().copied().collect());
                if let Some(serving) = self.serving.get_mut(&id) {
                    serving.retain(|key| told.contains(key) || self.alive.contains_key(key));
                }
                self.give(Event::WebAcknowledged { watch, closed: Vec::new(), listed: true });
            }
            Op::Pass(ms) => self.pass(Duration::from_millis(ms.into())),
            Op::Full(full) => self.world().disk.full = full,
            Op::Hang(hangs) => self.world().disk.hangs = hangs,
            Op::Restart => {
                self.stop();
                self.world().restart();
                self.started();
            }
            Op::Reboot(down) => {
                self.stop();
                self.world().now.wall += u64::from(down);
                self.clock += Duration::from_secs(down.into());
                self.world().reboot();
                self.started();
            }
            Op::Watch(_) => {}
        }
    }

    fn login(&mut self, user: &'static str) {
        let (digest, request, number) = (self.digest(), self.number(), self.number());
        let mut bytes = [0; 16];
        bytes[8..].copy_from_slice(&number.to_be_bytes());
        let key = WebKey::from_bytes(bytes);
        let new = Box::new(NewWebSession {
            key,
            realm: DEFAULT_REALM.into(),
            user: user.into(),
            peer: String::new(),
            agent: String::new(),
            idle: Duration::from_secs(IDLE),
            lasts: Duration::from_secs(LASTS),
            token: WebTokenRecord { digest, host: "a".into(), wrapped: vec![1] },
        });
        let full = self.alive.values().filter(|session| session.user == user).count() >= 20;
        self.give(Event::WebCreate { request, new });
        let now = self.world().now;
        let is_alive = self.world().registry.web_session_of(&digest, now).is_some();
        // R4: whoever is not locked gets in, whatever was revoked before
        assert_eq!(is_alive, !self.locked.contains(user) && !full, "{user} at the door");
        if is_alive {
            let session = Session { user, tokens: vec![digest], used: self.clock, made: self.clock };
            self.alive.insert(key, session);
            self.unwritten.insert(key);
            for (gateway, _) in self.watches.values().filter(|(gateway, _)| gateway.process.is_some()) {
                self.serving.entry(gateway.id).or_default().insert(key);
            }
        }
    }

    fn closed(&mut self, id: u64, keys: impl Iterator<Item = WebKey>) {
        if let Some(serving) = self.serving.get_mut(&id) {
            for key in keys {
                serving.remove(&key);
            }
        }
    }

    fn ended(&mut self, key: WebKey) {
        if let Some(session) = self.alive.remove(&key) {
            self.doubtful.insert(key, session);
        }
    }

    fn revoke(&mut self, order: Order, meant: impl Fn(&Session) -> bool) {
        let keys: Vec<WebKey> =
            self.alive.iter().filter(|(_, session)| meant(session)).map(|(key, _)| *key).collect();
        keys.iter().for_each(|key| self.ended(*key));
        let request = self.world().revoke(order);
        self.requests.insert(request, keys);
        self.hear();
        self.world().list(vec![]);
        self.world().cookies(vec![]);
        self.hear();
    }

    fn unlock(&mut self, name: &'static str) {
        let request = self.world().unlock(name);
        self.unlocking.push((name, request));
        self.hear();
    }

    fn pass(&mut self, time: Duration) {
        self.clock += time;
        let wall = 1_000_000 + self.clock.as_secs();
        let world = self.world();
        world.now.mono += time;
        world.now.wall = wall;
        self.give(Event::Tick);
        let clock = self.clock;
        let late: Vec<WebKey> = (self.alive.iter())
            .filter(|(_, s)| {
                clock >= s.used + Duration::from_secs(IDLE) || clock >= s.made + Duration::from_secs(LASTS)
            })
            .map(|(key, _)| *key)
            .collect();
        late.iter().for_each(|key| self.ended(*key));
    }

    /// Whoever has an answer that calls it done on the disk will never see it again.
    fn believe(&mut self) {
        let world = self.world.as_ref().unwrap();
        let mut done: Vec<WebKey> = Vec::new();
        for (request, keys) in &self.requests {
            if let Some(Answer::Receipt(receipt)) = world.answers.get(request)
                && receipt.layers.iter().all(|layer| layer.layer != Layer::Web || layer.failed == 0)
            {
                // R6: no gateway that is seen to live has it any more
                for (id, serving) in &self.serving {
                    assert!(!keys.iter().any(|key| serving.contains(key)), "{id} has what is called closed");
                }
            }
            if let Some(Answer::Receipt(receipt)) = world.answers.get(request)
                && receipt.layers.iter().all(|layer| layer.layer != Layer::Disk || layer.failed == 0)
            {
                done.extend(keys);
            }
        }
        self.over.extend(done);
        for (name, request) in &self.unlocking {
            if matches!(world.answers.get(request), Some(Answer::Receipt(_) | Answer::Nothing(_))) {
                self.locked.remove(name);
            }
        }
        if world.registry.unwritten().0 == 0 && world.disk.is_idle() && !world.disk.full {
            self.over.extend(self.doubtful.keys());
        }
        for key in &self.over {
            self.doubtful.remove(key);
        }
    }

    fn stop(&mut self) {
        self.believe();
        self.watches.clear();
        self.serving.clear();
        self.destroying.clear();
        self.requests.clear();
        self.unlocking.clear();
    }

    /// What was not on the disk may be back or lost; what was is as it was.
    fn started(&mut self) {
        self.tell_time();
        self.world().disk.hangs = false;
        self.world().effects.clear();
        let now = self.world().now;
        let keys: BTreeSet<WebKey> =
            self.world().registry.web_sessions().map(|session| session.key).collect();
        for key in &keys {
            assert!(!self.over.contains(key), "{key} is back");
            assert!(self.alive.contains_key(key) || self.doubtful.contains_key(key), "{key} is nobody's");
        }
        let (alive, doubtful) = (std::mem::take(&mut self.alive), std::mem::take(&mut self.doubtful));
        for (key, session) in alive.iter().filter(|(key, _)| !keys.contains(key)) {
            // it may have been lost before it was written, or have been over by the time that was written
            let lag = Duration::from_secs(IDLE / 8 + 2);
            let was_due = self.clock + lag >= session.used + Duration::from_secs(IDLE)
                || self.clock + lag >= session.made + Duration::from_secs(LASTS);
            let is_locked = self.locked.contains(session.user);
            assert!(self.unwritten.contains(key) || was_due || is_locked, "{key} was lost");
        }
        let all = alive.into_iter().chain(doubtful);
        let (mut seen, doubtful): (BTreeMap<_, _>, _) = all.partition(|(key, _)| keys.contains(key));
        self.doubtful = doubtful;
        for (key, session) in &mut seen {
            let registry = &self.world.as_ref().unwrap().registry;
            session
                .tokens
                .retain(|digest| registry.web_session_of(digest, now).is_some_and(|s| s.key == *key));
            assert!(!session.tokens.is_empty(), "{key} has lost its tokens");
        }
        self.alive = seen;
        self.unwritten.clear();
        // whose lock was not written is locked by the kernel alone, until a reboot
        self.locked.retain(|name| {
            let registry = &self.world.as_ref().unwrap().registry;
            !registry.locks_on(&identity(name)).is_empty()
        });
        // times as the disk has them are a little older
        self.settle_times();
    }

    /// From now on the registry's times count: by the whole second, and as lazily as they were written.
    fn settle_times(&mut self) {
        let (world, clock) = (self.world.as_ref().unwrap(), self.clock);
        let now = world.now;
        for row in world.registry.web_rows_after(None, usize::MAX, now) {
            if let Some(session) = self.alive.get_mut(&row.key) {
                session.used = clock.saturating_sub(Duration::from_secs(now.wall.saturating_sub(row.seen)));
            }
        }
    }

    fn check(&mut self) {
        self.believe();
        let now = self.world().now;
        let registry = &self.world.as_ref().unwrap().registry;
        registry.check_web();
        for (key, session) in &self.alive {
            let near = |at: Duration, secs: u64| {
                (at + Duration::from_secs(secs)).saturating_sub(self.clock) <= Duration::from_secs(2)
            };
            // R3, but for what is about to end
            for digest in &session.tokens {
                let found = registry.web_session_of(digest, now).map(|s| s.key);
                assert!(
                    found == Some(*key) || near(session.used, IDLE) || near(session.made, LASTS),
                    "{key} of {} has ended by itself",
                    session.user
                );
            }
            assert!(!self.locked.contains(session.user), "{} is locked, and has a session", session.user);
        }
        // R2
        for session in registry.web_sessions() {
            assert!(!self.over.contains(&session.key), "{} is back", session.key);
            assert!(
                !self.doubtful.contains_key(&session.key) || session.until(now) <= now.wall + 2,
                "{} is over",
                session.key
            );
        }
    }
}

proptest! {
    #[test]
    fn r2_r3_r4_r5_r6_web_sessions_in_a_random_world(ops in proptest::collection::vec(op(), 1..120)) {
        let mut machine = Machine::new();
        for op in &ops {
            machine.step(op);
            machine.check();
        }
    }
}
