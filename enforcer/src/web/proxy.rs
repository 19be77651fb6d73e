//! The reverse proxy: TLS, HTTP/1.1 and HTTP/2 to browsers, HTTP/1.1 to origins, and who has which socket.
//!
//! It knows nothing of cookies and sessions: a [`Guard`] says for each request what becomes of it, and on whose behalf.
//! What it does know is what belongs to whom, so that [`Proxy::end`] takes everything of a session away at once.
//!
//! ```text
//! accept -> TLS -> HTTP/2 (hyper), or Strict -> HTTP/1.1 (hyper)
//!   request -> head (hop by hop, host, path) -> origin -> Guard::admit -> register -> Forwarded
//!           -> a connection that waits, or a fresh one -> Guard::outgoing -> the answer's body, piece by piece
//! ```
//!
//! # How it is meant to be used
//!
//! ```text
//! let proxy = Proxy::bind(settings, guard)?;   // sockets are bound, files are read: before privileges are dropped
//! let threads = proxy.start(cores)?;           // a runtime of its own on each
//! proxy.end(session).await;                    // after the guard's own table knows of the end
//! proxy.reload_certificates()?;                // on SIGHUP; changed files are noticed anyway
//! proxy.drain(time).await;                     // on SIGTERM
//! threads.join();
//! ```
//!
//! A request never leaves its thread: the connection to the origin is driven by whoever waits for the answer. The
//! threads share the listening sockets, the register and the guard.

mod body;
mod clock;
mod guard;
mod head;
mod listener;
mod origin;
mod page;
mod redirect;
mod register;
mod service;
mod settings;
mod socket;
mod strict;
mod sweep;
pub mod table;
mod tls;
mod tunnel;
mod upstream;
mod websocket;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::{Backlog, listen};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tracing::{info, warn};

use self::head::Reserved;
use self::listener::Speech;
use self::origin::Origins;
use self::table::{Table, TableError};
use self::tls::Certificates;
use self::upstream::Pools;

pub use body::BodyError;
pub use guard::{Admission, Asked, Guard, Peer};
pub use origin::{Origin, OriginError};
pub use register::{Connection, Ended, Flight, Refused, Register, Registered, SessionKey, Ticket};
pub use settings::{Certificate, Limits, Network, Origin as OriginSettings, Settings, Times};
pub use tls::TlsError;
pub(super) use tls::connector;

/// How long connections that were reset may take to notice.
const AFTER_ABORT: Duration = Duration::from_secs(2);

/// Why the proxy cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("{address}: cannot be listened at: {error}")]
    Listen { address: SocketAddr, error: io::Error },
    #[error("certificates: {0}")]
    Certificates(#[from] TlsError),
    #[error(transparent)]
    Origin(#[from] OriginError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error("{0}")]
    Settings(String),
}

/// A running proxy, or one that is about to run. Copies are the same one.
pub struct Proxy<G> {
    gate: Arc<Gate<G>>,
}

impl<G> Clone for Proxy<G> {
    fn clone(&self) -> Self {
        Self { gate: Arc::clone(&self.gate) }
    }
}

/// How far the end of the proxy has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    No,
    /// Nothing new begins.
    Draining,
    /// Whatever is left is left behind.
    Over,
}

/// What all threads share.
struct Gate<G> {
    guard: G,
    origins: Origins,
    register: Arc<Register>,
    trusted: Vec<Network>,
    reserved: Reserved,
    limits: Limits,
    times: Times,
    public_port: u16,
    sockets: Vec<(TcpListener, Speech)>,
    certificates: Option<Arc<Certificates>>,
    /// One of the threads does what is done once.
    swept: AtomicBool,
    stop: watch::Sender<Stop>,
}

impl<G: Guard> Proxy<G> {
    /// Reads the certificates and takes the addresses. Nothing is accepted yet.
    pub fn bind(settings: Settings, guard: G) -> Result<Self, ProxyError> {
        check(&settings)?;
        let reserved = Reserved::new(&settings.never_from_clients).map_err(ProxyError::Settings)?;
        let origins = Origins::new(&settings.origins)?;
        let mut sockets = Vec::new();
        let mut take = |addresses: &[SocketAddr], speech: &Speech| {
            for address in addresses {
                let listener =
                    bind(*address).map_err(|error| ProxyError::Listen { address: *address, error })?;
                sockets.push((listener, speech.clone()));
            }
            Ok::<_, ProxyError>(())
        };
        let mut certificates = None;
        if !settings.listen.is_empty() {
            let loaded = Certificates::load(settings.certificates)?;
            take(&settings.listen, &Speech::Tls(loaded.acceptor()?))?;
            certificates = Some(loaded);
        }
        take(&settings.plain, &Speech::Plain)?;
        take(&settings.redirect, &Speech::Redirect)?;
        let slots = settings.limits.table_slots;
        let table = settings.socket_table.as_deref().map(|path| Table::create(path, slots)).transpose()?;
        let register = Register::new(settings.limits, settings.trusted_proxies.clone(), table);
        Ok(Self {
            gate: Arc::new(Gate {
                guard,
                origins,
                register: Arc::new(register),
                trusted: settings.trusted_proxies,
                reserved,
                limits: settings.limits,
                times: settings.times,
                public_port: settings.public_port,
                sockets,
                certificates,
                swept: AtomicBool::new(false),
                stop: watch::Sender::new(Stop::No),
            }),
        })
    }

    /// Where it listens: first those with TLS, then the plain ones, then those that redirect.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.gate.sockets.iter().map(|(listener, _)| listener.local_addr()).collect()
    }

    pub fn guard(&self) -> &G {
        &self.gate.guard
    }

    /// Who has which requests, sockets and connections.
    pub fn register(&self) -> &Arc<Register> {
        &self.gate.register
    }

    /// Serves on as many threads until [`Proxy::drain`], each with a runtime of its own.
    pub fn start(&self, threads: usize) -> io::Result<Threads> {
        let mut started = Threads(Vec::new());
        for number in 0..threads.max(1) {
            let proxy = self.clone();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let thread = std::thread::Builder::new().name(format!("web-{number}"));
            let thread = runtime.and_then(|runtime| thread.spawn(move || runtime.block_on(proxy.serve())));
            if thread.is_err() {
                // the others must not go on unknown
                self.gate.stop.send_replace(Stop::Over);
            }
            started.0.push(thread?);
        }
        Ok(started)
    }

    /// Serves on the runtime that this is called in, until [`Proxy::drain`].
    pub async fn serve(&self) -> io::Result<()> {
        let gate = &self.gate;
        let pools = Pools::new(gate.origins.count(), gate.limits.idle_upstream, gate.times.idle_upstream);
        let pools = Arc::new(pools);
        let mut tasks = JoinSet::new();
        for (listener, speech) in &gate.sockets {
            let listener = tokio::net::TcpListener::from_std(listener.try_clone()?)?;
            tasks.spawn(listener::accept(Arc::clone(gate), Arc::clone(&pools), listener, speech.clone()));
        }
        tasks.spawn(Arc::clone(gate).keep_house(pools));
        let mut stop = gate.stop.subscribe();
        // the sender is in the gate: it cannot be gone
        let _ = stop.wait_for(|stop| *stop != Stop::No).await;
        // what is on its way needs this runtime, and its sweep
        tokio::select! {
            () = gate.register.no_connections() => {}
            _ = stop.wait_for(|stop| *stop == Stop::Over) => {}
        }
        tasks.shutdown().await;
        Ok(())
    }

    /// Ends everything of a session here: its requests, their sockets to origins, and the connections on which nobody
    /// else was seen. Returns when it is gone, or when [`Times::end`] is over. The guard must refuse the session by
    /// then: [`Register`] says why.
    pub async fn end(&self, session: SessionKey) -> Ended {
        self.gate.register.end(session, self.gate.times.end).await
    }

    /// Reads the certificates again. With an error the old ones stay in use.
    pub fn reload_certificates(&self) -> Result<(), TlsError> {
        self.gate.certificates.as_ref().map_or(Ok(()), |certificates| certificates.reload())
    }

    /// Accepts nothing more, lets what is on its way come to its end for that long, and resets the rest. Returns how
    /// many connections that were.
    pub async fn drain(&self, time: Duration) -> usize {
        let register = &self.gate.register;
        self.gate.stop.send_replace(Stop::Draining);
        for connection in register.connections() {
            connection.close();
        }
        if timeout(time, register.no_connections()).await.is_ok() {
            return 0;
        }
        let left = register.connections();
        for connection in &left {
            connection.abort();
        }
        let _ = timeout(AFTER_ABORT, register.no_connections()).await;
        self.gate.stop.send_replace(Stop::Over);
        left.len()
    }
}

impl<G: Guard> Gate<G> {
    /// What has to be looked at from time to time.
    async fn keep_house(self: Arc<Self>, pools: Arc<Pools>) {
        let first = !self.swept.swap(true, Ordering::SeqCst);
        let mut ticks = tokio::time::interval(sweep::interval(&self.times));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looked = Instant::now();
        loop {
            ticks.tick().await;
            pools.sweep();
            if !first {
                continue;
            }
            sweep::sweep(&self.register, &self.times, clock::now());
            if looked.elapsed() >= self.times.reload {
                looked = Instant::now();
                self.look_at_certificates().await;
            }
        }
    }

    async fn look_at_certificates(&self) {
        let Some(certificates) = self.certificates.clone() else { return };
        let looked =
            tokio::task::spawn_blocking(move || certificates.are_stale().then(|| certificates.reload()));
        match looked.await {
            Ok(Some(Ok(()))) => info!("the certificates were read again"),
            Ok(Some(Err(error))) => {
                warn!("the changed certificates cannot be used, the old ones stay: {error}");
            }
            _ => {}
        }
    }
}

/// The threads of a proxy.
#[derive(Debug)]
pub struct Threads(Vec<JoinHandle<io::Result<()>>>);

impl Threads {
    /// Waits until all have ended, after [`Proxy::drain`].
    pub fn join(self) -> io::Result<()> {
        for thread in self.0 {
            thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread ended early")))?;
        }
        Ok(())
    }
}

fn check(settings: &Settings) -> Result<(), ProxyError> {
    let wrong = |text: &str| Err(ProxyError::Settings(text.to_owned()));
    let limits = &settings.limits;
    if !(8_192..=1 << 20).contains(&limits.head_bytes) {
        return wrong("limits: head-bytes must be between 8192 and 1048576");
    }
    if !(1..=10_000).contains(&limits.head_fields) {
        return wrong("limits: head-fields must be between 1 and 10000");
    }
    if limits.connections == 0 || limits.connections_of_address == 0 || limits.streams == 0 {
        return wrong("limits: with 0 connections or streams nobody could be served");
    }
    if limits.requests == 0 || limits.requests_of_address == 0 {
        return wrong("limits: with 0 requests nobody could be served");
    }
    if limits.ended_sessions == 0 || limits.sessions_of_connection == 0 {
        return wrong("limits: ended-sessions and sessions-of-connection must be at least 1");
    }
    if !(1..=1 << 22).contains(&limits.table_slots) {
        return wrong("limits: table-slots must be between 1 and 4194304");
    }
    Ok(())
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    // tokio's sockets are not blocking, and std's bind sets SO_REUSEADDR
    let listener = TcpListener::bind(address)?;
    // std's queue of 128 is short for browsers that come in bursts; the kernel bounds it by net.core.somaxconn
    listen(&listener, Backlog::new(4_096).unwrap_or(Backlog::MAXCONN))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Nothing is left half done where a lock is held: what another thread has left by a panic is used as it is.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
