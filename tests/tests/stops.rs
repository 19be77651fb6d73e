//! R1: once a revocation is answered, no packet of the session passes the gateway in either direction.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use std::net::IpAddr;

use enforcer_tests::scene::{Pair, Scene, nothing_left};
use enforcer_tests::traffic::{FLOOD, Route};
use enforcer_tests::{Connect, Era, Flood, Moment, Tap};

/// R1, and R4 on the way: alice is revoked under a flood, `rounds` times; each time she logs in anew at once.
/// The miss twin: bob's packets flow in every round.
fn flood(name: &str, era: Era, rounds: u32) {
    let scene = Scene::new(name, era);
    let tap = Tap::start(&scene.lab.gateway);
    let (_, bobs) = scene.session(&scene.bob, "bob");
    let bob = scene.flood(&scene.bob, &bobs, false, 50);
    bob.flowing();
    for _ in 0..rounds {
        let (_, mut tunnel) = scene.session(&scene.alice, "alice");
        let device = scene.server.session_at("alice", tunnel.v4).device;
        let four = scene.flood(&scene.alice, &tunnel, false, FLOOD);
        let six = scene.flood(&scene.alice, &tunnel, true, FLOOD / 5);
        four.flowing();
        six.flowing();
        let answer = scene.enforcer.revoke("alice");
        assert!(answer.receipt().done("sockets") >= 1, "{}", answer.stdout);
        four.stopped_at(answer.answered, 50);
        six.stopped_at(answer.answered, 10);
        nothing_left(&tap, &device, &[tunnel.ip(false), tunnel.ip(true)], answer.answered);
        tunnel.wait_end();
        bob.flowing();
    }
}

#[test]
fn r1_flood_bookworm() {
    flood("stop-bookworm", Era::Bookworm, 20);
}

#[test]
fn r1_flood_trixie() {
    flood("stop-trixie", Era::Trixie, 1);
}

#[test]
fn r1_flood_sid() {
    flood("stop-sid", Era::Sid, 20);
}

/// R1: TLS alone, and outside over IPv6: the other two kinds of outer flow.
#[test]
fn r1_outer_flows() {
    let scene = Scene::new("stop-outer", Era::Bookworm);
    for how in [Connect::default().no_dtls(), Connect::default().outer_v6()] {
        let cookie = scene.alice.authenticate(&scene.server, "alice");
        let tunnel = scene.alice.connect(&scene.server, &cookie, &how).up();
        scene.enforcer.knows("alice");
        let pair = scene.flood(&scene.alice, &tunnel, true, FLOOD);
        pair.flowing();
        let answer = scene.enforcer.revoke("alice");
        pair.stopped_at(answer.answered, 50);
    }
}

/// R1: a client that does not listen to a goodbye: it is frozen while it is revoked, and goes on afterwards.
#[test]
fn r1_frozen_client() {
    let scene = Scene::new("stop-frozen", Era::Bookworm);
    let (_, mut tunnel) = scene.session(&scene.alice, "alice");
    let pair = scene.flood(&scene.alice, &tunnel, false, FLOOD);
    pair.flowing();
    tunnel.freeze();
    let answer = scene.enforcer.revoke("alice");
    tunnel.thaw();
    pair.stopped_at(answer.answered, 100);
    tunnel.wait_end();
}

/// R1: packets between two VPN clients, which never see the LAN device.
fn between(name: &str, era: Era) {
    let scene = Scene::new(name, era);
    let (_, alices) = scene.session(&scene.alice, "alice");
    let (_, bobs) = scene.session(&scene.bob, "bob");
    let (alice, bob) = (&scene.alice.namespace, &scene.bob.namespace);
    let floods = [false, true].map(|v6| Pair {
        up: Flood::start(&Route::new(alice, bob, bobs.ip(v6)).source(alices.ip(v6)), FLOOD / 2),
        down: Flood::start(&Route::new(bob, alice, alices.ip(v6)).source(bobs.ip(v6)), FLOOD / 2),
    });
    floods.iter().for_each(|pair| {
        pair.flowing();
    });
    let answer = scene.enforcer.revoke("alice");
    for pair in &floods {
        pair.up.wait_sent(50);
        pair.down.wait_sent(50);
        assert!(pair.up.passed_after(answer.answered).is_empty());
        assert!(pair.down.passed_after(answer.answered).is_empty());
    }
    scene.flood(&scene.bob, &bobs, true, 50).flowing();
}

#[test]
fn r1_between_clients_bookworm() {
    between("stop-two-bookworm", Era::Bookworm);
}

#[test]
fn r1_between_clients_sid() {
    between("stop-two-sid", Era::Sid);
}

/// Both directions of an address that is behind the client or made up by it; then alice is revoked.
/// ocserv's main process is stopped meanwhile, so that it is not ocserv's own disconnect that ends the packets.
/// The miss twin is bob, who makes up the same source address from a tunnel of his own.
fn address_behind(scene: &Scene, address: IpAddr, both_ways: bool) {
    let (_, tunnel) = scene.session(&scene.alice, "alice");
    let (_, bobs) = scene.session(&scene.bob, "bob");
    let (alice, bob, lan) = (&scene.alice.namespace, &scene.bob.namespace, &scene.lab.lan);
    let target = scene.lab.lan_ip(address.is_ipv6());
    let up = Flood::start(&Route::new(alice, lan, target).source(address).device(&tunnel.device), FLOOD);
    up.flowing();
    let down = both_ways.then(|| {
        alice.ip(&format!("addr add {address} dev lo"));
        Flood::start(&Route::new(lan, alice, address), FLOOD)
    });
    if let Some(down) = &down {
        down.flowing();
    }
    let bobs_own = Flood::start(&Route::new(bob, lan, target).source(address).device(&bobs.device), 50);
    bobs_own.flowing();
    scene.server.freeze();
    let answer = scene.enforcer.revoke_in_part("alice");
    for flood in std::iter::once(&up).chain(&down) {
        flood.wait_sent(50);
        assert!(flood.passed_after(answer.answered).is_empty());
    }
    assert!(up.received_after(answer.answered).is_empty());
    bobs_own.flowing();
    scene.server.thaw();
}

/// R1: a source address that is not the session's.
#[test]
fn r1_spoofed_source() {
    for era in [Era::Bookworm, Era::Sid] {
        let scene = Scene::new("stop-spoofed", era);
        address_behind(&scene, IpAddr::from([10, 88, 0, 231]), false);
    }
}

/// R1: a network that is routed behind the client.
#[test]
fn r1_routed_network() {
    for era in [Era::Bookworm, Era::Sid] {
        let scene = Scene::with("stop-iroute", era, enforcer_tests::scene::routed_network, |config| config);
        address_behind(&scene, IpAddr::from([10, 66, 0, 5]), true);
    }
}

/// R1: an IPv6 prefix that is delegated to the client, from an address of it that is not the tunnel's own.
#[test]
fn r1_delegated_prefix() {
    for era in [Era::Bookworm, Era::Sid] {
        let scene = Scene::with("stop-prefix", era, enforcer_tests::scene::delegated_prefix, |config| config);
        let (_, tunnel) = scene.session(&scene.alice, "alice");
        let other = enforcer_tests::scene::other_in_prefix(&tunnel);
        let (alice, lan) = (&scene.alice.namespace, &scene.lab.lan);
        alice.ip(&format!("addr add {other} dev lo"));
        let up = Flood::start(&Route::new(alice, lan, scene.lab.lan_ip(true)).source(other), FLOOD);
        let down = Flood::start(&Route::new(lan, alice, other), FLOOD);
        let pair = Pair { up, down };
        pair.flowing();
        scene.server.freeze();
        let answer = scene.enforcer.revoke_in_part("alice");
        pair.stopped_at(answer.answered, 50);
        scene.server.thaw();
    }
}

/// R1: with the daemon killed right after its answer, everything still stands.
#[test]
fn r1_daemon_killed() {
    let mut scene = Scene::new("stop-killed", Era::Bookworm);
    let (_, tunnel) = scene.session(&scene.alice, "alice");
    let pair = scene.flood(&scene.alice, &tunnel, false, FLOOD);
    pair.flowing();
    let answer = scene.enforcer.revoke("alice");
    scene.enforcer.kill();
    pair.stopped_at(answer.answered, 500);
    let before = Moment::now();
    scene.enforcer.start();
    pair.stopped_at(before, 100);
}
