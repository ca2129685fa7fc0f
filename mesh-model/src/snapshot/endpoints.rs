//! Services and who stands behind them: by their EndpointSlices, or by selector where they have none.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use super::Snapshot;
use super::build::Sorted;
use super::workloads::Pod;
use crate::object::{EndpointSliceObject, Kind, Object, ServiceObject, ServicePortObject, TargetPort};
use crate::policy::selects;
use crate::problem::Severity;
use crate::service::{Discovery, NamespacedName, Service, ServiceEndpoint, ServicePort};
use crate::workload::WorkloadUid;

/// Finds the pods of a Service, ready or not: for policies that are targeted at it.
pub(super) struct Members<'a> {
    services: HashMap<&'a NamespacedName, &'a ServiceObject>,
    slices: HashMap<NamespacedName, Vec<&'a EndpointSliceObject>>,
    index: Index<'a>,
}

/// The pods of each namespace by each of their labels, and by name.
struct Index<'a> {
    by_label: HashMap<(&'a str, &'a str, &'a str), Vec<&'a Pod>>,
    by_name: HashMap<(&'a str, &'a str), &'a Pod>,
}

impl<'a> Index<'a> {
    fn new(pods: &'a [Pod]) -> Self {
        let mut index = Index { by_label: HashMap::new(), by_name: HashMap::with_capacity(pods.len()) };
        for pod in pods {
            let namespace = &*pod.workload.namespace;
            index.by_name.insert((namespace, &pod.workload.name), pod);
            for (key, value) in pod.workload.labels.iter() {
                index.by_label.entry((namespace, key, value)).or_default().push(pod);
            }
        }
        index
    }

    fn selected<'s>(&'s self, service: &'s ServiceObject) -> impl Iterator<Item = &'a Pod> + use<'s, 'a> {
        self.with_labels(&service.name.namespace, &service.selector)
    }

    fn with_labels<'s>(&'s self, namespace: &'s str, labels: &'s BTreeMap<String, String>) -> impl Iterator<Item = &'a Pod> + use<'s, 'a> {
        // Of the selector's labels the rarest leads to the fewest pods to look at.
        let candidates = labels
            .iter()
            .map(|(key, value)| self.by_label.get(&(namespace, key.as_str(), value.as_str())))
            .min_by_key(|pods| pods.map_or(0, Vec::len))
            .flatten();
        candidates.into_iter().flatten().copied().filter(|pod| selects(labels, &pod.workload.labels))
    }
}

impl<'a> Members<'a> {
    /// The pods of a namespace that have all these labels; none if there are no labels.
    pub(super) fn with_labels<'s>(
        &'s self,
        namespace: &'s str,
        labels: &'s BTreeMap<String, String>,
    ) -> impl Iterator<Item = &'a Pod> + use<'s, 'a> {
        self.index.with_labels(namespace, labels)
    }

    /// `None` if there is no such Service.
    pub(super) fn of(&self, name: &NamespacedName, snapshot: &Snapshot) -> Option<HashSet<WorkloadUid>> {
        let service = self.services.get(name)?;
        let mut members: HashSet<WorkloadUid> = self.index.selected(service).map(|pod| pod.workload.uid.clone()).collect();
        for endpoint in self.slices.get(name).into_iter().flatten().flat_map(|slice| &slice.endpoints) {
            let named = endpoint.pod.as_ref().and_then(|pod| self.index.by_name.get(&(&*name.namespace, &**pod)));
            members.extend(named.map(|pod| pod.workload.uid.clone()));
            members.extend(endpoint.addresses.iter().filter_map(|ip| snapshot.workload_at(*ip)).map(|w| w.uid.clone()));
        }
        Some(members)
    }
}

/// Fills the snapshot's Services.
pub(super) fn join<'a>(snapshot: &mut Snapshot, sorted: &mut Sorted<'a>, pods: &'a [Pod], previous: Option<&Snapshot>) -> Members<'a> {
    let mut members = Members { services: HashMap::new(), slices: HashMap::new(), index: Index::new(pods) };
    for (_, object) in sorted.all(Kind::EndpointSlice) {
        if let Object::EndpointSlice(slice) = object {
            let service = NamespacedName { namespace: slice.name.namespace.clone(), name: slice.service.clone() };
            members.slices.entry(service).or_default().push(slice);
        }
    }
    let mut services: Vec<_> = sorted
        .all(Kind::Service)
        .filter_map(|(origin, object)| match object {
            Object::Service(service) => Some((origin, service)),
            _ => None,
        })
        .collect();
    // Two that claim one address: the older one has it.
    services.sort_by_key(|(_, service)| (service.created.unwrap_or(i64::MAX), service.name.clone()));
    for (origin, object) in services {
        members.services.insert(&object.name, object);
        let slices = members.slices.get(&object.name);
        let mut ports = Vec::with_capacity(object.ports.len());
        for port in &object.ports {
            let mut endpoints = match slices {
                Some(slices) => by_slices(object, port, slices, &members.index, snapshot),
                None => by_selector(object, port, &members.index),
            };
            endpoints.sort_by_key(|endpoint| endpoint.address);
            endpoints.dedup_by_key(|endpoint| endpoint.address);
            if let (None, true, TargetPort::Name(name)) = (slices, endpoints.is_empty(), &port.target)
                && members.index.selected(object).next().is_some()
            {
                let message =
                    format!("\"{name}\" is the name of no TCP port of a ready pod that is selected; port {} has no endpoint", port.port);
                sorted.problem(Severity::Warn, origin, format!("Service {}", object.name), "spec.ports.targetPort", message);
            }
            ports.push(ServicePort {
                port: port.port,
                name: port.name.clone(),
                app_protocol: port.app_protocol.clone(),
                endpoints,
                discovery: Discovery::Named,
            });
        }
        let service = Service { name: object.name.clone(), addresses: object.addresses.clone(), ports, entry: None };
        let service = match previous.and_then(|previous| previous.services.get(&service.name)) {
            Some(same) if **same == service => same.clone(),
            _ => Arc::new(service),
        };
        for (i, port) in service.ports.iter().enumerate() {
            for address in service.addresses.iter().map(|ip| SocketAddr::new(*ip, port.port)) {
                if let Some((other, _)) = snapshot.by_service_address.get(&address) {
                    let message = format!("{address} is an address of the older Service {} already, which keeps it", other.name);
                    sorted.problem(Severity::Error, origin, format!("Service {}", service.name), "spec.clusterIPs", message);
                    continue;
                }
                snapshot.by_service_address.insert(address, (service.clone(), i));
            }
        }
        snapshot.services.insert(service.name.clone(), service);
    }
    members
}

fn by_selector(service: &ServiceObject, port: &ServicePortObject, index: &Index<'_>) -> Vec<ServiceEndpoint> {
    let serving = |pod: &&Pod| !pod.object.terminating && (pod.object.ready || service.publish_not_ready);
    let mut endpoints = Vec::new();
    for pod in index.selected(service).filter(serving) {
        let number = match &port.target {
            TargetPort::Number(number) => Some(*number),
            TargetPort::Name(name) => pod.object.ports.get(name).copied(),
        };
        let Some(number) = number else { continue };
        endpoints.extend(pod.workload.addresses.iter().map(|ip| ServiceEndpoint {
            address: SocketAddr::new(*ip, number),
            workload: Some(pod.workload.uid.clone()),
            traits: None,
        }));
    }
    endpoints
}

fn by_slices(
    service: &ServiceObject,
    port: &ServicePortObject,
    slices: &[&EndpointSliceObject],
    index: &Index<'_>,
    snapshot: &Snapshot,
) -> Vec<ServiceEndpoint> {
    let mut endpoints = Vec::new();
    for slice in slices {
        let Some((_, number)) = slice.ports.iter().find(|(name, _)| *name == port.name) else { continue };
        // A slice's port without a number stands for every port: the one that was dialled.
        let number = number.unwrap_or(port.port);
        for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.ready || service.publish_not_ready) {
            let named = endpoint.pod.as_ref().and_then(|pod| index.by_name.get(&(&*slice.name.namespace, &**pod)));
            endpoints.extend(endpoint.at(number).map(|address| {
                let owner = named.map(|pod| &pod.workload).or_else(|| snapshot.workload_at(address.ip()));
                ServiceEndpoint { address, workload: owner.map(|workload| workload.uid.clone()), traits: None }
            }));
        }
    }
    endpoints
}
