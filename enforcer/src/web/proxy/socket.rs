//! A connected TCP socket that somebody else can end at once, whatever its owner is doing.

use std::io;
use std::mem::size_of;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::clock;
use super::lock;

/// What others hold of a socket: its name in the kernel, and the means to end it.
#[derive(Debug)]
pub struct Wire {
    /// `None` once the owner is about to close it: the number may be another file's a moment later.
    fd: Mutex<Option<RawFd>>,
    cookie: u64,
    /// Our end and the other one.
    ends: (SocketAddr, SocketAddr),
    /// Since when the peer takes nothing, in milliseconds of [`clock::now`]; 0: it takes what it is given.
    blocked: AtomicU64,
    /// Whether something came since it was last forgotten.
    heard: AtomicBool,
}

impl Wire {
    /// SO_COOKIE: no other socket of this host since boot has it. 0 where the kernel does not tell.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Our end's address and the other one's.
    pub fn ends(&self) -> (SocketAddr, SocketAddr) {
        self.ends
    }

    /// Ends the connection now: what waits to be sent is thrown away and the peer gets a reset. The owner hears of it
    /// as of any reset. Returns whether it was still there.
    pub fn abort(&self) -> bool {
        let fd = lock(&self.fd);
        let Some(fd) = *fd else { return false };
        // connect(2) to AF_UNSPEC is tcp_disconnect: it needs no privilege and does not wait for the peer, while
        // shutdown(2) would still deliver what is queued
        let nowhere = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
        // SAFETY: the address lives on the stack for the call, with its true length; the descriptor is open, since its
        // owner takes the lock to remove it from here before it closes it
        let done = unsafe { libc::connect(fd, &nowhere, size_of::<libc::sockaddr>() as libc::socklen_t) };
        if done != 0 {
            // SAFETY: as above; it takes no pointer
            unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
        }
        true
    }

    pub(super) fn hears_nothing(&self) {
        self.heard.store(false, Ordering::Relaxed);
    }

    pub(super) fn hears(&self) {
        self.heard.store(true, Ordering::Relaxed);
    }

    /// Whether something came since [`Wire::hears_nothing`].
    pub(super) fn has_heard(&self) -> bool {
        self.heard.load(Ordering::Relaxed)
    }

    /// Whether the peer took nothing the last time it was given something.
    pub fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed) != 0
    }

    /// For how long the peer has taken nothing although there is something, in milliseconds.
    pub fn blocked_for(&self, now: u64) -> u64 {
        match self.blocked.load(Ordering::Relaxed) {
            0 => 0,
            since => now.saturating_sub(since),
        }
    }
}

/// The owner's side: the stream itself.
#[derive(Debug)]
pub struct Io {
    stream: TcpStream,
    wire: Arc<Wire>,
}

impl Io {
    /// Takes a connected stream over. Small writes go out at once from now on, and little waits in the kernel.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let fd = stream.as_raw_fd();
        keep_little_unsent(fd)?;
        let cookie = cookie_of(fd).unwrap_or(0);
        let ends = (stream.local_addr()?, stream.peer_addr()?);
        let wire = Arc::new(Wire {
            fd: Mutex::new(Some(fd)),
            cookie,
            ends,
            blocked: AtomicU64::new(0),
            heard: AtomicBool::new(false),
        });
        Ok(Self { stream, wire })
    }

    pub fn wire(&self) -> &Arc<Wire> {
        &self.wire
    }

    /// Remembers whether the peer takes what it is given.
    fn took<T>(&self, poll: Poll<T>) -> Poll<T> {
        let blocked = self.wire.blocked.load(Ordering::Relaxed);
        if poll.is_pending() {
            if blocked == 0 {
                self.wire.blocked.store(clock::now(), Ordering::Relaxed);
            }
        } else if blocked != 0 {
            self.wire.blocked.store(0, Ordering::Relaxed);
        }
        poll
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        *lock(&self.wire.fd) = None;
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.took(poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.took(poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The kernel takes no more than that beyond what it has sent (and one write): what it took can only be taken back by a
/// reset of the connection. It is also the memory of a client that stalls, which would be 4 MiB otherwise.
static UNSENT: libc::c_int = 128 << 10;

/// Sets TCP_NOTSENT_LOWAT.
fn keep_little_unsent(fd: RawFd) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the caller's stream is open; the value is a constant of the length that is given
    let done = unsafe {
        libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, (&raw const UNSENT).cast(), length)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// SO_COOKIE of that socket.
fn cookie_of(fd: RawFd) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the caller's stream is open; value and length live on the stack, and the length is the value's
    let done = unsafe {
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_COOKIE, (&raw mut cookie).cast(), &mut length)
    };
    if done == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (Io, Io) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap());
        let (one, other) = tokio::join!(one, listener.accept());
        (Io::new(one.unwrap()).unwrap(), Io::new(other.unwrap().0).unwrap())
    }

    #[tokio::test]
    async fn an_ended_socket_wakes_its_owner_and_resets_its_peer() {
        let (mut ours, mut theirs) = pair().await;
        let wire = Arc::clone(ours.wire());
        assert_ne!(wire.cookie(), 0);
        assert_ne!(wire.cookie(), theirs.wire().cookie());
        let reader = tokio::spawn(async move {
            let read = ours.read(&mut [0; 16]).await;
            (ours, read)
        });
        tokio::task::yield_now().await;
        assert!(wire.abort());
        let (ours, read) = tokio::time::timeout(Duration::from_secs(20), reader).await.unwrap().unwrap();
        assert!(!matches!(read, Ok(1..)), "{read:?}");
        let error = theirs.read(&mut [0; 16]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        drop(ours);
        assert!(!wire.abort(), "the descriptor is closed and may be another file's");
    }

    #[tokio::test]
    async fn an_ended_socket_throws_away_what_was_not_sent_yet() {
        let (mut ours, mut theirs) = pair().await;
        // until the peer's window and our buffer are full
        let mut written = 0;
        while let Ok(wrote) = tokio::time::timeout(Duration::from_millis(200), ours.write(&[7; 65_536])).await
        {
            written += wrote.unwrap();
        }
        assert!(ours.wire().blocked_for(clock::now() + 1) > 0);
        assert!(ours.wire().abort());
        let mut read = 0;
        let mut buf = vec![0; 65_536];
        while let Ok(more @ 1..) = theirs.read(&mut buf).await {
            read += more;
        }
        assert!(read < written, "{read} of {written}");
    }
}
