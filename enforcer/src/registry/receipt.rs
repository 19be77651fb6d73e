//! What a revocation did, layer by layer; also what it could not do.

use std::collections::BTreeSet;

use crate::session::{Entry, ServerName};

use super::durable::Disk;
use super::revocation::{Connections, EndingState, Revocation, Step};
use super::servers::ServerState;
use super::show::SessionRow;
use super::{GateState, Now, Number, Registry, Target, WebRow};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    pub number: Number,
    pub target: String,
    pub by: String,
    pub reason: String,
    /// Unix seconds.
    pub at: u64,
    pub elapsed: std::time::Duration,
    pub layers: Vec<LayerResult>,
    pub sessions: Vec<SessionRow>,
    pub web: Vec<WebRow>,
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    Packets,
    Sockets,
    Cookie,
    /// What the kernel's connection tracking has of the sessions' tunnel addresses.
    Conntrack,
    /// Sessions at the web gateway.
    Web,
    /// What a reboot must not lose.
    Disk,
}

impl Layer {
    pub fn name(self) -> &'static str {
        match self {
            Self::Packets => "packets",
            Self::Sockets => "sockets",
            Self::Cookie => "cookie",
            Self::Conntrack => "conntrack",
            Self::Web => "web",
            Self::Disk => "disk",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerResult {
    pub layer: Layer,
    pub done: u64,
    pub failed: u64,
    /// Still valid at ocserv, and refused at its gate; of a web session: over, and no gateway was there to be told.
    pub guarded: u64,
    pub text: String,
}

impl Receipt {
    /// Nothing failed in any layer. A cookie that this ocserv cannot take back counts as done where the gate
    /// that refuses it is in place.
    pub fn is_complete(&self) -> bool {
        self.layers.iter().all(|layer| layer.failed == 0)
    }

    pub(super) fn in_one_line(&self) -> String {
        let layers: Vec<String> =
            self.layers.iter().map(|l| format!("{}: {}", l.layer.name(), l.text)).collect();
        let head = if self.is_complete() { "done" } else { "in part" };
        format!("{head}; {}", layers.join("; "))
    }
}

fn count(n: u64, one: &str, many: &str) -> Option<String> {
    match n {
        0 => None,
        1 => Some(format!("1 {one}")),
        n => Some(format!("{n} {many}")),
    }
}

fn sentence(parts: impl IntoIterator<Item = Option<String>>, otherwise: &str) -> String {
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { otherwise.into() } else { parts.join(", ") }
}

impl Registry {
    /// The receipt of a revocation as it stands now.
    pub fn receipt_of(&self, number: Number, now: Now) -> Option<Receipt> {
        self.receipt(number, now)
    }

    pub(super) fn receipt(&self, number: Number, now: Now) -> Option<Receipt> {
        let revocation = self.revocations.get(&number)?;
        let mut notes = Vec::new();
        let held;
        let entries = if revocation.is_explicit() {
            held = self.holdings.of(number);
            &held
        } else {
            &revocation.packets
        };
        // it has nothing that a packet, a socket or a server could tell of
        let is_web = matches!(revocation.order.target, Target::Web(_));
        let mut layers =
            if is_web { Vec::new() } else { vec![packets(revocation, entries), sockets(revocation)] };
        if !revocation.servers.is_empty() || !revocation.safe_ids.is_empty() {
            layers.push(self.cookie(revocation, &mut notes));
        }
        if !revocation.is_explicit() && !is_web {
            layers.push(conntrack(revocation, &mut notes));
        }
        if !revocation.web.is_empty() {
            layers.push(web(revocation, &mut notes));
        }
        layers.push(self.disk(revocation, &mut notes));
        notes.extend(revocation.failures.values().collect::<BTreeSet<_>>().into_iter().cloned());
        if let Some(Err(why)) = &revocation.flow_sockets {
            notes.push(format!("the flow's socket: {why}"));
        }
        for ending in revocation.sessions.values() {
            if let EndingState::Left(why) = &ending.state {
                notes.push(format!("{}: id {}: {why}", ending.info.server, ending.info.id));
            }
        }
        Some(Receipt {
            number,
            target: revocation.order.target.to_string(),
            by: revocation.order.by.clone(),
            reason: revocation.order.reason.clone(),
            at: revocation.at.wall,
            elapsed: now.mono.saturating_sub(revocation.at.mono),
            layers,
            sessions: revocation.sessions.values().map(|ending| ending.info.clone()).collect(),
            web: revocation.web.rows(),
            notes,
        })
    }

    pub(super) fn lifted_receipt(&self, number: Number, held: &[Entry], now: Now) -> Option<Receipt> {
        let revocation = self.revocations.get(&number)?;
        let at_gate =
            held.iter().filter(|entry| matches!(entry, Entry::SafeId(_) | Entry::Cutoff(_))).count() as u64;
        let locks = held.iter().filter(|entry| matches!(entry, Entry::Lock(_))).count() as u64;
        let others = held.len() as u64 - at_gate - locks;
        let layer = |layer, done, text| LayerResult { layer, done, failed: 0, guarded: 0, text };
        let mut notes = Vec::new();
        if revocation.safe_ids.values().any(|fate| fate.gone) {
            notes.push("a cookie that ocserv has deleted stays deleted: its user logs in anew".into());
        }
        if !revocation.web.is_empty() {
            notes.push("a web session that was ended stays ended: its user logs in anew".into());
        }
        Some(Receipt {
            number,
            target: revocation.order.target.to_string(),
            by: revocation.order.by.clone(),
            reason: revocation.order.reason.clone(),
            at: revocation.at.wall,
            elapsed: now.mono.saturating_sub(now.mono),
            layers: vec![
                layer(
                    Layer::Packets,
                    others,
                    count(others, "entry taken out of the kernel", "entries taken out of the kernel")
                        .unwrap_or_else(|| "nothing was in force".into()),
                ),
                layer(
                    Layer::Cookie,
                    at_gate + locks,
                    sentence(
                        [
                            count(locks, "lock taken back", "locks taken back"),
                            count(
                                at_gate,
                                "cookie no longer refused at the gate",
                                "cookies no longer refused at the gate",
                            ),
                        ],
                        "none was refused",
                    ),
                ),
            ],
            sessions: Vec::new(),
            web: Vec::new(),
            notes,
        })
    }

    fn cookie(&self, revocation: &Revocation, notes: &mut Vec<String>) -> LayerResult {
        let (mut gone, mut guarded, mut open) = (0, 0, 0);
        for fate in revocation.safe_ids.values() {
            let gate = fate.server.as_ref().and_then(|name| self.servers.get(name)).map(|server| server.gate);
            match (fate.gone, gate) {
                (true, _) => gone += 1,
                (false, Some(GateState::Seen | GateState::Configured)) => guarded += 1,
                (false, Some(GateState::Missing) | None) => open += 1,
            }
        }
        if open > 0 {
            notes.push(
                "ocserv has no gate of ours at its door: set connect-script to enforcer-gate in its configuration, \
                 and restart it (enforcer check tells)"
                    .into(),
            );
        }
        let mut unasked = 0;
        for (name, work) in &revocation.servers {
            let why = match (&work.cookies, &work.list) {
                (Step::Done, Step::Done) => continue,
                (Step::Failed(why), _) | (_, Step::Failed(why)) => why.as_str(),
                _ => "has not answered yet",
            };
            unasked += 1;
            notes.push(self.silent_server(name, why));
        }
        let text = sentence(
            [
                count(gone, "cookie gone from ocserv's list", "cookies gone from ocserv's list"),
                count(guarded, "cookie refused at the gate", "cookies refused at the gate"),
                count(open, "cookie NOT refused: no gate", "cookies NOT refused: no gate"),
                count(unasked, "server could not be asked", "servers could not be asked"),
            ],
            "none",
        );
        LayerResult { layer: Layer::Cookie, done: gone, failed: open + unasked, guarded, text }
    }

    fn disk(&self, revocation: &Revocation, notes: &mut Vec<String>) -> LayerResult {
        let (done, failed, text) = match &revocation.disk {
            Disk::Nothing => (0, 0, "nothing to keep across a reboot"),
            Disk::Written => (1, 0, "written"),
            Disk::OnItsWay(_) => (0, 1, "NOT written yet: lost at a reboot until it is"),
            Disk::Failed(why) => {
                notes.push(format!("the state directory: {why}; it is tried again every few seconds"));
                (0, 1, "NOT written: lost at a reboot")
            }
        };
        let of_record = LayerResult { layer: Layer::Disk, done, failed, guarded: 0, text: text.into() };
        disk_of_web(revocation, of_record, notes)
    }

    fn silent_server(&self, name: &ServerName, why: &str) -> String {
        match self.servers.get(name).map(|server| server.state) {
            Some(ServerState::Unknown) => {
                format!(
                    "{name}: not reached since the daemon started ({why}): is control-socket right, is ocserv running?"
                )
            }
            _ => format!(
                "{name}: {why}. The user's cookies made up to now are refused at its gate; the rest follows by itself"
            ),
        }
    }
}

fn packets(revocation: &Revocation, entries: &[Entry]) -> LayerResult {
    let of = |which: fn(&Entry) -> bool| entries.iter().filter(|entry| which(entry)).count() as u64;
    let devices = of(|entry| matches!(entry, Entry::Device(_)));
    let addresses = of(|entry| matches!(entry, Entry::Address(..)));
    let flows = of(|entry| matches!(entry, Entry::Flow(..)));
    let tokens = of(|entry| matches!(entry, Entry::Token(_)));
    let failed = revocation.failures.len() as u64;
    let text = sentence(
        [
            count(devices, "device", "devices"),
            count(addresses, "address", "addresses"),
            count(flows, "flow", "flows"),
            count(tokens, "token", "tokens"),
            count(failed, "NOT entered", "NOT entered"),
        ],
        "none to drop",
    );
    let text = if devices + addresses + flows + tokens > 0 { format!("dropped by {text}") } else { text };
    LayerResult {
        layer: Layer::Packets,
        done: devices + addresses + flows + tokens,
        failed,
        guarded: 0,
        text,
    }
}

fn sockets(revocation: &Revocation) -> LayerResult {
    let (mut polite, mut destroyed, mut killed, mut left, mut at_gate, mut pending, mut gone) =
        (0, 0, 0, 0, 0, 0, 0);
    let mut unsupported = false;
    for ending in revocation.sessions.values() {
        match &ending.state {
            EndingState::AtGate => at_gate += 1,
            EndingState::Pending => pending += 1,
            EndingState::Left(_) => left += 1,
            EndingState::Gone => gone += 1,
            EndingState::Ended(ended) => {
                polite += u64::from(ended.politely);
                destroyed += ended.destroyed;
                killed += u64::from(ended.killed);
                unsupported |= ended.unsupported;
            }
        }
    }
    let mut done = revocation.sessions.len() as u64 - left - at_gate - pending;
    match &revocation.flow_sockets {
        Some(Ok(n)) => {
            destroyed += n;
            done += n;
        }
        Some(Err(_)) => left += 1,
        None => {}
    }
    let text = sentence(
        [
            count(polite, "closed by ocserv", "closed by ocserv"),
            count(destroyed, "socket destroyed", "sockets destroyed"),
            count(killed, "worker killed", "workers killed"),
            count(gone, "closed", "closed"),
            unsupported.then(|| "this kernel has no SOCK_DESTROY".to_owned()),
            count(
                at_gate,
                "still in its connect-script, to be refused",
                "still in their connect-scripts, to be refused",
            ),
            count(pending, "not closed yet", "not closed yet"),
            count(left, "NOT closed", "NOT closed"),
        ],
        "none open",
    );
    LayerResult { layer: Layer::Sockets, done, failed: left + pending, guarded: at_gate, text }
}

fn conntrack(revocation: &Revocation, notes: &mut Vec<String>) -> LayerResult {
    let (mut gone, mut pending, mut failed) = (0, 0, 0);
    let untracked = |state: &Connections| *state == Connections::NotTracked;
    for ((address, _), state) in &revocation.connections {
        match state {
            Connections::Gone(count) => gone += count,
            Connections::NotTracked => {}
            Connections::Pending { .. } => pending += 1,
            Connections::Failed(why) => {
                failed += 1;
                notes.push(format!("connections of {address} are still tracked: {why}"));
            }
        }
    }
    let any = !revocation.connections.is_empty();
    let none = match any && revocation.connections.values().all(untracked) {
        true => "not tracked here",
        false => "none to take out",
    };
    let text = sentence(
        [
            count(gone, "connection taken out", "connections taken out"),
            count(pending, "address not looked at yet", "addresses not looked at yet"),
            count(failed, "address NOT cleared", "addresses NOT cleared"),
        ],
        none,
    );
    LayerResult { layer: Layer::Conntrack, done: gone, failed: pending + failed, guarded: 0, text }
}

fn web(revocation: &Revocation, notes: &mut Vec<String>) -> LayerResult {
    let (counts, beyond) = (revocation.web.counts(), revocation.web.beyond());
    let missing = revocation.web.missing();
    if counts.alone > 0 {
        notes.push(
            "no web gateway is connected: one that comes learns what has ended before it serves anybody"
                .into(),
        );
    }
    for name in &missing {
        notes.push(format!(
            "{name} has not said that it closed the connections of what has ended: it uses nothing that it has kept \
             until it has begun anew, but what it had in hand may go on (does it hang?)"
        ));
    }
    if missing.is_empty() && counts.waiting > 0 {
        notes.push("not every web gateway has said yet that it closed what has ended".into());
    }
    if beyond > 0 {
        notes.push(format!(
            "{beyond} further web sessions are over, and this receipt does not follow what becomes of their connections"
        ));
    }
    let failed = counts.late + counts.waiting;
    let text = sentence(
        [
            count(counts.done + counts.destroyed, "session ended", "sessions ended"),
            count(counts.sockets, "connection closed", "connections closed"),
            count(
                counts.sockets_destroyed,
                "socket destroyed for a gateway that did not answer",
                "sockets destroyed for a gateway that did not answer",
            ),
            count(
                counts.alone,
                "session ended with no gateway there to be told",
                "sessions ended with no gateway there to be told",
            ),
            count(
                failed,
                "session ended, NOT acknowledged by every gateway",
                "sessions ended, NOT acknowledged by every gateway",
            ),
            count(beyond, "NOT followed", "NOT followed"),
        ],
        "none",
    );
    let done = counts.done + counts.destroyed;
    LayerResult { layer: Layer::Web, done, failed: failed + beyond, guarded: counts.alone, text }
}

/// What is to be kept of the end of web sessions is that they are gone, beside what the revocation has to keep.
fn disk_of_web(revocation: &Revocation, record: LayerResult, notes: &mut Vec<String>) -> LayerResult {
    let web = revocation.web.on_disk();
    for why in &web.failed {
        notes.push(format!(
            "the web sessions are over, and would be there again if the daemon were started anew: {why}; it is tried \
             again every few seconds"
        ));
    }
    let text = match (record.failed, web.failed.is_empty(), web.waiting) {
        (0, false, _) => "NOT written: lost at a restart",
        (0, true, 1..) => "NOT written yet: lost at a restart until it is",
        (0, true, 0) if !revocation.web.is_empty() => "written",
        _ => return record,
    };
    let bad = u64::from(text != "written");
    LayerResult { done: 1 - bad, failed: bad, text: text.into(), ..record }
}
