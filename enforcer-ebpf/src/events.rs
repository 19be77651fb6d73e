//! Drops that are told of one by one: the first of an entry, and the first after it was quiet for a while.
//!
//! The programs write them into a ring buffer, at most [`AT_ONCE`] of them for each time that the reader has looked
//! ([`Budget`]). Whoever floods makes them say no more than that, and where nobody reads, nothing is written.

use core::mem::size_of;

use crate::layout::Address;
use crate::packed::TICK_NS;

/// An entry that has dropped nothing for so long tells of its next drop again.
pub const QUIET_NS: u64 = 60_000_000_000;
/// The same in ticks, as [`crate::packed::Tail::last`].
pub const QUIET_TICKS: u64 = QUIET_NS / TICK_NS;

/// How many the programs of all CPUs together may tell until the reader allows more, which it does once a second at
/// most.
pub const AT_ONCE: u64 = 64;

/// The size of the ring buffer: more than three thousand of them.
pub const RING_BYTES: u32 = 1 << 18;

/// One drop. What was not read of the packet is 0: ports and protocol of anything but TCP and UDP in one piece without IPv6
/// extension headers.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DropEvent {
    /// CLOCK_MONOTONIC.
    pub at_ns: u64,
    /// The number of the entry's revocation; 0: it is not where the program looks (see [`crate::packed::Bucket`]).
    pub revocation: u64,
    pub source: Address,
    pub destination: Address,
    /// In network byte order.
    pub source_port: u16,
    pub destination_port: u16,
    pub protocol: u32,
    pub netns: u32,
    pub ifindex: u32,
    /// [`crate::counters::Reason`].
    pub reason: u32,
    /// 1: the entry has dropped before, and was quiet for [`QUIET_NS`].
    pub again: u32,
}

/// Who may tell, in the one entry of [`crate::layout::EVENT_BUDGET`]. Nothing is ever taken back in it, so an addition
/// is all that the programs need: compare-and-swap, which would do with less, is not there on every kernel that runs
/// these.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Budget {
    /// How many wanted to tell; written by the programs. Whoever reads, after its own addition, more than `allowed`
    /// must be silent.
    pub asked: u64,
    /// Up to which of them may; written by the reader, which makes it `asked` and [`AT_ONCE`] more.
    pub allowed: u64,
    /// How many had to be silent; written by the programs.
    pub suppressed: u64,
    /// How many found the ring full; written by the programs.
    pub lost: u64,
}

/// [`news`]: the entry has not dropped anything before.
pub const FIRST: u64 = 1;
/// ... it has, and was quiet since.
pub const AGAIN: u64 = 2;

/// Whether a drop is told of, by when the entry's last one was (0: there was none) and how long it must have been quiet,
/// in whatever unit: [`FIRST`], [`AGAIN`], or 0. All of them are less than 2^63, and there is no branch.
#[inline(always)]
pub const fn news(last: u64, now: u64, quiet: u64) -> u64 {
    // the highest bits say whether a subtraction went below 0
    let first = last.wrapping_sub(1) >> 63;
    let quiet = !now.wrapping_sub(last.wrapping_add(quiet)) >> 63;
    // of one that has dropped nothing the time says nothing
    first | (quiet & (first ^ 1)) << 1
}

const _: () = {
    assert!(size_of::<DropEvent>() == 72);
    assert!(size_of::<Budget>() == 32);
    assert!(RING_BYTES.is_power_of_two());
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::Tail;

    #[test]
    fn the_first_is_told_and_the_first_after_a_minute_of_silence() {
        let now = 10 * QUIET_NS;
        for now in [1, now] {
            assert_eq!(news(0, now, QUIET_NS), FIRST, "also right after the host has started");
        }
        assert_eq!([now, now - 1, now - QUIET_NS + 1].map(|last| news(last, now, QUIET_NS)), [0; 3]);
        assert_eq!([now - QUIET_NS, 1].map(|last| news(last, now, QUIET_NS)), [AGAIN; 2]);
        let (tick, old) = (u64::from(Tail::tick(now)), u64::from(Tail::tick(now - QUIET_NS - TICK_NS)));
        assert_eq!((news(tick, tick, QUIET_TICKS), news(old, tick, QUIET_TICKS)), (0, AGAIN));
    }

    /// Another CPU may have read its clock later, and written first.
    #[test]
    fn a_last_drop_that_is_later_than_now_is_no_news() {
        assert_eq!(news(1_001, 1_000, QUIET_NS), 0);
    }
}
