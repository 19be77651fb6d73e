//! The kernel's table of connections: what it holds of an address is handed to the address's next owner, unless it is
//! taken out before.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

mod lab;

use std::cell::Cell;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use enforcer::conntrack::{Error, Left, Outcome, forget};
use lab::{Lab, inside, ip, lab, new_netns};

/// The addresses of revoked alice, of her neighbour, and of the LAN host, in each family.
const FAMILIES: [(&str, &str, &str); 2] =
    [("192.168.8.2", "192.168.8.3", "10.0.0.2"), ("fd08::2", "fd08::3", "fd00::2")];

/// Clients behind a gateway that masquerades them; the LAN host has no route to them.
struct Nat<'a> {
    lab: &'a Lab,
    clients: OwnedFd,
}

fn nat(test: impl FnOnce(&Nat<'_>) + Send + 'static) {
    lab(move |lab| {
        let clients = new_netns();
        for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{setting}"), "1").unwrap();
        }
        ip("link add tun type veth peer name eth0");
        ip(&format!("link set eth0 netns /proc/{}/fd/{}", std::process::id(), clients.as_raw_fd()));
        ip("addr add 192.168.8.1/24 dev tun");
        ip("addr add fd08::1/64 dev tun nodad");
        ip("link set tun up");
        inside(clients.as_fd(), || {
            for (alice, neighbour, _) in FAMILIES {
                for address in [alice, neighbour] {
                    let length = if address.contains(':') { "64" } else { "24" };
                    let nodad = if address.contains(':') { " nodad" } else { "" };
                    ip(&format!("addr add {address}/{length} dev eth0{nodad}"));
                }
            }
            ip("link set eth0 up");
            ip("route add default via 192.168.8.1");
            ip("-6 route add default via fd08::1");
        });
        nft(
            "table inet nat {\nchain post { type nat hook postrouting priority srcnat; oifname gw masquerade; }\n\
             chain pre { type nat hook prerouting priority dstnat; iifname gw udp dport 9000 dnat ip to 192.168.8.2; }\n}",
        );
        test(&Nat { lab, clients });
    });
}

fn nft(rules: &str) {
    let mut nft =
        Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nftables is needed");
    std::io::Write::write_all(&mut nft.stdin.take().unwrap(), rules.as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success(), "{rules}");
}

/// The table of the calling thread's namespace, one line an entry.
fn entries() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap();
    text.lines().map(str::to_owned).collect()
}

fn entries_of(address: &str) -> usize {
    // written out in full
    let address = match address.parse().unwrap() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => ip.segments().map(|part| format!("{part:04x}")).join(":"),
    };
    entries().iter().filter(|line| line.contains(&format!("src={address} "))).count()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn forget_one(netns: Option<BorrowedFd<'_>>, address: &str) -> Outcome {
    let address = address.parse().unwrap();
    forget(netns, [address], soon(), &|_| true).unwrap().unwrap()[&address]
}

fn taken(taken: u64) -> Outcome {
    Outcome { taken, ..Outcome::default() }
}

impl Nat<'_> {
    fn client(&self, address: &str, port: u16) -> UdpSocket {
        inside(self.clients.as_fd(), || udp(address, port))
    }

    fn lan(&self, address: &str, port: u16) -> UdpSocket {
        self.lab.there(|| udp(address, port))
    }

    /// A connection by each of these ports of a client.
    fn flood(&self, address: &str, ports: std::ops::Range<u16>, lan: &UdpSocket) {
        let to = lan.local_addr().unwrap();
        // what is sent before everybody knows everybody's hardware address is lost
        self.client(address, ports.start).send_to(b"query", to).unwrap();
        assert!(heard(lan).is_some());
        inside(self.clients.as_fd(), || {
            for port in ports {
                udp(address, port).send_to(b"query", to).unwrap();
            }
        });
    }
}

fn udp(address: &str, port: u16) -> UdpSocket {
    let address = (address.parse::<IpAddr>().unwrap(), port);
    // another test's child has every descriptor until it runs its program, also of sockets that were closed
    let until = Instant::now() + Duration::from_secs(10);
    let socket = loop {
        match UdpSocket::bind(address) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && Instant::now() < until => {}
            bound => break bound.unwrap(),
        }
    };
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket
}

/// Who sent what came.
fn heard(socket: &UdpSocket) -> Option<SocketAddr> {
    socket.recv_from(&mut [0; 64]).ok().map(|(_, from)| from)
}

/// The text of what came.
fn text(socket: &UdpSocket) -> String {
    let mut buffer = [0; 64];
    let (length, _) = socket.recv_from(&mut buffer).expect("a datagram");
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

fn send(from: &UdpSocket, text: &str, to: SocketAddr) {
    // what was sent before may have been answered with an error
    while from.send_to(text.as_bytes(), to).is_err() {}
}

#[test]
fn r1_the_next_owner_of_an_address_gets_no_answer_of_the_connections_that_its_last_one_had() {
    nat(|nat| {
        for (alice, neighbour, host) in FAMILIES {
            let lan = nat.lan(host, 53);
            let old = nat.client(alice, 4000);
            old.send_to(b"query", lan.local_addr().unwrap()).unwrap();
            let translated = heard(&lan).expect("alice's query");
            assert_ne!(translated, old.local_addr().unwrap(), "the gateway masquerades");
            let other = nat.client(neighbour, 4000);
            other.send_to(b"query", lan.local_addr().unwrap()).unwrap();
            let others = heard(&lan).expect("the neighbour's query");
            drop(old);
            // the leak: the address is somebody else's, and the table says alice's
            let new = nat.client(alice, 4000);
            send(&lan, "the old one's", translated);
            assert_eq!(text(&new), "the old one's", "the leak is not there: is this test right?");

            assert_eq!(forget_one(None, alice), taken(1));
            send(&lan, "the old one's again", translated);
            // R3: the neighbour's stays, and is answered
            send(&lan, "the neighbour's", others);
            assert_eq!(text(&other), "the neighbour's");
            // and the next owner's own work at once: they come before anything else
            new.send_to(b"query", lan.local_addr().unwrap()).unwrap();
            let news = heard(&lan).expect("the next owner's query");
            send(&lan, "the new one's", news);
            assert_eq!(text(&new), "the new one's");
            assert_eq!((entries_of(alice), entries_of(neighbour)), (1, 1));
        }
    });
}

#[test]
fn r1_tcp_connections_and_those_that_the_lan_opened_are_taken_out() {
    nat(|nat| {
        let listener = nat.lab.there(|| TcpListener::bind("10.0.0.2:80").unwrap());
        let connect = |from: &'static str| {
            let stream = inside(nat.clients.as_fd(), || {
                let socket = socket_from(from);
                socket.connect("10.0.0.2:80")
            });
            (stream, listener.accept().unwrap())
        };
        let _alices = connect("192.168.8.2:0");
        let _others = connect("192.168.8.3:0");
        // by the gateway's address, which is translated to alice's
        let (server, lan) = (nat.client("192.168.8.2", 9000), nat.lan("10.0.0.2", 9000));
        lan.send_to(b"in", "10.0.0.1:9000").unwrap();
        assert!(heard(&server).is_some(), "the gateway translates the destination");
        assert_eq!(forget_one(None, "192.168.8.2"), taken(2));
        assert_eq!((entries_of("192.168.8.2"), entries_of("192.168.8.3")), (0, 1));
        assert_eq!(forget_one(None, "192.168.8.2"), taken(0));
    });
}

/// A TCP socket with that source.
struct From(OwnedFd);

fn socket_from(address: &str) -> From {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, socket};
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address.parse::<SocketAddr>().unwrap())).unwrap();
    From(fd)
}

impl From {
    fn connect(self, to: &str) -> TcpStream {
        use nix::sys::socket::{SockaddrStorage, connect};
        connect(self.0.as_raw_fd(), &SockaddrStorage::from(to.parse::<SocketAddr>().unwrap())).unwrap();
        TcpStream::from(self.0)
    }
}

#[test]
fn r1_entries_of_every_zone_are_taken_out() {
    nat(|nat| {
        nft("table inet zones {\nchain pre { type filter hook prerouting priority raw;\n\
             iifname tun udp dport 1 ct zone set 7; iifname gw udp sport 1 ct zone set 7;\n\
             iifname tun udp dport 2 ct original zone set 8; }\n}");
        let (alice, other) = (nat.client("192.168.8.2", 4000), nat.client("192.168.8.3", 4000));
        for port in 1..4 {
            let lan = nat.lan("10.0.0.2", port);
            for client in [&alice, &other] {
                client.send_to(b"query", lan.local_addr().unwrap()).unwrap();
                assert!(heard(&lan).is_some());
            }
        }
        let zones = entries()
            .iter()
            .filter(|line| ["zone=7", "zone-orig=8"].iter().any(|zone| line.contains(zone)))
            .count();
        assert_eq!(zones, 4, "{:#?}", entries());
        assert_eq!(forget_one(None, "192.168.8.2"), taken(3));
        assert_eq!((entries_of("192.168.8.2"), entries_of("192.168.8.3")), (0, 3));
    });
}

#[test]
fn r3_the_same_address_in_another_namespace_is_another_one() {
    nat(|nat| {
        inside(nat.clients.as_fd(), || {
            nft(
                "table inet watch {\nchain out { type filter hook output priority 0; ct state new accept; }\n}",
            );
        });
        let (lan, alice) = (nat.lan("10.0.0.2", 53), nat.client("192.168.8.2", 4000));
        alice.send_to(b"query", lan.local_addr().unwrap()).unwrap();
        assert!(heard(&lan).is_some());
        let there = || inside(nat.clients.as_fd(), || entries_of("192.168.8.2"));
        assert_eq!((entries_of("192.168.8.2"), there()), (1, 1));
        assert_eq!(forget_one(None, "192.168.8.2"), taken(1));
        assert_eq!((entries_of("192.168.8.2"), there()), (0, 1));
        alice.send_to(b"query", lan.local_addr().unwrap()).unwrap();
        assert!(heard(&lan).is_some());
        assert_eq!(forget_one(Some(nat.clients.as_fd()), "192.168.8.2"), taken(1));
        assert_eq!((entries_of("192.168.8.2"), there()), (1, 0));
    });
}

/// R3: between the look and the order to delete, the entry was replaced by one with the same tuple. The kernel makes
/// an id of the entry's place in its memory: so that the new one has another, others take that place first.
#[test]
fn r3_a_later_connection_with_the_same_tuple_is_not_deleted() {
    nat(|nat| {
        // memory is given out by the processor that freed it
        use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
        let this = nix::unistd::Pid::from_raw(0);
        let all = sched_getaffinity(this).unwrap();
        let mut one = CpuSet::new();
        one.set((0..CpuSet::count()).find(|cpu| all.is_set(*cpu).unwrap()).unwrap()).unwrap();
        sched_setaffinity(this, &one).unwrap();
        let (lan, alice) = (nat.lan("10.0.0.2", 53), nat.client("192.168.8.2", 4000));
        let query = || {
            alice.send_to(b"query", lan.local_addr().unwrap()).unwrap();
            assert!(heard(&lan).is_some());
        };
        query();
        let address = "192.168.8.2".parse().unwrap();
        let calls = Cell::new(0);
        let replaced = |_| {
            calls.set(calls.get() + 1);
            if calls.get() == 1 {
                assert_eq!(forget_one(None, "192.168.8.2"), taken(1));
                for port in 5000..5200 {
                    nat.client("192.168.8.3", port).send_to(b"query", lan.local_addr().unwrap()).unwrap();
                    assert!(heard(&lan).is_some());
                }
                query();
            }
            // from here on the address is somebody else's
            calls.get() == 1
        };
        let outcome = forget(None, [address], soon(), &replaced).unwrap().unwrap()[&address];
        assert_eq!(outcome, Outcome { left: Some(Left::Stopped), ..Outcome::default() });
        assert_eq!(entries_of("192.168.8.2"), 1);
    });
}

#[test]
fn r3_nothing_is_deleted_that_is_not_wanted_any_more_or_comes_too_late() {
    nat(|nat| {
        let lan = nat.lan("10.0.0.2", 53);
        for address in ["192.168.8.2", "192.168.8.3"] {
            nat.client(address, 4000).send_to(b"query", lan.local_addr().unwrap()).unwrap();
            assert!(heard(&lan).is_some());
        }
        let both: [IpAddr; 2] = ["192.168.8.2", "192.168.8.3"].map(|address| address.parse().unwrap());
        let stopped = Outcome { left: Some(Left::Stopped), ..Outcome::default() };
        let late = forget(None, both, Instant::now(), &|_| true).unwrap().unwrap();
        assert_eq!(late.into_values().collect::<Vec<_>>(), [stopped; 2]);
        let outcomes = forget(None, both, soon(), &|address| address == both[0]).unwrap().unwrap();
        assert_eq!(outcomes.into_values().collect::<Vec<_>>(), [taken(1), stopped]);
        assert_eq!((entries_of("192.168.8.2"), entries_of("192.168.8.3")), (0, 1));
    });
}

/// In a large table the kernel is asked for what is the one address's.
#[test]
fn r1_r3_in_a_large_table_as_well() {
    nat(|nat| {
        let crowd = nat.lan("10.0.0.2", 53);
        nat.flood("192.168.8.3", 10_000..15_000, &crowd);
        for (alice, neighbour, host) in FAMILIES {
            let lan = nat.lan(host, 54);
            for client in [nat.client(alice, 4000), nat.client(neighbour, 4000)] {
                client.send_to(b"query", lan.local_addr().unwrap()).unwrap();
                assert!(heard(&lan).is_some());
            }
        }
        let (server, lan) = (nat.client("192.168.8.2", 9000), nat.lan("10.0.0.2", 9000));
        lan.send_to(b"in", "10.0.0.1:9000").unwrap();
        assert!(heard(&server).is_some());
        assert_eq!(forget_one(None, "192.168.8.2"), taken(2));
        assert_eq!(forget_one(None, "fd08::2"), taken(1));
        assert_eq!((entries_of("192.168.8.2"), entries_of("fd08::2")), (0, 0));
        assert_eq!((entries_of("192.168.8.3"), entries_of("fd08::3")), (5_001, 1));
    });
}

/// More than the kernel is asked for one by one, and more entries than one read holds.
#[test]
fn r7_many_addresses_and_many_entries_are_gone_through_once() {
    nat(|nat| {
        let lan = nat.lan("10.0.0.2", 53);
        nat.flood("192.168.8.2", 10_000..12_000, &lan);
        nat.flood("192.168.8.3", 10_000..12_000, &lan);
        assert_eq!((entries_of("192.168.8.2"), entries_of("192.168.8.3")), (2_000, 2_000));
        let unused = (100..150).map(|last| IpAddr::from([192, 168, 8, last]));
        let alice = "192.168.8.2".parse().unwrap();
        let outcomes = forget(None, unused.chain([alice]), soon(), &|_| true).unwrap().unwrap();
        assert_eq!(outcomes[&alice], taken(2_000));
        assert!(outcomes.iter().all(|(address, outcome)| *address == alice || *outcome == taken(0)));
        assert_eq!((entries_of("192.168.8.2"), entries_of("192.168.8.3")), (0, 2_000));
        nat.flood("192.168.8.2", 10_000..12_000, &lan);
        assert_eq!(forget_one(None, "192.168.8.2"), taken(2_000));
        assert_eq!((entries_of("192.168.8.2"), entries_of("192.168.8.3")), (0, 2_000));
    });
}

#[test]
fn r6_where_nothing_is_tracked_there_is_nothing_to_be_done() {
    lab(|_| {
        let address: IpAddr = "192.168.8.2".parse().unwrap();
        assert!(forget(None, [address], soon(), &|_| true).unwrap().is_none());
    });
}

#[test]
fn r6_a_missing_privilege_is_told_apart_from_a_missing_table() {
    nat(|nat| {
        let (lan, alice) = (nat.lan("10.0.0.2", 53), nat.client("192.168.8.2", 4000));
        alice.send_to(b"query", lan.local_addr().unwrap()).unwrap();
        assert!(heard(&lan).is_some());
        let outcome = std::thread::scope(|scope| {
            let without = scope.spawn(|| {
                caps::drop(None, caps::CapSet::Effective, caps::Capability::CAP_NET_ADMIN).unwrap();
                forget(None, ["192.168.8.2".parse().unwrap()], soon(), &|_| true)
            });
            without.join().unwrap()
        });
        assert!(matches!(outcome, Err(Error::NoPrivilege)), "{outcome:?}");
        assert_eq!(entries_of("192.168.8.2"), 1);
    });
}
