//! R1, R3: devices that come, go, move and change their names, under the real daemon.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use enforcer_tests::blast::packet;
use enforcer_tests::enforcer::{Config, DONE, quoted};
use enforcer_tests::lab::{LAN_V4, Lab, WAN};
use enforcer_tests::process::{command, eventually, output};
use enforcer_tests::receipt::attached;
use enforcer_tests::scene::Scene;
use enforcer_tests::tun::Tun;
use enforcer_tests::{Client, Connect, Enforcer, Era, Namespace, Ocserv};
use nix::sys::signal::Signal;
use serde_json::Value;

/// A client whose address is revoked, and its neighbour.
const REVOKED: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 3);
const BOUND: Duration = Duration::from_secs(30);
/// Where a thousand devices get programs: the kernel takes 15 ms for each of two.
const LONG: Duration = Duration::from_secs(240);

/// A gateway whose daemon has these patterns for tc, and no others.
fn gateway(name: &str, inner: &str) -> (Lab, Enforcer) {
    let lab = Lab::new(name);
    let config = Config::new(&[]).set("kernel", "outer", "[]").set("kernel", "inner", inner);
    let mut enforcer = Enforcer::prepare(&lab, &config);
    enforcer.start();
    enforcer.cli(&["revoke", "address", &REVOKED.to_string()]).code(DONE);
    (lab, enforcer)
}

/// The names of the devices that have programs.
fn names(enforcer: &Enforcer) -> Vec<String> {
    let mut names: Vec<String> = attached(&enforcer.status()).into_iter().map(|(name, _)| name).collect();
    names.sort();
    names.dedup();
    names
}

#[track_caller]
fn has(enforcer: &Enforcer, expected: &[&str]) {
    eventually(&format!("programs on {expected:?}"), BOUND, || (names(enforcer) == expected).then_some(()));
}

fn pins(enforcer: &Enforcer) -> BTreeSet<String> {
    let entries = fs::read_dir(enforcer.pins().join("links")).expect("the folder of links");
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// The LAN host's end of what clients send.
struct Sink {
    socket: UdpSocket,
    to: SocketAddrV4,
}

impl Sink {
    fn new(lab: &Lab) -> Self {
        let socket = lab.lan.within(|| UdpSocket::bind((LAN_V4, 0))).expect("a socket");
        socket.set_read_timeout(Some(BOUND)).expect("a time-out");
        let port = socket.local_addr().expect("an address").port();
        Self { socket, to: SocketAddrV4::new(LAN_V4, port) }
    }

    /// Whether a packet of the revoked client, sent through this device, comes to the LAN; its neighbour's, which is
    /// sent after it, does in any case.
    #[track_caller]
    fn gets_from(&self, tun: &Tun) -> bool {
        self.socket.set_nonblocking(true).expect("a socket");
        while self.socket.recv(&mut [0; 128]).is_ok() {}
        self.socket.set_nonblocking(false).expect("a socket");
        let from = |address| SocketAddrV4::new(address, 5_000);
        assert!(tun.send(&packet(from(REVOKED), self.to)) && tun.send(&packet(from(NEIGHBOUR), self.to)));
        let mut any = false;
        loop {
            let (_, sender) = self.socket.recv_from(&mut [0; 128]).expect("the neighbour's packet");
            any |= sender.ip() == REVOKED;
            if sender.ip() == NEIGHBOUR {
                return any;
            }
        }
    }
}

fn rename(namespace: &Namespace, from: &str, to: &str) {
    namespace.ip(&format!("link set {from} down\nlink set {from} name {to}\nlink set {to} up\n"));
}

/// R1, R3: the programs follow the names. A device that gets a name which is named has them, under whatever named name;
/// one whose new name is not named is let alone.
#[test]
fn r1_a_device_is_known_by_the_name_that_it_has_now() {
    let (lab, enforcer) = gateway("ifnames", "[\"t*\"]");
    let sink = Sink::new(&lab);
    let tun = Tun::create(&lab.gateway, "x0");
    assert!(sink.gets_from(&tun), "nobody has named it");
    for name in ["t0", "t1"] {
        rename(&lab.gateway, if name == "t0" { "x0" } else { "t0" }, name);
        has(&enforcer, &[name]);
        assert!(!sink.gets_from(&tun), "{name}");
    }
    rename(&lab.gateway, "t1", "y0");
    has(&enforcer, &[]);
    assert!(sink.gets_from(&tun), "nobody names it any more");
    assert!(pins(&enforcer).is_empty());
    rename(&lab.gateway, "y0", "t2");
    has(&enforcer, &["t2"]);
    assert!(!sink.gets_from(&tun));
    drop(tun);
    has(&enforcer, &[]);
    assert!(pins(&enforcer).is_empty());
    assert!(!enforcer.log().contains("WARN"), "{}", enforcer.log());
}

/// R1: a session's own device keeps its programs, also under a name that nobody has named.
#[test]
fn r1_a_sessions_device_is_known_whatever_it_is_called() {
    let scene = Scene::new("ifsession", Era::Bookworm);
    let (_, tunnel) = scene.session(&scene.alice, "alice");
    let device =
        names(&scene.enforcer).into_iter().find(|name| name.starts_with("vpns")).expect("her device");
    rename(&scene.lab.gateway, &device, "other0");
    eventually("the new name is known", BOUND, || {
        let names = names(&scene.enforcer);
        (names.iter().any(|name| name == "other0") && !names.contains(&device)).then_some(())
    });
    // a list that came later says the same
    scene.lab.gateway.ip("link add flap type veth peer name far\nlink del flap\n");
    let pair = scene.flood(&scene.alice, &tunnel, false, 100);
    pair.flowing();
    assert!(names(&scene.enforcer).iter().any(|name| name == "other0"));
    let answer = scene.enforcer.revoke("alice");
    pair.stopped_at(answer.answered, 30);
}

fn findings(enforcer: &Enforcer) -> String {
    enforcer.cli(&["check", "--json"]).stdout
}

/// A name that no interface has is told, and gets its programs when it appears; one that another XDP program is on as well.
#[test]
fn check_tells_of_names_without_interface_and_of_places_that_are_taken() {
    let lab = Lab::new("ifcheck");
    let config = Config::new(&[]).set("kernel", "outer", &format!("[{}]", quoted(WAN))).set(
        "kernel",
        "inner",
        "[\"typo0\", \"t*\"]",
    );
    let xdp_filter = |words: &[&str]| {
        let mut command = lab.gateway.command("xdp-filter");
        command.args(words);
        output(command, "")
    };
    assert_eq!(xdp_filter(&["load", WAN]).code, 0);
    let mut enforcer = Enforcer::prepare(&lab, &config);
    enforcer.start();
    let said = findings(&enforcer);
    assert!(said.contains("no interface is called typo0"), "{said}");
    assert!(said.contains("another XDP program is on wan0"), "{said}");
    lab.gateway.ip("link add typo0 type veth peer name far0\n");
    has(&enforcer, &["typo0"]);
    assert!(!findings(&enforcer).contains("typo0, which"));
    // theirs goes: ours comes by itself
    let unloaded = xdp_filter(&["unload", WAN]);
    assert_eq!(unloaded.code, 0, "xdp-filter unload: {}{}", unloaded.stdout, unloaded.stderr);
    has(&enforcer, &["typo0", WAN]);
    assert!(!findings(&enforcer).contains("another XDP program"));
    // and now theirs cannot come, and says so
    let refused = xdp_filter(&["load", WAN]);
    assert!(refused.code != 0 && refused.stderr.contains("busy"), "{}", refused.stderr);
    has(&enforcer, &["typo0", WAN]);
}

/// What the daemon holds: descriptors, and memory in KiB.
fn holds(enforcer: &Enforcer) -> (usize, u64) {
    let process = format!("/proc/{}", enforcer.pid());
    let descriptors = fs::read_dir(format!("{process}/fd")).expect("its descriptors").count();
    let status = fs::read_to_string(format!("{process}/status")).expect("its status");
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    (descriptors, memory.expect("its memory").trim().parse().expect("a number"))
}

/// R1, R3: a thousand devices, made and destroyed one after the other. Nothing stays of them: BPF objects live by pins, by
/// descriptors and by devices alone. And whichever of them stays for a time has its programs.
#[test]
fn r1_a_thousand_devices_come_and_go_and_nothing_is_leaked_or_missed() {
    let (lab, enforcer) = gateway("ifchurn", "[\"t*\"]");
    let sink = Sink::new(&lab);
    // once through everything, before it is counted
    let first = Tun::create(&lab.gateway, "t0");
    has(&enforcer, &["t0"]);
    drop(first);
    has(&enforcer, &[]);
    eventually("the first device is let go of", BOUND, || pins(&enforcer).is_empty().then_some(()));
    let (descriptors, memory) = holds(&enforcer);
    let start = Instant::now();
    for number in 0..1_000 {
        let name = format!("t{}", number % 7);
        let tun = Tun::create(&lab.gateway, &name);
        if number % 100 == 50 {
            eventually(&format!("programs on {name} (number {number})"), BOUND, || {
                names(&enforcer).contains(&name).then_some(())
            });
            assert!(!sink.gets_from(&tun), "number {number}");
        }
    }
    eprintln!("a thousand devices took {:?}", start.elapsed());
    eventually("all are let go of", BOUND, || {
        (pins(&enforcer).is_empty() && names(&enforcer).is_empty()).then_some(())
    });
    eventually(
        &format!("no descriptor is left, of {} beside {descriptors}", holds(&enforcer).0),
        BOUND,
        || (holds(&enforcer).0 <= descriptors).then_some(()),
    );
    let grown = holds(&enforcer).1.saturating_sub(memory);
    eprintln!("the daemon's memory: {memory} KiB before, {grown} KiB more after");
    assert!(grown < 16_384, "{grown} KiB more than before");
    assert!(!enforcer.log().contains("WARN"), "{}", enforcer.log());
}

/// R1: a thousand devices at once. All get their programs, and meanwhile the daemon does its other work: a revocation that
/// is given in between is answered before they are through.
fn at_once(name: &str, tc: &str) {
    let lab = Lab::new(name);
    let config = Config::new(&[]).set("kernel", "outer", "[]").set("kernel", "inner", "[\"t*\"]").set(
        "kernel",
        "tc",
        &quoted(tc),
    );
    let mut enforcer = Enforcer::prepare(&lab, &config);
    enforcer.start();
    let sink = Sink::new(&lab);
    let start = Instant::now();
    let all =
        |verb: &str| (0..1_000).map(|n| format!("tuntap {verb} dev t{n} mode tun\n")).collect::<String>();
    lab.gateway.ip(&all("add"));
    eprintln!("{tc}: making them took {:?}", start.elapsed());
    let revoked = Instant::now();
    enforcer.cli(&["revoke", "address", &REVOKED.to_string()]).code(DONE);
    let meanwhile = pins(&enforcer).len();
    eprintln!("{tc}: a revocation with {meanwhile} programs in place took {:?}", revoked.elapsed());
    if tc == "tcx" {
        assert!(meanwhile < 2_000, "it was answered only when all were through");
    }
    eventually("a thousand devices have their programs", LONG, || {
        (pins(&enforcer).len() == 2_000).then_some(())
    });
    eprintln!("{tc}: attaching all took {:?}", start.elapsed());
    assert_eq!(names(&enforcer).len(), 1_000);
    // it opens one that is there
    let last = Tun::create(&lab.gateway, "t999");
    assert!(!sink.gets_from(&last));
    let asked = Instant::now();
    enforcer.status();
    eprintln!("{tc}: a status with them took {:?}", asked.elapsed());
    drop(last);
    let start = Instant::now();
    lab.gateway.ip(&all("del"));
    eventually("all are let go of", LONG, || pins(&enforcer).is_empty().then_some(()));
    eprintln!("{tc}: destroying all took {:?}", start.elapsed());
    assert!(names(&enforcer).is_empty());
    assert!(!enforcer.log().contains("WARN"), "{}", enforcer.log());
}

#[test]
fn r1_a_thousand_devices_at_once_by_tcx() {
    at_once("ifmany-tcx", "tcx");
}

#[test]
fn r1_a_thousand_devices_at_once_by_clsact() {
    at_once("ifmany-clsact", "clsact");
}

/// R1: a burst that never ends is no reason to wait: a device that comes meanwhile gets its programs.
#[test]
fn r1_a_device_that_comes_while_others_never_rest() {
    let (lab, enforcer) = gateway("ifburst", "[\"t*\"]");
    let sink = Sink::new(&lab);
    lab.gateway.ip("link add flap type veth peer name far\n");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let flaps: String = (0..200).map(|n| format!("link set flap mtu {}\n", 1_400 + n % 2)).collect();
            while !stop.load(Ordering::Relaxed) {
                lab.gateway.ip(&flaps);
            }
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for name in ["t0", "t1", "t2"] {
                let tun = Tun::create(&lab.gateway, name);
                has(&enforcer, &[name]);
                assert!(!sink.gets_from(&tun), "{name}");
            }
        }));
        stop.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// R1: the kernel's words were lost, since the daemon was too slow to take them: what came then has its programs, and what
/// went is let go of.
#[test]
fn r1_words_of_the_kernel_that_were_lost() {
    let (lab, enforcer) = gateway("iflost", "[\"t*\"]");
    let sink = Sink::new(&lab);
    let old = Tun::create(&lab.gateway, "t0");
    has(&enforcer, &["t0"]);
    lab.gateway.ip("link add flap type veth peer name far\n");
    enforcer.signal(Signal::SIGSTOP);
    let flaps: String = (0..12_000).map(|n| format!("link set flap mtu {}\n", 1_400 + n % 2)).collect();
    lab.gateway.ip(&flaps);
    drop(old);
    let new = Tun::create(&lab.gateway, "t1");
    enforcer.signal(Signal::SIGCONT);
    has(&enforcer, &["t1"]);
    assert!(!sink.gets_from(&new));
    assert!(enforcer.log().contains("than could be told"), "nothing was lost:\n{}", enforcer.log());
}

/// R1: somebody has taken our filter out, and his own with it: it is there again.
#[test]
fn r1_a_filter_that_somebody_has_taken_out_comes_back() {
    let lab = Lab::new("iffilter");
    let config = Config::new(&[]).set("kernel", "outer", "[]").set("kernel", "inner", "[\"t*\"]").set(
        "kernel",
        "tc",
        "\"clsact\"",
    );
    let mut enforcer = Enforcer::prepare(&lab, &config);
    enforcer.start();
    enforcer.cli(&["revoke", "address", &REVOKED.to_string()]).code(DONE);
    let sink = Sink::new(&lab);
    let tun = Tun::create(&lab.gateway, "t0");
    has(&enforcer, &["t0"]);
    assert!(!sink.gets_from(&tun));
    let tc = |words: &str| {
        let arguments = ["-n", lab.gateway.name()].into_iter().chain(words.split(' '));
        output(command("tc", arguments), "")
    };
    for words in ["filter del dev t0 ingress", "qdisc del dev t0 clsact"] {
        let said = tc(words);
        assert_eq!(said.code, 0, "{}", said.stderr);
        eventually(&format!("after tc {words}"), BOUND, || (!sink.gets_from(&tun)).then_some(()));
        let shown = tc("filter show dev t0 ingress").stdout;
        assert!(shown.contains("pref 7") && shown.contains("tun_in"), "{shown}");
    }
}

/// Where a device's programs are, by its namespace as `show status` has it.
fn namespaces(enforcer: &Enforcer, device: &str) -> Vec<String> {
    let status = enforcer.status();
    let list: Vec<Value> = status["interfaces"].as_array().cloned().unwrap_or_default();
    let mut found: Vec<String> = (list.iter())
        .filter(|entry| entry["name"] == device)
        .map(|entry| entry["netns"].as_str().unwrap_or_default().to_owned())
        .collect();
    found.dedup();
    found
}

/// R1, R3: a namespace in which an ocserv lives is followed as ours is: what comes later is attached there, also what moves
/// there from us, and that drops by what is said there. When the server and its namespace are gone, nothing is left, and
/// nobody has kept the namespace alive.
#[test]
fn r1_a_container_is_followed() {
    let mut lab = Lab::new("ifcontainer");
    let container = lab.namespace("ct");
    let ocserv = Ocserv::new(&lab, Era::Bookworm, 0).namespace(&container);
    // it is reached through a wire of its own
    lab.gateway.ip(&format!(
        "link add ct0 type veth peer name eth0 netns {}\naddr add 172.30.0.1/24 dev ct0\nlink set ct0 up\n\
         route add 10.88.0.0/24 via 172.30.0.2\n",
        container.name()
    ));
    container.set("ipv4/ip_forward", "1");
    container.ip("addr add 172.30.0.2/24 dev eth0\nlink set eth0 up\nroute add default via 172.30.0.1\n");
    lab.router.ip("route add 172.30.0.0/24 via 198.51.100.2\n");
    let config = Config::new(&[&ocserv])
        .set("kernel", "inner", "[\"late*\"]")
        .server("outer", "[\"eth0\"]")
        .server("inner", "[\"late*\", \"vpns*\"]");
    let mut enforcer = Enforcer::prepare(&lab, &config);
    let mut server = enforcer.guard(ocserv).start();
    enforcer.start();
    let there = format!("net:[{}]", container.inode());
    eventually("the container is followed", BOUND, || {
        (namespaces(&enforcer, "eth0") == [there.as_str()]).then_some(())
    });
    let client: Client = lab.client("alice");
    let how = Connect::default().url("https://172.30.0.2");
    let (_cookie, tunnel) = client.session_by(&server, "alice", &how);
    enforcer.knows("alice");
    enforcer.cli(&["revoke", "address", &REVOKED.to_string()]).code(DONE);
    // one that comes there, and one that comes to us and moves there
    container.ip("link add late0 type veth peer name far0\n");
    eventually("late0 is attached there", BOUND, || {
        (namespaces(&enforcer, "late0") == [there.as_str()]).then_some(())
    });
    let moved = Tun::create(&lab.gateway, "late1");
    eventually("late1 is attached here", BOUND, || (namespaces(&enforcer, "late1") == [""]).then_some(()));
    let here: BTreeSet<String> = pins(&enforcer);
    lab.gateway.ip(&format!("link set late1 netns {}\n", container.name()));
    container.ip("link set late1 up\n");
    eventually("late1 is attached there", BOUND, || {
        (namespaces(&enforcer, "late1") == [there.as_str()]).then_some(())
    });
    let ours = format!("{}-", lab.gateway.inode());
    assert!(here.iter().any(|pin| pin.starts_with(&ours) && pin.contains("tun_in")), "{here:?}");
    let left: Vec<String> =
        pins(&enforcer).into_iter().filter(|pin| pin.starts_with(&ours) && pin.contains("tun_")).collect();
    assert!(left.is_empty(), "{left:?}");
    let sink = Sink::new(&lab);
    assert!(!sink.gets_from(&moved));
    // the address of the container's own is nobody's to revoke
    let refused = enforcer.cli(&["revoke", "address", "172.30.0.2"]);
    let said = format!("{}{}", refused.stdout, refused.stderr);
    assert!(refused.code != DONE && said.contains("own address"), "{said}");
    drop((moved, tunnel));
    server.kill();
    drop(server);
    // nobody lives there any more, and its name goes: it ends when the last one lets go of it
    let path = container.path();
    nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH).expect("unmounted");
    fs::remove_file(&path).expect("removed");
    eventually("its end of the wire goes with it", LONG, || (!lab.gateway.has_device("ct0")).then_some(()));
    eventually("nothing is left of it", BOUND, || {
        let prefix = there.trim_start_matches("net:[").trim_end_matches(']').to_owned();
        (!pins(&enforcer).iter().any(|pin| pin.starts_with(&prefix))).then_some(())
    });
    assert!(namespaces(&enforcer, "eth0").is_empty() && namespaces(&enforcer, "late0").is_empty());
}
