//! The one thing that aya 0.14 lacks: BPF_LINK_DETACH.
//!
//! When the last reference to a link goes, the kernel takes its program out in its own time. Whoever wants to
//! attach anew, or says that everything is out, cannot wait for that.

use std::ffi::CString;
use std::io;
use std::mem::size_of_val;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_DETACH: libc::c_int = 34;

/// `union bpf_attr` of BPF_OBJ_GET.
#[repr(C)]
struct Get {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Takes the program of a pinned link out, at once. The pin stays.
///
/// # Errors
/// There is no such pin, or the kernel is older than 5.9.
pub(super) fn detach_link(pin: &Path) -> io::Result<()> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let get = Get { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    let fd = i32::try_from(bpf(BPF_OBJ_GET, &get)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    bpf(BPF_LINK_DETACH, &link.as_raw_fd().unsigned_abs()).map(drop)
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads `attributes` and what they point to, both of which outlive the call, and takes
    // the rest of its union for zeroes. Neither command writes to memory.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of_val(attributes)) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}
