//! The indexes of the holdings against a scan of all of them.

use proptest::prelude::*;
use std::collections::BTreeSet;

use super::super::holdings::{Holdings, Want};
use super::super::{Effect, Number, SessionKey};
use super::harness::*;
use crate::session::{CutoffKey, Device, Entry, SafeId, Stands};

#[derive(Debug, Clone)]
enum Op {
    Hold(Entry, Number, Want),
    Gate(Entry, Number, u64),
    Adopt(Entry, Number, Stands),
    All(Entry),
    Others(Entry, SessionKey),
    But(Entry, Number),
    Number(Number),
    Session(SessionKey),
    Orphans,
    Expire(u32),
    Failed(Entry, Number),
}

fn entries() -> impl Strategy<Value = Entry> {
    (0..6u8).prop_map(|n| match n {
        0 | 1 => Entry::Device(Device { netns: NETNS, index: n.into() }),
        2 => Entry::Address(NETNS, ip(n)),
        3 => Entry::Flow(NETNS, outer(n.into())),
        4 => Entry::SafeId(SafeId::from_bytes([n; 20])),
        _ => Entry::Cutoff(CutoffKey::from_bytes([n; 20])),
    })
}

fn wants() -> impl Strategy<Value = Want> {
    prop_oneof![
        Just(Want::Forever),
        (1..20u32).prop_map(|s| Want::Until(SECOND * s)),
        proptest::option::of(1..4u64).prop_map(Want::Leased),
    ]
}

fn ops() -> impl Strategy<Value = Op> {
    let number = 1..5u64;
    prop_oneof![
        6 => (entries(), number.clone(), wants()).prop_map(|(e, n, w)| Op::Hold(e, n, w)),
        2 => (entries(), number.clone(), 0..9u64).prop_map(|(e, n, m)| Op::Gate(e, n, m)),
        1 => (entries(), number.clone(), 1..20u64).prop_map(|(e, n, s)| Op::Adopt(e, n, Stands::Until(s * 1_000_000_000))),
        1 => (entries(), number.clone()).prop_map(|(e, n)| Op::Adopt(e, n, Stands::Leased)),
        1 => entries().prop_map(Op::All),
        1 => (entries(), 1..4u64).prop_map(|(e, s)| Op::Others(e, s)),
        1 => (entries(), number.clone()).prop_map(|(e, n)| Op::But(e, n)),
        1 => number.clone().prop_map(Op::Number),
        1 => (1..4u64).prop_map(Op::Session),
        1 => Just(Op::Orphans),
        1 => (1..20u32).prop_map(Op::Expire),
        1 => (entries(), number).prop_map(|(e, n)| Op::Failed(e, n)),
    ]
}

fn apply(holdings: &mut Holdings, op: Op, out: &mut Vec<Effect>) {
    match op {
        Op::Hold(entry, number, want) => holdings.hold(entry, number, want, out),
        Op::Gate(entry, number, moment) => {
            holdings.hold_for_gate(entry, number, Want::Forever, Some(vpn()), moment, out)
        }
        Op::Adopt(entry, number, stands) => {
            holdings.adopt(&entry, number, stands, None, 0);
            // an adopted entry is in the kernel by definition
            out.push(Effect::Insert { entry, number, stands, server: None, moment: 0 });
        }
        Op::All(entry) => holdings.release_all(&entry, out),
        Op::Others(entry, session) => holdings.release_leases_of_others(&entry, session, out),
        Op::But(entry, number) => holdings.release_others(&entry, &BTreeSet::from([number]), out),
        Op::Number(number) => holdings.release_number(number, out),
        Op::Session(session) => holdings.release_session(session, |e| !matches!(e, Entry::Flow(..)), out),
        Op::Orphans => holdings.release_orphans(|_| true, out),
        Op::Expire(at) => {
            holdings.expire(SECOND * at, out);
            assert!(holdings.next_expiry().is_none_or(|next| next > SECOND * at));
        }
        Op::Failed(..) => unreachable!(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_indexes_agree_with_a_scan_and_the_kernel_with_what_is_wanted(ops in prop::collection::vec(ops(), 1..60)) {
        let mut holdings = Holdings::default();
        let mut kernel = std::collections::BTreeMap::new();
        for op in ops {
            let mut out = Vec::new();
            match op {
                // only a first write can be told from what stands: a table that is full
                Op::Failed(entry, number) if !holdings.holds(&entry) => {
                    holdings.hold(entry.clone(), number, Want::Forever, &mut Vec::new());
                    prop_assert_eq!(holdings.failed(&entry, number), BTreeSet::from([number]));
                    holdings.retry(&entry, &mut out);
                }
                // an earlier run's entries come before all others
                Op::Failed(..) => {}
                Op::Adopt(ref entry, ..) if holdings.holds(entry) => {}
                op => apply(&mut holdings, op, &mut out),
            }
            for effect in out {
                match effect {
                    Effect::Insert { entry, number, stands, .. } => {
                        kernel.insert(entry, (number, stands));
                    }
                    Effect::Remove { entry, .. } => prop_assert!(kernel.remove(&entry).is_some()),
                    _ => {}
                }
            }
            holdings.check();
            holdings.check_kernel(&kernel);
        }
    }
}

/// A bulk of explicit entries: nothing that happens once an event may go through all of them.
#[test]
fn r7_with_a_hundred_thousand_entries_an_event_costs_no_more_than_a_look() {
    let mut holdings = Holdings::default();
    let mut out = Vec::new();
    for n in 0..100_000u32 {
        let entry = Entry::Device(Device { netns: NETNS, index: n });
        holdings.hold(entry, n.into(), Want::Until(SECOND * (n + 1)), &mut out);
    }
    let started = std::time::Instant::now();
    for n in 0..10_000 {
        assert_eq!(holdings.next_expiry(), Some(SECOND));
        assert_eq!(holdings.of(n).len(), 1);
        holdings.release_session(n, |_| true, &mut out);
        assert!(holdings.expire(SECOND / 2, &mut out).is_empty());
        assert_eq!(holdings.cutoffs().count(), 0);
    }
    // a scan of all of them for each would take minutes
    assert!(started.elapsed() < 10 * SECOND, "{:?}", started.elapsed());
}
