//! What a session has shown on the wire is revoked with it: the session id of a real openconnect's DTLS hello.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use enforcer_ebpf::packet::{Frame as _, Framing, Outer, dtls_session_id, outer};
use enforcer_tests::lab::GATEWAY_V4;
use enforcer_tests::namespace::Namespace;
use enforcer_tests::process::eventually;
use enforcer_tests::scene::Scene;
use enforcer_tests::{Era, Tunnel};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};
use nix::unistd::Pid;
use serde_json::Value;

const BOUND: Duration = Duration::from_secs(20);

/// Listens in a namespace, and gives the UDP payload of the next hello that shows a session id, from this address.
fn next_hello(namespace: &Namespace, from: Ipv4Addr, during: impl FnOnce()) -> Vec<u8> {
    let listener = namespace.within(|| {
        socket(AddressFamily::Packet, SockType::Datagram, SockFlag::SOCK_NONBLOCK, SockProtocol::EthAll)
    });
    let listener = listener.expect("a packet socket");
    during();
    let mut buffer = [0; 2048];
    eventually("a hello with a session id", BOUND, || {
        while let Ok(length) = recv(listener.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            let packet = &buffer[..length];
            if let Ok(Outer::Segment(segment, _)) = outer(packet, Framing::Bare)
                && segment.source == std::net::IpAddr::from(from).into()
                && packet.u8(9) == Some(17)
                && dtls_session_id(packet, segment.at).is_some()
            {
                return Some(packet[segment.at + 8..].to_vec());
            }
        }
        None
    })
}

fn has_dtls(tunnel: &Tunnel) {
    eventually("DTLS is up", BOUND, || tunnel.log().contains("Established DTLS").then_some(()));
}

fn dropped_tokens(status: &Value) -> u64 {
    let counters = status["counters"].as_array().expect("counters");
    let counter = counters.iter().find(|counter| counter["reason"] == "dropped-token").expect("the counter");
    counter["packets"].as_u64().expect("a number")
}

/// R1, R3, R4: while a revoked session's worker hangs, its hello comes again from another port and from another
/// address, and is dropped in XDP; a neighbour's session and a new login come up with DTLS.
fn roaming(name: &str, era: Era) {
    let scene = Scene::new(name, era);
    let (alice, bob) = (&scene.alice, &scene.bob);
    let mut session = None;
    let hello = next_hello(&scene.lab.gateway, alice.outer_v4, || {
        session = Some(scene.session(alice, "alice"));
    });
    let (_, tunnel) = session.expect("a session");
    has_dtls(&tunnel);
    assert_eq!(dropped_tokens(&scene.enforcer.status()), 0);
    // ocserv's own worker, of the server that this lab started: it cannot say goodbye
    let worker = Pid::from_raw(scene.server.session_at("alice", tunnel.v4).id);
    kill(worker, Signal::SIGSTOP).expect("SIGSTOP");

    let to = SocketAddrV4::new(GATEWAY_V4, 443);
    let stop = AtomicBool::new(false);
    let sent = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let answer = std::thread::scope(|scope| {
        for (from, sent) in [alice, bob].into_iter().zip(&sent) {
            let socket = from.namespace.within(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket");
            let (hello, stop) = (&hello, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    // the server may say that it does not know it
                    let _ = socket.send_to(hello, to);
                    sent.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
        }
        eventually("both send", BOUND, || {
            sent.iter().all(|sent| sent.load(Ordering::Relaxed) > 10).then_some(())
        });
        let answer = scene.enforcer.cli(&["disconnect", "user", "-i", "alice", "--json"]);
        stop.store(true, Ordering::Relaxed);
        answer
    });
    let _ = kill(worker, Signal::SIGCONT);
    assert!([0, 4].contains(&answer.code), "{answer:?}");
    let text = answer.receipt().text("packets");
    assert!(text.contains("1 token"), "{text}");
    let dropped = dropped_tokens(&scene.enforcer.status());
    assert!(dropped > 0, "none of {sent:?} hellos was dropped");

    let (_, bobs) = scene.session(bob, "bob");
    let (_, again) = scene.session(alice, "alice");
    for tunnel in [bobs, again] {
        has_dtls(&tunnel);
    }
}

#[test]
fn r1_roaming_hello_bookworm() {
    roaming("learned-bookworm", Era::Bookworm);
}

#[test]
fn r1_roaming_hello_sid() {
    roaming("learned-sid", Era::Sid);
}
