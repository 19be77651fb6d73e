//! An administrator writes what is to hold with etcdctl, at no gateway.

use enforcer_tests::gateways::{A, B, C, Gateways, PREFIX};

/// R1, R2, R3, R4: a revocation and then a lock of alice, written by hand, are in force on all; the lock is taken back by hand
/// too. Miss twin: bob.
#[test]
fn r1_r2_an_administrator_writes_with_etcdctl() {
    let mut world = Gateways::new("gws-etcdctl");
    let [hers, bobs] = ["hers", "bobs"].map(|name| world.lab.client(name));
    let mut session = world.session(B, &hers, "alice");
    let bob = world.session(B, &bobs, "bob");
    let flows = world.flood(&bobs, &bob, 50);
    world.etcd.put(&format!("{PREFIX}from/admin/users/default/alice"), r#"{"reason": "lost her laptop"}"#);
    world.settled();
    world.ends(&mut session);
    world.refused(&hers, B, &session.cookie);
    world.lets_in_everywhere(&hers, "alice");
    let mut again = world.session(C, &hers, "alice");

    let lock = "from/admin/locks/default/alice";
    world.etcd.put(&format!("{PREFIX}{lock}"), r#"{"reason": "left the house"}"#);
    world.settled();
    world.ends(&mut again);
    world.refuses_everywhere(&hers, "alice");
    flows.flowing();
    world.lets_in_everywhere(&hers, "bob");

    let up_to = world.has_stored(lock).revision;
    let lift = format!("{PREFIX}from/admin/lifts/admin/locks/default/alice");
    world.etcd.put(&lift, &format!("{{\"upTo\": \"{up_to}\"}}"));
    world.settled();
    world.lets_in_everywhere(&hers, "alice");
    world.refused(&hers, C, &again.cookie);
    flows.flowing();
    // R4: written once more it is a new word, and ends what has come since
    let mut third = world.session(A, &hers, "alice");
    world.etcd.put(&format!("{PREFIX}from/admin/users/default/alice"), r#"{"reason": "and again"}"#);
    world.settled();
    world.ends(&mut third);
    world.lets_in_everywhere(&hers, "alice");
}
