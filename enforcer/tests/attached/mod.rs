//! The programs that hang at a lab's devices, run by BPF_PROG_TEST_RUN.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]
#![allow(dead_code, reason = "each file of tests uses a part of it")]

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use aya::maps::MapInfo;
use aya::programs::loaded_programs;
use enforcer_ebpf::layout;

use crate::lab::Lab;

/// By name: those that use this lab's maps.
pub fn programs(lab: &Lab) -> BTreeMap<String, OwnedFd> {
    let ours = MapInfo::from_pin(lab.pin_path().join("maps").join(layout::COUNTERS)).unwrap().id();
    loaded_programs()
        // somebody else's may go away meanwhile
        .filter_map(Result::ok)
        .filter(|program| matches!(program.map_ids(), Ok(Some(ids)) if ids.contains(&ours)))
        .map(|program| {
            let name = program.name_as_str().unwrap().to_owned();
            (name, program.fd().unwrap().as_fd().try_clone_to_owned().unwrap())
        })
        .collect()
}

/// BPF_PROG_TEST_RUN; `None` where the kernel does not take the frame.
pub fn test_run(program: &OwnedFd, frame: &[u8]) -> Option<u32> {
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        program: u32,
        answer: u32,
        size_in: u32,
        size_out: u32,
        data_in: u64,
        data_out: u64,
        rest: [u32; 12],
    }
    let mut attributes = Attributes {
        program: program.as_raw_fd().unsigned_abs(),
        size_in: u32::try_from(frame.len()).unwrap(),
        data_in: frame.as_ptr() as u64,
        ..Attributes::default()
    };
    let size = std::mem::size_of::<Attributes>();
    // SAFETY: the frame outlives the call, and the kernel writes into the attributes alone.
    let done = unsafe { nix::libc::syscall(nix::libc::SYS_bpf, 10, &raw mut attributes, size) };
    (done == 0).then_some(attributes.answer)
}
