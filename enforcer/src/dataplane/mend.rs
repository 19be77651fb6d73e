//! Pins that went away under the daemon, and the bpffs with them.
//!
//! Nothing falls out for that: the daemon holds a descriptor of every map and of every link that it has attached,
//! and goes on writing into the very maps that the programs read. But a gate finds no maps, and when the daemon
//! ends the links go with it. So everything is pinned again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use enforcer_ebpf::layout::MAPS;

use super::hooks::{self, Hook, Pin};
use super::pins::{Pins, exists};
use super::programs::Instance;
use super::{Dataplane, Role, host, sys};
use crate::session::Device;

/// What [`Dataplane::mend_pins`] had to do.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Mended {
    /// There was no bpffs, and one was mounted.
    pub mounted: bool,
    /// Maps and links that were not pinned any more.
    pub pinned: usize,
    /// Devices to which programs were attached anew: somebody had taken them out, or may have (of a clsact filter
    /// the kernel keeps no descriptor).
    pub attached: usize,
}

impl Mended {
    /// Whether all was well.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// The maps, by descriptor; and how the folders looked when everything was found in them.
pub(super) struct Kept {
    maps: BTreeMap<&'static str, (OwnedFd, u32)>,
    log: OwnedFd,
    /// The root and the maps.
    set: Option<[Folder; 2]>,
    links: Option<Folder>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Folder {
    device: u64,
    inode: u64,
    /// A folder's time changes with what is in it.
    changed: (i64, i64),
}

/// A folder that changed less than that ago may change again with the same time: the kernel's clock for files
/// ticks every few milliseconds.
const SETTLED: Duration = Duration::from_millis(100);

impl Folder {
    fn now(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        let changed = (found.mtime(), found.mtime_nsec());
        Some(Self { device: found.dev(), inode: found.ino(), changed })
    }

    fn is_settled(&self) -> bool {
        let Ok(now) = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) else { return false };
        let (seconds, nanos) = self.changed;
        let at = Duration::new(u64::try_from(seconds).unwrap_or(0), u32::try_from(nanos).unwrap_or(0));
        // also false if the clock was set back
        now.checked_sub(at).is_some_and(|since| since > SETTLED)
    }
}

fn set_now(pins: &Pins) -> Option<[Folder; 2]> {
    Some([Folder::now(&pins.root)?, Folder::now(&pins.maps)?])
}

impl Kept {
    /// What is pinned now.
    pub(super) fn open(pins: &Pins) -> Result<Self> {
        let open =
            |path: &Path| sys::open_pin(path).with_context(|| format!("cannot open {}", path.display()));
        let mut maps = BTreeMap::new();
        for definition in &MAPS {
            let path = pins.maps.join(definition.name);
            let map = open(&path)?;
            let id = sys::map_id(map.as_fd()).with_context(|| cannot_look(&path))?;
            maps.insert(definition.name, (map, id));
        }
        Ok(Self { maps, log: open(&pins.log)?, set: None, links: None })
    }

    /// Refuses programs that would use other maps than ours.
    ///
    /// # Errors
    /// The pins went away while they were loaded.
    pub(super) fn verify(&self, instance: &Instance) -> Result<()> {
        for (name, (_, id)) in &self.maps {
            if instance.map_id(name)? != *id {
                bail!("the pins were taken away while programs were loaded: the map {name} is another one");
            }
        }
        Ok(())
    }

    /// Whether the maps are where they were found.
    pub(super) fn maps_are_well(&self, pins: &Pins) -> bool {
        self.set.is_some() && self.set == set_now(pins) && pins.links.is_dir()
    }

    /// Whether nothing has changed in the folders since everything was there.
    pub(super) fn all_is_well(&self, pins: &Pins) -> bool {
        self.maps_are_well(pins) && self.links.is_some() && self.links == Folder::now(&pins.links)
    }

    /// Everything is there: remembers how that looks.
    pub(super) fn remember(&mut self, pins: &Pins) {
        self.set = set_now(pins).filter(|set| set.iter().all(Folder::is_settled));
        self.links = Folder::now(&pins.links).filter(Folder::is_settled);
    }

    /// Folders, maps and log.
    pub(super) fn mend(&self, pins: &Pins, mended: &mut Mended) -> Result<()> {
        mended.mounted = host::prepare(&pins.root)?;
        host::make(&pins.maps)?;
        host::make(&pins.links)?;
        for (name, (map, id)) in &self.maps {
            let path = pins.maps.join(name);
            match there(&path)? {
                None => {
                    sys::pin(map.as_fd(), &path).with_context(|| cannot_pin(&path))?;
                    mended.pinned += 1;
                }
                Some(pinned) => {
                    if sys::map_id(pinned.as_fd()).with_context(|| cannot_look(&path))? != *id {
                        bail!(
                            "{} is another map than the one that is in force: a second enforcer uses that folder; \
                             stop it, and start this one anew",
                            path.display()
                        );
                    }
                }
            }
        }
        if there(&pins.log)?.is_none() {
            sys::pin(self.log.as_fd(), &pins.log).with_context(|| cannot_pin(&pins.log))?;
        }
        Ok(())
    }
}

fn cannot_look(path: &Path) -> String {
    format!("cannot look at {}", path.display())
}

fn cannot_pin(path: &Path) -> String {
    format!("cannot pin {}", path.display())
}

fn there(path: &Path) -> Result<Option<OwnedFd>> {
    match sys::open_pin(path) {
        Ok(pinned) => Ok(Some(pinned)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| cannot_look(path)),
    }
}

/// The descriptor of a pinned link. None left is no reason to let a device go without its programs: the pin holds
/// them, and without it they are attached anew.
pub(super) fn kept_link(path: &Path) -> Result<Option<OwnedFd>> {
    match sys::open_pin(path) {
        Ok(link) => Ok(Some(link)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
            tracing::warn!(
                "no descriptor for {}: raise the limit of open files (LimitNOFILE=)",
                path.display()
            );
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("cannot open the link {}", path.display())),
    }
}

impl Dataplane {
    /// Makes sure that everything is pinned, and pins it again where it is not: the bpffs may have been unmounted,
    /// pins removed. A handful of system calls when nothing has changed; to be called about once a second.
    ///
    /// # Errors
    /// No bpffs can be mounted, or something cannot be pinned; or another enforcer has pinned its own maps there.
    pub fn mend_pins(&mut self) -> Result<Mended> {
        let mut mended = Mended::default();
        if self.kept.all_is_well(&self.pins) {
            return Ok(mended);
        }
        self.kept.mend(&self.pins, &mut mended)?;
        let mut lost = BTreeSet::new();
        for ((device, hook), attached) in &self.attached {
            let path = Pin { device: *device, hook: *hook, how: attached.how }.path(&self.pins.links);
            if exists(&path)? {
                continue;
            }
            match &attached.link {
                Some(link) if hooks::hangs(link)? => {
                    sys::pin(link.as_fd(), &path).with_context(|| cannot_pin(&path))?;
                    mended.pinned += 1;
                }
                Some(_) | None => {
                    lost.insert((*device, hook.role()));
                }
            }
        }
        for (device, role) in lost {
            mended.attached += usize::from(self.attach_again(device, role)?);
        }
        self.kept.remember(&self.pins);
        Ok(mended)
    }

    /// `false`: the device is gone.
    fn attach_again(&mut self, device: Device, role: Role) -> Result<bool> {
        // what is not attached is not missed any more
        Hook::of(role).iter().for_each(|hook| drop(self.attached.remove(&(device, *hook))));
        let Some(namespace) = host::find_netns(device.netns) else { return Ok(false) };
        let Ok(name) = host::within(Some(namespace.as_fd()), || host::name_of(device.index)) else {
            return Ok(false);
        };
        self.attach(Some(namespace.as_fd()), device.netns, device.index, &name, role)?;
        Ok(true)
    }
}
