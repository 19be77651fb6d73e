//! What goes into the rules between gateways and what comes out of them.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::session::{Identity, SessionId};

pub use crate::session::{Author, Decision as Record, GatewayId, LetterKey, Over, Revision};

use super::super::{Ask, Number};

/// Names a transaction until it is answered.
pub type Ticket = u64;
/// Names an order to this gateway until it is in force.
pub type Errand = u64;

/// Who has the sessions of a person that are allowed at once; the oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Owners {
    /// How often this was changed.
    pub generation: u64,
    pub holders: Vec<Holder>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    pub gateway: GatewayId,
    pub session: SessionId,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// A gateway that has to learn of every record. It stays until an administrator takes it out.
    Gateway(GatewayId),
    /// There as long as the gateway and its connection are.
    Alive(GatewayId),
    /// Up to where everything is in force there.
    Acknowledged(GatewayId),
    /// Written to learn where the order of everything is now.
    Barrier(GatewayId),
    Record(Author, Over),
    /// Takes a record back, as it was up to a revision.
    Lift(Author, Author, Over),
    /// A session that passed the gate; `create_revision` is its place in the order. Nobody watches these.
    Admission(GatewayId, Identity, SessionId),
    Owners(Identity),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Gateway {
        name: String,
    },
    Alive,
    Acknowledged(Revision),
    Barrier,
    Record(Record),
    Lift {
        up_to: Revision,
        by: String,
    },
    Admission,
    Owners(Owners),
    /// Something that is no value of its key; what the key has said before was not taken back by that.
    Unreadable,
}

/// A key as it is from a revision on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub key: Key,
    /// `None`: it is there no longer.
    pub value: Option<Value>,
    pub revision: Revision,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    Absent(Key),
    /// It was last written at that revision; 0: it is not there.
    Unchanged(Key, Revision),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    Put(Key, Value),
    Delete(Key),
    Get(Key),
}

/// All or nothing, at one revision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Txn {
    pub only_if: Vec<Condition>,
    pub then: Vec<Op>,
    pub otherwise: Vec<Op>,
}

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The conditions held.
    pub held: bool,
    pub revision: Revision,
    /// Of each `Get`, in their order, what there is, and at which revision it was written.
    pub got: Vec<Option<(Value, Revision)>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// The connection broke: it was done, or not.
    Unknown,
    /// etcd has said no, and has done nothing.
    Refused(String),
}

/// Who wants in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Knock {
    Gate(Ask),
    /// It was let in while etcd was away.
    Inside(SessionId),
}

/// How many sessions of a person may be there at once, and who yields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    pub most: usize,
    pub yields: Yields,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Yields {
    /// `newest-wins`
    Oldest,
    /// `refuse-new`
    Newest,
}

/// What is done with a login while etcd is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenAway {
    Open,
    Closed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterEvent {
    /// Everything that is watched, as it was at that revision: what is older and not there is gone. `None`: all up to
    /// there was told before.
    Up {
        revision: Revision,
        state: Option<Vec<Change>>,
    },
    /// All that one or more revisions have changed, in their order.
    Changed {
        revision: Revision,
        changes: Vec<Change>,
    },
    Down,
    Done {
        ticket: Ticket,
        outcome: Result<Outcome, Trouble>,
    },
    /// Decided here, and in force here: the others are to be told. One decision may be of several persons: each has its
    /// own. After a restart these and [`Self::Lifted`] come again, but for those of [`ClusterEffect::LetterTold`], in the
    /// order in which they were decided.
    Decided {
        number: Number,
        over: Over,
        record: Record,
    },
    /// A record was taken back here, as it stood at that revision; `None`: it was one of this gateway's.
    Lifted {
        author: Author,
        over: Over,
        up_to: Option<Revision>,
        by: String,
    },
    /// An earlier run has told by [`ClusterEffect::Passed`], and the cookie is worth something still.
    Remembered {
        who: Identity,
        session: SessionId,
        at: Option<Revision>,
        claimed: bool,
        limit: Option<Limit>,
    },
    /// Answers [`ClusterEffect::Order`] and [`ClusterEffect::TakeBack`]: it is done, and on the disk.
    InForce {
        errand: Errand,
    },
    /// A login that nothing here speaks against.
    Asked {
        ask: Ask,
        who: Identity,
        session: SessionId,
        limit: Option<Limit>,
        when_away: WhenAway,
    },
    /// Answers [`ClusterEffect::Look`]: whether still nothing here speaks against it.
    Looked {
        knock: Knock,
        clear: bool,
    },
    /// That cookie is worth nothing any more.
    CookieGone {
        session: SessionId,
    },
    /// [`Key::Admission`] of this gateway stands in etcd for a session that is not here: an earlier run was killed in
    /// between.
    Stray {
        who: Identity,
        session: SessionId,
    },
    Tick,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterEffect {
    Commit {
        ticket: Ticket,
        txn: Txn,
    },
    /// End it here, but for these: they were admitted after it. One of the same author and revision that was carried out
    /// before, as the disk shows, is not carried out again: it is in force.
    Order {
        errand: Errand,
        author: Author,
        over: Over,
        record: Record,
        revision: Revision,
        spare: BTreeSet<SessionId>,
    },
    /// Take back here what that record has ordered up to that revision; a decision of this gateway's own that is not in
    /// etcd yet, or stands higher, stays.
    TakeBack {
        errand: Errand,
        author: Author,
        over: Over,
        up_to: Revision,
        by: String,
    },
    /// What was decided of that with that number is in etcd, at that revision: it is lifted by whatever lifts up to there.
    Told {
        number: Number,
        over: Over,
        revision: Revision,
    },
    /// What was last given under that key need not be told again after a restart: it is in etcd, or it is needless by now.
    LetterTold {
        key: LetterKey,
    },
    /// Everything up to there is in force here: to be remembered over a restart.
    Known {
        revision: Revision,
    },
    /// Everything that was decided before it came is known: is there still nothing that speaks against it?
    Look {
        knock: Knock,
        session: SessionId,
    },
    /// It may pass, and [`Self::Look`] has just said so, or etcd is away and its group is let in then.
    Admit {
        ask: Ask,
    },
    Refuse {
        ask: Ask,
        why: Refusal,
    },
    /// A session that was let in while etcd was away has to go: there is no place for it.
    End {
        session: SessionId,
        why: String,
    },
    /// It has passed: to be remembered with the session.
    Passed {
        session: SessionId,
        at: Option<Revision>,
        claimed: bool,
    },
    Note {
        text: String,
    },
}

/// Why a login is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("too many logins wait")]
    Busy,
    #[error("there are as many sessions of this user as are allowed")]
    Full,
    #[error("others log in as this user all the time: try again")]
    Contended,
    #[error("the other gateways cannot be asked: etcd does not answer")]
    Away,
    /// It came before what is against it.
    #[error("the user was revoked, or has logged in elsewhere, while this login waited: log in again")]
    Ended,
}

/// The settings of these rules.
#[derive(Debug, Clone)]
pub struct ClusterRules {
    pub me: GatewayId,
    pub name: String,
    /// How long a login waits for etcd.
    pub login_wait: Duration,
    /// What an earlier run has told by [`ClusterEffect::Known`].
    pub known: Revision,
}

/// How far a record of this gateway has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// `None`: it is not in etcd yet.
    pub revision: Option<Revision>,
    /// Of the other gateways, by name, whether it is in force there, and whether they are alive.
    pub gateways: Vec<(String, bool, bool)>,
}

impl Delivery {
    pub fn is_everywhere(&self) -> bool {
        self.revision.is_some() && self.gateways.iter().all(|(_, in_force, _)| *in_force)
    }
}

/// A gateway as the others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayRow {
    pub id: GatewayId,
    pub name: String,
    pub is_me: bool,
    /// It is connected to etcd.
    pub alive: bool,
    /// Everything up to there is in force there. Of this gateway: what is, whether the others know it or not.
    pub acknowledged: Revision,
    /// How many records and lifts of others are in etcd that it has not acknowledged.
    pub pending: u64,
}

pub(super) type Out = Vec<ClusterEffect>;

pub(super) fn put(key: Key, value: Value) -> Op {
    Op::Put(key, value)
}
