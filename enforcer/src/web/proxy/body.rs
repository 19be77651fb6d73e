//! The bodies that pass: a request's, with its limits; an answer's, with what has to be put back in order after it.

mod idle;
mod piece;
mod relay;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::HeaderMap;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};

use super::register::{Fault, Flight, Own};

pub(super) use idle::Idle;
pub(super) use piece::Piece;
pub(super) use relay::Relay;

/// Why a body does not come to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    #[error("the session has ended")]
    Ended,
    #[error("the body is longer than allowed")]
    TooLong,
    #[error("the body comes too slowly")]
    TooSlow,
    #[error("the body ends too early, or is malformed")]
    Broken,
}

/// What a client sends.
#[derive(Debug)]
pub(super) struct RequestBody {
    /// `None`: there is nothing (more).
    incoming: Option<Incoming>,
    flight: Arc<Flight>,
    /// Bytes that may still come.
    left: u64,
    /// The guard has read it.
    read: bool,
    idle: Idle,
}

impl RequestBody {
    pub(super) fn new(incoming: Incoming, flight: Arc<Flight>, time: Duration) -> Self {
        let incoming = (!incoming.is_end_stream()).then_some(incoming);
        if incoming.is_none() {
            flight.body_is_sent();
        }
        Self { incoming, flight, left: u64::MAX, read: false, idle: Idle::new(time) }
    }

    /// Nothing, for a request that is sent again.
    pub(super) fn empty(flight: Arc<Flight>) -> Self {
        Self { incoming: None, flight, left: 0, read: false, idle: Idle::new(Duration::MAX) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.incoming.is_none()
    }

    pub(super) fn was_read(&self) -> bool {
        self.read
    }

    /// At most that many bytes. False: it is known to be longer.
    pub(super) fn limit(&mut self, most: u64) -> bool {
        self.left = most;
        let said = self.incoming.as_ref().map_or(0, |incoming| incoming.size_hint().lower());
        said <= most
    }

    /// All of it.
    pub(super) async fn collect(&mut self, most: u64) -> Result<Bytes, BodyError> {
        self.read = true;
        if !self.limit(most) {
            return Err(BodyError::TooLong);
        }
        let mut whole = Vec::new();
        while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut *self).poll_frame(cx)).await {
            if let Ok(data) = frame?.into_data() {
                whole.extend_from_slice(&data);
            }
        }
        Ok(whole.into())
    }

    fn failed(&mut self, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let fault = match error {
            BodyError::TooLong => Fault::TooLong,
            BodyError::TooSlow => Fault::TooSlow,
            BodyError::Broken => Fault::Broken,
            BodyError::Ended => Fault::None,
        };
        self.flight.fail(fault);
        Poll::Ready(Some(Err(error)))
    }

    fn over(&mut self) {
        self.incoming = None;
        self.flight.body_is_sent();
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        // also where nobody wants the rest of it: from now on the origin is waited for, and not the client
        self.flight.body_is_sent();
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if this.flight.is_ended() {
            return Poll::Ready(Some(Err(BodyError::Ended)));
        }
        let Some(incoming) = &mut this.incoming else { return Poll::Ready(None) };
        match Pin::new(&mut *incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.idle.moved();
                let over = incoming.is_end_stream();
                if let Some(data) = frame.data_ref() {
                    match this.left.checked_sub(data.len() as u64) {
                        Some(left) => this.left = left,
                        None => return this.failed(BodyError::TooLong),
                    }
                }
                if frame.is_trailers() {
                    // after the head nobody looks at what they say, and some origins take them for fields of the head
                    this.over();
                    return Poll::Ready(None);
                }
                if over {
                    this.over();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(_))) => this.failed(BodyError::Broken),
            Poll::Ready(None) => {
                this.over();
                Poll::Ready(None)
            }
            Poll::Pending if this.idle.poll(cx) => this.failed(BodyError::TooSlow),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// What a client is sent.
///
/// Over HTTP/2 there is one piece at a time in the connection's queue, where it may wait for the client's window as long
/// as he likes: the next one, and the end, are given when it is written. Until then this lives, so that the queue can be
/// emptied when the session ends or the client stalls: an error of a body does that.
#[derive(Debug)]
pub(super) struct ResponseBody {
    kind: Kind,
    flight: Arc<Flight>,
    /// The request is on its way until its answer's body is gone.
    _own: Own,
}

#[derive(Debug)]
enum Kind {
    Nothing,
    Page(Bytes),
    Relay(Box<Relay>),
}

impl ResponseBody {
    pub(super) fn nothing(flight: Arc<Flight>, own: Own) -> Self {
        Self { kind: Kind::Nothing, flight, _own: own }
    }

    pub(super) fn page(page: Bytes, flight: Arc<Flight>, own: Own) -> Self {
        let kind = if page.is_empty() { Kind::Nothing } else { Kind::Page(page) };
        Self { kind, flight, _own: own }
    }

    pub(super) fn relay(relay: Relay, flight: Arc<Flight>, own: Own) -> Self {
        Self { kind: Kind::Relay(Box::new(relay)), flight, _own: own }
    }

    /// The last piece is not with the client yet.
    fn is_waited_for(&self) -> bool {
        self.flight.is_stream() && self.flight.has_unwritten()
    }
}

impl Body for ResponseBody {
    type Data = Piece;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, BodyError>>> {
        let this = &mut *self;
        if this.flight.is_stalled() {
            return Poll::Ready(Some(Err(BodyError::TooSlow)));
        }
        if this.is_waited_for() {
            // the stream's task is woken when the piece is written
            return if this.flight.is_ended() {
                Poll::Ready(Some(Err(BodyError::Ended)))
            } else {
                Poll::Pending
            };
        }
        this.flight.asked_for_more();
        let (frame, registered) = match &mut this.kind {
            Kind::Nothing => return Poll::Ready(None),
            Kind::Page(page) => {
                let page = std::mem::take(page);
                this.kind = Kind::Nothing;
                (Poll::Ready(Some(Ok(Frame::data(page)))), None)
            }
            Kind::Relay(relay) => {
                let frame = relay.poll_frame(cx);
                // over HTTP/1.1 hyper lets go of the body before its last piece is written
                (frame, if this.flight.is_stream() { None } else { relay.registered() })
            }
        };
        frame.map_ok(|frame| frame.map_data(|bytes| Piece::new(bytes, &this.flight, registered)))
    }

    fn is_end_stream(&self) -> bool {
        let over = match &self.kind {
            Kind::Nothing => true,
            Kind::Page(_) => false,
            Kind::Relay(relay) => relay.is_end_stream(),
        };
        over && !self.is_waited_for()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Nothing => SizeHint::with_exact(0),
            Kind::Page(page) => SizeHint::with_exact(page.len() as u64),
            Kind::Relay(relay) => relay.size_hint(),
        }
    }
}

/// Trailers that may pass: never what frames or routes a message.
pub(super) fn clean_trailers(trailers: &mut HeaderMap) {
    super::head::strip(trailers);
    for name in
        [hyper::header::CONTENT_LENGTH, hyper::header::HOST, hyper::header::SET_COOKIE, hyper::header::COOKIE]
    {
        trailers.remove(name);
    }
}
