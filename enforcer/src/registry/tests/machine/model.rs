//! What the model beside the random world knows: who was told what, and so what has to hold.

use std::collections::{BTreeMap, BTreeSet};

use super::super::harness::*;
use super::faults::Fault;
use super::ops::Story;
use crate::registry::*;
use crate::session::{
    Case, Cookie, CutoffKey, DEFAULT_REALM, Entry, Guarded, Identity, LockKey, Process, Realms, SafeId,
    Stands,
};

pub struct Machine {
    pub world: World,
    pub fault: Fault,
    pub terminate: bool,
    pub alive: bool,
    /// Since when nobody renews leases.
    pub died_at: Duration,
    /// Whatever was ordered; what is known to be lifted is taken out.
    pub orders: BTreeMap<Number, Ordered>,
    /// Lifts that were answered, or that the disk has: these never come back.
    pub lifted: BTreeSet<Number>,
    /// Nobody could say of these whether they are older than a revocation.
    pub unclear: BTreeSet<SafeId>,
    /// Of these nobody could say whether they had connected before a revocation: the clock was set back after it, with
    /// no daemon there. As long as its cutoff stands they may be taken for later ones, and the list of cookies tells.
    pub undatable: BTreeSet<Process>,
    /// Sessions whose device was seen in the kernel.
    pub dropped: BTreeSet<Process>,
    /// Whose device an earlier run dropped, for a lock that is over: the next list of cookies tells.
    pub undecided: BTreeSet<Process>,
    pub asks: BTreeMap<Ask, (Process, bool)>,
    pub requests: BTreeMap<Request, (Number, Duration)>,
    pub lifts: BTreeMap<Request, Number>,
    pub unlocks: BTreeMap<Request, (Identity, BTreeSet<Number>)>,
    pub dead: Vec<Worker>,
    pub late: Option<(Duration, Vec<Sighting>)>,
    pub cookies: Vec<Cookie>,
    /// Every entry that has to be there is in the kernel: a daemon has put all of it there since the maps were made.
    pub kernel_is_filled: bool,
    /// The clock was set since expiries were last written down.
    pub clock_was_set: bool,
}

/// A revocation or a lock, as whoever ordered it sees it.
#[derive(Debug, Clone, Default)]
pub struct Ordered {
    /// Whom it may refuse; true: whom it has to refuse.
    pub cookies: BTreeMap<SafeId, bool>,
    pub lock: Option<(Identity, Span)>,
    pub explicit: Option<(Target, Span)>,
    /// It was answered as being on the disk.
    pub kept: bool,
    /// As it was before a lift was asked for.
    pub before: Option<Box<Ordered>>,
}

/// How long something stands.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    pub must: bool,
    /// It ends between these (CLOCK_MONOTONIC).
    pub earliest: Duration,
    pub latest: Duration,
    pub asked: Option<Duration>,
}

impl Span {
    pub fn new(now: Now, asked: Option<Duration>) -> Self {
        let end = asked.map_or(Duration::MAX, |asked| now.mono + asked);
        Self { must: true, earliest: end, latest: end, asked }
    }

    pub fn must(&self, now: Now) -> bool {
        self.must && now.mono < self.earliest
    }

    pub fn may(&self, now: Now) -> bool {
        // a nanosecond for each event that goes by before the daemon's clock rings
        now.mono < self.latest.saturating_add(ms(1))
    }

    /// The next daemon knows of it only by the disk, which has the wall clock's time.
    fn by_the_disk(&mut self, now: Now, clock_was_set: bool) {
        let Some(asked) = self.asked else { return };
        if clock_was_set {
            self.must = false;
            self.latest = self.latest.max(now.mono.saturating_add(asked + 2 * SECOND));
        } else {
            self.earliest = self.earliest.saturating_sub(SECOND);
            self.latest = self.latest.saturating_add(2 * SECOND);
        }
    }

    /// Another boot's clock.
    fn move_to(&mut self, before: Duration, now: Duration) {
        let moved = |end: Duration| match end {
            Duration::MAX => end,
            end => (end + now).saturating_sub(before),
        };
        (self.earliest, self.latest) = (moved(self.earliest), moved(self.latest));
    }
}

impl Ordered {
    /// It need not hold any more, and may.
    pub fn let_go(&mut self) {
        self.cookies.values_mut().for_each(|must| *must = false);
        for span in self.spans() {
            span.must = false;
        }
        self.kept = false;
    }

    fn spans(&mut self) -> impl Iterator<Item = &mut Span> {
        self.lock.iter_mut().map(|(_, span)| span).chain(self.explicit.iter_mut().map(|(_, span)| span))
    }
}

pub const USERS: [&str; 4] = ["alice", "bob", "carol", "Alice"];

pub fn user(n: u8) -> &'static str {
    USERS[usize::from(n) % USERS.len()]
}

impl Machine {
    pub fn new(story: &Story, fault: Fault) -> Self {
        let mut realms = Realms::default();
        if story.folds {
            realms.set_case(DEFAULT_REALM, Case::Fold);
        }
        let mut world = World::with(&["vpn"], Rules { realms, ..Rules::default() });
        world.late = true;
        world.slow_conntrack = true;
        world.disk.late = true;
        world.disk.broken = fault.of_the_disk();
        world.disk.boot_id = world.boot_id.to_string();
        world.sticky = fault == Fault::AddressesStay;
        let mut machine = Self {
            world,
            fault,
            terminate: story.terminate,
            alive: true,
            died_at: Duration::ZERO,
            orders: BTreeMap::new(),
            lifted: BTreeSet::new(),
            unclear: BTreeSet::new(),
            undatable: BTreeSet::new(),
            dropped: BTreeSet::new(),
            undecided: BTreeSet::new(),
            asks: BTreeMap::new(),
            requests: BTreeMap::new(),
            lifts: BTreeMap::new(),
            unlocks: BTreeMap::new(),
            dead: Vec::new(),
            late: None,
            cookies: Vec::new(),
            kernel_is_filled: true,
            clock_was_set: false,
        };
        machine.write_clock();
        machine.server_up();
        machine
    }

    pub fn person(&self, user: &str) -> Identity {
        self.world.rules.realms.identity(&vpn(), "", user)
    }

    pub fn cutoff_key(&self, user: &str) -> CutoffKey {
        CutoffKey::of(&vpn(), &self.person(user))
    }

    /// Has to be refused.
    pub fn covered(&self, cookie: SafeId) -> bool {
        self.orders.values().any(|order| order.cookies.get(&cookie) == Some(&true))
    }

    pub fn may_be_covered(&self, cookie: SafeId) -> bool {
        self.unclear.contains(&cookie) || self.orders.values().any(|o| o.cookies.contains_key(&cookie))
    }

    pub fn locked(&self, user: &str) -> bool {
        let who = self.person(user);
        self.orders
            .values()
            .any(|o| matches!(&o.lock, Some((its, span)) if *its == who && span.must(self.world.now)))
    }

    pub fn may_be_locked(&self, user: &str) -> bool {
        let who = self.person(user);
        self.orders
            .values()
            .any(|o| matches!(&o.lock, Some((its, span)) if *its == who && span.may(self.world.now)))
    }

    /// What of the kernel's entries is in force now.
    pub fn in_force(&self, entry: &Entry) -> Option<InKernel> {
        let it = self.world.kernel.get(entry)?;
        let stands = match it.stands {
            Stands::Forever => true,
            Stands::Until(at) => Duration::from_nanos(at) > self.world.now.mono,
            Stands::Leased => self.alive || self.world.now.mono < self.died_at + 10 * SECOND,
        };
        stands.then_some(*it)
    }

    /// The gate refuses cookies of this user up to that second.
    pub fn cuts_off(&self, user: &str) -> bool {
        self.world.drops(&Entry::Cutoff(self.cutoff_key(user)))
    }

    /// It does so, or the disk has such a record still (or will have, once it takes what waits): after a crash it is
    /// found there, and stands until the next list of cookies.
    pub fn may_cut_off(&self, user: &str) -> bool {
        let (disk, key) = (&self.world.disk, self.cutoff_key(user));
        self.cuts_off(user) || disk.cutoff(key).or(disk.cutoff_under_way(key)).is_some()
    }

    /// The gate with no daemon: by the pinned maps, or by the disk.
    pub fn refused_alone(&self, worker: &Worker) -> bool {
        let (id, who, key) = (worker.cookie, self.person(&worker.user), self.cutoff_key(&worker.user));
        let ocserv = &self.world.ocservs[&vpn()];
        let created =
            ocserv.cookies.get(&id).filter(|_| ocserv.up && ocserv.lists_cookies).map(|c| c.created);
        let old = |up_to: u64| created.is_none_or(|created| created <= up_to);
        let disk = &self.world.disk;
        if self.kernel_is_filled {
            let lock = self.fault != Fault::GateForgetsLocks
                && self.in_force(&Entry::Lock(LockKey::new(&who))).is_some();
            return lock
                || self.world.refuses(id)
                || self.in_force(&Entry::Cutoff(key)).is_some_and(|cutoff| old(cutoff.moment));
        }
        (self.fault != Fault::GateForgetsLocks
            && disk.lock(LockKey::new(&who), self.world.now.wall).is_some())
            || disk.refuses(id)
            || disk.cutoff(key).is_some_and(old)
    }

    /// A daemon died, or the kernel was emptied: what neither kernel nor disk has of an order is lost. What was
    /// answered as kept must be there: that is looked at in every state.
    pub fn lose_what_is_lost(&mut self) {
        let (now, was_set) = (self.world.now, self.clock_was_set);
        let (kernel, disk) = (&self.world.kernel, &self.world.disk);
        let carries = |entry: &Entry, number| kernel.get(entry).is_some_and(|it| it.number == number);
        let users: BTreeMap<SafeId, &str> =
            self.cookies.iter().map(|c| (c.safe_id, c.user.as_str())).collect();
        let realms = &self.world.rules.realms;
        for (number, order) in &mut self.orders {
            let number = *number;
            let record = disk.records.get(&number);
            let has = |what: Guarded| record.is_some_and(|r| r.guards.iter().any(|guard| guard.what == what));
            for (id, must) in &mut order.cookies {
                let key = CutoffKey::of(&vpn(), &realms.identity(&vpn(), "", users[id]));
                *must &= has(Guarded::SafeId(*id))
                    || has(Guarded::Cutoff(key))
                    || carries(&Entry::SafeId(*id), number)
                    || carries(&Entry::Cutoff(key), number);
            }
            if let Some((who, span)) = &mut order.lock {
                let key = LockKey::new(who);
                if !carries(&Entry::Lock(key), number) {
                    span.must &= has(Guarded::Lock(key));
                    span.by_the_disk(now, was_set);
                }
            }
            if let Some((target, span)) = &mut order.explicit {
                let carried = entry_of(target, self.world.netns).is_some_and(|entry| carries(&entry, number));
                if !carried {
                    span.must &= record.is_some();
                    span.by_the_disk(now, was_set);
                }
            }
        }
        // nothing tells of these any more
        let numbers: BTreeSet<Number> = kernel.values().map(|it| it.number).collect();
        self.orders.retain(|number, _| numbers.contains(number) || disk.records.contains_key(number));
        self.lifted.retain(|number| *number < disk.next_number.max(self.world.numbered));
    }

    pub fn move_clocks(&mut self, before: Duration, now: Duration) {
        for span in self.orders.values_mut().flat_map(Ordered::spans) {
            span.move_to(before, now);
        }
    }

    /// The wall clock was set while only the disk knew when something ends.
    pub fn nobody_knows_the_time(&mut self) {
        for span in self.orders.values_mut().flat_map(Ordered::spans).filter(|span| span.asked.is_some()) {
            (span.must, span.latest) = (false, Duration::MAX);
        }
    }

    /// The next daemon knows it, at the latest by what was asked for.
    pub fn somebody_knows_the_time(&mut self) {
        let now = self.world.now.mono;
        for span in self.orders.values_mut().flat_map(Ordered::spans) {
            if let (Some(asked), Duration::MAX) = (span.asked, span.latest) {
                span.latest = now + asked + 2 * SECOND;
            }
        }
    }
}

/// What an explicit order puts into the kernel.
pub fn entry_of(target: &Target, netns: crate::session::Netns) -> Option<Entry> {
    match target {
        Target::Address(address) => Some(Entry::Address(netns, *address)),
        Target::Flow(flow) => Some(Entry::Flow(netns, *flow)),
        Target::Token(token) => Some(Entry::Token(token.clone())),
        _ => None,
    }
}
