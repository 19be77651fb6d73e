//! The proof that what hangs at the devices is in force: a packet that no network can bring is shown to the very
//! programs that the kernel has there (BPF_PROG_TEST_RUN). It has to pass; to be dropped, by its entry, while that
//! stands; and to pass again.
//!
//! That packet, and its entries, which stand for a few milliseconds in the namespace of the programs:
//!
//! - UDP from port 0 to port 0, from and to [`PROBE`], an address of the documentation's prefix (RFC 3849) that routers
//!   do not know; the flow, and the address.
//! - Device 1, the loopback, for which a test run takes itself. No tunnel ends there, so nobody else is dropped; where our
//!   programs do hang there, it is not tried.
//!
//! What a test run cannot show is that the device hands its packets to the program: that is the link's word, or of a
//! clsact filter rtnetlink's.
//!
//! A probe tells no [event](super::Dataplane), since its entry begins with a last hit; and what it adds to the counters
//! is noted in a map of its own, and not told with them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use enforcer_ebpf::counters::Reason;
use enforcer_ebpf::layout::{Address, AddressKey, DeviceKey, FlowKey, Standing, UDP};
use enforcer_ebpf::packet::Framing;

use super::hooks::{Hook, How, Pin};
use super::keys::Key;
use super::tables::Tables;
use super::{Dataplane, Role, filters, host, sys};
use crate::session::{Device, Netns};

/// "enforcer" in letters, within 2001:db8::/32.
const PROBE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x656e, 0x666f, 0x7263, 0x6572, 0, 0);
/// The number of the revocation of a probe's entries, which no other has.
pub(super) const NUMBER: u64 = 0;
/// The device of a test run.
const LOOPBACK: u32 = 1;
/// How long entries stand that a daemon has left which was killed meanwhile.
const STANDS_NS: u64 = 10_000_000_000;

/// What a program returns, by its kind.
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const TC_NEXT: u32 = u32::MAX;
const TC_SHOT: u32 = 2;

/// What was found at a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proof {
    pub netns: Netns,
    pub ifindex: u32,
    /// As it was called when it was attached.
    pub name: String,
    pub role: Role,
    /// What is not in force. Nothing here and in `untried`: probes were dropped in every direction that the role has,
    /// and pass without their entry.
    pub wrong: Vec<String>,
    /// What could not be tried, and why.
    pub untried: Vec<String>,
}

/// What the programs of a namespace are asked.
struct Entries {
    flow: Key,
    address: Key,
    device: Key,
}

impl Entries {
    fn of(netns: Netns) -> Self {
        let address = Address::from(std::net::IpAddr::V6(PROBE));
        let flow = FlowKey {
            client: address,
            local: address,
            client_port: 0,
            local_port: 0,
            protocol: UDP,
            netns: netns.0,
        };
        Self {
            flow: Key::Flow(flow),
            address: Key::Address(AddressKey { address, netns: netns.0 }),
            device: Key::Device(DeviceKey { netns: netns.0, ifindex: LOOPBACK }),
        }
    }

    fn all(&self) -> [Key; 3] {
        [self.flow, self.address, self.device]
    }
}

/// A program that hangs somewhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Hung {
    netns: Netns,
    id: u32,
    hook: Hook,
    bare: bool,
}

/// What is the matter with a program.
#[derive(Default)]
struct Findings {
    wrong: Vec<String>,
    untried: Vec<String>,
}

impl Dataplane {
    /// Shows a probe to every program that hangs where this process has attached one, and says what came of it: one
    /// proof for each device and role, as [`Self::attachments`].
    ///
    /// Each program is tried once, at however many devices it hangs; a device costs a system call or two.
    pub fn prove(&mut self) -> Vec<Proof> {
        let hanging = self.hanging();
        let hung: BTreeSet<Hung> =
            hanging.iter().filter_map(|(_, _, found)| found.as_ref().ok().copied()).collect();
        let mut found = BTreeMap::new();
        for netns in hung.iter().map(|one| one.netns).collect::<BTreeSet<_>>() {
            let there: Vec<Hung> = hung.iter().filter(|one| one.netns == netns).copied().collect();
            let on_loopback = self.attached.keys().any(|(device, hook)| {
                *device == Device { netns, index: LOOPBACK } && hook.role() == Role::Tunnel
            });
            found.extend(prove_in(&mut self.tables, netns, &there, on_loopback));
        }
        let mut proofs: Vec<Proof> = Vec::new();
        for (device, hook, program) in hanging {
            let name = self.attached.get(&(device, hook)).map(|at| at.name.clone()).unwrap_or_default();
            let role = hook.role();
            let same = proofs
                .last_mut()
                .filter(|last| (last.netns, last.ifindex, last.role) == (device.netns, device.index, role));
            let proof = match same {
                Some(same) => same,
                None => {
                    let (wrong, untried) = (Vec::new(), Vec::new());
                    let (netns, ifindex) = (device.netns, device.index);
                    proofs.push(Proof { netns, ifindex, name, role, wrong, untried });
                    let Some(new) = proofs.last_mut() else { continue };
                    new
                }
            };
            match program {
                Err(why) => proof.wrong.push(format!("{}: {why}", hook.name())),
                Ok(hung) => {
                    let Some(Findings { wrong, untried }) = found.get(&hung) else { continue };
                    proof.wrong.extend(wrong.iter().map(|text| format!("{}: {text}", hook.name())));
                    proof.untried.extend(untried.iter().map(|text| format!("{}: {text}", hook.name())));
                }
            }
        }
        proofs
    }

    /// What hangs at each place, as the kernel says; or why nothing of ours does.
    fn hanging(&self) -> Vec<(Device, Hook, Result<Hung, String>)> {
        let mut filters = self.filters();
        let mut all = Vec::with_capacity(self.attached.len());
        for ((device, hook), attached) in &self.attached {
            let id = match attached.how {
                How::Clsact => {
                    filters.remove(&(*device, *hook)).unwrap_or_else(|| Err("it was not looked at".into()))
                }
                how @ (How::XdpNative | How::XdpGeneric | How::Tcx) => {
                    let pin = Pin { device: *device, hook: *hook, how }.path(&self.pins.links);
                    let hanging = match &attached.link {
                        Some(link) => sys::hanging(link.as_fd()),
                        None => sys::open_pin(&pin).and_then(|link| sys::hanging(link.as_fd())),
                    };
                    match hanging {
                        Err(error) => Err(format!("its link cannot be looked at: {error}")),
                        Ok(hanging) if hanging.ifindex == 0 => {
                            Err("somebody has detached its program".into())
                        }
                        Ok(hanging) if hanging.ifindex != device.index => {
                            Err(format!("its program hangs at device {} instead", hanging.ifindex))
                        }
                        Ok(hanging) => Ok(hanging.program),
                    }
                }
            };
            let bare = self.framings.get(device) == Some(&Framing::Bare);
            let found = id.map(|id| Hung { netns: device.netns, id, hook: *hook, bare });
            all.push((*device, *hook, found));
        }
        all
    }

    /// The programs of our clsact filters, asked for namespace by namespace.
    fn filters(&self) -> BTreeMap<(Device, Hook), Result<u32, String>> {
        let clsact =
            |at: &&(Device, Hook)| self.attached.get(at).is_some_and(|there| there.how == How::Clsact);
        let places: Vec<(Device, Hook)> = self.attached.keys().filter(clsact).copied().collect();
        let mut found = BTreeMap::new();
        for netns in places.iter().map(|(device, _)| device.netns).collect::<BTreeSet<_>>() {
            let there: Vec<(Device, Hook)> =
                places.iter().filter(|(device, _)| device.netns == netns).copied().collect();
            let asked: Vec<filters::At> =
                there.iter().map(|(device, hook)| (device.index, hook.is_ingress())).collect();
            let answers = match self.enter(netns) {
                Ok(namespace) => filters::programs(namespace.as_ref().map(|file| file.as_fd()), &asked),
                Err(error) => Err(error),
            };
            match answers {
                Err(error) => found.extend(there.into_iter().map(|at| (at, Err(format!("{error:#}"))))),
                Ok(answers) => {
                    found.extend(there.into_iter().zip(answers.into_iter().map(|answer| match answer {
                        Ok(Some(id)) => Ok(id),
                        Ok(None) => Err("somebody has removed its filter".into()),
                        Err(error) => Err(format!("{error:#}")),
                    })))
                }
            }
        }
        found
    }

    /// `None`: our own.
    fn enter(&self, netns: Netns) -> Result<Option<std::fs::File>> {
        if netns == self.own {
            return Ok(None);
        }
        host::find_netns(netns).map(Some).context("its network namespace is gone")
    }

    /// What a daemon has left that was killed while it probed.
    pub(super) fn sweep_probes(
        tables: &mut Tables,
        namespaces: impl IntoIterator<Item = Netns>,
    ) -> Result<()> {
        for netns in namespaces {
            for key in Entries::of(netns).all() {
                if tables.standing_at(key)?.is_some_and(|standing| standing.revocation == NUMBER) {
                    tables.remove_key(key)?;
                }
            }
        }
        Ok(())
    }
}

/// One namespace's programs, tried.
fn prove_in(tables: &mut Tables, netns: Netns, hung: &[Hung], on_loopback: bool) -> BTreeMap<Hung, Findings> {
    let mut found: BTreeMap<Hung, Findings> = hung.iter().map(|one| (*one, Findings::default())).collect();
    let entries = Entries::of(netns);
    let mut trial = Trial { tables, found: &mut found, programs: open(hung) };
    let outcome = trial.run(hung, &entries, on_loopback);
    // whatever went wrong, none of them stays
    let removed = entries.all().into_iter().try_for_each(|key| {
        let is_probe = trial.tables.standing_at(key)?.is_some_and(|standing| standing.revocation == NUMBER);
        if is_probe { trial.tables.remove_key(key).map(drop) } else { Ok(()) }
    });
    if outcome.is_ok() && removed.is_ok() {
        trial.passes(hung, "drops a probe also after its entry was taken out");
    }
    for error in [outcome, removed].into_iter().filter_map(Result::err) {
        for findings in found.values_mut() {
            findings.untried.push(format!("{error:#}"));
        }
    }
    found
}

fn open(hung: &[Hung]) -> BTreeMap<u32, Result<OwnedFd, String>> {
    let one = |hung: &Hung| (hung.id, sys::program(hung.id).map_err(|error| error.to_string()));
    hung.iter().map(one).collect()
}

struct Trial<'a> {
    tables: &'a mut Tables,
    found: &'a mut BTreeMap<Hung, Findings>,
    programs: BTreeMap<u32, Result<OwnedFd, String>>,
}

/// What became of the probe.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Passed,
    Dropped,
    /// The program does not leave it to whoever comes next.
    Other(u32),
}

impl Trial<'_> {
    /// # Errors
    /// An entry cannot be written, or somebody else's stands in its place.
    fn run(&mut self, hung: &[Hung], entries: &Entries, on_loopback: bool) -> Result<()> {
        for key in entries.all() {
            if let Some(standing) = self.tables.standing_at(key)? {
                anyhow::ensure!(
                    standing.revocation == NUMBER,
                    "revocation {} is about the address of the probe itself ({PROBE}), which nobody has: lift it",
                    standing.revocation
                );
                self.tables.remove_key(key)?;
            }
        }
        self.passes(hung, "drops a probe about which nothing is said");
        let (outer, inner): (Vec<Hung>, Vec<Hung>) = hung.iter().partition(|one| one.hook == Hook::Outer);
        let tunnels: Vec<Hung> =
            inner.iter().filter(|one| one.hook.role() == Role::Tunnel).copied().collect();
        self.dropped(&outer, entries.flow)?;
        self.dropped(&inner, entries.address)?;
        if !on_loopback {
            self.dropped(&tunnels, entries.device)?;
        }
        Ok(())
    }

    fn passes(&mut self, hung: &[Hung], otherwise: &str) {
        for one in hung {
            let fate = self.show(one);
            let Some(findings) = self.found.get_mut(one) else { continue };
            match fate {
                Ok(Fate::Passed) => {}
                Ok(Fate::Dropped) => findings.wrong.push(format!("the program there {otherwise}")),
                Ok(Fate::Other(code)) => {
                    findings.wrong.push(format!("the program there is none of ours: it returns {code}"));
                }
                Err(why) => findings.untried.push(why),
            }
        }
    }

    /// With that entry each of them drops, and the entry counts it.
    fn dropped(&mut self, hung: &[Hung], key: Key) -> Result<()> {
        if hung.is_empty() {
            return Ok(());
        }
        let now = host::monotonic_ns();
        let standing =
            Standing { revocation: NUMBER, expires_ns: now.saturating_add(STANDS_NS), hits: 0, last_ns: now };
        self.tables.put_standing(key, standing).map_err(anyhow::Error::new)?;
        for one in hung {
            let before = self.hits(key)?;
            let fate = self.show(one);
            let counted = self.hits(key)?.saturating_sub(before);
            if counted != 0 {
                let bytes = frame(one.bare).len() as u64;
                self.tables.count_probes(reason(one.hook, key), counted, counted.saturating_mul(bytes))?;
            }
            let Some(findings) = self.found.get_mut(one) else { continue };
            match fate {
                Ok(Fate::Dropped) if counted != 0 => {}
                Ok(Fate::Dropped) => {
                    findings.wrong.push("the program there drops, but by other tables than ours".into());
                }
                Ok(Fate::Passed | Fate::Other(_)) => {
                    findings.wrong.push(format!("a probe was NOT dropped by its {}", word(key)));
                }
                // it was said of the first one
                Err(_) => {}
            }
        }
        self.tables.remove_key(key).map(drop)
    }

    fn hits(&self, key: Key) -> Result<u64> {
        Ok(self.tables.standing_at(key)?.map_or(0, |standing| standing.hits))
    }

    fn show(&self, hung: &Hung) -> Result<Fate, String> {
        let program = match self.programs.get(&hung.id) {
            Some(Ok(program)) => program,
            Some(Err(error)) => return Err(format!("program {} cannot be opened: {error}", hung.id)),
            None => return Err(format!("program {} is not there", hung.id)),
        };
        let code = sys::test_run(program.as_fd(), &frame(hung.bare))
            .map_err(|error| format!("the kernel does not run program {} with a probe: {error}", hung.id))?;
        Ok(match (hung.hook, code) {
            (Hook::Outer, XDP_PASS) => Fate::Passed,
            (Hook::Outer, XDP_DROP) => Fate::Dropped,
            (Hook::LanIn | Hook::LanOut | Hook::TunIn | Hook::TunOut, TC_NEXT) => Fate::Passed,
            (Hook::LanIn | Hook::LanOut | Hook::TunIn | Hook::TunOut, TC_SHOT) => Fate::Dropped,
            (_, code) => Fate::Other(code),
        })
    }
}

fn word(key: Key) -> &'static str {
    match key {
        Key::Flow(_) => "flow",
        Key::Address(_) => "address",
        Key::Device(_) => "device",
        Key::Token(_) | Key::SafeId(_) | Key::Cutoff(_) | Key::Lock(_) => "entry",
    }
}

/// What a program counts that drops by that entry.
fn reason(hook: Hook, key: Key) -> Reason {
    match (hook, key) {
        (Hook::Outer, _) => Reason::DroppedFlow,
        (Hook::TunIn, Key::Device(_)) => Reason::DroppedDeviceIn,
        (Hook::TunOut, Key::Device(_)) => Reason::DroppedDeviceOut,
        (Hook::LanOut | Hook::TunIn, _) => Reason::DroppedAddressFrom,
        (Hook::LanIn | Hook::TunOut, _) => Reason::DroppedAddressTo,
    }
}

/// The probe as a device brings it.
fn frame(bare: bool) -> Vec<u8> {
    let mut frame = Vec::with_capacity(62);
    if !bare {
        frame.extend([0; 12]);
        frame.extend([0x86, 0xdd]);
    }
    frame.extend([0x60, 0, 0, 0, 0, 8, 17, 64]);
    frame.extend(PROBE.octets());
    frame.extend(PROBE.octets());
    // ports 0; nobody checks the checksum
    frame.extend([0, 0, 0, 0, 0, 8, 0, 0]);
    frame
}

#[cfg(test)]
mod tests {
    use enforcer_ebpf::packet::{Outer, outer};

    use super::*;

    #[test]
    fn the_probe_is_the_flow_and_the_address_of_its_entries() {
        for (bare, framing) in [(false, Framing::Ethernet), (true, Framing::Bare)] {
            let Ok(Outer::Segment(segment, _)) = outer(frame(bare).as_slice(), framing) else {
                panic!("it is not read")
            };
            let Entries { flow, address, .. } = Entries::of(Netns(7));
            let Key::Flow(flow) = flow else { panic!("no flow") };
            let Key::Address(address) = address else { panic!("no address") };
            assert_eq!((segment.source, segment.destination), (flow.client, flow.local));
            assert_eq!((segment.source_port, segment.destination_port), (0, 0));
            assert_eq!((segment.protocol, address.address), (flow.protocol, segment.source));
        }
    }
}
