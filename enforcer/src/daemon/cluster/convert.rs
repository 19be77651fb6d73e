//! Between the words of the rules and those of etcd's adapter, which do not know each other.

use crate::cluster as etcd;
use crate::registry::cluster as rules;

/// What only people are told of a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Facts {
    /// Of this program, in the gateway's key.
    pub version: String,
    /// Unix seconds.
    pub now: u64,
}

pub(super) fn txn(txn: rules::Txn, facts: &Facts) -> etcd::Txn {
    let ops = |ops: Vec<rules::Op>| ops.into_iter().filter_map(|each| op(each, facts)).collect();
    etcd::Txn {
        only_if: txn.only_if.into_iter().map(condition).collect(),
        then: ops(txn.then),
        otherwise: ops(txn.otherwise),
    }
}

fn condition(condition: rules::Condition) -> etcd::Condition {
    match condition {
        rules::Condition::Absent(its) | rules::Condition::Unchanged(its, 0) => {
            etcd::Condition::Absent(key(its))
        }
        rules::Condition::Unchanged(its, revision) => etcd::Condition::Unchanged(key(its), revision),
    }
}

/// `None`: the adapter does that by itself.
fn op(op: rules::Op, facts: &Facts) -> Option<etcd::Op> {
    Some(match op {
        rules::Op::Put(rules::Key::Alive(_), _) => return None,
        rules::Op::Put(its, is) => etcd::Op::Put(key(its), value(is, facts)),
        rules::Op::Delete(its) => etcd::Op::Delete(key(its)),
        rules::Op::Get(its) => etcd::Op::Get(key(its)),
    })
}

fn key(key: rules::Key) -> etcd::Key {
    match key {
        rules::Key::Gateway(id) => etcd::Key::Gateway(id),
        rules::Key::Alive(id) => etcd::Key::Alive(id),
        rules::Key::Acknowledged(id) => etcd::Key::Acknowledged(id),
        rules::Key::Barrier(id) => etcd::Key::Barrier(id),
        rules::Key::Record(author, over) => etcd::Key::Record(author, over),
        rules::Key::Lift(lifter, author, over) => etcd::Key::Lift(lifter, author, over),
        rules::Key::Admission(gateway, who, id) => etcd::Key::Admission(gateway, who, id),
        rules::Key::Owners(who) => etcd::Key::Owners(who),
    }
}

fn value(value: rules::Value, facts: &Facts) -> etcd::Value {
    match value {
        rules::Value::Gateway { name } => etcd::Value::Gateway { name, version: facts.version.clone() },
        rules::Value::Alive => etcd::Value::Alive { run: String::new(), at: facts.now },
        rules::Value::Acknowledged(revision) => etcd::Value::Acknowledged(revision),
        rules::Value::Barrier => etcd::Value::Barrier,
        rules::Value::Record(record) => etcd::Value::Record(etcd::Record {
            reason: cut(record.reason, etcd::record::MAX_REASON),
            by: cut(record.by, etcd::record::MAX_BY),
            at: record.at,
            number: record.number,
            until: record.until,
            lasts: record.lasts,
        }),
        rules::Value::Lift { up_to, by } => {
            let by = cut(by, etcd::record::MAX_BY);
            etcd::Value::Lift(etcd::Lift { up_to, by, at: facts.now, ..etcd::Lift::default() })
        }
        // the rules write no such thing
        rules::Value::Unreadable | rules::Value::Admission => etcd::Value::Admission { at: facts.now },
        rules::Value::Owners(owners) => etcd::Value::Owners(etcd::Owners {
            generation: owners.generation,
            holders: (owners.holders.into_iter())
                .map(|holder| etcd::Holder { gateway: holder.gateway, session: holder.session })
                .collect(),
        }),
    }
}

/// At most so many bytes: what is only for people keeps nothing from being told.
fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        let end = (0..=most).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

fn key_back(key: etcd::Key) -> rules::Key {
    match key {
        etcd::Key::Gateway(id) => rules::Key::Gateway(id),
        etcd::Key::Alive(id) => rules::Key::Alive(id),
        etcd::Key::Acknowledged(id) => rules::Key::Acknowledged(id),
        etcd::Key::Barrier(id) => rules::Key::Barrier(id),
        etcd::Key::Record(author, over) => rules::Key::Record(author, over),
        etcd::Key::Lift(lifter, author, over) => rules::Key::Lift(lifter, author, over),
        etcd::Key::Admission(gateway, who, id) => rules::Key::Admission(gateway, who, id),
        etcd::Key::Owners(who) => rules::Key::Owners(who),
    }
}

fn value_back(value: etcd::Value) -> rules::Value {
    match value {
        etcd::Value::Gateway { name, .. } => rules::Value::Gateway { name },
        etcd::Value::Alive { .. } => rules::Value::Alive,
        etcd::Value::Acknowledged(revision) => rules::Value::Acknowledged(revision),
        etcd::Value::Barrier => rules::Value::Barrier,
        etcd::Value::Record(record) => rules::Value::Record(rules::Record {
            number: record.number,
            by: record.by,
            reason: record.reason,
            at: record.at,
            until: record.until,
            lasts: record.lasts,
        }),
        etcd::Value::Lift(lift) => rules::Value::Lift { up_to: lift.up_to, by: lift.by },
        etcd::Value::Admission { .. } => rules::Value::Admission,
        etcd::Value::Owners(owners) => rules::Value::Owners(rules::Owners {
            generation: owners.generation,
            holders: (owners.holders.into_iter())
                .map(|holder| rules::Holder { gateway: holder.gateway, session: holder.session })
                .collect(),
        }),
    }
}

/// Without what cannot be read: what its key said before stands, and the adapter has told of it.
pub(super) fn changes(changes: Vec<etcd::Change>) -> Vec<rules::Change> {
    let change = |change: etcd::Change| {
        let value = match change.now {
            etcd::Now::Is(value) => Some(value_back(value)),
            etcd::Now::Gone => None,
            etcd::Now::Unreadable => return None,
        };
        Some(rules::Change { key: key_back(change.key), value, revision: change.revision })
    };
    changes.into_iter().filter_map(change).collect()
}

/// `None`: it answers no transaction.
pub(super) fn outcome(outcome: etcd::Outcome) -> Option<Result<rules::Outcome, rules::Trouble>> {
    Some(match outcome {
        etcd::Outcome::Done { held, revision, got } => {
            Ok(rules::Outcome { held, revision, got: got.into_iter().map(got_back).collect() })
        }
        etcd::Outcome::Listed { .. } => return None,
        etcd::Outcome::Refused { why } => Err(rules::Trouble::Refused(why)),
        etcd::Outcome::NotSent { .. } | etcd::Outcome::NotKnown { .. } => Err(rules::Trouble::Unknown),
    })
}

fn got_back(change: etcd::Change) -> Option<(rules::Value, rules::Revision)> {
    match change.now {
        etcd::Now::Is(value) => Some((value_back(value), change.revision)),
        // it is there, and can only be written over
        etcd::Now::Unreadable => Some((rules::Value::Unreadable, change.revision)),
        etcd::Now::Gone => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{Author, GatewayId, Identity, Over, SafeId, SessionId, WebKey};

    const ME: GatewayId = GatewayId::from_bytes([1; 16]);

    fn alice() -> Identity {
        Identity { realm: "default".into(), name: "alice".into() }
    }

    fn facts() -> Facts {
        Facts { version: "1".into(), now: 7 }
    }

    fn there_and_back(op_in: rules::Op) -> Option<rules::Change> {
        let one = rules::Txn { then: vec![op_in], ..rules::Txn::default() };
        let etcd::Op::Put(key, value) = txn(one, &facts()).then.pop()? else { return None };
        changes(vec![etcd::Change { key, now: etcd::Now::Is(value), revision: 9, created: 9 }]).pop()
    }

    #[test]
    fn what_the_rules_write_is_what_they_read() {
        let (vpn, web) =
            (SessionId::Vpn(SafeId::from_bytes([3; 20])), SessionId::Web(WebKey::from_bytes([4; 16])));
        let record = rules::Record {
            number: 4,
            by: "root".into(),
            reason: "why".into(),
            at: 5,
            until: Some(90),
            lasts: Some(60),
        };
        let holders = [vpn, web].map(|session| rules::Holder { gateway: ME, session }).into();
        let owners = rules::Owners { generation: 2, holders };
        let mine = Author::Gateway(ME);
        for (key, value) in [
            (rules::Key::Gateway(ME), rules::Value::Gateway { name: "vpn-1".into() }),
            (rules::Key::Acknowledged(ME), rules::Value::Acknowledged(8)),
            (rules::Key::Barrier(ME), rules::Value::Barrier),
            (rules::Key::Record(mine, Over::Lock(alice())), rules::Value::Record(record)),
            (
                rules::Key::Lift(mine, Author::Admin, Over::User(alice())),
                rules::Value::Lift { up_to: 3, by: "root".into() },
            ),
            (rules::Key::Admission(ME, alice(), vpn), rules::Value::Admission),
            (rules::Key::Admission(ME, alice(), web), rules::Value::Admission),
            (rules::Key::Owners(alice()), rules::Value::Owners(owners)),
        ] {
            let back = there_and_back(rules::Op::Put(key.clone(), value.clone()));
            assert_eq!(back, Some(rules::Change { key, value: Some(value), revision: 9 }));
        }
        assert_eq!(there_and_back(rules::Op::Put(rules::Key::Alive(ME), rules::Value::Alive)), None);
    }

    /// R5: a long reason keeps no decision from being told.
    #[test]
    fn r5_what_is_too_long_for_people_is_cut() {
        assert_eq!(cut("é".repeat(200), etcd::record::MAX_BY).len(), 256);
        assert_eq!(cut("é".repeat(128), 255).len(), 254);
        assert_eq!(cut("short".into(), 256), "short");
    }

    #[test]
    fn what_was_never_there_is_absent() {
        let never = rules::Condition::Unchanged(rules::Key::Owners(alice()), 0);
        assert_eq!(condition(never), etcd::Condition::Absent(etcd::Key::Owners(alice())));
        let once = rules::Condition::Unchanged(rules::Key::Owners(alice()), 3);
        assert_eq!(condition(once), etcd::Condition::Unchanged(etcd::Key::Owners(alice()), 3));
    }

    /// R7: what cannot be read takes nothing back, and a place that it stands in is not free.
    #[test]
    fn r7_what_cannot_be_read_is_neither_gone_nor_free() {
        let change = |now| etcd::Change { key: etcd::Key::Owners(alice()), now, revision: 4, created: 2 };
        assert_eq!(changes(vec![change(etcd::Now::Unreadable)]), []);
        assert!(matches!(got_back(change(etcd::Now::Unreadable)), Some((_, 4))));
        assert_eq!(got_back(change(etcd::Now::Gone)), None);
    }
}
