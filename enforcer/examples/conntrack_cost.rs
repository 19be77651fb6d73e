//! What it costs to take one address's entries out of connection tracking, beside very many of others.
//!
//! `cargo run --release -p enforcer --example conntrack_cost -- 1000000`, as root: in a network namespace of its own it
//! makes so many entries of others (UDP datagrams to its own loopback addresses), then ten of one address, and takes
//! those out, by itself and together with a hundred other addresses. It raises the host's
//! `net.netfilter.nf_conntrack_max` if that is too low, and puts it back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a tool for measurements")]

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

fn main() {
    let entries: u32 = std::env::args().nth(1).map_or(100_000, |n| n.parse().expect("a number of entries"));
    let before = std::fs::read_to_string(MAX).expect("conntrack is not loaded");
    let wanted = entries + 10_000;
    let raised = before.trim().parse::<u32>().unwrap() < wanted;
    if raised {
        std::fs::write(MAX, wanted.to_string()).expect("run this as root");
    }
    let outcome = std::thread::spawn(move || measure(entries)).join();
    if raised {
        std::fs::write(MAX, before).unwrap();
    }
    if outcome.is_err() {
        std::process::exit(1);
    }
}

fn run(program: &str, arguments: &[&str], input: &str) {
    let mut child = Command::new(program).args(arguments).stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{program} {arguments:?}");
}

fn measure(entries: u32) {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("run this as root");
    run("ip", &["link", "set", "lo", "up"], "");
    run(
        "nft",
        &["-f", "-"],
        "table inet t {\nchain o { type filter hook output priority 0; ct state new accept; }\n}",
    );
    std::fs::write("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", "3600").unwrap();
    // each socket has an address of its own, and sends to as many ports as are needed
    let each = 50_000;
    for n in 0..entries.div_ceil(each) {
        send(Ipv4Addr::from(0x7f10_0000 + n), each.min(entries - n * each));
    }
    let mine = Ipv4Addr::new(127, 0, 0, 9);
    for (what, others) in [("one address", 0), ("one hundred and one", 100)] {
        let mut times: Vec<Duration> = (0..7)
            .map(|_| {
                send(mine, 10);
                let unused = (1..=others).map(|n| IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n)));
                let started = Instant::now();
                let until = started + Duration::from_secs(60);
                let addresses = unused.chain([mine.into()]);
                let outcomes =
                    enforcer::conntrack::forget(None, addresses, until, &|_| true).unwrap().unwrap();
                let took = started.elapsed();
                let outcome = outcomes[&mine.into()];
                assert!(outcome.is_done() && outcome.taken == 10, "{outcome}");
                took
            })
            .collect();
        times.sort();
        println!(
            "{entries} entries of others, {what}: {:.1} ms ({:.1} to {:.1})",
            times[3].as_secs_f64() * 1e3,
            times[0].as_secs_f64() * 1e3,
            times[6].as_secs_f64() * 1e3
        );
    }
}

fn send(from: Ipv4Addr, count: u32) {
    let socket = UdpSocket::bind((from, 0)).unwrap();
    for n in 0..count {
        let port = u16::try_from(1 + n % 60_000).unwrap();
        // nobody listens, and says so
        let _ = socket.send_to(b"x", (Ipv4Addr::new(127, 32, 0, 1), port));
    }
}
