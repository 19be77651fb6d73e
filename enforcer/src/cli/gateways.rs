//! What people read of other gateways: `show gateways`, `show sessions --all`, and a receipt's part.

use std::fmt::Write as _;

use super::output::{ago, number, safe, table, terminal_width};
use crate::control::api;

const GATEWAYS: [&str; 6] = ["NAME", "ID", "STATE", "LAST CONTACT", "PENDING", "VERSION"];
/// Both are another gateway's words: they may not push the rest out of sight.
const MOST_NAME: usize = 24;
const MOST_VERSION: usize = 10;
/// So many digits of an id tell gateways apart; `--json` has all of them.
pub const SHORT_ID: usize = 8;
/// What one says of whom a revocation has not reached is bounded; `--json` has all of them.
const MOST_RESULTS: usize = 20;

/// `show gateways`.
pub fn text(list: &api::Gateways) -> String {
    let mut text = list.etcd.as_ref().map(etcd).unwrap_or_default();
    if list.gateways.is_empty() {
        return text + "No gateway is known.\n";
    }
    let rows: Vec<Vec<String>> = list.gateways.iter().map(row).collect();
    text += &table(&GATEWAYS, &rows, terminal_width());
    text
}

fn etcd(etcd: &api::Etcd) -> String {
    let endpoint =
        if etcd.endpoint.is_empty() { String::new() } else { format!(" {}", safe(&etcd.endpoint)) };
    let mut text = format!("etcd{endpoint}: {}, since {}\n", safe(&etcd.state), ago(etcd.since));
    if etcd.in_force < etcd.read {
        let _ = writeln!(text, "in force here: up to revision {} of {}", etcd.in_force, etcd.read);
    } else {
        let _ = writeln!(text, "in force here: everything, up to revision {}", etcd.read);
    }
    if etcd.letters > 0 {
        let _ = writeln!(text, "NOT in etcd yet: {} of what was decided here", etcd.letters);
    }
    if etcd.malformed > 0 {
        let _ =
            writeln!(text, "records that are none: {} (`enforcer show events` names them)", etcd.malformed);
    }
    text
}

fn row(gateway: &api::Gateway) -> Vec<String> {
    let state = match (gateway.is_me, gateway.alive) {
        // whether it is connected stands above
        (true, _) => "this one",
        (false, true) => "alive",
        (false, false) => "away",
    };
    vec![
        shortened(&gateway.name, MOST_NAME),
        gateway.id.chars().take(SHORT_ID).collect(),
        state.to_owned(),
        // of itself there is nothing to be heard
        if gateway.is_me { "-".into() } else { last_contact(gateway.last_contact) },
        number(gateway.pending),
        shortened(&gateway.version, MOST_VERSION),
    ]
}

fn shortened(text: &str, most: usize) -> String {
    // an escape takes more room than what it stands for
    let text = safe(text);
    if text.chars().count() <= most {
        return text;
    }
    text.chars().take(most - 1).chain(['…']).collect()
}

fn last_contact(at: u64) -> String {
    if at == 0 { "not seen".into() } else { ago(at) }
}

pub const SESSIONS: [&str; 6] = ["GATEWAY", "USER", "REALM", "KIND", "SINCE", "SESSION"];
pub const NO_SESSIONS: &str = "No gateway has a session.";

/// A session's line in the table of [`SESSIONS`].
pub fn session(session: &api::ClusterSession) -> Vec<String> {
    let name = shortened(&session.gateway, MOST_NAME);
    vec![
        if session.alive { name } else { format!("{name} (away)") },
        session.user.clone(),
        session.realm.clone(),
        session.kind.clone(),
        ago(session.since),
        session.session.clone(),
    ]
}

/// Of a receipt: a line for each gateway where it is not in force; nothing where it is everywhere.
pub fn results(gateways: &[api::GatewayResult]) -> String {
    let mut text = String::new();
    let missing: Vec<_> = gateways.iter().filter(|gateway| gateway.state != IN_FORCE).collect();
    for gateway in missing.iter().take(MOST_RESULTS) {
        let _ = writeln!(text, "     {}: {}", shortened(&gateway.name, MOST_NAME), safe(&gateway.state));
    }
    if let more @ 1.. = missing.len().saturating_sub(MOST_RESULTS) {
        let _ = writeln!(text, "     … and {more} more");
    }
    text
}

const IN_FORCE: &str = "in force";

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> u64 {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
    }

    fn gateway(name: &str, alive: bool, pending: u64) -> api::Gateway {
        api::Gateway {
            name: name.into(),
            id: "0123456789abcdef".repeat(2),
            alive,
            version: "0.1.0".into(),
            last_contact: if alive { now() - 7_200 } else { 0 },
            pending,
            ..api::Gateway::default()
        }
    }

    fn connected() -> api::Etcd {
        api::Etcd {
            endpoint: "https://etcd-1.example:2379".into(),
            state: "connected".into(),
            since: now() - 7_200,
            read: 1_000_000,
            in_force: 1_000_000,
            ..api::Etcd::default()
        }
    }

    /// In a pipe nothing is cut to a terminal's width: it fits by itself, whatever another gateway calls itself.
    #[test]
    fn r7_the_table_of_gateways_fits_eighty_columns() {
        let me = api::Gateway { is_me: true, ..gateway("vpn-1", true, 0) };
        let long = gateway(&"\u{1b}".repeat(256), false, 1_000_000);
        let long = api::Gateway { version: "9".repeat(64), id: "f".repeat(32), ..long };
        let list =
            api::Gateways { etcd: Some(connected()), gateways: vec![me, gateway("vpn-2", true, 3), long] };
        let text = text(&list);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap();
        let words: Vec<&str> = line("vpn-2").split_whitespace().collect();
        assert_eq!(words, ["vpn-2", "01234567", "alive", "2h", "0min", "3", "0.1.0"]);
        assert!(line("vpn-1").contains("this one") && line("\\u{1b}").contains("not seen"), "{text}");
        assert!(text.starts_with("etcd https://etcd-1.example:2379: connected, since 2h"), "{text}");
    }

    /// R6: what is not in force, or not told yet, is said; and nothing of the kind where all is well.
    #[test]
    fn r6_what_is_behind_is_said() {
        let well = etcd(&connected());
        assert!(well.contains("in force here: everything") && !well.contains("NOT"), "{well}");
        let behind = api::Etcd {
            state: "away: connection refused".into(),
            in_force: 999_000,
            letters: 2,
            malformed: 1,
            ..connected()
        };
        let behind = etcd(&behind);
        for says in
            ["away: connection refused", "up to revision 999000 of 1000000", "NOT in etcd yet: 2", "none: 1"]
        {
            assert!(behind.contains(says), "{says}: {behind}");
        }
    }

    /// R6: each gateway where it is not in force has its line; where it is everywhere there is none.
    #[test]
    fn r6_a_receipt_names_the_gateways_that_are_missing() {
        let result = |name: &str, state: &str| api::GatewayResult { name: name.into(), state: state.into() };
        assert_eq!(results(&[result("a", IN_FORCE), result("b", IN_FORCE)]), "");
        let text =
            results(&[result("a", IN_FORCE), result("b", "away"), result("c\u{1b}[2J", "alive, not yet")]);
        assert_eq!(text, "     b: away\n     c\\u{1b}[2J: alive, not yet\n");
        let many: Vec<_> = (0..25).map(|n| result(&format!("gw{n}"), "away")).collect();
        assert!(results(&many).ends_with("gw19: away\n     … and 5 more\n"), "{}", results(&many));
    }

    #[test]
    fn a_session_of_a_gateway_that_is_away_says_so() {
        let one = api::ClusterSession { gateway: "vpn-2".into(), alive: true, ..Default::default() };
        assert_eq!(session(&one)[0], "vpn-2");
        assert_eq!(session(&api::ClusterSession { alive: false, ..one })[0], "vpn-2 (away)");
    }
}
