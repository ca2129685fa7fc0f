//! HTTP where an object asks for it: routes, their filters, retries and timeouts, policy by method, path and header, and rate limits.

use std::net::SocketAddr;
use std::sync::LazyLock;

use mesh_lab::PodSpec;
use mesh_lab::manifests::service;
use mesh_lab::process::wait_until;
use serde_json::{Value, json};

use crate::world::*;

mod balance;
mod budget;
mod calls;
mod clients;
mod hostile;
mod jwks;
mod lending;
mod limit;
mod policy;
mod routing;
mod tls;
mod trace;
mod traffic;
mod wire;

/// The mesh that these tests share, with an HTTP server in each pod but the clients.
static HTTP: LazyLock<Cluster> = LazyLock::new(|| {
    let ground = ground(
        "http",
        &[
            ("n1", PodSpec::new("shop", "client").label("app", "client")),
            ("n1", PodSpec::new("shop", "v1").label("app", "echo").label("version", "v1")),
            ("n2", PodSpec::new("shop", "v2").label("app", "echo").label("version", "v2")),
            ("n2", PodSpec::new("shop", "v3").label("app", "other").label("version", "v3")),
            ("n1", PodSpec::new("away", "visitor").label("app", "client")),
            ("n2", PodSpec::new(OUTSIDE, "stranger").label("app", "stranger")),
            ("n2", PodSpec::new("shop", "guarded").label("app", "guarded")),
            ("n1", PodSpec::new("shop", "neighbour").label("app", "neighbour")),
            ("n1", PodSpec::new("shop", "second").service_account("second")),
            ("n2", PodSpec::new("shop", "limited")),
            ("n1", PodSpec::new("shop", "limited-near")),
            ("n2", PodSpec::new("shop", "keyed")),
            ("n2", PodSpec::new("shop", "tcp-limited")),
            ("n1", PodSpec::new("shop", "tcp-near")),
            ("n2", PodSpec::new("shop", "budgeted").label("app", "budgeted")),
        ],
    );
    ground.put("services", &services());
    let cluster = ground.start();
    for name in ["v1", "v2", "v3", "stranger", "guarded", "neighbour", "limited", "limited-near", "keyed", "budgeted"] {
        let server = cluster.pod(name).serve_http(name, 8080).expect("a server");
        // It ends with the world.
        std::mem::forget(server);
    }
    cluster
});

/// Services of these tests, each for a test or two: a route changes what its Service does for all.
fn services() -> Vec<Value> {
    let mut all = Vec::new();
    for (index, name) in PARENTS.iter().enumerate() {
        all.push(service("shop", name, &[&ip(index), &ip6(index)], "echo", &[("http", 80, 8080), ("web", 8080, 8080), ("raw", 90, 7070)]));
    }
    let pods =
        [("one", "v1"), ("two", "v2"), ("three", "v3"), ("guarded", "guarded"), ("neighbour", "neighbour"), ("budgeted", "budgeted")];
    for (index, (name, pod)) in pods.iter().enumerate() {
        let mut one = service("shop", name, &[&format!("10.97.1.{index}"), &format!("fd00:97::1:{index}")], "", &[("http", 80, 8080)]);
        let selector = if pod.starts_with('v') { json!({ "version": pod }) } else { json!({ "app": pod }) };
        one["spec"]["selector"] = selector;
        all.push(one);
    }
    all.push(service(OUTSIDE, "strange", &["10.97.2.1", "fd00:97::2:1"], "stranger", &[("http", 80, 8080)]));
    let secure = [("http", 80, 8443), ("http-mutual", 81, 8444), ("tcp-raw", 90, 8443), ("tcp-quiet", 91, 8445)];
    all.push(service(OUTSIDE, "secure", &["10.97.2.3", "fd00:97::2:3"], "stranger", &secure));
    all.push(service("shop", "inside", &["10.97.2.4", "fd00:97::2:4"], "other", &[("http", 80, 8443), ("tcp-raw", 90, 8443)]));
    all.push(service("shop", "bounded", &["10.97.2.5", "fd00:97::2:5"], "other", &[("tcp-idle", 91, 7075), ("tcp-most", 92, 7075)]));
    all.push(service("shop", "retried", &["10.97.2.6", "fd00:97::2:6"], "echo", &[("http", 80, 8080)]));
    all.push(service(OUTSIDE, "streams", &["10.97.2.7", "fd00:97::2:7"], "stranger", &[("http2", 80, 8080)]));
    all.push(service("shop", "few", &["10.97.2.8", "fd00:97::2:8"], "echo", &[("http", 80, 8080)]));
    all.push(service(OUTSIDE, "early", &["10.97.2.9", "fd00:97::2:9"], "stranger", &[("http", 80, 9310)]));
    all.push(service("shop", "hasty", &["10.97.2.10", "fd00:97::2:a"], "echo", &[("http", 80, 8080)]));
    all.push(service("shop", "given-up", &["10.97.2.11", "fd00:97::2:11"], "echo", &[("http", 80, 8080)]));
    all.push(service("shop", "nobody", &["10.97.2.2", "fd00:97::2:2"], "nobody", &[("http", 80, 8080)]));
    all
}

/// The Services that routes are made for.
const PARENTS: [&str; 17] = [
    "matching", "filters", "mirror", "timeout", "retry", "session", "upgrade", "grpc", "weights", "consumer", "opaque", "changing",
    "breaker", "hash", "budget", "sticky", "stays",
];

fn ip(index: usize) -> String {
    format!("10.97.0.{}", index + 1)
}

fn ip6(index: usize) -> String {
    format!("fd00:97::{}", index + 1)
}

/// `http://<address of the Service>` with a path, and the port if it is not 80.
fn url(parent: &str, rest: &str) -> String {
    let index = PARENTS.iter().position(|name| *name == parent).unwrap();
    format!("http://{}{rest}", ip(index))
}

fn address(parent: &str, port: u16) -> SocketAddr {
    let index = PARENTS.iter().position(|name| *name == parent).unwrap();
    format!("{}:{port}", ip(index)).parse().unwrap()
}

/// A backend of the namespace `shop`.
fn to(service: &str) -> Value {
    json!({ "name": service, "namespace": "shop", "port": 80 })
}

/// An HTTPRoute of a Service of `shop`, in a namespace.
fn route_in(namespace: &str, parent: &str, rules: &Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": { "namespace": namespace, "name": parent, "creationTimestamp": "2026-01-01T00:00:00Z" },
        "spec": {
            "parentRefs": [{ "group": "", "kind": "Service", "namespace": "shop", "name": parent, "port": 80 }],
            "rules": rules,
        },
    })
}

fn route(parent: &str, rules: &Value) -> Value {
    route_in("shop", parent, rules)
}

/// Puts a route in force.
fn apply_route(parent: &str, rules: &Value) {
    HTTP.apply(&format!("route-{parent}"), &[route(parent, rules)]);
}
