//! The object that gateways run, with the maps of a `Dataplane`; and the one with the limits.

use std::path::Path;

use aya::maps::{Array, MapData, MapInfo, ProgramArray};
use aya::programs::{Program, ProgramFd, SchedClassifier, TestRun, TestRunOptions, TestRunResult, Xdp};
use aya::{Ebpf, EbpfLoader, Pod, include_bytes_aligned};
use enforcer::dataplane::Dataplane;
use enforcer::session::Netns;
use enforcer_ebpf::bench::{self, Random};
use enforcer_ebpf::layout::{self, MAPS};
use enforcer_ebpf::packed::HashKeys;

use crate::cpu;

static LIMITS: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/enforcer-bench.bpf.o"));

#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Raw<T>(pub T);
// SAFETY: only used for types of the shared layout, which have no padding.
unsafe impl<T: Copy + 'static> Pod for Raw<T> {}

/// What gateways run in a namespace, with the pinned maps of an open [`Dataplane`].
pub fn ours(pin_path: &Path, netns: Netns) -> Ebpf {
    let maps = pin_path.join("maps");
    let keys = aya::maps::Map::Array(MapData::from_pin(maps.join(layout::HASH_KEYS)).unwrap());
    let secret: HashKeys = Array::<_, Raw<HashKeys>>::try_from(keys).unwrap().get(&0, 0).unwrap().0;
    let entries = |name: &str| MapInfo::from_pin(maps.join(name)).unwrap().max_entries();
    let (flows, addresses) = (entries(layout::FLOW_LINES), entries(layout::ADDRESS_LINES));
    let mut loader = EbpfLoader::new();
    loader.override_global(layout::NETNS, &netns.0, true);
    loader.override_global(layout::HASH_SECRET, &secret, true);
    loader.override_global(layout::FLOW_BUCKET_COUNT, &flows, true);
    loader.override_global(layout::ADDRESS_BUCKET_COUNT, &addresses, true);
    for definition in &MAPS {
        loader.map_max_entries(definition.name, entries(definition.name));
        loader.map_pin_path(definition.name, maps.join(definition.name));
    }
    loaded(loader.load(Dataplane::object()).unwrap())
}

/// The limits. `plain`: how many entries its map of addresses takes, which is a hash map of the kernel's.
pub fn limits(plain: u32) -> Ebpf {
    assert!(!LIMITS.is_empty(), "there are no limits to compare with where the object is a prebuilt one");
    let mut loader = EbpfLoader::new();
    for definition in MAPS.iter().filter(|definition| definition.entries.is_none()) {
        loader.map_max_entries(definition.name, 1);
    }
    loader.map_max_entries(layout::ADDRESSES, plain);
    loaded(loader.load(LIMITS).unwrap())
}

pub fn loaded(mut ebpf: Ebpf) -> Ebpf {
    for (name, program) in ebpf.programs_mut() {
        match program {
            Program::Xdp(program) => program.load(),
            Program::SchedClassifier(program) => program.load(),
            _ => panic!("{name} is neither XDP nor tc"),
        }
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    ebpf
}

pub fn xdp<'a>(ebpf: &'a Ebpf, name: &str) -> &'a Xdp {
    ebpf.program(name).unwrap_or_else(|| panic!("no {name}")).try_into().unwrap()
}

pub fn tc<'a>(ebpf: &'a Ebpf, name: &str) -> &'a SchedClassifier {
    ebpf.program(name).unwrap_or_else(|| panic!("no {name}")).try_into().unwrap()
}

/// The next addresses, and to which device packets are sent, as fast as they can be.
pub fn draw(limits: &mut Ebpf, first: u32, count: u32, ifindex: u32) {
    draw_paced(limits, first, count, ifindex, 0);
}

/// ... and how many nanoseconds are between two of them.
pub fn draw_paced(limits: &mut Ebpf, first: u32, count: u32, ifindex: u32, gap_ns: u32) {
    let mut map: Array<_, Raw<Random>> = limits.map_mut(bench::RANDOM).unwrap().try_into().unwrap();
    let random = Random { state: 0x9e37_79b9_7f4a_7c15, first, count, ifindex, gap_ns, next_ns: 0 };
    map.set(0, Raw(random), 0).unwrap();
}

/// To which program a rewritten packet goes.
pub fn next(limits: &mut Ebpf, array: &str, program: &ProgramFd) {
    let mut map: ProgramArray<_> = limits.map_mut(array).unwrap().try_into().unwrap();
    map.set(0, program, 0).unwrap();
}

/// CPU time in ns for a packet. The program has to answer `answer`.
pub fn cost(
    program: &impl for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
    frame: &[u8],
    answer: u32,
) -> f64 {
    let once = |repeat| {
        let options = TestRunOptions { data_in: Some(frame), repeat, ..TestRunOptions::new() };
        let result = program.test_run(options).unwrap();
        assert_eq!(result.return_value, answer, "the program says something else of that packet");
    };
    // so that what was measured before has left the caches
    once(REPEAT / 8);
    let before = cpu::thread();
    once(REPEAT);
    (cpu::thread() - before) as f64 / f64::from(REPEAT)
}

const REPEAT: u32 = 400_000;

/// UDP over IPv4 after an Ethernet header: a DTLS record with data, 120 bytes of it.
pub fn frame(source: [u8; 4], destination: [u8; 4], macs: [[u8; 6]; 2]) -> Vec<u8> {
    let [from, to] = macs;
    let mut frame = [to, from].concat();
    let mut ip = vec![0x45, 0, 0, 148, 0, 0, 0x40, 0, 64, 17, 0, 0];
    ip.extend(source);
    ip.extend(destination);
    let sum: u32 = ip.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1])).sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend([8, 0]);
    frame.extend(ip);
    frame.extend(CLIENT_PORT.to_be_bytes());
    frame.extend(LOCAL_PORT.to_be_bytes());
    frame.extend([0, 128, 0, 0]);
    frame.extend([23, 0xfe, 0xfd]);
    frame.resize(14 + 148, 0);
    frame
}

pub const CLIENT_PORT: u16 = 40_000;
pub const LOCAL_PORT: u16 = 443;
