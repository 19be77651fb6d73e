//! What people are shown: the registry's words as the control API's records.

use std::collections::BTreeMap;

use tonic::Status;

use crate::control::api;
use crate::ocserv;
use crate::registry::{LayerResult, Phase, Receipt, RevocationState, SessionRow};

use super::Daemon;

impl Daemon {
    pub(super) fn users(&self) -> api::Users {
        let mut users: BTreeMap<String, api::User> = BTreeMap::new();
        for row in self.registry.rows(&[]) {
            let user = users
                .entry(row.user.clone())
                .or_insert_with(|| api::User { user: row.user.clone(), ..api::User::default() });
            user.sessions += 1;
            user.revoked += u32::from(row.revoked.is_some());
            if user.since == 0 || row.since < user.since {
                user.since = row.since;
            }
            let server = row.server.to_string();
            if !user.servers.contains(&server) {
                user.servers.push(server);
            }
        }
        let mut users: Vec<api::User> = users.into_values().collect();
        let (realms, now) = (self.config.realms(), super::now());
        for lock in self.registry.locks() {
            let until = lock.until.map_or(0, |until| now.wall + until.saturating_sub(now.mono).as_secs());
            let mut any = false;
            for user in &mut users {
                // a name may be several people's, and then the lock is told of each
                let is =
                    lock.identity.as_ref().is_some_and(|who| realms.person(&who.realm, &user.user) == *who);
                if is {
                    any = true;
                    (user.lock, user.locked_until) = (lock.number, until);
                    user.realm = lock.identity.as_ref().map(|who| who.realm.clone()).unwrap_or_default();
                }
            }
            if !any {
                let (user, realm) = match lock.identity {
                    Some(who) => (who.name, who.realm),
                    None => ("(found in the kernel)".to_owned(), String::new()),
                };
                users.push(api::User {
                    user,
                    lock: lock.number,
                    locked_until: until,
                    realm,
                    ..api::User::default()
                });
            }
        }
        users.sort_by(|a, b| a.user.cmp(&b.user));
        api::Users { users }
    }

    pub(super) fn revocations(&self) -> Result<api::Revocations, Status> {
        let stored = self.dataplane.entries().map_err(|error| Status::internal(format!("{error:#}")))?;
        let mut by_number: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for entry in &stored {
            let (entries, hits) = by_number.entry(entry.revocation).or_default();
            *entries += 1;
            *hits += entry.hits;
        }
        let revocations = (self.registry.revocations())
            .map(|r| {
                let (entries, hits) = by_number.get(&r.number).copied().unwrap_or_default();
                let receipt = self.registry.receipt_of(r.number, super::now());
                let complete = receipt.as_ref().is_some_and(Receipt::is_complete);
                api::RevocationInfo {
                    number: r.number,
                    target: r.order.target.to_string(),
                    by: r.order.by.clone(),
                    reason: r.order.reason.clone(),
                    at: r.at.wall,
                    state: state(r.state, complete).into(),
                    entries,
                    // what was taken out meanwhile is remembered
                    hits: hits + self.past_hits.get(&r.number).copied().unwrap_or_default(),
                    layers: receipt.iter().flat_map(|receipt| receipt.layers.iter().map(layer)).collect(),
                    notes: receipt.map(|receipt| receipt.notes).unwrap_or_default(),
                    until: r.order.stands.map_or(0, |stands| r.at.wall + stands.as_secs()),
                }
            })
            .collect();
        Ok(api::Revocations { revocations })
    }
}

fn state(state: RevocationState, complete: bool) -> &'static str {
    match (state, complete) {
        (RevocationState::Acting, _) => "acting",
        (RevocationState::Looking, true) => "looking",
        (RevocationState::Looking, false) => "incomplete",
        (RevocationState::Settled, true) => "complete",
        (RevocationState::Settled, false) => "incomplete",
        (RevocationState::Lifted, _) => "lifted",
        (RevocationState::Expired, _) => "expired",
    }
}

pub(super) fn row(row: &SessionRow) -> api::SessionInfo {
    api::SessionInfo {
        server: row.server.to_string(),
        id: row.id,
        user: ocserv::printable(&row.user),
        group: ocserv::printable(&row.group),
        vhost: ocserv::printable(&row.vhost),
        client: row.client.clone(),
        device: row.device.clone(),
        addresses: row.addresses.iter().map(ToString::to_string).collect(),
        safe_id: row.safe_id.map(|id| id.to_string()).unwrap_or_default(),
        since: row.since,
        state: match row.phase {
            Some(Phase::Admitting) => "admitting",
            Some(Phase::Live) => "live",
            None => "offline",
        }
        .into(),
        revocation: row.revoked.unwrap_or(0),
    }
}

pub(super) fn layer(layer: &LayerResult) -> api::Layer {
    api::Layer {
        layer: layer.layer.name().into(),
        done: layer.done,
        failed: layer.failed,
        guarded: layer.guarded,
        text: layer.text.clone(),
    }
}
