//! An upgraded connection: bytes both ways, until one side ends, nothing moves for too long, or the session is over.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Bytes;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, copy_bidirectional};

use super::body::Idle;
use super::register::{Flight, Registered, Room};
use super::service::Held;
use super::upstream::Stream;

/// Everything that a tunnel holds.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub(super) client: OnUpgrade,
    pub(super) origin: Stream,
    /// What the origin said in one breath with its consent.
    pub(super) early: Bytes,
    pub(super) flight: Arc<Flight>,
    pub(super) registered: Option<Registered>,
    pub(super) room: Option<Room>,
    pub(super) held: Arc<Held>,
    pub(super) time: Duration,
}

/// How long the other side may be silent when one has nothing more to say.
const CLOSING: Duration = Duration::from_secs(5);

/// Starts a task that lives as long as the tunnel.
pub(super) fn start(tunnel: Tunnel) {
    tokio::spawn(async move {
        let Tunnel { client, origin, early, flight, registered, room, held, time } = tunnel;
        // busy: the sweep does not take its connection for an idle one
        let mut own = held.connection().own();
        if registered.is_some() {
            own.claimed();
        }
        let connection = held.connection();
        let notes = Arc::new(Notes::default());
        {
            let mut passing = pin!(pass(client, Noting { inner: origin, notes: Arc::clone(&notes) }, early));
            let mut idle = Idle::new(time);
            let mut closing = false;
            poll_fn(|cx| {
                if flight.poll_ended(cx) || passing.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                // the task that cared for its connection has ended with the switch; one of HTTP/2 goes on
                if connection.is_switched() && connection.poll_orders(cx).is_none() {
                    return Poll::Ready(());
                }
                if !closing && notes.half_closed.load(Ordering::Relaxed) {
                    closing = true;
                    idle = Idle::new(time.min(CLOSING));
                }
                if notes.moved.swap(false, Ordering::Relaxed) {
                    idle.moved();
                }
                if idle.poll(cx) { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        }
        // the sockets are gone; now the session's end may know
        drop(registered);
        drop((own, room));
    });
}

async fn pass(client: OnUpgrade, mut origin: Noting<Stream>, early: Bytes) -> io::Result<()> {
    let client = client.await.map_err(io::Error::other)?;
    let mut client = TokioIo::new(client);
    client.write_all(&early).await?;
    drop(early);
    copy_bidirectional(&mut client, &mut origin).await?;
    Ok(())
}

/// What is noted of a stream: whether anything moves on it, and whether one direction has ended.
#[derive(Default)]
struct Notes {
    moved: AtomicBool,
    half_closed: AtomicBool,
}

struct Noting<S> {
    inner: S,
    notes: Arc<Notes>,
}

impl<S> Noting<S> {
    fn moves(&self) {
        self.notes.moved.store(true, Ordering::Relaxed);
    }

    fn half_closes(&self) {
        self.notes.half_closed.store(true, Ordering::Relaxed);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Noting<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let poll = Pin::new(&mut self.inner).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.moves();
        } else if poll.is_ready() {
            self.half_closes();
        }
        poll
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Noting<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.inner).poll_write(cx, buf);
        if poll.is_ready() {
            self.moves();
        }
        poll
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // the client has said everything
        self.half_closes();
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
