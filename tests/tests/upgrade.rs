//! R5: a daemon takes another one's place under a flood of what is revoked, and not one packet passes; and of those
//! who are not revoked not one is lost (R3).
//!
//! Each start replaces every program that hangs anywhere, as the start of another version does: an upgrade. Every
//! second one also migrates into new maps, as another layout does: the configured capacities change.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use enforcer_tests::blast::{Blast, Counters, Port, at, packet};
use enforcer_tests::enforcer::{Config, DONE, quoted};
use enforcer_tests::lab::{GATEWAY_V4, LAN, LAN_V4, ROUTER_V4, WAN};
use enforcer_tests::process::{BOUND, eventually};
use enforcer_tests::tun::Tun;
use enforcer_tests::{Enforcer, Lab};

/// The tunnel device, and two clients that share it.
const TUNNEL: &str = "vpns9";
const REVOKED: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 2);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 3);
/// Ports of outer flows.
const SERVER: u16 = 443;
const REVOKED_PORT: u16 = 40_001;
const NEIGHBOUR_PORT: u16 = 40_002;
/// How many times a daemon takes another's place, in all tests of this file together.
const UPGRADES: &str = "ENFORCER_TEST_UPGRADES";

/// One flood at a time: two would be half as fast.
static ALONE: Mutex<()> = Mutex::new(());

/// What goes into the tunnel, counted by address.
struct Tunnelled {
    stop: Arc<AtomicBool>,
    reader: Option<std::thread::JoinHandle<()>>,
    to_revoked: Arc<AtomicU64>,
    to_neighbour: Arc<AtomicU64>,
}

impl Tunnelled {
    fn watch(tun: Arc<Tun>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (to_revoked, to_neighbour) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (stopped, revoked, neighbour) =
            (Arc::clone(&stop), Arc::clone(&to_revoked), Arc::clone(&to_neighbour));
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 2_048];
            while !stopped.load(Ordering::Relaxed) {
                let Some(length) = tun.receive(&mut buffer) else {
                    std::thread::sleep(std::time::Duration::from_micros(500));
                    continue;
                };
                let counter = match buffer.get(16..20) {
                    Some(to) if to == REVOKED.octets() => &revoked,
                    Some(to) if to == NEIGHBOUR.octets() && length == 64 => &neighbour,
                    _ => continue,
                };
                counter.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { stop, reader: Some(reader), to_revoked, to_neighbour }
    }
}

impl Drop for Tunnelled {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// A number of the status: of the one in `list` whose `key` is `name`.
fn status(enforcer: &Enforcer, list: &str, key: &str, name: &str, number: &str) -> u64 {
    let status = enforcer.status();
    let all = status[list].as_array().unwrap_or_else(|| panic!("{status}"));
    all.iter().find(|one| one[key] == name).and_then(|one| one[number].as_u64()).expect("a number")
}

fn flooded(name: &str, xdp: &str, tc: &str) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let upgrades = std::env::var(UPGRADES).map_or(50, |count| count.parse::<u32>().expect("a number")) / 2;
    let lab = Lab::new(name);
    let tun = Arc::new(Tun::create(&lab.gateway, TUNNEL));
    lab.gateway.ip(&format!("route add 10.88.0.0/24 dev {TUNNEL}"));
    let config = Config::new(&[]).set("kernel", "xdp", &quoted(xdp)).set("kernel", "tc", &quoted(tc));
    let mut enforcer = Enforcer::prepare(&lab, &config);
    enforcer.start();

    let (client, server) = (format!("{ROUTER_V4}:{REVOKED_PORT}"), format!("{GATEWAY_V4}:{SERVER}"));
    let address = REVOKED.to_string();
    let orders: [&[&str]; 2] =
        [&["revoke", "flow", "udp", &client, &server, "--json"], &["revoke", "address", &address, "--json"]];
    let numbers = orders.map(|order| enforcer.cli(order).code(DONE).receipt().number().expect("a number"));

    let udp = |from: u16| format!("iifname {WAN} udp sport {from} udp dport {SERVER}");
    let gateway = Counters::new(
        &lab.gateway,
        &[
            ("outer_flow", udp(REVOKED_PORT)),
            ("neighbour", udp(NEIGHBOUR_PORT)),
            ("from_lan", format!("iifname {LAN} ip daddr {REVOKED}")),
            ("from_tunnel", format!("iifname {TUNNEL} ip saddr {REVOKED}")),
        ],
    );
    let lan = Counters::new(
        &lab.lan,
        &[("revoked", format!("ip saddr {REVOKED}")), ("neighbour", format!("ip saddr {NEIGHBOUR}"))],
    );
    let tunnelled = Tunnelled::watch(Arc::clone(&tun));

    let outside = || Port::wire(&lab.router, "uplink", &lab.gateway, WAN);
    let inside = || Port::wire(&lab.lan, "eth0", &lab.gateway, LAN);
    let through = || Port::Tun(Arc::clone(&tun));
    // XDP; tc ingress on the LAN and on the tunnel; tc egress on both, by what is forwarded from outside
    let floods = [
        Blast::start(outside(), packet(at(ROUTER_V4, REVOKED_PORT), at(GATEWAY_V4, SERVER)), 110_000),
        Blast::start(inside(), packet(at(LAN_V4, 9), at(REVOKED, 9)), 55_000),
        Blast::start(through(), packet(at(REVOKED, 9), at(LAN_V4, 9)), 55_000),
        Blast::start(outside(), packet(at(REVOKED, 9), at(LAN_V4, 9)), 4_000),
        Blast::start(outside(), packet(at(ROUTER_V4, 9), at(REVOKED, 9)), 4_000),
    ];
    let mut honest = [
        Blast::start(outside(), packet(at(ROUTER_V4, NEIGHBOUR_PORT), at(GATEWAY_V4, SERVER)), 300),
        Blast::start(inside(), packet(at(LAN_V4, 9), at(NEIGHBOUR, 9)), 300),
        Blast::start(through(), packet(at(NEIGHBOUR, 9), at(LAN_V4, 9)), 300),
    ];
    let arrived = || {
        let to_neighbour = tunnelled.to_neighbour.load(Ordering::Relaxed);
        [gateway.packets("neighbour"), to_neighbour, lan.packets("neighbour")]
    };
    let passed = || {
        let to_revoked = tunnelled.to_revoked.load(Ordering::Relaxed);
        let counted = ["outer_flow", "from_lan", "from_tunnel"].map(|name| gateway.packets(name));
        [counted[0], counted[1], counted[2], lan.packets("revoked"), to_revoked]
    };
    eventually("all floods and neighbours flow", BOUND, || {
        let flow = floods.iter().chain(&honest).all(|blast| blast.sent() > 100);
        (flow && arrived().iter().all(|count| *count > 10)).then_some(())
    });
    assert_eq!(passed(), [0; 5], "before anything was restarted");

    for round in 0..upgrades {
        let before: Vec<u64> = floods.iter().map(Blast::sent).collect();
        if round % 2 == 0 {
            enforcer.stop();
        } else {
            enforcer.kill();
        }
        // each way of ending meets both kinds of start
        if round / 2 % 2 == 0 {
            let capacity = |config: Config, table, entries: u32| {
                config.set("kernel.capacity", table, &entries.to_string())
            };
            let config = capacity(config.clone(), "flows", 70_000 + round);
            enforcer.configure(&capacity(config, "addresses", 80_000 - round));
        }
        enforcer.start();
        let flows = status(&enforcer, "tables", "name", "flows", "capacity");
        assert!(round / 2 % 2 != 0 || flows == u64::from(70_000 + round), "{round}: {flows}");
        assert_eq!(
            passed(),
            [0; 5],
            "{round}: flow, from the LAN, from the tunnel, to the LAN, into the tunnel"
        );
        // each restart has had its share of every flood
        eventually("the floods go on", BOUND, || {
            floods.iter().zip(&before).all(|(flood, before)| flood.sent() > *before).then_some(())
        });
    }
    let rates: Vec<u64> = floods.iter().map(Blast::rate).collect();
    let sent = floods.each_ref().map(Blast::sent);
    let honest = honest.each_mut().map(Blast::stop);
    eventually(&format!("every packet of the neighbours arrives: {honest:?}"), BOUND, || {
        (arrived() == honest).then_some(())
    });
    assert_eq!(passed(), [0; 5]);
    let counted = ["dropped-flow", "dropped-address-from", "dropped-address-to"]
        .map(|reason| status(&enforcer, "counters", "reason", reason, "packets"));
    assert!(counted.iter().all(|count| *count > 0), "the floods did not reach the hooks: {counted:?}");
    let total: u64 = sent.iter().sum();
    println!(
        "{upgrades} upgrades ({xdp}, {tc}): {total} packets sent at {} a second ({rates:?}), {counted:?} dropped, 0 \
         passed; {honest:?} of neighbours, 0 lost",
        rates.iter().sum::<u64>()
    );
    // what was looked at would have been seen: lifted, each of them passes
    for number in numbers {
        enforcer.cli(&["lift", &number.to_string()]).code(DONE);
    }
    eventually("all floods pass", BOUND, || passed().iter().all(|count| *count > 0).then_some(()));
}

#[test]
fn r5_upgrades_under_a_flood_native_and_tcx() {
    flooded("upgrade-tcx", "native", "tcx");
}

#[test]
fn r5_upgrades_under_a_flood_generic_and_clsact() {
    flooded("upgrade-clsact", "generic", "clsact");
}
