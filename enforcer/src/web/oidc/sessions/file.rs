//! Which session belongs to whom, on the disk: a file of lines that grows at its end.
//!
//! ```text
//! + KEY SUB SID UNTIL      a session: its key, digests of whose it is (`-`: no sid), and when it has ended in any case
//! - KEY                    it is over
//! ```
//! Keys and digests are 32 hexadecimal digits, times unix seconds. A line that a crash has cut is not there. A line that
//! cannot be read stops the gateway's start: the session that it told of could not be ended by the provider.

use std::fs::{File, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::session::WebKey;
use crate::web::safe_file::{self, FileError, Folder};

use super::table::{Entry, Table};
use super::{Bounds, Digest, SessionsError};

/// How many bytes of lines are added before the file is written anew.
const GROWTH: u64 = 1024 * 1024;

/// The file, open for writing. Nobody else can open it so meanwhile.
#[derive(Debug)]
pub(super) struct SessionsFile {
    file: Flock<File>,
    path: PathBuf,
    /// Up to where it holds whole lines that are on the disk.
    length: u64,
    /// How long it was when it was written anew.
    anew: u64,
}

impl SessionsFile {
    /// Reads what is there, and makes the file (mode 0600) where there is none.
    ///
    /// # Errors
    /// [`SessionsError`]
    pub(super) fn open(path: &Path, bounds: Bounds, now: u64) -> Result<(Self, Table), SessionsError> {
        let folder = Folder::lock(path)?;
        let bytes = match folder.read(safe_file::OWNER_ONLY) {
            Ok(contents) => {
                // before anything is changed in it
                lock(path)?;
                contents.bytes
            }
            Err(FileError::Missing { .. }) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let mut table = Table::new(bounds);
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
        let text = bytes.get(..whole).unwrap_or_default();
        for (index, line) in text.split_inclusive(|&byte| byte == b'\n').enumerate() {
            let line = std::str::from_utf8(line).ok().map(str::trim_end).and_then(Line::read);
            match line {
                Some(Line::Begun(key, entry)) => table.insert(key, entry),
                Some(Line::Over(key)) => drop(table.forget(&key)),
                None => {
                    return Err(SessionsError::Line { path: path.display().to_string(), line: index + 1 });
                }
            }
        }
        table.drop_over(now);
        let text = written(&table);
        folder.replace(text.as_bytes())?;
        let file = lock(path)?;
        let length = text.len() as u64;
        Ok((Self { file, path: path.to_owned(), length, anew: length }, table))
    }

    /// Adds these lines, and does not come back before they are on the disk.
    ///
    /// # Errors
    /// [`SessionsError`]. Then nothing of it counts as written.
    pub(super) fn add(&mut self, lines: impl IntoIterator<Item = Line>) -> Result<(), SessionsError> {
        let text: String = lines.into_iter().map(|line| line.write() + "\n").collect();
        let length = self.length;
        // what a failed write has left behind is written over
        let written = self
            .file
            .set_len(length)
            .and_then(|()| self.file.seek(SeekFrom::Start(length)))
            .and_then(|_| self.file.write_all(text.as_bytes()))
            .and_then(|()| self.file.sync_data());
        written.map_err(|error| FileError::Failed {
            path: self.path.display().to_string(),
            what: format!("cannot write whose a session is: {error}"),
        })?;
        self.length = length + text.len() as u64;
        Ok(())
    }

    /// From now on nothing can be written.
    #[cfg(test)]
    pub(super) fn break_it(&mut self) {
        self.file = Flock::lock(File::open("/dev/null").unwrap(), FlockArg::LockShared).unwrap();
    }

    /// Whether it is time to write it anew.
    pub(super) fn has_grown(&self) -> bool {
        self.length >= self.anew.saturating_add(GROWTH)
    }

    /// Writes it anew, with what the table has now.
    ///
    /// # Errors
    /// [`SessionsError`]. Then the file is as it was.
    pub(super) fn write_anew(&mut self, table: &Table) -> Result<(), SessionsError> {
        // held until the new file is locked as well
        let folder = Folder::lock(&self.path)?;
        let text = written(table);
        folder.replace(text.as_bytes())?;
        self.file = lock(&self.path)?;
        self.length = text.len() as u64;
        self.anew = self.length;
        Ok(())
    }
}

fn lock(path: &Path) -> Result<Flock<File>, SessionsError> {
    let shown = || path.display().to_string();
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(|error| FileError::Failed {
        path: shown(),
        what: format!("cannot open it to write: {error}"),
    })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| SessionsError::Busy { path: shown() })
}

fn written(table: &Table) -> String {
    table.entries().map(|(key, entry)| Line::Begun(*key, *entry).write() + "\n").collect()
}

/// One line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    Begun(WebKey, Entry),
    Over(WebKey),
}

impl Line {
    fn read(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let line = match words.next()? {
            "+" => {
                let key = words.next()?.parse().ok()?;
                let sub = Digest::read(words.next()?)?;
                let sid = match words.next()? {
                    "-" => None,
                    sid => Some(Digest::read(sid)?),
                };
                Self::Begun(key, Entry { sub, sid, until: words.next()?.parse().ok()? })
            }
            "-" => Self::Over(words.next()?.parse().ok()?),
            _ => return None,
        };
        words.next().is_none().then_some(line)
    }

    fn write(&self) -> String {
        match self {
            Self::Begun(key, Entry { sub, sid: Some(sid), until }) => format!("+ {key} {sub} {sid} {until}"),
            Self::Begun(key, Entry { sub, sid: None, until }) => format!("+ {key} {sub} - {until}"),
            Self::Over(key) => format!("- {key}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn key(byte: u8) -> WebKey {
        WebKey::from_bytes([byte; 16])
    }

    fn begun(byte: u8) -> Line {
        let digest = |kind| Digest::of(kind, "https://id.example", &byte.to_string());
        let sid = byte.is_multiple_of(2).then(|| digest("sid"));
        Line::Begun(key(byte), Entry { sub: digest("sub"), sid, until: NOW + u64::from(byte) })
    }

    fn open(path: &Path) -> (SessionsFile, Table) {
        SessionsFile::open(path, Bounds::default(), NOW).unwrap()
    }

    fn keys(table: &Table) -> Vec<WebKey> {
        let mut keys: Vec<WebKey> = table.entries().map(|(key, _)| *key).collect();
        keys.sort_unstable();
        keys
    }

    #[test]
    fn a_line_reads_what_it_writes_and_nothing_else() {
        for line in [begun(1), begun(2), Line::Over(key(3))] {
            assert_eq!(Line::read(&line.write()), Some(line));
            assert_eq!(Line::read(&(line.write() + " ")), None);
        }
        for odd in ["", "+", "-", "* 1", "- 07", "+ a b c d", &begun(1).write()[2..]] {
            assert_eq!(Line::read(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn r5_what_was_added_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sessions");
        let (mut file, table) = open(&path);
        assert_eq!(table.len(), 0);
        file.add([begun(1), begun(2)]).unwrap();
        file.add([Line::Over(key(1)), begun(3)]).unwrap();
        drop(file);
        let (_, table) = open(&path);
        assert_eq!(keys(&table), [key(2), key(3)]);
        let (_, Line::Begun(_, wanted)) = ((), begun(2)) else { panic!() };
        assert!(table.entries().any(|(key, entry)| *key == self::key(2) && *entry == wanted));
    }

    #[test]
    fn what_is_over_by_its_time_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sessions");
        let (mut file, _) = open(&path);
        file.add([begun(1), begun(9)]).unwrap();
        drop(file);
        let (_, table) = SessionsFile::open(&path, Bounds::default(), NOW + 1).unwrap();
        assert_eq!(keys(&table), [key(9)]);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), begun(9).write() + "\n");
    }

    #[test]
    fn r5_a_line_that_a_crash_has_cut_harms_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sessions");
        let (mut file, _) = open(&path);
        file.add([begun(1), begun(2)]).unwrap();
        drop(file);
        let whole = std::fs::read(&path).unwrap();
        for cut in (0..whole.len()).step_by(7) {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (mut file, table) = open(&path);
            assert_eq!(table.len(), usize::from(begun(1).write().len() < cut), "{cut}");
            file.add([begun(3)]).unwrap();
            drop(file);
            assert!(keys(&open(&path).1).contains(&key(3)), "{cut}");
        }
    }

    #[test]
    fn a_line_that_cannot_be_read_is_told_and_nothing_is_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sessions");
        drop(open(&path));
        let text = format!("{}\nnonsense\n", begun(1).write());
        std::fs::write(&path, &text).unwrap();
        let said = SessionsFile::open(&path, Bounds::default(), NOW).unwrap_err().to_string();
        assert!(said.contains("line 2 cannot be read"), "{said}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn one_gateway_writes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sessions");
        let _held = open(&path);
        let second = SessionsFile::open(&path, Bounds::default(), NOW);
        assert!(matches!(second, Err(SessionsError::Busy { .. })));
    }

    #[test]
    fn r7_when_it_has_grown_it_is_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sessions");
        let (mut file, mut table) = open(&path);
        assert!(!file.has_grown());
        file.add(std::iter::repeat_n(begun(1), 13_000)).unwrap();
        assert!(file.has_grown());
        let Line::Begun(key, entry) = begun(2) else { panic!() };
        table.insert(key, entry);
        file.write_anew(&table).unwrap();
        assert!(!file.has_grown());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), begun(2).write() + "\n");
        // and it goes on, under its lock
        file.add([begun(3)]).unwrap();
        assert!(matches!(SessionsFile::open(&path, Bounds::default(), NOW), Err(SessionsError::Busy { .. })));
        drop(file);
        assert_eq!(open(&path).1.len(), 2);
    }
}
