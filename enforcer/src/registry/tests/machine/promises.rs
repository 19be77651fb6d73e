//! What has to hold in every state.

use super::super::harness::*;
use super::STEPS;
use super::faults::Fault;
use super::model::*;
use crate::registry::*;
use crate::session::{CutoffKey, Entry, Guarded, LockKey, SafeId, Stands};

impl Machine {
    pub fn decided(&mut self, worker: &Worker, last: bool, admitted: bool) {
        let (cookie, user) = (worker.cookie, worker.user.as_str());
        if admitted {
            // the gate alone cannot know of a cookie that ocserv has deleted; but its device is dropped all the same
            let is_dropped = !self.alive
                && !self.world.ocservs[&vpn()].cookies.contains_key(&cookie)
                && self.world.drops(&Entry::Device(worker.device));
            assert!(!(last && self.covered(cookie)) || is_dropped, "R2: {worker:?} is let in");
            assert!(!self.locked(user), "R2: {worker:?} is let in, and is locked");
        } else {
            let explained = self.may_be_covered(cookie) || self.may_be_locked(user) || self.cuts_off(user);
            // of a cookie that ocserv has deleted nothing tells that it is a fresh one
            let valid = self.world.ocservs[&vpn()].cookies.contains_key(&cookie);
            let kept = !self.kernel_is_filled && self.world.disk.cutoff(self.cutoff_key(user)).is_some();
            assert!(explained || kept || !valid, "R4: {worker:?} is refused");
        }
        match (admitted, last) {
            (true, true) => self.world.come_up(worker.process.pid),
            (true, false) => {}
            (false, _) => self.exit(worker),
        }
    }

    /// What has come out, and what has to hold in every state.
    pub fn after(&mut self) {
        STEPS.set(STEPS.get() + 1);
        // what is told twice is what came first
        for worker in self.world.ended.drain(..) {
            self.dead.push(worker);
        }
        if self.world.died {
            self.take_answers();
            let keep = self.world.now.mono.as_nanos() % 5;
            self.kill(usize::try_from(keep).unwrap());
        }
        self.break_verdicts();
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
        self.track();
        self.check();
    }

    /// R3: no connection of somebody who may have it is deleted. Who sends has some from here on.
    fn track(&mut self) {
        let mine = |w: &Worker| {
            let dropped = [Entry::Device(w.device), Entry::Address(self.world.netns, w.address)];
            w.tun && !w.let_go && !dropped.iter().any(|entry| self.world.drops(entry))
        };
        let senders: Vec<Worker> = self.world.workers.values().filter(|w| mine(w)).cloned().collect();
        for process in self.world.deleted.drain(..) {
            let whose = senders.iter().find(|w| w.process == process);
            assert!(whose.is_none(), "R3: connections of {whose:?} were deleted");
        }
        let Ok(Some(tracked)) = &mut self.world.tracked else { return };
        for worker in senders {
            let theirs = tracked.entry(worker.address).or_default();
            if !theirs.contains(&worker.process) {
                theirs.push(worker.process);
            }
        }
    }

    fn check(&mut self) {
        self.check_workers();
        self.check_kernel();
        self.check_disk();
        self.check_bounds();
    }

    fn check_workers(&mut self) {
        let known = |w: &Worker| {
            let session = self.world.registry.session(&vpn(), w.process.pid);
            session.filter(|s| s.worker == Some(w.process) && s.safe_id() == Some(w.cookie))
        };
        for worker in self.world.workers.values() {
            let must = self.covered(worker.cookie);
            let drops = self.world.drops(&Entry::Device(worker.device));
            // R1, R2: a revoked session's device is dropped from when it is known, and as long as it is there
            let seen = self.alive && known(worker).is_some_and(|s| s.device.is_some());
            let open = !worker.tun || self.undatable.contains(&worker.process);
            let undecided = open && self.cuts_off(&worker.user);
            assert!(
                !(must || self.locked(&worker.user)) || !seen || drops || undecided,
                "R1: {worker:?} is not dropped"
            );
            assert!(
                !must || !self.dropped.contains(&worker.process) || drops || undecided,
                "R1: {worker:?} is dropped no more"
            );
            if drops {
                self.dropped.insert(worker.process);
            } else if !must && self.lifts.is_empty() && self.unlocks.is_empty() {
                // what dropped it is over: a later revocation of it begins anew
                self.dropped.remove(&worker.process);
            }
            if self.may_be_covered(worker.cookie) || self.may_be_locked(&worker.user) {
                continue;
            }
            // R3
            // (a lock may have ended while no daemon was there)
            let waits = self.undecided.contains(&worker.process);
            assert!(!drops || waits, "R3: {worker:?} is hit by its device");
            let owns =
                self.alive && known(worker).is_some_and(|s| s.observed.addresses.contains(&worker.address));
            let hit = |entry: &Entry| self.in_force(entry).is_some_and(|it| it.stands == Stands::Leased);
            let by_address = hit(&Entry::Address(self.world.netns, worker.address));
            // what the last owner has left is being taken out: nobody is let in meanwhile by a gate
            let cleared = (self.world.tasks.iter()).any(|task| {
                matches!(task.what, Effect::ForgetConnections { address, .. } if address == worker.address)
            });
            assert!(!owns || worker.let_go || cleared || !by_address, "R3: {worker:?} is hit by its address");
            let quiet = self.alive && self.world.tasks.is_empty() && self.world.registry.adopted_at.is_none();
            let by_flow = hit(&Entry::Flow(self.world.netns, worker.flow));
            assert!(!quiet || !by_flow, "R3: {worker:?} is hit by its flow");
        }
    }

    fn check_kernel(&self) {
        let now = self.world.now;
        for (entry, it) in &self.world.kernel {
            // R5: an answered lift never comes back
            assert!(!self.alive || !self.lifted.contains(&it.number), "R5: {entry:?} is lifted: {it:?}");
            match entry {
                Entry::SafeId(id) => assert!(self.may_be_covered(*id), "R3: {id} is refused"),
                Entry::Lock(key) => {
                    let its = |o: &Ordered| matches!(&o.lock, Some((who, span)) if LockKey::new(who) == *key && span.may(now));
                    let stands = self.in_force(entry).is_some();
                    assert!(!stands || self.orders.values().any(its), "R4: {entry:?} is locked: {it:?}");
                }
                Entry::Address(..) | Entry::Flow(..) | Entry::Token(_) => {
                    let its = |o: &Ordered| {
                        matches!(&o.explicit, Some((target, span))
                            if span.may(now) && entry_of(target, self.world.netns).as_ref() == Some(entry))
                    };
                    let stands = self.in_force(entry).is_some_and(|it| it.stands != Stands::Leased);
                    assert!(
                        !stands || self.orders.values().any(its),
                        "R3: {entry:?} outlives the daemon: {it:?}"
                    );
                }
                Entry::Device(_) | Entry::Cutoff(_) => {}
            }
        }
        if !self.kernel_is_filled {
            return;
        }
        for (number, order) in &self.orders {
            if let Some((who, span)) = &order.lock {
                let stands = self.in_force(&Entry::Lock(LockKey::new(who))).is_some();
                assert!(!span.must(now) || stands, "R2: lock {number} of {who} is not in force");
            }
            if let Some((target, span)) = &order.explicit {
                let entry = entry_of(target, self.world.netns).unwrap();
                let stands = self.in_force(&entry).is_some_and(|it| it.stands != Stands::Leased);
                assert!(!span.must(now) || stands, "R5: {number}: {entry:?} is not in force");
            }
        }
    }

    /// R5: what was answered as written is there for the next boot, and what was lifted is not.
    fn check_disk(&self) {
        let (disk, now) = (&self.world.disk, self.world.now);
        for number in &self.lifted {
            assert!(!disk.records.contains_key(number), "R5: {number} was lifted, and is on the disk");
        }
        let ocserv = &self.world.ocservs[&vpn()];
        for (number, order) in self.orders.iter().filter(|(_, order)| order.kept) {
            let record = disk.records.get(number);
            let has = |what| record.is_some_and(|r| r.guards.iter().any(|guard| guard.what == what));
            let needed = |id: &SafeId| !self.unclear.contains(id) && ocserv.cookies.contains_key(id);
            for id in order.cookies.iter().filter(|(id, must)| **must && needed(id)).map(|(id, _)| *id) {
                let user = &ocserv.cookies[&id].user;
                let cutoff = Guarded::Cutoff(CutoffKey::of(&vpn(), &self.person(user)));
                assert!(
                    has(Guarded::SafeId(id)) || has(cutoff),
                    "R5: {number}: {id} would be let in after a reboot: {record:?}"
                );
            }
            if let Some((who, span)) = order.lock.as_ref().filter(|(_, span)| span.must(now)) {
                let key = LockKey::new(who);
                assert!(has(Guarded::Lock(key)), "R5: lock {number} would be lost at a reboot: {span:?}");
            }
            if let Some((target, span)) = order.explicit.as_ref().filter(|(_, span)| span.must(now)) {
                assert!(record.is_some(), "R5: {number}: {target} would be lost at a reboot: {span:?}");
            }
        }
    }

    /// R7: nothing grows without need.
    fn check_bounds(&self) {
        let registry = &self.world.registry;
        if !self.alive {
            return;
        }
        let (unsaved, on_its_way, queued) = registry.durable.sizes();
        let waits = registry.lifts.values().map(lifting::Lift::waits_for).sum::<usize>();
        assert_eq!(registry.lifting.len(), waits, "R7: {:?}", registry.lifting);
        assert!(registry.held_back.iter().all(|number| registry.lifting.contains_key(number)), "R7");
        assert!(
            on_its_way <= self.world.disk.under_way() || self.fault == Fault::AnswersBeforeTheDisk,
            "R7: {on_its_way} writes are on their way"
        );
        assert_eq!(queued, 0, "R7: nobody took what is to be written");
        assert!(unsaved <= registry.next_number() as usize, "R7: {unsaved} unsaved");
        assert!(registry.marks.len() <= self.cookies.len(), "R7: {} marks", registry.marks.len());
        let most =
            4 * (self.dead.len() + self.world.workers.len() + self.cookies.len() + self.orders.len()) + 8;
        assert!(self.world.kernel.len() <= most, "R7: {} entries", self.world.kernel.len());
    }

    /// R7: when all is over nothing is left but what was asked for without end, and that can be taken back.
    pub fn end(&mut self) {
        self.world.disk.hangs = false;
        (self.world.disk.full, self.world.disk.lies) = (false, false);
        self.world.dies_after = None;
        if !self.alive {
            self.start();
        }
        self.world.vpn().up = true;
        self.world.vpn().lists_cookies = true;
        self.server_up();
        self.settle();
        self.pass(if self.undecided.is_empty() { 6 } else { 41 } * SECOND);
        let workers: Vec<_> = self.world.workers.values().cloned().collect();
        for worker in workers {
            self.exit(&worker);
        }
        self.world.vpn().cookies.clear();
        self.settle();
        self.pass(70 * SECOND);
        self.world.pass_time(60_000 * SECOND);
        self.pass(SECOND);
        for entry in self.world.kernel.keys() {
            let asked_for = match entry {
                Entry::Lock(_) => true,
                Entry::Address(..) | Entry::Flow(..) | Entry::Token(_) => {
                    self.world.kernel[entry].stands != Stands::Leased
                }
                _ => false,
            };
            assert!(asked_for, "R7: {entry:?} is left");
        }
        for name in USERS {
            self.unlock(name);
            self.settle();
            self.after();
            assert!(!self.may_be_locked(name), "R4: {name} cannot be unlocked");
        }
        let explicit: Vec<Number> =
            self.orders.iter().filter(|(_, order)| order.explicit.is_some()).map(|(n, _)| *n).collect();
        for number in explicit {
            self.lift(number);
            self.settle();
            self.after();
        }
        self.pass(10 * SECOND);
        let registry = &self.world.registry;
        assert!(self.world.kernel.is_empty(), "R7: {:?} is left", self.world.kernel);
        assert_eq!(registry.sessions().count(), 0, "R7: {:?}", registry.sessions);
        assert!(registry.marks.is_empty() && registry.busy.is_empty() && registry.writing.is_empty());
        assert!(registry.lifting.is_empty() && registry.lifts.is_empty() && registry.held_back.is_empty());
        assert_eq!(registry.durable.sizes(), (0, 0, 0), "R7: {:?}", registry.durable);
        let disk = &self.world.disk;
        assert!(disk.records.is_empty() && disk.lifted.is_empty(), "R7: {disk:?} is left");
    }
}
