//! What the durable state costs on this machine. It measures and promises nothing.
//!
//! ```text
//! cargo run --release -p enforcer --example store_measure -- bulk DIRECTORY 1000000   # fills it, prints the rate
//! cargo run --release -p enforcer --example store_measure -- single DIRECTORY 1000    # one after the other
//! cargo run --release -p enforcer --example store_measure -- admissions DIRECTORY 1000000   # the same of admissions
//! cargo run --release -p enforcer --example store_measure -- open DIRECTORY           # time and memory
//! strace -f -c -e trace=fsync,fdatasync,pwrite64 target/release/examples/store_measure single DIRECTORY 1000
//! ```

use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::time::Instant;

use anyhow::{Context as _, bail};
use enforcer::session::{Admission, Guard, Guarded, Identity, Record, SafeId, ServerName, SessionId, Target};
use enforcer::store::{self, Settings, Write};

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let many = |text: &String| text.parse::<u64>().context("how many?");
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["bulk", directory, _] => write(directory.into(), many(&words[2])?, false, keep),
        ["single", directory, _] => write(directory.into(), many(&words[2])?, true, keep),
        ["admissions", directory, _] => write(directory.into(), many(&words[2])?, false, admit),
        ["open", directory] => open(directory.into()),
        _ => bail!(
            "bulk DIRECTORY COUNT | single DIRECTORY COUNT | admissions DIRECTORY COUNT | open DIRECTORY"
        ),
    }
}

fn settings(directory: PathBuf) -> Settings {
    Settings { directory, audit_days: 90, audit_rows: 100_000 }
}

/// Every eighth one of a session, with its guard; the others of an address.
fn record(number: u64) -> Record {
    let mut id = [0; 20];
    id[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    let safe_id = SafeId::from_bytes(id);
    let of_session = number.is_multiple_of(8);
    let server = ServerName::new("default");
    Record {
        number,
        target: if of_session {
            Target::Session(safe_id)
        } else {
            Target::Address(Ipv6Addr::from(0x2001_0db8 << 96 | u128::from(number)).into())
        },
        server: None,
        reason: "a measurement".to_owned(),
        by: "uid 0".to_owned(),
        at: 1_700_000_000,
        lasts: None,
        until: None,
        guards: if of_session {
            vec![Guard { what: Guarded::SafeId(safe_id), server: Some(server), moment: 1_700_000_000 }]
        } else {
            Vec::new()
        },
        origin: None,
    }
}

fn admission(number: u64) -> Admission {
    let mut id = [0; 20];
    id[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    Admission {
        session: SessionId::Vpn(SafeId::from_bytes(id)),
        server: Some(ServerName::new("default")),
        who: Identity { realm: "default".to_owned(), name: format!("user{number}") },
        group: "staff".to_owned(),
        at: Some(number),
        claimed: false,
    }
}

fn keep(number: u64) -> Write {
    Write::Keep(record(number))
}

fn admit(number: u64) -> Write {
    Write::KeepAdmission(admission(number))
}

fn write(directory: PathBuf, many: u64, wait: bool, make: fn(u64) -> Write) -> anyhow::Result<()> {
    let (store, loaded) = store::open(&settings(directory.clone()))?;
    let (told, outcomes) = channel();
    let writer = store.start(move |outcome| {
        // the receiver is gone only after an error that was told already
        let _ = told.send(outcome);
    })?;
    let first = loaded.next_number;
    let writes: Vec<_> = (first..first + many).map(|number| (number, make(number))).collect();
    let start = Instant::now();
    let mut last = None;
    let mut commits = 0_u64;
    let mut log = 0;
    for (number, write) in writes {
        while writer.write(number, write.clone()).is_err() {
            std::thread::yield_now();
        }
        if !wait && number + 1 < first + many {
            continue;
        }
        while last != Some(number) {
            let outcome = outcomes.recv().context("the store ended")?;
            outcome.result.map_err(anyhow::Error::msg)?;
            commits += 1;
            last = Some(*outcome.tickets.end());
            log = log.max(std::fs::metadata(directory.join("state.db-wal")).map_or(0, |about| about.len()));
        }
    }
    let took = start.elapsed();
    writer.stop().map_err(anyhow::Error::msg)?;
    let file = std::fs::metadata(directory.join(store::FILE))?.len();
    println!(
        "{many} up to {last:?} in {took:.2?}: {:.0} a second, {commits} answers, {:.1?} each; the file has \
         {} MiB, its log had {} MiB",
        many as f64 / took.as_secs_f64(),
        took / u32::try_from(commits.max(1))?,
        file >> 20,
        log >> 20
    );
    Ok(())
}

fn open(directory: PathBuf) -> anyhow::Result<()> {
    let before = memory("VmRSS")?;
    let start = Instant::now();
    let (store, loaded) = store::open(&settings(directory))?;
    let took = start.elapsed();
    println!(
        "{} records and {} admissions in {took:.2?}; memory {} -> {} MiB, at most {} MiB",
        loaded.records.len(),
        loaded.admissions.len(),
        before >> 10,
        memory("VmRSS")? >> 10,
        memory("VmHWM")? >> 10
    );
    drop(store);
    Ok(())
}

/// In KiB.
fn memory(what: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(what)).context("no such line")?;
    line.trim_matches(|letter: char| !letter.is_ascii_digit()).parse().context("no number")
}
