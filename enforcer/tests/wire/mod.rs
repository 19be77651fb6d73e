//! Bare IP packets with right checksums, in one piece or in fragments: what a real stack takes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "this is a test")]
#![allow(dead_code, reason = "each file of tests uses a part of it")]

use std::net::{IpAddr, SocketAddr};

/// A datagram that is to be sent.
#[derive(Clone)]
pub struct Datagram {
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    transport: Vec<u8>,
    /// IPv6 destination options before the transport header, eight bytes each.
    options: usize,
    id: u32,
}

impl Datagram {
    pub fn udp(from: &str, to: &str, payload: &[u8]) -> Self {
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let mut transport = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
        transport.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
        transport.extend([0, 0]);
        transport.extend(payload);
        Self::new(from.ip(), to.ip(), 17, transport, Some(6))
    }

    pub fn syn(from: &str, to: &str) -> Self {
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let mut transport = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
        transport.extend([0, 0, 0, 7, 0, 0, 0, 0, 0x70, 2, 0xff, 0xff, 0, 0, 0, 0]);
        // options: MSS 1200, and padding
        transport.extend([2, 4, 4, 0xb0, 1, 1, 1, 1]);
        Self::new(from.ip(), to.ip(), 6, transport, Some(16))
    }

    /// The error of `router` that the port is not there, to whoever has sent this.
    pub fn unreachable(&self, router: &str) -> Self {
        let v4 = self.from.is_ipv4();
        let mut transport = if v4 { vec![3, 3] } else { vec![1, 4] };
        transport.extend([0; 6]);
        transport.extend(self.whole());
        Self::new(router.parse().unwrap(), self.from, if v4 { 1 } else { 58 }, transport, Some(2))
    }

    /// `sum`: where the checksum is in the transport header.
    fn new(from: IpAddr, to: IpAddr, protocol: u8, mut transport: Vec<u8>, sum: Option<usize>) -> Self {
        if let Some(at) = sum {
            let mut covered = Vec::new();
            // ICMP of IPv4 has no addresses in its checksum
            if protocol != 1 {
                covered.extend(octets(from));
                covered.extend(octets(to));
                covered.extend([0, protocol]);
                covered.extend(u16::try_from(transport.len()).unwrap().to_be_bytes());
            }
            covered.extend(&transport);
            let sum = checksum(&covered);
            transport[at..at + 2].copy_from_slice(&sum);
        }
        Self { from, to, protocol, transport, options: 0, id: 1 }
    }

    #[must_use]
    pub fn options(self, options: usize) -> Self {
        Self { options, ..self }
    }

    #[must_use]
    pub fn id(self, id: u32) -> Self {
        Self { id, ..self }
    }

    pub fn transport(&self) -> &[u8] {
        &self.transport
    }

    /// In one piece.
    pub fn whole(&self) -> Vec<u8> {
        let (first, body) = self.body();
        self.packet(first, &body, None)
    }

    /// Cut at these bytes after the IP header, which are multiples of 8.
    pub fn pieces(&self, cuts: &[usize]) -> Vec<Vec<u8>> {
        let (first, body) = self.body();
        let starts = [0].into_iter().chain(cuts.iter().copied());
        let ends = cuts.iter().copied().chain([body.len()]);
        let piece = |(start, end): (usize, usize)| {
            assert!(start % 8 == 0 && start < end, "{start}..{end}");
            self.packet(first, &body[start..end], Some((start, end < body.len())))
        };
        starts.zip(ends).map(piece).collect()
    }

    /// What is fragmented, and the number of its first header.
    fn body(&self) -> (u8, Vec<u8>) {
        let mut body = Vec::new();
        for left in (0..self.options).rev() {
            // padding of four bytes
            body.extend([if left == 0 { self.protocol } else { 60 }, 0, 1, 4, 0, 0, 0, 0]);
        }
        body.extend(&self.transport);
        (if self.options == 0 { self.protocol } else { 60 }, body)
    }

    fn packet(&self, first: u8, body: &[u8], fragment: Option<(usize, bool)>) -> Vec<u8> {
        let field = |(start, more): (usize, bool), unit: usize| {
            u16::try_from(start / unit).unwrap() | {
                let bit = if unit == 8 { 0x2000 } else { 1 };
                if more { bit } else { 0 }
            }
        };
        let mut packet = Vec::new();
        if self.from.is_ipv4() {
            packet.extend([0x45, 0]);
            packet.extend(u16::try_from(20 + body.len()).unwrap().to_be_bytes());
            packet.extend(u16::try_from(self.id).unwrap().to_be_bytes());
            packet.extend(fragment.map_or(0, |cut| field(cut, 8)).to_be_bytes());
            packet.extend([64, first, 0, 0]);
            packet.extend(octets(self.from));
            packet.extend(octets(self.to));
            let sum = checksum(&packet);
            packet[10..12].copy_from_slice(&sum);
        } else {
            packet.extend([0x60, 0, 0, 0]);
            let header = if fragment.is_some() { 8 } else { 0 };
            packet.extend(u16::try_from(header + body.len()).unwrap().to_be_bytes());
            packet.extend([if fragment.is_some() { 44 } else { first }, 64]);
            packet.extend(octets(self.from));
            packet.extend(octets(self.to));
            if let Some(cut) = fragment {
                packet.extend([first, 0]);
                packet.extend(field(cut, 1).to_be_bytes());
                packet.extend(self.id.to_be_bytes());
            }
        }
        packet.extend(body);
        packet
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 =
        bytes.chunks(2).map(|two| u32::from(two[0]) << 8 | two.get(1).map_or(0, |low| u32::from(*low))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}
