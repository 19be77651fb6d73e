//! From the command to the last packet that came past it, under other traffic; beside others who are told to drop a
//! client.

use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use enforcer::control::{ControlClient, api, connect_control};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use tokio::runtime::Runtime;

use crate::flood::Load;
use crate::lab::{Lab, inside};
use crate::lane::{DEVICE, Lane, run};
use crate::objects::{CLIENT_PORT, LOCAL_PORT};
use crate::peers;
use crate::probe::{Probe, Receiver, now};
use crate::rows::{Row, quantile};

/// Packets a second of others that come in meanwhile and pass.
const LOADS: [u32; 3] = [0, 100_000, 1_000_000];
/// Of clients: each is stopped once, by everybody.
const FIRST: u32 = 0x0a40_0000;

/// Tells somebody to stop that client.
type Stop = Box<dyn FnMut(&Lane, Ipv4Addr)>;

/// One who is told to stop a client.
struct Contender {
    name: &'static str,
    lane: usize,
    stop: Stop,
    /// Milliseconds from the start: to the last packet, and until it has answered.
    last: Vec<f64>,
    answer: Vec<f64>,
}

impl Contender {
    fn new(name: &'static str, lane: usize, stop: impl FnMut(&Lane, Ipv4Addr) + 'static) -> Self {
        Self { name, lane, stop: Box::new(stop), last: Vec::new(), answer: Vec::new() }
    }
}

pub fn rows(lab: &Lab, rounds: usize) -> Vec<Row> {
    // the other groups stay on one CPU; here only what makes the load does
    let mut all = CpuSet::new();
    (0..CpuSet::count()).for_each(|cpu| {
        let _ = all.set(cpu);
    });
    sched_setaffinity(Pid::from_raw(0), &all).expect("all CPUs");
    let rounds = rounds.max(100);
    let lanes: Vec<Lane> = (0..4).map(|_| Lane::new()).collect();
    let [ours, nft, ipset, filter] = &lanes[..] else { panic!("four lanes") };
    let daemon = Daemon::start(lab, ours);
    ours.without_program();
    nft.without_program();
    peers::nft_ingress(nft, 0, MOST);
    ipset.without_program();
    peers::iptables(ipset, 0, MOST);
    let _unload = XdpFilter::load(filter);
    let config = daemon.config.clone();
    let mut api = Api::connect(&daemon.socket);
    let mut contenders = vec![
        Contender::new("enforcer revoke flow", 0, move |lane, client| {
            let mut command = Command::new(BINARY);
            command.env("ENFORCER_CONFIG", &config).args(["revoke", "flow", "udp", &end(client), &here()]);
            succeed(lane, command);
        }),
        Contender::new("the same through the API", 0, move |_, client| api.revoke(client)),
        Contender::new("nft add element (netdev ingress)", 1, |lane, client| {
            let mut command = Command::new("nft");
            command.args(["add", "element", "netdev", "t", "s", &format!("{{ {client} }}")]);
            succeed(lane, command);
        }),
        Contender::new("ipset add (iptables raw)", 2, |lane, client| {
            let mut command = Command::new("ipset");
            command.args(["add", "s", &client.to_string()]);
            succeed(lane, command);
        }),
        Contender::new("xdp-filter ip", 3, |lane, client| {
            let mut command = Command::new("xdp-filter");
            command.args(["ip", "-m", "src", &client.to_string()]);
            succeed(lane, command);
        }),
        Contender::new("/bin/true, which stops nobody", 0, |lane, _| {
            succeed(lane, Command::new("/bin/true"))
        }),
    ];
    let nobody = contenders.len() - 1;
    let loads: Vec<Load> = lanes.iter().map(Load::new).collect();
    let receivers: Vec<Receiver> = lanes.iter().map(|lane| Receiver::new(lane, LOCAL_PORT)).collect();
    let mut rows = Vec::new();
    let mut client = FIRST;
    for load in LOADS {
        let mut rates = Vec::new();
        for _ in 0..rounds {
            for (at, contender) in contenders.iter_mut().enumerate() {
                client += 1;
                let (lane, receiver) = (&lanes[contender.lane], &receivers[contender.lane]);
                let probe =
                    (at != nobody).then(|| Probe::start(lane, client.into(), CLIENT_PORT, LOCAL_PORT));
                if let Some(probe) = &probe {
                    probe.comes_through(receiver);
                }
                let others = loads[contender.lane].sends(load);
                let begun = now();
                (contender.stop)(lane, client.into());
                contender.answer.push((now() - begun) as f64 / 1e6);
                if let Some(probe) = &probe {
                    contender.last.push((probe.last(receiver) - begun).max(0) as f64 / 1e6);
                }
                rates.push(others.rate());
            }
        }
        rows.extend(said(load, quantile(&rates, 0.5), &mut contenders));
    }
    drop(contenders);
    drop(daemon);
    rows
}

/// What the sets of the others have room for.
const MOST: u32 = 65_536;
const BINARY: &str = env!("CARGO_BIN_EXE_enforcer");

/// The figures of one load.
fn said(load: u32, rate: f64, contenders: &mut [Contender]) -> Vec<Row> {
    let mut rows = Vec::new();
    for (part, name) in [(0.5, "median"), (0.99, "p99")] {
        for (what, of) in
            [("last packet", (|one| &one.last) as fn(&Contender) -> &Vec<f64>), ("answer", |one| &one.answer)]
        {
            let mut all: Vec<_> = contenders
                .iter()
                .filter(|one| !of(one).is_empty())
                .map(|one| (one.name.to_owned(), vec![quantile(of(one), part)]))
                .collect();
            let count = contenders.first().map_or(0, |one| of(one).len());
            let ours = all.remove(0);
            rows.push(Row {
                case: format!(
                    "from the command to the {what}, {name} of {count}, {load} packets/s of others wanted, {rate:.0} sent"
                ),
                unit: "ms",
                ours: ours.1,
                peers: all,
                limits: Vec::new(),
                against: "nft add element (netdev ingress)",
            });
        }
    }
    for contender in contenders {
        contender.last.clear();
        contender.answer.clear();
    }
    rows
}

fn end(client: Ipv4Addr) -> String {
    format!("{client}:{CLIENT_PORT}")
}

fn here() -> String {
    format!("{}:{LOCAL_PORT}", Ipv4Addr::from(crate::lane::ADDRESS))
}

fn succeed(lane: &Lane, mut command: Command) {
    let status = lane.here(|| command.stdout(Stdio::null()).status()).expect("it starts");
    assert!(status.success(), "{command:?}: {status}");
}

/// The daemon that gateways run, in the lane's namespace.
struct Daemon {
    process: Child,
    config: PathBuf,
    socket: PathBuf,
    pins: PathBuf,
    folder: PathBuf,
}

impl Daemon {
    fn start(lab: &Lab, lane: &Lane) -> Self {
        let folder = std::env::temp_dir().join(format!("enforcer-bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let (config, socket) = (folder.join("config.toml"), folder.join("control.sock"));
        let pins = lab.pin_path();
        let path = |name: &str| folder.join(name).display().to_string();
        let text = format!(
            "[kernel]\nouter = [{DEVICE:?}]\ninner = []\npin-path = {:?}\n\
             [ocserv]\ncontrol-socket = {:?}\n[gate]\nsocket = {:?}\n\
             [state]\ndirectory = {:?}\n[control]\nsocket = {:?}\n",
            pins,
            path("no-ocserv.sock"),
            path("gate.sock"),
            path("state"),
            socket
        );
        std::fs::write(&config, text).expect("a configuration");
        let log = std::fs::File::create(folder.join("log")).expect("a log");
        let mut command = Command::new(BINARY);
        command.arg("run").env("ENFORCER_CONFIG", &config).stdout(Stdio::null()).stderr(log);
        let process = inside(lane.receiver.as_fd(), || command.spawn()).expect("the daemon starts");
        let new = Self { process, config, socket, pins, folder };
        let bound = Instant::now() + Duration::from_secs(60);
        while !new.answers() {
            assert!(Instant::now() < bound, "the daemon does not answer: see {}", new.folder.display());
            std::thread::sleep(Duration::from_millis(20));
        }
        new
    }

    fn answers(&self) -> bool {
        let mut command = Command::new(BINARY);
        command.args(["show", "status"]).env("ENFORCER_CONFIG", &self.config);
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if let Err(error) = enforcer::dataplane::Dataplane::unload(&self.pins) {
            eprintln!("what the daemon has pinned stays: {error:#}");
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A connection to the daemon that stays open.
struct Api {
    runtime: Runtime,
    client: ControlClient,
}

impl Api {
    fn connect(socket: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let client = runtime.block_on(connect_control(socket)).expect("the daemon");
        Self { runtime, client }
    }

    fn revoke(&mut self, client: Ipv4Addr) {
        let what = api::target::What::Flow(format!("udp {} {}", end(client), here()));
        let request = api::RevokeRequest {
            target: Some(api::Target { what: Some(what), ..api::Target::default() }),
            ..api::RevokeRequest::default()
        };
        self.runtime.block_on(self.client.revoke(request)).expect("a receipt");
    }
}

/// The command, with its dispatcher, as its users have it.
struct XdpFilter<'a>(&'a Lane);

impl<'a> XdpFilter<'a> {
    fn load(lane: &'a Lane) -> Self {
        lane.here(|| run("xdp-filter", &["load", "-m", "native", "-f", "ipv4", DEVICE], ""));
        Self(lane)
    }
}

impl Drop for XdpFilter<'_> {
    fn drop(&mut self) {
        self.0.here(|| run("xdp-filter", &["unload", DEVICE], ""));
    }
}
