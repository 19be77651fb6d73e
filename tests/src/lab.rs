//! One lab: its namespaces, its addresses, its folder, and their end.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use crate::client::Client;
use crate::namespace::{FOLDER, Namespace};
use crate::process::{eventually, read_log};

/// The gateway's outer addresses (device `wan0`).
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 2);
/// The router's address on that side, which masqueraded clients share.
pub const ROUTER_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 1);
/// The host behind the gateway (device `lan0` there), and the gateway's own address on that side.
pub const LAN_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
pub const LAN_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);
/// The gateway's devices.
pub const WAN: &str = "wan0";
pub const LAN: &str = "lan0";

/// A lab. Dropped, also by a panic: every process in its namespaces killed, namespaces, mounts and folder gone.
/// A panicking test's lab prints the ends of all logs first.
pub struct Lab {
    shared: Arc<Shared>,
    pub gateway: Namespace,
    pub router: Namespace,
    pub lan: Namespace,
    clients: u8,
}

/// What the parts of a lab need of it.
#[derive(Debug)]
pub struct Shared {
    prefix: String,
    base: PathBuf,
}

impl Shared {
    /// Where every part keeps its files; the same path in every era's tree.
    pub fn work(&self) -> PathBuf {
        self.base.join("w")
    }

    /// An empty folder for an era's overlay: beside the work folder, since that is bound into it.
    pub fn scratch(&self, name: &str) -> PathBuf {
        let folder = self.base.join(name);
        fs::create_dir_all(&folder).expect("a scratch folder");
        folder
    }

    pub fn bpffs(&self) -> PathBuf {
        self.work().join("bpf")
    }
}

impl Lab {
    /// Builds the namespaces `gateway`, `router` and `lan`, with links, addresses and routes. `name` is the test's,
    /// short (it is part of socket paths) and used by no test that runs at the same time.
    pub fn new(name: &str) -> Self {
        assert!(geteuid().is_root(), "the lab needs root: it makes network namespaces and mounts");
        assert!(name.len() <= 24 && !name.contains('/'), "a lab's name is part of socket paths: {name:?}");
        clean_leftovers(name);
        let prefix = format!("enf-{name}-{}-", std::process::id());
        let base = PathBuf::from(format!("/tmp/enforcer-lab-{name}-{}", std::process::id()));
        let shared = Arc::new(Shared { prefix, base });
        fs::create_dir_all(shared.bpffs()).expect("the lab's folder");
        let none: Option<&str> = None;
        mount(Some("bpf"), &shared.bpffs(), Some("bpf"), MsFlags::empty(), none).expect("bpffs");
        // from here on a panic must clean up: the lab exists before its namespaces do
        let name_of = |part: &str| format!("{}{part}", shared.prefix);
        let guard = Cleaner(Arc::clone(&shared));
        let gateway = Namespace::create(&name_of("gw"));
        let router = Namespace::create(&name_of("rt"));
        let lan = Namespace::create(&name_of("lan"));
        for namespace in [&gateway, &router] {
            namespace.set("ipv4/ip_forward", "1");
            namespace.set("ipv6/conf/all/forwarding", "1");
        }
        gateway.ip(&format!(
            "link add {WAN} type veth peer name uplink netns {}\nlink add {LAN} type veth peer name eth0 netns {}\n\
             addr add {GATEWAY_V4}/24 dev {WAN}\naddr add {GATEWAY_V6}/64 dev {WAN} nodad\n\
             addr add 10.77.0.1/24 dev {LAN}\naddr add fd77::1/64 dev {LAN} nodad\n\
             link set {WAN} up\nlink set {LAN} up\n\
             route add default via {ROUTER_V4}\nroute add default via {ROUTER_V6}\n",
            router.name(),
            lan.name()
        ));
        router.ip(&format!(
            "addr add {ROUTER_V4}/24 dev uplink\naddr add {ROUTER_V6}/64 dev uplink nodad\nlink set uplink up\n"
        ));
        lan.ip(&format!(
            "addr add {LAN_V4}/24 dev eth0\naddr add {LAN_V6}/64 dev eth0 nodad\nlink set eth0 up\n\
             route add default via 10.77.0.1\nroute add default via fd77::1\n"
        ));
        std::mem::forget(guard);
        Self { shared, gateway, router, lan, clients: 0 }
    }

    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub fn work(&self) -> PathBuf {
        self.shared.work()
    }

    /// Another namespace of this lab, with no links.
    pub fn namespace(&self, part: &str) -> Namespace {
        Namespace::create(&format!("{}{part}", self.shared.prefix))
    }

    /// A client's host with an address of its own: 203.0.113.N and 2001:db8:c:N::2.
    pub fn client(&mut self, name: &str) -> Client {
        self.clients += 1;
        let number = self.clients;
        let namespace = self.namespace(name);
        let port = format!("c{number}");
        let v4 = Ipv4Addr::new(203, 0, 113, number);
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0xc, u16::from(number), 0, 0, 0, 2);
        self.router.ip(&format!(
            "link add {port} type veth peer name eth0 netns {}\naddr add 203.0.113.254/32 dev {port}\n\
             addr add 2001:db8:c:{number:x}::1/64 dev {port} nodad\nlink set {port} up\n\
             route add {v4}/32 dev {port}\n",
            namespace.name()
        ));
        namespace.ip(&format!(
            "addr add {v4}/32 dev eth0\naddr add {v6}/64 dev eth0 nodad\nlink set eth0 up\n\
             route add 203.0.113.254/32 dev eth0\nroute add default via 203.0.113.254 src {v4}\n\
             route add default via 2001:db8:c:{number:x}::1\n"
        ));
        Client::new(Arc::clone(&self.shared), name, namespace, number, v4, v6)
    }

    /// From now on the router masquerades these clients: the gateway sees one address for all of them.
    pub fn masquerade(&self, clients: &[&Client]) {
        let list = |addresses: Vec<String>| addresses.join(", ");
        self.router.nft(&format!(
            "table inet nat {{\nchain post {{\ntype nat hook postrouting priority 100\n\
             ip saddr {{ {} }} oifname uplink masquerade\nip6 saddr {{ {} }} oifname uplink masquerade\n}}\n}}\n",
            list(clients.iter().map(|client| client.outer_v4.to_string()).collect()),
            list(clients.iter().map(|client| client.outer_v6.to_string()).collect())
        ));
    }

    /// Gives the outer address of `from` to `to`, as when a line changes hands: packets to it go there now.
    pub fn hand_over_address(&self, from: &Client, to: &Client) {
        let address = from.outer_v4;
        from.namespace.ip("link set eth0 down");
        self.router.ip(&format!("route replace {address}/32 dev c{}", to.number));
        to.namespace.ip(&format!(
            "addr add {address}/32 dev eth0\nroute replace default via 203.0.113.254 src {address}"
        ));
    }

    /// Polls until `condition` holds, for as long as the lab waits for anything.
    #[track_caller]
    pub fn eventually<T>(&self, what: &str, condition: impl FnMut() -> Option<T>) -> T {
        eventually(what, crate::process::BOUND, condition)
    }

    /// The last lines of every log of this lab.
    pub fn logs(&self) -> String {
        logs(&self.shared.work())
    }

    pub fn lan_ip(&self, v6: bool) -> IpAddr {
        if v6 { LAN_V6.into() } else { LAN_V4.into() }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        clean(&self.shared.prefix, &self.shared.base);
    }
}

/// Cleans what an unfinished constructor made.
struct Cleaner(Arc<Shared>);

impl Drop for Cleaner {
    fn drop(&mut self) {
        clean(&self.0.prefix, &self.0.base);
    }
}

fn logs(folder: &Path) -> String {
    const LINES: usize = 25;
    let mut files: Vec<_> = fs::read_dir(folder)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    files.sort();
    let mut text = String::new();
    for file in files.iter().filter(|file| file.extension().is_some_and(|kind| kind == "log")) {
        let log = read_log(file);
        let lines: Vec<_> = log.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default().join("\n");
        text.push_str(&format!("--- the end of {}\n{tail}\n", file.display()));
    }
    text
}

/// What killed runs of the same lab left: their namespaces and folders carry their pid, which is gone.
fn clean_leftovers(name: &str) {
    let of_dead = |entry: &str, before: &str| -> Option<String> {
        let rest = entry.strip_prefix(before)?;
        let pid: i32 = rest.split('-').next()?.parse().ok()?;
        let dead = !Path::new(&format!("/proc/{pid}")).exists();
        dead.then(|| format!("{before}{pid}"))
    };
    let names = |folder: &str| -> Vec<String> {
        fs::read_dir(folder)
            .map(|entries| {
                entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
            })
            .unwrap_or_default()
    };
    let namespaces = format!("enf-{name}-");
    for prefix in names(FOLDER).iter().filter_map(|entry| of_dead(entry, &namespaces)) {
        clean(&format!("{prefix}-"), Path::new("/nonexistent"));
    }
    let folders = format!("enforcer-lab-{name}-");
    for folder in names("/tmp").iter().filter_map(|entry| of_dead(entry, &folders)) {
        clean("/", &Path::new("/tmp").join(folder));
    }
}

/// Kills whatever runs in the namespaces `prefix…`, deletes them, and takes the folder `base` down. No panic: it
/// runs while a test unwinds; what cannot be done is said.
fn clean(prefix: &str, base: &Path) {
    let ours: Vec<_> = fs::read_dir(FOLDER)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect::<Vec<_>>())
        .unwrap_or_default()
        .into_iter()
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
        .collect();
    let inodes: Vec<u64> =
        ours.iter().filter_map(|path| fs::metadata(path).ok()).map(|meta| meta.ino()).collect();
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        let pids = processes_in(&inodes);
        if pids.is_empty() {
            break;
        }
        for pid in pids {
            let _ = kill(pid, Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    for path in ours {
        let _ = umount2(&path, MntFlags::MNT_DETACH);
        if let Err(error) = fs::remove_file(&path) {
            eprintln!("lab: {} stays: {error}", path.display());
        }
    }
    if base.exists() {
        let _ = umount2(&base.join("w/bpf"), MntFlags::MNT_DETACH);
        if let Err(error) = fs::remove_dir_all(base) {
            eprintln!("lab: {} stays: {error}", base.display());
        }
    }
}

/// The processes whose network namespace is one of these; never this one.
fn processes_in(inodes: &[u64]) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|meta| inodes.contains(&meta.ino()))
        })
        .map(Pid::from_raw)
        .filter(|pid| *pid != nix::unistd::getpid())
        .collect()
}
