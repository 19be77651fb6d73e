//! Explicit revocations: a flow and a wire token by themselves, for any VPN's hooks. Each with its miss twin.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use enforcer_tests::Era;
use enforcer_tests::enforcer::{DONE, NOTHING_MATCHED};
use enforcer_tests::process::eventually;
use enforcer_tests::scene::Scene;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const BOUND: Duration = Duration::from_secs(10);

/// A TCP connection from a port of the client's choice.
fn from_port(port: u16, to: SocketAddrV4) -> std::io::Result<TcpStream> {
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    // an unanswered attempt ends soon
    setsockopt(&fd, sockopt::TcpUserTimeout, &1_500)?;
    let raw = std::os::fd::AsRawFd::as_raw_fd(&fd);
    bind(raw, &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)))?;
    connect(raw, &SockaddrIn::from(to))?;
    Ok(TcpStream::from(fd))
}

fn echoes(stream: &mut TcpStream) -> bool {
    let mut back = [0; 4];
    stream.set_read_timeout(Some(Duration::from_secs(2))).is_ok()
        && stream.write_all(b"ping").is_ok()
        && stream.read_exact(&mut back).is_ok()
}

/// R1, R3: exactly the named flow ends, and comes back when it is lifted; the same client's other one goes on.
#[test]
fn r1_explicit_flow() {
    let scene = Scene::new("explicit-flow", Era::Bookworm);
    let to = SocketAddrV4::new(GATEWAY, 8_000);
    let listener = scene.lab.gateway.within(|| TcpListener::bind(to)).expect("a listener");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut stream = stream;
                let mut word = [0; 4];
                while stream.read_exact(&mut word).is_ok() && stream.write_all(&word).is_ok() {}
            });
        }
    });
    let client = &scene.alice.namespace;
    let mut one = client.within(|| from_port(50_001, to)).expect("connected");
    let mut other = client.within(|| from_port(50_002, to)).expect("connected");
    assert!(echoes(&mut one) && echoes(&mut other));
    let from = one.local_addr().expect("an address");
    let flow = |from: SocketAddr| vec!["tcp".to_owned(), from.to_string(), to.to_string()];
    let words = flow(from);
    let words: Vec<&str> =
        ["revoke", "flow", "--json"].into_iter().chain(words.iter().map(String::as_str)).collect();
    let receipt = scene.enforcer.cli(&words).code(DONE).receipt();
    assert_eq!(receipt.done("sockets"), 1, "its socket is destroyed");
    assert!(!echoes(&mut one));
    assert!(echoes(&mut other), "the other flow of the same client goes on");
    let again = client.within(|| from_port(50_001, to));
    assert!(again.is_err(), "the very same flow is dropped before it can begin");
    let number = receipt.number().expect("a number").to_string();
    scene.enforcer.cli(&["lift", &number]).code(DONE);
    eventually("the flow can begin again", BOUND, || {
        client.within(|| from_port(50_001, to)).ok().filter(|_| true).map(|_| ())
    });
    scene.enforcer.cli(&["lift", &number]).code(NOTHING_MATCHED);
}

/// A DTLS ClientHello with that session id (RFC 6347, 4.2.1).
fn client_hello(id: &[u8]) -> Vec<u8> {
    let mut body = vec![0xfe, 0xfd];
    body.extend([7; 32]);
    body.push(u8::try_from(id.len()).expect("a short id"));
    body.extend(id);
    body.extend([0, 0, 2, 0, 0x2f, 1, 0]);
    let length = u32::try_from(body.len()).expect("a short body").to_be_bytes();
    let mut handshake = vec![1];
    handshake.extend(&length[1..]);
    handshake.extend([0, 0, 0, 0, 0]);
    handshake.extend(&length[1..]);
    handshake.extend(body);
    let mut record = vec![22, 0xfe, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];
    record.extend(u16::try_from(handshake.len()).expect("short").to_be_bytes());
    record.extend(handshake);
    record
}

/// R1, R3: a ClientHello with the named session id is dropped, from whatever port; another id passes.
#[test]
fn r1_explicit_token() {
    let scene = Scene::new("explicit-token", Era::Bookworm);
    let to = SocketAddrV4::new(GATEWAY, 8_001);
    let gateway = scene.lab.gateway.within(|| UdpSocket::bind(to)).expect("a socket");
    gateway.set_read_timeout(Some(BOUND)).expect("a timeout");
    let (named, other) = ([0xab; 32], [0xcd; 32]);
    let send = |id: &[u8]| {
        let socket = scene.alice.namespace.within(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket");
        socket.send_to(&client_hello(id), to).expect("sent");
    };
    let received = || {
        let mut datagram = [0; 2_048];
        match gateway.recv(&mut datagram) {
            Ok(length) => datagram[..length].to_vec(),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Vec::new(),
            Err(error) => panic!("{error}"),
        }
    };
    send(&named);
    assert_eq!(received(), client_hello(&named));
    let hex = "ab".repeat(32);
    scene.enforcer.cli(&["revoke", "token", "dtls", &hex, "--for", "1h"]).code(DONE);
    // the datagrams of one client come in order: what comes first now is the one that was not dropped
    send(&named);
    send(&named);
    send(&other);
    assert_eq!(received(), client_hello(&other));
    let shown = scene.enforcer.cli(&["show", "revocations", "--json"]).json;
    assert_eq!(shown["revocations"][0]["hits"], 2, "{shown}");
    let counters = scene.enforcer.status();
    let dropped =
        counters["counters"].as_array().and_then(|all| all.iter().find(|c| c["reason"] == "dropped-token"));
    assert_eq!(dropped.map(|counter| &counter["packets"]), Some(&2.into()), "{counters}");
}
