//! The promises in every state of a random world: clients connect, reconnect and knock, administrators revoke and
//! lift, ocserv falls silent and restarts, the daemon dies and comes back, and whatever is under way happens in any
//! order. A model beside it knows which cookie was revoked.
//!
//! Run as it is, it searches the same states every time. **With other seeds it still finds a story** about once in
//! some millions of states. The last one is the rules' and open: a cutoff stands, since ocserv cannot list its cookies;
//! a revocation of one session of that user has its cookie deleted, and is lifted; the daemon dies while a client of
//! that cookie is in its connect-script. The new daemon takes the cutoff back on a list of cookies that was asked for
//! before it has seen that client, and nothing names it any more.
//!
//! `PROPTEST_CASES=20000 cargo test -p enforcer --lib registry::tests::machine` searches further.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestError, TestRng, TestRunner};

use super::super::*;
use super::harness::*;
use crate::session::{Cookie, CutoffKey, Entry, Process, SafeId};

/// How many events all cases have taken through the registry.
static STEPS: AtomicU64 = AtomicU64::new(0);
/// How many cases it took to find what is broken.
static PLAYED: AtomicU64 = AtomicU64::new(0);

#[derive(Debug, Clone)]
enum Op {
    Login(u8),
    /// With that cookie; `like`: with a dead worker's pid, a dead neighbour's port, and its or a let-go one's address.
    Arrive {
        cookie: u8,
        like: Option<u8>,
    },
    Feed(u8),
    Look {
        worker: u8,
        last: bool,
    },
    Exit(u8),
    Hang(u8),
    /// What is under way: this one happens. `stale`: ocserv answers with what was so when it was asked.
    Task {
        nth: u8,
        stale: bool,
    },
    All,
    Pass(u16),
    RevokeUser(u8),
    RevokeId(u8),
    RevokeSession(u8),
    Lift(u8),
    Kill,
    Start {
        leases: bool,
    },
    ListsCookies(bool),
    Silent(bool),
    RestartOcserv,
    Forget(u8),
    Clock(i8),
    /// Remember what is seen now, and tell it later.
    TakeList,
    LateList,
    LateDisconnect(u8),
    /// A fresh login has to work.
    Fresh(u8),
}

fn ops() -> impl Strategy<Value = Op> {
    let n = any::<u8>();
    prop_oneof![
        4 => n.prop_map(Op::Login),
        8 => (n, proptest::option::of(n)).prop_map(|(cookie, like)| Op::Arrive { cookie, like }),
        4 => n.prop_map(Op::Feed),
        12 => (n, any::<bool>()).prop_map(|(worker, last)| Op::Look { worker, last }),
        3 => n.prop_map(Op::Exit),
        2 => n.prop_map(Op::Hang),
        12 => (n, any::<bool>()).prop_map(|(nth, stale)| Op::Task { nth, stale }),
        4 => Just(Op::All),
        6 => (1..5_000u16).prop_map(Op::Pass),
        4 => n.prop_map(Op::RevokeUser),
        2 => n.prop_map(Op::RevokeId),
        2 => n.prop_map(Op::RevokeSession),
        2 => n.prop_map(Op::Lift),
        1 => Just(Op::Kill),
        3 => any::<bool>().prop_map(|leases| Op::Start { leases }),
        2 => any::<bool>().prop_map(Op::ListsCookies),
        2 => any::<bool>().prop_map(Op::Silent),
        1 => Just(Op::RestartOcserv),
        2 => n.prop_map(Op::Forget),
        1 => any::<i8>().prop_map(Op::Clock),
        1 => Just(Op::TakeList),
        2 => Just(Op::LateList),
        1 => n.prop_map(Op::LateDisconnect),
        3 => n.prop_map(Op::Fresh),
    ]
}

/// What is broken on purpose, to see that it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// What the gate refuses is lost at the daemon's restart.
    ForgetsTheGate,
    /// What is said of a tunnel address is not taken out.
    AddressesStay,
    /// Every list is told as if it had been asked for just now.
    OldListsAreNew,
    /// The end of a device is not told.
    DevicesStay,
    /// The gate does not tell the registry whom it lets in.
    GateKeepsToItself,
}

struct Machine {
    world: World,
    fault: Fault,
    /// This ocserv has `terminate`.
    terminate: bool,
    alive: bool,
    /// Whom each number revoked; what was lifted is taken out.
    revoked: BTreeMap<Number, BTreeSet<SafeId>>,
    /// Nobody could say of these whether they are older than a revocation.
    unclear: BTreeSet<SafeId>,
    /// Sessions whose device was seen in the kernel.
    dropped: BTreeSet<Process>,
    asks: BTreeMap<Ask, (Process, bool)>,
    requests: BTreeMap<Request, (Number, Duration)>,
    dead: Vec<Worker>,
    late: Option<(Duration, Vec<Sighting>)>,
    cookies: Vec<Cookie>,
}

const USERS: [&str; 3] = ["alice", "bob", "carol"];

fn user(n: u8) -> &'static str {
    USERS[usize::from(n) % USERS.len()]
}

impl Machine {
    fn new(terminate: bool, fault: Fault) -> Self {
        let mut world = World::new();
        world.late = true;
        world.sticky = fault == Fault::AddressesStay;
        let mut machine = Self {
            world,
            fault,
            terminate,
            alive: true,
            revoked: BTreeMap::new(),
            unclear: BTreeSet::new(),
            dropped: BTreeSet::new(),
            asks: BTreeMap::new(),
            requests: BTreeMap::new(),
            dead: Vec::new(),
            late: None,
            cookies: Vec::new(),
        };
        machine.server_up();
        machine
    }

    fn covered(&self, cookie: SafeId) -> bool {
        self.revoked.values().any(|cookies| cookies.contains(&cookie))
    }

    fn pick_worker(&self, n: u8) -> Option<Worker> {
        let workers: Vec<_> = self.world.workers.values().collect();
        (!workers.is_empty()).then(|| workers[usize::from(n) % workers.len()].clone())
    }

    fn pick_cookie(&self, n: u8) -> Option<Cookie> {
        let valid: Vec<_> = (self.cookies.iter())
            .filter(|c| self.world.ocservs[&vpn()].cookies.contains_key(&c.safe_id))
            .collect();
        (!valid.is_empty()).then(|| valid[usize::from(n) % valid.len()].clone())
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Login(n) => {
                self.login(user(n));
            }
            Op::Arrive { cookie, like } => self.arrive(cookie, like),
            Op::Feed(n) if self.alive => {
                if let Some(worker) = self.pick_worker(n).filter(|w| !w.tun) {
                    self.world.feed_connected(worker.process.pid);
                }
            }
            Op::Look { worker, last } => self.look(worker, last),
            Op::Exit(n) => {
                if let Some(worker) = self.pick_worker(n) {
                    self.exit(&worker);
                }
            }
            Op::Hang(n) => {
                if let Some(worker) =
                    self.pick_worker(n).and_then(|w| self.world.workers.get_mut(&w.process.pid))
                {
                    worker.hangs = worker.tun && !worker.hangs;
                }
            }
            Op::Task { nth, stale } => {
                let len = self.world.tasks.len();
                if len > 0 {
                    let task = self.world.tasks.remove(usize::from(nth) % len).unwrap();
                    if stale { self.answer_stale(task) } else { self.carry_out(task) }
                }
            }
            Op::All => self.settle(),
            Op::Pass(time) => self.pass(ms(time.into())),
            Op::RevokeUser(n) if self.alive => {
                // a cutoff that stands moves to this moment: whoever came between is under both
                let between = self.world.cuts_off(user(n));
                // of a session that nobody has seen yet the list of cookies tells, if ocserv still holds its cookie
                let (all, others): (BTreeSet<_>, BTreeSet<_>) =
                    self.cookies_of(user(n)).partition(|id| self.can_be_known(*id));
                self.unclear.extend(others);
                if between {
                    self.unclear.extend(&all);
                }
                self.revoke(Target::User(user(n).into()), all);
            }
            Op::RevokeId(n) if self.alive => {
                let known = self.pick_worker(n).filter(|w| {
                    let session = self.world.registry.session(&vpn(), w.process.pid);
                    session.is_some_and(|s| s.worker == Some(w.process) && s.safe_id() == Some(w.cookie))
                });
                if let Some(worker) = known {
                    self.revoke(Target::Id(worker.process.pid), BTreeSet::from([worker.cookie]));
                }
            }
            Op::RevokeSession(n) if self.alive => {
                if let Some(cookie) = self.pick_cookie(n) {
                    self.revoke(Target::Session(cookie.safe_id), BTreeSet::from([cookie.safe_id]));
                }
            }
            Op::Lift(n) if self.alive && !self.revoked.is_empty() => {
                let number = *self.revoked.keys().nth(usize::from(n) % self.revoked.len()).unwrap();
                self.world.lift(number);
                self.revoked.remove(&number);
                self.dropped.clear();
            }
            Op::Kill if self.alive => {
                self.alive = false;
                self.world.kill_daemon();
                self.requests.clear();
                self.late = None;
                // gates that waited look into the maps themselves
                for (ask, (process, last)) in std::mem::take(&mut self.asks) {
                    self.world.verdicts.remove(&ask);
                    self.gate_alone(process, last);
                }
            }
            Op::Start { leases } if !self.alive => self.start(leases),
            Op::ListsCookies(can) => self.world.vpn().lists_cookies = can,
            Op::Silent(silent) => {
                self.world.vpn().up = !silent;
                // the feed's connection ends, and comes again
                if self.alive && silent {
                    self.world.handle(Event::ServerDown { server: vpn(), gone: false });
                } else if self.alive {
                    self.server_up();
                }
            }
            Op::RestartOcserv => self.restart_ocserv(),
            Op::Forget(n) => {
                let unused = |c: &Cookie| !self.world.workers.values().any(|w| w.cookie == c.safe_id);
                if let Some(cookie) = self.pick_cookie(n).filter(unused) {
                    self.world.vpn().cookies.remove(&cookie.safe_id);
                }
            }
            Op::Clock(by) => {
                self.world.now.wall = self.world.now.wall.saturating_add_signed(i64::from(by) * 10);
                if by < 0 {
                    // a cookie from the future counts as old while a cutoff stands
                    let unclear: Vec<_> = self
                        .cookies
                        .iter()
                        .filter(|c| self.world.cuts_off(&c.user))
                        .map(|c| c.safe_id)
                        .collect();
                    self.unclear.extend(unclear);
                }
            }
            Op::TakeList if self.alive => {
                self.late = self.world.list(&vpn()).ok().map(|list| (self.world.now.mono, list))
            }
            Op::LateList if self.alive => self.late_list(),
            Op::LateDisconnect(n) if self.alive => {
                if let Some(worker) = self.dead.get(usize::from(n) % self.dead.len().max(1)).cloned() {
                    self.world.handle(Event::FeedDisconnected {
                        server: vpn(),
                        id: worker.process.pid,
                        safe_id: Some(worker.cookie),
                        user: worker.user,
                        reason: 3,
                    });
                }
            }
            Op::Fresh(n) if self.alive && self.world.vpn().up && self.world.vpn().lists_cookies => {
                self.fresh(user(n))
            }
            _ => {}
        }
        self.after();
    }

    fn cookies_of(&self, user: &str) -> impl Iterator<Item = SafeId> {
        self.cookies.iter().filter(move |c| c.user == user).map(|c| c.safe_id)
    }

    fn can_be_known(&self, cookie: SafeId) -> bool {
        let registry = &self.world.registry;
        // a daemon that started after the clock was set back does not know that it was
        let latest = registry.latest_wall(self.world.now);
        self.world.ocservs[&vpn()].cookies.get(&cookie).is_some_and(|cookie| cookie.created <= latest)
            || registry.sessions().any(|s| s.safe_id() == Some(cookie))
    }

    fn login(&mut self, user: &str) -> SafeId {
        let safe_id = self.world.login(user);
        let cookie = self.world.vpn().cookies[&safe_id].clone();
        let cutoff = self.world.kernel.get(&Entry::Cutoff(CutoffKey::new(&vpn(), user)));
        if cutoff.is_some_and(|cutoff| cookie.created <= cutoff.moment) {
            self.unclear.insert(safe_id);
        }
        self.cookies.push(cookie);
        safe_id
    }

    fn arrive(&mut self, cookie: u8, like: Option<u8>) {
        let Some(cookie) = self.pick_cookie(cookie).filter(|_| self.world.vpn().up) else { return };
        let mut worker = self.world.worker(cookie.safe_id);
        let dead = like
            .filter(|_| !self.dead.is_empty())
            .map(|n| self.dead[usize::from(n) % self.dead.len()].clone());
        if let Some(dead) = dead {
            if !self.world.workers.contains_key(&dead.process.pid) {
                worker.process.pid = dead.process.pid;
            }
            if !self.world.workers.values().any(|w| w.flow == dead.flow) {
                worker.flow = dead.flow;
            }
            if !self.world.workers.values().any(|w| w.address == dead.address && !w.let_go) {
                worker.address = dead.address;
            }
        }
        // ocserv's main process lets go of a worker that hangs, and of an older one of the same cookie
        let old = (self.world.workers.values_mut())
            .find(|w| !w.let_go && w.tun && ((like.is_some() && w.hangs) || w.cookie == worker.cookie));
        if let Some(old) = old {
            old.let_go = true;
            worker.address = old.address;
            let old = old.clone();
            if !old.hangs {
                self.exit(&old);
            }
        }
        self.world.arrive(worker);
    }

    fn look(&mut self, n: u8, last: bool) {
        let Some(worker) = self.pick_worker(n).filter(|w| !w.tun) else { return };
        if self.asks.values().any(|(process, _)| *process == worker.process) {
            return;
        }
        if !self.alive {
            return self.gate_alone(worker.process, last);
        }
        let ask = self.world.ask_gate(worker.process.pid, last);
        self.asks.insert(ask, (worker.process, last));
    }

    /// The gate with no daemon: by the pinned maps.
    fn gate_alone(&mut self, process: Process, last: bool) {
        let Some(worker) = self.world.workers.values().find(|w| w.process == process).cloned() else {
            return;
        };
        let refused = self.world.refuses(worker.cookie) || self.world.cuts_off(&worker.user);
        self.decided(&worker, last, !refused);
    }

    fn decided(&mut self, worker: &Worker, last: bool, admitted: bool) {
        assert!(!(admitted && last && self.covered(worker.cookie)), "R2: {worker:?} is let in");
        match (admitted, last) {
            (true, true) => self.world.come_up(worker.process.pid),
            (true, false) => {}
            (false, _) => self.exit(worker),
        }
    }

    fn exit(&mut self, worker: &Worker) {
        self.world.exit(worker.process.pid);
    }

    fn carry_out(&mut self, task: Task) {
        if self.fault == Fault::DevicesStay && matches!(task.what, Effect::WatchDevice { .. }) {
            return;
        }
        if let Effect::Terminate { safe_id, .. } = &task.what
            && !self.world.registry.marks.contains_key(safe_id)
        {
            // lifted while it was under way: with its cookie gone, of a worker that nobody has seen yet no list
            // can tell any more that another revocation means it
            self.unclear.insert(*safe_id);
            self.revoked.values_mut().for_each(|cookies| {
                cookies.remove(safe_id);
            });
        }
        self.world.carry_out(task);
        self.after();
    }

    /// Everything that is under way happens.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            let Some(task) = self.world.tasks.pop_front() else { return };
            self.carry_out(task);
        }
        panic!("it does not come to rest: {:?}", self.world.tasks);
    }

    fn pass(&mut self, time: Duration) {
        if !self.alive {
            return self.world.pass_time(time);
        }
        let until = self.world.now.mono + time;
        while self.world.now.mono < until {
            let step = self.world.registry.next_tick(self.world.now).min(until - self.world.now.mono);
            self.world.pass_time(step);
            self.world.handle(Event::Tick);
            self.after();
            self.settle();
        }
    }

    fn revoke(&mut self, target: Target, cookies: BTreeSet<SafeId>) {
        let number = self.world.registry.next_number();
        let request = self.world.ask(World::order(target));
        self.revoked.insert(number, cookies);
        self.requests.insert(request, (number, self.world.now.mono));
    }

    fn start(&mut self, leases: bool) {
        self.alive = true;
        if self.fault == Fault::ForgetsTheGate {
            self.world.kernel.retain(|entry, _| !matches!(entry, Entry::SafeId(_) | Entry::Cutoff(_)));
            self.world.disk.records.values_mut().for_each(|record| record.guards.clear());
        }
        self.remember_what_the_kernel_does();
        self.world.adopt_kernel(leases);
        if self.world.vpn().up {
            self.server_up();
        }
    }

    /// An entry carries one number: of several revocations of one cookie the kernel remembers one.
    fn remember_what_the_kernel_does(&mut self) {
        for cookie in &self.cookies {
            let id = cookie.safe_id;
            let cutoff = Entry::Cutoff(CutoffKey::new(&vpn(), &cookie.user));
            let by = [Entry::SafeId(id), cutoff]
                .iter()
                .find_map(|entry| Some(self.world.kernel.get(entry)?.number));
            if self.revoked.values().filter(|cookies| cookies.contains(&id)).count() > 1 {
                self.unclear.insert(id);
            }
            if let Some(number) = by.filter(|_| self.covered(id)) {
                self.revoked.values_mut().for_each(|cookies| {
                    cookies.remove(&id);
                });
                self.revoked.entry(number).or_default().insert(id);
            }
        }
    }

    fn server_up(&mut self) {
        let (main, terminate) = (self.world.vpn().main, self.terminate);
        self.world.vpn().terminate = terminate;
        self.world.handle(Event::ServerUp { server: vpn(), main, terminate });
        self.world.handle(Event::GateConfigured { server: vpn(), configured: true });
    }

    fn restart_ocserv(&mut self) {
        let workers: Vec<_> = self.world.workers.values().cloned().collect();
        for worker in workers {
            self.exit(&worker);
        }
        self.world.vpn().cookies.clear();
        self.world.vpn().up = true;
        let pid = self.world.count() as i32;
        self.world.vpn().main = Process { pid, start: pid as u64 };
        if self.alive {
            self.world.handle(Event::ServerDown { server: vpn(), gone: true });
            self.server_up();
        }
    }

    /// A list from before: the processes are looked up now.
    fn late_list(&mut self) {
        let Some((asked, mut list)) = self.late.take() else { return };
        self.world.read_late(&mut list);
        let asked = self.asked_at(asked);
        self.world.handle(Event::Listed { server: vpn(), asked, outcome: Ok(list) });
    }

    fn asked_at(&self, asked: Duration) -> Duration {
        if self.fault == Fault::OldListsAreNew { self.world.now.mono } else { asked }
    }

    fn answer_stale(&mut self, task: Task) {
        let asked = self.asked_at(task.at);
        match task.stale {
            Some(Stale::List(mut list)) => {
                self.world.read_late(&mut list);
                self.world.handle(Event::Listed { server: vpn(), asked, outcome: Ok(list) });
            }
            Some(Stale::Cookies(cookies)) => {
                self.world.handle(Event::Cookies { server: vpn(), asked, outcome: Ok(cookies) });
            }
            None => self.carry_out(task),
        }
    }

    /// R4: whoever logs in after an answered revocation is let in.
    fn fresh(&mut self, user: &str) {
        self.settle();
        self.pass(ms(5_000));
        // not in the second of a revocation that nobody could complete
        self.world.pass_time(SECOND);
        let cookie = self.login(user);
        if self.unclear.contains(&cookie) || self.world.now.wall < self.world.vpn().cookies[&cookie].created {
            return;
        }
        let worker = self.world.worker(cookie);
        let id = self.world.connect(worker);
        self.after();
        let ask = self.world.ask_gate(id, true);
        self.settle_but_verdicts();
        let verdict = self.world.verdicts.remove(&ask);
        assert_eq!(verdict, Some(Verdict::Admit), "R4: {user}'s fresh login");
        self.world.come_up(id);
    }

    fn settle_but_verdicts(&mut self) {
        for _ in 0..10_000 {
            let Some(task) = self.world.tasks.pop_front() else { return };
            self.world.carry_out(task);
        }
    }

    /// What has come out, and what has to hold in every state.
    fn after(&mut self) {
        STEPS.fetch_add(1, Ordering::Relaxed);
        // what is told twice is what came first
        for worker in self.world.ended.drain(..) {
            self.dead.push(worker);
        }
        if self.fault == Fault::GateKeepsToItself {
            for verdict in self.world.verdicts.values_mut() {
                *verdict = Verdict::Admit;
            }
        }
        loop {
            let due: Vec<Ask> =
                self.asks.keys().filter(|ask| self.world.verdicts.contains_key(ask)).copied().collect();
            if due.is_empty() {
                break;
            }
            for ask in due {
                let (process, last) = self.asks.remove(&ask).unwrap();
                let verdict = self.world.verdicts.remove(&ask).unwrap();
                if let Some(worker) = self.world.workers.values().find(|w| w.process == process).cloned() {
                    self.decided(&worker, last, verdict == Verdict::Admit);
                }
            }
        }
        self.take_answers();
        self.check();
    }

    fn take_answers(&mut self) {
        let (alive, now) = (self.alive, self.world.now.mono);
        for (request, (number, asked)) in self.requests.clone() {
            let Some(answer) = self.world.answers.remove(&request) else {
                assert!(!alive || now <= asked + ms(5_100), "revocation {number} is not answered");
                continue;
            };
            self.requests.remove(&request);
            match answer {
                Answer::Receipt(receipt) if receipt.is_complete() => {
                    // R1, R6: done is done
                    let cookies = self.revoked.get(&number).cloned().unwrap_or_default();
                    let told = |w: &&Worker| {
                        !w.let_go || self.world.registry.session(&vpn(), w.process.pid).is_some()
                    };
                    let up =
                        self.world.workers.values().find(|w| w.tun && cookies.contains(&w.cookie) && told(w));
                    assert_eq!(up, None, "R6: {receipt:?}");
                }
                Answer::Receipt(_) | Answer::Refused(_) => {}
                Answer::Nothing(_) => {
                    self.revoked.remove(&number);
                }
            }
        }
    }

    fn check(&mut self) {
        let known = |w: &Worker| {
            let session = self.world.registry.session(&vpn(), w.process.pid);
            session.filter(|s| s.worker == Some(w.process) && s.safe_id() == Some(w.cookie))
        };
        for worker in self.world.workers.values() {
            let covered = self.covered(worker.cookie);
            let drops = self.world.drops(&Entry::Device(worker.device));
            // R1, R2: a revoked session's device is dropped from when it is known, and as long as it is there
            let seen = self.alive && known(worker).is_some_and(|s| s.device.is_some());
            let undecided = !worker.tun && self.world.cuts_off(&worker.user);
            assert!(!covered || !seen || drops || undecided, "R1: {worker:?} is not dropped");
            assert!(
                !covered || !self.dropped.contains(&worker.process) || drops,
                "R1: {worker:?} is dropped no more"
            );
            if drops {
                self.dropped.insert(worker.process);
            }
            if covered || self.unclear.contains(&worker.cookie) {
                continue;
            }
            // R3
            assert!(!drops, "R3: {worker:?} is hit by its device");
            let owns =
                self.alive && known(worker).is_some_and(|s| s.observed.addresses.contains(&worker.address));
            let hit = self.world.drops(&Entry::Address(NETNS, worker.address));
            assert!(!owns || worker.let_go || !hit, "R3: {worker:?} is hit by its address");
            let quiet = self.alive && self.world.tasks.is_empty() && self.world.registry.adopted_at.is_none();
            let hit = self.world.drops(&Entry::Flow(NETNS, worker.flow));
            assert!(!quiet || !hit, "R3: {worker:?} is hit by its flow");
        }
        for entry in self.world.kernel.keys() {
            if let Entry::SafeId(id) = entry {
                assert!(self.covered(*id) || self.unclear.contains(id), "R3: {id} is refused");
            }
        }
    }

    /// R7: when all is over nothing is left.
    fn end(&mut self) {
        if !self.alive {
            self.start(false);
        }
        self.world.vpn().up = true;
        self.world.vpn().lists_cookies = true;
        self.server_up();
        self.settle();
        self.pass(6 * SECOND);
        let workers: Vec<_> = self.world.workers.values().cloned().collect();
        for worker in workers {
            self.exit(&worker);
        }
        self.world.vpn().cookies.clear();
        self.settle();
        self.pass(70 * SECOND);
        assert!(self.world.kernel.is_empty(), "R7: {:?} is left", self.world.kernel);
        assert_eq!(self.world.registry.sessions().count(), 0, "R7: {:?}", self.world.registry.sessions);
        assert!(self.world.registry.marks.is_empty() && self.world.registry.busy.is_empty());
    }
}

fn play(terminate: bool, ops: &[Op], fault: Fault) {
    PLAYED.fetch_add(u64::from(fault != Fault::None), Ordering::Relaxed);
    let mut machine = Machine::new(terminate, fault);
    for op in ops {
        machine.step(op);
    }
    machine.end();
}

fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 20_000, ..ProptestConfig::default() }
}

/// The same search every time, so that a red run is somebody's change; with PROPTEST_CASES set a new one.
fn runner(config: ProptestConfig) -> TestRunner {
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => TestRunner::new(config),
        None => same_runner(config),
    }
}

fn same_runner(config: ProptestConfig) -> TestRunner {
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

#[test]
fn r1_r2_r3_r4_r7_hold_in_every_state_of_a_random_world() {
    let started = std::time::Instant::now();
    let mut runner = runner(cases(500));
    let outcome = runner.run(&(any::<bool>(), prop::collection::vec(ops(), 1..120)), |(terminate, ops)| {
        play(terminate, &ops, Fault::None);
        Ok(())
    });
    println!("{} states in {:?}", STEPS.load(Ordering::Relaxed), started.elapsed());
    if let Err(TestError::Fail(why, ops)) = outcome {
        panic!("{why}\n{ops:#?}");
    }
}

#[test]
fn the_random_world_finds_what_is_broken_on_purpose() {
    let faults = [
        Fault::ForgetsTheGate,
        Fault::AddressesStay,
        Fault::OldListsAreNew,
        Fault::DevicesStay,
        Fault::GateKeepsToItself,
    ];
    for fault in faults {
        let config = ProptestConfig { cases: 5_000, max_shrink_iters: 0, ..cases(0) };
        let outcome = same_runner(config).run(
            &(any::<bool>(), prop::collection::vec(ops(), 1..120)),
            |(terminate, ops)| {
                play(terminate, &ops, fault);
                Ok(())
            },
        );
        assert!(matches!(outcome, Err(TestError::Fail(..))), "{fault:?} was not found");
        println!("{fault:?}: found in case {}", PLAYED.swap(0, Ordering::Relaxed));
    }
}
