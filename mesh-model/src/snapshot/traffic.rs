//! DestinationRules, found by client and Service.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Snapshot;
use crate::service::NamespacedName;
use crate::traffic::{DestinationRule, TrafficPolicy};
use crate::workload::Workload;

/// The rules of the mesh.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Rules {}

impl Snapshot {
    /// How a client talks to a Service's port, or to a subset of it. `None` where no DestinationRule says anything.
    pub fn traffic(&self, client: &Workload, service: &NamespacedName, port: u16, subset: Option<&str>) -> Option<Arc<TrafficPolicy>> {
        let _ = (client, service, port, subset, &self.destination_rules);
        None
    }

    /// The DestinationRule that holds for a client of a Service.
    pub fn destination_rule(&self, client: &Workload, service: &NamespacedName) -> Option<&Arc<DestinationRule>> {
        let _ = (client, service);
        None
    }

    /// Labels of the pods in a subset of a Service; `None` if the client has no such subset.
    pub fn subset(&self, client: &Workload, service: &NamespacedName, subset: &str) -> Option<&BTreeMap<String, String>> {
        let _ = (client, service, subset);
        None
    }

    /// Whether any client has a DestinationRule for the Service.
    pub fn has_traffic(&self, service: &NamespacedName) -> bool {
        let _ = service;
        false
    }
}
