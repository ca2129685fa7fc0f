//! Socket options that the libraries do not know.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The cookie of the socket's network namespace (`SO_NETNS_COOKIE`, Linux 5.14).
pub fn netns_cookie(socket: &impl AsFd) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` is valid for writes of `len` bytes and outlives the call; the kernel writes at most `len` bytes, and any bytes
    // are a valid u64. The descriptor is open for as long as it is borrowed.
    let result = unsafe {
        libc::getsockopt(socket.as_fd().as_raw_fd(), libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, (&raw mut cookie).cast(), &mut len)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cookie)
}

/// Whether the peer's kernel has not acknowledged every byte that was sent (`TCP_INFO`, Linux 4.19 for these counters). Also true of a
/// connection that is over; false where the kernel does not say.
pub fn has_unacknowledged(socket: &impl AsFd) -> bool {
    let mut info = [0u8; 256];
    let mut len = info.len() as libc::socklen_t;
    // SAFETY: `info` is valid for writes of `len` bytes and outlives the call; the kernel writes at most `len` bytes and any bytes are
    // valid there. The descriptor is open for as long as it is borrowed.
    let result =
        unsafe { libc::getsockopt(socket.as_fd().as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &mut len) };
    result == 0 && info.get(..len as usize).and_then(unacknowledged).is_some_and(|bytes| bytes > 0)
}

/// Bytes sent and not acknowledged, of a `struct tcp_info` (linux/tcp.h): `tcpi_bytes_acked` counts the SYN as one byte.
fn unacknowledged(info: &[u8]) -> Option<u64> {
    let word = |at: usize| Some(u64::from_ne_bytes(info.get(at..at + 8)?.try_into().ok()?));
    let (acknowledged, sent, repeated) = (word(120)?, word(200)?, word(208)?);
    Some(sent.saturating_sub(repeated).saturating_sub(acknowledged.saturating_sub(1)))
}

#[cfg(test)]
mod tests;
