//! The gate, where several gateways have to agree: what the registry lets in is asked about once more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::config::{self, Config};
use crate::registry::cluster::{ClusterEvent, Knock, Limit, Refusal, Revision, WhenAway, Yields};
use crate::registry::{Ask, Event, Order, Phase, Sighting, Target, Verdict};
use crate::session::{Admission, Author, Identity, Origin, SafeId, ServerName, SessionId, Write};

use super::super::{Answerer, Daemon, answers, now};
use super::{ABSENT_AGAIN, Admitted, SETTLED, web};

/// A question of the gate's.
pub(in crate::daemon) struct AtGate {
    pub server: ServerName,
    pub reply: Answerer,
    pub sighting: Sighting,
    /// The gate's last question.
    pub last: bool,
}

#[derive(Default)]
pub(super) struct Door {
    /// The registry is asked again, by another name, for these.
    looks: BTreeMap<Ask, Again>,
    pub(super) web: web::AtWeb,
}

/// For whom the registry is asked again.
enum Again {
    /// The rules want to know.
    Look(Knock),
    /// The rules let it in: the last word.
    Last(Ask),
}

fn limit(config: &Config, user: &str, group: &str) -> Option<Limit> {
    config.policy.limit(user, group).map(limit_from)
}

pub(super) fn limit_of(config: &Config, admission: &Admission) -> Option<Limit> {
    match admission.session {
        SessionId::Vpn(_) => limit(config, &admission.who.name, &admission.group),
        SessionId::Web(_) => config.policy.web_limit(&admission.who.name).map(limit_from),
    }
}

pub(super) fn limit_from((most, when_full): (usize, config::WhenFull)) -> Limit {
    let yields = match when_full {
        config::WhenFull::NewestWins => Yields::Oldest,
        config::WhenFull::RefuseNew => Yields::Newest,
    };
    Limit { most, yields }
}

impl Daemon {
    /// What the registry says of a question is an answer, unless the other gateways have a say.
    pub(in crate::daemon) fn answer_gate(&mut self, ask: Ask, verdict: Verdict) {
        if let Some(link) = &mut self.cluster {
            match link.door.looks.remove(&ask) {
                Some(Again::Look(knock)) => return self.looked_again(knock, verdict),
                Some(Again::Last(ask)) => {
                    let verdict = self.unasked(ask, verdict);
                    return self.reply_to_gate(ask, verdict);
                }
                None => {}
            }
            if verdict == Verdict::Admit
                && let Some((who, safe_id, group)) = self.login_of(ask)
            {
                let limit = limit(&self.config, &who.name, &group);
                let (session, when_away) = (SessionId::Vpn(safe_id), self.when_away(&group));
                return self.tell_rules(ClusterEvent::Asked { ask, who, session, limit, when_away });
            }
            let verdict = match verdict {
                Verdict::Admit => Verdict::Blind("ocserv did not tell the safe_id of this login".into()),
                verdict => verdict,
            };
            let verdict = self.unasked(ask, verdict);
            return self.reply_to_gate(ask, verdict);
        }
        self.reply_to_gate(ask, verdict);
    }

    pub(super) fn when_away(&self, group: &str) -> WhenAway {
        match self.config.cluster.as_ref().map(|cluster| cluster.when_away(group)) {
            Some(config::WhenAway::Open) => WhenAway::Open,
            Some(config::WhenAway::Closed) | None => WhenAway::Closed,
        }
    }

    /// Of whose cookie nothing is known the other gateways cannot be asked.
    fn unasked(&self, ask: Ask, verdict: Verdict) -> Verdict {
        let group = self.asks.get(&ask).map(|asked| asked.sighting.observed.group.as_str());
        match verdict {
            Verdict::Blind(why) if self.when_away(group.unwrap_or_default()) == WhenAway::Closed => {
                Verdict::Refuse(format!("{why}: the other gateways cannot be asked about it"))
            }
            verdict => verdict,
        }
    }

    fn reply_to_gate(&mut self, ask: Ask, verdict: Verdict) {
        if let Some(asked) = self.asks.remove(&ask) {
            let _ = asked.reply.send(answers::verdict(&asked.server, verdict, self.config.gate.when_blind));
        }
    }

    fn login_of(&self, ask: Ask) -> Option<(Identity, SafeId, String)> {
        let asked = self.asks.get(&ask)?;
        let seen = &asked.sighting.observed;
        let who = self.config.realms().identity(&asked.server, &seen.vhost, &seen.user);
        // or an earlier look has told
        let known = || self.registry.session(&asked.server, seen.id).and_then(|session| session.safe_id());
        Some((who, seen.safe_id.or_else(known)?, seen.group.clone()))
    }

    /// Everything that was decided before that login came is known here: is there still nothing against it?
    pub(super) fn ask_once_more(&mut self, knock: Knock, session: SessionId) {
        if let (Knock::Gate(ask), SessionId::Web(_)) = (knock, session) {
            let clear = self.web_looked(ask);
            return self.tell_rules(ClusterEvent::Looked { knock, clear });
        }
        let again = match knock {
            // nobody waits for it any more: what was seen of that client may be another one's by now
            Knock::Gate(ask) if self.asks.get(&ask).is_some_and(|asked| asked.reply.is_closed()) => {
                self.asks.remove(&ask);
                None
            }
            Knock::Gate(ask) => {
                self.asks.get(&ask).map(|asked| (asked.server.clone(), asked.sighting.clone(), asked.last))
            }
            Knock::Inside(_) => None,
        };
        match (knock, again) {
            (Knock::Gate(_), Some((server, sighting, last))) => {
                let ask = self.next_ask;
                self.next_ask += 1;
                if let Some(link) = &mut self.cluster {
                    link.door.looks.insert(ask, Again::Look(knock));
                }
                self.handle(Event::GateAsked { ask, server, sighting, last });
            }
            (Knock::Gate(_), None) => self.tell_rules(ClusterEvent::Looked { knock, clear: false }),
            (Knock::Inside(_), _) => {
                let clear = match session {
                    SessionId::Vpn(safe_id) => !self.registry.refuses(safe_id),
                    SessionId::Web(key) => self.registry.is_web_alive(&key),
                };
                self.tell_rules(ClusterEvent::Looked { knock, clear });
            }
        }
    }

    fn looked_again(&mut self, knock: Knock, verdict: Verdict) {
        let clear = verdict == Verdict::Admit;
        if let (false, Knock::Gate(ask)) = (clear, knock) {
            self.reply_to_gate(ask, verdict);
        }
        self.tell_rules(ClusterEvent::Looked { knock, clear });
    }

    /// R2: what was decided since the last look, or while nobody could be asked, has the last word.
    pub(super) fn cluster_admits(&mut self, ask: Ask) {
        if self.web_admits(ask) {
            return;
        }
        let Some(asked) = self.asks.get(&ask) else { return };
        let (server, sighting, last) = (asked.server.clone(), asked.sighting.clone(), asked.last);
        let again = self.next_ask;
        self.next_ask += 1;
        if let Some(link) = &mut self.cluster {
            link.door.looks.insert(again, Again::Last(ask));
        }
        self.handle(Event::GateAsked { ask: again, server, sighting, last });
    }

    pub(super) fn cluster_refuses(&mut self, ask: Ask, why: Refusal) {
        if self.web_refuses(ask, why) {
            return;
        }
        if let Some(asked) = self.asks.get(&ask) {
            let (server, seen) = (&asked.server, &asked.sighting.observed);
            let text =
                format!("{server}: {} (id {}) at the gate: {why}", seen.user.escape_default(), seen.id);
            self.note("gate", text);
        }
        self.reply_to_gate(ask, Verdict::Refuse(why.to_string()));
    }

    pub(super) fn passed(&mut self, session: SessionId, at: Option<Revision>, claimed: bool) {
        let asked = match session {
            SessionId::Vpn(safe_id) => self.at_gate_with(safe_id),
            SessionId::Web(key) => self.at_web_with(key).map(|who| (None, who, String::new())),
        };
        let Some(link) = &mut self.cluster else { return };
        let before = link.admissions.get(&session).map(|admitted| &admitted.admission);
        let before = before.map(|its| (its.server.clone(), its.who.clone(), its.group.clone()));
        let Some((server, who, group)) = asked.or(before) else { return };
        let admission = Admission { session, server, who, group, at, claimed };
        let same = link.admissions.get(&session).is_some_and(|admitted| admitted.admission == admission);
        let admitted = Admitted { admission: admission.clone(), since: now().mono, absent: None };
        link.admissions.insert(session, admitted);
        if !same {
            self.registry.write(Write::KeepAdmission(admission));
            self.save();
        }
    }

    /// Who is at the gate with that cookie: on which server, and of which group.
    fn at_gate_with(&self, safe_id: SafeId) -> Option<(Option<ServerName>, Identity, String)> {
        let is_its = |asked: &&AtGate| {
            let seen = &asked.sighting.observed;
            let known =
                || self.registry.session(&asked.server, seen.id).and_then(|session| session.safe_id());
            seen.safe_id.or_else(known) == Some(safe_id)
        };
        let asked = self.asks.values().find(is_its)?;
        let seen = &asked.sighting.observed;
        let who = self.config.realms().identity(&asked.server, &seen.vhost, &seen.user);
        Some((Some(asked.server.clone()), who, seen.group.clone()))
    }

    /// It waits for an answer of the rules'.
    pub(super) fn is_at_the_door(&self, session: SessionId) -> bool {
        match session {
            SessionId::Vpn(id) => self.asks.values().any(|asked| asked.sighting.observed.safe_id == Some(id)),
            SessionId::Web(key) => self.at_web_with(key).is_some(),
        }
    }

    /// It was let in while etcd was away, and there is no place for it.
    pub(super) fn end_displaced(&mut self, session: SessionId, why: String) {
        let Some(link) = &self.cluster else { return };
        // of this gateway's alone
        let origin = Some(Origin { author: Author::Gateway(link.me), revision: 0 });
        let order = Order {
            target: match session {
                SessionId::Vpn(safe_id) => Target::Session(safe_id),
                SessionId::Web(key) => Target::Web(key),
            },
            server: None,
            stands: None,
            reason: why,
            by: "[policy] max-sessions".into(),
            origin,
            spare: BTreeSet::new(),
            bulk: false,
        };
        self.handle(Event::Revoke { request: None, order });
    }

    /// Whoever is in and passed no door where the others had a say: before there was a cluster, or past the gate alone while
    /// this daemon did not run. They go the way of one who was let in while etcd was away.
    pub(super) fn register_the_unknown(&mut self, at: Duration) {
        let Some(link) = &self.cluster else { return };
        let mut unknown: Vec<Admission> = (self.registry.sessions())
            .filter(|session| session.phase == Phase::Live && !session.has_ended())
            .filter(|session| at >= session.seen_first + SETTLED)
            .filter_map(|session| Some((session, session.safe_id()?)))
            .filter(|(_, id)| {
                !link.admissions.contains_key(&SessionId::Vpn(*id)) && !self.registry.refuses(*id)
            })
            .map(|(session, safe_id)| {
                let seen = &session.observed;
                let who = self.config.realms().identity(&session.server, &seen.vhost, &seen.user);
                let (server, group) = (Some(session.server.clone()), seen.group.clone());
                Admission { session: SessionId::Vpn(safe_id), server, who, group, at: None, claimed: false }
            })
            .collect();
        unknown.extend(self.unknown_web_sessions());
        for admission in unknown {
            let event = ClusterEvent::Remembered {
                who: admission.who.clone(),
                session: admission.session,
                at: None,
                claimed: false,
                limit: limit_of(&self.config, &admission),
            };
            if let Some(link) = &mut self.cluster {
                let admitted = Admitted { admission: admission.clone(), since: at, absent: None };
                link.admissions.insert(admission.session, admitted);
            }
            self.registry.write(Write::KeepAdmission(admission));
            self.tell_rules(event);
        }
        self.save();
    }

    /// What a complete list of cookies lacks is worth nothing any more.
    pub(in crate::daemon) fn cookies_listed(&mut self, server: &ServerName, asked: Duration, ids: &[SafeId]) {
        let Some(link) = &mut self.cluster else { return };
        let listed: BTreeSet<&SafeId> = ids.iter().collect();
        let gone: Vec<SessionId> = (link.admissions.values())
            .filter(|admitted| admitted.admission.server.as_ref() == Some(server) && admitted.since < asked)
            .filter_map(|admitted| match admitted.admission.session {
                SessionId::Vpn(id) => Some(id),
                SessionId::Web(_) => None,
            })
            .filter(|id| !listed.contains(id) && !self.registry.is_present(*id))
            .map(SessionId::Vpn)
            .collect();
        self.cookies_gone(gone);
    }

    /// R4: a cookie that is refused holds nobody's place, however long ocserv keeps it: a fresh login finds it free.
    pub(in crate::daemon) fn cookie_refused(&mut self, id: SafeId) {
        if self.cluster.as_ref().is_some_and(|link| link.admissions.contains_key(&SessionId::Vpn(id))) {
            self.cookies_gone(vec![SessionId::Vpn(id)]);
        }
    }

    pub(super) fn cookies_gone(&mut self, gone: Vec<SessionId>) {
        if gone.is_empty() {
            return;
        }
        for session in gone {
            if let Some(link) = &mut self.cluster {
                link.admissions.remove(&session);
            }
            self.registry.write(Write::AdmissionGone(session));
            self.tell_rules(ClusterEvent::CookieGone { session });
        }
        self.save();
    }

    /// Whether the cookie of a session that nobody is there with is still good: nobody else would ask.
    pub(super) fn look_for_absent(&mut self, at: Duration) {
        let Some(link) = &mut self.cluster else { return };
        // as [`Self::cookie_refused`], of those that the rules let in a moment later
        let is_over = |session: &SessionId| match session {
            SessionId::Vpn(id) => self.registry.refuses(*id),
            SessionId::Web(key) => !self.registry.is_web_alive(key),
        };
        let over: Vec<SessionId> =
            link.admissions.keys().filter(|session| is_over(session)).copied().collect();
        self.cookies_gone(over);
        let Some(link) = &mut self.cluster else { return };
        let mut servers = BTreeSet::new();
        for admitted in link.admissions.values_mut() {
            let (SessionId::Vpn(id), Some(server)) = (admitted.admission.session, &admitted.admission.server)
            else {
                continue;
            };
            if self.registry.is_present(id) {
                admitted.absent = None;
                continue;
            }
            // soon at first: most cookies go with their client
            let (since, asked) = *admitted.absent.get_or_insert((at, Duration::ZERO));
            if at >= asked + (asked.saturating_sub(since)).min(ABSENT_AGAIN) {
                admitted.absent = Some((since, at));
                servers.insert(server.clone());
            }
        }
        servers.into_iter().for_each(|server| self.handle(Event::WantCookies { server }));
    }
}
