//! A revocation that is entered on one gateway is in force on all.

use enforcer_tests::gateways::{A, B, C, Gateways, hammered, none_let_in};
use enforcer_tests::lab::LAN;
use enforcer_tests::receipt::list;
use enforcer_tests::traffic::FLOOD;
use enforcer_tests::{Connect, Moment, Tap};

/// R1, R2, R3, R4, R6: alice has sessions on B and on C, and a cookie on B with which a client hammers; she is revoked on A.
/// When that is answered no packet of hers passes, in either direction; none of her cookies is worth anything; a fresh login
/// is let in at once; and the receipt names both others as done. Miss twin: bob on B loses no packet.
#[test]
fn r1_r2_r3_r4_a_revocation_on_one_ends_the_sessions_on_all() {
    let mut world = Gateways::new("gws-all");
    let [here, there, thief, bobs] = ["here", "there", "thief", "bobs"].map(|name| world.lab.client(name));
    let tap = Tap::start(&world[B].namespace);
    let mut one = world.session(B, &here, "alice");
    let mut other = world.session(C, &there, "alice");
    let stolen = thief.authenticate(&world[B].server, "alice");
    let bob = world.session(B, &bobs, "bob");
    let floods = [world.flood(&here, &one, FLOOD), world.flood(&there, &other, FLOOD / 5)];
    for flood in &floods {
        flood.flowing();
    }
    let mut neighbour = world.flood(&bobs, &bob, FLOOD / 5);
    neighbour.flowing();
    let name = world[B].server.session_at("alice", one.tunnel.v4).device;
    let device = tap.last_out(&name, one.tunnel.ip(false)).expect("packets to her").index;
    let begun = Moment::now();
    let (answered, tries) = hammered(&world, (&thief, B, &stolen), || {
        let answer = world[A].order(&["disconnect", "user", "-i", "alice"]).code(0);
        let receipt = answer.receipt();
        assert_eq!((receipt.done("gateways"), receipt.failed("gateways")), (2, 0), "{}", answer.stdout);
        assert!(receipt.complete(), "{}", answer.stdout);
        for flood in &floods {
            flood.stopped_at(answer.answered, 50);
        }
        // by its number: whoever hammers is given a device of the same name, and refused
        let late = tap.seen(|packet| {
            packet.outgoing
                && packet.at > answer.answered
                && (packet.index == device || packet.device == LAN)
                && (packet.touches(one.tunnel.ip(false)) || packet.touches(one.tunnel.ip(true)))
        });
        assert!(late.is_empty(), "{} packets left after the answer: {late:?}", late.len());
        world.ends(&mut one);
        world.ends(&mut other);
        // a fresh one may be given the same address, so only now
        for place in [B, C] {
            let beside = Connect::default().device("tun8").no_routes();
            here.session_by(&world[place].server, "alice", &beside).1.log_out();
        }
        for session in [&one, &other] {
            world.refused(&there, session.place, &session.cookie);
        }
        answer.answered
    });
    none_let_in(&tries, answered);
    neighbour.lost_nothing(begun, Moment::now());
    world.settled();
}

/// R2, R3, R6: one session is named, by its safe_id, on a gateway where it is not: it ends where it is, and its cookie is
/// worth nothing there. Miss twin: alice's other session, on the same gateway, goes on.
#[test]
fn r2_r3_a_session_that_is_named_elsewhere_ends_alone() {
    let mut world = Gateways::new("gws-named");
    let [named, spared] = ["named", "spared"].map(|name| world.lab.client(name));
    let mut one = world.session(C, &named, "alice");
    let mut other = world.session(C, &spared, "alice");
    let flows = world.flood(&spared, &other, 50);
    let answer = world[A].order(&["terminate", "session", &one.safe_id]).code(0);
    assert_eq!(answer.receipt().done("gateways"), 2, "{}", answer.stdout);
    world.ends(&mut one);
    world.refused(&named, C, &one.cookie);
    flows.flowing();
    assert!(!other.tunnel.ended());
    assert_eq!(other.tunnel.reconnects(), 0);
    // R7: once all have it, nobody needs its record any more
    let record = |key: &str| key.starts_with("from/") && key.contains("/sessions/");
    world.lab.eventually("the session's record is taken out", || {
        (!world.stored().keys().any(|key| record(key))).then_some(())
    });
    world.refused(&named, C, &one.cookie);
}

/// R6: what means something on one gateway alone is not told to the others, and its receipt does not speak of them.
#[test]
fn r6_what_is_for_one_gateway_is_not_told_to_the_others() {
    let mut world = Gateways::new("gws-local");
    let client = world.lab.client("client");
    let mut session = world.session(A, &client, "alice");
    let id = world[A].server.session_at("alice", session.tunnel.v4).id.to_string();
    let local = [
        vec!["revoke", "address", "192.0.2.7", "--for", "1h"],
        vec!["revoke", "flow", "tcp", "192.0.2.7:1", "192.0.2.8:443", "--for", "1h"],
        vec!["disconnect", "id", "-i", &id],
    ];
    for words in local {
        let answer = world[A].order_at_once(&words).code(0);
        let layers: Vec<_> =
            list(&answer.json, "layers").iter().map(|layer| layer["layer"].clone()).collect();
        assert!(!layers.contains(&"gateways".into()), "{words:?}: {layers:?}");
    }
    world.ends(&mut session);
    let of_records = |key: &String| key.starts_with("from/") && !key.ends_with("/barrier");
    let stored = world.stored();
    let told: Vec<_> = stored.keys().filter(|key| of_records(key)).collect();
    assert!(told.is_empty(), "{told:?}");
}
