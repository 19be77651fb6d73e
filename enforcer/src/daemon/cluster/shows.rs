//! What the daemon tells of the other gateways.

use std::collections::BTreeMap;

use tonic::Status;

use crate::cluster::{self as etcd, Change, Key, Known, Value};
use crate::control::{AllSessionsFrom, Reply, api};
use crate::registry::cluster::ClusterEvent;
use crate::session::{GatewayId, SessionId};

use super::super::checks::finding;
use super::super::{Answerer, Daemon, now};
use super::Link;

/// Tickets from there on are of lists, and not the rules'.
pub(super) const LISTS: etcd::Ticket = 1 << 62;
/// How many lists may be asked for at once.
const MOST_LISTS: usize = 64;

/// What is only for people.
pub(super) struct Shows {
    etcd: State,
    /// Unix seconds.
    since: u64,
    /// etcd's id.
    cluster: Option<u64>,
    /// By what a gateway says of itself: its name, its version, and when that was last seen (unix seconds).
    gateways: BTreeMap<GatewayId, Facts>,
    pub malformed: u64,
    lists: BTreeMap<etcd::Ticket, Listing>,
    last_list: etcd::Ticket,
}

#[derive(Default)]
struct Facts {
    name: String,
    version: String,
    seen: u64,
}

enum State {
    Away(String),
    Replaced(String),
    Up(String),
}

/// Whose sessions are on their way to somebody.
pub(in crate::daemon) struct Listing {
    /// `None`: this gateway looks for what it has left behind.
    reply: Option<Answerer>,
    gateway: GatewayId,
    /// Where those of the others begin.
    next: Option<AllSessionsFrom>,
}

impl Shows {
    pub(super) fn new(cluster: Option<u64>) -> Self {
        Self {
            etcd: State::Away("it was not reached yet".into()),
            since: now().wall,
            cluster,
            gateways: BTreeMap::new(),
            malformed: 0,
            lists: BTreeMap::new(),
            last_list: LISTS,
        }
    }

    pub(super) fn cluster(&self) -> Option<u64> {
        self.cluster
    }

    /// True: it is not the one that was known, or none was.
    pub(super) fn up(&mut self, known: Known, endpoint: String) -> bool {
        (self.etcd, self.since) = (State::Up(endpoint), now().wall);
        self.cluster.replace(known.cluster) != Some(known.cluster)
    }

    /// Whether it was there.
    pub(super) fn down(&mut self, why: &str) -> bool {
        let was_up = matches!(self.etcd, State::Up(_));
        if was_up {
            self.since = now().wall;
        }
        if !matches!(self.etcd, State::Replaced(_)) {
            self.etcd = State::Away(why.to_owned());
        }
        was_up
    }

    pub(super) fn replaced(&mut self, text: &str) {
        (self.etcd, self.since) = (State::Replaced(text.to_owned()), now().wall);
    }

    pub(super) fn seen(&mut self, changes: &[Change], at: u64) {
        for change in changes {
            let etcd::Now::Is(value) = &change.now else {
                if let (Key::Gateway(id), etcd::Now::Gone) = (&change.key, &change.now) {
                    self.gateways.remove(id);
                }
                continue;
            };
            match (&change.key, value) {
                (Key::Gateway(id), Value::Gateway { name, version }) => {
                    let facts = self.gateways.entry(*id).or_default();
                    (facts.name, facts.version) = (name.clone(), version.clone());
                }
                (Key::Alive(id), Value::Alive { at: told, .. }) => self.contact(*id, at.min(*told)),
                (Key::Acknowledged(id) | Key::Barrier(id), _) => self.contact(*id, at),
                _ => {}
            }
        }
    }

    /// Of one that is known: others would be without bound.
    fn contact(&mut self, id: GatewayId, at: u64) {
        if let Some(facts) = self.gateways.get_mut(&id) {
            facts.seen = facts.seen.max(at);
        }
    }
}

impl Link {
    pub(super) fn name_of(&self, id: GatewayId) -> Option<String> {
        self.shows.gateways.get(&id).map(|facts| crate::ocserv::printable(&facts.name))
    }
}

impl Daemon {
    pub(in crate::daemon) fn show_gateways(&self) -> Result<Reply, Status> {
        let link = self.cluster.as_ref().ok_or_else(no_cluster)?;
        let at = now().wall;
        let away = link.rules.is_away();
        let gateways = link.rules.gateways().into_iter().map(|row| {
            // nobody knows of the others while etcd is away
            let alive = row.alive && !away;
            let facts = link.shows.gateways.get(&row.id);
            let seen = facts.map_or(0, |facts| facts.seen);
            api::Gateway {
                name: row.name,
                id: row.id.to_string(),
                is_me: row.is_me,
                alive,
                version: facts.map(|facts| facts.version.clone()).unwrap_or_default(),
                // its lease says that it is there
                last_contact: if alive { at } else { seen },
                acknowledged: row.acknowledged,
                pending: row.pending,
            }
        });
        let (endpoint, state) = match &link.shows.etcd {
            State::Up(endpoint) => (endpoint.clone(), "connected".to_owned()),
            State::Away(why) => (String::new(), format!("away: {why}")),
            State::Replaced(text) => (String::new(), format!("replaced: {text}")),
        };
        let etcd = api::Etcd {
            endpoint,
            state,
            since: link.shows.since,
            read: link.rules.read(),
            in_force: link.rules.known(),
            letters: link.rules.untold() as u64,
            malformed: link.shows.malformed,
        };
        Ok(Reply::Gateways(api::Gateways { etcd: Some(etcd), gateways: gateways.collect() }))
    }

    /// The sessions of all gateways, one gateway's after the other's.
    pub(in crate::daemon) fn show_all_sessions(&mut self, after: AllSessionsFrom, reply: Answerer) {
        let Some(link) = &mut self.cluster else {
            let _ = reply.send(Err(no_cluster()));
            return;
        };
        let ids = link.rules.gateways().into_iter().map(|row| row.id);
        let mut rest: Vec<GatewayId> = ids.filter(|id| after.0.is_none_or(|after| *id > after)).collect();
        rest.sort_unstable();
        let Some(gateway) = rest.first().copied() else {
            let _ = reply.send(Ok(Reply::AllSessions(Vec::new(), None)));
            return;
        };
        let next = (rest.len() > 1).then_some(AllSessionsFrom(Some(gateway)));
        if link.shows.lists.len() >= MOST_LISTS {
            let _ =
                reply.send(Err(Status::resource_exhausted("too many ask for the sessions of all gateways")));
            return;
        }
        link.shows.last_list += 1;
        let ticket = link.shows.last_list;
        let order = etcd::Order::List { ticket, what: etcd::Listing::Sessions(gateway) };
        if link.orders.try_send(order).is_err() {
            let _ = reply.send(Err(Status::unavailable("etcd has too many orders")));
            return;
        }
        link.shows.lists.insert(ticket, Listing { reply: Some(reply), gateway, next });
    }

    /// What etcd has of this gateway's sessions: some may be over, and an earlier run could not say so.
    pub(super) fn list_own_sessions(&mut self) {
        let Some(link) = &mut self.cluster else { return };
        link.shows.last_list += 1;
        let (ticket, gateway) = (link.shows.last_list, link.me);
        let order = etcd::Order::List { ticket, what: etcd::Listing::Sessions(gateway) };
        // without it they are found with the next connection
        if link.orders.try_send(order).is_ok() {
            link.shows.lists.insert(ticket, Listing { reply: None, gateway, next: None });
        }
    }

    fn find_strays(&mut self, outcome: etcd::Outcome) {
        let etcd::Outcome::Listed { found, .. } = outcome else { return };
        for change in found {
            let Key::Admission(_, who, session) = change.key else { continue };
            let is_known = self.cluster.as_ref().is_some_and(|link| link.admissions.contains_key(&session));
            if !is_known && !self.is_at_the_door(session) {
                self.tell_rules(ClusterEvent::Stray { who, session });
            }
        }
    }

    pub(super) fn cluster_listed(&mut self, ticket: etcd::Ticket, outcome: etcd::Outcome) {
        let Some(link) = &mut self.cluster else { return };
        let Some(Listing { reply, gateway, next }) = link.shows.lists.remove(&ticket) else { return };
        let Some(reply) = reply else { return self.find_strays(outcome) };
        let found = match outcome {
            etcd::Outcome::Listed { found, .. } => found,
            etcd::Outcome::Refused { why }
            | etcd::Outcome::NotSent { why }
            | etcd::Outcome::NotKnown { why } => {
                let text = format!("etcd does not tell the sessions of all gateways: {why}");
                let _ = reply.send(Err(Status::unavailable(text)));
                return;
            }
            etcd::Outcome::Done { .. } => return,
        };
        let name = link.name_of(gateway).unwrap_or_default();
        let alive = link.rules.gateways().iter().any(|row| row.id == gateway && row.alive);
        let rows = found.into_iter().filter_map(|change| {
            let (Key::Admission(_, who, session), etcd::Now::Is(Value::Admission { at })) =
                (change.key, change.now)
            else {
                return None;
            };
            let kind = match session {
                SessionId::Vpn(_) => "vpn",
                SessionId::Web(_) => "web",
            };
            Some(api::ClusterSession {
                gateway: name.clone(),
                gateway_id: gateway.to_string(),
                realm: who.realm,
                user: who.name,
                kind: kind.into(),
                session: session.to_string(),
                since: at,
                alive,
            })
        });
        let _ = reply.send(Ok(Reply::AllSessions(rows.collect(), next)));
    }

    /// There are other gateways, and they cannot be told anything.
    pub(in crate::daemon) fn others_are_away(&self) -> bool {
        self.cluster.as_ref().is_some_and(|link| link.rules.is_away())
    }

    pub(in crate::daemon) fn cluster_findings(&self) -> Vec<api::Finding> {
        let Some(link) = &self.cluster else { return Vec::new() };
        let mut findings = Vec::new();
        findings.push(match &link.shows.etcd {
            State::Up(endpoint) => finding("ok", format!("cluster: etcd answers: {endpoint}"), ""),
            State::Away(why) => finding(
                "error",
                format!("cluster: etcd is away: {why}"),
                "what is known stays in force; logins are let in or refused as [cluster] when-away says",
            ),
            State::Replaced(text) => finding(
                "error",
                format!("cluster: {text}"),
                "nothing is read from it or written to it until then",
            ),
        });
        let untold = link.rules.untold();
        if untold > 0 {
            findings.push(finding(
                "warning",
                format!("cluster: the other gateways have not been told of {untold} decisions"),
                "they are told when etcd is there",
            ));
        }
        for row in link.rules.gateways().into_iter().filter(|row| !row.is_me && row.pending > 0 && !row.alive)
        {
            findings.push(finding(
                "warning",
                format!("cluster: {} is away, and has not learned of {} decisions", row.name, row.pending),
                "if it is gone for good: enforcer cluster remove tells how to take it out",
            ));
        }
        if link.shows.malformed > 0 {
            findings.push(finding(
                "warning",
                format!(
                    "cluster: etcd has, or had, {} keys that are no records of ours",
                    link.shows.malformed
                ),
                "enforcer show events names them",
            ));
        }
        findings
    }
}

fn no_cluster() -> Status {
    Status::failed_precondition("this daemon is in no cluster: [cluster] is not configured")
}
