//! What the tables cost: filling them, their memory, and one entry.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd};
use std::path::Path;
use std::time::Instant;

use aya::maps::{HashMap, MapData};
use enforcer::dataplane::Dataplane;
use enforcer::session::Entry;
use enforcer_ebpf::layout::{self, Address, AddressKey, FOREVER, Standing};

use crate::cpu;
use crate::honest::{address, insert, insert_all, settings};
use crate::lab::Lab;
use crate::lane::{Lane, run};
use crate::objects::{self, Raw};
use crate::peers;
use crate::rows::{Row, quantile};

const MILLION: u32 = 1_000_000;
const PLAIN: &str = "hash map of the kernel";

pub fn rows(lab: &Lab, rounds: usize) -> Vec<Row> {
    // of these, a round takes ten seconds
    let [bulk, again, memory] = filled(lab, rounds.min(5));
    let mut rows = vec![bulk, again, memory];
    rows.extend(single(lab, rounds));
    rows
}

/// What the kernel says that the maps take.
fn memlock(map: impl AsRawFd) -> f64 {
    let info = fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", map.as_raw_fd())).unwrap();
    let line = info.lines().find_map(|line| line.strip_prefix("memlock:")).unwrap();
    line.trim().parse().unwrap()
}

fn of_addresses(pin_path: &Path) -> f64 {
    let names = [layout::ADDRESS_BLOOMS, layout::ADDRESS_LINES, layout::ADDRESS_BUCKETS, layout::ADDRESSES];
    let maps = names.map(|name| MapData::from_pin(pin_path.join("maps").join(name)).unwrap());
    maps.iter().map(|map| memlock(map.fd().as_fd())).sum()
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

const STANDING: Standing = Standing { revocation: 1, expires_ns: FOREVER, hits: 0, last_ns: 0 };

fn key(lab: &Lab, number: u32) -> Raw<AddressKey> {
    let word = u32::from_ne_bytes((crate::honest::FIRST + number).to_be_bytes());
    Raw(AddressKey { address: Address::v4(word), netns: lab.netns().0 })
}

/// A million addresses into empty tables, each by itself; and what these take then.
fn filled(lab: &Lab, rounds: usize) -> [Row; 3] {
    let entries: Vec<Entry> = (0..MILLION).map(|number| address(lab.netns(), number)).collect();
    let (nft, ipset) = (
        peers::nft("ip", "type filter hook prerouting priority raw", MILLION, MILLION),
        peers::ipset(MILLION, MILLION),
    );
    let lane = Lane::new();
    let mut series: [Vec<f64>; 4] = Default::default();
    let mut bytes: [Vec<f64>; 2] = Default::default();
    let mut again: [Vec<f64>; 2] = Default::default();
    for _ in 0..rounds {
        let mut dataplane = Dataplane::open(settings(lab, MILLION)).unwrap();
        let before = cpu::thread();
        insert_all(&mut dataplane, &entries);
        series[0].push(seconds(cpu::thread() - before));
        bytes[0].push(of_addresses(&lab.pin_path()) / f64::from(MILLION));
        for entry in &entries {
            assert!(dataplane.remove(entry).unwrap());
        }
        let before = cpu::thread();
        insert_all(&mut dataplane, &entries);
        again[0].push(seconds(cpu::thread() - before));
        drop(dataplane);
        Dataplane::unload(&lab.pin_path()).unwrap();

        let mut plain = objects::limits(MILLION);
        let mut map: HashMap<_, Raw<AddressKey>, Raw<Standing>> =
            plain.map_mut(layout::ADDRESSES).unwrap().try_into().unwrap();
        let before = cpu::thread();
        for number in 0..MILLION {
            map.insert(key(lab, number), Raw(STANDING), 0).unwrap();
        }
        series[1].push(seconds(cpu::thread() - before));
        let Some(aya::maps::Map::HashMap(map)) = plain.map(layout::ADDRESSES) else { panic!("a hash map") };
        bytes[1].push(memlock(map.fd().as_fd()) / f64::from(MILLION));
        let mut map: HashMap<_, Raw<AddressKey>, Raw<Standing>> =
            plain.map_mut(layout::ADDRESSES).unwrap().try_into().unwrap();
        for number in 0..MILLION {
            map.remove(&key(lab, number)).unwrap();
        }
        let before = cpu::thread();
        for number in 0..MILLION {
            map.insert(key(lab, number), Raw(STANDING), 0).unwrap();
        }
        again[1].push(seconds(cpu::thread() - before));
        drop(plain);

        for (at, program, words, input) in
            [(2, "nft", &["-f", "-"][..], &nft), (3, "ipset", &["restore"][..], &ipset)]
        {
            let before = cpu::children();
            lane.here(|| run(program, words, input));
            series[at].push(cpu::children() - before);
        }
        lane.here(|| run("nft", &["delete", "table", "ip", "t"], ""));
        lane.here(|| run("ipset", &["destroy", "s"], ""));
    }
    let [ours, plain, nft, ipset] = series;
    let [our_bytes, plain_bytes] = bytes;
    let [ours_again, plain_again] = again;
    [
        Row {
            case: "1,000,000 addresses into the kernel".to_owned(),
            unit: "CPU s",
            ours,
            peers: vec![
                (PLAIN.to_owned(), plain),
                ("nft -f".to_owned(), nft),
                ("ipset restore".to_owned(), ipset),
            ],
            limits: Vec::new(),
            against: PLAIN,
        },
        Row {
            case: "the same once more, into tables that have had as many".to_owned(),
            unit: "CPU s",
            ours: ours_again,
            peers: vec![(PLAIN.to_owned(), plain_again)],
            limits: Vec::new(),
            against: PLAIN,
        },
        Row {
            case: "memory of the kernel (memlock) for each of 1,000,000 addresses".to_owned(),
            unit: "bytes",
            ours: our_bytes,
            peers: vec![(PLAIN.to_owned(), plain_bytes)],
            limits: Vec::new(),
            against: PLAIN,
        },
    ]
}

/// One more address, where half a million are: by the clock, each by itself.
fn single(lab: &Lab, rounds: usize) -> Vec<Row> {
    const THERE: u32 = MILLION / 2;
    const EACH: u32 = 2_000;
    const COMMANDS: u32 = 5;
    let lane = Lane::new();
    lane.here(|| {
        run(
            "nft",
            &["-f", "-"],
            &peers::nft("ip", "type filter hook prerouting priority raw", THERE, MILLION),
        );
        run("ipset", &["restore"], &peers::ipset(THERE, MILLION));
    });
    let mut dataplane = Dataplane::open(settings(lab, MILLION)).unwrap();
    let mut plain = objects::limits(MILLION);
    let mut map: HashMap<_, Raw<AddressKey>, Raw<Standing>> =
        plain.map_mut(layout::ADDRESSES).unwrap().try_into().unwrap();
    for number in 0..THERE {
        insert(&mut dataplane, &address(lab.netns(), number));
        map.insert(key(lab, number), Raw(STANDING), 0).unwrap();
    }
    let mut series: [Vec<f64>; 5] = Default::default();
    let micros = |start: Instant| start.elapsed().as_secs_f64() * 1e6;
    for round in 0..u32::try_from(rounds.min(200)).unwrap() {
        for at in 0..EACH {
            // spread, so that what comes next is not where the last one was
            let number = THERE + (round * EACH + at).wrapping_mul(7_919) % THERE;
            let entry = address(lab.netns(), number);
            let start = Instant::now();
            insert(&mut dataplane, &entry);
            series[0].push(micros(start));
            let key = key(lab, number);
            let start = Instant::now();
            map.insert(key, Raw(STANDING), 0).unwrap();
            series[1].push(micros(start));
            let start = Instant::now();
            series[4].push(micros(start));
        }
        for at in 0..COMMANDS {
            let number = THERE + round * COMMANDS + at;
            let source = std::net::Ipv4Addr::from(crate::honest::FIRST + number).to_string();
            let element = format!("{{ {source} }}");
            lane.here(|| {
                let start = Instant::now();
                run("nft", &["add", "element", "ip", "t", "s", &element], "");
                series[2].push(micros(start));
                let start = Instant::now();
                run("ipset", &["add", "s", &source], "");
                series[3].push(micros(start));
            });
        }
    }
    drop(dataplane);
    Dataplane::unload(&lab.pin_path()).unwrap();
    [("median", 0.5), ("p99", 0.99)]
        .into_iter()
        .map(|(name, part)| {
            let of = |at: usize| vec![quantile(&series[at], part)];
            Row {
                case: format!("one more address, {name} of {}", series[0].len()),
                unit: "µs",
                ours: of(0),
                peers: vec![
                    (PLAIN.to_owned(), of(1)),
                    ("the command nft add element".to_owned(), of(2)),
                    ("the command ipset add".to_owned(), of(3)),
                ],
                limits: vec![("reading the clock twice, in all figures".to_owned(), of(4))],
                against: PLAIN,
            }
        })
        .collect()
}
