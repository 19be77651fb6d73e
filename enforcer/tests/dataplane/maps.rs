//! The maps: their shape, their bounds, and what a later process takes over.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aya::maps::{Array, HashMap, Map, MapData, MapInfo};
use enforcer::dataplane::{Dataplane, GateFacts, GateMaps, InsertError, Role, Settings, StoredEntry};
use enforcer::session::{CutoffKey, Device, Entry, SafeId, ServerName, Stands, Token, TokenKind};
use enforcer_ebpf::layout::{self, MAPS};
use enforcer_ebpf::packed::TICK_NS;

use crate::lab::{GATEWAY, Lab, PEER, lab};
use crate::{NONE, attach, flow, person};

#[test]
fn the_maps_are_what_the_layout_says() {
    lab(|lab| {
        let dataplane = lab.open();
        for definition in MAPS {
            let info = MapInfo::from_pin(lab.pin_path().join("maps").join(definition.name)).unwrap();
            assert_eq!(info.key_size(), definition.key, "{}", definition.name);
            assert_eq!(info.value_size(), definition.value, "{}", definition.name);
            assert_eq!(info.map_type().unwrap() as u32, definition.kind as u32, "{}", definition.name);
            assert_eq!(info.map_flags(), definition.flags, "{}", definition.name);
        }
        assert!(dataplane.usage().iter().all(|usage| usage.used == 0));
        assert!(!dataplane.lapsed());
    });
}

#[test]
fn a_takeover_keeps_every_entry_and_leaks_no_packet() {
    lab(|lab| {
        let mut dataplane = lab.open();
        attach(&mut dataplane, lab, "gw", Role::Outer);
        let (server, client) = (lab.here(&format!("{GATEWAY}:443")), lab.far(&format!("{PEER}:4000")));
        let netns = lab.netns();
        let gate = GateFacts { server: 77, moment: 1_700_000_000 };
        let entries = [
            (flow(netns, &client, &server), Stands::Forever),
            (Entry::Address(netns, "10.9.0.9".parse().unwrap()), Stands::Leased),
            (Entry::Address(netns, "fd09::9".parse().unwrap()), Stands::Until(TICK_NS)),
            (Entry::Device(Device { netns, index: 99 }), Stands::Forever),
            (Entry::Token(Token::new(TokenKind::Dtls, vec![1, 2, 3]).unwrap()), Stands::Leased),
            (Entry::Token(Token::new(TokenKind::Openvpn, vec![4; 8]).unwrap()), Stands::Forever),
            (Entry::SafeId(SafeId::from_bytes([1; 20])), Stands::Forever),
            (Entry::Cutoff(CutoffKey::new(&ServerName::new("default"), "alice")), Stands::Forever),
            (Entry::Lock(person("default", "alice")), Stands::Until(54321)),
        ];
        for (number, (entry, stands)) in entries.iter().enumerate() {
            let facts = match entry {
                Entry::SafeId(_) | Entry::Cutoff(_) => gate,
                Entry::Lock(_) => GateFacts { server: 0, ..gate },
                _ => NONE,
            };
            dataplane.insert(entry, number as u64 + 1, *stands, facts).unwrap();
        }
        dataplane.set_next_revocation(42).unwrap();
        drop(dataplane);

        let stop = AtomicBool::new(false);
        let sent = std::thread::scope(|scope| {
            let flood = scope.spawn(|| {
                let to: SocketAddr = server.0.local_addr().unwrap();
                let mut sent = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    client.0.send_to(b"flood", to).unwrap();
                    sent += 1;
                }
                sent
            });
            // also when something below panics
            let stops = Stop(&stop);
            let mut before = 0;
            for _ in 0..5 {
                let mut dataplane = lab.open();
                attach(&mut dataplane, lab, "gw", Role::Outer);
                let latest = Instant::now() + Duration::from_secs(60);
                let hits = loop {
                    match dataplane.hits(&entries[0].0).unwrap() {
                        hits if hits > before => break hits,
                        hits => {
                            assert!(hits == before && Instant::now() < latest, "{before} hits became {hits}")
                        }
                    }
                };
                before = hits;
                assert_eq!(dataplane.next_revocation(), 42);
                let mut stored = dataplane.entries().unwrap();
                stored.sort_by_key(|stored| stored.revocation);
                assert_eq!(stored.len(), entries.len());
                for (number, (stored, (entry, stands))) in stored.iter().zip(&entries).enumerate() {
                    let StoredEntry { entry: is, revocation, stands: stood, gate: facts, .. } = stored;
                    assert_eq!((is, *revocation, stood), (entry, number as u64 + 1, stands));
                    assert!(*facts == NONE || facts.moment == gate.moment);
                }
            }
            drop(stops);
            flood.join().unwrap()
        });
        assert!(server.0.recv(&mut [0; 64]).is_err(), "a packet leaked");
        let dataplane = lab.open();
        // no more than was sent; less where the device's queue was full before a program saw it, and where two CPUs
        // dropped for the entry at the same moment
        let hits = dataplane.hits(&entries[0].0).unwrap();
        // the counter has a place for each CPU, and loses none
        let counters = dataplane.counters().unwrap();
        let dropped = counters.iter().find(|counter| counter.reason == "dropped-flow").unwrap().packets;
        assert!(hits <= dropped && dropped <= sent, "{hits} hits, {dropped} dropped of {sent} packets");
        assert_eq!(dataplane.entries().unwrap()[0].hits, hits);
        eprintln!("{sent} packets during five takeovers, {hits} counted, none leaked");
    });
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn refusal(lab: &Lab, settings: Settings) -> String {
    let error = Dataplane::open(settings).err().expect("this must be refused");
    assert!(lab.pin_path().join("maps/flows").exists(), "and nothing is taken away");
    format!("{error:#}")
}

#[test]
fn pins_of_another_shape_are_refused_in_a_clear_sentence() {
    lab(|lab| {
        drop(lab.open());
        let flows = lab.pin_path().join("maps/flows");
        std::fs::remove_file(&flows).unwrap();
        let narrow = HashMap::<MapData, [u32; 10], [u64; 4]>::create(64, layout::NO_PREALLOC).unwrap();
        narrow.pin(&flows).unwrap();
        let sentence = refusal(lab, lab.settings());
        assert!(sentence.contains("key size 40") && sentence.contains("expects 44"), "{sentence}");
        assert!(sentence.contains("enforcer unload"), "{sentence}");

        std::fs::remove_file(&flows).unwrap();
        drop(lab.open());
        let meta = MapData::from_pin(lab.pin_path().join("maps/meta")).unwrap();
        Array::<_, [u64; 2]>::try_from(Map::Array(meta)).unwrap().set(0, [9999, 0], 0).unwrap();
        let sentence = refusal(lab, lab.settings());
        assert!(sentence.contains("layout 9999") && sentence.contains("newer version"), "{sentence}");
        assert!(GateMaps::open(&lab.pin_path()).is_err());
    });
}

#[test]
fn a_full_table_says_so_and_evicts_nothing() {
    lab(|lab| {
        let mut dataplane = lab.open();
        let device = |index| Entry::Device(Device { netns: lab.netns(), index });
        let mut inserted = 0;
        let refused = loop {
            match dataplane.insert(&device(inserted + 1), 1, Stands::Forever, NONE) {
                Ok(()) => inserted += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, InsertError::Full { map: "devices", capacity: 4 }), "{refused}");
        assert_eq!(inserted, 4);
        assert_eq!(dataplane.entries().unwrap().len(), 4);
        let usage = dataplane.usage().into_iter().find(|usage| usage.name == "devices").unwrap();
        assert_eq!((usage.used, usage.capacity), (4, 4));
        // what is there can still be changed, and there is room after a removal
        dataplane.insert(&device(1), 2, Stands::Forever, NONE).unwrap();
        dataplane.remove(&device(2)).unwrap();
        dataplane.insert(&device(9), 1, Stands::Forever, NONE).unwrap();
    });
}
