//! One request on its way, or the tunnel that it became.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::Context;

use futures::task::AtomicWaker;

use super::super::lock;
use super::super::socket::Wire;
use super::super::table::{Side, Slot, Table};
use super::SessionKey;
use super::connection::{Connection, Protocol};

tokio::task_local! {
    /// The flight of the HTTP/2 stream whose task this is.
    pub(in super::super) static STREAM: Arc<Flight>;
}

/// What went wrong with a request's body, which only the body's reader knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(in super::super) enum Fault {
    None,
    TooLong,
    TooSlow,
    Broken,
}

/// A socket to an origin, and its line in the table.
#[derive(Debug)]
struct Upstream {
    wire: Arc<Wire>,
    _slot: Option<Slot>,
}

/// Whose it is.
#[derive(Debug)]
struct Belongs {
    session: SessionKey,
    connection: Arc<Connection>,
    table: Option<Arc<Table>>,
}

/// See the [module](super).
#[derive(Debug, Default)]
pub struct Flight {
    ended: AtomicBool,
    /// It is a stream of an HTTP/2 connection, and not all that its connection carries now.
    stream: bool,
    /// The head of the answer is with the client: what is wrong from now on can only be said by a reset.
    answering: AtomicBool,
    /// All of the answer was given to the client's side.
    answered: AtomicBool,
    /// The client takes nothing of the answer: it is given up.
    stalled: AtomicBool,
    /// The request's body was read to its end.
    sent: AtomicBool,
    fault: AtomicU8,
    /// How many pieces of the answer's body were given to the client's side.
    pieces: AtomicU32,
    /// How many of them are not written yet; how often some of one was; and whether the next one was not asked for.
    unwritten: AtomicU32,
    writes: AtomicU32,
    clients_turn: AtomicBool,
    /// The socket to the origin, while this request has it.
    upstream: Mutex<Option<Upstream>>,
    belongs: OnceLock<Belongs>,
    /// The task of an HTTP/2 stream or of a tunnel; a request of HTTP/1 lives in its connection's task.
    task: AtomicWaker,
}

impl Flight {
    /// One that is a stream of HTTP/2, in a task of its own.
    pub(in super::super) fn of_stream() -> Arc<Self> {
        Arc::new(Self { stream: true, ..Self::default() })
    }

    pub(in super::super) fn is_stream(&self) -> bool {
        self.stream
    }

    pub fn is_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Whether it is over; if not, that task is woken when it will be.
    pub(in super::super) fn poll_ended(&self, cx: &Context<'_>) -> bool {
        self.task.register(cx.waker());
        self.is_ended()
    }

    /// It is over from now on. Returns its socket to the origin, if it has one.
    pub(super) fn mark(&self) -> Option<Arc<Wire>> {
        self.ended.store(true, Ordering::SeqCst);
        // after the mark: whoever takes the lock later sees it
        lock(&self.upstream).take().map(|upstream| upstream.wire)
    }

    /// Resets that socket, and lets whoever cares for the request know.
    pub(super) fn cut(&self, upstream: Option<Arc<Wire>>) {
        if let Some(wire) = upstream {
            wire.abort();
        }
        if let Some(Belongs { connection, .. }) = self.belongs.get() {
            // what is ready to be written and not blocked is written by now; what is blocked must not be any more
            let answering = self.is_answering()
                && (!self.answered.load(Ordering::SeqCst) || connection.wire().is_blocked());
            if connection.protocol() == Protocol::Http1 && answering {
                // its answer is on the wire and carries nobody else's
                connection.abort();
            } else {
                connection.wake();
            }
        }
        self.task.wake();
    }

    /// From now on that socket is this request's. False: the request is over, and the socket must not be used.
    pub(in super::super) fn attach(&self, wire: &Arc<Wire>) -> bool {
        let mut upstream = lock(&self.upstream);
        if self.is_ended() {
            return false;
        }
        let slot = self.belongs.get().and_then(|Belongs { session, table, .. }| {
            table.as_ref()?.put(*session, wire.cookie(), wire.ends(), Side::Origin)
        });
        *upstream = Some(Upstream { wire: Arc::clone(wire), _slot: slot });
        true
    }

    /// From now on it has no socket. False: the request was ended and the socket with it; it must not be used again.
    pub(in super::super) fn detach(&self) -> bool {
        let mut upstream = lock(&self.upstream);
        upstream.take().is_some() && !self.is_ended()
    }

    pub(super) fn belongs_to(
        &self,
        session: SessionKey,
        connection: &Arc<Connection>,
        table: Option<&Arc<Table>>,
    ) {
        let belongs = Belongs { session, connection: Arc::clone(connection), table: table.cloned() };
        // a flight is registered once
        let _ = self.belongs.set(belongs);
    }

    pub(in super::super) fn answering(&self) {
        self.answering.store(true, Ordering::SeqCst);
    }

    pub(in super::super) fn is_answering(&self) -> bool {
        self.answering.load(Ordering::SeqCst)
    }

    /// The last of the answer was given to the client's side.
    pub(in super::super) fn answered(&self) {
        self.answered.store(true, Ordering::SeqCst);
    }

    pub(in super::super) fn body_is_sent(&self) {
        self.sent.store(true, Ordering::Relaxed);
    }

    pub(in super::super) fn is_body_sent(&self) -> bool {
        self.sent.load(Ordering::Relaxed)
    }

    /// The next piece of the answer's body is asked for.
    pub(in super::super) fn asked_for_more(&self) {
        self.clients_turn.store(false, Ordering::Relaxed);
    }

    /// A piece was given; the next step is the client's.
    pub(in super::super) fn gave(&self) {
        self.pieces.fetch_add(1, Ordering::Relaxed);
        self.unwritten.fetch_add(1, Ordering::SeqCst);
        self.clients_turn.store(true, Ordering::Relaxed);
    }

    /// Some of a piece was written.
    pub(in super::super) fn writes(&self) {
        self.writes.fetch_add(1, Ordering::Relaxed);
    }

    /// A piece was written to its end, or thrown away.
    pub(in super::super) fn wrote(&self) {
        self.unwritten.fetch_sub(1, Ordering::SeqCst);
        self.task.wake();
    }

    pub(in super::super) fn has_unwritten(&self) -> bool {
        self.unwritten.load(Ordering::SeqCst) != 0
    }

    /// After how many pieces and writes it is the client's turn; `None`: it is not.
    pub(in super::super) fn waits_for_client(&self) -> Option<(u32, u32)> {
        let now = || (self.pieces.load(Ordering::Relaxed), self.writes.load(Ordering::Relaxed));
        self.clients_turn.load(Ordering::Relaxed).then(now)
    }

    /// Its client takes nothing: its answer is not waited for any longer.
    pub(in super::super) fn gives_up(&self) {
        self.stalled.store(true, Ordering::Relaxed);
    }

    pub(in super::super) fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::Relaxed)
    }

    pub(in super::super) fn fail(&self, fault: Fault) {
        self.fault.store(fault as u8, Ordering::Relaxed);
    }

    pub(in super::super) fn fault(&self) -> Fault {
        match self.fault.load(Ordering::Relaxed) {
            1 => Fault::TooLong,
            2 => Fault::TooSlow,
            3 => Fault::Broken,
            _ => Fault::None,
        }
    }
}
