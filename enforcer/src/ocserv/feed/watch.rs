//! What is known of the feed on one connection, and when to look next.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::ocserv::messages::{Event, Listing};
use crate::session::SafeId;

/// The next look while something is open: a session no event told of, an admission, a feed that is not proven.
pub(super) const SOON: Duration = Duration::from_secs(1);
/// ... and otherwise.
const LATER: Duration = Duration::from_secs(10);
/// A look may take a fiftieth of ocserv's time at most.
const SHARE: u32 = 50;

pub(super) type Known = HashMap<i32, Option<SafeId>>;

/// Pure: the clock is an argument.
pub(super) struct Watch {
    pub(super) known: Known,
    /// Sessions that a list showed and no event told of, since when.
    pub(super) unknown: HashMap<i32, Instant>,
    /// Sessions that are not let in yet.
    pub(super) in_admission: bool,
    /// The first list is what events go on from.
    pub(super) listed: bool,
    /// An event came: the feed is ours.
    pub(super) proven: bool,
    /// Somebody else has it.
    pub(super) lost: bool,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self {
            known: Known::new(),
            unknown: HashMap::new(),
            in_admission: false,
            listed: false,
            proven: false,
            lost: false,
        }
    }

    pub(super) fn event(&mut self, event: &Event) {
        self.proven = true;
        self.lost = false;
        match event {
            Event::Connected { observed } => {
                self.known.insert(observed.id, observed.safe_id);
                self.unknown.remove(&observed.id);
                self.in_admission = true;
            }
            Event::Disconnected { observed, .. } => {
                self.known.remove(&observed.id);
                self.unknown.remove(&observed.id);
            }
            Event::Other => {}
        }
    }

    /// Whether the list says something that was not told.
    pub(super) fn list(&mut self, listing: &Listing, now: Instant) -> bool {
        let listed: Known = listing.sessions.iter().map(|session| (session.id, session.safe_id)).collect();
        let news = !self.listed || listed != self.known;
        if self.listed {
            for (id, safe_id) in &listed {
                if self.known.get(id) != Some(safe_id) {
                    self.unknown.entry(*id).or_insert(now);
                }
            }
        }
        self.unknown.retain(|id, _| listed.contains_key(id));
        if self.unknown.values().any(|since| now.duration_since(*since) >= SOON) {
            self.lost = true;
            self.proven = false;
            self.unknown.clear();
        }
        self.in_admission = !listing.in_admission.is_empty();
        self.known = listed;
        self.listed = true;
        news
    }

    /// When to list next.
    pub(super) fn pause(&self, poll_every: Duration, took: Duration) -> Duration {
        let pause = if self.lost {
            poll_every
        } else if !self.proven || self.in_admission || !self.unknown.is_empty() {
            SOON
        } else {
            LATER
        };
        pause.max(took * SHARE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Observed;

    fn session(id: i32, byte: u8) -> Observed {
        Observed {
            id,
            user: "alice".into(),
            safe_id: Some(SafeId::from_bytes([byte; 20])),
            ..Default::default()
        }
    }

    fn listing(sessions: &[Observed]) -> Listing {
        Listing { sessions: sessions.to_vec(), ..Default::default() }
    }

    #[test]
    fn a_session_that_no_event_told_of_shows_that_somebody_else_has_the_feed() {
        let start = Instant::now();
        let every = Duration::from_millis(200);
        let mut watch = Watch::new();
        assert!(watch.list(&listing(&[session(1, 1)]), start));
        assert_eq!(watch.pause(every, Duration::ZERO), SOON);
        assert!(!watch.list(&listing(&[session(1, 1)]), start + SOON));
        assert!(!watch.lost);
        // one more, whose event may still be on its way
        let two = listing(&[session(1, 1), session(2, 2)]);
        assert!(watch.list(&two, start + SOON * 2));
        assert!(!watch.lost);
        watch.list(&two, start + SOON * 3);
        assert!(watch.lost);
        assert_eq!(watch.pause(every, Duration::ZERO), every);
        // an event: it is ours again
        watch.event(&Event::Disconnected { observed: session(2, 2), reason: 2, reason_text: String::new() });
        assert!(!watch.lost);
        assert_eq!(watch.pause(every, Duration::ZERO), LATER);
    }

    #[test]
    fn a_session_that_was_told_of_is_no_news_and_one_that_was_refused_is() {
        let start = Instant::now();
        let mut watch = Watch::new();
        watch.list(&listing(&[]), start);
        watch.event(&Event::Connected { observed: session(1, 1) });
        assert_eq!(watch.pause(SOON, Duration::ZERO), SOON, "it is in admission");
        assert!(!watch.list(&listing(&[session(1, 1)]), start + SOON));
        assert_eq!(watch.pause(SOON, Duration::ZERO), LATER);
        // it was refused: no event tells
        assert!(watch.list(&listing(&[]), start + LATER));
        assert!(!watch.lost);
    }

    #[test]
    fn a_slow_ocserv_is_asked_less_often() {
        let watch = Watch::new();
        assert_eq!(watch.pause(SOON, Duration::from_millis(100)), Duration::from_secs(5));
    }
}
