//! What one agent of an instance has and no other, and how it passes from one to the next.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_model::identity::Identity;
use mesh_proto::nodemesh::FetchKeysResponse;
use tokio_util::sync::CancellationToken;

use super::bequest;
use super::control::Reins;
use super::handover::{Course, Door, Event, HandoverError, Predecessor};
use super::keys;
use super::lock::WriterLock;
use crate::identity::Secrets;
use crate::policy::KeyStore;
use crate::policy::limits::Registry;

/// What one agent of an instance has and no other.
pub(super) struct Tenure {
    pub(super) lock: Option<WriterLock>,
    pub(super) door: Option<Door>,
    pub(super) reins: Reins,
    /// Cancelled: the ports of operators' endpoints are let go.
    pub(super) pages: CancellationToken,
    /// Budgets, of which the next agent gets what is left.
    pub(super) limits: Arc<Registry>,
    /// Where the lock is.
    pub(super) directory: PathBuf,
}

impl Tenure {
    /// How long the parts are waited for; they take milliseconds.
    const LIMIT: Duration = Duration::from_secs(3);

    /// Does what newer agents want.
    pub(super) async fn heed(&mut self, event: Event, course: &mut Course) {
        match event {
            Event::Announced { id, pid } => {
                tracing::info!(pid, "another agent of this instance starts, to take this one's place");
                course.announced(id);
            }
            Event::Release(id, grant) => {
                if course.is_released() {
                    tracing::warn!("an agent asks to take over what another has been given");
                } else if !self.release().await {
                    tracing::error!("another agent asks to take over, and the control loop does not stop: refused");
                    course.stuck();
                } else {
                    course.released(id, Instant::now());
                    // One that is gone by now is heard of as such.
                    let _ = grant.send(());
                    tracing::info!("handed over: another agent writes the kernel's maps from here on");
                }
            }
            Event::Serving(id) => course.serving(id),
            Event::Gone(id) => course.gone(id),
        }
    }

    /// Stops the only writer of the kernel's maps. False if it does not say that it has stopped.
    pub(super) async fn stop_writing(&self) -> bool {
        self.reins.stop.cancel();
        tokio::time::timeout(Self::LIMIT, self.reins.stopped.cancelled()).await.is_ok()
    }

    /// Lets go of everything. The lock comes last: whoever gets it finds the rest free, or about to be.
    async fn release(&mut self) -> bool {
        if !self.stop_writing().await {
            return false;
        }
        self.reins.hush.cancel();
        if tokio::time::timeout(Self::LIMIT, self.reins.hushed.cancelled()).await.is_err() {
            return false;
        }
        self.pages.cancel();
        if let Err(error) = bequest::leave(&self.directory, &self.limits.hand_over(Instant::now())) {
            tracing::warn!(%error, "what is left of rate limits' budgets cannot be handed over: they begin full");
        }
        self.door = None;
        self.lock = None;
        true
    }
}

/// Longest time that certificates are waited for while another agent serves, if the authority gives any at all.
const CERTIFICATES: Duration = Duration::from_secs(15);

/// Takes the place of an agent that runs, as late as can be: with every certificate at hand, and the keys of issuers.
pub(super) async fn succeed(
    mut predecessor: Predecessor,
    directory: &Path,
    secrets: &Secrets,
    identities: HashSet<Identity>,
    issuers: &KeyStore,
    left: FetchKeysResponse,
) -> Result<(WriterLock, Option<Predecessor>), HandoverError> {
    tracing::info!(pid = predecessor.pid, "another agent of this instance serves this node: this one takes its place once it can");
    secrets.ensure(identities.iter().cloned());
    tokio::select! {
        _ = async { tokio::join!(certificates(secrets, &identities), keys::at_hand(issuers, left, keys::AT_HANDOVER)) } => {}
        () = predecessor.gone() => {}
    }
    let pid = predecessor.pid;
    let (lock, predecessor) = predecessor.release(directory).await?;
    match &predecessor {
        Some(_) => tracing::info!(pid, "the agent before this one has handed over, and drains"),
        None => tracing::info!(pid, "the agent before this one ended before it handed over"),
    }
    Ok((lock, predecessor))
}

/// Waits for every identity's certificate. Once the authority has had its time one is enough: those that it refuses, it refused the agent
/// before this one too. Without any this agent would only take pods out of service.
async fn certificates(secrets: &Secrets, identities: &HashSet<Identity>) {
    let mut changes = secrets.changes();
    let enough = tokio::time::Instant::now() + CERTIFICATES;
    let mut look = tokio::time::interval(CERTIFICATES / 3);
    loop {
        let missing = identities.iter().filter(|identity| secrets.current(identity).is_err()).count();
        let late = tokio::time::Instant::now() >= enough;
        if missing == 0 || (late && missing < identities.len()) {
            return;
        }
        if late {
            tracing::warn!(missing, "no certificate has come: the agent that runs is left to serve");
        }
        tokio::select! {
            // The store lives as long as this.
            _ = changes.changed() => {}
            _ = look.tick() => {}
        }
    }
}
