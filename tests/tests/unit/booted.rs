//! A systemd of its own: process 1 of a container that sees this host's files through an overlay, with nothing in
//! it but the journal and the unit under test. Nothing of it is seen outside, and nothing stays.

use std::path::{Path, PathBuf};
use std::process::Command;

use enforcer_tests::process::{BOUND, Output, Process, command, eventually, output, read_log};

/// A running systemd. Dropped: killed, with everything in it.
pub struct Booted {
    process: Process,
    folder: PathBuf,
    group: String,
    init: i32,
}

/// Mounts that only this process and its children see; a control group of its own, which becomes the root of what
/// systemd sees.
const OUTSIDE: &str = r#"
folder=$1 group=$2; shift 2
mount -t tmpfs booted "$folder"
mkdir "$folder/groups" "$folder/upper" "$folder/work" "$folder/root"
mount -t cgroup2 booted "$folder/groups"
mkdir "$folder/groups/$group"
echo $$ > "$folder/groups/$group/cgroup.procs"
mount -t overlay booted -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" "$folder/root"
exec unshare --pid --fork --kill-child --net --uts --ipc --cgroup -- sh -euc "$INSIDE" booted "$folder/root" "$@"
"#;

/// A root for systemd: its own /proc, /sys, /run and /dev; the daemon and its unit where a package puts them.
const INSIDE: &str = r#"
root=$1 binary=$2 unit=$3 setup=$4
cp "$binary" "$root/usr/sbin/enforcer"
mkdir -p "$root/etc/enforcer" "$root/etc/systemd/system"
cp "$unit" "$root/etc/systemd/system/enforcer.service"
printf '[Unit]\nRequires=systemd-journald.service\nAfter=systemd-journald.service\nWants=enforcer.service\n' \
    > "$root/etc/systemd/system/booted.target"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 booted "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 booted "$root/run"
mount -t tmpfs -o mode=1777 booted "$root/tmp"
mount -t tmpfs -o mode=755 booted "$root/dev"
for device in null zero full random urandom tty; do
    : > "$root/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"
done
: > "$root/dev/console"; mount --bind /dev/null "$root/dev/console"
mkdir "$root/dev/shm" "$root/dev/pts" "$root/before"
mount -t devpts -o newinstance,ptmxmode=0666 booted "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
cd "$root"
pivot_root . before
umount -l /before
sh -euc "$setup"
exec env -i container=enforcer-test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=booted.target --log-target=console --show-status=no
"#;

impl Booted {
    /// Boots with this daemon and this unit, after the shell script `setup` has run inside.
    ///
    /// `name` tells it from others of this test program.
    pub fn start(name: &str, binary: &Path, unit: &Path, setup: &str) -> Self {
        let group = format!("enforcer-test-{}-{name}", std::process::id());
        let folder = std::env::temp_dir().join(&group);
        std::fs::create_dir(&folder).expect("a folder for the container");
        let log = folder.with_extension("log");
        let mut unshare = command("unshare", ["--mount", "--propagation", "private", "--", "sh", "-euc"]);
        unshare.arg(OUTSIDE).arg("booted").arg(&folder).arg(&group).arg(binary).arg(unit).arg(setup);
        unshare.env("INSIDE", INSIDE);
        let process = Process::start(name, unshare, &log, None);
        let mut booted = Self { process, folder, group, init: 0 };
        booted.init = eventually("a process 1", BOUND, || booted.child());
        eventually("systemd answers", BOUND, || {
            assert!(booted.process.exited().is_none(), "no systemd: {}", read_log(booted.process.log_path()));
            let journal = booted.run("systemctl", &["is-active", "systemd-journald.service"]);
            (journal.code == 0).then_some(())
        });
        // from here on, so that what it says of the unit can be read
        booted.run("systemctl", &["log-target", "journal"]);
        booted
    }

    /// The child of the outermost process that is systemd by now: process 1 within.
    fn child(&self) -> Option<i32> {
        let pid = self.process.pid();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        let child = children.split_whitespace().next()?;
        let name = std::fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
        (name.trim() == "systemd").then(|| child.parse().ok()).flatten()
    }

    /// A command within.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let init = self.init.to_string();
        let mut inside = command(
            "nsenter",
            ["--target", &init, "--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--root"],
        );
        // the root as well: in a chroot it is not that of the mount namespace
        inside.arg("--").arg(program).args(arguments);
        inside
    }

    pub fn run(&self, program: &str, arguments: &[&str]) -> Output {
        output(self.command(program, arguments), "")
    }

    /// A property of the unit, as `systemctl show` has it.
    pub fn property(&self, name: &str) -> String {
        self.run("systemctl", &["show", "--value", "--property", name, "enforcer.service"])
            .stdout
            .trim()
            .to_owned()
    }

    /// Until a property has a value that `wanted` takes.
    #[track_caller]
    pub fn until(&self, name: &str, wanted: impl Fn(&str) -> bool) -> String {
        eventually(&format!("{name}; {}", self.journal()), BOUND, || {
            let value = self.property(name);
            wanted(&value).then_some(value)
        })
    }

    /// What the unit has written.
    pub fn journal(&self) -> String {
        self.run("journalctl", &["--no-pager", "--output", "cat", "--unit", "enforcer.service"]).stdout
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        // the kernel ends process 1 with it, and with that everything in its pid namespace, and the mounts
        self.process.kill();
        let away = r#"
            mount -t cgroup2 booted "$1"
            tries=0
            until find "$1/$2" -depth -type d -exec rmdir {} + 2>/dev/null; do
                [ $tries -lt 200 ] || exit 1
                tries=$((tries + 1)); sleep 0.05
            done"#;
        let mut unshare =
            command("unshare", ["--mount", "--propagation", "private", "--", "sh", "-euc", away, "away"]);
        unshare.arg(&self.folder).arg(&self.group);
        let left = output(unshare, "");
        let _ = std::fs::remove_dir(&self.folder);
        let _ = std::fs::remove_file(self.process.log_path());
        if left.code != 0 && !std::thread::panicking() {
            panic!("the control group {} stays: {}", self.group, left.stderr);
        }
    }
}
