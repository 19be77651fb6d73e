//! What a program sees of a packed table (`enforcer_ebpf::packed`).

use aya_ebpf::btf_maps::Array;
use enforcer_ebpf::packed::{Bloom, Bucket, Key, Line, SLOTS, Slot, Table, Tail, lowest};

use super::tables::SHARED;

/// The three maps of a table.
pub struct Maps<K: 'static> {
    pub blooms: &'static Array<Bloom, 1, SHARED>,
    pub lines: &'static Array<Line, 1, SHARED>,
    pub buckets: &'static Array<Bucket<K>, 1, SHARED>,
}

impl<K: Key> Table<K> for Maps<K> {
    type Found = *mut Tail;

    #[inline(always)]
    fn bloom(&self, bucket: u32) -> Option<Bloom> {
        // SAFETY: a value of the map. Volatile: the daemon may write at any time.
        self.blooms.get_ptr(bucket).map(|word| unsafe { word.read_volatile() })
    }

    #[inline(always)]
    fn line(&self, bucket: u32) -> Option<[u64; 4]> {
        let words = self.lines.get_ptr(bucket)?.cast::<u64>();
        // SAFETY: a line is 32 aligned bytes of the map. Volatile: the daemon may write at any time.
        unsafe {
            Some([
                words.read_volatile(),
                words.add(1).read_volatile(),
                words.add(2).read_volatile(),
                words.add(3).read_volatile(),
            ])
        }
    }

    #[inline(always)]
    fn search(&self, bucket: u32, slots: u32, key: &K) -> Option<*mut Tail> {
        let first = self.buckets.get_ptr_mut(bucket)?.cast::<Slot<K>>();
        let mut left = slots;
        for _ in 0..SLOTS {
            if left == 0 {
                return None;
            }
            // SAFETY: within the bucket, which is longer than 16 slots. A tag was written after its entry, and the
            // address of the entry comes from the tag.
            unsafe {
                let slot = first.add(lowest(left) as usize);
                if is(slot.cast(), key) {
                    return Some(&raw mut (*slot).tail);
                }
            }
            left &= left - 1;
        }
        None
    }
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
