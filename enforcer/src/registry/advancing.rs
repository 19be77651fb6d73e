//! A revocation after its order: how far it is, when it is answered, and how often it is looked at again.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::session::{Entry, ServerName};

use super::revocation::{EndingState, State, Step, Verify};
use super::servers::ServerState;
use super::{
    Answer, Effect, Effects, MAX_FINISHED, Now, Number, Registry, Session, SessionKey, Target, Terminate,
};

/// How long after a list of workers that failed it is asked for again, as long as there was none.
const LIST_AGAIN: Duration = Duration::from_secs(1);

impl Registry {
    /// Moves every revocation on as far as it can go now.
    pub(super) fn advance(&mut self, now: Now, out: &mut Effects) {
        let busy: Vec<Number> = self.busy.iter().copied().collect();
        for number in busy {
            self.advance_one(number, now, out);
        }
        self.forget_finished();
    }

    pub(super) fn set_state(&mut self, number: Number, state: State) {
        let Some(revocation) = self.revocations.get_mut(&number) else { return };
        revocation.state = state;
        // an explicit one waits for nothing but the disk
        let busy = revocation.is_busy() && (revocation.adopted || !revocation.is_explicit());
        if busy {
            self.busy.insert(number);
        } else {
            self.busy.remove(&number);
        }
        if revocation.is_busy() && !busy {
            self.writing.insert(number);
        } else {
            self.writing.remove(&number);
        }
    }

    pub(super) fn advance_one(&mut self, number: Number, now: Now, out: &mut Effects) {
        let Some(revocation) = self.revocations.get_mut(&number) else { return };
        match revocation.state {
            State::Acting => {
                let late = now.mono >= revocation.at.mono + self.rules.answer_within;
                let acted = revocation.servers_told()
                    && revocation.sessions_done()
                    && revocation.web.is_told()
                    && !self.terminating(number);
                if acted && self.nothing_matched(number) {
                    return self.answer_nothing(number, out);
                }
                let written = self.revocations.get(&number).is_some_and(|r| self.is_settled_on_disk(r));
                if ((acted && self.verified(number, now, out) && written) || late)
                    && let Some(revocation) = self.revocations.get_mut(&number).filter(|r| !r.confirming)
                {
                    revocation.confirming = true;
                    out.push(Effect::Confirm { number });
                }
            }
            State::Looking => {
                let in_flight = self.in_flight(number);
                let Some(revocation) = self.revocations.get(&number) else { return };
                let looked = now.mono >= revocation.at.mono + self.rules.look_for;
                let done = revocation.servers_done()
                    && !(revocation.sessions.values())
                        .any(|e| matches!(e.state, EndingState::Pending | EndingState::Left(_)));
                if looked && done && !in_flight && !revocation.is_forgetting() {
                    self.settle(number, now, out);
                }
            }
            State::Settled | State::Lifted | State::Expired => {}
        }
    }

    /// Whether ocserv was asked once more what it holds, after all was ended.
    fn verified(&mut self, number: Number, now: Now, out: &mut Effects) -> bool {
        let Some(revocation) = self.revocations.get_mut(&number) else { return true };
        // a server that does not answer will not verify anything either
        if revocation.is_explicit() || revocation.safe_ids.is_empty() || !revocation.servers_done() {
            return true;
        }
        match revocation.verify {
            Verify::Done => true,
            Verify::Asked(_) => false,
            Verify::Not => {
                revocation.verify = Verify::Asked(now.mono);
                let names: BTreeSet<ServerName> =
                    revocation.safe_ids.values().filter_map(|fate| fate.server.clone()).collect();
                if names.is_empty() {
                    revocation.verify = Verify::Done;
                    return true;
                }
                for name in names {
                    self.ask_cookies(&name, now, out);
                }
                false
            }
        }
    }

    fn terminating(&self, number: Number) -> bool {
        let Some(revocation) = self.revocations.get(&number) else { return false };
        let asked = |id| self.marks.get(id).is_some_and(|mark| mark.terminate == Terminate::Asked);
        revocation.safe_ids.keys().any(asked)
    }

    fn in_flight(&self, number: Number) -> bool {
        let Some(revocation) = self.revocations.get(&number) else { return false };
        revocation.sessions.keys().filter_map(|key| self.sessions.get(*key)).any(Session::is_in_flight)
    }

    fn nothing_matched(&self, number: Number) -> bool {
        let Some(revocation) = self.revocations.get(&number) else { return false };
        if revocation.is_explicit() || revocation.adopted || !revocation.servers_done() {
            return false;
        }
        match revocation.order.target {
            // there to be refused whenever they come
            Target::Lock(_) => false,
            // also of one whose cookie nobody has: see `Registry::revoke`
            Target::Web(_) => false,
            // it was marked before anybody was asked: nobody has it
            Target::Session(id) => {
                revocation.sessions.is_empty()
                    && !revocation.servers.keys().any(|name| self.was_deleted(name, id))
                    && revocation.safe_ids.values().all(|fate| fate.gone || fate.server.is_none())
            }
            _ => revocation.touched_nothing(),
        }
    }

    fn answer_nothing(&mut self, number: Number, out: &mut Effects) {
        self.drop_number(number, out);
        self.busy.remove(&number);
        let Some(revocation) = self.revocations.remove(&number) else { return };
        self.forget_origin(number, &revocation.order);
        if let Some(request) = revocation.request {
            let text = format!("{}: no session and no cookie of it", revocation.order.target);
            out.push(Effect::Answer { request, answer: Answer::Nothing(text) });
        }
    }

    /// Those of whom the disk has not told in time.
    fn answer_late(&mut self, now: Now, out: &mut Effects) {
        // in the order in which they came
        let late: Vec<Number> = (self.writing.iter().copied())
            .take_while(|number| {
                let at = self.revocations.get(number).map(|r| r.at.mono);
                at.is_none_or(|at| now.mono >= at + self.rules.answer_within)
            })
            .collect();
        for number in late {
            self.advance_one(number, now, out);
        }
    }

    pub(super) fn confirmed(&mut self, number: Number, now: Now, out: &mut Effects) {
        if self.revocations.get(&number).is_some_and(|r| r.state == State::Acting) {
            self.answer(number, now, out);
        }
    }

    fn answer(&mut self, number: Number, now: Now, out: &mut Effects) {
        let Some(receipt) = self.receipt(number, now) else { return };
        let Some(revocation) = self.revocations.get_mut(&number) else { return };
        let next = match revocation.is_explicit() {
            true if revocation.order.stands.is_some() && !self.holdings.holds_any(number) => State::Expired,
            true => State::Settled,
            false => State::Looking,
        };
        if !revocation.order.bulk {
            let kind = if matches!(revocation.order.target, Target::Lock(_)) { "locked" } else { "revoked" };
            let text = format!("{number}: {}: {}", receipt.target, receipt.in_one_line());
            out.push(Effect::Note { kind, text });
            self.audit(kind, &receipt, &receipt.by, now);
        }
        let Some(revocation) = self.revocations.get_mut(&number) else { return };
        if let Some(request) = revocation.request.take() {
            out.push(Effect::Answer { request, answer: Answer::Receipt(Box::new(receipt)) });
        }
        revocation.web.fold();
        self.set_state(number, next);
    }

    fn settle(&mut self, number: Number, now: Now, out: &mut Effects) {
        let Some(receipt) = self.receipt(number, now) else { return };
        let text = format!("{number}: {}: {}", receipt.target, receipt.in_one_line());
        out.push(Effect::Note { kind: "settled", text });
        self.audit("settled", &receipt, &receipt.by, now);
        self.set_state(number, State::Settled);
    }

    /// The oldest of those that hold nothing any more.
    fn forget_finished(&mut self) {
        // every event comes by here: they are gone through only if there are enough to forget
        let finished = self.revocations.len().saturating_sub(self.holdings.numbers_held() + self.busy.len());
        if finished <= MAX_FINISHED {
            return;
        }
        let finished: Vec<Number> = (self.revocations.values())
            .filter(|r| !r.is_busy() && !self.holdings.holds_any(r.number))
            .map(|r| r.number)
            .take(finished - MAX_FINISHED + MAX_FINISHED / 10)
            .collect();
        for number in finished {
            if let Some(revocation) = self.revocations.remove(&number) {
                self.forget_origin(number, &revocation.order);
            }
        }
    }

    pub(super) fn tick(&mut self, now: Now, out: &mut Effects) {
        self.expire(now, out);
        self.web_expire(now, out);
        self.web_tick(now, out);
        self.answer_late(now, out);
        self.retry_writes(now);
        self.give_up_on_connections(now, out);
        self.expire_waiting(now, out);
        self.ask_for_waiting(now, out);
        self.probe_in_flight(now, out);
        self.ask_after_stock_disconnects(now, out);
        let due: Vec<Number> = (self.busy.iter().filter_map(|number| self.revocations.get(number)))
            .filter(|r| now.mono >= r.looked + self.rules.look_every)
            .map(|r| r.number)
            .collect();
        for number in due {
            self.look_again(number, now, out);
        }
        self.list_cookies_in_force(now, out);
    }

    /// Takes out what was asked for until now.
    pub(super) fn expire(&mut self, now: Now, out: &mut Effects) {
        let expired = self.holdings.expire(now.mono, out);
        self.locks_expired(&expired, out);
        for number in expired {
            // whoever waits for the disk is answered first
            let open = self.busy.contains(&number) || self.writing.contains(&number);
            if !open && !self.holdings.holds_any(number) {
                self.set_state(number, State::Expired);
            }
        }
    }

    fn look_again(&mut self, number: Number, now: Now, out: &mut Effects) {
        let Some(revocation) = self.revocations.get_mut(&number) else { return };
        revocation.looked = now.mono;
        let keys: Vec<SessionKey> = revocation.sessions.keys().copied().collect();
        let open: Vec<(ServerName, bool)> = (revocation.servers.iter())
            .map(|(name, work)| (name.clone(), work.cookies != Step::Done || !revocation.safe_ids.is_empty()))
            .collect();
        let failed: Vec<Entry> = revocation.failures.keys().cloned().collect();
        for entry in failed {
            self.retry_entry(number, &entry, out);
        }
        for key in keys {
            self.look_at(key, out);
        }
        self.forget_again(number, out);
        for (name, _) in &open {
            self.ask_list(name, now, out);
        }
        for (name, _) in open.into_iter().filter(|(_, cookies)| *cookies) {
            self.ask_cookies(&name, now, out);
        }
    }

    /// What could not be written may be by now, or may not be wanted any more.
    fn retry_entry(&mut self, number: Number, entry: &Entry, out: &mut Effects) {
        let before = out.len();
        self.holdings.retry(entry, out);
        if (out.len() > before || !self.holdings.is_held_by(entry, number))
            && let Some(revocation) = self.revocations.get_mut(&number)
        {
            revocation.failures.remove(entry);
        }
    }

    /// While something is refused at the gate it is looked now and then whether ocserv still holds it, and
    /// whether the clients that were refused are gone.
    fn list_cookies_in_force(&mut self, now: Now, out: &mut Effects) {
        let due: Vec<ServerName> = (self.servers.iter())
            .filter(|(_, server)| matches!(server.state, ServerState::Up | ServerState::Silent))
            .filter(|(name, server)| {
                // until its workers were listed once no list of cookies decides anything
                let unlisted = server.listed_at.is_none();
                self.cookies_age(name, now).is_none_or(|age| age >= self.rules.cookies_every)
                    || (unlisted && server.list_failed_at.is_some_and(|at| now.mono >= at + LIST_AGAIN))
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in due {
            let cutoff = self.holdings.cutoffs().any(|(_, server, _)| server == Some(&name));
            if cutoff
                || !self.adopted_devices.is_empty()
                || self.marks.values().any(|mark| mark.server.as_ref().is_none_or(|its| *its == name))
            {
                self.ask_cookies(&name, now, out);
                self.ask_list(&name, now, out);
            }
        }
    }
}
