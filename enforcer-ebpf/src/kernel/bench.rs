//! For the measurements alone (feature `bench`): the least that a program can do, and packets whose address is
//! another one each time. A rewritten packet goes on by a tail call, so that the very programs of a gateway (or of
//! others) can be measured with it, and the limits go the same way.

use core::arch::asm;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::btf_maps::{Array, ProgramArray};
use aya_ebpf::helpers::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns, bpf_redirect};
use aya_ebpf::macros::{btf_map, classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use enforcer_ebpf::bench::Random;
use enforcer_ebpf::layout::{Address, UDP};
use enforcer_ebpf::packet::{self, Framing, Outer, Segment, addresses, dtls_session_id};

use super::frame::{self, Linear};
use super::{NEXT, SHOT};

#[btf_map(name = "bench_random")]
static RANDOM: Array<Random, 1> = Array::new();
#[btf_map(name = "bench_next_xdp")]
static NEXT_XDP: ProgramArray<1> = ProgramArray::new();
#[btf_map(name = "bench_next_tc")]
static NEXT_TC: ProgramArray<1> = ProgramArray::new();

/// Of an IPv4 packet after an Ethernet header without tags.
const CHECKSUM: usize = 14 + 10;
const SOURCE: usize = 14 + 12;
const DESTINATION: usize = 14 + 16;

/// The optimiser has to assume that somebody wants these. It costs one move between registers, since the kernel takes
/// no two lines of source at one instruction.
#[inline(always)]
fn want(words: [u32; 4]) {
    let [mut a, b, c, d] = words.map(u64::from);
    // SAFETY: a register keeps its value.
    unsafe {
        asm!("/* {b} {c} {d} */", "{a} = {a}", a = inout(reg) a, b = in(reg) b, c = in(reg) c, d = in(reg) d,
            options(nomem, nostack, preserves_flags));
    }
    let _ = a;
}

#[inline(always)]
fn want_address(address: &Address) {
    want([address.word(0), address.word(1), address.word(2), address.word(3)]);
}

/// All that `verdict::outer` reads of a packet, in the same steps.
#[inline(always)]
fn read(frame: &Linear) {
    let framing = Framing::Ethernet;
    let network = packet::network(frame, framing);
    if let Some(segment) = network.ok().and_then(|network| packet::plain(frame, network, |segment| *segment))
    {
        return want_all(frame, &segment);
    }
    match packet::outer(frame, framing) {
        Ok(Outer::Segment(segment, _) | Outer::Quote(segment, _)) => want_all(frame, &segment),
        Ok(Outer::Later(fragment) | Outer::Other(fragment) | Outer::Headless(fragment)) => {
            want_address(&fragment.source);
            want_address(&fragment.destination);
        }
        Err(_) => {}
    }
}

#[inline(always)]
fn want_all(frame: &Linear, segment: &Segment) {
    want_address(&segment.source);
    want_address(&segment.destination);
    let ports = u32::from(segment.source_port) | u32::from(segment.destination_port) << 16;
    want([ports, segment.protocol, 0, 0]);
    if segment.protocol == UDP
        && let Some(token) = dtls_session_id(frame, segment.at)
    {
        let [a, b, c, d, e, f, g, h] = token.id;
        want([a, b, c, d]);
        want([e, f, g, h]);
    }
}

/// Gives the packet its next address, and the checksum of its IP header that goes with it.
#[inline(always)]
fn rewrite(start: usize, end: usize, at: usize) {
    let Some(random) = RANDOM.get_ptr_mut(0) else { return };
    if start + DESTINATION + 4 > end {
        return;
    }
    // SAFETY: a value of the map, which programs on one CPU alone use; words within the packet.
    unsafe {
        let (address, checksum) = ((start + at) as *mut u32, (start + CHECKSUM) as *mut u16);
        let new = (*random).draw().to_be();
        // RFC 1624; in which order the bytes of words are added does not matter
        let sum = u64::from(!*checksum) + u64::from(!*address) + u64::from(new);
        let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        *checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
        *address = new;
    }
}

/// What the clock costs that a drop reads.
#[xdp]
pub fn bench_clock(_: XdpContext) -> u32 {
    // SAFETY: a helper without arguments.
    if unsafe { bpf_ktime_get_ns() } == 0 { xdp_action::XDP_DROP } else { xdp_action::XDP_PASS }
}

/// ... and one that is as old as the last tick (Linux 5.11).
#[xdp]
pub fn bench_clock_coarse(_: XdpContext) -> u32 {
    // SAFETY: a helper without arguments.
    if unsafe { bpf_ktime_get_coarse_ns() } == 0 { xdp_action::XDP_DROP } else { xdp_action::XDP_PASS }
}

#[xdp]
pub fn bench_pass(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[xdp]
pub fn bench_drop(_: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

#[xdp]
pub fn bench_parse(ctx: XdpContext) -> u32 {
    read(&Linear::new(ctx.data(), ctx.data_end()));
    xdp_action::XDP_PASS
}

/// A random source address, and on to the program in the array.
#[xdp]
pub fn bench_source(ctx: XdpContext) -> u32 {
    rewrite(ctx.data(), ctx.data_end(), SOURCE);
    // SAFETY: nothing here needs to be dropped.
    unsafe { NEXT_XDP.tail_call(&ctx, 0) };
    xdp_action::XDP_ABORTED
}

/// Waits until the next packet may go. What was missed is caught up with, up to a millisecond of it.
#[inline(always)]
fn wait() {
    let Some(random) = RANDOM.get_ptr_mut(0) else { return };
    // SAFETY: a value of the map, which programs on one CPU alone use; a helper without arguments.
    unsafe {
        let gap = u64::from((*random).gap_ns);
        if gap == 0 {
            return;
        }
        for _ in 0..WAITS {
            let now = bpf_ktime_get_ns();
            let next = (*random).next_ns;
            if now >= next {
                let late = now - next > 1_000_000;
                (*random).next_ns = if late { now } else { next } + gap;
                return;
            }
        }
    }
}

/// More than are needed for 10 us.
const WAITS: u32 = 1_000;

/// A random source address, and out through a device.
#[xdp]
pub fn bench_send(ctx: XdpContext) -> u32 {
    wait();
    rewrite(ctx.data(), ctx.data_end(), SOURCE);
    let Some(random) = RANDOM.get_ptr(0) else { return xdp_action::XDP_ABORTED };
    // SAFETY: a value of the map; a helper.
    unsafe { bpf_redirect((*random).ifindex, 0) as u32 }
}

#[classifier]
pub fn bench_tc_pass(_: TcContext) -> i32 {
    NEXT
}

#[classifier]
pub fn bench_tc_drop(_: TcContext) -> i32 {
    SHOT
}

/// All that the hooks on the LAN read of a packet.
#[classifier]
pub fn bench_tc_parse(ctx: TcContext) -> i32 {
    if let Ok(both) = addresses(&frame::headers(&ctx), Framing::Ethernet) {
        want_address(&both.source);
        want_address(&both.destination);
    }
    NEXT
}

#[inline(always)]
fn go_on(ctx: &TcContext, at: usize) -> i32 {
    rewrite(ctx.data(), ctx.data_end(), at);
    // SAFETY: nothing here needs to be dropped.
    unsafe { NEXT_TC.tail_call(ctx, 0) };
    SHOT
}

/// A random source address, and on to the program in the array.
#[classifier]
pub fn bench_tc_source(ctx: TcContext) -> i32 {
    go_on(&ctx, SOURCE)
}

/// A random destination address, likewise.
#[classifier]
pub fn bench_tc_destination(ctx: TcContext) -> i32 {
    go_on(&ctx, DESTINATION)
}
