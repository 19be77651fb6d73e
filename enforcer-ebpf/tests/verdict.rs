//! The parser and the verdict on the host: the very code that runs in the kernel.

mod packets;

use enforcer_ebpf::counters::Reason;
use enforcer_ebpf::layout::{Address, DeviceKey, FRAGMENT_NS, LEASE_NS, LEASED, Standing};
use enforcer_ebpf::packet::{self, Framing, Outer, Unread, addresses};
use enforcer_ebpf::verdict::{self, Look, Verdict};
use packets::{Memory, Packet, address, client_hello, forever, token};
use proptest::prelude::*;

const NETNS: u32 = 4_026_531_840;

fn frame_of(packet: &Packet) -> Framing {
    if packet.tags.is_some() { Framing::Ethernet } else { Framing::Bare }
}

fn outer(world: &Memory, packet: &Packet) -> Verdict {
    packets::outer(world, packet.bytes().as_slice(), frame_of(packet))
}

/// A world in which exactly the flow of this packet is revoked.
fn revoked(packet: &Packet) -> Memory {
    let mut world = Memory { netns: NETNS, ..Memory::default() };
    world.flows.insert(packet.flow(NETNS), forever(1));
    world
}

/// Packets of any shape that we do walk through.
fn packets() -> impl Strategy<Value = Packet> {
    let ends = prop_oneof![
        (any::<[u8; 4]>(), any::<[u8; 4]>()).prop_map(|(from, to)| (from.into(), to.into())),
        (any::<[u8; 16]>(), any::<[u8; 16]>()).prop_map(|(mut from, mut to)| {
            // not IPv4-mapped
            from[0] |= 0x20;
            to[0] |= 0x20;
            (from.into(), to.into())
        }),
    ];
    let tags = prop_oneof![
        Just(None),
        prop::collection::vec(prop_oneof![Just(0x8100_u16), Just(0x88a8)], 0..=2).prop_map(Some),
    ];
    let extension = (prop_oneof![Just(0_u8), Just(43), Just(60), Just(51)], 0_u8..8);
    (
        ends,
        any::<(u16, u16)>(),
        prop_oneof![Just(6_u8), Just(17)],
        tags,
        0_u8..=10,
        prop::collection::vec(extension, 0..=5),
        prop::option::of(Just(0)),
        prop::collection::vec(any::<u8>(), 0..100),
    )
        .prop_map(
            |((from, to), (from_port, to_port), protocol, tags, options, extensions, fragment, payload)| {
                let end = |ip: std::net::IpAddr, port| std::net::SocketAddr::new(ip, port);
                let (from, to) = (end(from, from_port), end(to, to_port));
                let mut packet = Packet {
                    tags,
                    options,
                    extensions,
                    fragment,
                    payload,
                    ..Packet::new(protocol, "[::]:0", "[::]:0")
                };
                (packet.from, packet.to) = (from, to);
                if fragment.is_some() {
                    // a first fragment that is no shorter than the longest token
                    packet.payload.resize(packet.payload.len() + 96, 7);
                }
                packet
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let world = Memory::default();
        for framing in [Framing::Ethernet, Framing::Bare] {
            let _ = packets::outer(&world, bytes.as_slice(), framing);
            let _ = verdict::lan_ingress(&world, bytes.as_slice(), framing);
            let _ = verdict::lan_egress(&world, bytes.as_slice(), framing);
            let _ = verdict::tunnel_ingress(&world, 1, bytes.as_slice(), framing);
            let _ = verdict::tunnel_egress(&world, 1, bytes.as_slice(), framing);
        }
    }

    #[test]
    fn a_frame_cut_off_anywhere_passes_or_says_the_same(packet in packets(), at in any::<prop::sample::Index>()) {
        let whole = packet.bytes();
        let framing = frame_of(&packet);
        let cut = &whole[..at.index(whole.len())];
        let read = packet::outer(cut, framing);
        let said = packets::outer(&revoked(&packet), cut, framing);
        match read {
            // the end of the frame is the end of a fragment as well
            Ok(Outer::Headless(_)) => {
                prop_assert!(packet.fragment.is_some());
                prop_assert_eq!(said, Verdict::Drop(Reason::DroppedFragment));
            }
            Ok(_) => {
                prop_assert_eq!(read, packet::outer(whole.as_slice(), framing));
                prop_assert_eq!(said, Verdict::Drop(Reason::DroppedFlow));
            }
            Err(_) => prop_assert_eq!(said, Verdict::PassCounted(Reason::PassedCutOff)),
        }
    }

    #[test]
    fn any_shape_of_the_flow_hits_and_every_twin_misses(packet in packets()) {
        let world = revoked(&packet);
        prop_assert_eq!(outer(&world, &packet), Verdict::Drop(Reason::DroppedFlow));

        let mut twins = vec![packet.clone(); 5];
        twins[0].from.set_port(packet.from.port() ^ 1);
        twins[1].to.set_port(packet.to.port() ^ 1);
        twins[2].protocol = if packet.protocol == 6 { 17 } else { 6 };
        let neighbour = |end: &mut std::net::SocketAddr| match end.ip() {
            std::net::IpAddr::V4(ip) => end.set_ip(std::net::Ipv4Addr::from_bits(ip.to_bits() ^ 1).into()),
            std::net::IpAddr::V6(ip) => end.set_ip(std::net::Ipv6Addr::from_bits(ip.to_bits() ^ 1).into()),
        };
        neighbour(&mut twins[3].from);
        neighbour(&mut twins[4].to);
        for twin in &twins {
            prop_assert_eq!(outer(&world, twin), Verdict::Pass);
        }
        // the other way round
        if packet.from != packet.to {
            let (from, to) = (packet.to, packet.from);
            prop_assert_eq!(outer(&world, &Packet { from, to, ..packet.clone() }), Verdict::Pass);
        }
        // another namespace
        prop_assert_eq!(outer(&Memory { netns: NETNS + 1, ..world }, &packet), Verdict::Pass);
    }

    /// So an honest packet never pays for more; that it says nothing else than the whole look is seen in each test here.
    #[test]
    fn the_first_look_is_all_that_a_plain_packet_of_nobody_needs(packet in packets()) {
        prop_assume!(packet.payload.first() != Some(&22), "it may show a token");
        let headers = packet.from.is_ipv4() || packet.extensions.is_empty();
        let plain = headers && packet.fragment.is_none();
        let look = |world: &Memory| verdict::look(world, packet.bytes().as_slice(), frame_of(&packet));
        let (nobodys, somebodys) = if plain { (Look::Nobodys, Look::Plain) } else { (Look::Other, Look::Other) };
        prop_assert_eq!(look(&Memory { netns: NETNS, ..Memory::default() }), nobodys);
        prop_assert_eq!(look(&revoked(&packet)), somebodys);
    }

    #[test]
    fn an_address_hits_in_its_direction_alone(packet in packets()) {
        prop_assume!(packet.from.ip() != packet.to.ip());
        let bytes = packet.bytes();
        let (bytes, framing) = (bytes.as_slice(), frame_of(&packet));
        let mut world = Memory { netns: NETNS, ..Memory::default() };
        world.addresses.insert(address(&packet.from.ip().to_string(), NETNS), forever(1));
        let from = Verdict::Drop(Reason::DroppedAddressFrom);
        prop_assert_eq!(verdict::lan_egress(&world, bytes, framing), from);
        prop_assert_eq!(verdict::tunnel_ingress(&world, 3, bytes, framing), from);
        prop_assert_eq!(verdict::lan_ingress(&world, bytes, framing), Verdict::Pass);
        prop_assert_eq!(verdict::tunnel_egress(&world, 3, bytes, framing), Verdict::Pass);
        world.addresses.clear();
        world.addresses.insert(address(&packet.to.ip().to_string(), NETNS), forever(1));
        let to = Verdict::Drop(Reason::DroppedAddressTo);
        prop_assert_eq!(verdict::lan_ingress(&world, bytes, framing), to);
        prop_assert_eq!(verdict::tunnel_egress(&world, 3, bytes, framing), to);
        prop_assert_eq!(verdict::lan_egress(&world, bytes, framing), Verdict::Pass);
        prop_assert_eq!(verdict::tunnel_ingress(&world, 3, bytes, framing), Verdict::Pass);
    }

    #[test]
    fn a_session_id_hits_whole_and_no_other_does(
        mut packet in packets(), id in prop::collection::vec(any::<u8>(), 1..=32), flip in any::<prop::sample::Index>()
    ) {
        packet.protocol = 17;
        packet.payload = client_hello(&id);
        let mut world = Memory { netns: NETNS, ..Memory::default() };
        world.tokens.insert(token(&id), forever(9));
        prop_assert_eq!(outer(&world, &packet), Verdict::Drop(Reason::DroppedToken));
        prop_assert_eq!(world.hits.take(), vec![9]);
        prop_assert!(world.learned.borrow().is_empty(), "what is dropped is not learned");

        let mut other = id.clone();
        other[flip.index(id.len())] ^= 1;
        packet.payload = client_hello(&other);
        prop_assert_eq!(outer(&world, &packet), Verdict::Pass);
        let learned = world.learned.take().into_iter().collect::<Vec<_>>();
        prop_assert_eq!(learned, vec![(packet.flow(NETNS), token(&other))]);
        // its beginning is another id, too
        if id.len() > 1 {
            packet.payload = client_hello(&id[..id.len() - 1]);
            prop_assert_eq!(outer(&world, &packet), Verdict::Pass);
        }
        // the same bytes over TCP are no hello
        packet.payload = client_hello(&id);
        packet.protocol = 6;
        prop_assert_eq!(outer(&world, &packet), Verdict::Pass);
    }

    #[test]
    fn a_revoked_device_drops_whatever_it_is(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let mut world = Memory { netns: NETNS, ..Memory::default() };
        world.devices.insert(DeviceKey { netns: NETNS, ifindex: 7 }, forever(1));
        for framing in [Framing::Ethernet, Framing::Bare] {
            let bytes = bytes.as_slice();
            prop_assert_eq!(verdict::tunnel_ingress(&world, 7, bytes, framing), Verdict::Drop(Reason::DroppedDeviceIn));
            prop_assert_eq!(verdict::tunnel_egress(&world, 7, bytes, framing), Verdict::Drop(Reason::DroppedDeviceOut));
            prop_assert!(!matches!(verdict::tunnel_ingress(&world, 8, bytes, framing), Verdict::Drop(_)));
        }
    }
}

#[test]
fn an_ipv4_address_and_its_mapped_form_are_one_key_but_not_one_packet() {
    let v4 = Packet::new(17, "192.0.2.1:4000", "198.51.100.1:443");
    let mapped = Packet::new(17, "[::ffff:192.0.2.1]:4000", "[::ffff:198.51.100.1]:443");
    assert_eq!(v4.flow(NETNS), mapped.flow(NETNS), "a dual-stack socket shows the mapped form");
    let world = revoked(&v4);
    assert_eq!(outer(&world, &v4), Verdict::Drop(Reason::DroppedFlow));
    assert_eq!(outer(&world, &mapped), Verdict::Pass, "nobody sends that; it is not the IPv4 flow");
}

#[test]
fn what_is_too_deep_passes_and_is_counted() {
    let too_deep = Verdict::PassCounted(Reason::PassedTooDeep);
    let mut packet = Packet::new(17, "[2001:db8::1]:4000", "[2001:db8::2]:443");
    let world = revoked(&packet);
    packet.extensions = vec![(60, 0); 6];
    assert_eq!(outer(&world, &packet), Verdict::Drop(Reason::DroppedFlow));
    packet.extensions = vec![(60, 0); 7];
    assert_eq!(outer(&world, &packet), too_deep);
    packet.extensions.clear();
    packet.tags = Some(vec![0x88a8, 0x8100]);
    assert_eq!(outer(&world, &packet), Verdict::Drop(Reason::DroppedFlow));
    packet.tags = Some(vec![0x88a8, 0x8100, 0x8100]);
    assert_eq!(outer(&world, &packet), too_deep);
}

#[test]
fn arp_and_a_wrong_version_are_not_ours() {
    let mut arp = vec![0xff; 12];
    arp.extend([8, 6]);
    arp.resize(42, 0);
    assert_eq!(addresses(arp.as_slice(), Framing::Ethernet), Err(Unread::Foreign));
    let mut odd = Packet::new(17, "192.0.2.1:4000", "198.51.100.1:443").bytes();
    odd[14] = 0x65;
    assert_eq!(packet::outer(odd.as_slice(), Framing::Ethernet), Err(Unread::Foreign));
    odd[14] = 0x44;
    assert_eq!(
        packet::outer(odd.as_slice(), Framing::Ethernet),
        Err(Unread::Foreign),
        "a header of 16 bytes"
    );
}

#[test]
fn a_lease_ends_ten_seconds_after_the_heartbeat_and_a_time_at_its_moment() {
    let packet = Packet::new(6, "192.0.2.1:4000", "198.51.100.1:443");
    let mut world = revoked(&packet);
    let dropped = Verdict::Drop(Reason::DroppedFlow);
    let stand = |world: &mut Memory, expires_ns| {
        world.flows.insert(packet.flow(NETNS), Standing { expires_ns, ..forever(1) });
    };
    world.heartbeat_ns = 5;
    stand(&mut world, LEASED);
    world.now_ns = 5 + LEASE_NS - 1;
    assert_eq!(outer(&world, &packet), dropped);
    world.now_ns += 1;
    assert_eq!(outer(&world, &packet), Verdict::PassCounted(Reason::PassedLapsed));
    stand(&mut world, 100 * LEASE_NS);
    assert_eq!(outer(&world, &packet), dropped, "its own time does not hang by the lease");
    world.now_ns = 100 * LEASE_NS;
    assert_eq!(outer(&world, &packet), Verdict::PassCounted(Reason::PassedExpired));
    stand(&mut world, u64::MAX);
    assert_eq!(outer(&world, &packet), dropped);
}

/// Of a datagram of that flow: the first fragment, one in the middle and the last.
fn pieces(packet: &Packet) -> [Packet; 3] {
    let first = Packet { fragment: Some(0), payload: vec![7; 1000], ..packet.clone() };
    let middle = Packet { fragment: Some(126), ..first.clone() };
    let last = Packet { fragment: Some(251), last: true, ..first.clone() };
    [first, middle, last]
}

const ENDS: [[&str; 2]; 2] =
    [["192.0.2.1:4000", "198.51.100.1:443"], ["[2001:db8::1]:4000", "[2001:db8::2]:443"]];
const FRAGMENT: Verdict = Verdict::Drop(Reason::DroppedFragment);

/// R1, R3: what comes after a dropped first fragment is dropped, for a moment; another datagram's is not.
#[test]
fn the_fragments_of_a_datagram_go_the_way_of_the_first_one() {
    for ([from, to], protocol) in ENDS.into_iter().flat_map(|ends| [(ends, 6), (ends, 17)]) {
        let packet = Packet::new(protocol, from, to);
        let mut world = revoked(&packet);
        let [first, middle, last] = pieces(&packet);
        assert_eq!(outer(&world, &middle), Verdict::Pass, "nothing tells whose it is");
        assert_eq!(outer(&world, &first), Verdict::Drop(Reason::DroppedFlow));
        assert_eq!(world.fragments.borrow().keys().collect::<Vec<_>>(), [&packet.datagram(NETNS)]);
        for _ in 0..2 {
            assert_eq!([&middle, &last].map(|piece| outer(&world, piece)), [FRAGMENT; 2]);
        }
        // R3: another number, sender, receiver, protocol, namespace
        let mut twins = vec![middle.clone(); 3];
        twins[0].id ^= 1;
        twins[1].from =
            (if packet.from.is_ipv4() { "192.0.2.2:1" } else { "[2001:db8::3]:1" }).parse().unwrap();
        twins[2] = Packet { id: middle.id, ..middle.answer() };
        if packet.from.is_ipv4() {
            // of IPv6 the protocol is no part of what names a datagram
            twins.push(Packet { protocol: 23 - protocol, ..middle.clone() });
        }
        for twin in &twins {
            assert_eq!(outer(&world, twin), Verdict::Pass, "{twin:?}");
        }
        world.now_ns = FRAGMENT_NS;
        assert_eq!(outer(&world, &middle), Verdict::Pass, "its time is over");
    }
}

/// R3: a neighbour behind the same address comes to the same number: the datagram is his from then on.
#[test]
fn r3_a_first_fragment_that_passes_takes_its_number_over() {
    for [from, to] in ENDS {
        let packet = Packet::new(17, from, to);
        let world = revoked(&packet);
        let mut neighbour = packet.clone();
        neighbour.from.set_port(4001);
        let ([first, middle, _], [his, ..]) = (pieces(&packet), pieces(&neighbour));
        outer(&world, &first);
        assert_eq!(outer(&world, &middle), FRAGMENT);
        assert_eq!(outer(&world, &his), Verdict::Pass);
        assert_eq!(outer(&world, &middle), Verdict::Pass);
        // of something that has no ports, likewise; IPv4 tells such apart by itself
        outer(&world, &first);
        let other = Packet { protocol: 47, ..his.clone() };
        assert_eq!(outer(&world, &other), Verdict::Pass);
        assert_eq!(outer(&world, &middle), if from.starts_with('[') { Verdict::Pass } else { FRAGMENT });
    }
}

/// R1: what the first fragment does not show could be put together later.
#[test]
fn a_first_fragment_without_its_head_is_dropped_also_in_an_empty_world() {
    let world = Memory { netns: NETNS, ..Memory::default() };
    for [from, to] in ENDS {
        // too short for the token that may stand there
        let mut tiny = Packet { fragment: Some(0), ..Packet::new(17, from, to) };
        tiny.payload = vec![0; 80];
        assert_eq!(outer(&world, &tiny), FRAGMENT);
        // padding after the end of the packet does not count
        let mut padded = tiny.bytes();
        padded.resize(200, 0);
        assert_eq!(packets::outer(&world, padded.as_slice(), Framing::Ethernet), FRAGMENT);
        tiny.payload.resize(96, 0);
        assert_eq!(outer(&world, &tiny), Verdict::Pass);
        // TCP shows its ports in the smallest that there is
        let tcp = Packet { payload: Vec::new(), ..Packet::new(6, from, to) };
        assert_eq!(outer(&world, &Packet { fragment: Some(0), ..tcp }), Verdict::Pass);
    }
    // the next header, of whatever kind, is in the next fragment
    let [from, to] = ENDS[1];
    for (next, cut) in [(60_u8, 0), (60, 1), (43, 0), (51, 0), (44, 0), (17, 0), (6, 0)] {
        let mut bytes = Packet { extensions: vec![(60, 0)], ..Packet::new(6, from, to) }.bytes();
        // Ethernet, IPv6, and then a fragment header before the options
        bytes.splice(54..54, [60, 0, 0, 1, 0, 0, 0, 9]);
        (bytes[20], bytes[62]) = (44, next);
        bytes.truncate(70 + cut);
        let length = u16::try_from(bytes.len() - 54).unwrap();
        bytes[18..20].copy_from_slice(&length.to_be_bytes());
        let said = packets::outer(&world, bytes.as_slice(), Framing::Ethernet);
        assert_eq!(said, FRAGMENT, "{next}, and {cut} bytes of it");
        // padding that reads as a header of another protocol, or goes on with headers
        for next in [15, 17, 6, 60, 58] {
            let mut padded = bytes.clone();
            padded.resize(71, 0);
            padded[70] = if cut == 0 { next } else { padded[70] };
            padded.resize(bytes.len() + 200, 0);
            let said = packets::outer(&world, padded.as_slice(), Framing::Ethernet);
            assert_eq!(said, FRAGMENT, "{next}, and {cut} bytes of it, padded");
        }
    }
    // a datagram in one piece that has a fragment header all the same (RFC 6946)
    let mut whole = Packet { fragment: Some(0), last: true, ..Packet::new(17, from, to) };
    assert_eq!(outer(&world, &whole), Verdict::Pass);
    assert_eq!(outer(&revoked(&whole), &whole), Verdict::Drop(Reason::DroppedFlow));
    whole.payload.clear();
    assert_eq!(outer(&revoked(&whole), &whole), Verdict::Drop(Reason::DroppedFlow));
}

/// R1, R3: an error about a packet to the revoked client is dropped, whoever sends it; an error about another's is
/// not, and neither is what is no error.
#[test]
fn an_icmp_error_is_dropped_by_the_flow_that_it_quotes() {
    let error = Verdict::Drop(Reason::DroppedError);
    for ([from, to], protocol) in ENDS.into_iter().flat_map(|ends| [(ends, 6), (ends, 17)]) {
        let packet = Packet::new(protocol, from, to);
        let world = revoked(&packet);
        let v4 = packet.from.is_ipv4();
        let router = if v4 { "203.0.113.9" } else { "2001:db8:9::9" };
        let sent = packet.answer();
        let errors: &[u8] = if v4 { &[3, 4, 5, 11, 12] } else { &[1, 2, 3, 4] };
        for kind in 0..=255 {
            let expected = if errors.contains(&kind) { error } else { Verdict::Pass };
            assert_eq!(outer(&world, &sent.error(router, kind)), expected, "{kind}");
        }
        let kind = errors[0];
        // of another flow: another client port, another local port, the other protocol, the other way round
        let mut twins = vec![sent.clone(); 3];
        twins[0].to.set_port(4001);
        twins[1].from.set_port(444);
        twins[2].protocol = 23 - protocol;
        twins.push(packet.clone());
        for twin in &twins {
            assert_eq!(outer(&world, &twin.error(router, kind)), Verdict::Pass, "{twin:?}");
        }
        // quotes with options, of a first fragment; of a later one, there are no ports
        for shape in [Packet { options: 10, ..sent.clone() }, Packet { fragment: Some(0), ..sent.clone() }] {
            assert_eq!(outer(&world, &shape.error(router, kind)), error, "{shape:?}");
        }
        let later = Packet { fragment: Some(9), ..sent.clone() };
        assert_eq!(outer(&world, &later.error(router, kind)), Verdict::Pass);
        // cut off anywhere: eight bytes of the transport header are always there
        let whole = Packet { payload: Vec::new(), ..sent.clone() }.error(router, kind).bytes();
        let ports = whole.len() - if protocol == 6 { 20 } else { 8 } + 4;
        for length in 0..=whole.len() {
            let said = packets::outer(&world, &whole[..length], Framing::Ethernet);
            let expected = if length < ports { Verdict::PassCounted(Reason::PassedCutOff) } else { error };
            assert_eq!(said, expected, "{length}");
        }
        // an error about an error quotes no ports
        assert_eq!(outer(&world, &sent.error(router, kind).error(router, kind)), Verdict::Pass);
    }
}

/// What an event says of a packet.
#[test]
fn the_ends_of_a_packet_are_read_in_few_steps() {
    let read = |packet: &Packet, framing| {
        let mut words = [0_u32; packet::ENDS];
        let read = packet::ends(packet.bytes().as_slice(), framing, |at, word| words[at] = word);
        read.map(|()| words)
    };
    for (from, to) in [("192.0.2.1:4000", "198.51.100.1:443"), ("[2001:db8::1]:4000", "[2001:db8::2]:443")] {
        for (tags, framing) in [
            (None, Framing::Bare),
            (Some(vec![]), Framing::Ethernet),
            (Some(vec![0x88a8, 0x8100]), Framing::Ethernet),
        ] {
            let packet = Packet { tags, ..Packet::new(17, from, to) };
            let words = read(&packet, framing).unwrap();
            let Ok(Outer::Segment(segment, _)) = packet::outer(packet.bytes().as_slice(), framing) else {
                panic!("it is a segment")
            };
            let address = |at: usize| Address::v6([words[at], words[at + 1], words[at + 2], words[at + 3]]);
            assert_eq!((address(0), address(4)), (segment.source, segment.destination));
            let ports = u32::from(segment.source_port) | u32::from(segment.destination_port) << 16;
            assert_eq!((words[8], words[9]), (ports, 17));
            // a fragment has none to be relied on
            let fragment = Packet { fragment: Some(8), ..packet };
            assert_eq!(read(&fragment, framing).unwrap()[8..], [0, 0]);
        }
    }
    assert_eq!(
        packet::ends([0_u8; 14].as_slice(), Framing::Ethernet, |_, _| panic!("nothing is there")),
        None
    );
}
