//! A list that comes in parts, printed as it comes: the memory for it is that of one part.

use std::io::Write as _;

use crate::control::{ControlClient, api};
use crate::exit::Code;

use super::output::{self, Columns};
use super::run::explain;

/// `show revocations`.
pub async fn revocations(client: &mut ControlClient, json: bool) -> anyhow::Result<Code> {
    let mut parts = client.list_revocations(api::ListRequest::default()).await?.into_inner();
    let mut listing = if json { Listing::Json { any: false } } else { Listing::Table(None) };
    loop {
        let (text, end) = match parts.message().await {
            Ok(Some(part)) => (listing.part(&part.revocations)?, None),
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

enum Listing {
    Table(Option<Columns>),
    /// Whether something was printed yet.
    Json {
        any: bool,
    },
}

impl Listing {
    fn part(&mut self, part: &[api::RevocationInfo]) -> anyhow::Result<String> {
        let mut text = String::new();
        match self {
            Self::Table(_) if part.is_empty() => {}
            Self::Table(columns) => {
                let rows: Vec<Vec<String>> = part.iter().map(output::revocation).collect();
                let columns = match columns {
                    Some(columns) => columns,
                    None => {
                        let new =
                            columns.insert(Columns::new(&output::REVOCATIONS, output::terminal_width()));
                        text += &new.titles(&rows);
                        new
                    }
                };
                text += &columns.lines(&rows);
            }
            Self::Json { any } => {
                for one in part {
                    text += if *any { ",\n" } else { HEAD };
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
        match self {
            Self::Table(Some(_)) => String::new(),
            Self::Table(None) => "No revocations.\n".to_owned(),
            Self::Json { any } => {
                let (head, tail) = if *any { ("", "\n  ]") } else { (HEAD.trim_end(), "]") };
                let error = why.map(|why| format!(",\n  \"error\": {}", serde_json::json!(why)));
                format!("{head}{tail}{}\n}}\n", error.unwrap_or_default())
            }
        }
    }
}

const HEAD: &str = "{\n  \"revocations\": [\n";

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
    fn printed(mut listing: Listing, parts: &[Vec<api::RevocationInfo>], why: Option<&str>) -> String {
        let mut text: String = parts.iter().map(|part| listing.part(part).unwrap()).collect();
        text += &listing.end(why);
        text
    }

    #[test]
    fn json_in_parts_is_what_it_would_be_in_one() {
        let json = || Listing::Json { any: false };
        let whole =
            |revocations| serde_json::to_string_pretty(&api::Revocations { revocations }).unwrap() + "\n";
        assert_eq!(printed(json(), &[part(1..4), part(4..4), part(4..6)], None), whole(part(1..6)));
        assert_eq!(printed(json(), &[], None), whole(Vec::new()));
        assert_eq!(printed(json(), &[Vec::new()], None), whole(Vec::new()));
    }

    #[test]
    fn json_that_breaks_off_is_json_and_says_so() {
        for parts in [vec![], vec![part(1..3)]] {
            let text = printed(Listing::Json { any: false }, &parts, Some("the daemon is \"gone\""));
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
        let text = printed(Listing::Table(None), &[part(1..3), part(3..5)], None);
        assert_eq!(text.matches("NUMBER").count(), 1);
        assert_eq!(text.lines().count(), 5);
        assert_eq!(printed(Listing::Table(None), &[Vec::new()], None), "No revocations.\n");
    }
}
