//! Devices that are made of others, frames with VLAN tags, and programs of others on the same hook. Needs root; every
//! test has namespaces and a bpffs of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

mod lab;
mod raw;

use std::os::fd::AsRawFd as _;
use std::process::Command;

use enforcer::dataplane::{Dataplane, GateFacts, Role, Settings, TcPreference, XdpPreference};
use enforcer::session::{Device, Entry, Flow, Netns, Protocol, Stands};
use lab::{CLIENT, GATEWAY, Lab, OTHER, PEER, Socket, ifindex, ip, lab};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socket};
use raw::{NEXT, OK, Program, SHOT, TCX_EGRESS, TCX_INGRESS};

const NONE: GateFacts = GateFacts { server: 0, moment: 0 };
const BOTH: [TcPreference; 2] = [TcPreference::Tcx, TcPreference::Clsact];

fn insert(dataplane: &mut Dataplane, entry: &Entry) {
    dataplane.insert(entry, 1, Stands::Forever, NONE).unwrap();
}

fn address(netns: Netns, text: &str) -> Entry {
    Entry::Address(netns, text.parse().unwrap())
}

fn attach(dataplane: &mut Dataplane, lab: &Lab, name: &str, role: Role) {
    dataplane.attach(None, lab.netns(), ifindex(name), name, role).unwrap();
}

fn packets_by(dataplane: &Dataplane, reason: &str) -> u64 {
    dataplane.counters().unwrap().iter().find(|counter| counter.reason == reason).unwrap().packets
}

fn device(lab: &Lab, name: &str) -> Device {
    Device { netns: lab.netns(), index: ifindex(name) }
}

/// `tc` in the calling thread's namespace; what it says.
fn tc(words: &str) -> String {
    let output = Command::new("tc").args(words.split(' ')).output().expect("iproute2 is needed");
    assert!(output.status.success(), "tc {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn mac(name: &str) -> [u8; 6] {
    let text = std::fs::read_to_string(format!("/sys/class/net/{name}/address")).unwrap_or_default();
    let text = if text.is_empty() {
        // a /sys of another namespace
        let shown = Command::new("ip").args(["-o", "link", "show", name]).output().unwrap();
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        shown.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap().to_owned()
    } else {
        text
    };
    let bytes: Vec<u8> = text.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// An Ethernet frame with these tags and a UDP datagram over IPv4.
fn frame(to: [u8; 6], from: [u8; 6], tags: &[u16], source: &str, destination: &str) -> Vec<u8> {
    let mut bytes = [to, from].concat();
    for (number, tag) in tags.iter().enumerate() {
        bytes.extend(tag.to_be_bytes());
        bytes.extend((5 + u16::try_from(number).unwrap()).to_be_bytes());
    }
    bytes.extend([8, 0, 0x45, 0, 0, 32, 0, 0, 0x40, 0, 64, 17, 0, 0]);
    for address in [source, destination] {
        bytes.extend(address.parse::<std::net::Ipv4Addr>().unwrap().octets());
    }
    let start = bytes.len() - 20;
    let sum: u32 = bytes[start..].chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1])).sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    bytes[start + 10..start + 12].copy_from_slice(&sum.to_be_bytes());
    bytes.extend([0x13, 0x88, 0x13, 0x89, 0, 12, 0, 0, 1, 2, 3, 4]);
    bytes
}

/// A raw socket on a device of the calling thread's namespace.
struct Wire(std::os::fd::OwnedFd);

impl Wire {
    fn new(device: &str) -> Self {
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).unwrap();
        // SAFETY: zeroes are a valid sockaddr_ll.
        let mut address: nix::libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = nix::libc::AF_PACKET as u16;
        address.sll_protocol = (nix::libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = i32::try_from(ifindex(device)).unwrap();
        let length = u32::try_from(size_of_val(&address)).unwrap();
        // SAFETY: the address outlives the call, which reads as many bytes as it has.
        let bound = unsafe { nix::libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
        assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
        Self(socket)
    }

    fn send(&self, frame: &[u8]) {
        send(self.0.as_raw_fd(), frame, MsgFlags::empty()).unwrap();
    }

    /// How many frames from that address are there; until one from `last` comes.
    fn count(&self, address: &str, last: &str) -> usize {
        let octets = |text: &str| text.parse::<std::net::Ipv4Addr>().unwrap().octets();
        let holds = |frame: &[u8], address: [u8; 4]| frame.windows(4).any(|four| four == address);
        let mut count = 0;
        let mut buffer = [0; 2048];
        for _ in 0..10_000 {
            let got = nix::sys::socket::recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
            if holds(&buffer[..got], octets(last)) {
                return count;
            }
            count += usize::from(holds(&buffer[..got], octets(address)));
        }
        panic!("ten thousand other frames");
    }
}

/// R1, R3: on a trunk, whether the tags are in the frame or beside it (where the kernel keeps the outer one of what
/// comes in, and of what a VLAN device sends), the address is found where it is.
#[test]
fn r1_tags_beside_the_frame_and_in_it() {
    for preference in BOTH {
        lab(move |lab| {
            let mut dataplane = Dataplane::open(Settings { tc: preference, ..lab.settings() }).unwrap();
            attach(&mut dataplane, lab, "gw", Role::Inner);
            insert(&mut dataplane, &address(lab.netns(), CLIENT));
            let (near, far) = (mac("gw"), lab.there(|| mac("peer")));
            // in: the kernel takes the outer tag out before tc
            let wire = lab.there(|| Wire::new("peer"));
            let tags: [&[u16]; 4] = [&[], &[0x8100], &[0x88a8, 0x8100], &[0x8100, 0x8100]];
            for (round, tags) in (1..).zip(tags) {
                wire.send(&frame(near, far, tags, PEER, CLIENT));
                wire.send(&frame(near, far, tags, PEER, OTHER));
                let dropped = packets_by(&dataplane, "dropped-address-to");
                assert_eq!(dropped, round, "{preference:?} {tags:x?}");
            }
            // out: a program of somebody's tags what comes in through another device, and sends it out
            ip("link add from type veth peer name into");
            for end in ["from", "into"] {
                ip(&format!("link set {end} up"));
            }
            let tagging = Program::tags(ifindex("gw"));
            let _link = tagging.attach(ifindex("into"), TCX_INGRESS, true);
            let out = Wire::new("from");
            let before = packets_by(&dataplane, "dropped-address-from");
            for (round, tags) in (1..).zip(tags.into_iter().take(3)) {
                let (to, from) = (far, mac("from"));
                out.send(&frame(to, from, tags, CLIENT, PEER));
                out.send(&frame(to, from, tags, OTHER, PEER));
                assert_eq!(wire.count(CLIENT, OTHER), 0, "{preference:?} {tags:x?}");
                let dropped = packets_by(&dataplane, "dropped-address-from") - before;
                assert_eq!(dropped, round, "{preference:?} {tags:x?}");
            }
        });
    }
}

fn flow(netns: Netns, client: &Socket, local: &Socket) -> Entry {
    let ends = (client.0.local_addr().unwrap(), local.0.local_addr().unwrap());
    Entry::Flow(netns, Flow::new(Protocol::Udp, ends.0, ends.1).unwrap())
}

/// R1, R3: XDP at a bridge or at its port, at a macvlan device or at what it sits on, or at both: each packet of a
/// revoked flow is dropped once, and the neighbour's pass.
#[test]
fn r1_a_device_that_is_made_of_others_drops_once() {
    let cases: [(&str, &[&str]); 6] = [
        ("bridge", &["gw"]),
        ("bridge", &["top"]),
        ("bridge", &["gw", "top"]),
        ("macvlan", &["gw"]),
        ("macvlan", &["top"]),
        ("macvlan", &["gw", "top"]),
    ];
    for (kind, named) in cases {
        lab(move |lab| {
            let mut dataplane = lab.open();
            ip("addr flush dev gw");
            if kind == "bridge" {
                ip("link add top type bridge");
                ip("link set gw master top");
            } else {
                ip("link add link gw name top type macvlan mode bridge");
                // otherwise gw answers for top's address, with its own
                std::fs::write("/proc/sys/net/ipv4/conf/gw/arp_ignore", "1").unwrap();
            }
            ip(&format!("addr add {GATEWAY}/8 dev top"));
            ip("link set top up");
            for name in named {
                attach(&mut dataplane, lab, name, Role::Outer);
            }
            let how: Vec<_> = dataplane.attachments().into_iter().map(|a| (a.name, a.how)).collect();
            let expected = |name: &str| if name == "gw" { "xdp native" } else { "xdp generic" };
            assert!(how.iter().all(|(name, how)| how == expected(name)), "{how:?}");
            let server = lab.here(&format!("{GATEWAY}:443"));
            let (client, neighbour) = (lab.far(&format!("{PEER}:4000")), lab.far(&format!("{PEER}:4001")));
            assert!(client.reaches(&server), "{kind} {named:?}");
            insert(&mut dataplane, &flow(lab.netns(), &client, &server));
            for round in 1..=3 {
                assert!(!client.reaches(&server), "{kind} {named:?}");
                assert!(neighbour.reaches(&server), "{kind} {named:?}");
                assert_eq!(packets_by(&dataplane, "dropped-flow"), round, "{kind} {named:?}");
            }
        });
    }
}

/// The kernel takes no XDP program on a device above which there is one. It is said, and what is above goes on dropping.
#[test]
fn a_device_below_one_with_a_program_is_refused() {
    lab(|lab| {
        let mut dataplane = lab.open();
        ip("addr flush dev gw");
        ip("link add top type bridge");
        ip("link set gw master top");
        ip(&format!("addr add {GATEWAY}/8 dev top"));
        ip("link set top up");
        attach(&mut dataplane, lab, "top", Role::Outer);
        let error = dataplane.attach(None, lab.netns(), ifindex("gw"), "gw", Role::Outer).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("or on a device that it is made of or belongs to"), "{text}");
        let server = lab.here(&format!("{GATEWAY}:443"));
        let (client, neighbour) = (lab.far(&format!("{PEER}:4000")), lab.far(&format!("{PEER}:4001")));
        insert(&mut dataplane, &flow(lab.netns(), &client, &server));
        assert!(!client.reaches(&server) && neighbour.reaches(&server));
    });
}

/// R1: a port that leaves its bridge and comes back keeps its programs, and so does the bridge.
#[test]
fn r1_a_port_that_leaves_and_joins_keeps_dropping() {
    lab(|lab| {
        let mut dataplane = lab.open();
        ip("addr flush dev gw");
        ip("link add top type bridge");
        ip("link set top up");
        attach(&mut dataplane, lab, "gw", Role::Outer);
        let server = |device: &str| {
            ip(&format!("addr add {GATEWAY}/8 dev {device}"));
            lab.here(&format!("{GATEWAY}:443"))
        };
        let client = lab.far(&format!("{PEER}:4000"));
        for (number, (step, holds)) in
            [("set gw master top", "top"), ("set gw nomaster", "gw"), ("set gw master top", "top")]
                .into_iter()
                .enumerate()
        {
            ip(&format!("link {step}"));
            let server = server(holds);
            let entry = flow(lab.netns(), &client, &server);
            insert(&mut dataplane, &entry);
            assert!(!client.reaches(&server), "step {number}");
            dataplane.remove(&entry).unwrap();
            assert!(client.reaches(&server), "step {number}");
            drop(server);
            ip(&format!("addr flush dev {holds}"));
        }
        assert!(dataplane.is_attached(device(lab, "gw"), Role::Outer));
    });
}

/// tcx: whoever is before or behind ours sees what passes, and what one of both drops is dropped. Behind ours he does not
/// see what we drop. Whoever is before ours and accepts takes the packet past us, which `ahead` tells.
#[test]
fn others_on_tcx_go_on_working() {
    lab(|lab| {
        let behind = Program::answers("behind", OK);
        let _behind = behind.attach(ifindex("gw"), TCX_INGRESS, false);
        let mut dataplane = Dataplane::open(Settings { tc: TcPreference::Tcx, ..lab.settings() }).unwrap();
        attach(&mut dataplane, lab, "gw", Role::Inner);
        insert(&mut dataplane, &address(lab.netns(), CLIENT));
        let lan = lab.far(&format!("{PEER}:80"));
        let (revoked, other) = (lab.here(&format!("{CLIENT}:5000")), lab.here(&format!("{OTHER}:5000")));
        assert!(dataplane.ahead(None, lab.netns()).unwrap().0.is_empty(), "ours is the first");
        let behind_runs = |work: &dyn Fn()| {
            let before = behind.seen();
            work();
            behind.seen() - before
        };
        assert_eq!(behind_runs(&|| assert!(lan.reaches(&other))), 1);
        assert_eq!(behind_runs(&|| assert!(!lan.reaches(&revoked))), 0);
        // one that came later and put itself first
        let ahead = Program::answers("ahead", NEXT);
        let first = ahead.attach(ifindex("gw"), TCX_INGRESS, true);
        let (told, all) = dataplane.ahead(None, lab.netns()).unwrap();
        assert!(all);
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(
            (told[0].device.as_str(), told[0].direction, told[0].program.as_str()),
            ("gw", "ingress", "ahead")
        );
        let before = ahead.seen();
        assert!(lan.reaches(&other) && !lan.reaches(&revoked));
        assert_eq!(ahead.seen() - before, 2);
        drop(first);
        let deny = Program::answers("deny", SHOT);
        let first = deny.attach(ifindex("gw"), TCX_INGRESS, true);
        assert!(!lan.reaches(&other) && !lan.reaches(&revoked));
        drop(first);
        let accept = Program::answers("accept", OK);
        let first = accept.attach(ifindex("gw"), TCX_INGRESS, true);
        assert!(lan.reaches(&revoked), "it never comes to ours: `ahead` warns of that");
        drop(first);
        assert!(!lan.reaches(&revoked));
        // the other direction, and one behind ours that drops
        let _last = deny.attach(ifindex("gw"), TCX_EGRESS, false);
        assert!(!other.reaches(&lan) && !revoked.reaches(&lan));
        assert_eq!(packets_by(&dataplane, "dropped-address-from"), 1);
    });
}

/// clsact: filters of others go on working, whatever their priority; a packet that we let pass comes to those behind ours,
/// and what we drop does not. tcx of ours runs before all of them.
#[test]
fn others_filters_go_on_working() {
    for preference in BOTH {
        lab(move |lab| {
            lab.mount_bpffs();
            let pins = lab.pin_path().parent().unwrap().to_owned();
            let filters: Vec<(Program, u16)> = [("early", 3_u16), ("late", 9)]
                .map(|(name, priority)| {
                    let program = Program::answers(name, NEXT);
                    program.pin(&pins.join(name));
                    (program, priority)
                })
                .into();
            tc("qdisc add dev gw clsact");
            let add = |name: &str, priority: u16| {
                let pin = pins.join(name);
                tc(&format!(
                    "filter add dev gw ingress prio {priority} bpf direct-action object-pinned {}",
                    pin.display()
                ));
            };
            // one before us, one after
            add("early", 3);
            let mut dataplane = Dataplane::open(Settings { tc: preference, ..lab.settings() }).unwrap();
            attach(&mut dataplane, lab, "gw", Role::Inner);
            add("late", 9);
            insert(&mut dataplane, &address(lab.netns(), CLIENT));
            let lan = lab.far(&format!("{PEER}:80"));
            let (revoked, other) = (lab.here(&format!("{CLIENT}:5000")), lab.here(&format!("{OTHER}:5000")));
            let runs = |work: &dyn Fn()| {
                let before: Vec<u64> = filters.iter().map(|(program, _)| program.seen()).collect();
                work();
                (filters.iter().zip(before))
                    .map(|((program, _), before)| program.seen() - before)
                    .collect::<Vec<_>>()
            };
            assert_eq!(runs(&|| assert!(lan.reaches(&other))), [1, 1], "{preference:?}");
            let early = u64::from(preference == TcPreference::Clsact);
            assert_eq!(runs(&|| assert!(!lan.reaches(&revoked))), [early, 0], "{preference:?}");
            // u32, which is not BPF: with a class and no action it accepts
            tc("filter add dev gw ingress prio 20 protocol ip u32 match ip dst 0.0.0.0/0 flowid 1:1");
            assert_eq!(runs(&|| assert!(lan.reaches(&other))), [1, 1], "{preference:?}");
            assert!(!lan.reaches(&revoked));
            // our end, and theirs goes on
            drop(dataplane);
            Dataplane::unload(&lab.pin_path()).unwrap();
            assert_eq!(runs(&|| assert!(lan.reaches(&revoked))), [1, 1], "{preference:?}");
        });
    }
}

/// At the place where others look for one, for this thread and what it starts: a host may have none there, and what they
/// leave in it goes with us.
fn a_bpffs_of_our_own() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none).unwrap();
}

/// The one place for XDP is taken: a sentence that says by whom one asks, and what to do. Nothing of theirs is touched.
#[test]
fn a_place_that_is_taken_is_an_error_that_says_what_to_do() {
    for theirs in ["native", "skb"] {
        lab(move |lab| {
            a_bpffs_of_our_own();
            let filter = |words: &str| {
                let output = Command::new("xdp-filter").args(words.split(' ')).output().unwrap();
                (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
            };
            let (loaded, said) = filter(&format!("load gw -m {theirs}"));
            assert!(loaded, "{said}");
            let mut dataplane = lab.open();
            for xdp in [XdpPreference::Auto, XdpPreference::Native, XdpPreference::Generic] {
                drop(dataplane);
                dataplane = Dataplane::open(Settings { xdp, ..lab.settings() }).unwrap();
                let error =
                    dataplane.attach(None, lab.netns(), ifindex("gw"), "gw", Role::Outer).unwrap_err();
                let text = format!("{error:#}");
                assert!(
                    text.contains("another XDP program is on gw") && text.contains("xdp-loader unload gw"),
                    "{text}"
                );
                assert!(!dataplane.is_attached(device(lab, "gw"), Role::Outer));
            }
            assert!(filter("unload gw").0);
            drop(dataplane);
            let mut dataplane = lab.open();
            attach(&mut dataplane, lab, "gw", Role::Outer);
            // and the other way round
            let (loaded, said) = filter("load gw");
            assert!(!loaded, "{said}");
            assert!(dataplane.is_attached(device(lab, "gw"), Role::Outer));
        });
    }
}

/// R3: a device that moves into another namespace takes nothing with it that we said of ours; and there it gets what is
/// said there.
#[test]
fn r3_a_device_that_moves_is_let_go_of() {
    for preference in BOTH {
        lab(move |lab| {
            let mut dataplane = Dataplane::open(Settings { tc: preference, ..lab.settings() }).unwrap();
            ip("link add mover type veth peer name other-end");
            for role in [Role::Outer, Role::Inner] {
                attach(&mut dataplane, lab, "mover", role);
            }
            let device = device(lab, "mover");
            let peer = format!("/proc/{}/fd/{}", std::process::id(), lab.peer.as_raw_fd());
            ip(&format!("link set mover netns {peer}"));
            // XDP stays with the device, wherever it goes
            assert!(dataplane.is_attached(device, Role::Outer));
            dataplane.detach_gone(device);
            assert!(dataplane.attachments().is_empty());
            assert_eq!(std::fs::read_dir(lab.pin_path().join("links")).unwrap().count(), 0);
            let shown = lab.there(|| {
                let shown = Command::new("ip").args(["link", "show", "mover"]).output().unwrap();
                String::from_utf8_lossy(&shown.stdout).into_owned()
            });
            assert!(shown.contains("mover") && !shown.contains("xdp"), "{shown}");
            let there = lab::number(&lab.peer);
            let index = lab.there(|| ifindex("mover"));
            use std::os::fd::AsFd as _;
            for role in [Role::Outer, Role::Inner] {
                dataplane.attach(Some(lab.peer.as_fd()), there, index, "mover", role).unwrap();
                assert!(dataplane.is_attached(Device { netns: there, index }, role));
            }
        });
    }
}

#[test]
fn a_role_is_taken_from_a_device_and_the_other_stays() {
    for preference in BOTH {
        lab(move |lab| {
            let mut dataplane = Dataplane::open(Settings { tc: preference, ..lab.settings() }).unwrap();
            for role in [Role::Outer, Role::Inner] {
                attach(&mut dataplane, lab, "gw", role);
            }
            insert(&mut dataplane, &address(lab.netns(), CLIENT));
            let lan = lab.far(&format!("{PEER}:80"));
            let revoked = lab.here(&format!("{CLIENT}:5000"));
            assert!(!lan.reaches(&revoked));
            let device = device(lab, "gw");
            dataplane.rename(device, "called");
            assert!(dataplane.attachments().iter().all(|attachment| attachment.name == "called"));
            dataplane.detach(device, Role::Inner).unwrap();
            assert!(!dataplane.is_attached(device, Role::Inner));
            assert!(dataplane.is_attached(device, Role::Outer));
            assert!(lan.reaches(&revoked));
            // it is nothing to take out what is not there
            dataplane.detach(device, Role::Inner).unwrap();
            dataplane.detach(device, Role::Tunnel).unwrap();
            // and by another process, which has attached nothing
            drop(dataplane);
            let mut dataplane = lab.open();
            assert!(dataplane.still_hangs(device));
            dataplane.detach(device, Role::Outer).unwrap();
            assert!(!dataplane.still_hangs(device));
        });
    }
}
