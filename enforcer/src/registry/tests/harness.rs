//! A small world around the registry: ocserv servers with cookies and workers, the kernel's map, and everything
//! that takes time, which the tests let happen when they want it.

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

    // events and effects

    pub fn handle(&mut self, event: Event) {
        if self.died {
            return;
        }
        self.depth += 1;
        if self.late {
            // no two events in one nanosecond
            self.now.mono += Duration::from_nanos(1);
        }
        let effects = self.registry.handle(event, self.now);
        // R1: the kernel drops before anybody is told to go
        let acts = |e: &Effect| {
            matches!(
                e,
                Effect::Disconnect { .. }
                    | Effect::Terminate { .. }
                    | Effect::End { .. }
                    | Effect::Answer { .. }
            )
        };
        if let Some(first) = effects.iter().position(acts) {
            let late = effects[first..].iter().find(|e| matches!(e, Effect::Insert { .. }));
            assert_eq!(late, None, "written to the kernel only after {:?}", effects[first]);
        }
        for effect in effects {
            self.apply(effect);
        }
        // a look at everything, which takes its time where there is much
        if self.check_indexes && self.registry.revocations.len() < 50 && self.registry.sessions.len() < 50 {
            self.registry.check();
        }
        self.depth -= 1;
        // the disk is slower than everything that follows at once
        while self.depth == 0 && !self.told.is_empty() {
            let told = self.told.remove(0);
            self.handle(told);
        }
    }

    fn apply(&mut self, effect: Effect) {
        match &mut self.dies_after {
            Some(0) => self.died = true,
            Some(left) => *left -= 1,
            None => {}
        }
        if self.died {
            return;
        }
        match effect {
            Effect::Insert { entry, number, stands, server, moment } => {
                if self.broken || (self.full && !self.kernel.contains_key(&entry)) {
                    self.handle(Event::InsertFailed { entry, number, error: "the table is full".into() });
                } else {
                    self.kernel_server.insert(entry.clone(), server);
                    self.kernel.insert(entry, InKernel { number, stands, moment });
                }
            }
            Effect::Remove { entry: Entry::Address(..), .. } if self.sticky => {}
            Effect::Remove { entry, .. } => {
                assert!(self.kernel.remove(&entry).is_some() || self.full, "{entry:?} was not there");
                self.kernel_server.remove(&entry);
            }
            Effect::CountRefusal { entry } => self.refusals.push(entry),
            Effect::Attach { .. } | Effect::AskBanScore { .. } | Effect::Unban { .. } => {}
            Effect::Numbered { next } => self.numbered = next,
            Effect::Watch { key, worker } => {
                self.watched.insert(key, worker);
                if self.worker_of(worker).is_none() {
                    self.start(Effect::Watch { key, worker });
                }
            }
            Effect::WatchDevice { device } => {
                self.devices.insert(device);
            }
            Effect::FindFlows { key, worker } => {
                let flows =
                    self.worker_of(worker).map(|w| vec![w.flow]).ok_or_else(|| "it is gone".to_owned());
                self.handle(Event::Flows { key, outcome: flows.map(|flows| (self.netns, flows)) });
            }
            Effect::ForgetConnections { netns, address, turn } if !self.slow_conntrack => {
                let outcome = self.forget_connections(netns, address);
                self.handle(Event::ConnectionsForgotten { netns, address, turn, outcome });
            }
            Effect::KeepConnections { turn } => {
                let its = |task: &Task| matches!(task.what, Effect::ForgetConnections { turn: its, .. } if its == turn);
                self.tasks.retain(|task| !its(task));
            }
            Effect::DestroyFlow { number, flow } => {
                let hit = self.workers.values().filter(|w| w.flow == flow).count() as u64;
                self.handle(Event::FlowDestroyed { number, outcome: Ok(hit) });
            }
            Effect::Probe { server, observed, .. } => {
                let seen = self.workers.get(&observed.id).filter(|_| !self.blind).cloned();
                if let Some(worker) = seen {
                    let sighting = self.sighting(&worker);
                    self.handle(Event::Sighted { server, sighting });
                }
            }
            Effect::Save => self.save(),
            Effect::Confirm { number } => self.handle(Event::Confirmed { number }),
            Effect::GateAnswer { ask, verdict } => {
                assert!(self.verdicts.insert(ask, verdict).is_none(), "a gate is answered twice");
            }
            Effect::Answer { request, answer } => {
                assert!(self.answers.insert(request, answer).is_none(), "a command is answered twice");
            }
            Effect::Note { kind, text } => self.notes.push((kind, text)),
            Effect::AskList { .. }
            | Effect::AskCookies { .. }
            | Effect::Terminate { .. }
            | Effect::Disconnect { .. }
            | Effect::ForgetConnections { .. }
            | Effect::End { .. } => self.start(effect),
        }
    }

    fn forget_connections(&mut self, netns: Netns, address: IpAddr) -> Result<Option<u64>, String> {
        assert_eq!(netns, self.netns);
        let tracked = self.tracked.as_mut().map_err(|why| why.clone())?;
        let Some(all) = tracked else { return Ok(None) };
        let theirs = all.remove(&address).unwrap_or_default();
        let count = theirs.len() as u64;
        self.deleted.extend(theirs);
        Ok(Some(count))
    }

    pub fn save(&mut self) {
        let writes = self.registry.take_writes(self.now);
        self.told.extend(self.disk.write(&writes));
    }

    fn start(&mut self, what: Effect) {
        let stale = match &what {
            Effect::AskList { server } => self.list(server).ok().map(Stale::List),
            Effect::AskCookies { server } => self.list_cookies(server).ok().map(Stale::Cookies),
            _ => None,
        };
        self.tasks.push_back(Task { at: self.now.mono, what, stale });
    }

    fn worker_of(&self, process: Process) -> Option<&Worker> {
        self.workers.values().find(|w| w.process == process)
    }

    pub fn sighting(&self, worker: &Worker) -> Sighting {
        let observed = Observed {
            id: worker.process.pid,
            user: worker.user.clone(),
            device: Some("vpns0".into()),
            addresses: if worker.let_go { Vec::new() } else { vec![worker.address] },
            safe_id: Some(worker.cookie),
            since: worker.since,
            ..Observed::default()
        };
        if self.blind {
            return Sighting { observed, ..Sighting::default() };
        }
        Sighting {
            observed,
            worker: Some(worker.process),
            device: Some(worker.device),
            netns: Some(self.netns),
            has_tun: worker.tun,
        }
    }

    /// Lets one thing happen that is under way.
    pub fn carry_out(&mut self, task: Task) {
        let Task { at: asked, what, .. } = task;
        match what {
            Effect::AskList { server } => {
                let outcome = self.list(&server);
                self.handle(Event::Listed { server, asked, outcome });
            }
            Effect::AskCookies { server } => {
                let outcome = self.list_cookies(&server);
                self.handle(Event::Cookies { server, asked, outcome });
            }
            Effect::Terminate { server, safe_id } => {
                let ocserv = self.ocservs.get_mut(&server).unwrap();
                let outcome = match ocserv.up {
                    true => Ok(ocserv.cookies.remove(&safe_id).is_some()),
                    false => Err("no answer".into()),
                };
                self.handle(Event::Terminated { server, safe_id, outcome });
            }
            Effect::Disconnect { ref server, id } => {
                self.acts.push(what.clone());
                let heard = self.ocservs[server].up;
                // what is in its connect-script has no ears
                if heard && self.workers.get(&id).is_some_and(|w| w.server == *server && w.tun && !w.hangs) {
                    self.exit(id);
                }
            }
            Effect::End { key, worker } => {
                self.acts.push(what);
                let ended = match self.worker_of(worker).cloned() {
                    None => Ended { politely: true, ..Ended::default() },
                    Some(w) if w.hangs => Ended { left: vec!["it hangs".into()], ..Ended::default() },
                    Some(w) => {
                        self.exit(w.process.pid);
                        Ended { destroyed: 1, ..Ended::default() }
                    }
                };
                self.handle(Event::Ended { key, ended });
            }
            Effect::ForgetConnections { netns, address, turn } => {
                let outcome = self.forget_connections(netns, address);
                self.handle(Event::ConnectionsForgotten { netns, address, turn, outcome });
            }
            Effect::Watch { key, .. } => self.handle(Event::WorkerGone { key }),
            Effect::WatchDevice { device } => self.handle(Event::DeviceGone { device }),
            _ => unreachable!(),
        }
    }

    pub fn list(&self, server: &ServerName) -> Result<Vec<Sighting>, String> {
        let workers = self.workers.values().filter(|w| w.server == *server && !w.let_go);
        self.ocservs[server]
            .up
            .then(|| workers.map(|w| self.sighting(w)).collect())
            .ok_or_else(|| "no answer".into())
    }

    /// A list from before, as the daemon reads it now: it looks the processes up by their pids.
    pub fn read_late(&self, list: &mut [Sighting]) {
        for sighting in list {
            let worker = self.workers.get(&sighting.observed.id);
            let same = worker.is_some_and(|w| sighting.worker == Some(w.process));
            sighting.worker = worker.map(|w| w.process);
            sighting.has_tun = worker.is_some_and(|w| w.tun);
            if !same {
                (sighting.device, sighting.netns) = (None, worker.map(|_| self.netns));
            }
        }
    }

    pub fn list_cookies(&self, server: &ServerName) -> Result<Vec<Cookie>, String> {
        let ocserv = &self.ocservs[server];
        if !ocserv.up || !ocserv.lists_cookies {
            return Err("no answer".into());
        }
        Ok(ocserv
            .cookies
            .values()
            .filter(|cookie| !ocserv.hidden.contains(&cookie.safe_id))
            .cloned()
            .collect())
    }

    /// Everything that is under way happens.
    pub fn run(&mut self) {
        for _ in 0..10_000 {
            let Some(task) = self.tasks.pop_front() else { return };
            self.carry_out(task);
        }
        panic!("it does not come to rest: {:?}", self.tasks);
    }

    pub fn pass_time(&mut self, time: Duration) {
        let wall = self.now.wall + (self.now.mono + time).as_secs() - self.now.mono.as_secs();
        self.now = Now { mono: self.now.mono + time, wall };
    }

    /// Time passes, with everything that happens in it.
    pub fn pass(&mut self, time: Duration) {
        let until = self.now.mono + time;
        while self.now.mono < until {
            let step = self.registry.next_tick(self.now).min(until - self.now.mono);
            self.pass_time(step);
            self.handle(Event::Tick);
            self.run();
        }
    }

    // what people and clients do

    pub fn login(&mut self, user: &str) -> SafeId {
        self.login_at(&vpn(), user)
    }

    pub fn login_at(&mut self, server: &ServerName, user: &str) -> SafeId {
        let mut bytes = [0; 20];
        bytes[..4].copy_from_slice(&self.count().to_be_bytes());
        let safe_id = SafeId::from_bytes(bytes);
        let cookie = Cookie {
            safe_id,
            user: user.into(),
            vhost: String::new(),
            created: self.now.wall,
            in_use: false,
        };
        self.ocservs.get_mut(server).unwrap().cookies.insert(safe_id, cookie);
        safe_id
    }

    /// A worker as it will be, with everything of its own.
    pub fn worker(&mut self, cookie: SafeId) -> Worker {
        let n = self.count();
        let (server, known) = (self.ocservs.iter())
            .find_map(|(name, ocserv)| Some((name.clone(), ocserv.cookies.get(&cookie)?.clone())))
            .expect("ocserv lets nobody in whose cookie it does not know");
        Worker {
            process: Process { pid: n as i32, start: u64::from(n) },
            server,
            cookie,
            user: known.user,
            device: Device { netns: self.netns, index: n },
            address: ip((n % 250) as u8),
            flow: outer(1_000 + n as u16),
            since: self.now.wall,
            tun: false,
            hangs: false,
            let_go: false,
        }
    }

    /// It is in its connect-script; nobody has been told yet.
    pub fn arrive(&mut self, worker: Worker) -> i32 {
        let id = worker.process.pid;
        assert!(self.workers.insert(id, worker).is_none(), "pid {id} is taken");
        id
    }

    /// It is in its connect-script, and the feed has told so.
    pub fn connect(&mut self, worker: Worker) -> i32 {
        let id = self.arrive(worker);
        self.feed_connected(id);
        id
    }

    pub fn feed_connected(&mut self, id: i32) {
        let worker = self.workers[&id].clone();
        let sighting = self.sighting(&worker);
        self.handle(Event::Sighted { server: worker.server, sighting });
    }

    pub fn ask_gate(&mut self, id: i32, last: bool) -> Ask {
        let worker = self.workers[&id].clone();
        let (ask, sighting) = (Ask::from(self.count()), self.sighting(&worker));
        self.handle(Event::GateAsked { ask, server: worker.server, sighting, last });
        ask
    }

    /// The gate's look, with everything that it waits for.
    pub fn look(&mut self, id: i32, last: bool) -> Verdict {
        let ask = self.ask_gate(id, last);
        self.run();
        self.verdicts.remove(&ask).expect("the gate was not answered")
    }

    pub fn come_up(&mut self, id: i32) {
        self.workers.get_mut(&id).unwrap().tun = true;
    }

    /// A client with this cookie comes to the gate, and is up if it is let in.
    pub fn try_in(&mut self, worker: Worker) -> (i32, Verdict) {
        let id = self.connect(worker);
        let verdict = self.look(id, true);
        match verdict {
            Verdict::Admit => self.come_up(id),
            _ => self.exit(id),
        }
        (id, verdict)
    }

    /// A session that is up.
    pub fn up(&mut self, cookie: SafeId) -> i32 {
        let worker = self.worker(cookie);
        let (id, verdict) = self.try_in(worker);
        assert_eq!(verdict, Verdict::Admit);
        id
    }

    pub fn is_let_in(&mut self, cookie: SafeId) -> bool {
        let worker = self.worker(cookie);
        self.try_in(worker).1 == Verdict::Admit
    }

    /// The worker's process ends, and its device with it.
    pub fn exit(&mut self, id: i32) {
        let Some(worker) = self.workers.remove(&id) else { return };
        let keys: Vec<_> =
            self.watched.iter().filter(|(_, p)| **p == worker.process).map(|(key, _)| *key).collect();
        self.ended.push(worker.clone());
        let mut news = Vec::new();
        for key in keys {
            self.watched.remove(&key);
            news.push(Effect::Watch { key, worker: worker.process });
        }
        if self.devices.remove(&worker.device) {
            news.push(Effect::WatchDevice { device: worker.device });
        }
        for what in news {
            self.start(what);
            if !self.late {
                let task = self.tasks.pop_back().unwrap();
                self.carry_out(task);
            }
        }
    }

    // what administrators do

    pub fn order(target: Target) -> Order {
        Order { target, server: None, stands: None, reason: "left".into(), by: "root".into(), bulk: false }
    }

    pub fn ask(&mut self, order: Order) -> Request {
        let request = Request::from(self.count());
        self.handle(Event::Revoke { request: Some(request), order });
        request
    }

    /// Given, carried out, and answered.
    pub fn revoke(&mut self, target: Target) -> Answer {
        let request = self.ask(Self::order(target));
        self.answered(request)
    }

    pub fn answered(&mut self, request: Request) -> Answer {
        self.run();
        for _ in 0..100 {
            match self.answers.remove(&request) {
                Some(answer) => return answer,
                None => self.pass(ms(50)),
            }
        }
        panic!("a command was not answered");
    }

    pub fn receipt(&mut self, target: Target) -> Receipt {
        match self.revoke(target.clone()) {
            Answer::Receipt(receipt) => *receipt,
            other => panic!("{target}: {other:?}"),
        }
    }

    pub fn revoke_user(&mut self, user: &str) -> Receipt {
        self.receipt(Target::User(user.into()))
    }

    pub fn lift(&mut self, number: Number) -> Answer {
        let request = Request::from(self.count());
        self.handle(Event::Lift { request, number, by: "b".into() });
        self.answers.remove(&request).expect("a lift is answered as soon as it is written")
    }

    // ocserv and the daemon come and go

    pub fn servers_up(&mut self) {
        let all: Vec<_> =
            self.ocservs.iter().map(|(name, o)| (name.clone(), o.main, o.terminate, o.up)).collect();
        for (server, main, terminate, _) in all.into_iter().filter(|(.., up)| *up) {
            self.handle(Event::ServerUp { server: server.clone(), main, terminate });
            self.handle(Event::GateConfigured { server, configured: true });
        }
        self.run();
    }

    pub fn stop_ocserv(&mut self) {
        self.vpn().up = false;
        self.vpn().cookies.clear();
        let ids: Vec<i32> =
            self.workers.values().filter(|w| w.server == vpn()).map(|w| w.process.pid).collect();
        for id in ids {
            self.exit(id);
        }
        self.handle(Event::ServerDown { server: vpn(), gone: true });
    }

    pub fn start_ocserv(&mut self) {
        let pid = self.count() as i32;
        self.vpn().main = Process { pid, start: pid as u64 };
        self.vpn().up = true;
        self.servers_up();
    }

    pub fn kill_daemon(&mut self) {
        self.tasks.clear();
        self.watched.clear();
        self.devices.clear();
        self.told.clear();
        self.disk.forget();
        self.depth = 0;
        (self.dies_after, self.died) = (None, false);
        let first_number = self.numbered.max(self.disk.next_number);
        let rules = Rules { first_number, ..self.rules.clone() };
        self.registry = Registry::new(self.ocservs.keys().cloned(), self.netns, rules);
    }

    /// As at the daemon's start. `leases`: it comes back before they lapsed.
    pub fn adopt_kernel(&mut self, leases: bool) {
        self.adopt_after(leases, false);
    }

    pub fn adopt_after(&mut self, leases: bool, rebooted: bool) {
        self.kernel.retain(|_, it| leases || it.stands != Stands::Leased);
        let entries = (self.kernel.iter())
            .map(|(entry, it)| Adopted {
                entry: entry.clone(),
                number: it.number,
                stands: it.stands,
                server: self.kernel_server.get(entry).cloned().flatten(),
                moment: it.moment,
            })
            .collect();
        let left = self.disk.left(entries, rebooted);
        self.handle(Event::Adopt(Box::new(left)));
        // the daemon's sweep finds what is gone already
        let gone: Vec<Device> = (self.devices.iter())
            .filter(|device| !self.workers.values().any(|w| w.device == **device))
            .copied()
            .collect();
        for device in gone {
            self.devices.remove(&device);
            self.handle(Event::DeviceGone { device });
        }
    }

    fn adopt(&mut self) {
        self.adopt_kernel(true);
        self.servers_up();
    }

    pub fn restart_daemon(&mut self) {
        self.kill_daemon();
        self.adopt();
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
