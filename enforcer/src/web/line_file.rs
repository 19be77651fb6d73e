//! A file of lines that grows at its end: what a gateway learns all the time, and must not forget.
//!
//! One process writes it. A line that a crash has cut is not there; one that cannot be read stops the start, since nobody
//! can tell what it was about. When it has grown by so much its owner writes it anew, without what is over.

use std::fs::{File, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::safe_file::{self, FileError, Folder};

/// What such a file is for.
#[derive(Debug, Clone, Copy)]
pub struct About {
    /// What cannot be written when it cannot: `what was learned`.
    pub what: &'static str,
    /// What comes of it when a line is deleted: `a name that it told of may pass unsealed`.
    pub lost: &'static str,
    /// How many bytes of lines are added before it is time to write it anew.
    pub growth: u64,
}

/// What is in such a file.
pub trait Lines {
    /// Takes a line in, which has no end. `false`: it cannot be read.
    fn take(&mut self, line: &str) -> bool;
    /// The lines that say the same as all that were taken in, each with its end.
    fn all(&self) -> String;
}

/// Why such a file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{path}, line {line} cannot be read: repair it, or delete it; then {lost}")]
    Line { path: String, line: usize, lost: &'static str },
    #[error("{path} is open in another gateway: stop that one, or give this one another file")]
    Busy { path: String },
}

/// The file, open for writing. Nobody else can open it so meanwhile.
#[derive(Debug)]
pub struct LineFile {
    file: Flock<File>,
    path: PathBuf,
    about: About,
    /// Up to where it holds whole lines that are on the disk.
    length: u64,
    /// How long it was when it was written anew.
    anew: u64,
}

impl LineFile {
    /// Reads what is there, and makes the file (mode 0600) where there is none. Where [`Lines::all`] then says it in
    /// other lines, those take their place.
    ///
    /// # Errors
    /// [`LineError`]. Then nothing is changed in it.
    pub fn open(path: &Path, about: About, lines: &mut impl Lines) -> Result<Self, LineError> {
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
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
        let whole = bytes.get(..whole).unwrap_or_default();
        for (index, line) in whole.split_inclusive(|&byte| byte == b'\n').enumerate() {
            let line = std::str::from_utf8(line.strip_suffix(b"\n").unwrap_or(line));
            if !line.is_ok_and(|line| lines.take(line)) {
                let path = path.display().to_string();
                return Err(LineError::Line { path, line: index + 1, lost: about.lost });
            }
        }
        let text = lines.all();
        if text.as_bytes() != bytes || bytes.is_empty() {
            folder.replace(text.as_bytes())?;
        }
        let file = lock(path)?;
        let length = text.len() as u64;
        Ok(Self { file, path: path.to_owned(), about, length, anew: length })
    }

    /// Adds these lines, each with its end, and does not come back before they are on the disk.
    ///
    /// # Errors
    /// [`LineError`]. Then nothing of it counts as written, and it can be tried again.
    pub fn add(&mut self, text: &str) -> Result<(), LineError> {
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
            what: format!("cannot write {}: {error}", self.about.what),
        })?;
        self.length = length + text.len() as u64;
        Ok(())
    }

    /// Whether it is time to write it anew.
    pub fn has_grown(&self) -> bool {
        self.length >= self.anew.saturating_add(self.about.growth)
    }

    /// Writes it anew, with these lines alone.
    ///
    /// # Errors
    /// [`LineError`]. Then the file is as it was.
    pub fn write_anew(&mut self, text: &str) -> Result<(), LineError> {
        // held until the new file is locked as well
        let folder = Folder::lock(&self.path)?;
        folder.replace(text.as_bytes())?;
        self.file = lock(&self.path)?;
        self.length = text.len() as u64;
        self.anew = self.length;
        Ok(())
    }

    /// From now on nothing can be written.
    #[cfg(test)]
    pub(super) fn break_it(&mut self) {
        self.file = Flock::lock(File::open("/dev/null").unwrap(), FlockArg::LockShared).unwrap();
    }
}

fn lock(path: &Path) -> Result<Flock<File>, LineError> {
    let shown = || path.display().to_string();
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(|error| FileError::Failed {
        path: shown(),
        what: format!("cannot open it to write: {error}"),
    })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| LineError::Busy { path: shown() })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    const ABOUT: About = About { what: "words", lost: "a word is gone", growth: 100 };

    /// Words of small letters, each once, in their order.
    #[derive(Default)]
    struct Words(Vec<String>);

    impl Lines for Words {
        fn take(&mut self, line: &str) -> bool {
            if !self.0.iter().any(|word| word == line) {
                self.0.push(line.to_owned());
            }
            !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_lowercase())
        }

        fn all(&self) -> String {
            self.0.iter().map(|word| format!("{word}\n")).collect()
        }
    }

    struct Place(TempDir);

    impl Place {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn path(&self) -> PathBuf {
            self.0.path().join("words")
        }

        fn open(&self) -> (LineFile, Vec<String>) {
            let mut words = Words::default();
            let file = LineFile::open(&self.path(), ABOUT, &mut words).unwrap();
            (file, words.0)
        }

        fn error(&self) -> LineError {
            LineFile::open(&self.path(), ABOUT, &mut Words::default()).unwrap_err()
        }

        fn text(&self) -> String {
            fs::read_to_string(self.path()).unwrap()
        }
    }

    #[test]
    fn r5_what_was_added_is_there_after_a_restart_once() {
        let place = Place::new();
        let (mut file, words) = place.open();
        assert!(words.is_empty());
        for text in ["one\ntwo\n", "one\n", "three\n"] {
            file.add(text).unwrap();
        }
        drop(file);
        assert_eq!(place.open().1, ["one", "two", "three"]);
        assert_eq!(place.text(), "one\ntwo\nthree\n", "what says it twice is taken out");
    }

    #[test]
    fn r5_a_line_that_a_crash_has_cut_harms_no_other() {
        let place = Place::new();
        drop(place.open());
        let whole = b"one\ntwo\n";
        for cut in 0..=whole.len() {
            fs::write(place.path(), &whole[..cut]).unwrap();
            let (mut file, words) = place.open();
            assert_eq!(words, ["one", "two"][..cut / 4], "{cut}");
            file.add("three\n").unwrap();
            drop(file);
            let (_, words) = place.open();
            assert_eq!((words.len(), words.last().unwrap().as_str()), (cut / 4 + 1, "three"), "{cut}");
        }
    }

    #[test]
    fn r5_what_could_not_be_written_leaves_nothing_behind() {
        let place = Place::new();
        let (mut file, _) = place.open();
        file.add("one\n").unwrap();
        // as a disk leaves it on which the end of a line had no room
        file.file.seek(SeekFrom::Start(4)).unwrap();
        file.file.write_all(b"tw").unwrap();
        file.add("three\n").unwrap();
        assert_eq!(place.text(), "one\nthree\n");
        file.break_it();
        let said = file.add("four\n").unwrap_err().to_string();
        assert!(said.contains("cannot write words: "), "{said}");
        assert_eq!(place.text(), "one\nthree\n");
    }

    #[test]
    fn a_line_that_cannot_be_read_is_told_and_nothing_is_changed() {
        let place = Place::new();
        drop(place.open());
        for odd in ["one\nTWO\nthree\n", "one\n\nthree\n", "one\ntwo \n", "one\nt\u{fc}\n"] {
            fs::write(place.path(), odd).unwrap();
            let said = place.error().to_string();
            assert!(
                said.contains("line 2 cannot be read") && said.ends_with("; then a word is gone"),
                "{said}"
            );
            assert_eq!(place.text(), odd);
        }
    }

    #[test]
    fn one_process_writes() {
        let place = Place::new();
        let (file, _) = place.open();
        assert!(matches!(place.error(), LineError::Busy { .. }));
        drop(file);
        drop(place.open());
    }

    #[test]
    fn r7_when_it_has_grown_it_is_written_anew_and_goes_on_under_its_lock() {
        let place = Place::new();
        let (mut file, _) = place.open();
        file.add(&"gone\n".repeat(19)).unwrap();
        assert!(!file.has_grown());
        file.add("gone\n").unwrap();
        assert!(file.has_grown());
        file.write_anew("one\n").unwrap();
        assert!(!file.has_grown());
        file.add("two\n").unwrap();
        assert!(matches!(place.error(), LineError::Busy { .. }));
        drop(file);
        assert_eq!(place.open().1, ["one", "two"]);
    }
}
