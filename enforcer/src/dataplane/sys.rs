//! What aya 0.14 lacks of bpf(2): objects by descriptor, BPF_LINK_DETACH, and maps read and written many entries
//! at a time.
//!
//! When the last reference to a link goes, the kernel takes its program out in its own time. Whoever wants to
//! attach anew, or says that everything is out, cannot wait for that: hence the explicit detaching.

use std::ffi::CString;
use std::io;
use std::mem::size_of_val;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use enforcer_ebpf::layout::Definition;

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_PROG_TEST_RUN: libc::c_int = 10;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;
const BPF_LINK_DETACH: libc::c_int = 34;

/// `union bpf_attr` of BPF_OBJ_GET and BPF_OBJ_PIN.
#[repr(C)]
struct Object {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// ... of BPF_OBJ_GET_INFO_BY_FD.
#[repr(C)]
struct Info {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// ... of BPF_MAP_LOOKUP_ELEM and BPF_MAP_UPDATE_ELEM.
#[repr(C)]
struct Element {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// ... of BPF_PROG_TEST_RUN.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    rest: [u32; 12],
}

/// ... of the batch commands.
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// The beginning of `struct bpf_link_info`, as far as XDP and tcx links have it in common.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    ifindex: u32,
    rest: u32,
}

/// What a link is and where it hangs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Hanging {
    /// The kernel's number of its program.
    pub program: u32,
    /// 0: nowhere any more, since its device is gone or somebody has detached it.
    pub ifindex: u32,
}

/// Opens a pinned object.
pub(super) fn open_pin(pin: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    owned(bpf(BPF_OBJ_GET, &Object { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 })?)
}

/// Pins an object, also one that is pinned elsewhere already.
pub(super) fn pin(object: BorrowedFd<'_>, pin: &Path) -> io::Result<()> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let attributes = Object { pathname: path.as_ptr() as u64, bpf_fd: number(object), file_flags: 0 };
    bpf(BPF_OBJ_PIN, &attributes).map(drop)
}

/// Takes the program of a link out, at once. Its pins stay.
///
/// # Errors
/// The kernel is older than 5.9.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(BPF_LINK_DETACH, &number(link)).map(drop)
}

/// Where an XDP or tcx link hangs.
pub(super) fn hanging(link: BorrowedFd<'_>) -> io::Result<Hanging> {
    let mut info = LinkInfo::default();
    get_info(link, &mut info)?;
    Ok(Hanging { program: info.program, ifindex: info.ifindex })
}

/// The kernel's number of a map, by which two descriptors are known to be one map.
pub(super) fn map_id(map: BorrowedFd<'_>) -> io::Result<u32> {
    // type, id
    let mut info = [0_u32; 2];
    get_info(map, &mut info)?;
    Ok(info[1])
}

/// A program by the kernel's number of it.
pub(super) fn program(id: u32) -> io::Result<OwnedFd> {
    // prog_id, next_id, open_flags
    owned(bpf(BPF_PROG_GET_FD_BY_ID, &[id, 0, 0])?)
}

/// Runs a program once, of XDP or tc, with that frame of 14 bytes or more, on the loopback device (number 1) of the
/// caller's namespace; nothing is sent. Answers what the program returned.
///
/// # Errors
/// The kernel does not take the frame, or the caller lacks CAP_BPF or CAP_NET_ADMIN.
pub(super) fn test_run(program: BorrowedFd<'_>, frame: &[u8]) -> io::Result<u32> {
    let mut attributes = TestRun {
        prog_fd: number(program),
        data_size_in: u32::try_from(frame.len()).map_err(io::Error::other)?,
        data_in: frame.as_ptr() as u64,
        ..TestRun::default()
    };
    bpf_mut(BPF_PROG_TEST_RUN, &mut attributes)?;
    Ok(attributes.retval)
}

/// The name of a program: the first 15 bytes of its function's.
pub(super) fn program_name(id: u32) -> io::Result<String> {
    let program = self::program(id)?;
    // `struct bpf_prog_info` up to and with its name
    const NAME: usize = 64;
    let mut info = [0_u8; NAME + 16];
    get_info(std::os::fd::AsFd::as_fd(&program), &mut info)?;
    let name = info.get(NAME..).unwrap_or_default().split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

/// Reads the value of a key; `false`: there is none. Both are as long as the map's.
pub(super) fn lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let attributes = Element {
        map_fd: number(map),
        padding: 0,
        key: key.as_ptr() as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    match bpf(BPF_MAP_LOOKUP_ELEM, &attributes) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        found => found.map(|_| true),
    }
}

/// Writes the value of a key. Both are as long as the map's.
pub(super) fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let attributes = Element {
        map_fd: number(map),
        padding: 0,
        key: key.as_ptr() as u64,
        value: value.as_ptr() as u64,
        flags: 0,
    };
    bpf(BPF_MAP_UPDATE_ELEM, &attributes).map(drop)
}

/// Reads a hash map in pieces of a few thousand entries. Each entry comes once, as long as nobody inserts or
/// removes meanwhile.
pub(super) struct Reader<'a> {
    map: BorrowedFd<'a>,
    key: usize,
    value: usize,
    room: usize,
    position: Option<u32>,
    done: bool,
    keys: Vec<u8>,
    values: Vec<u8>,
}

/// Keys and values one after the other, `count` of each.
pub(super) struct Piece<'a> {
    pub keys: &'a [u8],
    pub values: &'a mut [u8],
    pub count: usize,
}

impl<'a> Reader<'a> {
    /// `key` and `value` are the sizes of the map's, and not 0.
    pub(super) fn new(map: BorrowedFd<'a>, key: usize, value: usize) -> Self {
        let (keys, values) = (Vec::new(), Vec::new());
        Self { map, key, value, room: 4096, position: None, done: false, keys, values }
    }

    pub(super) fn of(map: BorrowedFd<'a>, definition: &Definition) -> Self {
        Self::new(map, definition.key as usize, definition.value as usize)
    }

    /// `None` after the last piece. A piece may be empty.
    pub(super) fn next(&mut self) -> io::Result<Option<Piece<'_>>> {
        if self.done {
            return Ok(None);
        }
        let mut next = 0_u32;
        let count = loop {
            self.keys.resize(self.room * self.key, 0);
            self.values.resize(self.room * self.value, 0);
            let mut attributes = Batch {
                in_batch: self.position.as_ref().map_or(0, |position| std::ptr::from_ref(position) as u64),
                out_batch: (&raw mut next) as u64,
                keys: self.keys.as_mut_ptr() as u64,
                values: self.values.as_mut_ptr() as u64,
                count: u32::try_from(self.room).map_err(io::Error::other)?,
                map_fd: number(self.map),
                elem_flags: 0,
                flags: 0,
            };
            match bpf_mut(BPF_MAP_LOOKUP_BATCH, &mut attributes) {
                Ok(_) => break attributes.count,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                    self.done = true;
                    break attributes.count;
                }
                // one bucket has more than there is room for
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => self.room *= 2,
                Err(error) => return Err(error),
            }
        };
        self.position = Some(next);
        let count = usize::try_from(count).map_err(io::Error::other)?;
        let keys = self.keys.get(..count * self.key).unwrap_or_default();
        let values = self.values.get_mut(..count * self.value).unwrap_or_default();
        Ok(Some(Piece { keys, values, count }))
    }
}

/// Writes a piece into a map. Entries before the one that fails are written.
pub(super) fn write(map: BorrowedFd<'_>, piece: &Piece<'_>) -> io::Result<()> {
    if piece.count == 0 {
        return Ok(());
    }
    let mut attributes = Batch {
        in_batch: 0,
        out_batch: 0,
        keys: piece.keys.as_ptr() as u64,
        values: piece.values.as_ptr() as u64,
        count: u32::try_from(piece.count).map_err(io::Error::other)?,
        map_fd: number(map),
        elem_flags: 0,
        flags: 0,
    };
    bpf_mut(BPF_MAP_UPDATE_BATCH, &mut attributes).map(drop)
}

/// Eight random bytes that nobody can guess.
pub(super) fn random() -> io::Result<u64> {
    let mut bytes = [0_u8; 8];
    // SAFETY: the kernel writes at most as many bytes as there are. So few it gives whole or not at all.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got < 0 { Err(io::Error::last_os_error()) } else { Ok(u64::from_ne_bytes(bytes)) }
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Fills `info`, which is made of integers alone, with what the kernel has for it; the rest stays.
fn get_info<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let info_len = u32::try_from(size_of_val(info)).map_err(io::Error::other)?;
    let attributes = Info { bpf_fd: number(object), info_len, info: std::ptr::from_mut(info) as u64 };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &attributes).map(drop)
}

/// A command that only reads its attributes. Whatever they point to outlives the call at every caller above, and
/// is as large and as writable as the command needs it.
fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: as said; the kernel takes the rest of its union for zeroes.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of_val(attributes)) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

/// A command that writes back into its attributes (the count of a batch); otherwise as [`bpf`].
fn bpf_mut<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_long> {
    let size = size_of_val(attributes);
    // SAFETY: as for `bpf`.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}
