//! The disk as the writes make it.

use std::collections::{BTreeMap, BTreeSet};

use crate::registry::*;
use crate::session::*;

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Disk {
    pub records: BTreeMap<Number, Record>,
    pub lifted: BTreeSet<Number>,
    pub audit: Vec<Audit>,
    pub wall: u64,
    /// It takes no write, and says so.
    pub full: bool,
    /// It says nothing for now.
    pub hangs: bool,
    waiting: Vec<(Ticket, Write)>,
}

impl Disk {
    /// What becomes of these writes; `None`: nothing is told yet.
    pub fn write(&mut self, writes: &[(Ticket, Write)]) -> Option<Event> {
        self.waiting.extend_from_slice(writes);
        if self.hangs {
            return None;
        }
        let writes = std::mem::take(&mut self.waiting);
        let (Some((first, _)), Some((last, _))) = (writes.first(), writes.last()) else { return None };
        let tickets = *first..=*last;
        if self.full {
            return Some(Event::Stored { tickets, outcome: Err("the disk is full".into()) });
        }
        for (_, write) in &writes {
            self.take(write);
        }
        Some(Event::Stored { tickets, outcome: Ok(()) })
    }

    fn take(&mut self, write: &Write) {
        match write {
            Write::Keep(record) => {
                self.lifted.remove(&record.number);
                self.records.insert(record.number, record.clone());
            }
            Write::Over(number) => {
                self.records.remove(number);
            }
            Write::Lift(number) => {
                self.records.remove(number);
                self.lifted.insert(*number);
            }
            Write::Forget(number) => {
                self.lifted.remove(number);
            }
            Write::Audit(audit) => self.audit.push(audit.clone()),
            Write::Clock { wall, .. } => self.wall = *wall,
            Write::Session(_) | Write::SessionGone(_) | Write::NoSessions | Write::NextNumber(_) => {}
        }
    }

    /// The daemon dies: what was not written is lost.
    pub fn forget(&mut self) {
        self.waiting.clear();
    }

    pub fn left(&self, entries: Vec<Adopted>, rebooted: bool) -> Left {
        let records = self.records.values().cloned().collect();
        Left { entries, records, lifted: self.lifted.iter().copied().collect(), wall: self.wall, rebooted }
    }
}
