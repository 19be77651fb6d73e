//! Maps whose keys nobody outside chooses.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// By numbers that are counted here, or by session keys, which the daemon draws at random: no client can make them meet
/// in one place, so they need no hash that keeps a secret, which would be a part of what each request costs.
pub(super) type Map<K, V> = HashMap<K, V, BuildHasherDefault<Mixed>>;

/// What was written, in words of eight bytes, mixed by multiplication.
#[derive(Default)]
pub(super) struct Mixed(u64);

/// Odd, and without a pattern: 2^64 by the golden ratio.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

impl Hasher for Mixed {
    fn finish(&self) -> u64 {
        // a map looks at the lowest bits and at the highest ones
        self.0 ^ self.0 >> 32
    }

    fn write(&mut self, bytes: &[u8]) {
        for word in bytes.chunks(8) {
            let mut whole = [0; 8];
            for (to, from) in whole.iter_mut().zip(word) {
                *to = *from;
            }
            self.write_u64(u64::from_ne_bytes(whole));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(29) ^ word).wrapping_mul(MIX);
    }

    fn write_usize(&mut self, word: usize) {
        // 64 bits or less
        self.write_u64(word as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::{BuildHasher as _, Hash};

    use super::super::SessionKey;
    use super::*;

    /// How many of these fall on places of their own, by the lowest 12 bits and by the highest 7.
    fn places<K: Hash>(keys: impl Iterator<Item = K>) -> (usize, usize) {
        let build = BuildHasherDefault::<Mixed>::default();
        let hashes: Vec<u64> = keys.map(|key| build.hash_one(key)).collect();
        let low: HashSet<u64> = hashes.iter().map(|hash| hash & 0xfff).collect();
        let high: HashSet<u64> = hashes.iter().map(|hash| hash >> 57).collect();
        (low.len(), high.len())
    }

    #[test]
    fn r7_numbers_in_a_row_and_keys_that_differ_little_are_spread() {
        let spread = |(low, high): (usize, usize)| low > 2_000 && high > 100;
        assert!(spread(places(1..4_096u64)), "{:?}", places(1..4_096u64));
        assert!(spread(places((1..4_096u64).map(|number| number << 20))));
        let keys = (1..4_096u64).map(|number| {
            let mut key = [7; 16];
            key[..8].copy_from_slice(&number.to_be_bytes());
            SessionKey(key)
        });
        assert!(spread(places(keys)));
    }
}
