//! Which devices have programs, for whom: those that the configuration chooses, as they come, go, and change their
//! names; and the tunnel devices of sessions.
//!
//! Attaching one classifier takes the kernel 15 ms (it waits for an RCU grace period, and holds its lock for network
//! devices meanwhile). So devices that appear stand in a queue, and the loop takes a few at a time between its other
//! work. A session's device does not stand there: it has its programs before the gate answers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::time::{Duration, Instant};

use crate::control::api;
use crate::dataplane::{Ahead, Role};
use crate::links::{Change, Link, Lister};
use crate::registry::Event;
use crate::session::{Device, Netns};

use super::Daemon;
use super::checks::finding;
use super::choice::choose;
use super::following::Watching;

/// How long the loop attaches before it looks at its other work.
const SLICE: Duration = Duration::from_millis(20);
/// How often what could not be attached is tried again, and it is looked whether everything still hangs.
const AGAIN_EVERY: Duration = Duration::from_secs(5);
/// How many troubles `check` and `show status` tell.
const MAX_TROUBLES: usize = 20;

type Place = (Device, Role);

#[derive(Default)]
pub(super) struct Interfaces {
    /// What the configuration has chosen.
    chosen: BTreeSet<Place>,
    /// Tunnel devices of sessions. They keep their programs, whatever they are called.
    pub sessions: BTreeSet<Device>,
    due: VecDeque<Place>,
    /// What is in `due`.
    queued: BTreeSet<Place>,
    /// Where programs could not be attached, and why.
    failing: BTreeMap<Place, String>,
    /// Names in the configuration that no interface has.
    pub missing: BTreeMap<Netns, Vec<String>>,
    looked: Option<Instant>,
    /// Up to where it was looked whether everything hangs still.
    looked_at: Option<Place>,
    pub watchers: BTreeMap<Netns, Watching>,
}

/// What a watcher tells the loop.
pub(super) struct Told {
    pub netns: Netns,
    pub change: Change,
    pub links: Result<Vec<Link>, String>,
}

impl Interfaces {
    /// Whether something waits to be attached.
    pub fn is_due(&self) -> bool {
        !self.due.is_empty()
    }

    fn queue(&mut self, place: Place) {
        if self.queued.insert(place) {
            self.due.push_back(place);
        }
    }

    fn next(&mut self) -> Option<Place> {
        // what is not in `queued` any more was given up
        loop {
            let place = self.due.pop_front()?;
            if self.queued.remove(&place) {
                return Some(place);
            }
        }
    }

    fn wants(&self, place: Place) -> bool {
        let (device, role) = place;
        self.chosen.contains(&place) || role == Role::Tunnel && self.sessions.contains(&device)
    }

    /// The device is gone.
    fn forget(&mut self, device: Device) {
        self.sessions.remove(&device);
        for role in [Role::Outer, Role::Inner, Role::Tunnel] {
            let place = (device, role);
            self.chosen.remove(&place);
            self.failing.remove(&place);
            self.queued.remove(&place);
        }
    }

    /// What is wrong: whatever is configured and cannot be.
    pub fn troubles(&self) -> Vec<String> {
        let names = self.missing.values().flatten();
        let missing = names.map(|name| {
            format!(
                "no interface is called {name}, which the configuration names: it gets its programs when it appears"
            )
        });
        let mut all: Vec<String> = missing.chain(self.failing.values().cloned()).collect();
        let more = all.len().saturating_sub(MAX_TROUBLES);
        if more > 0 {
            all.truncate(MAX_TROUBLES);
            all.push(format!("… and {more} more interfaces"));
        }
        all
    }
}

impl Daemon {
    /// Before the loop runs: what is there and chosen has its programs when this returns.
    pub(super) fn attach_own_interfaces(&mut self) {
        self.list_interfaces(self.namespaces.own());
        let mut beaten = Instant::now();
        while self.interfaces.is_due() {
            self.attach_due();
            // a thousand new devices take half a minute; leases must not lapse meanwhile, nor systemd give up
            if beaten.elapsed() >= super::BEAT_EVERY {
                beaten = Instant::now();
                if let Err(error) = self.dataplane.beat() {
                    self.warn(format!("the lease of addresses and flows could not be renewed: {error:#}"));
                }
                let _ = sd_notify::notify(false, &[sd_notify::NotifyState::ExtendTimeoutUsec(30_000_000)]);
            }
        }
    }

    /// Everything that is chosen in that namespace is queued, at once.
    pub(super) fn list_interfaces(&mut self, netns: Netns) {
        let wanted = self.wanted_in(netns);
        let listed = Lister::open(self.namespaces.fd(netns), wanted).and_then(|mut lister| lister.list());
        let links = listed.map_err(|error| error.to_string());
        self.interfaces_changed(Told { netns, change: Change::default(), links });
    }

    /// For `check`.
    pub(super) fn interface_findings(&self) -> Vec<api::Finding> {
        let troubles = self.interfaces.troubles().into_iter();
        let mut findings: Vec<api::Finding> = troubles.map(|text| finding("warning", text, "")).collect();
        for netns in self.namespaces.known() {
            let (ahead, all) = match self.dataplane.ahead(self.namespaces.fd(netns), netns) {
                Ok(looked) => looked,
                Err(error) => {
                    let what = format!("whose programs are before ours cannot be told: {error:#}");
                    findings.push(finding("warning", what, ""));
                    continue;
                }
            };
            if !all {
                let what = "there are too many devices to look at each of them for programs before ours";
                findings.push(finding("warning", what, "ask again when fewer come and go"));
            }
            findings.extend(ahead.into_iter().take(MAX_TROUBLES).map(|ahead| {
                let Ahead { device, direction, program } = ahead;
                finding(
                    "warning",
                    format!("{device}: the program {program} sees packets ({direction}) before ours does: what it accepts or redirects is not dropped"),
                    "attach it behind ours (after, not before or first), or make sure that it only passes on",
                )
            }));
        }
        findings
    }

    pub(super) fn interfaces_changed(&mut self, told: Told) {
        let Told { netns, change, links } = told;
        for index in &change.gone {
            let device = Device { netns, index: *index };
            if self.devices.contains(&device) {
                self.device_gone(device);
            }
        }
        // what has gone from one namespace may have come into another, and is to be let go of first
        self.sweep();
        if !self.namespaces.knows(netns) {
            return;
        }
        let links = match links {
            Ok(links) => links,
            Err(why) => {
                return self.warn(format!("the interfaces of net:[{}] cannot be listed: {why}", netns.0));
            }
        };
        for link in &links {
            self.dataplane.rename(Device { netns, index: link.index }, &link.name);
        }
        let all = self.patterns_in(netns);
        let mut chosen = BTreeSet::new();
        for patterns in &all {
            let picked = choose(&links, patterns).into_iter();
            chosen.extend(picked.map(|(link, role)| (Device { netns, index: link.index }, role)));
        }
        for place in &chosen {
            if !self.dataplane.is_attached(place.0, place.1) {
                self.interfaces.queue(*place);
            }
        }
        // a filter may be somebody else's, or ours: it is put there again
        if change.overrun || !change.unfiltered.is_empty() {
            for place in self.dataplane.by_filter(netns) {
                if change.overrun || change.unfiltered.contains(&place.0.index) {
                    self.interfaces.queue(place);
                }
            }
        }
        // found by its address or route, an interface keeps its programs when it has lost them: it may get them back
        let stays = |role| all.iter().any(|patterns| !patterns.names(role));
        let there: BTreeSet<u32> = links.iter().map(|link| link.index).collect();
        let dropped: Vec<Place> = (self.interfaces.chosen.iter())
            .filter(|place| {
                let (device, role) = **place;
                device.netns == netns
                    && there.contains(&device.index)
                    && !chosen.contains(*place)
                    && !stays(role)
            })
            .copied()
            .collect();
        for place in dropped {
            self.not_chosen_any_more(place);
        }
        self.interfaces.chosen.extend(chosen);
        let mut missing: Vec<String> = all.iter().flat_map(|patterns| patterns.missing(&links)).collect();
        missing.dedup();
        self.interfaces.missing.insert(netns, missing);
    }

    fn not_chosen_any_more(&mut self, place: Place) {
        let (device, role) = place;
        self.interfaces.chosen.remove(&place);
        self.interfaces.queued.remove(&place);
        self.interfaces.failing.remove(&place);
        if role == Role::Tunnel && self.interfaces.sessions.contains(&device) {
            return;
        }
        match self.dataplane.detach(device, role) {
            Ok(()) => {
                let name = self.namespaces.name_of(device).unwrap_or_default();
                self.note(
                    "kernel",
                    format!("{name}: the configuration does not name it any more: its programs went"),
                );
            }
            Err(error) => self.warn(format!("programs could not be taken out: {error:#}")),
        }
    }

    /// A session has that tunnel device.
    pub(super) fn attach_session(&mut self, device: Device) {
        self.interfaces.sessions.insert(device);
        if !self.dataplane.is_attached(device, Role::Tunnel) {
            self.attach((device, Role::Tunnel));
        }
    }

    /// A part of what waits.
    pub(super) fn attach_due(&mut self) {
        let until = Instant::now() + SLICE;
        while let Some(place) = self.interfaces.next() {
            if self.interfaces.wants(place) {
                self.attach(place);
            }
            if Instant::now() >= until {
                return;
            }
        }
    }

    fn attach(&mut self, place: Place) {
        let (device, role) = place;
        self.devices.insert(device);
        // its name now: it may have got another one since somebody told of it. One that is gone needs nothing
        let Some(name) = self.namespaces.name_of(device) else { return };
        let fd = self.namespaces.fd(device.netns);
        match self.dataplane.attach(fd, device.netns, device.index, &name, role) {
            Ok(()) => {
                if self.interfaces.failing.remove(&place).is_some() {
                    self.note("kernel", format!("{name}: its programs are in place now"));
                }
            }
            Err(error) => match self.namespaces.name_of(device) {
                None => {}
                Some(now) if now != name => self.interfaces.queue(place),
                Some(_) => {
                    self.cannot_attach(place, format!("{name}: nothing can be dropped there: {error:#}"))
                }
            },
        }
    }

    fn cannot_attach(&mut self, place: Place, why: String) {
        if self.interfaces.failing.get(&place) != Some(&why) {
            tracing::warn!("{why}");
            self.interfaces.failing.insert(place, why);
        }
    }

    /// Devices that are gone; and, less often, what should hang and does not.
    pub(super) fn sweep(&mut self) {
        let again = self.interfaces.looked.is_none_or(|looked| looked.elapsed() >= AGAIN_EVERY);
        if again {
            self.interfaces.looked = Some(Instant::now());
            self.leave_namespaces();
        }
        let gone: Vec<Device> = (self.devices.iter())
            .filter(|device| match self.namespaces.knows(device.netns) {
                true => self.namespaces.name_of(**device).is_none(),
                // nobody can be asked there, but what hangs there hangs as long as the device is there
                false => again && !self.dataplane.still_hangs(**device),
            })
            .copied()
            .collect();
        for device in gone {
            self.device_gone(device);
        }
        if again {
            self.try_again();
        }
        if again || self.interfaces.looked_at.is_some() {
            self.look_again();
        }
        if !self.interfaces.is_due() {
            self.detach_leftovers();
        }
    }

    fn device_gone(&mut self, device: Device) {
        self.devices.remove(&device);
        self.interfaces.forget(device);
        self.dataplane.detach_gone(device);
        self.handle(Event::DeviceGone { device });
    }

    /// What could not be attached is tried again.
    fn try_again(&mut self) {
        let failing: Vec<Place> = self.interfaces.failing.keys().copied().collect();
        failing.into_iter().for_each(|place| self.interfaces.queue(place));
    }

    /// Whether everything hangs still: a part of it, and the next time the next one. Each look takes the kernel's lock
    /// for network devices, for which others may wait long.
    fn look_again(&mut self) {
        let until = Instant::now() + SLICE;
        let from = self.interfaces.looked_at.map_or(Bound::Unbounded, Bound::Excluded);
        let sessions: BTreeSet<Place> =
            self.interfaces.sessions.iter().map(|device| (*device, Role::Tunnel)).collect();
        let rest: Vec<Place> = (self.interfaces.chosen.range((from, Bound::Unbounded)))
            .chain(sessions.range((from, Bound::Unbounded)))
            .copied()
            .collect::<BTreeSet<Place>>()
            .into_iter()
            .collect();
        for place in rest {
            let (device, role) = place;
            if self.namespaces.knows(device.netns) && !self.dataplane.hangs(device, role) {
                self.interfaces.queue(place);
            }
            if Instant::now() >= until {
                self.interfaces.looked_at = Some(place);
                return;
            }
        }
        self.interfaces.looked_at = None;
    }
}
