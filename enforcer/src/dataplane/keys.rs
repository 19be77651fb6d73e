//! Entries as keys of the maps, and back.

use std::net::{IpAddr, SocketAddr};

use enforcer_ebpf::layout::{
    self, AddressKey, DeviceKey, Digest, FlowKey, GateHitKey, TCP, TOKEN_DTLS, TOKEN_OPENVPN, TokenKey, UDP,
};

use crate::session::{self, Device, Entry, Flow, Netns, Protocol, SafeId, Token, TokenKind};

/// [`GateHitKey::kind`]
pub(super) const HITS_SAFE_ID: u32 = 1;
pub(super) const HITS_CUTOFF: u32 = 2;
pub(super) const HITS_LOCK: u32 = 3;

/// A key, by the map that it belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Key {
    Flow(FlowKey),
    Address(AddressKey),
    Device(DeviceKey),
    Token(TokenKey),
    SafeId(Digest),
    Cutoff(Digest),
    Lock(Digest),
}

impl Key {
    pub(super) fn of(entry: &Entry) -> Self {
        match entry {
            Entry::Device(device) => Self::Device(DeviceKey { netns: device.netns.0, ifindex: device.index }),
            Entry::Address(netns, address) => {
                Self::Address(AddressKey { address: (*address).into(), netns: netns.0 })
            }
            Entry::Flow(netns, flow) => Self::Flow(FlowKey {
                client: flow.client().ip().into(),
                local: flow.local().ip().into(),
                client_port: flow.client().port().to_be(),
                local_port: flow.local().port().to_be(),
                protocol: match flow.protocol() {
                    Protocol::Tcp => TCP,
                    Protocol::Udp => UDP,
                },
                netns: netns.0,
            }),
            Entry::Token(token) => {
                let kind = match token.kind() {
                    TokenKind::Dtls => TOKEN_DTLS,
                    TokenKind::Openvpn => TOKEN_OPENVPN,
                };
                // a token has 1 to 32 bytes by construction; the default matches no packet
                Self::Token(TokenKey::new(kind, token.id()).unwrap_or_default())
            }
            Entry::SafeId(id) => Self::SafeId(Digest::new(id.as_bytes())),
            Entry::Cutoff(key) => Self::Cutoff(Digest::new(key.as_bytes())),
            Entry::Lock(key) => Self::Lock(Digest::new(key.as_bytes())),
        }
    }

    /// `None` for what no constructor of ours makes.
    pub(super) fn entry(self) -> Option<Entry> {
        Some(match self {
            Self::Device(DeviceKey { netns, ifindex }) => {
                Entry::Device(Device { netns: Netns(netns), index: ifindex })
            }
            Self::Address(AddressKey { address, netns }) => Entry::Address(Netns(netns), address.into()),
            Self::Flow(FlowKey { client, local, client_port, local_port, protocol, netns }) => {
                let protocol = match protocol {
                    TCP => Protocol::Tcp,
                    UDP => Protocol::Udp,
                    _ => return None,
                };
                let end = |address: layout::Address, port| {
                    SocketAddr::new(IpAddr::from(address), u16::from_be(port))
                };
                Entry::Flow(
                    Netns(netns),
                    Flow::new(protocol, end(client, client_port), end(local, local_port)).ok()?,
                )
            }
            Self::Token(key) => {
                let kind = match key.kind {
                    TOKEN_DTLS => TokenKind::Dtls,
                    TOKEN_OPENVPN => TokenKind::Openvpn,
                    _ => return None,
                };
                let id = key.bytes().get(..usize::try_from(key.len).ok()?)?.to_vec();
                Entry::Token(Token::new(kind, id).ok()?)
            }
            Self::SafeId(id) => Entry::SafeId(SafeId::from_bytes(id.bytes())),
            Self::Cutoff(id) => Entry::Cutoff(session::CutoffKey::from_bytes(id.bytes())),
            Self::Lock(id) => Entry::Lock(session::LockKey::from_bytes(id.bytes())),
        })
    }

    /// Where the gate's refusals are counted.
    pub(super) fn gate_hits(self) -> Option<GateHitKey> {
        match self {
            Self::SafeId(id) => Some(GateHitKey { kind: HITS_SAFE_ID, id }),
            Self::Cutoff(id) => Some(GateHitKey { kind: HITS_CUTOFF, id }),
            Self::Lock(id) => Some(GateHitKey { kind: HITS_LOCK, id }),
            Self::Flow(_) | Self::Address(_) | Self::Device(_) | Self::Token(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_from_their_keys() {
        let flow = |client: &str, local: &str| {
            Flow::new(Protocol::Udp, client.parse().unwrap(), local.parse().unwrap()).unwrap()
        };
        let entries = [
            Entry::Device(Device { netns: Netns(4_026_531_840), index: 7 }),
            Entry::Address(Netns(1), "10.10.0.2".parse().unwrap()),
            Entry::Address(Netns(1), "fd00::2".parse().unwrap()),
            Entry::Flow(Netns(2), flow("192.0.2.1:40000", "198.51.100.1:443")),
            Entry::Flow(Netns(2), flow("[2001:db8::1]:40000", "[2001:db8::2]:443")),
            Entry::Token(Token::new(TokenKind::Dtls, vec![1, 2, 3, 4, 5]).unwrap()),
            Entry::Token(Token::new(TokenKind::Dtls, vec![9; 32]).unwrap()),
            Entry::Token(Token::new(TokenKind::Dtls, vec![9; 8]).unwrap()),
            Entry::Token(Token::new(TokenKind::Openvpn, vec![9; 8]).unwrap()),
            Entry::SafeId(SafeId::from_bytes([3; 20])),
            Entry::Cutoff(session::CutoffKey::from_bytes([4; 20])),
            Entry::Lock(session::LockKey::from_bytes([5; 20])),
        ];
        for entry in entries {
            assert_eq!(Key::of(&entry).entry(), Some(entry));
        }
    }
}
