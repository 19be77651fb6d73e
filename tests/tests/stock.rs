//! The lab itself, on an ocserv that nobody guards: traffic flows, and `disconnect` does not keep anybody out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use std::net::IpAddr;

use enforcer_tests::scene::{Pair, delegated_prefix, other_in_prefix, routed_network};
use enforcer_tests::traffic::{FLOOD, Route};
use enforcer_tests::ways::Way;
use enforcer_tests::{Client, Connect, Era, Flood, Lab, Moment, Ocserv, Outcome};

fn lab(name: &str) -> (Lab, Client, Client) {
    let mut lab = Lab::new(name);
    let alice = lab.client("alice");
    let bob = lab.client("bob");
    (lab, alice, bob)
}

/// The hole: `occtl disconnect user` ends the tunnel, and the saved cookie opens it again with the same address.
fn hole(name: &str, era: Era) {
    let (lab, alice, bob) = lab(name);
    let server = Ocserv::new(&lab, era, 0).start();
    let (cookie, mut tunnel) = alice.session(&server, "alice");
    let (_, bobs) = bob.session(&server, "bob");
    let traffic = [false, true].map(|v6| Pair::new(&lab, &alice, &tunnel, v6, FLOOD / 5));
    traffic.iter().for_each(|pair| {
        pair.flowing();
    });
    // between two VPN clients
    let between = Flood::start(&Route::new(&alice.namespace, &bob.namespace, bobs.ip(false)), 50);
    between.flowing();

    assert_eq!(server.sessions("alice").len(), 1);
    assert_eq!(
        server.cookies("alice").len(),
        1,
        "{}",
        server.occtl(&["-j", "show", "cookies", "all"]).stdout
    );
    let asked = Moment::now();
    assert_eq!(server.occtl(&["disconnect", "user", "alice"]).code, 0);
    tunnel.wait_end();
    let ended = Moment::now();
    assert!(traffic[0].up.passed_after(ended).is_empty());

    let again = alice.connect(&server, &cookie, &Connect::default()).up();
    assert_eq!((again.v4, again.v6), (tunnel.v4, tunnel.v6), "the same addresses");
    traffic.iter().for_each(|pair| {
        pair.flowing();
    });
    assert!(traffic[1].down.first_after(asked).is_some());
}

#[test]
fn hole_bookworm() {
    hole("hole-bookworm", Era::Bookworm);
}

#[test]
fn hole_trixie() {
    hole("hole-trixie", Era::Trixie);
}

#[test]
fn hole_sid() {
    hole("hole-sid", Era::Sid);
}

/// The eras' own clients connect, outside over IPv6 and with TLS alone too.
#[test]
fn clients_of_every_era() {
    let (lab, alice, _) = lab("clients");
    let server = Ocserv::new(&lab, Era::Bookworm, 0).start();
    for era in Era::ALL {
        for how in [Connect::default().era(era).outer_v6(), Connect::default().era(era).no_dtls()] {
            let cookie = alice.login(&server, "alice", &how).expect("a login");
            let tunnel = alice.connect(&server, &cookie, &how).up();
            Pair::new(&lab, &alice, &tunnel, true, 50).flowing();
            tunnel.log_out();
        }
    }
}

/// A connect-script that refuses: the client ends at once, and not one of its packets reaches the LAN.
#[test]
fn refused_by_the_script() {
    for era in Era::ALL {
        let (lab, alice, _) = lab("refused");
        let allow = lab.work().join("allow");
        let server = Ocserv::new(&lab, era, 0).connect_shell(&format!("test -e {}", allow.display())).start();
        let cookie = alice.authenticate(&server, "alice");
        let outcome = alice.connect(&server, &cookie, &Connect::default());
        assert!(matches!(outcome, Outcome::Refused { .. }), "{era}");
        std::fs::write(&allow, "").expect("a file");
        alice.connect(&server, &cookie, &Connect::default()).up();
    }
}

/// Clients behind one masquerading router have one outer address.
#[test]
fn one_address_for_two() {
    let (lab, alice, bob) = lab("nat");
    lab.masquerade(&[&alice, &bob]);
    let server = Ocserv::new(&lab, Era::Bookworm, 0).start();
    let (_, alices) = alice.session(&server, "alice");
    let (_, bobs) = bob.session(&server, "bob");
    Pair::new(&lab, &alice, &alices, false, 50).flowing();
    Pair::new(&lab, &bob, &bobs, true, 50).flowing();
    let addresses = server.occtl(&["-j", "show", "users"]).stdout;
    assert_eq!(
        addresses.matches(&format!("\"{}\"", enforcer_tests::lab::ROUTER_V4)).count(),
        2,
        "{addresses}"
    );
}

/// What the tests of R1 rely on: a made-up source address, a network behind the client, and a delegated prefix.
#[test]
fn addresses_behind_the_client() {
    for era in Era::ALL {
        let (lab, alice, _) = lab("behind");
        let server = delegated_prefix(routed_network(Ocserv::new(&lab, era, 0))).start();
        let (_, tunnel) = alice.session(&server, "alice");
        let spoofed = IpAddr::from([10, 88, 0, 231]);
        let route = Route::new(&alice.namespace, &lab.lan, lab.lan_ip(false));
        Flood::start(&route.source(spoofed).device("tun0"), 100).flowing();
        for address in [IpAddr::from([10, 66, 0, 5]), other_in_prefix(&tunnel)] {
            alice.namespace.ip(&format!("addr add {address} dev lo"));
            let target = lab.lan_ip(address.is_ipv6());
            Flood::start(&Route::new(&alice.namespace, &lab.lan, target).source(address), 100).flowing();
            Flood::start(&Route::new(&lab.lan, &alice.namespace, address), 100).flowing();
        }
    }
}

/// What the tests of topology rely on: each way leads to ocserv, and back.
#[test]
fn every_way() {
    for way in Way::ALL {
        let (lab, alice, _) = lab("ways");
        let built = way.build(&lab, Ocserv::new(&lab, Era::Bookworm, 0));
        let server = built.ocserv.clone().start();
        let (_, tunnel) = alice.session_by(&server, "alice", &built.how);
        Pair::new(&lab, &alice, &tunnel, true, 100).flowing();
        Pair::new(&lab, &alice, &tunnel, false, 100).flowing();
    }
}

/// What the tests of R3 rely on: a network with room for one hands its address and device on, and so does a line
/// its outer address and port.
#[test]
fn next_owner() {
    for era in [Era::Bookworm, Era::Sid] {
        let (lab, alice, bob) = lab("owner");
        let ocserv = Ocserv::new(&lab, era, 0);
        let server = ocserv.set("ipv4-netmask", "255.255.255.252").set("predictable-ips", "false").start();
        let (_, alices) = alice.session(&server, "alice");
        let first = server.session_at("alice", alices.v4);
        alices.log_out();
        lab.eventually("alice is gone", || server.sessions("alice").is_empty().then_some(()));
        let cookie = bob.authenticate(&server, "bob");
        lab.hand_over_address(&alice, &bob);
        bob.namespace.set("ipv4/ip_local_port_range", "40001 40001");
        let bobs = bob.connect(&server, &cookie, &Connect::default()).up();
        let second = server.session_at("bob", bobs.v4);
        assert_eq!((first.v4, first.device), (second.v4, second.device));
        bob.namespace.set("ipv4/ip_local_port_range", "32768 60999");
        Pair::new(&lab, &bob, &bobs, false, 100).flowing();
    }
}
