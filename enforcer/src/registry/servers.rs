//! What is known of each ocserv server: whether it answers, what it can do, whether our gate is at its door.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::session::{Process, SafeId, ServerName};

use super::{Effect, Effects, Now, Order, Registry, Sighting, Target};

/// ocserv's `disconnect_reason` for a disconnect that the server made (`REASON_SERVER_DISCONNECT`, `src/vpn.h`).
const SERVER_DISCONNECT: u32 = 3;

#[derive(Debug, Default)]
pub struct Server {
    pub main: Option<Process>,
    pub terminate: bool,
    pub state: ServerState,
    pub gate: GateState,
    /// Sessions of an earlier run are accounted for once this is set.
    pub(super) listed: bool,
    /// When its workers were listed for the first time.
    pub(super) listed_at: Option<Duration>,
    /// When the last complete list of workers was asked for.
    pub(super) workers_asked_at: Option<Duration>,
    /// When they could not be listed, if that was the last that it told.
    pub(super) list_failed_at: Option<Duration>,
    list: Asking,
    pub(super) cookies: Asking,
    pub(super) cookies_complete_at: Option<Duration>,
    /// When the last complete list of cookies was asked for.
    pub(super) cookies_asked_at: Option<Duration>,
    /// Its workers' processes are visible from here: then one that is not is gone.
    pub(super) sees_workers: bool,
    pub(super) incomplete_since: Option<Duration>,
    /// Cookies that it deleted for us: that a list lacks them says nothing against the list.
    pub(super) deleted: BTreeSet<SafeId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ServerState {
    /// Not reached since the daemon started.
    #[default]
    Unknown,
    Up,
    /// It was up, and does not answer.
    Silent,
    /// Its main process is gone, and all its cookies with it.
    Gone,
}

/// Whether a refused cookie is really refused there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GateState {
    /// Neither was our gate ever asked, nor does ocserv's configuration name it.
    #[default]
    Missing,
    /// ocserv's configuration names it.
    Configured,
    /// It has asked.
    Seen,
}

/// A question to ocserv: one at a time, and once more if it was wanted again meanwhile.
#[derive(Debug, Default)]
pub(super) struct Asking {
    since: Option<Duration>,
    again: bool,
}

impl Asking {
    /// Whether to ask now.
    pub(super) fn want(&mut self, now: Duration) -> bool {
        // an answer that was on its way already says nothing of what happened since
        if self.since.is_some() {
            self.again = true;
            return false;
        }
        self.since = Some(now);
        true
    }

    /// Whether to ask once more.
    pub(super) fn answered(&mut self) -> bool {
        self.since = None;
        std::mem::take(&mut self.again)
    }
}

/// How long a disconnect that went out through us may take to come back by the feed.
const PLAIN_FOR: Duration = Duration::from_secs(10);

/// A plain disconnect that went out through us. Kept beside the session, which may be forgotten by the time that
/// the feed tells of it.
#[derive(Debug)]
pub(super) struct PlainDisconnect {
    server: ServerName,
    id: i32,
    safe_id: Option<SafeId>,
    at: Duration,
}

/// A disconnect that somebody asked of ocserv itself.
#[derive(Debug)]
pub(super) struct StockDisconnect {
    server: ServerName,
    id: i32,
    safe_id: SafeId,
    user: String,
    main: Option<Process>,
    since: Duration,
}

impl Registry {
    pub(super) fn server_up(
        &mut self,
        name: &ServerName,
        main: Process,
        terminate: bool,
        now: Now,
        out: &mut Effects,
    ) {
        let Some(server) = self.servers.get_mut(name) else { return };
        let before = server.main.replace(main);
        server.terminate = terminate;
        server.state = ServerState::Up;
        if before.is_some_and(|before| before != main) {
            server.gate = GateState::Missing;
            // a list tells what cookies went with the old one: the new one may have made some already
            out.push(Effect::Note {
                kind: "ocserv",
                text: format!("{name}: a new main process, pid {}", main.pid),
            });
        }
        self.ask_list(name, now, out);
        self.ask_cookies(name, now, out);
    }

    pub(super) fn server_down(&mut self, name: &ServerName, gone: bool, out: &mut Effects) {
        let Some(server) = self.servers.get_mut(name) else { return };
        match server.state {
            ServerState::Unknown => return,
            ServerState::Up | ServerState::Silent | ServerState::Gone => {}
        }
        server.state = if gone { ServerState::Gone } else { ServerState::Silent };
        if gone {
            server.deleted.clear();
        }
        self.stock_disconnects.retain(|pending| pending.server != *name);
        if gone {
            // ocserv keeps its cookies in the memory of its sec-mod: they went with it. Cutoffs stay, for what a
            // new main process makes before it is noticed
            self.forget_cookies(name, out);
            self.server_has_nothing(name);
            let unseen: Vec<_> = (self.sessions.values())
                .filter(|s| s.server == *name && s.worker.is_none())
                .map(|s| s.key)
                .collect();
            for key in unseen {
                self.worker_gone(key, out);
            }
        }
    }

    pub(super) fn gate_configured(&mut self, name: &ServerName, configured: bool) {
        if let Some(server) = self.servers.get_mut(name) {
            server.gate = match (server.gate, configured) {
                (GateState::Seen, _) => GateState::Seen,
                (_, true) => GateState::Configured,
                (_, false) => GateState::Missing,
            };
        }
    }

    pub(super) fn ask_list(&mut self, name: &ServerName, now: Now, out: &mut Effects) {
        if self.servers.get_mut(name).is_some_and(|server| server.list.want(now.mono)) {
            out.push(Effect::AskList { server: name.clone() });
        }
    }

    /// `asked` is zero for a list that came unasked (the feed's).
    pub(super) fn listed(
        &mut self,
        name: &ServerName,
        asked: Duration,
        outcome: Result<Vec<Sighting>, String>,
        now: Now,
        out: &mut Effects,
    ) {
        let Some(server) = self.servers.get_mut(name) else { return };
        let again = !asked.is_zero() && server.list.answered();
        match outcome {
            Ok(sightings) => {
                server.listed = true;
                let is_first = server.listed_at.is_none();
                server.listed_at.get_or_insert(now.mono);
                server.list_failed_at = None;
                server.state = ServerState::Up;
                let ids: BTreeSet<i32> = sightings.iter().map(|s| s.observed.id).collect();
                let told = if asked.is_zero() { now.mono } else { asked };
                server.workers_asked_at = server.workers_asked_at.max(Some(told));
                for sighting in sightings {
                    self.sight(name, sighting, told, false, now, out);
                }
                let vanished: Vec<_> = (self.sessions.values())
                    .filter(|s| s.server == *name && s.worker.is_none() && !ids.contains(&s.observed.id))
                    // a list that was on its way says nothing of who came meanwhile
                    .filter(|s| asked.is_zero() || s.seen_first < asked)
                    .map(|s| s.key)
                    .collect();
                for key in vanished {
                    self.worker_gone(key, out);
                }
                self.resolve_stock_disconnects(name, asked, now, out);
                self.list_answered(name, asked, Ok(()), now, out);
                let undecided = !self.adopted_devices.is_empty()
                    || self.holdings.cutoffs().any(|(_, server, _)| server == Some(name));
                if is_first && undecided {
                    self.ask_cookies(name, now, out);
                }
            }
            Err(why) => {
                if server.state == ServerState::Up {
                    server.state = ServerState::Silent;
                }
                server.list_failed_at = Some(now.mono);
                self.list_answered(name, asked, Err(why), now, out);
            }
        }
        if again {
            self.ask_list(name, now, out);
        }
    }

    pub(super) fn plain_disconnect(&mut self, name: &ServerName, ids: &[i32], now: Now) {
        self.plain_disconnects.retain(|plain| now.mono < plain.at + PLAIN_FOR);
        for id in ids {
            if self.plain_disconnects.len() < super::MAX_FINISHED {
                let safe_id = self.sessions.newest(name, *id).and_then(super::Session::safe_id);
                self.plain_disconnects.push(PlainDisconnect {
                    server: name.clone(),
                    id: *id,
                    safe_id,
                    at: now.mono,
                });
            }
        }
    }

    /// A disconnect that ocserv tells of. The worker's end is believed only of its process; but who asked for it
    /// can be learned only here.
    #[allow(clippy::too_many_arguments, reason = "an event's fields, taken apart by the one caller")]
    pub(super) fn feed_disconnected(
        &mut self,
        name: &ServerName,
        id: i32,
        safe_id: Option<SafeId>,
        user: String,
        reason: u32,
        now: Now,
        out: &mut Effects,
    ) {
        let known = match safe_id {
            Some(safe_id) => {
                self.sessions.with_safe_id(safe_id).find(|s| s.server == *name && s.observed.id == id)
            }
            None => self.sessions.newest(name, id),
        };
        let known = known.map(|s| (s.safe_id(), s.is_ending(), s.worker.is_some()));
        if matches!(known, Some((_, _, false))) {
            // of a worker whose process cannot be seen only a list tells the end
            self.ask_list(name, now, out);
        }
        let Some(safe_id) = safe_id.or_else(|| known.and_then(|(its, ..)| its)) else { return };
        let plain = (self.plain_disconnects.iter()).any(|plain| {
            plain.server == *name
                && plain.id == id
                && plain.safe_id.is_none_or(|its| its == safe_id)
                && now.mono < plain.at + PLAIN_FOR
        });
        let ours = plain || matches!(known, Some((_, true, _)));
        if reason != SERVER_DISCONNECT
            || ours
            || self.marks.contains_key(&safe_id)
            || !self.rules.invalidate_on_disconnect.contains(name)
            || self.stock_disconnects.len() >= super::MAX_FINISHED
        {
            return;
        }
        let main = self.servers.get(name).and_then(|server| server.main);
        let pending = StockDisconnect { server: name.clone(), id, safe_id, user, main, since: now.mono };
        self.stock_disconnects.push(pending);
        // only a main process that goes on answers: one that shuts down ends its workers the same way
        self.ask_list(name, now, out);
    }

    fn resolve_stock_disconnects(&mut self, name: &ServerName, asked: Duration, now: Now, out: &mut Effects) {
        let main = self.servers.get(name).and_then(|server| server.main);
        let (due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.stock_disconnects)
            .into_iter()
            .partition(|pending| pending.server == *name && asked >= pending.since);
        self.stock_disconnects = later;
        for pending in due {
            // roaming: a newer worker of the same cookie took over, and ocserv ended the older one
            let roamed = (self.sessions.with_safe_id(pending.safe_id))
                .any(|s| s.server == *name && s.observed.id != pending.id && !s.has_ended());
            if roamed || pending.main != main {
                continue;
            }
            let order = Order {
                target: Target::Session(pending.safe_id),
                server: Some(name.clone()),
                stands: None,
                reason: format!(
                    "occtl disconnected {}, and invalidate-on-disconnect is set",
                    pending.user.escape_default()
                ),
                by: "ocserv's occtl".into(),
                origin: None,
                spare: Default::default(),
                bulk: false,
            };
            self.revoke(None, order, now, out);
        }
    }

    /// A disconnect is not forgotten because a list failed.
    pub(super) fn ask_after_stock_disconnects(&mut self, now: Now, out: &mut Effects) {
        let names: BTreeSet<ServerName> =
            (self.stock_disconnects.iter()).map(|pending| pending.server.clone()).collect();
        for name in names {
            self.ask_list(&name, now, out);
        }
    }
}
