//! Keys and values of the maps, as they lie in memory on both sides.
//!
//! Addresses, ports and ids are kept in network byte order exactly as they stand in the packet, in arrays of
//! `u32` and `u16`: a program moves words, never single bytes. Nothing has padding (asserted below), since a
//! hash map compares keys bytewise. All other numbers are in the host's order; times are nanoseconds of
//! CLOCK_MONOTONIC unless said otherwise.
//!
//! Any change to a type, a map or the meaning of a field needs a new [`ABI`] number: pinned maps of another
//! number are not taken over.

use core::mem::size_of;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::events::{Budget, RING_BYTES};
use crate::packed::{Bloom, Bucket, HashKeys, Line};

/// The number of this layout, kept in the map [`META`].
pub const ABI: u32 = 4;

/// A lease ends that long after the last heartbeat.
pub const LEASE_NS: u64 = 10_000_000_000;

/// For how long a datagram is remembered whose first fragment was dropped: the others come within milliseconds.
pub const FRAGMENT_NS: u64 = 1_000_000_000;

/// [`Standing::expires_ns`] of an entry that stands until it is removed.
pub const FOREVER: u64 = u64::MAX;

/// [`Standing::expires_ns`] of an entry that stands as long as the daemon's lease does.
pub const LEASED: u64 = 0;

/// Names of the maps: in the object and, below `maps/` of the pin folder, as pins.
pub const FLOW_BLOOMS: &str = "flow_blooms";
pub const FLOW_LINES: &str = "flow_lines";
pub const FLOW_BUCKETS: &str = "flow_buckets";
/// Flows that found no room in the buckets.
pub const FLOWS: &str = "flows";
pub const ADDRESS_BLOOMS: &str = "address_blooms";
pub const ADDRESS_LINES: &str = "address_lines";
pub const ADDRESS_BUCKETS: &str = "address_buckets";
/// Addresses that found no room in the buckets.
pub const ADDRESSES: &str = "addresses";
pub const DEVICES: &str = "devices";
pub const TOKENS: &str = "tokens";
pub const SAFE_IDS: &str = "safe_ids";
pub const CUTOFFS: &str = "cutoffs";
pub const LOCKS: &str = "locks";
pub const GATE_HITS: &str = "gate_hits";
pub const FRAGMENTS: &str = "fragments";
pub const LEARNED: &str = "learned";
pub const COUNTERS: &str = "counters";
pub const QUIET: &str = "quiet";
pub const META: &str = "meta";
pub const HEARTBEAT: &str = "heartbeat";
pub const PRESENT: &str = "present";
pub const HASH_KEYS: &str = "hash_keys";
pub const CLOCK: &str = "clock";
/// Drops that are told of one by one, and how many may be (`crate::events`).
pub const EVENTS: &str = "events";
pub const EVENT_BUDGET: &str = "event_budget";
/// What of [`COUNTERS`] are probes of ours, which no network has seen.
pub const PROBED: &str = "probed";

/// Globals of the programs: how many buckets the packed tables have, and the secret of their hash.
pub const FLOW_BUCKET_COUNT: &str = "FLOW_BUCKET_COUNT";
pub const ADDRESS_BUCKET_COUNT: &str = "ADDRESS_BUCKET_COUNT";
pub const HASH_SECRET: &str = "HASH_SECRET";

/// The global of the programs that says in which network namespace this instance runs.
pub const NETNS: &str = "NETNS";

/// The global of the programs that says which local UDP ports are OpenVPN's: [`OpenvpnPorts`].
pub const OPENVPN_PORTS: &str = "OPENVPN_PORTS";
/// How many ports can be OpenVPN's. Each one costs every UDP packet a comparison; what there would be to do for those
/// that are not there, the verifier takes out of the program.
pub const OPENVPN_PORTS_MOST: usize = 4;
/// Local UDP ports in network byte order, from the front; 0: no port.
pub type OpenvpnPorts = [u16; OPENVPN_PORTS_MOST];

/// `BPF_MAP_TYPE_*` of the maps we use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Hash = 1,
    Array = 2,
    PerCpuArray = 6,
    LruHash = 9,
    RingBuf = 27,
}

/// `BPF_F_NO_PREALLOC`: a hash map takes memory for the entries it has, not for those it could have.
pub const NO_PREALLOC: u32 = 1;
/// `BPF_F_MMAPABLE`: an array map whose memory a process can share.
pub const MMAPABLE: u32 = 1 << 10;

/// What a map must look like to be taken over. `entries` is `None` where the configuration decides, and of a ring buffer
/// its size in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Definition {
    pub name: &'static str,
    pub kind: Kind,
    pub key: u32,
    pub value: u32,
    pub entries: Option<u32>,
    pub flags: u32,
}

const fn hash<K, V>(name: &'static str) -> Definition {
    let (key, value) = (size_of::<K>() as u32, size_of::<V>() as u32);
    Definition { name, kind: Kind::Hash, key, value, entries: None, flags: NO_PREALLOC }
}

/// What may be forgotten: at the bound the longest unused entry goes.
const fn lru<K, V>(name: &'static str, entries: u32) -> Definition {
    let (key, value) = (size_of::<K>() as u32, size_of::<V>() as u32);
    Definition { name, kind: Kind::LruHash, key, value, entries: Some(entries), flags: 0 }
}

const fn array<V>(name: &'static str, kind: Kind, entries: u32) -> Definition {
    Definition { name, kind, key: 4, value: size_of::<V>() as u32, entries: Some(entries), flags: 0 }
}

/// A part of a packed table: as many elements as it has buckets.
const fn part<V>(name: &'static str) -> Definition {
    Definition {
        name,
        kind: Kind::Array,
        key: 4,
        value: size_of::<V>() as u32,
        entries: None,
        flags: MMAPABLE,
    }
}

/// All maps that outlive the daemon.
pub const MAPS: [Definition; 26] = [
    part::<Bloom>(FLOW_BLOOMS),
    part::<Line>(FLOW_LINES),
    part::<Bucket<FlowKey>>(FLOW_BUCKETS),
    hash::<FlowKey, Standing>(FLOWS),
    part::<Bloom>(ADDRESS_BLOOMS),
    part::<Line>(ADDRESS_LINES),
    part::<Bucket<AddressKey>>(ADDRESS_BUCKETS),
    hash::<AddressKey, Standing>(ADDRESSES),
    hash::<DeviceKey, Standing>(DEVICES),
    hash::<TokenKey, Standing>(TOKENS),
    hash::<SafeIdKey, SafeIdValue>(SAFE_IDS),
    hash::<CutoffKey, CutoffValue>(CUTOFFS),
    hash::<LockKey, LockValue>(LOCKS),
    hash::<GateHitKey, u64>(GATE_HITS),
    lru::<FragmentKey, u64>(FRAGMENTS, FRAGMENT_ENTRIES),
    lru::<FlowKey, TokenKey>(LEARNED, LEARNED_ENTRIES),
    array::<crate::counters::Count>(COUNTERS, Kind::PerCpuArray, crate::counters::SLOTS as u32),
    array::<u64>(QUIET, Kind::Array, crate::counters::SLOTS as u32),
    array::<Meta>(META, Kind::Array, 1),
    array::<u64>(HEARTBEAT, Kind::Array, 1),
    array::<Present>(PRESENT, Kind::Array, 1),
    array::<HashKeys>(HASH_KEYS, Kind::Array, 1),
    array::<Clock>(CLOCK, Kind::PerCpuArray, 1),
    Definition { name: EVENTS, kind: Kind::RingBuf, key: 0, value: 0, entries: Some(RING_BYTES), flags: 0 },
    Definition { flags: MMAPABLE, ..array::<Budget>(EVENT_BUDGET, Kind::Array, 1) },
    array::<crate::counters::Count>(PROBED, Kind::Array, crate::counters::SLOTS as u32),
];

/// The one entry of [`PRESENT`]: whether there is anything at all (not 0) in a table, so that an empty one costs no
/// lookup. Set before the first entry comes, and taken back after the last one has gone.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Present {
    pub flows: u32,
    pub addresses: u32,
    pub devices: u32,
    pub tokens: u32,
}

/// The one entry of [`CLOCK`] of a CPU: what its clock said when it last asked. The kernel counts jiffies in step with
/// CLOCK_MONOTONIC and can be asked for them without a call, so that a flood asks the clock once a jiffy (1 to 10 ms)
/// and not once a packet.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Clock {
    pub jiffies: u64,
    /// 0: it has never asked.
    pub now_ns: u64,
}

/// An IPv4 (mapped: `::ffff:a.b.c.d`) or IPv6 address, in network byte order.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Address([u32; 4]);

impl Address {
    /// From the four bytes of an IPv4 header, as they lie in memory.
    #[inline(always)]
    pub const fn v4(word: u32) -> Self {
        Self([0, 0, u32::to_be(0xffff), word])
    }

    /// From the sixteen bytes of an IPv6 header, as they lie in memory.
    #[inline(always)]
    pub const fn v6(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// Four of its bytes, as they lie in memory. `at` is 0 to 3; the last one is answered for anything else.
    #[inline(always)]
    pub const fn word(&self, at: usize) -> u32 {
        match at {
            0 => self.0[0],
            1 => self.0[1],
            2 => self.0[2],
            _ => self.0[3],
        }
    }

    /// Whether this is an IPv4 address in its mapped form.
    #[inline(always)]
    pub const fn is_mapped(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == u32::to_be(0xffff)
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::v4(u32::from_ne_bytes(v4.octets())),
            IpAddr::V6(v6) => Self(words(v6.octets())),
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        if address.is_mapped() {
            Self::V4(Ipv4Addr::from(address.0[3].to_ne_bytes()))
        } else {
            Self::V6(Ipv6Addr::from(bytes::<4, 16>(address.0)))
        }
    }
}

/// Bytes as words that lie in memory as the bytes do; `B` is four times `W`.
fn words<const B: usize, const W: usize>(bytes: [u8; B]) -> [u32; W] {
    let mut words = [0; W];
    for (word, four) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        if let Ok(four) = <[u8; 4]>::try_from(four) {
            *word = u32::from_ne_bytes(four);
        }
    }
    words
}

fn bytes<const W: usize, const B: usize>(words: [u32; W]) -> [u8; B] {
    let mut bytes = [0; B];
    for (four, word) in bytes.chunks_exact_mut(4).zip(words) {
        four.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// IANA's numbers of the protocols that have ports, as in [`FlowKey::protocol`].
pub const TCP: u32 = 6;
pub const UDP: u32 = 17;
/// ... and of those that tell of errors.
pub const ICMP: u32 = 1;
pub const ICMPV6: u32 = 58;

/// An outer flow within a network namespace. Ports are in network byte order.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FlowKey {
    pub client: Address,
    pub local: Address,
    pub client_port: u16,
    pub local_port: u16,
    pub protocol: u32,
    pub netns: u32,
}

/// A tunnel address within a network namespace.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct AddressKey {
    pub address: Address,
    pub netns: u32,
}

/// A device within a network namespace.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct DeviceKey {
    pub netns: u32,
    pub ifindex: u32,
}

/// How many datagrams are remembered whose first fragment was dropped.
pub const FRAGMENT_ENTRIES: u32 = 8192;

/// A fragmented datagram within a network namespace, by what the kernel puts it together by: see
/// [`crate::packet::Fragment`]. The value is the moment until which its fragments are dropped.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FragmentKey {
    pub client: Address,
    pub local: Address,
    pub id: u32,
    pub protocol: u32,
    pub netns: u32,
}

/// [`TokenKey::kind`] of a DTLS session id.
pub const TOKEN_DTLS: u32 = 1;
/// ... and of an OpenVPN session id. The maps of a version that does not know it are the same: no [`ABI`] of its own.
pub const TOKEN_OPENVPN: u32 = 2;
/// How many bytes an OpenVPN session id has, always.
pub const OPENVPN_ID: usize = 8;

/// Of how many flows it is remembered which token they showed last ([`LEARNED`]). Whoever floods with hellos makes it
/// forget: what is in there is a help, and nothing relies on it.
pub const LEARNED_ENTRIES: u32 = 16_384;

/// A wire token: `len` bytes (1 to 32) of `id`, the rest zero.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct TokenKey {
    pub kind: u32,
    pub len: u32,
    pub id: [u32; 8],
}

impl TokenKey {
    /// `None` unless `id` has 1 to 32 bytes.
    pub fn new(kind: u32, id: &[u8]) -> Option<Self> {
        let mut all = [0; 32];
        all.get_mut(..id.len())?.copy_from_slice(id);
        (!id.is_empty()).then(|| Self { kind, len: id.len() as u32, id: words(all) })
    }

    /// All 32 bytes of the id; the first `len` count.
    pub fn bytes(&self) -> [u8; 32] {
        bytes(self.id)
    }
}

/// Twenty bytes: a safe_id, or the digest of (server, user) or of (realm, name).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Digest([u32; 5]);

impl Digest {
    pub fn new(digest: &[u8; 20]) -> Self {
        Self(words(*digest))
    }

    pub fn bytes(&self) -> [u8; 20] {
        bytes(self.0)
    }
}

/// ocserv's name of a cookie.
pub type SafeIdKey = Digest;
/// (server, user), see `enforcer::session::CutoffKey`.
pub type CutoffKey = Digest;
/// (realm, name), see `enforcer::session::LockKey`.
pub type LockKey = Digest;

/// Whose hits a gate counts. They have a map of their own, so that a gate, which is another process than the
/// daemon, never writes what the daemon has decided.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct GateHitKey {
    /// 1: a safe_id; 2: a cutoff; 3: a lock.
    pub kind: u32,
    pub id: Digest,
}

/// The value of what the programs check.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Standing {
    /// The number of the revocation that says so.
    pub revocation: u64,
    /// [`FOREVER`], [`LEASED`], or the moment from which the entry is as good as absent.
    pub expires_ns: u64,
    /// Packets dropped; written by the programs.
    pub hits: u64,
    /// When the last of them was dropped (0: none); written by the programs.
    pub last_ns: u64,
}

/// What is said of a cookie; read by the gate alone.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SafeIdValue {
    pub revocation: u64,
    /// A hash of the server's name, as the caller makes it.
    pub server: u64,
    /// Unix seconds.
    pub since: u64,
}

/// What is said of a user's cookies; read by the gate alone.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CutoffValue {
    pub revocation: u64,
    /// A hash of the server's name, as the caller makes it.
    pub server: u64,
    /// Unix seconds: cookies created up to then (ties too) are refused.
    pub up_to: u64,
}

/// What is said of a person; read by the gate alone.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LockValue {
    pub revocation: u64,
    /// [`FOREVER`], or the moment from which the lock is as good as absent. Never [`LEASED`].
    pub expires_ns: u64,
    /// Unix seconds: when it was locked. For people.
    pub since: u64,
}

/// The one entry of [`META`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Meta {
    /// [`ABI`] of who made the maps; 0: nobody has finished making them.
    pub abi: u32,
    /// 1: the maps were made anew, and what stands is not back in them yet: a gate looks at the disk instead.
    pub filling: u32,
    /// The number that the next revocation gets.
    pub next_revocation: u64,
}

const _: () = {
    assert!(size_of::<FlowKey>() == 44);
    assert!(size_of::<AddressKey>() == 20);
    assert!(size_of::<DeviceKey>() == 8);
    assert!(size_of::<TokenKey>() == 40);
    assert!(size_of::<FragmentKey>() == 44);
    assert!(size_of::<Digest>() == 20);
    assert!(size_of::<GateHitKey>() == 24);
    assert!(size_of::<Standing>() == 32);
    assert!(size_of::<SafeIdValue>() == 24);
    assert!(size_of::<CutoffValue>() == 24);
    assert!(size_of::<LockValue>() == 24);
    assert!(size_of::<Meta>() == 16);
    assert!(size_of::<Present>() == 16);
    assert!(size_of::<HashKeys>() == 104);
    assert!(size_of::<Clock>() == 16);
    assert!(size_of::<crate::counters::Count>() == 16);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_ids_keep_their_bytes() {
        for text in ["192.0.2.1", "2001:db8::1", "::1", "255.255.255.255"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Address::from(address)), address);
        }
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        assert_eq!(IpAddr::from(Address::from(mapped)), mapped.to_canonical());
        let digest: [u8; 20] = core::array::from_fn(|at| at as u8);
        assert_eq!(Digest::new(&digest).bytes(), digest);
        let token = TokenKey::new(TOKEN_DTLS, &digest).unwrap();
        assert_eq!((token.len, &token.bytes()[..20]), (20, &digest[..]));
        assert_eq!(TokenKey::new(TOKEN_DTLS, &[]), None);
        assert_eq!(TokenKey::new(TOKEN_DTLS, &[0; 33]), None);
    }
}
