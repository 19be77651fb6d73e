//! ocserv, from outside: its occtl socket, the feed of its sessions, its configured scripts.
//!
//! Nothing here is ocserv's own interface library: there is none. The frame, the numbers and the messages are
//! those that 1.1.6, 1.3.0 and 1.5.0 were seen to speak (the source is named where only it can be cited).

mod client;
mod feed;
mod frame;
mod messages;
mod name;
mod scripts;

/// The messages of `proto/ocserv.proto`.
mod wire {
    #![allow(clippy::all)]
    include!(concat!(env!("OUT_DIR"), "/ocserv.rs"));
}

pub use client::{Capabilities, Client, ClientError, Server, Status, worker_of};
pub use feed::{FeedEvent, FeedState, Mode, run};
pub use frame::{Command, Frame, FrameError, MAX_REPLY, MAX_REQUEST};
pub use messages::{Cookies, Listing, Odd};
pub use name::{from_wire as name_from_bytes, printable};
pub use scripts::{Scripts, ScriptsError, is_shell_script, names_gate, scripts};
