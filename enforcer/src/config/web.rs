//! `[web]`: what the daemon serves to a web gateway.

use std::path::PathBuf;

use serde::Deserialize;

use super::is_name;
use crate::session::DEFAULT_REALM;

/// What the daemon serves to the web gateway.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Web {
    /// Mode 0600, the gateway's own, in a folder that nobody but root can write to.
    pub socket: PathBuf,
    /// The system user that the gateway runs as. Nobody else but root is served.
    pub user: String,
    pub max_sessions: u32,
    /// The gateway's table of its sockets, by which they are destroyed where it hangs. The gateway's own file.
    pub socket_table: PathBuf,
    /// The realms that its users may be of.
    pub realms: Vec<String>,
}

/// So many sessions are a hundred megabytes of the daemon's memory or more.
const MAX_WEB_SESSIONS: u32 = 1_000_000;

impl Default for Web {
    fn default() -> Self {
        Self {
            socket: PathBuf::from("/run/enforcer-web/web.sock"),
            user: "enforcer-web".into(),
            max_sessions: 100_000,
            socket_table: PathBuf::from("/run/enforcer-gateway/sockets"),
            realms: vec![DEFAULT_REALM.into()],
        }
    }
}

impl Web {
    /// How many bytes all sessions may take: a session with a token or two takes less than 1,024.
    pub(crate) fn most_bytes(&self) -> usize {
        (self.max_sessions as usize).saturating_mul(1_024).max(1 << 20)
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        if self.max_sessions == 0 || self.max_sessions > MAX_WEB_SESSIONS {
            let most = self.max_sessions;
            return Err(format!("[web] max-sessions = {most}: it is 1 to {MAX_WEB_SESSIONS}"));
        }
        if self.realms.is_empty() {
            return Err(
                "[web] realms = []: at least one is needed (leave the key out for the default one)".into()
            );
        }
        if !is_name(&self.user) {
            return Err(format!("[web] user = {:?}: it is the name of a system user", self.user));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use crate::session::DEFAULT_REALM;

    #[test]
    fn the_web_gateway_is_served_where_it_is_configured_alone() {
        assert!(Config::parse("").unwrap().web.is_none());
        let web = Config::parse("[web]").unwrap().web.unwrap();
        assert_eq!((web.max_sessions, web.realms), (100_000, vec![DEFAULT_REALM.to_owned()]));
        Config::parse("[web]\nrealms = ['staff']\n[realms.staff]\ncase = 'fold'").unwrap();
        for bad in [
            "socket = 'a'",
            "socket-table = 'a'",
            "user = ''",
            "max-sessions = 0",
            "max-sessions = 1000001",
            "realms = []",
            "usr = 'x'",
        ] {
            let told = Config::parse(&format!("[web]\n{bad}")).unwrap_err();
            assert!(told.contains("web") || told.contains("did you mean"), "{bad}: {told}");
        }
        let told = Config::parse("[web]\nsocket = '/a'\n[gate]\nsocket = '/a'").unwrap_err();
        assert!(told.contains("the same one"), "{told}");
    }
}
