//! The reader's side, which believes nothing.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{HEADER_WORDS, MAGIC, MOST_SLOTS, SLOT_WORDS, Side, TableError};
use crate::web::proxy::register::SessionKey;

const WORD: usize = size_of::<u64>();
const SLOT: usize = SLOT_WORDS * WORD;
/// How often a slot is read again that is being written; a writer that was stopped in the middle leaves it so. And how
/// often any of them is: more than the threads of a gateway leave so nobody has who means well.
const AGAIN: usize = 100;
const AGAIN_IN_ALL: usize = 100 * AGAIN;

/// A socket of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub session: SessionKey,
    /// SO_COOKIE.
    pub cookie: u64,
    /// The ends as the socket has them: an IPv4 client of an IPv6 socket is written as IPv6 (`::ffff:192.0.2.1`).
    pub ours: SocketAddr,
    pub theirs: SocketAddr,
    pub side: Side,
}

/// What the file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The gateway that has written it.
    pub pid: u32,
    /// Sockets for which there was no room, since its start.
    pub missed: u64,
    /// Slots that were being written whenever they were looked at: what is in them is not known.
    pub torn: usize,
    pub entries: Vec<Entry>,
}

/// How the file was found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Condition {
    /// Sockets for which there was no room, since the gateway's start.
    pub missed: u64,
    /// Slots that were being written whenever they were looked at: what is in them is not known.
    pub torn: usize,
}

/// A table that was opened: of one gateway, also when its file is replaced by another's.
#[derive(Debug)]
pub struct Reader {
    file: File,
    path: PathBuf,
    pid: u32,
    owner: u32,
    slots: u64,
}

impl Reader {
    /// Opens it for reading. No link is followed, and nothing but a plain file of that length is taken; whose it is
    /// ([`Reader::owner`]) is the caller's to judge.
    pub fn open(path: &Path) -> Result<Self, TableError> {
        let wrong = |error| TableError::Io { path: path.to_owned(), error };
        let malformed = |text| TableError::Malformed { path: path.to_owned(), text };
        // a FIFO would hold up whoever opens it
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
        let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(wrong)?;
        let about = file.metadata().map_err(wrong)?;
        if !about.is_file() {
            return Err(malformed("it is no plain file"));
        }
        let mut header = [0; HEADER_WORDS * WORD];
        match file.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(malformed("it is too short for a header"));
            }
            Err(error) => return Err(wrong(error)),
        }
        let [magic, slots, pid, ..] = words::<HEADER_WORDS>(&header);
        if magic != MAGIC {
            return Err(malformed("it is none, or of another version"));
        }
        if slots > MOST_SLOTS || about.len() != (HEADER_WORDS * WORD) as u64 + slots * SLOT as u64 {
            return Err(malformed("it is not as long as it says"));
        }
        let pid = u32::try_from(pid).unwrap_or(0);
        Ok(Self { file, path: path.to_owned(), pid, owner: about.uid(), slots })
    }

    /// The gateway that has written it, by its own word.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The user whose file it is.
    pub fn owner(&self) -> u32 {
        self.owner
    }

    /// Tells each socket that is in it now. Each slot is as it was at one moment, the slots not all at the same.
    pub fn each(&self, mut tell: impl FnMut(Entry)) -> Result<Condition, TableError> {
        let wrong = |error| TableError::Io { path: self.path.clone(), error };
        let mut word = [0; WORD];
        self.file.read_exact_at(&mut word, 3 * WORD as u64).map_err(wrong)?;
        let mut condition = Condition { missed: u64::from_ne_bytes(word), torn: 0 };
        // in parts: it is a few MiB, of which most is free
        let mut part = vec![0; 512 * SLOT];
        let (mut number, mut again) = (0, AGAIN_IN_ALL);
        while number < self.slots {
            let count = (self.slots - number).min(512);
            let part = &mut part[..usize::try_from(count).unwrap_or(0) * SLOT];
            let at = |number: u64| (HEADER_WORDS * WORD) as u64 + number * SLOT as u64;
            self.file.read_exact_at(part, at(number)).map_err(wrong)?;
            for (index, slot) in part.chunks_exact_mut(SLOT).enumerate() {
                let mut left = AGAIN.min(again);
                while is_torn(slot) && left > 0 {
                    (left, again) = (left - 1, again - 1);
                    self.file.read_exact_at(slot, at(number + index as u64)).map_err(wrong)?;
                }
                if is_torn(slot) {
                    condition.torn += 1;
                } else if let Some(entry) = entry(slot) {
                    tell(entry);
                }
            }
            number += count;
        }
        Ok(condition)
    }
}

/// Reads the whole file. Each slot is as it was at one moment, the slots not all at the same.
pub fn read(path: &Path) -> Result<Snapshot, TableError> {
    let reader = Reader::open(path)?;
    let mut entries = Vec::new();
    let Condition { missed, torn } = reader.each(|entry| entries.push(entry))?;
    Ok(Snapshot { pid: reader.pid, missed, torn, entries })
}

fn words<const N: usize>(bytes: &[u8]) -> [u64; N] {
    let mut words = [0; N];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(WORD)) {
        let mut octets = [0; WORD];
        octets.copy_from_slice(bytes);
        *word = u64::from_ne_bytes(octets);
    }
    words
}

fn is_torn(slot: &[u8]) -> bool {
    let words = words::<SLOT_WORDS>(slot);
    words[0] != words[SLOT_WORDS - 1] || !words[0].is_multiple_of(2)
}

/// What a slot says; `None`: it is free, or says nothing that could be.
fn entry(slot: &[u8]) -> Option<Entry> {
    let [_, cookie, key, key_end, ours, ours_end, theirs, theirs_end, rest, _] = words::<SLOT_WORDS>(slot);
    if cookie == 0 {
        return None;
    }
    let [a, b, c, d, family, side, trusted, _] = rest.to_le_bytes();
    let (our_port, their_port) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
    let side = match (side, trusted) {
        (1, 0) => Side::Origin,
        (2, 0) => Side::Client { trusted: false },
        (2, 1) => Side::Client { trusted: true },
        _ => return None,
    };
    let address = |first: u64, last: u64| -> Option<IpAddr> {
        let octets = joined(first, last);
        match family {
            4 => octets.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets).into()),
            6 => Some(Ipv6Addr::from(octets).into()),
            _ => None,
        }
    };
    Some(Entry {
        session: SessionKey(joined(key, key_end)),
        cookie,
        ours: SocketAddr::new(address(ours, ours_end)?, our_port),
        theirs: SocketAddr::new(address(theirs, theirs_end)?, their_port),
        side,
    })
}

fn joined(first: u64, last: u64) -> [u8; 16] {
    let mut joined = [0; 16];
    joined[..WORD].copy_from_slice(&first.to_ne_bytes());
    joined[WORD..].copy_from_slice(&last.to_ne_bytes());
    joined
}
