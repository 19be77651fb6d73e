//! The kernel side on a real kernel. Needs root; every test has namespaces and a bpffs of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

mod lab;
#[path = "../../enforcer-ebpf/tests/packets/mod.rs"]
mod packets;

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aya::maps::{Array, HashMap, Map, MapData, MapInfo};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions, Xdp};
use aya::{EbpfLoader, Pod};
use enforcer::dataplane::{
    Dataplane, GateFacts, GateMaps, InsertError, Role, Settings, StoredEntry, TcPreference, XdpPreference,
};
use enforcer::session::{
    CutoffKey, Device, Entry, Flow, Identity, LockKey, Netns, Protocol, SafeId, ServerName, Stands, Token,
    TokenKind,
};
use enforcer_ebpf::layout::{self, DeviceKey, MAPS, Present, Standing};
use enforcer_ebpf::packet::Framing;
use enforcer_ebpf::verdict::{self, Verdict};
use enforcer_ebpf::packed::TICK_NS;
use lab::{CLIENT, GATEWAY, Lab, OTHER, PEER, Socket, Tun, ifindex, ip, lab};
use packets::{Memory, Packet, client_hello};

const NONE: GateFacts = GateFacts { server: 0, moment: 0 };

fn flow(netns: Netns, client: &Socket, local: &Socket) -> Entry {
    let flow =
        Flow::new(Protocol::Udp, client.0.local_addr().unwrap(), local.0.local_addr().unwrap()).unwrap();
    Entry::Flow(netns, flow)
}

fn insert(dataplane: &mut Dataplane, entry: &Entry, stands: Stands) {
    dataplane.insert(entry, 1, stands, NONE).unwrap();
}

fn packets_by(dataplane: &Dataplane, reason: &str) -> u64 {
    dataplane.counters().unwrap().iter().find(|counter| counter.reason == reason).unwrap().packets
}

fn attach(dataplane: &mut Dataplane, lab: &Lab, name: &str, role: Role) {
    dataplane.attach(None, lab.netns(), ifindex(name), name, role).unwrap();
}

fn how(dataplane: &Dataplane) -> Vec<String> {
    dataplane.attachments().into_iter().map(|attachment| attachment.how).collect()
}

#[test]
fn the_maps_are_what_the_layout_says() {
    lab(|lab| {
        let dataplane = lab.open();
        for definition in MAPS {
            let info = MapInfo::from_pin(lab.pin_path().join("maps").join(definition.name)).unwrap();
            assert_eq!(info.key_size(), definition.key, "{}", definition.name);
            assert_eq!(info.value_size(), definition.value, "{}", definition.name);
            assert_eq!(info.map_type().unwrap() as u32, definition.kind as u32, "{}", definition.name);
            assert_eq!(info.map_flags(), definition.flags, "{}", definition.name);
        }
        assert!(dataplane.usage().iter().all(|usage| usage.used == 0));
        assert!(!dataplane.lapsed());
    });
}

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

#[test]
fn a_change_of_means_leaves_one_of_them() {
    lab(|lab| {
        let lan = lab.far(&format!("{PEER}:80"));
        let client = lab.here(&format!("{CLIENT}:5000"));
        let entry = Entry::Address(lab.netns(), CLIENT.parse().unwrap());
        for (round, tc) in
            [TcPreference::Clsact, TcPreference::Auto, TcPreference::Clsact].into_iter().enumerate()
        {
            let mut dataplane = Dataplane::open(Settings { tc, ..lab.settings() }).unwrap();
            attach(&mut dataplane, lab, "gw", Role::Inner);
            insert(&mut dataplane, &entry, Stands::Forever);
            assert!(!client.reaches(&lan));
            assert_eq!(packets_by(&dataplane, "dropped-address-from"), round as u64 + 1);
            assert_eq!(dataplane.detach_others().unwrap(), 0);
            let names: Vec<_> = std::fs::read_dir(lab.pin_path().join("links")).unwrap().flatten().collect();
            assert_eq!(names.len(), 2, "{names:?}");
        }
        // what is not configured any more goes
        let mut dataplane = lab.open();
        assert_eq!(dataplane.detach_others().unwrap(), 2);
        assert!(client.reaches(&lan));
    });
}

#[test]
fn a_foreign_namespace_has_programs_of_its_own() {
    lab(|lab| {
        let mut dataplane = lab.open();
        let netns = lab::number(&lab.peer);
        let index = lab.there(|| ifindex("peer"));
        let attach = |dataplane: &mut Dataplane| {
            dataplane.attach(Some(lab.peer.as_fd()), netns, index, "peer", Role::Outer)
        };
        attach(&mut dataplane).unwrap();
        let (client, server) = (lab.here(&format!("{GATEWAY}:4000")), lab.far(&format!("{PEER}:443")));
        insert(&mut dataplane, &flow(lab.netns(), &client, &server), Stands::Forever);
        assert!(client.reaches(&server), "that was said of our namespace");
        insert(&mut dataplane, &flow(netns, &client, &server), Stands::Forever);
        assert!(!client.reaches(&server));
        // the namespace must be the one that is named
        let wrong = dataplane.attach(Some(lab.gateway.as_fd()), netns, index + 50, "peer", Role::Outer);
        assert!(wrong.unwrap_err().to_string().contains("namespace"));
        // a filter there is found again without being told where
        drop(dataplane);
        let mut dataplane = Dataplane::open(Settings { tc: TcPreference::Clsact, ..lab.settings() }).unwrap();
        attach(&mut dataplane).unwrap();
        dataplane.attach(Some(lab.peer.as_fd()), netns, index, "peer", Role::Inner).unwrap();
        drop(dataplane);
        let report = Dataplane::unload(&lab.pin_path()).unwrap();
        assert_eq!((report.links, report.filters, report.left), (1, 2, Vec::new()));
        assert!(client.reaches(&server));
    });
}

#[test]
fn a_takeover_keeps_every_entry_and_leaks_no_packet() {
    lab(|lab| {
        let mut dataplane = lab.open();
        attach(&mut dataplane, lab, "gw", Role::Outer);
        let (server, client) = (lab.here(&format!("{GATEWAY}:443")), lab.far(&format!("{PEER}:4000")));
        let netns = lab.netns();
        let gate = GateFacts { server: 77, moment: 1_700_000_000 };
        let entries = [
            (flow(netns, &client, &server), Stands::Forever),
            (Entry::Address(netns, "10.9.0.9".parse().unwrap()), Stands::Leased),
            (Entry::Address(netns, "fd09::9".parse().unwrap()), Stands::Until(TICK_NS)),
            (Entry::Device(Device { netns, index: 99 }), Stands::Forever),
            (Entry::Token(Token::new(TokenKind::Dtls, vec![1, 2, 3]).unwrap()), Stands::Leased),
            (Entry::SafeId(SafeId::from_bytes([1; 20])), Stands::Forever),
            (Entry::Cutoff(CutoffKey::new(&ServerName::new("default"), "alice")), Stands::Forever),
            (Entry::Lock(person("default", "alice")), Stands::Until(54321)),
        ];
        for (number, (entry, stands)) in entries.iter().enumerate() {
            let facts = match entry {
                Entry::SafeId(_) | Entry::Cutoff(_) => gate,
                Entry::Lock(_) => GateFacts { server: 0, ..gate },
                _ => NONE,
            };
            dataplane.insert(entry, number as u64 + 1, *stands, facts).unwrap();
        }
        dataplane.set_next_revocation(42).unwrap();
        drop(dataplane);

        let stop = AtomicBool::new(false);
        let sent = std::thread::scope(|scope| {
            let flood = scope.spawn(|| {
                let to: SocketAddr = server.0.local_addr().unwrap();
                let mut sent = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    client.0.send_to(b"flood", to).unwrap();
                    sent += 1;
                }
                sent
            });
            for _ in 0..5 {
                let mut dataplane = lab.open();
                attach(&mut dataplane, lab, "gw", Role::Outer);
                assert_eq!(dataplane.next_revocation(), 42);
                let mut stored = dataplane.entries().unwrap();
                stored.sort_by_key(|stored| stored.revocation);
                assert_eq!(stored.len(), entries.len());
                for (number, (stored, (entry, stands))) in stored.iter().zip(&entries).enumerate() {
                    let StoredEntry { entry: is, revocation, stands: stood, gate: facts, .. } = stored;
                    assert_eq!((is, *revocation, stood), (entry, number as u64 + 1, stands));
                    assert!(*facts == NONE || facts.moment == gate.moment);
                }
            }
            stop.store(true, Ordering::Relaxed);
            flood.join().unwrap()
        });
        assert!(server.0.recv(&mut [0; 64]).is_err(), "a packet leaked");
        let dataplane = lab.open();
        assert_eq!(dataplane.hits(&entries[0].0), Some(sent));
        assert_eq!(dataplane.entries().unwrap()[0].hits, sent);
        eprintln!("{sent} packets during five takeovers, none leaked");
    });
}

fn refusal(lab: &Lab, settings: Settings) -> String {
    let error = Dataplane::open(settings).err().expect("this must be refused");
    assert!(lab.pin_path().join("maps/flows").exists(), "and nothing is taken away");
    format!("{error:#}")
}

#[test]
fn pins_of_another_shape_are_refused_in_a_clear_sentence() {
    lab(|lab| {
        drop(lab.open());
        let flows = lab.pin_path().join("maps/flows");
        std::fs::remove_file(&flows).unwrap();
        let narrow = HashMap::<MapData, [u32; 10], [u64; 4]>::create(64, layout::NO_PREALLOC).unwrap();
        narrow.pin(&flows).unwrap();
        let sentence = refusal(lab, lab.settings());
        assert!(sentence.contains("key size 40") && sentence.contains("expects 44"), "{sentence}");
        assert!(sentence.contains("enforcer unload"), "{sentence}");

        std::fs::remove_file(&flows).unwrap();
        drop(lab.open());
        let meta = MapData::from_pin(lab.pin_path().join("maps/meta")).unwrap();
        Array::<_, [u64; 2]>::try_from(Map::Array(meta)).unwrap().set(0, [9999, 0], 0).unwrap();
        let sentence = refusal(lab, lab.settings());
        assert!(sentence.contains("layout 9999") && sentence.contains("newer version"), "{sentence}");
        assert!(GateMaps::open(&lab.pin_path()).is_err());
    });
}

#[test]
fn a_full_table_says_so_and_evicts_nothing() {
    lab(|lab| {
        let mut dataplane = lab.open();
        let device = |index| Entry::Device(Device { netns: lab.netns(), index });
        let mut inserted = 0;
        let refused = loop {
            match dataplane.insert(&device(inserted + 1), 1, Stands::Forever, NONE) {
                Ok(()) => inserted += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, InsertError::Full { map: "devices", capacity: 4 }), "{refused}");
        assert_eq!(inserted, 4);
        assert_eq!(dataplane.entries().unwrap().len(), 4);
        let usage = dataplane.usage().into_iter().find(|usage| usage.name == "devices").unwrap();
        assert_eq!((usage.used, usage.capacity), (4, 4));
        // what is there can still be changed, and there is room after a removal
        dataplane.insert(&device(1), 2, Stands::Forever, NONE).unwrap();
        dataplane.remove(&device(2)).unwrap();
        dataplane.insert(&device(9), 1, Stands::Forever, NONE).unwrap();
    });
}

/// Keeps what the programs say.
struct Said(Mutex<Vec<String>>);

impl log::Log for Said {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().unwrap().push(record.args().to_string());
    }

    fn flush(&self) {}
}

static SAID: Said = Said(Mutex::new(Vec::new()));

#[test]
fn a_lease_lapses_without_a_heartbeat_and_the_programs_say_so() {
    log::set_logger(&SAID).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    lab(|lab| {
        let mut dataplane = lab.open();
        let mut logger = dataplane.logger().unwrap();
        attach(&mut dataplane, lab, "gw", Role::Outer);
        let (server, client) = (lab.here(&format!("{GATEWAY}:443")), lab.far(&format!("{PEER}:4000")));
        let entry = flow(lab.netns(), &client, &server);
        insert(&mut dataplane, &entry, Stands::Leased);
        assert!(client.reaches(&server), "there was no heartbeat yet");
        dataplane.beat().unwrap();
        assert!(!client.reaches(&server));

        let heartbeat = MapData::from_pin(lab.pin_path().join("maps/heartbeat")).unwrap();
        let mut heartbeat = Array::<_, u64>::try_from(Map::Array(heartbeat)).unwrap();
        let ago = |seconds: u64| Dataplane::kernel_monotonic_ns() - seconds * 1_000_000_000;
        heartbeat.set(0, ago(8), 0).unwrap();
        assert!(!client.reaches(&server));
        heartbeat.set(0, ago(11), 0).unwrap();
        assert!(client.reaches(&server));
        assert_eq!(packets_by(&dataplane, "passed-lapsed"), 2);
        assert_eq!(dataplane.hits(&entry), Some(2));

        logger.flush();
        let said = SAID.0.lock().unwrap().clone();
        assert!(said.iter().any(|text| text.contains("has not renewed the lease")), "{said:?}");

        drop((dataplane, logger));
        let mut dataplane = lab.open();
        assert!(dataplane.lapsed());
        dataplane.beat().unwrap();
        assert!(!client.reaches(&server));

        // a time of its own ends at its moment
        dataplane.remove(&entry).unwrap();
        insert(&mut dataplane, &entry, Stands::Until(Dataplane::kernel_monotonic_ns() + 400_000_000));
        assert!(!client.reaches(&server));
        std::thread::sleep(Duration::from_nanos(400_000_000 + TICK_NS));
        assert!(client.reaches(&server));
        assert_eq!(packets_by(&dataplane, "passed-expired"), 1);
        drop(dataplane);
        assert!(!lab.open().lapsed(), "it has just beaten");
    });
}

#[test]
fn a_device_that_went_and_came_back_gets_its_programs_again() {
    lab(|lab| {
        let mut dataplane = lab.open();
        let netns = lab.netns();
        let address = Entry::Address(netns, CLIENT.parse().unwrap());
        insert(&mut dataplane, &address, Stands::Forever);
        for round in 0..3 {
            attach(&mut dataplane, lab, "gw", Role::Outer);
            attach(&mut dataplane, lab, "gw", Role::Inner);
            let (server, client) = (lab.here(&format!("{GATEWAY}:443")), lab.far(&format!("{PEER}:4000")));
            insert(&mut dataplane, &flow(netns, &client, &server), Stands::Forever);
            assert!(!client.reaches(&server), "round {round}");
            assert!(!lab.here(&format!("{CLIENT}:1")).reaches(&client), "round {round}");
            let index = ifindex("gw");
            ip("link del gw");
            assert!(dataplane.attach(None, netns, index, "gw", Role::Inner).is_err(), "it is not there");
            match round {
                // with the same number: the old pins are in the way
                0 => lab.veth_named("gw", "peer", &format!(" index {index}")),
                _ => {
                    dataplane.detach_gone(Device { netns, index });
                    assert_eq!(std::fs::read_dir(lab.pin_path().join("links")).unwrap().count(), 0);
                    lab.veth_named("gw", "peer", "");
                }
            }
            lab.address();
        }
        assert!(dataplane.attach(None, netns, 4711, "nosuch0", Role::Outer).is_err());
        assert!(dataplane.attach(None, netns, ifindex("gw") + 1, "gw", Role::Outer).is_err());
    });
}

#[test]
fn r2_no_gate_takes_maps_for_the_whole_truth_before_they_are_filled() {
    lab(|lab| {
        let fill = || Settings { fill: true, ..lab.settings() };
        let looks = || GateMaps::open(&lab.pin_path()).unwrap().is_some();
        let mut dataplane = Dataplane::open(fill()).unwrap();
        dataplane.set_next_revocation(7).unwrap();
        assert!(!looks());
        drop(dataplane);
        // whoever was to fill them has died in the middle of it
        let mut dataplane = Dataplane::open(fill()).unwrap();
        assert!(!looks());
        dataplane.filled().unwrap();
        assert!(looks());
        assert_eq!(dataplane.next_revocation(), 7);
        drop(dataplane);
        // they are full from then on
        let _dataplane = Dataplane::open(fill()).unwrap();
        assert!(looks());
    });
}

#[test]
fn attaching_again_changes_nothing_and_the_gate_reads_what_stands() {
    lab(|lab| {
        assert!(GateMaps::open(&lab.pin_path()).unwrap().is_none());
        let start = Instant::now();
        let mut dataplane = lab.open();
        let opened = start.elapsed();
        let (id, alice) = (SafeId::from_bytes([8; 20]), CutoffKey::new(&ServerName::new("default"), "alice"));
        let facts = |moment| GateFacts { server: 5, moment };
        dataplane.insert(&Entry::SafeId(id), 3, Stands::Forever, facts(100)).unwrap();
        dataplane.insert(&Entry::Cutoff(alice), 4, Stands::Forever, facts(200)).unwrap();
        let start = Instant::now();
        let gate = GateMaps::open(&lab.pin_path()).unwrap().unwrap();
        let found = gate.safe_id(&id).unwrap().unwrap();
        let looked = start.elapsed();
        assert_eq!((found.revocation, found.server, found.since), (3, 5, 100));
        let found = gate.cutoff(&alice).unwrap().unwrap();
        assert_eq!((found.revocation, found.server, found.up_to), (4, 5, 200));
        assert_eq!(gate.safe_id(&SafeId::from_bytes([9; 20])).unwrap(), None);
        assert_eq!(gate.cutoff(&CutoffKey::new(&ServerName::new("default"), "bob")).unwrap(), None);
        dataplane.count_gate_hit(&Entry::SafeId(id));
        assert_eq!(dataplane.hits(&Entry::SafeId(id)), Some(2));
        assert_eq!(dataplane.hits(&Entry::Cutoff(alice)), Some(1));
        // an older moment never shortens a cutoff; a removal forgets the hits
        dataplane.insert(&Entry::Cutoff(alice), 5, Stands::Forever, facts(150)).unwrap();
        assert_eq!(gate.cutoff(&alice).unwrap().map(|found| (found.revocation, found.up_to)), Some((5, 200)));
        assert!(dataplane.remove(&Entry::SafeId(id)).unwrap());
        assert_eq!(gate.safe_id(&id).unwrap(), None);
        dataplane.insert(&Entry::SafeId(id), 6, Stands::Forever, facts(100)).unwrap();
        assert_eq!(dataplane.hits(&Entry::SafeId(id)), Some(0));

        let start = Instant::now();
        attach(&mut dataplane, lab, "gw", Role::Outer);
        attach(&mut dataplane, lab, "gw", Role::Inner);
        let attached = start.elapsed();
        let mut again = Vec::new();
        for _ in 0..20 {
            let start = Instant::now();
            attach(&mut dataplane, lab, "gw", Role::Inner);
            again.push(start.elapsed());
        }
        again.sort();
        let entry = Entry::Address(lab.netns(), CLIENT.parse().unwrap());
        let start = Instant::now();
        insert(&mut dataplane, &entry, Stands::Forever);
        let inserted = start.elapsed();
        eprintln!(
            "open {opened:?}, gate {looked:?}, attach {attached:?}, again {:?}, insert {inserted:?}",
            again[again.len() / 2]
        );
    });
}

fn person(realm: &str, name: &str) -> LockKey {
    LockKey::new(&Identity { realm: realm.to_owned(), name: name.to_owned() })
}

/// R2: without the daemon too, for as long as it was said.
#[test]
fn r2_a_lock_is_read_by_the_gate_until_its_time() {
    lab(|lab| {
        let mut dataplane = lab.open();
        let (alice, bob) = (person("default", "alice"), person("default", "bob"));
        let since = GateFacts { server: 0, moment: 1_700_000_000 };
        let now = Dataplane::kernel_monotonic_ns();
        let lock = |dataplane: &mut Dataplane, who, number, stands| {
            dataplane.insert(&Entry::Lock(who), number, stands, since)
        };
        lock(&mut dataplane, alice, 3, Stands::Forever).unwrap();
        lock(&mut dataplane, bob, 4, Stands::Until(now)).unwrap();
        let leased = lock(&mut dataplane, bob, 4, Stands::Leased).unwrap_err().to_string();
        assert!(leased.contains("cannot be leased"), "{leased}");
        drop(dataplane);

        let gate = GateMaps::open(&lab.pin_path()).unwrap().unwrap();
        let found = gate.lock(&alice).unwrap().unwrap();
        assert_eq!((found.revocation, found.since), (3, 1_700_000_000));
        assert_eq!(gate.lock(&bob).unwrap(), None, "its time is over");
        assert_eq!(gate.lock(&person("web", "alice")).unwrap(), None, "another realm's alice");

        let mut dataplane = lab.open();
        assert_eq!(dataplane.hits(&Entry::Lock(alice)), Some(1));
        assert_eq!(dataplane.hits(&Entry::Lock(bob)), Some(0), "an expired lock refuses nobody");
        dataplane.count_gate_hit(&Entry::Lock(alice));
        assert_eq!(dataplane.hits(&Entry::Lock(alice)), Some(2));
        // prolonged; then a newer one, and at last lifted
        lock(&mut dataplane, bob, 4, Stands::Until(now + 3_600_000_000_000)).unwrap();
        assert_eq!(gate.lock(&bob).unwrap().map(|found| found.revocation), Some(4));
        lock(&mut dataplane, alice, 5, Stands::Until(now)).unwrap();
        assert_eq!(gate.lock(&alice).unwrap().map(|found| found.revocation), Some(5), "never shortened");
        let usage = dataplane.usage().into_iter().find(|usage| usage.name == "locks").unwrap();
        assert_eq!((usage.used, usage.capacity), (2, 64));
        assert!(dataplane.remove(&Entry::Lock(alice)).unwrap());
        assert_eq!(gate.lock(&alice).unwrap(), None);
        assert!(gate.lock(&bob).unwrap().is_some());
    });
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Raw<T>(T);
// SAFETY: only used for keys and values of the shared layout, which have no padding.
unsafe impl<T: Copy + 'static> Pod for Raw<T> {}

/// A small generator, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    /// A packet of few addresses and ports, of any shape, sometimes cut off or with a byte changed.
    fn frame(&mut self) -> Vec<u8> {
        let v6 = self.below(2) == 0;
        let ends: &[&str] = if v6 {
            &["[2001:db8::1]:1", "[2001:db8::1]:2", "[2001:db8::2]:1"]
        } else {
            &["192.0.2.1:1", "192.0.2.1:2", "198.51.100.1:1"]
        };
        let protocol = self.one(&[6, 17, 17, 17, 1]);
        let mut packet = Packet::new(protocol, self.one(ends), self.one(ends));
        packet.tags = self.one(&[
            None,
            Some(vec![]),
            Some(vec![]),
            Some(vec![0x8100]),
            Some(vec![0x88a8, 0x8100]),
            Some(vec![0x88a8, 0x8100, 0x8100]),
        ]);
        packet.options = self.one(&[0, 0, 1, 5, 10]);
        for _ in 0..self.one(&[0, 0, 1, 3, 6, 8]) {
            packet.extensions.push((self.one(&[0, 43, 60, 51]), self.below(5) as u8));
        }
        packet.fragment = self.one(&[None, None, None, Some(0), Some(8)]);
        if self.below(2) == 0 {
            let length = self.below(34);
            packet.payload = client_hello(&vec![3; length]);
        }
        let mut bytes = packet.bytes();
        match self.below(4) {
            0 => bytes.truncate(self.below(bytes.len() + 1)),
            1 => {
                let at = self.below(bytes.len());
                bytes[at] ^= 1 << self.below(8);
            }
            _ => {}
        }
        // the kernel's test run takes no less
        if bytes.len() < 14 {
            bytes.resize(14, 0);
        }
        bytes
    }
}

#[test]
fn kernel_and_host_agree_on_thousands_of_packets() {
    lab(|lab| {
        let netns = lab.netns().0;
        let mut loader = EbpfLoader::new();
        loader.override_global(layout::NETNS, &netns, true);
        for definition in MAPS.iter().filter(|definition| definition.entries.is_none()) {
            loader.map_max_entries(definition.name, 4096);
        }
        let mut ebpf = loader.load(Dataplane::object()).unwrap();
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let mut memory = Memory { netns, ..Memory::default() };
        // every second flow, address and length of session id is revoked
        let ends = ["192.0.2.1:1", "192.0.2.1:2", "198.51.100.1:1", "[2001:db8::1]:1", "[2001:db8::1]:2"];
        let mut kinds = [u64::MAX, 1].into_iter().cycle();
        let mut standing =
            move || Standing { revocation: 1, expires_ns: kinds.next().unwrap(), hits: 0, last_ns: 0 };
        for from in ends {
            for to in ends {
                if from.starts_with('[') == to.starts_with('[') {
                    for protocol in [6, 17] {
                        let key = Packet::new(protocol, from, to).flow(netns);
                        if random.below(2) == 0 {
                            memory.flows.insert(key, standing());
                        }
                    }
                }
            }
        }
        for length in (1..=32).step_by(2) {
            memory.tokens.insert(packets::token(&vec![3; length]), standing());
        }
        for address in ["192.0.2.1", "2001:db8::2"] {
            memory.addresses.insert(packets::address(address, netns), standing());
        }
        memory.now_ns = 2;
        fill(&mut ebpf, layout::FLOWS, &memory.flows);
        fill(&mut ebpf, layout::TOKENS, &memory.tokens);
        fill(&mut ebpf, layout::ADDRESSES, &memory.addresses);
        // no buckets: everything is in the plain maps
        let mut present = Array::try_from(ebpf.map_mut(layout::PRESENT).unwrap()).unwrap();
        present.set(0, Raw(Present { flows: 1, addresses: 1, devices: 1, tokens: 1 }), 0).unwrap();
        for (name, program) in ebpf.programs_mut() {
            match program {
                aya::programs::Program::Xdp(program) => program.load(),
                aya::programs::Program::SchedClassifier(program) => program.load(),
                _ => panic!("{name} is neither XDP nor tc"),
            }
            .unwrap();
        }
        let mut dropped = 0;
        for number in 0..4000 {
            let bytes = random.frame();
            let frame = bytes.as_slice();
            for (suffix, framing) in [("ether", Framing::Ethernet), ("bare", Framing::Bare)] {
                let name = format!("outer_{suffix}");
                let xdp: &Xdp = ebpf.program(&name).unwrap().try_into().unwrap();
                let expected = verdict::outer(&memory, frame, framing);
                let is = xdp.test_run(options(frame)).unwrap().return_value;
                let drops = matches!(expected, Verdict::Drop(_));
                dropped += u32::from(drops);
                assert_eq!(is, if drops { 1 } else { 2 }, "{number} {name} {expected:?} {frame:02x?}");
                for hook in ["lan_in", "lan_out", "tun_in", "tun_out"] {
                    let name = format!("{hook}_{suffix}");
                    let tc: &SchedClassifier = ebpf.program(&name).unwrap().try_into().unwrap();
                    let expected = match hook {
                        "lan_in" => verdict::lan_ingress(&memory, frame, framing),
                        "lan_out" => verdict::lan_egress(&memory, frame, framing),
                        "tun_in" => verdict::tunnel_ingress(&memory, 1, frame, framing),
                        _ => verdict::tunnel_egress(&memory, 1, frame, framing),
                    };
                    // the kernel itself refuses some frames that claim to be IP and are too short for it
                    let Ok(is) = tc.test_run(options(frame)) else { continue };
                    let drops = matches!(expected, Verdict::Drop(_));
                    dropped += u32::from(drops);
                    let code = if drops { 2 } else { u32::MAX };
                    assert_eq!(is.return_value, code, "{number} {name} {expected:?} {frame:02x?}");
                }
            }
        }
        assert!(dropped > 1000, "only {dropped} drops: the packets are too foreign");
        // the test run's device is the loopback device, 1
        memory.devices.insert(DeviceKey { netns, ifindex: 1 }, packets::forever(1));
        fill(&mut ebpf, layout::DEVICES, &memory.devices);
        for name in ["tun_in_ether", "tun_in_bare", "tun_out_ether", "tun_out_bare"] {
            let tc: &SchedClassifier = ebpf.program(name).unwrap().try_into().unwrap();
            let mut arp = vec![0xff; 12];
            arp.extend([8, 6]);
            arp.resize(60, 0);
            assert_eq!(tc.test_run(options(&arp)).unwrap().return_value, 2, "{name}");
        }
    });
}

fn options(frame: &[u8]) -> TestRunOptions<'_> {
    TestRunOptions { data_in: Some(frame), ..TestRunOptions::new() }
}

fn fill<K: Copy + 'static>(
    ebpf: &mut aya::Ebpf,
    name: &str,
    entries: &std::collections::HashMap<K, Standing>,
) {
    let mut map: HashMap<_, Raw<K>, Raw<Standing>> = HashMap::try_from(ebpf.map_mut(name).unwrap()).unwrap();
    for (key, value) in entries {
        map.insert(Raw(*key), Raw(*value), 0).unwrap();
    }
}
