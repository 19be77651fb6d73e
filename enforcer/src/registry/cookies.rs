//! What ocserv's lists of cookies tell: whom a cutoff means, and which refused cookie is gone for good.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::session::{Cookie, Entry, SafeId, ServerName};

use super::holdings::Want;
use super::servers::ServerState;
use super::{Effect, Effects, Now, Registry, SessionKey, Terminate};

/// How long a list that lacks a connected user is asked for again before it counts as failed.
const INCOMPLETE_FOR: Duration = Duration::from_secs(1);

impl Registry {
    pub(super) fn ask_cookies(&mut self, name: &ServerName, now: Now, out: &mut Effects) {
        if self.servers.get_mut(name).is_some_and(|server| server.cookies.want(now.mono)) {
            out.push(Effect::AskCookies { server: name.clone() });
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
        if let Ok(cookies) = &outcome {
            self.learn_ages(name, cookies, now, out);
        }
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
        if lacks {
            // if its worker's process was never visible from here, only a list of workers tells that it has ended
            self.ask_list(name, now, out);
        }
        // most likely that session has just ended: it is asked again before anything is made of it
        if lacks && incomplete.is_none_or(|since| now.mono < since + INCOMPLETE_FOR) {
            // whose cookie it shows need not wait
            self.decide_waiting(name, true, now, out);
            // (once at once, and then with each tick: not as fast as ocserv answers)
            if again || (incomplete.is_none() && !self.waiting.is_empty()) {
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
                if self.rules.replicates.is_some() {
                    let ids = cookies.iter().map(|cookie| cookie.safe_id).collect();
                    out.push(Effect::CookiesListed { server: name.clone(), asked, ids });
                }
                self.apply_cutoffs(name, asked, cookies, now, out);
                self.notice_gone_cookies(name, asked, cookies, now, out);
                if !self.adopted_devices.is_empty() {
                    let listed = cookies.iter().map(|cookie| cookie.safe_id).collect();
                    self.release_adopted_devices(&listed, out);
                }
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

    /// When a cookie was made is told by every list that shows it, also by one that is not complete, or of before the
    /// revocation. R2: one that is older than its user's cutoff is refused from here on by itself, whatever becomes of
    /// it. R4: a younger one is let in.
    fn learn_ages(&mut self, name: &ServerName, cookies: &[Cookie], now: Now, out: &mut Effects) {
        let cutoffs: BTreeSet<Entry> = self.cutoffs_at(name).collect();
        if cutoffs.is_empty() {
            return;
        }
        for cookie in cookies {
            let cutoff = self.cutoff_of(name, &cookie.vhost, &cookie.user);
            if !cutoffs.contains(&cutoff) {
                continue;
            }
            // one from the future was made before the clock was set back: it is not a fresh one
            if cookie.created <= self.holdings.moment(&cutoff) || cookie.created > now.wall {
                for number in self.holdings.numbers(&cutoff) {
                    self.mark(cookie.safe_id, Some(name.clone()), number, now, out);
                }
                continue;
            }
            let its: Vec<SessionKey> = (self.sessions.with_safe_id(cookie.safe_id))
                .filter(|s| s.server == *name)
                .map(|s| s.key)
                .collect();
            for key in its {
                if let Some(session) = self.sessions.get_mut(key) {
                    session.made = Some(cookie.created);
                }
            }
        }
    }

    /// The cutoffs of that server.
    fn cutoffs_at(&self, name: &ServerName) -> impl Iterator<Item = Entry> {
        (self.holdings.cutoffs())
            .filter(move |(_, server, _)| *server == Some(name))
            .map(|(entry, ..)| entry.clone())
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

    /// Users whose cookies could not be listed when they were revoked: now they can, and those that are listed are
    /// refused by themselves.
    fn apply_cutoffs(
        &mut self,
        name: &ServerName,
        asked: Duration,
        cookies: &[Cookie],
        now: Now,
        out: &mut Effects,
    ) {
        let due: Vec<Entry> = self.cutoffs_at(name).collect();
        if due.is_empty() {
            return;
        }
        let listed_at = self.servers.get(name).and_then(|server| server.listed_at);
        let listed: BTreeSet<SafeId> = cookies.iter().map(|cookie| cookie.safe_id).collect();
        let cookieless: Vec<Cookieless> = (self.sessions.values())
            .filter(|s| s.server == *name && !s.has_ended())
            .filter(|s| s.safe_id().is_some_and(|id| !listed.contains(&id)))
            .map(|s| Cookieless {
                key: s.key,
                cutoff: self.cutoff_of(name, &s.observed.vhost, &s.observed.user),
                made: s.made,
                is_new: s.seen_first >= asked,
            })
            .collect();
        for cutoff in due {
            let (numbers, up_to) = (self.holdings.numbers(&cutoff), self.holdings.moment(&cutoff));
            // of a client that was at the door with a cookie that is deleted by now only a list of workers tells
            let is_adopted = numbers.iter().any(|n| self.revocations.get(n).is_some_and(|r| r.adopted));
            if is_adopted && listed_at.is_none_or(|at| asked < at) {
                continue;
            }
            // a list that was asked for before a revocation says nothing of what came between
            if numbers.iter().any(|n| self.revocations.get(n).is_some_and(|r| r.since() > asked)) {
                continue;
            }
            let its: Vec<&Cookieless> = (cookieless.iter())
                .filter(|its| its.cutoff == cutoff && its.made.is_none_or(|made| made <= up_to))
                .collect();
            // whose cookie may have been made, or deleted, since the list was asked for: the next one tells
            if its.iter().any(|its| its.is_new) {
                self.ask_cookies(name, now, out);
                continue;
            }
            // at the door with a cookie that was deleted meanwhile: most likely it is not a fresh one. Its session is
            // refused, and dropped by its device, also when a lock's time is over that means it now; but its cookie is marked only where a list told that it is old
            for Cookieless { key, made, .. } in its {
                if made.is_some() {
                    for number in &numbers {
                        self.name_session(*key, *number, now, out);
                    }
                    continue;
                }
                let under = self.sessions.get(*key).map(|s| self.numbers_of(s)).unwrap_or_default();
                if let Some(session) = self.sessions.get_mut(*key) {
                    session.named.extend(&numbers);
                }
                if !under.is_superset(&numbers) {
                    self.enforce(*key, out);
                }
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
        now: Now,
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
        let servers = || self.servers.values().filter(|server| server.state != ServerState::Gone);
        let everywhere = servers().map(|server| server.workers_asked_at).min().flatten();
        let here = self.servers.get(name).and_then(|server| server.workers_asked_at);
        let mut is_news = false;
        for id in gone {
            self.set_fate(id, None, true, out);
            let Some(mark) = self.marks.get_mut(&id) else { continue };
            is_news |= mark.gone_since.is_none();
            let since = *mark.gone_since.get_or_insert(now.mono);
            // nothing can bring it back: no cookie, no session, and nobody at the door. Of who came there while the
            // cookie was good only a list of workers tells that was asked for since (the host may have slept)
            let known_at = if mark.server.is_some() { here } else { everywhere };
            let is_known = known_at.is_some_and(|at| at >= since);
            let quiet = is_known && self.sessions.with_safe_id(id).next().is_none();
            let settled = (self.marks.get(&id).into_iter().flat_map(|mark| &mark.numbers))
                .all(|number| !self.busy.contains(number));
            if quiet && settled {
                self.unmark(id, out);
            }
        }
        if is_news {
            self.ask_list(name, now, out);
        }
    }

    /// What became of a refused cookie, for every revocation of it.
    fn set_fate(&mut self, id: SafeId, server: Option<&ServerName>, gone: bool, out: &mut Effects) {
        let Some(mark) = self.marks.get_mut(&id) else { return };
        mark.gone = gone;
        if !gone {
            mark.gone_since = None;
        }
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

    /// A restart of ocserv drops every cookie: what was refused at its gate can never come again.
    pub(super) fn forget_cookies(&mut self, name: &ServerName, out: &mut Effects) {
        if let (true, Some(last)) = (self.rules.replicates.is_some(), self.last) {
            out.push(Effect::CookiesListed { server: name.clone(), asked: last.mono, ids: Vec::new() });
        }
        let gone: Vec<SafeId> = (self.marks.iter())
            .filter(|(_, mark)| mark.server.as_ref() == Some(name))
            .map(|(safe_id, _)| *safe_id)
            .collect();
        for safe_id in gone {
            // a session of it that is still dying stays marked by its device
            self.unmark(safe_id, out);
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

    /// How long ago this server's cookies were listed completely.
    pub(super) fn cookies_age(&self, name: &ServerName, now: Now) -> Option<Duration> {
        self.servers.get(name)?.cookies_complete_at.map(|at| now.mono.saturating_sub(at))
    }
}

/// A session whose cookie a complete list lacks.
struct Cookieless {
    key: SessionKey,
    cutoff: Entry,
    /// When its cookie was made, if an earlier list told.
    made: Option<u64>,
    /// It was first seen when the list had been asked for.
    is_new: bool,
}
