//! `cargo xtask bench`: from the command to the last packet and to the answer, beside stock ocserv in the same
//! alternating run; and what the gate costs a login, beside a process that does nothing.

use std::net::IpAddr;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use enforcer_tests::enforcer::Config;
use enforcer_tests::lab::LAN;
use enforcer_tests::scene::Pair;
use enforcer_tests::{Client, Enforcer, Era, Lab, Moment, Ocserv, Server, Tap};

fn main() -> ExitCode {
    let mut rounds = 20;
    let mut json = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match (argument.as_str(), arguments.next()) {
            ("--rounds", Some(number)) if number.parse::<usize>().is_ok_and(|n| (1..=1_000).contains(&n)) => {
                rounds = number.parse().unwrap_or(rounds);
            }
            ("--json", Some(file)) => json = Some(file),
            _ => {
                eprintln!("usage: bench [--rounds N] [--json FILE]");
                return ExitCode::from(2);
            }
        }
    }
    let mut rows = Vec::new();
    for era in [Era::Bookworm, Era::Sid] {
        rows.extend(ending(era, rounds));
        rows.extend(gate(era, rounds * 10));
    }
    println!("{:<56}{:>8}{:>9}{:>9}{:>9}{:>6}", "case (ms)", "min", "median", "p95", "max", "n");
    for row in &rows {
        println!("{row}");
    }
    if let Some(file) = json {
        let rows: Vec<_> = rows.iter().map(Row::data).collect();
        if let Err(error) = std::fs::write(&file, format!("{:#}\n", serde_json::json!(rows))) {
            eprintln!("bench: {file}: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// One series of times, in milliseconds.
struct Row {
    case: String,
    times: Vec<f64>,
}

impl Row {
    fn new(case: String) -> Self {
        Self { case, times: Vec::new() }
    }

    /// min, median, 95th percentile, max.
    fn figures(&self) -> [f64; 4] {
        let mut sorted = self.times.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let last = sorted.len().saturating_sub(1);
            sorted.get((last as f64 * part).round() as usize).copied().unwrap_or(f64::NAN)
        };
        [at(0.0), at(0.5), at(0.95), at(1.0)]
    }

    fn data(&self) -> serde_json::Value {
        let [min, median, p95, max] = self.figures();
        serde_json::json!({
            "case": self.case, "unit": "ms", "n": self.times.len(),
            "min": min, "median": median, "p95": p95, "max": max,
        })
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [min, median, p95, max] = self.figures();
        write!(f, "{:<56}{min:>8.1}{median:>9.1}{p95:>9.1}{max:>9.1}{:>6}", self.case, self.times.len())
    }
}

/// A gateway with one client.
struct Side {
    server: Server,
    enforcer: Option<Enforcer>,
    alice: Client,
    tap: Tap,
    lab: Lab,
}

impl Side {
    fn stock(era: Era) -> Self {
        let mut lab = Lab::new("bench-stock");
        let server = Ocserv::new(&lab, era, 0).start();
        let (alice, tap) = (lab.client("alice"), Tap::start(&lab.gateway));
        Self { server, enforcer: None, alice, tap, lab }
    }

    fn guarded(era: Era) -> Self {
        let mut lab = Lab::new("bench-guarded");
        let plain = Ocserv::new(&lab, era, 0);
        let mut enforcer = Enforcer::prepare(&lab, &Config::new(&[&plain]));
        let server = enforcer.guard(plain).start();
        enforcer.start();
        let (alice, tap) = (lab.client("alice"), Tap::start(&lab.gateway));
        Self { server, enforcer: Some(enforcer), alice, tap, lab }
    }

    /// One session under 500 packets a second each way, ended: to its last packet on the LAN side, and to the answer.
    fn round(&self) -> (f64, f64) {
        let (_, mut tunnel) = self.alice.session(&self.server, "alice");
        if let Some(enforcer) = &self.enforcer {
            enforcer.knows("alice");
        }
        let flood = Pair::new(&self.lab, &self.alice, &tunnel, false, 500);
        flood.flowing();
        let begun = Moment::now();
        let code = match &self.enforcer {
            Some(enforcer) => enforcer.cli(&["disconnect", "user", "--invalidate", "alice"]).code,
            None => self.server.occtl(&["disconnect", "user", "alice"]).code,
        };
        let answered = Moment::now();
        assert_eq!(code, 0, "the command failed");
        tunnel.wait_end();
        let last = self.tap.last_out(LAN, IpAddr::V4(tunnel.v4)).map_or(begun, |packet| packet.at);
        (last.millis_since(begun), answered.millis_since(begun))
    }
}

fn ending(era: Era, rounds: usize) -> Vec<Row> {
    let sides = [
        ("stock occtl disconnect user", Side::stock(era)),
        ("enforcer disconnect user -i", Side::guarded(era)),
    ];
    let row = |what: &str, to: &str| Row::new(format!("{era}: {what}, to the {to}"));
    let mut rows: Vec<(Row, Row)> =
        sides.iter().map(|(what, _)| (row(what, "last packet"), row(what, "answer"))).collect();
    for _ in 0..rounds {
        for ((_, side), (last, answer)) in sides.iter().zip(&mut rows) {
            let (to_last, to_answer) = side.round();
            last.times.push(to_last);
            answer.times.push(to_answer);
        }
    }
    rows.into_iter().flat_map(|(last, answer)| [last, answer]).collect()
}

/// The gate as ocserv runs it, for a session that is there: from its start to its exit.
fn gate(era: Era, runs: usize) -> Vec<Row> {
    let mut side = Side::guarded(era);
    let (_, tunnel) = side.alice.session(&side.server, "alice");
    let id = side.server.session_at("alice", tunnel.v4).id.to_string();
    let mut rows = Vec::new();
    for daemon in [true, false] {
        if !daemon {
            if let Some(enforcer) = &mut side.enforcer {
                enforcer.kill();
            }
        }
        let how = if daemon { "asks the daemon" } else { "daemon killed: pinned maps" };
        let mut ours = Row::new(format!("{era}: the gate, {how}"));
        let mut nothing = Row::new(format!("{era}: /bin/true beside it"));
        for _ in 0..runs {
            let Some(enforcer) = &side.enforcer else { continue };
            let mut gate = side.lab.gateway.command(&enforcer.gate().display().to_string());
            gate.env("ENFORCER_CONFIG", enforcer.config());
            gate.envs([("REASON", "connect"), ("ID", &id), ("USERNAME", "alice"), ("DEVICE", "vpns0")]);
            gate.env("IP_REMOTE", tunnel.v4.to_string());
            ours.times.push(run(&mut gate));
            nothing.times.push(run(&mut side.lab.gateway.command("/bin/true")));
        }
        rows.push(ours);
        rows.push(nothing);
    }
    rows
}

fn run(command: &mut Command) -> f64 {
    let start = Instant::now();
    let status = command.stdout(Stdio::null()).stderr(Stdio::inherit()).status().expect("it runs");
    let took = start.elapsed();
    assert!(status.success(), "{command:?}: {status}");
    took.as_secs_f64() * 1_000.0
}
