//! From bytes to what the tables are asked for.
//!
//! Every read is checked against the end of the frame, and every walk is bounded (two VLAN tags,
//! [`EXTENSION_HEADERS`] IPv6 extension headers), so that the kernel's verifier takes it and no bytes make it
//! panic. What is not understood is said ([`Unread`]), not guessed; the verdict lets it pass:
//!
//! - A frame that is cut off, too deep, or not IP cannot be assigned to a session. Dropping it could hit a
//!   stranger; passing it is bounded by the other layers (the session's sockets are destroyed).
//! - An IPv6 header with an IPv4-mapped address is no traffic of ours ([`Unread::Foreign`]): the kernel drops
//!   those itself, and it must not be taken for the IPv4 address.
//!
//! **Fragments.** Ports stand in the first fragment (offset 0) and nowhere else: offsets count in eights, so no
//! later fragment can write over the first four bytes, and the kernel keeps none of less than eight. So whoever
//! drops the first fragments of a flow has none of its datagrams put together, in whatever order they come.
//! Two things are left:
//!
//! - A first fragment that does not show what we have to read ([`Outer::Headless`]): its IPv6 headers go on in
//!   the next one, or it is so short that a session id would stand there. RFC 7112 and RFC 8200, 4.5 have the
//!   receiver throw the former away; Linux does so except where the cut lies before a further extension header.
//!   RFC 1858 has the latter filtered. No honest sender makes either; it is dropped.
//! - The later fragments of a dropped first one ([`Outer::Later`]). Alone they would wait half a minute in the
//!   host's reassembly: 4 MiB of them and nobody's fragments are put together any more, and each would be taken for
//!   the neighbour's behind the same address who comes to the same id. So the verdict remembers the datagram for a
//!   moment. Those that come before their first fragment pass: nothing tells whose they are.
//!
//! **ICMP errors** quote the packet that they are about ([`Outer::Quote`]), sent by us to the client.

use crate::layout::{Address, ICMP, ICMPV6, TCP, TOKEN_DTLS, TokenKey, UDP};

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
const _: () = assert!(22 + 40 + EXTENSION_HEADERS * 256 * 8 + TOKEN_END <= MAX_OFFSET);

/// Why a frame says nothing about a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unread {
    /// Not IP, not TCP or UDP, no ICMP error about them: there is nothing to look up.
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

/// What the kernel puts fragments together by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fragment {
    pub source: Address,
    pub destination: Address,
    /// As it stands in the header; of IPv4 the two bytes that there are.
    pub id: u32,
    /// Of IPv4 the protocol, of IPv6 0: there it is no part of what names a datagram.
    pub protocol: u32,
}

/// Whether a packet is the first fragment of a datagram, and of which one. Not an `Option`: the compiler would leave
/// undefined what is in none, of which the verifier takes no copies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct First {
    pub is: bool,
    pub of: Fragment,
}

/// What there is to be looked up of a packet from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outer {
    Segment(Segment, First),
    /// An ICMP error about a packet to the client that sent such segments: `source` is whom the quoted packet was
    /// for, `destination` who sent it. Its own sender may be any router.
    Quote(Segment, First),
    /// A later fragment.
    Later(Fragment),
    /// The first fragment of something else.
    Other(Fragment),
    /// A first fragment that leaves to the next one what we have to read.
    Headless(Fragment),
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
    // how much is known to be there would be another program for each tag, if it were known of the start itself
    let start = frame.forget(0);
    let (at, kind) = match framing {
        Framing::Bare => (start, None),
        Framing::Ethernet => {
            let mut at = start + 14;
            let mut kind = or(frame.u16(start + 12), Unread::CutOff)?;
            if kind == VLAN || kind == QINQ {
                kind = or(frame.u16(start + 16), Unread::CutOff)?;
                at = start + 18;
                if kind == VLAN || kind == QINQ {
                    kind = or(frame.u16(start + 20), Unread::CutOff)?;
                    at = start + 22;
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

/// The words of who sends to whom, for people: source and destination, then the ports as they lie in memory, then the
/// protocol.
pub const ENDS: usize = 10;

/// As much of it as can be read in few steps, of a packet that was dropped already. Each word is given to `put`, by its
/// number; what is not understood is not given. Ports and protocol are given of TCP and UDP in one piece without IPv6
/// extension headers.
#[inline(always)]
pub fn ends(frame: &(impl Frame + ?Sized), framing: Framing, mut put: impl FnMut(usize, u32)) -> Option<()> {
    let (protocol, at) = match network(frame, framing).ok()? {
        Network::V4(at) => {
            let at = frame.forget(at);
            let [source, destination] = frame.words::<2>(at + 12)?;
            for (end, word) in [source, destination].into_iter().enumerate() {
                put(4 * end + 2, u32::to_be(0xffff));
                put(4 * end + 3, word);
            }
            let length = usize::from(frame.u8(at)? & 0xf) * 4;
            let whole = frame.u16(at + 6)? & u16::to_be(0x3fff) == 0;
            (if whole { frame.u8(at + 9)? } else { 0 }, at + length)
        }
        Network::V6(at) => {
            let at = frame.forget(at);
            for word in 0..8 {
                let [read] = frame.words::<1>(at + 8 + 4 * word)?;
                put(word, read);
            }
            (frame.u8(at + 6)?, at + 40)
        }
    };
    let (protocol, at) = (frame.forget(usize::from(protocol)) as u32, frame.forget(at));
    if protocol == TCP || protocol == UDP {
        let [ports] = frame.words::<1>(at)?;
        put(8, ports);
        put(9, protocol);
    }
    Some(())
}

/// What XDP looks at: the exact flow of a packet, or which one it belongs to.
#[inline(always)]
pub fn outer(frame: &(impl Frame + ?Sized), framing: Framing) -> Result<Outer, Unread> {
    let network = network(frame, framing)?;
    let Datagram { addresses, shape, id, at, shown } = datagram(frame, network)?;
    let protocol = shape.protocol();
    let part = shape.part();
    let of = shape.fragment(addresses, id);
    let first = First { is: part != Shape::WHOLE, of };
    if first.is {
        let needed = match protocol {
            TCP => 4,
            UDP => TOKEN_END,
            // that there is any shows that the walk was one through the packet, and not through its padding
            _ => 1,
        };
        if part == Shape::LATER {
            return Ok(Outer::Later(of));
        }
        if part == Shape::HEADLESS || shown < needed {
            return Ok(Outer::Headless(of));
        }
    }
    if protocol == TCP || protocol == UDP {
        return match segment(frame, addresses, protocol, at) {
            Ok(segment) => Ok(Outer::Segment(segment, first)),
            Err(_) if first.is => Ok(Outer::Headless(of)),
            Err(why) => Err(why),
        };
    }
    let quoted = match (shape.is_v6(), protocol) {
        (false, ICMP) | (true, ICMPV6) => quoted(frame, shape.is_v6(), at),
        _ => Err(Unread::Foreign),
    };
    match quoted {
        Ok(segment) => Ok(Outer::Quote(segment, first)),
        Err(_) if first.is => Ok(Outer::Other(of)),
        Err(why) => Err(why),
    }
}

/// What almost every packet is: TCP or UDP in one piece, of IPv6 without extension headers. [`outer`] says the
/// same of it, in more steps. `then` is another piece of program for each version of IP: what is made of many words of an
/// address is made before the two ways come together, and the words are kept by nobody.
#[inline(always)]
pub fn plain<T>(frame: &(impl Frame + ?Sized), network: Network, then: impl Fn(&Segment) -> T) -> Option<T> {
    match network {
        Network::V4(at) => {
            let at = frame.forget(at);
            let length = usize::from(frame.u8(at)? & 0xf) * 4;
            if frame.u16(at + 6)? & u16::to_be(0x3fff) != 0 || length < 20 {
                return None;
            }
            let (addresses, protocol) = (v4_addresses(frame, at).ok()?, frame.u8(at + 9)?);
            Some(then(&transport(frame, addresses, protocol, at + length)?))
        }
        Network::V6(at) => {
            let at = frame.forget(at);
            let (addresses, protocol) = (v6_addresses(frame, at).ok()?, frame.u8(at + 6)?);
            Some(then(&transport(frame, addresses, protocol, at + 40)?))
        }
    }
}

#[inline(always)]
fn transport(
    frame: &(impl Frame + ?Sized),
    addresses: Addresses,
    protocol: u8,
    at: usize,
) -> Option<Segment> {
    let protocol = u32::from(protocol);
    if protocol != TCP && protocol != UDP {
        return None;
    }
    segment(frame, addresses, protocol, frame.forget(at)).ok()
}

#[inline(always)]
fn segment(
    frame: &(impl Frame + ?Sized),
    Addresses { source, destination }: Addresses,
    protocol: u32,
    at: usize,
) -> Result<Segment, Unread> {
    let source_port = or(frame.u16(at), Unread::CutOff)?;
    let destination_port = or(frame.u16(at + 2), Unread::CutOff)?;
    Ok(Segment { source, destination, source_port, destination_port, protocol, at })
}

/// The number of IPv6's fragment header.
const FRAGMENT: u8 = 44;

/// The ICMP types that are errors, a bit each: unreachable, quench, redirect, time exceeded, parameter problem.
const ERRORS: u32 = 1 << 3 | 1 << 4 | 1 << 5 | 1 << 11 | 1 << 12;
/// ... and of ICMPv6: unreachable, too big, time exceeded, parameter problem.
const ERRORS_V6: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4;

/// The segments that have caused the ICMP error at `at`. At least the ports are always quoted (RFC 792, RFC 4443).
/// The version in the quoted header is not looked at, as the kernel does not. Of IPv6 extension headers only that of
/// a fragment is expected: it is a packet of ours.
#[inline(always)]
fn quoted(frame: &(impl Frame + ?Sized), v6: bool, at: usize) -> Result<Segment, Unread> {
    let kind = or(frame.u8(at), Unread::CutOff)?;
    let errors = if v6 { ERRORS_V6 } else { ERRORS };
    if kind > 31 || errors >> kind & 1 == 0 {
        return Err(Unread::Foreign);
    }
    let at = at + 8;
    let (addresses, protocol, length) = if v6 {
        let addresses = v6_addresses(frame, at)?;
        match or(frame.u8(at + 6), Unread::CutOff)? {
            FRAGMENT => {
                if or(frame.u16(at + 42), Unread::CutOff)? & u16::to_be(0xfff8) != 0 {
                    return Err(Unread::Foreign);
                }
                (addresses, or(frame.u8(at + 40), Unread::CutOff)?, 48)
            }
            next => (addresses, next, 40),
        }
    } else {
        let addresses = v4_addresses(frame, at)?;
        let length = usize::from(or(frame.u8(at), Unread::CutOff)? & 0xf) * 4;
        let fragment = or(frame.u16(at + 6), Unread::CutOff)?;
        if fragment & u16::to_be(0x1fff) != 0 || length < 20 {
            return Err(Unread::Foreign);
        }
        (addresses, or(frame.u8(at + 9), Unread::CutOff)?, length)
    };
    let (at, protocol) = (frame.forget(at + length), u32::from(protocol));
    if protocol != TCP && protocol != UDP {
        return Err(Unread::Foreign);
    }
    let there = segment(frame, addresses, protocol, at)?;
    Ok(Segment {
        source: there.destination,
        destination: there.source,
        source_port: there.destination_port,
        destination_port: there.source_port,
        ..there
    })
}

/// An IP packet up to its transport header.
struct Datagram {
    addresses: Addresses,
    shape: Shape,
    /// Of a fragment: see [`Fragment::id`].
    id: u32,
    /// Where the transport header begins, where there is one.
    at: usize,
    /// Of a first fragment: how many bytes there are from there to the end of the IP packet. What comes after that
    /// is padding, which the kernel cuts off.
    shown: usize,
}

/// Protocol, version and which part of a datagram it is, in one number, so that [`Frame::forget`] takes it: what the
/// verifier knew of them it would take for so many programs.
#[derive(Clone, Copy)]
struct Shape(usize);

impl Shape {
    const WHOLE: usize = 0;
    const FIRST: usize = 1 << 8;
    const LATER: usize = 2 << 8;
    /// A first fragment whose headers go on in the next one.
    const HEADLESS: usize = 3 << 8;
    const V6: usize = 1 << 10;

    #[inline(always)]
    fn protocol(self) -> u32 {
        (self.0 & 0xff) as u32
    }

    #[inline(always)]
    fn part(self) -> usize {
        self.0 & (3 << 8)
    }

    #[inline(always)]
    fn is_v6(self) -> bool {
        self.0 & Self::V6 != 0
    }

    #[inline(always)]
    fn fragment(self, Addresses { source, destination }: Addresses, id: u32) -> Fragment {
        Fragment { source, destination, id, protocol: if self.is_v6() { 0 } else { self.protocol() } }
    }
}

#[inline(always)]
fn datagram(frame: &(impl Frame + ?Sized), network: Network) -> Result<Datagram, Unread> {
    let (addresses, shape, id, at, end) = match network {
        Network::V4(at) => {
            let at = frame.forget(at);
            let addresses = v4_addresses(frame, at)?;
            let length = usize::from(or(frame.u8(at), Unread::CutOff)? & 0xf) * 4;
            let fragment = or(frame.u16(at + 6), Unread::CutOff)?;
            let protocol = usize::from(or(frame.u8(at + 9), Unread::CutOff)?);
            if length < 20 {
                // the kernel drops it
                return Err(Unread::Foreign);
            }
            let (mut part, mut id, mut end) = (Shape::WHOLE, 0, 0);
            // more fragments, or an offset
            if fragment & u16::to_be(0x3fff) != 0 {
                part = if fragment & u16::to_be(0x1fff) == 0 { Shape::FIRST } else { Shape::LATER };
                id = u32::from(or(frame.u16(at + 4), Unread::CutOff)?);
                end = at + usize::from(u16::from_be(or(frame.u16(at + 2), Unread::CutOff)?));
            }
            (addresses, protocol | part, id, at + length, end)
        }
        Network::V6(at) => {
            let at = frame.forget(at);
            let addresses = v6_addresses(frame, at)?;
            let first = or(frame.u8(at + 6), Unread::CutOff)?;
            let end = at + 40 + usize::from(u16::from_be(or(frame.u16(at + 4), Unread::CutOff)?));
            let mut fragment = 0;
            let walked = extensions(frame, first, at + 40, &mut fragment);
            let (shape, at) = match walked {
                Ok(there) => there,
                // padding can look like any number of headers
                Err(_) if fragment != 0 => (Shape::HEADLESS, 0),
                Err(why) => return Err(why),
            };
            let mut id = 0;
            if fragment != 0 {
                [id] = or(frame.words(frame.forget(fragment) + 4), Unread::CutOff)?;
            }
            (addresses, shape | Shape::V6, id, at, end)
        }
    };
    // two ways have come together here, and are one from here on
    let at = frame.forget(at);
    let shown = frame.forget(end.saturating_sub(at));
    Ok(Datagram { addresses, shape: Shape(frame.forget(shape)), id, at, shown })
}

/// Walks to the transport header: its protocol with the [`Shape`]'s part, and where it begins. `fragment`: where the
/// outermost fragment header is, by which the kernel goes first, unless it is of a datagram in one piece (RFC 6946).
#[inline(always)]
fn extensions(
    frame: &(impl Frame + ?Sized),
    first: u8,
    at: usize,
    fragment: &mut usize,
) -> Result<(usize, usize), Unread> {
    let (mut next, mut at, mut part) = (first, at, Shape::WHOLE);
    for _ in 0..EXTENSION_HEADERS {
        let length = match next {
            // hop-by-hop, routing, destination options
            0 | 43 | 60 => (usize::from(or(frame.u8(at + 1), Unread::CutOff)?) + 1) * 8,
            FRAGMENT => {
                let field = or(frame.u16(at + 2), Unread::CutOff)?;
                if field & u16::to_be(0xfff9) != 0 && *fragment == 0 {
                    (*fragment, part) = (at, Shape::FIRST);
                }
                if field & u16::to_be(0xfff8) != 0 {
                    return Ok((Shape::LATER, at));
                }
                8
            }
            // authentication
            51 => (usize::from(or(frame.u8(at + 1), Unread::CutOff)?) + 2) * 4,
            _ => return Ok((usize::from(next) | part, at)),
        };
        next = or(frame.u8(at), Unread::CutOff)?;
        at = frame.forget(at + length);
    }
    match next {
        0 | 43 | 44 | 51 | 60 => Err(Unread::TooDeep),
        _ => Ok((usize::from(next) | part, at)),
    }
}

/// Offsets from a UDP header into a DTLS ClientHello (RFC 6347): UDP header 8, then the record's type at 0 and
/// (after the record header of 13) the handshake's type; session id after handshake header 12, version 2,
/// random 32.
const RECORD: usize = 8;
const HANDSHAKE: usize = RECORD + 13;
const SESSION_ID: usize = HANDSHAKE + 12 + 2 + 32;
/// Where the longest id has ended: a first fragment has to reach so far.
pub(crate) const TOKEN_END: usize = SESSION_ID + 1 + 32;

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

/// Whether [`dtls_session_id`] may have something to say: never `false` where it has.
#[inline(always)]
pub(crate) fn may_be_handshake(frame: &(impl Frame + ?Sized), at: usize) -> bool {
    frame.u8(at + RECORD) == Some(22)
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
