//! R7, and how fast it is, printed and not asserted: `cargo xtask bench cluster` measures it.

use std::time::Duration;

use enforcer_tests::gateways::{B, C, Gateways, revoke_many};

const PEOPLE: u32 = 10_000;

/// R7: ten thousand people are revoked on A in one stream: all of it is in force everywhere, and none of it is lost. Afterwards
/// a login on C is let in, and whoever was among them has to be new.
#[test]
fn r7_measured_very_many_are_revoked_at_once() {
    let mut world = Gateways::new("gws-many");
    let client = world.lab.client("client");
    let mut session = world.session(C, &client, "alice");
    let (answered, everywhere) = revoke_many(&world, PEOPLE);
    let rate = |time: Duration| f64::from(PEOPLE) / time.as_secs_f64();
    eprintln!(
        "{PEOPLE} revocations of people on one gateway: {:.0}/s answered, {:.0}/s in force on all three",
        rate(answered),
        rate(everywhere)
    );
    let stored = world.stored();
    let told = stored.keys().filter(|key| key.starts_with("from/") && key.contains("/users/")).count();
    assert_eq!(told, PEOPLE as usize, "each of them has a key");
    world.ends(&mut session);
    world.refused(&client, C, &session.cookie);
    world.session(B, &client, "alice");
}
