//! The gate's question: may the client at the door get its tunnel?

use std::collections::BTreeSet;
use std::time::Duration;

use crate::session::{CutoffKey, Entry, ServerName};

use super::locks::lock_of;
use super::{Ask, Effect, Effects, GateState, Now, Phase, Registry, SessionKey, Sighting, Verdict};

/// How long a question waits for ocserv's list of cookies.
const WAIT: Duration = Duration::from_millis(1_500);
/// How many may wait at once.
const MAX_WAITING: usize = 1_024;

const UNKNOWN_AGE: &str =
    "the user was revoked, and ocserv cannot tell whether this cookie was made before or after";

/// A question whose answer hangs on when the cookie was made, or on what connection tracking has of the address.
#[derive(Debug)]
pub(super) struct Waiting {
    ask: Ask,
    key: SessionKey,
    server: ServerName,
    last: bool,
    until: Duration,
}

/// What can be said of a login.
enum Look {
    Decided(Verdict),
    /// The user was revoked while ocserv could not list its cookies, so that it hangs on this cookie's age.
    NeedsCookies,
    /// Its tunnel address was a revoked session's, of which something may be left in connection tracking.
    NeedsAddress,
}

impl Registry {
    pub(super) fn gate_asked(
        &mut self,
        ask: Ask,
        name: &ServerName,
        sighting: Sighting,
        last: bool,
        now: Now,
        out: &mut Effects,
    ) {
        let Some(server) = self.servers.get_mut(name) else {
            let verdict = Verdict::Blind(format!("there is no server {name} in the configuration"));
            return out.push(Effect::GateAnswer { ask, verdict });
        };
        server.gate = GateState::Seen;
        let (user, safe_id) = (sighting.observed.user.clone(), sighting.observed.safe_id);
        let vhost = sighting.observed.vhost.clone();
        let Some(key) = self.sight(name, sighting, now.mono, true, now, out) else {
            // what is refused is refused also where no session can be remembered
            let revoked = safe_id.is_some_and(|id| self.marks.contains_key(&id))
                || self.is_cut_off(name, &vhost, &user)
                || !self.locks_of(name, &vhost, &user).is_empty();
            let why = "the table of sessions is full".to_owned();
            let verdict = if revoked { Verdict::Refuse(why) } else { Verdict::Blind(why) };
            return out.push(Effect::GateAnswer { ask, verdict });
        };
        let waiting = Waiting { ask, key, server: name.clone(), last, until: now.mono + WAIT };
        match self.verdict(&waiting) {
            Look::Decided(verdict) => self.answer_gate(&waiting, verdict, now, out),
            _ if self.waiting.len() >= MAX_WAITING => {
                self.answer_gate(&waiting, Verdict::Refuse("too many logins wait".into()), now, out);
            }
            look => {
                self.waiting.push(waiting);
                if matches!(look, Look::NeedsCookies) {
                    self.ask_cookies(name, now, out);
                }
            }
        }
    }

    fn verdict(&self, waiting: &Waiting) -> Look {
        let Some(session) = self.sessions.get(waiting.key) else {
            return Look::Decided(Verdict::Refuse("the client is gone".into()));
        };
        let seen = &session.observed;
        if let Some(number) = self.locks_of(&session.server, &seen.vhost, &seen.user).first() {
            return Look::Decided(Verdict::Refuse(format!("the user is locked (lock {number})")));
        }
        if let Some(number) = self.numbers_of(session).first() {
            let why = format!("its session was revoked (revocation {number})");
            return Look::Decided(Verdict::Refuse(why));
        }
        let cutoff = self.cutoff_of(&waiting.server, &seen.vhost, &seen.user);
        let is_younger = session.made.is_some_and(|made| made > self.holdings.moment(&cutoff));
        match (self.holdings.holds(&cutoff) && !is_younger, session.safe_id()) {
            (true, Some(_)) => Look::NeedsCookies,
            (true, None) => Look::Decided(Verdict::Refuse(UNKNOWN_AGE.into())),
            // the gate may let it in
            (false, _) if self.has_traces(waiting.key) => Look::NeedsAddress,
            (false, None) => {
                Look::Decided(Verdict::Blind("ocserv did not tell the safe_id of this login".into()))
            }
            (false, Some(_)) => Look::Decided(Verdict::Admit),
        }
    }

    pub(super) fn is_cut_off(&self, name: &ServerName, vhost: &str, user: &str) -> bool {
        self.holdings.holds(&self.cutoff_of(name, vhost, user))
    }

    pub(super) fn cutoff_of(&self, name: &ServerName, vhost: &str, user: &str) -> Entry {
        Entry::Cutoff(CutoffKey::of(name, &self.rules.realms.identity(name, vhost, user)))
    }

    fn answer_gate(&mut self, waiting: &Waiting, verdict: Verdict, now: Now, out: &mut Effects) {
        if let Some(session) = self.sessions.get_mut(waiting.key) {
            let user = session.observed.user.escape_default();
            let (server, id) = (&session.server, session.observed.id);
            match &verdict {
                Verdict::Admit if waiting.last => session.phase = Phase::Live,
                Verdict::Admit => {}
                Verdict::Refuse(why) | Verdict::Blind(why) => {
                    let text = format!("{server}: {user} (id {id}) at the gate: {why}");
                    out.push(Effect::Note { kind: "gate", text });
                }
            }
        }
        if matches!(verdict, Verdict::Refuse(_)) {
            self.refused(waiting, now, out);
        }
        out.push(Effect::GateAnswer { ask: waiting.ask, verdict });
    }

    /// What a refusal costs, and whose it is.
    fn refused(&mut self, waiting: &Waiting, now: Now, out: &mut Effects) {
        let Some(session) = self.sessions.get(waiting.key) else { return };
        let (seen, mut by) = (&session.observed, None);
        if let Some(id) = seen.safe_id.filter(|id| self.marks.contains_key(id)) {
            by = Some(Entry::SafeId(id));
        }
        if !self.locks_of(&session.server, &seen.vhost, &seen.user).is_empty() {
            by = Some(lock_of(&self.rules.realms.identity(&session.server, &seen.vhost, &seen.user)));
        }
        if let Some(entry) = by {
            let client = seen.client.clone();
            out.push(Effect::CountRefusal { entry });
            self.count_refusal(&waiting.server, &client, now, out);
        }
    }

    /// ocserv's list of cookies has come, or could not be had.
    pub(super) fn decide_waiting(&mut self, name: &ServerName, listed: bool, now: Now, out: &mut Effects) {
        let (mine, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|waiting| waiting.server == *name);
        self.waiting = others;
        for waiting in mine {
            match self.verdict(&waiting) {
                Look::Decided(verdict) => self.answer_gate(&waiting, verdict, now, out),
                Look::NeedsCookies if !listed || waiting.until <= now.mono => {
                    self.refuse_unknown_age(&waiting, now, out);
                }
                Look::NeedsCookies | Look::NeedsAddress => self.waiting.push(waiting),
            }
        }
    }

    pub(super) fn expire_waiting(&mut self, now: Now, out: &mut Effects) {
        for waiting in std::mem::take(&mut self.waiting) {
            // it may have been decided without a list: by a lift, or by another revocation
            match self.verdict(&waiting) {
                Look::Decided(verdict) => self.answer_gate(&waiting, verdict, now, out),
                Look::NeedsCookies if waiting.until <= now.mono => {
                    self.refuse_unknown_age(&waiting, now, out);
                }
                // that ends by itself
                Look::NeedsCookies | Look::NeedsAddress => self.waiting.push(waiting),
            }
        }
    }

    /// Whose list was not complete is asked again for those that still wait.
    pub(super) fn ask_for_waiting(&mut self, now: Now, out: &mut Effects) {
        let names: BTreeSet<ServerName> = self.waiting.iter().map(|waiting| waiting.server.clone()).collect();
        for name in names {
            if self.servers.get(&name).is_some_and(|server| server.incomplete_since.is_some()) {
                self.ask_cookies(&name, now, out);
            }
        }
    }

    fn refuse_unknown_age(&mut self, waiting: &Waiting, now: Now, out: &mut Effects) {
        self.answer_gate(waiting, Verdict::Refuse(UNKNOWN_AGE.into()), now, out);
    }
}
