//! Names of programs and maps, and their sizes.

/// Longest policy program the kernel evaluates; a longer one makes the agent judge.
pub const MAX_OPS: usize = 96;

/// Directory of an instance's pins below the bpf filesystem: `nodemesh/<instance>/v<ABI>`.
#[cfg(feature = "user")]
pub fn pin_dir(bpffs: &std::path::Path, instance: &str) -> std::path::PathBuf {
    bpffs.join("nodemesh").join(instance).join(std::format!("v{}", crate::ABI_VERSION))
}

/// Names of maps, as in the object.
pub mod map {
    /// Array of one [`crate::workload::Settings`].
    pub const SETTINGS: &str = "SETTINGS";
    /// netns cookie → [`crate::workload::PodEntry`].
    pub const PODS: &str = "PODS";
    /// [`crate::addr::Addr`] → [`crate::workload::WorkloadEntry`].
    pub const WORKLOADS: &str = "WORKLOADS";
    /// [`crate::addr::Endpoint`] → [`crate::service::ServiceEntry`].
    pub const SERVICES: &str = "SERVICES";
    /// [`crate::service::BackendKey`] → [`crate::service::Backend`].
    pub const BACKENDS: &str = "BACKENDS";
    /// policy id → [`crate::policy::Program`].
    pub const POLICIES: &str = "POLICIES";
    /// [`crate::policy::Member`] → 1.
    pub const IDENTITY_SETS: &str = "IDENTITY_SETS";
    /// Excluded destination port → 1.
    pub const EXCLUDED_PORTS: &str = "EXCLUDED_PORTS";
    /// Port (`u32`, host order) at which the agent takes connections to addresses that are no pod's and no Service's.
    pub const EGRESS_PORTS: &str = "EGRESS_PORTS";
    /// Excluded destination ranges.
    pub const EXCLUDED_CIDRS: &str = "EXCLUDED_CIDRS";
    /// Socket-local: [`crate::flow::SockEntry`].
    pub const SOCKETS: &str = "SOCKETS";
    /// Socket-local: 1 for the agent's listeners and for what they accept.
    pub const OWN_LISTENERS: &str = "OWN_LISTENERS";
    /// [`crate::flow::OriginKey`] → [`crate::flow::Origin`].
    pub const ORIGINS: &str = "ORIGINS";
    /// [`crate::flow::FlowKey`] → [`crate::flow::FlowEntry`].
    pub const FLOWS: &str = "FLOWS";
    /// [`crate::flow::StatsKey`] → [`crate::flow::Stats`] per CPU.
    pub const FLOW_STATS: &str = "FLOW_STATS";
    /// Counters per CPU, see [`crate::event::counter`].
    pub const VERDICTS: &str = "VERDICTS";
    /// [`crate::addr::Addr`] of a pod → the agent's listener for incoming plaintext.
    pub const LISTENERS: &str = "LISTENERS";
    /// Ring buffer of [`crate::event::Event`].
    pub const EVENTS: &str = "EVENTS";
}

/// Names of programs. None may equal its section's name.
pub mod program {
    /// cgroup/connect4.
    pub const CONNECT4: &str = "mesh_connect4";
    /// cgroup/connect6.
    pub const CONNECT6: &str = "mesh_connect6";
    /// cgroup/getpeername4.
    pub const PEERNAME4: &str = "mesh_peername4";
    /// cgroup/getpeername6.
    pub const PEERNAME6: &str = "mesh_peername6";
    /// sockops.
    pub const SOCKOPS: &str = "mesh_sockops";
    /// sk_lookup.
    pub const ACCEPT: &str = "mesh_accept";
    /// Runs the verdict on a [`crate::policy::Question`] given as packet data; for tests and `explain`.
    pub const PROBE: &str = "mesh_verdict";
}
