//! This node's pods on their way into the mesh: namespace opened and captured, sockets there, certificate there, then served.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use mesh_model::policy::{CompiledPolicy, SetInterner};
use mesh_model::snapshot::Snapshot;
use mesh_model::workload::{Workload, WorkloadUid};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::kernel::Kernel;
use super::workers::Assign;
use crate::capture::accept::listen;
use crate::capture::desired::PodStatus;
use crate::identity::CertificateWatch;
use crate::policy::WorkloadPolicy;
use crate::policy::live::publish;
use crate::sys::netns::{self, NetNs};
use crate::upstream::connect::MARK;

/// A pod that is served: what the workers need of it.
pub struct LocalPod {
    /// The pod.
    pub workload: Arc<Workload>,
    /// Its namespace.
    pub netns: Arc<NetNs>,
    /// What may reach it.
    pub policy: watch::Receiver<Arc<WorkloadPolicy>>,
    /// Its certificate.
    pub certificate: CertificateWatch,
    /// Cancelled when it is no longer served.
    pub gone: CancellationToken,
    /// What peers are told of it, once anybody was.
    pub baggage: OnceLock<Arc<str>>,
}

impl LocalPod {
    /// `namespace/name`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.workload.namespace, self.workload.name)
    }

    /// As the configuration has it now: its labels may have changed since it was first served.
    pub fn current(&self, snapshot: &Snapshot) -> Arc<Workload> {
        snapshot.workload(&self.workload.uid).unwrap_or(&self.workload).clone()
    }

    /// Its address of the same family as `like`.
    pub fn address(&self, like: IpAddr) -> Option<IpAddr> {
        self.workload.addresses.iter().copied().find(|own| own.is_ipv4() == like.is_ipv4())
    }
}

/// How far a pod has come.
struct Entry {
    workload: Arc<Workload>,
    netns: Option<Arc<NetNs>>,
    policy: watch::Sender<Arc<WorkloadPolicy>>,
    compiled: Arc<CompiledPolicy>,
    certificate: CertificateWatch,
    served: Option<Arc<LocalPod>>,
    /// Why it is not served, for the operator.
    awaited: String,
}

/// The pods of this node that belong into the mesh.
pub struct Pods {
    node: Arc<str>,
    entries: HashMap<WorkloadUid, Entry>,
    /// Namespaces of pods that are not in the mesh, kept open so that their cookies stay theirs.
    outside: HashMap<WorkloadUid, NetNs>,
    /// Namespaces of pods that are held because they are not understood.
    held: HashMap<WorkloadUid, NetNs>,
    interner: SetInterner,
}

impl Pods {
    /// None yet.
    pub fn new(node: Arc<str>) -> Self {
        Pods { node, entries: HashMap::new(), outside: HashMap::new(), held: HashMap::new(), interner: SetInterner::default() }
    }

    fn ours<'a>(&self, snapshot: &'a Snapshot) -> impl Iterator<Item = &'a Arc<Workload>> {
        let node = self.node.clone();
        snapshot.workloads().filter(move |w| w.node == node && !w.host_network)
    }

    /// The identities that this node needs certificates for.
    pub fn identities(&self, snapshot: &Snapshot) -> std::collections::HashSet<mesh_model::identity::Identity> {
        self.ours(snapshot).filter(|w| w.enrolled).map(|w| w.identity.clone()).collect()
    }

    /// Takes over the configuration: pods that came, went or changed, and every pod's policy. Returns those that are no longer served and
    /// whether any policy changed.
    pub fn reconcile(
        &mut self,
        snapshot: &Snapshot,
        kernel: &mut Kernel,
        certificate: impl Fn(&mesh_model::identity::Identity) -> CertificateWatch,
    ) -> (Vec<WorkloadUid>, bool) {
        let mut gone: Vec<WorkloadUid> = Vec::new();
        for (uid, entry) in &self.entries {
            let still = snapshot.workload(uid).is_some_and(|now| {
                now.enrolled
                    && now.node == self.node
                    && now.identity == entry.workload.identity
                    && now.addresses == entry.workload.addresses
                    && now.netns == entry.workload.netns
            });
            if !still {
                gone.push(uid.clone());
            }
        }
        for uid in &gone {
            if let Some(entry) = self.entries.remove(uid) {
                leave(entry, kernel);
            }
        }
        let mut changed = !gone.is_empty();
        let ours: Vec<_> = self.ours(snapshot).cloned().collect();
        for workload in ours.iter().filter(|w| w.enrolled) {
            let policy = WorkloadPolicy::of(snapshot, workload, &mut self.interner);
            let compiled = Arc::new(policy.compiled().cloned().unwrap_or_default());
            match self.entries.get_mut(&workload.uid) {
                Some(entry) => {
                    entry.compiled = compiled;
                    entry.workload = workload.clone();
                    changed |= publish(&entry.policy, policy);
                }
                None => {
                    changed = true;
                    let entry = Entry {
                        workload: workload.clone(),
                        netns: None,
                        policy: watch::Sender::new(Arc::new(policy)),
                        compiled,
                        certificate: certificate(&workload.identity),
                        served: None,
                        awaited: "its network namespace".into(),
                    };
                    self.entries.insert(workload.uid.clone(), entry);
                }
            }
        }
        self.interner.sweep();
        self.open_others(snapshot, &ours);
        (gone, changed)
    }

    /// Keeps the namespaces of pods that are left alone, and of those that are held, so that the kernel can tell them from unknown ones.
    fn open_others(&mut self, snapshot: &Snapshot, ours: &[Arc<Workload>]) {
        let outside: HashMap<_, _> =
            ours.iter().filter(|w| !w.enrolled).filter_map(|w| Some((w.uid.clone(), w.netns.clone()?))).collect();
        let held: HashMap<_, _> = snapshot
            .held()
            .iter()
            .filter(|pod| pod.node.is_empty() || pod.node == self.node)
            .filter_map(|pod| Some((pod.uid.clone(), pod.netns.clone()?)))
            .collect();
        for (open, wanted) in [(&mut self.outside, outside), (&mut self.held, held)] {
            open.retain(|uid, _| wanted.contains_key(uid));
            for (uid, path) in wanted {
                if let std::collections::hash_map::Entry::Vacant(slot) = open.entry(uid)
                    && let Ok(netns) = NetNs::open(&path)
                {
                    slot.insert(netns);
                }
            }
        }
    }

    /// Brings each pod as far as it can come now. True if any is newly served, or no longer.
    pub async fn advance(&mut self, kernel: &mut Kernel, workers: &Assign) -> bool {
        let mut changed = false;
        for (uid, entry) in &mut self.entries {
            let before = entry.served.is_some();
            forget_lost_netns(entry, kernel);
            match step(entry, kernel, workers).await {
                Ok(()) => {}
                Err(awaited) if awaited == entry.awaited => {}
                Err(awaited) => {
                    tracing::warn!(pod = %format_args!("{}/{}", entry.workload.namespace, entry.workload.name), %uid, %awaited, "pod is held");
                    entry.awaited = awaited;
                }
            }
            changed |= before != entry.served.is_some();
        }
        changed
    }

    /// For the kernel's maps: the pods in the mesh, those outside, those that are not understood.
    pub fn status(&self) -> (HashMap<WorkloadUid, PodStatus>, HashMap<WorkloadUid, u64>, HashMap<WorkloadUid, u64>) {
        let status = |entry: &Entry| PodStatus {
            netns_cookie: entry.netns.as_ref().map(|netns| netns.cookie()),
            ready: entry.served.is_some(),
            policy: entry.compiled.clone(),
        };
        (
            self.entries.iter().map(|(uid, entry)| (uid.clone(), status(entry))).collect(),
            self.outside.iter().map(|(uid, netns)| (uid.clone(), netns.cookie())).collect(),
            self.held.iter().map(|(uid, netns)| (uid.clone(), netns.cookie())).collect(),
        )
    }

    /// Compiled policies, for naming what the kernel reports.
    pub fn policies(&self) -> impl Iterator<Item = (WorkloadUid, Arc<CompiledPolicy>)> + '_ {
        self.entries.iter().map(|(uid, entry)| (uid.clone(), entry.compiled.clone()))
    }

    /// Both ends that a direct connection may have, by address.
    pub fn parties(&self) -> HashMap<IpAddr, Arc<super::revoke::Party>> {
        let mut parties = HashMap::new();
        for entry in self.entries.values() {
            let Some(netns) = &entry.netns else { continue };
            let party = Arc::new(super::revoke::Party {
                identity: entry.workload.identity.clone(),
                netns: netns.clone(),
                policy: entry.compiled.clone(),
                ready: entry.served.is_some(),
            });
            parties.extend(entry.workload.addresses.iter().map(|ip| (*ip, party.clone())));
        }
        parties
    }

    /// Pods in the mesh, and how many of them are served.
    pub fn counts(&self) -> (usize, usize) {
        (self.entries.len(), self.entries.values().filter(|entry| entry.served.is_some()).count())
    }

    /// What pods wait for, one line a pod.
    pub fn awaited(&self) -> Vec<(Arc<Workload>, String)> {
        let waiting = self.entries.values().filter(|entry| entry.served.is_none());
        waiting.map(|entry| (entry.workload.clone(), entry.awaited.clone())).collect()
    }

    /// For the admin endpoint: the pods, and the policy of each.
    pub fn describe(&self) -> (serde_json::Value, serde_json::Value) {
        let name = |entry: &Entry| format!("{}/{}", entry.workload.namespace, entry.workload.name);
        let pods = self.entries.values().map(|entry| {
            serde_json::json!({
                "name": name(entry),
                "identity": entry.workload.identity.to_string(),
                "addresses": entry.workload.addresses,
                "netnsCookie": entry.netns.as_ref().map(|netns| netns.cookie()),
                "state": if entry.served.is_some() { "ready" } else { "held" },
                "awaited": if entry.served.is_some() { None } else { Some(&entry.awaited) },
            })
        });
        let policies = self.entries.values().map(|entry| {
            let names: Vec<String> = entry.compiled.names.iter().map(ToString::to_string).collect();
            serde_json::json!({ "workload": name(entry), "policies": names, "atoms": entry.compiled.ops.len() })
        });
        (pods.collect(), policies.collect())
    }

    /// Cookies of the namespaces that are or will be captured.
    pub fn cookies(&self) -> std::collections::HashSet<u64> {
        self.entries.values().filter_map(|entry| entry.netns.as_ref()).map(|netns| netns.cookie()).collect()
    }
}

/// A pod that was restarted has another namespace under the old name. Ours would live on only because we hold it.
fn forget_lost_netns(entry: &mut Entry, kernel: &mut Kernel) {
    let Some(netns) = &entry.netns else { return };
    if entry.workload.netns.as_ref().is_some_and(|path| netns.is_at(path)) {
        return;
    }
    if let Some(served) = entry.served.take() {
        withdraw(&served, kernel);
    }
    kernel.detach(netns.cookie());
    entry.netns = None;
}

/// Does the next steps for a pod; the error is what it waits for.
async fn step(entry: &mut Entry, kernel: &mut Kernel, workers: &Assign) -> Result<(), String> {
    let netns = match &entry.netns {
        Some(netns) => netns.clone(),
        None => {
            let path = entry.workload.netns.as_ref().ok_or("the annotation nodemesh.dev/netns, which names its network namespace")?;
            let netns = Arc::new(NetNs::open(path).map_err(|e| format!("its network namespace {}: {e}", path.display()))?);
            kernel.attach(&netns).map_err(|e| format!("the kernel program in its network namespace: {e}"))?;
            entry.netns = Some(netns.clone());
            netns
        }
    };
    if let Err(awaited) = entry.certificate.usable() {
        if let Some(served) = entry.served.take() {
            withdraw(&served, kernel);
        }
        return Err(format!("a certificate for {}: {awaited}", entry.workload.identity));
    }
    if entry.served.is_some() {
        return Ok(());
    }
    if entry.workload.addresses.is_empty() {
        return Err("an address (status.podIP)".into());
    }
    netns::prepare(&netns, MARK).await.map_err(|e| format!("the routing rule in its network namespace: {e}"))?;
    let listeners = listen(&netns, &entry.workload.addresses, workers.count()).map_err(|e| format!("the agent's sockets in it: {e}"))?;
    for listener in listeners.first().into_iter().flat_map(|first| &first.inbound) {
        let address = listener.local_addr().map_err(|e| e.to_string())?.ip();
        kernel.steer(address, listener).map_err(|e| format!("steering its plaintext: {e}"))?;
    }
    let pod = Arc::new(LocalPod {
        workload: entry.workload.clone(),
        netns,
        policy: entry.policy.subscribe(),
        certificate: entry.certificate.clone(),
        gone: CancellationToken::new(),
        baggage: OnceLock::new(),
    });
    workers.add(&pod, listeners);
    entry.served = Some(pod);
    entry.awaited = String::new();
    tracing::info!(pod = %format_args!("{}/{}", entry.workload.namespace, entry.workload.name), identity = %entry.workload.identity, "pod is in the mesh");
    Ok(())
}

/// Stops serving: nothing new is accepted, plaintext is dropped in the kernel.
fn withdraw(pod: &LocalPod, kernel: &mut Kernel) {
    for address in &pod.workload.addresses {
        if let Err(error) = kernel.unsteer(*address) {
            tracing::error!(%address, %error, "cannot stop steering");
        }
    }
    pod.gone.cancel();
}

/// A pod that is gone, or that left the mesh and runs on. The routing rule stays with it: connections that are open need it, and without
/// the mark it does nothing.
fn leave(entry: Entry, kernel: &mut Kernel) {
    if let Some(served) = &entry.served {
        withdraw(served, kernel);
    }
    if let Some(netns) = &entry.netns {
        kernel.detach(netns.cookie());
    }
    tracing::info!(pod = %format_args!("{}/{}", entry.workload.namespace, entry.workload.name), "pod left the mesh");
}
