//! `cargo xtask bench web`: nginx as the plain proxy and `enforcer gateway` with sealing, in turns, before the same origin;
//! and how quickly a session ends.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a measurement that cannot be made ends here, with the reason"
)]

mod ends;

use std::fs;
use std::process::ExitCode;

use enforcer_tests::lab::LAN_V4;
use enforcer_tests::portal::{PASSWORD, Portal, WEB_V4};
use enforcer_tests::process::{BOUND, Process, eventually, succeed};
use enforcer_tests::web::{APP, PLAIN_V4, Papers, gateway, plain_address};
use enforcer_tests::{Client, Lab, Namespace};

/// What wrk does: its threads, its connections, for so many seconds in each turn.
const THREADS: u32 = 2;
const CONNECTIONS: u32 = 64;
const SECONDS: u32 = 5;
/// How many sessions are ended.
const ENDS: usize = 100;
/// What the gateway should reach, as a part of what nginx does, with cookies.
const RATE_TARGET: f64 = 0.8;
const LATENCY_TARGET: f64 = 1.5;
/// A cookie as applications have it, and a page.
const COOKIE: &str = "sessionid=k3v9q2x7m1w8z5t4r6y0p3s8d2f7g1h9";
const BODY: usize = 1024;
/// Says what wrk counted, for a program.
const REPORT: &str = "done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('RESULT %d %d %f %f %d\\n', summary.requests, summary.duration, latency:percentile(50),
    latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end\n";

fn main() -> ExitCode {
    let mut rounds = 7;
    let mut json = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match (argument.as_str(), arguments.next()) {
            ("--rounds", Some(number)) if number.parse::<usize>().is_ok_and(|n| (1..=1_000).contains(&n)) => {
                rounds = number.parse().unwrap_or(rounds);
            }
            ("--json", Some(file)) => json = Some(file),
            _ => {
                eprintln!("usage: bench_web [--rounds N] [--json FILE]");
                return ExitCode::from(2);
            }
        }
    }
    let rows = measure(rounds);
    for row in &rows {
        println!("{row}");
    }
    let ends = ends::measure(ENDS);
    println!("{ends}");
    if let Some(file) = json {
        let rows: Vec<_> = rows.iter().map(Row::data).chain(ends.data()).collect();
        if let Err(error) = fs::write(&file, format!("{:#}\n", serde_json::json!(rows))) {
            eprintln!("bench_web: {file}: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// One figure of both, a number for each round.
struct Row {
    case: String,
    unit: &'static str,
    ours: Vec<f64>,
    nginx: Vec<f64>,
    /// What is to be reached of ours by nginx's, and whether at least (true) or at most so much.
    target: Option<(f64, bool)>,
}

fn median(series: &[f64]) -> f64 {
    let mut sorted = series.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Row {
    fn ratio(&self) -> f64 {
        median(&self.ours) / median(&self.nginx)
    }

    fn is_reached(&self) -> Option<bool> {
        let (target, at_least) = self.target?;
        Some(if at_least { self.ratio() >= target } else { self.ratio() <= target })
    }

    fn data(&self) -> serde_json::Value {
        serde_json::json!({
            "case": self.case, "unit": self.unit, "ours": median(&self.ours),
            "peers": { "nginx": median(&self.nginx) }, "against": "nginx", "ratio": self.ratio(),
            "rounds": self.ours.len(), "target": self.target.map(|(target, _)| target),
            "reached": self.is_reached(),
        })
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (ours, nginx, ratio) = (median(&self.ours), median(&self.nginx), self.ratio());
        write!(f, "{} ({}): ours {ours:.1}, nginx {nginx:.1}; {ratio:.2} of nginx", self.case, self.unit)?;
        match (self.target, self.is_reached()) {
            (Some((target, at_least)), Some(reached)) => {
                let bound = if at_least { "at least" } else { "at most" };
                write!(f, " (target: {bound} {target}, {})", if reached { "reached" } else { "NOT REACHED" })
            }
            _ => Ok(()),
        }
    }
}

/// What one turn gave.
struct Turn {
    rate: f64,
    median_ms: f64,
    p99_ms: f64,
    /// CPU time of the proxy for a request, in microseconds.
    cpu: f64,
}

/// One of the two: where it listens, its processes, and the cookies with which it is asked.
struct Contender {
    address: String,
    processes: Vec<i32>,
    cookies: String,
}

fn measure(rounds: usize) -> Vec<Row> {
    let portal = gateway::before("bench-web", &format!("http://{LAN_V4}:8000"), &[], 24 * 3_600);
    let (lab, client) = (&portal.scene.lab, &portal.scene.alice);
    plain_address(lab);
    let papers = gateway::papers(&portal);
    let (_origin, _) = nginx(lab, &lab.lan, "origin", &origin());
    let (_plain, workers) = nginx(lab, &lab.gateway, "plain", &plain(&papers));
    let script = lab.work().join("report.lua");
    fs::write(&script, REPORT).expect("wrk's script");
    let cookies = log_in(&portal);
    let ours = |path: &str, cookies: &str| Contender {
        address: format!("https://{WEB_V4}{path}"),
        processes: vec![portal.pid().as_raw()],
        cookies: cookies.to_owned(),
    };
    let theirs = |path: &str, cookies: &str| Contender {
        address: format!("https://{PLAIN_V4}{path}"),
        processes: workers.clone(),
        cookies: cookies.to_owned(),
    };
    let session = cookies.split("; ").find(|one| one.starts_with("__Host-")).unwrap_or_default();
    let cases = [
        ("a cookie opened and one sealed", ours("/cookie", &cookies), theirs("/cookie", COOKIE), true),
        ("no cookie of the application's", ours("/bare", session), theirs("/bare", ""), false),
    ];
    let mut rows = Vec::new();
    for (case, ours, theirs, judged) in cases {
        let (mut gateways, mut nginxes) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            let mut turns = [(&ours, &mut gateways), (&theirs, &mut nginxes)];
            if round % 2 == 1 {
                turns.reverse();
            }
            for (contender, turns) in turns {
                turns.push(turn(client, &script.display().to_string(), contender));
            }
        }
        let row = |what: &str, unit, figure: fn(&Turn) -> f64, target: Option<(f64, bool)>| Row {
            case: format!("{what}, {case}"),
            unit,
            ours: gateways.iter().map(figure).collect(),
            nginx: nginxes.iter().map(figure).collect(),
            target: target.filter(|_| judged),
        };
        rows.extend([
            row("requests a second", "1/s", |turn| turn.rate, Some((RATE_TARGET, true))),
            row("median latency", "ms", |turn| turn.median_ms, None),
            row("p99 latency", "ms", |turn| turn.p99_ms, Some((LATENCY_TARGET, false))),
            row("the proxy's CPU for a request", "µs", |turn| turn.cpu, None),
        ]);
    }
    rows
}

const COMMON: &str =
    "daemon off; pid pid; user nobody nogroup; error_log stderr warn; events { worker_connections 4096; }
http { access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
uwsgi_temp_path uwsgi; scgi_temp_path scgi; keepalive_requests 1000000000; keepalive_timeout 1h;\n";

/// Fixed answers: with a cookie, and without.
fn origin() -> String {
    let body = "x".repeat(BODY);
    format!(
        "worker_processes 1; {COMMON} server {{ listen {LAN_V4}:8000; default_type text/html;\n\
         location /cookie {{ add_header Set-Cookie '{COOKIE}; Path=/; HttpOnly; Secure; SameSite=Lax'; return 200 {body}; }}\n\
         location / {{ return 200 {body}; }} }} }}\n"
    )
}

/// A plain proxy before it, with connections that wait.
fn plain(papers: &Papers) -> String {
    format!(
        "worker_processes auto; {COMMON} upstream origin {{ server {LAN_V4}:8000; keepalive 128;\n\
         keepalive_requests 1000000000; }}\n\
         server {{ listen {PLAIN_V4}:443 ssl http2; ssl_certificate {}; ssl_certificate_key {};\n\
         location / {{ proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection '';\n\
         proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;\n\
         proxy_set_header X-Forwarded-Proto $scheme; }} }} }}\n",
        papers.certificate(),
        papers.key()
    )
}

/// Starts an nginx; gives its workers' ids as well.
fn nginx(lab: &Lab, namespace: &Namespace, name: &str, conf: &str) -> (Process, Vec<i32>) {
    let folder = lab.shared().scratch(name);
    let file = folder.join("nginx.conf");
    let conf = conf.replacen("pid pid", &format!("pid {}", folder.join("pid").display()), 1);
    fs::write(&file, conf).expect("a configuration");
    let mut command = namespace.command("/usr/sbin/nginx");
    command.arg("-p").arg(&folder).args(["-e", "stderr", "-c"]).arg(file);
    let mut process = Process::start(name, command, &lab.work().join(format!("{name}.log")), None);
    let workers = eventually(&format!("the nginx {name} has workers"), BOUND, || {
        if let Some(status) = process.exited() {
            panic!("nginx ended ({status}):\n{}", process.log());
        }
        let pid = process.pid();
        let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        let workers: Vec<i32> = text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
        (!workers.is_empty()).then_some(workers)
    });
    (process, workers)
}

/// Logs alice in at the gateway, and has a cookie of the application sealed; gives the Cookie line that a browser would send.
fn log_in(portal: &Portal) -> String {
    let browser = portal.browser("wrk");
    let page = browser.try_login(&format!("https://{APP}/cookie"), "alice", PASSWORD);
    assert!(page.body.contains(&"x".repeat(BODY)), "no login: {page:?}");
    let cookie = |name: &str| format!("{name}={}", browser.cookie(APP, name).expect("a cookie"));
    let sealed = cookie("sessionid");
    assert_ne!(sealed, COOKIE, "the application's cookie is not sealed");
    format!("{}; {sealed}", cookie("__Host-enforcer"))
}

/// One turn of wrk.
fn turn(client: &Client, script: &str, contender: &Contender) -> Turn {
    let mut wrk = client.namespace.command("wrk");
    wrk.args([format!("-t{THREADS}"), format!("-c{CONNECTIONS}"), format!("-d{SECONDS}s")]);
    wrk.args(["--latency", "-s", script, "-H", &format!("Host: {APP}")]);
    if !contender.cookies.is_empty() {
        wrk.args(["-H", &format!("Cookie: {}", contender.cookies)]);
    }
    wrk.arg(&contender.address);
    let before = cpu(&contender.processes);
    let said = succeed(wrk, "");
    let spent = cpu(&contender.processes) - before;
    let line = said.lines().find_map(|line| line.strip_prefix("RESULT ")).expect("wrk's report");
    let figures: Vec<f64> = line.split_whitespace().filter_map(|figure| figure.parse().ok()).collect();
    let [requests, duration, median, p99, errors] = figures[..] else { panic!("wrk said {line}") };
    assert!(errors == 0.0 && !said.contains("Non-2xx"), "not every request was answered:\n{said}");
    Turn {
        rate: requests / (duration / 1e6),
        median_ms: median / 1e3,
        p99_ms: p99 / 1e3,
        cpu: spent as f64 / 1e3 / requests,
    }
}

/// CPU time of all threads of these processes, in nanoseconds.
fn cpu(processes: &[i32]) -> u64 {
    let threads = processes.iter().flat_map(|pid| {
        fs::read_dir(format!("/proc/{pid}/task")).expect("a process").flatten().map(|task| task.path())
    });
    threads
        .filter_map(|task| fs::read_to_string(task.join("schedstat")).ok())
        .filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok())
        .sum()
}
