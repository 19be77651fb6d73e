//! A lookup in a packed table (`enforcer_ebpf::packed`).

use aya_ebpf::btf_maps::Array;
use enforcer_ebpf::packed::{self, Bucket, Key, Line, SLOTS, Slot, Tail};

use super::tables::{SHARED, secret};

/// Where a key is.
pub enum Place {
    Here(*mut Tail),
    /// If anywhere, it is in the plain map.
    Plain,
    Nowhere,
}

/// `count` buckets. With none, everything is in the plain map.
#[inline(always)]
pub fn find<K: Key>(
    lines: &Array<Line, 1, SHARED>,
    buckets: &Array<Bucket<K>, 1, SHARED>,
    count: u32,
    key: &K,
) -> Place {
    if count == 0 {
        return Place::Plain;
    }
    let hash = packed::hash(key, secret);
    let tag = packed::tag(hash);
    let home = packed::home(hash, count);
    let Some(line) = lines.get_ptr(home) else { return Place::Plain };
    let words = read(line);
    if packed::may_have(&words, tag)
        && let Some(tail) = search(line, buckets, home, tag, key)
    {
        return Place::Here(tail);
    }
    let elsewhere = packed::elsewhere(&words);
    if elsewhere == 0 {
        return Place::Nowhere;
    }
    if elsewhere & 0xff != 0 {
        let other = packed::other(hash, count);
        let Some(line) = lines.get_ptr(other) else { return Place::Plain };
        if packed::may_have(&read(line), tag)
            && let Some(tail) = search(line, buckets, other, tag, key)
        {
            return Place::Here(tail);
        }
    }
    if elsewhere >> 8 == 0 { Place::Nowhere } else { Place::Plain }
}

#[inline(always)]
fn read(line: *const Line) -> [u64; 4] {
    let words = line.cast::<u64>();
    // SAFETY: a line is 32 aligned bytes of the map. Volatile: the daemon may write at any time.
    unsafe { [words.read_volatile(), words.add(1).read_volatile(), words.add(2).read_volatile(), words.add(3).read_volatile()] }
}

#[inline(always)]
fn search<K: Key>(
    line: *const Line,
    buckets: &Array<Bucket<K>, 1, SHARED>,
    at: u32,
    tag: u16,
    key: &K,
) -> Option<*mut Tail> {
    let bucket = buckets.get_ptr_mut(at)?;
    let (tags, slots) = (line.cast::<u16>(), bucket.cast::<Slot<K>>());
    for index in 0..SLOTS {
        // SAFETY: both are within their element of the map. A tag was written after its entry, whose place is
        // computed from the tag's.
        unsafe {
            if tags.add(index).read_volatile() == tag {
                let slot = slots.add(index);
                if is(slot.cast(), key) {
                    return Some(&raw mut (*slot).tail);
                }
            }
        }
    }
    None
}

/// Whether that key is the one stored there, which begins the slot.
#[inline(always)]
unsafe fn is<K: Key>(stored: *const u32, key: &K) -> bool {
    let mut different = 0;
    for at in 0..K::COUNT {
        // SAFETY: a key has that many words.
        different |= unsafe { stored.add(at).read_volatile() } ^ key.word(at);
    }
    different == 0
}
