//! Other gateways: what they tell each other stands in etcd, and this adapter reads and writes it. What any of it means
//! is not its business: it knows keys, values and their revisions.
//!
//! [`run`] keeps one connection, to whichever endpoint answers. What is promised:
//!
//! - **Nothing is missed.** First the whole state is told, as it was at one revision ([`Told::Up`]), then every change
//!   after it, in etcd's order, all of one revision together ([`Told::Changed`]). A connection that broke goes on where it
//!   ended. Where etcd has compacted what was in between, the state is told anew, as a whole.
//! - **An order is answered once** ([`Told::Done`]), and what is not known is not guessed ([`Outcome`]). Orders are done
//!   one after the other, so the revisions of what a gateway writes rise in the order in which it was asked. Those that
//!   wait and are of one kind share a transaction, and then a revision; different kinds of keys never do, so a session that
//!   was admitted before its person was revoked has a smaller revision than the revocation, and not the same. And no order
//!   is done behind a later one, also where etcd's members have held it back: see `lease`.
//! - **Another etcd is never taken for the one that was known** ([`Told::Replaced`]): one with another cluster id, or one
//!   whose revision went back (restored from a backup). It is used after [`Order::Adopt`] alone. What cannot be seen from
//!   here: one that was restored while this gateway was away, and has come further meanwhile than it was known to be. Whoever
//!   remembers what this gateway has written last (its [`Key::Acknowledged`]) sees that in the state.
//! - **A hostile or mistaken record harms nothing** (R7): it is told ([`Told::Malformed`], at most [`reports::AT_ONCE`]
//!   at once and one a second more), its revision counts as read, and what its key said before stands.
//! - **Everything is bounded** (R7): each question has a time, what is read a size, and there are no queues but the two
//!   channels. Whoever sends orders has to read what is told at the same time.
//!
//! What it relies on of etcd, 3.4 and later: reads and transactions are linearizable; a watch tells whole revisions in
//! their order. Two faults of older versions (Debian 12 has 3.4.23) are worked round: a watch that begins at a compacted
//! revision may leave out what was deleted at it, so a watch begins at what was read already; and an answer to a request
//! for progress may overtake events, so no such request is made. What is left of the first one: a watcher that lags while
//! etcd compacts exactly up to a deletion that it has not been told of yet.
//!
//! The connection is found dead by its lease: it is renewed every third of its time, and each renewal has to be answered
//! within the time for a question. A member that has lost the others ends the watch by itself.

mod client;
mod hex;
pub mod keys;
mod lease;
mod reading;
pub mod record;
pub mod reports;
mod run;
mod secret;
mod state;
mod trouble;
mod words;
mod write;

use std::path::PathBuf;
use std::time::Duration;

pub use keys::{BadKey, Prefix};
pub use record::BadRecord;
pub use run::run;
pub use words::{Change, Condition, Holder, Key, Lift, Now, Op, Owners, Record, SessionId, Txn, Value};

pub use crate::session::{Author, BadGatewayId, GatewayId, Over, Revision};

/// Names an order until it is answered. The sender's own.
pub type Ticket = u64;

/// How many operations a transaction has at most: etcd's default.
pub const MAX_OPS: usize = 128;
/// How many bytes a transaction has at most: etcd takes 1.5 MiB by default.
pub const MAX_TXN: usize = 1 << 20;

/// How etcd is reached, and who is there.
#[derive(Debug, Clone)]
pub struct Settings {
    pub gateway: GatewayId,
    /// `https://HOST:PORT`, or `http://…`; at least one. Of one cluster.
    pub endpoints: Vec<String>,
    pub prefix: Prefix,
    /// For `https`.
    pub tls: Option<Tls>,
    /// For an etcd with authentication.
    pub user: Option<User>,
    pub connect_timeout: Duration,
    /// For each question; a state that is read in pages has it for each page.
    pub request_timeout: Duration,
    /// How long etcd takes this gateway for alive after it was last heard of. In whole seconds, at least 2.
    pub lease: Duration,
    /// How many keys are read at most; with more of them the connection is of no use, and that is told.
    pub most: usize,
    /// The etcd of an earlier run. `None`: whichever is found is taken.
    pub known: Option<Known>,
}

/// Files, all PEM, read anew for each connection.
#[derive(Debug, Clone)]
pub struct Tls {
    /// Roots to which etcd's certificate has to lead.
    pub ca: PathBuf,
    /// This gateway's certificate and key, where etcd asks for one.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// The password is read from its file (mode 0600) for each connection.
#[derive(Debug, Clone)]
pub struct User {
    pub name: String,
    pub password_file: PathBuf,
}

/// An etcd, and how far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// etcd's id of the cluster.
    pub cluster: u64,
    pub revision: Revision,
}

/// What is asked of the adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Answered by [`Told::Done`].
    Commit { ticket: Ticket, txn: Txn },
    /// All of some keys that are not watched, at one revision. Answered by [`Told::Done`].
    List { ticket: Ticket, what: Listing },
    /// The etcd of [`Told::Replaced`] is the right one from now on.
    Adopt { cluster: u64 },
}

/// Keys that are asked for together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listing {
    /// [`Key::Admission`] of that gateway.
    Sessions(GatewayId),
    /// Those of one person.
    SessionsOf(GatewayId, crate::session::Identity),
    Owners,
}

/// What the adapter tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// etcd is there. Everything up to `revision` was told before (`state` is `None`), or is in `state`: all that is
    /// watched, in the order of its keys. What was told before and is not in it is gone.
    Up {
        known: Known,
        endpoint: String,
        state: Option<Vec<Change>>,
    },
    /// All that this revision has changed of what is watched, in etcd's order, and nothing is left out before it. Without
    /// changes: what happened up to it was none of ours.
    Changed {
        revision: Revision,
        changes: Vec<Change>,
    },
    /// etcd is not there, or of no use; told when it goes, and when an endpoint's reason becomes another one.
    Down {
        why: String,
    },
    /// An etcd was found that is not the one that was known. It is not used.
    Replaced {
        endpoint: String,
        was: Known,
        is: Known,
    },
    Done {
        ticket: Ticket,
        outcome: Outcome,
    },
    /// Something that is no record of ours, and what is wrong with it. `taken`: it is in force all the same, but for a part
    /// that is not known.
    Malformed {
        key: String,
        revision: Revision,
        why: String,
        taken: bool,
    },
    /// So many more were malformed than were told.
    Untold {
        count: u64,
    },
}

/// What became of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Done, at that revision; if it has changed nothing, it is the one that etcd was at. `held`: all conditions did, and
    /// `then` was done; otherwise `otherwise`. `got`: what each [`Op::Get`] of these has found, in their order.
    Done { held: bool, revision: Revision, got: Vec<Change> },
    /// In the order of the keys.
    Listed { revision: Revision, found: Vec<Change> },
    /// Nothing was done, and asking again is of no use before somebody has mended it.
    Refused { why: String },
    /// Nothing was done: etcd is away.
    NotSent { why: String },
    /// The connection broke: it was done, or not, or will be before the first order of the next connection is done, and
    /// never after that. The same order may be given again; of a compare-and-swap that was done the second one does not
    /// hold, and what stands there is one's own.
    NotKnown { why: String },
}
