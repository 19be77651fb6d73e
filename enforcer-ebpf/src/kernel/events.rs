//! Tells of a drop, in functions of their own: this happens once in a minute for each entry, and what every packet goes
//! through has nothing to remember for it. The packet is read a second time.

use core::intrinsics::{AtomicOrdering, atomic_xadd};
use core::mem::offset_of;

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use aya_ebpf::btf_maps::{Array, RingBuf};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::{TcContext, XdpContext};
use enforcer_ebpf::counters::Reason;
use enforcer_ebpf::events::{AGAIN, Budget, DropEvent, RING_BYTES};
use enforcer_ebpf::packet::{self, ENDS, Framing};

use super::frame::Linear;
use super::tables::{self, SHARED};

#[btf_map(name = "events")]
static EVENTS: RingBuf<DropEvent, { RING_BYTES as usize }> = RingBuf::new();
#[btf_map(name = "event_budget")]
static BUDGET: Array<Budget, 1, SHARED> = Array::new();

/// Reason, framing and [`enforcer_ebpf::events::news`], in one register.
#[derive(Clone, Copy)]
pub struct What(u64);

impl What {
    const BARE: u64 = 1 << 32;
    const NEWS: u32 = 33;

    #[inline(always)]
    pub fn new(reason: Reason, framing: Framing, news: u64) -> Self {
        let bare = if matches!(framing, Framing::Bare) { Self::BARE } else { 0 };
        Self(reason as u64 | bare | news << Self::NEWS)
    }

    #[inline(always)]
    fn framing(self) -> Framing {
        if self.0 & Self::BARE != 0 { Framing::Bare } else { Framing::Ethernet }
    }
}

#[inline(never)]
pub fn tell_xdp(ctx: *mut xdp_md, what: What, revocation: u64) {
    if may_tell() {
        let ctx = XdpContext::new(ctx);
        // SAFETY: the context of the running program.
        let ifindex = unsafe { (*ctx.ctx).ingress_ifindex };
        put(&Linear::new(ctx.data(), ctx.data_end()), what, ifindex, revocation);
    }
}

#[inline(never)]
pub fn tell_tc(ctx: *mut __sk_buff, what: What, revocation: u64) {
    if may_tell() {
        let ctx = TcContext::new(ctx);
        // SAFETY: the context of the running program.
        let ifindex = unsafe { (*ctx.skb.skb).ifindex };
        put(&Linear::new(ctx.data(), ctx.data_end()), what, ifindex, revocation);
    }
}

/// One of those that the reader has allowed.
#[inline(always)]
fn may_tell() -> bool {
    let Some(budget) = BUDGET.get_ptr_mut(0) else { return false };
    // SAFETY: a value of the map; each addition is one atomic instruction, and the rest is volatile, since other CPUs
    // and the reader write at any time.
    unsafe {
        let (asked, allowed) = (&raw mut (*budget).asked, &raw const (*budget).allowed);
        add(asked);
        if asked.read_volatile() <= allowed.read_volatile() {
            return true;
        }
        add(&raw mut (*budget).suppressed);
    }
    false
}

/// Written where it is read: the stack has no room for it beside what the caller has there.
#[inline(always)]
fn put(frame: &Linear, what: What, ifindex: u32, revocation: u64) {
    let Some(mut room) = EVENTS.reserve(0) else {
        let Some(budget) = BUDGET.get_ptr_mut(0) else { return };
        // SAFETY: as in `may_tell`.
        unsafe { add(&raw mut (*budget).lost) };
        return;
    };
    let event = room.as_mut_ptr();
    // SAFETY: the room is one event's, and all of it is written; the words are within it (asserted below).
    unsafe {
        (&raw mut (*event).at_ns).write(bpf_ktime_get_ns());
        (&raw mut (*event).revocation).write(revocation);
        (&raw mut (*event).netns).write(tables::netns());
        (&raw mut (*event).ifindex).write(ifindex);
        (&raw mut (*event).reason).write(what.0 as u32);
        (&raw mut (*event).again).write((what.0 >> What::NEWS & AGAIN != 0) as u32);
        let words = (&raw mut (*event).source).cast::<u32>();
        for at in 0..ENDS {
            words.add(at).write_volatile(0);
        }
        packet::ends(frame, what.framing(), |at, word| words.add(at).write_volatile(word));
    }
    room.submit(0);
}

const _: () = assert!(offset_of!(DropEvent, netns) == offset_of!(DropEvent, source) + 4 * ENDS);

/// # Safety
/// A counter within a value of a map.
#[inline(always)]
unsafe fn add(counter: *mut u64) {
    // SAFETY: the caller's word.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, 1) };
}
