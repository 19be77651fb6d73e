//! A gateway that masquerades its clients: what its connection tracking has of a revoked session's address does not
//! come to the address's next owner. Each address has one owner after the other: ocserv has room for one client.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use enforcer_tests::enforcer::Config;
use enforcer_tests::lab::LAN_V4;
use enforcer_tests::scene::Scene;
use enforcer_tests::ways::Way;
use enforcer_tests::{Connect, Enforcer, Era, Lab, Namespace, Ocserv, Tunnel};

/// What the clients send on is translated.
const RULES: &str = "table inet nat {\nchain post {\ntype nat hook postrouting priority srcnat\n\
                     ip saddr 10.88.0.0/16 masquerade\n}\n}\n";

fn room_for_one(ocserv: Ocserv) -> Ocserv {
    ocserv.set("ipv4-netmask", "255.255.255.252").set("predictable-ips", "false")
}

fn socket(namespace: &Namespace, address: impl Into<SocketAddr>) -> UdpSocket {
    let address = address.into();
    let socket = namespace.within(|| UdpSocket::bind(address)).expect("a free port");
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    socket
}

/// What comes, and from whom.
fn heard(socket: &UdpSocket) -> (String, SocketAddr) {
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer).expect("a datagram");
    (String::from_utf8_lossy(&buffer[..length]).into_owned(), from)
}

fn send(from: &UdpSocket, text: &str, to: SocketAddr) {
    // what was sent before may have been answered with an error
    while from.send_to(text.as_bytes(), to).is_err() {}
}

/// A connection of a tunnel with the LAN host. `from`: how the LAN host sees it.
struct Connection {
    client: UdpSocket,
    lan: UdpSocket,
    from: SocketAddr,
}

impl Connection {
    fn new(namespace: &Namespace, tunnel: &Tunnel, lan: UdpSocket) -> Self {
        let client = socket(namespace, (tunnel.v4, 4000));
        send(&client, "query", lan.local_addr().unwrap());
        let (text, from) = heard(&lan);
        assert_eq!(text, "query");
        assert_ne!(from.ip(), tunnel.v4, "the gateway masquerades");
        Self { client, lan, from }
    }

    /// The LAN host's answer comes, and nothing came before it.
    fn is_answered(&self, text: &str) {
        send(&self.lan, text, self.from);
        assert_eq!(heard(&self.client).0, text);
    }
}

/// With a port of the LAN host's.
fn connection(lab: &Lab, namespace: &Namespace, tunnel: &Tunnel, port: u16) -> Connection {
    Connection::new(namespace, tunnel, socket(&lab.lan, (LAN_V4, port)))
}

/// The leak itself, and R3: a session that ends without a revocation keeps its connections.
#[test]
fn r3_without_a_revocation_the_next_owner_gets_the_last_ones_answers() {
    let scene = Scene::with("track-leak", Era::Bookworm, room_for_one, |config| config);
    scene.lab.gateway.nft(RULES);
    let (_, mut alices) = scene.session(&scene.alice, "alice");
    let old = connection(&scene.lab, &scene.alice.namespace, &alices, 5300);
    scene.enforcer.cli(&["disconnect", "user", "alice"]).code(0);
    alices.wait_end();
    scene
        .lab
        .eventually("alice's session is gone", || scene.server.sessions("alice").is_empty().then_some(()));
    let (_, bobs) = scene.session(&scene.bob, "bob");
    assert_eq!(bobs.v4, alices.v4, "the lab gives bob what was alice's");
    let new = socket(&scene.bob.namespace, (bobs.v4, 4000));
    send(&old.lan, "the old one's", old.from);
    assert_eq!(heard(&new).0, "the old one's", "the leak is not there: is the next test right?");
}

fn next_owner(name: &str, era: Era) {
    let scene = Scene::with(name, era, room_for_one, |config| config);
    scene.lab.gateway.nft(RULES);
    let (_, mut alices) = scene.session(&scene.alice, "alice");
    let old = connection(&scene.lab, &scene.alice.namespace, &alices, 5300);
    old.is_answered("alice's");
    let receipt = scene.enforcer.revoke("alice").receipt();
    assert!(receipt.done("conntrack") >= 1, "{}", receipt.text("conntrack"));
    assert_eq!(receipt.failed("conntrack"), 0, "{}", receipt.text("conntrack"));
    alices.wait_end();
    scene
        .lab
        .eventually("alice's session is gone", || scene.server.sessions("alice").is_empty().then_some(()));
    let (_, bobs) = scene.session(&scene.bob, "bob");
    assert_eq!(bobs.v4, alices.v4, "the lab gives bob what was alice's");
    // by the same ports, so that they could be taken for hers
    send(&old.lan, "the old one's", old.from);
    let new = connection(&scene.lab, &scene.bob.namespace, &bobs, 5301);
    new.is_answered("the new one's");
    send(&old.lan, "the old one's again", old.from);
    // R3: his are not touched when the revocation is looked after
    scene.enforcer.completes(receipt.number().expect("a number"));
    new.is_answered("the new one's again");
}

#[test]
fn r1_next_owner_bookworm() {
    next_owner("track-bookworm", Era::Bookworm);
}

#[test]
fn r1_next_owner_sid() {
    next_owner("track-sid", Era::Sid);
}

/// R3: a neighbour's connections are answered before and after.
#[test]
fn r3_a_neighbours_connections_stay() {
    let scene = Scene::new("track-neighbour", Era::Bookworm);
    scene.lab.gateway.nft(RULES);
    let (_, alices) = scene.session(&scene.alice, "alice");
    let (_, bobs) = scene.session(&scene.bob, "bob");
    let _hers = connection(&scene.lab, &scene.alice.namespace, &alices, 5300);
    let his = connection(&scene.lab, &scene.bob.namespace, &bobs, 5301);
    his.is_answered("before");
    let receipt = scene.enforcer.revoke("alice").receipt();
    assert!(receipt.done("conntrack") >= 1, "{}", receipt.text("conntrack"));
    his.is_answered("after");
    // nothing of hers is left to be taken out
    assert_eq!(scene.enforcer.cli(&["terminate", "user", "alice", "--json"]).receipt().done("conntrack"), 0);
}

/// R1: an ocserv in a container, whose namespace translates.
#[test]
fn r1_next_owner_in_a_container() {
    let mut lab = Lab::new("track-container");
    let way = Way::Container;
    let built = way.build(&lab, room_for_one(Ocserv::new(&lab, Era::Bookworm, 0)));
    let mut enforcer = Enforcer::prepare(&lab, &Config::new(&[&built.ocserv]));
    let server = enforcer.guard(built.ocserv.clone()).start();
    enforcer.start();
    server.namespace().nft(RULES);
    let (alice, bob) = (lab.client("alice"), lab.client("bob"));
    let (_, mut alices) = alice.session_by(&server, "alice", &built.how);
    enforcer.knows("alice");
    let old = connection(&lab, &alice.namespace, &alices, 5300);
    let receipt = enforcer.revoke("alice").receipt();
    assert!(receipt.done("conntrack") >= 1, "{}", receipt.text("conntrack"));
    alices.wait_end();
    lab.eventually("alice's session is gone", || server.sessions("alice").is_empty().then_some(()));
    let (_, bobs) = bob.session_by(&server, "bob", &built.how);
    assert_eq!(bobs.v4, alices.v4, "the lab gives bob what was alice's");
    send(&old.lan, "the old one's", old.from);
    connection(&lab, &bob.namespace, &bobs, 5301).is_answered("the new one's");
}

/// R6: a gateway that tracks nothing says so, and is done.
#[test]
fn r6_nothing_is_tracked() {
    let scene = Scene::new("track-nothing", Era::Bookworm);
    scene.session(&scene.alice, "alice");
    let receipt = scene.enforcer.revoke("alice").receipt();
    assert_eq!(receipt.text("conntrack"), "not tracked here");
    let cookie = scene.alice.authenticate(&scene.server, "alice");
    scene.alice.connect(&scene.server, &cookie, &Connect::default()).up();
}
