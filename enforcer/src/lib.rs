//! The session enforcer: one revocation ends a session in every layer at once.
//!
//! `session` <- `registry` and the adapters (`dataplane`, `sockets`, `conntrack`, `links`, `ocserv`, `control`, `store`, `web`, `cluster`) <- `daemon` <- `main`.
//! The adapters know neither each other nor the registry.

pub mod cli;
pub mod cluster;
pub mod config;
pub mod conntrack;
pub mod control;
pub mod daemon;
pub mod dataplane;
pub mod exit;
pub mod gate;
pub mod links;
mod logging;
mod netlink;
pub mod ocserv;
pub mod process;
pub mod registry;
pub mod session;
pub mod sockets;
pub mod store;
pub mod web;
