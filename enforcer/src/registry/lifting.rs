//! Taking a revocation or a lock back. What is lifted is on the disk as lifted before anything of it leaves the
//! kernel: an answered lift is never undone by a crash.

use std::collections::BTreeSet;

use crate::session::{Guarded, Identity, LockKey, Record, SafeId, Write};

use super::locks::lock_of;
use super::revocation::State;
use super::{Answer, Effect, Effects, Now, Number, Receipt, Registry, Request, Target};

/// A lift or an unlock that waits for the disk.
#[derive(Debug)]
pub(super) struct Lift {
    waits_for: BTreeSet<Number>,
    /// Only this person's lock goes; what it ended stays ended.
    unlock: Option<Identity>,
    by: String,
    /// By another gateway: it need not be told.
    told: bool,
    receipt: Option<Receipt>,
    failed: Option<String>,
}

#[cfg(test)]
impl Lift {
    pub(super) fn waits_for(&self) -> usize {
        self.waits_for.len()
    }
}

impl Registry {
    pub(super) fn lift(&mut self, request: Request, number: Number, by: String, now: Now, out: &mut Effects) {
        let refused = match self.revocations.get(&number).map(|r| r.state) {
            None => Some(Answer::Nothing(format!(
                "there is no revocation {number} (show revocations lists them)"
            ))),
            Some(State::Lifted) => Some(Answer::Nothing(format!("revocation {number} is lifted already"))),
            Some(_) if self.lifting.contains_key(&number) => {
                Some(Answer::Refused(format!("revocation {number} is being lifted already")))
            }
            Some(_) => None,
        };
        if let Some(answer) = refused {
            return out.push(Effect::Answer { request, answer });
        }
        self.lift_these(request, BTreeSet::from([number]), by, false, now, out);
    }

    pub(super) fn is_being_lifted(&self, number: Number) -> bool {
        self.lifting.contains_key(&number)
    }

    /// `told`: another gateway has, and knows.
    pub(super) fn lift_these(
        &mut self,
        request: Request,
        numbers: BTreeSet<Number>,
        by: String,
        told: bool,
        now: Now,
        out: &mut Effects,
    ) {
        for number in &numbers {
            self.leave_to_later_ones(*number, now, out);
            self.write(Write::Lift(*number));
        }
        self.begin_lift(request, numbers, None, by, told);
    }

    pub(super) fn unlock(
        &mut self,
        request: Request,
        identity: &Identity,
        by: String,
        now: Now,
        out: &mut Effects,
    ) {
        let numbers = self.holdings.numbers(&lock_of(identity));
        if numbers.is_empty() {
            let answer = Answer::Nothing(format!("{identity} is not locked (show users tells who is)"));
            return out.push(Effect::Answer { request, answer });
        }
        if numbers.iter().any(|number| self.lifting.contains_key(number)) {
            let answer = Answer::Refused(format!("{identity} is being unlocked already"));
            return out.push(Effect::Answer { request, answer });
        }
        self.unlock_these(request, numbers, identity, by, false, now);
    }

    pub(super) fn unlock_these(
        &mut self,
        request: Request,
        numbers: BTreeSet<Number>,
        identity: &Identity,
        by: String,
        told: bool,
        now: Now,
    ) {
        for number in &numbers {
            let mut record = self.revocations.get(number).and_then(|r| self.record_of(r, now));
            if let Some(record) = &mut record {
                record.guards.retain(|guard| guard.what != Guarded::Lock(LockKey::new(identity)));
            }
            // what the lock has ended stays ended
            let write = match record.filter(|record| !record.guards.is_empty()) {
                Some(record) => Write::Keep(Record { until: None, ..record }),
                None => Write::Lift(*number),
            };
            self.write(write);
        }
        self.begin_lift(request, numbers, Some(identity.clone()), by, told);
    }

    fn begin_lift(
        &mut self,
        request: Request,
        numbers: BTreeSet<Number>,
        unlock: Option<Identity>,
        by: String,
        told: bool,
    ) {
        self.lifting.extend(numbers.iter().map(|number| (*number, request)));
        let lift = Lift { waits_for: numbers, unlock, by, told, receipt: None, failed: None };
        self.lifts.insert(request, lift);
    }

    /// It is on the disk that this number is lifted, or it could not be written.
    pub(super) fn lift_stored(
        &mut self,
        number: Number,
        outcome: &Result<(), String>,
        now: Now,
        out: &mut Effects,
    ) {
        let Some(request) = self.lifting.remove(&number) else { return };
        if self.held_back.remove(&number) {
            self.holdings.touch(number);
        }
        let unlock = self.lifts.get(&request).and_then(|lift| lift.unlock.clone());
        if outcome.is_ok() {
            self.tell_lift(number, request, out);
        }
        let receipt = match (outcome, unlock) {
            (Ok(()), Some(identity)) => self.unlock_now(number, &identity, now, out),
            (Ok(()), None) => self.lift_now(number, now, out),
            (Err(_), _) => {
                // the write may have reached the disk all the same
                self.save_again(number);
                None
            }
        };
        let Some(lift) = self.lifts.get_mut(&request) else { return };
        lift.waits_for.remove(&number);
        lift.receipt = lift.receipt.take().or(receipt);
        if let Err(why) = outcome {
            lift.failed = Some(why.clone());
        }
        if lift.waits_for.is_empty()
            && let Some(lift) = self.lifts.remove(&request)
        {
            self.answer_lift(request, lift, now, out);
        }
    }

    fn answer_lift(&mut self, request: Request, lift: Lift, now: Now, out: &mut Effects) {
        let what = if lift.unlock.is_some() { "unlocked" } else { "lifted" };
        let answer = match (lift.failed, lift.receipt) {
            (Some(why), _) => Answer::Refused(format!(
                "not {what}: that has to be on the disk before it leaves the kernel, and {why}"
            )),
            (None, Some(receipt)) => {
                let text = format!("{}: {}: by {}", receipt.number, receipt.target, lift.by);
                out.push(Effect::Note { kind: what, text });
                self.audit(what, &receipt, &lift.by, now);
                Answer::Receipt(Box::new(receipt))
            }
            (None, None) => Answer::Nothing(format!("it is {what} already")),
        };
        out.push(Effect::Answer { request, answer });
    }

    /// Before it is lifted: by then nobody would know whose record it was.
    fn tell_lift(&mut self, number: Number, request: Request, out: &mut Effects) {
        let Some(order) = self.revocations.get(&number).map(|r| r.order.clone()) else { return };
        let over = self.over_of(&order);
        let lift = self.lifts.get(&request).filter(|lift| !lift.told);
        if let Some(by) = lift.map(|lift| lift.by.clone()).filter(|_| !over.is_empty()) {
            out.push(Effect::TakenBack { number, request, origin: order.origin, over, by });
        }
        self.forget_origin(number, &order);
    }

    fn lift_now(&mut self, number: Number, now: Now, out: &mut Effects) -> Option<Receipt> {
        let held = self.holdings.of(number);
        self.leave_to_later_ones(number, now, out);
        self.drop_number(number, out);
        self.set_state(number, State::Lifted);
        self.write(Write::Forget(number));
        // whoever waits for it hears how far it came
        let waits = self.revocations.get_mut(&number).and_then(|r| r.request.take());
        if let Some(request) = waits {
            let answer = Answer::Nothing(format!("revocation {number} was lifted before it was done"));
            out.push(Effect::Answer { request, answer });
        }
        self.lifted_receipt(number, &held, now)
    }

    fn unlock_now(
        &mut self,
        number: Number,
        identity: &Identity,
        now: Now,
        out: &mut Effects,
    ) -> Option<Receipt> {
        let entry = lock_of(identity);
        self.holdings.release(&entry, number, out);
        self.let_go(number, out);
        self.write(Write::Forget(number));
        if !self.holdings.holds_any(number) && !self.busy.contains(&number) {
            self.set_state(number, State::Lifted);
        }
        let mut receipt = self.lifted_receipt(number, &[entry], now)?;
        receipt.notes.push("what the lock has ended stays ended; a fresh login is let in".into());
        Some(receipt)
    }

    /// What this revocation marked of a user is older than any later one of that user, which may not have been told:
    /// ocserv may have deleted the cookie for this one, so that no list shows it any more.
    fn leave_to_later_ones(&mut self, number: Number, now: Now, out: &mut Effects) {
        let Some(revocation) = self.revocations.get(&number) else { return };
        if !matches!(revocation.order.target, Target::User(_) | Target::Person(_) | Target::Lock(_)) {
            return;
        }
        let later: Vec<Number> = (self.busy.range(number + 1..))
            .filter_map(|later| self.revocations.get(later))
            .filter(|later| later.order.target == revocation.order.target)
            .map(|later| later.number)
            .collect();
        let ids: Vec<SafeId> = revocation.safe_ids.keys().copied().collect();
        for number in later {
            for id in &ids {
                let server = self.marks.get(id).and_then(|mark| mark.server.clone());
                let its = |name| self.revocations.get(&number).is_some_and(|r| r.servers.contains_key(name));
                if server.as_ref().is_some_and(its) {
                    self.mark(*id, server, number, now, out);
                }
            }
        }
    }
}
