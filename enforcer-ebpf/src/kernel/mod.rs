//! The hooks: five, each for Ethernet and for bare IP frames.

mod frame;
mod packed;
mod tables;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use enforcer_ebpf::packet::Framing;
use enforcer_ebpf::verdict::{self, Verdict};

use frame::Linear;
use tables::Tables;

/// Leaves the decision to whoever comes next (other tcx programs, other filters); `TC_ACT_OK` would end it.
const NEXT: i32 = -1;
const SHOT: i32 = 2;

#[inline(always)]
fn outer(ctx: &XdpContext, framing: Framing) -> u32 {
    let frame = Linear::new(ctx.data(), ctx.data_end());
    let verdict = verdict::outer(&Tables, &frame, framing);
    match verdict {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::PassCounted(reason) => {
            tables::count(reason, frame.len());
            xdp_action::XDP_PASS
        }
        Verdict::Drop(reason) => {
            tables::count(reason, frame.len());
            xdp_action::XDP_DROP
        }
    }
}

#[inline(always)]
fn classify(ctx: &TcContext, verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass => NEXT,
        Verdict::PassCounted(reason) => {
            tables::count(reason, u64::from(ctx.len()));
            NEXT
        }
        Verdict::Drop(reason) => {
            tables::count(reason, u64::from(ctx.len()));
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
    classify(&ctx, verdict::lan_ingress(&Tables, &frame::headers(&ctx), Framing::Ethernet))
}

#[classifier]
pub fn lan_in_bare(ctx: TcContext) -> i32 {
    classify(&ctx, verdict::lan_ingress(&Tables, &frame::headers(&ctx), Framing::Bare))
}

#[classifier]
pub fn lan_out_ether(ctx: TcContext) -> i32 {
    classify(&ctx, verdict::lan_egress(&Tables, &frame::headers(&ctx), Framing::Ethernet))
}

#[classifier]
pub fn lan_out_bare(ctx: TcContext) -> i32 {
    classify(&ctx, verdict::lan_egress(&Tables, &frame::headers(&ctx), Framing::Bare))
}

#[classifier]
pub fn tun_in_ether(ctx: TcContext) -> i32 {
    classify(&ctx, verdict::tunnel_ingress(&Tables, ifindex(&ctx), &frame::headers(&ctx), Framing::Ethernet))
}

#[classifier]
pub fn tun_in_bare(ctx: TcContext) -> i32 {
    classify(&ctx, verdict::tunnel_ingress(&Tables, ifindex(&ctx), &frame::headers(&ctx), Framing::Bare))
}

#[classifier]
pub fn tun_out_ether(ctx: TcContext) -> i32 {
    classify(&ctx, verdict::tunnel_egress(&Tables, ifindex(&ctx), &frame::headers(&ctx), Framing::Ethernet))
}

#[classifier]
pub fn tun_out_bare(ctx: TcContext) -> i32 {
    classify(&ctx, verdict::tunnel_egress(&Tables, ifindex(&ctx), &frame::headers(&ctx), Framing::Bare))
}
