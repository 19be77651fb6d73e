//! What stands in etcd and what is asked of it, as types.

pub use crate::session::SessionId;
use crate::session::{Author, GatewayId, Identity, Over, Revision};

/// A key below the prefix.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// A gateway that has to learn of every record. It stays until an administrator takes it out.
    Gateway(GatewayId),
    /// There as long as the gateway is connected: under its lease.
    Alive(GatewayId),
    /// Up to where everything is in force there.
    Acknowledged(GatewayId),
    /// Written to learn where the order of everything is now.
    Barrier(GatewayId),
    /// A revocation or a lock.
    Record(Author, Over),
    /// The first takes a record of the second back.
    Lift(Author, Author, Over),
    /// A session that was admitted at that gateway: the revision at which the key was created is its place in the order.
    /// Not watched.
    Admission(GatewayId, Identity, SessionId),
    /// Who has the sessions of a person that are allowed at once; every gateway may write it. Not watched.
    Owners(Identity),
}

impl Key {
    /// Whether it is among what a gateway reads and watches. The others are as many as there are sessions, and nobody
    /// needs each of them at once: they are asked for ([`Op::Get`], [`super::Order::List`]).
    pub fn is_watched(&self) -> bool {
        !matches!(self, Self::Admission(..) | Self::Owners(_))
    }

    /// Whether this gateway may write it. etcd's roles say the same, where it asks who is there.
    pub fn is_for(&self, gateway: GatewayId) -> bool {
        match self {
            Self::Gateway(id) | Self::Alive(id) | Self::Acknowledged(id) | Self::Barrier(id) => {
                *id == gateway
            }
            Self::Record(author, _) | Self::Lift(author, ..) => *author == Author::Gateway(gateway),
            Self::Admission(id, ..) => *id == gateway,
            Self::Owners(_) => true,
        }
    }
}

/// What stands at a key. The fields are those of `proto/cluster.proto`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Gateway { name: String, version: String },
    Alive { run: String, at: u64 },
    Acknowledged(Revision),
    Barrier,
    Record(Record),
    Lift(Lift),
    Admission { at: u64 },
    Owners(Owners),
}

/// A revocation or a lock.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    pub reason: String,
    pub by: String,
    /// Unix seconds, for people alone.
    pub at: u64,
    /// At the gateway where it was entered; 0: at none.
    pub number: u64,
    /// Unix seconds: when a lock ends. `None`: when it is lifted. Always `None` in a revocation.
    pub until: Option<u64>,
    /// For how many seconds a lock was asked.
    pub lasts: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lift {
    /// The record's revision: a newer one of the same key stands.
    pub up_to: Revision,
    pub reason: String,
    pub by: String,
    /// Unix seconds, for people alone.
    pub at: u64,
    /// Of the record, at the gateway where it was entered; 0: at none.
    pub number: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Owners {
    /// How often it was changed.
    pub generation: u64,
    /// The oldest first.
    pub holders: Vec<Holder>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Holder {
    pub gateway: GatewayId,
    pub session: SessionId,
}

/// A key, and what is there from a revision on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub key: Key,
    pub now: Now,
    /// When it was last written; of what is gone, when it went. 0: it was never there, or nobody knows any more.
    pub revision: Revision,
    /// When it was created. 0: it is not there.
    pub created: Revision,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Now {
    Is(Value),
    /// Something that is no value of that key; told by [`super::Told::Malformed`]. What the key said before was not taken
    /// back by that.
    Unreadable,
    Gone,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    Absent(Key),
    /// It is there, and was last written at that revision.
    Unchanged(Key, Revision),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// As long as it stands the key keeps the revision at which it was created.
    Put(Key, Value),
    Delete(Key),
    Get(Key),
}

impl Op {
    pub fn key(&self) -> &Key {
        match self {
            Self::Put(key, _) | Self::Delete(key) | Self::Get(key) => key,
        }
    }
}

/// All or nothing, at one revision. At most [`super::MAX_OPS`] in `then` and one less in the others; no key is written
/// twice.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Txn {
    pub only_if: Vec<Condition>,
    pub then: Vec<Op>,
    /// Done where not all conditions held.
    pub otherwise: Vec<Op>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::WebKey;

    #[test]
    fn a_gateway_writes_below_its_own_keys_and_who_has_what() {
        let (one, other) = (GatewayId::from_bytes([1; 16]), GatewayId::from_bytes([2; 16]));
        let alice = Identity { realm: "default".into(), name: "alice".into() };
        let over = Over::User(alice.clone());
        let session = SessionId::Web(WebKey::from_bytes([3; 16]));
        for own in [
            Key::Gateway(one),
            Key::Alive(one),
            Key::Acknowledged(one),
            Key::Barrier(one),
            Key::Record(Author::Gateway(one), over.clone()),
            Key::Lift(Author::Gateway(one), Author::Admin, over.clone()),
            Key::Admission(one, alice.clone(), session),
        ] {
            assert!(own.is_for(one) && !own.is_for(other), "{own:?}");
        }
        assert!(Key::Owners(alice).is_for(one));
        assert!(!Key::Record(Author::Admin, over.clone()).is_for(one));
        assert!(
            !Key::Lift(Author::Admin, Author::Gateway(one), over).is_for(one),
            "whose record it lifts gives no right"
        );
    }
}
