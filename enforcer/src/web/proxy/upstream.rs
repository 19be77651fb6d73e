//! Connections to origins: HTTP/1.1, one request at a time, so that the socket of each request is known.

mod connect;
mod stream;

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::http::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::task::JoinHandle;

use super::body::{Idle, RequestBody};
use super::clock;
use super::lock;
use super::register::Flight;
use super::socket::Wire;

pub(super) use connect::connect;
pub(super) use stream::Stream;

type Connection = http1::Connection<TokioIo<Stream>, RequestBody>;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// The session was ended.
    Ended,
    /// The origin says nothing.
    TimedOut,
    /// It cannot be reached, or what it says is no HTTP, or it hung up.
    Broken(String),
    /// It hung up without a word, on a connection that had waited: the request may be tried once more. Given back if
    /// not a byte of it was sent.
    Stale(Option<Box<Request<RequestBody>>>),
}

/// One connection.
#[derive(Debug)]
pub(super) struct Line {
    sender: http1::SendRequest<RequestBody>,
    driver: Driver,
    wire: Arc<Wire>,
    /// Since when it waits.
    idle: Instant,
    /// It has carried a request before.
    used: bool,
}

/// Who reads and writes.
#[derive(Debug)]
enum Driver {
    /// Whoever waits for the answer.
    Inline(Box<Connection>),
    /// A task: the answer is there, and the request's body is still on its way.
    Task(#[allow(dead_code, reason = "it ends the task when it is dropped")] Apart),
    Gone,
}

#[derive(Debug)]
struct Apart(JoinHandle<()>);

impl Drop for Apart {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Line {
    pub(super) fn wire(&self) -> &Arc<Wire> {
        &self.wire
    }

    /// Reads and writes what is possible. True: something may have come of it.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) -> bool {
        let Driver::Inline(connection) = &mut self.driver else { return false };
        if connection.poll_without_shutdown(cx).is_ready() {
            self.driver = Driver::Gone;
        }
        true
    }

    /// Sends a request and waits for the head of its answer.
    pub(super) async fn ask(
        &mut self,
        request: Request<RequestBody>,
        flight: &Flight,
        time: Duration,
    ) -> Result<Response<Incoming>, Failure> {
        self.wire.hears_nothing();
        let mut answer = pin!(self.sender.try_send_request(request));
        let mut idle = Idle::new(time);
        let answer = poll_fn(|cx| {
            if flight.is_ended() {
                return Poll::Ready(Err(Failure::Ended));
            }
            let over = match &mut self.driver {
                Driver::Inline(connection) => connection.poll_without_shutdown(cx).is_ready(),
                _ => true,
            };
            if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
                return Poll::Ready(Ok(answer));
            }
            if over {
                // what waits for the answer is told when the connection is dropped
                self.driver = Driver::Gone;
                return answer.as_mut().poll(cx).map(Ok);
            }
            if !flight.is_body_sent() && self.wire.blocked_for(clock::now()) < millis(time) {
                // it is the client's turn, who has a time of his own
                idle.moved();
            }
            if idle.poll(cx) { Poll::Ready(Err(Failure::TimedOut)) } else { Poll::Pending }
        })
        .await?;
        answer.map_err(|mut error| {
            let message = error.take_message();
            let unsent = message.is_some();
            if self.used && (unsent || !self.wire.has_heard()) {
                return Failure::Stale(message.map(Box::new));
            }
            Failure::Broken(error.into_error().to_string())
        })
    }

    /// The answer is there, the request's body is not: from now on somebody else has to drive.
    pub(super) fn drive_apart(&mut self) {
        if let Driver::Inline(mut connection) = std::mem::replace(&mut self.driver, Driver::Gone) {
            self.driver = Driver::Task(Apart(tokio::spawn(async move {
                let _ = poll_fn(|cx| connection.poll_without_shutdown(cx)).await;
            })));
        }
    }

    /// What is left of it after a switch to another protocol: the stream, and what was read already.
    pub(super) async fn switched(mut self) -> Option<(Stream, Bytes)> {
        let Driver::Inline(mut connection) = std::mem::replace(&mut self.driver, Driver::Gone) else {
            return None;
        };
        poll_fn(|cx| connection.poll_without_shutdown(cx)).await.ok()?;
        let parts = connection.into_parts();
        Some((parts.io.into_inner(), parts.read_buf))
    }

    /// Whether it can take another request, now.
    fn is_ready(&mut self, cx: &mut Context<'_>) -> bool {
        self.drive(cx) && matches!(self.driver, Driver::Inline(_)) && self.sender.is_ready()
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The connections that wait for their next request; one set for each thread.
#[derive(Debug)]
pub(super) struct Pools {
    /// By origin, the one that waits longest first.
    lines: Vec<Mutex<Vec<Line>>>,
    most: usize,
    time: Duration,
}

impl Pools {
    pub(super) fn new(origins: usize, most: usize, time: Duration) -> Self {
        Self { lines: (0..origins).map(|_| Mutex::default()).collect(), most, time }
    }

    /// One that waits and is still good.
    pub(super) async fn take(&self, origin: usize) -> Option<Line> {
        poll_fn(|cx| {
            let waiting = self.lines.get(origin);
            while let Some(mut line) = waiting.and_then(|waiting| lock(waiting).pop()) {
                if line.idle.elapsed() < self.time && line.is_ready(cx) {
                    return Poll::Ready(Some(line));
                }
            }
            Poll::Ready(None)
        })
        .await
    }

    /// A connection whose answer is complete. It is kept if it can carry another request, and if its session was not
    /// ended meanwhile: then it is not good for anybody.
    pub(super) fn put_back(&self, origin: usize, mut line: Line, flight: &Flight, cx: &mut Context<'_>) {
        // out of the register first: an end that comes later must not reset a socket that is somebody else's by then
        if !flight.detach() || !flight.is_body_sent() || !line.is_ready(cx) {
            return;
        }
        let Some(waiting) = self.lines.get(origin) else { return };
        line.idle = Instant::now();
        line.used = true;
        let mut waiting = lock(waiting);
        if waiting.len() < self.most {
            waiting.push(line);
        }
    }

    /// Drops those that have waited too long, and those that their origins have closed.
    pub(super) fn sweep(&self) {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for waiting in &self.lines {
            lock(waiting).retain_mut(|line| line.idle.elapsed() < self.time && line.is_ready(&mut cx));
        }
    }
}

/// Waits for something of a request, unless its session is ended meanwhile.
pub(super) async fn unless_ended<T>(flight: &Flight, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    poll_fn(|cx| {
        if flight.is_ended() {
            return Poll::Ready(None);
        }
        Pin::new(&mut work).poll(cx).map(Some)
    })
    .await
}
