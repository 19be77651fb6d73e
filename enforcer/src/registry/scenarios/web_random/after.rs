//! What is there after a start of the daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::machine::Machine;
use super::*;

/// How late the disk may hear that a session is in use, and about times by whole seconds.
const LAG: Duration = Duration::from_secs(IDLE / 8 + 3);

impl Machine {
    /// What was not on the disk may be back or lost; what was is as it was. `seemed`: how many seconds seem to have passed,
    /// less than none if the clock went back to where it was last written down; `blurred`: the disk may have had times of
    /// another clock.
    pub(super) fn started(&mut self, seemed: i128, blurred: bool) {
        let now = self.world().now;
        let passed = Duration::from_secs(u64::try_from(seemed).unwrap_or(0));
        let keys: BTreeSet<WebKey> = self.registry().web_sessions().map(|session| session.key).collect();
        for key in &keys {
            assert!(!self.over.contains(key), "{key} is back");
            assert!(self.alive.contains_key(key) || self.doubtful.contains_key(key), "{key} is nobody's");
        }
        let (alive, doubtful) = (std::mem::take(&mut self.alive), std::mem::take(&mut self.doubtful));
        for (key, session) in alive.iter().filter(|(key, _)| !keys.contains(key)) {
            // it may have been lost before it was written, or have been over by the time that was written
            let was_due = session.is_due(self.clock, passed + LAG);
            let is_locked = self.locked.contains_key(session.user);
            let may_be_lost = blurred || self.unwritten.contains(key);
            assert!(may_be_lost || was_due || is_locked, "{key} was lost");
        }
        let all = alive.into_iter().chain(doubtful);
        let (mut seen, doubtful): (BTreeMap<_, _>, _) = all.partition(|(key, _)| keys.contains(key));
        self.doubtful = doubtful;
        for (key, session) in &mut seen {
            session.tokens.retain(|digest, wrapped| {
                let its = self.registry().web_session_of(digest, now).filter(|its| its.key == *key);
                let Some(its) = its else { return false };
                // R5: what was answered as written is there, or what was asked for later
                let found = its.tokens[digest].wrapped[0];
                assert!(
                    found == wrapped.sure || wrapped.maybe.contains(&found),
                    "{key}: {found}: {wrapped:?}"
                );
                (wrapped.sure, wrapped.maybe) = (found, Vec::new());
                true
            });
            assert!(!session.tokens.is_empty(), "{key} has lost its tokens");
        }
        for row in self.registry().web_rows_after(None, usize::MAX, now) {
            let Some(session) = seen.get_mut(&row.key) else { continue };
            let (left, unused) = (row.until - now.wall, now.wall - row.seen);
            // nobody stays for longer than was asked for, but for the time in which the clock was not written down
            let most = (session.made + Duration::from_secs(LASTS)).saturating_sub(self.clock).as_secs();
            let most = i128::from(most) - seemed + 4;
            assert!(blurred || i128::from(left) <= most, "{}: {left} s are left of {most}", row.key);
            // from now on the registry's times count: by the whole second, and as lazily as they were written
            session.used = self.clock.saturating_sub(Duration::from_secs(unused));
            session.made =
                (self.clock + Duration::from_secs(left)).saturating_sub(Duration::from_secs(LASTS));
        }
        self.alive = seen;
        self.unwritten.clear();
        // whose lock was not written is locked by the kernel alone, until a reboot
        let clock = self.clock;
        self.locked = PEOPLE
            .into_iter()
            .filter_map(|name| {
                let registry = self.registry();
                let numbers = registry.locks_on(&identity(name));
                let locks = numbers.iter().flat_map(|number| registry.locks_of_number(*number));
                let until = locks.map(|lock| lock.until).reduce(|a, b| Some(a?.max(b?)))?;
                Some((name, until.map(|until| clock + until.saturating_sub(now.mono))))
            })
            .collect();
    }
}
