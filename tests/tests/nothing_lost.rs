//! R5: what was answered survives the daemon's death, a full disk, a broken database and a start of the host; R6: what
//! does not is said. With real ocserv, clients, file systems.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use enforcer_tests::enforcer::{Config, DONE, ERROR, NOTHING_MATCHED, PARTIAL, quoted};
use enforcer_tests::probe::Probe;
use enforcer_tests::process::{BOUND, command, eventually, succeed};
use enforcer_tests::receipt::list;
use enforcer_tests::scene::Scene;
use enforcer_tests::{Connect, Enforcer, Era, Lab};

/// A small file system, away with the test.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(path: &Path) -> Self {
        fs::create_dir_all(path).expect("a folder");
        let at = path.display().to_string();
        succeed(command("mount", ["-t", "tmpfs", "-o", "size=2m,mode=0700", "none", &at]), "");
        Self(path.to_owned())
    }

    fn remount(&self, how: &str) {
        let at = self.0.display().to_string();
        succeed(command("mount", ["-o", &format!("remount,{how}"), &at]), "");
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let mut open = fs::OpenOptions::new();
        let mut file = open.create(true).append(true).open(self.0.join("ballast")).expect("a file");
        let block = vec![0; 4_096];
        while std::io::Write::write_all(&mut file, &block).is_ok() {}
    }

    fn empty(&self) {
        fs::remove_file(self.0.join("ballast")).expect("the ballast");
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = command("umount", ["--lazy", &self.0.display().to_string()]).status();
    }
}

/// A gateway without ocserv, whose state is on a small file system.
struct Small {
    enforcer: Enforcer,
    disk: Tmpfs,
    probe: Probe,
    _lab: Lab,
}

impl Small {
    fn new(name: &str) -> Self {
        let lab = Lab::new(name);
        let ocserv = enforcer_tests::Ocserv::new(&lab, Era::Bookworm, 0);
        let disk = Tmpfs::mount(&lab.work().join("disk"));
        let state = quoted(&disk.0.join("state").display().to_string());
        let config = Config::new(&[&ocserv]).set("state", "directory", &state);
        let mut enforcer = Enforcer::prepare(&lab, &config);
        enforcer.start();
        let probe = Probe::new(&lab);
        Self { enforcer, disk, probe, _lab: lab }
    }

    fn address(&self, n: u32) -> String {
        Probe::address(n).to_string()
    }

    fn revoke(&self, n: u32, code: i32) -> enforcer_tests::Answer {
        self.enforcer.cli(&["revoke", "address", &self.address(n), "--json"]).code(code)
    }

    #[track_caller]
    fn passes(&mut self, n: u32, does: bool) {
        let address = Probe::address(n);
        assert_eq!(self.probe.reached(&[address]).contains(&address), does, "{address}");
    }

    fn unwritten(&self) -> u64 {
        self.enforcer.status()["disk"]["unwritten"].as_u64().expect("a count")
    }

    /// Fills the disk until a revocation stays unwritten: the database makes room for itself as long as it can, by
    /// bringing its log in. Which one, and its answer.
    fn fill(&mut self) -> (u32, enforcer_tests::Answer) {
        for n in 100..150 {
            self.disk.fill();
            let answer = self.enforcer.cli(&["revoke", "address", &self.address(n), "--json"]);
            self.disk.fill();
            // it is tried again every two seconds
            let stays = answer.code == PARTIAL
                && (0..30).all(|_| {
                    std::thread::sleep(std::time::Duration::from_millis(100));
                    self.unwritten() > 0
                });
            if stays {
                return (n, answer);
            }
        }
        panic!("the disk does not become full");
    }

    #[track_caller]
    fn everything_is_written(&self) {
        eventually("everything is written", BOUND, || (self.unwritten() == 0).then_some(()));
    }
}

/// R5, R6: with the disk full every live layer acts, the answer says what is missing, and it is made good.
#[test]
fn r5_disk_full() {
    let mut small = Small::new("disk-full");
    small.revoke(1, DONE);
    let (n, answer) = small.fill();
    assert!(answer.receipt().text("disk").contains("lost at a reboot"), "{answer:?}");
    assert!(answer.stdout.contains("the disk is full"), "{}", answer.stdout);
    small.passes(n, false);
    small.passes(3, true);
    // a lift has to be on the disk first
    let number = answer.receipt().number().expect("a number").to_string();
    let refused = small.enforcer.cli(&["lift", &number]).code(ERROR);
    assert!(
        refused.stderr.contains("not lifted") && refused.stderr.contains("the disk is full"),
        "{refused:?}"
    );
    small.passes(n, false);
    let check = small.enforcer.cli(&["check"]).code(ERROR);
    assert!(check.stdout.contains("would be lost at a reboot"), "{}", check.stdout);
    // a death in the middle of it
    small.enforcer.kill();
    small.enforcer.start();
    small.passes(1, false);
    small.passes(n, false);
    small.disk.empty();
    small.everything_is_written();
    small.enforcer.stop();
    small.enforcer.reboot("11111111-2222-3333-4444-555555555555");
    small.passes(n, true);
    small.enforcer.start();
    small.passes(1, false);
    small.passes(n, false);
    small.passes(3, true);
    small.enforcer.cli(&["lift", &number]).code(DONE);
    small.passes(n, true);
}

/// R5, R6: the same with a file system that has become read-only.
#[test]
fn r5_disk_read_only() {
    let mut small = Small::new("disk-ro");
    small.revoke(1, DONE);
    // not while somebody has a file open for writing
    small.enforcer.kill();
    small.disk.remount("ro");
    small.enforcer.start();
    let check = small.enforcer.cli(&["check"]).code(ERROR);
    assert!(check.stdout.contains("read-only"), "{}", check.stdout);
    let answer = small.revoke(2, PARTIAL);
    assert!(answer.stdout.contains("read-only"), "{}", answer.stdout);
    small.passes(2, false);
    small.enforcer.kill();
    small.enforcer.start();
    small.passes(1, false);
    small.passes(2, false);
    small.revoke(4, PARTIAL);
    small.passes(4, false);
    small.disk.remount("rw");
    small.everything_is_written();
    small.enforcer.stop();
    small.enforcer.reboot("11111111-2222-3333-4444-555555555555");
    small.enforcer.start();
    for n in [1, 2, 4] {
        small.passes(n, false);
    }
    small.passes(3, true);
}

/// R5: a broken database is refused, what is in force stays so, and `check --repair` loses nothing of it.
#[test]
fn r5_broken_database() {
    let mut small = Small::new("disk-broken");
    let number = small.revoke(1, DONE).receipt().number().expect("a number");
    small.enforcer.cli(&["lock", "user", "carol", "--json"]);
    small.enforcer.stop();
    let database = small.disk.0.join("state/state.db");
    let good = fs::read(&database).expect("the database");
    for (what, bytes) in [
        ("truncated", good[..good.len() / 2].to_vec()),
        ("no database", b"not a database at all".to_vec()),
        ("damaged", {
            let mut bytes = good.clone();
            let middle = bytes.len() / 2;
            bytes[100..middle].fill(0x5a);
            bytes
        }),
    ] {
        fs::write(&database, bytes).expect("the database");
        let failed = small.enforcer.fails_to_start();
        assert_eq!(failed.code, ERROR, "{what}: {failed:?}");
        assert!(
            failed.stderr.contains("state.db") && failed.stderr.contains("check --repair"),
            "{what}: {failed:?}"
        );
        small.passes(1, false);
        let check = small.enforcer.cli(&["check"]).code(ERROR);
        assert!(check.stdout.contains("check --repair"), "{what}: {}", check.stdout);
        let repaired = small.enforcer.cli(&["check", "--repair"]).code(DONE);
        assert!(repaired.stdout.contains("state.db.broken"), "{what}: {}", repaired.stdout);
        small.enforcer.start();
        small.passes(1, false);
        small.passes(3, true);
        let next = small.revoke(5, DONE).receipt().number().expect("a number");
        assert!(next > number, "{what}: number {next} was given before");
        small.enforcer.cli(&["lift", &next.to_string()]).code(DONE);
        small.everything_is_written();
        small.enforcer.stop();
    }
    // what was taken over from the kernel alone is on the disk again
    small.enforcer.reboot("11111111-2222-3333-4444-555555555555");
    small.enforcer.start();
    small.passes(1, false);
    let users = small.enforcer.cli(&["show", "users", "--json"]).json;
    assert_eq!(list(&users, "users").len(), 1, "the lock stands: {users}");
}

/// R7: at a table's bound the answer is a clear error, and nothing older goes for it.
#[test]
fn r7_full_table() {
    let lab = Lab::new("full-table");
    let ocserv = enforcer_tests::Ocserv::new(&lab, Era::Bookworm, 0);
    let config = Config::new(&[&ocserv]).set("kernel.capacity", "addresses", "2");
    let mut enforcer = Enforcer::prepare(&lab, &config);
    enforcer.start();
    let mut probe = Probe::new(&lab);
    let revoke = |enforcer: &Enforcer, n: u32| {
        enforcer.cli(&["revoke", "address", &Probe::address(n).to_string(), "--json"])
    };
    revoke(&enforcer, 1).code(DONE);
    revoke(&enforcer, 2).code(DONE);
    let refused = revoke(&enforcer, 3).code(PARTIAL);
    assert!(refused.stdout.contains("the table addresses is full: it holds 2 entries"), "{refused:?}");
    let all: Vec<Ipv4Addr> = (1..=3).map(Probe::address).collect();
    assert_eq!(probe.reached(&all).into_iter().collect::<Vec<_>>(), [all[2]]);
    // a larger one, without a gap and without an unload
    enforcer.stop();
    enforcer.configure(&config.set("kernel.capacity", "addresses", "3"));
    enforcer.start();
    revoke(&enforcer, 3).code(DONE);
    assert!(probe.reached(&all).is_empty());
}

/// A lock refuses every login of that person, also a fresh one, and also without the daemon; nobody else's. After
/// `unlock` a fresh login works at once (R4), and the session that the lock has ended stays ended (R2).
fn lock(name: &str, era: Era) {
    let mut scene = Scene::new(name, era);
    let (old, mut tunnel) = scene.session(&scene.alice, "alice");
    let locked =
        scene.enforcer.cli(&["lock", "user", "alice", "--reason", "laptop lost", "--json"]).code(DONE);
    assert!(locked.receipt().complete(), "{locked:?}");
    tunnel.wait_end();
    let fresh = scene.alice.authenticate(&scene.server, "alice");
    scene.refused(&scene.alice, &fresh);
    scene.refused(&scene.alice, &old);
    scene.bob.session(&scene.server, "bob").1.log_out();
    let shown = scene.enforcer.cli(&["show", "users"]).code(DONE).stdout;
    assert!(shown.contains("until unlocked"), "{shown}");
    assert_eq!(scene.enforcer.status()["locks_in_force"], 1);
    // without the daemon
    scene.enforcer.kill();
    let fresh = scene.alice.authenticate(&scene.server, "alice");
    scene.refused(&scene.alice, &fresh);
    scene.bob.session(&scene.server, "bob").1.log_out();
    scene.enforcer.start();
    let fresh = scene.alice.authenticate(&scene.server, "alice");
    scene.refused(&scene.alice, &fresh);
    scene.enforcer.cli(&["unlock", "user", "alice"]).code(DONE);
    scene.alice.session(&scene.server, "alice").1.log_out();
    scene.refused(&scene.alice, &old);
    scene.enforcer.cli(&["unlock", "user", "alice"]).code(NOTHING_MATCHED);
}

#[test]
fn r2_lock_bookworm() {
    lock("lock-bookworm", Era::Bookworm);
}

#[test]
fn r2_lock_trixie() {
    lock("lock-trixie", Era::Trixie);
}

#[test]
fn r2_lock_sid() {
    lock("lock-sid", Era::Sid);
}

/// A lock for a time ends by itself.
#[test]
fn r4_lock_for_a_time() {
    let scene = Scene::new("lock-time", Era::Bookworm);
    scene.enforcer.cli(&["lock", "user", "alice", "--for", "4s"]).code(DONE);
    let cookie = scene.alice.authenticate(&scene.server, "alice");
    scene.refused(&scene.alice, &cookie);
    eventually("the lock is over", BOUND, || (scene.enforcer.status()["locks_in_force"] == 0).then_some(()));
    scene.alice.session(&scene.server, "alice").1.log_out();
}

/// A lock is a person's: where the realm says so, in whatever case.
#[test]
fn r2_lock_folds_case() {
    let scene = Scene::with(
        "lock-case",
        Era::Bookworm,
        |ocserv| ocserv.user("Alice"),
        |config| config.set("realms.default", "case", "\"fold\""),
    );
    scene.enforcer.cli(&["lock", "user", "ALICE"]).code(DONE);
    for user in ["alice", "Alice"] {
        let cookie = scene.alice.authenticate(&scene.server, user);
        scene.refused(&scene.alice, &cookie);
    }
    scene.bob.session(&scene.server, "bob").1.log_out();
}

/// R2, R3, R5: the host is started anew. The lock, the explicit revocation and the cookies stand before the daemon
/// runs (the gate reads the disk) and after; nothing of the sessions that are gone hits their successors.
#[test]
fn r5_reboot() {
    let mut scene = Scene::new("reboot", Era::Bookworm);
    let mut probe = Probe::new(&scene.lab);
    let (cookie, mut tunnel) = scene.session(&scene.bob, "bob");
    let address = tunnel.ip(false).to_string();
    scene.enforcer.cli(&["lock", "user", "alice"]).code(DONE);
    let explicit = Probe::address(1);
    scene.enforcer.cli(&["revoke", "address", &explicit.to_string(), "--for", "1h"]).code(DONE);
    scene.enforcer.revoke("bob");
    tunnel.wait_end();
    scene.enforcer.kill();
    scene.server.stop();
    scene.enforcer.reboot("11111111-2222-3333-4444-555555555555");
    scene.server.restart();
    // before the daemon runs
    let alices = scene.alice.authenticate(&scene.server, "alice");
    scene.refused(&scene.alice, &alices);
    scene.refused(&scene.bob, &cookie);
    let (_, tunnel) = scene.bob.session(&scene.server, "bob");
    assert_eq!(tunnel.ip(false).to_string(), address, "the next session has the same tunnel address");
    scene.enforcer.start();
    scene.enforcer.knows("bob");
    let explicits = [explicit, Probe::address(2)];
    assert_eq!(probe.reached(&explicits).into_iter().collect::<Vec<_>>(), [explicits[1]]);
    let alices = scene.alice.authenticate(&scene.server, "alice");
    scene.refused(&scene.alice, &alices);
    scene.refused(&scene.bob, &cookie);
    let mut flood = scene.flood(&scene.bob, &tunnel, false, 200);
    let from = enforcer_tests::Moment::now();
    flood.flowing();
    flood.lost_nothing(from, enforcer_tests::Moment::now());
}

/// No message at any level and no file of the state holds a cookie or a password.
#[test]
fn secrets_are_neither_logged_nor_stored() {
    let mut scene = Scene::new("secrets", Era::Sid);
    scene.enforcer.stop();
    scene.enforcer.log_everything();
    scene.enforcer.start();
    let (cookie, mut tunnel) = scene.session(&scene.alice, "alice");
    scene.enforcer.revoke("alice");
    tunnel.wait_end();
    let _ = scene.alice.connect(&scene.server, &cookie, &Connect::default());
    scene.enforcer.cli(&["lock", "user", "alice"]).code(DONE);
    let (bobs, _tunnel) = scene.session(&scene.bob, "bob");
    scene.enforcer.stop();
    scene.enforcer.start();
    scene.enforcer.knows("bob");
    let mut secrets = vec![enforcer_tests::ocserv::PASSWORD.to_owned()];
    for cookie in [&cookie, &bobs] {
        secrets.extend(cookie.spellings());
    }
    let mut looked = 0;
    let mut files: Vec<PathBuf> = fs::read_dir(scene.enforcer.state())
        .expect("the state")
        .map(|entry| entry.expect("a file").path())
        .collect();
    files.push(scene.enforcer.log_path());
    for file in files {
        let bytes = fs::read(&file).expect("a file");
        looked += bytes.len();
        for secret in &secrets {
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{} holds a secret", file.display());
        }
    }
    assert!(scene.enforcer.log().contains("TRACE") && looked > 100_000, "{looked} bytes were looked at");
}
