//! This node's pods on their way into the mesh: namespace opened and captured, sockets there, certificate there, then served.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use arc_swap::ArcSwap;
use mesh_model::policy::{CompiledPolicy, SetInterner};
use mesh_model::snapshot::Snapshot;
use mesh_model::workload::{Workload, WorkloadUid, same_addresses};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::budget::{self, Budget};
use super::kernel::Kernel;
use super::revoke::{Parties, Party};
use super::workers::Assign;
use crate::capture::accept::{Listeners, listen};
use crate::capture::desired::PodStatus;
use crate::config::Config;
use crate::identity::CertificateWatch;
use crate::policy::live::publish;
use crate::policy::{KeyStore, Towards, WorkloadPolicy, limits};
use crate::sys::netns::{self, Inode, Lead, Migration, NetNs, Sysctls, where_to};
use crate::upstream::connect::MARK;

mod local;
mod standing;

pub use local::LocalPod;

/// How far a pod has come.
struct Entry {
    workload: Arc<Workload>,
    /// They outlive the pod's being served: so may its connections.
    connections: Arc<Budget>,
    tunnels: Arc<Budget>,
    netns: Option<Arc<NetNs>>,
    policy: watch::Sender<Arc<WorkloadPolicy>>,
    towards: Arc<ArcSwap<Towards>>,
    compiled: Arc<CompiledPolicy>,
    certificate: CertificateWatch,
    served: Option<Arc<LocalPod>>,
    /// Why it is not served, for the operator.
    awaited: String,
}

/// A captured namespace whose pod is in no configuration any more. What still runs in it is not to be reached in the clear.
struct Departed {
    cookie: u64,
    path: PathBuf,
    inode: Inode,
}

/// What a pod waits for whose network namespace nobody has named.
const NO_NETNS: &str = "its network namespace: in a manifest the annotation nodemesh.dev/netns names it, in a cluster the node finds it";

/// The pods of this node that belong into the mesh.
pub struct Pods {
    node: Arc<str>,
    limit: u32,
    sysctls: Sysctls,
    entries: HashMap<WorkloadUid, Entry>,
    /// Namespaces of pods that are not in the mesh, kept open so that their cookies stay theirs.
    outside: HashMap<WorkloadUid, NetNs>,
    /// Namespaces of pods that are held because they are not understood: captured, with nobody to steer to, so that plaintext is dropped.
    held: HashMap<WorkloadUid, NetNs>,
    /// Namespaces that stay captured after their pods left the configuration, until they are seen to be gone.
    departed: Vec<Departed>,
    /// Namespaces of pods that left the mesh and run on, until nothing in them needs what was set there any more.
    leaving: HashMap<WorkloadUid, Arc<NetNs>>,
    interner: SetInterner,
    limits: Arc<limits::Registry>,
    keys: Arc<KeyStore>,
}

impl Pods {
    /// None yet, of the agent's own node. Each will have places for so many connections and tunnels as the settings say, and budgets of
    /// `limits`.
    pub fn of(config: &Config, limits: Arc<limits::Registry>, keys: Arc<KeyStore>) -> Self {
        Pods {
            node: config.node.as_str().into(),
            limit: config.max_connections_per_pod.unwrap_or_default(),
            sysctls: Sysctls::of(&config.host_proc),
            entries: HashMap::new(),
            outside: HashMap::new(),
            held: HashMap::new(),
            departed: Vec::new(),
            leaving: HashMap::new(),
            interner: SetInterner::default(),
            limits,
            keys,
        }
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
        let gone = self.gone(snapshot);
        let mut kept: HashMap<WorkloadUid, Arc<NetNs>> = HashMap::new();
        for uid in &gone {
            let Some(entry) = self.entries.remove(uid) else { continue };
            if let Some(served) = &entry.served {
                withdraw(served, kernel);
                tracing::info!(pod = %name(&entry.workload), "pod is no longer served as it was");
            }
            let Some(netns) = entry.netns else { continue };
            match snapshot.workload(uid) {
                // The only way out of the mesh for a pod that runs on.
                Some(now) if !now.enrolled => {
                    kernel.detach(netns.cookie());
                    self.leaving.insert(uid.clone(), netns);
                }
                Some(now) if now.netns == entry.workload.netns => drop(kept.insert(uid.clone(), netns)),
                _ => self.departed.extend(depart(&netns, entry.workload.netns.as_ref())),
            }
        }
        let mut changed = !gone.is_empty();
        let ours: Vec<_> = self.ours(snapshot).cloned().collect();
        for workload in ours.iter().filter(|w| w.enrolled) {
            self.leaving.remove(&workload.uid);
            let policy = in_force(snapshot, workload, &mut self.interner, &self.limits, &self.keys);
            let towards = Arc::new(Towards::of(snapshot, workload, &self.limits, Instant::now()));
            let compiled = Arc::new(policy.compiled().cloned().unwrap_or_default());
            match self.entries.get_mut(&workload.uid) {
                Some(entry) => {
                    entry.compiled = compiled;
                    entry.workload = workload.clone();
                    entry.towards.store(towards);
                    changed |= publish(&entry.policy, policy);
                }
                None => {
                    changed = true;
                    let entry = Entry {
                        workload: workload.clone(),
                        connections: Budget::new(self.limit),
                        tunnels: budget::tunnels(self.limit),
                        netns: kept.remove(&workload.uid),
                        policy: watch::Sender::new(Arc::new(policy)),
                        towards: Arc::new(ArcSwap::new(towards)),
                        compiled,
                        certificate: certificate(&workload.identity),
                        served: None,
                        awaited: "its network namespace".into(),
                    };
                    self.entries.insert(workload.uid.clone(), entry);
                }
            }
        }
        self.sweep();
        (gone, changed)
    }

    /// Lets go of what no policy has any more.
    fn sweep(&mut self) {
        self.interner.sweep();
        self.limits.sweep();
        self.keys.sweep();
    }

    /// Pods that are no longer to be served as they were.
    fn gone(&self, snapshot: &Snapshot) -> Vec<WorkloadUid> {
        let still = |uid: &WorkloadUid, entry: &Entry| {
            snapshot.workload(uid).is_some_and(|now| {
                now.enrolled
                    && now.node == self.node
                    && now.identity == entry.workload.identity
                    && same_addresses(&now.addresses, &entry.workload.addresses)
                    && now.netns == entry.workload.netns
            })
        };
        self.entries.iter().filter(|(uid, entry)| !still(uid, entry)).map(|(uid, _)| uid.clone()).collect()
    }

    /// As [`Pods::reconcile`] once another agent writes the kernel's maps, or is about to: policies are put in force for the connections
    /// that still live, and those of pods that are gone end. No pod is taken on. Returns the pods that are no longer served.
    pub fn follow(&mut self, snapshot: &Snapshot) -> Vec<WorkloadUid> {
        let gone = self.gone(snapshot);
        for served in gone.iter().filter_map(|uid| self.entries.remove(uid)?.served) {
            served.gone.cancel();
        }
        let Pods { entries, interner, limits, keys, .. } = self;
        for entry in entries.values_mut() {
            let Some(workload) = snapshot.workload(&entry.workload.uid) else { continue };
            entry.workload = workload.clone();
            entry.towards.store(Arc::new(Towards::of(snapshot, workload, limits, Instant::now())));
            publish(&entry.policy, in_force(snapshot, workload, interner, limits, keys));
        }
        self.sweep();
        gone
    }

    /// Lets connections that wait at listeners of this agent go to those of the next, should this one close its own.
    pub fn migrations(&self) -> Vec<Migration> {
        let served = self.entries.values().filter_map(|entry| entry.served.as_ref());
        let start = |pod: &Arc<LocalPod>| {
            Migration::start(pod.netns.clone(), self.sysctls.clone())
                .inspect_err(|error| tracing::warn!(pod = %pod.name(), %error, "connections that wait to be accepted will be reset"))
                .ok()
        };
        served.filter_map(start).collect()
    }

    /// Takes back what was set in the namespaces of pods that left the mesh, once `is_idle` says that no connection of the pod needs it.
    pub async fn restore(&mut self, is_idle: impl Fn(&WorkloadUid) -> bool) {
        let idle: Vec<WorkloadUid> = self.leaving.keys().filter(|uid| is_idle(uid)).cloned().collect();
        for uid in idle {
            let Some(netns) = self.leaving.remove(&uid) else { continue };
            match netns::restore(&netns, &self.sysctls, MARK).await {
                Ok(true) => tracing::info!(%uid, "the network namespace of a pod that left the mesh is as it was"),
                Ok(false) => {}
                Err(error) => tracing::error!(%uid, %error, "what the mesh set in the network namespace of a pod that left it stays there"),
            }
        }
    }

    /// Finds the namespaces of pods that are left alone and of those that are held, so that the kernel can tell them from unknown ones, and
    /// captures those of pods that belong into the mesh. To be followed by a write of the kernel's maps before [`Pods::advance`].
    pub fn open(&mut self, snapshot: &Snapshot, kernel: &mut Kernel) {
        let ours = self.ours(snapshot).filter(|w| !w.enrolled);
        let outside: HashMap<_, _> = ours.filter_map(|w| Some((w.uid.clone(), w.netns.clone()?))).collect();
        let held: HashMap<_, _> = snapshot
            .held()
            .iter()
            .filter(|pod| pod.node.is_empty() || pod.node == self.node)
            .filter_map(|pod| Some((pod.uid.clone(), pod.netns.clone()?)))
            .collect();
        // A pod may have left the mesh while no agent was there to see it.
        let leaving = &mut self.leaving;
        follow(&mut self.outside, &outside, |uid, netns| match netns.duplicate() {
            Ok(netns) => {
                leaving.insert(uid.clone(), Arc::new(netns));
                true
            }
            Err(_) => false,
        });
        follow(&mut self.held, &held, |_, netns| match kernel.attach(netns) {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, "cannot capture the namespace of a pod that is held");
                false
            }
        });
        for entry in self.entries.values_mut() {
            if let Err(awaited) = open_netns(entry, &mut self.departed, kernel)
                && awaited != entry.awaited
            {
                tracing::warn!(pod = %name(&entry.workload), %awaited, "pod is held");
                entry.awaited = awaited;
            }
        }
        self.departed.retain(|departed| {
            let gone = where_to(&departed.path, departed.inode) != Lead::There;
            if gone {
                kernel.detach(departed.cookie);
            }
            !gone
        });
    }

    /// Brings each pod as far as it can come now. True if any is newly served, or no longer.
    pub async fn advance(&mut self, kernel: &mut Kernel, workers: &Assign) -> bool {
        let mut changed = false;
        for (uid, entry) in &mut self.entries {
            if entry.netns.is_none() {
                continue;
            }
            let before = entry.served.is_some();
            match step(entry, kernel, workers, &self.sysctls).await {
                Ok(()) => {}
                Err(awaited) if awaited == entry.awaited => {}
                Err(awaited) => {
                    tracing::warn!(pod = %name(&entry.workload), %uid, %awaited, "pod is held");
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
            policy: entry.policy.borrow().clone(),
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

    /// Both ends that a connection judged in the kernel may have.
    pub fn parties(&self, snapshot: &Snapshot) -> Parties {
        let mut parties = Parties::default();
        parties.outside.extend(self.ours(snapshot).filter(|w| !w.enrolled).flat_map(|w| w.addresses.iter().copied()));
        for entry in self.entries.values() {
            let Some(netns) = &entry.netns else { continue };
            let party = Arc::new(Party {
                identity: entry.workload.identity.clone(),
                netns: netns.clone(),
                policy: entry.policy.borrow().clone(),
                ready: entry.served.is_some(),
            });
            parties.meshed.extend(entry.workload.addresses.iter().map(|ip| (*ip, party.clone())));
        }
        parties
    }

    /// This node's pods by the cookies of their network namespaces, as far as those are open.
    pub fn namespaces(&self) -> HashMap<u64, WorkloadUid> {
        let meshed = self.entries.iter().filter_map(|(uid, entry)| Some((entry.netns.as_ref()?.cookie(), uid.clone())));
        let others = self.outside.iter().chain(&self.held).map(|(uid, netns)| (netns.cookie(), uid.clone()));
        others.chain(meshed).collect()
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
                "connections": entry.connections.used(),
                "tunnels": entry.tunnels.used(),
                "maxConnections": entry.connections.limit(),
                "maxTunnels": entry.tunnels.limit(),
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

    /// Cookies of the namespaces of pods that are in the configuration and not in the mesh.
    pub fn outside(&self) -> impl Iterator<Item = u64> + '_ {
        self.outside.values().map(NetNs::cookie)
    }
}

fn in_force(
    snapshot: &Snapshot,
    workload: &Workload,
    interner: &mut SetInterner,
    limits: &limits::Registry,
    keys: &KeyStore,
) -> WorkloadPolicy {
    let limits = limits.limits(Instant::now(), &workload.uid, snapshot.limits_for(workload));
    WorkloadPolicy::of(snapshot, workload, interner).limited(limits).keyed(&|location| keys.slot(location))
}

fn name(workload: &Workload) -> String {
    format!("{}/{}", workload.namespace, workload.name)
}

/// A namespace to be detached once it is gone. Under `/proc` a path says nothing about its namespace: such a link is left to die with it.
fn depart(netns: &NetNs, path: Option<&PathBuf>) -> Option<Departed> {
    let path = path.filter(|path| !path.starts_with("/proc"))?;
    Some(Departed { cookie: netns.cookie(), path: path.clone(), inode: netns.inode().ok()? })
}

/// Whether the pod no longer has the namespace.
fn is_lost(path: &Path, inode: Inode) -> bool {
    match where_to(path, inode) {
        Lead::There => false,
        Lead::Elsewhere => true,
        Lead::Nowhere => !path.starts_with("/proc"),
    }
}

/// Opens what is wanted and not open, drops what is not wanted or was made anew. `take` may refuse one; it is tried again.
fn follow(
    open: &mut HashMap<WorkloadUid, NetNs>,
    wanted: &HashMap<WorkloadUid, PathBuf>,
    mut take: impl FnMut(&WorkloadUid, &NetNs) -> bool,
) {
    open.retain(|uid, netns| wanted.get(uid).is_some_and(|path| netns.inode().is_ok_and(|inode| !is_lost(path, inode))));
    for (uid, path) in wanted {
        if let std::collections::hash_map::Entry::Vacant(slot) = open.entry(uid.clone())
            && let Ok(netns) = NetNs::open(path)
            && take(uid, &netns)
        {
            slot.insert(netns);
        }
    }
}

/// The first step: the pod's namespace is open and captured. A pod that was restarted has another one under the old name, and the old one
/// would live on only because we hold it.
fn open_netns(entry: &mut Entry, departed: &mut Vec<Departed>, kernel: &mut Kernel) -> Result<(), String> {
    let path = entry.workload.netns.as_ref().ok_or(NO_NETNS)?;
    if let Some(netns) = &entry.netns {
        let inode = netns.inode().map_err(|e| format!("its network namespace: {e}"))?;
        if !is_lost(path, inode) {
            return Ok(());
        }
        if let Some(served) = entry.served.take() {
            withdraw(&served, kernel);
        }
        departed.extend(depart(netns, Some(path)));
        entry.netns = None;
    }
    let netns = Arc::new(NetNs::open(path).map_err(|e| format!("its network namespace {}: {e}", path.display()))?);
    kernel.attach(&netns).map_err(|e| format!("the kernel program in its network namespace: {e}"))?;
    entry.netns = Some(netns);
    Ok(())
}

/// Does the next steps for a pod whose namespace is open; the error is what it waits for.
async fn step(entry: &mut Entry, kernel: &mut Kernel, workers: &Assign, sysctls: &Sysctls) -> Result<(), String> {
    let netns = entry.netns.clone().ok_or("its network namespace")?;
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
    netns::prepare(&netns, sysctls, MARK).await.map_err(|e| format!("the routing rule in its network namespace: {e}"))?;
    let listeners = listen(&netns, &entry.workload.addresses, workers.count()).map_err(|e| format!("the agent's sockets in it: {e}"))?;
    for listener in listeners.iter().flat_map(Listeners::all) {
        kernel.own(listener).map_err(|e| format!("marking the agent's sockets in it: {e}"))?;
    }
    for listener in listeners.first().into_iter().flat_map(|first| &first.inbound) {
        let address = listener.local_addr().map_err(|e| e.to_string())?.ip();
        kernel.steer(address, listener).map_err(|e| format!("steering its plaintext: {e}"))?;
    }
    let pod = Arc::new(LocalPod {
        workload: entry.workload.clone(),
        netns,
        policy: entry.policy.subscribe(),
        towards: entry.towards.clone(),
        certificate: entry.certificate.clone(),
        connections: entry.connections.clone(),
        tunnels: entry.tunnels.clone(),
        gone: CancellationToken::new(),
        baggage: OnceLock::new(),
    });
    workers.add(&pod, listeners);
    entry.served = Some(pod);
    entry.awaited = String::new();
    tracing::info!(pod = %name(&entry.workload), identity = %entry.workload.identity, "pod is in the mesh");
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
