//! rtnetlink's messages, as far as they are needed (`linux/rtnetlink.h`, `if_link.h`, `if_addr.h`). Numbers are in the
//! host's byte order.

use std::io;

use netlink_packet_core::{DecodeError, NLM_F_DUMP, NLM_F_REQUEST, NlasIterator};

use super::{Link, Wanted};

const HEADER: usize = 16;

const IFLA_IFNAME: u16 = 3;
const RTA_OIF: u16 = 4;
const RTA_MULTIPATH: u16 = 9;

/// `struct ifinfomsg`, `ifaddrmsg`, `rtmsg`, `tcmsg`, `rtnexthop`.
const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
const ROUTE_HEADER: usize = 12;
const HOP_HEADER: usize = 8;

/// What can be listed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Topic {
    Links,
    Addresses,
    Routes,
}

/// What a message says.
#[derive(Debug)]
pub(super) enum Said {
    Link(Link),
    /// An interface is no more, or not in this namespace.
    Gone {
        index: u32,
    },
    /// An interface has an address of global scope.
    Address {
        index: u32,
    },
    /// By these interfaces.
    DefaultRoute {
        through: Vec<u32>,
    },
    /// Somebody has taken a qdisc or a filter of that interface.
    Unfiltered {
        index: u32,
    },
    /// The end of a list.
    Done,
    Refused(io::Error),
    /// Nothing that is needed here.
    Other,
}

/// The question for all of a kind.
pub(super) fn dump(topic: Topic, sequence: u32) -> Vec<u8> {
    let (kind, body) = match topic {
        Topic::Links => (libc::RTM_GETLINK, LINK_HEADER),
        Topic::Addresses => (libc::RTM_GETADDR, ADDRESS_HEADER),
        Topic::Routes => (libc::RTM_GETROUTE, ROUTE_HEADER),
    };
    let length = HEADER + body;
    let mut out = Vec::with_capacity(length);
    out.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    out.extend(sequence.to_ne_bytes());
    // from the kernel's point of view: whoever owns the socket
    out.extend(0u32.to_ne_bytes());
    // every family, every interface
    out.resize(length, 0);
    out
}

/// The groups that tell of what is wanted.
pub(super) fn groups(wanted: Wanted) -> impl Iterator<Item = u32> {
    let addresses = wanted.addresses.then_some([libc::RTNLGRP_IPV4_IFADDR, libc::RTNLGRP_IPV6_IFADDR]);
    let routes = wanted.routes.then_some([libc::RTNLGRP_IPV4_ROUTE, libc::RTNLGRP_IPV6_ROUTE]);
    [libc::RTNLGRP_LINK, libc::RTNLGRP_TC]
        .into_iter()
        .chain(addresses.into_iter().flatten())
        .chain(routes.into_iter().flatten())
}

/// What is left after a message of that size.
pub(super) fn after(bytes: &[u8], size: usize) -> &[u8] {
    bytes.get(size.next_multiple_of(4)..).unwrap_or_default()
}

/// Reads a message, by its type and what follows the netlink header. An error says what is missing or cut off.
pub(super) fn read(kind: u16, payload: &[u8]) -> Result<Said, DecodeError> {
    match i32::from(kind) {
        libc::NLMSG_DONE => return Ok(Said::Done),
        libc::NLMSG_ERROR => {
            let code = i32::from_ne_bytes(bytes(payload, 0)?);
            return Ok(match code {
                0 => Said::Done,
                code => Said::Refused(io::Error::from_raw_os_error(code.saturating_neg())),
            });
        }
        _ => {}
    }
    match kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => {
            let family = *payload.first().ok_or("no family")?;
            // a bridge tells of its ports in the same words
            if i32::from(family) != libc::AF_UNSPEC {
                return Ok(Said::Other);
            }
            let index = u32::from_ne_bytes(bytes(payload, 4)?);
            if kind == libc::RTM_DELLINK {
                return Ok(Said::Gone { index });
            }
            let ethernet = u16::from_ne_bytes(bytes(payload, 2)?) == libc::ARPHRD_ETHER;
            let mut name = String::new();
            for attribute in NlasIterator::new(payload.get(LINK_HEADER..).ok_or("no link")?) {
                let attribute = attribute?;
                if attribute.kind() == IFLA_IFNAME {
                    let text = attribute.value().split(|byte| *byte == 0).next().unwrap_or_default();
                    name = String::from_utf8_lossy(text).into_owned();
                }
            }
            Ok(Said::Link(Link { index, name, ethernet, has_address: false, has_default_route: false }))
        }
        libc::RTM_NEWADDR => {
            let scope = *payload.get(3).ok_or("no scope")?;
            let index = u32::from_ne_bytes(bytes(payload, 4)?);
            Ok(if scope == libc::RT_SCOPE_UNIVERSE { Said::Address { index } } else { Said::Other })
        }
        libc::RTM_NEWROUTE => {
            let length = *payload.get(1).ok_or("no length of a prefix")?;
            let unicast = payload.get(7) == Some(&libc::RTN_UNICAST);
            if length != 0 || !unicast {
                return Ok(Said::Other);
            }
            let mut through = Vec::new();
            for attribute in NlasIterator::new(payload.get(ROUTE_HEADER..).ok_or("no route")?) {
                let attribute = attribute?;
                match attribute.kind() {
                    RTA_OIF => through.push(u32::from_ne_bytes(bytes(attribute.value(), 0)?)),
                    RTA_MULTIPATH => hops(attribute.value(), &mut through)?,
                    _ => {}
                }
            }
            Ok(Said::DefaultRoute { through })
        }
        libc::RTM_DELQDISC | libc::RTM_DELTFILTER => {
            Ok(Said::Unfiltered { index: u32::from_ne_bytes(bytes(payload, 4)?) })
        }
        _ => Ok(Said::Other),
    }
}

/// The hops of a route: each with its length, its interface at offset 4, and attributes of its own.
fn hops(mut all: &[u8], through: &mut Vec<u32>) -> Result<(), DecodeError> {
    while !all.is_empty() {
        let length = usize::from(u16::from_ne_bytes(bytes(all, 0)?));
        through.push(u32::from_ne_bytes(bytes(all, 4)?));
        // a shorter one would never end
        all = after(all, length.max(HOP_HEADER));
    }
    Ok(())
}

fn bytes<const N: usize>(from: &[u8], at: usize) -> Result<[u8; N], DecodeError> {
    let found = from.get(at..).and_then(|rest| rest.first_chunk());
    Ok(*found.ok_or("a message that was cut off")?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
        out.extend(kind.to_ne_bytes());
        out.extend(value);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    fn link(family: u8, kind: u16, index: u32, name: &str) -> Vec<u8> {
        let mut out = vec![family, 0];
        out.extend(kind.to_ne_bytes());
        out.extend(index.to_ne_bytes());
        out.extend([0; 8]);
        // its address comes first
        out.extend(attribute(1, &[2; 6]));
        out.extend(attribute(IFLA_IFNAME, format!("{name}\0").as_bytes()));
        out
    }

    fn default_route(length: u8, kind: u8, attributes: &[u8]) -> Vec<u8> {
        let mut out = vec![libc::AF_INET as u8, length, 0, 0, 254, 0, 0, kind, 0, 0, 0, 0];
        out.extend(attributes);
        out
    }

    #[test]
    fn links_are_read_and_a_bridges_ports_are_no_links() {
        let read = |kind, payload: &[u8]| read(kind, payload).unwrap();
        let Said::Link(found) = read(libc::RTM_NEWLINK, &link(0, libc::ARPHRD_ETHER, 7, "eth0")) else {
            panic!("a link");
        };
        let expected = Link {
            index: 7,
            name: "eth0".into(),
            ethernet: true,
            has_address: false,
            has_default_route: false,
        };
        assert_eq!(found, expected);
        let tun = link(0, libc::ARPHRD_NONE, 8, "tun0");
        assert!(matches!(read(libc::RTM_NEWLINK, &tun), Said::Link(Link { ethernet: false, .. })));
        assert!(matches!(read(libc::RTM_DELLINK, &tun), Said::Gone { index: 8 }));
        let port = link(libc::AF_BRIDGE as u8, libc::ARPHRD_ETHER, 7, "eth0");
        assert!(matches!(read(libc::RTM_DELLINK, &port), Said::Other), "it has left the bridge, no more");
    }

    #[test]
    fn default_routes_are_read_with_all_their_ways() {
        let through = |payload: &[u8]| match read(libc::RTM_NEWROUTE, payload).unwrap() {
            Said::DefaultRoute { through } => Some(through),
            _ => None,
        };
        let one = attribute(RTA_OIF, &3u32.to_ne_bytes());
        assert_eq!(through(&default_route(0, libc::RTN_UNICAST, &one)), Some(vec![3]));
        assert_eq!(through(&default_route(8, libc::RTN_UNICAST, &one)), None);
        assert_eq!(through(&default_route(0, libc::RTN_BLACKHOLE, &one)), None);
        let gateway = attribute(5, &[10, 0, 0, 1]);
        let mut hops = Vec::new();
        for index in [4u32, 5] {
            hops.extend(u16::try_from(HOP_HEADER + gateway.len()).unwrap().to_ne_bytes());
            hops.extend([0, 0]);
            hops.extend(index.to_ne_bytes());
            hops.extend(&gateway);
        }
        let many = attribute(RTA_MULTIPATH, &hops);
        assert_eq!(through(&default_route(0, libc::RTN_UNICAST, &many)), Some(vec![4, 5]));
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_refused(
            kind in prop_oneof![Just(libc::RTM_NEWLINK), Just(libc::RTM_NEWROUTE), Just(libc::RTM_NEWADDR), any::<u16>()],
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = read(kind, &bytes);
        }

        #[test]
        fn a_route_whose_hops_are_nonsense_ends(hops in proptest::collection::vec(any::<u8>(), 0..200)) {
            let route = default_route(0, libc::RTN_UNICAST, &attribute(RTA_MULTIPATH, &hops));
            let _ = read(libc::RTM_NEWROUTE, &route);
        }
    }
}
