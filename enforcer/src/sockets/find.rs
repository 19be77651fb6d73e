//! The connected sockets of one worker: the cost is that of its descriptors, whatever else the host holds.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::mem;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use nix::sys::socket::{SockaddrLike, SockaddrStorage, getpeername, getsockname};

use super::diag::{Diag, Name};
use super::{Family, FindError, WorkerSocket};
use crate::process::{self, ProcessError, Worker};
use crate::session::{Flow, Netns, Protocol};

/// `SIOCGSKNS` of `linux/sockios.h`: a descriptor of the network namespace that a socket belongs to.
const SIOCGSKNS: libc::Ioctl = 0x894c;
/// `SO_BINDTOIFINDEX` of `asm-generic/socket.h` (5.1).
const SO_BINDTOIFINDEX: libc::c_int = 62;

/// The connected TCP and UDP sockets that this worker holds, each once.
///
/// A listener or an unconnected socket is never returned. A worker that has exited has none.
pub fn connected_sockets(worker: &Worker) -> Result<Vec<WorkerSocket>, FindError> {
    let pid = worker.process().pid;
    let descriptors = match socket_descriptors(pid) {
        Ok(descriptors) => descriptors,
        Err(_) if worker.has_exited() => return Ok(Vec::new()),
        Err(source) => return Err(FindError::Io { pid, what: "listing its descriptors", source }),
    };
    let mut found: Vec<WorkerSocket> = Vec::new();
    let mut namespaces = HashMap::new();
    for (fd, _) in &descriptors {
        let socket = match duplicate(worker, *fd) {
            Ok(socket) => socket,
            // the descriptor was closed, or the worker exited, meanwhile
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBADF | libc::ESRCH)) => continue,
            // no such system call (before 5.6), or not permitted (Yama's ptrace_scope 3): the long way
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
                return by_inode(worker, &descriptors);
            }
            Err(source) => return Err(FindError::Io { pid, what: "duplicating a descriptor", source }),
        };
        let read = connected(&socket, &mut namespaces);
        let Some(one) = read.map_err(|source| FindError::Io { pid, what: "reading a socket", source })?
        else {
            continue;
        };
        // a socket may be there under several descriptors
        if found.iter().all(|other| other.cookie != one.cookie) {
            found.push(one);
        }
    }
    Ok(found)
}

/// Descriptor and inode of each socket in `/proc/PID/fd`.
fn socket_descriptors(pid: i32) -> io::Result<Vec<(i32, u32)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        let Ok(link) = fs::read_link(entry.path()) else { continue };
        let inode =
            link.to_str().and_then(|link| link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
        let fd = entry.file_name().to_str().and_then(|name| name.parse().ok());
        all.extend(fd.zip(inode));
    }
    Ok(all)
}

/// pidfd_getfd(2).
fn duplicate(worker: &Worker, fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: three integers in, a new descriptor or -1 out.
    let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, worker.pidfd().as_raw_fd(), fd, 0) };
    match i32::try_from(copy) {
        // SAFETY: the descriptor was just returned to us, and nobody else has it.
        Ok(copy) if copy >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(copy) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// One fixed-size socket option.
fn option<T: Copy + Default>(socket: &OwnedFd, name: libc::c_int) -> io::Result<T> {
    let mut value = T::default();
    let mut length = mem::size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `value`, which is plain integers of that size.
    let done = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, (&raw mut value).cast(), &mut length)
    };
    if done == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    match storage.family()? {
        nix::sys::socket::AddressFamily::Inet => {
            storage.as_sockaddr_in().map(|end| SocketAddrV4::from(*end).into())
        }
        nix::sys::socket::AddressFamily::Inet6 => {
            storage.as_sockaddr_in6().map(|end| SocketAddrV6::from(*end).into())
        }
        _ => None,
    }
}

/// None: it is no connected TCP or UDP socket.
fn connected(
    socket: &OwnedFd,
    namespaces: &mut HashMap<u64, (Netns, Arc<OwnedFd>)>,
) -> io::Result<Option<WorkerSocket>> {
    let family = match option::<libc::c_int>(socket, libc::SO_DOMAIN)? {
        libc::AF_INET => Family::V4,
        libc::AF_INET6 => Family::V6,
        _ => return Ok(None),
    };
    let protocol = match option::<libc::c_int>(socket, libc::SO_PROTOCOL)? {
        libc::IPPROTO_TCP => Protocol::Tcp,
        libc::IPPROTO_UDP => Protocol::Udp,
        _ => return Ok(None),
    };
    // not connected, or not any more: ENOTCONN
    let Ok(peer) = getpeername::<SockaddrStorage>(socket.as_raw_fd()) else { return Ok(None) };
    let local = getsockname::<SockaddrStorage>(socket.as_raw_fd())?;
    let Some((peer, local)) = address(&peer).zip(address(&local)) else { return Ok(None) };
    let Ok(flow) = Flow::new(protocol, peer, local) else { return Ok(None) };
    let cookie = option::<u64>(socket, libc::SO_COOKIE)?;
    // older than 5.1: no such option; a socket bound to an interface is then not found by its name
    let interface = option::<u32>(socket, SO_BINDTOIFINDEX).unwrap_or(0);
    let (netns, netns_fd) = namespace_of(socket, namespaces)?;
    Ok(Some(WorkerSocket { flow, cookie, family, interface, netns, netns_fd }))
}

/// The namespace of a socket; one descriptor for all sockets of one namespace.
fn namespace_of(
    socket: &OwnedFd,
    namespaces: &mut HashMap<u64, (Netns, Arc<OwnedFd>)>,
) -> io::Result<(Netns, Arc<OwnedFd>)> {
    // SAFETY: this ioctl takes no argument and returns a new descriptor or -1.
    let fd = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just returned to us, and nobody else has it.
    let file = fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let inode = file.metadata()?.ino();
    if let Some((netns, fd)) = namespaces.get(&inode) {
        return Ok((*netns, Arc::clone(fd)));
    }
    let number =
        u32::try_from(inode).map_err(|_| io::Error::other("a network namespace with a long inode number"))?;
    let found = (Netns(number), Arc::new(OwnedFd::from(file)));
    namespaces.insert(inode, found.clone());
    Ok(found)
}

/// Without pidfd_getfd: every socket of the worker's network namespace is listed, and the worker's are picked
/// by inode. Costs what the host holds, and does not see sockets of another namespace (`listen-netns`).
fn by_inode(worker: &Worker, descriptors: &[(i32, u32)]) -> Result<Vec<WorkerSocket>, FindError> {
    let (netns, netns_fd) = match process::netns_of(worker.process().pid) {
        Err(ProcessError::Gone(_)) => return Ok(Vec::new()),
        found => found?,
    };
    let netns_fd = Arc::new(netns_fd);
    let all = Diag::open(Some(&netns_fd))?.all()?;
    let ours = all.into_iter().filter(|found| descriptors.iter().any(|(_, inode)| *inode == found.inode));
    let sockets = ours
        .map(|found| {
            let Name { flow, family, interface, cookie } = found.name;
            WorkerSocket { flow, cookie, family, interface, netns, netns_fd: Arc::clone(&netns_fd) }
        })
        .collect();
    // the number could have changed hands while we looked
    Ok(if worker.has_exited() { Vec::new() } else { sockets })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    /// A worker that is this test process itself: holds whatever the test opens.
    pub fn me() -> Worker {
        Worker::open(process::identify(std::process::id() as i32).unwrap()).unwrap()
    }

    #[test]
    fn connected_sockets_are_found_and_listeners_and_unconnected_ones_are_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let six = TcpListener::bind("[::]:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let mapped = TcpStream::connect(("127.0.0.1", six.local_addr().unwrap().port())).unwrap();
        let (over_six, _) = six.accept().unwrap();
        let loose = UdpSocket::bind("127.0.0.1:0").unwrap();
        let tied = UdpSocket::bind("127.0.0.1:0").unwrap();
        tied.connect(loose.local_addr().unwrap()).unwrap();
        let worker = me();
        let found = connected_sockets(&worker).unwrap();
        let flow = |protocol, peer: SocketAddr, local: SocketAddr| Flow::new(protocol, peer, local).unwrap();
        let get = |flow| found.iter().find(|socket| socket.flow == flow);
        let one =
            get(flow(Protocol::Tcp, server.peer_addr().unwrap(), server.local_addr().unwrap())).unwrap();
        assert_eq!(one.family, Family::V4);
        assert_eq!(one.netns, process::own_netns().unwrap().0);
        assert!(
            get(flow(Protocol::Tcp, client.peer_addr().unwrap(), client.local_addr().unwrap())).is_some()
        );
        let six_flow = flow(Protocol::Tcp, mapped.local_addr().unwrap(), mapped.peer_addr().unwrap());
        assert_eq!(get(six_flow).unwrap().family, Family::V6, "{over_six:?}");
        assert!(get(flow(Protocol::Udp, tied.peer_addr().unwrap(), tied.local_addr().unwrap())).is_some());
        let loose_port = loose.local_addr().unwrap().port();
        assert!(found.iter().all(|socket| socket.flow.local().port() != loose_port));
        // the long way finds the same
        let mut long = by_inode(&worker, &socket_descriptors(worker.process().pid).unwrap()).unwrap();
        long.retain(|socket| get(socket.flow).is_some());
        for socket in &found {
            // other tests of this process open and close sockets meanwhile: ours are the ones that count
            if socket.flow == one.flow || socket.flow == six_flow {
                let same = long.iter().find(|other| other.flow == socket.flow).unwrap();
                assert_eq!((same.cookie, same.family), (socket.cookie, socket.family));
            }
        }
    }
}
