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
pub mod setup;

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
pub use scripts::{
    Scripts, ScriptsError, is_gate_here, is_shell_script, is_shell_script_here, names_gate, scripts,
};

/// What ocserv hands us, as bytes: the ways in for the fuzz targets (`tests/fuzz`), which must neither panic nor
/// hang.
#[doc(hidden)]
pub mod untrusted {
    use futures::FutureExt as _;

    /// All frames of a stream that ends, and every message of ours that each could be. Answers how many frames.
    pub fn stream(bytes: &[u8]) -> usize {
        let mut reader = super::frame::FrameReader::new(bytes);
        let mut frames = 0;
        while let Some(Ok(Some(frame))) = reader.next().now_or_never() {
            frames += 1;
            message(&frame.body);
        }
        frames
    }

    /// One body, as every message of ours that it could be.
    pub fn message(body: &[u8]) {
        let _ = super::messages::listing(body);
        let _ = super::messages::cookies(body);
        let _ = super::messages::events(body);
    }

    /// ocserv's configuration file.
    pub fn configuration(text: &[u8]) -> super::Scripts {
        super::scripts::parse(text)
    }
}
