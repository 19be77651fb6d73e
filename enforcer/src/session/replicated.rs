//! Words that several gateways share: who has decided what is over, and where that stands in the order of everything.

use std::fmt;
use std::str::FromStr;

use super::{BadWord, Identity, SafeId, WebKey, web};

/// etcd's revision: the one order of everything that is written. 0: before anything.
pub type Revision = u64;

/// A gateway as it calls itself: 16 random bytes, made with its database.
///
/// Written as 32 hexadecimal digits, in lower case.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GatewayId([u8; 16]);

impl GatewayId {
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// No gateway's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a gateway's id: it is 32 hexadecimal digits in lower case")]
pub struct BadGatewayId;

impl FromStr for GatewayId {
    type Err = BadGatewayId;

    /// 32 hexadecimal digits, in lower case alone: a key has one spelling.
    fn from_str(text: &str) -> Result<Self, BadGatewayId> {
        let is_one_spelling = text.bytes().all(|byte| !byte.is_ascii_uppercase());
        web::bytes_of(text).filter(|_| is_one_spelling).map(Self).ok_or(BadGatewayId)
    }
}

impl fmt::Display for GatewayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for GatewayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GatewayId({self})")
    }
}

/// Below whose part of the keys a record stands: who has written it, as far as etcd's roles are set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Author {
    Gateway(GatewayId),
    /// With etcdctl.
    Admin,
}

impl fmt::Display for Author {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway(id) => id.fmt(f),
            Self::Admin => f.write_str("admin"),
        }
    }
}

/// What a record says is over.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Over {
    /// Everything of that person's that was admitted before the record. A newer one has the same key.
    User(Identity),
    Session(SafeId),
    Web(WebKey),
    /// As [`Self::User`], and every login until the record's time, or until it is lifted.
    Lock(Identity),
}

impl Over {
    /// Whose sessions end, where it is not one session that is named.
    pub fn person(&self) -> Option<&Identity> {
        match self {
            Self::User(who) | Self::Lock(who) => Some(who),
            Self::Session(_) | Self::Web(_) => None,
        }
    }
}

/// Which record of another gateway, or of an administrator at etcd, a revocation here carries out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    pub author: Author,
    pub revision: Revision,
}

/// A revocation or a lock as other gateways are told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// At the gateway where it was entered; 0: at none.
    pub number: u64,
    pub by: String,
    pub reason: String,
    /// Unix seconds, for people alone.
    pub at: u64,
    /// Unix seconds: when a lock ends. `None`: when it is lifted.
    pub until: Option<u64>,
    /// For how many seconds a lock was asked.
    pub lasts: Option<u64>,
}

/// What the other gateways have to be told and etcd does not have yet: it has to outlive this daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Letter {
    Decided {
        over: Over,
        decision: Decision,
    },
    /// A record was taken back, as it stood at that revision; `None`: it was one of this gateway's own.
    Lifted {
        author: Author,
        over: Over,
        up_to: Option<Revision>,
        by: String,
        at: u64,
    },
}

/// Which letter: a newer one of the same key takes the place of the older one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LetterKey {
    Decided(Over),
    Lifted(Author, Over),
}

impl Letter {
    pub fn key(&self) -> LetterKey {
        match self {
            Self::Decided { over, .. } => LetterKey::Decided(over.clone()),
            Self::Lifted { author, over, .. } => LetterKey::Lifted(*author, over.clone()),
        }
    }
}

/// An etcd, and up to where everything in it is in force here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownEtcd {
    /// etcd's id of the cluster.
    pub cluster: u64,
    pub revision: Revision,
}

/// A session of either kind, as all gateways call it.
///
/// Written as the safe_id in base64 (28 characters), or as the web session's key (32 hexadecimal digits).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SessionId {
    Vpn(SafeId),
    Web(WebKey),
}

impl SessionId {
    /// What ends it.
    pub fn over(self) -> Over {
        match self {
            Self::Vpn(safe_id) => Over::Session(safe_id),
            Self::Web(key) => Over::Web(key),
        }
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vpn(safe_id) => safe_id.fmt(f),
            Self::Web(key) => key.fmt(f),
        }
    }
}

impl FromStr for SessionId {
    type Err = BadWord;

    fn from_str(text: &str) -> Result<Self, BadWord> {
        text.parse().map(Self::Vpn).or_else(|error| text.parse().map(Self::Web).map_err(|_: BadWord| error))
    }
}

/// A session that passed where several gateways have to agree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    pub session: SessionId,
    /// Of a VPN session; `None`: it is the web gateway's.
    pub server: Option<super::ServerName>,
    pub who: Identity,
    /// ocserv's group: a limit of sessions may be its own. Empty of a web session.
    pub group: String,
    /// Its place in the order; `None`: it passed while etcd was away.
    pub at: Option<Revision>,
    /// It has one of the places that its person's sessions are limited to.
    pub claimed: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateways_id_has_one_spelling() {
        let id = GatewayId::from_bytes([0xa7; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "a7", &"A7".repeat(16), &"a7".repeat(17), &"g7".repeat(16), "admin"] {
            assert_eq!(bad.parse::<GatewayId>(), Err(BadGatewayId), "{bad:?}");
        }
    }
}
