//! ocserv's ban scores: each connection costs its address a point, also one that our gate refuses. A client that
//! tries its revoked cookie again and again gets its address banned, and with it everybody behind that address
//! and its own user's fresh login. What our refusals alone have cost is taken back; a score that anything else
//! has raised (a wrong password costs 10 points) is left as it is, so that nobody can guess passwords under the
//! cover of refused cookies.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::session::ServerName;

use super::{Effect, Effects, Now, Registry};

/// How many refusals are let go by before the score is looked at.
const EVERY: u32 = 5;
/// Refusals older than this say nothing of today's score: ocserv forgets it too (`ban-reset-time`).
const WINDOW: Duration = Duration::from_secs(60);
/// What the client's own good logins may have cost besides; less than one wrong password.
const SLACK: u32 = 9;
/// How many addresses are counted at once; one more is not, and ocserv's own rules hold for it.
const MAX_ADDRESSES: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct Bans {
    refused: BTreeMap<(ServerName, IpAddr), Refused>,
}

#[derive(Debug)]
struct Refused {
    since: Duration,
    count: u32,
}

impl Bans {
    /// One more refusal. True: the score is worth a look.
    fn refused(&mut self, server: &ServerName, client: IpAddr, now: Duration) -> bool {
        if self.refused.len() >= MAX_ADDRESSES {
            self.refused.retain(|_, refused| now < refused.since + WINDOW);
        }
        let at = (server.clone(), client);
        if self.refused.len() >= MAX_ADDRESSES && !self.refused.contains_key(&at) {
            return false;
        }
        let refused = self.refused.entry(at).or_insert(Refused { since: now, count: 0 });
        if now >= refused.since + WINDOW {
            *refused = Refused { since: now, count: 0 };
        }
        refused.count += 1;
        refused.count % EVERY == 0
    }

    /// Whether our refusals explain the whole score. They count once.
    fn explains(&mut self, server: &ServerName, client: IpAddr, score: u32, now: Duration) -> bool {
        let at = (server.clone(), client);
        let explained = (self.refused.get(&at)).is_some_and(|refused| {
            now < refused.since + WINDOW && score > 0 && score <= refused.count + SLACK
        });
        if explained {
            self.refused.remove(&at);
        }
        explained
    }
}

impl Registry {
    /// A revoked cookie was refused at the gate.
    pub(super) fn count_refusal(&mut self, server: &ServerName, client: &str, now: Now, out: &mut Effects) {
        let Ok(client) = client.parse::<IpAddr>() else { return };
        if self.bans.refused(server, client, now.mono) {
            out.push(Effect::AskBanScore { server: server.clone(), client });
        }
    }

    pub(super) fn ban_score(
        &mut self,
        server: &ServerName,
        client: IpAddr,
        score: u32,
        now: Now,
        out: &mut Effects,
    ) {
        if self.bans.explains(server, client, score, now.mono) {
            let text =
                format!("{server}: {client}: {score} ban points, all of refused cookies, are taken back");
            out.push(Effect::Note { kind: "ban", text });
            out.push(Effect::Unban { server: server.clone(), client });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> ServerName {
        ServerName::new("s")
    }

    fn after(refusals: u32) -> Bans {
        let mut bans = Bans::default();
        for n in 1..=refusals {
            let look = bans.refused(&server(), client(), Duration::ZERO);
            assert_eq!(look, n % EVERY == 0);
        }
        bans
    }

    fn client() -> IpAddr {
        "192.0.2.1".parse().unwrap()
    }

    #[test]
    fn a_score_of_refusals_alone_is_taken_back_once() {
        let mut bans = after(5);
        assert!(bans.explains(&server(), client(), 5 + 3, Duration::ZERO));
        assert!(!bans.explains(&server(), client(), 5 + 3, Duration::ZERO));
    }

    #[test]
    fn a_wrong_password_among_them_is_not_covered() {
        assert!(!after(5).explains(&server(), client(), 5 + 10, Duration::ZERO));
    }

    #[test]
    fn another_address_and_old_refusals_explain_nothing() {
        let mut bans = after(5);
        assert!(!bans.explains(&server(), "192.0.2.2".parse().unwrap(), 3, Duration::ZERO));
        assert!(!bans.explains(&server(), client(), 3, WINDOW));
    }

    #[test]
    fn the_number_of_addresses_is_bounded() {
        let mut bans = Bans::default();
        for n in 0..=MAX_ADDRESSES as u32 {
            bans.refused(&server(), IpAddr::from(n.to_be_bytes()), Duration::ZERO);
        }
        assert_eq!(bans.refused.len(), MAX_ADDRESSES);
    }
}
