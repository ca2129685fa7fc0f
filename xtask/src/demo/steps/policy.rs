//! Calls that are not allowed, and policies that change.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mesh_lab::peer::{End, Report};

use super::{LIMIT, LOG_LIMIT, curl, text};
use crate::demo::stage::{Stage, access_log, put};

pub fn denied_across(stage: &mut Stage) -> Result<String> {
    let before = access_log(&stage.world, &stage.web)?;
    let answer = curl(&stage.batch, &["http://10.96.0.10/"])?;
    if answer.ok() {
        bail!("curl got an answer: {}", answer.stdout);
    }
    let fields = [("direction", "inbound"), ("source_workload", "shop/batch"), ("policy", "shop/no-batch-at-web")];
    let line = stage.mesh.agent("n2")?.wait_for_access(&fields, LOG_LIMIT)?;
    if access_log(&stage.world, &stage.web)? != before {
        bail!("nginx saw something");
    }
    Ok(format!(
        "curl: {}\nagent of n2: {} by policy {}: {}",
        answer.stderr.trim(),
        text(&line, "outcome"),
        text(&line, "policy"),
        text(&line, "reason")
    ))
}

pub fn denied_same_node(stage: &mut Stage) -> Result<String> {
    let report = stage.batch.peer(&["connect", "10.96.0.11:80", "--send", "GET / HTTP/1.0\\r\\n\\r\\n"], LIMIT)?;
    if report.connected {
        bail!("connect() succeeded: {report:?}");
    }
    let fields = [("source_workload", "shop/batch"), ("policy", "shop/no-batch-at-web-local")];
    let line = stage.mesh.agent("n1")?.wait_for_access(&fields, LOG_LIMIT)?;
    Ok(format!(
        "connect(): {} after {} µs\nagent of n1: {} by policy {}",
        report.error.unwrap_or_default(),
        report.connect_micros,
        text(&line, "outcome"),
        text(&line, "policy")
    ))
}

pub fn outsider(stage: &mut Stage) -> Result<String> {
    let before = access_log(&stage.world, &stage.web)?;
    let url = format!("http://{}:8080/", stage.web.ipv4());
    let answer = curl(&stage.outsider, &[&url])?;
    if answer.ok() {
        bail!("curl got an answer: {}", answer.stdout);
    }
    let client = stage.outsider.ipv4().to_string();
    let fields = [("direction", "inbound"), ("outcome", "mtls_required"), ("destination_workload", "shop/web")];
    let line = stage.mesh.agent("n2")?.wait_for_access(&fields, LOG_LIMIT)?;
    if !text(&line, "client").starts_with(&client) {
        bail!("the agent logged another client: {line}");
    }
    if access_log(&stage.world, &stage.web)? != before {
        bail!("nginx saw something");
    }
    Ok(format!("curl: {}\nagent of n2: {}", answer.stderr.trim(), text(&line, "reason")))
}

pub fn probe(stage: &mut Stage) -> Result<String> {
    let url = format!("http://{}:8080/", stage.web.ipv4());
    let answer = stage.web.node().exec_host(&["curl", "-sS", "--fail", "--max-time", "8", &url], LIMIT)?;
    if !answer.success()?.contains(&stage.secrets.page) {
        bail!("another page: {}", answer.stdout);
    }
    Ok("as a kubelet would: from the node's own namespace, outside the pods' cgroup, in plaintext".to_owned())
}

pub fn edited(stage: &mut Stage) -> Result<String> {
    let live = stage.frontend.spawn_peer(&["tick", "10.96.0.30:7000", "--interval", "10", "--seconds", "60"])?;
    mesh_lab::process::wait_until("the connection lives", LIMIT, || live.ticks() >= 3)?;
    put(&stage.world, "edited/40-greeter-clients.yaml", "40-greeter-clients.yaml")?;
    let edited = Instant::now();
    let report: Report = live.finish(LIMIT).context("the live connection was not ended")?;
    let took = edited.elapsed();
    if report.ticks == 0 || !matches!(report.end, End::Reset | End::Eof) {
        bail!("{report:?}");
    }
    let line = stage.mesh.agent("n2")?.wait_for_access(&[("direction", "inbound"), ("outcome", "policy_revoked")], LOG_LIMIT)?;
    let refused = stage.frontend.peer(&["connect", "10.96.0.30:7000", "--send", "again", "--half-close"], LIMIT)?;
    if refused.received_bytes > 0 {
        bail!("a new connection is still served: {refused:?}");
    }
    put(&stage.world, "40-greeter-clients.yaml", "40-greeter-clients.yaml")?;
    let mut last = Report::default();
    mesh_lab::process::wait_until("allowed again", Duration::from_secs(10), || {
        last = stage.frontend.peer(&["connect", "10.96.0.30:7000", "--send", "again", "--half-close"], LIMIT).unwrap_or_default();
        last.received == "again"
    })
    .with_context(|| format!("{last:?}"))?;
    Ok(format!(
        "{} rounds, then the file was replaced; {} ms later the connection was over ({:?}), a new one refused\nagent of n2: {}",
        report.ticks,
        took.as_millis(),
        report.end,
        text(&line, "reason")
    ))
}
