//! Processes that cannot be taken for their successors: start times, pidfds, pid and network namespaces.
//!
//! A leaf that the adapters share. What it needs: to read `/proc/PID` of ocserv's processes
//! (`CAP_SYS_PTRACE`), and to signal them (`CAP_KILL`).

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::session::{Netns, Process};

#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("process {0} is gone")]
    Gone(i32),
    #[error("process {0} is no longer the one that was meant: its number was given to another")]
    Successor(i32),
    #[error("no process of ocserv's pid namespace has the number {0} there")]
    NotThere(i32),
    #[error("cannot read {path}: {source}")]
    Read { path: String, source: io::Error },
    #[error("{path} does not read as expected")]
    Odd { path: String },
    #[error("{call} of process {pid}: {source}")]
    Call { call: &'static str, pid: i32, source: io::Error },
}

pub type Result<T> = std::result::Result<T, ProcessError>;

/// A process directory that vanishes is a process that is gone, not a fault.
fn failed(pid: i32, path: &str, source: io::Error) -> ProcessError {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => ProcessError::Gone(pid),
        _ => ProcessError::Read { path: path.to_owned(), source },
    }
}

fn read(pid: i32, what: &str) -> Result<Vec<u8>> {
    let path = format!("/proc/{pid}/{what}");
    fs::read(&path).map_err(|source| failed(pid, &path, source))
}

/// The state, the parent and the start time, from `/proc/PID/stat` (proc_pid_stat(5): fields 3, 4 and 22).
fn stat(pid: i32) -> Result<(u8, i32, u64)> {
    let bytes = read(pid, "stat")?;
    parse_stat(&bytes).ok_or_else(|| ProcessError::Odd { path: format!("/proc/{pid}/stat") })
}

fn parse_stat(bytes: &[u8]) -> Option<(u8, i32, u64)> {
    // the name in field 2 may hold blanks and parentheses: what counts starts after the last one
    let after = bytes.iter().rposition(|byte| *byte == b')')? + 1;
    let mut fields = std::str::from_utf8(bytes.get(after..)?).ok()?.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let parent = fields.next()?.parse().ok()?;
    let start = fields.nth(17)?.parse().ok()?;
    Some((state, parent, start))
}

/// The start time of a process in clock ticks after boot.
pub fn start_time(pid: i32) -> Result<u64> {
    Ok(stat(pid)?.2)
}

/// The user whose rights it has (`Uid:` of `/proc/PID/status`: the effective one).
pub fn uid_of(pid: i32) -> Result<u32> {
    let status = read(pid, "status")?;
    parse_uid(&String::from_utf8_lossy(&status))
        .ok_or_else(|| ProcessError::Odd { path: format!("/proc/{pid}/status") })
}

fn parse_uid(status: &str) -> Option<u32> {
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    uids.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The process that has this number now.
pub fn identify(pid: i32) -> Result<Process> {
    Ok(Process { pid, start: start_time(pid)? })
}

/// Whether exactly this process runs. One that has ended and is only waited for (a zombie) does not.
pub fn is_alive(process: Process) -> bool {
    stat(process.pid).is_ok_and(|(state, _, start)| start == process.start && !matches!(state, b'Z' | b'X'))
}

/// The parent's number.
pub fn parent(pid: i32) -> Result<i32> {
    Ok(stat(pid)?.1)
}

fn open_netns(pid: i32, path: &str) -> Result<(Netns, OwnedFd)> {
    let file = fs::File::open(path).map_err(|source| failed(pid, path, source))?;
    let inode = file.metadata().map_err(|source| failed(pid, path, source))?.ino();
    let inode = u32::try_from(inode).map_err(|_| ProcessError::Odd { path: path.to_owned() })?;
    Ok((Netns(inode), file.into()))
}

/// The network namespace of a process, and a descriptor that keeps it and can be given to setns(2).
pub fn netns_of(pid: i32) -> Result<(Netns, OwnedFd)> {
    open_netns(pid, &format!("/proc/{pid}/ns/net"))
}

/// The network namespace of the calling thread.
pub fn own_netns() -> Result<(Netns, OwnedFd)> {
    open_netns(0, "/proc/thread-self/ns/net")
}

fn pid_namespace(pid: &str) -> io::Result<std::path::PathBuf> {
    fs::read_link(Path::new("/proc").join(pid).join("ns/pid"))
}

/// The last number of the `NSpid:` line: the process in its own, innermost pid namespace.
fn innermost(status: &str) -> Option<i32> {
    status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_ascii_whitespace().last()?.parse().ok()
}

/// Our number of the process that `main` knows as `inner`: ocserv may run in a pid namespace of its own.
pub fn host_pid(main: Process, inner: i32) -> Result<i32> {
    let failed_main = |source| failed(main.pid, "the link ns/pid", source);
    let theirs = pid_namespace(&main.pid.to_string()).map_err(failed_main)?;
    if !is_alive(main) {
        return Err(ProcessError::Gone(main.pid));
    }
    if theirs == pid_namespace("self").map_err(failed_main)? {
        return Ok(inner);
    }
    let list = fs::read_dir("/proc").map_err(|source| failed(0, "/proc", source))?;
    for entry in list.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // the cheap test first; processes come and go while we look
        let Ok(status) = fs::read(entry.path().join("status")) else { continue };
        if innermost(&String::from_utf8_lossy(&status)) == Some(inner)
            && pid_namespace(&pid.to_string()).is_ok_and(|link| link == theirs)
        {
            return Ok(pid);
        }
    }
    Err(ProcessError::NotThere(inner))
}

/// A worker process of ocserv, held by a pidfd: whatever is done to it cannot hit a successor.
#[derive(Debug)]
pub struct Worker {
    process: Process,
    pidfd: OwnedFd,
}

impl Worker {
    /// Opens exactly this process: the start time is compared after the pidfd is there.
    pub fn open(process: Process) -> Result<Self> {
        let call = |source| match source {
            source if io::Error::raw_os_error(&source) == Some(libc::ESRCH) => {
                ProcessError::Gone(process.pid)
            }
            source => ProcessError::Call { call: "pidfd_open", pid: process.pid, source },
        };
        // SAFETY: pidfd_open(2) takes two integers and returns a new descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, process.pid, 0) };
        let fd =
            i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(|| call(io::Error::last_os_error()))?;
        // SAFETY: the descriptor was just returned to us, and nobody else has it.
        let pidfd = unsafe { OwnedFd::from_raw_fd(fd) };
        if start_time(process.pid)? != process.start {
            return Err(ProcessError::Successor(process.pid));
        }
        Ok(Self { process, pidfd })
    }

    pub fn process(&self) -> Process {
        self.process
    }

    pub(crate) fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// SIGKILL: works on a stopped process too. One that has exited already is no error.
    pub fn kill(&self) -> Result<()> {
        // SAFETY: pidfd_send_signal(2) with no siginfo reads nothing from us.
        let done = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                libc::SIGKILL,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        let source = io::Error::last_os_error();
        if done == 0 || source.raw_os_error() == Some(libc::ESRCH) {
            return Ok(());
        }
        Err(ProcessError::Call { call: "pidfd_send_signal", pid: self.process.pid, source })
    }

    /// Whether it has exited. By then its descriptors are closed (`exit_files` comes before `exit_notify` in
    /// the kernel's `do_exit`).
    pub fn has_exited(&self) -> bool {
        let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        nix::poll::poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Until it has exited.
    pub async fn exited(&self) -> Result<()> {
        let failed =
            |source| ProcessError::Call { call: "waiting for the exit", pid: self.process.pid, source };
        // a duplicate: epoll knows one descriptor once, and several may wait
        let own = self.pidfd.try_clone().map_err(failed)?;
        // SAFETY: an OwnedFd stays the same open descriptor until it is dropped, which AsyncFd does last.
        let fd = unsafe { AsyncFd::register_with_interest(own, Interest::READABLE) };
        let fd = fd.map_err(|error| failed(error.into()))?;
        let _ready = fd.readable().await.map_err(failed)?;
        Ok(())
    }
}

/// The name of the tun device that a worker holds, from `iff:` in `/proc/PID/fdinfo` (`tun_chr_show_fdinfo`).
/// None if it has none yet, or any more.
pub fn tun_of(worker: &Worker) -> Result<Option<String>> {
    let pid = worker.process.pid;
    let path = format!("/proc/{pid}/fdinfo");
    let list = match fs::read_dir(&path) {
        Ok(list) => list,
        Err(source) => return Err(failed(pid, &path, source)),
    };
    let mut found = None;
    for entry in list {
        let Ok(entry) = entry else { break };
        let Ok(info) = fs::read(entry.path()) else { continue };
        let name = info.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"iff:"));
        if let Some(name) = name.and_then(|name| std::str::from_utf8(name).ok()) {
            found = Some(name.trim().to_owned());
            break;
        }
    }
    // what was read under a number that has changed hands is worth nothing
    if worker.has_exited() { Err(ProcessError::Gone(pid)) } else { Ok(found.filter(|name| !name.is_empty())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_name_full_of_parentheses_does_not_shift_the_fields() {
        let line = b"7 (a) b ((c) S 3 1 1 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 4711 9 9";
        assert_eq!(parse_stat(line), Some((b'S', 3, 4711)));
        assert_eq!(parse_stat(b"7 (a"), None);
        assert_eq!(parse_stat(b"7 (a) S 3"), None);
    }

    #[test]
    fn the_user_is_the_one_whose_rights_count() {
        assert_eq!(parse_uid("Name:\tUid: 7\nUid:\t1000\t65534\t0\t0\n"), Some(65_534));
        assert_eq!(parse_uid("Name:\tx\nUid:\t1000\n"), None);
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(uid_of(own).unwrap(), nix::unistd::geteuid().as_raw());
        assert!(matches!(uid_of(i32::MAX), Err(ProcessError::Gone(_))));
    }

    #[test]
    fn the_innermost_number_is_the_last() {
        assert_eq!(innermost("Name:\tx\nNSpid:\t4711\t12\t3\nX: 1\n"), Some(3));
        assert_eq!(innermost("Name:\tx\n"), None);
    }

    #[tokio::test]
    async fn a_worker_is_killed_and_seen_to_exit_and_its_successor_is_not_taken_for_it() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = identify(child.id() as i32).unwrap();
        assert!(is_alive(process));
        assert_eq!(parent(process.pid).unwrap(), std::process::id() as i32);
        let other = Process { start: process.start + 1, ..process };
        assert!(!is_alive(other));
        assert!(matches!(Worker::open(other), Err(ProcessError::Successor(_))));
        let worker = Worker::open(process).unwrap();
        assert!(!worker.has_exited());
        worker.kill().unwrap();
        worker.exited().await.unwrap();
        assert!(worker.has_exited());
        assert!(!is_alive(process), "a zombie does not run");
        child.wait().unwrap();
        worker.kill().unwrap();
        assert!(matches!(Worker::open(process), Err(ProcessError::Gone(_))));
    }

    #[test]
    fn within_one_pid_namespace_numbers_are_the_same() {
        let me = identify(std::process::id() as i32).unwrap();
        assert_eq!(host_pid(me, 1234).unwrap(), 1234);
        assert_eq!(netns_of(me.pid).unwrap().0, own_netns().unwrap().0);
    }

    #[test]
    fn in_another_pid_namespace_the_number_is_translated() {
        // unshare forks the shell as process 1 of a new namespace; its child `sleep` is 2 there
        let mut outer = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "sh", "-c", "sleep 60 & wait"])
            .spawn()
            .unwrap();
        let child_of = |pid: i32| -> i32 {
            for _ in 0..200 {
                let children =
                    fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
                if let Some(child) = children.split_whitespace().next() {
                    return child.parse().unwrap();
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            panic!("process {pid} got no child: this test needs root");
        };
        let shell = child_of(outer.id() as i32);
        let sleep = child_of(shell);
        let main = identify(shell).unwrap();
        assert_eq!(host_pid(main, 1).unwrap(), shell);
        assert_eq!(host_pid(main, 2).unwrap(), sleep);
        assert!(matches!(host_pid(main, 4711), Err(ProcessError::NotThere(4711))));
        outer.kill().unwrap();
        outer.wait().unwrap();
    }
}
