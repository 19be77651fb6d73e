//! What OpenVPN shows of a session over UDP (`src/openvpn/ssl_pkt.h` of its source).
//!
//! A datagram begins with a byte of opcode (the upper five bits) and number of the key (the lower three). In a control
//! packet the session id of its sender follows, whichever of tls-auth, tls-crypt and tls-crypt-v2 protects the rest. A
//! data packet has none. Over TCP a length stands before each packet, wherever in the stream: that is not read.

use crate::layout::{OPENVPN_ID, TOKEN_OPENVPN, TokenKey};
use crate::packet::{Frame, TOKEN_END};

/// Where it begins, from a UDP header.
const BEGIN: usize = 8;
const ID: usize = BEGIN + 1;
// so no first fragment passes that does not show it
const _: () = assert!(ID + OPENVPN_ID <= TOKEN_END);

/// A bit for each opcode of a control packet: soft reset 3, control 4, acknowledgement 5, hard resets 7, 8 (of the peer
/// who is the TLS server) and 10, control with a wrapped key 11. The hard resets 1 and 2 are of the time before OpenVPN
/// 2.0, and nobody takes them any more. So no byte is both the first of these and of a DTLS record (20 to 23), and one
/// port may have both.
const CONTROL: u32 = 1 << 3 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 11;
/// ... and of a data packet: 6, and 9, which names its session by a number of three bytes that the server gave it.
const DATA: u32 = 1 << 6 | 1 << 9;

#[inline(always)]
fn is_of(frame: &(impl Frame + ?Sized), at: usize, opcodes: u32) -> bool {
    match frame.u8(at + BEGIN) {
        Some(first) => opcodes >> (first >> 3) & 1 != 0,
        None => false,
    }
}

/// The session id of the sender of a control packet, in a UDP datagram whose header begins at `at`. Anything else is
/// `None`. Nothing else of the packet is looked at: the id matches exactly or not at all. The caller knows whether the
/// port is OpenVPN's.
#[inline(always)]
pub fn session_id(frame: &(impl Frame + ?Sized), at: usize) -> Option<TokenKey> {
    if !is_of(frame, at, CONTROL) {
        return None;
    }
    let [first, second] = frame.words(at + ID)?;
    let id = [first, second, 0, 0, 0, 0, 0, 0];
    Some(TokenKey { kind: TOKEN_OPENVPN, len: OPENVPN_ID as u32, id })
}

/// Whether a UDP datagram whose header begins at `at` is a data packet.
#[inline(always)]
pub fn is_data(frame: &(impl Frame + ?Sized), at: usize) -> bool {
    is_of(frame, at, DATA)
}
