//! R5: other capacities and another layout take the place of what is in force, with no packet between. Needs root;
//! every test has namespaces and a bpffs of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

mod lab;
mod past;
mod traffic;

use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aya::maps::MapInfo;
use enforcer::dataplane::{
    Dataplane, GateFacts, GateMaps, Role, Settings, StoredEntry, TcPreference, XdpPreference,
};
use enforcer::session::{
    CutoffKey, Device, Entry, Identity, LockKey, SafeId, ServerName, Stands, Token, TokenKind,
};
use enforcer_ebpf::layout::{
    self, AddressKey, CutoffValue, DeviceKey, FOREVER, FlowKey, LEASED, LockValue, SafeIdValue, TOKEN_DTLS,
    TokenKey, UDP,
};
use enforcer_ebpf::packed::TICK_NS;
use lab::{CLIENT, ifindex, lab};
use past::Past;
use traffic::{Traffic, address, attach, flow, is_tidy, with};

const NONE: GateFacts = GateFacts { server: 0, moment: 0 };

fn alice() -> LockKey {
    LockKey::new(&Identity { realm: "default".into(), name: "alice".into() })
}

fn sorted(dataplane: &Dataplane) -> Vec<StoredEntry> {
    let mut all = dataplane.entries().unwrap();
    all.sort_by_key(|stored| stored.revocation);
    all
}

fn packets_by(dataplane: &Dataplane, reason: &str) -> u64 {
    dataplane.counters().unwrap().iter().find(|counter| counter.reason == reason).unwrap().packets
}

fn capacity_up_and_down(xdp: XdpPreference, tc: TcPreference, how: [&'static str; 2]) {
    lab(move |lab| {
        let settings = |each| Settings { xdp, tc, ..with(lab, each) };
        let mut dataplane = Dataplane::open(settings(64)).unwrap();
        attach(&mut dataplane, lab);
        let attached: Vec<_> = dataplane.attachments().into_iter().map(|one| one.how).collect();
        assert_eq!(attached, how);
        // and a device in another namespace
        let far = lab::number(&lab.peer);
        let index = lab.there(|| ifindex("peer"));
        for role in [Role::Outer, Role::Inner] {
            dataplane.attach(Some(lab.peer.as_fd()), far, index, "peer", role).unwrap();
        }
        let traffic = Traffic::new(lab);
        let theirs = flow(far, &traffic.server, &traffic.neighbour);
        let gate = GateFacts { server: 77, moment: 1_700_000_000 };
        let entries = [
            (traffic.entries(lab)[0].clone(), Stands::Forever, NONE),
            (traffic.entries(lab)[1].clone(), Stands::Leased, NONE),
            (address(lab.netns(), "fd09::9"), Stands::Until(TICK_NS), NONE),
            (Entry::Device(Device { netns: lab.netns(), index: 99 }), Stands::Forever, NONE),
            (Entry::Token(Token::new(TokenKind::Dtls, vec![1, 2, 3]).unwrap()), Stands::Leased, NONE),
            (Entry::SafeId(SafeId::from_bytes([1; 20])), Stands::Forever, gate),
            (Entry::Cutoff(CutoffKey::new(&ServerName::new("default"), "alice")), Stands::Forever, gate),
            (Entry::Lock(alice()), Stands::Until(54321), GateFacts { server: 0, ..gate }),
            (theirs.clone(), Stands::Forever, NONE),
            (traffic.entries(lab)[2].clone(), Stands::Forever, NONE),
        ];
        for (number, (entry, stands, facts)) in entries.iter().enumerate() {
            dataplane.insert(entry, number as u64 + 1, *stands, *facts).unwrap();
        }
        dataplane.count_gate_hit(&entries[5].0);
        dataplane.set_next_revocation(42).unwrap();
        dataplane.beat().unwrap();
        traffic.is_dropped();
        assert!(!traffic.server.reaches(&traffic.neighbour), "in the other namespace");
        let before = packets_by(&dataplane, "dropped-flow");
        let hits_before = dataplane.hits(&entries[9].0).unwrap();
        drop(dataplane);

        let rounds = [128, 16, 1000, 9, 64];
        let sent = traffic.flood(Duration::ZERO, || {
            for each in rounds {
                // nothing is attached here: what hangs gets new programs all the same
                let dataplane = Dataplane::open(settings(each)).unwrap();
                assert_eq!(dataplane.next_revocation(), 42);
                assert!(!dataplane.lapsed());
                let stored = sorted(&dataplane);
                assert_eq!(stored.len(), entries.len());
                for (number, (stored, (entry, stands, facts))) in stored.iter().zip(&entries).enumerate() {
                    let is = (&stored.entry, stored.revocation, &stored.stands, &stored.gate);
                    assert_eq!(is, (entry, number as u64 + 1, stands, facts));
                }
                assert_eq!(dataplane.hits(&entries[5].0), Some(1));
                let usage = dataplane.usage();
                assert!(usage.iter().all(|usage| usage.capacity == u64::from(each)), "{usage:?}");
                is_tidy(lab);
            }
        });
        let mut dataplane = Dataplane::open(settings(64)).unwrap();
        let counted = packets_by(&dataplane, "dropped-flow") - before;
        assert_eq!(counted, sent[0], "the counters miss nothing");
        let hits = dataplane.hits(&entries[9].0).unwrap() - hits_before;
        let missed = sent[0] - hits;
        assert!(missed <= 10 * rounds.len() as u64, "{missed} of {} hits were lost", sent[0]);
        eprintln!("{sent:?} packets during {} migrations, none leaked; {missed} hits missed", rounds.len());

        // the programs look into the maps that count now
        traffic.is_dropped();
        assert!(!traffic.server.reaches(&traffic.neighbour));
        for entry in [&entries[0].0, &entries[1].0, &entries[9].0, &theirs] {
            assert!(dataplane.remove(entry).unwrap());
        }
        traffic.passes();
        assert!(traffic.server.reaches(&traffic.neighbour));
        let report = Dataplane::unload(&lab.pin_path()).unwrap();
        assert_eq!((report.links + report.filters, report.left), (6, Vec::new()));
    });
}

#[test]
fn r5_capacity_up_and_down_with_tcx() {
    capacity_up_and_down(XdpPreference::Native, TcPreference::Tcx, ["xdp native", "tcx"]);
}

#[test]
fn r5_capacity_up_and_down_with_clsact() {
    capacity_up_and_down(XdpPreference::Generic, TcPreference::Clsact, ["xdp generic", "clsact"]);
}

/// R7: nothing that stands is given up for a smaller table.
#[test]
fn r7_a_capacity_below_what_is_in_use_is_refused_and_names_the_number() {
    lab(|lab| {
        let mut dataplane = Dataplane::open(with(lab, 64)).unwrap();
        attach(&mut dataplane, lab);
        let traffic = Traffic::new(lab);
        for entry in traffic.entries(lab) {
            dataplane.insert(&entry, 1, Stands::Forever, NONE).unwrap();
        }
        for last in 1..=9 {
            dataplane
                .insert(&address(lab.netns(), &format!("10.9.9.{last}")), 2, Stands::Forever, NONE)
                .unwrap();
        }
        drop(dataplane);
        let sentence = format!("{:#}", Dataplane::open(with(lab, 9)).err().expect("refused"));
        assert!(sentence.contains("addresses holds 10") && sentence.contains("room for 9"), "{sentence}");
        is_tidy(lab);
        traffic.is_dropped();
        let dataplane = Dataplane::open(with(lab, 10)).unwrap();
        assert_eq!(dataplane.entries().unwrap().len(), 12);
        traffic.is_dropped();
    });
}

fn layout(abi: u32, clsact: bool) {
    lab(move |lab| {
        let (netns, far) = (lab.netns(), lab::number(&lab.peer));
        let traffic = Traffic::new(lab);
        let key = |entry: &Entry| match entry {
            Entry::Flow(netns, flow) => FlowKey {
                client: flow.client().ip().into(),
                local: flow.local().ip().into(),
                client_port: flow.client().port().to_be(),
                local_port: flow.local().port().to_be(),
                protocol: UDP,
                netns: netns.0,
            },
            other => panic!("{other:?} is no flow"),
        };
        let theirs = flow(far, &traffic.server, &traffic.neighbour);
        let [outside, _, flooded] = traffic.entries(lab);
        lab.mount_bpffs();
        let mut old = Past::open(abi, &lab.pin_path(), netns, 64);
        let (server, moment) = (77, 1_700_000_000);
        old.standing("flows", key(&outside), 1, FOREVER);
        old.standing("flows", key(&flooded), 8, FOREVER);
        old.standing("flows", key(&theirs), 2, FOREVER);
        let ip = |text: &str| text.parse::<std::net::IpAddr>().unwrap().into();
        old.standing("addresses", AddressKey { address: ip(CLIENT), netns: netns.0 }, 3, LEASED);
        old.standing("devices", DeviceKey { netns: netns.0, ifindex: 99 }, 4, FOREVER);
        old.standing("tokens", TokenKey::new(TOKEN_DTLS, &[1, 2, 3]).unwrap(), 5, 12345);
        old.safe_id([6; 20], SafeIdValue { revocation: 6, server, since: moment });
        old.cutoff([7; 20], CutoffValue { revocation: 7, server, up_to: moment });
        old.gate_hits(1, [6; 20], 11);
        old.gate_hits(2, [7; 20], 12);
        old.gate_hits(1, [8; 20], 13);
        if abi > 1 {
            let lock = LockValue { revocation: 9, expires_ns: FOREVER, since: moment };
            old.lock(*alice().as_bytes(), lock);
        }
        old.meta(42);
        old.beat(Dataplane::kernel_monotonic_ns());
        old.xdp("gw");
        old.tc("gw", clsact);
        let pins = lab.pin_path();
        lab.there(|| {
            let mut there = Past::open(abi, &pins, far, 64);
            there.meta(42);
            there.xdp("peer");
        });
        drop(old);
        traffic.is_dropped();
        assert!(!traffic.server.reaches(&traffic.neighbour), "in the other namespace");
        let gate = GateMaps::open(&pins).unwrap().expect("a gate reads them before the daemon has migrated");
        assert_eq!(gate.lock(&alice()).unwrap().is_some(), abi > 1);
        assert_eq!(
            gate.safe_id(&SafeId::from_bytes([6; 20])).unwrap().map(|found| found.since),
            Some(moment)
        );

        // the same capacities: maps are taken over. Others: entries are copied
        let mut before = 0;
        for each in [64, 100] {
            let sent = traffic.flood(Duration::ZERO, || {
                let dataplane = Dataplane::open(with(lab, each)).unwrap();
                // a layout with room for more reasons has another map of counters
                let counted = packets_by(&dataplane, "dropped-flow");
                assert!(counted > before, "{counted} packets counted, {before} before");
                before = counted;
                let stored = sorted(&dataplane);
                let stored: Vec<_> = if abi == 1 {
                    stored
                } else {
                    let (locks, rest) =
                        stored.into_iter().partition(|one| matches!(one.entry, Entry::Lock(_)));
                    let locks: Vec<StoredEntry> = locks;
                    assert_eq!(locks.iter().map(|lock| lock.revocation).collect::<Vec<_>>(), [9]);
                    rest
                };
                let facts = |stored: &StoredEntry| (stored.revocation, stored.stands, stored.gate);
                let gate = GateFacts { server, moment };
                assert_eq!(
                    stored.iter().map(facts).collect::<Vec<_>>(),
                    [
                        (1, Stands::Forever, NONE),
                        (2, Stands::Forever, NONE),
                        (3, Stands::Leased, NONE),
                        (4, Stands::Forever, NONE),
                        (5, Stands::Until(12345), NONE),
                        (6, Stands::Forever, gate),
                        (7, Stands::Forever, gate),
                        (8, Stands::Forever, NONE),
                    ]
                );
                assert_eq!(stored[0].entry, traffic.entries(lab)[0]);
                assert_eq!(stored[2].entry, traffic.entries(lab)[1]);
                assert_eq!((dataplane.next_revocation(), dataplane.lapsed()), (42, false));
                let hits = [5, 6].map(|at: usize| dataplane.hits(&stored[at].entry));
                assert_eq!(hits, [Some(12), Some(12)], "the gate above has counted one");
            });
            assert!(sent.iter().all(|sent| *sent > 0));
            is_tidy(lab);
        }
        assert_eq!(
            gate.safe_id(&SafeId::from_bytes([6; 20])).unwrap().map(|found| found.revocation),
            Some(6)
        );
        let mut dataplane = Dataplane::open(with(lab, 100)).unwrap();
        let stranger = Entry::SafeId(SafeId::from_bytes([8; 20]));
        dataplane.insert(&stranger, 9, Stands::Forever, NONE).unwrap();
        assert_eq!(dataplane.hits(&stranger), Some(0), "a count of nobody's was not carried over");
        // a gate that has opened the set of the old layout sees what was said in the new one
        let _ = dataplane.remove(&Entry::Lock(alice())).unwrap();
        dataplane
            .insert(&Entry::Lock(alice()), 10, Stands::Forever, GateFacts { server: 0, moment })
            .unwrap();
        assert_eq!(gate.lock(&alice()).unwrap().map(|found| found.revocation), Some(10));
        traffic.is_dropped();
        for entry in sorted(&dataplane).into_iter().take(3) {
            assert!(dataplane.remove(&entry.entry).unwrap());
        }
        traffic.passes();
        assert!(traffic.server.reaches(&traffic.neighbour));
        // and it goes on from there as ever
        attach(&mut dataplane, lab);
        for entry in traffic.entries(lab) {
            dataplane.insert(&entry, 11, Stands::Forever, NONE).unwrap();
        }
        traffic.is_dropped();
        drop(dataplane);
        let report = Dataplane::unload(&pins).unwrap();
        assert_eq!((report.links + report.filters, report.left), (4, Vec::new()));
        traffic.passes();
    });
}

#[test]
fn r5_the_layout_1_with_tcx() {
    layout(1, false);
}

#[test]
fn r5_the_layout_1_with_clsact() {
    layout(1, true);
}

#[test]
fn r5_the_layout_2_with_tcx() {
    layout(2, false);
}

#[test]
fn r5_the_layout_2_with_clsact() {
    layout(2, true);
}

/// R2: a gate that looks while sets change finds who is revoked, every time.
#[test]
fn r2_gates_see_one_whole_set_while_another_takes_its_place() {
    lab(|lab| {
        let mut dataplane = Dataplane::open(with(lab, 64)).unwrap();
        let id = SafeId::from_bytes([1; 20]);
        dataplane.insert(&Entry::SafeId(id), 5, Stands::Forever, NONE).unwrap();
        dataplane.insert(&Entry::Lock(alice()), 6, Stands::Forever, NONE).unwrap();
        drop(dataplane);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let old = GateMaps::open(&lab.pin_path()).unwrap().unwrap();
            let gates = [0, 1].map(|_| {
                let (stop, pins) = (&stop, lab.pin_path());
                scope.spawn(move || {
                    let mut looks = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let gate = GateMaps::open(&pins).unwrap().expect("there is always a set");
                        assert_eq!(gate.safe_id(&id).unwrap().map(|found| found.revocation), Some(5));
                        assert_eq!(gate.lock(&alice()).unwrap().map(|found| found.revocation), Some(6));
                        looks += 1;
                    }
                    looks
                })
            });
            let migrated = std::panic::catch_unwind(|| {
                for round in 0..12 {
                    drop(Dataplane::open(with(lab, 65 + round)).unwrap());
                }
            });
            stop.store(true, Ordering::Relaxed);
            let looks: u64 = gates.into_iter().map(|gate| gate.join().unwrap()).sum();
            migrated.unwrap();
            assert!(looks > 0);
            assert_eq!(old.safe_id(&id).unwrap().map(|found| found.revocation), Some(5));
        });
    });
}

/// R5: whatever a kill has left is recognised, also the states between the renames of older kernels.
#[test]
fn r5_a_half_made_migration_is_put_right() {
    lab(|lab| {
        let mut dataplane = Dataplane::open(with(lab, 64)).unwrap();
        attach(&mut dataplane, lab);
        let traffic = Traffic::new(lab);
        for entry in traffic.entries(lab) {
            dataplane.insert(&entry, 1, Stands::Forever, NONE).unwrap();
        }
        dataplane.insert(&Entry::Lock(alice()), 1, Stands::Forever, NONE).unwrap();
        drop(dataplane);
        let folder = |name: &str| lab.pin_path().join(name);
        let rename = |from: &str, to: &str| std::fs::rename(folder(from), folder(to)).unwrap();
        let half: [&dyn Fn(); 4] = [
            &|| std::fs::create_dir(folder("next")).unwrap(),
            &|| {
                std::fs::create_dir(folder("next")).unwrap();
                pin_again(&folder("maps/devices"), &folder("next/devices"));
            },
            &|| rename("maps", "last"),
            &|| {
                std::fs::create_dir(folder("last")).unwrap();
                pin_again(&folder("maps/flows"), &folder("last/flows"));
            },
        ];
        for (number, half) in half.iter().enumerate() {
            for each in [64, 70 + u32::try_from(number).unwrap(), 64] {
                half();
                traffic.is_dropped();
                let gate = GateMaps::open(&lab.pin_path()).unwrap().expect("a set counts");
                assert!(gate.lock(&alice()).unwrap().is_some(), "{number}");
                let dataplane = Dataplane::open(with(lab, each)).unwrap();
                assert_eq!(dataplane.entries().unwrap().len(), 4, "{number}");
                is_tidy(lab);
                traffic.is_dropped();
            }
        }
        half[1]();
        std::fs::create_dir(folder("last")).unwrap();
        let report = Dataplane::unload(&lab.pin_path()).unwrap();
        assert_eq!((report.links + report.filters, report.left), (3, Vec::new()));
        assert!(!lab.pin_path().exists());
        traffic.passes();
    });
}

fn pin_again(from: &std::path::Path, to: &std::path::Path) {
    aya::maps::MapData::from_pin(from).unwrap().pin(to).unwrap();
}

/// R1, R5, R7: a table that is full becomes larger while packets are dropped by it, and begins small again when a start
/// finds it nearly empty.
#[test]
fn r1_r5_r7_a_full_table_grows_without_a_gap() {
    lab(|lab| {
        let settings = || with(lab, 100_000);
        let mut dataplane = Dataplane::open(settings()).unwrap();
        attach(&mut dataplane, lab);
        let traffic = Traffic::new(lab);
        for (number, entry) in traffic.entries(lab).iter().enumerate() {
            dataplane.insert(entry, number as u64 + 1, Stands::Forever, NONE).unwrap();
        }
        let buckets =
            |name: &str| MapInfo::from_pin(lab.pin_path().join("maps").join(name)).unwrap().max_entries();
        let small = (buckets("flow_lines"), buckets("address_lines"));
        let other = |number: u32| {
            let [a, b, c, d] = (0x0b00_0000 + number).to_be_bytes();
            (address(lab.netns(), &format!("{a}.{b}.{c}.{d}")), number)
        };
        let many = 20_000;
        let sent = traffic.flood(Duration::ZERO, || {
            for (entry, number) in (0..many).map(other) {
                dataplane.insert(&entry, u64::from(number) + 10, Stands::Forever, NONE).unwrap();
            }
        });
        let large = (buckets("flow_lines"), buckets("address_lines"));
        assert!(large.0 == small.0 && large.1 > small.1, "{small:?} {large:?}");
        is_tidy(lab);
        traffic.is_dropped();
        let hits = dataplane.hits(&traffic.entries(lab)[2]).unwrap();
        assert!(hits >= sent[0], "of the other table, and no hit is lost: {hits} of {}", sent[0]);
        assert_eq!(dataplane.entries().unwrap().len(), many as usize + 3);
        let usage = dataplane.usage();
        let addresses = usage.iter().find(|usage| usage.name == "addresses").unwrap();
        assert_eq!((addresses.used, addresses.capacity), (u64::from(many) + 1, 100_000));

        // what has hung is renewed, and what comes later uses the same maps
        drop(dataplane);
        let mut dataplane = Dataplane::open(settings()).unwrap();
        assert_eq!((buckets("flow_lines"), buckets("address_lines")), large, "a start keeps what fits");
        for (entry, _) in (0..many).map(other) {
            assert!(dataplane.remove(&entry).unwrap());
        }
        traffic.is_dropped();
        drop(dataplane);
        let dataplane = Dataplane::open(settings()).unwrap();
        assert_eq!((buckets("flow_lines"), buckets("address_lines")), small);
        assert_eq!(dataplane.entries().unwrap().len(), 3);
        traffic.is_dropped();
        eprintln!("{sent:?} packets while a table grew, none leaked");
    });
}

/// R1, R5: the layout 3 is ours without the Bloom words, and gets them while packets are dropped. With none of their bits
/// set nobody would be found.
#[test]
fn r1_r5_the_layout_3_gets_its_bloom_words() {
    lab(|lab| {
        let maps = lab.pin_path().join("maps");
        let mut dataplane = Dataplane::open(with(lab, 64)).unwrap();
        attach(&mut dataplane, lab);
        let traffic = Traffic::new(lab);
        for (number, entry) in traffic.entries(lab).iter().enumerate() {
            dataplane.insert(entry, number as u64 + 1, Stands::Forever, NONE).unwrap();
        }
        dataplane.set_next_revocation(42).unwrap();
        let stood = sorted(&dataplane);
        drop(dataplane);
        for name in [layout::FLOW_BLOOMS, layout::ADDRESS_BLOOMS] {
            std::fs::remove_file(maps.join(name)).unwrap();
        }
        let meta = aya::maps::MapData::from_pin(maps.join(layout::META)).unwrap();
        let mut meta = aya::maps::Array::<_, u128>::try_from(aya::maps::Map::Array(meta)).unwrap();
        let abi = |meta: &aya::maps::Array<_, u128>| meta.get(&0, 0).unwrap() & u128::from(u32::MAX);
        assert_eq!(abi(&meta), u128::from(layout::ABI));
        let third = meta.get(&0, 0).unwrap() & !u128::from(u32::MAX) | 3;
        meta.set(0, third, 0).unwrap();
        assert!(GateMaps::open(&lab.pin_path()).unwrap().is_some(), "a gate can read the layout 3");

        let sent = traffic.flood(Duration::ZERO, || {
            let dataplane = Dataplane::open(with(lab, 64)).unwrap();
            let is: Vec<_> =
                sorted(&dataplane).into_iter().map(|stored| (stored.entry, stored.revocation)).collect();
            let was: Vec<_> = stood.iter().map(|stored| (stored.entry.clone(), stored.revocation)).collect();
            assert_eq!((is, dataplane.next_revocation()), (was, 42));
        });
        traffic.is_dropped();
        is_tidy(lab);
        let mut dataplane = Dataplane::open(with(lab, 64)).unwrap();
        for entry in traffic.entries(lab) {
            assert!(dataplane.remove(&entry).unwrap());
        }
        traffic.passes();
        eprintln!("{sent:?} packets, none leaked");
    });
}

/// R5: a daemon that is killed while it makes its first maps leaves some of them; the next one makes the rest.
#[test]
fn r5_a_half_made_set_is_made_whole() {
    lab(|lab| {
        let maps = lab.pin_path().join("maps");
        let names: Vec<&str> = layout::MAPS.iter().map(|definition| definition.name).collect();
        let meta = names.iter().position(|name| *name == layout::META).unwrap();
        for at in 0..names.len() {
            // one is missing, or all from there on; what counts the layouts is always among those that are not written
            for missing in
                [vec![names[at], names[meta]], names[at..].iter().copied().chain([names[meta]]).collect()]
            {
                drop(Dataplane::open(with(lab, 64)).unwrap());
                for name in missing {
                    // the second time it is gone already
                    let _ = std::fs::remove_file(maps.join(name));
                }
                let mut dataplane = Dataplane::open(with(lab, 64)).unwrap();
                let entry = address(lab.netns(), CLIENT);
                dataplane.insert(&entry, 1, Stands::Forever, NONE).unwrap();
                assert_eq!(dataplane.entries().unwrap().len(), 1, "{}", names[at]);
                drop(dataplane);
                Dataplane::unload(&lab.pin_path()).unwrap();
            }
        }
    });
}
