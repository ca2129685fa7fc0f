//! The cluster that kubectl would speak to.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// Which labels an agent's pod bears.
pub const AGENT: &str = "app.kubernetes.io/name=mesh-agent";
/// Which labels a pod of the control plane bears.
pub const CONTROL: &str = "app.kubernetes.io/name=mesh-control";
/// Name of the agents' DaemonSet.
pub const DAEMON_SET: &str = "mesh-agent";
/// Name of the control plane's Deployment.
pub const DEPLOYMENT: &str = "mesh-control";

/// Which cluster, by kubectl's rules.
#[derive(clap::Args, Clone, Debug)]
pub struct Target {
    /// File that says where clusters are; by default KUBECONFIG's, then ~/.kube/config, then the cluster that this runs in.
    #[arg(long, value_name = "FILE", global = true)]
    pub kubeconfig: Option<PathBuf>,
    /// Which of its contexts; by default the current one.
    #[arg(long, global = true)]
    pub context: Option<String>,
    /// Namespace that the mesh is installed in.
    #[arg(long, short = 'n', global = true, default_value = "nodemesh-system")]
    pub namespace: String,
}

/// A cluster.
#[derive(Clone)]
pub struct Cluster {
    /// Its client.
    pub client: Client,
    /// The mesh's namespace.
    pub namespace: String,
}

impl Target {
    /// Connects to nobody yet.
    ///
    /// # Errors
    /// No kubeconfig, or one that cannot be used.
    pub async fn connect(&self) -> Result<Cluster> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let config = match &self.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path).with_context(|| format!("--kubeconfig {}", path.display()))?;
                Config::from_custom_kubeconfig(file, &options).await
            }
            None if self.context.is_some() => Config::from_kubeconfig(&options).await,
            None => return self.cluster(Config::infer().await.context("no cluster: give --kubeconfig or set KUBECONFIG")?),
        };
        self.cluster(config.context("the kubeconfig cannot be used")?)
    }

    fn cluster(&self, config: Config) -> Result<Cluster> {
        let client = Client::try_from(config).context("the kubeconfig's settings cannot be used")?;
        Ok(Cluster { client, namespace: self.namespace.clone() })
    }
}

impl Cluster {
    /// Objects of a kind in the mesh's namespace.
    pub fn own<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Objects of a kind in all of the cluster.
    pub fn all<K>(&self) -> Api<K>
    where
        K: kube::Resource,
        K::DynamicType: Default,
    {
        Api::all(self.client.clone())
    }

    /// The mesh's pods with a label, in order of their nodes.
    ///
    /// # Errors
    /// The API server's.
    pub async fn pods(&self, selector: &str) -> Result<Vec<Pod>> {
        let list = self.own::<Pod>().list(&ListParams::default().labels(selector)).await;
        let mut pods = list.with_context(|| format!("listing pods of namespace {}", self.namespace))?.items;
        pods.sort_by_key(|pod| (node(pod).to_owned(), pod.metadata.name.clone()));
        Ok(pods)
    }
}

/// The node that a pod runs on, or empty.
pub fn node(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

/// Whether its condition `Ready` is true and it is not on its way out.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    pod.metadata.deletion_timestamp.is_none() && conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// What keeps a pod's containers from running, in the kubelet's words.
pub fn trouble(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    for container in containers {
        if let Some(waiting) = container.state.as_ref().and_then(|state| state.waiting.as_ref()) {
            let reason = waiting.reason.as_deref().unwrap_or("waiting");
            let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
            let message = waiting.message.as_deref().or_else(|| last.and_then(|ended| ended.message.as_deref())).unwrap_or_default();
            return Some(format!("{reason}: {message}").trim_end_matches([':', ' ']).to_owned());
        }
    }
    let unscheduled = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    unscheduled.map(|condition| format!("not scheduled: {}", condition.message.as_deref().unwrap_or_default()))
}
