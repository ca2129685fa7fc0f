//! Rules for connections that are not taken apart.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Backend, RuleOrigin};
use crate::workload::Workload;

/// A rule for TLS connections.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsRule {
    /// Who wrote it.
    pub origin: RuleOrigin,
    /// Which connections it is for.
    pub scope: ConnectionScope,
    /// Server names: exact, or `*.` and what they end with; empty for all.
    pub hosts: Vec<Arc<str>>,
    /// Where they go.
    pub backends: Vec<Backend>,
}

/// A rule for connections.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TcpRule {
    /// Who wrote it.
    pub origin: RuleOrigin,
    /// Which connections it is for.
    pub scope: ConnectionScope,
    /// Where they go.
    pub backends: Vec<Backend>,
}

/// Which connections a rule is for, beside their server name. Everything that is said must hold (Istio's `L4MatchAttributes`).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ConnectionScope {
    /// Where the client dialled must be in one of these; empty for anywhere.
    pub destinations: Vec<IpNet>,
    /// Labels of the client's workload.
    pub source_labels: BTreeMap<String, String>,
    /// Namespace of the client's workload.
    pub source_namespace: Option<Arc<str>>,
}

impl ConnectionScope {
    /// Whether it holds for a client that dialled an address.
    pub fn holds(&self, client: &Workload, dialled: IpAddr) -> bool {
        (self.destinations.is_empty() || self.destinations.iter().any(|net| net.contains(&dialled)))
            && self.source_namespace.as_ref().is_none_or(|namespace| *namespace == client.namespace)
            && self.source_labels.iter().all(|(key, value)| client.labels.get(key) == Some(value))
    }
}

#[cfg(test)]
mod tests;
