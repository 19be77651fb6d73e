//! From bytes to what the tables are asked for.
//!
//! Every read is checked against the end of the frame, and every walk is bounded (two VLAN tags,
//! [`EXTENSION_HEADERS`] IPv6 extension headers), so that the kernel's verifier takes it and no bytes make it
//! panic. What is not understood is said ([`Unread`]), not guessed; the verdict lets it pass:
//!
//! - A frame that is cut off, too deep, or not IP cannot be assigned to a session. Dropping it could hit a
//!   stranger; passing it is bounded by the other layers (the session's sockets are destroyed).
//! - A later fragment carries no ports and passes. Its first fragment does carry them and is dropped, so the
//!   datagram is never put together, and the kernel throws the rest away.
//! - An IPv6 header with an IPv4-mapped address is no traffic of ours ([`Unread::Foreign`]): the kernel drops
//!   those itself, and it must not be taken for the IPv4 address.

use crate::layout::{Address, TCP, TOKEN_DTLS, TokenKey, UDP};

/// How many IPv6 extension headers are walked through before the transport header.
pub const EXTENSION_HEADERS: usize = 6;

/// Whether frames of a device begin with an Ethernet header or with the IP header (tun, WireGuard, PPP).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framing {
    Ethernet,
    Bare,
}

/// A frame. Each method answers `None` where the frame ends before, and otherwise the words as they lie in
/// memory (network byte order).
pub trait Frame {
    fn u8(&self, at: usize) -> Option<u8>;
    fn u16(&self, at: usize) -> Option<u16>;
    fn words<const N: usize>(&self, at: usize) -> Option<[u32; N]>;

    /// The same offset, of which the verifier has forgotten how it came about: the many ways that lead to a
    /// header are one from here on, and need not be followed one by one. `at` is at most [`MAX_OFFSET`].
    fn forget(&self, at: usize) -> usize {
        at
    }
}

/// More than all headers that are walked through can be long together, and one less than a power of two.
pub const MAX_OFFSET: usize = 0x3fff;
const _: () = assert!(22 + 40 + EXTENSION_HEADERS * 256 * 8 + SESSION_ID + 33 <= MAX_OFFSET);

/// Why a frame says nothing about a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unread {
    /// Not IP, not TCP or UDP, a later fragment: there is nothing to look up.
    Foreign,
    /// It ends within a header.
    CutOff,
    /// It has more tags or extension headers than we walk through.
    TooDeep,
}

/// The IP header: its version and where it begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Network {
    V4(usize),
    V6(usize),
}

/// Both addresses of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Addresses {
    pub source: Address,
    pub destination: Address,
}

/// The ends of a TCP or UDP packet; ports in network byte order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    pub source: Address,
    pub destination: Address,
    pub source_port: u16,
    pub destination_port: u16,
    /// [`TCP`] or [`UDP`].
    pub protocol: u32,
    /// Where the transport header begins.
    pub at: usize,
}

const IPV4: u16 = u16::to_be(0x0800);
const IPV6: u16 = u16::to_be(0x86dd);
const VLAN: u16 = u16::to_be(0x8100);
const QINQ: u16 = u16::to_be(0x88a8);

#[inline(always)]
fn or<T>(read: Option<T>, otherwise: Unread) -> Result<T, Unread> {
    match read {
        Some(value) => Ok(value),
        None => Err(otherwise),
    }
}

/// Finds the IP header. On a bare device its first half byte tells the version, as the kernel's own input
/// path checks it again.
#[inline(always)]
pub fn network(frame: &(impl Frame + ?Sized), framing: Framing) -> Result<Network, Unread> {
    let (at, kind) = match framing {
        Framing::Bare => (0, None),
        Framing::Ethernet => {
            let mut at = 14;
            let mut kind = or(frame.u16(12), Unread::CutOff)?;
            if kind == VLAN || kind == QINQ {
                kind = or(frame.u16(16), Unread::CutOff)?;
                at = 18;
                if kind == VLAN || kind == QINQ {
                    kind = or(frame.u16(20), Unread::CutOff)?;
                    at = 22;
                }
            }
            match kind {
                IPV4 | IPV6 => (at, Some(kind)),
                VLAN | QINQ => return Err(Unread::TooDeep),
                _ => return Err(Unread::Foreign),
            }
        }
    };
    let version = or(frame.u8(at), Unread::CutOff)? >> 4;
    match (version, kind) {
        (4, None | Some(IPV4)) => Ok(Network::V4(at)),
        (6, None | Some(IPV6)) => Ok(Network::V6(at)),
        _ => Err(Unread::Foreign),
    }
}

#[inline(always)]
fn v4_addresses(frame: &(impl Frame + ?Sized), at: usize) -> Result<Addresses, Unread> {
    let [source, destination] = or(frame.words::<2>(at + 12), Unread::CutOff)?;
    Ok(Addresses { source: Address::v4(source), destination: Address::v4(destination) })
}

#[inline(always)]
fn v6_addresses(frame: &(impl Frame + ?Sized), at: usize) -> Result<Addresses, Unread> {
    let source = Address::v6(or(frame.words(at + 8), Unread::CutOff)?);
    let destination = Address::v6(or(frame.words(at + 24), Unread::CutOff)?);
    if source.is_mapped() || destination.is_mapped() {
        return Err(Unread::Foreign);
    }
    Ok(Addresses { source, destination })
}

/// Only the addresses: what tc looks at.
#[inline(always)]
pub fn addresses(frame: &(impl Frame + ?Sized), framing: Framing) -> Result<Addresses, Unread> {
    match network(frame, framing)? {
        Network::V4(at) => v4_addresses(frame, at),
        Network::V6(at) => v6_addresses(frame, at),
    }
}

/// The exact flow of a packet: what XDP looks at.
#[inline(always)]
pub fn segment(frame: &(impl Frame + ?Sized), framing: Framing) -> Result<Segment, Unread> {
    let (addresses, protocol, at) = match network(frame, framing)? {
        Network::V4(at) => {
            let at = frame.forget(at);
            let addresses = v4_addresses(frame, at)?;
            let length = usize::from(or(frame.u8(at), Unread::CutOff)? & 0xf) * 4;
            let fragment = or(frame.u16(at + 6), Unread::CutOff)?;
            // an offset other than 0: a later fragment; less than 20 bytes: the kernel drops it
            if fragment & u16::to_be(0x1fff) != 0 || length < 20 {
                return Err(Unread::Foreign);
            }
            (addresses, or(frame.u8(at + 9), Unread::CutOff)?, at + length)
        }
        Network::V6(at) => {
            let at = frame.forget(at);
            let addresses = v6_addresses(frame, at)?;
            let first = or(frame.u8(at + 6), Unread::CutOff)?;
            let (protocol, at) = extensions(frame, first, at + 40)?;
            (addresses, protocol, at)
        }
    };
    let at = frame.forget(at);
    let protocol = u32::from(protocol);
    if protocol != TCP && protocol != UDP {
        return Err(Unread::Foreign);
    }
    let Addresses { source, destination } = addresses;
    let source_port = or(frame.u16(at), Unread::CutOff)?;
    let destination_port = or(frame.u16(at + 2), Unread::CutOff)?;
    Ok(Segment { source, destination, source_port, destination_port, protocol, at })
}

/// Walks to the transport header: its protocol and where it begins.
#[inline(always)]
fn extensions(frame: &(impl Frame + ?Sized), first: u8, at: usize) -> Result<(u8, usize), Unread> {
    let (mut next, mut at) = (first, at);
    for _ in 0..EXTENSION_HEADERS {
        let length = match next {
            // hop-by-hop, routing, destination options
            0 | 43 | 60 => (usize::from(or(frame.u8(at + 1), Unread::CutOff)?) + 1) * 8,
            // fragment
            44 => {
                if or(frame.u16(at + 2), Unread::CutOff)? & u16::to_be(0xfff8) != 0 {
                    return Err(Unread::Foreign);
                }
                8
            }
            // authentication
            51 => (usize::from(or(frame.u8(at + 1), Unread::CutOff)?) + 2) * 4,
            _ => return Ok((next, at)),
        };
        next = or(frame.u8(at), Unread::CutOff)?;
        at = frame.forget(at + length);
    }
    match next {
        0 | 43 | 44 | 51 | 60 => Err(Unread::TooDeep),
        _ => Ok((next, at)),
    }
}

/// Offsets from a UDP header into a DTLS ClientHello (RFC 6347): UDP header 8, then the record's type at 0 and
/// (after the record header of 13) the handshake's type; session id after handshake header 12, version 2,
/// random 32.
const RECORD: usize = 8;
const HANDSHAKE: usize = RECORD + 13;
const SESSION_ID: usize = HANDSHAKE + 12 + 2 + 32;

/// The session id of a DTLS ClientHello in a UDP datagram whose header begins at `at`. Anything else, and a
/// hello without one, is `None`. The record's version is not looked at: AnyConnect's differs, and the id
/// matches exactly or not at all. At least 3 bytes always follow the id (cookie, cipher suites), which lets us
/// read whole words.
#[inline(always)]
pub fn dtls_session_id(frame: &(impl Frame + ?Sized), at: usize) -> Option<TokenKey> {
    if frame.u8(at + RECORD)? != 22 || frame.u8(at + HANDSHAKE)? != 1 {
        return None;
    }
    let length = usize::from(frame.u8(at + SESSION_ID)?);
    if length == 0 || length > 32 {
        return None;
    }
    let mut key = TokenKey { kind: TOKEN_DTLS, len: length as u32, id: [0; 8] };
    for (index, word) in key.id.iter_mut().enumerate() {
        let begin = index * 4;
        if begin < length {
            let [read] = frame.words(at + SESSION_ID + 1 + begin)?;
            *word = read & mask(length - begin);
        }
    }
    Some(key)
}

/// Keeps the first `count` bytes (all, if that is more than four) of a word that lies in memory as it stood on
/// the wire. Without branches, of which the verifier would follow every combination.
#[inline(always)]
const fn mask(count: usize) -> u32 {
    let count = if count < 4 { count } else { 4 };
    u32::to_be((0xffff_ffff_0000_0000_u64 >> (8 * count)) as u32)
}

/// A frame in ordinary memory: for tests and tools on the host.
impl Frame for [u8] {
    fn u8(&self, at: usize) -> Option<u8> {
        self.get(at).copied()
    }

    fn u16(&self, at: usize) -> Option<u16> {
        let bytes = self.get(at..at.checked_add(2)?)?;
        <[u8; 2]>::try_from(bytes).ok().map(u16::from_ne_bytes)
    }

    fn words<const N: usize>(&self, at: usize) -> Option<[u32; N]> {
        let bytes = self.get(at..at.checked_add(N * 4)?)?;
        let mut words = [0; N];
        for (word, four) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes(<[u8; 4]>::try_from(four).ok()?);
        }
        Some(words)
    }
}
