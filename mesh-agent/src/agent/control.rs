//! The control loop: configuration, certificates and pods → sockets, maps, policies. It is the only one that changes any of them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use mesh_model::service::NamespacedName;
use mesh_model::snapshot::Snapshot;
use mesh_model::workload::WorkloadUid;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::adopted::{Adopted, Used};
use super::directory::Directory;
use super::handover::Predecessor;
use super::kernel::{Kernel, KernelError};
use super::pods::Pods;
use super::reports::{Reports, Revoker};
use super::unix_seconds;
use super::workers::Assign;
use crate::capture::cni::judge::Standings;
use crate::capture::desired::{Registry, desired, forget};
use crate::capture::maps::Flows;
use crate::config::Config;
use crate::identity::Secrets;
use crate::ops::PeerInfo;
use crate::ops::ready::Blocker;
use crate::outcome::{Outcome, Side};
use crate::shared::Shared;

/// Between two looks after pods that wait, and after namespaces that may have been replaced.
const EVERY: Duration = Duration::from_millis(500);
/// How long what an earlier agent left stays in force while this one gets its pods' certificates and sockets.
const ADOPTION: Duration = Duration::from_secs(10);

/// Turns of the loop between two looks after links whose namespaces are gone.
const ORPHANS: u32 = 20;
/// Between two looks at which numbers of earlier agents are still carried by connections; many times as long as reports are waited for.
const ADOPTED_LOOK: Duration = Duration::from_secs(10);

/// How often direct connections are looked through after a change.
const SWEEPS: u8 = 4;

/// By which the writer of the kernel's maps is told to stop, and says that it has.
#[derive(Clone, Default)]
pub struct Reins {
    /// Cancelled: it is to write no more.
    pub stop: CancellationToken,
    /// Cancelled: it writes no more.
    pub stopped: CancellationToken,
    /// Cancelled: the kernel's reports are another's to read.
    pub hush: CancellationToken,
    /// Cancelled: nobody here reads them any more.
    pub hushed: CancellationToken,
}

/// What the loop shows of itself.
pub struct Views {
    /// For the admin endpoint.
    pub status: watch::Sender<Arc<Value>>,
    /// Where each pod stands.
    pub standings: watch::Sender<Arc<Standings>>,
}

/// The loop's state.
pub struct Control {
    config: Config,
    shared: Arc<Shared>,
    kernel: Kernel,
    secrets: Secrets,
    pods: Pods,
    registry: Registry,
    adopted: Adopted,
    adopted_look: Instant,
    names: Arc<ArcSwap<Directory>>,
    flows: Arc<Mutex<Flows>>,
    revoker: Revoker,
    reports: Option<Reports>,
    views: Views,
    unwritten: Option<Arc<str>>,
    starting: Option<Blocker>,
    known: HashSet<WorkloadUid>,
    services: HashSet<NamespacedName>,
    adopt_until: Option<Instant>,
    sweeps: u8,
    ends_read: watch::Receiver<bool>,
    failing: Option<String>,
    predecessor: Option<Predecessor>,
    relieved: Option<CancellationToken>,
    turn: u32,
}

impl Control {
    /// Opens what is pinned; changes nothing yet. `starting` is dropped once every pod is served; `predecessor` is told then, or once it has
    /// been waited for long enough.
    pub fn new(
        config: Config,
        shared: Arc<Shared>,
        mut kernel: Kernel,
        secrets: Secrets,
        starting: Blocker,
        views: Views,
        predecessor: Option<Predecessor>,
    ) -> Result<Self, KernelError> {
        let names = Arc::new(ArcSwap::from_pointee(Directory::default()));
        kernel.start_log();
        let fill = kernel.fill();
        shared.telemetry.metrics().collect_maps(move || fill.load().to_vec());
        let (reports, flows) = Reports::open(kernel.pins(), kernel.adopted(), shared.telemetry.clone(), names.clone())?;
        let adopt_until = (kernel.adopted() || predecessor.is_some()).then(|| Instant::now() + ADOPTION);
        let adopted = Adopted::of(kernel.state(), flows.lock().live());
        Ok(Control {
            pods: Pods::of(&config, shared.limits.clone(), shared.keys.clone()),
            ends_read: shared.telemetry.access().reads_all(),
            config,
            shared,
            kernel,
            secrets,
            registry: Registry::new(adopted.base(rand::random())),
            adopted,
            adopted_look: Instant::now() + ADOPTED_LOOK,
            names,
            flows,
            revoker: reports.revoker(),
            reports: Some(reports),
            views,
            unwritten: None,
            starting: Some(starting),
            known: HashSet::new(),
            services: HashSet::new(),
            adopt_until,
            sweeps: SWEEPS,
            failing: None,
            predecessor,
            relieved: None,
            turn: 0,
        })
    }

    /// Runs until the configuration's source ends. Once it is told to stop it writes nothing any more, and stays for what it holds: the
    /// policies of live connections, which go on being followed.
    pub async fn run(mut self, mut snapshots: watch::Receiver<Arc<Snapshot>>, workers: Assign, reins: Reins) {
        let Reins { stop, stopped, hush, hushed } = reins;
        if let Some(reports) = self.reports.take() {
            tokio::task::spawn_local(async move {
                reports.follow(hush).await;
                hushed.cancel();
            });
        }
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut certificates = self.secrets.changes();
        let mut snapshot = snapshots.borrow_and_update().clone();
        let mut fresh = true;
        loop {
            let mut changed = fresh && self.take(&snapshot);
            fresh = false;
            self.pods.open(&snapshot, &mut self.kernel);
            // Who is to be served must be known to the kernel first, or it would hand the agent its own deliveries.
            self.write(&snapshot, changed);
            if self.pods.advance(&mut self.kernel, &workers).await {
                changed = true;
                self.write(&snapshot, changed);
            }
            self.show_standings(&snapshot);
            self.revoke(changed);
            self.tidy().await;
            self.forget_adopted(&snapshot);
            let relieved = self.relieved.clone();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = async { relieved.unwrap_or_default().cancelled().await } => self.forget_former(),
                _ = tick.tick() => {}
                _ = certificates.changed() => {}
                _ = self.ends_read.changed() => {}
                news = snapshots.changed() => {
                    if news.is_err() {
                        return;
                    }
                    snapshot = snapshots.borrow_and_update().clone();
                    fresh = true;
                }
            }
        }
        let _migrations = self.pods.migrations();
        stopped.cancel();
        while snapshots.changed().await.is_ok() {
            let snapshot = snapshots.borrow_and_update().clone();
            self.shared.snapshot.store(snapshot.clone());
            let gone = self.pods.follow(&snapshot);
            self.settle(&snapshot, &gone);
        }
        // What is held here is needed until the process ends.
        std::future::pending().await
    }

    /// What can wait: nothing of it is in a connection's way.
    async fn tidy(&mut self) {
        let live = self.shared.telemetry.live();
        let is = |peer: &PeerInfo, uid: &WorkloadUid| peer.workload.as_ref().is_some_and(|workload| workload.uid == *uid);
        let idle = |uid: &WorkloadUid| {
            let (_, open) = live.select(0, |c| is(&c.connection.labels.source, uid) || is(&c.connection.labels.destination, uid));
            open == 0
        };
        self.pods.restore(idle).await;
        self.turn = (self.turn + 1) % ORPHANS;
        if self.turn == 0 {
            self.kernel.forget_orphans();
        }
    }

    /// The agent before this one can go: its pods are served, or have been waited for.
    fn relieve(&mut self) {
        let Some(predecessor) = self.predecessor.take() else { return };
        let relieved = CancellationToken::new();
        self.relieved = Some(relieved.clone());
        tracing::info!(pid = predecessor.pid, "the agent before this one is relieved: this one serves its pods");
        tokio::task::spawn_local(async move {
            predecessor.relieve().await;
            relieved.cancel();
        });
    }

    /// The agent before this one is gone.
    fn forget_former(&mut self) {
        self.relieved = None;
        match self.kernel.forget_former() {
            Ok(()) => tracing::info!("the agent before this one has ended"),
            Err(error) => tracing::error!(%error, "the cgroup of the agent before this one goes on passing for the agent's"),
        }
    }

    /// Puts a configuration in force, as far as user space goes. True if anything changed for the pods of this node.
    fn take(&mut self, snapshot: &Arc<Snapshot>) -> bool {
        self.shared.snapshot.store(snapshot.clone());
        self.shared.names.want(&crate::names::wanted(snapshot, &self.config.node));
        self.secrets.ensure(self.pods.identities(snapshot));
        let secrets = self.secrets.clone();
        let (gone, changed) = self.pods.reconcile(snapshot, &mut self.kernel, |identity| secrets.watch(identity));
        self.settle(snapshot, &gone);
        changed
    }

    /// Ends the connections of pods that are no longer served, and of those of any node that are in no configuration any more; shows the
    /// configuration as the one in force.
    fn settle(&mut self, snapshot: &Snapshot, gone: &[WorkloadUid]) {
        let now: HashSet<WorkloadUid> = snapshot.workloads().map(|w| w.uid.clone()).collect();
        let vanished: HashSet<&WorkloadUid> = self.known.difference(&now).collect();
        for uid in &vanished {
            self.shared.telemetry.metrics().forget(uid, Instant::now());
        }
        // Pods of other nodes count too: one that vanished with its node ends no connection by itself.
        let lost: HashSet<&WorkloadUid> = gone.iter().chain(vanished).collect();
        if !lost.is_empty() {
            let is = |peer: &PeerInfo| peer.workload.as_ref().is_some_and(|workload| lost.contains(&workload.uid));
            let live = self.shared.telemetry.live();
            live.close_where(&Outcome::PodGone { side: Side::Server }, |c| is(&c.connection.labels.destination));
            live.close_where(&Outcome::PodGone { side: Side::Client }, |c| is(&c.connection.labels.source));
        }
        for uid in self.known.difference(&now) {
            self.shared.clusters.forget(uid);
        }
        self.shared.tables.sweep(snapshot);
        self.shared.clusters.sweep(snapshot);
        self.known = now;
        let services: HashSet<NamespacedName> = snapshot.services().map(|service| service.name.clone()).collect();
        for service in self.services.difference(&services) {
            self.shared.telemetry.metrics().forget_service(service, Instant::now());
        }
        self.services = services;
        let agent = &self.shared.telemetry.metrics().agent;
        agent.config_version.set(snapshot.version() as i64);
        agent.config_applied.set(unix_seconds());
        agent.config_problems.set(snapshot.problems().len() as i64);
    }

    /// Brings the kernel's maps in step.
    fn write(&mut self, snapshot: &Snapshot, changed: bool) {
        let (all, served) = self.pods.counts();
        let agent = &self.shared.telemetry.metrics().agent;
        agent.pods_held.set((all - served) as i64);
        agent.pods_ready.set(served as i64);
        if let Some(until) = self.adopt_until {
            if served < all && Instant::now() < until {
                self.unwritten = Some("the pods of the agent before this one".into());
                self.name(snapshot);
                self.report_start(all, served);
                return;
            }
            self.adopt_until = None;
            self.detach_outside();
        }
        let (pods, outside, held) = self.pods.status();
        let want = desired(snapshot, &self.config.node, &pods, &outside, &held, &mut self.registry);
        // Of what is ended for a change, it is told in any case.
        let report_ends = *self.ends_read.borrow_and_update() || changed || self.sweeps > 0;
        match self.kernel.apply(snapshot, report_ends, want) {
            Ok(0) if !changed => self.unwritten = None,
            Ok(writes) => {
                tracing::debug!(writes, version = snapshot.version(), "the kernel's maps are in step");
                forget(snapshot, self.kernel.state(), &mut self.registry);
                self.name(snapshot);
                self.failing = None;
                self.unwritten = None;
            }
            Err(error) => {
                self.name(snapshot);
                let message = error.to_string();
                self.unwritten = Some(format!("the kernel's maps: {message}").into());
                if self.failing.as_ref() != Some(&message) {
                    tracing::error!(%error, "the kernel's maps are not in step with the configuration; all else is, and it is tried again");
                    self.failing = Some(message);
                }
            }
        }
        self.report_start(all, served);
        self.publish_status();
        self.relieve();
    }

    fn name(&mut self, snapshot: &Snapshot) {
        if !self.adopted.is_empty() {
            self.adopted.settle(snapshot, &self.pods.namespaces());
        }
        let names = Directory::new(snapshot, &self.registry, &self.adopted, self.pods.policies(), &self.config.cluster_domain);
        self.names.store(Arc::new(names));
    }

    /// Lets go of the numbers of earlier agents that nothing carries any more. Until the maps are this agent's own, new connections do.
    fn forget_adopted(&mut self, snapshot: &Snapshot) {
        let now = Instant::now();
        if self.adopted.is_empty() || self.adopt_until.is_some() || now < self.adopted_look {
            return;
        }
        self.adopted_look = now + ADOPTED_LOOK;
        let used = Used::by(self.flows.lock().live());
        if self.adopted.retain(&used) {
            self.name(snapshot);
        }
    }

    /// Ends direct connections that policy no longer allows. A connect() that was judged just before the change shows among the live ones
    /// only a little later, so it is looked for again after each change.
    fn revoke(&mut self, changed: bool) {
        if changed {
            self.sweeps = SWEEPS;
        }
        // What an earlier agent let through goes on until this one serves its pods and can judge.
        if self.adopt_until.is_some() {
            return;
        }
        let Some(left) = self.sweeps.checked_sub(1) else { return };
        self.sweeps = left;
        let parties = self.pods.parties(&self.shared.snapshot.load());
        self.revoker.sweep(&parties);
    }

    /// Namespaces that an earlier agent captured, of pods that have been taken out of the mesh since. All others stay captured.
    fn detach_outside(&mut self) {
        let outside: HashSet<u64> = self.pods.outside().collect();
        for cookie in self.kernel.attached_netns().into_iter().filter(|cookie| outside.contains(cookie)) {
            self.kernel.detach(cookie);
        }
    }

    fn report_start(&mut self, all: usize, served: usize) {
        let Some(starting) = &self.starting else { return };
        let mut lines: Vec<String> = misnamed(&self.shared.snapshot.load(), &self.config.node).into_iter().collect();
        if served == all && lines.is_empty() {
            self.starting = None;
            return;
        }
        lines.extend(self.pods.awaited().iter().map(|(pod, what)| format!("{}/{} waits for {what}", pod.namespace, pod.name)));
        starting.progress(lines.join("; "));
    }

    /// Tells those who wait for a pod's start.
    fn show_standings(&self, snapshot: &Snapshot) {
        let now = self.pods.standings(snapshot, self.unwritten.clone());
        self.views.standings.send_if_modified(|standings| {
            let differs = **standings != now;
            if differs {
                *standings = Arc::new(now);
            }
            differs
        });
    }

    fn publish_status(&self) {
        self.views.status.send_if_modified(|status| {
            let now = self.pods.describe();
            let value = json!({ "workloads": now.0, "policies": now.1 });
            let differs = **status != value;
            if differs {
                *status = Arc::new(value);
            }
            differs
        });
    }
}

/// What is wrong with this node's name, if no node of the configuration has it: then no pod is its own, and it would serve nobody. Where no
/// node is described, any name will do.
fn misnamed(snapshot: &Snapshot, node: &str) -> Option<String> {
    const TOLD: usize = 5;
    if snapshot.nodes().len() == 0 || snapshot.node(node).is_some() {
        return None;
    }
    let mut names: Vec<&str> = snapshot.nodes().take(TOLD).map(|node| &*node.name).collect();
    if snapshot.nodes().len() > TOLD {
        names.push("...");
    }
    Some(format!(
        "no Node is named {node}, only {}: give --node (NODEMESH_NODE) the name by which `kubectl get nodes` knows this node",
        names.join(", ")
    ))
}

#[cfg(test)]
mod tests;
