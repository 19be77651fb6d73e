//! First drops: what the programs tell of one by one, and what they keep to themselves. Needs root; every test has
//! namespaces and a bpffs of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

mod attached;
mod lab;
#[path = "../../enforcer-ebpf/tests/packets/mod.rs"]
mod packets;
mod traffic;

use std::net::{Ipv4Addr, SocketAddr};

use attached::{programs, test_run};
use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData, MapInfo};
use enforcer::dataplane::{Dataplane, Dropped, Drops, GateFacts, Role, Settings, Untold};
use enforcer::session::{Device, Entry, Stands};
use enforcer_ebpf::events::{AT_ONCE, Budget, QUIET_NS, RING_BYTES};
use enforcer_ebpf::layout::{self, DeviceKey, Standing};
use lab::{CLIENT, GATEWAY, Lab, OTHER, PEER, Tun, ifindex, lab};
use packets::Packet;
use traffic::{address, flow, with};

const NONE: GateFacts = GateFacts { server: 0, moment: 0 };

fn attach(dataplane: &mut Dataplane, lab: &Lab, name: &str, role: Role) {
    dataplane.attach(None, lab.netns(), ifindex(name), name, role).unwrap();
}

fn told(drops: &mut Drops) -> Vec<Dropped> {
    std::iter::from_fn(|| drops.next_drop()).collect()
}

/// The only one that was told.
#[track_caller]
fn one(drops: &mut Drops) -> Dropped {
    let all = told(drops);
    assert_eq!(all.len(), 1, "{all:?}");
    all.into_iter().next().unwrap()
}

/// R6, R3: the first packet that an entry drops is told, with its flow; the ones after it are not, nor is any of a
/// neighbour's.
#[test]
fn r6_r3_the_first_drop_of_a_flow_is_told_once() {
    lab(|lab| {
        let mut dataplane = lab.open();
        attach(&mut dataplane, lab, "gw", Role::Outer);
        dataplane.allow_drops().unwrap();
        let mut drops = dataplane.drops().unwrap();
        for (number, (here, there)) in [(GATEWAY, PEER), ("[fd00::1]", "[fd00::2]")].into_iter().enumerate() {
            let (server, client) = (lab.here(&format!("{here}:443")), lab.far(&format!("{there}:4000")));
            let neighbour = lab.far(&format!("{there}:4001"));
            let entry = flow(lab.netns(), &client, &server);
            let number = number as u64 + 7;
            dataplane.insert(&entry, number, Stands::Forever, NONE).unwrap();
            assert!(neighbour.reaches(&server), "a neighbour behind the same address");
            assert_eq!(told(&mut drops), []);
            for _ in 0..3 {
                client.0.send_to(b"hello", server.0.local_addr().unwrap()).unwrap();
            }
            assert!(!client.reaches(&server) && neighbour.reaches(&server));
            let drop = one(&mut drops);
            assert_eq!((drop.reason, drop.again), ("dropped-flow", false));
            assert_eq!(drop.device, Device { netns: lab.netns(), index: ifindex("gw") });
            assert_eq!(drop.entry, Some(entry.clone()));
            let ends = [&client, &server].map(|end| end.0.local_addr().unwrap().to_string());
            assert_eq!(drop.packet.unwrap().to_string(), format!("udp {} -> {}", ends[0], ends[1]));
            assert_eq!(dataplane.revocation_of(&entry), Some(number));
            // another revocation of the same: that is news
            dataplane.insert(&entry, number + 100, Stands::Forever, NONE).unwrap();
            assert!(!client.reaches(&server));
            assert_eq!(one(&mut drops).entry, Some(entry));
        }
        assert_eq!(dataplane.untold().unwrap(), Untold::default());
    });
}

/// R6, R3: likewise of an address on the inner side, in both directions, and of a tunnel device.
#[test]
fn r6_r3_the_first_drop_of_an_address_and_of_a_device_is_told_once() {
    lab(|lab| {
        let mut dataplane = lab.open();
        let mut tun = Tun::new("tun0");
        attach(&mut dataplane, lab, "gw", Role::Inner);
        attach(&mut dataplane, lab, "tun0", Role::Tunnel);
        dataplane.allow_drops().unwrap();
        let mut drops = dataplane.drops().unwrap();
        let (client, other) = (lab.here(&format!("{CLIENT}:5000")), lab.here(&format!("{OTHER}:5000")));
        let lan = lab.far(&format!("{PEER}:80"));
        let mut reasons = ["dropped-address-from", "dropped-address-to"].into_iter();
        for (from, to) in [(&client, &lan), (&lan, &client)] {
            let entry = address(lab.netns(), CLIENT);
            dataplane.insert(&entry, 3, Stands::Forever, NONE).unwrap();
            assert!(other.reaches(&lan) && lan.reaches(&other));
            assert_eq!(told(&mut drops), [], "a neighbour's");
            assert!(!from.reaches(to) && !from.reaches(to));
            let reason = reasons.next().unwrap();
            let drop = one(&mut drops);
            assert_eq!((drop.reason, drop.device.index), (reason, ifindex("gw")));
            let ends = [from, to].map(|end| end.0.local_addr().unwrap().to_string());
            assert_eq!(drop.packet.unwrap().to_string(), format!("udp {} -> {}", ends[0], ends[1]));
            assert_eq!(drop.entry.as_ref(), Some(&entry));
            assert!(dataplane.remove(&entry).unwrap());
        }
        let device = Device { netns: lab.netns(), index: ifindex("tun0") };
        dataplane.insert(&Entry::Device(device), 9, Stands::Forever, NONE).unwrap();
        let packet = Packet { tags: None, ..Packet::new(17, "10.8.0.2:4000", "10.8.0.1:443") };
        for _ in 0..3 {
            tun.send(&packet.bytes());
        }
        let drop = one(&mut drops);
        assert_eq!((drop.reason, drop.revocation, drop.again), ("dropped-device-in", Some(9), false));
        assert_eq!(drop.entry, Some(Entry::Device(device)));
        assert_eq!(drop.packet.unwrap().to_string(), "udp 10.8.0.2:4000 -> 10.8.0.1:443");

        // a minute of silence, as the map tells it
        let map = MapData::from_pin(lab.pin_path().join("maps").join(layout::DEVICES)).unwrap();
        let mut map = HashMap::<_, Raw<DeviceKey>, Raw<Standing>>::try_from(Map::HashMap(map)).unwrap();
        let key = Raw(DeviceKey { netns: lab.netns().0, ifindex: device.index });
        for (quiet, events) in [(QUIET_NS / 2, 0), (QUIET_NS + 1_000_000_000, 1)] {
            let Raw(standing) = map.get(&key, 0).unwrap();
            let last_ns = Dataplane::kernel_monotonic_ns() - quiet;
            map.insert(key, Raw(Standing { last_ns, ..standing }), 0).unwrap();
            tun.send(&packet.bytes());
            tun.send(&packet.bytes());
            let all = told(&mut drops);
            assert_eq!(all.len(), events, "{all:?}");
            assert!(all.iter().all(|drop| drop.again));
        }
    });
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Raw<T>(T);
// SAFETY: of the shared layout, without padding.
unsafe impl<T: Copy + 'static> Pod for Raw<T> {}

/// Revokes so many addresses and drops one packet to each.
fn drop_each(lab: &Lab, dataplane: &mut Dataplane, first: u32, count: u32) {
    let lan_in = &programs(lab)["lan_in_ether"];
    for number in first..first + count {
        let ip = Ipv4Addr::from(0x0b00_0000 + number);
        dataplane.insert(&Entry::Address(lab.netns(), ip.into()), 1, Stands::Forever, NONE).unwrap();
        let to: SocketAddr = SocketAddr::new(ip.into(), 80);
        let packet = Packet::new(17, &format!("{PEER}:1"), &to.to_string());
        assert_eq!(test_run(lan_in, &packet.bytes()), Some(2), "{ip} is dropped");
    }
}

/// R7, R6: of a flood no more are told than are allowed, the rest is counted; and once the reader has looked, there is
/// room for as many again.
#[test]
fn r7_r6_a_flood_of_first_drops_is_bounded_and_the_rest_is_counted() {
    lab(|lab| {
        let mut dataplane = Dataplane::open(Settings { ..with(lab, 4_000) }).unwrap();
        attach(&mut dataplane, lab, "gw", Role::Inner);
        let mut drops = dataplane.drops().unwrap();
        drop_each(lab, &mut dataplane, 0, 5);
        assert_eq!(told(&mut drops), [], "nobody reads, as far as the programs know");
        let bound = AT_ONCE as u32;
        let before = dataplane.untold().unwrap().suppressed;
        assert_eq!(before, 5);
        dataplane.allow_drops().unwrap();
        drop_each(lab, &mut dataplane, 1_000, 3 * bound);
        // the same second
        dataplane.allow_drops().unwrap();
        drop_each(lab, &mut dataplane, 2_000, 10);
        let all = told(&mut drops);
        // a slow machine may have come into the next second
        assert!([bound as usize, bound as usize + 10].contains(&all.len()), "{}", all.len());
        let suppressed = dataplane.untold().unwrap().suppressed - before;
        assert_eq!(suppressed + all.len() as u64, u64::from(3 * bound) + 10, "each is told or counted");
        // a new process goes on counting where this one has ended, and lets them speak again
        drop(drops);
        drop(dataplane);
        let mut dataplane = Dataplane::open(with(lab, 4_000)).unwrap();
        attach(&mut dataplane, lab, "gw", Role::Inner);
        let mut drops = dataplane.drops().unwrap();
        dataplane.allow_drops().unwrap();
        assert_eq!(dataplane.untold().unwrap().suppressed - before, suppressed);
        drop_each(lab, &mut dataplane, 3_000, 10);
        assert_eq!(told(&mut drops).len(), 10);
    });
}

/// R6: what finds the ring full is counted as lost; every drop is told, or counted.
#[test]
fn r6_a_ring_that_is_full_says_how_many_it_lost() {
    lab(|lab| {
        let mut dataplane = Dataplane::open(with(lab, 4_000)).unwrap();
        attach(&mut dataplane, lab, "gw", Role::Inner);
        let map = MapData::from_pin(lab.pin_path().join("maps").join(layout::EVENT_BUDGET)).unwrap();
        let mut budget = Array::<_, Raw<Budget>>::try_from(Map::Array(map)).unwrap();
        budget.set(0, Raw(Budget { allowed: u64::MAX, ..Budget::default() }), 0).unwrap();
        let room = RING_BYTES / 80;
        let count = room + 50;
        drop_each(lab, &mut dataplane, 0, count);
        let Untold { suppressed, lost } = dataplane.untold().unwrap();
        assert!(suppressed == 0 && lost > 0, "{suppressed} {lost}");
        let mut drops = dataplane.drops().unwrap();
        assert_eq!(told(&mut drops).len() as u64 + lost, u64::from(count));
    });
}

/// R5: pins of a version that did not tell of drops are taken over: what is dropped stays so, and is told of from then on.
#[test]
fn r5_r6_pins_without_these_maps_are_taken_over() {
    lab(|lab| {
        let mut dataplane = lab.open();
        attach(&mut dataplane, lab, "gw", Role::Outer);
        let (server, client) = (lab.here(&format!("{GATEWAY}:443")), lab.far(&format!("{PEER}:4000")));
        let neighbour = lab.far(&format!("{PEER}:4001"));
        let entry = flow(lab.netns(), &client, &server);
        dataplane.insert(&entry, 1, Stands::Forever, NONE).unwrap();
        drop(dataplane);
        for name in [layout::EVENTS, layout::EVENT_BUDGET, layout::PROBED] {
            std::fs::remove_file(lab.pin_path().join("maps").join(name)).unwrap();
        }
        assert!(!client.reaches(&server));
        let mut dataplane = lab.open();
        dataplane.allow_drops().unwrap();
        let mut drops = dataplane.drops().unwrap();
        // it was hit before; of another revocation it is the first
        dataplane.insert(&entry, 2, Stands::Forever, NONE).unwrap();
        assert!(!client.reaches(&server) && neighbour.reaches(&server));
        assert_eq!(one(&mut drops).entry, Some(entry));
        assert!(dataplane.prove().is_empty(), "this process has attached nothing yet");
        attach(&mut dataplane, lab, "gw", Role::Outer);
        let proofs = dataplane.prove();
        assert!(
            proofs.len() == 1 && proofs[0].wrong.is_empty() && proofs[0].untried.is_empty(),
            "{proofs:?}"
        );
    });
}

/// R6: a table that grows tells nobody's drops anew.
#[test]
fn r6_a_table_that_grows_tells_no_drop_twice() {
    lab(|lab| {
        let settings = || with(lab, 100_000);
        let mut dataplane = Dataplane::open(settings()).unwrap();
        attach(&mut dataplane, lab, "gw", Role::Inner);
        dataplane.allow_drops().unwrap();
        let mut drops = dataplane.drops().unwrap();
        let (client, lan) = (lab.here(&format!("{CLIENT}:5000")), lab.far(&format!("{PEER}:80")));
        let entry = address(lab.netns(), CLIENT);
        dataplane.insert(&entry, 1, Stands::Forever, NONE).unwrap();
        assert!(!client.reaches(&lan));
        assert_eq!(one(&mut drops).entry, Some(entry));
        for number in 0..17_000 {
            let ip = Ipv4Addr::from(0x0b00_0000 + number);
            dataplane.insert(&Entry::Address(lab.netns(), ip.into()), 2, Stands::Forever, NONE).unwrap();
        }
        assert!(!client.reaches(&lan));
        assert_eq!(told(&mut drops), []);
        drop_each(lab, &mut dataplane, 20_000, 1);
        assert_eq!(told(&mut drops).len(), 1, "and what is new is told in the same ring");
    });
}

/// What bpftool shows: names in full, of at most 15 characters.
#[test]
fn maps_and_programs_have_their_own_names() {
    lab(|lab| {
        let mut dataplane = lab.open();
        let _tun = Tun::new("tun0");
        for (device, role) in
            [("gw", Role::Outer), ("gw", Role::Inner), ("tun0", Role::Tunnel), ("tun0", Role::Outer)]
        {
            attach(&mut dataplane, lab, device, role);
        }
        for definition in layout::MAPS {
            let info = MapInfo::from_pin(lab.pin_path().join("maps").join(definition.name)).unwrap();
            assert_eq!(info.name_as_str(), Some(definition.name), "as its pin");
        }
        let names: Vec<String> = programs(lab).into_keys().collect();
        let expected =
            ["lan_in_ether", "lan_out_ether", "outer_bare", "outer_ether", "tun_in_bare", "tun_out_bare"];
        assert_eq!(names, expected);
    });
}
