//! Who ends, and who does not: revocations, locks, times.

use super::*;

/// R1, R3, R6: alice's sessions are out of the table at once, bob's is not; the gateway is told after that, and the answer
/// waits until it says that it has closed what it had.
#[test]
fn r1_r3_r6_a_revocation_ends_web_sessions_and_waits_for_the_gateway() {
    let mut web = Web::new();
    web.watch(7);
    web.login("alice", 1);
    web.login("alice", 2);
    web.login("bob", 3);
    web.world.effects.clear();
    let request = web.world.revoke(user("alice"));
    assert!(!web.is_alive(1) && !web.is_alive(2) && web.is_alive(3));
    assert_eq!(web.told(7), [(key(1), WebCause::Revoked), (key(2), WebCause::Revoked)]);
    assert!(web.world.disk.web.keys().eq([&key(3)]), "and off the disk");
    web.ocserv_tells();
    web.close(7, 1, 2);
    web.close(7, 3, 9);
    assert!(!web.is_answered(request), "the second is not acknowledged");
    web.close(7, 2, 0);
    let told = web.web_layer(request);
    assert_eq!((told.done, told.guarded, told.failed), (2, 0, 0), "{told:?}");
    assert!(told.text.contains("2 connections closed"), "{told:?}");
    let receipt = web.world.receipt(request);
    assert!(receipt.is_complete() && receipt.sessions.is_empty());
    assert_eq!(receipt.web.iter().map(|row| row.key).collect::<Vec<_>>(), [key(1), key(2)]);
    assert_eq!(layer(receipt, Layer::Disk).failed, 0);
}

/// R4: a fresh login after the revocation is another session.
#[test]
fn r4_a_fresh_login_works_at_once_also_while_the_revocation_is_under_way() {
    let mut web = Web::new();
    web.watch(7);
    web.login("alice", 1);
    web.world.revoke(user("alice"));
    assert_eq!(web.login("alice", 2), WebAnswer::Alive(digest(2)));
    web.ocserv_tells();
    web.close(7, 1, 0);
    web.pass(10);
    assert!(web.is_alive(2) && !web.is_alive(1));
}

/// R3: one session by its key, and the other of the same user goes on. What is no session's key matches nothing.
#[test]
fn r3_one_session_by_its_key() {
    let mut web = Web::new();
    web.watch(7);
    web.login("alice", 1);
    web.login("alice", 2);
    let request = web.world.revoke(order(Target::Web(key(1))));
    web.close(7, 1, 1);
    let receipt = web.world.receipt(request);
    assert!(receipt.is_complete());
    assert_eq!(receipt.layers.iter().map(|l| l.layer).collect::<Vec<_>>(), [Layer::Web, Layer::Disk]);
    assert!(!web.is_alive(1) && web.is_alive(2));
    let request = web.world.revoke(order(Target::Web(key(1))));
    assert!(matches!(web.world.answers[&request], Answer::Nothing(_)));
    // on no ocserv
    let request = web.world.revoke(Order { server: Some(server()), ..order(Target::Web(key(2))) });
    assert!(matches!(web.world.answers[&request], Answer::Refused(_)));
    assert!(web.is_alive(2));
}

/// R3: an order for one ocserv server is none for the web.
#[test]
fn r3_an_order_for_one_server_leaves_web_sessions_alone() {
    let mut web = Web::new();
    web.login("alice", 1);
    let request = web.world.revoke(Order { server: Some(server()), ..user("alice") });
    web.ocserv_tells();
    assert!(matches!(web.world.answers[&request], Answer::Nothing(_)));
    assert!(web.is_alive(1));
}

/// VPN and web together: one revocation, one receipt.
#[test]
fn r1_one_revocation_ends_vpn_and_web_sessions() {
    let mut web = Web::new();
    web.watch(7);
    let vpn = web.world.connect("alice", 5, 5);
    web.login("alice", 1);
    let request = web.world.revoke(user("alice"));
    web.close(7, 1, 1);
    assert!(web.world.has(&Entry::Device(device(5))) && !web.is_alive(1));
    assert!(!web.is_answered(request), "the worker has not ended");
    web.world.list(vec![]);
    web.world.cookies(vec![]);
    web.world.end(vpn, 5);
    web.world.cookies(vec![]);
    let receipt = web.world.receipt(request);
    assert_eq!((receipt.sessions.len(), receipt.web.len()), (1, 1));
    assert!(receipt.is_complete(), "{receipt:?}");
}

/// A lock refuses a login and ends what is there, in either order; another person is not locked, and unlocked is unlocked.
#[test]
fn r2_a_lock_before_and_after_the_login() {
    let mut web = Web::new();
    web.login("alice", 1);
    web.login("bob", 2);
    let request = web.world.revoke(lock("alice", None));
    web.ocserv_tells();
    let number = web.world.receipt(request).number;
    assert!(!web.is_alive(1) && web.is_alive(2));
    assert_eq!(web.login("alice", 3), WebAnswer::Locked(number));
    assert_eq!(web.login("bob", 4), WebAnswer::Alive(digest(4)));
    web.world.unlock("alice");
    assert_eq!(web.login("alice", 5), WebAnswer::Alive(digest(5)));
    assert!(!web.is_alive(1), "what the lock has ended stays ended");
}

/// A name is somebody within a realm, whose case rule counts.
#[test]
fn r3_realms_keep_people_apart_and_their_case_rules_together() {
    let mut realms = Realms::default();
    realms.set_case("staff", Case::Fold);
    let mut web = Web { world: World::with(false, Rules { realms, ..Rules::default() }), next: 10_000 };
    web.login_to("staff", "Alice", 1);
    web.login_to("staff", "alice", 2);
    web.login("alice", 3);
    let staff = Identity { realm: "staff".into(), name: "alice".into() };
    web.world.revoke(order(Target::Lock(staff)));
    assert!(!web.is_alive(1) && !web.is_alive(2) && web.is_alive(3));
    assert!(matches!(web.login_to("staff", "ALICE", 4), WebAnswer::Locked(_)));
    // a name without a realm is everybody's who is called so
    web.login_to("guests", "alice", 5);
    web.login_to("guests", "Alice", 6);
    web.world.revoke(user("alice"));
    assert!(!web.is_alive(3) && !web.is_alive(5) && web.is_alive(6));
}

/// Idle and absolute time: the one that comes first. A use puts the first off and not the second.
#[test]
fn a_session_ends_by_its_time_and_its_neighbour_that_is_used_does_not() {
    let mut web = Web::new();
    web.watch(7);
    web.login("alice", 1);
    web.login("alice", 2);
    web.pass(IDLE - 10);
    web.world.give(Event::WebSeen { uses: vec![(key(2), Duration::from_secs(5)), (key(9), Duration::ZERO)] });
    web.pass(9);
    assert!(web.is_alive(1) && web.is_alive(2));
    web.pass(1);
    assert!(!web.is_alive(1) && web.is_alive(2));
    assert_eq!(web.told(7), [(key(1), WebCause::Idle)]);
    web.close(7, 1, 0);
    web.world.effects.clear();
    let until = LASTS - IDLE;
    assert_eq!(until % 300, 0);
    for _ in 1..until / 300 {
        web.pass(300);
        web.world.give(Event::WebSeen { uses: vec![(key(2), Duration::ZERO)] });
    }
    assert!(web.is_alive(2));
    web.pass(299);
    assert!(web.is_alive(2));
    web.pass(1);
    assert!(!web.is_alive(2));
    assert_eq!(web.told(7), [(key(2), WebCause::Over)]);
    assert!(web.world.disk.web.is_empty());
}
