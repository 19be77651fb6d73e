//! Which session belongs to whom, on the disk: a [file of lines](crate::web::line_file).
//!
//! ```text
//! + KEY SUB SID UNTIL ISSUED    a session: its key, digests of whose it is (`-`: no sid), when it has ended in any case,
//!                               and when its ID token was issued (older versions have not written that)
//! ! KEY                         the provider has ended it, and it may still go on
//! - KEY                         it is over
//! ```
//! Keys and digests are 32 hexadecimal digits, times unix seconds.

use std::collections::BTreeSet;
use std::path::Path;

use crate::session::WebKey;
use crate::web::line_file::{About, LineError, LineFile, Lines};

use super::table::{Entry, Table};
use super::{Bounds, Digest};

const ABOUT: About = About {
    what: "whose a session is",
    lost: "the provider cannot end the session that it told of",
    growth: 1024 * 1024,
};

/// What the file holds.
#[derive(Debug)]
struct Contents {
    table: Table,
    ending: BTreeSet<WebKey>,
    now: u64,
}

impl Lines for Contents {
    fn take(&mut self, line: &str) -> bool {
        match Line::read(line) {
            Some(Line::Begun(key, entry)) => self.table.insert(key, entry),
            Some(Line::Ending(key)) => {
                self.ending.insert(key);
            }
            Some(Line::Over(key)) => {
                self.table.forget(&key);
                self.ending.remove(&key);
            }
            None => return false,
        }
        true
    }

    fn all(&self) -> String {
        all(&self.table, self.ending.iter().copied(), self.now)
    }
}

/// Opens the file: what is in it that is not over, and those of it that the provider has ended.
///
/// # Errors
/// [`LineError`]
pub(super) fn open(
    path: &Path,
    bounds: Bounds,
    now: u64,
) -> Result<(LineFile, Table, Vec<WebKey>), LineError> {
    let mut contents = Contents { table: Table::new(bounds), ending: BTreeSet::new(), now };
    let file = LineFile::open(path, ABOUT, &mut contents)?;
    let Contents { mut table, ending, .. } = contents;
    table.drop_over(now);
    let ending = ending.into_iter().filter(|key| table.has(key)).collect();
    Ok((file, table, ending))
}

/// The lines of all that is not over, and of those of it that the provider has ended.
pub(super) fn all(table: &Table, ending: impl Iterator<Item = WebKey>, now: u64) -> String {
    let alive = table.entries().filter(|(_, entry)| entry.until > now);
    let begun = alive.map(|(key, entry)| Line::Begun(*key, *entry));
    lines(begun.chain(ending.filter(|key| table.has(key)).map(Line::Ending)))
}

/// As they stand in the file.
pub(super) fn lines(lines: impl IntoIterator<Item = Line>) -> String {
    lines.into_iter().map(|line| line.write() + "\n").collect()
}

/// One line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    Begun(WebKey, Entry),
    Ending(WebKey),
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
                let until = words.next()?.parse().ok()?;
                let issued = words.next().map_or(Ok(0), str::parse).ok()?;
                Self::Begun(key, Entry { sub, sid, until, issued })
            }
            "!" => Self::Ending(words.next()?.parse().ok()?),
            "-" => Self::Over(words.next()?.parse().ok()?),
            _ => return None,
        };
        words.next().is_none().then_some(line)
    }

    fn write(&self) -> String {
        match self {
            Self::Begun(key, Entry { sub, sid: Some(sid), until, issued }) => {
                format!("+ {key} {sub} {sid} {until} {issued}")
            }
            Self::Begun(key, Entry { sub, sid: None, until, issued }) => {
                format!("+ {key} {sub} - {until} {issued}")
            }
            Self::Ending(key) => format!("! {key}"),
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
        let until = NOW + u64::from(byte);
        Line::Begun(key(byte), Entry { sub: digest("sub"), sid, until, issued: NOW - 1 })
    }

    fn open(path: &Path) -> (LineFile, Table, Vec<WebKey>) {
        super::open(path, Bounds::default(), NOW).unwrap()
    }

    fn keys(table: &Table) -> Vec<WebKey> {
        let mut keys: Vec<WebKey> = table.entries().map(|(key, _)| *key).collect();
        keys.sort_unstable();
        keys
    }

    #[test]
    fn a_line_reads_what_it_writes_and_nothing_else() {
        for line in [begun(1), begun(2), Line::Ending(key(3)), Line::Over(key(3))] {
            assert_eq!(Line::read(&line.write()), Some(line));
            for odd in [" ", " 1", "x"] {
                assert_eq!(Line::read(&(line.write() + odd)), None, "{line:?}{odd:?}");
            }
        }
        for odd in ["", "+", "-", "!", "* 1", "- 07", "! 07", "+ a b c d", &begun(1).write()[2..]] {
            assert_eq!(Line::read(odd), None, "{odd:?}");
        }
    }

    /// As an older version wrote it: nobody knows when its token was issued, so every end of its person is its end.
    #[test]
    fn a_line_without_the_time_of_its_token_is_read() {
        let line = begun(1).write();
        let Some(Line::Begun(_, entry)) = Line::read(line.rsplit_once(' ').unwrap().0) else { panic!() };
        assert_eq!(entry.issued, 0);
    }

    #[test]
    fn r5_what_was_added_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sessions");
        let (mut file, table, _) = open(&path);
        assert_eq!(table.len(), 0);
        file.add(&lines([begun(1), begun(2)])).unwrap();
        file.add(&lines([Line::Over(key(1)), begun(3)])).unwrap();
        drop(file);
        let (_, table, _) = open(&path);
        assert_eq!(keys(&table), [key(2), key(3)]);
        let Line::Begun(_, wanted) = begun(2) else { panic!() };
        assert!(table.entries().any(|(key, entry)| *key == self::key(2) && *entry == wanted));
    }

    /// R2, R5: what the provider has ended is still to be ended after a restart, until it is over, and after the next one.
    #[test]
    fn r2_r5_what_is_to_be_ended_is_so_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sessions");
        let (mut file, ..) = open(&path);
        let ended = [1, 2, 9].map(|byte| Line::Ending(key(byte)));
        file.add(&lines([begun(1), begun(2), begun(3)].into_iter().chain(ended))).unwrap();
        drop(file);
        let (mut file, _, ending) = open(&path);
        assert_eq!(ending, [key(1), key(2)], "9 is nobody's");
        file.add(&lines([Line::Over(key(1))])).unwrap();
        drop(file);
        assert_eq!(open(&path).2, [key(2)]);
        let (_, _, ending) = super::open(&path, Bounds::default(), NOW + 2).unwrap();
        assert!(ending.is_empty(), "its time is over");
    }

    #[test]
    fn what_is_over_by_its_time_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sessions");
        let (mut file, ..) = open(&path);
        file.add(&lines([begun(1), begun(9)])).unwrap();
        drop(file);
        let (_, table, _) = super::open(&path, Bounds::default(), NOW + 1).unwrap();
        assert_eq!(keys(&table), [key(9)]);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), begun(9).write() + "\n");
    }

    #[test]
    fn a_line_that_cannot_be_read_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sessions");
        drop(open(&path));
        std::fs::write(&path, format!("{}\nnonsense\n", begun(1).write())).unwrap();
        let said = super::open(&path, Bounds::default(), NOW).unwrap_err().to_string();
        assert!(said.contains("line 2 cannot be read") && said.contains("the provider cannot end"), "{said}");
    }

    #[test]
    fn r7_when_it_has_grown_it_is_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sessions");
        let (mut file, mut table, _) = open(&path);
        file.add(&lines(std::iter::repeat_n(begun(1), 12_000))).unwrap();
        assert!(file.has_grown());
        let Line::Begun(key, entry) = begun(2) else { panic!() };
        table.insert(key, entry);
        file.write_anew(&all(&table, [key].into_iter(), NOW)).unwrap();
        let wanted = lines([begun(2), Line::Ending(key)]);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), wanted);
    }
}
