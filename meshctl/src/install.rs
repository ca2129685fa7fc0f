//! `meshctl install`: the chart by Helm, then the wait until all of it is ready. Running it again upgrades.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::cluster::{self, Cluster, Target};
use crate::output::{Format, Output, Progress};
use crate::{chart, check, finding};

/// By this name the API server knows which fields are ours.
const MANAGER: &str = "meshctl";

/// What to install.
#[derive(clap::Args)]
pub struct Arguments {
    /// Files with values for the chart, the later ones win.
    #[arg(long, short = 'f', value_name = "FILE")]
    values: Vec<PathBuf>,
    /// A value for the chart, e.g. mesh.mtls=STRICT.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Change nothing: show what would be sent to a cluster that has nothing of the mesh yet.
    #[arg(long)]
    dry_run: bool,
    /// Install although `meshctl check` finds errors.
    #[arg(long)]
    skip_checks: bool,
    /// Longest wait until all is ready, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
}

/// Installs or upgrades; false if it is not ready in time.
///
/// # Errors
/// Helm's, the API server's, or what the checks found.
pub async fn run(target: &Target, output: Output, arguments: &Arguments) -> Result<bool> {
    // Who has no Helm must not wait for the checks to be told so.
    chart::helm(target)?;
    let unpacked = chart::Unpacked::new()?;
    let cluster = target.connect().await?;
    if !arguments.skip_checks {
        let findings = check::before(&cluster).await?;
        if !findings.is_empty() {
            eprint!("{}", finding::table(&findings).render(false));
        }
        if finding::fatal(&findings) {
            bail!("the cluster is not fit for the mesh yet; mend what is listed, or give --skip-checks");
        }
    }
    let helm = |dry: bool| -> Result<Command> {
        let mut helm = chart::helm(target)?;
        // Not `--dry-run`: it finds no object of the cluster, and then complains of those that are there.
        let verb: &[&str] = if dry { &["template", "--include-crds"] } else { &["upgrade", "--install", "--skip-crds"] };
        helm.args(verb).arg(chart::RELEASE).arg(unpacked.path());
        for file in &arguments.values {
            helm.arg("--values").arg(file);
        }
        for value in &arguments.set {
            helm.args(["--set", value]);
        }
        Ok(helm)
    };
    let run = |mut helm: Command, quiet: bool| -> Result<()> {
        if quiet {
            helm.stdout(Stdio::null());
        }
        if !helm.status().context("starting helm")?.success() {
            bail!("helm has not installed the chart; it has said why");
        }
        Ok(())
    };
    // Values that make no sense must be refused before anything is changed.
    run(helm(true)?, !arguments.dry_run)?;
    if arguments.dry_run {
        return Ok(true);
    }
    prepare(&cluster).await?;
    run(helm(false)?, output.format != Format::Table)?;
    wait(&cluster, Duration::from_secs(arguments.timeout)).await
}

/// The namespace with its labels, and the definitions in their newest form.
async fn prepare(cluster: &Cluster) -> Result<()> {
    let parameters = PatchParams::apply(MANAGER).force();
    let namespaces = cluster.all::<Namespace>();
    let patch = namespace(&cluster.namespace);
    let done = namespaces.patch(&cluster.namespace, &parameters, &Patch::Apply(&patch)).await;
    done.with_context(|| format!("making namespace {}", cluster.namespace))?;
    let definitions = cluster.all::<CustomResourceDefinition>();
    for definition in chart::definitions()? {
        let name = definition.pointer("/metadata/name").and_then(|name| name.as_str()).unwrap_or_default().to_owned();
        let done = definitions.patch(&name, &parameters, &Patch::Apply(&definition)).await;
        done.with_context(|| format!("installing CustomResourceDefinition {name}"))?;
    }
    Ok(())
}

/// Agents need what Pod Security's milder levels forbid; and what makes the mesh cannot be in it.
fn namespace(name: &str) -> serde_json::Value {
    let level = "privileged";
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {
            "pod-security.kubernetes.io/enforce": level,
            "pod-security.kubernetes.io/audit": level,
            "pod-security.kubernetes.io/warn": level,
            "nodemesh.dev/mesh": "disabled",
        }},
    })
}

async fn wait(cluster: &Cluster, limit: Duration) -> Result<bool> {
    let mut progress = Progress::new();
    let waiting = async {
        loop {
            let agents = cluster.own::<DaemonSet>().get(cluster::DAEMON_SET).await.context("DaemonSet mesh-agent")?;
            let control = cluster.own::<Deployment>().get(cluster::DEPLOYMENT).await.context("Deployment mesh-control")?;
            let (agents, control) = (Rollout::of_agents(&agents), Rollout::of_control(&control));
            progress.say(&format!("mesh-control {control}, mesh-agent {agents}"));
            if agents.complete() && control.complete() {
                return anyhow::Ok(());
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let result = tokio::time::timeout(limit, waiting).await;
    progress.done();
    match result {
        Ok(Ok(())) => {
            eprintln!("ready; enrol a namespace with: kubectl label namespace <name> nodemesh.dev/mesh=enabled");
            Ok(true)
        }
        Ok(Err(error)) => Err(error),
        Err(_) => {
            eprintln!("not ready after {} s:", limit.as_secs());
            eprint!("{}", finding::table(&check::after(cluster).await?).render(false));
            Ok(false)
        }
    }
}

/// How far a workload is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rollout {
    /// Its controller has seen its newest form.
    pub observed: bool,
    /// Pods that there should be.
    pub wanted: i32,
    /// Pods of the newest form.
    pub updated: i32,
    /// Pods that are ready.
    pub ready: i32,
}

impl Rollout {
    /// The agents'.
    pub fn of_agents(set: &DaemonSet) -> Self {
        let status = set.status.clone().unwrap_or_default();
        Rollout {
            observed: status.observed_generation >= set.metadata.generation,
            wanted: status.desired_number_scheduled,
            updated: status.updated_number_scheduled.unwrap_or_default(),
            ready: status.number_available.unwrap_or_default(),
        }
    }

    /// The control plane's.
    pub fn of_control(deployment: &Deployment) -> Self {
        let status = deployment.status.clone().unwrap_or_default();
        Rollout {
            observed: status.observed_generation >= deployment.metadata.generation,
            wanted: deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1),
            updated: status.updated_replicas.unwrap_or_default(),
            ready: status.available_replicas.unwrap_or_default(),
        }
    }

    /// Whether all is ready and new.
    pub fn complete(self) -> bool {
        self.observed && self.updated >= self.wanted && self.ready >= self.wanted
    }
}

impl std::fmt::Display for Rollout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{} ready", self.ready, self.wanted)?;
        if self.updated < self.wanted { write!(f, " ({} new)", self.updated) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
