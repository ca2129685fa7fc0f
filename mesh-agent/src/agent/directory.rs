//! Numbers of the kernel → names, for metrics and logs.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_common::event::{EVENT_ABORTED, EVENT_CLOSED, EVENT_DENIED, EVENT_DRY_RUN, EVENT_PLAINTEXT, Event, REASON_POLICY};
use mesh_common::flow::{KIND_PLAINTEXT, StatsKey};
use mesh_common::verdict::NO_POLICY;
use mesh_model::policy::CompiledPolicy;
use mesh_model::service::NamespacedName;
use mesh_model::snapshot::Snapshot;
use mesh_model::workload::{Workload, WorkloadUid};

use super::adopted::Adopted;
use crate::capture::desired::Registry;
use crate::ops::access::Direction;
use crate::ops::metrics::kernel::FlowPeers;
use crate::ops::record::{Connection, DryRun, KernelReport};
use crate::ops::{ConnectionLabels, PeerInfo, Reporter, Security, ServiceRef};
use crate::outcome::Outcome;

/// Names at one moment. The default is that of the time before the first configuration is in force.
#[derive(Default)]
pub struct Directory {
    known: bool,
    peers: HashMap<u32, PeerInfo>,
    policies: HashMap<u32, Arc<CompiledPolicy>>,
    services: HashMap<u32, ServiceRef>,
}

/// A Service with the host name that metrics give it; a ServiceEntry's host has its own.
pub fn service_ref(name: &NamespacedName, domain: &str) -> ServiceRef {
    if name.is_entry() {
        return ServiceRef { name: name.clone(), host: name.name.clone() };
    }
    ServiceRef { name: name.clone(), host: format!("{}.{}.svc.{domain}", name.name, name.namespace).into() }
}

/// The Service of a host name as [`service_ref`] makes it; nothing else is taken for one, as another spelling or a port behind it.
pub fn service_of_host(host: &str, domain: &str) -> Option<NamespacedName> {
    let (name, namespace) = host.strip_suffix(domain)?.strip_suffix(".svc.")?.split_once('.')?;
    let is_label = |text: &str| {
        (1..=63).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    (is_label(name) && is_label(namespace)).then(|| NamespacedName { namespace: namespace.into(), name: name.into() })
}

/// The Service by which a peer says that `server` was dialled. Good for a label only, and only if there is such a Service and `server` is
/// an endpoint of it: a peer chooses among the Services of whom it calls, and can make nothing up.
pub fn claimed_service(snapshot: &Snapshot, host: &str, server: SocketAddr, domain: &str) -> Option<ServiceRef> {
    let service = snapshot.service_with(&service_of_host(host, domain)?, server)?;
    Some(service_ref(&service.name, domain))
}

fn peer_info(workload: &Arc<Workload>) -> PeerInfo {
    PeerInfo { workload: Some(workload.clone()), identity: workload.enrolled.then(|| workload.identity.clone()) }
}

impl Directory {
    /// Takes the names down. `policies` are those of this node's pods; `adopted`, numbers of earlier agents.
    pub fn new(
        snapshot: &Snapshot,
        registry: &Registry,
        adopted: &Adopted,
        policies: impl Iterator<Item = (WorkloadUid, Arc<CompiledPolicy>)>,
        domain: &str,
    ) -> Self {
        let mut directory = Directory { known: true, ..Directory::default() };
        for (number, uid) in adopted.workloads() {
            directory.peers.extend(snapshot.workload(uid).map(|workload| (number, peer_info(workload))));
        }
        for (number, name) in adopted.services() {
            directory.services.extend(snapshot.service(name).map(|service| (number, service_ref(&service.name, domain))));
        }
        for workload in snapshot.workloads() {
            if let Some(number) = registry.workloads.get(&workload.uid) {
                directory.peers.insert(number, peer_info(workload));
            }
        }
        for service in snapshot.services() {
            if let Some(number) = registry.services.get(&service.name) {
                directory.services.insert(number, service_ref(&service.name, domain));
            }
        }
        for (uid, policy) in policies {
            if let Some(number) = registry.workloads.get(&uid) {
                directory.policies.insert(number, policy);
            }
        }
        directory
    }

    /// Whether a configuration has been in force. What is named before stays without a name.
    pub fn is_known(&self) -> bool {
        self.known
    }

    /// Whether a key of the kernel's totals is about a workload that is in no configuration any more.
    pub fn is_gone(&self, key: &StatsKey) -> bool {
        let gone = |number: u32| number != 0 && !self.peers.contains_key(&number);
        self.known && (gone(key.source) || gone(key.destination))
    }

    /// Who a key of the kernel's totals is about.
    pub fn flow(&self, key: &StatsKey) -> FlowPeers {
        FlowPeers {
            source: self.client(key.source, key.kind == KIND_PLAINTEXT),
            destination: self.peer(key.destination),
            service: self.services.get(&key.service).cloned(),
        }
    }

    /// By plaintext an address may be anybody's: a pod's name is worth a label, its identity is not proven.
    fn client(&self, number: u32, plaintext: bool) -> PeerInfo {
        let peer = self.peer(number);
        if plaintext { PeerInfo { identity: None, ..peer } } else { peer }
    }

    fn peer(&self, number: u32) -> PeerInfo {
        self.peers.get(&number).cloned().unwrap_or_default()
    }

    /// A record of the kernel, with names.
    pub fn report(&self, event: &Event) -> Option<(Connection, KernelReport)> {
        let named = |number| self.policies.get(&event.destination).and_then(|policy| policy.name(number)).cloned();
        let (outcome, dry_run) = match event.kind {
            EVENT_CLOSED if event.flags & EVENT_ABORTED != 0 => (Outcome::Aborted, None),
            EVENT_CLOSED => (Outcome::Completed, None),
            EVENT_DENIED => {
                let policy = if event.reason == REASON_POLICY { named(event.policy) } else { None };
                (Outcome::from_kernel_refusal(event.reason, policy), None)
            }
            EVENT_DRY_RUN => {
                let dry_run = match event.policy {
                    NO_POLICY => DryRun::NoAllowPolicy,
                    number => named(number).map_or(DryRun::Unnamed, DryRun::Policy),
                };
                (Outcome::Completed, Some(dry_run))
            }
            other => {
                tracing::warn!(kind = other, "the kernel reported something this agent does not know");
                return None;
            }
        };
        let plaintext = event.flags & EVENT_PLAINTEXT != 0;
        let (server, dialled) = (SocketAddr::from(event.server), SocketAddr::from(event.dialled));
        let connection = Connection {
            labels: ConnectionLabels {
                reporter: if plaintext { Reporter::Destination } else { Reporter::Source },
                source: self.client(event.source, plaintext),
                destination: self.peer(event.destination),
                service: self.services.get(&event.service).cloned(),
                security: Security::None,
            },
            direction: if plaintext { Direction::Inbound } else { Direction::Local },
            client: event.client.into(),
            server: Some(server),
            dialled: (dialled != server).then_some(dialled),
            trace_id: None,
            upstream_tls: None,
        };
        let report = KernelReport {
            outcome,
            from_client: event.sent,
            to_client: event.received,
            duration: Duration::from_nanos(event.duration_ns),
            dry_run,
        };
        Some((connection, report))
    }
}

#[cfg(test)]
mod tests;
