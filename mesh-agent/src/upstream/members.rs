//! Who is in a cluster, and whether it may be used, as a snapshot has it. Pure.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_model::service::{NamespacedName, Service, ServiceEndpoint, ServicePort};
use mesh_model::snapshot::Snapshot;
use mesh_model::traffic::{TlsMode, TrafficPolicy};
use mesh_model::workload::Workload;

use crate::outcome::{Outcome, RequestFailure};
use crate::route::detect::Declared;

/// Which cluster.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ClusterName {
    /// The Service.
    pub service: NamespacedName,
    /// Its port.
    pub port: u16,
    /// The subset, if it is one.
    pub subset: Option<Arc<str>>,
    /// Whether its endpoints are those of IPv4.
    pub v4: bool,
}

impl std::fmt::Display for ClusterName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.service, self.port)?;
        if let Some(subset) = &self.subset {
            write!(f, "/{subset}")?;
        }
        f.write_str(if self.v4 { "" } else { " (IPv6)" })
    }
}

/// Why there is no cluster.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Missing {
    /// No such Service or port.
    #[error("there is no Service {service} with port {port}")]
    Service {
        /// The Service.
        service: NamespacedName,
        /// The port.
        port: u16,
    },
    /// No such subset.
    #[error("no DestinationRule for Service {service} has a subset {subset} for this client")]
    Subset {
        /// The Service.
        service: NamespacedName,
        /// The subset.
        subset: Arc<str>,
    },
}

impl Missing {
    /// How a request or connection ends that was to go there. Of a subset that nobody defines it is what Envoy does.
    pub fn outcome(self) -> Outcome {
        match self {
            Missing::Subset { .. } => Outcome::NoEndpoint,
            missing => Outcome::Request(RequestFailure::InvalidRoute { detail: missing.to_string().into() }),
        }
    }
}

/// What a snapshot has for a cluster's name.
#[derive(Clone, Copy, Debug)]
pub struct Found<'s> {
    /// Its Service.
    pub service: &'s Arc<Service>,
    /// Its port.
    pub port: &'s ServicePort,
    /// Labels that its pods must have.
    pub labels: &'s BTreeMap<String, String>,
}

/// Those of every pod.
static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();

/// Whether the client's namespace may know of it, whoever wrote the route that leads there (`exportTo` of a ServiceEntry).
///
/// # Errors
/// It is not there for the client.
pub fn known(snapshot: &Snapshot, client: &Workload, name: &ClusterName) -> Result<(), Missing> {
    let hidden = |service: &Arc<Service>| !service.is_known_to(&client.namespace);
    if name.service.is_entry() && snapshot.service(&name.service).is_some_and(hidden) {
        return Err(Missing::Service { service: name.service.clone(), port: name.port });
    }
    Ok(())
}

impl<'s> Found<'s> {
    /// Looks it up for a client.
    ///
    /// # Errors
    /// There is no such Service, port or subset.
    pub fn of(snapshot: &'s Snapshot, client: &Workload, name: &ClusterName) -> Result<Found<'s>, Missing> {
        let missing = || Missing::Service { service: name.service.clone(), port: name.port };
        known(snapshot, client, name)?;
        let service = snapshot.service(&name.service).ok_or_else(missing)?;
        let port = service.ports.iter().find(|port| port.port == name.port).ok_or_else(missing)?;
        let labels = match &name.subset {
            Some(subset) => snapshot
                .subset(client, &name.service, subset)
                .ok_or_else(|| Missing::Subset { service: name.service.clone(), subset: subset.clone() })?,
            None => &NO_LABELS,
        };
        Ok(Found { service, port, labels })
    }
}

/// The endpoints of a Service's port that are of the family, that have the labels, by their pod or their ServiceEntry, and are not held.
pub fn members<'s>(
    snapshot: &'s Snapshot,
    endpoints: &'s [ServiceEndpoint],
    labels: &'s BTreeMap<String, String>,
    v4: bool,
) -> impl Iterator<Item = (&'s ServiceEndpoint, Option<&'s Arc<Workload>>)> {
    let held: HashSet<IpAddr> = snapshot.held().iter().flat_map(|pod| pod.addresses.iter().copied()).collect();
    endpoints.iter().filter(move |e| e.address.is_ipv4() == v4 && !held.contains(&e.address.ip())).filter_map(move |endpoint| {
        let workload = endpoint.workload.as_ref().and_then(|uid| snapshot.workload(uid));
        let has = |own: &BTreeMap<String, String>| labels.iter().all(|(key, value)| own.get(key) == Some(value));
        let selected =
            workload.is_some_and(|workload| has(&workload.labels)) || endpoint.traits.as_ref().is_some_and(|traits| has(&traits.labels));
        (labels.is_empty() || selected).then_some((endpoint, workload))
    })
}

/// The family to go by where a Service has no endpoint of the one that was dialled: the client's other, if it has one.
pub fn other_family(client: &Workload, v4: bool) -> Option<bool> {
    client.addresses.iter().any(|own| own.is_ipv4() != v4).then_some(!v4)
}

/// Why no request may be sent there, beside what [`refusal`] says: a server outside that speaks TLS gets nothing in the clear where no rule
/// that holds for this client has TLS begun.
pub fn refusal_of_requests(service: &NamespacedName, declared: Declared, policy: &TrafficPolicy) -> Option<Outcome> {
    if !service.is_entry() || declared != Declared::Tls || matches!(policy.tls, TlsMode::Originate(_) | TlsMode::Refuse(_)) {
        return refusal(policy);
    }
    let detail = format!("the port of {service} speaks TLS, and no DestinationRule for this client begins it: write one, or protocol HTTP");
    Some(Outcome::Request(RequestFailure::InvalidRoute { detail: detail.into() }))
}

/// Why nothing may be sent there: TLS that the policy asks for and that cannot be had is not left out.
pub fn refusal(policy: &TrafficPolicy) -> Option<Outcome> {
    let TlsMode::Refuse(reason) = &policy.tls else { return None };
    let detail = format!("the DestinationRule's tls: {reason}");
    Some(Outcome::Request(RequestFailure::InvalidRoute { detail: detail.into() }))
}
