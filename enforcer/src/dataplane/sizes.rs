//! How large the packed tables are at the moment: they take their memory at once, so they begin small, and become
//! larger when they are full, up to their capacity.

use anyhow::{Context as _, Result};

use super::packed::buckets;
use super::standings::Kept;
use super::{Capacities, Dataplane, Instance, Key, Tables, hooks, mend, migrate, shape};

/// The first size, in entries; each further one is four times as large, and the last is the capacity.
const SMALLEST: u32 = 16_384;
const GROWTH: u32 = 4;

fn sizes(capacity: u32) -> impl Iterator<Item = u32> {
    let smaller = std::iter::successors(Some(SMALLEST), |size| size.checked_mul(GROWTH));
    smaller.take_while(move |size| *size < capacity).chain([capacity])
}

/// The size that a table gets at start. `pinned`: how many buckets it has; `used`: how many entries.
///
/// It keeps its size unless it is too small or eight times too large, so that a start seldom has to rebuild it.
pub(super) fn at_start(capacity: u32, pinned: Option<u32>, used: u64) -> u32 {
    let has_room = |size: &u32| used <= u64::from(*size);
    let stays = |size: &u32| {
        let not_too_large = *size <= SMALLEST || used.saturating_mul(8) >= u64::from(*size);
        pinned == Some(buckets(*size)) && has_room(size) && not_too_large
    };
    let comfortable = |size: &u32| used <= u64::from(*size) / 4 * 3;
    sizes(capacity).find(stays).or_else(|| sizes(capacity).find(comfortable)).unwrap_or(capacity)
}

/// The next size; `None`: it has its capacity.
fn next(capacity: u32, size: u32) -> Option<u32> {
    sizes(capacity).find(|next| *next > size)
}

/// What the packed tables are made for now; all others as configured.
pub(super) fn sized(capacities: &Capacities, flows: u32, addresses: u32) -> Capacities {
    Capacities { flows, addresses, ..*capacities }
}

impl Dataplane {
    /// Makes room where the entry's table is full and may be larger.
    ///
    /// # Errors
    /// It cannot be made larger; then it stays as large as it is until the next start, and everything that stands stays in
    /// force.
    pub(super) fn make_room(&mut self, key: Key) -> Result<()> {
        let (capacities, now) = (self.settings.capacities, self.sized);
        let is_full = |used: u64, size: u32| used >= u64::from(size);
        let sized = match key {
            Key::Flow(_) if is_full(self.tables.flows_used(), now.flows) => {
                next(capacities.flows, now.flows).map(|flows| Capacities { flows, ..now })
            }
            Key::Address(_) if is_full(self.tables.addresses_used(), now.addresses) => {
                next(capacities.addresses, now.addresses).map(|addresses| Capacities { addresses, ..now })
            }
            _ => None,
        };
        let Some(sized) = sized else { return Ok(()) };
        let grown = self.become_sized(sized);
        if grown.is_err() {
            self.settings.capacities.flows = now.flows;
            self.settings.capacities.addresses = now.addresses;
            self.fall_back()?;
        }
        grown.context("a table of the kernel's is full and cannot be made larger")
    }

    fn become_sized(&mut self, sized: Capacities) -> Result<()> {
        if !self.kept.maps_are_well(&self.pins) {
            self.mend_pins()?;
        }
        let plan = shape::plan_sized(&self.pins.maps, sized)?;
        self.instances = migrate::migrate(&self.pins, &plan, self.openvpn, self.own)?;
        self.take_up(sized)?;
        tracing::info!(flows = sized.flows, addresses = sized.addresses, "the kernel's tables have grown");
        Ok(())
    }

    /// The set of maps that counts now.
    fn take_up(&mut self, sized: Capacities) -> Result<()> {
        self.tables = Tables::open(&self.pins.maps, &self.settings.capacities, self.settings.fill)?;
        self.kept = mend::Kept::open(&self.pins)?;
        self.sized = sized;
        Ok(())
    }

    /// After a failure: whatever set counts now, every program uses it again.
    fn fall_back(&mut self) -> Result<()> {
        self.pins.settle()?;
        let sized = shape::plan(&self.pins.maps, &self.settings.capacities)?.sized;
        let load = |netns| Instance::load(&self.pins, &sized, self.openvpn, netns);
        let mut instances = std::collections::HashMap::from([(self.own, load(self.own)?)]);
        hooks::renew_all(&self.pins, &mut instances, load)?;
        self.instances = instances;
        self.take_up(sized)
    }
}

/// The size of a pinned table at start.
pub(super) fn of_pinned<K: Kept>(maps: &std::path::Path, capacity: u32, used: u64) -> Result<u32> {
    let path = maps.join(K::NAMES.lines);
    if !super::pins::exists(&path)? {
        return Ok(at_start(capacity, None, used));
    }
    let info =
        aya::maps::MapInfo::from_pin(&path).with_context(|| format!("cannot look at {}", path.display()))?;
    Ok(at_start(capacity, Some(info.max_entries()), used))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_begins_small_and_grows_to_its_capacity() {
        assert_eq!(sizes(1_000_000).collect::<Vec<_>>(), [16_384, 65_536, 262_144, 1_000_000]);
        assert_eq!(sizes(16_384).collect::<Vec<_>>(), [16_384]);
        assert_eq!(sizes(10).collect::<Vec<_>>(), [10]);
        assert_eq!(next(1_000_000, 16_384), Some(65_536));
        assert_eq!((next(1_000_000, 262_144), next(1_000_000, 1_000_000)), (Some(1_000_000), None));
    }

    #[test]
    fn a_start_keeps_a_size_that_fits() {
        assert_eq!(at_start(1_000_000, None, 0), 16_384);
        assert_eq!(at_start(1_000_000, None, 16_000), 65_536, "with room for some more");
        assert_eq!(at_start(1_000_000, None, 1_000_000), 1_000_000);
        assert_eq!(
            at_start(1_000_000, Some(buckets(65_536)), 60_000),
            65_536,
            "it is nearly full, and stays"
        );
        assert_eq!(at_start(1_000_000, Some(buckets(65_536)), 8_192), 65_536);
        assert_eq!(at_start(1_000_000, Some(buckets(65_536)), 8_191), 16_384, "by far too large");
        assert_eq!(at_start(1_000_000, Some(buckets(16_384)), 16_385), 65_536);
        assert_eq!(at_start(1_000_000, Some(77), 5), 16_384, "of another capacity");
        assert_eq!(at_start(9, Some(buckets(9)), 0), 9);
    }
}
