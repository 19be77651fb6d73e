//! What sealing has learned, in memory and on the disk: what is read here is on the disk, or is written with the next
//! news before their answer leaves.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use crate::web::learned::file::{LearnedError, LearnedFile};
use crate::web::learned::{Bounds, Entry, Learned};

pub(super) struct Keep {
    learned: RwLock<Learned>,
    disk: Mutex<Disk>,
    /// Something is in memory and not on the disk.
    owes: AtomicBool,
}

struct Disk {
    file: LearnedFile,
    /// What a failed write has left.
    pending: Vec<Entry>,
}

impl Keep {
    /// # Errors
    /// [`LearnedError`]
    pub(super) fn open(path: &Path) -> Result<Arc<Self>, LearnedError> {
        let (file, learned) = LearnedFile::open(path, Bounds::default())?;
        let disk = Mutex::new(Disk { file, pending: Vec::new() });
        Ok(Arc::new(Self { learned: RwLock::new(learned), disk, owes: AtomicBool::new(false) }))
    }

    /// For the call alone: whoever learns waits meanwhile.
    pub(super) fn learned(&self) -> RwLockReadGuard<'_, Learned> {
        self.learned.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an answer that tells nothing new has to wait for the disk all the same.
    pub(super) fn owes(&self) -> bool {
        self.owes.load(Ordering::Acquire)
    }

    /// Takes the news in; they are on the disk when this returns.
    ///
    /// # Errors
    /// [`LearnedError`], as a text. They are tried again with the next ones.
    pub(super) async fn learn(self: &Arc<Self>, news: Vec<Entry>) -> Result<(), String> {
        let this = Arc::clone(self);
        let written = tokio::task::spawn_blocking(move || this.write(news)).await;
        written.unwrap_or_else(|_| Err("it could not be written: this is a fault of the enforcer".into()))
    }

    fn write(&self, news: Vec<Entry>) -> Result<(), String> {
        let mut disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        // nobody reads what is not on the disk yet: an answer that tells the same would leave too early
        let mut learned = self.learned.write().unwrap_or_else(PoisonError::into_inner);
        let Disk { file, pending } = &mut *disk;
        pending.extend(news.into_iter().filter_map(|entry| learned.learn(entry)));
        if !pending.is_empty()
            && let Err(error) = file.add(pending, &learned)
        {
            self.owes.store(true, Ordering::Release);
            return Err(error.to_string());
        }
        pending.clear();
        self.owes.store(false, Ordering::Release);
        Ok(())
    }
}
