//! The durable state: what outlives the daemon and the host. An adapter: it knows records, not what they are for.
//!
//! One SQLite database, `state.db`, in the state directory (0700; the file 0600). An administrator may look at any
//! time: `sqlite3 -readonly /var/lib/enforcer/state.db 'SELECT * FROM lock'`. Tables and columns: `schema.rs`.
//! One process writes, and holds a lock on the directory for it.
//!
//! What is promised:
//!
//! - **A write that was reported as done is on the disk** (R5): its commit was followed by fsync. It is there after
//!   kill -9 and a power cut, as far as the disk keeps its word. Writes are in force in the order they were given.
//! - **A write that was not reported as done is there whole or not at all.**
//! - **Nothing is lost silently.** At opening the shape of every page is checked, and every row that decides
//!   something has a checksum: a byte that the disk changed is an error, or was in what holds no data. The write-ahead
//!   log is checked as well; damage in its very last commit cannot be told from a commit that a power cut tore, and a
//!   log that was cut off between two commits cannot be told from an earlier state. Then the kernel's maps
//!   know more (their next number), unless the host was restarted.
//! - **A full disk stops nothing** (R7): what can be read is read, each further write is tried and reported.
//! - Never a cookie, a password or a key: nothing here takes one. Of a web session's tokens there are digests, and its
//!   secret as it is wrapped for each: worth nothing without a token.
//!
//! Threads and privileges: [`open`] and the readers block; the writer is a thread of its own. They need to own the
//! directory, nothing else.

pub mod admission;
pub mod chain;
mod commit;
mod connect;
mod folder;
mod known;
pub mod letter;
mod load;
mod open;
mod reader;
pub mod row;
mod salvage;
mod schema;
mod tables;
mod trouble;
mod wal;
mod web;
mod writer;

use std::ops::RangeInclusive;
use std::path::PathBuf;

pub use folder::{FILE, put_aside};
pub use open::{Store, open, open_again};
pub use reader::{AuditEnds, Reader};
pub use salvage::{Salvaged, salvage};
pub use trouble::{OpenError, ReadError};
pub use writer::{Full, QUEUE, Writer};

pub use crate::session::Write;
use crate::session::{Admission, KnownEtcd, Letter, Process, Record, SessionRecord, WebRecord};

/// Where the state is, and the bounds of the audit log. Both are checked whenever a line is added, by the newest
/// line's own time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub directory: PathBuf,
    /// Lines that are older than this are deleted, from the oldest up to the first that is not (a clock that was wrong may
    /// have dated that one); 0: by `audit_rows` alone.
    pub audit_days: u32,
    /// At most so many lines, of at most 16 KiB each text.
    pub audit_rows: u32,
}

/// What the disk held when it was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// This gateway's id: 32 hexadecimal digits, made at the first opening.
    pub gateway: String,
    /// The boot in which the last [`Write::Clock`] was written; `None`: there was none.
    pub boot_id: Option<String>,
    /// The wall clock of the last [`Write::Clock`], in unix seconds; 0: there was none.
    pub wall: u64,
    /// Above every number that was ever written; at least 1.
    pub next_number: u64,
    /// In the order of their numbers.
    pub records: Vec<Record>,
    /// Numbers that were lifted and not forgotten, rising.
    pub lifted: Vec<u64>,
    /// In the order of their keys.
    pub sessions: Vec<SessionRecord>,
    /// In the order of their keys.
    pub web: Vec<WebRecord>,
    /// The last [`Write::WebGateways`]; `None`: there was none, or it told of none.
    pub web_gateways: Option<Vec<Process>>,
    /// What the other gateways have yet to be told, in the order in which it was written; one of each key.
    pub letters: Vec<Letter>,
    /// The last [`Write::KnownEtcd`]; `None`: there was none.
    pub known: Option<KnownEtcd>,
    /// In the order in which they were written; one of each safe_id.
    pub admissions: Vec<Admission>,
    /// Why nothing can be written at present, for people. The writer tries again with every batch.
    pub unwritable: Option<String>,
    /// Whether the database was made just now.
    pub fresh: bool,
}

/// A lazy write may wait a moment for others to share a commit with.
fn is_lazy(write: &Write) -> bool {
    match write {
        Write::Keep(_)
        | Write::Over(_)
        | Write::Lift(_)
        | Write::NextNumber(_)
        | Write::KeepLetter(_)
        | Write::KeepWeb { lazy: false, .. }
        | Write::WebGone(_) => false,
        Write::Forget(_)
        | Write::Session(_)
        | Write::SessionGone(_)
        | Write::NoSessions
        | Write::KeepWeb { lazy: true, .. }
        | Write::WebGateways(_)
        | Write::LetterTold(_)
        | Write::KnownEtcd(_)
        | Write::KeepAdmission(_)
        | Write::AdmissionGone(_)
        | Write::Audit(_)
        | Write::Clock { .. } => true,
    }
}

/// What became of some writes. They come in the order in which the writes were given, and cover each ticket once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// From the first to the last ticket that this is about.
    pub tickets: RangeInclusive<u64>,
    /// `Ok`: on the disk. `Err`: not reliably on the disk, and why, for people; it is not tried again by itself. (If
    /// it was the last fsync that failed, it may be found there all the same after a restart, whole.)
    pub result: Result<(), String>,
}
