//! What an operator sees of a node: its agent's metrics and access log.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mesh_lab::mesh::Metrics;
use serde_json::Value;

use super::bed::{LIMIT, MESH};
use crate::cluster;

/// The cluster's nodes.
pub fn nodes() -> Result<Vec<String>> {
    let names = cluster::ask(&["get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"])?;
    Ok(names.split_whitespace().map(str::to_owned).collect())
}

/// The metrics of a node's agent, scraped on the node.
pub fn metrics(node: &str) -> Result<Metrics> {
    let output = cluster::on(node, "curl")?
        .args(["-sS", "--fail", "--max-time", "5", "http://127.0.0.1:15020/metrics"])
        .output()
        .context("starting curl on a node")?;
    if !output.status.success() {
        bail!("the metrics of {node}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(Metrics::new(String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// A metric's sum over all nodes.
pub fn sum(name: &str, labels: &[(&str, &str)]) -> Result<f64> {
    let mut sum = 0.0;
    for node in nodes()? {
        sum += metrics(&node)?.sum(name, labels);
    }
    Ok(sum)
}

/// Connections that servers of a namespace took by mutual TLS.
pub fn mutual(namespace: &str) -> Result<f64> {
    taken(namespace, &[("connection_security_policy", "mutual_tls")])
}

/// Connections that servers of a namespace took from nobody that is known. What the kernel judged between two pods of one node is not among
/// them: it is not encrypted, but both are known.
pub fn in_the_clear(namespace: &str) -> Result<f64> {
    taken(namespace, &[("connection_security_policy", "none"), ("source_principal", "unknown")])
}

fn taken(namespace: &str, labels: &[(&str, &str)]) -> Result<f64> {
    let those = [("reporter", "destination"), ("destination_workload_namespace", namespace)];
    sum("istio_tcp_connections_opened_total", &[&those[..], labels].concat())
}

/// The newest line of any agent's access log that bears all these fields.
pub fn logged(fields: &[(&str, &str)]) -> Result<Value> {
    let start = Instant::now();
    loop {
        let pods = cluster::ask(&["-n", MESH, "get", "pods", "-l", "app.kubernetes.io/name=mesh-agent", "-o", "name"])?;
        for pod in pods.split_whitespace() {
            // An agent that is being replaced may be gone by then.
            let Ok(log) = cluster::ask(&["-n", MESH, "logs", pod, "--since=60s"]) else { continue };
            let lines = log.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let bears = |line: &Value| fields.iter().all(|(field, value)| line.get(field).and_then(Value::as_str) == Some(value));
            if let Some(line) = lines.into_iter().find(bears) {
                return Ok(line);
            }
        }
        if start.elapsed() > LIMIT {
            bail!("no access log has a line with {fields:?}");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A field of a line.
pub fn text<'a>(line: &'a Value, field: &str) -> &'a str {
    line.get(field).and_then(Value::as_str).unwrap_or("-")
}

/// UIDs and restarts of a namespace's pods: the same before and after, if nothing was restarted.
pub fn lives(namespace: &str) -> Result<String> {
    let path = "jsonpath={range .items[*]}{.metadata.name} {.metadata.uid} {.status.containerStatuses[*].restartCount}{\"\\n\"}{end}";
    cluster::ask(&["-n", namespace, "get", "pods", "-o", path])
}
