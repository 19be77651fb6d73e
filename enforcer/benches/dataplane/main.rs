//! What the programs and their tables cost, beside others and beside the least that can be done. Needs root.
//!
//! `cargo bench -p enforcer --features bench --bench dataplane -- [honest] [drops] [tables] [stops] [--rounds N] [--json FILE]`
//!
//! In each round all contenders take their turns; a row has the median of the rounds. What is measured is CPU time,
//! of which a busy machine takes none away (it does take caches away). Everything is in network namespaces and on a
//! bpffs of their own, in a mount namespace that goes with the process.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a measurement that cannot be made ends here"
)]

mod cpu;
mod drops;
mod flood;
mod honest;
mod lane;
mod memory;
mod objects;
mod peers;
mod probe;
mod rows;
mod stops;
mod tables;

#[path = "../../tests/lab/mod.rs"]
mod lab;

use std::process::ExitCode;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use rows::Row;

/// A group of measurements, made in so many rounds.
type Group = fn(&lab::Lab, usize) -> Vec<Row>;

const GROUPS: [(&str, Group); 4] =
    [("honest", honest::rows), ("drops", drops::rows), ("tables", tables::rows), ("stops", stops::rows)];

fn main() -> ExitCode {
    let (mut chosen, mut rounds, mut json) = (Vec::new(), 11, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // cargo bench says so to every bench
            "--bench" => {}
            "--rounds" => rounds = arguments.next().and_then(|number| number.parse().ok()).unwrap_or(0),
            "--json" => json = arguments.next(),
            name if GROUPS.iter().any(|(group, _)| *group == name) => chosen.push(name.to_owned()),
            _ => rounds = 0,
        }
    }
    if !(1..=1_000).contains(&rounds) {
        eprintln!("usage: dataplane [honest] [drops] [tables] [stops] [--rounds 1..1000] [--json FILE]");
        return ExitCode::from(2);
    }
    // what is mounted goes with us, also when we are killed
    unshare(CloneFlags::CLONE_NEWNS).expect("root is needed");
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
    // xdp-filter's object pins its maps by name
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none).expect("a bpffs of our own");
    println!("{}", rows::machine());
    let mut rows = Vec::new();
    for (name, group) in GROUPS {
        if chosen.is_empty() || chosen.iter().any(|one| one == name) {
            let (give, take) = std::sync::mpsc::channel();
            lab::lab(move |lab| {
                cpu::stay();
                give.send(group(lab, rounds)).expect("somebody waits");
            });
            let new = take.recv().expect("rows");
            new.iter().for_each(|row| println!("{row}"));
            rows.extend(new);
        }
    }
    if let Some(file) = json {
        let rows: Vec<_> = rows.iter().map(Row::data).collect();
        std::fs::write(&file, format!("{:#}\n", serde_json::json!(rows))).expect(&file);
    }
    ExitCode::SUCCESS
}
