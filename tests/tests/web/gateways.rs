//! Gateways that hang, are stopped, lie or are gone: what becomes of the sockets, and what the receipt says.

use std::os::unix::fs::FileExt as _;

use nix::sys::signal::Signal;

use super::process::{Child, Origin, Stream, forged, socket_pair};
use super::*;

fn web_text(answer: &Answer) -> String {
    layer(answer, "web")["text"].as_str().unwrap().to_owned()
}

/// R6: a gateway that does not close what it has is not called done: the answer is partial. The session is over all the same.
#[test]
fn r6_a_gateway_that_hangs() {
    let scene = scene("web-hangs");
    let gateway = Gateway::with(&scene, |cause| cause != Cause::Revoked);
    gateway.login("alice", 1).unwrap();
    gateway.login("bob", 2).unwrap();
    let answer = scene.enforcer.cli(&["terminate", "user", "alice", "--json"]).code(PARTIAL);
    let told = layer(&answer, "web");
    assert_eq!((&told["done"], &told["failed"]), (&0.into(), &1.into()), "{told}");
    assert!(told["text"].as_str().unwrap().contains("NOT acknowledged"), "{told}");
    assert!(!gateway.is_alive(1));
    // it has to begin anew, and does
    gateway.connected();
    assert!(gateway.is_alive(2));
    // one that reads no stream, and whose process lives on, is not called absent
    gateway.login("carol", 3).unwrap();
    drop(gateway);
    let answer = scene.enforcer.cli(&["terminate", "user", "carol", "--json"]).code(PARTIAL);
    let own = format!("(process {})", std::process::id());
    let notes = list(&answer.json, "notes").iter().filter_map(Value::as_str).collect::<String>();
    assert!(notes.contains(&own), "{notes}");
    assert_eq!(shown(&scene).len(), 1, "bob is nobody's business");
}

/// R6: the sockets of a process are gone with it: of one that was killed nothing is waited for, and nothing is called
/// acknowledged.
#[test]
fn r6_a_gateway_that_was_killed() {
    let scene = scene("web-gone");
    let origin = Origin::start();
    let mut child = Child::start(&scene, &origin);
    child.login("alice", 1);
    let mut stream = Stream::open(&child, 1);
    child.signal(Signal::SIGKILL);
    stream.ends();
    let answer = scene.enforcer.cli(&["terminate", "user", "alice", "--json"]).code(DONE);
    assert_eq!(layer(&answer, "web")["guarded"], 1, "{}", answer.stdout);
    assert!(shown(&scene).is_empty());
}

/// R1, R3, R6: the sockets of a session at a gateway that is stopped die by the command, to the client and to the
/// application; another session's live, and go on when the gateway does. The receipt says who did it. What was ended is not
/// let in again. So also after kill -9 of the daemon, which knows the gateway by its table alone then.
#[test]
fn r1_r3_r6_sockets_at_a_gateway_that_is_stopped() {
    let mut scene = scene("web-stopped");
    let origin = Origin::start();
    let mut child = Child::start(&scene, &origin);
    for (user, byte) in [("alice", 1), ("bob", 2), ("carol", 3)] {
        child.login(user, byte);
    }
    let [mut alice, mut bob, mut carol] = [1, 2, 3].map(|byte| Stream::open(&child, byte));
    assert_eq!(origin.open(), [1, 2, 3].into());

    child.signal(Signal::SIGSTOP);
    let answer = scene.enforcer.cli(&["terminate", "user", "alice", "--json"]).code(DONE);
    let told = layer(&answer, "web");
    assert_eq!((&told["done"], &told["failed"]), (&1.into(), &0.into()), "{told}");
    assert!(web_text(&answer).contains("2 sockets destroyed"), "{told}");
    alice.ends();
    eventually("the application sees it as well", BOUND, || (origin.open() == [2, 3].into()).then_some(()));

    scene.enforcer.kill();
    scene.enforcer.start();
    let answer = scene.enforcer.cli(&["terminate", "user", "carol", "--json"]).code(DONE);
    assert!(web_text(&answer).contains("2 sockets destroyed"), "{}", answer.stdout);
    carol.ends();
    eventually("the application sees it as well", BOUND, || (origin.open() == [2].into()).then_some(()));

    child.signal(Signal::SIGCONT);
    bob.goes_on();
    assert_eq!(origin.open(), [2].into());
    for byte in [1, 3] {
        eventually("whoever was ended is turned away", BOUND, || {
            (child.status_for(byte) == Some(401)).then_some(())
        });
    }
    eventually("and nobody else", BOUND, || (child.status_for(2) == Some(200)).then_some(()));
    // by the gateway itself, as long as it answers
    child.login("dave", 4);
    let mut dave = Stream::open(&child, 4);
    let answer = scene.enforcer.cli(&["terminate", "user", "dave", "--json"]).code(DONE);
    let text = web_text(&answer);
    assert!(text.contains("connections closed") && !text.contains("destroyed"), "{text}");
    dave.ends();
    bob.goes_on();
}

/// R6: of two gateways the table tells of the younger one alone. The daemon has noted both, and calls the older one, which
/// is stopped, neither absent nor done; its twin: with that one gone nothing is left to wait for.
#[test]
fn r6_a_gateway_that_is_stopped_over_a_restart_of_the_daemon_is_told() {
    let mut scene = scene("web-noted");
    let origin = Origin::start();
    let mut older = Child::start(&scene, &origin);
    older.login("alice", 1);
    older.login("bob", 2);
    let mut alice = Stream::open(&older, 1);
    let younger = Child::start(&scene, &origin);
    older.signal(Signal::SIGSTOP);
    scene.enforcer.kill();
    scene.enforcer.start();
    let answer = scene.enforcer.cli(&["terminate", "user", "alice", "--json"]).code(PARTIAL);
    let notes = list(&answer.json, "notes").iter().filter_map(Value::as_str).collect::<String>();
    assert!(notes.contains(&format!("(process {})", older.pid())), "{}", answer.stdout);
    assert!(!notes.contains(&format!("(process {})", younger.pid())), "{}", answer.stdout);
    older.signal(Signal::SIGCONT);
    alice.ends();
    drop(older);
    let answer = scene.enforcer.cli(&["terminate", "user", "bob", "--json"]).code(DONE);
    assert_eq!(layer(&answer, "web")["failed"], 0, "{}", answer.stdout);
}

/// R3, R6: a gateway that was broken into can name any socket in its table: a stranger's is let be, and that is told.
#[test]
fn r3_r6_a_table_that_names_a_strangers_socket() {
    let scene = scene("web-forged");
    let origin = Origin::start();
    let mut child = Child::start(&scene, &origin);
    let key = child.login("alice", 1);
    let mut alice = Stream::open(&child, 1);
    let (mut strangers, mut theirs) = socket_pair();
    child.signal(Signal::SIGSTOP);
    let table = std::fs::File::options().write(true).open(process::table_of(&socket(&scene))).unwrap();
    // a slot far behind those that are in use
    let (at, slot) = forged(1_000, &key, &strangers);
    table.write_all_at(&slot, at).unwrap();
    let answer = scene.enforcer.cli(&["terminate", "user", "alice", "--json"]).code(PARTIAL);
    let notes = list(&answer.json, "notes").iter().filter_map(Value::as_str).collect::<String>();
    assert!(notes.contains("sockets of other users"), "{}", answer.stdout);
    alice.ends();
    assert!(process::lives(&mut strangers, &mut theirs), "it is root's, and not the gateway's");
}

/// R6, R7: a table that is none, another user's, or a link, is not looked at; what hangs is told as such.
#[test]
fn r6_r7_a_table_that_is_not_the_gateways_is_not_believed() {
    for how in ["link", "owner", "garbage"] {
        let scene = scene(&format!("web-{how}"));
        let origin = Origin::start();
        let mut child = Child::start_with(&scene, &origin, |table| {
            let aside = table.with_extension("aside");
            match how {
                "link" => {
                    std::fs::rename(table, &aside).unwrap();
                    std::os::unix::fs::symlink(&aside, table).unwrap();
                }
                "owner" => std::os::unix::fs::chown(table, Some(STRANGER), None).unwrap(),
                _ => {
                    std::fs::remove_file(table).unwrap();
                    std::fs::write(table, "what is this?").unwrap();
                }
            }
        });
        child.login("alice", 1);
        let mut alice = Stream::open(&child, 1);
        child.signal(Signal::SIGSTOP);
        let answer = scene.enforcer.cli(&["terminate", "user", "alice", "--json"]).code(PARTIAL);
        assert!(web_text(&answer).contains("NOT acknowledged"), "{how}: {}", answer.stdout);
        child.signal(Signal::SIGCONT);
        alice.ends();
    }
}
