//! How many sessions of a person there may be at once, and which of them yields.

use crate::session::SessionId;

use super::words::{GatewayId, Holder, Limit, Owners, Yields};

/// No more sessions of one person are allowed at once: what stands in etcd has a bound, and a setting that asks for more has
/// to be refused before.
pub const MOST_HOLDERS: usize = 64;

/// What follows for a session at the gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// It is one of those that may be there.
    Holds,
    /// There are as many as are allowed, and a new one has to yield.
    Full,
    /// It takes a place; these yield.
    Takes { owners: Owners, displaced: Vec<Holder> },
}

/// A session that has had to yield is not asked for again: its end is a record, which refuses it at its gateway.
pub fn claim(owners: &Owners, gateway: GatewayId, session: SessionId, limit: Limit) -> Claim {
    if owners.holders.iter().any(|holder| holder.session == session) {
        return Claim::Holds;
    }
    let most = limit.most.clamp(1, MOST_HOLDERS);
    if limit.yields == Yields::Newest && owners.holders.len() >= most {
        return Claim::Full;
    }
    let mut holders = owners.holders.clone();
    holders.push(Holder { gateway, session });
    let too_many = holders.len().saturating_sub(most);
    let displaced = holders.drain(..too_many).collect();
    let owners = Owners { generation: owners.generation.saturating_add(1), holders };
    Claim::Takes { owners, displaced }
}

/// Without that session. `None`: it has no place.
pub fn without(owners: &Owners, session: SessionId) -> Option<Owners> {
    let holders: Vec<Holder> =
        owners.holders.iter().filter(|holder| holder.session != session).copied().collect();
    (holders.len() < owners.holders.len())
        .then(|| Owners { generation: owners.generation.saturating_add(1), holders })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::SafeId;

    const HERE: GatewayId = GatewayId::from_bytes([1; 16]);
    const THERE: GatewayId = GatewayId::from_bytes([2; 16]);

    fn id(n: u8) -> SessionId {
        SessionId::Vpn(SafeId::from_bytes([n; 20]))
    }

    fn of(ids: &[u8]) -> Owners {
        let holders = ids.iter().map(|n| Holder { gateway: THERE, session: id(*n) }).collect();
        Owners { generation: 7, holders }
    }

    fn ids(owners: &Owners) -> Vec<SessionId> {
        owners.holders.iter().map(|holder| holder.session).collect()
    }

    const ONE: Limit = Limit { most: 1, yields: Yields::Oldest };

    #[test]
    fn the_newest_takes_the_place_of_the_oldest() {
        let Claim::Takes { owners, displaced } = claim(&of(&[1]), HERE, id(2), ONE) else { panic!() };
        assert_eq!((ids(&owners), owners.generation), (vec![id(2)], 8));
        assert_eq!(displaced, [Holder { gateway: THERE, session: id(1) }]);
        let two = Limit { most: 2, ..ONE };
        let Claim::Takes { owners, displaced } = claim(&of(&[1]), HERE, id(2), two) else { panic!() };
        assert_eq!((ids(&owners), displaced), (vec![id(1), id(2)], vec![]));
        // a limit that was lowered meanwhile
        let Claim::Takes { displaced, .. } = claim(&of(&[1, 2, 3]), HERE, id(4), ONE) else { panic!() };
        assert_eq!(displaced.len(), 3);
    }

    #[test]
    fn who_holds_a_place_comes_back() {
        assert_eq!(claim(&of(&[1]), HERE, id(1), ONE), Claim::Holds);
        assert_eq!(
            claim(&of(&[1, 2, 3]), HERE, id(1), ONE),
            Claim::Holds,
            "a lowered limit is for who comes next"
        );
    }

    #[test]
    fn a_new_one_is_refused_where_it_has_to_yield() {
        let refuse = Limit { most: 2, yields: Yields::Newest };
        assert_eq!(claim(&of(&[1, 2]), HERE, id(3), refuse), Claim::Full);
        assert_eq!(claim(&of(&[1, 2]), HERE, id(2), refuse), Claim::Holds);
        assert!(matches!(claim(&of(&[1]), HERE, id(3), refuse), Claim::Takes { .. }));
        let none = Limit { most: 0, yields: Yields::Newest };
        assert!(matches!(claim(&of(&[]), HERE, id(3), none), Claim::Takes { .. }), "0 would be a lock");
    }

    #[test]
    fn who_goes_leaves_his_place() {
        assert_eq!(without(&of(&[1, 2]), id(1)).map(|owners| ids(&owners)), Some(vec![id(2)]));
        assert_eq!(without(&of(&[1, 2]), id(3)), None);
    }
}
