//! The programs and the maps. What a packet means and what becomes of it is decided in the library; here are
//! only the hooks, the tables as the kernel has them, and what is counted and said.
//!
//! Built for `bpfel-unknown-none` by `enforcer/build.rs`. On any other target this is an empty program.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// the compiler for the BPF target is a nightly, or is told to be one
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch, core_intrinsics), allow(internal_features))]

#[cfg(target_arch = "bpf")]
mod kernel;

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // The verifier refuses a program that could get here.
    loop {}
}

/// Read by the kernel: some helpers are there for programs under the GPL alone.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
