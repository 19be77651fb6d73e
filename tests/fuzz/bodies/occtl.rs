//! Bytes from ocserv's control socket: the frames, and what is in them.
//!
//! First byte even: a stream of frames. Odd: the body of one message, so that the decoder is reached without a header.
use enforcer::ocserv::{name_from_bytes, printable, untrusted};

pub fn body(input: &[u8]) {
    let Some((flags, bytes)) = input.split_first() else { return };
    if flags & 1 == 0 {
        let frames = untrusted::stream(bytes);
        assert!(frames <= bytes.len() / 5, "a frame has a header of 5 bytes");
    } else {
        untrusted::message(bytes);
    }
    if let Some(name) = name_from_bytes(bytes) {
        assert!(printable(&name).chars().all(|c| !c.is_control()));
    }
}
