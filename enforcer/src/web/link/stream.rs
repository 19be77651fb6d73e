//! The stream of ends: followed, begun anew when it breaks, and acknowledged.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;

use crate::control::{WebClient, api, connect_web, web_words};
use crate::session::WebKey;

use super::cache::Moment;
use super::{Cause, END_WITHIN, Shared};

/// How long it waits before it tries again: longer and longer.
const BACKOFF: std::ops::RangeInclusive<Duration> = Duration::from_millis(20)..=Duration::from_secs(1);
/// How many sessions are ended at the same time.
const AT_ONCE: usize = 256;
/// How many ends are acknowledged in one message.
const ACKNOWLEDGED: usize = web_words::MAX_USES;
/// More keys than there can be sessions: it is not our daemon.
const MAX_KEYS: usize = 2_000_000;

/// Follows the daemon for as long as the link is there.
pub(super) async fn follow(shared: Arc<Shared>) {
    let mut wait = *BACKOFF.start();
    loop {
        let began = Instant::now();
        let why = match once(&shared).await {
            Ok(never) => match never {},
            Err(why) => why,
        };
        // memory first: nobody may be answered from it who was told that the stream is broken
        shared.cache_mut().broke(Instant::now());
        let was_whole = shared.whole.send_replace(false);
        if was_whole {
            tracing::warn!("the enforcer's daemon tells of ends no more: {why}; nobody new is let in");
            if began.elapsed() > *BACKOFF.end() {
                wait = *BACKOFF.start();
            }
        } else {
            tracing::debug!("the enforcer's daemon was not reached: {why}");
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(*BACKOFF.end());
    }
}

/// One stream, to its end. Why it ended.
async fn once(shared: &Arc<Shared>) -> Result<std::convert::Infallible, String> {
    let bound = shared.settings.within;
    let late = |_| "it does not answer".to_owned();
    let socket = &shared.settings.socket;
    let connected = tokio::time::timeout(bound, connect_web(socket)).await.map_err(late)?;
    let mut client = connected.map_err(|error| format!("{}: {error}", socket.display()))?;
    *shared.client() = Some(client.clone());
    let stream = tokio::time::timeout(bound, client.watch(api::WebWatch {})).await.map_err(late)?;
    let mut stream = stream.map_err(|status| status.message().to_owned())?.into_inner();
    let (alive, watch, moment) = list(&mut stream, bound).await?;
    let missed = shared.cache_mut().listed(&alive, moment);
    drop(alive);
    shared.whole.send_replace(true);
    tracing::info!("the enforcer's daemon tells of ends");
    // not bounded here: it holds no more than there are sessions, and what is heard must never wait for what is closed
    let (ends, told) = mpsc::unbounded_channel();
    // it ends with this stream, whose `ends` it reads to the last
    tokio::spawn(acknowledge(Arc::clone(shared), client, watch, missed, told));
    Err(hear(shared, &mut stream, &ends).await)
}

/// All that is alive, who we are to the daemon, and as of when.
async fn list(
    stream: &mut Streaming<api::WebNews>,
    bound: Duration,
) -> Result<(HashSet<WebKey>, u64, Moment), String> {
    let mut alive = HashSet::new();
    loop {
        let next = tokio::time::timeout(bound, stream.message()).await;
        let next = next.map_err(|_| "it does not tell what is alive".to_owned())?;
        let news = next.map_err(|status| status.message().to_owned())?.and_then(|news| news.news);
        let Some(api::web_news::News::List(list)) = news else {
            return Err("it does not begin with what is alive: is it of another version?".into());
        };
        for key in &list.keys {
            alive.insert(read(key)?);
        }
        if alive.len() > MAX_KEYS {
            return Err(format!("it tells of more than {MAX_KEYS} sessions"));
        }
        if let (true, Some(moment)) = (list.complete, list.moment) {
            return Ok((alive, list.watch, Moment { run: moment.run, ends: moment.ends }));
        }
    }
}

fn read(key: &[u8]) -> Result<WebKey, String> {
    <[u8; 16]>::try_from(key)
        .map(WebKey::from_bytes)
        .map_err(|_| "it names a session by an odd key".to_owned())
}

/// Every end, until there is no more to be heard: why.
async fn hear(
    shared: &Shared,
    stream: &mut Streaming<api::WebNews>,
    ends: &mpsc::UnboundedSender<(WebKey, Cause)>,
) -> String {
    loop {
        let news = tokio::select! {
            news = stream.message() => news,
            // what is acknowledged no more has to begin anew
            () = ends.closed() => return "it takes no acknowledgement".into(),
        };
        let ended = match news {
            Ok(Some(api::WebNews { news: Some(api::web_news::News::Ended(ended)) })) => ended,
            Ok(Some(_)) => return "it tells something else than ends: is it of another version?".into(),
            Ok(None) => return "it has closed the stream".into(),
            Err(status) => return status.message().to_owned(),
        };
        let key = match read(&ended.key) {
            Ok(key) => key,
            Err(why) => return why,
        };
        // out of memory first: whoever asks from here on is told no
        if !shared.cache_mut().ended(&key, ended.ends) {
            return "an end was lost on the way".into();
        }
        if ends.send((key, Cause::of(ended.cause()))).is_err() {
            return "it takes no acknowledgement".into();
        }
    }
}

/// Ends what is told, and says so. Ends itself when nobody is told any more, or the daemon does not take it.
async fn acknowledge(
    shared: Arc<Shared>,
    mut client: WebClient,
    watch: u64,
    missed: Vec<WebKey>,
    told: mpsc::UnboundedReceiver<(WebKey, Cause)>,
) {
    let mut listing = Listing { left: missed.len(), all: true };
    if missed.is_empty() && !say(&shared, &mut client, watch, Vec::new(), true).await {
        return;
    }
    let missed = futures::stream::iter(missed).map(|key| (key, Cause::Missed));
    // whoever hangs among those that were missed does not hold up those that are told now
    let ended = missed.chain(UnboundedReceiverStream::new(told)).map(|(key, cause)| end(&shared, key, cause));
    let mut ended = std::pin::pin!(ended.buffer_unordered(AT_ONCE).ready_chunks(ACKNOWLEDGED));
    while let Some(some) = ended.next().await {
        let is_listed = listing.is_done_with(&some);
        let closed: Vec<(WebKey, u64)> =
            some.into_iter().filter_map(|(key, _, sockets)| Some((key, sockets?))).collect();
        shared.cache_mut().closed(closed.iter().map(|(key, _)| key));
        if !say(&shared, &mut client, watch, closed, is_listed).await {
            return;
        }
    }
}

/// How far what was missed is gone through.
struct Listing {
    left: usize,
    /// All of it could be closed.
    all: bool,
}

impl Listing {
    /// True once, with the last of it; and never if some could not be closed: nothing is called done that is not.
    fn is_done_with(&mut self, some: &[(WebKey, Cause, Option<u64>)]) -> bool {
        let before = self.left;
        for (_, _, sockets) in some.iter().filter(|(_, cause, _)| *cause == Cause::Missed) {
            self.left = self.left.saturating_sub(1);
            self.all &= sockets.is_some();
        }
        before > 0 && self.left == 0 && self.all
    }
}

/// How many sockets of it were closed; `None`: that took too long, and is not acknowledged.
async fn end(shared: &Shared, key: WebKey, cause: Cause) -> (WebKey, Cause, Option<u64>) {
    let sockets = tokio::time::timeout(END_WITHIN, (shared.on_end)(key, cause)).await.ok();
    if sockets.is_none() {
        tracing::error!(%key, "the connections of a session that is over could not be closed in time");
    }
    (key, cause, sockets)
}

async fn say(
    shared: &Shared,
    client: &mut WebClient,
    watch: u64,
    closed: Vec<(WebKey, u64)>,
    listed: bool,
) -> bool {
    let closed = closed
        .into_iter()
        .map(|(key, sockets)| api::WebClosed { key: key.as_bytes().to_vec(), sockets })
        .collect();
    let said = client.acknowledge(api::WebAcknowledged { watch, closed, listed });
    matches!(tokio::time::timeout(shared.settings.within, said).await, Ok(Ok(_)))
}
