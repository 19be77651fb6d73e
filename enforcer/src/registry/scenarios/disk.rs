//! The disk as the writes make it: what is on it, what is on its way, and what was not told yet.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;

use crate::registry::*;
use crate::session::*;

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Disk {
    pub records: BTreeMap<Number, Record>,
    pub lifted: BTreeSet<Number>,
    pub audit: Vec<Audit>,
    pub wall: u64,
    /// The boot in which it was last told the time.
    pub boot_id: String,
    /// Above every number that it has seen.
    pub next_number: Number,
    /// It takes no write, and says so.
    pub full: bool,
    /// It takes a write, and says that it did not.
    pub lies: bool,
    /// It says nothing for now.
    pub hangs: bool,
    /// What becomes of a write is told when somebody says so: [`Disk::batch`] and [`Disk::tell`].
    pub late: bool,
    pub web: BTreeMap<WebKey, WebRecord>,
    /// Those that were told of last.
    pub web_gateways: Option<Vec<Process>>,
    /// Every number whose lift it has taken, whether it remembers it or not.
    ever_lifted: BTreeSet<Number>,
    /// What is broken on purpose.
    pub broken: Option<Broken>,
    waiting: VecDeque<(Ticket, Write)>,
    untold: VecDeque<(RangeInclusive<Ticket>, Result<(), String>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// Lifts never reach it.
    Lifts,
    /// It does not remember what was lifted.
    Tombstones,
    /// What it was given is told to be written at once.
    TellsEarly,
    /// Of a record it keeps no cutoff.
    Cutoffs,
}

impl Disk {
    /// What becomes of these writes; `None`: nothing is told yet.
    pub fn write(&mut self, writes: &[(Ticket, Write)]) -> Option<Event> {
        self.waiting.extend(writes.iter().cloned());
        if self.broken == Some(Broken::TellsEarly) {
            let (first, last) = (writes.first()?.0, writes.last()?.0);
            return Some(Event::Stored { tickets: first..=last, outcome: Ok(()) });
        }
        if self.hangs || self.late {
            return None;
        }
        self.batch(usize::MAX);
        self.tell()
    }

    /// The oldest of what waits is written, in one commit.
    pub fn batch(&mut self, most: usize) {
        let most = most.min(self.waiting.len());
        let writes: Vec<_> = self.waiting.drain(..most).collect();
        let (Some((first, _)), Some((last, _))) = (writes.first(), writes.last()) else { return };
        let tickets = *first..=*last;
        if !self.full {
            for (_, write) in &writes {
                self.take(write);
            }
        }
        let outcome = if self.full || self.lies { Err("the disk is full".into()) } else { Ok(()) };
        if self.broken != Some(Broken::TellsEarly) {
            self.untold.push_back((tickets, outcome));
        }
    }

    /// What became of the oldest commit that was not told yet.
    pub fn tell(&mut self) -> Option<Event> {
        let (tickets, outcome) = self.untold.pop_front()?;
        Some(Event::Stored { tickets, outcome })
    }

    pub fn committed_lifts(&self) -> Vec<Number> {
        self.ever_lifted.iter().copied().collect()
    }

    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.untold.is_empty()
    }

    /// How many writes nobody has been told of.
    pub fn under_way(&self) -> usize {
        let untold = self.untold.iter().map(|(tickets, _)| tickets.end() - tickets.start() + 1);
        self.waiting.len() + usize::try_from(untold.sum::<u64>()).unwrap()
    }

    fn take(&mut self, write: &Write) {
        let (Write::Keep(Record { number, .. }) | Write::Over(number) | Write::Lift(number)) = write else {
            return self.take_other(write);
        };
        self.next_number = self.next_number.max(number + 1);
        match write {
            Write::Keep(record) => {
                let mut record = record.clone();
                if self.broken == Some(Broken::Cutoffs) {
                    record.guards.retain(|guard| !matches!(guard.what, Guarded::Cutoff(_)));
                }
                assert!(!self.lifted.contains(number), "{number} was lifted, and stays so");
                self.ever_lifted.remove(number);
                self.records.insert(*number, record);
            }
            Write::Lift(_) if self.broken == Some(Broken::Lifts) => {}
            Write::Lift(_) => {
                self.ever_lifted.insert(*number);
                self.records.remove(number);
                if self.broken != Some(Broken::Tombstones) {
                    self.lifted.insert(*number);
                }
            }
            _ => {
                self.records.remove(number);
            }
        }
    }

    fn take_other(&mut self, write: &Write) {
        match write {
            Write::Forget(number) => {
                self.ever_lifted.remove(number);
                self.lifted.remove(number);
            }
            Write::Audit(audit) if !self.late => self.audit.push(audit.clone()),
            Write::Clock { wall, boot_id } => (self.wall, self.boot_id) = (*wall, boot_id.clone()),
            Write::KeepWeb { record, .. } => {
                // the database takes no digest twice
                let is_new = |token: &WebTokenRecord| {
                    self.web.values().all(|other| {
                        other.key == record.key || other.tokens.iter().all(|its| its.digest != token.digest)
                    })
                };
                assert!(record.tokens.iter().all(is_new), "{} has a token of another one", record.key);
                self.web.insert(record.key, record.as_ref().clone());
            }
            Write::WebGone(key) => {
                self.web.remove(key);
            }
            Write::WebGateways(gateways) => self.web_gateways = gateways.clone(),
            _ => {}
        }
    }

    /// The daemon dies: what was not written is lost.
    pub fn forget(&mut self) {
        self.waiting.clear();
        self.untold.clear();
    }

    pub fn left(&self, entries: Vec<Adopted>, rebooted: bool) -> Left {
        let records = self.records.values().cloned().collect();
        // numbered as their processes are
        let gateway = |process: &Process| Gateway {
            id: u64::try_from(process.pid).unwrap(),
            process: Some(*process),
            table: false,
        };
        Left {
            entries,
            records,
            lifted: self.lifted.iter().copied().collect(),
            wall: self.wall,
            rebooted,
            web: self.web.values().cloned().collect(),
            gateways: self.web_gateways.as_ref().map(|all| all.iter().map(gateway).collect()),
        }
    }

    // what a gate reads of it that has nothing else

    fn guards(&self) -> impl Iterator<Item = (&Record, &Guard)> {
        self.records.values().flat_map(|record| record.guards.iter().map(move |guard| (record, guard)))
    }

    pub fn refuses(&self, cookie: SafeId) -> bool {
        self.guards().any(|(_, guard)| guard.what == Guarded::SafeId(cookie))
    }

    /// Up to when made cookies are refused.
    pub fn cutoff(&self, key: CutoffKey) -> Option<u64> {
        self.guards()
            .filter(|(_, guard)| guard.what == Guarded::Cutoff(key))
            .map(|(_, guard)| guard.moment)
            .max()
    }

    /// Up to when made cookies would be refused if some of what waits is written, and the rest is lost.
    pub fn cutoff_under_way(&self, key: CutoffKey) -> Option<u64> {
        let waiting = self.waiting.iter().filter_map(|(_, write)| match write {
            Write::Keep(record) => Some(&record.guards),
            _ => None,
        });
        let its = waiting.flatten().filter(|guard| guard.what == Guarded::Cutoff(key));
        its.map(|guard| guard.moment).max()
    }

    /// Of that number it has this, or has it once what waits is written.
    pub fn may_have(&self, number: Number, what: Guarded) -> bool {
        let has = |record: &Record| record.number == number && record.guards.iter().any(|g| g.what == what);
        self.records.get(&number).is_some_and(has)
            || self.waiting.iter().any(|(_, write)| matches!(write, Write::Keep(record) if has(record)))
    }

    /// That number's lock of this person, and until when it stands.
    pub fn lock(&self, key: LockKey, wall: u64) -> Option<&Record> {
        let in_force = |record: &Record| record.until.is_none_or(|until| until > wall);
        self.guards()
            .find(|(record, guard)| guard.what == Guarded::Lock(key) && in_force(record))
            .map(|(record, _)| record)
    }
}
