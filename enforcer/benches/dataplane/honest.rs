//! What an honest packet pays, by BPF_PROG_TEST_RUN.

use std::net::Ipv4Addr;

use aya::Ebpf;
use aya::programs::ProgramFd;
use enforcer::dataplane::{Capacities, Dataplane, GateFacts, Settings};
use enforcer::session::{Entry, Flow, Netns, Protocol, Stands};
use enforcer_ebpf::bench::{NEXT_TC, NEXT_XDP};

use crate::lab::Lab;
use crate::objects::{self, CLIENT_PORT, LOCAL_PORT, cost, tc, xdp};
use crate::rows::Row;

const MILLION: u32 = 1_000_000;
/// What is revoked: addresses from here on, and flows from them to [`LOCAL`].
pub const FIRST: u32 = 0x0b00_0000;
pub const LOCAL: [u8; 4] = [198, 51, 100, 1];
/// Where nobody is revoked.
const HONEST: u32 = 0x4000_0000;

const PASS: u32 = 2;
const NEXT: u32 = u32::MAX;

pub fn settings(lab: &Lab, each: u32) -> Settings {
    let capacities = Capacities { flows: each, addresses: each, ..lab.settings().capacities };
    Settings { capacities, ..lab.settings() }
}

pub fn flow(netns: Netns, number: u32, local: [u8; 4]) -> Entry {
    let client = (Ipv4Addr::from(FIRST + number), CLIENT_PORT).into();
    Entry::Flow(netns, Flow::new(Protocol::Udp, client, (local, LOCAL_PORT).into()).unwrap())
}

pub fn address(netns: Netns, number: u32) -> Entry {
    Entry::Address(netns, Ipv4Addr::from(FIRST + number).into())
}

pub fn insert(dataplane: &mut Dataplane, entry: &Entry) {
    dataplane.insert(entry, 1, Stands::Forever, GateFacts::default()).unwrap();
}

/// As the daemon does with many.
pub fn insert_all(dataplane: &mut Dataplane, entries: &[Entry]) {
    for some in entries.chunks(32) {
        dataplane.expect(some.iter());
        some.iter().for_each(|entry| insert(dataplane, entry));
    }
}

pub fn rows(lab: &Lab, rounds: usize) -> Vec<Row> {
    let mut dataplane = Dataplane::open(settings(lab, MILLION)).unwrap();
    let mut rows = Vec::from(hot(lab, rounds, "empty tables"));
    for number in 0..MILLION {
        insert(&mut dataplane, &flow(lab.netns(), number, LOCAL));
        insert(&mut dataplane, &address(lab.netns(), number));
    }
    rows.extend(hot(lab, rounds, "1,000,000 entries, one packet"));
    rows.extend(cold(lab, rounds));
    rows.push(clock(&objects::limits(1), rounds));
    rows
}

/// The programs, loaded anew: where the kernel puts them differs from one time to the next, and costs or saves a program
/// some nanoseconds. And the tables may have become others meanwhile.
fn loaded(lab: &Lab) -> (Ebpf, Ebpf) {
    (objects::ours(&lab.pin_path(), lab.netns()), objects::limits(1))
}

/// The clock that a drop reads, beside one that the kernel has at hand.
fn clock(limits: &Ebpf, rounds: usize) -> Row {
    let frame = objects::frame([10, 0, 0, 1], LOCAL, [[2; 6]; 2]);
    let mut row =
        row("a program that reads the clock".to_owned(), &[("coarse clock", "", 0), ("return PASS", "", 0)]);
    row.against = "return PASS";
    for _ in 0..rounds {
        row.ours.push(cost(xdp(limits, "bench_clock"), &frame, PASS));
        for ((_, series), name) in row.limits.iter_mut().zip(["bench_clock_coarse", "bench_pass"]) {
            series.push(cost(xdp(limits, name), &frame, PASS));
        }
    }
    row
}

/// The hooks: ours, and whether it is XDP.
const HOOKS: [(&str, bool); 3] = [("outer_ether", true), ("lan_in_ether", false), ("lan_out_ether", false)];
const XDP_LIMITS: [(&str, &str, u32); 3] = [
    ("parse only", "bench_parse", PASS),
    ("return PASS", "bench_pass", PASS),
    ("return DROP", "bench_drop", 1),
];
const TC_LIMITS: [(&str, &str, u32); 3] = [
    ("parse only", "bench_tc_parse", NEXT),
    ("return PASS", "bench_tc_pass", NEXT),
    ("return DROP", "bench_tc_drop", 2),
];

fn row(case: String, limits: &[(&str, &str, u32)]) -> Row {
    let limits = limits.iter().map(|(name, _, _)| ((*name).to_owned(), Vec::new())).collect();
    Row { case, unit: "ns a packet", ours: Vec::new(), peers: Vec::new(), limits, against: "parse only" }
}

fn empty_rows(state: &str) -> [Row; 3] {
    HOOKS.map(|(hook, is_xdp)| row(format!("{hook}, {state}"), if is_xdp { &XDP_LIMITS } else { &TC_LIMITS }))
}

/// The same packet again and again, of which there is no entry; in each round another one, since it matters whether
/// something of its bucket is elsewhere.
fn hot(lab: &Lab, rounds: usize, state: &str) -> [Row; 3] {
    let mut rows = empty_rows(state);
    for round in 0..rounds {
        let (ours, limits) = loaded(lab);
        let honest = Ipv4Addr::from(HONEST + u32::try_from(round).unwrap() * 7_919).octets();
        for (row, (hook, is_xdp)) in rows.iter_mut().zip(HOOKS) {
            // the address that is looked up is the honest one
            let frame = if hook == "lan_in_ether" {
                objects::frame(LOCAL, honest, [[2; 6]; 2])
            } else {
                objects::frame(honest, LOCAL, [[2; 6]; 2])
            };
            let turn = |ebpf: &Ebpf, name: &str, answer| match is_xdp {
                true => cost(xdp(ebpf, name), &frame, answer),
                false => cost(tc(ebpf, name), &frame, answer),
            };
            row.ours.push(turn(&ours, hook, if is_xdp { PASS } else { NEXT }));
            let names = if is_xdp { XDP_LIMITS } else { TC_LIMITS };
            for ((_, series), (_, name, answer)) in row.limits.iter_mut().zip(names) {
                series.push(turn(&limits, name, answer));
            }
        }
    }
    rows
}

/// Each packet from (or to) another address; all of them go through the same rewriting and tail call.
fn cold(lab: &Lab, rounds: usize) -> [Row; 3] {
    let mut rows = empty_rows("1,000,000 entries, random addresses");
    let frame = objects::frame([10, 0, 0, 1], LOCAL, [[2; 6]; 2]);
    for _ in 0..rounds {
        let (ours, mut limits) = loaded(lab);
        objects::draw(&mut limits, HONEST, 1 << 30, 0);
        for (row, (hook, is_xdp)) in rows.iter_mut().zip(HOOKS) {
            let starter = match hook {
                "outer_ether" => "bench_source",
                "lan_in_ether" => "bench_tc_destination",
                _ => "bench_tc_source",
            };
            let (program, answer) = (fd(&ours, hook, is_xdp), if is_xdp { PASS } else { NEXT });
            row.ours.push(through(&mut limits, starter, &program, is_xdp, &frame, answer));
            let names = if is_xdp { XDP_LIMITS } else { TC_LIMITS };
            for ((_, series), (_, name, answer)) in row.limits.iter_mut().zip(names) {
                let program = fd(&limits, name, is_xdp);
                series.push(through(&mut limits, starter, &program, is_xdp, &frame, answer));
            }
        }
    }
    rows
}

pub fn fd(ebpf: &Ebpf, name: &str, is_xdp: bool) -> ProgramFd {
    let fd = if is_xdp { xdp(ebpf, name).fd() } else { tc(ebpf, name).fd() };
    fd.unwrap().try_clone().unwrap()
}

/// What a packet costs that is rewritten and goes on to that program.
pub fn through(
    limits: &mut Ebpf,
    starter: &str,
    program: &ProgramFd,
    is_xdp: bool,
    frame: &[u8],
    answer: u32,
) -> f64 {
    if is_xdp {
        objects::next(limits, NEXT_XDP, program);
        cost(xdp(limits, starter), frame, answer)
    } else {
        objects::next(limits, NEXT_TC, program);
        cost(tc(limits, starter), frame, answer)
    }
}
