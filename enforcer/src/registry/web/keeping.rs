//! What the disk has of web sessions, and what the gateway has to know for ever.
//!
//! A session is written when it is made, when a token is added and, lazily, when it is used; its end is written at once.
//! What could not be written is written as it stands when it is tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::session::{WebKey, WebLearned, WebRecord, Write};

use super::super::durable::{Of, Ticket};
use super::super::{Effect, Effects, Now, Registry, Request};
use super::ending::Kept;
use super::{WebAnswer, WebSession, left};

/// What the gateway may leave here: so many records, and so many bytes in all of them.
pub const MAX_LEARNED: usize = if cfg!(test) { 10 } else { 65_536 };
pub const MAX_LEARNED_BYTES: usize = 16 * 1_024 * 1_024;

#[derive(Debug, Default)]
pub(in crate::registry) struct Keeping {
    /// What is to be written; whether that may wait.
    touched: BTreeMap<WebKey, bool>,
    /// What the disk has not as it should, since a write failed or a clock was set; and the last write of which that is
    /// known: a later one mends it.
    unsaved: BTreeMap<WebKey, Ticket>,
    learned: BTreeMap<Vec<u8>, Vec<u8>>,
    learned_bytes: usize,
    /// What of it could not be written.
    unlearned: BTreeSet<Vec<u8>>,
    /// What is to be written of it, for whom.
    learning: Vec<(Request, Vec<u8>)>,
    learners: BTreeMap<Request, Learner>,
}

/// Who waits until what it has told is on the disk.
#[derive(Debug, Default)]
struct Learner {
    left: usize,
    keys: Vec<Vec<u8>>,
    failed: Option<String>,
}

impl Keeping {
    pub(super) fn touch(&mut self, key: WebKey, lazy: bool) {
        let may_wait = self.touched.entry(key).or_insert(lazy);
        *may_wait &= lazy;
    }

    fn size(key: &[u8], value: &[u8]) -> usize {
        key.len() + value.len()
    }

    /// Why it cannot be kept.
    fn refusal(&self, records: &[WebLearned]) -> Option<String> {
        let new: BTreeMap<&[u8], &[u8]> =
            records.iter().map(|(key, value)| (key.as_slice(), value.as_slice())).collect();
        let more = new.keys().filter(|key| !self.learned.contains_key(**key)).count();
        let bytes: usize = new.iter().map(|(key, value)| Self::size(key, value)).sum();
        let old: usize =
            (new.keys()).filter_map(|key| self.learned.get(*key).map(|value| Self::size(key, value))).sum();
        let fits = self.learned.len() + more <= MAX_LEARNED
            && (self.learned_bytes + bytes).saturating_sub(old) <= MAX_LEARNED_BYTES;
        (!fits).then(|| {
            format!("the gateway has left {} records here, and there is no room for more", self.learned.len())
        })
    }

    fn keep(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.learned_bytes += Self::size(&key, &value);
        if let Some(old) = self.learned.insert(key.clone(), value) {
            self.learned_bytes -= Self::size(&key, &old);
        }
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
    /// What the disk had. `wall`: the latest that the wall clock is known to have shown: one that was set back makes
    /// nothing stand longer than was asked.
    pub(in crate::registry) fn restore_web(
        &mut self,
        records: Vec<WebRecord>,
        learned: Vec<WebLearned>,
        wall: u64,
        now: Now,
    ) {
        for (key, value) in learned {
            self.web.keeping.keep(key, value);
        }
        for record in records {
            let key = record.key;
            let session = self.web_of(record, wall, now);
            // locked by an entry of the kernel of which the disk did not hear
            let is_locked = !self.locks_on(&session.identity).is_empty();
            if session.ends_at() <= now.mono || is_locked {
                self.web.keeping.touch(key, false);
            } else {
                self.web.insert(session);
            }
        }
        if !self.web.sessions.is_empty() {
            self.expect_watch(now);
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

    pub(in crate::registry) fn has_web_writes(&self) -> bool {
        !self.web.keeping.touched.is_empty() || !self.web.keeping.learning.is_empty()
    }

    /// What has to be written of web sessions as they stand now.
    pub(in crate::registry) fn take_web_writes(&mut self, now: Now) -> Vec<(Of, Write)> {
        let touched = std::mem::take(&mut self.web.keeping.touched);
        let is_gone = |key: &WebKey| !self.web.sessions.contains_key(key);
        // first, since a session that is there may have a token that one of these had
        let gone =
            touched.keys().filter(|key| is_gone(key)).map(|key| (Of::WebGone(*key), Write::WebGone(*key)));
        let mut writes: Vec<(Of, Write)> = gone.collect();
        for (key, lazy) in touched {
            if let Some(session) = self.web.sessions.get(&key) {
                writes.push((Of::Web(key), Write::KeepWeb { record: Box::new(session.record(now)), lazy }));
            }
        }
        for (request, key) in std::mem::take(&mut self.web.keeping.learning) {
            let Some(value) = self.web.keeping.learned.get(&key).cloned() else { continue };
            writes.push((Of::Learned(request), Write::Learn { key, value }));
        }
        writes
    }

    pub(in crate::registry) fn web_stored(
        &mut self,
        key: WebKey,
        is_gone: bool,
        ticket: Ticket,
        outcome: &Result<(), String>,
        out: &mut Effects,
    ) {
        let unsaved = &mut self.web.keeping.unsaved;
        match outcome {
            Ok(()) => {
                if unsaved.get(&key).is_some_and(|of| ticket > *of) {
                    unsaved.remove(&key);
                }
            }
            Err(_) => {
                let last = unsaved.entry(key).or_insert(ticket);
                *last = ticket.max(*last);
            }
        }
        if is_gone {
            self.web_gone_stored(key, outcome, out);
        }
    }

    /// What could not be written is to be tried again, so many of them; true: there are any.
    pub(in crate::registry) fn retry_web(&mut self, most: usize) {
        let keys: Vec<WebKey> = self.web.keeping.unsaved.keys().take(most).copied().collect();
        for key in keys {
            let alive = self.web.sessions.contains_key(&key);
            self.web.keeping.touch(key, alive);
        }
    }

    pub(in crate::registry) fn has_unsaved_web(&self) -> bool {
        !self.web.keeping.unsaved.is_empty()
    }

    /// The wall clock was set: the times on the disk have to move with it. `of`: the last write by the old clock.
    pub(in crate::registry) fn restamp_web(&mut self, of: Ticket) {
        for key in self.web.sessions.keys() {
            let last = self.web.keeping.unsaved.entry(*key).or_insert(of);
            *last = of.max(*last);
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

    pub(in crate::registry) fn web_learn(
        &mut self,
        request: Request,
        records: Vec<WebLearned>,
        out: &mut Effects,
    ) {
        let keeping = &mut self.web.keeping;
        if let Some(why) = keeping.refusal(&records) {
            return out.push(Effect::WebAnswer { request, answer: WebAnswer::Full(why) });
        }
        let mut learner = Learner::default();
        for (key, value) in records {
            // one that is on its way is written once more: whoever asks hears of its own
            if keeping.learned.get(&key) == Some(&value)
                && !keeping.unlearned.contains(&key)
                && !keeping.learners.values().any(|other| other.keys.contains(&key))
            {
                continue;
            }
            keeping.keep(key.clone(), value);
            keeping.learning.push((request, key.clone()));
            learner.keys.push(key);
            learner.left += 1;
        }
        if learner.left == 0 {
            return out.push(Effect::WebAnswer { request, answer: WebAnswer::Done });
        }
        keeping.learners.insert(request, learner);
    }

    pub(in crate::registry) fn learned_stored(
        &mut self,
        request: Request,
        outcome: &Result<(), String>,
        out: &mut Effects,
    ) {
        let keeping = &mut self.web.keeping;
        let Some(learner) = keeping.learners.get_mut(&request) else { return };
        learner.left = learner.left.saturating_sub(1);
        if let Err(why) = outcome {
            learner.failed = Some(why.clone());
        }
        if learner.left > 0 {
            return;
        }
        let Some(learner) = keeping.learners.remove(&request) else { return };
        let answer = match learner.failed {
            None => {
                for key in &learner.keys {
                    keeping.unlearned.remove(key);
                }
                WebAnswer::Done
            }
            Some(why) => {
                keeping.unlearned.extend(learner.keys);
                WebAnswer::Unwritten(why)
            }
        };
        out.push(Effect::WebAnswer { request, answer });
    }

    /// Up to `most` records after this key, in the order of their keys.
    pub fn web_learned(&self, after: Option<&[u8]>, most: usize) -> Vec<WebLearned> {
        let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let rest = self.web.keeping.learned.range::<[u8], _>((from, std::ops::Bound::Unbounded));
        rest.take(most).map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    pub fn web_learned_count(&self) -> usize {
        self.web.keeping.learned.len()
    }
}
