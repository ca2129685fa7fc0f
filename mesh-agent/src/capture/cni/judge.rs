//! Whether a pod may start. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use mesh_cni::protocol::{Answer, PodName};
use mesh_model::snapshot::Snapshot;
use mesh_model::workload::WorkloadUid;

use crate::sys::netns::Inode;

/// Where a pod of this node stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standing {
    /// The namespace that was opened for it.
    pub netns: Option<Inode>,
    /// How far it is.
    pub way: Way,
}

/// How far a pod is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Way {
    /// In the mesh, and served.
    Served,
    /// Not in the mesh, and known as such.
    Outside,
    /// It waits for this.
    Waits(Arc<str>),
}

/// All pods of the node at one moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standings {
    /// By pod.
    pub pods: HashMap<WorkloadUid, Standing>,
    /// Why the kernel does not know of it all, if it does not.
    pub unwritten: Option<Arc<str>>,
}

impl Default for Standings {
    /// Before the first turn of the control loop.
    fn default() -> Self {
        Standings { pods: HashMap::new(), unwritten: Some("the agent's start".into()) }
    }
}

/// The pod of this node that the runtime names; the error is what is awaited.
pub fn find(snapshot: &Snapshot, node: &str, pod: &PodName) -> Result<WorkloadUid, String> {
    let by_name = WorkloadUid(pod.to_string().into());
    let uid = match pod.uid.as_deref() {
        Some(uid) if !is_of_a_file(uid) => {
            // A pod that a manifest gives no UID goes by its name. One that has another UID is an earlier or later pod of the same name.
            let given = WorkloadUid(uid.into());
            if names(snapshot, &given).is_some() { given } else { by_name }
        }
        _ => {
            let is = |namespace: &str, name: &str| namespace == &*pod.namespace && name == &*pod.name;
            let known = snapshot.workloads().filter(|w| is(&w.namespace, &w.name)).map(|w| &w.uid);
            let held = snapshot.held().iter().filter(|h| is(&h.name.namespace, &h.name.name)).map(|h| &h.uid);
            known.chain(held).next().cloned().unwrap_or(by_name)
        }
    };
    let Some((namespace, name, of)) = names(snapshot, &uid) else {
        return Err("the configuration, which does not have it yet".to_owned());
    };
    if (namespace, name) != (&*pod.namespace, &*pod.name) {
        return Err(format!("the configuration, which has its UID for pod {namespace}/{name}"));
    }
    if of != node {
        return Err(format!("the configuration, which has it on node \"{of}\""));
    }
    Ok(uid)
}

/// Namespace, name and node.
fn names<'a>(snapshot: &'a Snapshot, uid: &WorkloadUid) -> Option<(&'a str, &'a str, &'a str)> {
    let held = || {
        let held = snapshot.held().iter().find(|held| held.uid == *uid)?;
        Some((&*held.name.namespace, &*held.name.name, &*held.node))
    };
    snapshot.workload(uid).map(|w| (&*w.namespace, &*w.name, &*w.node)).or_else(held)
}

/// Whether the kubelet made up the UID, for a pod of a file of its own: the API server has it under another, but nobody else may make a
/// pod of that name.
fn is_of_a_file(uid: &str) -> bool {
    uid.len() == 32 && uid.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether the pod may start in the namespace; the error is what is awaited.
pub fn judge(standings: &Standings, uid: &WorkloadUid, netns: Inode) -> Result<Answer, String> {
    let Some(standing) = standings.pods.get(uid) else { return Err("the agent's control loop".to_owned()) };
    // What is known of the pod's sandbox before this one says nothing.
    if standing.netns != Some(netns) {
        return Err(match &standing.way {
            Way::Waits(awaited) => awaited.to_string(),
            Way::Served | Way::Outside => "the agent's control loop to open its network namespace".to_owned(),
        });
    }
    match (&standing.way, &standings.unwritten) {
        (Way::Waits(awaited), _) => Err(awaited.to_string()),
        (_, Some(awaited)) => Err(awaited.to_string()),
        (Way::Served, None) => Ok(Answer::Captured),
        (Way::Outside, None) => Ok(Answer::Outside),
    }
}

#[cfg(test)]
mod tests;
