//! What is known of an identity's certificate, and how others look at it.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use mesh_model::identity::Identity;
use serde::Serialize;
use tokio::sync::watch;

use super::chain::Certificate;

/// An identity's certificate.
#[derive(Clone, Debug)]
pub enum CertState {
    /// No pod of this node has the identity.
    Unwanted,
    /// It has been asked for, and there has been none yet.
    Pending {
        /// Since when.
        since: SystemTime,
        /// Why the last attempt failed.
        last_error: Option<Arc<str>>,
    },
    /// It can be used.
    Ready(Arc<Certificate>),
    /// It ended before a new one came.
    Expired {
        /// When.
        since: SystemTime,
        /// Why the last attempt failed.
        last_error: Option<Arc<str>>,
    },
}

/// Why there is no certificate that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// No pod of this node has the identity.
    #[error("no pod of this node has the identity")]
    Unwanted,
    /// The first has not come yet.
    #[error("it was asked for and has not come yet")]
    Pending,
    /// The first has not come, because of this.
    #[error("{0}")]
    Failed(Arc<str>),
    /// It ended, and no new one came.
    #[error("it expired, and no new one came{}", .0.as_ref().map(|error| format!(": {error}")).unwrap_or_default())]
    Expired(Option<Arc<str>>),
}

impl CertState {
    /// The certificate, if it can be used at `now`.
    pub fn usable_at(&self, now: SystemTime) -> Result<&Arc<Certificate>, Unusable> {
        match self {
            CertState::Ready(certificate) if now < certificate.not_after => Ok(certificate),
            CertState::Ready(_) => Err(Unusable::Expired(None)),
            CertState::Unwanted => Err(Unusable::Unwanted),
            CertState::Pending { last_error: None, .. } => Err(Unusable::Pending),
            CertState::Pending { last_error: Some(error), .. } => Err(Unusable::Failed(error.clone())),
            CertState::Expired { last_error, .. } => Err(Unusable::Expired(last_error.clone())),
        }
    }
}

/// A look at one identity's certificate; clones look at the same. From any thread, without a lock that a renewal holds for long.
#[derive(Clone, Debug)]
pub struct CertificateWatch(pub(super) watch::Receiver<CertState>);

impl CertificateWatch {
    /// The certificate, if it can be used now.
    pub fn usable(&self) -> Result<Arc<Certificate>, Unusable> {
        self.0.borrow().usable_at(SystemTime::now()).cloned()
    }

    /// What is known now.
    pub fn state(&self) -> CertState {
        self.0.borrow().clone()
    }

    /// Returns when it has changed since this watch was last asked with this; false if it will not change any more.
    pub async fn changed(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
}

/// An identity's certificate as operators see it. Times are Unix seconds.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertInfo {
    /// The SPIFFE ID.
    pub identity: String,
    /// `pending`, `ready` or `expired`.
    pub state: &'static str,
    /// Serial number in hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// First second of its validity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<u64>,
    /// Last second of its validity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_after: Option<u64>,
    /// SHA-256 of the root that its chain ends in, in lower-case hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// The same of each root below which peers are believed with it.
    pub trusted: Vec<String>,
    /// When the next attempt is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_attempt: Option<u64>,
    /// Attempts that failed since the last one that did not.
    pub failures: u32,
    /// Why the last one failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<Arc<str>>,
}

/// What the store notes beside the state, for operators only.
#[derive(Clone, Debug, Default)]
pub(super) struct Notes {
    pub(super) next_attempt: Option<SystemTime>,
    pub(super) failures: u32,
    pub(super) last_error: Option<Arc<str>>,
}

impl CertInfo {
    pub(super) fn new(identity: &Identity, state: &CertState, notes: &Notes, now: SystemTime) -> Option<CertInfo> {
        let (name, certificate) = match state {
            CertState::Unwanted => return None,
            CertState::Pending { .. } => ("pending", None),
            CertState::Expired { .. } => ("expired", None),
            CertState::Ready(certificate) if now < certificate.not_after => ("ready", Some(certificate)),
            CertState::Ready(certificate) => ("expired", Some(certificate)),
        };
        let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Some(CertInfo {
            identity: identity.to_string(),
            state: name,
            serial: certificate.map(|certificate| certificate.serial.clone()),
            not_before: certificate.map(|certificate| seconds(certificate.not_before)),
            not_after: certificate.map(|certificate| seconds(certificate.not_after)),
            root: certificate.and_then(|certificate| certificate.root.clone()),
            trusted: certificate.map(|certificate| certificate.trusted.clone()).unwrap_or_default(),
            next_attempt: notes.next_attempt.map(seconds),
            failures: notes.failures,
            last_error: notes.last_error.clone(),
        })
    }
}
