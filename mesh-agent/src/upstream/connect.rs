//! Connecting to applications, and dialling tunnels, from inside the pods' namespaces.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use mesh_model::traffic::Keepalive;
use socket2::{Domain, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};

use crate::conn::{ServerAddr, TunnelAddr};
use crate::sys::netns::NetNs;

/// The mark that delivered connections bear inside a pod's namespace.
pub const MARK: u32 = 0x6e6d;

/// Connects to the application at `server` so that it sees `client` as its peer. The address is always the client's; the port is too,
/// unless a connection of the same four numbers still lingers in the namespace. `client`'s port 0 means that any port will do.
pub async fn deliver(netns: &NetNs, client: SocketAddr, server: ServerAddr, limit: Duration) -> io::Result<TcpStream> {
    match timed(limit, delivery(netns, client, server)?.connect(server.0)).await {
        Err(error) if client.port() != 0 && matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse) => {
            let any_port = SocketAddr::new(client.ip(), 0);
            timed(limit, delivery(netns, any_port, server)?.connect(server.0)).await
        }
        other => other,
    }
}

fn delivery(netns: &NetNs, client: SocketAddr, server: ServerAddr) -> io::Result<TcpSocket> {
    let socket = netns.run(|| tcp(server.0))??;
    match server.0.ip() {
        IpAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        IpAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
    }
    socket.set_mark(MARK)?;
    socket.set_reuse_address(true)?;
    if client.is_ipv4() == server.0.is_ipv4() {
        match socket.bind(&client.into()) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && client.port() != 0 => {
                socket.bind(&SocketAddr::new(client.ip(), 0).into())?;
            }
            other => other?,
        }
    }
    Ok(tokio_socket(socket))
}

/// Connects to a tunnel's end with the pod's own address, so that network policies see the pod.
pub async fn dial(netns: &NetNs, local: IpAddr, tunnel: TunnelAddr, limit: Duration) -> io::Result<TcpStream> {
    from_pod(netns, local, tunnel.0, limit, None).await
}

/// Connects to a server outside the mesh with the pod's own address, as the pod would itself; with keepalive probes if there are to be.
pub async fn plain(
    netns: &NetNs,
    local: IpAddr,
    server: ServerAddr,
    limit: Duration,
    keepalive: Option<&Keepalive>,
) -> io::Result<TcpStream> {
    from_pod(netns, local, server.0, limit, keepalive).await
}

async fn from_pod(netns: &NetNs, local: IpAddr, to: SocketAddr, limit: Duration, keepalive: Option<&Keepalive>) -> io::Result<TcpStream> {
    let socket = netns.run(|| tcp(to))??;
    if let Some(keepalive) = keepalive {
        socket.set_tcp_keepalive(&probes(keepalive))?;
    }
    socket.bind(&SocketAddr::new(local, 0).into())?;
    timed(limit, tokio_socket(socket).connect(to)).await
}

/// Linux takes whole seconds, from 1 to 32767, and from 1 to 127 probes.
fn probes(keepalive: &Keepalive) -> TcpKeepalive {
    let seconds = |time: Duration| Duration::from_secs(time.as_secs().clamp(1, 32_767));
    let mut probes = TcpKeepalive::new();
    if let Some(time) = keepalive.time {
        probes = probes.with_time(seconds(time));
    }
    if let Some(interval) = keepalive.interval {
        probes = probes.with_interval(seconds(interval));
    }
    match keepalive.probes {
        Some(count) => probes.with_retries(count.clamp(1, 127)),
        None => probes,
    }
}

fn tcp(to: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking().cloexec(), None)?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}

fn tokio_socket(socket: Socket) -> TcpSocket {
    TcpSocket::from_std_stream(std::net::TcpStream::from(OwnedFd::from(socket)))
}

async fn timed(limit: Duration, connect: impl Future<Output = io::Result<TcpStream>>) -> io::Result<TcpStream> {
    tokio::time::timeout(limit, connect).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
