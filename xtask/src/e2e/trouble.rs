//! Agents that start while they cannot read the cluster: what they say, and that nothing goes in the clear meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::bed::{Bed, DEMO, LIMIT, curl, curl_until};
use super::view::in_the_clear;
use super::walk::{HELLO, URL};
use crate::cluster;

const BINDING: &str = "nodemesh-system-mesh-agent";

/// What a node's agent waits for, once its word bears `wanted`.
fn awaits(node: &str, wanted: &str) -> Result<String> {
    let start = Instant::now();
    let mut text = String::new();
    while start.elapsed() < LIMIT {
        let ready = ["-sS", "--max-time", "5", "http://127.0.0.1:15020/healthz/ready"];
        let output = cluster::on(node, "curl")?.args(ready).output().context("starting curl on a node")?;
        text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if text.contains(wanted) {
            return Ok(text);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    bail!("the agent of {node} does not say {wanted:?}, but: {text}")
}

fn client_node() -> Result<String> {
    cluster::ask(&["-n", DEMO, "get", "pod", "client", "-o", "jsonpath={.spec.nodeName}"])
}

/// The mesh works again, and nothing was in the clear.
fn recovered() -> Result<Duration> {
    let took = curl_until(DEMO, "client", URL, |answer| answer.ok && answer.text.contains(HELLO))?;
    if in_the_clear(DEMO)? > 0.0 {
        bail!("a call arrived in the clear");
    }
    Ok(took)
}

pub fn forbidden(bed: &mut Bed) -> Result<String> {
    let node = client_node()?;
    let binding = cluster::ask(&["get", "clusterrolebinding", BINDING, "-o", "json"])?;
    cluster::ask(&["delete", "clusterrolebinding", BINDING])?;
    let seen = (|| {
        cluster::kill_agent(&node)?;
        let said = awaits(&node, "forbidden")?;
        let answer = curl(DEMO, "client", URL)?;
        if answer.ok {
            bail!("an agent that knows no pods let a call of one through: {}", answer.text.trim());
        }
        let check = bed.says(&["check"])?;
        if !check.contains(&node) {
            bail!("meshctl check says nothing of {node}:\n{check}");
        }
        Ok(said)
    })();
    cluster::apply(&without_versions(&binding)?)?;
    let said = seen?;
    Ok(format!("{said}\nwith its permission it served again after {:.1} s", recovered()?.as_secs_f64()))
}

/// An object as it can be made anew.
fn without_versions(object: &str) -> Result<String> {
    let mut object: serde_json::Value = serde_json::from_str(object)?;
    if let Some(metadata) = object.get_mut("metadata").and_then(serde_json::Value::as_object_mut) {
        for key in ["resourceVersion", "uid", "creationTimestamp", "managedFields"] {
            metadata.remove(key);
        }
    }
    Ok(object.to_string())
}

pub fn no_api_server(_: &mut Bed) -> Result<String> {
    let node = client_node()?;
    cluster::pause_api_server(true)?;
    let seen = cluster::kill_agent(&node).and_then(|_| awaits(&node, "the first list of"));
    cluster::pause_api_server(false)?;
    let said = seen?;
    Ok(format!("{said}\nwith an API server it served again after {:.1} s", recovered()?.as_secs_f64()))
}
