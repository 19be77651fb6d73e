//! Many gateways and their sessions in one process: the rules between gateways (`enforcer::registry::cluster`) as they are
//! built in, around an etcd in memory, in simulated time. Ways are delayed, cut in both directions or one; daemons are
//! killed and go on with what their disks have; people log in, move, come back with old cookies, are revoked, locked and
//! let in again.
//!
//! A run is repeatable by its seed: two of them print the same digest. What has to hold is checked while it runs and in
//! the end, and a run in which it does not ends with exit code 1.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is a program that prints")]

mod checks;
mod cost;
mod etcd;
mod gateway;
mod queue;
mod random;
mod story;
mod world;

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use random::{MS, SECOND, Time};
use story::BEGINS;
use world::{BOUND_CONNECTED, BOUND_HEALED, BOUND_TOLD, BOUND_TOLD_HEALED, World};

/// After the last fault, until everything has to be at rest.
const REST: Time = 60 * SECOND;

#[derive(Parser)]
#[command(about = "Many gateways and an etcd in memory, in simulated time")]
struct Options {
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..))]
    gateways: u16,
    /// How many are there at the start: one for each person.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    sessions: u32,
    /// Within so many seconds everybody is at the door once: half of them log in, others leave or come back.
    #[arg(long, default_value_t = 3_000, value_parser = clap::value_parser!(u64).range(1..))]
    within: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Simulated, and one more until all is at rest.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_440))]
    minutes: u64,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let started = Instant::now();
    let mut world = World::new(options.gateways, options.sessions, options.within, options.seed);
    world.begin();
    let end = options.minutes * 60 * SECOND;
    world.etcd.cost.window = BEGINS..end;
    let (mut told, mut last) = (0, Time::MAX);
    while let Some((at, what)) = world.queue.next() {
        world.now = at;
        if last == Time::MAX && at >= end {
            // the last faults end by themselves
            let well = world.gateways.iter().map(|gateway| gateway.well_since).max().unwrap_or(0);
            last = well.max(end) + REST;
        }
        if at >= last {
            break;
        }
        if at / (10 * SECOND) > told {
            told = at / (10 * SECOND);
            let counts = &world.counts;
            eprintln!(
                "{} s simulated in {:.0} s: revision {}, {} events, {} let in, {} ended",
                told * 10,
                started.elapsed().as_secs_f64(),
                world.etcd.revision,
                counts.events,
                counts.let_in,
                counts.ended
            );
        }
        if !world.act(&what, end) {
            world.happen(what);
        }
    }
    world.check();
    print(&world, &options, started);
    if world.broken.is_empty() {
        return ExitCode::SUCCESS;
    }
    for broken in world.broken.iter().take(20) {
        eprintln!("broken: {broken}");
    }
    eprintln!("{} times something was not as it has to be", world.broken.len());
    ExitCode::FAILURE
}

fn print(world: &World, options: &Options, started: Instant) {
    let counts = &world.counts;
    println!(
        "{} gateways, {} sessions at the start, {} minutes, seed {}: {} events in {:.0} s",
        options.gateways,
        options.sessions,
        options.minutes,
        options.seed,
        counts.events,
        started.elapsed().as_secs_f64()
    );
    println!(
        "{} at the door: {} let in, {} refused, {} of all with a dead cookie",
        counts.logins, counts.let_in, counts.refused, counts.old_cookies
    );
    println!(
        "{} decisions, {} lifts, {} sessions ended, {} faults, {} of them crashes",
        counts.decisions, counts.lifts, counts.ended, counts.faults, counts.crashes
    );
    let worst = &world.worst;
    for (what, worst, bound) in [
        ("over at a connected gateway, after it was in etcd", worst.connected, BOUND_CONNECTED),
        ("over at one that was cut off or dead, after all was well", worst.healed, BOUND_HEALED),
        ("in etcd, after it was decided at a connected gateway", worst.told, BOUND_TOLD),
        ("in etcd, after all was well at one that was cut off or dead", worst.told_healed, BOUND_TOLD_HEALED),
    ] {
        println!("{what}: at most {} ms (bound {} ms)", worst.div_ceil(MS), bound / MS);
    }
    world.etcd.cost.print(usize::from(options.gateways));
    println!("digest {:016x}, revision {}", world.digest.value(), world.etcd.revision);
}
