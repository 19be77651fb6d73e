//! What has to hold once everything is healed and has come to rest.

use enforcer::registry::cluster::{Key, Over};

use super::gateway::{limit, session_of};
use super::world::World;

impl World {
    pub fn check(&mut self) {
        let mut broken = Vec::new();
        if let Some((session, _)) = self.due.first_key_value() {
            broken.push(format!("{} sessions are not over, the first is {session}", self.due.len()));
        }
        let first_locks: Vec<_> = self.gateways[0].locks.keys().copied().collect();
        for gateway in &self.gateways {
            let Some(cluster) = &gateway.cluster else {
                broken.push(format!("{} is down", gateway.id));
                continue;
            };
            let pending: u64 = cluster.gateways().iter().map(|row| row.pending).sum();
            let open = (cluster.untold(), gateway.disk.letters.len(), cluster.errands(), pending);
            if open != (0, 0, 0, 0) || cluster.is_away() {
                broken.push(format!("{}: (untold, letters, errands, pending) = {open:?}", gateway.id));
            }
            if cluster.gateways().len() != self.gateways.len() {
                broken.push(format!("{} does not know all", gateway.id));
            }
            if !gateway.locks.keys().copied().eq(first_locks.iter().copied()) {
                broken.push(format!("{} has other locks than the first one", gateway.id));
            }
        }
        for key in self.etcd.keys() {
            if matches!(key, Key::Lift(..) | Key::Record(_, Over::Session(_))) {
                broken.push(format!("{key:?} is left"));
            }
        }
        for (person, owners) in self.etcd.places() {
            for holder in &owners.holders {
                if self.sessions.get(session_of(&holder.session)).is_none_or(|row| row.dead) {
                    broken.push(format!("person {person} has a place for what is over: {holder:?}"));
                }
            }
        }
        for (person, sessions) in (0..).zip(&self.of_person) {
            let tunnels = sessions.iter().filter(|session| self.sessions[**session as usize].tunnel).count();
            if limit(person).is_some_and(|limit| tunnels > limit.most) {
                broken.push(format!("person {person} has {tunnels} sessions"));
            }
        }
        // of what lives everything, and of what is over nothing, is forwarded or comes back
        let zombies = self.sessions.iter().filter(|row| row.dead && row.tunnel).count();
        if zombies > 0 {
            broken.push(format!("{zombies} sessions are over and are forwarded"));
        }
        self.broken.extend(broken);
    }
}
