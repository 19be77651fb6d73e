//! First drops, as the programs tell of them: into the log and `show events`.

use std::collections::VecDeque;
use std::time::Duration;

use crate::control::api;
use crate::dataplane::{Dataplane, Dropped, Drops, Untold};
use crate::ocserv;
use crate::registry::{Number, Target};
use crate::session::{Device, Entry};

use super::{Daemon, MAX_EVENTS, now_ms};

/// How many are read before others have their turn.
pub(super) const AT_ONCE: usize = 64;
/// The last of them are looked through for the same one.
const LAST: usize = 64;
/// Two CPUs that drop by one entry at the same moment may both take theirs for its first.
const SAME_WITHIN_NS: u64 = 1_000_000_000;

const KIND: &str = "drop";

/// What was told of drops. They have room of their own, so that a flood of them leaves the other events alone.
#[derive(Default)]
pub(super) struct Told {
    events: VecDeque<api::Event>,
    last: VecDeque<(Device, &'static str, Option<Entry>, u64)>,
    untold: Option<Untold>,
}

impl Told {
    fn push(&mut self, event: api::Event) {
        tracing::info!(kind = KIND, "{}", event.text);
        if self.events.len() >= MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// Whether another CPU has told the same just now.
    fn has_just_told(&mut self, dropped: &Dropped) -> bool {
        let same = self.last.iter().any(|(device, reason, entry, at_ns)| {
            *device == dropped.device
                && *reason == dropped.reason
                && dropped.entry.is_some()
                && *entry == dropped.entry
                && at_ns.abs_diff(dropped.at_ns) < SAME_WITHIN_NS
        });
        if !same {
            if self.last.len() >= LAST {
                self.last.pop_front();
            }
            self.last.push_back((dropped.device, dropped.reason, dropped.entry.clone(), dropped.at_ns));
        }
        same
    }
}

/// What is there, up to [`AT_ONCE`] of them.
pub(super) fn read(drops: &mut Drops) -> Vec<Dropped> {
    std::iter::from_fn(|| drops.next_drop()).take(AT_ONCE).collect()
}

impl Daemon {
    /// The programs may tell of some more. What they did not tell of since the last time is said.
    pub(super) fn allow_drops(&mut self) {
        let allowed = self.dataplane.allow_drops();
        let untold = match allowed.and_then(|()| self.dataplane.untold()) {
            Ok(untold) => untold,
            Err(error) => return self.warn(format!("no drops are told of: {error:#}")),
        };
        // what was before this daemon is in the status alone
        let Untold { suppressed, lost } = self.drops.untold.replace(untold).unwrap_or(untold);
        let new = (untold.suppressed.saturating_sub(suppressed), untold.lost.saturating_sub(lost));
        let text = match new {
            (0, 0) => return,
            (more, 0) => format!(
                "{more} more entries dropped their first packet: {} of them are told of in a second",
                Dataplane::TOLD_EACH_SECOND
            ),
            (0, lost) => {
                format!("{lost} more entries dropped their first packet: they could not be told of in time")
            }
            (more, lost) => {
                format!(
                    "{more} more entries dropped their first packet, and of {lost} it could not be told in time"
                )
            }
        };
        self.drops.push(api::Event { at_ms: now_ms(), kind: KIND.into(), text, drop: None });
    }

    pub(super) fn tell_drop(&mut self, dropped: Dropped) {
        if self.drops.has_just_told(&dropped) {
            return;
        }
        let number = dropped
            .revocation
            .or_else(|| dropped.entry.as_ref().and_then(|entry| self.dataplane.revocation_of(entry)));
        let user = number.map(|number| self.user_of(number)).unwrap_or_default();
        let own = self.namespaces.own();
        let Device { netns, index } = dropped.device;
        let netns = if netns == own { String::new() } else { format!("net:[{}]", netns.0) };
        let interface = self.dataplane.name_of(dropped.device).unwrap_or_default().to_owned();
        let told = api::Drop {
            reason: dropped.reason.into(),
            interface,
            ifindex: index,
            netns,
            packet: dropped.packet.map(|packet| packet.to_string()).unwrap_or_default(),
            revocation: number.unwrap_or(0),
            user,
            again: dropped.again,
        };
        let text = format!("{}{}", in_words(&told), self.target_of(number));
        let ago = Dataplane::kernel_monotonic_ns().saturating_sub(dropped.at_ns);
        let ago = u64::try_from(Duration::from_nanos(ago).as_millis()).unwrap_or(0);
        let at_ms = now_ms().saturating_sub(ago);
        self.drops.push(api::Event { at_ms, kind: KIND.into(), text, drop: Some(told) });
    }

    /// Whose session that revocation has ended, if it was one person's.
    fn user_of(&self, number: Number) -> String {
        let Some(revocation) = self.registry.revocation(number) else { return String::new() };
        match &revocation.order.target {
            Target::User(user) => ocserv::printable(user),
            Target::Lock(who) => ocserv::printable(&who.name),
            _ => {
                let mut users = revocation.users().into_iter();
                let one = users.next().filter(|_| users.next().is_none());
                one.map(ocserv::printable).unwrap_or_default()
            }
        }
    }

    /// Which revocation it was, for people.
    fn target_of(&self, number: Option<Number>) -> String {
        let Some(number) = number else {
            return "; the packet does not name its revocation, or that is over".into();
        };
        match self.registry.revocation(number) {
            Some(revocation) => {
                format!(
                    ", by revocation {number} ({})",
                    ocserv::printable(&revocation.order.target.to_string())
                )
            }
            None => format!(", by revocation {number}"),
        }
    }

    /// Everything that `show events` has, in the order of its times.
    pub(super) fn all_events(&self) -> api::Events {
        let mut events: Vec<_> = self.events.iter().chain(&self.drops.events).cloned().collect();
        events.sort_by_key(|event| event.at_ms);
        api::Events { events }
    }
}

/// The reason, the place and the packet, for people.
fn in_words(drop: &api::Drop) -> String {
    let place =
        if drop.interface.is_empty() { format!("device {}", drop.ifindex) } else { drop.interface.clone() };
    let netns = if drop.netns.is_empty() { String::new() } else { format!(" in {}", drop.netns) };
    let packet = if drop.packet.is_empty() { "a packet" } else { &drop.packet };
    let which = if drop.again { "first in a minute" } else { "first packet" };
    let whose = if drop.user.is_empty() { String::new() } else { format!(" of {}", drop.user) };
    format!("{} at {place}{netns}: {packet}, {which}{whose}", drop.reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Netns;

    fn dropped(last: u8, at_ns: u64) -> Dropped {
        let address = std::net::IpAddr::from([192, 0, 2, last]);
        Dropped {
            at_ns,
            reason: "dropped-address-to",
            device: Device { netns: Netns(1), index: 2 },
            packet: None,
            entry: Some(Entry::Address(Netns(1), address)),
            revocation: None,
            again: false,
        }
    }

    /// R6: a drop is told once, also if two CPUs tell of it; and a neighbour's is told as well.
    #[test]
    fn r6_what_two_cpus_tell_is_told_once() {
        let mut told = Told::default();
        assert!(!told.has_just_told(&dropped(1, 5_000)));
        assert!(told.has_just_told(&dropped(1, 4_000)), "whichever comes first");
        assert!(!told.has_just_told(&dropped(2, 5_000)));
        assert!(!told.has_just_told(&dropped(1, 5_000 + SAME_WITHIN_NS)));
    }

    #[test]
    fn r7_what_is_remembered_is_bounded() {
        let mut told = Told::default();
        for at in 0..2 * MAX_EVENTS {
            told.push(api::Event { at_ms: at as u64, ..api::Event::default() });
            told.has_just_told(&dropped(1, at as u64 * SAME_WITHIN_NS));
        }
        assert_eq!((told.events.len(), told.last.len()), (MAX_EVENTS, LAST));
        assert_eq!(told.events.front().map(|event| event.at_ms), Some(MAX_EVENTS as u64), "the oldest go");
    }
}
