//! A table of what packets are asked for by the million: a packed table, and a plain map for what finds no room there.

use std::path::Path;

use anyhow::{Context as _, Result};
use enforcer_ebpf::layout::{self, AddressKey, Definition, FlowKey, MAPS, Standing};
use enforcer_ebpf::packed::{HashKeys, Key, TICK_NS, Tail};

use super::packed::{Memory, Packed, Places};
use super::pins::{Pins, exists};
use super::sys::{self, Reader};
use super::table::{Bits, Counted, from_bytes};
use super::tables::SecretMap;
use super::{InsertError, Usage};

/// The maps of one such table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Names {
    pub blooms: &'static str,
    pub lines: &'static str,
    pub buckets: &'static str,
    pub plain: &'static str,
}

impl Names {
    pub(super) const ALL: [Self; 2] = [FlowKey::NAMES, AddressKey::NAMES];

    pub(super) fn has(&self, name: &str) -> bool {
        [self.blooms, self.lines, self.buckets, self.plain].contains(&name)
    }

    /// The one that `name` is a map of.
    pub(super) fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|names| names.has(name))
    }
}

/// A key of such a table.
pub(super) trait Kept: Bits + Key {
    const NAMES: Names;
}

impl Kept for FlowKey {
    const NAMES: Names = Names {
        blooms: layout::FLOW_BLOOMS,
        lines: layout::FLOW_LINES,
        buckets: layout::FLOW_BUCKETS,
        plain: layout::FLOWS,
    };
}

impl Kept for AddressKey {
    const NAMES: Names = Names {
        blooms: layout::ADDRESS_BLOOMS,
        lines: layout::ADDRESS_LINES,
        buckets: layout::ADDRESS_BUCKETS,
        plain: layout::ADDRESSES,
    };
}

pub(super) struct Standings<K: Kept> {
    packed: Packed<K>,
    plain: Counted<K, Standing>,
    capacity: u64,
}

impl<K: Kept> Standings<K> {
    /// Opens the pinned maps. `capacity`: how many entries there may be.
    pub(super) fn open(folder: &Path, secret: HashKeys, capacity: u32) -> Result<Self> {
        let plain = Counted::open(folder, K::NAMES.plain)?;
        let mut keys = Vec::new();
        plain.each(|key, _| keys.push(key))?;
        let Names { blooms, lines, buckets, .. } = K::NAMES;
        let packed = Packed::open(folder, blooms, [lines, buckets], secret, keys.into_iter())?;
        Ok(Self { packed, plain, capacity: capacity.into() })
    }

    /// The table in a set of maps that is complete.
    pub(super) fn open_in(pins: &Pins, capacity: u32) -> Result<Self> {
        Self::open(&pins.maps, SecretMap::open(&pins.maps)?.read()?, capacity)
    }

    pub(super) fn used(&self) -> u64 {
        self.packed.used() + self.plain.usage().used
    }

    pub(super) fn get(&self, key: K) -> Result<Option<Standing>> {
        let places = self.packed.places(key);
        match self.packed.find(&places).and_then(|spot| self.packed.memory().read(spot)) {
            Some(standing) => Ok(Some(standing)),
            None if self.packed.may_be_plain(&places) => self.plain.get(key),
            None => Ok(None),
        }
    }

    /// See [`Packed::expect`].
    pub(super) fn expect(&self, keys: impl Iterator<Item = K>) {
        self.packed.expect(keys);
    }

    /// `merge` says what becomes of the value that is there.
    pub(super) fn put(
        &mut self,
        key: K,
        value: Standing,
        merge: impl FnOnce(Standing) -> Standing,
    ) -> Result<(), InsertError> {
        let places = self.packed.places(key);
        if let Some(spot) = self.packed.find(&places)
            && let Some(old) = self.packed.memory().read(spot)
        {
            let new = merge(old);
            if rounded(new) == old || self.packed.overwrite(spot, old, new) {
                return Ok(());
            }
            // a number that has no room in a slot: the entry is in both for a moment, and in force all the time
            self.put_plain(key, &places, new)?;
            self.packed.remove(&places, spot);
            return Ok(());
        }
        if self.packed.may_be_plain(&places)
            && let Some(old) = self.plain.get(key)?
        {
            let new = merge(old);
            return self.plain.put(key, new, |_| new);
        }
        if self.used() >= self.capacity {
            return Err(InsertError::Full { map: K::NAMES.plain, capacity: self.capacity });
        }
        if self.packed.insert(&places, value) {
            return Ok(());
        }
        self.put_plain(key, &places, value)
    }

    fn put_plain(&mut self, key: K, places: &Places<K>, value: Standing) -> Result<(), InsertError> {
        self.packed.enters_plain(places);
        let put = self.plain.put(key, value, |_| value);
        if put.is_err() {
            self.packed.leaves_plain(places);
        }
        put
    }

    pub(super) fn remove(&mut self, key: K) -> Result<bool> {
        let places = self.packed.places(key);
        if let Some(spot) = self.packed.find(&places) {
            self.packed.remove(&places, spot);
            return Ok(true);
        }
        if !self.packed.may_be_plain(&places) {
            return Ok(false);
        }
        let removed = self.plain.remove(key)?;
        if removed {
            self.packed.leaves_plain(&places);
        }
        Ok(removed)
    }

    /// Adds what was counted of it elsewhere, while the programs may be counting here. `false`: it is not there.
    pub(super) fn add(&mut self, key: K, hits: u64, last_ns: u64) -> Result<bool> {
        if let Some(spot) = self.packed.find(&self.packed.places(key)) {
            self.packed.add(spot, hits, last_ns);
            return Ok(true);
        }
        let Some(old) = self.plain.get(key)? else { return Ok(false) };
        let sum = Standing { hits: old.hits.saturating_add(hits), last_ns: old.last_ns.max(last_ns), ..old };
        self.plain.put(key, sum, |_| sum).map_err(anyhow::Error::new)?;
        Ok(true)
    }

    /// Every entry once.
    pub(super) fn each(&self, mut visit: impl FnMut(K, Standing)) -> Result<()> {
        self.packed.memory().each(&mut visit);
        self.plain.each(visit)
    }

    pub(super) fn usage(&self) -> Usage {
        Usage { name: K::NAMES.plain, used: self.used(), capacity: self.capacity }
    }
}

/// As it comes back from a slot.
fn rounded(standing: Standing) -> Standing {
    let tick = |ns| if ns == 0 { 0 } else { u64::from(Tail::tick(ns)) * TICK_NS };
    let expires_ns = Tail::decode(Tail::encode(standing.expires_ns));
    Standing { expires_ns, last_ns: tick(standing.last_ns), ..standing }
}

/// Every entry of a pinned table once, also of a layout that had but the plain map.
pub(super) fn read<K: Kept>(folder: &Path, mut visit: impl FnMut(K, Standing) -> Result<()>) -> Result<()> {
    let cannot = || format!("cannot read the table {}", K::NAMES.plain);
    // one without the other: whoever was making them was killed, and has said nothing in them yet
    if exists(&folder.join(K::NAMES.lines))? && exists(&folder.join(K::NAMES.buckets))? {
        let mut outcome = Ok(());
        Memory::<K>::open(folder, [K::NAMES.lines, K::NAMES.buckets])?.each(|key, standing| {
            if outcome.is_ok() {
                outcome = visit(key, standing);
            }
        });
        outcome?;
    }
    let definition = plain::<K>().with_context(cannot)?;
    let map = sys::open_pin(&folder.join(K::NAMES.plain)).with_context(cannot)?;
    let mut reader = Reader::of(std::os::fd::AsFd::as_fd(&map), definition);
    while let Some(piece) = reader.next().with_context(cannot)? {
        let keys = piece.keys.chunks_exact(size_of::<K>());
        for (key, value) in keys.zip(piece.values.chunks_exact(size_of::<Standing>())) {
            visit(from_bytes(key).with_context(cannot)?, from_bytes(value).with_context(cannot)?)?;
        }
    }
    Ok(())
}

fn plain<K: Kept>() -> Option<&'static Definition> {
    MAPS.iter().find(|definition| definition.name == K::NAMES.plain)
}
