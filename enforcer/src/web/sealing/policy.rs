//! What the administrator decides for the applications of one origin group.

use std::collections::BTreeSet;

use crate::web::cookie::Folded;
use crate::web::seal::Group;

/// The policy of one origin group.
#[derive(Debug, Clone)]
pub struct Policy {
    pub group: Group,
    /// The allowlist: cookies that scripts have to read (tokens against request forgery). They pass unsealed, so they
    /// survive the end of the session. By their exact names.
    pub readable: BTreeSet<Vec<u8>>,
    pub oversized: Oversized,
    pub script_set: ScriptSet,
    /// How many bytes name and sealed value may have together.
    pub longest: usize,
    own: BTreeSet<Folded>,
}

/// A value that would be too long for the browser once it is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Oversized {
    /// The answer is not sent: the application does not go on with a cookie that it believes to be set.
    #[default]
    Refuse,
    /// It passes unsealed, and survives the end of the session. In a request too a value passes that is so long that
    /// it cannot have been sealed.
    Pass,
    /// The answer goes on without it.
    Strip,
}

/// A cookie in a request that no answer has set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ScriptSet {
    #[default]
    Pass,
    Strip,
}

impl Policy {
    /// Browsers keep no cookie whose name and value have more bytes together.
    pub const LONGEST: usize = 4096;

    /// Nothing on the allowlist, oversized values refused, script-set cookies passed.
    pub fn new(group: Group) -> Self {
        Self {
            group,
            readable: BTreeSet::new(),
            oversized: Oversized::default(),
            script_set: ScriptSet::default(),
            longest: Self::LONGEST,
            own: BTreeSet::new(),
        }
    }

    /// A cookie of the gateway's: no application gets it or sets it, nor one that some application takes for it.
    #[must_use]
    pub fn with_own(mut self, name: &[u8]) -> Self {
        self.own.insert(Folded::of(name));
        self
    }

    pub(super) fn is_own(&self, name: &Folded) -> bool {
        self.own.contains(name)
    }

    pub(super) fn is_readable(&self, name: &[u8]) -> bool {
        self.readable.contains(name)
    }
}
