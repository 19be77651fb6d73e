//! Gateways, their sessions and an etcd, with time between all of them.

use std::collections::BTreeMap;

use enforcer::registry::cluster::{
    Author, Cluster, ClusterEffect, ClusterEvent, GatewayId, Key, Op, Over, Record, Revision, Trouble, Txn,
    Value,
};
use enforcer::session::{Identity, SessionId};

use super::etcd::{Etcd, number_of};
use super::gateway::{self, Gateway, Session, Ways, cookie, identity, limit, session_of, when_away};
use super::queue::{Queue, What};
use super::random::{Digest, MS, Random, SECOND, Time};

/// The longest way between a gateway and etcd, one way.
pub const DELAY: Time = 100 * MS;
/// What etcd tells is read in steps of this.
pub const STEP: Time = 10 * MS;
/// The longest pause between two attempts to connect.
pub const PAUSE: Time = 5 * SECOND;
/// Reading the state at a new connection.
pub const READING: Time = 125 * MS;
/// After so long a dead connection is noticed.
pub const NOTICED: Time = 6 * SECOND;
const LEASE: Time = 10 * SECOND;
const TICK: Time = 500 * MS;

/// No longer than this after it was written in etcd a session is over at a gateway that is connected: one way, and the
/// next step in which it reads.
pub const BOUND_CONNECTED: Time = DELAY + STEP + 2 * MS;
/// No longer than this after the way is free again, or its daemon has been started: it may have to find that its
/// connection is dead, waits for its next attempt, reads the state, and what came meanwhile.
pub const BOUND_HEALED: Time = NOTICED + PAUSE + READING + BOUND_CONNECTED;
/// A decision is in etcd so long after it was made, at a gateway that is connected: an earlier one of the same key may
/// be on its way there and has to be answered, and then this one goes.
pub const BOUND_TOLD: Time = 3 * DELAY + 2 * MS;
/// Or so long after its way is free again: connected, registered there and back, what came meanwhile was read, told.
pub const BOUND_TOLD_HEALED: Time = NOTICED + PAUSE + READING + 2 * DELAY + BOUND_CONNECTED + BOUND_TOLD;

/// Longest times that were seen.
#[derive(Default)]
pub struct Worst {
    pub connected: Time,
    pub healed: Time,
    pub told: Time,
    pub told_healed: Time,
}

#[derive(Default)]
pub struct Counts {
    pub logins: u64,
    pub let_in: u64,
    pub refused: u64,
    pub old_cookies: u64,
    pub decisions: u64,
    pub lifts: u64,
    pub ended: u64,
    pub displaced: u64,
    pub faults: u64,
    pub crashes: u64,
    pub notes: u64,
    pub events: u64,
}

pub struct World {
    pub now: Time,
    pub random: Random,
    pub digest: Digest,
    pub queue: Queue,
    pub etcd: Etcd,
    pub gateways: Vec<Gateway>,
    pub sessions: Vec<Session>,
    /// Those whose cookie is worth something.
    pub of_person: Vec<Vec<u32>>,
    /// Gateways that have read everything.
    asleep: Vec<u16>,
    /// What has to be over, and since when etcd says so.
    pub due: BTreeMap<u32, Time>,
    /// How many sessions there were when that was decided, and when that was.
    decided: BTreeMap<(u16, u64), (u32, Time)>,
    pub worst: Worst,
    pub counts: Counts,
    /// Within so many seconds everybody has been at the door once.
    pub within: u64,
    /// What was promised and not kept.
    pub broken: Vec<String>,
}

pub fn place_of(id: GatewayId) -> u16 {
    u16::from_be_bytes([id.as_bytes()[14], id.as_bytes()[15]])
}

impl World {
    /// As after a day: everybody is in, and every gateway is being started.
    pub fn new(gateways: u16, sessions: u32, within: u64, seed: u64) -> Self {
        let mut world = Self {
            now: 0,
            random: Random::new(seed),
            digest: Digest::new(),
            queue: Queue::default(),
            etcd: Etcd::new(),
            gateways: (0..gateways).map(Gateway::new).collect(),
            sessions: Vec::new(),
            of_person: vec![Vec::new(); sessions as usize],
            asleep: Vec::new(),
            due: BTreeMap::new(),
            decided: BTreeMap::new(),
            worst: Worst::default(),
            counts: Counts::default(),
            within,
            broken: Vec::new(),
        };
        for person in 0..sessions {
            let at = world.any_gateway();
            world.is_in(person, at);
        }
        for at in 0..gateways {
            world.start(at);
            let tick = world.random.below(TICK);
            world.queue.give(tick, What::Tick { at });
        }
        world
    }

    fn is_in(&mut self, person: u32, at: u16) {
        let claimed = limit(person).is_some();
        let session = self.new_session(person, at);
        let id = self.gateways[usize::from(at)].id;
        let mut then = vec![Op::Put(Key::Admission(id, identity(person), cookie(session)), Value::Admission)];
        if claimed {
            let holders = vec![enforcer::registry::cluster::Holder { gateway: id, session: cookie(session) }];
            let owners = enforcer::registry::cluster::Owners { generation: 1, holders };
            then.push(Op::Put(Key::Owners(identity(person)), Value::Owners(owners)));
        }
        let at = self.etcd.commit(0, &Txn { then, ..Txn::default() }).revision;
        let row = &mut self.sessions[session as usize];
        (row.tunnel, row.passed, row.claimed, row.at) = (true, true, claimed, at);
    }

    pub fn any_gateway(&mut self) -> u16 {
        u16::try_from(self.random.index(self.gateways.len())).unwrap_or(0)
    }

    pub fn new_session(&mut self, person: u32, at: u16) -> u32 {
        let session = u32::try_from(self.sessions.len()).unwrap_or(u32::MAX);
        self.sessions.push(Session {
            person,
            gateway: at,
            dead: false,
            tunnel: false,
            passed: false,
            claimed: false,
            at: 0,
        });
        self.of_person[person as usize].push(session);
        self.gateways[usize::from(at)].sessions.insert(session);
        session
    }

    fn delay(&mut self) -> Time {
        let most = if self.random.chance(1) { DELAY } else { 25 * MS };
        self.random.between(MS, most)
    }

    fn gateway(&mut self, at: u16) -> &mut Gateway {
        &mut self.gateways[usize::from(at)]
    }

    pub fn is_up(&self, at: u16) -> bool {
        self.gateways[usize::from(at)].cluster.is_some()
    }

    pub fn give(&mut self, at: u16, event: ClusterEvent) {
        self.counts.events += 1;
        let now = gateway::now(self.now);
        let Some(cluster) = &mut self.gateway(at).cluster else { return };
        for effect in cluster.handle(event, now) {
            self.apply(at, effect);
        }
    }

    fn apply(&mut self, at: u16, effect: ClusterEffect) {
        match effect {
            ClusterEffect::Commit { ticket, txn } => self.send(at, ticket, txn),
            ClusterEffect::Order { errand, author, over, revision, spare, .. } => {
                if self.gateway(at).disk.carried_out.insert((revision, author, over.clone())) {
                    if let Over::Session(_) = over {
                        self.counts.displaced += 1;
                    }
                    for session in self.meant(&over) {
                        let row = self.sessions[session as usize];
                        if row.gateway != at || spare.contains(&cookie(session)) {
                            continue;
                        }
                        if row.passed && row.at > revision && over.person().is_some() {
                            self.broken
                                .push(format!("{session} passed at {} and is ended by {revision}", row.at));
                        }
                        self.end(session);
                    }
                    if let Over::Lock(who) = &over {
                        self.gateway(at).lock(author, number_of(who), Some(revision));
                    }
                }
                self.write(at, errand);
            }
            ClusterEffect::TakeBack { errand, author, over, up_to, .. } => {
                if let Over::Lock(who) = over {
                    let lock = (author, number_of(&who));
                    if self.gateway(at).locks.get(&lock).is_some_and(|at| at.is_some_and(|at| at <= up_to)) {
                        self.gateway(at).unlock(lock.0, lock.1);
                    }
                }
                self.write(at, errand);
            }
            ClusterEffect::Told { number, over: Over::Lock(who), revision } => {
                let gateway = self.gateway(at);
                let lock = (Author::Gateway(gateway.id), number_of(&who));
                if gateway.lock_numbers.get(&lock.1) == Some(&number) && gateway.locks.contains_key(&lock) {
                    gateway.locks.insert(lock, Some(revision));
                }
            }
            ClusterEffect::Told { .. } => {}
            ClusterEffect::LetterTold { key } => {
                self.gateway(at).disk.letters.retain(|(of, _)| *of != key);
            }
            ClusterEffect::Known { revision } => {
                let disk = &mut self.gateway(at).disk;
                disk.known = revision;
                let nobody = Identity { realm: String::new(), name: String::new() };
                let least = Author::Gateway(GatewayId::from_bytes([0; 16]));
                disk.carried_out = disk.carried_out.split_off(&(revision + 1, least, Over::User(nobody)));
            }
            ClusterEffect::Look { knock, session } => {
                let clear = self.is_clear(at, session);
                self.give(at, ClusterEvent::Looked { knock, clear });
            }
            ClusterEffect::Admit { ask } => {
                if let Some(session) = self.gateway(at).asks.remove(&ask)
                    && self.is_clear(at, cookie(session))
                {
                    self.counts.let_in += 1;
                    self.sessions[session as usize].tunnel = true;
                }
            }
            ClusterEffect::Refuse { ask, .. } => {
                self.counts.refused += 1;
                self.gateway(at).asks.remove(&ask);
            }
            ClusterEffect::End { session: ended, .. } => {
                if let Ok(session) = u32::try_from(session_of(&ended)) {
                    self.end(session);
                }
            }
            ClusterEffect::Passed { session: passed, at: place, claimed } => {
                if let Some(row) = self.sessions.get_mut(session_of(&passed)) {
                    (row.passed, row.claimed, row.at) = (true, claimed, place.unwrap_or(0));
                }
            }
            ClusterEffect::Note { .. } => self.counts.notes += 1,
        }
    }

    fn write(&mut self, at: u16, errand: u64) {
        let life = self.gateway(at).life;
        let when = self.now + self.random.between(MS / 2, 5 * MS);
        self.queue.give(when, What::InForce { at, life, errand });
    }

    fn is_clear(&self, at: u16, id: SessionId) -> bool {
        let gateway = &self.gateways[usize::from(at)];
        self.sessions
            .get(session_of(&id))
            .is_some_and(|row| row.gateway == at && !row.dead && !gateway.locked.contains_key(&row.person))
    }

    /// Those that a record is about, and whose cookie is worth something.
    pub fn meant(&self, over: &Over) -> Vec<u32> {
        match over {
            Over::User(who) | Over::Lock(who) => {
                self.of_person.get(number_of(who) as usize).cloned().unwrap_or_default()
            }
            Over::Session(id) => {
                let number = session_of(&SessionId::Vpn(*id));
                let lives = self.sessions.get(number).is_some_and(|row| !row.dead);
                u32::try_from(number).ok().filter(|_| lives).into_iter().collect()
            }
            Over::Web(_) => Vec::new(),
        }
    }

    /// Nothing of it is forwarded from now on.
    pub fn end(&mut self, session: u32) {
        let row = &mut self.sessions[session as usize];
        if std::mem::replace(&mut row.dead, true) {
            return;
        }
        row.tunnel = false;
        let Session { person, gateway: at, .. } = *row;
        self.counts.ended += 1;
        self.digest.add(u64::from(session));
        self.of_person[person as usize].retain(|other| *other != session);
        let when = self.now + self.random.between(SECOND / 2, 3 * SECOND);
        let life = self.gateway(at).life;
        self.queue.give(when, What::CookieGone { at, life, session, stray: false });
        if let Some(since) = self.due.remove(&session) {
            self.was_late(at, since);
        }
    }

    fn was_late(&mut self, at: u16, since: Time) {
        let gateway = &self.gateways[usize::from(at)];
        let (well, up) = (gateway.well_since, gateway.up_since);
        if up <= since && well <= since {
            self.worst.connected = self.worst.connected.max(self.now - since);
            if self.now - since > BOUND_CONNECTED {
                self.broken.push(format!("a session was over {} ms late", (self.now - since) / MS));
            }
        } else {
            // before its way was free nobody could tell it
            let late = self.now.saturating_sub(since.max(well));
            self.worst.healed = self.worst.healed.max(late);
            if late > BOUND_HEALED {
                self.broken.push(format!("a session was over {} ms after all was well", late / MS));
            }
        }
    }

    /// As by the command line there.
    pub fn decide(&mut self, at: u16, over: Over) {
        self.counts.decisions += 1;
        let count = u32::try_from(self.sessions.len()).unwrap_or(u32::MAX);
        let now = self.now;
        let gateway = self.gateway(at);
        gateway.next_number += 1;
        let (number, mine) = (gateway.next_number, Author::Gateway(gateway.id));
        let record = Record {
            number,
            by: "uid 0".into(),
            reason: "simulated".into(),
            at: now / SECOND,
            until: None,
            lasts: None,
        };
        let key = enforcer::session::LetterKey::Decided(over.clone());
        gateway.disk.write(key, gateway::Letter::Decided(number, record.clone()));
        if let Over::Lock(who) = &over {
            gateway.lock(mine, number_of(who), None);
            gateway.lock_numbers.insert(number_of(who), number);
        }
        self.decided.insert((at, number), (count, now));
        for session in self.meant(&over) {
            if self.sessions[session as usize].gateway == at {
                self.end(session);
            }
        }
        self.give(at, ClusterEvent::Decided { number, over, record });
    }

    /// A gateway lifts a lock that it knows.
    pub fn lift(&mut self, at: u16, author: u16, person: u32) {
        let author = Author::Gateway(self.gateway(author).id);
        let Some(stood) = self.gateway(at).unlock(author, person) else { return };
        self.counts.lifts += 1;
        let over = Over::Lock(identity(person));
        let key = enforcer::session::LetterKey::Lifted(author, over.clone());
        self.gateway(at).disk.write(key, gateway::Letter::Lifted(stood));
        self.give(at, ClusterEvent::Lifted { author, over, up_to: stood, by: "uid 0".into() });
    }

    /// A client comes with a cookie that it has.
    pub fn knock(&mut self, session: u32) {
        let row = self.sessions[session as usize];
        let at = row.gateway;
        if !self.is_up(at) || !self.is_clear(at, cookie(session)) {
            self.counts.refused += 1;
            return;
        }
        let gateway = self.gateway(at);
        gateway.last_ask += 1;
        let ask = gateway.last_ask;
        gateway.asks.insert(ask, session);
        let event = ClusterEvent::Asked {
            ask,
            who: identity(row.person),
            session: cookie(session),
            limit: limit(row.person),
            when_away: when_away(row.person),
        };
        self.give(at, event);
    }

    fn send(&mut self, at: u16, ticket: u64, txn: Txn) {
        let delay = self.delay();
        let now = self.now;
        let gateway = self.gateway(at);
        if !gateway.ways.there {
            return gateway.stuck.push((ticket, txn));
        }
        gateway.last_sent = (now + delay).max(gateway.last_sent + 1);
        let (when, connection) = (gateway.last_sent, gateway.connection);
        self.queue.give(when, What::Arrive { at, connection, ticket, txn: Box::new(txn) });
    }

    pub fn commit(&mut self, txn: &Txn) -> enforcer::registry::cluster::Outcome {
        let outcome = self.etcd.commit(self.now, txn);
        self.digest.add(outcome.revision ^ self.now << 20);
        for op in if outcome.held { &txn.then } else { &txn.otherwise } {
            if let Op::Put(Key::Record(author, over), Value::Record(record)) = op {
                self.is_due(*author, over, record);
            }
        }
        for at in std::mem::take(&mut self.asleep) {
            self.wake(at);
        }
        outcome
    }

    fn is_due(&mut self, author: Author, over: &Over, record: &Record) {
        let mut mine = None;
        if let Author::Gateway(id) = author
            && record.number != 0
        {
            let at = place_of(id);
            if let Some((count, since)) = self.decided.remove(&(at, record.number)) {
                mine = Some((at, count));
                self.was_told(at, since);
            } else {
                // it was told before
                mine = Some((at, 0));
            }
        }
        for session in self.meant(over) {
            let row = self.sessions[session as usize];
            // a fresh login where it was entered, after that, is meant to live
            if !mine.is_some_and(|(at, count)| row.gateway == at && session >= count) {
                self.due.entry(session).or_insert(self.now);
            }
        }
    }

    fn was_told(&mut self, at: u16, since: Time) {
        let gateway = &self.gateways[usize::from(at)];
        if gateway.up_since <= since && gateway.well_since <= since {
            self.worst.told = self.worst.told.max(self.now - since);
            if self.now - since > BOUND_TOLD {
                self.broken.push(format!("a decision was in etcd {} ms late", (self.now - since) / MS));
            }
        } else {
            let late = self.now.saturating_sub(since.max(gateway.well_since));
            self.worst.told_healed = self.worst.told_healed.max(late);
            if late > BOUND_TOLD_HEALED {
                self.broken.push(format!("a decision was in etcd {} ms after all was well", late / MS));
            }
        }
    }

    fn wake(&mut self, at: u16) {
        let delay = self.delay();
        let when = (self.now + delay).next_multiple_of(STEP);
        let gateway = self.gateway(at);
        if gateway.connected && !std::mem::replace(&mut gateway.wakes, true) {
            let connection = gateway.connection;
            self.queue.give(when, What::Wake { at, connection });
        }
    }

    fn woken(&mut self, at: u16, connection: u32) {
        let now = self.now;
        let gateway = self.gateway(at);
        if gateway.connection != connection {
            return;
        }
        gateway.wakes = false;
        if !gateway.connected || !gateway.ways.back {
            return;
        }
        let place = gateway.place;
        if let Some((revision, changes, next)) = self.etcd.read(place, now - MS) {
            let gateway = self.gateway(at);
            (gateway.place, gateway.read) = (next, revision);
            self.give(at, ClusterEvent::Changed { revision, changes });
        }
        match self.etcd.end() > self.gateway(at).place {
            true => self.wake(at),
            false => self.asleep.push(at),
        }
    }

    fn start(&mut self, at: u16) {
        let now = gateway::now(self.now);
        let gateway = self.gateway(at);
        gateway.cluster = Some(Cluster::new(gateway::rules(gateway.id, gateway.disk.known), now));
        gateway.is_new = true;
        let sessions: Vec<u32> = gateway.sessions.iter().copied().collect();
        let letters = gateway.letters();
        for session in sessions {
            let row = self.sessions[session as usize];
            if row.passed && !row.dead {
                let event = ClusterEvent::Remembered {
                    who: identity(row.person),
                    session: cookie(session),
                    at: (row.at > 0).then_some(row.at),
                    claimed: row.claimed,
                    limit: limit(row.person),
                };
                self.give(at, event);
            }
        }
        letters.into_iter().for_each(|event| self.give(at, event));
        self.connect_soon(at);
    }

    fn connect_soon(&mut self, at: u16) {
        let when = self.now + self.random.between(PAUSE / 50, PAUSE);
        let connection = self.gateway(at).connection;
        self.queue.give(when, What::Connect { at, connection });
    }

    fn connect(&mut self, at: u16, connection: u32) {
        let gateway = &self.gateways[usize::from(at)];
        if gateway.connection != connection || gateway.cluster.is_none() {
            return;
        }
        if !(gateway.ways.there && gateway.ways.back) {
            return self.connect_soon(at);
        }
        let (state, revision, place) = match !gateway.is_new && self.etcd.has(gateway.place, self.now) {
            true => (None, gateway.read, gateway.place),
            false => (Some(self.etcd.state()), self.etcd.revision, self.etcd.end()),
        };
        let (fence, up) = (self.random.between(MS, 20 * MS), self.random.between(25 * MS, READING));
        self.queue.give(self.now + fence, What::Fence { at, connection });
        self.queue.give(self.now + up, What::Up { at, connection, revision, state, place });
    }

    /// The connection is over: of what was on its way some may come yet, until the next one has begun.
    pub fn disconnect(&mut self, at: u16) {
        let now = self.now;
        let gateway = self.gateway(at);
        let (stuck, connection) = (std::mem::take(&mut gateway.stuck), gateway.connection);
        gateway.connection += 1;
        gateway.wakes = false;
        gateway.up_since = Time::MAX;
        if std::mem::take(&mut gateway.connected) {
            self.etcd.watchers -= 1;
            let over = self.gateway(at).connection;
            self.queue.give(now + LEASE, What::LeaseOver { at, connection: over });
        }
        for (ticket, txn) in stuck {
            if self.random.chance(30) {
                let when = now + self.random.below(PAUSE);
                self.queue.give(when, What::Arrive { at, connection, ticket, txn: Box::new(txn) });
            }
        }
    }

    pub fn cut(&mut self, at: u16, ways: Ways, time: Time) {
        let notice = self.now + self.random.between(NOTICED / 3, NOTICED);
        let now = self.now;
        let gateway = self.gateway(at);
        gateway.ways = ways;
        // until it heals it is not well
        gateway.well_since = now + time;
        let connection = gateway.connection;
        self.queue.give(notice, What::Lost { at, connection });
        self.queue.give(now + time, What::Heal { at });
    }

    pub fn crash(&mut self, at: u16, time: Time) {
        self.counts.crashes += 1;
        self.disconnect(at);
        let now = self.now;
        let gateway = self.gateway(at);
        gateway.cluster = None;
        gateway.life += 1;
        gateway.asks.clear();
        gateway.well_since = gateway.well_since.max(now + time);
        self.queue.give(now + time, What::Restart { at });
    }

    pub fn is_well(&self, at: u16) -> bool {
        self.gateways[usize::from(at)].well_since <= self.now
    }

    /// What is not the people's doing.
    pub fn happen(&mut self, what: What) {
        match what {
            What::Arrive { at, connection, ticket, txn } => {
                if self.gateway(at).fence != connection {
                    return;
                }
                let outcome = Box::new(self.commit(&txn));
                let when = self.now + self.delay();
                let gateway = self.gateway(at);
                gateway.last_answered = when.max(gateway.last_answered + 1);
                let when = gateway.last_answered;
                self.queue.give(when, What::Answer { at, connection, ticket, outcome });
            }
            What::Answer { at, connection, ticket, outcome } => {
                let gateway = self.gateway(at);
                if gateway.connection != connection || !gateway.connected {
                    return;
                }
                if !gateway.ways.back {
                    // it comes when the way is free, if the connection lives so long
                    let when = self.now + 50 * MS;
                    return self.queue.give(when, What::Answer { at, connection, ticket, outcome });
                }
                self.give(at, ClusterEvent::Done { ticket, outcome: Ok::<_, Trouble>(*outcome) });
            }
            What::Wake { at, connection } => self.woken(at, connection),
            What::InForce { at, life, errand } => {
                if self.gateway(at).life == life {
                    self.give(at, ClusterEvent::InForce { errand });
                }
            }
            What::Tick { at } => {
                self.give(at, ClusterEvent::Tick);
                self.queue.give(self.now + TICK, What::Tick { at });
            }
            What::CookieGone { at, life, session, stray } => {
                if self.gateway(at).life != life || !self.is_up(at) {
                    return;
                }
                let row = self.sessions[session as usize];
                self.give(at, ClusterEvent::CookieGone { session: cookie(session) });
                if stray || !row.passed {
                    let who = identity(row.person);
                    self.give(at, ClusterEvent::Stray { who, session: cookie(session) });
                }
                if !self.etcd.admissions().contains(&cookie(session)) {
                    self.gateway(at).sessions.remove(&session);
                }
            }
            What::Lost { at, connection } => {
                let gateway = self.gateway(at);
                let is_lost = !(gateway.ways.there && gateway.ways.back);
                if gateway.connection == connection && gateway.connected && is_lost {
                    self.disconnect(at);
                    self.give(at, ClusterEvent::Down);
                    self.connect_soon(at);
                }
            }
            What::Connect { at, connection } => self.connect(at, connection),
            What::Fence { at, connection } => {
                if self.gateway(at).connection == connection {
                    self.gateway(at).fence = connection;
                }
            }
            What::Up { at, connection, revision, state, place } => {
                self.up(at, connection, revision, state, place)
            }
            What::LeaseOver { at, connection } => {
                let gateway = self.gateway(at);
                if gateway.connection == connection && !gateway.connected {
                    let then = vec![Op::Delete(Key::Alive(gateway.id))];
                    self.commit(&Txn { then, ..Txn::default() });
                }
            }
            What::Heal { at } => self.heal(at),
            What::Restart { at } => {
                if !self.is_up(at) {
                    self.start(at);
                }
            }
            What::Login | What::Decide | What::Lift { .. } | What::Fault => {}
        }
    }

    fn heal(&mut self, at: u16) {
        let gateway = self.gateway(at);
        gateway.ways = Ways { there: true, back: true };
        for (ticket, txn) in std::mem::take(&mut gateway.stuck) {
            self.send(at, ticket, txn);
        }
        self.wake(at);
    }

    fn up(
        &mut self,
        at: u16,
        connection: u32,
        revision: Revision,
        state: Option<Vec<enforcer::registry::cluster::Change>>,
        place: u64,
    ) {
        let now = self.now;
        let gateway = self.gateway(at);
        if gateway.connection != connection || gateway.cluster.is_none() {
            return;
        }
        if !(gateway.ways.there && gateway.ways.back) {
            return self.connect_soon(at);
        }
        (gateway.connected, gateway.place, gateway.read, gateway.up_since) = (true, place, revision, now);
        let (was_new, life) = (std::mem::take(&mut gateway.is_new), gateway.life);
        self.etcd.watchers += 1;
        self.give(at, ClusterEvent::Up { revision, state });
        self.wake(at);
        if was_new {
            // what stands in etcd and is not here: an earlier life was killed in between
            let all: Vec<u32> = self.gateway(at).sessions.iter().copied().collect();
            for session in all {
                if self.sessions[session as usize].dead {
                    self.queue.give(now + SECOND, What::CookieGone { at, life, session, stray: true });
                }
            }
        }
    }
}
