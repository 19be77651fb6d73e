//! The lab: network namespaces with a real ocserv, real openconnect clients, a LAN host and the enforcer.
//!
//! ```text
//! client ns ──┐                            ┌─ tun devices of ocserv
//! client ns ──┼─ router ns ── wan0 [gateway ns] lan0 ── LAN host ns
//! client ns ──┘  (routes, or masquerades)
//! ```
//!
//! Start with [`Lab`]; [`scene`] puts the usual parts together, and [`gateways`] three such gateways with an etcd.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test support: a panic is how a test fails, and the lab cleans up while it unwinds"
)]

pub mod blast;
pub mod client;
pub mod clock;
pub mod enforcer;
pub mod era;
pub mod etcd;
pub mod gateways;
pub mod lab;
pub mod namespace;
pub mod occtl;
pub mod ocserv;
pub mod openvpn;
pub mod portal;
pub mod probe;
pub mod process;
pub mod receipt;
pub mod scene;
pub mod tap;
pub mod timeline;
pub mod traffic;
pub mod tun;
pub mod ways;
pub mod web;
pub mod web_link;
pub mod wire;

pub use client::{Client, Connect, Cookie, Outcome, Tunnel};
pub use clock::Moment;
pub use enforcer::{Answer, Enforcer};
pub use era::Era;
pub use gateways::Gateways;
pub use lab::Lab;
pub use namespace::Namespace;
pub use ocserv::{Ocserv, Server};
pub use process::Process;
pub use tap::Tap;
pub use traffic::Flood;
pub use wire::Wire;
