//! OpenVPN's session ids on the host: the very code that runs in the kernel.

mod packets;

use enforcer_ebpf::counters::Reason;
use enforcer_ebpf::layout::{LEASE_NS, LEASED, Standing, TOKEN_DTLS, TokenKey};
use enforcer_ebpf::packet::Framing;
use enforcer_ebpf::verdict::Verdict;
use packets::{
    Memory, OPENVPN_CONTROL, OPENVPN_DATA, Packet, client_hello, forever, openvpn, openvpn_token, token,
};
use proptest::prelude::*;

const NETNS: u32 = 4_026_531_840;
const PORT: u16 = 1194;
const ID: [u8; 8] = [1, 2, 3, 4, 5, 6, 7, 8];
const OTHER: [u8; 8] = [1, 2, 3, 4, 5, 6, 7, 9];
const ENDS: [[&str; 2]; 2] =
    [["192.0.2.1:4000", "198.51.100.1:1194"], ["[2001:db8::1]:4000", "[2001:db8::2]:1194"]];
const DROPPED: Verdict = Verdict::Drop(Reason::DroppedToken);

fn outer(world: &Memory, packet: &Packet) -> Verdict {
    packets::outer(world, packet.bytes().as_slice(), Framing::Ethernet)
}

/// A world in which these ids are revoked.
fn revoked(ids: &[[u8; 8]]) -> Memory {
    let tokens = ids.iter().map(|id| (openvpn_token(id), forever(9))).collect();
    Memory { netns: NETNS, openvpn: vec![PORT], tokens, ..Memory::default() }
}

fn control([from, to]: [&str; 2], id: [u8; 8]) -> Packet {
    Packet { payload: openvpn(7, 0, &id), ..Packet::new(17, from, to) }
}

fn data(ends: [&str; 2]) -> Packet {
    Packet { payload: openvpn(9, 0, &[0; 8]), ..control(ends, ID) }
}

fn learned(world: &Memory) -> Vec<TokenKey> {
    world.learned.borrow().values().copied().collect()
}

proptest! {
    /// R1, R3: from wherever it comes; and every twin of it passes.
    #[test]
    fn r1_r3_a_session_id_hits_whole_and_no_other_does(
        opcode in prop::sample::select(OPENVPN_CONTROL.to_vec()),
        key in 0..8_u8,
        id in any::<[u8; 8]>(),
        rest in prop::collection::vec(any::<u8>(), 0..200),
        bit in 0..64_usize,
        from in any::<(u32, u16)>(),
        ends in prop::sample::select(ENDS.to_vec()),
    ) {
        let mut packet = control(ends, id);
        if packet.from.is_ipv4() {
            packet.from.set_ip(std::net::Ipv4Addr::from_bits(from.0).into());
        }
        packet.from.set_port(from.1);
        let payload = |opcode: u8, id: &[u8]| [&[opcode << 3 | key], id, &rest].concat();
        packet.payload = payload(opcode, &id);
        let world = revoked(&[id]);
        prop_assert_eq!(outer(&world, &packet), DROPPED);
        prop_assert_eq!(world.hits.take(), vec![9]);
        prop_assert!(learned(&world).is_empty(), "what is dropped is not learned");

        let mut other = id;
        other[bit / 8] ^= 1 << (bit % 8);
        let twin = Packet { payload: payload(opcode, &other), ..packet.clone() };
        prop_assert_eq!(outer(&world, &twin), Verdict::Pass);
        let said = world.learned.take().into_iter().collect::<Vec<_>>();
        prop_assert_eq!(said, vec![(packet.flow(NETNS), openvpn_token(&other))]);

        // the same bytes at another port, over TCP, without any port of OpenVPN's; as an answer from that port
        let mut twins = vec![packet.clone(); 2];
        twins[0].to.set_port(PORT + 1);
        twins[1].protocol = 6;
        twins.push(Packet { payload: packet.payload.clone(), ..packet.answer() });
        for twin in twins.iter().filter(|twin| twin.to.port() != PORT || twin.protocol != 17) {
            prop_assert_eq!(outer(&world, twin), Verdict::Pass);
        }
        let none = Memory { openvpn: Vec::new(), ..revoked(&[id]) };
        prop_assert_eq!(outer(&none, &packet), Verdict::Pass);
        prop_assert!(learned(&world).is_empty() && learned(&none).is_empty());
    }

    /// What is no control packet shows no id, whatever bytes stand there.
    #[test]
    fn r3_no_other_opcode_shows_an_id(opcode in 0..32_u8, key in 0..8_u8, id in any::<[u8; 8]>()) {
        prop_assume!(!OPENVPN_CONTROL.contains(&opcode));
        let world = revoked(&[id]);
        let packet = Packet { payload: openvpn(opcode, key, &id), ..control(ENDS[0], id) };
        prop_assert_eq!(outer(&world, &packet), Verdict::Pass);
        prop_assert!(learned(&world).is_empty());
    }

    /// The eight bytes of one kind are none of the other, and one port may have both.
    #[test]
    fn r3_a_token_is_of_one_kind(id in any::<[u8; 8]>()) {
        let mut world = revoked(&[]);
        let hello = Packet { payload: client_hello(&id), ..control(ENDS[0], id) };
        world.tokens.insert(token(&id), forever(1));
        prop_assert_eq!(outer(&world, &control(ENDS[0], id)), Verdict::Pass);
        prop_assert_eq!(outer(&world, &hello), DROPPED);
        world.tokens = revoked(&[id]).tokens;
        prop_assert_eq!(outer(&world, &control(ENDS[0], id)), DROPPED);
        prop_assert_eq!(outer(&world, &hello), Verdict::Pass);
        prop_assert_eq!(learned(&world), vec![TokenKey::new(TOKEN_DTLS, &id).unwrap()]);
    }
}

/// R1, R3, R4: data has no id, and goes the way of the one that its flow has shown last.
#[test]
fn r1_r3_r4_data_goes_the_way_of_what_its_flow_has_shown() {
    for ends in ENDS {
        let mut world = revoked(&[OTHER]);
        let (hello, data) = (control(ends, ID), data(ends));
        let neighbour = |packet: &Packet| {
            let mut packet = packet.clone();
            packet.from.set_port(4001);
            packet
        };
        assert_eq!(outer(&world, &data), Verdict::Pass, "nothing was shown");
        assert_eq!(outer(&world, &hello), Verdict::Pass);
        assert_eq!(outer(&world, &neighbour(&control(ends, [7; 8]))), Verdict::Pass);
        assert_eq!(outer(&world, &data), Verdict::Pass, "what was shown is not revoked");
        world.tokens = revoked(&[ID]).tokens;
        world.hits.take();
        for opcode in OPENVPN_DATA {
            let data = Packet { payload: openvpn(opcode, 3, &[0; 8]), ..data.clone() };
            assert_eq!(outer(&world, &data), DROPPED);
            assert_eq!(outer(&world, &neighbour(&data)), Verdict::Pass);
        }
        assert_eq!(world.hits.take(), [9, 9], "counted as the token's");
        // every twin of its flow: another port of ours, TCP, another namespace
        let mut twins = vec![data.clone(); 2];
        twins[0].to.set_port(PORT + 1);
        twins[1].protocol = 6;
        for twin in &twins {
            assert_eq!(outer(&world, twin), Verdict::Pass, "{twin:?}");
        }
        world.netns += 1;
        assert_eq!(outer(&world, &data), Verdict::Pass);
        world.netns -= 1;
        // a port that is not OpenVPN's any more
        world.openvpn.clear();
        assert_eq!(outer(&world, &data), Verdict::Pass);
        world.openvpn.push(PORT);
        // the same id again is dropped and changes nothing; a new one from the very same port is let in
        assert_eq!(outer(&world, &hello), DROPPED);
        assert_eq!(outer(&world, &data), DROPPED);
        assert_eq!(outer(&world, &control(ends, [8; 8])), Verdict::Pass);
        assert_eq!(outer(&world, &data), Verdict::Pass, "R4");
    }
}

/// A token's time and lease are its flows' data's as well.
#[test]
fn r1_data_is_dropped_as_long_as_the_token_is() {
    let mut world = revoked(&[]);
    assert_eq!(outer(&world, &control(ENDS[0], ID)), Verdict::Pass);
    let stand = |world: &mut Memory, expires_ns| {
        world.tokens.insert(openvpn_token(&ID), Standing { expires_ns, ..forever(1) });
    };
    stand(&mut world, 50);
    world.now_ns = 49;
    assert_eq!(outer(&world, &data(ENDS[0])), DROPPED);
    world.now_ns = 50;
    assert_eq!(outer(&world, &data(ENDS[0])), Verdict::PassCounted(Reason::PassedExpired));
    stand(&mut world, LEASED);
    assert_eq!(outer(&world, &data(ENDS[0])), DROPPED);
    world.now_ns = LEASE_NS;
    assert_eq!(outer(&world, &data(ENDS[0])), Verdict::PassCounted(Reason::PassedLapsed));
    world.tokens.clear();
    assert_eq!(outer(&world, &data(ENDS[0])), Verdict::Pass, "lifted");
}

/// A flow that is dropped is dropped first.
#[test]
fn a_revoked_flow_counts_before_its_token() {
    let mut world = revoked(&[ID]);
    let hello = control(ENDS[0], ID);
    world.flows.insert(hello.flow(NETNS), forever(1));
    for packet in [hello, data(ENDS[0])] {
        assert_eq!(outer(&world, &packet), Verdict::Drop(Reason::DroppedFlow));
    }
}

/// Cut off at every byte: nothing is read that is not there.
#[test]
fn a_session_id_that_is_cut_off_is_none() {
    for ends in ENDS {
        let world = revoked(&[ID]);
        let whole = control(ends, ID).bytes();
        let udp = whole.len() - 108;
        for length in 0..=whole.len() {
            let said = packets::outer(&world, &whole[..length], Framing::Ethernet);
            let expected = match length {
                _ if length < udp + 4 => Verdict::PassCounted(Reason::PassedCutOff),
                _ if length < udp + 8 + 1 + 8 => Verdict::Pass,
                _ => DROPPED,
            };
            assert_eq!(said, expected, "{length}");
        }
        // of data one byte is enough
        assert_eq!(outer(&revoked(&[]), &control(ends, ID)), Verdict::Pass);
        world.learned.borrow_mut().insert(control(ends, ID).flow(NETNS), openvpn_token(&ID));
        let whole = data(ends).bytes();
        for (length, expected) in [(udp + 8, Verdict::Pass), (udp + 9, DROPPED)] {
            assert_eq!(packets::outer(&world, &whole[..length], Framing::Ethernet), expected);
        }
    }
}

/// R1: no first fragment passes that hides the id, and of one that is dropped the others are, too.
#[test]
fn r1_an_id_does_not_hide_in_fragments() {
    let fragment = Verdict::Drop(Reason::DroppedFragment);
    for ends in ENDS {
        for world in [revoked(&[]), revoked(&[ID])] {
            // offsets count in eights: the first fragment could end after the UDP header, and in the middle of the id
            for length in [8, 16, 24] {
                let mut tiny = Packet { fragment: Some(0), ..control(ends, ID) };
                tiny.payload.truncate(length - 8);
                assert_eq!(outer(&world, &tiny), fragment, "{length}");
            }
        }
        for (first, expected) in [(control(ends, ID), DROPPED), (control(ends, OTHER), Verdict::Pass)] {
            let world = revoked(&[ID]);
            let first = Packet { fragment: Some(0), ..first };
            let last = Packet { fragment: Some(13), last: true, ..first.clone() };
            assert_eq!(outer(&world, &first), expected);
            let rest = if expected == DROPPED { fragment } else { Verdict::Pass };
            assert_eq!(outer(&world, &last), rest);
        }
        // data in fragments likewise
        let world = revoked(&[ID]);
        world.learned.borrow_mut().insert(control(ends, ID).flow(NETNS), openvpn_token(&ID));
        let first = Packet { fragment: Some(0), ..data(ends) };
        let last = Packet { fragment: Some(13), last: true, ..first.clone() };
        assert_eq!([outer(&world, &first), outer(&world, &last)], [DROPPED, fragment]);
    }
}
