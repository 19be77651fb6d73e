//! How a web session ends: it leaves the table, the gateways are told, and each says when it has closed its sockets.
//!
//! A *watch* is a gateway that reads the stream of ends. It begins with all that is alive, so that whoever comes (again)
//! knows what has ended meanwhile. Of each end it has to say that it is done; whoever does not in time is let go of, and
//! uses nothing of what it has kept until it has begun anew.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::session::{Identity, Target, WebDigest, WebKey};

use super::super::revocation::Revocation;
use super::super::{Effect, Effects, Now, Number, Order, Registry, Request, Watch};
use super::{WebAnswer, WebRow};

/// How many may watch: a gateway that is replaced by its successor while both run, and some to spare.
const MAX_WATCHES: usize = 8;
/// By then a watch has acknowledged. Before a command is answered in any case, so that its receipt tells.
const WITHIN: Duration = Duration::from_millis(3_500);
/// For how long a gateway that has gone, or that there was before the daemon was started, is waited for: it comes again
/// within a second.
const EXPECTED_FOR: Duration = Duration::from_secs(3);

/// Whoever comes next, in the place of a watch.
const NEXT: Watch = 0;

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
    pub row: WebRow,
    pub told: Told,
    /// How many were closed.
    pub sockets: u64,
    pub(in crate::registry) kept: Kept,
}

/// A session that is over.
#[derive(Debug)]
pub(in crate::registry) struct Gone {
    identity: Identity,
    ending: WebEnding,
    /// The how manieth end it was.
    end: u64,
    /// Whose account it is in.
    numbers: BTreeSet<Number>,
    /// Who waits for the disk.
    requests: Vec<Request>,
    /// Who has not said yet that it is done.
    waits: BTreeSet<Watch>,
    /// One of them was let go of.
    late: bool,
    /// One of them has.
    done: bool,
}

#[derive(Debug, Default)]
pub(in crate::registry) struct Watches {
    /// What each was told of and has not acknowledged: the end's number, whose it was, and since when.
    all: BTreeMap<Watch, BTreeMap<u64, (WebKey, Duration)>>,
    /// Until when somebody is expected to come.
    expected_until: Option<Duration>,
    /// The ends that are told to whoever comes.
    expected: BTreeSet<WebKey>,
    /// One was let go of, and none has begun anew since: it may be serving still.
    let_go: bool,
}

impl Gone {
    pub(super) fn kept(&self) -> &Kept {
        &self.ending.kept
    }

    fn is_settled(&self) -> bool {
        self.ending.told != Told::Waiting && self.ending.kept == Kept::Written
    }

    fn look(&mut self) {
        self.ending.told = match (self.waits.is_empty(), self.late, self.done) {
            (false, _, _) => Told::Waiting,
            (true, true, _) => Told::Late,
            (true, false, true) => Told::Done,
            (true, false, false) => Told::Alone,
        };
    }
}

impl Registry {
    /// Takes it out of the table, and lets everybody know.
    pub(super) fn end_web(&mut self, key: WebKey, cause: WebCause, now: Now, out: &mut Effects) {
        let Some(session) = self.web.remove(key) else { return };
        self.web.ends += 1;
        let end = self.web.ends;
        let mut waits: BTreeSet<Watch> = self.web.watches.all.keys().copied().collect();
        for (watch, open) in &mut self.web.watches.all {
            open.insert(end, (key, now.mono));
            out.push(Effect::WebEnded { watch: *watch, key, cause, ends: end });
        }
        if self.web.watches.expected_until.is_some_and(|until| until > now.mono) {
            waits.insert(NEXT);
            self.web.watches.expected.insert(key);
        }
        let ending =
            WebEnding { row: session.row(now), told: Told::Waiting, sockets: 0, kept: Kept::Waiting };
        let mut gone = Gone {
            identity: session.identity,
            ending,
            end,
            numbers: BTreeSet::new(),
            requests: Vec::new(),
            waits,
            late: self.web.watches.let_go,
            done: false,
        };
        gone.look();
        self.web.gone.insert(key, gone);
        self.web.keeping.touch(key, false);
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
        let key = match which {
            Ok(key) => Some(key),
            Err(digest) => self.web.digests.get(&digest).copied(),
        };
        let Some(key) = key.filter(|key| self.web.sessions.contains_key(key)) else {
            return out.push(Effect::WebAnswer { request, answer: WebAnswer::Gone });
        };
        self.end_web(key, cause, now, out);
        if let Some(gone) = self.web.gone.get_mut(&key) {
            gone.requests.push(request);
        }
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
            Target::Lock(who) => BTreeSet::from([who.clone()]),
            _ => return Vec::new(),
        };
        let alive = people.iter().filter_map(|who| self.web.people.get(who)).flatten().copied();
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
            if let Some(gone) = self.web.gone.get_mut(&key) {
                gone.numbers.insert(number);
            }
            self.account_for(key);
        }
    }

    /// Whoever gives account of it is told how far it is; what needs no more looking after is forgotten.
    pub(super) fn account_for(&mut self, key: WebKey) {
        let Some(gone) = self.web.gone.get(&key) else { return };
        for number in &gone.numbers {
            if let Some(revocation) = self.revocations.get_mut(number) {
                revocation.web.insert(key, gone.ending.clone());
            }
        }
        if gone.is_settled() {
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
            let answer = match outcome {
                Ok(()) => WebAnswer::Done,
                Err(why) => WebAnswer::Unwritten(why.clone()),
            };
            out.push(Effect::WebAnswer { request, answer });
        }
        self.account_for(key);
    }

    /// A gateway wants to be told.
    pub(in crate::registry) fn web_watch(&mut self, watch: Watch, out: &mut Effects) {
        if watch == NEXT || self.web.watches.all.len() >= MAX_WATCHES {
            return out.push(Effect::WebBreak { watch });
        }
        self.web.watches.all.insert(watch, BTreeMap::new());
        let keys = self.web.sessions.keys().copied().collect();
        out.push(Effect::WebListed { watch, keys, ends: self.web.ends });
    }

    /// It does not hear us any more.
    pub(in crate::registry) fn web_watch_gone(&mut self, watch: Watch, now: Now, out: &mut Effects) {
        let Some(open) = self.web.watches.all.remove(&watch) else { return };
        let text = "a web gateway is gone: it has to begin anew before it uses what it has kept";
        out.push(Effect::Note { kind: "web", text: text.into() });
        let until = now.mono + EXPECTED_FOR;
        self.web.watches.expected_until = Some(until);
        for (key, _) in open.into_values() {
            if let Some(gone) = self.web.gone.get_mut(&key) {
                gone.waits.remove(&watch);
                gone.waits.insert(NEXT);
                self.web.watches.expected.insert(key);
            }
        }
    }

    /// A gateway that there was before the daemon was started will come again.
    pub(super) fn expect_watch(&mut self, now: Now) {
        self.web.watches.expected_until = Some(now.mono + EXPECTED_FOR);
    }

    /// What a gateway has closed; `listed`: and everything that its list did not have.
    pub(in crate::registry) fn web_acknowledged(
        &mut self,
        watch: Watch,
        closed: Vec<(WebKey, u64)>,
        listed: bool,
    ) {
        let Some(open) = self.web.watches.all.get_mut(&watch) else { return };
        let mut changed = BTreeSet::new();
        for (key, sockets) in closed {
            let Some(gone) = self.web.gone.get_mut(&key) else { continue };
            // of one that is over since before it came it was told by its list
            let was_told = open.remove(&gone.end).is_some();
            if was_told || gone.waits.contains(&NEXT) {
                // a gateway may say anything
                gone.ending.sockets = gone.ending.sockets.saturating_add(sockets);
                gone.done = true;
                gone.waits.remove(&watch);
                changed.insert(key);
            }
        }
        if listed {
            self.web.watches.let_go = false;
            self.web.watches.expected_until = None;
            for key in std::mem::take(&mut self.web.watches.expected) {
                if let Some(gone) = self.web.gone.get_mut(&key) {
                    gone.waits.remove(&NEXT);
                    gone.done = true;
                    changed.insert(key);
                }
            }
        }
        self.look_at_gone(changed);
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
        let is_late = |open: &BTreeMap<u64, (WebKey, Duration)>| {
            open.first_key_value().is_some_and(|(_, (_, since))| now.mono >= *since + WITHIN)
        };
        let late: Vec<Watch> = (self.web.watches.all.iter())
            .filter(|(_, open)| is_late(open))
            .map(|(watch, _)| *watch)
            .collect();
        let mut changed = BTreeSet::new();
        for watch in late {
            let text = "a web gateway has not said in time that it closed what was to be closed: it has to begin anew";
            out.push(Effect::Note { kind: "web", text: text.into() });
            out.push(Effect::WebBreak { watch });
            self.web.watches.let_go = true;
            for (key, _) in self.web.watches.all.remove(&watch).unwrap_or_default().into_values() {
                if let Some(gone) = self.web.gone.get_mut(&key) {
                    gone.waits.remove(&watch);
                    gone.late = true;
                    changed.insert(key);
                }
            }
        }
        if self.web.watches.expected_until.is_some_and(|until| until <= now.mono) {
            self.web.watches.expected_until = None;
            // somebody is there, and has not gone through its list
            let is_slow = !self.web.watches.all.is_empty();
            self.web.watches.let_go |= is_slow;
            for key in std::mem::take(&mut self.web.watches.expected) {
                if let Some(gone) = self.web.gone.get_mut(&key) {
                    gone.waits.remove(&NEXT);
                    gone.late |= is_slow;
                    changed.insert(key);
                }
            }
        }
        self.look_at_gone(changed);
    }

    /// How many gateways are told of ends, and how many of these they have not acknowledged.
    pub fn web_watches(&self) -> (usize, usize) {
        let watches = &self.web.watches.all;
        (watches.len(), watches.values().map(BTreeMap::len).sum())
    }
}

impl Revocation {
    /// Every gateway has said what became of its web sessions, or is not there.
    pub(in crate::registry) fn web_told(&self) -> bool {
        self.web.values().all(|ending| ending.told != Told::Waiting)
    }

    /// The disk has heard of their end, or is known not to have.
    pub(in crate::registry) fn web_kept(&self) -> bool {
        self.web.values().all(|ending| ending.kept != Kept::Waiting)
    }
}

#[cfg(test)]
impl Registry {
    pub(super) fn check_web_ends(&self) {
        let web = &self.web;
        for (key, gone) in &web.gone {
            assert!(!gone.is_settled(), "{key} is remembered for nothing");
            for watch in gone.waits.iter().filter(|watch| **watch != NEXT) {
                assert!(web.watches.all[watch].contains_key(&gone.end), "{key}: {watch} was not told");
            }
            assert_eq!(gone.waits.contains(&NEXT), web.watches.expected.contains(key), "{key}");
        }
        assert!(web.watches.expected.is_empty() || web.watches.expected_until.is_some());
    }
}
