//! R5: kill -9 of a writing process at any moment.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use enforcer::session::{Admission, KnownEtcd, Letter, LetterKey, Record, SessionId};
use enforcer::store::{self, Write};

use crate::world::{Dice, Folder, admission, known, letter, line, load, sample, session, settings};

/// Tells the child where to write.
const DIRECTORY: &str = "ENFORCER_STORE_TEST_CHILD";
/// How many times to kill; the test alone does 50.
const KILLS: &str = "ENFORCER_STORE_KILLS";

/// What is done with ticket T, always the same: kept and changed, over, lifted; letters and admissions kept, replaced and
/// gone; with lazy writes between.
fn write_of(ticket: u64) -> Write {
    let number = ticket / 13 + 1;
    match ticket % 13 {
        0 | 1 => Write::Keep(sample(2 * number + ticket % 13)),
        // some are told at once, some are replaced, some stay
        8 => Write::KeepLetter(letter(number)),
        9 if number.is_multiple_of(3) => Write::LetterTold(letter(number - 1).key()),
        9 => Write::KeepLetter(letter(number.saturating_sub(8).max(1))),
        10 => Write::KeepAdmission(admission(number)),
        11 if number.is_multiple_of(3) => Write::AdmissionGone(admission(number - 1).session),
        11 => Write::KeepAdmission(Admission { claimed: true, ..admission(number.saturating_sub(5)) }),
        12 => known(number),
        2 => Write::Session(session(number % 50)),
        3 => Write::Keep(changed(2 * number)),
        4 => Write::Audit(line(number, "something")),
        5 if number.is_multiple_of(2) => Write::Lift(2 * number - 2),
        5 => Write::Over(2 * number - 2),
        6 => Write::SessionGone(number % 50),
        _ => Write::Clock { wall: number, boot_id: number.to_string() },
    }
}

fn changed(number: u64) -> Record {
    let mut record = sample(number);
    record.reason = "changed".to_owned();
    record.guards.extend(sample(number + 1).guards);
    record
}

/// The state after all tickets below this one.
#[derive(Default, PartialEq)]
struct Model {
    records: BTreeMap<u64, Record>,
    lifted: BTreeSet<u64>,
    letters: BTreeMap<LetterKey, Letter>,
    admissions: BTreeMap<SessionId, Admission>,
    known: Option<KnownEtcd>,
}

impl Model {
    fn apply(&mut self, write: Write) {
        match write {
            Write::Keep(record) if !self.lifted.contains(&record.number) => {
                self.records.insert(record.number, record);
            }
            Write::Over(number) => drop(self.records.remove(&number)),
            Write::Lift(number) => {
                self.records.remove(&number);
                self.lifted.insert(number);
            }
            Write::KeepLetter(letter) => drop(self.letters.insert(letter.key(), letter)),
            Write::LetterTold(key) => drop(self.letters.remove(&key)),
            Write::KeepAdmission(one) => drop(self.admissions.insert(one.session, one)),
            Write::AdmissionGone(id) => drop(self.admissions.remove(&id)),
            Write::KnownEtcd(known) => self.known = Some(known),
            _ => {}
        }
    }
}

/// Not a test by itself: the process that is killed. It writes from the ticket that its variable names, without
/// end, and prints each ticket that was acknowledged.
#[test]
fn child_that_is_killed() {
    let Ok(work) = std::env::var(DIRECTORY) else { return };
    let (first, directory) = work.split_once(' ').unwrap();
    let (store, _) = store::open(&settings(Path::new(directory))).unwrap();
    let out = Mutex::new(std::io::stdout());
    let writer = store
        .start(move |outcome| {
            outcome.result.unwrap();
            let mut out = out.lock().unwrap();
            let told = writeln!(out, "\nacknowledged {}", outcome.tickets.end()).and_then(|()| out.flush());
            if told.is_err() {
                // the test is gone, and nobody else would end this
                std::process::exit(1);
            }
        })
        .unwrap();
    let first: u64 = first.parse().unwrap();
    for ticket in first.. {
        while writer.write(ticket, write_of(ticket)).is_err() || writer.waiting() > 40 + ticket as usize % 200
        {
            std::thread::yield_now();
        }
    }
}

#[test]
fn r5_kill_9_loses_no_acknowledged_write_and_tears_none() {
    let kills: u64 = std::env::var(KILLS).map_or(50, |many| many.parse().unwrap());
    let seed = u64::from(std::process::id()) << 20 | 0x5eed;
    println!("{kills} kills, seed {seed}");
    let mut dice = Dice::new(seed);
    let mut folder = Folder::new();
    folder.open().0.stop();
    let (mut model, mut next) = (Model::default(), 0_u64);
    let (mut written, mut unacknowledged) = (0, 0);
    for round in 0..kills {
        if round % 50 == 49 {
            // the state only grows, and each round reads all of it
            folder = Folder::new();
            folder.open().0.stop();
            (model, next) = (Model::default(), 0);
        }
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "killed::child_that_is_killed", "--nocapture"])
            .env(DIRECTORY, format!("{next} {}", folder.path().display()))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // after so many answers, and then at any instruction of whatever it does
        let answers = dice.roll(12);
        let spin = dice.roll(200_000);
        let mut acknowledged = None;
        let mut seen = 0;
        let mut killed = false;
        let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
        while let Some(Ok(text)) = out.next() {
            if let Some(ticket) = text.strip_prefix("acknowledged ") {
                acknowledged = Some(ticket.parse::<u64>().unwrap());
                seen += 1;
            }
            if seen >= answers && !killed {
                (0..spin).for_each(|_| std::hint::spin_loop());
                child.kill().unwrap();
                killed = true;
            }
        }
        child.wait().unwrap();
        assert!(killed, "round {round}: the child ended by itself");

        // all that was acknowledged, and of what came after it the first so many: whole, or not at all
        let loaded = load(&folder.path());
        let sure = acknowledged.map_or(next, |last| last + 1);
        written += sure - next;
        while next < sure {
            model.apply(write_of(next));
            next += 1;
        }
        let found = Model {
            records: loaded.records.into_iter().map(|record| (record.number, record)).collect(),
            lifted: loaded.lifted.into_iter().collect(),
            letters: loaded.letters.into_iter().map(|letter| (letter.key(), letter)).collect(),
            admissions: loaded.admissions.into_iter().map(|one| (one.session, one)).collect(),
            known: loaded.known,
        };
        let limit = next + 100_000;
        while model != found {
            assert!(next < limit, "round {round}: no state after ticket {sure} is like what was found");
            model.apply(write_of(next));
            next += 1;
            unacknowledged += 1;
        }
    }
    println!("{written} writes acknowledged, {unacknowledged} stored and not acknowledged");
}
