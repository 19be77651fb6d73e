//! Network namespaces.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::process::{command, succeed};

/// Where `ip netns` keeps them.
pub const FOLDER: &str = "/run/netns";

/// `ip netns add` makes its folder shared in steps that two of them at once can trip over.
static ADDING: Mutex<()> = Mutex::new(());

/// A named network namespace. Cloned freely; the lab that made it deletes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// A new one: loopback up, no waiting for duplicate addresses, no address made up by the kernel.
    pub fn create(name: &str) -> Self {
        {
            let _one = ADDING.lock();
            succeed(command("ip", ["netns", "add", name]), "");
        }
        let namespace = Self { name: name.to_owned() };
        namespace.set("ipv6/conf/default/accept_dad", "0");
        namespace.set("ipv6/conf/all/accept_dad", "0");
        namespace.set("ipv6/conf/default/accept_ra", "0");
        namespace.set("ipv4/conf/default/rp_filter", "0");
        namespace.set("ipv4/conf/all/rp_filter", "0");
        namespace.set("ipv4/ping_group_range", "0 0");
        namespace.ip("link set lo up");
        namespace
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from(FOLDER).join(&self.name)
    }

    /// The number by which `/proc/PID/ns/net` names it.
    pub fn inode(&self) -> u64 {
        fs::metadata(self.path()).expect("a namespace").ino()
    }

    /// A command in this namespace. Not by `ip netns exec`, which remounts /sys and so hides bpffs.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs `ip` with each line; all must succeed.
    #[track_caller]
    pub fn ip(&self, lines: &str) {
        succeed(command("ip", ["-n", &self.name, "-batch", "-"]), lines);
    }

    /// `nft -f` with these rules.
    #[track_caller]
    pub fn nft(&self, rules: &str) {
        let mut nft = self.command("nft");
        nft.args(["-f", "-"]);
        succeed(nft, rules);
    }

    /// Writes one of `/proc/sys/net`.
    pub fn set(&self, key: &str, value: &str) {
        let path = format!("/proc/sys/net/{key}");
        self.within(|| fs::write(&path, value)).unwrap_or_else(|error| panic!("{key} = {value}: {error}"));
    }

    /// Runs `work` on a thread of its own in this namespace, and waits for it.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter();
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread into this namespace for good.
    pub fn enter(&self) {
        let file = fs::File::open(self.path()).expect("a namespace");
        setns(file, CloneFlags::CLONE_NEWNET).expect("setns");
    }

    /// Whether a device of this name is there.
    pub fn has_device(&self, device: &str) -> bool {
        let name = device.to_owned();
        self.within(move || nix::net::if_::if_nametoindex(name.as_str()).is_ok())
    }
}
