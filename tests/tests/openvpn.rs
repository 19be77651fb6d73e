//! Another VPN's token, with its real server and clients: OpenVPN's session id.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};

use enforcer_ebpf::layout::{TOKEN_OPENVPN, TokenKey, UDP};
use enforcer_ebpf::openvpn::session_id;
use enforcer_ebpf::packet::{Frame as _, Framing, Outer, outer};
use enforcer_tests::enforcer::{DONE, ERROR};
use enforcer_tests::lab::LAN_V4;
use enforcer_tests::namespace::Namespace;
use enforcer_tests::openvpn::{OpenvpnServer, OpenvpnTunnel, PORT, Protection, SERVER};
use enforcer_tests::process::{BOUND, eventually};
use enforcer_tests::scene::Scene;
use enforcer_tests::traffic::Route;
use enforcer_tests::{Client, Enforcer, Era, Flood, Moment};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};

/// The OpenVPN packets that pass the gateway's XDP.
struct Listener {
    socket: OwnedFd,
}

/// One of them.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Heard {
    from: SocketAddrV4,
    payload: Vec<u8>,
    id: Option<[u8; 8]>,
}

impl Heard {
    fn opcode(&self) -> u8 {
        self.payload.first().map_or(0, |first| first >> 3)
    }
}

impl Listener {
    fn new(namespace: &Namespace) -> Self {
        let socket = namespace.within(|| {
            let nonblocking = SockFlag::SOCK_NONBLOCK;
            socket(AddressFamily::Packet, SockType::Datagram, nonblocking, SockProtocol::EthAll)
        });
        Self { socket: socket.expect("a packet socket") }
    }

    /// What has come to OpenVPN's port since the last time.
    fn heard(&self) -> Vec<Heard> {
        let mut buffer = [0; 4096];
        let mut all = Vec::new();
        while let Ok(length) = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            let packet = &buffer[..length];
            let Ok(Outer::Segment(segment, _)) = outer(packet, Framing::Bare) else { continue };
            if segment.protocol != UDP || segment.destination_port != PORT.to_be() || packet[0] >> 4 != 4 {
                continue;
            }
            let [source] = packet.words(12).expect("an address");
            let from = SocketAddrV4::new(source.to_ne_bytes().into(), u16::from_be(segment.source_port));
            let id = session_id(packet, segment.at).map(|TokenKey { id, kind, len }| {
                assert_eq!((kind, len), (TOKEN_OPENVPN, 8));
                let words: [u32; 2] = [id[0], id[1]];
                words.map(u32::to_ne_bytes).concat().try_into().expect("eight bytes")
            });
            all.push(Heard { from, payload: packet[segment.at + 8..].to_vec(), id });
        }
        all
    }
}

fn hex(id: [u8; 8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn dropped_tokens(enforcer: &Enforcer) -> u64 {
    let status = enforcer.status();
    let counters = status["counters"].as_array().expect("counters");
    let counter = counters.iter().find(|counter| counter["reason"] == "dropped-token").expect("the counter");
    counter["packets"].as_u64().expect("a number")
}

/// Through the tunnel, to the LAN host.
fn flood(scene: &Scene, client: &Client, tunnel: &OpenvpnTunnel) -> Flood {
    let route = Route::new(&client.namespace, &scene.lab.lan, LAN_V4.into()).source(tunnel.v4.into());
    Flood::start(&route, 200)
}

fn scene(name: &str) -> Scene {
    Scene::with(
        name,
        Era::Bookworm,
        |ocserv| ocserv,
        |config| config.set("kernel", "openvpn-ports", "[1194]"),
    )
}

/// The id that a client has shown in what was heard: one and no other.
fn id_of(heard: &[Heard], from: Ipv4Addr) -> [u8; 8] {
    let mut ids: Vec<_> =
        heard.iter().filter(|one| *one.from.ip() == from).filter_map(|one| one.id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:02x?}");
    ids[0]
}

/// R1, R2, R3, R4: a tunnel ends with its session id, which is dropped from any other port and address as well; a
/// neighbour loses nothing; a new session of the same user comes in.
fn tunnel(name: &str, protection: Protection) {
    let scene = scene(name);
    let (alice, bob) = (&scene.alice, &scene.bob);
    let server = OpenvpnServer::start(&scene.lab, protection, &["alice", "bob"]);
    let listener = Listener::new(&scene.lab.gateway);
    // it makes new keys all the time: by soft resets, which show the same id
    let mut alices = server.connect(alice, 40_000, "reneg-pkts 100");
    let bobs = server.connect(bob, 40_000, "");
    let hers = flood(&scene, alice, &alices);
    let mut his = flood(&scene, bob, &bobs);
    hers.flowing();
    his.flowing();
    let mut heard = Vec::new();
    eventually("alice has made new keys", BOUND, || {
        heard.extend(listener.heard());
        let is_reset = |one: &Heard| *one.from.ip() == alice.outer_v4 && one.opcode() == 3;
        heard.iter().any(is_reset).then_some(())
    });
    let id = id_of(&heard, alice.outer_v4);
    assert_ne!(id_of(&heard, bob.outer_v4), id);
    let (her, here) = (format!("{}:40000", alice.outer_v4), SERVER.to_string());
    let told = scene.enforcer.cli(&["revoke", "flow", "udp", &her, &here, "--dry-run"]).code(DONE).stdout;
    assert!(told.contains(&format!("token openvpn {}", hex(id))), "{told}");
    assert_eq!(dropped_tokens(&scene.enforcer), 0);

    let from = Moment::now();
    let answer = scene.enforcer.cli(&["revoke", "token", "openvpn", &hex(id), "--json"]).code(DONE);
    assert_eq!(answer.receipt().text("packets"), "dropped by 1 token");
    hers.wait_sent(50);
    assert_eq!(hers.passed_after(answer.answered).len(), 0, "alice's tunnel is dead");
    his.flowing();
    let to = Moment::now();
    his.stop_sending();
    let lost = his.lost_between(from, to);
    assert!(lost.is_empty(), "bob lost {lost:?}");
    assert!(dropped_tokens(&scene.enforcer) >= 10, "her data is dropped, by what her flow has shown");

    // what the server sends is not XDP's: that is said, and what helps is her tunnel address
    let down = Route::new(&scene.lab.lan, &alice.namespace, alices.v4.into());
    let down = Flood::start(&down, 200);
    down.flowing();
    let address = alices.v4.to_string();
    let answer = scene.enforcer.cli(&["revoke", "address", &address, "--for", "10min", "--json"]).code(DONE);
    down.wait_sent(50);
    assert_eq!(down.passed_after(answer.answered).len(), 0, "both directions");
    drop((hers, down));
    alices.process.kill();
    // it is given to the next client at once
    let number = answer.receipt().number().expect("a number").to_string();
    scene.enforcer.cli(&["lift", &number]).code(DONE);

    // what she has sent, once more: from another port of hers, and from another host
    let replayed: Vec<&Heard> =
        heard.iter().filter(|one| *one.from.ip() == alice.outer_v4 && one.id.is_some()).collect();
    assert!(replayed.len() >= 4, "{replayed:?}");
    for thief in [alice, bob] {
        listener.heard();
        let socket = thief.namespace.within(|| UdpSocket::bind("0.0.0.0:40001")).expect("a socket");
        let before = dropped_tokens(&scene.enforcer);
        let mut twins = Vec::new();
        for one in &replayed {
            socket.send_to(&one.payload, SERVER).expect("sent");
            // one bit of the id is another one: what passes after it tells that it did not
            let mut twin = one.payload.clone();
            twin[1 + twins.len() % 8] ^= 1 << (twins.len() % 7);
            socket.send_to(&twin, SERVER).expect("sent");
            twins.push(twin);
        }
        let mut passed = Vec::new();
        eventually("every twin has passed", BOUND, || {
            passed.extend(listener.heard().into_iter().filter(|one| one.from.port() == 40_001));
            (passed.len() >= twins.len()).then_some(())
        });
        assert_eq!(passed.into_iter().map(|one| one.payload).collect::<Vec<_>>(), twins);
        assert_eq!(dropped_tokens(&scene.enforcer), before + replayed.len() as u64);
    }

    // a new session of hers; from another port, since OpenVPN itself lets no new one in from a port where it still has the
    // old one
    listener.heard();
    let again = server.connect(alice, 40_002, "");
    flood(&scene, alice, &again).flowing();
    let new = id_of(&listener.heard(), alice.outer_v4);
    assert_ne!(new, id);
    flood(&scene, bob, &bobs).flowing();
    let shown = scene.enforcer.cli(&["show", "revocations", "--json"]).json;
    let shown = shown["revocations"].as_array().expect("revocations");
    let target = format!("token openvpn {}", hex(id));
    let token = shown.iter().find(|one| one["target"] == target).expect("the token");
    assert!(token["hits"].as_u64() >= Some(10), "{token}");
}

#[test]
fn r1_openvpn() {
    tunnel("openvpn", Protection::None);
}

#[test]
fn r1_openvpn_tls_auth() {
    tunnel("openvpn-auth", Protection::Auth);
}

#[test]
fn r1_openvpn_tls_crypt() {
    tunnel("openvpn-crypt", Protection::Crypt);
}

#[test]
fn r1_openvpn_tls_crypt_v2() {
    tunnel("openvpn-crypt-v2", Protection::CryptV2);
}

/// R1, R6: a client that comes from another port without connecting anew (its NAT has changed its mind) shows no id
/// there: its data passes, as is said. With its tunnel address it ends wherever it is.
#[test]
fn r1_r6_openvpn_a_client_that_floats_ends_with_its_tunnel_address() {
    let scene = scene("openvpn-float");
    let (alice, bob) = (&scene.alice, &scene.bob);
    let server = OpenvpnServer::start(&scene.lab, Protection::None, &["alice", "bob"]);
    let listener = Listener::new(&scene.lab.gateway);
    let tunnel = server.connect(alice, 40_000, "");
    let bobs = server.connect(bob, 40_000, "");
    let (hers, his) = (flood(&scene, alice, &tunnel), flood(&scene, bob, &bobs));
    hers.flowing();
    let id = hex(id_of(&listener.heard(), alice.outer_v4));
    let answer = scene.enforcer.cli(&["revoke", "token", "openvpn", &id]).code(DONE);
    hers.wait_sent(50);
    assert_eq!(hers.passed_after(answer.answered).len(), 0);
    scene.lab.router.nft(&format!(
        "table ip other {{\nchain post {{\ntype nat hook postrouting priority 100\n\
         ip saddr {0} udp dport {PORT} snat to {0}:45000\n}}\n}}\n",
        alice.outer_v4
    ));
    hers.flowing();
    let is_floated = |one: &Heard| *one.from.ip() == alice.outer_v4 && one.from.port() == 45_000;
    assert!(listener.heard().iter().any(is_floated));
    let address = tunnel.v4.to_string();
    let answer = scene.enforcer.cli(&["revoke", "address", &address, "--for", "10min"]).code(DONE);
    hers.wait_sent(50);
    assert_eq!(hers.passed_after(answer.answered).len(), 0);
    his.flowing();
}

/// R5, R6: the revocation outlives the daemon and the host, and is a line of a list; where no port is OpenVPN's it is
/// refused, and what is there already is told of.
#[test]
fn r5_r6_an_openvpn_token_stands_and_says_where_it_does_not() {
    let mut scene = scene("openvpn-stands");
    let to = SERVER;
    let id = "0102030405060708";
    let packet = |last: u8| [&[7 << 3, 1, 2, 3, 4, 5, 6, 7, last][..], &[0; 20]].concat();
    let listener = Listener::new(&scene.lab.gateway);
    let (namespace, gateway) = (scene.alice.namespace.clone(), scene.lab.gateway.clone());
    let sink = gateway.within(|| UdpSocket::bind(to)).expect("a socket");
    let passes = |last: u8| {
        let socket = namespace.within(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket");
        listener.heard();
        for last in [last, 99] {
            socket.send_to(&packet(last), to).expect("sent");
        }
        let mut heard = Vec::new();
        eventually("the one that nobody revokes", BOUND, || {
            heard.extend(listener.heard());
            heard.iter().any(|one| one.payload == packet(99)).then_some(())
        });
        heard.iter().any(|one| one.payload == packet(last))
    };
    assert!(passes(8));
    let list = format!("token openvpn {id} --for 1d\ntoken openvpn 0102\ntoken dtls {id}\n");
    let bulk = scene.enforcer.cli_with(&["revoke", "--from", "-", "--json"], &list);
    assert_eq!((&bulk.json["done"], &bulk.json["failed"]), (&2.into(), &1.into()), "{bulk:?}");
    assert!(bulk.stdout.contains("it is 8 bytes in hexadecimal"), "{bulk:?}");
    assert!(!passes(8) && passes(9));

    scene.enforcer.kill();
    assert!(!passes(8));
    scene.enforcer.start();
    assert!(!passes(8) && passes(9));
    let shown = scene.enforcer.cli(&["show", "revocations"]).stdout;
    assert!(shown.contains(&format!("token openvpn {id}")), "{shown}");
    scene.enforcer.stop();
    scene.enforcer.reboot("11111111-2222-3333-4444-555555555555");
    assert!(passes(8), "nothing is in force between");
    scene.enforcer.start();
    assert!(!passes(8) && passes(9));

    // the port is OpenVPN's no more
    let plain = scene.enforcer.cli(&["check", "--json"]).stdout;
    assert!(!plain.contains("OpenVPN session ids are revoked"), "{plain}");
    scene.enforcer.stop();
    let config = scene.enforcer.config();
    let text = std::fs::read_to_string(&config).expect("the configuration");
    std::fs::write(&config, text.replace("openvpn-ports = [1194]\n", "")).expect("written");
    scene.enforcer.start();
    assert!(passes(8));
    let check = scene.enforcer.cli(&["check", "--json"]).code(ERROR).stdout;
    assert!(check.contains("OpenVPN session ids are revoked, and NOT dropped"), "{check}");
    let refused = scene.enforcer.cli(&["revoke", "token", "openvpn", id]).code(ERROR);
    assert!(refused.stderr.contains("[kernel] openvpn-ports"), "{refused:?}");
    scene.enforcer.cli(&["revoke", "token", "dtls", id]).code(DONE);
    drop(sink);
}
