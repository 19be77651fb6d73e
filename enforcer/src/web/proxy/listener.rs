//! From an accepted connection to its requests.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::body::Idle;
use super::guard::Guard;
use super::head::Client;
use super::register::{Connection, Flight, Place, Protocol, STREAM};
use super::service::{Held, Visit};
use super::socket::Io;
use super::strict::Strict;
use super::upstream::Pools;
use super::{Gate, Stop, redirect};

/// How long and how much is still read of a client who was answered in the middle of what he sends: otherwise the
/// reset for what nobody read would overtake the answer.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 256 << 10;
/// How many header fields hyper takes without being told: what it is told it has to make room for with each request.
pub(super) const HYPERS_FIELDS: usize = 100;
/// After an accept that failed for want of something.
const BREATH: Duration = Duration::from_millis(50);

/// What is spoken at a listening socket.
#[derive(Clone)]
pub(super) enum Speech {
    Tls(TlsAcceptor),
    Plain,
    Redirect,
}

/// Accepts until the proxy stops.
pub(super) async fn accept<G: Guard>(
    gate: Arc<Gate<G>>,
    pools: Arc<Pools>,
    listener: TcpListener,
    speech: Speech,
) {
    let mut stop = gate.stop.subscribe();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop != Stop::No) => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // a client that was gone before it was accepted costs nothing; a lack of descriptors lasts
                if error.kind() != io::ErrorKind::ConnectionAborted {
                    warn!("a connection cannot be accepted: {error}");
                    sleep(BREATH).await;
                }
                continue;
            }
        };
        let Some(place) = gate.register.place(peer) else {
            debug!(%peer, "there are too many connections");
            continue;
        };
        let (gate, pools, speech) = (Arc::clone(&gate), Arc::clone(&pools), speech.clone());
        tokio::spawn(async move {
            if let Err(error) = welcome(gate, pools, stream, peer, place, speech).await {
                debug!(%peer, "the connection ended: {error}");
            }
        });
    }
}

/// Speaks with a client until there is nothing more to say.
async fn welcome<G: Guard>(
    gate: Arc<Gate<G>>,
    pools: Arc<Pools>,
    stream: TcpStream,
    peer: SocketAddr,
    place: Place,
    speech: Speech,
) -> io::Result<()> {
    let io = Io::new(stream)?;
    let wire = Arc::clone(io.wire());
    let visit = |protocol, https| {
        let present = gate.register.present(&place, &wire, protocol);
        let client = Client::new(peer, present.connection().is_trusted(), https);
        (present, client)
    };
    match speech {
        Speech::Tls(acceptor) => {
            let mut stop = gate.stop.subscribe();
            let stream = tokio::select! {
                shaken = timeout(gate.times.handshake, acceptor.accept(io)) => shaken??,
                _ = stop.wait_for(|stop| *stop != Stop::No) => return Ok(()),
            };
            if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                let (present, client) = visit(Protocol::Http2, true);
                let held = Arc::new(Held { present, _place: place });
                speak_http2(Arc::new(Visit { gate, pools, held, client }), stream).await
            } else {
                let (present, client) = visit(Protocol::Http1, true);
                let held = Arc::new(Held { present, _place: place });
                speak_http1(Arc::new(Visit { gate, pools, held, client }), stream).await
            }
        }
        Speech::Plain => {
            let (present, client) = visit(Protocol::Http1, false);
            let held = Arc::new(Held { present, _place: place });
            speak_http1(Arc::new(Visit { gate, pools, held, client }), io).await
        }
        Speech::Redirect => {
            let (present, _) = visit(Protocol::Http1, false);
            let held = Held { present, _place: place };
            redirect::speak(&gate.limits, gate.public_port, &held, io).await
        }
    }
}

/// HTTP/1.1, and whatever comes out of it.
async fn speak_http1<G: Guard, S>(visit: Arc<Visit<G>>, stream: S) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let held = Arc::clone(&visit.held);
    let connection = held.connection();
    let limits = visit.gate.limits;
    if *visit.gate.stop.borrow() != Stop::No {
        connection.close();
    }
    let service = service_fn(move |request| Arc::clone(&visit).serve(request));
    let stream = TokioIo::new(Strict::new(stream, Arc::clone(connection)));
    let mut speaking =
        builder(limits.head_bytes, limits.head_fields).serve_connection(stream, service).with_upgrades();
    let done = converse(connection, Pin::new(&mut speaking), |speaking| speaking.graceful_shutdown()).await;
    if done.is_some()
        && let Some(parts) = speaking.into_parts()
    {
        linger(parts.io.into_inner().into_inner()).await;
    }
    done.unwrap_or(Ok(())).map_err(io::Error::other)
}

/// Speaks as long as the connection has no other orders: `close` lets what is on its way come to its end. `None`: it has
/// to be dropped.
pub(super) async fn converse<S: Future>(
    connection: &Connection,
    mut speaking: Pin<&mut S>,
    close: impl Fn(Pin<&mut S>),
) -> Option<S::Output> {
    let mut closing = false;
    poll_fn(|cx| {
        match connection.poll_orders(cx) {
            None => return Poll::Ready(None),
            Some(true) if !std::mem::replace(&mut closing, true) => close(speaking.as_mut()),
            Some(_) => {}
        }
        speaking.as_mut().poll(cx).map(Some)
    })
    .await
}

/// hyper's reader of HTTP/1.1 with our bounds; the times are the sweep's.
pub(super) fn builder(head_bytes: usize, head_fields: usize) -> http1::Builder {
    let mut builder = http1::Builder::new();
    if head_fields != HYPERS_FIELDS {
        builder.max_headers(head_fields);
    }
    builder
        .max_header_size(head_bytes)
        .max_buf_size(head_bytes.max(8_192))
        .header_read_timeout(None)
        .half_close(false);
    builder
}

/// Reads on for a while without looking at it.
pub(super) async fn linger<S: AsyncRead + Unpin>(mut stream: S) {
    let rest = async {
        let mut buf = vec![0; 8 << 10];
        let mut all = 0;
        while let Ok(read @ 1..) = stream.read(&mut buf).await {
            all += read;
            if all > LINGER_BYTES {
                break;
            }
        }
    };
    let _ = timeout(LINGER, rest).await;
}

async fn speak_http2<G: Guard, S>(visit: Arc<Visit<G>>, stream: S) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let held = Arc::clone(&visit.held);
    let connection = held.connection();
    let limits = visit.gate.limits;
    let write = visit.gate.times.write;
    if *visit.gate.stop.borrow() != Stop::No {
        connection.close();
    }
    let service = service_fn(move |request| Arc::clone(&visit).serve(request));
    let mut builder = http2::Builder::new(Streams { write });
    builder
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        // what waits in memory for one stream, and what a client may send ahead on one stream and on all
        .max_send_buf_size(64 << 10)
        .initial_stream_window_size(256 << 10)
        .initial_connection_window_size(1 << 20)
        .max_local_error_reset_streams(256)
        .max_pending_accept_reset_streams(20)
        .enable_connect_protocol();
    let speaking = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let done = converse(connection, speaking, |speaking| speaking.graceful_shutdown()).await;
    done.unwrap_or(Ok(())).map_err(io::Error::other)
}

/// Runs each stream as a task that the end of its session can drop, whatever it is waiting for: the client sees its
/// stream reset, and no other. So does one whose client takes nothing of it for the time of a write: the connection as a
/// whole may go on moving.
#[derive(Clone, Copy, Debug)]
struct Streams {
    write: Duration,
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, stream: F) {
        match STREAM.try_with(Arc::clone) {
            Ok(tunnel) => tokio::spawn(pump(stream, tunnel)),
            Err(_) => {
                let flight = Flight::of_stream();
                tokio::spawn(STREAM.scope(Arc::clone(&flight), watched(stream, flight, self.write)))
            }
        };
    }
}

/// A stream until it is over, its session is, or its client stalls.
async fn watched(stream: impl Future, flight: Arc<Flight>, write: Duration) {
    let mut idle = Idle::new(write);
    let mut before = None;
    let mut stream = pin!(stream);
    poll_fn(|cx| {
        let ended = flight.poll_ended(cx);
        if ended && !flight.is_answering() {
            return Poll::Ready(());
        }
        // an answer that has begun is in the connection's queue, and may wait there for the client's window; dropping the
        // stream would leave it there, while its body tells hyper to throw it away
        if stream.as_mut().poll(cx).is_ready() || ended {
            return Poll::Ready(());
        }
        let waits = flight.waits_for_client();
        if waits != std::mem::replace(&mut before, waits) {
            idle.moved();
        }
        if waits.is_some() && idle.poll(cx) {
            flight.gives_up();
            let _ = stream.as_mut().poll(cx);
            return Poll::Ready(());
        }
        Poll::Pending
    })
    .await;
}

/// What carries the bytes of a tunnel to its stream, and hears of the tunnel's end by itself. Dropped, it resets the
/// stream; otherwise what was cut off would look complete.
async fn pump(stream: impl Future, flight: Arc<Flight>) {
    let mut stream = pin!(stream);
    poll_fn(|cx| if flight.is_ended() { Poll::Ready(()) } else { stream.as_mut().poll(cx).map(|_| ()) })
        .await;
}
