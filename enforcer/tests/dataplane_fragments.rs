//! R1, R3: fragmented packets and ICMP errors, put together and heard by a real kernel. Needs root; every test has
//! namespaces and a bpffs of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

mod lab;
#[path = "../../enforcer-ebpf/tests/packets/mod.rs"]
mod packets;
mod wire;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};

use enforcer::dataplane::{Dataplane, GateFacts, Role};
use enforcer::session::{Entry, Flow, Protocol, Stands, Token, TokenKind};
use lab::{CLIENT, GATEWAY, Lab, OTHER, PEER, Socket, Tun, ifindex, lab};
use packets::client_hello;
use wire::Datagram;

const NONE: GateFacts = GateFacts { server: 0, moment: 0 };
/// The gateway's end, a client's, and a neighbour's behind the same address.
const ENDS: [[&str; 3]; 2] = [
    ["10.8.0.1:443", "10.8.0.2:4000", "10.8.0.2:4001"],
    ["[fd08::1]:443", "[fd08::2]:4000", "[fd08::2]:4001"],
];

fn insert(dataplane: &mut Dataplane, entry: &Entry) {
    dataplane.insert(entry, 1, Stands::Forever, NONE).unwrap();
}

fn revoke(dataplane: &mut Dataplane, lab: &Lab, protocol: Protocol, client: &str, local: &str) {
    let flow = Flow::new(protocol, client.parse().unwrap(), local.parse().unwrap()).unwrap();
    insert(dataplane, &Entry::Flow(lab.netns(), flow));
}

fn counted(dataplane: &Dataplane, reason: &str) -> u64 {
    dataplane.counters().unwrap().iter().find(|counter| counter.reason == reason).unwrap().packets
}

/// The next datagram; it comes at once, however busy the machine.
fn receive(socket: &Socket) -> Vec<u8> {
    let mut buffer = [0; 4096];
    for _ in 0..100 {
        match socket.0.recv(&mut buffer) {
            Ok(length) => return buffer[..length].to_vec(),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("nothing came in fifteen seconds");
}

/// A tun device as the outer one, and a gateway that listens there.
struct Scene {
    tun: Tun,
    dataplane: Dataplane,
    servers: [Socket; 2],
}

impl Scene {
    fn new(lab: &Lab) -> Self {
        let tun = Tun::new("tun0");
        let mut dataplane = lab.open();
        dataplane.attach(None, lab.netns(), ifindex("tun0"), "tun0", Role::Outer).unwrap();
        let servers = ENDS.map(|[local, ..]| lab.here(local));
        Self { tun, dataplane, servers }
    }

    fn send(&mut self, packets: &[Vec<u8>]) {
        for packet in packets {
            self.tun.send(packet);
        }
    }

    /// What was sent before was not delivered: a neighbour's next datagram is the first to come.
    #[track_caller]
    fn nothing_came(&mut self, family: usize) {
        let [local, _, neighbour] = ENDS[family];
        self.send(&[Datagram::udp(neighbour, local, b"the neighbour's").whole()]);
        assert_eq!(receive(&self.servers[family]), b"the neighbour's");
    }
}

/// All orders of three.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

#[test]
fn r1_r3_a_revoked_flow_is_never_put_together_and_its_neighbours_is() {
    lab(|lab| {
        let mut scene = Scene::new(lab);
        for (family, [local, client, neighbour]) in ENDS.into_iter().enumerate() {
            let payload: Vec<u8> = (0..2000_u32).map(|at| at as u8).collect();
            let pieces = |from, id| Datagram::udp(from, local, &payload).id(id).pieces(&[1000, 1600]);
            scene.send(&pieces(client, 1));
            assert_eq!(receive(&scene.servers[family]), payload, "before it is revoked");
            revoke(&mut scene.dataplane, lab, Protocol::Udp, client, local);
            for (id, order) in (10..).zip(ORDERS) {
                let theirs = pieces(client, id);
                scene.send(&order.map(|at| theirs[at].clone()));
                scene.nothing_came(family);
                // the first one again, and once more all
                scene.send(&theirs[..1]);
                scene.send(&theirs);
                scene.nothing_came(family);
                let his = pieces(neighbour, id + 100);
                scene.send(&order.map(|at| his[at].clone()));
                assert_eq!(receive(&scene.servers[family]), payload, "{order:?}");
            }
        }
    });
}

/// R1: the first fragment shows the ports and nothing more; the TCP header goes on in the next one (RFC 1858).
#[test]
fn r1_r3_a_connection_that_begins_in_tiny_fragments() {
    lab(|lab| {
        let mut scene = Scene::new(lab);
        for [local, client, neighbour] in ENDS {
            let listener = TcpListener::bind(local).unwrap();
            revoke(&mut scene.dataplane, lab, Protocol::Tcp, client, local);
            for order in [[0, 1], [1, 0]] {
                for (from, id) in [(client, 21), (neighbour, 22)] {
                    // IPv6 wants the whole header in the first one, and has ports there like this
                    let cut = if local.starts_with('[') { 24 } else { 8 };
                    let syn = Datagram::syn(from, local).id(id).pieces(&[cut]);
                    scene.send(&order.map(|at| syn[at].clone()));
                }
                // the answer to whoever asked: SYN and ACK
                let port = |end: &str| end.parse::<SocketAddr>().unwrap().port().to_be_bytes();
                let answer = scene.tun.next(|packet| {
                    let tcp = if packet[0] >> 4 == 4 { 20 } else { 40 };
                    (packet.get(tcp + 13) == Some(&0x12)).then(|| packet[tcp + 2..tcp + 4].to_vec())
                });
                assert_eq!(answer, port(neighbour), "{local} {order:?}");
            }
            drop(listener);
        }
    });
}

/// R1: RFC 7112. Linux puts together what is cut before a further extension header.
#[test]
fn r1_the_ports_are_not_in_the_first_fragment() {
    lab(|lab| {
        let mut scene = Scene::new(lab);
        let [local, client, neighbour] = ENDS[1];
        // the first fragment ends with the first of two option headers
        let pieces = |from, id| Datagram::udp(from, local, b"hidden").options(2).id(id).pieces(&[8]);
        let whole = |from| Datagram::udp(from, local, b"honest").options(2).whole();
        revoke(&mut scene.dataplane, lab, Protocol::Udp, client, local);
        for order in [[0, 1], [1, 0]] {
            let hidden = pieces(client, 31 + order[0] as u32);
            scene.send(&order.map(|at| hidden[at].clone()));
            // as if the ports were in the padding
            let mut padded = pieces(client, 33 + order[0] as u32);
            padded[0].extend(Datagram::udp(neighbour, local, b"").transport());
            scene.send(&order.map(|at| padded[at].clone()));
            scene.nothing_came(1);
        }
        // each first one, and what came after it
        assert_eq!(counted(&scene.dataplane, "dropped-fragment"), 6);
        scene.send(&[whole(client), whole(neighbour)]);
        assert_eq!(receive(&scene.servers[1]), b"honest");
        scene.nothing_came(1);
    });
}

/// R1: the session id of a DTLS ClientHello stands in the second fragment.
#[test]
fn r1_a_token_does_not_hide_behind_a_tiny_fragment() {
    lab(|lab| {
        let mut scene = Scene::new(lab);
        let hello = client_hello(&[7; 32]);
        let other = client_hello(&[8; 32]);
        for (family, [local, client, _]) in ENDS.into_iter().enumerate() {
            let pieces = |hello: &[u8], cut| Datagram::udp(client, local, hello).id(41).pieces(&[cut]);
            let token = Entry::Token(Token::new(TokenKind::Dtls, vec![7; 32]).unwrap());
            scene.send(&pieces(&hello, 104));
            assert_eq!(receive(&scene.servers[family]), hello, "before it is revoked");
            insert(&mut scene.dataplane, &token);
            for cut in [8, 48, 64, 80, 96, 104] {
                scene.send(&pieces(&hello, cut));
                scene.nothing_came(family);
            }
            scene.send(&pieces(&other, 104));
            assert_eq!(receive(&scene.servers[family]), other);
            scene.dataplane.remove(&token).unwrap();
        }
    });
}

/// R3: a revoked client that goes on sending in fragments leaves nothing behind that fills the host's reassembly or
/// that a neighbour's datagram is mixed with.
#[test]
fn r3_the_rest_of_dropped_datagrams_takes_no_room_and_no_number() {
    lab(|lab| {
        let mut scene = Scene::new(lab);
        for (family, [local, client, neighbour]) in ENDS.into_iter().enumerate() {
            revoke(&mut scene.dataplane, lab, Protocol::Udp, client, local);
            let (theirs, his) = (vec![1; 2600], vec![2; 2600]);
            for id in 0..6000 {
                scene.send(&Datagram::udp(client, local, &theirs).id(id).pieces(&[1304]));
            }
            for id in [5999, 6000] {
                scene.send(&Datagram::udp(neighbour, local, &his).id(id).pieces(&[1304]));
                assert_eq!(receive(&scene.servers[family]), his);
            }
        }
        assert_eq!(counted(&scene.dataplane, "dropped-flow"), 12_000);
        assert_eq!(counted(&scene.dataplane, "dropped-fragment"), 12_000);
    });
}

/// R1, R3: every fragment has the addresses, which is all that the inner side looks at.
#[test]
fn r1_r3_an_address_is_dropped_in_every_fragment() {
    lab(|lab| {
        let mut dataplane = lab.open();
        for role in [Role::Outer, Role::Inner] {
            dataplane.attach(None, lab.netns(), ifindex("gw"), "gw", role).unwrap();
        }
        let lan = lab.far(&format!("{PEER}:80"));
        let (client, other) = (lab.here(&format!("{CLIENT}:5000")), lab.here(&format!("{OTHER}:5000")));
        let long: Vec<u8> = (0..2000_u32).map(|at| at as u8).collect();
        assert!(client.reaches_with(&lan, &long) && lan.reaches_with(&client, &long));
        insert(&mut dataplane, &Entry::Address(lab.netns(), CLIENT.parse().unwrap()));
        assert!(!client.reaches_with(&lan, &long) && !lan.reaches_with(&client, &long));
        assert!(other.reaches_with(&lan, &long) && lan.reaches_with(&other, &long));
        let dropped = |dataplane: &_| {
            ["dropped-address-from", "dropped-address-to"].map(|reason| counted(dataplane, reason))
        };
        // the sender gives up after the first one that is dropped on its way out
        assert_eq!(dropped(&dataplane), [1, 2]);
        // and real fragments of a real stack on the outer side
        let (server, far) = (lab.here(&format!("{GATEWAY}:443")), lab.far(&format!("{PEER}:4000")));
        let neighbour = lab.far(&format!("{PEER}:4001"));
        assert!(far.reaches_with(&server, &long));
        revoke(&mut dataplane, lab, Protocol::Udp, &format!("{PEER}:4000"), &format!("{GATEWAY}:443"));
        assert!(!far.reaches_with(&server, &long));
        assert!(neighbour.reaches_with(&server, &long));
        assert_eq!(["dropped-flow", "dropped-fragment"].map(|why| counted(&dataplane, why)), [1, 1]);
    });
}

/// R1, R3: an error about what was sent to a revoked client does not come to the socket; a neighbour's does.
#[test]
fn r1_r3_icmp_errors_go_by_the_flow_that_they_quote() {
    lab(|lab| {
        let mut scene = Scene::new(lab);
        for (family, [local, client, neighbour]) in ENDS.into_iter().enumerate() {
            // two sockets as a server has them for its clients
            let local: SocketAddr = local.parse().unwrap();
            let connected = |port, end: &str| {
                let socket = lab.here(&SocketAddr::new(local.ip(), port).to_string());
                socket.0.connect(end).unwrap();
                socket
            };
            let (theirs, his) = (connected(5000, client), connected(5001, neighbour));
            let router = ["192.0.2.9", "2001:db8::9"][family];
            let error = |socket: &Socket, end: &str| {
                let sent = Datagram::udp(&socket.0.local_addr().unwrap().to_string(), end, b"sent");
                sent.unreachable(router).whole()
            };
            let heard = |socket: &Socket| socket.0.take_error().unwrap().map(|error| error.kind());
            let hears = |socket: &Socket| {
                let by_now = || std::thread::yield_now();
                assert!((0..1_000_000).any(|_| {
                    by_now();
                    heard(socket) == Some(ErrorKind::ConnectionRefused)
                }));
            };
            scene.send(&[error(&theirs, client)]);
            hears(&theirs);
            revoke(
                &mut scene.dataplane,
                lab,
                Protocol::Udp,
                client,
                &theirs.0.local_addr().unwrap().to_string(),
            );
            scene.send(&[error(&theirs, client), error(&his, neighbour)]);
            hears(&his);
            assert_eq!(heard(&theirs), None);
            assert_eq!(counted(&scene.dataplane, "dropped-icmp-error"), family as u64 + 1);
        }
    });
}
