//! What of etcd the rules see: one order of all transactions, and who watches reads them in it.

use std::collections::BTreeMap;

use super::super::words::{Change, Condition, Key, Op, Outcome, Revision, Txn, Value};

#[derive(Debug, Default)]
pub(super) struct Etcd {
    pub revision: Revision,
    pub keys: BTreeMap<Key, (Value, Revision)>,
    /// What whoever watches is told, by revision.
    log: BTreeMap<Revision, Vec<Change>>,
}

fn is_watched(key: &Key) -> bool {
    !matches!(key, Key::Admission(..) | Key::Owners(_))
}

impl Etcd {
    pub fn commit(&mut self, txn: &Txn) -> Outcome {
        let held = txn.only_if.iter().all(|condition| match condition {
            Condition::Absent(key) => !self.keys.contains_key(key),
            Condition::Unchanged(key, at) => self.keys.get(key).map_or(0, |(_, modified)| *modified) == *at,
        });
        let ops = if held { &txn.then } else { &txn.otherwise };
        let written: Vec<&Key> = (ops.iter())
            .filter_map(|op| match op {
                Op::Put(key, _) | Op::Delete(key) => Some(key),
                Op::Get(_) => None,
            })
            .collect();
        assert!(ops.len() <= 128, "more than etcd takes: {}", ops.len());
        let mut sorted = written.clone();
        sorted.sort();
        sorted.dedup();
        assert_eq!(sorted.len(), written.len(), "etcd takes no key twice: {ops:?}");
        if !written.is_empty() {
            self.revision += 1;
        }
        let mut got = Vec::new();
        for op in ops {
            match op {
                Op::Put(key, value) => {
                    self.keys.insert(key.clone(), (value.clone(), self.revision));
                    self.changed(key, Some(value));
                }
                Op::Delete(key) => {
                    if self.keys.remove(key).is_some() {
                        self.changed(key, None);
                    }
                }
                Op::Get(key) => got.push(self.keys.get(key).cloned()),
            }
        }
        Outcome { held, revision: self.revision, got }
    }

    fn changed(&mut self, key: &Key, value: Option<&Value>) {
        if is_watched(key) {
            let change = Change { key: key.clone(), value: value.cloned(), revision: self.revision };
            self.log.entry(self.revision).or_default().push(change);
        }
    }

    /// The first revision after that one of which whoever watches is told something.
    pub fn after(&self, revision: Revision) -> Option<(Revision, Vec<Change>)> {
        let (at, changes) = self.log.range(revision + 1..).next()?;
        Some((*at, changes.clone()))
    }

    pub fn state(&self) -> Vec<Change> {
        (self.keys.iter())
            .filter(|(key, _)| is_watched(key))
            .map(|(key, (value, at))| Change { key: key.clone(), value: Some(value.clone()), revision: *at })
            .collect()
    }
}
