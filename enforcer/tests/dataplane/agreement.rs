//! The programs in the kernel and the same code on the host say the same of every packet.

use aya::maps::HashMap;
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions, Xdp};
use aya::{EbpfLoader, Pod};
use enforcer::dataplane::Dataplane;
use enforcer_ebpf::layout::{self, DeviceKey, MAPS, Standing};
use enforcer_ebpf::packet::Framing;
use enforcer_ebpf::verdict::{self, Verdict};

use crate::lab::lab;
use crate::packets::{self, Memory, Packet, client_hello};

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Raw<T>(T);
// SAFETY: only used for keys and values of the shared layout, which have no padding.
unsafe impl<T: Copy + 'static> Pod for Raw<T> {}

/// A small generator, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    /// A packet of few addresses and ports, of any shape, sometimes cut off or with a byte changed.
    fn frame(&mut self) -> Vec<u8> {
        let v6 = self.below(2) == 0;
        let ends: &[&str] = if v6 {
            &["[2001:db8::1]:1", "[2001:db8::1]:2", "[2001:db8::2]:1"]
        } else {
            &["192.0.2.1:1", "192.0.2.1:2", "198.51.100.1:1"]
        };
        let protocol = self.one(&[6, 17, 17, 17, 1]);
        let mut packet = Packet::new(protocol, self.one(ends), self.one(ends));
        packet.tags = self.one(&[
            None,
            Some(vec![]),
            Some(vec![]),
            Some(vec![0x8100]),
            Some(vec![0x88a8, 0x8100]),
            Some(vec![0x88a8, 0x8100, 0x8100]),
        ]);
        packet.options = self.one(&[0, 0, 1, 5, 10]);
        for _ in 0..self.one(&[0, 0, 1, 3, 6, 8]) {
            packet.extensions.push((self.one(&[0, 43, 60, 51]), self.below(5) as u8));
        }
        packet.fragment = self.one(&[None, None, None, Some(0), Some(8)]);
        if self.below(2) == 0 {
            let length = self.below(34);
            packet.payload = client_hello(&vec![3; length]);
        }
        let mut bytes = packet.bytes();
        match self.below(4) {
            0 => bytes.truncate(self.below(bytes.len() + 1)),
            1 => {
                let at = self.below(bytes.len());
                bytes[at] ^= 1 << self.below(8);
            }
            _ => {}
        }
        // the kernel's test run takes no less
        if bytes.len() < 14 {
            bytes.resize(14, 0);
        }
        bytes
    }
}

#[test]
fn kernel_and_host_agree_on_thousands_of_packets() {
    lab(|lab| {
        let netns = lab.netns().0;
        let mut loader = EbpfLoader::new();
        loader.override_global(layout::NETNS, &netns, true);
        for definition in MAPS.iter().filter(|definition| definition.entries.is_none()) {
            loader.map_max_entries(definition.name, 4096);
        }
        let mut ebpf = loader.load(Dataplane::object()).unwrap();
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let mut memory = Memory { netns, ..Memory::default() };
        // every second flow, address and length of session id is revoked
        let ends = ["192.0.2.1:1", "192.0.2.1:2", "198.51.100.1:1", "[2001:db8::1]:1", "[2001:db8::1]:2"];
        let mut kinds = [u64::MAX, 1].into_iter().cycle();
        let mut standing =
            move || Standing { revocation: 1, expires_ns: kinds.next().unwrap(), hits: 0, last_ns: 0 };
        for from in ends {
            for to in ends {
                if from.starts_with('[') == to.starts_with('[') {
                    for protocol in [6, 17] {
                        let key = Packet::new(protocol, from, to).flow(netns);
                        if random.below(2) == 0 {
                            memory.flows.insert(key, standing());
                        }
                    }
                }
            }
        }
        for length in (1..=32).step_by(2) {
            memory.tokens.insert(packets::token(&vec![3; length]), standing());
        }
        for address in ["192.0.2.1", "2001:db8::2"] {
            memory.addresses.insert(packets::address(address, netns), standing());
        }
        memory.now_ns = 2;
        fill(&mut ebpf, layout::FLOWS, &memory.flows);
        fill(&mut ebpf, layout::TOKENS, &memory.tokens);
        fill(&mut ebpf, layout::ADDRESSES, &memory.addresses);
        for (name, program) in ebpf.programs_mut() {
            match program {
                aya::programs::Program::Xdp(program) => program.load(),
                aya::programs::Program::SchedClassifier(program) => program.load(),
                _ => panic!("{name} is neither XDP nor tc"),
            }
            .unwrap();
        }
        let mut dropped = 0;
        for number in 0..4000 {
            let bytes = random.frame();
            let frame = bytes.as_slice();
            for (suffix, framing) in [("ether", Framing::Ethernet), ("bare", Framing::Bare)] {
                let name = format!("outer_{suffix}");
                let xdp: &Xdp = ebpf.program(&name).unwrap().try_into().unwrap();
                let expected = verdict::outer(&memory, frame, framing);
                let is = xdp.test_run(options(frame)).unwrap().return_value;
                let drops = matches!(expected, Verdict::Drop(_));
                dropped += u32::from(drops);
                assert_eq!(is, if drops { 1 } else { 2 }, "{number} {name} {expected:?} {frame:02x?}");
                for hook in ["lan_in", "lan_out", "tun_in", "tun_out"] {
                    let name = format!("{hook}_{suffix}");
                    let tc: &SchedClassifier = ebpf.program(&name).unwrap().try_into().unwrap();
                    let expected = match hook {
                        "lan_in" => verdict::lan_ingress(&memory, frame, framing),
                        "lan_out" => verdict::lan_egress(&memory, frame, framing),
                        "tun_in" => verdict::tunnel_ingress(&memory, 1, frame, framing),
                        _ => verdict::tunnel_egress(&memory, 1, frame, framing),
                    };
                    // the kernel itself refuses some frames that claim to be IP and are too short for it
                    let Ok(is) = tc.test_run(options(frame)) else { continue };
                    let drops = matches!(expected, Verdict::Drop(_));
                    dropped += u32::from(drops);
                    let code = if drops { 2 } else { u32::MAX };
                    assert_eq!(is.return_value, code, "{number} {name} {expected:?} {frame:02x?}");
                }
            }
        }
        assert!(dropped > 1000, "only {dropped} drops: the packets are too foreign");
        // the test run's device is the loopback device, 1
        memory.devices.insert(DeviceKey { netns, ifindex: 1 }, packets::forever(1));
        fill(&mut ebpf, layout::DEVICES, &memory.devices);
        for name in ["tun_in_ether", "tun_in_bare", "tun_out_ether", "tun_out_bare"] {
            let tc: &SchedClassifier = ebpf.program(name).unwrap().try_into().unwrap();
            let mut arp = vec![0xff; 12];
            arp.extend([8, 6]);
            arp.resize(60, 0);
            assert_eq!(tc.test_run(options(&arp)).unwrap().return_value, 2, "{name}");
        }
    });
}

fn options(frame: &[u8]) -> TestRunOptions<'_> {
    TestRunOptions { data_in: Some(frame), ..TestRunOptions::new() }
}

fn fill<K: Copy + 'static>(
    ebpf: &mut aya::Ebpf,
    name: &str,
    entries: &std::collections::HashMap<K, Standing>,
) {
    let mut map: HashMap<_, Raw<K>, Raw<Standing>> = HashMap::try_from(ebpf.map_mut(name).unwrap()).unwrap();
    for (key, value) in entries {
        map.insert(Raw(*key), Raw(*value), 0).unwrap();
    }
}
