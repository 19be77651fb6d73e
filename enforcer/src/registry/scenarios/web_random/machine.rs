//! The world, and what has to be true of it at every moment.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;

/// A clock that is set shows no less than this.
const LEAST_WALL: u64 = 1_000_000;
/// How often the daemon writes down what the clock shows.
const CLOCK_EVERY: Duration = Duration::from_secs(60);
/// About times that are kept by whole seconds.
const NEAR: Duration = Duration::from_secs(2);

/// What a token's secret is wrapped as.
#[derive(Debug)]
pub(super) struct Wrapped {
    /// The disk is known to have this, or what was asked for later.
    pub sure: u8,
    /// What was asked for since.
    pub maybe: Vec<u8>,
}

/// A session as it has to be.
#[derive(Debug)]
pub(super) struct Session {
    pub user: &'static str,
    pub tokens: BTreeMap<WebDigest, Wrapped>,
    pub used: Duration,
    pub made: Duration,
}

/// What is known of the world beside the registry. Its clock goes on over reboots.
#[derive(Default)]
pub(super) struct Machine {
    world: Option<World>,
    pub(super) clock: Duration,
    /// What the clock on the wall shows when `clock` is nothing.
    wall: u64,
    told_time: Duration,
    pub(super) alive: BTreeMap<WebKey, Session>,
    /// Ended, and the disk was not seen to have heard of it: a restart may bring it back.
    pub(super) doubtful: BTreeMap<WebKey, Session>,
    /// Never to be seen again.
    pub(super) over: BTreeSet<WebKey>,
    /// Made, or used, since the disk was seen to have heard of everything: a restart may have lost it.
    pub(super) unwritten: BTreeSet<WebKey>,
    /// Until when; `None`: until unlocked.
    pub(super) locked: BTreeMap<&'static str, Option<Duration>>,
    /// Who is to be unlocked once the disk has heard of it.
    unlocking: Vec<(&'static str, Request)>,
    /// Whose stream it is, and what it was told and has not acknowledged.
    watches: BTreeMap<Watch, (Gateway, Vec<WebKey>)>,
    /// Gateways that have sessions in hand, with what each may have.
    serving: BTreeMap<u64, BTreeSet<WebKey>>,
    destroying: Vec<(u64, Vec<WebKey>)>,
    next: u64,
    requests: BTreeMap<Request, Vec<WebKey>>,
    rewraps: BTreeMap<Request, (WebKey, WebDigest, u8)>,
}

impl Session {
    /// When it ends, by the machine's clock.
    fn ends(&self) -> Duration {
        (self.used + Duration::from_secs(IDLE)).min(self.made + Duration::from_secs(LASTS))
    }

    pub fn is_due(&self, clock: Duration, within: Duration) -> bool {
        clock + within >= self.ends()
    }
}

impl Machine {
    pub fn new() -> Self {
        // what is found after a start may have been made before
        let clock = Duration::from_secs(1_000_000);
        let world = Some(World::new());
        let mut new = Self { world, clock, next: 1_000, wall: 10 * LEAST_WALL, ..Self::default() };
        new.world().now.wall = new.shown();
        new.tell_time();
        new
    }

    pub fn world(&mut self) -> &mut World {
        self.world.as_mut().unwrap()
    }

    pub fn registry(&self) -> &Registry {
        &self.world.as_ref().unwrap().registry
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// What the clock on the wall shows.
    fn shown(&self) -> u64 {
        self.wall + self.clock.as_secs()
    }

    /// The clock is set.
    fn set_clock(&mut self, by: i32) {
        self.wall = self.wall.saturating_add_signed(by.into()).max(LEAST_WALL);
        self.world().now.wall = self.shown();
    }

    pub fn tell_time(&mut self) {
        let wall = self.world().now.wall;
        self.told_time = self.clock;
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
        let at = usize::from(n) % self.alive.len().max(1);
        self.alive.keys().nth(at).copied()
    }

    fn pick_token(&self, key: WebKey, n: u8) -> WebDigest {
        let tokens = &self.alive[&key].tokens;
        *tokens.keys().nth(usize::from(n) % tokens.len()).unwrap()
    }

    fn watch(&self, n: u8) -> Option<Watch> {
        let at = usize::from(n) % self.watches.len().max(1);
        self.watches.keys().nth(at).copied()
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
                    let lives = keys.iter().any(|key| self.registry().is_web_alive(key));
                    assert!(!lives, "one that lives is destroyed");
                    self.destroying.push((id, keys));
                }
                Effect::WebListed { keys, .. } => {
                    assert!(keys.iter().all(|key| !self.over.contains(key)), "a list has what is over");
                    assert!(self.alive.keys().all(|key| keys.contains(key)), "a list lacks what is alive");
                }
                Effect::WebAnswer { request, answer } => self.answered(request, &answer),
                _ => {}
            }
        }
    }

    fn answered(&mut self, request: Request, answer: &WebAnswer) {
        let Some((key, digest, byte)) = self.rewraps.remove(&request) else { return };
        let session = self.alive.get_mut(&key).or_else(|| self.doubtful.get_mut(&key));
        let Some(wrapped) = session.and_then(|session| session.tokens.get_mut(&digest)) else { return };
        match answer {
            WebAnswer::Alive(_) => {
                wrapped.sure = byte;
                let later = wrapped.maybe.iter().position(|one| *one == byte).map_or(0, |at| at + 1);
                wrapped.maybe.drain(..later);
            }
            WebAnswer::Gone | WebAnswer::Unwritten(_) | WebAnswer::Full(_) => {}
            other => panic!("a secret was wrapped anew: {other:?}"),
        }
    }

    pub fn step(&mut self, op: &Op) {
        match *op {
            Op::Login(n) => {
                let digest = self.digest();
                self.login(person(n), digest);
            }
            Op::AddToken(n) => {
                let Some(key) = self.pick(n) else { return };
                let (digest, request, known) = (self.digest(), self.number(), self.pick_token(key, n));
                let session = self.alive.get_mut(&key).unwrap();
                session.tokens.insert(digest, Wrapped { sure: 2, maybe: vec![] });
                self.unwritten.insert(key);
                let token = Box::new(WebTokenRecord { digest, host: "b".into(), wrapped: vec![2] });
                self.give(Event::WebAddToken { request, known, token });
            }
            Op::Rewrap(n) => {
                let Some(key) = self.pick(n) else { return };
                let (request, digest) = (self.number(), self.pick_token(key, n));
                let byte = u8::try_from(request % 251).unwrap() + 3;
                self.rewraps.insert(request, (key, digest, byte));
                self.alive.get_mut(&key).unwrap().tokens.get_mut(&digest).unwrap().maybe.push(byte);
                let token = Box::new(WebTokenRecord { digest, host: String::new(), wrapped: vec![byte] });
                self.give(Event::WebRewrap { request, token });
            }
            Op::Use(n) => {
                let Some(key) = self.pick(n) else { return };
                self.alive.get_mut(&key).unwrap().used = self.clock;
                self.unwritten.insert(key);
                self.give(Event::WebSeen { uses: vec![(key, Duration::ZERO)] });
            }
            Op::End(n, by_key) => {
                let Some(key) = self.pick(n) else { return };
                let request = self.number();
                let which = if by_key { Ok(key) } else { Err(self.pick_token(key, n)) };
                self.ended(key);
                self.give(Event::WebEnd { request, which, cause: WebCause::Logout });
            }
            Op::RevokeUser(n) => {
                let name = person(n);
                self.revoke(user(name), |session| session.user == name);
            }
            Op::RevokeKey(n) => {
                let Some(key) = self.pick(n) else { return };
                self.ended(key);
                let request = self.world().revoke(order(Target::Web(key)));
                self.requests.insert(request, vec![key]);
                self.hear();
            }
            Op::Lock(n, seconds) => {
                let (name, lasts) = (person(n), seconds.map(|seconds| Duration::from_secs(seconds.into())));
                let until = lasts.map(|lasts| self.clock + lasts);
                let before = self.locked.get(name).copied();
                // the longest of them counts
                let longest = before.map_or(until, |before| Some(before?.max(until?)));
                self.locked.insert(name, longest);
                // what is being taken back is another lock
                self.unlocking.retain(|(whose, _)| *whose != name);
                self.revoke(lock(name, lasts), |session| session.user == name);
            }
            Op::Unlock(n) => {
                let request = self.world().unlock(person(n));
                self.unlocking.push((person(n), request));
                self.hear();
            }
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
            Op::Nonsense(n) => self.nonsense(n),
            Op::Pass(ms) => self.pass(Duration::from_millis(ms.into())),
            Op::Clock(by) => {
                self.set_clock(by);
                self.give(Event::Tick);
            }
            Op::Full(full) => self.world().disk.full = full,
            Op::Hang(hangs) => self.world().disk.hangs = hangs,
            Op::Restart(by) => self.start(0, by, false),
            Op::Reboot(down, by) => self.start(down, by, true),
            Op::Watch(_) => {}
        }
    }

    fn login(&mut self, user: &'static str, digest: WebDigest) {
        let (request, number) = (self.number(), self.number());
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
        let is_alive = self.registry().web_session_of(&digest, now).is_some_and(|session| session.key == key);
        // R4: whoever is not locked gets in, whatever was revoked before
        match self.is_locked(user) {
            Some(locked) => assert_eq!(is_alive, !locked && !full, "{user} at the door"),
            None => assert!(!(is_alive && full)),
        }
        if is_alive {
            let tokens = BTreeMap::from([(digest, Wrapped { sure: 1, maybe: vec![] })]);
            self.alive.insert(key, Session { user, tokens, used: self.clock, made: self.clock });
            self.unwritten.insert(key);
            for (gateway, _) in self.watches.values().filter(|(gateway, _)| gateway.process.is_some()) {
                self.serving.entry(gateway.id).or_default().insert(key);
            }
        }
    }

    /// `None`: at this very moment that changes.
    fn is_locked(&self, user: &str) -> Option<bool> {
        match self.locked.get(user) {
            None => Some(false),
            Some(None) => Some(true),
            Some(Some(until)) if until.abs_diff(self.clock) <= NEAR => None,
            Some(Some(until)) => Some(*until > self.clock),
        }
    }

    /// R3, R6: of none of this anything follows; that nothing was ended or called closed is seen by [`Machine::check`].
    fn nonsense(&mut self, n: u8) {
        let (request, unknown) = (self.number(), self.digest());
        let lives = self.pick(n);
        let keys = lives.into_iter().chain([WebKey::from_bytes([n; 16])]);
        let closed: Vec<(WebKey, u64)> = keys.map(|key| (key, u64::MAX)).collect();
        let token = |digest| Box::new(WebTokenRecord { digest, host: "c".into(), wrapped: vec![9] });
        for watch in [self.watch(n).unwrap_or(0), 7] {
            self.give(Event::WebAcknowledged { watch, closed: closed.clone(), listed: false });
        }
        self.give(Event::WebAcknowledged { watch: 7, closed: closed.clone(), listed: true });
        for id in [u64::from(n % 4), 77] {
            self.give(Event::WebDestroyed { id, gone: closed.clone(), trouble: None });
        }
        self.give(Event::WebGatewayGone { id: 77 });
        self.give(Event::WebWatchGone { watch: 7 });
        self.give(Event::WebRewrap { request, token: token(unknown) });
        self.give(Event::WebEnd { request, which: Err(unknown), cause: WebCause::Logout });
        self.give(Event::WebSeen { uses: vec![(WebKey::from_bytes([n; 16]), Duration::MAX)] });
        // one that another session has
        let Some(known) = lives.map(|key| self.pick_token(key, n)) else { return };
        let taken = self.alive.values().flat_map(|session| session.tokens.keys()).next_back();
        if let Some(taken) = taken.copied() {
            self.give(Event::WebAddToken { request, known, token: token(taken) });
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

    fn pass(&mut self, time: Duration) {
        self.clock += time;
        let wall = self.shown();
        let world = self.world();
        world.now.mono += time;
        world.now.wall = wall;
        self.give(Event::Tick);
        if self.clock >= self.told_time + CLOCK_EVERY {
            self.tell_time();
            self.hear();
        }
        let clock = self.clock;
        let late: Vec<WebKey> =
            self.alive.iter().filter(|(_, s)| s.is_due(clock, Duration::ZERO)).map(|(key, _)| *key).collect();
        late.iter().for_each(|key| self.ended(*key));
        self.locked.retain(|_, until| until.is_none_or(|until| until + NEAR > clock));
    }

    /// Whoever has an answer that calls it done on the disk will never see it again.
    fn believe(&mut self) {
        let world = self.world.as_ref().unwrap();
        let mut done: Vec<WebKey> = Vec::new();
        let is_done = |receipt: &Receipt, which| {
            receipt.layers.iter().all(|layer| layer.layer != which || layer.failed == 0)
        };
        for (request, keys) in &self.requests {
            let Some(Answer::Receipt(receipt)) = world.answers.get(request) else { continue };
            if is_done(receipt, Layer::Web) {
                // R6: no gateway that is seen to live has it any more
                for (id, serving) in &self.serving {
                    assert!(!keys.iter().any(|key| serving.contains(key)), "{id} has what is called closed");
                }
            }
            if is_done(receipt, Layer::Disk) {
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

    /// The daemon has died, or the host was down for so many seconds; meanwhile the clock was set.
    fn start(&mut self, down: u16, by: i32, reboots: bool) {
        self.believe();
        self.watches.clear();
        // of whom the disk has heard; whoever runs on has in hand what he had
        let noted = self.world().disk.web_gateways.clone().unwrap_or_default();
        let is_noted = |id: &u64| noted.iter().any(|process| i64::from(process.pid) == (*id).cast_signed());
        self.serving.retain(|id, _| !reboots && is_noted(id));
        self.destroying.clear();
        self.requests.clear();
        self.rewraps.clear();
        self.unlocking.clear();
        let (told, before) = (self.world().disk.wall, self.shown());
        // what the disk has may be of a time before the clock was set, or of none
        let blurred = self.registry().has_unsaved_web() || !self.world().disk.is_idle();
        self.wall += u64::from(down);
        self.set_clock(by);
        // a clock that went back is taken for one that stands still, since it was last written down
        let seemed = i128::from(self.shown().max(told)) - i128::from(before);
        if reboots {
            self.world().reboot()
        } else {
            self.world().restart()
        }
        self.tell_time();
        self.world().disk.hangs = false;
        self.world().effects.clear();
        self.started(seemed, blurred);
    }

    pub fn check(&mut self) {
        self.believe();
        let now = self.world().now;
        let registry = self.registry();
        registry.check_web();
        for (key, session) in &self.alive {
            // R3, but for what is about to end
            for digest in session.tokens.keys() {
                let found = registry.web_session_of(digest, now).map(|s| s.key);
                assert!(
                    found == Some(*key) || session.is_due(self.clock, NEAR),
                    "{key} of {} has ended by itself",
                    session.user
                );
            }
            let is_locked = self.is_locked(session.user) == Some(true);
            assert!(!is_locked, "{} is locked, and has a session", session.user);
        }
        // R2
        for session in registry.web_sessions() {
            assert!(!self.over.contains(&session.key), "{} is back", session.key);
            assert!(
                !self.doubtful.contains_key(&session.key) || session.until(now) <= now.wall + NEAR.as_secs(),
                "{} is over",
                session.key
            );
        }
        let users = registry.users_after(&UsersFrom::Name(None), usize::MAX).0;
        assert_eq!(users.iter().map(|row| row.web as usize).sum::<usize>(), registry.web_count());
    }
}
