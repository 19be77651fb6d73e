//! The command line: what each command does, and what it leaves alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use enforcer_tests::enforcer::{DONE, ERROR, USAGE};
use enforcer_tests::receipt;
use enforcer_tests::scene::Scene;
use enforcer_tests::{Connect, Era, Server};

/// `--dry-run` shows whom it would touch, and touches nobody.
#[test]
fn dry_run() {
    let scene = Scene::new("dry-run", Era::Bookworm);
    let (cookie, tunnel) = scene.session(&scene.alice, "alice");
    let pair = scene.flood(&scene.alice, &tunnel, false, 100);
    for command in [
        &["disconnect", "user", "-i", "alice", "--dry-run"][..],
        &["disconnect", "user", "alice", "--dry-run"],
        &["terminate", "user", "alice", "--dry-run", "--reason", "a rehearsal"],
        &["revoke", "address", &tunnel.v4.to_string(), "--dry-run"],
    ] {
        let answer = scene.enforcer.cli(command).code(DONE);
        let told = ["alice".to_owned(), tunnel.v4.to_string()];
        assert!(told.iter().any(|told| answer.stdout.contains(told)), "{command:?}: {}", answer.stdout);
        pair.flowing();
    }
    let shown = scene.enforcer.cli(&["show", "revocations", "--json"]).code(DONE).json;
    assert_eq!(receipt::revocations(&shown), Vec::<u64>::new());
    tunnel.kill();
    scene.alice.connect(&scene.server, &cookie, &Connect::default()).up();
}

/// A daemon that is in no cluster says so, and a wait for others holds nothing up.
#[test]
fn without_other_gateways() {
    let scene = Scene::new("no-others", Era::Bookworm);
    for command in
        [&["show", "gateways"][..], &["show", "sessions", "--all"], &["cluster", "remove", "vpn-2"]]
    {
        let answer = scene.enforcer.cli(command).code(ERROR);
        assert!(answer.stderr.contains("[cluster] is not configured"), "{command:?}: {}", answer.stderr);
    }
    let (_, tunnel) = scene.session(&scene.alice, "alice");
    let plain = scene.enforcer.cli(&["disconnect", "user", "alice", "--wait", "1s"]).code(USAGE);
    assert!(plain.stderr.contains("add -i"), "{}", plain.stderr);
    drop(tunnel);
    let receipt = scene.enforcer.cli(&["lock", "user", "alice", "--wait", "1s", "--json"]).code(DONE);
    assert_eq!(receipt.json["gateways"], serde_json::json!([]));
}

/// Without `-i`, `disconnect` is exactly ocserv's: the tunnel ends, the cookie stays valid.
#[test]
fn plain_disconnect() {
    for era in [Era::Bookworm, Era::Sid] {
        let scene = Scene::new("plain", era);
        for by_id in [false, true] {
            let (cookie, mut tunnel) = scene.session(&scene.alice, "alice");
            let id = scene.server.session_at("alice", tunnel.v4).id.to_string();
            let target = if by_id { ["id", &id] } else { ["user", "alice"] };
            scene.enforcer.cli(&["disconnect", target[0], target[1]]).code(DONE);
            tunnel.wait_end();
            scene.alice.connect(&scene.server, &cookie, &Connect::default()).up().log_out();
        }
    }
}

/// R2: every spelling of a revocation.
#[test]
fn r2_spellings() {
    let scene = Scene::new("spellings", Era::Bookworm);
    let words: [&[&str]; 6] = [
        &["disconnect", "user", "-i", "alice"],
        &["disconnect", "user", "alice", "--invalidate", "--reason", "a stolen laptop"],
        &["terminate", "user", "alice"],
        &["terminate", "id", "ID"],
        &["terminate", "session", "SESSION"],
        &["disconnect", "id", "ID", "-i"],
    ];
    for words in words {
        let (cookie, mut tunnel) = scene.session(&scene.alice, "alice");
        let id = scene.server.session_at("alice", tunnel.v4).id;
        let shown = scene.enforcer.cli(&["show", "sessions", "--json"]).json;
        let session = receipt::safe_id(&shown, id).unwrap_or_default();
        let id = id.to_string();
        let words: Vec<&str> = words
            .iter()
            .map(|word| match *word {
                "ID" => id.as_str(),
                "SESSION" => session.as_str(),
                word => word,
            })
            .collect();
        scene.enforcer.cli(&words).code(DONE);
        tunnel.wait_end();
        scene.refused(&scene.alice, &cookie);
    }
    let shown = scene.enforcer.cli(&["show", "revocations", "--json"]).stdout;
    assert!(shown.contains("a stolen laptop"), "{shown}");
}

/// Under the name `occtl`: its own words with `-i` in either order are a revocation, all else is the real occtl's.
#[test]
fn r2_as_occtl() {
    let scene = Scene::new("as-occtl", Era::Bookworm);
    let socket = scene.server.socket().display().to_string();
    for words in [
        &["disconnect", "user", "-i", "alice"][..],
        &["disconnect", "user", "alice", "--invalidate"],
        &["-s", &socket, "disconnect", "user", "alice", "-i"],
    ] {
        let (cookie, mut tunnel) = scene.session(&scene.alice, "alice");
        scene.enforcer.occtl(words).code(DONE);
        tunnel.wait_end();
        scene.refused(&scene.alice, &cookie);
    }
    let (cookie, mut tunnel) = scene.session(&scene.alice, "alice");
    scene.enforcer.occtl(&["-s", &socket, "disconnect", "user", "alice"]).code(DONE);
    tunnel.wait_end();
    scene.alice.connect(&scene.server, &cookie, &Connect::default()).up().log_out();
    for words in
        [&["-s", &socket, "show", "status"][..], &["--version"], &["-s", &socket, "no", "such", "thing"]]
    {
        let real = enforcer_tests::process::output(enforcer_tests::process::command("occtl", words), "");
        let ours = scene.enforcer.occtl(words);
        assert_eq!(ours.code, real.code, "{words:?}");
        assert_eq!(ours.stdout.lines().next(), real.stdout.lines().next(), "{words:?}");
    }
}

fn invalidating(name: &str, era: Era) -> Scene {
    Scene::with(name, era, |ocserv| ocserv, |config| config.server("invalidate-on-disconnect", "true"))
}

fn stock_disconnect(server: &Server, user: &str) {
    assert_eq!(server.occtl(&["disconnect", "user", user]).code, DONE);
}

/// R2: with `invalidate-on-disconnect` an administrator's stock disconnect becomes a revocation; our own plain one
/// does not, and neither does a client that leaves.
fn on_disconnect(name: &str, era: Era) {
    let scene = invalidating(name, era);
    let (cookie, mut tunnel) = scene.session(&scene.alice, "alice");
    stock_disconnect(&scene.server, "alice");
    tunnel.wait_end();
    scene.lab.eventually("a revocation follows", || {
        let shown = scene.enforcer.cli(&["show", "revocations", "--json"]).json;
        (!receipt::revocations(&shown).is_empty()).then_some(())
    });
    scene.refused(&scene.alice, &cookie);

    let revocations =
        || receipt::revocations(&scene.enforcer.cli(&["show", "revocations", "--json"]).json).len();
    let before = revocations();
    let (cookie, mut tunnel) = scene.session(&scene.alice, "alice");
    scene.enforcer.cli(&["disconnect", "user", "alice"]).code(DONE);
    tunnel.wait_end();
    scene.alice.connect(&scene.server, &cookie, &Connect::default()).up().kill();
    scene.lab.eventually("the session is gone", || scene.server.sessions("alice").is_empty().then_some(()));
    scene.alice.connect(&scene.server, &cookie, &Connect::default()).up();
    assert_eq!(revocations(), before);
}

#[test]
fn r2_on_disconnect_bookworm() {
    on_disconnect("ondis-bookworm", Era::Bookworm);
}

#[test]
fn r2_on_disconnect_sid() {
    on_disconnect("ondis-sid", Era::Sid);
}

/// R3: with `invalidate-on-disconnect`, roaming is no disconnect: the same cookie from another address ends the
/// older tunnel with the server's own reason.
fn roaming(name: &str, era: Era) {
    let scene = invalidating(name, era);
    let (cookie, mut older) = scene.session(&scene.alice, "alice");
    let newer = scene.bob.connect(&scene.server, &cookie, &Connect::default()).up();
    older.process().kill();
    let pair = scene.flood(&scene.bob, &newer, false, 100);
    pair.flowing();
    pair.up.wait_sent(300);
    pair.flowing();
    let shown = scene.enforcer.cli(&["show", "revocations", "--json"]).code(DONE).json;
    assert_eq!(receipt::revocations(&shown), Vec::<u64>::new());
    newer.kill();
    scene.alice.connect(&scene.server, &cookie, &Connect::default()).up();
}

#[test]
fn r3_roaming_bookworm() {
    roaming("roam-bookworm", Era::Bookworm);
}

#[test]
fn r3_roaming_sid() {
    roaming("roam-sid", Era::Sid);
}

/// R4: with `invalidate-on-disconnect`, a restart of ocserv is no administrator's disconnect either.
#[test]
fn r4_restart_is_no_disconnect() {
    for era in [Era::Bookworm, Era::Sid] {
        let mut scene = invalidating("ondis-restart", era);
        let (_, mut alices) = scene.session(&scene.alice, "alice");
        scene.session(&scene.bob, "bob");
        scene.server.restart();
        alices.process().kill();
        let (_, tunnel) = scene.session(&scene.alice, "alice");
        scene.flood(&scene.alice, &tunnel, false, 100).flowing();
        let shown = scene.enforcer.cli(&["show", "revocations", "--json"]).code(DONE).json;
        assert_eq!(receipt::revocations(&shown), Vec::<u64>::new(), "{era}");
    }
}

/// A revocation is taken back: where the cookie is only guarded, it lets alice in again.
#[test]
fn lift() {
    let scene = Scene::new("lift", Era::Bookworm);
    let (cookie, mut tunnel) = scene.session(&scene.alice, "alice");
    let answer = scene.enforcer.revoke("alice");
    let number = answer.receipt().number().expect("a number").to_string();
    tunnel.wait_end();
    scene.refused(&scene.alice, &cookie);
    scene.enforcer.cli(&["lift", &number, "--dry-run"]).code(DONE);
    scene.refused(&scene.alice, &cookie);
    scene.enforcer.cli(&["lift", &number]).code(DONE);
    let tunnel = scene.alice.connect(&scene.server, &cookie, &Connect::default()).up();
    scene.flood(&scene.alice, &tunnel, true, 100).flowing();
}

/// R1: an explicit address is dropped until it is lifted, or its time is over; its neighbour is not.
#[test]
fn r1_explicit_address() {
    let scene = Scene::new("address", Era::Bookworm);
    let (_, alices) = scene.session(&scene.alice, "alice");
    let (_, bobs) = scene.session(&scene.bob, "bob");
    let bob = scene.flood(&scene.bob, &bobs, true, 100);
    for v6 in [false, true] {
        let pair = scene.flood(&scene.alice, &alices, v6, 200);
        pair.flowing();
        let address = alices.ip(v6).to_string();
        let answer = scene.enforcer.cli(&["revoke", "address", &address, "--json"]).code(DONE);
        pair.stopped_at(answer.answered, 50);
        bob.flowing();
        let number = answer.receipt().number().expect("a number").to_string();
        scene.enforcer.cli(&["lift", &number]).code(DONE);
        pair.flowing();
        let answer = scene.enforcer.cli(&["revoke", "address", &address, "--for", "2s", "--json"]).code(DONE);
        pair.up.wait_sent(50);
        assert!(answer.receipt().number().is_some());
        pair.flowing();
    }
}

/// R3: what would hit the gateway itself is refused.
#[test]
fn r3_the_gateway_itself() {
    let scene = Scene::new("itself", Era::Bookworm);
    let (_, bobs) = scene.session(&scene.bob, "bob");
    for address in ["198.51.100.2", "10.77.0.1", "fd77::1", "2001:db8:51::2", "127.0.0.1", "::1", "0.0.0.0"] {
        let answer = scene.enforcer.cli(&["revoke", "address", address]);
        assert_eq!(answer.code, ERROR, "{address}: {}{}", answer.stdout, answer.stderr);
    }
    scene.flood(&scene.bob, &bobs, false, 100).flowing();
}
