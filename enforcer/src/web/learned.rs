//! What the gateway has learned of the cookies of each origin group: which names it has sealed, and where browsers keep
//! them.
//!
//! **Once sealed, always sealed.** A name that was sealed for a group once is sealed for ever: an unsealed value under
//! it is one that was there before the gateway, or that somebody has planted. So this has to survive a restart, and what
//! an answer teaches is on the disk **before** that answer is sent: a gateway asks a [`Keeper`], whose [`Learned`] never
//! knows more than the disk does.
//!
//! **Where a cookie is kept** has to be known to delete it; no browser tells. Names and places are learned from the
//! answers of the applications.
//!
//! **Bounds.** Names are kept as digests of 16 bytes. When a group has more of them than [`Bounds`] allow, the group is
//! *full*, which is durable too: from then on every unsealed value is stripped in it but for those that the allowlist
//! names, and each is said to be stripped for that reason. So no sealed name passes unsealed. An application that makes
//! up a new name for each login will get there; what ends it is to take its lines out of the file. Of the places of a
//! name the ones that an application has stated are kept rather than those that come of asked paths, and those nearer to
//! the root rather than others; where there are too many names with places, those of the name that was learned first are
//! forgotten. A stale cookie of such a name is still stripped, and the deletions that are sent for it are guesses.

mod entry;
pub mod file;
mod keeper;
mod places;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use super::cookie::{Folded, Place};
use super::seal::Group;
use places::Places;

pub use entry::Entry;
pub use keeper::{Keeper, NotKept};

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Sealed names of one group, and of all.
    pub sealed_in_group: usize,
    pub sealed: usize,
    pub groups: usize,
    /// Names of all groups whose places are known, and places of each; half of these at the most come of asked paths.
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
    places: HashMap<Vec<u8>, Places>,
}

impl Learned {
    pub fn with_bounds(bounds: Bounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// Whether this name, or one that some application takes for it, was ever sealed for the group.
    pub fn is_sealed(&self, group: &Group, name: &Folded) -> bool {
        self.groups.get(group).is_some_and(|of| of.sealed.contains(name))
    }

    /// Whether there were more names than can be kept: then any may be a sealed one.
    pub fn is_full(&self, group: &Group) -> bool {
        match self.groups.get(group) {
            Some(of) => of.full,
            None => self.groups.len() >= self.bounds.groups,
        }
    }

    /// Where cookies of this name are kept, as far as it is known.
    pub fn places(&self, group: &Group, name: &[u8]) -> impl Iterator<Item = &Place> {
        self.places_of(group, name).into_iter().flat_map(Places::iter).map(|(place, _)| place)
    }

    /// Whether cookies of this name may be in places that there was no room for.
    pub fn has_forgotten(&self, group: &Group, name: &[u8]) -> bool {
        self.places_of(group, name).is_some_and(|places| places.is_full(self.bounds.places))
    }

    fn places_of(&self, group: &Group, name: &[u8]) -> Option<&Places> {
        self.groups.get(group)?.places.get(name)
    }

    /// Every name and place that an answer of `host` can delete, of this group, those of the name that was learned last
    /// first.
    pub fn deletable<'a>(
        &'a self,
        group: &'a Group,
        host: &'a [u8],
    ) -> impl Iterator<Item = (&'a [u8], &'a Place)> {
        self.order
            .iter()
            .rev()
            .filter(move |(its, _)| its == group)
            .flat_map(|(group, name)| self.places(group, name).map(move |place| (name.as_slice(), place)))
            .filter(move |(_, place)| place.is_of(host))
    }

    /// Whether anything changes when this is learned.
    pub fn is_news(&self, entry: &Entry) -> bool {
        let of = self.groups.get(entry.group());
        if of.is_none() && self.groups.len() >= self.bounds.groups {
            return false;
        }
        match entry {
            Entry::Full { .. } => !of.is_some_and(|of| of.full),
            // at the bound it is news that the group is full
            Entry::Sealed { name, .. } => !of.is_some_and(|of| of.full || of.sealed.contains(name)),
            Entry::Place { name, place, stated, .. } => {
                let fits = name.len() + place.path.len() + place.host().len() <= self.bounds.length;
                let would_take = |places: &Places| places.would_take(place, *stated, self.bounds.places);
                fits && match of.and_then(|of| of.places.get(name)) {
                    Some(places) => would_take(places),
                    None => would_take(&Places::default()),
                }
            }
        }
    }

    /// Takes an entry in. The same entries in the same order give the same, also where a bound was reached on the way.
    pub fn learn(&mut self, entry: Entry) {
        if !self.is_news(&entry) {
            return;
        }
        let of = self.groups.entry(entry.group().clone()).or_default();
        match entry {
            Entry::Full { .. } => of.full = true,
            Entry::Sealed { .. }
                if of.sealed.len() >= self.bounds.sealed_in_group || self.sealed >= self.bounds.sealed =>
            {
                of.full = true;
            }
            Entry::Sealed { name, .. } => {
                of.sealed.insert(name);
                self.sealed += 1;
            }
            Entry::Place { group, name, place, stated } => {
                if !of.places.contains_key(&name) {
                    self.order.push_back((group, name.clone()));
                }
                of.places.entry(name).or_default().take(place, stated, self.bounds.places);
                if self.order.len() > self.bounds.names
                    && let Some((group, name)) = self.order.pop_front()
                    && let Some(of) = self.groups.get_mut(&group)
                {
                    of.places.remove(&name);
                }
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
        let places = self.order.iter().flat_map(move |(group, name)| {
            let entry = move |(place, stated): (&Place, bool)| Entry::Place {
                group: group.clone(),
                name: name.clone(),
                place: place.clone(),
                stated,
            };
            self.places_of(group, name).into_iter().flat_map(Places::iter).map(entry)
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
        Entry::Place { group: group(of), name: name.as_bytes().to_vec(), place: at(path), stated: true }
    }

    fn small() -> Bounds {
        Bounds { sealed_in_group: 3, sealed: 5, groups: 3, names: 3, places: 2, length: 40 }
    }

    impl Learned {
        /// Whether it was news.
        fn is_new(&mut self, entry: Entry) -> bool {
            let news = self.is_news(&entry);
            let before: Vec<Entry> = self.entries().collect();
            self.learn(entry.clone());
            assert_eq!(news, self.entries().collect::<Vec<_>>() != before, "{entry:?}");
            assert!(!self.is_news(&entry), "once");
            news
        }

        fn knows(&self, of: &str, name: &str) -> bool {
            self.is_sealed(&group(of), &Folded::of(name.as_bytes()))
        }

        fn paths(&self, of: &str, name: &str) -> Vec<String> {
            let path = |place: &Place| String::from_utf8(place.path.clone()).unwrap();
            self.places(&group(of), name.as_bytes()).map(path).collect()
        }
    }

    #[test]
    fn what_is_new_is_new_once() {
        let mut learned = Learned::default();
        for entry in [sealed("app", "sid"), place("app", "sid", "/"), place("app", "sid", "/x")] {
            assert!(learned.is_new(entry.clone()));
            assert!(!learned.is_new(entry));
        }
        assert!(learned.knows("app", "sid"));
        assert!(learned.knows("app", "SID"), "an application may not look at the case");
        assert!(!learned.knows("app", "other") && !learned.knows("app2", "sid"));
        assert_eq!(learned.paths("app", "sid"), ["/", "/x"]);
        assert!(learned.paths("app2", "sid").is_empty());
    }

    /// R7: at the bound the group is full, which is durable.
    #[test]
    fn r7_a_group_with_too_many_names_is_full_and_stays_so() {
        let mut learned = Learned::with_bounds(small());
        for name in ["a", "b", "c"] {
            assert!(learned.is_new(sealed("app", name)));
        }
        assert!(!learned.is_full(&group("app")));
        assert!(!learned.is_new(sealed("app", "a")), "known: no bound is touched");
        assert!(!learned.is_full(&group("app")));
        assert!(learned.is_new(sealed("app", "d")), "that it is full");
        assert!(learned.is_full(&group("app")) && !learned.is_full(&group("other")));
        assert!(!learned.is_new(sealed("app", "e")));
        assert!(learned.knows("app", "a"), "and what was known stays known");
        // the bound of all groups together
        assert!(learned.is_new(sealed("two", "a")) && learned.is_new(sealed("two", "b")));
        learned.is_new(sealed("two", "c"));
        assert!(learned.is_full(&group("two")));
        // and of the groups themselves
        learned.is_new(sealed("three", "a"));
        assert!(learned.is_full(&group("three")));
        assert!(!learned.is_new(sealed("four", "a")));
        assert!(
            learned.is_full(&group("four")),
            "of a group that nothing can be kept of, any name may be sealed"
        );
    }

    #[test]
    fn r7_places_are_bounded_and_the_oldest_name_is_forgotten() {
        let mut learned = Learned::with_bounds(small());
        assert!(learned.is_new(place("app", "a", "/1")));
        assert!(!learned.has_forgotten(&group("app"), b"a"));
        assert!(learned.is_new(place("app", "a", "/2")));
        assert!(!learned.is_new(place("app", "a", "/3")), "two places of a name");
        assert!(learned.has_forgotten(&group("app"), b"a") && !learned.has_forgotten(&group("app"), b"b"));
        assert!(!learned.is_new(place("app", "b", &"/".repeat(39))), "too long");
        for name in ["b", "c", "d"] {
            assert!(learned.is_new(place("app", name, "/")));
        }
        assert!(learned.paths("app", "a").is_empty());
        assert_eq!(learned.paths("app", "d"), ["/"]);
        assert!(learned.is_new(place("app", "a", "/3")), "it is learned again");
        assert_eq!(learned.order.len(), 3);
    }

    #[test]
    fn r5_what_was_kept_gives_the_same_when_it_is_learned_again() {
        let lines = [
            sealed("app", "a"),
            sealed("app", "b"),
            sealed("app", "c"),
            sealed("app", "d"),
            sealed("two", "a"),
            place("app", "x", "/"),
            place("two", "x", "/1"),
            place("two", "x", "/2"),
            place("two", "x", "/"),
            place("two", "y", "/"),
            place("two", "z", "/"),
        ];
        let all = |entries: &[Entry]| {
            let mut learned = Learned::with_bounds(small());
            entries.iter().for_each(|entry| learned.learn(entry.clone()));
            learned
        };
        let learned = all(&lines);
        let kept: Vec<Entry> = learned.entries().collect();
        let again = all(&kept);
        assert_eq!(again.entries().collect::<Vec<_>>(), kept);
        assert!(again.is_full(&group("app")) && !again.is_full(&group("two")));
        assert_eq!(again.order, learned.order);
        // what a file has grown by is learned behind it
        let both = all(&[kept, lines.to_vec()].concat());
        assert!(both.is_full(&group("app")) && both.knows("two", "a"));
    }

    #[test]
    fn what_a_host_can_delete() {
        let mut learned = Learned::default();
        learned.learn(place("app", "sid", "/"));
        learned.learn(place("app", "sid", "/x"));
        let wide = Place { scope: Scope::Domain(b"example".to_vec()), ..at("/") };
        let (name, place_of) = (b"wide".to_vec(), wide.clone());
        learned.learn(Entry::Place { group: group("app"), name, place: place_of, stated: true });
        learned.learn(place("two", "theirs", "/"));
        let of = |host: &'static [u8]| {
            let group = group("app");
            let all = learned.deletable(&group, host);
            all.map(|(name, place)| (name.to_vec(), place.clone())).collect::<Vec<_>>()
        };
        assert_eq!(of(b"h"), [(b"sid".to_vec(), at("/")), (b"sid".to_vec(), at("/x"))]);
        assert_eq!(of(b"a.example"), [(b"wide".to_vec(), wide)]);
    }
}
