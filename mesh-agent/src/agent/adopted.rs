//! Numbers that earlier agents gave → who bears them, so that what still carries them keeps its name: connections that the kernel let go
//! directly outlive the agent under which they were opened, and the numbers of each agent are its own (see [`Numbers`]).
//!
//! Who a number stood for is told by what the maps hold at adoption: the namespace of a pod of this node, else an address. It is settled
//! once, as soon as the configuration has somebody there, so that a later owner of the address is not taken for it.
//!
//! [`Numbers`]: crate::capture::numbers::Numbers

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use mesh_common::flow::{FlowEntry, FlowKey};
use mesh_model::service::NamespacedName;
use mesh_model::snapshot::Snapshot;
use mesh_model::workload::WorkloadUid;

use crate::capture::numbers;
use crate::capture::sync::KernelState;

/// What is known of a number of a workload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lead {
    /// Cookie of the pod's network namespace.
    Namespace(u64),
    /// The pod's address.
    Address(IpAddr),
}

#[derive(Debug)]
struct Alias<L, N> {
    lead: L,
    name: Option<N>,
    /// Nothing carried it at the last look.
    idle: bool,
}

impl<L, N> Alias<L, N> {
    fn new(lead: L) -> Self {
        Alias { lead, name: None, idle: false }
    }
}

/// The numbers of what is adopted.
#[derive(Debug, Default)]
pub struct Adopted {
    workloads: HashMap<u32, Alias<Lead, WorkloadUid>>,
    services: HashMap<u32, Alias<SocketAddr, NamespacedName>>,
    blocks: HashSet<u32>,
}

/// Numbers that something carries.
#[derive(Debug, Default)]
pub struct Used {
    workloads: HashSet<u32>,
    services: HashSet<u32>,
}

impl Used {
    /// Those of live connections.
    pub fn by(flows: impl Iterator<Item = (FlowKey, FlowEntry)>) -> Self {
        let mut used = Used::default();
        for (_, flow) in flows {
            used.workloads.extend([flow.source, flow.destination]);
            used.services.insert(flow.service);
        }
        used
    }
}

impl Adopted {
    /// From what an earlier agent left: the maps, and the live connections, which may be older still.
    pub fn of(state: &KernelState, live: impl Iterator<Item = (FlowKey, FlowEntry)>) -> Self {
        let mut adopted = Adopted::default();
        for (cookie, pod) in &state.pods {
            adopted.workload(pod.workload, Lead::Namespace(*cookie));
        }
        for (address, workload) in &state.workloads {
            adopted.workload(workload.workload, Lead::Address((*address).into()));
        }
        for (address, service) in &state.services {
            adopted.service(service.service, (*address).into());
        }
        for (key, flow) in live {
            adopted.workload(flow.source, Lead::Address(key.source.into()));
            adopted.workload(flow.destination, Lead::Address(key.destination.into()));
            adopted.service(flow.service, flow.dialled.into());
        }
        let others = [
            state.pods.values().map(|pod| pod.identity).collect::<Vec<_>>(),
            state.policies.keys().chain(state.lists.keys()).copied().collect(),
            state.members.iter().flat_map(|member| [member.set, member.identity]).collect(),
        ];
        let numbers = adopted.workloads.keys().chain(adopted.services.keys()).chain(others.iter().flatten());
        adopted.blocks = numbers.map(|number| numbers::block(*number)).collect();
        adopted
    }

    // What is said first is the better word; 0 is nobody's number.
    fn workload(&mut self, number: u32, lead: Lead) {
        if number != 0 {
            self.workloads.entry(number).or_insert_with(|| Alias::new(lead));
        }
    }

    fn service(&mut self, number: u32, dialled: SocketAddr) {
        if number != 0 {
            self.services.entry(number).or_insert_with(|| Alias::new(dialled));
        }
    }

    /// A base for this agent's numbers, from any random word, that leads to none of those that are in use.
    pub fn base(&self, random: u32) -> u32 {
        numbers::base_beside(random, &self.blocks)
    }

    /// Whether there is none (any more).
    pub fn is_empty(&self) -> bool {
        self.workloads.is_empty() && self.services.is_empty()
    }

    /// Finds out whose the numbers are, where that is not settled yet. `namespaces` are the pods of this node by the cookies of their
    /// network namespaces.
    pub fn settle(&mut self, snapshot: &Snapshot, namespaces: &HashMap<u64, WorkloadUid>) {
        for alias in self.workloads.values_mut().filter(|alias| alias.name.is_none()) {
            alias.name = match alias.lead {
                Lead::Namespace(cookie) => namespaces.get(&cookie).cloned(),
                Lead::Address(address) => snapshot.workload_at(address).map(|workload| workload.uid.clone()),
            };
        }
        for alias in self.services.values_mut().filter(|alias| alias.name.is_none()) {
            alias.name = snapshot.service_at(alias.lead).map(|(service, _)| service.name.clone());
        }
    }

    /// Lets go of what nothing carries, now and at the look before: what was carried by a connection that has just ended may yet be asked
    /// for. True if anything went.
    pub fn retain(&mut self, used: &Used) -> bool {
        fn sift<L, N>(aliases: &mut HashMap<u32, Alias<L, N>>, used: &HashSet<u32>) {
            aliases.retain(|number, alias| {
                let idle = !used.contains(number);
                let before = std::mem::replace(&mut alias.idle, idle);
                !(idle && before)
            });
        }
        let before = self.workloads.len() + self.services.len();
        sift(&mut self.workloads, &used.workloads);
        sift(&mut self.services, &used.services);
        self.workloads.len() + self.services.len() < before
    }

    /// Numbers of workloads whose name is known.
    pub fn workloads(&self) -> impl Iterator<Item = (u32, &WorkloadUid)> {
        self.workloads.iter().filter_map(|(number, alias)| Some((*number, alias.name.as_ref()?)))
    }

    /// Numbers of Services whose name is known.
    pub fn services(&self) -> impl Iterator<Item = (u32, &NamespacedName)> {
        self.services.iter().filter_map(|(number, alias)| Some((*number, alias.name.as_ref()?)))
    }
}

#[cfg(test)]
mod tests;
