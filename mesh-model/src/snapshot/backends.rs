//! XBackendTrafficPolicies, by the Service that each is for, and what is to be said of them in their status.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Snapshot;
use super::build::Sorted;
use crate::backend::{BackendTrafficPolicy, RetryBudget, TargetStatus};
use crate::object::{Kind, Object, ObjectKey};
use crate::problem::{Origin, Severity};
use crate::route::{ConditionStatus, Session};
use crate::service::NamespacedName;

/// Reasons of `Accepted` that the Gateway API has for policies.
const ACCEPTED: &str = "Accepted";
const CONFLICTED: &str = "Conflicted";
const NOT_FOUND: &str = "TargetNotFound";

/// The policies in force and what is said of all.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Backends {
    by_service: HashMap<NamespacedName, Arc<BackendTrafficPolicy>>,
    statuses: Vec<TargetStatus>,
}

impl Snapshot {
    /// How many retries requests to a Service may have; `None` where no XBackendTrafficPolicy says anything.
    pub fn retry_budget(&self, service: &NamespacedName) -> Option<&RetryBudget> {
        self.backend_policy(service)?.retry_budget.as_ref()
    }

    /// Session persistence of a Service, for requests of which the route's rule has none.
    pub fn backend_session(&self, service: &NamespacedName) -> Option<&Session> {
        self.backend_policy(service)?.session.as_ref()
    }

    /// The XBackendTrafficPolicy in force for a Service.
    pub fn backend_policy(&self, service: &NamespacedName) -> Option<&Arc<BackendTrafficPolicy>> {
        let all = &self.backends.by_service;
        // Most meshes have none: nothing is hashed there.
        if all.is_empty() { None } else { all.get(service) }
    }

    /// What is to be said in the status of XBackendTrafficPolicies, one for each of their targets that is a Service, by policy and target.
    pub fn backend_statuses(&self) -> &[TargetStatus] {
        &self.backends.statuses
    }
}

/// Fills the snapshot's policies. After its Services.
pub(super) fn join(snapshot: &mut Snapshot, sorted: &mut Sorted<'_>, previous: Option<&Snapshot>) {
    let placed: Vec<(&Origin, &Arc<BackendTrafficPolicy>)> = sorted
        .all(Kind::XBackendTrafficPolicy)
        .filter_map(|(origin, object)| match object {
            Object::BackendTrafficPolicy(policy) => Some((origin, policy)),
            _ => None,
        })
        .collect();
    if placed.is_empty() {
        return;
    }
    let mut claims: BTreeMap<NamespacedName, Vec<(&Origin, &Arc<BackendTrafficPolicy>, usize)>> = BTreeMap::new();
    for (origin, policy) in placed {
        for (index, name) in &policy.targets {
            let service = NamespacedName { namespace: policy.name.namespace.clone(), name: name.clone() };
            claims.entry(service).or_default().push((origin, policy, *index));
        }
    }
    let mut backends = Backends::default();
    for (service, mut claims) in claims {
        claims.sort_by_key(|(_, policy, index)| (policy.created.unwrap_or(i64::MAX), policy.name.clone(), *index));
        let Some((_, first, _)) = claims.first().copied() else { continue };
        let missing = missing(snapshot, sorted, &service);
        for (origin, policy, index) in claims {
            let conflict = (policy.name != first.name).then(|| {
                let older = &first.name;
                (CONFLICTED, format!("Service {service} has {older}, which is older (or before it by name): this one has no effect there"))
            });
            let accepted = match missing.clone().map(|message| (NOT_FOUND, message)).or(conflict) {
                None => ConditionStatus { status: true, reason: ACCEPTED, message: "in force".into() },
                Some((reason, message)) => {
                    let field = format!("spec.targetRefs[{index}]");
                    sorted.problem(Severity::Warn, origin, object(policy), &field, message.clone());
                    ConditionStatus { status: false, reason, message: message.into() }
                }
            };
            let status = TargetStatus { policy: policy.name.clone(), target: index, accepted, generation: policy.generation };
            backends.statuses.push(status);
        }
        // One that says the same is the same, so that whoever holds it sees that.
        let before = previous.and_then(|previous| previous.backends.by_service.get(&service)).filter(|before| *before == first);
        backends.by_service.insert(service, before.unwrap_or(first).clone());
    }
    backends.statuses.sort();
    snapshot.backends = backends;
}

fn object(policy: &BackendTrafficPolicy) -> String {
    format!("{} {}", Kind::XBackendTrafficPolicy.name(), policy.name)
}

fn missing(snapshot: &Snapshot, sorted: &Sorted<'_>, service: &NamespacedName) -> Option<String> {
    if snapshot.services.contains_key(service) {
        return None;
    }
    let key = ObjectKey { kind: Kind::Service, namespace: service.namespace.clone(), name: service.name.clone() };
    Some(match sorted.unreadable.contains(&key) {
        true => format!("is Service {service}, which is not understood: the policy has no effect there until it is mended"),
        false => format!("is Service {service}, which does not exist or is only a DNS name: the policy has no effect there"),
    })
}

#[cfg(test)]
mod tests;
