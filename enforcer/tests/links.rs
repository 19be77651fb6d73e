//! Interfaces as they come and go, in namespaces of the tests' own. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

mod lab;

use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Command, Stdio};
use std::time::Duration;

use enforcer::links::{Change, Lister, Wanted, Watcher};
use lab::{ifindex, inside, ip, new_netns};

const ALL: Wanted = Wanted { addresses: true, routes: true };
const NAMES: Wanted = Wanted { addresses: false, routes: false };
/// How long anything may take that is only waited for.
const BOUND: Duration = Duration::from_secs(30);

fn names(lister: &mut Lister) -> Vec<String> {
    lister.list().unwrap().into_iter().map(|link| link.name).collect()
}

/// `ip -batch` in that namespace.
fn batch(netns: &OwnedFd, lines: String) {
    inside(netns.as_fd(), move || {
        let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        ip.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        assert!(ip.wait().unwrap().success());
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Everything that is told, until `enough`.
async fn told(watcher: &mut Watcher, enough: impl Fn(&Change) -> bool) -> Change {
    let mut all = Change::default();
    while !enough(&all) {
        all.join(tokio::time::timeout(BOUND, watcher.changed()).await.expect("nothing is told").unwrap());
    }
    all
}

#[test]
fn a_list_tells_kinds_addresses_and_default_routes() {
    let netns = new_netns();
    inside(netns.as_fd(), || {
        ip("link add wan type veth peer name far");
        ip("tuntap add dev tun0 mode tun");
        ip("addr add 192.0.2.1/24 dev wan");
        ip("addr add fe80::7/64 dev far");
        for name in ["wan", "far"] {
            ip(&format!("link set {name} up"));
        }
        ip("route add default via 192.0.2.2");
    });
    let mut lister = Lister::open(Some(netns.as_fd()), ALL).unwrap();
    let links = lister.list().unwrap();
    let facts: Vec<_> = (links.iter())
        .map(|link| (link.name.as_str(), link.ethernet, link.has_address, link.has_default_route))
        .collect();
    assert_eq!(
        facts,
        [
            ("lo", false, false, false),
            ("far", true, false, false),
            ("wan", true, true, true),
            ("tun0", false, false, false)
        ]
    );
    // over and over, by the same socket; and without what nobody has asked for
    assert_eq!(lister.list().unwrap(), links);
    let plain = Lister::open(Some(netns.as_fd()), NAMES).unwrap().list().unwrap();
    assert!(plain.iter().all(|link| !link.has_address && !link.has_default_route));
    assert_eq!(plain.len(), links.len());
    // IPv6 alone, and several ways
    inside(netns.as_fd(), || {
        ip("route del default");
        ip("addr add 2001:db8::1/64 dev far nodad");
        ip("-6 route add default nexthop via 2001:db8::2 dev far nexthop via 2001:db8::3 dev far");
    });
    let found: Vec<_> =
        lister.list().unwrap().into_iter().filter(|link| link.has_default_route).map(|l| l.name).collect();
    assert_eq!(found, ["far"]);
}

#[test]
fn a_thousand_interfaces_are_listed_whole() {
    let netns = new_netns();
    batch(&netns, (0..1_000).map(|n| format!("tuntap add dev t{n} mode tun\n")).collect());
    let mut lister = Lister::open(Some(netns.as_fd()), ALL).unwrap();
    let start = std::time::Instant::now();
    assert_eq!(names(&mut lister).len(), 1_001);
    eprintln!("listing 1,001 interfaces took {:?}", start.elapsed());
}

#[test]
fn what_goes_and_whose_filters_go_is_told() {
    let netns = new_netns();
    runtime().block_on(async {
        let mut watcher = Watcher::open(Some(netns.as_fd()), NAMES, None).unwrap();
        let index = |name: &'static str| inside(netns.as_fd(), move || ifindex(name));
        let run = |words: &'static str| inside(netns.as_fd(), move || ip(words));
        run("link add one type veth peer name two");
        // something has come: what it is, a list tells
        let change = tokio::time::timeout(BOUND, watcher.changed()).await.expect("it is told").unwrap();
        assert!(change.gone.is_empty() && !change.overrun);
        let (one, two) = (index("one"), index("two"));
        inside(netns.as_fd(), || {
            for words in ["qdisc add dev one clsact", "qdisc del dev one clsact"] {
                assert!(Command::new("tc").args(words.split(' ')).status().unwrap().success());
            }
        });
        let change = told(&mut watcher, |change| !change.unfiltered.is_empty()).await;
        assert_eq!(change.unfiltered.into_iter().collect::<Vec<_>>(), [one]);
        // a port that leaves its bridge is not gone, though the bridge says so in the same words
        run("link add bridge type bridge");
        run("link set two master bridge");
        run("link set two nomaster");
        run("link set one name three");
        run("link del three");
        let change = told(&mut watcher, |change| change.gone.len() == 2).await;
        assert_eq!(change.gone.into_iter().collect::<Vec<_>>(), [one.min(two), one.max(two)]);
        // one that moves away is gone as well
        let elsewhere = new_netns();
        run("link add one type veth peer name two");
        let one = index("one");
        let to = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&elsewhere));
        inside(netns.as_fd(), || ip(&format!("link set one netns {to}")));
        let change = told(&mut watcher, |change| !change.gone.is_empty()).await;
        assert_eq!(change.gone.into_iter().collect::<Vec<_>>(), [one]);
    });
}

/// R1: more changes than the kernel keeps for a reader: it is told that it has missed some, and a list has them all.
#[test]
fn r1_more_changes_than_there_is_room_for_are_told_as_such() {
    let netns = new_netns();
    runtime().block_on(async {
        // the smallest that the kernel gives
        let mut watcher = Watcher::open(Some(netns.as_fd()), NAMES, Some(1)).unwrap();
        inside(netns.as_fd(), || ip("link add flap type veth peer name far"));
        let flaps = (0..5_000).map(|n| format!("link set flap mtu {}\n", 1_400 + n % 2));
        batch(&netns, flaps.collect());
        inside(netns.as_fd(), || ip("link add late type veth peer name later"));
        let change = told(&mut watcher, |change| change.overrun).await;
        assert!(change.overrun);
        let mut lister = Lister::open(Some(netns.as_fd()), NAMES).unwrap();
        assert_eq!(names(&mut lister), ["lo", "far", "flap", "later", "late"]);
        // and it goes on being told
        inside(netns.as_fd(), || ip("link del late"));
        let change = told(&mut watcher, |change| !change.gone.is_empty()).await;
        assert!(!change.gone.is_empty());
    });
}

/// Nobody keeps a namespace alive whom nobody asks any more.
#[test]
fn a_watcher_is_told_of_its_own_namespace_alone() {
    let (one, other) = (new_netns(), new_netns());
    runtime().block_on(async {
        let mut watcher = Watcher::open(Some(one.as_fd()), NAMES, None).unwrap();
        inside(other.as_fd(), || ip("link add x type veth peer name y"));
        inside(one.as_fd(), || ip("link add z type veth peer name w"));
        let index = inside(one.as_fd(), || ifindex("z"));
        inside(other.as_fd(), || ip("link del x"));
        inside(one.as_fd(), || ip("link del z"));
        let change = told(&mut watcher, |change| change.gone.contains(&index)).await;
        assert_eq!(change.gone.len(), 2);
    });
}
