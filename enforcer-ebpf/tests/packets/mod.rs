//! Frames as bytes, and a world of ordinary memory: shared by the host's and the kernel's tests.
#![allow(dead_code, reason = "each test crate uses a part of it")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "this is a test")]

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use enforcer_ebpf::layout::{
    AddressKey, DeviceKey, FlowKey, FragmentKey, Standing, TCP, TOKEN_DTLS, TOKEN_OPENVPN, TokenKey, UDP,
};
use enforcer_ebpf::packet::{self, First, Framing, Outer};
use enforcer_ebpf::verdict::{self, Look, Verdict, World};

/// A packet to be built.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Ether types of VLAN tags, outermost first. `None`: no Ethernet header at all.
    pub tags: Option<Vec<u16>>,
    pub from: SocketAddr,
    pub to: SocketAddr,
    /// 6 or 17, or anything else: then the payload comes right after the IP header.
    pub protocol: u8,
    /// Words of IPv4 options (0 to 10).
    pub options: u8,
    /// IPv6 extension headers: number and length in units (8 bytes, of 51: 4 bytes).
    pub extensions: Vec<(u8, u8)>,
    /// In units of 8 bytes; 0 is a first fragment.
    pub fragment: Option<u16>,
    /// Of a fragment: no more come after it.
    pub last: bool,
    /// Of the datagram that it is a fragment of; of IPv4 two bytes.
    pub id: u32,
    pub payload: Vec<u8>,
}

impl Packet {
    pub fn new(protocol: u8, from: &str, to: &str) -> Self {
        Self {
            tags: Some(Vec::new()),
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            protocol,
            options: 0,
            extensions: Vec::new(),
            fragment: None,
            last: false,
            id: 0x1234,
            payload: b"payload of some length, so that frames are not too short".to_vec(),
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        let v4 = self.from.is_ipv4();
        if let Some(tags) = &self.tags {
            frame.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
            for tag in tags {
                frame.extend(tag.to_be_bytes());
                frame.extend([0, 100]);
            }
            frame.extend(if v4 { 0x0800_u16 } else { 0x86dd }.to_be_bytes());
        }
        let transport = self.transport();
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let header = 20 + usize::from(self.options) * 4;
                frame.extend([0x40 | (header / 4) as u8, 0]);
                frame.extend(((header + transport.len()) as u16).to_be_bytes());
                let more = if self.last { 0 } else { 0x2000 };
                let fragment = self.fragment.map_or(0, |offset| offset & 0x1fff | more);
                frame.extend((self.id as u16).to_be_bytes());
                frame.extend(fragment.to_be_bytes());
                frame.extend([64, self.protocol, 0, 0]);
                frame.extend(from.octets());
                frame.extend(to.octets());
                frame.resize(frame.len() + header - 20, 1);
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let mut headers = self.extensions.clone();
                if let Some(offset) = self.fragment {
                    headers.push((44, 0));
                    assert!(offset < 0x2000);
                }
                let mut body = Vec::new();
                for (index, (number, units)) in headers.iter().enumerate() {
                    let next = headers.get(index + 1).map_or(self.protocol, |(next, _)| *next);
                    let length = match number {
                        44 => 8,
                        51 => (usize::from(*units) + 2) * 4,
                        _ => (usize::from(*units) + 1) * 8,
                    };
                    let mut header = vec![0; length];
                    header[0] = next;
                    if *number == 44 {
                        let offset = self.fragment.unwrap_or(0) << 3 | u16::from(!self.last);
                        header[2..4].copy_from_slice(&offset.to_be_bytes());
                        header[4..8].copy_from_slice(&self.id.to_be_bytes());
                    } else {
                        header[1] = *units;
                    }
                    body.extend(header);
                }
                body.extend(&transport);
                frame.extend([0x60, 0, 0, 0]);
                frame.extend((body.len() as u16).to_be_bytes());
                frame.extend([headers.first().map_or(self.protocol, |(number, _)| *number), 64]);
                frame.extend(from.octets());
                frame.extend(to.octets());
                frame.extend(body);
                return frame;
            }
            _ => panic!("two families in one packet"),
        }
        frame.extend(transport);
        frame
    }

    fn transport(&self) -> Vec<u8> {
        // a later fragment begins anywhere
        if ![6, 17].contains(&self.protocol) || self.fragment.is_some_and(|offset| offset > 0) {
            return self.payload.clone();
        }
        let mut bytes = Vec::new();
        bytes.extend(self.from.port().to_be_bytes());
        bytes.extend(self.to.port().to_be_bytes());
        if self.protocol == 6 {
            bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
        } else {
            bytes.extend(((8 + self.payload.len()) as u16).to_be_bytes());
            bytes.extend([0, 0]);
        }
        bytes.extend(&self.payload);
        bytes
    }

    /// What the kernel puts it together by, if it is a fragment.
    pub fn datagram(&self, netns: u32) -> FragmentKey {
        let v4 = self.from.is_ipv4();
        FragmentKey {
            client: self.from.ip().into(),
            local: self.to.ip().into(),
            id: if v4 { u32::from((self.id as u16).to_be()) } else { self.id.to_be() },
            protocol: if v4 { self.protocol.into() } else { 0 },
            netns,
        }
    }

    /// An ICMP error of that type, from `router`, about this packet.
    pub fn error(&self, router: &str, kind: u8) -> Self {
        let to = SocketAddr::new(self.from.ip(), 0);
        let mut payload = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        payload.extend(Self { tags: None, ..self.clone() }.bytes());
        let protocol = if self.from.is_ipv4() { 1 } else { 58 };
        let from = SocketAddr::new(router.parse().unwrap(), 0);
        Self { protocol, from, to, payload, tags: self.tags.clone(), ..Self::new(1, "[::1]:0", "[::1]:0") }
    }

    /// The packet that goes the other way.
    pub fn answer(&self) -> Self {
        Self { from: self.to, to: self.from, ..self.clone() }
    }

    pub fn flow(&self, netns: u32) -> FlowKey {
        FlowKey {
            client: self.from.ip().into(),
            local: self.to.ip().into(),
            client_port: self.from.port().to_be(),
            local_port: self.to.port().to_be(),
            protocol: if self.protocol == 6 { TCP } else { UDP },
            netns,
        }
    }
}

/// The payload of a DTLS ClientHello with that session id.
pub fn client_hello(id: &[u8]) -> Vec<u8> {
    let mut hello = vec![22, 0xfe, 0xfd];
    hello.extend([0; 10]);
    hello.push(1);
    hello.extend([0; 11]);
    hello.extend([0xfe, 0xfd]);
    hello.extend([7; 32]);
    hello.push(id.len() as u8);
    hello.extend(id);
    // cookie, cipher suites, compression methods
    hello.extend([0, 0, 2, 0xc0, 0x2c, 1, 0]);
    // ... and as many extensions as make it longer than the shortest first fragment
    hello.resize(100, 0);
    hello
}

/// OpenVPN's opcodes of control packets, and of data.
pub const OPENVPN_CONTROL: [u8; 7] = [3, 4, 5, 7, 8, 10, 11];
pub const OPENVPN_DATA: [u8; 2] = [6, 9];

/// The payload of an OpenVPN packet: opcode, number of the key (0 to 7), and what of a control packet is the session
/// id; longer than the shortest first fragment.
pub fn openvpn(opcode: u8, key: u8, id: &[u8]) -> Vec<u8> {
    let mut packet = vec![opcode << 3 | key];
    packet.extend(id);
    packet.resize(100, 0);
    packet
}

pub fn openvpn_token(id: &[u8]) -> TokenKey {
    TokenKey::new(TOKEN_OPENVPN, id).unwrap()
}

/// The tables in ordinary memory.
#[derive(Default)]
pub struct Memory {
    pub netns: u32,
    pub now_ns: u64,
    pub heartbeat_ns: u64,
    pub flows: HashMap<FlowKey, Standing>,
    pub tokens: HashMap<TokenKey, Standing>,
    pub addresses: HashMap<AddressKey, Standing>,
    pub devices: HashMap<DeviceKey, Standing>,
    /// The revocation of every hit.
    pub hits: RefCell<Vec<u64>>,
    pub fragments: RefCell<HashMap<FragmentKey, u64>>,
    pub learned: RefCell<HashMap<FlowKey, TokenKey>>,
    /// OpenVPN's local UDP ports, as people write them.
    pub openvpn: Vec<u16>,
}

impl World for Memory {
    type Found = Standing;

    fn netns(&self) -> u32 {
        self.netns
    }

    fn flow(&self, key: &FlowKey) -> Option<Standing> {
        self.flows.get(key).copied()
    }

    fn has_no_flow(&self, key: &FlowKey) -> bool {
        !self.flows.contains_key(key)
    }

    fn token(&self, key: &TokenKey) -> Option<Standing> {
        self.tokens.get(key).copied()
    }

    fn address(&self, key: &AddressKey) -> Option<Standing> {
        self.addresses.get(key).copied()
    }

    fn device(&self, key: &DeviceKey) -> Option<Standing> {
        self.devices.get(key).copied()
    }

    fn expires_ns(&self, found: Standing) -> u64 {
        found.expires_ns
    }

    fn now_ns(&self) -> u64 {
        self.now_ns
    }

    fn heartbeat_ns(&self) -> u64 {
        self.heartbeat_ns
    }

    fn hit(&self, found: Standing, _now_ns: u64) {
        self.hits.borrow_mut().push(found.revocation);
    }

    fn fragments(&self, key: &FragmentKey) -> Option<u64> {
        self.fragments.borrow().get(key).copied()
    }

    fn drop_fragments(&self, key: &FragmentKey, until_ns: u64) {
        self.fragments.borrow_mut().insert(*key, until_ns);
    }

    fn pass_fragments(&self, key: &FragmentKey) {
        self.fragments.borrow_mut().remove(key);
    }

    fn learn(&self, flow: &FlowKey, token: &TokenKey) {
        self.learned.borrow_mut().insert(*flow, *token);
    }

    fn shown(&self, flow: &FlowKey) -> Option<Standing> {
        self.learned.borrow().get(flow).and_then(|token| self.token(token))
    }

    fn is_openvpn(&self, port: u16) -> bool {
        self.openvpn.contains(&u16::from_be(port))
    }
}

/// What XDP does with a frame, in its steps; and that each of them says what [`verdict::other`], which knows all frames,
/// would say.
#[track_caller]
pub fn outer(world: &Memory, frame: &[u8], framing: Framing) -> Verdict {
    let state =
        || (world.hits.borrow().len(), world.fragments.borrow().clone(), world.learned.borrow().clone());
    let before = state();
    match verdict::look(world, frame, framing) {
        Look::Nobodys => assert_eq!(verdict::other(world, frame, framing), Verdict::Pass, "{frame:02x?}"),
        Look::Plain => {
            let read = packet::network(frame, framing).ok();
            let read = read.and_then(|network| packet::plain(frame, network, |segment| *segment));
            match (packet::outer(frame, framing), read) {
                (Ok(Outer::Segment(whole, First { is: false, .. })), Some(plain)) => assert_eq!(whole, plain),
                other => panic!("{other:?} of {frame:02x?}"),
            }
        }
        Look::Other => {}
    }
    assert!(state() == before, "{frame:02x?}");
    verdict::outer(world, frame, framing)
}

pub fn token(id: &[u8]) -> TokenKey {
    TokenKey::new(TOKEN_DTLS, id).unwrap()
}

pub fn address(address: &str, netns: u32) -> AddressKey {
    AddressKey { address: address.parse::<IpAddr>().unwrap().into(), netns }
}

pub fn forever(revocation: u64) -> Standing {
    Standing { revocation, expires_ns: u64::MAX, hits: 0, last_ns: 0 }
}
