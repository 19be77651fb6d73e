//! The gate: ocserv's connect-script, with and without a daemon, alone and in a chain of scripts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use std::fs;
use std::path::PathBuf;

use enforcer_tests::enforcer::{Config, quoted};
use enforcer_tests::ocserv::{PASSWORD, write_script};
use enforcer_tests::process::{command, succeed};
use enforcer_tests::scene::{Pair, Scene};
use enforcer_tests::{Connect, Enforcer, Era, Lab, Ocserv};

/// With no daemon ever started there is nothing to decide by: `when-blind` decides.
fn blind(name: &str, when_blind: Option<&str>, admitted: bool) {
    let mut lab = Lab::new(name);
    let ocserv = Ocserv::new(&lab, Era::Bookworm, 0);
    let mut config = Config::new(&[&ocserv]);
    if let Some(value) = when_blind {
        config = config.set("gate", "when-blind", &quoted(value));
    }
    let mut enforcer = Enforcer::prepare(&lab, &config);
    let server = enforcer.guard(ocserv).start();
    let alice = lab.client("alice");
    let cookie = alice.authenticate(&server, "alice");
    let outcome = alice.connect(&server, &cookie, &Connect::default());
    assert_eq!(outcome.is_up(), admitted, "{when_blind:?}");
    drop(outcome);
    // and a daemon lets the same cookie in
    enforcer.start();
    alice.connect(&server, &cookie, &Connect::default()).up();
}

#[test]
fn r2_blind_refuses() {
    blind("blind-default", None, false);
    blind("blind-refuse", Some("refuse"), false);
}

#[test]
fn blind_admits_where_told() {
    blind("blind-admit", Some("admit"), true);
}

/// R2: where there are other gateways, somebody may have been revoked there while the daemon does not run: he is refused,
/// but for a group that is let in then; and who was revoked here is refused in any case.
#[test]
fn r2_without_the_daemon_other_gateways_cannot_be_asked() {
    let mut lab = Lab::new("gate-away");
    let ocserv = Ocserv::new(&lab, Era::Bookworm, 0);
    let alone = Config::new(&[&ocserv]);
    let mut enforcer = Enforcer::prepare(&lab, &alone);
    let server = enforcer.guard(ocserv).start();
    // carol and bob are guests
    let passwords = lab.work().join("ocserv0.passwd").display().to_string();
    for guest in ["bob", "carol"] {
        let again = format!("{PASSWORD}\n{PASSWORD}\n");
        succeed(command("ocpasswd", ["-c", &passwords, "-g", "guests", guest]), &again);
    }
    enforcer.start();
    let (alice, bob, carol) = (lab.client("alice"), lab.client("bob"), lab.client("carol"));
    let (carols, mut tunnel) = carol.session(&server, "carol");
    enforcer.knows("carol");
    enforcer.revoke("carol");
    tunnel.wait_end();
    enforcer.kill();
    let alices = alice.authenticate(&server, "alice");
    let bobs = bob.authenticate(&server, "bob");
    // with no word of other gateways the maps decide
    alice.connect(&server, &alices, &Connect::default()).up().leave();
    enforcer.configure(
        &alone
            .set("cluster", "endpoints", "[\"http://127.0.0.1:2379\"]")
            .set("cluster", "login-wait", &quoted("100ms"))
            .set("cluster.groups.guests", "when-away", &quoted("open")),
    );
    alice.connect(&server, &alices, &Connect::default()).refused();
    let log = server.log();
    assert!(log.contains("the other gateways cannot be asked"), "{log}");
    bob.connect(&server, &bobs, &Connect::default()).up().leave();
    carol.connect(&server, &carols, &Connect::default()).refused();
}

/// The administrator's own script runs after the gate, with ocserv's environment, and its refusal counts.
#[test]
fn next_script() {
    let script = PathBuf::from(format!("/tmp/enforcer-lab-next-{}/w/own", std::process::id()));
    let ran = script.with_extension("ran");
    let scene = Scene::with(
        "next",
        Era::Bookworm,
        |ocserv| ocserv,
        |config| {
            let own = quoted(&script.display().to_string());
            config.server("next-script", &own).server("next-disconnect-script", &own)
        },
    );
    let body =
        format!("echo $REASON $USERNAME $IP_REMOTE $DEVICE >>{}\ntest $USERNAME != bob", ran.display());
    write_script(&script, &body);
    let (_, tunnel) = scene.session(&scene.alice, "alice");
    let said = fs::read_to_string(&ran).expect("the script ran");
    assert!(said.starts_with(&format!("connect alice {}", tunnel.v4)), "{said}");
    let bobs = scene.bob.authenticate(&scene.server, "bob");
    scene.bob.connect(&scene.server, &bobs, &Connect::default()).refused();
    tunnel.log_out();
    scene.lab.eventually("the disconnect script ran", || {
        fs::read_to_string(&ran).ok().filter(|said| said.contains("disconnect alice")).map(|_| ())
    });
}

/// R2: in the chain of ocserv's own firewall script, which runs ours (OCSERV_NEXT_SCRIPT) by `/bin/sh`.
#[test]
fn r2_behind_ocservs_firewall() {
    for era in [Era::Bookworm, Era::Sid] {
        let mut lab = Lab::new("fw-chain");
        let ocserv = Ocserv::new(&lab, era, 0).set("restrict-user-to-routes", "true");
        let mut enforcer = Enforcer::prepare(&lab, &Config::new(&[&ocserv]));
        let server = enforcer.guard(ocserv).scripts(&enforcer.gate_script()).start();
        enforcer.start();
        let alice = lab.client("alice");
        let (cookie, mut tunnel) = alice.session(&server, "alice");
        enforcer.knows("alice");
        Pair::new(&lab, &alice, &tunnel, false, 100).flowing();
        enforcer.revoke("alice");
        tunnel.wait_end();
        alice.connect(&server, &cookie, &Connect::default()).refused();
        alice.session(&server, "alice");
    }
}

/// R2: the feed is left to others (`feed = false`); revocations work by listing and the gate's calls.
#[test]
fn r2_feed_off() {
    let scene =
        Scene::with("feed-off", Era::Bookworm, |ocserv| ocserv, |config| config.server("feed", "false"));
    for _ in 0..3 {
        let (cookie, mut tunnel) = scene.session(&scene.alice, "alice");
        let pair = scene.flood(&scene.alice, &tunnel, false, 200);
        pair.flowing();
        let answer = scene.enforcer.revoke("alice");
        pair.stopped_at(answer.answered, 50);
        tunnel.wait_end();
        scene.refused(&scene.alice, &cookie);
    }
}

/// R2, R3: names as long as ocserv takes them, and names with dots and an @.
#[test]
fn names() {
    let long = "u".repeat(60);
    let scene = Scene::with(
        "names",
        Era::Bookworm,
        |ocserv| ocserv.user(&long).user("alice.b@example.com"),
        |config| config,
    );
    for user in [long.as_str(), "alice.b@example.com"] {
        let (_, other) = scene.session(&scene.bob, "alice");
        let (cookie, mut tunnel) = scene.session(&scene.alice, user);
        scene.enforcer.revoke(user);
        tunnel.wait_end();
        scene.refused(&scene.alice, &cookie);
        scene.flood(&scene.bob, &other, false, 100).flowing();
        other.log_out();
    }
}
