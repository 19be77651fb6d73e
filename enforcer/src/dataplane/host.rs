//! What the host is asked: bpffs, network namespaces, devices, the clock.

use std::fs::{self, File};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use enforcer_ebpf::packet::Framing;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::statfs::statfs;
use nix::time::{ClockId, clock_gettime};

use crate::session::Netns;

/// `BPF_FS_MAGIC`
const BPFFS: i64 = 0xcafe_4a11;

/// CLOCK_MONOTONIC in nanoseconds, as the programs read it. 0 if the kernel has no such clock, which it has.
pub(super) fn monotonic_ns() -> u64 {
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else { return 0 };
    u64::try_from(now.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec()).unwrap_or(0)
}

/// Makes the folder, 0700, on a bpffs; mounts one on its parent if there is none. `true`: it did.
pub(super) fn prepare(folder: &Path) -> Result<bool> {
    let parent = folder.parent().context("the pin path needs a parent folder")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let mounts = !is_bpffs(if folder.exists() { folder } else { parent })?;
    if mounts {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("bpf"), parent, Some("bpf"), flags, Some("mode=0700"))
            .with_context(|| format!("cannot mount a bpffs on {}", parent.display()))?;
    }
    make(folder)?;
    // an older run, or somebody's hands, may have left it open
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
        .with_context(|| format!("cannot close {} to others", folder.display()))?;
    Ok(mounts)
}

/// Lets this process have as many descriptors as it may: it holds one for each link, and there are two links at each
/// tunnel device.
pub(super) fn raise_descriptors() -> Result<()> {
    let cannot = "cannot raise the number of open files to the hard limit";
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context(cannot)?;
    if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context(cannot) } else { Ok(()) }
}

/// A folder, 0700; it may be there already.
pub(super) fn make(folder: &Path) -> Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        made => made.with_context(|| format!("cannot make {}", folder.display())),
    }
}

fn is_bpffs(folder: &Path) -> Result<bool> {
    let stat = statfs(folder).with_context(|| format!("cannot look at {}", folder.display()))?;
    Ok(stat.filesystem_type().0 as i64 == BPFFS)
}

/// The namespace of the calling thread.
pub(super) fn own_netns() -> Result<Netns> {
    let stat = fs::metadata("/proc/thread-self/ns/net").context("cannot see our own network namespace")?;
    inode(stat.ino())
}

pub(super) fn netns_of(fd: BorrowedFd<'_>) -> Result<Netns> {
    let stat = nix::sys::stat::fstat(fd).context("cannot look at a network namespace")?;
    inode(stat.st_ino)
}

fn inode(number: u64) -> Result<Netns> {
    u32::try_from(number).map(Netns).with_context(|| format!("{number} is no inode of a network namespace"))
}

/// Runs `work` within the namespace (on a thread of its own, which ends with it), or here if there is none.
pub(super) fn within<T: Send>(
    netns: Option<BorrowedFd<'_>>,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    let Some(netns) = netns else { return work() };
    std::thread::scope(|scope| {
        let inside = scope.spawn(move || {
            setns(netns, CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")?;
            work()
        });
        inside.join().unwrap_or_else(|_| Err(anyhow!("the thread within a network namespace has panicked")))
    })
}

/// A way into the namespace with that inode number: through a name that is mounted (`ip netns`, containers), any
/// process that lives in it, and at last through a thread that does, or a descriptor that somebody holds.
pub(super) fn find_netns(wanted: Netns) -> Option<File> {
    let processes = || {
        folder(Path::new("/proc"))
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().parse::<i32>().is_ok()))
    };
    let living = processes().map(|path| path.join("ns/net"));
    let threads = processes().flat_map(|path| folder(&path.join("task"))).map(|path| path.join("ns/net"));
    let name = format!("net:[{}]", wanted.0);
    let held = processes()
        .flat_map(|path| folder(&path.join("fd")))
        .filter(move |path| fs::read_link(path).is_ok_and(|target| target.as_os_str() == name.as_str()));
    let ways = [PathBuf::from("/proc/thread-self/ns/net")].into_iter().chain(mounted(wanted));
    ways.chain(living).chain(threads).chain(held).find_map(|path| {
        // the inode alone tells; only the right one is opened
        if fs::metadata(&path).ok()?.ino() != u64::from(wanted.0) {
            return None;
        }
        let file = File::open(path).ok()?;
        (netns_of(file.as_fd()).ok()? == wanted).then_some(file)
    })
}

fn folder(path: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Where a namespace is mounted.
fn mounted(wanted: Netns) -> impl Iterator<Item = PathBuf> {
    // ID PARENT MAJOR:MINOR ROOT MOUNTPOINT …, where the root of a namespace's mount is its name
    let root = format!("net:[{}]", wanted.0);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let of_it = |line: &str| {
        let mut words = line.split(' ').skip(3);
        (words.next() == Some(root.as_str())).then(|| words.next().map(unescape)).flatten()
    };
    mounts.lines().filter_map(of_it).collect::<Vec<_>>().into_iter()
}

/// A path as mountinfo has it: space, tab, newline and backslash as three octal digits.
fn unescape(path: &str) -> PathBuf {
    let mut parts = path.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let byte = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match byte {
            Some(byte) => {
                plain.push(char::from(byte));
                plain.push_str(part.get(3..).unwrap_or_default());
            }
            None => plain.push_str(part),
        }
    }
    PathBuf::from(plain)
}

/// How frames of a device begin. Also makes sure that the name and the number mean the same device. To be
/// called within the device's namespace.
pub(super) fn framing(ifindex: u32, name: &str) -> Result<Framing> {
    verify_name(ifindex, name)?;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .context("cannot open a socket to ask for a device")?;
    // SAFETY: zeroes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    // SAFETY: SIOCGIFHWADDR reads the name and writes the address of an ifreq, which outlives the call.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) };
    nix::errno::Errno::result(answer).with_context(|| format!("cannot ask for the type of {name}"))?;
    // SAFETY: the kernel has just written this member.
    let kind = unsafe { request.ifr_ifru.ifru_hwaddr.sa_family };
    Ok(match kind {
        libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => Framing::Ethernet,
        _ => Framing::Bare,
    })
}

/// aya attaches tc filters by name; a name may have gone to another device since.
pub(super) fn verify_name(ifindex: u32, name: &str) -> Result<()> {
    let now = nix::net::if_::if_nametoindex(name).with_context(|| format!("there is no device {name}"))?;
    if now != ifindex {
        bail!("{name} is device {now} by now, not {ifindex}");
    }
    Ok(())
}

/// The name of a device, within its namespace.
pub(super) fn name_of(ifindex: u32) -> Result<String> {
    let missing = || format!("there is no device {ifindex}");
    let name = nix::net::if_::if_indextoname(ifindex).with_context(missing)?;
    // nix 0.31 takes the null pointer of a device that is not there for success
    if name.is_empty() {
        bail!(missing());
    }
    name.into_string().map_err(|_| anyhow!("device {ifindex} has a name that is not text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_has_no_name() {
        assert_eq!(name_of(1).unwrap(), "lo");
        assert!(name_of(u32::MAX >> 1).unwrap_err().to_string().contains("there is no device"));
    }

    #[test]
    fn paths_of_mountinfo_are_read_as_they_were_written() {
        assert_eq!(unescape("/run/netns/a"), Path::new("/run/netns/a"));
        assert_eq!(unescape("/a\\040b\\134c\\011"), Path::new("/a b\\c\t"));
        assert_eq!(unescape("/a\\9"), Path::new("/a9"));
    }
}
