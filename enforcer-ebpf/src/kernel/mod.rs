//! The hooks: five, each for Ethernet and for bare IP frames.

#[cfg(feature = "bench")]
mod bench;
// the layouts 1 and 2 have no such maps
#[cfg(not(feature = "abi-2"))]
mod events;
mod frame;
mod packed;
mod tables;

use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use enforcer_ebpf::packet::Framing;
use enforcer_ebpf::verdict::{self, Look, Verdict};

#[cfg(not(feature = "abi-2"))]
use events::What;
use frame::Linear;
use tables::Tables;

/// Leaves the decision to whoever comes next (other tcx programs, other filters); `TC_ACT_OK` would end it.
const NEXT: i32 = -1;
const SHOT: i32 = 2;

const NOBODYS: u32 = Look::Nobodys as u32;
const PLAIN: u32 = Look::Plain as u32;

/// Almost every packet needs no more than the first look, for which few registers have to be saved. So the steps are
/// functions of their own; and the stacks of a program and of those that it calls may be 512 bytes together.
macro_rules! outer {
    ($ctx:expr, $look:ident, $plain:ident, $other:ident) => {
        match $look($ctx.ctx) {
            NOBODYS => xdp_action::XDP_PASS,
            PLAIN => $plain($ctx.ctx),
            _ => $other($ctx.ctx),
        }
    };
}

/// The context that a function of its own was called with.
#[inline(always)]
fn context(mut ctx: *mut xdp_md) -> XdpContext {
    // SAFETY: a register keeps its value. The optimiser would have the caller read the two fields otherwise, in a way of
    // which the verifier thinks that it changes a pointer.
    unsafe {
        core::arch::asm!("{ctx} = {ctx}", ctx = inout(reg) ctx, options(pure, nomem, nostack, preserves_flags))
    };
    XdpContext::new(ctx)
}

#[inline(always)]
fn look(ctx: *mut xdp_md, framing: Framing) -> u32 {
    let ctx = context(ctx);
    verdict::look(&Tables::new(), &Linear::new(ctx.data(), ctx.data_end()), framing) as u32
}

#[inline(never)]
fn look_ether(ctx: *mut xdp_md) -> u32 {
    look(ctx, Framing::Ethernet)
}

#[inline(never)]
fn look_bare(ctx: *mut xdp_md) -> u32 {
    look(ctx, Framing::Bare)
}

#[inline(always)]
fn further(ctx: *mut xdp_md, framing: Framing, decide: impl FnOnce(&Tables, &Linear) -> Verdict) -> u32 {
    let ctx = &context(ctx);
    let frame = Linear::new(ctx.data(), ctx.data_end());
    let world = Tables::new();
    match decide(&world, &frame) {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::PassCounted(reason) => {
            tables::count(reason, frame.len());
            xdp_action::XDP_PASS
        }
        Verdict::Drop(reason) => {
            tables::count(reason, frame.len());
            #[cfg(not(feature = "abi-2"))]
            if world.news() != 0 {
                events::tell_xdp(ctx.ctx, What::new(reason, framing, world.news()), world.revocation());
            }
            #[cfg(feature = "abi-2")]
            let _ = framing;
            xdp_action::XDP_DROP
        }
    }
}

#[inline(never)]
fn plain_ether(ctx: *mut xdp_md) -> u32 {
    let framing = Framing::Ethernet;
    further(ctx, framing, |world, frame| verdict::plain(world, frame, framing))
}

#[inline(never)]
fn plain_bare(ctx: *mut xdp_md) -> u32 {
    let framing = Framing::Bare;
    further(ctx, framing, |world, frame| verdict::plain(world, frame, framing))
}

#[inline(never)]
fn other_ether(ctx: *mut xdp_md) -> u32 {
    let framing = Framing::Ethernet;
    further(ctx, framing, |world, frame| verdict::other(world, frame, framing))
}

#[inline(never)]
fn other_bare(ctx: *mut xdp_md) -> u32 {
    let framing = Framing::Bare;
    further(ctx, framing, |world, frame| verdict::other(world, frame, framing))
}

#[inline(always)]
fn classify(ctx: &TcContext, framing: Framing, decide: impl FnOnce(&Tables, &Linear) -> Verdict) -> i32 {
    let world = Tables::new();
    match decide(&world, &frame::headers(ctx)) {
        Verdict::Pass => NEXT,
        Verdict::PassCounted(reason) => {
            tables::count(reason, u64::from(ctx.len()));
            NEXT
        }
        Verdict::Drop(reason) => {
            tables::count(reason, u64::from(ctx.len()));
            #[cfg(not(feature = "abi-2"))]
            if world.news() != 0 {
                events::tell_tc(ctx.skb.skb, What::new(reason, framing, world.news()), world.revocation());
            }
            #[cfg(feature = "abi-2")]
            let _ = framing;
            SHOT
        }
    }
}

#[inline(always)]
fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: the kernel calls a classifier with a valid __sk_buff.
    unsafe { (*ctx.skb.skb).ifindex }
}

#[xdp]
pub fn outer_ether(ctx: XdpContext) -> u32 {
    outer!(ctx, look_ether, plain_ether, other_ether)
}

#[xdp]
pub fn outer_bare(ctx: XdpContext) -> u32 {
    outer!(ctx, look_bare, plain_bare, other_bare)
}

#[classifier]
pub fn lan_in_ether(ctx: TcContext) -> i32 {
    let framing = Framing::Ethernet;
    classify(&ctx, framing, |world, frame| verdict::lan_ingress(world, frame, framing))
}

#[classifier]
pub fn lan_in_bare(ctx: TcContext) -> i32 {
    let framing = Framing::Bare;
    classify(&ctx, framing, |world, frame| verdict::lan_ingress(world, frame, framing))
}

#[classifier]
pub fn lan_out_ether(ctx: TcContext) -> i32 {
    let framing = Framing::Ethernet;
    classify(&ctx, framing, |world, frame| verdict::lan_egress(world, frame, framing))
}

#[classifier]
pub fn lan_out_bare(ctx: TcContext) -> i32 {
    let framing = Framing::Bare;
    classify(&ctx, framing, |world, frame| verdict::lan_egress(world, frame, framing))
}

#[classifier]
pub fn tun_in_ether(ctx: TcContext) -> i32 {
    let framing = Framing::Ethernet;
    classify(&ctx, framing, |world, frame| verdict::tunnel_ingress(world, ifindex(&ctx), frame, framing))
}

#[classifier]
pub fn tun_in_bare(ctx: TcContext) -> i32 {
    let framing = Framing::Bare;
    classify(&ctx, framing, |world, frame| verdict::tunnel_ingress(world, ifindex(&ctx), frame, framing))
}

#[classifier]
pub fn tun_out_ether(ctx: TcContext) -> i32 {
    let framing = Framing::Ethernet;
    classify(&ctx, framing, |world, frame| verdict::tunnel_egress(world, ifindex(&ctx), frame, framing))
}

#[classifier]
pub fn tun_out_bare(ctx: TcContext) -> i32 {
    let framing = Framing::Bare;
    classify(&ctx, framing, |world, frame| verdict::tunnel_egress(world, ifindex(&ctx), frame, framing))
}
