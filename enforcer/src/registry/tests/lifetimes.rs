//! How long each entry stands: days go by, in which the daemon dies and comes back. What keeps a session out stands
//! until nothing could bring it back; what could hit a stranger goes with the session, and never outlives the daemon
//! by more than 10 s; nothing stands for ever that was not asked for so.

use super::super::*;
use super::harness::*;
use crate::session::{
    CutoffKey, DEFAULT_REALM, Entry, Identity, LockKey, Process, SafeId, Stands, Token, TokenKind,
};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

/// A gateway whose daemon dies every hour, and stays dead for a moment, for longer than a lease, or for long.
struct Gateway {
    world: World,
    died_at: Option<Duration>,
    deaths: u32,
}

impl Gateway {
    fn new() -> Self {
        Self { world: World::new(), died_at: None, deaths: 0 }
    }

    /// What the kernel's programs and the gate go by, also when no daemon is there.
    fn stands(&self, entry: &Entry) -> bool {
        let now = self.world.now.mono;
        self.world.kernel.get(entry).is_some_and(|it| match it.stands {
            Stands::Forever => true,
            Stands::Until(at) => Duration::from_nanos(at) > now,
            Stands::Leased => self.died_at.is_none_or(|at| now <= at + 10 * SECOND),
        })
    }

    fn die(&mut self) {
        self.world.kill_daemon();
        self.died_at = Some(self.world.now.mono);
    }

    fn start(&mut self) {
        let at = self.died_at.take().unwrap();
        self.world.adopt_after(self.world.now.mono <= at + 10 * SECOND, false);
        self.world.handle(Event::Tick);
        self.world.servers_up();
    }

    fn minutes(&mut self, minutes: u64) {
        for _ in 0..minutes {
            self.world.pass_time(MINUTE - SECOND);
            self.world.pass(SECOND);
        }
    }

    /// Time goes by, with a death every hour; `check` at every moment at which something may have gone wrong.
    fn hours(&mut self, hours: u32, check: impl Fn(&mut Self)) {
        for _ in 0..hours {
            check(self);
            self.minutes(20);
            check(self);
            self.die();
            check(self);
            self.deaths += 1;
            self.world.pass_time([SECOND, 30 * SECOND, 39 * MINUTE][self.deaths as usize % 3]);
            check(self);
            self.start();
            check(self);
            self.minutes(20);
        }
        check(self);
    }

    /// The host is down for that long, and starts with an empty kernel and a new ocserv.
    fn reboot(&mut self, down: Duration) {
        let ids: Vec<i32> = self.world.workers.keys().copied().collect();
        ids.into_iter().for_each(|id| self.world.exit(id));
        self.die();
        self.world.vpn().cookies.clear();
        self.world.kernel.clear();
        self.world.numbered = 0;
        self.world.pass_time(down);
        self.world.now.mono = 7 * SECOND;
        let pid = self.world.count() as i32;
        self.world.vpn().main = Process { pid, start: 1 };
        self.world.kill_daemon();
        self.died_at = None;
        self.world.adopt_after(false, true);
        self.world.servers_up();
    }

    /// A session that is revoked, and whose worker hangs on to everything.
    fn hanging(&mut self) -> Worker {
        let cookie = self.world.login("alice");
        let id = self.world.up(cookie);
        self.world.workers.get_mut(&id).unwrap().hangs = true;
        self.world.revoke_user("alice");
        self.world.workers[&id].clone()
    }

    fn is_empty(&self) -> bool {
        let (kernel, disk) = (&self.world.kernel, &self.world.disk);
        assert!(kernel.is_empty(), "{kernel:?}");
        assert!(disk.records.is_empty() && disk.lifted.is_empty(), "{disk:?}");
        let registry = &self.world.registry;
        registry.marks.is_empty() && registry.busy.is_empty() && registry.sessions().next().is_none()
    }
}

fn explicit(target: Target, stands: Option<Duration>) -> Order {
    Order { stands, ..World::order(target) }
}

fn alice() -> Identity {
    Identity { realm: DEFAULT_REALM.into(), name: "alice".into() }
}

#[test]
fn r2_r7_a_safe_id_stands_for_days_and_goes_with_its_cookie() {
    let mut gateway = Gateway::new();
    let cookie = gateway.world.login("alice");
    gateway.world.up(cookie);
    gateway.world.revoke_user("alice");
    gateway.hours(72, |gateway| {
        assert!(gateway.stands(&Entry::SafeId(cookie)), "R2");
        assert!(gateway.world.disk.refuses(cookie), "R5");
        if gateway.died_at.is_none() {
            assert!(!gateway.world.is_let_in(cookie), "R2");
        }
    });
    let fresh = gateway.world.login("alice");
    let id = gateway.world.up(fresh);
    gateway.world.exit(id);
    gateway.world.vpn().cookies.remove(&cookie);
    gateway.minutes(2);
    assert!(gateway.is_empty(), "R7");
    assert!(gateway.world.is_let_in(fresh), "R4");
}

#[test]
fn r7_a_safe_id_goes_with_ocservs_main_process_also_if_no_daemon_saw_its_end() {
    for seen in [true, false] {
        let mut gateway = Gateway::new();
        let cookie = gateway.world.login("alice");
        gateway.world.up(cookie);
        gateway.world.revoke_user("alice");
        gateway.minutes(1);
        if seen {
            gateway.world.stop_ocserv();
            gateway.world.start_ocserv();
        } else {
            gateway.die();
            gateway.world.vpn().cookies.clear();
            let pid = gateway.world.count() as i32;
            gateway.world.vpn().main = Process { pid, start: 9 };
            gateway.start();
        }
        gateway.minutes(2);
        assert!(gateway.is_empty(), "seen: {seen}");
    }
}

#[test]
fn r1_r3_a_device_stands_until_it_is_gone() {
    for while_dead in [false, true] {
        let mut gateway = Gateway::new();
        let worker = gateway.hanging();
        let device = Entry::Device(worker.device);
        gateway.hours(48, |gateway| assert!(gateway.stands(&device), "R1"));
        if while_dead {
            gateway.die();
            gateway.world.exit(worker.process.pid);
            gateway.start();
        } else {
            gateway.world.exit(worker.process.pid);
        }
        assert!(!gateway.world.drops(&device), "R3");
        gateway.world.vpn().cookies.clear();
        gateway.minutes(2);
        assert!(gateway.is_empty(), "R7");
    }
}

#[test]
fn r1_r3_what_could_hit_a_stranger_stands_as_long_as_the_session_and_10_s_without_the_daemon() {
    let mut gateway = Gateway::new();
    let worker = gateway.hanging();
    let entries = [Entry::Address(NETNS, worker.address), Entry::Flow(NETNS, worker.flow)];
    let all_stand = |gateway: &Gateway| entries.iter().all(|entry| gateway.stands(entry));
    let none_stands = |gateway: &Gateway| !entries.iter().any(|entry| gateway.stands(entry));
    gateway.hours(48, |gateway| {
        assert!(
            entries.iter().all(|e| gateway.world.kernel.get(e).is_none_or(|it| it.stands == Stands::Leased))
        );
        match gateway.died_at {
            None => assert!(all_stand(gateway), "R1: {:?}", gateway.world.kernel),
            Some(at) if gateway.world.now.mono > at + 10 * SECOND => assert!(none_stands(gateway), "R3"),
            Some(_) => {}
        }
    });
    // with the session it goes at once
    gateway.world.exit(worker.process.pid);
    assert!(entries.iter().all(|entry| !gateway.world.drops(entry)), "R3");
    // and a session that ends without a daemon leaves nothing that stands longer than 10 s
    let mut gateway = Gateway::new();
    gateway.hanging();
    gateway.die();
    gateway.world.exit(worker.process.pid);
    gateway.world.pass_time(10 * SECOND);
    assert!(all_stand(&gateway), "R1: for its lease");
    gateway.world.pass_time(ms(1));
    assert!(none_stands(&gateway), "R3");
    gateway.start();
    assert!(entries.iter().all(|entry| !gateway.world.drops(entry)), "R3: {:?}", gateway.world.kernel);
}

#[test]
fn r2_r4_a_cutoff_stands_as_long_as_cookies_cannot_be_listed_and_no_longer() {
    let mut gateway = Gateway::new();
    let old: SafeId = gateway.world.login("alice");
    gateway.world.vpn().lists_cookies = false;
    gateway.world.ask(World::order(Target::User("alice".into())));
    gateway.world.pass(5 * SECOND);
    let key = CutoffKey::new(&vpn(), "alice");
    gateway.hours(48, |gateway| {
        assert!(gateway.stands(&Entry::Cutoff(key)), "R2");
        assert!(gateway.world.disk.cutoff(key).is_some(), "R5");
        if gateway.died_at.is_none() {
            assert!(!gateway.world.is_let_in(old), "R2");
        }
    });
    gateway.world.vpn().lists_cookies = true;
    gateway.minutes(1);
    assert!(!gateway.world.drops(&Entry::Cutoff(key)), "R7");
    assert!(gateway.world.refuses(old), "R2");
    let fresh = gateway.world.login("alice");
    assert!(gateway.world.is_let_in(fresh), "R4");
    gateway.world.vpn().cookies.remove(&old);
    gateway.minutes(2);
    gateway.world.exit(*gateway.world.workers.keys().next().unwrap());
    gateway.minutes(2);
    assert!(gateway.is_empty(), "R7");
}

#[test]
fn r2_r4_a_lock_stands_for_its_wall_clock_time_over_deaths_and_a_reboot() {
    let mut gateway = Gateway::new();
    gateway.world.ask(explicit(Target::Lock(alice()), Some(60 * HOUR)));
    gateway.world.run();
    let (lock, key) = (Entry::Lock(LockKey::new(&alice())), LockKey::new(&alice()));
    let until = gateway.world.now.wall + 60 * 3_600;
    let locked = |gateway: &mut Gateway| {
        let wall = gateway.world.now.wall;
        assert_eq!(gateway.stands(&lock), wall < until, "{wall}");
        // the record of one whose time is over goes with the next look
        assert!(wall >= until || gateway.world.disk.lock(key, wall).is_some(), "R5");
        if gateway.died_at.is_none() && wall.abs_diff(until) > 1 {
            let fresh = gateway.world.login("alice");
            assert_eq!(gateway.world.is_let_in(fresh), wall >= until, "R2, R4");
            if let Some(id) = gateway.world.workers.keys().next().copied() {
                gateway.world.exit(id);
            }
        }
    };
    gateway.hours(24, locked);
    gateway.reboot(5 * HOUR);
    gateway.hours(48, locked);
    assert!(gateway.world.now.wall > until);
    gateway.world.vpn().cookies.clear();
    gateway.minutes(2);
    assert!(gateway.is_empty(), "R7");
}

#[test]
fn r5_a_lock_without_end_stands_until_it_is_taken_back() {
    let mut gateway = Gateway::new();
    gateway.world.ask(explicit(Target::Lock(alice()), None));
    gateway.world.run();
    let lock = Entry::Lock(LockKey::new(&alice()));
    for _ in 0..5 {
        gateway.hours(12, |gateway| assert!(gateway.stands(&lock)));
        gateway.reboot(HOUR);
    }
    let request = Request::from(gateway.world.count());
    gateway.world.handle(Event::Unlock { request, identity: alice(), by: "b".into() });
    assert!(!gateway.world.drops(&lock));
    gateway.minutes(1);
    assert!(gateway.is_empty(), "R7");
}

#[test]
fn r5_r7_what_was_asked_for_explicitly_stands_for_its_time_or_until_it_is_lifted() {
    let token = Target::Token(Token::new(TokenKind::Dtls, vec![7; 32]).unwrap());
    let token_entry = Entry::Token(Token::new(TokenKind::Dtls, vec![7; 32]).unwrap());
    let openvpn = Target::Token(Token::new(TokenKind::Openvpn, vec![7; 8]).unwrap());
    let openvpn_entry = Entry::Token(Token::new(TokenKind::Openvpn, vec![7; 8]).unwrap());
    let targets = [
        (Target::Address(ip(7)), Entry::Address(NETNS, ip(7))),
        (Target::Flow(outer(7)), Entry::Flow(NETNS, outer(7))),
        (token, token_entry),
        (openvpn, openvpn_entry),
    ];
    for (target, entry) in targets {
        let mut gateway = Gateway::new();
        gateway.world.ask(explicit(target.clone(), Some(30 * HOUR)));
        let until = gateway.world.now.wall + 30 * 3_600;
        let check = |gateway: &mut Gateway| {
            assert_eq!(gateway.stands(&entry), gateway.world.now.wall < until, "{entry:?}");
        };
        gateway.hours(12, check);
        gateway.reboot(3 * HOUR);
        gateway.hours(24, check);
        assert!(gateway.is_empty(), "R7: {entry:?}");

        let mut gateway = Gateway::new();
        gateway.world.ask(explicit(target, None));
        gateway.hours(24, |gateway| assert!(gateway.stands(&entry), "R5"));
        gateway.reboot(24 * HOUR);
        gateway.hours(24, |gateway| assert!(gateway.stands(&entry), "R5"));
        gateway.world.lift(1);
        assert!(!gateway.world.drops(&entry));
        gateway.minutes(1);
        assert!(gateway.is_empty(), "R7");
    }
}

#[test]
fn r3_nothing_of_a_session_outlives_a_reboot() {
    let mut gateway = Gateway::new();
    let worker = gateway.hanging();
    gateway.reboot(MINUTE);
    let session_s = |entry: &&Entry| matches!(entry, Entry::Device(_) | Entry::Address(..) | Entry::Flow(..));
    assert_eq!(gateway.world.kernel.keys().find(session_s), None);
    gateway.minutes(2);
    assert!(gateway.is_empty(), "R7: the cookie of {} went with ocserv", worker.cookie);
}
