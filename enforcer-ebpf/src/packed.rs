//! A hash table that a packet can ask for one word: the layout of its memory, and where a key belongs.
//!
//! Three array maps make one table of [`SLOTS`] entries a bucket. A [`Bloom`] word is a Bloom filter of the keys whose
//! home the bucket is (Putze, Sanders and Singler, "Cache-, hash- and space-efficient Bloom filters", 2007: a blocked
//! one): whose bits are not all set there has no entry, and that is all that nine of ten honest packets cost. The words
//! of a million entries are two thirds of a megabyte, which the cache of one core has room for. A [`Line`] is half a
//! cache line and has a tag of 16 bits for each slot of its bucket: who finds no tag there has no entry. Both are only
//! hints; an entry counts if its whole key is the same ([`Bucket`]).
//!
//! A key belongs into its home bucket. If that is full, the home line's count of those elsewhere goes up, and the
//! key goes into its other bucket; if that is full too, into a plain hash map of the kernel's. So a lookup takes at
//! most two lines and one lookup there, whatever keys somebody chooses; which keys share a bucket depends on
//! [`HashKeys`], which are random and secret.
//!
//! One process writes, through memory that it shares with the kernel (`BPF_F_MMAPABLE`); the programs read, and
//! count hits. What the writer must keep to, so that no reader ever sees half an entry:
//!
//! - The bits of a key are set in its home's word before it has an entry, wherever that is. They are taken back after it
//!   is gone, by one store of the word that those who are left make.
//! - An entry is written whole before its tag is.
//! - A count of those elsewhere goes up before an entry goes elsewhere, and down after it is gone.
//! - Entries never move. To remove one, its tag becomes [`FREED`]; its slot gets no other entry before every
//!   program that could have seen the tag has ended (an RCU grace period).
//!
//! A writer that dies between two steps leaves a free slot, or bits or a count too many, which cost a lookup.

use core::mem::size_of;

use crate::layout::{AddressKey, FOREVER, FlowKey, LEASED};

/// Slots of a bucket.
pub const SLOTS: usize = 15;

/// The bits ([`bits`]) of all keys whose home a bucket is, and perhaps more.
pub type Bloom = u64;

/// Tags of a slot without an entry: one that can be taken, and one that cannot yet. No key has them.
pub const FREE: u16 = 0;
pub const FREED: u16 = 1;
const FIRST_TAG: u16 = 2;

/// Tags of a bucket's slots, and how many entries whose home this is are elsewhere: in their other bucket, and in
/// the plain map. A count that has come to 255 stays there.
#[repr(C, align(32))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Line {
    pub tags: [u16; SLOTS],
    pub in_other: u8,
    pub in_plain: u8,
}

/// What stands of one key. Times are in [`TICK_NS`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tail {
    /// [`TAIL_LEASED`], [`TAIL_FOREVER`], or the tick from which the entry is as good as absent.
    pub expires: u32,
    /// Packets dropped; written by the programs, which stop at the last number.
    pub hits: u32,
    /// The tick of the last of them; 0: none.
    pub last: u32,
}

/// An entry; no slot lies across two cache lines.
#[repr(C, align(32))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Slot<K> {
    pub key: K,
    pub tail: Tail,
}

/// The entries of a bucket, and the numbers of the revocations that say so, which no packet needs.
#[repr(C, align(32))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bucket<K> {
    pub slots: [Slot<K>; SLOTS],
    pub revocations: [u32; SLOTS],
    pub unused: u32,
}

/// The unit of times in a [`Tail`]: 2^26 ns, 67 ms; 9 years of them have numbers.
pub const TICK_NS: u64 = 1 << TICK_BITS;
const TICK_BITS: u32 = 26;
pub const TAIL_LEASED: u32 = 0;
pub const TAIL_FOREVER: u32 = u32::MAX;
/// The daemon stops earlier: while it adds, the programs go on counting.
pub const MOST_HITS: u32 = u32::MAX - 4096;

impl Tail {
    /// `expires_ns` of a [`crate::layout::Standing`], rounded up to a tick: an entry stands up to 67 ms longer,
    /// never shorter. After 9 years of the clock it stands until it is removed.
    pub const fn encode(expires_ns: u64) -> u32 {
        match expires_ns {
            FOREVER => TAIL_FOREVER,
            LEASED => TAIL_LEASED,
            until => {
                let tick = until.div_ceil(TICK_NS);
                if tick >= TAIL_FOREVER as u64 { TAIL_FOREVER - 1 } else { tick as u32 }
            }
        }
    }

    /// As [`crate::layout::Standing::expires_ns`].
    #[inline(always)]
    pub const fn decode(expires: u32) -> u64 {
        match expires {
            TAIL_FOREVER => FOREVER,
            TAIL_LEASED => LEASED,
            tick => (tick as u64) << TICK_BITS,
        }
    }

    /// The tick of a moment, as [`Tail::last`]: never 0.
    #[inline(always)]
    pub const fn tick(now_ns: u64) -> u32 {
        (now_ns >> TICK_BITS) as u32 | (now_ns < TICK_NS) as u32
    }
}

/// The longest key, in words of 32 bits, rounded up to pairs.
const WORDS: usize = 12;

/// The secret of the hash, 64 random bits for each word and 64 more.
pub type HashKeys = [u64; WORDS + 1];

/// A key of such a table.
pub trait Key: Copy + PartialEq {
    const COUNT: usize;
    /// Word by word, so that a reader can compare while somebody writes.
    fn word(&self, at: usize) -> u32;
}

impl Key for FlowKey {
    const COUNT: usize = 11;
    #[inline(always)]
    fn word(&self, at: usize) -> u32 {
        match at {
            0..=3 => self.client.word(at),
            4..=7 => self.local.word(at - 4),
            // as the two lie in memory
            8 => self.client_port as u32 | (self.local_port as u32) << 16,
            9 => self.protocol,
            _ => self.netns,
        }
    }
}

impl Key for AddressKey {
    const COUNT: usize = 5;
    #[inline(always)]
    fn word(&self, at: usize) -> u32 {
        match at {
            0..=3 => self.address.word(at),
            _ => self.netns,
        }
    }
}

/// A keyed hash: the sum of Multilinear-HM (Lemire and Kaser, "Strongly universal string hashing is fast", The Computer
/// Journal 57, 2014), in which two different keys differ by chance as long as nobody knows the secret, whoever chose
/// them; and then mixed, since sums of keys that follow one another, as addresses of a network do, follow one another
/// at equal distances and may crowd. The upper half says where a key belongs and which tag it has, the lower half
/// which bits.
#[inline(always)]
pub fn hash<K: Key>(key: &K, secret: impl Fn(usize) -> u64) -> u64 {
    let mut sum = secret(0);
    let mut at = 0;
    while at < K::COUNT {
        let first = key.word(at) as u64;
        let second = if at + 1 < K::COUNT { key.word(at + 1) as u64 } else { 0 };
        let product = secret(at + 1).wrapping_add(first).wrapping_mul(secret(at + 2).wrapping_add(second));
        sum = sum.wrapping_add(product);
        at += 2;
    }
    sum = (sum ^ sum >> 32).wrapping_mul(MIX);
    sum = (sum ^ sum >> 32).wrapping_mul(MIX);
    sum ^ sum >> 32
}

/// Odd, and with its bits well spread; so that each step of the mixing can be undone, and no two sums become one.
const MIX: u64 = 0xd6e8_feb8_6659_fd93;

/// The bucket of a hash among `buckets`: its upper bits.
#[inline(always)]
pub const fn home(hash: u64, buckets: u32) -> u32 {
    (((hash >> 32) * buckets as u64) >> 32) as u32
}

/// The bits of a hash in its home's [`Bloom`] word: three of 64. With twelve and a half keys a word, nine of a hundred
/// others find theirs set as well; two or four bits are no better.
#[inline(always)]
pub const fn bits(hash: u64) -> Bloom {
    1 << (hash & 63) | 1 << (hash >> 6 & 63) | 1 << (hash >> 12 & 63)
}

/// The bucket of those that find no room in their home.
#[inline(always)]
pub const fn other(hash: u64, buckets: u32) -> u32 {
    // odd, so that no two become one; the lower bits of the upper half, of which the home knows nothing, come up
    let mixed = ((hash >> 32) as u32).rotate_left(16).wrapping_mul(0x9e37_79b1);
    ((mixed as u64 * buckets as u64) >> 32) as u32
}

/// The tag of a hash: the lower bits of its upper half.
#[inline(always)]
pub const fn tag(hash: u64) -> u16 {
    let tag = (hash >> 32) as u16;
    if tag < FIRST_TAG { tag + FIRST_TAG } else { tag }
}

const ONES: u64 = 0x0001_0001_0001_0001;
const TOPS: u64 = 0x8000_8000_8000_8000;
/// The counts, in the last of a line's four words.
const COUNTS: u32 = 48;

/// Whether a line, as four words, may have that tag: never `false` if it has.
#[inline(always)]
pub const fn may_have(words: &[u64; 4], tag: u16) -> bool {
    let wanted = ONES * tag as u64;
    let (a, b, c, d) = (words[0] ^ wanted, words[1] ^ wanted, words[2] ^ wanted, words[3] ^ wanted);
    let zero = (a.wrapping_sub(ONES) & !a) | (b.wrapping_sub(ONES) & !b) | (c.wrapping_sub(ONES) & !c);
    let last = d.wrapping_sub(ONES) & !d & (u64::MAX >> 16);
    (zero | last) & TOPS != 0
}

/// The slots of a line, as four words, that have that tag: bit `n` for slot `n`.
#[inline(always)]
pub const fn with_tag(words: &[u64; 4], tag: u16) -> u32 {
    let wanted = ONES * tag as u64;
    let (a, b) = (zero_lanes(words[0] ^ wanted), zero_lanes(words[1] ^ wanted));
    let (c, d) = (zero_lanes(words[2] ^ wanted), zero_lanes(words[3] ^ wanted));
    // the last lane has the counts
    a | b << 4 | c << 8 | (d & 0b0111) << 12
}

/// Which of the four lanes of 16 bits are 0, a bit each.
#[inline(always)]
const fn zero_lanes(word: u64) -> u32 {
    // per lane: the top bit comes up if any of the lower 15 is set, with no carry into the next lane
    let zeros = !((((word & !TOPS) + !TOPS) | word) | !TOPS) >> 15;
    // lane n's bit comes to bit 48 + n, and no two bits of the product meet
    (zeros.wrapping_mul(1 << 48 | 1 << 33 | 1 << 18 | 1 << 3) >> 48) as u32 & 0xf
}

/// The lowest bit that is set in a number of 16 bits that is not 0. Without a loop and without a branch, of which the
/// CPU would guess wrong almost every time.
#[inline(always)]
pub const fn lowest(bits: u32) -> u32 {
    let one = bits & bits.wrapping_neg();
    // four bits that no other power of two brings to the same place: a de Bruijn sequence
    let at = (one.wrapping_mul(DE_BRUIJN) >> 12) & 0xf;
    (POSITIONS >> (4 * at)) as u32 & 0xf
}

const DE_BRUIJN: u32 = 0x09af;
/// For each four bits of the sequence the power of two that brings them up, four bits each.
const POSITIONS: u64 = {
    let (mut positions, mut bit) = (0, 0);
    while bit < 16 {
        let at = (DE_BRUIJN << bit >> 12) & 0xf;
        positions |= (bit as u64) << (4 * at);
        bit += 1;
    }
    positions
};

/// [`Line::in_other`] and [`Line::in_plain`] of a line as four words; not 0: some are elsewhere.
#[inline(always)]
pub const fn elsewhere(words: &[u64; 4]) -> u64 {
    words[3] >> COUNTS
}

/// Where a key is, as far as a reader can see.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place<F> {
    Here(F),
    /// If anywhere, it is in the plain map.
    Plain,
    Nowhere,
}

/// What a reader sees of a table.
pub trait Table<K> {
    type Found;
    /// The Bloom word of a bucket; `None`: there is no such bucket.
    fn bloom(&self, bucket: u32) -> Option<Bloom>;
    /// The words of a line; `None`: there is no such bucket.
    fn line(&self, bucket: u32) -> Option<[u64; 4]>;
    /// Among those slots of that bucket ([`with_tag`]), the one with that key.
    fn search(&self, bucket: u32, slots: u32, key: &K) -> Option<Self::Found>;
}

/// Whether one word tells that the key is nowhere: never `true` where it is somewhere.
#[inline(always)]
pub fn is_nowhere<K: Key, T: Table<K>>(
    table: &T,
    buckets: u32,
    secret: impl Fn(usize) -> u64,
    key: &K,
) -> bool {
    if buckets == 0 {
        return false;
    }
    let hash = hash(key, secret);
    let bits = bits(hash);
    match table.bloom(home(hash, buckets)) {
        Some(bloom) => bloom & bits != bits,
        None => false,
    }
}

/// A lookup among `buckets`; with none of them, everything is in the plain map.
#[inline(always)]
pub fn find<K: Key, T: Table<K>>(
    table: &T,
    buckets: u32,
    secret: impl Fn(usize) -> u64,
    key: &K,
) -> Place<T::Found> {
    if buckets == 0 {
        return Place::Plain;
    }
    let hash = hash(key, secret);
    let (home, bits) = (home(hash, buckets), bits(hash));
    let Some(bloom) = table.bloom(home) else { return Place::Plain };
    if bloom & bits != bits {
        return Place::Nowhere;
    }
    let tag = tag(hash);
    let Some(words) = table.line(home) else { return Place::Plain };
    if may_have(&words, tag)
        && let Some(found) = table.search(home, with_tag(&words, tag), key)
    {
        return Place::Here(found);
    }
    let elsewhere = elsewhere(&words);
    if elsewhere == 0 {
        return Place::Nowhere;
    }
    if elsewhere & 0xff != 0 {
        let other = other(hash, buckets);
        let Some(words) = table.line(other) else { return Place::Plain };
        if may_have(&words, tag)
            && let Some(found) = table.search(other, with_tag(&words, tag), key)
        {
            return Place::Here(found);
        }
    }
    if elsewhere >> 8 == 0 { Place::Nowhere } else { Place::Plain }
}

const _: () = {
    // the words of a line are read as they lie in memory
    assert!(cfg!(target_endian = "little"));
    assert!(size_of::<Line>() == 32);
    assert!(size_of::<Tail>() == 12);
    assert!(size_of::<Slot<AddressKey>>() == 32);
    assert!(size_of::<Bucket<AddressKey>>() == 544);
    assert!(size_of::<Slot<FlowKey>>() == 64);
    assert!(size_of::<Bucket<FlowKey>>() == 1024);
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(line: &Line) -> [u64; 4] {
        let word = |at: usize| {
            (0..4).fold(0, |word, lane| {
                let lane16 = match at * 4 + lane {
                    15 => u16::from(line.in_other) | u16::from(line.in_plain) << 8,
                    slot => line.tags[slot],
                };
                word | u64::from(lane16) << (16 * lane)
            })
        };
        [word(0), word(1), word(2), word(3)]
    }

    proptest! {
        #[test]
        fn r1_a_tag_that_is_there_is_always_seen(
            mut tags: [u16; SLOTS], in_other: u8, in_plain: u8, slots: [bool; SLOTS], slot in 0..SLOTS,
            tag in FIRST_TAG..,
        ) {
            for (there, _) in tags.iter_mut().zip(slots).filter(|(_, same)| *same) {
                *there = tag;
            }
            tags[slot] = tag;
            let line = words(&Line { tags, in_other, in_plain });
            prop_assert!(may_have(&line, tag));
            let mut slots = with_tag(&line, tag);
            for slot in (0..SLOTS).filter(|slot| tags[*slot] == tag) {
                prop_assert_eq!(lowest(slots), slot as u32, "all of them and no others, from the first to the last");
                slots &= slots - 1;
            }
            prop_assert_eq!(slots, 0);
            prop_assert_eq!(elsewhere(&line), u64::from(in_other) | u64::from(in_plain) << 8);
        }

        #[test]
        fn r3_an_empty_line_has_nothing(in_other: u8, in_plain: u8, tag in FIRST_TAG..) {
            let line = words(&Line { tags: [FREE; SLOTS], in_other, in_plain });
            prop_assert!(!may_have(&line, tag), "the counts are no tags");
            prop_assert_eq!(with_tag(&line, tag), 0);
        }

        #[test]
        fn a_place_is_within_the_table(hash: u64, buckets in 1..=u32::MAX) {
            prop_assert!(home(hash, buckets) < buckets && other(hash, buckets) < buckets);
            prop_assert!(tag(hash) >= FIRST_TAG);
            prop_assert!((1..=3).contains(&bits(hash).count_ones()));
        }

        #[test]
        fn an_expiry_is_rounded_up_and_by_less_than_a_tick(until in 1..u64::MAX >> 7) {
            let back = Tail::decode(Tail::encode(until));
            prop_assert!(back >= until && back - until < TICK_NS);
        }
    }

    #[test]
    fn what_is_no_moment_survives() {
        for special in [FOREVER, LEASED] {
            assert_eq!(Tail::decode(Tail::encode(special)), special);
        }
        assert_ne!(Tail::encode(FOREVER - 1), TAIL_FOREVER);
        assert_eq!((Tail::tick(0), Tail::tick(TICK_NS), Tail::tick(TICK_NS * 2)), (1, 1, 2));
    }

    /// Whatever row of keys there is and whatever the secret, few find no room in their two buckets: far fewer than the
    /// plain map has room for.
    #[test]
    fn r1_keys_in_a_row_spread_under_every_secret() {
        const BUCKETS: u32 = 1_311;
        let rows: [(u32, u32); 4] = [(1, 0x0a00_0000), (256, 0x0a00_0000), (4, 0xc0a8_0001), (65_536, 1)];
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..60 {
            let secret: HashKeys = core::array::from_fn(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state
            });
            for (step, start) in rows {
                let mut counts = [0_u32; BUCKETS as usize];
                let mut left = 0;
                for number in 0..16_384_u32 {
                    let address = start.wrapping_add(number.wrapping_mul(step));
                    let key = AddressKey { address: crate::layout::Address::v4(address.to_be()), netns: 7 };
                    let hash = hash(&key, |at| secret[at]);
                    let places = [home(hash, BUCKETS), other(hash, BUCKETS)].map(|place| place as usize);
                    match places.into_iter().find(|place| counts[*place] < SLOTS as u32) {
                        Some(place) => counts[place] += 1,
                        None => left += 1,
                    }
                }
                assert!(left < 16_384 / 64, "{left} of 16384 find no room: row {start:#x} by {step}");
            }
        }
    }
}
