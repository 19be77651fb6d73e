//! The hooks: five, each for Ethernet and for bare IP frames.

#[cfg(feature = "bench")]
mod bench;
// the layouts 1 and 2 have no such maps
#[cfg(not(feature = "abi-2"))]
mod events;
mod frame;
mod packed;
mod tables;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use enforcer_ebpf::packet::Framing;
use enforcer_ebpf::verdict::{self, Verdict};

#[cfg(not(feature = "abi-2"))]
use events::What;
use frame::Linear;
use tables::Tables;

/// Leaves the decision to whoever comes next (other tcx programs, other filters); `TC_ACT_OK` would end it.
const NEXT: i32 = -1;
const SHOT: i32 = 2;

#[inline(always)]
fn outer(ctx: &XdpContext, framing: Framing) -> u32 {
    let frame = Linear::new(ctx.data(), ctx.data_end());
    let world = Tables::new();
    let verdict = verdict::outer(&world, &frame, framing);
    match verdict {
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
            xdp_action::XDP_DROP
        }
    }
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
    outer(&ctx, Framing::Ethernet)
}

#[xdp]
pub fn outer_bare(ctx: XdpContext) -> u32 {
    outer(&ctx, Framing::Bare)
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
