//! A genuine set of pins of the layout 1 or 2: made from an object that has that layout (the build compiles it from
//! the programs' source without what came later), by the steps that the version of that time took.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

use std::fs;
use std::path::{Path, PathBuf};

use aya::maps::{Array, HashMap, Map, MapData};
use aya::programs::links::FdLink;
use aya::programs::tc::{NlOptions, TcAttachOptions, TcHandle, qdisc_add_clsact};
use aya::programs::xdp::XdpMode;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, Xdp};
use aya::{Ebpf, EbpfLoader, Pod};
use enforcer::session::Netns;
use enforcer_ebpf::layout::{CutoffValue, Digest, GateHitKey, LockValue, SafeIdValue, Standing};

use crate::lab::ifindex;

static OBJECTS: [&[u8]; 2] = [
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/enforcer-abi-1.bpf.o")),
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/enforcer-abi-2.bpf.o")),
];

/// What those versions called their maps, the last one since 2; the capacities are the test's.
const TABLES: [&str; 7] = ["flows", "addresses", "devices", "tokens", "safe_ids", "cutoffs", "locks"];
const OTHERS: [&str; 5] = ["gate_hits", "counters", "quiet", "meta", "heartbeat"];

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Raw<T>(T);
// SAFETY: only used for keys and values of the shared layout, which have no padding.
unsafe impl<T: Copy + 'static> Pod for Raw<T> {}

pub struct Past {
    abi: u32,
    ebpf: Ebpf,
    pins: PathBuf,
    netns: Netns,
}

impl Past {
    /// Makes the maps, or takes over those that are there: one for each namespace.
    pub fn open(abi: u32, pins: &Path, netns: Netns, capacity: u32) -> Self {
        let object = OBJECTS[abi as usize - 1];
        assert!(
            !object.is_empty(),
            "the object of that layout is compiled by the build; with a prebuilt object there is none"
        );
        let tables = &TABLES[..5 + abi as usize];
        let mut loader = EbpfLoader::new();
        loader.override_global("NETNS", &netns.0, true);
        for folder in [pins.to_owned(), pins.join("maps"), pins.join("links")] {
            fs::create_dir_all(folder).unwrap();
        }
        for name in tables {
            loader.map_max_entries(name, capacity);
        }
        loader.map_max_entries("gate_hits", (1 + abi) * capacity);
        for name in tables.iter().chain(&OTHERS) {
            loader.map_pin_path(name, pins.join("maps").join(name));
        }
        loader.map_pin_path("AYA_LOGS", pins.join("log"));
        let ebpf = loader.load(object).unwrap();
        let mut new = Self { abi, ebpf, pins: pins.to_owned(), netns };
        new.meta(0);
        new
    }

    fn map(&self, name: &str) -> MapData {
        MapData::from_pin(self.pins.join("maps").join(name)).unwrap()
    }

    pub fn meta(&mut self, next_revocation: u64) {
        let mut meta = Array::<_, [u64; 2]>::try_from(Map::Array(self.map("meta"))).unwrap();
        // abi and a reserved word, as one number
        let abi = u64::from_ne_bytes([self.abi.to_ne_bytes(), [0; 4]].concat().try_into().unwrap());
        meta.set(0, [abi, next_revocation], 0).unwrap();
    }

    pub fn beat(&mut self, now_ns: u64) {
        Array::<_, u64>::try_from(Map::Array(self.map("heartbeat"))).unwrap().set(0, now_ns, 0).unwrap();
    }

    fn put<K: Copy + 'static, V: Copy + 'static>(&self, name: &str, key: K, value: V) {
        let mut map = HashMap::<_, Raw<K>, Raw<V>>::try_from(Map::HashMap(self.map(name))).unwrap();
        map.insert(Raw(key), Raw(value), 0).unwrap();
    }

    pub fn standing<K: Copy + 'static>(&self, name: &str, key: K, revocation: u64, expires_ns: u64) {
        self.put(name, key, Standing { revocation, expires_ns, hits: 0, last_ns: 0 });
    }

    pub fn safe_id(&self, id: [u8; 20], value: SafeIdValue) {
        self.put("safe_ids", Digest::new(&id), value);
    }

    pub fn cutoff(&self, id: [u8; 20], value: CutoffValue) {
        self.put("cutoffs", Digest::new(&id), value);
    }

    pub fn lock(&self, key: [u8; 20], value: LockValue) {
        self.put("locks", Digest::new(&key), value);
    }

    pub fn gate_hits(&self, kind: u32, id: [u8; 20], hits: u64) {
        self.put("gate_hits", GateHitKey { kind, id: Digest::new(&id) }, hits);
    }

    fn pin(&self, device: &str, hook: &str, how: &str) -> PathBuf {
        self.pins.join("links").join(format!("{}-{}-{hook}-{how}", self.netns.0, ifindex(device)))
    }

    /// In the calling thread's namespace, as all that attaches.
    pub fn xdp(&mut self, device: &str) {
        let pin = self.pin(device, "outer", "native");
        let program: &mut Xdp = self.ebpf.program_mut("outer_ether").unwrap().try_into().unwrap();
        program.load().unwrap();
        let id = program.attach_to_if_index(ifindex(device), XdpMode::Driver).unwrap();
        FdLink::try_from(program.take_link(id).unwrap()).unwrap().pin(pin).unwrap();
    }

    pub fn tc(&mut self, device: &str, clsact: bool) {
        for (hook, direction) in [("lan_in", TcAttachType::Ingress), ("lan_out", TcAttachType::Egress)] {
            let pin = self.pin(device, hook, if clsact { "clsact" } else { "tcx" });
            let program: &mut SchedClassifier =
                self.ebpf.program_mut(&format!("{hook}_ether")).unwrap().try_into().unwrap();
            program.load().unwrap();
            if clsact {
                fs::create_dir(pin).unwrap();
                let _ = qdisc_add_clsact(device);
                let options = NlOptions { priority: 7, handle: TcHandle::new(0, 0xe4f0), classid: None };
                let options = TcAttachOptions::Netlink(options);
                let id = program.attach_with_options(device, direction, options).unwrap();
                std::mem::forget(program.take_link(id).unwrap());
            } else {
                let options = TcAttachOptions::TcxOrder(LinkOrder::first());
                let id = program.attach_with_options(device, direction, options).unwrap();
                FdLink::try_from(program.take_link(id).unwrap()).unwrap().pin(pin).unwrap();
            }
        }
    }
}
