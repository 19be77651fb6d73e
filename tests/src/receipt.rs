//! What the tests read from the daemon's JSON, in this one place.
//!
//! It is the messages of `proto/enforcer.proto` with their fields' own names.

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

/// Whether `show revocations --json` calls this revocation complete.
pub fn is_complete(shown: &Value, number: u64) -> bool {
    list(shown, "revocations")
        .iter()
        .any(|entry| entry["number"] == number && (entry["complete"] == true || entry["state"] == "complete"))
}

/// The numbers of the revocations in `show revocations --json`.
pub fn revocations(shown: &Value) -> Vec<u64> {
    list(shown, "revocations").iter().filter_map(|entry| entry["number"].as_u64()).collect()
}

/// The users with a live session in `show sessions --json`.
pub fn live(shown: &Value) -> Vec<String> {
    list(shown, "sessions")
        .iter()
        .filter(|entry| entry["state"].as_str().is_none_or(|state| state == "live"))
        .filter_map(|entry| entry["user"].as_str())
        .map(str::to_owned)
        .collect()
}

/// The safe_id of this session of ocserv's, in `show sessions --json`.
pub fn safe_id(shown: &Value, id: i32) -> Option<String> {
    let session = list(shown, "sessions").iter().find(|entry| entry["id"] == id)?;
    session["safe_id"].as_str().map(str::to_owned)
}

/// The packets that were dropped, all reasons together, in `show status --json`.
pub fn dropped(status: &Value) -> u64 {
    list(&status["counters"], "counters")
        .iter()
        .filter(|counter| counter["reason"].as_str().is_none_or(|reason| !reason.contains("pass")))
        .filter_map(|counter| counter["packets"].as_u64())
        .sum()
}

/// How the programs are attached, each device's in one word or two, in `show status --json`.
pub fn attached(status: &Value) -> Vec<(String, String)> {
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    list(&status["interfaces"], "interfaces")
        .iter()
        .map(|entry| (text(entry, "name"), text(entry, "how")))
        .collect()
}
