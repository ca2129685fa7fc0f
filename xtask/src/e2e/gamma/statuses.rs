//! What the status of routes says: for each parent that is a Service one entry of ours, with reasons as the standard spells them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mesh_model::gateway::CONTROLLER_NAME;
use serde_json::Value;

use super::stage::{CONSISTENT, CONSUMER, PRODUCER, parents, route_to, service, set};
use crate::cluster;
use crate::e2e::bed::{Bed, apply};

const HEADLESS: &str = "
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, selector: {set: servers}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: secure}
spec: {selector: {app: v2}, ports: [{port: 80, targetPort: 8080, appProtocol: kubernetes.io/wss}]}
---
";

/// A name, the fields of its parent, and its rules in YAML's flow style.
const ROUTES: &[(&str, &str, &str)] = &[
    ("good", "name: statuses, port: 80", "{backendRefs: [{name: v1, port: 80}]}"),
    ("missing", "name: statuses, port: 80", "{backendRefs: [{name: missing, port: 80}, {name: v1, port: 80}]}"),
    ("no-such-port", "name: statuses, port: 80", "{backendRefs: [{name: v1, port: 81}]}"),
    ("kind", "name: statuses, port: 80", "{backendRefs: [{group: example.com, kind: Bucket, name: v1}]}"),
    ("protocol", "name: statuses, port: 80", "{backendRefs: [{name: secure, port: 80}]}"),
    (
        "mirror",
        "name: statuses, port: 80",
        "{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: missing, port: 80}}}], backendRefs: [{name: v1, port: 80}]}",
    ),
    ("granted", "name: statuses, port: 80", "{backendRefs: [{name: v4, namespace: CONSUMER, port: 80}]}"),
    ("no-parent", "name: missing, port: 80", "{backendRefs: [{name: v1, port: 80}]}"),
    ("no-port", "name: statuses, port: 81", "{backendRefs: [{name: v1, port: 80}]}"),
    ("no-section", "name: statuses, sectionName: admin", "{backendRefs: [{name: v1, port: 80}]}"),
    ("port-not-of-section", "name: statuses, sectionName: http-alt, port: 80", "{backendRefs: [{name: v1, port: 80}]}"),
    ("headless", "name: headless, port: 80", "{backendRefs: [{name: v1, port: 80}]}"),
    (
        "extension",
        "name: statuses, port: 80",
        "{filters: [{type: ExtensionRef, extensionRef: {group: x.example, kind: Thing, name: a}}], backendRefs: [{name: v1, port: 80}]}",
    ),
    (
        "partly",
        "name: statuses, port: 80",
        "{matches: [{path: {type: RegularExpression, value: '/('}}], backendRefs: [{name: v1, port: 80}]}\n    - {matches: [{path: {value: /fine}}], backendRefs: [{name: v1, port: 80}]}",
    ),
    ("loses", "name: contested, port: 80", "{backendRefs: [{name: v1, port: 80}]}"),
    ("loses-half", "name: contested", "{backendRefs: [{name: v1, port: 80}]}"),
];

/// Several parents, of which one is another controller's, and a route of a kind that goes before HTTPRoutes.
const OTHERS: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: parents}
spec:
  parentRefs:
    - {group: '', kind: Service, name: statuses, port: 80}
    - {name: somebodys-gateway}
    - {group: '', kind: Service, name: missing}
    - {group: '', kind: Service, name: statuses, port: 8080}
  rules: [{backendRefs: [{name: v1, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: wins}
spec:
  parentRefs: [{group: '', kind: Service, name: contested, port: 80}]
  rules: [{backendRefs: [{name: v1, port: 80}, {name: missing, port: 80, weight: 0}]}]
---
";

/// Kind and name of a route, number of our entry, and conditions by type: status and reason. `None` is for a type that is not there.
type Row = (&'static str, &'static str, usize, &'static [(&'static str, Option<(&'static str, &'static str)>)]);

const ACCEPTED: (&str, Option<(&str, &str)>) = ("Accepted", Some(("True", "Accepted")));
const RESOLVED: (&str, Option<(&str, &str)>) = ("ResolvedRefs", Some(("True", "ResolvedRefs")));
const WHOLE: (&str, Option<(&str, &str)>) = ("PartiallyInvalid", None);
const NOT_FOUND: (&str, Option<(&str, &str)>) = ("ResolvedRefs", Some(("False", "BackendNotFound")));
const NO_PARENT: (&str, Option<(&str, &str)>) = ("Accepted", Some(("False", "NoMatchingParent")));

const ROWS: &[Row] = &[
    ("HTTPRoute", "good", 0, &[ACCEPTED, RESOLVED, WHOLE]),
    ("HTTPRoute", "missing", 0, &[ACCEPTED, NOT_FOUND]),
    ("HTTPRoute", "no-such-port", 0, &[ACCEPTED, NOT_FOUND]),
    ("HTTPRoute", "kind", 0, &[ACCEPTED, ("ResolvedRefs", Some(("False", "InvalidKind")))]),
    ("HTTPRoute", "protocol", 0, &[ACCEPTED, ("ResolvedRefs", Some(("False", "UnsupportedProtocol")))]),
    ("HTTPRoute", "mirror", 0, &[ACCEPTED, NOT_FOUND]),
    ("HTTPRoute", "granted", 0, &[ACCEPTED, RESOLVED]),
    ("HTTPRoute", "no-parent", 0, &[NO_PARENT]),
    ("HTTPRoute", "no-port", 0, &[NO_PARENT]),
    ("HTTPRoute", "no-section", 0, &[NO_PARENT]),
    ("HTTPRoute", "port-not-of-section", 0, &[NO_PARENT]),
    ("HTTPRoute", "headless", 0, &[NO_PARENT]),
    ("HTTPRoute", "extension", 0, &[("Accepted", Some(("False", "UnsupportedValue"))), ("ResolvedRefs", Some(("False", "InvalidKind")))]),
    ("HTTPRoute", "partly", 0, &[ACCEPTED, RESOLVED, ("PartiallyInvalid", Some(("True", "UnsupportedValue")))]),
    ("HTTPRoute", "loses", 0, &[("Accepted", Some(("False", "Conflicted")))]),
    ("HTTPRoute", "loses-half", 0, &[ACCEPTED]),
    ("HTTPRoute", "parents", 0, &[ACCEPTED, RESOLVED]),
    ("HTTPRoute", "parents", 1, &[NO_PARENT]),
    ("HTTPRoute", "parents", 2, &[ACCEPTED, RESOLVED]),
    ("GRPCRoute", "wins", 0, &[ACCEPTED, NOT_FOUND]),
];

/// Routes of the producer's namespace, of both kinds.
fn routes() -> Result<Vec<Value>> {
    let text = cluster::ask(&["-n", PRODUCER, "get", "httproutes,grpcroutes", "-o", "json"])?;
    let list: Value = serde_json::from_str(&text).context("routes as JSON")?;
    Ok(list.get("items").and_then(Value::as_array).cloned().unwrap_or_default())
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn find<'a>(routes: &'a [Value], kind: &str, name: &str) -> Option<&'a Value> {
    routes.iter().find(|route| text(route, "/kind") == kind && text(route, "/metadata/name") == name)
}

/// Our entries.
fn entries(route: &Value) -> Vec<&Value> {
    let all = route.pointer("/status/parents").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    all.iter().filter(|entry| text(entry, "/controllerName") == CONTROLLER_NAME).collect()
}

/// What of a row does not hold.
fn miss(routes: &[Value], (kind, name, number, conditions): &Row) -> Vec<String> {
    let Some(route) = find(routes, kind, name) else { return vec![format!("{kind} {name} is gone")] };
    let entries = entries(route);
    let Some(entry) = entries.get(*number) else { return vec![format!("{kind} {name}: {} entries of ours in its status", entries.len())] };
    let parents = route.pointer("/spec/parentRefs").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let ours: Vec<&Value> = parents.iter().filter(|parent| text(parent, "/kind") == "Service").collect();
    let mut wrong = Vec::new();
    if ours.len() != entries.len() || ours.get(*number).copied() != entry.get("parentRef") {
        wrong.push(format!("{kind} {name}: its parents that are Services are {ours:?}, the entries {entries:?}"));
    }
    let found = entry.get("conditions").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for (wanted, expected) in *conditions {
        let condition = found.iter().find(|condition| text(condition, "/type") == *wanted);
        let seen = condition.map(|condition| (text(condition, "/status"), text(condition, "/reason")));
        if seen != *expected {
            let message = condition.map(|condition| text(condition, "/message")).unwrap_or_default();
            wrong.push(format!("{kind} {name}, entry {number}, {wanted}: expected {expected:?}, seen {seen:?} {message}"));
        }
    }
    let generation = route.pointer("/metadata/generation");
    if let Some(old) = found.iter().find(|condition| condition.get("observedGeneration") != generation) {
        wrong.push(format!(
            "{kind} {name}: {} is of generation {:?}, the object of {generation:?}",
            text(old, "/type"),
            old.get("observedGeneration")
        ));
    }
    wrong
}

/// Asks until all rows hold.
fn await_rows(rows: &[Row]) -> Result<()> {
    let start = Instant::now();
    loop {
        let routes = routes()?;
        let wrong: Vec<String> = rows.iter().flat_map(|row| miss(&routes, row)).collect();
        if wrong.is_empty() {
            return Ok(());
        }
        if start.elapsed() > CONSISTENT {
            bail!("{} things are not as they should be:\n{}", wrong.len(), wrong.join("\n"));
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}

pub fn statuses(bed: &mut Bed) -> Result<String> {
    set(bed)?;
    let mut objects = parents(&["statuses"]) + &service("contested", "{set: servers}") + HEADLESS + OTHERS;
    for (name, parent, rules) in ROUTES {
        objects += &route_to(name, parent, &format!("    - {}", rules.replace("CONSUMER", CONSUMER)));
    }
    apply(PRODUCER, &objects)?;
    await_rows(ROWS)?;
    // What is mended is told, for the object as it is then; what is lost too.
    apply(
        PRODUCER,
        &(service("missing", "{set: servers}")
            + &route_to("good", "name: statuses, port: 80", "    - {backendRefs: [{name: v9, port: 80}]}")),
    )?;
    cluster::ask(&["-n", PRODUCER, "delete", "grpcroute", "wins"])?;
    const LATER: &[Row] = &[
        ("HTTPRoute", "good", 0, &[ACCEPTED, NOT_FOUND]),
        ("HTTPRoute", "missing", 0, &[ACCEPTED, RESOLVED]),
        ("HTTPRoute", "mirror", 0, &[ACCEPTED, RESOLVED]),
        ("HTTPRoute", "no-parent", 0, &[ACCEPTED, RESOLVED]),
        ("HTTPRoute", "parents", 1, &[ACCEPTED, RESOLVED]),
        ("HTTPRoute", "loses", 0, &[ACCEPTED, RESOLVED]),
    ];
    await_rows(LATER)?;
    let names: Vec<&str> = ROUTES.iter().map(|(name, ..)| *name).chain(["parents"]).collect();
    cluster::ask(&[&["-n", PRODUCER, "delete", "httproute"][..], &names].concat())?;
    // Other tables have a backend that is missing.
    cluster::ask(&["-n", PRODUCER, "delete", "service", "missing"])?;
    Ok(format!("{} entries, and {} after changes", ROWS.len(), LATER.len()))
}
