//! The memory of an agent whose node has many pods, each with an identity of its own.

use std::path::Path as File;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_lab::manifests::{namespace, peer_authentication};
use mesh_lab::{Mesh, MeshOptions, PodSpec, World};
use serde::Serialize;

use super::load::{Load, SCRIPT};
use super::path::{BULK_PORT, HTTP_PORT, Path, PathId};
use super::stage::{nginx, prepare};
use super::usage::Watched;

const NAMESPACE: &str = "many";

/// Memory of the agent, in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct Memory {
    /// Pods of its node, each with its own service account.
    pub pods: u8,
    /// Once all have their certificates and nothing happens.
    pub idle_rss_bytes: u64,
    /// The most while one of them made requests over 32 connections.
    pub busy_rss_bytes: u64,
    /// From the agents' start until all pods were ready.
    pub ready_seconds: f64,
}

/// Starts such a node, and measures. The error is text because it goes into the report.
pub fn measure(binaries: &File, pods: u8) -> Result<Memory, String> {
    println!("a node with {pods} pods");
    try_measure(binaries, pods).map_err(|error| format!("{error:#}"))
}

fn try_measure(binaries: &File, pods: u8) -> Result<Memory> {
    let world = World::new("bench-many")?;
    let one = world.add_node("n1")?;
    let two = world.add_node("n2")?;
    for number in 1..=pods {
        let name = format!("pod-{number:03}");
        one.add_pod(PodSpec::new(NAMESPACE, &name).service_account(&name))?;
    }
    let client = one.pods().first().context("no pod")?.clone();
    let server = two.add_pod(PodSpec::new(NAMESPACE, "server").service_account("server"))?;
    prepare(&client)?;
    prepare(&server)?;
    let _nginx = nginx(&world, &server)?;
    let script = world.directory().join("summary.lua");
    std::fs::write(&script, SCRIPT).with_context(|| format!("writing {}", script.display()))?;
    let manifests = world.manifests();
    manifests.put("mesh", &[namespace(NAMESPACE, Some(true)), peer_authentication(NAMESPACE, "default", "STRICT")])?;
    manifests.put_world(&world)?;

    let mut options = MeshOptions::in_directory(binaries)?;
    options.patience = Duration::from_secs(60);
    let start = std::time::Instant::now();
    let mut mesh = Mesh::start(&world, &options)?;
    let agent = mesh.agent("n1")?;
    let mut ready = 0.0;
    mesh_lab::process::wait_until("every pod is ready", options.patience, || {
        ready = agent.metrics().map_or(0.0, |metrics| metrics.sum("nodemesh_pods_ready", &[]));
        ready >= f64::from(pods)
    })
    .with_context(|| format!("{ready} of {pods} pods are ready"))?;
    let ready_seconds = start.elapsed().as_secs_f64();
    let watched = Watched { pid: agent.process.pid(), cgroup: one.host("agent")?.cgroup };
    std::thread::sleep(Duration::from_secs(1));
    let idle_rss_bytes = watched.rss_bytes()?;
    let path = Path {
        id: PathId::CrossNode,
        client,
        address: server.ipv4().to_string(),
        server,
        http_port: HTTP_PORT,
        bulk_port: BULK_PORT,
        between: vec![watched],
        script,
        // No calls are made.
        message: std::path::PathBuf::new(),
    };
    let busy_rss_bytes = path.measure(Load::Many, Duration::from_secs(2))?.rss_bytes.context("no memory")?;
    ensure!(idle_rss_bytes > 0, "an agent without memory");
    drop((mesh, _nginx));
    world.remove()?;
    Ok(Memory { pods, idle_rss_bytes, busy_rss_bytes, ready_seconds })
}
