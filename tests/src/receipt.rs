//! What the tests read from the daemon's JSON, in this one place.
//!
//! Assumed of a receipt: `{"number":N,"complete":bool,"layers":[{"layer":"packets|sockets|cookie|…","done":n,
//! "failed":n,"guarded":n,"text":"…"}],…}`.

use serde_json::Value;

/// What a revocation did, layer by layer.
#[derive(Clone, Debug)]
pub struct Receipt(pub Value);

impl Receipt {
    pub fn number(&self) -> Option<u64> {
        self.0["number"].as_u64()
    }

    pub fn complete(&self) -> bool {
        self.0["complete"] == true
    }

    fn layers(&self) -> &[Value] {
        self.0["layers"].as_array().map(Vec::as_slice).unwrap_or_default()
    }

    fn count(&self, layer: &str, key: &str) -> u64 {
        self.layers()
            .iter()
            .filter(|entry| entry["layer"] == layer)
            .filter_map(|entry| entry[key].as_u64())
            .sum()
    }

    pub fn done(&self, layer: &str) -> u64 {
        self.count(layer, "done")
    }

    pub fn failed(&self, layer: &str) -> u64 {
        self.count(layer, "failed")
    }

    /// Kept out by the gate, but not seen to be gone.
    pub fn guarded(&self, layer: &str) -> u64 {
        self.count(layer, "guarded")
    }

    /// A layer in the receipt's own words.
    pub fn text(&self, layer: &str) -> String {
        let texts: Vec<_> = self
            .layers()
            .iter()
            .filter(|entry| entry["layer"] == layer)
            .filter_map(|entry| entry["text"].as_str())
            .collect();
        texts.join("; ")
    }
}

/// A list in the daemon's JSON: either the value itself, or under `key`.
pub fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.as_array().or_else(|| value[key].as_array()).map(Vec::as_slice).unwrap_or_default()
}

/// The revocation of this number, in `show revocations --json`.
pub fn revocation(shown: &Value, number: u64) -> Option<Receipt> {
    list(shown, "revocations").iter().find(|entry| entry["number"] == number).cloned().map(Receipt)
}

/// The users' names in `show sessions --json` or `show users --json`.
pub fn users(shown: &Value) -> Vec<String> {
    let key = if shown["sessions"].is_array() { "sessions" } else { "users" };
    list(shown, key)
        .iter()
        .filter_map(|entry| entry["user"].as_str().or(entry["name"].as_str()))
        .map(str::to_owned)
        .collect()
}

/// The packets that were dropped, all reasons together, in `show status --json`.
pub fn dropped(status: &Value) -> u64 {
    fn sum(value: &Value) -> u64 {
        match value {
            Value::Number(number) => number.as_u64().unwrap_or(0),
            Value::Object(members) => members.values().map(sum).sum(),
            Value::Array(members) => members.iter().map(sum).sum(),
            _ => 0,
        }
    }
    sum(&status["dropped"])
}
