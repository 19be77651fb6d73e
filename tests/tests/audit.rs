//! The audit log as an administrator and an auditor have it: from real revocations of real sessions, over a kill.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use std::collections::BTreeSet;

use enforcer_tests::Era;
use enforcer_tests::enforcer::{DONE, ERROR, NOTHING_MATCHED, USAGE};
use enforcer_tests::scene::Scene;
use serde_json::Value;

fn lines(export: &str) -> Vec<Value> {
    export.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Verifies until every line is on the disk that these commands have made: a line is written soon after its answer.
fn verified(scene: &Scene, least: u64) -> Value {
    scene.lab.eventually("the lines are on the disk", || {
        let said = scene.enforcer.cli(&["audit", "verify", "--json"]).json;
        (said["lines"].as_u64() >= Some(least)).then_some(said)
    })
}

/// R6: who was revoked, by whom and why can be shown afterwards, by the log itself, by an export on another host, and by a
/// head that was kept elsewhere; what was changed, taken out or written anew is found.
#[test]
fn r6_what_was_done_can_be_shown_and_not_be_changed_unseen() {
    let mut scene = Scene::new("audit-log", Era::Bookworm);
    let folder = tempfile::tempdir().unwrap();
    let (_cookie, _tunnel) = scene.session(&scene.alice, "alice");
    scene.enforcer.cli(&["audit", "verify"]).code(NOTHING_MATCHED);
    scene.enforcer.cli(&["disconnect", "user", "-i", "alice", "--reason", "lost her \"laptop\""]).code(DONE);
    scene.enforcer.cli(&["lock", "user", "bob", "--reason", "on leave"]).code(DONE);
    let before = verified(&scene, 2);
    assert_eq!((&before["intact"], &before["first"]), (&true.into(), &1.into()), "{before}");
    let head = before["head"].as_str().unwrap().to_owned();

    scene.enforcer.kill();
    scene.enforcer.start();
    scene.enforcer.cli(&["unlock", "user", "bob"]).code(DONE);
    let least = before["lines"].as_u64().unwrap() + 1;
    assert_eq!(verified(&scene, least)["intact"], true);
    let said = scene.enforcer.cli(&["audit", "verify", "--head", &head]).code(DONE).stdout;
    assert!(said.contains("Each follows from the one before it.\nHead: "), "{said}");

    let export = scene.enforcer.cli(&["audit", "export"]).code(DONE).stdout;
    let all = lines(&export);
    let told = |what: &str, target: &str| {
        let is_it = |line: &&Value| line["what"] == what && line["target"].as_str().unwrap().contains(target);
        all.iter().find(is_it).unwrap_or_else(|| panic!("{what} {target}: {export}")).clone()
    };
    assert_eq!(told("revoked", "alice")["reason"], "lost her \"laptop\"");
    assert_eq!(told("locked", "bob")["asked_by"], told("revoked", "alice")["asked_by"]);
    told("unlocked", "bob");
    let numbers: BTreeSet<u64> = all.iter().map(|line| line["line"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=all.len() as u64).collect());

    // on another host: the file alone
    let verify = |text: &str, more: &[&str], code: i32| {
        let words = [&["audit", "verify", "--from", "-", "--json"], more].concat();
        scene.enforcer.cli_with(&words, text).code(code).json
    };
    verify(&export, &[], DONE);
    verify(&export, &["--head", &head], DONE);
    let of = verify(&export.replacen("on leave", "on duty", 1), &[], ERROR);
    let line = told("locked", "bob")["line"].as_u64().unwrap();
    let said = of["findings"][0].as_str().unwrap();
    assert!(said.starts_with(&format!("line {line} does not follow from line {}", line - 1)), "{of}");
    let short: String = export.lines().take(1).map(|line| format!("{line}\n")).collect();
    let said = verify(&short, &["--head", &head], ERROR)["findings"][0].clone();
    assert!(said.as_str().unwrap().contains("was cut off"), "{said}");
    let part = scene.enforcer.cli(&["audit", "export", "--after", "1"]).code(DONE).stdout;
    assert_eq!(lines(&part), all[1..]);
    verify(&part, &[], DONE);
    scene.enforcer.cli(&["audit", "export", "--after", "9999"]).code(NOTHING_MATCHED);
    let file = folder.path().join("audit.jsonl");
    let path = file.to_str().unwrap();
    std::fs::write(&file, format!("{export}no line\n")).unwrap();
    let said = scene.enforcer.cli(&["audit", "verify", "--from", path]).code(ERROR).stderr;
    assert!(
        said.contains(&format!("line {} of ", all.len() + 1)) && said.contains("enforcer audit export"),
        "{said}"
    );
    let said = scene.enforcer.cli(&["audit", "verify", "--head", "7"]).code(USAGE).stderr;
    assert!(said.contains("64 hexadecimal digits"), "{said}");

    // who may write the database, and forgets the chain
    let db = rusqlite::Connection::open(scene.enforcer.state().join("state.db")).unwrap();
    db.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    let sql = "UPDATE audit SET asked_by = 'nobody' WHERE target LIKE '%alice%' AND what = 'revoked'";
    assert_eq!(db.execute(sql, ()).unwrap(), 1);
    let said = scene.enforcer.cli(&["audit", "verify"]).code(ERROR).stdout;
    assert!(said.contains("NOT AS IT WAS WRITTEN: line ") && !said.contains("Each follows"), "{said}");
    // and who does not forget it, but for the head
    let mut before: Option<String> = None;
    for line in lines(&scene.enforcer.cli(&["audit", "export"]).code(DONE).stdout) {
        let mut line: enforcer::store::chain::AuditLine = serde_json::from_value(line).unwrap();
        line.before = before.take();
        let link = line.link();
        db.execute("UPDATE audit SET chain = ?1 WHERE line = ?2", (&link, line.line as i64)).unwrap();
        before = Some(link);
    }
    drop(db);
    scene.enforcer.cli(&["audit", "verify"]).code(DONE);
    let said = scene.enforcer.cli(&["audit", "verify", "--head", &head]).code(ERROR).stdout;
    assert!(said.contains("the log was written anew"), "{said}");
}
