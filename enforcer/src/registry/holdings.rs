//! Who holds which entry in the kernel, and for how long: one entry may be wanted by several revocations and
//! sessions at once, and stands as long as one of them wants it.
//!
//! There may be a million entries, so that nothing here goes through all of them: three indexes say the same as
//! the entries' wants, and [`Holdings::add`] and [`Holdings::keep`] alone change both.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::session::{CutoffKey, Device, Entry, LockKey, Netns, ServerName, Stands, Token, TokenKind};

use super::{Effect, Number, SessionKey};

#[derive(Debug, Default)]
pub struct Holdings {
    /// Boxed: there may be a million, and a tree's nodes are half empty.
    entries: BTreeMap<Entry, Box<Holding>>,
    /// Each entry with each number that holds it.
    by_number: BTreeSet<(Number, Entry)>,
    /// How many numbers are in there.
    numbers: usize,
    /// Each lease; `None`: of a session of an earlier run, not known yet.
    by_session: BTreeSet<(Option<SessionKey>, Entry, Number)>,
    by_expiry: BTreeSet<(Duration, Entry, Number)>,
    /// Whose durable entries have changed since [`Holdings::take_touched`].
    touched: BTreeSet<Number>,
}

/// What the disk has to know of an entry.
pub(crate) struct Lasting {
    pub server: Option<ServerName>,
    pub moment: u64,
    /// Of one that was asked for a time: when it ends, on CLOCK_MONOTONIC.
    pub until: Option<Duration>,
}

#[derive(Debug, Default)]
struct Holding {
    /// Few: a vector of one takes a tenth of a tree of one.
    wants: Vec<(Number, Want)>,
    in_kernel: Option<(Number, Stands)>,
    /// What was in the kernel before the last write: that stays where the write failed.
    before: Option<(Number, Stands)>,
    server: Option<ServerName>,
    moment: u64,
}

/// How an entry is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// Until it is released.
    Forever,
    /// Until a moment of CLOCK_MONOTONIC.
    Until(Duration),
    /// While this session exists; `None`: a session of an earlier run, not known yet.
    Leased(Option<SessionKey>),
}

impl Holding {
    /// The longest that anybody wants. `Until` goes before a lease, since it outlives the daemon.
    fn wanted(&self) -> Option<(Number, Stands)> {
        let rank = |want: &Want| match want {
            Want::Leased(_) => (0, Duration::ZERO),
            Want::Until(moment) => (1, *moment),
            Want::Forever => (2, Duration::ZERO),
        };
        let (number, want) =
            self.wants.iter().max_by_key(|(number, want)| (rank(want), std::cmp::Reverse(*number)))?;
        let stands = match want {
            Want::Leased(_) => Stands::Leased,
            Want::Until(moment) => Stands::Until(u64::try_from(moment.as_nanos()).unwrap_or(u64::MAX)),
            Want::Forever => Stands::Forever,
        };
        Some((*number, stands))
    }

    /// The kernel has what is wanted.
    fn is_as_wanted(&self) -> bool {
        let (Some((_, stands)), Some((by, stood))) = (self.wanted(), self.in_kernel) else { return false };
        // whose number it carries matters only to `show`: not worth a write of its own
        stood == stands && self.has(by)
    }

    fn has(&self, number: Number) -> bool {
        self.wants.iter().any(|(by, _)| *by == number)
    }
}

/// Less than or equal to every entry, and less than or equal to every cutoff: where ranges start.
const FIRST: Entry = Entry::Device(Device { netns: Netns(0), index: 0 });
const FIRST_CUTOFF: Entry = Entry::Cutoff(CutoffKey::from_bytes([0; 20]));
const FIRST_LOCK: Entry = Entry::Lock(LockKey::from_bytes([0; 20]));

impl Holdings {
    pub(crate) fn hold(&mut self, entry: Entry, number: Number, want: Want, out: &mut Vec<Effect>) {
        self.add(&entry, number, want);
        self.settle(&entry, out);
    }

    /// As [`Self::hold`], for the gate's entries, which belong to a server and have a moment.
    pub(crate) fn hold_for_gate(
        &mut self,
        entry: Entry,
        number: Number,
        want: Want,
        server: Option<ServerName>,
        moment: u64,
        out: &mut Vec<Effect>,
    ) {
        if self.remember_for_gate(&entry, number, want, server, moment)
            && let Some(holding) = self.entries.get_mut(&entry)
        {
            write(holding, &entry, out);
        }
        self.settle(&entry, out);
    }

    /// As [`Self::hold_for_gate`], and nothing is written to the kernel. True: what is there is not up to date.
    fn remember_for_gate(
        &mut self,
        entry: &Entry,
        number: Number,
        want: Want,
        server: Option<ServerName>,
        moment: u64,
    ) -> bool {
        self.add(entry, number, want);
        let Some(holding) = self.entries.get_mut(entry) else { return false };
        let is_news = holding.moment < moment || (server.is_some() && holding.server != server);
        holding.moment = holding.moment.max(moment);
        holding.server = server.or(holding.server.take());
        if is_news {
            self.touched.extend(holding.wants.iter().map(|(by, _)| *by));
        }
        is_news
    }

    /// What the disk has of an entry. The kernel is looked at afterwards: [`Self::restored`].
    pub(crate) fn restore(
        &mut self,
        entry: &Entry,
        number: Number,
        want: Want,
        server: Option<ServerName>,
        moment: u64,
    ) {
        self.remember_for_gate(entry, number, want, server, moment);
    }

    /// The kernel has it, by the number of somebody who does not want it any more (or never did).
    pub(crate) fn found_in_kernel(&mut self, entry: &Entry, number: Number, stands: Stands) {
        self.entries.entry(entry.clone()).or_default().in_kernel = Some((number, stands));
    }

    /// Everything that was restored or found goes into the kernel, or out of it.
    pub(crate) fn restored(&mut self, out: &mut Vec<Effect>) {
        let due: Vec<Entry> = (self.entries.iter())
            .filter(|(_, holding)| holding.wants.is_empty() || !holding.is_as_wanted())
            .map(|(entry, _)| entry.clone())
            .collect();
        for entry in due {
            self.settle(&entry, out);
        }
    }

    /// It is in the kernel already: an earlier run put it there.
    pub(crate) fn adopt(
        &mut self,
        entry: &Entry,
        number: Number,
        stands: Stands,
        server: Option<ServerName>,
        moment: u64,
    ) {
        let want = match stands {
            Stands::Forever => Want::Forever,
            Stands::Until(at) => Want::Until(Duration::from_nanos(at)),
            Stands::Leased => Want::Leased(None),
        };
        self.add(entry, number, want);
        if let Some(holding) = self.entries.get_mut(entry) {
            holding.in_kernel = Some((number, stands));
            holding.server = server;
            holding.moment = moment;
        }
    }

    /// Nothing holds this entry any more, whoever did.
    pub(crate) fn release_all(&mut self, entry: &Entry, out: &mut Vec<Effect>) {
        self.keep(entry, |_, _| false, out);
    }

    /// It is this session's now: what others lease of it would hit a stranger. What was asked for explicitly stays.
    pub(crate) fn release_leases_of_others(
        &mut self,
        entry: &Entry,
        session: SessionKey,
        out: &mut Vec<Effect>,
    ) {
        self.keep(entry, |_, want| !matches!(want, Want::Leased(by) if *by != Some(session)), out);
    }

    /// Leases of this entry go, unless they are to be kept for that session.
    pub(crate) fn release_leases_unless(
        &mut self,
        entry: &Entry,
        keep: impl Fn(Option<SessionKey>) -> bool,
        out: &mut Vec<Effect>,
    ) {
        self.keep(entry, |_, want| !matches!(want, Want::Leased(by) if !keep(*by)), out);
    }

    /// Nothing of that number holds this entry any more.
    pub(crate) fn release(&mut self, entry: &Entry, number: Number, out: &mut Vec<Effect>) {
        self.keep(entry, |by, _| by != number, out);
    }

    /// Nobody but these holds this entry any more.
    pub(crate) fn release_others(
        &mut self,
        entry: &Entry,
        numbers: &BTreeSet<Number>,
        out: &mut Vec<Effect>,
    ) {
        self.keep(entry, |by, _| numbers.contains(&by), out);
    }

    /// Writes it once more if it is wanted, and could not be written.
    pub(crate) fn retry(&mut self, entry: &Entry, out: &mut Vec<Effect>) {
        self.settle(entry, out);
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
        self.release_leases(Some(session), which, out);
    }

    /// Leases of sessions of an earlier run, once the sessions that exist are known.
    pub(crate) fn release_orphans(&mut self, which: impl Fn(&Entry) -> bool, out: &mut Vec<Effect>) {
        self.release_leases(None, which, out);
    }

    /// What sessions of an earlier run lease.
    pub(crate) fn orphans(&self) -> Vec<Entry> {
        (self.by_session.range((None, FIRST, 0)..))
            .take_while(|(by, ..)| by.is_none())
            .map(|(_, entry, _)| entry.clone())
            .collect()
    }

    fn release_leases(
        &mut self,
        session: Option<SessionKey>,
        which: impl Fn(&Entry) -> bool,
        out: &mut Vec<Effect>,
    ) {
        let mine: Vec<Entry> = (self.by_session.range((session, FIRST, 0)..))
            .take_while(|(by, ..)| *by == session)
            .filter(|(_, entry, _)| which(entry))
            .map(|(_, entry, _)| entry.clone())
            .collect();
        for entry in mine {
            self.keep(&entry, |_, want| *want != Want::Leased(session), out);
        }
    }

    /// What was wanted until a moment that has come. Gives the numbers that ended.
    pub(crate) fn expire(&mut self, now: Duration, out: &mut Vec<Effect>) -> BTreeSet<Number> {
        let due: Vec<(Entry, Number)> = (self.by_expiry.iter())
            .take_while(|(moment, ..)| *moment <= now)
            .map(|(_, entry, number)| (entry.clone(), *number))
            .collect();
        for (entry, _) in &due {
            self.keep(entry, |_, want| !matches!(want, Want::Until(moment) if *moment <= now), out);
        }
        due.into_iter().map(|(_, number)| number).collect()
    }

    pub(crate) fn next_expiry(&self) -> Option<Duration> {
        self.by_expiry.first().map(|(moment, ..)| *moment)
    }

    /// The entries that this revocation holds.
    pub fn of(&self, number: Number) -> Vec<Entry> {
        self.entries_of(number).cloned().collect()
    }

    /// Those of them that the kernel has by this number: where several revocations want one, it has only one of theirs.
    pub fn in_kernel_by(&self, number: Number) -> impl Iterator<Item = &Entry> {
        self.entries_of(number).filter(move |entry| {
            let holding = self.entries.get(*entry);
            holding.and_then(|holding| holding.in_kernel).is_some_and(|(by, _)| by == number)
        })
    }

    pub(crate) fn holds_any(&self, number: Number) -> bool {
        self.entries_of(number).next().is_some()
    }

    /// How many numbers hold something.
    pub(crate) fn numbers_held(&self) -> usize {
        self.numbers
    }

    fn entries_of(&self, number: Number) -> impl Iterator<Item = &Entry> {
        (self.by_number.range((number, FIRST)..))
            .take_while(move |(by, _)| *by == number)
            .map(|(_, entry)| entry)
    }

    /// What a revocation holds that a reboot must not lose.
    pub(crate) fn durable_of(&self, number: Number) -> impl Iterator<Item = (&Entry, Lasting)> {
        self.entries_of(number).filter_map(move |entry| {
            let holding = self.entries.get(entry)?;
            let mut until = None;
            let wants = holding.wants.iter().filter(|(by, want)| *by == number && is_durable(entry, want));
            let mut any = false;
            for (_, want) in wants {
                any = true;
                if let Want::Until(moment) = want {
                    until = until.max(Some(*moment));
                }
            }
            any.then(|| (entry, Lasting { server: holding.server.clone(), moment: holding.moment, until }))
        })
    }

    pub(crate) fn take_touched(&mut self) -> BTreeSet<Number> {
        std::mem::take(&mut self.touched)
    }

    pub(crate) fn has_touched(&self) -> bool {
        !self.touched.is_empty()
    }

    pub(crate) fn is_touched(&self, number: Number) -> bool {
        self.touched.contains(&number)
    }

    pub(crate) fn touch(&mut self, number: Number) {
        self.touched.insert(number);
    }

    pub(crate) fn numbers_with_expiry(&self) -> BTreeSet<Number> {
        self.by_expiry.iter().map(|(.., number)| *number).collect()
    }

    /// Whether any token of that kind is held.
    pub fn has_token_of(&self, kind: TokenKind) -> bool {
        let least = Entry::Token(Token::least(kind));
        let first = self.entries.range(least..).next();
        first.is_some_and(|(entry, _)| matches!(entry, Entry::Token(token) if token.kind() == kind))
    }

    pub fn holds(&self, entry: &Entry) -> bool {
        self.entries.contains_key(entry)
    }

    pub(crate) fn cutoffs(&self) -> impl Iterator<Item = (&Entry, Option<&ServerName>, u64)> {
        (self.entries.range(FIRST_CUTOFF..FIRST_LOCK))
            .filter(|(entry, _)| matches!(entry, Entry::Cutoff(_)))
            .map(|(entry, holding)| (entry, holding.server.as_ref(), holding.moment))
    }

    /// The last second that a cutoff covers; 0: there is none.
    pub(crate) fn moment(&self, cutoff: &Entry) -> u64 {
        self.entries.get(cutoff).map_or(0, |holding| holding.moment)
    }

    /// The persons who are locked.
    pub(crate) fn locks(&self) -> impl Iterator<Item = &Entry> {
        self.entries.range(FIRST_LOCK..).map(|(entry, _)| entry)
    }

    /// Until when that number wants it; `None`: until it is released.
    pub(crate) fn until(&self, entry: &Entry, number: Number) -> Option<Duration> {
        let wants = self.entries.get(entry).map(|holding| holding.wants.as_slice()).unwrap_or_default();
        let mine = || wants.iter().filter(|(by, _)| *by == number).map(|(_, want)| want);
        if mine().any(|want| *want == Want::Forever) {
            return None;
        }
        mine().filter_map(|want| if let Want::Until(moment) = want { Some(*moment) } else { None }).max()
    }

    /// The locks that this number holds.
    pub(crate) fn locks_of(&self, number: Number) -> impl Iterator<Item = &Entry> {
        (self.by_number.range((number, FIRST_LOCK)..))
            .take_while(move |(by, _)| *by == number)
            .map(|(_, entry)| entry)
    }

    /// How long an explicit revocation stands, wherever it does.
    pub(crate) fn explicit_want(&self, number: Number) -> Option<Want> {
        let entry = self.entries_of(number).next()?;
        Some(self.until(entry, number).map_or(Want::Forever, Want::Until))
    }

    /// How that number wants it.
    pub(crate) fn want(&self, entry: &Entry, number: Number) -> Option<Want> {
        self.entries.get(entry)?.wants.iter().find(|(whose, _)| *whose == number).map(|(_, want)| *want)
    }

    pub(crate) fn numbers(&self, entry: &Entry) -> BTreeSet<Number> {
        self.entries
            .get(entry)
            .into_iter()
            .flat_map(|holding| &holding.wants)
            .map(|(number, _)| *number)
            .collect()
    }

    /// It could not be written for this number: what was there before stays. Gives those of whom nothing is there.
    pub(crate) fn failed(&mut self, entry: &Entry, number: Number) -> BTreeSet<Number> {
        let Some(holding) = self.entries.get_mut(entry) else { return BTreeSet::from([number]) };
        holding.in_kernel = holding.before.take();
        let mut numbers = BTreeSet::from([number]);
        if holding.in_kernel.is_none() {
            numbers.extend(holding.wants.iter().map(|(by, _)| *by));
        }
        numbers
    }

    pub(crate) fn is_held_by(&self, entry: &Entry, number: Number) -> bool {
        self.entries.get(entry).is_some_and(|holding| holding.has(number))
    }

    fn add(&mut self, entry: &Entry, number: Number, want: Want) {
        let holding = self.entries.entry(entry.clone()).or_default();
        if holding.wants.contains(&(number, want)) {
            return;
        }
        if is_durable(entry, &want) {
            self.touched.insert(number);
        }
        if !holding.has(number) {
            self.numbers += usize::from(entries_of(&self.by_number, number) == 0);
            self.by_number.insert((number, entry.clone()));
        }
        match want {
            Want::Forever => {}
            Want::Leased(session) => {
                self.by_session.insert((session, entry.clone(), number));
            }
            Want::Until(moment) => {
                // one moment for each number: the latest that was asked for
                let earlier = holding
                    .wants
                    .iter()
                    .position(|(by, want)| *by == number && matches!(want, Want::Until(_)));
                if let Some((_, Want::Until(earlier))) = earlier.map(|at| holding.wants.swap_remove(at)) {
                    self.by_expiry.remove(&(earlier, entry.clone(), number));
                }
                self.by_expiry.insert((moment, entry.clone(), number));
            }
        }
        if holding.wants.is_empty() {
            holding.wants.reserve_exact(1);
        }
        holding.wants.push((number, want));
    }

    /// Drops the wants that are not to be kept.
    fn keep(&mut self, entry: &Entry, keep: impl Fn(Number, &Want) -> bool, out: &mut Vec<Effect>) {
        let Some(holding) = self.entries.get_mut(entry) else { return };
        let (kept, dropped): (Vec<_>, Vec<_>) =
            std::mem::take(&mut holding.wants).into_iter().partition(|(number, want)| keep(*number, want));
        holding.wants = kept;
        for (number, want) in dropped {
            if is_durable(entry, &want) {
                self.touched.insert(number);
            }
            match want {
                Want::Forever => {}
                Want::Leased(session) => {
                    self.by_session.remove(&(session, entry.clone(), number));
                }
                Want::Until(moment) => {
                    self.by_expiry.remove(&(moment, entry.clone(), number));
                }
            }
            if !holding.has(number) && self.by_number.remove(&(number, entry.clone())) {
                self.numbers -= usize::from(entries_of(&self.by_number, number) == 0);
            }
        }
        self.settle(entry, out);
    }

    /// Makes the kernel's entry what is wanted of it.
    fn settle(&mut self, entry: &Entry, out: &mut Vec<Effect>) {
        let Some(holding) = self.entries.get_mut(entry) else { return };
        match (holding.wanted(), holding.in_kernel) {
            (None, in_kernel) => {
                self.entries.remove(entry);
                if let Some((number, _)) = in_kernel {
                    out.push(Effect::Remove { entry: entry.clone(), number });
                }
            }
            (Some(_), _) => {
                if !holding.is_as_wanted() {
                    write(holding, entry, out);
                }
            }
        }
    }
}

/// Whether a reboot must not lose it: what the gate refuses, and what was asked for explicitly. What belongs to a
/// session goes with it, and with the host.
fn is_durable(entry: &Entry, want: &Want) -> bool {
    match entry {
        Entry::SafeId(_) | Entry::Cutoff(_) | Entry::Lock(_) => true,
        Entry::Address(..) | Entry::Flow(..) | Entry::Token(_) => !matches!(want, Want::Leased(_)),
        Entry::Device(_) => false,
    }
}

fn entries_of(by_number: &BTreeSet<(Number, Entry)>, number: Number) -> usize {
    by_number.range((number, FIRST)..).take(1).filter(|(by, _)| *by == number).count()
}

fn write(holding: &mut Holding, entry: &Entry, out: &mut Vec<Effect>) {
    if let Some((number, stands)) = holding.wanted() {
        holding.before = holding.in_kernel.replace((number, stands));
        let (server, moment) = (holding.server.clone(), holding.moment);
        out.push(Effect::Insert { entry: entry.clone(), number, stands, server, moment });
    }
}

#[cfg(test)]
impl Holdings {
    /// The indexes say what the entries' wants say.
    pub(super) fn check(&self) {
        let all = || {
            (self.entries.iter()).flat_map(|(entry, holding)| {
                holding.wants.iter().map(move |(number, want)| (entry, *number, *want))
            })
        };
        let by_number: BTreeSet<_> = all().map(|(entry, number, _)| (number, entry.clone())).collect();
        let leases = all().filter_map(|(entry, number, want)| match want {
            Want::Leased(session) => Some((session, entry.clone(), number)),
            _ => None,
        });
        let expiries = all().filter_map(|(entry, number, want)| match want {
            Want::Until(moment) => Some((moment, entry.clone(), number)),
            _ => None,
        });
        assert_eq!(self.numbers, by_number.iter().map(|(number, _)| *number).collect::<BTreeSet<_>>().len());
        assert_eq!(self.by_number, by_number);
        assert_eq!(self.by_session, leases.collect());
        assert_eq!(self.by_expiry, expiries.collect());
        assert!(self.entries.values().all(|holding| !holding.wants.is_empty()));
    }

    pub(super) fn check_kernel(&self, kernel: &BTreeMap<Entry, (Number, Stands)>) {
        for (entry, holding) in &self.entries {
            assert_eq!(holding.in_kernel.as_ref(), kernel.get(entry), "{entry:?}");
            assert_eq!(
                holding.wanted().map(|(_, stands)| stands),
                holding.in_kernel.map(|(_, stands)| stands)
            );
        }
        assert_eq!(self.entries.len(), kernel.len());
    }
}
