//! What people are shown: the registry's words as the control API's records.

use std::time::Duration;

use prost::Message as _;

use crate::control::{Page, UsersFrom, api};
use crate::ocserv;
use crate::registry::{
    self, LayerResult, Now, Number, Phase, Receipt, Revocation, RevocationState, SessionRow, UserRow,
};

use super::Daemon;

/// A part of a list has so many users. A part of the list of revocations ends with the one by which it comes to one of these: so many of them, bytes, or entries that
/// were looked up in the kernel (a microsecond each). A message of gRPC may have 4 MiB, and a revocation alone has some
/// hundreds of bytes, at the very worst some hundred KiB.
const MAX_PART: usize = 512;
const PART_BYTES: usize = 256 * 1_024;
const PART_ENTRIES: usize = 4_096;
/// How many notes of a revocation are listed.
const MAX_NOTES: usize = 100;

impl Daemon {
    /// Some users, and where to go on.
    pub(super) fn users(&self, from: UsersFrom) -> (Vec<api::User>, Option<UsersFrom>) {
        let from = match from {
            UsersFrom::Name(after) => registry::UsersFrom::Name(after),
            UsersFrom::Lock(after) => registry::UsersFrom::Lock(after),
        };
        let (rows, next) = self.registry.users_after(&from, MAX_PART);
        let next = next.map(|next| match next {
            registry::UsersFrom::Name(after) => UsersFrom::Name(after),
            registry::UsersFrom::Lock(after) => UsersFrom::Lock(after),
        });
        let now = super::now();
        (rows.into_iter().map(|row| user(row, now)).collect(), next)
    }

    /// A part of the list: as much as the loop can tell without keeping others waiting.
    ///
    /// What is in the kernel is looked up for these alone, entry by entry: a dump of tables with a million entries takes
    /// a second.
    pub(super) fn revocations(&self, page: Page) -> (api::Revocations, Option<Page>) {
        let up_to = page.up_to.unwrap_or(Number::MAX).min(self.registry.next_number().saturating_sub(1));
        let mut rest =
            self.registry.revocations_after(page.after).take_while(|r| r.number <= up_to).peekable();
        let mut part = Vec::new();
        let (mut bytes, mut looked) = (0, 0);
        while part.len() < MAX_PART
            && bytes < PART_BYTES
            && looked < PART_ENTRIES
            && let Some(revocation) = rest.next()
        {
            let info = self.revocation(revocation, &mut looked);
            bytes += info.encoded_len();
            part.push(info);
        }
        let last = part.last().filter(|_| rest.peek().is_some());
        let next = last.map(|info| Page { after: info.number, up_to: Some(up_to) });
        (api::Revocations { revocations: part }, next)
    }

    /// `looked` grows by the entries that were looked up.
    fn revocation(&self, r: &Revocation, looked: &mut usize) -> api::RevocationInfo {
        // what was taken out meanwhile is remembered
        let (mut entries, mut hits) = (0, self.past_hits.get(&r.number).copied().unwrap_or_default());
        for entry in self.registry.holdings().in_kernel_by(r.number) {
            *looked += 1;
            if let Some(its) = self.dataplane.hits_and_last(entry) {
                entries += 1;
                hits = hits.and(its);
            }
        }
        let now = super::now();
        let receipt = self.registry.receipt_of(r.number, now);
        let complete = receipt.as_ref().is_some_and(Receipt::is_complete);
        api::RevocationInfo {
            number: r.number,
            target: r.order.target.to_string(),
            by: r.order.by.clone(),
            reason: r.order.reason.clone(),
            at: r.at.wall,
            state: state(r.state, complete).into(),
            entries,
            hits: hits.count,
            layers: receipt.iter().flat_map(|receipt| receipt.layers.iter().map(layer)).collect(),
            notes: receipt.map(|receipt| few(receipt.notes)).unwrap_or_default(),
            until: r.order.stands.map_or(0, |stands| r.at.wall + stands.as_secs()),
            last_hit: if hits.last_ns == 0 { 0 } else { wall(now, Duration::from_nanos(hits.last_ns)) },
            // also if this run has begun within the same second
            hits_since: if r.is_adopted() { self.started_at.max(r.at.wall + 1) } else { r.at.wall },
        }
    }

    pub(super) fn count_revocations(&self) -> api::RevocationCount {
        api::RevocationCount {
            in_force: self.registry.revocations_in_force() as u64,
            remembered: self.registry.revocations_remembered() as u64,
        }
    }
}

fn user(row: UserRow, now: Now) -> api::User {
    let mut servers: Vec<String> = row.servers.iter().map(ToString::to_string).collect();
    if row.web > 0 {
        servers.push("web".into());
    }
    let until = row.lock.as_ref().and_then(|lock| lock.until);
    let identity = row.lock.as_ref().and_then(|lock| lock.identity.as_ref());
    let unknown = row.lock.as_ref().is_some_and(|lock| lock.identity.is_none());
    api::User {
        // the map has a digest alone
        user: if unknown { "(found in the kernel)".to_owned() } else { row.user },
        sessions: row.sessions,
        web: row.web,
        revoked: row.revoked,
        servers,
        since: row.since,
        realm: identity.map(|who| who.realm.clone()).unwrap_or_default(),
        lock: row.lock.as_ref().map_or(0, |lock| lock.number),
        locked_until: until.map_or(0, |until| now.wall + until.saturating_sub(now.mono).as_secs()),
    }
}

/// A moment of the monotonic clock that has passed, in unix seconds, by the clock on the wall as it is now.
fn wall(now: Now, moment: Duration) -> u64 {
    now.wall.saturating_sub(now.mono.saturating_sub(moment).as_secs())
}

/// The first of the notes; how many more there are is said.
fn few(mut notes: Vec<String>) -> Vec<String> {
    let more = notes.len().saturating_sub(MAX_NOTES);
    if more > 0 {
        notes.truncate(MAX_NOTES);
        notes.push(format!("… and {more} more"));
    }
    notes
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
        // of web sessions alone
        ..api::SessionInfo::default()
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
