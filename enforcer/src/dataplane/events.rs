//! Drops that the programs tell of one by one (`enforcer_ebpf::events`), and how many they may.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData, RingBuf};
use enforcer_ebpf::counters::Reason;
use enforcer_ebpf::events::{AT_ONCE, Budget, DropEvent, QUIET_NS};
use enforcer_ebpf::layout::{self, Address, TCP, UDP};

use super::pins::Pins;
use super::shared::Shared;
use super::table::{self, from_bytes};
use super::{Dataplane, host};
use crate::session::{Device, Entry, Flow, Netns, Protocol};

/// One drop that the programs have told of: the first of its entry, or the first after a minute of silence.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dropped {
    /// CLOCK_MONOTONIC in nanoseconds.
    pub at_ns: u64,
    /// As in [`super::Counter::reason`].
    pub reason: &'static str,
    /// The device that brought the packet, or was about to send it.
    pub device: Device,
    /// Whose packet it was and for whom, as far as the programs read it.
    pub packet: Option<Packet>,
    /// The entry that dropped it, where the packet names it: not of a token, an ICMP error or a fragment.
    pub entry: Option<Entry>,
    /// `None`: it was not at hand; [`Dataplane::revocation_of`] the entry tells it.
    pub revocation: Option<u64>,
    /// Not the entry's first, but the first after a minute.
    pub again: bool,
}

/// The ends of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packet {
    Flow { protocol: Protocol, from: SocketAddr, to: SocketAddr },
    Addresses { from: IpAddr, to: IpAddr },
}

impl Packet {
    fn ends(&self) -> (IpAddr, IpAddr) {
        match self {
            Self::Flow { from, to, .. } => (from.ip(), to.ip()),
            Self::Addresses { from, to } => (*from, *to),
        }
    }
}

impl std::fmt::Display for Packet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flow { protocol, from, to } => write!(f, "{protocol} {from} -> {to}"),
            Self::Addresses { from, to } => write!(f, "{from} -> {to}"),
        }
    }
}

/// Drops that nobody was told of, since the maps were made.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Untold {
    /// There were more of them than are told of.
    pub suppressed: u64,
    /// Nobody had read the earlier ones.
    pub lost: u64,
}

/// What the programs tell. Its descriptor is readable when there is something.
pub struct Drops(RingBuf<MapData>);

impl Drops {
    /// The next one, if there is one. What is no event of ours is passed over.
    pub fn next_drop(&mut self) -> Option<Dropped> {
        loop {
            let item = self.0.next()?;
            if let Some(told) = from_bytes::<DropEvent>(&item).and_then(read) {
                return Some(told);
            }
        }
    }
}

impl AsRawFd for Drops {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn read(event: DropEvent) -> Option<Dropped> {
    let reason = *Reason::ALL.get(usize::try_from(event.reason).ok()?)?;
    let netns = Netns(event.netns);
    let device = Device { netns, index: event.ifindex };
    let packet = packet(&event);
    let entry = match (reason, packet) {
        (Reason::DroppedFlow, Some(Packet::Flow { protocol, from, to })) => {
            Flow::new(protocol, from, to).ok().map(|flow| Entry::Flow(netns, flow))
        }
        (Reason::DroppedAddressFrom, Some(packet)) => Some(Entry::Address(netns, packet.ends().0)),
        (Reason::DroppedAddressTo, Some(packet)) => Some(Entry::Address(netns, packet.ends().1)),
        (Reason::DroppedDeviceIn | Reason::DroppedDeviceOut, _) => Some(Entry::Device(device)),
        _ => None,
    };
    Some(Dropped {
        at_ns: event.at_ns,
        reason: reason.name(),
        device,
        packet,
        entry,
        revocation: (event.revocation != 0).then_some(event.revocation),
        again: event.again != 0,
    })
}

fn packet(event: &DropEvent) -> Option<Packet> {
    if event.source == Address::default() && event.destination == Address::default() {
        return None;
    }
    let (from, to) = (IpAddr::from(event.source), IpAddr::from(event.destination));
    let protocol = match event.protocol {
        TCP => Protocol::Tcp,
        UDP => Protocol::Udp,
        _ => return Some(Packet::Addresses { from, to }),
    };
    let end = |address, port: u16| SocketAddr::new(address, u16::from_be(port));
    Some(Packet::Flow { protocol, from: end(from, event.source_port), to: end(to, event.destination_port) })
}

/// How many of them the programs may tell.
pub(super) struct Allowance {
    budget: Shared<Budget>,
    /// When more were allowed last.
    at_ns: u64,
}

/// The programs may tell [`AT_ONCE`] more once a second.
const EVERY_NS: u64 = 1_000_000_000;

impl Allowance {
    pub(super) fn open(pins: &Pins) -> Result<Self> {
        let (map, _) = table::open(&pins.maps, layout::EVENT_BUDGET)?;
        let budget = Shared::of(map.fd(), 1).context("cannot share the memory of the map event_budget")?;
        Ok(Self { budget, at_ns: 0 })
    }

    /// # Errors
    /// The map has no such entry, which it has.
    fn field(&self, field: impl Fn(*mut Budget) -> *mut u64) -> Result<&AtomicU64> {
        let budget = self.budget.at(0).context("the map event_budget is empty")?;
        // SAFETY: a field of the one entry, which is mapped as long as `self` and aligned to eight bytes; whoever else
        // writes it does so by instructions that are atomic.
        Ok(unsafe { AtomicU64::from_ptr(field(budget)) })
    }

    fn allow(&mut self, now_ns: u64) -> Result<()> {
        if self.at_ns != 0 && now_ns.saturating_sub(self.at_ns) < EVERY_NS {
            return Ok(());
        }
        self.at_ns = now_ns;
        // SAFETY: the address of a field.
        let asked = self.field(|budget| unsafe { &raw mut (*budget).asked })?.load(Ordering::Relaxed);
        // SAFETY: likewise.
        let allowed = self.field(|budget| unsafe { &raw mut (*budget).allowed })?;
        allowed.store(asked.saturating_add(AT_ONCE), Ordering::Relaxed);
        Ok(())
    }

    fn untold(&self) -> Result<Untold> {
        // SAFETY: the address of a field.
        let suppressed = self.field(|budget| unsafe { &raw mut (*budget).suppressed })?;
        // SAFETY: likewise.
        let lost = self.field(|budget| unsafe { &raw mut (*budget).lost })?;
        Ok(Untold { suppressed: suppressed.load(Ordering::Relaxed), lost: lost.load(Ordering::Relaxed) })
    }
}

impl Dataplane {
    /// For how long an entry must have dropped nothing for its next drop to be told of.
    pub const QUIET: std::time::Duration = std::time::Duration::from_nanos(QUIET_NS);
    /// How many drops are told of in a second, at most.
    pub const TOLD_EACH_SECOND: u64 = AT_ONCE;

    /// First drops, as the programs tell of them from now on, and those of before that nobody has read. One at a time:
    /// two would take each other's.
    ///
    /// # Errors
    /// The ring buffer cannot be opened.
    pub fn drops(&self) -> Result<Drops> {
        let (map, _) = table::open(&self.pins.maps, layout::EVENTS)?;
        let ring = RingBuf::try_from(Map::RingBuf(map)).context("the map events is not ours")?;
        Ok(Drops(ring))
    }

    /// Allows the programs to tell of [`Self::TOLD_EACH_SECOND`] more, unless that was done within this second. To be
    /// called about once a second by whoever reads them; without it they fall silent.
    ///
    /// # Errors
    /// The map is not what it should be.
    pub fn allow_drops(&mut self) -> Result<()> {
        self.allowance.allow(host::monotonic_ns())
    }

    /// Of how many drops the programs did not tell.
    ///
    /// # Errors
    /// The map is not what it should be.
    pub fn untold(&self) -> Result<Untold> {
        self.allowance.untold()
    }

    /// The number of the revocation that an entry carries, of those that packets meet. `None`: no such entry.
    pub fn revocation_of(&self, entry: &Entry) -> Option<u64> {
        let standing = self.tables.standing_at(super::Key::of(entry)).ok()??;
        Some(standing.revocation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(reason: Reason, protocol: u32) -> DropEvent {
        let address = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
        DropEvent {
            source: address("192.0.2.1"),
            destination: address("198.51.100.1"),
            source_port: 40_000_u16.to_be(),
            destination_port: 443_u16.to_be(),
            protocol,
            netns: 7,
            ifindex: 3,
            reason: reason as u32,
            ..DropEvent::default()
        }
    }

    #[test]
    fn an_event_names_its_entry_and_its_packet() {
        let told = read(event(Reason::DroppedFlow, UDP)).unwrap();
        assert_eq!(told.packet.unwrap().to_string(), "udp 192.0.2.1:40000 -> 198.51.100.1:443");
        let Some(Entry::Flow(Netns(7), flow)) = told.entry else { panic!("{told:?}") };
        assert_eq!(flow.client().port(), 40_000);
        let told = read(event(Reason::DroppedAddressFrom, TCP)).unwrap();
        assert_eq!(told.entry, Some(Entry::Address(Netns(7), "192.0.2.1".parse().unwrap())));
        let told = read(event(Reason::DroppedAddressTo, 0)).unwrap();
        assert_eq!(told.packet.unwrap().to_string(), "192.0.2.1 -> 198.51.100.1");
        assert_eq!(told.entry, Some(Entry::Address(Netns(7), "198.51.100.1".parse().unwrap())));
        let unread = DropEvent {
            reason: Reason::DroppedDeviceIn as u32,
            ifindex: 3,
            netns: 7,
            ..DropEvent::default()
        };
        let told = read(unread).unwrap();
        assert_eq!(
            (told.packet, told.entry),
            (None, Some(Entry::Device(Device { netns: Netns(7), index: 3 })))
        );
        assert_eq!(read(event(Reason::DroppedToken, UDP)).unwrap().entry, None);
    }

    /// A newer version's programs may have told it.
    #[test]
    fn a_reason_that_is_not_known_is_no_event() {
        assert_eq!(read(DropEvent { reason: 99, ..DropEvent::default() }), None);
        assert!(from_bytes::<DropEvent>(&[0; 71]).is_none());
    }
}
