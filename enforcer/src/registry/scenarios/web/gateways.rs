//! Gateways that answer, hang, go and come again: what the receipt says of them.

use super::*;

/// R6: with no gateway there it is over all the same, and that nobody was told is said.
#[test]
fn r6_no_gateway_is_guarded() {
    let mut web = Web::new();
    web.login("alice", 1);
    let request = web.world.revoke(user("alice"));
    web.ocserv_tells();
    let told = web.web_layer(request);
    assert_eq!((told.done, told.guarded, told.failed), (0, 1, 0), "{told:?}");
    assert!(web.world.receipt(request).notes.iter().any(|note| note.contains("no web gateway")));
}

/// R6: a gateway that does not say so in time is let go of, and the receipt calls nothing done. It is told what it missed
/// when it comes again.
#[test]
fn r6_a_gateway_that_hangs_is_let_go_of_and_the_receipt_says_so() {
    let mut web = Web::new();
    web.watch(7);
    web.watch(8);
    web.login("alice", 1);
    let request = web.world.revoke(user("alice"));
    web.ocserv_tells();
    web.close(8, 1, 3);
    web.pass(3);
    assert!(!web.is_answered(request));
    web.world.pass(600);
    assert_eq!(web.world.asked(|e| matches!(e, Effect::WebBreak { watch: 7 })), 1);
    assert_eq!(
        web.world.asked(|e| matches!(e, Effect::WebBreak { watch: 8 })),
        0,
        "the other one has answered"
    );
    let told = web.web_layer(request);
    assert_eq!((told.done, told.failed), (0, 1), "{told:?}");
    assert!(!web.world.receipt(request).is_complete());
    // what it says late is not believed
    web.close(7, 1, 1);
    assert_eq!(web.world.registry.web_watches(), (1, 0));
}

/// R6: a gateway that was let go of may serve still: nobody is called absent before one has begun anew.
#[test]
fn r6_after_a_gateway_that_hangs_nothing_is_called_closed() {
    let mut web = Web::new();
    web.watch(7);
    for (user, byte) in [("alice", 1), ("bob", 2), ("carol", 3), ("dave", 4)] {
        web.login(user, byte);
    }
    let revoke = |web: &mut Web, name: &str| {
        let request = web.world.revoke(user(name));
        web.ocserv_tells();
        request
    };
    let first = revoke(&mut web, "alice");
    web.world.pass(3_600);
    assert_eq!(web.web_layer(first).failed, 1);
    let second = revoke(&mut web, "bob");
    let told = web.web_layer(second);
    assert_eq!((told.done, told.guarded, told.failed), (0, 0, 1), "{told:?}");
    // it begins anew, and is believed again
    web.watch(8);
    let third = revoke(&mut web, "carol");
    web.close(8, 3, 1);
    let told = web.web_layer(third);
    assert_eq!((told.done, told.failed), (1, 0), "{told:?}");
    // and one that has gone for good serves nobody
    web.world.give(Event::WebWatchGone { watch: 8 });
    web.world.pass(3_100);
    let fourth = revoke(&mut web, "dave");
    assert_eq!(web.web_layer(fourth).guarded, 1);
}

/// R6: a gateway that is connected and does not get through its list has not closed what ended meanwhile.
#[test]
fn r6_a_gateway_that_does_not_finish_its_list_is_not_absent() {
    let mut web = Web::new();
    web.watch(7);
    web.login("alice", 1);
    web.world.give(Event::WebWatchGone { watch: 7 });
    let request = web.world.revoke(user("alice"));
    web.ocserv_tells();
    web.begin(8, unseen(8));
    web.world.pass(3_600);
    let told = web.web_layer(request);
    assert_eq!((told.done, told.guarded, told.failed), (0, 0, 1), "{told:?}");
}

/// R7: a gateway may say any number.
#[test]
fn r7_numbers_of_closed_sockets_do_not_overflow() {
    let mut web = Web::new();
    web.watch(7);
    web.watch(8);
    web.login("alice", 1);
    web.login("alice", 2);
    let request = web.world.revoke(user("alice"));
    web.ocserv_tells();
    for (watch, byte) in [(7, 1), (8, 1), (7, 2), (8, 2)] {
        web.close(watch, byte, u64::MAX);
    }
    assert!(web.web_layer(request).text.contains(&u64::MAX.to_string()));
}

/// R6: a gateway that has just gone is waited for, and learns from its list.
#[test]
fn r6_a_gateway_that_comes_again_is_waited_for() {
    let mut web = Web::new();
    web.watch(7);
    web.login("alice", 1);
    web.world.give(Event::WebWatchGone { watch: 7 });
    let request = web.world.revoke(user("alice"));
    web.ocserv_tells();
    assert!(!web.is_answered(request));
    web.world.effects.clear();
    web.begin(8, unseen(8));
    let listed = web.world.effects.iter().find_map(|effect| match effect {
        Effect::WebListed { watch: 8, keys, .. } => Some(keys.clone()),
        _ => None,
    });
    assert_eq!(listed, Some(vec![]), "it is not in the list");
    assert!(!web.is_answered(request), "it has not gone through its list yet");
    web.world.give(Event::WebAcknowledged { watch: 8, closed: vec![(key(1), 2)], listed: true });
    let told = web.web_layer(request);
    assert_eq!((told.done, told.guarded), (1, 0), "{told:?}");
    assert!(told.text.contains("2 connections"), "{told:?}");
    // and one that does not come is not waited for any longer
    web.login("alice", 2);
    web.world.give(Event::WebWatchGone { watch: 8 });
    let request = web.world.revoke(user("alice"));
    web.ocserv_tells();
    assert!(!web.is_answered(request));
    web.world.pass(3_100);
    assert_eq!(web.web_layer(request).guarded, 1);
}

/// R6: of an end that a gateway has not acknowledged a second order is told as well, though there is nothing left to end.
#[test]
fn r6_a_second_order_waits_for_what_the_first_has_ended() {
    let mut web = Web::new();
    web.watch(7);
    web.login("alice", 1);
    let requests = [web.world.revoke(user("alice")), web.world.revoke(order(Target::Web(key(1))))];
    web.ocserv_tells();
    assert!(!requests.iter().any(|request| web.is_answered(*request)));
    assert_eq!(web.told(7).len(), 1, "it is told once");
    web.close(7, 1, 1);
    for request in requests {
        assert_eq!(web.web_layer(request).done, 1);
    }
}

fn notes_name(receipt: &Receipt, process: u64) -> bool {
    receipt.notes.iter().any(|note| note.contains(&format!("(process {process})")))
}

/// R6: of several gateways that are away each is waited for: the list of one says nothing of the other, who is named if it
/// does not come.
#[test]
fn r6_each_gateway_that_is_expected_is_waited_for() {
    for comes in [true, false] {
        let mut web = Web::new();
        for id in [1, 2] {
            web.begin(id, seen(id));
            web.listed(id);
        }
        web.login("alice", 1);
        for watch in [1, 2] {
            web.world.give(Event::WebWatchGone { watch });
        }
        let request = web.revoke("alice");
        web.begin(11, seen(1));
        web.listed(11);
        assert!(!web.is_answered(request), "the second one has not come");
        if comes {
            web.begin(12, seen(2));
            assert!(!web.is_answered(request), "nor gone through its list");
            web.listed(12);
        } else {
            web.world.pass(3_100);
        }
        let told = web.web_layer(request);
        assert_eq!((told.done, told.failed), (u64::from(comes), u64::from(!comes)), "{told:?}");
        let receipt = web.world.receipt(request);
        assert_eq!((notes_name(receipt, 1), notes_name(receipt, 2)), (false, !comes), "{receipt:?}");
    }
}

/// R6: the sockets of a process are gone with it: nobody waits for a gateway that has ended, whether it was connected or
/// not; and whoever is left is waited for.
#[test]
fn r6_a_gateway_whose_process_has_ended_is_not_waited_for() {
    for connected in [true, false] {
        let mut web = Web::new();
        for id in [1, 2] {
            web.begin(id, seen(id));
            web.listed(id);
        }
        web.login("alice", 1);
        if !connected {
            web.world.give(Event::WebWatchGone { watch: 1 });
        }
        let request = web.revoke("alice");
        web.world.give(Event::WebGatewayGone { id: 1 });
        assert!(!web.is_answered(request), "the other one is there");
        assert_eq!(web.world.asked(|e| matches!(e, Effect::WebBreak { watch: 1 })), usize::from(connected));
        web.close(2, 1, 0);
        assert_eq!(web.web_layer(request).done, 1);
        web.world.give(Event::WebGatewayGone { id: 2 });
        web.login("bob", 2);
        let request = web.revoke("bob");
        assert_eq!(web.web_layer(request).guarded, 1, "nobody is left");
    }
}

/// R6: one that has gone, and whose process lives on, may be serving: it is not called absent.
#[test]
fn r6_a_gateway_that_lives_and_does_not_come_again_is_told() {
    let mut web = Web::new();
    web.begin(1, seen(1));
    web.listed(1);
    web.login("alice", 1);
    web.login("bob", 2);
    web.world.give(Event::WebWatchGone { watch: 1 });
    let request = web.revoke("alice");
    web.world.pass(3_100);
    let told = web.web_layer(request);
    assert_eq!((told.done, told.guarded, told.failed), (0, 0, 1), "{told:?}");
    assert!(notes_name(web.world.receipt(request), 1));
    let request = web.revoke("bob");
    assert_eq!(web.web_layer(request).failed, 1, "it has been waited for already");
    assert_eq!(web.world.registry.web_away().len(), 1);
}

/// R6: whoever was let go of and is there again is believed for what it is told from then on, before it has gone through
/// its list; of what it missed before it has to.
#[test]
fn r6_a_gateway_that_has_begun_anew_is_believed_for_what_it_acknowledges() {
    let mut web = Web::new();
    web.begin(1, seen(7));
    web.listed(1);
    for (user, byte) in [("alice", 1), ("bob", 2), ("carol", 3)] {
        web.login(user, byte);
    }
    let first = web.revoke("alice");
    web.world.pass(3_600);
    assert_eq!(web.web_layer(first).failed, 1);
    let second = web.revoke("bob");
    assert_eq!(web.web_layer(second).failed, 1, "it is away, and may be serving");
    web.begin(2, seen(7));
    let third = web.revoke("carol");
    assert!(!web.is_answered(third));
    web.close(2, 3, 1);
    let told = web.web_layer(third);
    assert_eq!((told.done, told.failed), (1, 0), "{told:?}");
}

/// R6: after a start nobody knows how many gateways there were: the first one that comes does not speak for the others.
#[test]
fn r6_after_a_start_every_gateway_has_its_time_to_come() {
    let mut web = Web::new();
    web.login("alice", 1);
    web.tell_time();
    web.world.restart();
    web.begin(1, seen(1));
    web.listed(1);
    let request = web.revoke("alice");
    web.close(1, 1, 0);
    assert!(!web.is_answered(request));
    web.begin(2, seen(2));
    web.world.pass(3_100);
    assert!(!web.is_answered(request), "one has come and has not gone through its list");
    web.listed(2);
    assert_eq!(web.web_layer(request).done, 1);
    // where it is known who there was nobody else is waited for
    for gateways in [vec![], vec![seen(1)]] {
        let mut web = Web::new();
        web.login("alice", 1);
        let record = web.world.disk.web.values().cloned().collect();
        let left = Left { web: record, gateways: Some(gateways.clone()), wall: 1, ..Left::default() };
        web.world = World::new();
        web.world.give(Event::Adopt(Box::new(left)));
        let request = web.revoke("alice");
        assert_eq!(web.is_answered(request), gateways.is_empty());
        if !gateways.is_empty() {
            web.begin(1, seen(1));
            web.listed(1);
        }
        assert_eq!(web.web_layer(request).failed, 0);
    }
}

/// R6: a gateway that reads a second stream before the end of its first was noticed has to close each end once.
#[test]
fn r6_two_streams_of_one_gateway_are_one_gateway() {
    for listed in [true, false] {
        let mut web = Web::new();
        web.begin(1, seen(7));
        web.listed(1);
        web.login("alice", 1);
        web.login("bob", 2);
        let first = web.revoke("alice");
        web.begin(2, seen(7));
        if listed {
            web.listed(2);
        }
        let second = web.revoke("bob");
        web.world.give(Event::WebWatchGone { watch: 1 });
        assert_eq!(web.is_answered(first), listed, "its list did not have alice's");
        web.listed(2);
        assert_eq!(web.web_layer(first).done, 1);
        assert!(!web.is_answered(second));
        web.close(2, 2, 1);
        assert_eq!(web.web_layer(second).done, 1);
        assert_eq!(web.world.registry.web_watches(), (1, 0));
    }
}

/// R1, R3, R6: what a gateway with a table does not close soon is destroyed, and nobody else's; the receipt says who did it.
/// The gateway has to begin anew all the same.
#[test]
fn r1_r3_r6_sockets_are_destroyed_by_the_table_of_a_gateway_that_hangs() {
    let mut web = Web::new();
    web.begin(1, with_table(7));
    web.listed(1);
    web.login("alice", 1);
    web.login("alice", 2);
    web.login("bob", 3);
    let request = web.revoke("alice");
    web.close(1, 1, 4);
    web.world.pass(60);
    assert_eq!(web.asked_to_destroy(7), [] as [Vec<WebKey>; 0], "it is given a moment");
    web.world.pass(60);
    assert_eq!(web.asked_to_destroy(7), [vec![key(2)]], "and not what it has closed");
    web.world.pass(300);
    assert_eq!(web.asked_to_destroy(7), [] as [Vec<WebKey>; 0], "it is under way");
    web.world.give(Event::WebDestroyed { id: 7, gone: vec![(key(2), 3)], trouble: None });
    let told = web.web_layer(request);
    assert_eq!((told.done, told.guarded, told.failed), (2, 0, 0), "{told:?}");
    assert!(told.text.contains("3 sockets destroyed for a gateway that did not answer"), "{told:?}");
    assert!(told.text.contains("4 connections closed"), "{told:?}");
    assert!(web.is_alive(3));
    // what it may have let in meanwhile is looked for again
    web.world.pass(200);
    assert_eq!(web.asked_to_destroy(7), [vec![key(2)]]);
    web.world.pass(3_500);
    assert_eq!(web.world.asked(|e| matches!(e, Effect::WebBreak { watch: 1 })), 1);
}

/// R6: its twin: what is acknowledged in time is not touched.
#[test]
fn r6_the_table_of_a_gateway_that_answers_is_let_be() {
    let mut web = Web::new();
    web.begin(1, with_table(7));
    web.begin(2, seen(8));
    web.login("alice", 1);
    let request = web.revoke("alice");
    web.close(1, 1, 1);
    web.world.pass(2_000);
    assert_eq!(
        (web.asked_to_destroy(7).len(), web.asked_to_destroy(8).len()),
        (0, 0),
        "one answered, one has no table"
    );
    web.close(2, 1, 1);
    let told = web.web_layer(request);
    assert!(!told.text.contains("destroyed"), "{told:?}");
}

/// R1, R6: of a gateway that is not connected, and lives, sockets are destroyed at once; what cannot be is told, with why.
#[test]
fn r1_r6_sockets_of_a_gateway_that_is_not_connected_are_destroyed_at_once() {
    let mut web = Web::new();
    web.begin(1, with_table(7));
    web.listed(1);
    web.login("alice", 1);
    web.login("bob", 2);
    web.world.give(Event::WebWatchGone { watch: 1 });
    let request = web.revoke("alice");
    assert_eq!(web.asked_to_destroy(7), [vec![key(1)]]);
    web.world.give(Event::WebDestroyed { id: 7, gone: vec![(key(1), 1)], trouble: None });
    assert_eq!(web.web_layer(request).done, 1);
    let request = web.revoke("bob");
    assert_eq!(web.asked_to_destroy(7), [vec![key(2)]]);
    web.world.give(Event::WebDestroyed { id: 7, gone: vec![], trouble: Some("no such thing".into()) });
    assert!(!web.is_answered(request), "it may come");
    web.world.pass(600);
    assert_eq!(web.asked_to_destroy(7), [vec![key(2)]], "and it is tried again");
    web.world.pass(2_500);
    assert_eq!(web.web_layer(request).failed, 1);
    let notes = &web.world.receipt(request).notes;
    assert!(
        notes.iter().any(|note| note.contains("(process 7)") && note.contains("no such thing")),
        "{notes:?}"
    );
}
