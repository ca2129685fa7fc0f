//! What users may write into our own kinds, as types from which the CustomResourceDefinitions are generated (`cargo xtask crds`).
//!
//! The API server holds objects against these schemas; [`crate::convert`] reads them field by field and has the last word, since objects
//! of an older definition, or of a directory of manifests, reach it as well. A test holds the two together.

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

#[cfg(test)]
mod tests;
