//! A lock is for all gateways, and is taken back on any of them.

use enforcer_tests::gateways::{A, B, C, Gateways};

/// R1, R2, R3, R4, R6: locked on A, alice's session on B ends and no fresh login of hers is let in anywhere; unlocked on C
/// she is let in everywhere, and what had ended stays ended. Miss twin: bob goes on and logs in meanwhile.
#[test]
fn r2_r4_a_lock_on_one_is_for_all_and_any_of_them_unlocks() {
    let mut world = Gateways::new("gws-lock");
    let [hers, bobs] = ["hers", "bobs"].map(|name| world.lab.client(name));
    let mut session = world.session(B, &hers, "alice");
    let bob = world.session(B, &bobs, "bob");
    let flows = world.flood(&bobs, &bob, 50);
    let answer = world[A].order(&["lock", "user", "alice"]).code(0);
    assert_eq!(answer.receipt().done("gateways"), 2, "{}", answer.stdout);
    world.ends(&mut session);
    world.refuses_everywhere(&hers, "alice");
    world.refused(&hers, B, &session.cookie);
    flows.flowing();
    world.lets_in_everywhere(&hers, "bob");
    let answer = world[C].order(&["unlock", "user", "alice"]).code(0);
    assert_eq!(answer.receipt().done("gateways"), 2, "{}", answer.stdout);
    world.lets_in_everywhere(&hers, "alice");
    world.refused(&hers, B, &session.cookie);
    flows.flowing();
    world.settled();
}

/// R4, R5, R6: a lock is lifted by its number where it was entered, and then she is let in everywhere; and neither the lock nor
/// the lift comes back when daemons are killed and started.
#[test]
fn r4_r5_a_lift_is_for_all_and_stays() {
    let mut world = Gateways::new("gws-lift");
    let hers = world.lab.client("hers");
    let number = world[A].order(&["lock", "user", "alice"]).code(0).receipt().number().unwrap();
    world[B].enforcer.kill();
    world[B].enforcer.start();
    world.refuses_everywhere(&hers, "alice");
    let answer = world[A].order(&["lift", &number.to_string()]).code(0);
    assert_eq!(answer.receipt().done("gateways"), 2, "{}", answer.stdout);
    world.lets_in_everywhere(&hers, "alice");
    for place in [A, C] {
        world[place].enforcer.kill();
        world[place].enforcer.start();
    }
    world.settled();
    world.lets_in_everywhere(&hers, "alice");
}

/// R2, R4: of two locks on one person the other one stands when one is lifted, on all gateways, also on one that reads everything
/// anew; when that is lifted too, she is let in everywhere.
#[test]
fn r2_r4_of_two_locks_the_other_stands_everywhere() {
    let mut world = Gateways::new("gws-two-locks");
    let hers = world.lab.client("hers");
    let numbers =
        [(); 2].map(|()| world[A].order(&["lock", "user", "alice"]).code(0).receipt().number().unwrap());
    world[A].order(&["lift", &numbers[1].to_string()]).code(0);
    world.refuses_everywhere(&hers, "alice");
    let events = world[A].enforcer.cli(&["show", "events"]).code(0);
    assert!(events.stdout.contains("is lifted on this gateway alone"), "{}", events.stdout);
    world[B].enforcer.kill();
    world[B].enforcer.start();
    world.settled();
    world.refuses_everywhere(&hers, "alice");
    let answer = world[A].order(&["lift", &numbers[0].to_string()]).code(0);
    assert_eq!(answer.receipt().done("gateways"), 2, "{}", answer.stdout);
    world.lets_in_everywhere(&hers, "alice");
}
