//! What a dropped packet costs: on a veth pair beside other firewalls, and by BPF_PROG_TEST_RUN beside xdp-filter.

use std::os::fd::AsFd as _;

use aya::Ebpf;
use aya::programs::TcAttachType;
use enforcer::dataplane::{Dataplane, Role};

use crate::cpu::Softirqs;
use crate::flood;
use crate::honest::{LOCAL, address, fd, flow, insert, settings, through};
use crate::lab::Lab;
use crate::lane::{ADDRESS, DEVICE, Lane};
use crate::memory;
use crate::objects;
use crate::peers::{self, XDP_FILTER_MOST, XDP_FILTER_PROGRAM};
use crate::rows::{Row, median};

const DROP: u32 = 1;
const EVERYTHING: &str = "drop everything (XDP)";

pub fn rows(lab: &Lab, rounds: usize) -> Vec<Row> {
    // a table of the size that it is configured for by default, and one that is made for what is in it
    let cases = [(100_000, 1_000_000), (100_000, 100_000), (8_192, 1_000_000), (8_192, 8_192)];
    let mut rows = Vec::new();
    for (sources, capacity) in cases {
        rows.push(flooded(lab, rounds, sources, capacity));
        rows.push(alone(lab, rounds, sources, capacity));
    }
    rows
}

/// A contender: its name, its lane, and what keeps its programs there.
struct Contender {
    name: &'static str,
    lane: Lane,
    costs: Vec<f64>,
    _keeps: Option<Ebpf>,
}

impl Contender {
    fn new(name: &'static str, keeps: impl FnOnce(&Lane) -> Option<Ebpf>) -> Self {
        let lane = Lane::new();
        let keeps = keeps(&lane);
        Self { name, lane, costs: Vec::new(), _keeps: keeps }
    }
}

fn number(count: u32) -> String {
    if count < 1_000_000 { format!("{},{:03}", count / 1_000, count % 1_000) } else { "1,000,000".to_owned() }
}

/// CPU time of a packet of a flood from random revoked sources, without what it costs to send it.
fn flooded(lab: &Lab, rounds: usize, sources: u32, capacity: u32) -> Row {
    let mut dataplane = Dataplane::open(settings(lab, capacity)).unwrap();
    let ours = |dataplane: &mut Dataplane, lane: &Lane, role| {
        let netns = lane.netns();
        for at in 0..sources {
            let entry = if role == Role::Outer { flow(netns, at, ADDRESS) } else { address(netns, at) };
            insert(dataplane, &entry);
        }
        let ifindex = lane.here(|| crate::lab::ifindex(DEVICE));
        dataplane.attach(Some(lane.receiver.as_fd()), netns, ifindex, DEVICE, role).unwrap();
    };
    let mut contenders = vec![
        Contender::new("ours", |lane| {
            ours(&mut dataplane, lane, Role::Outer);
            None
        }),
        Contender::new("ours on tcx, by address", |lane| {
            lane.without_program();
            ours(&mut dataplane, lane, Role::Tunnel);
            None
        }),
        Contender::new("nftables netdev ingress", |lane| {
            lane.without_program();
            peers::nft_ingress(lane, sources, sources);
            None
        }),
        Contender::new("nftables prerouting raw", |lane| {
            lane.without_program();
            peers::nft_prerouting(lane, sources);
            None
        }),
        Contender::new("iptables raw + ipset", |lane| {
            lane.without_program();
            peers::iptables(lane, sources, sources);
            None
        }),
    ];
    if sources <= XDP_FILTER_MOST {
        contenders.push(Contender::new("xdp-filter", |lane| {
            let mut filter = peers::xdp_filter(sources);
            peers::hang(lane, &mut filter, XDP_FILTER_PROGRAM);
            Some(filter)
        }));
    }
    let honest = contenders.len();
    contenders.push(Contender::new(EVERYTHING, |lane| {
        let mut limits = objects::limits(1);
        peers::hang(lane, &mut limits, "bench_drop");
        Some(limits)
    }));
    contenders.push(Contender::new("drop everything (tcx)", |lane| {
        lane.without_program();
        let mut limits = objects::limits(1);
        let drop: &mut aya::programs::SchedClassifier =
            limits.program_mut("bench_tc_drop").unwrap().try_into().unwrap();
        lane.here(|| drop.attach(DEVICE, TcAttachType::Ingress).map(std::mem::drop)).unwrap();
        Some(limits)
    }));
    // its other end takes no frames: what it costs to make them, send them, and throw them away
    let sender = Contender::new("the sender alone", |_| None);
    let (mut limits, softirqs) = (objects::limits(1), Softirqs::new());
    for contender in &contenders[..honest] {
        flood::neighbour_passes(&contender.lane, &mut limits, &softirqs);
    }
    let mut sending = Vec::new();
    for _ in 0..rounds {
        sending.push(flood::turn(&sender.lane, &mut limits, &softirqs, sources));
        for contender in &mut contenders {
            contender.costs.push(flood::turn(&contender.lane, &mut limits, &softirqs, sources));
        }
    }
    let alone = median(&sending);
    let mut ours = Vec::new();
    let (mut others, mut limits) = (Vec::new(), Vec::new());
    for (at, contender) in contenders.into_iter().enumerate() {
        let costs: Vec<f64> = contender.costs.iter().map(|cost| cost - alone).collect();
        match at {
            0 => ours = costs,
            at if at < honest => others.push((contender.name.to_owned(), costs)),
            _ => limits.push((contender.name.to_owned(), costs)),
        }
    }
    limits.push(("(the sender, taken off)".to_owned(), sending));
    drop(dataplane);
    Dataplane::unload(&lab.pin_path()).unwrap();
    Row {
        case: format!(
            "dropped on veth: {} random revoked sources, a table for {}",
            number(sources),
            number(capacity)
        ),
        unit: "CPU ns a packet",
        ours,
        peers: others,
        limits,
        against: EVERYTHING,
    }
}

/// The programs alone, by BPF_PROG_TEST_RUN; the rewriting of the source is in all figures.
fn alone(lab: &Lab, rounds: usize, sources: u32, capacity: u32) -> Row {
    let mut dataplane = Dataplane::open(settings(lab, capacity)).unwrap();
    for at in 0..sources {
        insert(&mut dataplane, &flow(lab.netns(), at, LOCAL));
    }
    let ours = objects::ours(&lab.pin_path(), lab.netns());
    let filter = (sources <= XDP_FILTER_MOST).then(|| peers::xdp_filter(sources));
    let limit = objects::limits(1);
    let mut starter = objects::limits(1);
    objects::draw(&mut starter, crate::honest::FIRST, sources, 0);
    let frame = objects::frame([10, 0, 0, 1], LOCAL, [[2; 6]; 2]);
    let mut turn = |program: &aya::programs::ProgramFd| {
        through(&mut starter, "bench_source", program, true, &frame, DROP)
    };
    let (mut own, mut others, mut everything) = (Vec::new(), Vec::new(), Vec::new());
    let mut loads = Vec::new();
    for _ in 0..rounds {
        own.push(turn(&fd(&ours, "outer_ether", true)));
        if let Some(filter) = &filter {
            others.push(turn(&fd(filter, XDP_FILTER_PROGRAM, true)));
        }
        everything.push(turn(&fd(&limit, "bench_drop", true)));
        loads.push(memory::load(sources));
    }
    drop((ours, dataplane));
    Dataplane::unload(&lab.pin_path()).unwrap();
    Row {
        case: format!(
            "dropped by the program alone: {} random revoked sources, a table for {}",
            number(sources),
            number(capacity)
        ),
        unit: "ns a packet",
        ours: own,
        peers: filter.map(|_| ("xdp-filter".to_owned(), others)).into_iter().collect(),
        limits: vec![
            (EVERYTHING.to_owned(), everything),
            ("one load of memory, at a random one of so many places of 64 bytes".to_owned(), loads),
        ],
        against: EVERYTHING,
    }
}
