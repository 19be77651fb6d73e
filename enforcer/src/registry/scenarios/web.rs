//! Web sessions: made, ended and remembered by the rules.

use super::harness::*;
use crate::registry::*;
use crate::session::*;
use std::time::Duration;

const IDLE: u64 = 600;
const LASTS: u64 = 8 * 3_600;

fn key(byte: u8) -> WebKey {
    WebKey::from_bytes([byte; 16])
}

fn digest(byte: u8) -> WebDigest {
    WebDigest::from_bytes([byte; 32])
}

fn token(byte: u8) -> WebTokenRecord {
    WebTokenRecord { digest: digest(byte), host: format!("{byte}.example"), wrapped: vec![byte; 60] }
}

/// A world in which a gateway watches, and what it was told since the last look.
struct Web {
    world: World,
    next: Request,
}

impl Web {
    fn new() -> Self {
        let mut world = World::new();
        // there is room to set it back
        world.now.wall = 1_000_000;
        Self { world, next: 10_000 }
    }

    fn request(&mut self, event: impl FnOnce(Request) -> Event) -> Option<WebAnswer> {
        self.next += 1;
        let request = self.next;
        self.world.give(event(request));
        self.answer(request)
    }

    fn answer(&self, request: Request) -> Option<WebAnswer> {
        self.world.effects.iter().find_map(|effect| match effect {
            Effect::WebAnswer { request: whose, answer } if *whose == request => Some(answer.clone()),
            _ => None,
        })
    }

    /// Key and digest are numbered alike.
    fn login(&mut self, user: &str, byte: u8) -> WebAnswer {
        self.login_to(DEFAULT_REALM, user, byte)
    }

    fn login_to(&mut self, realm: &str, user: &str, byte: u8) -> WebAnswer {
        let new = Box::new(NewWebSession {
            key: key(byte),
            realm: realm.into(),
            user: user.into(),
            peer: "192.0.2.1".into(),
            agent: "browser".into(),
            idle: Duration::from_secs(IDLE),
            lasts: Duration::from_secs(LASTS),
            token: token(byte),
        });
        self.request(|request| Event::WebCreate { request, new }).unwrap()
    }

    fn is_alive(&self, byte: u8) -> bool {
        self.world.registry.web_session_of(&digest(byte), self.world.now).is_some()
    }

    fn watch(&mut self, watch: Watch) {
        self.world.give(Event::WebWatch { watch });
        self.listed(watch);
    }

    fn listed(&mut self, watch: Watch) {
        self.world.give(Event::WebAcknowledged { watch, closed: Vec::new(), listed: true });
    }

    fn close(&mut self, watch: Watch, byte: u8, sockets: u64) {
        self.world.give(Event::WebAcknowledged { watch, closed: vec![(key(byte), sockets)], listed: false });
    }

    /// Of which ends this watch was told.
    fn told(&self, watch: Watch) -> Vec<(WebKey, WebCause)> {
        let told = self.world.effects.iter().filter_map(|effect| match effect {
            Effect::WebEnded { watch: whom, key, cause, .. } if *whom == watch => Some((*key, *cause)),
            _ => None,
        });
        told.collect()
    }

    /// ocserv has neither workers nor cookies, and says so.
    fn ocserv_tells(&mut self) {
        self.world.list(vec![]);
        self.world.cookies(vec![]);
    }

    fn is_answered(&self, request: Request) -> bool {
        self.world.answers.contains_key(&request)
    }

    fn web_layer(&self, request: Request) -> LayerResult {
        layer(self.world.receipt(request), Layer::Web)
    }

    /// As the daemon does at its start and every minute.
    fn tell_time(&mut self) {
        self.world.registry.write(Write::Clock { wall: self.world.now.wall, boot_id: "b".into() });
        self.world.give(Event::Tick);
    }

    fn pass(&mut self, seconds: u64) {
        self.world.pass(seconds * 1_000);
    }
}

fn layer(receipt: &Receipt, which: Layer) -> LayerResult {
    receipt.layers.iter().find(|one| one.layer == which).unwrap().clone()
}

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
    web.world.give(Event::WebWatch { watch: 8 });
    web.world.pass(3_100);
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

/// R5: a token of a session that is over may be another one's: the disk hears of the end first.
#[test]
fn r5_ends_are_written_before_what_takes_their_place() {
    let mut web = Web::new();
    web.login("alice", 9);
    let now = web.world.now;
    let registry = &mut web.world.registry;
    let _ = registry.take_writes(now);
    registry.handle(Event::WebEnd { request: 1, which: Ok(key(9)), cause: WebCause::Logout }, now);
    let new = NewWebSession {
        key: key(1),
        realm: DEFAULT_REALM.into(),
        user: "alice".into(),
        peer: "192.0.2.1".into(),
        agent: "browser".into(),
        idle: Duration::from_secs(IDLE),
        lasts: Duration::from_secs(LASTS),
        token: token(9),
    };
    registry.handle(Event::WebCreate { request: 2, new: Box::new(new) }, now);
    let writes: Vec<Write> = registry.take_writes(now).into_iter().map(|(_, write)| write).collect();
    let gone = writes.iter().position(|write| matches!(write, Write::WebGone(whose) if *whose == key(9)));
    let kept = writes.iter().position(|write| matches!(write, Write::KeepWeb { .. }));
    assert!(gone.is_some() && gone < kept, "{writes:?}");
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
    web.world.give(Event::WebWatch { watch: 8 });
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
        web.world.give(Event::WebWatch { watch });
    }
    assert_eq!(web.world.registry.web_watches().0, 8);
    assert_eq!(web.world.asked(|e| matches!(e, Effect::WebBreak { watch: 9 })), 1);
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

/// R5, R7: what the gateway has to know is on the disk before that is answered, bounded, and there after a restart.
#[test]
fn r5_r7_what_the_gateway_has_learned() {
    let mut web = Web::new();
    let record = |byte: u8, value: u8| (vec![byte], vec![value]);
    let learn = |web: &mut Web, records: Vec<_>| web.request(|request| Event::WebLearn { request, records });
    assert_eq!(learn(&mut web, vec![record(1, 1), record(2, 2)]), Some(WebAnswer::Done));
    assert_eq!(
        learn(&mut web, vec![record(2, 3)]),
        Some(WebAnswer::Done),
        "a new value for a key that is known"
    );
    web.world.disk.full = true;
    assert_eq!(learn(&mut web, vec![record(1, 1)]), Some(WebAnswer::Done), "it is on the disk already");
    assert!(matches!(learn(&mut web, vec![record(3, 3)]), Some(WebAnswer::Unwritten(_))));
    web.world.disk.full = false;
    assert_eq!(
        learn(&mut web, vec![record(3, 3)]),
        Some(WebAnswer::Done),
        "the same once more: it was not written"
    );
    assert_eq!(web.world.disk.learned.len(), 3);
    assert!(matches!(learn(&mut web, (4..=11).map(|n| record(n, n)).collect()), Some(WebAnswer::Full(_))));
    assert_eq!(web.world.registry.web_learned_count(), 3, "all or nothing");
    web.world.restart();
    let all = web.world.registry.web_learned(None, 10);
    assert_eq!(all, [record(1, 1), record(2, 3), record(3, 3)]);
    assert_eq!(web.world.registry.web_learned(Some(&[1]), 1), [record(2, 3)]);
}
