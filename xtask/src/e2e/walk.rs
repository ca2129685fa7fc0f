//! The walk of a newcomer, as in the README.

use anyhow::{Context, Result, bail};

use super::bed::{Bed, DEMO, OUTSIDE, apply, curl, curl_until, namespace, ready, web};
use super::view::{lives, logged, mutual, sum, text};
use crate::{cluster, command};

/// Where hello-world is called.
pub const URL: &str = "http://hello-world";
/// What it answers.
pub const HELLO: &str = "Hello, Istio";

/// What a newcomer applies.
fn sample(file: &str) -> Result<String> {
    let path = command::root().join("deploy/samples").join(file);
    std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

pub fn before(_: &mut Bed) -> Result<String> {
    namespace(DEMO, "")?;
    namespace(OUTSIDE, "")?;
    apply(DEMO, &sample("hello-world.yaml")?)?;
    cluster::ask(&["-n", DEMO, "rollout", "status", "deployment/hello-world", "--timeout=60s"])?;
    apply(DEMO, &sample("client.yaml")?)?;
    apply(OUTSIDE, &web("tools", ""))?;
    ready(DEMO, &["--all"])?;
    ready(OUTSIDE, &["--all"])?;
    curl_until(DEMO, "client", URL, |answer| answer.ok && answer.text.contains(HELLO))?;
    if sum("istio_tcp_connections_opened_total", &[("destination_workload_namespace", DEMO)])? > 0.0 {
        bail!("an agent counted it: pods that nobody enrolled are none of the mesh's business");
    }
    Ok(format!("{HELLO:?} from {URL}, and no agent knows of it"))
}

pub fn enrol(_: &mut Bed) -> Result<String> {
    let lived = lives(DEMO)?;
    cluster::ask(&["label", "namespace", DEMO, "nodemesh.dev/mesh=enabled"])?;
    let mut calls = 0;
    let start = std::time::Instant::now();
    while mutual(DEMO)? < 1.0 {
        calls += 1;
        if start.elapsed() > super::bed::LIMIT {
            bail!("{calls} calls and none by mutual TLS");
        }
        // It may be refused for the moment in which one of them is in the mesh and the other is not yet.
        curl(DEMO, "client", URL)?;
    }
    let joined = start.elapsed();
    let answer = curl(DEMO, "client", URL)?;
    if !answer.ok || !answer.text.contains(HELLO) {
        bail!("in the mesh it is answered no more: {}", answer.text.trim());
    }
    if lives(DEMO)? != lived {
        bail!("pods were restarted:\n{lived}{}", lives(DEMO)?);
    }
    let line =
        logged(&[("direction", "inbound"), ("source_workload", "e2e-demo/client"), ("security", "mutual_tls"), ("outcome", "completed")])?;
    Ok(format!(
        "{} → {}, {:.1} s after the label",
        text(&line, "source_identity"),
        text(&line, "destination_identity"),
        joined.as_secs_f64()
    ))
}

pub fn seen(bed: &mut Bed) -> Result<String> {
    let status = bed.told(&["status"])?;
    let certs = bed.told(&["certs"])?;
    for identity in ["spiffe://cluster.local/ns/e2e-demo/sa/client", "spiffe://cluster.local/ns/e2e-demo/sa/default"] {
        if !certs.contains(identity) {
            bail!("meshctl certs does not name {identity}:\n{certs}");
        }
    }
    // The call before it is over, and shows all the same.
    let told: serde_json::Value = serde_json::from_str(&bed.told(&["status", "-o", "json"])?).context("meshctl status as JSON")?;
    let opened = |kind: &str| -> Vec<u64> {
        let nodes = told.get("agents").and_then(serde_json::Value::as_array).into_iter().flatten();
        nodes.filter_map(|node| node.pointer(&format!("/connections/opened/{kind}"))?.as_u64()).collect()
    };
    if opened("mutual_tls").contains(&0) || opened("mutual_tls").len() < 2 || opened("plaintext").iter().any(|count| *count > 0) {
        bail!("not mutual TLS on both nodes and nothing in the clear:\n{status}");
    }
    Ok(format!("{status}\n{}", on_the_wire()?))
}

/// What the network between the nodes sees, NetworkPolicies among it: the two pods' own addresses, and the tunnel's port.
fn on_the_wire() -> Result<String> {
    let address = |label: &str| {
        cluster::ask(&["-n", DEMO, "get", "pods", "-l", label, "-o", "jsonpath={.items[0].status.podIP}"])
            .map(|text| text.trim().to_owned())
    };
    let (client, server) = (address("app=client")?, address("app=hello-world")?);
    let node = cluster::ask(&["-n", DEMO, "get", "pod", "client", "-o", "jsonpath={.spec.nodeName}"])?;
    let look = "for n in /run/netns/*; do nsenter --net=$n ss -Htn state established '( dport = 15008 )'; done";
    let output = cluster::on(&node, "sh")?.args(["-c", look]).output().context("looking at a node's sockets")?;
    let sockets = String::from_utf8_lossy(&output.stdout).into_owned();
    let between = |line: &&str| line.contains(&format!("{client}:")) && line.contains(&format!("{server}:15008"));
    match sockets.lines().find(between) {
        Some(line) => Ok(format!("on the wire: {}", line.split_whitespace().skip(2).collect::<Vec<_>>().join(" → "))),
        None => bail!("no tunnel from {client} to {server}:15008 in\n{sockets}"),
    }
}

pub fn deny(_: &mut Bed) -> Result<String> {
    apply(DEMO, &sample("policy/no-client.yaml")?)?;
    let effective = curl_until(DEMO, "client", URL, |answer| !answer.ok)?;
    let line = logged(&[("direction", "inbound"), ("source_workload", "e2e-demo/client"), ("policy", "e2e-demo/no-client")])?;
    cluster::ask(&["-n", DEMO, "delete", "authorizationpolicy", "no-client"])?;
    let lifted = curl_until(DEMO, "client", URL, |answer| answer.ok)?;
    Ok(format!(
        "{}: {}; in force {:.2} s after `apply` ended, lifted {:.2} s after `delete` did (both with the call itself)",
        text(&line, "outcome"),
        text(&line, "reason"),
        effective.as_secs_f64(),
        lifted.as_secs_f64()
    ))
}

pub fn leave(_: &mut Bed) -> Result<String> {
    let lived = lives(DEMO)?;
    cluster::ask(&["label", "namespace", DEMO, "nodemesh.dev/mesh-"])?;
    let start = std::time::Instant::now();
    loop {
        let before = sum("istio_tcp_connections_opened_total", &[("destination_workload_namespace", DEMO)])?;
        let answer = curl(DEMO, "client", URL)?;
        if answer.ok && sum("istio_tcp_connections_opened_total", &[("destination_workload_namespace", DEMO)])? <= before {
            break;
        }
        if start.elapsed() > super::bed::LIMIT {
            bail!("calls are still in the mesh, or refused: {}", answer.text.trim());
        }
    }
    if lives(DEMO)? != lived {
        bail!("pods were restarted");
    }
    Ok(format!("without the mesh {:.1} s after the label went", start.elapsed().as_secs_f64()))
}
