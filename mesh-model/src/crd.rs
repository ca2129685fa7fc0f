//! What users may write into our own kinds, as types from which the CustomResourceDefinitions are generated (`cargo xtask crds`).
//!
//! The API server holds objects against these schemas; [`crate::convert`] reads them field by field and has the last word, since objects
//! of an older definition, or of a directory of manifests, reach it as well. A test holds the two together.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

/// `spec` of a `Mesh` (`nodemesh.dev/v1alpha1`): settings of the whole mesh. Only the object named `default` counts.
#[derive(JsonSchema, Serialize, Default)]
#[serde(rename_all = "camelCase")]
pub struct MeshSpec {
    /// Trust domain of every identity in the mesh: `spiffe://<trustDomain>/ns/<namespace>/sa/<service account>`.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9._]*[a-z0-9])?$"))]
    pub trust_domain: Option<String>,
    /// Namespace whose policies hold for the whole mesh.
    #[schemars(length(min = 1, max = 63))]
    pub root_namespace: Option<String>,
    /// Whether plaintext is accepted where no PeerAuthentication says anything.
    pub mtls: Option<MtlsSpec>,
    /// How two pods of one node talk: judged in the kernel, which their bytes then never leave, or encrypted as across nodes.
    pub same_node: Option<SameNodeSpec>,
    /// Destination ports that are left alone.
    #[schemars(length(max = 1024), inner(range(min = 1, max = 65535)))]
    pub excluded_ports: Option<Vec<i32>>,
    /// Destination ranges that are left alone, as 10.0.0.0/8.
    #[schemars(length(max = 1024), inner(length(max = 64)))]
    pub excluded_cidrs: Option<Vec<String>>,
    /// What becomes of connections of a process in a pod that is not known yet: it may belong into the mesh.
    pub unknown_pods: Option<UnknownPodsSpec>,
    /// Spans of the requests that the agents look into, and where they are sent; none are made where this is absent.
    pub tracing: Option<TracingSpec>,
    /// What becomes of connections of the mesh's pods to what is no pod, no Service and no host of a ServiceEntry.
    pub outbound_traffic_policy: Option<OutboundTrafficPolicySpec>,
}

/// `tracing`.
#[derive(JsonSchema, Serialize, Default)]
pub struct TracingSpec {
    /// The collector, which takes OTLP over gRPC, as `http://collector.observability:4317`. The agents call it from their nodes, not
    /// from a pod.
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^http://[^/@?#]+:[0-9]+/?$"))]
    pub endpoint: String,
    /// Percent of the traces beginning in the mesh that are sampled, 1 if absent. One that has begun before is sampled if its beginner says so.
    #[schemars(range(min = 0, max = 100))]
    pub sampling: Option<f64>,
}

/// `outboundTrafficPolicy`.
#[derive(JsonSchema, Serialize, Default)]
pub struct OutboundTrafficPolicySpec {
    /// ALLOW_ANY lets them pass, REGISTRY_ONLY refuses them.
    pub mode: Option<OutboundTrafficModeSpec>,
}

/// `outboundTrafficPolicy.mode`.
#[derive(JsonSchema, Serialize, Clone, Copy)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "as ModeSpec")]
pub enum OutboundTrafficModeSpec {
    AllowAny,
    RegistryOnly,
}

/// `mtls`.
#[derive(JsonSchema, Serialize, Default)]
pub struct MtlsSpec {
    /// STRICT refuses plaintext, PERMISSIVE accepts it beside mTLS, DISABLE encrypts nothing; UNSET is as if nothing was said.
    pub mode: Option<ModeSpec>,
}

/// `mtls.mode`.
#[derive(JsonSchema, Serialize, Clone, Copy)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "the field that has this type describes them, and each comment here would become a schema of its own")]
pub enum ModeSpec {
    Unset,
    Disable,
    Permissive,
    Strict,
}

/// `sameNode`.
#[derive(JsonSchema, Serialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "as ModeSpec")]
pub enum SameNodeSpec {
    Kernel,
    Encrypt,
}

/// `unknownPods`.
#[derive(JsonSchema, Serialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "as ModeSpec")]
pub enum UnknownPodsSpec {
    Deny,
    Pass,
}

/// `spec` of a `RateLimit` (`nodemesh.dev/v1alpha1`): how many requests workloads of its namespace take. Without selector and targetRefs
/// it is about all of them.
#[derive(JsonSchema, Serialize, Default)]
#[serde(rename_all = "camelCase")]
pub struct RateLimitSpec {
    /// The Services whose pods are limited, and the ServiceEntries of whose hosts clients are.
    #[schemars(length(max = 16))]
    pub target_refs: Option<Vec<TargetRefSpec>>,
    /// The pods that are limited, by their labels. Not beside targetRefs.
    pub selector: Option<SelectorSpec>,
    /// A request must be within each of them.
    #[schemars(length(min = 1, max = 16))]
    pub limits: Vec<LimitSpec>,
    /// Who counts: endpoint, each pod's agent for the pod alone (of a ServiceEntry, each client's); service, one budget for the targeted
    /// Service or host, lent to the nodes where its requests are.
    pub scope: Option<LimitScopeSpec>,
}

/// An item of `targetRefs`.
#[derive(JsonSchema, Serialize, Default)]
pub struct TargetRefSpec {
    /// Empty for Service, which is a kind of Kubernetes itself; networking.istio.io for ServiceEntry.
    pub group: Option<String>,
    /// Service, or ServiceEntry: what pods of the mesh send to its hosts is counted.
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// Its name, in the RateLimit's own namespace.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// `selector`.
#[derive(JsonSchema, Serialize, Default)]
#[serde(rename_all = "camelCase")]
pub struct SelectorSpec {
    /// Labels that a pod must have, all of them.
    pub match_labels: Option<BTreeMap<String, String>>,
}

/// An item of `limits`.
#[derive(JsonSchema, Serialize, Default)]
pub struct LimitSpec {
    /// How many requests there may be in each unit; of what is no HTTP, how many new connections.
    #[schemars(range(min = 1, max = 2147483647))]
    pub requests: i64,
    /// In which time: second, minute or hour. Either this or per.
    pub unit: Option<LimitUnitSpec>,
    /// In which time, as a duration from 1ms to 24h, such as 10s.
    #[schemars(length(min = 1, max = 32))]
    pub per: Option<String>,
    /// How many there may be at once after a quiet time; as many as requests if absent.
    #[schemars(range(min = 1, max = 2147483647))]
    pub burst: Option<i64>,
    /// For whom there is a budget each; one for all if absent. Names one of source, header and pathPrefix.
    pub by: Option<LimitBySpec>,
}

/// `limits[].by`.
#[derive(JsonSchema, Serialize, Default)]
#[serde(rename_all = "camelCase")]
pub struct LimitBySpec {
    /// true: a budget for each identity of a client; clients outside the mesh share one.
    pub source: Option<bool>,
    /// Name of a header: a budget for each of its values; requests without it share one.
    #[schemars(length(min = 1, max = 256))]
    pub header: Option<String>,
    /// Beginning of a path, in whole elements: only requests below it are counted.
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^/"))]
    pub path_prefix: Option<String>,
}

/// `limits[].unit`.
#[derive(JsonSchema, Serialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "as ModeSpec")]
pub enum LimitUnitSpec {
    Second,
    Minute,
    Hour,
}

/// `scope`.
#[derive(JsonSchema, Serialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "as ModeSpec")]
pub enum LimitScopeSpec {
    Endpoint,
    Service,
}

#[cfg(test)]
mod tests;
