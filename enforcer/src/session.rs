//! The words of the field as types: what a session is made of, and what can be said of it in the kernel.
//!
//! A leaf: nothing here does IO or knows another module.

mod realm;
mod record;
mod replicated;
mod web;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

pub use realm::{Case, Realms};
pub use record::{Audit, DEFAULT_REALM, Guard, Guarded, Identity, Record, SessionRecord, Target, Write};
pub use replicated::{
    Admission, Author, BadGatewayId, Decision, GatewayId, KnownEtcd, Letter, LetterKey, Origin, Over,
    Revision, SessionId,
};
pub use web::{WebDigest, WebKey, WebRecord, WebTokenRecord};

/// ocserv's name for a cookie: SHA-1 of the cookie's 32 bytes (`safe_id` in ocserv's `src/sec-mod-cookies.c`).
/// One-way, so it may be logged and stored; the cookie itself may not.
///
/// Written as 28 characters of standard base64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SafeId([u8; 20]);

impl SafeId {
    pub const fn from_bytes(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }

    /// From ocserv's wire form: 28 characters of base64, usually followed by one NUL.
    pub fn from_wire(wire: &[u8]) -> Result<Self, BadWord> {
        let text = wire.strip_suffix(b"\0").unwrap_or(wire);
        std::str::from_utf8(text).map_err(|_| BadWord::SafeId).and_then(str::parse)
    }
}

impl FromStr for SafeId {
    type Err = BadWord;

    fn from_str(text: &str) -> Result<Self, BadWord> {
        if text.len() != 28 {
            return Err(BadWord::SafeId);
        }
        let bytes = BASE64.decode(text).map_err(|_| BadWord::SafeId)?;
        <[u8; 20]>::try_from(bytes).map(Self).map_err(|_| BadWord::SafeId)
    }
}

impl fmt::Display for SafeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(self.0))
    }
}

impl fmt::Debug for SafeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SafeId({self})")
    }
}

/// A configured ocserv server, by the name of its section (`default` where only one is configured).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ServerName(Arc<str>);

impl ServerName {
    pub fn new(name: &str) -> Self {
        Self(Arc::from(name))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A network namespace, by the inode number of its `/proc/PID/ns/net` (`PROC_NET_INIT_INO` and on: 32 bits).
/// Addresses, flows and interface numbers mean something only within one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Netns(pub u32);

/// A process that cannot be taken for its successor: pid in our pid namespace, and start time in clock ticks
/// after boot (field 22 of `/proc/PID/stat`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Process {
    pub pid: i32,
    pub start: u64,
}

/// A network interface: its number is not reused soon after it is gone, its name is reused at once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Device {
    pub netns: Netns,
    pub index: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl FromStr for Protocol {
    type Err = BadWord;

    fn from_str(text: &str) -> Result<Self, BadWord> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err(BadWord::Protocol),
        }
    }
}

/// An outer flow, exactly: the client's end and the gateway's end of one connected socket.
/// IPv4-mapped IPv6 addresses are unmapped by the constructor, since the packets on the wire are IPv4.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Flow {
    protocol: Protocol,
    client: SocketAddr,
    local: SocketAddr,
}

impl Flow {
    /// Refuses ends of different families, unspecified addresses and port 0: such a socket is not connected.
    pub fn new(protocol: Protocol, client: SocketAddr, local: SocketAddr) -> Result<Self, BadWord> {
        let plain = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
        let (client, local) = (plain(client), plain(local));
        let whole = |end: &SocketAddr| !end.ip().is_unspecified() && end.port() != 0;
        if client.is_ipv4() != local.is_ipv4() || !whole(&client) || !whole(&local) {
            return Err(BadWord::Flow);
        }
        Ok(Self { protocol, client, local })
    }

    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    pub fn client(&self) -> SocketAddr {
        self.client
    }

    pub fn local(&self) -> SocketAddr {
        self.local
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.protocol, self.client, self.local)
    }
}

/// What a tunnel protocol shows of a session on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum TokenKind {
    /// The session id of a DTLS ClientHello (RFC 6347, 4.2.1), by which ocserv finds a datagram's owner: 1 to 32 bytes.
    Dtls,
    /// The session id that the client's OpenVPN has chosen, in its control packets over UDP: 8 bytes. A new one with each
    /// connection.
    Openvpn,
}

impl TokenKind {
    pub const ALL: [Self; 2] = [Self::Dtls, Self::Openvpn];

    /// As it is typed and stored.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dtls => "dtls",
            Self::Openvpn => "openvpn",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// How many bytes such an id can have.
    fn lengths(self) -> RangeInclusive<usize> {
        match self {
            Self::Dtls => 1..=32,
            Self::Openvpn => 8..=8,
        }
    }
}

/// A wire token, as long as its kind has it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Token {
    kind: TokenKind,
    id: Vec<u8>,
}

impl Token {
    /// Refuses an id that is too long or too short for its kind.
    pub fn new(kind: TokenKind, id: Vec<u8>) -> Result<Self, BadWord> {
        match (kind.lengths().contains(&id.len()), kind) {
            (true, _) => Ok(Self { kind, id }),
            (false, TokenKind::Dtls) => Err(BadWord::Token),
            (false, TokenKind::Openvpn) => Err(BadWord::OpenvpnToken),
        }
    }

    /// No token of this kind comes before it.
    pub(crate) fn least(kind: TokenKind) -> Self {
        Self { kind, id: vec![0; *kind.lengths().start()] }
    }

    pub fn kind(&self) -> TokenKind {
        self.kind
    }

    pub fn id(&self) -> &[u8] {
        &self.id
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind.name())?;
        self.id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// One thing that is said in the kernel's maps. Who checks it: see `enforcer-ebpf`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Entry {
    /// tc on that device, both directions: everything is dropped.
    Device(Device),
    /// tc on the LAN side and on tunnel devices: packets from (or to) that tunnel address.
    Address(Netns, IpAddr),
    /// XDP on the outer side: packets of that exact flow from the client.
    Flow(Netns, Flow),
    /// XDP on the outer side: the first packet that shows this token.
    Token(Token),
    /// The gate: logins with that cookie are refused.
    SafeId(SafeId),
    /// The gate: logins with a cookie of this user that was created up to a moment are refused.
    Cutoff(CutoffKey),
    /// The gate: every login of that person is refused.
    Lock(LockKey),
}

/// (server, user) as a fixed-size key: the first 20 bytes of SHA-256 over `server`, a NUL, `user`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct CutoffKey([u8; 20]);

impl CutoffKey {
    pub fn new(server: &ServerName, user: &str) -> Self {
        Self(digest(server.as_str(), user))
    }

    /// Of somebody who may be of another realm than most.
    pub fn of(server: &ServerName, who: &Identity) -> Self {
        if who.realm == DEFAULT_REALM {
            return Self::new(server, &who.name);
        }
        // no name holds a NUL
        Self(digest(server.as_str(), &format!("{}\0{}", who.realm, who.name)))
    }

    pub const fn from_bytes(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }
}

/// (realm, name) as a fixed-size key: the first 20 bytes of SHA-256 over `realm`, a NUL, `name`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct LockKey([u8; 20]);

impl LockKey {
    pub fn new(identity: &Identity) -> Self {
        Self(digest(&identity.realm, &identity.name))
    }

    pub const fn from_bytes(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }
}

/// The first 20 bytes of SHA-256 over `scope`, a NUL, `name`.
fn digest(scope: &str, name: &str) -> [u8; 20] {
    use sha2::Digest as _;
    let digest = sha2::Sha256::new().chain_update(scope).chain_update([0]).chain_update(name).finalize();
    let mut key = [0; 20];
    key.copy_from_slice(&digest[..20]);
    key
}

/// How long an entry stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stands {
    /// Until it is removed: what can hit nobody else (devices, safe_ids, cutoffs).
    Forever,
    /// Until it is removed, and no longer than 10 s after the daemon's last heartbeat: what could hit a
    /// stranger (addresses, flows, tokens).
    Leased,
    /// Until that moment of CLOCK_MONOTONIC, in nanoseconds.
    Until(u64),
}

/// A worker as ocserv tells of it (LIST, ID_INFO, a TOP event, or the environment of its connect-script).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Observed {
    /// ocserv's id: the worker's pid in ocserv's own pid namespace.
    pub id: i32,
    pub user: String,
    pub group: String,
    pub vhost: String,
    /// The name of its tun device, as long as it has one.
    pub device: Option<String>,
    /// The client's tunnel addresses, IPv4 and IPv6.
    pub addresses: Vec<IpAddr>,
    /// The client's outer address as ocserv believes it to be. For people; never for a key.
    pub client: String,
    pub safe_id: Option<SafeId>,
    /// Unix seconds.
    pub since: u64,
}

/// A cookie that ocserv holds, in use or not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cookie {
    pub safe_id: SafeId,
    pub user: String,
    pub vhost: String,
    /// Unix seconds.
    pub created: u64,
    pub in_use: bool,
}

/// A word that is not one of ours. The texts end up before people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadWord {
    #[error(
        "not a safe_id: it is 28 characters of base64, as `show sessions` and `occtl show cookies` print it"
    )]
    SafeId,
    #[error("not a web session's key: it is 32 hexadecimal digits, as `show sessions` prints it")]
    WebKey,
    #[error("not a protocol: it is `tcp` or `udp`")]
    Protocol,
    #[error(
        "not an exact flow: it is PROTOCOL CLIENT:PORT LOCAL:PORT, both ends of one family, no port 0 and no unspecified address"
    )]
    Flow,
    #[error("not a wire token: it is 1 to 32 bytes in hexadecimal, two digits each")]
    Token,
    #[error("not an OpenVPN session id: it is 8 bytes in hexadecimal, 16 digits")]
    OpenvpnToken,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_safe_id_reads_what_it_writes_and_ocservs_wire_form() {
        let id = SafeId::from_bytes([7; 20]);
        assert_eq!(id.to_string().len(), 28);
        assert_eq!(id.to_string().parse(), Ok(id));
        let mut wire = id.to_string().into_bytes();
        wire.push(0);
        assert_eq!(SafeId::from_wire(&wire), Ok(id));
        assert_eq!(SafeId::from_wire(b"short"), Err(BadWord::SafeId));
        assert_eq!(SafeId::from_wire(&[0xff; 28]), Err(BadWord::SafeId));
    }

    #[test]
    fn a_flow_unmaps_ipv4_and_refuses_what_is_not_connected() {
        let mapped = "[::ffff:192.0.2.1]:1".parse().unwrap();
        let flow = Flow::new(Protocol::Tcp, mapped, "198.51.100.1:443".parse().unwrap()).unwrap();
        assert_eq!(flow.client(), "192.0.2.1:1".parse().unwrap());
        assert!(
            Flow::new(Protocol::Udp, "0.0.0.0:1".parse().unwrap(), "198.51.100.1:443".parse().unwrap())
                .is_err()
        );
        assert!(
            Flow::new(Protocol::Udp, "192.0.2.1:0".parse().unwrap(), "198.51.100.1:443".parse().unwrap())
                .is_err()
        );
        assert!(
            Flow::new(Protocol::Udp, "[2001:db8::1]:1".parse().unwrap(), "198.51.100.1:443".parse().unwrap())
                .is_err()
        );
    }

    #[test]
    fn a_token_is_as_long_as_its_kind_has_it() {
        let token = |kind, length| Token::new(kind, vec![0xab; length]);
        for length in 0..40 {
            assert_eq!(token(TokenKind::Dtls, length).is_ok(), (1..=32).contains(&length), "{length}");
            assert_eq!(token(TokenKind::Openvpn, length).is_ok(), length == 8, "{length}");
        }
        assert_eq!(token(TokenKind::Openvpn, 7), Err(BadWord::OpenvpnToken));
        assert_eq!(token(TokenKind::Openvpn, 8).unwrap().to_string(), "openvpn abababababababab");
        for kind in TokenKind::ALL {
            assert_eq!(TokenKind::from_name(kind.name()), Some(kind));
            let least = Token::least(kind);
            assert_eq!(Token::new(kind, least.id.clone()).as_ref(), Ok(&least));
            let all = (1..=32).filter_map(|length| Token::new(kind, vec![0; length]).ok());
            assert_eq!(all.min(), Some(least));
        }
        assert_eq!(TokenKind::from_name("DTLS"), None);
    }

    #[test]
    fn a_lock_key_does_not_mix_realm_and_name() {
        let key =
            |realm: &str, name: &str| LockKey::new(&Identity { realm: realm.into(), name: name.into() });
        assert_eq!(key("a", "b"), key("a", "b"));
        assert_ne!(key("a", "b"), key("ab", ""));
        assert_ne!(key("a", "b"), key("b", "b"), "the same name in another realm is somebody else");
    }

    #[test]
    fn a_cutoff_key_does_not_mix_server_and_user() {
        let key = |server, user| CutoffKey::new(&ServerName::new(server), user);
        assert_eq!(key("a", "b"), key("a", "b"));
        assert_ne!(key("a", "b"), key("ab", ""));
    }
}
