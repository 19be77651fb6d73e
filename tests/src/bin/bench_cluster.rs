//! `cargo xtask bench cluster`: from the command on one gateway to the last packet on another, beside the users' way today (a
//! loop over the gateways with ocserv's own command, and a script on each gateway that asks every ten seconds); and how long a
//! login takes.
#![allow(clippy::expect_used, reason = "a measurement that cannot be made ends here, with the reason")]

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use enforcer_tests::enforcer::DONE;
use enforcer_tests::gateways::{A, B, Gateways, Plan};
use enforcer_tests::lab::LAN;
use enforcer_tests::process::{Process, command, output};
use enforcer_tests::scene::Pair;
use enforcer_tests::{Client, Connect, Moment, Tap};

/// Packets a second in each direction.
const RATE: u32 = 1_000;
/// How often a poller asks.
const POLL: Duration = Duration::from_secs(10);

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
    let mut rows = guarded(rounds);
    rows.extend(stock(rounds));
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
/// end of the command.
fn ended(world: &Gateways, alice: &Client, tap: &Tap, order: &mut dyn FnMut()) -> (f64, f64) {
    let (_, mut tunnel) = alice.session(&world[B].server, "alice");
    let pair = Pair::new(&world.lab, alice, &tunnel, false, RATE);
    pair.flowing();
    let begun = Moment::now();
    order();
    let answered = Moment::now();
    tunnel.wait_end();
    let last = tap.last_out(LAN, IpAddr::V4(tunnel.v4)).map_or(begun, |packet| packet.at);
    (last.millis_since(begun), answered.millis_since(begun))
}

fn guarded(rounds: usize) -> Vec<Row> {
    let mut world = Plan::new("bench-gws").start();
    let alice = world.lab.client("alice");
    let mut last = Row::new("enforcer, revoked on A: her last packet on B", "ms");
    let mut answer = Row::new("enforcer, revoked on A: the answer, in force on all three", "ms");
    let mut login = Row::new("a login through the gate, with a cookie, to the tunnel", "ms");
    let tap = Tap::start(&world[B].namespace);
    for _ in 0..rounds {
        let (to_last, to_answer) = ended(&world, &alice, &tap, &mut || {
            let words = ["disconnect", "user", "--invalidate", "alice", "--json"];
            assert_eq!(world[A].enforcer.cli(&words).code, DONE, "the command failed");
        });
        last.values.push(to_last);
        answer.values.push(to_answer);
        login.values.push(comes(&world, &alice));
    }
    vec![last, answer, login]
}

/// Milliseconds from the start of a client that has a cookie to its tunnel.
fn comes(world: &Gateways, client: &Client) -> f64 {
    let cookie = client.authenticate(&world[B].server, "bob");
    let begun = Moment::now();
    let tunnel =
        client.connect(&world[B].server, &cookie, &Connect::default().device("tun1").no_routes()).up();
    let took = tunnel.since().millis_since(begun);
    tunnel.leave();
    took
}

fn stock(rounds: usize) -> Vec<Row> {
    let mut world = Plan::new("bench-gws-stock").unguarded().start();
    let alice = world.lab.client("alice");
    let tap = Tap::start(&world[B].namespace);
    let mut last = Row::new("a loop over occtl on A, B and C: her last packet on B", "ms");
    let mut answer = Row::new("a loop over occtl on A, B and C: its end", "ms");
    for _ in 0..rounds {
        let (to_last, to_answer) = ended(&world, &alice, &tap, &mut || {
            output(command("sh", ["-c", &over_all(&world)]), "");
        });
        last.values.push(to_last);
        answer.values.push(to_answer);
    }
    let mut polled = Row::new("a list that each gateway asks for every 10 s: her last packet on B", "ms");
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
    // each of them takes five seconds in the mean
    for _ in 0..rounds.div_ceil(10) {
        let (to_last, _) = ended(&world, &alice, &tap, &mut || std::fs::write(&list, "").expect("a file"));
        std::fs::remove_file(&list).expect("a file");
        polled.values.push(to_last);
    }
    poller.stop();
    vec![last, answer, polled]
}

/// The users' way: the command on each gateway, one after the other. What ssh costs beside is not in it.
fn over_all(world: &Gateways) -> String {
    let each = world.iter().map(|gateway| {
        let (netns, socket) = (gateway.namespace.path(), gateway.server.socket());
        format!("nsenter --net={} occtl -s {} disconnect user alice", netns.display(), socket.display())
    });
    each.collect::<Vec<_>>().join("; ")
}
