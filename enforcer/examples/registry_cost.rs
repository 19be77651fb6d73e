//! What an event costs with many explicit revocations in force, and how much memory each takes.
//!
//! `cargo run --release -p enforcer --example registry_cost -- 1000 200000 1000000`

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use enforcer::registry::{Effect, Event, Left, Now, Order, Registry, Rules, Sighting};
use enforcer::session::{
    Cookie, Device, Netns, Observed, Process, Record, SafeId, ServerName, Target, Write,
};

const OWN: Netns = Netns(1);

struct Gateway {
    registry: Registry,
    now: Now,
    records: Vec<Record>,
}

impl Gateway {
    fn new() -> Self {
        let now = Now { mono: Duration::from_secs(100), wall: 1_700_000_000 };
        let registry = Registry::new([server()], OWN, Rules::default());
        Self { registry, now, records: Vec::new() }
    }

    /// The event, and what follows of it at once; `disk`: the writes are told to have failed, or not.
    fn give(&mut self, event: Event, disk: Result<(), String>) {
        self.now.mono += Duration::from_micros(1);
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for effect in self.registry.handle(event, self.now) {
                match effect {
                    Effect::Confirm { number } => events.push(Event::Confirmed { number }),
                    Effect::Save => {
                        let writes = self.registry.take_writes(self.now);
                        if let (Some((first, _)), Some((last, _))) = (writes.first(), writes.last()) {
                            events.push(Event::Stored { tickets: *first..=*last, outcome: disk.clone() });
                        }
                        self.records.extend(writes.into_iter().filter_map(|(_, write)| match write {
                            Write::Keep(record) => Some(record),
                            _ => None,
                        }));
                    }
                    _ => {}
                }
            }
        }
    }

    fn revoke(&mut self, n: u32) {
        let order = Order {
            target: Target::Address(IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n))),
            server: None,
            stands: n.is_multiple_of(2).then_some(Duration::from_secs(86_400 + u64::from(n))),
            reason: "a list".into(),
            by: "uid 0".into(),
            origin: None,
            spare: Default::default(),
            bulk: true,
        };
        self.give(Event::Revoke { request: Some(n.into()), order }, Ok(()));
    }

    fn tick(&mut self) {
        self.now.mono += Duration::from_millis(50);
        self.give(Event::Tick, Ok(()));
    }
}

fn server() -> ServerName {
    ServerName::new("s")
}

fn sighting(n: u32) -> Sighting {
    let mut id = [0; 20];
    id[..4].copy_from_slice(&n.to_be_bytes());
    Sighting {
        observed: Observed {
            id: i32::try_from(n).unwrap_or_default(),
            user: "alice".into(),
            safe_id: Some(SafeId::from_bytes(id)),
            addresses: vec![IpAddr::V4(Ipv4Addr::from(0xc000_0000 + n))],
            ..Observed::default()
        },
        worker: Some(Process { pid: i32::try_from(n).unwrap_or_default(), start: 1 }),
        device: Some(Device { netns: OWN, index: n }),
        netns: Some(OWN),
        has_tun: true,
    }
}

/// The resident memory, in bytes.
fn memory() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or_default() * 4096
}

fn measure(what: &str, times: u32, mut act: impl FnMut(u32)) {
    let started = Instant::now();
    (0..times).for_each(&mut act);
    println!("  {what:<58} {:>12.1} us", started.elapsed().as_secs_f64() * 1e6 / f64::from(times));
}

fn run(n: u32) {
    println!("{n} explicit revocations in force");
    let before = memory();
    let mut gateway = Gateway::new();
    let main = Process { pid: 1, start: 1 };
    gateway.give(Event::ServerUp { server: server(), main, terminate: false }, Ok(()));
    measure("revoke, with its write and its answer", n, |i| {
        gateway.revoke(i);
        gateway.records.clear();
    });
    gateway.records.shrink_to_fit();
    println!("  {:<58} {:>12} B", "memory of each", memory().saturating_sub(before) / u64::from(n));
    measure("tick", 100, |_| gateway.tick());
    measure("when the next tick is due", 100, |_| {
        std::hint::black_box(gateway.registry.next_tick(gateway.now));
    });
    measure("a worker is seen", 100, |i| {
        gateway.give(Event::Sighted { server: server(), sighting: sighting(i + 1) }, Ok(()));
    });
    measure("the gate asks", 100, |i| {
        let event =
            Event::GateAsked { ask: i.into(), server: server(), sighting: sighting(i + 1), last: true };
        gateway.give(event, Ok(()));
    });
    measure("a list of 100 workers, and one of 100 cookies", 20, |_| {
        let outcome = Ok((1..=100).map(sighting).collect());
        gateway.give(Event::Listed { server: server(), asked: gateway.now.mono, outcome }, Ok(()));
        let cookie = |i| Cookie {
            safe_id: sighting(i).observed.safe_id.unwrap_or(SafeId::from_bytes([0; 20])),
            user: "alice".into(),
            vhost: String::new(),
            created: 1_700_000_000,
            in_use: true,
        };
        let outcome = Ok((1..=100).map(cookie).collect());
        gateway.give(Event::Cookies { server: server(), asked: gateway.now.mono, outcome }, Ok(()));
    });
    measure("lift, with its write and its answer", 100, |i| {
        let event = Event::Lift { request: (n + i).into(), number: u64::from(i) + 1, by: "b".into() };
        gateway.give(event, Ok(()));
    });
    measure("revoke while the disk is full", 100, |i| {
        let order = Order {
            target: Target::Address(IpAddr::V4(Ipv4Addr::from(0x0b00_0000 + i))),
            server: None,
            stands: None,
            reason: String::new(),
            by: String::new(),
            origin: None,
            spare: Default::default(),
            bulk: true,
        };
        gateway.give(Event::Revoke { request: None, order }, Err("full".into()));
    });
    measure("how much is unwritten", 100, |_| {
        std::hint::black_box(gateway.registry.unwritten());
    });
    gateway.now.wall -= 1_000;
    measure("the clock is set: the one event that notices it", 1, |_| gateway.tick());
    measure("a tick while records are written anew, 10,000 each 2 s", 100, |_| gateway.tick());
    measure("programs in one more namespace: all of them once", 1, |_| {
        gateway.give(Event::NetnsAdded { netns: Netns(2) }, Ok(()));
    });
    gateway.records.clear();
    (0..n.min(200_000)).for_each(|i| gateway.revoke(0x0100_0000 + i));
    let records = std::mem::take(&mut gateway.records);
    let kept = records.len();
    drop(gateway);
    let mut next = Gateway::new();
    measure(&format!("start with {kept} records, after a reboot"), 1, |_| {
        let left = Left { records: records.clone(), rebooted: true, ..Left::default() };
        next.give(Event::Adopt(Box::new(left)), Ok(()));
    });
}

fn main() {
    println!(
        "a revocation {} B, an order {} B",
        size_of::<enforcer::registry::Revocation>(),
        size_of::<Order>()
    );
    let sizes: Vec<u32> = std::env::args().skip(1).filter_map(|n| n.parse().ok()).collect();
    let sizes = if sizes.is_empty() { vec![1_000, 200_000] } else { sizes };
    sizes.into_iter().for_each(run);
}
