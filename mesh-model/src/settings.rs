//! Mesh-wide settings, as the one `Mesh` object named `default` states them.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;

use crate::identity::TrustDomain;
use crate::policy::MtlsMode;

/// Name of the only `Mesh` object that counts.
pub const MESH_NAME: &str = "default";
/// Namespace whose policies hold for the whole mesh, unless settings name another.
pub const DEFAULT_ROOT_NAMESPACE: &str = "nodemesh-system";

/// How two pods of one node talk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum SameNode {
    /// Judged in the kernel, bytes never leave it.
    #[default]
    Kernel,
    /// Through the agent and mTLS, as across nodes.
    Encrypt,
}

/// What becomes of a process in the pods' cgroup whose network namespace no pod is known to own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum UnknownPods {
    /// Its connections are refused: it may be a pod of the mesh whose rules have not arrived.
    #[default]
    Deny,
    /// Its connections pass.
    Pass,
}

/// Spans of requests, and where they go.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Tracing {
    /// The collector, as `http://collector.observability:4317`: it takes OTLP over gRPC.
    pub endpoint: Arc<str>,
    /// Of a million traces that begin in the mesh so many are sampled. Whether one that has begun elsewhere is, its beginner decides.
    pub sampling_ppm: u32,
}

/// What becomes of connections to what is no pod, no Service and no host of a ServiceEntry (Istio's `outboundTrafficPolicy`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum OutboundTraffic {
    /// They pass.
    #[default]
    AllowAny,
    /// They are refused.
    RegistryOnly,
}

/// Settings of the mesh.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct MeshSettings {
    /// Trust domain of every identity in the mesh.
    pub trust_domain: TrustDomain,
    /// Namespace whose policies hold for the whole mesh.
    pub root_namespace: Arc<str>,
    /// Whether plaintext is accepted where no PeerAuthentication says anything.
    pub mtls: MtlsMode,
    /// How two pods of one node talk.
    pub same_node: SameNode,
    /// Destination ports left alone.
    pub excluded_ports: BTreeSet<u16>,
    /// Destination ranges left alone.
    pub excluded_cidrs: BTreeSet<IpNet>,
    /// What becomes of connections from pods that are not known.
    pub unknown_pods: UnknownPods,
    /// Spans of requests; none are made where this is absent.
    pub tracing: Option<Arc<Tracing>>,
    /// What becomes of connections to what the mesh knows nothing of.
    pub outbound_traffic: OutboundTraffic,
}

impl Default for MeshSettings {
    fn default() -> Self {
        MeshSettings {
            trust_domain: TrustDomain::default(),
            root_namespace: DEFAULT_ROOT_NAMESPACE.into(),
            mtls: MtlsMode::Permissive,
            same_node: SameNode::Kernel,
            excluded_ports: BTreeSet::new(),
            excluded_cidrs: BTreeSet::new(),
            unknown_pods: UnknownPods::Deny,
            tracing: None,
            outbound_traffic: OutboundTraffic::AllowAny,
        }
    }
}
