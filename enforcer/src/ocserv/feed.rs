//! Who comes and goes: TOP where it can be had, else LIST again and again.
//!
//! Two traps make this more than a loop over a socket. **A TOP listener that does not read stops ocserv's main
//! process**: so a task of its own drains the socket and never waits for anybody. And **ocserv feeds one listener
//! only**: a second one (an administrator's `occtl`, or ours after his) gets one list, and then silence. So TOP is
//! sent again and again on the open connection: each time it answers with a fresh list, in order with the events,
//! and takes the feed if nobody has it (`method_top` in `src/main-ctl-unix.c`). A session in a list that no event
//! told of means that somebody else has it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::client::{Capabilities, Client, ClientError, Connection};
use super::frame::{Command, FrameReader, TOP_EVENT, encode};
use super::messages::{self, Event, Listing};
use crate::process;
use crate::session::{Netns, Observed, Process, SafeId};

/// How many events may wait for a slow consumer. Beyond that they are dropped, and one fresh list says the same.
const BUFFERED: usize = 4096;
/// The next look while something is open: a session no event told of, an admission, a feed that is not proven.
const SOON: Duration = Duration::from_secs(1);
/// ... and otherwise.
const LATER: Duration = Duration::from_secs(10);
/// A look may take a fiftieth of ocserv's time at most.
const SHARE: u32 = 50;
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// So many times may a connection end at once before that is called an ocserv that does not answer.
const SHORT: u32 = 3;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// TOP, and LIST only while somebody else has it.
    Feed,
    /// LIST only: never takes the feed away from an administrator's `occtl`.
    Poll,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FeedState {
    /// Events come as they happen.
    Live,
    /// Changes are seen by listing.
    Polling { why: String },
    /// ocserv does not answer.
    Off,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FeedEvent {
    /// An ocserv answers. A complete `List` follows.
    Up {
        main: Process,
        capabilities: Capabilities,
        netns: Netns,
    },
    /// It does not any more, or it is about to be another process.
    Down {
        why: String,
    },
    /// Everybody who is there: replaces what was told before.
    List(Vec<Observed>),
    /// A cookie was accepted; the connect-script runs next, and may yet refuse. A refusal shows only in a later list.
    Connected(Observed),
    Disconnected {
        observed: Observed,
        reason: u32,
        reason_text: String,
    },
    Mode(FeedState),
}

/// The consumer is gone.
struct Unwanted;

struct Out {
    events: mpsc::Sender<FeedEvent>,
    state: Option<FeedState>,
}

impl Out {
    async fn send(&mut self, event: FeedEvent) -> Result<(), Unwanted> {
        self.events.send(event).await.map_err(|_| Unwanted)
    }

    async fn state(&mut self, state: FeedState) -> Result<(), Unwanted> {
        if self.state.as_ref() == Some(&state) {
            return Ok(());
        }
        self.state = Some(state.clone());
        self.send(FeedEvent::Mode(state)).await
    }

    async fn down(&mut self, why: String) -> Result<(), Unwanted> {
        self.send(FeedEvent::Down { why }).await?;
        self.state(FeedState::Off).await
    }
}

/// Tells of one ocserv's sessions, for ever: a task of its own for each server. Ends when nobody receives any more.
pub async fn run(client: Client, mode: Mode, poll_every: Duration, events: mpsc::Sender<FeedEvent>) {
    let _ = follow(&client, mode, poll_every, Out { events, state: None }).await;
}

async fn follow(client: &Client, mode: Mode, poll_every: Duration, mut out: Out) -> Result<(), Unwanted> {
    let mut up: Option<Process> = None;
    let mut backoff = BACKOFF.0;
    let mut told_down = false;
    // connections that ended as soon as they were there
    let mut short = 0;
    loop {
        let why = match client.server().await {
            Err(error) => error.to_string(),
            Ok(server) => match process::netns_of(server.main.pid) {
                Err(error) => error.to_string(),
                Ok((netns, _)) => {
                    if let Some(old) = up.filter(|old| *old != server.main) {
                        out.down(format!(
                            "another ocserv answers: process {} in place of {}",
                            server.main.pid, old.pid
                        ))
                        .await?;
                        up = None;
                    }
                    if up.is_none() {
                        let capabilities = server.capabilities;
                        out.send(FeedEvent::Up { main: server.main, capabilities, netns }).await?;
                        up = Some(server.main);
                    }
                    let begun = Instant::now();
                    let end = match mode {
                        Mode::Feed => feed(client, server.main, poll_every, &mut out).await?,
                        Mode::Poll => poll(client, server.main, poll_every, &mut out).await?,
                    };
                    if begun.elapsed() > BACKOFF.1 {
                        backoff = BACKOFF.0;
                        short = 0;
                    }
                    short += 1;
                    tracing::warn!("the feed of ocserv ended: {end}");
                    // the same process may have closed the connection only: then this is no end of it
                    let closed_only =
                        process::is_alive(server.main) && !matches!(end, ClientError::TimedOut { .. });
                    if closed_only && short <= SHORT {
                        sleep(backoff).await;
                        backoff = (backoff * 2).min(BACKOFF.1);
                        continue;
                    }
                    end.to_string()
                }
            },
        };
        if up.take().is_some() || !told_down {
            out.down(why).await?;
            told_down = true;
        }
        if out.events.is_closed() {
            return Err(Unwanted);
        }
        sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

/// Until that ocserv does not answer any more.
async fn poll(
    client: &Client,
    main: Process,
    every: Duration,
    out: &mut Out,
) -> Result<ClientError, Unwanted> {
    out.state(FeedState::Polling { why: "configured".to_owned() }).await?;
    loop {
        match client.list_from().await {
            Err(error) => return Ok(error),
            Ok((listing, listener)) => {
                // a restart between two lists would else go unseen
                if listener.is_some_and(|pid| pid != main.pid) && !process::is_alive(main) {
                    return Ok(ClientError::Peer("another process listens".to_owned()));
                }
                if !process::is_alive(main) {
                    return Ok(ClientError::Peer(format!("process {} is gone", main.pid)));
                }
                out.send(FeedEvent::List(listing.sessions)).await?;
            }
        }
        sleep(every).await;
    }
}

/// What the reader has taken from the socket, and nobody has taken from it.
#[derive(Default)]
struct Buffer {
    items: VecDeque<Item>,
    /// Items were dropped: only a list counts next.
    overflowed: bool,
    /// Nothing comes any more.
    ended: Option<ClientError>,
}

enum Item {
    Event(Event),
    List(Listing),
}

impl Buffer {
    fn push(&mut self, item: Item) {
        match item {
            // a list says all that came before it; what was dropped is made up for
            Item::List(_) if self.overflowed => {
                self.overflowed = false;
                self.items.clear();
            }
            Item::List(_) => {
                // one list at most is kept: the newest
                self.items.retain(|item| matches!(item, Item::Event(_)));
            }
            Item::Event(_) if self.overflowed => return,
            Item::Event(_) if self.items.len() >= BUFFERED => {
                self.items.clear();
                self.overflowed = true;
                return;
            }
            Item::Event(_) => {}
        }
        self.items.push_back(item);
    }
}

#[derive(Default)]
struct Shared {
    buffer: Mutex<Buffer>,
    filled: Notify,
}

impl Shared {
    fn with<T>(&self, act: impl FnOnce(&mut Buffer) -> T) -> T {
        act(&mut self.buffer.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The task that drains the socket; it ends with its owner.
struct Drain(JoinHandle<()>);

impl Drop for Drain {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn drain<R>(mut reader: FrameReader<R>, shared: Arc<Shared>) -> Drain
where
    R: tokio::io::AsyncRead + Unpin + Send + 'static,
{
    Drain(tokio::spawn(async move {
        let command = Command::Top;
        let end = loop {
            let frame = match reader.next().await {
                Ok(Some(frame)) => frame,
                Ok(None) => break ClientError::NoReply(command),
                Err(source) => break ClientError::Frame { command, source },
            };
            let items = if frame.command == command.reply() {
                messages::listing(&frame.body).map(|listing| vec![Item::List(listing)])
            } else if frame.command == TOP_EVENT {
                messages::events(&frame.body).map(|events| events.into_iter().map(Item::Event).collect())
            } else {
                break ClientError::WrongReply { command, got: frame.command };
            };
            match items {
                Ok(items) => shared.with(|buffer| items.into_iter().for_each(|item| buffer.push(item))),
                Err(source) => break ClientError::Garbage { command, source },
            }
            shared.filled.notify_one();
        };
        shared.with(|buffer| buffer.ended = Some(end));
        shared.filled.notify_one();
    }))
}

type Known = HashMap<i32, Option<SafeId>>;

/// What is known of the feed on one connection. Pure: the clock is an argument.
struct Watch {
    known: Known,
    /// Sessions that a list showed and no event told of, since when.
    unknown: HashMap<i32, Instant>,
    /// Sessions that are not let in yet.
    in_admission: bool,
    /// The first list is what events go on from.
    listed: bool,
    /// An event came: the feed is ours.
    proven: bool,
    /// Somebody else has it.
    lost: bool,
}

impl Watch {
    fn new() -> Self {
        Self {
            known: Known::new(),
            unknown: HashMap::new(),
            in_admission: false,
            listed: false,
            proven: false,
            lost: false,
        }
    }

    fn event(&mut self, event: &Event) {
        self.proven = true;
        self.lost = false;
        match event {
            Event::Connected { observed } => {
                self.known.insert(observed.id, observed.safe_id);
                self.unknown.remove(&observed.id);
                self.in_admission = true;
            }
            Event::Disconnected { observed, .. } => {
                self.known.remove(&observed.id);
                self.unknown.remove(&observed.id);
            }
            Event::Other => {}
        }
    }

    /// Whether the list says something that was not told.
    fn list(&mut self, listing: &Listing, now: Instant) -> bool {
        let listed: Known = listing.sessions.iter().map(|session| (session.id, session.safe_id)).collect();
        let news = !self.listed || listed != self.known;
        if self.listed {
            for (id, safe_id) in &listed {
                if self.known.get(id) != Some(safe_id) {
                    self.unknown.entry(*id).or_insert(now);
                }
            }
        }
        self.unknown.retain(|id, _| listed.contains_key(id));
        if self.unknown.values().any(|since| now.duration_since(*since) >= SOON) {
            self.lost = true;
            self.proven = false;
            self.unknown.clear();
        }
        self.in_admission = !listing.in_admission.is_empty();
        self.known = listed;
        self.listed = true;
        news
    }

    /// When to list next.
    fn pause(&self, poll_every: Duration, took: Duration) -> Duration {
        let pause = if self.lost {
            poll_every
        } else if !self.proven || self.in_admission || !self.unknown.is_empty() {
            SOON
        } else {
            LATER
        };
        pause.max(took * SHARE)
    }
}

/// Until the connection ends.
async fn feed(
    client: &Client,
    main: Process,
    every: Duration,
    out: &mut Out,
) -> Result<ClientError, Unwanted> {
    let command = Command::Top;
    let Connection { reader, mut writer, .. } = match client.connect().await {
        Ok(connection) => connection,
        Err(error) => return Ok(error),
    };
    let request = match encode(command.number(), &[]) {
        Ok(request) => request,
        Err(source) => return Ok(ClientError::Frame { command, source }),
    };
    let shared = Arc::new(Shared::default());
    let _drain = drain(reader, Arc::clone(&shared));
    let mut watch = Watch::new();
    let mut took = Duration::ZERO;
    // when the list that is under way was asked for
    let mut asked: Option<Instant> = None;
    let mut next = Instant::now();
    loop {
        if asked.is_none() && Instant::now() >= next {
            match timeout(client.timeout(), writer.write_all(&request)).await {
                Err(_) => return Ok(ClientError::TimedOut { command, after: client.timeout() }),
                Ok(Err(error)) => return Ok(ClientError::Frame { command, source: error.into() }),
                Ok(Ok(())) => asked = Some(Instant::now()),
            }
        }
        let wake = asked.map_or(next, |since| since + client.timeout());
        tokio::select! {
            () = shared.filled.notified() => {}
            () = tokio::time::sleep_until(wake) => {}
            () = out.events.closed() => return Err(Unwanted),
        }
        loop {
            let (item, overflowed) = shared.with(|buffer| (buffer.items.pop_front(), buffer.overflowed));
            if overflowed && asked.is_none() {
                next = Instant::now();
            }
            match item {
                None => break,
                Some(Item::Event(event)) => {
                    watch.event(&event);
                    out.state(FeedState::Live).await?;
                    let soon = Instant::now() + watch.pause(every, took);
                    next = next.min(soon);
                    match event {
                        Event::Connected { observed } => out.send(FeedEvent::Connected(observed)).await?,
                        Event::Disconnected { observed, reason, reason_text } => {
                            out.send(FeedEvent::Disconnected { observed, reason, reason_text }).await?;
                        }
                        Event::Other => {}
                    }
                }
                Some(Item::List(listing)) => {
                    if let Some(since) = asked.take() {
                        took = since.elapsed();
                    }
                    let now = Instant::now();
                    let news = watch.list(&listing, now);
                    for odd in &listing.odd {
                        tracing::warn!(id = odd.id, "ocserv lists {}", odd.why);
                    }
                    if news || watch.lost {
                        out.send(FeedEvent::List(listing.sessions)).await?;
                    }
                    out.state(if watch.lost {
                        FeedState::Polling {
                            why: "another listener has ocserv's feed (an `occtl show events`?)".to_owned(),
                        }
                    } else {
                        FeedState::Live
                    })
                    .await?;
                    next = now + watch.pause(every, took);
                }
            }
        }
        if let Some(end) = shared.with(|buffer| buffer.ended.take()) {
            return Ok(end);
        }
        if asked.is_some_and(|since| since.elapsed() >= client.timeout()) {
            return Ok(ClientError::TimedOut { command, after: client.timeout() });
        }
        if !process::is_alive(main) {
            return Ok(ClientError::NoReply(command));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(id: i32, byte: u8) -> Observed {
        Observed {
            id,
            user: "alice".into(),
            safe_id: Some(SafeId::from_bytes([byte; 20])),
            ..Default::default()
        }
    }

    fn listing(sessions: &[Observed]) -> Listing {
        Listing { sessions: sessions.to_vec(), ..Default::default() }
    }

    #[test]
    fn a_session_that_no_event_told_of_shows_that_somebody_else_has_the_feed() {
        let start = Instant::now();
        let every = Duration::from_millis(200);
        let mut watch = Watch::new();
        assert!(watch.list(&listing(&[session(1, 1)]), start));
        assert_eq!(watch.pause(every, Duration::ZERO), SOON);
        assert!(!watch.list(&listing(&[session(1, 1)]), start + SOON));
        assert!(!watch.lost);
        // one more, whose event may still be on its way
        let two = listing(&[session(1, 1), session(2, 2)]);
        assert!(watch.list(&two, start + SOON * 2));
        assert!(!watch.lost);
        watch.list(&two, start + SOON * 3);
        assert!(watch.lost);
        assert_eq!(watch.pause(every, Duration::ZERO), every);
        // an event: it is ours again
        watch.event(&Event::Disconnected { observed: session(2, 2), reason: 2, reason_text: String::new() });
        assert!(!watch.lost);
        assert_eq!(watch.pause(every, Duration::ZERO), LATER);
    }

    #[test]
    fn a_session_that_was_told_of_is_no_news_and_one_that_was_refused_is() {
        let start = Instant::now();
        let mut watch = Watch::new();
        watch.list(&listing(&[]), start);
        watch.event(&Event::Connected { observed: session(1, 1) });
        assert_eq!(watch.pause(SOON, Duration::ZERO), SOON, "it is in admission");
        assert!(!watch.list(&listing(&[session(1, 1)]), start + SOON));
        assert_eq!(watch.pause(SOON, Duration::ZERO), LATER);
        // it was refused: no event tells
        assert!(watch.list(&listing(&[]), start + LATER));
        assert!(!watch.lost);
    }

    #[test]
    fn a_slow_ocserv_is_asked_less_often() {
        let watch = Watch::new();
        assert_eq!(watch.pause(SOON, Duration::from_millis(100)), Duration::from_secs(5));
    }

    #[test]
    fn a_full_buffer_drops_events_until_the_next_list() {
        let mut buffer = Buffer::default();
        for id in 0..=BUFFERED as i32 {
            buffer.push(Item::Event(Event::Connected { observed: session(id, 1) }));
        }
        assert!(buffer.overflowed);
        assert!(buffer.items.is_empty());
        buffer.push(Item::Event(Event::Other));
        assert!(buffer.items.is_empty());
        buffer.push(Item::List(listing(&[session(7, 1)])));
        buffer.push(Item::Event(Event::Other));
        assert!(!buffer.overflowed);
        assert_eq!(buffer.items.len(), 2);
    }

    use super::super::messages::tests::info;
    use super::super::wire;
    use prost::Message as _;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::io::AsyncReadExt as _;
    use tokio::net::{UnixListener, UnixStream};

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
                        let me =
                            wire::StatusReply { main_pid: Some(std::process::id()), ..Default::default() };
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
}
