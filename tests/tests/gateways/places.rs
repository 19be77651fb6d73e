//! How many sessions a person may have, and what becomes of the one that is too many.

use enforcer_tests::Moment;
use enforcer_tests::gateways::{A, B, C, Plan, Session, hammered, none_let_in};

/// R2, R3: with two places, the third session ends the oldest and no other.
#[test]
fn r2_r3_of_three_where_two_may_be_the_oldest_ends() {
    let mut world = Plan::new("gws-two").at_most(2).start();
    let hosts = ["one", "two", "three"].map(|name| world.lab.client(name));
    let mut sessions: Vec<Session> =
        [A, B, C].into_iter().zip(&hosts).map(|(place, host)| world.session(place, host, "alice")).collect();
    world.ends(&mut sessions[0]);
    world.refused(&hosts[0], A, &sessions[0].cookie);
    for n in [1, 2] {
        world.flood(&hosts[n], &sessions[n], 50).flowing();
        assert!(!sessions[n].tunnel.ended() && sessions[n].tunnel.reconnects() == 0);
    }
    let owners = world.has_stored("owners/default/alice");
    assert_eq!(owners.value["holders"].as_array().map(Vec::len), Some(2));
}

/// R3, R4: where a new one is refused, a second login is refused on every gateway and the first session goes on; when that one
/// has ended, because its user was revoked or has logged out, a fresh login is let in at once, on another gateway.
#[test]
fn r3_r4_where_new_ones_are_refused_the_first_stays_until_it_is_over() {
    let plan = Plan::new("gws-refuse").at_most(1).set("policy", "when-full", "\"refuse-new\"");
    let mut world = plan.ocserv(|ocserv| ocserv.set("persistent-cookies", "false")).start();
    let [hers, other] = ["hers", "other"].map(|name| world.lab.client(name));
    let mut first = world.session(A, &hers, "alice");
    let flows = world.flood(&hers, &first, 50);
    world.refuses_everywhere(&other, "alice");
    flows.flowing();
    assert!(!first.tunnel.ended() && first.tunnel.reconnects() == 0);
    world[C].order(&["disconnect", "user", "-i", "alice"]).code(0);
    world.ends(&mut first);
    let second = world.session(B, &other, "alice");
    world.refused(&hers, A, &first.cookie);
    second.tunnel.log_out();
    world.lab.eventually("her place is free", || {
        (!world.stored().contains_key("owners/default/alice")).then_some(())
    });
    world.session(C, &hers, "alice");
}

/// R4: a session that was revoked has no place any more, although ocserv keeps its cookie for as long as its client tries: where
/// new ones are refused, a fresh login is let in at once.
#[test]
fn r4_a_revoked_session_leaves_its_place_while_its_client_hammers() {
    let plan = Plan::new("gws-free").at_most(1).set("policy", "when-full", "\"refuse-new\"");
    let mut world = plan.start();
    let [hers, other] = ["hers", "other"].map(|name| world.lab.client(name));
    let mut first = world.session(A, &hers, "alice");
    world[C].order(&["disconnect", "user", "-i", "alice"]).code(0);
    world.ends(&mut first);
    let (second, tries) = hammered(&world, (&hers, A, &first.cookie), || world.session(B, &other, "alice"));
    none_let_in(&tries, Moment(0));
    world.flood(&other, &second, 50).flowing();
}

/// A user's own section comes before his group's, and that before the one for all: alice (her own: two), bob (a contractor: new
/// ones are refused), and dave (all: one, the newest wins).
#[test]
fn r2_each_has_the_places_that_the_policy_gives_him() {
    let plan = Plan::new("gws-policy")
        .at_most(1)
        .set("policy.groups.contractors", "max-sessions", "1")
        .set("policy.groups.contractors", "when-full", "\"refuse-new\"")
        .set("policy.users.alice", "max-sessions", "2");
    let people = |ocserv: enforcer_tests::Ocserv| {
        ocserv.user("dave").member("bob", "contractors").member("alice", "contractors")
    };
    let mut world = plan.ocserv(people).start();
    let hosts: Vec<_> = (0..6).map(|number| world.lab.client(&format!("h{number}"))).collect();
    let mut alices = [world.session(A, &hosts[0], "alice"), world.session(B, &hosts[1], "alice")];
    let mut bobs = world.session(A, &hosts[2], "bob");
    world.refuses_everywhere(&hosts[3], "bob");
    let mut dave = world.session(A, &hosts[4], "dave");
    let _second = world.session(C, &hosts[5], "dave");
    world.ends(&mut dave);
    world.refused(&hosts[4], A, &dave.cookie);
    for session in alices.iter_mut().chain([&mut bobs]) {
        assert!(!session.tunnel.ended() && session.tunnel.reconnects() == 0, "{}", session.user);
    }
}
