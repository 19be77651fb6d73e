//! What the disk has of web sessions.
//!
//! A session is written when it is made, when a token is added or wrapped anew and, lazily, when it is used; its end is
//! written at once. What could not be written is written as it stands when it is tried again.
//!
//! The disk serves revocations as well, and those come first: so many changes of web sessions may be on their way to it and
//! no more. At that bound nobody new gets in, and what may wait waits.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::session::{WebDigest, WebKey, WebRecord, Write};

use super::super::durable::{CLOCK_JUMP, Of, Ticket};
use super::super::{Effect, Effects, Gateway, Now, Registry, Request};
use super::ending::Kept;
use super::{WebAnswer, WebSession, left};

/// How many changes of web sessions may be on their way to the disk for a further one to be asked for; half of it is for
/// what may wait.
pub const MAX_ON_THEIR_WAY: usize = if cfg!(test) { 800 } else { 16_384 };

#[derive(Debug, Default)]
pub(in crate::registry) struct Keeping {
    /// What is to be written, by how soon: ends that somebody waits for, other ends, what is new, what may wait.
    awaited: BTreeSet<WebKey>,
    ends: BTreeSet<WebKey>,
    touched: BTreeSet<WebKey>,
    used: BTreeSet<WebKey>,
    /// What the disk has not as it should, since a write failed or a clock was set; and the last write of which that is
    /// known: a later one mends it.
    unsaved: BTreeMap<WebKey, Ticket>,
    /// Who waits until what he has asked for is on the disk.
    waiting: BTreeMap<WebKey, Vec<Waiting>>,
}

#[derive(Debug)]
struct Waiting {
    request: Request,
    /// Of which token.
    digest: WebDigest,
    /// The write that has it; `None`: it was not given to the disk yet.
    ticket: Option<Ticket>,
}

impl Keeping {
    pub(super) fn touch(&mut self, key: WebKey) {
        self.used.remove(&key);
        self.touched.insert(key);
    }

    pub(super) fn used(&mut self, key: WebKey) {
        if !self.touched.contains(&key) {
            self.used.insert(key);
        }
    }

    pub(super) fn ended(&mut self, key: WebKey) {
        self.touched.remove(&key);
        self.used.remove(&key);
        if !self.awaited.contains(&key) {
            self.ends.insert(key);
        }
    }

    /// Somebody waits for that end: it goes before others that were not given to the disk yet.
    pub(super) fn hurry(&mut self, key: WebKey) {
        if self.ends.remove(&key) {
            self.awaited.insert(key);
        }
    }

    /// Who asks is answered once what he asked for is on the disk.
    pub(super) fn wait(&mut self, key: WebKey, request: Request, digest: WebDigest) {
        self.waiting.entry(key).or_default().push(Waiting { request, digest, ticket: None });
    }

    /// The session is over: who waited for something of it.
    pub(super) fn give_up(&mut self, key: WebKey) -> Vec<Request> {
        let waiting = self.waiting.remove(&key).unwrap_or_default();
        waiting.into_iter().map(|one| one.request).collect()
    }

    /// The disk has not of it what it should have.
    pub(super) fn is_unsaved(&self, key: &WebKey) -> bool {
        self.unsaved.contains_key(key)
    }

    /// How many wait for what they asked for.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.waiting.values().map(Vec::len).sum()
    }

    fn mark_unsaved(&mut self, key: WebKey, of: Ticket) {
        let last = self.unsaved.entry(key).or_insert(of);
        *last = of.max(*last);
    }
}

impl WebSession {
    fn record(&self, now: Now) -> WebRecord {
        WebRecord {
            key: self.key,
            realm: self.identity.realm.clone(),
            user: self.user.clone(),
            since: self.since,
            seen: self.seen(now),
            idle: self.idle.as_secs(),
            lasts: self.lasts.as_secs(),
            until: now.wall.saturating_add(left(self.over_at, now)),
            peer: self.peer.clone(),
            agent: self.agent.clone(),
            tokens: self.tokens.values().cloned().collect(),
        }
    }
}

impl Registry {
    /// What the disk had, and the gateways that there were. `wall`: the latest that the wall clock is known to have shown:
    /// one that was set back makes nothing stand longer than was asked.
    pub(in crate::registry) fn restore_web(
        &mut self,
        records: Vec<WebRecord>,
        gateways: Option<Vec<Gateway>>,
        wall: u64,
        now: Now,
    ) {
        for record in records {
            let (key, until) = (record.key, record.until);
            let session = self.web_of(record, wall, now);
            // locked by an entry of the kernel of which the disk did not hear
            let is_locked = !self.locks_on(&session.identity).is_empty();
            if session.ends_at() <= now.mono || is_locked {
                self.web.keeping.ended(key);
                self.web.over_by.extend(session.tokens.into_keys().map(|digest| (digest, key)));
            } else {
                // the clock was set back: the disk has to say the same by the clock as it is now
                if until.abs_diff(session.until(now)) >= CLOCK_JUMP {
                    self.web.keeping.mark_unsaved(key, 0);
                }
                self.web.insert(session);
            }
        }
        if !self.web.sessions.is_empty() || gateways.is_some() {
            self.web.gateways.expect(gateways, now);
        }
    }

    fn web_of(&self, record: WebRecord, wall: u64, now: Now) -> WebSession {
        let ends = |at: u64, most: u64| now.mono + Duration::from_secs(at.saturating_sub(wall).min(most));
        let idle_at = ends(record.seen.saturating_add(record.idle), record.idle);
        WebSession {
            key: record.key,
            identity: self.rules.realms.person(&record.realm, &record.user),
            user: record.user,
            since: record.since,
            peer: record.peer,
            agent: record.agent,
            idle: Duration::from_secs(record.idle),
            lasts: Duration::from_secs(record.lasts),
            tokens: record.tokens.into_iter().map(|token| (token.digest, token)).collect(),
            idle_at,
            over_at: ends(record.until, record.lasts),
            written_idle_at: idle_at,
        }
    }

    /// Why no further change of a web session can be taken on now.
    pub(super) fn web_backlog(&self) -> Option<WebAnswer> {
        let waiting = self.web.keeping.touched.len() + self.web.keeping.ends.len();
        let many = self.web_on_their_way().saturating_add(waiting);
        (many >= MAX_ON_THEIR_WAY).then(|| {
            WebAnswer::Full(format!(
                "{many} changes of web sessions wait for the disk already: try again when it has caught up"
            ))
        })
    }

    /// How many more may be given to the disk: of ends and new sessions, and of what may wait.
    fn web_room(&self) -> (usize, usize) {
        let on_their_way = self.web_on_their_way();
        // a session that was made within the bound is written; an end is, by and by
        (
            (2 * MAX_ON_THEIR_WAY).saturating_sub(on_their_way),
            (MAX_ON_THEIR_WAY / 2).saturating_sub(on_their_way),
        )
    }

    pub(in crate::registry) fn has_web_writes(&self) -> bool {
        let (keeping, (room, lazy_room)) = (&self.web.keeping, self.web_room());
        !keeping.awaited.is_empty()
            || (room > 0 && !(keeping.ends.is_empty() && keeping.touched.is_empty()))
            || (lazy_room > 0 && !keeping.used.is_empty())
    }

    /// What has to be written of web sessions as they stand now.
    pub(in crate::registry) fn take_web_writes(&mut self, now: Now) -> Vec<(Of, Write)> {
        let (room, lazy_room) = self.web_room();
        let web = &mut self.web;
        let mut writes = Vec::new();
        let gone = |key: WebKey| (Of::WebGone(key), Write::WebGone(key));
        writes.extend(std::mem::take(&mut web.keeping.awaited).into_iter().map(gone));
        while writes.len() < room
            && let Some(key) = web.keeping.ends.pop_first()
        {
            writes.push(gone(key));
        }
        // none before all ends: a session that is there may have a token that one of those had
        let sessions = &web.sessions;
        let mut keep = |from: &mut BTreeSet<WebKey>, room: usize, lazy: bool| {
            while writes.len() < room
                && let Some(key) = from.pop_first()
            {
                let Some(session) = sessions.get(&key) else { continue };
                writes.push((Of::Web(key), Write::KeepWeb { record: Box::new(session.record(now)), lazy }));
            }
        };
        if web.keeping.ends.is_empty() {
            keep(&mut web.keeping.touched, room, false);
            keep(&mut web.keeping.used, lazy_room, true);
        }
        writes
    }

    /// A session was given to the disk as it stands.
    pub(in crate::registry) fn web_given(&mut self, key: WebKey, ticket: Ticket) {
        for waiting in self.web.keeping.waiting.get_mut(&key).into_iter().flatten() {
            waiting.ticket.get_or_insert(ticket);
        }
    }

    pub(in crate::registry) fn web_stored(
        &mut self,
        key: WebKey,
        is_gone: bool,
        ticket: Ticket,
        outcome: &Result<(), String>,
        out: &mut Effects,
    ) {
        let keeping = &mut self.web.keeping;
        match outcome {
            Ok(()) => {
                if keeping.unsaved.get(&key).is_some_and(|of| ticket > *of) {
                    keeping.unsaved.remove(&key);
                }
            }
            Err(_) => keeping.mark_unsaved(key, ticket),
        }
        if is_gone {
            return self.web_gone_stored(key, outcome, out);
        }
        let Some(waiting) = keeping.waiting.get_mut(&key) else { return };
        let has_heard = |one: &mut Waiting| one.ticket.is_some_and(|of| of <= ticket);
        for Waiting { request, digest, .. } in waiting.extract_if(.., has_heard) {
            self.web.asking -= 1;
            let answer = match outcome {
                Ok(()) => WebAnswer::Alive(digest),
                Err(why) => WebAnswer::Unwritten(why.clone()),
            };
            out.push(Effect::WebAnswer { request, answer });
        }
        if waiting.is_empty() {
            keeping.waiting.remove(&key);
        }
    }

    /// What could not be written is to be tried again, so many of them.
    pub(in crate::registry) fn retry_web(&mut self, most: usize) {
        let keys: Vec<WebKey> = self.web.keeping.unsaved.keys().take(most).copied().collect();
        for key in keys {
            if self.web.sessions.contains_key(&key) {
                self.web.keeping.used(key);
                continue;
            }
            self.web.keeping.ended(key);
            if self.web.gone.get(&key).is_some_and(super::ending::Gone::is_waited_for) {
                self.web.keeping.hurry(key);
            }
        }
    }

    pub(in crate::registry) fn has_unsaved_web(&self) -> bool {
        !self.web.keeping.unsaved.is_empty()
    }

    /// The wall clock was set: the times on the disk have to move with it. `of`: the last write by the old clock.
    pub(in crate::registry) fn restamp_web(&mut self, of: Ticket) {
        for key in self.web.sessions.keys() {
            self.web.keeping.mark_unsaved(*key, of);
        }
    }

    /// Those that are over and would be there again after a restart.
    pub(in crate::registry) fn unwritten_web(&self) -> usize {
        let web = &self.web;
        let told = web.gone.values().filter(|gone| gone.kept() != &Kept::Written).count();
        // those that were over when the daemon was started
        let untold = web
            .keeping
            .unsaved
            .keys()
            .filter(|key| !web.gone.contains_key(*key) && !web.sessions.contains_key(*key));
        told + untold.count()
    }
}
