//! What hangs at a device, and what becomes of it when the device changes its name, its role, or goes.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use aya::programs::SchedClassifier;

use super::hooks::{self, Hook, How, Pin};
use super::{Dataplane, Role, host, sys};
use crate::session::{Device, Netns};

/// How long the caller of [`Dataplane::ahead`] waits at most: every look takes the kernel's lock for network devices.
const LOOK: Duration = Duration::from_millis(250);

/// Somebody's program that sees the packets of a device before ours does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ahead {
    /// What the device was called when ours was attached.
    pub device: String,
    /// `ingress` or `egress`.
    pub direction: &'static str,
    /// The name of the program, as far as the kernel keeps it.
    pub program: String,
}

impl Dataplane {
    /// Whether this process has attached all programs of that role there. Asks nobody: see [`Self::hangs`].
    pub fn is_attached(&self, device: Device, role: Role) -> bool {
        Hook::of(role).iter().all(|hook| self.attached.contains_key(&(device, *hook)))
    }

    /// ... and whether they hang there still. Of a clsact filter nobody can tell that without asking for it: it is taken
    /// for there. Takes the kernel's lock for network devices, for which others may wait long.
    pub fn hangs(&self, device: Device, role: Role) -> bool {
        Hook::of(role).iter().all(|hook| {
            self.attached.get(&(device, *hook)).is_some_and(|attached| match &attached.link {
                // one that cannot be looked at is attached anew
                Some(link) => hooks::hangs(link).unwrap_or(false),
                None => true,
            })
        })
    }

    /// Where clsact filters of this process hang in a namespace.
    pub fn by_filter(&self, netns: Netns) -> Vec<(Device, Role)> {
        let mut all: Vec<(Device, Role)> = (self.attached.iter())
            .filter(|((device, _), attached)| device.netns == netns && attached.how == How::Clsact)
            .map(|((device, hook), _)| (*device, hook.role()))
            .collect();
        all.dedup();
        all
    }

    /// The device is called so now.
    pub fn rename(&mut self, device: Device, name: &str) {
        for hook in Hook::ALL {
            if let Some(attached) = self.attached.get_mut(&(device, hook))
                && attached.name != name
            {
                name.clone_into(&mut attached.name);
            }
        }
    }

    /// Takes out the programs of that role, also those of earlier processes: nothing is dropped for it there any more.
    ///
    /// # Errors
    /// The first that could not be taken out.
    pub fn detach(&mut self, device: Device, role: Role) -> Result<()> {
        for hook in Hook::of(role) {
            self.attached.remove(&(device, *hook));
            for pin in Pin::possible(device, *hook) {
                if super::pins::exists(&pin.path(&self.pins.links))? {
                    pin.take_out(&self.pins.links)?;
                }
            }
        }
        self.let_go_of(device.netns);
        Ok(())
    }

    /// The device is gone, or in another namespace: forgets it and drops its pins. Its entries are the caller's to
    /// remove. Where it moved, XDP is out when this returns, since it would be in the way of what belongs there; tcx is a
    /// moment later.
    pub fn detach_gone(&mut self, device: Device) {
        self.framings.remove(&device);
        for hook in Hook::ALL {
            self.attached.remove(&(device, hook));
            for pin in Pin::possible(device, hook) {
                if let Err(error) = pin.let_go(&self.pins.links) {
                    tracing::warn!("{error:#}");
                }
            }
        }
        self.let_go_of(device.netns);
    }

    /// Programs of a foreign namespace are not kept for nothing.
    fn let_go_of(&mut self, netns: Netns) {
        if netns != self.own && !self.attached.keys().any(|(device, _)| device.netns == netns) {
            self.instances.remove(&netns);
        }
    }

    /// Whether anything that is pinned for that device, by whatever process, hangs at it still: `false` if the device is
    /// gone, also where nobody can look into its namespace.
    pub fn still_hangs(&self, device: Device) -> bool {
        Hook::ALL.into_iter().flat_map(|hook| Pin::possible(device, hook)).any(|pin| {
            let path = pin.path(&self.pins.links);
            if pin.how == How::Clsact {
                return path.exists()
                    && host::find_netns(device.netns).is_some_and(|netns| {
                        host::within(Some(netns.as_fd()), || host::name_of(device.index)).is_ok()
                    });
            }
            match sys::open_pin(&path).and_then(|link| sys::hanging(link.as_fd())) {
                Ok(hanging) => hanging.ifindex != 0,
                Err(error) => error.kind() != io::ErrorKind::NotFound,
            }
        })
    }

    /// Programs of others that see packets before ours, where ours hang by tcx: what one of them accepts or takes away
    /// never comes to ours. `netns_fd` is that namespace, `None` our own. `false` beside them: there are so many devices,
    /// or the kernel is so busy with them, that not all could be looked at in a quarter of a second.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the kernel does not tell.
    pub fn ahead(&self, netns_fd: Option<BorrowedFd<'_>>, netns: Netns) -> Result<(Vec<Ahead>, bool)> {
        let until = Instant::now() + LOOK;
        let ours: Vec<(&str, Hook, &OwnedFd)> = (self.attached.iter())
            .filter(|((device, _), attached)| device.netns == netns && attached.how == How::Tcx)
            .filter_map(|((_, hook), attached)| {
                attached.link.as_ref().map(|link| (attached.name.as_str(), *hook, link))
            })
            .collect();
        let netns_fd = if netns == self.own { None } else { netns_fd };
        host::within(netns_fd, move || {
            let mut all = Vec::new();
            for (device, hook, link) in ours {
                if Instant::now() >= until {
                    return Ok((all, false));
                }
                let ours = sys::hanging(link.as_fd()).context("cannot look at a link")?;
                // what hangs nowhere, or at a device that is gone by now, has nobody ahead
                let (direction, text) = hook.direction();
                let Ok((_, programs)) = SchedClassifier::query_tcx(device, direction) else { continue };
                if ours.ifindex == 0 {
                    continue;
                }
                let ahead = programs.iter().take_while(|program| program.id() != ours.program);
                all.extend(ahead.map(|program| Ahead {
                    device: device.to_owned(),
                    direction: text,
                    program: program.name_as_str().unwrap_or("?").to_owned(),
                }));
            }
            Ok((all, true))
        })
    }
}
