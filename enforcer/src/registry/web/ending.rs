//! How a web session ends: it leaves the table, the gateways are told, and each says when it has closed its sockets; see
//! `gateways`. A revocation gives account of what it has ended; see `account`.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::session::{Identity, SessionId, Target, WebDigest, WebKey, Write};

use super::super::revocation::State;
use super::super::{Effect, Effects, Gateway, Now, Number, Order, Registry, Request, Watch};
use super::gateways::Waits;
use super::{WebAnswer, WebRow, too_many_wait};

/// How many revocations may give account of one end: a second order for it waits as the first one does.
const MAX_NUMBERS: usize = 16;

/// Why a web session has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WebCause {
    Logout,
    /// Another person came with its token.
    ChangedUser,
    /// The identity provider said so.
    BackChannel,
    /// It was not used for its idle time.
    Idle,
    /// It was as old as it may become.
    Over,
    /// By a revocation or a lock.
    Revoked,
}

/// What the gateways have said to an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    Waiting,
    /// All of them have closed what they had.
    Done,
    /// The daemon has destroyed the sockets of one that did not say so soon; the others have closed what they had.
    Destroyed,
    /// None was there.
    Alone,
    /// One did not say so in time.
    Late,
}

/// What the disk has of an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::registry) enum Kept {
    Waiting,
    Written,
    Failed(Box<str>),
}

/// What a revocation tells of a web session that it has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebEnding {
    pub row: Arc<WebRow>,
    pub told: Told,
    /// How many the gateways have closed.
    pub sockets: u64,
    /// How many the daemon has destroyed.
    pub destroyed: u64,
    /// Gateways that were not heard, by name.
    pub missing: BTreeSet<Arc<str>>,
    pub(in crate::registry) kept: Kept,
}

impl WebEnding {
    /// Nothing more will come of it.
    pub(in crate::registry) fn is_settled(&self) -> bool {
        self.told != Told::Waiting && self.kept == Kept::Written
    }
}

/// A session that is over.
#[derive(Debug)]
pub(super) struct Gone {
    identity: Identity,
    pub(super) ending: WebEnding,
    /// The how manieth end it was.
    pub(super) end: u64,
    /// By what it may be asked for.
    digests: Vec<WebDigest>,
    /// Whose account it is in.
    numbers: BTreeSet<Number>,
    /// Who waits for the disk.
    requests: Vec<Request>,
    /// Who has not said yet that it is done.
    pub(super) waits: BTreeSet<Waits>,
    /// A gateway has closed what it had.
    pub(super) closed: bool,
    /// The daemon has, for a gateway that did not.
    pub(super) by_daemon: bool,
}

impl Gone {
    pub(super) fn kept(&self) -> &Kept {
        &self.ending.kept
    }

    /// Somebody waits for the disk to hear of it.
    pub(super) fn is_waited_for(&self) -> bool {
        !self.numbers.is_empty() || !self.requests.is_empty()
    }

    fn look(&mut self) {
        let is_missing = !self.ending.missing.is_empty();
        self.ending.told = match (self.waits.is_empty(), is_missing, self.by_daemon, self.closed) {
            (false, ..) => Told::Waiting,
            (true, true, ..) => Told::Late,
            (true, false, true, _) => Told::Destroyed,
            (true, false, false, true) => Told::Done,
            (true, false, false, false) => Told::Alone,
        };
    }
}

impl Registry {
    /// Takes it out of the table, and lets everybody know.
    pub(super) fn end_web(&mut self, key: WebKey, cause: WebCause, now: Now, out: &mut Effects) {
        let Some(session) = self.web.remove(key) else { return };
        self.web.ends += 1;
        out.push(Effect::WebOver { key });
        for request in self.web.keeping.give_up(key) {
            self.web.asking -= 1;
            out.push(Effect::WebAnswer { request, answer: WebAnswer::Gone });
        }
        let ending = WebEnding {
            row: Arc::new(session.row(now)),
            told: Told::Waiting,
            sockets: 0,
            destroyed: 0,
            missing: BTreeSet::new(),
            kept: Kept::Waiting,
        };
        let mut gone = Gone {
            identity: session.identity,
            ending,
            end: self.web.ends,
            digests: session.tokens.into_keys().collect(),
            numbers: BTreeSet::new(),
            requests: Vec::new(),
            waits: BTreeSet::new(),
            closed: false,
            by_daemon: false,
        };
        self.web.gateways.tell(key, &mut gone, cause, now, out);
        gone.look();
        self.web.gone_by.extend(gone.digests.iter().map(|digest| (*digest, key)));
        self.web.gone.insert(key, gone);
        self.web.keeping.ended(key);
    }

    /// By the gateway itself.
    pub(in crate::registry) fn web_end(
        &mut self,
        request: Request,
        which: Result<WebKey, WebDigest>,
        cause: WebCause,
        now: Now,
        out: &mut Effects,
    ) {
        let web = &self.web;
        let key = match which {
            Ok(key) => Some(key),
            Err(digest) => web.digests.get(&digest).or_else(|| web.gone_by.get(&digest)).copied(),
        };
        if let Some(key) = key.filter(|key| self.web.sessions.contains_key(key)) {
            self.end_web(key, cause, now, out);
        }
        let may_wait = self.web.may_wait();
        let gone = key.and_then(|key| self.web.gone.get_mut(&key).map(|gone| (key, gone)));
        let answer = match gone {
            // who asks a second time is told no more than who asked first: it is over when the disk has heard of it
            Some((key, gone)) if gone.ending.kept == Kept::Waiting && may_wait => {
                gone.requests.push(request);
                self.web.asking += 1;
                return self.web.keeping.hurry(key);
            }
            Some((_, Gone { ending: WebEnding { kept: Kept::Waiting, .. }, .. })) => {
                WebAnswer::Unwritten(too_many_wait())
            }
            Some((_, Gone { ending: WebEnding { kept: Kept::Failed(why), .. }, .. })) => {
                WebAnswer::Unwritten(why.to_string())
            }
            _ => WebAnswer::Gone,
        };
        out.push(Effect::WebAnswer { request, answer });
    }

    /// Whether there is something of it that a revocation could end.
    pub(in crate::registry) fn knows_web(&self, key: WebKey) -> bool {
        self.web.sessions.contains_key(&key) || self.web.gone.contains_key(&key)
    }

    /// Those that an order means: alive, or over while somebody has not heard of it.
    fn web_meant(&self, order: &Order) -> Vec<WebKey> {
        // they are on no ocserv
        if order.server.is_some() {
            return Vec::new();
        }
        let people: BTreeSet<Identity> = match &order.target {
            Target::Web(key) => return if self.knows_web(*key) { vec![*key] } else { Vec::new() },
            Target::User(name) => {
                self.web.realms.iter().map(|realm| self.rules.realms.person(realm, name)).collect()
            }
            Target::Lock(who) | Target::Person(who) => BTreeSet::from([who.clone()]),
            _ => return Vec::new(),
        };
        let alive = people.iter().filter_map(|who| self.web.people.get(who)).flatten().copied();
        // those that were admitted after it
        let alive = alive.filter(|key| !order.spare.contains(&SessionId::Web(*key)));
        let gone = self.web.gone.iter().filter(|(_, gone)| people.contains(&gone.identity));
        alive.chain(gone.map(|(key, _)| *key)).collect()
    }

    /// The web sessions that an order would end.
    pub fn web_preview(&self, order: &Order, now: Now) -> Vec<WebRow> {
        let alive = |key| self.web.sessions.get(&key).map(|session| session.row(now));
        self.web_meant(order).into_iter().filter_map(alive).collect()
    }

    pub(in crate::registry) fn revoke_web(
        &mut self,
        number: Number,
        order: &Order,
        now: Now,
        out: &mut Effects,
    ) {
        for key in self.web_meant(order) {
            self.end_web(key, WebCause::Revoked, now, out);
            let Some(gone) = self.web.gone.get_mut(&key) else { continue };
            let Some(revocation) = self.revocations.get_mut(&number) else { continue };
            let has_room = gone.numbers.len() < MAX_NUMBERS;
            if revocation.web.follow(key, &gone.ending, has_room) {
                gone.numbers.insert(number);
                self.web.keeping.hurry(key);
            }
            self.account_for(key);
        }
    }

    /// Whoever gives account of it is told how far it is; what needs no more looking after is forgotten.
    pub(super) fn account_for(&mut self, key: WebKey) {
        let Some(gone) = self.web.gone.get(&key) else { return };
        for number in &gone.numbers {
            if let Some(revocation) = self.revocations.get_mut(number) {
                revocation.web.tell(key, &gone.ending, revocation.state != State::Acting);
            }
        }
        if gone.ending.is_settled() {
            for digest in &gone.digests {
                // it may be another one's by now that is over as well
                if self.web.gone_by.get(digest) == Some(&key) {
                    self.web.gone_by.remove(digest);
                }
            }
            self.web.gone.remove(&key);
        }
    }

    /// The disk has, or has not, heard that it is over.
    pub(super) fn web_gone_stored(&mut self, key: WebKey, outcome: &Result<(), String>, out: &mut Effects) {
        let Some(gone) = self.web.gone.get_mut(&key) else { return };
        gone.ending.kept = match outcome {
            Ok(()) => Kept::Written,
            Err(why) => Kept::Failed(why.as_str().into()),
        };
        for request in std::mem::take(&mut gone.requests) {
            self.web.asking -= 1;
            let answer = match outcome {
                Ok(()) => WebAnswer::Done,
                Err(why) => WebAnswer::Unwritten(why.clone()),
            };
            out.push(Effect::WebAnswer { request, answer });
        }
        self.account_for(key);
    }

    /// A gateway wants to be told.
    pub(in crate::registry) fn web_watch(
        &mut self,
        watch: Watch,
        gateway: Gateway,
        now: Now,
        out: &mut Effects,
    ) {
        let web = &mut self.web;
        if !web.gateways.watch(watch, gateway, web.ends, &mut web.gone, now) {
            return out.push(Effect::WebBreak { watch });
        }
        let keys = web.sessions.keys().copied().collect();
        out.push(Effect::WebListed { watch, keys, ends: web.ends });
    }

    /// It does not hear us any more.
    pub(in crate::registry) fn web_watch_gone(&mut self, watch: Watch, now: Now, out: &mut Effects) {
        let Some(changed) = self.web.gateways.unwatch(watch, &mut self.web.gone, now) else { return };
        let text = "a web gateway is gone: it has to begin anew before it uses what it has kept";
        out.push(Effect::Note { kind: "web", text: text.into() });
        self.look_at_gone(changed);
    }

    /// What a gateway has closed; `listed`: and everything that its list did not have.
    pub(in crate::registry) fn web_acknowledged(
        &mut self,
        watch: Watch,
        closed: Vec<(WebKey, u64)>,
        listed: bool,
    ) {
        let changed = self.web.gateways.acknowledged(watch, closed, listed, &mut self.web.gone);
        self.look_at_gone(changed);
    }

    /// A gateway's process has ended, and its sockets with it.
    pub(in crate::registry) fn web_gateway_gone(&mut self, id: u64, out: &mut Effects) {
        let changed = self.web.gateways.ended(id, &mut self.web.gone, out);
        self.look_at_gone(changed);
    }

    /// What the daemon has destroyed in the place of a gateway.
    pub(in crate::registry) fn web_destroyed(
        &mut self,
        id: u64,
        gone: Vec<(WebKey, u64)>,
        trouble: Option<String>,
        out: &mut Effects,
    ) {
        if let Some(why) = &trouble {
            let text = format!("sockets of a web gateway that does not answer could not be destroyed: {why}");
            out.push(Effect::Note { kind: "web", text });
        }
        let changed = self.web.gateways.destroyed(id, gone, trouble, &mut self.web.gone);
        self.look_at_gone(changed);
    }

    /// A gateway has come, or ended: the disk hears of it.
    pub(in crate::registry) fn note_web_gateways(&mut self) {
        if let Some(gateways) = self.web.gateways.note() {
            self.write(Write::WebGateways(gateways));
        }
    }

    /// What gateways with a table have not closed by themselves.
    pub(in crate::registry) fn web_ask_tables(&mut self, now: Now, out: &mut Effects) {
        self.web.gateways.ask_tables(now, out);
    }

    fn look_at_gone(&mut self, keys: BTreeSet<WebKey>) {
        for key in keys {
            if let Some(gone) = self.web.gone.get_mut(&key) {
                gone.look();
            }
            self.account_for(key);
        }
    }

    /// Who has not acknowledged in time is let go of; who was expected and has not come is not waited for.
    pub(in crate::registry) fn web_tick(&mut self, now: Now, out: &mut Effects) {
        let changed = self.web.gateways.tick(now, &mut self.web.gone, out);
        self.look_at_gone(changed);
    }

    /// How many gateways are told of ends, and how many of these they have not acknowledged.
    pub fn web_watches(&self) -> (usize, usize) {
        self.web.gateways.counts()
    }

    /// Whether ends are told to that gateway, or wait for it.
    pub fn knows_web_gateway(&self, id: u64) -> bool {
        self.web.gateways.knows(id)
    }

    /// The same of any that cannot be seen.
    pub fn knows_unseen_web_gateway(&self) -> bool {
        self.web.gateways.knows_unseen()
    }

    /// The names of gateways that may be serving without being told of ends.
    pub fn web_away(&self) -> Vec<Arc<str>> {
        self.web.gateways.away().collect()
    }
}

#[cfg(test)]
impl Registry {
    pub(super) fn check_web_ends(&self) {
        let asking: usize = self.web.gone.values().map(|gone| gone.requests.len()).sum();
        assert_eq!(asking + self.web.keeping.waiting(), self.web.asking);
        assert!(self.web.asking <= super::MAX_ASKING);
        for (key, gone) in &self.web.gone {
            assert!(!gone.ending.is_settled(), "{key} is remembered for nothing");
            assert!(gone.numbers.len() <= MAX_NUMBERS, "{key}");
        }
        for (digest, key) in &self.web.gone_by {
            assert!(self.web.gone[key].digests.contains(digest), "{key} does not have {digest:?}");
        }
        self.web.gateways.check(&self.web.gone);
    }
}
