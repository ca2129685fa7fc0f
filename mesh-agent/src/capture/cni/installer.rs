//! Keeps the plug-in on the node: its binary among the others, its entry in the network configuration. Whoever writes that anew (the
//! network's own installer does, at each of its starts) takes the entry out without knowing; it is put back.
//!
//! The agent's end leaves both where they are: a node without an agent must hold new pods, not let them run in the clear. `mesh-agent
//! cleanup` takes them out.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mesh_cni::conflist::{WithIstio, has_istio};
use mesh_cni::install::{Done, InstallError, install, install_binary, uninstall, uninstall_binary};
use notify::Watcher as _;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::ops::ready::Readiness;

/// Between two looks in any case.
const SLOWLY: Duration = Duration::from_secs(10);
/// After a sign of change, so that a file is not read while it is written.
const QUIET: Duration = Duration::from_millis(50);

/// Where the plug-in goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Places {
    /// The directory of the node's plug-ins.
    pub binaries: PathBuf,
    /// The directory of the node's network configurations.
    pub configurations: PathBuf,
}

/// What is to be there.
#[derive(Clone, Debug)]
pub struct Installer {
    /// Where.
    pub places: Places,
    /// The plug-in's binary, on this side.
    pub binary: PathBuf,
    /// Its entry.
    pub entry: String,
    /// What to do beside Istio's.
    pub with_istio: WithIstio,
}

/// How it is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum State {
    /// Not looked at yet.
    #[default]
    Unknown,
    /// The node has no network configuration yet.
    Waiting,
    /// The plug-in is in this file.
    Installed(PathBuf),
    /// It is not, and why.
    Failed(String),
}

impl State {
    /// For the operator.
    pub fn describe(&self) -> serde_json::Value {
        match self {
            State::Unknown => serde_json::json!({ "state": "unknown" }),
            State::Waiting => serde_json::json!({ "state": "waiting", "awaited": "a network configuration of the node" }),
            State::Installed(file) => serde_json::json!({ "state": "installed", "file": file }),
            State::Failed(error) => serde_json::json!({ "state": "failed", "error": error }),
        }
    }
}

impl Installer {
    /// Puts all of it there. `Raced`: somebody changed it at the same moment.
    fn once(&self) -> Result<Done, InstallError> {
        install_binary(&self.binary, &self.places.binaries)?;
        install(&self.places.configurations, &self.entry, self.with_istio)
    }

    /// Keeps it there until `stop`; then another agent does.
    pub async fn keep(self, readiness: Readiness, states: watch::Sender<State>, stop: CancellationToken) {
        let wake = Arc::new(Notify::new());
        let mut watch = None;
        loop {
            if watch.as_ref().is_none_or(Watch::is_lost) {
                watch = Watch::new(&self.places.configurations, wake.clone());
            }
            let this = self.clone();
            let Ok(done) = tokio::task::spawn_blocking(move || this.once()).await else { return };
            let raced = matches!(done, Ok(Done::Raced(_)));
            self.show(done, &readiness, &states);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(if raced { QUIET } else { SLOWLY }) => {}
                () = wake.notified() => tokio::time::sleep(QUIET).await,
            }
        }
    }

    fn show(&self, done: Result<Done, InstallError>, readiness: &Readiness, states: &watch::Sender<State>) {
        let before = states.borrow().clone();
        let state = match done {
            Ok(Done::Waiting) => State::Waiting,
            Ok(Done::Unchanged(file)) => State::Installed(file),
            Ok(Done::Written(file)) => {
                if before == State::Installed(file.clone()) {
                    tracing::warn!(file = %file.display(), "the CNI plug-in was taken out of the node's network configuration, and is in it again");
                } else {
                    tracing::info!(file = %file.display(), "the CNI plug-in is in the node's network configuration");
                }
                State::Installed(file)
            }
            Ok(Done::Raced(_)) => before.clone(),
            Err(error) => State::Failed(error.to_string()),
        };
        if state == before {
            return;
        }
        match &state {
            State::Waiting => {
                tracing::info!(directory = %self.places.configurations.display(), "the node has no network configuration yet")
            }
            State::Failed(error) => {
                tracing::error!(%error, "the CNI plug-in is not installed: a new pod may start before its agent has it in hand")
            }
            State::Installed(file) if std::fs::read_to_string(file).is_ok_and(|text| has_istio(&text)) => {
                tracing::warn!(file = %file.display(), "Istio's plug-in is in the same network configuration: a pod must be in one of the meshes only");
            }
            State::Unknown | State::Installed(_) => {}
        }
        readiness.remark(
            "the CNI plug-in is not installed",
            match &state {
                State::Failed(error) => Some(error.clone()),
                _ => None,
            },
        );
        states.send_replace(state);
    }
}

/// The kernel's notifications about a directory.
struct Watch {
    _watcher: notify::RecommendedWatcher,
    /// The directory is gone, and the watch with it.
    lost: Arc<AtomicBool>,
}

impl Watch {
    /// `None` if there are no notifications: then time alone counts.
    fn new(directory: &Path, wake: Arc<Notify>) -> Option<Watch> {
        let watched = directory.to_path_buf();
        let lost = Arc::new(AtomicBool::new(false));
        let lose = lost.clone();
        let handler = move |event: notify::Result<notify::Event>| {
            use notify::EventKind;
            use notify::event::{AccessKind, AccessMode, ModifyKind};
            if let Ok(event) = &event {
                // Our own reading is an event too.
                let read = matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write));
                if read && !event.need_rescan() {
                    return;
                }
                let moved = matches!(event.kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)));
                if moved && event.paths.contains(&watched) {
                    lose.store(true, Ordering::Relaxed);
                }
            }
            wake.notify_one();
        };
        let mut watcher = notify::recommended_watcher(handler).ok()?;
        watcher.watch(directory, notify::RecursiveMode::NonRecursive).ok()?;
        Some(Watch { _watcher: watcher, lost })
    }

    fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }
}

/// Takes the plug-in out of the node: first its entries, or pods could not start for want of a binary. Returns the files that were changed.
pub fn remove(places: &Places) -> Result<Vec<PathBuf>, InstallError> {
    let changed = uninstall(&places.configurations)?;
    uninstall_binary(&places.binaries)?;
    Ok(changed)
}

#[cfg(test)]
mod tests;
