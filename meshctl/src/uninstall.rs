//! `meshctl uninstall`: takes the release away, then from every node what outlives an agent on purpose: programs, pins, rules.
//!
//! The programs stay in force without an agent so that none of its ends exposes its pods. So somebody must say, on each node, that the mesh
//! is gone: a pod that runs `mesh-agent cleanup` with the agent's image and mounts.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, ListParams, LogParams, ObjectMeta, PostParams};

use crate::chart;
use crate::cluster::{self, Cluster, Target};
use crate::output::Progress;

/// Label of the pods that clean up.
const CLEANUP: &str = "app.kubernetes.io/name=mesh-cleanup";
/// The authority's keys.
const CA_SECRET: &str = "nodemesh-ca";

/// What to take away.
#[derive(clap::Args)]
pub struct Arguments {
    /// Delete also the authority's keys and the definitions of kinds that the mesh installed, and with those every policy.
    #[arg(long)]
    purge: bool,
    /// Longest wait for a step, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    timeout: u64,
}

/// Uninstalls; false if a node is not clean.
///
/// # Errors
/// Helm's or the API server's.
pub async fn run(target: &Target, arguments: &Arguments) -> Result<bool> {
    let mut helm = chart::helm(target)?;
    let cluster = target.connect().await?;
    let limit = Duration::from_secs(arguments.timeout);
    let agents = cluster.own::<DaemonSet>().get_opt(cluster::DAEMON_SET).await.context("looking for DaemonSet mesh-agent")?;
    let nodes: BTreeSet<String> = cluster.pods(cluster::AGENT).await?.iter().map(|pod| cluster::node(pod).to_owned()).collect();
    helm.args(["uninstall", chart::RELEASE, "--ignore-not-found", "--wait", "--timeout"]).arg(format!("{}s", arguments.timeout));
    if !helm.status().context("starting helm")?.success() {
        bail!("helm has not uninstalled the release; it has said why");
    }
    let clean = match agents {
        Some(agents) => {
            gone(&cluster, cluster::AGENT, limit).await?;
            clean_up(&cluster, &agents, &nodes, limit).await?
        }
        None => {
            eprintln!("there is no DaemonSet mesh-agent in namespace {}: no node was cleaned", cluster.namespace);
            true
        }
    };
    if arguments.purge {
        purge(&cluster).await?;
    }
    Ok(clean)
}

async fn gone(cluster: &Cluster, selector: &str, limit: Duration) -> Result<()> {
    let mut progress = Progress::new();
    let waiting = async {
        loop {
            let left = cluster.pods(selector).await?.len();
            if left == 0 {
                return anyhow::Ok(());
            }
            progress.say(&format!("waiting for {left} agents to drain and end"));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let result = tokio::time::timeout(limit, waiting).await;
    progress.done();
    result.unwrap_or_else(|_| bail!("agents have not ended within {} s: nodes are not cleaned; run this again", limit.as_secs()))
}

async fn clean_up(cluster: &Cluster, agents: &DaemonSet, nodes: &BTreeSet<String>, limit: Duration) -> Result<bool> {
    let pods: Api<Pod> = cluster.own();
    for node in nodes.iter().filter(|node| !node.is_empty()) {
        let pod = cleanup_pod(agents, node).context("DaemonSet mesh-agent has no container agent: clean up by hand")?;
        pods.create(&PostParams::default(), &pod).await.with_context(|| format!("starting the pod that cleans node {node}"))?;
    }
    let mut progress = Progress::new();
    let waiting = async {
        loop {
            let list = cluster.pods(CLEANUP).await?;
            let left = list.iter().filter(|pod| phase(pod) != "Succeeded").count();
            if left == 0 {
                return anyhow::Ok(());
            }
            progress.say(&format!("cleaning nodes: {} of {} done", list.len() - left, list.len()));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let result = tokio::time::timeout(limit, waiting).await;
    progress.done();
    if let Ok(result) = &result
        && let Err(error) = result
    {
        bail!("{error:#}");
    }
    for pod in cluster.pods(CLEANUP).await? {
        let name = pod.metadata.name.clone().unwrap_or_default();
        if phase(&pod) != "Succeeded" {
            let said = pods.logs(&name, &LogParams { tail_lines: Some(20), ..LogParams::default() }).await.unwrap_or_default();
            let why = cluster::trouble(&pod).unwrap_or_default();
            eprintln!("node {} is not clean: {why} {}", cluster::node(&pod), said.trim());
        }
    }
    if result.is_err() {
        eprintln!("their pods are left for you to look at: kubectl -n {} get pods -l {CLEANUP}", cluster.namespace);
        return Ok(false);
    }
    pods.delete_collection(&DeleteParams::default(), &ListParams::default().labels(CLEANUP)).await.context("deleting the cleaners")?;
    eprintln!("{} nodes cleaned", nodes.len());
    Ok(true)
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// The agent's own pod, on one node, with another command, without what needed the mesh: its tokens and the authority's roots.
fn cleanup_pod(agents: &DaemonSet, node: &str) -> Option<Pod> {
    let mut spec = agents.spec.as_ref()?.template.spec.clone()?;
    let mut container = spec.containers.into_iter().find(|container| container.name == "agent")?;
    let needed = |volume: &k8s_openapi::api::core::v1::Volume| volume.host_path.is_some() || volume.empty_dir.is_some();
    let volumes: Vec<_> = spec.volumes.take().unwrap_or_default().into_iter().filter(needed).collect();
    if let Some(mounts) = &mut container.volume_mounts {
        mounts.retain(|mount| volumes.iter().any(|volume| volume.name == mount.name));
    }
    container.name = "cleanup".to_owned();
    container.args = Some(vec!["cleanup".to_owned()]);
    (container.readiness_probe, container.liveness_probe, container.startup_probe) = (None, None, None);
    spec.containers = vec![container];
    spec.volumes = Some(volumes);
    spec.node_name = Some(node.to_owned());
    // The agents' account is gone with the release. Cleaning asks nobody.
    (spec.service_account_name, spec.service_account, spec.automount_service_account_token) = (None, None, Some(false));
    spec.restart_policy = Some("OnFailure".to_owned());
    spec.termination_grace_period_seconds = Some(5);
    spec.tolerations = Some(vec![Toleration { operator: Some("Exists".to_owned()), ..Toleration::default() }]);
    let (label, value) = CLEANUP.split_once('=')?;
    let labels = [(label, value), ("app.kubernetes.io/part-of", "nodemesh"), ("nodemesh.dev/mesh", "disabled")];
    let metadata = ObjectMeta {
        generate_name: Some("mesh-cleanup-".to_owned()),
        labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
        ..ObjectMeta::default()
    };
    Some(Pod { metadata, spec: Some(spec), ..Pod::default() })
}

async fn purge(cluster: &Cluster) -> Result<()> {
    let parameters = DeleteParams::default();
    let found = |result: kube::Result<_>| match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(error) => Err(error),
    };
    found(cluster.own::<Secret>().delete(CA_SECRET, &parameters).await.map(drop)).context("deleting the authority's keys")?;
    found(cluster.own::<ConfigMap>().delete("nodemesh-ca-roots", &parameters).await.map(drop)).context("deleting the roots")?;
    let definitions = cluster.all::<CustomResourceDefinition>();
    for definition in definitions.list(&ListParams::default()).await.context("listing CustomResourceDefinitions")?.items {
        let name = definition.metadata.name.clone().unwrap_or_default();
        if ours(&definition, &cluster.namespace) && found(definitions.delete(&name, &parameters).await.map(drop))? {
            eprintln!("CustomResourceDefinition {name} deleted, with all objects of its kind");
        }
    }
    Ok(())
}

/// Whether a definition came with this mesh: our own kinds, and Istio's if it was we who installed them.
fn ours(definition: &CustomResourceDefinition, namespace: &str) -> bool {
    let annotation = |key: &str| definition.metadata.annotations.as_ref().and_then(|all| all.get(key)).map(String::as_str);
    definition.spec.group == "nodemesh.dev"
        || definition.spec.group == "security.istio.io"
            && annotation("meta.helm.sh/release-name") == Some(chart::RELEASE)
            && annotation("meta.helm.sh/release-namespace") == Some(namespace)
}

#[cfg(test)]
mod tests;
