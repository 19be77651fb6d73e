//! Where every record and every lift stands that is in etcd.

use std::collections::BTreeMap;

use super::words::{Author, GatewayId, Over, Revision};

/// Comes before every other author.
const LEAST: Author = Author::Gateway(GatewayId::from_bytes([0; 16]));

/// A record, or a lift by the first of what the second has written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    Record(Author, Over),
    Lift(Author, Author, Over),
}

impl Place {
    fn author(&self) -> Author {
        match self {
            Self::Record(author, _) | Self::Lift(author, ..) => *author,
        }
    }
}

/// As many as were read: the adapter bounds them.
#[derive(Debug, Default)]
pub(super) struct Standing {
    places: BTreeMap<Place, Revision>,
    /// How many were last written at that revision, by whom.
    written: BTreeMap<(Revision, Author), u32>,
}

impl Standing {
    pub(super) fn set(&mut self, place: Place, revision: Revision) {
        self.remove(&place);
        *self.written.entry((revision, place.author())).or_default() += 1;
        self.places.insert(place, revision);
    }

    pub(super) fn remove(&mut self, place: &Place) {
        let Some(revision) = self.places.remove(place) else { return };
        let at = (revision, place.author());
        if let Some(count) = self.written.get_mut(&at) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.written.remove(&at);
            }
        }
    }

    pub(super) fn at(&self, place: &Place) -> Option<Revision> {
        self.places.get(place).copied()
    }

    /// How many stand above that revision and are of somebody else than that author: what was entered at a gateway is in
    /// force there.
    pub(super) fn above(&self, revision: Revision, but: Author) -> u64 {
        let above = self.written.range((revision.saturating_add(1), LEAST)..);
        above.filter(|((_, author), _)| *author != but).map(|(_, count)| u64::from(*count)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::SafeId;

    #[test]
    fn what_stands_above_a_revision_is_counted() {
        let (one, other) = (
            Author::Gateway(GatewayId::from_bytes([1; 16])),
            Author::Gateway(GatewayId::from_bytes([2; 16])),
        );
        let over = |n| Over::Session(SafeId::from_bytes([n; 20]));
        let mut standing = Standing::default();
        standing.set(Place::Record(one, over(1)), 5);
        standing.set(Place::Record(one, over(2)), 5);
        standing.set(Place::Record(Author::Admin, over(1)), 6);
        standing.set(Place::Lift(other, one, over(1)), 7);
        assert_eq!((standing.above(4, other), standing.above(5, other), standing.above(7, other)), (3, 1, 0));
        assert_eq!((standing.above(4, one), standing.above(0, Author::Admin)), (2, 3));
        // written anew, and gone
        standing.set(Place::Record(one, over(1)), 8);
        standing.remove(&Place::Record(one, over(2)));
        assert_eq!((standing.above(4, other), standing.above(7, other)), (2, 1));
        assert_eq!(standing.at(&Place::Record(one, over(1))), Some(8));
        standing.remove(&Place::Record(one, over(1)));
        standing.remove(&Place::Record(one, over(1)));
        assert_eq!((standing.at(&Place::Record(one, over(1))), standing.above(7, other)), (None, 0));
    }
}
