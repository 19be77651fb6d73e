//! Several gateways: what is decided on one is in force on all, and a person is where she came last.
//!
//! `ENFORCER_TEST_MOVES` says how often a person moves (default 12), `ENFORCER_TEST_KILLS` how often a daemon is killed
//! (default 6), `ENFORCER_TEST_SEED` with what randomness.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

mod administrator;
mod away;
mod clocks;
mod crash;
mod cut;
mod everywhere;
mod locks;
mod measured;
mod moves;
mod places;
mod web;
mod wires;

/// A number of the environment's.
fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |value| value.parse().expect("a number"))
}
