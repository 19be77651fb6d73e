//! CPU time of this thread, of the kernel's thread for softirqs that it could not do at once, and of children.

use std::fs;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// The CPU on which we stay: the last one.
fn ours() -> usize {
    nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN)
        .ok()
        .flatten()
        .map_or(0, |count| usize::try_from(count).expect("a number of CPUs").saturating_sub(1))
}

/// Keeps this thread on one CPU.
pub fn stay() {
    let mut set = CpuSet::new();
    set.set(ours()).expect("a CPU");
    sched_setaffinity(Pid::from_raw(0), &set).expect("a CPU");
}

/// CPU time of this thread in nanoseconds. Softirqs that it does by itself are in it (this needs a kernel without
/// CONFIG_IRQ_TIME_ACCOUNTING).
pub fn thread() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock");
    u64::try_from(time.tv_sec()).expect("a time") * 1_000_000_000
        + u64::try_from(time.tv_nsec()).expect("a time")
}

/// ... and of what is done for it.
pub struct Softirqs(String);

impl Softirqs {
    /// Of our CPU's thread for them.
    pub fn new() -> Self {
        let name = format!("ksoftirqd/{}", ours());
        let found = fs::read_dir("/proc").expect("/proc").flatten().find(|entry| {
            fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.trim() == name)
        });
        Self(found.expect("ksoftirqd").path().join("schedstat").display().to_string())
    }

    /// Nanoseconds, together with [`thread`].
    pub fn and_thread(&self) -> u64 {
        let text = fs::read_to_string(&self.0).expect("schedstat");
        thread() + text.split_whitespace().next().expect("a time").parse::<u64>().expect("a time")
    }
}

/// Seconds of CPU time of all children that have ended.
pub fn children() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("usage");
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}
