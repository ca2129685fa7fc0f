//! For whom a node may ask: the pods of the mesh that run on it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwap;
use mesh_model::identity::{Identity, TrustDomain};
use mesh_model::snapshot::Snapshot;
use tokio::sync::watch;

use super::refusal::Refusal;

/// Knows which pods run where.
pub trait Inventory: Send + Sync + 'static {
    /// Whether a node's agent may have a certificate for an identity.
    fn may_sign(&self, node: &str, identity: &Identity) -> Result<(), Refusal>;

    /// Counts up with every change of what is known.
    fn changes(&self) -> watch::Receiver<u64>;
}

/// Identities and the nodes on which enrolled pods have them.
#[derive(Debug, Default)]
pub struct Index {
    read: bool,
    trust_domain: TrustDomain,
    nodes: HashMap<Identity, BTreeSet<Arc<str>>>,
}

impl Index {
    /// Of the pods of a snapshot. Pods that are not understood are not in it, so nothing is signed for them.
    pub fn of(snapshot: &Snapshot) -> Index {
        let mut index =
            Index { read: snapshot.version() > 0, trust_domain: snapshot.settings().trust_domain.clone(), nodes: HashMap::new() };
        for workload in snapshot.workloads() {
            if workload.enrolled && !workload.host_network && !workload.node.is_empty() {
                index.nodes.entry(workload.identity.clone()).or_default().insert(workload.node.clone());
            }
        }
        index
    }

    /// As [`Inventory::may_sign`].
    pub fn may_sign(&self, node: &str, identity: &Identity) -> Result<(), Refusal> {
        if !self.read {
            return Err(Refusal::NotRead);
        }
        if *identity.trust_domain() != self.trust_domain {
            return Err(Refusal::TrustDomain { identity: Box::new(identity.clone()), trust_domain: self.trust_domain.clone() });
        }
        match self.nodes.get(identity) {
            Some(nodes) if nodes.contains(node) => Ok(()),
            _ => Err(Refusal::NotOnNode { identity: Box::new(identity.clone()), node: node.into() }),
        }
    }
}

/// The pods of the mesh as its configuration says, followed while that changes.
#[derive(Debug)]
pub struct MeshInventory {
    index: ArcSwap<Index>,
    changes: watch::Sender<u64>,
}

impl MeshInventory {
    /// Of a first snapshot.
    pub fn new(snapshot: &Snapshot) -> MeshInventory {
        MeshInventory { index: ArcSwap::from_pointee(Index::of(snapshot)), changes: watch::Sender::new(0) }
    }

    /// Takes another snapshot in its place.
    pub fn take(&self, snapshot: &Snapshot) {
        self.index.store(Arc::new(Index::of(snapshot)));
        self.changes.send_modify(|count| *count += 1);
    }

    /// How many identities can be signed for.
    pub fn identities(&self) -> usize {
        self.index.load().nodes.len()
    }
}

impl Inventory for MeshInventory {
    fn may_sign(&self, node: &str, identity: &Identity) -> Result<(), Refusal> {
        self.index.load().may_sign(node, identity)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

#[cfg(test)]
mod tests;
