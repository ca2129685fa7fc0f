//! The upkeep of one identity's certificate: ask, wait until half its life is over, ask again.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_model::identity::Identity;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::chain::{self, Certificate};
use super::plan::{SHORTEST, renew_at, retry_in};
use super::state::{CertState, Notes};
use super::store::{RenewError, SecretStore};

/// Longest sleep: after it the clock is looked at again, which may have been set, or have run on while the machine slept.
const NAP: Duration = Duration::from_secs(30);

/// An upkeep to be run.
pub(super) struct Upkeep {
    pub(super) identity: Identity,
    /// When the certificate was first asked for.
    pub(super) since: SystemTime,
    pub(super) stop: CancellationToken,
    pub(super) renew: Arc<Notify>,
    pub(super) store: SecretStore,
}

/// Runs until stopped.
pub(super) async fn run(upkeep: Upkeep) {
    let stop = upkeep.stop.clone();
    // Whatever is under way when nobody wants the certificate any more is dropped, key and all.
    let _stopped = stop.run_until_cancelled(upkeep.forever()).await;
}

impl Upkeep {
    async fn forever(self) {
        let mut held: Option<Arc<Certificate>> = None;
        let mut failures = 0_u32;
        loop {
            let result = self.attempt().await;
            let now = self.store.shared().clock.wall();
            let next = match result {
                Ok(certificate) => {
                    failures = 0;
                    let next = renew_at(certificate.issued, certificate.not_after, rand::random());
                    self.store.shared().observer.issued(&certificate);
                    tracing::info!(identity = %self.identity, serial = certificate.serial, valid_for = ?left(&certificate, now), "certificate issued");
                    let certificate = Arc::new(certificate);
                    held = Some(certificate.clone());
                    let notes = Notes { next_attempt: Some(next), ..Notes::default() };
                    self.publish(notes, Some(CertState::Ready(certificate)));
                    next
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    let next = now + retry_in(failures, held.as_ref().map(|held| left(held, now)), rand::random());
                    self.failed(&error, failures, held.as_deref(), next, now);
                    if held.as_ref().is_some_and(|held| held.not_after <= now) {
                        held = None;
                    }
                    next
                }
            };
            self.wait(next, &mut held, failures).await;
        }
    }

    /// A key, a request, an answer that stands the test.
    async fn attempt(&self) -> Result<Certificate, RenewError> {
        let shared = self.store.shared();
        // Never closed: it lives with the store.
        let _permit = shared.room.acquire().await;
        let (key, csr) = chain::request(&self.identity).map_err(|error| RenewError::Key(error.to_string()))?;
        let limit = shared.settings.timeout;
        let issued =
            tokio::time::timeout(limit, shared.issuer.issue(&self.identity, &csr)).await.map_err(|_| RenewError::Timeout(limit))??;
        Ok(chain::accept(&self.identity, &key, issued, shared.clock.wall())?)
    }

    fn failed(&self, error: &RenewError, failures: u32, held: Option<&Certificate>, next: SystemTime, now: SystemTime) {
        self.store.shared().observer.failed(&self.identity, error);
        let retry = next.duration_since(now).unwrap_or_default();
        let message: Arc<str> = error.to_string().into();
        let valid_for = held.map(|held| left(held, now)).unwrap_or_default();
        if valid_for.is_zero() {
            tracing::error!(identity = %self.identity, %error, failures, ?retry, "no certificate; its pods are refused");
        } else {
            tracing::warn!(identity = %self.identity, %error, failures, ?retry, ?valid_for, "certificate not renewed; the old one is used");
        }
        let state = match held {
            Some(held) if held.not_after > now => None,
            Some(held) => Some(CertState::Expired { since: held.not_after, last_error: Some(message.clone()) }),
            None => Some(self.without(message.clone())),
        };
        self.publish(Notes { next_attempt: Some(next), failures, last_error: Some(message) }, state);
    }

    /// The state without a certificate: still pending, or still expired.
    fn without(&self, error: Arc<str>) -> CertState {
        match &*self.store.subscribe(&self.identity).borrow() {
            CertState::Expired { since, .. } => CertState::Expired { since: *since, last_error: Some(error) },
            _ => CertState::Pending { since: self.since, last_error: Some(error) },
        }
    }

    /// Until `next`, or until somebody wants a new one; marks the end of the old one if it falls into the time.
    ///
    /// What is due is so by the time of day, which may be set ahead or run on while the machine sleeps, or by the time that has passed:
    /// setting the clock back puts nothing off.
    async fn wait(&self, next: SystemTime, held: &mut Option<Arc<Certificate>>, failures: u32) {
        let shared = self.store.shared();
        let began = Instant::now();
        let pause = next.duration_since(shared.clock.wall()).unwrap_or_default();
        loop {
            let now = shared.clock.wall();
            if let Some(ended) = held.take_if(|held| held.not_after <= now) {
                tracing::error!(identity = %self.identity, "certificate expired; its pods are refused until a new one comes");
                let notes = self.store.notes(&self.identity);
                let last_error = notes.last_error.clone();
                self.publish(notes, Some(CertState::Expired { since: ended.not_after, last_error }));
            }
            let due = next.duration_since(now).unwrap_or_default().min(pause.saturating_sub(began.elapsed()));
            if due.is_zero() {
                return;
            }
            let until = held.as_ref().map_or(due, |held| due.min(left(held, now)));
            tokio::select! {
                () = tokio::time::sleep(until.min(NAP)) => {}
                () = self.renew.notified() => {
                    // Not more often than once a second, whoever asks.
                    if failures == 0 {
                        tokio::time::sleep_until(began + SHORTEST).await;
                    }
                    return;
                }
            }
        }
    }

    fn publish(&self, notes: Notes, state: Option<CertState>) {
        self.store.publish(&self.identity, &self.stop, notes, state);
    }
}

fn left(certificate: &Certificate, now: SystemTime) -> Duration {
    certificate.not_after.duration_since(now).unwrap_or_default()
}
