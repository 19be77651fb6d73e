//! The one change in ocserv.conf that the enforcer needs, and the way back: text in, text out.
//!
//! What is added stands at the top of the file between two marks; what stood in its way is kept, as a comment. So taking it
//! back gives the file byte for byte as it was, as long as nobody has edited these lines.

use std::path::{Path, PathBuf};

use super::scripts::{self, Pair};

const BEGIN: &[u8] = b"# >>> enforcer: by `enforcer setup ocserv --apply`; `--undo` takes it back";
const END: &[u8] = b"# <<< enforcer";
/// Before each line that stood in its way.
const ASIDE: &[u8] = b"#enforcer# ";
const BOM: &[u8] = b"\xef\xbb\xbf";

/// The keys that are set, in the global part.
const OURS: [&[u8]; 3] = [b"use-occtl", b"connect-script", b"disconnect-script"];

/// Why it is not changed. Nothing was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// Ours is not whole.
    #[error(
        "line {0} is one of the two marks of `enforcer setup ocserv`, and the other one is missing: take the lines of the \
         enforcer out by hand"
    )]
    Mark(usize),
    /// A line that begins with a blank goes on with the line before it, whatever it looks like.
    #[error(
        "it would not mean the same any more: somewhere a line begins with a blank, and ocserv reads such a line as going on \
         with the one before it. Take the blanks away, or make the change by hand"
    )]
    Indented,
    #[error("it would not do: ocserv would not read it as {0} = {1}. Make the change by hand")]
    Unread(&'static str, PathBuf),
    #[error("{} cannot be written into ocserv.conf: a path of letters, digits and ./_- is needed", .0.display())]
    Path(PathBuf),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The whole file, as it is to be.
    pub text: Vec<u8>,
    /// Lines that come, and lines that go, without their ends.
    pub added: Vec<String>,
    pub removed: Vec<String>,
}

/// What is in force in a text: the scripts, and whether `occtl` is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InForce {
    pub connect: Option<PathBuf>,
    pub disconnect: Option<PathBuf>,
    pub use_occtl: bool,
    /// Virtual hosts with a script of their own.
    pub vhosts: Vec<String>,
    /// ocserv's firewall script runs first, and hands ours to a shell.
    pub firewall: bool,
}

pub fn in_force(text: &[u8]) -> InForce {
    let scripts = scripts::parse(text);
    let occtl = scripts::pairs(text).into_iter().rev().find(|pair| is_global(pair, b"use-occtl"));
    InForce {
        connect: scripts.connect,
        disconnect: scripts.disconnect,
        use_occtl: occtl.is_some_and(|(_, _, value)| {
            let value = value.to_ascii_lowercase();
            value == b"true" || value == b"yes"
        }),
        vhosts: scripts.ignored,
        firewall: scripts.firewall,
    }
}

fn is_global((section, name, _): &Pair, wanted: &[u8]) -> bool {
    section.is_empty() && name == wanted
}

/// The text with the gate as both scripts, and `occtl` served; `None`: it is so already.
pub fn apply(text: &[u8], gate: &Path) -> Result<Option<Change>, SetupError> {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"./_-+".contains(byte);
    let path = gate.to_str().filter(|path| path.starts_with('/') && path.bytes().all(|byte| plain(&byte)));
    let path = path.ok_or_else(|| SetupError::Path(gate.to_owned()))?;
    let before = in_force(text);
    let is_gate = |script: &Option<PathBuf>| script.as_deref() == Some(gate);
    if is_gate(&before.connect) && is_gate(&before.disconnect) && before.use_occtl {
        return Ok(None);
    }
    // one of an earlier time, for another path
    let original = undo(text)?.unwrap_or_else(|| text.to_vec());
    let (bom, body) = match original.strip_prefix(BOM) {
        Some(body) => (BOM, body),
        None => (&[][..], &original[..]),
    };
    let keeps_occtl = in_force(&original).use_occtl;
    let is_in_the_way = |name: &[u8]| OURS.contains(&name) && !(keeps_occtl && name == b"use-occtl");
    let mut added = vec![format!("connect-script = {path}"), format!("disconnect-script = {path}")];
    if !keeps_occtl {
        added.insert(0, "use-occtl = true".to_owned());
    }
    let mut removed = Vec::new();
    let mut text = bom.to_vec();
    let ours = added.iter().map(String::as_bytes);
    for line in [BEGIN].into_iter().chain(ours).chain([END]) {
        text.extend_from_slice(line);
        text.push(b'\n');
    }
    // as ocserv reads them: an indented line goes on with the one before it, whatever it looks like
    let (mut section_began, mut has_previous) = (false, false);
    for line in body.split_inclusive(|byte| *byte == b'\n') {
        let trimmed = line.trim_ascii();
        let goes_on = has_previous && line.first().is_some_and(u8::is_ascii_whitespace);
        section_began |= !goes_on && trimmed.starts_with(b"[") && trimmed.contains(&b']');
        let name = name_of(trimmed).filter(|_| !section_began && !goes_on);
        has_previous |= name.is_some();
        if name.is_some_and(is_in_the_way) {
            removed.push(String::from_utf8_lossy(trimmed).into_owned());
            text.extend_from_slice(ASIDE);
        }
        text.extend_from_slice(line);
    }
    let rest = |text: &[u8]| -> Vec<Pair> {
        let mut pairs = scripts::pairs(text);
        pairs.retain(|pair| !OURS.iter().any(|name| is_global(pair, name)));
        pairs
    };
    if rest(&text) != rest(&original) {
        return Err(SetupError::Indented);
    }
    let after = in_force(&text);
    if !is_gate(&after.connect) {
        return Err(SetupError::Unread("connect-script", gate.to_owned()));
    }
    if !is_gate(&after.disconnect) || !after.use_occtl {
        return Err(SetupError::Unread("disconnect-script", gate.to_owned()));
    }
    if undo(&text)?.as_ref() != Some(&original) {
        return Err(SetupError::Indented);
    }
    Ok(Some(Change { text, added, removed }))
}

/// The name of a line that is neither empty nor a comment.
fn name_of(line: &[u8]) -> Option<&[u8]> {
    if matches!(line.first(), None | Some(b';' | b'#' | b'[')) {
        return None;
    }
    let end = line.iter().position(|byte| matches!(byte, b'=' | b':'))?;
    Some(line[..end].trim_ascii())
}

/// The text as it was before; `None`: nothing of ours is in it.
pub fn undo(text: &[u8]) -> Result<Option<Vec<u8>>, SetupError> {
    let (mut before, mut inside, mut found) = (Vec::with_capacity(text.len()), None, false);
    let (bom, body) = match text.strip_prefix(BOM) {
        Some(body) => (BOM, body),
        None => (&[][..], text),
    };
    before.extend_from_slice(bom);
    for (number, line) in (1..).zip(body.split_inclusive(|byte| *byte == b'\n')) {
        let trimmed = line.trim_ascii();
        match inside {
            None if trimmed == BEGIN => (inside, found) = (Some(number), true),
            None if trimmed == END => return Err(SetupError::Mark(number)),
            Some(begin) if trimmed == BEGIN => return Err(SetupError::Mark(begin)),
            Some(_) if trimmed == END => inside = None,
            Some(_) => {}
            None => match line.strip_prefix(ASIDE) {
                Some(kept) => {
                    found = true;
                    before.extend_from_slice(kept);
                }
                None => before.extend_from_slice(line),
            },
        }
    }
    match inside {
        Some(begin) => Err(SetupError::Mark(begin)),
        None => Ok(found.then_some(before)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GATE: &str = "/usr/sbin/enforcer-gate";

    fn applied(text: &str) -> Change {
        apply(text.as_bytes(), Path::new(GATE)).unwrap().unwrap()
    }

    #[test]
    fn the_change_is_made_and_taken_back() {
        let text = "auth = \"pam\"\nuse-occtl = true\n# connect-script = /a\nconnect-script = /etc/ocserv/up.sh\n\
                    tcp-port = 443\n[vhost:a.example]\nauth = \"certificate\"\n";
        let change = applied(text);
        let both = ["connect-script", "disconnect-script"].map(|name| format!("{name} = {GATE}"));
        assert_eq!(
            (change.added, change.removed),
            (both.to_vec(), vec!["connect-script = /etc/ocserv/up.sh".into()])
        );
        let said = String::from_utf8(change.text.clone()).unwrap();
        assert!(said.contains("\n#enforcer# connect-script = /etc/ocserv/up.sh\n"), "{said}");
        assert_eq!(undo(&change.text).unwrap().unwrap(), text.as_bytes());
        assert_eq!(apply(&change.text, Path::new(GATE)), Ok(None), "it is there");
        // another path takes its place, and the way back leads to the beginning
        let other = apply(&change.text, Path::new("/opt/enforcer-gate")).unwrap().unwrap();
        assert_eq!(undo(&other.text).unwrap().unwrap(), text.as_bytes());
        assert_eq!(undo(text.as_bytes()), Ok(None));
    }

    #[test]
    fn what_is_there_by_hand_is_let_be() {
        let text = format!("use-occtl = true\nconnect-script = {GATE}\ndisconnect-script = \"{GATE}\"\n");
        assert_eq!(apply(text.as_bytes(), Path::new(GATE)), Ok(None));
        assert_eq!(applied("use-occtl = false\n").added[0], "use-occtl = true");
        assert_eq!(applied("").added.len(), 3);
        assert_eq!(applied("use-occtl = false").removed, ["use-occtl = false"]);
    }

    #[test]
    fn what_would_mean_something_else_is_refused() {
        for text in [" use-occtl = true\n", "connect-script = /a\n /b\n", " tcp-port = 1\n"] {
            let error = apply(text.as_bytes(), Path::new(GATE)).unwrap_err();
            assert!(matches!(error, SetupError::Indented | SetupError::Unread(..)), "{text}: {error}");
        }
        // what goes on with another line, or is put aside with its blanks, is let be
        for text in ["auth = x\n connect-script = /b\n", " connect-script = /a\n"] {
            assert_eq!(undo(&applied(text).text).unwrap().unwrap(), text.as_bytes());
        }
        assert!(matches!(apply(b"", Path::new("/a b")), Err(SetupError::Path(_))));
        assert!(matches!(apply(b"", Path::new("enforcer-gate")), Err(SetupError::Path(_))));
        let change = applied("auth = x\n");
        let cut = |mark: &[u8]| {
            let lines: Vec<&[u8]> = change.text.split_inclusive(|byte| *byte == b'\n').collect();
            lines.into_iter().filter(|line| line.trim_ascii() != mark).collect::<Vec<_>>().concat()
        };
        assert_eq!(undo(&cut(END)), Err(SetupError::Mark(1)));
        assert_eq!(undo(&cut(BEGIN)), Err(SetupError::Mark(4)));
    }

    fn line() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("connect-script = /etc/up.sh".to_owned()),
            Just("disconnect-script=\"/etc/down.sh\" ; so".to_owned()),
            Just("use-occtl = false".to_owned()),
            Just("use-occtl : true".to_owned()),
            Just("[vhost:a]".to_owned()),
            Just("# a comment".to_owned()),
            Just(String::new()),
            "[a-z-]{1,8} = [ -~]{0,12}",
            "[ \\t]?[ -~]{0,20}",
        ]
    }

    proptest! {
        /// Whatever the file is: what is accepted is in force, changes nothing else, and leads back byte for byte.
        #[test]
        fn every_file_leads_back(lines in prop::collection::vec(line(), 0..12), end in "(\n|\r\n|)") {
            let text = lines.join("\n") + &end;
            match apply(text.as_bytes(), Path::new(GATE)) {
                Ok(Some(change)) => {
                    let after = in_force(&change.text);
                    prop_assert_eq!(after.connect, Some(PathBuf::from(GATE)));
                    prop_assert!(after.use_occtl);
                    let before = undo(&change.text).unwrap();
                    prop_assert_eq!(before.as_deref(), Some(text.as_bytes()));
                }
                Ok(None) => prop_assert_eq!(in_force(text.as_bytes()).connect, Some(PathBuf::from(GATE))),
                Err(_) => {}
            }
        }

        #[test]
        fn any_bytes_are_read(text in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = (apply(&text, Path::new(GATE)), undo(&text), in_force(&text));
        }
    }
}
