//! The lab's own parts, without a daemon: what a wire does to what goes through it, and who can reach whom.

use std::time::Duration;

use enforcer_tests::gateways::{A, B, C, Plan};
use enforcer_tests::traffic::Route;
use enforcer_tests::wire::Way;
use enforcer_tests::{Connect, Flood, Lab, Wire};

/// A wire that is cut one way lets the other way through; slow, nothing comes sooner; lossy, some are lost and some not; and
/// healed it is as before.
#[test]
fn a_wire_is_cut_slow_and_lossy_as_it_is_told() {
    let lab = Lab::new("wires");
    let [near, far] = ["near", "far"].map(|name| lab.namespace(name));
    let wire = Wire::lay((&near, "w0"), (&far, "w0"));
    near.ip("addr add 192.0.2.1/24 dev w0\n");
    far.ip("addr add 192.0.2.2/24 dev w0\n");
    let out = Flood::start(&Route::new(&near, &far, [192, 0, 2, 2].into()), 200);
    let back = Flood::start(&Route::new(&far, &near, [192, 0, 2, 1].into()), 200);
    out.flowing();
    back.flowing();
    wire.cut(&[Way::Out]);
    // what had come through is read before it is counted
    out.wait_sent(20);
    let before = out.received().len();
    out.wait_sent(50);
    assert_eq!(out.received().len(), before, "cut, and packets come");
    back.flowing();
    wire.heal();
    out.flowing();
    let delay = Duration::from_millis(80);
    wire.slow(delay);
    let slow = Flood::start(&Route::new(&near, &far, [192, 0, 2, 2].into()), 50);
    slow.flowing();
    let soon: Vec<_> = slow.received().into_iter().filter(|packet| packet.at - packet.sent < delay).collect();
    assert!(soon.is_empty(), "sooner than the wire is long: {soon:?}");
    wire.heal();
    wire.lossy(300);
    let (came, lost) = wire.carried(Way::Out);
    out.wait_sent(300);
    let (came, lost) = (wire.carried(Way::Out).0 - came, wire.carried(Way::Out).1 - lost);
    assert!(came > lost && lost > 0, "{came} came through, {lost} were lost");
}

/// Three stock gateways: the same user goes to any of them and reaches the LAN host; a cookie of one is worth nothing on
/// another. Cut off from etcd, a gateway reaches no member, and its clients notice nothing.
#[test]
fn any_client_goes_to_any_gateway_and_each_gateway_to_etcd() {
    let mut world = Plan::new("lab-three").unguarded().start();
    let clients = ["ann", "ben", "cat"].map(|name| world.lab.client(name));
    let mut sessions = Vec::new();
    for (place, client) in [A, B, C].into_iter().zip(&clients) {
        let (cookie, tunnel) = client.session(&world[place].server, "alice");
        let four = enforcer_tests::scene::Pair::new(&world.lab, client, &tunnel, false, 50);
        let six = enforcer_tests::scene::Pair::new(&world.lab, client, &tunnel, true, 50);
        four.flowing();
        six.flowing();
        sessions.push((cookie, tunnel, four));
    }
    let beside = Connect::default().device("tun9").no_routes();
    clients[0].connect(&world[B].server, &sessions[0].0, &beside).refused();
    clients[0].connect(&world[A].server, &sessions[0].0, &beside).up().kill();
    let reaches = |place: usize| {
        let mut ask = world[place].namespace.command("etcdctl");
        let endpoints = world.etcd.endpoints().join(",");
        ask.env("ETCDCTL_API", "3").args(["--endpoints", &endpoints, "--command-timeout", "2s", "get", "/x"]);
        enforcer_tests::process::output(ask, "").code == 0
    };
    assert!(reaches(A) && reaches(B) && reaches(C));
    for ways in [&[Way::In][..], &[Way::Out], &Way::BOTH] {
        world[B].wire.cut(ways);
        assert!(!reaches(B), "{ways:?} cut, and etcd is reached");
        assert!(reaches(A));
        sessions[1].2.flowing();
        world[B].wire.heal();
        world.lab.eventually("healed, and etcd is reached", || reaches(B).then_some(()));
    }
}
