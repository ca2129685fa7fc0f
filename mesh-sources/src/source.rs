//! One configuration source, wherever it reads from.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_model::snapshot::Snapshot;
use mesh_model::workload::PodNetworks;
use tokio::sync::watch;

use crate::kube::{ClientError, Kubernetes};
use crate::manifests::{self, Manifests};
use crate::status::SourceStatus;

/// Where the configuration is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SourceSettings {
    /// In a directory of YAML.
    Manifests(PathBuf),
    /// In a Kubernetes API server.
    Kubernetes {
        /// File that says where it is and who we are; by default it is the server of the cluster that this process runs in.
        kubeconfig: Option<PathBuf>,
    },
}

/// Why it is not said where the configuration is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChoiceError {
    /// No source is named.
    None,
    /// Both are.
    Both,
    /// A kubeconfig without its source.
    KubeconfigAlone,
}

impl ChoiceError {
    /// For the user, who sets environment variables with this prefix.
    pub fn in_words(self, prefix: &str) -> String {
        match self {
            ChoiceError::None => format!(
                "neither --manifests (or {prefix}MANIFESTS) nor --kubernetes (or {prefix}KUBERNETES=true) is set: give the directory that \
                 describes the mesh, or say that the API server does"
            ),
            ChoiceError::Both => format!(
                "--manifests (or {prefix}MANIFESTS) and --kubernetes (or {prefix}KUBERNETES) are both set: the mesh is described in one \
                 place; leave one of them out"
            ),
            ChoiceError::KubeconfigAlone => {
                format!("--kubeconfig (or {prefix}KUBECONFIG) is of no use without --kubernetes (or {prefix}KUBERNETES=true)")
            }
        }
    }
}

impl SourceSettings {
    /// The one source that flags name.
    pub fn choose(manifests: Option<&Path>, kubernetes: bool, kubeconfig: Option<&Path>) -> Result<SourceSettings, ChoiceError> {
        match (manifests, kubernetes, kubeconfig) {
            (Some(_), true, _) => Err(ChoiceError::Both),
            (_, false, Some(_)) => Err(ChoiceError::KubeconfigAlone),
            (Some(directory), false, None) => Ok(SourceSettings::Manifests(directory.into())),
            (None, true, kubeconfig) => Ok(SourceSettings::Kubernetes { kubeconfig: kubeconfig.map(Path::to_owned) }),
            (None, false, None) => Err(ChoiceError::None),
        }
    }
}

/// Why a source cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory.
    #[error("--manifests: {0}")]
    Manifests(#[from] manifests::OpenError),
    /// The settings of the API server's client.
    #[error("--kubernetes: {0}")]
    Kubernetes(#[from] ClientError),
}

/// A configuration source: subscribe, then follow.
#[derive(Debug)]
pub enum Source {
    /// A directory.
    Manifests(Box<Manifests>),
    /// An API server.
    Kubernetes(Box<Kubernetes>),
}

impl Source {
    /// Opens a source. A directory is read before this returns; an API server is not waited for, see [`first_snapshot`].
    ///
    /// `networks` tells what this node knows of its pods' networks.
    pub async fn open(settings: &SourceSettings, networks: Option<watch::Receiver<Arc<PodNetworks>>>) -> Result<Source, OpenError> {
        match settings {
            SourceSettings::Manifests(directory) => {
                let manifests = Manifests::open(directory, manifests::Timing::default()).await?;
                Ok(Source::Manifests(Box::new(manifests.with_networks(networks))))
            }
            SourceSettings::Kubernetes { kubeconfig } => {
                Ok(Source::Kubernetes(Box::new(Kubernetes::open(kubeconfig.as_deref(), networks).await?)))
            }
        }
    }

    /// The mesh as the source describes it. Version 0 is the empty mesh before anything was read: it must not be put in force.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        match self {
            Source::Manifests(manifests) => manifests.subscribe(),
            Source::Kubernetes(kubernetes) => kubernetes.subscribe(),
        }
    }

    /// How the source fares. Changes of ages and counts alone are not notified.
    pub fn status(&self) -> watch::Receiver<SourceStatus> {
        match self {
            Source::Manifests(manifests) => manifests.status(),
            Source::Kubernetes(kubernetes) => kubernetes.status(),
        }
    }

    /// Follows the source. Never ends by itself unless the runtime shuts down or a part of it panics; drop the future to stop.
    pub async fn follow(self) {
        match self {
            Source::Manifests(manifests) => manifests.follow().await,
            Source::Kubernetes(kubernetes) => kubernetes.follow().await,
        }
    }
}

/// How long the status may change before it is told again.
const MOMENT: Duration = Duration::from_millis(200);

/// Waits for the first snapshot, while another task follows the source. `progress` is told what is awaited whenever that changes. `None`
/// if the source ended.
pub async fn first_snapshot(
    snapshots: &mut watch::Receiver<Arc<Snapshot>>,
    mut status: watch::Receiver<SourceStatus>,
    mut progress: impl FnMut(String),
) -> Option<Arc<Snapshot>> {
    let mut said = None;
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        if snapshot.version() > 0 {
            return Some(snapshot);
        }
        let awaited = status.borrow_and_update().awaited();
        if let Some(text) = awaited.filter(|text| said.as_ref() != Some(text)) {
            progress(text.clone());
            said = Some(text);
        }
        // Kind by kind things change within a moment: one word about them is enough.
        let changed = async {
            let changed = status.changed().await;
            tokio::time::sleep(MOMENT).await;
            changed
        };
        tokio::select! {
            changed = snapshots.changed() => changed.ok()?,
            changed = changed => changed.ok()?,
        }
    }
}
