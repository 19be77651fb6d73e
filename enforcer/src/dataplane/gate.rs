//! The gate's own look at the maps, for when the daemon does not answer.

use std::cell::RefCell;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use aya::maps::{HashMap, Map, MapData, MapError};
use enforcer_ebpf::layout::{self, ABI, CutoffValue, Digest, GateHitKey, LockValue, SafeIdValue};

use super::host;
use super::keys::{HITS_CUTOFF, HITS_LOCK, HITS_SAFE_ID};
use super::pins::{Current, Pins, exists};
use super::table::{Bits, Plain};
use super::tables::{MetaMap, count_gate_hit};
use crate::session::{CutoffKey, LockKey, SafeId};

/// What stands against a cookie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SafeIdFacts {
    pub revocation: u64,
    /// The hash of the server's name that was given to [`super::Dataplane::insert`].
    pub server: u64,
    /// Unix seconds.
    pub since: u64,
}

/// What stands against the older cookies of a user.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CutoffFacts {
    pub revocation: u64,
    /// The hash of the server's name that was given to [`super::Dataplane::insert`].
    pub server: u64,
    /// Unix seconds: cookies created up to then, ties too, are refused.
    pub up_to: u64,
}

/// What stands against every login of a person.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LockFacts {
    pub revocation: u64,
    /// Unix seconds: when it was locked.
    pub since: u64,
}

/// The gate's tables, opened from their pins: a handful of system calls, no program is loaded. What the daemon
/// decided is only read; hits are counted in a map of their own.
///
/// A daemon that migrates puts another set of maps in place. Each look makes sure that it looked into the set that
/// counts, so that also a gate which took its time sees what was said after the change.
pub struct GateMaps {
    pins: Pins,
    set: RefCell<Set>,
}

/// One set of maps, all of it.
struct Set {
    current: Current,
    safe_ids: HashMap<MapData, Plain<Digest>, Plain<SafeIdValue>>,
    cutoffs: HashMap<MapData, Plain<Digest>, Plain<CutoffValue>>,
    /// The layout 1 has no locks, and a daemon that has it knows none.
    locks: Option<HashMap<MapData, Plain<Digest>, Plain<LockValue>>>,
    hits: HashMap<MapData, Plain<GateHitKey>, u64>,
}

/// How often a set is opened while sets change; one daemon's start changes them once.
const TRIES: usize = 5;

impl Set {
    /// `None`: nothing is pinned, or nobody has finished pinning it.
    fn open(pins: &Pins) -> Result<Option<Self>> {
        let mut outcome = Ok(None);
        for _ in 0..TRIES {
            let Some(current) = pins.current()? else { return Ok(None) };
            outcome = Self::open_in(&current);
            // what was opened, or could not be, is of that set alone if it still counts
            if pins.current()?.is_some_and(|now| now.is(&current)) {
                return outcome;
            }
        }
        outcome
    }

    fn open_in(current: &Current) -> Result<Option<Self>> {
        let folder = &current.folder;
        if !exists(&folder.join(layout::META))? {
            return Ok(None);
        }
        let meta = MetaMap::open(folder)?.read()?;
        if meta.filling != 0 {
            return Ok(None);
        }
        let locks = match meta.abi {
            2 | 3 | ABI => Some(HashMap::try_from(table(folder, layout::LOCKS)?)?),
            1 => None,
            // the daemon is making its first maps at this moment
            0 => return Ok(None),
            other => bail!("the maps have the layout {other}, and this gate speaks {ABI}"),
        };
        Ok(Some(Self {
            current: current.clone(),
            safe_ids: HashMap::try_from(table(folder, layout::SAFE_IDS)?)?,
            cutoffs: HashMap::try_from(table(folder, layout::CUTOFFS)?)?,
            locks,
            hits: HashMap::try_from(table(folder, layout::GATE_HITS)?)?,
        }))
    }
}

impl GateMaps {
    /// `None`: nothing is pinned there (no daemon has run since the boot, or everything was unloaded), or the daemon
    /// has just made the maps, and what stands is not back in them yet.
    ///
    /// # Errors
    /// Pins that cannot be opened, or of another layout. The caller must not take that for "nothing stands".
    pub fn open(pin_path: &Path) -> Result<Option<Self>> {
        let pins = Pins::below(pin_path);
        Ok(Set::open(&pins)?.map(|set| Self { pins, set: RefCell::new(set) }))
    }

    /// What stands against that cookie; counts a hit if anything does.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn safe_id(&self, id: &SafeId) -> Result<Option<SafeIdFacts>> {
        let key = Digest::new(id.as_bytes());
        let found = self.look(|set| get(&set.safe_ids, key, layout::SAFE_IDS))?;
        Ok(found.map(|SafeIdValue { revocation, server, since }| {
            self.count(HITS_SAFE_ID, key);
            SafeIdFacts { revocation, server, since }
        }))
    }

    /// What stands against that user's older cookies. It counts a hit if anything does, so ask only when a
    /// cookie of that user is before the gate.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn cutoff(&self, key: &CutoffKey) -> Result<Option<CutoffFacts>> {
        let key = Digest::new(key.as_bytes());
        let found = self.look(|set| get(&set.cutoffs, key, layout::CUTOFFS))?;
        Ok(found.map(|CutoffValue { revocation, server, up_to }| {
            self.count(HITS_CUTOFF, key);
            CutoffFacts { revocation, server, up_to }
        }))
    }

    /// The lock of that person; counts a hit if there is one. A lock whose time is over is as good as absent.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn lock(&self, key: &LockKey) -> Result<Option<LockFacts>> {
        let key = Digest::new(key.as_bytes());
        let found = self.look(|set| match &set.locks {
            Some(locks) => get(locks, key, layout::LOCKS),
            None => Ok(None),
        })?;
        // FOREVER is a moment that never comes
        let in_force = found.filter(|lock| host::monotonic_ns() < lock.expires_ns);
        Ok(in_force.map(|LockValue { revocation, since, .. }| {
            self.count(HITS_LOCK, key);
            LockFacts { revocation, since }
        }))
    }

    /// Looks, and looks again if another set counts by now.
    fn look<T>(&self, look: impl Fn(&Set) -> Result<T>) -> Result<T> {
        let mut set = self.set.try_borrow_mut().context("the gate's tables are in use")?;
        for _ in 0..TRIES {
            let found = look(&set)?;
            match self.pins.current()? {
                Some(current) if !current.is(&set.current) => {
                    *set = Set::open(&self.pins)?.context("the pinned maps are there no more")?;
                }
                // without any pins, what we hold is still what the daemon writes
                Some(_) | None => return Ok(found),
            }
        }
        bail!("the pinned maps change all the time")
    }

    fn count(&self, kind: u32, id: Digest) {
        if let Ok(mut set) = self.set.try_borrow_mut() {
            count_gate_hit(&mut set.hits, GateHitKey { kind, id });
        }
    }
}

fn table(maps: &Path, name: &str) -> Result<Map> {
    let path = maps.join(name);
    let data =
        MapData::from_pin(&path).with_context(|| format!("cannot open the pinned map {}", path.display()))?;
    Ok(Map::HashMap(data))
}

fn get<V: Bits>(
    map: &HashMap<MapData, Plain<Digest>, Plain<V>>,
    key: Digest,
    name: &str,
) -> Result<Option<V>> {
    match map.get(&Plain(key), 0) {
        Ok(Plain(value)) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read the map {name}")),
    }
}
