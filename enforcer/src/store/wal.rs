//! Is the write-ahead log whole? SQLite reads it up to the first frame that does not fit and takes the rest for
//! the remains of a crash. So a byte that the disk changed in the middle would silently take all later commits
//! away. This looks for what can only be damage.
//!
//! Layout (all big-endian; <https://www.sqlite.org/fileformat2.html#the_write_ahead_log>): a header of 32 bytes
//! (magic, format, page size, count of checkpoints, two salts, two checksums), then frames: 24 bytes (page,
//! size of the database after a commit or 0, the two salts, two checksums) and a page. Checksums run on from frame
//! to frame. Frames of an earlier round have other salts.
//!
//! **What can be told.** Each commit was on the disk before the next one began. So behind a frame that does not
//! fit there can be one commit of this round, the one that a power cut tore; with two it is damage. Damage in
//! the very last commit cannot be told from one that was torn before it was acknowledged, nor can a log that was cut
//! off between two commits.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

const HEADER: usize = 32;
const FRAME: usize = 24;

/// What is wrong with the log at `path`, if something can be told; a log that is missing is whole.
pub(super) fn damage(path: &Path) -> io::Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    damage_in(BufReader::with_capacity(1 << 20, file))
}

/// The pair of running sums of the log.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Sums(u32, u32);

impl Sums {
    /// `bytes`: a multiple of 8 long; `big`: how the words of this log are read, as its magic says.
    fn over(self, bytes: &[u8], big: bool) -> Self {
        let Self(mut first, mut second) = self;
        for pair in bytes.chunks_exact(8) {
            let read = |word: [u8; 4]| if big { u32::from_be_bytes(word) } else { u32::from_le_bytes(word) };
            first = first.wrapping_add(read([pair[0], pair[1], pair[2], pair[3]])).wrapping_add(second);
            second = second.wrapping_add(read([pair[4], pair[5], pair[6], pair[7]])).wrapping_add(first);
        }
        Self(first, second)
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    if let Some(from) = bytes.get(at..at + 4) {
        word.copy_from_slice(from);
    }
    u32::from_be_bytes(word)
}

fn damage_in(mut log: impl Read) -> io::Result<Option<String>> {
    let mut header = [0; HEADER];
    let length = fill(&mut log, &mut header)?;
    if length < HEADER || header == [0; HEADER] {
        // empty, or made and not written before the host died: the header is on the disk before any commit is
        return Ok(None);
    }
    let bad = |what: &str| Ok(Some(format!("the header of its write-ahead log {what}")));
    let big = match word(&header, 0) {
        0x377f_0682 => false,
        0x377f_0683 => true,
        _ => return bad("is none"),
    };
    let page = word(&header, 8) as usize;
    if Sums(0, 0).over(&header[..24], big) != Sums(word(&header, 24), word(&header, 28)) {
        return bad("does not fit its checksum");
    }
    if !(512..=65_536).contains(&page) || !page.is_power_of_two() {
        return bad("tells an impossible page size");
    }
    let salts = &header[16..24];
    let mut sums = Some(Sums(word(&header, 24), word(&header, 28)));
    let mut frame = vec![0; FRAME + page];
    let (mut index, mut first_bad, mut commits) = (0_u64, 0, 0_u32);
    while fill(&mut log, &mut frame)? == frame.len() {
        index += 1;
        let (head, content) = frame.split_at(FRAME);
        let ours = head[8..16] == *salts;
        let stored = Sums(word(head, 16), word(head, 20));
        if let Some(before) = sums {
            if ours && before.over(&head[..8], big).over(content, big) == stored {
                sums = Some(stored);
                continue;
            }
            sums = None;
            first_bad = index;
        }
        if ours && word(head, 4) != 0 {
            commits += 1;
        }
        if commits > 1 {
            return Ok(Some(format!(
                "frame {first_bad} of its write-ahead log does not fit its checksum, and later commits follow it"
            )));
        }
    }
    Ok(None)
}

/// Reads until `buffer` is full or the end; tells how much.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match from.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}
