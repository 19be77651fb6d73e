//! The audit log's chain: each line carries a digest of itself and of the line before it, so that a line that was changed,
//! taken out or put in later is seen by whoever goes through them.
//!
//! It is a digest and no signature: who may write the database can write the whole chain anew. Whoever keeps a [`Head`]
//! elsewhere sees that as well.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Before everything that is digested.
const DOMAIN: &[u8] = b"enforcer audit 1\n";
/// What the first line follows from.
const BEGINNING: [u8; 32] = [0; 32];

/// A line of the audit log as it stands on the disk, and as one line of JSON in an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditLine {
    /// From 1, without gaps.
    pub line: u64,
    /// Unix seconds.
    pub at: u64,
    /// `revoked`, `settled`, `lifted`, `locked`, `unlocked`, `expired`, `bulk`
    pub what: String,
    /// The revocation's; 0: of none.
    pub number: u64,
    pub target: String,
    pub asked_by: String,
    pub reason: String,
    /// Everything was done.
    pub complete: bool,
    /// The receipt, in one line.
    pub text: String,
    /// The `chain` of the line before it; `None`: that one has none.
    pub before: Option<String>,
    /// SHA-256 over [`Self::before`] and everything above, 64 hexadecimal digits in lower case. `None`: it was written before
    /// there was a chain.
    pub chain: Option<String>,
}

impl AuditLine {
    /// What its `chain` has to be.
    ///
    /// SHA-256 over `enforcer audit 1\n`, the digest of the line before it (32 bytes; zeros where there is none), and the
    /// columns in their order: numbers as 8 bytes, big-endian, `complete` as one byte, texts as the length of their UTF-8
    /// (8 bytes, big-endian) and that.
    pub fn link(&self) -> String {
        let before = self.before.as_deref().and_then(digest_of).unwrap_or(BEGINNING);
        let mut hash = Sha256::new();
        hash.update(DOMAIN);
        hash.update(before);
        let number = |hash: &mut Sha256, number: u64| hash.update(number.to_be_bytes());
        let text = |hash: &mut Sha256, text: &str| {
            number(hash, text.len() as u64);
            hash.update(text.as_bytes());
        };
        number(&mut hash, self.line);
        number(&mut hash, self.at);
        text(&mut hash, &self.what);
        number(&mut hash, self.number);
        text(&mut hash, &self.target);
        text(&mut hash, &self.asked_by);
        text(&mut hash, &self.reason);
        hash.update([u8::from(self.complete)]);
        text(&mut hash, &self.text);
        super::row::hex(&hash.finalize())
    }
}

/// 64 hexadecimal digits in lower case.
fn digest_of(text: &str) -> Option<[u8; 32]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut digest = [0; 32];
    if text.len() != 2 * digest.len() {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(digest)
}

/// A line and its digest, as an administrator keeps it elsewhere: `132:` and 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub line: u64,
    pub chain: String,
}

/// No head of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not the head of an audit log: it is a line's number, a colon and 64 hexadecimal digits in lower case"
)]
pub struct BadHead;

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.chain)
    }
}

impl FromStr for Head {
    type Err = BadHead;

    fn from_str(text: &str) -> Result<Self, BadHead> {
        let (line, chain) = text.split_once(':').ok_or(BadHead)?;
        digest_of(chain).ok_or(BadHead)?;
        let line = line.parse().ok().filter(|number: &u64| number.to_string() == line);
        Ok(Self { line: line.ok_or(BadHead)?, chain: chain.to_owned() })
    }
}

/// What is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// From and to, both included.
    Missing(u64, u64),
    /// Its digest is another one.
    Altered(u64),
    /// It has none, and the line before it has one.
    Unchained(u64),
    /// Lines do not rise.
    Disorder(u64),
    /// The line of a head that was kept is there, and is another one.
    WrittenAnew(u64),
    /// The line of a head that was kept is not there any more, and is newer than the last one.
    CutOff(u64),
    /// The line of a head that was kept is older than the first one here: nothing can be told of it.
    TooOld(u64),
    /// So many lines stand before the first.
    PutIn(u64),
}

impl Finding {
    /// Something is not known, and nothing is wrong.
    pub fn is_doubt(&self) -> bool {
        matches!(self, Self::TooOld(_))
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(from, to) if from == to => write!(f, "line {from} is missing"),
            Self::Missing(from, to) => write!(f, "lines {from} to {to} are missing"),
            Self::Altered(1) => f.write_str("line 1 is not as it was written"),
            Self::Altered(line) => {
                let before = line.saturating_sub(1);
                write!(
                    f,
                    "line {line} does not follow from line {before}: one of them is not as it was written"
                )
            }
            Self::Unchained(line) => write!(f, "line {line} has no digest, though the one before it has"),
            Self::Disorder(line) => write!(f, "line {line} stands behind a later one"),
            Self::WrittenAnew(line) => {
                write!(f, "line {line} is another one than that of --head: the log was written anew")
            }
            Self::CutOff(line) => write!(f, "line {line}, of --head, is not there: the log was cut off"),
            Self::TooOld(line) => write!(
                f,
                "line {line}, of --head, is older than the first line here: whether what is here goes back to it cannot be \
                 told. Keep a newer head ([state] audit-days and audit-rows say how long lines are kept)"
            ),
            Self::PutIn(1) => f.write_str("a line stands before line 1"),
            Self::PutIn(lines) => write!(f, "{lines} lines stand before line 1"),
        }
    }
}

/// A line's number and its digest: what the next one follows from.
pub type Before = (u64, Option<String>);

/// What the lines begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// All of the log.
    Log {
        /// The last line that was pruned, and its digest, if any was.
        pruned: Option<Before>,
        /// The first line that has to have a digest: those before it were written, and pruned, by older versions.
        chained_since: u64,
    },
    /// A part of it: its first line says what it follows from.
    Part,
}

/// Goes through the lines in their order.
#[derive(Debug)]
pub struct Verifier {
    start: Start,
    kept: Option<Head>,
    /// What the first line follows from.
    begins: Option<Before>,
    last: Option<Before>,
    first: Option<u64>,
    lines: u64,
    unchained: u64,
    kept_was_seen: bool,
}

/// What has come of it, besides the findings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    pub lines: u64,
    pub first: Option<u64>,
    /// Lines of before there was a chain.
    pub unchained: u64,
    /// `None`: no line has a digest.
    pub head: Option<Head>,
}

impl Verifier {
    /// `kept`: what an earlier look has found to be the last line.
    pub fn new(start: Start, kept: Option<Head>) -> Self {
        let begins = match &start {
            Start::Log { pruned, .. } => Some(pruned.clone().unwrap_or_default()),
            Start::Part => None,
        };
        Self { start, kept, begins, last: None, first: None, lines: 0, unchained: 0, kept_was_seen: false }
    }

    pub fn take(&mut self, line: &AuditLine) -> Vec<Finding> {
        let mut findings = Vec::new();
        let said = || (line.line.saturating_sub(1), line.before.clone());
        let begins = self.begins.get_or_insert_with(said);
        let (number, before) = self.last.clone().unwrap_or_else(|| begins.clone());
        let chained_since = self.chained_since();
        let mut follows = true;
        if line.line <= number {
            findings.push(Finding::Disorder(line.line));
            follows = false;
        } else if let Some(missing) = missing(number, line.line, chained_since) {
            findings.push(missing);
            follows = false;
        }
        let is_whole = matches!(self.start, Start::Log { .. });
        match &line.chain {
            None if before.is_some() || is_whole && line.line >= chained_since => {
                findings.push(Finding::Unchained(line.line));
            }
            None => {}
            Some(chain) if follows => {
                let right = AuditLine { before, ..line.clone() }.link();
                if *chain != right {
                    findings.push(Finding::Altered(line.line));
                }
            }
            Some(_) => {}
        }
        if let Some(kept) = self.kept.as_ref().filter(|kept| kept.line == line.line) {
            self.kept_was_seen = true;
            if line.chain.as_ref() != Some(&kept.chain) {
                findings.push(Finding::WrittenAnew(line.line));
            }
        }
        self.first.get_or_insert(line.line);
        self.lines += 1;
        self.unchained += u64::from(line.chain.is_none());
        self.last = Some((line.line, line.chain.clone()));
        findings
    }

    fn chained_since(&self) -> u64 {
        match self.start {
            Start::Log { chained_since, .. } => chained_since,
            Start::Part => 0,
        }
    }

    /// `given`: the last line's number as the database has noted it beside the lines, if it has. `put_in`: how many lines stand
    /// before line 1.
    pub fn end(self, given: Option<u64>, put_in: u64) -> (Verified, Vec<Finding>) {
        let chained_since = self.chained_since();
        let begins = self.begins.unwrap_or_default();
        let last = self.last.as_ref().map_or(begins.0, |(number, _)| *number);
        let mut findings: Vec<Finding> = (given.and_then(|given| given.checked_add(1)))
            .and_then(|next| missing(last, next, chained_since))
            .into_iter()
            .collect();
        if put_in > 0 {
            findings.push(Finding::PutIn(put_in));
        }
        if let Some(kept) = self.kept.filter(|_| !self.kept_was_seen) {
            if kept.line == begins.0 {
                if begins.1.as_ref() != Some(&kept.chain) {
                    findings.push(Finding::WrittenAnew(kept.line));
                }
            } else if kept.line > last {
                findings.push(Finding::CutOff(kept.line));
            } else {
                findings.push(Finding::TooOld(kept.line));
            }
        }
        let head = self.last.and_then(|(line, chain)| chain.map(|chain| Head { line, chain }));
        let (lines, first, unchained) = (self.lines, self.first, self.unchained);
        (Verified { lines, first, unchained, head }, findings)
    }
}

/// Lines between two that have to be there.
fn missing(before: u64, line: u64, chained_since: u64) -> Option<Finding> {
    let (from, to) = (before.saturating_add(1).max(chained_since), line.saturating_sub(1));
    (from <= to).then_some(Finding::Missing(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn log(lines: u64) -> Vec<AuditLine> {
        let mut all: Vec<AuditLine> = Vec::new();
        for line in 1..=lines {
            let mut one = AuditLine {
                line,
                at: 1_800_000_000 + line,
                what: "revoked".into(),
                number: 100 + line,
                target: format!("user u{line}"),
                asked_by: "root".into(),
                reason: String::new(),
                complete: line % 3 != 0,
                text: "done; packets: 1 flow".into(),
                before: all.last().and_then(|last| last.chain.clone()),
                chain: None,
            };
            one.chain = Some(one.link());
            all.push(one);
        }
        all
    }

    fn verify(lines: &[AuditLine], start: Start, kept: Option<Head>, given: Option<u64>) -> Vec<Finding> {
        let mut verifier = Verifier::new(start, kept);
        let mut findings: Vec<Finding> = lines.iter().flat_map(|line| verifier.take(line)).collect();
        findings.extend(verifier.end(given, 0).1);
        findings
    }

    const ALL: Start = Start::Log { pruned: None, chained_since: 1 };

    fn since(all: &[AuditLine], pruned: usize) -> Start {
        let before = (pruned as u64, all[pruned - 1].chain.clone());
        Start::Log { pruned: Some(before), chained_since: 1 }
    }

    fn whole(lines: &[AuditLine]) -> Vec<Finding> {
        verify(lines, ALL, None, Some(lines.len() as u64))
    }

    fn head(line: &AuditLine) -> Head {
        Head { line: line.line, chain: line.chain.clone().unwrap() }
    }

    /// The digest as `sha256sum` makes it of the documented bytes.
    #[test]
    fn a_link_is_what_the_documentation_says() {
        let line = &log(1)[0];
        let mut bytes = b"enforcer audit 1\n".to_vec();
        bytes.extend([0; 32]);
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 1]);
        bytes.extend(1_800_000_001_u64.to_be_bytes());
        let text = |text: &str| [&(text.len() as u64).to_be_bytes()[..], text.as_bytes()].concat();
        bytes.extend(text("revoked"));
        bytes.extend(101_u64.to_be_bytes());
        bytes.extend([text("user u1"), text("root"), text("")].concat());
        bytes.push(1);
        bytes.extend(text("done; packets: 1 flow"));
        assert_eq!(line.link(), crate::store::row::hex(&Sha256::digest(&bytes)));
        assert_eq!(whole(&log(5)), []);
    }

    #[test]
    fn what_was_pruned_and_what_is_older_than_the_chain_is_no_finding() {
        let all = log(9);
        assert_eq!(verify(&all[4..], since(&all, 4), None, Some(9)), []);
        assert_eq!(verify(&all[4..], since(&all, 3), None, Some(9)), [Finding::Missing(4, 4)]);
        assert_eq!(verify(&all[4..], ALL, None, None), [Finding::Missing(1, 4)]);
        assert_eq!(verify(&all[4..], Start::Part, None, None), []);
        assert_eq!(verify(&[], since(&all, 9), None, Some(9)), []);
        assert_eq!(verify(&[], since(&all, 7), None, Some(9)), [Finding::Missing(8, 9)]);
        // five lines of before there was a chain, of which two are there
        let mut old = all.clone();
        let mut before = None;
        for line in &mut old {
            line.before = before.take();
            line.chain = (line.line > 5).then(|| line.link());
            before = line.chain.clone();
        }
        let later = |pruned| Start::Log { pruned, chained_since: 6 };
        assert_eq!(verify(&old[3..], later(None), None, Some(9)), []);
        assert_eq!(verify(&old[5..], later(Some((5, None))), None, Some(9)), []);
        // an older version has left gaps where a clock had jumped
        let gaps = [&old[..2], &old[3..4], &old[5..]].concat();
        assert_eq!(verify(&gaps, later(None), None, Some(9)), []);
        assert_eq!(verify(&old[..4], later(None), None, Some(5)), []);
        assert_eq!(verify(&old[6..], later(Some((5, None))), None, Some(9)), [Finding::Missing(6, 6)]);
        let bare: Vec<AuditLine> = all.iter().map(|line| AuditLine { chain: None, ..line.clone() }).collect();
        assert_eq!(whole(&bare), (1..=9).map(Finding::Unchained).collect::<Vec<_>>());
        old[7].chain = None;
        assert_eq!(verify(&old, later(None), None, Some(9)), [Finding::Unchained(8), Finding::Altered(9)]);
    }

    #[test]
    fn whoever_kept_a_head_sees_what_was_written_anew_or_cut_off() {
        let (all, mut anew) = (log(9), log(9));
        anew[2].reason = "none".into();
        for at in 2..9 {
            anew[at].before = anew[at - 1].chain.clone();
            anew[at].chain = Some(anew[at].link());
        }
        assert_eq!(whole(&anew), [], "the chain alone does not show it");
        let kept = Some(head(&all[4]));
        assert_eq!(verify(&all, ALL, kept.clone(), Some(9)), []);
        assert_eq!(verify(&anew, ALL, kept.clone(), Some(9)), [Finding::WrittenAnew(5)]);
        assert_eq!(verify(&all[..3], ALL, kept.clone(), None), [Finding::CutOff(5)]);
        assert_eq!(verify(&all[..3], ALL, None, Some(9)), [Finding::Missing(4, 9)]);
        assert_eq!(verify(&all[5..], since(&all, 5), kept.clone(), Some(9)), []);
        assert_eq!(verify(&all[6..], since(&all, 6), kept.clone(), Some(9)), [Finding::TooOld(5)]);
        assert_eq!(
            verify(&all[5..], Start::Part, kept.clone(), None),
            [],
            "its first line says what it follows from"
        );
        assert_eq!(verify(&anew[5..], Start::Part, kept, None), [Finding::WrittenAnew(5)]);
    }

    #[test]
    fn a_head_has_one_spelling() {
        let kept = head(&log(1)[0]);
        assert_eq!(kept.to_string().parse(), Ok(kept.clone()));
        for bad in
            ["", "1", "1:", ":00", &format!("01:{}", kept.chain), &format!("1:{}", kept.chain.to_uppercase())]
        {
            assert_eq!(bad.parse::<Head>(), Err(BadHead), "{bad}");
        }
    }

    fn mutation() -> impl Strategy<Value = (usize, u8, String)> {
        (0..20_usize, 0..10_u8, "[a-z]{1,8}")
    }

    proptest! {
        /// Whatever is changed in one line, taken out, doubled or exchanged is found.
        #[test]
        fn what_is_changed_is_found((at, what, text) in mutation()) {
            let mut lines = log(20);
            let before = lines.clone();
            match what {
                0 => lines[at].at += 1,
                1 => lines[at].what.push_str(&text),
                2 => lines[at].number ^= 1,
                3 => lines[at].target.push_str(&text),
                4 => lines[at].asked_by.insert_str(0, &text),
                5 => lines[at].reason = text,
                6 => lines[at].complete ^= true,
                7 => lines[at].text.push_str(&text),
                8 => drop(lines.remove(at)),
                _ => {
                    // from one column into the next
                    let moved = lines[at].target.pop().unwrap();
                    lines[at].asked_by.insert(0, moved);
                }
            }
            prop_assert_ne!(&lines, &before);
            let found = verify(&lines, ALL, None, Some(20));
            prop_assert_eq!(found.len(), 1, "{:?}", found);
        }

        #[test]
        fn no_line_of_an_export_makes_it_fall(text in "\\PC{0,300}") {
            if let Ok(line) = serde_json::from_str::<AuditLine>(&text) {
                Verifier::new(Start::Part, None).take(&line);
            }
        }
    }
}
