//! The attached programs say of each packet what the host says of it. Needs root; every test has namespaces and a
//! bpffs of its own.
//!
//! The programs are run by BPF_PROG_TEST_RUN, which takes frames of 14 bytes and more; shorter ones are the host's
//! alone, which runs the same code.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

mod attached;
mod lab;
#[path = "../../enforcer-ebpf/tests/packets/mod.rs"]
mod packets;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use attached::test_run;
use aya::maps::{HashMap, Map, MapData};
use enforcer::dataplane::{Dataplane, GateFacts, Role, Settings};
use enforcer::session::{Device, Entry, Flow, Netns, Protocol, Stands, Token, TokenKind};
use enforcer_ebpf::counters::Reason;
use enforcer_ebpf::layout::{self, DeviceKey, FlowKey, FragmentKey, LEASED, Standing, TokenKey};
use enforcer_ebpf::packet::Framing;
use enforcer_ebpf::verdict::{self, Verdict};
use lab::{Lab, Tun, ifindex, ip, lab};
use packets::{Memory, Packet, client_hello, openvpn};

const NONE: GateFacts = GateFacts { server: 0, moment: 0 };
/// The device of a test run.
const LOOPBACK: u32 = 1;
const FRAMINGS: [Framing; 2] = [Framing::Ethernet, Framing::Bare];
const HOOKS: [&str; 4] = ["lan_in", "lan_out", "tun_in", "tun_out"];
const ENDS: [&str; 6] =
    ["192.0.2.1:1", "192.0.2.1:2", "198.51.100.1:1", "[2001:db8::1]:1", "[2001:db8::1]:2", "[2001:db8::2]:1"];
/// OpenVPN's, data often, and one that it has not any more.
const OPCODES: [u8; 13] = [2, 3, 4, 5, 6, 6, 7, 8, 9, 9, 9, 10, 11];
/// The port of some of the ends that is OpenVPN's.
const OPENVPN: u16 = 1;
const ROUTERS: [&str; 2] = ["203.0.113.1", "2001:db8:9::1"];

/// A small generator of its own, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound
    }

    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    /// A packet of few addresses and ports.
    fn packet(&mut self, id: u32) -> Packet {
        let family = self.below(2);
        let end = |random: &mut Self| ENDS[3 * family + random.below(3)];
        let (from, to) = (end(self), end(self));
        let mut packet = Packet::new(self.one(&[6, 17, 17, 17, 47]), from, to);
        packet.id = id;
        packet.tags = self.one(&[
            None,
            None,
            Some(vec![]),
            Some(vec![]),
            Some(vec![0x8100]),
            Some(vec![0x88a8, 0x8100]),
            Some(vec![0x88a8, 0x8100, 0x8100]),
        ]);
        packet.options = self.one(&[0, 0, 1, 5, 10]);
        for _ in 0..self.one(&[0, 0, 0, 1, 3, 5, 6, 8]) {
            packet.extensions.push((self.one(&[0, 43, 60, 51]), self.below(5) as u8));
        }
        packet.fragment = self.one(&[None, None, None, Some(0), Some(8)]);
        packet.last = self.below(4) == 0;
        packet.payload = match self.below(5) {
            0 => vec![7; self.below(120)],
            1 => vec![7; 200],
            2 | 3 => {
                let id = self.one(&[0, 1, 2, 3, 3, 3]);
                openvpn(self.one(&OPCODES), self.below(8) as u8, &[id; 8])
            }
            _ => {
                let length = self.below(34);
                client_hello(&vec![3; length])
            }
        };
        if self.below(5) == 0 {
            let kinds = if family == 0 { [3, 11, 12, 0] } else { [1, 2, 3, 128] };
            let mut error = packet.error(ROUTERS[family], self.one(&kinds));
            (error.id, error.fragment) = (id, self.one(&[None, None, None, Some(0)]));
            return error;
        }
        packet
    }

    /// ... sometimes cut off, padded, or with a bit changed. At least 14 bytes.
    fn frame(&mut self, packet: &Packet) -> Vec<u8> {
        let mut bytes = packet.bytes();
        match self.below(5) {
            0 => bytes.truncate(self.below(bytes.len() + 1)),
            1 => {
                let at = self.below(bytes.len().min(120));
                bytes[at] ^= 1 << self.below(8);
            }
            2 => bytes.resize(bytes.len() + self.below(60), self.one(&[0, 6, 17, 60])),
            _ => {}
        }
        bytes.resize(bytes.len().max(14), 0);
        bytes
    }
}

/// What is revoked, on both sides.
struct World {
    dataplane: Dataplane,
    memory: Memory,
    programs: BTreeMap<String, OwnedFd>,
    fragments: HashMap<MapData, [u32; 11], u64>,
    learned: HashMap<MapData, [u32; 11], [u32; 10]>,
    _devices: [Tun; 2],
}

impl World {
    fn new(lab: &Lab) -> Self {
        let tuns = ["tun0", "tun1"].map(Tun::new);
        lab.veth_named("tap", "far", "0");
        ip("link set tap0 up");
        let openvpn = vec![9, OPENVPN];
        let settings = Settings { openvpn_ports: openvpn.clone(), ..lab.settings() };
        let mut dataplane = Dataplane::open(settings).unwrap();
        // each program once
        for (device, role) in [
            ("gw", Role::Outer),
            ("gw", Role::Inner),
            ("tap0", Role::Tunnel),
            ("tun0", Role::Outer),
            ("tun0", Role::Tunnel),
            ("tun1", Role::Inner),
        ] {
            dataplane.attach(None, lab.netns(), ifindex(device), device, role).unwrap();
        }
        let maps = lab.pin_path().join("maps");
        let programs = attached::programs(lab);
        let fragments = MapData::from_pin(maps.join(layout::FRAGMENTS)).unwrap();
        let fragments = HashMap::try_from(Map::LruHashMap(fragments)).unwrap();
        let learned = MapData::from_pin(maps.join(layout::LEARNED)).unwrap();
        let learned = HashMap::try_from(Map::LruHashMap(learned)).unwrap();
        let memory = Memory { netns: lab.netns().0, openvpn, ..Memory::default() };
        let mut world = Self { dataplane, memory, programs, fragments, learned, _devices: tuns };
        world.revoke(lab.netns());
        world
    }

    /// Some flows, addresses and session ids: for ever, lapsed, or until a moment that is over.
    fn revoke(&mut self, netns: Netns) {
        self.dataplane.beat().unwrap();
        self.memory.now_ns = Dataplane::kernel_monotonic_ns();
        self.memory.heartbeat_ns = self.memory.now_ns;
        let mut count = 0;
        let mut add = |dataplane: &mut Dataplane, entry: Entry| {
            count += 1;
            let (stands, expires_ns) = match count % 3 {
                0 => (Stands::Forever, u64::MAX),
                1 => (Stands::Leased, LEASED),
                _ => (Stands::Until(1), 1),
            };
            dataplane.insert(&entry, 1, stands, NONE).unwrap();
            Standing { revocation: 1, expires_ns, hits: 0, last_ns: 0 }
        };
        for (from, to) in ENDS.iter().flat_map(|from| ENDS.map(|to| (*from, to))) {
            let ends: [SocketAddr; 2] = [from, to].map(|end| end.parse().unwrap());
            for (number, protocol) in [(6, Protocol::Tcp), (17, Protocol::Udp)] {
                if ends[0].is_ipv4() == ends[1].is_ipv4() && (from != to || number == 17) {
                    let flow = Flow::new(protocol, ends[0], ends[1]).unwrap();
                    let standing = add(&mut self.dataplane, Entry::Flow(netns, flow));
                    self.memory.flows.insert(Packet::new(number, from, to).flow(netns.0), standing);
                }
            }
        }
        for length in (1..=32).step_by(2) {
            let id = vec![3; length];
            let token = Token::new(TokenKind::Dtls, id.clone()).unwrap();
            let standing = add(&mut self.dataplane, Entry::Token(token));
            self.memory.tokens.insert(packets::token(&id), standing);
        }
        // of four the last one comes and goes
        for id in [[0; 8], [1; 8], [2; 8]] {
            let token = Token::new(TokenKind::Openvpn, id.to_vec()).unwrap();
            let standing = add(&mut self.dataplane, Entry::Token(token));
            self.memory.tokens.insert(packets::openvpn_token(&id), standing);
        }
        for address in ["192.0.2.1", "2001:db8::2", "198.51.100.1", "2001:db8::1", "203.0.113.1"] {
            let standing = add(&mut self.dataplane, Entry::Address(netns, address.parse().unwrap()));
            self.memory.addresses.insert(packets::address(address, netns.0), standing);
        }
    }

    /// Revokes the id of which many flows may have shown it by now, or takes that back.
    fn turn(&mut self) {
        let id = [3; 8];
        let entry = Entry::Token(Token::new(TokenKind::Openvpn, id.to_vec()).unwrap());
        if self.memory.tokens.remove(&packets::openvpn_token(&id)).is_some() {
            assert!(self.dataplane.remove(&entry).unwrap());
        } else {
            self.dataplane.insert(&entry, 2, Stands::Forever, NONE).unwrap();
            self.memory.tokens.insert(packets::openvpn_token(&id), packets::forever(2));
        }
    }

    /// The leases hold, however long the test takes.
    fn beat(&mut self) {
        self.dataplane.beat().unwrap();
    }

    fn run(&self, program: &str, frame: &[u8]) -> Option<u32> {
        test_run(self.programs.get(program).unwrap_or_else(|| panic!("{program} is not attached")), frame)
    }

    /// XDP on both sides. Why it is dropped.
    #[track_caller]
    fn outer(&self, what: &dyn Debug, frame: &[u8], framing: Framing) -> Option<Reason> {
        let expected = packets::outer(&self.memory, frame, framing);
        let dropped = if let Verdict::Drop(reason) = expected { Some(reason) } else { None };
        let is = self.run(&format!("outer_{}", suffix(framing)), frame).unwrap();
        let code = if dropped.is_some() { 1 } else { 2 };
        assert_eq!(is, code, "{framing:?} {expected:?} {frame:02x?} {what:?}");
        dropped
    }

    #[track_caller]
    fn inner(&self, hook: &str, what: &dyn Debug, frame: &[u8], framing: Framing) -> bool {
        let expected = match hook {
            "lan_in" => verdict::lan_ingress(&self.memory, frame, framing),
            "lan_out" => verdict::lan_egress(&self.memory, frame, framing),
            "tun_in" => verdict::tunnel_ingress(&self.memory, LOOPBACK, frame, framing),
            _ => verdict::tunnel_egress(&self.memory, LOOPBACK, frame, framing),
        };
        let drops = matches!(expected, Verdict::Drop(_));
        // the kernel itself refuses some frames that claim to be IP and are too short for it
        let Some(is) = self.run(&format!("{hook}_{}", suffix(framing)), frame) else { return false };
        let code = if drops { 2 } else { u32::MAX };
        assert_eq!(is, code, "{hook} {framing:?} {expected:?} {frame:02x?} {what:?}");
        drops
    }

    /// Both sides remember the same datagrams, and forget them.
    #[track_caller]
    fn same_fragments(&mut self, what: &dyn Debug) {
        for (key, _) in self.memory.fragments.borrow_mut().drain() {
            assert!(self.fragments.remove(&words(key)).is_ok(), "{key:?} is not remembered: {what:?}");
        }
    }

    /// Both sides remember the same tokens of the same flows.
    #[track_caller]
    fn same_learned(&self) {
        let here: BTreeMap<[u32; 11], [u32; 10]> = (self.memory.learned.borrow().iter())
            .map(|(flow, token)| (flow_words(*flow), token_words(*token)))
            .collect();
        let there: BTreeMap<[u32; 11], [u32; 10]> = self.learned.iter().map(Result::unwrap).collect();
        let only_in = |one: &BTreeMap<_, _>, other: &BTreeMap<_, _>| -> Vec<String> {
            let only = one.iter().filter(|(flow, token)| other.get(*flow) != Some(*token));
            only.map(|(flow, token)| format!("{flow:x?} {token:x?}")).take(3).collect()
        };
        let (kernel, host) = (only_in(&there, &here), only_in(&here, &there));
        assert!(
            kernel.is_empty() && host.is_empty(),
            "only in the kernel: {kernel:#?}, only here: {host:#?}"
        );
        let kinds: BTreeSet<u32> = there.values().map(|token| token[0]).collect();
        assert_eq!(kinds.len(), 2, "only {kinds:?}");
    }
}

fn suffix(framing: Framing) -> &'static str {
    if framing == Framing::Ethernet { "ether" } else { "bare" }
}

fn words(key: FragmentKey) -> [u32; 11] {
    // SAFETY: eleven words without padding, as the layout asserts by its size.
    unsafe { std::mem::transmute(key) }
}

fn flow_words(key: FlowKey) -> [u32; 11] {
    // SAFETY: as above.
    unsafe { std::mem::transmute(key) }
}

fn token_words(key: TokenKey) -> [u32; 10] {
    // SAFETY: ten words, likewise.
    unsafe { std::mem::transmute(key) }
}

/// R1, R3: `ENFORCER_TEST_PACKETS` says of how many packets; `ENFORCER_TEST_SEED` of which.
#[test]
fn r1_r3_kernel_and_host_agree_on_a_hundred_thousand_packets() {
    lab(|lab| {
        let number = |name: &str, otherwise: u64| {
            std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
        };
        let seed = number("ENFORCER_TEST_SEED", 0x9e37_79b9_7f4a_7c15);
        let mut world = World::new(lab);
        let mut random = Random(seed | 1);
        let mut dropped = BTreeMap::<&str, u32>::new();
        let mut data = 0;
        for at in 0..number("ENFORCER_TEST_PACKETS", 100_000) {
            if at % 1000 == 0 {
                world.beat();
            }
            if at % 10 == 0 {
                world.turn();
            }
            let packet = random.packet(u32::try_from(at % 0x1_0000).unwrap());
            let what = (seed, at, &packet);
            let frame = random.frame(&packet);
            for framing in FRAMINGS {
                let reason = world.outer(&what, &frame, framing);
                *dropped.entry("outer").or_default() += u32::from(reason.is_some());
                let is_data = matches!(packet.payload.first(), Some(first) if [6, 9].contains(&(first >> 3)));
                data += u32::from(is_data && reason == Some(Reason::DroppedToken));
                // what comes after a first fragment goes its way
                if packet.fragment == Some(0) {
                    let later = Packet { fragment: Some(9), ..packet.clone() };
                    let reason = world.outer(&what, &later.bytes(), framing);
                    *dropped.entry("later").or_default() += u32::from(reason.is_some());
                }
                world.same_fragments(&what);
            }
            let (hook, framing) = (random.one(&HOOKS), random.one(&FRAMINGS));
            let drops = world.inner(hook, &what, &frame, framing);
            *dropped.entry(hook).or_default() += u32::from(drops);
        }
        world.same_learned();
        println!("dropped: {dropped:?}, OpenVPN's data: {data}");
        assert!(data > 20, "no data of a flow that has shown a revoked id");
        assert!(dropped.len() == 6 && dropped.values().all(|drops| *drops > 500), "too foreign: {dropped:?}");
    });
}

/// Each shape, cut off at every byte.
#[test]
fn r1_r3_kernel_and_host_agree_wherever_a_frame_ends() {
    lab(|lab| {
        let mut world = World::new(lab);
        let mut id = 0;
        for ([from, to], router) in
            [["192.0.2.1:1", "198.51.100.1:1"], ["[2001:db8::1]:1", "[2001:db8::2]:1"]]
                .into_iter()
                .zip(ROUTERS)
        {
            let mut shapes = Vec::new();
            let control = Packet { payload: openvpn(7, 2, &[0; 8]), ..Packet::new(17, from, to) };
            shapes.extend([
                control.clone(),
                Packet { tags: Some(vec![0x8100]), options: 3, ..control.clone() },
                Packet { tags: None, fragment: Some(0), ..control.clone() },
                // what its flow has shown, by itself, and then its data
                Packet { payload: openvpn(4, 0, &[3; 8]), ..control.clone() },
                Packet { payload: openvpn(9, 0, &[0; 8]), ..control },
            ]);
            for protocol in [6, 17] {
                let plain = Packet::new(protocol, from, to);
                let hello = Packet { payload: client_hello(&[3; 31]), ..plain.clone() };
                shapes.extend([
                    Packet { tags: None, ..hello.clone() },
                    Packet { tags: Some(vec![0x8100]), ..hello.clone() },
                    Packet { tags: Some(vec![0x88a8, 0x8100]), options: 10, ..hello.clone() },
                    Packet { options: 3, extensions: vec![(60, 1), (51, 2), (43, 0)], ..hello.clone() },
                    Packet { fragment: Some(0), ..hello.clone() },
                    Packet { fragment: Some(9), extensions: vec![(60, 0)], ..hello.clone() },
                    plain.answer().error(router, 3),
                    Packet { options: 4, fragment: Some(0), ..hello.answer() }.error(router, 3),
                ]);
            }
            for shape in shapes {
                world.beat();
                world.turn();
                let framing = if shape.tags.is_some() { Framing::Ethernet } else { Framing::Bare };
                for length in 14..=shape.bytes().len() {
                    id += 1;
                    let frame = &Packet { id, ..shape.clone() }.bytes()[..length];
                    let what = (length, &shape);
                    world.outer(&what, frame, framing);
                    world.same_fragments(&what);
                    for hook in HOOKS {
                        world.inner(hook, &what, frame, framing);
                    }
                }
            }
        }
    });
}

/// On a revoked device everything is dropped, unread.
#[test]
fn a_revoked_device_drops_what_is_not_ip() {
    lab(|lab| {
        let mut world = World::new(lab);
        let mut arp = vec![0xff; 12];
        arp.extend([8, 6]);
        arp.resize(60, 0);
        for is_revoked in [false, true] {
            for (hook, framing) in HOOKS.into_iter().flat_map(|hook| FRAMINGS.map(|framing| (hook, framing)))
            {
                let drops = world.inner(hook, &is_revoked, &arp, framing);
                assert_eq!(drops, is_revoked && hook.starts_with("tun"), "{hook}");
            }
            let device = Device { netns: lab.netns(), index: LOOPBACK };
            world.dataplane.insert(&Entry::Device(device), 2, Stands::Forever, NONE).unwrap();
            let key = DeviceKey { netns: lab.netns().0, ifindex: LOOPBACK };
            world.memory.devices.insert(key, packets::forever(2));
        }
    });
}
