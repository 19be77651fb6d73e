//! The stream of ends: followed, begun anew when it breaks, and acknowledged.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;

use crate::control::{WebClient, api, connect_web};
use crate::session::WebKey;

use super::cache::Moment;
use super::{Cause, END_WITHIN, Shared};

/// How long it waits before it tries again: longer and longer.
const BACKOFF: std::ops::RangeInclusive<Duration> = Duration::from_millis(20)..=Duration::from_secs(1);
/// How many sessions are ended at the same time.
const AT_ONCE: usize = 256;
/// How many ends are acknowledged in one message.
const ACKNOWLEDGED: usize = 4_096;
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
        let was_whole = shared.whole.send_replace(false);
        shared.cache_mut().broke(Instant::now());
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
    let missed = {
        let mut cache = shared.cache_mut();
        cache.listed(&alive, moment)
    };
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
    let end = |(key, cause): (WebKey, Cause)| {
        let on_end = (shared.on_end)(key, cause);
        async move {
            let sockets = tokio::time::timeout(END_WITHIN, on_end).await;
            // one that hangs is not acknowledged
            sockets.map_or_else(
                |_| {
                    tracing::error!(%key, "the connections of a session that is over could not be closed in time");
                    None
                },
                |sockets| Some(api::WebClosed { key: key.as_bytes().to_vec(), sockets }),
            )
        }
    };
    let first = futures::stream::iter(missed.into_iter().map(|key| (key, Cause::Missed)));
    let first: Vec<Option<api::WebClosed>> = first.map(end).buffer_unordered(AT_ONCE).collect().await;
    let mut closed: Vec<api::WebClosed> = Vec::new();
    let all = first.len();
    closed.extend(first.into_iter().flatten());
    forget(&shared, &closed);
    // nothing is called gone through that was not
    let is_all = closed.len() == all;
    let mut parts: Vec<Vec<api::WebClosed>> = closed.chunks(ACKNOWLEDGED).map(<[_]>::to_vec).collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        if !say(&shared, &mut client, api::WebAcknowledged { watch, closed: part, listed: false }).await {
            return;
        }
    }
    if !say(&shared, &mut client, api::WebAcknowledged { watch, closed: last, listed: is_all }).await {
        return;
    }
    let mut later =
        UnboundedReceiverStream::new(told).map(end).buffer_unordered(AT_ONCE).ready_chunks(ACKNOWLEDGED);
    while let Some(some) = later.next().await {
        let closed: Vec<api::WebClosed> = some.into_iter().flatten().collect();
        forget(&shared, &closed);
        if !say(&shared, &mut client, api::WebAcknowledged { watch, closed, listed: false }).await {
            return;
        }
    }
}

fn forget(shared: &Shared, closed: &[api::WebClosed]) {
    let keys: Vec<WebKey> = closed.iter().filter_map(|closed| read(&closed.key).ok()).collect();
    shared.cache_mut().closed(keys.iter());
}

async fn say(shared: &Shared, client: &mut WebClient, said: api::WebAcknowledged) -> bool {
    let said = tokio::time::timeout(shared.settings.within, client.acknowledge(said)).await;
    matches!(said, Ok(Ok(_)))
}
