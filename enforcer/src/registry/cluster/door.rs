//! Who may pass the gate where several gateways have to agree.
//!
//! A login's way: a barrier is written (one for all that wait), with it the session's admission, and who has the person's
//! places is read; everything before the barrier is read and known here; the registry looks again; where places are
//! limited one is claimed, by compare-and-swap, and everything up to the claim is read once more; the registry looks for
//! the last time. What is let in while etcd is away goes the same way once it is back.
//!
//! At a web gateway there is no session yet that the registry could end while its login waits. So a login is ended here as
//! well: by a record of its person, or of the session that it would be, that stands above the login's place, and by whatever
//! this gateway decides of it meanwhile.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::session::{Identity, Over, SessionId};

use super::super::{Ask, Now};
use super::owners::{self, Claim, MOST_HOLDERS, claim};
use super::words::{
    Author, ClusterEffect, Condition, Holder, Key, Knock, Limit, Op, Out, Outcome, Owners, Record, Refusal,
    Revision, Txn, Value, WhenAway,
};
use super::{Cluster, MOST_IN_FLIGHT, Purpose};

/// How many logins one barrier is for: each may read one key and write one.
const AT_ONCE: usize = 50;
/// How many may wait.
pub const MOST_LOGINS: usize = if cfg!(test) { 500 } else { 4_096 };
/// How often a place is claimed that somebody else changes meanwhile.
const TRIES: u32 = 16;
/// Where a decision of this gateway stands that has no revision yet: whoever waits came before it.
const JUST_DECIDED: Revision = Revision::MAX;
/// Where a login stands that has no place yet, also one that is let in while etcd is away: behind all that was read (its
/// registry knows of that), but not behind what is decided here while it waits.
const NOWHERE_YET: Revision = JUST_DECIDED - 1;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Login {
    pub who: Identity,
    pub session: SessionId,
    pub limit: Option<Limit>,
    pub when_away: WhenAway,
    pub since: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    Waiting,
    /// etcd.
    Asking,
    /// Until everything up to there was read; what it orders is marked by then, though not on the disk.
    Behind(Revision, Next),
    /// The registry is asked.
    Looking(Revision, Next),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Next {
    Pass {
        claimed: bool,
    },
    /// As the places were, and since which revision.
    Places(Owners, Revision),
}

#[derive(Debug)]
struct Entry {
    login: Login,
    stage: Stage,
    tries: u32,
    /// It may have been given a place at that revision, and not before.
    since: Option<Revision>,
    /// The last of what is against it stands there.
    ended: Option<Revision>,
}

impl Entry {
    fn new(login: Login) -> Self {
        Self { login, stage: Stage::Waiting, tries: 0, since: None, ended: None }
    }

    /// It was decided after it came. `registered`: where it stands if no claim of its own has had an effect.
    fn is_over(&self, registered: Revision) -> bool {
        self.ended.is_some_and(|ended| self.since.unwrap_or(registered) < ended)
    }
}

/// A session that has passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Passed {
    who: Identity,
    /// Everything up to there was known when it passed. `None`: it was let in while etcd was away.
    at: Option<Revision>,
    /// It has a place.
    claimed: bool,
}

#[derive(Debug, Default)]
pub(super) struct Door {
    logins: BTreeMap<Knock, Entry>,
    /// Those at the gate, by whatever would be against them.
    meant_by: BTreeMap<Over, BTreeSet<Knock>>,
    waiting: VecDeque<Knock>,
    /// Those that are [`Stage::Behind`], by how far has to be read.
    behind: BTreeSet<(Revision, Knock)>,
    /// One is on its way.
    barrier: bool,
    passed: BTreeMap<SessionId, Passed>,
    by_person: BTreeMap<Identity, BTreeSet<SessionId>>,
    /// Those that were given a place, or may have been, and have not passed (yet).
    claims: BTreeMap<SessionId, Identity>,
    /// Let in while etcd was away.
    open: BTreeMap<SessionId, Login>,
    /// Whose cookie is gone, and whose keys are to be taken out.
    leaving: VecDeque<(Identity, SessionId, bool)>,
}

impl Door {
    /// That person's sessions that have passed after that revision.
    pub(super) fn admitted_after(&self, who: &Identity, revision: Revision) -> BTreeSet<SessionId> {
        let after = |id: &&SessionId| self.passed.get(*id).is_some_and(|passed| passed.at > Some(revision));
        self.by_person.get(who).map(|ids| ids.iter().filter(after).copied().collect()).unwrap_or_default()
    }

    /// It has passed, in this run or an earlier one.
    pub(super) fn remember(&mut self, login: Login, at: Option<Revision>, claimed: bool) {
        let (who, session) = (login.who.clone(), login.session);
        if at.is_none() {
            self.open.insert(session, login);
        }
        if claimed {
            self.claims.remove(&session);
        }
        self.by_person.entry(who.clone()).or_default().insert(session);
        self.passed.insert(session, Passed { who, at, claimed });
    }

    /// Whatever was asked of etcd is not answered any more.
    pub(super) fn begin_anew(&mut self) {
        self.barrier = false;
        self.behind.clear();
        self.waiting = self.logins.keys().copied().collect();
        self.logins.values_mut().for_each(|entry| entry.stage = Stage::Waiting);
    }

    pub(super) fn barrier_failed(&mut self, knocks: Vec<(Knock, bool)>) {
        self.barrier = false;
        knocks.into_iter().for_each(|(knock, _)| self.ask_again(knock));
    }

    pub(super) fn ask_again(&mut self, knock: Knock) {
        if let Some(entry) = self.logins.get_mut(&knock) {
            entry.stage = Stage::Waiting;
            self.waiting.push_back(knock);
        }
    }

    /// Whoever waits already, as with a cookie that was let in twice while etcd was away, keeps his place.
    fn knock(&mut self, knock: Knock, login: Login) {
        if self.logins.contains_key(&knock) {
            return;
        }
        // what is inside is ended by the order itself
        if matches!(knock, Knock::Gate(_)) {
            for over in ends(&login) {
                self.meant_by.entry(over).or_default().insert(knock);
            }
        }
        self.logins.insert(knock, Entry::new(login));
        self.waiting.push_back(knock);
    }

    fn take(&mut self, knock: Knock) -> Option<Login> {
        let Entry { login, .. } = self.logins.remove(&knock)?;
        for over in ends(&login) {
            if let Some(knocks) = self.meant_by.get_mut(&over) {
                knocks.remove(&knock);
                if knocks.is_empty() {
                    self.meant_by.remove(&over);
                }
            }
        }
        Some(login)
    }

    /// A record was read.
    pub(super) fn ended(&mut self, over: &Over, revision: Revision) {
        for knock in self.meant_by.get(&watermark(over)).into_iter().flatten() {
            if let Some(entry) = self.logins.get_mut(knock) {
                entry.ended = entry.ended.max(Some(revision));
            }
        }
    }

    /// This gateway has decided it.
    pub(super) fn ended_here(&mut self, over: &Over) {
        self.ended(over, JUST_DECIDED);
    }

    fn wait_for(&mut self, knock: Knock, revision: Revision, next: Next) {
        if let Some(entry) = self.logins.get_mut(&knock).filter(|entry| entry.stage == Stage::Asking) {
            entry.stage = Stage::Behind(revision, next);
            self.behind.insert((revision, knock));
        }
    }

    fn forget(&mut self, session: SessionId) -> Option<Passed> {
        self.open.remove(&session);
        let passed = self.passed.remove(&session)?;
        if let Some(ids) = self.by_person.get_mut(&passed.who) {
            ids.remove(&session);
            if ids.is_empty() {
                self.by_person.remove(&passed.who);
            }
        }
        Some(passed)
    }
}

impl Cluster {
    pub(super) fn asked(&mut self, ask: Ask, login: Login, now: Now, out: &mut Out) {
        if self.door.logins.len() >= MOST_LOGINS {
            return out.push(ClusterEffect::Refuse { ask, why: Refusal::Busy });
        }
        self.door.knock(Knock::Gate(ask), login);
        self.expire_logins(now, out);
    }

    pub(super) fn serve_logins(&mut self, out: &mut Out) {
        self.admit_the_open();
        if !self.door.barrier && self.in_flight.len() < MOST_IN_FLIGHT && !self.door.waiting.is_empty() {
            self.set_barrier(out);
        }
        while let Some((revision, _)) = self.door.behind.first()
            && *revision <= self.read
            && let Some((read, knock)) = self.door.behind.pop_first()
        {
            if let Some(entry) = self.door.logins.get_mut(&knock)
                && let Stage::Behind(revision, next) = entry.stage.clone()
                && revision == read
            {
                entry.stage = Stage::Looking(revision, next);
                out.push(ClusterEffect::Look { knock, session: entry.login.session });
            }
        }
        self.serve_the_leaving(out);
    }

    /// What was let in while etcd was away goes the way of a login; what was decided meanwhile was ordered before.
    fn admit_the_open(&mut self) {
        for (session, login) in std::mem::take(&mut self.door.open) {
            self.door.knock(Knock::Inside(session), login);
        }
    }

    fn set_barrier(&mut self, out: &mut Out) {
        self.door.barrier = true;
        let me = self.rules.me;
        let mut then = vec![Op::Put(Key::Barrier(me), Value::Barrier)];
        let mut knocks = Vec::new();
        while knocks.len() < AT_ONCE
            && let Some(knock) = self.door.waiting.pop_front()
        {
            let Some(entry) = self.door.logins.get_mut(&knock) else { continue };
            entry.stage = Stage::Asking;
            let (who, session) = (entry.login.who.clone(), entry.login.session);
            let is_limited = entry.login.limit.is_some();
            then.push(match is_limited {
                false => Op::Put(Key::Admission(me, who, session), Value::Admission),
                true => Op::Get(Key::Owners(who)),
            });
            knocks.push((knock, is_limited));
        }
        self.commit(Txn { then, ..Txn::default() }, Purpose::Barrier(knocks), out);
    }

    pub(super) fn barrier_set(&mut self, knocks: Vec<(Knock, bool)>, outcome: &Outcome) {
        self.door.barrier = false;
        let mut got = outcome.got.iter();
        for (knock, is_limited) in knocks {
            let next = match is_limited {
                false => Next::Pass { claimed: false },
                true => places(got.next()),
            };
            self.door.wait_for(knock, outcome.revision, next);
        }
    }

    pub(super) fn looked(&mut self, knock: Knock, clear: bool, out: &mut Out) {
        let Some(entry) = self.door.logins.get(&knock) else { return };
        let Stage::Looking(revision, next) = entry.stage.clone() else { return };
        if !clear {
            // whoever looked has said why
            if let Some(login) = self.door.take(knock) {
                self.gives_up(login);
            }
            return;
        }
        let registered = if matches!(next, Next::Pass { .. }) { revision } else { NOWHERE_YET };
        if entry.is_over(registered) {
            return self.turn_away(knock, Refusal::Ended, out);
        }
        let login = entry.login.clone();
        match (next, login.limit) {
            (Next::Pass { claimed }, _) => self.pass(knock, Some(revision), claimed, out),
            (Next::Places(owners, since), Some(limit)) => {
                match claim(&owners, self.rules.me, login.session, limit) {
                    Claim::Holds => self.pass(knock, Some(revision), true, out),
                    Claim::Full => self.turn_away(knock, Refusal::Full, out),
                    Claim::Takes { owners, displaced } => {
                        self.claim(knock, &login, (owners, since), &displaced, out)
                    }
                }
            }
            (Next::Places(..), None) => self.pass(knock, Some(revision), false, out),
        }
    }

    fn claim(
        &mut self,
        knock: Knock,
        login: &Login,
        (owners, since): (Owners, Revision),
        displaced: &[Holder],
        out: &mut Out,
    ) {
        let Some(entry) = self.door.logins.get_mut(&knock) else { return };
        entry.tries += 1;
        if entry.tries > TRIES {
            return self.turn_away(knock, Refusal::Contended, out);
        }
        entry.stage = Stage::Asking;
        let is_first = entry.since.is_none();
        entry.since.get_or_insert(self.read);
        self.door.claims.insert(login.session, login.who.clone());
        let me = self.rules.me;
        let places = Key::Owners(login.who.clone());
        let mut then = vec![
            Op::Put(Key::Barrier(me), Value::Barrier),
            Op::Put(places.clone(), Value::Owners(owners)),
            Op::Put(Key::Admission(me, login.who.clone(), login.session), Value::Admission),
        ];
        for holder in displaced {
            let record = Record {
                number: 0,
                by: format!("gateway {}", self.rules.name),
                reason: format!("{} has logged in elsewhere", login.who),
                at: 0,
                until: None,
                lasts: None,
            };
            then.push(Op::Put(
                Key::Record(Author::Gateway(me), holder.session.over()),
                Value::Record(record),
            ));
        }
        let only_if = vec![Condition::Unchanged(places.clone(), since)];
        let otherwise = vec![Op::Put(Key::Barrier(me), Value::Barrier), Op::Get(places)];
        self.commit(Txn { only_if, then, otherwise }, Purpose::Claim { knock, is_first }, out);
    }

    pub(super) fn claimed(&mut self, knock: Knock, is_first: bool, outcome: &Outcome) {
        // what an earlier claim has done, whose answer was lost, nobody knows
        if let Some(entry) = self.door.logins.get_mut(&knock).filter(|_| is_first) {
            entry.since = outcome.held.then_some(outcome.revision);
        }
        let next = if outcome.held { Next::Pass { claimed: true } } else { places(outcome.got.first()) };
        self.door.wait_for(knock, outcome.revision, next);
    }

    fn pass(&mut self, knock: Knock, at: Option<Revision>, claimed: bool, out: &mut Out) {
        let Some(entry) = self.door.logins.get(&knock) else { return };
        if entry.is_over(at.unwrap_or(NOWHERE_YET)) {
            return self.turn_away(knock, Refusal::Ended, out);
        }
        let Some(login) = self.door.take(knock) else { return };
        // a place that it has it keeps, also where nobody could be asked this time
        let claimed = claimed || self.door.passed.get(&login.session).is_some_and(|passed| passed.claimed);
        out.push(ClusterEffect::Passed { session: login.session, at, claimed });
        self.door.remember(login, at, claimed);
        if let Knock::Gate(ask) = knock {
            out.push(ClusterEffect::Admit { ask });
        }
    }

    fn turn_away(&mut self, knock: Knock, why: Refusal, out: &mut Out) {
        let Some(login) = self.door.take(knock) else { return };
        match knock {
            Knock::Gate(ask) => out.push(ClusterEffect::Refuse { ask, why }),
            Knock::Inside(_) => out.push(ClusterEffect::End { session: login.session, why: why.to_string() }),
        }
        self.gives_up(login);
    }

    /// What was written for a login that is not let in is of no use: R4, its place would be nobody's for ever. Unless its
    /// session has passed before, and may be there.
    fn gives_up(&mut self, login: Login) {
        if !self.door.passed.contains_key(&login.session) {
            self.door.claims.remove(&login.session);
            self.leave(login.who, login.session, true);
        }
    }

    /// Who has waited long enough, or would wait in vain, is let in or refused as his group is.
    pub(super) fn expire_logins(&mut self, now: Now, out: &mut Out) {
        let wait = self.rules.login_wait;
        let in_vain = self.away_since.is_some_and(|since| now.mono >= since + wait);
        let late: Vec<Knock> = (self.door.logins.iter())
            .filter(|(knock, entry)| {
                matches!(knock, Knock::Gate(_)) && (in_vain || now.mono >= entry.login.since + wait)
            })
            .map(|(knock, _)| *knock)
            .collect();
        for knock in late {
            match self.door.logins.get(&knock).map(|entry| entry.login.when_away) {
                Some(WhenAway::Open) => self.pass(knock, None, false, out),
                _ => self.turn_away(knock, Refusal::Away, out),
            }
        }
        self.door.waiting.retain(|knock| self.door.logins.contains_key(knock));
    }

    pub(super) fn cookie_gone(&mut self, session: SessionId) {
        self.door.take(Knock::Inside(session));
        // one that was let in while etcd was away may have been given a place by an earlier run
        let may_have = |passed: &Passed| passed.claimed || passed.at.is_none();
        let passed = self.door.forget(session).map(|passed| (passed.who.clone(), may_have(&passed)));
        let claim = self.door.claims.remove(&session).map(|who| (who, true));
        if let Some((who, claimed)) = claim.or(passed) {
            self.leave(who, session, claimed);
        }
    }

    /// The keys of sessions that are over.
    fn serve_the_leaving(&mut self, out: &mut Out) {
        while self.in_flight.len() < MOST_IN_FLIGHT
            && let Some((who, session, claimed)) = self.door.leaving.pop_front()
        {
            if claimed {
                let then = vec![Op::Get(Key::Owners(who.clone()))];
                self.commit(Txn { then, ..Txn::default() }, Purpose::Leaving(who, session), out);
            } else {
                let then = vec![Op::Delete(Key::Admission(self.rules.me, who.clone(), session))];
                self.commit(Txn { then, ..Txn::default() }, Purpose::Forgetting(who, session), out);
            }
        }
    }

    /// Its keys are to be taken out; whether it may have one of the places.
    pub(super) fn leave(&mut self, who: Identity, session: SessionId, claimed: bool) {
        self.door.leaving.push_back((who, session, claimed));
    }

    pub(super) fn left(&mut self, who: Identity, session: SessionId, outcome: &Outcome, out: &mut Out) {
        // nothing is asked any more once it is done
        let Some(got) = outcome.got.first() else { return };
        let Next::Places(owners, since) = places(Some(got)) else { return };
        let Some(rest) = owners::without(&owners, session) else { return self.leave(who, session, false) };
        let key = Key::Owners(who.clone());
        let op = match rest.holders.is_empty() {
            true => Op::Delete(key.clone()),
            false => Op::Put(key.clone(), Value::Owners(rest)),
        };
        let only_if = vec![Condition::Unchanged(key.clone(), since)];
        // both or none: as long as its admission is there, a restart finds the session
        let then = vec![op, Op::Delete(Key::Admission(self.rules.me, who.clone(), session))];
        let txn = Txn { only_if, then, otherwise: vec![Op::Get(key)] };
        self.commit(txn, Purpose::Leaving(who, session), out);
    }
}

/// Whatever would be against that login.
fn ends(login: &Login) -> [Over; 2] {
    [Over::User(login.who.clone()), login.session.over()]
}

/// A lock ends what a revocation of the person does.
fn watermark(over: &Over) -> Over {
    over.person().map_or_else(|| over.clone(), |who| Over::User(who.clone()))
}

/// What a `Get` of the places has found.
fn places(got: Option<&Option<(Value, Revision)>>) -> Next {
    match got {
        Some(Some((Value::Owners(owners), revision))) if owners.holders.len() <= MOST_HOLDERS => {
            Next::Places(owners.clone(), *revision)
        }
        // what is not to be read is not to be kept either
        Some(Some((_, revision))) => Next::Places(Owners::default(), *revision),
        Some(None) | None => Next::Places(Owners::default(), 0),
    }
}
