//! A small world around the registry: ocserv servers with cookies and workers, the kernel's map, and everything
//! that takes time, which the tests let happen when they want it.

mod daemon;
mod effects;
mod ocserv;
mod people;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::super::scenarios::disk::Disk;
use super::super::*;
use crate::session::{
    Cookie, CutoffKey, Device, Entry, Flow, Netns, Observed, Process, Protocol, SafeId, ServerName, Stands,
};

pub use std::time::Duration;

pub const NETNS: Netns = Netns(1);
pub const SECOND: Duration = Duration::from_secs(1);

pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub fn vpn() -> ServerName {
    ServerName::new("vpn")
}

pub fn ip(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 8, 0, last).into()
}

pub fn outer(port: u16) -> Flow {
    let client = SocketAddr::new(Ipv4Addr::new(192, 0, 2, 1).into(), port);
    Flow::new(Protocol::Tcp, client, "198.51.100.1:443".parse().unwrap()).unwrap()
}

#[derive(Debug, Clone, PartialEq)]
pub struct Worker {
    pub process: Process,
    pub server: ServerName,
    pub cookie: SafeId,
    pub user: String,
    pub device: Device,
    pub address: IpAddr,
    pub flow: Flow,
    /// When it connected.
    pub since: u64,
    /// Past its connect-script.
    pub tun: bool,
    /// Stopped: it neither says goodbye nor dies of its sockets' end.
    pub hangs: bool,
    /// ocserv's main process has let it go: it lists it no more, and gives its address to others.
    pub let_go: bool,
}

#[derive(Debug)]
pub struct Ocserv {
    pub main: Process,
    pub up: bool,
    pub terminate: bool,
    pub lists_cookies: bool,
    pub cookies: BTreeMap<SafeId, Cookie>,
    /// Cookies of a sec-mod instance that does not answer.
    pub hidden: BTreeSet<SafeId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InKernel {
    pub number: Number,
    pub stands: Stands,
    pub moment: u64,
}

/// What is under way, and since when.
#[derive(Debug, Clone)]
pub struct Task {
    pub at: Duration,
    pub what: Effect,
    /// What ocserv would have answered then.
    pub stale: Option<Stale>,
}

#[derive(Debug, Clone)]
pub enum Stale {
    List(Vec<Sighting>),
    Cookies(Vec<Cookie>),
}

pub struct World {
    pub registry: Registry,
    pub rules: Rules,
    pub now: Now,
    pub kernel: BTreeMap<Entry, InKernel>,
    /// The gate's server of each entry, as the kernel's map keeps it.
    pub kernel_server: BTreeMap<Entry, Option<ServerName>>,
    pub ocservs: BTreeMap<ServerName, Ocserv>,
    pub workers: BTreeMap<i32, Worker>,
    pub watched: BTreeMap<SessionKey, Process>,
    pub devices: BTreeSet<Device>,
    pub tasks: VecDeque<Task>,
    pub answers: BTreeMap<Request, Answer>,
    pub verdicts: BTreeMap<Ask, Verdict>,
    pub notes: Vec<(&'static str, String)>,
    /// Disconnects and ends that were carried out, in their order.
    pub acts: Vec<Effect>,
    pub refusals: Vec<Entry>,
    /// What other gateways have to be told, and what is told for their sake.
    pub replicated: Vec<Effect>,
    /// The kernel's tables take no new entry.
    pub full: bool,
    /// No write to the kernel's tables succeeds.
    pub broken: bool,
    /// Addresses are not taken out of them.
    pub sticky: bool,
    /// Workers' processes cannot be seen: ocserv runs in a container.
    pub blind: bool,
    /// Nothing is told at once: the end of a process or of a device is told when its task is carried out.
    pub late: bool,
    /// Workers that have ended.
    pub ended: Vec<Worker>,
    /// What connection tracking has: whose it is, by tunnel address; `None`: there is none; `Err`: it cannot be read.
    pub tracked: Result<Option<BTreeMap<IpAddr, Vec<Process>>>, String>,
    /// Whose connections were taken out.
    pub deleted: Vec<Process>,
    /// Taking connections out takes its time.
    pub slow_conntrack: bool,
    pub disk: Disk,
    /// What the disk has to tell, once the event at hand is done.
    told: Vec<Event>,
    depth: u32,
    pub netns: Netns,
    pub check_indexes: bool,
    /// The next revocation's number, as the kernel's maps keep it.
    pub numbered: Number,
    pub boot_id: u32,
    /// The daemon dies after so many effects.
    pub dies_after: Option<u32>,
    /// It has died: nothing it was about to do happens.
    pub died: bool,
    next: u32,
}

impl World {
    pub fn new() -> Self {
        Self::with(&["vpn"], Rules::default())
    }

    pub fn with(names: &[&str], rules: Rules) -> Self {
        let names: Vec<ServerName> = names.iter().map(|name| ServerName::new(name)).collect();
        let mut world = Self {
            registry: Registry::new(names.clone(), NETNS, rules.clone()),
            rules,
            now: Now { mono: Duration::from_secs(1_000), wall: 1_700_000_000 },
            kernel: BTreeMap::new(),
            kernel_server: BTreeMap::new(),
            ocservs: BTreeMap::new(),
            workers: BTreeMap::new(),
            watched: BTreeMap::new(),
            devices: BTreeSet::new(),
            tasks: VecDeque::new(),
            answers: BTreeMap::new(),
            verdicts: BTreeMap::new(),
            notes: Vec::new(),
            acts: Vec::new(),
            refusals: Vec::new(),
            replicated: Vec::new(),
            full: false,
            broken: false,
            sticky: false,
            blind: false,
            late: false,
            ended: Vec::new(),
            tracked: Ok(Some(BTreeMap::new())),
            deleted: Vec::new(),
            slow_conntrack: false,
            disk: Disk::default(),
            told: Vec::new(),
            depth: 0,
            netns: NETNS,
            check_indexes: true,
            numbered: 0,
            boot_id: 1,
            dies_after: None,
            died: false,
            next: 100,
        };
        for (i, name) in names.into_iter().enumerate() {
            let main = Process { pid: 10 + i as i32, start: 1 };
            let ocserv = Ocserv {
                main,
                up: true,
                terminate: false,
                lists_cookies: true,
                cookies: BTreeMap::new(),
                hidden: BTreeSet::new(),
            };
            world.ocservs.insert(name, ocserv);
        }
        world.adopt();
        world
    }

    /// With an ocserv that has `terminate`.
    pub fn newest_ocserv() -> Self {
        let mut world = Self::new();
        world.vpn().terminate = true;
        world.servers_up();
        world
    }

    pub fn vpn(&mut self) -> &mut Ocserv {
        self.ocservs.get_mut(&vpn()).unwrap()
    }

    pub fn count(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    // what is so

    pub fn drops(&self, entry: &Entry) -> bool {
        self.kernel.contains_key(entry)
    }

    pub fn refuses(&self, cookie: SafeId) -> bool {
        self.drops(&Entry::SafeId(cookie))
    }

    pub fn cuts_off(&self, user: &str) -> bool {
        self.drops(&Entry::Cutoff(CutoffKey::new(&vpn(), user)))
    }

    pub fn stopped(&self, id: i32) -> bool {
        self.workers.get(&id).is_none_or(|w| self.drops(&Entry::Device(w.device)))
    }

    /// Something in the kernel is said of what this worker has.
    pub fn hit(&self, worker: &Worker) -> Option<Entry> {
        [
            Entry::Device(worker.device),
            Entry::Address(self.netns, worker.address),
            Entry::Flow(self.netns, worker.flow),
            Entry::SafeId(worker.cookie),
        ]
        .into_iter()
        .find(|entry| self.drops(entry))
    }

    pub fn is_hit(&self, id: i32) -> bool {
        self.hit(&self.workers[&id]).is_some()
    }

    pub fn row(&self, id: i32) -> Option<SessionRow> {
        self.registry.rows(&[]).into_iter().find(|row| row.id == id)
    }
}

pub fn layer(receipt: &Receipt, layer: Layer) -> &LayerResult {
    receipt.layers.iter().find(|l| l.layer == layer).unwrap()
}
