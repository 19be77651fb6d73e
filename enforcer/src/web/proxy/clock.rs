//! Milliseconds since the first question, for what is looked at by the sweep.

use std::sync::OnceLock;
use std::time::Instant;

/// Never 0, so that 0 can mean "not at all".
pub(super) fn now() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let passed = START.get_or_init(Instant::now).elapsed().as_millis();
    u64::try_from(passed).unwrap_or(u64::MAX - 1) + 1
}
