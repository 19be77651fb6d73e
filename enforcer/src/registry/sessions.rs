//! Sessions as they are seen, and what a revoked one gets as soon as it is seen.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::session::{Device, Entry, Flow, Netns, Observed, Process, SafeId, ServerName};

use super::holdings::Want;
use super::{
    Effect, Effects, Ended, MAX_SESSIONS, Mark, Now, Number, Registry, SessionKey, Sighting, Terminate,
};

/// How often a session in its connect-script is looked at.
const PROBE_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// In its connect-script: the tunnel device is there, the worker has it not yet. A disconnect would be lost.
    Admitting,
    Live,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    No,
    Asked,
    Done,
    /// Something is left: to be tried again.
    Failed,
}

/// One worker of ocserv.
#[derive(Debug)]
pub struct Session {
    pub key: SessionKey,
    pub server: ServerName,
    pub observed: Observed,
    pub worker: Option<Process>,
    /// As it was at first sight. Never looked up again by its name, which may be another session's by then.
    pub device: Option<Device>,
    pub netns: Option<Netns>,
    pub phase: Phase,
    pub(super) seen_first: Duration,
    probed: Duration,
    /// Somebody asked for ocserv's own disconnect through us.
    pub(super) plain_disconnect: bool,
    /// Revocations that name it although its safe_id is not known.
    pub(super) named: BTreeSet<Number>,
    ending: Ending,
    worker_gone: bool,
    device_gone: bool,
}

impl Session {
    pub fn safe_id(&self) -> Option<SafeId> {
        self.observed.safe_id
    }

    pub(super) fn is_connected(&self) -> bool {
        self.phase == Phase::Live && !self.worker_gone
    }

    pub(super) fn is_gone(&self) -> bool {
        self.worker_gone
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending != Ending::No
    }

    /// In a connect-script that has not ended.
    pub(super) fn is_in_flight(&self) -> bool {
        self.phase == Phase::Admitting && !self.worker_gone
    }
}

impl Registry {
    /// The revocations that this session falls under.
    pub(super) fn numbers_of(&self, session: &Session) -> BTreeSet<Number> {
        let mut numbers = session.named.clone();
        if let Some(mark) = session.safe_id().and_then(|id| self.marks.get(&id)) {
            numbers.extend(&mark.numbers);
        }
        numbers
    }

    /// Takes note of a worker. `at_gate`: it is at the door right now.
    pub(super) fn sight(
        &mut self,
        server: &ServerName,
        sighting: Sighting,
        at_gate: bool,
        now: Now,
        out: &mut Effects,
    ) -> Option<SessionKey> {
        if !self.servers.contains_key(server) {
            return None;
        }
        let Sighting { observed, worker, device, netns, has_tun } = sighting;
        let at = (server.clone(), observed.id);
        let known = (self.ids.get(&at).copied()).filter(|key| {
            // the same number with another start time is a successor: pids are reused
            self.sessions
                .get(key)
                .is_some_and(|s| worker.is_none() || s.worker.is_none() || s.worker == worker)
        });
        let key = match known {
            Some(key) => key,
            None => {
                if self.sessions.len() >= MAX_SESSIONS {
                    let text = format!(
                        "{server}: more than {MAX_SESSIONS} sessions; id {} is not followed",
                        observed.id
                    );
                    out.push(Effect::Note { kind: "bound", text });
                    return None;
                }
                let key = self.next_session;
                self.next_session += 1;
                self.ids.insert(at, key);
                let session = Session {
                    key,
                    server: server.clone(),
                    observed: Observed { addresses: Vec::new(), ..observed.clone() },
                    worker: None,
                    device: None,
                    netns: None,
                    phase: Phase::Admitting,
                    seen_first: now.mono,
                    probed: now.mono,
                    plain_disconnect: false,
                    named: BTreeSet::new(),
                    ending: Ending::No,
                    worker_gone: false,
                    device_gone: false,
                };
                self.sessions.insert(key, session);
                key
            }
        };
        let its = self.sessions.get(&key).map(|s| s.observed.addresses.clone()).unwrap_or_default();
        let new: Vec<IpAddr> = observed.addresses.iter().filter(|a| !its.contains(a)).copied().collect();
        self.claim_addresses(key, netns, &new, at_gate, out);
        let session = self.sessions.get_mut(&key)?;
        session.observed.safe_id = session.observed.safe_id.or(observed.safe_id);
        session.netns = session.netns.or(netns);
        if session.observed.user.is_empty() {
            session.observed.user.clone_from(&observed.user);
        }
        if session.observed.client.is_empty() {
            session.observed.client.clone_from(&observed.client);
        }
        if session.observed.since == 0 {
            session.observed.since = observed.since;
        }
        if let (None, Some(process)) = (session.worker, worker) {
            session.worker = Some(process);
            out.push(Effect::Watch { key, worker: process });
        }
        if let (None, Some(device)) = (session.device, device) {
            session.device = Some(device);
            let name = observed.device.clone().unwrap_or_default();
            session.observed.device = observed.device;
            out.push(Effect::Attach { device, name });
            out.push(Effect::WatchDevice { device });
        }
        // without a visible process, and without a gate to tell, what is listed has to pass for connected
        let blind = session.worker.is_none() && !at_gate;
        if has_tun || blind {
            session.phase = Phase::Live;
        }
        self.enforce(key, out);
        Some(key)
    }

    /// A tunnel address is the newest session's: what an older one left on it would hit a stranger.
    /// `at_gate`: ocserv has just given it out. Otherwise it is taken only where nobody else claims it.
    pub(super) fn claim_addresses(
        &mut self,
        key: SessionKey,
        netns: Option<Netns>,
        addresses: &[IpAddr],
        at_gate: bool,
        out: &mut Effects,
    ) {
        for address in addresses {
            let others = (self.sessions.values_mut())
                .filter(|s| s.key != key && s.netns == netns && s.observed.addresses.contains(address));
            let mut taken = false;
            for other in others {
                if at_gate || other.worker_gone || other.ending == Ending::Done {
                    other.observed.addresses.retain(|theirs| theirs != address);
                } else {
                    taken = true;
                }
            }
            if taken {
                continue;
            }
            if let Some(netns) = netns {
                self.holdings.release_leases(&Entry::Address(netns, *address), out);
            }
            if let Some(session) = self.sessions.get_mut(&key)
                && !session.observed.addresses.contains(address)
            {
                session.observed.addresses.push(*address);
            }
        }
    }

    /// Marks a safe_id as revoked, and ends every session of it that is known.
    pub(super) fn mark(
        &mut self,
        id: SafeId,
        server: Option<ServerName>,
        number: Number,
        now: Now,
        out: &mut Effects,
    ) {
        let mark = self.marks.entry(id).or_insert_with(|| Mark {
            server: None,
            numbers: BTreeSet::new(),
            since: now.mono,
            gone: false,
            terminate: Terminate::Not,
            tries: 0,
        });
        if server.is_some() {
            mark.server.clone_from(&server);
        }
        if !mark.numbers.insert(number) {
            return;
        }
        self.holdings.hold_for_gate(Entry::SafeId(id), number, server.clone(), now.wall, out);
        if let Some(revocation) = self.revocations.get_mut(&number) {
            revocation.safe_ids.insert(id, super::revoking::Fate { server, gone: false });
        }
        let theirs: Vec<SessionKey> =
            self.sessions.values().filter(|s| s.safe_id() == Some(id)).map(|s| s.key).collect();
        for key in theirs {
            self.enforce(key, out);
        }
        if let Some(name) = self.marks.get(&id).and_then(|mark| mark.server.clone())
            && self.servers.get(&name).is_some_and(|server| server.terminate)
        {
            self.terminate(id, &name, 0, out);
        }
    }

    /// Its cookie is gone for good: nothing has to be refused any more.
    pub(super) fn unmark(&mut self, id: SafeId, out: &mut Effects) {
        let Some(mark) = self.marks.remove(&id) else { return };
        for number in &mark.numbers {
            if let Some(fate) = self.revocations.get_mut(number).and_then(|r| r.safe_ids.get_mut(&id)) {
                fate.gone = true;
            }
        }
        self.holdings.release_all(&Entry::SafeId(id), out);
    }

    /// What a revoked session gets, whenever it is seen: first its marks in the kernel, then its end.
    pub(super) fn enforce(&mut self, key: SessionKey, out: &mut Effects) {
        // of a worker that is gone only its device is left, and what was said of it stands until that is gone
        let Some(session) = self.sessions.get(&key).filter(|s| !s.worker_gone) else { return };
        let numbers = self.numbers_of(session);
        if numbers.is_empty() {
            return;
        }
        let device = session.device.filter(|_| !session.device_gone);
        for number in &numbers {
            if let Some(revocation) = self.revocations.get_mut(number) {
                revocation.take_on(session);
            }
        }
        for number in &numbers {
            if let Some(device) = device {
                self.holdings.hold(Entry::Device(device), *number, Want::Forever, out);
                self.note_entry(*number, Entry::Device(device));
            }
        }
        let Some(session) = self.sessions.get(&key) else { return };
        if let Some(netns) = session.netns {
            for address in session.observed.addresses.clone() {
                for number in &numbers {
                    let entry = Entry::Address(netns, address);
                    self.holdings.hold(entry.clone(), *number, Want::Leased(Some(key)), out);
                    self.note_entry(*number, entry);
                }
            }
        }
        let Some(session) = self.sessions.get_mut(&key) else { return };
        // in its connect-script it is refused by the gate, so that its client hears a clear no and does not
        // try again; should it come up all the same, it is seen with its tun device, and ended then
        if session.phase != Phase::Live || session.ending != Ending::No {
            return;
        }
        session.ending = Ending::Asked;
        let disconnect = Effect::Disconnect { server: session.server.clone(), id: session.observed.id };
        match session.worker {
            Some(worker) => {
                out.push(Effect::FindFlows { key, worker });
                out.push(disconnect);
                out.push(Effect::End { key, worker });
            }
            None => {
                out.push(disconnect);
                session.ending = Ending::Failed;
                for number in &numbers {
                    if let Some(revocation) = self.revocations.get_mut(number) {
                        revocation.session_left(key, "its worker's process is not visible from here".into());
                    }
                }
            }
        }
    }

    pub(super) fn note_entry(&mut self, number: Number, entry: Entry) {
        if let Some(revocation) = self.revocations.get_mut(&number) {
            revocation.packets.insert(entry);
        }
    }

    /// Answers [`Effect::FindFlows`]: what comes from the client is dropped while the socket is there.
    pub(super) fn flows(
        &mut self,
        key: SessionKey,
        outcome: Result<(Netns, Vec<Flow>), String>,
        out: &mut Effects,
    ) {
        let Some(session) = self.sessions.get(&key) else { return };
        let numbers = self.numbers_of(session);
        match outcome {
            Ok((netns, flows)) if !session.worker_gone && session.ending != Ending::Done => {
                for flow in flows {
                    for number in &numbers {
                        let entry = Entry::Flow(netns, flow);
                        self.holdings.hold(entry.clone(), *number, Want::Leased(Some(key)), out);
                        self.note_entry(*number, entry);
                    }
                }
            }
            Ok(_) => {}
            Err(why) => {
                out.push(Effect::Note { kind: "sockets", text: format!("session {key}: {why}") });
            }
        }
    }

    pub(super) fn ended(&mut self, key: SessionKey, ended: Ended, out: &mut Effects) {
        let numbers = self.sessions.get(&key).map(|s| self.numbers_of(s));
        let everybody: Vec<Number>;
        let numbers: Box<dyn Iterator<Item = Number>> = match numbers {
            Some(numbers) => Box::new(numbers.into_iter()),
            // the worker's end was seen first, and the session is forgotten
            None => {
                everybody = self
                    .revocations
                    .values()
                    .filter(|r| r.sessions.contains_key(&key))
                    .map(|r| r.number)
                    .collect();
                Box::new(everybody.into_iter())
            }
        };
        for number in numbers {
            if let Some(revocation) = self.revocations.get_mut(&number) {
                revocation.session_ended(key, &ended);
            }
        }
        let Some(session) = self.sessions.get_mut(&key) else { return };
        if ended.left.is_empty() {
            session.ending = Ending::Done;
            // its sockets are gone: a neighbour may come from the very same port a moment later
            self.holdings.release_session(key, |entry| matches!(entry, Entry::Flow(..)), out);
        } else {
            session.ending = Ending::Failed;
        }
    }

    pub(super) fn worker_gone(&mut self, key: SessionKey, out: &mut Effects) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        session.worker_gone = true;
        if self.ids.get(&(session.server.clone(), session.observed.id)) == Some(&key) {
            self.ids.remove(&(session.server.clone(), session.observed.id));
        }
        self.holdings.release_session(key, |entry| matches!(entry, Entry::Flow(..)), out);
        for revocation in self.revocations.values_mut() {
            revocation.session_gone(key);
        }
        self.bury(key, out);
    }

    pub(super) fn device_gone(&mut self, device: Device, out: &mut Effects) {
        self.holdings.release_all(&Entry::Device(device), out);
        let its: Vec<SessionKey> =
            self.sessions.values().filter(|s| s.device == Some(device)).map(|s| s.key).collect();
        for key in its {
            if let Some(session) = self.sessions.get_mut(&key) {
                session.device_gone = true;
            }
            self.holdings.release_session(key, |entry| matches!(entry, Entry::Address(..)), out);
            self.bury(key, out);
        }
    }

    /// Forgets a session of which neither worker nor device is left.
    fn bury(&mut self, key: SessionKey, out: &mut Effects) {
        let Some(session) = self.sessions.get(&key) else { return };
        if session.worker_gone && (session.device.is_none() || session.device_gone) {
            self.holdings.release_session(key, |_| true, out);
            self.sessions.remove(&key);
        }
    }

    /// Where no gate tells when a connect-script has ended, its worker's tun device does.
    pub(super) fn probe_in_flight(&mut self, now: Now, out: &mut Effects) {
        for session in self.sessions.values_mut().filter(|s| s.is_in_flight() && s.worker.is_some()) {
            if now.mono >= session.probed + PROBE_EVERY {
                session.probed = now.mono;
                let (server, observed) = (session.server.clone(), session.observed.clone());
                out.push(Effect::Probe { key: session.key, server, observed });
            }
        }
    }

    /// Looks again at what a revocation still waits for.
    pub(super) fn look_at(&mut self, key: SessionKey, out: &mut Effects) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        if session.ending == Ending::Failed {
            session.ending = Ending::No;
            self.enforce(key, out);
        } else if session.is_in_flight() {
            let (server, observed) = (session.server.clone(), session.observed.clone());
            out.push(Effect::Probe { key, server, observed });
        }
    }
}
