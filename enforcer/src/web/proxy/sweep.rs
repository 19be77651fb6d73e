//! What nobody waits for by a timer of his own: looked at every now and then, for all connections together.

use std::time::Duration;

use super::register::{Connection, Protocol, Register};
use super::settings::Times;

/// How long a connection that is closing for a session's end may take over what is still on its way.
const CLOSING: Duration = Duration::from_secs(5);

/// Goes through all connections once.
pub(super) fn sweep(register: &Register, times: &Times, now: u64) {
    for connection in register.connections() {
        look(&connection, times, now);
    }
}

fn look(connection: &Connection, times: &Times, now: u64) {
    let over = |passed: Option<u64>, time: Duration| {
        passed.is_some_and(|passed| u128::from(passed) > time.as_millis())
    };
    let blocked = connection.wire().blocked_for(now);
    if over(Some(blocked), times.write) {
        connection.abort();
    } else if blocked == 0 && over(connection.head_for(now), times.head) {
        match connection.protocol() {
            Protocol::Http1 => connection.too_slow(),
            Protocol::Http2 => connection.abort(),
        }
    } else if connection.head_for(now).is_none() && over(connection.idle_for(now), times.keep_alive) {
        connection.close();
    }
    let closing = if connection.must_close() {
        Some(CLOSING)
    } else {
        // it is closed to save room, and somebody does not take what was ready for him; a drain has its own bound
        (!connection.is_busy()).then_some(times.write)
    };
    if closing.is_some_and(|time| over(connection.closing_for(now), time)) {
        connection.abort();
    }
}

/// How often: often enough for the shortest of the times.
pub(super) fn interval(times: &Times) -> Duration {
    let shortest = times.head.min(times.keep_alive).min(times.write).min(times.idle_upstream);
    (shortest / 4).clamp(Duration::from_millis(20), Duration::from_secs(1))
}
