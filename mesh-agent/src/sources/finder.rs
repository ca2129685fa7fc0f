//! Finds the network namespaces of this node's pods in a cluster, where nothing names them: by the processes that run in them.
//!
//! What is found is held open and handed on as a path to the open file: a path by a process's number would lead to another pod's namespace
//! once the number is used again.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_model::snapshot::Snapshot;
use mesh_model::workload::WorkloadUid;
use mesh_sources::NetnsPaths;
use rustix::fs::{Mode, OFlags, openat};
use tokio::sync::watch;

use crate::capture::discovery::{pod_of, started};

/// Wait after a search that did not find all; it doubles up to [`SLOWLY`].
const FIRST: Duration = Duration::from_millis(50);
/// Between two searches in any case: a pod whose sandbox was made anew has another namespace under the same UID.
const SLOWLY: Duration = Duration::from_secs(5);

/// Searches for as long as the agent runs.
pub struct Finder {
    node: Arc<str>,
    proc: PathBuf,
    found: HashMap<WorkloadUid, File>,
    paths: watch::Sender<NetnsPaths>,
}

impl Finder {
    /// For the pods of `node`, whose processes `proc` shows: the host's `/proc`.
    pub fn new(node: Arc<str>, proc: PathBuf, paths: watch::Sender<NetnsPaths>) -> Self {
        Finder { node, proc, found: HashMap::new(), paths }
    }

    /// Follows the mesh. Ends with its source.
    pub async fn follow(mut self, mut snapshots: watch::Receiver<Arc<Snapshot>>) {
        let mut wait = FIRST;
        let mut failing = false;
        loop {
            let wanted = self.wanted(&snapshots.borrow_and_update().clone());
            let (proc, asked) = (self.proc.clone(), wanted.clone());
            match tokio::task::spawn_blocking(move || search(&proc, &asked)).await {
                Ok(Ok(found)) => {
                    failing = false;
                    self.take(found);
                }
                Ok(Err(error)) => {
                    if !failing {
                        let proc = self.proc.display();
                        tracing::error!(%proc, %error, "cannot look for pods' processes: mount the host's /proc there, or name it by --host-proc");
                    }
                    failing = true;
                }
                // The runtime shuts down.
                Err(_) => return,
            }
            let all = wanted.iter().all(|uid| self.found.contains_key(uid));
            wait = if all || failing { SLOWLY } else { (wait * 2).min(SLOWLY) };
            tokio::select! {
                changed = snapshots.changed() => match changed {
                    Ok(()) => wait = FIRST,
                    Err(_) => return,
                },
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Pods of the node that have a namespace of their own; lets go of those of pods that are gone.
    fn wanted(&mut self, snapshot: &Snapshot) -> HashSet<WorkloadUid> {
        let ours = snapshot.workloads().filter(|w| w.node == self.node && !w.host_network).map(|w| &w.uid);
        let held = snapshot.held().iter().filter(|pod| pod.node.is_empty() || pod.node == self.node).map(|pod| &pod.uid);
        let wanted: HashSet<WorkloadUid> = ours.chain(held).cloned().collect();
        let gone: Vec<File> = self.found.extract_if(|uid, _| !wanted.contains(uid)).map(|(_, netns)| netns).collect();
        if !gone.is_empty() {
            // First nobody names them any more, then their numbers may be used again.
            self.publish();
        }
        wanted
    }

    fn take(&mut self, found: HashMap<WorkloadUid, File>) {
        let mut replaced = Vec::new();
        let mut news = false;
        for (uid, netns) in found {
            match self.found.get(&uid) {
                Some(known) if inode(known) == inode(&netns) => {}
                _ => {
                    news = true;
                    replaced.extend(self.found.insert(uid, netns));
                }
            }
        }
        if news {
            self.publish();
        }
    }

    fn publish(&self) {
        let path = |netns: &File| PathBuf::from(format!("/proc/self/fd/{}", netns.as_raw_fd()));
        self.paths.send_replace(Arc::new(self.found.iter().map(|(uid, netns)| (uid.clone(), path(netns))).collect()));
    }
}

/// Namespaces are told apart by it as long as they are held open.
fn inode(netns: &File) -> Option<u64> {
    netns.metadata().ok().map(|metadata| metadata.ino())
}

/// One look at every process. Each is looked at through its opened directory, so that all that is read is of the same process.
fn search(proc: &Path, wanted: &HashSet<WorkloadUid>) -> io::Result<HashMap<WorkloadUid, File>> {
    let own = std::fs::metadata(proc.join("1/ns/net")).or_else(|_| std::fs::metadata("/proc/self/ns/net"))?.ino();
    let mut found: HashMap<WorkloadUid, (u64, File)> = HashMap::new();
    for entry in std::fs::read_dir(proc)?.flatten() {
        if !entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        // Processes end while they are looked at.
        let Ok(directory) = File::open(entry.path()) else { continue };
        let Some(uid) = read(&directory, "cgroup").ok().as_deref().and_then(pod_of).map(|uid| WorkloadUid(uid.into())) else { continue };
        if !wanted.contains(&uid) {
            continue;
        }
        let Some(start) = read(&directory, "stat").ok().as_deref().and_then(started) else { continue };
        if found.get(&uid).is_some_and(|(earlier, _)| *earlier <= start) {
            continue;
        }
        let Ok(netns) = openat(&directory, "ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) else { continue };
        let netns = File::from(netns);
        // A sandbox that is just being made still has its maker's.
        if inode(&netns).is_some_and(|inode| inode != own) {
            found.insert(uid, (start, netns));
        }
    }
    Ok(found.into_iter().map(|(uid, (_, netns))| (uid, netns)).collect())
}

fn read(directory: &File, name: &str) -> io::Result<String> {
    let mut text = String::new();
    File::from(openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests;
