//! The rules of the product, pure: an event and the time go in, effects come out. No IO, no clock, no async.
//!
//! The order of a revocation: mark in the kernel first, then ask ocserv, then end what is left, then look
//! again. Only this order closes the race with a running connect-script and with an automatic reconnect.

mod admission;
mod adopting;
mod advancing;
mod bans;
pub mod cluster;
mod connections;
mod cookies;
mod durable;
mod holdings;
mod lifting;
mod locks;
mod receipt;
mod replicating;
mod revocation;
mod revoking;
#[cfg(test)]
pub(crate) mod scenarios;
mod servers;
mod sessions;
mod show;
mod table;
#[cfg(test)]
mod tests;
mod users;
mod web;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::session::{Author, Device, Netns, Realms, SafeId, ServerName};

pub use durable::Ticket;
pub use holdings::Holdings;
pub use locks::Locked;
pub use receipt::{Layer, LayerResult, Receipt};
pub use revocation::{Revocation, State as RevocationState};
pub use servers::{GateState, Server, ServerState};
pub use sessions::{Phase, Session};
pub use show::{Preview, SessionRow};
pub use users::{UserRow, UsersFrom};
pub use web::{NewWebSession, Told, WebAnswer, WebCause, WebRow, WebSession};
pub use words::*;

/// How many sessions, and how many finished revocations, are remembered. What is in force is never forgotten.
const MAX_SESSIONS: usize = if cfg!(test) { 1_500 } else { 262_144 };
const MAX_FINISHED: usize = if cfg!(test) { 500 } else { 10_000 };
/// How many revocations may be in force at once: each is a record here and an entry in the kernel.
const MAX_REVOCATIONS: usize = if cfg!(test) { 2_000 } else { 1_000_000 };

/// How long leases of an earlier run stand while their sessions are looked for.
const ADOPTED_FOR: Duration = Duration::from_secs(10);

/// The settings of the rules.
#[derive(Debug, Clone)]
pub struct Rules {
    /// A command is answered by then, in part if need be.
    pub answer_within: Duration,
    /// How long a revocation is looked after at the least, once it has acted.
    pub look_for: Duration,
    /// How often it looks.
    pub look_every: Duration,
    /// How often ocserv's cookies are listed while some are refused at the gate.
    pub cookies_every: Duration,
    /// Servers on which a stock disconnect becomes a revocation.
    pub invalidate_on_disconnect: BTreeSet<ServerName>,
    /// The first number to give.
    pub first_number: Number,
    pub realms: Realms,
    pub most_web_sessions: usize,
    /// How many bytes all of them may take, about.
    pub most_web_bytes: usize,
    /// The realms that somebody is of, where other gateways have to be told of what is decided here.
    pub replicates: Option<BTreeSet<String>>,
    /// Who this gateway is to the others.
    pub author: Option<Author>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            answer_within: Duration::from_millis(4_000),
            look_for: Duration::from_secs(3),
            look_every: Duration::from_millis(200),
            cookies_every: Duration::from_secs(30),
            invalidate_on_disconnect: BTreeSet::new(),
            first_number: 1,
            realms: Realms::default(),
            most_web_sessions: 100_000,
            most_web_bytes: 100_000 * 1_024,
            replicates: None,
            author: None,
        }
    }
}

#[derive(Debug)]
pub struct Registry {
    rules: Rules,
    servers: BTreeMap<ServerName, Server>,
    sessions: table::Table,
    /// safe_ids that are refused at the gate.
    marks: BTreeMap<SafeId, Mark>,
    holdings: Holdings,
    traces: connections::Traces,
    /// Boxed: there may be a million, and a tree's nodes are half empty.
    revocations: BTreeMap<Number, Box<Revocation>>,
    /// Those that are busy, of the revocations.
    busy: BTreeSet<Number>,
    /// Explicit ones that wait for the disk alone: there may be very many at once.
    writing: BTreeSet<Number>,
    durable: durable::Durable,
    replicated: replicating::Replicated,
    /// Those that are being taken back, by whose request.
    lifting: BTreeMap<Number, Request>,
    lifts: BTreeMap<Request, lifting::Lift>,
    /// Whose record has changed while they were being taken back.
    held_back: BTreeSet<Number>,
    next_number: Number,
    /// Gate questions that wait for a list of cookies.
    waiting: Vec<admission::Waiting>,
    /// Disconnects by a stock occtl that may become revocations once a list shows who is left.
    stock_disconnects: Vec<servers::StockDisconnect>,
    plain_disconnects: Vec<servers::PlainDisconnect>,
    netns: BTreeSet<Netns>,
    bans: bans::Bans,
    web: web::Web,
    /// When entries of an earlier run were taken over, while some of them are not accounted for.
    adopted_at: Option<Duration>,
    /// Devices that an earlier run dropped, until it is known whether their sessions are revoked still.
    adopted_devices: BTreeSet<Device>,
    last: Option<Now>,
    /// What the wall clock showed when it was last set back.
    wall_before: u64,
}

/// A safe_id that is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    pub server: Option<ServerName>,
    pub numbers: BTreeSet<Number>,
    /// When it was marked: a list that was asked for earlier says nothing of it.
    pub since: Duration,
    /// Seen to be gone from ocserv's list.
    pub gone: bool,
    /// Since when, at the latest.
    pub gone_since: Option<Duration>,
    pub terminate: Terminate,
    /// How often it was asked to be terminated.
    pub tries: u32,
    /// Of an earlier run.
    pub adopted: bool,
}

impl Mark {
    fn new(since: Duration) -> Self {
        Self {
            server: None,
            numbers: BTreeSet::new(),
            since,
            gone: false,
            gone_since: None,
            terminate: Terminate::Not,
            tries: 0,
            adopted: false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Terminate {
    /// Not asked for (or this ocserv cannot).
    Not,
    Asked,
    /// Answered; the tries so far.
    Answered(u32),
}

/// The effects of one event, in the order in which they have to happen.
pub(crate) type Effects = Vec<Effect>;

impl Registry {
    pub fn new(servers: impl IntoIterator<Item = ServerName>, own_netns: Netns, rules: Rules) -> Self {
        Self {
            next_number: rules.first_number.max(1),
            rules,
            servers: servers.into_iter().map(|name| (name, Server::default())).collect(),
            sessions: table::Table::default(),
            marks: BTreeMap::new(),
            holdings: Holdings::default(),
            traces: connections::Traces::default(),
            revocations: BTreeMap::new(),
            busy: BTreeSet::new(),
            writing: BTreeSet::new(),
            durable: durable::Durable::default(),
            replicated: replicating::Replicated::default(),
            lifting: BTreeMap::new(),
            lifts: BTreeMap::new(),
            held_back: BTreeSet::new(),
            waiting: Vec::new(),
            stock_disconnects: Vec::new(),
            plain_disconnects: Vec::new(),
            netns: BTreeSet::from([own_netns]),
            bans: bans::Bans::default(),
            web: web::Web::default(),
            adopted_at: None,
            adopted_devices: BTreeSet::new(),
            last: None,
            wall_before: 0,
        }
    }

    /// The one way in.
    pub fn handle(&mut self, event: Event, now: Now) -> Vec<Effect> {
        let mut out = Effects::new();
        self.notice_clock(now);
        match event {
            Event::Adopt(left) => self.adopt(*left, now, &mut out),
            Event::Stored { tickets, outcome } => self.stored(tickets, outcome, now, &mut out),
            Event::ServerUp { server, main, terminate } => {
                self.server_up(&server, main, terminate, now, &mut out)
            }
            Event::ServerDown { server, gone } => self.server_down(&server, gone, &mut out),
            Event::GateConfigured { server, configured } => self.gate_configured(&server, configured),
            Event::Sighted { server, sighting } => {
                self.sight(&server, sighting, now.mono, false, now, &mut out);
            }
            Event::Listed { server, asked, outcome } => self.listed(&server, asked, outcome, now, &mut out),
            Event::Cookies { server, asked, outcome } => self.cookies(&server, asked, outcome, now, &mut out),
            Event::FeedDisconnected { server, id, safe_id, user, reason } => {
                self.feed_disconnected(&server, id, safe_id, user, reason, now, &mut out);
            }
            Event::GateAsked { ask, server, sighting, last } => {
                self.gate_asked(ask, &server, sighting, last, now, &mut out);
            }
            Event::WorkerGone { key } => self.worker_gone(key, &mut out),
            Event::DeviceGone { device } => self.device_gone(device, &mut out),
            Event::Flows { key, outcome } => self.flows(key, outcome, &mut out),
            Event::Tokens { key, tokens } => self.tokens(key, tokens, &mut out),
            Event::Ended { key, ended } => self.ended(key, ended, &mut out),
            Event::Terminated { server, safe_id, outcome } => {
                self.terminated(&server, safe_id, outcome, &mut out)
            }
            Event::FlowDestroyed { number, outcome } => self.flow_destroyed(number, outcome, now, &mut out),
            Event::ConnectionsForgotten { netns, address, turn, outcome } => {
                self.connections_forgotten(netns, address, turn, outcome, now, &mut out);
            }
            Event::InsertFailed { entry, number, error } => {
                self.insert_failed(entry, number, error, &mut out)
            }
            Event::Confirmed { number } => self.confirmed(number, now, &mut out),
            Event::BanScore { server, client, score } => {
                self.ban_score(&server, client, score, now, &mut out)
            }
            Event::PlainDisconnect { server, ids } => self.plain_disconnect(&server, &ids, now),
            Event::NetnsAdded { netns } => self.netns_added(netns, &mut out),
            Event::Revoke { request, order } => self.revoke(request, order, now, &mut out),
            Event::RevokeMany { orders } => {
                for (request, order) in orders {
                    self.revoke(Some(request), order, now, &mut out);
                }
            }
            Event::TakeBack { request, lift } => self.take_back(request, lift, now, &mut out),
            Event::Told { number, origin } => self.told_others(number, origin),
            Event::WantCookies { server } => self.ask_cookies(&server, now, &mut out),
            Event::Lift { request, number, by } => self.lift(request, number, by, now, &mut out),
            Event::Unlock { request, identity, by } => self.unlock(request, &identity, by, now, &mut out),
            Event::WebCreate { request, new } => self.web_create(request, *new, now, &mut out),
            Event::WebAddToken { request, known, token } => {
                self.web_add_token(request, known, *token, now, &mut out);
            }
            Event::WebRewrap { request, token } => {
                self.web_rewrap(request, token.digest, token.wrapped, now, &mut out);
            }
            Event::WebSeen { uses } => self.web_seen(uses, now),
            Event::WebEnd { request, which, cause } => self.web_end(request, which, cause, now, &mut out),
            Event::WebWatch { watch, gateway } => self.web_watch(watch, gateway, now, &mut out),
            Event::WebWatchGone { watch } => self.web_watch_gone(watch, now, &mut out),
            Event::WebAcknowledged { watch, closed, listed } => self.web_acknowledged(watch, closed, listed),
            Event::WebGatewayGone { id } => self.web_gateway_gone(id, &mut out),
            Event::WebDestroyed { id, gone, trouble } => self.web_destroyed(id, gone, trouble, &mut out),
            Event::Tick => self.tick(now, &mut out),
        }
        self.release_adopted(now, &mut out);
        self.web_ask_tables(now, &mut out);
        self.note_web_gateways();
        self.advance(now, &mut out);
        if self.has_writes() {
            out.push(Effect::Save);
        }
        // the kernel first, for everybody whom the event concerns, and only then whoever takes time or answers back
        out.sort_by_key(Effect::rank);
        out
    }

    fn notice_clock(&mut self, now: Now) {
        if let Some(last) = self.last {
            let expected = last.wall + now.mono.saturating_sub(last.mono).as_secs();
            if now.wall < expected {
                self.wall_before = self.wall_before.max(expected);
            }
            self.restamp(expected, now);
        }
        self.last = Some(now);
    }

    /// No cookie that exists now was made later than that, by the clock of its time.
    fn latest_wall(&self, now: Now) -> u64 {
        now.wall.max(self.wall_before)
    }

    /// When [`Event::Tick`] is wanted at the latest.
    pub fn next_tick(&self, now: Now) -> Duration {
        let waits = !(self.busy.is_empty() && self.writing.is_empty() && self.waiting.is_empty());
        let idle = if waits || self.traces.any_asked() {
            self.rules.look_every.min(Duration::from_millis(50))
        } else {
            Duration::from_secs(1)
        };
        let expiry = [self.holdings.next_expiry(), self.next_web_deadline()].into_iter().flatten().min();
        let expiry = expiry.map(|at| at.saturating_sub(now.mono));
        idle.min(expiry.unwrap_or(idle)).max(Duration::from_millis(1))
    }

    pub fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.sessions.values()
    }

    /// Every server has told of its sessions.
    pub fn knows_everybody(&self) -> bool {
        self.servers.values().all(|server| server.listed)
    }

    /// The newest session under an ocserv id.
    pub fn session(&self, server: &ServerName, id: i32) -> Option<&Session> {
        self.sessions.newest(server, id)
    }

    pub fn servers(&self) -> impl Iterator<Item = (&ServerName, &Server)> {
        self.servers.iter()
    }

    pub fn revocations(&self) -> impl Iterator<Item = &Revocation> {
        self.revocations.values().map(Box::as_ref)
    }

    pub fn revocation(&self, number: Number) -> Option<&Revocation> {
        self.revocations.get(&number).map(Box::as_ref)
    }

    /// Those with a higher number, in the order of their numbers; found without going through the others.
    pub fn revocations_after(&self, number: Number) -> impl Iterator<Item = &Revocation> {
        let after = (std::ops::Bound::Excluded(number), std::ops::Bound::Unbounded);
        self.revocations.range(after).map(|(_, revocation)| revocation.as_ref())
    }

    /// How many there are, also those that are over and not forgotten yet.
    pub fn revocations_remembered(&self) -> usize {
        self.revocations.len()
    }

    /// How many of them hold something. Counted as they come and go, and not here.
    pub fn revocations_in_force(&self) -> usize {
        self.holdings.numbers_held()
    }

    pub fn holdings(&self) -> &Holdings {
        &self.holdings
    }
}
