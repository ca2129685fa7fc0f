//! What became of a route of the Gateway API, in its status: for each parent that is a Service, an entry under our controller's name.
//! Pure: from the object and what the mesh made of it to a patch. Entries of other controllers are kept as they are, stale ones of ours
//! go (`RouteStatus` of Gateway API).

use std::time::SystemTime;

use mesh_model::convert::{Provenance, Reading, convert_from};
use mesh_model::gateway::{self, CONTROLLER_NAME};
use mesh_model::object::{Kind, Object, ObjectKey};
use mesh_model::problem::Severity;
use mesh_model::route::{ConditionStatus, ParentStatus};
use mesh_model::snapshot::Snapshot;
use serde_json::{Map, Value, json};

use super::conditions::{shortened, stamp};

/// The kinds that get such entries.
pub const KINDS: [Kind; 4] = [Kind::HttpRoute, Kind::GrpcRoute, Kind::TlsRoute, Kind::TcpRoute];

/// Entries that a status may have, of all controllers.
const MOST: usize = 32;

/// What is to be said about one parent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Said {
    /// Its number in `spec.parentRefs`.
    pub parent: usize,
    /// Type and content of each condition.
    pub conditions: Vec<(&'static str, ConditionStatus)>,
}

impl From<&ParentStatus> for Said {
    fn from(status: &ParentStatus) -> Said {
        let mut conditions = vec![("Accepted", status.accepted.clone()), ("ResolvedRefs", status.resolved.clone())];
        conditions.extend(status.partial.clone().map(|partial| ("PartiallyInvalid", partial)));
        Said { parent: status.parent, conditions }
    }
}

/// What is to be said of an object as it is, each of our parents once; `None` while the mesh has not followed it to this state.
pub fn said(object: &Value, snapshot: &Snapshot) -> Option<Vec<Said>> {
    let converted = convert_from(object, Provenance::ApiServer);
    match converted.reading {
        Reading::Good(Object::Route(route)) => {
            let ours = route.parents.iter().filter(|parent| parent.is_ours()).count();
            let known = of(snapshot, &route.key).iter().filter(|status| status.generation == route.generation);
            let said: Vec<Said> = known.map(Said::from).collect();
            (said.len() == ours).then_some(said)
        }
        Reading::Foreign => Some(Vec::new()),
        _ => {
            let first = converted.findings.iter().find(|finding| finding.severity == Severity::Error);
            let why = first.map_or_else(|| "it cannot be read".to_owned(), |one| format!("{}: {}", one.field, one.message));
            let message = format!("{why}; the route stays in force as it was read before, if it was").into();
            let accepted = ConditionStatus { status: false, reason: "UnsupportedValue", message };
            let parents = object.pointer("/spec/parentRefs").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            let ours = parents.iter().enumerate().filter(|(_, parent)| is_ours(parent));
            Some(ours.map(|(parent, _)| Said { parent, conditions: vec![("Accepted", accepted.clone())] }).collect())
        }
    }
}

/// The statuses of a route; they are sorted by it.
fn of<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> &'a [ParentStatus] {
    let all = snapshot.route_statuses();
    let start = all.partition_point(|status| status.route < *key);
    let end = all.partition_point(|status| status.route <= *key);
    all.get(start..end).unwrap_or_default()
}

/// As `ParentRef::is_ours`, of one that stands in an object of which not all can be read.
fn is_ours(parent: &Value) -> bool {
    let text = |key: &str| parent.get(key).and_then(Value::as_str);
    gateway::is_ours(text("group").unwrap_or(gateway::GROUP), text("kind").unwrap_or_default())
}

/// A merge patch for the status of an object; `None` if that says it already. The patch fails with a conflict if the object has changed
/// since it was read.
pub fn patch(object: &Value, said: &[Said], now: SystemTime) -> Option<Value> {
    let present = object.pointer("/status/parents").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let (own, mut parents): (Vec<&Value>, Vec<&Value>) =
        present.iter().partition(|entry| entry.get("controllerName").and_then(Value::as_str) == Some(CONTROLLER_NAME));
    let generation = object.pointer("/metadata/generation").cloned().unwrap_or(Value::Null);
    let mut made = Vec::with_capacity(said.len());
    for one in said {
        let Some(parent) = object.pointer("/spec/parentRefs").and_then(|parents| parents.get(one.parent)) else { continue };
        let before = own.iter().find(|entry| entry.get("parentRef") == Some(parent));
        let before = before.and_then(|entry| entry.get("conditions")).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let conditions: Vec<Value> =
            one.conditions.iter().map(|(kind, condition)| self::condition(kind, condition, before, &generation, now)).collect();
        made.push(json!({ "parentRef": parent, "controllerName": CONTROLLER_NAME, "conditions": conditions }));
    }
    made.truncate(MOST.saturating_sub(parents.len()));
    if own.len() == made.len() && made.iter().all(|entry| own.contains(&entry)) {
        return None;
    }
    parents.extend(&made);
    let version = object.pointer("/metadata/resourceVersion").cloned().unwrap_or(Value::Null);
    Some(json!({ "metadata": { "resourceVersion": version }, "status": { "parents": parents } }))
}

/// A condition; it has been so since when it was so before.
pub(super) fn condition(kind: &str, condition: &ConditionStatus, before: &[Value], generation: &Value, now: SystemTime) -> Value {
    let status = if condition.status { "True" } else { "False" };
    let before = before.iter().find(|one| one.get("type").and_then(Value::as_str) == Some(kind));
    let lasts = before.filter(|one| one.get("status").and_then(Value::as_str) == Some(status));
    let since = lasts.and_then(|one| one.get("lastTransitionTime")).cloned().unwrap_or_else(|| stamp(now));
    let entries = [
        ("type", json!(kind)),
        ("status", json!(status)),
        ("reason", json!(condition.reason)),
        ("message", json!(shortened(condition.message.to_string()))),
        ("lastTransitionTime", since),
    ];
    let mut made: Map<String, Value> = entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    if !generation.is_null() {
        made.insert("observedGeneration".into(), generation.clone());
    }
    made.into()
}

#[cfg(test)]
mod tests;
