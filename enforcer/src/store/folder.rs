//! The state directory: who may see it, who writes there, and moving a broken file aside.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, RenameFlags, renameat2};

use super::OpenError;

/// The database, and what SQLite keeps beside it while it is open or after a crash.
pub const FILE: &str = "state.db";
pub(super) const WAL: &str = "state.db-wal";
const SHM: &str = "state.db-shm";
const JOURNAL: &str = "state.db-journal";

/// The right to write in the directory: a lock of flock(2) on the directory itself, since that needs no room on a
/// full disk and no file on a read-only one. Gone with the process, however it ends.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "held, not used")] Flock<File>);

/// Makes the directory where it is missing (0700; its parents with what the umask says) and refuses one that
/// somebody else could write or read.
pub(super) fn prepare(directory: &Path) -> Result<PathBuf, OpenError> {
    let cannot =
        |error: io::Error| OpenError::CannotMake { path: directory.to_owned(), why: error.to_string() };
    match fs::symlink_metadata(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = directory.parent() {
                fs::create_dir_all(parent).map_err(cannot)?;
            }
            match DirBuilder::new().mode(0o700).create(directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(cannot(error)),
                _ => {}
            }
            if let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                sync(parent).map_err(cannot)?;
            }
        }
        _ => {}
    }
    examine(directory)
}

/// The directory's absolute path, if nobody else can read or write it.
pub(super) fn examine(directory: &Path) -> Result<PathBuf, OpenError> {
    let path = directory.to_owned();
    let cannot = |error: io::Error| OpenError::CannotRead { path: path.clone(), why: error.to_string() };
    let refuse = |what: String| Err(OpenError::Folder { path: path.clone(), what });
    let about = fs::metadata(directory).map_err(cannot)?;
    if !about.is_dir() {
        return refuse("is not a directory: name one in [state] directory".to_owned());
    }
    let me = nix::unistd::geteuid().as_raw();
    if about.uid() != me {
        return refuse(format!(
            "belongs to uid {}, and the enforcer runs as uid {me}: `chown` it, or name another [state] directory",
            about.uid()
        ));
    }
    let mode = about.mode() & 0o777;
    if mode & 0o077 != 0 {
        return refuse(format!("is open to others (mode {mode:04o}): `chmod 0700` it"));
    }
    fs::canonicalize(directory).map_err(cannot)
}

/// Takes the right to write, or says that another process has it. Waits up to a second: a reader on a full disk
/// holds it for the moment of a question.
pub(super) fn lock(directory: &Path) -> Result<Lock, OpenError> {
    let start = Instant::now();
    loop {
        if let Some(lock) = take(directory, FlockArg::LockExclusiveNonblock)? {
            return Ok(lock);
        }
        if start.elapsed() > Duration::from_secs(1) {
            return Err(OpenError::InUse { path: directory.to_owned() });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A state that is read past SQLite's own locks: nobody may write while that is done, and nobody may have written
/// since it was opened.
#[derive(Debug)]
pub(super) struct Still {
    directory: PathBuf,
    seen: [Option<Seen>; 2],
}

/// Device, inode, length and time of change (seconds, nanoseconds) of a file.
type Seen = (u64, u64, u64, i64, i64);

impl Still {
    /// Before the state is opened.
    pub(super) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), seen: seen(directory) }
    }

    /// Keeps an enforcer from starting to write as long as the answer is held. `None`: one runs, but where it is
    /// read-only for us. Whether it wrote is told by [`Still::unchanged`].
    pub(super) fn hold(&self) -> Result<Option<Lock>, OpenError> {
        let lock = take(&self.directory, FlockArg::LockSharedNonblock)?;
        let read_only = || {
            nix::sys::statvfs::statvfs(&self.directory)
                .is_ok_and(|about| about.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY))
        };
        if lock.is_none() && !read_only() {
            return Err(self.changed());
        }
        Ok(lock)
    }

    /// After everything was read: that it was all of one state.
    pub(super) fn unchanged(&self) -> Result<(), OpenError> {
        if seen(&self.directory) == self.seen { Ok(()) } else { Err(self.changed()) }
    }

    fn changed(&self) -> OpenError {
        let why = "there is no room for SQLite's shared index, and an enforcer writes there at this time: ask it, or \
                   try again";
        OpenError::CannotRead { path: self.directory.join(FILE), why: why.to_owned() }
    }
}

fn seen(directory: &Path) -> [Option<Seen>; 2] {
    [FILE, WAL].map(|name| {
        let about = fs::metadata(directory.join(name)).ok()?;
        Some((about.dev(), about.ino(), about.len(), about.mtime(), about.mtime_nsec()))
    })
}

fn take(directory: &Path, how: FlockArg) -> Result<Option<Lock>, OpenError> {
    let cannot = |why: String| OpenError::CannotRead { path: directory.to_owned(), why };
    let folder = File::open(directory).map_err(|error| cannot(error.to_string()))?;
    match Flock::lock(folder, how) {
        Ok(lock) => Ok(Some(Lock(lock))),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(cannot(format!("flock: {}", error.desc()))),
    }
}

/// Whether there is a database. Its companions without it are an error: something was taken away.
pub(super) fn exists(directory: &Path) -> Result<bool, OpenError> {
    let there = |name: &str| {
        let path = directory.join(name);
        match fs::symlink_metadata(&path) {
            Ok(about) if about.is_file() => Ok(true),
            Ok(_) => Err(OpenError::Folder { path, what: "is not a plain file: move it away".to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(OpenError::CannotRead { path, why: error.to_string() }),
        }
    };
    if there(FILE)? {
        return Ok(true);
    }
    for name in [WAL, JOURNAL] {
        if there(name)? {
            return Err(OpenError::WithoutDatabase { wal: directory.join(name) });
        }
    }
    Ok(false)
}

/// Makes a file by `fill`, durable and whole: under another name first, so that a crash in between leaves none at
/// all. Not even root's umask opens it to others.
pub(super) fn make(
    directory: &Path,
    fill: impl FnOnce(&Path) -> Result<(), OpenError>,
) -> Result<(), OpenError> {
    let new = directory.join("state.db.new");
    let cannot =
        |error: io::Error| OpenError::CannotMake { path: directory.join(FILE), why: error.to_string() };
    let clear = || {
        for end in ["", "-wal", "-shm", "-journal"] {
            match fs::remove_file(directory.join(format!("state.db.new{end}"))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(cannot(error)),
                _ => {}
            }
        }
        Ok(())
    };
    clear()?;
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .map(drop)
        .map_err(cannot)
        .and_then(|()| fill(&new))
        .and_then(|()| sync(&new).map_err(cannot))
        .and_then(|()| fs::rename(&new, directory.join(FILE)).map_err(cannot))
        .and_then(|()| sync(directory).map_err(cannot));
    if made.is_err() {
        // what is left over would be cleared the next time; the trouble is what has to be told
        let _ = clear();
    }
    made
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Device and inode number: whether a path still names the file that was opened.
pub(super) fn inode(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|about| (about.dev(), about.ino()))
}

/// For `enforcer check --repair`: moves the database and its companions to names beside it, so that a new one can
/// be made and this one looked at. Nothing is ever overwritten.
///
/// Returns the path that the database has now (of `state.db.broken-YYYYmmddTHHMMSS`, UTC; if that is taken, with
/// `.1`, `.2` …). Its companions follow it under the names that SQLite expects. It is the database that goes first:
/// if the host dies in between, what is left is an error at the next start, not a state with records missing.
///
/// Refuses while an enforcer runs there.
pub fn put_aside(directory: &Path) -> Result<PathBuf, OpenError> {
    let directory = examine(directory)?;
    let _lock = lock(&directory)?;
    let cannot = |path: &Path, why: String| OpenError::CannotMake { path: path.to_owned(), why };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs());
    let parts = [(FILE, ""), (WAL, "-wal"), (SHM, "-shm"), (JOURNAL, "-journal")];
    let stem = format!("{FILE}.broken-{}", stamp(now));
    for turn in 0..1_000 {
        let base = if turn == 0 { stem.clone() } else { format!("{stem}.{turn}") };
        let taken = |end: &str| fs::symlink_metadata(directory.join(format!("{base}{end}"))).is_ok();
        if parts.iter().any(|(_, end)| taken(end)) {
            continue;
        }
        for (name, end) in parts {
            let to = directory.join(format!("{base}{end}"));
            match renameat2(AT_FDCWD, &directory.join(name), AT_FDCWD, &to, RenameFlags::RENAME_NOREPLACE) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(error) => return Err(cannot(&to, error.desc().to_owned())),
            }
        }
        sync(&directory).map_err(|error| cannot(&directory, error.to_string()))?;
        return Ok(directory.join(base));
    }
    Err(cannot(&directory.join(stem), "a thousand such names are taken: move some away".to_owned()))
}

/// `YYYYmmddTHHMMSS` in UTC of unix seconds.
fn stamp(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // days since 0000-03-01, in eras of 400 years: then the leap day is the last one of a year
    let day = days + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let (of_month, month, later) = (
        of_year - (153 * month + 2) / 5 + 1,
        if month < 10 { month + 3 } else { month - 9 },
        u64::from(month >= 10),
    );
    let year = era * 400 + year + later;
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}{month:02}{of_month:02}T{hour:02}{minute:02}{second:02}")
}

#[cfg(test)]
mod tests {
    use super::stamp;

    #[test]
    fn moments_are_named_as_the_calendar_does() {
        // by date -u -d @N +%Y%m%dT%H%M%S
        assert_eq!(stamp(0), "19700101T000000");
        assert_eq!(stamp(951_782_399), "20000228T235959");
        assert_eq!(stamp(951_782_400), "20000229T000000");
        assert_eq!(stamp(1_709_251_199), "20240229T235959");
        assert_eq!(stamp(4_102_444_800), "21000101T000000");
        assert_eq!(stamp(4_107_542_400), "21000301T000000");
    }
}
