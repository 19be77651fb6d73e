//! R4: a fresh authentication of a revoked user works at once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use enforcer_tests::scene::Scene;
use enforcer_tests::traffic::FLOOD;
use enforcer_tests::{Era, Moment};

/// R4: with `predictable-ips` alice gets the very address that was just taken from her, and loses no packet of the
/// new session; ten times. Hit twin: the old cookie is refused all the while.
fn at_once(name: &str, era: Era) {
    let scene = Scene::new(name, era);
    let (mut old, mut tunnel) = scene.session(&scene.alice, "alice");
    for _ in 0..10 {
        let (four, six) = (tunnel.v4, tunnel.v6);
        scene.enforcer.revoke("alice");
        tunnel.wait_end();
        // ocserv may still hold the address for a moment
        scene.lab.eventually("ocserv lets go", || scene.server.sessions("alice").is_empty().then_some(()));
        let (cookie, again) = scene.session(&scene.alice, "alice");
        assert_eq!((again.v4, again.v6), (four, six), "predictable addresses");
        for v6 in [false, true] {
            let mut pair = scene.flood(&scene.alice, &again, v6, FLOOD / 5);
            pair.flowing();
            pair.lost_nothing(Moment(0), Moment::now());
        }
        scene.refused(&scene.bob, &old);
        (old, tunnel) = (cookie, again);
    }
}

#[test]
fn r4_at_once_bookworm() {
    at_once("again-bookworm", Era::Bookworm);
}

#[test]
fn r4_at_once_trixie() {
    at_once("again-trixie", Era::Trixie);
}

#[test]
fn r4_at_once_sid() {
    at_once("again-sid", Era::Sid);
}

/// R4: also with the ban scores that ocserv has by default, after refused attempts.
/// 1.1.6 bans an address at 30 connections: as many as would get it banned twice, were nothing done about it.
/// 1.5 bans at 80, and there the cookie is gone, so that ocserv refuses it without asking the gate: nothing is
/// done about that, and nothing needs to be for fewer.
fn ban_scores(name: &str, era: Era, attempts: usize) {
    let scene = Scene::with(
        name,
        era,
        |ocserv| ocserv.unset("max-ban-score").unset("ban-points-connection").unset("rate-limit-ms"),
        |config| config,
    );
    let (cookie, mut tunnel) = scene.session(&scene.alice, "alice");
    scene.enforcer.revoke("alice");
    tunnel.wait_end();
    for _ in 0..attempts {
        scene.refused(&scene.alice, &cookie);
    }
    scene.session(&scene.alice, "alice");
}

#[test]
fn r4_ban_scores_bookworm() {
    ban_scores("ban-bookworm", Era::Bookworm, 60);
}

#[test]
fn r4_ban_scores_sid() {
    ban_scores("ban-sid", Era::Sid, 60);
}

/// R4: who logs in while the revocation is being answered is either ended by it or let in; never neither.
#[test]
fn r4_login_meanwhile() {
    let scene = Scene::new("again-race", Era::Bookworm);
    for _ in 0..10 {
        let (_, _first) = scene.session(&scene.alice, "alice");
        let cookie = scene.bob.authenticate(&scene.server, "alice");
        scene.enforcer.revoke("alice");
        scene.refused(&scene.bob, &cookie);
        let fresh = scene.bob.authenticate(&scene.server, "alice");
        let tunnel = scene.bob.connect(&scene.server, &fresh, &enforcer_tests::Connect::default()).up();
        scene.flood(&scene.bob, &tunnel, false, 100).flowing();
    }
}
