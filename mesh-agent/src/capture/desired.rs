//! The mesh's configuration and the state of this node's pods → what the kernel's maps should hold. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_common::addr::{Addr, Endpoint};
use mesh_common::names::MAX_OPS;
use mesh_common::policy::{ATOM_IDENTITY, Header, Member, Op, Program};
use mesh_common::service::{SERVICE_OUTSIDE, SERVICE_VIA_AGENT, ServiceEntry};
use mesh_common::workload::*;
use mesh_model::identity::Identity;
use mesh_model::policy::{CompiledPolicy, MtlsModes, plaintext::strict_row};
use mesh_model::service::{NamespacedName, Service, ServicePort};
use mesh_model::settings::SameNode;
use mesh_model::snapshot::Snapshot;
use mesh_model::workload::{Workload, WorkloadUid};

use super::numbers::Numbers;
use super::sync::KernelState;
use crate::policy::{Transport, WorkloadPolicy};

/// A pod of this node, as far as its capture has come.
#[derive(Clone, Debug)]
pub struct PodStatus {
    /// Cookie of its network namespace, once that is open.
    pub netns_cookie: Option<u64>,
    /// Sockets, certificate and rules are there.
    pub ready: bool,
    /// Its rules.
    pub policy: Arc<WorkloadPolicy>,
}

/// The numbers by which the kernel knows things; see [`Numbers`].
#[derive(Debug)]
pub struct Registry {
    /// Pods.
    pub workloads: Numbers<WorkloadUid>,
    /// Identities of this node's pods.
    pub identities: Numbers<Identity>,
    /// Services.
    pub services: Numbers<NamespacedName>,
    /// Programs, by the pod they are for and the way by which the clients come that they judge.
    pub policies: Numbers<(WorkloadUid, Transport)>,
    /// Endpoint lists, by content.
    pub lists: Numbers<Arc<[Endpoint]>>,
    /// Added to the numbers of identity sets.
    pub set_base: u32,
}

impl Registry {
    /// Counting from `base`.
    pub fn new(base: u32) -> Self {
        Registry {
            workloads: Numbers::new(base),
            identities: Numbers::new(base),
            services: Numbers::new(base),
            policies: Numbers::new(base),
            lists: Numbers::new(base),
            set_base: base,
        }
    }
}

/// Computes it. `pods` are this node's pods that are in the mesh; those of the snapshot that are not among them are held.
pub fn desired(
    snapshot: &Snapshot,
    node: &str,
    pods: &HashMap<WorkloadUid, PodStatus>,
    outside: &HashMap<WorkloadUid, u64>,
    held: &HashMap<WorkloadUid, u64>,
    registry: &mut Registry,
) -> KernelState {
    let mut state = KernelState::default();
    let mut sets: BTreeMap<u32, &mesh_model::policy::IdentityMatch> = BTreeMap::new();
    let mut identities: HashSet<&Identity> = HashSet::new();
    for workload in snapshot.workloads().filter(|w| !w.host_network) {
        let number = registry.workloads.number(&workload.uid);
        let mut entry = WorkloadEntry { workload: number, ..WorkloadEntry::default() };
        if !workload.enrolled {
            state.workloads.extend(workload.addresses.iter().map(|ip| (Addr::from(*ip), entry)));
            continue;
        }
        entry.flags = WORKLOAD_ENROLLED;
        let encrypt = snapshot.same_node(&workload.namespace) == SameNode::Encrypt;
        if &*workload.node == node {
            entry.flags |= WORKLOAD_LOCAL;
            match pods.get(&workload.uid) {
                Some(status) => {
                    identities.insert(&workload.identity);
                    if let (Some(compiled), Some(modes)) = (status.policy.compiled(), status.policy.modes()) {
                        sets.extend(compiled.sets.iter().map(|(n, set)| (*n, set.as_ref())));
                        let mut add = |transport, program| {
                            let number = registry.policies.number(&(workload.uid.clone(), transport));
                            state.policies.insert(number, Arc::new(program));
                            number
                        };
                        match (left_to_agent(encrypt, &status.policy), program(compiled, registry.set_base)) {
                            (None, Some(program)) => entry.policy = add(Transport::Tunnel, program),
                            _ => entry.flags |= WORKLOAD_VIA_AGENT,
                        }
                        if !status.policy.asks_http()
                            && let Some(program) = plaintext_program(compiled, modes, registry.set_base)
                        {
                            entry.plaintext = add(Transport::Plaintext, program);
                        }
                    } else {
                        entry.flags |= WORKLOAD_HELD;
                    }
                    if !status.ready {
                        entry.flags |= WORKLOAD_HELD;
                    }
                    if let Some(cookie) = status.netns_cookie {
                        let pod = pod_entry(workload, number, registry, status.ready, encrypt);
                        state.pods.insert(cookie, pod);
                    }
                }
                None => entry.flags |= WORKLOAD_HELD,
            }
        }
        state.workloads.extend(workload.addresses.iter().map(|ip| (Addr::from(*ip), entry)));
    }
    for pod in snapshot.held() {
        let number = registry.workloads.number(&pod.uid);
        let entry = WorkloadEntry { workload: number, flags: WORKLOAD_ENROLLED | WORKLOAD_HELD, ..WorkloadEntry::default() };
        state.workloads.extend(pod.addresses.iter().map(|ip| (Addr::from(*ip), entry)));
        if let Some(cookie) = held.get(&pod.uid) {
            state.pods.insert(*cookie, PodEntry { workload: number, state: POD_HELD, ..PodEntry::default() });
        }
    }
    for (uid, cookie) in outside {
        let workload = registry.workloads.number(uid);
        state.pods.insert(*cookie, PodEntry { workload, state: POD_OUTSIDE, ..PodEntry::default() });
    }
    for (set, patterns) in sets {
        for identity in identities.iter().filter(|identity| patterns.matches(identity)) {
            let identity = registry.identities.number(identity);
            state.members.insert(Member { set: set.wrapping_add(registry.set_base), identity });
        }
    }
    services(snapshot, registry, &mut state);
    let namespaces: HashSet<&str> = pods.keys().filter_map(|uid| snapshot.workload(uid)).map(|workload| &*workload.namespace).collect();
    state.egress_ports = snapshot.ports_by_name(|service| namespaces.iter().any(|namespace| service.is_known_to(namespace)));
    state.egress_ports.extend(snapshot.ports_of_strangers());
    let settings = snapshot.settings();
    state.excluded_ports.extend(&settings.excluded_ports);
    state.excluded_cidrs.extend(settings.excluded_cidrs.iter().map(|net| {
        let mapped = if net.addr().is_ipv4() { 96 } else { 0 };
        (net.prefix_len() + mapped, Addr::from(net.network()))
    }));
    state
}

fn pod_entry(workload: &Workload, number: u32, registry: &mut Registry, ready: bool, encrypt: bool) -> PodEntry {
    let mut entry = PodEntry {
        workload: number,
        identity: registry.identities.number(&workload.identity),
        state: if ready { POD_READY } else { POD_HELD },
        flags: if encrypt { POD_VIA_AGENT } else { 0 },
        ..PodEntry::default()
    };
    for ip in &workload.addresses {
        match ip {
            IpAddr::V4(_) => entry.v4 = Addr::from(*ip),
            IpAddr::V6(_) => entry.v6 = Addr::from(*ip),
        }
    }
    entry
}

/// Why connections between pods of one node are not judged in the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LeftToAgent {
    /// They are to be encrypted there too.
    Encrypt,
    /// Policy asks for more than addresses and identities.
    AsksHttp,
    /// Policy is too long for the kernel, or asks for connections to be noted.
    Unfit,
}

/// Whether connections to a pod with this policy are left to the agent also from pods of its own node, and why.
pub fn left_to_agent(encrypt: bool, policy: &WorkloadPolicy) -> Option<LeftToAgent> {
    if encrypt {
        return Some(LeftToAgent::Encrypt);
    }
    if policy.asks_http() {
        return Some(LeftToAgent::AsksHttp);
    }
    policy.compiled().is_none_or(|compiled| !fits(&[], compiled)).then_some(LeftToAgent::Unfit)
}

fn fits(first: &[Op], policy: &CompiledPolicy) -> bool {
    first.len() + policy.ops.len() <= MAX_OPS && policy.audit.is_empty()
}

/// The kernel's form of a policy, or nothing if it is too long for the kernel; the agent then judges.
pub fn program(policy: &CompiledPolicy, set_base: u32) -> Option<Program> {
    assemble(&[], policy, set_base)
}

/// As [`program`], for clients without an identity, whom the mTLS modes concern too.
pub fn plaintext_program(policy: &CompiledPolicy, modes: &MtlsModes, set_base: u32) -> Option<Program> {
    assemble(&strict_row(modes), policy, set_base)
}

fn assemble(first: &[Op], policy: &CompiledPolicy, set_base: u32) -> Option<Program> {
    let mut ops = [Op::default(); MAX_OPS];
    let len = first.len() + policy.ops.len();
    if !fits(first, policy) {
        return None;
    }
    for (slot, op) in ops.iter_mut().zip(first.iter().chain(&policy.ops)) {
        *slot = *op;
        if op.atom == ATOM_IDENTITY {
            slot.arg = op.arg.wrapping_add(set_base);
        }
    }
    Some(Program { header: Header { zero: 0, len: len as u32, ..policy.header }, ops })
}

fn services(snapshot: &Snapshot, registry: &mut Registry, state: &mut KernelState) {
    for service in snapshot.services() {
        if service.addresses.is_empty() {
            continue;
        }
        let number = registry.services.number(&service.name);
        for ip in &service.addresses {
            for port in &service.ports {
                if service.entry.is_some() {
                    outside(snapshot, service, std::net::SocketAddr::new(*ip, port.port), number, state);
                    continue;
                }
                let list = endpoints(port, ip.is_ipv4());
                let flags = if snapshot.is_routed(&service.name, port.port) { SERVICE_VIA_AGENT } else { 0 };
                let entry = if list.is_empty() {
                    ServiceEntry { service: number, list: 0, count: 0, flags }
                } else {
                    let id = registry.lists.number(&list);
                    let count = list.len() as u32;
                    state.lists.insert(id, list);
                    ServiceEntry { service: number, list: id, count, flags }
                };
                state.services.insert(Endpoint::new(Addr::from(*ip), port.port), entry);
            }
        }
    }
}

/// An address of a host of a ServiceEntry. Of several hosts that have it the kernel knows one: the agent tells them apart.
fn outside(snapshot: &Snapshot, service: &Service, address: std::net::SocketAddr, number: u32, state: &mut KernelState) {
    if snapshot.service_at(address).is_some_and(|(first, _)| first.name == service.name) {
        let entry = ServiceEntry { service: number, list: 0, count: 0, flags: SERVICE_VIA_AGENT | SERVICE_OUTSIDE };
        state.services.insert(Endpoint::new(Addr::from(address.ip()), address.port()), entry);
    }
}

/// The endpoints of the address's family, in a fixed order so that equal sets are equal lists.
fn endpoints(port: &ServicePort, v4: bool) -> Arc<[Endpoint]> {
    let mut list: Vec<Endpoint> = port.endpoints.iter().filter(|e| e.address.is_ipv4() == v4).map(|e| Endpoint::from(e.address)).collect();
    list.sort_unstable();
    list.dedup();
    list.into()
}

/// Lets go of the numbers of what the mesh no longer has.
pub fn forget(snapshot: &Snapshot, state: &KernelState, registry: &mut Registry) {
    let held: HashSet<&WorkloadUid> = snapshot.held().iter().map(|pod| &pod.uid).collect();
    registry.workloads.retain(|uid| snapshot.workload(uid).is_some() || held.contains(uid));
    registry.policies.retain(|(uid, _)| snapshot.workload(uid).is_some());
    registry.services.retain(|name| snapshot.service(name).is_some());
    let identities: HashSet<u32> = state.pods.values().map(|pod| pod.identity).collect();
    registry.identities.retain_numbers(|number| identities.contains(&number));
    registry.lists.retain_numbers(|number| state.lists.contains_key(&number));
}

#[cfg(test)]
mod tests;
