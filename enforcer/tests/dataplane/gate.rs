//! What the gate reads of the maps without the daemon.

use std::time::Instant;

use enforcer::dataplane::{Dataplane, GateFacts, GateMaps, Role, Settings};
use enforcer::session::{CutoffKey, Entry, SafeId, ServerName, Stands};

use crate::lab::{CLIENT, lab};
use crate::{attach, insert, person};

#[test]
fn r2_no_gate_takes_maps_for_the_whole_truth_before_they_are_filled() {
    lab(|lab| {
        let fill = || Settings { fill: true, ..lab.settings() };
        let looks = || GateMaps::open(&lab.pin_path()).unwrap().is_some();
        let mut dataplane = Dataplane::open(fill()).unwrap();
        dataplane.set_next_revocation(7).unwrap();
        assert!(!looks());
        drop(dataplane);
        // whoever was to fill them has died in the middle of it
        let mut dataplane = Dataplane::open(fill()).unwrap();
        assert!(!looks());
        dataplane.filled().unwrap();
        assert!(looks());
        assert_eq!(dataplane.next_revocation(), 7);
        drop(dataplane);
        // they are full from then on
        let _dataplane = Dataplane::open(fill()).unwrap();
        assert!(looks());
    });
}

#[test]
fn attaching_again_changes_nothing_and_the_gate_reads_what_stands() {
    lab(|lab| {
        assert!(GateMaps::open(&lab.pin_path()).unwrap().is_none());
        let start = Instant::now();
        let mut dataplane = lab.open();
        let opened = start.elapsed();
        let (id, alice) = (SafeId::from_bytes([8; 20]), CutoffKey::new(&ServerName::new("default"), "alice"));
        let facts = |moment| GateFacts { server: 5, moment };
        dataplane.insert(&Entry::SafeId(id), 3, Stands::Forever, facts(100)).unwrap();
        dataplane.insert(&Entry::Cutoff(alice), 4, Stands::Forever, facts(200)).unwrap();
        let start = Instant::now();
        let gate = GateMaps::open(&lab.pin_path()).unwrap().unwrap();
        let found = gate.safe_id(&id).unwrap().unwrap();
        let looked = start.elapsed();
        assert_eq!((found.revocation, found.server, found.since), (3, 5, 100));
        let found = gate.cutoff(&alice).unwrap().unwrap();
        assert_eq!((found.revocation, found.server, found.up_to), (4, 5, 200));
        assert_eq!(gate.safe_id(&SafeId::from_bytes([9; 20])).unwrap(), None);
        assert_eq!(gate.cutoff(&CutoffKey::new(&ServerName::new("default"), "bob")).unwrap(), None);
        dataplane.count_gate_hit(&Entry::SafeId(id));
        assert_eq!(dataplane.hits(&Entry::SafeId(id)), Some(2));
        assert_eq!(dataplane.hits(&Entry::Cutoff(alice)), Some(1));
        // an older moment never shortens a cutoff; a removal forgets the hits
        dataplane.insert(&Entry::Cutoff(alice), 5, Stands::Forever, facts(150)).unwrap();
        assert_eq!(gate.cutoff(&alice).unwrap().map(|found| (found.revocation, found.up_to)), Some((5, 200)));
        assert!(dataplane.remove(&Entry::SafeId(id)).unwrap());
        assert_eq!(gate.safe_id(&id).unwrap(), None);
        dataplane.insert(&Entry::SafeId(id), 6, Stands::Forever, facts(100)).unwrap();
        assert_eq!(dataplane.hits(&Entry::SafeId(id)), Some(0));

        let start = Instant::now();
        attach(&mut dataplane, lab, "gw", Role::Outer);
        attach(&mut dataplane, lab, "gw", Role::Inner);
        let attached = start.elapsed();
        let mut again = Vec::new();
        for _ in 0..20 {
            let start = Instant::now();
            attach(&mut dataplane, lab, "gw", Role::Inner);
            again.push(start.elapsed());
        }
        again.sort();
        let entry = Entry::Address(lab.netns(), CLIENT.parse().unwrap());
        let start = Instant::now();
        insert(&mut dataplane, &entry, Stands::Forever);
        let inserted = start.elapsed();
        eprintln!(
            "open {opened:?}, gate {looked:?}, attach {attached:?}, again {:?}, insert {inserted:?}",
            again[again.len() / 2]
        );
    });
}

/// R2: without the daemon too, for as long as it was said.
#[test]
fn r2_a_lock_is_read_by_the_gate_until_its_time() {
    lab(|lab| {
        let mut dataplane = lab.open();
        let (alice, bob) = (person("default", "alice"), person("default", "bob"));
        let since = GateFacts { server: 0, moment: 1_700_000_000 };
        let now = Dataplane::kernel_monotonic_ns();
        let lock = |dataplane: &mut Dataplane, who, number, stands| {
            dataplane.insert(&Entry::Lock(who), number, stands, since)
        };
        lock(&mut dataplane, alice, 3, Stands::Forever).unwrap();
        lock(&mut dataplane, bob, 4, Stands::Until(now)).unwrap();
        let leased = lock(&mut dataplane, bob, 4, Stands::Leased).unwrap_err().to_string();
        assert!(leased.contains("cannot be leased"), "{leased}");
        drop(dataplane);

        let gate = GateMaps::open(&lab.pin_path()).unwrap().unwrap();
        let found = gate.lock(&alice).unwrap().unwrap();
        assert_eq!((found.revocation, found.since), (3, 1_700_000_000));
        assert_eq!(gate.lock(&bob).unwrap(), None, "its time is over");
        assert_eq!(gate.lock(&person("web", "alice")).unwrap(), None, "another realm's alice");

        let mut dataplane = lab.open();
        assert_eq!(dataplane.hits(&Entry::Lock(alice)), Some(1));
        assert_eq!(dataplane.hits(&Entry::Lock(bob)), Some(0), "an expired lock refuses nobody");
        dataplane.count_gate_hit(&Entry::Lock(alice));
        assert_eq!(dataplane.hits(&Entry::Lock(alice)), Some(2));
        // prolonged; then a newer one, and at last lifted
        lock(&mut dataplane, bob, 4, Stands::Until(now + 3_600_000_000_000)).unwrap();
        assert_eq!(gate.lock(&bob).unwrap().map(|found| found.revocation), Some(4));
        lock(&mut dataplane, alice, 5, Stands::Until(now)).unwrap();
        assert_eq!(gate.lock(&alice).unwrap().map(|found| found.revocation), Some(5), "never shortened");
        let usage = dataplane.usage().into_iter().find(|usage| usage.name == "locks").unwrap();
        assert_eq!((usage.used, usage.capacity), (2, 64));
        assert!(dataplane.remove(&Entry::Lock(alice)).unwrap());
        assert_eq!(gate.lock(&alice).unwrap(), None);
        assert!(gate.lock(&bob).unwrap().is_some());
    });
}
