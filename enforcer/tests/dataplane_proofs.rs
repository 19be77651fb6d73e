//! Probes: what hangs at the devices is proved to be in force, and what is not in force is found. Needs root; every test
//! has namespaces and a bpffs of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

mod lab;
mod traffic;

use std::ffi::CString;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;
use std::process::Command;

use aya::EbpfLoader;
use aya::programs::Xdp;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use enforcer::dataplane::{Dataplane, GateFacts, Proof, Role, Settings, TcPreference, Untold};
use enforcer::session::{Entry, Stands};
use lab::{CLIENT, GATEWAY, Lab, PEER, Tun, ifindex, lab};
use traffic::{address, flow};

const NONE: GateFacts = GateFacts { server: 0, moment: 0 };
/// As `check` and the documents name it.
const PROBE: &str = "2001:db8:656e:666f:7263:6572::";

fn attach(dataplane: &mut Dataplane, lab: &Lab, name: &str, role: Role) {
    dataplane.attach(None, lab.netns(), ifindex(name), name, role).unwrap();
}

#[track_caller]
fn all_is_well(proofs: &[Proof]) {
    assert!(proofs.iter().all(|proof| proof.wrong.is_empty() && proof.untried.is_empty()), "{proofs:?}");
}

/// What is wrong at the one place of that role; everywhere else all is well.
#[track_caller]
fn wrong(dataplane: &mut Dataplane, role: Role) -> String {
    let (its, others): (Vec<_>, Vec<_>) = dataplane.prove().into_iter().partition(|proof| proof.role == role);
    all_is_well(&others);
    assert!(its.len() == 1 && its[0].untried.is_empty(), "{its:?}");
    its[0].wrong.join("; ")
}

fn every_place_is_proved(tc: TcPreference) {
    lab(move |lab| {
        let mut dataplane = Dataplane::open(Settings { tc, ..lab.settings() }).unwrap();
        let _tun = Tun::new("tun0");
        attach(&mut dataplane, lab, "gw", Role::Outer);
        attach(&mut dataplane, lab, "gw", Role::Inner);
        attach(&mut dataplane, lab, "tun0", Role::Tunnel);
        // bare frames in XDP, and another namespace
        attach(&mut dataplane, lab, "tun0", Role::Outer);
        let far = lab::number(&lab.peer);
        let index = lab.there(|| ifindex("peer"));
        dataplane.attach(Some(lab.peer.as_fd()), far, index, "peer", Role::Inner).unwrap();
        let (server, client) = (lab.here(&format!("{GATEWAY}:443")), lab.far(&format!("{PEER}:4000")));
        let entry = flow(lab.netns(), &client, &server);
        dataplane.insert(&entry, 1, Stands::Forever, NONE).unwrap();
        assert!(!client.reaches(&server));
        // that packet came before anybody was ready to be told
        let untold = Untold { suppressed: 1, lost: 0 };
        assert_eq!(dataplane.untold().unwrap(), untold);
        dataplane.allow_drops().unwrap();
        let mut drops = dataplane.drops().unwrap();
        let before = (dataplane.counters().unwrap(), dataplane.usage(), dataplane.entries().unwrap());
        for _ in 0..3 {
            let proofs = dataplane.prove();
            assert_eq!(proofs.len(), 5, "{proofs:?}");
            all_is_well(&proofs);
        }
        let after = (dataplane.counters().unwrap(), dataplane.usage(), dataplane.entries().unwrap());
        assert_eq!(before, after, "it leaves no trace");
        assert_eq!(drops.next_drop(), None, "and is no event");
        assert_eq!(dataplane.untold().unwrap(), untold);
        assert!(!client.reaches(&server));
        let counted = |dataplane: &Dataplane| {
            let all = dataplane.counters().unwrap();
            all.iter().find(|counter| counter.reason == "dropped-flow").unwrap().packets
        };
        let packets = counted(&dataplane);
        // what probes have counted is known to the next process too
        drop(dataplane);
        let dataplane = lab.open();
        assert_eq!(counted(&dataplane), packets);
        assert!(packets >= 2, "real packets are counted: {packets}");
    });
}

#[test]
fn r6_every_place_is_proved_with_tcx() {
    every_place_is_proved(TcPreference::Tcx);
}

#[test]
fn r6_every_place_is_proved_with_clsact() {
    every_place_is_proved(TcPreference::Clsact);
}

/// A link of ours, as anybody with the rights can open it.
fn open_link(lab: &Lab, hook: &str) -> (OwnedFd, std::path::PathBuf) {
    let pins = std::fs::read_dir(lab.pin_path().join("links")).unwrap().flatten();
    let path = pins.map(|pin| pin.path()).find(|pin| pin.to_string_lossy().contains(hook)).unwrap();
    (object(&path), path)
}

/// BPF_OBJ_GET
fn object(path: &Path) -> OwnedFd {
    let name = CString::new(path.to_str().unwrap()).unwrap();
    let attributes = [name.as_ptr() as u64, 0];
    // SAFETY: the name outlives the call; the descriptor is new.
    unsafe {
        let fd = nix::libc::syscall(nix::libc::SYS_bpf, 7, &raw const attributes, 16);
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(i32::try_from(fd).unwrap())
    }
}

/// R6: a program that somebody has detached is found, and nothing else is called broken. A new daemon attaches anew.
#[test]
fn r6_a_detached_program_is_found() {
    lab(|lab| {
        let mut dataplane = lab.open();
        for role in [Role::Outer, Role::Inner] {
            attach(&mut dataplane, lab, "gw", role);
        }
        for (hook, role) in [("outer", Role::Outer), ("lan_out", Role::Inner)] {
            all_is_well(&dataplane.prove());
            let (link, _) = open_link(lab, hook);
            let attributes = link.as_raw_fd();
            // SAFETY: BPF_LINK_DETACH reads a descriptor.
            let done = unsafe { nix::libc::syscall(nix::libc::SYS_bpf, 34, &raw const attributes, 4) };
            assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
            let told = wrong(&mut dataplane, role);
            assert_eq!(told, format!("{hook}: somebody has detached its program"));
            drop(dataplane);
            dataplane = lab.open();
            for role in [Role::Outer, Role::Inner] {
                attach(&mut dataplane, lab, "gw", role);
            }
        }
        all_is_well(&dataplane.prove());
    });
}

/// R6: a program that somebody has put in the place of ours is found, although its name and its code are those of ours: it
/// looks into other tables.
#[test]
fn r6_a_program_in_the_place_of_ours_is_found() {
    static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/enforcer-abi-2.bpf.o"));
    lab(|lab| {
        let mut dataplane = lab.open();
        for role in [Role::Outer, Role::Inner] {
            attach(&mut dataplane, lab, "gw", role);
        }
        all_is_well(&dataplane.prove());
        let (server, client) = (lab.here(&format!("{GATEWAY}:443")), lab.far(&format!("{PEER}:4000")));
        let entry = flow(lab.netns(), &client, &server);
        dataplane.insert(&entry, 1, Stands::Forever, NONE).unwrap();
        assert!(!client.reaches(&server));
        let mut other =
            EbpfLoader::new().override_global("NETNS", &lab.netns().0, true).load(OBJECT).unwrap();
        let program: &mut Xdp = other.program_mut("outer_ether").unwrap().try_into().unwrap();
        program.load().unwrap();
        let (_, path) = open_link(lab, "outer");
        let link = XdpLink::try_from(FdLink::from(PinnedLink::from_pin(path).unwrap())).unwrap();
        let _its = program.attach_to_link(link).unwrap();
        assert!(client.reaches(&server), "the hole is there");
        let told = wrong(&mut dataplane, Role::Outer);
        assert_eq!(told, "outer: a probe was NOT dropped by its flow");
        attach(&mut dataplane, lab, "gw", Role::Outer);
        assert!(!client.reaches(&server));
        all_is_well(&dataplane.prove());
    });
}

/// R6: a clsact filter that somebody has removed.
#[test]
fn r6_a_removed_filter_is_found() {
    lab(|lab| {
        let mut dataplane = Dataplane::open(Settings { tc: TcPreference::Clsact, ..lab.settings() }).unwrap();
        for role in [Role::Outer, Role::Inner] {
            attach(&mut dataplane, lab, "gw", role);
        }
        all_is_well(&dataplane.prove());
        let (client, lan) = (lab.here(&format!("{CLIENT}:5000")), lab.far(&format!("{PEER}:80")));
        dataplane.insert(&address(lab.netns(), CLIENT), 1, Stands::Forever, NONE).unwrap();
        assert!(!client.reaches(&lan));
        let done = Command::new("tc").args(["filter", "del", "dev", "gw", "egress"]).status().unwrap();
        assert!(done.success());
        assert!(client.reaches(&lan), "the hole is there");
        assert_eq!(wrong(&mut dataplane, Role::Inner), "lan_out: somebody has removed its filter");
    });
}

/// R6, R3: what an administrator has said of that very address is not touched; and what was not tried is not called proved.
#[test]
fn r6_r3_an_order_about_the_probes_own_address_is_left_alone() {
    lab(|lab| {
        let mut dataplane = lab.open();
        attach(&mut dataplane, lab, "gw", Role::Inner);
        let entry = address(lab.netns(), PROBE);
        dataplane.insert(&entry, 5, Stands::Forever, NONE).unwrap();
        let proofs = dataplane.prove();
        assert!(proofs.len() == 1 && proofs[0].wrong.is_empty(), "{proofs:?}");
        assert!(proofs[0].untried.iter().any(|why| why.contains("revocation 5")), "{proofs:?}");
        assert_eq!(dataplane.revocation_of(&entry), Some(5));
        assert!(dataplane.remove(&entry).unwrap());
        all_is_well(&dataplane.prove());
    });
}

/// R7: a full table is said, and what stands in it stays.
#[test]
fn r7_where_there_is_no_room_for_a_probe_it_is_said() {
    lab(|lab| {
        let mut dataplane = lab.open();
        attach(&mut dataplane, lab, "gw", Role::Inner);
        let entries: Vec<Entry> =
            (0..64).map(|number| address(lab.netns(), &format!("11.0.0.{number}"))).collect();
        for entry in &entries {
            dataplane.insert(entry, 5, Stands::Forever, NONE).unwrap();
        }
        let proofs = dataplane.prove();
        assert!(
            proofs.iter().all(|proof| proof.untried.iter().any(|why| why.contains("full"))),
            "{proofs:?}"
        );
        assert_eq!(dataplane.entries().unwrap().len(), entries.len());
    });
}
