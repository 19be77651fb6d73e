//! The durable state, with real files. Where a disk has to be full or read-only, a thread gets a mount namespace of
//! its own: nothing of it is seen outside, and nothing is left behind.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

mod audit;
mod basics;
mod damage;
mod disks;
mod killed;
mod names;
mod reading;
mod refusals;
mod replicated;
mod upgrade;
mod web;
mod world;
