//! A part is away: a member of etcd, its leader, or the way from one gateway to it.

use std::time::Duration;

use enforcer_tests::Moment;
use enforcer_tests::enforcer::{DONE, PARTIAL};
use enforcer_tests::gateways::{A, B, C, Gateways, Ledger, Plan, hammered, none_let_in};
use enforcer_tests::wire::Way;

/// An order whose answer may say that others have not confirmed yet.
#[track_caller]
fn revoke(world: &Gateways, ledger: &mut Ledger<'_>, place: usize, user: &str) {
    let given = ledger.revokes(user);
    let answer = world[place].order(&["disconnect", "user", "-i", user]);
    assert!([DONE, PARTIAL].contains(&answer.code), "{answer:?}");
    ledger.answered(given);
}

/// R1, R2, R3, R5: a member of etcd is killed, then its leader, and each time alice is revoked while it is away: it comes into
/// force everywhere without that member, and nobody else is touched.
#[test]
fn r1_r5_a_member_and_the_leader_of_etcd_are_killed() {
    let mut world = Gateways::new("gws-member");
    let hosts = ["hers", "bobs"].map(|name| world.lab.client(name));
    let mut ledger = Ledger::default();
    ledger.session(&world, C, &hosts[1], "bob");
    for (round, is_leader) in [false, true, true].into_iter().enumerate() {
        ledger.session(&world, B, &hosts[0], "alice");
        let leader = world.etcd.leader();
        let place = if is_leader { leader } else { (leader + 1) % 3 };
        world.etcd.kill(place);
        revoke(&world, &mut ledger, A, "alice");
        ledger.check(&world);
        world.etcd.start_member(place);
        world.etcd.healthy();
        eprintln!("round {round}: done");
    }
    ledger.lets_in(&world);
}

/// R1, R2, R3, R5, R6: B is cut off from etcd, both ways and one way, and alice, who has a session there, is revoked on A: the
/// receipt names B as the one that does not know; no cookie of hers that is not in use passes there meanwhile; after healing it
/// is in force there too. Miss twin: bob's session on B, which notices nothing.
#[test]
fn r1_r2_r5_r6_a_gateway_is_cut_off_while_a_user_of_its_is_revoked() {
    let plan = Plan::new("gws-cut").set("cluster", "login-wait", "\"2s\"");
    let mut world = plan.start();
    let [hers, bobs, offline] = ["hers", "bobs", "offline"].map(|name| world.lab.client(name));
    let mut ledger = Ledger::default();
    ledger.session(&world, B, &bobs, "bob");
    for ways in [&Way::BOTH[..], &[Way::In], &[Way::Out]] {
        ledger.session(&world, B, &hers, "alice");
        let stolen = offline.authenticate(&world[B].server, "alice");
        world[B].wire.cut(ways);
        let given = ledger.revokes("alice");
        let answer = world[A].order_at_once(&["disconnect", "user", "-i", "alice"]).code(PARTIAL);
        assert_eq!(answer.receipt().done("gateways"), 1, "{ways:?}: {}", answer.stdout);
        assert_eq!(answer.receipt().failed("gateways"), 1, "{ways:?}: {}", answer.stdout);
        ledger.answered(given);
        let pending = |world: &Gateways| world[A].says_of("gw-b").map(|shown| shown.pending());
        assert!(pending(&world) > Some(0), "{ways:?}: {:?}", world[A].gateways());
        // closed: nobody is let in whom the others may have ended
        let (begun, tries) = hammered(&world, (&offline, B, &stolen), || {
            let begun = Moment::now();
            world.refused(&offline, B, &stolen);
            world[B].wire.heal();
            world.settled();
            ledger.check(&world);
            begun
        });
        none_let_in(&tries, begun);
        assert_eq!(pending(&world), Some(0), "{ways:?}");
    }
    ledger.lets_in(&world);
}

/// R2, R5: a gateway whose daemon does not run while alice is revoked elsewhere: her cookie there does not pass, neither while
/// the daemon is away nor in the moment in which it starts. Miss twin: bob's cookie passes when it is there again.
#[test]
fn r2_r5_a_gateway_that_was_stopped_catches_up_before_it_lets_anyone_in() {
    for is_killed in [false, true] {
        let plan = Plan::new("gws-stopped").set("cluster", "login-wait", "\"5s\"");
        let mut world = plan.start();
        let [hers, bobs] = ["hers", "bobs"].map(|name| world.lab.client(name));
        let alice = world.session(B, &hers, "alice");
        let bob = world.session(B, &bobs, "bob");
        alice.tunnel.kill();
        bob.tunnel.kill();
        let stop = |world: &mut Gateways| {
            if is_killed { world[B].enforcer.kill() } else { world[B].enforcer.stop() }
        };
        stop(&mut world);
        world[A].order_at_once(&["disconnect", "user", "-i", "alice"]).code(PARTIAL);
        world.refused(&hers, B, &alice.cookie);
        // the daemon starts while a client hammers
        let mut tried = 0;
        world[B].enforcer.launch();
        let end = std::time::Instant::now() + Duration::from_secs(60);
        loop {
            world.refused(&hers, B, &alice.cookie);
            tried += 1;
            let is_up = world[B].enforcer.cli(&["show", "status", "--json"]).code == DONE;
            if is_up && tried > 5 {
                break;
            }
            assert!(std::time::Instant::now() < end, "the daemon does not come");
        }
        world.settled();
        world.refused(&hers, B, &alice.cookie);
        world.session_of(B, &bobs, "bob", bob.cookie);
        world.session(B, &hers, "alice");
        assert_eq!(world[C].says_of("gw-b").map(|shown| shown.pending()), Some(0));
    }
}

/// R1, R3, R5: while a quarter of what goes between B and etcd is lost, and what is left takes a tenth of a second, sessions on B
/// are ended by A's word all the same, and nobody else's.
#[test]
fn r1_r3_a_bad_line_to_etcd_loses_nothing() {
    let mut world = Gateways::new("gws-bad-line");
    let [hers, bobs] = ["hers", "bobs"].map(|name| world.lab.client(name));
    let mut ledger = Ledger::default();
    ledger.session(&world, B, &bobs, "bob");
    for round in 0..3 {
        ledger.session(&world, B, &hers, "alice");
        world[B].wire.slow(Duration::from_millis(100));
        world[B].wire.lossy(if round == 0 { 0 } else { 250 });
        revoke(&world, &mut ledger, A, "alice");
        world.lab.eventually("B is told over the bad line", || {
            (!world[B].shows(&ledger.get(1 + round).safe_id)).then_some(())
        });
        world[B].wire.heal();
        ledger.check(&world);
    }
    ledger.lets_in(&world);
}
