//! What administrators order, and what they are told.

use std::collections::{BTreeMap, BTreeSet};

use super::super::harness::*;
use super::model::*;
use super::ops::Op;
use crate::registry::*;
use crate::session::{Guarded, LockKey, SafeId};

fn asked(stands: u16) -> Option<Duration> {
    (stands > 0).then(|| Duration::from_secs(stands.into()))
}

impl Machine {
    pub fn administrate(&mut self, op: &Op) {
        match *op {
            Op::RevokeUser(n) => {
                let cookies = self.cookies_meant(user(n));
                self.revoke(World::order(Target::User(user(n).into())), cookies);
            }
            Op::Lock { user: n, stands } => {
                let cookies = self.cookies_meant(user(n));
                let who = self.person(user(n));
                self.revoke(Order { stands: asked(stands), ..World::order(Target::Lock(who)) }, cookies);
            }
            Op::RevokeId(n) => {
                if let Some(worker) = self.pick_worker(n).filter(|w| self.is_known(w)) {
                    self.revoke(
                        World::order(Target::Id(worker.process.pid)),
                        BTreeSet::from([worker.cookie]),
                    );
                }
            }
            Op::RevokeSession(n) => {
                if let Some(cookie) = self.pick_cookie(n) {
                    self.revoke(
                        World::order(Target::Session(cookie.safe_id)),
                        BTreeSet::from([cookie.safe_id]),
                    );
                }
            }
            Op::RevokeExplicit { what, stands } => {
                let order = Order { stands: asked(stands), ..World::order(Self::explicit(what)) };
                self.revoke(order, BTreeSet::new());
            }
            Op::Lift(n) if !self.orders.is_empty() => {
                let number = *self.orders.keys().nth(usize::from(n) % self.orders.len()).unwrap();
                self.lift(number);
            }
            Op::Unlock(n) => self.unlock(user(n)),
            _ => {}
        }
    }

    /// The daemon knows this worker's session.
    pub fn is_known(&self, worker: &Worker) -> bool {
        let session = self.world.registry.session(&vpn(), worker.process.pid);
        session.is_some_and(|s| s.worker == Some(worker.process) && s.safe_id() == Some(worker.cookie))
    }

    fn cookies_meant(&mut self, user: &str) -> BTreeSet<SafeId> {
        // a cutoff that stands moves to this moment: whoever came between is under both. So does one that only the disk
        // has: after a crash it is the same as that of the order which comes now
        let between = self.may_cut_off(user);
        let (all, others) = self.all_cookies_of(user);
        self.unclear.extend(others);
        if between {
            self.unclear.extend(&all);
        }
        // (of those that the daemon knows it need not be said)
        let (who, latest) = (self.person(user), self.world.registry.latest_wall(self.world.now));
        let undatable = (self.world.workers.values())
            .filter(|w| w.since > latest && self.person(&w.user) == who && !self.is_known(w))
            .map(|w| w.process);
        self.undatable.extend(undatable.collect::<Vec<_>>());
        all
    }

    fn revoke(&mut self, order: Order, cookies: BTreeSet<SafeId>) {
        let (number, now) = (self.world.registry.next_number(), self.world.now);
        let mut ordered = Ordered {
            cookies: cookies.into_iter().map(|id| (id, true)).collect::<BTreeMap<_, _>>(),
            ..Ordered::default()
        };
        // the clock moves by a nanosecond for each event
        let at = Now { mono: now.mono + Duration::from_nanos(1), ..now };
        match &order.target {
            Target::Lock(who) => ordered.lock = Some((who.clone(), Span::new(at, order.stands))),
            Target::Address(_) | Target::Flow(_) | Target::Token(_) => {
                ordered.explicit = Some((order.target.clone(), Span::new(at, order.stands)));
            }
            _ => {}
        }
        let request = self.world.ask(order);
        if self.world.died {
            // somewhere on its way, and nobody was told
            ordered.let_go();
        }
        self.orders.insert(number, ordered);
        self.lifted.remove(&number);
        self.requests.insert(request, (number, now.mono));
    }

    pub fn lift(&mut self, number: Number) {
        let request = Request::from(self.world.count());
        self.world.handle(Event::Lift { request, number, by: "b".into() });
        self.lifts.insert(request, number);
        self.may_go(number);
    }

    pub fn unlock(&mut self, user: &str) {
        let who = self.person(user);
        let request = Request::from(self.world.count());
        let locked = self.orders.iter().filter(|(_, o)| o.lock.as_ref().is_some_and(|(its, _)| *its == who));
        let numbers: BTreeSet<Number> = locked.map(|(number, _)| *number).collect();
        let must = self.locked(user);
        self.world.handle(Event::Unlock { request, identity: who.clone(), by: "b".into() });
        let nothing = matches!(self.world.answers.get(&request), Some(Answer::Nothing(_)));
        assert!(!(must && nothing), "R5: {who} is locked, and cannot be unlocked");
        for number in &numbers {
            let order = self.orders.get_mut(number).unwrap();
            if let Some((_, span)) = &mut order.lock {
                span.must = false;
            }
            order.kept = false;
        }
        self.unlocks.insert(request, (who, numbers));
    }

    fn may_go(&mut self, number: Number) {
        if let Some(order) = self.orders.get_mut(&number).filter(|order| order.before.is_none()) {
            let before = order.clone();
            order.let_go();
            order.before = Some(Box::new(before));
        }
    }

    /// Nobody will be told any more.
    pub fn lifts_are_open(&mut self) {
        if !self.lifts.is_empty() || !self.unlocks.is_empty() {
            self.dropped.clear();
        }
        self.lifts.clear();
        self.unlocks.clear();
        self.orders.values_mut().for_each(|order| order.before = None);
    }

    /// What the disk has as lifted the next daemon has finished.
    pub fn lifts_are_finished(&mut self) {
        for number in self.world.disk.committed_lifts() {
            if self.orders.remove(&number).is_some() {
                self.lifted.insert(number);
                self.dropped.clear();
            }
        }
    }

    pub fn take_answers(&mut self) {
        let (alive, now) = (self.alive, self.world.now.mono);
        for (request, (number, asked)) in self.requests.clone() {
            let Some(answer) = self.world.answers.remove(&request) else {
                // (the host may have slept meanwhile)
                assert!(
                    !alive || now <= asked + ms(5_100) || now > asked + 60 * SECOND,
                    "revocation {number} is not answered"
                );
                continue;
            };
            self.requests.remove(&request);
            match answer {
                Answer::Receipt(receipt) => self.take_receipt(number, &receipt),
                Answer::Refused(_) => {}
                // ocserv has no such cookie; that the disk has none may be on its way
                Answer::Nothing(_) => {
                    if let Some(order) = self.orders.get_mut(&number) {
                        order.let_go();
                    }
                }
            }
        }
        self.take_lifts();
        self.take_unlocks();
    }

    fn take_receipt(&mut self, number: Number, receipt: &Receipt) {
        let Some(order) = self.orders.get_mut(&number) else { return };
        let disk = layer(receipt, Layer::Disk);
        order.kept = disk.failed == 0 && order.before.is_none();
        if !receipt.is_complete() {
            return;
        }
        // R1, R6: done is done
        let cookies = &self.orders[&number].cookies;
        let told = |w: &&Worker| !w.let_go || self.world.registry.session(&vpn(), w.process.pid).is_some();
        let up =
            (self.world.workers.values()).find(|w| w.tun && cookies.get(&w.cookie) == Some(&true) && told(w));
        assert_eq!(up, None, "R6: {receipt:?}");
    }

    fn take_lifts(&mut self) {
        for (request, number) in self.lifts.clone() {
            let Some(answer) = self.world.answers.remove(&request) else { continue };
            self.lifts.remove(&request);
            match answer {
                Answer::Receipt(_) => {
                    self.orders.remove(&number);
                    self.lifted.insert(number);
                    self.dropped.clear();
                }
                // as above: it matched nothing, or is over, and the disk may have it still
                Answer::Nothing(_) => {
                    if let Some(order) = self.orders.get_mut(&number) {
                        order.let_go();
                    }
                }
                Answer::Refused(why) if why.starts_with("not lifted") => {
                    // what the disk has taken, and did not say, the next daemon may find
                    let may_be_found = self.world.disk.lifted.contains(&number);
                    let order = self.orders.get_mut(&number);
                    if let Some(order) = order.filter(|_| !may_be_found)
                        && let Some(before) = order.before.take()
                    {
                        *order = Ordered { kept: false, ..*before };
                    }
                }
                // somebody else's lift or unlock is under way, and is answered
                Answer::Refused(_) => {}
            }
        }
    }

    fn take_unlocks(&mut self) {
        for (request, (who, numbers)) in self.unlocks.clone() {
            let Some(answer) = self.world.answers.remove(&request) else { continue };
            self.unlocks.remove(&request);
            match answer {
                Answer::Receipt(_) | Answer::Nothing(_) => {
                    let nothing = matches!(answer, Answer::Nothing(_));
                    let (disk, key) = (&self.world.disk, LockKey::new(&who));
                    // its time was over, and the disk may not have heard of that: by a clock that is set back over a
                    // reboot it is not over there
                    let kept = |number| nothing && disk.may_have(number, Guarded::Lock(key));
                    for (_, order) in self
                        .orders
                        .iter_mut()
                        .filter(|(number, _)| numbers.contains(number) && !kept(**number))
                    {
                        order.lock.take_if(|(its, _)| *its == who);
                    }
                }
                // it may have been done for one of several, and on the disk alone
                Answer::Refused(_) => {}
            }
        }
    }
}
