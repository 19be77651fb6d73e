//! `enforcer gateway-keys`: the master keys of the web gateway.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use serde::Serialize;

use super::output;
use crate::config::Config;
use crate::exit::Code;
use crate::web::gateway::{self, files};
use crate::web::seal::{KeyInfo, MasterKeys};

#[derive(Debug, Clone, Copy, clap::Subcommand)]
pub enum Keys {
    /// Their numbers, and when they were made. Never the keys
    List,
    /// A new one, which wraps from now on
    Rotate,
    /// Take out those that no session can need any more: whose successor is older than [gateway] absolute-timeout
    Retire,
}

/// As `--json` prints it.
#[derive(Serialize)]
struct Shown {
    file: String,
    /// The oldest first.
    keys: Vec<Key>,
    /// What was done with which of them.
    done: &'static str,
    numbers: Vec<u32>,
}

#[derive(Serialize)]
struct Key {
    number: u32,
    /// Unix seconds; none for a key of before that was written down.
    made: Option<u64>,
    wraps: bool,
}

pub(super) fn run(what: Keys, config: &Config, json: bool) -> anyhow::Result<Code> {
    let gateway = config.gateway.as_ref();
    let gateway =
        gateway.context("there is no [gateway] in the configuration: --config names another file")?;
    // the file is the gateway's own, and nobody else's word counts for it
    gateway::become_its_user(config)?;
    let path: PathBuf = files::keys(&gateway.state);
    let now = SystemTime::now();
    let (done, numbers) = match what {
        Keys::List => ("listed", Vec::new()),
        Keys::Rotate => ("made", vec![MasterKeys::rotate(&path, now)?]),
        Keys::Retire => ("retired", MasterKeys::retire(&path, gateway.absolute_timeout, now)?),
    };
    let keys = MasterKeys::load(&path)?.list().map(key).collect();
    let nothing = matches!(what, Keys::Retire) && numbers.is_empty();
    let shown = Shown { file: path.display().to_string(), keys, done, numbers };
    output::print(json, &shown, |shown| text(shown, now))?;
    Ok(if nothing { Code::Nothing } else { Code::Done })
}

fn key(info: KeyInfo) -> Key {
    let made = info.made.and_then(|made| made.duration_since(UNIX_EPOCH).ok());
    Key { number: info.number, made: made.map(|made| made.as_secs()), wraps: info.wraps }
}

fn text(shown: &Shown, now: SystemTime) -> String {
    let mut text = match (shown.done, shown.numbers.as_slice()) {
        ("made", numbers) => format!("Key {} was made, and wraps from now on.\n", words(numbers)),
        ("retired", []) => {
            "No key was taken out: of each a session may still be there ([gateway] absolute-timeout).\n"
                .to_owned()
        }
        ("retired", numbers) => format!("Taken out: {}\n", words(numbers)),
        _ => String::new(),
    };
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    for key in &shown.keys {
        let made = match key.made {
            Some(made) => format!("{} h old", now.saturating_sub(made) / 3_600),
            None => "of unknown age".to_owned(),
        };
        let wraps = if key.wraps { ", wraps" } else { "" };
        text.push_str(&format!("{:>4}  {made}{wraps}\n", key.number));
    }
    text
}

fn words(numbers: &[u32]) -> String {
    numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_is_said_of_keys_is_no_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        MasterKeys::load_or_create(&path).unwrap();
        let later = SystemTime::now() + Duration::from_secs(7_200);
        MasterKeys::rotate(&path, SystemTime::now()).unwrap();
        let keys: Vec<Key> = MasterKeys::load(&path).unwrap().list().map(key).collect();
        let shown = Shown { file: String::new(), keys, done: "made", numbers: vec![2] };
        let said = text(&shown, later);
        assert!(said.starts_with("Key 2 was made") && said.contains("   1  2 h old\n"), "{said}");
        assert!(said.contains("   2  2 h old, wraps\n"), "{said}");
        assert!(said.len() < 100 && serde_json::to_string(&shown).unwrap().len() < 200);
    }
}
