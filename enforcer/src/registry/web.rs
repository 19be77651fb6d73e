//! Web sessions: who is at the web gateway, by the digests of the tokens that its hosts gave out.
//!
//! Unlike a VPN session, which is ocserv's and is looked at from outside, a web session exists here and nowhere else: so
//! its end is that it is gone from this table. Nothing has to be remembered of it, and a fresh login is another session.
//! The gateway keeps what it was told, and is told of ends: see `ending`. What the disk has: see `keeping`.
//!
//! Whatever comes first counts: a session that is made before a revocation of its person is ended by it, one that is made
//! after it is not; and one that is made while a lock stands is refused.

mod account;
mod ending;
mod gateways;
mod keeping;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use crate::session::{Identity, WebDigest, WebKey, WebTokenRecord};

use super::users::Name;
use super::{Effect, Effects, Now, Registry, Request};

pub(super) use account::Account;
pub use ending::{Told, WebCause};

use gateways::{Ends, Gateways};
use keeping::Keeping;

/// How many tokens a session may have: one for each host.
pub const MAX_TOKENS: usize = 64;
/// How many sessions a person may have.
pub const MAX_OF_ONE: usize = if cfg!(test) { 20 } else { 1_000 };
/// How many may wait at once until the disk has what they asked for: whoever has gone meanwhile waits still, as far as is
/// known here.
pub const MAX_ASKING: usize = if cfg!(test) { 900 } else { 4_096 };
/// What a session, and a token, take beside their words: in tables here and on the disk.
const SESSION_WEIGHT: usize = 400;
const TOKEN_WEIGHT: usize = 200;
/// How many are ended for their time at once.
const EXPIRED_AT_ONCE: usize = 2_000;

/// A web session that is alive.
#[derive(Debug, Clone)]
pub struct WebSession {
    pub key: WebKey,
    /// As it was typed.
    pub user: String,
    pub identity: Identity,
    /// Unix seconds.
    pub since: u64,
    pub peer: String,
    pub agent: String,
    /// It ends when it was not used for so long.
    pub idle: Duration,
    /// For how long it was made.
    pub lasts: Duration,
    /// By their digests; at least one.
    pub tokens: BTreeMap<WebDigest, WebTokenRecord>,
    /// When it ends if it is not used until then, on CLOCK_MONOTONIC.
    idle_at: Duration,
    /// When it ends at the latest.
    over_at: Duration,
    /// `idle_at` as the disk has it.
    written_idle_at: Duration,
}

/// What a session is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewWebSession {
    /// Random; never given before.
    pub key: WebKey,
    pub realm: String,
    /// As it was typed.
    pub user: String,
    pub peer: String,
    pub agent: String,
    pub idle: Duration,
    pub lasts: Duration,
    pub token: WebTokenRecord,
}

/// A web session as people see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebRow {
    pub key: WebKey,
    pub user: String,
    pub realm: String,
    pub hosts: Vec<String>,
    pub peer: String,
    pub agent: String,
    /// Unix seconds, all three.
    pub since: u64,
    pub seen: u64,
    pub until: u64,
}

/// What is answered to the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WebAnswer {
    /// The session of this token is there.
    Alive(WebDigest),
    Done,
    /// The session is over, or was never there.
    Gone,
    /// Its person is locked.
    Locked(super::Number),
    /// That token is a session's already.
    Taken,
    /// There is no room.
    Full(String),
    /// It could not be written.
    Unwritten(String),
}

#[derive(Debug, Default)]
pub(super) struct Web {
    sessions: BTreeMap<WebKey, WebSession>,
    digests: BTreeMap<WebDigest, WebKey>,
    people: BTreeMap<Identity, BTreeSet<WebKey>>,
    names: BTreeMap<Name, BTreeSet<WebKey>>,
    /// The realms that anybody was ever of: as many as are configured.
    realms: BTreeSet<String>,
    /// When each of them ends, as it stands now.
    deadlines: BTreeSet<(Duration, WebKey)>,
    /// How many have ended.
    ends: u64,
    /// Those that are over while somebody has to be told, or the disk has to hear of it.
    gone: Ends,
    /// Those by the tokens that they had.
    gone_by: BTreeMap<WebDigest, WebKey>,
    /// The same of those that were over when the daemon was started.
    over_by: BTreeMap<WebDigest, WebKey>,
    gateways: Gateways,
    keeping: Keeping,
    /// How much all sessions take, as [`WebSession::weight`] counts it.
    weight: usize,
    /// How many wait for the disk.
    asking: usize,
}

impl WebSession {
    /// About how many bytes of memory, and of the disk, it takes.
    fn weight(&self) -> usize {
        let words = [&self.user, &self.identity.realm, &self.identity.name, &self.peer, &self.agent];
        let words: usize = words.into_iter().map(String::len).sum();
        SESSION_WEIGHT + words + self.tokens.values().map(weight_of).sum::<usize>()
    }

    fn ends_at(&self) -> Duration {
        self.idle_at.min(self.over_at)
    }

    pub(super) fn row(&self, now: Now) -> WebRow {
        let hosts: BTreeSet<&str> = self.tokens.values().map(|token| token.host.as_str()).collect();
        WebRow {
            key: self.key,
            user: self.user.clone(),
            realm: self.identity.realm.clone(),
            hosts: hosts.into_iter().map(str::to_owned).collect(),
            peer: self.peer.clone(),
            agent: self.agent.clone(),
            since: self.since,
            seen: self.seen(now),
            until: self.until(now),
        }
    }

    /// When it was last used, in unix seconds, by the clock on the wall as it is now.
    fn seen(&self, now: Now) -> u64 {
        let (left, idle) = (left(self.idle_at, now), self.idle.as_secs());
        // not held against `since`, which may be of a clock that was ahead
        now.wall.saturating_add(left).saturating_sub(idle).min(now.wall)
    }

    /// When it ends at the latest, in unix seconds.
    pub fn until(&self, now: Now) -> u64 {
        now.wall.saturating_add(left(self.over_at, now))
    }
}

fn weight_of(token: &WebTokenRecord) -> usize {
    TOKEN_WEIGHT + token.host.len() + token.wrapped.len()
}

fn too_many_wait() -> String {
    format!("{MAX_ASKING} wait for the disk already: try again when it has caught up")
}

/// Rounded up: nothing ends early for having been written down.
fn left(at: Duration, now: Now) -> u64 {
    let left = at.saturating_sub(now.mono);
    left.as_secs() + u64::from(left.subsec_nanos() > 0)
}

impl Registry {
    pub(super) fn web_create(&mut self, request: Request, new: NewWebSession, now: Now, out: &mut Effects) {
        let identity = self.rules.realms.person(&new.realm, &new.user);
        if let Err(answer) = self.may_create(&new, &identity) {
            return out.push(Effect::WebAnswer { request, answer });
        }
        let digest = new.token.digest;
        let session = WebSession {
            key: new.key,
            user: new.user,
            identity,
            since: now.wall,
            peer: new.peer,
            agent: new.agent,
            idle: new.idle,
            lasts: new.lasts,
            tokens: BTreeMap::from([(digest, new.token)]),
            idle_at: now.mono + new.idle,
            over_at: now.mono + new.lasts,
            written_idle_at: now.mono + new.idle,
        };
        if let Err(answer) = self.has_web_room(session.weight()) {
            return out.push(Effect::WebAnswer { request, answer });
        }
        self.web.make_way(&digest);
        self.web.keeping.touch(session.key);
        self.web.insert(session);
        out.push(Effect::WebAnswer { request, answer: WebAnswer::Alive(digest) });
    }

    fn may_create(&self, new: &NewWebSession, identity: &Identity) -> Result<(), WebAnswer> {
        if let Some(number) = self.locks_on(identity).first() {
            return Err(WebAnswer::Locked(*number));
        }
        let web = &self.web;
        if web.digests.contains_key(&new.token.digest)
            || web.sessions.contains_key(&new.key)
            || web.gone.contains_key(&new.key)
        {
            return Err(WebAnswer::Taken);
        }
        let most = self.rules.most_web_sessions;
        if web.sessions.len() >= most {
            return Err(WebAnswer::Full(format!(
                "there are {most} web sessions already: [web] max-sessions in the configuration"
            )));
        }
        // the disk does not take it, or gateways do not
        if web.gone.len() >= most.max(1_000) {
            let gone = web.gone.len();
            return Err(WebAnswer::Full(format!(
                "of {gone} web sessions that are over the disk, or a gateway, has not heard yet"
            )));
        }
        if web.people.get(identity).is_some_and(|keys| keys.len() >= MAX_OF_ONE) {
            return Err(WebAnswer::Full(format!("{identity} has {MAX_OF_ONE} web sessions already")));
        }
        self.web_backlog().map_or(Ok(()), Err)
    }

    /// Whether so much more may be stored of sessions.
    fn has_web_room(&self, more: usize) -> Result<(), WebAnswer> {
        let (weight, most) = (self.web.weight, self.rules.most_web_bytes);
        if weight.saturating_add(more) <= most {
            return Ok(());
        }
        Err(WebAnswer::Full(format!(
            "web sessions take {weight} of {most} bytes already: 1,024 for each of [web] max-sessions in the configuration"
        )))
    }

    pub(super) fn web_add_token(
        &mut self,
        request: Request,
        known: WebDigest,
        token: WebTokenRecord,
        now: Now,
        out: &mut Effects,
    ) {
        let answer = self.add_token(known, token, now);
        out.push(Effect::WebAnswer { request, answer });
    }

    fn add_token(&mut self, known: WebDigest, token: WebTokenRecord, now: Now) -> WebAnswer {
        let Some(key) = self.web_session_of(&known, now).map(|session| session.key) else {
            return WebAnswer::Gone;
        };
        if self.web.digests.contains_key(&token.digest) {
            return WebAnswer::Taken;
        }
        let room = self.web_backlog().map_or(Ok(()), Err).and_then(|()| self.has_web_room(weight_of(&token)));
        if let Err(answer) = room {
            return answer;
        }
        let Some(session) = self.web.sessions.get_mut(&key) else { return WebAnswer::Gone };
        if session.tokens.len() >= MAX_TOKENS {
            return WebAnswer::Full(format!(
                "the session has {MAX_TOKENS} tokens already, one for each host"
            ));
        }
        let digest = token.digest;
        self.web.weight += weight_of(&token);
        session.tokens.insert(digest, token);
        self.web.digests.insert(digest, key);
        self.web.make_way(&digest);
        self.web.keeping.touch(key);
        WebAnswer::Alive(digest)
    }

    /// Answered once it is on the disk: whoever turns a key over may then forget the one before it.
    pub(super) fn web_rewrap(
        &mut self,
        request: Request,
        digest: WebDigest,
        wrapped: Vec<u8>,
        now: Now,
        out: &mut Effects,
    ) {
        if let Err(answer) = self.rewrap(request, digest, wrapped, now) {
            out.push(Effect::WebAnswer { request, answer });
        }
    }

    fn rewrap(
        &mut self,
        request: Request,
        digest: WebDigest,
        wrapped: Vec<u8>,
        now: Now,
    ) -> Result<(), WebAnswer> {
        let key = self.web_session_of(&digest, now).map(|session| session.key).ok_or(WebAnswer::Gone)?;
        if let Some(answer) = self.web_backlog() {
            return Err(answer);
        }
        if !self.web.may_wait() {
            return Err(WebAnswer::Full(too_many_wait()));
        }
        let token = self.web.sessions.get(&key).and_then(|session| session.tokens.get(&digest));
        let before = token.map_or(0, |token| token.wrapped.len());
        self.has_web_room(wrapped.len().saturating_sub(before))?;
        let session = self.web.sessions.get_mut(&key).ok_or(WebAnswer::Gone)?;
        let token = session.tokens.get_mut(&digest).ok_or(WebAnswer::Gone)?;
        self.web.weight = self.web.weight + wrapped.len() - before;
        token.wrapped = wrapped;
        self.web.keeping.touch(key);
        self.web.keeping.wait(key, request, digest);
        self.web.asking += 1;
        Ok(())
    }

    /// How long ago each of them was used. Of one that is over nothing is kept.
    pub(super) fn web_seen(&mut self, uses: Vec<(WebKey, Duration)>, now: Now) {
        for (key, ago) in uses {
            self.web.seen(key, now.mono.saturating_sub(ago));
        }
    }

    /// Those whose time is over are ended, a part at a time.
    pub(super) fn web_expire(&mut self, now: Now, out: &mut Effects) {
        let over: Vec<WebKey> = (self.web.deadlines.iter())
            .take_while(|(at, _)| *at <= now.mono)
            .take(EXPIRED_AT_ONCE)
            .map(|(_, key)| *key)
            .collect();
        for key in over {
            let absolute = self.web.sessions.get(&key).is_some_and(|session| session.over_at <= now.mono);
            let cause = if absolute { WebCause::Over } else { WebCause::Idle };
            self.end_web(key, cause, now, out);
        }
    }

    /// When the next of them ends, or the sockets of one have to be destroyed.
    pub(super) fn next_web_deadline(&self) -> Option<Duration> {
        let ends = self.web.deadlines.first().map(|(at, _)| *at);
        [ends, self.web.gateways.next_look()].into_iter().flatten().min()
    }

    /// The session of this token, if it is alive.
    pub fn web_session_of(&self, digest: &WebDigest, now: Now) -> Option<&WebSession> {
        let key = self.web.digests.get(digest)?;
        // its time may be over, and the tick that says so yet to come
        self.web.sessions.get(key).filter(|session| session.ends_at() > now.mono)
    }

    /// Whether it has not ended.
    pub fn is_web_alive(&self, key: &WebKey) -> bool {
        self.web.sessions.contains_key(key)
    }

    /// Every session that is alive.
    pub fn web_sessions(&self) -> impl Iterator<Item = &WebSession> {
        self.web.sessions.values()
    }

    /// So many of those that are alive, after this key.
    pub fn web_rows_after(&self, after: Option<WebKey>, most: usize, now: Now) -> Vec<WebRow> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = self.web.sessions.range((from, Bound::Unbounded));
        rest.take(most).map(|(_, session)| session.row(now)).collect()
    }

    pub fn web_count(&self) -> usize {
        self.web.sessions.len()
    }

    /// How many have ended in this run: an answer that was given before the next of them is this old.
    pub fn web_ends(&self) -> u64 {
        self.web.ends
    }
}

fn drop_from<K: Ord>(index: &mut BTreeMap<K, BTreeSet<WebKey>>, under: &K, key: WebKey) {
    if let Some(keys) = index.get_mut(under) {
        keys.remove(&key);
        if keys.is_empty() {
            index.remove(under);
        }
    }
}

impl Web {
    /// Whether one more who asks may wait for the disk.
    fn may_wait(&self) -> bool {
        self.asking < MAX_ASKING
    }

    /// That token had been another session's, of whose end the disk took no note: it has to before it hears of this one.
    fn make_way(&mut self, digest: &WebDigest) {
        let before = self.gone_by.get(digest).or_else(|| self.over_by.get(digest)).copied();
        if let Some(before) = before.filter(|key| self.keeping.is_unsaved(key)) {
            self.keeping.ended(before);
        }
    }

    fn insert(&mut self, session: WebSession) {
        self.weight += session.weight();
        self.realms.insert(session.identity.realm.clone());
        self.people.entry(session.identity.clone()).or_default().insert(session.key);
        self.names.entry(Name::of(&session.user)).or_default().insert(session.key);
        self.digests.extend(session.tokens.keys().map(|digest| (*digest, session.key)));
        self.deadlines.insert((session.ends_at(), session.key));
        self.sessions.insert(session.key, session);
    }

    fn remove(&mut self, key: WebKey) -> Option<WebSession> {
        let session = self.sessions.remove(&key)?;
        self.weight -= session.weight();
        for digest in session.tokens.keys() {
            self.digests.remove(digest);
        }
        self.deadlines.remove(&(session.ends_at(), key));
        drop_from(&mut self.people, &session.identity, key);
        drop_from(&mut self.names, &Name::of(&session.user), key);
        Some(session)
    }

    /// The first name after this one; `None`: of all.
    pub(super) fn name_after(&self, name: Option<&Name>) -> Option<&Name> {
        let after = name.map_or(Bound::Unbounded, Bound::Excluded);
        self.names.range((after, Bound::Unbounded)).next().map(|(name, _)| name)
    }

    /// Those that are alive of users of that name.
    pub(super) fn called(&self, name: &Name) -> impl Iterator<Item = &WebSession> {
        self.names.get(name).into_iter().flatten().filter_map(|key| self.sessions.get(key))
    }

    pub(super) fn has_sessions(&self, who: &Identity) -> bool {
        self.people.contains_key(who)
    }

    fn seen(&mut self, key: WebKey, at: Duration) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        let idle_at = at + session.idle;
        if idle_at <= session.idle_at {
            return;
        }
        self.deadlines.remove(&(session.ends_at(), key));
        session.idle_at = idle_at;
        self.deadlines.insert((session.ends_at(), key));
        // lazily: a daemon that dies makes a session seem idle for so much longer
        let lag = (session.idle / 8).min(Duration::from_secs(60));
        if idle_at >= session.written_idle_at + lag {
            session.written_idle_at = idle_at;
            self.keeping.used(key);
        }
    }
}

#[cfg(test)]
impl Registry {
    /// The indexes say what the sessions say.
    pub(super) fn check_web(&self) {
        let web = &self.web;
        for (key, session) in &web.sessions {
            assert_eq!(*key, session.key);
            assert!(!session.tokens.is_empty(), "{key} has no token");
            assert!(session.tokens.keys().all(|digest| web.digests.get(digest) == Some(key)), "{key}");
            assert!(web.people[&session.identity].contains(key), "{key}");
            assert!(web.names[&Name::of(&session.user)].contains(key), "{key}");
            assert!(web.deadlines.contains(&(session.ends_at(), *key)), "{key}");
            assert!(!web.gone.contains_key(key), "{key} is alive and over");
        }
        let tokens: usize = web.sessions.values().map(|session| session.tokens.len()).sum();
        assert_eq!(tokens, web.digests.len());
        assert_eq!(web.sessions.values().map(WebSession::weight).sum::<usize>(), web.weight);
        assert_eq!(web.people.values().map(BTreeSet::len).sum::<usize>(), web.sessions.len());
        assert_eq!(web.names.values().map(BTreeSet::len).sum::<usize>(), web.sessions.len());
        assert_eq!(web.deadlines.len(), web.sessions.len());
        self.check_web_ends();
    }
}
