//! What is pinned, compared with what we would make: a map of another shape would load without an error, and
//! every lookup would be silently wrong.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use aya::maps::MapInfo;
use enforcer_ebpf::layout::{self, ABI, AddressKey, Definition, FlowKey, MAPS};

use super::pins::exists;
use super::standings::{self, Names};
use super::sys::{self, Reader};
use super::tables::MetaMap;
use super::{Capacities, packed, sizes};

const REMEDY: &str =
    "stop it, run `enforcer unload` (which lets revoked packets pass until the start), and start again";

/// What becomes of one of our maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// It is not there.
    Make,
    /// It is as we want it, down to the meaning of every entry.
    Keep,
    /// Its entries mean the same, and it must become another map.
    Copy,
}

/// What becomes of what is pinned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Plan {
    /// The layout that the pinned maps have; our own where nobody has finished making them.
    pub abi: u32,
    /// How many entries each map is made for; the packed tables need not be as large as they may become.
    pub sized: Capacities,
    pub steps: Vec<(&'static Definition, Step)>,
}

impl Plan {
    /// Whether the maps cannot stay those that they are.
    pub(super) fn migrates(&self) -> bool {
        self.abi != ABI || self.steps.iter().any(|(_, step)| *step == Step::Copy)
    }

    /// Whether some map is not there, so that programs of an earlier process cannot be using it.
    pub(super) fn makes(&self) -> bool {
        self.steps.iter().any(|(_, step)| *step == Step::Make)
    }
}

/// What a map of ours was in an earlier layout; `None`: it was not. Whoever raises [`ABI`] says here what the
/// former one was: a map whose entries meant something else needs a translation in `migrate`.
fn past(abi: u32, ours: &Definition) -> Option<Definition> {
    match (abi, ours.name) {
        // 1: before there were locks
        (1, layout::LOCKS) => None,
        // 2: before fragments were told apart and tokens learned, and with room for ten reasons
        (1 | 2, layout::FRAGMENTS | layout::LEARNED) => None,
        (1 | 2, layout::COUNTERS | layout::QUIET) => Some(Definition { entries: Some(10), ..*ours }),
        // 1, 2: before there were packed tables; the plain maps had everything, and mean the same
        (
            1 | 2,
            layout::FLOW_LINES
            | layout::FLOW_BUCKETS
            | layout::ADDRESS_LINES
            | layout::ADDRESS_BUCKETS
            | layout::PRESENT
            | layout::HASH_KEYS
            | layout::CLOCK,
        ) => None,
        // 1 to 3: before a packed table had a Bloom filter, which the table's move to new maps makes
        (1..=3, layout::FLOW_BLOOMS | layout::ADDRESS_BLOOMS) => None,
        // 1, 2: before first drops were told of, and before probes
        (1 | 2, layout::EVENTS | layout::EVENT_BUDGET | layout::PROBED) => None,
        _ => Some(*ours),
    }
}

/// How many entries a map gets.
pub(super) fn entries(definition: &Definition, capacities: &Capacities) -> u32 {
    let configured = match definition.name {
        layout::FLOW_BLOOMS | layout::FLOW_LINES | layout::FLOW_BUCKETS => packed::buckets(capacities.flows),
        layout::ADDRESS_BLOOMS | layout::ADDRESS_LINES | layout::ADDRESS_BUCKETS => {
            packed::buckets(capacities.addresses)
        }
        layout::FLOWS => packed::overflow(capacities.flows),
        layout::ADDRESSES => packed::overflow(capacities.addresses),
        layout::DEVICES => capacities.devices,
        layout::TOKENS => capacities.tokens,
        layout::SAFE_IDS => capacities.safe_ids,
        layout::CUTOFFS => capacities.cutoffs,
        layout::LOCKS => capacities.locks,
        _ => capacities.safe_ids.saturating_add(capacities.cutoffs).saturating_add(capacities.locks),
    };
    definition.entries.unwrap_or(configured)
}

/// Looks at the pinned maps and changes nothing.
///
/// # Errors
/// Maps of a newer layout, of a shape that no layout has, or with more in them than they are to hold.
pub(super) fn plan(maps: &Path, capacities: &Capacities) -> Result<Plan> {
    let flows = size::<FlowKey>(maps, capacities.flows)?;
    let addresses = size::<AddressKey>(maps, capacities.addresses)?;
    plan_sized(maps, sizes::sized(capacities, flows, addresses))
}

/// The same, with the sizes given that the packed tables are to have.
pub(super) fn plan_sized(maps: &Path, sized: Capacities) -> Result<Plan> {
    let abi = pinned_abi(maps)?;
    let mut steps = Vec::with_capacity(MAPS.len());
    for definition in &MAPS {
        let path = maps.join(definition.name);
        let step = match past(abi, definition) {
            Some(past) if exists(&path)? => compare(&path, &past, entries(definition, &sized))?,
            _ => Step::Make,
        };
        steps.push((definition, step));
    }
    for names in Names::ALL {
        together(maps, names, &mut steps)?;
    }
    Ok(Plan { abi, sized, steps })
}

/// How large a packed table is to be.
///
/// # Errors
/// There is more in it than it may hold.
fn size<K: standings::Kept>(maps: &Path, capacity: u32) -> Result<u32> {
    let mut used = 0;
    if exists(&maps.join(K::NAMES.plain))? {
        standings::read::<K>(maps, |_, _| {
            used += 1;
            Ok(())
        })?;
        room_for(K::NAMES.plain, used, capacity)?;
    }
    sizes::of_pinned::<K>(maps, capacity, used)
}

/// The maps of one table stay together, or become others together, since a key's place depends on how many buckets
/// there are.
fn together(maps: &Path, names: Names, steps: &mut [(&Definition, Step)]) -> Result<()> {
    let of_it = |name: &str| names.has(name) || name == layout::HASH_KEYS;
    let stays = steps.iter().all(|(definition, step)| !of_it(definition.name) || *step == Step::Keep);
    if stays || !exists(&maps.join(names.plain))? {
        return Ok(());
    }
    for (definition, step) in steps {
        if names.has(definition.name) {
            *step = Step::Copy;
        }
    }
    Ok(())
}

fn room_for(name: &str, used: u64, wanted: u32) -> Result<()> {
    if used > u64::from(wanted) {
        bail!(
            "the table {name} holds {used} entries, and is to have room for {wanted} alone: configure at least \
             {used}, or lift what is not needed any more before the change"
        );
    }
    Ok(())
}

fn pinned_abi(maps: &Path) -> Result<u32> {
    if !exists(&maps.join(layout::META))? {
        return Ok(ABI);
    }
    match MetaMap::open(maps)?.read()?.abi {
        // nobody has finished making them, and nothing was ever said in them
        0 => Ok(ABI),
        newer if newer > ABI => bail!(
            "the maps below {} have the layout {newer}, and this enforcer speaks {ABI}: a newer version has made \
             them; start that one again, or {REMEDY}",
            maps.display()
        ),
        known => Ok(known),
    }
}

fn compare(path: &Path, past: &Definition, wanted: u32) -> Result<Step> {
    let info = MapInfo::from_pin(path).with_context(|| format!("cannot look at {}", path.display()))?;
    let kind = info.map_type().map_or(0, |kind| kind as u32);
    let compared = [
        ("type", kind, past.kind as u32),
        ("key size", info.key_size(), past.key),
        ("value size", info.value_size(), past.value),
        ("flags", info.map_flags(), past.flags),
        ("capacity", info.max_entries(), past.entries.unwrap_or(info.max_entries())),
    ];
    for (what, is, expected) in compared {
        if is != expected {
            bail!(
                "the pinned map {} has {what} {is}, and this enforcer expects {expected}: something else has made \
                 it; {REMEDY}",
                path.display()
            );
        }
    }
    if info.max_entries() == wanted {
        return Ok(Step::Keep);
    }
    // a count of refusals goes with the entry that refuses, so those that stand have room
    if wanted < info.max_entries() && past.name != layout::GATE_HITS && Names::of(past.name).is_none() {
        room_for(past.name, count(path, past)?, wanted)?;
    }
    Ok(Step::Copy)
}

/// How many entries a pinned map has that is no packed table.
pub(super) fn count_in(maps: &Path, name: &str) -> Result<u64> {
    let definition = MAPS.iter().find(|definition| definition.name == name);
    count(&maps.join(name), definition.with_context(|| format!("there is no map {name}"))?)
}

fn count(path: &Path, definition: &Definition) -> Result<u64> {
    let cannot = || format!("cannot count the entries of {}", path.display());
    let map = sys::open_pin(path).with_context(cannot)?;
    let mut reader = Reader::of(std::os::fd::AsFd::as_fd(&map), definition);
    let mut used = 0;
    while let Some(piece) = reader.next().with_context(cannot)? {
        used += piece.count as u64;
    }
    Ok(used)
}
