//! Where the tables are tried: two namespaces in the mesh, clients and servers on two nodes, and the exec that runs a table.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mesh_lab::ask::{Answered, Asked};

use super::case::Case;
use super::judge::judge;
use crate::e2e::bed::{Bed, apply, namespace, ready};
use crate::e2e::view::nodes;
use crate::image::catalog::PEER_NAME;
use crate::{cluster, conformance};

/// Where the Services and their routes are, and the client.
pub const PRODUCER: &str = "e2e-routes";
/// Where another client is, with routes of its own.
pub const CONSUMER: &str = "e2e-routes-consumer";

/// The client's pod in either namespace.
const CLIENT: &str = "client";
/// How long a mesh may take until objects are in force (the suite's `MaxTimeToConsistency`).
pub const CONSISTENT: Duration = Duration::from_secs(30);
/// So many runs in a row must hold.
const RUNS: u32 = 2;

/// Makes what the tables stand on, unless this run has made it: the mesh, the kinds, namespaces, pods, a Service for each server.
pub fn set(bed: &Bed) -> Result<()> {
    if !cluster::ask(&["get", "namespace", PRODUCER, "--ignore-not-found", "-o", "name"])?.trim().is_empty() {
        return Ok(());
    }
    if !Bed::is_installed()? {
        bed.install()?;
    }
    conformance::definitions()?;
    let nodes = nodes()?;
    let (near, far) = (nodes.first().context("a cluster without nodes")?, nodes.last().context("a cluster without nodes")?);
    for name in [PRODUCER, CONSUMER] {
        namespace(name, "nodemesh.dev/mesh: enabled")?;
    }
    let mut objects = pod(CLIENT, near, "client");
    for (name, node) in [("v1", near), ("v2", far), ("v3", far), ("shadow", far)] {
        let set = if name == "shadow" { "shadows" } else { "servers" };
        objects += &pod(name, node, set);
        objects += &service(name, &format!("{{app: {name}}}"));
    }
    // Of no pod, and of one on a port where nothing listens.
    objects += &service("nobody", "{app: nobody}");
    objects += "
apiVersion: v1
kind: Service
metadata: {name: deaf}
spec: {selector: {app: v1}, ports: [{name: http, port: 80, targetPort: 9}]}
---
";
    apply(PRODUCER, &objects)?;
    let away = pod(CLIENT, near, "client") + &pod("v4", far, "servers") + &service("v4", "{app: v4}");
    apply(CONSUMER, &away)?;
    ready(PRODUCER, &["--all"])?;
    ready(CONSUMER, &["--all"])
}

/// Removes all of it.
pub fn forget(_: &mut Bed) -> Result<String> {
    let words = ["delete", "namespace", PRODUCER, CONSUMER, "--ignore-not-found", "--timeout=60s"];
    cluster::ask(&words)?;
    Ok("their namespaces are gone".to_owned())
}

/// A pod of the peer program, which serves on port 8080 and answers as `name`.
pub fn pod(name: &str, node: &str, set: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}, set: {set}}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
    - {{name: peer, image: '{PEER_NAME}', imagePullPolicy: Never, args: [http, --listen, '[::]:8080', --name, {name}]}}
---
"
    )
}

/// A Service on the ports 80 (`http`) and 8080 (`http-alt`), both of the servers' port.
pub fn service(name: &str, selector: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  selector: {selector}
  ports: [{{name: http, port: 80, targetPort: 8080}}, {{name: http-alt, port: 8080, targetPort: 8080}}]
---
"
    )
}

/// Services of all servers, for routes to be attached to.
pub fn parents(names: &[&str]) -> String {
    names.iter().map(|name| service(name, "{set: servers}")).collect()
}

/// An HTTPRoute for port 80 of the Service of the same name; `rules` is a YAML list, indented by four.
pub fn route(name: &str, rules: &str) -> String {
    route_to(name, &format!("name: {name}, port: 80"), rules)
}

/// An HTTPRoute for a Service, by the fields of its `parentRefs[0]`.
pub fn route_to(name: &str, parent: &str, rules: &str) -> String {
    format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}}}
spec:
  parentRefs: [{{group: '', kind: Service, {parent}}}]
  rules:
{rules}
---
"
    )
}

/// Makes requests in the client's pod of a namespace, all by one exec.
pub fn ask(namespace: &str, asked: &[Asked]) -> Result<Vec<Vec<Answered>>> {
    let words = ["-n", namespace, "exec", "-i", CLIENT, "--", "/mesh-lab-peer", "ask"];
    let text = cluster::talk(&words, &serde_json::to_string(asked).context("a table as JSON")?)?;
    serde_json::from_str(&text).with_context(|| format!("what the client wrote: {text}"))
}

/// Another number each time: what servers count by a key begins anew.
pub fn fresh() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Applies objects in the producer's namespace and tries the table until it holds; says how long that took.
pub fn hold(bed: &Bed, objects: &str, cases: &[Case]) -> Result<String> {
    set(bed)?;
    apply(PRODUCER, objects)?;
    holds(PRODUCER, cases)
}

/// Tries a table in a namespace until it holds.
pub fn holds(namespace: &str, cases: &[Case]) -> Result<String> {
    let start = Instant::now();
    let (mut runs, mut held) = (0, 0);
    loop {
        let run = fresh();
        let asked: Vec<Asked> =
            cases.iter().map(|case| Asked { url: case.asked.url.replace("{run}", &run), ..case.asked.clone() }).collect();
        let begun = start.elapsed();
        let wrong = judge(cases, &ask(namespace, &asked)?);
        runs += 1;
        held = if wrong.is_empty() { held + 1 } else { 0 };
        if held == RUNS {
            let requests: u32 = asked.iter().map(|asked| asked.times).sum();
            return Ok(format!("{} rows, {requests} requests: each as it should be, in run {runs}", cases.len()));
        }
        if !wrong.is_empty() {
            if begun > CONSISTENT {
                bail!("{} of {} rows do not hold after {runs} runs:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}
