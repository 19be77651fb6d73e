//! Who comes and goes: TOP where it can be had, else LIST again and again.
//!
//! Two traps make this more than a loop over a socket. **A TOP listener that does not read stops ocserv's main
//! process**: so a task of its own drains the socket and never waits for anybody. And **ocserv feeds one listener
//! only**: a second one (an administrator's `occtl`, or ours after his) gets one list, and then silence. So TOP is
//! sent again and again on the open connection: each time it answers with a fresh list, in order with the events,
//! and takes the feed if nobody has it (`method_top` in `src/main-ctl-unix.c`). A session in a list that no event
//! told of means that somebody else has it.

mod drain;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::client::{Capabilities, Client, ClientError, Connection};
use super::frame::{Command, encode};
use super::messages::Event;
use crate::process;
use crate::session::{Netns, Observed, Process};
use drain::{Item, Shared, drain};
use watch::Watch;

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
mod tests;
