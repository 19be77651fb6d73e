//! What is between this gateway's own decisions and other gateways': which of them the others have to be told, and which
//! revocation here carries out what another one has decided.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::session::{Author, Decision, Identity, Letter, Origin, Over, Revision, SafeId, Target, Write};

use super::durable::Disk;
use super::holdings::Want;
use super::locks::lock_of;
use super::revocation::{Revocation, State};
use super::{Answer, Effect, Effects, Now, Number, Order, Registry, Request, TakeBack};

/// Which revocations here stand for which records.
#[derive(Debug, Default)]
pub(super) struct Replicated {
    numbers: BTreeMap<(Author, Over), BTreeSet<(Revision, Number)>>,
}

impl Replicated {
    fn add(&mut self, origin: Origin, over: Over, number: Number) {
        self.numbers.entry((origin.author, over)).or_default().insert((origin.revision, number));
    }

    fn remove(&mut self, origin: Origin, over: Over, number: Number) {
        let key = (origin.author, over);
        if let Some(numbers) = self.numbers.get_mut(&key) {
            numbers.remove(&(origin.revision, number));
            if numbers.is_empty() {
                self.numbers.remove(&key);
            }
        }
    }
}

impl Registry {
    /// Of whom or what other gateways may have something. Empty: it means something on this one alone.
    pub(super) fn over_of(&self, order: &Order) -> Vec<Over> {
        let Some(realms) = self.rules.replicates.as_ref().filter(|_| order.server.is_none()) else {
            return Vec::new();
        };
        match &order.target {
            Target::User(name) => {
                let people: BTreeSet<Identity> =
                    realms.iter().map(|realm| self.rules.realms.person(realm, name)).collect();
                people.into_iter().map(Over::User).collect()
            }
            Target::Person(who) => vec![Over::User(who.clone())],
            Target::Session(id) => vec![Over::Session(*id)],
            Target::Web(key) => vec![Over::Web(*key)],
            Target::Lock(who) => vec![Over::Lock(who.clone())],
            Target::Id(_) | Target::Address(_) | Target::Flow(_) | Target::Token(_) | Target::Adopted => {
                Vec::new()
            }
        }
    }

    /// An order was given a number.
    pub(super) fn replicate(
        &mut self,
        number: Number,
        request: Option<Request>,
        order: &Order,
        now: Now,
        out: &mut Effects,
    ) {
        let over = self.over_of(order);
        if let Some(origin) = order.origin {
            over.into_iter().for_each(|over| self.replicated.add(origin, over, number));
            return;
        }
        if over.is_empty() {
            return;
        }
        let lasts = match &order.target {
            Target::Lock(who) => self.lock_lasts(who, order.stands, now).map(whole_seconds),
            _ => None,
        };
        let decision = Decision {
            number,
            by: order.by.clone(),
            reason: order.reason.clone(),
            at: now.wall,
            until: lasts.map(|lasts| now.wall.saturating_add(lasts)),
            lasts,
        };
        for over in &over {
            self.write(Write::KeepLetter(Letter::Decided { over: over.clone(), decision: decision.clone() }));
        }
        out.push(Effect::Decided { number, request, over, decision });
    }

    /// A decision of this gateway's stands in the order of all now.
    pub(super) fn told_others(&mut self, number: Number, origin: Origin) {
        let Some(revocation) = self.revocations.get_mut(&number) else { return };
        if matches!(revocation.state, State::Lifted | State::Expired) {
            return;
        }
        let before = revocation.order.origin.replace(origin);
        let order = revocation.order.clone();
        for over in self.over_of(&order) {
            if let Some(before) = before {
                self.replicated.remove(before, over.clone(), number);
            }
            self.replicated.add(origin, over, number);
        }
        // who lifts it after a restart names it by that
        if before != Some(origin) && self.holdings.durable_of(number).next().is_some() {
            self.holdings.touch(number);
        }
    }

    /// Of one that is remembered no longer, or was never told.
    pub(super) fn forget_origin(&mut self, number: Number, order: &Order) {
        if let Some(origin) = order.origin {
            self.over_of(order).into_iter().for_each(|over| self.replicated.remove(origin, over, number));
        }
    }

    pub(super) fn remember_origin(&mut self, number: Number, order: &Order) {
        if let Some(origin) = order.origin {
            self.over_of(order).into_iter().for_each(|over| self.replicated.add(origin, over, number));
        }
    }

    /// Whether that record is carried out already, as the disk shows.
    pub fn carries_out(&self, origin: Origin, over: &Over) -> bool {
        self.replicated.numbers.get(&(origin.author, over.clone())).is_some_and(|numbers| {
            let of_it = (origin.revision, 0)..=(origin.revision, Number::MAX);
            numbers.range(of_it).any(|(_, number)| self.revocations.contains_key(number))
        })
    }

    /// Whether a login with that cookie would be refused.
    pub fn refuses(&self, id: SafeId) -> bool {
        self.marks.contains_key(&id)
    }

    /// Whether somebody is there with that cookie.
    pub fn is_present(&self, id: SafeId) -> bool {
        self.sessions.with_safe_id(id).any(|session| !session.has_ended())
    }

    /// Whether what a reboot must not lose of it is on the disk.
    pub fn is_kept(&self, number: Number) -> bool {
        self.revocations.get(&number).is_none_or(|revocation| {
            matches!(revocation.disk, Disk::Nothing | Disk::Written) && self.is_settled_on_disk(revocation)
        })
    }

    /// Whether another decision of this gateway's (`me`) about the same stands: the others know all of them by one name, and what
    /// they are told of this one would lift that as well. `untold`: those that wait for etcd under that name.
    pub fn stands_besides(&self, number: Number, over: &Over, untold: &BTreeSet<Number>, me: Author) -> bool {
        let stands = |other: &Revocation| {
            other.number != number
                && other.order.server.is_none()
                && other.order.origin.is_none_or(|origin| origin.author == me)
                && !matches!(other.state, State::Lifted | State::Expired)
        };
        let is_known = |other: &Number| self.revocations.get(other).is_some_and(|other| stands(other));
        if let Over::Lock(who) = over {
            // one that was taken back may have something else that stands
            return self.holdings.numbers(&lock_of(who)).iter().any(is_known);
        }
        let told = self.replicated.numbers.get(&(me, over.clone()));
        let target = self.revocations.get(&number).map(|r| &r.order.target);
        told.into_iter().flatten().any(|(_, other)| is_known(other))
            || untold.iter().any(is_known)
            || self
                .revocations_after(number)
                .any(|later| Some(&later.order.target) == target && stands(later))
    }

    /// How long a lock of this gateway's is told to last, which was asked to last `stands`: as long as the longest of its locks
    /// on that person, since the others keep the newest one's time alone. `None`: until it is lifted.
    fn lock_lasts(&self, who: &Identity, stands: Option<Duration>, now: Now) -> Option<Duration> {
        let entry = lock_of(who);
        let is_own = |number: &Number| {
            let origin = self.revocations.get(number).map(|r| r.order.origin);
            origin.is_some_and(|origin| origin.is_none_or(|origin| Some(origin.author) == self.rules.author))
        };
        let others = self.holdings.numbers(&entry).into_iter().filter(is_own);
        others.filter_map(|number| self.holdings.want(&entry, number)).fold(
            stands,
            |lasts, want| match want {
                Want::Until(moment) => lasts.map(|lasts| lasts.max(moment.saturating_sub(now.mono))),
                Want::Forever => None,
                Want::Leased(_) => lasts,
            },
        )
    }

    pub(super) fn take_back(&mut self, request: Request, lift: TakeBack, now: Now, out: &mut Effects) {
        let TakeBack { author, over, up_to, by } = lift;
        let numbers = self.replicated.numbers.get(&(author, over.clone()));
        let numbers: BTreeSet<Number> = (numbers.into_iter().flatten())
            .filter(|(revision, _)| *revision <= up_to)
            .map(|(_, number)| *number)
            .filter(|number| self.revocations.get(number).is_some_and(|r| r.state != State::Lifted))
            .collect();
        if numbers.is_empty() {
            let answer = Answer::Nothing("it is not in force here".into());
            return out.push(Effect::Answer { request, answer });
        }
        if numbers.iter().any(|number| self.is_being_lifted(*number)) {
            let answer = Answer::Refused("it is being lifted already".into());
            return out.push(Effect::Answer { request, answer });
        }
        match &over {
            Over::Lock(who) => {
                let held = self.holdings.numbers(&lock_of(who));
                let numbers: BTreeSet<Number> = numbers.intersection(&held).copied().collect();
                if numbers.is_empty() {
                    let answer = Answer::Nothing("its time is over".into());
                    return out.push(Effect::Answer { request, answer });
                }
                self.unlock_these(request, numbers, who, by, true, now);
            }
            _ => self.lift_these(request, numbers, by, true, now, out),
        }
    }
}

/// Rounded up: no lock ends early for having been told.
fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}
