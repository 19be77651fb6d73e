//! The promises in every state of a random world: clients connect, reconnect and knock, administrators revoke, lock
//! and lift, the disk is slow, full or lies, ocserv falls silent and restarts, the daemon dies between any two
//! effects and comes back, the host is started anew, clocks are set, and whatever is under way happens in any order.
//! A model beside it knows what was ordered, what was answered, and so whom the gate has to refuse and whom not.
//!
//! `cargo test` searches the same states every time. `PROPTEST_CASES=20000 cargo test -p enforcer --lib
//! registry::tests::machine::r1` searches others, and prints a story that breaks a promise.

mod faults;
mod model;
mod ops;
mod orders;
mod play;
mod promises;

use std::cell::Cell;
use std::time::Instant;

use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use faults::Fault;
use model::Machine;
use ops::Story;

std::thread_local! {
    /// How many states the stories of this search have gone through.
    static STEPS: Cell<u64> = const { Cell::new(0) };
}

fn play(story: &Story, fault: Fault) {
    let mut machine = Machine::new(story, fault);
    for op in &story.ops {
        machine.step(op);
    }
    machine.end();
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 20_000, ..ProptestConfig::default() }
}

/// A search that is the same every time, so that a red run is somebody's change.
fn same(seed: u8, config: ProptestConfig) -> TestRunner {
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]))
}

fn search(seed: u8) {
    let started = Instant::now();
    let number = |name| std::env::var(name).ok().and_then(|n| n.parse::<u32>().ok());
    let mut runner = match number("PROPTEST_CASES") {
        Some(cases) => TestRunner::new(config(cases)),
        None => same(seed, config(CASES)),
    };
    let outcome = runner.run(&ops::stories(), |story| {
        play(&story, Fault::None);
        Ok(())
    });
    let states = STEPS.get();
    println!("{states} states in {:?}", started.elapsed());
    if let Err(TestError::Fail(why, story)) = outcome {
        panic!("{why}\n{story:#?}");
    }
    assert!(
        states >= 500_000 || number("PROPTEST_CASES").is_some(),
        "a search of {states} states is too small"
    );
}

/// Two halves of one search, so that two processors can have one each.
const CASES: u32 = 1_700;

#[test]
fn r1_r2_r3_r4_r5_r7_hold_in_every_state_of_a_random_world() {
    search(1);
}

#[test]
fn r1_r2_r3_r4_r5_r7_hold_in_every_state_of_another_random_world() {
    search(2);
}

#[test]
fn the_random_world_finds_what_is_broken_on_purpose() {
    for fault in faults::ALL {
        let played = Cell::new(0);
        let config = ProptestConfig { max_shrink_iters: 0, max_global_rejects: 0, ..config(2_000) };
        let outcome = same(3, config).run(&ops::stories(), |story| {
            played.set(played.get() + 1);
            if let Err(why) = std::panic::catch_unwind(|| play(&story, fault)) {
                // nothing but the fault is wrong with it
                if std::panic::catch_unwind(|| play(&story, Fault::None)).is_err() {
                    return Err(TestCaseError::reject("the rules are wrong"));
                }
                std::panic::resume_unwind(why);
            }
            Ok(())
        });
        let Err(TestError::Fail(why, _)) = &outcome else { panic!("{fault:?} was not found") };
        let why: String = why.message().chars().take(80).collect();
        println!("{fault:?}: found in story {}: {why}", played.get());
    }
}
