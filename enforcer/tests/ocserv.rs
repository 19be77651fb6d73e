//! The ocserv and socket adapters against real servers: 1.1.6, 1.3.0 and 1.5.0, each with its own client.

// helpers of tests are tests, which clippy cannot see
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)]

mod gateway;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use enforcer::ocserv::{ClientError, FeedEvent, FeedState, Mode, names_gate, run, scripts};
use enforcer::process;
use enforcer::session::{Observed, Protocol};
use enforcer::sockets::{EndSettings, Method, connected_sockets, end_worker};
use gateway::{Era, Gateway, wait_for};
use tokio::sync::mpsc;

/// The tests of this file, once for each era. Every test waits on conditions, with a bound.
macro_rules! each_era {
    ($($test:ident)*) => { $(mod $test {
        use super::*;
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn host() { super::$test(Era::Host).await }
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn trixie() { super::$test(Era::Trixie).await }
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn sid() { super::$test(Era::Sid).await }
    })* };
}
each_era!(requests feed second_listener restart sockets);

async fn soon<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let look = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), look).await.unwrap_or_else(|_| panic!("never seen: {what}"))
}

async fn session(gateway: &Gateway, connected: bool) -> Observed {
    let client = gateway.client();
    soon("the session", async || {
        let listing = client.list().await.unwrap();
        assert_eq!(listing.odd, []);
        let found = listing.sessions.into_iter().next();
        found.filter(|session| listing.in_admission.contains(&session.id) != connected)
    })
    .await
}

async fn gone(gateway: &Gateway) {
    let client = gateway.client();
    soon("an empty list", async || client.list().await.unwrap().sessions.is_empty().then_some(())).await;
}

async fn requests(era: Era) {
    let mut gateway = Gateway::start(era, "requests", false);
    let client = gateway.client();
    let main = client.peer().await.unwrap();
    assert_eq!(main.pid, gateway.server_pid());
    assert_eq!(client.status().await.unwrap().main_pid, main.pid);
    let terminate = client.probe().await.unwrap().terminate;
    assert_eq!(terminate, era == Era::Sid);

    let found = scripts(main, None).unwrap();
    assert!(found.in_force, "{found:?}");
    assert_eq!(found.connect, Some(gateway.path("hook")));
    assert_eq!(found.disconnect, None);
    assert!(!names_gate(main, &gateway.path("hook")));

    gateway.touch("hold");
    let cookie = gateway.log_in("alice");
    let held = client.cookies().await.unwrap();
    assert_eq!(held.cookies.len(), 1);
    assert_eq!((held.cookies[0].user.as_str(), held.cookies[0].in_use), ("alice", false));
    gateway.connect(&cookie);
    let in_script = session(&gateway, false).await;
    assert_eq!(in_script.safe_id, Some(held.cookies[0].safe_id));
    assert_eq!(client.id_info(in_script.id).await.unwrap().unwrap().safe_id, in_script.safe_id);
    gateway.remove("hold");
    let live = session(&gateway, true).await;
    assert_eq!((live.id, live.user.as_str(), live.vhost.as_str()), (in_script.id, "alice", "default"));
    assert!(live.addresses[0].to_string().starts_with("10.9.0."), "{live:?}");
    assert_eq!(client.cookies().await.unwrap().lacks([&live]), []);

    let worker = client.worker(live.id).await.unwrap();
    // ocserv calls it connected a moment before the worker has its device
    soon("the worker has its device", async || {
        (process::tun_of(&worker).unwrap() == live.device).then_some(())
    })
    .await;
    assert!(matches!(client.worker(1).await, Err(ClientError::NotAWorker(1))));

    assert!(!client.unban("198.51.100.9".parse().unwrap()).await.unwrap());
    assert!(!client.disconnect_user("nobody").await.unwrap());
    assert!(!client.disconnect_id(i32::MAX).await.unwrap());
    assert!(client.id_info(i32::MAX).await.unwrap().is_none());
    let longest = "x".repeat(253);
    assert!(!client.disconnect_user(&longest).await.unwrap());
    assert!(client.disconnect_id(live.id).await.unwrap());
    worker.exited().await.unwrap();
    gone(&gateway).await;

    let again = gateway.connect(&cookie);
    let live = session(&gateway, true).await;
    assert_eq!(live.safe_id, Some(held.cookies[0].safe_id), "a cookie keeps its name");
    if terminate {
        // the cookie goes, the session stays
        assert!(client.terminate_session(held.cookies[0].safe_id).await.unwrap());
        assert!(client.cookies().await.unwrap().cookies.is_empty());
        assert_eq!(client.list().await.unwrap().sessions.len(), 1);
        assert!(!client.terminate_session(held.cookies[0].safe_id).await.unwrap());
        assert!(client.disconnect_user("alice").await.unwrap());
        gone(&gateway).await;
        let cookie = gateway.log_in("bob");
        gateway.connect(&cookie);
        let bob = session(&gateway, true).await;
        assert!(!client.terminate_user("alice").await.unwrap());
        assert!(client.terminate_id(bob.id).await.unwrap());
        gone(&gateway).await;
        assert!(client.cookies().await.unwrap().cookies.is_empty());
    } else {
        let refused = client.terminate_user("alice").await;
        assert!(matches!(refused, Err(ClientError::NoReply(_))), "{refused:?}");
        assert!(client.disconnect_user("alice").await.unwrap());
        gone(&gateway).await;
        assert_eq!(client.cookies().await.unwrap().cookies.len(), 1, "disconnecting leaves the cookie");
    }
    wait_for("the client's exit", || gateway.client_ended(again).then_some(()));
}

fn follow(gateway: &Gateway) -> mpsc::Receiver<FeedEvent> {
    let (send, receive) = mpsc::channel(64);
    tokio::spawn(run(gateway.client(), Mode::Feed, Duration::from_millis(200), send));
    receive
}

async fn until<T>(
    events: &mut mpsc::Receiver<FeedEvent>,
    what: &str,
    mut take: impl FnMut(&FeedEvent) -> Option<T>,
) -> T {
    let mut seen = Vec::new();
    let look = async {
        loop {
            let event = events.recv().await.expect("the feed goes on");
            if let Some(found) = take(&event) {
                return found;
            }
            seen.push(event);
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(20), look).await.ok();
    found.unwrap_or_else(|| panic!("no {what}; seen: {seen:?}"))
}

async fn feed(era: Era) {
    let mut gateway = Gateway::start(era, "feed", false);
    let mut events = follow(&gateway);
    let main = until(&mut events, "up", |event| match event {
        FeedEvent::Up { main, netns, .. } => Some((*main, *netns)),
        _ => None,
    })
    .await;
    assert_eq!(main.0.pid, gateway.server_pid());
    assert_ne!(main.1, process::own_netns().unwrap().0);
    until(&mut events, "empty list", |event| (*event == FeedEvent::List(Vec::new())).then_some(())).await;

    let cookie = gateway.log_in("alice");
    gateway.connect(&cookie);
    let told = until(&mut events, "connect event", |event| match event {
        FeedEvent::Connected(observed) => Some(observed.clone()),
        _ => None,
    })
    .await;
    let live = session(&gateway, true).await;
    assert_eq!((told.id, told.safe_id), (live.id, live.safe_id));
    assert!(gateway.client().disconnect_id(live.id).await.unwrap());
    let (observed, reason) = until(&mut events, "disconnect event", |event| match event {
        FeedEvent::Disconnected { observed, reason, .. } => Some((observed.clone(), *reason)),
        FeedEvent::Mode(FeedState::Polling { why }) => panic!("nobody else has the feed: {why}"),
        _ => None,
    })
    .await;
    assert_eq!((observed.id, reason), (live.id, 3));

    // a refused client is told of, and then is in no list
    gateway.touch("refuse");
    gateway.connect(&cookie);
    let refused = until(&mut events, "connect event", |event| match event {
        FeedEvent::Connected(observed) => Some(observed.id),
        _ => None,
    })
    .await;
    assert_ne!(refused, live.id);
    until(&mut events, "list without it", |event| (*event == FeedEvent::List(Vec::new())).then_some(()))
        .await;
}

async fn second_listener(era: Era) {
    let mut gateway = Gateway::start(era, "second", false);
    let mut other = UnixStream::connect(gateway.path("occtl")).unwrap();
    other.write_all(&[11, 0, 0, 0, 0]).unwrap();
    other.read_exact(&mut [0; 5]).unwrap();
    let mut drained = other.try_clone().unwrap();
    let drain = std::thread::spawn(move || std::io::copy(&mut drained, &mut std::io::sink()));

    let mut events = follow(&gateway);
    until(&mut events, "up", |event| matches!(event, FeedEvent::Up { .. }).then_some(())).await;
    let cookie = gateway.log_in("alice");
    gateway.connect(&cookie);
    until(&mut events, "list with the session", |event| match event {
        FeedEvent::List(list) if !list.is_empty() => Some(()),
        FeedEvent::Connected(_) => panic!("the other has the feed"),
        _ => None,
    })
    .await;
    until(&mut events, "polling", |event| {
        matches!(event, FeedEvent::Mode(FeedState::Polling { .. })).then_some(())
    })
    .await;
    other.shutdown(std::net::Shutdown::Both).unwrap();
    drain.join().unwrap().unwrap();
    drop(other);
    // the next look takes the feed, and the next event proves it: there has to be one after that look, whenever it is
    let client = gateway.client();
    let again = async {
        loop {
            if !client.disconnect_user("alice").await.unwrap() {
                gateway.connect(&cookie);
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    tokio::select! {
        () = until(&mut events, "live again", |event| {
            (*event == FeedEvent::Mode(FeedState::Live)).then_some(())
        }) => {}
        () = again => {}
    }
    until(&mut events, "event", |event| {
        matches!(event, FeedEvent::Disconnected { .. } | FeedEvent::Connected(_)).then_some(())
    })
    .await;
}

async fn restart(era: Era) {
    let mut gateway = Gateway::start(era, "restart", false);
    let mut events = follow(&gateway);
    let up = |event: &FeedEvent| match event {
        FeedEvent::Up { main, .. } => Some(*main),
        _ => None,
    };
    let first = until(&mut events, "up", up).await;
    gateway.stop_server();
    until(&mut events, "down", |event| matches!(event, FeedEvent::Down { .. }).then_some(())).await;
    until(&mut events, "off", |event| (*event == FeedEvent::Mode(FeedState::Off)).then_some(())).await;
    gateway.run_server();
    let second = until(&mut events, "up again", up).await;
    assert_ne!(first, second);
    assert_eq!(second.pid, gateway.server_pid());
    until(&mut events, "list", |event| matches!(event, FeedEvent::List(_)).then_some(())).await;
}

/// R1 and R3 in one gateway: a hung worker goes with both its sockets, its neighbour keeps both.
async fn sockets(era: Era) {
    let mut gateway = Gateway::start(era, "sockets", false);
    let client = gateway.client();
    for user in ["alice", "bob"] {
        let cookie = gateway.log_in(user);
        gateway.connect(&cookie);
    }
    let mut workers = Vec::new();
    for user in ["alice", "bob"] {
        let id = soon("the session", async || {
            let listing = client.list().await.unwrap();
            let found = listing.sessions.into_iter().find(|session| session.user == user)?;
            (!listing.in_admission.contains(&found.id)).then_some(found.id)
        })
        .await;
        let worker = client.worker(id).await.unwrap();
        let both = soon("TLS and DTLS", async || {
            let found = connected_sockets(&worker).unwrap();
            (found.len() == 2).then_some(found)
        })
        .await;
        let protocols: Vec<_> = both.iter().map(|socket| socket.flow.protocol()).collect();
        assert!(protocols.contains(&Protocol::Tcp) && protocols.contains(&Protocol::Udp), "{both:?}");
        assert!(both.iter().all(|socket| socket.flow.client().ip().to_string() == "192.0.2.2"));
        assert!(both.iter().all(|socket| socket.netns == process::netns_of(worker.process().pid).unwrap().0));
        workers.push((worker, both));
    }
    let (hung, its) = &workers[0];
    let pid = nix::unistd::Pid::from_raw(hung.process().pid);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGSTOP).unwrap();
    let settings = EndSettings {
        head_start: Duration::from_millis(30),
        method: Method::Auto,
        kill_after: Duration::from_millis(100),
    };
    let start = std::time::Instant::now();
    let ended = end_worker(hung, settings).await;
    assert!(ended.is_clean() && ended.killed && ended.destroyed.len() == 2, "{ended:?}");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    for socket in its {
        assert_eq!(enforcer::sockets::destroy(socket).unwrap(), enforcer::sockets::Outcome::AlreadyGone);
    }
    let (neighbour, its) = &workers[1];
    let still = connected_sockets(neighbour).unwrap();
    assert!(its.iter().all(|socket| still.iter().any(|other| other.cookie == socket.cookie)), "{still:?}");

    // one that leaves when it is asked to is not killed
    let id = client.list().await.unwrap().sessions.iter().find(|session| session.user == "bob").unwrap().id;
    assert!(client.disconnect_id(id).await.unwrap());
    let ended = end_worker(neighbour, EndSettings { head_start: Duration::from_secs(5), ..settings }).await;
    assert!(ended.exited_by_itself && !ended.killed && ended.is_clean(), "{ended:?}");
}

/// ocserv in a container: its ids are not our pids.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pid_namespace_of_its_own() {
    let mut gateway = Gateway::start(Era::Host, "pids", true);
    let client = gateway.client();
    let main = client.peer().await.unwrap();
    assert_eq!(client.status().await.unwrap().main_pid, 1);
    assert_ne!(main.pid, 1);
    let cookie = gateway.log_in("alice");
    gateway.connect(&cookie);
    let live = session(&gateway, true).await;
    let worker = client.worker(live.id).await.unwrap();
    assert_ne!(worker.process().pid, live.id);
    assert_eq!(process::parent(worker.process().pid).unwrap(), main.pid);
    assert_eq!(process::tun_of(&worker).unwrap(), live.device);
    assert!(client.disconnect_id(live.id).await.unwrap());
    worker.exited().await.unwrap();
}
