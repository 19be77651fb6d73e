//! A request's cookies: what the application gets.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::{Deletion, Oversized, ScriptSet, Sealing};
use crate::web::cookie::{Fate, Folded, Pair, Place, Rewritten, Scope, folders, rewrite, smuggled};
use crate::web::seal::{is_sealed, sealed_len};

/// No answer carries more deletions. What is left is deleted with the next answers.
pub const MAX_DELETIONS: usize = 32;

/// In how many folders a cookie is deleted of which it is not known where it is.
const MAX_GUESSES: usize = 8;

/// What becomes of a request's cookies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming {
    /// The `Cookie` fields for the application, in their order. A field of which nothing is left is not there. Crumbs of
    /// HTTP/2 are still to be put together ([`crate::web::cookie::join`]).
    pub fields: Vec<Vec<u8>>,
    /// What it does not get, in the order of the fields.
    pub stripped: Vec<Stripped>,
    /// What the answer has to delete, each once.
    pub deletions: Vec<Deletion>,
}

/// A cookie that the application does not get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stripped {
    pub name: Vec<u8>,
    pub why: Why,
}

/// Why an application does not get a cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Why {
    /// It is sealed and does not open: by an earlier session, for another name, or changed.
    Stale,
    /// Its value is not sealed, and its name was sealed before.
    Unsealed,
    /// It is sealed for another group of this session.
    OtherGroup,
    /// It is the gateway's own. It comes with every request: no news to anybody.
    Own,
    /// It is not sealed, and there are more sealed names in the group than can be kept: it may be one of them.
    TooManyNames,
    /// Some application could find another cookie inside it, of a name that was sealed or of the gateway's own.
    Smuggled,
    /// Only a script can have set it, and the policy does not let such pass.
    ScriptSet,
}

impl Why {
    /// A word for logs and counters.
    pub fn word(self) -> &'static str {
        match self {
            Self::Stale => "stale",
            Self::Unsealed => "unsealed",
            Self::OtherGroup => "other-group",
            Self::Own => "own",
            Self::TooManyNames => "too-many-names",
            Self::Smuggled => "smuggled",
            Self::ScriptSet => "script-set",
        }
    }

    /// Whether the browser is to forget it.
    fn deletes(self) -> bool {
        matches!(self, Self::Stale | Self::Unsealed)
    }
}

impl Sealing<'_> {
    /// Opens and strips what the browser has sent. `fields`: the values of the request's `Cookie` fields, in their order.
    pub fn incoming<F: AsRef<[u8]>>(&self, fields: &[F], now: Instant) -> Incoming {
        let (mut kept, mut stripped) = (Vec::with_capacity(fields.len()), Vec::new());
        // each cookie in its order, and why it is stripped
        let mut seen: Vec<(&[u8], Option<Why>)> = Vec::new();
        for field in fields {
            let rewritten = rewrite(field.as_ref(), |pair| {
                let decided = self.decide(pair);
                let why = decided.as_ref().err().copied();
                seen.push((pair.name(), why));
                stripped.extend(why.map(|why| Stripped { name: pair.name().to_vec(), why }));
                decided.unwrap_or(Fate::Strip)
            });
            match rewritten {
                Rewritten::Same => kept.push(field.as_ref().to_vec()),
                Rewritten::Changed(text) => kept.push(text),
                Rewritten::Gone => {}
            }
        }
        let deletions = self.deletions(&seen, now);
        Incoming { fields: kept, stripped, deletions }
    }

    /// What the browser is owed for these cookies.
    fn deletions(&self, seen: &[(&[u8], Option<Why>)], now: Instant) -> Vec<Deletion> {
        if !seen.iter().any(|(_, why)| why.is_some_and(Why::deletes)) {
            return Vec::new();
        }
        let mut names: BTreeMap<&[u8], Vec<Option<Why>>> = BTreeMap::new();
        for (name, why) in seen {
            names.entry(name).or_default().push(*why);
        }
        let mut deletions = BTreeSet::new();
        for (name, why) in names {
            if deletions.len() >= MAX_DELETIONS {
                break;
            }
            if why.iter().flatten().any(|why| why.deletes())
                && !self.recent.was_sealed(&self.policy.group, name, now)
            {
                let places = self.stale_places(name, &why);
                deletions.extend(places.into_iter().map(|place| Deletion { name: name.to_vec(), place }));
            }
        }
        deletions.into_iter().take(MAX_DELETIONS).collect()
    }

    fn decide(&self, pair: &Pair<'_>) -> Result<Fate, Why> {
        let (name, value) = (pair.name(), pair.value());
        let folded = Folded::of(name);
        if self.policy.is_own(&folded) {
            return Err(Why::Own);
        }
        if value.is_empty() {
            return Ok(Fate::Keep);
        }
        if is_sealed(value) {
            let own = &self.policy.group;
            let groups = std::iter::once(own).chain(self.groups.iter().filter(|group| *group != own));
            return match self.sealer.open_first(groups, name, value) {
                Some((group, opened)) if group == own => Ok(Fate::Value(opened)),
                Some(_) => Err(Why::OtherGroup),
                None => Err(Why::Stale),
            };
        }
        let was_sealed = |name: &Folded| self.learned.is_sealed(&self.policy.group, name);
        if !self.policy.is_readable(name) {
            let length = name.len().saturating_add(sealed_len(value.len()));
            let may_be_unsealed = self.policy.oversized == Oversized::Pass && length > self.policy.longest;
            if was_sealed(&folded) && !may_be_unsealed {
                return Err(Why::Unsealed);
            }
            if self.learned.is_full(&self.policy.group) && !may_be_unsealed {
                return Err(Why::TooManyNames);
            }
            if self.policy.script_set == ScriptSet::Strip && !may_be_unsealed {
                return Err(Why::ScriptSet);
            }
        }
        // whatever passes unsealed hides nothing that would not
        if smuggled(pair.text(), |name| was_sealed(name) || self.policy.is_own(name)) {
            return Err(Why::Smuggled);
        }
        Ok(Fate::Keep)
    }

    /// Where the cookies of a name are kept that are to be deleted. `why`: each cookie of that name is stripped, in the
    /// order of the request.
    fn stale_places(&self, name: &[u8], why: &[Option<Why>]) -> Vec<Place> {
        let stale: Vec<bool> = why.iter().map(|why| why.is_some_and(Why::deletes)).collect();
        let known = self.learned.places(&self.policy.group, name);
        let mut places: Vec<Place> =
            known.filter(|place| place.is_sent_to(self.host, self.path)).cloned().collect();
        let forgotten = self.learned.has_forgotten(&self.policy.group, name);
        if stale.iter().all(|&stale| stale) {
            // What is sealed is ours, wherever it is; what is not may be another application's below this host, unless
            // it is in a place that this one has set
            if (places.is_empty() || forgotten) && why.contains(&Some(Why::Stale)) {
                places.extend(self.likely_places());
            }
            return places;
        }
        // Beside one that opens. Browsers send those with longer paths first (RFC 6265 5.4), so which is where can be
        // told where every place is known; otherwise nothing is deleted, lest it be the one that opens
        places.sort_by_key(|place| std::cmp::Reverse(place.path.len()));
        let told_apart = places.windows(2).all(|two| match two {
            [one, other] => one.path.len() != other.path.len(),
            _ => true,
        });
        if places.len() != stale.len() || !told_apart || forgotten {
            return Vec::new();
        }
        places.into_iter().zip(stale).filter(|(_, stale)| *stale).map(|(place, _)| place).collect()
    }

    /// A guess: the host's own cookie in each folder of the request's path. Whatever of this name is there has come with
    /// this request, but for what `SameSite` holds back.
    fn likely_places(&self) -> impl Iterator<Item = Place> {
        folders(self.path, MAX_GUESSES).into_iter().map(|path| Place {
            scope: Scope::Host(self.host.to_vec()),
            path: path.to_vec(),
            partitioned: false,
        })
    }
}
