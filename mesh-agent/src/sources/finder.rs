//! Knows the network namespaces of this node's pods, where no manifest names them: by the container runtime's word as it makes them, and by
//! the processes that run in them, for those of which nobody said anything to this agent.
//!
//! What is known is held open and handed on as a path to the open file: a path by a process's number would lead to another pod's namespace
//! once the number is used again.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_model::snapshot::Snapshot;
use mesh_model::workload::{PodNetwork, PodNetworks, Workload, WorkloadUid, same_addresses};
use prometheus_client::metrics::gauge::Gauge;
use rustix::fs::{Mode, OFlags, openat};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::attachments::{Attached, Attachments};
use crate::capture::discovery::{pod_of, started};
use crate::sys::netns::{Inode, inode};

/// Wait after a search that did not find all; it doubles up to [`SLOWLY`].
const FIRST: Duration = Duration::from_millis(50);
/// Between two searches in any case: a pod whose sandbox was made anew has another namespace under the same UID.
const SLOWLY: Duration = Duration::from_secs(5);
/// How long a file stays open that nobody is to be told of any more: whoever was told before must not find another pod's namespace under
/// its number. Many times as long as a configuration takes to be put in force.
const RETIRED: Duration = Duration::from_secs(10);

/// What is said of the container runtime's doings.
#[derive(Debug)]
pub enum Told {
    /// This agent is the one that is told from here on: what was told to the one before holds.
    Taken,
    /// A pod has a network.
    Attached(WorkloadUid, Attached),
    /// A sandbox ends.
    Ended(Box<str>),
    /// No other sandboxes are left than these.
    Left(HashSet<Box<str>>),
}

/// What there is to search with, and whom to tell.
pub struct Ground {
    /// The node's name.
    pub node: Arc<str>,
    /// The host's `/proc`.
    pub proc: PathBuf,
    /// Where attachments are kept.
    pub kept: PathBuf,
    /// Counts them.
    pub count: Gauge,
    /// Who is told.
    pub networks: watch::Sender<Arc<PodNetworks>>,
}

/// Follows what becomes of pods' networks for as long as the agent runs.
pub struct Finder {
    ground: Ground,
    found: HashMap<WorkloadUid, File>,
    attached: Attachments,
    /// Namespaces whose end was told, of pods that are still in the configuration: their last processes do not bring them back.
    ended: HashMap<WorkloadUid, Inode>,
    retired: Vec<(Instant, File)>,
    /// Pods whose addresses are not what the runtime said.
    differing: HashSet<WorkloadUid>,
}

type Search = JoinHandle<io::Result<HashMap<WorkloadUid, File>>>;

async fn finished(search: &mut Option<Search>) -> Option<io::Result<HashMap<WorkloadUid, File>>> {
    match search {
        // An error: the runtime shuts down.
        Some(running) => running.await.ok(),
        None => std::future::pending().await,
    }
}

impl Finder {
    /// For the pods of a node.
    pub fn new(ground: Ground) -> Self {
        let attached = Attachments::new(ground.kept.clone());
        let (found, ended, retired, differing) = (HashMap::new(), HashMap::new(), Vec::new(), HashSet::new());
        Finder { ground, found, attached, ended, retired, differing }
    }

    /// Follows the mesh and the runtime. Ends with the mesh's source.
    pub async fn follow(mut self, mut snapshots: watch::Receiver<Arc<Snapshot>>, mut told: mpsc::Receiver<Told>) {
        let mut wait = FIRST;
        let mut failing = false;
        let mut wanted = self.wanted(&snapshots.borrow_and_update().clone());
        let mut search: Option<Search> = None;
        let mut due = Instant::now();
        loop {
            tokio::select! {
                biased;
                Some(first) = told.recv() => {
                    // Of the same moment or newer than what the teller went by.
                    wanted = self.wanted(&snapshots.borrow_and_update().clone());
                    let rest = std::iter::from_fn(|| told.try_recv().ok());
                    let all: Vec<Told> = std::iter::once(first).chain(rest).collect();
                    self.heed(all, &wanted);
                }
                changed = snapshots.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let before = std::mem::replace(&mut wanted, self.wanted(&snapshots.borrow_and_update().clone()));
                    if wanted != before {
                        (wait, due) = (FIRST, Instant::now());
                    }
                }
                found = finished(&mut search) => {
                    search = None;
                    match found {
                        Some(Ok(found)) => {
                            failing = false;
                            self.take(found);
                        }
                        Some(Err(error)) => {
                            if !failing {
                                let proc = self.ground.proc.display();
                                tracing::error!(%proc, %error, "cannot look for pods' processes: mount the host's /proc there, or name it by --host-proc");
                            }
                            failing = true;
                        }
                        None => return,
                    }
                    let all = wanted.iter().all(|uid| self.knows(uid));
                    wait = if all || failing { SLOWLY } else { (wait * 2).min(SLOWLY) };
                    due = Instant::now() + wait;
                }
                () = sleep_until(due), if search.is_none() => {
                    self.forget_lost();
                    let asked: HashSet<_> = wanted.iter().filter(|uid| self.attached.get(uid).is_none()).cloned().collect();
                    if asked.is_empty() {
                        due = Instant::now() + SLOWLY;
                        continue;
                    }
                    let proc = self.ground.proc.clone();
                    search = Some(tokio::task::spawn_blocking(move || self::search(&proc, &asked)));
                }
            }
        }
    }

    fn knows(&self, uid: &WorkloadUid) -> bool {
        self.found.contains_key(uid) || self.attached.get(uid).is_some()
    }

    fn heed(&mut self, all: Vec<Told>, wanted: &HashSet<WorkloadUid>) {
        for told in all {
            match told {
                Told::Taken => {
                    self.attached.load();
                    let gone = self.attached.retain(|uid, _| wanted.contains(uid));
                    self.retire(gone.into_iter().map(|(_, attached)| attached.netns));
                }
                // One that has left the configuration meanwhile would never be let go of.
                Told::Attached(uid, attached) if wanted.contains(&uid) => {
                    self.ended.remove(&uid);
                    let old = self.attached.insert(uid.clone(), attached).map(|old| old.netns);
                    let found = self.found.remove(&uid);
                    self.retire(old.into_iter().chain(found));
                }
                Told::Attached(uid, _) => tracing::debug!(%uid, "a pod went while its network was made"),
                Told::Ended(container) => self.end(|attached| attached.container == container),
                Told::Left(containers) => self.end(|attached| !containers.contains(&attached.container)),
            }
        }
        self.publish();
    }

    fn end(&mut self, mut is_over: impl FnMut(&Attached) -> bool) {
        let gone = self.attached.retain(|_, attached| !is_over(attached));
        self.ended.extend(gone.iter().filter_map(|(uid, attached)| Some((uid.clone(), attached.inode()?))));
        self.retire(gone.into_iter().map(|(_, attached)| attached.netns));
    }

    /// Lets go of attachments whose namespace is gone: nobody may have said so to any agent.
    fn forget_lost(&mut self) {
        let now = Instant::now();
        self.retired.retain(|(until, _)| *until > now);
        let gone = self.attached.retain_there();
        if !gone.is_empty() {
            self.retire(gone.into_iter().map(|(_, attached)| attached.netns));
            self.publish();
        }
    }

    fn retire(&mut self, files: impl IntoIterator<Item = File>) {
        let until = Instant::now() + RETIRED;
        self.retired.extend(files.into_iter().map(|file| (until, file)));
    }

    /// Pods of the node that have a namespace of their own which no manifest names; lets go of those of pods that are gone.
    fn wanted(&mut self, snapshot: &Snapshot) -> HashSet<WorkloadUid> {
        let ours: Vec<_> = snapshot.workloads().filter(|w| w.node == self.ground.node && !w.host_network).collect();
        for workload in &ours {
            self.compare(workload);
        }
        let ours = ours.iter().map(|w| (&w.uid, &w.netns));
        let held =
            snapshot.held().iter().filter(|pod| pod.node.is_empty() || pod.node == self.ground.node).map(|pod| (&pod.uid, &pod.netns));
        let unnamed = ours.chain(held).filter(|(uid, netns)| netns.as_deref().is_none_or(is_ours) || self.knows(uid));
        let wanted: HashSet<WorkloadUid> = unnamed.map(|(uid, _)| uid.clone()).collect();
        self.ended.retain(|uid, _| wanted.contains(uid));
        self.differing.retain(|uid| wanted.contains(uid));
        let gone: Vec<File> = self.found.extract_if(|uid, _| !wanted.contains(uid)).map(|(_, netns)| netns).collect();
        let left = self.attached.retain(|uid, _| wanted.contains(uid));
        if !gone.is_empty() || !left.is_empty() {
            self.retire(gone.into_iter().chain(left.into_iter().map(|(_, attached)| attached.netns)));
            self.publish();
        }
        wanted
    }

    /// The pod's status is what counts; where the runtime said otherwise somebody should know.
    fn compare(&mut self, workload: &Workload) {
        let Some(attached) = self.attached.get(&workload.uid) else { return };
        let (status, runtime) = (&workload.addresses, &attached.addresses);
        if !status.is_empty() && !runtime.is_empty() && !same_addresses(status, runtime) && self.differing.insert(workload.uid.clone()) {
            let (namespace, name) = (&workload.namespace, &workload.name);
            tracing::warn!(
                pod = format!("{namespace}/{name}"),
                ?status,
                ?runtime,
                "a pod's status names other addresses than the runtime did: the status counts"
            );
        }
    }

    fn take(&mut self, found: HashMap<WorkloadUid, File>) {
        let mut replaced = Vec::new();
        let mut news = false;
        for (uid, netns) in found {
            // The runtime may have spoken since the search began.
            if self.attached.get(&uid).is_some() || self.ended.get(&uid).is_some_and(|ended| inode(&netns).ok() == Some(*ended)) {
                continue;
            }
            match self.found.get(&uid) {
                Some(known) if matches!((inode(known), inode(&netns)), (Ok(known), Ok(found)) if known == found) => {}
                _ => {
                    news = true;
                    replaced.extend(self.found.insert(uid, netns));
                }
            }
        }
        self.retire(replaced);
        if news {
            self.publish();
        }
    }

    fn publish(&self) {
        self.ground.count.set(i64::try_from(self.attached.iter().count()).unwrap_or(i64::MAX));
        let network = |netns: &File, addresses: &[IpAddr]| PodNetwork {
            netns: PathBuf::from(format!("{OWN_FILES}/{}", netns.as_raw_fd())),
            addresses: addresses.to_vec(),
        };
        let found = self.found.iter().map(|(uid, netns)| (uid.clone(), network(netns, &[])));
        let attached = self.attached.iter().map(|(uid, attached)| (uid.clone(), network(&attached.netns, &attached.addresses)));
        let networks: PodNetworks = found.chain(attached).collect();
        self.ground.networks.send_if_modified(|known| {
            let news = **known != networks;
            if news {
                *known = Arc::new(networks);
            }
            news
        });
    }
}

/// Where a process sees the files that it has open.
const OWN_FILES: &str = "/proc/self/fd";

/// Whether a path is one that was handed on here, and not a manifest's.
fn is_ours(netns: &Path) -> bool {
    netns.starts_with(OWN_FILES)
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
        if inode(&netns).is_ok_and(|(_, inode)| inode != own) {
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
