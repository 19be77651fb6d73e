//! The pinned maps, typed: how entries get in and out, and what becomes of one that is there already.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use enforcer_ebpf::counters::{Count, REASONS, Reason};
use enforcer_ebpf::layout::{
    self, ABI, AddressKey, CutoffKey, CutoffValue, DeviceKey, FOREVER, FlowKey, GateHitKey, LEASED, LockKey,
    LockValue, Meta, Present, SafeIdKey, SafeIdValue, Standing, TokenKey,
};
use enforcer_ebpf::packed::HashKeys;

use super::keys::Key;
use super::standings::Standings;
use super::table::{ANY, Bits, Counted, Plain, open};
use super::{Capacities, Counter, GateFacts, Hits, InsertError, StoredEntry, Usage};
use crate::session::{Entry, Flow, Netns, Stands, Token};

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

    pub(super) fn write(&mut self, next_revocation: u64, filling: bool) -> Result<()> {
        let meta = Meta { abi: ABI, filling: filling.into(), next_revocation };
        self.0.set(0, Plain(meta), 0).context("cannot write the map meta")
    }
}

/// When the daemon last said that it lives.
pub(super) struct Heartbeat(Array<MapData, u64>);

impl Heartbeat {
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let (data, _) = open(folder, layout::HEARTBEAT)?;
        Ok(Self(Array::try_from(Map::Array(data)).context("the map heartbeat is not ours")?))
    }

    pub(super) fn read(&self) -> Result<u64> {
        self.0.get(&0, 0).context("cannot read the heartbeat")
    }

    pub(super) fn write(&mut self, now_ns: u64) -> Result<()> {
        self.0.set(0, now_ns, 0).context("cannot write the heartbeat")
    }
}

/// Whether there is anything in the tables that packets are asked for.
pub(super) struct PresentMap {
    map: Array<MapData, Plain<Present>>,
    written: Present,
}

impl PresentMap {
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let (data, _) = open(folder, layout::PRESENT)?;
        let map = Array::try_from(Map::Array(data)).context("the map present is not ours")?;
        let Plain(written) = map.get(&0, 0).context("cannot read the map present")?;
        Ok(Self { map, written })
    }

    /// A system call if it is new.
    pub(super) fn write(&mut self, present: Present) -> Result<()> {
        if present != self.written {
            self.map.set(0, Plain(present), 0).context("cannot write the map present")?;
            self.written = present;
        }
        Ok(())
    }

    fn raise(&mut self, key: Key) -> Result<()> {
        let mut present = self.written;
        match key {
            Key::Flow(_) => present.flows = 1,
            Key::Address(_) => present.addresses = 1,
            Key::Device(_) => present.devices = 1,
            Key::Token(_) => present.tokens = 1,
            Key::SafeId(_) | Key::Cutoff(_) | Key::Lock(_) => {}
        }
        self.write(present)
    }
}

/// The secret of the packed tables' hash, for as long as the maps live.
pub(super) struct SecretMap(Array<MapData, Plain<HashKeys>>);

impl SecretMap {
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let (data, _) = open(folder, layout::HASH_KEYS)?;
        Ok(Self(Array::try_from(Map::Array(data)).context("the map hash_keys is not ours")?))
    }

    /// Zeroes: nobody has written it yet.
    pub(super) fn read(&self) -> Result<HashKeys> {
        let Plain(secret) = self.0.get(&0, 0).context("cannot read the map hash_keys")?;
        Ok(secret)
    }

    pub(super) fn write(&mut self, secret: HashKeys) -> Result<()> {
        self.0.set(0, Plain(secret), 0).context("cannot write the map hash_keys")
    }
}

/// All tables.
pub(super) struct Tables {
    flows: Standings<FlowKey>,
    addresses: Standings<AddressKey>,
    devices: Counted<DeviceKey, Standing>,
    tokens: Counted<TokenKey, Standing>,
    present: PresentMap,
    safe_ids: Counted<SafeIdKey, SafeIdValue>,
    cutoffs: Counted<CutoffKey, CutoffValue>,
    locks: Counted<LockKey, LockValue>,
    gate_hits: HashMap<MapData, Plain<GateHitKey>, u64>,
    /// When this process last refused a login by an entry that stands: the map has no times.
    refused: std::collections::HashMap<GateHitKey, u64>,
    learned: HashMap<MapData, Plain<FlowKey>, Plain<TokenKey>>,
    counters: PerCpuArray<MapData, Plain<Count>>,
    probed: Array<MapData, Plain<Count>>,
    heartbeat: Heartbeat,
    meta: MetaMap,
    next_revocation: u64,
    filling: bool,
}

impl Tables {
    /// Opens what the loader has pinned, and writes the layout's number. `fill`: somebody is about to fill them if
    /// they are new, and says when it is done.
    pub(super) fn open(folder: &Path, capacities: &Capacities, fill: bool) -> Result<Self> {
        let mut meta = MetaMap::open(folder)?;
        let found = meta.read()?;
        let next_revocation = found.next_revocation;
        // also of an earlier run that did not come to the end of it
        let filling = fill && (found.abi == 0 || found.filling != 0);
        meta.write(next_revocation, filling)?;
        let secret = SecretMap::open(folder)?.read()?;
        let mut tables = Self {
            flows: Standings::open(folder, secret, capacities.flows)?,
            addresses: Standings::open(folder, secret, capacities.addresses)?,
            devices: Counted::open(folder, layout::DEVICES)?,
            tokens: Counted::open(folder, layout::TOKENS)?,
            present: PresentMap::open(folder)?,
            safe_ids: Counted::open(folder, layout::SAFE_IDS)?,
            cutoffs: Counted::open(folder, layout::CUTOFFS)?,
            locks: Counted::open(folder, layout::LOCKS)?,
            gate_hits: HashMap::try_from(Map::HashMap(open(folder, layout::GATE_HITS)?.0))?,
            refused: std::collections::HashMap::new(),
            learned: HashMap::try_from(Map::LruHashMap(open(folder, layout::LEARNED)?.0))?,
            counters: PerCpuArray::try_from(Map::PerCpuArray(open(folder, layout::COUNTERS)?.0))?,
            probed: Array::try_from(Map::Array(open(folder, layout::PROBED)?.0))?,
            heartbeat: Heartbeat::open(folder)?,
            meta,
            next_revocation,
            filling,
        };
        tables.sweep_gate_hits()?;
        tables.say_present()?;
        Ok(tables)
    }

    pub(super) fn flows_used(&self) -> u64 {
        self.flows.used()
    }

    pub(super) fn addresses_used(&self) -> u64 {
        self.addresses.used()
    }

    fn say_present(&mut self) -> Result<()> {
        let is = |used: u64| u32::from(used != 0);
        self.present.write(Present {
            flows: is(self.flows.used()),
            addresses: is(self.addresses.used()),
            devices: is(self.devices.usage().used),
            tokens: is(self.tokens.usage().used),
        })
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

    pub(super) fn expect<'a>(&self, entries: impl Iterator<Item = &'a Entry> + Clone) {
        let keys = entries.map(Key::of);
        self.flows.expect(keys.clone().filter_map(|key| match key {
            Key::Flow(key) => Some(key),
            _ => None,
        }));
        self.addresses.expect(keys.filter_map(|key| match key {
            Key::Address(key) => Some(key),
            _ => None,
        }));
    }

    pub(super) fn insert(
        &mut self,
        entry: &Entry,
        revocation: u64,
        stands: Stands,
        gate: GateFacts,
    ) -> Result<(), InsertError> {
        let expires_ns = encode(stands);
        let key = Key::of(entry);
        // before, so that no packet passes once it stands
        self.present.raise(key)?;
        match self.standings(key) {
            Checked::Flow(map, key) => {
                map.put(key, standing(revocation, expires_ns), |old| merge(old, revocation, expires_ns))
            }
            Checked::Address(map, key) => {
                map.put(key, standing(revocation, expires_ns), |old| merge(old, revocation, expires_ns))
            }
            Checked::Device(map, key) => put_merged(map, key, revocation, expires_ns),
            Checked::Token(map, key) => put_merged(map, key, revocation, expires_ns),
            Checked::SafeId(map, key) => {
                let new = SafeIdValue { revocation, server: gate.server, since: gate.moment };
                // an older revocation changes nothing: a safe_id is refused or not
                map.put(key, new, |old| if old.revocation > revocation { old } else { new })
            }
            Checked::Cutoff(map, key) => {
                let new = CutoffValue { revocation, server: gate.server, up_to: gate.moment };
                map.put(key, new, |old| CutoffValue {
                    revocation: new.revocation.max(old.revocation),
                    up_to: new.up_to.max(old.up_to),
                    ..new
                })
            }
            Checked::Lock(map, key) => {
                if stands == Stands::Leased {
                    return Err(anyhow!("a lock cannot be leased: it stands without the daemon").into());
                }
                let new = LockValue { revocation, expires_ns, since: gate.moment };
                map.put(key, new, |old| merge_lock(old, new))
            }
        }
    }

    pub(super) fn remove(&mut self, entry: &Entry) -> Result<bool> {
        self.remove_key(Key::of(entry))
    }

    pub(super) fn remove_key(&mut self, at: Key) -> Result<bool> {
        let removed = match self.standings(at) {
            Checked::Flow(map, key) => map.remove(key),
            Checked::Address(map, key) => map.remove(key),
            Checked::Device(map, key) => map.remove(key),
            Checked::Token(map, key) => map.remove(key),
            Checked::SafeId(map, key) => map.remove(key),
            Checked::Cutoff(map, key) => map.remove(key),
            Checked::Lock(map, key) => map.remove(key),
        }?;
        if let Some(key) = at.gate_hits() {
            let _ = self.gate_hits.remove(&Plain(key));
            self.refused.remove(&key);
        }
        if removed {
            self.say_present()?;
        }
        Ok(removed)
    }

    fn gate_hits(&self, key: Key) -> Hits {
        let Some(key) = key.gate_hits() else { return Hits::default() };
        let count = self.gate_hits.get(&Plain(key), 0).unwrap_or(0);
        Hits { count, last_ns: self.refused.get(&key).copied().unwrap_or(0) }
    }

    pub(super) fn hits(&self, entry: &Entry) -> Option<Hits> {
        let key = Key::of(entry);
        let stands = match key {
            Key::SafeId(id) => self.safe_ids.get(id).ok()?.is_some(),
            Key::Cutoff(id) => self.cutoffs.get(id).ok()?.is_some(),
            Key::Lock(id) => self.locks.get(id).ok()?.is_some(),
            Key::Flow(_) | Key::Address(_) | Key::Device(_) | Key::Token(_) => {
                let Standing { hits, last_ns, .. } = self.standing_at(key).ok()??;
                return Some(Hits { count: hits, last_ns });
            }
        };
        stands.then(|| self.gate_hits(key))
    }

    /// What the programs would find. `None` also for what no program looks at.
    pub(super) fn standing_at(&self, key: Key) -> Result<Option<Standing>> {
        match key {
            Key::Flow(key) => self.flows.get(key),
            Key::Address(key) => self.addresses.get(key),
            Key::Device(key) => self.devices.get(key),
            Key::Token(key) => self.tokens.get(key),
            Key::SafeId(_) | Key::Cutoff(_) | Key::Lock(_) => Ok(None),
        }
    }

    /// Puts in, as it is, what the programs look at and what is not there. Nothing for any other key.
    pub(super) fn put_standing(&mut self, key: Key, standing: Standing) -> Result<(), InsertError> {
        self.present.raise(key)?;
        match self.standings(key) {
            Checked::Flow(map, key) => map.put(key, standing, |_| standing),
            Checked::Address(map, key) => map.put(key, standing, |_| standing),
            Checked::Device(map, key) => map.put(key, standing, |_| standing),
            Checked::Token(map, key) => map.put(key, standing, |_| standing),
            Checked::SafeId(..) | Checked::Cutoff(..) | Checked::Lock(..) => Ok(()),
        }
    }

    /// So many packets that the programs have counted were probes.
    pub(super) fn count_probes(&mut self, reason: Reason, packets: u64, bytes: u64) -> Result<()> {
        let index = reason as u32;
        let Plain(old) = self.probed.get(&index, 0).context("cannot read the map probed")?;
        let new = Count { packets: old.packets.wrapping_add(packets), bytes: old.bytes.wrapping_add(bytes) };
        self.probed.set(index, Plain(new), 0).context("cannot write the map probed")
    }

    /// The token that a flow has shown last, as far as it is remembered.
    pub(super) fn learned(&self, netns: Netns, flow: Flow) -> Option<Token> {
        let Key::Flow(key) = Key::of(&Entry::Flow(netns, flow)) else { return None };
        let Plain(token) = self.learned.get(&Plain(key), 0).ok()?;
        match Key::Token(token).entry()? {
            Entry::Token(token) => Some(token),
            _ => None,
        }
    }

    /// Counts a refusal that the daemon itself has answered to a gate.
    pub(super) fn count_gate_hit(&mut self, entry: &Entry, now_ns: u64) {
        if let Some(key) = Key::of(entry).gate_hits() {
            count_gate_hit(&mut self.gate_hits, key);
            self.refused.insert(key, now_ns);
        }
    }

    pub(super) fn dump(&self) -> Result<Vec<StoredEntry>> {
        let mut all = Vec::new();
        self.flows.each(|key, standing| push_standing(&mut all, Key::Flow(key), standing))?;
        self.addresses.each(|key, standing| push_standing(&mut all, Key::Address(key), standing))?;
        self.devices.each(|key, standing| push_standing(&mut all, Key::Device(key), standing))?;
        self.tokens.each(|key, standing| push_standing(&mut all, Key::Token(key), standing))?;
        let mut push =
            |key, revocation, stands, gate| push_gate(&mut all, self, key, revocation, stands, gate);
        self.safe_ids.each(|id, SafeIdValue { revocation, server, since }| {
            push(Key::SafeId(id), revocation, Stands::Forever, GateFacts { server, moment: since });
        })?;
        self.cutoffs.each(|id, CutoffValue { revocation, server, up_to }| {
            push(Key::Cutoff(id), revocation, Stands::Forever, GateFacts { server, moment: up_to });
        })?;
        self.locks.each(|id, LockValue { revocation, expires_ns, since }| {
            push(Key::Lock(id), revocation, decode(expires_ns), GateFacts { server: 0, moment: since });
        })?;
        Ok(all)
    }

    pub(super) fn beat(&mut self, now_ns: u64) -> Result<()> {
        self.heartbeat.write(now_ns)
    }

    pub(super) fn counters(&self) -> Result<Vec<Counter>> {
        let mut all = Vec::with_capacity(REASONS);
        for reason in Reason::ALL {
            let values = self.counters.get(&(reason as u32), 0).context("cannot read the counters")?;
            let (packets, bytes) = values.iter().fold((0, 0), |(packets, bytes): (u64, u64), Plain(one)| {
                (packets.wrapping_add(one.packets), bytes.wrapping_add(one.bytes))
            });
            let Plain(probes) = self.probed.get(&(reason as u32), 0).context("cannot read the map probed")?;
            let (packets, bytes) =
                (packets.saturating_sub(probes.packets), bytes.saturating_sub(probes.bytes));
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

    pub(super) fn filled(&mut self) -> Result<()> {
        self.filling = false;
        self.meta.write(self.next_revocation, false)
    }

    pub(super) fn set_next_revocation(&mut self, next: u64) -> Result<()> {
        self.meta.write(next, self.filling)?;
        self.next_revocation = next;
        Ok(())
    }
}

/// The table that an entry belongs to.
enum Checked<'a> {
    Flow(&'a mut Standings<FlowKey>, FlowKey),
    Address(&'a mut Standings<AddressKey>, AddressKey),
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

fn standing(revocation: u64, expires_ns: u64) -> Standing {
    Standing { revocation, expires_ns, hits: 0, last_ns: 0 }
}

fn put_merged<K: Bits>(
    map: &mut Counted<K, Standing>,
    key: K,
    revocation: u64,
    expires_ns: u64,
) -> Result<(), InsertError> {
    map.put(key, standing(revocation, expires_ns), |old| merge(old, revocation, expires_ns))
}

fn push_standing(all: &mut Vec<StoredEntry>, key: Key, standing: Standing) {
    let Standing { revocation, expires_ns, hits, last_ns } = standing;
    // a daemon that was killed while it probed has left it; it has expired, or does so soon
    if revocation == super::probe::NUMBER {
        return;
    }
    match key.entry() {
        Some(entry) => {
            let (stands, gate) = (decode(expires_ns), GateFacts::default());
            all.push(StoredEntry { entry, revocation, stands, hits, last_ns, gate });
        }
        None => tracing::warn!(revocation, "an entry of the kernel's tables means nothing to us"),
    }
}

fn push_gate(
    all: &mut Vec<StoredEntry>,
    tables: &Tables,
    key: Key,
    revocation: u64,
    stands: Stands,
    gate: GateFacts,
) {
    let Hits { count: hits, last_ns } = tables.gate_hits(key);
    if let Some(entry) = key.entry() {
        all.push(StoredEntry { entry, revocation, stands, hits, last_ns, gate });
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
