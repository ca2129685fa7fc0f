//! Ending a TCP connection of a pod from outside (`SOCK_DESTROY`, Linux 4.5 with `CONFIG_INET_DIAG_DESTROY`).
//!
//! The kernel looks for the socket as for an arriving packet: where no connection has these ends it finds whoever listens at the local one,
//! and would end that. So it is asked first which socket it is, and told to end that one alone, by its cookie.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::netlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

use super::netns::NetNs;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const HEADER: usize = 16;
const REQUEST: usize = 56;
/// `INET_DIAG_NOCOOKIE`, twice.
const ANY: Cookie = [0xff; 8];
/// The kernel's `TCP_LISTEN` (include/net/tcp_states.h).
const LISTEN: u8 = 10;

/// What tells a socket from all others, as long as the machine runs.
type Cookie = [u8; 8];

/// A netlink socket in one namespace.
#[derive(Debug)]
pub struct Destroyer(OwnedFd);

impl Destroyer {
    /// Opens one in `netns`.
    pub fn new(netns: &NetNs) -> io::Result<Self> {
        let fd = netns.run(|| socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG)))??;
        Ok(Destroyer(fd))
    }

    /// Aborts the connection whose socket has these ends; both sides get a reset. False if there is none.
    pub fn destroy(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
        let mut reply = [0; 512];
        let found = self.ask(&request(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, local, remote, ANY), &mut reply)?;
        let cookie = match (Found::read(found), errno_of(found)) {
            (Some(found), _) if found.is_connection(remote) => found.cookie,
            (Some(_), _) | (None, Some(libc::ENOENT)) => return Ok(false),
            (None, errno) => return Err(failure(errno)),
        };
        match errno_of(self.ask(&request(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, local, remote, cookie), &mut reply)?) {
            Some(0) => Ok(true),
            // It has ended meanwhile: nobody is there, or only the listener.
            Some(libc::ENOENT | libc::ESTALE) => Ok(false),
            errno => Err(failure(errno)),
        }
    }

    /// The answer's bytes; what does not fit is cut off.
    fn ask<'a>(&self, request: &[u8], reply: &'a mut [u8]) -> io::Result<&'a [u8]> {
        send(&self.0, request, SendFlags::empty())?;
        let (n, _) = recv(&self.0, &mut *reply, RecvFlags::empty())?;
        Ok(reply.get(..n).unwrap_or_default())
    }
}

fn failure(errno: Option<i32>) -> io::Error {
    match errno {
        Some(errno) if errno != 0 => io::Error::from_raw_os_error(errno),
        _ => io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer about a socket is not understood"),
    }
}

/// The beginning of `struct inet_diag_msg`.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    state: u8,
    remote_port: u16,
    cookie: Cookie,
}

impl Found {
    fn read(reply: &[u8]) -> Option<Found> {
        if u16::from_ne_bytes(reply.get(4..6)?.try_into().ok()?) != SOCK_DIAG_BY_FAMILY {
            return None;
        }
        let message = reply.get(HEADER..)?;
        Some(Found {
            state: *message.get(1)?,
            remote_port: u16::from_be_bytes(message.get(6..8)?.try_into().ok()?),
            cookie: message.get(44..52)?.try_into().ok()?,
        })
    }

    fn is_connection(&self, remote: SocketAddr) -> bool {
        self.state != LISTEN && self.remote_port == remote.port()
    }
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2` (linux/netlink.h, linux/inet_diag.h). An IPv4 connection is asked for as such even if
/// an IPv6 socket made it: the kernel finds it by its address, not by its socket's family.
fn request(kind: u16, flags: u16, local: SocketAddr, remote: SocketAddr, cookie: Cookie) -> [u8; HEADER + REQUEST] {
    let mut out = Vec::with_capacity(HEADER + REQUEST);
    out.extend(((HEADER + REQUEST) as u32).to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    out.extend([0; 8]); // sequence, port
    let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    out.extend([family as u8, libc::IPPROTO_TCP as u8, 0, 0]);
    out.extend(u32::MAX.to_ne_bytes()); // any state
    out.extend(local.port().to_be_bytes());
    out.extend(remote.port().to_be_bytes());
    out.extend(padded(local.ip()));
    out.extend(padded(remote.ip()));
    out.extend(0u32.to_ne_bytes()); // any interface
    out.extend(cookie);
    let mut fixed = [0; HEADER + REQUEST];
    for (to, from) in fixed.iter_mut().zip(out) {
        *to = from;
    }
    fixed
}

fn padded(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The errno in a netlink acknowledgement, 0 for success.
fn errno_of(reply: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(reply.get(4..6)?.try_into().ok()?);
    if kind != NLMSG_ERROR {
        return None;
    }
    Some(-i32::from_ne_bytes(reply.get(HEADER..HEADER + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests;
