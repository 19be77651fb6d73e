//! A list that comes in parts, printed as it comes: the memory for it is that of one part.

use std::io::Write as _;

use serde::Serialize;
use tonic::Streaming;

use crate::control::{ControlClient, api};
use crate::exit::Code;

use super::gateways;
use super::output::{self, Columns};
use super::run::explain;

/// What a list is of.
#[derive(Debug)]
struct Kind<T> {
    /// As JSON has it.
    key: &'static str,
    titles: &'static [&'static str],
    row: fn(&T) -> Vec<String>,
    /// What is said of an empty list.
    none: &'static str,
}

// not derived, which would ask the same of T
impl<T> Clone for Kind<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Kind<T> {}

const REVOCATIONS: Kind<api::RevocationInfo> = Kind {
    key: "revocations",
    titles: &output::REVOCATIONS,
    row: output::revocation,
    none: "No revocations.",
};
const SESSIONS: Kind<api::SessionInfo> =
    Kind { key: "sessions", titles: &output::SESSIONS, row: output::session, none: output::NO_SESSIONS };
const ALL_SESSIONS: Kind<api::ClusterSession> = Kind {
    key: "sessions",
    titles: &gateways::SESSIONS,
    row: gateways::session,
    none: gateways::NO_SESSIONS,
};
const USERS: Kind<api::User> =
    Kind { key: "users", titles: &output::USERS, row: output::user, none: output::NO_USERS };

/// `show revocations`.
pub async fn revocations(client: &mut ControlClient, json: bool) -> anyhow::Result<Code> {
    let parts = client.list_revocations(api::ListRequest::default()).await?.into_inner();
    list(parts, json, REVOCATIONS, |part| part.revocations).await
}

/// `show sessions`.
pub async fn sessions(client: &mut ControlClient, json: bool) -> anyhow::Result<Code> {
    let parts = client.list_sessions(api::ShowRequest {}).await?.into_inner();
    list(parts, json, SESSIONS, |part| part.sessions).await
}

/// `show sessions --all`.
pub async fn all_sessions(client: &mut ControlClient, json: bool) -> anyhow::Result<Code> {
    let parts = client.list_all_sessions(api::ShowRequest {}).await?.into_inner();
    list(parts, json, ALL_SESSIONS, |part| part.sessions).await
}

/// `show users`.
pub async fn users(client: &mut ControlClient, json: bool) -> anyhow::Result<Code> {
    let parts = client.list_users(api::ShowRequest {}).await?.into_inner();
    list(parts, json, USERS, |part| part.users).await
}

async fn list<P, T: Serialize>(
    mut parts: Streaming<P>,
    json: bool,
    kind: Kind<T>,
    those_of: fn(P) -> Vec<T>,
) -> anyhow::Result<Code> {
    let mut listing = Listing::new(json, kind);
    loop {
        let (text, end) = match parts.message().await {
            Ok(Some(part)) => (listing.part(&those_of(part))?, None),
            Ok(None) => (listing.end(None), Some(Code::Done)),
            Err(status) if json => {
                // what is open is closed: half a list is JSON all the same, and says that it is half of one
                let (code, why) = explain(&status.into());
                (listing.end(Some(&why)), Some(code))
            }
            Err(status) => return Err(status.into()),
        };
        match std::io::stdout().write_all(text.as_bytes()) {
            Err(error) if output::has_read_enough(&error) => return Ok(Code::Done),
            written => written?,
        }
        if let Some(code) = end {
            return Ok(code);
        }
    }
}

struct Listing<T> {
    kind: Kind<T>,
    so_far: SoFar,
}

enum SoFar {
    Table(Option<Columns>),
    /// Whether something was printed yet.
    Json {
        any: bool,
    },
}

impl<T: Serialize> Listing<T> {
    fn new(json: bool, kind: Kind<T>) -> Self {
        Self { kind, so_far: if json { SoFar::Json { any: false } } else { SoFar::Table(None) } }
    }

    fn part(&mut self, part: &[T]) -> anyhow::Result<String> {
        let mut text = String::new();
        let head = head(self.kind.key);
        match &mut self.so_far {
            SoFar::Table(_) if part.is_empty() => {}
            SoFar::Table(columns) => {
                let rows: Vec<Vec<String>> = part.iter().map(self.kind.row).collect();
                let columns = match columns {
                    Some(columns) => columns,
                    None => {
                        let new = columns.insert(Columns::new(self.kind.titles, output::terminal_width()));
                        text += &new.titles(&rows);
                        new
                    }
                };
                text += &columns.lines(&rows);
            }
            SoFar::Json { any } => {
                for one in part {
                    text += if *any { ",\n" } else { &head };
                    *any = true;
                    // no line feed is inside a string of JSON
                    for (index, line) in serde_json::to_string_pretty(one)?.lines().enumerate() {
                        text += if index == 0 { "    " } else { "\n    " };
                        text += line;
                    }
                }
            }
        }
        Ok(text)
    }

    /// `why`: the list broke off.
    fn end(&self, why: Option<&str>) -> String {
        match &self.so_far {
            SoFar::Table(Some(_)) => String::new(),
            SoFar::Table(None) => format!("{}\n", self.kind.none),
            SoFar::Json { any } => {
                let begun = head(self.kind.key);
                let (head, tail) = if *any { ("", "\n  ]") } else { (begun.trim_end(), "]") };
                let error = why.map(|why| format!(",\n  \"error\": {}", serde_json::json!(why)));
                format!("{head}{tail}{}\n}}\n", error.unwrap_or_default())
            }
        }
    }
}

fn head(key: &str) -> String {
    format!("{{\n  \"{key}\": [\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(numbers: std::ops::Range<u64>) -> Vec<api::RevocationInfo> {
        let one = |number| api::RevocationInfo {
            number,
            target: format!("address 10.0.0.{number}"),
            reason: "two\nlines, and a \"quote\"".to_owned(),
            ..api::RevocationInfo::default()
        };
        numbers.map(one).collect()
    }

    /// What was printed in all.
    fn printed(
        mut listing: Listing<api::RevocationInfo>,
        parts: &[Vec<api::RevocationInfo>],
        why: Option<&str>,
    ) -> String {
        let mut text: String = parts.iter().map(|part| listing.part(part).unwrap()).collect();
        text += &listing.end(why);
        text
    }

    #[test]
    fn json_in_parts_is_what_it_would_be_in_one() {
        let json = || Listing::new(true, REVOCATIONS);
        let whole =
            |revocations| serde_json::to_string_pretty(&api::Revocations { revocations }).unwrap() + "\n";
        assert_eq!(printed(json(), &[part(1..4), part(4..4), part(4..6)], None), whole(part(1..6)));
        assert_eq!(printed(json(), &[], None), whole(Vec::new()));
        assert_eq!(printed(json(), &[Vec::new()], None), whole(Vec::new()));
    }

    #[test]
    fn json_that_breaks_off_is_json_and_says_so() {
        for parts in [vec![], vec![part(1..3)]] {
            let text = printed(Listing::new(true, REVOCATIONS), &parts, Some("the daemon is \"gone\""));
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(value["error"], "the daemon is \"gone\"");
            assert_eq!(
                value["revocations"].as_array().unwrap().len(),
                parts.iter().map(Vec::len).sum::<usize>()
            );
        }
    }

    #[test]
    fn a_table_in_parts_has_its_titles_once() {
        let text = printed(Listing::new(false, REVOCATIONS), &[part(1..3), part(3..5)], None);
        assert_eq!(text.matches("NUMBER").count(), 1);
        assert_eq!(text.lines().count(), 5);
        assert_eq!(printed(Listing::new(false, REVOCATIONS), &[Vec::new()], None), "No revocations.\n");
    }

    /// The lists are as they would be in one message, in JSON and as tables.
    #[test]
    fn lists_of_sessions_and_users_are_what_they_were() {
        let sessions: Vec<_> =
            (1..4).map(|id| api::SessionInfo { id, ..api::SessionInfo::default() }).collect();
        let mut listing = Listing::new(true, SESSIONS);
        let text = listing.part(&sessions[..1]).unwrap() + &listing.part(&sessions[1..]).unwrap();
        let whole = serde_json::to_string_pretty(&api::Sessions { sessions: sessions.clone() }).unwrap();
        assert_eq!(text + &listing.end(None), whole + "\n");
        let mut listing = Listing::new(false, SESSIONS);
        let text = listing.part(&sessions).unwrap() + &listing.end(None);
        assert_eq!(text, output::sessions(&api::Sessions { sessions }));
        let listed = api::ClusterSession { user: "alice".into(), ..api::ClusterSession::default() };
        let mut listing = Listing::new(true, ALL_SESSIONS);
        let text = listing.part(std::slice::from_ref(&listed)).unwrap() + &listing.end(None);
        let whole = serde_json::to_string_pretty(&api::ClusterSessions { sessions: vec![listed] }).unwrap();
        assert_eq!(text, whole + "\n");
        let nobody = Listing::new(true, USERS).end(None);
        assert_eq!(nobody, serde_json::to_string_pretty(&api::Users::default()).unwrap() + "\n");
        assert!(Listing::new(false, USERS).end(None).starts_with("Nobody"));
    }
}
