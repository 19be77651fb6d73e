//! The control API, both ends: gRPC on unix sockets (`proto/enforcer.proto`).
//!
//! This adapter checks who is at the socket and carries records; what they mean is the daemon's business.

mod client;
mod incoming;
mod serve;
pub mod target;

/// The records and services of `proto/enforcer.proto`.
#[allow(clippy::all, reason = "generated")]
pub mod api {
    tonic::include_proto!("enforcer.v1");
}

pub use client::{ControlClient, GateClient, connect_control, connect_gate};
pub use incoming::{Caller, bind};
pub use serve::{Call, MAX_BATCH, MAX_ERRORS, Page, Reply, Request, serve_control, serve_gate};
