//! What the gateway has learned of the cookies of each origin group: which names it has sealed, and where browsers keep
//! them.
//!
//! **Once sealed, always sealed.** A name that was sealed for a group once is sealed for ever: an unsealed value under
//! it is one that was there before the gateway, or that somebody has planted. So this has to survive a restart:
//! [`Learned::learn`] says what is new, and the caller makes that durable ([`file::LearnedFile`]) **before** the answer
//! that it is about is sent.
//!
//! **Where a cookie is kept** has to be known to delete it; no browser tells. Names and places are learned from the
//! answers of the applications.
//!
//! **Bounds.** Names are kept as digests of 16 bytes. When a group has more of them than [`Bounds`] allow, the group is
//! *full*, which is durable too: from then on every unsealed value is stripped in it but for those that the allowlist
//! names, and each is said to be stripped for that reason. So no sealed name passes unsealed. An application that makes
//! up a new name for each login will get there; what ends it is to take its lines out of the file. Of the places, those
//! of the name that was learned first are forgotten when there are too many: then a stale cookie of that name is still
//! stripped, and the deletion that is sent for it is a guess.

mod entry;
pub mod file;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use super::cookie::{Folded, Place};
use super::seal::Group;

pub use entry::Entry;

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Sealed names of one group, and of all.
    pub sealed_in_group: usize,
    pub sealed: usize,
    pub groups: usize,
    /// Names of all groups whose places are known, and places of each.
    pub names: usize,
    pub places: usize,
    /// Bytes of name, host and path of one place together.
    pub length: usize,
}

impl Default for Bounds {
    /// 16,384 and 65,536 sealed names (some 3 MB), 256 groups, 8,192 names of 4 places of 384 bytes (some 15 MB).
    fn default() -> Self {
        Self { sealed_in_group: 16_384, sealed: 65_536, groups: 256, names: 8_192, places: 4, length: 384 }
    }
}

/// What is known of every group.
#[derive(Debug, Default)]
pub struct Learned {
    bounds: Bounds,
    groups: BTreeMap<Group, OfGroup>,
    /// How many sealed names there are in all groups.
    sealed: usize,
    /// Every name with places, the one that was learned first at the front.
    order: VecDeque<(Group, Vec<u8>)>,
}

#[derive(Debug, Default)]
struct OfGroup {
    sealed: HashSet<Folded>,
    full: bool,
    places: HashMap<Vec<u8>, Vec<Place>>,
}

impl Learned {
    pub fn with_bounds(bounds: Bounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// Whether this name, or one that some application takes for it, was ever sealed for the group.
    pub fn is_sealed(&self, group: &Group, name: &[u8]) -> bool {
        self.groups
            .get(group)
            .is_some_and(|of| !of.sealed.is_empty() && of.sealed.contains(&Folded::of(name)))
    }

    /// Whether there were more names than can be kept: then any may be a sealed one.
    pub fn is_full(&self, group: &Group) -> bool {
        match self.groups.get(group) {
            Some(of) => of.full,
            None => self.groups.len() >= self.bounds.groups,
        }
    }

    /// Where cookies of this name are kept, as far as it is known.
    pub fn places(&self, group: &Group, name: &[u8]) -> &[Place] {
        self.groups.get(group).and_then(|of| of.places.get(name)).map(Vec::as_slice).unwrap_or_default()
    }

    /// Every name and place that an answer of `host` can delete, of these groups: for a logout, which ends all of them.
    /// `most` of them at the most, those of the name that was learned last first.
    pub fn deletable<'a>(
        &'a self,
        groups: &'a [Group],
        host: &'a [u8],
        most: usize,
    ) -> impl Iterator<Item = (&'a [u8], &'a Place)> {
        self.order
            .iter()
            .rev()
            .filter(|(group, _)| groups.contains(group))
            .flat_map(|(group, name)| {
                self.places(group, name).iter().map(move |place| (name.as_slice(), place))
            })
            .filter(move |(_, place)| place.is_of(host))
            .take(most)
    }

    /// Takes an entry in: what has to be made durable of it. None where nothing is new.
    ///
    /// That a group is full comes as an entry of its own, once.
    pub fn learn(&mut self, entry: Entry) -> Option<Entry> {
        let group = entry.group();
        if !self.groups.contains_key(group) {
            if self.groups.len() >= self.bounds.groups {
                return None;
            }
            self.groups.insert(group.clone(), OfGroup::default());
        }
        let of = self.groups.get_mut(group)?;
        match &entry {
            Entry::Full { .. } => (!std::mem::replace(&mut of.full, true)).then_some(entry),
            Entry::Sealed { group, name } => {
                if of.full || of.sealed.contains(name) {
                    return None;
                }
                if of.sealed.len() >= self.bounds.sealed_in_group || self.sealed >= self.bounds.sealed {
                    of.full = true;
                    return Some(Entry::Full { group: group.clone() });
                }
                of.sealed.insert(*name);
                self.sealed += 1;
                Some(entry)
            }
            Entry::Place { group, name, place } => {
                let known = of.places.get(name).map(Vec::as_slice).unwrap_or_default();
                let too_long = name.len() + place.path.len() + place.host().len() > self.bounds.length;
                if known.contains(place) || known.len() >= self.bounds.places || too_long {
                    return None;
                }
                if known.is_empty() {
                    self.order.push_back((group.clone(), name.clone()));
                }
                of.places.entry(name.clone()).or_default().push(place.clone());
                if self.order.len() > self.bounds.names
                    && let Some((group, name)) = self.order.pop_front()
                    && let Some(of) = self.groups.get_mut(&group)
                {
                    of.places.remove(&name);
                }
                Some(entry)
            }
        }
    }

    /// All of it, as entries that give the same when they are learned in this order.
    pub fn entries(&self) -> impl Iterator<Item = Entry> {
        let sealed = self.groups.iter().flat_map(|(group, of)| {
            let mut names: Vec<Folded> = of.sealed.iter().copied().collect();
            names.sort_unstable();
            let sealed = names.into_iter().map(|name| Entry::Sealed { group: group.clone(), name });
            sealed.chain(of.full.then(|| Entry::Full { group: group.clone() }))
        });
        let places = self.order.iter().flat_map(|(group, name)| {
            let entry = |place: &Place| Entry::Place {
                group: group.clone(),
                name: name.clone(),
                place: place.clone(),
            };
            self.places(group, name).iter().map(entry)
        });
        sealed.chain(places)
    }
}

#[cfg(test)]
mod tests {
    use super::super::cookie::Scope;
    use super::*;

    fn group(name: &str) -> Group {
        Group::new(name).unwrap()
    }

    fn sealed(of: &str, name: &str) -> Entry {
        Entry::Sealed { group: group(of), name: Folded::of(name.as_bytes()) }
    }

    fn at(path: &str) -> Place {
        Place { scope: Scope::Host(b"h".to_vec()), path: path.as_bytes().to_vec(), partitioned: false }
    }

    fn place(of: &str, name: &str, path: &str) -> Entry {
        Entry::Place { group: group(of), name: name.as_bytes().to_vec(), place: at(path) }
    }

    fn small() -> Bounds {
        Bounds { sealed_in_group: 3, sealed: 5, groups: 3, names: 3, places: 2, length: 40 }
    }

    #[test]
    fn what_is_new_is_said_once() {
        let mut learned = Learned::default();
        for entry in [sealed("app", "sid"), place("app", "sid", "/"), place("app", "sid", "/x")] {
            assert_eq!(learned.learn(entry.clone()), Some(entry.clone()));
            assert_eq!(learned.learn(entry), None);
        }
        assert!(learned.is_sealed(&group("app"), b"sid"));
        assert!(learned.is_sealed(&group("app"), b"SID"), "an application may not look at the case");
        assert!(!learned.is_sealed(&group("app"), b"other") && !learned.is_sealed(&group("app2"), b"sid"));
        assert_eq!(learned.places(&group("app"), b"sid"), [at("/"), at("/x")]);
        assert!(learned.places(&group("app2"), b"sid").is_empty());
    }

    /// R7: at the bound the group is full, which is said, and durable.
    #[test]
    fn r7_a_group_with_too_many_names_is_full_and_stays_so() {
        let mut learned = Learned::with_bounds(small());
        for name in ["a", "b", "c"] {
            assert!(learned.learn(sealed("app", name)).is_some());
        }
        assert!(!learned.is_full(&group("app")));
        assert_eq!(learned.learn(sealed("app", "a")), None, "known: no bound is touched");
        assert!(!learned.is_full(&group("app")));
        assert_eq!(learned.learn(sealed("app", "d")), Some(Entry::Full { group: group("app") }));
        assert!(learned.is_full(&group("app")) && !learned.is_full(&group("other")));
        assert_eq!(learned.learn(sealed("app", "e")), None);
        assert!(learned.is_sealed(&group("app"), b"a"), "and what was known stays known");
        // the bound of all groups together
        assert!(learned.learn(sealed("two", "a")).is_some() && learned.learn(sealed("two", "b")).is_some());
        assert_eq!(learned.learn(sealed("two", "c")), Some(Entry::Full { group: group("two") }));
        // and of the groups themselves
        assert_eq!(learned.learn(sealed("three", "a")), Some(Entry::Full { group: group("three") }));
        assert_eq!(learned.learn(sealed("four", "a")), None);
        assert!(
            learned.is_full(&group("four")),
            "of a group that nothing can be kept of, any name may be sealed"
        );
    }

    #[test]
    fn r7_places_are_bounded_and_the_oldest_name_is_forgotten() {
        let mut learned = Learned::with_bounds(small());
        assert!(learned.learn(place("app", "a", "/1")).is_some());
        assert!(learned.learn(place("app", "a", "/2")).is_some());
        assert_eq!(learned.learn(place("app", "a", "/3")), None, "two places of a name");
        assert_eq!(learned.learn(place("app", "b", &"/".repeat(39))), None, "too long");
        for name in ["b", "c", "d"] {
            assert!(learned.learn(place("app", name, "/")).is_some());
        }
        assert!(learned.places(&group("app"), b"a").is_empty());
        assert_eq!(learned.places(&group("app"), b"d"), [at("/")]);
        assert!(learned.learn(place("app", "a", "/3")).is_some(), "it is learned again");
        assert_eq!(learned.order.len(), 3);
    }

    #[test]
    fn r5_what_was_kept_gives_the_same_when_it_is_learned_again() {
        let mut learned = Learned::with_bounds(small());
        for entry in [
            sealed("app", "a"),
            sealed("app", "b"),
            sealed("app", "c"),
            sealed("app", "d"),
            sealed("two", "a"),
            place("app", "x", "/"),
            place("two", "x", "/1"),
            place("two", "x", "/2"),
            place("two", "y", "/"),
            place("two", "z", "/"),
        ] {
            learned.learn(entry);
        }
        let kept: Vec<Entry> = learned.entries().collect();
        let mut again = Learned::with_bounds(small());
        for entry in kept.clone() {
            again.learn(entry);
        }
        assert_eq!(again.entries().collect::<Vec<_>>(), kept);
        assert!(again.is_full(&group("app")) && !again.is_full(&group("two")));
        assert_eq!(again.order, learned.order);
    }

    #[test]
    fn at_a_logout_everything_that_the_host_can_delete() {
        let mut learned = Learned::default();
        learned.learn(place("app", "sid", "/"));
        learned.learn(place("app", "sid", "/x"));
        let domain = Place { scope: Scope::Domain(b"example".to_vec()), ..at("/") };
        learned.learn(Entry::Place { group: group("app"), name: b"wide".to_vec(), place: domain.clone() });
        learned.learn(place("two", "theirs", "/"));
        let groups = [group("app")];
        let of = |host: &'static [u8], most| {
            learned
                .deletable(&groups, host, most)
                .map(|(name, place)| (name.to_vec(), place.clone()))
                .collect::<Vec<_>>()
        };
        assert_eq!(of(b"h", 9), [(b"sid".to_vec(), at("/")), (b"sid".to_vec(), at("/x"))]);
        assert_eq!(of(b"h", 1), [(b"sid".to_vec(), at("/"))]);
        assert_eq!(of(b"a.example", 9), [(b"wide".to_vec(), domain)]);
    }
}
