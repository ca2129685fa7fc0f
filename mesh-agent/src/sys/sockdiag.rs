//! Ending a TCP connection of a pod from outside (`SOCK_DESTROY`, Linux 4.5 with `CONFIG_INET_DIAG_DESTROY`).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::netlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

use super::netns::NetNs;

const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const HEADER: usize = 16;
const REQUEST: usize = 56;

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
        send(&self.0, &request(local, remote), SendFlags::empty())?;
        let mut reply = [0u8; 256];
        let (n, _) = recv(&self.0, &mut reply, RecvFlags::empty())?;
        match errno_of(reply.get(..n).unwrap_or_default()) {
            Some(0) => Ok(true),
            Some(libc::ENOENT) => Ok(false),
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer to SOCK_DESTROY is no acknowledgement")),
        }
    }
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2` (linux/netlink.h, linux/inet_diag.h). An IPv4 connection is asked for as such even if
/// an IPv6 socket made it: the kernel finds it by its address, not by its socket's family.
fn request(local: SocketAddr, remote: SocketAddr) -> [u8; HEADER + REQUEST] {
    let mut out = Vec::with_capacity(HEADER + REQUEST);
    out.extend(((HEADER + REQUEST) as u32).to_ne_bytes());
    out.extend(SOCK_DESTROY.to_ne_bytes());
    out.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    out.extend([0; 8]); // sequence, port
    let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    out.extend([family as u8, libc::IPPROTO_TCP as u8, 0, 0]);
    out.extend(u32::MAX.to_ne_bytes()); // any state
    out.extend(local.port().to_be_bytes());
    out.extend(remote.port().to_be_bytes());
    out.extend(padded(local.ip()));
    out.extend(padded(remote.ip()));
    out.extend(0u32.to_ne_bytes()); // any interface
    out.extend([0xff; 8]); // INET_DIAG_NOCOOKIE
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
