//! The authority in the cluster: its key in a Secret that every replica reads, its roots in a ConfigMap that every agent mounts.
//!
//! Only the root is shared; each replica makes an intermediate of its own below it. Whoever finds the Secret empty makes a root; of several
//! that do so at once the API server takes one (optimistic locking by `resourceVersion`), and the others use it. What is there and cannot be
//! read is never overwritten.
//!
//! Permissions, each on one object by name: get, list, watch and update on the Secret, get and patch on the ConfigMap.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::kube::api::{Api, Patch, PatchParams, PostParams};
use ::kube::runtime::{WatchStreamExt as _, watcher};
use ::kube::{Client, ResourceExt as _};
use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use serde_json::json;

use super::hierarchy::{self, Given, HierarchyError, make_root};
use super::secret;

/// Key of the ConfigMap; Istio's and ours.
pub const BUNDLE_KEY: &str = "root-cert.pem";
/// Attempts at filling an empty Secret: the second one finds what another replica wrote.
const ATTEMPTS: usize = 5;
const CONFLICT: u16 = 409;

/// Where they are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectNames {
    /// Namespace of both.
    pub namespace: Arc<str>,
    /// The Secret with the key.
    pub secret: Arc<str>,
    /// The ConfigMap with the roots.
    pub bundle: Arc<str>,
}

/// Why the authority cannot be had from the cluster, or its roots not be told.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The API server.
    #[error("{verb} {object}: {error}; the chart makes it, and lets mesh-control {verb} it")]
    Api {
        /// What was asked for.
        verb: &'static str,
        /// Of which object.
        object: String,
        /// What it answered.
        error: Box<::kube::Error>,
    },
    /// What it holds.
    #[error(transparent)]
    Hierarchy(#[from] HierarchyError),
    /// Others are always faster, and what they write is gone again.
    #[error("Secret {0} is empty each time it is read, and cannot be filled: somebody else empties it")]
    Restless(String),
}

/// The two objects.
#[derive(Clone)]
pub struct Objects {
    client: Client,
    names: ObjectNames,
}

impl Objects {
    /// At an API server.
    pub fn new(client: Client, names: ObjectNames) -> Self {
        Objects { client, names }
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.names.namespace)
    }

    fn error(&self, verb: &'static str, kind: &str, name: &str) -> impl FnOnce(::kube::Error) -> ObjectError {
        let object = format!("{kind} {}/{name}", self.names.namespace);
        move |error| ObjectError::Api { verb, object, error: Box::new(error) }
    }

    /// The authority of the Secret; a root is made and kept there if it is empty.
    pub async fn authority(&self, now: SystemTime) -> Result<Given, ObjectError> {
        let name = &*self.names.secret;
        for _ in 0..ATTEMPTS {
            let found = self.secrets().get(name).await.map_err(self.error("get", "Secret", name))?;
            if let Some(given) = given(&found)? {
                return Ok(given);
            }
            let root = make_root(now).map_err(HierarchyError::from)?;
            let mut filled = found;
            filled.data = Some(secret::written(&root));
            match self.secrets().replace(name, &PostParams::default(), &filled).await {
                Ok(_) => tracing::info!(secret = %self.secret_name(), "a root was made and is kept there"),
                Err(::kube::Error::Api(status)) if status.code == CONFLICT => {}
                Err(error) => return Err(self.error("update", "Secret", name)(error)),
            }
        }
        Err(ObjectError::Restless(self.secret_name()))
    }

    fn secret_name(&self) -> String {
        format!("{}/{}", self.names.namespace, self.names.secret)
    }

    /// Puts the roots where agents look for them, if others are there. True if they were.
    pub async fn publish(&self, roots: &str) -> Result<bool, ObjectError> {
        let name = &*self.names.bundle;
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.names.namespace);
        let found = maps.get(name).await.map_err(self.error("get", "ConfigMap", name))?;
        if found.data.is_some_and(|data| data.get(BUNDLE_KEY).is_some_and(|known| known == roots)) {
            return Ok(false);
        }
        let patch = Patch::Merge(json!({ "data": { BUNDLE_KEY: roots } }));
        maps.patch(name, &PatchParams::default(), &patch).await.map_err(self.error("patch", "ConfigMap", name))?;
        Ok(true)
    }

    /// What the Secret holds, whenever it changes: the first item is how it is. Never ends; an error says that it cannot be followed at the
    /// moment, or that what it holds is of no use.
    pub fn changes(&self) -> impl Stream<Item = Result<Option<Given>, String>> + Send + use<> {
        let only = watcher::Config::default().fields(&format!("metadata.name={}", self.names.secret));
        watcher(self.secrets(), only).default_backoff().applied_objects().map(|found| match found {
            Ok(found) => given(&found).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        })
    }
}

fn given(found: &Secret) -> Result<Option<Given>, HierarchyError> {
    let name = format!("{}/{}", found.namespace().unwrap_or_default(), found.name_any());
    let pem = secret::read(&name, found.data.as_ref().unwrap_or(&Default::default()))?;
    pem.as_ref().map(hierarchy::given).transpose()
}

/// Waits a little longer each time.
pub fn patience(attempt: u32) -> Duration {
    Duration::from_millis(200).saturating_mul(1 << attempt.min(7))
}

#[cfg(test)]
mod tests;
