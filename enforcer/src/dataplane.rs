//! The kernel side: loads, attaches and pins the BPF programs, and says in their maps what is to be dropped.
//!
//! The only user of aya. Synchronous; owned by the daemon's one loop, which is the only writer of the maps.
//! Everything hangs by pins below one folder on a bpffs, so it goes on without the daemon:
//!
//! ```text
//! PIN_PATH/maps/NAME                     the maps of `enforcer_ebpf::layout::MAPS`
//! PIN_PATH/next, PIN_PATH/last           other sets of maps, while one takes the place of another (`pins`)
//! PIN_PATH/links/NETNS-IFINDEX-HOOK-HOW  links (XDP, tcx), and empty folders that remember clsact filters
//! PIN_PATH/log                           what the programs say
//! ```
//!
//! What is leased ([`Stands::Leased`]) is in force until 10 s after the last [`Dataplane::beat`].

mod capacity;
mod devices;
mod events;
mod filters;
mod gate;
mod hooks;
mod host;
mod keys;
mod mend;
mod migrate;
mod packed;
mod pins;
mod probe;
mod programs;
mod shape;
mod shared;
mod sizes;
mod standings;
mod sys;
mod table;
mod tables;
mod unload;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use aya_log::EbpfLogger;
use enforcer_ebpf::layout::{OPENVPN_PORTS_MOST, OpenvpnPorts};
use enforcer_ebpf::packet::Framing;
use enforcer_ebpf::verdict::lease_holds;

pub use capacity::{Capacities, Cost};
pub use devices::Ahead;
use events::Allowance;
pub use events::{Dropped, Drops, Packet, Untold};
pub use gate::{CutoffFacts, GateMaps, LockFacts, SafeIdFacts};
use hooks::{Hook, How, Pin, Place};
use keys::Key;
pub use mend::Mended;
use mend::{Kept, kept_link};
use pins::Pins;
pub use probe::Proof;
use programs::Instance;
use tables::Tables;
pub use unload::Report;

use crate::session::{Device, Entry, Flow, Netns, Stands, Token};

/// How the kernel side is set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A folder on a bpffs; one is mounted on its parent if there is none. Its name must not contain a dot.
    pub pin_path: PathBuf,
    pub xdp: XdpPreference,
    pub tc: TcPreference,
    pub capacities: Capacities,
    /// Local UDP ports at which OpenVPN is spoken, 1 to 65535, at most [`OPENVPN_PORTS_MOST`] of them. A change is in force
    /// at a device once [`Dataplane::attach`] was called for it.
    pub openvpn_ports: Vec<u16>,
    /// Whoever opens it fills new maps with what stands, and calls [`Dataplane::filled`]: until then no gate takes them
    /// for the whole truth.
    pub fill: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pin_path: PathBuf::from("/sys/fs/bpf/enforcer"),
            xdp: XdpPreference::Auto,
            tc: TcPreference::Auto,
            capacities: Capacities::default(),
            openvpn_ports: Vec::new(),
            fill: false,
        }
    }
}

/// Where XDP runs.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum XdpPreference {
    /// In the driver, and where the driver cannot, in the network stack.
    #[default]
    Auto,
    /// In the driver or not at all.
    Native,
    /// In the network stack.
    Generic,
}

/// How classifiers are attached.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum TcPreference {
    /// tcx (Linux 6.6 and later), otherwise clsact.
    #[default]
    Auto,
    Tcx,
    Clsact,
}

/// What a device is to us, which decides the programs that it gets.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Role {
    /// The clients' packets come in here: XDP.
    Outer,
    /// The LAN is behind it: tc, both directions.
    Inner,
    /// A tunnel ends here: tc, both directions, and the device itself can be revoked.
    Tunnel,
}

/// What only the gate reads of an entry ([`Entry::SafeId`], [`Entry::Cutoff`], [`Entry::Lock`]); zeroes for all
/// others.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct GateFacts {
    /// A hash of the server's name, as the caller makes it; 0 for a lock, which is of no server.
    pub server: u64,
    /// Unix seconds: of a safe_id or a lock, since when it is refused; of a cutoff, up to which moment of
    /// creation cookies are refused.
    pub moment: u64,
}

/// An entry as it stands in the maps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredEntry {
    pub entry: Entry,
    pub revocation: u64,
    /// Always [`Stands::Forever`] for a safe_id or a cutoff; never [`Stands::Leased`] for a lock.
    pub stands: Stands,
    /// Packets dropped, or logins refused.
    pub hits: u64,
    /// CLOCK_MONOTONIC of the last of them in nanoseconds; 0: none, or not known (see [`Hits::last_ns`]).
    pub last_ns: u64,
    pub gate: GateFacts,
}

/// A counter over all CPUs since the maps were made. The reasons: `enforcer_ebpf::counters::Reason`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counter {
    /// `dropped-…` or `passed-…`.
    pub reason: &'static str,
    pub packets: u64,
    pub bytes: u64,
}

/// What an entry has stopped.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Hits {
    /// Packets dropped, or logins refused.
    pub count: u64,
    /// CLOCK_MONOTONIC of the last of them in nanoseconds, packets to 67 ms. 0: there was none, or nobody knows, since a
    /// gate refused a login by itself.
    pub last_ns: u64,
}

impl Hits {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { count: self.count.saturating_add(other.count), last_ns: self.last_ns.max(other.last_ns) }
    }
}

/// How full a table is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usage {
    pub name: &'static str,
    pub used: u64,
    pub capacity: u64,
}

/// A device that has its programs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attachment {
    pub netns: Netns,
    pub ifindex: u32,
    /// As it is called, as far as this process was told ([`Dataplane::rename`]).
    pub name: String,
    pub role: Role,
    /// `xdp native`, `xdp generic`, `tcx` or `clsact`.
    pub how: String,
}

/// Why an entry could not be inserted.
#[derive(Debug, thiserror::Error)]
pub enum InsertError {
    /// Nothing was evicted, and nothing was inserted.
    #[error("the table {map} is full: it holds {capacity} entries")]
    Full { map: &'static str, capacity: u64 },
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

/// The kernel side, opened.
pub struct Dataplane {
    settings: Settings,
    /// What the maps are made for at the moment.
    sized: Capacities,
    openvpn: OpenvpnPorts,
    pins: Pins,
    tables: Tables,
    allowance: Allowance,
    /// The loaded programs, by the namespace in which they run.
    instances: HashMap<Netns, Instance>,
    own: Netns,
    framings: HashMap<Device, Framing>,
    attached: BTreeMap<(Device, Hook), Attached>,
    kept: Kept,
    lapsed: bool,
}

/// What hangs at one place.
struct Attached {
    name: String,
    how: How,
    /// Keeps the program there also without its pin. `None` for a clsact filter, which stays by itself, and where
    /// there were no descriptors left.
    link: Option<OwnedFd>,
}

/// The daemon's loop may be a task that moves between threads.
const _: () = {
    const fn sendable<T: Send>() {}
    sendable::<Dataplane>();
    sendable::<GateMaps>();
};

impl Dataplane {
    /// Makes the maps, or takes over those that an earlier process has pinned, with all that stands in them.
    ///
    /// Maps of an earlier layout or of other capacities are migrated: everything that stands in them is in force
    /// in new maps, and all programs that hang anywhere use those, when this returns; nothing passes meanwhile
    /// that was dropped before. If the maps can stay, the programs of earlier processes go on running until
    /// [`Self::attach`] replaces them.
    ///
    /// # Errors
    /// Pinned maps of a newer layout or of an unknown shape, or a capacity smaller than what is in the table: then
    /// nothing is changed. Ports of OpenVPN that are none or too many. A kernel or a caller that cannot do BPF (root, or
    /// CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN).
    pub fn open(settings: Settings) -> Result<Self> {
        let openvpn = openvpn_ports(&settings.openvpn_ports)?;
        let pins = Pins::below(&settings.pin_path);
        host::raise_descriptors()?;
        host::prepare(&pins.root)?;
        let cut_short = pins.settle()?;
        host::make(&pins.maps)?;
        host::make(&pins.links)?;
        let plan = shape::plan(&pins.maps, &settings.capacities)?;
        remove_if_there(&pins.log)?;
        let own = host::own_netns()?;
        // before a migration renews the lease
        let lapsed = lapsed(&pins)?;
        let instances = if plan.migrates() {
            migrate::migrate(&pins, &plan, openvpn, own)?
        } else {
            let load = |netns| Instance::load(&pins, &plan.sized, openvpn, netns);
            let mut instances = HashMap::from([(own, load(own)?)]);
            // programs that hang somewhere may use maps that are pinned no more
            if cut_short || plan.makes() {
                hooks::renew_all(&pins, &mut instances, load)?;
            }
            instances
        };
        let mut tables = Tables::open(&pins.maps, &settings.capacities, settings.fill)?;
        let elsewhere = hooks::Pin::all(&pins.links)?.into_iter().map(|pin| pin.device.netns);
        Self::sweep_probes(&mut tables, elsewhere.chain([own]).collect::<BTreeSet<_>>())?;
        let allowance = Allowance::open(&pins)?;
        let kept = Kept::open(&pins)?;
        Ok(Self {
            settings,
            sized: plan.sized,
            openvpn,
            pins,
            tables,
            allowance,
            instances,
            own,
            framings: HashMap::new(),
            attached: BTreeMap::new(),
            kept,
            lapsed,
        })
    }

    /// Gives a device the current programs of its role. Idempotent: what hangs there already (by a pin, from
    /// this process or an earlier one) is replaced in place, without a gap, or left if it is current. A device
    /// can have more than one role.
    ///
    /// `netns_fd` is the device's namespace, `None` our own; `netns` is its number. `name` is what the device
    /// is called now.
    ///
    /// # Errors
    /// The device is gone or is called otherwise by now, the namespace is another one, or the kernel refuses.
    /// What was attached before the error stays.
    pub fn attach(
        &mut self,
        netns_fd: Option<BorrowedFd<'_>>,
        netns: Netns,
        ifindex: u32,
        name: &str,
        role: Role,
    ) -> Result<()> {
        // programs that are loaded in this moment must not get maps of their own
        if !self.kept.maps_are_well(&self.pins) {
            let mended = self.mend_pins()?;
            if !mended.is_nothing() {
                tracing::warn!(?mended, "pins had gone, and are there again");
            }
        }
        // our own namespace needs no helper thread, however it was given
        let netns_fd = if netns == self.own { None } else { netns_fd };
        let device = Device { netns, index: ifindex };
        let framing = match self.framings.get(&device) {
            Some(framing) => *framing,
            None => {
                hooks::verify_netns(netns_fd, netns)?;
                let framing = host::within(netns_fd, || host::framing(ifindex, name))?;
                self.framings.insert(device, framing);
                framing
            }
        };
        let place = Place { netns_fd, device, name, framing };
        if !self.instances.contains_key(&netns) {
            let instance = Instance::load(&self.pins, &self.sized, self.openvpn, netns)?;
            self.kept.verify(&instance)?;
            self.instances.insert(netns, instance);
        }
        let instance =
            self.instances.get_mut(&netns).context("the programs of the namespace are not there")?;
        for hook in Hook::of(role) {
            let how = match hook {
                Hook::Outer => hooks::attach_xdp(instance, &self.pins, &place, self.settings.xdp),
                Hook::LanIn | Hook::LanOut | Hook::TunIn | Hook::TunOut => {
                    hooks::attach_tc(instance, &self.pins, &place, *hook, self.settings.tc)
                }
            }?;
            let path = Pin { device, hook: *hook, how }.path(&self.pins.links);
            let link = match how {
                How::Clsact => None,
                How::XdpNative | How::XdpGeneric | How::Tcx => kept_link(&path)?,
            };
            self.attached.insert((device, *hook), Attached { name: name.to_owned(), how, link });
        }
        Ok(())
    }

    /// Takes out what earlier processes have attached and this one has not: to be called once everything that
    /// is configured was attached. Answers how many programs went.
    ///
    /// # Errors
    /// The first that could not be taken out.
    pub fn detach_others(&mut self) -> Result<usize> {
        let mut gone = 0;
        for pin in Pin::all(&self.pins.links)? {
            let attached = self.attached.get(&(pin.device, pin.hook));
            let current = attached.is_some_and(|attached| attached.how == pin.how);
            if !current {
                pin.take_out(&self.pins.links)?;
                gone += 1;
            }
        }
        Ok(gone)
    }

    /// These are put in next, some dozens at a time: a hint, by which the memory that they need is on its way meanwhile.
    pub fn expect<'a>(&self, entries: impl Iterator<Item = &'a Entry> + Clone) {
        self.tables.expect(entries);
    }

    /// Says it in the kernel; the next packet (or login) meets it.
    ///
    /// An entry that is there already: of the same revocation, its `stands` becomes the given one and its hits
    /// are kept; of an older one, the newer takes it over with hits from 0, but never shortens
    /// [`Stands::Forever`] (nor the moment of a cutoff); of a newer one, only `Forever` is added to it. So after
    /// removing an entry for one revocation the caller inserts it again for those that still say it.
    /// `stands` means nothing for a safe_id or a cutoff, and a lock is never leased; `gate` means nothing for
    /// what packets meet.
    ///
    /// # Errors
    /// [`InsertError::Full`] at the table's capacity; nothing is evicted. A lock that is to be leased.
    pub fn insert(
        &mut self,
        entry: &Entry,
        revocation: u64,
        stands: Stands,
        gate: GateFacts,
    ) -> Result<(), InsertError> {
        self.make_room(Key::of(entry))?;
        self.tables.insert(entry, revocation, stands, gate)
    }

    /// Takes it back. `false`: it was not there.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn remove(&mut self, entry: &Entry) -> Result<bool> {
        self.tables.remove(entry)
    }

    /// Everything that stands, also what has expired and what has lapsed.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn entries(&self) -> Result<Vec<StoredEntry>> {
        self.tables.dump()
    }

    /// Packets that the entry has dropped, or logins that gates have refused by it. `None`: no such entry.
    pub fn hits(&self, entry: &Entry) -> Option<u64> {
        self.tables.hits(entry).map(|hits| hits.count)
    }

    /// The same, and when the last of them was.
    pub fn hits_and_last(&self, entry: &Entry) -> Option<Hits> {
        self.tables.hits(entry)
    }

    /// The token that a flow has shown last (a session id of DTLS or OpenVPN), if the programs saw and still remember it.
    pub fn learned(&self, netns: Netns, flow: Flow) -> Option<Token> {
        self.tables.learned(netns, flow)
    }

    /// Counts a login that the daemon itself has refused just now by this entry (a safe_id, a cutoff or a lock).
    pub fn count_gate_hit(&mut self, entry: &Entry) {
        self.tables.count_gate_hit(entry, host::monotonic_ns());
    }

    /// Renews the lease of everything leased for 10 s. To be called about once a second.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn beat(&mut self) -> Result<()> {
        self.tables.beat(host::monotonic_ns())
    }

    /// Whether the lease had lapsed when this process opened the maps: what is leased in them was not in force
    /// for a time, and should be checked before the first [`Self::beat`] puts it in force again. `false` on
    /// maps that are new.
    pub fn lapsed(&self) -> bool {
        self.lapsed
    }

    /// What was dropped, and what passed although something is to be said of it.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn counters(&self) -> Result<Vec<Counter>> {
        self.tables.counters()
    }

    /// What this process has attached: one for each device and role.
    pub fn attachments(&self) -> Vec<Attachment> {
        let mut all: Vec<Attachment> = Vec::new();
        for ((device, hook), Attached { name, how, .. }) in &self.attached {
            let attachment = Attachment {
                netns: device.netns,
                ifindex: device.index,
                name: name.clone(),
                role: hook.role(),
                how: how.text().to_owned(),
            };
            if all.last() != Some(&attachment) {
                all.push(attachment);
            }
        }
        all
    }

    /// What a device was called when it was attached.
    pub fn name_of(&self, device: Device) -> Option<&str> {
        let mut there = self.attached.range((device, Hook::Outer)..=(device, Hook::TunOut));
        there.next().map(|(_, attached)| attached.name.as_str())
    }

    /// How full the tables are; counted, not read.
    pub fn usage(&self) -> Vec<Usage> {
        self.tables.usage()
    }

    /// Everything that stands is in the maps: see [`Settings::fill`].
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn filled(&mut self) -> Result<()> {
        self.tables.filled()
    }

    /// The number that the next revocation gets, as it was last set; 0 on new maps.
    pub fn next_revocation(&self) -> u64 {
        self.tables.next_revocation()
    }

    /// Remembers it in the kernel, for as long as the host runs.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn set_next_revocation(&mut self, next: u64) -> Result<()> {
        self.tables.set_next_revocation(next)
    }

    /// What the programs say, as records for the `log` crate. It is readable (poll its descriptor) when there
    /// is something, and `flush` writes it to [`log::logger`] as that is now:
    ///
    /// ```text
    /// let mut logger = AsyncFd::with_interest(dataplane.logger()?, Interest::READABLE)?;
    /// loop {
    ///     let mut guard = logger.readable_mut().await?;
    ///     guard.get_inner_mut().flush();
    ///     guard.clear_ready();
    /// }
    /// ```
    ///
    /// One at a time: two would take each other's records.
    ///
    /// # Errors
    /// The ring buffer cannot be opened.
    pub fn logger(&self) -> Result<EbpfLogger<&'static dyn log::Log>> {
        let mut instance = Instance::load(&self.pins, &self.sized, self.openvpn, self.own)?;
        self.kept.verify(&instance)?;
        EbpfLogger::init(instance.ebpf()).context("cannot read what the programs say")
    }

    /// The embedded BPF object (ELF), for tools that look at it or run it on their own.
    pub fn object() -> &'static [u8] {
        programs::OBJECT
    }

    /// CLOCK_MONOTONIC in nanoseconds: the clock of [`Stands::Until`] and [`StoredEntry::last_ns`].
    pub fn kernel_monotonic_ns() -> u64 {
        host::monotonic_ns()
    }
}

/// As the programs have them.
fn openvpn_ports(configured: &[u16]) -> Result<OpenvpnPorts> {
    let mut ports = OpenvpnPorts::default();
    if configured.len() > ports.len() || configured.contains(&0) {
        bail!("OpenVPN's ports are {configured:?}: at most {OPENVPN_PORTS_MOST}, from 1 to 65535");
    }
    for (port, configured) in ports.iter_mut().zip(configured) {
        *port = configured.to_be();
    }
    Ok(ports)
}

/// Whether the lease that is written there has run out. `false` if there is none, or never was one.
fn lapsed(pins: &Pins) -> Result<bool> {
    if !pins::exists(&pins.maps.join(enforcer_ebpf::layout::HEARTBEAT))? {
        return Ok(false);
    }
    let heartbeat = tables::Heartbeat::open(&pins.maps)?.read()?;
    Ok(heartbeat != 0 && !lease_holds(heartbeat, host::monotonic_ns()))
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.with_context(|| format!("cannot remove {}", path.display())),
    }
}
