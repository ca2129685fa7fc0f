//! What the kernel knows of a socket before it connects, of a connection it judged, and of what a captured connection dialled.

use crate::addr::{Addr, Endpoint, Port};

/// [`SockEntry::kind`]: nothing of the mesh's.
pub const KIND_NONE: u32 = 0;
/// [`SockEntry::kind`]: the connection was handed to the agent.
pub const KIND_AGENT: u32 = 1;
/// The kernel judged a same-node connection and let it go directly.
pub const KIND_DIRECT: u32 = 2;
/// A process of the host outside the pods' cgroup (a kubelet probe).
pub const KIND_HOST: u32 = 3;
/// The agent's own connection to an application.
pub const KIND_DELIVERY: u32 = 4;
/// Not judged by the mesh, but rewritten (a Service's address resolved to an endpoint outside the mesh).
pub const KIND_RESOLVED: u32 = 5;
/// Plaintext of a client without an identity, which the kernel judged as it arrived and left to the application.
pub const KIND_PLAINTEXT: u32 = 6;

/// [`FlowEntry::state`]: the SYN may still be on its way.
pub const STATE_CONNECTING: u32 = 0;
/// The handshake is over.
pub const STATE_ESTABLISHED: u32 = 1;

/// Value of `SOCKETS`, which belongs to a socket: written at connect() or accept, read by sockops and getpeername().
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SockEntry {
    /// What the application dialled.
    pub dialled: Endpoint,
    /// The endpoint that was chosen for it (the same where nothing was resolved).
    pub endpoint: Endpoint,
    /// One of `KIND_*`.
    pub kind: u32,
    /// Source workload ([`crate::workload::PodEntry::workload`]), 0 for none.
    pub source: u32,
    /// Destination workload, 0 for none.
    pub destination: u32,
    /// Service through which it was dialled, 0 for none.
    pub service: u32,
    /// Policy program of the destination when it was judged.
    pub policy: u32,
    /// [`ORIGIN_OUTSIDE`] or 0.
    pub flags: u32,
}

/// Key of `ORIGINS`: the client's end of a connection that was handed to the agent.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct OriginKey {
    /// Network namespace of the client.
    pub netns_cookie: u64,
    /// The client's own address.
    pub addr: Addr,
    /// The client's own port.
    pub port: Port,
    /// Zero.
    pub pad: [u8; 6],
}

/// Value of `ORIGINS`: what the client dialled.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Origin {
    /// What the application dialled.
    pub dialled: Endpoint,
    /// The endpoint the kernel chose.
    pub endpoint: Endpoint,
    /// Service id, 0 for none.
    pub service: u32,
    /// [`ORIGIN_OUTSIDE`] or 0.
    pub flags: u32,
}

/// [`Origin::flags`]: what was dialled is no pod and no Service, as far as the kernel knows: at most a host of a ServiceEntry.
pub const ORIGIN_OUTSIDE: u32 = 1;

/// Key of `FLOWS`: client and server end.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FlowKey {
    /// The client's address.
    pub source: Addr,
    /// The server's address.
    pub destination: Addr,
    /// The client's port.
    pub source_port: Port,
    /// The server's port.
    pub destination_port: Port,
}

impl FlowKey {
    /// The same connection, seen from its other end.
    #[inline(always)]
    pub fn reversed(&self) -> FlowKey {
        FlowKey {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
        }
    }
}

/// Value of `FLOWS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FlowEntry {
    /// Socket cookie of the client's socket; of the server's with [`KIND_PLAINTEXT`], whose client is elsewhere.
    pub cookie: u64,
    /// `bpf_ktime_get_ns` at connect, or at accept.
    pub started_ns: u64,
    /// The socket's count of received bytes when it entered FIN_WAIT2; only if [`FIN_WAITED`] is set.
    pub received_at_fin_wait2: u64,
    /// One of `KIND_*`.
    pub kind: u32,
    /// One of `STATE_*`.
    pub state: u32,
    /// Source workload.
    pub source: u32,
    /// Destination workload.
    pub destination: u32,
    /// Service, 0 for none.
    pub service: u32,
    /// Policy program that allowed it.
    pub policy: u32,
    /// `FIN_*` bits.
    pub fins: u32,
    /// What the client dialled.
    pub dialled: Endpoint,
}

/// [`FlowEntry::fins`]: our FIN was acknowledged, so the socket's counter of acknowledged bytes counts it.
pub const FIN_SENT: u32 = 1;
/// The peer's FIN arrived, so the socket's counter of received bytes counts it.
pub const FIN_RECEIVED: u32 = 1 << 1;
/// The socket was in FIN_WAIT2.
pub const FIN_WAITED: u32 = 1 << 2;

/// Key of `FLOW_STATS`: the labels of a kernel-counted connection.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct StatsKey {
    /// Source workload.
    pub source: u32,
    /// Destination workload.
    pub destination: u32,
    /// Service, 0 for none.
    pub service: u32,
    /// [`KIND_DIRECT`] or [`KIND_PLAINTEXT`].
    pub kind: u32,
}

/// Value of `FLOW_STATS`, per CPU; all count up.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Connections established.
    pub opened: u64,
    /// Connections ended.
    pub closed: u64,
    /// Bytes from client to server.
    pub sent: u64,
    /// Bytes from server to client.
    pub received: u64,
}
