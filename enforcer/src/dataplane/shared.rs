//! The memory of an array map (`BPF_F_MMAPABLE`), shared with the kernel; and how long its readers may still hold on
//! to what they have seen of it.

use std::io;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd as _};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// The elements of an array map, of which each is a `T`.
pub(super) struct Shared<T> {
    start: NonNull<T>,
    count: u32,
    bytes: NonZeroUsize,
    elements: PhantomData<T>,
}

// SAFETY: it owns its mapping, which belongs to no thread, and gives out addresses alone.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T> Shared<T> {
    /// `map` is an array map with `count` elements of the size of `T`, which is a multiple of 8.
    ///
    /// # Errors
    /// The map has no memory to share, or less of it.
    pub(super) fn of(map: impl AsFd, count: u32) -> io::Result<Self> {
        let bytes = usize::try_from(count).ok().and_then(|count| count.checked_mul(size_of::<T>()));
        let bytes = bytes.and_then(NonZeroUsize::new).ok_or(io::ErrorKind::InvalidInput)?;
        let map = map.as_fd().as_raw_fd();
        // SAFETY: a new mapping, at an address of the kernel's choice, of a descriptor that is open.
        let start = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), bytes.get(), access, libc::MAP_SHARED, map, 0)
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { start, count, bytes, elements: PhantomData })
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// The address of an element, which stays good as long as `self`; the programs may write to it at any time.
    pub(super) fn at(&self, index: u32) -> Option<*mut T> {
        let offset = usize::try_from(index).ok().filter(|_| index < self.count)?;
        // SAFETY: within the mapping.
        Some(unsafe { self.start.as_ptr().add(offset) })
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and nothing that borrows from `self` is left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes.get()) };
    }
}

/// Grace periods of RCU: programs run within a read-side section, so that after one that has begun since, none is
/// running that could have seen what was there before.
///
/// `membarrier(MEMBARRIER_CMD_GLOBAL)` is such a period (`synchronize_rcu` in kernel/sched/membarrier.c); it takes
/// some ten milliseconds, which a thread of its own waits.
#[derive(Default)]
pub(super) struct Grace {
    begun: u64,
    /// Where a period cannot be had (`nohz_full`), the first never ends.
    ended: Arc<AtomicU64>,
}

const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;

impl Grace {
    /// The period that has to be over before what is taken away now can be seen by nobody.
    pub(super) fn next(&self) -> u64 {
        self.begun + 1
    }

    pub(super) fn is_over(&self, period: u64) -> bool {
        period <= self.ended.load(Ordering::Acquire)
    }

    /// Begins a period, unless one is under way.
    pub(super) fn begin(&mut self) {
        if !self.is_over(self.begun) {
            return;
        }
        let period = self.begun + 1;
        let ended = Arc::clone(&self.ended);
        let wait = move || match membarrier() {
            Ok(()) => ended.store(period, Ordering::Release),
            Err(error) => tracing::warn!(
                "no grace period can be waited for ({error}): freed places of the kernel's tables stay unused until the next start"
            ),
        };
        match thread::Builder::new().name("grace-period".into()).spawn(wait) {
            Ok(_) => self.begun = period,
            Err(error) => tracing::debug!("no thread for a grace period now: {error}"),
        }
    }

    /// One whose period never ends.
    #[cfg(test)]
    pub(super) fn stuck() -> Self {
        Self { begun: 1, ended: Arc::default() }
    }

    /// A whole period, now. `false`: it cannot be had.
    pub(super) fn wait() -> bool {
        membarrier().is_ok()
    }
}

fn membarrier() -> io::Result<()> {
    // SAFETY: a system call that touches no memory of ours.
    let answer = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
