//! A revoked flow (XDP) and a revoked address (tc) with their neighbours, and a flood of what must not pass.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]
#![allow(dead_code, reason = "each file of tests uses a part of it")]

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use aya::maps::{Array, Map, MapData};
use enforcer::dataplane::{Capacities, Dataplane, Role, Settings};
use enforcer::session::{Entry, Flow, Netns, Protocol};

use crate::lab::{CLIENT, GATEWAY, Lab, OTHER, PEER, Socket, ifindex};

pub fn capacities(each: u32) -> Capacities {
    Capacities {
        flows: each,
        addresses: each,
        devices: each,
        tokens: each,
        safe_ids: each,
        cutoffs: each,
        locks: each,
    }
}

/// The lab's settings, with one capacity for all tables.
pub fn with(lab: &Lab, each: u32) -> Settings {
    Settings { capacities: capacities(each), ..lab.settings() }
}

pub fn flow(netns: Netns, client: &Socket, local: &Socket) -> Entry {
    let ends = (client.0.local_addr().unwrap(), local.0.local_addr().unwrap());
    Entry::Flow(netns, Flow::new(Protocol::Udp, ends.0, ends.1).unwrap())
}

pub fn address(netns: Netns, text: &str) -> Entry {
    Entry::Address(netns, text.parse().unwrap())
}

/// Both roles of the gateway's one arm.
pub fn attach(dataplane: &mut Dataplane, lab: &Lab) {
    for role in [Role::Outer, Role::Inner] {
        dataplane.attach(None, lab.netns(), ifindex("gw"), "gw", role).unwrap();
    }
}

/// Nothing of a migration is left over.
#[track_caller]
pub fn is_tidy(lab: &Lab) {
    for folder in ["next", "last"] {
        assert!(!lab.pin_path().join(folder).exists(), "{folder}");
    }
}

pub struct Traffic {
    pub server: Socket,
    pub client: Socket,
    pub neighbour: Socket,
    pub revoked: Socket,
    pub other: Socket,
    pub lan: Socket,
    flooded_server: Socket,
    flooding_client: Socket,
    flooding_revoked: Socket,
    flooded_lan: Socket,
    maps: PathBuf,
}

impl Traffic {
    pub fn new(lab: &Lab) -> Self {
        Self {
            server: lab.here(&format!("{GATEWAY}:443")),
            client: lab.far(&format!("{PEER}:4000")),
            neighbour: lab.far(&format!("{PEER}:4001")),
            revoked: lab.here(&format!("{CLIENT}:5000")),
            other: lab.here(&format!("{OTHER}:5000")),
            lan: lab.far(&format!("{PEER}:80")),
            flooded_server: lab.here(&format!("{GATEWAY}:444")),
            flooding_client: lab.far(&format!("{PEER}:4002")),
            flooding_revoked: lab.here(&format!("{CLIENT}:5001")),
            flooded_lan: lab.far(&format!("{PEER}:81")),
            maps: lab.pin_path().join("maps"),
        }
    }

    /// The flow and the address that are looked at, and the flow that is flooded (the address floods as well).
    pub fn entries(&self, lab: &Lab) -> [Entry; 3] {
        let netns = lab.netns();
        [
            flow(netns, &self.client, &self.server),
            address(netns, CLIENT),
            flow(netns, &self.flooding_client, &self.flooded_server),
        ]
    }

    /// Packets of one sender stay in their order: when the neighbour's, which was sent last, is there, the
    /// revoked one's would be there too. So nothing waits for what must not come.
    #[track_caller]
    pub fn is_dropped(&self) {
        for receiver in [&self.server, &self.lan, &self.revoked, &self.other] {
            empty(receiver);
        }
        for (revoked, neighbour, to) in
            [(&self.client, &self.neighbour, &self.server), (&self.revoked, &self.other, &self.lan)]
        {
            send(revoked, to, b"revoked");
            send(neighbour, to, b"neighbour");
            assert_eq!(receive(to), b"neighbour", "towards {}", to.0.local_addr().unwrap());
        }
        send(&self.lan, &self.revoked, b"revoked");
        send(&self.lan, &self.other, b"neighbour");
        assert_eq!(receive(&self.other), b"neighbour");
        assert!(empty(&self.revoked), "a packet came to the revoked address");
    }

    #[track_caller]
    pub fn passes(&self) {
        assert!(self.client.reaches(&self.server));
        assert!(self.revoked.reaches(&self.lan) && self.lan.reaches(&self.revoked));
    }

    /// Sends on the flooded flow and from the revoked address while `work` runs, with a pause after each packet.
    /// Gives how many packets each.
    pub fn flood(&self, pause: Duration, work: impl FnOnce()) -> [u64; 2] {
        let stop = AtomicBool::new(false);
        let sent = [AtomicU64::new(0), AtomicU64::new(0)];
        let pairs =
            [(&self.flooding_client, &self.flooded_server), (&self.flooding_revoked, &self.flooded_lan)];
        // The lease does not run out, however slow this machine is: that it holds is another test's matter.
        let heartbeat = MapData::from_pin(self.maps.join("heartbeat")).unwrap();
        let mut heartbeat = Array::<_, u64>::try_from(Map::Array(heartbeat)).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    heartbeat.set(0, Dataplane::kernel_monotonic_ns(), 0).unwrap();
                    std::thread::sleep(Duration::from_millis(200));
                }
            });
            for ((from, to), sent) in pairs.into_iter().zip(&sent) {
                let stop = &stop;
                scope.spawn(move || {
                    let to: SocketAddr = to.0.local_addr().unwrap();
                    while !stop.load(Ordering::Relaxed) {
                        // tc egress tells the sender that it was dropped
                        let _ = from.0.send_to(b"flood", to);
                        sent.fetch_add(1, Ordering::Relaxed);
                        if !pause.is_zero() {
                            std::thread::sleep(pause);
                        }
                    }
                });
            }
            // also when the work panics
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            stop.store(true, Ordering::Relaxed);
            outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
        for (_, to) in pairs {
            let leaked = to.0.recv(&mut [0; 64]).is_ok();
            assert!(!leaked, "a packet to {} leaked", to.0.local_addr().unwrap());
        }
        sent.map(AtomicU64::into_inner)
    }
}

/// Takes out what is there. `true`: there was nothing.
fn empty(socket: &Socket) -> bool {
    socket.0.set_nonblocking(true).unwrap();
    let mut nothing = true;
    while socket.0.recv(&mut [0; 64]).is_ok() {
        nothing = false;
    }
    socket.0.set_nonblocking(false).unwrap();
    nothing
}

fn send(from: &Socket, to: &Socket, payload: &[u8]) {
    match from.0.send_to(payload, to.0.local_addr().unwrap()) {
        // tc egress tells the sender
        Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => {}
        sent => assert_eq!(sent.unwrap(), payload.len()),
    }
}

/// The next datagram; it comes at once, however busy the machine.
fn receive(socket: &Socket) -> Vec<u8> {
    let mut buffer = [0; 64];
    for _ in 0..100 {
        match socket.0.recv(&mut buffer) {
            Ok(length) => return buffer[..length].to_vec(),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("nothing came in fifteen seconds");
}
