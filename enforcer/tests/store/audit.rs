//! R6: the audit log's chain on a real disk.

use enforcer::store::chain::{AuditLine, Finding, Start, Verified, Verifier};
use enforcer::store::{Reader, Settings, Write};

use crate::refusals::change;
use crate::upgrade::old;
use crate::world::{Folder, Run, line, look};

/// What is found, what has come of it, and the lines.
fn verify(folder: &Folder) -> (Vec<Finding>, Verified, Vec<AuditLine>) {
    let reader = Reader::open(&folder.path()).unwrap().unwrap();
    let (mut start, mut lines) = (None, Vec::new());
    let begin = |begins: Start| start = Some(begins);
    let ends = reader.audit(0, None, begin, |line| lines.push(line));
    let mut verifier = Verifier::new(start.unwrap(), None);
    let mut findings: Vec<_> = lines.iter().flat_map(|line| verifier.take(line)).collect();
    let ends = ends.unwrap();
    let (verified, rest) = verifier.end(ends.given, ends.put_in);
    findings.extend(rest);
    (findings, verified, lines)
}

fn say(run: &mut Run, numbers: std::ops::Range<u64>) {
    // one commit each, and several in one
    for number in numbers.clone().step_by(3) {
        let some = number..(number + 3).min(numbers.end);
        run.done(some.map(|number| Write::Audit(line(1_000_000 + number, &format!("line {number}")))));
    }
}

#[test]
fn r6_the_chain_goes_on_over_restarts_and_over_what_is_pruned() {
    let folder = Folder::new();
    let settings = Settings { audit_rows: 10, ..folder.settings() };
    let mut heads = Vec::new();
    for start in [0, 7, 14, 21] {
        let (mut run, _) = Run::open(&settings).unwrap();
        say(&mut run, start..start + 7);
        run.stop();
        let (findings, verified, _) = verify(&folder);
        assert_eq!(findings, [], "{start}");
        assert_eq!((verified.unchained, verified.head.as_ref().unwrap().line), (0, start + 7));
        heads.push(verified.head.unwrap());
    }
    let (_, verified, lines) = verify(&folder);
    assert_eq!((verified.lines, verified.first), (10, Some(19)));
    assert_eq!(lines[2].chain, Some(heads[2].chain.clone()), "line 21 is what it was");
    // a part of it stands by itself, wherever it begins: also where what it follows from was pruned
    let reader = Reader::open(&folder.path()).unwrap().unwrap();
    for (after, parts) in [(24, 4), (19, 9), (18, 10), (17, 10), (1, 10), (28, 0)] {
        let mut verifier = Verifier::new(Start::Part, None);
        let mut findings = Vec::new();
        let begin = |start| assert_eq!(start, Start::Part);
        reader.audit(after, None, begin, |line| findings.extend(verifier.take(&line))).unwrap();
        assert_eq!((findings, verifier.end(None, 0).0.lines), (vec![], parts), "{after}");
    }
}

/// However the clock went: what is pruned is the oldest lines, and no line between others.
#[test]
fn r6_a_clock_that_jumps_leaves_no_gap() {
    let folder = Folder::new();
    let settings = Settings { audit_days: 1, audit_rows: 10, ..folder.settings() };
    let (mut run, _) = Run::open(&settings).unwrap();
    let day = 86_400;
    for at in [10, 900, 11, 12, 901, 10, 1_000, 5, 6] {
        run.done([Write::Audit(line(at * day, "a line"))]);
        assert_eq!(verify(&folder).0, []);
    }
    let (_, verified, lines) = verify(&folder);
    assert_eq!(lines.last().unwrap().at, 6 * day, "the newest stays, whatever its time is");
    assert!(verified.lines <= 10);
    run.stop();
}

#[test]
fn r6_what_was_changed_by_hand_is_found() {
    for (sql, wanted) in [
        ("UPDATE audit SET reason = 'none' WHERE line = 4", vec![Finding::Altered(4)]),
        ("UPDATE audit SET at = at + 1 WHERE line = 9", vec![Finding::Altered(9)]),
        ("UPDATE audit SET complete = 0 WHERE line = 1", vec![Finding::Altered(1)]),
        ("UPDATE audit SET chain = NULL WHERE line = 4", vec![Finding::Unchained(4), Finding::Altered(5)]),
        ("UPDATE audit SET chain = upper(chain) WHERE line = 9", vec![Finding::Altered(9)]),
        ("DELETE FROM audit WHERE line IN (4, 5)", vec![Finding::Missing(4, 5)]),
        ("DELETE FROM audit WHERE line < 3", vec![Finding::Missing(1, 2)]),
        ("DELETE FROM audit WHERE line > 7", vec![Finding::Missing(8, 9)]),
        ("DELETE FROM audit", vec![Finding::Missing(1, 9)]),
        ("UPDATE audit SET line = 40 WHERE line = 4", vec![Finding::Missing(4, 4), Finding::Missing(10, 39)]),
        ("UPDATE audit SET chain = NULL", (1..=9).map(Finding::Unchained).collect()),
        // what a disk makes of a text stops nobody
        ("UPDATE audit SET chain = CAST(x'ff' AS TEXT) WHERE line = 9", vec![Finding::Altered(9)]),
        ("UPDATE audit SET text = CAST(x'ff' AS TEXT) WHERE line = 3", vec![Finding::Altered(3)]),
        (
            "INSERT INTO audit SELECT -1, at, what, 1, target, '', '', 1, '', '' FROM audit LIMIT 1",
            vec![Finding::PutIn(1)],
        ),
        ("CREATE INDEX more ON audit (what)", vec![]),
    ] {
        let folder = Folder::new();
        let (mut run, _) = folder.open();
        say(&mut run, 0..9);
        run.stop();
        change(&folder, sql);
        assert_eq!(verify(&folder).0, wanted, "{sql}");
        // it is no reason to stop, and stays to be seen
        let (mut run, _) = folder.open();
        say(&mut run, 9..12);
        run.stop();
        let later = verify(&folder).0;
        assert_eq!(later.is_empty(), wanted.is_empty(), "{sql}: {later:?}");
    }
}

#[test]
fn r5_r6_lines_of_before_there_was_a_chain_stay_and_those_after_them_have_one() {
    for version in 1..=3 {
        let folder = Folder::new();
        old(&folder, version);
        let (mut run, _) = folder.open();
        say(&mut run, 0..3);
        run.stop();
        let (findings, verified, lines) = verify(&folder);
        assert_eq!((findings, verified.lines, verified.unchained), (vec![], 4, 1));
        assert!(lines[0].chain.is_none() && lines[1..].iter().all(|line| line.chain.is_some()));
    }
    // before its daemon was started there is nothing to verify, and that is said
    let folder = Folder::new();
    old(&folder, 3);
    let reader = Reader::open(&folder.path()).unwrap().unwrap();
    let error = reader.audit(0, None, drop, drop).unwrap_err().to_string();
    assert!(error.contains('3') && error.contains('5'), "{error}");
    drop(reader);
    assert_eq!(look::<i64>(&folder.file(), "SELECT count(*) FROM audit"), 1);
}
