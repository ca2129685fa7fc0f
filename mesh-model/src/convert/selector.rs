//! Which workloads a security object is about.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::{Input, typed};
use crate::policy::Scope;
use crate::problem::{FieldPath, Finding};

const ISTIO: &str = "networking.istio.io";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Selector {
    match_labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct TargetRef {
    group: Option<String>,
    kind: Option<String>,
    name: Option<String>,
    namespace: Option<String>,
}

/// Labels of `spec.selector`; empty if there is none. An error means that it could not be read: all workloads must then be meant.
pub(super) fn labels(input: &mut Input<'_>) -> BTreeMap<String, String> {
    let at = FieldPath::of("spec.selector");
    let Some(raw) = input.raw(&["spec", "selector"]) else { return BTreeMap::new() };
    match typed::<Selector>(raw) {
        Ok((selector, unknown)) if unknown.is_empty() => selector.match_labels.unwrap_or_default(),
        Ok((_, unknown)) => {
            for field in unknown {
                input.error(field.below(&at), "is not a field of a selector; write matchLabels");
            }
            BTreeMap::new()
        }
        Err(finding) => {
            input.findings.push(Finding { field: finding.field.below(&at), ..finding });
            BTreeMap::new()
        }
    }
}

/// The scope by `selector`, `targetRef` and `targetRefs`; the whole namespace if they cannot be read.
pub(super) fn scope(input: &mut Input<'_>) -> Scope {
    scope_of(input, &mut |input, at, _| {
        input.error(at, "names a ServiceEntry, behind which no agent of the mesh judges; say who knows its hosts by its exportTo");
    })
}

/// As [`scope`], with the names of targeted ServiceEntries: where there are no other targets, the scope is of no workload.
pub(super) fn scope_and_entries(input: &mut Input<'_>) -> (Scope, Vec<Arc<str>>) {
    let mut entries: Vec<Arc<str>> = Vec::new();
    let scope = scope_of(input, &mut |_, _, name| entries.push(name));
    entries.sort();
    entries.dedup();
    match (entries.is_empty(), scope) {
        (false, Scope::Namespace) => (Scope::Services(Vec::new()), entries),
        (false, Scope::Selector(_)) => {
            input.error(FieldPath::of("spec.selector"), BESIDE_TARGETS);
            (Scope::Namespace, entries)
        }
        (_, scope) => (scope, entries),
    }
}

const BESIDE_TARGETS: &str = "stands beside targetRefs, of which only one may be; remove one of them";

/// `entry` is told of each ServiceEntry that is targeted.
fn scope_of(input: &mut Input<'_>, entry: &mut dyn FnMut(&mut Input<'_>, FieldPath, Arc<str>)) -> Scope {
    let before = input.findings.len();
    let labels = labels(input);
    let services = services(input, entry);
    if !labels.is_empty() && !services.is_empty() {
        input.error(FieldPath::of("spec.selector"), BESIDE_TARGETS);
    }
    if input.findings.len() > before {
        Scope::Namespace
    } else if !services.is_empty() {
        Scope::Services(services)
    } else if !labels.is_empty() {
        Scope::Selector(labels)
    } else {
        Scope::Namespace
    }
}

fn services(input: &mut Input<'_>, entry: &mut dyn FnMut(&mut Input<'_>, FieldPath, Arc<str>)) -> Vec<Arc<str>> {
    let mut targets: Vec<(FieldPath, Value)> = Vec::new();
    if let Some(target) = input.raw(&["spec", "targetRef"]) {
        targets.push((FieldPath::of("spec.targetRef"), target.clone()));
    }
    let many = FieldPath::of("spec.targetRefs");
    match input.raw(&["spec", "targetRefs"]).cloned() {
        Some(Value::Array(list)) => targets.extend(list.into_iter().enumerate().map(|(i, target)| (many.index(i), target))),
        Some(_) => input.error(many, "is not a list; write a list of {kind: Service, name: …}"),
        None => {}
    }
    let mut names = Vec::new();
    for (at, target) in targets {
        let (target, unknown) = match typed::<TargetRef>(&target) {
            Ok(read) => read,
            Err(finding) => {
                input.findings.push(Finding { field: finding.field.below(&at), ..finding });
                continue;
            }
        };
        for field in unknown {
            input.error(field.below(&at), "is not a field of a target; write kind and name");
        }
        let group = target.group.unwrap_or_default();
        let kind = target.kind.unwrap_or_default();
        let is_entry = kind == "ServiceEntry" && group == ISTIO;
        if kind == "ServiceEntry" && !is_entry {
            input.error(at.key("group"), format!("\"{group}\" has no ServiceEntry; write {ISTIO}"));
        } else if !is_entry && (kind != "Service" || !(group.is_empty() || group == "core")) {
            input.error(at, format!("names a {group}/{kind}, of which the mesh has none; only a Service can be a target"));
        } else if target.namespace.is_some_and(|namespace| namespace != *input.name.namespace) {
            input.error(at.key("namespace"), "is another namespace than the policy's own; leave it out");
        } else if let Some(name) = target.name.filter(|name| !name.is_empty()) {
            match is_entry {
                true => entry(input, at, name.as_str().into()),
                false => names.push(name.as_str().into()),
            }
        } else {
            input.error(at.key("name"), format!("is missing; write the {kind}'s name"));
        }
    }
    names.sort();
    names.dedup();
    names
}
