//! What the disk has of web sessions, and what is answered when.

use super::*;

/// R1: what is ended leaves the table, and is on its way to the disk, before the gateway is told.
#[test]
fn r1_the_gateway_is_told_after_the_table_and_the_write() {
    let mut web = Web::new();
    web.watch(7);
    web.login("alice", 1);
    let order = user("alice");
    let effects = web.world.registry.handle(Event::Revoke { request: Some(1), order }, web.world.now);
    let place = |wanted: fn(&Effect) -> bool| effects.iter().position(wanted).unwrap();
    assert!(place(|e| matches!(e, Effect::Save)) < place(|e| matches!(e, Effect::WebEnded { .. })));
    let writes = web.world.registry.take_writes(web.world.now);
    let at = |wanted: fn(&Write) -> bool| writes.iter().position(|(_, write)| wanted(write)).unwrap();
    assert!(at(|w| matches!(w, Write::WebGone(_))) < at(|w| matches!(w, Write::Keep(_))), "{writes:?}");
}

/// R5: a token of a session that is over may be another one's: the disk hears of the end first.
#[test]
fn r5_ends_are_written_before_what_takes_their_place() {
    let mut web = Web::new();
    web.login("alice", 9);
    let now = web.world.now;
    let registry = &mut web.world.registry;
    let _ = registry.take_writes(now);
    registry.handle(Event::WebEnd { request: 1, which: Ok(key(9)), cause: WebCause::Logout }, now);
    let new = Box::new(new_session("alice", 1, 9));
    registry.handle(Event::WebCreate { request: 2, new }, now);
    let writes: Vec<Write> = registry.take_writes(now).into_iter().map(|(_, write)| write).collect();
    let gone = writes.iter().position(|write| matches!(write, Write::WebGone(whose) if *whose == key(9)));
    let kept = writes.iter().position(|write| matches!(write, Write::KeepWeb { .. }));
    assert!(gone.is_some() && gone < kept, "{writes:?}");
}

/// R5: the same where the end could not be written at first: the database takes no token twice, and would refuse what is
/// written together with it as well.
#[test]
fn r5_an_end_that_was_not_written_goes_before_what_takes_its_token() {
    for added in [false, true] {
        let mut web = Web::new();
        web.login("alice", 9);
        web.login("bob", 2);
        web.world.disk.full = true;
        assert!(matches!(web.end(9), Some(WebAnswer::Unwritten(_))));
        web.world.disk.full = false;
        let answer = web.request(|request| match added {
            true => Event::WebAddToken { request, known: digest(2), token: Box::new(token(9)) },
            false => Event::WebCreate { request, new: Box::new(new_session("alice", 1, 9)) },
        });
        assert_eq!(answer, Some(WebAnswer::Alive(digest(9))));
        let rest = if added { vec![key(2)] } else { vec![key(1), key(2)] };
        assert!(web.world.disk.web.keys().eq(&rest), "{added}");
        web.world.restart();
        assert!(web.is_alive(9) && web.is_alive(2));
    }
}

/// R2, R5: after a restart, and a reboot, what was alive is, with its times, and what was ended is not.
#[test]
fn r5_r2_a_restart_and_a_reboot_keep_what_is_alive_and_what_is_ended() {
    let mut web = Web::new();
    web.login("alice", 1);
    web.login("bob", 2);
    assert_eq!(
        web.request(|request| Event::WebAddToken { request, known: digest(2), token: Box::new(token(3)) }),
        Some(WebAnswer::Alive(digest(3)))
    );
    web.pass(300);
    web.world.give(Event::WebSeen { uses: vec![(key(2), Duration::ZERO)] });
    web.tell_time();
    web.world.revoke(user("alice"));
    for restart in [World::restart, World::reboot] {
        restart(&mut web.world);
        assert!(!web.is_alive(1) && web.is_alive(2) && web.is_alive(3));
        let session = web.world.registry.web_session_of(&digest(3), web.world.now).unwrap();
        assert_eq!((session.key, session.user.as_str(), session.tokens.len()), (key(2), "bob", 2));
        assert_eq!(session.tokens[&digest(2)].wrapped, [2; 60]);
    }
    // it was used 300 s after its login
    web.pass(IDLE - 10);
    assert!(web.is_alive(2));
    web.pass(11);
    assert!(!web.is_alive(2));
}

/// R5: whose time is over while the daemon does not run is not there when it comes back, nor ever after.
#[test]
fn r5_time_goes_on_while_the_daemon_does_not_run() {
    let mut web = Web::new();
    web.login("alice", 1);
    web.tell_time();
    web.world.now.wall += IDLE;
    web.world.now.mono += Duration::from_secs(IDLE);
    web.world.restart();
    assert!(!web.is_alive(1) && web.world.disk.web.is_empty());
    // a clock that went back over a reboot lets nobody stay longer
    web.login("alice", 2);
    web.world.now.wall += 100;
    web.world.now.mono += Duration::from_secs(100);
    web.tell_time();
    web.world.now.wall -= 50_000;
    web.world.reboot();
    assert!(web.is_alive(2));
    web.pass(IDLE - 101);
    assert!(web.is_alive(2));
    web.pass(2);
    assert!(!web.is_alive(2));
}

/// R5: nor does one that went back while the daemon was not there, however often that is started after it.
#[test]
fn r5_a_clock_that_went_back_gives_no_session_its_time_anew_at_each_start() {
    let mut web = Web::new();
    web.login("alice", 1);
    web.tell_time();
    web.world.now.wall -= 50_000;
    for _ in 0..3 {
        web.world.restart();
        web.tell_time();
        // what could not be said by this clock yet is written
        web.pass(3);
        web.pass(IDLE / 4 - 3);
        assert!(web.is_alive(1));
    }
    web.world.restart();
    web.pass(IDLE / 4 + 5);
    assert!(!web.is_alive(1));
}

/// R5: nor does what is written of a session that was made by a clock that was ahead make it seem in use.
#[test]
fn r5_what_is_written_after_a_clock_went_back_is_no_use_of_the_session() {
    let mut web = Web::new();
    web.login("alice", 1);
    web.tell_time();
    web.world.now.wall -= 50_000;
    web.world.restart();
    web.tell_time();
    web.pass(IDLE / 2);
    let token = Box::new(token(2));
    web.request(|request| Event::WebAddToken { request, known: digest(1), token });
    web.world.restart();
    assert!(web.is_alive(1) && web.is_alive(2));
    web.pass(IDLE / 2 + 5);
    assert!(!web.is_alive(1) && !web.is_alive(2));
}

/// R5: a clock that is set while the daemon runs moves what the disk has.
#[test]
fn r5_a_clock_that_is_set_changes_no_session() {
    let mut web = Web::new();
    web.login("alice", 1);
    for jump in [100_000_i64, -90_000] {
        web.tell_time();
        web.world.now.wall = web.world.now.wall.saturating_add_signed(jump);
        web.pass(3);
        web.pass(3);
        web.world.restart();
        assert!(web.is_alive(1), "{jump}");
    }
    web.pass(IDLE);
    assert!(!web.is_alive(1));
}

/// R6, R5: a full disk stops no revocation; that it would be undone by a restart is said, and mended once there is room.
#[test]
fn r6_r5_a_full_disk_is_told_and_tried_again() {
    let mut web = Web::new();
    web.login("alice", 1);
    web.world.disk.full = true;
    let request = web.world.revoke(order(Target::Web(key(1))));
    assert!(!web.is_alive(1));
    let receipt = web.world.receipt(request);
    assert!(!receipt.is_complete());
    assert!(layer(receipt, Layer::Disk).text.contains("lost at a restart"), "{receipt:?}");
    assert!(web.world.disk.web.contains_key(&key(1)));
    assert_eq!(web.world.registry.unwritten().0, 1);
    let number = receipt.number;
    web.world.disk.full = false;
    web.pass(3);
    assert!(web.world.disk.web.is_empty());
    assert_eq!(web.world.registry.unwritten().0, 0);
    let receipt = web.world.registry.receipt_of(number, web.world.now).unwrap();
    assert!(receipt.is_complete(), "{receipt:?}");
}

/// A logout is answered when it is on the disk; one of nobody's session, or a second one, has nothing to end.
#[test]
fn r5_a_logout_is_durable_before_it_is_answered() {
    let mut web = Web::new();
    web.watch(7);
    web.login("alice", 1);
    web.login("alice", 2);
    web.world.disk.hangs = true;
    let end = |web: &mut Web, which| {
        web.request(|request| Event::WebEnd { request, which, cause: WebCause::Logout })
    };
    assert_eq!(end(&mut web, Err(digest(1))), None);
    let asked = web.next;
    assert!(!web.is_alive(1) && web.is_alive(2), "it is over at once");
    assert_eq!(web.told(7), [(key(1), WebCause::Logout)]);
    web.world.disk.hangs = false;
    web.login("bob", 3);
    assert_eq!(web.answer(asked), Some(WebAnswer::Done));
    assert_eq!(end(&mut web, Err(digest(1))), Some(WebAnswer::Gone));
    assert_eq!(end(&mut web, Ok(key(9))), Some(WebAnswer::Gone));
    assert_eq!(end(&mut web, Ok(key(2))), Some(WebAnswer::Done));
    web.world.disk.full = true;
    assert!(matches!(end(&mut web, Ok(key(3))), Some(WebAnswer::Unwritten(_))));
}

/// A wrapped secret is replaced for its token alone.
#[test]
fn a_secret_is_wrapped_anew_for_one_token() {
    let mut web = Web::new();
    web.login("alice", 1);
    web.request(|request| Event::WebAddToken { request, known: digest(1), token: Box::new(token(2)) });
    let anew = |byte| Box::new(WebTokenRecord { wrapped: vec![77; 80], ..token(byte) });
    assert_eq!(
        web.request(|request| Event::WebRewrap { request, token: anew(2) }),
        Some(WebAnswer::Alive(digest(2)))
    );
    assert_eq!(web.request(|request| Event::WebRewrap { request, token: anew(9) }), Some(WebAnswer::Gone));
    web.world.restart();
    let session = web.world.registry.web_session_of(&digest(1), web.world.now).unwrap();
    assert_eq!(session.tokens[&digest(1)].wrapped, [1; 60]);
    assert_eq!(
        (session.tokens[&digest(2)].wrapped.as_slice(), &*session.tokens[&digest(2)].host),
        (&[77; 80][..], "2.example")
    );
}

/// R5: whoever turns a key over is told that a secret is wrapped anew when the disk has it.
#[test]
fn r5_a_secret_that_is_wrapped_anew_is_on_the_disk_before_it_is_answered() {
    let mut web = Web::new();
    web.login("alice", 1);
    web.login("bob", 2);
    let anew = |web: &mut Web, byte: u8, with: u8| {
        let token = Box::new(WebTokenRecord { wrapped: vec![with; 80], ..token(byte) });
        web.request(|request| Event::WebRewrap { request, token })
    };
    web.world.disk.hangs = true;
    assert_eq!(anew(&mut web, 1, 7), None);
    let (first, _) = (web.next, anew(&mut web, 1, 8));
    let second = web.next;
    assert_eq!(anew(&mut web, 2, 9), None);
    let of_bob = web.next;
    // what is over needs no secret
    web.world.give(Event::WebEnd { request: 1, which: Ok(key(2)), cause: WebCause::Logout });
    assert_eq!(web.answer(of_bob), Some(WebAnswer::Gone));
    assert_eq!((web.answer(first), web.answer(second)), (None, None));
    web.world.disk.hangs = false;
    web.login("carol", 3);
    assert_eq!(web.answer(first), Some(WebAnswer::Alive(digest(1))));
    assert_eq!(web.answer(second), Some(WebAnswer::Alive(digest(1))));
    assert_eq!(web.world.disk.web[&key(1)].tokens[0].wrapped, [8; 80]);
    web.world.disk.full = true;
    assert!(matches!(anew(&mut web, 1, 9), Some(WebAnswer::Unwritten(_))));
    assert_eq!(web.world.disk.web[&key(1)].tokens[0].wrapped, [8; 80]);
    web.world.disk.full = false;
    assert_eq!(anew(&mut web, 1, 9), Some(WebAnswer::Alive(digest(1))), "asked once more");
}

/// R5: a second logout of the same session says no more than the first one: by its key or by any token that it had.
#[test]
fn r5_a_logout_that_is_repeated_is_durable_before_it_is_answered() {
    let mut web = Web::new();
    web.login("alice", 1);
    let added = Event::WebAddToken { request: 1, known: digest(1), token: Box::new(token(2)) };
    web.world.give(added);
    let end = |web: &mut Web, which| {
        web.request(|request| Event::WebEnd { request, which, cause: WebCause::Logout })
    };
    web.world.disk.hangs = true;
    assert_eq!(end(&mut web, Err(digest(1))), None);
    let mut asked = vec![web.next];
    for which in [Err(digest(1)), Err(digest(2)), Ok(key(1))] {
        assert_eq!(end(&mut web, which), None);
        asked.push(web.next);
    }
    web.world.disk.hangs = false;
    web.login("bob", 3);
    assert!(asked.into_iter().all(|request| web.answer(request) == Some(WebAnswer::Done)));
    assert_eq!(end(&mut web, Err(digest(1))), Some(WebAnswer::Gone));
    web.world.disk.full = true;
    for _ in 0..2 {
        assert!(matches!(end(&mut web, Err(digest(3))), Some(WebAnswer::Unwritten(_))));
    }
    web.world.disk.full = false;
    web.pass(3);
    assert_eq!(end(&mut web, Err(digest(3))), Some(WebAnswer::Gone), "it is written");
}

/// R5, R7: whatever the web part has to write, revocations are written: at its bound nobody new gets in, and is told why.
#[test]
fn r5_r7_changes_of_web_sessions_do_not_keep_revocations_off_the_disk() {
    let mut web = Web::new();
    web.login("alice", 1);
    web.world.disk.late = true;
    let rewrap =
        |web: &mut Web| web.request(|request| Event::WebRewrap { request, token: Box::new(token(1)) });
    let refused = (0..2_000).find_map(|_| rewrap(&mut web));
    let Some(WebAnswer::Full(why)) = refused else { panic!("{refused:?}") };
    assert!(why.contains("wait for the disk"), "{why}");
    assert!(matches!(web.login("bob", 2), WebAnswer::Full(_)));
    let add = Box::new(token(9));
    let added = web.request(|request| Event::WebAddToken { request, known: digest(1), token: add });
    assert!(matches!(added, Some(WebAnswer::Full(_))));
    let before = web.world.disk.under_way();
    for byte in 0..5 {
        let request = web.world.revoke(order(Target::Address(address(byte))));
        assert!(!web.is_answered(request));
    }
    assert_eq!(web.world.disk.under_way(), before + 5, "what is not of the web is given to the disk");
    // what may wait does
    web.pass(IDLE / 2);
    let before = web.world.disk.under_way();
    web.world.give(Event::WebSeen { uses: vec![(key(1), Duration::ZERO)] });
    assert_eq!(web.world.disk.under_way(), before);
    // an end is written, whatever waits
    let request = web.world.revoke(order(Target::Web(key(1))));
    assert_eq!(web.world.disk.under_way(), before + 1);
    // one commit: all of it is there, and there is room again
    web.world.disk.batch(usize::MAX);
    let told = web.world.disk.tell().unwrap();
    web.world.give(told);
    assert!(web.is_answered(request));
    assert_eq!((web.world.disk.records.len(), web.world.disk.web.len()), (5, 0));
    assert_eq!(web.login("bob", 2), WebAnswer::Alive(digest(2)));
}

/// R5: on a disk that takes nothing revocations are tried again though very much of the web waits.
#[test]
fn r5_what_failed_is_tried_again_whatever_is_on_its_way_of_the_web() {
    let mut web = Web::new();
    web.login("alice", 1);
    web.world.disk.full = true;
    web.world.revoke(order(Target::Address(address(1))));
    web.world.disk.full = false;
    web.world.disk.late = true;
    for _ in 0..399 {
        web.request(|request| Event::WebRewrap { request, token: Box::new(token(1)) });
    }
    let before = web.world.disk.under_way();
    web.pass(3);
    assert!(web.world.disk.under_way() > before, "it is given to the disk once more");
    web.world.disk.batch(usize::MAX);
    assert_eq!(web.world.disk.records.len(), 1);
}
