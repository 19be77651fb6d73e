//! What the kernel's connection tracking keeps of a revoked session: where the gateway translates addresses, it would
//! hand the answers to that session's connections to the next owner of its tunnel address. So that is taken out as
//! soon as the session has ended, and before what drops the address's packets is: nobody uses the address meanwhile,
//! and nothing of its next owner is deleted. The gate's answer to the next owner waits for it, but not for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::session::{Entry, Netns};

use super::revocation::{Connections, MAX_NOTED};
use super::{Effect, Effects, MAX_SESSIONS, Now, Number, Registry, SessionKey};

/// How long the next owner of an address waits at the gate.
const OWNER_WAITS: Duration = Duration::from_millis(1_500);
/// How long it may take while nobody waits: a little less than a command's answer.
const TAKES: Duration = Duration::from_millis(3_500);

/// A tunnel address. The address comes first, so that all namespaces of one can be looked at.
pub(super) type Place = (IpAddr, Netns);

/// The addresses that revoked sessions have used, until nothing is left of that in connection tracking.
#[derive(Debug, Default)]
pub(super) struct Traces {
    places: BTreeMap<Place, Trace>,
    /// Those that are being dealt with.
    asked: BTreeSet<Place>,
    turns: u64,
}

#[derive(Debug)]
struct Trace {
    /// Who is told.
    numbers: BTreeSet<Number>,
    state: State,
    /// The address is somebody else's by now.
    claimed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// For the session's end.
    Waits,
    Asked {
        turn: u64,
        until: Duration,
    },
    /// To be tried once more before the address is somebody else's.
    Failed,
}

impl Traces {
    fn is_asked(&self, place: &Place) -> bool {
        self.asked.contains(place)
    }

    /// Whether that entry has to stand although its session is gone.
    pub fn keeps(&self, entry: &Entry) -> bool {
        matches!(entry, Entry::Address(netns, address) if self.is_asked(&(*address, *netns)))
    }

    pub fn any_asked(&self) -> bool {
        !self.asked.is_empty()
    }
}

impl Registry {
    /// A session that is under these revocations had its tunnel: its addresses may have left something.
    pub(super) fn note_traces(&mut self, key: SessionKey, numbers: &BTreeSet<Number>, out: &mut Effects) {
        let Some(session) = self.sessions.get(key) else { return };
        let Some(netns) = session.netns.filter(|_| session.had_tunnel()) else { return };
        let news: Vec<IpAddr> = (session.observed.addresses.iter().copied())
            .filter(|address| !session.forgotten.contains(address))
            .collect();
        for address in news {
            let place = (address, netns);
            if self.traces.places.len() >= MAX_SESSIONS && !self.traces.places.contains_key(&place) {
                let text = format!(
                    "more than {MAX_SESSIONS} addresses of revoked sessions; what connection tracking has of {address} is not looked at"
                );
                out.push(Effect::Note { kind: "bound", text });
                continue;
            }
            let trace = self.traces.places.entry(place).or_insert_with(|| Trace {
                numbers: BTreeSet::new(),
                state: State::Waits,
                claimed: false,
            });
            let asked = matches!(trace.state, State::Asked { .. });
            for number in numbers {
                if trace.numbers.insert(*number) {
                    tell(self.revocations.get_mut(number), place, Connections::Pending { asked });
                }
            }
        }
        self.forget_connections(key, out);
    }

    /// Once nothing more can come from the session.
    pub(super) fn forget_connections(&mut self, key: SessionKey, out: &mut Effects) {
        let Some(session) = self.sessions.get(key) else { return };
        let Some(netns) = session.netns.filter(|_| session.sends_no_more()) else { return };
        let places: Vec<Place> = session.observed.addresses.iter().map(|address| (*address, netns)).collect();
        for place in places {
            if self.traces.places.get(&place).is_some_and(|trace| trace.state == State::Waits) {
                self.ask_to_forget(place, out);
            }
        }
    }

    fn ask_to_forget(&mut self, place: Place, out: &mut Effects) {
        let Some(Now { mono, .. }) = self.last else { return };
        let Some(trace) = self.traces.places.get_mut(&place) else { return };
        self.traces.turns += 1;
        let turn = self.traces.turns;
        let takes = if trace.claimed { OWNER_WAITS } else { TAKES };
        trace.state = State::Asked { turn, until: mono + takes };
        self.traces.asked.insert(place);
        for number in &trace.numbers {
            tell(self.revocations.get_mut(number), place, Connections::Pending { asked: true });
        }
        out.push(Effect::ForgetConnections { netns: place.1, address: place.0, turn });
    }

    /// An address has a new owner. True: what drops its packets has to stand until it is his alone.
    pub(super) fn claim_connections(&mut self, entry: &Entry, out: &mut Effects) -> bool {
        let (Entry::Address(netns, address), Some(now)) = (entry, self.last) else { return false };
        let place = (*address, *netns);
        let Some(trace) = self.traces.places.get_mut(&place) else { return false };
        trace.claimed = true;
        match &mut trace.state {
            State::Asked { until, .. } => *until = (*until).min(now.mono + OWNER_WAITS),
            State::Waits | State::Failed => self.ask_to_forget(place, out),
        }
        true
    }

    /// Whether an address of that session is not its alone yet.
    pub(super) fn has_traces(&self, key: SessionKey) -> bool {
        let Some(session) = self.sessions.get(key) else { return false };
        session.observed.addresses.iter().any(|address| {
            let of_address = (*address, Netns(0))..=(*address, Netns(u32::MAX));
            self.traces
                .asked
                .range(of_address)
                .any(|(_, netns)| session.netns.is_none_or(|its| its == *netns))
        })
    }

    /// What became of [`Effect::ForgetConnections`].
    pub(super) fn connections_forgotten(
        &mut self,
        netns: Netns,
        address: IpAddr,
        turn: u64,
        outcome: Result<Option<u64>, String>,
        now: Now,
        out: &mut Effects,
    ) {
        let place = (address, netns);
        let is_its = |trace: &Trace| matches!(trace.state, State::Asked { turn: its, .. } if its == turn);
        // later than anybody waited for
        let Some(trace) = self.traces.places.get_mut(&place).filter(|trace| is_its(trace)) else { return };
        self.traces.asked.remove(&place);
        let claimed = trace.claimed;
        let told = match &outcome {
            Ok(Some(count)) => Connections::Gone(*count),
            Ok(None) => Connections::NotTracked,
            Err(why) => Connections::Failed(why.clone()),
        };
        for number in &trace.numbers {
            tell(self.revocations.get_mut(number), place, told.clone());
        }
        if let Err(why) = &outcome {
            let next = if claimed { "its next owner is let in all the same" } else { "it is tried again" };
            let text = format!(
                "connections of {address} could not be taken out of connection tracking: {why}; {next}"
            );
            out.push(Effect::Note { kind: "conntrack", text });
        }
        if outcome.is_ok() || claimed {
            self.traces.places.remove(&place);
        } else {
            trace.state = State::Failed;
        }
        let here: Vec<SessionKey> = (self.sessions.with_address(address))
            .filter(|session| session.netns == Some(netns))
            .map(|session| session.key)
            .collect();
        for key in &here {
            if let Some(session) =
                self.sessions.get_mut(*key).filter(|s| outcome.is_ok() && s.sends_no_more())
            {
                session.forgotten.push(address);
            }
        }
        // it was kept for this alone
        let sessions = &self.sessions;
        let keep = |by: Option<SessionKey>| match by {
            Some(by) => here.contains(&by) && sessions.get(by).is_some_and(|session| !session.has_left()),
            None => self.adopted_at.is_some() && !claimed,
        };
        self.holdings.release_leases_unless(&Entry::Address(netns, address), keep, out);
        self.expire_waiting(now, out);
    }

    /// Those that nobody has told of in time.
    pub(super) fn give_up_on_connections(&mut self, now: Now, out: &mut Effects) {
        let late: Vec<(Place, u64)> = (self.traces.asked.iter())
            .filter_map(|place| match self.traces.places.get(place)?.state {
                State::Asked { turn, until } if until <= now.mono => Some((*place, turn)),
                _ => None,
            })
            .collect();
        for ((address, netns), turn) in late {
            // from here on they may be the next owner's
            out.push(Effect::KeepConnections { turn });
            let why = "it took too long".to_owned();
            self.connections_forgotten(netns, address, turn, Err(why), now, out);
        }
    }

    /// R3: these sessions' connections are none of that revocation's business any more. (Where the address is somebody
    /// else's by now they are taken out all the same: he waits for it, and must not get their answers.)
    pub(super) fn leave_connections(
        &mut self,
        number: Number,
        is_free: impl Fn(Place) -> bool,
        out: &mut Effects,
    ) {
        let its: Vec<Place> = (self.traces.places.iter())
            .filter(|(place, trace)| trace.numbers.contains(&number) && !trace.claimed && is_free(**place))
            .map(|(place, _)| *place)
            .collect();
        for place in its {
            let Some(trace) = self.traces.places.get_mut(&place) else { continue };
            trace.numbers.remove(&number);
            if let Some(revocation) = self.revocations.get_mut(&number) {
                revocation.connections.remove(&place);
            }
            if !trace.numbers.is_empty() {
                continue;
            }
            if let State::Asked { turn, .. } = trace.state {
                out.push(Effect::KeepConnections { turn });
            }
            self.traces.asked.remove(&place);
            self.traces.places.remove(&place);
        }
    }

    /// What could not be taken out may be by now.
    pub(super) fn forget_again(&mut self, number: Number, out: &mut Effects) {
        let Some(revocation) = self.revocations.get(&number) else { return };
        let failed: Vec<Place> = (revocation.connections.iter())
            .filter(|(_, state)| matches!(state, Connections::Failed(_)))
            .map(|(place, _)| *place)
            .filter(|place| self.traces.places.get(place).is_some_and(|t| t.state == State::Failed))
            .collect();
        for place in failed {
            self.ask_to_forget(place, out);
        }
    }

    /// Sessions of an earlier run that are gone: whether their connections were taken out nobody knows. Every server has
    /// told of its sessions: of an address that is somebody else's by now nothing is touched.
    pub(super) fn forget_orphans(&mut self, out: &mut Effects) {
        for entry in self.holdings.orphans() {
            let Entry::Address(netns, address) = entry else { continue };
            let owned = (self.sessions.with_address(address)).any(|session| session.netns == Some(netns));
            let place = (address, netns);
            let places = &self.traces.places;
            if owned || places.contains_key(&place) || places.len() >= MAX_SESSIONS {
                continue;
            }
            let numbers = self.holdings.numbers(&entry);
            self.traces.places.insert(place, Trace { numbers, state: State::Waits, claimed: false });
            self.ask_to_forget(place, out);
        }
    }
}

fn tell(revocation: Option<&mut Box<super::Revocation>>, place: Place, state: Connections) {
    let Some(revocation) = revocation else { return };
    if revocation.connections.len() < MAX_NOTED || revocation.connections.contains_key(&place) {
        revocation.connections.insert(place, state);
    }
}

#[cfg(test)]
impl Traces {
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// What is asked is what the places say.
    pub(super) fn check(&self) {
        let asked = (self.places.iter())
            .filter(|(_, trace)| matches!(trace.state, State::Asked { .. }))
            .map(|(place, _)| *place)
            .collect();
        assert_eq!(self.asked, asked);
    }
}
