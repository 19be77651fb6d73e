//! Order is etcd's revision, never a clock.

use enforcer_tests::gateways::{A, B, C, Ledger, Plan};

/// R1, R2, R4: one gateway's clock (its ocserv's, its gate's, its daemon's) is a day before the others', or a day behind. A
/// revocation of alice's from there ends what was admitted before it on the others and no session that comes after it; and so
/// the other way round. With one place for each, the later one wins, whatever the clocks say. Miss twin: bob.
fn clock_is_wrong(name: &str, by: &str) {
    let mut world = Plan::new(name).set("policy.users.carol", "max-sessions", "1").skew(B, by).start();
    let hosts: Vec<_> = (0..6).map(|number| world.lab.client(&format!("h{number}"))).collect();
    let mut ledger = Ledger::default();
    ledger.session(&world, B, &hosts[2], "bob");
    ledger.session(&world, C, &hosts[3], "bob");
    for orders in [B, A] {
        ledger.session(&world, B, &hosts[0], "alice");
        ledger.session(&world, C, &hosts[1], "alice");
        let given = ledger.revokes("alice");
        world[orders].order(&["disconnect", "user", "-i", "alice"]).code(0);
        ledger.answered(given);
        // what comes after it stays, on every gateway, also when they have all read the record
        ledger.lets_in(&world);
        ledger.check(&world);
    }
    let mut first = world.session(B, &hosts[4], "carol");
    let mut second = world.session(C, &hosts[5], "carol");
    world.ends(&mut first);
    world.refused(&hosts[4], B, &first.cookie);
    let third = world.session(B, &hosts[4], "carol");
    world.ends(&mut second);
    world.refused(&hosts[5], C, &second.cookie);
    world.flood(&hosts[4], &third, 50).flowing();
    world[B].order(&["lock", "user", "alice"]).code(0);
    world.refuses_everywhere(&hosts[0], "alice");
    world[C].order(&["unlock", "user", "alice"]).code(0);
    world.lets_in_everywhere(&hosts[0], "alice");
    ledger.check(&world);
}

#[test]
fn r1_r2_r4_a_clock_a_day_ahead() {
    clock_is_wrong("gws-ahead", "+1d");
}

#[test]
fn r1_r2_r4_a_clock_a_day_behind() {
    clock_is_wrong("gws-behind", "-1d");
}
