//! The agent's listeners inside a pod's namespace, and what a captured connection had dialled.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::Duration;

use mesh_common::flow::{Origin, OriginKey};
use socket2::{Domain, Socket, Type};

use super::maps::Origins;
use crate::sys::netns::NetNs;

/// Captured outgoing connections arrive here (Istio's number for it).
pub const OUTBOUND_PORT: u16 = 15001;
/// Plaintext from outside the mesh is steered here; nobody dials it.
pub const INBOUND_PORT: u16 = 15006;
/// Tunnels (HBONE's number).
pub const TUNNEL_PORT: u16 = 15008;

/// Whether a port is one of the mesh's own, which no application can be reached at.
pub fn is_own_port(port: u16) -> bool {
    matches!(port, OUTBOUND_PORT | INBOUND_PORT | TUNNEL_PORT)
}

/// One worker's listeners in one pod; one of each kind for each of the pod's addresses.
#[derive(Debug, Default)]
pub struct Listeners {
    /// At [`OUTBOUND_PORT`].
    pub outbound: Vec<TcpListener>,
    /// At [`INBOUND_PORT`].
    pub inbound: Vec<TcpListener>,
    /// At [`TUNNEL_PORT`].
    pub tunnel: Vec<TcpListener>,
}

impl Listeners {
    /// Every one.
    pub fn all(&self) -> impl Iterator<Item = &TcpListener> {
        self.outbound.iter().chain(&self.inbound).chain(&self.tunnel)
    }
}

/// Opens the listeners of all workers. The kernel spreads connections over those that share a port; a connection then stays where it was
/// accepted.
pub fn listen(netns: &NetNs, addresses: &[IpAddr], workers: usize) -> io::Result<Vec<Listeners>> {
    let mut all = Vec::with_capacity(workers);
    for _ in 0..workers {
        let mut listeners = Listeners::default();
        for address in addresses {
            let open = |port| {
                let at = SocketAddr::new(*address, port);
                netns.run(|| as_nobody_else(|| listener(at)))?.map_err(|e| io::Error::new(e.kind(), format!("listening at {at}: {e}")))
            };
            listeners.outbound.push(open(OUTBOUND_PORT)?);
            listeners.inbound.push(open(INBOUND_PORT)?);
            listeners.tunnel.push(open(TUNNEL_PORT)?);
        }
        all.push(listeners);
    }
    Ok(all)
}

/// A user that no pod runs as.
const LISTENERS_USER: u32 = 0x6e6d_6573;

/// Runs `open` under a user id of the mesh's own: a port that is shared by SO_REUSEPORT is open to every socket of the same user, and a
/// root process in the pod would otherwise get its share of connections before they are judged.
fn as_nobody_else<T>(open: impl FnOnce() -> T) -> T {
    struct Return(nix::unistd::Uid);
    impl Drop for Return {
        fn drop(&mut self) {
            nix::unistd::setfsuid(self.0);
        }
    }
    let _back = Return(nix::unistd::setfsuid(nix::unistd::Uid::from_raw(LISTENERS_USER)));
    open()
}

fn listener(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM.nonblocking().cloexec(), None)?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_port(true)?;
    socket.set_reuse_address(true)?;
    // Inherited by accepted sockets, which saves a system call a connection.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&at.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

/// How often and how long to look for an origin that is not there yet: with TCP Fast Open the accept can come before the kernel's note.
const LOOKS: [Duration; 4] = [Duration::ZERO, Duration::from_millis(1), Duration::from_millis(5), Duration::from_millis(20)];

/// What the client at `client` in the namespace dialled; `None` if the kernel knows nothing of it: it was not captured.
pub async fn origin(origins: &Origins, netns_cookie: u64, client: SocketAddr) -> Option<Origin> {
    let ip = client.ip().to_canonical();
    let key = OriginKey { netns_cookie, addr: ip.into(), port: mesh_common::addr::Port::new(client.port()), pad: [0; 6] };
    for wait in LOOKS {
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        if let Some(origin) = origins.get(&key) {
            return Some(origin);
        }
    }
    None
}
