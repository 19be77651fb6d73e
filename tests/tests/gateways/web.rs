//! Sessions at web gateways that take a place, and such that take none.

use enforcer::web::link::{Cause, LinkError};
use enforcer_tests::gateways::{A, B, C, Plan};

fn counting(name: &str) -> Plan {
    Plan::new(name).web().at_most(1).set("policy", "web-sessions", "\"count\"")
}

/// R1, R2, R3: alice goes from a browser at A to a tunnel on B, from there to a browser at C, and from there to one at A: what she
/// leaves is over, bob's stays. She is revoked on B, and can log in again.
#[test]
fn r1_r2_r3_she_goes_from_browser_to_tunnel_and_back() {
    let mut world = counting("gws-web").start();
    let (at_a, at_c) = (world.web(A), world.web(C));
    let (hers, his) = (world.lab.client("hers"), world.lab.client("his"));
    let browser = at_a.login("alice", 1).unwrap();
    let bobs = at_a.login("bob", 2).unwrap();
    let mut vpn = world.session(B, &hers, "alice");
    world.lab.eventually("her browser's session at A is over", || at_a.was_ended(&browser));
    assert_eq!(at_a.was_ended(&browser), Some(Cause::Revoked));
    assert!(!at_a.is_alive(1));
    let second = at_c.login("alice", 3).unwrap();
    world.ends(&mut vpn);
    world.refused(&hers, B, &vpn.cookie);
    assert!(at_c.is_alive(3) && at_c.was_ended(&second).is_none(), "she is there, and no two go to and fro");
    let third = at_a.login("alice", 4).unwrap();
    world.lab.eventually("her browser's session at C is over", || at_c.was_ended(&second));
    let owners = world.has_stored("owners/default/alice");
    assert_eq!(owners.value["holders"].as_array().map(Vec::len), Some(1), "{:?}", owners.value);
    world[B].order(&["disconnect", "user", "-i", "alice"]).code(0);
    assert!(!at_a.is_alive(4) && at_a.was_ended(&third) == Some(Cause::Revoked));
    at_a.login("alice", 5).unwrap();
    assert!(at_a.is_alive(2) && at_a.was_ended(&bobs).is_none(), "bob's is his");
    let all = world[B].enforcer.cli(&["show", "sessions", "--all", "--json"]).code(0).json;
    let kinds: Vec<_> =
        enforcer_tests::receipt::list(&all, "sessions").iter().map(|row| row["kind"].clone()).collect();
    assert_eq!(kinds, ["web", "web"], "{all}");
    // bob's place is his browser's: a tunnel takes it
    world.session(C, &his, "bob");
    world.lab.eventually("his browser's session is over", || at_a.was_ended(&bobs));
}

/// R3, R4, R5: where new ones are refused, a browser is refused while the tunnel is there, and a tunnel while the browser's session
/// is; who has logged out leaves the place at once.
#[test]
fn r3_r4_r5_where_new_ones_are_refused_a_browser_is_one() {
    let plan = counting("gws-web-refuse").set("policy", "when-full", "\"refuse-new\"");
    let mut world = plan.ocserv(|ocserv| ocserv.set("persistent-cookies", "false")).start();
    let at_c = world.web(C);
    let (hers, other) = (world.lab.client("hers"), world.lab.client("other"));
    let mut vpn = world.session(A, &hers, "alice");
    assert!(matches!(at_c.login("alice", 1), Err(LinkError::Full(_))));
    at_c.login("bob", 2).unwrap();
    assert!(!vpn.tunnel.ended() && vpn.tunnel.reconnects() == 0);
    vpn.tunnel.log_out();
    let session = world.lab.eventually("her place is free", || at_c.login("alice", 3).ok());
    // R5: her place is hers over a restart
    world[C].enforcer.kill();
    world[C].enforcer.start();
    world.settled();
    at_c.connected();
    world.refuses_everywhere(&other, "alice");
    at_c.runtime.block_on(at_c.link().end_key(&session.key, Cause::Logout)).unwrap();
    world.session(B, &other, "alice");
}

/// The twin: sessions that do not count take no place, and their logins need no etcd; one that counts is refused while nobody can
/// be asked, and is let in when etcd is back.
#[test]
fn r3_r5_web_sessions_apart_and_while_etcd_is_away() {
    let mut apart = Plan::new("gws-web-apart").web().at_most(1).start();
    let mut counts = counting("gws-web-away").set("cluster", "login-wait", "\"1s\"").start();
    let hers = apart.lab.client("hers");
    let mut vpn = apart.session(B, &hers, "alice");
    let (free, bound) = (apart.web(A), counts.web(A));
    for world in [&mut apart, &mut counts] {
        world.etcd.kill_all();
    }
    free.login("alice", 1).unwrap();
    assert!(free.is_alive(1) && !vpn.tunnel.ended());
    assert!(matches!(bound.login("alice", 1), Err(LinkError::Unavailable(_))));
    counts.etcd.start_all();
    counts.lab.eventually("etcd is back", || bound.login("alice", 2).ok());
}
