//! `meshctl check`: what is wrong, about what, and what mends it. Before installing: the cluster. After: the mesh.
//!
//! What is asked of the cluster is in `facts`; what it means is decided in `judge`, which asks nobody.

mod facts;
mod judge;

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use k8s_openapi::api::apps::v1::DaemonSet;

use crate::cluster::{self, Cluster, Target};
use crate::finding::{self, Finding};
use crate::output::Output;

/// When.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only what matters before installing; by default also the mesh, if it is installed.
    #[arg(long)]
    pre: bool,
}

/// Checks; false if an error was found.
///
/// # Errors
/// The API server's.
pub async fn run(target: &Target, output: Output, arguments: &Arguments) -> Result<bool> {
    let cluster = target.connect().await?;
    let mut findings = before(&cluster).await?;
    let installed = cluster.own::<DaemonSet>().get_opt(cluster::DAEMON_SET).await?.is_some();
    if installed && !arguments.pre {
        findings.extend(after(&cluster).await?);
    }
    let findings = finding::sorted(findings);
    output.show(&findings, || match (findings.is_empty(), installed && !arguments.pre) {
        (false, _) => finding::table(&findings).render(output.colours),
        (true, true) => "nothing is wrong\n".to_owned(),
        (true, false) => format!("nothing is in the way of an installation in namespace {}\n", cluster.namespace),
    })?;
    Ok(!finding::fatal(&findings))
}

/// What is in the mesh's way.
///
/// # Errors
/// The API server's.
pub async fn before(cluster: &Cluster) -> Result<Vec<Finding>> {
    Ok(finding::sorted(judge::before(&facts::before(cluster).await?)))
}

/// What is wrong with the mesh.
///
/// # Errors
/// The API server's.
pub async fn after(cluster: &Cluster) -> Result<Vec<Finding>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Ok(finding::sorted(judge::after(&facts::after(cluster).await?, now)))
}
