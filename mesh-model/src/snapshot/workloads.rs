//! Pods → workloads: identity, membership of the mesh, and who owns which address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::build::Sorted;
use super::{HeldPod, Snapshot};
use crate::identity::Identity;
use crate::object::{Kind, Object, PodObject, Word};
use crate::problem::{Origin, Severity};
use crate::workload::{PodNetworks, Workload, WorkloadUid};

/// A pod that became a workload.
pub(super) struct Pod {
    pub(super) object: Arc<PodObject>,
    pub(super) workload: Arc<Workload>,
}

/// Fills the snapshot's workloads and held pods; returns the former with what they were made from.
pub(super) fn join(snapshot: &mut Snapshot, sorted: &mut Sorted<'_>, networks: &PodNetworks, previous: Option<&Snapshot>) -> Vec<Pod> {
    let alive: Vec<(&Origin, Arc<PodObject>)> = sorted
        .all(Kind::Pod)
        .filter_map(|(origin, object)| match object {
            Object::Pod(pod) if !pod.finished => Some((origin, on_node(pod, networks))),
            _ => None,
        })
        .collect();
    let owners = owners(sorted, &alive);
    let mut pods = Vec::with_capacity(alive.len());
    for (i, (origin, pod)) in alive.iter().enumerate() {
        let addresses: Vec<IpAddr> = if pod.host_network {
            pod.addresses.clone()
        } else {
            pod.addresses.iter().copied().filter(|ip| owners.get(ip) == Some(&i)).collect()
        };
        let namespace = snapshot.namespaces.get(&pod.name.namespace).map_or(Word::Unsaid, |namespace| namespace.mesh);
        let wanted = Word::enrolled(pod.mesh, namespace);
        let enrolled = wanted && !pod.host_network;
        if wanted && pod.host_network && pod.mesh == Word::Enabled {
            let message = "asks for the mesh, but it uses its node's network, which is never in the mesh";
            sorted.problem(Severity::Warn, origin, format!("Pod {}", pod.name), "spec.hostNetwork", message.into());
        }
        let uid = if snapshot.workloads.contains_key(&pod.uid) {
            let message = format!("{} is another pod's too; this one goes by its name", pod.uid);
            sorted.problem(Severity::Warn, origin, format!("Pod {}", pod.name), "metadata.uid", message);
            WorkloadUid(pod.name.to_string().into())
        } else {
            pod.uid.clone()
        };
        let identity = Identity::new(snapshot.settings.trust_domain.clone(), &pod.name.namespace, &pod.service_account);
        let (identity, reason) = match (identity, &pod.refused) {
            (Ok(identity), None) => (identity, None),
            (Ok(identity), Some(reason)) => (identity, Some(reason.clone())),
            (Err(error), _) => {
                let message = format!(
                    "gives no identity: {error}; {}",
                    if enrolled { "the pod is held, nothing reaches it" } else { "the pod is not known" }
                );
                sorted.problem(Severity::Error, origin, format!("Pod {}", pod.name), "spec.serviceAccountName", message);
                if enrolled {
                    let reason = Arc::from(error.to_string());
                    snapshot.held.push(Arc::new(held(pod, uid, addresses, reason)));
                }
                continue;
            }
        };
        if let Some(reason) = reason {
            // Out of the mesh a pod that is half understood is none of ours.
            if enrolled {
                snapshot.held.push(Arc::new(held(pod, uid, addresses, reason)));
            }
            continue;
        }
        let workload = Workload {
            uid,
            namespace: pod.name.namespace.clone(),
            name: pod.name.name.clone(),
            identity,
            node: pod.node.clone(),
            addresses,
            enrolled,
            host_network: pod.host_network,
            netns: pod.netns.clone(),
            labels: pod.labels.clone(),
            canonical: pod.canonical.clone(),
        };
        let workload = match previous.and_then(|previous| previous.workloads.get(&workload.uid)) {
            Some(same) if **same == workload => same.clone(),
            _ => Arc::new(workload),
        };
        if !workload.host_network {
            snapshot.by_address.extend(workload.addresses.iter().map(|ip| (*ip, workload.clone())));
        }
        snapshot.workloads.insert(workload.uid.clone(), workload.clone());
        pods.push(Pod { object: pod.clone(), workload });
    }
    pods
}

/// The pod with what its node knows of it.
fn on_node(pod: &Arc<PodObject>, networks: &PodNetworks) -> Arc<PodObject> {
    let Some(network) = networks.get(&pod.uid).filter(|_| !pod.host_network) else { return pod.clone() };
    let mut pod = PodObject::clone(pod);
    pod.netns.get_or_insert_with(|| network.netns.clone());
    if pod.addresses.is_empty() {
        pod.addresses.clone_from(&network.addresses);
    }
    Arc::new(pod)
}

fn held(pod: &PodObject, uid: WorkloadUid, addresses: Vec<IpAddr>, reason: Arc<str>) -> HeldPod {
    HeldPod { uid, name: pod.name.clone(), node: pod.node.clone(), addresses, netns: pod.netns.clone(), reason }
}

/// Which pod, by its place in the list, owns an address: of several the newest, since an address is given again when its pod is gone.
fn owners(sorted: &mut Sorted<'_>, pods: &[(&Origin, Arc<PodObject>)]) -> HashMap<IpAddr, usize> {
    let mut owners: HashMap<IpAddr, usize> = HashMap::with_capacity(pods.len());
    // One without a time is taken for the oldest; of two alike the later document counts.
    let age = |i: usize| pods.get(i).map(|(_, pod)| (pod.created, i));
    for (i, (_, pod)) in pods.iter().enumerate().filter(|(_, (_, pod))| !pod.host_network) {
        for ip in &pod.addresses {
            let Some(other) = owners.insert(*ip, i) else { continue };
            let (loser, winner) = if age(other) > age(i) { (i, other) } else { (other, i) };
            owners.insert(*ip, winner);
            if let (Some((origin, loser)), Some((_, winner))) = (pods.get(loser), pods.get(winner)) {
                let message = format!("{ip} is also the address of the newer pod {}, to which it is taken to belong", winner.name);
                sorted.problem(Severity::Warn, origin, format!("Pod {}", loser.name), "status.podIPs", message);
            }
        }
    }
    owners
}
