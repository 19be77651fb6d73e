//! Unix sockets that only root, the daemon's own user and whom a socket is for can speak through, and only so many at
//! once.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::Context as _;
use nix::sys::stat::{Mode, umask};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::Stream;
use tonic::transport::server::Connected;

/// How many may be connected to one socket at once.
pub(super) const MAX_CONNECTIONS: usize = 256;

/// Who is at the other end (SO_PEERCRED).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    pub uid: u32,
    /// In the daemon's pid namespace; `None` where it is not visible there.
    pub pid: Option<i32>,
}

/// Binds a socket of mode 0600, in a folder that is made (0700) if it is not there.
///
/// A socket that a dead daemon left behind is replaced; one that a living daemon answers on is an error.
pub fn bind(path: &Path) -> anyhow::Result<std::os::unix::net::UnixListener> {
    if let Some(folder) = path.parent()
        && !folder.exists()
    {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))
            .with_context(|| format!("cannot close {} to others", folder.display()))?;
    }
    if let Ok(there) = std::fs::symlink_metadata(path) {
        anyhow::ensure!(
            there.file_type().is_socket(),
            "{} is there and is not a socket: move it away",
            path.display()
        );
        anyhow::ensure!(
            std::os::unix::net::UnixStream::connect(path).is_err(),
            "another enforcer answers on {}: stop it first",
            path.display()
        );
        std::fs::remove_file(path).with_context(|| format!("cannot replace {}", path.display()))?;
    }
    // before the socket is there: nobody may slip in between bind and chmod
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = std::os::unix::net::UnixListener::bind(path);
    umask(before);
    let bound = bound.with_context(|| format!("cannot listen on {}", path.display()))?;
    bound.set_nonblocking(true)?;
    Ok(bound)
}

/// Binds a socket of mode 0600 that belongs to `uid`. Its folder is made (0711, so that he comes to it) if it is not there;
/// nobody but root, or the daemon's own user, may be able to write to it: he could put another file in the socket's place.
pub fn bind_for(path: &Path, uid: u32) -> anyhow::Result<std::os::unix::net::UnixListener> {
    let folder = path.parent().context("the socket's path has no folder")?;
    if !folder.exists() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711))
            .with_context(|| format!("cannot set the mode of {}", folder.display()))?;
    }
    let about = std::fs::metadata(folder).with_context(|| format!("cannot look at {}", folder.display()))?;
    let own = nix::unistd::geteuid().as_raw();
    anyhow::ensure!(
        (about.uid() == 0 || about.uid() == own) && about.mode() & 0o022 == 0,
        "{} can be written to by others, who could put a file of theirs in the place of {}: make it root's, with mode 0711",
        folder.display(),
        path.display()
    );
    let bound = bind(path)?;
    std::os::unix::fs::lchown(path, Some(uid), None)
        .with_context(|| format!("cannot give {} to user {uid}", path.display()))?;
    Ok(bound)
}

/// A connection whose peer was checked.
pub struct Checked {
    stream: UnixStream,
    caller: Caller,
    _place: OwnedSemaphorePermit,
}

/// The connections of a listener, one by one and so many at once; strangers are turned away. `also`: who may speak here
/// beside root and the daemon's own user.
pub fn incoming(
    listener: UnixListener,
    also: Option<u32>,
    most: usize,
) -> impl Stream<Item = io::Result<Checked>> {
    let places = Arc::new(Semaphore::new(most));
    let own = nix::unistd::geteuid().as_raw();
    futures::stream::unfold((listener, places), move |(listener, places)| async move {
        loop {
            let place = Arc::clone(&places).acquire_owned().await.ok()?;
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // out of descriptors, most likely: the next one may fit again
                    tracing::warn!(%error, "a connection could not be taken");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                }
            };
            match stream.peer_cred() {
                Ok(peer) if peer.uid() == 0 || peer.uid() == own || also == Some(peer.uid()) => {
                    let caller = Caller { uid: peer.uid(), pid: peer.pid().filter(|pid| *pid > 0) };
                    return Some((Ok(Checked { stream, caller, _place: place }), (listener, places)));
                }
                Ok(peer) => tracing::warn!(
                    uid = peer.uid(),
                    "turned away: only root, or whom this socket is for, may speak here"
                ),
                Err(error) => tracing::warn!(%error, "turned away: its credentials cannot be read"),
            }
        }
    })
}

impl Connected for Checked {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller
    }
}

impl AsyncRead for Checked {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Checked {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
