//! `cargo xtask bench`: from the command to the last packet and to the answer, beside stock ocserv in the same
//! alternating run; and what the gate costs a login, beside a process that does nothing.
#![allow(clippy::expect_used, reason = "a measurement that cannot be made ends here, with the reason")]

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use enforcer_tests::blast::{Blast, Port, packet};
use enforcer_tests::enforcer::Config;
use enforcer_tests::lab::{LAN, ROUTER_V4, WAN};
use enforcer_tests::scene::Pair;
use enforcer_tests::{Client, Enforcer, Era, Lab, Moment, Ocserv, Server, Tap};

/// Packets a second of others that come in from outside meanwhile.
const LOADS: [u32; 3] = [0, 100_000, 1_000_000];
/// Where they go: the gateway has no route there.
const ELSEWHERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 18, 0, 1), 443);

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
        // under load the eras are not told apart
        let loads = if era == Era::Sid { &LOADS[..] } else { &LOADS[..1] };
        for load in loads {
            rows.extend(ending(era, rounds, *load));
        }
        rows.extend(gate(era, rounds * 10));
    }
    println!("{:<72}{:>8}{:>9}{:>9}{:>9}{:>6}", "case (ms)", "min", "median", "p95", "max", "n");
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
        write!(f, "{:<72}{min:>8.1}{median:>9.1}{p95:>9.1}{max:>9.1}{:>6}", self.case, self.times.len())
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
        let (alice, tap) = (lab.client("alice"), Tap::without(&lab.gateway, Some(*ELSEWHERE.ip())));
        Self { server, enforcer: None, alice, tap, lab }
    }

    fn guarded(era: Era) -> Self {
        let mut lab = Lab::new("bench-guarded");
        let plain = Ocserv::new(&lab, era, 0);
        let mut enforcer = Enforcer::prepare(&lab, &Config::new(&[&plain]));
        let server = enforcer.guard(plain).start();
        enforcer.start();
        let (alice, tap) = (lab.client("alice"), Tap::without(&lab.gateway, Some(*ELSEWHERE.ip())));
        Self { server, enforcer: Some(enforcer), alice, tap, lab }
    }

    /// Packets of others, as many a second as one thread can send.
    fn others(&self, rate: u32) -> Option<Blast> {
        (rate != 0).then(|| {
            let packet = packet(SocketAddrV4::new(ROUTER_V4, 40_000), ELSEWHERE);
            Blast::start(Port::wire(&self.lab.router, "uplink", &self.lab.gateway, WAN), packet, rate)
        })
    }

    /// One session under 500 packets a second each way, ended: to its last packet on the LAN side, and to the answer;
    /// milliseconds. And how many packets of others were sent a second.
    fn round(&self, load: u32) -> (f64, f64, f64) {
        let (_, mut tunnel) = self.alice.session(&self.server, "alice");
        if let Some(enforcer) = &self.enforcer {
            enforcer.knows("alice");
        }
        let flood = Pair::new(&self.lab, &self.alice, &tunnel, false, 500);
        let others = self.others(load);
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
        let rate = others.map_or(0, |others| others.rate());
        (last.millis_since(begun), answered.millis_since(begun), rate as f64)
    }
}

fn ending(era: Era, rounds: usize, load: u32) -> Vec<Row> {
    let sides = [
        ("stock occtl disconnect user", Side::stock(era)),
        ("enforcer disconnect user -i", Side::guarded(era)),
    ];
    for (_, side) in &sides {
        side.lab.gateway.ip(&format!("route add blackhole {}\n", ELSEWHERE.ip()));
    }
    let mut all = vec![[Vec::new(), Vec::new(), Vec::new()]; sides.len()];
    for _ in 0..rounds {
        for ((_, side), [last, answer, sent]) in sides.iter().zip(&mut all) {
            let (to_last, to_answer, rate) = side.round(load);
            last.push(to_last);
            answer.push(to_answer);
            sent.push(rate);
        }
    }
    let rows = sides.iter().zip(all).flat_map(|((what, _), [last, answer, mut sent])| {
        sent.sort_by(f64::total_cmp);
        let rate = sent.get(sent.len() / 2).copied().unwrap_or_default();
        let under = if load == 0 { String::new() } else { format!(" under {:.0},000/s", rate / 1_000.0) };
        let row = |to: &str, times| Row { case: format!("{era}: {what}{under}, to the {to}"), times };
        [row("last packet", last), row("answer", answer)]
    });
    rows.collect()
}

/// The gate as ocserv runs it, for a session that is there: from its start to its exit.
fn gate(era: Era, runs: usize) -> Vec<Row> {
    let mut side = Side::guarded(era);
    let (_, tunnel) = side.alice.session(&side.server, "alice");
    let id = side.server.session_at("alice", tunnel.v4).id.to_string();
    let mut rows = Vec::new();
    for daemon in [true, false] {
        if let (false, Some(enforcer)) = (daemon, &mut side.enforcer) {
            enforcer.kill();
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
