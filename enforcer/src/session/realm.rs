//! Who is the same person where: realms, and whether the case of a name counts in them.

use std::collections::BTreeMap;

use super::{DEFAULT_REALM, Identity, ServerName};

/// Whether two spellings of a name that differ in case mean one person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Case {
    /// They are two (ocserv's own password file).
    #[default]
    Exact,
    /// They are one (most directories: Active Directory, LDAP, many RADIUS servers).
    Fold,
}

/// The realm of each place where users log in, and each realm's case rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Realms {
    /// The realm of a server; [`DEFAULT_REALM`] where it is not named.
    servers: BTreeMap<ServerName, String>,
    /// The realm of a virtual host, where it is another than its server's.
    vhosts: BTreeMap<(ServerName, String), String>,
    cases: BTreeMap<String, Case>,
}

impl Realms {
    pub fn set_case(&mut self, realm: &str, case: Case) {
        self.cases.insert(realm.to_owned(), case);
    }

    pub fn set_server(&mut self, server: ServerName, realm: &str) {
        self.servers.insert(server, realm.to_owned());
    }

    pub fn set_vhost(&mut self, server: ServerName, vhost: &str, realm: &str) {
        self.vhosts.insert((server, vhost.to_owned()), realm.to_owned());
    }

    /// Who `user` is at this virtual host of this server.
    pub fn identity(&self, server: &ServerName, vhost: &str, user: &str) -> Identity {
        self.person(self.realm(server, vhost), user)
    }

    /// Who `user` is in this realm.
    pub fn person(&self, realm: &str, user: &str) -> Identity {
        let name = match self.cases.get(realm).copied().unwrap_or_default() {
            Case::Exact => user.to_owned(),
            Case::Fold => user.to_lowercase(),
        };
        Identity { realm: realm.to_owned(), name }
    }

    fn realm(&self, server: &ServerName, vhost: &str) -> &str {
        let own = (!self.vhosts.is_empty()).then(|| self.vhosts.get(&(server.clone(), vhost.to_owned())));
        own.flatten().or_else(|| self.servers.get(server)).map_or(DEFAULT_REALM, String::as_str)
    }

    /// Everybody who may be meant by that name on that server: one for each of its realms.
    pub fn everybody_called(&self, server: &ServerName, user: &str) -> Vec<Identity> {
        let mut realms = vec![self.realm(server, "")];
        realms.extend(self.vhosts.iter().filter(|((its, _), _)| its == server).map(|(_, realm)| realm.as_str()));
        realms.sort_unstable();
        realms.dedup();
        realms.into_iter().map(|realm| self.person(realm, user)).collect()
    }

    /// Whether anybody of that realm can log in on that server.
    pub fn has(&self, server: &ServerName, realm: &str) -> bool {
        self.realm(server, "") == realm
            || self.vhosts.iter().any(|((its, _), theirs)| its == server && theirs == realm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(name: &str) -> ServerName {
        ServerName::new(name)
    }

    #[test]
    fn one_realm_for_everybody_unless_configured_and_case_counts() {
        let realms = Realms::default();
        let alice = realms.identity(&server("a"), "", "alice");
        assert_eq!(alice, realms.identity(&server("b"), "host.example", "alice"));
        assert_ne!(alice, realms.identity(&server("a"), "", "Alice"));
        assert_eq!(alice, realms.person(DEFAULT_REALM, "alice"));
    }

    #[test]
    fn a_realm_of_its_own_keeps_people_apart_and_its_case_rule_is_its_own() {
        let mut realms = Realms::default();
        realms.set_server(server("b"), "staff");
        realms.set_vhost(server("b"), "guests.example", "guests");
        realms.set_case("staff", Case::Fold);
        assert_eq!(realms.identity(&server("b"), "", "ALICE"), realms.person("staff", "alice"));
        assert_ne!(realms.identity(&server("b"), "", "alice"), realms.identity(&server("a"), "", "alice"));
        let guest = realms.identity(&server("b"), "guests.example", "Alice");
        assert_eq!((guest.realm.as_str(), guest.name.as_str()), ("guests", "Alice"));
        let called: Vec<String> =
            realms.everybody_called(&server("b"), "Alice").iter().map(|who| who.realm.clone()).collect();
        assert_eq!(called, ["guests", "staff"]);
        assert!(realms.has(&server("b"), "guests") && !realms.has(&server("a"), "guests"));
    }
}
