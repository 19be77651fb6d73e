//! Whatever comes in: a clear error, and the daemon stays up.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use enforcer_tests::enforcer::{Config, ERROR, NOTHING_MATCHED, USAGE, binary};
use enforcer_tests::process::{command, output};
use enforcer_tests::scene::Scene;
use enforcer_tests::{Enforcer, Era, Lab, Ocserv};

/// R7: frames from ocserv's side that are too short, too long, endless or no protobuf.
#[test]
fn r7_malformed_frames() {
    let lab = Lab::new("bad-frames");
    // an ocserv that was never started: something else has its socket
    let ocserv = Ocserv::new(&lab, Era::Bookworm, 0);
    let listener = UnixListener::bind(ocserv.socket()).expect("a socket");
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    thread::spawn(move || {
        let huge = [&[104][..], &u32::MAX.to_ne_bytes()].concat();
        let frame =
            |body: &[u8]| [&[104][..], &u32::try_from(body.len()).unwrap_or(0).to_ne_bytes(), body].concat();
        let answers = [
            Vec::new(),
            vec![104],
            huge,
            frame(&[0xff; 100]),
            frame(b"\x0a\x7f"),
            [frame(&[]), frame(&[0x80; 2000])].concat(),
            vec![0; 100_000],
            [vec![250], frame(&[])].concat(),
        ];
        for answer in answers.iter().cycle() {
            let Ok((mut stream, _)) = listener.accept() else { return };
            // whoever hangs up early is the one under test
            let _ = stream.set_read_timeout(Some(Duration::from_millis(20)));
            let _ = stream.read(&mut [0; 300]);
            let _ = stream.write_all(answer);
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let mut enforcer = Enforcer::prepare(&lab, &Config::new(&[&ocserv]));
    enforcer.start();
    // it keeps trying; asking it for something makes it try more
    lab.eventually("every kind of answer was given", || {
        enforcer.cli(&["disconnect", "user", "alice"]);
        (served.load(Ordering::Relaxed) >= 16).then_some(())
    });
    assert!(enforcer.runs());
    assert_eq!(enforcer.cli(&["show", "status"]).code, 0);
}

/// R7: garbage on the control socket, many idle connections, and half a request.
#[test]
fn r7_control_socket() {
    let mut scene = Scene::new("bad-control", Era::Bookworm);
    let socket = scene.enforcer.control_socket();
    let open = || UnixStream::connect(&socket).expect("the control socket");
    for garbage in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 65536], &[0xff; 4096], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff"]
    {
        // it may hang up before all is written
        let _ = open().write_all(garbage);
    }
    let idle: Vec<_> = (0..50).map(|_| open()).collect();
    let (cookie, _) = scene.session(&scene.alice, "alice");
    scene.enforcer.revoke("alice");
    scene.refused(&scene.alice, &cookie);
    drop(idle);
    assert!(scene.enforcer.runs());
}

/// The control socket is for its owner alone.
#[test]
fn control_socket_mode() {
    use std::os::unix::fs::PermissionsExt as _;
    let scene = Scene::new("bad-mode", Era::Bookworm);
    let mode = fs::metadata(scene.enforcer.control_socket()).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// Unknown configuration keys are refused, with the nearest known one named; and the like.
#[test]
fn configuration() {
    let lab = Lab::new("bad-config");
    let ocserv = Ocserv::new(&lab, Era::Bookworm, 0);
    let cases = [
        ("kernel", "ouuter", "[\"wan0\"]", "outer"),
        ("gate", "when-blnd", "\"admit\"", "when-blind"),
        ("gate", "when-blind", "\"perhaps\"", "admit"),
        ("kernel", "xdp", "\"sideways\"", "native"),
        ("control", "socket", "17", "17"),
        ("kernl", "outer", "[]", "kernel"),
    ];
    for (section, key, value, names) in cases {
        let config = Config::new(&[&ocserv]).set(section, key, value);
        let enforcer = Enforcer::prepare(&lab, &config);
        let mut run = lab.gateway.command(&binary().display().to_string());
        run.args(["run", "--config"]).arg(enforcer.config());
        let said = output(run, "");
        assert!([ERROR, USAGE].contains(&said.code), "{section}.{key}: exit {}", said.code);
        assert!(said.stderr.contains(names), "{section}.{key} = {value}: {}", said.stderr);
    }
}

/// Absurd arguments: usage errors, before anything is touched.
#[test]
fn arguments() {
    let scene = Scene::new("bad-arguments", Era::Bookworm);
    let (_, bobs) = scene.session(&scene.bob, "bob");
    let long = "x".repeat(100_000);
    let cases: &[&[&str]] = &[
        &[],
        &["frobnicate"],
        &["disconnect"],
        &["disconnect", "user"],
        &["disconnect", "user", ""],
        &["disconnect", "user", &long],
        &["disconnect", "id", "-i", "bob"],
        &["disconnect", "id", "-i", "99999999999999999999"],
        &["disconnect", "id", "-i", "-1"],
        &["terminate", "session", "short"],
        &["revoke", "address", "10.88.0.300"],
        &["revoke", "address", "10.88.0.9", "--for", "soon"],
        &["revoke", "flow", "icmp", "192.0.2.1:1", "198.51.100.2:443"],
        &["revoke", "flow", "tcp", "192.0.2.1:0", "198.51.100.2:443"],
        &["revoke", "flow", "tcp", "192.0.2.1:70000", "198.51.100.2:443"],
        &["revoke", "token", "dtls", "xyz"],
        &["lift", "first"],
    ];
    for case in cases {
        let answer = scene.enforcer.cli(case);
        let shown: Vec<_> = case.iter().map(|word| word.get(..20).unwrap_or(word)).collect();
        assert!([ERROR, USAGE].contains(&answer.code), "{shown:?}: exit {}", answer.code);
        assert!(!answer.stderr.trim().is_empty(), "{shown:?} without a word");
        assert!(!answer.stderr.contains("panicked"), "{shown:?}: {}", answer.stderr);
    }
    scene.flood(&scene.bob, &bobs, false, 50).flowing();
}

/// Names with control characters are never shown as they are, on a terminal or in the log.
#[test]
fn control_characters() {
    let scene = Scene::new("bad-names", Era::Bookworm);
    for name in ["al\x1b[31mice", "a\nlice", "alice\r", "\u{202e}ecila", "a'; DROP TABLE users; --"] {
        let answer = scene.enforcer.cli(&["disconnect", "user", "-i", name]);
        assert!([ERROR, USAGE, NOTHING_MATCHED].contains(&answer.code), "{name:?}: exit {}", answer.code);
        let shown = format!("{}{}{}", answer.stdout, answer.stderr, scene.enforcer.log());
        assert!(
            !shown.contains(name) || name.chars().all(|c| c.is_ascii_graphic() || c == ' '),
            "{name:?}: {shown:?}"
        );
    }
    let events = scene.enforcer.cli(&["show", "events"]).stdout;
    assert!(events.chars().all(|c| c == '\n' || !c.is_control()), "{events:?}");
}

/// Bulk: bad lines are named, good ones work.
#[test]
fn bulk() {
    let scene = Scene::new("bad-bulk", Era::Bookworm);
    let lines = "address 10.99.0.1\naddress nonsense\n\n# a comment\nflow tcp 192.0.2.1:1000 198.51.100.2:443\nflow\n";
    let answer = scene.enforcer.cli_with(&["revoke", "--from", "-"], lines);
    assert_ne!(answer.code, 0, "{answer:?}");
    let said = format!("{}{}", answer.stdout, answer.stderr);
    assert!(said.contains("nonsense"), "{said}");
}

/// The binary under its own help: every command is there.
#[test]
fn help() {
    let said = output(command(&binary().display().to_string(), ["--help"]), "");
    assert_eq!(said.code, 0);
    for word in ["run", "disconnect", "terminate", "revoke", "lift", "show", "gate", "check"] {
        assert!(said.stdout.contains(word), "{word} is missing from the help");
    }
}
