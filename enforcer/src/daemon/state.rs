//! The durable state, into the loop and out of it.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;

use anyhow::Context as _;
use tokio::sync::mpsc;

use crate::config::Config;
use crate::control::api;
use crate::process;
use crate::registry::{Event, Session, SessionKey, Sighting, Ticket};
use crate::session::{Audit, KnownEtcd, SessionRecord, Write};
use crate::store::{self, Loaded, Outcome, Writer};

use super::checks::finding;
use super::{Daemon, Input, now};

/// How often the clock is written down.
pub(super) const CLOCK_EVERY: std::time::Duration = std::time::Duration::from_secs(60);

/// How often it is looked which sessions have changed: they are a help after a restart, and nothing is promised of
/// them.
pub(super) const SESSIONS_EVERY: std::time::Duration = std::time::Duration::from_secs(5);

/// The disk, and where what it says goes.
pub(super) struct State {
    pub directory: PathBuf,
    /// Who this gateway is to others.
    pub gateway: String,
    boot_id: String,
    writer: Writer,
    /// Sessions as they were last written.
    sessions: BTreeMap<SessionKey, u64>,
}

pub(super) fn settings(config: &Config) -> store::Settings {
    store::Settings {
        directory: config.state.directory.clone(),
        audit_days: config.state.audit_days,
        audit_rows: config.state.audit_rows,
    }
}

/// Opens the database. What is broken is refused: nothing is started over silently.
pub(super) fn open(config: &Config, inputs: mpsc::Sender<Input>) -> anyhow::Result<(State, Loaded)> {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .context("cannot tell this boot from another")?
        .trim()
        .to_owned();
    let (store, loaded) = store::open(&settings(config))?;
    let writer = store.start(move |Outcome { tickets, result }| {
        // the loop has stopped: nobody is left to be told
        let _ = inputs.blocking_send(Input::Event(Event::Stored { tickets, outcome: result }));
    });
    let writer = writer.context("the thread that writes cannot be started")?;
    let directory = config.state.directory.clone();
    Ok((
        State { directory, gateway: loaded.gateway.clone(), boot_id, writer, sessions: BTreeMap::new() },
        loaded,
    ))
}

impl State {
    pub(super) fn is_this_boot(&self, loaded: &Loaded) -> bool {
        loaded.boot_id.as_deref() == Some(self.boot_id.as_str())
    }

    /// Writes what is still waiting.
    pub(super) fn stop(self) {
        if let Err(error) = self.writer.stop() {
            tracing::warn!("what was left to write: {error}");
        }
    }
}

impl Daemon {
    /// What the registry wants on the disk goes to the writer. It never waits.
    pub(super) fn save(&mut self) {
        let writes = self.registry.take_writes(now());
        let refused = hand_over(writes, |ticket, write| self.state.writer.write(ticket, write));
        refused.into_iter().for_each(|refused| self.handle(refused));
    }

    pub(super) fn write_clock(&mut self) {
        let write = Write::Clock { wall: now().wall, boot_id: self.state.boot_id.clone() };
        self.registry.write(write);
        self.save();
    }

    pub(super) fn write_audit(&mut self, audit: Audit) {
        self.registry.write(Write::Audit(audit));
        self.save();
    }

    /// Sessions as they are now, of those that have changed.
    pub(super) fn write_sessions(&mut self) {
        let mut gone: BTreeSet<SessionKey> = self.state.sessions.keys().copied().collect();
        let mut writes = Vec::new();
        for session in self.registry.sessions().filter(|session| session.worker.is_some()) {
            gone.remove(&session.key);
            let seen = fingerprint(session);
            if self.state.sessions.insert(session.key, seen) != Some(seen) {
                writes.push(Write::Session(SessionRecord {
                    key: session.key,
                    server: session.server.clone(),
                    observed: session.observed.clone(),
                    worker: session.worker,
                }));
            }
        }
        for key in gone {
            self.state.sessions.remove(&key);
            writes.push(Write::SessionGone(key));
        }
        writes.into_iter().for_each(|write| self.registry.write(write));
        self.save();
    }

    /// Sessions of an earlier run whose workers are still there: they can be acted on before ocserv answers.
    pub(super) fn remember_sessions(&mut self, sessions: Vec<SessionRecord>) {
        // their numbers are this run's own
        self.registry.write(Write::NoSessions);
        for SessionRecord { server, observed, worker, .. } in sessions {
            let Some(worker) = worker.filter(|worker| process::is_alive(*worker)) else { continue };
            let Ok((netns, _)) = process::netns_of(worker.pid) else { continue };
            let tun =
                process::Worker::open(worker).ok().and_then(|worker| process::tun_of(&worker).ok().flatten());
            let device = tun.as_deref().and_then(|tun| self.namespaces.index_of(netns, tun));
            let sighting = Sighting {
                observed,
                worker: Some(worker),
                device,
                netns: Some(netns),
                has_tun: tun.is_some(),
            };
            self.handle(Event::Sighted { server, sighting });
        }
    }

    pub(super) fn disk(&self) -> api::Disk {
        let (unwritten, error) = self.registry.unwritten();
        api::Disk {
            directory: self.state.directory.display().to_string(),
            gateway: self.state.gateway.clone(),
            unwritten: unwritten as u64,
            error: error.unwrap_or_default().to_owned(),
        }
    }
}

/// Gives the disk all of these, and only then tells what it did not take: what the rules want written on hearing that has
/// later tickets, and the writer tells of tickets in a row.
fn hand_over<E: std::fmt::Display>(
    writes: Vec<(Ticket, Write)>,
    mut write: impl FnMut(Ticket, Write) -> Result<(), E>,
) -> Vec<Event> {
    let refused = writes.into_iter().filter_map(|(ticket, change)| {
        let error = write(ticket, change).err()?;
        Some(Event::Stored { tickets: ticket..=ticket, outcome: Err(error.to_string()) })
    });
    refused.collect()
}

/// Two states of a session that differ in what is written of it have different ones.
fn fingerprint(session: &Session) -> u64 {
    let mut hasher = DefaultHasher::new();
    let seen = &session.observed;
    (seen.id, &seen.user, &seen.vhost, &seen.group, &seen.device, &seen.addresses).hash(&mut hasher);
    (&seen.client, seen.safe_id, seen.since, session.worker).hash(&mut hasher);
    hasher.finish()
}

/// Looks at the database while no daemon runs: how many records there are; `None`: there is no database.
pub(super) fn look(config: &Config) -> Result<Option<usize>, store::OpenError> {
    let settings = settings(config);
    if store::Reader::open(&settings.directory)?.is_none() {
        return Ok(None);
    }
    store::open(&settings).map(|(_, loaded)| Some(loaded.records.len()))
}

/// Keeps a broken database aside, and makes a new one of what can be read of it. The daemon is not running.
pub fn repair(config: &Config) -> anyhow::Result<api::Findings> {
    let settings = settings(config);
    let broken = match store::open(&settings) {
        Ok((_, loaded)) => {
            let text = format!("the database is sound: {} revocations and locks", loaded.records.len());
            let mut findings = vec![finding("ok", text, "")];
            findings.extend(
                loaded.unwritable.map(|why| finding("error", why, "make it writable, then start the daemon")),
            );
            return Ok(api::Findings { findings });
        }
        Err(error) if !error.is_repairable() => return Err(error.into()),
        Err(error) => error.to_string(),
    };
    let aside = store::put_aside(&settings.directory)?;
    let (salvaged, unreadable) = match store::salvage(&aside) {
        Ok(salvaged) => (salvaged, None),
        Err(error) => (store::Salvaged::default(), Some(error)),
    };
    let (store, _) = store::open_again(&settings, salvaged.gateway.as_deref())?;
    let (count, letters, admissions) =
        (salvaged.records.len(), salvaged.letters.len(), salvaged.admissions.len());
    let writes = (salvaged.records.into_iter().map(Write::Keep))
        .chain(salvaged.lifted.into_iter().map(Write::Lift))
        .chain([Write::NextNumber(salvaged.next_number)])
        .chain(salvaged.letters.into_iter().map(Write::KeepLetter))
        .chain(salvaged.admissions.into_iter().map(Write::KeepAdmission));
    let (mut unwritten, mut why) = write_all(store, writes)?;
    // only once everything that it speaks of is on the disk: what it covers is not learned again
    if let (Some(known), 0, None) = (salvaged.known, unwritten, &why) {
        let (store, _) = store::open(&settings)?;
        (unwritten, why) = write_all(store, [Write::KnownEtcd(known)].into_iter())?;
    }
    let mut findings = vec![
        finding("warning", format!("the database was broken: {broken}"), ""),
        finding("ok", format!("it is kept as {}", aside.display()), "look at it, then remove it"),
        finding(
            if salvaged.skipped == 0 && unreadable.is_none() { "ok" } else { "warning" },
            format!(
                "{count} revocations and locks were read from it, {} rows or places could not be",
                salvaged.skipped
            ),
            "start the daemon: what stands in the kernel, and what ocserv lists, is written down again then",
        ),
    ];
    if letters + admissions > 0 {
        let text = format!(
            "{letters} changes that other gateways have yet to be told, and {admissions} admitted sessions, were read \
             from it"
        );
        findings.push(finding("ok", text, ""));
    }
    findings.extend(unreadable.map(|error| finding("warning", error.to_string(), "")));
    findings.extend(salvaged.notes.into_iter().map(|note| finding("warning", note, "")));
    if let Some(why) = why {
        let text = format!("{unwritten} of them could not be written: {why}");
        findings.push(finding("error", text, "make the state directory writable"));
    }
    Ok(api::Findings { findings })
}

/// Forgets which etcd the gateways told each other by, and how far it was: the next one that is found is taken, and read
/// from its beginning. The daemon is not running. `None`: none was known.
pub fn forget_etcd(config: &Config) -> anyhow::Result<Option<u64>> {
    let (store, loaded) = store::open(&settings(config))?;
    let Some(known) = loaded.known.filter(|known| known.cluster != 0) else { return Ok(None) };
    let nothing = KnownEtcd { cluster: 0, revision: 0 };
    let (unwritten, why) = write_all(store, std::iter::once(Write::KnownEtcd(nothing)))?;
    anyhow::ensure!(unwritten == 0, "it could not be written: {}", why.unwrap_or_default());
    Ok(Some(known.cluster))
}

/// Writes all of it and stops: how many were not written, and why.
fn write_all(
    store: store::Store,
    writes: impl Iterator<Item = Write>,
) -> anyhow::Result<(usize, Option<String>)> {
    let (told, outcomes) = std::sync::mpsc::channel();
    let writer = store.start(move |outcome| {
        let _ = told.send(outcome);
    })?;
    let mut unwritten = BTreeSet::new();
    for (ticket, write) in (1..).zip(writes) {
        unwritten.insert(ticket);
        // the queue is bounded, and the disk slower than we are
        while writer.write(ticket, write.clone()).is_err() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
    let mut why = writer.stop().err();
    for outcome in outcomes {
        match outcome.result {
            Ok(()) => outcome.tickets.for_each(|ticket| {
                unwritten.remove(&ticket);
            }),
            Err(error) => why = Some(error),
        }
    }
    Ok((unwritten.len(), why))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R5: a disk without room is given every write in the order of the tickets, also those that follow from what it did not
    /// take; and each of these is told once.
    #[test]
    fn r5_refused_writes_are_told_of_after_those_that_came_with_them() {
        let given = std::cell::RefCell::new(Vec::new());
        let write = |ticket: Ticket, _: Write| {
            given.borrow_mut().push(ticket);
            if ticket.is_multiple_of(2) { Err("full") } else { Ok(()) }
        };
        let mut told = Vec::new();
        let mut last = 4;
        let mut due: std::collections::VecDeque<Event> =
            hand_over((1..=last).map(|ticket| (ticket, Write::Over(ticket))).collect(), write).into();
        while let Some(Event::Stored { tickets, outcome }) = due.pop_front() {
            assert!(outcome.is_err());
            told.push(*tickets.start());
            // the rules want something written on hearing it
            if last < 8 {
                last += 1;
                due.extend(hand_over(vec![(last, Write::Over(last))], write));
            }
        }
        assert_eq!(*given.borrow(), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(told, [2, 4, 6]);
    }
}
