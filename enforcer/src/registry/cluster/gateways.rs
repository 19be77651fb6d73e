//! Who has to learn of every record, and how far each is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::words::{GatewayId, Revision};

/// With so many gateways and fewer each acknowledges as soon as it can.
const FEW: u32 = 50;
/// With more, each one makes a pause of so much times their number between two: what one says is told to all, so what all
/// say to each record grows with the square of their number.
const PAUSE: Duration = Duration::from_millis(2);

#[derive(Debug)]
pub(super) struct Gateways {
    me: GatewayId,
    /// Those that have to learn of every record, by their names.
    registered: BTreeMap<GatewayId, String>,
    alive: BTreeSet<GatewayId>,
    acknowledged: BTreeMap<GatewayId, Revision>,
    /// The others of those that are registered, by how far they are.
    others: BTreeSet<(Revision, GatewayId)>,
}

impl Gateways {
    pub(super) fn new(me: GatewayId) -> Self {
        Self {
            me,
            registered: BTreeMap::new(),
            alive: BTreeSet::new(),
            acknowledged: BTreeMap::new(),
            others: BTreeSet::new(),
        }
    }

    pub(super) fn registered(&self) -> &BTreeMap<GatewayId, String> {
        &self.registered
    }

    pub(super) fn register(&mut self, id: GatewayId, name: String) {
        self.registered.insert(id, name);
        if id != self.me {
            self.others.insert((self.acknowledged(id), id));
        }
    }

    pub(super) fn remove(&mut self, id: GatewayId) {
        self.registered.remove(&id);
        self.others.remove(&(self.acknowledged(id), id));
    }

    pub(super) fn is_alive(&self, id: GatewayId) -> bool {
        self.alive.contains(&id)
    }

    pub(super) fn set_alive(&mut self, id: GatewayId, alive: bool) {
        if alive {
            self.alive.insert(id);
        } else {
            self.alive.remove(&id);
        }
    }

    pub(super) fn acknowledged(&self, id: GatewayId) -> Revision {
        self.acknowledged.get(&id).copied().unwrap_or(0)
    }

    /// 0: what it has said is there no longer.
    pub(super) fn acknowledge(&mut self, id: GatewayId, up_to: Revision) {
        let before = self.acknowledged(id);
        if up_to == 0 {
            self.acknowledged.remove(&id);
        } else {
            self.acknowledged.insert(id, up_to);
        }
        if self.others.remove(&(before, id)) {
            self.others.insert((up_to, id));
        }
    }

    /// Between two acknowledgements of one gateway.
    pub(super) fn pause(&self) -> Duration {
        let count = u32::try_from(self.registered.len()).unwrap_or(u32::MAX);
        if count <= FEW { Duration::ZERO } else { PAUSE.saturating_mul(count) }
    }

    /// What is in force at all of them; here that is known without a word.
    pub(super) fn everywhere(&self, known: Revision) -> Revision {
        self.others.first().map_or(known, |(least, _)| known.min(*least))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everywhere_is_where_the_last_of_them_is() {
        let [me, one, other] = [1, 2, 3].map(|n| GatewayId::from_bytes([n; 16]));
        let mut gateways = Gateways::new(me);
        gateways.register(me, "me".into());
        assert_eq!(gateways.everywhere(9), 9, "there is nobody else");
        gateways.acknowledge(one, 5);
        assert_eq!(gateways.everywhere(9), 9, "who is not registered is not waited for");
        gateways.register(one, "one".into());
        gateways.register(other, "other".into());
        assert_eq!(gateways.everywhere(9), 0);
        gateways.acknowledge(other, 7);
        gateways.register(one, "another name".into());
        assert_eq!((gateways.everywhere(9), gateways.everywhere(3)), (5, 3));
        gateways.acknowledge(me, 1);
        gateways.acknowledge(one, 8);
        assert_eq!(gateways.everywhere(9), 7);
        gateways.remove(other);
        assert_eq!(gateways.everywhere(9), 8);
        gateways.acknowledge(one, 0);
        assert_eq!(gateways.everywhere(9), 0);
    }
}
