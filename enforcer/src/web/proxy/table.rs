//! Who has which socket, in a file that the daemon can read when the gateway does not answer.
//!
//! The gateway writes it, alone, through shared memory: a few stores for a request. Whoever reads it gets the state of
//! the last moment in which the gateway ran, also if it hangs or was stopped.
//!
//! # The file
//!
//! Words of 64 bits in the host's byte order. The header, eight words:
//!
//! | word | |
//! |---|---|
//! | 0 | [`MAGIC`], which also tells the version |
//! | 1 | how many slots follow |
//! | 2 | the pid of the gateway |
//! | 3 | how many sockets found no free slot, since the start: what is here is not all then |
//! | 4..7 | 0 |
//!
//! A slot, ten words:
//!
//! | word | |
//! |---|---|
//! | 0 | how often it was written, twice; odd while it is being written |
//! | 1 | SO_COOKIE of the socket; 0: the slot is free |
//! | 2, 3 | the session's key, its sixteen bytes in their order |
//! | 4, 5 | our end's address, sixteen bytes in network order; IPv4 in the first four |
//! | 6, 7 | the other end's |
//! | 8 | from the lowest bit on: our port (16), the other's (16), 4 or 6 for the socket's family (8), 1 to an origin or 2 to a client (8), 1 if the client is a trusted proxy (8) |
//! | 9 | as word 0: where they differ, or are odd, the slot was being written |
//!
//! A client's connection is there once for each session that was seen on it; where more were seen than are told apart it
//! is written as a trusted proxy's, since it cannot be said whose else it is.
//!
//! **Who reads it must not trust it**: a gateway that was broken into can write what it likes. Only a socket that
//! belongs to the gateway's user may be destroyed for what is written here, and a client's only if no session that
//! lives has it, and no trusted proxy.

mod memory;
mod reader;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex};

use self::memory::Memory;
use super::lock;
use super::register::SessionKey;

pub use reader::{Condition, Entry, Reader, Snapshot, read};

/// The first word of the file: `webSock1`.
pub const MAGIC: u64 = u64::from_be_bytes(*b"webSock1");
const HEADER_WORDS: usize = 8;
const SLOT_WORDS: usize = 10;
/// More slots than anybody has sockets.
const MOST_SLOTS: u64 = 1 << 22;

#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("the table of sockets {}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("the table of sockets {}: {text}", path.display())]
    Malformed { path: PathBuf, text: &'static str },
}

/// Whom a socket leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Origin,
    Client { trusted: bool },
}

/// The writer's side.
#[derive(Debug)]
pub struct Table {
    memory: Memory,
    free: Mutex<Vec<u32>>,
}

impl Table {
    /// Makes the file anew, for its owner alone. A reader of an older one keeps that.
    pub fn create(path: &Path, slots: u32) -> Result<Arc<Self>, TableError> {
        let words = HEADER_WORDS + slots as usize * SLOT_WORDS;
        let memory =
            Memory::create(path, words).map_err(|error| TableError::Io { path: path.to_owned(), error })?;
        memory.word(1).store(u64::from(slots), Ordering::Relaxed);
        memory.word(2).store(u64::from(std::process::id()), Ordering::Relaxed);
        memory.word(0).store(MAGIC, Ordering::Release);
        Ok(Arc::new(Self { memory, free: Mutex::new((0..slots).rev().collect()) }))
    }

    /// Writes a socket down until the slot is dropped. `None`: there is no room, which the file says.
    pub(super) fn put(
        self: &Arc<Self>,
        session: SessionKey,
        cookie: u64,
        (ours, theirs): (SocketAddr, SocketAddr),
        side: Side,
    ) -> Option<Slot> {
        let Some(number) = lock(&self.free).pop() else {
            self.memory.word(3).fetch_add(1, Ordering::Relaxed);
            return None;
        };
        let session = session.0;
        let key = [first_half(session), last_half(session)];
        let (our, their) = (octets(ours.ip()), octets(theirs.ip()));
        let family = if ours.is_ipv4() { 4 } else { 6 };
        let (side, trusted) = match side {
            Side::Origin => (1, 0),
            Side::Client { trusted } => (2, u64::from(trusted)),
        };
        let rest = u64::from(ours.port())
            | u64::from(theirs.port()) << 16
            | family << 32
            | side << 40
            | trusted << 48;
        self.write(
            number,
            [
                cookie,
                key[0],
                key[1],
                first_half(our),
                last_half(our),
                first_half(their),
                last_half(their),
                rest,
            ],
        );
        Some(Slot { table: Arc::clone(self), number })
    }

    fn write(&self, number: u32, content: [u64; SLOT_WORDS - 2]) {
        let at = HEADER_WORDS + number as usize * SLOT_WORDS;
        let word = |index: usize| -> &AtomicU64 { self.memory.word(at + index) };
        // the slot is this thread's alone until it is free again
        let before = word(0).load(Ordering::Relaxed);
        word(0).store(before + 1, Ordering::Relaxed);
        word(SLOT_WORDS - 1).store(before + 1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        for (index, value) in content.into_iter().enumerate() {
            word(index + 1).store(value, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        word(SLOT_WORDS - 1).store(before + 2, Ordering::Relaxed);
        word(0).store(before + 2, Ordering::Release);
    }
}

/// A socket is written down as long as this lives.
#[derive(Debug)]
pub(super) struct Slot {
    table: Arc<Table>,
    number: u32,
}

impl Slot {
    /// More sessions are on that connection than are written down: it must not be destroyed for any.
    pub(super) fn share(&self) {
        let at = HEADER_WORDS + self.number as usize * SLOT_WORDS;
        let mut content: [u64; SLOT_WORDS - 2] =
            std::array::from_fn(|index| self.table.memory.word(at + 1 + index).load(Ordering::Relaxed));
        content[SLOT_WORDS - 3] |= 1 << 48;
        self.table.write(self.number, content);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.table.write(self.number, [0; SLOT_WORDS - 2]);
        lock(&self.table.free).push(self.number);
    }
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&address.octets());
            octets
        }
        IpAddr::V6(address) => address.octets(),
    }
}

fn first_half(bytes: [u8; 16]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = bytes;
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

fn last_half(bytes: [u8; 16]) -> u64 {
    let [.., a, b, c, d, e, f, g, h] = bytes;
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;

    fn ends(ours: &str, theirs: &str) -> (SocketAddr, SocketAddr) {
        (ours.parse().unwrap(), theirs.parse().unwrap())
    }

    #[test]
    fn what_is_written_is_read_until_it_is_gone() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("sockets");
        let table = Table::create(&path, 3).unwrap();
        let all = |path: &Path| read(path).unwrap();
        assert_eq!(all(&path).entries, []);
        let v4 = ends("192.0.2.1:1", "192.0.2.2:65535");
        let v6 = ends("[2001:db8::1]:2", "[::ffff:192.0.2.9]:3");
        let keys = [SessionKey(std::array::from_fn(|at| at as u8)), SessionKey([255; 16])];
        let one = table.put(keys[0], 7, v4, Side::Origin).unwrap();
        let two = table.put(keys[1], u64::MAX, v6, Side::Client { trusted: true }).unwrap();
        let entry = |session, cookie, (ours, theirs), side| Entry { session, cookie, ours, theirs, side };
        let snapshot = all(&path);
        assert_eq!(
            snapshot.entries,
            [
                entry(keys[0], 7, v4, Side::Origin),
                entry(keys[1], u64::MAX, v6, Side::Client { trusted: true }),
            ]
        );
        assert_eq!((snapshot.pid, snapshot.missed), (std::process::id(), 0));
        drop(one);
        let three = table.put(keys[0], 9, v4, Side::Client { trusted: false }).unwrap();
        assert_eq!(all(&path).entries.len(), 2);
        let _four = table.put(keys[0], 10, v4, Side::Origin).unwrap();
        assert!(table.put(keys[0], 11, v4, Side::Origin).is_none());
        assert_eq!(all(&path).missed, 1);
        drop((two, three));
        assert_eq!(all(&path).entries, [entry(keys[0], 10, v4, Side::Origin)]);
    }

    /// R3: a connection that is too many people's is nobody's to destroy.
    #[test]
    fn r3_a_connection_with_more_sessions_than_are_told_apart_is_written_as_a_proxys() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("sockets");
        let table = Table::create(&path, 2).unwrap();
        let v4 = ends("192.0.2.1:1", "192.0.2.2:65535");
        let slot = table.put(SessionKey([1; 16]), 7, v4, Side::Client { trusted: false }).unwrap();
        let other = table.put(SessionKey([2; 16]), 8, v4, Side::Client { trusted: false }).unwrap();
        let before = read(&path).unwrap().entries;
        slot.share();
        let after = read(&path).unwrap().entries;
        assert_eq!(after, [Entry { side: Side::Client { trusted: true }, ..before[0] }, before[1]]);
        drop((slot, other));
    }

    /// No link is followed, and nothing but a plain file is read: the gateway's folder is the gateway's.
    #[test]
    fn r7_what_stands_in_the_tables_place_is_refused() {
        let folder = TempDir::new().unwrap();
        let (path, there) = (folder.path().join("sockets"), folder.path().join("there"));
        drop(Table::create(&there, 4).unwrap());
        let reader = Reader::open(&there).unwrap();
        assert_eq!(reader.pid(), std::process::id());
        assert_eq!(reader.owner(), nix::unistd::geteuid().as_raw());
        std::os::unix::fs::symlink(&there, &path).unwrap();
        assert!(matches!(Reader::open(&path), Err(TableError::Io { .. })));
        std::fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(Reader::open(&path), Err(TableError::Malformed { .. })));
        assert!(matches!(Reader::open(folder.path()), Err(TableError::Malformed { .. })));
        // one that was cut off after it was opened is an error, and no signal
        std::fs::OpenOptions::new().write(true).open(&there).unwrap().set_len(100).unwrap();
        assert!(matches!(reader.each(|_| {}), Err(TableError::Io { .. })));
    }

    #[test]
    fn r7_a_full_disk_is_said_at_once_and_not_by_a_signal() {
        use nix::mount::{MsFlags, mount};
        use nix::sched::{CloneFlags, unshare};

        // mounts of this thread alone, which go with it
        let folder = TempDir::new().unwrap();
        let place = folder.path().to_owned();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let nothing = None::<&str>;
            mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).unwrap();
            mount(Some("tmpfs"), &place, Some("tmpfs"), MsFlags::empty(), Some("size=64k")).unwrap();
            let path = place.join("sockets");
            let error = Table::create(&path, 65_536).unwrap_err().to_string();
            assert!(error.contains("no room") && error.contains("sockets"), "{error}");
            assert!(!path.exists());
            let table = Table::create(&path, 100).unwrap();
            // what there is is taken: nobody else can take it away
            let _ = std::fs::write(place.join("other"), vec![0; 1 << 20]);
            let end = ends("192.0.2.1:1", "192.0.2.2:2");
            let all: Vec<_> =
                (1..=100).map(|cookie| table.put(SessionKey([1; 16]), cookie, end, Side::Origin)).collect();
            assert_eq!((all.len(), read(&path).unwrap().entries.len()), (100, 100));
        });
        thread.join().unwrap();
    }

    #[test]
    fn a_slot_that_is_being_written_is_read_as_it_was_or_will_be() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("sockets");
        let table = Table::create(&path, 1).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut number = 0u8;
                while !stop.load(Ordering::Relaxed) {
                    number = number.wrapping_add(1);
                    let end = SocketAddr::from(([number; 4], u16::from(number)));
                    drop(table.put(
                        SessionKey([number; 16]),
                        u64::from(number) + 1,
                        (end, end),
                        Side::Origin,
                    ));
                }
            });
            for _ in 0..5_000 {
                for entry in read(&path).unwrap().entries {
                    let number = entry.session.0[0];
                    let end = SocketAddr::from(([number; 4], u16::from(number)));
                    assert_eq!(entry.session, SessionKey([number; 16]));
                    assert_eq!((entry.cookie, entry.ours, entry.theirs), (u64::from(number) + 1, end, end));
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    }

    /// R7: a gateway that was broken into may leave every line torn: none is read for ever, nor is their sum.
    #[test]
    fn r7_lines_that_are_all_being_written_are_not_read_for_ever() {
        let reads = || -> u64 {
            let io = std::fs::read_to_string("/proc/thread-self/io").unwrap();
            io.lines().find_map(|line| line.strip_prefix("syscr: ")).unwrap().parse().unwrap()
        };
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("sockets");
        let mut words = vec![MAGIC, 5_000, 1, 0, 0, 0, 0, 0];
        words.extend((0..5_000).flat_map(|_| [1; SLOT_WORDS]));
        std::fs::write(&path, words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>()).unwrap();
        let before = reads();
        assert_eq!(read(&path).unwrap().torn, 5_000);
        assert!(reads() - before < 15_000, "{}", reads() - before);
    }

    #[test]
    fn what_is_no_table_is_refused() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("sockets");
        assert!(matches!(read(&path), Err(TableError::Io { .. })));
        drop(Table::create(&path, 4).unwrap());
        let good = std::fs::read(&path).unwrap();
        let mut other = good.clone();
        other[0] ^= 1;
        let mut more = good.clone();
        more[8..16].copy_from_slice(&u64::MAX.to_ne_bytes());
        for bad in [&[][..], &good[..63], &good[..good.len() - 1], &other, &more] {
            std::fs::write(&path, bad).unwrap();
            assert!(matches!(read(&path), Err(TableError::Malformed { .. })), "{} bytes", bad.len());
        }
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_or_entries_and_never_a_panic(slots in proptest::collection::vec(any::<u64>(), 0..60)) {
            let folder = TempDir::new().unwrap();
            let path = folder.path().join("sockets");
            let mut words = vec![MAGIC, (slots.len() / SLOT_WORDS) as u64, 1, 0, 0, 0, 0, 0];
            words.extend(&slots);
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            std::fs::write(&path, bytes).unwrap();
            let _ = read(&path);
        }
    }
}
