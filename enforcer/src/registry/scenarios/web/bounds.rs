//! The bounds of web sessions, and what is answered there.

use super::*;

/// R7: at each bound a clear answer, and what is there stays.
#[test]
fn r7_bounds() {
    let mut web =
        Web { world: World::with(false, Rules { most_web_sessions: 30, ..Rules::default() }), next: 10_000 };
    for byte in 1..=20 {
        assert_eq!(web.login("alice", byte), WebAnswer::Alive(digest(byte)));
    }
    assert!(matches!(web.login("alice", 21), WebAnswer::Full(_)), "of one person");
    for byte in 21..=30 {
        assert_eq!(web.login(&format!("u{byte}"), byte), WebAnswer::Alive(digest(byte)));
    }
    assert!(matches!(web.login("bob", 31), WebAnswer::Full(_)), "of all");
    assert!((1..=30).all(|byte| web.is_alive(byte)));
    assert_eq!(web.login("eve", 1), WebAnswer::Taken);
    let add = |web: &mut Web, known, byte| {
        let token = Box::new(token(byte));
        web.request(|request| Event::WebAddToken { request, known: digest(known), token }).unwrap()
    };
    assert_eq!(add(&mut web, 1, 2), WebAnswer::Taken);
    assert_eq!(add(&mut web, 99, 100), WebAnswer::Gone);
    for byte in 101..164 {
        assert_eq!(add(&mut web, 1, byte), WebAnswer::Alive(digest(byte)));
    }
    assert!(matches!(add(&mut web, 1, 164), WebAnswer::Full(_)));
    // and with the session all of its tokens go
    web.world.revoke(order(Target::Web(key(1))));
    assert!(!web.is_alive(101) && !web.is_alive(163) && web.is_alive(2));
    // watches
    for watch in 1..=9 {
        web.begin(watch, unseen(watch));
    }
    assert_eq!(web.world.registry.web_watches().0, 8);
    assert_eq!(web.world.asked(|e| matches!(e, Effect::WebBreak { watch: 9 })), 1);
}

/// R7: what all sessions take is bounded in bytes as well; what ends makes room.
#[test]
fn r7_bytes_of_all_sessions() {
    let rules = Rules { most_web_bytes: 5_000, ..Rules::default() };
    let mut web = Web { world: World::with(false, rules), next: 10_000 };
    let mut logins = (1..20).map(|byte| web.login(&format!("u{byte}"), byte)).collect::<Vec<_>>();
    let many = logins.iter().filter(|answer| matches!(answer, WebAnswer::Alive(_))).count();
    assert!((4..10).contains(&many), "{many}");
    let Some(WebAnswer::Full(why)) = logins.pop() else { panic!("it is full") };
    assert!(why.contains("5000 bytes"), "{why}");
    let add = |web: &mut Web| {
        let token = Box::new(WebTokenRecord { wrapped: vec![0; 512], ..token(99) });
        web.request(|request| Event::WebAddToken { request, known: digest(1), token }).unwrap()
    };
    assert!(matches!(add(&mut web), WebAnswer::Full(_)));
    let rewrap = |web: &mut Web, bytes| {
        let token = Box::new(WebTokenRecord { wrapped: vec![0; bytes], ..token(1) });
        web.request(|request| Event::WebRewrap { request, token }).unwrap()
    };
    assert!(matches!(rewrap(&mut web, 600), WebAnswer::Full(_)));
    assert_eq!(rewrap(&mut web, 60), WebAnswer::Alive(digest(1)), "as long as before");
    web.world.revoke(order(Target::Web(key(2))));
    web.world.revoke(order(Target::Web(key(3))));
    assert_eq!(add(&mut web), WebAnswer::Alive(digest(99)));
    assert!(web.is_alive(1) && web.is_alive(99));
    web.world.registry.check_web();
}

/// R7: whoever asks something that the disk has to hear of waits, as far as is known, also if he has gone meanwhile. At the
/// bound nobody waits any more: what was to end has ended, and it is said that it is not written.
#[test]
fn r7_those_who_wait_for_a_disk_that_hangs_are_bounded() {
    let mut web = Web::new();
    for (user, byte) in [("alice", 1), ("bob", 2), ("carol", 3)] {
        web.login(user, byte);
    }
    web.world.disk.hangs = true;
    let rewrap = |web: &mut Web, byte| {
        let token = Box::new(token(byte));
        web.request(|request| Event::WebRewrap { request, token })
    };
    for _ in 0..20 {
        assert_eq!((web.end(1), rewrap(&mut web, 3)), (None, None));
    }
    assert!((40..900).all(|_| web.end(1).is_none()));
    let Some(WebAnswer::Unwritten(why)) = web.end(1) else { panic!("it does not wait") };
    assert!(why.contains("900 wait"), "{why}");
    assert!(matches!(rewrap(&mut web, 3), Some(WebAnswer::Full(_))));
    assert!(matches!(web.end(2), Some(WebAnswer::Unwritten(_))));
    assert!(!web.is_alive(1) && !web.is_alive(2) && web.is_alive(3));
    web.world.registry.check_web();
    // whoever ends what others wait for lets them go
    web.world.revoke(order(Target::Web(key(3))));
    assert_eq!(web.end(3), None);
    web.world.registry.check_web();
    web.world.disk.hangs = false;
    web.login("dave", 4);
    assert_eq!(web.end(4), Some(WebAnswer::Done));
    assert!(web.world.disk.web.is_empty());
    web.world.registry.check_web();
}

/// R7, R6: a revocation gives account of so many sessions, says of how many it does not, and keeps counts alone of what is
/// done once it was answered.
#[test]
fn r7_r6_what_a_revocation_tells_of_web_sessions_is_bounded() {
    let mut web = Web::new();
    web.world.disk.full = true;
    for byte in 1..=60 {
        web.login("alice", byte);
        web.world.give(Event::WebEnd { request: 1, which: Ok(key(byte)), cause: WebCause::Logout });
    }
    web.login("alice", 61);
    let request = web.revoke("alice");
    let receipt = web.world.receipt(request).clone();
    assert_eq!(receipt.web.len(), 40);
    assert!(receipt.web.iter().any(|row| row.key == key(61)), "what was alive comes first");
    let told = layer(&receipt, Layer::Web);
    assert_eq!((told.guarded, told.failed), (40, 21), "{told:?}");
    assert!(told.text.contains("21 NOT followed"), "{told:?}");
    web.world.disk.full = false;
    web.pass(3);
    let later = web.world.registry.receipt_of(receipt.number, web.world.now).unwrap();
    assert_eq!(layer(&later, Layer::Web), told, "the counts are as they were");
    assert!(later.web.is_empty(), "and nothing else is left");
    let revocation = web.world.registry.revocation(receipt.number).unwrap();
    assert!(revocation.users().iter().eq([&"alice"]));
    // however often it is asked for
    let mut web = Web::new();
    web.world.disk.full = true;
    web.login("alice", 1);
    let requests: Vec<Request> = (0..20).map(|_| web.revoke("alice")).collect();
    let last = web.web_layer(requests[19]);
    assert_eq!((last.guarded, last.failed), (0, 1), "{last:?}");
    web.world.registry.check_web();
}
