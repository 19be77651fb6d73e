//! What every netlink socket of ours needs: to be opened in the right network namespace, and never to wait for ever.

use std::io;
use std::os::fd::BorrowedFd;

use netlink_sys::Socket;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use crate::process;

/// Runs `work` in that network namespace (`None`: the caller's own). What it opens there stays of that namespace,
/// wherever it is used. It sees that namespace's `/proc/sys/net` as well.
pub(crate) fn within<T: Send>(
    netns: Option<BorrowedFd<'_>>,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    match netns {
        Some(netns) if !is_own(netns) => std::thread::scope(|scope| {
            // setns(2) changes the calling thread alone, so it is done on a thread that ends with it
            let inside = scope.spawn(|| {
                setns(netns, CloneFlags::CLONE_NEWNET)?;
                work()
            });
            inside.join().unwrap_or_else(|_| Err(io::Error::other("the thread ended early")))
        }),
        _ => work(),
    }
}

/// A netlink socket of the calling thread's namespace. The kernel answers within the call; should it ever not, a read
/// fails after a second.
pub(crate) fn socket(protocol: isize) -> io::Result<Socket> {
    let socket = Socket::new(protocol)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(1, 0))?;
    Ok(socket)
}

/// Whether that namespace is the caller's own.
fn is_own(netns: BorrowedFd<'_>) -> bool {
    let Ok((own, _)) = process::own_netns() else { return false };
    nix::sys::stat::fstat(netns).is_ok_and(|stat| stat.st_ino == u64::from(own.0))
}
