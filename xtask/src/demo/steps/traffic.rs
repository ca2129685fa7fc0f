//! Calls that are allowed.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};

use super::{LIMIT, LOG_LIMIT, curl, growth, identities, metric};
use crate::demo::stage::{Stage, access_log};

pub fn page(stage: &mut Stage) -> Result<String> {
    read_page(stage, "http://10.96.0.10/")?;
    let (from, to) = (stage.frontend.clone(), stage.web.clone());
    identities(stage, &from, &to)
}

pub fn page_over_ipv6(stage: &mut Stage) -> Result<String> {
    read_page(stage, "http://[fd00:96::10]/")?;
    let address = stage.frontend.ipv6().context("frontend has no IPv6 address")?;
    let log = access_log(&stage.world, &stage.web)?;
    if !log.lines().any(|line| line.starts_with(&address.to_string())) {
        bail!("nginx did not log the client {address}:\n{log}");
    }
    Ok(format!("nginx logged the client as {address}, its own address"))
}

fn read_page(stage: &Stage, url: &str) -> Result<()> {
    let answer = curl(&stage.frontend, &["--fail", url])?;
    let page = answer.success()?;
    if !page.contains(&stage.secrets.page) {
        bail!("{url} gave another page: {page}");
    }
    Ok(())
}

pub fn cache(stage: &mut Stage) -> Result<String> {
    let redis = |words: &[&str]| -> Result<String> {
        let answer = stage.frontend.exec(&[&["redis-cli", "-h", "10.96.0.20"], words].concat(), LIMIT)?;
        Ok(answer.success()?.trim().to_owned())
    };
    let set = redis(&["set", "greeting", &stage.secrets.value])?;
    let got = redis(&["get", "greeting"])?;
    if set != "OK" || got != stage.secrets.value {
        bail!("set said {set:?}, get said {got:?}");
    }
    let (from, to) = (stage.frontend.clone(), stage.cache.clone());
    identities(stage, &from, &to)
}

pub fn greeting(stage: &mut Stage) -> Result<String> {
    let report =
        stage.frontend.peer(&["connect", "10.96.0.30:2525", "--read-first", "4", "--send", "QUIT\\r\\n", "--half-close"], LIMIT)?;
    if !report.received.starts_with(&format!("220 {}", stage.secrets.greeting)) || !report.received.ends_with("QUIT\r\n") {
        bail!("{report:?}");
    }
    let first = report.first_byte_micros.context("no first byte")? + report.connect_micros;
    if first > 1_000_000 {
        bail!("the greeting took {} ms: something waited for the client to speak", first / 1000);
    }
    Ok(format!("the greeting came {:.1} ms after connect() began", first as f64 / 1000.0))
}

pub fn addresses(stage: &mut Stage) -> Result<String> {
    let dialled: SocketAddr = "10.96.0.10:80".parse().context("address")?;
    let report = stage.frontend.connect(dialled, "GET / HTTP/1.0\\r\\n\\r\\n")?;
    if report.peer != Some(dialled) {
        bail!("getpeername gave {:?}, dialled was {dialled}", report.peer);
    }
    let address = stage.frontend.ipv4().to_string();
    let log = access_log(&stage.world, &stage.web)?;
    let Some(line) = log.lines().rev().find(|line| line.starts_with(&address)) else {
        bail!("nginx did not log the client {address}:\n{log}");
    };
    Ok(format!("client: connected to {dialled}\nnginx:  {line}"))
}

pub fn bulk(stage: &mut Stage) -> Result<String> {
    const SIZE: u64 = 8 << 20;
    let server = stage.web.serve("bulk", 9000)?;
    let report = stage.frontend.bulk(SocketAddr::new(stage.web.ipv4().into(), 9000), SIZE, SIZE, LIMIT)?;
    drop(server);
    if !report.ok {
        bail!("{report:?}");
    }
    let node = stage.web.node().name().to_owned();
    let fields = [("direction", "inbound"), ("destination_workload", "shop/web"), ("security", "mutual_tls"), ("outcome", "completed")];
    let line = stage.mesh.agent(&node)?.wait_for_access(&fields, LOG_LIMIT)?;
    let logged = ["bytes_received", "bytes_sent"].map(|field| line.get(field).and_then(serde_json::Value::as_u64).unwrap_or_default());
    if logged.iter().any(|bytes| *bytes < SIZE) {
        bail!("the agent logged {logged:?} bytes");
    }
    Ok(format!(
        "SHA-256 {}… there, {}… back",
        report.sent_sha256.get(..16).unwrap_or_default(),
        report.received_sha256.get(..16).unwrap_or_default()
    ))
}

pub fn same_node(stage: &mut Stage) -> Result<String> {
    let direct = ("nodemesh_kernel_verdicts_total", [("verdict", "direct")]);
    let bytes = ("istio_tcp_sent_bytes_total", [("reporter", "destination"), ("destination_workload", "web-local")]);
    let judged = metric(stage, "n1", direct.0, &direct.1)?;
    let sent = metric(stage, "n1", bytes.0, &bytes.1)?;
    let by_agent = metric(stage, "n1", "nodemesh_tunnel_streams_total", &[])?;
    let answer = curl(&stage.frontend, &["--fail", "--write-out", "%{local_port} %{time_total}", "http://10.96.0.11/"])?;
    let page = answer.success()?;
    if !page.contains(&stage.secrets.page) {
        bail!("another page: {page}");
    }
    growth(stage, "n1", direct.0, &direct.1, judged, 1.0)?;
    let counted = growth(stage, "n1", bytes.0, &bytes.1, sent, stage.secrets.page.len() as f64)?;
    let streams = metric(stage, "n1", "nodemesh_tunnel_streams_total", &[])? - by_agent;
    if streams != 0.0 {
        bail!("the agent carried {streams} connections");
    }
    Ok(format!("1 verdict `direct`, 0 connections through the agent, {counted} bytes counted by the kernel"))
}
