//! Logins at the web gateway that take one of their person's places, where several gateways have to agree.

use std::collections::BTreeMap;

use tonic::Status;

use crate::registry::cluster::{ClusterEvent, Refusal};
use crate::registry::{Ask, Event, NewWebSession, Request};
use crate::session::{Admission, Identity, SessionId, WebKey};

use super::super::Daemon;
use super::door::limit_from;

/// Those that wait for the rules.
#[derive(Default)]
pub(super) struct AtWeb {
    logins: BTreeMap<Ask, Login>,
    keys: BTreeMap<WebKey, Ask>,
    /// What an earlier run has let in was looked through.
    looked: bool,
}

struct Login {
    request: Request,
    new: Box<NewWebSession>,
    who: Identity,
}

impl AtWeb {
    fn take(&mut self, ask: Ask) -> Option<Login> {
        let login = self.logins.remove(&ask)?;
        self.keys.remove(&login.new.key);
        Some(login)
    }
}

impl Daemon {
    /// Where it counts, the other gateways have a say.
    pub(in crate::daemon) fn web_login(&mut self, request: Request, new: Box<NewWebSession>) {
        let who = self.config.realms().person(&new.realm, &new.user);
        let limit = self.config.policy.web_limit(&who.name).map(limit_from);
        // of somebody who is locked the registry says so at once
        let asks = limit.is_some() && self.registry.locks_on(&who).is_empty();
        let when_away = self.when_away("");
        let Some(link) = self.cluster.as_mut().filter(|_| asks) else {
            return self.handle(Event::WebCreate { request, new });
        };
        let ask = self.next_ask;
        self.next_ask += 1;
        let session = SessionId::Web(new.key);
        link.door.web.keys.insert(new.key, ask);
        link.door.web.logins.insert(ask, Login { request, new, who: who.clone() });
        self.tell_rules(ClusterEvent::Asked { ask, who, session, limit, when_away });
    }

    /// Who wants that session.
    pub(super) fn at_web_with(&self, key: WebKey) -> Option<Identity> {
        let web = &self.cluster.as_ref()?.door.web;
        web.logins.get(web.keys.get(&key)?).map(|login| login.who.clone())
    }

    /// Everything that was decided before that login came is known here: is there still nothing against it? Where there is, it
    /// was answered.
    pub(super) fn web_looked(&mut self, ask: Ask) -> bool {
        let login = self.cluster.as_ref().and_then(|link| link.door.web.logins.get(&ask));
        let Some(login) = login else { return false };
        let is_locked = !self.registry.locks_on(&login.who).is_empty();
        if !is_locked && !self.web_asks_no_more(login.request) {
            return true;
        }
        let login = self.cluster.as_mut().and_then(|link| link.door.web.take(ask));
        if let Some(Login { request, new, .. }) = login {
            if is_locked {
                self.handle(Event::WebCreate { request, new });
            } else {
                self.web_refuse(request, nobody_waits());
            }
        }
        false
    }

    /// The rules let it in. False: it is no login at the web gateway.
    pub(super) fn web_admits(&mut self, ask: Ask) -> bool {
        let login = self.cluster.as_mut().and_then(|link| link.door.web.take(ask));
        let Some(Login { request, new, .. }) = login else { return false };
        let key = new.key;
        if self.web_asks_no_more(request) {
            self.web_refuse(request, nobody_waits());
        } else {
            // it has the last word
            self.handle(Event::WebCreate { request, new });
        }
        if !self.registry.is_web_alive(&key) {
            self.cookies_gone(vec![SessionId::Web(key)]);
        }
        true
    }

    /// The rules do not. False: it is no login at the web gateway.
    pub(super) fn web_refuses(&mut self, ask: Ask, why: Refusal) -> bool {
        let Some(link) = &mut self.cluster else { return false };
        let Some(Login { request, who, .. }) = link.door.web.take(ask) else { return false };
        let status = match why {
            Refusal::Away | Refusal::Busy => Status::unavailable(why.to_string()),
            Refusal::Ended => Status::not_found(why.to_string()),
            Refusal::Full | Refusal::Contended => Status::resource_exhausted(why.to_string()),
        };
        self.note("web", format!("{who} at the web gateway: {why}"));
        self.web_refuse(request, status);
        true
    }

    /// R4: its place is free.
    pub(in crate::daemon) fn web_is_over(&mut self, key: WebKey) {
        let session = SessionId::Web(key);
        if self.cluster.as_ref().is_some_and(|link| link.admissions.contains_key(&session)) {
            self.cookies_gone(vec![session]);
        }
    }

    /// Those that an earlier run has let in where they did not count. Once: whoever comes later passes the door.
    pub(super) fn unknown_web_sessions(&mut self) -> Vec<Admission> {
        let Some(link) = &mut self.cluster else { return Vec::new() };
        if std::mem::replace(&mut link.door.web.looked, true) {
            return Vec::new();
        }
        let of = |session: &crate::registry::WebSession| Admission {
            session: SessionId::Web(session.key),
            server: None,
            who: session.identity.clone(),
            group: String::new(),
            at: None,
            claimed: false,
        };
        let counts = |admission: &Admission| self.config.policy.web_limit(&admission.who.name).is_some();
        (self.registry.web_sessions().map(of))
            .filter(counts)
            .filter(|admission| !link.admissions.contains_key(&admission.session))
            .collect()
    }
}

fn nobody_waits() -> Status {
    Status::cancelled("whoever asked has gone")
}
