//! The rules against the facts: what stock ocserv and its clients really do, each as a test. The names of the
//! promises (R1 to R7) stand in the names of the tests that serve them.

mod connections;
mod cookies;
mod disconnects;
mod explicit;
mod gate;
mod harness;
mod holdings;
mod lifetimes;
mod machine;
mod replicating;
mod restart;
mod reuse;
mod revoking;

use std::collections::BTreeSet;

use super::{Registry, Revocation, RevocationState};

impl Registry {
    /// The indexes say what the records say.
    fn check(&self) {
        self.sessions.check();
        self.holdings.check();
        self.traces.check();
        self.check_web();
        let busy: BTreeSet<_> = self.revocations.values().filter(|r| r.is_busy()).map(|r| r.number).collect();
        assert_eq!(self.busy.union(&self.writing).copied().collect::<BTreeSet<_>>(), busy);
        for r in self.revocations() {
            let is_over = matches!(r.state, RevocationState::Lifted | RevocationState::Expired);
            // whoever counts those in force counts those that hold something
            assert!(
                !is_over || !self.holdings.holds_any(r.number),
                "{} is over and holds something",
                r.number
            );
        }
        for (id, mark) in &self.marks {
            assert!(!mark.numbers.is_empty(), "{id} is refused for nobody");
            for revocation in mark.numbers.iter().filter_map(|n| self.revocations.get(n)) {
                let fate = revocation.safe_ids.get(id);
                assert!(
                    fate.is_some_and(|fate| fate.gone == mark.gone),
                    "{}: {id}: {fate:?}",
                    revocation.number
                );
            }
        }
        let kept = |r: &Revocation| r.is_busy() || self.holdings.holds_any(r.number);
        assert!(
            self.revocations.values().filter(|r| !kept(r.as_ref())).count()
                <= super::MAX_FINISHED + super::MAX_FINISHED / 10
        );
    }
}
