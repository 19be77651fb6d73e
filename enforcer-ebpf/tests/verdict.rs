//! The parser and the verdict on the host: the very code that runs in the kernel.

mod packets;

use enforcer_ebpf::counters::Reason;
use enforcer_ebpf::layout::{DeviceKey, LEASE_NS, LEASED, Standing};
use enforcer_ebpf::packet::{Framing, Unread, addresses, segment};
use enforcer_ebpf::verdict::{self, Verdict};
use packets::{Memory, Packet, address, client_hello, forever, token};
use proptest::prelude::*;

const NETNS: u32 = 4_026_531_840;

fn frame_of(packet: &Packet) -> Framing {
    if packet.tags.is_some() { Framing::Ethernet } else { Framing::Bare }
}

fn outer(world: &Memory, packet: &Packet) -> Verdict {
    verdict::outer(world, packet.bytes().as_slice(), frame_of(packet))
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
                Packet { tags, from, to, protocol, options, extensions, fragment, payload }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let world = Memory::default();
        for framing in [Framing::Ethernet, Framing::Bare] {
            let _ = verdict::outer(&world, bytes.as_slice(), framing);
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
        if let Ok(read) = segment(cut, framing) {
            prop_assert_eq!(Ok(read), segment(whole.as_slice(), framing));
        } else {
            let cut_off = verdict::outer(&revoked(&packet), cut, framing);
            prop_assert_eq!(cut_off, Verdict::PassCounted(Reason::PassedCutOff));
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

        let mut other = id.clone();
        other[flip.index(id.len())] ^= 1;
        packet.payload = client_hello(&other);
        prop_assert_eq!(outer(&world, &packet), Verdict::Pass);
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
fn a_later_fragment_has_no_ports_and_passes() {
    for packet in [
        Packet::new(17, "192.0.2.1:4000", "198.51.100.1:443"),
        Packet::new(17, "[2001:db8::1]:4000", "[2001:db8::2]:443"),
    ] {
        let world = revoked(&packet);
        let first = Packet { fragment: Some(0), ..packet.clone() };
        assert_eq!(outer(&world, &first), Verdict::Drop(Reason::DroppedFlow));
        let later = Packet { fragment: Some(185), ..packet.clone() };
        assert_eq!(outer(&world, &later), Verdict::Pass);
    }
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
    assert_eq!(segment(odd.as_slice(), Framing::Ethernet), Err(Unread::Foreign));
    odd[14] = 0x44;
    assert_eq!(segment(odd.as_slice(), Framing::Ethernet), Err(Unread::Foreign), "a header of 16 bytes");
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
