//! The body of an origin's answer on its way to the client.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};

use super::super::register::{Flight, Registered};
use super::super::upstream::{Line, Pools};
use super::{BodyError, Idle, clean_trailers};

/// Drives the connection to the origin by itself: the pieces are read when the client can take them and not before,
/// and without another task in between.
#[derive(Debug)]
pub(in super::super) struct Relay {
    incoming: Incoming,
    /// `None` once it went back to the pool, or cannot.
    line: Option<Line>,
    pools: Arc<Pools>,
    origin: usize,
    flight: Arc<Flight>,
    idle: Idle,
    over: bool,
    // last: the session's end waits for it, and by then the socket has to be gone
    registered: Option<Arc<Registered>>,
}

impl Relay {
    pub(in super::super) fn new(
        incoming: Incoming,
        line: Line,
        pools: Arc<Pools>,
        origin: usize,
        flight: Arc<Flight>,
        registered: Option<Registered>,
        time: Duration,
    ) -> Self {
        let idle = Idle::new(time);
        let registered = registered.map(Arc::new);
        Self { incoming, line: Some(line), pools, origin, flight, idle, over: false, registered }
    }

    /// What keeps the request under its session.
    pub(super) fn registered(&self) -> Option<Arc<Registered>> {
        self.registered.clone()
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.flight.is_ended() {
            self.line = None;
            return Poll::Ready(Some(Err(BodyError::Ended)));
        }
        if self.over {
            return Poll::Ready(None);
        }
        let mut poll = Pin::new(&mut self.incoming).poll_frame(cx);
        if poll.is_pending()
            && let Some(line) = &mut self.line
            && line.drive(cx)
        {
            poll = Pin::new(&mut self.incoming).poll_frame(cx);
        }
        match poll {
            Poll::Ready(Some(Ok(mut frame))) => {
                self.idle.moved();
                if let Some(trailers) = frame.trailers_mut() {
                    clean_trailers(trailers);
                    self.finish(cx);
                } else if self.incoming.is_end_stream() {
                    self.finish(cx);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(_))) => {
                self.line = None;
                Poll::Ready(Some(Err(BodyError::Broken)))
            }
            Poll::Ready(None) => {
                self.finish(cx);
                Poll::Ready(None)
            }
            Poll::Pending if self.idle.poll(cx) => {
                self.line = None;
                Poll::Ready(Some(Err(BodyError::TooSlow)))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// The answer is complete: its socket may serve another request.
    fn finish(&mut self, cx: &mut Context<'_>) {
        self.over = true;
        self.flight.answered();
        if let Some(line) = self.line.take() {
            self.pools.put_back(self.origin, line, &self.flight, cx);
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.over || self.incoming.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
