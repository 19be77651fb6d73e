//! Files with a secret in them: read only if nobody else could have read or changed them.

use std::fs::OpenOptions;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

/// In bytes. A password is shorter, and so is a key.
const MAX: u64 = 64 * 1024;

/// Of root or of this process's user, with mode 0600 or less.
///
/// # Errors
/// A sentence that says what is wrong with the file and how to mend it; nothing of what is in it.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, String> {
    let wrong = |what: String| format!("{}: {what}", path.display());
    // a FIFO of that name must not hold us up
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC)
        .open(path)
        .map_err(|error| wrong(format!("cannot be opened: {error}")))?;
    let about = file.metadata().map_err(|error| wrong(format!("cannot be looked at: {error}")))?;
    let me = nix::unistd::geteuid().as_raw();
    if !about.is_file() {
        return Err(wrong("it is no ordinary file".into()));
    }
    if about.uid() != me && about.uid() != 0 {
        return Err(wrong(format!(
            "it belongs to uid {}, who could change it: `chown` it to root",
            about.uid()
        )));
    }
    if about.mode() & 0o177 != 0 {
        let mode = about.mode() & 0o7777;
        return Err(wrong(format!(
            "it has mode {mode:04o}, so that others could read or change it: `chmod 600` it"
        )));
    }
    let mut bytes = Vec::new();
    let length = file
        .take(MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| wrong(format!("cannot be read: {error}")))?;
    if length as u64 > MAX {
        return Err(wrong(format!("it is longer than {MAX} bytes")));
    }
    Ok(bytes)
}

/// A file of one line: its text without the line's end.
///
/// # Errors
/// As [`read`]; also where there is no text, or more than one line.
pub(super) fn line(path: &Path) -> Result<String, String> {
    let bytes = read(path)?;
    let text = String::from_utf8(bytes).map_err(|_| format!("{}: it is not text", path.display()))?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() || text.contains(['\n', '\r', '\0']) {
        return Err(format!("{}: it has to hold the password alone, in one line", path.display()));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_password_is_read_where_nobody_else_could_have_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        let put = |text: &[u8], mode: u32| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            line(&path)
        };
        assert_eq!(put(b"Kestrel-4711\n", 0o600).unwrap(), "Kestrel-4711");
        assert_eq!(put(b"Kestrel-4711\r\n", 0o400).unwrap(), "Kestrel-4711");
        for (text, mode, says) in [
            (&b"Kestrel-4711\n"[..], 0o640, "chmod 600"),
            (b"Kestrel-4711\n", 0o604, "chmod 600"),
            (b"\n", 0o600, "one line"),
            (b"", 0o600, "one line"),
            (b"Kestrel-4711\nb\n", 0o600, "one line"),
            (b"Kestrel-4711\xff\n", 0o600, "not text"),
            (&vec![b'x'; 70_000], 0o600, "longer"),
        ] {
            let why = put(text, mode).unwrap_err();
            assert!(why.contains(says) && !why.contains("Kestrel"), "{why}");
        }
        assert!(line(folder.path()).unwrap_err().contains("no ordinary file"));
        assert!(line(&folder.path().join("none")).unwrap_err().contains("cannot be opened"));
    }
}
