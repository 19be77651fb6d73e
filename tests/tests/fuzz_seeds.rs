//! R7: the fuzz targets, for a short while and on a stable compiler: what each does with its bytes is done with every
//! seed that is committed and with some thousands of changed copies of them, the same in every run.
//!
//! The long run is libFuzzer's, which sees which code an input reaches: `tests/fuzz/README.md`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

#[path = "../fuzz/bodies/mod.rs"]
mod bodies;

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A test for each target, and all of their names.
macro_rules! targets {
    ($($target:ident $changed:literal)*) => {
        const TARGETS: &[&str] = &[$(stringify!($target)),*];
        $(
            #[test]
            fn $target() {
                run(stringify!($target), bodies::$target::body, $changed);
            }
        )*
    };
}

// how many changed copies; of `orders` fewer, since a parser is built for each
targets! {
    audit 20_000
    cluster 20_000
    config 4_000
    conntrack 20_000
    control 20_000
    cookies 20_000
    occtl 20_000
    ocserv_conf 4_000
    orders 300
    packet 20_000
    record 8_000
    words 20_000
}

/// No target without its test here, and none without a seed.
#[test]
fn every_target_is_here_and_has_seeds() {
    let names = |folder: &str| -> BTreeSet<String> {
        std::fs::read_dir(fuzz().join(folder))
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .collect()
    };
    let here: BTreeSet<String> = TARGETS.iter().map(|&name| name.to_owned()).collect();
    assert_eq!(names("fuzz_targets"), here);
    assert_eq!(names("seeds"), here);
}

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// A hang fails here, and names its input; no input of ours takes a hundredth of that, also on a loaded machine.
const BOUND: Duration = Duration::from_secs(60);

/// Feeds everything to `body`: how many inputs.
fn run(target: &'static str, body: impl Fn(&[u8]) + Send + 'static, changed: u32) -> u32 {
    watched(target, body, inputs(&seeds(target), changed), BOUND)
}

/// The seeds of a target, in the same order everywhere: a folder has none.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(fuzz().join("seeds").join(target))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{target} has no seeds");
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// Nothing, each seed as it is, and as many changed copies.
fn inputs(seeds: &[Vec<u8>], changed: u32) -> impl Iterator<Item = Vec<u8>> + Send + use<> {
    let seeds = seeds.to_vec();
    let mut dice = Dice(0x5eed);
    let copies = {
        let seeds = seeds.clone();
        (0..changed).map(move |_| {
            let mut input = dice.of(&seeds).clone();
            for _ in 0..=dice.below(4) {
                change(&mut input, &seeds, &mut dice);
            }
            input
        })
    };
    std::iter::once(Vec::new()).chain(seeds).chain(copies)
}

/// Feeds the inputs on a thread of its own, and fails if one of them takes longer than `bound`.
fn watched(
    target: &'static str,
    body: impl Fn(&[u8]) + Send + 'static,
    inputs: impl Iterator<Item = Vec<u8>> + Send + 'static,
    bound: Duration,
) -> u32 {
    // without room, so that what was told last is what is being fed
    let (tell, told) = mpsc::sync_channel(0);
    let feeding = std::thread::spawn(move || {
        for input in inputs {
            if tell.send(input.clone()).is_err() {
                return;
            }
            feed(target, &body, &input);
        }
    });
    let (mut fed, mut last) = (0, Vec::new());
    loop {
        match told.recv_timeout(bound) {
            Ok(input) => (fed, last) = (fed + 1, input),
            Err(RecvTimeoutError::Timeout) => {
                panic!("{target} has not come to an end within {bound:?} with b\"{}\"", last.escape_ascii())
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    if let Err(panic) = feeding.join() {
        std::panic::resume_unwind(panic);
    }
    fed
}

/// Says which input it was, so that it can become a seed and a unit test.
fn feed(target: &str, body: &impl Fn(&[u8]), input: &[u8]) {
    if std::panic::catch_unwind(AssertUnwindSafe(|| body(input))).is_err() {
        panic!("{target} fails (its message is above) with b\"{}\"", input.escape_ascii());
    }
}

/// The runner itself: what is broken on purpose does not go by in silence.
mod planted {
    use super::*;

    /// What the runner says of a body that breaks.
    fn said(run: impl FnOnce() -> u32) -> String {
        match std::panic::catch_unwind(AssertUnwindSafe(run)) {
            Ok(fed) => panic!("the runner noticed nothing in {fed} inputs"),
            Err(panic) => panic.downcast_ref::<String>().unwrap().clone(),
        }
    }

    #[test]
    fn every_seed_and_every_changed_copy_is_fed() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let keep = Arc::clone(&seen);
        let fed = run("words", move |input| keep.lock().unwrap().push(input.to_vec()), 500);
        let (seen, seeds) = (seen.lock().unwrap(), seeds("words"));
        assert_eq!((fed as usize, seen.len()), (1 + seeds.len() + 500, 1 + seeds.len() + 500));
        assert!(seen[0].is_empty());
        assert!(seen[1..=seeds.len()] == seeds[..]);
        let copies: BTreeSet<&Vec<u8>> =
            seen[1 + seeds.len()..].iter().filter(|copy| !seeds.contains(copy)).collect();
        assert!(copies.len() > 300, "{} different copies", copies.len());
    }

    #[test]
    fn a_seed_at_which_a_body_panics_is_named() {
        let seed = seeds("words").pop().unwrap();
        let fails = seed.clone();
        let said = said(|| run("words", move |input| assert!(input != fails, "planted"), 0));
        let name = format!("words fails (its message is above) with b\"{}\"", seed.escape_ascii());
        assert_eq!(said, name);
    }

    /// A rule that holds for every seed and not for everything: a changed copy has to find it, and to be named.
    #[test]
    fn a_rule_that_only_a_changed_copy_breaks_is_noticed() {
        let known: BTreeSet<Vec<u8>> = seeds("record").into_iter().chain([Vec::new()]).collect();
        let broken = Arc::new(Mutex::new(None));
        let keep = Arc::clone(&broken);
        let body = move |input: &[u8]| {
            bodies::record::body(input);
            if !known.contains(input) {
                *keep.lock().unwrap() = Some(input.to_vec());
                panic!("planted");
            }
        };
        let said = said(|| run("record", body, 50));
        let input = broken.lock().unwrap().take().unwrap();
        let name = format!("record fails (its message is above) with b\"{}\"", input.escape_ascii());
        assert_eq!(said, name);
    }

    #[test]
    fn a_body_that_never_comes_to_an_end_is_named() {
        // it hangs until it was noticed, so that nothing is left of it
        let (release, hangs) = mpsc::channel::<()>();
        let hangs = Mutex::new(hangs);
        let body = move |input: &[u8]| {
            if input == b"endless" {
                let _ = hangs.lock().unwrap().recv();
            }
        };
        let inputs = [b"short".to_vec(), b"endless".to_vec(), b"later".to_vec()].into_iter();
        let said = said(|| watched("words", body, inputs, Duration::from_secs(2)));
        assert_eq!(said, "words has not come to an end within 2s with b\"endless\"");
        drop(release);
    }
}

/// No input is longer: what is long is slow, and finds nothing that a shorter one would not.
const LONGEST: usize = 4_096;
/// Bytes at which parsers turn.
const TURNS: &[u8] = b"\0\x01\x04\x05\x06\x08\x11\x45\x60\x7f\x80\xff \n\"'=:.,-+[]%/0129aAzZ";

fn change(input: &mut Vec<u8>, seeds: &[Vec<u8>], dice: &mut Dice) {
    let (from, to) = (dice.below(input.len() + 1), dice.below(input.len() + 1));
    let (from, to) = (from.min(to), from.max(to));
    match dice.below(8) {
        0 => input.truncate(from),
        1 => drop(input.drain(from..to)),
        2 => input.insert(from, *dice.of(TURNS)),
        3 => {
            let part = input[from..to].to_vec();
            input.splice(from..from, part);
        }
        4 => {
            let other = dice.of(seeds);
            let part = &other[dice.below(other.len() + 1)..];
            input.splice(from..to, part.iter().copied());
        }
        kind => {
            let any = dice.next().to_le_bytes()[0];
            let Some(byte) = input.get_mut(from) else { return };
            *byte = match kind {
                5 => *byte ^ (1 << (any % 8)),
                6 => any,
                _ => *dice.of(TURNS),
            };
        }
    }
    input.truncate(LONGEST);
}

/// Numbers that look random and are the same in every run (splitmix64, in the public domain).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 0 to `end` - 1; `end` is above 0.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}
