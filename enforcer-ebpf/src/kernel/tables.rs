//! The maps, and the world that the verdict sees through them.

use core::cell::Cell;
use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::Global;
#[cfg(not(feature = "abi-2"))]
use aya_ebpf::btf_maps::LruHashMap;
use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray};
use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_ns};
use aya_ebpf::macros::btf_map;
use aya_log_ebpf::{debug, warn};
#[cfg(not(feature = "abi-2"))]
use enforcer_ebpf::counters::SLOTS;
use enforcer_ebpf::counters::{Count, Reason};
use enforcer_ebpf::events::{self, QUIET_NS, QUIET_TICKS};
use enforcer_ebpf::layout::{
    AddressKey, Clock, CutoffKey, CutoffValue, DeviceKey, FlowKey, FragmentKey, GateHitKey, MMAPABLE, Meta,
    NO_PREALLOC, OPENVPN_PORTS_MOST, Present, SafeIdKey, SafeIdValue, Standing, TokenKey,
};
#[cfg(not(feature = "abi-2"))]
use enforcer_ebpf::layout::{FRAGMENT_ENTRIES, LEARNED_ENTRIES};
#[cfg(not(feature = "abi-1"))]
use enforcer_ebpf::layout::{LockKey, LockValue};
use enforcer_ebpf::packed::{self, Bloom, Bucket, HashKeys, Line, Place, Tail};
use enforcer_ebpf::verdict::World;

use super::packed::Maps;

const FLAGS: usize = NO_PREALLOC as usize;
pub const SHARED: usize = MMAPABLE as usize;

/// The reasons that the layouts 1 and 2 had room for.
#[cfg(feature = "abi-2")]
const SLOTS: usize = 10;

/// The network namespace in which this instance of the programs runs: set by the loader.
#[unsafe(no_mangle)]
static NETNS: Global<u32> = Global::new(0);

// The secret of the packed tables' hash and their numbers of buckets: set by the loader. The verifier knows them as
// constants.
#[unsafe(no_mangle)]
static HASH_SECRET: [Global<u64>; 13] = [const { Global::new(0) }; 13];
#[unsafe(no_mangle)]
static FLOW_BUCKET_COUNT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static ADDRESS_BUCKET_COUNT: Global<u32> = Global::new(0);

/// [`enforcer_ebpf::layout::OpenvpnPorts`], set by the loader.
#[unsafe(no_mangle)]
static OPENVPN_PORTS: [Global<u16>; OPENVPN_PORTS_MOST] = [const { Global::new(0) }; OPENVPN_PORTS_MOST];

// The capacities are set by the loader.
#[btf_map(name = "flow_blooms")]
static FLOW_BLOOMS: Array<Bloom, 1, SHARED> = Array::new();
#[btf_map(name = "flow_lines")]
static FLOW_LINES: Array<Line, 1, SHARED> = Array::new();
#[btf_map(name = "flow_buckets")]
static FLOW_BUCKETS: Array<Bucket<FlowKey>, 1, SHARED> = Array::new();
#[btf_map(name = "address_blooms")]
static ADDRESS_BLOOMS: Array<Bloom, 1, SHARED> = Array::new();
#[btf_map(name = "address_lines")]
static ADDRESS_LINES: Array<Line, 1, SHARED> = Array::new();
#[btf_map(name = "address_buckets")]
static ADDRESS_BUCKETS: Array<Bucket<AddressKey>, 1, SHARED> = Array::new();
#[btf_map(name = "present")]
static PRESENT: Array<Present, 1> = Array::new();
// of the secret, the copy that outlives the loader
#[btf_map(name = "hash_keys")]
static HASH_KEYS: Array<HashKeys, 1> = Array::new();
#[btf_map(name = "clock")]
static CLOCK: PerCpuArray<Clock, 1> = PerCpuArray::new();
#[btf_map(name = "flows")]
static FLOWS: HashMap<FlowKey, Standing, 1, FLAGS> = HashMap::new();
#[btf_map(name = "addresses")]
static ADDRESSES: HashMap<AddressKey, Standing, 1, FLAGS> = HashMap::new();
#[btf_map(name = "devices")]
static DEVICES: HashMap<DeviceKey, Standing, 1, FLAGS> = HashMap::new();
#[btf_map(name = "tokens")]
static TOKENS: HashMap<TokenKey, Standing, 1, FLAGS> = HashMap::new();
#[cfg(not(feature = "abi-2"))]
#[btf_map(name = "fragments")]
static FRAGMENTS: LruHashMap<FragmentKey, u64, { FRAGMENT_ENTRIES as usize }> = LruHashMap::new();
#[cfg(not(feature = "abi-2"))]
#[btf_map(name = "learned")]
static LEARNED: LruHashMap<FlowKey, TokenKey, { LEARNED_ENTRIES as usize }> = LruHashMap::new();
#[btf_map(name = "counters")]
static COUNTERS: PerCpuArray<Count, SLOTS> = PerCpuArray::new();
#[btf_map(name = "quiet")]
static QUIET: Array<u64, SLOTS> = Array::new();
#[btf_map(name = "heartbeat")]
static HEARTBEAT: Array<u64, 1> = Array::new();

// No program reads these; they are here so that one object defines all maps.
#[btf_map(name = "safe_ids")]
static SAFE_IDS: HashMap<SafeIdKey, SafeIdValue, 1, FLAGS> = HashMap::new();
#[btf_map(name = "cutoffs")]
static CUTOFFS: HashMap<CutoffKey, CutoffValue, 1, FLAGS> = HashMap::new();
#[cfg(not(feature = "abi-1"))]
#[btf_map(name = "locks")]
static LOCKS: HashMap<LockKey, LockValue, 1, FLAGS> = HashMap::new();
#[btf_map(name = "gate_hits")]
static GATE_HITS: HashMap<GateHitKey, u64, 1, FLAGS> = HashMap::new();
#[btf_map(name = "meta")]
static META: Array<Meta, 1> = Array::new();
#[btf_map(name = "probed")]
static PROBED: Array<Count, SLOTS> = Array::new();

/// One word of the secret, which is [`HashKeys`].
#[inline(always)]
fn secret(at: usize) -> u64 {
    match HASH_SECRET.get(at) {
        Some(word) => word.load(),
        None => 0,
    }
}

/// An entry in a plain map or in a packed table.
#[derive(Clone, Copy)]
pub enum Found {
    Plain(*mut Standing),
    Packed(*mut Tail),
}

/// The tables, and what is to be told of a drop by them.
///
/// Told once nothing else is to be done, and known by numbers alone that were come by without a branch: the verifier
/// would go through all that follows anew for each way, and for each place in a table.
pub struct Tables {
    /// [`events::news`].
    news: Cell<u64>,
    revocation: Cell<u64>,
}

impl Tables {
    #[inline(always)]
    pub fn new() -> Self {
        Self { news: Cell::new(0), revocation: Cell::new(0) }
    }

    /// [`events::news`] of the entry that has dropped the packet; 0: there is nothing to tell.
    #[inline(always)]
    #[cfg_attr(feature = "abi-2", expect(dead_code, reason = "nothing is told"))]
    pub fn news(&self) -> u64 {
        self.news.get()
    }

    /// The number of that entry's revocation, where it is at hand; 0: it is not.
    #[inline(always)]
    #[cfg_attr(feature = "abi-2", expect(dead_code, reason = "nothing is told"))]
    pub fn revocation(&self) -> u64 {
        self.revocation.get()
    }
}

/// See [`World::netns`].
#[inline(always)]
pub fn netns() -> u32 {
    NETNS.load()
}

/// A key to show to a helper. The one that it is made from stays in registers: otherwise every packet would pay for the
/// stores, also the many that no helper is asked about.
#[inline(always)]
fn copy<K: Copy>(key: &K) -> K {
    *key
}

/// Whether there is anything in the table.
#[inline(always)]
fn present(table: impl Fn(*const Present) -> *const u32) -> bool {
    // the layouts 1 and 2 know no such map
    if cfg!(feature = "abi-2") {
        return true;
    }
    // SAFETY: a value of the map; volatile, since the daemon may write it at any time.
    PRESENT.get_ptr(0).is_some_and(|present| unsafe { table(present).read_volatile() } != 0)
}

impl World for Tables {
    type Found = Found;

    #[inline(always)]
    fn netns(&self) -> u32 {
        netns()
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<Found> {
        if cfg!(feature = "abi-2") {
            return FLOWS.get_ptr_mut(key).map(Found::Plain);
        }
        // SAFETY: the address of a field.
        if !present(|present| unsafe { &raw const (*present).flows }) {
            return None;
        }
        let maps = Maps { blooms: &FLOW_BLOOMS, lines: &FLOW_LINES, buckets: &FLOW_BUCKETS };
        match packed::find(&maps, FLOW_BUCKET_COUNT.load(), secret, key) {
            Place::Here(tail) => Some(Found::Packed(tail)),
            Place::Plain => FLOWS.get_ptr_mut(copy(key)).map(Found::Plain),
            Place::Nowhere => None,
        }
    }

    #[inline(always)]
    fn has_no_flow(&self, key: &FlowKey) -> bool {
        if cfg!(feature = "abi-2") {
            return false;
        }
        // SAFETY: the address of a field.
        if !present(|present| unsafe { &raw const (*present).flows }) {
            return true;
        }
        let maps = Maps { blooms: &FLOW_BLOOMS, lines: &FLOW_LINES, buckets: &FLOW_BUCKETS };
        packed::is_nowhere(&maps, FLOW_BUCKET_COUNT.load(), secret, key)
    }

    #[inline(always)]
    fn token(&self, key: &TokenKey) -> Option<Found> {
        // SAFETY: the address of a field.
        if !present(|present| unsafe { &raw const (*present).tokens }) {
            return None;
        }
        TOKENS.get_ptr_mut(key).map(Found::Plain)
    }

    #[inline(always)]
    fn address(&self, key: &AddressKey) -> Option<Found> {
        if cfg!(feature = "abi-2") {
            return ADDRESSES.get_ptr_mut(key).map(Found::Plain);
        }
        // SAFETY: the address of a field.
        if !present(|present| unsafe { &raw const (*present).addresses }) {
            return None;
        }
        let maps = Maps { blooms: &ADDRESS_BLOOMS, lines: &ADDRESS_LINES, buckets: &ADDRESS_BUCKETS };
        match packed::find(&maps, ADDRESS_BUCKET_COUNT.load(), secret, key) {
            Place::Here(tail) => Some(Found::Packed(tail)),
            Place::Plain => ADDRESSES.get_ptr_mut(key).map(Found::Plain),
            Place::Nowhere => None,
        }
    }

    #[inline(always)]
    fn device(&self, key: &DeviceKey) -> Option<Found> {
        // SAFETY: the address of a field.
        if !present(|present| unsafe { &raw const (*present).devices }) {
            return None;
        }
        DEVICES.get_ptr_mut(key).map(Found::Plain)
    }

    #[inline(always)]
    fn expires_ns(&self, found: Found) -> u64 {
        // SAFETY: a value of a map, which stays readable until the program returns. Volatile: the daemon may write
        // it at any time.
        unsafe {
            match found {
                Found::Plain(standing) => (&raw const (*standing).expires_ns).read_volatile(),
                Found::Packed(tail) => Tail::decode((&raw const (*tail).expires).read_volatile()),
            }
        }
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        // SAFETY: helpers without arguments, the first of which the kernel replaces by a load; this CPU's own value
        // of the map, and programs are not interrupted by one another on it.
        unsafe {
            let jiffies = bpf_jiffies64();
            let Some(clock) = CLOCK.get_ptr_mut(0) else { return bpf_ktime_get_ns() };
            if (*clock).jiffies != jiffies || (*clock).now_ns == 0 {
                *clock = Clock { jiffies, now_ns: bpf_ktime_get_ns() };
            }
            (*clock).now_ns
        }
    }

    #[inline(always)]
    fn heartbeat_ns(&self) -> u64 {
        // SAFETY: as in `expires_ns`.
        HEARTBEAT.get_ptr(0).map_or(0, |at| unsafe { at.read_volatile() })
    }

    #[inline(always)]
    fn hit(&self, found: Found, now_ns: u64) {
        // SAFETY: as in `expires_ns`. The time is a plain store, of which the last one counts. So is the number of
        // hits where an atomic addition would cost as much as the lookup, since nothing else goes on meanwhile: of
        // two CPUs that drop for one entry at the same moment one may go uncounted there. Both may also take their
        // drop for the first: the daemon tells one of them.
        unsafe {
            match found {
                Found::Plain(standing) => {
                    atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(&raw mut (*standing).hits, 1);
                    let last = &raw mut (*standing).last_ns;
                    let before = last.read_volatile();
                    last.write_volatile(now_ns);
                    self.news.set(events::news(before, now_ns, QUIET_NS));
                    self.revocation.set((&raw const (*standing).revocation).read_volatile());
                }
                Found::Packed(tail) => {
                    let hits = &raw mut (*tail).hits;
                    hits.write_volatile(hits.read_volatile().saturating_add(1));
                    let (last, tick) = (&raw mut (*tail).last, Tail::tick(now_ns));
                    let before = last.read_volatile();
                    last.write_volatile(tick);
                    self.news.set(events::news(u64::from(before), u64::from(tick), QUIET_TICKS));
                }
            }
        }
    }

    #[cfg(not(feature = "abi-2"))]
    #[inline(always)]
    fn fragments(&self, key: &FragmentKey) -> Option<u64> {
        // SAFETY: as in `expires_ns`.
        FRAGMENTS.get_ptr(key).map(|until| unsafe { until.read_volatile() })
    }

    #[cfg(not(feature = "abi-2"))]
    #[inline(always)]
    fn drop_fragments(&self, key: &FragmentKey, until_ns: u64) {
        // fails where another CPU does the same at this moment
        let _ = FRAGMENTS.insert(key, until_ns, 0);
    }

    #[cfg(not(feature = "abi-2"))]
    #[inline(always)]
    fn pass_fragments(&self, key: &FragmentKey) {
        // almost always there is nothing
        if FRAGMENTS.get_ptr(key).is_some() {
            let _ = FRAGMENTS.remove(key);
        }
    }

    #[cfg(not(feature = "abi-2"))]
    #[inline(always)]
    fn learn(&self, flow: &FlowKey, token: &TokenKey) {
        // as in `drop_fragments`
        let _ = LEARNED.insert(copy(flow), token, 0);
    }

    #[cfg(not(feature = "abi-2"))]
    #[inline(always)]
    fn shown(&self, flow: &FlowKey) -> Option<Found> {
        // SAFETY: the address of a field.
        if !present(|present| unsafe { &raw const (*present).tokens }) {
            return None;
        }
        let token = LEARNED.get_ptr(copy(flow))?;
        // SAFETY: a value of the map. Where another packet of the flow shows another token at this moment, what is read
        // may be a part of each, which is nobody's.
        TOKENS.get_ptr_mut(unsafe { &*token }).map(Found::Plain)
    }

    #[inline(always)]
    fn is_openvpn(&self, port: u16) -> bool {
        for configured in &OPENVPN_PORTS {
            match configured.load() {
                // the verifier knows it, and takes out what comes after it
                0 => return false,
                configured if configured == port => return true,
                _ => {}
            }
        }
        false
    }

    #[cfg(feature = "abi-2")]
    fn learn(&self, _: &FlowKey, _: &TokenKey) {}

    #[cfg(feature = "abi-2")]
    fn shown(&self, _: &FlowKey) -> Option<Found> {
        None
    }

    #[cfg(feature = "abi-2")]
    fn fragments(&self, _: &FragmentKey) -> Option<u64> {
        None
    }

    #[cfg(feature = "abi-2")]
    fn drop_fragments(&self, _: &FragmentKey, _: u64) {}

    #[cfg(feature = "abi-2")]
    fn pass_fragments(&self, _: &FragmentKey) {}
}

/// Counts, and says the two things that somebody should know of.
#[inline(always)]
pub fn count(reason: Reason, bytes: u64) {
    if let Some(count) = COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own slot, and programs are not interrupted by one another on it.
        unsafe {
            (*count).packets += 1;
            (*count).bytes += bytes;
        }
    }
    match reason {
        Reason::PassedLapsed => say_lapsed(),
        Reason::PassedTooDeep => say_too_deep(),
        _ => {}
    }
}

/// A function of its own: the verifier would walk through its many ways at every place that calls it.
#[inline(never)]
fn say_lapsed() {
    if may_speak(Reason::PassedLapsed) {
        warn!(
            &(),
            "a packet of a revoked session passed: its entry is leased, and the daemon has not renewed the lease (is it alive?)"
        );
    }
}

#[inline(never)]
fn say_too_deep() {
    if may_speak(Reason::PassedTooDeep) {
        debug!(
            &(),
            "a packet passed unread: more VLAN tags or IPv6 extension headers than are walked through"
        );
    }
}

/// Once a second for each reason. Two CPUs may both speak; that does no harm.
#[inline(always)]
fn may_speak(reason: Reason) -> bool {
    let Some(last) = QUIET.get_ptr_mut(reason as u32) else { return false };
    // SAFETY: a value of the map; a helper without arguments.
    unsafe {
        let now = bpf_ktime_get_ns();
        if now - last.read_volatile() < 1_000_000_000 {
            return false;
        }
        last.write_volatile(now);
    }
    true
}
