//! An answer's cookies: what the browser gets.

use super::{Deletion, Now, Oversized, Sealing};
use crate::web::cookie::{Folded, SetCookie, refused_without_name, smuggled};
use crate::web::learned::Entry;
use crate::web::seal::{SealError, sealed_len};

/// What becomes of an answer's cookies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// The `Set-Cookie` fields for the browser: first the deletions, then the application's, in their order.
    pub fields: Vec<Vec<u8>>,
    /// What is to be logged.
    pub notes: Vec<Note>,
    /// What [`crate::web::learned::Learned`] does not know yet: to be learned and on the disk before the answer is sent.
    pub news: Vec<Entry>,
}

/// Something that an administrator may want to know. Names come from the application: they are to be printed escaped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Note {
    #[error(
        "the cookie \"{}\" has {length} bytes, too long to be sealed: it passes unsealed, and survives the session",
        .name.escape_ascii()
    )]
    PassedOversized { name: Vec<u8>, length: usize },
    #[error("the cookie \"{}\" has {length} bytes, too long to be sealed: it is left out", .name.escape_ascii())]
    StrippedOversized { name: Vec<u8>, length: usize },
    #[error("the application sets \"{}\", which is the gateway's own cookie: it is left out", .name.escape_ascii())]
    StrippedOwn { name: Vec<u8> },
}

/// Why an answer must not be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutgoingError {
    #[error(
        "the application sets the cookie \"{}\" of {length} bytes, too long to be sealed for a browser: the application \
         has to make it shorter, or the policy for oversized cookies has to let it pass or strip it",
        .name.escape_ascii()
    )]
    Oversized { name: Vec<u8>, length: usize },
    #[error(transparent)]
    Seal(#[from] SealError),
}

impl Sealing<'_> {
    /// Seals what the application sets. `fields`: the values of the answer's `Set-Cookie` fields, in their order.
    /// `deletions`: what [`Sealing::incoming`] has said that the browser is owed.
    ///
    /// # Errors
    /// [`OutgoingError`]: the answer is not to be sent.
    pub fn outgoing<F: AsRef<[u8]>>(
        &self,
        fields: &[F],
        deletions: &[Deletion],
        now: Now,
    ) -> Result<Outgoing, OutgoingError> {
        let mut sealed = Outgoing { fields: Vec::new(), notes: Vec::new(), news: Vec::new() };
        let mut set = Vec::new();
        for field in fields {
            let cookie = SetCookie::parse(field.as_ref());
            let field = self.one(&cookie, now, &mut sealed)?;
            if !deletions.is_empty() && field.is_some() {
                set.push((cookie.name(), cookie.place(self.host, self.path)));
            }
            sealed.fields.extend(field);
        }
        // what the application sets itself is not deleted, and what was sealed just now was written over
        let owed = deletions.iter().filter(|deletion| {
            let here = |(name, place): &(&[u8], Option<_>)| {
                *name == deletion.name.as_slice() && place.as_ref() == Some(&deletion.place)
            };
            !set.iter().any(here) && !self.recent.was_sealed(&self.policy.group, &deletion.name, now.steady)
        });
        let owed: Vec<Vec<u8>> = owed.map(|deletion| deletion.field(self.secure)).collect();
        sealed.fields.splice(..0, owed);
        Ok(sealed)
    }

    /// One cookie of the application, as the browser gets it. None if it does not get it.
    fn one(
        &self,
        cookie: &SetCookie<'_>,
        now: Now,
        sealed: &mut Outgoing,
    ) -> Result<Option<Vec<u8>>, OutgoingError> {
        let (name, value) = (cookie.name(), cookie.value());
        // also where it stands in the value of a cookie without a name, which some browser may send as if it were one
        let folded = Folded::of(name);
        if self.policy.is_own(&folded)
            || (name.is_empty() && smuggled(&[b"=", value].concat(), |name| self.policy.is_own(name)))
        {
            sealed.notes.push(Note::StrippedOwn { name: name.to_vec() });
            return Ok(None);
        }
        if cookie.deletes(now.wall) || (name.is_empty() && refused_without_name(value)) {
            return Ok(Some(cookie.field().to_vec()));
        }
        let length = name.len().saturating_add(value.len());
        let too_long = name.len().saturating_add(sealed_len(value.len())) > self.policy.longest;
        let field = if self.policy.is_readable(name) {
            cookie.field().to_vec()
        } else if too_long {
            let name = name.to_vec();
            match self.policy.oversized {
                Oversized::Refuse => return Err(OutgoingError::Oversized { name, length }),
                Oversized::Strip => {
                    sealed.notes.push(Note::StrippedOversized { name, length });
                    return Ok(None);
                }
                Oversized::Pass => {
                    sealed.notes.push(Note::PassedOversized { name, length });
                    cookie.field().to_vec()
                }
            }
        } else {
            let group = &self.policy.group;
            let value = self.sealer.seal(group, name, value)?;
            self.news(sealed, Entry::Sealed { group: group.clone(), name: folded });
            self.recent.sealed(group, name, now.steady);
            cookie.with_value(&value)
        };
        // also of what passes unsealed: at a logout it can be deleted
        if let Some(place) = cookie.place(self.host, self.path) {
            let (group, name) = (self.policy.group.clone(), name.to_vec());
            self.news(sealed, Entry::Place { group, name, place, stated: cookie.path().is_some() });
        }
        Ok(Some(field))
    }

    fn news(&self, sealed: &mut Outgoing, entry: Entry) {
        if self.learned.is_news(&entry) && !sealed.news.contains(&entry) {
            sealed.news.push(entry);
        }
    }
}
