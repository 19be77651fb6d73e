//! The clock of every record in the lab: `CLOCK_REALTIME`, because the kernel stamps packets with it.
//!
//! Packet times are taken by the kernel, not by the thread that reads the packet: on a busy machine a reader may
//! be late by many milliseconds, and a packet that came before an answer would seem to come after it.

use std::fmt;
use std::ops::Sub;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A point in time, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Moment(pub u64);

impl Moment {
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is before 1970");
        Self(u64::try_from(since.as_nanos()).expect("the clock is after 2500"))
    }

    pub fn after(self, span: Duration) -> Self {
        Self(self.0 + u64::try_from(span.as_nanos()).expect("a short span"))
    }

    /// Milliseconds since `start`; negative if before it.
    pub fn millis_since(self, start: Moment) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "milliseconds for people")]
        let since = i128::from(self.0).wrapping_sub(i128::from(start.0)) as f64;
        since / 1e6
    }
}

impl Sub for Moment {
    type Output = Duration;

    /// Zero if `earlier` is later.
    fn sub(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.0 / 1_000_000_000, self.0 / 1000 % 1_000_000)
    }
}
