//! Every race that was seen on a real ocserv, as a story of events. The names say the promise.

mod ending;
mod harness;
mod lifetimes;
mod staying;
mod strangers;
