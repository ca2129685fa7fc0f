//! What became of a policy of the Gateway API that is attached to Services, in its status: for each such target, an entry under our
//! controller's name. Pure, as [`routes`]: entries of other controllers are kept as they are, stale ones of ours go (`PolicyStatus`).

use std::time::SystemTime;

use mesh_model::backend::TargetStatus;
use mesh_model::convert::{Provenance, Reading, convert_from};
use mesh_model::gateway::CONTROLLER_NAME;
use mesh_model::object::{Kind, Object};
use mesh_model::problem::Severity;
use mesh_model::route::ConditionStatus;
use mesh_model::service::NamespacedName;
use mesh_model::snapshot::Snapshot;
use serde_json::{Value, json};

use super::routes;

/// The kinds that get such entries.
pub const KINDS: [Kind; 1] = [Kind::XBackendTrafficPolicy];

/// Entries that a status may have, of all controllers.
const MOST: usize = 16;
/// Warnings that are told of a policy that is in force.
const TOLD: usize = 10;

/// What is to be said of an object as it is, each target that is a Service once: its number in `spec.targetRefs`, and `Accepted`. `None`
/// while the mesh has not followed it to this state.
pub fn said(object: &Value, snapshot: &Snapshot) -> Option<Vec<(usize, ConditionStatus)>> {
    let converted = convert_from(object, Provenance::ApiServer);
    match converted.reading {
        Reading::Good(Object::BackendTrafficPolicy(policy)) => {
            let known = of(snapshot, &policy.name).iter().filter(|status| status.generation == policy.generation);
            let warnings = converted.findings.iter().filter(|finding| finding.severity >= Severity::Warn).take(TOLD);
            let warnings: Vec<String> = warnings.map(|finding| format!("{}: {}", finding.field, finding.message)).collect();
            let said: Vec<_> = known.map(|status| (status.target, with(&status.accepted, &warnings))).collect();
            (said.len() == policy.targets.len()).then_some(said)
        }
        Reading::Foreign => Some(Vec::new()),
        _ => {
            let first = converted.findings.iter().find(|finding| finding.severity == Severity::Error);
            let message = first.map_or_else(|| "it cannot be read".to_owned(), |one| format!("{}: {}", one.field, one.message));
            let accepted = ConditionStatus { status: false, reason: "Invalid", message: message.into() };
            let targets = object.pointer("/spec/targetRefs").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            let ours = targets.iter().enumerate().filter(|(_, target)| target.get("kind").and_then(Value::as_str) == Some("Service"));
            Some(ours.map(|(index, _)| (index, accepted.clone())).collect())
        }
    }
}

fn with(accepted: &ConditionStatus, warnings: &[String]) -> ConditionStatus {
    if warnings.is_empty() {
        return accepted.clone();
    }
    ConditionStatus { message: format!("{}, but: {}", accepted.message, warnings.join("\n")).into(), ..accepted.clone() }
}

/// The statuses of a policy; they are sorted by it.
fn of<'a>(snapshot: &'a Snapshot, policy: &NamespacedName) -> &'a [TargetStatus] {
    let all = snapshot.backend_statuses();
    let start = all.partition_point(|status| status.policy < *policy);
    let end = all.partition_point(|status| status.policy <= *policy);
    all.get(start..end).unwrap_or_default()
}

/// A merge patch for the status of an object; `None` if that says it already. The patch fails with a conflict if the object has changed
/// since it was read.
pub fn patch(object: &Value, said: &[(usize, ConditionStatus)], now: SystemTime) -> Option<Value> {
    let present = object.pointer("/status/ancestors").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let (own, mut ancestors): (Vec<&Value>, Vec<&Value>) =
        present.iter().partition(|entry| entry.get("controllerName").and_then(Value::as_str) == Some(CONTROLLER_NAME));
    let generation = object.pointer("/metadata/generation").cloned().unwrap_or(Value::Null);
    let mut made: Vec<Value> = Vec::with_capacity(said.len());
    for (target, accepted) in said {
        let Some(target) = object.pointer("/spec/targetRefs").and_then(|targets| targets.get(*target)) else { continue };
        // As the mesh names a route's parent: the Service is what the policy is about, and nothing of the mesh stands above it.
        let mut ancestor = json!({ "group": "", "kind": "Service", "name": target.get("name") });
        if let (Some(ancestor), Some(namespace)) = (ancestor.as_object_mut(), object.pointer("/metadata/namespace")) {
            ancestor.insert("namespace".into(), namespace.clone());
        }
        if made.iter().any(|entry| entry.get("ancestorRef") == Some(&ancestor)) {
            continue;
        }
        let before = own.iter().find(|entry| entry.get("ancestorRef") == Some(&ancestor));
        let before = before.and_then(|entry| entry.get("conditions")).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let condition = routes::condition("Accepted", accepted, before, &generation, now);
        made.push(json!({ "ancestorRef": ancestor, "controllerName": CONTROLLER_NAME, "conditions": [condition] }));
    }
    made.truncate(MOST.saturating_sub(ancestors.len()));
    if own.len() == made.len() && made.iter().all(|entry| own.contains(&entry)) {
        return None;
    }
    ancestors.extend(&made);
    let version = object.pointer("/metadata/resourceVersion").cloned().unwrap_or(Value::Null);
    Some(json!({ "metadata": { "resourceVersion": version }, "status": { "ancestors": ancestors } }))
}

#[cfg(test)]
mod tests;
