//! What others have decided: each record is enforced here in its order, remembered, and acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::Now;
use super::words::{Author, ClusterEffect, Errand, Out, Over, Record, Revision};
use super::{Cluster, Lift};

/// What is being enforced, or taken back.
type Task = (Revision, Author, Over);

#[derive(Debug, Default)]
pub(super) struct Learning {
    /// Everything up to there is in force here, and a restart finds it so.
    known: Revision,
    tasks: BTreeMap<Task, Errand>,
    errands: BTreeMap<Errand, Task>,
    last_errand: Errand,
    /// Revisions above `known` of what is in force.
    news: BTreeSet<Revision>,
    /// Of the last of them that is not above it.
    latest: Revision,
    acknowledged: Revision,
    on_its_way: bool,
    /// When the others were told last.
    last: Option<Duration>,
    /// The others do not know how far this one is.
    must: bool,
}

impl Learning {
    pub(super) fn new(known: Revision) -> Self {
        Self { known, ..Self::default() }
    }

    pub(super) fn known(&self) -> Revision {
        self.known
    }

    pub(super) fn connected(&mut self) {
        self.must = true;
    }

    /// `None`: it is known, or being enforced.
    fn begin(&mut self, task: Task) -> Option<Errand> {
        if task.0 <= self.known || self.tasks.contains_key(&task) {
            return None;
        }
        self.last_errand += 1;
        self.tasks.insert(task.clone(), self.last_errand);
        self.errands.insert(self.last_errand, task);
        Some(self.last_errand)
    }

    /// Without an errand: it was so before.
    fn is_in_force(&mut self, revision: Revision) {
        if revision > self.known {
            self.news.insert(revision);
        }
    }

    pub(super) fn in_force(&mut self, errand: Errand) {
        if let Some(task) = self.errands.remove(&errand) {
            self.is_in_force(task.0);
            self.tasks.remove(&task);
        }
    }

    pub(super) fn advance(&mut self, read: Revision, out: &mut Out) {
        let up_to =
            self.tasks.first_key_value().map_or(read, |((first, ..), _)| first.saturating_sub(1)).min(read);
        if up_to <= self.known {
            return;
        }
        self.known = up_to;
        let above = self.news.split_off(&up_to.saturating_add(1));
        // what moves all the time, barriers above all, is not worth a write
        if let Some(latest) = std::mem::replace(&mut self.news, above).last() {
            self.latest = *latest;
            out.push(ClusterEffect::Known { revision: up_to });
        }
    }

    /// How many are being enforced, or taken back.
    pub(super) fn errands(&self) -> usize {
        self.errands.len()
    }

    /// Not sooner than `pause` after the last one.
    pub(super) fn acknowledgement(&mut self, now: Now, pause: Duration) -> Option<Revision> {
        let is_early = self.last.is_some_and(|last| now.mono < last + pause);
        let is_news = self.latest > self.acknowledged && !is_early;
        if self.on_its_way || self.known == 0 || !(is_news || self.must) {
            return None;
        }
        (self.on_its_way, self.must, self.last) = (true, false, Some(now.mono));
        Some(self.known)
    }

    pub(super) fn acknowledged(&mut self, up_to: Revision, done: bool) {
        self.on_its_way = false;
        if done {
            self.acknowledged = self.acknowledged.max(up_to);
        } else {
            self.must = true;
        }
    }

    pub(super) fn nothing_on_its_way(&mut self) {
        self.must |= std::mem::take(&mut self.on_its_way);
    }
}

impl Cluster {
    pub(super) fn record_read(
        &mut self,
        author: Author,
        over: Over,
        record: Record,
        revision: Revision,
        out: &mut Out,
    ) {
        // what was entered here is in force here; what has no number was entered nowhere
        if author == Author::Gateway(self.rules.me) {
            self.outbox.found(over.clone(), record.number, revision, out);
            if record.number != 0 {
                return;
            }
        }
        // what was read before was known when the logins that wait now came
        if revision > self.read {
            self.door.ended(&over, revision);
        }
        let spare = over.person().map(|who| self.door.admitted_after(who, revision)).unwrap_or_default();
        if let Some(errand) = self.learning.begin((revision, author, over.clone())) {
            out.push(ClusterEffect::Order { errand, author, over, record, revision, spare });
        }
    }

    pub(super) fn lift_read(&mut self, lift: Lift, revision: Revision, out: &mut Out) {
        let Lift { lifter, author, over, up_to, by } = lift;
        let me = Author::Gateway(self.rules.me);
        if author == me && lifter != me {
            self.outbox.lifted_by_another(over.clone(), up_to, revision);
        }
        if lifter == me {
            self.outbox.lift_found(author, over.clone(), up_to, revision);
            if author == me {
                return self.learning.is_in_force(revision);
            }
            // after a restart the record may just have been read and carried out anew
        }
        if let Some(errand) = self.learning.begin((revision, author, over.clone())) {
            out.push(ClusterEffect::TakeBack { errand, author, over, up_to, by });
        }
    }
}
