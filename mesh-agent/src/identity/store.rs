//! One certificate an identity, for as long as a pod of this node has the identity.
//!
//! Anybody may ask from any thread; the work is done by [`Driver::run`], one task an identity, on the runtime that it runs on.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use mesh_model::identity::Identity;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::chain::{Certificate, ChainError};
use super::issuer::{IssueError, Issuer};
use super::state::{CertInfo, CertState, CertificateWatch, Notes, Unusable};
use super::upkeep::{self, Upkeep};
use crate::ops::clock::Clock;

/// Settings of the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoreSettings {
    /// Requests to the issuer at once.
    pub concurrent: usize,
    /// Longest time for one.
    pub timeout: Duration,
}

impl Default for StoreSettings {
    fn default() -> Self {
        StoreSettings { concurrent: 8, timeout: Duration::from_secs(20) }
    }
}

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The issuer gave none.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// It gave one that is not used.
    #[error("what the certificate authority issued is refused: {0}")]
    Chain(#[from] ChainError),
    /// It took too long.
    #[error("the certificate authority did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// No key could be made.
    #[error("no key could be made: {0}")]
    Key(String),
}

/// Learns what came of each attempt; for metrics.
pub trait Observer: Send + Sync + 'static {
    /// A certificate came and is used.
    fn issued(&self, certificate: &Certificate);
    /// None came.
    fn failed(&self, identity: &Identity, error: &RenewError);
}

/// The certificates of this node. Clones are the same.
#[derive(Clone)]
pub struct SecretStore(Arc<Shared>);

pub(super) struct Shared {
    entries: Mutex<HashMap<Identity, Entry>>,
    starts: mpsc::UnboundedSender<Upkeep>,
    changes: watch::Sender<u64>,
    pub(super) issuer: Arc<dyn Issuer>,
    pub(super) observer: Box<dyn Observer>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) room: Semaphore,
    pub(super) settings: StoreSettings,
}

struct Entry {
    state: watch::Sender<CertState>,
    notes: Notes,
    /// While a pod has the identity: ends the upkeep, and makes it renew now.
    upkeep: Option<(CancellationToken, Arc<Notify>)>,
}

/// Does the store's work. [`Driver::run`] it on the runtime that should.
#[must_use = "no certificate is issued unless it runs"]
pub struct Driver {
    starts: mpsc::UnboundedReceiver<Upkeep>,
}

impl SecretStore {
    /// An empty store and what does its work.
    pub fn new(
        issuer: Arc<dyn Issuer>,
        settings: StoreSettings,
        observer: Box<dyn Observer>,
        clock: Arc<dyn Clock>,
    ) -> (SecretStore, Driver) {
        let (starts, started) = mpsc::unbounded_channel();
        let shared = Shared {
            entries: Mutex::default(),
            starts,
            changes: watch::Sender::new(0),
            issuer,
            observer,
            clock,
            room: Semaphore::new(settings.concurrent.max(1)),
            settings,
        };
        (SecretStore(Arc::new(shared)), Driver { starts: started })
    }

    /// Makes these the identities that have certificates: new ones are asked for at once, others are let go with their keys.
    pub fn ensure(&self, identities: impl IntoIterator<Item = Identity>) {
        let wanted: HashSet<Identity> = identities.into_iter().collect();
        let now = self.0.clock.wall();
        let mut changed = false;
        let mut entries = self.0.entries.lock();
        for (identity, entry) in entries.iter_mut().filter(|(identity, _)| !wanted.contains(*identity)) {
            if let Some((stop, _)) = entry.upkeep.take() {
                tracing::info!(%identity, "its certificate is no longer needed");
                stop.cancel();
                entry.notes = Notes::default();
                entry.state.send_replace(CertState::Unwanted);
                changed = true;
            }
        }
        entries.retain(|_, entry| entry.upkeep.is_some() || entry.state.receiver_count() > 0);
        for identity in wanted {
            let entry = entries.entry(identity.clone()).or_insert_with(Entry::new);
            if entry.upkeep.is_some() {
                continue;
            }
            let (stop, renew) = (CancellationToken::new(), Arc::new(Notify::new()));
            entry.upkeep = Some((stop.clone(), renew.clone()));
            entry.state.send_replace(CertState::Pending { since: now, last_error: None });
            changed = true;
            // Without a driver it stays pending.
            let _ = self.0.starts.send(Upkeep { identity, since: now, stop, renew, store: self.clone() });
        }
        drop(entries);
        if changed {
            self.0.changes.send_modify(|version| *version += 1);
        }
    }

    /// Everything about one identity's certificate, now and later, whether or not a pod has the identity.
    pub fn subscribe(&self, identity: &Identity) -> watch::Receiver<CertState> {
        self.0.entries.lock().entry(identity.clone()).or_insert_with(Entry::new).state.subscribe()
    }

    /// As [`SecretStore::subscribe`], in a handier form.
    pub fn watch(&self, identity: &Identity) -> CertificateWatch {
        CertificateWatch(self.subscribe(identity))
    }

    /// The certificate of an identity, if it can be used now.
    pub fn current(&self, identity: &Identity) -> Result<Arc<Certificate>, Unusable> {
        let entries = self.0.entries.lock();
        let entry = entries.get(identity).ok_or(Unusable::Unwanted)?;
        entry.state.borrow().usable_at(self.0.clock.wall()).cloned()
    }

    /// Counts up with every change of any certificate's state.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Asks for a new certificate now; false if no pod of this node has the identity. The old one is used until the new one is there.
    pub fn force_renew(&self, identity: &Identity) -> bool {
        let entries = self.0.entries.lock();
        let Some((_, renew)) = entries.get(identity).and_then(|entry| entry.upkeep.as_ref()) else { return false };
        renew.notify_one();
        true
    }

    /// As [`SecretStore::force_renew`], for all.
    pub fn force_renew_all(&self) {
        for (_, renew) in self.0.entries.lock().values().filter_map(|entry| entry.upkeep.as_ref()) {
            renew.notify_one();
        }
    }

    /// What operators see, by identity.
    pub fn certificates(&self) -> Vec<CertInfo> {
        let now = self.0.clock.wall();
        let entries = self.0.entries.lock();
        let mut all: Vec<CertInfo> =
            entries.iter().filter_map(|(identity, entry)| CertInfo::new(identity, &entry.state.borrow(), &entry.notes, now)).collect();
        drop(entries);
        all.sort_by(|a, b| a.identity.cmp(&b.identity));
        all
    }

    /// The certificates that can be used, for metrics.
    pub fn usable(&self) -> Vec<Arc<Certificate>> {
        let now = self.0.clock.wall();
        self.0.entries.lock().values().filter_map(|entry| entry.state.borrow().usable_at(now).ok().cloned()).collect()
    }

    /// As [`SecretStore::certificates`], for the admin endpoint.
    pub fn describe(&self) -> serde_json::Value {
        serde_json::to_value(self.certificates()).unwrap_or_default()
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.0
    }

    pub(super) fn notes(&self, identity: &Identity) -> Notes {
        self.0.entries.lock().get(identity).map(|entry| entry.notes.clone()).unwrap_or_default()
    }

    /// Takes over what an upkeep found out, unless it was stopped meanwhile.
    pub(super) fn publish(&self, identity: &Identity, stop: &CancellationToken, notes: Notes, state: Option<CertState>) {
        let mut entries = self.0.entries.lock();
        // Stopping is done under the same lock: what is not stopped here is the identity's present upkeep.
        let Some(entry) = entries.get_mut(identity).filter(|_| !stop.is_cancelled()) else { return };
        entry.notes = notes;
        let changed = state.is_some();
        if let Some(state) = state {
            entry.state.send_replace(state);
        }
        drop(entries);
        if changed {
            self.0.changes.send_modify(|version| *version += 1);
        }
    }
}

impl Entry {
    fn new() -> Entry {
        Entry { state: watch::Sender::new(CertState::Unwanted), notes: Notes::default(), upkeep: None }
    }
}

impl Driver {
    /// Works until dropped, which ends all upkeep.
    pub async fn run(mut self) {
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                start = self.starts.recv() => match start {
                    Some(start) => drop(tasks.spawn(upkeep::run(start))),
                    None => return,
                },
                Some(ended) = tasks.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "the upkeep of a certificate broke; it will not be renewed");
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
