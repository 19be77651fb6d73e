//! The rules between gateways, pure like the registry's others: what is told to the others, what is learned from them,
//! and who may pass the gate where several gateways have to agree.
//!
//! **Order is etcd's revision, never a clock.** A record of a person at revision N ends what was admitted before N. Each
//! gateway reads all records in their order. A login writes a barrier, and passes once everything before the barrier was
//! read: so whatever was decided before it came is known to its gateway, however far that had fallen behind, and an old
//! cookie does not pass. What a gateway finds of a person when it learns of a record was therefore admitted before it;
//! only when a record is read anew (after a restart) some of it may have come later, and is spared.

mod door;
mod gateways;
mod learning;
mod outbox;
mod owners;
mod standing;
#[cfg(test)]
mod tests;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::session::{Identity, SessionId};

use super::{Now, Number};

pub use owners::{Claim, MOST_HOLDERS, claim};
pub use words::*;

use gateways::Gateways;
use outbox::{Litter, Outbox};
use standing::{Place, Standing};

/// How many transactions may be on their way at once.
const MOST_IN_FLIGHT: usize = 64;

/// A lift as it was read.
struct Lift {
    lifter: Author,
    author: Author,
    over: Over,
    up_to: Revision,
    by: String,
}

/// What a transaction was for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Purpose {
    /// To be known as a gateway.
    Registering,
    Acknowledging(Revision),
    Telling(Vec<outbox::Told>),
    /// For these logins; whether their places were read with it.
    Barrier(Vec<(Knock, bool)>),
    /// `is_first`: that login has claimed nothing before.
    Claim {
        knock: Knock,
        is_first: bool,
    },
    /// A session's place is given back.
    Leaving(Identity, SessionId),
    /// Keys of no more use are taken out: if one was written anew, none is, and each is looked at by itself.
    Tidying(Vec<Litter>),
    /// The key of a session that is over.
    Forgetting(Identity, SessionId),
}

impl Purpose {
    /// What follows where etcd does not take it.
    fn in_vain(&self) -> &'static str {
        match self {
            Self::Telling(_) => "a revocation could not be told to the other gateways",
            Self::Acknowledging(_) => "the other gateways do not learn what is in force here",
            Self::Barrier(_) | Self::Claim { .. } => "logins wait",
            Self::Registering | Self::Leaving(..) | Self::Tidying(_) | Self::Forgetting(..) => {
                "the cluster's keys are not as they should be"
            }
        }
    }
}

#[derive(Debug)]
pub struct Cluster {
    rules: ClusterRules,
    /// Since when etcd is away. `None`: it is there.
    away_since: Option<Duration>,
    /// Up to where everything was read.
    read: Revision,
    gateways: Gateways,
    /// Where this gateway has written itself by this connection.
    registered: Option<Revision>,
    copy_told: bool,
    standing: Standing,
    in_flight: BTreeMap<Ticket, Purpose>,
    last_ticket: Ticket,
    /// etcd has refused something: nothing is asked of it before the next tick.
    refused: bool,
    /// What was said of that, so that it is said once.
    complaints: BTreeSet<&'static str>,
    learning: learning::Learning,
    outbox: Outbox,
    door: door::Door,
}

impl Cluster {
    pub fn new(rules: ClusterRules, now: Now) -> Self {
        Self {
            away_since: Some(now.mono),
            read: 0,
            gateways: Gateways::new(rules.me),
            registered: None,
            copy_told: false,
            standing: Standing::default(),
            in_flight: BTreeMap::new(),
            last_ticket: 0,
            refused: false,
            complaints: BTreeSet::new(),
            learning: learning::Learning::new(rules.known),
            outbox: Outbox::new(rules.me),
            door: door::Door::default(),
            rules,
        }
    }

    pub fn handle(&mut self, event: ClusterEvent, now: Now) -> Vec<ClusterEffect> {
        let mut out = Vec::new();
        match event {
            ClusterEvent::Up { revision, state } => self.up(revision, state, &mut out),
            ClusterEvent::Changed { revision, changes } => self.changed(revision, changes, &mut out),
            ClusterEvent::Down => self.down(now, &mut out),
            ClusterEvent::Done { ticket, outcome } => self.done(ticket, outcome, now, &mut out),
            ClusterEvent::Decided { number, over, record } => {
                self.door.ended_here(&over);
                if !self.outbox.decided(number, over, record, &mut out) {
                    out.push(no_room(&format!("revocation {number}")));
                }
            }
            ClusterEvent::Lifted { author, over, up_to, by } => {
                if !self.outbox.lifted(author, over, up_to, by, &mut out) {
                    out.push(no_room("a lift"));
                }
            }
            ClusterEvent::Remembered { who, session, at, claimed, limit } => {
                let login = door::Login { who, session, limit, when_away: WhenAway::Open, since: now.mono };
                self.door.remember(login, at, claimed);
            }
            ClusterEvent::InForce { errand } => self.learning.in_force(errand),
            ClusterEvent::Asked { ask, who, session, limit, when_away } => {
                let login = door::Login { who, session, limit, when_away, since: now.mono };
                self.asked(ask, login, now, &mut out);
            }
            ClusterEvent::Looked { knock, clear } => self.looked(knock, clear, &mut out),
            ClusterEvent::CookieGone { session } => self.cookie_gone(session),
            ClusterEvent::Stray { who, session } => self.leave(who, session, true),
            ClusterEvent::Tick => {
                self.refused = false;
                self.expire_logins(now, &mut out);
            }
        }
        self.go_on(now, &mut out);
        out
    }

    /// How far a record of this gateway has come. `None`: it is everywhere for long, or it is not replicated.
    pub fn delivery(&self, number: Number) -> Option<Delivery> {
        Some(self.delivered(self.outbox.revision_of(number)?))
    }

    /// Whether that can be told to the others: not too much waits for etcd.
    pub fn has_room(&self, key: &LetterKey) -> bool {
        self.outbox.has_room(key)
    }

    /// Whose decisions of this gateway wait for etcd under that name.
    pub fn untold_of(&self, over: &Over) -> BTreeSet<Number> {
        self.outbox.numbers_of(over)
    }

    /// The same of some lifts.
    pub fn delivery_of(&self, lifts: &[LetterKey]) -> Option<Delivery> {
        Some(self.delivered(self.outbox.revision_of_all(lifts)?))
    }

    fn delivered(&self, revision: Option<Revision>) -> Delivery {
        let others = self.gateways.registered().iter().filter(|(id, _)| **id != self.rules.me);
        let gateways = others
            .map(|(id, name)| {
                let in_force = revision.is_some_and(|revision| self.gateways.acknowledged(*id) >= revision);
                (name.clone(), in_force, self.gateways.is_alive(*id))
            })
            .collect();
        Delivery { revision, gateways }
    }

    /// Those that have to learn of every record, this one among them once it is one.
    pub fn gateways(&self) -> Vec<GatewayRow> {
        let row = |(id, name): (&GatewayId, &String)| {
            let is_me = *id == self.rules.me;
            let acknowledged = if is_me { self.learning.known() } else { self.gateways.acknowledged(*id) };
            GatewayRow {
                id: *id,
                name: name.clone(),
                is_me,
                alive: self.gateways.is_alive(*id),
                acknowledged,
                pending: self.standing.above(acknowledged, Author::Gateway(*id)),
            }
        };
        self.gateways.registered().iter().map(row).collect()
    }

    /// Up to where everything was read.
    pub fn read(&self) -> Revision {
        self.read
    }

    /// Up to where everything is in force here.
    pub fn known(&self) -> Revision {
        self.learning.known()
    }

    /// Nothing is known of etcd, and it of nothing here.
    pub fn is_away(&self) -> bool {
        self.away_since.is_some()
    }

    /// How many letters wait for etcd.
    pub fn untold(&self) -> usize {
        self.outbox.untold()
    }

    /// How many orders were given that are not in force yet. Whoever gives events lets etcd's news wait while these are
    /// many: what another gateway writes has no bound.
    pub fn errands(&self) -> usize {
        self.learning.errands()
    }

    fn up(&mut self, revision: Revision, state: Option<Vec<Change>>, out: &mut Out) {
        self.away_since = None;
        self.refused = false;
        (self.registered, self.copy_told) = (None, false);
        self.nothing_on_its_way();
        if let Some(state) = state {
            self.gateways = Gateways::new(self.rules.me);
            self.standing = Standing::default();
            self.outbox.begin_anew(&state, out);
            self.changed(revision, state, out);
        }
        self.read = self.read.max(revision);
        self.learning.connected();
    }

    /// To be one of those that have to learn of every record. Whatever an earlier connection has left on its way is done
    /// before this is, or never: once this was read, what is there of it was read too.
    fn register(&mut self, out: &mut Out) {
        let is_on_its_way =
            |cluster: &Self| cluster.in_flight.values().any(|purpose| *purpose == Purpose::Registering);
        if self.registered.is_none() && !is_on_its_way(self) {
            let (me, name) = (self.rules.me, self.rules.name.clone());
            let then =
                vec![put(Key::Gateway(me), Value::Gateway { name }), put(Key::Alive(me), Value::Alive)];
            self.commit(Txn { then, ..Txn::default() }, Purpose::Registering, out);
        }
    }

    fn down(&mut self, now: Now, out: &mut Out) {
        self.away_since.get_or_insert(now.mono);
        self.nothing_on_its_way();
        self.expire_logins(now, out);
    }

    fn nothing_on_its_way(&mut self) {
        for purpose in std::mem::take(&mut self.in_flight).into_values() {
            self.once_more(purpose);
        }
        self.outbox.nothing_on_its_way();
        self.door.begin_anew();
        self.learning.nothing_on_its_way();
    }

    /// What nobody else would come back to: it was done, or not.
    fn once_more(&mut self, purpose: Purpose) {
        match purpose {
            Purpose::Tidying(litter) => self.outbox.put_back(litter),
            Purpose::Leaving(who, session) => self.leave(who, session, true),
            Purpose::Forgetting(who, session) => self.leave(who, session, false),
            Purpose::Registering
            | Purpose::Acknowledging(_)
            | Purpose::Telling(_)
            | Purpose::Barrier(_)
            | Purpose::Claim { .. } => {}
        }
    }

    fn changed(&mut self, revision: Revision, mut changes: Vec<Change>, out: &mut Out) {
        changes.sort_by_key(|change| change.revision);
        for change in changes {
            self.change(change, out);
        }
        self.read = self.read.max(revision);
    }

    fn change(&mut self, Change { key, value, revision }: Change, out: &mut Out) {
        match (key, value) {
            (Key::Gateway(id), Some(Value::Gateway { name })) => {
                self.gateways.register(id, name);
                // nobody else has this id, but for a copy of this gateway
                let is_copy = id == self.rules.me && self.registered.is_some_and(|mine| revision > mine);
                if is_copy && !std::mem::replace(&mut self.copy_told, true) {
                    let text = "another gateway has this gateway's id: one of the two is a copy of the other; stop it, and \
                                remove its state directory, so that it gets an id of its own";
                    out.push(ClusterEffect::Note { text: text.into() });
                }
            }
            (Key::Gateway(id), None) => {
                self.gateways.remove(id);
                if id == self.rules.me {
                    let text = "this gateway was taken out of the cluster: the others wait for it no longer";
                    out.push(ClusterEffect::Note { text: text.into() });
                }
            }
            (Key::Alive(id), value) => self.gateways.set_alive(id, value.is_some()),
            (Key::Acknowledged(id), Some(Value::Acknowledged(up_to))) => {
                // a gateway's own word, and not of what was to come
                self.gateways.acknowledge(id, up_to.min(revision));
            }
            (Key::Acknowledged(id), None) => self.gateways.acknowledge(id, 0),
            (Key::Record(author, over), Some(Value::Record(record))) => {
                self.standing.set(Place::Record(author, over.clone()), revision);
                self.outbox.record_moved(author, &over, Some(revision), out);
                self.record_read(author, over, record, revision, out);
            }
            (Key::Record(author, over), None) => {
                self.outbox.record_moved(author, &over, None, out);
                self.standing.remove(&Place::Record(author, over));
            }
            (Key::Lift(lifter, author, over), None) => {
                if lifter == Author::Gateway(self.rules.me) {
                    self.outbox.lift_gone(author, over.clone(), out);
                }
                self.standing.remove(&Place::Lift(lifter, author, over));
            }
            (Key::Lift(lifter, author, over), Some(Value::Lift { up_to, by })) => {
                self.standing.set(Place::Lift(lifter, author, over.clone()), revision);
                self.lift_read(Lift { lifter, author, over, up_to, by }, revision, out);
            }
            // of no use to whoever reads in order, or not what its key says
            _ => {}
        }
    }

    fn done(&mut self, ticket: Ticket, outcome: Result<Outcome, Trouble>, now: Now, out: &mut Out) {
        // of before the connection broke: whatever it did is read again
        let Some(purpose) = self.in_flight.remove(&ticket) else { return };
        match &outcome {
            Ok(_) => drop(self.complaints.remove(purpose.in_vain())),
            Err(Trouble::Refused(why)) => {
                self.refused = true;
                if self.complaints.insert(purpose.in_vain()) {
                    let text = format!("etcd refuses: {why}; {}", purpose.in_vain());
                    out.push(ClusterEffect::Note { text });
                }
            }
            Err(Trouble::Unknown) => {}
        }
        match (purpose, outcome) {
            (Purpose::Registering, Ok(outcome)) => self.registered = Some(outcome.revision),
            (Purpose::Tidying(litter), Ok(outcome)) => {
                if !outcome.held && litter.len() > 1 {
                    litter.into_iter().for_each(|one| self.tidy(vec![one], out));
                }
            }
            (Purpose::Acknowledging(up_to), outcome) => self.learning.acknowledged(up_to, outcome.is_ok()),
            (Purpose::Telling(told), Ok(outcome)) => self.outbox.told(&told, outcome.revision, out),
            (Purpose::Telling(told), Err(Trouble::Refused(_))) => self.outbox.refused(&told, out),
            (Purpose::Telling(told), Err(Trouble::Unknown)) => self.outbox.not_told(&told, out),
            (Purpose::Barrier(knocks), Ok(outcome)) => self.barrier_set(knocks, &outcome),
            (Purpose::Barrier(knocks), Err(_)) => {
                self.door.barrier_failed(knocks);
                self.expire_logins(now, out);
            }
            (Purpose::Claim { knock, is_first }, Ok(outcome)) => self.claimed(knock, is_first, &outcome),
            (Purpose::Claim { knock, .. }, Err(_)) => {
                self.door.ask_again(knock);
                self.expire_logins(now, out);
            }
            (Purpose::Leaving(who, session), Ok(outcome)) => self.left(who, session, &outcome, out),
            (Purpose::Forgetting(..), Ok(_)) | (Purpose::Registering, Err(_)) => {}
            (purpose @ (Purpose::Tidying(_) | Purpose::Leaving(..) | Purpose::Forgetting(..)), Err(_)) => {
                self.once_more(purpose)
            }
        }
    }

    /// Whatever can go on now.
    fn go_on(&mut self, now: Now, out: &mut Out) {
        self.learning.advance(self.read, out);
        if self.away_since.is_some() || self.refused {
            return;
        }
        self.register(out);
        if self.in_flight.len() < MOST_IN_FLIGHT
            && let Some(up_to) = self.learning.acknowledgement(now, self.gateways.pause())
        {
            let key = Key::Acknowledged(self.rules.me);
            let txn = Txn { then: vec![put(key, Value::Acknowledged(up_to))], ..Txn::default() };
            self.commit(txn, Purpose::Acknowledging(up_to), out);
        }
        let has_read_all = self.registered.is_some_and(|registered| registered <= self.read);
        while has_read_all && self.in_flight.len() < MOST_IN_FLIGHT {
            let Some((ops, told)) = self.outbox.next(out) else { break };
            self.commit(Txn { then: ops, ..Txn::default() }, Purpose::Telling(told), out);
        }
        self.serve_logins(out);
        let everywhere = self.gateways.everywhere(self.learning.known());
        let tidy = self.outbox.litter_to_take(everywhere, &self.standing, out);
        if !tidy.is_empty() {
            self.tidy(tidy, out);
        }
    }

    /// Takes out what is of no more use, unless it was written anew meanwhile.
    fn tidy(&mut self, litter: Vec<Litter>, out: &mut Out) {
        let unchanged = |litter: &Litter| Condition::Unchanged(litter.key.clone(), litter.at);
        let only_if = litter.iter().map(unchanged).collect();
        let then = litter.iter().map(|litter| Op::Delete(litter.key.clone())).collect();
        self.commit(Txn { only_if, then, otherwise: Vec::new() }, Purpose::Tidying(litter), out);
    }

    fn commit(&mut self, mut txn: Txn, purpose: Purpose, out: &mut Out) {
        write_once(&mut txn.then);
        write_once(&mut txn.otherwise);
        self.last_ticket += 1;
        self.in_flight.insert(self.last_ticket, purpose);
        out.push(ClusterEffect::Commit { ticket: self.last_ticket, txn });
    }
}

/// etcd takes no transaction that writes a key twice: the last word counts.
fn write_once(ops: &mut Vec<Op>) {
    let mut written = BTreeSet::new();
    let mut kept: Vec<Op> = Vec::with_capacity(ops.len());
    for op in std::mem::take(ops).into_iter().rev() {
        let is_first = match &op {
            Op::Put(key, _) | Op::Delete(key) => written.insert(key.clone()),
            Op::Get(_) => true,
        };
        if is_first {
            kept.push(op);
        }
    }
    kept.reverse();
    *ops = kept;
}

fn no_room(what: &str) -> ClusterEffect {
    let text = format!(
        "{what} is in force here alone: {} wait for etcd already, and the other gateways are not told of more",
        outbox::MOST_LETTERS
    );
    ClusterEffect::Note { text }
}
