//! The pinned maps, typed: what is compared before they are taken over, and how entries get in and out.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};
use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData, MapError, MapInfo, PerCpuArray};
use enforcer_ebpf::counters::{Count, REASONS, Reason};
use enforcer_ebpf::layout::{
    self, ABI, AddressKey, CutoffKey, CutoffValue, Definition, DeviceKey, FOREVER, FlowKey, GateHitKey,
    LEASED, LockKey, LockValue, Meta, SafeIdKey, SafeIdValue, Standing, TokenKey,
};

use super::keys::Key;
use super::{Capacities, Counter, GateFacts, InsertError, StoredEntry, Usage};
use crate::session::{Entry, Stands};

/// A type of the shared layout as aya wants it: plain memory.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Plain<T>(pub T);

/// Types whose bytes are all there is to them: `repr(C)`, integers only, no padding.
///
/// # Safety
/// Only for types for which that holds; `enforcer_ebpf::layout` asserts the sizes.
pub(super) unsafe trait Bits: Copy + 'static {}

macro_rules! bits {
    ($($type:ty),+) => {$(
        // SAFETY: see `enforcer_ebpf::layout` and `counters`: repr(C), integers, sizes asserted.
        unsafe impl Bits for $type {}
    )+};
}
bits!(FlowKey, AddressKey, DeviceKey, TokenKey, layout::Digest, GateHitKey);
bits!(Standing, SafeIdValue, CutoffValue, LockValue, Meta, Count);

// SAFETY: a transparent wrapper of a type without padding.
unsafe impl<T: Bits> Pod for Plain<T> {}

type Table<K, V> = HashMap<MapData, Plain<K>, Plain<V>>;

/// Map update flags.
const ANY: u64 = 0;

/// A hash map, with its name and a count of what is in it (there is one writer: us).
struct Counted<K: Bits, V: Bits> {
    name: &'static str,
    map: Table<K, V>,
    used: u64,
    capacity: u64,
}

impl<K: Bits, V: Bits> Counted<K, V> {
    fn open(folder: &Path, name: &'static str) -> Result<Self> {
        let (data, capacity) = open(folder, name)?;
        let map =
            Table::try_from(Map::HashMap(data)).with_context(|| format!("the map {name} is not ours"))?;
        let mut used = 0;
        for key in map.keys() {
            key.with_context(|| format!("cannot read the map {name}"))?;
            used += 1;
        }
        Ok(Self { name, map, used, capacity })
    }

    fn get(&self, key: K) -> Result<Option<V>> {
        match self.map.get(&Plain(key), 0) {
            Ok(Plain(value)) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read the map {}", self.name)),
        }
    }

    fn put(&mut self, key: K, value: V, new: bool) -> Result<(), InsertError> {
        match self.map.insert(Plain(key), Plain(value), ANY) {
            Ok(()) => {
                self.used += u64::from(new);
                Ok(())
            }
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::E2BIG) => {
                Err(InsertError::Full { map: self.name, capacity: self.capacity })
            }
            Err(error) => Err(InsertError::Other(
                anyhow::Error::new(error).context(format!("cannot write the map {}", self.name)),
            )),
        }
    }

    fn remove(&mut self, key: K) -> Result<bool> {
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

    fn dump(&self) -> impl Iterator<Item = Result<(K, V)>> {
        self.map.iter().map(|pair| {
            let (Plain(key), Plain(value)) =
                pair.with_context(|| format!("cannot read the map {}", self.name))?;
            Ok((key, value))
        })
    }

    fn usage(&self) -> Usage {
        Usage { name: self.name, used: self.used, capacity: self.capacity }
    }
}

fn open(folder: &Path, name: &str) -> Result<(MapData, u64)> {
    let path = folder.join(name);
    let data =
        MapData::from_pin(&path).with_context(|| format!("cannot open the pinned map {}", path.display()))?;
    let capacity = data.info().with_context(|| format!("cannot look at the map {name}"))?.max_entries();
    Ok((data, u64::from(capacity)))
}

/// How many entries a map gets.
pub(super) fn entries(definition: &Definition, capacities: &Capacities) -> u32 {
    let configured = match definition.name {
        layout::FLOWS => capacities.flows,
        layout::ADDRESSES => capacities.addresses,
        layout::DEVICES => capacities.devices,
        layout::TOKENS => capacities.tokens,
        layout::SAFE_IDS => capacities.safe_ids,
        layout::CUTOFFS => capacities.cutoffs,
        layout::LOCKS => capacities.locks,
        _ => capacities.safe_ids.saturating_add(capacities.cutoffs).saturating_add(capacities.locks),
    };
    definition.entries.unwrap_or(configured)
}

/// Compares the maps that are pinned with what we expect, before anything is taken over: a map of another
/// shape would load without an error, and every lookup would be silently wrong.
pub(super) fn verify(folder: &Path, capacities: &Capacities) -> Result<()> {
    let remedy =
        "stop it, run `enforcer unload` (which lets revoked packets pass until the start), and start again";
    for definition in &layout::MAPS {
        let path = folder.join(definition.name);
        if !path.exists() {
            continue;
        }
        let info = MapInfo::from_pin(&path).with_context(|| format!("cannot look at {}", path.display()))?;
        let kind = info.map_type().map_or(0, |kind| kind as u32);
        let compared = [
            ("type", kind, definition.kind as u32),
            ("key size", info.key_size(), definition.key),
            ("value size", info.value_size(), definition.value),
            ("capacity", info.max_entries(), entries(definition, capacities)),
            ("flags", info.map_flags(), definition.flags),
        ];
        for (what, is, expected) in compared {
            if is != expected {
                bail!(
                    "the pinned map {} has {what} {is}, and this enforcer expects {expected}: it comes from another \
                     version or configuration; {remedy}",
                    path.display()
                );
            }
        }
    }
    if folder.join(layout::META).exists() {
        let abi = MetaMap::open(folder)?.read()?.abi;
        if abi != ABI && abi != 0 {
            bail!(
                "the maps below {} have the layout {abi}, and this enforcer speaks {ABI}: they come from another \
                 version; {remedy}",
                folder.display()
            );
        }
    }
    Ok(())
}

/// The one-entry map that says what the others mean.
pub(super) struct MetaMap(Array<MapData, Plain<Meta>>);

impl MetaMap {
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let (data, _) = open(folder, layout::META)?;
        Ok(Self(Array::try_from(Map::Array(data)).context("the map meta is not ours")?))
    }

    pub(super) fn read(&self) -> Result<Meta> {
        let Plain(meta) = self.0.get(&0, 0).context("cannot read the map meta")?;
        Ok(meta)
    }

    fn write(&mut self, next_revocation: u64) -> Result<()> {
        let meta = Meta { abi: ABI, reserved: 0, next_revocation };
        self.0.set(0, Plain(meta), 0).context("cannot write the map meta")
    }
}

/// All tables.
pub(super) struct Tables {
    flows: Counted<FlowKey, Standing>,
    addresses: Counted<AddressKey, Standing>,
    devices: Counted<DeviceKey, Standing>,
    tokens: Counted<TokenKey, Standing>,
    safe_ids: Counted<SafeIdKey, SafeIdValue>,
    cutoffs: Counted<CutoffKey, CutoffValue>,
    locks: Counted<LockKey, LockValue>,
    gate_hits: HashMap<MapData, Plain<GateHitKey>, u64>,
    counters: PerCpuArray<MapData, Plain<Count>>,
    heartbeat: Array<MapData, u64>,
    meta: MetaMap,
    next_revocation: u64,
}

impl Tables {
    /// Opens what the loader has pinned, and writes the layout's number.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let mut meta = MetaMap::open(folder)?;
        let next_revocation = meta.read()?.next_revocation;
        meta.write(next_revocation)?;
        let mut tables = Self {
            flows: Counted::open(folder, layout::FLOWS)?,
            addresses: Counted::open(folder, layout::ADDRESSES)?,
            devices: Counted::open(folder, layout::DEVICES)?,
            tokens: Counted::open(folder, layout::TOKENS)?,
            safe_ids: Counted::open(folder, layout::SAFE_IDS)?,
            cutoffs: Counted::open(folder, layout::CUTOFFS)?,
            locks: Counted::open(folder, layout::LOCKS)?,
            gate_hits: HashMap::try_from(Map::HashMap(open(folder, layout::GATE_HITS)?.0))?,
            counters: PerCpuArray::try_from(Map::PerCpuArray(open(folder, layout::COUNTERS)?.0))?,
            heartbeat: Array::try_from(Map::Array(open(folder, layout::HEARTBEAT)?.0))?,
            meta,
            next_revocation,
        };
        tables.sweep_gate_hits()?;
        Ok(tables)
    }

    /// A gate may count a hit just after the entry was removed: such counts go at the next start.
    fn sweep_gate_hits(&mut self) -> Result<()> {
        let mut stale = Vec::new();
        for key in self.gate_hits.keys() {
            let Plain(key) = key.context("cannot read the map gate_hits")?;
            let stands = match key.kind {
                super::keys::HITS_SAFE_ID => self.safe_ids.get(key.id)?.is_some(),
                super::keys::HITS_CUTOFF => self.cutoffs.get(key.id)?.is_some(),
                super::keys::HITS_LOCK => self.locks.get(key.id)?.is_some(),
                _ => false,
            };
            if !stands {
                stale.push(key);
            }
        }
        for key in stale {
            let _ = self.gate_hits.remove(&Plain(key));
        }
        Ok(())
    }

    fn standings(&mut self, key: Key) -> Checked<'_> {
        match key {
            Key::Flow(key) => Checked::Flow(&mut self.flows, key),
            Key::Address(key) => Checked::Address(&mut self.addresses, key),
            Key::Device(key) => Checked::Device(&mut self.devices, key),
            Key::Token(key) => Checked::Token(&mut self.tokens, key),
            Key::SafeId(key) => Checked::SafeId(&mut self.safe_ids, key),
            Key::Cutoff(key) => Checked::Cutoff(&mut self.cutoffs, key),
            Key::Lock(key) => Checked::Lock(&mut self.locks, key),
        }
    }

    pub(super) fn insert(
        &mut self,
        entry: &Entry,
        revocation: u64,
        stands: Stands,
        gate: GateFacts,
    ) -> Result<(), InsertError> {
        let expires_ns = encode(stands);
        match self.standings(Key::of(entry)) {
            Checked::Flow(map, key) => put_standing(map, key, revocation, expires_ns),
            Checked::Address(map, key) => put_standing(map, key, revocation, expires_ns),
            Checked::Device(map, key) => put_standing(map, key, revocation, expires_ns),
            Checked::Token(map, key) => put_standing(map, key, revocation, expires_ns),
            Checked::SafeId(map, key) => {
                let old = map.get(key)?;
                let value = SafeIdValue { revocation, server: gate.server, since: gate.moment };
                match old {
                    // an older revocation changes nothing: a safe_id is refused or not
                    Some(old) if old == value || old.revocation > revocation => Ok(()),
                    old => map.put(key, value, old.is_none()),
                }
            }
            Checked::Cutoff(map, key) => {
                let old = map.get(key)?;
                let mut value = CutoffValue { revocation, server: gate.server, up_to: gate.moment };
                if let Some(old) = old {
                    value.revocation = value.revocation.max(old.revocation);
                    value.up_to = value.up_to.max(old.up_to);
                }
                if old == Some(value) { Ok(()) } else { map.put(key, value, old.is_none()) }
            }
            Checked::Lock(map, key) => {
                if stands == Stands::Leased {
                    return Err(anyhow!("a lock cannot be leased: it stands without the daemon").into());
                }
                let old = map.get(key)?;
                let value = LockValue { revocation, expires_ns, since: gate.moment };
                let value = old.map_or(value, |old| merge_lock(old, value));
                if old == Some(value) { Ok(()) } else { map.put(key, value, old.is_none()) }
            }
        }
    }

    pub(super) fn remove(&mut self, entry: &Entry) -> Result<bool> {
        let removed = match self.standings(Key::of(entry)) {
            Checked::Flow(map, key) => map.remove(key),
            Checked::Address(map, key) => map.remove(key),
            Checked::Device(map, key) => map.remove(key),
            Checked::Token(map, key) => map.remove(key),
            Checked::SafeId(map, key) => map.remove(key),
            Checked::Cutoff(map, key) => map.remove(key),
            Checked::Lock(map, key) => map.remove(key),
        }?;
        if let Some(key) = Key::of(entry).gate_hits() {
            let _ = self.gate_hits.remove(&Plain(key));
        }
        Ok(removed)
    }

    fn gate_count(&self, key: Key) -> u64 {
        key.gate_hits().and_then(|key| self.gate_hits.get(&Plain(key), 0).ok()).unwrap_or(0)
    }

    pub(super) fn hits(&self, entry: &Entry) -> Option<u64> {
        let key = Key::of(entry);
        let standing = match key {
            Key::Flow(key) => self.flows.get(key),
            Key::Address(key) => self.addresses.get(key),
            Key::Device(key) => self.devices.get(key),
            Key::Token(key) => self.tokens.get(key),
            Key::SafeId(id) => {
                return self.safe_ids.get(id).ok().flatten().map(|_| self.gate_count(key));
            }
            Key::Cutoff(id) => {
                return self.cutoffs.get(id).ok().flatten().map(|_| self.gate_count(key));
            }
            Key::Lock(id) => {
                return self.locks.get(id).ok().flatten().map(|_| self.gate_count(key));
            }
        };
        standing.ok().flatten().map(|standing| standing.hits)
    }

    /// Counts a refusal that the daemon itself has answered to a gate.
    pub(super) fn count_gate_hit(&mut self, entry: &Entry) {
        if let Some(key) = Key::of(entry).gate_hits() {
            count_gate_hit(&mut self.gate_hits, key);
        }
    }

    pub(super) fn dump(&self) -> Result<Vec<StoredEntry>> {
        let mut all = Vec::new();
        dump_standings(&mut all, &self.flows, Key::Flow)?;
        dump_standings(&mut all, &self.addresses, Key::Address)?;
        dump_standings(&mut all, &self.devices, Key::Device)?;
        dump_standings(&mut all, &self.tokens, Key::Token)?;
        for pair in self.safe_ids.dump() {
            let (id, SafeIdValue { revocation, server, since }) = pair?;
            push_gate(
                &mut all,
                self,
                Key::SafeId(id),
                revocation,
                Stands::Forever,
                GateFacts { server, moment: since },
            );
        }
        for pair in self.cutoffs.dump() {
            let (id, CutoffValue { revocation, server, up_to }) = pair?;
            push_gate(
                &mut all,
                self,
                Key::Cutoff(id),
                revocation,
                Stands::Forever,
                GateFacts { server, moment: up_to },
            );
        }
        for pair in self.locks.dump() {
            let (id, LockValue { revocation, expires_ns, since }) = pair?;
            push_gate(
                &mut all,
                self,
                Key::Lock(id),
                revocation,
                decode(expires_ns),
                GateFacts { server: 0, moment: since },
            );
        }
        Ok(all)
    }

    pub(super) fn beat(&mut self, now_ns: u64) -> Result<()> {
        self.heartbeat.set(0, now_ns, 0).context("cannot write the heartbeat")
    }

    pub(super) fn heartbeat(&self) -> Result<u64> {
        self.heartbeat.get(&0, 0).context("cannot read the heartbeat")
    }

    pub(super) fn counters(&self) -> Result<Vec<Counter>> {
        let mut all = Vec::with_capacity(REASONS);
        for reason in Reason::ALL {
            let values = self.counters.get(&(reason as u32), 0).context("cannot read the counters")?;
            let (packets, bytes) = values.iter().fold((0, 0), |(packets, bytes): (u64, u64), Plain(one)| {
                (packets.wrapping_add(one.packets), bytes.wrapping_add(one.bytes))
            });
            all.push(Counter { reason: reason.name(), packets, bytes });
        }
        Ok(all)
    }

    pub(super) fn usage(&self) -> Vec<Usage> {
        vec![
            self.flows.usage(),
            self.addresses.usage(),
            self.devices.usage(),
            self.tokens.usage(),
            self.safe_ids.usage(),
            self.cutoffs.usage(),
            self.locks.usage(),
        ]
    }

    pub(super) fn next_revocation(&self) -> u64 {
        self.next_revocation
    }

    pub(super) fn set_next_revocation(&mut self, next: u64) -> Result<()> {
        self.meta.write(next)?;
        self.next_revocation = next;
        Ok(())
    }
}

/// The table that an entry belongs to.
enum Checked<'a> {
    Flow(&'a mut Counted<FlowKey, Standing>, FlowKey),
    Address(&'a mut Counted<AddressKey, Standing>, AddressKey),
    Device(&'a mut Counted<DeviceKey, Standing>, DeviceKey),
    Token(&'a mut Counted<TokenKey, Standing>, TokenKey),
    SafeId(&'a mut Counted<SafeIdKey, SafeIdValue>, SafeIdKey),
    Cutoff(&'a mut Counted<CutoffKey, CutoffValue>, CutoffKey),
    Lock(&'a mut Counted<LockKey, LockValue>, LockKey),
}

/// One more refusal. Lost if another gate counts at the same instant, or if the map is full.
pub(super) fn count_gate_hit(map: &mut HashMap<MapData, Plain<GateHitKey>, u64>, key: GateHitKey) {
    let hits = map.get(&Plain(key), 0).unwrap_or(0);
    let _ = map.insert(Plain(key), hits.saturating_add(1), ANY);
}

fn encode(stands: Stands) -> u64 {
    match stands {
        Stands::Forever => FOREVER,
        Stands::Leased => LEASED,
        // 0 and MAX mean something else; both moments are as good as their neighbours
        Stands::Until(moment) => moment.clamp(LEASED + 1, FOREVER - 1),
    }
}

fn decode(expires_ns: u64) -> Stands {
    match expires_ns {
        FOREVER => Stands::Forever,
        LEASED => Stands::Leased,
        moment => Stands::Until(moment),
    }
}

/// The rule for an entry that is there already, see `Dataplane::insert`.
fn merge(old: Standing, revocation: u64, expires_ns: u64) -> Standing {
    if revocation == old.revocation {
        return Standing { expires_ns, ..old };
    }
    let forever = old.expires_ns == FOREVER || expires_ns == FOREVER;
    if revocation < old.revocation {
        return Standing { expires_ns: if forever { FOREVER } else { old.expires_ns }, ..old };
    }
    Standing { revocation, expires_ns: if forever { FOREVER } else { expires_ns }, hits: 0, last_ns: 0 }
}

/// The same rule for a lock: its moment is the one of the revocation that it carries.
fn merge_lock(old: LockValue, new: LockValue) -> LockValue {
    let standing = |lock: LockValue| Standing {
        revocation: lock.revocation,
        expires_ns: lock.expires_ns,
        ..Standing::default()
    };
    let Standing { revocation, expires_ns, .. } = merge(standing(old), new.revocation, new.expires_ns);
    let since = if new.revocation < old.revocation { old.since } else { new.since };
    LockValue { revocation, expires_ns, since }
}

fn put_standing<K: Bits>(
    map: &mut Counted<K, Standing>,
    key: K,
    revocation: u64,
    expires_ns: u64,
) -> Result<(), InsertError> {
    match map.get(key)? {
        None => map.put(key, Standing { revocation, expires_ns, hits: 0, last_ns: 0 }, true),
        Some(old) => {
            let new = merge(old, revocation, expires_ns);
            if new == old { Ok(()) } else { map.put(key, new, false) }
        }
    }
}

fn dump_standings<K: Bits>(
    all: &mut Vec<StoredEntry>,
    map: &Counted<K, Standing>,
    wrap: impl Fn(K) -> Key,
) -> Result<()> {
    for pair in map.dump() {
        let (key, Standing { revocation, expires_ns, hits, last_ns }) = pair?;
        let stands = decode(expires_ns);
        match wrap(key).entry() {
            Some(entry) => {
                all.push(StoredEntry {
                    entry,
                    revocation,
                    stands,
                    hits,
                    last_ns,
                    gate: GateFacts::default(),
                });
            }
            None => tracing::warn!(map = map.name, revocation, "an entry of the map means nothing to us"),
        }
    }
    Ok(())
}

fn push_gate(
    all: &mut Vec<StoredEntry>,
    tables: &Tables,
    key: Key,
    revocation: u64,
    stands: Stands,
    gate: GateFacts,
) {
    let hits = tables.gate_count(key);
    if let Some(entry) = key.entry() {
        all.push(StoredEntry { entry, revocation, stands, hits, last_ns: 0, gate });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn old(revocation: u64, expires_ns: u64) -> Standing {
        Standing { revocation, expires_ns, hits: 7, last_ns: 8 }
    }

    #[test]
    fn the_newest_revocation_wins_and_forever_is_never_shortened() {
        assert_eq!(
            merge(old(2, LEASED), 2, 50),
            Standing { expires_ns: 50, ..old(2, 0) },
            "same: hits are kept"
        );
        assert_eq!(
            merge(old(2, LEASED), 3, 50),
            Standing { revocation: 3, expires_ns: 50, hits: 0, last_ns: 0 }
        );
        assert_eq!(merge(old(2, FOREVER), 3, LEASED).expires_ns, FOREVER);
        assert_eq!(merge(old(2, LEASED), 1, FOREVER), old(2, FOREVER));
        assert_eq!(merge(old(2, 50), 1, LEASED), old(2, 50));
    }

    #[test]
    fn a_lock_merges_as_any_other_and_keeps_its_newest_moment() {
        let lock = |revocation, expires_ns, since| LockValue { revocation, expires_ns, since };
        assert_eq!(merge_lock(lock(2, 50, 7), lock(3, 60, 8)), lock(3, 60, 8));
        assert_eq!(merge_lock(lock(2, FOREVER, 7), lock(3, 60, 8)), lock(3, FOREVER, 8));
        assert_eq!(merge_lock(lock(2, 50, 7), lock(1, FOREVER, 6)), lock(2, FOREVER, 7));
        assert_eq!(merge_lock(lock(2, FOREVER, 7), lock(2, 60, 8)), lock(2, 60, 8), "its own second word");
    }

    #[test]
    fn stands_survive_the_map() {
        for stands in [Stands::Forever, Stands::Leased, Stands::Until(1), Stands::Until(77)] {
            assert_eq!(decode(encode(stands)), stands);
        }
        assert_eq!(decode(encode(Stands::Until(0))), Stands::Until(1));
        assert_eq!(decode(encode(Stands::Until(u64::MAX))), Stands::Until(u64::MAX - 1));
    }
}
