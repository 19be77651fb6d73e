//! Whether everybody knows everything: as etcd has it, and as the daemons say.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::Gateways;
use crate::process::{BOUND, eventually};
use crate::receipt::list;

/// Before every key.
pub const PREFIX: &str = "/enforcer/v1/";

/// A key as etcd has it.
#[derive(Debug, Clone)]
pub struct Entry {
    pub value: Value,
    pub revision: u64,
}

/// One gateway in `show gateways --json` of another one, or of itself.
#[derive(Debug, Clone)]
pub struct Shown(pub Value);

impl Shown {
    pub fn name(&self) -> &str {
        self.0["name"].as_str().unwrap_or_default()
    }

    /// How many records are not in force there yet.
    pub fn pending(&self) -> u64 {
        self.0["pending"].as_u64().unwrap_or(0)
    }
}

/// A 64-bit number in proto3 JSON: text, or a number.
fn number(value: &Value) -> u64 {
    value.as_str().and_then(|text| text.parse().ok()).or(value.as_u64()).unwrap_or(0)
}

impl Gateways {
    /// What stands in etcd, by keys without [`PREFIX`].
    #[track_caller]
    pub fn stored(&self) -> BTreeMap<String, Entry> {
        let said = self.etcd.ctl(&["get", "--prefix", PREFIX, "-w", "json"]);
        let said: Value = serde_json::from_str(&said).expect("etcdctl's JSON");
        let text = |value: &Value| {
            let bytes = STANDARD.decode(value.as_str().unwrap_or_default()).expect("base64");
            String::from_utf8(bytes).expect("our keys and values are text")
        };
        let entry = |kv: &Value| {
            let key = text(&kv["key"]).strip_prefix(PREFIX).expect("a key below the prefix").to_owned();
            let value = serde_json::from_str(&text(&kv["value"])).expect("our values are JSON");
            (key, Entry { value, revision: kv["mod_revision"].as_u64().unwrap_or(0) })
        };
        list(&said, "kvs").iter().map(entry).collect()
    }

    /// Waits until every gateway is there and has acknowledged every record that stands in etcd, and says so itself.
    #[track_caller]
    pub fn settled(&self) {
        let count = self.iter().count();
        let end = Instant::now() + BOUND;
        while let Some(what) = self.unsettled(count) {
            assert!(Instant::now() < end, "not within {BOUND:?}: {what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What is not settled yet.
    fn unsettled(&self, count: usize) -> Option<String> {
        let stored = self.stored();
        let below = |folder: &'static str| {
            stored.iter().filter_map(move |(key, entry)| Some((key.strip_prefix(folder)?, entry)))
        };
        if below("gateways/").count() < count || below("alive/").count() < count {
            return Some(format!("not all gateways are there: {:?}", stored.keys()));
        }
        for (id, _) in below("gateways/") {
            // what it has written itself it knows without a word
            let of_others =
                below("from/").filter(|(key, _)| !key.ends_with("/barrier") && !key.starts_with(id));
            let newest = of_others.map(|(_, entry)| entry.revision).max().unwrap_or(0);
            let up_to =
                stored.get(&format!("acknowledged/{id}")).map_or(0, |entry| number(&entry.value["revision"]));
            if up_to < newest {
                return Some(format!("{id} has acknowledged {up_to}, and not {newest}"));
            }
        }
        self.iter().find_map(|gateway| {
            let shown = gateway.shown();
            let all = gateway.gateways();
            let knows = all.len() >= count && all.iter().all(|one| one.pending() == 0);
            // what waits there for etcd is in none of the others' numbers
            let is_told = gateway.is_connected() && shown["etcd"]["letters"] == 0;
            (!knows || !is_told).then(|| format!("{} shows {shown}", gateway.name))
        })
    }

    /// Waits until a key is in etcd, and gives it.
    #[track_caller]
    pub fn has_stored(&self, key: &str) -> Entry {
        eventually(&format!("{key} is in etcd"), BOUND, || self.stored().remove(key))
    }
}

impl super::Gateway {
    fn shown(&self) -> Value {
        self.enforcer.cli(&["show", "gateways", "--json"]).json
    }

    /// `show gateways`.
    pub fn gateways(&self) -> Vec<Shown> {
        list(&self.shown(), "gateways").iter().cloned().map(Shown).collect()
    }

    /// Whether it says that it is connected to etcd.
    pub fn is_connected(&self) -> bool {
        self.shown()["etcd"]["state"] == "connected"
    }

    /// How many decisions wait there for etcd.
    pub fn letters(&self) -> u64 {
        self.shown()["etcd"]["letters"].as_u64().unwrap_or(0)
    }

    /// What it says of that gateway.
    pub fn says_of(&self, name: &str) -> Option<Shown> {
        self.gateways().into_iter().find(|one| one.name() == name)
    }
}
