//! R7: the fuzz targets, for a short while and on a stable compiler: what each does with its bytes is done with every
//! seed that is committed and with some thousands of changed copies of them, the same in every run.
//!
//! The long run is libFuzzer's, which sees which code an input reaches: `tests/fuzz/README.md`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

#[path = "../fuzz/bodies/mod.rs"]
mod bodies;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

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
    config 4_000
    conntrack 20_000
    control 20_000
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

fn run(target: &str, body: fn(&[u8]), changed: u32) {
    let mut files: Vec<PathBuf> = std::fs::read_dir(fuzz().join("seeds").join(target))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    // a folder has no order, and the run shall be the same everywhere
    files.sort();
    let seeds: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    assert!(!seeds.is_empty(), "{target} has no seeds");
    feed(target, body, &[]);
    for seed in &seeds {
        feed(target, body, seed);
    }
    let mut dice = Dice(0x5eed);
    for _ in 0..changed {
        let mut input = dice.of(&seeds).clone();
        for _ in 0..=dice.below(4) {
            change(&mut input, &seeds, &mut dice);
        }
        feed(target, body, &input);
    }
}

/// Says which input it was, so that it can become a seed and a unit test.
fn feed(target: &str, body: fn(&[u8]), input: &[u8]) {
    if std::panic::catch_unwind(|| body(input)).is_err() {
        panic!("{target} fails (its message is above) with b\"{}\"", input.escape_ascii());
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
