//! Ten thousand clients that do nothing, before a gateway that is a process of its own, so that its memory can be told.

use std::io::Read;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::world::{Gateway, Origin, Raw, get, many_files, soon};

const CLIENTS: usize = 10_000;
/// What one of them may take, without optimizations: twice what was measured.
const KIB_OF_ONE: usize = 60;
/// Tells this test, run once more, to be the gateway.
const BE_THE_GATEWAY: &str = "ENFORCER_TEST_BE_THE_GATEWAY";
const SAYS: &str = "listens at ";

#[tokio::test]
async fn r7_ten_thousand_idle_connections_take_little_and_hurt_nobody() {
    if std::env::var_os(BE_THE_GATEWAY).is_some() {
        return be_the_gateway().await;
    }
    many_files();
    let (gateway, address) = start().await;
    let mut served = Raw::connect(address).await;
    assert_eq!(served.ask(get("/", 1)).await.unwrap().status, 200);
    let before = kib(&gateway);
    let mut idle = Vec::new();
    for number in 0..CLIENTS {
        let mut raw = Raw::connect(address).await;
        // those that say nothing, those in the middle of a head, and those between two requests
        match number % 3 {
            0 => {}
            1 => raw.send("GET / HT").await,
            _ => assert_eq!(raw.ask(get("/", 1)).await.unwrap().status, 200),
        }
        idle.push(raw);
    }
    // who was there, who comes, and some of those that were idle
    assert_eq!(served.ask(get("/", 1)).await.unwrap().status, 200);
    assert_eq!(Raw::connect(address).await.ask(get("/", 1)).await.unwrap().status, 200);
    for number in (0..CLIENTS).step_by(997) {
        let rest = if number % 3 == 1 { "TP/1.1\r\nHost: a.example\r\n\r\n".to_owned() } else { get("/", 1) };
        assert_eq!(idle[number].ask(rest).await.unwrap().status, 200, "{number}");
    }
    let more = kib(&gateway).saturating_sub(before);
    println!("{CLIENTS} idle connections take {more} KiB");
    assert!(more < CLIENTS * KIB_OF_ONE, "{more} KiB");
}

async fn be_the_gateway() {
    let origin = Origin::new().await;
    let gateway = Gateway::with(&[("a.example", origin.address)], |settings| {
        settings.limits.connections_of_address = settings.limits.connections;
        settings.times.head = Duration::from_secs(3_600);
        settings.times.keep_alive = Duration::from_secs(3_600);
    });
    println!("\n{SAYS}{}", gateway.plain());
    // until the other one has gone, or hangs up
    let _ = tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0])).await;
}

async fn start() -> (Child, SocketAddr) {
    let mut gateway = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "many::r7_ten_thousand_idle_connections_take_little_and_hurt_nobody",
            "--nocapture",
        ])
        .env(BE_THE_GATEWAY, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(gateway.stdout.take().unwrap()).lines();
    loop {
        let line = soon("its address", lines.next_line()).await.unwrap().expect("it ended");
        if let Some(address) = line.strip_prefix(SAYS) {
            // what else it says is nobody's: it must not stop at a full pipe
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return (gateway, address.parse().unwrap());
        }
    }
}

/// How much memory it has.
fn kib(process: &Child) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
