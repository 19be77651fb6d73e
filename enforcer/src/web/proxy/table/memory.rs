//! A file as shared memory.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU64;

use nix::errno::Errno;
use nix::fcntl::posix_fallocate;

/// Words that others can read in the file.
#[derive(Debug)]
pub(super) struct Memory {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the memory is the process's until it is unmapped by the one owner, and every access to it is atomic
unsafe impl Send for Memory {}
// SAFETY: as above
unsafe impl Sync for Memory {}

impl Memory {
    /// A new file of that many words, all 0, in the place of whatever was there.
    pub(super) fn create(path: &Path, words: usize) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // new: a link that somebody has put there is not followed
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        let length = words.checked_mul(size_of::<u64>()).ok_or(io::ErrorKind::InvalidInput)?;
        if let Err(error) = allocate(&file, length) {
            let _ = fs::remove_file(path);
            return Err(error);
        }
        let (access, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping at a place of the kernel's choice; the descriptor is open and the file is that long. It
        // is ours: whoever made it shorter would end this process by a signal, and nobody else may write it
        let start = unsafe { libc::mmap(ptr::null_mut(), length, access, shared, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, words })
    }

    /// A word; beyond the last one the last one, which nothing asks for.
    pub(super) fn word(&self, index: usize) -> &AtomicU64 {
        let index = index.min(self.words - 1);
        // SAFETY: within the mapping, which is aligned to a page and lives as long as this; others only read
        unsafe { self.start.add(index).as_ref() }
    }
}

/// Takes all of the room now: where a page of a mapping finds none later, the process is ended by a signal (SIGBUS).
fn allocate(file: &File, length: usize) -> io::Result<()> {
    let bytes = libc::off_t::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
    posix_fallocate(file, 0, bytes).map_err(|error| match error {
        Errno::ENOSPC | Errno::EDQUOT => io::Error::new(
            io::ErrorKind::StorageFull,
            format!("there is no room for its {length} bytes: make some, or lower limits.table-slots"),
        ),
        error => error.into(),
    })
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping that was made in `create`; nothing refers to it any more
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.words * size_of::<u64>()) };
    }
}
