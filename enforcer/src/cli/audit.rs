//! `enforcer audit`: the audit log, read from the state directory, or from an export.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Serialize;

use super::output;
use crate::config::{Config, ConfigError};
use crate::exit::Code;
use crate::store::Reader;
use crate::store::chain::{AuditLine, Finding, Head, Start, Verified, Verifier};

/// How many findings are told; the others are counted.
const MOST: usize = 20;
/// How many lines of an export are read at once.
const AT_ONCE: u32 = 500;
/// The longest line of an export, in bytes: four texts of 16 KiB, each byte written as `\u0000` at the worst.
const LONGEST: u64 = 512 * 1024;

#[derive(Debug, Clone, clap::Subcommand)]
pub enum Audit {
    /// Whether every line follows from the one before it, and none is missing
    #[command(
        after_help = "Each line has a digest of itself and of the line before it. Who may write the database can write all of \
                      them anew: keep the head that is printed where they cannot write (on paper, in a ticket, on another \
                      host), and give it the next time. A head should be younger than [state] audit-days and audit-rows \
                      keep lines. Without one it is not seen that the newest lines were cut off by somebody who knew how.\n\n\
                      Exit codes: 0 as it was written, 1 not so or not to be read, 3 there is no line, 4 not known: \
                      --head is older than the first line, or no line has a digest.\n\n\
                      Examples:\n  enforcer audit verify\n  enforcer audit verify --head $(cat head)\n  enforcer audit \
                      export | ssh log cat '>' vpn-1.jsonl; enforcer audit verify --from vpn-1.jsonl   (there)"
    )]
    Verify {
        /// What an earlier `verify` has printed as the head: the log has to go back to it
        #[arg(long, value_name = "LINE:DIGEST")]
        head: Option<Head>,
        /// Lines of an export instead of this host's log; `-` is standard input
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
    },
    /// All lines, as JSON, one a line
    #[command(
        after_help = "Columns as in the database, `at` in unix seconds; `chain` is the line's digest and `before` that of the \
                      line before it (docs/architecture.md says over which bytes). The output is the same with --json.\n\n\
                      Examples:\n  enforcer audit export > audit.jsonl\n  enforcer audit export --after 132 | jq -r \
                      'select(.what == \"lifted\") | .target'"
    )]
    Export {
        /// Only lines newer than that one
        #[arg(long, value_name = "LINE", default_value_t = 0)]
        after: u64,
    },
}

/// As `--json` prints it.
#[derive(Debug, Serialize)]
struct Shown {
    /// The directory, or the file.
    log: String,
    intact: bool,
    lines: u64,
    first: Option<u64>,
    last: Option<u64>,
    /// Of before there was a chain.
    unchained: u64,
    head: Option<String>,
    findings: Vec<String>,
    /// How many there are beyond those.
    more: usize,
    /// What is not known.
    doubts: Vec<String>,
}

pub(super) fn run(
    what: &Audit,
    config: impl FnOnce() -> Result<Config, ConfigError>,
    json: bool,
) -> anyhow::Result<Code> {
    match what {
        Audit::Verify { head, from: Some(path) } => verify_export(path, head.clone(), json),
        Audit::Verify { head, from: None } => verify_log(&config()?, head.clone(), json),
        Audit::Export { after } => export(&config()?, *after),
    }
}

fn open(config: &Config) -> anyhow::Result<Reader> {
    let directory = &config.state.directory;
    Reader::open(directory)?.with_context(|| {
        format!(
            "there is no database in {}: `enforcer run` makes it, or [state] directory names another folder",
            directory.display()
        )
    })
}

fn verify_log(config: &Config, kept: Option<Head>, json: bool) -> anyhow::Result<Code> {
    let reader = open(config)?;
    let mut findings = Findings::default();
    let (verifier, last) = (std::cell::RefCell::new(None), std::cell::Cell::new(None));
    let begin = |start| *verifier.borrow_mut() = Some(Verifier::new(start, kept));
    let ends = reader.audit(0, None, begin, |line| {
        if let Some(verifier) = verifier.borrow_mut().as_mut() {
            findings.add(verifier.take(&line));
        }
        last.set(Some(line.line));
    })?;
    let verifier = verifier.into_inner().context("the log was not begun")?;
    let (verified, rest) = verifier.end(ends.given, ends.put_in);
    findings.add(rest);
    tell(&config.state.directory, verified, last.get(), findings, json)
}

fn verify_export(path: &Path, kept: Option<Head>, json: bool) -> anyhow::Result<Code> {
    let input: Box<dyn Read> = if path == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        let file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        Box::new(file)
    };
    let path = if path == Path::new("-") { Path::new("standard input") } else { path };
    let mut input = BufReader::new(input);
    let mut verifier = Verifier::new(Start::Part, kept);
    let (mut findings, mut last) = (Findings::default(), None);
    for number in 1_u64.. {
        let mut text = Vec::new();
        let read = (&mut input).take(LONGEST).read_until(b'\n', &mut text);
        if read.with_context(|| format!("cannot read {}", path.display()))? == 0 {
            break;
        }
        let line: AuditLine = serde_json::from_slice(&text).with_context(|| {
            format!("line {number} of {} is none of `enforcer audit export`", path.display())
        })?;
        findings.add(verifier.take(&line));
        last = Some(line.line);
    }
    let (verified, rest) = verifier.end(None, 0);
    findings.add(rest);
    tell(path, verified, last, findings, json)
}

#[derive(Debug, Default)]
struct Findings {
    told: Vec<String>,
    more: usize,
    doubts: Vec<String>,
}

impl Findings {
    fn add(&mut self, findings: Vec<Finding>) {
        for finding in findings {
            if finding.is_doubt() {
                self.doubts.push(finding.to_string());
            } else if self.told.len() < MOST {
                self.told.push(finding.to_string());
            } else {
                self.more += 1;
            }
        }
    }
}

fn tell(
    log: &Path,
    verified: Verified,
    last: Option<u64>,
    findings: Findings,
    json: bool,
) -> anyhow::Result<Code> {
    let intact = findings.told.is_empty();
    let mut doubts = findings.doubts;
    if intact && verified.lines > 0 && verified.unchained == verified.lines {
        doubts.push(
            "no line has a digest: they were written before there was that, or it was taken from them".into(),
        );
    }
    let shown = Shown {
        log: log.display().to_string(),
        intact,
        lines: verified.lines,
        first: verified.first,
        last,
        unchained: verified.unchained,
        head: verified.head.map(|head| head.to_string()),
        findings: findings.told,
        more: findings.more,
        doubts,
    };
    output::print(json, &shown, text)?;
    Ok(match (intact, shown.lines) {
        (false, _) => Code::Error,
        _ if !shown.doubts.is_empty() => Code::Partial,
        (true, 0) => Code::Nothing,
        (true, _) => Code::Done,
    })
}

fn text(shown: &Shown) -> String {
    let log = output::safe(&shown.log);
    let mut text = match (shown.first, shown.last) {
        (Some(first), Some(last)) => {
            format!("The audit log in {log} has {} lines, {first} to {last}.\n", shown.lines)
        }
        _ => format!("The audit log in {log} has no line.\n"),
    };
    for finding in &shown.findings {
        text.push_str(&format!("NOT AS IT WAS WRITTEN: {finding}\n"));
    }
    if shown.more > 0 {
        text.push_str(&format!("… and {} more findings\n", shown.more));
    }
    let chained = shown.lines.saturating_sub(shown.unchained);
    if shown.intact && chained > 0 {
        text.push_str(&if shown.unchained == 0 {
            "Each follows from the one before it.\n".to_owned()
        } else {
            format!(
                "Each of the last {chained} follows from the one before it; {} are of before there were digests.\n",
                shown.unchained
            )
        });
    }
    for doubt in &shown.doubts {
        text.push_str(&format!("Not known: {doubt}\n"));
    }
    if let Some(head) = &shown.head {
        text.push_str(&format!("Head: {head}\n"));
    }
    text
}

fn export(config: &Config, after: u64) -> anyhow::Result<Code> {
    let reader = open(config)?;
    let mut out = std::io::stdout().lock();
    let (mut last, mut lines) = (after, 0_u64);
    loop {
        // whoever reads this may take his time, and the daemon must not wait for him: nothing is held meanwhile
        let mut text = Vec::new();
        let mut trouble = None;
        let so_far = lines;
        reader.audit(last, Some(AT_ONCE), drop, |line| {
            (last, lines) = (line.line, lines + 1);
            trouble = trouble.take().or(serde_json::to_writer(&mut text, &line).err());
            text.push(b'\n');
        })?;
        if let Some(trouble) = trouble {
            return Err(trouble).context("a line cannot be written as JSON");
        }
        match out.write_all(&text).and_then(|()| out.flush()) {
            Err(error) if output::has_read_enough(&error) => break,
            written => written.context("cannot write the lines")?,
        }
        if lines == so_far {
            break;
        }
    }
    Ok(if lines == 0 { Code::Nothing } else { Code::Done })
}
