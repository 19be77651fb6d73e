//! `revoke --from FILE`: one explicit revocation a line, in the words of the command line.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Parser;

use super::{From, Revoke};
use crate::control::api;

/// A line may be this long; anything longer is no revocation.
const MAX_LINE: u64 = 1_024;

#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true, disable_version_flag = true)]
struct Line {
    #[command(subcommand)]
    what: Revoke,
}

/// Reads the lines one by one; an empty line and one that starts with `#` say nothing. The error names the line.
pub fn orders(
    file: &Path,
    from: &From,
) -> anyhow::Result<impl Iterator<Item = Result<api::RevokeRequest, String>> + use<>> {
    let reader: Box<dyn Read + Send> = if file == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(file).with_context(|| format!("cannot read {}", file.display()))?)
    };
    let from = from.clone();
    let mut reader = BufReader::new(reader);
    let mut number = 0_u64;
    Ok(std::iter::from_fn(move || {
        loop {
            number += 1;
            let mut line = Vec::new();
            match reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) => return Some(Err(format!("line {number}: {error}"))),
            }
            if line.len() as u64 == MAX_LINE && line.last() != Some(&b'\n') {
                let mut rest = Vec::new();
                while reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut rest).is_ok_and(|n| n > 0) {
                    if rest.last() == Some(&b'\n') {
                        break;
                    }
                    rest.clear();
                }
                return Some(Err(format!("line {number}: longer than {MAX_LINE} bytes")));
            }
            let line = String::from_utf8_lossy(&line);
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            return Some(parse(line, &from).map_err(|why| format!("line {number}: {why}")));
        }
    }))
}

/// How far it is, for whoever looks on: from the second second on, and once in each.
pub struct Progress {
    looked_on: bool,
    told: Instant,
    lines: u64,
    is_shown: bool,
}

impl Progress {
    /// `looked_on`: standard error is a terminal.
    pub fn new(looked_on: bool, now: Instant) -> Self {
        Self { looked_on, told: now, lines: 0, is_shown: false }
    }

    /// One line more was sent. What to print, if there is something.
    pub fn line(&mut self, now: Instant) -> Option<String> {
        self.lines += 1;
        if !self.looked_on || now.saturating_duration_since(self.told) < Duration::from_secs(1) {
            return None;
        }
        (self.told, self.is_shown) = (now, true);
        Some(format!("\r{} lines …", self.lines))
    }

    /// What takes it away again.
    pub fn end(&self) -> &'static str {
        if self.is_shown { "\r\x1b[K" } else { "" }
    }
}

fn parse(line: &str, from: &From) -> Result<api::RevokeRequest, String> {
    let line = Line::try_parse_from(line.split_whitespace()).map_err(|error| {
        let text = error.to_string();
        text.lines().next().unwrap_or("not a revocation").trim_start_matches("error: ").to_owned()
    })?;
    let mut order = super::run::explicit(&line.what);
    if order.reason.is_empty() {
        order.reason.clone_from(&from.change.reason);
    }
    order.dry_run |= from.change.dry_run;
    if order.for_seconds == 0 {
        order.for_seconds = from.stands.stands.map_or(0, |stands| stands.as_secs());
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Change, For};

    #[test]
    fn a_line_is_read_as_the_command_line_is() {
        let change = Change { reason: "r".into(), dry_run: false };
        let change =
            From { from: None, stands: For { stands: Some(std::time::Duration::from_secs(60)) }, change };
        let order = parse("address 10.0.0.1 --for 2h", &change).unwrap();
        assert_eq!((order.for_seconds, order.reason.as_str()), (7_200, "r"));
        assert_eq!(parse("address 10.0.0.1", &change).unwrap().for_seconds, 60);
        assert!(parse("flow tcp 192.0.2.1:1 198.51.100.1:443", &change).is_ok());
        for bad in ["address", "address 10.0.0.300", "flow tcp 1 2", "nonsense", "--help"] {
            assert!(parse(bad, &change).is_err(), "{bad}");
        }
    }

    #[test]
    fn progress_is_told_once_a_second_and_only_where_somebody_looks_on() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut quiet = Progress::new(false, start);
        assert_eq!((quiet.line(at(5_000)), quiet.end()), (None, ""));
        let mut progress = Progress::new(true, start);
        assert_eq!((progress.line(at(999)), progress.end()), (None, ""));
        assert_eq!(progress.line(at(1_000)).as_deref(), Some("\r2 lines …"));
        assert_eq!(progress.line(at(1_999)), None);
        assert_eq!(progress.line(at(2_000)).as_deref(), Some("\r4 lines …"));
        assert_eq!(progress.end(), "\r\x1b[K");
    }

    proptest::proptest! {
        #[test]
        fn no_line_makes_it_panic(line in ".{0,100}") {
            let from = From { from: None, stands: For::default(), change: Change::default() };
            let _ = parse(&line, &from);
        }
    }
}
