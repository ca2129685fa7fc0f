//! Where requests go: weights, what is not there, what has no endpoints, other namespaces and protocols.

use anyhow::Result;

use super::case::{Case, Want, get};
use super::stage::{CONSUMER, hold, parents, route};
use crate::e2e::bed::Bed;

const RULES: &str = "
    - {matches: [{path: {value: /seventy}}], backendRefs: [{name: v1, port: 80, weight: 7}, {name: v2, port: 80, weight: 3}]}
    - {matches: [{path: {value: /alike}}], backendRefs: [{name: v1, port: 80}, {name: v2, port: 80}]}
    - {matches: [{path: {value: /none-of}}], backendRefs: [{name: v1, port: 80}, {name: v2, port: 80, weight: 0}, {name: missing, port: 80, weight: 0}]}
    - {matches: [{path: {value: /half}}], backendRefs: [{name: v1, port: 80}, {name: missing, port: 80}]}
    - {matches: [{path: {value: /missing}}], backendRefs: [{name: missing, port: 80}]}
    - {matches: [{path: {value: /no-port}}], backendRefs: [{name: v1, port: 81}]}
    - {matches: [{path: {value: /kind}}], backendRefs: [{group: example.com, kind: Bucket, name: v1, port: 80}]}
    - {matches: [{path: {value: /zero}}], backendRefs: [{name: v1, port: 80, weight: 0}]}
    - {matches: [{path: {value: /no-backend}}]}
    - {matches: [{path: {value: /nobody}}], backendRefs: [{name: nobody, port: 80}]}
    - {matches: [{path: {value: /deaf}}], backendRefs: [{name: deaf, port: 80}]}
    - {matches: [{path: {value: /away}}], backendRefs: [{name: v4, namespace: NAMESPACE, port: 80}]}
    - {matches: [{path: {value: /port}}], backendRefs: [{name: v3, port: 8080}]}
    - {matches: [{path: {value: /h2c}}], backendRefs: [{name: h2c, port: 80}]}
    - {matches: [{path: {value: /tls}}], backendRefs: [{name: tls, port: 80}]}
    - {matches: [{path: {value: /routed}}], backendRefs: [{name: paths-of-its-own, port: 80}]}
";

/// Protocols by `appProtocol`, and a Service whose own route is not followed.
const MORE: &str = "
apiVersion: v1
kind: Service
metadata: {name: h2c}
spec: {selector: {app: v2}, ports: [{port: 80, targetPort: 8080, appProtocol: kubernetes.io/h2c}]}
---
apiVersion: v1
kind: Service
metadata: {name: tls}
spec: {selector: {app: v2}, ports: [{port: 80, targetPort: 8080, appProtocol: kubernetes.io/wss}]}
---
apiVersion: v1
kind: Service
metadata: {name: paths-of-its-own}
spec: {selector: {app: v3}, ports: [{port: 80, targetPort: 8080}]}
---
";

const FOLLOWED: &str = "
    - {backendRefs: [{name: v1, port: 80}]}
";

fn cases() -> Vec<Case> {
    vec![
        get("7 to 3", "backends/seventy").times(100).wants(Want::Shares(&[("v1", 70), ("v2", 30)])),
        get("without weights all alike", "backends/alike").times(60).wants(Want::Shares(&[("v1", 50), ("v2", 50)])),
        get("weight 0 is none", "backends/none-of").times(20).by("v1"),
        get("what is not there keeps its share", "backends/half").times(60).wants(Want::Shares(&[("v1", 50), ("-", 50)])),
        get("a Service that is not there", "backends/missing").refused(500),
        get("a port that a Service does not have", "backends/no-port").refused(500),
        get("a kind that is no Service", "backends/kind").refused(500),
        get("all weights 0", "backends/zero").refused(500),
        get("no backend", "backends/no-backend").refused(500),
        get("a Service without endpoints", "backends/nobody").refused(503),
        get("a server that refuses connections", "backends/deaf").refused(503),
        get("another namespace needs no grant in a mesh", "backends/away").by("v4"),
        get("another port", "backends/port").by("v3"),
        get("HTTP/2 as the Service's port says", "backends/h2c").by("v2").wants(Want::Version("HTTP/2.0")),
        get("a protocol that is not spoken", "backends/tls").refused(500),
        get("a backend's own routes are not followed", "backends/routed").by("v3"),
        get("they are for whoever dials it", "paths-of-its-own/").by("v1"),
    ]
}

pub fn backends(bed: &mut Bed) -> Result<String> {
    let own = route("paths-of-its-own", FOLLOWED);
    let objects = parents(&["backends"]) + MORE + &route("backends", &RULES.replace("NAMESPACE", CONSUMER)) + &own;
    hold(bed, &objects, &cases())
}
