//! Gateways around the rules: cookies that die or pass, and a disk that survives a crash.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::session::{Identity, SessionId};

use super::super::super::{Ask, Now, Number};
use super::super::Cluster;
use super::super::words::{
    Author, ClusterEffect, ClusterEvent, ClusterRules, Errand, GatewayId, Key, LetterKey, Limit, Op, Outcome,
    Over, Record, Revision, Ticket, Trouble, Txn, Value, WhenAway, Yields,
};
use super::cookie;
use super::etcd::Etcd;

pub(super) const LOGIN_WAIT: Duration = Duration::from_secs(2);

const START: Duration = Duration::from_secs(1_000);

#[derive(Debug, Clone)]
pub(super) struct Cookie {
    pub who: Identity,
    pub dead: bool,
    pub tunnel: bool,
    /// The registry knows of it, and can end it: a session at a web gateway is made once its login has passed.
    pub is_there: bool,
    /// The how manieth it is.
    pub number: u32,
    /// What has ended it.
    pub why: Option<String>,
}

/// What survives a crash.
#[derive(Debug, Default)]
struct Disk {
    known: Revision,
    carried_out: BTreeSet<(Revision, Author, Over)>,
    passed: BTreeMap<SessionId, (Identity, Option<Revision>, bool)>,
    /// In the order in which they were written.
    letters: Vec<(LetterKey, Letter)>,
}

/// An errand, where its record stands, and what of it the disk has once it is in force.
type Started = (Errand, Revision, Option<(Author, Over)>);

#[derive(Debug, Clone)]
enum Letter {
    Decided(Number, Record),
    Lifted(Option<Revision>),
}

impl Disk {
    fn write(&mut self, key: LetterKey, letter: Letter) {
        self.letters.retain(|(of, _)| *of != key);
        self.letters.push((key, letter));
    }
}

pub(super) struct Gateway {
    pub id: GatewayId,
    pub cluster: Cluster,
    disk: Disk,
    pub cookies: BTreeMap<SessionId, Cookie>,
    /// Where they stand; `None`: not in etcd yet.
    pub locks: BTreeMap<(Author, Identity), Option<Revision>>,
    /// Of those of its own.
    lock_numbers: BTreeMap<Identity, Number>,
    /// What it was told of as being in etcd.
    pub told: Vec<(Number, Over)>,
    pub connected: bool,
    /// It takes etcd's answers and news no longer; etcd takes what it says.
    pub deaf: bool,
    /// It has read nothing since it was started.
    is_new: bool,
    has_crashed: bool,
    read: Revision,
    sent: VecDeque<(Ticket, Txn)>,
    /// What an earlier connection has left on its way: done before the first order of the next one, or never.
    late: VecDeque<Txn>,
    answers: VecDeque<(Ticket, Result<Outcome, Trouble>)>,
    errands: VecDeque<Started>,
    dead: VecDeque<SessionId>,
    asks: BTreeMap<Ask, SessionId>,
    last_ask: Ask,
    next_number: Number,
}

pub(super) struct World {
    pub etcd: Etcd,
    pub gateways: Vec<Gateway>,
    pub now: Duration,
    pub limit: Option<Limit>,
    pub when_away: WhenAway,
    next_cookie: u32,
    /// Of each person's records: what was there when it was written, and must be over in the end.
    pub ended: Vec<(Revision, Over, Vec<SessionId>)>,
    pub notes: Vec<String>,
    /// How many cookies there were when that was decided.
    decided: BTreeMap<(GatewayId, Number), u32>,
}

fn rules(id: GatewayId, known: Revision) -> ClusterRules {
    ClusterRules { me: id, name: format!("gw{}", id.as_bytes()[0]), login_wait: LOGIN_WAIT, known }
}

impl World {
    pub fn new(gateways: u8, limit: Option<Limit>, when_away: WhenAway) -> Self {
        let gateways = (1..=gateways).map(|n| Gateway::new(GatewayId::from_bytes([n; 16]))).collect();
        let now = START;
        Self {
            etcd: Etcd::default(),
            gateways,
            now,
            limit,
            when_away,
            next_cookie: 0,
            ended: Vec::new(),
            notes: Vec::new(),
            decided: BTreeMap::new(),
        }
    }

    fn give(&mut self, at: usize, event: ClusterEvent) {
        let now = Now { mono: self.now, wall: 0 };
        let effects = self.gateways[at].cluster.handle(event, now);
        for effect in effects {
            self.apply(at, effect);
        }
    }

    fn apply(&mut self, at: usize, effect: ClusterEffect) {
        let gateway = &mut self.gateways[at];
        match effect {
            ClusterEffect::Commit { ticket, txn } => {
                gateway.say(&txn);
                gateway.sent.push_back((ticket, txn));
            }
            ClusterEffect::Order { errand, author, over, revision, spare, .. } => {
                if !gateway.disk.carried_out.contains(&(revision, author, over.clone())) {
                    gateway.is_fair(&over, revision, &spare);
                    gateway.end(&over, &spare, &format!("{over:?} at {revision}"));
                    if let Over::Lock(who) = &over {
                        gateway.locks.insert((author, who.clone()), Some(revision));
                    }
                }
                gateway.errands.push_back((errand, revision, Some((author, over))));
            }
            ClusterEffect::TakeBack { errand, author, over, up_to, .. } => {
                if let Over::Lock(who) = over {
                    let lock = (author, who);
                    if gateway.locks.get(&lock).is_some_and(|at| at.is_some_and(|at| at <= up_to)) {
                        gateway.locks.remove(&lock);
                    }
                }
                // where a lift stands is not told
                gateway.errands.push_back((errand, Revision::MAX, None));
            }
            ClusterEffect::Told { number, over, revision } => {
                gateway.told.push((number, over.clone()));
                if let Over::Lock(who) = over {
                    let lock = (Author::Gateway(gateway.id), who);
                    if gateway.lock_numbers.get(&lock.1) == Some(&number) {
                        gateway.locks.insert(lock, Some(revision));
                    }
                }
            }
            ClusterEffect::LetterTold { key } => {
                assert!(gateway.disk.letters.iter().any(|(of, _)| *of == key), "told twice: {key:?}");
                gateway.disk.letters.retain(|(of, _)| *of != key);
            }
            ClusterEffect::Known { revision } => {
                gateway.is_in_force(revision);
                gateway.disk.known = revision;
            }
            ClusterEffect::Look { knock, session } => {
                let clear = gateway.is_clear(session);
                if !clear {
                    gateway.no_session(session);
                }
                self.give(at, ClusterEvent::Looked { knock, clear });
            }
            ClusterEffect::Admit { ask } => {
                let Some(id) = gateway.asks.remove(&ask) else { return };
                if !gateway.is_clear(id) {
                    gateway.no_session(id);
                } else if let Some(cookie) = gateway.cookies.get_mut(&id) {
                    (cookie.tunnel, cookie.is_there) = (true, true);
                }
            }
            ClusterEffect::Refuse { ask, .. } => {
                if let Some(id) = gateway.asks.remove(&ask) {
                    gateway.no_session(id);
                }
            }
            ClusterEffect::End { session, why } => gateway.end(&session.over(), &BTreeSet::new(), &why),
            ClusterEffect::Passed { session, at, claimed } => {
                if let Some(cookie) = gateway.cookies.get(&session) {
                    gateway.disk.passed.insert(session, (cookie.who.clone(), at, claimed));
                }
            }
            ClusterEffect::Note { text } => self.notes.push(text),
        }
    }

    /// A fresh authentication, and its client at the gate.
    pub fn login(&mut self, at: usize, who: &Identity) -> SessionId {
        self.next_cookie += 1;
        let id = cookie(self.next_cookie);
        // without a limit nobody is asked about a session at a web gateway
        let is_made = is_web(&id) && self.limit.is_none() && !self.gateways[at].is_locked(who);
        let fresh = Cookie {
            who: who.clone(),
            dead: false,
            tunnel: is_made,
            is_there: is_made || !is_web(&id),
            number: self.next_cookie,
            why: None,
        };
        self.gateways[at].cookies.insert(id, fresh);
        if !is_made {
            self.ask(at, id);
        }
        id
    }

    /// The next login is one at a web gateway.
    pub fn web_login(&mut self, at: usize, who: &Identity) -> SessionId {
        while !is_web(&cookie(self.next_cookie + 1)) {
            self.next_cookie += 1;
        }
        self.login(at, who)
    }

    /// A client comes with a cookie that it has.
    pub fn knock(&mut self, at: usize, id: SessionId) {
        if !is_web(&id) {
            self.ask(at, id);
        }
    }

    fn ask(&mut self, at: usize, id: SessionId) {
        let (limit, when_away) = (self.limit, self.when_away);
        let gateway = &mut self.gateways[at];
        let Some(cookie) = gateway.cookies.get(&id) else { return };
        if !gateway.is_clear(id) {
            return gateway.no_session(id);
        }
        gateway.last_ask += 1;
        let (ask, who) = (gateway.last_ask, cookie.who.clone());
        gateway.asks.insert(ask, id);
        self.give(at, ClusterEvent::Asked { ask, who, session: id, limit, when_away });
    }

    pub fn leave(&mut self, at: usize, id: SessionId) {
        if let Some(cookie) = self.gateways[at].cookies.get_mut(&id).filter(|_| !is_web(&id)) {
            cookie.tunnel = false;
        }
    }

    /// As by the command line of that gateway.
    pub fn decide(&mut self, at: usize, over: Over) -> Number {
        self.decide_of(at, vec![over])
    }

    /// One decision of several persons.
    pub fn decide_of(&mut self, at: usize, overs: Vec<Over>) -> Number {
        let gateway = &mut self.gateways[at];
        gateway.next_number += 1;
        let number = gateway.next_number;
        self.decided.insert((gateway.id, number), self.next_cookie);
        for over in overs {
            let gateway = &mut self.gateways[at];
            let record = Record {
                number,
                by: "uid 0".into(),
                reason: "test".into(),
                at: 0,
                until: None,
                lasts: Some(60),
            };
            gateway.end(&over, &BTreeSet::new(), &format!("{over:?}, here"));
            if let Over::Lock(who) = &over {
                gateway.locks.insert((Author::Gateway(gateway.id), who.clone()), None);
                gateway.lock_numbers.insert(who.clone(), number);
            }
            gateway.disk.write(LetterKey::Decided(over.clone()), Letter::Decided(number, record.clone()));
            // a lock may be lifted before anybody else hears of it
            if !matches!(over, Over::Lock(_)) {
                let mut ids = self.meant(&over, |_| u32::MAX);
                // whoever waits here came before it
                let gateway = &self.gateways[at];
                let waits = |id: &SessionId| {
                    gateway.cookies.get(id).is_some_and(|its| Some(&its.who) == over.person())
                };
                ids.extend(gateway.asks.values().copied().filter(waits));
                self.ended.push((0, over.clone(), ids));
            }
            self.give(at, ClusterEvent::Decided { number, over, record });
        }
        number
    }

    /// That gateway lifts a lock of its own, or one that it has learned of.
    pub fn lift(&mut self, at: usize, author: usize, who: &Identity) {
        let author = Author::Gateway(self.gateways[author].id);
        let gateway = &mut self.gateways[at];
        let Some(stood) = gateway.locks.remove(&(author, who.clone())) else { return };
        let over = Over::Lock(who.clone());
        gateway.disk.write(LetterKey::Lifted(author, over.clone()), Letter::Lifted(stood));
        self.give(at, ClusterEvent::Lifted { author, over, up_to: stood, by: "uid 0".into() });
    }

    /// An administrator writes with etcdctl.
    pub fn by_hand(&mut self, over: Over) {
        let record = Record {
            number: 0,
            by: "etcdctl".into(),
            reason: String::new(),
            at: 0,
            until: None,
            lasts: None,
        };
        let then = vec![Op::Put(Key::Record(Author::Admin, over), Value::Record(record))];
        self.commit(&Txn { then, ..Txn::default() });
    }

    fn commit(&mut self, txn: &Txn) -> Outcome {
        let outcome = self.etcd.commit(txn);
        for op in if outcome.held { &txn.then } else { &txn.otherwise } {
            let Op::Put(Key::Record(author, over), Value::Record(record)) = op else { continue };
            // a fresh login at the gateway where it was entered, after it was entered, is meant to live
            let ids = self.meant(over, |id| {
                let mine = *author == Author::Gateway(id);
                self.decided.get(&(id, record.number)).filter(|_| mine).copied().unwrap_or(u32::MAX)
            });
            self.ended.push((outcome.revision, over.clone(), ids));
        }
        outcome
    }

    /// The sessions that there are, or have a place already, up to a number at each gateway.
    fn meant(&self, over: &Over, most: impl Fn(GatewayId) -> u32) -> Vec<SessionId> {
        let mut ids = Vec::new();
        for gateway in &self.gateways {
            let most = most(gateway.id);
            let meant = gateway.cookies.iter().filter(|(id, cookie)| match over {
                Over::Session(_) | Over::Web(_) => *over == id.over(),
                over => over.person() == Some(&cookie.who) && cookie.number <= most,
            });
            let meant = meant.filter(|(id, cookie)| {
                let place = || Key::Admission(gateway.id, cookie.who.clone(), **id);
                cookie.is_there || self.etcd.keys.contains_key(&place())
            });
            ids.extend(meant.map(|(id, _)| *id));
        }
        ids
    }

    /// etcd takes the next thing that this gateway has said.
    pub fn carry(&mut self, at: usize) -> bool {
        if !self.gateways[at].connected {
            return false;
        }
        let Some((ticket, txn)) = self.gateways[at].sent.pop_front() else { return false };
        self.gateways[at].late.clear();
        let outcome = self.commit(&txn);
        self.gateways[at].answers.push_back((ticket, Ok(outcome)));
        true
    }

    /// etcd takes what a connection that is lost has said last.
    pub fn carry_late(&mut self, at: usize) {
        if let Some(txn) = self.gateways[at].late.pop_front() {
            self.commit(&txn);
        }
    }

    pub fn answer(&mut self, at: usize) -> bool {
        let gateway = &mut self.gateways[at];
        if !gateway.connected || gateway.deaf {
            return false;
        }
        let Some((ticket, outcome)) = gateway.answers.pop_front() else { return false };
        self.give(at, ClusterEvent::Done { ticket, outcome });
        true
    }

    /// It reads the next thing that etcd tells.
    pub fn read(&mut self, at: usize) -> bool {
        let gateway = &mut self.gateways[at];
        if !gateway.connected || gateway.deaf {
            return false;
        }
        let Some((revision, changes)) = self.etcd.after(gateway.read) else { return false };
        gateway.read = revision;
        self.give(at, ClusterEvent::Changed { revision, changes });
        true
    }

    pub fn run_errand(&mut self, at: usize) -> bool {
        let gateway = &mut self.gateways[at];
        let Some((errand, revision, order)) = gateway.errands.pop_front() else { return false };
        gateway.disk.carried_out.extend(order.map(|(author, over)| (revision, author, over)));
        self.give(at, ClusterEvent::InForce { errand });
        true
    }

    /// It finds that a cookie is gone.
    pub fn find_dead(&mut self, at: usize) -> bool {
        let Some(session) = self.gateways[at].dead.pop_front() else { return false };
        let passed = self.gateways[at].disk.passed.remove(&session);
        self.give(at, ClusterEvent::CookieGone { session });
        let who = self.gateways[at].cookies.get(&session).map(|cookie| cookie.who.clone());
        // as if its key was listed after a restart: whether it is there does not matter
        if let (None, Some(who), true) = (passed, who, self.gateways[at].has_crashed) {
            self.give(at, ClusterEvent::Stray { who, session });
        }
        true
    }

    pub fn cut(&mut self, at: usize) {
        let gateway = &mut self.gateways[at];
        if std::mem::take(&mut gateway.connected) {
            gateway.lose();
            self.give(at, ClusterEvent::Down);
        }
    }

    pub fn connect(&mut self, at: usize) {
        let gateway = &mut self.gateways[at];
        if !gateway.connected {
            gateway.connected = true;
            gateway.deaf = false;
            gateway.is_new = false;
            gateway.read = self.etcd.revision;
            let (revision, state) = (self.etcd.revision, Some(self.etcd.state()));
            self.give(at, ClusterEvent::Up { revision, state });
        }
    }

    /// It goes on where its connection broke.
    pub fn resume(&mut self, at: usize) {
        let gateway = &mut self.gateways[at];
        if !gateway.connected && !gateway.is_new {
            gateway.connected = true;
            gateway.deaf = false;
            let revision = gateway.read;
            self.give(at, ClusterEvent::Up { revision, state: None });
        }
    }

    pub fn crash(&mut self, at: usize) {
        let gateway = &mut self.gateways[at];
        gateway.connected = false;
        (gateway.is_new, gateway.has_crashed) = (true, true);
        gateway.lose();
        gateway.errands.clear();
        let waited: Vec<SessionId> = std::mem::take(&mut gateway.asks).into_values().collect();
        waited.into_iter().for_each(|id| gateway.no_session(id));
        gateway.cluster =
            Cluster::new(rules(gateway.id, gateway.disk.known), Now { mono: self.now, wall: 0 });
        gateway.dead = gateway.cookies.iter().filter(|(_, c)| c.dead).map(|(id, _)| *id).collect();
        let passed = gateway.disk.passed.clone();
        let letters = gateway.disk.letters.clone();
        for (session, (who, at_revision, claimed)) in passed {
            let limit = self.limit;
            self.give(at, ClusterEvent::Remembered { who, session, at: at_revision, claimed, limit });
        }
        for (key, letter) in letters {
            let event = match (key, letter) {
                (LetterKey::Decided(over), Letter::Decided(number, record)) => {
                    ClusterEvent::Decided { number, over, record }
                }
                (LetterKey::Lifted(author, over), Letter::Lifted(up_to)) => {
                    ClusterEvent::Lifted { author, over, up_to, by: "uid 0".into() }
                }
                _ => unreachable!(),
            };
            self.give(at, event);
        }
    }

    pub fn wait(&mut self, by: Duration) {
        self.now += by;
        for at in 0..self.gateways.len() {
            self.give(at, ClusterEvent::Tick);
        }
    }

    /// Everything heals, and goes on until nothing more happens.
    pub fn settle(&mut self) {
        for at in 0..self.gateways.len() {
            if self.gateways[at].deaf {
                self.cut(at);
            }
            self.connect(at);
        }
        for turn in 0.. {
            assert!(turn < 100_000, "it does not come to rest");
            let mut moved = false;
            for at in 0..self.gateways.len() {
                moved |= self.carry(at)
                    | self.answer(at)
                    | self.read(at)
                    | self.run_errand(at)
                    | self.find_dead(at);
            }
            if !moved {
                return;
            }
        }
    }
}

impl Gateway {
    pub fn new(id: GatewayId) -> Self {
        Self {
            id,
            cluster: Cluster::new(rules(id, 0), Now { mono: START, wall: 0 }),
            disk: Disk::default(),
            cookies: BTreeMap::new(),
            locks: BTreeMap::new(),
            lock_numbers: BTreeMap::new(),
            told: Vec::new(),
            connected: false,
            deaf: false,
            is_new: true,
            has_crashed: false,
            read: 0,
            sent: VecDeque::new(),
            late: VecDeque::new(),
            answers: VecDeque::new(),
            errands: VecDeque::new(),
            dead: VecDeque::new(),
            asks: BTreeMap::new(),
            last_ask: 0,
            next_number: 0,
        }
    }

    pub fn is_clear(&self, id: SessionId) -> bool {
        self.cookies.get(&id).is_some_and(|cookie| !cookie.dead && !self.is_locked(&cookie.who))
    }

    fn is_locked(&self, who: &Identity) -> bool {
        self.locks.keys().any(|(_, locked)| locked == who)
    }

    /// A cookie of a VPN may come again; of a login at a web gateway nothing is left.
    fn no_session(&mut self, id: SessionId) {
        if let Some(cookie) = self.cookies.get_mut(&id).filter(|cookie| !cookie.is_there && !cookie.dead) {
            cookie.dead = true;
            cookie.why = Some("its login was refused".into());
            self.dead.push_back(id);
        }
    }

    fn lose(&mut self) {
        self.late.extend(self.sent.drain(..).map(|(_, txn)| txn));
        self.answers.clear();
    }

    /// What it tells the others about itself.
    fn say(&self, txn: &Txn) {
        for op in &txn.then {
            if let Op::Put(Key::Acknowledged(_), Value::Acknowledged(up_to)) = op {
                self.is_in_force(*up_to);
            }
        }
    }

    fn is_in_force(&self, up_to: Revision) {
        let open: Vec<_> = self.errands.iter().filter(|(_, revision, _)| *revision <= up_to).collect();
        assert!(open.is_empty(), "up to {up_to} is not in force: {open:?}");
    }

    /// Nobody who was admitted after a record of his person is ended by it.
    fn is_fair(&self, over: &Over, revision: Revision, spare: &BTreeSet<SessionId>) {
        let Some(person) = over.person() else { return };
        for (id, (who, at, _)) in &self.disk.passed {
            let after = who == person && *at > Some(revision);
            assert!(
                !after || spare.contains(id),
                "{id} passed at {at:?} and is ended by {over:?} at {revision}"
            );
        }
    }

    pub fn letters(&self) -> usize {
        self.disk.letters.len()
    }

    fn end(&mut self, over: &Over, spare: &BTreeSet<SessionId>, why: &str) {
        for (id, cookie) in &mut self.cookies {
            let meant = match over {
                Over::Session(_) | Over::Web(_) => *over == id.over(),
                over => over.person() == Some(&cookie.who) && !spare.contains(id),
            };
            if meant && cookie.is_there && !cookie.dead {
                (cookie.dead, cookie.tunnel) = (true, false);
                cookie.why = Some(why.to_owned());
                self.dead.push_back(*id);
            }
        }
    }

    pub fn alive(&self) -> impl Iterator<Item = (&SessionId, &Cookie)> {
        self.cookies.iter().filter(|(_, cookie)| !cookie.dead)
    }
}

fn is_web(id: &SessionId) -> bool {
    matches!(id, SessionId::Web(_))
}

pub(super) const ONE: Limit = Limit { most: 1, yields: Yields::Oldest };
