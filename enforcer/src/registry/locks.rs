//! Locks: a person gets no session at all, until a time or until unlocked.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::session::{Device, Entry, Identity, LockKey, ServerName};

use super::connections::Place;
use super::{Effect, Effects, Number, Registry, SessionKey, Target};

/// A lock that is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locked {
    /// `None`: found in the kernel at start, which keeps only a digest of the name.
    pub identity: Option<Identity>,
    pub number: Number,
    /// On CLOCK_MONOTONIC; `None`: until unlocked.
    pub until: Option<Duration>,
}

pub(super) fn lock_of(identity: &Identity) -> Entry {
    Entry::Lock(LockKey::new(identity))
}

impl Registry {
    /// The locks of whoever logs in by that name there.
    pub(super) fn locks_of(&self, server: &ServerName, vhost: &str, user: &str) -> BTreeSet<Number> {
        // the key of a lock costs a hash, and seldom is anybody locked
        if self.holdings.locks().next().is_none() {
            return BTreeSet::new();
        }
        self.holdings.numbers(&lock_of(&self.rules.realms.identity(server, vhost, user)))
    }

    /// The locks that this person is under.
    pub fn locks_on(&self, identity: &Identity) -> BTreeSet<Number> {
        self.holdings.numbers(&lock_of(identity))
    }

    /// Whose time was over a moment ago.
    pub(super) fn locks_expired(&mut self, expired: &BTreeSet<Number>, out: &mut Effects) {
        for number in expired {
            let identity = match self.revocations.get(number).map(|r| &r.order.target) {
                Some(Target::Lock(identity)) => Some(identity),
                // the kernel alone knew of it, by a digest
                Some(Target::Adopted) => None,
                _ => continue,
            };
            if self.holdings.locks_of(*number).next().is_some() {
                continue;
            }
            if let Some(identity) = identity {
                let text = format!("{number}: {identity} may log in again: the lock's time is over");
                out.push(Effect::Note { kind: "unlocked", text });
            }
            self.let_go(*number, out);
        }
    }

    /// R4: a client that was at the door under a lock alone passes once the lock is over, and so do its packets.
    pub(super) fn let_go(&mut self, number: Number, out: &mut Effects) {
        let Some(revocation) = self.revocations.get(&number) else { return };
        let free: Vec<(Option<Device>, Vec<Entry>)> = (revocation.sessions.keys())
            .filter_map(|key| self.sessions.get(*key))
            .filter(|session| !self.numbers_of(session).contains(&number))
            .map(|s| {
                let addresses = s.observed.addresses.iter();
                let entries = s
                    .netns
                    .iter()
                    .flat_map(|netns| addresses.clone().map(|address| Entry::Address(*netns, *address)));
                (s.device, entries.collect())
            })
            .collect();
        // of one that hangs, its sockets may be there still
        let quiet: Vec<SessionKey> = (revocation.sessions.keys().copied())
            .filter(|key| self.sessions.get(*key).is_some_and(|session| self.numbers_of(session).is_empty()))
            .collect();
        for key in quiet {
            self.holdings.release_session(key, |entry| matches!(entry, Entry::Flow(..)), out);
        }
        let is_free = |(address, netns): Place| {
            free.iter().any(|(_, addresses)| addresses.contains(&Entry::Address(netns, address)))
        };
        self.leave_connections(number, is_free, out);
        for (device, addresses) in free {
            for entry in device.map(Entry::Device).into_iter().chain(addresses) {
                self.holdings.release(&entry, number, out);
            }
        }
    }

    /// How many locks are in force.
    pub fn locks_in_force(&self) -> usize {
        self.holdings.locks().map(|entry| self.holdings.numbers(entry).len()).sum()
    }

    /// Those of that number that are in force.
    pub(super) fn locks_of_number(&self, number: Number) -> impl Iterator<Item = Locked> {
        self.holdings.locks_of(number).map(move |entry| Locked {
            identity: match self.revocations.get(&number).map(|r| &r.order.target) {
                Some(Target::Lock(identity)) => Some(identity.clone()),
                _ => None,
            },
            number,
            until: self.holdings.until(entry, number),
        })
    }
}
