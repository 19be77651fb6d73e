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
    ended: HashMap<Digest, Ended>,
    /// In the order in which they came.
    order: VecDeque<(u64, Digest, Digest)>,
}

#[derive(Debug, Clone, Copy)]
struct Ended {
    issued: u64,
    until: u64,
}

impl Table {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// Takes a session in that somebody has got with a token of `issued`.
    ///
    /// # Errors
    /// [`Refused::Ended`]: an end was told of that is not older. [`Refused::Full`].
    pub(super) fn add(&mut self, key: WebKey, entry: Entry, issued: u64, now: u64) -> Result<(), Refused> {
        self.forget_old(now);
        let is_over = |who: &Digest| self.ended.get(who).is_some_and(|ended| ended.issued >= issued);
        if is_over(&entry.sub) || entry.sid.as_ref().is_some_and(is_over) {
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

    pub(super) fn entries(&self) -> impl Iterator<Item = (&WebKey, &Entry)> {
        self.sessions.iter()
    }

    /// Which sessions an end is about: those of the provider's session where it is named, otherwise all of that person.
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
        let (by, who) = match (sid, sub) {
            (Some(sid), _) => (By::Sid, sid),
            (None, Some(sub)) => (By::Sub, sub),
            (None, None) => return Err(Refused::Nobody),
        };
        // a session of that name which is somebody else's is not meant
        let is_theirs = |key: &&WebKey| {
            sub.is_none_or(|sub| self.sessions.get(*key).is_some_and(|entry| entry.sub == sub))
        };
        let sessions = self.whose.get(&who).into_iter().flatten().filter(is_theirs).copied().collect();
        let until = now.saturating_add(REMEMBERED);
        self.seen.insert(jti);
        self.order.push_back((until, jti, who));
        let ended = self.ended.entry(who).or_insert(Ended { issued: 0, until });
        *ended = Ended { issued: ended.issued.max(token.issued), until: ended.until.max(until) };
        Ok(LoggedOut { by, sessions, jti })
    }

    /// The same logout token may come once more.
    pub(super) fn again(&mut self, jti: &Digest) {
        self.seen.remove(jti);
    }

    fn forget_old(&mut self, now: u64) {
        while let Some((_, jti, who)) = self.order.pop_front_if(|(until, ..)| *until <= now) {
            self.seen.remove(&jti);
            if self.ended.get(&who).is_some_and(|ended| ended.until <= now) {
                self.ended.remove(&who);
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
        Entry { sub: Digest::of("sub", ISSUER, sub), sid, until: NOW + 3600 }
    }

    fn token(sub: &str, sid: &str, jti: u32) -> LogoutToken {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        LogoutToken { sub: some(sub), sid: some(sid), jti: jti.to_string(), issued: NOW }
    }

    /// Alice with two sessions of one session at the provider and one of another, Bob with one.
    fn table() -> Table {
        let mut table = Table::new(Bounds { sessions: 5, logouts: 3 });
        for (byte, sub, sid) in [(1, "alice", "a"), (2, "alice", "a"), (3, "alice", "b"), (4, "bob", "c")] {
            table.add(key(byte), entry(sub, sid), NOW - 100, NOW - 100).unwrap();
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
            assert_eq!(
                table.add(key(9), entry("dora", "n"), NOW, NOW + 1),
                Err(Refused::Ended),
                "{sub} {sid}"
            );
            assert_eq!(table.add(key(9), entry("dora", "n"), NOW - 5, NOW + 1), Err(Refused::Ended));
            assert_eq!(table.add(key(9), entry("dora", "n"), NOW + 1, NOW + 1), Ok(()), "R4");
        }
        let mut table = table();
        table.logout(ISSUER, &token("dora", "n", 1), NOW).unwrap();
        table.add(key(9), entry("dora", "m"), NOW, NOW).unwrap();
        table.logout(ISSUER, &token("dora", "", 2), NOW).unwrap();
        assert_eq!(table.add(key(8), entry("eve", "o"), NOW, NOW), Err(Refused::Full), "not of her: R3");
    }

    #[test]
    fn r7_at_a_bound_it_is_refused_and_time_makes_room() {
        let mut table = table();
        table.add(key(5), entry("eve", ""), NOW, NOW).unwrap();
        assert_eq!(table.add(key(6), entry("eve", ""), NOW, NOW), Err(Refused::Full));
        assert_eq!(table.len(), 5);
        assert_eq!(table.add(key(6), entry("eve", ""), NOW, NOW + 3600), Ok(()), "the others are over");
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
