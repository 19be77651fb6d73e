//! A stricter reader of HTTP/1.1 before hyper's.
//!
//! hyper understands what it lets through in one way, and sends it on in its own words, so that an origin never sees
//! two requests where we saw one. But what stands before us (a load balancer, an old proxy) may understand it in
//! another way. So what can be understood in two ways is refused: a length and chunks together, a length twice, lines
//! that end without CR, codings other than `chunked`, continued lines. Whoever sends such a thing is told 400 by
//! hyper, in its turn: from the first bad byte on it is given a byte that it cannot take.

mod framing;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use self::framing::{Framing, Step};
use super::register::Connection;

/// What hyper is given in place of a byte that must not be: it is allowed nowhere in a head.
const POISON: u8 = 0;
/// What a client is told that takes too long with a head.
const SLOW: &[u8] = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// The client's stream, for as long as it speaks HTTP/1.1.
#[derive(Debug)]
pub(super) struct Strict<S> {
    inner: S,
    framing: Framing,
    connection: Arc<Connection>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Reading,
    /// Something bad came; nothing more is read.
    Poisoned,
    /// So much of the excuse was written.
    Excusing(usize),
    /// It speaks another protocol.
    Switched,
}

impl<S> Strict<S> {
    pub(super) fn new(inner: S, connection: Arc<Connection>) -> Self {
        Self { inner, framing: Framing::default(), connection, state: State::Reading }
    }

    pub(super) fn into_inner(self) -> S {
        self.inner
    }

    /// The head may have come to its end since the sweep found it slow; and an answer must not be interrupted.
    fn is_too_slow(&self) -> bool {
        self.connection.is_slow() && self.framing.is_in_head() && !self.connection.is_busy()
    }

    /// Looks at what was read, from that place of the buffer on.
    fn check(&mut self, buf: &mut ReadBuf<'_>, from: usize) {
        let before = self.framing.is_in_head();
        let step = self.framing.read(&buf.filled()[from..]);
        match (before, self.framing.is_in_head()) {
            // another one may have ended and begun within these bytes: it gets the time of the first
            (false, true) => self.connection.head_begins(),
            (true, false) => self.connection.head_ends(),
            _ => {}
        }
        if let Step::Bad(at) = step {
            self.state = State::Poisoned;
            self.connection.head_ends();
            let at = from + at;
            buf.filled_mut()[at] = POISON;
            buf.set_filled(at + 1);
        }
    }
}

impl<S: AsyncWrite + Unpin> Strict<S> {
    /// Says that it took too long. Nothing else is being written: no request is on its way.
    fn excuse(&mut self, cx: &mut Context<'_>, mut done: usize) -> Poll<io::Result<()>> {
        while done < SLOW.len() {
            match Pin::new(&mut self.inner).poll_write(cx, &SLOW[done..]) {
                Poll::Ready(Ok(wrote @ 1..)) => done += wrote,
                Poll::Ready(_) => break,
                Poll::Pending => {
                    self.state = State::Excusing(done);
                    return Poll::Pending;
                }
            }
        }
        self.state = State::Poisoned;
        let _ = Pin::new(&mut self.inner).poll_flush(cx);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Strict<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        match this.state {
            State::Switched => return Pin::new(&mut this.inner).poll_read(cx, buf),
            // the end, as hyper sees it
            State::Poisoned => return Poll::Ready(Ok(())),
            State::Excusing(done) => return this.excuse(cx, done),
            State::Reading if this.connection.is_switched() => {
                this.state = State::Switched;
                return Pin::new(&mut this.inner).poll_read(cx, buf);
            }
            State::Reading if this.is_too_slow() => return this.excuse(cx, 0),
            State::Reading => {}
        }
        let from = buf.filled().len();
        let poll = Pin::new(&mut this.inner).poll_read(cx, buf);
        if buf.filled().len() > from {
            this.check(buf, from);
        }
        poll
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Strict<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
