//! Services and who stands behind them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::workload::WorkloadUid;

/// `namespace/name` of an object. A name with a dot is the host of a ServiceEntry of that namespace: no Service can have such a name.
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
    /// Whether it is a ServiceEntry's host.
    pub fn is_entry(&self) -> bool {
        self.name.contains('.')
    }

    /// The host of the Service of this name, in full: `<name>.<namespace>.svc.cluster.local`; of a ServiceEntry the host itself.
    pub fn service_host(&self) -> String {
        if self.is_entry() {
            return self.name.to_string();
        }
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
    /// What a host of a ServiceEntry has beside that; `None` for a Service.
    pub entry: Option<Entry>,
}

/// What only a host of a ServiceEntry has.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Entry {
    /// Namespaces whose clients know it (`exportTo`); empty for all.
    pub export_to: Vec<Arc<str>>,
    /// Ranges of more than one address that stand for it; single addresses are the Service's.
    pub ranges: Vec<IpNet>,
    /// Names of which a server's certificate must have one where a DestinationRule has TLS begun and says none.
    pub alt_names: Vec<Arc<str>>,
}

impl Service {
    /// Whether the clients of a namespace know it.
    pub fn is_known_to(&self, namespace: &str) -> bool {
        self.entry.as_ref().is_none_or(|entry| entry.export_to.is_empty() || entry.export_to.iter().any(|to| **to == *namespace))
    }

    /// Whether it is a host of a ServiceEntry that no address stands for: a connection to it is told by the host that it names.
    pub fn is_by_name(&self) -> bool {
        self.addresses.is_empty() && self.entry.as_ref().is_some_and(|entry| entry.ranges.is_empty())
    }
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
    /// Whether there are more that only the client's node can tell.
    pub discovery: Discovery,
}

/// Where the endpoints of a port come from.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Discovery {
    /// They are all named.
    #[default]
    Named,
    /// The address that the client dialled is the only one (`resolution: NONE`).
    Dialled {
        /// Its port, if that is not the one that was dialled.
        target: Option<u16>,
    },
    /// Names stand for them, which the client's node resolves (`DNS`, `DNS_ROUND_ROBIN`).
    Dns {
        /// The names.
        names: Arc<[DnsEndpoint]>,
        /// Of each answer only the first address counts, for connections that are made while it is in force (`DNS_ROUND_ROBIN`).
        first: bool,
    },
}

impl Discovery {
    /// The names that are looked up.
    pub fn names(&self) -> Option<&Arc<[DnsEndpoint]>> {
        match self {
            Discovery::Dns { names, .. } => Some(names),
            Discovery::Named | Discovery::Dialled { .. } => None,
        }
    }
}

/// A name behind a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DnsEndpoint {
    /// In lower case.
    pub host: Arc<str>,
    /// Port of each of its addresses.
    pub port: u16,
    /// What is said of it.
    pub traits: Option<Arc<EndpointTraits>>,
}

/// What a ServiceEntry says of an endpoint that is no pod.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EndpointTraits {
    /// Its share beside others; 1 if nothing is said.
    pub weight: u32,
    /// Its labels, for subsets.
    pub labels: BTreeMap<String, String>,
    /// Its region.
    pub region: Arc<str>,
    /// Its zone.
    pub zone: Arc<str>,
}

/// A pod's port behind a Service's port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceEndpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// The pod, if it is one we know.
    pub workload: Option<WorkloadUid>,
    /// What its ServiceEntry says of it.
    pub traits: Option<Arc<EndpointTraits>>,
}
