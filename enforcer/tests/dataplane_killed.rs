//! R5: a migration that is killed before any of its steps. Needs root, and ptrace.
//!
//! What a process has done to the kernel is done by system calls, so a kill before each system call that changes
//! something is a kill at every instruction. The migration runs in a process of its own, this very program, which
//! is traced.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]

mod lab;
mod traffic;

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use enforcer::dataplane::{Dataplane, GateFacts, GateMaps, Settings, TcPreference};
use enforcer::session::{Entry, SafeId, Stands};
use lab::{Lab, OTHER, lab};
use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use traffic::{Traffic, address, attach, is_tidy, with};

const NONE: GateFacts = GateFacts { server: 0, moment: 0 };

/// `NETNS PINS CAPACITY TC`: this process is to migrate, and to be killed.
const CHILD: &str = "ENFORCER_TEST_MIGRATES";
/// How many kills each test makes; without it sixty, spread over all steps.
const KILLS: &str = "ENFORCER_TEST_KILLS";

fn settings(lab: &Lab, each: u32, tc: TcPreference) -> Settings {
    Settings { tc, ..with(lab, each) }
}

/// By itself: one migration. In a process that a test below has started: that one's.
#[test]
fn a_migration() {
    let Ok(words) = std::env::var(CHILD) else {
        return lab(|lab| {
            drop(Dataplane::open(settings(lab, 64, TcPreference::Auto)).unwrap());
            drop(Dataplane::open(settings(lab, 65, TcPreference::Auto)).unwrap());
            is_tidy(lab);
        });
    };
    let words: Vec<&str> = words.split(' ').collect();
    setns(File::open(words[0]).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
    let lab = Settings { pin_path: words[1].into(), ..Settings::default() };
    let tc = if words[3] == "clsact" { TcPreference::Clsact } else { TcPreference::Tcx };
    let capacities = traffic::capacities(words[2].parse().unwrap());
    // from here on the tracer counts
    nix::unistd::getpgid(None).unwrap();
    drop(Dataplane::open(Settings { tc, capacities, ..lab }).unwrap());
}

/// Whether that system call may change what others see.
fn changes(number: u64) -> bool {
    let number = i64::try_from(number).unwrap();
    let calls = [
        libc::SYS_bpf,
        libc::SYS_renameat2,
        libc::SYS_renameat,
        libc::SYS_unlinkat,
        libc::SYS_mkdirat,
        libc::SYS_fchmodat,
        libc::SYS_mount,
        libc::SYS_sendto,
        libc::SYS_close,
    ];
    #[cfg(target_arch = "x86_64")]
    let older = [libc::SYS_rename, libc::SYS_unlink, libc::SYS_rmdir, libc::SYS_mkdir, libc::SYS_chmod];
    #[cfg(not(target_arch = "x86_64"))]
    let older = [];
    calls.contains(&number) || older.contains(&number)
}

/// Starts a migration and kills it before the step with that number, counted from 1. Gives how many steps it came
/// to, and whether it was killed.
fn migrate_and_kill(lab: &Lab, each: u32, tc: TcPreference, step: usize) -> (usize, bool) {
    let netns = format!("/proc/{}/fd/{}", std::process::id(), lab.gateway.as_raw_fd());
    let tc = if tc == TcPreference::Clsact { "clsact" } else { "tcx" };
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "a_migration", "--test-threads", "1"]);
    command.env(CHILD, format!("{netns} {} {each} {tc}", lab.pin_path().display()));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: ptrace(2) is all that happens between fork and exec, and it is async-signal-safe.
    unsafe { command.pre_exec(|| ptrace::traceme().map_err(Into::into)) };
    let child = Pid::from_raw(i32::try_from(command.spawn().unwrap().id()).unwrap());
    // other tests have children of their own, on other threads
    let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
    assert!(matches!(waitpid(child, Some(flags)).unwrap(), WaitStatus::Stopped(_, Signal::SIGTRAP)));
    let options = ptrace::Options::PTRACE_O_TRACESYSGOOD
        | ptrace::Options::PTRACE_O_TRACECLONE
        | ptrace::Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(child, options).unwrap();
    ptrace::syscall(child, None).unwrap();
    let (mut steps, mut counts, mut killed) = (0, false, false);
    loop {
        let status = match waitpid(None, Some(flags)) {
            Err(nix::errno::Errno::ECHILD) => return (steps, killed),
            status => status.unwrap(),
        };
        let (stopped, signal) = match status {
            WaitStatus::PtraceSyscall(thread) => {
                let info = ptrace::syscall_info(thread);
                if let Some(info) = info.ok().filter(|info| info.op == libc::PTRACE_SYSCALL_INFO_ENTRY) {
                    // SAFETY: the kernel has said which member it has written.
                    let number = unsafe { info.u.entry.nr };
                    counts |= number == u64::try_from(libc::SYS_getpgid).unwrap();
                    if counts && changes(number) {
                        steps += 1;
                        if steps == step {
                            killed = true;
                            kill(child, Signal::SIGKILL).unwrap();
                            continue;
                        }
                    }
                }
                (thread, None)
            }
            // the first stop of a new thread
            WaitStatus::Stopped(thread, Signal::SIGSTOP) => (thread, None),
            WaitStatus::Stopped(thread, signal) => (thread, Some(signal)),
            WaitStatus::PtraceEvent(thread, ..) => (thread, None),
            WaitStatus::Exited(pid, code) if pid == child => {
                assert_eq!(code, 0, "the migration failed");
                continue;
            }
            _ => continue,
        };
        // ESRCH: it was killed meanwhile
        let _ = ptrace::syscall(stopped, signal);
    }
}

fn every_step(tc: TcPreference) {
    lab(move |lab| {
        let mut dataplane = Dataplane::open(settings(lab, 64, tc)).unwrap();
        attach(&mut dataplane, lab);
        let traffic = Traffic::new(lab);
        let id = SafeId::from_bytes([1; 20]);
        let mut entries: Vec<Entry> = traffic.entries(lab).into();
        entries.push(Entry::SafeId(id));
        for (number, entry) in entries.iter().enumerate() {
            dataplane.insert(entry, number as u64 + 1, Stands::Forever, NONE).unwrap();
        }
        dataplane.set_next_revocation(42).unwrap();
        drop(dataplane);
        let (all, killed) = migrate_and_kill(lab, 65, tc, usize::MAX);
        assert!(!killed && all > 50, "{all} steps");
        let kills = std::env::var(KILLS).map_or(60, |kills| kills.parse().unwrap()).min(all);
        let (mut done, mut each) = (0, 65);
        let other = address(lab.netns(), OTHER);
        // on a machine that has other things to do, too
        traffic.flood(Duration::from_micros(200), || {
            for kill in 0..kills {
                let step = 1 + kill * all / kills;
                let (_, killed) = migrate_and_kill(lab, 129 - each, tc, step);
                done += usize::from(killed);
                traffic.is_dropped();
                let gate = GateMaps::open(&lab.pin_path()).unwrap().expect("a set counts");
                assert_eq!(gate.safe_id(&id).unwrap().map(|found| found.revocation), Some(4), "step {step}");
                // the next one wants the same, or what was there
                each = if kill % 2 == 0 { each } else { 129 - each };
                let mut dataplane = Dataplane::open(settings(lab, each, tc)).unwrap();
                let mut stored = dataplane.entries().unwrap();
                stored.sort_by_key(|stored| stored.revocation);
                let stored: Vec<_> = stored.into_iter().map(|stored| stored.entry).collect();
                assert_eq!(stored, entries, "step {step}");
                assert_eq!(dataplane.next_revocation(), 42);
                is_tidy(lab);
                traffic.is_dropped();
                // what is said from now on counts, on every device, before anything is attached again
                dataplane.remove(&entries[0]).unwrap();
                assert!(traffic.client.reaches(&traffic.server), "step {step}: XDP has other maps");
                dataplane.insert(&entries[0], 1, Stands::Forever, NONE).unwrap();
                dataplane.insert(&other, 9, Stands::Forever, NONE).unwrap();
                assert!(!traffic.other.reaches(&traffic.lan), "step {step}: tc has other maps");
                dataplane.remove(&other).unwrap();
            }
        });
        eprintln!("{done} kills of {all} steps survived");
        assert!(done * 10 >= kills * 9, "only {done} of {kills} migrations were killed");
        let report = Dataplane::unload(&lab.pin_path()).unwrap();
        assert_eq!((report.links + report.filters, report.left), (3, Vec::new()));
        traffic.passes();
    });
}

#[test]
fn r5_a_kill_before_any_step_of_a_migration_with_tcx() {
    every_step(TcPreference::Tcx);
}

#[test]
fn r5_a_kill_before_any_step_of_a_migration_with_clsact() {
    every_step(TcPreference::Clsact);
}
