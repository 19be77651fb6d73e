//! Who holds ocserv's feed: it has room for one listener.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use enforcer_tests::enforcer::Config;
use enforcer_tests::scene::Pair;
use enforcer_tests::{Connect, Enforcer, Era, Lab, Ocserv};

/// R2: somebody's `occtl top` has the feed before the daemon starts. The gate's calls and the list serve, and
/// `show status` says so; when it ends, the daemon has the feed.
fn taken(name: &str, era: Era) {
    let mut lab = Lab::new(name);
    let plain = Ocserv::new(&lab, era, 0);
    let mut enforcer = Enforcer::prepare(&lab, &Config::new(&[&plain]));
    let server = enforcer.guard(plain).start();
    // what `occtl top` sends: command 11, no body
    let mut top = UnixStream::connect(server.socket()).expect("the socket");
    top.write_all(&[11, 0, 0, 0, 0]).expect("asked");
    let mut head = [0; 5];
    top.read_exact(&mut head).expect("the list");
    enforcer.start();
    let alice = lab.client("alice");
    for _ in 0..3 {
        let (cookie, mut tunnel) = alice.session(&server, "alice");
        let pair = Pair::new(&lab, &alice, &tunnel, false, 200);
        pair.flowing();
        let answer = enforcer.revoke("alice");
        pair.stopped_at(answer.answered, 50);
        tunnel.wait_end();
        alice.connect(&server, &cookie, &Connect::default()).refused();
    }
    // it shows by a session that is listed and was never told of
    let (_, _stays) = alice.session(&server, "alice");
    lab.eventually("the daemon says that it polls", || {
        let feed = enforcer.status()["servers"][0]["feed"].as_str().unwrap_or_default().to_owned();
        feed.starts_with("polling").then_some(())
    });
    drop(top);
    // ocserv notices that its listener is gone when it has something to tell, and only then is the feed free
    let bob = lab.client("bob");
    lab.eventually("the daemon has the feed", || {
        let (_, tunnel) = bob.session(&server, "bob");
        tunnel.log_out();
        let feed = enforcer.status()["servers"][0]["feed"].as_str().unwrap_or_default().to_owned();
        (feed == "live").then_some(())
    });
}

#[test]
fn r2_feed_taken_by_occtl_bookworm() {
    taken("feed-taken-bookworm", Era::Bookworm);
}

#[test]
fn r2_feed_taken_by_occtl_sid() {
    taken("feed-taken-sid", Era::Sid);
}
