//! Pods, as the data path needs to know them.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::identity::Identity;

/// A pod's name for as long as it lives: its Kubernetes UID, or `namespace/name` where a manifest gives none.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WorkloadUid(pub Arc<str>);

impl std::fmt::Display for WorkloadUid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Workload {
    /// Unique while it lives.
    pub uid: WorkloadUid,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its own name.
    pub name: Arc<str>,
    /// Its identity.
    pub identity: Identity,
    /// The node it runs on.
    pub node: Arc<str>,
    /// Its addresses, at most one a family.
    pub addresses: Vec<IpAddr>,
    /// Whether it is in the mesh (label `nodemesh.dev/mesh`, the pod's word before the namespace's).
    pub enrolled: bool,
    /// It uses the node's network namespace; never enrolled.
    pub host_network: bool,
    /// Its network namespace, where a manifest names it (annotation `nodemesh.dev/netns`).
    pub netns: Option<PathBuf>,
    /// Its labels.
    pub labels: Arc<BTreeMap<String, String>>,
    /// Names that metrics carry.
    pub canonical: Canonical,
}

/// Names of a workload in metrics and logs (Istio's canonical service and workload name).
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Canonical {
    /// Its controller's name (Deployment, StatefulSet, …), or its own.
    pub workload: Arc<str>,
    /// `service.istio.io/canonical-name`, `app.kubernetes.io/name`, `app`, or the workload's name.
    pub service: Arc<str>,
    /// `service.istio.io/canonical-revision`, `app.kubernetes.io/version`, `version`, or `latest`.
    pub revision: Arc<str>,
    /// Label `app`, or empty.
    pub app: Arc<str>,
    /// Label `version`, or empty.
    pub version: Arc<str>,
}

/// What only a pod's node knows of its network: where its namespace is and, before the API server does, which addresses it has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodNetwork {
    /// Path of the network namespace. A pod whose manifest names another keeps that.
    pub netns: PathBuf,
    /// At most one a family; they stand as long as the pod's status has none. Empty where they are not known.
    pub addresses: Vec<IpAddr>,
}

/// The networks of one node's pods.
pub type PodNetworks = HashMap<WorkloadUid, PodNetwork>;

/// Whether these are the same addresses. A container runtime and a pod's status may tell them in another order.
pub fn same_addresses(a: &[IpAddr], b: &[IpAddr]) -> bool {
    a.len() == b.len() && a.iter().all(|ip| b.contains(ip))
}
