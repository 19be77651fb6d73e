//! Values as etcd has them: the messages of `proto/cluster.proto` as proto3 JSON.
//!
//! What is hostile or mistaken is refused with a sentence and harms nothing: bounded in bytes, each text with its own bound.
//! **A field that is not known is left aside, and told.** To refuse it would be worse both ways: a revocation by a newer
//! version would not be in force at an older one, and one by hand with `"reson"` for `"reason"` would be in force nowhere.
//! What must be right to be safe is in the key.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::keys::{read_session, write_session};
use super::words::{Holder, Key, Lift, Owners, Record, Value};
use crate::session::Over;

/// The messages themselves.
#[allow(clippy::all, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "generated")]
pub mod api {
    include!(concat!(env!("OUT_DIR"), "/enforcer.cluster.v1.rs"));
    include!(concat!(env!("OUT_DIR"), "/enforcer.cluster.v1.serde.rs"));
}

/// No value is longer, in bytes.
pub const MAX_VALUE: usize = 8 * 1024;
/// In bytes.
pub const MAX_REASON: usize = 1_024;
/// In bytes: who asked, and a gateway's name.
pub const MAX_BY: usize = 256;
/// How many sessions of one person may be allowed at once.
pub const MAX_HOLDERS: usize = 64;
/// In bytes: short words such as a version.
const MAX_WORD: usize = 64;
/// In seconds: no lock is asked for longer than 100 years, and none ends later than that after 1970 and 100 years more.
const MAX_LASTS: u64 = 100 * 366 * 86_400;
const MAX_UNTIL: u64 = 3 * MAX_LASTS;
/// In bytes: what is told of a value that is wrong.
const MAX_TOLD: usize = 200;

/// No value of that key. The texts end up before people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRecord {
    #[error("it is {0} bytes long, and no record is longer than {MAX_VALUE}")]
    TooLong(usize),
    #[error("it is no record in JSON: {0}")]
    Json(String),
    #[error("{field} is {length} bytes long: it is at most {most}")]
    Length { field: &'static str, length: usize, most: usize },
    #[error("{0}")]
    Meaning(String),
    #[error("a value of another key")]
    OtherKey,
}

/// As it is written.
///
/// # Errors
/// [`BadRecord`]: a text that is too long, too many holders, or a value that does not belong to the key.
pub fn write(key: &Key, value: &Value) -> Result<Vec<u8>, BadRecord> {
    let bytes = match (key, value) {
        (Key::Gateway(_), Value::Gateway { name, version }) => {
            json(&api::Gateway { name: name.clone(), version: version.clone() })
        }
        (Key::Alive(_), Value::Alive { run, at }) => json(&api::Alive { run: run.clone(), at: *at }),
        (Key::Acknowledged(_), Value::Acknowledged(revision)) => {
            json(&api::Acknowledged { revision: *revision })
        }
        (Key::Barrier(_), Value::Barrier) => json(&api::Barrier {}),
        (Key::Record(_, Over::Lock(_)), Value::Record(record)) => json(&api::Lock {
            reason: record.reason.clone(),
            by: record.by.clone(),
            at: record.at,
            number: record.number,
            until: record.until.unwrap_or_default(),
            for_seconds: record.lasts.unwrap_or_default(),
        }),
        (Key::Record(..), Value::Record(Record { until: None, lasts: None, reason, by, at, number })) => {
            json(&api::Revocation { reason: reason.clone(), by: by.clone(), at: *at, number: *number })
        }
        (Key::Lift(..), Value::Lift(lift)) => json(&api::Lift {
            up_to: lift.up_to,
            reason: lift.reason.clone(),
            by: lift.by.clone(),
            at: lift.at,
            number: lift.number,
        }),
        (Key::Admission(..), Value::Admission { at }) => json(&api::Admission { at: *at }),
        (Key::Owners(_), Value::Owners(owners)) => json(&api::Owners {
            generation: owners.generation,
            holders: owners
                .holders
                .iter()
                .map(|holder| api::Holder {
                    gateway: holder.gateway.to_string(),
                    session: write_session(&holder.session),
                })
                .collect(),
        }),
        _ => return Err(BadRecord::OtherKey),
    }?;
    // what would be refused there is refused here
    read(key, &bytes).map(|_| bytes)
}

fn json(message: &impl Serialize) -> Result<Vec<u8>, BadRecord> {
    serde_json::to_vec(message).map_err(|error| BadRecord::Json(error.to_string()))
}

/// What a value says, and what is odd about it though it is in force.
///
/// # Errors
/// [`BadRecord`]
pub fn read(key: &Key, bytes: &[u8]) -> Result<(Value, Option<String>), BadRecord> {
    if bytes.len() > MAX_VALUE {
        return Err(BadRecord::TooLong(bytes.len()));
    }
    match key {
        Key::Gateway(_) => {
            let (read, odd) = parse::<api::Gateway>(bytes, &["name", "version"])?;
            bound("name", &read.name, MAX_BY)?;
            bound("version", &read.version, MAX_WORD)?;
            Ok((Value::Gateway { name: read.name, version: read.version }, odd))
        }
        Key::Alive(_) => {
            let (read, odd) = parse::<api::Alive>(bytes, &["run", "at"])?;
            bound("run", &read.run, MAX_WORD)?;
            Ok((Value::Alive { run: read.run, at: read.at }, odd))
        }
        Key::Acknowledged(_) => {
            let (read, odd) = parse::<api::Acknowledged>(bytes, &["revision"])?;
            Ok((Value::Acknowledged(read.revision), odd))
        }
        Key::Barrier(_) => parse::<api::Barrier>(bytes, &[]).map(|(_, odd)| (Value::Barrier, odd)),
        Key::Record(_, Over::Lock(_)) => read_lock(bytes),
        Key::Record(..) => {
            let (read, odd) = parse::<api::Revocation>(bytes, &["reason", "by", "at", "number"])?;
            let api::Revocation { reason, by, at, number } = read;
            bound("reason", &reason, MAX_REASON)?;
            bound("by", &by, MAX_BY)?;
            Ok((Value::Record(Record { reason, by, at, number, until: None, lasts: None }), odd))
        }
        Key::Lift(..) => read_lift(bytes),
        Key::Admission(..) => {
            let (read, odd) = parse::<api::Admission>(bytes, &["at"])?;
            Ok((Value::Admission { at: read.at }, odd))
        }
        Key::Owners(_) => read_owners(bytes),
    }
}

fn read_lock(bytes: &[u8]) -> Result<(Value, Option<String>), BadRecord> {
    const KNOWN: [&str; 7] = ["reason", "by", "at", "number", "until", "forSeconds", "for_seconds"];
    let (read, odd) = parse::<api::Lock>(bytes, &KNOWN)?;
    let api::Lock { reason, by, at, number, until, for_seconds } = read;
    bound("reason", &reason, MAX_REASON)?;
    bound("by", &by, MAX_BY)?;
    if until == 0 && for_seconds > 0 {
        let text = "forSeconds without until: say until when, in unix seconds (`date -d '+1 hour' +%s`)";
        return Err(BadRecord::Meaning(text.into()));
    }
    if until > MAX_UNTIL || for_seconds > MAX_LASTS {
        let text = "until or forSeconds lies more than a hundred years ahead: leave both out for a lock until it is lifted";
        return Err(BadRecord::Meaning(text.into()));
    }
    let some = |number: u64| (number > 0).then_some(number);
    let record = Record { reason, by, at, number, until: some(until), lasts: some(for_seconds) };
    Ok((Value::Record(record), odd))
}

fn read_lift(bytes: &[u8]) -> Result<(Value, Option<String>), BadRecord> {
    let (read, odd) = parse::<api::Lift>(bytes, &["upTo", "up_to", "reason", "by", "at", "number"])?;
    let api::Lift { up_to, reason, by, at, number } = read;
    bound("reason", &reason, MAX_REASON)?;
    bound("by", &by, MAX_BY)?;
    if up_to == 0 {
        let text = "upTo is missing: it is the mod_revision of the record that is lifted (`etcdctl get KEY -w json`)";
        return Err(BadRecord::Meaning(text.into()));
    }
    Ok((Value::Lift(Lift { up_to, reason, by, at, number }), odd))
}

fn read_owners(bytes: &[u8]) -> Result<(Value, Option<String>), BadRecord> {
    let (read, odd) = parse::<api::Owners>(bytes, &["generation", "holders"])?;
    if read.holders.len() > MAX_HOLDERS {
        return Err(BadRecord::Meaning(format!("{} holders: at most {MAX_HOLDERS}", read.holders.len())));
    }
    let holders = read.holders.iter().map(|holder| {
        let gateway =
            holder.gateway.parse().map_err(|error| BadRecord::Meaning(format!("holders: {error}")))?;
        let session =
            read_session(&holder.session).map_err(|error| BadRecord::Meaning(format!("holders: {error}")))?;
        Ok(Holder { gateway, session })
    });
    let holders = holders.collect::<Result<_, BadRecord>>()?;
    Ok((Value::Owners(Owners { generation: read.generation, holders }), odd))
}

fn bound(field: &'static str, text: &str, most: usize) -> Result<(), BadRecord> {
    if text.len() > most {
        return Err(BadRecord::Length { field, length: text.len(), most });
    }
    Ok(())
}

/// `known`: each field in both of its spellings. Of a holder within `holders` other fields are left aside unsaid.
fn parse<T: DeserializeOwned>(bytes: &[u8], known: &[&str]) -> Result<(T, Option<String>), BadRecord> {
    let bad = |error: serde_json::Error| BadRecord::Json(short(&error.to_string()));
    let message = serde_json::from_slice(bytes).map_err(bad)?;
    let fields: BTreeMap<String, IgnoredAny> = serde_json::from_slice(bytes).map_err(bad)?;
    let strange: Vec<&str> =
        fields.keys().map(String::as_str).filter(|field| !known.contains(field)).take(5).collect();
    let odd = (!strange.is_empty()).then(|| {
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        short(&format!("what it says in {strange:?} is not known and left aside; known are: {known}"))
    });
    Ok((message, odd))
}

/// What is told of somebody's value: no control characters, and bounded.
pub(super) fn short(text: &str) -> String {
    let mut shown = String::new();
    for character in text.chars() {
        if shown.len() >= MAX_TOLD {
            shown.push('…');
            break;
        }
        if character.is_control() { shown.extend(character.escape_default()) } else { shown.push(character) }
    }
    shown
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cluster::words::SessionId;
    use crate::session::{Author, GatewayId, Identity, SafeId, WebKey};

    const ID: GatewayId = GatewayId::from_bytes([7; 16]);

    fn alice() -> Identity {
        Identity { realm: "default".into(), name: "alice".into() }
    }

    fn user() -> Key {
        Key::Record(Author::Admin, Over::User(alice()))
    }

    fn lock() -> Key {
        Key::Record(Author::Admin, Over::Lock(alice()))
    }

    /// One of each kind, every field set.
    fn all() -> Vec<(Key, Value)> {
        let text = |text: &str| text.to_owned();
        let record = Record {
            reason: text("left the \"company\" \n\u{e9}"),
            by: text("uid 0"),
            at: 1_732_360_000,
            number: u64::MAX,
            until: None,
            lasts: None,
        };
        let locked = Record { until: Some(1_732_363_600), lasts: Some(3_600), ..record.clone() };
        let lift = Lift { up_to: 17, reason: text("mistake"), by: text("uid 0"), at: 1, number: 2 };
        let holders = vec![
            Holder { gateway: ID, session: SessionId::Vpn(SafeId::from_bytes([1; 20])) },
            Holder { gateway: ID, session: SessionId::Web(WebKey::from_bytes([2; 16])) },
        ];
        vec![
            (Key::Gateway(ID), Value::Gateway { name: text("gw-1"), version: text("0.1.0") }),
            (Key::Alive(ID), Value::Alive { run: text("a7"), at: 5 }),
            (Key::Acknowledged(ID), Value::Acknowledged(u64::MAX)),
            (Key::Barrier(ID), Value::Barrier),
            (user(), Value::Record(record.clone())),
            (
                Key::Record(Author::Admin, Over::Session(SafeId::from_bytes([1; 20]))),
                Value::Record(record.clone()),
            ),
            (Key::Record(Author::Admin, Over::Web(WebKey::from_bytes([1; 16]))), Value::Record(record)),
            (lock(), Value::Record(locked)),
            (Key::Lift(Author::Admin, Author::Gateway(ID), Over::User(alice())), Value::Lift(lift)),
            (
                Key::Admission(ID, alice(), SessionId::Vpn(SafeId::from_bytes([1; 20]))),
                Value::Admission { at: 1 },
            ),
            (Key::Owners(alice()), Value::Owners(Owners { generation: 3, holders })),
        ]
    }

    /// Also: no field is among the generated ones that is not among the known ones.
    #[test]
    fn a_value_reads_back_as_it_was_written_and_nothing_is_odd() {
        for (key, value) in all() {
            let bytes = write(&key, &value).unwrap();
            assert_eq!(read(&key, &bytes), Ok((value, None)), "{key:?}: {}", String::from_utf8_lossy(&bytes));
        }
    }

    #[test]
    fn a_value_belongs_to_its_key() {
        let all = all();
        for (key, _) in &all {
            for (other, value) in &all {
                let fits = write(key, value);
                // a lock is a revocation's record with a time
                let same = std::mem::discriminant(key) == std::mem::discriminant(other);
                assert!(same || fits == Err(BadRecord::OtherKey), "{key:?} {value:?}");
            }
        }
        let timed = Value::Record(Record { until: Some(5), ..Record::default() });
        assert_eq!(write(&user(), &timed), Err(BadRecord::OtherKey), "only a lock ends by itself");
    }

    /// What an administrator writes by hand: short, in either spelling, numbers or texts.
    #[test]
    fn proto3_json_is_read_as_it_may_be_written() {
        let record = |key: &Key, text: &str| match read(key, text.as_bytes()) {
            Ok((Value::Record(record), None)) => record,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(record(&user(), "{}"), Record::default());
        assert_eq!(record(&user(), r#" { "at" : 5 , "reason" : "x" } "#).at, 5);
        assert_eq!(record(&user(), r#"{"at":"5"}"#).at, 5);
        for spelling in ["forSeconds", "for_seconds"] {
            let read = record(&lock(), &format!(r#"{{"until": 100, "{spelling}": 60}}"#));
            assert_eq!((read.until, read.lasts), (Some(100), Some(60)));
        }
    }

    #[test]
    fn r7_what_is_no_record_is_refused_and_says_why() {
        let long = format!(r#"{{"reason":"{}"}}"#, "x".repeat(1_025));
        let by = format!(r#"{{"by":"{}"}}"#, "x".repeat(257));
        let huge = format!(r#"{{"reason":"{}"}}"#, "x".repeat(MAX_VALUE));
        let deep = "[".repeat(4_000);
        let lift = Key::Lift(Author::Admin, Author::Admin, Over::User(alice()));
        let holders =
            |holder: &str| format!(r#"{{"holders":[{}]}}"#, vec![holder; 65].join(",")).replace("[]", "[{}]");
        for (key, text, says) in [
            (user(), "", "JSON"),
            (user(), "alice", "JSON"),
            (user(), "[]", "JSON"),
            (user(), "null", "JSON"),
            (user(), "\"x\"", "JSON"),
            (user(), r#"{"at":-1}"#, "JSON"),
            (user(), r#"{"at":1e300}"#, "JSON"),
            (user(), r#"{"at":"soon"}"#, "JSON"),
            (user(), r#"{"reason":5}"#, "JSON"),
            (user(), r#"{"reason":null}"#, "JSON"),
            (user(), r#"{"reason":"a","reason":"b"}"#, "JSON"),
            (user(), r#"{"reason":"a"} {}"#, "JSON"),
            (user(), &deep, "JSON"),
            (user(), &long, "at most 1024"),
            (user(), &by, "at most 256"),
            (user(), &huge, "no record is longer"),
            (lock(), r#"{"forSeconds":60}"#, "until when"),
            (lock(), r#"{"until":"18446744073709551615"}"#, "hundred years"),
            (lift.clone(), "{}", "mod_revision"),
            (Key::Owners(alice()), r#"{"holders":[{"gateway":"x","session":"y"}]}"#, "gateway's id"),
            (Key::Owners(alice()), &holders("{}"), "at most 64"),
        ] {
            let why = read(&key, text.as_bytes()).unwrap_err().to_string();
            assert!(why.contains(says), "{}: {why}", short(text));
            assert!(why.len() < 400 && !why.chars().any(char::is_control), "{why:?}");
        }
        assert!(read(&user(), b"{\"reason\":\"\xff\"}").is_err());
    }

    #[test]
    fn a_field_that_is_not_known_is_told_and_spoils_nothing() {
        let text = r#"{"reson":"typo","reason":"x","later\n":{"deep":[1]}}"#;
        let (value, odd) = read(&user(), text.as_bytes()).unwrap();
        assert_eq!(value, Value::Record(Record { reason: "x".into(), ..Record::default() }));
        let odd = odd.unwrap();
        assert!(odd.contains("reson") && odd.contains("reason, by, at, number"), "{odd}");
        assert!(!odd.chars().any(char::is_control), "{odd:?}");
        let (_, odd) = read(&Key::Barrier(ID), br#"{"x":1}"#).unwrap();
        assert!(odd.unwrap().contains("none"));
    }

    proptest! {
        #[test]
        fn r7_no_bytes_make_reading_a_value_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), which in 0..11_usize) {
            let _ = read(&all()[which].0, &bytes);
        }

        #[test]
        fn r7_no_text_in_a_field_makes_reading_panic_and_what_is_read_is_written(text in ".{0,60}", at in any::<u64>(), which in 0..11_usize) {
            let key = &all()[which].0;
            let json = serde_json::json!({ "reason": text, "by": text, "at": at, "upTo": at, "until": at, "name": text, "generation": at });
            if let Ok((value, _)) = read(key, &serde_json::to_vec(&json).unwrap()) {
                let bytes = write(key, &value).unwrap();
                prop_assert_eq!(read(key, &bytes), Ok((value, None)));
            }
        }
    }
}
