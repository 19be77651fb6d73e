//! What was decided here and is to be known everywhere, until it is.
//!
//! A record of a person stays in etcd as the one watermark of that person, and a newer one takes its key. A record of one
//! session is taken out once every gateway has it in force; so is what was lifted, once every gateway has the lift. A lift
//! goes once every gateway has it and nothing that it lifts stands any more.

mod tidy;

use std::collections::{BTreeMap, BTreeSet};

pub(super) use tidy::Litter;

use super::super::Number;
use super::words::{
    Author, ClusterEffect, GatewayId, Key, LetterKey, Op, Out, Over, Record, Revision, Value,
};

/// So many go into one transaction: etcd takes 128 by default.
const AT_ONCE: usize = 100;
/// How many may wait for etcd.
pub const MOST_LETTERS: usize = if cfg!(test) { 1_000 } else { 100_000 };

#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    Record(Record),
    /// `None`: as the record will be found to stand.
    Lift {
        up_to: Option<Revision>,
        by: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    OnItsWay,
    At(Revision),
}

#[derive(Debug)]
struct Letter {
    content: Content,
    stage: Stage,
    /// Whose delivery it is: the last of one key stands for those before it.
    numbers: BTreeSet<Number>,
    /// A restart would have to tell it.
    untold: bool,
    /// Counts what was put under the key, so that an answer about an earlier one is told from one about this.
    turn: u64,
}

/// What a transaction tells: answered by [`Outbox::told`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told(LetterKey, u64);

/// Whether a letter can be told.
enum Ready {
    Now(Op, u64),
    Later,
    /// There is nothing to tell (any more).
    Never,
}

#[derive(Debug)]
pub(super) struct Outbox {
    mine: Author,
    letters: BTreeMap<LetterKey, Letter>,
    waiting: BTreeSet<LetterKey>,
    /// Which turn of them.
    on_its_way: BTreeMap<LetterKey, u64>,
    /// Those that are in etcd, by where.
    arrived: BTreeSet<(Revision, LetterKey)>,
    /// Lifts that every gateway has, and what they lift stands still.
    outlived: BTreeSet<LetterKey>,
    /// One decision may be of several persons.
    numbers: BTreeMap<Number, BTreeSet<LetterKey>>,
    last_turn: u64,
    /// Where the records of this gateway stand that are to stay, and those that are lifted by and by.
    records: BTreeMap<Over, Revision>,
    /// Where its lifts stand, and up to which revision they lift.
    lifts: BTreeMap<(Author, Over), (Revision, Revision)>,
    /// Records of this gateway that another one has lifted: since which revision, and as they were up to which.
    lifted: BTreeMap<Over, (Revision, Revision)>,
    /// The same by the former.
    lifted_since: BTreeSet<(Revision, Over)>,
    litter: Vec<Litter>,
    /// What etcd has refused by itself, until the next connection.
    parked: BTreeSet<LetterKey>,
    /// Each letter in a transaction of its own: etcd has refused some of them.
    singly: bool,
}

impl Outbox {
    pub(super) fn new(me: GatewayId) -> Self {
        Self {
            mine: Author::Gateway(me),
            letters: BTreeMap::new(),
            waiting: BTreeSet::new(),
            on_its_way: BTreeMap::new(),
            arrived: BTreeSet::new(),
            outlived: BTreeSet::new(),
            numbers: BTreeMap::new(),
            last_turn: 0,
            records: BTreeMap::new(),
            lifts: BTreeMap::new(),
            lifted: BTreeMap::new(),
            lifted_since: BTreeSet::new(),
            litter: Vec::new(),
            parked: BTreeSet::new(),
            singly: false,
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.letters.is_empty()
            && self.lifted.is_empty()
            && self.lifted_since.is_empty()
            && self.litter.is_empty()
    }

    /// Whose decisions wait for etcd under that name, or were told in this run.
    pub(super) fn numbers_of(&self, over: &Over) -> BTreeSet<Number> {
        let letter = self.letters.get(&LetterKey::Decided(over.clone()));
        letter.map(|letter| letter.numbers.clone()).unwrap_or_default()
    }

    /// How many are not in etcd, as far as is known.
    pub(super) fn untold(&self) -> usize {
        self.letters.len().saturating_sub(self.arrived.len() + self.outlived.len())
    }

    /// `false`: there is no room for it; it is in force here alone.
    pub(super) fn decided(&mut self, number: Number, over: Over, record: Record, out: &mut Out) -> bool {
        // what was to lift the one before is needed no more: this one takes its key, and is not lifted with it
        let lift = LetterKey::Lifted(self.mine, over.clone());
        if self.letters.get(&lift).is_some_and(|letter| !matches!(letter.stage, Stage::At(_))) {
            self.drop_letter(&lift, out);
        }
        let key = LetterKey::Decided(over);
        if !self.put(key.clone(), Content::Record(record)) {
            return false;
        }
        if let Some(letter) = self.letters.get_mut(&key) {
            letter.numbers.insert(number);
        }
        self.numbers.entry(number).or_default().insert(key);
        true
    }

    /// `up_to`: where the record stood; `None`: it is one of those here.
    pub(super) fn lifted(
        &mut self,
        author: Author,
        over: Over,
        up_to: Option<Revision>,
        by: String,
        out: &mut Out,
    ) -> bool {
        if author == self.mine {
            // it may be in etcd, or be about to: then the lift finds it
            self.drop_letter(&LetterKey::Decided(over.clone()), out);
        }
        self.put(LetterKey::Lifted(author, over), Content::Lift { up_to, by })
    }

    /// One that waits already makes way for it.
    pub(super) fn has_room(&self, key: &LetterKey) -> bool {
        let takes_a_place = self.letters.get(key).is_none_or(|letter| matches!(letter.stage, Stage::At(_)));
        !takes_a_place || self.untold() < MOST_LETTERS
    }

    fn put(&mut self, key: LetterKey, content: Content) -> bool {
        if !self.has_room(&key) {
            return false;
        }
        self.last_turn += 1;
        self.parked.remove(&key);
        self.set(&key, Stage::OnItsWay);
        let numbers = self.letters.remove(&key).map(|letter| letter.numbers).unwrap_or_default();
        let letter = Letter { content, stage: Stage::OnItsWay, numbers, untold: true, turn: self.last_turn };
        self.letters.insert(key.clone(), letter);
        self.set(&key, Stage::Waiting);
        true
    }

    /// One that is not in etcd need not be told any more.
    fn drop_letter(&mut self, key: &LetterKey, out: &mut Out) {
        self.set(key, Stage::OnItsWay);
        let Some(letter) = self.letters.remove(key) else { return };
        for number in letter.numbers {
            if let Some(keys) = self.numbers.get_mut(&number) {
                keys.remove(key);
                if keys.is_empty() {
                    self.numbers.remove(&number);
                }
            }
        }
        if letter.untold {
            out.push(ClusterEffect::LetterTold { key: key.clone() });
            // an earlier one stands there still
            if let LetterKey::Lifted(author, over) = key
                && let Some((at, up_to)) = self.lifts.get(&(*author, over.clone())).copied()
            {
                self.arrived_before(key.clone(), Content::Lift { up_to: Some(up_to), by: String::new() }, at);
            }
        }
    }

    fn set(&mut self, key: &LetterKey, stage: Stage) {
        let Some(letter) = self.letters.get_mut(key) else { return };
        if let Stage::At(revision) = std::mem::replace(&mut letter.stage, stage) {
            self.arrived.remove(&(revision, key.clone()));
            self.outlived.remove(key);
        }
        self.waiting.remove(key);
        match stage {
            Stage::Waiting => drop(self.waiting.insert(key.clone())),
            Stage::At(revision) => drop(self.arrived.insert((revision, key.clone()))),
            Stage::OnItsWay => {}
        }
    }

    /// `None`: nothing is known of it (any more); `Some(None)`: it is not in etcd yet, or a part of it.
    pub(super) fn revision_of(&self, number: Number) -> Option<Option<Revision>> {
        self.revision_of_all(self.numbers.get(&number)?)
    }

    /// The same of some letters.
    pub(super) fn revision_of_all<'a>(
        &self,
        keys: impl IntoIterator<Item = &'a LetterKey>,
    ) -> Option<Option<Revision>> {
        let stages: Vec<Stage> =
            keys.into_iter().filter_map(|key| self.letters.get(key)).map(|letter| letter.stage).collect();
        let at = |stage: &Stage| match stage {
            Stage::At(revision) => Some(*revision),
            Stage::Waiting | Stage::OnItsWay => None,
        };
        let all = stages.iter().map(at).try_fold(0, |most: Revision, at| at.map(|at| most.max(at)));
        (!stages.is_empty()).then_some(all)
    }

    /// What can be told now; everything that is in etcd was read before.
    pub(super) fn next(&mut self, out: &mut Out) -> Option<(Vec<Op>, Vec<Told>)> {
        let (mut ops, mut told, mut needless) = (Vec::new(), Vec::new(), Vec::new());
        for key in &self.waiting {
            if ops.len() >= if self.singly { 1 } else { AT_ONCE } {
                break;
            }
            if self.parked.contains(key) {
                continue;
            }
            match self.op(key) {
                Ready::Now(op, turn) => {
                    ops.push(op);
                    told.push(Told(key.clone(), turn));
                }
                Ready::Later => {}
                Ready::Never => needless.push(key.clone()),
            }
        }
        needless.iter().for_each(|key| self.drop_letter(key, out));
        for (Told(key, turn), op) in told.iter().zip(&ops) {
            self.set(key, Stage::OnItsWay);
            self.on_its_way.insert(key.clone(), *turn);
            if let (Some(letter), Op::Put(_, Value::Lift { up_to, by })) = (self.letters.get_mut(key), op) {
                letter.content = Content::Lift { up_to: Some(*up_to), by: by.clone() };
            }
        }
        (!ops.is_empty()).then_some((ops, told))
    }

    fn op(&self, key: &LetterKey) -> Ready {
        let Some(letter) = self.letters.get(key) else { return Ready::Never };
        // transactions may overtake each other
        if self.on_its_way.contains_key(key) {
            return Ready::Later;
        }
        let (at, value) = match (key, &letter.content) {
            (LetterKey::Decided(over), Content::Record(record)) => {
                (Key::Record(self.mine, over.clone()), Value::Record(record.clone()))
            }
            (LetterKey::Lifted(author, over), Content::Lift { up_to, by }) => {
                let up_to = match up_to {
                    Some(up_to) => *up_to,
                    None if self.on_its_way.contains_key(&LetterKey::Decided(over.clone())) => {
                        return Ready::Later;
                    }
                    None => match self.records.get(over) {
                        Some(revision) => *revision,
                        None => return Ready::Never,
                    },
                };
                (Key::Lift(self.mine, *author, over.clone()), Value::Lift { up_to, by: by.clone() })
            }
            _ => return Ready::Never,
        };
        Ready::Now(Op::Put(at, value), letter.turn)
    }

    pub(super) fn told(&mut self, told: &[Told], revision: Revision, out: &mut Out) {
        for Told(key, _) in told {
            if let LetterKey::Decided(over) = key {
                self.stands(over, revision);
            }
        }
        self.answered(told, Stage::At(revision), out);
    }

    /// R5: one letter that etcd does not take keeps back no other: from then on each goes by itself, and the one that is
    /// refused then waits for the next connection.
    pub(super) fn refused(&mut self, told: &[Told], out: &mut Out) {
        match told {
            [Told(key, _)] => drop(self.parked.insert(key.clone())),
            _ => self.singly = true,
        }
        self.not_told(told, out);
    }

    pub(super) fn not_told(&mut self, told: &[Told], out: &mut Out) {
        self.answered(told, Stage::Waiting, out);
    }

    fn answered(&mut self, told: &[Told], stage: Stage, out: &mut Out) {
        for Told(key, turn) in told {
            self.on_its_way.remove(key);
            // the watch may have shown it before
            let is_the_same = |letter: &Letter| letter.turn == *turn && letter.stage == Stage::OnItsWay;
            if self.letters.get(key).is_some_and(is_the_same) {
                self.set_and_tell(key, self.as_read(key, stage), out);
            }
        }
    }

    /// A login may have written the same key meanwhile.
    fn as_read(&self, key: &LetterKey, stage: Stage) -> Stage {
        match (key, stage) {
            (LetterKey::Decided(over), Stage::At(at)) => {
                Stage::At(self.records.get(over).copied().unwrap_or(at).max(at))
            }
            _ => stage,
        }
    }

    fn set_and_tell(&mut self, key: &LetterKey, stage: Stage, out: &mut Out) {
        self.set(key, stage);
        let Some(letter) = self.letters.get_mut(key) else { return };
        let Stage::At(revision) = stage else { return };
        if std::mem::take(&mut letter.untold) {
            if let LetterKey::Decided(over) = key {
                let told =
                    |number: &Number| ClusterEffect::Told { number: *number, over: over.clone(), revision };
                out.extend(letter.numbers.iter().map(told));
            }
            out.push(ClusterEffect::LetterTold { key: key.clone() });
        }
    }

    fn stands(&mut self, over: &Over, revision: Revision) {
        let at = self.records.entry(over.clone()).or_insert(revision);
        *at = revision.max(*at);
    }

    /// Whether what was on its way has arrived is seen in the state that is read next.
    pub(super) fn nothing_on_its_way(&mut self) {
        self.parked.clear();
        self.singly = false;
        for key in std::mem::take(&mut self.on_its_way).into_keys() {
            if self.letters.get(&key).is_some_and(|letter| letter.stage == Stage::OnItsWay) {
                self.set(&key, Stage::Waiting);
            }
        }
    }

    /// A record of this gateway is in etcd.
    pub(super) fn found(&mut self, over: Over, number: Number, revision: Revision, out: &mut Out) {
        self.stands(&over, revision);
        let key = LetterKey::Decided(over);
        match self.letters.get(&key) {
            // one that has no number was not entered, and is no letter of here
            Some(Letter { content: Content::Record(record), .. })
                if number != 0 && record.number == number =>
            {
                self.set_and_tell(&key, Stage::At(revision), out);
            }
            // of a login that took its place, or of an earlier run, which has not tidied up
            None if matches!(key, LetterKey::Decided(Over::Session(_) | Over::Web(_))) => {
                self.arrived_before(key, Content::Record(nameless(number)), revision);
            }
            // a login has taken the place of a session that was ended here before
            Some(Letter { stage: Stage::At(at), .. }) if *at < revision => {
                self.set(&key, Stage::At(revision));
            }
            _ => {}
        }
    }

    fn arrived_before(&mut self, key: LetterKey, content: Content, revision: Revision) {
        let letter =
            Letter { content, stage: Stage::OnItsWay, numbers: BTreeSet::new(), untold: false, turn: 0 };
        self.letters.insert(key.clone(), letter);
        self.set(&key, Stage::At(revision));
    }

    /// A lift by this gateway is in etcd.
    pub(super) fn lift_found(&mut self, author: Author, over: Over, up_to: Revision, revision: Revision) {
        self.lifts.insert((author, over.clone()), (revision, up_to));
        let key = LetterKey::Lifted(author, over);
        // one that waits is told once more, and one on its way is answered
        if self.letters.get(&key).is_none_or(|letter| matches!(letter.stage, Stage::At(_))) {
            self.set(&key, Stage::OnItsWay);
            let content = Content::Lift { up_to: Some(up_to), by: String::new() };
            self.arrived_before(key, content, revision);
        }
    }
}

/// What is not told anew needs no words.
fn nameless(number: Number) -> Record {
    Record { number, by: String::new(), reason: String::new(), at: 0, until: None, lasts: None }
}
