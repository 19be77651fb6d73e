//! Which program a clsact filter of ours has. Of filters there are no descriptors, so rtnetlink is asked.

use std::io;
use std::os::fd::BorrowedFd;

use anyhow::{Context as _, Result};
use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::hooks::{MINOR, PRIORITY};
use crate::netlink;

/// A filter: its device, and whether it is one for packets that come in.
pub(super) type At = (u32, bool);

/// Of each filter the kernel's number of its program; `None`: there is no filter of ours. `netns` is the devices'
/// namespace, `None` our own.
///
/// # Errors
/// The kernel cannot be asked at all.
pub(super) fn programs(netns: Option<BorrowedFd<'_>>, filters: &[At]) -> Result<Vec<Result<Option<u32>>>> {
    let socket = netlink::within(netns, || netlink::socket(NETLINK_ROUTE))
        .context("cannot open a socket to ask for tc filters")?;
    Ok((1..).zip(filters).map(|(sequence, at)| program(&socket, sequence, *at)).collect())
}

fn program(socket: &netlink_sys::Socket, sequence: u32, (index, ingress): At) -> Result<Option<u32>> {
    let mut wanted = TcMessage::default();
    wanted.header.index = i32::try_from(index).context("no number of a device")?;
    // TC_H_CLSACT, and TC_H_MIN_INGRESS or TC_H_MIN_EGRESS
    wanted.header.parent = TcHandle { major: 0xffff, minor: if ingress { 0xfff2 } else { 0xfff3 } };
    wanted.header.handle = TcHandle { major: 0, minor: MINOR };
    let protocol = u16::try_from(libc::ETH_P_ALL).context("no number of a protocol")?.to_be();
    wanted.header.info = u32::from(PRIORITY) << 16 | u32::from(protocol);
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    header.sequence_number = sequence;
    let mut request =
        NetlinkMessage::new(header, NetlinkPayload::from(RouteNetlinkMessage::GetTrafficFilter(wanted)));
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0).context("cannot ask for a tc filter")?;
    loop {
        let (answer, _) = socket.recv_from_full().context("cannot read what is said of a tc filter")?;
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
            .context("cannot read what is said of a tc filter")?;
        if message.header.sequence_number != sequence {
            continue;
        }
        return match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewTrafficFilter(filter)) => Ok(id_in(&filter)),
            NetlinkPayload::Error(error) => match error.to_io().raw_os_error() {
                // no clsact, no filter of that priority, no device
                Some(libc::ENOENT | libc::EINVAL | libc::ENODEV) => Ok(None),
                _ => Err(io::Error::from(error).into()),
            },
            _ => Ok(None),
        };
    }
}

fn id_in(filter: &TcMessage) -> Option<u32> {
    let options = filter.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    options.iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
        _ => None,
    })
}
