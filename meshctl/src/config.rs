//! `meshctl config`: what an agent has in force, in its own words.

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use serde_json::{Value, json};

use crate::agent::admin;
use crate::cluster::{self, Cluster, Target};
use crate::output::Output;

/// Of whom.
#[derive(clap::Args)]
pub struct Arguments {
    /// A node, or a pod as namespace/name.
    #[arg(value_name = "NODE|NAMESPACE/POD")]
    of: String,
}

/// Shows it.
///
/// # Errors
/// The API server's or the agent's, or there is no such node or pod.
pub async fn run(target: &Target, output: Output, arguments: &Arguments) -> Result<bool> {
    let cluster = target.connect().await?;
    let value = match arguments.of.split_once('/') {
        None => {
            let pod = agent_of(&cluster, &arguments.of).await?;
            json!({
                "node": arguments.of,
                "config": admin(&cluster, &pod, "/config").await?,
                "workloads": admin(&cluster, &pod, "/workloads").await?,
                "policies": admin(&cluster, &pod, "/policies").await?,
                "problems": admin(&cluster, &pod, "/problems").await?,
            })
        }
        Some((namespace, name)) => {
            let pod = Api::<Pod>::namespaced(cluster.client.clone(), namespace)
                .get(name)
                .await
                .with_context(|| format!("pod {}", arguments.of))?;
            let node = cluster::node(&pod).to_owned();
            let agent = agent_of(&cluster, &node).await?;
            let workloads = admin(&cluster, &agent, "/workloads").await?;
            let policies = admin(&cluster, &agent, "/policies").await?;
            let Some(workload) = about(&workloads, "name", &arguments.of) else {
                bail!("pod {} is not in the mesh: label it or its namespace nodemesh.dev/mesh=enabled", arguments.of);
            };
            json!({"node": node, "workload": workload, "policies": about(&policies, "workload", &arguments.of)})
        }
    };
    // Nested as it is, YAML is what a person reads best.
    output.show(&value, || serde_yaml_ng::to_string(&value).unwrap_or_default())?;
    Ok(true)
}

/// The entry of a list whose `key` is `wanted`.
fn about<'a>(list: &'a Value, key: &str, wanted: &str) -> Option<&'a Value> {
    list.as_array()?.iter().find(|entry| entry.get(key).and_then(Value::as_str) == Some(wanted))
}

/// The pod of a node's agent: the one that is ready, where an upgrade has two.
async fn agent_of(cluster: &Cluster, node: &str) -> Result<String> {
    let pods = cluster.pods(cluster::AGENT).await?;
    let mut here: Vec<&Pod> = pods.iter().filter(|pod| cluster::node(pod) == node).collect();
    here.sort_by_key(|pod| !cluster::is_ready(pod));
    let Some(pod) = here.first() else {
        let nodes: Vec<&str> = pods.iter().map(cluster::node).collect();
        bail!("no agent runs on node {node:?}; there is one on: {}", nodes.join(", "));
    };
    pod.metadata.name.clone().context("a pod without a name")
}
