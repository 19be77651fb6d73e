//! What happens in the random world, step by step.

use std::collections::BTreeSet;

use super::super::harness::*;
use super::faults::Fault;
use super::model::*;
use super::ops::Op;
use crate::registry::*;
use crate::session::{Cookie, Device, Entry, Netns, Process, SafeId, Token, TokenKind};

impl Machine {
    pub fn step(&mut self, op: &Op) {
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
                if let Some(task) = self.pick_task(nth) {
                    if stale { self.answer_stale(task) } else { self.carry_out(task) }
                }
            }
            Op::Lose(nth) => {
                if let Some(task) = self.pick_task(nth) {
                    self.fail(task);
                }
            }
            Op::All => self.settle(),
            Op::Pass(time) => self.pass(ms(time.into())),
            Op::PassLong(hours) => self.pass_long(u32::from(hours) * 3_600 * SECOND),
            Op::Disk(ref what) => self.disk(what),
            Op::Kill if self.alive => self.kill(255),
            Op::Crash(after) if self.alive => self.world.dies_after = Some(after.into()),
            Op::Start if !self.alive => self.start(),
            Op::Reboot { down, cookies, same } => self.reboot(down, cookies, same),
            Op::PinsGone if !self.alive => {
                self.empty_kernel();
                self.kernel_is_filled = false;
                self.dropped.clear();
                self.world.numbered = 0;
                self.lose_what_is_lost();
            }
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
            Op::RestartOcserv => self.restart_ocserv(true),
            Op::Forget(n) => {
                let unused = |c: &Cookie| !self.world.workers.values().any(|w| w.cookie == c.safe_id);
                if let Some(cookie) = self.pick_cookie(n).filter(unused) {
                    self.world.vpn().cookies.remove(&cookie.safe_id);
                }
            }
            Op::Clock(by) => self.set_clock(i64::from(by) * 10),
            Op::WriteClock if self.alive => self.write_clock(),
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
            Op::Fresh(n) => self.fresh(user(n)),
            _ if self.alive => self.administrate(op),
            _ => {}
        }
        self.after();
    }

    pub fn pick_worker(&self, n: u8) -> Option<Worker> {
        let workers: Vec<_> = self.world.workers.values().collect();
        (!workers.is_empty()).then(|| workers[usize::from(n) % workers.len()].clone())
    }

    pub fn pick_cookie(&self, n: u8) -> Option<Cookie> {
        let valid: Vec<_> = (self.cookies.iter())
            .filter(|c| self.world.ocservs[&vpn()].cookies.contains_key(&c.safe_id))
            .collect();
        (!valid.is_empty()).then(|| valid[usize::from(n) % valid.len()].clone())
    }

    fn pick_task(&mut self, nth: u8) -> Option<Task> {
        let len = self.world.tasks.len();
        (len > 0).then(|| self.world.tasks.remove(usize::from(nth) % len).unwrap())
    }

    // clients

    pub fn login(&mut self, user: &str) -> SafeId {
        let safe_id = self.world.login(user);
        let cookie = self.world.vpn().cookies[&safe_id].clone();
        let key = self.cutoff_key(user);
        let disk = &self.world.disk;
        let kept = disk.cutoff(key).max(disk.cutoff_under_way(key)).unwrap_or_default();
        let stands = self.world.kernel.get(&Entry::Cutoff(key)).map_or(0, |cutoff| cutoff.moment);
        if cookie.created <= stands.max(kept) {
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
            if self.nobody_knows(dead.device) {
                worker.device = Device { netns: worker.device.netns, ..dead.device };
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

    /// An interface's number is not soon given again: of one that is, nobody knows the one before.
    fn nobody_knows(&self, device: Device) -> bool {
        let here = Device { netns: self.world.netns, ..device };
        !self.world.workers.values().any(|w| w.device == here)
            && (self.fault == Fault::DevicesComeBack || !self.world.drops(&Entry::Device(here)))
            && !self.world.registry.sessions().any(|s| s.device == Some(here))
            && !self
                .world
                .tasks
                .iter()
                .any(|t| matches!(t.what, Effect::WatchDevice { device } if device == here))
            && !self.world.tasks.iter().any(|t| t.stale.is_some())
            && self.late.is_none()
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

    pub fn gate_alone(&mut self, process: Process, last: bool) {
        let Some(worker) = self.world.workers.values().find(|w| w.process == process).cloned() else {
            return;
        };
        let refused = self.refused_alone(&worker);
        self.decided(&worker, last, !refused);
    }

    pub fn exit(&mut self, worker: &Worker) {
        self.world.exit(worker.process.pid);
    }

    // what is under way

    fn carry_out(&mut self, task: Task) {
        if self.fault == Fault::DevicesStay && matches!(task.what, Effect::WatchDevice { .. }) {
            return;
        }
        if let Effect::Terminate { safe_id, .. } = &task.what {
            if !self.world.registry.marks.contains_key(safe_id) {
                // lifted while it was under way: with its cookie gone, of a worker that nobody has seen yet no list
                // can tell any more that another revocation means it
                self.unclear.insert(*safe_id);
                self.orders.values_mut().for_each(|order| {
                    order.cookies.remove(safe_id);
                });
            } else if let Some(user) = self.user_of(*safe_id).filter(|user| self.may_cut_off(user)) {
                // nor that it does not: with a deleted cookie at the door one is taken for older than the cutoff, also
                // once that what deleted the cookie is lifted
                self.unclear.insert(*safe_id);
                // nor, as above, that it does, of a worker that nobody has seen yet: whatever knows of that cookie by
                // the cutoff alone
                let mut theirs = self.world.workers.values().filter(|w| w.cookie == *safe_id);
                if self.cuts_off(&user) && theirs.any(|w| !self.is_known(w)) {
                    let by_name = self.world.registry.marks[safe_id].numbers.clone();
                    let others = self.orders.iter_mut().filter(|(number, _)| !by_name.contains(number));
                    others.for_each(|(_, order)| {
                        order.cookies.remove(safe_id);
                    });
                }
            }
        }
        self.world.carry_out(task);
        self.after();
    }

    fn user_of(&self, cookie: SafeId) -> Option<String> {
        self.cookies.iter().find(|c| c.safe_id == cookie).map(|c| c.user.clone())
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

    /// The question is not answered in time, or what was told to do was not done.
    fn fail(&mut self, task: Task) {
        let Task { at: asked, what, .. } = task;
        let why = || "no answer".to_owned();
        match what {
            Effect::AskList { server } => {
                self.world.handle(Event::Listed { server, asked, outcome: Err(why()) });
            }
            Effect::AskCookies { server } => {
                self.world.handle(Event::Cookies { server, asked, outcome: Err(why()) });
            }
            Effect::Terminate { server, safe_id } => {
                self.world.handle(Event::Terminated { server, safe_id, outcome: Err(why()) });
            }
            Effect::Disconnect { .. } => {}
            Effect::End { key, .. } => {
                let ended = Ended { left: vec!["it could not be opened".into()], ..Ended::default() };
                self.world.handle(Event::Ended { key, ended });
            }
            // these are told in any case
            what => self.carry_out(Task { at: asked, what, stale: None }),
        }
    }

    /// Everything that is under way happens.
    pub fn settle(&mut self) {
        for _ in 0..10_000 {
            if let Some(task) = self.world.tasks.pop_front() {
                self.carry_out(task);
            } else if self.world.disk.hangs || self.world.disk.is_idle() || !self.alive {
                return;
            } else {
                self.world.disk.batch(usize::MAX);
                self.tell();
                self.after();
            }
        }
        panic!("it does not come to rest: {:?}", self.world.tasks);
    }

    fn tell(&mut self) {
        if let Some(told) = self.world.disk.tell() {
            self.world.handle(told);
        }
    }

    fn disk(&mut self, what: &super::ops::Disk) {
        use super::ops::Disk;
        let disk = &mut self.world.disk;
        match what {
            Disk::Batch(n) if !disk.hangs => disk.batch(usize::from(*n)),
            Disk::Tell if self.alive => self.tell(),
            Disk::Batch(_) | Disk::Tell => {}
            Disk::Takes => (disk.full, disk.lies, disk.hangs) = (false, false, false),
            Disk::Full => (disk.full, disk.lies, disk.hangs) = (true, false, false),
            Disk::Lies => (disk.full, disk.lies, disk.hangs) = (false, true, false),
            Disk::Hangs => disk.hangs = true,
        }
    }

    // time

    pub fn pass(&mut self, time: Duration) {
        let until = self.world.now.mono + time;
        while self.alive && self.world.now.mono < until {
            let step = self.world.registry.next_tick(self.world.now).min(until - self.world.now.mono);
            self.world.pass_time(step);
            self.world.handle(Event::Tick);
            self.after();
            self.settle();
        }
        if !self.alive {
            self.world.pass_time(until.saturating_sub(self.world.now.mono));
        }
        if self.alive && self.world.vpn().up && self.world.vpn().lists_cookies && time > 40 * SECOND {
            self.undecided.clear();
        }
        let disk = &self.world.disk;
        let written = disk.is_idle() && !disk.full && !disk.lies && self.world.registry.unwritten().0 == 0;
        if self.alive && written && time > 3 * SECOND {
            self.clock_was_set = false;
        }
    }

    /// In which a host that sleeps would be woken up a few times.
    fn pass_long(&mut self, time: Duration) {
        self.world.pass_time(time);
        if self.alive {
            self.world.handle(Event::Tick);
            self.after();
            self.settle();
        }
    }

    fn set_clock(&mut self, by: i64) {
        self.world.now.wall = self.world.now.wall.saturating_add_signed(by);
        self.clock_was_set |= by != 0;
        self.break_clock(by);
        if !self.kernel_is_filled {
            self.nobody_knows_the_time();
        }
        if by < 0 {
            // a cookie from the future counts as old while a cutoff stands
            let old = self.cookies.iter().filter(|c| self.may_cut_off(&c.user));
            let unclear: Vec<_> = old.map(|c| c.safe_id).collect();
            self.unclear.extend(unclear);
        }
    }

    pub fn write_clock(&mut self) {
        let (wall, boot_id) = (self.world.now.wall, self.world.boot_id.to_string());
        self.world.registry.write(crate::session::Write::Clock { wall, boot_id });
        self.world.save();
    }

    // the daemon, ocserv and the host come and go

    /// `keep`: so many of the writes that wait reach the disk all the same.
    pub fn kill(&mut self, keep: usize) {
        self.alive = false;
        let dropped = self.world.workers.values().filter(|w| self.world.drops(&Entry::Device(w.device)));
        self.undecided.extend(dropped.map(|w| w.process).collect::<Vec<_>>());
        self.died_at = self.world.now.mono;
        self.world.disk.batch(keep);
        self.world.kill_daemon();
        self.requests.clear();
        self.late = None;
        self.lifts_are_open();
        // gates that waited look into the maps themselves
        for (ask, (process, last)) in std::mem::take(&mut self.asks) {
            self.world.verdicts.remove(&ask);
            self.gate_alone(process, last);
        }
    }

    pub fn start(&mut self) {
        self.lose_what_is_lost();
        self.break_before_start();
        self.alive = true;
        let leases = self.world.now.mono < self.died_at + 10 * SECOND;
        let rebooted = self.world.disk.boot_id != self.world.boot_id.to_string();
        self.world.adopt_after(leases, rebooted);
        if !self.world.died {
            self.lifts_are_finished();
        }
        self.after();
        if !self.alive {
            return;
        }
        self.somebody_knows_the_time();
        self.kernel_is_filled = true;
        self.write_clock();
        self.world.handle(Event::Tick);
        if self.world.vpn().up {
            self.server_up();
        }
    }

    pub fn server_up(&mut self) {
        let (main, terminate) = (self.world.vpn().main, self.terminate);
        self.world.vpn().terminate = terminate;
        self.world.handle(Event::ServerUp { server: vpn(), main, terminate });
        self.world.handle(Event::GateConfigured { server: vpn(), configured: true });
    }

    fn restart_ocserv(&mut self, drops_cookies: bool) {
        let workers: Vec<_> = self.world.workers.values().cloned().collect();
        for worker in workers {
            self.exit(&worker);
        }
        if drops_cookies {
            self.world.vpn().cookies.clear();
        }
        self.world.vpn().up = true;
        let pid = self.world.count() as i32;
        self.world.vpn().main = Process { pid, start: pid as u64 };
        if self.alive {
            self.world.handle(Event::ServerDown { server: vpn(), gone: true });
            self.server_up();
        }
    }

    /// `cookies`: this ocserv keeps them over a reboot. None does today; what is refused is refused all the same.
    fn reboot(&mut self, down: u16, cookies: bool, same: bool) {
        if self.alive {
            self.kill(usize::from(down) % 4);
        }
        self.asks.clear();
        self.restart_ocserv(!cookies);
        self.dead.append(&mut self.world.ended);
        self.world.tasks.clear();
        self.empty_kernel();
        self.kernel_is_filled = false;
        self.dropped.clear();
        self.world.numbered = 0;
        self.world.boot_id += 1;
        if !same {
            self.world.netns = Netns(self.world.netns.0 + 1);
        }
        let down = Duration::from_secs(down.into());
        let before = self.world.now.mono;
        self.world.pass_time(down);
        self.world.now.mono = 20 * SECOND;
        self.died_at = Duration::ZERO;
        self.move_clocks(before + down, self.world.now.mono);
        self.lose_what_is_lost();
        if self.clock_was_set {
            self.nobody_knows_the_time();
        }
        // lifted, and nobody remembers: a new one may have that number
        let next = self.world.disk.next_number;
        self.lifted.retain(|number| *number < next);
        self.world.kill_daemon();
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

    /// R4: whoever logs in after an answered revocation is let in; R2: and nobody who is locked.
    fn fresh(&mut self, user: &str) {
        let heard = |m: &mut Self| m.alive && m.world.vpn().up && m.world.vpn().lists_cookies;
        if !heard(self) {
            return;
        }
        self.settle();
        if self.cuts_off(user) {
            self.pass(ms(5_000));
            // not in the second of a revocation that nobody could complete
            self.pass(SECOND);
        }
        if !heard(self) {
            return;
        }
        let cookie = self.login(user);
        if self.unclear.contains(&cookie) || self.world.now.wall < self.world.vpn().cookies[&cookie].created {
            return;
        }
        let worker = self.world.worker(cookie);
        let id = self.world.connect(worker);
        self.after();
        if !self.alive {
            return;
        }
        let ask = self.world.ask_gate(id, true);
        self.asks.insert(ask, (self.world.workers[&id].process, true));
        self.after();
        self.settle();
        if !self.alive {
            return;
        }
        let worker = self.world.workers.get(&id);
        if self.locked(user) {
            assert_eq!(worker, None, "R2: {user} is locked");
        } else if !self.may_be_locked(user) {
            assert!(worker.is_some_and(|w| w.tun), "R4: {user}'s fresh login");
        }
    }

    /// What an explicit order is about.
    pub fn explicit(n: u8) -> Target {
        match n % 3 {
            0 => Target::Address(ip(100 + n / 16)),
            1 => Target::Flow(outer(1_100 + u16::from(n / 8))),
            _ => Target::Token(Token::new(TokenKind::Dtls, vec![n / 64]).unwrap()),
        }
    }

    pub fn all_cookies_of(&self, user: &str) -> (BTreeSet<SafeId>, BTreeSet<SafeId>) {
        let who = self.person(user);
        let theirs = self.cookies.iter().filter(|c| c.user == user || self.person(&c.user) == who);
        // of a session that nobody has seen yet the list of cookies tells, if ocserv still holds its cookie
        theirs.map(|c| c.safe_id).partition(|id| self.can_be_known(*id))
    }

    fn can_be_known(&self, cookie: SafeId) -> bool {
        let registry = &self.world.registry;
        // a daemon that started after the clock was set back does not know that it was
        let latest = registry.latest_wall(self.world.now);
        self.world.ocservs[&vpn()].cookies.get(&cookie).is_some_and(|cookie| cookie.created <= latest)
            || registry.sessions().any(|s| s.safe_id() == Some(cookie))
    }
}
