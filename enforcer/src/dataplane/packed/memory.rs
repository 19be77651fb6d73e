//! The memory of a packed table: where its tags, keys and values are.

use std::path::Path;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use anyhow::{Context as _, Result, bail};
use aya::maps::MapInfo;
use enforcer_ebpf::layout::Standing;
use enforcer_ebpf::packed::{self, Bloom, Bucket, FREE, FREED, Key, Line, SLOTS, Slot, TICK_NS, Tail};

use crate::dataplane::shared::Shared;
use crate::dataplane::sys;
use crate::dataplane::table::Bits;

/// The Bloom words of a packed table.
pub(in crate::dataplane) struct Blooms(Shared<Bloom>);

impl Blooms {
    /// Of a pinned map.
    pub(in crate::dataplane) fn open(folder: &Path, name: &str) -> Result<Self> {
        Ok(Self(shared(folder, name)?))
    }

    /// Of a descriptor.
    #[cfg(test)]
    pub(super) fn of(map: &std::fs::File, count: u32) -> Self {
        Self(Shared::of(map, count).unwrap())
    }

    pub(super) fn count(&self) -> u32 {
        self.0.count()
    }

    pub(super) fn word(&self, bucket: u32) -> Option<&AtomicU64> {
        // SAFETY: an aligned element in the mapping, which lives as long as `self`; programs only read it, whole.
        self.0.at(bucket).map(|word| unsafe { AtomicU64::from_ptr(word) })
    }

    /// Brings a word nearer, while something else is done.
    pub(super) fn expect(&self, bucket: u32) {
        if let Some(word) = self.0.at(bucket) {
            nearer(word);
        }
    }
}

/// Where an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::dataplane) struct Spot {
    pub(super) bucket: u32,
    pub(super) slot: usize,
}

pub(in crate::dataplane) struct Memory<K> {
    lines: Shared<Line>,
    buckets: Shared<Bucket<K>>,
}

impl<K: Bits + Key> Memory<K> {
    /// Of two pinned maps.
    ///
    /// # Errors
    /// They are not of one table of such keys.
    pub(in crate::dataplane) fn open(folder: &Path, [lines, buckets]: [&str; 2]) -> Result<Self> {
        let new = Self { lines: shared(folder, lines)?, buckets: shared(folder, buckets)? };
        if new.lines.count() != new.buckets.count() {
            bail!("the maps {lines} and {buckets} are not of one table: they have other numbers of elements");
        }
        Ok(new)
    }

    /// Of two descriptors.
    #[cfg(test)]
    pub(super) fn of(maps: [&std::fs::File; 2], count: u32) -> Self {
        let [lines, buckets] = maps;
        Self { lines: Shared::of(lines, count).unwrap(), buckets: Shared::of(buckets, count).unwrap() }
    }

    pub(super) fn count(&self) -> u32 {
        self.lines.count()
    }

    pub(super) fn tag(&self, spot: Spot) -> Option<&AtomicU16> {
        let line = self.lines.at(spot.bucket)?;
        // SAFETY: an aligned field of a line in the mapping, which lives as long as `self`, and is only ever touched
        // by single instructions on both sides.
        (spot.slot < SLOTS)
            .then(|| unsafe { AtomicU16::from_ptr((&raw mut (*line).tags).cast::<u16>().add(spot.slot)) })
    }

    pub(super) fn in_other(&self, bucket: u32) -> Option<&AtomicU8> {
        // SAFETY: as in `tag`.
        self.lines.at(bucket).map(|line| unsafe { AtomicU8::from_ptr(&raw mut (*line).in_other) })
    }

    pub(super) fn in_plain(&self, bucket: u32) -> Option<&AtomicU8> {
        // SAFETY: as in `tag`.
        self.lines.at(bucket).map(|line| unsafe { AtomicU8::from_ptr(&raw mut (*line).in_plain) })
    }

    pub(super) fn slot(&self, spot: Spot) -> Option<*mut Slot<K>> {
        let bucket = self.buckets.at(spot.bucket).filter(|_| spot.slot < SLOTS)?;
        // SAFETY: within the bucket.
        Some(unsafe { (&raw mut (*bucket).slots).cast::<Slot<K>>().add(spot.slot) })
    }

    pub(super) fn tail(&self, spot: Spot) -> Option<[&AtomicU32; 3]> {
        let slot = self.slot(spot)?;
        // SAFETY: as in `tag`.
        Some(unsafe {
            let tail = &raw mut (*slot).tail;
            [&raw mut (*tail).expires, &raw mut (*tail).hits, &raw mut (*tail).last]
                .map(|at| AtomicU32::from_ptr(at))
        })
    }

    pub(super) fn revocation(&self, spot: Spot) -> Option<&AtomicU32> {
        let bucket = self.buckets.at(spot.bucket).filter(|_| spot.slot < SLOTS)?;
        // SAFETY: as in `tag`.
        Some(unsafe { AtomicU32::from_ptr((&raw mut (*bucket).revocations).cast::<u32>().add(spot.slot)) })
    }

    pub(super) fn key(&self, spot: Spot) -> Option<K> {
        // SAFETY: within the mapping; we alone write keys.
        self.slot(spot).map(|slot| unsafe { (&raw const (*slot).key).read_volatile() })
    }

    pub(super) fn spots(bucket: u32) -> impl Iterator<Item = Spot> {
        (0..SLOTS).map(move |slot| Spot { bucket, slot })
    }

    pub(super) fn with_tag(&self, bucket: u32, tag: u16) -> impl Iterator<Item = Spot> + use<K> {
        let mut left = self.words(bucket).map_or(0, |words| packed::with_tag(&words, tag));
        std::iter::from_fn(move || {
            let slot = (left != 0).then(|| packed::lowest(left))?;
            left &= left - 1;
            Some(Spot { bucket, slot: usize::try_from(slot).ok()? })
        })
    }

    pub(in crate::dataplane) fn read(&self, spot: Spot) -> Option<Standing> {
        let [expires, hits, last] = self.tail(spot)?.map(|word| word.load(Ordering::Relaxed));
        Some(Standing {
            revocation: self.revocation(spot)?.load(Ordering::Relaxed).into(),
            expires_ns: Tail::decode(expires),
            hits: hits.into(),
            last_ns: u64::from(last) * TICK_NS,
        })
    }

    /// Brings a line nearer, while something else is done.
    pub(super) fn expect_line(&self, bucket: u32) {
        if let Some(line) = self.lines.at(bucket) {
            nearer(line);
        }
    }

    /// ... and a place that is written soon.
    pub(super) fn expect_spot(&self, spot: Spot) {
        if let Some(slot) = self.slot(spot) {
            nearer(slot);
        }
        if let Some(number) = self.revocation(spot) {
            nearer(number);
        }
    }

    /// A line as a program reads it.
    pub(super) fn words(&self, bucket: u32) -> Option<[u64; 4]> {
        // SAFETY: within the mapping, and no program writes to a line.
        self.lines.at(bucket).map(|line| unsafe { line.cast::<[u64; 4]>().read_volatile() })
    }

    /// Every entry once.
    pub(in crate::dataplane) fn each(&self, mut visit: impl FnMut(K, Standing)) {
        for (spot, _) in self.taken() {
            if let (Some(key), Some(standing)) = (self.key(spot), self.read(spot)) {
                visit(key, standing);
            }
        }
    }

    pub(super) fn taken(&self) -> impl Iterator<Item = (Spot, u16)> + '_ {
        (0..self.lines.count()).flat_map(|bucket| self.taken_in(bucket))
    }

    /// ... of a bucket.
    pub(super) fn taken_in(&self, bucket: u32) -> impl Iterator<Item = (Spot, u16)> + '_ {
        Self::spots(bucket).filter_map(|spot| {
            let tag = self.tag(spot)?.load(Ordering::Acquire);
            (tag != FREE && tag != FREED).then_some((spot, tag))
        })
    }
}

/// Tells the CPU that this memory is wanted soon: a table of a million entries is in no cache.
#[cfg(target_arch = "x86_64")]
fn nearer<T>(at: *const T) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a hint, which reads nothing and fails nowhere.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
}

#[cfg(not(target_arch = "x86_64"))]
fn nearer<T>(_: *const T) {}

fn shared<T>(folder: &Path, name: &str) -> Result<Shared<T>> {
    let path = folder.join(name);
    let cannot = || format!("cannot share the memory of the pinned map {}", path.display());
    let info = MapInfo::from_pin(&path).with_context(cannot)?;
    if usize::try_from(info.value_size()).ok() != Some(size_of::<T>()) {
        bail!(
            "the pinned map {} has elements of {} bytes, and {} are expected",
            path.display(),
            info.value_size(),
            size_of::<T>()
        );
    }
    let map = sys::open_pin(&path).with_context(cannot)?;
    Shared::of(map, info.max_entries()).with_context(cannot)
}
