//! What the kernel's maps should hold, and the writes that bring them there. Pure.
//!
//! Order matters: rules before those who are judged by them, endpoint lists before the services that point to them, and removals last,
//! the other way round. Between two writes the kernel then never sees a pointer to nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_common::addr::{Addr, Endpoint};
use mesh_common::names::map;
use mesh_common::policy::{Member, Program};
use mesh_common::service::ServiceEntry;
use mesh_common::workload::{PodEntry, WorkloadEntry};

/// The content of the maps that configuration decides.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KernelState {
    /// By netns cookie.
    pub pods: BTreeMap<u64, PodEntry>,
    /// By address.
    pub workloads: BTreeMap<Addr, WorkloadEntry>,
    /// By cluster IP and port.
    pub services: BTreeMap<Endpoint, ServiceEntry>,
    /// Endpoint lists by number; a number's list never changes.
    pub lists: BTreeMap<u32, Arc<[Endpoint]>>,
    /// By program number; a number's program never changes its sets' meaning.
    pub policies: BTreeMap<u32, Arc<Program>>,
    /// Which identity is in which set.
    pub members: BTreeSet<Member>,
    /// Destination ports that are left alone.
    pub excluded_ports: BTreeSet<u16>,
    /// Destination ranges that are left alone: prefix over 128 bits, address.
    pub excluded_cidrs: BTreeSet<(u8, Addr)>,
    /// Ports at which the agent takes connections to addresses of nobody that is known.
    pub egress_ports: BTreeSet<u16>,
}

impl KernelState {
    /// Entries of a map; 0 of one that it has no part in.
    pub fn entries(&self, name: &str) -> u64 {
        let count = match name {
            map::PODS => self.pods.len(),
            map::WORKLOADS => self.workloads.len(),
            map::SERVICES => self.services.len(),
            map::BACKENDS => self.lists.values().map(|list| list.len()).sum(),
            map::POLICIES => self.policies.len(),
            map::IDENTITY_SETS => self.members.len(),
            _ => 0,
        };
        count as u64
    }
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Insert or replace.
    Policy(u32, Arc<Program>),
    /// Insert.
    Member(Member),
    /// Insert.
    ExcludePort(u16),
    /// Insert.
    ExcludeCidr(u8, Addr),
    /// Insert.
    WatchPort(u16),
    /// Insert all endpoints of a list.
    List(u32, Arc<[Endpoint]>),
    /// Insert or replace.
    Service(Endpoint, ServiceEntry),
    /// Insert or replace.
    Workload(Addr, WorkloadEntry),
    /// Insert or replace.
    Pod(u64, PodEntry),
    /// Remove.
    ForgetPod(u64),
    /// Remove.
    ForgetWorkload(Addr),
    /// Remove.
    ForgetService(Endpoint),
    /// Remove a list of that many endpoints.
    ForgetList(u32, u32),
    /// Remove.
    IncludeCidr(u8, Addr),
    /// Remove.
    IncludePort(u16),
    /// Remove.
    UnwatchPort(u16),
    /// Remove.
    ForgetMember(Member),
    /// Remove.
    ForgetPolicy(u32),
}

/// The writes that turn `now` into `want`, in a safe order.
pub fn diff(now: &KernelState, want: &KernelState) -> Vec<Change> {
    let mut changes = Vec::new();
    changes.extend(want.members.difference(&now.members).map(|m| Change::Member(*m)));
    changed(&now.policies, &want.policies, |k, v| changes.push(Change::Policy(*k, v.clone())));
    changes.extend(want.excluded_ports.difference(&now.excluded_ports).map(|p| Change::ExcludePort(*p)));
    changes.extend(want.excluded_cidrs.difference(&now.excluded_cidrs).map(|(p, a)| Change::ExcludeCidr(*p, *a)));
    changes.extend(want.egress_ports.difference(&now.egress_ports).map(|p| Change::WatchPort(*p)));
    changed(&now.workloads, &want.workloads, |k, v| changes.push(Change::Workload(*k, *v)));
    changed(&now.pods, &want.pods, |k, v| changes.push(Change::Pod(*k, *v)));
    changed(&now.lists, &want.lists, |k, v| changes.push(Change::List(*k, v.clone())));
    changed(&now.services, &want.services, |k, v| changes.push(Change::Service(*k, *v)));

    gone(&now.pods, &want.pods, |k, _| changes.push(Change::ForgetPod(*k)));
    gone(&now.services, &want.services, |k, _| changes.push(Change::ForgetService(*k)));
    gone(&now.workloads, &want.workloads, |k, _| changes.push(Change::ForgetWorkload(*k)));
    gone(&now.lists, &want.lists, |k, v| changes.push(Change::ForgetList(*k, v.len() as u32)));
    changes.extend(now.excluded_cidrs.difference(&want.excluded_cidrs).map(|(p, a)| Change::IncludeCidr(*p, *a)));
    changes.extend(now.excluded_ports.difference(&want.excluded_ports).map(|p| Change::IncludePort(*p)));
    changes.extend(now.egress_ports.difference(&want.egress_ports).map(|p| Change::UnwatchPort(*p)));
    gone(&now.policies, &want.policies, |k, _| changes.push(Change::ForgetPolicy(*k)));
    changes.extend(now.members.difference(&want.members).map(|m| Change::ForgetMember(*m)));
    changes
}

fn changed<K: Ord, V: PartialEq>(now: &BTreeMap<K, V>, want: &BTreeMap<K, V>, mut write: impl FnMut(&K, &V)) {
    for (key, value) in want {
        if now.get(key) != Some(value) {
            write(key, value);
        }
    }
}

fn gone<K: Ord, V>(now: &BTreeMap<K, V>, want: &BTreeMap<K, V>, mut remove: impl FnMut(&K, &V)) {
    for (key, value) in now {
        if !want.contains_key(key) {
            remove(key, value);
        }
    }
}

#[cfg(test)]
mod tests;
