//! What is to happen, in the order of its time.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use enforcer::registry::cluster::{Change, Errand, Outcome, Revision, Ticket, Txn};

use super::random::Time;

pub enum What {
    /// An order comes to etcd.
    Arrive {
        at: u16,
        connection: u32,
        ticket: Ticket,
        txn: Box<Txn>,
    },
    Answer {
        at: u16,
        connection: u32,
        ticket: Ticket,
        outcome: Box<Outcome>,
    },
    /// A gateway reads what etcd has told.
    Wake {
        at: u16,
        connection: u32,
    },
    /// Its disk has it.
    InForce {
        at: u16,
        life: u32,
        errand: Errand,
    },
    Tick {
        at: u16,
    },
    CookieGone {
        at: u16,
        life: u32,
        session: u32,
        stray: bool,
    },
    /// A gateway finds that its connection is dead, if it is.
    Lost {
        at: u16,
        connection: u32,
    },
    Connect {
        at: u16,
        connection: u32,
    },
    /// From now on etcd takes orders of this connection alone.
    Fence {
        at: u16,
        connection: u32,
    },
    Up {
        at: u16,
        connection: u32,
        revision: Revision,
        state: Option<Vec<Change>>,
        place: u64,
    },
    LeaseOver {
        at: u16,
        connection: u32,
    },
    Heal {
        at: u16,
    },
    Restart {
        at: u16,
    },
    /// Somebody does something.
    Login,
    Decide,
    Lift {
        person: u32,
        author: u16,
    },
    Fault,
}

struct Entry(Time, u64, What);

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// Of two at once the one that was given first comes first.
#[derive(Default)]
pub struct Queue {
    entries: BinaryHeap<Reverse<Entry>>,
    given: u64,
}

impl Queue {
    pub fn give(&mut self, at: Time, what: What) {
        self.given += 1;
        self.entries.push(Reverse(Entry(at, self.given, what)));
    }

    pub fn next(&mut self) -> Option<(Time, What)> {
        self.entries.pop().map(|Reverse(Entry(at, _, what))| (at, what))
    }
}
