//! Applications: one of plain HTTP that says what it sees, and one of WebSockets.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::http::{HeaderMap, Request, Response};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Body = BoxBody<Bytes, Failure>;

/// What it was asked.
#[derive(Debug, Clone)]
pub struct Seen {
    pub target: String,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

#[derive(Default)]
struct Book {
    seen: Mutex<Vec<Seen>>,
    connections: AtomicUsize,
    open: AtomicUsize,
}

pub struct Origin {
    pub address: SocketAddr,
    book: Arc<Book>,
    task: JoinHandle<()>,
}

impl Origin {
    pub async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let book = Arc::new(Book::default());
        let ours = Arc::clone(&book);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let book = Arc::clone(&ours);
                book.connections.fetch_add(1, Ordering::SeqCst);
                book.open.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let service = service_fn(|request| answer(Arc::clone(&book), request));
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                    book.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, book, task }
    }

    /// All requests so far that were read to their end.
    pub fn seen(&self) -> Vec<Seen> {
        self.book.seen.lock().unwrap().clone()
    }

    /// How many connections were made to it, ever.
    pub fn connections(&self) -> usize {
        self.book.connections.load(Ordering::SeqCst)
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        self.book.open.load(Ordering::SeqCst)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never: Infallible| match never {}).boxed()
}

/// Pieces for ever, one after another as they are taken, or one every few milliseconds.
fn endless(piece: Bytes, pause: Option<Duration>) -> Body {
    let pieces = futures::stream::unfold(piece, move |piece| async move {
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
        Some((Ok(Frame::data(piece.clone())), piece))
    });
    BodyExt::boxed(StreamBody::new(Box::pin(pieces) as Pieces))
}

type Pieces = std::pin::Pin<Box<dyn futures::Stream<Item = Result<Frame<Bytes>, Failure>> + Send + Sync>>;

async fn answer(book: Arc<Book>, request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let last = path.rsplit('/').next().unwrap_or_default().to_owned();
    let note = |body: Vec<u8>| {
        book.seen.lock().unwrap().push(Seen {
            target: parts.uri.to_string(),
            headers: parts.headers.clone(),
            body,
        });
    };
    if last == "mirror" {
        // piece by piece, while it comes
        note(Vec::new());
        let body = body.map_err(Failure::from);
        return Ok(Response::builder().header("trailer", "x-sum").body(BodyExt::boxed(body)).unwrap());
    }
    if last == "early" {
        note(Vec::new());
        return Ok(Response::builder().status(413).body(full("too much")).unwrap());
    }
    let whole = body.collect().await?;
    let trailers = whole.trailers().cloned();
    let whole = whole.to_bytes().to_vec();
    note(whole.clone());
    let answer = Response::builder();
    Ok(match last.as_str() {
        "events" => answer
            .header("content-type", "text/event-stream")
            .body(endless(Bytes::from_static(b"data: x\n\n"), Some(Duration::from_millis(5)))),
        "download" => answer.body(endless(Bytes::from(vec![7; 16 << 10]), None)),
        "big" => answer.body(full(vec![7; 3 << 20])),
        "medium" => answer.body(full(vec![7; 20 << 10])),
        "silent" => std::future::pending().await,
        "hop" => answer
            .header("connection", "keep-alive, x-secret")
            .header("x-secret", "1")
            .header("keep-alive", "timeout=5")
            .header("x-kept", "2")
            .body(full("hop")),
        "close" => answer.header("connection", "close").body(full("bye")),
        "empty" => answer.status(204).body(full("")),
        "switch" => answer.status(101).header("upgrade", "other").body(full("")),
        "trailers" => {
            let mut fields = HeaderMap::new();
            fields.insert("x-sum", "42".parse().unwrap());
            let frames = [Ok(Frame::data(Bytes::from_static(b"body"))), Ok(Frame::trailers(fields))];
            let body: Pieces = Box::pin(futures::stream::iter(frames));
            answer.header("trailer", "x-sum").body(BodyExt::boxed(StreamBody::new(body)))
        }
        "sum" => answer.body(full(format!("{} {:?}", whole.len(), trailers))),
        _ => answer.header("x-path", path).body(full("hello")),
    }
    .unwrap())
}

/// Says back what it is told, and how many listen.
pub struct WebSockets {
    pub address: SocketAddr,
    open: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl WebSockets {
    pub async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let open = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&open);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let open = Arc::clone(&count);
                tokio::spawn(async move {
                    let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
                    open.fetch_add(1, Ordering::SeqCst);
                    while let Some(Ok(message)) = socket.next().await {
                        if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                            break;
                        }
                    }
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, open, task }
    }

    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

impl Drop for WebSockets {
    fn drop(&mut self) {
        self.task.abort();
    }
}
