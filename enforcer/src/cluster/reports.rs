//! How much of what is malformed is told: enough to be seen, too little to flood a log.

use std::time::{Duration, Instant};

/// So many are told at once; then one more each second.
pub const AT_ONCE: u32 = 64;
const EVERY: Duration = Duration::from_secs(1);

/// Counts what was told and what was not.
#[derive(Debug)]
pub(super) struct Reports {
    left: u32,
    since: Instant,
    untold: u64,
}

impl Reports {
    pub fn new(now: Instant) -> Self {
        Self { left: AT_ONCE, since: now, untold: 0 }
    }

    /// Whether one more may be told; otherwise it is counted.
    pub fn may(&mut self, now: Instant) -> bool {
        self.refill(now);
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                true
            }
            None => {
                self.untold = self.untold.saturating_add(1);
                false
            }
        }
    }

    /// How many were not told, where it is time to say so.
    pub fn untold(&mut self, now: Instant) -> Option<u64> {
        self.refill(now);
        (self.untold > 0 && self.left > 0).then(|| {
            self.left -= 1;
            std::mem::take(&mut self.untold)
        })
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since).as_secs() / EVERY.as_secs();
        if passed > 0 {
            self.left = self.left.saturating_add(u32::try_from(passed).unwrap_or(AT_ONCE)).min(AT_ONCE);
            self.since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r7_a_flood_is_told_in_part_and_the_rest_is_counted() {
        let start = Instant::now();
        let mut reports = Reports::new(start);
        let told = (0..1_000).filter(|_| reports.may(start)).count();
        assert_eq!(told, 64);
        assert_eq!(reports.untold(start), None, "it would be one line more");
        assert_eq!(reports.untold(start + EVERY), Some(936));
        assert!(!reports.may(start + EVERY));
        assert!(reports.may(start + 2 * EVERY) && !reports.may(start + 2 * EVERY));
        let later = start + Duration::from_secs(10_000);
        assert_eq!((0..1_000).filter(|_| reports.may(later)).count(), 64);
    }
}
