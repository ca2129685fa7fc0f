//! For whom a node may ask: the pods of the mesh that run on it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use mesh_model::identity::{Identity, TrustDomain};
use mesh_model::manifests::ManifestSet;
use mesh_model::problem::{Problem, Severity};
use mesh_model::snapshot::Snapshot;
use parking_lot::Mutex;

use super::refusal::Refusal;
use crate::files::{self, Stamp};

/// Knows which pods run where.
pub trait Inventory: Send + Sync + 'static {
    /// Whether a node's agent may have a certificate for an identity.
    fn may_sign(&self, node: &str, identity: &Identity) -> Result<(), Refusal>;
}

/// Identities and the nodes on which enrolled pods have them.
#[derive(Debug, Default)]
pub struct Index {
    trust_domain: TrustDomain,
    nodes: HashMap<Identity, BTreeSet<Arc<str>>>,
}

impl Index {
    /// Of the pods of a snapshot. Pods that are not understood are not in it, so nothing is signed for them.
    pub fn of(snapshot: &Snapshot) -> Index {
        let mut index = Index { trust_domain: snapshot.settings().trust_domain.clone(), nodes: HashMap::new() };
        for workload in snapshot.workloads() {
            if workload.enrolled && !workload.host_network && !workload.node.is_empty() {
                index.nodes.entry(workload.identity.clone()).or_default().insert(workload.node.clone());
            }
        }
        index
    }

    /// How many identities there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// As [`Inventory::may_sign`].
    pub fn may_sign(&self, node: &str, identity: &Identity) -> Result<(), Refusal> {
        if *identity.trust_domain() != self.trust_domain {
            return Err(Refusal::TrustDomain { identity: Box::new(identity.clone()), trust_domain: self.trust_domain.clone() });
        }
        match self.nodes.get(identity) {
            Some(nodes) if nodes.contains(node) => Ok(()),
            _ => Err(Refusal::NotOnNode { identity: Box::new(identity.clone()), node: node.into() }),
        }
    }
}

/// The pods that a directory of manifests describes: its files `*.yaml`, `*.yml` and `*.json`, without its subdirectories.
pub struct ManifestInventory {
    directory: PathBuf,
    index: ArcSwap<Option<Index>>,
    reading: Mutex<Reading>,
}

#[derive(Default)]
struct Reading {
    set: ManifestSet,
    stamps: BTreeMap<PathBuf, Stamp>,
    snapshot: Option<Snapshot>,
    absent: bool,
    told: BTreeSet<Problem>,
}

impl ManifestInventory {
    /// Reads the directory.
    pub fn open(directory: &Path, now: SystemTime) -> ManifestInventory {
        let inventory = ManifestInventory { directory: directory.into(), index: ArcSwap::default(), reading: Mutex::default() };
        inventory.refresh(now);
        inventory
    }

    /// Reads what has changed; says whether something had. A directory that vanishes changes nothing but is told of.
    pub fn refresh(&self, now: SystemTime) -> bool {
        let mut reading = self.reading.lock();
        let stamps = match files::list(&self.directory, is_manifest) {
            Ok(stamps) => stamps,
            Err(error) => {
                if !std::mem::replace(&mut reading.absent, true) {
                    tracing::warn!(directory = %self.directory.display(), %error, "the directory of manifests cannot be read; the pods known before stay known");
                }
                return false;
            }
        };
        if std::mem::replace(&mut reading.absent, false) {
            tracing::info!(directory = %self.directory.display(), "the directory of manifests can be read again");
        }
        let mut changed = reading.snapshot.is_none();
        for (path, stamp) in &stamps {
            if reading.stamps.get(path) == Some(stamp) && stamp.settled(now) {
                continue;
            }
            changed = true;
            match files::read(path) {
                Ok(text) => reading.set.put(path, &text),
                Err(error) => reading.set.unreadable(path, &error),
            }
        }
        let gone: Vec<PathBuf> = reading.stamps.keys().filter(|path| !stamps.contains_key(*path)).cloned().collect();
        for path in gone {
            changed = true;
            reading.set.remove(&path);
        }
        reading.stamps = stamps;
        if changed {
            let snapshot = reading.set.snapshot(reading.snapshot.as_ref());
            self.index.store(Arc::new(Some(Index::of(&snapshot))));
            reading.tell(snapshot.problems());
            reading.snapshot = Some(snapshot);
        }
        changed
    }

    /// How many identities can be signed for; `None` as long as the directory could not be read.
    pub fn identities(&self) -> Option<usize> {
        self.index.load().as_ref().as_ref().map(Index::len)
    }
}

impl Reading {
    /// Logs each error once, for as long as it is there. What doesn't matter to pods is the agents' to tell.
    fn tell(&mut self, problems: &[Problem]) {
        let errors: BTreeSet<Problem> = problems.iter().filter(|problem| problem.severity == Severity::Error).cloned().collect();
        for problem in errors.difference(&self.told) {
            tracing::warn!(%problem, "a manifest is not understood");
        }
        self.told = errors;
    }
}

impl Inventory for ManifestInventory {
    fn may_sign(&self, node: &str, identity: &Identity) -> Result<(), Refusal> {
        match self.index.load().as_ref() {
            Some(index) => index.may_sign(node, identity),
            None => Err(Refusal::NoInventory(format!("the directory of manifests {} cannot be read", self.directory.display()))),
        }
    }
}

fn is_manifest(name: &str) -> bool {
    [".yaml", ".yml", ".json"].iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests;
