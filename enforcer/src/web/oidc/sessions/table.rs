//! Which session here belongs to whom at the provider, and which ends were told of lately. Pure: the time comes in.

use std::collections::{BTreeSet, HashMap, VecDeque};

use crate::session::WebKey;

use super::super::logout_token::{LogoutToken, MAX_AGE};
use super::super::token::LEEWAY;
use super::{Bounds, By, Digest, LoggedOut, Refused};

/// For how long a logout token is remembered after it came (seconds): by then it is too old to be taken again.
pub(super) const REMEMBERED: u64 = MAX_AGE + 2 * LEEWAY;

/// Whose a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub sub: Digest,
    pub sid: Option<Digest>,
    /// Unix seconds: it has ended by then, in any case.
    pub until: u64,
    /// When its ID token was issued: unix seconds, by the provider's clock; 0 where nobody knows.
    pub issued: u64,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    bounds: Bounds,
    sessions: HashMap<WebKey, Entry>,
    /// By `sub` and by `sid`: their digests differ.
    whose: HashMap<Digest, BTreeSet<WebKey>>,
    /// Logout tokens by their names.
    seen: BTreeSet<Digest>,
    /// Whose end was told of: up to when tokens are too old for it, and for how long it is remembered.
    ended: HashMap<Whom, Ended>,
    /// In the order in which they came.
    order: VecDeque<Told>,
}

/// Whom an end is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Whom {
    /// A session of the provider's, or all of a person.
    All(Digest),
    /// Those of a person of whom it is not known to which session of the provider's they belong.
    Unnamed(Digest),
}

impl Entry {
    /// The ends that would be its own.
    fn ends(&self) -> [Whom; 2] {
        [Whom::All(self.sub), self.sid.map_or(Whom::Unnamed(self.sub), Whom::All)]
    }
}

#[derive(Debug, Clone, Copy)]
struct Ended {
    issued: u64,
    until: u64,
}

/// A logout token that came.
#[derive(Debug)]
struct Told {
    until: u64,
    jti: Digest,
    about: Vec<Whom>,
}

impl Table {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// Takes a session in that somebody has got just now.
    ///
    /// # Errors
    /// [`Refused::Ended`]: an end was told of that is not older than its token. [`Refused::Full`].
    pub(super) fn add(&mut self, key: WebKey, entry: Entry, now: u64) -> Result<(), Refused> {
        self.forget_old(now);
        let is_over = |whom| self.ended.get(&whom).is_some_and(|ended| ended.issued >= entry.issued);
        if entry.ends().into_iter().any(is_over) {
            return Err(Refused::Ended);
        }
        if self.sessions.len() >= self.bounds.sessions {
            self.drop_over(now);
        }
        if self.sessions.len() >= self.bounds.sessions {
            return Err(Refused::Full);
        }
        self.insert(key, entry);
        Ok(())
    }

    /// Without questions: what was taken in before.
    pub(super) fn insert(&mut self, key: WebKey, entry: Entry) {
        self.forget(&key);
        self.sessions.insert(key, entry);
        for who in std::iter::once(entry.sub).chain(entry.sid) {
            self.whose.entry(who).or_default().insert(key);
        }
    }

    /// False: it was not known.
    pub(super) fn forget(&mut self, key: &WebKey) -> bool {
        let Some(entry) = self.sessions.remove(key) else { return false };
        for who in std::iter::once(entry.sub).chain(entry.sid) {
            if let Some(keys) = self.whose.get_mut(&who) {
                keys.remove(key);
                if keys.is_empty() {
                    self.whose.remove(&who);
                }
            }
        }
        true
    }

    /// Those that have ended by themselves.
    pub(super) fn drop_over(&mut self, now: u64) {
        let over = self.sessions.iter().filter(|(_, entry)| entry.until <= now);
        let over: Vec<WebKey> = over.map(|(key, _)| *key).collect();
        for key in over {
            self.forget(&key);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.sessions.len()
    }

    pub(super) fn has(&self, key: &WebKey) -> bool {
        self.sessions.contains_key(key)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&WebKey, &Entry)> {
        self.sessions.iter()
    }

    /// Which sessions an end is about: those of the provider's session where it is named, otherwise all of that person.
    ///
    /// Where both are named, also those of that person of whom it is not known in which session of the provider's they
    /// were begun: one of them may be meant. Where only the person is named, an end that comes late is not one of who has
    /// logged in since then: of whose token is newer, by more than clocks may differ.
    ///
    /// # Errors
    /// [`Refused::Seen`], [`Refused::TooMany`]
    pub(super) fn logout(
        &mut self,
        issuer: &str,
        token: &LogoutToken,
        now: u64,
    ) -> Result<LoggedOut, Refused> {
        self.forget_old(now);
        let jti = Digest::of("jti", issuer, &token.jti);
        if self.seen.contains(&jti) {
            return Err(Refused::Seen);
        }
        // also those that have come again count
        if self.order.len() >= self.bounds.logouts {
            return Err(Refused::TooMany);
        }
        let sub = token.sub.as_ref().map(|sub| Digest::of("sub", issuer, sub));
        let sid = token.sid.as_ref().map(|sid| Digest::of("sid", issuer, sid));
        let (by, about) = match (sid, sub) {
            (Some(sid), Some(sub)) => (By::Sid, vec![Whom::All(sid), Whom::Unnamed(sub)]),
            (Some(sid), None) => (By::Sid, vec![Whom::All(sid)]),
            (None, Some(sub)) => (By::Sub, vec![Whom::All(sub)]),
            (None, None) => return Err(Refused::Nobody),
        };
        let is_meant = |entry: &Entry| {
            let is_named = sid.is_some() && entry.sid == sid;
            // a session of that name which is somebody else's is not meant
            let is_theirs = sub.is_none_or(|sub| entry.sub == sub);
            let is_older = entry.issued <= token.issued.saturating_add(LEEWAY);
            is_theirs && (is_named || (is_older && (sid.is_none() || entry.sid.is_none())))
        };
        let all = sid.into_iter().chain(sub).filter_map(|who| self.whose.get(&who)).flatten();
        let meant = all.filter(|key| self.sessions.get(*key).is_some_and(is_meant));
        let sessions: BTreeSet<WebKey> = meant.copied().collect();
        let until = now.saturating_add(REMEMBERED);
        self.seen.insert(jti);
        for whom in &about {
            let ended = self.ended.entry(*whom).or_insert(Ended { issued: 0, until });
            *ended = Ended { issued: ended.issued.max(token.issued), until: ended.until.max(until) };
        }
        self.order.push_back(Told { until, jti, about });
        Ok(LoggedOut { by, sessions: sessions.into_iter().collect(), jti })
    }

    /// The same logout token may come once more.
    pub(super) fn again(&mut self, jti: &Digest) {
        self.seen.remove(jti);
    }

    fn forget_old(&mut self, now: u64) {
        while let Some(Told { jti, about, .. }) = self.order.pop_front_if(|told| told.until <= now) {
            self.seen.remove(&jti);
            for whom in about {
                if self.ended.get(&whom).is_some_and(|ended| ended.until <= now) {
                    self.ended.remove(&whom);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ISSUER: &str = "https://id.example";
    const NOW: u64 = 1_800_000_000;

    fn key(byte: u8) -> WebKey {
        WebKey::from_bytes([byte; 16])
    }

    fn entry(sub: &str, sid: &str) -> Entry {
        let sid = (!sid.is_empty()).then(|| Digest::of("sid", ISSUER, sid));
        Entry { sub: Digest::of("sub", ISSUER, sub), sid, until: NOW + 3600, issued: NOW }
    }

    fn issued(sub: &str, sid: &str, issued: u64) -> Entry {
        Entry { issued, ..entry(sub, sid) }
    }

    fn token(sub: &str, sid: &str, jti: u32) -> LogoutToken {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        LogoutToken { sub: some(sub), sid: some(sid), jti: jti.to_string(), issued: NOW }
    }

    /// Alice with two sessions of one session at the provider and one of another, Bob with one.
    fn table() -> Table {
        let mut table = Table::new(Bounds { sessions: 5, logouts: 3 });
        for (byte, sub, sid) in [(1, "alice", "a"), (2, "alice", "a"), (3, "alice", "b"), (4, "bob", "c")] {
            table.add(key(byte), issued(sub, sid, NOW - 100), NOW - 100).unwrap();
        }
        table
    }

    #[track_caller]
    fn ends(token: &LogoutToken, by: By, bytes: &[u8]) {
        let out = table().logout(ISSUER, token, NOW).unwrap();
        let keys: Vec<WebKey> = bytes.iter().map(|byte| key(*byte)).collect();
        assert_eq!((out.by, out.sessions), (by, keys));
    }

    /// R3: by the session that is named, by the person where none is, and nobody else's.
    #[test]
    fn r3_an_end_is_of_those_whom_it_names() {
        ends(&token("", "a", 1), By::Sid, &[1, 2]);
        ends(&token("alice", "a", 1), By::Sid, &[1, 2]);
        ends(&token("alice", "", 1), By::Sub, &[1, 2, 3]);
        ends(&token("bob", "", 1), By::Sub, &[4]);
        ends(&token("bob", "a", 1), By::Sid, &[]);
        ends(&token("carol", "", 1), By::Sub, &[]);
        // a sub is no sid
        ends(&token("", "alice", 1), By::Sid, &[]);
        ends(&token("a", "", 1), By::Sub, &[]);
        let out = table().logout("https://other.example", &token("alice", "", 1), NOW).unwrap();
        assert!(out.sessions.is_empty(), "of another provider");
    }

    /// R2: a provider that names its session in logout tokens and not in ID tokens; and nobody who is known to be of
    /// another session of it, or another person.
    #[test]
    fn r2_r3_a_session_of_which_the_provider_has_told_no_name_ends_with_any_of_that_person() {
        let mut table = table();
        table.add(key(5), entry("alice", ""), NOW).unwrap();
        for (sub, sid, wanted) in
            [("alice", "x", vec![key(5)]), ("alice", "a", vec![key(1), key(2), key(5)]), ("bob", "x", vec![])]
        {
            let out = table.logout(ISSUER, &token(sub, sid, 1), NOW).unwrap();
            assert_eq!((out.by, &out.sessions), (By::Sid, &wanted), "{sub} {sid}");
            table.again(&out.jti);
            table.order.clear();
        }
        // also where it overtakes the login
        table.forget(&key(5));
        assert_eq!(table.add(key(5), entry("alice", ""), NOW + 1), Err(Refused::Ended));
        table.add(key(6), entry("alice", "y"), NOW + 1).unwrap();
        table.forget(&key(6));
        table.add(key(6), issued("alice", "", NOW + 1), NOW + 1).unwrap();
    }

    /// R2, R4: a logout token that comes late, or once more after a restart, is not of who has logged in since then; but a
    /// provider's clocks may differ.
    #[test]
    fn r2_r4_a_late_end_of_a_person_is_not_of_a_later_login() {
        let mut table = table();
        table.add(key(5), issued("alice", "b", NOW + LEEWAY), NOW).unwrap();
        table.forget(&key(1));
        table.add(key(1), issued("alice", "d", NOW + LEEWAY + 1), NOW).unwrap();
        let out = table.logout(ISSUER, &token("alice", "", 1), NOW + 300).unwrap();
        assert_eq!(out.sessions, [key(2), key(3), key(5)]);
        // of a session that is named there is no other one
        let out = table.logout(ISSUER, &token("alice", "d", 2), NOW + 300).unwrap();
        assert_eq!(out.sessions, [key(1)]);
    }

    #[test]
    fn what_was_forgotten_is_not_ended() {
        let mut table = table();
        assert!(table.forget(&key(1)) && !table.forget(&key(1)));
        assert_eq!(table.logout(ISSUER, &token("", "a", 1), NOW).unwrap().sessions, [key(2)]);
        assert!(table.forget(&key(2)));
        assert!(!table.whose.contains_key(&Digest::of("sid", ISSUER, "a")), "nothing is left of it");
    }

    #[test]
    fn a_logout_token_counts_once() {
        let mut table = table();
        let out = table.logout(ISSUER, &token("alice", "", 1), NOW).unwrap();
        assert_eq!(table.logout(ISSUER, &token("alice", "", 1), NOW + 1), Err(Refused::Seen));
        // it could not be done: the provider may say it again, but not for ever at once
        for _ in 0..2 {
            table.again(&out.jti);
            assert_eq!(table.logout(ISSUER, &token("alice", "", 1), NOW + 2).unwrap().sessions.len(), 3);
        }
        table.again(&out.jti);
        assert_eq!(table.logout(ISSUER, &token("alice", "", 1), NOW + 3), Err(Refused::TooMany), "R7");
    }

    /// R2, R4: an end that overtakes the login that it is about; and a later login is let in.
    #[test]
    fn r2_an_end_that_comes_before_the_session_is_taken_in_counts() {
        for (sub, sid) in [("", "n"), ("dora", "n"), ("dora", "")] {
            let mut table = table();
            table.logout(ISSUER, &token(sub, sid, 1), NOW).unwrap();
            assert_eq!(table.add(key(9), entry("dora", "n"), NOW + 1), Err(Refused::Ended), "{sub} {sid}");
            assert_eq!(table.add(key(9), issued("dora", "n", NOW - 5), NOW + 1), Err(Refused::Ended));
            assert_eq!(table.add(key(9), issued("dora", "n", NOW + 1), NOW + 1), Ok(()), "R4");
        }
        let mut table = table();
        table.logout(ISSUER, &token("dora", "n", 1), NOW).unwrap();
        table.add(key(9), entry("dora", "m"), NOW).unwrap();
        table.logout(ISSUER, &token("dora", "", 2), NOW).unwrap();
        assert_eq!(table.add(key(8), entry("eve", "o"), NOW), Err(Refused::Full), "not of her: R3");
    }

    #[test]
    fn r7_at_a_bound_it_is_refused_and_time_makes_room() {
        let mut table = table();
        table.add(key(5), entry("eve", ""), NOW).unwrap();
        assert_eq!(table.add(key(6), entry("eve", ""), NOW), Err(Refused::Full));
        assert_eq!(table.len(), 5);
        assert_eq!(table.add(key(6), entry("eve", ""), NOW + 3600), Ok(()), "the others are over");
        assert_eq!(table.len(), 1);
        for jti in 1..=3 {
            table.logout(ISSUER, &token("alice", "", jti), NOW).unwrap();
        }
        assert_eq!(table.logout(ISSUER, &token("eve", "", 4), NOW), Err(Refused::TooMany));
        assert_eq!(table.logout(ISSUER, &token("eve", "", 4), NOW + REMEMBERED - 1), Err(Refused::TooMany));
        table.logout(ISSUER, &token("eve", "", 4), NOW + REMEMBERED).unwrap();
        assert_eq!((table.seen.len(), table.ended.len(), table.order.len()), (1, 1, 1));
    }
}
