//! An etcd in memory: one order of all transactions, and a log that whoever watches reads.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use enforcer::registry::cluster::{Change, Condition, Key, Op, Outcome, Owners, Revision, Txn, Value};
use enforcer::session::{Identity, SessionId};

use super::cost::{self, Cost};
use super::random::{SECOND, Time};

/// How long what was changed can be read: who was away longer reads everything anew.
const KEPT: Time = 30 * SECOND;

/// All that one revision has changed of what is watched.
struct Entry {
    at: Time,
    revision: Revision,
    changes: Vec<Change>,
}

pub struct Etcd {
    pub revision: Revision,
    watched: BTreeMap<Key, (Value, Revision)>,
    owners: BTreeMap<u32, (Owners, Revision)>,
    admissions: BTreeSet<SessionId>,
    log: VecDeque<Entry>,
    /// How many entries are gone before the first.
    gone: u64,
    pub watchers: usize,
    pub cost: Cost,
}

/// Names are `user` and a number.
pub fn number_of(who: &Identity) -> u32 {
    who.name.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(u32::MAX)
}

impl Etcd {
    pub fn new() -> Self {
        Self {
            revision: 0,
            watched: BTreeMap::new(),
            owners: BTreeMap::new(),
            admissions: BTreeSet::new(),
            log: VecDeque::new(),
            gone: 0,
            watchers: 0,
            cost: Cost::default(),
        }
    }

    fn get(&self, key: &Key) -> Option<(Value, Revision)> {
        match key {
            Key::Owners(who) => {
                self.owners.get(&number_of(who)).map(|(owners, at)| (Value::Owners(owners.clone()), *at))
            }
            Key::Admission(_, _, id) => self.admissions.contains(id).then_some((Value::Admission, 0)),
            key => self.watched.get(key).cloned(),
        }
    }

    fn stands_at(&self, key: &Key) -> Revision {
        match key {
            Key::Owners(who) => self.owners.get(&number_of(who)).map_or(0, |(_, at)| *at),
            key => self.watched.get(key).map_or(0, |(_, at)| *at),
        }
    }

    fn put(&mut self, now: Time, key: &Key, value: &Value) {
        let bytes = cost::key(key) + cost::value(value);
        let before = match (key, value) {
            (Key::Owners(who), Value::Owners(owners)) => {
                let before = self.owners.insert(number_of(who), (owners.clone(), self.revision));
                before.map(|(owners, _)| cost::value(&Value::Owners(owners)))
            }
            (Key::Admission(_, _, id), _) => {
                (!self.admissions.insert(*id)).then_some(cost::value(&Value::Admission))
            }
            _ => {
                let before = self.watched.insert(key.clone(), (value.clone(), self.revision));
                before.map(|(value, _)| cost::value(&value))
            }
        };
        let told = if is_watched(key) { self.watchers } else { 0 };
        self.cost.put(now, bytes, before.map(|value| value + cost::key(key)), told);
    }

    fn delete(&mut self, now: Time, key: &Key) -> bool {
        let before = match key {
            Key::Owners(who) => {
                self.owners.remove(&number_of(who)).map(|(owners, _)| cost::value(&Value::Owners(owners)))
            }
            Key::Admission(_, _, id) => self.admissions.remove(id).then_some(cost::value(&Value::Admission)),
            key => self.watched.remove(key).map(|(value, _)| cost::value(&value)),
        };
        let told = if is_watched(key) { self.watchers } else { 0 };
        if let Some(before) = before {
            self.cost.delete(now, cost::key(key), before + cost::key(key), told);
        }
        before.is_some()
    }

    pub fn commit(&mut self, now: Time, txn: &Txn) -> Outcome {
        let held = txn.only_if.iter().all(|condition| match condition {
            Condition::Absent(key) => self.get(key).is_none(),
            Condition::Unchanged(key, at) => self.stands_at(key) == *at,
        });
        let ops = if held { &txn.then } else { &txn.otherwise };
        if ops.iter().any(|op| !matches!(op, Op::Get(_))) {
            self.revision += 1;
            self.cost.write(now);
        }
        let (mut got, mut changes) = (Vec::new(), Vec::new());
        for op in ops {
            let (key, value) = match op {
                Op::Get(key) => {
                    got.push(self.get(key));
                    continue;
                }
                Op::Put(key, value) => {
                    self.put(now, key, value);
                    (key, Some(value.clone()))
                }
                Op::Delete(key) => {
                    if !self.delete(now, key) {
                        continue;
                    }
                    (key, None)
                }
            };
            if is_watched(key) {
                changes.push(Change { key: key.clone(), value, revision: self.revision });
            }
        }
        if !changes.is_empty() {
            self.log.push_back(Entry { at: now, revision: self.revision, changes });
        }
        while self.log.front().is_some_and(|entry| entry.at + KEPT < now) {
            self.log.pop_front();
            self.gone += 1;
        }
        Outcome { held, revision: self.revision, got }
    }

    /// Where the log ends now.
    pub fn end(&self) -> u64 {
        self.gone + self.log.len() as u64
    }

    /// Whether everything from there on can be read, also in a while.
    pub fn has(&self, place: u64, now: Time) -> bool {
        place == self.end() || self.entry(place).is_some_and(|entry| entry.at + KEPT / 2 > now)
    }

    fn entry(&self, place: u64) -> Option<&Entry> {
        self.log.get(usize::try_from(place.checked_sub(self.gone)?).ok()?)
    }

    /// What was written from `place` to `until`: up to which revision, what of it, and where to go on. Barriers are left
    /// out: they say nothing to whoever reads them but how far he has read.
    pub fn read(&self, place: u64, until: Time) -> Option<(Revision, Vec<Change>, u64)> {
        let (mut revision, mut changes, mut next) = (None, Vec::new(), place);
        while let Some(entry) = self.entry(next).filter(|entry| entry.at <= until) {
            let told = entry.changes.iter().filter(|change| !matches!(change.key, Key::Barrier(_)));
            changes.extend(told.cloned());
            revision = Some(entry.revision);
            next += 1;
        }
        revision.map(|revision| (revision, changes, next))
    }

    pub fn state(&self) -> Vec<Change> {
        let change = |(key, (value, at)): (&Key, &(Value, Revision))| Change {
            key: key.clone(),
            value: Some(value.clone()),
            revision: *at,
        };
        self.watched.iter().map(change).collect()
    }

    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.watched.keys()
    }

    pub fn places(&self) -> impl Iterator<Item = (u32, &Owners)> {
        self.owners.iter().map(|(who, (owners, _))| (*who, owners))
    }

    pub fn admissions(&self) -> &BTreeSet<SessionId> {
        &self.admissions
    }
}

fn is_watched(key: &Key) -> bool {
    !matches!(key, Key::Admission(..) | Key::Owners(_))
}
