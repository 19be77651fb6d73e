//! What a revocation tells of the web sessions that it has ended: one by one until it is answered, and until nothing more
//! will come of them; then only how many there were of each kind.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::session::WebKey;

use super::WebRow;
use super::ending::{Kept, Told, WebEnding};

/// How many sessions one revocation follows. A person has no more in a realm than a quarter of it.
const MAX_FOLLOWED: usize = if cfg!(test) { 40 } else { 4_096 };
/// How many of them are told one by one.
const MAX_ROWS: usize = 1_000;
/// How many names of people, of gateways and of troubles it keeps.
const MAX_NAMES: usize = 16;

#[derive(Debug, Default)]
pub(in crate::registry) struct Account {
    following: BTreeMap<WebKey, WebEnding>,
    folded: Counts,
    /// Whose they were.
    users: BTreeSet<String>,
    /// Gateways that were not heard of some.
    missing: BTreeSet<Arc<str>>,
    /// Those that were beyond its bound: of them it tells nothing.
    beyond: u64,
}

/// How many sessions, by what was told of them, and how many sockets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::registry) struct Counts {
    pub waiting: u64,
    pub done: u64,
    pub destroyed: u64,
    pub alone: u64,
    pub late: u64,
    pub sockets: u64,
    pub sockets_destroyed: u64,
}

/// How far their ends are on the disk.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::registry) struct OnDisk {
    pub waiting: usize,
    /// Why some could not be written.
    pub failed: BTreeSet<String>,
}

impl Counts {
    fn add(&mut self, ending: &WebEnding) {
        let of = match ending.told {
            Told::Waiting => &mut self.waiting,
            Told::Done => &mut self.done,
            Told::Destroyed => &mut self.destroyed,
            Told::Alone => &mut self.alone,
            Told::Late => &mut self.late,
        };
        *of += 1;
        self.sockets = self.sockets.saturating_add(ending.sockets);
        self.sockets_destroyed = self.sockets_destroyed.saturating_add(ending.destroyed);
    }
}

impl Account {
    /// Gives account of it from now on. False: there is no room, here or (`has_room`) for one more to be told of it, which
    /// is counted.
    #[must_use]
    pub(super) fn follow(&mut self, key: WebKey, ending: &WebEnding, has_room: bool) -> bool {
        if !has_room || self.following.len() >= MAX_FOLLOWED {
            self.beyond += 1;
            return false;
        }
        if self.users.len() < MAX_NAMES {
            self.users.insert(ending.row.user.clone());
        }
        self.following.insert(key, ending.clone());
        true
    }

    /// It is so far. `answered`: whoever has asked for the revocation has its receipt.
    pub(super) fn tell(&mut self, key: WebKey, ending: &WebEnding, answered: bool) {
        self.following.insert(key, ending.clone());
        if answered {
            self.fold();
        }
    }

    /// Of what is settled the counts are left.
    pub(in crate::registry) fn fold(&mut self) {
        for (_, ending) in self.following.extract_if(.., |_, ending| ending.is_settled()) {
            self.folded.add(&ending);
            let room = MAX_NAMES.saturating_sub(self.missing.len());
            self.missing.extend(ending.missing.into_iter().take(room));
        }
    }

    pub(in crate::registry) fn is_empty(&self) -> bool {
        self.following.is_empty() && self.folded == Counts::default() && self.beyond == 0
    }

    pub(in crate::registry) fn counts(&self) -> Counts {
        let mut counts = self.folded;
        self.following.values().for_each(|ending| counts.add(ending));
        counts
    }

    pub(in crate::registry) fn beyond(&self) -> u64 {
        self.beyond
    }

    /// Gateways that were not heard, by name.
    pub(in crate::registry) fn missing(&self) -> BTreeSet<&str> {
        let following = self.following.values().flat_map(|ending| &ending.missing);
        following.chain(&self.missing).map(AsRef::as_ref).collect()
    }

    pub(in crate::registry) fn on_disk(&self) -> OnDisk {
        let mut all = OnDisk::default();
        for ending in self.following.values() {
            match &ending.kept {
                Kept::Written => {}
                Kept::Waiting => all.waiting += 1,
                Kept::Failed(why) if all.failed.len() < MAX_NAMES => {
                    all.failed.insert(why.to_string());
                }
                Kept::Failed(_) => {}
            }
        }
        all
    }

    /// The first of those that it still follows, which are all before it is answered.
    pub(in crate::registry) fn rows(&self) -> Vec<WebRow> {
        self.following.values().take(MAX_ROWS).map(|ending| ending.row.as_ref().clone()).collect()
    }

    pub(in crate::registry) fn users(&self) -> impl Iterator<Item = &str> {
        self.users.iter().map(String::as_str)
    }

    /// Every gateway has said what became of them, or is not there.
    pub(in crate::registry) fn is_told(&self) -> bool {
        self.following.values().all(|ending| ending.told != Told::Waiting)
    }

    /// The disk has heard of their end, or is known not to have.
    pub(in crate::registry) fn is_kept(&self) -> bool {
        self.following.values().all(|ending| ending.kept != Kept::Waiting)
    }
}
