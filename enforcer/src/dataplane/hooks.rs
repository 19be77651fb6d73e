//! Where the programs hang: XDP links, tcx links, clsact filters, and the pins that keep and remember them.
//!
//! A pin's name is `NETNS-IFINDEX-HOOK-HOW`. XDP and tcx hang by links; the pinned link keeps the program in
//! place when the daemon is gone, and its program is replaced in place (BPF_LINK_UPDATE) by the next one. A
//! clsact filter stays by itself; an empty folder of that name remembers it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact,
};
use aya::programs::xdp::{XdpError, XdpLink, XdpMode};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType, Xdp};
use enforcer_ebpf::packet::Framing;

use super::pins::Pins;
use super::programs::Instance;
use super::{Role, TcPreference, XdpPreference, host, sys};
use crate::session::{Device, Netns};

/// Of our clsact filters: fixed, so that the next process finds and replaces them.
pub(super) const PRIORITY: u16 = 7;
pub(super) const MINOR: u16 = 0xe4f0;
const HANDLE: TcHandle = TcHandle::new(0, MINOR);

/// One place at one device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) enum Hook {
    Outer,
    LanIn,
    LanOut,
    TunIn,
    TunOut,
}

impl Hook {
    pub(super) const ALL: [Self; 5] = [Self::Outer, Self::LanIn, Self::LanOut, Self::TunIn, Self::TunOut];

    pub(super) const fn of(role: Role) -> &'static [Self] {
        match role {
            Role::Outer => &[Self::Outer],
            Role::Inner => &[Self::LanIn, Self::LanOut],
            Role::Tunnel => &[Self::TunIn, Self::TunOut],
        }
    }

    pub(super) const fn role(self) -> Role {
        match self {
            Self::Outer => Role::Outer,
            Self::LanIn | Self::LanOut => Role::Inner,
            Self::TunIn | Self::TunOut => Role::Tunnel,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Outer => "outer",
            Self::LanIn => "lan_in",
            Self::LanOut => "lan_out",
            Self::TunIn => "tun_in",
            Self::TunOut => "tun_out",
        }
    }

    fn program(self, framing: Framing) -> String {
        let framing = match framing {
            Framing::Ethernet => "ether",
            Framing::Bare => "bare",
        };
        format!("{}_{framing}", self.name())
    }

    /// Whether it sees what comes in.
    pub(super) fn is_ingress(self) -> bool {
        matches!(self, Self::Outer | Self::LanIn | Self::TunIn)
    }

    /// ... and what it is called.
    pub(super) const fn direction(self) -> (TcAttachType, &'static str) {
        match self {
            Self::Outer | Self::LanIn | Self::TunIn => (TcAttachType::Ingress, "ingress"),
            Self::LanOut | Self::TunOut => (TcAttachType::Egress, "egress"),
        }
    }

    /// By what it may hang.
    const fn ways(self) -> &'static [How] {
        match self {
            Self::Outer => &[How::XdpNative, How::XdpGeneric],
            Self::LanIn | Self::LanOut | Self::TunIn | Self::TunOut => &[How::Tcx, How::Clsact],
        }
    }
}

/// By which means a program hangs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) enum How {
    XdpNative,
    XdpGeneric,
    Tcx,
    Clsact,
}

impl How {
    const ALL: [Self; 4] = [Self::XdpNative, Self::XdpGeneric, Self::Tcx, Self::Clsact];

    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::XdpNative => "xdp native",
            Self::XdpGeneric => "xdp generic",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::XdpNative => "native",
            Self::XdpGeneric => "generic",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// What a pin in the folder of links says.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) struct Pin {
    pub device: Device,
    pub hook: Hook,
    pub how: How,
}

impl Pin {
    pub(super) fn path(&self, links: &Path) -> PathBuf {
        let Device { netns: Netns(netns), index } = self.device;
        links.join(format!("{netns}-{index}-{}-{}", self.hook.name(), self.how.name()))
    }

    /// Every pin that there can be of that hook.
    pub(super) fn possible(device: Device, hook: Hook) -> impl Iterator<Item = Self> {
        hook.ways().iter().map(move |how| Self { device, hook, how: *how })
    }

    fn parse(name: &str) -> Option<Self> {
        let mut parts = name.split('-');
        let netns = Netns(parts.next()?.parse().ok()?);
        let index = parts.next()?.parse().ok()?;
        let hook = parts.next()?;
        let how = parts.next()?;
        Some(Self {
            device: Device { netns, index },
            hook: Hook::ALL.into_iter().find(|known| known.name() == hook)?,
            how: How::ALL.into_iter().find(|known| known.name() == how)?,
        })
    }

    /// All pins, also of earlier processes.
    pub(super) fn all(links: &Path) -> Result<Vec<Self>> {
        let entries = match fs::read_dir(links) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| format!("cannot list {}", links.display()))?,
        };
        Ok(entries.flatten().filter_map(|entry| Self::parse(&entry.file_name().to_string_lossy())).collect())
    }

    /// Forgets it. With a link, the program goes as well, before this returns.
    pub(super) fn forget(&self, links: &Path) -> Result<bool> {
        let path = self.path(links);
        let removed = match self.how {
            How::Clsact => fs::remove_dir(&path),
            How::XdpNative | How::XdpGeneric | How::Tcx => {
                // where it fails, the program goes a moment after the pin
                let _ = sys::open_pin(&path).and_then(|link| sys::detach_link(link.as_fd()));
                fs::remove_file(&path)
            }
        };
        match removed {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).with_context(|| format!("cannot remove {}", path.display())),
        }
    }

    /// Forgets what was at a device that is gone. A tcx program that hangs somewhere still goes a moment later: to take
    /// it out takes the kernel's lock for network devices, and a thousand devices may go at once.
    pub(super) fn let_go(&self, links: &Path) -> Result<()> {
        if self.how != How::Tcx {
            return self.forget(links).map(drop);
        }
        let path = self.path(links);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Takes the program out, also a filter that would stay by itself.
    pub(super) fn take_out(&self, links: &Path) -> Result<()> {
        if self.how == How::Clsact {
            let namespace = host::find_netns(self.device.netns);
            // without its namespace or device the filter is gone already
            if let Some(namespace) = namespace {
                let Self { device, hook, .. } = *self;
                host::within(Some(namespace.as_fd()), move || {
                    let Ok(name) = host::name_of(device.index) else { return Ok(()) };
                    remove_filter(&name, hook)
                })?;
            }
        }
        self.forget(links)?;
        Ok(())
    }
}

/// Gives every program that hangs anywhere, from whatever process, its successor: the one of the same hook and
/// framing that `load` makes for its namespace. In place, without a gap. What hangs nowhere any more is forgotten.
pub(super) fn renew_all(
    pins: &Pins,
    instances: &mut HashMap<Netns, Instance>,
    mut load: impl FnMut(Netns) -> Result<Instance>,
) -> Result<()> {
    for pin in Pin::all(&pins.links)? {
        let netns = pin.device.netns;
        let instance = match instances.entry(netns) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(room) => room.insert(load(netns)?),
        };
        let renewed = match pin.how {
            How::Clsact => renew_clsact(instance, pins, pin),
            How::XdpNative | How::XdpGeneric | How::Tcx => renew_link(instance, pins, pin),
        };
        let path = pin.path(&pins.links);
        if !renewed.with_context(|| format!("cannot replace the program of {}", path.display()))? {
            tracing::debug!(pin = %path.display(), "its device is gone");
            pin.forget(&pins.links)?;
        }
    }
    Ok(())
}

/// Whether a link still hangs at a device.
pub(super) fn hangs(link: &OwnedFd) -> Result<bool> {
    Ok(sys::hanging(link.as_fd()).context("cannot look at a link")?.ifindex != 0)
}

/// `false`: the link's device is gone.
fn renew_link(instance: &mut Instance, pins: &Pins, pin: Pin) -> Result<bool> {
    let path = pin.path(&pins.links);
    let link = sys::open_pin(&path)?;
    let hanging = sys::hanging(link.as_fd())?;
    if hanging.ifindex == 0 {
        return Ok(false);
    }
    let name = sys::program_name(hanging.program)?;
    let framings = [Framing::Ethernet, Framing::Bare];
    let framing = framings.into_iter().find(|framing| pin.hook.program(*framing) == name);
    let framing = framing.with_context(|| format!("its program {name} is none of ours"))?;
    let program = pin.hook.program(framing);
    match pin.hook {
        Hook::Outer => {
            let program = instance.xdp(&program)?;
            renew(&path, |link| renew_xdp(program, link))
        }
        Hook::LanIn | Hook::LanOut | Hook::TunIn | Hook::TunOut => {
            let program = instance.classifier(&program)?;
            renew(&path, |link| renew_tcx(program, link))
        }
    }
}

/// `false`: the filter's device or namespace is gone.
fn renew_clsact(instance: &mut Instance, pins: &Pins, pin: Pin) -> Result<bool> {
    let Some(namespace) = host::find_netns(pin.device.netns) else { return Ok(false) };
    let index = pin.device.index;
    let found = host::within(Some(namespace.as_fd()), || {
        let Ok(name) = host::name_of(index) else { return Ok(None) };
        let framing = host::framing(index, &name)?;
        Ok(Some((name, framing)))
    })?;
    let Some((name, framing)) = found else { return Ok(false) };
    let program = instance.classifier(&pin.hook.program(framing))?;
    let place = Place { netns_fd: Some(namespace.as_fd()), device: pin.device, name: &name, framing };
    attach_clsact(program, pins, &place, pin)?;
    Ok(true)
}

/// What attaching needs to know.
pub(super) struct Place<'a> {
    pub netns_fd: Option<BorrowedFd<'a>>,
    pub device: Device,
    pub name: &'a str,
    pub framing: Framing,
}

pub(super) fn attach_xdp(
    instance: &mut Instance,
    pins: &Pins,
    place: &Place<'_>,
    preference: XdpPreference,
) -> Result<How> {
    let program = instance.xdp(&Hook::Outer.program(place.framing))?;
    let wanted: &[How] = match preference {
        XdpPreference::Auto => &[How::XdpNative, How::XdpGeneric],
        XdpPreference::Native => &[How::XdpNative],
        XdpPreference::Generic => &[How::XdpGeneric],
    };
    let pin = |how| Pin { device: place.device, hook: Hook::Outer, how };
    for how in wanted {
        if renew(&pin(*how).path(&pins.links), |link| renew_xdp(program, link))? {
            return Ok(*how);
        }
    }
    // only one of the two can hang at a device: what is there now was not asked for
    for how in [How::XdpNative, How::XdpGeneric] {
        pin(how).forget(&pins.links)?;
    }
    let mut last = anyhow!("no way to attach was tried");
    let mut taken = false;
    for how in wanted {
        let mode = if *how == How::XdpNative { XdpMode::Driver } else { XdpMode::Skb };
        let attached = host::within(place.netns_fd, || new_xdp(program, place.device.index, mode));
        match attached {
            Ok(link) => {
                keep(link, &pin(*how).path(&pins.links))?;
                return Ok(*how);
            }
            Err(error) if errno(&error) == Some(libc::ENODEV) => {
                return Err(error.context(format!("there is no device {}", place.name)));
            }
            Err(error) => {
                tracing::debug!(device = place.name, how = how.text(), "cannot attach: {error:#}");
                taken |= matches!(errno(&error), Some(libc::EBUSY | libc::EEXIST));
                last = error;
            }
        }
    }
    let name = place.name;
    Err(last.context(match taken {
        false => format!("cannot attach XDP to {name}"),
        true => format!(
            "another XDP program is on {name}, or on a device that it is made of or belongs to, and there is room for \
             one: see `bpftool net`, take it out (`xdp-loader unload {name} --all`, `ip link set dev {name} xdp off`), \
             and ours is attached within some seconds; or leave {name} out of [kernel] outer"
        ),
    }))
}

pub(super) fn attach_tc(
    instance: &mut Instance,
    pins: &Pins,
    place: &Place<'_>,
    hook: Hook,
    preference: TcPreference,
) -> Result<How> {
    let program = instance.classifier(&hook.program(place.framing))?;
    let pin = |how| Pin { device: place.device, hook, how };
    let (tcx, clsact) = (pin(How::Tcx), pin(How::Clsact));
    let how = match preference {
        TcPreference::Tcx => {
            attach_tcx(program, pins, place, tcx)?;
            How::Tcx
        }
        TcPreference::Clsact => {
            attach_clsact(program, pins, place, clsact)?;
            How::Clsact
        }
        TcPreference::Auto => match attach_tcx(program, pins, place, tcx) {
            Ok(()) => How::Tcx,
            Err(error) if errno(&error) == Some(libc::ENODEV) => return Err(error),
            // before Linux 6.6 the kernel does not know the attach type
            Err(error) => {
                tracing::debug!(device = place.name, "no tcx, trying clsact: {error:#}");
                attach_clsact(program, pins, place, clsact)?;
                How::Clsact
            }
        },
    };
    // the new one is in place: what an earlier process left by the other means can go
    let other = if how == How::Tcx { clsact } else { tcx };
    if other.path(&pins.links).exists() {
        other.take_out(&pins.links)?;
    }
    Ok(how)
}

fn attach_tcx(program: &mut SchedClassifier, pins: &Pins, place: &Place<'_>, pin: Pin) -> Result<()> {
    let path = pin.path(&pins.links);
    if renew(&path, |link| renew_tcx(program, link))? {
        return Ok(());
    }
    let (name, index, direction) = (place.name, place.device.index, pin.hook.direction().0);
    let link = host::within(place.netns_fd, || {
        host::verify_name(index, name)?;
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = program.attach_with_options(name, direction, options)?;
        let link = FdLink::try_from(program.take_link(id)?)?;
        // the name may have gone to another device in that very moment
        host::verify_name(index, name)?;
        Ok(link)
    });
    keep(link.with_context(|| format!("cannot attach tcx to {name}"))?, &path)
}

fn attach_clsact(program: &mut SchedClassifier, pins: &Pins, place: &Place<'_>, pin: Pin) -> Result<()> {
    let (name, index, direction) = (place.name, place.device.index, pin.hook.direction().0);
    // remembered first: a filter that nobody knows of would stay for good
    let remembered = pin.path(&pins.links);
    host::make(&remembered)?;
    let attached = host::within(place.netns_fd, || {
        host::verify_name(index, name)?;
        match qdisc_add_clsact(name) {
            Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
            added => added.context("cannot add the clsact qdisc")?,
        }
        let there = SchedClassifierLink::attached(name, direction, PRIORITY, HANDLE, None)?;
        let id = match program.attach_to_link(there) {
            Err(error) if program_errno(&error) == Some(libc::ENOENT) => {
                let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
                program.attach_with_options(name, direction, TcAttachOptions::Netlink(options))?
            }
            replaced => replaced?,
        };
        // dropping it would take the filter out
        std::mem::forget(program.take_link(id)?);
        Ok(())
    });
    // without its device there is no filter to remember
    if attached.as_ref().is_err_and(|error| errno(error) == Some(libc::ENODEV)) {
        pin.forget(&pins.links)?;
    }
    attached.with_context(|| format!("cannot attach a clsact filter to {name}"))
}

/// Takes our filter out. The clsact qdisc stays: others may have filters there.
fn remove_filter(name: &str, hook: Hook) -> Result<()> {
    let link = SchedClassifierLink::attached(name, hook.direction().0, PRIORITY, HANDLE, None)?;
    match aya::programs::links::Link::detach(link) {
        Err(error) if matches!(program_errno(&error), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) => {
            Ok(())
        }
        detached => detached.with_context(|| format!("cannot take our filter from {name}")),
    }
}

/// Puts the current program behind a pinned link. `false` if there is none, or its device is gone (then the
/// pin goes too).
fn renew(path: &Path, update: impl FnOnce(FdLink) -> Result<(), ProgramError>) -> Result<bool> {
    let pinned = match PinnedLink::from_pin(path) {
        Ok(pinned) => pinned,
        Err(LinkError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
            return Ok(false);
        }
        Err(error) => return Err(error).with_context(|| format!("cannot open the link {}", path.display())),
    };
    match update(FdLink::from(pinned)) {
        Ok(()) => Ok(true),
        Err(error) if matches!(program_errno(&error), Some(libc::ENOLINK | libc::ENODEV)) => {
            fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
            Ok(false)
        }
        Err(error) => Err(error).with_context(|| format!("cannot replace the program of {}", path.display())),
    }
}

fn renew_xdp(program: &mut Xdp, link: FdLink) -> Result<(), ProgramError> {
    let id = program.attach_to_link(XdpLink::try_from(link).map_err(not_ours)?)?;
    // we close our end; the pin holds the link
    program.take_link(id).map(drop)
}

fn renew_tcx(program: &mut SchedClassifier, link: FdLink) -> Result<(), ProgramError> {
    let id = program.attach_to_link(SchedClassifierLink::try_from(link).map_err(not_ours)?)?;
    program.take_link(id).map(drop)
}

fn not_ours(error: LinkError) -> ProgramError {
    ProgramError::IOError(io::Error::other(error))
}

fn new_xdp(program: &mut Xdp, ifindex: u32, mode: XdpMode) -> Result<FdLink> {
    let id = program.attach_to_if_index(ifindex, mode)?;
    Ok(FdLink::try_from(program.take_link(id)?)?)
}

fn keep(link: FdLink, path: &Path) -> Result<()> {
    link.pin(path).with_context(|| format!("cannot pin {}", path.display())).map(drop)
}

/// The kernel's error number, if it was the kernel that refused.
fn program_errno(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        ProgramError::IOError(error) | ProgramError::TcError(TcError::IoError(error)) => error.raw_os_error(),
        ProgramError::NetlinkError(error)
        | ProgramError::TcError(TcError::NetlinkError(error))
        | ProgramError::XdpError(XdpError::NetlinkError(error)) => error.raw_os_error(),
        _ => None,
    }
}

fn errno(error: &anyhow::Error) -> Option<i32> {
    error.chain().find_map(|cause| {
        let program = cause.downcast_ref::<ProgramError>().and_then(program_errno);
        program.or_else(|| cause.downcast_ref::<nix::errno::Errno>().map(|errno| *errno as i32))
    })
}

/// Refuses to attach in a namespace that is not the one that was named.
pub(super) fn verify_netns(netns_fd: Option<BorrowedFd<'_>>, netns: Netns) -> Result<()> {
    let actual = netns_fd.map_or_else(host::own_netns, host::netns_of)?;
    if actual != netns {
        bail!("the network namespace given is {}, not {}", actual.0, netns.0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_read_as_they_are_named() {
        for hook in Hook::ALL {
            for how in How::ALL {
                let pin = Pin { device: Device { netns: Netns(4_026_531_840), index: 12 }, hook, how };
                let path = pin.path(Path::new("/x"));
                let name = path.file_name().unwrap().to_str().unwrap();
                assert_eq!(Pin::parse(name), Some(pin));
                assert!(!name.contains('.'), "bpffs refuses names with dots");
            }
        }
        assert_eq!(Pin::parse("maps"), None);
    }
}
