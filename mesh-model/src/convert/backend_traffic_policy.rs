//! XBackendTrafficPolicy (`gateway.networking.x-k8s.io`, experimental): retry budgets and sessions of a Service. One that is not understood
//! in whole changes nothing: what was read of it before stays in force.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::fields::{Fields, spec};
use super::gateway_route::{gateway_duration, session};
use super::{Input, Reading};
use crate::backend::{BackendTrafficPolicy, RetryBudget};
use crate::object::Object;
use crate::problem::FieldPath;

/// Bounds of the budget's interval (`BudgetDetails.interval`).
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(3600);
/// Of the minimum's (`RequestRate`); the shortest is what is counted at least.
const SHORTEST_RATE: Duration = Duration::from_millis(10);
/// `RequestRate.count`.
const MOST: u64 = 1_000_000;
/// What follows of a mistake.
const UNCHANGED: &str = "the policy stays in force as it was read before, if it was";

pub(super) fn convert(input: &mut Input<'_>) -> Reading {
    if !may_be_ours(input) {
        return Reading::Foreign;
    }
    let Some((mut spec, created)) = spec(input) else { return Reading::Unreadable };
    let targets = spec.maps(input, "targetRefs").into_iter().enumerate().filter_map(|(i, map)| target(input, i, map)).collect();
    let retry_budget = spec.map(input, "retryConstraint").map(|map| budget(input, map));
    let session = spec.take("sessionPersistence").and_then(|(at, value)| session(input, &at, 0, value, UNCHANGED));
    spec.rest(input);
    if retry_budget.is_none() && session.is_none() && !input.failed() {
        input.warn(FieldPath::of("spec"), "asks for nothing; write retryConstraint or sessionPersistence");
    }
    let generation = input.raw(&["metadata", "generation"]).and_then(Value::as_i64);
    let name = input.name.clone();
    let policy = BackendTrafficPolicy { name, created, generation, targets, retry_budget, session };
    input.finish(Some(Object::BackendTrafficPolicy(Arc::new(policy))))
}

/// Whether a target is a Service, as far as can be told of an object however bad the rest is.
fn may_be_ours(input: &Input<'_>) -> bool {
    match input.raw(&["spec", "targetRefs"]) {
        Some(Value::Array(targets)) => targets.iter().any(|target| target.get("kind").and_then(Value::as_str) == Some("Service")),
        _ => true,
    }
}

fn target(input: &mut Input<'_>, index: usize, mut map: Fields<'_>) -> Option<(usize, Arc<str>)> {
    let at = map.at.clone();
    let (group, kind) = (map.text(input, "group").unwrap_or_default(), map.text(input, "kind").unwrap_or_default());
    let name = map.text(input, "name");
    if kind != "Service" || !matches!(group, "" | "core") {
        // Another controller's, but for the usual mistake.
        if kind == "Service" {
            input.error(at.key("group"), format!("is \"{group}\" for a Service, which has none; write group: \"\"; {UNCHANGED}"));
        }
        return None;
    }
    map.rest(input);
    if name.is_none() {
        input.error(at.key("name"), format!("is missing; write the Service's name; {UNCHANGED}"));
    }
    Some((index, name?.into()))
}

fn budget(input: &mut Input<'_>, mut map: Fields<'_>) -> RetryBudget {
    let mut read = RetryBudget::default();
    if let Some(mut budget) = map.map(input, "budget") {
        read.percent = budget.number(input, "percent", 0..=100).unwrap_or(read.percent);
        read.interval = interval(input, &mut budget, SHORTEST).unwrap_or(read.interval);
        budget.rest(input);
    }
    if let Some(mut rate) = map.map(input, "minRetryRate") {
        read.minimum = rate.number(input, "count", 0..=MOST).unwrap_or(read.minimum);
        read.minimum_interval = interval(input, &mut rate, SHORTEST_RATE).unwrap_or(read.minimum_interval);
        rate.rest(input);
    }
    map.rest(input);
    read
}

fn interval(input: &mut Input<'_>, map: &mut Fields<'_>, shortest: Duration) -> Option<Duration> {
    let at = map.at.key("interval");
    let text = map.text(input, "interval")?;
    match gateway_duration(text) {
        Ok(interval) if (shortest..=LONGEST).contains(&interval) => Some(interval),
        Ok(_) => {
            input.error(at, format!("\"{text}\" is not from {shortest:?} to 1h; {UNCHANGED}"));
            None
        }
        Err(message) => {
            input.error(at, format!("{message}; {UNCHANGED}"));
            None
        }
    }
}

#[cfg(test)]
mod tests;
