//! The proxy between real clients and real origins, on loopback, at ports that the kernel chooses.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

mod certificates;
mod draining;
mod ending;
mod forwarding;
mod hardening;
mod refusing;
mod smuggling;
mod times;
mod upgrades;
mod world;
