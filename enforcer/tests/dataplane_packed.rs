//! The packed tables in the kernel: keys that somebody has chosen so that they meet, and a writer at work while programs
//! read. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

mod attached;
mod lab;
#[path = "../../enforcer-ebpf/tests/packets/mod.rs"]
mod packets;
mod traffic;

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use aya::maps::{Array, Map, MapData, MapInfo};
use enforcer::dataplane::{Dataplane, GateFacts, Role};
use enforcer::session::{Entry, Stands};
use enforcer_ebpf::layout::{self, AddressKey};
use enforcer_ebpf::packed::{self, HashKeys};
use lab::{Lab, ifindex, lab};
use packets::Packet;

const NONE: GateFacts = GateFacts { server: 0, moment: 0 };
const DROPPED: u32 = 2;

/// A gateway whose addresses are looked up, and what an attacker should not know of it.
struct World {
    dataplane: Dataplane,
    /// What leaves towards the LAN: it looks the source up.
    program: OwnedFd,
    secret: HashKeys,
    buckets: u32,
    netns: u32,
}

/// Where a key belongs: home, other bucket, tag.
type Places = (u32, u32, u16);

impl World {
    fn new(lab: &Lab, capacity: u32) -> Self {
        let mut dataplane = Dataplane::open(traffic::with(lab, capacity)).unwrap();
        dataplane.attach(None, lab.netns(), ifindex("gw"), "gw", Role::Inner).unwrap();
        let maps = lab.pin_path().join("maps");
        let secret = MapData::from_pin(maps.join(layout::HASH_KEYS)).unwrap();
        let secret: Array<_, HashKeys> = Array::try_from(Map::Array(secret)).unwrap();
        Self {
            dataplane,
            program: attached::programs(lab).remove("lan_out_ether").unwrap(),
            secret: secret.get(&0, 0).unwrap(),
            buckets: MapInfo::from_pin(maps.join(layout::ADDRESS_LINES)).unwrap().max_entries(),
            netns: lab.netns().0,
        }
    }

    fn places(&self, address: Ipv4Addr) -> Places {
        let key = AddressKey { address: std::net::IpAddr::from(address).into(), netns: self.netns };
        let hash = packed::hash(&key, |at| self.secret[at]);
        (packed::home(hash, self.buckets), packed::other(hash, self.buckets), packed::tag(hash))
    }

    /// So many addresses that belong where the first one does.
    fn alike(&self, count: usize, same: impl Fn(Places, Places) -> bool) -> Vec<Ipv4Addr> {
        let first = self.places(address(0));
        let all = (0..u32::MAX >> 1).map(address).filter(|one| same(self.places(*one), first));
        all.take(count).collect()
    }

    fn entry(&self, address: Ipv4Addr) -> Entry {
        Entry::Address(enforcer::session::Netns(self.netns), address.into())
    }

    fn revoke(&mut self, address: Ipv4Addr) {
        self.dataplane.insert(&self.entry(address), 1, Stands::Forever, NONE).unwrap();
    }

    fn lift(&mut self, address: Ipv4Addr) {
        assert!(self.dataplane.remove(&self.entry(address)).unwrap());
    }

    fn drops(&self, address: Ipv4Addr) -> bool {
        drops(&self.program, &frame(address))
    }
}

fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0b00_0000_u32.wrapping_add(number))
}

fn frame(from: Ipv4Addr) -> Vec<u8> {
    Packet::new(17, &format!("{from}:1"), "192.0.2.1:2").bytes()
}

fn drops(program: &OwnedFd, frame: &[u8]) -> bool {
    attached::test_run(program, frame).unwrap() == DROPPED
}

/// R1, R3: a tag is a hint. Of addresses with one tag in one bucket, those that are revoked are dropped, and no other.
#[test]
fn r1_r3_addresses_with_one_tag_in_one_bucket_are_told_apart() {
    lab(|lab| {
        let mut world = World::new(lab, 64);
        let same = world.alike(6, |(home, _, tag), (its, _, other)| home == its && tag == other);
        for revoked in [[0, 2, 4], [1, 3, 5]] {
            for at in revoked {
                world.revoke(same[at]);
            }
            for (at, address) in same.iter().enumerate() {
                assert_eq!(world.drops(*address), revoked.contains(&at), "{address}");
            }
            for at in revoked {
                world.lift(same[at]);
            }
        }
        assert!(same.iter().all(|address| !world.drops(*address)));
    });
}

/// R1, R3: more addresses for one place than there is room for. What goes into the plain map is dropped as well, and
/// once everything is lifted nobody is.
#[test]
fn r1_r3_a_flood_of_addresses_for_one_place() {
    lab(|lab| {
        let mut world = World::new(lab, 64);
        let same = world.alike(120, |(home, other, _), (its, that, _)| (home, other) == (its, that));
        let (revoked, strangers) = same.split_at(60);
        for address in revoked {
            world.revoke(*address);
        }
        let in_plain = MapData::from_pin(lab.pin_path().join("maps/addresses")).unwrap();
        let in_plain = aya::maps::HashMap::<_, [u32; 5], [u64; 4]>::try_from(Map::HashMap(in_plain)).unwrap();
        assert!(in_plain.keys().count() >= 30, "two buckets have thirty slots");
        assert!(revoked.iter().all(|address| world.drops(*address)));
        assert!(strangers.iter().all(|address| !world.drops(*address)));
        for (at, address) in revoked.iter().enumerate() {
            assert_eq!(world.dataplane.hits(&world.entry(*address)), Some(1), "{at}");
            world.lift(*address);
            assert!(!world.drops(*address));
            assert!(revoked[at + 1..].iter().all(|left| world.dataplane.hits(&world.entry(*left)).is_some()));
        }
        assert_eq!(in_plain.keys().count(), 0);
    });
}

/// R1, R3: while entries come and go in the same bucket and with the same tag, a program on another CPU always finds the
/// one that stays, and never one that was never there.
#[test]
fn r1_r3_a_program_never_sees_half_an_entry() {
    lab(|lab| {
        let mut world = World::new(lab, 64);
        let same = world.alike(8, |(home, _, tag), (its, _, other)| home == its && tag == other);
        let (stays, never) = (same[0], same[1]);
        world.revoke(stays);
        let done = AtomicBool::new(false);
        let seen = AtomicU64::new(0);
        let program = world.program.try_clone().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let frames = [(frame(stays), true), (frame(never), false)];
                while !done.load(Ordering::Relaxed) {
                    for (frame, expected) in &frames {
                        if drops(&program, frame) != *expected {
                            seen.store(u64::MAX, Ordering::Relaxed);
                            return;
                        }
                    }
                    seen.fetch_add(1, Ordering::Relaxed);
                }
            });
            let mut rounds = 0;
            // until the reader has looked often enough while somebody writes
            while rounds < 2_000 || seen.load(Ordering::Relaxed) < 20_000 {
                for address in &same[2..] {
                    world.revoke(*address);
                }
                for address in &same[2..] {
                    world.lift(*address);
                }
                rounds += 1;
            }
            done.store(true, Ordering::Relaxed);
        });
        assert_ne!(seen.into_inner(), u64::MAX, "a program saw what never was");
        assert!(world.drops(stays) && !world.drops(never));
    });
}
