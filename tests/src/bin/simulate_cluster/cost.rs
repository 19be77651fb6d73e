//! What a real etcd would have to write, keep and tell.

use enforcer::registry::cluster::{Key, Owners, Value};
use enforcer::session::{Author, Identity, Over};

use super::random::{SECOND, Time};

/// `/enforcer/v1/`
const PREFIX: usize = 13;
/// etcd's own words around each key and value that it tells: revisions, version, lengths.
const AROUND: usize = 40;
/// What etcd keeps of each revision of a key beside key and value, in its database.
const KEPT: usize = 60;
/// After so long a revision that was written over is compacted away (`--auto-compaction-retention=5m`).
pub const HISTORY: Time = 300 * SECOND;

fn person(who: &Identity) -> usize {
    who.realm.len() + 1 + who.name.len()
}

fn over(over: &Over) -> usize {
    match over {
        Over::User(who) | Over::Lock(who) => 6 + person(who),
        Over::Session(_) => 9 + 40,
        Over::Web(_) => 4 + 32,
    }
}

fn author(author: &Author) -> usize {
    match author {
        Author::Gateway(_) => 32,
        Author::Admin => 5,
    }
}

/// In bytes, as `enforcer/src/cluster/keys.rs` spells it (of names that need no escape).
pub fn key(key: &Key) -> usize {
    PREFIX
        + match key {
            Key::Gateway(_) => 9 + 32,
            Key::Alive(_) => 6 + 32,
            Key::Acknowledged(_) => 13 + 32,
            Key::Barrier(_) => 5 + 32 + 8,
            Key::Record(by, of) => 5 + author(by) + 1 + over(of),
            Key::Lift(by, of, what) => 5 + author(by) + 7 + author(of) + 1 + over(what),
            Key::Admission(_, who, _) => 9 + 32 + 1 + person(who) + 1 + 40,
            Key::Owners(who) => 7 + person(who),
        }
}

fn digits(number: u64) -> usize {
    number.checked_ilog10().map_or(1, |n| n as usize + 1)
}

/// `,"at":"1732360000"`
const AT: usize = 18;

/// In bytes, about: as `proto/cluster.proto` in JSON has it.
pub fn value(value: &Value) -> usize {
    match value {
        Value::Gateway { name } => 40 + name.len(),
        Value::Alive => 10 + 32 + AT,
        Value::Acknowledged(revision) => 15 + digits(*revision),
        Value::Barrier => 2,
        Value::Record(record) => {
            30 + record.reason.len()
                + record.by.len()
                + AT
                + digits(record.number)
                + if record.until.is_some() { 21 } else { 0 }
        }
        Value::Lift { up_to, by } => 25 + digits(*up_to) + by.len() + AT,
        Value::Admission => AT + 1,
        Value::Owners(owners) => places(owners),
        Value::Unreadable => 0,
    }
}

fn places(owners: &Owners) -> usize {
    32 + digits(owners.generation) + owners.holders.len() * (29 + 32 + 40)
}

/// Per simulated second, and in all.
#[derive(Default)]
pub struct Cost {
    /// What is counted: from when to when.
    pub window: std::ops::Range<Time>,
    /// When it is.
    time: Time,
    second: Time,
    now: Counts,
    most: Counts,
    all: Counts,
    /// Bytes of all keys that are there, as etcd keeps them.
    pub keys: u64,
    pub stored: u64,
    /// What is kept of the last minutes: (when, bytes).
    history: std::collections::VecDeque<(Time, u64)>,
    in_history: u64,
    most_in_history: u64,
}

#[derive(Default, Clone, Copy)]
struct Counts {
    writes: u64,
    events: u64,
    bytes: u64,
}

impl Counts {
    fn most(&mut self, other: Self) {
        self.writes = self.writes.max(other.writes);
        self.events = self.events.max(other.events);
        self.bytes = self.bytes.max(other.bytes);
    }
}

impl Cost {
    fn at(&mut self, now: Time) {
        self.time = now;
        let second = now / SECOND;
        if second != self.second {
            self.most.most(std::mem::take(&mut self.now));
            self.second = second;
            while self.history.front().is_some_and(|(at, _)| at + HISTORY < now) {
                self.in_history -= self.history.pop_front().map_or(0, |(_, bytes)| bytes);
            }
        }
    }

    /// A transaction that writes.
    pub fn write(&mut self, now: Time) {
        self.at(now);
        if !self.window.contains(&now) {
            return;
        }
        for counts in [&mut self.now, &mut self.all] {
            counts.writes += 1;
        }
    }

    /// A key was written. `told`: how many watch it. `before`: what stood there, in bytes.
    pub fn put(&mut self, now: Time, bytes: usize, before: Option<usize>, told: usize) {
        let bytes = bytes as u64;
        self.keep(now, bytes + KEPT as u64);
        match before {
            Some(before) => self.stored = self.stored + bytes - before as u64,
            None => {
                self.keys += 1;
                self.stored += bytes;
            }
        }
        self.tell(bytes, told);
    }

    pub fn delete(&mut self, now: Time, key: usize, before: usize, told: usize) {
        self.keep(now, (key + KEPT) as u64);
        self.keys = self.keys.saturating_sub(1);
        self.stored = self.stored.saturating_sub(before as u64);
        self.tell(key as u64, told);
    }

    fn keep(&mut self, now: Time, bytes: u64) {
        // what the day begins with was written long ago
        if self.window.is_empty() || now < self.window.start {
            return;
        }
        self.in_history += bytes;
        self.most_in_history = self.most_in_history.max(self.in_history);
        match self.history.back_mut() {
            Some((at, sum)) if *at / SECOND == now / SECOND => *sum += bytes,
            _ => self.history.push_back((now, bytes)),
        }
    }

    fn tell(&mut self, bytes: u64, told: usize) {
        if !self.window.contains(&self.time) {
            return;
        }
        for counts in [&mut self.now, &mut self.all] {
            counts.events += told as u64;
            counts.bytes += told as u64 * (bytes + AROUND as u64);
        }
    }

    pub fn print(&self, watchers: usize) {
        let seconds = ((self.window.end - self.window.start) / SECOND).max(1);
        let row = |what: &str, counts: &Counts, by: u64| {
            println!(
                "  {what}: {} writes, {} events to watchers, {:.1} MB to watchers",
                counts.writes / by,
                counts.events / by,
                counts.bytes as f64 / by as f64 / 1e6
            );
        };
        println!("what it would cost a real etcd ({watchers} watchers):");
        row("a second, on average", &self.all, seconds);
        row("in the worst second", &self.most, 1);
        println!(
            "  stored: {} keys, {:.1} MB; with five minutes of history at most {:.1} MB more",
            self.keys,
            (self.stored + self.keys * KEPT as u64) as f64 / 1e6,
            self.most_in_history as f64 / 1e6
        );
    }
}
