//! The end of a worker: politely, then its sockets, then the process.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::diag::{Diag, Name};
use super::{DestroyError, Outcome, WorkerSocket, connected_sockets};
use crate::process::Worker;
use crate::session::{Flow, Protocol};

/// How long a killed process is waited for: it has nothing to do but to exit.
const AFTER_KILL: Duration = Duration::from_secs(2);
/// How often a socket is looked at that outlives its worker.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// SOCK_DESTROY where the kernel has it, else SIGKILL.
    Auto,
    /// SIGKILL at once: for kernels without SOCK_DESTROY, and to test that way on any kernel.
    Kill,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EndSettings {
    /// How long the worker may take to say goodbye and exit, which somebody else has asked it to.
    pub head_start: Duration,
    pub method: Method,
    /// How long it may live without its sockets.
    pub kill_after: Duration,
}

impl Default for EndSettings {
    fn default() -> Self {
        Self {
            head_start: Duration::from_millis(50),
            method: Method::Auto,
            kill_after: Duration::from_millis(100),
        }
    }
}

/// What was done.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ended {
    /// It exited within its head start.
    pub exited_by_itself: bool,
    pub destroyed: Vec<Flow>,
    /// It was sent SIGKILL.
    pub killed: bool,
    /// The kernel cannot destroy sockets, or was not to: only the kill ended them.
    pub unsupported: bool,
    /// Sockets that may still be there, and why.
    pub left: Vec<(Flow, String)>,
    /// What else went wrong; the process may still be there if it is said here.
    pub problems: Vec<String>,
}

impl Ended {
    /// Whether nothing of the session is left here.
    pub fn is_clean(&self) -> bool {
        self.left.is_empty() && self.problems.is_empty()
    }
}

/// Ends a worker. When this returns cleanly its process is gone, and no socket of it can send any more.
///
/// It is not enough to destroy the sockets. A connected UDP socket that is destroyed is left *unconnected and
/// bound to the server's port* (`udp_abort`, `__udp_disconnect`) as long as its process lives: a hung worker would
/// then take datagrams of other clients. And a process that exits leaves its TCP socket to the kernel, which goes
/// on sending what was written. So a worker that does not exit promptly without its sockets is killed (which a
/// stopped process cannot escape), and a socket that outlives its worker with unsent data is destroyed.
pub async fn end_worker(worker: &Worker, settings: EndSettings) -> Ended {
    let deadline = Instant::now() + settings.head_start;
    let mut ended = Ended::default();
    // looked up first: after its exit nobody could say any more which sockets were its
    let mut sockets = find(worker, &mut ended);
    ended.exited_by_itself = matches!(timeout(settings.head_start, worker.exited()).await, Ok(Ok(())));
    if !ended.exited_by_itself {
        // it may have opened its DTLS socket meanwhile
        for socket in find(worker, &mut ended) {
            if sockets.iter().all(|known| known.cookie != socket.cookie) {
                sockets.push(socket);
            }
        }
        if settings.method == Method::Auto {
            destroy_all(&sockets, &mut ended);
        } else {
            ended.unsupported = true;
        }
        let patience = if ended.unsupported { Duration::ZERO } else { settings.kill_after };
        if !matches!(timeout(patience, worker.exited()).await, Ok(Ok(()))) && !worker.has_exited() {
            kill(worker, &mut ended).await;
        }
    }
    if worker.has_exited() {
        drain(&sockets, settings.method, deadline, &mut ended).await;
    }
    ended
}

fn find(worker: &Worker, ended: &mut Ended) -> Vec<WorkerSocket> {
    connected_sockets(worker).unwrap_or_else(|error| {
        let said = error.to_string();
        if !ended.problems.contains(&said) {
            ended.problems.push(said);
        }
        Vec::new()
    })
}

async fn kill(worker: &Worker, ended: &mut Ended) {
    ended.killed = true;
    if let Err(error) = worker.kill() {
        ended.problems.push(error.to_string());
    }
    match timeout(AFTER_KILL, worker.exited()).await {
        // what could not be found by its descriptors is closed with its process
        Ok(Ok(())) => ended.problems.clear(),
        _ => ended.problems.push(format!("process {} does not end", worker.process().pid)),
    }
}

fn destroy_all(sockets: &[WorkerSocket], ended: &mut Ended) {
    for socket in sockets {
        destroy_one(socket, ended);
    }
}

fn destroy_one(socket: &WorkerSocket, ended: &mut Ended) {
    ended.left.retain(|(flow, _)| *flow != socket.flow);
    match super::destroy(socket) {
        Ok(Outcome::Destroyed) if !ended.destroyed.contains(&socket.flow) => {
            ended.destroyed.push(socket.flow)
        }
        Ok(_) => {}
        Err(error) => {
            ended.unsupported |= matches!(error, DestroyError::Unsupported);
            ended.left.push((socket.flow, error.to_string()));
        }
    }
}

/// After the exit: UDP sockets are gone with the process, a TCP socket may still have data to send. It gets the
/// rest of the head start to deliver the goodbye.
async fn drain(sockets: &[WorkerSocket], method: Method, deadline: Instant, ended: &mut Ended) {
    // whatever could not be said of them before: closed now, or looked at below
    ended.left.clear();
    for socket in sockets.iter().filter(|socket| socket.flow.protocol() == Protocol::Tcp) {
        let look = || Diag::open(Some(&socket.netns_fd)).and_then(|mut diag| diag.lookup(&Name::of(socket)));
        loop {
            match look() {
                Ok(Some(found)) if found.can_still_send() => {}
                Ok(_) => break,
                Err(error) => {
                    ended.left.push((socket.flow, error.to_string()));
                    break;
                }
            }
            if Instant::now() < deadline {
                sleep(LOOK_AGAIN).await;
                continue;
            }
            if method == Method::Kill || ended.unsupported {
                ended
                    .left
                    .push((socket.flow, "unsent data stays with the kernel until the peer takes it".into()));
            } else {
                destroy_one(socket, ended);
            }
            break;
        }
    }
}
