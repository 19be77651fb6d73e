//! `enforcer check` and `show status`: what is in force is told, and what is not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use enforcer_tests::enforcer::{Config, DONE, ERROR, PARTIAL};
use enforcer_tests::scene::Scene;
use enforcer_tests::{Connect, Enforcer, Era, Lab, Ocserv};

/// R6: all is well, and then the daemon is gone: what it put into the kernel is still said to be in force.
#[test]
fn check_tells_what_is_in_force() {
    let mut scene = Scene::new("check", Era::Bookworm);
    let said = scene.enforcer.cli(&["check"]).code(DONE).stdout;
    assert!(said.contains("its configuration names the gate"), "{said}");
    scene.session(&scene.alice, "alice");
    let said = scene.enforcer.cli(&["check"]).code(DONE).stdout;
    assert!(said.contains("the gate is at its door"), "{said}");
    for how in ["xdp native", "tcx"] {
        assert!(said.contains(how), "{how}: {said}");
    }
    scene.enforcer.kill();
    let said = scene.enforcer.cli(&["check"]).code(ERROR).stdout;
    assert!(said.contains("is in force"), "{said}");
}

/// R6: without the gate at ocserv's door a revocation ends the session, and says that the cookie is not refused.
#[test]
fn r6_without_a_gate() {
    let mut lab = Lab::new("no-gate");
    let plain = Ocserv::new(&lab, Era::Bookworm, 0);
    let mut enforcer = Enforcer::prepare(&lab, &Config::new(&[&plain]));
    let server = plain.start();
    enforcer.start();
    let alice = lab.client("alice");
    let (cookie, mut tunnel) = alice.session(&server, "alice");
    enforcer.knows("alice");
    let said = enforcer.cli(&["check"]).code(ERROR).stdout;
    assert!(said.contains("a revoked cookie is NOT refused"), "{said}");
    let receipt = enforcer.cli(&["terminate", "user", "alice", "--json"]).code(PARTIAL).receipt();
    assert!(receipt.text("cookie").contains("NOT refused"), "{}", receipt.text("cookie"));
    tunnel.wait_end();
    // and so it is: it comes in, and is ended as soon as it is seen
    let mut again = match alice.connect(&server, &cookie, &Connect::default()) {
        enforcer_tests::Outcome::Up(again) => again,
        enforcer_tests::Outcome::Refused { log } | enforcer_tests::Outcome::Failed { log } => {
            // ended before its client was done with setting up
            assert!(!log.is_empty());
            return;
        }
    };
    again.wait_end();
}
