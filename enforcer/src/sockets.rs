//! A session's sockets: found by the worker that holds them, destroyed one by one, by their kernel cookie.
//!
//! Only exact connected sockets are ever touched. Destroying an unconnected UDP socket would disturb ocserv's
//! listener, and with it everybody: none is ever returned from here.
//!
//! Needs `CAP_NET_ADMIN` (SOCK_DESTROY), `CAP_SYS_PTRACE` (pidfd_getfd) and, where ocserv lives in a network
//! namespace of its own, `CAP_SYS_ADMIN` (setns).

mod diag;
mod end;
mod find;
mod named;

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::process::ProcessError;
use crate::session::{Flow, Netns};

pub use end::{EndSettings, Ended, Method, end_worker};
pub use find::connected_sockets;
pub use named::{Named, NamedOutcome, destroy_named};

/// The family of a socket, which is not that of its packets: an AF_INET6 socket carries IPv4 too (mapped).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    V4,
    V6,
}

/// One connected socket.
#[derive(Clone)]
pub struct WorkerSocket {
    pub flow: Flow,
    /// SO_COOKIE: no other socket since boot has had it (`sock_gen_cookie`).
    pub cookie: u64,
    pub family: Family,
    /// The interface that it is bound to, 0 for none (SO_BINDTOIFINDEX; link-local IPv6 and VRFs).
    pub interface: u32,
    /// The network namespace it belongs to: with ocserv's `listen-netns` not that of the worker.
    pub netns: Netns,
    pub(crate) netns_fd: Arc<OwnedFd>,
}

impl fmt::Debug for WorkerSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WorkerSocket({}, cookie {}, {:?}, {:?})", self.flow, self.cookie, self.family, self.netns)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Destroyed,
    /// No socket with that 4-tuple and that cookie is there (any more).
    AlreadyGone,
}

#[derive(Debug, thiserror::Error)]
pub enum FindError {
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error("looking for the sockets of process {pid}: {what}: {source}")]
    Io { pid: i32, what: &'static str, source: io::Error },
    #[error(transparent)]
    Diag(#[from] DestroyError),
}

#[derive(Debug, thiserror::Error)]
pub enum DestroyError {
    #[error("this kernel cannot destroy sockets (it is built without CONFIG_INET_DIAG_DESTROY)")]
    Unsupported,
    #[error("{what}: {source}")]
    Other { what: &'static str, source: io::Error },
}

/// Destroys exactly this socket (SOCK_DESTROY: `tcp_abort`, `udp_abort`), in its own network namespace.
///
/// A TCP peer gets a reset. A UDP socket is left unconnected and bound to the server's port while its process
/// lives (`__udp_disconnect`), where it can take other clients' datagrams: see [`end_worker`].
pub fn destroy(socket: &WorkerSocket) -> Result<Outcome, DestroyError> {
    diag::Diag::open(Some(&socket.netns_fd))?.destroy(&diag::Name::of(socket))
}

/// Destroys the one connected socket with this exact 4-tuple, for a flow that was revoked by its name.
/// `netns` None: the caller's own. A listener or an unconnected socket is never touched.
pub fn destroy_flow(netns: Option<BorrowedFd<'_>>, flow: &Flow) -> Result<Outcome, DestroyError> {
    let mut diag = diag::Diag::open_borrowed(netns)?;
    match diag.find(flow)? {
        Some(found) => diag.destroy(&found.name),
        None => Ok(Outcome::AlreadyGone),
    }
}
