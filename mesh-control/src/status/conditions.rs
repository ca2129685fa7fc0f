//! What became of an object of the user's, as a condition in its status. Pure: from the object and what was found wrong with it to a patch.
//!
//! Istio's kinds get Istio's condition `Reconciled`, our own `Accepted`. Conditions of others in the same status are kept.

use std::time::SystemTime;

use mesh_model::object::Kind;
use mesh_model::problem::Severity;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Findings that are told in full; of the others there is the number.
const TOLD: usize = 20;
/// Longest message of a condition (`metav1.Condition`).
const LONGEST: usize = 32_768;

/// The kinds that get a condition.
pub const KINDS: [Kind; 8] = [
    Kind::PeerAuthentication,
    Kind::AuthorizationPolicy,
    Kind::RequestAuthentication,
    Kind::VirtualService,
    Kind::DestinationRule,
    Kind::ServiceEntry,
    Kind::Mesh,
    Kind::RateLimit,
];

/// One thing that was found: how bad, at which field (empty for the whole), in words.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Found {
    /// How much it weighs.
    pub severity: Severity,
    /// Path of the field.
    pub field: String,
    /// What is wrong, what follows, and what to do.
    pub message: String,
    /// The condition's reason if nothing weighs more, in place of the one of the severity.
    pub reason: Option<&'static str>,
}

/// What is to be said.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Verdict {
    status: &'static str,
    reason: &'static str,
    message: String,
}

fn judge(kind: Kind, found: &[Found]) -> Verdict {
    let worst = found.iter().map(|found| found.severity).max();
    let (status, reason) = match worst {
        None => ("True", condition(kind)),
        Some(Severity::Info) => ("True", "Noted"),
        // As the Gateway API has it: what can be done is done.
        Some(Severity::Warn) => ("True", "PartiallyInvalid"),
        Some(Severity::Error) => ("False", "Invalid"),
    };
    // A reason of its own only where there is no other.
    let mut own = found.iter().filter(|found| Some(found.severity) == worst).map(|found| found.reason);
    let first = own.next().flatten();
    let reason = first.filter(|_| own.all(|other| other == first)).unwrap_or(reason);
    let mut sorted: Vec<&Found> = found.iter().collect();
    sorted.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.field.cmp(&b.field)));
    let mut lines: Vec<String> = sorted
        .iter()
        .take(TOLD)
        .map(|found| if found.field.is_empty() { found.message.clone() } else { format!("{}: {}", found.field, found.message) })
        .collect();
    if let Some(more) = sorted.len().checked_sub(TOLD).filter(|more| *more > 0) {
        lines.push(format!("and {more} more: see `meshctl check`"));
    }
    let message = if lines.is_empty() { "understood in whole".to_owned() } else { lines.join("\n") };
    Verdict { status, reason, message: shortened(message) }
}

/// A message that fits into a condition.
pub(super) fn shortened(mut message: String) -> String {
    if message.len() > LONGEST {
        let end = (0..=LONGEST - 4).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
        message.truncate(end);
        message.push_str(" ...");
    }
    message
}

/// A moment, as the API server writes it.
pub(super) fn stamp(now: SystemTime) -> Value {
    json!(OffsetDateTime::from(now).replace_nanosecond(0).ok().and_then(|now| now.format(&Rfc3339).ok()))
}

/// The type of the condition, which is also the reason of one that is well.
fn condition(kind: Kind) -> &'static str {
    match kind {
        Kind::Mesh | Kind::RateLimit => "Accepted",
        _ => "Reconciled",
    }
}

/// A merge patch for the status of an object; `None` if that says it already. The patch fails with a conflict if the object has changed
/// since it was read.
pub fn patch(kind: Kind, object: &Value, found: &[Found], now: SystemTime) -> Option<Value> {
    let metadata = object.get("metadata");
    let generation = metadata.and_then(|metadata| metadata.get("generation")).cloned().unwrap_or(Value::Null);
    let version = metadata.and_then(|metadata| metadata.get("resourceVersion")).cloned().unwrap_or(Value::Null);
    let status = object.get("status");
    let present: Vec<Value> = status.and_then(|status| status.get("conditions")).and_then(Value::as_array).cloned().unwrap_or_default();
    let (own, mut conditions): (Vec<Value>, Vec<Value>) =
        present.into_iter().partition(|one| one.get("type").and_then(Value::as_str) == Some(condition(kind)));
    let own = own.into_iter().next();
    let verdict = judge(kind, found);
    let says = |key: &str, wanted: &str| own.as_ref().and_then(|own| own.get(key)).and_then(Value::as_str) == Some(wanted);
    let lasts = says("status", verdict.status);
    // A definition that does not have the field drops it.
    let observed = own.as_ref().and_then(|own| own.get("observedGeneration")).or_else(|| status?.get("observedGeneration"));
    if lasts
        && says("reason", verdict.reason)
        && says("message", &verdict.message)
        && observed.is_none_or(|observed| *observed == generation)
    {
        return None;
    }
    let since = own.as_ref().and_then(|own| own.get("lastTransitionTime")).filter(|_| lasts).cloned();
    let since = since.unwrap_or_else(|| stamp(now));
    let entries = [
        ("type", json!(condition(kind))),
        ("status", json!(verdict.status)),
        ("reason", json!(verdict.reason)),
        ("message", json!(verdict.message)),
        ("lastTransitionTime", since),
    ];
    let mut condition: Map<String, Value> = entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let mut status = Map::new();
    if !generation.is_null() {
        condition.insert("observedGeneration".into(), generation.clone());
        status.insert("observedGeneration".into(), generation);
    }
    conditions.push(condition.into());
    status.insert("conditions".into(), conditions.into());
    Some(json!({ "metadata": { "resourceVersion": version }, "status": status }))
}

#[cfg(test)]
mod tests;
