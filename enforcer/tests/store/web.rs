//! Web sessions: there after opening again, gone when they are over.

use enforcer::session::{WebKey, WebRecord};
use enforcer::store::{OpenError, Write};

use crate::world::{Folder, keep, keep_web, look, sample, web};

#[test]
fn r5_a_web_session_is_there_until_it_is_over() {
    let folder = Folder::new();
    let (mut run, loaded) = folder.open();
    assert!(loaded.web.is_empty());
    run.done((1..=30).map(keep_web));
    run.done([1, 5, 99].map(|number| Write::WebGone(WebKey::from_bytes([number; 16]))));
    // used since, and with a token less: replaced whole
    let mut changed = web(2);
    changed.seen += 50;
    changed.tokens.truncate(1);
    run.done([Write::KeepWeb { record: Box::new(changed.clone()), lazy: true }]);
    run.stop();
    let again = folder.load();
    let wanted: Vec<WebRecord> = (2..=30)
        .filter(|number| *number != 5)
        .map(|number| if number == 2 { changed.clone() } else { web(number) })
        .collect();
    assert_eq!(again.web, wanted);
    // their tokens went with them
    let tokens: i64 = wanted.iter().map(|session| session.tokens.len() as i64).sum();
    assert_eq!(look::<i64>(&folder.file(), "SELECT count(*) FROM web_token"), tokens);
}

/// R5: what ends a session and what has ended it are written together.
#[test]
fn r5_an_end_is_not_reported_before_it_is_on_the_disk() {
    let folder = Folder::new();
    let (mut run, _) = folder.open();
    run.done([keep_web(1), keep_web(2)]);
    run.done([Write::WebGone(WebKey::from_bytes([1; 16])), keep(7)]);
    let crashed = folder.crash_copy();
    run.stop();
    let found = crashed.load();
    assert_eq!((found.web, found.records), (vec![web(2)], vec![sample(7)]));
}

#[test]
fn r5_a_changed_row_is_noticed() {
    for change in [
        "UPDATE web_session SET until = until + 1 WHERE username LIKE 'user 3 %'",
        "UPDATE web_session SET username = 'eve' WHERE username LIKE 'user 3 %'",
        "UPDATE web_token SET host = 'evil.example' WHERE host = 'host1.example'",
        "DELETE FROM web_token WHERE host = 'host1.example'",
        "PRAGMA foreign_keys = OFF; DELETE FROM web_session WHERE username LIKE 'user 3 %'",
    ] {
        let folder = Folder::new();
        let (mut run, _) = folder.open();
        run.done((1..=6).map(keep_web));
        run.stop();
        let db = rusqlite::Connection::open(folder.file()).unwrap();
        db.execute_batch(change).unwrap();
        assert!(db.changes() > 0, "{change}");
        db.close().unwrap();
        let error = folder.refused();
        assert!(matches!(error, OpenError::Corrupt { .. }), "{change}: {error}");
        assert!(error.to_string().contains("web_"), "{change}: {error}");
    }
}

/// A row that cannot be written is refused for itself, and takes nothing else with it.
#[test]
fn r7_what_is_too_large_is_refused_and_the_rest_is_written() {
    let folder = Folder::new();
    let (mut run, _) = folder.open();
    let huge = WebRecord { until: u64::MAX, ..web(2) };
    let mut long = web(3);
    long.tokens[0].wrapped = vec![0; 5_000];
    let results = run.write([
        keep_web(1),
        Write::KeepWeb { record: Box::new(huge), lazy: false },
        Write::KeepWeb { record: Box::new(long), lazy: false },
        keep_web(4),
    ]);
    assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, false, true]);
    // a digest is one session's
    let mut thief = web(5);
    thief.tokens = web(1).tokens;
    assert!(run.write([Write::KeepWeb { record: Box::new(thief), lazy: false }])[0].is_err());
    run.stop();
    assert_eq!(folder.load().web, [web(1), web(4)]);
}
