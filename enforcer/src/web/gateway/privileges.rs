//! Whom the gateway runs as: never root. Started as root it takes its ports and reads its keys, and becomes its own user
//! for good; started as that user (systemd) it gives up what it was given for the ports.

use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, lchown};
use std::path::Path;

use anyhow::Context as _;
use caps::CapSet;
use nix::sys::prctl;
use nix::unistd::{Uid, User, geteuid, initgroups, seteuid, setresgid, setresuid};

/// The user to become. `None`: it is somebody else than root that started us, and stays so.
pub(super) struct Become(Option<User>);

impl Become {
    /// # Errors
    /// As root: there is no such user, or it is root.
    pub(super) fn new(name: &str) -> anyhow::Result<Self> {
        if !geteuid().is_root() {
            return Ok(Self(None));
        }
        let user =
            User::from_name(name).with_context(|| format!("[web] user = {name:?} cannot be looked up"))?;
        let user = user.with_context(|| {
            format!(
                "started as root, the gateway has to become another user, and there is no {name:?} ([web] user): make it \
                 (useradd --system --no-create-home {name}), or name another one"
            )
        })?;
        anyhow::ensure!(
            !user.uid.is_root(),
            "[web] user = {name:?} is root, and the gateway does not run as root"
        );
        Ok(Self(Some(user)))
    }

    fn groups(&self, user: &User) -> anyhow::Result<()> {
        let name = std::ffi::CString::new(user.name.as_str()).context("the user's name")?;
        initgroups(&name, user.gid).with_context(|| format!("cannot take the groups of {}", user.name))
    }

    /// Gives a file that root has made to that user.
    pub(super) fn give(&self, path: &Path) -> anyhow::Result<()> {
        let Some(user) = &self.0 else { return Ok(()) };
        // never what a link leads to
        lchown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
            .with_context(|| format!("cannot give {} to {}", path.display(), user.name))
    }

    /// The gateway's own folder: made where it is missing, its owner's alone.
    pub(super) fn folder(&self, path: &Path) -> anyhow::Result<()> {
        if !path.exists() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .with_context(|| format!("cannot make the folder {}", path.display()))?;
            std::fs::set_permissions(path, Permissions::from_mode(0o700))
                .with_context(|| format!("cannot set the mode of {}", path.display()))?;
            self.give(path)?;
        }
        let about = std::fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
        let owner = self.0.as_ref().map_or_else(geteuid, |user| user.uid);
        anyhow::ensure!(
            about.is_dir() && about.uid() == owner.as_raw() && about.mode() & 0o077 == 0,
            "{} has to be a folder of uid {owner} with mode 0700: the gateway's keys are in it",
            path.display()
        );
        Ok(())
    }

    /// Becomes that user for good, and gives every privilege up. Before threads are started.
    pub(super) fn for_good(self) -> anyhow::Result<()> {
        if let Some(user) = &self.0 {
            self.groups(user)?;
            setresgid(user.gid, user.gid, user.gid)
                .and_then(|()| setresuid(user.uid, user.uid, user.uid))
                .with_context(|| format!("cannot become {}", user.name))?;
            anyhow::ensure!(
                seteuid(Uid::from_raw(0)).is_err(),
                "the gateway is not root any more, and could become root again"
            );
        }
        for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
            caps::clear(None, set)
                .with_context(|| format!("the capabilities ({set:?}) cannot be given up"))?;
        }
        prctl::set_no_new_privs().context("no_new_privs")?;
        // who runs as the same user reads no secrets out of its memory
        prctl::set_dumpable(false).context("a process without core dumps")
    }
}
