//! The kernel side on a real kernel. Needs root; every test has namespaces and a bpffs of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

mod drops;
mod gate;
mod hooks;
#[path = "../lab/mod.rs"]
mod lab;
mod leases;
mod maps;
mod openvpn;
#[path = "../../../enforcer-ebpf/tests/packets/mod.rs"]
mod packets;

use enforcer::dataplane::{Dataplane, GateFacts, Role};
use enforcer::session::{Entry, Flow, Identity, LockKey, Netns, Protocol, Stands};
use lab::{Lab, Socket, ifindex};

const NONE: GateFacts = GateFacts { server: 0, moment: 0 };

fn flow(netns: Netns, client: &Socket, local: &Socket) -> Entry {
    let flow =
        Flow::new(Protocol::Udp, client.0.local_addr().unwrap(), local.0.local_addr().unwrap()).unwrap();
    Entry::Flow(netns, flow)
}

fn insert(dataplane: &mut Dataplane, entry: &Entry, stands: Stands) {
    dataplane.insert(entry, 1, stands, NONE).unwrap();
}

fn packets_by(dataplane: &Dataplane, reason: &str) -> u64 {
    dataplane.counters().unwrap().iter().find(|counter| counter.reason == reason).unwrap().packets
}

fn attach(dataplane: &mut Dataplane, lab: &Lab, name: &str, role: Role) {
    dataplane.attach(None, lab.netns(), ifindex(name), name, role).unwrap();
}

fn how(dataplane: &Dataplane) -> Vec<String> {
    dataplane.attachments().into_iter().map(|attachment| attachment.how).collect()
}

fn person(realm: &str, name: &str) -> LockKey {
    LockKey::new(&Identity { realm: realm.to_owned(), name: name.to_owned() })
}
