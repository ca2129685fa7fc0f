//! Pods that start: while their node's agent is away, and many at once.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::bed::{Bed, DEMO, LIMIT, MESH, apply, curl, curl_until, ready, web};
use super::view::{in_the_clear, logged, metrics, nodes, sum};
use super::walk::{HELLO, URL};
use crate::cluster;

/// A label that no node has.
const NOWHERE: &str = "nodemesh.dev/e2e-nowhere";
/// Pods that start at once, on all nodes together.
const CROWD: usize = 200;
/// How long they may take: two cores start them all.
const CROWD_LIMIT: &str = "--timeout=420s";

/// Takes every agent away, or brings them back.
fn agents(there: bool) -> Result<()> {
    let value = if there { "null" } else { "\"true\"" };
    let patch = format!("{{\"spec\":{{\"template\":{{\"spec\":{{\"nodeSelector\":{{\"{NOWHERE}\":{value}}}}}}}}}}}");
    cluster::ask(&["-n", MESH, "patch", "daemonset", "mesh-agent", "--type=merge", "-p", &patch])?;
    if there {
        return cluster::ask(&["-n", MESH, "rollout", "status", "daemonset/mesh-agent", "--timeout=120s"]).map(drop);
    }
    let start = Instant::now();
    while !cluster::ask(&["-n", MESH, "get", "pods", "-l", "app.kubernetes.io/name=mesh-agent", "-o", "name"])?.trim().is_empty() {
        if start.elapsed() > LIMIT {
            bail!("agents are still there after {} s", LIMIT.as_secs());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

pub fn without_agent(_: &mut Bed) -> Result<String> {
    let held = agents(false).and_then(|()| held_back());
    agents(true)?;
    let event = held?;
    let start = Instant::now();
    ready(DEMO, &["late"])?;
    let took = start.elapsed();
    curl_until(DEMO, "late", URL, |answer| answer.ok && answer.text.contains(HELLO))?;
    logged(&[("source_workload", "e2e-demo/late"), ("outcome", "completed")])?;
    if in_the_clear(DEMO)? > 0.0 {
        bail!("a call arrived in the clear");
    }
    cluster::ask(&["-n", DEMO, "delete", "pod", "late"])?;
    Ok(format!("{event}\nwith an agent again it was ready in {:.1} s", took.as_secs_f64()))
}

/// A pod that must not start: what its events say.
fn held_back() -> Result<String> {
    apply(DEMO, &web("late", ""))?;
    let start = Instant::now();
    let events = ["-n", DEMO, "get", "events", "--field-selector", "involvedObject.name=late,reason=FailedCreatePodSandBox"];
    loop {
        let told = cluster::ask(&[&events[..], &["-o", "jsonpath={.items[*].message}"]].concat())?;
        let phase = cluster::ask(&["-n", DEMO, "get", "pod", "late", "-o", "jsonpath={.status.phase} {.status.podIP}"])?;
        if phase.trim() != "Pending" && !phase.trim().is_empty() {
            bail!("without an agent the pod is {phase}");
        }
        if told.contains("nodemesh: pod e2e-demo/late is held") {
            let reason = told.rsplit("nodemesh: ").next().unwrap_or(&told);
            return Ok(reason.trim().chars().take(300).collect());
        }
        if start.elapsed() > LIMIT {
            bail!("the pod is held, and its events do not say why: {told}");
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Pods that start one after the other.
const ROW: usize = 20;

/// Whether the plug-in asked for so many pods between two looks.
fn all_asked(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>, pods: usize) -> Result<()> {
    let count = |at: &BTreeMap<String, f64>| at.get("+Inf").copied().unwrap_or_default();
    let asked = count(after) - count(before);
    if asked < pods as f64 {
        bail!("the plug-in asked for {asked} of {pods} pods: the others started without the mesh");
    }
    Ok(())
}

pub fn one_by_one(_: &mut Bed) -> Result<String> {
    let before = delays()?;
    for number in 0..ROW {
        let name = format!("row-{number}");
        apply(DEMO, &web(&name, ", row: \"true\""))?;
        ready(DEMO, &[&name])?;
    }
    let after = delays()?;
    cluster::ask(&["-n", DEMO, "delete", "pods", "-l", "row=true", "--timeout=60s"])?;
    all_asked(&before, &after, ROW)?;
    Ok(format!("what the mesh adds to a pod's start: median {}, p99 {}", quantile(&before, &after, 0.5), quantile(&before, &after, 0.99)))
}

fn crowd() -> String {
    format!(
        "
apiVersion: apps/v1
kind: Deployment
metadata: {{name: crowd}}
spec:
  replicas: {CROWD}
  selector: {{matchLabels: {{app: crowd}}}}
  template:
    metadata: {{labels: {{app: crowd}}}}
    spec:
      terminationGracePeriodSeconds: 0
      topologySpreadConstraints:
        - {{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {{matchLabels: {{app: crowd}}}}}}
      containers:
        - {{name: tools, image: docker.io/nodemesh/lab-tools:1, imagePullPolicy: Never, command: [sleep, infinity]}}
"
    )
}

/// What the plug-in's questions took on all nodes so far: how many up to each bound, in seconds.
fn delays() -> Result<BTreeMap<String, f64>> {
    let mut all = BTreeMap::new();
    for node in nodes()? {
        for (bound, count) in metrics(&node)?.buckets("nodemesh_cni_add_seconds") {
            *all.entry(bound).or_default() += count;
        }
    }
    Ok(all)
}

/// The bound below which a share of the observations between two looks lies, in words.
fn quantile(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>, share: f64) -> String {
    let mut bounds: Vec<(f64, f64)> = after
        .iter()
        .filter_map(|(bound, count)| Some((bound.parse().ok()?, count - before.get(bound).copied().unwrap_or_default())))
        .collect();
    bounds.sort_by(|a, b| a.0.total_cmp(&b.0));
    let total = bounds.last().map_or(0.0, |(_, count)| *count);
    let found = bounds.iter().find(|(_, count)| *count >= share * total);
    found
        .map_or("unknown".into(), |(bound, _)| if bound.is_finite() { format!("<= {} ms", bound * 1e3) } else { "above all bounds".into() })
}

pub fn many(bed: &mut Bed) -> Result<String> {
    let before = delays()?;
    apply(DEMO, &crowd())?;
    let start = Instant::now();
    let rolled = cluster::ask(&["-n", DEMO, "rollout", "status", "deployment/crowd", CROWD_LIMIT]);
    let took = start.elapsed();
    let result = rolled.and_then(|_| seen(bed, &before));
    cluster::ask(&["-n", DEMO, "delete", "deployment", "crowd", "--cascade=foreground", "--timeout=180s"])?;
    Ok(format!("{CROWD} pods ready in {:.0} s; {}", took.as_secs_f64(), result?))
}

fn seen(bed: &Bed, before: &BTreeMap<String, f64>) -> Result<String> {
    let after = delays()?;
    all_asked(before, &after, CROWD)?;
    // Each of a few, at the first attempt: on both nodes, to a server that is on one of them.
    let names = cluster::ask(&["-n", DEMO, "get", "pods", "-l", "app=crowd", "-o", "name"])?;
    for pod in names.split_whitespace().step_by(CROWD / 8) {
        let name = pod.trim_start_matches("pod/");
        let answer = curl(DEMO, name, URL)?;
        if !answer.ok || !answer.text.contains(HELLO) {
            bail!("{name}'s first call is not answered: {}", answer.text.trim());
        }
    }
    if in_the_clear(DEMO)? > 0.0 {
        bail!("a call arrived in the clear");
    }
    let served = sum("nodemesh_pods_ready", &[])?;
    if served < CROWD as f64 {
        bail!("{served} pods are in the mesh, of {CROWD} and more");
    }
    // Says by its exit code whether a pod is held.
    bed.told(&["status"])?;
    let mut lines =
        vec![format!("the plug-in's question: median {}, p99 {}", quantile(before, &after, 0.5), quantile(before, &after, 0.99))];
    for node in nodes()? {
        let pods = metrics(&node)?.sum("nodemesh_pods_ready", &[]);
        lines.push(format!("{node}: {pods} pods in the mesh, agent {:.1} MB", cluster::agent_memory(&node)? as f64 / 1e6));
    }
    Ok(lines.join("\n"))
}

/// Namespace of pods that nobody runs.
pub const FAKE: &str = "e2e-fake";
/// How many, on ten nodes without a kubelet.
const FAKES: usize = 1000;

fn fake_nodes() -> String {
    (0..10).map(|n| format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: e2e-fake-{n}, labels: {{e2e: fake}}}}\n")).collect()
}

fn fake_pods() -> String {
    let pod = |n: usize| {
        let address = format!("10.250.{}.{}", n / 250, n % 250 + 1);
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: fake-{n}, namespace: {FAKE}, labels: {{app: fake, n: \"{n}\"}}}}\n\
             spec: {{nodeName: e2e-fake-{}, terminationGracePeriodSeconds: 0, containers: [{{name: c, image: nothing}}]}}\n\
             status: {{phase: Running, podIP: {address}, podIPs: [{{ip: {address}}}]}}\n",
            n % 10
        )
    };
    (0..FAKES).map(pod).collect()
}

/// Bytes that a node's agent has received from the API server on connections that stand.
fn received(node: &str) -> Result<u64> {
    let output = cluster::on(node, "ss")?.args(["-Htinp", "state", "established", "( dport = 443 )"]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // A line of the socket, and one of its figures.
    let lines: Vec<&str> = text.lines().collect();
    let ours = lines.windows(2).filter_map(|pair| match pair {
        [socket, figures] if socket.contains("\"mesh-agent\"") => Some(*figures),
        _ => None,
    });
    let bytes = |line: &str| line.split_whitespace().find_map(|word| word.strip_prefix("bytes_received:")?.parse::<u64>().ok());
    Ok(ours.filter_map(bytes).sum())
}

pub fn thousand(_: &mut Bed) -> Result<String> {
    let before = taken()?;
    let seen = add_fakes(&before);
    let after = taken();
    cluster::ask(&["delete", "namespace", FAKE, "--ignore-not-found", "--timeout=120s"])?;
    forget_fakes()?;
    let (words, after) = (seen?, after?);
    let mut lines = vec![words];
    for (before, after) in before.iter().zip(&after) {
        let (megabytes, kilobytes) = (|bytes: u64| bytes as f64 / 1e6, after.received.saturating_sub(before.received) / 1000);
        lines.push(format!(
            "{}: agent {:.1} MB, before {:.1} MB; {kilobytes} kB from the API server",
            after.node,
            megabytes(after.memory),
            megabytes(before.memory)
        ));
    }
    Ok(lines.join("\n"))
}

/// Removes the nodes without a kubelet, also those of a run that crashed.
pub fn forget_fakes() -> Result<()> {
    cluster::ask(&["delete", "nodes", "-l", "e2e=fake", "--ignore-not-found"]).map(drop)
}

/// Makes the pods, and waits until every agent's kernel knows them: each is dialled by mutual TLS then, or not at all.
fn add_fakes(before: &[Taken]) -> Result<String> {
    cluster::apply(&fake_nodes())?;
    super::bed::namespace(FAKE, "nodemesh.dev/mesh: enabled")?;
    let pods = fake_pods();
    cluster::feed(&["create", "-f", "-"], &pods)?;
    let start = Instant::now();
    cluster::feed(&["replace", "--subresource=status", "-f", "-"], &pods)?;
    let written = start.elapsed();
    for Taken { node, known, .. } in before {
        while workloads(node)? < known + FAKES as f64 {
            if start.elapsed() > written + LIMIT {
                bail!("{node} does not know of all {FAKES} pods after {} s", LIMIT.as_secs());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    let known = start.elapsed().saturating_sub(written);
    Ok(format!("in every kernel {:.1} s after the last of {FAKES} writes, which took {:.0} s", known.as_secs_f64(), written.as_secs_f64()))
}

/// Pods that a node's kernel knows.
fn workloads(node: &str) -> Result<f64> {
    Ok(metrics(node)?.sum("nodemesh_ebpf_map_entries", &[("map", "WORKLOADS")]))
}

/// What a node's agent has taken, and what it knows.
struct Taken {
    node: String,
    memory: u64,
    received: u64,
    known: f64,
}

fn taken() -> Result<Vec<Taken>> {
    let real = nodes()?.into_iter().filter(|node| !node.starts_with("e2e-"));
    real.map(|node| {
        Ok(Taken { memory: cluster::agent_memory(&node)?, received: received(&node)?, known: workloads(&node).unwrap_or_default(), node })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_the_bound_of_its_bucket() {
        let of =
            |counts: [f64; 3]| -> BTreeMap<String, f64> { ["0.01", "0.05", "+Inf"].into_iter().map(str::to_owned).zip(counts).collect() };
        let (before, after) = (of([10.0, 10.0, 10.0]), of([60.0, 109.0, 110.0]));
        assert_eq!(quantile(&before, &after, 0.5), "<= 10 ms");
        assert_eq!(quantile(&before, &after, 0.99), "<= 50 ms");
        assert_eq!(quantile(&before, &after, 1.0), "above all bounds");
        assert_eq!(quantile(&before, &before, 0.5), "<= 10 ms");
    }
}
