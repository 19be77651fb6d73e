//! R2, R5, R7: the daemon dies while it fills new maps after a reboot. What they do not hold yet is on the disk, and the
//! gate looks there until they hold all of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use std::collections::BTreeSet;
use std::ffi::CString;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use enforcer::dataplane::GateMaps;
use enforcer_tests::client::Cookie;
use enforcer_tests::enforcer::DONE;
use enforcer_tests::probe::Probe;
use enforcer_tests::process::{BOUND, eventually};
use enforcer_tests::scene::Scene;
use enforcer_tests::{Enforcer, Era};

/// So many that filling takes a while. They go in before any lock: whoever took half-filled maps for the whole truth
/// would let a locked person in.
const ADDRESSES: u32 = 20_000;

/// There are maps, and they are not full yet.
fn is_filling(enforcer: &Enforcer) -> bool {
    enforcer.pins().join("maps/meta").exists() && matches!(GateMaps::open(&enforcer.pins()), Ok(None))
}

fn is_filled(enforcer: &Enforcer) -> bool {
    matches!(GateMaps::open(&enforcer.pins()), Ok(Some(_)))
}

/// Some of what is to be in there is there: the kernel tells a first key of the table (of an array it always does, and
/// then this says no more than that there are maps).
fn has_entries(enforcer: &Enforcer) -> bool {
    let Ok(path) = CString::new(enforcer.pins().join("maps/addresses").into_os_string().into_encoded_bytes())
    else {
        return false;
    };
    // union bpf_attr of bpf(2): for BPF_OBJ_GET a path; for BPF_MAP_GET_NEXT_KEY a map, no key, and where the next goes
    let mut key = [0_u8; 256];
    let get = [path.as_ptr() as u64, 0, 0];
    // SAFETY: the path ends with a nul and outlives the call, which reads as many bytes as it is told and no more.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, 7, get.as_ptr(), size_of_val(&get)) };
    let Ok(fd) = i32::try_from(fd) else { return false };
    if fd < 0 {
        return false;
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
    let map = unsafe { OwnedFd::from_raw_fd(fd) };
    let next = [map.as_raw_fd() as u64, 0, key.as_mut_ptr() as u64];
    // SAFETY: the key has room for every key that our tables have, and outlives the call.
    unsafe { libc::syscall(libc::SYS_bpf, 4, next.as_ptr(), size_of_val(&next)) == 0 }
}

/// A boot id of its own for each reboot.
fn reboot(enforcer: &mut Enforcer, boots: &mut u32) {
    *boots += 1;
    enforcer.reboot(&format!("11111111-2222-3333-4444-{boots:012}"));
}

/// Starts the daemon on maps that are not full, and kills it at that moment of filling them. Where the machine was too
/// slow to do so, everything is begun anew.
fn kill_when(enforcer: &mut Enforcer, boots: &mut u32, moment: fn(&Enforcer) -> bool) {
    for _ in 0..20 {
        enforcer.launch();
        eventually("that moment of filling the maps", BOUND, || {
            (is_filled(enforcer) || is_filling(enforcer) && moment(enforcer)).then_some(())
        });
        enforcer.kill();
        if is_filling(enforcer) {
            return;
        }
        reboot(enforcer, boots);
    }
    panic!("the maps are always filled before the daemon can be killed");
}

/// Who was locked or revoked is refused, and who was not is let in.
fn doors(scene: &Scene, dead: &Cookie) {
    let fresh = scene.alice.authenticate(&scene.server, "alice");
    scene.refused(&scene.alice, &fresh);
    scene.refused(&scene.bob, dead);
    scene.bob.session(&scene.server, "bob").1.log_out();
}

#[test]
fn r2_r7_killed_while_new_maps_are_filled() {
    // ocserv is not started anew, and knows bob's cookie all the time: nobody but the gate refuses it
    let mut scene =
        Scene::with("filling", Era::Bookworm, |ocserv| ocserv.set("max-ban-score", "0"), |config| config);
    let mut probe = Probe::new(&scene.lab);
    let mut boots = 0;
    let (dead, mut tunnel) = scene.session(&scene.bob, "bob");
    let revoked = scene.enforcer.revoke("bob").receipt().number().expect("a number").to_string();
    tunnel.wait_end();
    scene.enforcer.cli(&["lock", "user", "alice"]).code(DONE);
    let lines: String = (0..ADDRESSES).map(|n| format!("address {}\n", Probe::address(n))).collect();
    scene.enforcer.cli_with(&["revoke", "--from", "-"], &lines).code(DONE);
    let some = [0, ADDRESSES / 2, ADDRESSES - 1, ADDRESSES].map(Probe::address);
    doors(&scene, &dead);

    let everything = |scene: &Scene, probe: &mut Probe| {
        assert!(is_filled(&scene.enforcer));
        doors(scene, &dead);
        assert_eq!(probe.reached(&some), BTreeSet::from([some[3]]));
    };

    // before there is anything in them
    scene.enforcer.kill();
    reboot(&mut scene.enforcer, &mut boots);
    kill_when(&mut scene.enforcer, &mut boots, |_| true);
    doors(&scene, &dead);
    scene.enforcer.start();
    everything(&scene, &mut probe);
    // when something is, and not yet what the gate has to know; and once more in what that has left
    scene.enforcer.kill();
    reboot(&mut scene.enforcer, &mut boots);
    kill_when(&mut scene.enforcer, &mut boots, has_entries);
    assert!(has_entries(&scene.enforcer));
    doors(&scene, &dead);
    kill_when(&mut scene.enforcer, &mut boots, has_entries);
    doors(&scene, &dead);
    scene.enforcer.start();
    everything(&scene, &mut probe);

    // the gate alone once more, by maps that are full
    scene.enforcer.kill();
    doors(&scene, &dead);
    // none of it was for another reason
    scene.enforcer.start();
    scene.enforcer.cli(&["lift", &revoked]).code(DONE);
    scene.enforcer.cli(&["unlock", "user", "alice"]).code(DONE);
    scene.bob.connect(&scene.server, &dead, &enforcer_tests::Connect::default()).up().log_out();
    scene.alice.session(&scene.server, "alice").1.log_out();
}
