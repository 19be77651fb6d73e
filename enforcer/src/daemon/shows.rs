//! What people are shown: the registry's words as the control API's records.

use std::collections::BTreeMap;
use std::time::Duration;

use prost::Message as _;

use crate::control::{Page, api};
use crate::ocserv;
use crate::registry::{LayerResult, Now, Number, Phase, Receipt, Revocation, RevocationState, SessionRow};

use super::Daemon;

/// A part of a list ends with the revocation by which it comes to one of these: so many of them, bytes, or entries that
/// were looked up in the kernel (a microsecond each). A message of gRPC may have 4 MiB, and a revocation alone has some
/// hundreds of bytes, at the very worst some hundred KiB.
const MAX_PART: usize = 512;
const PART_BYTES: usize = 256 * 1_024;
const PART_ENTRIES: usize = 4_096;
/// How many notes of a revocation are listed.
const MAX_NOTES: usize = 100;

impl Daemon {
    pub(super) fn users(&self) -> Vec<api::User> {
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
        for session in self.registry.web_sessions() {
            let user = users
                .entry(session.user.clone())
                .or_insert_with(|| api::User { user: session.user.clone(), ..api::User::default() });
            user.sessions += 1;
            user.web += 1;
            if user.since == 0 || session.since < user.since {
                user.since = session.since;
            }
            if !user.servers.iter().any(|server| server == "web") {
                user.servers.push("web".into());
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
        users
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
