//! Who has sessions, and who is locked and has none: a part of the list at a time, found without going through the others.

use std::collections::BTreeSet;

use crate::session::{Identity, ServerName};

use super::{Locked, Number, Registry};

/// A part ends with the user by whom so many sessions, or revocations, were looked at.
const MAX_LOOKED: usize = if cfg!(test) { 30 } else { 4_096 };

/// What somebody of that name has, wherever.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UserRow {
    /// As it was typed; of a lock that no session has as its realm spells it, and empty where the kernel alone knew of it.
    pub user: String,
    /// Of ocserv and of the web gateway.
    pub sessions: u32,
    /// Of these, those of the web gateway.
    pub web: u32,
    /// How many of them are revoked.
    pub revoked: u32,
    pub servers: BTreeSet<ServerName>,
    /// Unix seconds: the first that is known; 0: none is.
    pub since: u64,
    /// The newest on one of the people who have these sessions.
    pub lock: Option<Locked>,
}

/// Where a list of users goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UsersFrom {
    /// With those who have sessions, after this name; `None`: from the first.
    Name(Option<String>),
    /// With those who have none and whose lock has a higher number.
    Lock(Number),
}

/// A user's name as lists are ordered by it: its case aside, and only then as it was typed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    caseless: String,
    typed: String,
}

impl Name {
    pub fn of(typed: &str) -> Self {
        Self { caseless: typed.to_lowercase(), typed: typed.to_owned() }
    }

    /// Before every name that differs from this one in case alone, and before this one.
    pub fn first_like(&self) -> Self {
        Self { caseless: self.caseless.clone(), typed: String::new() }
    }

    pub fn is_like(&self, other: &Self) -> bool {
        self.caseless == other.caseless
    }
}

impl UserRow {
    fn began(&mut self, at: u64) {
        self.since = if self.since == 0 { at } else { self.since.min(at) };
    }
}

impl Registry {
    /// A part of the list, `most` and some more, and where it goes on: first everybody who has sessions, by name, then
    /// everybody who is locked and has none, by number.
    pub fn users_after(&self, from: &UsersFrom, most: usize) -> (Vec<UserRow>, Option<UsersFrom>) {
        match from {
            UsersFrom::Name(after) => self.users_by_name(after.clone(), most),
            UsersFrom::Lock(after) => self.locked_after(*after, most),
        }
    }

    fn users_by_name(&self, after: Option<String>, most: usize) -> (Vec<UserRow>, Option<UsersFrom>) {
        let (mut rows, mut looked) = (Vec::new(), 0);
        let mut last = after.as_deref().map(Name::of);
        while rows.len() < most && looked < MAX_LOOKED {
            let next = [self.sessions.name_after(last.as_ref()), self.web.name_after(last.as_ref())];
            let Some(name) = next.into_iter().flatten().min() else {
                return (rows, Some(UsersFrom::Lock(0)));
            };
            looked += self.user_called(name, &mut rows);
            last = Some(name.clone());
        }
        (rows, Some(UsersFrom::Name(last.map(|name| name.typed))))
    }

    /// How many sessions were looked at.
    fn user_called(&self, name: &Name, rows: &mut Vec<UserRow>) -> usize {
        let mut row = UserRow { user: name.typed.clone(), ..UserRow::default() };
        let mut people: BTreeSet<Identity> = BTreeSet::new();
        let mut looked = 0;
        for session in self.sessions.called(name) {
            looked += 1;
            if session.has_worker_gone() {
                continue;
            }
            let seen = &session.observed;
            row.sessions += 1;
            row.revoked += u32::from(!self.numbers_of(session).is_empty());
            row.began(seen.since);
            row.servers.insert(session.server.clone());
            people.insert(self.rules.realms.identity(&session.server, &seen.vhost, &seen.user));
        }
        for session in self.web.called(name) {
            looked += 1;
            row.sessions += 1;
            row.web += 1;
            row.began(session.since);
            people.insert(session.identity.clone());
        }
        let locks = people.iter().flat_map(|who| self.locks_that_hold(who));
        row.lock = locks.max_by_key(|lock| lock.number);
        rows.extend((row.sessions > 0).then_some(row));
        looked
    }

    fn locks_that_hold(&self, who: &Identity) -> impl Iterator<Item = Locked> {
        let entry = super::locks::lock_of(who);
        self.locks_on(who).into_iter().map(move |number| Locked {
            identity: Some(who.clone()),
            number,
            until: self.holdings.until(&entry, number),
        })
    }

    fn locked_after(&self, mut after: Number, most: usize) -> (Vec<UserRow>, Option<UsersFrom>) {
        let mut rows = Vec::new();
        for (looked, revocation) in self.revocations_after(after).enumerate() {
            if rows.len() >= most || looked >= MAX_LOOKED {
                return (rows, Some(UsersFrom::Lock(after)));
            }
            after = revocation.number;
            let locks = self.locks_of_number(after).filter(|lock| {
                // whoever has sessions was told with these
                !lock.identity.as_ref().is_some_and(|who| self.has_sessions(who))
            });
            rows.extend(locks.map(|lock| UserRow {
                user: lock.identity.as_ref().map(|who| who.name.clone()).unwrap_or_default(),
                lock: Some(lock),
                ..UserRow::default()
            }));
        }
        (rows, None)
    }

    fn has_sessions(&self, who: &Identity) -> bool {
        let name = Name::of(&who.name);
        let mut alike = self.sessions.like(&name).filter(|session| !session.has_worker_gone());
        self.web.has_sessions(who)
            || alike.any(|session| {
                let seen = &session.observed;
                self.rules.realms.identity(&session.server, &seen.vhost, &seen.user) == *who
            })
    }
}
