//! The etcd adapter before a real etcd: one member and three, killed, cut off, restored, replaced, and hostile.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

mod agreeing;
mod away;
mod documented;
mod hostile;
mod measured;
mod orders;
mod security;
mod world;
