//! All of etcd is away: what is known stays in force, what is decided holds here at once and everywhere later.

use enforcer_tests::Ocserv;
use enforcer_tests::enforcer::PARTIAL;
use enforcer_tests::etcd::NOTICED;
use enforcer_tests::gateways::{A, B, C, Gateways, Ledger, Plan};
use enforcer_tests::process::eventually;
use enforcer_tests::traffic::FLOOD;

/// alice is one of the guests, for whom there is no need of etcd.
fn with_guests(name: &str) -> Plan {
    Plan::new(name)
        .set("cluster", "login-wait", "\"3s\"")
        .set("cluster.groups.guests", "when-away", "\"open\"")
        .ocserv(|ocserv: Ocserv| ocserv.user("guest").member("guest", "guests"))
}

/// Every gateway has noticed that etcd is away.
#[track_caller]
fn noticed(world: &Gateways) {
    for gateway in world.iter() {
        eventually(&format!("{} notices that etcd is away", gateway.name), NOTICED, || {
            (!gateway.is_connected()).then_some(())
        });
    }
}

/// R1, R3, R5, R6: revoked on A while etcd is away, alice's session on A ends at once and her cookie is worth nothing; the
/// receipt says that the others do not know, and its exit code that this is a part; her session on B goes on, since nobody
/// there could know. A lock is the same. Logins: bob's group is closed then, the guests are let in. etcd is back: all of it is in
/// force everywhere, and nothing is left to be told. Miss twins: bob's session, and the guest's.
#[test]
fn r1_r3_r5_r6_what_is_decided_while_etcd_is_away_is_delivered() {
    let mut world = with_guests("gws-away").start();
    let hosts: Vec<_> = (0..5).map(|number| world.lab.client(&format!("h{number}"))).collect();
    let mut ledger = Ledger::default();
    let here = ledger.session(&world, A, &hosts[0], "alice");
    ledger.session(&world, B, &hosts[1], "alice");
    ledger.session(&world, B, &hosts[2], "bob");
    ledger.session(&world, C, &hosts[3], "carol");
    let flood = world.flood(&hosts[0], ledger.get(here), FLOOD);
    flood.flowing();
    world.etcd.kill_all();

    let given = ledger.revokes("alice");
    let answer = world[A].order_at_once(&["disconnect", "user", "-i", "alice"]).code(PARTIAL);
    let receipt = answer.receipt();
    assert_eq!((receipt.done("gateways"), receipt.failed("gateways")), (0, 2), "{}", answer.stdout);
    assert_eq!(
        receipt.failed("packets") + receipt.failed("sockets") + receipt.failed("disk"),
        0,
        "{}",
        answer.stdout
    );
    flood.stopped_at(answer.answered, 50);
    world.refused(&hosts[0], A, &ledger.get(here).cookie);
    ledger.answered(given);
    let given = ledger.locks("carol");
    world[B].order_at_once(&["lock", "user", "carol"]).code(PARTIAL);
    ledger.answered(given);
    assert!(world[B].shows(&ledger.get(here + 1).safe_id), "nobody has told B");

    noticed(&world);
    let closed = hosts[4].authenticate(&world[A].server, "bob");
    world.refused(&hosts[4], A, &closed);
    let guest = world.session(A, &hosts[4], "guest");
    let flows = world.flood(&hosts[4], &guest, 50);
    flows.flowing();

    world.etcd.start_all();
    ledger.check(&world);
    ledger.lets_in(&world);
    flows.flowing();
}

/// R5: what was decided while etcd was away is delivered also when the daemon that was asked has been killed meanwhile, and
/// when it and etcd come back in any order: a revocation, and a lock; and a lock that was taken back locks nobody. Miss twin: bob.
#[test]
fn r5_what_waits_for_etcd_survives_the_daemon() {
    let mut world = with_guests("gws-letter").start();
    let hosts: Vec<_> = (0..3).map(|number| world.lab.client(&format!("h{number}"))).collect();
    let mut ledger = Ledger::default();
    for (round, is_first) in [(0, "etcd"), (1, "the daemon")] {
        ledger.session(&world, B, &hosts[0], "alice");
        if round == 0 {
            ledger.session(&world, C, &hosts[1], "carol");
            ledger.session(&world, B, &hosts[2], "bob");
        }
        world.etcd.kill_all();
        let given = ledger.revokes("alice");
        world[A].order_at_once(&["disconnect", "user", "-i", "alice"]).code(PARTIAL);
        ledger.answered(given);
        let given = ledger.locks("carol");
        world[A].order_at_once(&["lock", "user", "carol"]).code(PARTIAL);
        ledger.answered(given);
        if round == 0 {
            // taken back before anybody has heard of it
            let given = ledger.unlocks("carol");
            world[A].order_at_once(&["unlock", "user", "carol"]).code(PARTIAL);
            ledger.answered(given);
        }
        world[A].enforcer.kill();
        if is_first == "etcd" {
            world.etcd.start_all();
            world[A].enforcer.start();
        } else {
            world[A].enforcer.start();
            world.etcd.start_all();
        }
        ledger.check(&world);
    }
    ledger.lets_in(&world);
}
