//! Many gateways in simulated time: a small run of `src/bin/simulate_cluster`, which checks what it shows.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]

use std::process::Command;

/// What a run prints; it must have found everything as it has to be.
fn run(seed: &str) -> String {
    let run = Command::new(env!("CARGO_BIN_EXE_simulate_cluster"))
        .args(["--gateways", "50", "--sessions", "5000", "--within", "100", "--minutes", "1", "--seed", seed])
        .output()
        .expect("the simulation starts");
    let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "seed {seed}:\n{out}\n{err}");
    out.into_owned()
}

fn digest(out: &str) -> &str {
    out.lines().find(|line| line.starts_with("digest ")).expect("it prints a digest")
}

/// R2, R3, R5, R7: whatever is cut off, dies and comes back among 50 gateways; see `checks.rs` there.
#[test]
fn r2_r5_fifty_gateways_keep_what_is_promised_and_a_run_is_repeatable() {
    let first = run("1");
    assert_eq!(digest(&first), digest(&run("1")), "the same seed");
    assert_ne!(digest(&first), digest(&run("2")), "another one");
}
