//! What need not stand in etcd any more.

use std::collections::BTreeSet;

use super::super::standing::{Place, Standing};
use super::super::words::{Author, Change, Key, LetterKey, Out, Over, Revision};
use super::{Content, Outbox, Stage};

/// So many keys are taken out at once: each is looked at and deleted.
const AT_ONCE: usize = 50;

/// A key that is of no more use, as it was last written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Litter {
    pub key: Key,
    pub at: Revision,
}

impl Outbox {
    /// Another gateway has lifted a record of this one, as it stood up to a revision.
    pub(in super::super) fn lifted_by_another(&mut self, over: Over, up_to: Revision, revision: Revision) {
        let Some(at) = self.records.get(&over).copied().filter(|at| *at <= up_to) else { return };
        if self.lifted.get(&over).is_some_and(|(_, up_to)| at <= *up_to) {
            return;
        }
        if let Some((since, _)) = self.lifted.insert(over.clone(), (revision, up_to)) {
            self.lifted_since.remove(&(since, over.clone()));
        }
        self.lifted_since.insert((revision, over));
    }

    /// A lift by this gateway is gone: taken out by it, or by hand.
    pub(in super::super) fn lift_gone(&mut self, author: Author, over: Over, out: &mut Out) {
        self.lifts.remove(&(author, over.clone()));
        let key = LetterKey::Lifted(author, over);
        if self.letters.get(&key).is_some_and(|letter| matches!(letter.stage, Stage::At(_))) {
            self.drop_letter(&key, out);
        }
    }

    /// A record was written, or is gone. `at`: where it stands now.
    pub(in super::super) fn record_moved(
        &mut self,
        author: Author,
        over: &Over,
        at: Option<Revision>,
        out: &mut Out,
    ) {
        if author == self.mine && at.is_none() {
            self.records.remove(over);
        }
        let key = LetterKey::Lifted(author, over.clone());
        if self.outlived.contains(&key) {
            self.end_of_lift(&key, at, out);
        }
    }

    /// What every gateway has up to `everywhere` need not be kept.
    pub(in super::super) fn litter_to_take(
        &mut self,
        everywhere: Revision,
        standing: &Standing,
        out: &mut Out,
    ) -> Vec<Litter> {
        while self.litter.len() < AT_ONCE
            && let Some((revision, _)) = self.arrived.first()
            && *revision <= everywhere
            && let Some((revision, key)) = self.arrived.pop_first()
        {
            match &key {
                LetterKey::Decided(over @ (Over::Session(_) | Over::Web(_))) => {
                    self.litter.push(Litter { key: Key::Record(self.mine, over.clone()), at: revision });
                    self.drop_letter(&key, out);
                }
                // the watermark
                LetterKey::Decided(Over::User(_) | Over::Lock(_)) => self.drop_letter(&key, out),
                LetterKey::Lifted(author, over) => {
                    if *author == self.mine
                        && let Some(up_to) = self.lifts_up_to(&key)
                    {
                        self.tidy_lifted(over, up_to);
                    }
                    self.outlived.insert(key.clone());
                    let at = standing.at(&Place::Record(*author, over.clone()));
                    self.end_of_lift(&key, at, out);
                }
            }
        }
        while self.litter.len() < AT_ONCE
            && let Some((revision, _)) = self.lifted_since.first()
            && *revision <= everywhere
            && let Some((_, over)) = self.lifted_since.pop_first()
        {
            if let Some((_, up_to)) = self.lifted.remove(&over) {
                self.tidy_lifted(&over, up_to);
            }
        }
        let most = self.litter.len().min(AT_ONCE);
        self.litter.drain(..most).collect()
    }

    /// Nobody knows whether it was taken out.
    pub(in super::super) fn put_back(&mut self, litter: Vec<Litter>) {
        self.litter.extend(litter);
    }

    /// A record of this gateway, unless it was made anew after what was lifted.
    fn tidy_lifted(&mut self, over: &Over, up_to: Revision) {
        if let Some(at) = self.records.get(over).filter(|at| **at <= up_to) {
            self.litter.push(Litter { key: Key::Record(self.mine, over.clone()), at: *at });
        }
    }

    fn lifts_up_to(&self, key: &LetterKey) -> Option<Revision> {
        match self.letters.get(key)?.content {
            Content::Lift { up_to, .. } => up_to,
            Content::Record(_) => None,
        }
    }

    /// A lift that every gateway has goes unless what it lifts stands still, at `at`: its author takes that out first.
    fn end_of_lift(&mut self, key: &LetterKey, at: Option<Revision>, out: &mut Out) {
        if at.is_some_and(|at| self.lifts_up_to(key).is_some_and(|up_to| at <= up_to)) {
            return;
        }
        if let LetterKey::Lifted(author, over) = key
            && let Some(Stage::At(revision)) = self.letters.get(key).map(|letter| letter.stage)
        {
            let key = Key::Lift(self.mine, *author, over.clone());
            self.litter.push(Litter { key, at: revision });
        }
        self.drop_letter(key, out);
    }

    /// Everything that is there was read: what is not found may have come and gone.
    pub(in super::super) fn begin_anew(&mut self, state: &[Change], out: &mut Out) {
        let there: BTreeSet<&Key> = state.iter().map(|change| &change.key).collect();
        for key in std::mem::take(&mut self.outlived) {
            if let Some(Stage::At(revision)) = self.letters.get(&key).map(|letter| letter.stage) {
                self.arrived.insert((revision, key));
            }
        }
        let gone: Vec<LetterKey> = (self.arrived.iter())
            .filter(|(_, key)| !there.contains(&self.place_of(key)))
            .map(|(_, key)| key.clone())
            .collect();
        gone.iter().for_each(|key| self.drop_letter(key, out));
        self.lifted.clear();
        self.lifted_since.clear();
        self.records.clear();
        self.lifts.clear();
    }

    fn place_of(&self, key: &LetterKey) -> Key {
        match key {
            LetterKey::Decided(over) => Key::Record(self.mine, over.clone()),
            LetterKey::Lifted(author, over) => Key::Lift(self.mine, *author, over.clone()),
        }
    }
}
