//! What a session has sealed in the last minute.
//!
//! A browser asks for several things at once. One answer sets a new cookie in the place of a stale one; another request,
//! under way with the stale one, would have its answer delete the new one. So a name that was sealed just now is not
//! deleted: it was written over.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::web::seal::Group;

/// Kept with the session, for all of its requests.
#[derive(Debug, Default)]
pub struct Recent(Mutex<VecDeque<(Instant, Group, Vec<u8>)>>);

impl Recent {
    /// How long a name counts as just now: longer than requests in flight at once differ.
    pub const WINDOW: Duration = Duration::from_secs(60);
    /// Of more names than these the oldest are forgotten, and may be deleted a moment too late.
    const MOST: usize = 32;
    /// A longer name is not remembered.
    const LONGEST: usize = 256;

    pub(super) fn sealed(&self, group: &Group, name: &[u8], now: Instant) {
        if name.len() > Self::LONGEST {
            return;
        }
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = names.iter().position(|(_, its, other)| (its, other.as_slice()) == (group, name));
        let entry = match known.and_then(|at| names.remove(at)) {
            Some((_, group, name)) => (now, group, name),
            None => (now, group.clone(), name.to_vec()),
        };
        if names.len() >= Self::MOST {
            names.pop_front();
        }
        names.push_back(entry);
    }

    pub(super) fn was_sealed(&self, group: &Group, name: &[u8], now: Instant) -> bool {
        let names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        names.iter().any(|(at, its, other)| {
            (its, other.as_slice()) == (group, name) && now.saturating_duration_since(*at) < Self::WINDOW
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_counts_for_a_minute_and_no_more_than_so_many_do() {
        let (recent, start) = (Recent::default(), Instant::now());
        let group = Group::new("g").unwrap();
        recent.sealed(&group, b"sid", start);
        assert!(recent.was_sealed(&group, b"sid", start + Duration::from_secs(59)));
        assert!(!recent.was_sealed(&group, b"sid", start + Recent::WINDOW));
        assert!(!recent.was_sealed(&group, b"other", start));
        assert!(!recent.was_sealed(&Group::new("other").unwrap(), b"sid", start));
        for number in 0..Recent::MOST {
            recent.sealed(&group, format!("n{number}").as_bytes(), start);
        }
        assert!(!recent.was_sealed(&group, b"sid", start));
        assert!(recent.was_sealed(&group, b"n0", start));
        recent.sealed(&group, &[b'x'; 257], start);
        assert!(!recent.was_sealed(&group, &[b'x'; 257], start));
        assert_eq!(recent.0.lock().unwrap().len(), Recent::MOST);
    }
}
