//! R7: very many revocations: taken over, listed and counted, and nobody waits for it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::net::Ipv4Addr;

use enforcer::control::{ControlClient, api, connect_control};
use enforcer_tests::enforcer::{Config, DONE, binary};
use enforcer_tests::probe::Probe;
use enforcer_tests::process::{BOUND, Process, command, eventually};
use enforcer_tests::receipt;
use enforcer_tests::{Enforcer, Era, Lab, Ocserv};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use prost::Message as _;

const MANY: u64 = 100_000;

fn address(n: u64) -> Ipv4Addr {
    Probe::address(u32::try_from(n).expect("a small number"))
}

/// A daemon whose ocserv never comes.
fn gateway(name: &str) -> (Lab, Enforcer) {
    let lab = Lab::new(name);
    let ocserv = Ocserv::new(&lab, Era::Bookworm, 0);
    let mut enforcer = Enforcer::prepare(&lab, &Config::new(&[&ocserv]));
    enforcer.start();
    (lab, enforcer)
}

/// A line of `/proc/PID/status` that tells of memory, in KiB.
fn memory(pid: Pid, what: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the daemon's status");
    let line = status.lines().find(|line| line.starts_with(what)).expect("a line");
    line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number")
}

/// The rest of a list, from after `first` on: each message is small, and each number there once, in its order.
async fn rest(client: &mut ControlClient, after: u64) -> Vec<u64> {
    let mut parts = client.list_revocations(api::ListRequest { after }).await.expect("a list").into_inner();
    let mut numbers = Vec::new();
    while let Some(part) = parts.message().await.expect("a part") {
        numbers.extend(small(&part));
    }
    numbers
}

fn small(part: &api::Revocations) -> Vec<u64> {
    assert!(part.revocations.len() <= 512 && part.encoded_len() < 1 << 20, "{} bytes", part.encoded_len());
    part.revocations.iter().map(|info| info.number).collect()
}

fn counted(enforcer: &Enforcer) -> (u64, u64) {
    let count = enforcer.cli(&["show", "revocations", "--count", "--json"]).code(DONE).json;
    let in_force = count["in_force"].as_u64().expect("a count");
    assert_eq!(enforcer.status()["revocations_in_force"], in_force);
    (in_force, count["remembered"].as_u64().expect("a count"))
}

/// R7: a hundred thousand, by `revoke --from`; each is listed once, and while the list is read the daemon answers others
/// and needs no more memory.
#[test]
fn r7_a_hundred_thousand_revocations() {
    let (lab, enforcer) = gateway("many");
    let mut probe = Probe::new(&lab);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut client = runtime.block_on(connect_control(&enforcer.control_socket())).expect("the daemon");
    assert_eq!(counted(&enforcer), (0, 0));
    assert!(runtime.block_on(rest(&mut client, 0)).is_empty());

    let lines: String = (0..MANY).map(|n| format!("address {}\n", address(n))).collect();
    let taken = enforcer.cli_with(&["revoke", "--from", "-", "--json"], &lines).code(DONE);
    assert_eq!(
        (&taken.json["done"], &taken.json["failed"]),
        (&serde_json::json!(MANY), &serde_json::json!(0)),
        "{}",
        taken.stderr
    );
    assert_eq!(taken.stderr, "", "nobody looks on");
    assert_eq!(counted(&enforcer), (MANY, MANY));
    let some = [0, MANY / 2, MANY - 1, MANY, MANY + 7].map(address);
    assert_eq!(probe.reached(&some), BTreeSet::from([some[3], some[4]]));

    let pid = enforcer.pid();
    fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("its peak begins anew");
    let before = memory(pid, "VmRSS");
    runtime.block_on(async {
        let mut parts =
            client.list_revocations(api::ListRequest::default()).await.expect("a list").into_inner();
        let first = parts.message().await.expect("a part").expect("a part");
        let mut listed = small(&first);
        // nobody reads on, and others are answered
        let next = address(MANY).to_string();
        let another = enforcer.cli(&["revoke", "address", &next, "--json"]).code(DONE).receipt().number();
        assert_eq!(another, Some(MANY + 1));
        enforcer.cli(&["lift", &MANY.to_string()]).code(DONE);
        assert_eq!(counted(&enforcer), (MANY, MANY + 1));
        assert_eq!(probe.reached(&some), BTreeSet::from([some[2], some[4]]));
        // each once; what was made since is not among them, and each tells how it stands by now
        let (mut targets, mut last) = (BTreeSet::new(), first.revocations.last().cloned());
        targets.extend(first.revocations.into_iter().map(|info| info.target));
        while let Some(part) = parts.message().await.expect("a part") {
            listed.extend(small(&part));
            last = part.revocations.last().cloned();
            targets.extend(part.revocations.into_iter().map(|info| info.target));
        }
        assert!(listed.iter().copied().eq(1..=MANY), "{} numbers", listed.len());
        assert!(targets == (0..MANY).map(|n| format!("address {}", address(n))).collect());
        let last = last.expect("a revocation");
        assert_eq!((last.number, last.state.as_str(), last.entries), (MANY, "lifted", 0));
        // from some number on; and beyond the last there is nothing
        let tail = rest(&mut client, MANY - 2).await;
        assert_eq!(tail, [MANY - 1, MANY, MANY + 1]);
        assert!(rest(&mut client, MANY + 1).await.is_empty());
        // in one message they do not fit, and that is said
        let refused = client.show_revocations(api::ShowRequest {}).await.expect_err("too many");
        assert!(refused.message().contains("ListRevocations"), "{refused:?}");
    });
    let grown = memory(pid, "VmHWM").saturating_sub(before);
    eprintln!("{grown} KiB more for a list of {MANY}, of {before}");
    assert!(grown < 8 * 1_024, "{grown} KiB more");

    let shown = enforcer.cli(&["show", "revocations", "--json"]).code(DONE);
    assert!(shown.json["error"].is_null() && shown.stdout.len() > 8 << 20, "{} bytes", shown.stdout.len());
    assert!(receipt::revocations(&shown.json).into_iter().eq(1..=MANY + 1));
    let shown = enforcer.cli(&["show", "revocations"]).code(DONE).stdout;
    assert_eq!(shown.lines().count(), MANY as usize + 2, "a line each, and the titles");
    assert_eq!(shown.matches("NUMBER").count(), 1);
}

/// A few fit into one message.
#[test]
fn few_revocations_are_told_in_one_message() {
    let (_lab, enforcer) = gateway("few");
    for n in 0..3 {
        enforcer.cli(&["revoke", "address", &address(n).to_string()]).code(DONE);
    }
    enforcer.cli(&["lift", "2"]).code(DONE);
    assert_eq!(counted(&enforcer), (2, 3));
    let shown = enforcer.cli(&["show", "revocations", "--count"]).code(DONE).stdout;
    assert_eq!(shown, "2 in force, 3 listed\n");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut client = connect_control(&enforcer.control_socket()).await.expect("the daemon");
        let all = client.show_revocations(api::ShowRequest {}).await.expect("all of them").into_inner();
        let states: Vec<(u64, &str, u64)> =
            all.revocations.iter().map(|info| (info.number, info.state.as_str(), info.entries)).collect();
        assert_eq!(states, [(1, "complete", 1), (2, "lifted", 0), (3, "complete", 1)]);
        assert_eq!(rest(&mut client, 0).await, [1, 2, 3]);
    });
}

/// `revoke --from` tells a terminal how far it is.
#[test]
fn a_terminal_sees_the_progress_of_a_list() {
    let (lab, enforcer) = gateway("progress");
    let fifo = lab.work().join("lines");
    nix::unistd::mkfifo(&fifo, Mode::from_bits_truncate(0o600)).expect("a fifo");
    let line = format!("exec {} revoke --from {}", binary().display(), fifo.display());
    // script(1) runs it on a terminal of its own, and passes on what that shows
    let mut on_terminal = command("script", ["-q", "-e", "-f", "-c", &line, "/dev/null"]);
    on_terminal.env("ENFORCER_SOCKET", enforcer.control_socket()).env("SHELL", "/bin/sh");
    let log = lab.work().join("terminal");
    let mut shown = Process::start("script", on_terminal, &log, None);
    // opens once it is read
    let mut lines = fs::File::options().write(true).open(&fifo).expect("the fifo");
    let mut n = 0;
    eventually("progress is shown", BOUND, || {
        writeln!(lines, "address {}", address(n)).expect("written");
        n += 1;
        shown.log().contains(" lines …").then_some(())
    });
    drop(lines);
    assert!(shown.wait(BOUND).success(), "{}", shown.log());
    let log = shown.log();
    assert!(log.contains(&format!("{n} revoked, 0 not")), "{log}");
    assert_eq!(counted(&enforcer).0, n);
}
