//! Files that hold secrets: read only if nobody else could have read or written them, and replaced as a whole.
//!
//! A file is replaced by a new one under its name (rename(2)), so that a reader sees the old one or the new one and a
//! crash leaves one of them. Who changes a file in a folder holds a lock of flock(2) ([`Folder`]) on the empty file
//! [`LOCK`] there: the lock is gone with its process, however that ends. Whoever can open a file can lock it, so that file
//! is for the folder's owner alone (and root); the folder itself may be open to everybody.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// The file that is locked, in the folder of what is changed. It stays.
pub const LOCK: &str = ".enforcer.lock";

/// No file that is longer is read.
pub const MAX_LENGTH: u64 = 64 * 1024 * 1024;

/// Who may have rights on a file: the bits that must not be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forbidden(u32);

/// Mode 0600 and less.
pub const OWNER_ONLY: Forbidden = Forbidden(0o177);
/// Mode 0640 and less: its group may read it.
pub const GROUP_READS: Forbidden = Forbidden(0o137);

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{path} does not exist")]
    Missing { path: String },
    #[error("{path}: {what}")]
    Failed { path: String, what: String },
    /// Somebody else could have read or written it.
    #[error("{path} {what}")]
    Unsafe { path: String, what: String },
}

impl FileError {
    fn of(path: &Path, doing: &str, error: &io::Error) -> Self {
        let path = path.display().to_string();
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing { path },
            _ => Self::Failed { path, what: format!("cannot {doing}: {error}") },
        }
    }
}

/// A file's contents, and which file of that name it was.
#[derive(Debug)]
pub struct Contents {
    pub bytes: Vec<u8>,
    pub stamp: Stamp,
}

/// Tells one state of a file from another: device, inode, length, and the nanoseconds of its last change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    changed: (i64, i64),
    /// Also owner and mode: who has made a file unsafe wants to hear of it.
    owner: (u32, u32),
    mode: u32,
}

impl Stamp {
    fn of(about: &fs::Metadata) -> Self {
        Self {
            device: about.dev(),
            inode: about.ino(),
            length: about.len(),
            changed: (about.ctime(), about.ctime_nsec()),
            owner: (about.uid(), about.gid()),
            mode: about.mode(),
        }
    }
}

/// The state that the file has now.
///
/// # Errors
/// [`FileError::Missing`], [`FileError::Failed`]
pub fn stamp(path: &Path) -> Result<Stamp, FileError> {
    fs::metadata(path)
        .map(|about| Stamp::of(&about))
        .map_err(|error| FileError::of(path, "look at it", &error))
}

/// Reads a file that belongs to root or to this process's user and on which nobody has a forbidden right.
///
/// # Errors
/// [`FileError`]
pub fn read(path: &Path, forbidden: Forbidden) -> Result<Contents, FileError> {
    read_for(path, forbidden, None)
}

fn read_for(path: &Path, forbidden: Forbidden, owner: Option<u32>) -> Result<Contents, FileError> {
    // a FIFO of that name must not hold us up
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC)
        .open(path)
        .map_err(|error| FileError::of(path, "open it", &error))?;
    let about = file.metadata().map_err(|error| FileError::of(path, "look at it", &error))?;
    examine(path, &about, forbidden, owner)?;
    let mut bytes = Vec::with_capacity(usize::try_from(about.len()).unwrap_or_default() + 1);
    let length = file
        .take(MAX_LENGTH + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| FileError::of(path, "read it", &error))?;
    if length as u64 > MAX_LENGTH {
        return Err(too_long(path));
    }
    Ok(Contents { bytes, stamp: Stamp::of(&about) })
}

fn too_long(path: &Path) -> FileError {
    FileError::Failed { path: path.display().to_string(), what: format!("is longer than {MAX_LENGTH} bytes") }
}

/// `owner`: who else may own it, beside root and this process's user.
fn examine(
    path: &Path,
    about: &fs::Metadata,
    forbidden: Forbidden,
    owner: Option<u32>,
) -> Result<(), FileError> {
    let refuse = |what: String| Err(FileError::Unsafe { path: path.display().to_string(), what });
    if !about.is_file() {
        return refuse("is no ordinary file".to_owned());
    }
    if about.len() > MAX_LENGTH {
        return Err(too_long(path));
    }
    let me = nix::unistd::geteuid().as_raw();
    if about.uid() != me && about.uid() != 0 && owner != Some(about.uid()) {
        return refuse(format!(
            "belongs to uid {}, who could change it: it has to belong to root or to uid {me}, `chown` it",
            about.uid()
        ));
    }
    let mode = about.mode() & 0o7777;
    let allowed = 0o777 & !forbidden.0;
    if mode & forbidden.0 != 0 {
        return refuse(format!(
            "has mode {mode:04o}, so that others could read or change it: `chmod {allowed:o}` it"
        ));
    }
    Ok(())
}

/// How long somebody else may take to change a file: it takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// A file's folder, locked against everybody else who changes files in it this way.
#[derive(Debug)]
pub struct Folder {
    _lock: Flock<File>,
    folder: File,
    file: PathBuf,
}

impl Folder {
    /// Waits until nobody else changes a file in the folder of `path`, for half a minute at the most. A link is
    /// followed: what it points to is replaced, and it stays.
    ///
    /// # Errors
    /// [`FileError`], where the folder is missing too.
    pub fn lock(path: &Path) -> Result<Self, FileError> {
        let file = match fs::canonicalize(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
            Err(error) => return Err(FileError::of(path, "find it", &error)),
        };
        let at = match file.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let folder = File::open(at).map_err(|error| FileError::of(at, "open the folder", &error))?;
        let lock = at.join(LOCK);
        let mut open = open_lock(&lock, &folder)?;
        let give_up = Instant::now() + PATIENCE;
        loop {
            let what = match Flock::lock(open, FlockArg::LockExclusiveNonblock) {
                Ok(_lock) => return Ok(Self { _lock, folder, file }),
                Err((again, Errno::EWOULDBLOCK)) if Instant::now() < give_up => {
                    open = again;
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                }
                Err((_, Errno::EWOULDBLOCK)) => {
                    "somebody holds a lock on it (flock, as lslocks(8) shows it): end that process".to_owned()
                }
                Err((_, error)) => format!("cannot lock it: {}", error.desc()),
            };
            return Err(FileError::Failed { path: lock.display().to_string(), what });
        }
    }

    /// As [`read`]; the file may belong to the folder's owner as well, who could replace it anyway: so root can change
    /// the files of a gateway in that one's own folder.
    ///
    /// # Errors
    /// [`FileError`]
    pub fn read(&self, forbidden: Forbidden) -> Result<Contents, FileError> {
        let about = self.folder.metadata();
        let owner = about.map_err(|error| FileError::of(&self.file, "look at its folder", &error))?.uid();
        read_for(&self.file, forbidden, Some(owner))
    }

    /// Puts these contents in the file's place, with the owner, the group and the mode of the one that was there (where
    /// there was none: mode 0600, and if root makes it the owner of the folder), and does not come back before they are on the disk.
    ///
    /// # Errors
    /// [`FileError`]. Then the file is as it was, unless only the folder could not be written to the disk.
    pub fn replace(&self, contents: &[u8]) -> Result<(), FileError> {
        let failed = |doing: &str, error: &io::Error| FileError::of(&self.file, doing, error);
        let former = match fs::metadata(&self.file) {
            Ok(about) => Some(about),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed("look at it", &error)),
        };
        let mut name = self.file.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let new = self.file.with_file_name(name);
        // what somebody left behind who was killed: the lock is ours
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove what is left of its last change", &error));
            }
            _ => {}
        }
        let written =
            write(&new, contents, former.as_ref(), &self.folder).and_then(|()| fs::rename(&new, &self.file));
        if let Err(error) = written {
            let _ = fs::remove_file(&new);
            let what = format!("cannot replace it: {error}");
            return Err(FileError::Failed { path: self.file.display().to_string(), what });
        }
        self.folder.sync_all().map_err(|error| failed("write its folder to the disk", &error))
    }
}

/// Opens the file that is locked, and makes it where there is none.
fn open_lock(path: &Path, folder: &File) -> Result<File, FileError> {
    let options = |new: bool| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(new).mode(0o600);
        // no link leads elsewhere, and a FIFO of that name holds nobody up
        options.custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC);
        options.open(path)
    };
    let failed = |error: io::Error| FileError::of(path, "open the file that is locked", &error);
    let file = match options(true) {
        Ok(file) => {
            to_owner_of(folder, &file).map_err(failed)?;
            file
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => options(false).map_err(failed)?,
        Err(error) => return Err(failed(error)),
    };
    let about = file.metadata().map_err(failed)?;
    let owner = folder.metadata().map_err(failed)?.uid();
    examine(path, &about, OWNER_ONLY, Some(owner))?;
    Ok(file)
}

/// What root makes in somebody's folder is that one's, who could not open it otherwise.
fn to_owner_of(folder: &File, file: &File) -> io::Result<()> {
    let about = folder.metadata()?;
    if nix::unistd::geteuid().is_root() && about.uid() != 0 {
        fchown(file, Some(about.uid()), Some(about.gid()))?;
    }
    Ok(())
}

fn write(path: &Path, contents: &[u8], former: Option<&fs::Metadata>, folder: &File) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(contents)?;
    match former {
        Some(former) => {
            // first whose it is: chown takes away bits of the mode
            fchown(&file, Some(former.uid()), Some(former.gid()))?;
            file.set_permissions(fs::Permissions::from_mode(former.mode() & 0o7777))?;
        }
        None => to_owner_of(folder, &file)?,
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(path: &Path, text: &str, mode: u32) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn who_else_could_read_or_write_it_is_told_with_the_cure() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        put(&path, "text", 0o640);
        assert_eq!(read(&path, GROUP_READS).unwrap().bytes, b"text");
        let said = read(&path, OWNER_ONLY).unwrap_err().to_string();
        assert!(said.contains("has mode 0640") && said.contains("`chmod 600` it"), "{said}");
        for mode in [0o644, 0o660, 0o650, 0o700, 0o602] {
            put(&path, "text", mode);
            let said = read(&path, GROUP_READS).unwrap_err().to_string();
            assert!(said.contains("`chmod 640` it"), "{said}");
        }
    }

    #[test]
    fn what_is_no_file_and_what_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read(folder.path(), OWNER_ONLY).unwrap_err().to_string().contains("no ordinary file"));
        let missing = folder.path().join("missing");
        assert!(matches!(read(&missing, OWNER_ONLY), Err(FileError::Missing { .. })));
        assert!(matches!(stamp(&missing), Err(FileError::Missing { .. })));
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        assert!(read(&fifo, OWNER_ONLY).unwrap_err().to_string().contains("no ordinary file"));
        let huge = folder.path().join("huge");
        put(&huge, "", 0o600);
        OpenOptions::new().write(true).open(&huge).unwrap().set_len(MAX_LENGTH + 1).unwrap();
        assert!(read(&huge, OWNER_ONLY).unwrap_err().to_string().contains("longer than"));
    }

    #[test]
    fn a_replaced_file_keeps_its_owner_its_mode_and_a_link_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("file"), folder.path().join("link"));
        put(&path, "old", 0o640);
        // only root can give a file away
        let gid = if nix::unistd::geteuid().is_root() { 12_345 } else { nix::unistd::getegid().as_raw() };
        std::os::unix::fs::chown(&path, None, Some(gid)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        // left behind by somebody who was killed
        put(&folder.path().join("file.new"), "half", 0o666);
        let before = stamp(&link).unwrap();
        Folder::lock(&link).unwrap().replace(b"new").unwrap();
        assert_ne!(stamp(&link).unwrap(), before);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        let about = fs::metadata(&path).unwrap();
        assert_eq!((about.gid(), about.mode() & 0o7777), (gid, 0o640));
        assert_eq!(fs::read(&path).unwrap(), b"new");
        let names = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.collect();
        names.sort();
        assert_eq!(names, [LOCK, "file", "link"], "nothing is left beside it but what is locked");
    }

    /// Whoever can open something can lock it: a stranger's lock on the folder holds nobody up, and what we lock a
    /// stranger cannot open.
    #[test]
    fn r7_no_stranger_holds_a_writer_up() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let path = folder.path().join("file");
        let open = File::open(folder.path()).unwrap();
        let theirs = Flock::lock(open, FlockArg::LockExclusiveNonblock).map_err(|(_, why)| why).unwrap();
        Folder::lock(&path).unwrap().replace(b"text").unwrap();
        let lock = folder.path().join(LOCK);
        assert_eq!(fs::metadata(&lock).unwrap().mode() & 0o7777, 0o600);
        // only root can be somebody else
        if nix::unistd::geteuid().is_root() {
            use std::os::unix::process::CommandExt as _;
            let stranger = |what: &Path| {
                let mut command = std::process::Command::new("flock");
                command.args(["--nonblock", "--shared"]).arg(what).arg("true").uid(65_534).gid(65_534);
                command.output().unwrap().status.success()
            };
            drop(theirs);
            assert!(stranger(folder.path()), "the folder is open to him");
            assert!(!stranger(&lock));
        }
    }

    #[test]
    fn a_lock_that_is_no_file_of_ours_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let (path, lock) = (folder.path().join("file"), folder.path().join(LOCK));
        let said = || Folder::lock(&path).unwrap_err().to_string();
        put(&lock, "", 0o644);
        assert!(said().contains("`chmod 600` it"), "{}", said());
        fs::remove_file(&lock).unwrap();
        nix::unistd::mkfifo(&lock, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        assert!(said().contains("no ordinary file"), "{}", said());
        fs::remove_file(&lock).unwrap();
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), &lock).unwrap();
        assert!(said().contains("cannot open the file that is locked"), "{}", said());
        assert!(!folder.path().join("elsewhere").exists());
    }

    /// Root changes a file in the gateway's own folder, and makes one: the gateway can go on with both.
    #[test]
    fn what_root_makes_in_anothers_folder_is_that_ones() {
        if !nix::unistd::geteuid().is_root() {
            // nobody else can
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::os::unix::fs::chown(folder.path(), Some(12_345), Some(12_346)).unwrap();
        for text in [&b"new"[..], b"newer"] {
            let locked = Folder::lock(&path).unwrap();
            locked.replace(text).unwrap();
            assert_eq!(locked.read(OWNER_ONLY).unwrap().bytes, text);
            for name in ["file", LOCK] {
                let about = fs::metadata(folder.path().join(name)).unwrap();
                assert_eq!((about.uid(), about.gid(), about.mode() & 0o7777), (12_345, 12_346, 0o600));
            }
        }
        assert!(
            matches!(read(&path, OWNER_ONLY), Err(FileError::Unsafe { .. })),
            "without the folder's owner"
        );
        std::os::unix::fs::chown(&path, Some(12_347), None).unwrap();
        assert!(matches!(Folder::lock(&path).unwrap().read(OWNER_ONLY), Err(FileError::Unsafe { .. })));
    }

    #[test]
    fn writers_wait_for_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        Folder::lock(&path).unwrap().replace(b"0").unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..10 {
                        let folder = Folder::lock(&path).unwrap();
                        let text = String::from_utf8(folder.read(OWNER_ONLY).unwrap().bytes).unwrap();
                        let next = text.parse::<u32>().unwrap() + 1;
                        folder.replace(next.to_string().as_bytes()).unwrap();
                    }
                });
            }
        });
        assert_eq!(fs::read(&path).unwrap(), b"80");
    }
}
