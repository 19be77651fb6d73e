//! A frame as the kernel shows it: from `data` to `data_end`, every read checked against the end.

use core::mem::size_of;

use aya_ebpf::programs::TcContext;
use enforcer_ebpf::packet::{Frame, MAX_OFFSET};

/// Ethernet, two VLAN tags and the addresses of an IPv6 header: what tc reads at most.
const HEADERS: usize = 22 + 40;

#[derive(Clone, Copy)]
pub struct Linear {
    start: usize,
    end: usize,
}

impl Linear {
    #[inline(always)]
    pub fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    #[inline(always)]
    pub fn len(&self) -> u64 {
        (self.end - self.start) as u64
    }

    /// The verifier wants to see `from`, plus the size, compared with the end. The addition is in assembly, since
    /// the optimiser would make `from >= end` of `from + 1 > end`, of which the verifier learns nothing.
    #[inline(always)]
    fn at<T: Copy>(&self, at: usize) -> Option<T> {
        let from = self.start + at;
        let mut to = from;
        // SAFETY: one addition, in a register.
        unsafe {
            core::arch::asm!("{to} += {size}", to = inout(reg) to, size = const size_of::<T>(),
                options(pure, nomem, nostack, preserves_flags));
        }
        if to > self.end {
            return None;
        }
        // SAFETY: inside the frame, as just checked. `T` is an integer or an array of them, and every kernel
        // that runs this does unaligned loads (the verifier refuses the program otherwise); `read_unaligned`
        // would become one load for each byte.
        Some(unsafe { *(from as *const T) })
    }
}

impl Frame for Linear {
    #[inline(always)]
    fn u8(&self, at: usize) -> Option<u8> {
        self.at(at)
    }

    #[inline(always)]
    fn u16(&self, at: usize) -> Option<u16> {
        self.at(at)
    }

    #[inline(always)]
    fn words<const N: usize>(&self, at: usize) -> Option<[u32; N]> {
        self.at(at)
    }

    /// Adds and takes away what the verifier does not know, which leaves it with the bound alone.
    #[inline(always)]
    fn forget(&self, at: usize) -> usize {
        let mut at = at;
        // SAFETY: three operations on a register, which together change nothing.
        unsafe {
            core::arch::asm!("{at} += {unknown}", "{at} -= {unknown}", "{at} &= {bound}",
                at = inout(reg) at, unknown = in(reg) self.end - self.start, bound = const MAX_OFFSET,
                options(pure, nomem, nostack, preserves_flags));
        }
        at
    }
}

/// The headers of an skb. Where they lie in fragments they are pulled into the linear part first.
#[inline(always)]
pub fn headers(ctx: &TcContext) -> Linear {
    if ctx.data() + HEADERS > ctx.data_end() {
        // A shorter packet cannot be pulled that far; what there is of it is linear or gets so.
        let length = ctx.len();
        let _ = ctx.pull_data(if length < HEADERS as u32 { length } else { HEADERS as u32 });
    }
    Linear::new(ctx.data(), ctx.data_end())
}
