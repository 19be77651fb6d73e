//! ctnetlink's messages, as far as they are needed: the question for entries, an entry, and the order to delete it
//! (`linux/netfilter/nfnetlink_conntrack.h`). Addresses are in network byte order, netlink's own headers in the host's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{
    DecodeError, NLA_F_NESTED, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NlaBuffer, NlasIterator,
};

/// Message types: the subsystem (`NFNL_SUBSYS_CTNETLINK`) in the upper byte.
pub(super) const NEW: u16 = 0x100;
const GET: u16 = 0x101;
const DELETE: u16 = 0x102;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
/// In a tuple.
const CTA_TUPLE_IP: u16 = 1;
/// In its addresses.
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V6_SRC: u16 = 3;
/// In a filter: which fields of the given tuples have to agree.
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
const BY_SOURCE: u32 = 1;

/// The header of every netlink message, and the one that netfilter puts after it (family, version, resource id).
const HEADER: usize = 16;
const NETFILTER_HEADER: usize = 4;

/// Which end of a connection an address is: the one that opened it, or the one that answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    Opened,
    Answers,
}

pub(super) fn family(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    u8::try_from(family).unwrap_or(0)
}

/// The question for every entry of a family; with `end` only for those where the address is that end. A kernel before
/// 5.8 does not know that filter and tells of all: whoever reads the answer looks at the addresses himself.
pub(super) fn dump(family: u8, end: Option<(End, IpAddr)>, sequence: u32) -> Vec<u8> {
    let mut body = Vec::new();
    if let Some((end, address)) = end {
        let mut addresses = Vec::new();
        match address {
            IpAddr::V4(ip) => put(&mut addresses, CTA_IP_V4_SRC, &ip.octets()),
            IpAddr::V6(ip) => put(&mut addresses, CTA_IP_V6_SRC, &ip.octets()),
        }
        let mut tuple = Vec::new();
        put(&mut tuple, CTA_TUPLE_IP | NLA_F_NESTED, &addresses);
        let (tuple_kind, flags_kind) = match end {
            End::Opened => (CTA_TUPLE_ORIG, CTA_FILTER_ORIG_FLAGS),
            End::Answers => (CTA_TUPLE_REPLY, CTA_FILTER_REPLY_FLAGS),
        };
        put(&mut body, tuple_kind | NLA_F_NESTED, &tuple);
        let mut filter = Vec::new();
        put(&mut filter, flags_kind, &BY_SOURCE.to_ne_bytes());
        put(&mut body, CTA_FILTER | NLA_F_NESTED, &filter);
    }
    message(GET, NLM_F_REQUEST | NLM_F_DUMP, sequence, family, &body)
}

/// An entry of the kernel's table, as far as it is needed. Read without a copy.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    family: u8,
    /// The source of packets in the original direction, before any translation: who opened the connection.
    pub opened: IpAddr,
    /// The source of packets in the reply direction, before any translation: who answers. Where the destination was
    /// translated, that is not whom the first packet was addressed to.
    pub answers: IpAddr,
    /// What names it to the kernel, as the kernel gave it: the original tuple, the id, the zone if it has one. The id
    /// tells it from a later connection with the same tuple.
    tuple: &'a [u8],
    id: &'a [u8],
    zone: Option<&'a [u8]>,
}

impl<'a> Entry<'a> {
    /// From what follows the netlink header of ctnetlink's message `IPCTNL_MSG_CT_NEW`: netfilter's header of 4 bytes,
    /// then attributes. An error says what is missing or cut off.
    pub fn parse(payload: &'a [u8]) -> Result<Self, DecodeError> {
        let family = *payload.first().ok_or("no family")?;
        let attributes = payload.get(NETFILTER_HEADER..).ok_or("no netfilter header")?;
        let (mut original, mut reply, mut id, mut zone) = (None, None, None, None);
        for attribute in NlasIterator::new(attributes) {
            let attribute = attribute?;
            match attribute.kind() {
                CTA_TUPLE_ORIG => original = Some(value(attribute)),
                CTA_TUPLE_REPLY => reply = Some(value(attribute)),
                CTA_ID => id = Some(value(attribute)),
                CTA_ZONE => zone = Some(value(attribute)),
                _ => {}
            }
        }
        let tuple = original.ok_or("no original tuple")?;
        Ok(Self {
            family,
            opened: source(tuple)?,
            answers: source(reply.ok_or("no reply tuple")?)?,
            tuple,
            id: id.filter(|id| id.len() == 4).ok_or("no id")?,
            zone,
        })
    }

    /// Whether packets to that address, or from it, belong to this connection. Those are the entries that hand a packet
    /// to the address: a packet's destination is, after translation, the other direction's source before it.
    pub fn ends_at(&self, address: IpAddr) -> bool {
        self.opened == address || self.answers == address
    }

    /// The order to delete exactly this entry: a whole netlink message.
    pub fn delete(&self, sequence: u32) -> Vec<u8> {
        let mut body = Vec::new();
        put(&mut body, CTA_TUPLE_ORIG | NLA_F_NESTED, self.tuple);
        put(&mut body, CTA_ID, self.id);
        if let Some(zone) = self.zone {
            put(&mut body, CTA_ZONE, zone);
        }
        message(DELETE, NLM_F_REQUEST | NLM_F_ACK, sequence, self.family, &body)
    }
}

fn source(tuple: &[u8]) -> Result<IpAddr, DecodeError> {
    for attribute in NlasIterator::new(tuple) {
        let attribute = attribute?;
        if attribute.kind() != CTA_TUPLE_IP {
            continue;
        }
        for attribute in NlasIterator::new(value(attribute)) {
            let attribute = attribute?;
            let bytes = value(attribute);
            match attribute.kind() {
                CTA_IP_V4_SRC => {
                    let octets = <[u8; 4]>::try_from(bytes).map_err(|_| "an IPv4 address of another size")?;
                    return Ok(Ipv4Addr::from(octets).into());
                }
                CTA_IP_V6_SRC => {
                    let octets =
                        <[u8; 16]>::try_from(bytes).map_err(|_| "an IPv6 address of another size")?;
                    return Ok(Ipv6Addr::from(octets).into());
                }
                _ => {}
            }
        }
    }
    Err("a tuple without a source address".into())
}

/// An attribute's value, which lives as long as the message.
fn value(attribute: NlaBuffer<&[u8]>) -> &[u8] {
    let length = usize::from(attribute.length());
    attribute.into_inner().get(4..length).unwrap_or_default()
}

fn put(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    out.extend(length.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn message(kind: u16, flags: u16, sequence: u32, family: u8, body: &[u8]) -> Vec<u8> {
    let length = HEADER + NETFILTER_HEADER + body.len();
    let mut out = Vec::with_capacity(length);
    out.extend(u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    out.extend(sequence.to_ne_bytes());
    // from the kernel's point of view: whoever owns the socket
    out.extend(0u32.to_ne_bytes());
    // the version, NFNETLINK_V0, and no resource id
    out.extend([family, 0, 0, 0]);
    out.extend(body);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tuple(from: IpAddr, to: IpAddr, zone: Option<u16>) -> Vec<u8> {
        let mut addresses = Vec::new();
        let base = if from.is_ipv4() { CTA_IP_V4_SRC } else { CTA_IP_V6_SRC };
        for (kind, address) in [(base, from), (base + 1, to)] {
            match address {
                IpAddr::V4(ip) => put(&mut addresses, kind, &ip.octets()),
                IpAddr::V6(ip) => put(&mut addresses, kind, &ip.octets()),
            }
        }
        let mut tuple = Vec::new();
        put(&mut tuple, CTA_TUPLE_IP | NLA_F_NESTED, &addresses);
        // the protocol's part, which only the kernel reads
        put(&mut tuple, 2 | NLA_F_NESTED, &[5, 0, 1, 0, 17, 0, 0, 0]);
        if let Some(zone) = zone {
            put(&mut tuple, 3, &zone.to_be_bytes());
        }
        tuple
    }

    /// An entry as the kernel sends it, with attributes that are of no concern.
    fn entry(original: &[u8], reply: &[u8], id: u32, zone: Option<u16>) -> Vec<u8> {
        let mut payload = vec![libc::AF_INET as u8, 0, 0, 0];
        put(&mut payload, CTA_TUPLE_ORIG | NLA_F_NESTED, original);
        put(&mut payload, CTA_TUPLE_REPLY | NLA_F_NESTED, reply);
        put(&mut payload, 3, &[0, 0, 1, 0x8e]);
        put(&mut payload, CTA_ID, &id.to_be_bytes());
        if let Some(zone) = zone {
            put(&mut payload, CTA_ZONE, &zone.to_be_bytes());
        }
        payload
    }

    fn addresses() -> impl Strategy<Value = (IpAddr, IpAddr)> {
        prop_oneof![
            any::<([u8; 4], [u8; 4])>().prop_map(|(a, b)| (a.into(), b.into())),
            any::<([u8; 16], [u8; 16])>().prop_map(|(a, b)| (a.into(), b.into())),
        ]
    }

    proptest! {
        #[test]
        fn an_entry_reads_as_the_kernel_wrote_it(
            (from, to) in addresses(),
            id in any::<u32>(),
            zone in any::<Option<u16>>(),
        ) {
            let (original, reply) = (tuple(from, to, zone), tuple(to, from, None));
            let payload = entry(&original, &reply, id, zone);
            let entry = Entry::parse(&payload).unwrap();
            prop_assert_eq!((entry.opened, entry.answers), (from, to));
            prop_assert!(entry.ends_at(from) && entry.ends_at(to));
            // what it is deleted by is what the kernel has told, to the byte
            let order = entry.delete(7);
            let named = Entry { family: order[16], opened: from, answers: to, tuple: &original, id: &id.to_be_bytes(), zone: entry.zone };
            prop_assert_eq!(&entry, &named);
            prop_assert_eq!(u32::from_ne_bytes(order[..4].try_into().unwrap()) as usize, order.len());
            prop_assert_eq!(u16::from_ne_bytes(order[4..6].try_into().unwrap()), DELETE);
            prop_assert_eq!(u32::from_ne_bytes(order[8..12].try_into().unwrap()), 7);
            let told: Vec<(u16, Vec<u8>)> = NlasIterator::new(&order[20..])
                .map(|nla| nla.map(|nla| (nla.kind(), value(nla).to_vec())).unwrap())
                .collect();
            let mut wanted = vec![(CTA_TUPLE_ORIG, original.clone()), (CTA_ID, id.to_be_bytes().to_vec())];
            wanted.extend(zone.map(|zone| (CTA_ZONE, zone.to_be_bytes().to_vec())));
            prop_assert_eq!(told, wanted);
        }

        /// R3: without an id the kernel would delete whatever has that tuple now, without a tuple everything.
        #[test]
        fn r3_no_order_to_delete_lacks_a_tuple_or_an_id(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(entry) = Entry::parse(&bytes) {
                prop_assert!(!entry.tuple.is_empty() && entry.id.len() == 4);
            }
        }

        #[test]
        fn an_entry_that_was_cut_off_is_not_read(at in 0..120usize) {
            let (from, to) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
            let payload = entry(&tuple(from, to, None), &tuple(to, from, None), 1, None);
            let whole = payload.len();
            prop_assert_eq!(Entry::parse(&payload[..at.min(whole)]).is_ok(), at >= whole);
        }
    }

    #[test]
    fn the_other_end_of_a_translated_connection_is_not_an_end() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        // 10.8.0.2 -> 10.77.0.2, masqueraded behind 10.77.0.1
        let payload = entry(
            &tuple(ip("10.8.0.2"), ip("10.77.0.2"), None),
            &tuple(ip("10.77.0.2"), ip("10.77.0.1"), None),
            1,
            None,
        );
        let entry = Entry::parse(&payload).unwrap();
        assert!(entry.ends_at(ip("10.8.0.2")) && entry.ends_at(ip("10.77.0.2")));
        assert!(!entry.ends_at(ip("10.77.0.1")));
    }
}
