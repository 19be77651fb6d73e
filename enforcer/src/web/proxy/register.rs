//! Which session has which requests, sockets and connections, and how all of that is ended.
//!
//! A request is a [`Flight`]. It is registered under its session after the guard has let it in and before anything of
//! it reaches an origin, and stays until its answer's last byte or its tunnel's end. [`Register::end`] ends every
//! flight of a session: inside the process, and on its socket to the origin, at once. A client's connection is closed
//! only when no session that is still alive was seen on it.
//!
//! **The race with an admission.** The guard may have said yes a moment before the session was ended. So an ended
//! session is remembered and can register nothing more. The memory is bounded; what it has forgotten is covered by
//! [`Ticket`]: an admission that began before a forgotten end is refused, whichever session it is for. For this to
//! hold the guard's own table has to know of the end before [`Register::end`] is called.

mod connection;
mod flight;
mod map;
mod room;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use super::lock;
use super::settings::{Limits, Network};
use super::table::Table;

use connection::Farewell;
pub use connection::{Connection, Present};
pub(super) use connection::{Own, Place, Protocol};
pub use flight::Flight;
pub(super) use flight::{Fault, STREAM};
use map::Map;
use room::Crowd;
pub(super) use room::Room;

/// What a session is called between the guard and the proxy: never a secret, never used for two sessions.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionKey(pub [u8; 16]);

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// How many ends there had been when an admission began.
#[derive(Debug, Clone, Copy)]
pub struct Ticket(u64);

/// Why a request could not begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Its session is over.
    Ended,
    /// It took longer to be let in than ended sessions are remembered: it has to be asked for again.
    TooOld,
    /// Its connection is being closed.
    Closing,
}

/// What the end of a session did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ended {
    /// Requests and tunnels that were cancelled.
    pub requests: usize,
    /// Sockets to origins that were reset.
    pub upstream: usize,
    /// Connections of clients that were closed, or are about to be, behind an answer of the gateway's own.
    pub downstream: usize,
    /// Requests that were still not gone when the time was over. Their sockets are.
    pub left: usize,
}

#[derive(Default)]
struct Session {
    ended: bool,
    flights: Map<u64, Arc<Flight>>,
    connections: Map<u64, Weak<Connection>>,
    /// Told when an ended session has no flight any more.
    empty: Arc<Notify>,
}

impl Session {
    fn is_forgettable(&self) -> bool {
        !self.ended && self.flights.is_empty() && self.connections.is_empty()
    }
}

type Shard = Mutex<Map<SessionKey, Session>>;

const SHARDS: usize = 16;

pub struct Register {
    limits: Limits,
    trusted: Vec<Network>,
    table: Option<Arc<Table>>,
    shards: [Shard; SHARDS],
    /// Ended sessions, the oldest first, each with the number of its end.
    ended: Mutex<VecDeque<(SessionKey, u64)>>,
    ends: AtomicU64,
    /// The number of the newest end that was forgotten.
    horizon: AtomicU64,
    numbers: AtomicU64,
    /// On their way now.
    requests: AtomicUsize,
    connections: Mutex<Connections>,
    /// Told when a connection has gone.
    gone: Notify,
}

#[derive(Default)]
struct Connections {
    places: usize,
    all: Map<u64, Arc<Connection>>,
    of_address: HashMap<IpAddr, Arc<Crowd>>,
}

impl Register {
    pub(super) fn new(limits: Limits, trusted: Vec<Network>, table: Option<Arc<Table>>) -> Self {
        Self {
            limits,
            trusted,
            table,
            shards: std::array::from_fn(|_| Shard::default()),
            ended: Mutex::default(),
            ends: AtomicU64::new(0),
            horizon: AtomicU64::new(0),
            numbers: AtomicU64::new(1),
            requests: AtomicUsize::new(0),
            connections: Mutex::default(),
            gone: Notify::new(),
        }
    }

    /// To be taken before the guard is asked.
    pub fn ticket(&self) -> Ticket {
        Ticket(self.ends.load(Ordering::SeqCst))
    }

    /// Puts a request under its session, and its connection as well.
    pub fn register(
        self: &Arc<Self>,
        ticket: Ticket,
        session: SessionKey,
        connection: &Arc<Connection>,
        flight: &Arc<Flight>,
    ) -> Result<Registered, Refused> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let mut shard = lock(self.shard(session));
        // under the lock: an end is forgotten only after the horizon was moved
        if ticket.0 < self.horizon.load(Ordering::SeqCst) {
            return Err(Refused::TooOld);
        }
        let entry = shard.entry(session).or_default();
        if entry.ended {
            return Err(Refused::Ended);
        }
        match connection.admit(session, self.limits.sessions_of_connection, self.table.as_ref()) {
            Some(true) => {
                entry.connections.insert(connection.number(), Arc::downgrade(connection));
            }
            Some(false) => {}
            None => {
                if entry.is_forgettable() {
                    shard.remove(&session);
                }
                return Err(Refused::Closing);
            }
        }
        entry.flights.insert(number, Arc::clone(flight));
        flight.belongs_to(session, connection, self.table.as_ref());
        Ok(Registered { register: Arc::clone(self), session, number, flight: Arc::clone(flight) })
    }

    /// Ends everything of a session and waits until it is gone, at most that long. From the first moment on nothing of
    /// it can be registered any more. Ending a session again is allowed and finds nothing.
    pub async fn end(&self, session: SessionKey, wait: Duration) -> Ended {
        let number = self.ends.fetch_add(1, Ordering::SeqCst) + 1;
        // first everything is marked and counted, so that nothing escapes the count by ending in between
        let (first, flights, connections, empty) = {
            let mut shard = lock(self.shard(session));
            let entry = shard.entry(session).or_default();
            let first = !std::mem::replace(&mut entry.ended, true);
            let connections = std::mem::take(&mut entry.connections);
            let connections: Vec<_> = connections
                .values()
                .filter_map(Weak::upgrade)
                .map(|connection| (connection.forget(session), connection))
                .filter(|(farewell, _)| *farewell != Farewell::Stays)
                .collect();
            let flights: Vec<_> =
                entry.flights.values().map(|flight| (flight.mark(), Arc::clone(flight))).collect();
            (first, flights, connections, Arc::clone(&entry.empty))
        };
        let mut done = Ended { requests: flights.len(), downstream: connections.len(), ..Ended::default() };
        for (farewell, connection) in connections {
            connection.part(farewell);
        }
        for (upstream, flight) in flights {
            done.upstream += usize::from(upstream.is_some());
            flight.cut(upstream);
        }
        if first {
            self.remember(session, number);
        }
        let all_gone = async {
            loop {
                let told = empty.notified();
                tokio::pin!(told);
                told.as_mut().enable();
                if self.flights_of(session) == 0 {
                    break;
                }
                told.await;
            }
        };
        let _ = tokio::time::timeout(wait, all_gone).await;
        done.left = self.flights_of(session);
        done
    }

    /// How many requests of that session are on their way.
    pub fn flights_of(&self, session: SessionKey) -> usize {
        lock(self.shard(session)).get(&session).map_or(0, |entry| entry.flights.len())
    }

    fn remember(&self, session: SessionKey, number: u64) {
        let mut ended = lock(&self.ended);
        ended.push_back((session, number));
        while ended.len() > self.limits.ended_sessions {
            let Some((oldest, number)) = ended.pop_front() else { break };
            self.horizon.fetch_max(number, Ordering::SeqCst);
            lock(self.shard(oldest)).remove(&oldest);
        }
    }

    fn shard(&self, session: SessionKey) -> &Shard {
        &self.shards[usize::from(session.0[0]) % SHARDS]
    }

    fn leave(&self, session: SessionKey, number: u64) {
        let mut shard = lock(self.shard(session));
        let Some(entry) = shard.get_mut(&session) else { return };
        entry.flights.remove(&number);
        if entry.flights.is_empty() && entry.ended {
            entry.empty.notify_waiters();
        } else if entry.is_forgettable() {
            shard.remove(&session);
        }
    }
}

impl fmt::Debug for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Register").finish_non_exhaustive()
    }
}

/// A request that is under its session as long as this lives.
#[derive(Debug)]
pub struct Registered {
    register: Arc<Register>,
    session: SessionKey,
    number: u64,
    flight: Arc<Flight>,
}

impl Registered {
    pub fn flight(&self) -> &Arc<Flight> {
        &self.flight
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.register.leave(self.session, self.number);
    }
}
