//! What a check asks the cluster.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ListParams, PostParams};

use crate::agent::{self, Report};
use crate::cluster::{self, Cluster};
use crate::install::Rollout;

/// Of the cluster.
#[derive(Clone, Debug, Default)]
pub(super) struct Before {
    /// The API server's version.
    pub(super) version: String,
    pub(super) nodes: Vec<NodeFacts>,
    /// What an installer must be allowed and is not: verb and resource.
    pub(super) forbidden: Vec<(String, String)>,
    pub(super) namespaces: Vec<NamespaceFacts>,
    /// Names of the DaemonSets that others put on nodes.
    pub(super) daemon_sets: Vec<(String, String)>,
    /// Definitions of the kinds that the mesh reads: name and served versions.
    pub(super) definitions: Vec<(String, Vec<String>)>,
    /// Settings of Cilium, if it is there.
    pub(super) cilium: Option<BTreeMap<String, String>>,
}

/// Of a node.
#[derive(Clone, Debug, Default)]
pub(super) struct NodeFacts {
    pub(super) name: String,
    pub(super) kernel: String,
    pub(super) os: String,
    pub(super) architecture: String,
}

/// Of a namespace.
#[derive(Clone, Debug, Default)]
pub(super) struct NamespaceFacts {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
}

/// Of the mesh.
#[derive(Clone, Debug, Default)]
pub(super) struct After {
    pub(super) agents: Option<Rollout>,
    pub(super) control: Option<Rollout>,
    pub(super) reports: Vec<Report>,
    /// Pods of the control plane that are not ready, and why.
    pub(super) control_trouble: Vec<(String, String)>,
}

/// What an installation does: group, resource, verb, in the mesh's namespace or in none.
const NEEDED: [(&str, &str, &str, bool); 11] = [
    ("", "namespaces", "create", false),
    ("", "secrets", "create", true),
    ("", "configmaps", "create", true),
    ("", "serviceaccounts", "create", true),
    ("", "services", "create", true),
    ("apps", "daemonsets", "create", true),
    ("apps", "deployments", "create", true),
    ("rbac.authorization.k8s.io", "clusterroles", "create", false),
    ("rbac.authorization.k8s.io", "clusterrolebindings", "create", false),
    ("apiextensions.k8s.io", "customresourcedefinitions", "create", false),
    ("admissionregistration.k8s.io", "validatingadmissionpolicies", "create", false),
];

pub(super) async fn before(cluster: &Cluster) -> Result<Before> {
    let version = cluster.client.apiserver_version().await.context("the API server does not answer")?.git_version;
    let all = ListParams::default();
    let nodes = cluster.all::<Node>().list(&all).await.context("listing nodes")?.items.into_iter().map(node).collect();
    let namespaces = cluster.all::<Namespace>().list(&all).await.context("listing namespaces")?;
    let namespaces = namespaces.items.into_iter().map(|namespace| NamespaceFacts {
        name: namespace.metadata.name.unwrap_or_default(),
        labels: namespace.metadata.labels.unwrap_or_default(),
    });
    let daemon_sets = cluster.all::<DaemonSet>().list(&all).await.context("listing DaemonSets")?;
    let daemon_sets: Vec<_> = daemon_sets
        .items
        .into_iter()
        .map(|set| (set.metadata.namespace.unwrap_or_default(), set.metadata.name.unwrap_or_default()))
        .collect();
    let mut forbidden = Vec::new();
    for (group, resource, verb, own) in NEEDED {
        if !allowed(cluster, group, resource, verb, own).await? {
            forbidden.push((verb.to_owned(), format!("{resource}.{group}").trim_end_matches('.').to_owned()));
        }
    }
    let cilium = match daemon_sets.iter().find(|(_, name)| name == "cilium") {
        // Who may not read it learns less.
        Some((namespace, _)) => match Api::<ConfigMap>::namespaced(cluster.client.clone(), namespace).get_opt("cilium-config").await {
            Ok(map) => map.map(|map| map.data.unwrap_or_default()),
            Err(_) => None,
        },
        None => None,
    };
    Ok(Before {
        version,
        nodes,
        forbidden,
        namespaces: namespaces.collect(),
        daemon_sets,
        definitions: definitions(cluster).await?,
        cilium,
    })
}

fn node(node: Node) -> NodeFacts {
    let info = node.status.and_then(|status| status.node_info).unwrap_or_default();
    NodeFacts {
        name: node.metadata.name.unwrap_or_default(),
        kernel: info.kernel_version,
        os: info.operating_system,
        architecture: info.architecture,
    }
}

async fn allowed(cluster: &Cluster, group: &str, resource: &str, verb: &str, own: bool) -> Result<bool> {
    let attributes = ResourceAttributes {
        group: Some(group.to_owned()),
        resource: Some(resource.to_owned()),
        verb: Some(verb.to_owned()),
        namespace: own.then(|| cluster.namespace.clone()),
        ..ResourceAttributes::default()
    };
    let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..SelfSubjectAccessReviewSpec::default() };
    let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
    let answer = cluster.all().create(&PostParams::default(), &review).await.context("asking the API server what we may do")?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

async fn definitions(cluster: &Cluster) -> Result<Vec<(String, Vec<String>)>> {
    let list = cluster.all::<CustomResourceDefinition>().list(&ListParams::default()).await.context("listing CustomResourceDefinitions")?;
    let groups = ["nodemesh.dev", "security.istio.io", "networking.istio.io", "gateway.networking.k8s.io"];
    let ours = list.items.into_iter().filter(|definition| groups.contains(&&*definition.spec.group));
    Ok(ours
        .map(|definition| {
            let served = definition.spec.versions.into_iter().filter(|version| version.served).map(|version| version.name);
            (definition.metadata.name.unwrap_or_default(), served.collect())
        })
        .collect())
}

pub(super) async fn after(cluster: &Cluster) -> Result<After> {
    let agents = cluster.own::<DaemonSet>().get_opt(cluster::DAEMON_SET).await.context("looking for DaemonSet mesh-agent")?;
    let control = cluster.own::<Deployment>().get_opt(cluster::DEPLOYMENT).await.context("looking for Deployment mesh-control")?;
    let pods = cluster.pods(cluster::CONTROL).await?;
    let trouble = pods.iter().filter(|pod| !cluster::is_ready(pod) && pod.metadata.deletion_timestamp.is_none()).map(|pod| {
        let why = cluster::trouble(pod).unwrap_or_else(|| "it runs and is not ready".to_owned());
        (pod.metadata.name.clone().unwrap_or_default(), why)
    });
    Ok(After {
        agents: agents.as_ref().map(Rollout::of_agents),
        control: control.as_ref().map(Rollout::of_control),
        reports: agent::reports(cluster).await?,
        control_trouble: trouble.collect(),
    })
}
