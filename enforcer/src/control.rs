//! The control API, both ends: gRPC on unix sockets (`proto/enforcer.proto`).
//!
//! This adapter checks who is at the socket and carries records; what they mean is the daemon's business.

mod client;
mod incoming;
mod serve;
pub mod target;
mod web;
pub mod web_words;

/// The records and services of `proto/enforcer.proto`.
#[allow(clippy::all, reason = "generated")]
pub mod api {
    tonic::include_proto!("enforcer.v1");
}

pub use client::{ControlClient, GateClient, WebClient, connect_control, connect_gate, connect_web};
pub use incoming::{Caller, bind, bind_for};
pub use serve::{
    AllSessionsFrom, Call, MAX_BATCH, MAX_ERRORS, Page, Reply, Request, SessionsFrom, UsersFrom,
    serve_control, serve_gate,
};
pub use web::{News, WEB_QUEUE, WebReply, WebRequest, serve_web};
