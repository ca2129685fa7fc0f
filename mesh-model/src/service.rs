//! Services and who stands behind them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::workload::WorkloadUid;

/// `namespace/name` of an object.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NamespacedName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl std::fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What follows name and namespace in the host of a Service.
const SERVICE_DOMAIN: &str = "svc.cluster.local";

impl NamespacedName {
    /// The host of the Service of this name, in full: `<name>.<namespace>.svc.cluster.local`.
    pub fn service_host(&self) -> String {
        format!("{}.{}.{SERVICE_DOMAIN}", self.name, self.namespace)
    }

    /// The Service that has a host, which must be in full and in lower case; `None` for other hosts.
    pub fn of_service_host(host: &str) -> Option<NamespacedName> {
        let (name, rest) = host.split_once('.')?;
        let namespace = rest.strip_suffix(SERVICE_DOMAIN)?.strip_suffix('.')?;
        let fine = !name.is_empty() && name != "*" && !namespace.is_empty() && !namespace.contains('.');
        fine.then(|| NamespacedName { namespace: namespace.into(), name: name.into() })
    }
}

/// A Service with its ready endpoints.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Its name.
    pub name: NamespacedName,
    /// Its cluster IPs; empty for a headless one.
    pub addresses: Vec<IpAddr>,
    /// Its TCP ports.
    pub ports: Vec<ServicePort>,
}

/// A TCP port of a Service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// Port of the Service.
    pub port: u16,
    /// Its name, may be empty.
    pub name: Arc<str>,
    /// `appProtocol`, or empty.
    pub app_protocol: Arc<str>,
    /// Ready endpoints, of all families.
    pub endpoints: Vec<ServiceEndpoint>,
}

/// A pod's port behind a Service's port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceEndpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// The pod, if it is one we know.
    pub workload: Option<WorkloadUid>,
}
