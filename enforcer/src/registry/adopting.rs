//! What an earlier run of the daemon left in the kernel is taken over: it stands until it is known to be over.

use std::time::Duration;

use crate::session::{Entry, Stands};

use super::{Adopted, Effect, Effects, Mark, Now, Number, Order, Registry, Revocation, Target};

impl Registry {
    pub(super) fn adopt(&mut self, entries: Vec<Adopted>, now: Now, out: &mut Effects) {
        let count = entries.len();
        for Adopted { entry, number, stands, server, moment } in entries {
            self.adopt_revocation(number, &entry, stands, now);
            if let Entry::SafeId(id) = &entry {
                let mark = self.marks.entry(*id).or_insert_with(|| Mark::new(now.mono));
                mark.adopted = true;
                mark.server = mark.server.take().or_else(|| server.clone());
                mark.numbers.insert(number);
                if let Some(revocation) = self.revocations.get_mut(&number) {
                    let fate = super::revocation::Fate { server: server.clone(), gone: false };
                    revocation.safe_ids.insert(*id, fate);
                }
            }
            if let Entry::Device(device) = &entry {
                out.push(Effect::WatchDevice { device: *device });
            }
            if let Entry::Address(netns, _) | Entry::Flow(netns, _) = &entry {
                self.netns.insert(*netns);
            }
            self.holdings.adopt(&entry, number, stands, server, moment);
        }
        if count > 0 {
            self.adopted_at = Some(now.mono);
            let text = format!("{count} entries of an earlier run are in force");
            out.push(Effect::Note { kind: "adopted", text });
            out.push(Effect::Numbered { next: self.next_number });
        }
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
            let order =
                Order { target, server: None, stands, reason: String::new(), by: "an earlier run".into() };
            let mut revocation = Revocation::new(number, order, now, None);
            revocation.adopted = true;
            revocation.state = super::RevocationState::Looking;
            self.busy.insert(number);
            revocation
        });
        if !matches!(entry, Entry::SafeId(_) | Entry::Cutoff(_)) {
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
            self.holdings.release_orphans(out);
        }
    }

    /// The numbers that are in use.
    pub fn next_number(&self) -> Number {
        self.next_number
    }
}
