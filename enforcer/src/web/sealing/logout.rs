//! What the answer that ends a session tells the browser to forget.
//!
//! It is a courtesy: what was sealed is worth nothing from now on, whether the browser forgets it or not. What passes
//! unsealed is worth something, so it goes first.

use std::collections::{BTreeMap, BTreeSet};

use super::{Deletion, Policy};
use crate::web::cookie::Folded;
use crate::web::learned::Learned;
use crate::web::seal::Group;

/// How many bytes the deletions of a logout have together, each as `Set-Cookie: …` with the end of its line. Some proxies
/// take heads of 8 KiB; the rest is for what else stands in the head.
pub const MAX_LOGOUT: usize = 5 * 1024;

/// No browser takes a `Set-Cookie` field that is longer.
const MAX_FIELD: usize = 4096;

/// What `Clear-Site-Data` asks for beside what the origin's own scripts and the browser's cache have kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Clear {
    /// Nothing: a browser forgets what belongs to the host that answers, and to no other one.
    #[default]
    Host,
    /// All cookies, too. **A browser forgets those of the whole registrable domain then**, `example.com` with all hosts
    /// below it: also those of applications that are not behind this gateway, and of other gateways.
    Site,
}

/// What goes into the head of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logout {
    /// The values of `Set-Cookie` fields, after which the gateway sets or deletes its own cookie.
    pub set_cookies: Vec<Vec<u8>>,
    /// The value of `Clear-Site-Data`. None where the browser would not look at it: it asks without TLS. An answer with
    /// [`Clear::Site`] must set no cookie that is to stay.
    pub clear_site_data: Option<&'static str>,
    /// So many deletions had no room: to be logged. When the browser sends a sealed one of them again, it is stripped and
    /// deleted then.
    pub left_out: usize,
}

/// What the answer to a logout on `host` says. For each other host of the session its own next answer has to.
///
/// `policies`: of all origins below the host, in any order. `host`: in lower case, without a port. `secure`: whether the
/// browser asks over TLS.
pub fn logout<'a>(
    learned: &Learned,
    policies: impl IntoIterator<Item = &'a Policy>,
    host: &[u8],
    secure: bool,
    clear: Clear,
) -> Logout {
    let mut groups: BTreeMap<&Group, Vec<&Policy>> = BTreeMap::new();
    for policy in policies {
        groups.entry(&policy.group).or_default().push(policy);
    }
    let (mut taken, mut set_cookies) = (BTreeSet::new(), Vec::new());
    let (mut room, mut left_out) = (MAX_LOGOUT, 0);
    for unsealed_ones in [true, false] {
        for (group, policies) in &groups {
            for (name, place) in learned.deletable(group, host) {
                let unsealed = policies.iter().any(|policy| policy.is_readable(name))
                    || !learned.is_sealed(group, &Folded::of(name));
                if unsealed != unsealed_ones {
                    continue;
                }
                let deletion = Deletion { name: name.to_vec(), place: place.clone() };
                if taken.contains(&deletion) {
                    continue;
                }
                let field = deletion.field(secure);
                let length = "Set-Cookie: \r\n".len() + field.len();
                if length > room || field.len() > MAX_FIELD {
                    left_out += 1;
                    continue;
                }
                room -= length;
                set_cookies.push(field);
                taken.insert(deletion);
            }
        }
    }
    let clear_site_data = match clear {
        Clear::Host => "\"cache\", \"storage\"",
        Clear::Site => "\"cache\", \"cookies\", \"storage\"",
    };
    Logout { set_cookies, clear_site_data: secure.then_some(clear_site_data), left_out }
}
