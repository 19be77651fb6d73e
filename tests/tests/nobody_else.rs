//! R3: no packet, socket or cookie of another session is touched. Each test revokes alice, and watches another.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use std::time::Duration;

use enforcer_tests::lab::WAN;
use enforcer_tests::scene::{Pair, Scene};
use enforcer_tests::{Connect, Era, Moment, Tap};

/// R3: a neighbour behind the same client address loses no packet.
fn neighbour(name: &str, era: Era) {
    let scene = Scene::new(name, era);
    scene.lab.masquerade(&[&scene.alice, &scene.bob]);
    let (_, alices) = scene.session(&scene.alice, "alice");
    let (_, bobs) = scene.session(&scene.bob, "bob");
    let alice = scene.flood(&scene.alice, &alices, false, 100);
    let mut bob = [false, true].map(|v6| scene.flood(&scene.bob, &bobs, v6, 100));
    alice.flowing();
    let from = settled(&bob);
    let answer = scene.enforcer.revoke("alice");
    alice.stopped_at(answer.answered, 50);
    let to = settled(&bob);
    for pair in &mut bob {
        pair.lost_nothing(from, to);
    }
}

/// All of them flow: from here on nothing may be lost.
fn settled(pairs: &[Pair]) -> Moment {
    for pair in pairs {
        pair.flowing();
    }
    Moment::now()
}

#[test]
fn r3_neighbour_bookworm() {
    neighbour("neighbour-bookworm", Era::Bookworm);
}

#[test]
fn r3_neighbour_sid() {
    neighbour("neighbour-sid", Era::Sid);
}

/// R3: another device of the same user, when one id was named; and its cookie stays good.
fn other_device(name: &str, era: Era) {
    let scene = Scene::new(name, era);
    let (first, phone) = scene.session(&scene.alice, "alice");
    let (second, laptop) = scene.session(&scene.bob, "alice");
    let phones = scene.flood(&scene.alice, &phone, false, 100);
    let mut laptops = [scene.flood(&scene.bob, &laptop, true, 100)];
    phones.flowing();
    let from = settled(&laptops);
    let answer = scene.enforcer.revoke_id(scene.server.session_at("alice", phone.v4).id);
    phones.stopped_at(answer.answered, 50);
    let to = settled(&laptops);
    laptops[0].lost_nothing(from, to);
    scene.refused(&scene.alice, &first);
    laptop.kill();
    scene.bob.connect(&scene.server, &second, &Connect::default()).up();
}

#[test]
fn r3_other_device_bookworm() {
    other_device("device-bookworm", Era::Bookworm);
}

#[test]
fn r3_other_device_sid() {
    other_device("device-sid", Era::Sid);
}

/// R3: the next owner of alice's tunnel address and device name has traffic from the first packet on; also where
/// the daemon was killed right after its answer.
fn next_owner(name: &str, era: Era, killed: bool) {
    // a network with room for one client at a time
    let one = |ocserv: enforcer_tests::Ocserv| {
        ocserv.set("ipv4-netmask", "255.255.255.252").set("predictable-ips", "false")
    };
    let mut scene = Scene::with(name, era, one, |config| config);
    let (_, mut alices) = scene.session(&scene.alice, "alice");
    let device = scene.server.session_at("alice", alices.v4).device;
    scene.enforcer.revoke("alice");
    alices.wait_end();
    scene
        .lab
        .eventually("alice's session is gone", || scene.server.sessions("alice").is_empty().then_some(()));
    if killed {
        scene.enforcer.kill();
    }
    let cookie = scene.bob.authenticate(&scene.server, "bob");
    // with the daemon dead an address entry stands for up to 10 s; the gate and the device are bob's own at once
    let bobs = scene.bob.connect(&scene.server, &cookie, &Connect::default()).up();
    let whose = scene.server.session_at("bob", bobs.v4);
    let mut pair = [scene.flood(&scene.bob, &bobs, false, 100)];
    if killed {
        settled(&pair);
        return;
    }
    let to = settled(&pair);
    pair[0].lost_nothing(Moment(0), to);
    assert_eq!((bobs.v4, whose.device), (alices.v4, device), "the lab gives bob what was alice's");
}

#[test]
fn r3_next_owner_bookworm() {
    next_owner("owner-bookworm", Era::Bookworm, false);
}

#[test]
fn r3_next_owner_sid() {
    next_owner("owner-sid", Era::Sid, false);
}

#[test]
fn r3_next_owner_daemon_killed() {
    next_owner("owner-killed", Era::Bookworm, true);
}

/// R3: a neighbour who comes from the very same outer address and port right after. Once with the port of alice's
/// TCP connection, once with that of her DTLS.
fn same_port(name: &str, era: Era, killed: bool) {
    for protocol in [6, 17] {
        let mut scene = Scene::new(name, era);
        let tap = Tap::start(&scene.lab.gateway);
        let (_, mut alices) = scene.session(&scene.alice, "alice");
        scene.flood(&scene.alice, &alices, false, 100).flowing();
        let from_alice = tap.seen(|packet| {
            packet.device == WAN && packet.protocol == protocol && packet.source == scene.alice.outer_v4
        });
        let port = from_alice.last().expect("a packet of alice's").source_port;
        // bob's login comes from another port; only the connection is from alice's
        let cookie = scene.bob.authenticate(&scene.server, "bob");
        scene.enforcer.revoke("alice");
        if killed {
            scene.enforcer.kill();
        }
        alices.wait_end();
        scene.lab.hand_over_address(&scene.alice, &scene.bob);
        let handed_over = Moment::now();
        scene.bob.namespace.set("ipv4/ip_local_port_range", &format!("{port} {port}"));
        // (killed: within the 10 s for which an entry stands without its daemon)
        let tunnel = scene.lab.eventually("bob is let in", || {
            let how = Connect::default().option("--reconnect-timeout=1");
            match scene.bob.connect(&scene.server, &cookie, &how) {
                enforcer_tests::Outcome::Up(tunnel) => Some(tunnel),
                _ if killed => None,
                _ => panic!("bob was not let in"),
            }
        });
        scene.bob.namespace.set("ipv4/ip_local_port_range", "32768 60999");
        scene.flood(&scene.bob, &tunnel, false, 100).flowing();
        let same = tap.seen(|packet| {
            packet.at > handed_over
                && packet.device == WAN
                && packet.protocol == protocol
                && packet.source == scene.alice.outer_v4
                && packet.source_port == port
        });
        assert!(!same.is_empty(), "bob came from alice's port {port}");
    }
}

#[test]
fn r3_same_outer_port_bookworm() {
    same_port("port-bookworm", Era::Bookworm, false);
}

#[test]
fn r3_same_outer_port_sid() {
    same_port("port-sid", Era::Sid, false);
}

#[test]
fn r3_same_outer_port_daemon_killed() {
    same_port("port-killed", Era::Bookworm, true);
}

/// R3: ten logins and logouts of others while alice is revoked again and again: none of theirs fails.
#[test]
fn r3_logins_meanwhile() {
    let scene = Scene::new("meanwhile", Era::Bookworm);
    std::thread::scope(|scope| {
        let logins = scope.spawn(|| {
            for _ in 0..10 {
                let (_, tunnel) = scene.bob.session(&scene.server, "bob");
                scene.flood(&scene.bob, &tunnel, false, 100).flowing();
                tunnel.leave();
            }
        });
        while !logins.is_finished() {
            scene.session(&scene.alice, "alice");
            scene.enforcer.revoke("alice");
            std::thread::sleep(Duration::from_millis(50));
        }
        logins.join().expect("bob's logins");
    });
}
