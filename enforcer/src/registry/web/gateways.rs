//! The web gateways: who is told of ends, who may be serving without being told, and what each has not closed yet.
//!
//! A *watch* is a stream of ends that a gateway reads. It begins with all that is alive, so that whoever comes (again)
//! knows what has ended meanwhile. Of each end its reader has to say that it is done; who does not in time is let go of,
//! and uses nothing of what it has kept until it has begun anew.
//!
//! A gateway is **away** while it reads no stream and its process has not been seen to end: it may have sessions in hand.
//! Each end waits for each gateway that is there or away, and says of which it was not heard.
//!
//! A gateway that keeps a table of its sockets needs not be heard: what it does not close soon is destroyed by the table.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::session::{Process, WebKey};

use super::super::{Effect, Effects, Gateway, Now, Watch};
use super::WebCause;
use super::ending::Gone;

/// How many may watch: a gateway that is replaced by its successor while both run, and some to spare.
const MAX_WATCHES: usize = 8;
/// How many gateways are told apart.
const MAX_GATEWAYS: usize = 16;
/// By then a watch has acknowledged. Before a command is answered in any case, so that its receipt tells.
const WITHIN: Duration = Duration::from_millis(3_500);
/// For how long a gateway that has gone, or that there was before the daemon was started, is waited for: it comes again
/// within a second.
const EXPECTED_FOR: Duration = Duration::from_secs(3);
/// How long a gateway with a table is given to close a session's sockets by itself.
const PATIENCE: Duration = Duration::from_millis(100);
/// How often its sockets are destroyed again of what it has not acknowledged: it may have let a request in that was under
/// way.
const AGAIN: Duration = Duration::from_millis(500);
/// How long that may take.
const DESTROYED_WITHIN: Duration = Duration::from_secs(2);

/// For whom an end waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Waits {
    Watch(Watch),
    /// A gateway that reads no stream.
    Away(u64),
    /// Whoever there was before the daemon was started.
    Anybody,
}

/// Every end that is being told of.
pub(super) type Ends = BTreeMap<WebKey, Gone>;

#[derive(Debug, Default)]
pub(super) struct Gateways {
    known: BTreeMap<u64, Known>,
    watches: BTreeMap<Watch, Reader>,
    anybody: Option<Anybody>,
    /// Which of them the disk was given.
    noted: Option<Option<Vec<Process>>>,
}

#[derive(Debug)]
struct Known {
    gateway: Gateway,
    away: Option<Away>,
    /// Its table is being gone by.
    destroying: bool,
    /// When that was asked for, and up to which end.
    asked: Option<(Duration, u64)>,
    /// Why not all of it could be destroyed.
    trouble: Option<Box<str>>,
}

/// It reads no stream.
#[derive(Debug)]
struct Away {
    /// Until when it is waited for.
    until: Duration,
    /// Its stream was broken from here, since it hangs: whether it serves is not known before it has begun anew.
    hangs: bool,
    /// Ends that it has not heard of: whose, and until when each waits for it.
    missed: BTreeMap<u64, (WebKey, Duration)>,
}

/// Whoever reads a stream.
#[derive(Debug)]
struct Reader {
    id: u64,
    /// Ends up to this one its list told of, by leaving their sessions out.
    began: u64,
    /// It has gone through its list.
    listed: bool,
    /// Of which ends it was told and has not said that they are done: whose, and since when.
    open: BTreeMap<u64, (WebKey, Duration)>,
    ends: BTreeMap<WebKey, u64>,
}

#[derive(Debug)]
struct Anybody {
    until: Duration,
    keys: BTreeSet<WebKey>,
}

/// Whoever it waited for needs not be waited for any more. `None`: it did not wait for him.
fn heard(ends: &mut Ends, key: WebKey, whom: Waits) -> Option<&mut Gone> {
    let gone = ends.get_mut(&key)?;
    gone.waits.remove(&whom).then_some(gone)
}

impl Reader {
    fn add(&mut self, end: u64, key: WebKey, since: Duration) {
        self.open.insert(end, (key, since));
        self.ends.insert(key, end);
    }

    fn is_late(&self, now: Now) -> bool {
        self.open.first_key_value().is_some_and(|(_, (_, since))| now.mono >= *since + WITHIN)
    }
}

impl Known {
    fn new(gateway: Gateway) -> Self {
        Self { gateway, away: None, destroying: false, asked: None, trouble: None }
    }

    /// As the receipt calls it, and what is known to be wrong with it.
    fn name(&self) -> Arc<str> {
        let name = match self.gateway.process {
            Some(process) => format!("the web gateway (process {})", process.pid),
            None => "the web gateway".to_owned(),
        };
        match &self.trouble {
            Some(why) => format!("{name}; its sockets could not be destroyed from here: {why}").into(),
            None => name.into(),
        }
    }

    /// An end that it will not hear of for now.
    fn miss(&mut self, key: WebKey, gone: &mut Gone, now: Now) {
        let (id, table, name) = (self.gateway.id, self.gateway.table, self.name());
        let Some(away) = &mut self.away else { return };
        let until = if table { away.until.max(now.mono + DESTROYED_WITHIN) } else { away.until };
        if until > now.mono {
            away.missed.insert(gone.end, (key, until));
            gone.waits.insert(Waits::Away(id));
        } else if away.hangs || self.gateway.process.is_some() {
            gone.ending.missing.insert(name);
        }
    }
}

impl Gateways {
    /// A session is over: everybody is told, and it waits for them.
    pub(super) fn tell(
        &mut self,
        key: WebKey,
        gone: &mut Gone,
        cause: WebCause,
        now: Now,
        out: &mut Effects,
    ) {
        for (watch, reader) in &mut self.watches {
            reader.add(gone.end, key, now.mono);
            gone.waits.insert(Waits::Watch(*watch));
            out.push(Effect::WebEnded { watch: *watch, key, cause, ends: gone.end });
        }
        for known in self.known.values_mut() {
            known.miss(key, gone, now);
        }
        if let Some(anybody) = self.anybody.as_mut().filter(|anybody| anybody.until > now.mono) {
            anybody.keys.insert(key);
            gone.waits.insert(Waits::Anybody);
        }
    }

    /// Of the daemon's last run: who there was. `None`: whoever comes may have sessions of then, and whether all of them
    /// have come is seen by nothing but the time.
    pub(super) fn expect(&mut self, gateways: Option<Vec<Gateway>>, now: Now) {
        let until = now.mono + EXPECTED_FOR;
        let Some(gateways) = gateways else {
            self.anybody = Some(Anybody { until, keys: BTreeSet::new() });
            return;
        };
        for gateway in gateways.into_iter().take(MAX_GATEWAYS) {
            let away = Some(Away { until, hangs: false, missed: BTreeMap::new() });
            self.known.insert(gateway.id, Known { away, ..Known::new(gateway) });
        }
    }

    /// A gateway wants to be told. False: there is no room for it.
    #[must_use]
    pub(super) fn watch(
        &mut self,
        watch: Watch,
        gateway: Gateway,
        ends: u64,
        gone: &mut Ends,
        now: Now,
    ) -> bool {
        self.make_room(gateway.id);
        let is_new = !self.known.contains_key(&gateway.id);
        if self.watches.len() >= MAX_WATCHES || (is_new && self.known.len() >= MAX_GATEWAYS) {
            return false;
        }
        let id = gateway.id;
        let mut reader =
            Reader { id, began: ends, listed: false, open: BTreeMap::new(), ends: BTreeMap::new() };
        let known = self.known.entry(id).or_insert_with(|| Known::new(gateway));
        known.gateway = gateway;
        // by its list it is told of what it has missed
        for (end, (key, _)) in known.away.take().into_iter().flat_map(|away| away.missed) {
            if let Some(gone) = heard(gone, key, Waits::Away(id)) {
                gone.waits.insert(Waits::Watch(watch));
                reader.add(end, key, now.mono);
            }
        }
        let unseen = |known: &&Known| gateway.process.is_none() && known.gateway.process.is_none();
        let unseen = self.known.values().filter(unseen).filter_map(|known| known.away.as_ref());
        let missed = unseen.flat_map(|away| away.missed.values().map(|(key, _)| key));
        for key in missed.chain(self.anybody.iter().flat_map(|anybody| &anybody.keys)) {
            // it may be the one that has missed it
            if let Some(gone) = gone.get_mut(key) {
                gone.waits.insert(Waits::Watch(watch));
                reader.add(gone.end, *key, now.mono);
            }
        }
        self.watches.insert(watch, reader);
        true
    }

    /// Where there is none for another gateway: one that cannot be seen and is away is forgotten.
    fn make_room(&mut self, id: u64) {
        if self.known.len() < MAX_GATEWAYS || self.known.contains_key(&id) {
            return;
        }
        let is_forgettable = |known: &Known| {
            known.gateway.process.is_none() && known.away.as_ref().is_some_and(|away| away.missed.is_empty())
        };
        let oldest = self.known.iter().find(|(_, known)| is_forgettable(known)).map(|(id, _)| *id);
        oldest.map(|id| self.known.remove(&id));
    }

    /// It does not hear us any more. `None`: it is not known.
    pub(super) fn unwatch(&mut self, watch: Watch, gone: &mut Ends, now: Now) -> Option<BTreeSet<WebKey>> {
        let reader = self.watches.remove(&watch)?;
        let other = self.watches.iter_mut().rev().find(|(_, other)| other.id == reader.id);
        let mut other = other;
        let mut known = self.known.get_mut(&reader.id);
        if let (None, Some(known)) = (&other, &mut known) {
            let until = now.mono + EXPECTED_FOR;
            known.away = Some(Away { until, hangs: false, missed: BTreeMap::new() });
        }
        let mut changed = BTreeSet::new();
        for (end, (key, _)) in reader.open {
            // what was not waited for any more needs not be waited for again
            let Some(gone) = gone.get_mut(&key).filter(|gone| gone.waits.contains(&Waits::Watch(watch)))
            else {
                continue;
            };
            gone.waits.remove(&Waits::Watch(watch));
            changed.insert(key);
            match (&mut other, &mut known) {
                // the same gateway reads another stream already, and was told by that, or by its list
                (Some((_, other)), _) if end > other.began => {}
                (Some((_, other)), _) if other.listed => gone.closed = true,
                (Some((watch, other)), _) => {
                    other.add(end, key, now.mono);
                    gone.waits.insert(Waits::Watch(**watch));
                }
                (None, Some(known)) => known.miss(key, gone, now),
                (None, None) => {}
            }
        }
        Some(changed)
    }

    /// What a gateway has closed; `listed`: and everything that its list did not have.
    pub(super) fn acknowledged(
        &mut self,
        watch: Watch,
        closed: Vec<(WebKey, u64)>,
        listed: bool,
        gone: &mut Ends,
    ) -> BTreeSet<WebKey> {
        let mut changed = BTreeSet::new();
        let Some(reader) = self.watches.get_mut(&watch) else { return changed };
        let mut done = |key: WebKey, sockets: u64| {
            if let Some(gone) = heard(gone, key, Waits::Watch(watch)) {
                // a gateway may say anything
                gone.ending.sockets = gone.ending.sockets.saturating_add(sockets);
                gone.closed = true;
                changed.insert(key);
            }
        };
        for (key, sockets) in closed {
            let Some(end) = reader.ends.remove(&key) else { continue };
            reader.open.remove(&end);
            done(key, sockets);
        }
        if listed && !reader.listed {
            reader.listed = true;
            let later = reader.open.split_off(&(reader.began + 1));
            for (key, _) in std::mem::replace(&mut reader.open, later).into_values() {
                reader.ends.remove(&key);
                done(key, 0);
            }
            let id = reader.id;
            self.forget_unseen(id, gone, &mut changed);
        }
        changed
    }

    /// One of those that cannot be seen has gone through its list: it, or its successor. Of others that are away nothing
    /// would ever tell that they have ended.
    fn forget_unseen(&mut self, id: u64, ends: &mut Ends, changed: &mut BTreeSet<WebKey>) {
        if self.known.get(&id).is_none_or(|known| known.gateway.process.is_some()) {
            return;
        }
        let unseen =
            self.known.extract_if(.., |_, known| known.gateway.process.is_none() && known.away.is_some());
        for (id, known) in unseen {
            for (key, _) in known.away.into_iter().flat_map(|away| away.missed.into_values()) {
                if let Some(gone) = heard(ends, key, Waits::Away(id)) {
                    gone.closed = true;
                    changed.insert(key);
                }
            }
        }
    }

    /// Its process has ended, and what it had with it.
    pub(super) fn ended(&mut self, id: u64, gone: &mut Ends, out: &mut Effects) -> BTreeSet<WebKey> {
        let mut changed = BTreeSet::new();
        let mut settle = |key: WebKey, waits: Waits| {
            if heard(gone, key, waits).is_some() {
                changed.insert(key);
            }
        };
        let known = self.known.remove(&id);
        for (key, _) in known.and_then(|known| known.away).into_iter().flat_map(|a| a.missed.into_values()) {
            settle(key, Waits::Away(id));
        }
        for (watch, reader) in self.watches.extract_if(.., |_, reader| reader.id == id) {
            out.push(Effect::WebBreak { watch });
            reader.ends.into_keys().for_each(|key| settle(key, Waits::Watch(watch)));
        }
        changed
    }

    /// What was destroyed by its table.
    pub(super) fn destroyed(
        &mut self,
        id: u64,
        done: Vec<(WebKey, u64)>,
        trouble: Option<String>,
        gone: &mut Ends,
    ) -> BTreeSet<WebKey> {
        let mut changed = BTreeSet::new();
        let Some(known) = self.known.get_mut(&id) else { return changed };
        known.destroying = false;
        known.trouble = trouble.map(Into::into);
        let watches: Vec<Watch> =
            self.watches.iter().filter(|(_, reader)| reader.id == id).map(|(watch, _)| *watch).collect();
        for (key, sockets) in done {
            let Some(gone) = gone.get_mut(&key) else { continue };
            gone.ending.destroyed = gone.ending.destroyed.saturating_add(sockets);
            // a watch has to acknowledge all the same: its memory is not ours to look at
            let mut waited = gone.waits.remove(&Waits::Away(id));
            for watch in &watches {
                waited |= gone.waits.remove(&Waits::Watch(*watch));
            }
            gone.by_daemon |= waited;
            if let Some(away) = &mut known.away {
                away.missed.remove(&gone.end);
            }
            changed.insert(key);
        }
        changed
    }

    /// Who has not acknowledged in time is let go of; who was expected and has not come is not waited for.
    pub(super) fn tick(&mut self, now: Now, gone: &mut Ends, out: &mut Effects) -> BTreeSet<WebKey> {
        let mut changed = BTreeSet::new();
        let late: Vec<(Watch, Reader)> =
            self.watches.extract_if(.., |_, reader| reader.is_late(now)).collect();
        for (watch, reader) in late {
            out.push(Effect::WebBreak { watch });
            let is_last = self.watches.values().all(|other| other.id != reader.id);
            let Some(known) = self.known.get_mut(&reader.id) else { continue };
            let name = known.name();
            let text = format!(
                "{name} has not said in time that it closed what was to be closed: it has to begin anew"
            );
            out.push(Effect::Note { kind: "web", text });
            if is_last {
                known.away = Some(Away { until: now.mono, hangs: true, missed: BTreeMap::new() });
            }
            for key in reader.ends.into_keys() {
                if let Some(gone) = heard(gone, key, Waits::Watch(watch)) {
                    gone.ending.missing.insert(Arc::clone(&name));
                    changed.insert(key);
                }
            }
        }
        for (id, known) in &mut self.known {
            let (name, is_seen) = (known.name(), known.gateway.process.is_some());
            let Some(away) = &mut known.away else { continue };
            let may_serve = away.hangs || is_seen;
            for (_, (key, _)) in away.missed.extract_if(.., |_, (_, until)| *until <= now.mono) {
                if let Some(gone) = heard(gone, key, Waits::Away(*id)) {
                    if may_serve {
                        gone.ending.missing.insert(Arc::clone(&name));
                    }
                    changed.insert(key);
                }
            }
        }
        // one that has gone, cannot be seen and did not come again is taken for ended
        self.known.retain(|_, known| {
            let is_ended = |away: &Away| {
                !away.hangs
                    && known.gateway.process.is_none()
                    && away.until <= now.mono
                    && away.missed.is_empty()
            };
            !known.away.as_ref().is_some_and(is_ended)
        });
        if self.anybody.as_ref().is_some_and(|anybody| anybody.until <= now.mono) {
            for key in self.anybody.take().into_iter().flat_map(|anybody| anybody.keys) {
                if let Some(gone) = gone.get_mut(&key) {
                    gone.waits.remove(&Waits::Anybody);
                    changed.insert(key);
                }
            }
        }
        changed
    }

    /// What a gateway with a table has not closed by itself is destroyed.
    pub(super) fn ask_tables(&mut self, now: Now, out: &mut Effects) {
        let due: Vec<(u64, BTreeMap<u64, WebKey>)> = (self.known.keys())
            .filter(|id| self.table_due(**id).is_some_and(|at| at <= now.mono))
            .map(|id| (*id, self.unclosed(*id, now)))
            .collect();
        for (id, keys) in due {
            let Some(known) = self.known.get_mut(&id) else { continue };
            let up_to = known.asked.map_or(0, |(_, up_to)| up_to);
            let last = keys.last_key_value().map_or(0, |(end, _)| *end);
            known.asked = Some((now.mono, up_to.max(last)));
            if keys.is_empty() {
                continue;
            }
            known.destroying = true;
            out.push(Effect::WebDestroy { id, keys: keys.into_values().collect() });
        }
    }

    /// What it has been given long enough to close, by the ends' numbers.
    fn unclosed(&self, id: u64, now: Now) -> BTreeMap<u64, WebKey> {
        let missed = self.known.get(&id).and_then(|known| known.away.as_ref()).into_iter();
        let missed = missed.flat_map(|away| &away.missed).map(|(end, (key, _))| (*end, *key));
        let open = self.watches.values().filter(|reader| reader.id == id).flat_map(|reader| &reader.open);
        let open = open.filter(|(_, (_, since))| *since + PATIENCE <= now.mono);
        missed.chain(open.map(|(end, (key, _))| (*end, *key))).collect()
    }

    /// When its table has to be gone by.
    fn table_due(&self, id: u64) -> Option<Duration> {
        let known = self.known.get(&id).filter(|known| known.gateway.table && !known.destroying)?;
        let readers = || self.watches.values().filter(move |reader| reader.id == id);
        let (asked, up_to) = known.asked.unwrap_or_default();
        let missed = known.away.as_ref().map(|away| &away.missed);
        let first_missed = missed.and_then(|missed| missed.range(up_to + 1..).next()).map(|_| Duration::ZERO);
        let first_open = readers().filter_map(|reader| reader.open.range(up_to + 1..).next());
        let first_open = first_open.map(|(_, (_, since))| *since + PATIENCE).min();
        let is_asked = |ends: &BTreeMap<u64, (WebKey, Duration)>| ends.range(..=up_to).next().is_some();
        let again = readers().any(|reader| is_asked(&reader.open)) || missed.is_some_and(is_asked);
        [first_missed, first_open, again.then_some(asked + AGAIN)].into_iter().flatten().min()
    }

    /// When [`Gateways::ask_tables`] has something to do, as far as it is known now.
    pub(super) fn next_look(&self) -> Option<Duration> {
        self.known.keys().filter_map(|id| self.table_due(*id)).min()
    }

    /// How many are told of ends, and how many of these they have not acknowledged.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.watches.len(), self.watches.values().map(|reader| reader.open.len()).sum())
    }

    /// Which of them run, where that has changed since the last question: after a start each of them is waited for. `None`
    /// within: not all of them can be seen.
    pub(super) fn note(&mut self) -> Option<Option<Vec<Process>>> {
        if self.known.is_empty() && self.noted.is_none() {
            return None;
        }
        let seen = self.known.values().map(|known| known.gateway.process);
        let now: Option<Vec<Process>> = if self.anybody.is_some() { None } else { seen.collect() };
        (self.noted.as_ref() != Some(&now)).then(|| {
            self.noted = Some(now.clone());
            now
        })
    }

    pub(super) fn knows(&self, id: u64) -> bool {
        self.known.contains_key(&id)
    }

    pub(super) fn knows_unseen(&self) -> bool {
        self.known.values().any(|known| known.gateway.process.is_none())
    }

    /// Those that may be serving without being told: their names.
    pub(super) fn away(&self) -> impl Iterator<Item = Arc<str>> {
        self.known.values().filter(|known| known.away.is_some()).map(Known::name)
    }
}

#[cfg(test)]
impl Gateways {
    pub(super) fn check(&self, ends: &Ends) {
        for (key, gone) in ends {
            for waits in &gone.waits {
                let is_known = match waits {
                    Waits::Watch(watch) => self.watches[watch].open.contains_key(&gone.end),
                    Waits::Away(id) => {
                        self.known[id].away.as_ref().is_some_and(|away| away.missed.contains_key(&gone.end))
                    }
                    Waits::Anybody => self.anybody.as_ref().is_some_and(|all| all.keys.contains(key)),
                };
                assert!(is_known, "{key} waits for {waits:?}, who does not know");
            }
        }
        for (watch, reader) in &self.watches {
            assert!(self.known.contains_key(&reader.id), "{watch} is nobody's");
            assert_eq!(reader.open.len(), reader.ends.len(), "{watch}");
        }
        for (id, known) in &self.known {
            let reads = self.watches.values().any(|reader| reader.id == *id);
            assert_eq!(known.away.is_none(), reads, "{id} reads, or is away");
        }
    }
}
