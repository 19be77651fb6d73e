//! R5: kill -9 at random instants of a stream of revocations, lifts, locks and unlocks, and of a real session's end;
//! after each start what was answered is compared with the daemon's own word, with the disk, and with what packets do.
//!
//! `ENFORCER_TEST_KILLS` says how many kills (default 30 for each test), `ENFORCER_TEST_SEED` with what randomness.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use enforcer_tests::enforcer::{Config, DONE, PARTIAL, quoted};
use enforcer_tests::probe::Probe;
use enforcer_tests::process::{BOUND, command, eventually, succeed};
use enforcer_tests::receipt::list;
use enforcer_tests::{Connect, Enforcer, Era, Lab, Ocserv};
use nix::sys::signal::Signal;

/// A small generator of numbers (xorshift): the same stories for the same seed, as far as the machine lets them be.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |value| value.parse().expect("a number"))
}

fn dice() -> Dice {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
    let seed = number("ENFORCER_TEST_SEED", now.as_nanos() as u64 | 1);
    eprintln!("ENFORCER_TEST_SEED={seed}");
    Dice(seed)
}

/// What is known of one subject: an address, or a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Answered: in force.
    InForce,
    /// Answered as not on the disk: in force as long as the kernel keeps it.
    InKernel,
    /// Answered: taken back.
    Over,
    /// Asked for, and not answered.
    Either,
}

#[derive(Debug, Default)]
struct World {
    addresses: BTreeMap<u32, (Known, Option<u64>)>,
    people: BTreeMap<u32, Known>,
    next: u32,
    answered: u64,
}

fn person(n: u32) -> String {
    format!("user{n}")
}

impl World {
    /// One operation by the command line, from its start to its answer, if there is one.
    fn act(world: &Mutex<Self>, enforcer: &Enforcer, trouble: Trouble, roll: u64) {
        let (what, n, lift) = {
            let mut world = world.lock().expect("the world");
            let stands: Vec<(u32, Option<u64>)> = (world.addresses.iter())
                .filter(|(_, (known, number))| *known == Known::InForce && number.is_some())
                .map(|(n, (_, number))| (*n, *number))
                .collect();
            let locked: Vec<u32> =
                world.people.iter().filter(|(_, known)| **known == Known::InForce).map(|(n, _)| *n).collect();
            let pick = roll as usize / 16;
            match roll % 16 {
                0..=3 if stands.len() > 20 => {
                    let (n, number) = stands[pick % stands.len()];
                    world.addresses.insert(n, (Known::Either, number));
                    ("lift", n, number)
                }
                4 | 5 if locked.len() > 3 => {
                    let n = locked[pick % locked.len()];
                    world.people.insert(n, Known::Either);
                    ("unlock", n, None)
                }
                6..=8 => {
                    world.next += 1;
                    let n = world.next;
                    world.people.insert(n, Known::Either);
                    ("lock", n, None)
                }
                _ => {
                    world.next += 1;
                    let n = world.next;
                    world.addresses.insert(n, (Known::Either, None));
                    ("revoke", n, None)
                }
            }
        };
        let answer = match what {
            "lift" => enforcer.cli(&["lift", &lift.expect("a number").to_string(), "--json"]),
            "unlock" => enforcer.cli(&["unlock", "user", &person(n), "--json"]),
            "lock" => enforcer.cli(&["lock", "user", &person(n), "--json"]),
            _ => {
                let address = Probe::address(n).to_string();
                if n % 2 == 0 {
                    enforcer.cli(&["revoke", "address", &address, "--json"])
                } else {
                    enforcer.cli(&["revoke", "address", &address, "--for", "1h", "--json"])
                }
            }
        };
        let written = answer.receipt().failed("disk") == 0;
        let refused = answer.json["error"].as_str().is_some_and(|why| why.starts_with("not "));
        let mut world = world.lock().expect("the world");
        // a lock of somebody at an ocserv that is not there is answered in part
        let known = match (answer.code, what) {
            (DONE | PARTIAL, "lift" | "unlock") => Known::Over,
            (DONE | PARTIAL, _) if written => Known::InForce,
            (PARTIAL, _) => {
                if trouble == Trouble::None {
                    panic!("not written, and nothing is wrong with the disk: {answer:?}");
                }
                Known::InKernel
            }
            (_, "lift" | "unlock") if refused => Known::InForce,
            _ => return,
        };
        world.answered += 1;
        if matches!(what, "lock" | "unlock") {
            world.people.insert(n, known);
        } else {
            let number = answer.receipt().number().or(lift);
            world.addresses.insert(n, (known, number));
        }
    }

    /// Compares everything, and takes what was open as it was found. `kernel`: the kernel's maps were kept.
    fn check(&mut self, enforcer: &Enforcer, database: &Path, probe: &mut Probe, kernel: bool, disk: bool) {
        let told = enforcer.cli(&["show", "revocations", "--json"]).code(DONE).json;
        let over = |state: &str| matches!(state, "lifted" | "expired");
        let shown: BTreeMap<Ipv4Addr, u64> = (list(&told, "revocations").iter())
            .filter(|entry| !over(entry["state"].as_str().unwrap_or_default()))
            .filter_map(|entry| {
                let address = entry["target"].as_str()?.strip_prefix("address ")?.parse().ok()?;
                Some((address, entry["number"].as_u64()?))
            })
            .collect();
        let users = enforcer.cli(&["show", "users", "--json"]).code(DONE).json;
        let locked: BTreeSet<String> = (list(&users, "users").iter())
            .filter(|user| user["lock"].as_u64() > Some(0))
            .filter_map(|user| user["user"].as_str().map(str::to_owned))
            .collect();
        let all: Vec<Ipv4Addr> = self.addresses.keys().map(|n| Probe::address(*n)).collect();
        let reached = probe.reached(&all);
        // what only the kernel had is being written down
        let stored = disk.then(|| {
            eventually("everything is written", BOUND, || {
                (enforcer.status()["disk"]["unwritten"] == 0).then_some(())
            });
            stored(database)
        });
        for (n, (known, number)) in &mut self.addresses {
            let address = Probe::address(*n);
            let (shown, dropped) = (shown.get(&address).copied(), !reached.contains(&address));
            assert_eq!(shown.is_some(), dropped, "{address} ({known:?}): told {shown:?}, dropped {dropped}");
            if let Some((addresses, _)) = &stored {
                let on_disk = addresses.contains(&address.to_string());
                assert_eq!(
                    on_disk, dropped,
                    "{address} ({known:?}): on the disk {on_disk}, dropped {dropped}"
                );
            }
            match known {
                Known::InForce => assert!(dropped, "{address}: an answered revocation is missing"),
                Known::InKernel => {
                    assert!(dropped || !kernel, "{address}: gone although the kernel was kept")
                }
                Known::Over => assert!(!dropped, "{address}: came back after an answered lift"),
                Known::Either => {}
            }
            *known = if dropped { Known::InForce } else { Known::Over };
            *number = shown.or(*number);
        }
        // the kernel keeps a digest of the name alone: such a lock holds, and nobody can tell whose it is
        self.people.retain(|_, known| *known != Known::InKernel);
        for (n, known) in &mut self.people {
            let is = locked.contains(&person(*n));
            if let Some((_, people)) = &stored {
                assert_eq!(people.contains(&person(*n)), is, "{} ({known:?}): told {is}", person(*n));
            }
            match known {
                Known::InForce => assert!(is, "{}: an answered lock is missing", person(*n)),
                Known::Over => assert!(!is, "{}: came back after an answered unlock", person(*n)),
                Known::Either | Known::InKernel => {}
            }
            *known = if is { Known::InForce } else { Known::Over };
        }
        self.forget();
    }

    /// The oldest that are over have been looked at often enough.
    fn forget(&mut self) {
        let over: Vec<u32> =
            self.addresses.iter().filter(|(_, (known, _))| *known == Known::Over).map(|(n, _)| *n).collect();
        for n in over.iter().take(over.len().saturating_sub(60)) {
            self.addresses.remove(n);
        }
        let over: Vec<u32> =
            self.people.iter().filter(|(_, known)| **known == Known::Over).map(|(n, _)| *n).collect();
        for n in over.iter().take(over.len().saturating_sub(30)) {
            self.people.remove(n);
        }
    }
}

/// What the disk says is in force: addresses, and people.
fn stored(database: &Path) -> (BTreeSet<String>, BTreeSet<String>) {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let db = rusqlite::Connection::open_with_flags(database, flags).expect("the database");
    let column = |sql: &str| -> BTreeSet<String> {
        let mut all = db.prepare(sql).expect("a table");
        let rows = all.query_map([], |row| row.get(0)).expect("rows");
        rows.map(|row| row.expect("a row")).collect()
    };
    (column("SELECT subject FROM revocation WHERE kind = 'address'"), column("SELECT name FROM lock"))
}

/// Everything that goes wrong with disks and folders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    None,
    Full,
    ReadOnly,
    /// The bpffs is unmounted under the daemon: its death takes everything out of the kernel.
    NoPins,
}

struct Disk(PathBuf);

impl Disk {
    fn mount(path: &Path) -> Self {
        std::fs::create_dir_all(path).expect("a folder");
        let at = path.display().to_string();
        succeed(command("mount", ["-t", "tmpfs", "-o", "size=24m,mode=0700", "none", &at]), "");
        Self(path.to_owned())
    }

    fn remount(&self, how: &str) {
        succeed(command("mount", ["-o", &format!("remount,{how}"), &self.0.display().to_string()]), "");
    }

    fn fill(&self) {
        let mut open = std::fs::OpenOptions::new();
        let mut file = open.create(true).append(true).open(self.0.join("ballast")).expect("a file");
        while std::io::Write::write_all(&mut file, &[0; 4_096]).is_ok() {}
    }

    fn empty(&self) {
        std::fs::remove_file(self.0.join("ballast")).expect("the ballast");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = command("umount", ["--lazy", &self.0.display().to_string()]).status();
    }
}

/// `troubles`: one of them is drawn for each round.
fn torture(name: &str, troubles: &[Trouble]) {
    let kills = number("ENFORCER_TEST_KILLS", 30);
    let mut dice = dice();
    let lab = Lab::new(name);
    let ocserv = Ocserv::new(&lab, Era::Bookworm, 0);
    let disk = Disk::mount(&lab.work().join("disk"));
    let state = disk.0.join("state");
    let config = Config::new(&[&ocserv]).set("state", "directory", &quoted(&state.display().to_string()));
    let mut enforcer = Enforcer::prepare(&lab, &config);
    enforcer.start();
    let mut probe = Probe::new(&lab);
    let world = Mutex::new(World::default());
    for round in 0..kills {
        let trouble = troubles[dice.roll(troubles.len() as u64) as usize];
        match trouble {
            Trouble::None => {}
            Trouble::Full => disk.fill(),
            Trouble::ReadOnly => {
                // not while somebody has a file open for writing
                enforcer.kill();
                disk.remount("ro");
                enforcer.start();
            }
            Trouble::NoPins => {
                let bpffs = enforcer.pins().parent().expect("its parent").display().to_string();
                succeed(command("umount", ["--lazy", &bpffs]), "");
            }
        }
        let stop = AtomicBool::new(false);
        let acts = AtomicU32::new(0);
        let instant = Duration::from_micros(2_000 + dice.roll(150_000));
        let seeds: Vec<u64> = (0..3).map(|_| dice.roll(u64::MAX) | 1).collect();
        std::thread::scope(|scope| {
            for seed in seeds {
                let (world, enforcer, stop, acts) = (&world, &enforcer, &stop, &acts);
                scope.spawn(move || {
                    let mut dice = Dice(seed);
                    while !stop.load(Ordering::Relaxed) {
                        World::act(world, enforcer, trouble, dice.roll(1 << 40));
                        acts.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            std::thread::sleep(instant);
            enforcer.signal(Signal::SIGKILL);
            stop.store(true, Ordering::Relaxed);
        });
        enforcer.kill();
        enforcer.start();
        let mut world = world.lock().expect("the world");
        let disk_is_told = matches!(trouble, Trouble::None);
        world.check(&enforcer, &state.join("state.db"), &mut probe, trouble != Trouble::NoPins, disk_is_told);
        match trouble {
            Trouble::None | Trouble::NoPins => {}
            Trouble::Full => disk.empty(),
            Trouble::ReadOnly => disk.remount("rw"),
        }
        if matches!(trouble, Trouble::Full | Trouble::ReadOnly) {
            lab.eventually("everything is written", || {
                (enforcer.status()["disk"]["unwritten"] == 0).then_some(())
            });
        }
        if round % 50 == 49 {
            eprintln!("{} kills, {} answered operations", round + 1, world.answered);
        }
    }
    // and the host
    enforcer.kill();
    enforcer.reboot("11111111-2222-3333-4444-555555555555");
    enforcer.start();
    let mut world = world.lock().expect("the world");
    world.check(&enforcer, &state.join("state.db"), &mut probe, false, true);
    assert!(world.answered > 0, "nothing was ever answered");
    eprintln!("{name}: {kills} kills survived, {} answered operations", world.answered);
}

#[test]
fn r5_kill_at_random_instants() {
    torture("crash", &[Trouble::None]);
}

#[test]
fn r5_kill_with_a_disk_that_is_full_or_read_only_and_a_bpffs_that_is_gone() {
    torture("crash-trouble", &[Trouble::None, Trouble::Full, Trouble::ReadOnly, Trouble::NoPins]);
}

/// R2, R4: the daemon dies at any instant of a real session's revocation. Answered or asked for again after the start,
/// the cookie never comes back; bob's session goes on all the time, and a fresh login of alice's works.
#[test]
fn r2_kill_while_a_session_is_revoked() {
    let rounds = number("ENFORCER_TEST_KILLS", 30).div_ceil(10);
    let mut dice = dice();
    let mut scene = enforcer_tests::scene::Scene::with(
        "crash-session",
        Era::Bookworm,
        |ocserv| ocserv.set("max-ban-score", "0"),
        |config| config,
    );
    let (_, mut bob) = scene.session(&scene.bob, "bob");
    let mut dead = Vec::new();
    for _ in 0..rounds {
        let (cookie, mut tunnel) = scene.session(&scene.alice, "alice");
        let instant = Duration::from_micros(dice.roll(120_000));
        let enforcer = &scene.enforcer;
        let answer = std::thread::scope(|scope| {
            let revoking = scope.spawn(|| enforcer.cli(&["disconnect", "user", "-i", "alice", "--json"]));
            std::thread::sleep(instant);
            enforcer.signal(Signal::SIGKILL);
            revoking.join().expect("an answer")
        });
        scene.enforcer.kill();
        if [DONE, PARTIAL].contains(&answer.code) {
            tunnel.wait_end();
            // without the daemon
            scene.refused(&scene.alice, &cookie);
        }
        scene.enforcer.start();
        if ![DONE, PARTIAL].contains(&answer.code) {
            // it may have come as far as to leave nothing to be found
            let again = scene.enforcer.cli(&["terminate", "user", "alice", "--json"]);
            assert!([DONE, PARTIAL, 3].contains(&again.code), "{again:?}");
            tunnel.wait_end();
        }
        dead.push(cookie);
        for cookie in &dead {
            scene.refused(&scene.alice, cookie);
        }
        let (_, fresh) = scene.session(&scene.alice, "alice");
        fresh.kill();
        scene.enforcer.cli(&["terminate", "user", "alice"]);
        assert!(!bob.ended(), "bob's session ended");
    }
    let _ = Connect::default();
}
