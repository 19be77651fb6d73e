//! What was learned, on the disk: a file of lines that grows at its end.
//!
//! One gateway writes it. A line that a crash has cut is not there; a line that cannot be read stops the gateway's
//! start, since it may be about a sealed name. When it has grown by [`GROWTH`] it is written anew, without what was
//! forgotten: within [`Bounds`]'s usual values it has 56 MB at the most, and some 100 KB in ordinary life.

use std::fs::{File, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::{Bounds, Entry, Learned};
use crate::web::safe_file::{self, FileError, Folder};

/// The file, open for writing. Nobody else can open it so meanwhile.
#[derive(Debug)]
pub struct LearnedFile {
    file: Flock<File>,
    path: PathBuf,
    /// Up to where it holds whole lines that are on the disk.
    length: u64,
    /// How long it was when it was written anew.
    anew: u64,
}

/// How many bytes of lines are added before the file is written anew.
pub const GROWTH: u64 = 8 * 1024 * 1024;

/// Why what was learned cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum LearnedError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(
        "{path}, line {line} cannot be read: repair it, or delete it; then a name that it told of may pass unsealed"
    )]
    Line { path: String, line: usize },
    #[error("{path} is open in another gateway: stop that one, or give this one another file")]
    Busy { path: String },
    #[error("cannot start the thread that writes what was learned: {0}")]
    Thread(String),
}

impl LearnedFile {
    /// Reads what is there, and makes the file (mode 0600) where there is none. What is in it twice, or not any more
    /// within the bounds, is taken out.
    ///
    /// # Errors
    /// [`LearnedError`]
    pub fn open(path: &Path, bounds: Bounds) -> Result<(Self, Learned), LearnedError> {
        let folder = Folder::lock(path)?;
        let bytes = match folder.read(safe_file::OWNER_ONLY) {
            Ok(contents) => {
                // before anything is changed in it
                Self::lock(path)?;
                contents.bytes
            }
            Err(FileError::Missing { .. }) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let mut learned = Learned::with_bounds(bounds);
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
        let lines = bytes.get(..whole).unwrap_or_default();
        for (index, line) in lines.split_terminator_lines().enumerate() {
            let entry = std::str::from_utf8(line).ok().and_then(Entry::read);
            let entry = entry
                .ok_or_else(|| LearnedError::Line { path: path.display().to_string(), line: index + 1 })?;
            learned.learn(entry);
        }
        let text = written(&learned);
        if text != bytes || whole == 0 {
            folder.replace(&text)?;
        }
        let file = Self::lock(path)?;
        let length = text.len() as u64;
        Ok((Self { file, path: path.to_owned(), length, anew: length }, learned))
    }

    fn lock(path: &Path) -> Result<Flock<File>, LearnedError> {
        let shown = || path.display().to_string();
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(|error| {
            FileError::Failed { path: shown(), what: format!("cannot open it to write: {error}") }
        })?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| LearnedError::Busy { path: shown() })
    }

    /// Adds what is new, and does not come back before it is on the disk.
    ///
    /// `learned`: all that is in the file, without the news.
    ///
    /// # Errors
    /// [`LearnedError`]. Then nothing of it counts as written, and it can be tried again.
    pub fn add(&mut self, news: &[Entry], learned: &Learned) -> Result<(), LearnedError> {
        let text: String = news.iter().map(|entry| entry.write() + "\n").collect();
        if self.length >= self.anew.saturating_add(GROWTH) {
            return self.write_anew(learned, &text);
        }
        let length = self.length;
        // what a failed write has left behind is written over
        let written = self
            .file
            .set_len(length)
            .and_then(|()| self.file.seek(SeekFrom::Start(length)))
            .and_then(|_| self.file.write_all(text.as_bytes()))
            .and_then(|()| self.file.sync_data());
        match written {
            Ok(()) => {
                self.length = length + text.len() as u64;
                Ok(())
            }
            Err(error) => Err(LearnedError::File(FileError::Failed {
                path: self.path.display().to_string(),
                what: format!("cannot write what was learned: {error}"),
            })),
        }
    }

    fn write_anew(&mut self, learned: &Learned, news: &str) -> Result<(), LearnedError> {
        // held until the new file is locked as well
        let folder = Folder::lock(&self.path)?;
        let mut text = written(learned);
        text.extend_from_slice(news.as_bytes());
        folder.replace(&text)?;
        self.file = Self::lock(&self.path)?;
        self.length = text.len() as u64;
        self.anew = self.length;
        Ok(())
    }
}

fn written(learned: &Learned) -> Vec<u8> {
    learned.entries().flat_map(|entry| (entry.write() + "\n").into_bytes()).collect()
}

trait Lines {
    /// The lines, without their ends; nothing after the last end.
    fn split_terminator_lines(&self) -> impl Iterator<Item = &[u8]>;
}

impl Lines for [u8] {
    fn split_terminator_lines(&self) -> impl Iterator<Item = &[u8]> {
        self.split_inclusive(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\n").unwrap_or(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::cookie::Folded;
    use crate::web::seal::Group;

    fn group() -> Group {
        Group::new("app").unwrap()
    }

    fn sealed(name: &str) -> Entry {
        Entry::Sealed { group: group(), name: Folded::of(name.as_bytes()) }
    }

    fn open(path: &Path) -> (LearnedFile, Learned) {
        LearnedFile::open(path, Bounds::default()).unwrap()
    }

    fn knows(learned: &Learned, name: &str) -> bool {
        learned.is_sealed(&group(), &Folded::of(name.as_bytes()))
    }

    #[test]
    fn r5_what_was_added_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("learned");
        let (mut file, mut learned) = open(&path);
        for name in ["sid", "other"] {
            file.add(&[sealed(name)], &learned).unwrap();
            learned.learn(sealed(name));
        }
        drop(file);
        let (_, learned) = open(&path);
        assert!(knows(&learned, "sid") && knows(&learned, "other"));
        assert!(!knows(&learned, "third"));
    }

    #[test]
    fn r5_a_line_that_a_crash_has_cut_harms_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("learned");
        let (mut file, learned) = open(&path);
        file.add(&[sealed("one"), sealed("two")], &learned).unwrap();
        drop(file);
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (mut file, learned) = open(&path);
            let one = sealed("one").write().len() < cut;
            assert_eq!(knows(&learned, "one"), one, "{cut}");
            file.add(&[sealed("three")], &learned).unwrap();
            drop(file);
            let (_, learned) = open(&path);
            assert_eq!(knows(&learned, "one"), one, "{cut}");
            assert!(knows(&learned, "three"), "{cut}");
        }
    }

    #[test]
    fn a_line_that_cannot_be_read_is_told_and_nothing_is_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("learned");
        drop(open(&path));
        let text = format!("{}\nseald app\n{}\n", sealed("one").write(), sealed("two").write());
        std::fs::write(&path, &text).unwrap();
        let error = LearnedFile::open(&path, Bounds::default()).unwrap_err().to_string();
        assert!(error.contains("line 2 cannot be read"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn one_gateway_writes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("learned");
        let (_held, _) = open(&path);
        let second = LearnedFile::open(&path, Bounds::default());
        assert!(matches!(second, Err(LearnedError::Busy { .. })));
    }

    #[test]
    fn what_is_there_twice_is_taken_out_at_a_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("learned");
        let (mut file, learned) = open(&path);
        for _ in 0..5 {
            file.add(&[sealed("one")], &learned).unwrap();
        }
        drop(file);
        drop(open(&path));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), sealed("one").write() + "\n");
    }

    #[test]
    fn r7_when_it_has_grown_it_is_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("learned");
        let (mut file, mut learned) = open(&path);
        learned.learn(sealed("one"));
        // lines of what was forgotten again
        let many = vec![sealed("gone"); 150_000];
        file.add(&many, &learned).unwrap();
        assert!(std::fs::metadata(&path).unwrap().len() > 6_000_000);
        file.add(&many, &learned).unwrap();
        file.add(&[sealed("two")], &learned).unwrap();
        learned.learn(sealed("two"));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 2 * (sealed("one").write().len() as u64 + 1));
        // and it goes on, under its lock
        file.add(&[sealed("three")], &learned).unwrap();
        assert!(matches!(LearnedFile::open(&path, Bounds::default()), Err(LearnedError::Busy { .. })));
        drop(file);
        let (_, learned) = open(&path);
        assert!(["one", "two", "three"].iter().all(|name| knows(&learned, name)));
        assert!(!knows(&learned, "gone"));
    }
}
