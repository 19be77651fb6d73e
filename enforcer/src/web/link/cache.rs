//! What is known of sessions, and when it may be used. Pure: the time comes in.
//!
//! The daemon counts ends. An answer says after how many of them it was given, and the stream tells each with its number.
//! An answer that was given before an end that was heard already may be of the session that has ended: it is *old*, and
//! worth nothing. One that was given after all that was heard is fresh: whatever ends that session later is heard later.
//! So no session that has ended can come back into memory, however answers and ends overtake each other.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::session::{WebDigest, WebKey};

use super::Session;
use super::seen::Usage;

/// How old something is that the daemon told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment {
    /// Which run of the daemon.
    pub run: u64,
    /// How many sessions had ended in it.
    pub ends: u64,
}

/// A session by one of its tokens.
#[derive(Debug)]
pub(super) struct Entry {
    pub session: Arc<Session>,
    pub usage: Arc<Usage>,
}

#[derive(Debug, Default)]
struct Known {
    tokens: Vec<WebDigest>,
    usage: Arc<Usage>,
    /// Its end is known, and it was not said yet that all of it is closed here: if that does not come to pass, the next
    /// list asks for it once more.
    over: bool,
}

#[derive(Debug)]
pub(super) struct Cache {
    /// Up to where the stream was heard; `None`: it is broken.
    heard: Option<Moment>,
    /// Since when it is broken, once it was whole.
    broken: Option<Instant>,
    /// Which whole or broken stream this is: an answer that was asked for in another one is old.
    epoch: u64,
    tokens: HashMap<WebDigest, Arc<Entry>>,
    /// Every session that was said here to be alive, until it is over and closed.
    known: HashMap<WebKey, Known>,
    most: usize,
}

pub(super) enum Kept {
    Fresh(Arc<Entry>),
    /// It has to be asked for again.
    Old,
    Full,
}

impl Cache {
    pub fn new(most: usize) -> Self {
        Self { heard: None, broken: None, epoch: 0, tokens: HashMap::new(), known: HashMap::new(), most }
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    pub fn knows(&self, key: &WebKey) -> bool {
        self.known.get(key).is_some_and(|known| !known.over)
    }

    /// From memory, where that may be used.
    pub fn remembered(&self, digest: &WebDigest, grace: Duration, now: Instant) -> Option<&Arc<Entry>> {
        let may = self.heard.is_some()
            || self.broken.is_some_and(|since| now.saturating_duration_since(since) < grace);
        if may { self.tokens.get(digest) } else { None }
    }

    /// An answer that was asked for in `epoch`. Without a stream it is good for this once, and not remembered.
    pub fn keep(&mut self, digest: WebDigest, session: Session, moment: Moment, epoch: u64) -> Kept {
        let is_old = |heard: Moment| moment.run != heard.run || moment.ends < heard.ends;
        if epoch != self.epoch || self.heard.is_some_and(is_old) {
            return Kept::Old;
        }
        if self.known.len() >= self.most && !self.known.contains_key(&session.key) {
            return Kept::Full;
        }
        let known = self.known.entry(session.key).or_default();
        if known.over {
            return Kept::Old;
        }
        let entry = Arc::new(Entry { usage: Arc::clone(&known.usage), session: Arc::new(session) });
        if self.heard.is_some() {
            if !known.tokens.contains(&digest) {
                known.tokens.push(digest);
            }
            self.tokens.insert(digest, Arc::clone(&entry));
        }
        Kept::Fresh(entry)
    }

    /// The stream is whole, and began with this. What is not in it is over, and to be closed: these.
    pub fn listed(&mut self, alive: &HashSet<WebKey>, moment: Moment) -> Vec<WebKey> {
        let gone: Vec<WebKey> = self.known.keys().filter(|key| !alive.contains(key)).copied().collect();
        for key in &gone {
            self.over(key);
        }
        self.heard = Some(moment);
        self.broken = None;
        self.epoch += 1;
        gone
    }

    /// An end was heard. False: one before it was not, and nothing is whole any more.
    #[must_use]
    pub fn ended(&mut self, key: &WebKey, ends: u64) -> bool {
        self.over(key);
        match &mut self.heard {
            Some(heard) if heard.ends.checked_add(1) == Some(ends) => {
                heard.ends = ends;
                true
            }
            _ => false,
        }
    }

    pub fn broke(&mut self, now: Instant) {
        if self.heard.take().is_some() {
            self.broken = Some(now);
        }
        self.epoch += 1;
    }

    /// What the gateway had of these is closed.
    pub fn closed<'k>(&mut self, keys: impl Iterator<Item = &'k WebKey>) {
        for key in keys {
            if self.known.get(key).is_some_and(|known| known.over) {
                self.known.remove(key);
            }
        }
    }

    /// It is over: also said by the daemon before the stream does.
    pub fn over(&mut self, key: &WebKey) {
        let Some(known) = self.known.get_mut(key) else { return };
        known.over = true;
        for digest in std::mem::take(&mut known.tokens) {
            self.tokens.remove(&digest);
        }
    }

    /// The same of the session that this is a token of.
    pub fn over_by(&mut self, digest: &WebDigest) {
        if let Some(key) = self.tokens.get(digest).map(|entry| entry.session.key) {
            self.over(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> WebKey {
        WebKey::from_bytes([byte; 16])
    }

    fn digest(byte: u8) -> WebDigest {
        WebDigest::from_bytes([byte; 32])
    }

    fn session(byte: u8) -> Session {
        Session {
            key: key(byte),
            user: "alice".into(),
            realm: "default".into(),
            name: "alice".into(),
            host: "app.example".into(),
            wrapped: vec![byte],
            since: 0,
            until: 0,
            idle: Duration::ZERO,
        }
    }

    fn at(ends: u64) -> Moment {
        Moment { run: 1, ends }
    }

    struct Test {
        cache: Cache,
        now: Instant,
    }

    impl Test {
        /// A stream that is whole and has told of `ends` ends.
        fn whole(ends: u64) -> Self {
            let mut cache = Cache::new(3);
            assert_eq!(cache.listed(&HashSet::new(), at(ends)), []);
            Self { cache, now: Instant::now() }
        }

        fn keep(&mut self, byte: u8, moment: Moment) -> bool {
            let epoch = self.cache.epoch();
            matches!(self.cache.keep(digest(byte), session(byte), moment, epoch), Kept::Fresh(_))
        }

        fn has(&self, byte: u8) -> bool {
            self.has_with(byte, Duration::ZERO)
        }

        fn has_with(&self, byte: u8, grace: Duration) -> bool {
            self.cache.remembered(&digest(byte), grace, self.now).is_some()
        }
    }

    /// R2: an answer that an end has overtaken brings nothing back, whichever session it was of.
    #[test]
    fn r2_an_answer_that_is_older_than_an_end_is_asked_for_again() {
        let mut test = Test::whole(5);
        assert!(test.keep(1, at(5)) && test.keep(2, at(5)));
        assert!(test.cache.ended(&key(1), 6));
        assert!(!test.has(1) && test.has(2) && !test.cache.knows(&key(1)));
        assert!(!test.keep(1, at(5)), "given before the end was");
        assert!(!test.keep(3, at(5)), "of another: it cannot be told apart");
        assert!(test.keep(3, at(6)) && test.keep(2, at(7)), "also one that is ahead of the stream");
        assert!(!test.keep(2, Moment { run: 2, ends: 9 }), "another daemon counts anew");
    }

    /// R2: without a stream nothing is answered from memory, and an answer is good for once.
    #[test]
    fn r2_a_broken_stream_uses_no_memory_beyond_its_grace() {
        let mut test = Test::whole(0);
        assert!(test.keep(1, at(0)) && test.has(1));
        test.cache.broke(test.now);
        assert!(!test.has(1));
        let grace = Duration::from_secs(5);
        assert!(test.has_with(1, grace));
        test.now += grace;
        assert!(!test.has_with(1, grace));
        assert!(test.keep(2, at(9)) && !test.has_with(2, grace) && test.cache.knows(&key(2)));
        // asked for while it was broken, answered when it is whole again
        let epoch = test.cache.epoch();
        assert_eq!(test.cache.listed(&HashSet::from([key(1), key(2)]), at(9)), []);
        assert!(matches!(test.cache.keep(digest(2), session(2), at(9), epoch), Kept::Old));
        assert!(test.has(1), "it is in the list: what is known of it holds");
        // before the first stream there is no grace
        let cache = Cache::new(3);
        assert!(cache.remembered(&digest(1), grace, test.now).is_none());
    }

    /// R2: who is not in the list has ended meanwhile; who is in it has not.
    #[test]
    fn r2_the_list_ends_what_was_missed() {
        let mut test = Test::whole(0);
        assert!(test.keep(1, at(0)) && test.keep(2, at(0)));
        test.cache.broke(test.now);
        assert_eq!(test.cache.listed(&HashSet::from([key(2), key(7)]), Moment { run: 2, ends: 0 }), [key(1)]);
        assert!(!test.has(1) && test.has(2));
    }

    #[test]
    fn an_end_that_was_lost_on_the_way_is_noticed() {
        let mut test = Test::whole(5);
        assert!(test.keep(1, at(5)));
        assert!(!test.cache.ended(&key(2), 7));
        assert!(!test.cache.ended(&key(1), 5));
        assert!(!test.cache.knows(&key(1)));
    }

    #[test]
    fn r7_what_is_known_is_bounded() {
        let mut test = Test::whole(0);
        assert!(test.keep(1, at(0)) && test.keep(2, at(0)) && test.keep(3, at(0)));
        assert!(!test.keep(4, at(0)) && test.keep(3, at(0)) && test.has(1));
        assert!(test.cache.ended(&key(1), 1));
        assert!(!test.keep(4, at(1)), "it may not be closed yet");
        test.cache.closed([key(1), key(2)].iter());
        assert!(test.keep(4, at(1)) && !test.has(1) && test.has(2));
        assert_eq!((test.cache.tokens.len(), test.cache.known.len()), (3, 3));
    }

    /// R2: a logout of the gateway's own is in force at once; what ends its connections hears of it from the stream, or
    /// from the next list if that breaks before.
    #[test]
    fn r2_what_the_gateway_has_ended_itself_is_over_at_once_and_is_still_ended_here() {
        let mut test = Test::whole(0);
        assert!(test.keep(1, at(0)) && test.keep(2, at(0)));
        test.cache.over_by(&digest(1));
        assert!(!test.has(1) && !test.cache.knows(&key(1)) && test.has(2) && test.cache.knows(&key(2)));
        assert!(!test.keep(1, at(0)), "an answer of before it");
        test.cache.broke(test.now);
        assert_eq!(test.cache.listed(&HashSet::from([key(2)]), at(1)), [key(1)]);
        // and if it could not be closed, by the one after that
        test.cache.broke(test.now);
        assert_eq!(test.cache.listed(&HashSet::from([key(2)]), at(1)), [key(1)]);
        test.cache.closed([key(1)].iter());
        test.cache.broke(test.now);
        assert_eq!(test.cache.listed(&HashSet::from([key(2)]), at(1)), []);
    }
}
