//! `enforcer passwd` as it is run: from a pipe, and on a terminal.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use std::fs;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use enforcer::web::users::UsersFile;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::pty::openpty;
use nix::sys::termios::{LocalFlags, tcgetattr};

/// A hang fails here, in milliseconds; nothing takes a hundredth of it.
const BOUND: u16 = 60_000;

struct Fixture(tempfile::TempDir);

impl Fixture {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("users")
    }

    fn command(&self, arguments: &[&str]) -> Vec<String> {
        let file = self.file().display().to_string();
        let fixed = [env!("CARGO_BIN_EXE_enforcer"), "passwd", "--file", &file];
        fixed.iter().chain(arguments).map(|&word| word.to_owned()).collect()
    }

    /// Runs it with this standard input.
    fn run(&self, arguments: &[&str], input: &[u8]) -> Output {
        let command = self.command(arguments);
        let mut child = Command::new(&command[0])
            .args(&command[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // it may not want to read it
        let _ = child.stdin.take().unwrap().write_all(input);
        child.wait_with_output().unwrap()
    }

    /// Its exit code, and what it has said.
    fn said(&self, arguments: &[&str], input: &[u8]) -> (i32, String) {
        let output = self.run(arguments, input);
        let said = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(said).unwrap())
    }

    fn may_log_in(&self, name: &str, password: &[u8]) -> bool {
        UsersFile::open(&self.file()).unwrap().look().0.verify(name, password).is_some()
    }

    /// Runs it on a terminal, and types a line whenever it waits for one without echo: what the terminal has shown, and
    /// whether it ended well.
    fn on_a_terminal(&self, arguments: &[&str], lines: &[&str]) -> (String, bool) {
        let pty = openpty(None, None).unwrap();
        // so that the terminal is its own, as after a login
        let mut child = Command::new("setsid")
            .args(["--ctty", "--wait"])
            .args(self.command(arguments))
            .stdin(pty.slave.try_clone().unwrap())
            .stdout(pty.slave.try_clone().unwrap())
            .stderr(pty.slave.try_clone().unwrap())
            .spawn()
            .unwrap();
        drop(pty.slave);
        let mut terminal = File::from(pty.master);
        let mut shown = String::new();
        for (line, prompt) in lines.iter().zip(["New password for", "Once more"]) {
            while !shown.contains(prompt) {
                shown.push_str(&read(&mut terminal).unwrap_or_else(|| panic!("it ended: {shown}")));
            }
            // it ends with its terminal, so this does too
            while tcgetattr(&terminal).unwrap().local_flags.contains(LocalFlags::ECHO) {
                assert!(child.try_wait().unwrap().is_none(), "it ended: {shown}");
                std::thread::yield_now();
            }
            terminal.write_all(format!("{line}\r").as_bytes()).unwrap();
        }
        while let Some(text) = read(&mut terminal) {
            shown.push_str(&text);
        }
        (shown, child.wait().unwrap().success())
    }
}

/// What is shown next; None at the end, when nobody has the terminal open any more.
fn read(terminal: &mut File) -> Option<String> {
    let mut bytes = [0; 1024];
    let mut wait = [PollFd::new(terminal.as_fd(), PollFlags::POLLIN)];
    assert_ne!(poll(&mut wait, BOUND), Ok(0), "nothing was shown for a minute");
    match terminal.read(&mut bytes) {
        Ok(0) => None,
        Ok(length) => Some(String::from_utf8_lossy(&bytes[..length]).into_owned()),
        Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => None,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_user_from_a_pipe_comes_changes_and_goes() {
    let f = Fixture::new();
    let file = f.file().display().to_string();
    let (code, said) = f.said(&["alice", "--group", "staff,admins", "-g", "more"], b"first word\nignored\n");
    assert_eq!((code, said), (0, format!("alice: added in {file}\n")));
    let text = fs::read_to_string(f.file()).unwrap();
    assert!(text.starts_with("alice:staff,admins,more:$argon2id$v=19$"), "{text}");
    assert_eq!(fs::metadata(f.file()).unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(f.may_log_in("alice", b"first word") && !f.may_log_in("alice", b"first word\n"));

    // without an end of the line, and with that of another system
    assert_eq!(f.said(&["alice"], b"second").0, 0);
    assert!(f.may_log_in("alice", b"second") && !f.may_log_in("alice", b"first word"));
    assert_eq!(f.said(&["alice"], "dritt\u{e9}s \r\n".as_bytes()).0, 0);
    assert!(f.may_log_in("alice", "dritt\u{e9}s ".as_bytes()));
    assert!(fs::read_to_string(f.file()).unwrap().starts_with("alice:staff,admins,more:"), "the groups stay");

    assert_eq!(f.said(&["--lock", "alice"], b"").1, format!("alice: locked in {file}\n"));
    assert!(!f.may_log_in("alice", "dritt\u{e9}s ".as_bytes()));
    assert_eq!(f.said(&["-l", "alice"], b""), (0, "alice was locked before\n".to_owned()));
    assert_eq!(f.said(&["-u", "alice"], b"").0, 0);
    assert!(f.may_log_in("alice", "dritt\u{e9}s ".as_bytes()));
    assert_eq!(f.said(&["-d", "alice"], b"").0, 0);
    assert_eq!(f.said(&["-d", "alice"], b""), (3, format!("There is no user alice in {file}\n")));
    let json: serde_json::Value =
        serde_json::from_slice(&f.run(&["--json", "--unlock", "alice"], b"").stdout).unwrap();
    assert_eq!(json, serde_json::json!({ "user": "alice", "file": file, "done": "unknown" }));
}

#[test]
fn what_cannot_be_done_says_why_and_writes_nothing() {
    let f = Fixture::new();
    for (arguments, input, code, said) in [
        (&["alice"][..], &b""[..], 1, "no password on standard input"),
        (&["alice"], b"\nword\n", 1, "no password on standard input"),
        (&["alice"], &[b'x'; 2000], 1, "more than 1024 bytes"),
        (&["a:b"], b"word\n", 1, "no user's name"),
        (&["alice", "--group", "a b"], b"word\n", 1, "no group's name"),
        (&["--delete", "alice"], b"", 1, "does not exist"),
        (&["--delete", "--lock", "alice"], b"", 2, "cannot be used with"),
        (&["--lock", "--group", "x", "alice"], b"", 2, "cannot be used with"),
    ] {
        let (got, text) = f.said(arguments, input);
        assert!(got == code && text.contains(said), "{arguments:?}: {got} {text}");
        assert!(!f.file().exists());
    }
}

#[test]
fn on_a_terminal_it_asks_twice_and_shows_nothing_of_it() {
    let f = Fixture::new();
    let (shown, well) = f.on_a_terminal(&["alice"], &["typed in", "typed in"]);
    assert!(well && shown.contains("alice: added in"), "{shown}");
    assert!(!shown.contains("typed"), "{shown}");
    assert!(f.may_log_in("alice", b"typed in"));

    let (shown, well) = f.on_a_terminal(&["alice"], &["typed again", "typed otherwise"]);
    assert!(!well && shown.contains("the two passwords differ: nothing was changed"), "{shown}");
    assert!(f.may_log_in("alice", b"typed in"));

    let (shown, well) = f.on_a_terminal(&["alice"], &["", ""]);
    assert!(!well && shown.contains("the password is empty"), "{shown}");

    // interrupted at the first question
    let (shown, well) = f.on_a_terminal(&["alice"], &["\x03"]);
    assert!(!well, "{shown}");
    assert!(f.may_log_in("alice", b"typed in"));
}
