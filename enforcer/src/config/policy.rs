//! `[policy]`: how many sessions a person may have at once, and who yields.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::cluster::record::MAX_HOLDERS;
use crate::session::Realms;

/// For everybody, and what is special of groups and of users.
#[derive(Debug, Clone, Deserialize, Default)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Policy {
    /// How many sessions a person may have at once, on all gateways together; 0: any number.
    pub max_sessions: u32,
    pub when_full: WhenFull,
    /// Whether the web gateway's sessions are among them.
    pub web_sessions: WebSessions,
    /// By ocserv's group.
    pub groups: BTreeMap<String, Special>,
    /// By the user's name, as his realm's case rule leaves it.
    pub users: BTreeMap<String, Special>,
}

/// What is not said here is as for everybody; of a user, as for his group.
#[derive(Debug, Clone, Copy, Deserialize, Default)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Special {
    pub max_sessions: Option<u32>,
    pub when_full: Option<WhenFull>,
}

/// Who yields where there is no place left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum WhenFull {
    /// The oldest session ends.
    #[default]
    NewestWins,
    /// The login is refused.
    RefuseNew,
}

/// Whether a session at the web gateway takes one of its person's places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum WebSessions {
    /// It takes none, and does not wait for etcd.
    #[default]
    Apart,
    /// It takes one, as a VPN session does; it has no group.
    Count,
}

/// How many groups, and how many users, may have a section.
const MOST_SECTIONS: usize = 10_000;

impl Policy {
    /// How many sessions this person may have at once, at least 1, and who yields; `None`: any number. `name`: as the
    /// realm's case rule leaves it. `group`: ocserv's; empty: none.
    ///
    /// Each of the two keys is looked for by itself: in the user's section, then his group's, then for everybody.
    pub fn limit(&self, name: &str, group: &str) -> Option<(usize, WhenFull)> {
        let special = [self.users.get(name), self.groups.get(group)];
        let most = special.iter().flatten().find_map(|one| one.max_sessions).unwrap_or(self.max_sessions);
        let when_full = special.iter().flatten().find_map(|one| one.when_full).unwrap_or(self.when_full);
        (most > 0).then_some((most as usize, when_full))
    }

    /// The same of a session at the web gateway.
    pub fn web_limit(&self, name: &str) -> Option<(usize, WhenFull)> {
        match self.web_sessions {
            WebSessions::Apart => None,
            WebSessions::Count => self.limit(name, ""),
        }
    }

    /// Whether anybody's sessions are limited.
    pub fn limits_anybody(&self) -> bool {
        let special = self.groups.values().chain(self.users.values()).filter_map(|one| one.max_sessions);
        special.chain([self.max_sessions]).any(|most| most > 0)
    }

    /// `used`: the realms that somebody is of.
    pub(super) fn validate(
        &self,
        realms: &Realms,
        used: &BTreeSet<&str>,
        has_cluster: bool,
    ) -> Result<(), String> {
        check_most("[policy]", self.max_sessions)?;
        for (kind, sections) in [("groups", &self.groups), ("users", &self.users)] {
            if sections.len() > MOST_SECTIONS {
                return Err(format!(
                    "[policy.{kind}]: {} sections, at most {MOST_SECTIONS} are read: put the many into a group, or into \
                     [policy]",
                    sections.len()
                ));
            }
            for (name, special) in sections {
                let place = format!("[policy.{kind}.{name:?}]");
                if name.is_empty() {
                    return Err(format!("{place}: the name is empty"));
                }
                check_most(&place, special.max_sessions.unwrap_or(0))?;
            }
        }
        // a name that nobody can have would be a limit that holds for nobody
        for name in self.users.keys() {
            let mut spellings = used.iter().map(|realm| realms.person(realm, name).name);
            if let Some(first) = spellings.next()
                && first != *name
                && !spellings.any(|spelling| spelling == *name)
            {
                return Err(format!(
                    "[policy.users.{name:?}]: the case of names does not count ([realms] case = \"fold\"): write {first:?}"
                ));
            }
        }
        if self.web_sessions == WebSessions::Count && !self.limits_anybody() {
            return Err("[policy] web-sessions = \"count\": they count for max-sessions, and nobody has a limit. Set \
                        max-sessions, or take web-sessions out"
                .into());
        }
        if self.limits_anybody() && !has_cluster {
            return Err("[policy] max-sessions needs [cluster]: etcd decides who has which place, also for one gateway \
                        alone. Add that section, or take max-sessions out"
                .into());
        }
        Ok(())
    }
}

/// etcd's record of who has the places has so many at the most.
fn check_most(place: &str, most: u32) -> Result<(), String> {
    if most as usize > MAX_HOLDERS {
        return Err(format!(
            "{place} max-sessions = {most}: it is 1 to {MAX_HOLDERS}, or 0 for any number of sessions"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const CLUSTER: &str = "[cluster]\nendpoints = ['http://127.0.0.1:2379']\n";

    fn with(policy: &str) -> Policy {
        Config::parse(&format!("{CLUSTER}{policy}")).unwrap().policy
    }

    fn told(text: &str) -> String {
        Config::parse(text).unwrap_err()
    }

    #[test]
    fn nobody_is_limited_unless_it_is_said() {
        assert_eq!(Config::parse("").unwrap().policy.limit("alice", "staff"), None);
        assert!(!with("[policy]\nmax-sessions = 0").limits_anybody());
        // the twin
        let policy = with("[policy]\nmax-sessions = 1");
        assert!(policy.limits_anybody());
        assert_eq!(policy.limit("alice", ""), Some((1, WhenFull::NewestWins)));
    }

    #[test]
    fn a_users_own_section_comes_before_his_groups_and_that_before_everybodys() {
        let policy = with(
            "[policy]\nmax-sessions = 1\nwhen-full = 'refuse-new'\n\
             [policy.groups.contractors]\nmax-sessions = 2\nwhen-full = 'newest-wins'\n\
             [policy.groups.staff]\nmax-sessions = 0\n[policy.groups.guests]\nwhen-full = 'newest-wins'\n\
             [policy.users.alice]\nmax-sessions = 3\n[policy.users.'bob@example.com']\nmax-sessions = 0",
        );
        for (name, group, limit) in [
            ("carol", "", Some((1, WhenFull::RefuseNew))),
            ("carol", "nobody's", Some((1, WhenFull::RefuseNew))),
            ("carol", "contractors", Some((2, WhenFull::NewestWins))),
            ("carol", "staff", None),
            ("carol", "guests", Some((1, WhenFull::NewestWins))),
            ("alice", "", Some((3, WhenFull::RefuseNew))),
            ("alice", "contractors", Some((3, WhenFull::NewestWins))),
            ("alice", "staff", Some((3, WhenFull::RefuseNew))),
            ("Alice", "", Some((1, WhenFull::RefuseNew))),
            ("bob@example.com", "contractors", None),
        ] {
            assert_eq!(policy.limit(name, group), limit, "{name} {group}");
        }
    }

    /// A web session has no group, and counts where that was said alone.
    #[test]
    fn web_sessions_count_where_they_are_told_to() {
        let limits = "max-sessions = 2\n[policy.groups.staff]\nmax-sessions = 3\n[policy.users.alice]\nmax-sessions = 1";
        let policy = with(&format!("[policy]\nweb-sessions = 'count'\n{limits}"));
        assert_eq!(policy.web_limit("alice"), Some((1, WhenFull::NewestWins)));
        assert_eq!(policy.web_limit("bob"), Some((2, WhenFull::NewestWins)));
        // the twins
        assert_eq!(with(&format!("[policy]\n{limits}")).web_limit("alice"), None);
        assert_eq!(with(&format!("[policy]\nweb-sessions = 'apart'\n{limits}")).web_limit("bob"), None);
        let told = told(&format!("{CLUSTER}[policy]\nweb-sessions = 'count'"));
        assert!(told.contains("nobody has a limit"), "{told}");
    }

    /// A group alone may be limited; so may a user.
    #[test]
    fn limits_need_etcd_wherever_they_stand() {
        for policy in [
            "[policy]\nmax-sessions = 1",
            "[policy.groups.a]\nmax-sessions = 1",
            "[policy.users.a]\nmax-sessions = 1",
        ] {
            assert!(told(policy).contains("needs [cluster]"), "{policy}");
            assert!(with(policy).limits_anybody(), "{policy}");
        }
        Config::parse("[policy]\nwhen-full = 'refuse-new'\n[policy.users.a]\nmax-sessions = 0").unwrap();
    }

    #[test]
    fn r7_what_is_wrong_is_refused_with_its_name() {
        for (bad, says) in [
            ("[policy]\nmax-sessions = 65", "[policy] max-sessions = 65: it is 1 to 64"),
            ("[policy]\nmax-sessions = -1", "max-sessions"),
            ("[policy.users.alice]\nmax-sessions = 65", "[policy.users.\"alice\"] max-sessions"),
            ("[policy.groups.x]\nmax-sessions = 1000000", "[policy.groups.\"x\"] max-sessions"),
            ("[policy.groups.'']\nmax-sessions = 1", "the name is empty"),
            ("[policy]\nwhen-full = 'oldest-wins'", "newest-wins"),
            ("[policy]\nmax-session = 1", "did you mean `max-sessions`"),
            ("[policy.users.alice]\nwhen-ful = 'refuse-new'", "did you mean `when-full`"),
        ] {
            let told = told(&format!("{CLUSTER}{bad}"));
            assert!(told.contains(says), "{bad}: {told}");
        }
        with("[policy]\nmax-sessions = 64");
        let many: String =
            (0..=MOST_SECTIONS).map(|n| format!("[policy.users.u{n}]\nmax-sessions = 1\n")).collect();
        assert!(told(&format!("{CLUSTER}{many}")).contains("at most 10000"));
    }

    /// A spelling that is nobody's would be a limit that holds for nobody.
    #[test]
    fn a_name_that_nobody_can_have_is_refused() {
        let fold = "[realms.default]\ncase = 'fold'\n";
        let alice = "[policy.users.Alice]\nmax-sessions = 1\n";
        let told = told(&format!("{CLUSTER}{fold}{alice}"));
        assert!(told.contains("write \"alice\""), "{told}");
        with(alice);
        with(&format!("{fold}{}", alice.to_lowercase()));
        // somebody of another realm may be called so
        with(&format!(
            "{fold}{alice}[ocserv]\nrealm = 'default'\nvhost-realms = {{ 'a.example' = 'staff' }}"
        ));
    }
}
