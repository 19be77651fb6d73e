//! What is known of each ocserv server: whether it answers, what it can do, whether our gate is at its door.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::session::{Cookie, CutoffKey, Entry, Process, SafeId, ServerName};

use super::holdings::Want;
use super::{Effect, Effects, Now, Order, Registry, SessionKey, Sighting, Target, Terminate};

/// ocserv's `disconnect_reason` for a disconnect that the server made (`REASON_SERVER_DISCONNECT`, `src/vpn.h`).
const SERVER_DISCONNECT: u32 = 3;

/// How long a list that lacks a connected user is asked for again before it counts as failed.
const INCOMPLETE_FOR: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub struct Server {
    pub main: Option<Process>,
    pub terminate: bool,
    pub state: ServerState,
    pub gate: GateState,
    /// Sessions of an earlier run are accounted for once this is set.
    pub(super) listed: bool,
    list: Asking,
    cookies: Asking,
    cookies_complete_at: Option<Duration>,
    /// When the last complete list of cookies was asked for.
    cookies_asked_at: Option<Duration>,
    /// Its workers' processes are visible from here: then one that is not is gone.
    pub(super) sees_workers: bool,
    incomplete_since: Option<Duration>,
    /// Cookies that it deleted for us: that a list lacks them says nothing against the list.
    deleted: BTreeSet<SafeId>,
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
struct Asking {
    since: Option<Duration>,
    again: bool,
}

impl Asking {
    /// Whether to ask now.
    fn want(&mut self, now: Duration) -> bool {
        // an answer that was on its way already says nothing of what happened since
        if self.since.is_some() {
            self.again = true;
            return false;
        }
        self.since = Some(now);
        true
    }

    /// Whether to ask once more.
    fn answered(&mut self) -> bool {
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

    /// A restart of ocserv drops every cookie: what was refused at its gate can never come again.
    fn forget_cookies(&mut self, name: &ServerName, out: &mut Effects) {
        let gone: Vec<SafeId> = (self.marks.iter())
            .filter(|(_, mark)| mark.server.as_ref() == Some(name))
            .map(|(safe_id, _)| *safe_id)
            .collect();
        for safe_id in gone {
            // a session of it that is still dying stays marked by its device
            self.unmark(safe_id, out);
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

    pub(super) fn ask_cookies(&mut self, name: &ServerName, now: Now, out: &mut Effects) {
        if self.servers.get_mut(name).is_some_and(|server| server.cookies.want(now.mono)) {
            out.push(Effect::AskCookies { server: name.clone() });
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
                server.state = ServerState::Up;
                let ids: BTreeSet<i32> = sightings.iter().map(|s| s.observed.id).collect();
                let told = if asked.is_zero() { now.mono } else { asked };
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
            }
            Err(why) => {
                if server.state == ServerState::Up {
                    server.state = ServerState::Silent;
                }
                self.list_answered(name, asked, Err(why), now, out);
            }
        }
        if again {
            self.ask_list(name, now, out);
        }
    }

    pub(super) fn cookies(
        &mut self,
        name: &ServerName,
        asked: Duration,
        outcome: Result<Vec<Cookie>, String>,
        now: Now,
        out: &mut Effects,
    ) {
        let Some(server) = self.servers.get_mut(name) else { return };
        let again = server.cookies.answered();
        let incomplete = server.incomplete_since;
        let mut lacks = false;
        let outcome = outcome.and_then(|cookies| match self.missing_from(name, asked, &cookies) {
            // main skips a sec-mod instance that does not answer, and does not say so
            Some(user) => {
                lacks = true;
                Err(format!(
                    "its list of cookies lacks the session of {user}, who is connected: it is not complete"
                ))
            }
            None => Ok(cookies),
        });
        if let Some(server) = self.servers.get_mut(name) {
            server.incomplete_since = lacks.then(|| incomplete.unwrap_or(now.mono));
        }
        // most likely that session has just ended: it is asked again before anything is made of it
        if lacks && incomplete.is_none_or(|since| now.mono < since + INCOMPLETE_FOR) {
            if again || !self.waiting.is_empty() {
                self.ask_cookies(name, now, out);
            }
            return;
        }
        match &outcome {
            Ok(cookies) => {
                if let Some(server) = self.servers.get_mut(name) {
                    server.cookies_complete_at = Some(now.mono);
                    server.cookies_asked_at = Some(asked);
                    server.state = ServerState::Up;
                }
                self.apply_cutoffs(name, asked, cookies, now, out);
                self.notice_gone_cookies(name, asked, cookies, out);
            }
            Err(_) => {
                if let Some(server) = self.servers.get_mut(name)
                    && server.state == ServerState::Up
                {
                    server.state = ServerState::Silent;
                }
            }
        }
        self.cookies_answered(name, asked, outcome.as_ref().map(|_| ()).map_err(Clone::clone));
        self.decide_waiting(name, outcome.is_ok(), now, out);
        if again {
            self.ask_cookies(name, now, out);
        }
    }

    /// A connected user whose cookie the list lacks: then the list is not complete.
    fn missing_from(&self, name: &ServerName, asked: Duration, cookies: &[Cookie]) -> Option<String> {
        let listed: BTreeSet<SafeId> = cookies.iter().map(|cookie| cookie.safe_id).collect();
        let deleted = &self.servers.get(name)?.deleted;
        let lacks =
            |id: SafeId| !listed.contains(&id) && !self.marks.contains_key(&id) && !deleted.contains(&id);
        (self.sessions.values())
            .filter(|s| s.server == *name && s.is_connected() && s.seen_first < asked)
            .filter(|s| s.safe_id().is_some_and(lacks))
            .map(|s| s.observed.user.escape_default().to_string())
            .next()
    }

    /// Users whose cookies could not be listed when they were revoked: now they can.
    fn apply_cutoffs(
        &mut self,
        name: &ServerName,
        asked: Duration,
        cookies: &[Cookie],
        now: Now,
        out: &mut Effects,
    ) {
        let due: Vec<(Entry, u64)> = (self.holdings.cutoffs())
            .filter(|(_, server, _)| *server == Some(name))
            .map(|(entry, _, up_to)| (entry.clone(), up_to))
            .collect();
        if due.is_empty() {
            return;
        }
        let mut theirs: BTreeMap<Entry, Vec<&Cookie>> = BTreeMap::new();
        for cookie in cookies {
            let who = self.rules.realms.identity(name, &cookie.vhost, &cookie.user);
            theirs.entry(Entry::Cutoff(CutoffKey::of(name, &who))).or_default().push(cookie);
        }
        let listed: BTreeSet<SafeId> = cookies.iter().map(|cookie| cookie.safe_id).collect();
        let cookieless: Vec<(SessionKey, Entry)> = (self.sessions.values())
            .filter(|s| s.server == *name && s.seen_first < asked && !s.has_ended())
            .filter(|s| s.safe_id().is_some_and(|id| !listed.contains(&id)))
            .map(|s| {
                let who = self.rules.realms.identity(name, &s.observed.vhost, &s.observed.user);
                (s.key, Entry::Cutoff(CutoffKey::of(name, &who)))
            })
            .collect();
        for (cutoff, up_to) in due {
            let numbers = self.holdings.numbers(&cutoff);
            // a list that was asked for before a revocation says nothing of what came between
            if numbers.iter().any(|n| self.revocations.get(n).is_some_and(|r| r.since() > asked)) {
                continue;
            }
            for cookie in theirs.get(&cutoff).into_iter().flatten() {
                // a cookie from the future was made before the clock was set back: it is not a fresh one
                if cookie.created <= up_to || cookie.created > now.wall {
                    for number in &numbers {
                        self.mark(cookie.safe_id, Some(name.clone()), *number, now, out);
                    }
                }
            }
            // at the door with a cookie that was deleted meanwhile: most likely it is not a fresh one. Its session is
            // refused, and dropped by its device; but its cookie is not marked, since nothing told that it is old
            for (key, _) in cookieless.iter().filter(|(_, theirs)| *theirs == cutoff) {
                let under = self.sessions.get(*key).map(|s| self.numbers_of(s)).unwrap_or_default();
                if under.is_superset(&numbers) {
                    continue;
                }
                if let Some(session) = self.sessions.get_mut(*key) {
                    session.named.extend(&numbers);
                }
                self.enforce(*key, out);
            }
            self.holdings.release_all(&cutoff, out);
        }
    }

    /// What of the refused safe_ids ocserv does not hold any more.
    fn notice_gone_cookies(
        &mut self,
        name: &ServerName,
        asked: Duration,
        cookies: &[Cookie],
        out: &mut Effects,
    ) {
        let listed: BTreeSet<SafeId> = cookies.iter().map(|cookie| cookie.safe_id).collect();
        // of a safe_id that nobody knows every server has to say so
        let nobodys = (self.servers.values())
            .filter(|server| server.state != ServerState::Gone)
            .map(|server| server.cookies_asked_at)
            .min()
            .flatten();
        let terminate = self.servers.get(name).is_some_and(|server| server.terminate);
        let (mut seen, mut gone, mut once_more) = (Vec::new(), Vec::new(), Vec::new());
        for (id, mark) in &self.marks {
            let is_listed = listed.contains(id);
            match &mark.server {
                Some(server) if server == name && !is_listed && asked >= mark.since => gone.push(*id),
                None if !is_listed && !mark.adopted && nobodys.is_some_and(|at| at >= mark.since) => {
                    gone.push(*id)
                }
                Some(server) if server == name && is_listed && terminate => match mark.terminate {
                    Terminate::Not => once_more.push((*id, 0)),
                    Terminate::Answered(tries) if tries < 3 && asked > mark.since => {
                        once_more.push((*id, tries))
                    }
                    Terminate::Answered(_) | Terminate::Asked => {}
                },
                _ => {}
            }
            if is_listed && (mark.gone || mark.server.is_none()) {
                seen.push(*id);
            }
        }
        for id in seen {
            self.set_fate(id, Some(name), false, out);
        }
        for (id, tries) in once_more {
            self.terminate(id, name, tries, out);
        }
        for id in gone {
            self.set_fate(id, None, true, out);
            // nothing can bring it back: no cookie, no session, nobody at the door
            let quiet = self.sessions.with_safe_id(id).next().is_none();
            let settled = (self.marks.get(&id).into_iter().flat_map(|mark| &mark.numbers))
                .all(|number| !self.busy.contains(number));
            if quiet && settled {
                self.unmark(id, out);
            }
        }
    }

    /// What became of a refused cookie, for every revocation of it.
    fn set_fate(&mut self, id: SafeId, server: Option<&ServerName>, gone: bool, out: &mut Effects) {
        let Some(mark) = self.marks.get_mut(&id) else { return };
        mark.gone = gone;
        if mark.server.is_none() {
            mark.server = server.cloned();
            // the next run of the daemon has to know as well
            for number in &mark.numbers {
                self.holdings.hold_for_gate(
                    Entry::SafeId(id),
                    *number,
                    Want::Forever,
                    mark.server.clone(),
                    0,
                    out,
                );
            }
        }
        for number in &mark.numbers {
            if let Some(fate) = self.revocations.get_mut(number).and_then(|r| r.safe_ids.get_mut(&id)) {
                fate.gone = gone;
                fate.server.clone_from(&mark.server);
            }
        }
    }

    pub(super) fn terminate(&mut self, id: SafeId, name: &ServerName, tries: u32, out: &mut Effects) {
        if let Some(mark) = self.marks.get_mut(&id)
            && mark.terminate != Terminate::Asked
        {
            mark.terminate = Terminate::Asked;
            mark.tries = tries + 1;
            out.push(Effect::Terminate { server: name.clone(), safe_id: id });
        }
    }

    /// This ocserv held that cookie, and deleted it for us.
    pub(super) fn was_deleted(&self, name: &ServerName, id: SafeId) -> bool {
        self.servers.get(name).is_some_and(|server| server.deleted.contains(&id))
    }

    pub(super) fn terminated(
        &mut self,
        name: &ServerName,
        id: SafeId,
        outcome: Result<bool, String>,
        out: &mut Effects,
    ) {
        if let Some(mark) = self.marks.get_mut(&id) {
            mark.terminate = Terminate::Answered(mark.tries);
        }
        if let (Ok(true), Some(server)) = (&outcome, self.servers.get_mut(name)) {
            // those of whom a session is left, of which there are no more than that, are needed to judge a list
            if server.deleted.len() >= super::MAX_SESSIONS {
                server.deleted.retain(|its| self.sessions.with_safe_id(*its).next().is_some());
            }
            server.deleted.insert(id);
        }
        if let Err(why) = outcome {
            out.push(Effect::Note { kind: "ocserv", text: format!("{name}: terminate session {id}: {why}") });
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

    /// How long ago this server's cookies were listed completely.
    pub(super) fn cookies_age(&self, name: &ServerName, now: Now) -> Option<Duration> {
        self.servers.get(name)?.cookies_complete_at.map(|at| now.mono.saturating_sub(at))
    }
}
