//! What the kernel says of a pinned link (`bpf(2)`), where the library does not hand it on.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `BPF_OBJ_GET`, `BPF_OBJ_GET_INFO_BY_FD` and `BPF_LINK_TYPE_NETNS` (linux/bpf.h).
const OBJ_GET: libc::c_int = 7;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const LINK_TYPE_NETNS: u32 = 5;

/// The part of `union bpf_attr` for `BPF_OBJ_GET`.
#[repr(C)]
struct Get {
    pathname: u64,
    fd: u32,
    flags: u32,
}

/// The part of `union bpf_attr` for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct InfoByFd {
    fd: u32,
    length: u32,
    info: u64,
}

/// The start of `struct bpf_link_info`: kind, id, program, padding, and of its union `netns`, which is inode and attach type.
type LinkInfo = [u32; 6];

/// Whether a pinned link to a network namespace has outlived it (Linux 5.8). An error if it is no such link.
pub fn is_orphan(pin: &Path) -> io::Result<bool> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let get = Get { pathname: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: `get` has the layout of this command's part of the union and its size is told; it and the string that it points to outlive
    // the call, which only reads both.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET, &raw const get, size_of::<Get>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) };
    let mut info: LinkInfo = [0; 6];
    let mut ask = InfoByFd { fd: fd.as_raw_fd() as u32, length: size_of::<LinkInfo>() as u32, info: &raw mut info as u64 };
    // SAFETY: as above, and both may be written to: the kernel writes at most `length` bytes to `info`, which is that long and may hold any
    // bytes, and their number to `length`.
    let result = unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET_INFO_BY_FD, &raw mut ask, size_of::<InfoByFd>()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let [kind, _, _, _, netns_inode, _] = info;
    if kind != LINK_TYPE_NETNS {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not the link of a network namespace"));
    }
    // The kernel forgets the number when the namespace is taken down.
    Ok(netns_inode == 0)
}
