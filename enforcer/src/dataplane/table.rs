//! One typed hash map, with a count of what is in it.

use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::Pod;
use aya::maps::{HashMap, IterableMap as _, Map, MapData, MapError};
use enforcer_ebpf::counters::Count;
use enforcer_ebpf::events::DropEvent;
use enforcer_ebpf::layout::{
    AddressKey, CutoffValue, DeviceKey, Digest, FlowKey, GateHitKey, LockValue, Meta, Present, SafeIdValue,
    Standing, TokenKey,
};
use enforcer_ebpf::packed::HashKeys;

use super::sys::Reader;
use super::{InsertError, Usage};

/// A type of the shared layout as aya wants it: plain memory.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Plain<T>(pub T);

/// Types whose bytes are all there is to them: `repr(C)`, integers only, no padding.
///
/// # Safety
/// Only for types for which that holds; `enforcer_ebpf::layout` asserts the sizes.
pub(super) unsafe trait Bits: Copy + 'static {
    /// As it lies in memory.
    fn bytes(&self) -> &[u8] {
        // SAFETY: no padding, so every byte is initialized; the slice borrows `self`.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of_val(self)) }
    }
}

/// `None` unless there are exactly as many bytes as the type has.
pub(super) fn from_bytes<T: Bits>(bytes: &[u8]) -> Option<T> {
    // SAFETY: the length is checked, and integers are valid whatever their bytes.
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

macro_rules! bits {
    ($($type:ty),+) => {$(
        // SAFETY: see `enforcer_ebpf::layout` and `counters`: repr(C), integers, sizes asserted.
        unsafe impl Bits for $type {}
    )+};
}
bits!(FlowKey, AddressKey, DeviceKey, TokenKey, Digest, GateHitKey);
bits!(Standing, SafeIdValue, CutoffValue, LockValue, Meta, Present, HashKeys, Count, DropEvent);

// SAFETY: a transparent wrapper of a type without padding.
unsafe impl<T: Bits> Pod for Plain<T> {}

/// Map update flags.
pub(super) const ANY: u64 = 0;
const ONLY_NEW: u64 = 1;

/// A pinned map and its capacity.
pub(super) fn open(folder: &Path, name: &str) -> Result<(MapData, u64)> {
    let path = folder.join(name);
    let data =
        MapData::from_pin(&path).with_context(|| format!("cannot open the pinned map {}", path.display()))?;
    let capacity = data.info().with_context(|| format!("cannot look at the map {name}"))?.max_entries();
    Ok((data, u64::from(capacity)))
}

#[derive(PartialEq, Eq)]
enum Written {
    New,
    Over,
    /// It is there already, and only a new one was to be written.
    Not,
}

/// A hash map, with its name and a count of what is in it (there is one writer: us).
pub(super) struct Counted<K: Bits, V: Bits> {
    name: &'static str,
    map: HashMap<MapData, Plain<K>, Plain<V>>,
    used: u64,
    capacity: u64,
}

impl<K: Bits, V: Bits> Counted<K, V> {
    pub(super) fn open(folder: &Path, name: &'static str) -> Result<Self> {
        let (data, capacity) = open(folder, name)?;
        let map =
            HashMap::try_from(Map::HashMap(data)).with_context(|| format!("the map {name} is not ours"))?;
        let mut new = Self { name, map, used: 0, capacity };
        let mut used = 0;
        new.each(|_, _: V| used += 1)?;
        new.used = used;
        Ok(new)
    }

    pub(super) fn get(&self, key: K) -> Result<Option<V>> {
        match self.map.get(&Plain(key), 0) {
            Ok(Plain(value)) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read the map {}", self.name)),
        }
    }

    /// One system call if the key is new. Otherwise `merge` says what becomes of the value that is there.
    pub(super) fn put(&mut self, key: K, value: V, merge: impl FnOnce(V) -> V) -> Result<(), InsertError>
    where
        V: PartialEq,
    {
        if self.write(key, value, ONLY_NEW)? == Written::New {
            return Ok(());
        }
        // there is one writer, so it is still there
        let old = self.get(key)?;
        let new = old.map_or(value, merge);
        // an unneeded write could lose a hit that is counted meanwhile
        if old == Some(new) { Ok(()) } else { self.write(key, new, ANY).map(drop) }
    }

    fn write(&mut self, key: K, value: V, flags: u64) -> Result<Written, InsertError> {
        match self.map.insert(Plain(key), Plain(value), flags) {
            Ok(()) if flags == ONLY_NEW => {
                self.used += 1;
                Ok(Written::New)
            }
            Ok(()) => Ok(Written::Over),
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EEXIST) => {
                Ok(Written::Not)
            }
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::E2BIG) => {
                Err(InsertError::Full { map: self.name, capacity: self.capacity })
            }
            Err(error) => Err(InsertError::Other(
                anyhow::Error::new(error).context(format!("cannot write the map {}", self.name)),
            )),
        }
    }

    pub(super) fn remove(&mut self, key: K) -> Result<bool> {
        match self.map.remove(&Plain(key)) {
            Ok(()) => {
                self.used = self.used.saturating_sub(1);
                Ok(true)
            }
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => {
                Ok(false)
            }
            Err(MapError::KeyNotFound) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("cannot write the map {}", self.name)),
        }
    }

    /// Every entry once.
    pub(super) fn each(&self, mut visit: impl FnMut(K, V)) -> Result<()> {
        let cannot = || format!("cannot read the map {}", self.name);
        let mut reader = Reader::new(self.map.map().fd().as_fd(), size_of::<K>(), size_of::<V>());
        while let Some(piece) = reader.next().with_context(cannot)? {
            let keys = piece.keys.chunks_exact(size_of::<K>());
            for (key, value) in keys.zip(piece.values.chunks_exact(size_of::<V>())) {
                if let (Some(key), Some(value)) = (from_bytes(key), from_bytes(value)) {
                    visit(key, value);
                }
            }
        }
        Ok(())
    }

    pub(super) fn usage(&self) -> Usage {
        Usage { name: self.name, used: self.used, capacity: self.capacity }
    }
}
