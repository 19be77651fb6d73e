//! The writer of a packed table: see `enforcer_ebpf::packed`, whose rules it keeps.

mod memory;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Result, bail};
use enforcer_ebpf::layout::Standing;
use enforcer_ebpf::packed::{self, Bloom, FREE, FREED, HashKeys, Key, MOST_HITS, Slot, Tail};

pub(super) use memory::{Blooms, Memory, Spot};

use super::shared::Grace;
use super::table::Bits;

/// How many buckets a table of `capacity` entries has: on average 12.56 of a bucket's fifteen slots are taken when it is
/// full, so that few entries find no room in their home, and an address takes less than 48 bytes.
pub(super) fn buckets(capacity: u32) -> u32 {
    u32::try_from(u64::from(capacity) * 199 / 2_500 + 1).unwrap_or(u32::MAX)
}

/// How many entries the plain map that goes with it has room for: one in sixty-four, several times as many as find no
/// room in either of their buckets.
pub(super) fn overflow(capacity: u32) -> u32 {
    capacity / 64 + 256
}

/// Where a key may be in a table.
#[derive(Clone, Copy)]
pub(super) struct Places<K> {
    key: K,
    home: u32,
    other: u32,
    tag: u16,
    bits: Bloom,
}

pub(super) struct Packed<K> {
    blooms: Blooms,
    memory: Memory<K>,
    secret: HashKeys,
    used: u64,
    /// Slots that get no entry before that period is over.
    freed: VecDeque<(u64, Spot)>,
    grace: Grace,
}

impl<K: Bits + Key> Packed<K> {
    /// Opens the three pinned maps. `plain` are the keys in the plain map that goes with it.
    ///
    /// Puts right what a writer has left that died between two steps.
    pub(super) fn open(
        folder: &Path,
        blooms: &str,
        maps: [&str; 2],
        secret: HashKeys,
        plain: impl Iterator<Item = K>,
    ) -> Result<Self> {
        let memory = Memory::open(folder, maps)?;
        let words = Blooms::open(folder, blooms)?;
        if words.count() != memory.count() {
            bail!("the map {blooms} is not of that table: it has another number of elements");
        }
        Self::with(words, memory, secret, plain)
    }

    fn with(
        blooms: Blooms,
        memory: Memory<K>,
        secret: HashKeys,
        plain: impl Iterator<Item = K>,
    ) -> Result<Self> {
        let mut new =
            Self { blooms, memory, secret, used: 0, freed: VecDeque::new(), grace: Grace::default() };
        new.recover(plain)?;
        Ok(new)
    }

    pub(super) fn used(&self) -> u64 {
        self.used
    }

    pub(super) fn memory(&self) -> &Memory<K> {
        &self.memory
    }

    pub(super) fn places(&self, key: K) -> Places<K> {
        let hash = packed::hash(&key, |at| self.secret.get(at).copied().unwrap_or(0));
        let count = self.memory.count();
        Places {
            key,
            home: packed::home(hash, count),
            other: packed::other(hash, count),
            tag: packed::tag(hash),
            bits: packed::bits(hash),
        }
    }

    /// These keys are put in next, some dozens at most: the memory that they need is on its way meanwhile.
    pub(super) fn expect(&self, keys: impl Iterator<Item = K>) {
        let all: Vec<_> = keys.map(|key| self.places(key)).collect();
        for places in &all {
            self.blooms.expect(places.home);
            self.memory.expect_line(places.home);
        }
        for places in &all {
            if let Some(spot) = self.memory.with_tag(places.home, FREE).next() {
                self.memory.expect_spot(spot);
            }
        }
    }

    /// Where the key is; `None`: not here, but perhaps in the plain map.
    pub(super) fn find(&self, places: &Places<K>) -> Option<Spot> {
        let Places { key, home, other, tag, bits } = *places;
        if self.blooms.word(home).is_some_and(|word| word.load(Ordering::Relaxed) & bits != bits) {
            return None;
        }
        let search =
            |bucket| self.memory.with_tag(bucket, tag).find(|spot| self.memory.key(*spot) == Some(key));
        search(home).or_else(|| {
            let elsewhere = self.memory.in_other(home)?.load(Ordering::Relaxed) != 0;
            elsewhere.then(|| search(other)).flatten()
        })
    }

    /// Makes an entry that is there another one. `false`: a number that has no room here. A field that stays the same
    /// is not written: the programs may be counting.
    pub(super) fn overwrite(&self, spot: Spot, old: Standing, new: Standing) -> bool {
        let Some((revocation, tail)) = encode(&new) else { return false };
        let (Some([expires, hits, last]), Some(number)) =
            (self.memory.tail(spot), self.memory.revocation(spot))
        else {
            return false;
        };
        number.store(revocation, Ordering::Relaxed);
        if old.hits != new.hits {
            hits.store(tail.hits, Ordering::Relaxed);
        }
        if old.last_ns != new.last_ns {
            last.store(tail.last, Ordering::Relaxed);
        }
        expires.store(tail.expires, Ordering::Release);
        true
    }

    /// Adds what was counted of it elsewhere, while the programs may be counting here.
    pub(super) fn add(&self, spot: Spot, hits: u64, last_ns: u64) {
        let Some([_, counted, last]) = self.memory.tail(spot) else { return };
        let room = MOST_HITS.saturating_sub(counted.load(Ordering::Relaxed));
        counted.fetch_add(u32::try_from(hits).unwrap_or(room).min(room), Ordering::Relaxed);
        last.fetch_max(if last_ns == 0 { 0 } else { Tail::tick(last_ns) }, Ordering::Relaxed);
    }

    /// Puts in what is not there. `false`: there is no room for it here, and it belongs into the plain map.
    pub(super) fn insert(&mut self, places: &Places<K>, standing: Standing) -> bool {
        let Some((revocation, tail)) = encode(&standing) else { return false };
        self.reclaim();
        let Places { key, home, other, tag, .. } = *places;
        self.set_bits(places);
        let at_home = self.memory.with_tag(home, FREE).next();
        if let Some(spot) = at_home {
            return self.publish(spot, key, revocation, tail, tag);
        }
        let elsewhere = self.memory.with_tag(other, FREE).next();
        let Some(spot) = elsewhere else { return false };
        // first, so that whoever finds nothing at home goes on looking
        if let Some(count) = self.memory.in_other(home) {
            up(count);
        }
        self.publish(spot, key, revocation, tail, tag)
    }

    /// Before the key has an entry: who does not find all of its bits looks no further.
    fn set_bits(&self, places: &Places<K>) {
        if let Some(word) = self.blooms.word(places.home) {
            word.store(word.load(Ordering::Relaxed) | places.bits, Ordering::Release);
        }
    }

    /// After a key whose home it is has gone: the bits of those that are left. Where some of them are elsewhere nobody
    /// knows which, and bits too many stay, which cost a lookup.
    fn take_bits_back(&self, home: u32) {
        if self.memory.words(home).is_none_or(|words| packed::elsewhere(&words) != 0) {
            return;
        }
        let keys = self.memory.taken_in(home).filter_map(|(spot, _)| self.memory.key(spot));
        let here = keys.map(|key| self.places(key)).filter(|places| places.home == home);
        let bits = here.fold(0, |bits, places| bits | places.bits);
        if let Some(word) = self.blooms.word(home) {
            word.store(bits, Ordering::Release);
        }
    }

    fn publish(&mut self, spot: Spot, key: K, revocation: u32, tail: Tail, tag: u16) -> bool {
        let (Some(slot), Some(number), Some(published)) =
            (self.memory.slot(spot), self.memory.revocation(spot), self.memory.tag(spot))
        else {
            return false;
        };
        number.store(revocation, Ordering::Relaxed);
        // SAFETY: within the mapping; nobody reads a slot without a tag, nor is still reading this one.
        unsafe { slot.write_volatile(Slot { key, tail }) };
        published.store(tag, Ordering::Release);
        self.used += 1;
        true
    }

    /// Takes out what is there.
    pub(super) fn remove(&mut self, places: &Places<K>, spot: Spot) {
        self.free(spot);
        if spot.bucket != places.home
            && let Some(count) = self.memory.in_other(places.home)
        {
            down(count);
        }
        self.take_bits_back(places.home);
        self.used = self.used.saturating_sub(1);
    }

    fn free(&mut self, spot: Spot) {
        if let Some(tag) = self.memory.tag(spot) {
            tag.store(FREED, Ordering::Release);
        }
        self.freed.push_back((self.grace.next(), spot));
        self.grace.begin();
    }

    fn reclaim(&mut self) {
        while let Some((_, spot)) = self.freed.pop_front_if(|(period, _)| self.grace.is_over(*period)) {
            if let Some(tag) = self.memory.tag(spot) {
                tag.store(FREE, Ordering::Relaxed);
            }
        }
        if !self.freed.is_empty() {
            self.grace.begin();
        }
    }

    /// Lets a grace period go by.
    #[cfg(test)]
    fn wait(&mut self) {
        let waited = self.freed.back().map_or(0, |(period, _)| *period);
        while !self.grace.is_over(waited) {
            self.grace.begin();
            std::thread::yield_now();
        }
        self.reclaim();
    }

    /// To be called before the key goes into the plain map.
    pub(super) fn enters_plain(&self, places: &Places<K>) {
        self.set_bits(places);
        if let Some(count) = self.memory.in_plain(places.home) {
            up(count);
        }
    }

    /// To be called after the key was taken out of the plain map.
    pub(super) fn leaves_plain(&self, places: &Places<K>) {
        if let Some(count) = self.memory.in_plain(places.home) {
            down(count);
        }
        self.take_bits_back(places.home);
    }

    /// Whether the plain map has keys whose home is that key's.
    pub(super) fn may_be_plain(&self, places: &Places<K>) -> bool {
        self.memory.in_plain(places.home).is_none_or(|count| count.load(Ordering::Relaxed) != 0)
    }

    /// Counts anew, frees what was being freed, and puts what is in the wrong place (which it never is, unless
    /// somebody else has written here) into the right one.
    fn recover(&mut self, plain: impl Iterator<Item = K>) -> Result<()> {
        let mut found = vec![(0 as Bloom, [0_u8; 2]); usize::try_from(self.memory.count())?];
        // `which`: 0, it is in its other bucket; 1, in the plain map
        let mut count = |places: &Places<K>, which: Option<usize>| {
            let found = usize::try_from(places.home).ok().and_then(|home| found.get_mut(home));
            if let Some((bits, counts)) = found {
                *bits |= places.bits;
                if let Some(count) = which.and_then(|which| counts.get_mut(which)) {
                    *count = count.saturating_add(1);
                }
            }
        };
        let mut lost = Vec::new();
        let mut used = 0;
        for (spot, tag) in self.memory.taken() {
            let Some(key) = self.memory.key(spot) else { continue };
            let places = self.places(key);
            if tag != places.tag || (spot.bucket != places.home && spot.bucket != places.other) {
                lost.push((spot, key, self.memory.read(spot)));
                continue;
            }
            used += 1;
            count(&places, (spot.bucket != places.home).then_some(0));
        }
        for key in plain {
            count(&self.places(key), Some(1));
        }
        self.used = used;
        for (bucket, (bits, [other, plain])) in found.into_iter().enumerate() {
            let bucket = u32::try_from(bucket)?;
            if let Some(word) = self.blooms.word(bucket) {
                word.store(bits, Ordering::Relaxed);
            }
            if let (Some(in_other), Some(in_plain)) =
                (self.memory.in_other(bucket), self.memory.in_plain(bucket))
            {
                in_other.store(other, Ordering::Relaxed);
                in_plain.store(plain, Ordering::Relaxed);
            }
        }
        let freed: Vec<Spot> =
            (0..self.memory.count()).flat_map(|bucket| self.memory.with_tag(bucket, FREED)).collect();
        // who freed them has died, but a program that it has seen may still run
        if !freed.is_empty() && Grace::wait() {
            for spot in freed {
                if let Some(tag) = self.memory.tag(spot) {
                    tag.store(FREE, Ordering::Relaxed);
                }
            }
        }
        if !lost.is_empty() {
            tracing::warn!(entries = lost.len(), "entries of the kernel's tables were in wrong places");
        }
        for (spot, key, standing) in lost {
            let places = self.places(key);
            if let Some(standing) = standing
                && self.find(&places).is_none()
                && !self.insert(&places, standing)
            {
                bail!(
                    "an entry of the kernel's tables is in the wrong place, and there is no room in the right one"
                );
            }
            self.free(spot);
        }
        Ok(())
    }
}

/// `None`: a number of a revocation that is too large for a slot.
fn encode(standing: &Standing) -> Option<(u32, Tail)> {
    let Standing { revocation, expires_ns, hits, last_ns } = *standing;
    let tail = Tail {
        expires: Tail::encode(expires_ns),
        hits: u32::try_from(hits).unwrap_or(MOST_HITS).min(MOST_HITS),
        last: if last_ns == 0 { 0 } else { Tail::tick(last_ns) },
    };
    Some((u32::try_from(revocation).ok()?, tail))
}

/// One more; a count that has come to its end stays there, since nobody knows any more how many there are.
fn up(count: &AtomicU8) {
    count.store(count.load(Ordering::Relaxed).saturating_add(1), Ordering::Release);
}

fn down(count: &AtomicU8) {
    match count.load(Ordering::Relaxed) {
        0 | u8::MAX => {}
        some => count.store(some - 1, Ordering::Release),
    }
}
