//! Certificates, a crash, and what operators see.

use anyhow::{Context, Result, bail};

use super::{LIMIT, curl};
use crate::demo::stage::{CERTIFICATE_LIFETIME, Stage};

/// Node, metric, labels.
type Wanted<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)]);

const EXPIRY: &str = "nodemesh_certificate_expiration_timestamp_seconds";

/// End of validity of each identity's certificate on a node, in Unix seconds.
fn expiries(stage: &mut Stage, node: &str) -> Result<Vec<(String, f64)>> {
    let metrics = stage.mesh.agent(node)?.metrics()?;
    let name = |series: &str| series.split('"').nth(1).unwrap_or_default().to_owned();
    Ok(metrics.samples(EXPIRY, &[]).into_iter().map(|(series, end)| (name(series), end)).collect())
}

pub fn identities(stage: &mut Stage) -> Result<String> {
    let mut lines = Vec::new();
    for node in stage.world.nodes() {
        let has = expiries(stage, node.name())?;
        for pod in node.pods().iter().filter(|pod| pod.namespace() == "shop") {
            if !has.iter().any(|(identity, _)| *identity == pod.spiffe_id()) {
                bail!("{} has none for {}; it has {has:?}", node.name(), pod.spiffe_id());
            }
        }
        // The authority signs for a node what runs there, and no more than that was asked for.
        for (identity, _) in &has {
            if !node.pods().iter().any(|pod| pod.spiffe_id() == *identity) {
                bail!("{} has one for {identity}, which does not run there", node.name());
            }
        }
        let names: Vec<&str> = has.iter().filter_map(|(identity, _)| identity.rsplit('/').next()).collect();
        lines.push(format!("{}: {}", node.name(), names.join(", ")));
    }
    Ok(lines.join("\n"))
}

pub fn renewal(stage: &mut Stage) -> Result<String> {
    let seconds = CERTIFICATE_LIFETIME.as_secs();
    let live = stage.frontend.spawn_peer(&["tick", "10.96.0.30:7000", "--interval", "50", "--seconds", "600"])?;
    mesh_lab::process::wait_until("the connection lives", LIMIT, || live.ticks() >= 1)?;
    let before: Vec<_> = [expiries(stage, "n1")?, expiries(stage, "n2")?].concat();
    let mut after = Vec::new();
    mesh_lab::process::wait_until("every certificate is renewed", CERTIFICATE_LIFETIME, || {
        let now = [expiries(stage, "n1"), expiries(stage, "n2")].into_iter().flatten().flatten().collect::<Vec<_>>();
        after = now;
        before.iter().all(|(name, end)| after.iter().any(|(other, later)| other == name && later > end))
    })
    .with_context(|| format!("before {before:?}, after {after:?}"))?;
    let then = live.ticks();
    mesh_lab::process::wait_until("the connection goes on", LIMIT, || live.ticks() >= then + 3).with_context(|| live.process.log())?;
    let rounds = live.ticks();
    curl(&stage.frontend, &["--fail", "http://10.96.0.10/"])?.success().context("a new connection with the new certificates")?;
    Ok(format!(
        "all {} certificates (valid {seconds} s) were renewed before their end; one connection did {} rounds meanwhile",
        before.len(),
        rounds
    ))
}

pub fn crash(stage: &mut Stage) -> Result<String> {
    stage.mesh.agent("n1")?.crash();
    let refused = curl(&stage.frontend, &["http://10.96.0.10/"])?;
    if refused.ok() {
        bail!("without an agent curl got an answer: {}", refused.stdout);
    }
    let direct = curl(&stage.frontend, &[&format!("http://{}:8080/", stage.web.ipv4())])?;
    if direct.ok() {
        bail!("without an agent curl got an answer from the pod's address: {}", direct.stdout);
    }
    let options = stage.options.clone();
    stage.mesh.restart(&stage.world, "n1", &options)?;
    let answer = curl(&stage.frontend, &["--fail", "http://10.96.0.10/"])?;
    if !answer.success()?.contains(&stage.secrets.page) {
        bail!("another page: {}", answer.stdout);
    }
    Ok(format!("without agent: {}\nwith the next one: the page", refused.stderr.trim()))
}

pub fn metrics(stage: &mut Stage) -> Result<String> {
    let source = stage.frontend.spiffe_id();
    let wanted: [Wanted<'_>; 5] = [
        (
            "n2",
            "istio_tcp_connections_opened_total",
            &[
                ("reporter", "destination"),
                ("source_principal", &source),
                ("destination_workload", "web"),
                ("connection_security_policy", "mutual_tls"),
            ],
        ),
        (
            "n1",
            "istio_tcp_connections_opened_total",
            &[("reporter", "source"), ("destination_service_name", "web"), ("source_workload", "frontend")],
        ),
        ("n2", "istio_tcp_sent_bytes_total", &[("reporter", "destination"), ("destination_workload", "cache")]),
        ("n2", "nodemesh_policy_decisions_total", &[("decision", "deny")]),
        ("n2", "nodemesh_certificate_renewals_total", &[("result", "issued")]),
    ];
    let mut lines = Vec::new();
    for (node, name, labels) in wanted {
        let value = super::metric(stage, node, name, labels)?;
        if value <= 0.0 {
            bail!("{name}{labels:?} of {node} is {value}");
        }
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
        lines.push(format!("{node} {name}{{{}}} {value}", labels.join(",")));
    }
    Ok(lines.join("\n"))
}
