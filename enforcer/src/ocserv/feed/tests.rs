//! The feed against a server that does what the real one cannot be made to do.

use std::sync::atomic::{AtomicUsize, Ordering};

use prost::Message as _;
use tokio::io::AsyncReadExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::watch::SOON;
use super::*;
use crate::ocserv::frame::TOP_EVENT;
use crate::ocserv::messages::tests::info;
use crate::ocserv::wire;

fn frame(command: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![command];
    frame.extend_from_slice(&(body.len() as u32).to_ne_bytes());
    frame.extend_from_slice(body);
    frame
}

fn told(connected: u32, id: i32) -> Vec<u8> {
    let user = Some(wire::UserList { user: vec![info(id, b"alice", id as u8)] });
    let update = wire::TopUpdate { connected: Some(connected), user, ..Default::default() };
    frame(TOP_EVENT, &update.encode_to_vec())
}

/// Plays ocserv's main process, which is this test's: STATUS names it, TERMINATE is unknown to it, and TOP is
/// what `top` makes of it.
fn server<F, T>(listener: UnixListener, top: F) -> JoinHandle<()>
where
    F: Fn(UnixStream, usize) -> T + Send + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(async move {
        let mut tops = 0;
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let mut header = [0; 5];
            if stream.read_exact(&mut header).await.is_err() {
                continue;
            }
            match header[0] {
                1 => {
                    let me = wire::StatusReply { main_pid: Some(std::process::id()), ..Default::default() };
                    let _ = stream.write_all(&frame(101, &me.encode_to_vec())).await;
                }
                11 => {
                    tops += 1;
                    tokio::spawn(top(stream, tops));
                }
                _ => {}
            }
        }
    })
}

fn start(folder: &tempfile::TempDir) -> (UnixListener, Client) {
    let path = folder.path().join("occtl");
    (UnixListener::bind(&path).unwrap(), Client::new(path, Duration::from_secs(2)))
}

async fn until(events: &mut mpsc::Receiver<FeedEvent>, what: &str, wanted: impl Fn(&FeedEvent) -> bool) {
    let look = async { while !wanted(&events.recv().await.unwrap()) {} };
    timeout(Duration::from_secs(10), look).await.unwrap_or_else(|_| panic!("no {what}"));
}

/// R7, and the trap that stops ocserv: TOP is read whatever the consumer does, and nothing is lost by it.
#[tokio::test]
async fn a_consumer_that_sleeps_does_not_stop_ocserv() {
    const EVENTS: usize = 20_000;
    static WRITTEN: AtomicUsize = AtomicUsize::new(0);
    let folder = tempfile::tempdir().unwrap();
    let (listener, client) = start(&folder);
    let server = server(listener, |mut stream, _| async move {
        stream.write_all(&frame(104, &[])).await.unwrap();
        for _ in 0..EVENTS {
            stream.write_all(&told(1, 7)).await.unwrap();
            WRITTEN.fetch_add(1, Ordering::Relaxed);
        }
        // every further look is answered with what is true now
        let mut header = [0; 5];
        while stream.read_exact(&mut header).await.is_ok() {
            let now = wire::UserList { user: vec![info(8, b"bob", 8)] };
            stream.write_all(&frame(104, &now.encode_to_vec())).await.unwrap();
        }
    });
    let (send, mut events) = mpsc::channel(1);
    let feed = tokio::spawn(run(client, Mode::Feed, SOON, send));
    let all = async {
        while WRITTEN.load(Ordering::Relaxed) < EVENTS {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(10), all).await.expect("the socket is drained while nobody consumes");
    let truth =
        |event: &FeedEvent| matches!(event, FeedEvent::List(list) if list.len() == 1 && list[0].id == 8);
    until(&mut events, "list after the overflow", truth).await;
    drop(events);
    timeout(Duration::from_secs(5), feed).await.expect("it ends with its consumer").unwrap();
    server.abort();
}

#[tokio::test]
async fn a_connection_that_breaks_is_made_anew_and_one_that_always_breaks_is_down() {
    let folder = tempfile::tempdir().unwrap();
    let (listener, client) = start(&folder);
    let server = server(listener, |mut stream, number| async move {
        if number == 2 {
            stream.write_all(&frame(104, &[])).await.unwrap();
            stream.write_all(&told(1, 7)).await.unwrap();
            sleep(SOON + SOON / 2).await;
        }
        let _ = stream.write_all(b"\x6d\x02\0\0\0\xff\xff").await;
    });
    let (send, mut events) = mpsc::channel(100);
    let feed = tokio::spawn(run(client, Mode::Feed, SOON, send));
    until(&mut events, "up", |event| matches!(event, FeedEvent::Up { .. })).await;
    // the first connection breaks at once: not a word of it
    let next = timeout(Duration::from_secs(5), events.recv()).await.unwrap();
    assert_eq!(next, Some(FeedEvent::List(Vec::new())));
    until(&mut events, "event", |event| matches!(event, FeedEvent::Connected(_))).await;
    until(&mut events, "down", |event| matches!(event, FeedEvent::Down { .. })).await;
    feed.abort();
    server.abort();
}
