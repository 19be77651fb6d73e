//! One revocation: what was ordered, what is known of it, and how far it is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::session::{Entry, Netns, SafeId, ServerName};

use super::durable::Disk;
use super::web::Account;
use super::{Ended, Now, Number, Order, Request, Session, SessionKey, Target};

/// One decision that something is over.
#[derive(Debug)]
pub struct Revocation {
    pub number: Number,
    pub order: Order,
    pub at: Now,
    pub state: State,
    pub(super) request: Option<Request>,
    pub(super) servers: BTreeMap<ServerName, Work>,
    pub(super) sessions: BTreeMap<SessionKey, Ending>,
    pub(super) safe_ids: BTreeMap<SafeId, Fate>,
    /// What was ever put into the kernel for it, up to [`MAX_NOTED`]. Not of an explicit one: it has what it holds.
    pub(super) packets: Vec<Entry>,
    /// What could not be put there, and why.
    pub(super) failures: BTreeMap<Entry, String>,
    /// The last look at whether ocserv still holds the cookies.
    pub(super) verify: Verify,
    pub(super) looked: Duration,
    /// About to be answered.
    pub(super) confirming: bool,
    /// Found at start.
    pub(super) adopted: bool,
    /// For an explicit flow: how many sockets of it were destroyed.
    pub(super) flow_sockets: Option<Result<u64, String>>,
    pub(super) disk: Disk,
    /// Of each address of its sessions what became of its connections, up to [`MAX_NOTED`].
    pub(super) connections: BTreeMap<(IpAddr, Netns), Connections>,
    /// The web sessions that it has ended.
    pub(super) web: Account,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not answered yet.
    Acting,
    /// Answered; looked after until nothing of it can come up any more.
    Looking,
    /// Done, and in force as long as it has to be.
    Settled,
    Lifted,
    /// Its time is over.
    Expired,
}

/// What a server has told for this revocation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Work {
    pub list: Step,
    pub cookies: Step,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Step {
    #[default]
    Pending,
    Done,
    Failed(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fate {
    pub server: Option<ServerName>,
    /// Seen to be gone from ocserv's list.
    pub gone: bool,
}

/// What became of one session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ending {
    pub info: super::show::SessionRow,
    pub state: EndingState,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EndingState {
    /// In its connect-script: the gate refuses it at the script's end.
    AtGate,
    Pending,
    Ended(Ended),
    Left(String),
    /// Its worker is gone.
    Gone,
}

/// What connection tracking had of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Connections {
    /// `asked`: they are being taken out. Otherwise that waits for the session's end.
    Pending {
        asked: bool,
    },
    /// So many were taken out, and none is left.
    Gone(u64),
    /// The kernel tracks none there.
    NotTracked,
    Failed(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verify {
    Not,
    /// At that moment: a list that was asked for earlier verifies nothing.
    Asked(Duration),
    Done,
}

/// How many entries and sessions a revocation gives account of: a client may knock at the gate for days.
pub(super) const MAX_NOTED: usize = 1_000;

impl Revocation {
    pub(super) fn new(number: Number, order: Order, at: Now, request: Option<Request>) -> Self {
        Self {
            number,
            order,
            at,
            state: State::Acting,
            request,
            servers: BTreeMap::new(),
            sessions: BTreeMap::new(),
            safe_ids: BTreeMap::new(),
            packets: Vec::new(),
            failures: BTreeMap::new(),
            verify: Verify::Not,
            looked: at.mono,
            confirming: false,
            adopted: false,
            flow_sockets: None,
            disk: Disk::Nothing,
            connections: BTreeMap::new(),
            web: Account::default(),
        }
    }

    pub(super) fn since(&self) -> Duration {
        self.at.mono
    }

    /// It is of an earlier run.
    pub fn is_adopted(&self) -> bool {
        self.adopted
    }

    /// Whose sessions it has ended, as far as it gives account of them.
    pub fn users(&self) -> BTreeSet<&str> {
        self.sessions.values().map(|ending| ending.info.user.as_str()).chain(self.web.users()).collect()
    }

    pub fn is_busy(&self) -> bool {
        matches!(self.state, State::Acting | State::Looking)
    }

    pub(super) fn is_explicit(&self) -> bool {
        matches!(self.order.target, Target::Address(_) | Target::Flow(_) | Target::Token(_))
    }

    /// Before the entry is written: if that fails, it is told.
    pub(super) fn note_entry(&mut self, entry: &Entry) {
        self.failures.remove(entry);
        if !self.is_explicit() && self.packets.len() < MAX_NOTED && !self.packets.contains(entry) {
            self.packets.push(entry.clone());
        }
    }

    pub(super) fn take_on(&mut self, session: &Session) {
        let state = match (session.is_in_flight(), session.has_ended()) {
            (true, _) => EndingState::AtGate,
            (false, true) => EndingState::Gone,
            (false, false) => EndingState::Pending,
        };
        if self.sessions.len() >= MAX_NOTED && !self.sessions.contains_key(&session.key) {
            let over = |ending: &Ending| matches!(ending.state, EndingState::Gone | EndingState::Ended(_));
            let oldest = self.sessions.iter().find(|(_, ending)| over(ending)).map(|(key, _)| *key);
            oldest.map(|key| self.sessions.remove(&key));
        }
        let ending = (self.sessions.entry(session.key))
            .or_insert_with(|| Ending { info: super::show::SessionRow::of(session), state: state.clone() });
        if ending.state == EndingState::AtGate {
            ending.state = state;
        }
    }

    pub(super) fn session_ended(&mut self, key: SessionKey, ended: &Ended, worker_gone: bool) {
        if let Some(ending) = self.sessions.get_mut(&key) {
            ending.state = match (ended.left.is_empty(), worker_gone) {
                (true, _) => EndingState::Ended(ended.clone()),
                (false, true) => EndingState::Gone,
                (false, false) => EndingState::Left(ended.left.join("; ")),
            };
        }
    }

    pub(super) fn session_left(&mut self, key: SessionKey, why: String) {
        if let Some(ending) = self.sessions.get_mut(&key) {
            ending.state = EndingState::Left(why);
        }
    }

    pub(super) fn session_gone(&mut self, key: SessionKey) {
        if let Some(ending) = self.sessions.get_mut(&key) {
            // a pending one is about to tell how it ended
            if matches!(ending.state, EndingState::AtGate | EndingState::Left(_)) {
                ending.state = EndingState::Gone;
            }
        }
    }

    pub(super) fn sessions_done(&self) -> bool {
        if matches!(self.order.target, Target::Flow(_)) && self.flow_sockets.is_none() && !self.adopted {
            return false;
        }
        self.sessions.values().all(|ending| ending.state != EndingState::Pending) && !self.is_forgetting()
    }

    /// Connections of its sessions are being taken out of connection tracking.
    pub(super) fn is_forgetting(&self) -> bool {
        self.connections.values().any(|state| *state == Connections::Pending { asked: true })
    }

    pub(super) fn servers_told(&self) -> bool {
        self.servers.values().all(|work| work.list != Step::Pending && work.cookies != Step::Pending)
    }

    pub(super) fn servers_done(&self) -> bool {
        self.servers.values().all(|work| work.list == Step::Done && work.cookies == Step::Done)
    }

    pub(super) fn touched_nothing(&self) -> bool {
        self.sessions.is_empty() && self.safe_ids.is_empty() && self.web.is_empty()
    }
}
