//! Sessions at web gateways that take a place, and such that take none.

use std::sync::atomic::{AtomicBool, Ordering};

use enforcer::session::WebDigest;
use enforcer::web::link::{Cause, LinkError};
use enforcer_tests::gateways::{A, B, C, Plan, revoke_all};
use enforcer_tests::web_link::new_session;
use futures::future::join_all;

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
    // R5: her place is hers over a restart. A login is answered before the disk has it, a revocation after that, and after all that
    // came before it
    world[C].order_at_once(&["disconnect", "user", "-i", "bob"]).code(0);
    world[C].enforcer.kill();
    world[C].enforcer.start();
    world.settled();
    at_c.connected();
    world.refuses_everywhere(&other, "alice");
    at_c.runtime.block_on(at_c.link().end_key(&session.key, Cause::Logout)).unwrap();
    world.session(B, &other, "alice");
}

/// R1, R4: logins at A meet revocations on B: whose place is written before the revocation has no session after it, whose place is
/// written later keeps it, and nobody else is ended. etcd's revisions are the judge; what it has stays, for C is away.
#[test]
fn r1_r4_of_logins_that_meet_revocations_those_that_came_first_are_ended() {
    const MANY: u16 = 600;
    const AT_ONCE: u16 = 30;
    let mut world = counting("gws-web-meet").start();
    let at_a = world.web(A);
    world[C].enforcer.kill();
    let name = |n: u16| if n.is_multiple_of(10) { format!("neighbour{n}") } else { format!("user{n}") };
    let digest = |n: u16| {
        let [high, low] = n.to_be_bytes();
        WebDigest::from_bytes(std::array::from_fn(|place| if place.is_multiple_of(2) { high } else { low }))
    };
    let socket = world[B].enforcer.control_socket();
    let mut answers = Vec::new();
    for from in (0..MANY).step_by(usize::from(AT_ONCE)) {
        let wave = from..from + AT_ONCE;
        let revoked: Vec<String> = wave.clone().map(name).filter(|name| name.starts_with("user")).collect();
        let logins =
            wave.map(|n| at_a.link().create(new_session(&name(n), digest(n), vec![7; 60], "a browser")));
        let is_over = AtomicBool::new(false);
        answers.extend(std::thread::scope(|scope| {
            scope.spawn(|| {
                // a part of them each time, so that some come behind the last
                for some in revoked.chunks(4).cycle() {
                    revoke_all(&socket, some, 1);
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            let answers = at_a.runtime.block_on(join_all(logins));
            is_over.store(true, Ordering::Relaxed);
            answers
        }));
    }
    world.lab.eventually("A has all of it in force", || {
        let gateways = world[B].gateways();
        let its = gateways.iter().find(|one| one.name() == world[A].name)?;
        (world[B].letters() == 0 && its.pending() == 0).then_some(())
    });
    let stored = world.stored();
    let by = world[B].id();
    let (mut alive, mut ended, mut refused) = (0, 0, 0);
    for (n, answer) in (0..MANY).zip(answers) {
        let name = name(n);
        let lives =
            at_a.runtime.block_on(at_a.link().check(&digest(n))).expect("the daemon answers").is_some();
        let owners = stored.get(&format!("owners/default/{name}"));
        let record = stored.get(&format!("from/{by}/users/default/{name}"));
        match (&answer, lives) {
            (Ok(_), true) => alive += 1,
            (Ok(_), false) => ended += 1,
            (Err(LinkError::Gone), false) => refused += 1,
            other => panic!("{name}: {other:?}"),
        }
        if lives {
            let place = owners.unwrap_or_else(|| panic!("{name} has a place")).revision;
            assert!(record.is_none_or(|record| place > record.revision), "{name}: {place}, {record:?}");
        } else {
            assert!(record.is_some(), "{name} was not meant");
        }
    }
    println!("{alive} are there, {ended} were ended, {refused} were refused");
    world.lab.eventually("who is not there has no place", || {
        let stored = world.stored();
        (stored.keys().filter(|key| key.starts_with("owners/")).count() == alive).then_some(())
    });
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
