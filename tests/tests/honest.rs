//! R6: the receipt says for each layer what was done, what failed and what is only guarded.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use enforcer_tests::enforcer::NOTHING_MATCHED;
use enforcer_tests::scene::Scene;
use enforcer_tests::traffic::FLOOD;
use enforcer_tests::{Era, receipt};

/// R6: with ocserv's main process stopped, the packets stop, the answer comes while it is still stopped, and says
/// that it is partial; when ocserv goes on the revocation completes by itself.
fn main_stopped(name: &str, era: Era) {
    let scene = Scene::new(name, era);
    let (cookie, mut tunnel) = scene.session(&scene.alice, "alice");
    let (_, bobs) = scene.session(&scene.bob, "bob");
    let pair = scene.flood(&scene.alice, &tunnel, false, FLOOD);
    pair.flowing();
    scene.server.freeze();
    let answer = scene.enforcer.revoke_in_part("alice");
    pair.stopped_at(answer.answered, 100);
    let said = answer.receipt();
    assert!(!said.complete(), "{}", answer.stdout);
    assert_eq!(said.done("cookie"), 0, "nothing can have been seen to be invalidated: {}", answer.stdout);
    scene.flood(&scene.bob, &bobs, false, 50).flowing();
    scene.server.thaw();
    scene.enforcer.completes(said.number().expect("a number"));
    tunnel.wait_end();
    scene.refused(&scene.alice, &cookie);
    scene.session(&scene.alice, "alice");
}

#[test]
fn r6_main_stopped_bookworm() {
    main_stopped("honest-bookworm", Era::Bookworm);
}

#[test]
fn r6_main_stopped_sid() {
    main_stopped("honest-sid", Era::Sid);
}

/// R1, R6: a worker that hangs holds packets in its tun's queue; when it goes on, its client gets none of them.
#[test]
fn r6_worker_stopped() {
    for era in [Era::Bookworm, Era::Sid] {
        let scene = Scene::new("honest-worker", era);
        let (cookie, tunnel) = scene.session(&scene.alice, "alice");
        let pair = scene.flood(&scene.alice, &tunnel, false, FLOOD);
        pair.flowing();
        // ocserv's own worker, of the server that this lab started
        let worker = Pid::from_raw(scene.server.session_at("alice", tunnel.v4).id);
        kill(worker, Signal::SIGSTOP).expect("SIGSTOP");
        pair.down.wait_sent(100);
        let stopped = pair.down.received().len();
        let answer = scene.enforcer.cli(&["disconnect", "user", "-i", "alice", "--json"]);
        assert!([0, 4].contains(&answer.code), "{answer:?}");
        // it may have been killed for it
        let _ = kill(worker, Signal::SIGCONT);
        pair.stopped_at(answer.answered, 100);
        assert!(pair.down.received().len() <= stopped + 5, "the held packets were sent to the client");
        scene.refused(&scene.alice, &cookie);
    }
}

/// R6: what a receipt says of the cookie. Without `terminate` it is still valid at ocserv and refused at the gate;
/// with it, it is gone, and only then is it called done.
#[test]
fn r6_cookie() {
    for era in Era::ALL {
        let scene = Scene::new("honest-cookie", era);
        let (_, _tunnel) = scene.session(&scene.alice, "alice");
        let answer = scene.enforcer.revoke("alice");
        let said = answer.receipt();
        if era.has_terminate() {
            assert!(said.done("cookie") == 1 && said.guarded("cookie") == 0, "{era}: {}", answer.stdout);
            assert_eq!(scene.server.cookies("alice"), Vec::<String>::new());
        } else {
            assert!(said.done("cookie") == 0 && said.guarded("cookie") == 1, "{era}: {}", answer.stdout);
            assert_eq!(scene.server.cookies("alice").len(), 1);
        }
        assert!(said.done("packets") >= 1 && said.done("sockets") >= 1, "{era}: {}", answer.stdout);
        let number = said.number().expect("a number");
        assert!(
            receipt::revocations(&scene.enforcer.cli(&["show", "revocations", "--json"]).json)
                .contains(&number)
        );
    }
}

/// R6: nothing matched has an exit code of its own, and leaves bob alone.
#[test]
fn r6_nothing_matched() {
    let scene = Scene::new("honest-nobody", Era::Bookworm);
    let (_, bobs) = scene.session(&scene.bob, "bob");
    for command in [["disconnect", "user", "-i", "alice"], ["disconnect", "id", "-i", "1"]] {
        scene.enforcer.cli(&command).code(NOTHING_MATCHED);
    }
    scene.enforcer.cli(&["disconnect", "user", "alice"]).code(NOTHING_MATCHED);
    scene.enforcer.cli(&["terminate", "session", "AAAAAAAAAAAAAAAAAAAAAAAAAAA="]).code(NOTHING_MATCHED);
    scene.enforcer.cli(&["lift", "4711"]).code(NOTHING_MATCHED);
    scene.flood(&scene.bob, &bobs, false, 50).flowing();
}
