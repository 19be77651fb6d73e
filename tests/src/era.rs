//! The servers and clients of the field, from the oldest to the newest.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::namespace::Namespace;

/// Which Debian an ocserv or an openconnect comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Era {
    /// The host's own: Debian 12 has ocserv 1.1.6 and openconnect 9.01. No `terminate`.
    Bookworm,
    /// ocserv 1.3.0, openconnect 9.12. No `terminate`.
    Trixie,
    /// ocserv 1.5.0, openconnect 9.21. Has `terminate`.
    Sid,
}

impl Era {
    pub const ALL: [Era; 3] = [Era::Bookworm, Era::Trixie, Era::Sid];

    pub fn has_terminate(self) -> bool {
        self == Era::Sid
    }

    /// The suite's tree, which `cargo xtask setup` makes; none for the host itself.
    pub fn tree(self) -> Option<PathBuf> {
        let suite = match self {
            Era::Bookworm => return None,
            Era::Trixie => "trixie",
            Era::Sid => "sid",
        };
        let tree = target_folder().join("lab/roots").join(suite);
        assert!(tree.join("usr/sbin/ocserv").exists(), "{} is missing: cargo xtask setup", tree.display());
        Some(tree.canonicalize().expect("a tree"))
    }

    /// A command in `namespace` with this era's files: the host's, or the suite's tree as an overlay in a private
    /// mount namespace, with `visible` (absolute folders) bound to the same paths.
    ///
    /// The command's pid is that of the program: every step replaces itself by the next.
    pub fn command(self, namespace: &Namespace, scratch: &Path, visible: &[&Path], program: &str) -> Command {
        let Some(tree) = self.tree() else { return namespace.command(program) };
        let mut command = namespace.command("unshare");
        command.args(["--mount", "--propagation", "private", "--", "sh", "-eu", "-c", INSIDE, "era"]);
        command.arg(tree).arg(scratch).arg(visible.len().to_string()).args(visible).arg(program);
        command
    }
}

/// What happens in the private mount namespace: nothing of it is seen outside, and it ends with the program.
const INSIDE: &str = r#"
tree=$1 scratch=$2 count=$3; shift 3
mount -t tmpfs lab "$scratch"
root=$scratch/root
mkdir "$scratch/upper" "$scratch/work" "$root"
mount -t overlay lab -o "lowerdir=$tree,upperdir=$scratch/upper,workdir=$scratch/work" "$root"
for folder in /proc /dev /sys; do mount --rbind "$folder" "$root$folder"; done
while [ "$count" -gt 0 ]; do
  mkdir -p "$root$1"
  mount --rbind "$1" "$root$1"
  shift; count=$((count - 1))
done
exec chroot "$root" "$@"
"#;

impl fmt::Display for Era {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Era::Bookworm => "ocserv 1.1.6",
            Era::Trixie => "ocserv 1.3",
            Era::Sid => "ocserv 1.5",
        })
    }
}

/// The workspace's `target`, found from where this program itself lies in it.
pub fn target_folder() -> PathBuf {
    let this = std::env::current_exe().expect("the path of this program");
    let profile = profile_folder(&this);
    profile.parent().expect("a target folder").to_owned()
}

/// `target/debug`, or the like, from the path of a program in it or in its `deps`.
pub fn profile_folder(program: &Path) -> &Path {
    let folder = program.parent().expect("a folder");
    if folder.ends_with("deps") || folder.ends_with("examples") {
        folder.parent().expect("a profile's folder")
    } else {
        folder
    }
}
