//! HTTPRoute, GRPCRoute, TLSRoute and TCPRoute (`gateway.networking.k8s.io`).
//!
//! Each rule, match and filter is read alone, so that one that is not understood takes no other with it: the route stays, and what depends
//! on the broken part is answered with an error. Routes of which no parent is a Service are another controller's and are not judged.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Input, Reading, created, port, typed};
use crate::gateway::{
    BackendRef, FaultReason, GROUP, HOSTNAME, ISTIO_GROUP, ObjectRef, ParentRef, RouteFilter, RouteObject, RouteRules, RuleFault,
};
use crate::object::{Kind, Object, ObjectKey};
use crate::problem::{FieldPath, Finding, Severity};
use crate::service::NamespacedName;

mod duration;
mod filters;
mod grpc;
mod http;
mod l4;
mod text;

pub(super) use duration::parse as gateway_duration;
pub(super) use http::session;

#[derive(Deserialize)]
struct Wire {
    metadata: ObjectMeta,
    spec: Option<SpecWire>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct SpecWire {
    parent_refs: Option<Vec<Value>>,
    hostnames: Option<Vec<String>>,
    rules: Option<Vec<Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ParentWire {
    group: Option<String>,
    kind: Option<String>,
    namespace: Option<String>,
    name: String,
    section_name: Option<String>,
    port: Option<i64>,
}

#[derive(Deserialize)]
struct BackendWire {
    group: Option<String>,
    kind: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
    port: Option<i64>,
    weight: Option<i64>,
    filters: Option<Vec<Value>>,
}

/// Largest weight (`BackendRef` of Gateway API).
const MAX_WEIGHT: i64 = 1_000_000;
/// What is said where requests are refused for it.
const ANSWERED: &str = "its requests are answered with 500";

pub(super) fn convert(input: &mut Input<'_>) -> Reading {
    if !may_be_ours(input) {
        return Reading::Foreign;
    }
    let failed = input.failed();
    let Some((wire, unknown)) = input.read_strictly::<Wire>() else { return Reading::Unreadable };
    let spec = wire.spec.unwrap_or_default();
    let refs = spec.parent_refs.unwrap_or_default();
    let parents = refs.iter().enumerate().filter_map(|(index, value)| parent(input, index, value)).collect();
    for field in unknown {
        input.warn(field, super::UNKNOWN_FIELD);
    }
    let hosts = spec.hostnames.unwrap_or_default();
    let mut rules = spec.rules.unwrap_or_default();
    if rules.is_empty() && input.kind == Kind::HttpRoute {
        // The standard's default: one rule for every request.
        rules.push(Value::Object(serde_json::Map::new()));
    }
    let at = FieldPath::of("spec.rules");
    let rules = match input.kind {
        Kind::TlsRoute | Kind::TcpRoute => l4::rules(input, &at, hosts, &rules),
        kind => {
            if !hosts.is_empty() {
                let message =
                    "are not looked at: the route is for whoever dials its Service, or a host of its ServiceEntry, by whatever name";
                input.findings.push(Finding::info(FieldPath::of("spec.hostnames"), message));
            }
            let read = |(i, rule)| match kind {
                Kind::GrpcRoute => grpc::rule(input, &at.index(i), i, rule),
                _ => http::rule(input, &at.index(i), i, rule),
            };
            RouteRules::Requests(rules.iter().enumerate().map(read).collect())
        }
    };
    if failed {
        return Reading::Unreadable;
    }
    let NamespacedName { namespace, name } = input.name.clone();
    Reading::Good(Object::Route(Arc::new(RouteObject {
        key: ObjectKey { kind: input.kind, namespace, name },
        created: created(&wire.metadata),
        generation: wire.metadata.generation,
        parents,
        rules,
    })))
}

/// Whether a parent is one that the mesh serves, as far as can be told of an object however bad the rest is.
fn may_be_ours(input: &Input<'_>) -> bool {
    match input.raw(&["spec", "parentRefs"]) {
        None => false,
        Some(Value::Array(parents)) => {
            parents.iter().any(|parent| matches!(parent.get("kind").and_then(Value::as_str), Some("Service" | "ServiceEntry")))
        }
        Some(_) => true,
    }
}

fn parent(input: &mut Input<'_>, index: usize, value: &Value) -> Option<ParentRef> {
    let at = FieldPath::of("spec.parentRefs").index(index);
    let wire: ParentWire = part(input, &at, value, "the route is not attached to it")?;
    let port = match wire.port.map(port).transpose() {
        Ok(port) => port,
        Err(message) => {
            input.error(at.key("port"), format!("{message}; the route is not attached there"));
            return None;
        }
    };
    if wire.group.as_deref().unwrap_or(GROUP) == GROUP {
        match wire.kind.as_deref() {
            Some("Service") => {
                let message = format!("is {GROUP} for a Service, which has none: the route is not attached to it; write group: \"\"");
                input.warn(at.key("group"), message);
            }
            Some("ServiceEntry") => {
                let message = format!("is {GROUP}, which has no ServiceEntry: the route is not attached to it; write group: {ISTIO_GROUP}");
                input.warn(at.key("group"), message);
            }
            _ => {}
        }
    }
    Some(ParentRef {
        index,
        group: group(wire.group.as_deref().unwrap_or(GROUP)),
        kind: wire.kind.as_deref().unwrap_or("Gateway").into(),
        namespace: wire.namespace.filter(|name| !name.is_empty()).map_or_else(|| input.name.namespace.clone(), Arc::from),
        name: wire.name.into(),
        section: wire.section_name.filter(|name| !name.is_empty()).map(Arc::from),
        port,
    })
}

/// The core group is written as nothing, or as people say it.
fn group(group: &str) -> Arc<str> {
    if group == "core" { "".into() } else { group.into() }
}

/// Reads a part of an object. Fields that it does not have become warnings; `None` if it does not fit, which is an error with `effect`.
fn part<T: DeserializeOwned>(input: &mut Input<'_>, at: &FieldPath, value: &Value, effect: &str) -> Option<T> {
    match typed::<T>(value) {
        Ok((read, unknown)) => {
            for field in unknown {
                input.warn(field.below(at), super::UNKNOWN_FIELD);
            }
            Some(read)
        }
        Err(finding) => {
            input.error(finding.field.below(at), format!("{}; {effect}", finding.message));
            None
        }
    }
}

/// The first error since there were so many findings, in words.
fn error_since(input: &Input<'_>, before: usize) -> Option<Arc<str>> {
    let finding = input.findings.iter().skip(before).find(|finding| finding.severity == Severity::Error)?;
    Some(format!("{}: {}", finding.field, finding.message).into())
}

/// What a rule's errors come to; incompatible filters have a reason of their own.
fn fault(input: &Input<'_>, before: usize, incompatible: bool) -> Option<RuleFault> {
    let reason = if incompatible { FaultReason::IncompatibleFilters } else { FaultReason::UnsupportedValue };
    error_since(input, before).map(|message| RuleFault { reason, message })
}

/// The backends of a rule, with their filters if they may have such.
fn backends(
    input: &mut Input<'_>,
    at: &FieldPath,
    values: Option<Vec<Value>>,
    mut filters: impl FnMut(&mut Input<'_>, &FieldPath, Option<Vec<Value>>) -> Vec<RouteFilter>,
) -> Vec<BackendRef> {
    let mut backends = Vec::new();
    for (i, value) in values.unwrap_or_default().iter().enumerate() {
        let at = at.index(i);
        let Some(mut wire) = part::<BackendWire>(input, &at, value, "its rule is answered with errors") else { continue };
        let weight = match wire.weight {
            None => 1,
            Some(weight) if (0..=MAX_WEIGHT).contains(&weight) => u32::try_from(weight).unwrap_or(0),
            Some(weight) => {
                let message = format!("{weight} is not a weight; write a number from 0 to {MAX_WEIGHT}");
                input.error(at.key("weight"), message);
                continue;
            }
        };
        let filters = filters(input, &at.key("filters"), wire.filters.take());
        if let Some(to) = reference(input, &at, wire) {
            backends.push(BackendRef { to, weight, filters });
        }
    }
    backends
}

/// Where a backend or a mirror goes.
fn reference(input: &mut Input<'_>, at: &FieldPath, wire: BackendWire) -> Option<ObjectRef> {
    let Some(name) = wire.name.filter(|name| !name.is_empty()) else {
        input.error(at.key("name"), "is missing; write the name of a Service, or a host");
        return None;
    };
    if wire.kind.as_deref() == Some(HOSTNAME) && wire.namespace.is_some() {
        let message = "stands beside a host, which is what the route's own namespace knows by that name; leave it out";
        input.error(at.key("namespace"), message);
        return None;
    }
    match wire.port.map(port).transpose() {
        Ok(port) => Some(ObjectRef {
            group: group(wire.group.as_deref().unwrap_or_default()),
            kind: wire.kind.as_deref().unwrap_or("Service").into(),
            namespace: wire.namespace.filter(|name| !name.is_empty()).map_or_else(|| input.name.namespace.clone(), Arc::from),
            name: name.into(),
            port,
        }),
        Err(message) => {
            input.error(at.key("port"), message);
            None
        }
    }
}

#[cfg(test)]
mod tests;
