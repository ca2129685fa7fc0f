//! Where the agent's configuration comes from: `mesh-sources`, and how it fares shown to the operator.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use mesh_model::snapshot::Snapshot;
use mesh_model::workload::PodNetworks;
use mesh_sources::{OpenError, Source, SourceSettings, SourceStatus, first_snapshot};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::ops::metrics::{Kind, Metrics, Samples};
use crate::ops::ready::Blocker;

pub mod attachments;
mod finder;

pub use finder::Told;
use finder::{Finder, Ground};

/// Where this agent is, for a source that knows of all nodes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// The node's name.
    pub name: Arc<str>,
    /// The host's `/proc`.
    pub proc: PathBuf,
    /// Where is kept what the container runtime said.
    pub kept: PathBuf,
}

/// A source that is being followed.
pub struct Configuration {
    /// What was in force first.
    pub first: Arc<Snapshot>,
    /// What came after.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// How the source fares.
    pub status: watch::Receiver<SourceStatus>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// The source cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It ended before anything came.
    #[error("the configuration source ended before it was read")]
    Ended,
}

/// Starts to follow a source, in a task of the agent, and waits for the first configuration; `waiting` says what for. A directory that
/// cannot be read is an error, an API server that does not answer is waited for. `told`: what the container runtime says.
pub async fn start(
    settings: &SourceSettings,
    node: Node,
    told: mpsc::Receiver<Told>,
    tasks: &mut JoinSet<&'static str>,
    metrics: &Metrics,
    waiting: &Blocker,
) -> Result<Configuration, ConfigurationError> {
    let networks = watch::Sender::new(Arc::<PodNetworks>::default());
    let source = Source::open(settings, Some(networks.subscribe())).await?;
    let (mut snapshots, status) = (source.subscribe(), source.status());
    let ground = Ground { node: node.name, proc: node.proc, kept: node.kept, count: metrics.agent.cni_attachments.clone(), networks };
    let finder = Finder::new(ground).follow(source.subscribe(), told);
    tasks.spawn(async move {
        finder.await;
        "search for pods' network namespaces"
    });
    let shown = status.clone();
    metrics.collect(move |samples| collect(samples, &shown.borrow(), Instant::now()));
    tasks.spawn(async move {
        source.follow().await;
        "configuration source"
    });
    let first = first_snapshot(&mut snapshots, status.clone(), |awaited| {
        tracing::info!("waiting for {awaited}");
        waiting.progress(awaited);
    });
    let first = first.await.ok_or(ConfigurationError::Ended)?;
    Ok(Configuration { first, snapshots, status })
}

fn collect(samples: &mut Samples<'_, '_>, status: &SourceStatus, now: Instant) {
    let source = ("source", status.source);
    samples
        .family("nodemesh_config_source_connected", "Whether the configuration's source can be read: 1 or 0.", Kind::Gauge)
        .sample(&[source], f64::from(u8::from(status.connected)));
    let age = |at: Instant| now.saturating_duration_since(at).as_secs_f64();
    samples
        .family("nodemesh_config_source_state_seconds", "For how long it has been so.", Kind::Gauge)
        .sample(&[source], age(status.since));
    let mut family = samples.family(
        "nodemesh_config_source_age_seconds",
        "Time since anything was heard from the API server about a kind of object, a sign of life included.",
        Kind::Gauge,
    );
    for (kind, status) in &status.kinds {
        if let Some(heard) = status.heard {
            family.sample(&[source, ("kind", kind.name())], age(heard));
        }
    }
    let mut family = samples.family(
        "nodemesh_config_source_synced",
        "Whether a kind of object has been listed and is followed: 1, or 0 if it is awaited or its definition is absent.",
        Kind::Gauge,
    );
    for (kind, status) in &status.kinds {
        let synced = status.progress == mesh_sources::status::Progress::Synced;
        family.sample(&[source, ("kind", kind.name())], f64::from(u8::from(synced)));
    }
    let mut family = samples.family("nodemesh_config_source_objects", "Objects of a kind in force.", Kind::Gauge);
    for (kind, status) in &status.kinds {
        family.sample(&[source, ("kind", kind.name())], status.objects as f64);
    }
    let mut family =
        samples.family("nodemesh_config_source_errors", "Requests to the API server that came to nothing, by reason.", Kind::Counter);
    for (kind, status) in &status.kinds {
        for (reason, count) in &status.errors {
            family.sample(&[source, ("kind", kind.name()), ("reason", reason.name())], *count as f64);
        }
    }
}

#[cfg(test)]
mod tests;
