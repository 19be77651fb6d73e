//! What an operator sees of the drops: when the last one was, the first one as an event, and that all of it is in force.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use enforcer_tests::Era;
use enforcer_tests::enforcer::{DONE, ERROR};
use enforcer_tests::process::eventually;
use enforcer_tests::receipt::list;
use enforcer_tests::scene::Scene;
use serde_json::Value;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const BOUND: Duration = Duration::from_secs(10);

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn shown(scene: &Scene, number: u64) -> Value {
    let all = scene.enforcer.cli(&["show", "revocations", "--json"]).code(DONE).json;
    list(&all, "revocations").iter().find(|entry| entry["number"] == number).unwrap().clone()
}

/// A line of `show revocations` for people, by its number.
fn line(scene: &Scene, number: u64) -> String {
    let said = scene.enforcer.cli(&["show", "revocations"]).code(DONE).stdout;
    assert!(said.lines().next().unwrap().contains("LAST HIT"), "{said}");
    said.lines().find(|line| line.starts_with(&format!("{number} "))).unwrap().to_owned()
}

fn drops(scene: &Scene) -> Vec<Value> {
    let all = scene.enforcer.cli(&["show", "events", "--json"]).code(DONE).json;
    list(&all, "events").iter().filter(|event| event["kind"] == "drop").cloned().collect()
}

/// A UDP server on the gateway, and two ports of alice's host.
struct Ends {
    gateway: UdpSocket,
    revoked: UdpSocket,
    neighbour: UdpSocket,
    to: SocketAddrV4,
}

impl Ends {
    fn new(scene: &Scene, port: u16) -> Self {
        let to = SocketAddrV4::new(GATEWAY, port);
        let gateway = scene.lab.gateway.within(|| UdpSocket::bind(to)).unwrap();
        gateway.set_read_timeout(Some(BOUND)).unwrap();
        let client = || scene.alice.namespace.within(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        let (revoked, neighbour) = (client(), client());
        revoked.connect(to).unwrap();
        neighbour.connect(to).unwrap();
        Self { gateway, revoked, neighbour, to }
    }

    fn revoke(&self, scene: &Scene, from: &UdpSocket) -> u64 {
        let (from, to) = (from.local_addr().unwrap().to_string(), self.to.to_string());
        let answer = scene.enforcer.cli(&["revoke", "flow", "udp", &from, &to, "--json"]).code(DONE);
        answer.receipt().number().unwrap()
    }

    /// So many packets of the revoked one, and then one of the neighbour's, which is the one that comes.
    fn knock(&self, count: usize) {
        for _ in 0..count {
            let _ = self.revoked.send(b"revoked");
        }
        self.neighbour.send(b"neighbour").unwrap();
        let mut word = [0; 32];
        let length = self.gateway.recv(&mut word).unwrap();
        assert_eq!(&word[..length], b"neighbour");
    }
}

/// R6: when the last packet was stopped is told, also after its entry was taken out; "never" only of what was never hit.
#[test]
fn r6_last_hit() {
    let mut scene = Scene::new("last-hit", Era::Bookworm);
    let ends = Ends::new(&scene, 8_100);
    let number = ends.revoke(&scene, &ends.revoked);
    let unused = scene.alice.namespace.within(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    unused.connect(ends.to).unwrap();
    let other = ends.revoke(&scene, &unused);
    assert_eq!((&shown(&scene, number)["hits"], &shown(&scene, number)["last_hit"]), (&0.into(), &0.into()));
    assert!(line(&scene, number).contains("never"), "{}", line(&scene, number));
    let before = now();
    ends.knock(3);
    let told = shown(&scene, number);
    let last = told["last_hit"].as_u64().unwrap();
    // a packet's moment is rounded down to 67 ms, and then to seconds
    assert!(told["hits"] == 3 && last + 1 >= before && last <= now(), "{told} {before}");
    assert!(!line(&scene, number).contains("never"));
    assert!(line(&scene, other).contains("never"), "nobody used that one: {}", line(&scene, other));
    // its entry goes, and what it has stopped is remembered
    scene.enforcer.cli(&["lift", &number.to_string()]).code(DONE);
    let lifted = shown(&scene, number);
    assert_eq!((&lifted["entries"], &lifted["hits"]), (&0.into(), &3.into()), "{lifted}");
    let difference = lifted["last_hit"].as_u64().unwrap().abs_diff(last);
    assert!(difference <= 1, "as before, within the rounding: {lifted}");
    // a new daemon does not know what was before it, and says so
    scene.enforcer.kill();
    scene.enforcer.start();
    assert!(!line(&scene, other).contains("never"), "{}", line(&scene, other));
    assert!(line(&scene, other).contains("none in"), "{}", line(&scene, other));
}

/// R6, R3: one event for the first packet that is dropped, in `show events` and in the log, with its revocation; none for
/// the ones after it, and none of a neighbour.
#[test]
fn r6_r3_first_drop_event() {
    let scene = Scene::new("first-drop", Era::Bookworm);
    let ends = Ends::new(&scene, 8_101);
    let number = ends.revoke(&scene, &ends.revoked);
    ends.knock(0);
    assert_eq!(drops(&scene), Vec::<Value>::new());
    ends.knock(20);
    let told = eventually("the first drop is told", BOUND, || drops(&scene).pop());
    ends.knock(20);
    let all = drops(&scene);
    assert_eq!(all.len(), 1, "{all:?}");
    let (drop, from) = (&told["drop"], ends.revoked.local_addr().unwrap());
    assert_eq!(drop["reason"], "dropped-flow");
    assert_eq!(drop["interface"], "wan0");
    assert_eq!(drop["revocation"], number);
    assert_eq!(drop["again"], false);
    let SocketAddr::V4(from) = from else { panic!("{from}") };
    assert_eq!(drop["packet"], format!("udp {from} -> {}", ends.to));
    let text = told["text"].as_str().unwrap();
    assert!(text.contains(&format!("revocation {number}")), "{text}");
    assert_eq!(scene.enforcer.log().matches(text).count(), 1, "one line in the log");
    let status = scene.enforcer.status();
    assert_eq!(status["untold"]["suppressed"], 0, "{status}");
    assert_eq!(status["untold"]["lost"], 0, "{status}");
}

/// R6, R3: of a revoked session the event says whose it was; of bob, who goes on, there is none.
#[test]
fn r6_r3_first_drop_of_a_session() {
    let scene = Scene::new("drop-session", Era::Bookworm);
    let (_, alice) = scene.session(&scene.alice, "alice");
    let (_, bob) = scene.session(&scene.bob, "bob");
    let flood = scene.flood(&scene.alice, &alice, false, 200);
    flood.flowing();
    let number = scene.enforcer.revoke("alice").receipt().number().unwrap();
    let all =
        eventually("a drop of alice's is told", BOUND, || Some(drops(&scene)).filter(|all| !all.is_empty()));
    for event in &all {
        assert_eq!(
            (&event["drop"]["revocation"], &event["drop"]["user"]),
            (&number.into(), &"alice".into()),
            "{event}"
        );
        let packet = event["drop"]["packet"].as_str().unwrap();
        assert!(!packet.contains(&bob.ip(false).to_string()), "{packet}");
    }
}

/// R6: `check` shows probes to what is attached, and says what came of it; a program that somebody takes out is found, and
/// the daemon attaches it anew.
#[test]
fn r6_check_proves() {
    let scene = Scene::new("check-proves", Era::Bookworm);
    let (_, _alice) = scene.session(&scene.alice, "alice");
    let before = scene.enforcer.status()["counters"].clone();
    let said = scene.enforcer.cli(&["check"]).code(DONE).stdout;
    for proved in [
        "outer wan0: a probe packet was dropped, and passes without its entry",
        "inner lan0: probe packets were dropped in both directions",
        "1 tunnel device: probe packets were dropped in both directions, by device and by address",
    ] {
        assert!(said.contains(proved), "{proved}: {said}");
    }
    let dropped = |counters: &Value| {
        let all = counters.as_array().unwrap().iter();
        all.filter(|one| one["reason"].as_str().unwrap().starts_with("dropped")).cloned().collect::<Vec<_>>()
    };
    assert_eq!(dropped(&before), dropped(&scene.enforcer.status()["counters"]), "probes are not counted");
    assert_eq!(drops(&scene), Vec::<Value>::new());
    // the daemon may have mended it before it is asked: then once more
    let said = (0..10)
        .find_map(|_| {
            let pins = std::fs::read_dir(scene.enforcer.pins().join("links")).unwrap().flatten();
            let outer = pins.map(|pin| pin.path()).find(|pin| pin.to_string_lossy().contains("-outer-"));
            detach(&outer.unwrap());
            let said = scene.enforcer.cli(&["check"]);
            (said.code == ERROR).then_some(said.stdout)
        })
        .expect("a detached program is found");
    assert!(said.contains("outer wan0: NOT in force: outer: somebody has detached its program"), "{said}");
    assert!(said.contains("inner lan0: probe packets were dropped"), "its neighbour is well: {said}");
    eventually("the daemon attaches it anew", BOUND, || {
        let said = scene.enforcer.cli(&["check"]);
        (said.code == DONE && said.stdout.contains("outer wan0: a probe packet was dropped")).then_some(())
    });
}

/// BPF_OBJ_GET and BPF_LINK_DETACH, as `bpftool link detach pinned` does.
fn detach(pin: &std::path::Path) {
    use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
    let path = std::ffi::CString::new(pin.to_str().unwrap()).unwrap();
    let attributes = [path.as_ptr() as u64, 0];
    // SAFETY: the path outlives the call; the descriptor is new; BPF_LINK_DETACH reads a descriptor alone.
    unsafe {
        let fd = libc::syscall(libc::SYS_bpf, 7, &raw const attributes, 16);
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        let link = OwnedFd::from_raw_fd(i32::try_from(fd).unwrap());
        let number = link.as_raw_fd();
        let done = libc::syscall(libc::SYS_bpf, 34, &raw const number, 4);
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }
}
