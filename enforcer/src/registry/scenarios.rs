//! Every race that was seen on a real ocserv, as a story of events. The names say the promise.

pub(crate) mod disk;
mod durable;
mod ending;
mod harness;
mod lifetimes;
mod locks;
mod staying;
mod strangers;
mod users;
mod web;
mod web_random;
