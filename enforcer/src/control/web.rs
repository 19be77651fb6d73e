//! The web gateway's service: each call becomes a [`Call`] for the daemon's loop, and the loop's news a stream.
//!
//! Whoever is at this socket can make, check and end web sessions. What is asked is read in `web_words`.

use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tonic::{Request as Rpc, Response, Status};

use super::api;
use super::incoming::incoming;
use super::serve::{Call, Front, Parts, Reply, Request, caller, mixed_up};
use crate::session::WebKey;

/// How many keys one message of a list has: 74 KB.
const KEYS: usize = 4_096;
/// How many may be connected: a gateway has one connection, and its successor another.
const CONNECTIONS: usize = 16;
/// How many requests are read at once: of one connection, of all; and how many may then wait for the loop. One that was
/// given up by whoever asked waits there still.
const CALLS: usize = 64;
const CALLS_OF_ALL: usize = 128;
pub const WEB_QUEUE: usize = 64;
/// The largest message that is read, in bytes: once read it may take sixteen times as much. And how long it may take to come
/// and to be answered.
const MESSAGE: usize = 64 * 1_024;
const WITHIN: Duration = Duration::from_secs(10);

/// A request as it came, still unread.
#[derive(Debug)]
pub enum WebRequest {
    Create(api::WebCreate),
    AddToken(api::WebAddToken),
    Rewrap(api::WebRewrap),
    Check(api::WebToken),
    Seen(api::WebSeen),
    End(api::WebEnd),
    Watch,
    Acknowledge(api::WebAcknowledged),
}

#[derive(Debug)]
pub enum WebReply {
    Alive(Box<api::WebAlive>),
    Done,
    /// The news, and what is dropped together with the stream.
    Watch(mpsc::Receiver<News>, oneshot::Sender<()>),
}

/// What a watch is told. When the sender is dropped the stream ends with an error.
#[derive(Debug)]
pub enum News {
    /// All that is alive: the first thing that is told.
    List {
        watch: u64,
        keys: Vec<WebKey>,
        moment: api::WebMoment,
    },
    Ended(api::WebEnded),
}

/// Serves the gateway's socket, to `uid` and root, until the listener fails. `calls`: a way to the loop of its own, with room
/// for [`WEB_QUEUE`], so that nobody else waits behind what a gateway asks.
pub async fn serve_web(
    listener: UnixListener,
    uid: u32,
    calls: mpsc::Sender<Call>,
) -> Result<(), tonic::transport::Error> {
    let service = api::web_server::WebServer::new(Front { calls }).max_decoding_message_size(MESSAGE);
    tonic::transport::Server::builder()
        .concurrency_limit_per_connection(CALLS)
        .timeout(WITHIN)
        .layer(tower::limit::GlobalConcurrencyLimitLayer::new(CALLS_OF_ALL))
        .add_service(service)
        .serve_with_incoming(incoming(listener, Some(uid), CONNECTIONS))
        .await
}

impl Front {
    async fn web<T>(&self, rpc: Rpc<T>, wrap: impl FnOnce(T) -> WebRequest) -> Result<WebReply, Status> {
        let caller = caller(&rpc);
        match self.call(caller, Request::Web(wrap(rpc.into_inner()))).await? {
            Reply::Web(reply) => Ok(reply),
            _ => Err(mixed_up()),
        }
    }

    async fn alive<T>(
        &self,
        rpc: Rpc<T>,
        wrap: impl FnOnce(T) -> WebRequest,
    ) -> Result<Response<api::WebAlive>, Status> {
        match self.web(rpc, wrap).await? {
            WebReply::Alive(alive) => Ok(Response::new(*alive)),
            _ => Err(mixed_up()),
        }
    }

    async fn done<T>(
        &self,
        rpc: Rpc<T>,
        wrap: impl FnOnce(T) -> WebRequest,
    ) -> Result<Response<api::WebDone>, Status> {
        match self.web(rpc, wrap).await? {
            WebReply::Done => Ok(Response::new(api::WebDone {})),
            _ => Err(mixed_up()),
        }
    }
}

#[tonic::async_trait]
impl api::web_server::Web for Front {
    async fn create(&self, rpc: Rpc<api::WebCreate>) -> Result<Response<api::WebAlive>, Status> {
        self.alive(rpc, WebRequest::Create).await
    }

    async fn add_token(&self, rpc: Rpc<api::WebAddToken>) -> Result<Response<api::WebAlive>, Status> {
        self.alive(rpc, WebRequest::AddToken).await
    }

    async fn rewrap(&self, rpc: Rpc<api::WebRewrap>) -> Result<Response<api::WebAlive>, Status> {
        self.alive(rpc, WebRequest::Rewrap).await
    }

    async fn check(&self, rpc: Rpc<api::WebToken>) -> Result<Response<api::WebAlive>, Status> {
        self.alive(rpc, WebRequest::Check).await
    }

    async fn seen(&self, rpc: Rpc<api::WebSeen>) -> Result<Response<api::WebDone>, Status> {
        self.done(rpc, WebRequest::Seen).await
    }

    async fn end(&self, rpc: Rpc<api::WebEnd>) -> Result<Response<api::WebDone>, Status> {
        self.done(rpc, WebRequest::End).await
    }

    async fn acknowledge(&self, rpc: Rpc<api::WebAcknowledged>) -> Result<Response<api::WebDone>, Status> {
        self.done(rpc, WebRequest::Acknowledge).await
    }

    type WatchStream = Parts<api::WebNews>;

    async fn watch(&self, rpc: Rpc<api::WebWatch>) -> Result<Response<Self::WatchStream>, Status> {
        let WebReply::Watch(news, reading) = self.web(rpc, |_| WebRequest::Watch).await? else {
            return Err(mixed_up());
        };
        let reading = Reading { news, list: None, broken: false, _reading: reading };
        Ok(Response::new(Box::pin(futures::stream::unfold(reading, Reading::next))))
    }
}

/// How far a watch has been told.
struct Reading {
    news: mpsc::Receiver<News>,
    /// What is left of the list.
    list: Option<(u64, std::vec::IntoIter<WebKey>, api::WebMoment)>,
    broken: bool,
    _reading: oneshot::Sender<()>,
}

impl Reading {
    async fn next(mut self) -> Option<(Result<api::WebNews, Status>, Self)> {
        if self.broken {
            return None;
        }
        if self.list.is_none() {
            match self.news.recv().await {
                Some(News::List { watch, keys, moment }) => {
                    self.list = Some((watch, keys.into_iter(), moment));
                }
                Some(News::Ended(ended)) => {
                    return Some((Ok(news(api::web_news::News::Ended(ended))), self));
                }
                None => {
                    self.broken = true;
                    let why =
                        "there is no more news: the daemon stops, or did not hear what became of the last";
                    return Some((Err(Status::unavailable(why)), self));
                }
            }
        }
        let (watch, keys, moment) = self.list.as_mut()?;
        let some: Vec<Vec<u8>> = keys.by_ref().take(KEYS).map(|key| key.as_bytes().to_vec()).collect();
        let complete = keys.len() == 0;
        let list = api::WebList { keys: some, complete, watch: *watch, moment: Some(*moment) };
        if complete {
            self.list = None;
        }
        Some((Ok(news(api::web_news::News::List(list))), self))
    }
}

fn news(news: api::web_news::News) -> api::WebNews {
    api::WebNews { news: Some(news) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::connect_web;

    /// R7: a message that is too long is refused before it is read, and whoever asks, and gives up, and asks again, has so
    /// many places before the loop and no more.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn r7_what_waits_for_the_loop_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web");
        let listener = UnixListener::bind(&path).unwrap();
        let (calls, mut called) = mpsc::channel(WEB_QUEUE);
        let server = tokio::spawn(serve_web(listener, nix::unistd::geteuid().as_raw(), calls));
        let mut client = connect_web(&path).await.unwrap();
        let use_of = |bytes: u8| api::WebUse { key: vec![bytes; 16], ago_ms: u64::MAX };
        let many = |count| api::WebSeen { uses: vec![use_of(1); count] };
        let refused = client.seen(many(4_096)).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::OutOfRange, "{refused}");
        // the loop takes none of these
        for _ in 0..4 {
            let asking: Vec<_> = (0..100)
                .map(|_| {
                    let mut client = client.clone();
                    let request = many(super::super::web_words::MAX_USES);
                    tokio::spawn(async move { client.seen(request).await })
                })
                .collect();
            let full = async {
                while called.len() < WEB_QUEUE {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), full).await.expect("they come");
            asking.iter().for_each(tokio::task::JoinHandle::abort);
        }
        assert_eq!(called.len(), WEB_QUEUE);
        // and once it does, it goes on
        let answered = tokio::spawn(async move {
            while let Some(Call { reply, .. }) = called.recv().await {
                let _ = reply.send(Ok(Reply::Web(WebReply::Done)));
            }
        });
        client.seen(many(1)).await.unwrap();
        server.abort();
        answered.abort();
    }
}
