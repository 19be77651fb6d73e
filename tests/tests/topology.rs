//! R1 to R3 where the addresses on the wire, in ocserv's reports and of its sockets differ; and several servers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use enforcer_tests::enforcer::Config;
use enforcer_tests::scene::{Pair, Scene};
use enforcer_tests::traffic::FLOOD;
use enforcer_tests::ways::Way;
use enforcer_tests::{Connect, Enforcer, Era, Lab, Moment, Ocserv};

/// R1, R2, R3: alice is stopped and stays so; bob, who comes the same way, loses no packet, also where all
/// clients have one address.
fn by(name: &str, way: Way, era: Era) {
    let mut lab = Lab::new(name);
    let built = way.build(&lab, Ocserv::new(&lab, era, 0));
    let mut enforcer = Enforcer::prepare(&lab, &Config::new(&[&built.ocserv]));
    let server = enforcer.guard(built.ocserv.clone()).start();
    enforcer.start();
    let (alice, bob) = (lab.client("alice"), lab.client("bob"));
    let (_, bobs) = bob.session_by(&server, "bob", &built.how);
    enforcer.knows("bob");
    for _ in 0..3 {
        let (cookie, tunnel) = alice.session_by(&server, "alice", &built.how);
        enforcer.knows("alice");
        let pairs = [false, true].map(|v6| Pair::new(&lab, &alice, &tunnel, v6, FLOOD / 2));
        let mut bobs = Pair::new(&lab, &bob, &bobs, true, 100);
        pairs.iter().for_each(|pair| {
            pair.flowing();
        });
        bobs.flowing();
        let from = Moment::now();
        let answer = enforcer.revoke("alice");
        assert!(answer.receipt().done("sockets") >= 1, "{}", answer.stdout);
        for pair in &pairs {
            pair.stopped_at(answer.answered, 50);
        }
        bobs.flowing();
        bobs.lost_nothing(from, Moment::now());
        alice.connect(&server, &cookie, &built.how).refused();
    }
}

#[test]
fn r1_proxy_outside() {
    by("way-outside", Way::ProxyOutside, Era::Bookworm);
    by("way-outside", Way::ProxyOutside, Era::Sid);
}

#[test]
fn r1_proxy_inside() {
    by("way-inside", Way::ProxyInside, Era::Bookworm);
}

#[test]
fn r1_redirected() {
    by("way-redirected", Way::Redirected, Era::Bookworm);
}

#[test]
fn r1_container() {
    by("way-container", Way::Container, Era::Bookworm);
    by("way-container", Way::Container, Era::Sid);
}

/// Several servers on one host, an old one and a new one: a user is one person on all of them, and an id belongs
/// to one.
#[test]
fn several_servers() {
    let mut lab = Lab::new("several");
    let old = Ocserv::new(&lab, Era::Bookworm, 0);
    let new = Ocserv::new(&lab, Era::Sid, 1);
    let mut enforcer = Enforcer::prepare(&lab, &Config::new(&[&old, &new]));
    let (old, new) = (enforcer.guard(old).start(), enforcer.guard(new).start());
    enforcer.start();
    let hosts = ["a0", "a1", "b0", "b1"].map(|name| lab.client(name));
    let [a0, a1, b0, b1] = &hosts;
    let (on_old, first) = a0.session(&old, "alice");
    let (on_new, second) = a1.session(&new, "alice");
    let (_, third) = b0.session(&old, "bob");
    let (_, fourth) = b1.session(&new, "bob");
    enforcer.knows("alice");
    enforcer.knows("bob");
    let alices = [Pair::new(&lab, a0, &first, false, 200), Pair::new(&lab, a1, &second, true, 200)];
    let bobs = [Pair::new(&lab, b0, &third, true, 100), Pair::new(&lab, b1, &fourth, false, 100)];
    for pair in alices.iter().chain(&bobs) {
        pair.flowing();
    }
    let from = Moment::now();
    let answer = enforcer.revoke("alice");
    for pair in &alices {
        pair.stopped_at(answer.answered, 50);
    }
    a0.connect(&old, &on_old, &Connect::default()).refused();
    a1.connect(&new, &on_new, &Connect::default()).refused();
    for mut pair in bobs {
        pair.flowing();
        pair.lost_nothing(from, Moment::now());
    }
    // one id, of one server
    let (_, again) = a0.session(&old, "alice");
    let (_, other) = a1.session(&new, "alice");
    let id = old.session_at("alice", again.v4).id;
    enforcer.knows("alice");
    let answer = enforcer.revoke_id(id);
    Pair::new(&lab, a1, &other, false, 100).flowing();
    let mut again = again;
    again.wait_end();
    assert!(answer.receipt().number().is_some());
}

/// R1: every way of attaching the programs, forced in turn: tcx and clsact, driver mode and generic.
fn attached(name: &str, xdp: &str, tc: &str) {
    let quoted = enforcer_tests::enforcer::quoted;
    let scene = Scene::with(
        name,
        Era::Bookworm,
        |ocserv| ocserv,
        |config| config.set("kernel", "xdp", &quoted(xdp)).set("kernel", "tc", &quoted(tc)),
    );
    let how = enforcer_tests::receipt::attached(&scene.enforcer.status());
    assert!(how.iter().any(|(device, how)| device == "wan0" && how.contains(xdp)), "{how:?}");
    assert!(how.iter().any(|(device, how)| device == "lan0" && how.contains(tc)), "{how:?}");
    let (_, bobs) = scene.session(&scene.bob, "bob");
    for v6 in [false, true] {
        let (cookie, tunnel) = scene.session(&scene.alice, "alice");
        let pair = scene.flood(&scene.alice, &tunnel, v6, FLOOD);
        pair.flowing();
        let answer = scene.enforcer.revoke("alice");
        pair.stopped_at(answer.answered, 50);
        scene.refused(&scene.alice, &cookie);
    }
    scene.flood(&scene.bob, &bobs, true, 100).flowing();
}

#[test]
fn r1_native_tcx() {
    attached("how-native-tcx", "native", "tcx");
}

#[test]
fn r1_native_clsact() {
    attached("how-native-clsact", "native", "clsact");
}

#[test]
fn r1_generic_tcx() {
    attached("how-generic-tcx", "generic", "tcx");
}
