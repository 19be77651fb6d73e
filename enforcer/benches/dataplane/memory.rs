//! What this machine's memory takes for one load: the least that a lookup among so many entries can cost.

use crate::cpu;

const LOADS: u32 = 1_000_000;

/// One cache line, in which the number of the next one stands.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(usize);

/// Nanoseconds for a load from one of `lines` cache lines at random, each of which has to wait for the one before it.
pub fn load(lines: u32) -> f64 {
    let count = usize::try_from(lines).expect("a count");
    // every line once, in a random order (Sattolo's): there is no shorter circle
    let mut order: Vec<usize> = (0..count).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for at in (1..count).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        order.swap(at, usize::try_from(state % at as u64).expect("an index"));
    }
    let table: Vec<Line> = order.into_iter().map(Line).collect();
    let mut at = 0;
    let mut walk = |loads: u32| {
        for _ in 0..loads {
            at = table[at].0;
        }
    };
    walk(LOADS / 4);
    let before = cpu::thread();
    walk(LOADS);
    let took = (cpu::thread() - before) as f64 / f64::from(LOADS);
    assert!(std::hint::black_box(at) < count);
    took
}
