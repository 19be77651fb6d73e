//! R2: a revoked session's cookie never brings it back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use enforcer_tests::ocserv::write_script;
use enforcer_tests::scene::Scene;
use enforcer_tests::{Connect, Cookie, Era, Outcome};

/// R2: the saved cookie, `rounds` times after the revocation. Miss twin: a new cookie of alice's is let in.
fn saved_cookie(name: &str, era: Era, rounds: u32) {
    let scene = Scene::new(name, era);
    let (cookie, mut tunnel) = scene.session(&scene.alice, "alice");
    scene.enforcer.revoke("alice");
    tunnel.wait_end();
    for _ in 0..rounds {
        scene.refused(&scene.alice, &cookie);
    }
    scene.alice.session(&scene.server, "alice");
}

#[test]
fn r2_saved_cookie_bookworm() {
    saved_cookie("stay-bookworm", Era::Bookworm, 20);
}

#[test]
fn r2_saved_cookie_trixie() {
    saved_cookie("stay-trixie", Era::Trixie, 1);
}

#[test]
fn r2_saved_cookie_sid() {
    saved_cookie("stay-sid", Era::Sid, 20);
}

/// R2: revoked while its connect-script runs: that is when stock ocserv reports a disconnect and loses it.
/// Miss twin: bob, in his script at the same time, is let in.
fn during_script(name: &str, era: Era, rounds: u32) {
    let lab = |script: &str| format!("/tmp/enforcer-lab-{name}-{}/w/{script}", std::process::id());
    let (script, running, go) = (lab("next"), lab("running"), lab("go"));
    let scene = Scene::with(
        name,
        era,
        |ocserv| ocserv,
        |config| config.server("next-script", &enforcer_tests::enforcer::quoted(&script)),
    );
    // says that it runs, and waits for leave to end
    let body = format!("echo $ID >>{running}.$USERNAME\nuntil test -e {go}; do sleep 0.01; done");
    write_script(script.as_ref(), &body);
    for _ in 0..rounds {
        let cookie = scene.alice.authenticate(&scene.server, "alice");
        let bobs = scene.bob.authenticate(&scene.server, "bob");
        let attempt = scene.alice.start(&scene.server, &cookie, &Connect::default());
        let bob = scene.bob.start(&scene.server, &bobs, &Connect::default());
        for user in ["alice", "bob"] {
            let running = format!("{running}.{user}");
            scene.lab.eventually("the next-script runs", || fs::metadata(&running).ok());
        }
        // not every layer can be done while the script holds the session
        let answer = scene.enforcer.cli(&["disconnect", "user", "-i", "alice", "--json"]);
        assert!([0, 4].contains(&answer.code), "{answer:?}");
        fs::write(&go, "").expect("a file");
        attempt_is_kept_out(attempt.outcome());
        bob.outcome().up().log_out();
        scene.refused(&scene.alice, &cookie);
        for file in [format!("{running}.alice"), format!("{running}.bob"), go.clone()] {
            fs::remove_file(file).expect("a file");
        }
    }
}

fn attempt_is_kept_out(outcome: Outcome) {
    if let Outcome::Up(tunnel) = outcome {
        panic!("let in after the revocation:\n{}", tunnel.log());
    }
}

#[test]
fn r2_during_script_bookworm() {
    during_script("script-bookworm", Era::Bookworm, 20);
}

#[test]
fn r2_during_script_trixie() {
    during_script("script-trixie", Era::Trixie, 1);
}

#[test]
fn r2_during_script_sid() {
    during_script("script-sid", Era::Sid, 20);
}

/// R2: two clients hammer one cookie for 15 s while it is revoked.
fn hammer(name: &str, era: Era) {
    let scene = Scene::new(name, era);
    let (cookie, _tunnel) = scene.session(&scene.alice, "alice");
    let end = Instant::now() + Duration::from_secs(15);
    thread::scope(|scope| {
        let hammers = [&scene.alice, &scene.bob].map(|client| {
            let (cookie, server) = (&cookie, &scene.server);
            scope.spawn(move || {
                let how = Connect::default().device("tun9").no_routes();
                let mut outcomes = Vec::new();
                while Instant::now() < end {
                    let begun = enforcer_tests::Moment::now();
                    outcomes.push((begun, client.connect(server, cookie, &how).is_up()));
                }
                outcomes
            })
        });
        thread::sleep(Duration::from_secs(1));
        let answer = scene.enforcer.cli(&["disconnect", "user", "-i", "alice", "--json"]);
        assert!([0, 4].contains(&answer.code), "{answer:?}");
        for hammer in hammers {
            let outcomes = hammer.join().expect("a hammer");
            let after: Vec<_> = outcomes.iter().filter(|(begun, _)| *begun > answer.answered).collect();
            assert!(after.len() > 5, "{} attempts after the revocation", after.len());
            assert!(after.iter().all(|(_, up)| !up), "a later attempt was let in");
        }
    });
    scene.refused(&scene.alice, &cookie);
    scene.alice.session(&scene.server, "alice");
}

#[test]
fn r2_hammered_bookworm() {
    hammer("hammer-bookworm", Era::Bookworm);
}

#[test]
fn r2_hammered_sid() {
    hammer("hammer-sid", Era::Sid);
}

/// R2: a second cookie of the same user, in use elsewhere, never used, or its client offline; in several sec-mod
/// instances, which the clients' addresses choose. Where ocserv has `terminate`, none is left in its list.
fn every_cookie(name: &str, era: Era) {
    let mut scene = Scene::with(
        name,
        era,
        |ocserv| ocserv.set("max-clients", "512").set("sec-mod-scale", "4").set("max-same-clients", "32"),
        |config| config,
    );
    let hosts: Vec<_> = (0..6).map(|number| scene.lab.client(&format!("h{number}"))).collect();
    let mut kept = Vec::new();
    let mut cookies: Vec<Cookie> = Vec::new();
    for (number, host) in hosts.iter().enumerate() {
        let cookie = host.authenticate(&scene.server, "alice");
        match number % 3 {
            0 => kept.push(host.connect(&scene.server, &cookie, &Connect::default()).up()),
            1 => host.connect(&scene.server, &cookie, &Connect::default()).up().kill(),
            _ => {}
        }
        cookies.push(cookie);
    }
    let (bobs, bob) = scene.session(&scene.bob, "bob");
    assert!(scene.server.cookies("alice").len() >= hosts.len());
    let answer = scene.enforcer.revoke("alice");
    for (host, cookie) in hosts.iter().zip(&cookies) {
        scene.refused(host, cookie);
    }
    if era.has_terminate() {
        assert!(answer.receipt().done("cookie") >= 6, "{}", answer.stdout);
        assert_eq!(scene.server.cookies("alice"), Vec::<String>::new());
    }
    // the miss twin
    bob.kill();
    scene.bob.connect(&scene.server, &bobs, &Connect::default()).up();
}

#[test]
fn r2_every_cookie_bookworm() {
    every_cookie("every-bookworm", Era::Bookworm);
}

#[test]
fn r2_every_cookie_sid() {
    every_cookie("every-sid", Era::Sid);
}

/// R2: nobody is connected at all; there is only a cookie.
#[test]
fn r2_offline() {
    for era in [Era::Bookworm, Era::Sid] {
        let scene = Scene::new("offline", era);
        let (cookie, tunnel) = scene.session(&scene.alice, "alice");
        tunnel.kill();
        scene
            .lab
            .eventually("the session is gone", || scene.server.sessions("alice").is_empty().then_some(()));
        scene.enforcer.revoke("alice");
        scene.refused(&scene.alice, &cookie);
        scene.alice.session(&scene.server, "alice");
    }
}

/// R2: a client whose connection breaks comes back by itself; while it does, it is revoked.
#[test]
fn r2_automatic_reconnect() {
    for era in [Era::Bookworm, Era::Sid] {
        let scene = Scene::new("reconnect", era);
        for _ in 0..5 {
            let (cookie, mut tunnel) = scene.session(&scene.alice, "alice");
            let worker = scene.server.session_at("alice", tunnel.v4).id;
            // ocserv's own worker, in our pid namespace, a child of the server that this lab started
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker), nix::sys::signal::Signal::SIGKILL)
                .expect("kill");
            scene.enforcer.revoke("alice");
            tunnel.wait_end();
            scene.refused(&scene.alice, &cookie);
        }
    }
}

/// R2: kill -9 of the daemon; with no daemon running the cookie is refused, and bob is let in. A new daemon takes
/// over.
fn daemon_killed(name: &str, era: Era) {
    let mut scene = Scene::new(name, era);
    let (cookie, _tunnel) = scene.session(&scene.alice, "alice");
    let (bobs, bob) = scene.session(&scene.bob, "bob");
    scene.enforcer.revoke("alice");
    scene.enforcer.kill();
    for _ in 0..3 {
        scene.refused(&scene.alice, &cookie);
    }
    bob.kill();
    let bob = scene.bob.connect(&scene.server, &bobs, &Connect::default()).up();
    scene.flood(&scene.bob, &bob, false, 50).flowing();
    scene.enforcer.start();
    for _ in 0..3 {
        scene.refused(&scene.alice, &cookie);
    }
    let (_, alice) = scene.session(&scene.alice, "alice");
    scene.flood(&scene.alice, &alice, false, 50).flowing();
}

#[test]
fn r2_daemon_killed_bookworm() {
    daemon_killed("killed-bookworm", Era::Bookworm);
}

#[test]
fn r2_daemon_killed_sid() {
    daemon_killed("killed-sid", Era::Sid);
}

/// R2: ocserv restarts, the daemon notices, and alice may log in anew.
#[test]
fn r2_ocserv_restarted() {
    for era in [Era::Bookworm, Era::Sid] {
        let mut scene = Scene::new("restarted", era);
        let (cookie, tunnel) = scene.session(&scene.alice, "alice");
        scene.enforcer.revoke("alice");
        tunnel.kill();
        scene.server.restart();
        let again = scene.alice.connect(&scene.server, &cookie, &Connect::default());
        assert!(!again.is_up(), "{era}: the cookie outlived ocserv");
        let (_, tunnel) = scene.session(&scene.alice, "alice");
        scene.flood(&scene.alice, &tunnel, true, 50).flowing();
    }
}

/// R2: each refused attempt refreshes the cookie's life in ocserv: with a short one it is still refused when it
/// would have timed out long ago.
#[test]
fn r2_refreshed_cookie() {
    let scene =
        Scene::with("refreshed", Era::Bookworm, |ocserv| ocserv.set("cookie-timeout", "2"), |config| config);
    let (cookie, mut tunnel) = scene.session(&scene.alice, "alice");
    scene.enforcer.revoke("alice");
    tunnel.wait_end();
    for _ in 0..10 {
        scene.refused(&scene.alice, &cookie);
        thread::sleep(Duration::from_secs(2));
    }
}
