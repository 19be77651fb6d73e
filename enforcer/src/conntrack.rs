//! The kernel's table of connections (nf_conntrack), by ctnetlink: what it holds of a tunnel address is taken out before
//! the address is somebody else's.
//!
//! Where the gateway translates addresses, an entry says to whom an answer is handed on: the LAN host answers the
//! gateway, and the entry has the tunnel address in it, for as long as five days after the session's end. Who gets that
//! address next would get those answers, and the old session's expectations (FTP, SIP) with them.
//!
//! Only what ends at the address is taken out: where it opened the connection, or is the one that answers, whatever
//! the zone. Each entry is named by its tuple **and** its id, so that a connection with the same tuple that was made
//! since is not hit. (The kernel makes the id of the entry's place in its memory. One that was made in that very place
//! has the same; so nobody may use the address while its entries are taken out.) What is read is dealt with as it
//! comes: a table of millions takes no memory here.

mod message;
mod table;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use message::End;
pub use message::Entry;
use table::Table;

/// Up to so many addresses of a family are looked for one by one, by the kernel, which skips quickly what is not theirs;
/// but goes through all of its buckets twice for each. So for more of them, and where the table has few entries for each
/// of them, everything is read once.
const ONE_BY_ONE: usize = 4;
const FEW: u64 = 4_000;

/// How often the table is gone through at most: again where the kernel says that it changed its shape meanwhile.
const PASSES: usize = 8;

/// What was done for one address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// Entries that were taken out.
    pub taken: u64,
    /// Entries that the kernel would not give up: it has them in a flowtable, and is older than 6.4.
    pub busy: u64,
    /// Why it is not done, if so.
    pub left: Option<Left>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Left {
    /// Time was up, or it was not wanted any more.
    Stopped,
    /// The table changed its shape again and again.
    Restless,
}

impl Outcome {
    /// Nothing ends at the address any more.
    pub fn is_done(&self) -> bool {
        self.busy == 0 && self.left.is_none()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} entries were taken out", self.taken)?;
        if self.busy > 0 {
            write!(f, "; {} are in a flowtable, and this kernel keeps them until they are idle", self.busy)?;
        }
        match self.left {
            Some(Left::Stopped) => f.write_str("; then time was up"),
            Some(Left::Restless) => f.write_str("; some may have been missed, since the table changes"),
            None => Ok(()),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "connections are tracked, and this kernel does not tell of them: it lacks CONFIG_NF_CT_NETLINK (nf_conntrack_netlink)"
    )]
    NoCtnetlink,
    #[error("the kernel's connections may not be read or deleted: CAP_NET_ADMIN is missing")]
    NoPrivilege,
    #[error("conntrack has not answered for a second")]
    Silent,
    #[error("conntrack's answer cannot be read: {0}")]
    Odd(String),
    #[error("{what}: {source}")]
    Io { what: &'static str, source: io::Error },
}

/// Takes out every entry that ends at one of these addresses, in that network namespace (`None`: the caller's own).
///
/// `Ok(None)`: nothing is tracked there, conntrack is not even loaded (and is not loaded by this). Otherwise an outcome
/// for each address. It ends by `until`, and for each address as soon as it is not `wanted` any more: nothing that is
/// read from the kernel after that is deleted. It blocks: not for the daemon's loop.
pub fn forget(
    netns: Option<BorrowedFd<'_>>,
    addresses: impl IntoIterator<Item = IpAddr>,
    until: Instant,
    wanted: &dyn Fn(IpAddr) -> bool,
) -> Result<Option<BTreeMap<IpAddr, Outcome>>, Error> {
    let mut outcomes: BTreeMap<IpAddr, Outcome> =
        addresses.into_iter().map(|address| (address, Outcome::default())).collect();
    let Some(mut table) = Table::open(netns)? else { return Ok(None) };
    let wanted = |address| Instant::now() < until && wanted(address);
    for family in table::families(outcomes.keys()) {
        let mut mine: Vec<(IpAddr, &mut Outcome)> = (outcomes.iter_mut())
            .filter(|(address, _)| message::family(**address) == family)
            .map(|(address, outcome)| (*address, outcome))
            .collect();
        let few = table.count <= FEW.saturating_mul(mine.len() as u64);
        if mine.len() <= ONE_BY_ONE && !few {
            for one in mine.chunks_mut(1) {
                sweep(&mut table, family, true, one, &wanted)?;
            }
        } else {
            sweep(&mut table, family, false, &mut mine, &wanted)?;
        }
    }
    Ok(Some(outcomes))
}

/// Nothing can be added meanwhile, since the addresses are dropped; so once is enough. `by_address`: the kernel picks what
/// is the one address's.
fn sweep(
    table: &mut Table,
    family: u8,
    by_address: bool,
    mine: &mut [(IpAddr, &mut Outcome)],
    wanted: &dyn Fn(IpAddr) -> bool,
) -> Result<(), Error> {
    for _ in 0..PASSES {
        mine.iter_mut().for_each(|(_, outcome)| outcome.busy = 0);
        let mut again = false;
        let alone = if let [(address, _)] = mine { Some(*address).filter(|_| by_address) } else { None };
        if let Some(address) = alone {
            for end in [End::Opened, End::Answers] {
                again |= table.sweep(family, Some((end, address)), mine, wanted)?;
            }
        } else {
            again |= table.sweep(family, None, mine, wanted)?;
        }
        for (address, outcome) in mine.iter_mut() {
            outcome.left = (!wanted(*address)).then_some(Left::Stopped);
        }
        if !again || mine.iter().all(|(_, outcome)| outcome.left.is_some()) {
            return Ok(());
        }
    }
    for (_, outcome) in mine.iter_mut() {
        outcome.left = outcome.left.or(Some(Left::Restless));
    }
    Ok(())
}
