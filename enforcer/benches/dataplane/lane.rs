//! Two namespaces and the veth pair between them, of which one side sends and the other one drops.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::process::Command;

use enforcer::session::Netns;
use nix::sched::{CloneFlags, unshare};

use crate::lab::{self, inside, ip};
use crate::objects;

/// Where packets come in.
pub const DEVICE: &str = "gw";
pub const ADDRESS: [u8; 4] = [10, 0, 0, 1];
/// Of the sender, which nobody drops.
pub const NEIGHBOUR: [u8; 4] = [10, 0, 0, 2];

pub struct Lane {
    pub receiver: OwnedFd,
    pub sender: OwnedFd,
    /// Of the sender's end.
    pub ifindex: u32,
    /// From a source that is written over, to the receiver.
    pub frame: Vec<u8>,
}

impl Lane {
    /// With its two namespaces, which live as long as it does.
    pub fn new() -> Self {
        let (receiver, sender) = (namespace(), namespace());
        inside(receiver.as_fd(), || {
            ip(&format!("link add {DEVICE} type veth peer name peer"));
            ip(&format!("link set peer netns /proc/{}/fd/{}", std::process::id(), sender.as_raw_fd()));
            ip(&format!("addr add 10.0.0.1/8 dev {DEVICE}"));
            ip(&format!("link set {DEVICE} up"));
        });
        let ifindex = inside(sender.as_fd(), || {
            ip("addr add 10.0.0.2/8 dev peer");
            ip("link set peer up");
            lab::ifindex("peer")
        });
        let macs = [inside(sender.as_fd(), || mac("peer")), inside(receiver.as_fd(), || mac(DEVICE))];
        let frame = objects::frame(NEIGHBOUR, ADDRESS, macs);
        Self { receiver, sender, ifindex, frame }
    }

    pub fn netns(&self) -> Netns {
        lab::number(&self.receiver)
    }

    pub fn here<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        inside(self.receiver.as_fd(), work)
    }

    /// The device takes frames as a driver does, without a program in it.
    pub fn without_program(&self) {
        self.here(|| run("ethtool", &["-K", DEVICE, "gro", "on"], ""));
    }

    /// How many packets the receiver's IP layer has thrown away as malformed, and how many have come past its firewall.
    pub fn received(&self) -> [u64; 2] {
        let text = self.here(|| fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
        let mut lines = text.lines().filter(|line| line.starts_with("Ip:")).map(str::split_whitespace);
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let all: Vec<_> = names.zip(values).collect();
        ["InHdrErrors", "InDelivers"]
            .map(|wanted| all.iter().find(|(name, _)| *name == wanted).unwrap().1.parse().unwrap())
    }
}

fn namespace() -> OwnedFd {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("root is needed");
        ip("link set lo up");
        fs::File::open("/proc/thread-self/ns/net").unwrap().into()
    })
    .join()
    .unwrap()
}

fn mac(device: &str) -> [u8; 6] {
    let output = Command::new("ip").args(["-br", "link", "show", device]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mac = text.split_whitespace().nth(2).unwrap();
    let bytes: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// Runs a command that has to succeed.
pub fn run(program: &str, words: &[&str], input: &str) {
    use std::io::Write as _;
    let mut command = Command::new(program);
    command.args(words).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{program} is needed: {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{program} {}", words.join(" "));
}
