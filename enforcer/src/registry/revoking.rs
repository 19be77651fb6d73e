//! A revocation from the order to its end: mark, act, answer, look again.

use std::time::Duration;

use crate::session::{CutoffKey, Entry, Identity, Netns, ServerName};

use super::holdings::Want;
use super::locks::lock_of;
use super::revocation::{MAX_NOTED, Revocation, State, Step, Verify, Work};
use super::servers::ServerState;
use super::{
    Answer, Effect, Effects, MAX_REVOCATIONS, Now, Number, Order, Registry, Request, SessionKey, Target,
};

impl Registry {
    pub(super) fn revoke(&mut self, request: Option<Request>, order: Order, now: Now, out: &mut Effects) {
        if let Target::Web(key) = order.target
            && !self.knows_web(key)
        {
            // another gateway may have it
            if order.origin.is_none() && !self.over_of(&order).is_empty() {
                let number = self.take_number(out);
                self.replicate(number, request, &order, now, out);
            }
            if let Some(request) = request {
                let text = format!("{}: there is none (show sessions lists them)", order.target);
                out.push(Effect::Answer { request, answer: Answer::Nothing(text) });
            }
            return;
        }
        if let Err(why) = self.may_revoke(&order) {
            if let Some(request) = request {
                out.push(Effect::Answer { request, answer: Answer::Refused(why) });
            }
            return;
        }
        let number = self.take_number(out);
        self.replicate(number, request, &order, now, out);
        self.revocations.insert(number, Box::new(Revocation::new(number, order.clone(), now, request)));
        self.set_state(number, State::Acting);
        let until = order.stands.map(|stands| now.mono + stands);
        let explicit = until.map_or(Want::Forever, Want::Until);
        match &order.target {
            Target::Address(address) => {
                for netns in self.netns.clone() {
                    self.hold_packets(Entry::Address(netns, *address), number, explicit, out);
                }
            }
            Target::Flow(flow) => {
                for netns in self.netns.clone() {
                    self.hold_packets(Entry::Flow(netns, *flow), number, explicit, out);
                }
                out.push(Effect::DestroyFlow { number, flow: *flow });
            }
            Target::Token(token) => self.hold_packets(Entry::Token(token.clone()), number, explicit, out),
            Target::Lock(identity) => {
                let entry = lock_of(identity);
                self.holdings.hold_for_gate(entry, number, explicit, None, now.wall, out);
                self.revoke_sessions(number, &order, now, out);
                self.revoke_web(number, &order, now, out);
            }
            Target::User(_) | Target::Person(_) | Target::Id(_) | Target::Session(_) | Target::Adopted => {
                self.revoke_sessions(number, &order, now, out);
                self.revoke_web(number, &order, now, out);
            }
            // on no ocserv
            Target::Web(_) => self.revoke_web(number, &order, now, out),
        }
    }

    fn take_number(&mut self, out: &mut Effects) -> Number {
        let number = self.next_number;
        self.next_number += 1;
        out.push(Effect::Numbered { next: self.next_number });
        number
    }

    fn may_revoke(&self, order: &Order) -> Result<(), String> {
        if let Some(server) = &order.server
            && !self.servers.contains_key(server)
        {
            let known: Vec<&str> = self.servers.keys().map(ServerName::as_str).collect();
            return Err(format!("there is no server {server}: the configuration has {}", known.join(", ")));
        }
        if let (Some(_), Target::Web(_)) = (&order.server, &order.target) {
            return Err("a web session is on no ocserv server: name none".into());
        }
        // beside them are the finished ones, of which the oldest are forgotten
        if self.holdings.numbers_held().max(self.busy.len()) >= MAX_REVOCATIONS {
            return Err(format!(
                "{MAX_REVOCATIONS} revocations are in force: lift some first (show revocations)"
            ));
        }
        if let Target::Id(id) = order.target {
            let on: Vec<&str> = (self.servers.keys())
                .filter(|server| order.server.as_ref().is_none_or(|only| only == *server))
                .filter(|server| self.sessions.newest(server, id).is_some())
                .map(ServerName::as_str)
                .collect();
            if on.len() > 1 {
                return Err(format!(
                    "id {id} stands for a session on each of {}: name one with --server",
                    on.join(", ")
                ));
            }
        }
        Ok(())
    }

    pub(super) fn netns_added(&mut self, netns: Netns, out: &mut Effects) {
        if !self.netns.insert(netns) {
            return;
        }
        // by what it holds elsewhere: that knows also the time of one from an earlier run
        let explicit: Vec<(Number, Target, Want)> = (self.revocations.values())
            .filter(|r| r.is_explicit() && !matches!(r.state, State::Lifted | State::Expired))
            .filter_map(|r| {
                let want = self.holdings.explicit_want(r.number)?;
                Some((r.number, r.order.target.clone(), want))
            })
            .collect();
        for (number, target, want) in explicit {
            match target {
                Target::Address(address) => {
                    self.hold_packets(Entry::Address(netns, address), number, want, out)
                }
                Target::Flow(flow) => self.hold_packets(Entry::Flow(netns, flow), number, want, out),
                _ => {}
            }
        }
    }

    /// Everything that is known is marked before ocserv is asked for what is not.
    fn revoke_sessions(&mut self, number: Number, order: &Order, now: Now, out: &mut Effects) {
        let servers: Vec<ServerName> = self
            .servers
            .keys()
            .filter(|name| order.server.as_ref().is_none_or(|only| only == *name))
            .filter(|name| match &order.target {
                Target::Lock(who) | Target::Person(who) => self.rules.realms.has(name, &who.realm),
                _ => true,
            })
            .cloned()
            .collect();
        for name in &servers {
            let work = match self.servers.get(name).map(|server| server.state) {
                // without a main process there is no cookie
                Some(ServerState::Gone) => Work { list: Step::Done, cookies: Step::Done },
                _ => Work::default(),
            };
            if let Some(revocation) = self.revocations.get_mut(&number) {
                revocation.servers.insert(name.clone(), work);
            }
            for who in self.everybody_meant(name, &order.target) {
                // holds until a complete list was marked, and in the pinned map also without the daemon
                let cutoff = Entry::Cutoff(CutoffKey::of(name, &who));
                let (server, moment) = (Some(name.clone()), self.latest_wall(now));
                self.holdings.hold_for_gate(cutoff, number, Want::Forever, server, moment, out);
            }
        }
        if let Target::Session(id) = order.target {
            let only = servers.first().filter(|_| servers.len() == 1).cloned();
            let server = (self.sessions.with_safe_id(id).next_back())
                .map(|s| s.server.clone())
                .or_else(|| self.marks.get(&id).and_then(|mark| mark.server.clone()))
                .or(only);
            self.mark(id, server, number, now, out);
        }
        for key in self.matching(order) {
            self.name_session(key, number, now, out);
        }
        for name in &servers {
            self.ask_cookies(name, now, out);
            self.ask_list(name, now, out);
        }
    }

    /// Who on that server falls under this: one name may be several people's, in several realms.
    fn everybody_meant(&self, server: &ServerName, target: &Target) -> Vec<Identity> {
        match target {
            Target::User(user) => self.rules.realms.everybody_called(server, user),
            Target::Lock(who) | Target::Person(who) => vec![who.clone()],
            _ => Vec::new(),
        }
    }

    /// Whether that user of that server falls under this.
    pub(super) fn is_meant(&self, target: &Target, server: &ServerName, vhost: &str, user: &str) -> bool {
        let realms = &self.rules.realms;
        match target {
            Target::User(name) => {
                name == user || {
                    let theirs = realms.identity(server, vhost, user);
                    theirs == realms.person(&theirs.realm, name)
                }
            }
            Target::Lock(who) | Target::Person(who) => realms.identity(server, vhost, user) == *who,
            _ => false,
        }
    }

    fn matching(&self, order: &Order) -> Vec<SessionKey> {
        let here = |name: &ServerName| order.server.as_ref().is_none_or(|only| only == name);
        match &order.target {
            Target::User(_) | Target::Person(_) | Target::Lock(_) => (self.sessions.values())
                .filter(|s| here(&s.server))
                .filter(|s| self.is_meant(&order.target, &s.server, &s.observed.vhost, &s.observed.user))
                .map(|s| s.key)
                .collect(),
            Target::Id(id) => (self.servers.keys())
                .filter(|name| here(name))
                .filter_map(|name| self.sessions.newest(name, *id))
                .map(|s| s.key)
                .collect(),
            Target::Session(id) => {
                self.sessions.with_safe_id(*id).filter(|s| here(&s.server)).map(|s| s.key).collect()
            }
            Target::Web(_) | Target::Address(_) | Target::Flow(_) | Target::Token(_) | Target::Adopted => {
                Vec::new()
            }
        }
    }

    pub(super) fn name_session(&mut self, key: SessionKey, number: Number, now: Now, out: &mut Effects) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        match session.safe_id() {
            Some(id) => {
                let server = session.server.clone();
                self.mark(id, Some(server), number, now, out);
            }
            None => {
                session.named.insert(number);
            }
        }
        self.enforce(key, out);
    }

    /// A complete list of workers was gone through, or could not be had.
    pub(super) fn list_answered(
        &mut self,
        name: &ServerName,
        asked: Duration,
        outcome: Result<(), String>,
        now: Now,
        out: &mut Effects,
    ) {
        let mut found = Vec::new();
        for number in &self.busy {
            let Some(revocation) = self.revocations.get_mut(number) else { continue };
            let since = revocation.since();
            let Some(work) = revocation.servers.get_mut(name) else { continue };
            if work.list == Step::Done || (outcome.is_ok() && asked < since) {
                continue;
            }
            work.list = outcome.clone().map_or_else(Step::Failed, |()| Step::Done);
            if matches!(revocation.order.target, Target::Id(_)) && revocation.touched_nothing() {
                found.push(revocation.number);
            }
        }
        for number in found {
            let Some(order) = self.revocations.get(&number).map(|r| r.order.clone()) else { continue };
            for key in self.matching(&order) {
                self.name_session(key, number, now, out);
            }
        }
    }

    /// A complete list of cookies was gone through, or could not be had.
    pub(super) fn cookies_answered(
        &mut self,
        name: &ServerName,
        asked: Duration,
        outcome: Result<(), String>,
    ) {
        for number in &self.busy {
            let Some(revocation) = self.revocations.get_mut(number) else { continue };
            let since = revocation.since();
            let Some(work) = revocation.servers.get_mut(name) else { continue };
            if outcome.is_ok() && asked < since {
                continue;
            }
            if work.cookies != Step::Done {
                work.cookies = outcome.clone().map_or_else(Step::Failed, |()| Step::Done);
            }
            if matches!(revocation.verify, Verify::Asked(at) if asked >= at || outcome.is_err()) {
                revocation.verify = Verify::Done;
            }
        }
    }

    /// A server has neither sessions nor cookies any more.
    pub(super) fn server_has_nothing(&mut self, name: &ServerName) {
        for number in &self.busy {
            if let Some(work) = self.revocations.get_mut(number).and_then(|r| r.servers.get_mut(name)) {
                *work = Work { list: Step::Done, cookies: Step::Done };
            }
        }
    }

    pub(super) fn flow_destroyed(
        &mut self,
        number: Number,
        outcome: Result<u64, String>,
        now: Now,
        out: &mut Effects,
    ) {
        if let Some(revocation) = self.revocations.get_mut(&number) {
            revocation.flow_sockets = Some(outcome);
        }
        if self.writing.contains(&number) {
            self.advance_one(number, now, out);
        }
    }

    pub(super) fn insert_failed(&mut self, entry: Entry, number: Number, error: String, out: &mut Effects) {
        let numbers = self.holdings.failed(&entry, number);
        for number in numbers {
            let Some(revocation) = self.revocations.get_mut(&number) else { continue };
            revocation.packets.retain(|noted| *noted != entry);
            if revocation.failures.len() < MAX_NOTED {
                revocation.failures.insert(entry.clone(), error.clone());
            }
            // whoever asked for it hears so, and asks again; what a session needs is tried again from here, and
            // what the gate refuses is refused by the daemon itself
            if revocation.is_explicit() {
                self.holdings.release(&entry, number, out);
            }
        }
    }

    /// Takes a revocation out of everything.
    pub(super) fn drop_number(&mut self, number: Number, out: &mut Effects) {
        self.holdings.release_number(number, out);
        let Some(revocation) = self.revocations.get(&number) else { return };
        for id in revocation.safe_ids.keys() {
            if let Some(mark) = self.marks.get_mut(id) {
                mark.numbers.remove(&number);
                if mark.numbers.is_empty() {
                    self.marks.remove(id);
                }
            }
        }
        for key in revocation.sessions.keys() {
            if let Some(session) = self.sessions.get_mut(*key) {
                session.named.remove(&number);
            }
        }
        if !revocation.is_explicit() {
            self.leave_connections(number, |_| true, out);
        }
    }
}
