//! What the programs of the measurements share with who measures (feature `bench`).

/// The map with the one [`Random`].
pub const RANDOM: &str = "bench_random";
/// The program array with the one program that a rewritten packet goes to, for XDP and for tc.
pub const NEXT_XDP: &str = "bench_next_xdp";
pub const NEXT_TC: &str = "bench_next_tc";

/// Which IPv4 address a packet gets next: one of `count` from `first` on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Random {
    /// Of a linear congruential generator, of which the upper half counts.
    pub state: u64,
    /// In the host's order.
    pub first: u32,
    /// At least 1.
    pub count: u32,
    /// The device to which `bench_send` sends.
    pub ifindex: u32,
    /// `bench_send`: nanoseconds of CLOCK_MONOTONIC between two packets; 0: as fast as it can.
    pub gap_ns: u32,
    /// When the next packet may go.
    pub next_ns: u64,
}

impl Random {
    /// The next address, in the host's order.
    #[inline(always)]
    pub fn draw(&mut self) -> u32 {
        self.state = self.state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let index = ((self.state >> 32) * self.count as u64) >> 32;
        self.first.wrapping_add(index as u32)
    }
}
