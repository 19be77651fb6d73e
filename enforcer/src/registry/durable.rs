//! What of the rules' state has to be on the disk, and how far it is.
//!
//! The kernel first, the disk second: pinned maps outlive the daemon, the disk is for the reboot. So whatever holds
//! an entry that a reboot must not lose is written after it is in the kernel, and answered as done once it is on the
//! disk; a lift is on the disk before it takes anything out of the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::session::{Audit, Entry, Guard, Guarded, LetterKey, Record, WebKey, Write};

use super::revocation::Revocation;
use super::{Effects, Now, Number, Receipt, Registry};

/// The number of a write, in the order of the writes.
pub type Ticket = u64;

/// How often what could not be written is tried again, and how many at once.
const RETRY_EVERY: Duration = Duration::from_secs(2);
const RETRIES: usize = if cfg!(test) { 300 } else { 10_000 };

/// A wall clock that moves this much against the monotonic one was set.
pub(super) const CLOCK_JUMP: u64 = 2;

/// How far a revocation's record is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Disk {
    /// There was nothing to write.
    #[default]
    Nothing,
    OnItsWay(Ticket),
    Written,
    Failed(Box<str>),
}

/// What a write is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    Record(Number),
    Lift(Number),
    Forget(Number),
    /// What the other gateways are to be told: [`Durable::letters`] has which.
    Letter,
    Clock,
    /// That it is alive.
    Web(WebKey),
    /// That it is over.
    WebGone(WebKey),
}

impl Of {
    fn is_web(self) -> bool {
        matches!(self, Self::Web(_) | Self::WebGone(_))
    }
}

#[derive(Debug, Default)]
pub(super) struct Durable {
    last_ticket: Ticket,
    on_its_way: BTreeMap<Ticket, Of>,
    /// How many of these are of web sessions.
    web_on_its_way: usize,
    queue: Vec<Write>,
    /// The letters that are on their way.
    letters: BTreeMap<Ticket, LetterKey>,
    /// Whose record on the disk is not what it should be, since a write failed or a clock was set; and the last write
    /// of which that is known: a later one mends it.
    unsaved: BTreeMap<Number, Ticket>,
    /// Of these, those whose lift may be on the disk though it was told to have failed.
    doubtful: BTreeSet<Number>,
    tried: Duration,
    /// The boot that was last written down with the clock.
    boot_id: Option<String>,
    /// What the clock shows could not be written down: by what the disk has of it, what has a time may seem over.
    clock_failed: bool,
    /// Why the last write failed, if it did.
    error: Option<String>,
}

impl Registry {
    /// What has to be written now, each with its ticket: to be called for each [`super::Effect::Save`], and to be
    /// answered by [`super::Event::Stored`], in this order.
    pub fn take_writes(&mut self, now: Now) -> Vec<(Ticket, Write)> {
        let mut writes = Vec::new();
        // a record's time means something by this clock alone
        if self.holdings.has_touched() {
            self.rewrite_clock(now);
        }
        for write in std::mem::take(&mut self.durable.queue) {
            let of = match &write {
                Write::Lift(number) => Some(Of::Lift(*number)),
                // an unlock
                Write::Keep(record) => Some(Of::Lift(record.number)),
                Write::Forget(number) => Some(Of::Forget(*number)),
                Write::KeepLetter(_) => Some(Of::Letter),
                Write::Clock { .. } => Some(Of::Clock),
                _ => None,
            };
            let ticket = self.durable.ticket(of);
            if let Write::KeepLetter(letter) = &write {
                self.durable.letters.insert(ticket, letter.key());
            }
            writes.push((ticket, write));
        }
        // before what may have ended them
        for (of, write) in self.take_web_writes(now) {
            let ticket = self.durable.ticket(Some(of));
            if let Of::Web(key) = of {
                self.web_given(key, ticket);
            }
            writes.push((ticket, write));
        }
        for number in self.holdings.take_touched() {
            if self.lifting.contains_key(&number) {
                self.held_back.insert(number);
                continue;
            }
            if self.durable.doubtful.contains(&number) {
                // the disk takes no record of what it has as lifted
                let ticket = self.durable.ticket(None);
                writes.push((ticket, Write::Forget(number)));
            }
            let record = self.revocations.get(&number).and_then(|r| self.record_of(r, now));
            let ticket = self.durable.ticket(Some(Of::Record(number)));
            if let Some(revocation) = self.revocations.get_mut(&number) {
                revocation.disk = Disk::OnItsWay(ticket);
            }
            writes.push((ticket, record.map_or(Write::Over(number), Write::Keep)));
        }
        writes
    }

    /// Something is to be written, beside the records of revocations.
    pub fn write(&mut self, write: Write) {
        if let Write::Clock { boot_id, .. } = &write {
            self.durable.boot_id = Some(boot_id.clone());
        }
        self.durable.queue.push(write);
    }

    fn rewrite_clock(&mut self, now: Now) {
        if std::mem::take(&mut self.durable.clock_failed)
            && let Some(boot_id) = self.durable.boot_id.clone()
        {
            self.write(Write::Clock { wall: now.wall, boot_id });
        }
    }

    pub(super) fn has_writes(&self) -> bool {
        !self.durable.queue.is_empty() || self.holdings.has_touched() || self.has_web_writes()
    }

    /// What must not be lost of a revocation. `None`: nothing.
    pub(super) fn record_of(&self, revocation: &Revocation, now: Now) -> Option<Record> {
        let number = revocation.number;
        let mut guards = Vec::new();
        let (mut stands, mut until) = (false, None);
        for (entry, lasting) in self.holdings.durable_of(number) {
            until = lasting.until.max(until);
            let what = match entry {
                Entry::SafeId(id) => Guarded::SafeId(*id),
                Entry::Cutoff(key) => Guarded::Cutoff(*key),
                Entry::Lock(key) => Guarded::Lock(*key),
                Entry::Device(_) | Entry::Address(..) | Entry::Flow(..) | Entry::Token(_) => {
                    stands = true;
                    continue;
                }
            };
            guards.push(Guard { what, server: lasting.server, moment: lasting.moment });
        }
        if guards.is_empty() && !stands {
            return None;
        }
        // rounded up: nothing ends early for having been written down
        let until = until.map(|until| {
            let left = until.saturating_sub(now.mono);
            now.wall + left.as_secs() + u64::from(left.subsec_nanos() > 0)
        });
        Some(Record {
            number,
            target: revocation.order.target.clone(),
            server: revocation.order.server.clone(),
            reason: revocation.order.reason.clone(),
            by: revocation.order.by.clone(),
            at: revocation.at.wall,
            lasts: revocation.order.stands.map(|stands| stands.as_secs()),
            until,
            guards,
            origin: revocation.order.origin,
        })
    }

    pub(super) fn stored(
        &mut self,
        tickets: RangeInclusive<Ticket>,
        outcome: Result<(), String>,
        now: Now,
        out: &mut Effects,
    ) {
        self.durable.told(&outcome, out);
        let mut told = self.durable.on_its_way.split_off(tickets.start());
        self.durable.on_its_way.append(&mut told.split_off(&tickets.end().saturating_add(1)));
        self.durable.web_on_its_way -= told.values().filter(|of| of.is_web()).count();
        for (ticket, of) in told {
            match of {
                Of::Record(number) => self.record_stored(number, ticket, &outcome, now, out),
                Of::Lift(number) => self.lift_stored(number, &outcome, now, out),
                Of::Letter => {
                    if let Some(key) = self.durable.letters.remove(&ticket) {
                        out.push(super::Effect::LetterStored { key, outcome: outcome.clone() });
                    }
                }
                Of::Clock => self.durable.clock_failed = outcome.is_err(),
                Of::Web(key) => self.web_stored(key, false, ticket, &outcome, out),
                Of::WebGone(key) => self.web_stored(key, true, ticket, &outcome, out),
                Of::Forget(number) => {
                    if outcome.is_err() {
                        self.durable.doubtful.insert(number);
                        // what is on its way already does not mend it: nothing in there forgets the lift
                        self.durable.is_unsaved(number, self.durable.last_ticket);
                    }
                }
            }
        }
    }

    fn record_stored(
        &mut self,
        number: Number,
        ticket: Ticket,
        outcome: &Result<(), String>,
        now: Now,
        out: &mut Effects,
    ) {
        match outcome {
            Ok(()) => {
                if self.durable.unsaved.get(&number).is_some_and(|of| ticket > *of) {
                    self.durable.unsaved.remove(&number);
                    self.durable.doubtful.remove(&number);
                }
            }
            Err(_) => self.durable.is_unsaved(number, ticket),
        }
        let Some(revocation) = self.revocations.get_mut(&number) else { return };
        if revocation.disk == Disk::OnItsWay(ticket) {
            revocation.disk = match outcome {
                Ok(()) => Disk::Written,
                Err(why) => Disk::Failed(why.as_str().into()),
            };
        }
        if self.writing.contains(&number) {
            self.advance_one(number, now, out);
        }
    }

    /// Whether its record is on the disk, or known not to be.
    pub(super) fn is_settled_on_disk(&self, revocation: &Revocation) -> bool {
        !matches!(revocation.disk, Disk::OnItsWay(_))
            && !self.holdings.is_touched(revocation.number)
            && revocation.web.is_kept()
    }

    /// What could not be written is tried again.
    pub(super) fn retry_writes(&mut self, now: Now) {
        let nothing =
            self.durable.unsaved.is_empty() && !self.durable.clock_failed && !self.has_unsaved_web();
        if nothing || now.mono < self.durable.tried + RETRY_EVERY {
            return;
        }
        // a disk that hangs is not given the same again and again; and what is of the web keeps back nothing else
        let web = self.web_on_their_way();
        let others = self.durable.on_its_way.len() - web;
        if others >= RETRIES && web >= RETRIES {
            return;
        }
        self.durable.tried = now.mono;
        if others < RETRIES {
            self.rewrite_clock(now);
            for number in self.durable.unsaved.keys().take(RETRIES) {
                self.holdings.touch(*number);
            }
        }
        if web < RETRIES {
            self.retry_web(RETRIES);
        }
    }

    /// How many changes of web sessions the disk was given and has not told of.
    pub(super) fn web_on_their_way(&self) -> usize {
        self.durable.web_on_its_way
    }

    /// Expiries are wall-clock times on the disk: they move with a clock that was set.
    pub(super) fn restamp(&mut self, expected: u64, now: Now) {
        if now.wall.abs_diff(expected) >= CLOCK_JUMP {
            // what is asked for from now on has a time of the new clock: it must not be judged by the old one
            if let Some(boot_id) = self.durable.boot_id.clone() {
                self.write(Write::Clock { wall: now.wall, boot_id });
            }
            // in parts, as what failed: there may be a million
            let of = self.durable.last_ticket;
            for number in self.holdings.numbers_with_expiry() {
                self.durable.is_unsaved(number, of);
            }
            self.restamp_web(of);
        }
    }

    /// What is in force and would be lost at a reboot, and why, if a write failed.
    pub fn unwritten(&self) -> (usize, Option<&str>) {
        let on_their_way = self
            .durable
            .on_its_way
            .values()
            .filter(|of| matches!(of, Of::Record(n) if !self.durable.unsaved.contains_key(n)));
        // of what is only to be forgotten nothing is lost
        let unsaved =
            self.durable.unsaved.keys().filter(|number| self.holdings.durable_of(**number).next().is_some());
        let web = self.unwritten_web();
        (unsaved.count() + on_their_way.count() + web, self.durable.error.as_deref())
    }

    pub(super) fn audit(&mut self, what: &'static str, receipt: &Receipt, by: &str, now: Now) {
        self.write(Write::Audit(Audit {
            at: now.wall,
            what,
            number: receipt.number,
            target: receipt.target.clone(),
            by: by.to_owned(),
            reason: receipt.reason.clone(),
            complete: receipt.is_complete(),
            text: receipt.in_one_line(),
        }));
    }

    /// Its lift may be on the disk though that write failed: its record is written anew.
    pub(super) fn save_again(&mut self, number: Number) {
        self.durable.doubtful.insert(number);
        self.durable.is_unsaved(number, self.durable.last_ticket);
        self.holdings.touch(number);
    }
}

impl Durable {
    /// How much is unsaved, on its way, and not taken yet.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize, usize) {
        (self.unsaved.len(), self.on_its_way.len(), self.queue.len())
    }

    /// Its record has to be written once more, after that ticket.
    pub(super) fn is_unsaved(&mut self, number: Number, of: Ticket) {
        let last = self.unsaved.entry(number).or_insert(of);
        *last = of.max(*last);
    }

    fn ticket(&mut self, of: Option<Of>) -> Ticket {
        self.last_ticket += 1;
        self.web_on_its_way += usize::from(of.is_some_and(Of::is_web));
        if let Some(of) = of {
            self.on_its_way.insert(self.last_ticket, of);
        }
        self.last_ticket
    }

    /// Says so once, and once more when it is over.
    fn told(&mut self, outcome: &Result<(), String>, out: &mut Effects) {
        let text = match (outcome, &self.error) {
            (Err(why), None) => {
                format!("what is revoked from now on would be lost at a reboot: {why}; it is tried again")
            }
            (Ok(()), Some(_)) => "the disk takes writes again".to_owned(),
            _ => String::new(),
        };
        self.error = outcome.as_ref().err().cloned();
        if !text.is_empty() {
            out.push(super::Effect::Note { kind: "disk", text });
        }
    }
}
