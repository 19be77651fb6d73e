//! What the registry can tell of itself.

use std::net::IpAddr;

use crate::session::{Cookie, SafeId, ServerName};

use super::{Number, Order, Phase, Registry, Session, Target};

/// A session as people see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRow {
    pub server: ServerName,
    pub id: i32,
    pub user: String,
    pub group: String,
    pub vhost: String,
    pub client: String,
    pub device: String,
    pub addresses: Vec<IpAddr>,
    pub safe_id: Option<SafeId>,
    pub since: u64,
    pub phase: Option<Phase>,
    pub revoked: Option<Number>,
}

impl SessionRow {
    pub(super) fn of(session: &Session) -> Self {
        let seen = &session.observed;
        Self {
            server: session.server.clone(),
            id: seen.id,
            user: seen.user.clone(),
            group: seen.group.clone(),
            vhost: seen.vhost.clone(),
            client: seen.client.clone(),
            device: seen.device.clone().unwrap_or_default(),
            addresses: seen.addresses.clone(),
            safe_id: seen.safe_id,
            since: seen.since,
            phase: Some(session.phase),
            revoked: None,
        }
    }

    fn offline(server: &ServerName, cookie: &Cookie, revoked: Option<Number>) -> Self {
        Self {
            server: server.clone(),
            id: 0,
            user: cookie.user.clone(),
            group: String::new(),
            vhost: cookie.vhost.clone(),
            client: String::new(),
            device: String::new(),
            addresses: Vec::new(),
            safe_id: Some(cookie.safe_id),
            since: cookie.created,
            phase: None,
            revoked,
        }
    }
}

/// What a revocation would touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preview {
    pub sessions: Vec<SessionRow>,
}

impl Registry {
    /// The sessions that are known, and the cookies without one.
    pub fn rows(&self, cookies: &[(ServerName, Vec<Cookie>)]) -> Vec<SessionRow> {
        let mut rows: Vec<SessionRow> = (self.sessions.values().filter(|s| !s.has_worker_gone()))
            .map(|session| SessionRow {
                revoked: self.numbers_of(session).first().copied(),
                ..SessionRow::of(session)
            })
            .collect();
        for (server, cookies) in cookies {
            for cookie in cookies {
                if self.sessions.with_safe_id(cookie.safe_id).all(Session::has_worker_gone) {
                    let revoked =
                        self.marks.get(&cookie.safe_id).and_then(|mark| mark.numbers.first().copied());
                    rows.push(SessionRow::offline(server, cookie, revoked));
                }
            }
        }
        rows
    }

    /// What the order would touch, with nothing done.
    pub fn preview(&self, order: &Order, cookies: &[(ServerName, Vec<Cookie>)]) -> Preview {
        let sessions = (self.rows(cookies).into_iter())
            .filter(|row| order.server.as_ref().is_none_or(|only| *only == row.server))
            .filter(|row| match &order.target {
                Target::User(_) | Target::Person(_) | Target::Lock(_) => {
                    self.is_meant(&order.target, &row.server, &row.vhost, &row.user)
                }
                Target::Id(id) => row.id == *id && row.phase.is_some(),
                Target::Session(id) => row.safe_id == Some(*id),
                _ => false,
            })
            .collect();
        Preview { sessions }
    }

    /// The ids of a user's (or of that one) session, for ocserv's own disconnect.
    pub fn ids_of(&self, order: &Order) -> Vec<(ServerName, i32)> {
        (self.preview(order, &[]).sessions.into_iter()).map(|row| (row.server, row.id)).collect()
    }
}
