//! What was learned, on the disk: a [file of lines](crate::web::line_file).
//!
//! A line that cannot be read stops the gateway's start, since it may be about a sealed name. When it has grown by
//! [`GROWTH`] it is written anew, without what was forgotten: within [`Bounds`]'s usual values it has 56 MB at the most,
//! and some 100 KB in ordinary life.

use std::path::Path;

use super::{Bounds, Entry, Learned};
use crate::web::line_file::{About, LineError, LineFile, Lines};

/// How many bytes of lines are added before the file is written anew.
pub const GROWTH: u64 = 8 * 1024 * 1024;

const ABOUT: About =
    About { what: "what was learned", lost: "a name that it told of may pass unsealed", growth: GROWTH };

/// The file, open for writing. Nobody else can open it so meanwhile.
#[derive(Debug)]
pub struct LearnedFile(LineFile);

/// Why what was learned cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum LearnedError {
    #[error(transparent)]
    Lines(#[from] LineError),
    #[error("cannot start the thread that writes what was learned: {0}")]
    Thread(String),
}

impl Lines for Learned {
    fn take(&mut self, line: &str) -> bool {
        Entry::read(line).map(|entry| self.learn(entry)).is_some()
    }

    fn all(&self) -> String {
        written(self.entries())
    }
}

fn written(entries: impl Iterator<Item = Entry>) -> String {
    entries.map(|entry| entry.write() + "\n").collect()
}

impl LearnedFile {
    /// Reads what is there, and makes the file (mode 0600) where there is none. What is in it twice, or not any more
    /// within the bounds, is taken out.
    ///
    /// # Errors
    /// [`LearnedError`]
    pub fn open(path: &Path, bounds: Bounds) -> Result<(Self, Learned), LearnedError> {
        let mut learned = Learned::with_bounds(bounds);
        let file = LineFile::open(path, ABOUT, &mut learned)?;
        Ok((Self(file), learned))
    }

    /// Adds what is new, and does not come back before it is on the disk.
    ///
    /// `learned`: all that is in the file, without the news.
    ///
    /// # Errors
    /// [`LearnedError`]. Then nothing of it counts as written, and it can be tried again.
    pub fn add(&mut self, news: &[Entry], learned: &Learned) -> Result<(), LearnedError> {
        let news = written(news.iter().cloned());
        if self.0.has_grown() {
            self.0.write_anew(&(learned.all() + &news))?;
        } else {
            self.0.add(&news)?;
        }
        Ok(())
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
        assert!(matches!(
            LearnedFile::open(&path, Bounds::default()),
            Err(LearnedError::Lines(LineError::Busy { .. }))
        ));
        drop(file);
        let (_, learned) = open(&path);
        assert!(["one", "two", "three"].iter().all(|name| knows(&learned, name)));
        assert!(!knows(&learned, "gone"));
    }
}
