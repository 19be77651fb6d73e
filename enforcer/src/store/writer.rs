//! The thread that writes: what is waiting goes into one transaction, and one fsync pays for all of it.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tracing::warn;

use super::commit::commit;
use super::folder::{Lock, WAL, inode};
use super::load::{self, Meta};
use super::open::whose;
use super::trouble::{Kind, host, kind};
use super::{OpenError, Outcome, Settings, Store, Write, connect, is_lazy, schema};

/// How many writes may wait; of these, how many of web sessions. Whatever those write, revocations have room.
pub const QUEUE: usize = 65_536;
pub const WEB_QUEUE: usize = 40_960;
/// The most writes of one transaction: what is answered is not kept waiting for all that came after it.
const BATCH: usize = 4_096;
/// How long a lazy write waits for company.
const LAZY: Duration = Duration::from_millis(200);
/// After so many writes or commits the log is brought into the database, between two batches. It keeps the log at some
/// ten megabytes, as long as no reader holds an old state for longer.
const WRITES_PER_CHECKPOINT: usize = 16_384;
const COMMITS_PER_CHECKPOINT: usize = 512;
/// How long [`Writer::stop`] waits: a disk that hangs must not hold the daemon for ever.
const STOP: Duration = Duration::from_secs(10);

/// The queue has no room. The write was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    #[error(
        "{} changes wait for the disk already: this one cannot be stored now, try again when it has caught up",
        QUEUE
    )]
    All,
    #[error(
        "{} changes of web sessions wait for the disk already: this one cannot be stored now, try again when it has \
         caught up",
        WEB_QUEUE
    )]
    Web,
}

/// The way to the thread that writes. Dropping it without [`Writer::stop`] lets the thread write what is queued, and
/// does not wait for it.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Hangs up when the thread has ended.
    ended: Receiver<()>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<(u64, Write)>,
    /// How many of them are not lazy.
    urgent: usize,
    /// How many of them are of web sessions.
    web: usize,
    /// Since when the first of them waits.
    since: Option<Instant>,
    stopping: bool,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // whoever panicked did so between two whole changes of the queue
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for writes and takes them; `None`: it is to stop, and nothing is left.
    fn take(&self) -> Option<Vec<(u64, Write)>> {
        let mut queue = self.queue();
        loop {
            if queue.waiting.is_empty() {
                if queue.stopping {
                    return None;
                }
                queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let waited = queue.since.map_or(LAZY, |since| since.elapsed());
            if queue.urgent > 0 || queue.stopping || queue.waiting.len() >= BATCH || waited >= LAZY {
                break;
            }
            queue = self.wake.wait_timeout(queue, LAZY - waited).unwrap_or_else(PoisonError::into_inner).0;
        }
        let many = queue.waiting.len().min(BATCH);
        let batch: Vec<_> = queue.waiting.drain(..many).collect();
        queue.urgent -= batch.iter().filter(|(_, write)| !is_lazy(write)).count();
        queue.web -= batch.iter().filter(|(_, write)| is_web(write)).count();
        // what stays was behind a full batch: it goes next, at once
        queue.since = None;
        Some(batch)
    }
}

impl Writer {
    /// Hands a write over and returns at once. Tickets have to rise; the outcome tells them.
    pub fn write(&self, ticket: u64, write: Write) -> Result<(), Full> {
        let mut queue = self.shared.queue();
        let web = is_web(&write);
        if queue.waiting.len() >= QUEUE {
            return Err(Full::All);
        }
        if web && queue.web >= WEB_QUEUE {
            return Err(Full::Web);
        }
        if queue.waiting.is_empty() {
            queue.since = Some(Instant::now());
        }
        // it is awake, or will look: what wakes it is the first write, the first that cannot wait, a full batch
        let urgent = !is_lazy(&write);
        queue.waiting.push_back((ticket, write));
        queue.urgent += usize::from(urgent);
        queue.web += usize::from(web);
        let news = queue.waiting.len() == 1 || (urgent && queue.urgent == 1) || queue.waiting.len() == BATCH;
        drop(queue);
        if news {
            self.shared.wake.notify_one();
        }
        Ok(())
    }

    /// How many writes wait at this moment.
    pub fn waiting(&self) -> usize {
        self.shared.queue().waiting.len()
    }

    /// Writes what is queued, brings the log into the database and ends the thread. `Err`, for people: it took
    /// longer than 10 s; the thread goes on by itself, and so does its lock on the directory.
    pub fn stop(mut self) -> Result<(), String> {
        self.end();
        match self.ended.recv_timeout(STOP) {
            Err(RecvTimeoutError::Timeout) => {
                return Err(format!(
                    "the disk did not take the last {} changes within {} s: what was not reported as stored may be lost",
                    self.waiting(),
                    STOP.as_secs()
                ));
            }
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {}
        }
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(_)) => {
                Err("the thread that writes the state broke: this is a fault of the program".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn end(&self) {
        self.shared.queue().stopping = true;
        self.shared.wake.notify_one();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.end();
    }
}

pub(super) fn start(store: Store, done: impl Fn(Outcome) + Send + 'static) -> io::Result<Writer> {
    let shared = Arc::new(Shared::default());
    let (alive, ended) = channel();
    let queue = Arc::clone(&shared);
    let thread = std::thread::Builder::new().name("store".to_owned()).spawn(move || {
        let _alive = alive;
        let mut thread = Thread::new(store);
        thread.begin();
        while let Some(batch) = queue.take() {
            thread.write(&batch, &done);
        }
        thread.end();
    })?;
    Ok(Writer { shared, thread: Some(thread), ended })
}

struct Thread {
    path: PathBuf,
    wal: PathBuf,
    meta: Meta,
    settings: Settings,
    /// `None`: it could not be written, or is beyond use. The next batch opens it anew.
    db: Option<Open>,
    /// Which file was opened first: another one is another state.
    file: Option<(u64, u64)>,
    writes: usize,
    commits: usize,
    /// A transaction failed: what it left in the log has to go, so that it is not taken for damage later.
    remains: bool,
    /// Dropped last.
    _lock: Lock,
}

struct Open {
    db: Connection,
    /// Which log it writes to, once it has.
    wal: Option<(u64, u64)>,
}

impl Thread {
    fn new(store: Store) -> Self {
        let wal = store.path.with_file_name(WAL);
        Self {
            file: inode(&store.path),
            path: store.path,
            wal,
            meta: store.meta,
            settings: store.settings,
            db: store.db.map(|db| Open { db, wal: None }),
            writes: 0,
            commits: 0,
            remains: false,
            _lock: store.lock,
        }
    }

    /// One batch: writes it, tells what became of it, and then does the chores.
    fn write(&mut self, batch: &[(u64, Write)], done: &impl Fn(Outcome)) {
        match self.store(batch) {
            Err(why) => tell(batch, &[], Some(&why), done),
            Ok(refused) => {
                tell(batch, &refused, None, done);
                self.chores(batch.len());
            }
        }
    }

    fn store(&mut self, batch: &[(u64, Write)]) -> Result<Vec<(usize, String)>, String> {
        let failed = |path: &Path, why: String| format!("not stored in {}: {why}", path.display());
        if self.db.is_none() {
            let (db, found) = self.reopen().map_err(|why| failed(&self.path, why))?;
            // a commit that failed may be there all the same: what it counted is not counted again
            self.meta.generation = self.meta.generation.max(found.generation);
            self.meta.next_number = self.meta.next_number.max(found.next_number);
            self.db = Some(Open { db, wal: None });
        }
        let Some(open) = &mut self.db else { return Err(failed(&self.path, "it is not open".to_owned())) };
        let written = commit(&open.db, &mut self.meta, &self.settings, batch.iter().map(|(_, write)| write));
        let refused = match written {
            Ok(refused) => refused,
            Err(error) => {
                self.remains = true;
                let why = match kind(&error) {
                    Kind::Host => host(&error),
                    _ => error.to_string(),
                };
                // a full disk is no fault of the connection; after anything else a new one is safer
                let full = error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull);
                if !(full && open.db.is_autocommit()) {
                    self.db = None;
                }
                return Err(failed(&self.path, why));
            }
        };
        // a file that was deleted under us takes every write, and is gone with the process
        let (file, wal) = (inode(&self.path), inode(&self.wal));
        if file.is_none() || file != self.file {
            self.db = None;
            let why =
                "it was moved away or replaced while the enforcer runs: put it back, or restart the enforcer";
            return Err(failed(&self.path, why.to_owned()));
        }
        if wal.is_none() || *open.wal.get_or_insert(wal.unwrap_or_default()) != wal.unwrap_or_default() {
            // closing brings what is in the lost log into the database, if it can be done
            self.db = None;
            return Err(failed(
                &self.wal,
                "it was moved away or replaced while the enforcer runs".to_owned(),
            ));
        }
        Ok(refused)
    }

    /// The database, and what it says of itself.
    fn reopen(&self) -> Result<(Connection, Meta), String> {
        let told = |error: rusqlite::Error| match kind(&error) {
            Kind::Host => host(&error),
            _ => error.to_string(),
        };
        if inode(&self.path).is_none() || inode(&self.path) != self.file {
            return Err(
                "it was moved away or replaced while the enforcer runs: put it back, or restart the enforcer"
                    .to_owned(),
            );
        }
        let db = connect::writer(&self.path).map_err(told)?;
        let known = schema::version_of(schema::STEPS);
        let same = whose(&db, &self.path, known).and_then(|_| load::meta(&db, &self.path));
        let found = same.map_err(|error| match error {
            OpenError::CannotRead { why, .. } => why,
            error => error.to_string(),
        })?;
        if found.gateway != self.meta.gateway {
            return Err(format!("it is the state of another gateway ({})", found.gateway));
        }
        connect::without_log(&db).map_err(told)?.map_or(Ok((db, found)), Err)
    }

    /// Brings the log into the database from time to time. A failure changes nothing about what is durable.
    fn chores(&mut self, writes: usize) {
        self.writes += writes;
        self.commits += 1;
        let Some(open) = &self.db else { return };
        let due = self.writes >= WRITES_PER_CHECKPOINT || self.commits >= COMMITS_PER_CHECKPOINT;
        if !due && !self.remains {
            return;
        }
        // never waits for a reader: the next write would wait with it
        let done = if self.remains {
            let now = open.db.busy_timeout(Duration::ZERO).and_then(|()| checkpoint(&open.db, "TRUNCATE"));
            open.db.busy_timeout(connect::PATIENCE).and(now)
        } else {
            checkpoint(&open.db, "PASSIVE")
        };
        match done {
            Ok(true) => self.remains = false,
            // a reader holds an old state: the next time, then
            Ok(false) => {}
            Err(error) => {
                warn!(path = %self.path.display(), "cannot bring the log into the database: {}", host(&error))
            }
        }
        (self.writes, self.commits) = (0, 0);
    }

    /// What earlier runs left in the log goes into the database first: a daemon that dies again and again would let it
    /// grow. Never waits for a reader, and a failure changes nothing about what is durable.
    fn begin(&self) {
        let Some(open) = &self.db else { return };
        let now = open.db.busy_timeout(Duration::ZERO).and_then(|()| checkpoint(&open.db, "TRUNCATE"));
        if let Err(error) = open.db.busy_timeout(connect::PATIENCE).and(now) {
            warn!(path = %self.path.display(), "cannot bring the log into the database: {}", host(&error));
        }
    }

    fn end(self) {
        if let Some(Open { db, .. }) = self.db {
            if let Err(error) = checkpoint(&db, "TRUNCATE") {
                warn!(path = %self.path.display(), "cannot bring the log into the database: {}", host(&error));
            }
            if let Err((_, error)) = db.close() {
                warn!(path = %self.path.display(), "cannot close the database: {}", host(&error));
            }
        }
    }
}

fn is_web(write: &Write) -> bool {
    matches!(write, Write::KeepWeb { .. } | Write::WebGone(_))
}

/// Whether all of the log is in the database now.
fn checkpoint(db: &Connection, how: &str) -> rusqlite::Result<bool> {
    db.query_row(&format!("PRAGMA wal_checkpoint({how})"), [], |row| {
        let (busy, log, done): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(busy == 0 && log == done)
    })
}

/// Tells what became of a batch: as few outcomes as there are different ones in a row.
fn tell(batch: &[(u64, Write)], refused: &[(usize, String)], all: Option<&str>, done: &impl Fn(Outcome)) {
    let result = |why: Option<&str>| why.map_or(Ok(()), |why| Err(why.to_owned()));
    let mut from = 0;
    let mut stretch = |until: usize, why: Option<&str>| {
        if let (Some((first, _)), Some((last, _))) =
            (batch.get(from), until.checked_sub(1).and_then(|at| batch.get(at)))
            && until > from
        {
            done(Outcome { tickets: *first..=*last, result: result(why) });
        }
        from = until;
    };
    for (place, why) in refused {
        stretch(*place, all);
        stretch(place + 1, Some(why));
    }
    stretch(batch.len(), all);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queued(writes: impl IntoIterator<Item = Write>, since: Option<Instant>) -> Shared {
        let shared = Shared::default();
        let mut queue = shared.queue();
        queue.waiting = (1..).zip(writes).collect();
        queue.urgent = queue.waiting.iter().filter(|(_, write)| !is_lazy(write)).count();
        queue.web = queue.waiting.iter().filter(|(_, write)| is_web(write)).count();
        queue.since = since;
        drop(queue);
        shared
    }

    fn tickets(batch: Option<Vec<(u64, Write)>>) -> Vec<u64> {
        batch.unwrap().into_iter().map(|(ticket, _)| ticket).collect()
    }

    /// Where a batch is due it is handed out at once; that it was not held is seen by this test ending at all, since
    /// what is not due starts to wait an hour from now.
    #[test]
    fn r5_what_cannot_wait_takes_along_what_can() {
        let later = Instant::now() + Duration::from_secs(3_600);
        let lazy = || Write::Forget(1);
        let shared = queued([lazy(), lazy(), Write::Lift(1), lazy()], Some(later));
        assert_eq!(tickets(shared.take()), [1, 2, 3, 4]);
        // lazy ones alone: after their time, when a batch is full, at the end
        let shared = queued([lazy(), lazy()], Instant::now().checked_sub(LAZY));
        assert_eq!(tickets(shared.take()), [1, 2]);
        let shared = queued(std::iter::repeat_with(lazy).take(BATCH + 3), Some(later));
        assert_eq!(tickets(shared.take()).len(), BATCH);
        // what was behind them does not wait once more
        assert_eq!(tickets(shared.take()).len(), 3);
        let shared = queued([lazy()], Some(later));
        shared.queue().stopping = true;
        assert_eq!(tickets(shared.take()), [1]);
        assert!(shared.take().is_none());
    }

    /// R5, R7: whatever the web part writes, a revocation has room; and each bound says whose it is.
    #[test]
    fn r5_r7_changes_of_web_sessions_leave_room_for_revocations() {
        let (_alive, ended) = channel();
        let writer = Writer { shared: Arc::new(Shared::default()), thread: None, ended };
        let gone = |number: u64| {
            let mut key = [0; 16];
            key[..8].copy_from_slice(&number.to_be_bytes());
            Write::WebGone(crate::session::WebKey::from_bytes(key))
        };
        let refused =
            (0..).find_map(|ticket| writer.write(ticket, gone(ticket)).err().map(|why| (ticket, why)));
        assert_eq!(refused, Some((WEB_QUEUE as u64, Full::Web)));
        assert!(Full::Web.to_string().contains("40960 changes of web sessions"), "{}", Full::Web);
        let room =
            (0..).find(|ticket| writer.write(WEB_QUEUE as u64 + ticket, Write::Over(*ticket)).is_err());
        assert_eq!(room, Some((QUEUE - WEB_QUEUE) as u64));
        assert_eq!(writer.write(u64::MAX, Write::Over(1)), Err(Full::All));
        // what was taken makes room
        let taken = writer.shared.take().unwrap();
        assert!(taken.len() == BATCH && writer.write(u64::MAX, gone(1)).is_ok());
    }

    /// R5: a commit that was told as failed may be there all the same (its last fsync failed). What it counted is not given a
    /// second time: a letter's number is its place in the table.
    #[test]
    fn r5_what_a_failed_commit_counted_is_not_counted_again() {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings { directory: folder.path().join("state"), audit_days: 0, audit_rows: 10 };
        let (store, _) = crate::store::open(&settings).unwrap();
        let mut thread = Thread::new(store);
        let before = thread.meta.clone();
        let letter = |name: &str| {
            let who = crate::session::Identity { realm: "default".to_owned(), name: name.to_owned() };
            let (over, author) = (crate::session::Over::User(who), crate::session::Author::Admin);
            crate::session::Letter::Lifted { author, over, up_to: None, by: String::new(), at: 1 }
        };
        let (first, second) = (letter("first"), letter("second"));
        assert_eq!(thread.store(&[(1, Write::KeepLetter(first.clone()))]), Ok(vec![]));
        // as it is after an error: nothing of it was counted, and the database is opened anew
        (thread.meta, thread.db) = (before, None);
        assert_eq!(thread.store(&[(2, Write::KeepLetter(second.clone()))]), Ok(vec![]));
        thread.end();
        assert_eq!(crate::store::open(&settings).unwrap().1.letters, [first, second]);
    }

    #[test]
    fn r5_outcomes_cover_every_ticket_once_whatever_was_refused() {
        let batch: Vec<_> = [3, 4, 7, 8, 9].map(|ticket| (ticket, Write::Forget(0))).into();
        let told = |refused: &[(usize, String)], all| {
            let told = std::cell::RefCell::new(Vec::new());
            tell(&batch, refused, all, &|outcome: Outcome| {
                told.borrow_mut().push((outcome.tickets, outcome.result.is_ok()));
            });
            told.into_inner()
        };
        let no = |place| (place, "no".to_owned());
        assert_eq!(told(&[], None), [(3..=9, true)]);
        assert_eq!(told(&[], Some("full")), [(3..=9, false)]);
        assert_eq!(told(&[no(0)], None), [(3..=3, false), (4..=9, true)]);
        assert_eq!(
            told(&[no(1), no(2)], None),
            [(3..=3, true), (4..=4, false), (7..=7, false), (8..=9, true)]
        );
        assert_eq!(told(&[no(4)], None), [(3..=8, true), (9..=9, false)]);
    }
}
