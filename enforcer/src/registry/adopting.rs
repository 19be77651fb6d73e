//! What earlier runs of the daemon left is taken over: what is on the disk, and what is in the kernel and newer than
//! that. It stands until it is known to be over.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::session::{Device, Entry, Guarded, Record, SafeId, Stands, Write};

use super::durable::{CLOCK_JUMP, Disk};
use super::holdings::Want;
use super::revocation::{Fate, State};
use super::{Adopted, Effect, Effects, Left, Mark, Now, Number, Order, Registry, Revocation, Target};

impl Registry {
    pub(super) fn adopt(&mut self, left: Left, now: Now, out: &mut Effects) {
        let Left { entries, records, lifted, wall, rebooted, web, gateways } = left;
        // a disk that took no write since the host was started does not know that it was
        let rebooted = rebooted && entries.is_empty();
        if !rebooted {
            // cookies may have been made while the clock showed that
            self.wall_before = self.wall_before.max(wall);
        }
        for Adopted { entry, .. } in &entries {
            if let Entry::Address(netns, _) | Entry::Flow(netns, _) = entry {
                self.netns.insert(*netns);
            }
        }
        let (kept, found) = (records.len(), entries.len());
        let mut over: BTreeSet<Number> = records.iter().map(|record| record.number).collect();
        let mut shorter = Vec::new();
        for record in records {
            let number = record.number;
            if self.restore(record, now.wall.max(wall), rebooted, now) {
                shorter.push(number);
            }
        }
        // all of this is on the disk
        let _ = self.holdings.take_touched();
        over.retain(|number| self.holdings.durable_of(*number).next().is_none());
        over.extend(shorter);
        let lifted: BTreeSet<Number> = lifted.into_iter().collect();
        for adopted in entries {
            self.adopt_entry(adopted, &lifted, now, out);
        }
        self.expire(now, out);
        self.holdings.restored(out);
        // a gateway of before a reboot serves nobody
        let gateways = if rebooted { Some(Vec::new()) } else { gateways };
        self.restore_web(web, gateways, now.wall.max(wall), now);
        for number in over {
            self.holdings.touch(number);
        }
        for number in lifted {
            self.next_number = self.next_number.max(number.saturating_add(1));
            self.write(Write::Forget(number));
        }
        if kept + found > 0 {
            self.adopted_at = Some(now.mono);
            let text =
                format!("{found} entries in the kernel and {kept} records on the disk were taken over");
            out.push(Effect::Note { kind: "adopted", text });
        }
        out.push(Effect::Numbered { next: self.next_number });
    }

    /// `wall`: the latest that the wall clock is known to have shown. True: a lock's time is over, and the disk has to
    /// hear of it: by a clock that is set back later it would not be.
    fn restore(&mut self, record: Record, wall: u64, rebooted: bool, now: Now) -> bool {
        let Record { number, target, server, reason, by, at, lasts, until, guards, origin } = record;
        self.next_number = self.next_number.max(number.saturating_add(1));
        let left = until.map(|until| {
            // a clock that was set back makes nothing stand longer than was asked
            Duration::from_secs(until.saturating_sub(wall).min(lasts.unwrap_or(u64::MAX)))
        });
        if let (Some(left), Some(until)) = (left, until)
            && until.abs_diff(now.wall + left.as_secs()) >= CLOCK_JUMP
        {
            // the disk has to say the same by the clock as it is now
            self.durable.is_unsaved(number, 0);
        }
        let over = rebooted && left == Some(Duration::ZERO);
        // the kernel knows better how much is left, if it has it: its clock cannot be set
        let want = left.map_or(Want::Forever, |left| Want::Until(now.mono.saturating_add(left)));
        match &target {
            _ if over => {}
            Target::Address(address) => {
                for netns in self.netns.clone() {
                    self.holdings.restore(&Entry::Address(netns, *address), number, want, None, 0);
                }
            }
            Target::Flow(flow) => {
                for netns in self.netns.clone() {
                    self.holdings.restore(&Entry::Flow(netns, *flow), number, want, None, 0);
                }
            }
            Target::Token(token) => {
                self.holdings.restore(&Entry::Token(token.clone()), number, want, None, 0);
            }
            Target::User(_)
            | Target::Person(_)
            | Target::Id(_)
            | Target::Session(_)
            | Target::Web(_)
            | Target::Lock(_)
            | Target::Adopted => {}
        }
        let stands = lasts.map(Duration::from_secs);
        let spare = BTreeSet::new();
        let order = Order { target, server, stands, reason, by, origin, spare, bulk: false };
        self.remember_origin(number, &order);
        let mut revocation = Revocation::new(number, order, Now { mono: now.mono, wall: at }, None);
        revocation.adopted = true;
        revocation.disk = Disk::Written;
        revocation.state = match (revocation.is_explicit(), over) {
            (true, true) => State::Expired,
            (true, false) => State::Settled,
            (false, _) => State::Looking,
        };
        let mut is_shorter = false;
        for guard in guards {
            let (entry, want) = match guard.what {
                Guarded::Lock(_) if over => {
                    is_shorter = true;
                    continue;
                }
                Guarded::Lock(key) => (Entry::Lock(key), want),
                Guarded::SafeId(id) => {
                    self.restore_mark(id, guard.server.as_ref(), number, now);
                    revocation.safe_ids.insert(id, Fate { server: guard.server.clone(), gone: false });
                    (Entry::SafeId(id), Want::Forever)
                }
                Guarded::Cutoff(key) => (Entry::Cutoff(key), Want::Forever),
            };
            self.holdings.restore(&entry, number, want, guard.server, guard.moment);
        }
        let state = revocation.state;
        self.revocations.insert(number, Box::new(revocation));
        self.set_state(number, state);
        is_shorter
    }

    fn restore_mark(
        &mut self,
        id: crate::session::SafeId,
        server: Option<&crate::session::ServerName>,
        number: Number,
        now: Now,
    ) {
        let mark = self.marks.entry(id).or_insert_with(|| Mark::new(now.mono));
        mark.adopted = true;
        // of a server that is not configured any more nobody tells
        let known = server.filter(|name| self.servers.contains_key(*name));
        mark.server = mark.server.take().or_else(|| known.cloned());
        mark.numbers.insert(number);
    }

    fn adopt_entry(&mut self, adopted: Adopted, lifted: &BTreeSet<Number>, now: Now, out: &mut Effects) {
        let Adopted { entry, number, stands, server, moment } = adopted;
        if let Entry::Device(device) = &entry {
            out.push(Effect::WatchDevice { device: *device });
        }
        // by its number somebody has wanted it who does not want it any more
        if lifted.contains(&number) || self.is_unlocked(number, &entry) {
            self.next_number = self.next_number.max(number.saturating_add(1));
            return self.holdings.found_in_kernel(&entry, number, stands);
        }
        self.adopt_revocation(number, &entry, stands, now);
        if let Entry::SafeId(id) = &entry {
            self.restore_mark(*id, server.as_ref(), number, now);
            if let Some(revocation) = self.revocations.get_mut(&number) {
                revocation.safe_ids.entry(*id).or_insert(Fate { server: server.clone(), gone: false });
            }
        }
        if let Entry::Device(device) = &entry {
            self.adopted_devices.insert(*device);
        }
        self.holdings.adopt(&entry, number, stands, server, moment);
    }

    /// The lock of a revocation of which the disk has the rest: it was taken back there first.
    fn is_unlocked(&self, number: Number, entry: &Entry) -> bool {
        let is_on_disk = self.revocations.get(&number).is_some_and(|r| r.disk == Disk::Written);
        matches!(entry, Entry::Lock(_)) && is_on_disk && !self.holdings.is_held_by(entry, number)
    }

    fn adopt_revocation(&mut self, number: Number, entry: &Entry, stands: Stands, now: Now) {
        self.next_number = self.next_number.max(number.saturating_add(1));
        let target = match (entry, stands) {
            (_, Stands::Leased) => Target::Adopted,
            (Entry::Address(_, address), _) => Target::Address(*address),
            (Entry::Flow(_, flow), _) => Target::Flow(*flow),
            (Entry::Token(token), _) => Target::Token(token.clone()),
            _ => Target::Adopted,
        };
        let stands = match stands {
            Stands::Until(at) => Some(Duration::from_nanos(at).saturating_sub(now.mono)),
            Stands::Forever | Stands::Leased => None,
        };
        let revocation = self.revocations.entry(number).or_insert_with(|| {
            let order = Order {
                target,
                server: None,
                stands,
                reason: String::new(),
                by: "an earlier run".into(),
                origin: None,
                spare: Default::default(),
                bulk: false,
            };
            let mut revocation = Revocation::new(number, order, now, None);
            revocation.adopted = true;
            revocation.state = State::Looking;
            self.busy.insert(number);
            Box::new(revocation)
        });
        if revocation.disk == Disk::Nothing {
            // its other entries may have been seen first, and have no time
            revocation.order.stands = revocation.order.stands.max(stands);
        }
        if !matches!(entry, Entry::SafeId(_) | Entry::Cutoff(_) | Entry::Lock(_)) {
            revocation.note_entry(entry);
        }
    }

    /// What could hit a stranger goes once every server has told whom it serves, and after 10 s in any case:
    /// a session that exists has been seen by then, and holds what is its own.
    pub(super) fn release_adopted(&mut self, now: Now, out: &mut Effects) {
        let told =
            (self.servers.values()).all(|server| server.listed || server.state == super::ServerState::Gone);
        if self.adopted_at.is_some_and(|at| told || now.mono >= at + super::ADOPTED_FOR) {
            self.adopted_at = None;
            if told {
                self.forget_orphans(out);
            }
            let traces = &self.traces;
            self.holdings.release_orphans(|entry| !traces.keeps(entry), out);
        }
    }

    /// R4: a client that was at the door under a lock may have been let in when the lock's time was over and no daemon
    /// was there. Whose cookie is listed, and neither refused nor too old, is not revoked.
    pub(super) fn release_adopted_devices(&mut self, cookies: &BTreeSet<SafeId>, out: &mut Effects) {
        let free: Vec<Device> = (self.adopted_devices.iter().copied())
            .filter(|device| {
                self.sessions.with_device(*device).any(|s| {
                    s.safe_id().is_some_and(|id| cookies.contains(&id))
                        && self.numbers_of(s).is_empty()
                        && !self.is_cut_off(&s.server, &s.observed.vhost, &s.observed.user)
                })
            })
            .collect();
        for device in free {
            self.adopted_devices.remove(&device);
            self.holdings.release_all(&Entry::Device(device), out);
        }
    }

    /// The numbers that are in use.
    pub fn next_number(&self) -> Number {
        self.next_number
    }
}
