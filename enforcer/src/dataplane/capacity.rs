//! How many entries the tables can hold, and what they cost in memory.

use enforcer_ebpf::layout::{self, AddressKey, Definition, FlowKey, Kind, MAPS};
use enforcer_ebpf::packed::{Bloom, Bucket, Line};

use super::standings::Kept;
use super::{packed, shape, sizes};

/// How many entries each table can hold, at least 1. What it costs: [`Capacities::costs`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capacities {
    pub flows: u32,
    pub addresses: u32,
    pub devices: u32,
    pub tokens: u32,
    pub safe_ids: u32,
    pub cutoffs: u32,
    pub locks: u32,
}

impl Default for Capacities {
    fn default() -> Self {
        Self {
            flows: 1_000_000,
            addresses: 1_000_000,
            devices: 65_536,
            tokens: 65_536,
            safe_ids: 262_144,
            cutoffs: 65_536,
            locks: 65_536,
        }
    }
}

/// What one table costs in kernel memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cost {
    pub name: &'static str,
    /// Bytes from the start on, for the entries that there could be.
    pub empty: u64,
    /// Bytes for each entry that there is.
    pub each: u64,
    /// Bytes with as many entries as it can hold.
    pub full: u64,
}

/// A bucket of a hash map (`struct bucket`): a list's head and a lock.
const BUCKET: u64 = 16;
/// The head of an entry (`struct htab_elem`), and what the allocator of BPF puts before it.
const HEAD: u64 = 48 + 8;
/// The sizes that the kernel has memory in (`kmalloc`), as far as entries of ours go.
const SIZES: [u64; 7] = [32, 64, 96, 128, 192, 256, 512];

impl Capacities {
    /// What each table costs, by the rules of the kernel (`kernel/bpf/hashtab.c`; measured in
    /// `docs/measurements.md`): a hash map takes its buckets at once, as many as its capacity rounded up to a power
    /// of two; and memory for an entry when it comes, rounded up to a size that the kernel has. The count of
    /// refusals (`gate_hits`) has at most an entry for each safe_id, cutoff and lock.
    ///
    /// The packed tables (flows, addresses) begin small and grow (`sizes`); of each there is also a plain map for what
    /// finds no room.
    pub fn costs(&self) -> Vec<Cost> {
        let tables = MAPS.iter().filter(|definition| definition.kind == Kind::Hash);
        tables
            .map(|definition| match definition.name {
                layout::FLOWS => self.packed::<FlowKey>(self.flows),
                layout::ADDRESSES => self.packed::<AddressKey>(self.addresses),
                _ => self.cost(definition),
            })
            .collect()
    }

    fn packed<K: Kept>(&self, capacity: u32) -> Cost {
        let bucket = (size_of::<Bloom>() + size_of::<Line>() + size_of::<Bucket<K>>()) as u64;
        let of = |entries: u32| {
            let plain = u64::from(packed::overflow(entries)).next_power_of_two() * BUCKET;
            u64::from(packed::buckets(entries)) * bucket + plain
        };
        let full = of(capacity);
        Cost {
            name: K::NAMES.plain,
            empty: of(sizes::at_start(capacity, None, 0)),
            each: full.div_ceil(u64::from(capacity.max(1))),
            full,
        }
    }

    fn cost(&self, definition: &Definition) -> Cost {
        let capacity = u64::from(shape::entries(definition, self));
        let eights = |bytes: u32| u64::from(bytes.next_multiple_of(8));
        let entry = HEAD + eights(definition.key) + eights(definition.value);
        let each = SIZES.into_iter().find(|size| entry <= *size).unwrap_or(entry);
        let empty = capacity.next_power_of_two() * BUCKET;
        Cost { name: definition.name, empty, each, full: empty + capacity * each }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_tables_cost() {
        let costs = Capacities::default().costs();
        let of = |name: &str| *costs.iter().find(|cost| cost.name == name).unwrap();
        let mib = 1 << 20;
        assert_eq!(of("flows"), Cost { name: "flows", empty: 1_396_712, each: 85, full: 84_957_608 });
        assert_eq!((of("addresses").empty, of("addresses").each), (770_312, 47));
        assert_eq!((of("safe_ids").empty, of("safe_ids").each), (4 * mib, 128));
        assert_eq!((of("devices").empty, of("devices").each), (mib, 96));
        assert_eq!((of("gate_hits").empty, of("gate_hits").each), (8 * mib, 96));
        assert_eq!(costs.len(), 8);
    }
}
