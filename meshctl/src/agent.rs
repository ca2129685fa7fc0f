//! What an agent says of itself, asked through the API server: its admin endpoint listens on its node's loopback only, and a pod's
//! port-forward begins there.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use futures_util::future::join_all;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cluster::{self, Cluster};

/// The admin endpoint.
pub const ADMIN: u16 = 15000;
/// Metrics and readiness.
const STATUS: u16 = 15020;
/// Longest answer.
const LONGEST: usize = 64 << 20;
/// What it means if an answer cannot be read.
pub const OTHER_VERSION: &str = "not what this meshctl knows: use the one of the mesh's version";
/// How long an agent may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// An answer.
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its body, as text.
    pub text: String,
    /// The agent's clock when it answered, to the second.
    pub clock: Option<SystemTime>,
}

/// Asks a port of a pod.
///
/// # Errors
/// The API server doesn't forward, or nobody listens.
pub async fn ask(cluster: &Cluster, pod: &str, port: u16, method: Method, path: &str) -> Result<Answer> {
    let asking = async {
        let mut forward = cluster.own::<Pod>().portforward(pod, &[port]).await?;
        let stream = forward.take_stream(port).context("the API server forwards no stream")?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, format!("127.0.0.1:{port}"))
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())?;
        let conversation = async {
            let response = sender.send_request(request).await?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, LONGEST).collect().await.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
            let date = head.headers.get(header::DATE).and_then(|date| date.to_str().ok());
            anyhow::Ok(Answer {
                status: head.status,
                text: String::from_utf8_lossy(&body).into_owned(),
                clock: date.and_then(|date| httpdate::parse_http_date(date).ok()),
            })
        };
        tokio::pin!(connection, conversation);
        tokio::select! {
            answer = &mut conversation => answer,
            // The connection may end with the last byte of an answer that is not yet read.
            _ = &mut connection => conversation.await,
        }
    };
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(answer) => answer.with_context(|| format!("asking port {port} of pod {pod} for {path}")),
        Err(_) => bail!("pod {pod} has not answered {path} on port {port} within {} s", PATIENCE.as_secs()),
    }
}

/// Asks the admin endpoint for a value.
///
/// # Errors
/// As [`ask`], or the agent's own.
pub async fn admin(cluster: &Cluster, pod: &str, path: &str) -> Result<Value> {
    let answer = ask(cluster, pod, ADMIN, Method::GET, path).await?;
    let value: Value = serde_json::from_str(&answer.text).with_context(|| format!("pod {pod} answers {path} with what is no JSON"))?;
    if !answer.status.is_success() {
        bail!("pod {pod}: {}", value.get("error").and_then(Value::as_str).unwrap_or(answer.status.as_str()));
    }
    Ok(value)
}

/// A pod of the agent's node that belongs into the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// namespace/name.
    pub name: String,
    /// `ready` or `held`.
    pub state: String,
    /// What it waits for.
    pub awaited: Option<String>,
}

/// A certificate of the agent's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Certificate {
    /// Whose.
    pub identity: String,
    /// `ready`, `pending` or `expired`.
    pub state: String,
    /// Last second of its validity, since 1970.
    pub not_after: Option<u64>,
    /// Attempts to renew it that failed since the last one that did not.
    #[serde(default)]
    pub failures: u32,
    /// Why the last one failed.
    pub last_error: Option<String>,
    /// Fingerprint of the root that it leads to.
    pub root: Option<String>,
    /// Fingerprints of the roots below which its holder believes peers.
    #[serde(default)]
    pub trusted: Vec<String>,
}

/// Connections of an agent's node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    /// That live.
    pub total: u64,
    /// That were opened since the agent's start.
    pub opened: Opened,
}

/// Connections since an agent's start, by how they were protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// By mutual TLS.
    pub mutual_tls: u64,
    /// Between two pods of the node, inside its kernel.
    pub within_node: u64,
    /// Taken from clients that proved nothing.
    pub plaintext: u64,
}

/// What an agent says, in whole or with the error that kept it from saying.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The node.
    pub node: String,
    /// The agent's pod.
    pub pod: String,
    /// Ready in the kubelet's eyes.
    pub ready: bool,
    /// What it waits for, in the agent's words; or why it could not be asked.
    pub awaited: Option<String>,
    /// Its version; none if it could not be asked for all that is here.
    pub version: Option<String>,
    /// Number of the configuration in force.
    pub config_version: Option<u64>,
    /// Pods of its node that belong into the mesh.
    pub workloads: Vec<Workload>,
    /// Their certificates.
    pub certificates: Vec<Certificate>,
    /// What is wrong with the configuration.
    pub problems: Vec<String>,
    /// Its connections.
    pub connections: Option<Connections>,
    /// The agent's clock minus ours, seconds; what is less than the resolution is 0.
    pub clock_ahead: Option<i64>,
}

impl Report {
    /// Pods that are held.
    pub fn held(&self) -> impl Iterator<Item = &Workload> {
        self.workloads.iter().filter(|workload| workload.state != "ready")
    }
}

/// Asks every agent at once.
///
/// # Errors
/// Their pods cannot be listed; an agent that does not answer is in its report.
pub async fn reports(cluster: &Cluster) -> Result<Vec<Report>> {
    let pods = cluster.pods(cluster::AGENT).await?;
    Ok(join_all(pods.iter().map(|pod| report(cluster, pod))).await)
}

async fn report(cluster: &Cluster, pod: &Pod) -> Report {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let mut report = Report { node: cluster::node(pod).to_owned(), pod: name.clone(), ready: cluster::is_ready(pod), ..Report::default() };
    if pod.metadata.deletion_timestamp.is_some() {
        report.awaited = Some("its end: it drains".to_owned());
        return report;
    }
    let before = SystemTime::now();
    match ask(cluster, &name, STATUS, Method::GET, "/healthz/ready").await {
        Ok(answer) => {
            report.clock_ahead = answer.clock.map(|clock| ahead(clock, before, SystemTime::now()));
            if !answer.status.is_success() {
                report.awaited = Some(answer.text.trim().trim_start_matches("waiting for: ").to_owned());
            }
        }
        Err(error) => {
            report.awaited = Some(cluster::trouble(pod).unwrap_or_else(|| format!("{error:#}")));
            return report;
        }
    }
    if let Err(error) = fill(cluster, &name, &mut report).await {
        report.awaited.get_or_insert_with(|| format!("{error:#}"));
    }
    report
}

async fn fill(cluster: &Cluster, pod: &str, report: &mut Report) -> Result<()> {
    let version = admin(cluster, pod, "/version").await?;
    let config = admin(cluster, pod, "/config").await?;
    report.config_version = config.get("version").and_then(Value::as_u64);
    report.workloads = list(admin(cluster, pod, "/workloads").await?, "/workloads")?;
    report.certificates = list(admin(cluster, pod, "/certs").await?, "/certs")?;
    report.problems = list(admin(cluster, pod, "/problems").await?, "/problems")?;
    let connections = admin(cluster, pod, "/connections?limit=0").await?;
    report.connections = Some(Connections::deserialize(connections).context(OTHER_VERSION)?);
    // By it others know that the report is whole.
    report.version = version.get("version").and_then(Value::as_str).map(str::to_owned);
    Ok(())
}

/// An agent that has nothing yet says null.
fn list<T: for<'a> Deserialize<'a>>(value: Value, what: &str) -> Result<Vec<T>> {
    if value.is_null() {
        return Ok(Vec::new());
    }
    serde_json::from_value(value).with_context(|| format!("{what}: {OTHER_VERSION}"))
}

/// By how many seconds a clock that is read to the second was ahead of ours, at some moment between two of ours.
fn ahead(clock: SystemTime, before: SystemTime, after: SystemTime) -> i64 {
    let second = Duration::from_secs(1);
    let seconds = |d: Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
    if let Ok(d) = clock.duration_since(after) {
        return seconds(d);
    }
    // It may have been up to the next second.
    before.duration_since(clock + second).map_or(0, |d| -seconds(d))
}

#[cfg(test)]
mod tests;
