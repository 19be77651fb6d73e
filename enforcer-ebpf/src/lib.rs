//! What kernel and user space share: keys and values of the maps, the packet parser, the verdict.
//!
//! The programs (`main.rs`) and the host's tests run the very same parser and verdict. Nothing here allocates,
//! and nothing panics, whatever the bytes.
#![cfg_attr(not(test), no_std)]

#[cfg(feature = "bench")]
pub mod bench;
pub mod counters;
pub mod events;
pub mod layout;
pub mod openvpn;
pub mod packed;
pub mod packet;
pub mod verdict;
