//! How fast it is, printed and not asserted: `cargo test -p enforcer-tests --test cluster measured -- --nocapture
//! --test-threads 1`.

use std::time::{Duration, Instant};

use enforcer::cluster::{Key, Outcome, Value};

use crate::world::{Gateway, World, id, put, reason, session};

const RECORDS: u32 = 10_000;
const LATENCIES: usize = 500;

#[test]
fn measured_one_member() {
    measure("clu-m1", 1);
}

#[test]
fn measured_three_members() {
    measure("clu-m3", 3);
}

fn measure(name: &str, members: u8) {
    let world = World::new(name, members);
    let (mut writer, mut watcher) = (world.up(1), world.up(2));
    // many revocations, each an order of its own, until another gateway has read all of them
    let start = Instant::now();
    let tickets: Vec<_> =
        (0..RECORDS).map(|number| writer.order(put(session(1, number), reason("measured")))).collect();
    let mut last = 0;
    for ticket in tickets {
        match writer.outcome(ticket) {
            Outcome::Done { revision, .. } => last = revision,
            other => panic!("{other:?}"),
        }
    }
    let written = start.elapsed();
    watcher.has_read(last);
    let read = start.elapsed();
    let rate = |time: Duration| f64::from(RECORDS) / time.as_secs_f64();
    println!(
        "{members} member(s): {RECORDS} revocations as single orders: {:.0}/s written, {:.0}/s read by another gateway",
        rate(written),
        rate(read)
    );
    assert_eq!(
        watcher.view.state.keys().filter(|key| matches!(key, Key::Record(..))).count(),
        RECORDS as usize
    );
    let mut answered = Vec::new();
    let mut seen = Vec::new();
    for _ in 0..LATENCIES {
        let start = Instant::now();
        let revision = writer.done(put(Key::Barrier(id(1)), Value::Barrier));
        answered.push(start.elapsed());
        watcher.has_read(revision);
        seen.push(start.elapsed());
    }
    println!(
        "{members} member(s): one put, {LATENCIES} times: answered {}, read by another gateway {}",
        shown(answered),
        shown(seen)
    );
    let start = Instant::now();
    let late: Gateway = world.up(3);
    println!(
        "{members} member(s): {} records read at a start in {:?}",
        late.view.state.len(),
        start.elapsed()
    );
}

fn shown(mut times: Vec<Duration>) -> String {
    times.sort();
    format!("p50 {:?}, p99 {:?}", times[times.len() / 2], times[times.len() * 99 / 100])
}
