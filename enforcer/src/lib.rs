//! The session enforcer: one revocation ends a session in every layer at once.
//!
//! `session` <- `registry` and the adapters (`dataplane`, `sockets`, `ocserv`, `control`) <- `daemon` <- `main`.
//! The adapters know neither each other nor the registry.

pub mod ocserv;
pub mod process;
pub mod session;
pub mod sockets;
