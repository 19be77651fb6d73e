//! Programs of others: a few instructions, attached by bpf(2) itself, as any other tool would.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this is a test")]
#![allow(dead_code, reason = "each file of tests uses a part of it")]

use std::io;
use std::mem::size_of_val;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::libc;

const MAP_CREATE: libc::c_int = 0;
const MAP_LOOKUP_ELEM: libc::c_int = 1;
const PROG_LOAD: libc::c_int = 5;
const OBJ_PIN: libc::c_int = 6;
const LINK_CREATE: libc::c_int = 28;

const SCHED_CLS: u32 = 3;
pub const TCX_INGRESS: u32 = 46;
pub const TCX_EGRESS: u32 = 47;
const BEFORE: u32 = 1 << 3;
const AFTER: u32 = 1 << 4;

/// What a classifier answers.
pub const NEXT: i32 = -1;
pub const OK: i32 = 0;
pub const SHOT: i32 = 2;

/// One instruction: code, registers, offset, number.
type Instruction = (u8, u8, i16, i32);

fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_long> {
    let size = size_of_val(attributes);
    // SAFETY: what the attributes point to outlives the call.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

fn owned(fd: libc::c_long) -> OwnedFd {
    // SAFETY: the kernel has just given us this descriptor.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) }
}

fn number(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

/// Frames of this length are counted: those of a lab's sockets with `hello` in them. So not what the kernel sends by
/// itself (ARP and its like).
const COUNTED: i32 = 14 + 20 + 8 + 5;

/// A classifier, and what it counts in.
pub struct Program(OwnedFd, OwnedFd);

/// Gone when dropped.
pub struct Link(#[expect(dead_code, reason = "it is held")] OwnedFd);

impl Program {
    fn load(name: &str, instructions: &[Instruction], map: OwnedFd) -> Self {
        let code: Vec<u8> = (instructions.iter())
            .flat_map(|(code, registers, offset, number)| {
                let mut bytes = vec![*code, *registers];
                bytes.extend(offset.to_ne_bytes());
                bytes.extend(number.to_ne_bytes());
                bytes
            })
            .collect();
        #[repr(C)]
        struct Attributes {
            kind: u32,
            count: u32,
            code: u64,
            license: u64,
            log: [u32; 2],
            log_buffer: u64,
            kernel: u32,
            flags: u32,
            name: [u8; 16],
        }
        let mut attributes = Attributes {
            kind: SCHED_CLS,
            count: u32::try_from(instructions.len()).unwrap(),
            code: code.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            log: [0; 2],
            log_buffer: 0,
            kernel: 0,
            flags: 0,
            name: [0; 16],
        };
        attributes.name[..name.len()].copy_from_slice(name.as_bytes());
        Self(owned(bpf(PROG_LOAD, &mut attributes).unwrap()), map)
    }

    /// Answers this of every packet, and counts those of a lab's sockets.
    pub fn answers(name: &str, answer: i32) -> Self {
        let map = array();
        let number = map.as_raw_fd();
        let instructions = [
            (0x61, 0x12, 0, 0),        // r2 = the packet's length
            (0x55, 0x02, 10, COUNTED), // another one: answer
            (0x18, 0x11, 0, number),   // r1 = the map
            (0x00, 0x00, 0, 0),
            (0x62, 0x0a, -4, 0), // its first element
            (0xbf, 0xa2, 0, 0),
            (0x07, 0x02, 0, -4),
            (0x85, 0x00, 0, 1), // bpf_map_lookup_elem
            (0x15, 0x00, 3, 0),
            (0xb7, 0x01, 0, 1),
            (0xdb, 0x10, 0, 0), // += 1, atomically
            (0xb7, 0x00, 0, 0),
            (0xb7, 0x00, 0, answer),
            (0x95, 0x00, 0, 0),
        ];
        Self::load(name, &instructions, map)
    }

    /// Gives every packet a VLAN tag and sends it out through a device.
    pub fn tags(ifindex: u32) -> Self {
        let protocol = i32::from(0x8100_u16.to_be());
        Self::load(
            "tags",
            &[
                (0xb7, 2, 0, protocol),
                (0xb7, 3, 0, 5),
                (0x85, 0, 0, 18), // bpf_skb_vlan_push
                (0xb7, 1, 0, i32::try_from(ifindex).unwrap()),
                (0xb7, 2, 0, 0),
                (0x85, 0, 0, 23), // bpf_redirect
                (0x95, 0, 0, 0),
            ],
            array(),
        )
    }

    /// As the first of the programs there, or the last.
    pub fn attach(&self, ifindex: u32, direction: u32, first: bool) -> Link {
        let flags = if first { BEFORE } else { AFTER };
        // prog_fd, target_ifindex, attach_type, flags, relative_fd, padding, expected_revision
        let mut attributes = [number(&self.0), ifindex, direction, flags, 0, 0, 0, 0];
        Link(owned(bpf(LINK_CREATE, &mut attributes).unwrap()))
    }

    /// How many packets it has counted.
    pub fn seen(&self) -> u64 {
        let (key, mut value) = (0_u32, 0_u64);
        // map_fd, key, value, flags
        let mut attributes =
            [u64::from(number(&self.1)), (&raw const key) as u64, (&raw mut value) as u64, 0];
        bpf(MAP_LOOKUP_ELEM, &mut attributes).unwrap();
        value
    }

    /// Under a name on a bpffs, for tc.
    pub fn pin(&self, path: &std::path::Path) {
        let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        let mut attributes = (path.as_ptr() as u64, number(&self.0), 0_u32);
        bpf(OBJ_PIN, &mut attributes).unwrap();
    }
}

/// An array of one count.
fn array() -> OwnedFd {
    // map_type, key_size, value_size, max_entries
    let mut attributes = [2_u32, 4, 8, 1];
    owned(bpf(MAP_CREATE, &mut attributes).unwrap())
}
