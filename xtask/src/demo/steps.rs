//! The steps, in order. Each does something in the pods, then asks agents, programs and packets whether it was as claimed.

mod link;
mod operation;
mod policy;
mod traffic;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use mesh_lab::{Finished, Pod};
use serde_json::Value;

use super::stage::Stage;

/// A step: does it, and says what was seen.
pub type Step = fn(&mut Stage) -> Result<String>;

/// All steps by name.
pub const ALL: &[(&str, Step)] = &[
    ("every pod of the mesh has a certificate of its own", operation::identities),
    ("frontend reads a page from nginx on the other node, by Service address", traffic::page),
    ("the same over IPv6", traffic::page_over_ipv6),
    ("frontend uses redis on the other node", traffic::cache),
    ("a server that speaks first is heard at once", traffic::greeting),
    ("getpeername shows what was dialled; the server sees the client's own address", traffic::addresses),
    ("2 x 8 MiB pass at once, byte for byte", traffic::bulk),
    ("frontend reads a page on its own node: judged in the kernel, never left it", traffic::same_node),
    ("batch is denied by policy on the other node, before nginx sees a byte", policy::denied_across),
    ("batch is denied by policy on its own node: connect() itself fails", policy::denied_same_node),
    ("plaintext from outside the mesh is refused under STRICT mTLS", policy::outsider),
    ("a probe by the node itself passes under STRICT mTLS", policy::probe),
    ("a policy is edited: the live connection it forbids ends, and may return after", policy::edited),
    ("certificates are renewed while a connection goes on", operation::renewal),
    ("an agent is killed: nothing passes in the clear; a new one takes over", operation::crash),
    ("metrics tell it all, under Istio's names", operation::metrics),
    ("on the link between the nodes there was only TLS", link::only_tls),
];

const LIMIT: Duration = Duration::from_secs(20);
/// How long an agent may take until a connection that ended is in its log.
const LOG_LIMIT: Duration = Duration::from_secs(5);

/// curl in a pod, bounded.
fn curl(pod: &Pod, words: &[&str]) -> Result<Finished> {
    pod.exec(&[&["curl", "-sS", "--max-time", "8"], words].concat(), LIMIT)
}

fn text<'a>(line: &'a Value, field: &str) -> &'a str {
    line.get(field).and_then(Value::as_str).unwrap_or("-")
}

/// The line of an agent's access log about a finished connection between two pods, which must bear both identities.
fn finished(stage: &mut Stage, node: &str, direction: &str, from: &str, to: &str) -> Result<Value> {
    let fields = [("direction", direction), ("source_workload", from), ("destination_workload", to), ("outcome", "completed")];
    stage.mesh.agent(node)?.wait_for_access(&fields, LOG_LIMIT)
}

/// Both identities of a connection, as the agents of both sides logged them.
fn identities(stage: &mut Stage, from: &Pod, to: &Pod) -> Result<String> {
    let out = finished(stage, from.node().name(), "outbound", &from.full_name(), &to.full_name())?;
    let inward = finished(stage, to.node().name(), "inbound", &from.full_name(), &to.full_name())?;
    for (line, side) in [(&out, "client"), (&inward, "server")] {
        let seen = (text(line, "source_identity"), text(line, "destination_identity"), text(line, "security"));
        if seen != (from.spiffe_id().as_str(), to.spiffe_id().as_str(), "mutual_tls") {
            bail!("the {side}'s agent logged {seen:?}");
        }
    }
    Ok(format!("{} → {}, mutual TLS, logged alike on both nodes", from.spiffe_id(), to.spiffe_id()))
}

/// How much a metric grew: ask for it before, and after.
fn growth(stage: &mut Stage, node: &str, name: &str, labels: &[(&str, &str)], before: f64, at_least: f64) -> Result<f64> {
    let mut grown = 0.0;
    let agent = stage.mesh.agent(node)?;
    mesh_lab::process::wait_until(name, LOG_LIMIT, || {
        grown = agent.metrics().map_or(0.0, |metrics| metrics.sum(name, labels) - before);
        grown >= at_least
    })
    .with_context(|| format!("{name}{labels:?} of {node} grew by {grown}, not by {at_least}"))?;
    Ok(grown)
}

fn metric(stage: &mut Stage, node: &str, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
    Ok(stage.mesh.agent(node)?.metrics()?.sum(name, labels))
}
