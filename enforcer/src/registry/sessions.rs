//! Sessions as they are seen, and what a revoked one gets as soon as it is seen.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::session::{
    CutoffKey, Device, Entry, Flow, Netns, Observed, Process, SafeId, ServerName, SessionId, Token,
};

use super::holdings::Want;
use super::{
    Effect, Effects, Ended, GateState, MAX_SESSIONS, Mark, Now, Number, Registry, SessionKey, Sighting,
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
    /// When its cookie was made, if a list told so while that mattered.
    pub(super) made: Option<u64>,
    /// CLOCK_MONOTONIC.
    pub seen_first: Duration,
    probed: Duration,
    /// When ocserv told of it, at the latest.
    told: Duration,
    /// Revocations that name it although its safe_id is not known.
    pub(super) named: BTreeSet<Number>,
    /// Every revocation that it was ever taken on by: they are told of its end.
    under: BTreeSet<Number>,
    ending: Ending,
    worker_gone: bool,
    device_gone: bool,
    /// Addresses of which nothing was left in connection tracking after its end.
    pub(super) forgotten: Vec<IpAddr>,
}

impl Session {
    fn new(key: SessionKey, server: &ServerName, observed: &Observed, now: Now) -> Self {
        Self {
            key,
            server: server.clone(),
            observed: Observed { addresses: Vec::new(), safe_id: None, ..observed.clone() },
            worker: None,
            device: None,
            netns: None,
            phase: Phase::Admitting,
            made: None,
            seen_first: now.mono,
            probed: now.mono,
            told: Duration::ZERO,
            named: BTreeSet::new(),
            under: BTreeSet::new(),
            ending: Ending::No,
            worker_gone: false,
            device_gone: false,
            forgotten: Vec::new(),
        }
    }

    pub fn safe_id(&self) -> Option<SafeId> {
        self.observed.safe_id
    }

    pub(super) fn is_connected(&self) -> bool {
        self.phase == Phase::Live && !self.worker_gone
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending != Ending::No
    }

    /// In a connect-script that has not ended.
    pub(super) fn is_in_flight(&self) -> bool {
        self.phase == Phase::Admitting && !self.worker_gone
    }

    /// It has got through its connect-script, so that its packets may have passed.
    pub(super) fn had_tunnel(&self) -> bool {
        self.phase == Phase::Live
    }

    /// Nothing can come from it any more: its worker is gone, or its sockets, or its device.
    pub(super) fn sends_no_more(&self) -> bool {
        self.has_ended() || self.device_gone
    }

    /// Nothing of it has its addresses any more.
    pub(super) fn has_left(&self) -> bool {
        self.device_gone || (self.worker_gone && self.device.is_none())
    }

    pub(super) fn has_worker_gone(&self) -> bool {
        self.worker_gone
    }

    /// Its worker, or at least every socket of it, is gone.
    pub fn has_ended(&self) -> bool {
        self.worker_gone || self.ending == Ending::Done
    }
}

impl Registry {
    /// The revocations that this session falls under.
    pub(super) fn numbers_of(&self, session: &Session) -> BTreeSet<Number> {
        let mut numbers = session.named.clone();
        if let Some(mark) = session.safe_id().and_then(|id| self.marks.get(&id)) {
            numbers.extend(&mark.numbers);
        }
        let seen = &session.observed;
        numbers.extend(self.locks_of(&session.server, &seen.vhost, &seen.user));
        numbers
    }

    /// Takes note of a worker, as ocserv told of it at `told` or later. `at_gate`: it is at the door right now.
    pub(super) fn sight(
        &mut self,
        server: &ServerName,
        sighting: Sighting,
        told: Duration,
        at_gate: bool,
        now: Now,
        out: &mut Effects,
    ) -> Option<SessionKey> {
        let key = match self.known_as(server, &sighting, told, at_gate)? {
            Known::As(key) => key,
            Known::Not { before } => {
                if self.sessions.len() >= MAX_SESSIONS {
                    let id = sighting.observed.id;
                    let text =
                        format!("{server}: more than {MAX_SESSIONS} sessions; id {id} is not followed");
                    out.push(Effect::Note { kind: "bound", text });
                    return None;
                }
                if let Some(before) = before {
                    self.worker_gone(before, out);
                }
                self.sessions.insert(Session::new(self.sessions.next_key(), server, &sighting.observed, now))
            }
        };
        let Sighting { observed, worker, device, netns, has_tun } = sighting;
        // what ocserv says while the client is at the door is true; an older word may be of another worker
        let user = &self.sessions.get(key)?.observed.user;
        if user.is_empty() || (at_gate && !observed.user.is_empty()) {
            self.sessions.set_user(key, observed.user);
        }
        let session = self.sessions.get_mut(key)?;
        session.told = session.told.max(told);
        session.netns = session.netns.or(netns);
        if session.observed.client.is_empty() {
            session.observed.client = observed.client;
        }
        if session.observed.since == 0 {
            session.observed.since = observed.since;
        }
        if let (None, Some(process)) = (session.worker, worker) {
            session.worker = Some(process);
            out.push(Effect::Watch { key, worker: process });
        }
        // without a visible process, and without a gate to tell, what is listed has to pass for connected
        let blind = session.worker.is_none() && !at_gate;
        if has_tun || blind {
            session.phase = Phase::Live;
        }
        if let Some(device) =
            device.filter(|its| session.device.is_none() || (at_gate && session.device != Some(*its)))
        {
            let name = observed.device.clone().unwrap_or_default();
            session.observed.device = observed.device;
            self.sessions.set_device(key, device);
            out.push(Effect::Attach { device, name });
            out.push(Effect::WatchDevice { device });
        }
        // what others have left there in connection tracking goes first; its own is not noted yet
        let claimed: Vec<Entry> = (self.claim_addresses(key, &observed.addresses, at_gate).into_iter())
            .filter(|entry| !self.claim_connections(entry, out))
            .collect();
        self.learn_safe_id(key, observed.safe_id, now, out);
        if has_tun {
            self.name_by_cutoff(key, now, out);
        }
        self.enforce(key, out);
        // what is held anew stands before what was held for others goes
        for entry in claimed {
            self.holdings.release_leases_of_others(&entry, key, out);
        }
        if at_gate {
            self.claim_device(key, out);
        }
        Some(key)
    }

    /// Which session a sighting is of. `None`: of none, it tells of a worker that is gone.
    fn known_as(
        &mut self,
        name: &ServerName,
        sighting: &Sighting,
        told: Duration,
        at_gate: bool,
    ) -> Option<Known> {
        let server = self.servers.get_mut(name)?;
        server.sees_workers |= sighting.worker.is_some();
        let seen = sighting.observed.safe_id;
        let Some(session) = self.sessions.newest(name, sighting.observed.id) else {
            // a list that was on its way while the worker ended
            let late = server.sees_workers && sighting.worker.is_none() && !at_gate;
            return (!late).then_some(Known::Not { before: None });
        };
        let same_cookie = seen.is_none() || session.safe_id().is_none() || session.safe_id() == seen;
        match (session.worker, sighting.worker) {
            // the same number with another start time is a successor: pids are reused
            (Some(before), Some(now)) if before != now => Some(Known::Not { before: None }),
            (Some(_), _) if same_cookie => Some(Known::As(session.key)),
            (Some(_), None) => at_gate.then_some(Known::Not { before: None }),
            // late news of the worker that had this pid before: either these, or what is known
            (Some(_), Some(_)) => {
                (at_gate || told > session.told).then_some(Known::Not { before: Some(session.key) })
            }
            // a worker keeps its cookie: another cookie is another worker
            (None, _) if !same_cookie => Some(Known::Not { before: Some(session.key) }),
            (None, _) => Some(Known::As(session.key)),
        }
    }

    /// A session that was revoked before its cookie was known: its cookie is revoked.
    fn learn_safe_id(&mut self, key: SessionKey, id: Option<SafeId>, now: Now, out: &mut Effects) {
        let (Some(id), Some(session)) = (id, self.sessions.get(key)) else { return };
        if session.safe_id().is_some() {
            return;
        }
        let (server, named) = (session.server.clone(), session.named.clone());
        self.sessions.set_safe_id(key, id);
        for number in named {
            self.mark(id, Some(server.clone()), number, now, out);
        }
    }

    /// While a cutoff stands its user is not let in: who is connected was so before, whatever its cookie's age. But
    /// with no daemon there, the gate alone lets younger cookies in: who connected after it has one. (Not who connected
    /// in the future: that was before the clock was set back, and says nothing.)
    fn name_by_cutoff(&mut self, key: SessionKey, now: Now, out: &mut Effects) {
        // the key of a cutoff costs a hash, and there is seldom any
        if self.holdings.cutoffs().next().is_none() {
            return;
        }
        let Some(session) = self.sessions.get(key) else { return };
        let gate = self.servers.get(&session.server).map(|server| server.gate);
        if gate == Some(GateState::Missing) {
            return;
        }
        let seen = &session.observed;
        let who = self.rules.realms.identity(&session.server, &seen.vhost, &seen.user);
        let cutoff = Entry::Cutoff(CutoffKey::of(&session.server, &who));
        let moment = self.holdings.moment(&cutoff);
        // the gate let it in, since a list showed its cookie to be younger, though not all of the others
        if session.made.is_some_and(|made| made > moment) {
            return;
        }
        let is_later = seen.since > moment && seen.since <= now.wall;
        for number in self.holdings.numbers(&cutoff) {
            if is_later && self.revocations.get(&number).is_some_and(|r| r.adopted) {
                continue;
            }
            self.name_session(key, number, now, out);
        }
    }

    /// A tunnel address is the newest session's: what an older one left on it would hit a stranger. Gives the
    /// entries that are its alone from now on.
    /// `at_gate`: ocserv has just given it out. Otherwise it is taken only where nobody else claims it.
    fn claim_addresses(&mut self, key: SessionKey, addresses: &[IpAddr], at_gate: bool) -> Vec<Entry> {
        let Some(session) = self.sessions.get(key) else { return Vec::new() };
        let (server, netns) = (session.server.clone(), session.netns);
        let news: Vec<IpAddr> = addresses
            .iter()
            .filter(|a| at_gate || !session.observed.addresses.contains(a))
            .copied()
            .collect();
        let mut claimed = Vec::new();
        for address in news {
            let here = |s: &&Session| match (s.netns, netns) {
                (Some(theirs), Some(ours)) => theirs == ours,
                _ => s.server == server,
            };
            let others: Vec<(SessionKey, Option<Netns>, bool)> = (self.sessions.with_address(address))
                .filter(|s| s.key != key)
                .filter(here)
                .map(|s| (s.key, s.netns, at_gate || s.worker_gone || s.ending == Ending::Done))
                .collect();
            for (other, _, _) in others.iter().filter(|(.., yields)| *yields) {
                self.sessions.drop_address(*other, address);
            }
            if others.iter().all(|(.., yields)| *yields) {
                self.sessions.add_address(key, address);
                let places: BTreeSet<Netns> =
                    others.iter().filter_map(|(_, theirs, _)| *theirs).chain(netns).collect();
                claimed.extend(places.into_iter().map(|netns| Entry::Address(netns, address)));
            }
        }
        claimed
    }

    /// The device of the client at the door is new: what stands on it was of another one with the same number.
    fn claim_device(&mut self, key: SessionKey, out: &mut Effects) {
        let Some(session) = self.sessions.get(key) else { return };
        let Some(device) = session.device else { return };
        let numbers = self.numbers_of(session);
        let others: Vec<SessionKey> = self
            .sessions
            .with_device(device)
            .filter(|s| s.key != key && !s.device_gone)
            .map(|s| s.key)
            .collect();
        self.adopted_devices.remove(&device);
        self.holdings.release_others(&Entry::Device(device), &numbers, out);
        for other in others {
            self.lose_device(other, out);
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
        // it was admitted after what this one carries out
        if self.revocations.get(&number).is_some_and(|r| r.order.spare.contains(&SessionId::Vpn(id))) {
            return;
        }
        let mark = self.marks.entry(id).or_insert_with(|| Mark::new(now.mono));
        if server.is_some() {
            mark.server.clone_from(&server);
        }
        if !mark.numbers.insert(number) {
            return;
        }
        let (server, gone) = (mark.server.clone(), mark.gone);
        self.holdings.hold_for_gate(Entry::SafeId(id), number, Want::Forever, server.clone(), now.wall, out);
        if let Some(revocation) = self.revocations.get_mut(&number) {
            revocation.safe_ids.insert(id, super::revocation::Fate { server, gone });
        }
        let theirs: Vec<SessionKey> = self.sessions.with_safe_id(id).map(|s| s.key).collect();
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
        // a session of it that has not ended yet stays under its revocations
        let theirs: Vec<SessionKey> = self.sessions.with_safe_id(id).map(|s| s.key).collect();
        for key in theirs {
            if let Some(session) = self.sessions.get_mut(key) {
                session.named.extend(&mark.numbers);
            }
        }
        self.holdings.release_all(&Entry::SafeId(id), out);
    }

    /// What a revoked session gets, whenever it is seen: first its marks in the kernel, then its end.
    pub(super) fn enforce(&mut self, key: SessionKey, out: &mut Effects) {
        let Some(session) = self.sessions.get(key) else { return };
        let numbers = self.numbers_of(session);
        if numbers.is_empty() {
            return;
        }
        let device = session
            .device
            .filter(|_| !session.device_gone)
            .map(|device| (Entry::Device(device), Want::Forever));
        let addresses = (session.netns.into_iter())
            .flat_map(|netns| {
                session.observed.addresses.iter().map(move |address| Entry::Address(netns, *address))
            })
            .map(|entry| (entry, Want::Leased(Some(key))));
        let entries: Vec<(Entry, Want)> = device.into_iter().chain(addresses).collect();
        for number in &numbers {
            if let Some(revocation) = self.revocations.get_mut(number) {
                revocation.take_on(session);
            }
        }
        for number in &numbers {
            for (entry, want) in &entries {
                self.hold_packets(entry.clone(), *number, *want, out);
            }
        }
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.under.extend(&numbers);
        self.note_traces(key, &numbers, out);
        let Some(session) = self.sessions.get_mut(key) else { return };
        // in its connect-script it is refused by the gate, so that its client hears a clear no and does not
        // try again; should it come up all the same, it is seen with its tun device, and ended then
        if session.phase != Phase::Live
            || session.worker_gone
            || matches!(session.ending, Ending::Asked | Ending::Done)
        {
            return;
        }
        let before = std::mem::replace(&mut session.ending, Ending::Asked);
        let disconnect = Effect::Disconnect { server: session.server.clone(), id: session.observed.id };
        match session.worker {
            Some(worker) => {
                out.push(Effect::FindFlows { key, worker });
                out.push(disconnect);
                out.push(Effect::End { key, worker });
            }
            None => {
                session.ending = Ending::Failed;
                // once for each look; but a revocation that comes meanwhile has to hear how it stands as well
                if before != Ending::Failed {
                    out.push(disconnect);
                }
                for number in &numbers {
                    if let Some(revocation) = self.revocations.get_mut(number) {
                        revocation.session_left(key, "its worker's process is not visible from here".into());
                    }
                }
            }
        }
    }

    /// Puts an entry that drops packets into the kernel, and into its revocation's account.
    pub(super) fn hold_packets(&mut self, entry: Entry, number: Number, want: Want, out: &mut Effects) {
        if let Some(revocation) = self.revocations.get_mut(&number) {
            revocation.note_entry(&entry);
        }
        self.holdings.hold(entry, number, want, out);
    }

    /// Answers [`Effect::FindFlows`]: what comes from the client is dropped while the socket is there.
    pub(super) fn flows(
        &mut self,
        key: SessionKey,
        outcome: Result<(Netns, Vec<Flow>), String>,
        out: &mut Effects,
    ) {
        let Some(session) = self.sessions.get(key) else { return };
        let numbers = self.numbers_of(session);
        match outcome {
            Ok((netns, flows)) if !session.worker_gone && session.ending != Ending::Done => {
                for flow in flows {
                    for number in &numbers {
                        self.hold_packets(Entry::Flow(netns, flow), *number, Want::Leased(Some(key)), out);
                    }
                }
            }
            Ok(_) => {}
            Err(why) => {
                out.push(Effect::Note { kind: "sockets", text: format!("session {key}: {why}") });
            }
        }
    }

    /// What its flows have shown: another flow that shows the same would be taken for the session's. Nobody else has
    /// it, so unlike its flows it stands until nothing of the session is left.
    pub(super) fn tokens(&mut self, key: SessionKey, tokens: Vec<Token>, out: &mut Effects) {
        let Some(session) = self.sessions.get(key) else { return };
        if session.worker_gone || session.ending == Ending::Done {
            return;
        }
        let numbers = self.numbers_of(session);
        for token in tokens {
            for number in &numbers {
                self.hold_packets(Entry::Token(token.clone()), *number, Want::Leased(Some(key)), out);
            }
        }
    }

    pub(super) fn ended(&mut self, key: SessionKey, ended: Ended, out: &mut Effects) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.ending = if ended.left.is_empty() { Ending::Done } else { Ending::Failed };
        for number in &session.under {
            if let Some(revocation) = self.revocations.get_mut(number) {
                revocation.session_ended(key, &ended, session.worker_gone);
            }
        }
        if session.ending == Ending::Done {
            // its sockets are gone: a neighbour may come from the very same port a moment later
            self.holdings.release_session(key, |entry| matches!(entry, Entry::Flow(..)), out);
            self.forget_connections(key, out);
        }
        self.bury(key, out);
    }

    pub(super) fn worker_gone(&mut self, key: SessionKey, out: &mut Effects) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        session.worker_gone = true;
        for number in &session.under {
            if let Some(revocation) = self.revocations.get_mut(number) {
                revocation.session_gone(key);
            }
        }
        self.sessions.drop_id(key);
        self.holdings.release_session(key, |entry| matches!(entry, Entry::Flow(..)), out);
        self.forget_connections(key, out);
        self.bury(key, out);
    }

    pub(super) fn device_gone(&mut self, device: Device, out: &mut Effects) {
        self.adopted_devices.remove(&device);
        self.holdings.release_all(&Entry::Device(device), out);
        let its: Vec<SessionKey> = self.sessions.with_device(device).map(|s| s.key).collect();
        for key in its {
            self.lose_device(key, out);
        }
    }

    fn lose_device(&mut self, key: SessionKey, out: &mut Effects) {
        if let Some(session) = self.sessions.get_mut(key) {
            session.device_gone = true;
        }
        self.forget_connections(key, out);
        let traces = &self.traces;
        let goes = |entry: &Entry| matches!(entry, Entry::Address(..)) && !traces.keeps(entry);
        self.holdings.release_session(key, goes, out);
        self.bury(key, out);
    }

    /// Forgets a session of which neither worker nor device is left, and of whose end nothing is to be told.
    fn bury(&mut self, key: SessionKey, out: &mut Effects) {
        let Some(session) = self.sessions.get(key) else { return };
        if !session.worker_gone || !(session.device.is_none() || session.device_gone) {
            return;
        }
        let traces = &self.traces;
        self.holdings.release_session(key, |entry| !traces.keeps(entry), out);
        if session.ending != Ending::Asked {
            self.sessions.remove(key);
        }
    }

    /// Where no gate tells when a connect-script has ended, its worker's tun device does.
    pub(super) fn probe_in_flight(&mut self, now: Now, out: &mut Effects) {
        let due: Vec<SessionKey> = (self.sessions.values())
            .filter(|s| s.is_in_flight() && s.worker.is_some() && now.mono >= s.probed + PROBE_EVERY)
            .map(|s| s.key)
            .collect();
        for key in due {
            if let Some(session) = self.sessions.get_mut(key) {
                session.probed = now.mono;
                let (server, observed) = (session.server.clone(), session.observed.clone());
                out.push(Effect::Probe { key, server, observed });
            }
        }
    }

    /// Looks again at what a revocation still waits for.
    pub(super) fn look_at(&mut self, key: SessionKey, out: &mut Effects) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        if session.ending == Ending::Failed {
            session.ending = Ending::No;
            self.enforce(key, out);
        } else if session.is_in_flight() {
            let (server, observed) = (session.server.clone(), session.observed.clone());
            out.push(Effect::Probe { key, server, observed });
        }
    }
}

/// Which session a sighting is of.
enum Known {
    As(SessionKey),
    /// A new one. `before`: whose id it took over, and of whose end nobody else tells.
    Not {
        before: Option<SessionKey>,
    },
}
