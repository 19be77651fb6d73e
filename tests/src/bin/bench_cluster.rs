//! `cargo xtask bench cluster`: from the command on one gateway to the last packet on another, beside the users' way today (a
//! loop over the gateways with ocserv's own command, and a script on each gateway that asks every ten seconds); how long a
//! login takes, beside one without etcd and one at stock ocserv; and how many revocations a second are in force on all.
#![allow(clippy::expect_used, reason = "a measurement that cannot be made ends here, with the reason")]

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use enforcer_tests::enforcer::DONE;
use enforcer_tests::gateways::{A, B, Gateways, Plan, revoke_many};
use enforcer_tests::lab::LAN;
use enforcer_tests::process::{Process, command, output};
use enforcer_tests::scene::Pair;
use enforcer_tests::{Client, Connect, Moment, Tap};

/// Packets a second in each direction.
const RATE: u32 = 1_000;
/// How often a poller asks.
const POLL: Duration = Duration::from_secs(10);
/// How many are revoked in one stream, and how often.
const PEOPLE: u32 = 10_000;
const STREAMS: usize = 5;

fn main() -> ExitCode {
    let mut rounds = 500;
    let mut json = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match (argument.as_str(), arguments.next()) {
            ("--rounds", Some(number)) if number.parse::<usize>().is_ok_and(|n| (1..=5_000).contains(&n)) => {
                rounds = number.parse().unwrap_or(rounds);
            }
            ("--json", Some(file)) => json = Some(file),
            _ => {
                eprintln!("usage: bench_cluster [--rounds N] [--json FILE]");
                return ExitCode::from(2);
            }
        }
    }
    let rows = [revoked(rounds), polled(rounds.div_ceil(10)), logins(rounds), many()].concat();
    println!("{:<64}{:>9}{:>9}{:>9}{:>9}{:>9}{:>6}", "case", "unit", "min", "p50", "p99", "max", "n");
    for row in &rows {
        println!("{row}");
    }
    if let Some(file) = json {
        let rows: Vec<_> = rows.iter().map(Row::data).collect();
        if let Err(error) = std::fs::write(&file, format!("{:#}\n", serde_json::json!(rows))) {
            eprintln!("bench_cluster: {file}: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// One series.
#[derive(Clone)]
struct Row {
    case: &'static str,
    unit: &'static str,
    values: Vec<f64>,
}

impl Row {
    fn new(case: &'static str, unit: &'static str) -> Self {
        Self { case, unit, values: Vec::new() }
    }

    /// min, median, 99th percentile, max.
    fn figures(&self) -> [f64; 4] {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let last = sorted.len().saturating_sub(1);
            sorted.get((last as f64 * part).round() as usize).copied().unwrap_or(f64::NAN)
        };
        [at(0.0), at(0.5), at(0.99), at(1.0)]
    }

    fn data(&self) -> serde_json::Value {
        let [min, p50, p99, max] = self.figures();
        serde_json::json!({
            "case": self.case, "unit": self.unit, "n": self.values.len(),
            "min": min, "p50": p50, "p99": p99, "max": max,
        })
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [min, p50, p99, max] = self.figures();
        let Self { case, unit, values } = self;
        write!(f, "{case:<64}{unit:>9}{min:>9.1}{p50:>9.1}{p99:>9.1}{max:>9.1}{:>6}", values.len())
    }
}

/// One session of alice's on B, ended by `order`: milliseconds from the command to her last packet on B's LAN side, and to the
/// end of the command, which comes `pause` after her packets began to flow.
fn ended(
    world: &Gateways,
    alice: &Client,
    tap: &Tap,
    pause: Duration,
    order: &mut dyn FnMut(),
) -> (f64, f64) {
    let (_, mut tunnel) = alice.session(&world[B].server, "alice");
    let pair = Pair::new(&world.lab, alice, &tunnel, false, RATE);
    pair.flowing();
    std::thread::sleep(pause);
    let begun = Moment::now();
    order();
    let answered = Moment::now();
    tunnel.wait_end();
    let last = tap.last_out(LAN, IpAddr::V4(tunnel.v4)).map_or(begun, |packet| packet.at);
    (last.millis_since(begun), answered.millis_since(begun))
}

/// By turns, so that whatever else the machine does meets both.
fn revoked(rounds: usize) -> Vec<Row> {
    let (mut ours, mut theirs) =
        (Plan::new("bench-gws").start(), Plan::new("bench-gws-loop").unguarded().start());
    let (here, there) = (ours.lab.client("alice"), theirs.lab.client("alice"));
    let (tap, their_tap) = (Tap::start(&ours[B].namespace), Tap::start(&theirs[B].namespace));
    let mut rows = vec![
        Row::new("enforcer, revoked on A: her last packet on B", "ms"),
        Row::new("a loop over occtl on A, B and C: her last packet on B", "ms"),
        Row::new("enforcer, revoked on A: the answer, in force on all three", "ms"),
        Row::new("a loop over occtl on A, B and C: its end", "ms"),
    ];
    for round in 0..rounds {
        let (last, answer) = ended(&ours, &here, &tap, Duration::ZERO, &mut || {
            let words = ["disconnect", "user", "--invalidate", "alice", "--json"];
            assert_eq!(ours[A].enforcer.cli(&words).code, DONE, "the command failed");
        });
        let (their_last, their_answer) = ended(&theirs, &there, &their_tap, Duration::ZERO, &mut || {
            output(command("sh", ["-c", &over_all(&theirs)]), "");
        });
        for (row, value) in rows.iter_mut().zip([last, their_last, answer, their_answer]) {
            row.values.push(value);
        }
        progress("revoked", round, rounds);
    }
    rows
}

/// A list in a shared place, of which each gateway asks every ten seconds: where in these ten seconds the order comes is spread
/// evenly over the rounds.
fn polled(rounds: usize) -> Vec<Row> {
    let mut world = Plan::new("bench-gws-poll").unguarded().start();
    let alice = world.lab.client("alice");
    let tap = Tap::start(&world[B].namespace);
    let mut row = Row::new("a list that each gateway asks for every 10 s: her last packet on B", "ms");
    let list = world.lab.work().join("revoked");
    let script = format!(
        "while sleep {}; do test -e {list} && occtl -s {} disconnect user alice; done",
        POLL.as_secs(),
        world[B].server.socket().display(),
        list = list.display()
    );
    let mut shell = world[B].namespace.command("sh");
    shell.args(["-c", &script]);
    let mut poller = Process::start("poller", shell, &world.lab.work().join("poller.log"), None);
    for round in 0..rounds {
        let part = round as f64 / rounds as f64;
        let (to_last, _) = ended(&world, &alice, &tap, POLL.mul_f64(part), &mut || {
            std::fs::write(&list, "").expect("a file");
        });
        std::fs::remove_file(&list).expect("a file");
        row.values.push(to_last);
        progress("polled", round, rounds);
    }
    poller.stop();
    vec![row]
}
/// How long a login takes from the start of a client that has its cookie to its tunnel: asked of etcd, without etcd, and without
/// a gate. By turns.
fn logins(rounds: usize) -> Vec<Row> {
    let mut worlds = [
        Plan::new("bench-gws-in").at_most(4).start(),
        Plan::new("bench-gws-in-alone").alone().start(),
        Plan::new("bench-gws-in-stock").unguarded().start(),
    ];
    let clients = worlds.each_mut().map(|world| world.lab.client("bob"));
    let mut rows = vec![
        Row::new("a login with a cookie: through the gate, a place taken in etcd", "ms"),
        Row::new("a login with a cookie: through the gate, no [cluster]", "ms"),
        Row::new("a login with a cookie: stock ocserv", "ms"),
    ];
    for round in 0..rounds {
        for (row, (world, client)) in rows.iter_mut().zip(worlds.iter().zip(&clients)) {
            row.values.push(comes(world, client));
        }
        progress("logins", round, rounds);
    }
    rows
}

/// Milliseconds to a tunnel on B, which is left again.
fn comes(world: &Gateways, client: &Client) -> f64 {
    let cookie = client.authenticate(&world[B].server, "bob");
    let begun = Moment::now();
    let tunnel = client.connect(&world[B].server, &cookie, &Connect::default()).up();
    let took = tunnel.since().millis_since(begun);
    tunnel.leave();
    took
}

/// Revocations of people, in one stream on A.
fn many() -> Vec<Row> {
    let mut rows = vec![
        Row::new("revocations of people, in one stream on A: answered", "/s"),
        Row::new("revocations of people, in one stream on A: in force on all three", "/s"),
    ];
    for round in 0..STREAMS {
        let world = Plan::new(&format!("bench-gws-many{round}")).start();
        let (answered, everywhere) = revoke_many(&world, PEOPLE);
        for (row, took) in rows.iter_mut().zip([answered, everywhere]) {
            row.values.push(f64::from(PEOPLE) / took.as_secs_f64());
        }
        progress("streams", round, STREAMS);
    }
    rows
}

/// On standard error, so that nobody wonders.
fn progress(what: &str, round: usize, rounds: usize) {
    if (round + 1).is_multiple_of(25) || round + 1 == rounds {
        eprintln!("{what}: {} of {rounds}", round + 1);
    }
}

/// The users' way: the command on each gateway, one after the other. What ssh costs beside is not in it.
fn over_all(world: &Gateways) -> String {
    let each = world.iter().map(|gateway| {
        let (netns, socket) = (gateway.namespace.path(), gateway.server.socket());
        format!("nsenter --net={} occtl -s {} disconnect user alice", netns.display(), socket.display())
    });
    each.collect::<Vec<_>>().join("; ")
}
