//! From one set of maps to another without a gap: a new layout, or other capacities.
//!
//! In this order, so that a kill at any instruction leaves every drop in force and every entry in the set that
//! counts (see `pins`):
//! 1. The next set: maps that fit are pinned there as well, and are the same maps from then on, so that their
//!    entries, counters and heartbeat need no carrying. The others are made.
//! 2. Entries are copied; those of a packed table each to its place there. Nobody writes meanwhile: the one writer is us.
//! 3. Every program that hangs anywhere is replaced in place by one that uses the next set. Both sets say the
//!    same, so it does not matter which one a packet meets.
//! 4. Hits are carried over, now that nothing counts in the old set any more.
//! 5. The sets change names. The old one is thrown away.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail};
use aya::maps::{Map, MapData, PerCpuArray, PerCpuValues};
use enforcer_ebpf::counters::Count;
use enforcer_ebpf::layout::{
    self, AddressKey, Definition, FlowKey, GateHitKey, MAPS, OpenvpnPorts, Present, Standing,
};
use enforcer_ebpf::verdict::lease_holds;

use super::keys::{HITS_CUTOFF, HITS_LOCK, HITS_SAFE_ID};
use super::pins::{Pins, exists, throw_away};
use super::programs::Instance;
use super::shape::{self, Plan, Step};
use super::standings::{self, Kept, Names, Standings};
use super::sys::{self, Reader};
use super::table::{self, Bits as _, Plain, from_bytes};
use super::tables::{Heartbeat, MetaMap, PresentMap};
use super::{hooks, host};
use crate::session::Netns;

/// Makes the set that `plan` wants and puts it in force. Gives the programs that use it.
///
/// # Errors
/// The kernel refuses something. The old set counts then; the next start throws the new one away.
pub(super) fn migrate(
    pins: &Pins,
    plan: &Plan,
    openvpn: OpenvpnPorts,
    own: Netns,
) -> Result<HashMap<Netns, Instance>> {
    let capacities = &plan.sized;
    let next = pins.with_maps(&pins.next);
    host::make(&next.maps)?;
    for (definition, step) in &plan.steps {
        // what stands in `meta` is said of one set, so each has its own
        if *step == Step::Keep && definition.name != layout::META {
            let path = next.maps.join(definition.name);
            let map = pinned(pins, definition)?;
            sys::pin(map.as_fd(), &path).with_context(|| format!("cannot pin {}", path.display()))?;
        }
    }
    let first = Instance::load(&next, capacities, openvpn, own)?;
    let lease = Lease::open(pins)?;
    for definition in copied(plan) {
        copy(&pinned(pins, definition)?, &pinned(&next, definition)?, definition, &lease)?;
    }
    let mut flows = Standings::<FlowKey>::open_in(&next, capacities.flows)?;
    let mut addresses = Standings::<AddressKey>::open_in(&next, capacities.addresses)?;
    let rebuilt = Rebuilt::of(plan);
    if rebuilt.flows {
        rebuild(pins, &mut flows, &lease)?;
    }
    if rebuilt.addresses {
        rebuild(pins, &mut addresses, &lease)?;
    }
    let is = |used: u64| u32::from(used != 0);
    PresentMap::open(&next.maps)?.write(Present {
        flows: is(flows.used()),
        addresses: is(addresses.used()),
        devices: is(shape::count_in(&next.maps, layout::DEVICES)?),
        tokens: is(shape::count_in(&next.maps, layout::TOKENS)?),
    })?;
    let (next_revocation, filling) = match exists(&pins.maps.join(layout::META))? {
        true => {
            let meta = MetaMap::open(&pins.maps)?.read()?;
            (meta.next_revocation, meta.filling != 0)
        }
        false => (0, false),
    };
    MetaMap::open(&next.maps)?.write(next_revocation, filling)?;

    let mut instances = HashMap::from([(own, first)]);
    hooks::renew_all(pins, &mut instances, |netns| {
        lease.keep()?;
        Instance::load(&next, capacities, openvpn, netns)
    })?;

    for definition in copied(plan) {
        let (from, to) = (pinned(pins, definition)?, pinned(&next, definition)?);
        if counts_hits(definition) {
            carry_hits(&from, &to, definition, &lease)?;
        } else if definition.name == layout::GATE_HITS {
            carry_gate_hits(&from, &to, definition, &next)?;
        } else if definition.name == layout::COUNTERS {
            carry_counters(pins, &next).context("cannot carry over the counters")?;
        }
    }
    if rebuilt.flows {
        carry(pins, &mut flows, &lease)?;
    }
    if rebuilt.addresses {
        carry(pins, &mut addresses, &lease)?;
    }
    pins.swap()?;
    throw_away(&pins.next)?;
    Ok(instances)
}

/// Which of the packed tables are made anew.
struct Rebuilt {
    flows: bool,
    addresses: bool,
}

impl Rebuilt {
    fn of(plan: &Plan) -> Self {
        let is = |name| plan.steps.iter().any(|(one, step)| one.name == name && *step == Step::Copy);
        Self { flows: is(layout::FLOWS), addresses: is(layout::ADDRESSES) }
    }
}

/// What is copied as it is. The packed tables are not: see [`rebuild`].
fn copied(plan: &Plan) -> impl Iterator<Item = &'static Definition> {
    let copied = |(definition, step): &&(&'static Definition, Step)| {
        *step == Step::Copy && Names::of(definition.name).is_none()
    };
    plan.steps.iter().filter(copied).map(|(definition, _)| *definition)
}

/// How many entries are rebuilt before the lease is renewed.
const AT_ONCE: u32 = 4096;
/// ... and how many whose memory is asked for together.
const TOGETHER: usize = 32;

/// Every entry, in its place among other buckets. Hits begin at 0; when the last was stays, or the next drop would be
/// told of as the entry's first.
fn rebuild<K: Kept>(from: &Pins, to: &mut Standings<K>, lease: &Lease) -> Result<()> {
    let mut count = 0_u32;
    let mut some = Vec::with_capacity(TOGETHER);
    let mut put = |some: &mut Vec<(K, Standing)>| {
        to.expect(some.iter().map(|(key, _)| *key));
        some.drain(..).try_for_each(|(key, new)| to.put(key, new, |_| new).map_err(anyhow::Error::new))
    };
    standings::read::<K>(&from.maps, |key, standing| {
        count = count.wrapping_add(1);
        if count.is_multiple_of(AT_ONCE) {
            lease.keep()?;
        }
        some.push((key, Standing { hits: 0, ..standing }));
        if some.len() < TOGETHER { Ok(()) } else { put(&mut some) }
    })
    .and_then(|()| put(&mut some))
    .with_context(|| format!("cannot rebuild the table {}", K::NAMES.plain))
}

/// Adds what the old entries have counted to what the new ones have: none is lost here that the old table has seen.
fn carry<K: Kept>(from: &Pins, to: &mut Standings<K>, lease: &Lease) -> Result<()> {
    lease.keep()?;
    standings::read::<K>(&from.maps, |key, old| {
        if old.hits != 0 && !to.add(key, old.hits, old.last_ns)? {
            bail!("an entry was not rebuilt");
        }
        Ok(())
    })
    .with_context(|| format!("cannot carry over the hits of the table {}", K::NAMES.plain))
}

fn pinned(pins: &Pins, definition: &Definition) -> Result<OwnedFd> {
    let path = pins.maps.join(definition.name);
    sys::open_pin(&path).with_context(|| format!("cannot open the pinned map {}", path.display()))
}

/// Whether the values of that map are [`Standing`]s, in which the programs count.
fn counts_hits(definition: &Definition) -> bool {
    [layout::DEVICES, layout::TOKENS].contains(&definition.name)
}

/// What is leased is in force as long as a daemon lives, and one does: a large migration must not outlast the
/// lease. What has lapsed already stays so.
struct Lease(Option<std::cell::RefCell<Heartbeat>>);

impl Lease {
    fn open(pins: &Pins) -> Result<Self> {
        if !exists(&pins.maps.join(layout::HEARTBEAT))? {
            return Ok(Self(None));
        }
        let heartbeat = Heartbeat::open(&pins.maps)?;
        let holds = lease_holds(heartbeat.read()?, host::monotonic_ns());
        Ok(Self(holds.then(|| heartbeat.into())))
    }

    fn keep(&self) -> Result<()> {
        let Some(heartbeat) = &self.0 else { return Ok(()) };
        heartbeat.borrow_mut().write(host::monotonic_ns())
    }
}

/// All entries but the counts of refusals and by reason, which are carried at the end. Hits begin at 0, likewise.
/// When the programs last spoke (`quiet`) need not be known.
fn copy(from: &OwnedFd, to: &OwnedFd, definition: &Definition, lease: &Lease) -> Result<()> {
    if [layout::GATE_HITS, layout::COUNTERS, layout::QUIET].contains(&definition.name) {
        return Ok(());
    }
    let cannot = || format!("cannot copy the map {}", definition.name);
    let mut reader = Reader::of(from.as_fd(), definition);
    while let Some(piece) = reader.next().with_context(cannot)? {
        if counts_hits(definition) {
            for value in piece.values.chunks_exact_mut(size_of::<Standing>()) {
                let standing: Standing = from_bytes(value).with_context(cannot)?;
                value.copy_from_slice(Standing { hits: 0, ..standing }.bytes());
            }
        }
        sys::write(to.as_fd(), &piece).with_context(cannot)?;
        lease.keep()?;
    }
    Ok(())
}

/// Adds what the old entries have counted to what the new ones have. The programs count meanwhile: of what they
/// drop in the microseconds between reading and writing one entry, its own count may miss a packet; the counters
/// by reason, which are not copied but kept, miss none.
fn carry_hits(from: &OwnedFd, to: &OwnedFd, definition: &Definition, lease: &Lease) -> Result<()> {
    let cannot = || format!("cannot carry over the hits of the map {}", definition.name);
    let mut reader = Reader::of(from.as_fd(), definition);
    while let Some(piece) = reader.next().with_context(cannot)? {
        lease.keep()?;
        let keys = piece.keys.chunks_exact(definition.key as usize);
        for (key, old) in keys.zip(piece.values.chunks_exact_mut(size_of::<Standing>())) {
            let counted: Standing = from_bytes(old).with_context(cannot)?;
            if counted.hits == 0 {
                continue;
            }
            let mut new = [0; size_of::<Standing>()];
            if !sys::lookup(to.as_fd(), key, &mut new).with_context(cannot)? {
                bail!("an entry of the map {} was not copied", definition.name);
            }
            let there: Standing = from_bytes(&new).with_context(cannot)?;
            let sum = Standing {
                hits: there.hits.saturating_add(counted.hits),
                last_ns: there.last_ns.max(counted.last_ns),
                ..there
            };
            sys::update(to.as_fd(), key, sum.bytes()).with_context(cannot)?;
        }
    }
    Ok(())
}

/// Where the map of counters was another one: adds what it has counted. As with hits, a packet that is counted in
/// the microseconds between reading and writing may be missing.
fn carry_counters(from: &Pins, to: &Pins) -> Result<()> {
    let open = |pins: &Pins| -> Result<PerCpuArray<MapData, Plain<Count>>> {
        Ok(PerCpuArray::try_from(Map::PerCpuArray(table::open(&pins.maps, layout::COUNTERS)?.0))?)
    };
    let (from, mut to) = (open(from)?, open(to)?);
    for index in 0..from.len().min(to.len()) {
        let (old, new) = (from.get(&index, 0)?, to.get(&index, 0)?);
        let sums = old.iter().zip(new.iter()).map(|(Plain(old), Plain(new))| {
            Plain(Count {
                packets: old.packets.wrapping_add(new.packets),
                bytes: old.bytes.wrapping_add(new.bytes),
            })
        });
        to.set(index, PerCpuValues::try_from(sums.collect::<Vec<_>>())?, 0)?;
    }
    Ok(())
}

/// The counts of refusals by entries that stand. A gate may have counted by one that was taken out since; such a
/// count could take the place of another.
fn carry_gate_hits(from: &OwnedFd, to: &OwnedFd, definition: &Definition, next: &Pins) -> Result<()> {
    let cannot = || "cannot carry over the refusals that gates have counted";
    let of = |name| -> Result<(&Definition, OwnedFd)> {
        let definition = MAPS.iter().find(|one| one.name == name).with_context(cannot)?;
        Ok((definition, pinned(next, definition)?))
    };
    let (safe_ids, cutoffs, locks) = (of(layout::SAFE_IDS)?, of(layout::CUTOFFS)?, of(layout::LOCKS)?);
    let mut reader = Reader::of(from.as_fd(), definition);
    while let Some(piece) = reader.next().with_context(cannot)? {
        let keys = piece.keys.chunks_exact(definition.key as usize);
        for (bytes, hits) in keys.zip(piece.values.chunks_exact(definition.value as usize)) {
            let key: GateHitKey = from_bytes(bytes).with_context(cannot)?;
            let (table, map) = match key.kind {
                HITS_SAFE_ID => &safe_ids,
                HITS_CUTOFF => &cutoffs,
                HITS_LOCK => &locks,
                _ => continue,
            };
            let mut value = vec![0; table.value as usize];
            if sys::lookup(map.as_fd(), key.id.bytes().as_slice(), &mut value).with_context(cannot)? {
                sys::update(to.as_fd(), bytes, hits).with_context(cannot)?;
            }
        }
    }
    Ok(())
}
