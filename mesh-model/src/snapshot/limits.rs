//! RateLimits, by the workload that each holds for, and by the host of a ServiceEntry.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::Snapshot;
use super::build::Sorted;
use super::endpoints::Members;
use crate::limit::{AppliedLimit, LimitScope, RateLimit, Share, Sharing};
use crate::object::{Kind, Object, ObjectKey};
use crate::policy::{Scope, selects};
use crate::problem::{Origin, Severity};
use crate::service::{NamespacedName, Service};
use crate::workload::{Workload, WorkloadUid};

impl Snapshot {
    /// The limits that hold for a workload, in the order of their names; one with `scope: service` once for each Service that is targeted
    /// and has the workload among its pods. A request must be within all of them.
    pub fn limits_for(&self, workload: &Workload) -> &[AppliedLimit] {
        self.limits.get(&workload.uid).map(Vec::as_slice).unwrap_or_default()
    }

    /// The limits of what a workload sends to hosts of ServiceEntries, as far as it knows those, by host and then in the order of their names.
    pub fn limits_towards_hosts(&self, workload: &Workload) -> Vec<AppliedLimit> {
        let known = |host: &NamespacedName| self.services.get(host).is_some_and(|service| service.is_known_to(&workload.namespace));
        let hosts = self.host_limits.iter().filter(|(host, _)| known(host));
        let applied = hosts.flat_map(|(host, limits)| {
            limits.iter().map(move |limit| {
                let sharing = self.sharings.get(&(limit.name.clone(), host.clone()));
                let share =
                    sharing.map(|sharing| Share { service: host.clone(), of: sharing.ready.max(1), node: sharing.fair(&workload.node) });
                AppliedLimit { limit: limit.clone(), towards: Some(host.clone()), share }
            })
        });
        applied.collect()
    }

    /// Who shares the budgets of a RateLimit for a Service, or the host of a ServiceEntry; `None` if there are none to share.
    pub fn sharing(&self, limit: &NamespacedName, service: &NamespacedName) -> Option<&Sharing> {
        self.sharings.get(&(limit.clone(), service.clone()))
    }
}

/// Fills the snapshot's limits.
pub(super) fn join(snapshot: &mut Snapshot, sorted: &mut Sorted<'_>, members: &Members<'_>) {
    let mut placed: Vec<(&Origin, &Arc<RateLimit>)> = sorted
        .all(Kind::RateLimit)
        .filter_map(|(origin, object)| match object {
            Object::RateLimit(limit) => Some((origin, limit)),
            _ => None,
        })
        .collect();
    if placed.is_empty() {
        return;
    }
    placed.sort_by(|(_, a), (_, b)| a.name.cmp(&b.name));
    let mut by_namespace: HashMap<&str, Vec<&Arc<Workload>>> = HashMap::new();
    for workload in snapshot.workloads.values().filter(|workload| workload.enrolled) {
        by_namespace.entry(&workload.namespace).or_default().push(workload);
    }
    let mut limits: HashMap<WorkloadUid, Vec<AppliedLimit>> = HashMap::new();
    let mut sharings = HashMap::new();
    let mut add = |uid: &WorkloadUid, limit: &Arc<RateLimit>, share| {
        limits.entry(uid.clone()).or_default().push(AppliedLimit { limit: limit.clone(), towards: None, share });
    };
    let mut host_limits: BTreeMap<NamespacedName, Vec<Arc<RateLimit>>> = BTreeMap::new();
    for (origin, limit) in placed {
        for host in hosts(snapshot, sorted, origin, limit) {
            if limit.scope == LimitScope::Service {
                sharings.insert((limit.name.clone(), host.clone()), clients(snapshot, limit, &host));
            }
            host_limits.entry(host).or_default().push(limit.clone());
        }
        let of_namespace = by_namespace.get(&*limit.name.namespace).into_iter().flatten();
        match &limit.targets {
            Scope::Namespace => of_namespace.for_each(|workload| add(&workload.uid, limit, None)),
            Scope::Selector(labels) => {
                of_namespace.filter(|workload| selects(labels, &workload.labels)).for_each(|workload| add(&workload.uid, limit, None));
            }
            Scope::Services(names) => {
                let mut alone: HashSet<WorkloadUid> = HashSet::new();
                for name in names {
                    let service = NamespacedName { namespace: limit.name.namespace.clone(), name: name.clone() };
                    let Some(pods) = members.of(&service, snapshot) else {
                        missing(sorted, origin, limit, Kind::Service, &service);
                        continue;
                    };
                    let enrolled = |uid: &WorkloadUid| snapshot.workloads.get(uid).is_some_and(|workload| workload.enrolled);
                    let pods = pods.into_iter().filter(enrolled);
                    match limit.scope {
                        LimitScope::Endpoint => alone.extend(pods),
                        LimitScope::Service => {
                            let ready = snapshot.services.get(&service).map(|service| Ready::of(service)).unwrap_or_default();
                            let pods: Vec<&Arc<Workload>> = pods.filter_map(|uid| snapshot.workloads.get(&uid)).collect();
                            let sharing = ready.sharing(limit, &pods);
                            for pod in pods {
                                let (of, node) = (ready.with(&pod.uid), sharing.fair(&pod.node));
                                add(&pod.uid, limit, Some(Share { service: service.clone(), of, node }));
                            }
                            sharings.insert((limit.name.clone(), service), sharing);
                        }
                    }
                }
                alone.iter().for_each(|uid| add(uid, limit, None));
            }
        }
    }
    snapshot.limits = limits;
    snapshot.host_limits = host_limits;
    snapshot.sharings = sharings;
}

/// The hosts of the ServiceEntries that a limit is targeted at.
fn hosts(snapshot: &Snapshot, sorted: &mut Sorted<'_>, origin: &Origin, limit: &RateLimit) -> BTreeSet<NamespacedName> {
    let mut hosts = BTreeSet::new();
    for name in &limit.entries {
        let name = NamespacedName { namespace: limit.name.namespace.clone(), name: name.clone() };
        let entry = sorted.all(Kind::ServiceEntry).find_map(|(_, object)| match object {
            Object::ServiceEntry(entry) if entry.name == name => Some(entry.clone()),
            _ => None,
        });
        match entry {
            Some(entry) => {
                let named = entry.hosts.iter().map(|host| NamespacedName { namespace: name.namespace.clone(), name: host.clone() });
                hosts.extend(named.filter(|host| snapshot.services.contains_key(host)));
            }
            None => missing(sorted, origin, limit, Kind::ServiceEntry, &name),
        }
    }
    hosts
}

/// The pods of the mesh that know a host of a ServiceEntry: whoever may send it anything shares its budget.
fn clients(snapshot: &Snapshot, limit: &Arc<RateLimit>, host: &NamespacedName) -> Sharing {
    let mut nodes: BTreeMap<Arc<str>, u32> = BTreeMap::new();
    if let Some(service) = snapshot.services.get(host) {
        let known = |workload: &&Arc<Workload>| workload.enrolled && !workload.host_network && service.is_known_to(&workload.namespace);
        for workload in snapshot.workloads.values().filter(known) {
            *nodes.entry(workload.node.clone()).or_default() += 1;
        }
    }
    Sharing { limit: limit.clone(), ready: nodes.values().sum(), nodes }
}

/// Who stands behind a Service and may be called.
#[derive(Default)]
struct Ready<'a> {
    pods: HashSet<&'a WorkloadUid>,
    /// Of endpoints that are no pods we know.
    strangers: HashSet<IpAddr>,
}

impl<'a> Ready<'a> {
    fn of(service: &'a Service) -> Self {
        let mut ready = Ready::default();
        for endpoint in service.ports.iter().flat_map(|port| &port.endpoints) {
            match &endpoint.workload {
                Some(uid) => drop(ready.pods.insert(uid)),
                None => drop(ready.strangers.insert(endpoint.address.ip())),
            }
        }
        ready
    }

    /// Among how many a budget is shared, if this pod is one of them: it can be dialled directly before it is ready.
    fn with(&self, pod: &WorkloadUid) -> u32 {
        let own = usize::from(!self.pods.contains(pod));
        u32::try_from(self.pods.len() + self.strangers.len() + own).unwrap_or(u32::MAX)
    }

    /// By node, given the Service's pods that are in the mesh.
    fn sharing(&self, limit: &Arc<RateLimit>, pods: &[&Arc<Workload>]) -> Sharing {
        let mut nodes: BTreeMap<Arc<str>, u32> = BTreeMap::new();
        for pod in pods {
            *nodes.entry(pod.node.clone()).or_default() += u32::from(self.pods.contains(&pod.uid));
        }
        let ready = u32::try_from(self.pods.len() + self.strangers.len()).unwrap_or(u32::MAX);
        Sharing { limit: limit.clone(), ready, nodes }
    }
}

fn missing(sorted: &mut Sorted<'_>, origin: &Origin, limit: &RateLimit, kind: Kind, target: &NamespacedName) {
    let key = ObjectKey { kind, namespace: target.namespace.clone(), name: target.name.clone() };
    let (severity, why, until) = if sorted.unreadable.contains(&key) {
        (Severity::Error, "which is not understood", "until that is mended")
    } else {
        (Severity::Warn, "which does not exist", "until it does")
    };
    let message = format!("is targeted at {} {target}, {why}: for that target nothing is limited {until}", kind.name());
    sorted.problem(severity, origin, format!("RateLimit {}", limit.name), "spec.targetRefs", message);
}

#[cfg(test)]
mod tests;
