//! R5: kill -9 of daemons at random moments while orders run, and then a checker.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use enforcer_tests::Client;
use enforcer_tests::enforcer::{DONE, PARTIAL};
use enforcer_tests::gateways::{A, B, C, Gateways, Ledger};
use nix::sys::signal::Signal;

/// xorshift: the same stories for the same seed, as far as the machine lets them be.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// One order by the command line, from its start to its answer, if there is one.
fn order(world: &Gateways, ledger: &Mutex<Ledger<'_>>, place: usize, user: &str, what: u64) -> bool {
    let given = {
        let mut ledger = ledger.lock().unwrap();
        match what {
            0 => ledger.locks(user),
            1 => ledger.unlocks(user),
            _ => ledger.revokes(user),
        }
    };
    let words = match what {
        0 => ["lock", "user", user].to_vec(),
        1 => ["unlock", "user", user].to_vec(),
        _ => ["disconnect", "user", "-i", user].to_vec(),
    };
    let answer = world[place].order_at_once(&words);
    let is_answered = [DONE, PARTIAL].contains(&answer.code);
    if is_answered {
        ledger.lock().unwrap().answered(given);
    }
    is_answered
}

/// R1, R2, R3, R4, R5: in each round sessions are there on all gateways; orders are given on two gateways, each about people of
/// its own, and one of these, or a third one, is killed at a random moment. Then all are started, and everything is compared:
/// every answered revocation is in force everywhere, nobody else has ended, and what was not answered is wholly one or the other.
#[test]
fn r5_daemons_are_killed_at_random_moments_while_orders_run() {
    let kills = super::number("ENFORCER_TEST_KILLS", 6);
    let now = enforcer_tests::Moment::now().0 | 1;
    let seed = super::number("ENFORCER_TEST_SEED", now);
    eprintln!("ENFORCER_TEST_SEED={seed}");
    let mut dice = Dice(seed);
    let mut world = Gateways::new("gws-crash");
    let hosts: Vec<Client> = (0..5).map(|number| world.lab.client(&format!("h{number}"))).collect();
    let mut answered = 0;
    for round in 0..kills {
        // everybody begins anew: what was looked at in the rounds before was looked at
        let mut ledger = Ledger::default();
        ledger.session(&world, B, &hosts[0], "alice");
        ledger.session(&world, C, &hosts[1], "alice");
        ledger.session(&world, C, &hosts[2], "carol");
        ledger.session(&world, A, &hosts[3], "carol");
        ledger.session(&world, B, &hosts[4], "bob");
        let ledger = Mutex::new(ledger);
        let victim = [A, B, C][usize::try_from(dice.roll(3)).unwrap()];
        let instant = Duration::from_micros(dice.roll(400_000));
        let whats = [dice.roll(4), dice.roll(4)];
        let stop = AtomicBool::new(false);
        let done: usize = std::thread::scope(|scope| {
            let orders = [(A, "alice", whats[0]), (B, "carol", whats[1])].map(|(place, user, first)| {
                let (world, ledger, stop) = (&world, &ledger, &stop);
                scope.spawn(move || {
                    let mut count = 0;
                    // a lock is followed by its unlock, if there is time
                    for what in [first, if first == 0 { 1 } else { 2 }] {
                        if !stop.load(Ordering::SeqCst) {
                            count += usize::from(order(world, ledger, place, user, what));
                        }
                    }
                    count
                })
            });
            std::thread::sleep(instant);
            world[victim].enforcer.signal(Signal::SIGKILL);
            stop.store(true, Ordering::SeqCst);
            orders.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        answered += done;
        world[victim].enforcer.kill();
        world[victim].enforcer.start();
        let mut ledger = ledger.into_inner().unwrap();
        ledger.check(&world);
        eprintln!("round {round}: {} killed after {instant:?}, {done} orders answered", world[victim].name);
        for user in ["alice", "carol"] {
            // 3: nothing matched
            let code = world[C].order(&["unlock", "user", user]).code;
            assert!([0, 3].contains(&code), "unlock {user}: {code}");
        }
        ledger.opened();
        ledger.lets_in(&world);
        drop(ledger);
        gone(&world);
    }
    eprintln!("{kills} kills, {answered} orders answered");
}

/// Every client has left.
fn gone(world: &Gateways) {
    world.lab.eventually("nobody is connected", || {
        let there = |user: &str| world.iter().any(|gateway| !gateway.server.sessions(user).is_empty());
        (!["alice", "bob", "carol"].into_iter().any(there)).then_some(())
    });
}
