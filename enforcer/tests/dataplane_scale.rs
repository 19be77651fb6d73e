//! Many entries: that they are all there, and what they cost. Needs root.
//!
//! `ENFORCER_TEST_ENTRIES=1000000 cargo test --release -p enforcer --test dataplane_scale -- --nocapture` prints what
//! docs/measurements.md has; without the variable there are fewer, and nobody is kept waiting. No figure is asserted.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

mod lab;
mod traffic;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::{Duration, Instant};

use aya::maps::{HashMap, Map, MapData};
use enforcer::dataplane::{Capacities, Dataplane, GateFacts, Settings};
use enforcer::session::{
    CutoffKey, Device, Entry, Flow, LockKey, Netns, Protocol, SafeId, Stands, Token, TokenKind,
};
use lab::{Lab, lab};
use traffic::{Traffic, attach, is_tidy};

const NONE: GateFacts = GateFacts { server: 0, moment: 0 };

fn many() -> u32 {
    std::env::var("ENFORCER_TEST_ENTRIES").map_or(20_000, |count| count.parse().unwrap())
}

/// The tables, and for each how its entry number so-and-so is made.
type Make = fn(Netns, u32) -> Entry;

fn digest(number: u32) -> [u8; 20] {
    let mut bytes = [0; 20];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    bytes
}

const TABLES: [(&str, Make); 7] = [
    ("flows", |netns, number| {
        let client = SocketAddr::new(Ipv4Addr::from(0x0b00_0000 + number).into(), 40_000);
        let flow = Flow::new(Protocol::Udp, client, "198.51.100.1:443".parse().unwrap());
        Entry::Flow(netns, flow.unwrap())
    }),
    ("addresses", |netns, number| Entry::Address(netns, Ipv4Addr::from(0x0b00_0000 + number).into())),
    ("devices", |netns, number| Entry::Device(Device { netns, index: 1_000 + number })),
    ("tokens", |_, number| Entry::Token(Token::new(TokenKind::Dtls, digest(number).into()).unwrap())),
    ("safe_ids", |_, number| Entry::SafeId(SafeId::from_bytes(digest(number)))),
    ("cutoffs", |_, number| Entry::Cutoff(CutoffKey::from_bytes(digest(number)))),
    ("locks", |_, number| Entry::Lock(LockKey::from_bytes(digest(number)))),
];

/// What the kernel says that a table takes, before it rounds entries up.
fn memlock(lab: &Lab, table: &str) -> u64 {
    let maps: &[&str] = match table {
        "flows" => &["flow_blooms", "flow_lines", "flow_buckets", "flows"],
        "addresses" => &["address_blooms", "address_lines", "address_buckets", "addresses"],
        one => &[one],
    };
    maps.iter().map(|name| memlock_of(lab, name)).sum()
}

fn memlock_of(lab: &Lab, name: &str) -> u64 {
    let map = MapData::from_pin(lab.pin_path().join("maps").join(name)).unwrap();
    let info = format!("/proc/thread-self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
    let info = fs::read_to_string(info).unwrap();
    let line = info.lines().find_map(|line| line.strip_prefix("memlock:")).unwrap();
    line.trim().parse().unwrap()
}

/// How many pieces of memory there are of each size that entries may have, those charged to a group included.
fn slabs() -> Vec<(u64, i64)> {
    let text = fs::read_to_string("/proc/slabinfo").unwrap();
    let count = |size: u64| {
        let names = [format!("kmalloc-{size} "), format!("kmalloc-cg-{size} ")];
        let lines = text.lines().filter(|line| names.iter().any(|name| line.starts_with(name)));
        lines.map(|line| line.split_whitespace().nth(1).unwrap().parse::<i64>().unwrap()).sum()
    };
    [64, 96, 128, 192, 256].map(|size| (size, count(size))).into()
}

fn roomy(lab: &Lab, each: u32) -> Settings {
    Settings { capacities: traffic::capacities(each), ..lab.settings() }
}

fn each(time: Duration, count: u32) -> String {
    format!("{:.2} µs", time.as_secs_f64() * 1e6 / f64::from(count))
}

/// R7: a table takes what it is configured for, and costs what we say.
#[test]
fn r7_every_table_holds_its_capacity() {
    lab(|lab| {
        let count = many();
        for (name, make) in TABLES {
            let settings = roomy(lab, count);
            let cost = *settings.capacities.costs().iter().find(|cost| cost.name == name).unwrap();
            let mut dataplane = Dataplane::open(settings).unwrap();
            let (empty, before) = (memlock(lab, name), slabs());
            let entries: Vec<Entry> = (0..count).map(|number| make(lab.netns(), number)).collect();
            let start = Instant::now();
            for entry in &entries {
                dataplane.insert(entry, 1, Stands::Forever, NONE).unwrap();
            }
            let inserted = start.elapsed();
            let (full, after) = (memlock(lab, name), slabs());
            assert!(dataplane.insert(&make(lab.netns(), count), 1, Stands::Forever, NONE).is_err());
            let start = Instant::now();
            for entry in &entries {
                dataplane.insert(entry, 2, Stands::Forever, NONE).unwrap();
            }
            let again = start.elapsed();
            let mut stored: Vec<Entry> =
                dataplane.entries().unwrap().into_iter().map(|stored| stored.entry).collect();
            stored.sort();
            assert!(stored == entries, "{name}: {} of {count} entries", stored.len());
            let per_entry = (full - empty) as f64 / f64::from(count);
            let grown: Vec<String> = before
                .iter()
                .zip(&after)
                .map(|((size, before), (_, after))| (size, (after - before) * 100 / i64::from(count)))
                .filter(|(_, percent)| *percent > 50)
                .map(|(size, percent)| format!("{percent} % of kmalloc-{size}"))
                .collect();
            eprintln!(
                "{name}: empty {empty} (said: {}), each {per_entry:.0} before rounding, {grown:?} (said: {}); insert {}, again {}",
                cost.empty,
                cost.each,
                each(inserted, count),
                each(again, count)
            );
            // the kernel's own count, where it has one for entries (Linux 6.4)
            assert!(empty >= cost.empty && empty < cost.empty + 65_536, "{name}");
            assert!(per_entry <= cost.each as f64, "{name}");
            drop(dataplane);
            Dataplane::unload(&lab.pin_path()).unwrap();
        }
    });
}

/// Reads the flows as aya does: two system calls for each.
fn one_by_one(lab: &Lab) -> usize {
    let map = MapData::from_pin(lab.pin_path().join("maps/flows")).unwrap();
    let map = HashMap::<_, [u32; 11], [u64; 4]>::try_from(Map::HashMap(map)).unwrap();
    map.iter().filter(|pair| pair.is_ok()).count()
}

/// R5: a full table moves to a larger one, and back, with everything in it.
#[test]
fn r5_many_entries_migrate() {
    lab(|lab| {
        let count = many();
        let mut dataplane = Dataplane::open(roomy(lab, 2 * count)).unwrap();
        attach(&mut dataplane, lab);
        let traffic = Traffic::new(lab);
        for entry in traffic.entries(lab) {
            dataplane.insert(&entry, 1, Stands::Forever, NONE).unwrap();
        }
        for (_, make) in &TABLES[..2] {
            for number in 0..count {
                dataplane.insert(&make(lab.netns(), number), 2, Stands::Forever, NONE).unwrap();
            }
        }
        drop(dataplane);
        for capacity in [2 * count, 3 * count, count + 3, Capacities::default().flows.max(count + 3)] {
            let start = Instant::now();
            let dataplane = Dataplane::open(roomy(lab, capacity)).unwrap();
            let opened = start.elapsed();
            let start = Instant::now();
            let entries = dataplane.entries().unwrap().len();
            let read = start.elapsed();
            let start = Instant::now();
            let single = one_by_one(lab);
            eprintln!(
                "capacity {capacity}: open {opened:?}; {entries} entries read in {read:?}; {single} of them one by one \
                 in {:?}",
                start.elapsed()
            );
            assert_eq!(entries, 2 * count as usize + 3);
            is_tidy(lab);
            traffic.is_dropped();
        }
    });
}
