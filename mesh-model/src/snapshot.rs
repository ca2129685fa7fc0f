//! The mesh at one moment: immutable, shared by `Arc`, replaced as a whole.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use crate::limit::{AppliedLimit, RateLimit, Sharing};
use crate::object::{NamespaceObject, Node};
use crate::policy::{
    AuthorizationPolicy, EffectivePolicies, MtlsMode, MtlsModes, PeerAuthentication, RequestAuthentication, Scope, selects,
};
use crate::problem::Problem;
use crate::route::{ParentStatus, PortRoutes};
use crate::service::{NamespacedName, Service, ServicePort};
use crate::settings::{MeshSettings, SameNode};
use crate::workload::{Workload, WorkloadUid};

pub use service_entries::Meant;

mod backends;
mod build;
mod endpoints;
mod limits;
mod policies;
mod routes;
mod service_entries;
mod traffic;
mod virtual_services;
mod workloads;

/// A pod that belongs into the mesh, but of which too little is understood to serve it: nothing may reach it or leave it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HeldPod {
    /// As [`Workload::uid`].
    pub uid: WorkloadUid,
    /// Its name.
    pub name: NamespacedName,
    /// The node it runs on; empty if that could not be read either.
    pub node: Arc<str>,
    /// The addresses that could be read.
    pub addresses: Vec<IpAddr>,
    /// Its network namespace, where a manifest names it.
    pub netns: Option<PathBuf>,
    /// Why it is held.
    pub reason: Arc<str>,
}

/// The mesh at one moment. Made by [`Snapshot::build`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Snapshot {
    version: u64,
    settings: Arc<MeshSettings>,
    workloads: HashMap<WorkloadUid, Arc<Workload>>,
    by_address: HashMap<IpAddr, Arc<Workload>>,
    held: Vec<Arc<HeldPod>>,
    nodes: BTreeMap<Arc<str>, Arc<Node>>,
    namespaces: HashMap<Arc<str>, Arc<NamespaceObject>>,
    service_accounts: BTreeSet<NamespacedName>,
    services: BTreeMap<NamespacedName, Arc<Service>>,
    by_service_address: HashMap<SocketAddr, (Arc<Service>, usize)>,
    entries: service_entries::Entries,
    authorization: HashMap<Arc<str>, Vec<Arc<AuthorizationPolicy>>>,
    authentication: HashMap<Arc<str>, Vec<Arc<PeerAuthentication>>>,
    tokens: HashMap<Arc<str>, Vec<Arc<RequestAuthentication>>>,
    /// Pods of the Services that policies are targeted at.
    targets: HashMap<NamespacedName, HashSet<WorkloadUid>>,
    /// Routes by the Service's port that they are for.
    routes: HashMap<(NamespacedName, u16), PortRoutes>,
    route_statuses: Vec<ParentStatus>,
    destination_rules: traffic::Rules,
    backends: backends::Backends,
    /// By the workload that they hold for, in the order of their names.
    limits: HashMap<WorkloadUid, Vec<AppliedLimit>>,
    /// By the host of a ServiceEntry.
    host_limits: BTreeMap<NamespacedName, Vec<Arc<RateLimit>>>,
    /// By RateLimit and Service, those with `scope: service`.
    sharings: HashMap<(NamespacedName, NamespacedName), Sharing>,
    problems: Vec<Problem>,
}

impl Snapshot {
    /// Counts up from 1 with each build; 0 is the empty mesh before the first.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Mesh-wide settings.
    pub fn settings(&self) -> &Arc<MeshSettings> {
        &self.settings
    }

    /// Every pod that is understood and runs or may yet run, in the mesh or not, in no order. Those in the mesh that are not
    /// understood are in [`Snapshot::held`].
    pub fn workloads(&self) -> impl ExactSizeIterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// A pod.
    pub fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The pod that owns an address. Pods in their node's network namespace own none.
    pub fn workload_at(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.by_address.get(&address.to_canonical())
    }

    /// Pods that belong into the mesh and must be refused everything.
    pub fn held(&self) -> &[Arc<HeldPod>] {
        &self.held
    }

    /// The nodes, by name.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// A node.
    pub fn node(&self, name: &str) -> Option<&Arc<Node>> {
        self.nodes.get(name)
    }

    /// The declared service accounts. Pods may run under others: every namespace has a `default`.
    pub fn service_accounts(&self) -> &BTreeSet<NamespacedName> {
        &self.service_accounts
    }

    /// The Services and the hosts of ServiceEntries, by name.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// A Service.
    pub fn service(&self, name: &NamespacedName) -> Option<&Arc<Service>> {
        self.services.get(name)
    }

    /// A Service that has this address and port among its ready endpoints.
    pub fn service_with(&self, name: &NamespacedName, endpoint: SocketAddr) -> Option<&Arc<Service>> {
        let endpoint = SocketAddr::new(endpoint.ip().to_canonical(), endpoint.port());
        let has = |port: &ServicePort| port.endpoints.iter().any(|there| there.address == endpoint);
        self.services.get(name).filter(|service| service.ports.iter().any(has))
    }

    /// The Service that has a cluster IP and port, and which of its ports that is. Of the hosts of ServiceEntries that share an address
    /// it is the oldest: whom a client means by it [`Snapshot::meant_by`] tells.
    pub fn service_at(&self, address: SocketAddr) -> Option<(&Arc<Service>, &ServicePort)> {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        let (service, port) = self.by_service_address.get(&address).or_else(|| self.entries.first_at(address))?;
        Some((service, service.ports.get(*port)?))
    }

    /// Whether the agent has to take connections to a Service's port: some object asks for more there than the kernel can do.
    pub fn is_routed(&self, service: &NamespacedName, port: u16) -> bool {
        service.is_entry() || self.routes(service, port).is_some() || self.has_traffic(service) || self.backend_session(service).is_some()
    }

    /// How pods of one node talk when one of them is of this namespace. Either side's [`SameNode::Encrypt`] holds for both.
    pub fn same_node(&self, namespace: &str) -> SameNode {
        match self.namespaces.get(namespace) {
            Some(namespace) if namespace.encrypt_same_node => SameNode::Encrypt,
            _ => self.settings.same_node,
        }
    }

    /// The AuthorizationPolicies that hold for a workload: of the root namespace, then of its own, each by name.
    pub fn policies_for(&self, workload: &Workload) -> EffectivePolicies {
        let policies = self.of_root_and_own(&self.authorization, workload);
        EffectivePolicies {
            trust_domain: self.settings.trust_domain.clone(),
            policies: policies.filter(|policy| self.applies(&policy.name, &policy.scope, workload)).cloned().collect(),
        }
    }

    /// The RequestAuthentications that hold for a workload, in the order of [`Snapshot::policies_for`]. Each adds its rules to the others'.
    pub fn authentication_for(&self, workload: &Workload) -> Vec<Arc<RequestAuthentication>> {
        let policies = self.of_root_and_own(&self.tokens, workload);
        policies.filter(|policy| self.applies(&policy.name, &policy.scope, workload)).cloned().collect()
    }

    /// Every RequestAuthentication, whichever workloads it is about.
    pub fn authentications(&self) -> impl Iterator<Item = &Arc<RequestAuthentication>> {
        self.tokens.values().flatten()
    }

    fn of_root_and_own<'a, T>(&self, by_namespace: &'a HashMap<Arc<str>, Vec<T>>, workload: &Workload) -> impl Iterator<Item = &'a T> {
        let own = &workload.namespace;
        let root = Some(&self.settings.root_namespace).filter(|root| *root != own);
        let buckets = [root.and_then(|root| by_namespace.get(root)), by_namespace.get(own)];
        buckets.into_iter().flatten().flatten()
    }

    fn applies(&self, policy: &NamespacedName, scope: &Scope, workload: &Workload) -> bool {
        match scope {
            Scope::Namespace => true,
            Scope::Selector(labels) => selects(labels, &workload.labels),
            Scope::Services(services) => services.iter().any(|name| {
                let service = NamespacedName { namespace: policy.namespace.clone(), name: name.clone() };
                self.targets.get(&service).is_some_and(|pods| pods.contains(&workload.uid))
            }),
        }
    }

    /// Whether a workload accepts plaintext, by port.
    pub fn mtls_modes(&self, workload: &Workload) -> MtlsModes {
        let of = |namespace: &Arc<str>| self.authentication.get(namespace).map(Vec::as_slice).unwrap_or_default();
        MtlsModes::of(of(&self.settings.root_namespace), of(&workload.namespace), &workload.labels, self.settings.mtls)
    }

    /// Whether a workload accepts plaintext on a port.
    pub fn mtls_mode(&self, workload: &Workload, port: u16) -> MtlsMode {
        self.mtls_modes(workload).on(port).mode
    }

    /// Everything that is wrong with the configuration.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

#[cfg(test)]
mod tests;
