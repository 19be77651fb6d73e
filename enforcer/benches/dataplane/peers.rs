//! What others are told to drop: their rules and sets, of `count` source addresses from `FIRST` on.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use aya::maps::{PerCpuHashMap, PerCpuValues};
use aya::programs::XdpMode;
use aya::util::nr_cpus;
use aya::{Ebpf, EbpfLoader};

use crate::honest::FIRST;
use crate::lane::{DEVICE, Lane, run};
use crate::objects;

/// Where Debian's libxdp keeps xdp-filter's programs.
const XDP_FILTER: &str = "/usr/lib/x86_64-linux-gnu/bpf/xdpfilt_alw_ip.o";
pub const XDP_FILTER_PROGRAM: &str = "xdpfilt_alw_ip";
/// The size of its maps, which nobody can configure.
pub const XDP_FILTER_MOST: u32 = 10_000;

pub fn sources(count: u32) -> impl Iterator<Item = Ipv4Addr> {
    (0..count).map(|number| Ipv4Addr::from(FIRST + number))
}

/// An nftables set with room for so many and a chain that drops what is in it. `chain`: what the chain hangs on.
pub fn nft(family: &str, chain: &str, count: u32, room: u32) -> String {
    let mut text = format!(
        "table {family} t {{\nset s {{ type ipv4_addr; size {room}; }}\nchain c {{ {chain}; ip saddr @s drop; }}\n}}\n"
    );
    let all: Vec<_> = sources(count).collect();
    for some in all.chunks(10_000) {
        let some: Vec<_> = some.iter().map(Ipv4Addr::to_string).collect();
        writeln!(text, "add element {family} t s {{ {} }}", some.join(",")).unwrap();
    }
    text
}

pub fn nft_ingress(lane: &Lane, count: u32, room: u32) {
    let chain = format!("type filter hook ingress device {DEVICE} priority 0");
    lane.here(|| run("nft", &["-f", "-"], &nft("netdev", &chain, count, room)));
}

pub fn nft_prerouting(lane: &Lane, count: u32) {
    lane.here(|| {
        run("nft", &["-f", "-"], &nft("ip", "type filter hook prerouting priority raw", count, count))
    });
}

pub fn ipset(count: u32, room: u32) -> String {
    let mut text = format!("create s hash:ip family inet hashsize 65536 maxelem {room}\n");
    for source in sources(count) {
        writeln!(text, "add s {source}").unwrap();
    }
    text
}

pub fn iptables(lane: &Lane, count: u32, room: u32) {
    lane.here(|| {
        run("ipset", &["restore"], &ipset(count, room));
        let rule = "-t raw -A PREROUTING -m set --match-set s src -j DROP";
        run("iptables", &rule.split(' ').collect::<Vec<_>>(), "");
    });
}

/// xdp-filter's own program and maps, without the dispatcher that its command puts before it.
pub fn xdp_filter(count: u32) -> Ebpf {
    let mut ebpf = objects::loaded(EbpfLoader::new().load_file(XDP_FILTER).expect("the package xdp-tools"));
    // it has pinned them in our own bpffs; the next one gets maps of its own
    for name in ["xdp_stats_map", "filter_ipv4", "filter_ipv6"] {
        std::fs::remove_file(format!("/sys/fs/bpf/{name}")).expect("a pin");
    }
    let mut map: PerCpuHashMap<_, [u8; 4], u64> = ebpf.map_mut("filter_ipv4").unwrap().try_into().unwrap();
    let cpus = nr_cpus().map_err(|(what, error)| format!("{what}: {error}")).unwrap();
    for source in sources(count) {
        // match as source (1)
        let values = PerCpuValues::try_from(vec![1; cpus]).unwrap();
        map.insert(source.octets(), values, 0).unwrap();
    }
    ebpf
}

/// Hangs an XDP program into the driver of the lane's device, as long as `ebpf` lives.
pub fn hang(lane: &Lane, ebpf: &mut Ebpf, name: &str) {
    let program: &mut aya::programs::Xdp = ebpf.program_mut(name).unwrap().try_into().unwrap();
    lane.here(|| program.attach(DEVICE, XdpMode::Driver).map(drop)).unwrap();
}
