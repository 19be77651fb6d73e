//! The folder of pins: what is where, and how one set of maps takes the place of another.
//!
//! `maps` is the set that counts, at every moment. A migration makes the next set beside it, in `next`, and the
//! two change names at the end. Whoever finds a `next` at start knows that a migration was cut short (or that
//! it was done, and the old set not yet thrown away), and throws it away: nobody else writes maps, so `maps`
//! has everything that was ever answered.
//!
//! The two change names in one step where the kernel can do that on a bpffs (Linux 5.16). Before that it takes
//! two, and in the moment between them the set that counts is called `last`.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

/// Where the pins are, below one folder on a bpffs.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    pub root: PathBuf,
    pub maps: PathBuf,
    /// The set that is being made, or the one that was replaced.
    pub next: PathBuf,
    /// The set that counts while `maps` is not there.
    pub last: PathBuf,
    pub links: PathBuf,
    pub log: PathBuf,
}

impl Pins {
    pub(super) fn below(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            maps: root.join("maps"),
            next: root.join("next"),
            last: root.join("last"),
            links: root.join("links"),
            log: root.join("log"),
        }
    }

    /// Everything but the folder of maps as it is.
    pub(super) fn with_maps(&self, maps: &Path) -> Self {
        Self { maps: maps.to_owned(), ..self.clone() }
    }

    /// Puts right what a migration that was cut short has left. `true` if there was one: its programs may hang
    /// at some devices, with the maps that are thrown away here.
    pub(super) fn settle(&self) -> Result<bool> {
        let mut found = false;
        if exists(&self.last)? {
            found = true;
            if exists(&self.maps)? {
                throw_away(&self.last)?;
            } else {
                rename(&self.last, &self.maps)?;
            }
        }
        if exists(&self.next)? {
            found = true;
            throw_away(&self.next)?;
        }
        Ok(found)
    }

    /// The next set becomes the one that counts, and the old one `next`.
    pub(super) fn swap(&self) -> Result<()> {
        match renameat2(AT_FDCWD, &self.next, AT_FDCWD, &self.maps, RenameFlags::RENAME_EXCHANGE) {
            // bpffs before Linux 5.16
            Err(Errno::EINVAL) => self.swap_in_steps(),
            swapped => swapped.with_context(|| format!("cannot put {} in place", self.next.display())),
        }
    }

    fn swap_in_steps(&self) -> Result<()> {
        rename(&self.maps, &self.last)?;
        rename(&self.next, &self.maps)?;
        rename(&self.last, &self.next)
    }

    /// Which folder holds the set that counts, as somebody sees it who does not own it. `None`: neither is there.
    pub(super) fn current(&self) -> Result<Option<Current>> {
        for folder in [&self.maps, &self.last, &self.maps] {
            match fs::metadata(folder) {
                Ok(found) => return Ok(Some(Current { folder: folder.clone(), inode: found.ino() })),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(|| cannot_look(folder)),
            }
        }
        Ok(None)
    }
}

/// A set of maps that counted when it was looked for.
#[derive(Clone, Debug)]
pub(super) struct Current {
    pub folder: PathBuf,
    inode: u64,
}

impl Current {
    /// Whether it is the same set, whatever its name.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.inode == other.inode
    }
}

pub(super) fn exists(path: &Path) -> Result<bool> {
    path.try_exists().with_context(|| cannot_look(path))
}

fn cannot_look(path: &Path) -> String {
    format!("cannot look at {}", path.display())
}

/// A folder of maps, with all pins in it.
pub(super) fn throw_away(folder: &Path) -> Result<()> {
    for pin in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let pin = pin.with_context(|| format!("cannot list {}", folder.display()))?.path();
        fs::remove_file(&pin).with_context(|| format!("cannot remove {}", pin.display()))?;
    }
    fs::remove_dir(folder).with_context(|| format!("cannot remove {}", folder.display()))
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to)
        .map_err(|error| anyhow!("cannot rename {} to {}: {error}", from.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders(pins: &Pins, with: &[(&Path, &str)]) {
        for (folder, file) in with {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join(file), "").unwrap();
        }
        assert!(exists(&pins.root).unwrap());
    }

    fn left(pins: &Pins) -> Vec<String> {
        let names = |folder: &Path| {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(&pins.root), ["maps"]);
        names(&pins.maps)
    }

    /// R5: in every state that a kill between two steps leaves, the set that counts is found.
    #[test]
    fn r5_whatever_was_cut_short_one_set_counts() {
        let states: [(&[&str], &str, bool); 6] = [
            (&["maps=old"], "old", false),
            (&["maps=old", "next=half"], "old", true),
            // one step
            (&["maps=new", "next=old"], "new", true),
            // two steps, and the third
            (&["last=old", "next=new"], "old", true),
            (&["last=old", "maps=new"], "new", true),
            (&["last=old"], "old", true),
        ];
        for (state, counts, cut_short) in states {
            let folder = tempfile::tempdir().unwrap();
            let pins = Pins::below(folder.path());
            let with: Vec<_> = state.iter().map(|one| one.split_once('=').unwrap()).collect();
            let with: Vec<_> = with.iter().map(|(name, file)| (pins.root.join(name), *file)).collect();
            let with: Vec<_> = with.iter().map(|(path, file)| (path.as_path(), *file)).collect();
            folders(&pins, &with);
            let current = pins.current().unwrap().unwrap();
            assert!(current.folder.join(counts).exists(), "{state:?}: what a gate sees");
            assert_eq!(pins.settle().unwrap(), cut_short, "{state:?}");
            assert_eq!(left(&pins), [counts], "{state:?}");
        }
    }

    #[test]
    fn two_sets_change_names_in_one_step_or_in_three() {
        for in_steps in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let pins = Pins::below(folder.path());
            folders(&pins, &[(&pins.maps, "old"), (&pins.next, "new")]);
            let before = pins.current().unwrap().unwrap();
            if in_steps { pins.swap_in_steps() } else { pins.swap() }.unwrap();
            assert!(pins.maps.join("new").exists() && pins.next.join("old").exists());
            assert!(!pins.current().unwrap().unwrap().is(&before));
            assert!(!exists(&pins.last).unwrap());
        }
    }
}
