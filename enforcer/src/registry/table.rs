//! The sessions, and who of them has a safe_id, an address or a device: an answer to each packet of news about one
//! of these must not go through all sessions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;

use crate::session::{Device, SafeId, ServerName};

use super::users::Name;
use super::{Session, SessionKey};

#[derive(Debug, Default)]
pub(super) struct Table {
    sessions: BTreeMap<SessionKey, Session>,
    /// The newest session under an ocserv id.
    ids: BTreeMap<(ServerName, i32), SessionKey>,
    by_safe_id: BTreeSet<(SafeId, SessionKey)>,
    by_address: BTreeSet<(IpAddr, SessionKey)>,
    by_device: BTreeSet<(Device, SessionKey)>,
    by_name: BTreeMap<Name, BTreeSet<SessionKey>>,
    last: SessionKey,
}

impl Table {
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    pub fn values(&self) -> impl Iterator<Item = &Session> {
        self.sessions.values()
    }

    pub fn get(&self, key: SessionKey) -> Option<&Session> {
        self.sessions.get(&key)
    }

    /// Its user, safe_id, addresses and device are changed by the methods below alone.
    pub fn get_mut(&mut self, key: SessionKey) -> Option<&mut Session> {
        self.sessions.get_mut(&key)
    }

    pub fn next_key(&self) -> SessionKey {
        self.last + 1
    }

    /// A session that has no safe_id, address and device yet, under its [`Self::next_key`].
    pub fn insert(&mut self, session: Session) -> SessionKey {
        self.last += 1;
        self.ids.insert((session.server.clone(), session.observed.id), self.last);
        self.by_name.entry(Name::of(&session.observed.user)).or_default().insert(self.last);
        self.sessions.insert(self.last, session);
        self.last
    }

    pub fn remove(&mut self, key: SessionKey) {
        self.drop_id(key);
        let Some(session) = self.sessions.remove(&key) else { return };
        self.drop_name(&session.observed.user, key);
        session.observed.safe_id.map(|id| self.by_safe_id.remove(&(id, key)));
        session.device.map(|device| self.by_device.remove(&(device, key)));
        for address in session.observed.addresses {
            self.by_address.remove(&(address, key));
        }
    }

    /// The newest session under an ocserv id.
    pub fn newest(&self, server: &ServerName, id: i32) -> Option<&Session> {
        self.ids.get(&(server.clone(), id)).and_then(|key| self.sessions.get(key))
    }

    /// Its id may be another's from now on.
    pub fn drop_id(&mut self, key: SessionKey) {
        let Some(session) = self.sessions.get(&key) else { return };
        let at = (session.server.clone(), session.observed.id);
        if self.ids.get(&at) == Some(&key) {
            self.ids.remove(&at);
        }
    }

    pub fn set_user(&mut self, key: SessionKey, user: String) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        let now = Name::of(&user);
        let before = std::mem::replace(&mut session.observed.user, user);
        self.drop_name(&before, key);
        self.by_name.entry(now).or_default().insert(key);
    }

    fn drop_name(&mut self, user: &str, key: SessionKey) {
        let name = Name::of(user);
        if let Some(keys) = self.by_name.get_mut(&name) {
            keys.remove(&key);
            if keys.is_empty() {
                self.by_name.remove(&name);
            }
        }
    }

    pub fn set_safe_id(&mut self, key: SessionKey, id: SafeId) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        if let Some(before) = session.observed.safe_id.replace(id) {
            self.by_safe_id.remove(&(before, key));
        }
        self.by_safe_id.insert((id, key));
    }

    pub fn add_address(&mut self, key: SessionKey, address: IpAddr) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        if self.by_address.insert((address, key)) {
            session.observed.addresses.push(address);
        }
    }

    pub fn drop_address(&mut self, key: SessionKey, address: IpAddr) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        session.observed.addresses.retain(|its| *its != address);
        self.by_address.remove(&(address, key));
    }

    pub fn set_device(&mut self, key: SessionKey, device: Device) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        if let Some(before) = session.device.replace(device) {
            self.by_device.remove(&(before, key));
        }
        self.by_device.insert((device, key));
    }

    pub fn with_safe_id(&self, id: SafeId) -> impl DoubleEndedIterator<Item = &Session> {
        (self.by_safe_id.range((id, 0)..=(id, SessionKey::MAX))).filter_map(|(_, key)| self.sessions.get(key))
    }

    pub fn with_address(&self, address: IpAddr) -> impl Iterator<Item = &Session> {
        (self.by_address.range((address, 0)..=(address, SessionKey::MAX)))
            .filter_map(|(_, key)| self.sessions.get(key))
    }

    pub fn with_device(&self, device: Device) -> impl Iterator<Item = &Session> {
        (self.by_device.range((device, 0)..=(device, SessionKey::MAX)))
            .filter_map(|(_, key)| self.sessions.get(key))
    }

    /// The first name after this one; `None`: of all.
    pub fn name_after(&self, name: Option<&Name>) -> Option<&Name> {
        let after = name.map_or(Bound::Unbounded, Bound::Excluded);
        self.by_name.range((after, Bound::Unbounded)).next().map(|(name, _)| name)
    }

    /// Those of users of that name.
    pub fn called(&self, name: &Name) -> impl Iterator<Item = &Session> {
        self.by_name.get(name).into_iter().flatten().filter_map(|key| self.sessions.get(key))
    }

    /// Those of users whose names differ from this one in case at most.
    pub fn like(&self, name: &Name) -> impl Iterator<Item = &Session> {
        let alike = self.by_name.range(name.first_like()..).take_while(|(other, _)| other.is_like(name));
        alike.flat_map(|(_, keys)| keys).filter_map(|key| self.sessions.get(key))
    }

    /// The indexes say what the sessions say.
    #[cfg(test)]
    pub fn check(&self) {
        let all = || self.sessions.values();
        let safe_ids = all().filter_map(|s| Some((s.safe_id()?, s.key))).collect();
        let devices = all().filter_map(|s| Some((s.device?, s.key))).collect();
        let addresses = all().flat_map(|s| s.observed.addresses.iter().map(|a| (*a, s.key))).collect();
        assert_eq!((&self.by_safe_id, &self.by_device, &self.by_address), (&safe_ids, &devices, &addresses));
        let mut names: BTreeMap<Name, BTreeSet<SessionKey>> = BTreeMap::new();
        for session in all() {
            names.entry(Name::of(&session.observed.user)).or_default().insert(session.key);
        }
        assert_eq!(self.by_name, names);
        for ((server, id), key) in &self.ids {
            let session = &self.sessions[key];
            assert_eq!((&session.server, session.observed.id, session.key), (server, *id, *key));
        }
    }
}
