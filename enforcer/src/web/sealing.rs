//! What becomes of the cookies that pass the gateway: sealed on their way to the browser, opened on their way to the
//! application.
//!
//! The one who forwards makes a [`Sealing`] for each request that a session may make, and then:
//! 1. [`Sealing::incoming`] with the request's `Cookie` fields: what the application gets, what was stripped and why
//!    (to be logged: by name, never by value), and which deletions the browser is owed.
//! 2. [`Sealing::outgoing`] with the answer's `Set-Cookie` fields and those deletions: what the browser gets, what is
//!    to be logged, and what is new to [`Learned`]. **The news have to be on the disk before the answer is sent**:
//!    [`Keeper::learn`](super::learned::Keeper::learn) says when they are. What cannot be sealed or kept is an error,
//!    and the answer is not sent: nothing passes unsealed for want of a key or of random numbers, and nothing is sealed
//!    that would not be known as sealed after a restart.
//!
//! An answer that the gateway gives itself (a login page) is owed the deletions as well: [`Deletion::field`]. What the
//! answer to a logout says, says [`logout()`].
//!
//! Nothing here waits: a lock on [`Learned`] ([`Keeper::read`](super::learned::Keeper::read)) is held for the call alone.
//! The [`Sealer`] and [`Recent`] belong to the
//! session, and may be kept in memory for as long as the session is known to go on.
//!
//! What a cookie is, goes by its name and value:
//!
//! | in a request | becomes |
//! |---|---|
//! | sealed for this group by this session | opened |
//! | sealed for another group of this session (two applications below one host) | stripped; it stays in the browser |
//! | sealed by anything else: an earlier session | stripped and deleted |
//! | unsealed, and the allowlist names it | as it is |
//! | unsealed, under a name that was ever sealed | stripped, and deleted where this application has set it |
//! | unsealed otherwise: only scripts set it | as it is, or stripped, by policy |
//! | empty | as it is: there is nothing in it |
//! | the gateway's own | stripped |
//!
//! | in an answer | becomes |
//! |---|---|
//! | a deletion | as it is |
//! | a name of the allowlist | as it is |
//! | too long once it is sealed | refused, stripped, or as it is, by policy |
//! | under the name of the gateway's own | stripped |
//! | everything else | sealed; every attribute stays as it is |

mod incoming;
mod logout;
mod outgoing;
mod policy;
mod recent;

use std::time::{Instant, SystemTime};

use super::cookie::Place;
use super::learned::Learned;
use super::seal::{Group, Sealer};

pub use incoming::{Incoming, MAX_DELETIONS, Stripped, Why};
pub use logout::{Clear, Logout, MAX_LOGOUT, logout};
pub use outgoing::{Note, Outgoing, OutgoingError};
pub use policy::{Oversized, Policy, ScriptSet};
pub use recent::Recent;

/// Everything that decides about the cookies of one request and its answer.
#[derive(Clone, Copy)]
pub struct Sealing<'a> {
    /// The session's.
    pub sealer: &'a Sealer,
    /// What the session has sealed just now.
    pub recent: &'a Recent,
    pub policy: &'a Policy,
    /// All configured groups, in any order; the policy's own may be among them.
    pub groups: &'a [Group],
    pub learned: &'a Learned,
    /// The host that the browser asks, in lower case and without a port.
    pub host: &'a [u8],
    /// The path that the browser asks for, with or without the query.
    pub path: &'a [u8],
    /// Whether the browser asks over TLS.
    pub secure: bool,
}

/// The two clocks.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Says which `Expires` are over.
    pub wall: SystemTime,
    /// Says what was just now.
    pub steady: Instant,
}

/// A cookie that the browser is to forget.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deletion {
    pub name: Vec<u8>,
    pub place: Place,
}

impl Deletion {
    /// The `Set-Cookie` field.
    pub fn field(&self, secure: bool) -> Vec<u8> {
        self.place.deletion(&self.name, secure)
    }
}
