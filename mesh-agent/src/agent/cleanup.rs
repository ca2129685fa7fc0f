//! `mesh-agent cleanup`: leaves nothing of an instance on the node. Pods are then as without the mesh.

use std::fmt;
use std::io;
use std::path::PathBuf;

use mesh_cni::install::InstallError;

use super::lock::{self, LockError, WriterLock};
use crate::capture::cni::installer;
use crate::capture::load::{known_netns, remove_pins};
use crate::config::Config;
use crate::sys::netns::{self, Sysctls};
use crate::upstream::connect::MARK;

/// Why nothing was done, or not all.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// The lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// An agent would set up anew what is taken away, and its connections would break.
    #[error(
        "an agent of instance {instance}{} runs and holds {}: end it first; nothing was taken away",
        .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(), .lock.display()
    )]
    Running {
        /// The instance.
        instance: String,
        /// The agent.
        pid: Option<u32>,
        /// The lock's file.
        lock: PathBuf,
    },
    /// The CNI plug-in.
    #[error("the CNI plug-in cannot be taken out of the node: {0}")]
    Cni(#[from] InstallError),
    /// The pins.
    #[error("instance {instance}: its pins cannot be removed: {error}")]
    Pins {
        /// The instance.
        instance: String,
        /// What happened.
        error: io::Error,
    },
}

/// What was done.
#[derive(Debug)]
pub struct Done {
    instance: String,
    known: usize,
    found: usize,
    restored: Vec<PathBuf>,
    configurations: Vec<PathBuf>,
    /// Namespaces in which something is left.
    pub failed: Vec<(PathBuf, io::Error)>,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for path in &self.configurations {
            writeln!(f, "{}: the CNI plug-in taken out", path.display())?;
        }
        for path in &self.restored {
            writeln!(f, "{}: the mesh's routing rule, route and settings taken back", path.display())?;
        }
        for (path, error) in &self.failed {
            writeln!(f, "{}: cannot take back the mesh's routing rule, route and settings: {error}", path.display())?;
        }
        let (found, gone) = (self.found, self.known.saturating_sub(self.found));
        writeln!(
            f,
            "instance {}: {found} network namespaces of its pods found, {} of them restored, {gone} gone",
            self.instance,
            self.restored.len()
        )?;
        write!(f, "instance {}: programs detached, pins removed", self.instance)
    }
}

/// Takes back what agents set in their pods' namespaces, then removes the pins, by which those are known.
pub async fn run(config: &Config) -> Result<Done, CleanupError> {
    let instance = config.instance.clone();
    let directory = lock::directory(&config.run_dir, &instance)?;
    let Some(lock) = WriterLock::try_take(&directory)? else {
        return Err(CleanupError::Running { pid: WriterLock::holder(&directory), lock: lock::file(&directory), instance });
    };
    // First of all: without its agent it holds every new pod.
    let configurations = config.cni_places().map(|places| installer::remove(&places)).transpose()?.unwrap_or_default();
    let known = known_netns(&config.bpffs, &instance);
    let sysctls = Sysctls::of(&config.host_proc);
    let mut done = Done { instance, known: known.len(), found: 0, restored: Vec::new(), configurations, failed: Vec::new() };
    for (path, netns) in netns::find(&config.host_proc, |cookie| known.contains(&cookie)) {
        done.found += 1;
        match netns::restore(&netns, &sysctls, MARK).await {
            Ok(true) => done.restored.push(path),
            Ok(false) => {}
            Err(error) => done.failed.push((path, error)),
        }
    }
    if let Err(error) = remove_pins(&config.bpffs, &done.instance) {
        return Err(CleanupError::Pins { instance: done.instance, error });
    }
    lock.remove(&directory)?;
    Ok(done)
}
