//! One namespace's table of connections, as ctnetlink tells of it.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use netlink_packet_core::NetlinkBuffer;
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::message::{self, End, Entry};
use super::{Error, Outcome};
use crate::netlink;

/// How many entries the namespace has. The module makes the file, for every namespace.
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// The kernel fills what it is given up to this.
const BUFFER: usize = 32 << 10;

const NLM_F_DUMP_INTR: u16 = 0x10;

/// Dumps come in by one socket, while entries are deleted by another.
pub(super) struct Table {
    dumps: Socket,
    deletes: Socket,
    sequence: u32,
    buffer: Vec<u8>,
    /// How many entries the namespace had at the start; the most that can be where that could not be read.
    pub count: u64,
}

/// What the kernel said at the end of its answer.
enum Said {
    Done {
        /// The table has changed meanwhile, so that something may be missing.
        interrupted: bool,
    },
    Refused(io::Error),
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| match source.kind() {
        io::ErrorKind::WouldBlock => Error::Silent,
        _ => Error::Io { what, source },
    }
}

impl Table {
    /// `None`: nothing is tracked in that namespace. Asking ctnetlink first would load it, and conntrack with it.
    pub fn open(netns: Option<BorrowedFd<'_>>) -> Result<Option<Self>, Error> {
        let sockets = netlink::within(netns, || {
            let count = match std::fs::read_to_string(COUNT) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                // what cannot be read says nothing
                read => read.ok().and_then(|count| count.trim().parse().ok()).unwrap_or(u64::MAX),
            };
            if count == 0 {
                return Ok(None);
            }
            let sockets = (netlink::socket(NETLINK_NETFILTER)?, netlink::socket(NETLINK_NETFILTER)?);
            Ok(Some((sockets, count)))
        });
        match sockets {
            Ok(None) => Ok(None),
            Ok(Some(((dumps, deletes), count))) => {
                Ok(Some(Self { dumps, deletes, sequence: 0, buffer: vec![0; BUFFER], count }))
            }
            Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => Err(Error::NoCtnetlink),
            Err(error) => Err(failed("opening a ctnetlink socket in the network namespace")(error)),
        }
    }

    /// Goes through the entries of a family (with `end`: through those that the kernel picks by it), and deletes what
    /// ends at an address of `mine` for as long as it is `wanted`. True: the table has changed meanwhile, so that some may
    /// have been missed.
    pub fn sweep(
        &mut self,
        family: u8,
        end: Option<(End, IpAddr)>,
        mine: &mut [(IpAddr, &mut Outcome)],
        wanted: &dyn Fn(IpAddr) -> bool,
    ) -> Result<bool, Error> {
        let Self { dumps, deletes, sequence, buffer, .. } = self;
        *sequence += 1;
        let asked = *sequence;
        dumps.send(&message::dump(family, end, asked), 0).map_err(failed("asking ctnetlink"))?;
        let said = read(dumps, buffer, asked, |payload| {
            let entry = Entry::parse(payload).map_err(|error| Error::Odd(error.to_string()))?;
            for (address, outcome) in mine.iter_mut().filter(|(address, _)| entry.ends_at(*address)) {
                // looked at after it was read: what is read before somebody else has the address is not his
                if !wanted(*address) {
                    continue;
                }
                *sequence += 1;
                match delete(deletes, &entry, *sequence)? {
                    None => outcome.taken += 1,
                    Some(error) => match error.raw_os_error() {
                        Some(libc::ENOENT) => {}
                        Some(libc::EBUSY) => outcome.busy += 1,
                        _ => return Err(failed("deleting a connection")(error)),
                    },
                }
                break;
            }
            Ok(())
        })?;
        match said {
            Said::Done { interrupted } => Ok(interrupted),
            Said::Refused(error) => match error.raw_os_error() {
                Some(libc::EPERM) => Err(Error::NoPrivilege),
                // a filter that this kernel knows otherwise
                Some(libc::EINVAL | libc::EOPNOTSUPP) if end.is_some() => {
                    self.sweep(family, None, mine, wanted)
                }
                Some(libc::EINVAL | libc::EOPNOTSUPP) => Err(Error::NoCtnetlink),
                _ => Err(failed("listing connections")(error)),
            },
        }
    }
}

/// None: it is gone. Some: the kernel's refusal.
fn delete(socket: &Socket, entry: &Entry<'_>, sequence: u32) -> Result<Option<io::Error>, Error> {
    socket.send(&entry.delete(sequence), 0).map_err(failed("asking ctnetlink"))?;
    let mut buffer = [0; 1024];
    match read(socket, &mut buffer, sequence, |_| Ok(()))? {
        Said::Done { .. } => Ok(None),
        Said::Refused(error) => Ok(Some(error)),
    }
}

/// Gives every entry of the answer to that question to `each`, as it comes.
fn read(
    socket: &Socket,
    buffer: &mut [u8],
    sequence: u32,
    mut each: impl FnMut(&[u8]) -> Result<(), Error>,
) -> Result<Said, Error> {
    let mut interrupted = false;
    loop {
        let length = socket.recv(&mut &mut *buffer, 0).map_err(failed("reading ctnetlink's answer"))?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest).map_err(|error| Error::Odd(error.to_string()))?;
            let (kind, payload) = (message.message_type(), message.payload());
            let whole = (message.length() as usize).next_multiple_of(4);
            rest = rest.get(whole..).unwrap_or_default();
            // the rest of an answer that nobody waited for
            if message.sequence_number() != sequence {
                continue;
            }
            interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(Said::Done { interrupted }),
                libc::NLMSG_ERROR => {
                    let code = payload.first_chunk().ok_or_else(|| Error::Odd("no error number".into()))?;
                    return Ok(match i32::from_ne_bytes(*code) {
                        0 => Said::Done { interrupted },
                        code => Said::Refused(io::Error::from_raw_os_error(code.saturating_neg())),
                    });
                }
                _ if kind == message::NEW => each(payload)?,
                _ => {}
            }
        }
    }
}

/// The families that these addresses are of.
pub(super) fn families<'a>(addresses: impl Iterator<Item = &'a IpAddr>) -> BTreeSet<u8> {
    addresses.map(|address| message::family(*address)).collect()
}
