//! A Kubernetes API server, followed: lists and watches of each kind of object that the mesh reads.
//!
//! ```text
//!  one task a kind: watch ─► events ─► store (pure) ─► debounce ─► Snapshot
//!        └── limits: how long anything may take, signs of life ─► board ─► SourceStatus
//! ```
//!
//! - The first snapshot is published when every kind has been listed once, or is known not to be served. Nothing half-listed is ever in
//!   force: as long as one list is refused or does not come, everything is held, and the status says which and why.
//! - A lost server leaves everything in force as it was. It is tried again with growing waits.
//! - Kinds whose definition is absent are asked for again and again; one that is removed is let go of, with its objects.
//! - An object of any form is taken: one that is malformed is a problem of the snapshot and never of the watch.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ::kube::Client;
use mesh_model::object::Kind;
use mesh_model::snapshot::Snapshot;
use mesh_model::workload::PodNetworks;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::problems::ProblemLog;
use crate::status::SourceStatus;

mod board;
mod client;
mod failure;
mod limits;
mod object;
mod pace;
mod resource;
pub mod store;
mod watch_kind;

pub use client::{ClientError, client};
pub use limits::Limits;
pub use pace::BackoffSettings;
pub use resource::resources;

use board::Board;
use limits::Limited;
use pace::Debounce;
use resource::WATCHED;
use store::{Effect, Event, Store};
use watch_kind::Follower;

/// Log directives to put before the user's: the client library repeats each refusal at every attempt, which [`SourceStatus`] and our own
/// log say once, and puts a whole list that it cannot read into one line, the pods' environment and its secrets included.
pub const LOG_DIRECTIVES: &str = "kube_client=off,kube_runtime=off";

/// Events that may wait for the store.
const QUEUE: usize = 256;

/// How long to wait for what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timing {
    /// Quiet time after a change before it is published.
    pub quiet: Duration,
    /// A change is published after this much time even if others go on coming.
    pub patience: Duration,
    /// After failures.
    pub backoff: BackoffSettings,
    /// Between two looks for a kind that is not served.
    pub absent: BackoffSettings,
    /// How long the server may be away before that is a problem of the configuration.
    pub grace: Duration,
    /// Of requests.
    pub limits: Limits,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            quiet: Duration::from_millis(20),
            patience: Duration::from_millis(200),
            backoff: BackoffSettings { first: Duration::from_millis(250), most: Duration::from_secs(30) },
            absent: BackoffSettings { first: Duration::from_secs(1), most: Duration::from_secs(10) },
            grace: Duration::from_secs(10),
            limits: Limits::default(),
        }
    }
}

/// An API server that is going to be followed: [`Kubernetes::follow`].
pub struct Kubernetes {
    client: Client,
    timing: Timing,
    board: Board,
    networks: Option<watch::Receiver<Arc<PodNetworks>>>,
    snapshots: watch::Sender<Arc<Snapshot>>,
}

impl std::fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kubernetes").field("timing", &self.timing).field("board", &self.board).finish_non_exhaustive()
    }
}

impl Kubernetes {
    /// Of the server that a kubeconfig names, or of the cluster that this process runs in. Does not wait for the server.
    pub async fn open(kubeconfig: Option<&Path>, networks: Option<watch::Receiver<Arc<PodNetworks>>>) -> Result<Kubernetes, ClientError> {
        let (client, place) = client::client(kubeconfig).await?;
        Ok(Kubernetes::with_client(client, &place, Timing::default(), networks))
    }

    /// Of a server by a client that exists; `place` names it for people. The client must neither retry nor time out by itself.
    pub fn with_client(client: Client, place: &str, timing: Timing, networks: Option<watch::Receiver<Arc<PodNetworks>>>) -> Kubernetes {
        let board = Board::new(SourceStatus::new("kubernetes", place.into(), WATCHED));
        Kubernetes { client, timing, board, networks, snapshots: watch::Sender::default() }
    }

    /// The mesh as the server describes it; version 0 until that is known.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.subscribe()
    }

    /// How it fares.
    pub fn status(&self) -> watch::Receiver<SourceStatus> {
        self.board.subscribe()
    }

    /// Follows the server. Ends only if the runtime shuts down or a part of it panics; drop the future to stop.
    pub async fn follow(self) {
        let Kubernetes { client, timing, board, networks, snapshots } = self;
        let (sender, events) = mpsc::channel(QUEUE);
        let mut tasks = JoinSet::new();
        let mut relist = Vec::new();
        for kind in WATCHED {
            let again = Arc::new(Notify::new());
            relist.push((kind, again.clone()));
            let client = Limited::client(&client, timing.limits, board.ear(kind));
            tasks.spawn(Follower { kind, client, timing, board: board.clone(), events: sender.clone(), relist: again }.run());
        }
        drop(sender);
        let writer = Writer {
            store: Box::new(Store::new(WATCHED)),
            log: ProblemLog::default(),
            debounce: Debounce::new(timing.quiet, timing.patience),
            timing,
            status: board.subscribe(),
            board,
            relist,
            snapshots,
        };
        tokio::select! {
            () = writer.run(events, networks) => {}
            ended = tasks.join_next() => tracing::error!(?ended, "a watch of the API server ended unexpectedly"),
        }
    }
}

/// The only one that has the store, and publishes.
struct Writer {
    store: Box<Store>,
    log: ProblemLog,
    debounce: Debounce,
    timing: Timing,
    status: watch::Receiver<SourceStatus>,
    board: Board,
    relist: Vec<(Kind, Arc<Notify>)>,
    snapshots: watch::Sender<Arc<Snapshot>>,
}

impl Writer {
    async fn run(mut self, mut events: mpsc::Receiver<(Kind, Event)>, mut networks: Option<watch::Receiver<Arc<PodNetworks>>>) {
        if let Some(networks) = &mut networks {
            self.store.set_networks(networks.borrow_and_update().clone());
        }
        // When to look again for what is wrong with the source.
        let mut look = None;
        loop {
            let due = self.debounce.due().filter(|_| self.store.is_complete());
            tokio::select! {
                event = events.recv() => match event {
                    Some((kind, event)) => self.take(kind, event),
                    None => return,
                },
                new = changed(&mut networks) => if self.store.set_networks(new) {
                    // A pod's start waits for it.
                    self.debounce.urgent(Instant::now());
                },
                Ok(()) = self.status.changed() => look = self.look(),
                () = at(look) => look = self.look(),
                () = at(due) => {
                    let Some(back) = self.publish().await else { return };
                    self = back;
                }
            }
        }
    }

    fn take(&mut self, kind: Kind, event: Event) {
        let before = self.store.count(kind);
        match self.store.take(kind, event) {
            Effect::None => {
                let count = self.store.count(kind);
                if count != before {
                    self.board.objects(kind, count);
                }
            }
            effect => {
                self.board.objects(kind, self.store.count(kind));
                self.debounce.changed(Instant::now());
                if effect == Effect::Relist {
                    tracing::warn!(kind = kind.name(), "an object without a name came from the API server; the kind is listed anew");
                    self.relist.iter().filter(|(of, _)| *of == kind).for_each(|(_, again)| again.notify_one());
                }
            }
        }
    }

    /// Takes what is wrong with the source over into the snapshots.
    fn look(&mut self) -> Option<Instant> {
        let (problems, again) = board::problems(&self.status.borrow_and_update(), self.timing.grace, std::time::Instant::now());
        if self.store.set_problems(problems) {
            self.debounce.changed(Instant::now());
        }
        again.map(Instant::from_std)
    }

    /// `None` if the runtime shuts down.
    async fn publish(mut self) -> Option<Self> {
        self.debounce.done();
        let previous = self.snapshots.borrow().clone();
        // To join a hundred thousand endpoints takes a while, in which others on this thread have their turn.
        let build = tokio::task::spawn_blocking(move || {
            let Writer { store, log, .. } = &mut self;
            let snapshot = store.snapshot(Some(&previous)).map(Arc::new);
            if let Some(snapshot) = &snapshot {
                log.tell(snapshot);
            }
            (self, snapshot)
        });
        let (writer, snapshot) = build.await.ok()?;
        if let Some(snapshot) = snapshot {
            if snapshot.version() == 1 {
                tracing::info!(
                    pods = snapshot.workloads().len(),
                    services = snapshot.services().len(),
                    problems = snapshot.problems().len(),
                    "everything has been listed once: the configuration is in force"
                );
            }
            writer.snapshots.send_replace(snapshot);
        }
        Some(writer)
    }
}

/// Waits for a moment; for ever if there is none.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Waits for other networks; for ever if nobody can tell any.
async fn changed(networks: &mut Option<watch::Receiver<Arc<PodNetworks>>>) -> Arc<PodNetworks> {
    if let Some(receiver) = networks
        && receiver.changed().await.is_ok()
    {
        return receiver.borrow_and_update().clone();
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests;
