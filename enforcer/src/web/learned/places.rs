//! Where the cookies of one name are kept: some places, and which of them are worth keeping.

use crate::web::cookie::Place;

/// The places of one name, the best ones first.
///
/// A place whose path the application has **stated** is worth more than one by the path of the request, which whoever
/// asks can choose; those by default get half of the room at the most, and none that a stated one needs. Of two of a kind
/// the one with the shorter path is worth more, since more requests send its cookie. So what is kept in the end does not
/// depend on the order in which places come, and each change of it is for the better: somebody who asks for many paths
/// brings about few of them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Places(Vec<Kept>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    place: Place,
    stated: bool,
}

impl Places {
    /// Whether anything of it changes when this one comes.
    pub(super) fn would_take(&self, place: &Place, stated: bool, most: usize) -> bool {
        match self.0.iter().find(|kept| kept.place == *place) {
            Some(known) => stated && !known.stated,
            None => {
                let mut after = self.clone();
                after.take(place.clone(), stated, most);
                after.iter().any(|(kept, _)| kept == place)
            }
        }
    }

    /// Takes it in, and drops what there is no room for: that may be itself.
    pub(super) fn take(&mut self, place: Place, stated: bool, most: usize) {
        match self.0.iter_mut().find(|kept| kept.place == place) {
            Some(known) => known.stated |= stated,
            None => self.0.push(Kept { place, stated }),
        }
        self.0.sort_by(|one, other| one.worth().cmp(&other.worth()));
        let stated = self.0.iter().filter(|kept| kept.stated).count();
        self.0.truncate(stated.saturating_add(most / 2).min(most));
    }

    /// Each, and whether it is stated; the best ones first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Place, bool)> {
        self.0.iter().map(|kept| (&kept.place, kept.stated))
    }

    /// Whether one more may have been dropped.
    pub(super) fn is_full(&self, most: usize) -> bool {
        let by_default = self.0.iter().filter(|kept| !kept.stated).count();
        self.0.len() >= most || by_default >= most / 2
    }
}

impl Kept {
    /// The lowest is worth most.
    fn worth(&self) -> (bool, usize, &Place) {
        (!self.stated, self.place.path.len(), &self.place)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::cookie::Scope;
    use super::*;
    use proptest::prelude::*;

    fn at(path: &str) -> Place {
        Place { scope: Scope::Host(b"h".to_vec()), path: path.as_bytes().to_vec(), partitioned: false }
    }

    fn shown(places: &Places) -> Vec<String> {
        let one = |(place, stated): (&Place, bool)| {
            format!("{}{}", place.path.escape_ascii(), if stated { "" } else { " by default" })
        };
        places.iter().map(one).collect()
    }

    /// R7: who asks for many paths fills nothing.
    #[test]
    fn r7_many_asked_paths_drive_out_no_stated_one_and_not_the_nearest_to_the_root() {
        let mut places = Places::default();
        for (path, stated) in [("/", false), ("/app/admin", true)] {
            assert!(places.would_take(&at(path), stated, 4));
            places.take(at(path), stated, 4);
        }
        let mut changes = 0;
        for number in 0..1000 {
            let path = format!("/attack-{number:04}");
            changes += usize::from(places.would_take(&at(&path), false, 4));
            places.take(at(&path), false, 4);
        }
        assert_eq!(shown(&places), ["/app/admin", "/ by default", "/attack-0000 by default"]);
        assert_eq!(changes, 1, "and each change is a write to the disk");
        for (path, stated) in [("/app", true), ("/z", true), ("/y", true)] {
            assert!(places.would_take(&at(path), stated, 4));
            places.take(at(path), stated, 4);
        }
        assert_eq!(shown(&places), ["/y", "/z", "/app", "/app/admin"]);
        assert!(!places.would_take(&at("/app/admin/x"), true, 4) && !places.would_take(&at("/"), false, 4));
        assert!(places.would_take(&at("/"), true, 4));
    }

    #[test]
    fn what_is_known_is_no_news_unless_it_is_stated_now() {
        let mut places = Places::default();
        places.take(at("/"), false, 4);
        assert!(!places.would_take(&at("/"), false, 4) && places.would_take(&at("/"), true, 4));
        places.take(at("/"), true, 4);
        places.take(at("/"), false, 4);
        assert_eq!(shown(&places), ["/"]);
        assert!(!places.is_full(4));
        places.take(at("/x"), false, 4);
        places.take(at("/y"), false, 4);
        assert!(places.is_full(4));
    }

    proptest! {
        #[test]
        fn the_order_does_not_matter_and_no_bound_is_passed(
            mut come in prop::collection::vec(("/[ab]{0,3}", any::<bool>()), 0..12), most in 0..6usize
        ) {
            let kept = |come: &[(String, bool)]| {
                let mut places = Places::default();
                for (path, stated) in come {
                    let would = places.would_take(&at(path), *stated, most);
                    let before = places.clone();
                    places.take(at(path), *stated, most);
                    assert_eq!(would, places != before);
                    assert!(places.0.len() <= most);
                }
                places
            };
            // a place that is stated once is stated: which of the two comes first counts where it was dropped between
            come.sort();
            come.dedup_by(|one, other| one.0 == other.0);
            let places = kept(&come);
            come.reverse();
            prop_assert_eq!(&kept(&come), &places);
            let again: Vec<_> = places
                .iter()
                .map(|(place, stated)| (String::from_utf8(place.path.clone()).unwrap(), stated))
                .collect();
            prop_assert_eq!(kept(&again), places);
        }
    }
}
