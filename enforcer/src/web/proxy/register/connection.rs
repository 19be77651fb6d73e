//! A client's connection, and who was seen on it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Context;

use futures::task::AtomicWaker;

use super::super::clock;
use super::super::lock;
use super::super::socket::Wire;
use super::super::table::{Side, Slot, Table};
use super::room::{Crowd, Room};
use super::{Register, SessionKey};

/// Within what time the abandoned requests of a connection are counted, in milliseconds.
const ABANDONED_WITHIN: u64 = 10_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Protocol {
    Http1,
    Http2,
}

/// What becomes of a connection when a session that was seen on it is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Farewell {
    /// Somebody else is on it, or it is a proxy's.
    Stays,
    /// As soon as what is on its way over it has passed.
    Closed,
    Reset,
}

#[derive(Debug)]
pub struct Connection {
    number: u64,
    peer: SocketAddr,
    /// A proxy of ours that carries many people's requests.
    trusted: bool,
    /// Who else comes from there; `None` for a trusted proxy.
    crowd: Option<Arc<Crowd>>,
    wire: Arc<Wire>,
    protocol: Protocol,
    seen: Mutex<Seen>,
    /// Its task must drop it; must let it come to its end.
    aborted: AtomicBool,
    closing: AtomicBool,
    /// Since when, for the sweep: a head is being read; nothing is on its way; it is closing. 0: it is not so.
    head_since: AtomicU64,
    idle_since: AtomicU64,
    closing_since: AtomicU64,
    busy: AtomicU32,
    /// The head that is being read takes too long: its reader says so and closes.
    slow: AtomicBool,
    /// It speaks another protocol than HTTP from now on.
    switched: AtomicBool,
    abandoned: Mutex<(u32, u64)>,
    task: AtomicWaker,
}

#[derive(Debug, Default)]
struct Seen {
    /// Sessions that live and were seen, each with its line in the table.
    sessions: Vec<(SessionKey, Option<Slot>)>,
    /// There were more than are told apart.
    crowded: bool,
    /// Nothing more may be registered.
    closing: bool,
    /// Requests that belong to no session: not let in yet, or answered by the gateway itself.
    own: u32,
}

impl Connection {
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Whether its peer is one of the trusted proxies.
    pub fn is_trusted(&self) -> bool {
        self.trusted
    }

    /// SO_COOKIE of its socket.
    pub fn cookie(&self) -> u64 {
        self.wire.cookie()
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(in super::super) fn protocol(&self) -> Protocol {
        self.protocol
    }

    pub(in super::super) fn wire(&self) -> &Wire {
        &self.wire
    }

    /// Resets it now.
    pub fn abort(&self) {
        self.aborted.store(true, Ordering::SeqCst);
        self.wire.abort();
        self.wake();
    }

    /// Lets the answers that are on their way come to their end, and nothing more.
    pub(in super::super) fn close(&self) {
        if !self.closing.swap(true, Ordering::SeqCst) {
            self.closing_since.store(clock::now(), Ordering::Relaxed);
            self.wake();
        }
    }

    pub(super) fn wake(&self) {
        self.task.wake();
    }

    /// What its task has to do: drop it (`None`), or go on, closing or not. The task is woken when that changes.
    pub(in super::super) fn poll_orders(&self, cx: &Context<'_>) -> Option<bool> {
        self.task.register(cx.waker());
        if self.aborted.load(Ordering::SeqCst) {
            return None;
        }
        Some(self.closing.load(Ordering::SeqCst))
    }

    /// That session is here. `None`: nobody may come any more. Otherwise whether it is new here.
    pub(super) fn admit(&self, session: SessionKey, most: usize, table: Option<&Arc<Table>>) -> Option<bool> {
        let mut seen = lock(&self.seen);
        if seen.closing {
            return None;
        }
        if seen.sessions.iter().any(|(other, _)| *other == session) {
            return Some(false);
        }
        if seen.sessions.len() >= most {
            if !std::mem::replace(&mut seen.crowded, true) {
                seen.sessions.iter().filter_map(|(_, slot)| slot.as_ref()).for_each(Slot::share);
            }
            return Some(false);
        }
        let side = Side::Client { trusted: self.trusted };
        let slot = table.and_then(|table| table.put(session, self.wire.cookie(), self.wire.ends(), side));
        seen.sessions.push((session, slot));
        Some(true)
    }

    /// That session is over. What has to become of the connection; nothing can be registered on it any more unless it
    /// stays.
    pub(super) fn forget(&self, session: SessionKey) -> Farewell {
        let mut seen = lock(&self.seen);
        seen.sessions.retain(|(other, _)| *other != session);
        if self.trusted || seen.crowded || seen.closing || !seen.sessions.is_empty() {
            return Farewell::Stays;
        }
        seen.closing = true;
        // the answer to the logout itself, or somebody's login, may reach its reader
        if seen.own == 0 { Farewell::Reset } else { Farewell::Closed }
    }

    pub(super) fn part(&self, farewell: Farewell) {
        match farewell {
            Farewell::Stays => {}
            Farewell::Closed => self.close(),
            Farewell::Reset => self.abort(),
        }
    }

    /// A request came in, which belongs to nobody yet.
    pub(in super::super) fn own(self: &Arc<Self>) -> Own {
        self.busy.fetch_add(1, Ordering::SeqCst);
        lock(&self.seen).own += 1;
        Own { connection: Arc::clone(self), counted: true, room: None }
    }

    pub(in super::super) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::SeqCst) != 0
    }

    /// A request was given up by the client before its answer. False: there were too many of them.
    pub(in super::super) fn abandoned(&self, most: u32) -> bool {
        let now = clock::now();
        let mut abandoned = lock(&self.abandoned);
        if now.saturating_sub(abandoned.1) > ABANDONED_WITHIN {
            *abandoned = (0, now);
        }
        abandoned.0 += 1;
        abandoned.0 <= most
    }

    /// It speaks another protocol than HTTP, as soon as the answer that says so is written.
    pub(in super::super) fn switches(&self) {
        self.switched.store(true, Ordering::SeqCst);
    }

    pub(in super::super) fn is_switched(&self) -> bool {
        self.switched.load(Ordering::SeqCst)
    }

    /// Whether it is closed for the end of a session, and not only to save room.
    pub(in super::super) fn must_close(&self) -> bool {
        lock(&self.seen).closing
    }

    pub(in super::super) fn head_begins(&self) {
        self.head_since.store(clock::now(), Ordering::Relaxed);
    }

    pub(in super::super) fn head_ends(&self) {
        self.head_since.store(0, Ordering::Relaxed);
    }

    pub(in super::super) fn is_slow(&self) -> bool {
        self.slow.load(Ordering::Relaxed)
    }

    /// The reader of its head has to give up.
    pub(in super::super) fn too_slow(&self) {
        self.slow.store(true, Ordering::Relaxed);
        self.wake();
    }

    /// How long a head has been read, in milliseconds; `None`: none is begun, or its turn has not come.
    pub(in super::super) fn head_for(&self, now: u64) -> Option<u64> {
        let since = self.head_since.load(Ordering::Relaxed);
        // one that was sent ahead is read when the requests before it are done
        let turn = since.max(self.idle_since.load(Ordering::Relaxed));
        (since != 0 && !self.is_busy()).then(|| now.saturating_sub(turn))
    }

    /// How long nothing has been on its way.
    pub(in super::super) fn idle_for(&self, now: u64) -> Option<u64> {
        (!self.is_busy()).then(|| now.saturating_sub(self.idle_since.load(Ordering::Relaxed)))
    }

    pub(in super::super) fn closing_for(&self, now: u64) -> Option<u64> {
        let since = self.closing_since.load(Ordering::Relaxed);
        (since != 0).then(|| now.saturating_sub(since))
    }
}

/// A request on its way over a connection, until it is dropped.
#[derive(Debug)]
pub(in super::super) struct Own {
    connection: Arc<Connection>,
    /// Whether it still belongs to nobody.
    counted: bool,
    /// Its place among all requests.
    room: Option<Room>,
}

impl Own {
    /// Takes room for it. False: there is none.
    pub(in super::super) fn enter(&mut self, register: &Arc<Register>) -> bool {
        self.room = register.room(self.connection.crowd.as_ref());
        self.room.is_some()
    }

    /// Its room, for what it becomes.
    pub(in super::super) fn leave(&mut self) -> Option<Room> {
        self.room.take()
    }

    /// It belongs to a session now.
    pub(in super::super) fn claimed(&mut self) {
        if std::mem::take(&mut self.counted) {
            lock(&self.connection.seen).own -= 1;
        }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.claimed();
        self.connection.idle_since.store(clock::now(), Ordering::Relaxed);
        self.connection.busy.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A connection is in the register as long as this lives.
#[derive(Debug)]
pub struct Present {
    register: Arc<Register>,
    connection: Arc<Connection>,
}

impl Present {
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.register.gone(&self.connection);
    }
}

/// One of the many that a connection may come from: an IPv6 host has a whole /64 of addresses.
fn counted_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
        address => address,
    }
}

/// A place among the connections, taken when one is accepted, before anything is read from it.
#[derive(Debug)]
pub(in super::super) struct Place {
    register: Arc<Register>,
    peer: SocketAddr,
    /// `None`: it is a trusted proxy.
    crowd: Option<Arc<Crowd>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut connections = lock(&self.register.connections);
        connections.places = connections.places.saturating_sub(1);
        if let Some(crowd) = &self.crowd
            && crowd.connections.fetch_sub(1, Ordering::Relaxed) == 1
        {
            connections.of_address.remove(&counted_as(self.peer.ip()));
        }
        drop(connections);
        self.register.gone.notify_waiters();
    }
}

impl Register {
    /// A place for a connection from there, if there is one.
    pub(in super::super) fn place(self: &Arc<Self>, peer: SocketAddr) -> Option<Place> {
        let trusted = self.trusted.iter().any(|network| network.contains(peer.ip()));
        let mut connections = lock(&self.connections);
        if connections.places >= self.limits.connections {
            return None;
        }
        let crowd =
            (!trusted).then(|| Arc::clone(connections.of_address.entry(counted_as(peer.ip())).or_default()));
        if let Some(crowd) = &crowd {
            if crowd.connections.load(Ordering::Relaxed) >= self.limits.connections_of_address {
                return None;
            }
            crowd.connections.fetch_add(1, Ordering::Relaxed);
        }
        connections.places += 1;
        Some(Place { register: Arc::clone(self), peer, crowd })
    }

    /// That connection can carry requests from now on.
    pub(in super::super) fn present(
        self: &Arc<Self>,
        place: &Place,
        wire: &Arc<Wire>,
        protocol: Protocol,
    ) -> Present {
        let connection = Arc::new(Connection {
            number: self.numbers.fetch_add(1, Ordering::Relaxed),
            peer: place.peer,
            trusted: place.crowd.is_none(),
            crowd: place.crowd.clone(),
            wire: Arc::clone(wire),
            protocol,
            seen: Mutex::default(),
            aborted: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            head_since: AtomicU64::new(0),
            idle_since: AtomicU64::new(clock::now()),
            closing_since: AtomicU64::new(0),
            busy: AtomicU32::new(0),
            slow: AtomicBool::new(false),
            switched: AtomicBool::new(false),
            abandoned: Mutex::default(),
            task: AtomicWaker::new(),
        });
        lock(&self.connections).all.insert(connection.number, Arc::clone(&connection));
        Present { register: Arc::clone(self), connection }
    }

    /// Every connection that there is now.
    pub(in super::super) fn connections(&self) -> Vec<Arc<Connection>> {
        lock(&self.connections).all.values().cloned().collect()
    }

    /// How many connections have something ready that their clients do not take.
    pub fn blocked(&self) -> usize {
        lock(&self.connections).all.values().filter(|connection| connection.wire.is_blocked()).count()
    }

    /// Waits until there is none.
    pub(in super::super) async fn no_connections(&self) {
        loop {
            let told = self.gone.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            if lock(&self.connections).places == 0 {
                return;
            }
            told.await;
        }
    }

    fn gone(&self, connection: &Connection) {
        lock(&self.connections).all.remove(&connection.number);
        let sessions = {
            let mut seen = lock(&connection.seen);
            // a stream of it may still be on its way to the register
            seen.closing = true;
            std::mem::take(&mut seen.sessions)
        };
        for (session, _) in sessions {
            let mut shard = lock(self.shard(session));
            if let Some(entry) = shard.get_mut(&session) {
                entry.connections.remove(&connection.number);
                if entry.is_forgettable() {
                    shard.remove(&session);
                }
            }
        }
    }
}
