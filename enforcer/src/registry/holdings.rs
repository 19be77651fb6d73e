//! Who holds which entry in the kernel, and for how long: one entry may be wanted by several revocations and
//! sessions at once, and stands as long as one of them wants it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::session::{Entry, ServerName, Stands};

use super::{Effect, Number, SessionKey};

#[derive(Debug, Default)]
pub struct Holdings {
    entries: BTreeMap<Entry, Holding>,
}

#[derive(Debug, Default)]
struct Holding {
    /// Wanted until it is released.
    forever: BTreeSet<Number>,
    /// Wanted until a moment of CLOCK_MONOTONIC.
    until: BTreeMap<Number, Duration>,
    /// Wanted while these sessions exist; `None`: a session of an earlier run, not known yet.
    leased: BTreeSet<(Number, Option<SessionKey>)>,
    in_kernel: Option<(Number, Stands)>,
    server: Option<ServerName>,
    moment: u64,
}

impl Holding {
    /// The longest that anybody wants. `Until` goes before a lease, since it outlives the daemon.
    fn wanted(&self) -> Option<(Number, Stands)> {
        if let Some(number) = self.forever.first() {
            return Some((*number, Stands::Forever));
        }
        if let Some((number, until)) = self.until.iter().max_by_key(|(_, until)| **until) {
            return Some((*number, Stands::Until(u64::try_from(until.as_nanos()).unwrap_or(u64::MAX))));
        }
        self.leased.first().map(|(number, _)| (*number, Stands::Leased))
    }
}

/// How an entry is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Want {
    Forever,
    Until(Duration),
    Leased(Option<SessionKey>),
}

impl Holdings {
    pub(crate) fn hold(&mut self, entry: Entry, number: Number, want: Want, out: &mut Vec<Effect>) {
        let holding = self.entries.entry(entry.clone()).or_default();
        match want {
            Want::Forever => {
                holding.forever.insert(number);
            }
            Want::Until(moment) => {
                holding.until.insert(number, moment);
            }
            Want::Leased(session) => {
                holding.leased.insert((number, session));
            }
        }
        self.settle(&entry, out);
    }

    /// As [`Self::hold`], for the gate's entries, which belong to a server.
    pub(crate) fn hold_for_gate(
        &mut self,
        entry: Entry,
        number: Number,
        server: Option<ServerName>,
        moment: u64,
        out: &mut Vec<Effect>,
    ) {
        let holding = self.entries.entry(entry.clone()).or_default();
        holding.server = server;
        if holding.moment < moment {
            holding.moment = moment;
            holding.in_kernel = None; // a later moment has to be written
        }
        self.hold(entry, number, Want::Forever, out);
    }

    /// It is in the kernel already: an earlier run put it there.
    pub(crate) fn adopt(
        &mut self,
        entry: Entry,
        number: Number,
        stands: Stands,
        server: Option<ServerName>,
        moment: u64,
    ) {
        let holding = self.entries.entry(entry).or_default();
        match stands {
            Stands::Forever => {
                holding.forever.insert(number);
            }
            Stands::Until(at) => {
                holding.until.insert(number, Duration::from_nanos(at));
            }
            Stands::Leased => {
                holding.leased.insert((number, None));
            }
        }
        holding.in_kernel = Some((number, stands));
        holding.server = server;
        holding.moment = moment;
    }

    /// Nothing of that number holds this entry any more.
    pub(crate) fn release(&mut self, entry: &Entry, number: Number, out: &mut Vec<Effect>) {
        self.drop_from(entry, out, |holding| {
            holding.forever.remove(&number);
            holding.until.remove(&number);
            holding.leased.retain(|(by, _)| *by != number);
        });
    }

    /// Nothing holds this entry any more, whoever did.
    pub(crate) fn release_all(&mut self, entry: &Entry, out: &mut Vec<Effect>) {
        self.drop_from(entry, out, |holding| {
            *holding = Holding { in_kernel: holding.in_kernel, ..Holding::default() };
        });
    }

    /// Whatever leases this entry is gone, or it is another session's now; what was asked for explicitly stays.
    pub(crate) fn release_leases(&mut self, entry: &Entry, out: &mut Vec<Effect>) {
        self.drop_from(entry, out, |holding| holding.leased.clear());
    }

    /// Everything that this revocation holds.
    pub(crate) fn release_number(&mut self, number: Number, out: &mut Vec<Effect>) {
        for entry in self.of(number) {
            self.release(&entry, number, out);
        }
    }

    /// Leases of this session on entries that `which` picks.
    pub(crate) fn release_session(
        &mut self,
        session: SessionKey,
        which: impl Fn(&Entry) -> bool,
        out: &mut Vec<Effect>,
    ) {
        let mine: Vec<Entry> = (self.entries.iter())
            .filter(|(entry, holding)| {
                which(entry) && holding.leased.iter().any(|(_, by)| *by == Some(session))
            })
            .map(|(entry, _)| entry.clone())
            .collect();
        for entry in mine {
            self.drop_from(&entry, out, |holding| holding.leased.retain(|(_, by)| *by != Some(session)));
        }
    }

    /// Leases of sessions of an earlier run, once the sessions that exist are known.
    pub(crate) fn release_orphans(&mut self, out: &mut Vec<Effect>) {
        let orphaned: Vec<Entry> = (self.entries.iter())
            .filter(|(_, holding)| holding.leased.iter().any(|(_, by)| by.is_none()))
            .map(|(entry, _)| entry.clone())
            .collect();
        for entry in orphaned {
            self.drop_from(&entry, out, |holding| holding.leased.retain(|(_, by)| by.is_some()));
        }
    }

    /// What was wanted until a moment that has come. Gives the numbers that ended.
    pub(crate) fn expire(&mut self, now: Duration, out: &mut Vec<Effect>) -> BTreeSet<Number> {
        let due: Vec<Entry> = (self.entries.iter())
            .filter(|(_, holding)| holding.until.values().any(|until| *until <= now))
            .map(|(entry, _)| entry.clone())
            .collect();
        let mut ended = BTreeSet::new();
        for entry in due {
            self.drop_from(&entry, out, |holding| {
                holding.until.retain(|number, until| {
                    let stays = *until > now;
                    if !stays {
                        ended.insert(*number);
                    }
                    stays
                });
            });
        }
        ended
    }

    pub(crate) fn next_expiry(&self) -> Option<Duration> {
        self.entries.values().flat_map(|holding| holding.until.values()).min().copied()
    }

    /// The entries that this revocation holds.
    pub fn of(&self, number: Number) -> Vec<Entry> {
        (self.entries.iter())
            .filter(|(_, holding)| {
                holding.forever.contains(&number)
                    || holding.until.contains_key(&number)
                    || holding.leased.iter().any(|(by, _)| *by == number)
            })
            .map(|(entry, _)| entry.clone())
            .collect()
    }

    pub fn holds(&self, entry: &Entry) -> bool {
        self.entries.contains_key(entry)
    }

    pub(crate) fn cutoffs(&self) -> impl Iterator<Item = (&Entry, Option<&ServerName>, u64)> {
        (self.entries.iter())
            .filter(|(entry, _)| matches!(entry, Entry::Cutoff(_)))
            .map(|(entry, holding)| (entry, holding.server.as_ref(), holding.moment))
    }

    pub(crate) fn numbers(&self, entry: &Entry) -> BTreeSet<Number> {
        let Some(holding) = self.entries.get(entry) else { return BTreeSet::new() };
        let leased = holding.leased.iter().map(|(number, _)| *number);
        holding.forever.iter().copied().chain(holding.until.keys().copied()).chain(leased).collect()
    }

    /// It could not be written: nobody holds it, so that nothing claims that it is in force.
    pub(crate) fn failed(&mut self, entry: &Entry) {
        self.entries.remove(entry);
    }

    fn drop_from(&mut self, entry: &Entry, out: &mut Vec<Effect>, change: impl FnOnce(&mut Holding)) {
        if let Some(holding) = self.entries.get_mut(entry) {
            change(holding);
            self.settle(entry, out);
        }
    }

    /// Makes the kernel's entry what is wanted of it.
    fn settle(&mut self, entry: &Entry, out: &mut Vec<Effect>) {
        let Some(holding) = self.entries.get_mut(entry) else { return };
        match (holding.wanted(), holding.in_kernel) {
            (None, None) => {
                self.entries.remove(entry);
            }
            (None, Some((number, _))) => {
                self.entries.remove(entry);
                out.push(Effect::Remove { entry: entry.clone(), number });
            }
            (Some((number, stands)), in_kernel) => {
                // whose number it carries matters only to `show`: not worth a write of its own
                if in_kernel.is_none_or(|(by, stood)| stood != stands || !holding_has(holding, by)) {
                    holding.in_kernel = Some((number, stands));
                    let (server, moment) = (holding.server.clone(), holding.moment);
                    out.push(Effect::Insert { entry: entry.clone(), number, stands, server, moment });
                }
            }
        }
    }
}

fn holding_has(holding: &Holding, number: Number) -> bool {
    holding.forever.contains(&number)
        || holding.until.contains_key(&number)
        || holding.leased.iter().any(|(by, _)| *by == number)
}
