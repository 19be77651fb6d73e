//! Sockets that somebody else has named by their cookies, who may say anything: what is not its own is let be.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use super::diag::{Diag, Found, Name};
use super::{DestroyError, Family, Outcome};
use crate::session::{Flow, Protocol};

/// A connected TCP socket, as a process has told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Named {
    /// SO_COOKIE.
    pub cookie: u64,
    /// The ends as the socket has them: an IPv4 peer of an IPv6 socket is IPv6 here (`::ffff:192.0.2.1`).
    pub ours: SocketAddr,
    pub theirs: SocketAddr,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamedOutcome {
    Destroyed,
    /// No process has a socket with that cookie (any more).
    Gone,
    /// It is another user's, and was let be.
    Strangers,
}

/// Destroys those of `sockets` that are there and belong to user `uid`, in that network namespace (`None`: the caller's
/// own). Whose a socket is, and what its ends are, is the kernel's word alone.
///
/// # Errors
/// [`DestroyError`]; some of them may have been destroyed by then.
pub fn destroy_named(
    netns: Option<BorrowedFd<'_>>,
    uid: u32,
    sockets: &[Named],
) -> Result<Vec<NamedOutcome>, DestroyError> {
    let mut diag = Diag::open_borrowed(netns)?;
    let mut outcomes = vec![NamedOutcome::Gone; sockets.len()];
    // by cookie: where its outcome goes
    let mut missed: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (place, named) in sockets.iter().enumerate() {
        // neither is a cookie; the second stands for any socket
        if matches!(named.cookie, 0 | u64::MAX) {
            continue;
        }
        match named.name().map(|name| diag.lookup(&name)).transpose()?.flatten() {
            Some(found) => outcomes[place] = destroy(&mut diag, &found, uid)?,
            None => missed.entry(named.cookie).or_default().push(place),
        }
    }
    if missed.is_empty() {
        return Ok(outcomes);
    }
    // a socket that is bound to an interface is not found by its ends alone, and who tells wrong ends may have it still
    for found in diag.all_of(Protocol::Tcp, |found| missed.contains_key(&found.name.cookie))? {
        let outcome = destroy(&mut diag, &found, uid)?;
        for place in missed.get(&found.name.cookie).into_iter().flatten() {
            outcomes[*place] = outcome;
        }
    }
    Ok(outcomes)
}

fn destroy(diag: &mut Diag, found: &Found, uid: u32) -> Result<NamedOutcome, DestroyError> {
    // it was closed: whose it was the kernel does not say
    if found.inode == 0 {
        return Ok(NamedOutcome::Gone);
    }
    if found.uid != uid {
        return Ok(NamedOutcome::Strangers);
    }
    Ok(match diag.destroy(&found.name)? {
        Outcome::Destroyed => NamedOutcome::Destroyed,
        Outcome::AlreadyGone => NamedOutcome::Gone,
    })
}

impl Named {
    /// `None`: no socket has such ends.
    fn name(&self) -> Option<Name> {
        let flow = Flow::new(Protocol::Tcp, self.theirs, self.ours).ok()?;
        let family = if self.ours.is_ipv4() { Family::V4 } else { Family::V6 };
        Some(Name { flow, family, interface: 0, cookie: self.cookie })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd as _;

    use super::*;

    /// A connection: the client's end, the server's, and the server's by name.
    fn connection(listener: &TcpListener) -> (TcpStream, TcpStream, Named) {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = listener.accept().unwrap().0;
        client.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        let named = Named {
            cookie: cookie_of(&server),
            ours: server.local_addr().unwrap(),
            theirs: server.peer_addr().unwrap(),
        };
        (client, server, named)
    }

    fn cookie_of(socket: &TcpStream) -> u64 {
        let (mut cookie, mut length) = (0u64, 8);
        // SAFETY: the kernel writes eight bytes into `cookie`
        let done = unsafe {
            let place = (&raw mut cookie).cast();
            libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, 57, place, &mut length)
        };
        assert_eq!(done, 0);
        cookie
    }

    fn lives(client: &mut TcpStream, server: &mut TcpStream) -> bool {
        let mut byte = [0];
        server.write_all(b"x").is_ok() && client.read_exact(&mut byte).is_ok()
    }

    fn own() -> u32 {
        nix::unistd::geteuid().as_raw()
    }

    /// R3: of two connections the named one dies; one of another user does not, whoever names it.
    #[test]
    fn r3_what_is_named_dies_its_neighbour_lives_and_a_strangers_is_let_be() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let (mut client, _server, named) = connection(&listener);
            let (mut other, mut its_server, neighbour) = connection(&listener);
            let as_stranger = destroy_named(None, own() + 1, &[named, neighbour]).unwrap();
            assert_eq!(as_stranger, [NamedOutcome::Strangers; 2]);
            assert_eq!(destroy_named(None, own(), &[named]).unwrap(), [NamedOutcome::Destroyed]);
            assert!(client.read(&mut [0]).is_err(), "it was reset");
            assert!(lives(&mut other, &mut its_server));
            assert_eq!(destroy_named(None, own(), &[named]).unwrap(), [NamedOutcome::Gone]);
        }
    }

    /// An IPv4 client of a socket that takes both.
    #[test]
    fn a_mapped_address_is_found() {
        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let server = listener.accept().unwrap().0;
        let (ours, theirs) = (server.local_addr().unwrap(), server.peer_addr().unwrap());
        assert!(ours.is_ipv6());
        let named = Named { cookie: cookie_of(&server), ours, theirs };
        assert_eq!(destroy_named(None, own(), &[named]).unwrap(), [NamedOutcome::Destroyed]);
        assert!(client.read(&mut [0]).is_err());
    }

    /// Whoever names may name anything: its own socket is found by its cookie, and nothing else is touched.
    #[test]
    fn r3_wrong_ends_and_odd_cookies_hit_nobody_else() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (mut client, mut server, named) = connection(&listener);
        let (mut other, _its_server, second) = connection(&listener);
        let odd = [0, u64::MAX, second.cookie + (1 << 40)].map(|cookie| Named { cookie, ..named });
        assert_eq!(destroy_named(None, own(), &odd).unwrap(), [NamedOutcome::Gone; 3]);
        assert!(lives(&mut client, &mut server));
        let nowhere = "0.0.0.0:0".parse().unwrap();
        let wrong = [
            Named { ours: named.ours, theirs: named.theirs, ..second },
            Named { ours: nowhere, theirs: nowhere, ..second },
        ];
        let done = destroy_named(None, own(), &wrong).unwrap();
        assert!(done.contains(&NamedOutcome::Destroyed), "{done:?}");
        assert!(other.read(&mut [0]).is_err());
        assert!(lives(&mut client, &mut server), "whose ends were told lives");
        // the listener is none
        assert!(TcpStream::connect(named.ours).is_ok());
    }
}
