//! Who runs where, as the kernel sees it.

use crate::addr::Addr;

/// [`PodEntry::state`]: not in the mesh; its connections are left alone.
pub const POD_OUTSIDE: u32 = 1;
/// In the mesh, but its rules, certificate or sockets are not there yet: connections are refused.
pub const POD_HELD: u32 = 2;
/// In the mesh and served.
pub const POD_READY: u32 = 3;

/// [`PodEntry::flags`]: the kernel may not let its connections go directly, the agent encrypts them.
pub const POD_VIA_AGENT: u32 = 1;

/// Value of `PODS`, keyed by network-namespace cookie: the pods of this node.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PodEntry {
    /// Its IPv4 address (mapped), or unspecified.
    pub v4: Addr,
    /// Its IPv6 address, or unspecified.
    pub v6: Addr,
    /// Node-local number of the workload, never 0.
    pub workload: u32,
    /// Node-local number of its identity, never 0.
    pub identity: u32,
    /// [`POD_OUTSIDE`], [`POD_HELD`] or [`POD_READY`].
    pub state: u32,
    /// [`POD_VIA_AGENT`] or 0.
    pub flags: u32,
}

/// [`WorkloadEntry::flags`]: it runs on this node.
pub const WORKLOAD_LOCAL: u32 = 1;
/// It is in the mesh: reached through a tunnel unless judged in the kernel.
pub const WORKLOAD_ENROLLED: u32 = 1 << 1;
/// The kernel may not judge for it (encryption demanded on the node, policy too large, HTTP rules): the agent does.
pub const WORKLOAD_VIA_AGENT: u32 = 1 << 2;
/// Nothing may reach it now (held, or its rules are missing).
pub const WORKLOAD_HELD: u32 = 1 << 3;

/// Value of `WORKLOADS`, keyed by [`Addr`]: the pods of all nodes. Those without [`WORKLOAD_ENROLLED`] are known by number only, so that
/// what they send can be counted under their names.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WorkloadEntry {
    /// Node-local number of the workload, never 0.
    pub workload: u32,
    /// Key in `POLICIES` of what other pods of the mesh may do; only for local ones.
    pub policy: u32,
    /// Key in `POLICIES` of what a client without an identity may do (the mTLS modes and the policies); 0 where only the agent can judge.
    pub plaintext: u32,
    /// `WORKLOAD_*` bits.
    pub flags: u32,
}

/// [`Settings::flags`]: a process in the pods' cgroup whose network namespace is unknown is refused.
pub const SETTINGS_DENY_UNKNOWN: u32 = 1;
/// Finished direct connections are reported as events.
pub const SETTINGS_LOG_DIRECT: u32 = 1 << 1;
/// The agent has filled the maps at least once.
pub const SETTINGS_READY: u32 = 1 << 2;
/// A write of the maps failed: what they do not have may be in the mesh all the same, so connections of the mesh's pods to it are refused.
pub const SETTINGS_INCOMPLETE: u32 = 1 << 3;
/// Connections to what is no pod and no Service go to the agent on every port, not on those of `EGRESS_PORTS` alone.
pub const SETTINGS_REGISTRY_ONLY: u32 = 1 << 4;

/// The only value of `SETTINGS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    /// Cookie of the node's own network namespace.
    pub host_netns: u64,
    /// Id of the agent's own cgroup.
    pub agent_cgroup: u64,
    /// Id of the cgroup of the agent before it, which finishes its connections after a handover; 0 if there is none.
    pub former_agent_cgroup: u64,
    /// Id of the cgroup above all pods.
    pub pods_cgroup: u64,
    /// Depth of that cgroup (the hierarchy's root is 0).
    pub pods_level: u32,
    /// `SETTINGS_*` bits.
    pub flags: u32,
    /// The agent's listener for captured outgoing connections, host order.
    pub outbound_port: u32,
    /// The tunnel's listener, host order.
    pub tunnel_port: u32,
}
