//! R5: pins that go away under the daemon. Needs root; every test has namespaces and a bpffs of its own, and those
//! that unmount it a mount namespace.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

mod lab;
mod traffic;

use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use enforcer::dataplane::{Dataplane, GateFacts, GateMaps, Role, Settings, TcPreference};
use enforcer::session::{Entry, SafeId, Stands};
use lab::{Lab, ifindex, lab};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use traffic::{Traffic, attach, flow, with};

const NONE: GateFacts = GateFacts { server: 0, moment: 0 };
const ID: SafeId = SafeId::from_bytes([1; 20]);

/// A gateway with everything in force, also in another namespace.
fn in_force(lab: &Lab, tc: TcPreference) -> (Dataplane, Traffic) {
    let mut dataplane = Dataplane::open(Settings { tc, ..with(lab, 64) }).unwrap();
    attach(&mut dataplane, lab);
    let traffic = Traffic::new(lab);
    for entry in traffic.entries(lab) {
        dataplane.insert(&entry, 1, Stands::Forever, NONE).unwrap();
    }
    dataplane.insert(&Entry::SafeId(ID), 1, Stands::Forever, NONE).unwrap();
    (dataplane, traffic)
}

fn names(folder: &Path) -> Vec<String> {
    let mut all: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    all.sort();
    all
}

fn pins(lab: &Lab) -> [Vec<String>; 3] {
    let root = lab.pin_path();
    [names(&root), names(&root.join("maps")), names(&root.join("links"))]
}

/// Mounts of this thread are its own from now on, and vanish with it.
fn own_mounts() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
}

fn everything_again(lab: &Lab, dataplane: &mut Dataplane, traffic: &Traffic, before: &[Vec<String>; 3]) {
    assert_eq!(pins(lab), *before);
    traffic.is_dropped();
    let gate = GateMaps::open(&lab.pin_path()).unwrap().expect("pinned");
    assert!(gate.safe_id(&ID).unwrap().is_some());
    assert!(dataplane.mend_pins().unwrap().is_nothing());
    // they are the maps in which the daemon goes on writing
    let other = SafeId::from_bytes([2; 20]);
    assert!(gate.safe_id(&other).unwrap().is_none());
    dataplane.insert(&Entry::SafeId(other), 2, Stands::Forever, NONE).unwrap();
    assert!(gate.safe_id(&other).unwrap().is_some());
    dataplane.remove(&Entry::SafeId(other)).unwrap();
}

fn unmounted(tc: TcPreference) {
    lab(move |lab| {
        own_mounts();
        let (mut dataplane, traffic) = in_force(lab, tc);
        let before = pins(lab);
        assert!(dataplane.mend_pins().unwrap().is_nothing());
        let maps = before[1].len();
        let links = before[2].iter().filter(|name| !name.ends_with("clsact")).count();
        for round in 0..3 {
            let parent = lab.pin_path().parent().unwrap().to_owned();
            umount2(&parent, MntFlags::MNT_DETACH).unwrap();
            assert!(!lab.pin_path().exists());
            traffic.is_dropped();
            // a gate has its maps or is told that there are none, but nothing that is half there
            assert!(GateMaps::open(&lab.pin_path()).unwrap().is_none());
            let mended = dataplane.mend_pins().unwrap();
            assert!(mended.mounted);
            assert_eq!(mended.pinned, maps + links, "round {round}");
            assert_eq!(mended.attached, usize::from(tc == TcPreference::Clsact), "clsact has no links");
            everything_again(lab, &mut dataplane, &traffic, &before);
        }
        // what is pinned again outlives the daemon, and is taken over
        drop(dataplane);
        traffic.is_dropped();
        let dataplane = Dataplane::open(with(lab, 64)).unwrap();
        assert_eq!(dataplane.entries().unwrap().len(), 4);
        traffic.is_dropped();
        drop(dataplane);
        let report = Dataplane::unload(&lab.pin_path()).unwrap();
        assert_eq!((report.links + report.filters, report.left), (3, Vec::new()));
        traffic.passes();
    });
}

#[test]
fn r5_an_unmounted_bpffs_is_mounted_again_and_everything_pinned_with_tcx() {
    unmounted(TcPreference::Tcx);
}

#[test]
fn r5_an_unmounted_bpffs_is_mounted_again_and_everything_pinned_with_clsact() {
    unmounted(TcPreference::Clsact);
}

#[test]
fn r5_single_pins_are_pinned_again() {
    lab(|lab| {
        let (mut dataplane, traffic) = in_force(lab, TcPreference::Tcx);
        let before = pins(lab);
        let root = lab.pin_path();
        let all = before[1].iter().map(|name| root.join("maps").join(name));
        for pin in all.chain(before[2].iter().map(|name| root.join("links").join(name))) {
            fs::remove_file(&pin).unwrap();
            traffic.is_dropped();
            let mended = dataplane.mend_pins().unwrap();
            assert_eq!((mended.mounted, mended.pinned, mended.attached), (false, 1, 0), "{}", pin.display());
            everything_again(lab, &mut dataplane, &traffic, &before);
        }
        // the whole folder, by hand
        fs::remove_file(root.join("log")).unwrap();
        for folder in ["maps", "links"] {
            for name in names(&root.join(folder)) {
                fs::remove_file(root.join(folder).join(name)).unwrap();
            }
            fs::remove_dir(root.join(folder)).unwrap();
        }
        fs::remove_dir(&root).unwrap();
        traffic.is_dropped();
        // what attaches looks first: a device that comes in that moment must not get maps of its own
        let peer = lab::number(&lab.peer);
        let index = lab.there(|| ifindex("peer"));
        dataplane.attach(Some(lab.peer.as_fd()), peer, index, "peer", Role::Outer).unwrap();
        assert!(dataplane.mend_pins().unwrap().is_nothing());
        traffic.is_dropped();
        let theirs = flow(peer, &traffic.server, &traffic.neighbour);
        dataplane.insert(&theirs, 3, Stands::Forever, NONE).unwrap();
        assert!(!traffic.server.reaches(&traffic.neighbour));
        dataplane.remove(&theirs).unwrap();
        assert!(traffic.server.reaches(&traffic.neighbour));
    });
}

/// Somebody has unloaded everything while the daemon runs: what hangs nowhere any more is attached anew.
#[test]
fn r5_programs_that_were_taken_out_are_attached_again() {
    for tc in [TcPreference::Tcx, TcPreference::Clsact] {
        lab(move |lab| {
            let (mut dataplane, traffic) = in_force(lab, tc);
            let before = pins(lab);
            Dataplane::unload(&lab.pin_path()).unwrap();
            traffic.passes();
            let mended = dataplane.mend_pins().unwrap();
            assert_eq!((mended.mounted, mended.attached), (false, 2), "one device, two roles");
            everything_again(lab, &mut dataplane, &traffic, &before);
            // a device that is gone is no loss
            fs::read_dir(lab.pin_path().join("links")).unwrap().for_each(|pin| {
                let pin = pin.unwrap().path();
                let _ = fs::remove_dir(&pin).or_else(|_| fs::remove_file(&pin));
            });
            lab::ip("link del gw");
            let mended = dataplane.mend_pins().unwrap();
            assert_eq!((mended.pinned, mended.attached), (0, 0));
            assert!(dataplane.attachments().is_empty());
        });
    }
}

/// Another enforcer's maps in our folder: said, and nothing is overwritten.
#[test]
fn foreign_maps_in_the_folder_are_an_error() {
    lab(|lab| {
        let (mut dataplane, traffic) = in_force(lab, TcPreference::Tcx);
        let flows = lab.pin_path().join("maps/flows");
        fs::remove_file(&flows).unwrap();
        let foreign = aya::maps::MapData::from_pin(lab.pin_path().join("maps/addresses")).unwrap();
        foreign.pin(&flows).unwrap();
        let error = dataplane.mend_pins().unwrap_err().to_string();
        assert!(error.contains("maps/flows is another map") && error.contains("second enforcer"), "{error}");
        traffic.is_dropped();
        fs::remove_file(&flows).unwrap();
        assert_eq!(dataplane.mend_pins().unwrap().pinned, 1);
    });
}

#[test]
fn looking_after_the_pins_is_cheap() {
    lab(|lab| {
        let (mut dataplane, _traffic) = in_force(lab, TcPreference::Tcx);
        let mut times: Vec<Duration> = (0..20_000)
            .map(|_| {
                let start = Instant::now();
                assert!(dataplane.mend_pins().unwrap().is_nothing());
                start.elapsed()
            })
            .collect();
        times.sort();
        // a folder that has just changed is not trusted at once: the first ones look at every pin
        eprintln!(
            "mend_pins: {:?} when all is well, {:?} at the 99th percentile",
            times[10_000], times[19_800]
        );
    });
}
