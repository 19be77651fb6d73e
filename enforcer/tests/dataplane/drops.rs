//! Whose packets are dropped, and whose are not: flows and tokens in XDP, addresses and devices in tc.

use enforcer::dataplane::{Dataplane, Role, Settings, TcPreference, XdpPreference};
use enforcer::session::{Device, Entry, Flow, Netns, Protocol, Stands, Token, TokenKind};

use crate::lab::{CLIENT, GATEWAY, OTHER, PEER, Socket, Tun, ifindex, lab};
use crate::packets::{Packet, client_hello};
use crate::{attach, flow, how, insert, packets_by};

fn xdp_drops_the_exact_flow(preference: XdpPreference, expected: &'static str) {
    lab(move |lab| {
        let mut dataplane = Dataplane::open(Settings { xdp: preference, ..lab.settings() }).unwrap();
        attach(&mut dataplane, lab, "gw", Role::Outer);
        assert_eq!(how(&dataplane), [expected]);
        for (here, there) in [(GATEWAY, PEER), ("[fd00::1]", "[fd00::2]")] {
            let server = lab.here(&format!("{here}:443"));
            let neighbour_port = lab.here(&format!("{here}:444"));
            let client = lab.far(&format!("{there}:4000"));
            let neighbour = lab.far(&format!("{there}:4001"));
            assert!(client.reaches(&server));
            let entry = flow(lab.netns(), &client, &server);
            insert(&mut dataplane, &entry, Stands::Forever);
            assert!(!client.reaches(&server));
            assert!(neighbour.reaches(&server), "another port behind the same address");
            assert!(client.reaches(&neighbour_port), "another service");
            assert!(server.reaches(&client), "the other direction is not XDP's");
            assert_eq!(dataplane.hits(&entry), Some(1));
            assert!(dataplane.remove(&entry).unwrap());
            assert!(client.reaches(&server));
            assert!(!dataplane.remove(&entry).unwrap());
        }
        assert_eq!(packets_by(&dataplane, "dropped-flow"), 2);
    });
}

#[test]
fn xdp_native_drops_the_exact_flow() {
    xdp_drops_the_exact_flow(XdpPreference::Auto, "xdp native");
}

#[test]
fn xdp_generic_drops_the_exact_flow() {
    xdp_drops_the_exact_flow(XdpPreference::Generic, "xdp generic");
}

#[test]
fn xdp_falls_back_to_generic_where_the_driver_cannot_and_reads_bare_ip() {
    lab(|lab| {
        let mut tun = Tun::new("tun0");
        let mut dataplane = lab.open();
        attach(&mut dataplane, lab, "tun0", Role::Outer);
        assert_eq!(how(&dataplane), ["xdp generic"]);
        let server = lab.here("10.8.0.1:443");
        let packet = Packet { tags: None, ..Packet::new(17, "10.8.0.2:4000", "10.8.0.1:443") };
        assert!(tun_reaches(&mut tun, &server, &packet));
        let flow = Flow::new(Protocol::Udp, packet.from, packet.to).unwrap();
        insert(&mut dataplane, &Entry::Flow(lab.netns(), flow), Stands::Forever);
        assert!(!tun_reaches(&mut tun, &server, &packet));
        let neighbour = Packet { from: "10.8.0.2:4001".parse().unwrap(), ..packet };
        assert!(tun_reaches(&mut tun, &server, &neighbour));
        // a change of mind takes effect at once, where the driver can
        let mut other = Dataplane::open(Settings { xdp: XdpPreference::Generic, ..lab.settings() }).unwrap();
        attach(&mut other, lab, "gw", Role::Outer);
        let mut other = Dataplane::open(Settings { xdp: XdpPreference::Native, ..lab.settings() }).unwrap();
        attach(&mut other, lab, "gw", Role::Outer);
        assert_eq!(how(&other), ["xdp native"]);
        // a new process that insists on the driver finds the generic one and cannot have its way
        drop(dataplane);
        let mut dataplane =
            Dataplane::open(Settings { xdp: XdpPreference::Native, ..lab.settings() }).unwrap();
        assert!(dataplane.attach(None, lab.netns(), ifindex("tun0"), "tun0", Role::Outer).is_err());
    });
}

/// IPv4 header checksum, which the receiver checks; UDP over IPv4 does without.
fn with_checksum(packet: &Packet) -> Vec<u8> {
    let mut bytes = packet.bytes();
    if packet.from.is_ipv4() {
        let header = usize::from(bytes[0] & 0xf) * 4;
        let sum: u32 = bytes[..header].chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1])).sum();
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

fn tun_reaches(tun: &mut Tun, server: &Socket, packet: &Packet) -> bool {
    while server.0.set_nonblocking(true).and_then(|()| server.0.recv(&mut [0; 2048])).is_ok() {}
    server.0.set_nonblocking(false).unwrap();
    tun.send(&with_checksum(packet));
    server.0.recv(&mut [0; 2048]).is_ok()
}

#[test]
fn a_dtls_hello_with_a_revoked_session_id_is_dropped() {
    lab(|lab| {
        let mut dataplane = lab.open();
        attach(&mut dataplane, lab, "gw", Role::Outer);
        let (server, client) = (lab.here(&format!("{GATEWAY}:443")), lab.far(&format!("{PEER}:0")));
        let id = |last| [[5; 31].as_slice(), &[last]].concat();
        let token = Entry::Token(Token::new(TokenKind::Dtls, id(1)).unwrap());
        insert(&mut dataplane, &token, Stands::Forever);
        assert!(!client.reaches_with(&server, &client_hello(&id(1))));
        assert!(client.reaches_with(&server, &client_hello(&id(2))));
        assert!(client.reaches(&server));
        assert_eq!(dataplane.hits(&token), Some(1));
    });
}

#[test]
fn a_hello_that_passes_is_learned_by_its_flow() {
    lab(|lab| {
        let mut dataplane = lab.open();
        attach(&mut dataplane, lab, "gw", Role::Outer);
        let server = lab.here(&format!("{GATEWAY}:443"));
        let (client, other) = (lab.far(&format!("{PEER}:4000")), lab.far(&format!("{PEER}:4001")));
        let token = |last| Token::new(TokenKind::Dtls, [[5; 31].as_slice(), &[last]].concat()).unwrap();
        let learned = |dataplane: &Dataplane, client: &Socket| {
            let Entry::Flow(netns, flow) = flow(lab.netns(), client, &server) else { panic!("no flow") };
            assert_eq!(dataplane.learned(Netns(netns.0 ^ 1), flow), None, "another namespace");
            dataplane.learned(netns, flow)
        };
        assert!(client.reaches(&server));
        assert_eq!(learned(&dataplane, &client), None, "no hello");
        assert!(client.reaches_with(&server, &client_hello(token(1).id())));
        assert_eq!(learned(&dataplane, &client), Some(token(1)));
        assert_eq!(learned(&dataplane, &other), None);
        // the last one counts; one that is dropped does not
        assert!(client.reaches_with(&server, &client_hello(token(2).id())));
        insert(&mut dataplane, &Entry::Token(token(3)), Stands::Forever);
        assert!(!client.reaches_with(&server, &client_hello(token(3).id())));
        assert_eq!(learned(&dataplane, &client), Some(token(2)));
        // a daemon that comes later knows it as well
        drop(dataplane);
        assert_eq!(learned(&lab.open(), &client), Some(token(2)));
    });
}

fn tc_drops_a_tunnel_address_in_both_directions(preference: TcPreference, expected: &'static str) {
    lab(move |lab| {
        let mut dataplane = Dataplane::open(Settings { tc: preference, ..lab.settings() }).unwrap();
        attach(&mut dataplane, lab, "gw", Role::Inner);
        assert_eq!(how(&dataplane), [expected]);
        let lan = lab.far(&format!("{PEER}:80"));
        let (client, other) = (lab.here(&format!("{CLIENT}:5000")), lab.here(&format!("{OTHER}:5000")));
        assert!(client.reaches(&lan) && lan.reaches(&client));
        let entry = Entry::Address(lab.netns(), CLIENT.parse().unwrap());
        insert(&mut dataplane, &entry, Stands::Forever);
        assert!(!client.reaches(&lan), "towards the LAN");
        assert!(!lan.reaches(&client), "from the LAN");
        assert!(other.reaches(&lan) && lan.reaches(&other), "the neighbour");
        assert_eq!(packets_by(&dataplane, "dropped-address-from"), 1);
        assert_eq!(packets_by(&dataplane, "dropped-address-to"), 1);
        // the same in another namespace says nothing here
        dataplane.remove(&entry).unwrap();
        insert(&mut dataplane, &Entry::Address(Netns(1), CLIENT.parse().unwrap()), Stands::Forever);
        assert!(client.reaches(&lan) && lan.reaches(&client));
        // attaching again changes nothing
        for _ in 0..3 {
            attach(&mut dataplane, lab, "gw", Role::Inner);
        }
        insert(&mut dataplane, &entry, Stands::Forever);
        assert!(!client.reaches(&lan));
        assert_eq!(packets_by(&dataplane, "dropped-address-from"), 2, "once for each packet");
        // without us it stands, until it is unloaded
        drop(dataplane);
        assert!(!client.reaches(&lan));
        let report = Dataplane::unload(&lab.pin_path()).unwrap();
        assert_eq!((report.links + report.filters, report.left), (2, Vec::new()));
        assert!(client.reaches(&lan) && lan.reaches(&client));
        assert!(!lab.pin_path().exists());
    });
}

#[test]
fn tcx_drops_a_tunnel_address_in_both_directions() {
    tc_drops_a_tunnel_address_in_both_directions(TcPreference::Tcx, "tcx");
}

#[test]
fn clsact_drops_a_tunnel_address_in_both_directions() {
    tc_drops_a_tunnel_address_in_both_directions(TcPreference::Clsact, "clsact");
}

fn a_tunnel(preference: TcPreference) {
    lab(move |lab| {
        let mut tun = Tun::new("vpns0");
        let mut dataplane = Dataplane::open(Settings { tc: preference, ..lab.settings() }).unwrap();
        attach(&mut dataplane, lab, "vpns0", Role::Tunnel);
        for (client, neighbour, local) in
            [("10.8.0.2", "10.8.0.3", "10.8.0.1"), ("[fd08::2]", "[fd08::3]", "[fd08::1]")]
        {
            let server = lab.here(&format!("{local}:53"));
            let from = |client: &str, text: &str| {
                let packet = Packet::new(17, &format!("{client}:4000"), &format!("{local}:53"));
                Packet { tags: None, payload: text.into(), ..packet }
            };
            let sends = |tun: &mut Tun, client: &str| {
                // the receiver of UDP over IPv6 wants a checksum: what went through is seen by the counters
                // of the device instead
                if local.starts_with('[') {
                    let before = received();
                    tun.send(&with_checksum(&from(client, "in")));
                    received() > before
                } else {
                    tun_reaches(tun, &server, &from(client, "in"))
                }
            };
            let gets = |tun: &mut Tun, client: &str, text: &str| {
                let _ = server.0.send_to(text.as_bytes(), format!("{client}:4000"));
                tun.gets(text.as_bytes())
            };
            assert!(sends(&mut tun, client) && gets(&mut tun, client, "first"));

            let address = Entry::Address(lab.netns(), client.trim_matches(['[', ']']).parse().unwrap());
            insert(&mut dataplane, &address, Stands::Forever);
            assert!(!sends(&mut tun, client) && !gets(&mut tun, client, "second"));
            assert!(sends(&mut tun, neighbour) && gets(&mut tun, neighbour, "third"), "a shared device");
            dataplane.remove(&address).unwrap();

            let device = Device { netns: lab.netns(), index: ifindex("vpns0") };
            insert(&mut dataplane, &Entry::Device(device), Stands::Forever);
            assert!(!sends(&mut tun, client) && !gets(&mut tun, client, "fourth"));
            assert!(!sends(&mut tun, neighbour) && !gets(&mut tun, neighbour, "fifth"), "whoever it is");
            dataplane.remove(&Entry::Device(device)).unwrap();
            assert!(sends(&mut tun, client) && gets(&mut tun, client, "sixth"));
        }
    });
}

/// IPv6 packets that the stack of this namespace has taken.
fn received() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap();
    let line = text.lines().find(|line| line.starts_with("Ip6InReceives")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_tunnel_with_tcx() {
    a_tunnel(TcPreference::Tcx);
}

#[test]
fn a_tunnel_with_clsact() {
    a_tunnel(TcPreference::Clsact);
}
