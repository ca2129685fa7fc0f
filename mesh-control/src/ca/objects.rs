//! The authority in the cluster: its key in a Secret that every replica reads, its roots in a ConfigMap that every agent mounts.
//!
//! Only the root is shared; each replica makes an intermediate of its own below it. Whoever finds both empty makes a root; of several that do
//! so at once the API server takes one (optimistic locking by `resourceVersion`), and the others use it. What is there and cannot be read is
//! never overwritten, and no root is made while agents trust another.
//!
//! A step of the root's rotation is asked for by an annotation of the ConfigMap: who may write it decides already whom agents trust.
//!
//! Permissions, each on one object by name: get and update on the Secret, get and patch on the ConfigMap.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::kube::api::{Api, Patch, PatchParams, PostParams};
use ::kube::{Client, ResourceExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use rustls_pki_types::CertificateDer;
use serde::Serialize;
use serde_json::json;

use super::hierarchy::{self, Given, HierarchyError, PemText, make_root};
use super::rotation::{self, Refused, State, Step};
use super::secret;

/// Key of the ConfigMap; Istio's and ours.
pub const BUNDLE_KEY: &str = "root-cert.pem";
/// Annotation of the ConfigMap by which a step of a rotation is asked for: `STEP/NAME`, with a name that no earlier request had.
pub const REQUEST: &str = "nodemesh.dev/rotate";
/// Annotation of the ConfigMap that says where the rotation stands, and what came of the request: [`Answer`] in JSON.
pub const ANSWER_TO: &str = "nodemesh.dev/rotation";
/// Attempts at filling an empty Secret: the second one finds what another replica wrote.
const ATTEMPTS: usize = 5;
/// Longest time for an answer: the client itself waits for ever.
const ANSWER: Duration = Duration::from_secs(10);
const CONFLICT: u16 = 409;
const FORBIDDEN: u16 = 403;

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
    #[error("{verb} {object}: {error}")]
    Api {
        /// What was asked for.
        verb: &'static str,
        /// Of which object.
        object: String,
        /// What it answered.
        error: Box<::kube::Error>,
    },
    /// The API server is silent.
    #[error("{verb} {object}: no answer within {} s", ANSWER.as_secs())]
    Silent {
        /// What was asked for.
        verb: &'static str,
        /// Of which object.
        object: String,
    },
    /// What it holds.
    #[error(transparent)]
    Hierarchy(#[from] HierarchyError),
    /// It cannot be filled.
    #[error(
        "{0} is empty, and this process may not fill it: put an authority there, as tls.crt and tls.key or as ca-cert.pem and ca-key.pem"
    )]
    NotOurs(String),
    /// Others are always faster, and what they write is gone again.
    #[error("{0} is empty each time it is read, and cannot be filled: somebody else empties it")]
    Restless(String),
    /// A new root would split the mesh.
    #[error(
        "{secret} is empty, but {bundle} tells agents to trust the authority that it held: put that back; or, if the mesh is to begin anew, empty {bundle} too"
    )]
    Emptied {
        /// The Secret.
        secret: String,
        /// The ConfigMap.
        bundle: String,
    },
}

impl ObjectError {
    /// Whether it may be better with time and nothing else.
    pub fn may_pass(&self) -> bool {
        matches!(self, ObjectError::Api { .. } | ObjectError::Silent { .. })
    }
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

    fn bundles(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), &self.names.namespace)
    }

    fn secret_name(&self) -> String {
        format!("Secret {}/{}", self.names.namespace, self.names.secret)
    }

    fn bundle_name(&self) -> String {
        format!("ConfigMap {}/{}", self.names.namespace, self.names.bundle)
    }

    async fn secret(&self) -> Result<Secret, ObjectError> {
        answered("get", self.secret_name(), self.secrets().get(&self.names.secret)).await
    }

    /// What the Secret holds, and where a rotation stands by it; `None` if it is empty.
    pub async fn read(&self) -> Result<Option<(Given, State)>, ObjectError> {
        let found = self.secret().await?;
        let name = format!("{}/{}", self.names.namespace, self.names.secret);
        let state = rotation::state(&name, found.data.as_ref().unwrap_or(&Default::default()));
        // A note that cannot be read keeps rotations from going on, and nothing else.
        Ok(given(&found)?.map(|given| (given, state.unwrap_or_default())))
    }

    /// The authority of the Secret; a root is made and kept there if it is empty and agents trust none yet.
    pub async fn authority(&self, now: SystemTime) -> Result<Given, ObjectError> {
        for _ in 0..ATTEMPTS {
            let found = self.secret().await?;
            if let Some(given) = given(&found)? {
                return Ok(given);
            }
            if self.published().await?.is_some() {
                // Another replica may have filled both in between.
                let again = given(&self.secret().await?)?;
                return again.ok_or_else(|| ObjectError::Emptied { secret: self.secret_name(), bundle: self.bundle_name() });
            }
            let root = make_root(now).map_err(HierarchyError::from)?;
            let mut filled = found;
            filled.data = Some(secret::written(&root));
            let (name, secrets) = (self.secret_name(), self.secrets());
            match answered("update", name, secrets.replace(&self.names.secret, &PostParams::default(), &filled)).await {
                Ok(_) => tracing::info!(secret = %self.secret_name(), "a root was made and is kept there"),
                Err(error) if error.is(CONFLICT) => {}
                Err(error) if error.is(FORBIDDEN) => return Err(ObjectError::NotOurs(self.secret_name())),
                Err(error) => return Err(error),
            }
        }
        Err(ObjectError::Restless(self.secret_name()))
    }

    async fn bundle(&self) -> Result<Option<String>, ObjectError> {
        let found = answered("get", self.bundle_name(), self.bundles().get(&self.names.bundle)).await?;
        Ok(found.data.and_then(|mut data| data.remove(BUNDLE_KEY)).filter(|text| !text.trim().is_empty()))
    }

    /// The roots that agents are told to trust, if they are told of any.
    pub async fn published(&self) -> Result<Option<Vec<CertificateDer<'static>>>, ObjectError> {
        let place = || format!("{}, key {BUNDLE_KEY}", self.bundle_name()).into();
        let text = self.bundle().await?.map(|text| hierarchy::certificates(&PemText { place: place(), text }));
        Ok(text.transpose()?)
    }

    /// Puts the roots where agents look for them, if others are there. True if they were.
    pub async fn publish(&self, roots: &str) -> Result<bool, ObjectError> {
        if self.bundle().await?.is_some_and(|known| known == roots) {
            return Ok(false);
        }
        let (patch, bundles) = (Patch::Merge(json!({ "data": { BUNDLE_KEY: roots } })), self.bundles());
        answered("patch", self.bundle_name(), bundles.patch(&self.names.bundle, &PatchParams::default(), &patch)).await?;
        Ok(true)
    }
}

/// What came of a request for a step.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// The request's name.
    request: String,
    /// Why the step was not made.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
    /// Seconds after which it may be made.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<u64>,
    /// Where the rotation stands.
    state: State,
}

/// The step and the name of a request.
fn request(text: &str) -> Result<(Step, &str), String> {
    let fits = |name: &&str| !name.is_empty() && name.len() <= 64 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let parts = text.split_once('/').filter(|(_, name)| fits(name));
    let step = parts.and_then(|(step, name)| Some((step.parse().ok()?, name)));
    step.ok_or_else(|| {
        format!("{REQUEST} is not STEP/NAME with a step of prepare, activate, taint, revoke and abort: use `meshctl certs rotate`")
    })
}

impl Objects {
    /// Makes the step of a rotation that is asked for, if one is, and answers. Of several replicas that do so at once one makes it; whoever
    /// finds it made only answers. What it changes in the Secret is taken up as any change of it.
    pub async fn rotate(&self, now: SystemTime) -> Result<Option<Answer>, ObjectError> {
        let bundle = answered("get", self.bundle_name(), self.bundles().get(&self.names.bundle)).await?;
        let Some(text) = bundle.annotations().get(REQUEST) else { return Ok(None) };
        let parsed = request(text);
        let name = parsed.as_ref().map_or(text.as_str(), |(_, name)| name);
        let known = bundle.annotations().get(ANSWER_TO).and_then(|known| serde_json::from_str::<serde_json::Value>(known).ok());
        if known.is_some_and(|known| known.get("request").and_then(serde_json::Value::as_str) == Some(name)) {
            return Ok(None);
        }
        let mut found = self.secret().await?;
        let (secret, data) = (format!("{}/{}", self.names.namespace, self.names.secret), found.data.clone().unwrap_or_default());
        let before = rotation::state(&secret, &data);
        let refused = |why: String, retry_after| Answer {
            request: name.to_owned(),
            refused: Some(why),
            retry_after,
            state: before.as_ref().ok().cloned().unwrap_or_default(),
        };
        let answer = match parsed {
            Err(why) => refused(why, None),
            Ok((_, name)) if before.as_ref().is_ok_and(|before| before.request == name) => {
                Answer { request: name.to_owned(), refused: None, retry_after: None, state: before.unwrap_or_default() }
            }
            Ok((step, name)) => match rotation::step(&secret, &data, step, name, now) {
                Err(why @ Refused::TooSoon { left, .. }) => refused(why.to_string(), Some(left.as_secs() + 1)),
                Err(why) => refused(why.to_string(), None),
                Ok((next, state)) => {
                    found.data = Some(next);
                    let update = self.secrets();
                    match answered("update", self.secret_name(), update.replace(&self.names.secret, &PostParams::default(), &found)).await {
                        Ok(_) => {
                            tracing::info!(%step, phase = %state.phase, request = name, "a step of the root's rotation was made");
                            Answer { request: name.to_owned(), refused: None, retry_after: None, state }
                        }
                        // Another replica was faster, or the Secret was changed: it is looked at again.
                        Err(error) if error.is(CONFLICT) => return Ok(None),
                        Err(error) if error.is(FORBIDDEN) => refused(Refused::NotOurs(self.secret_name()).to_string(), None),
                        Err(error) => return Err(error),
                    }
                }
            },
        };
        match (&answer.refused, answer.retry_after) {
            (Some(why), None) => tracing::warn!(request = name, why, "a step of the root's rotation is refused"),
            (Some(why), Some(_)) => tracing::info!(request = name, why, "a step of the root's rotation is put off"),
            (None, _) => {}
        }
        let text = serde_json::to_string(&answer).unwrap_or_default();
        let (patch, bundles) = (Patch::Merge(json!({ "metadata": { "annotations": { ANSWER_TO: text } } })), self.bundles());
        answered("patch", self.bundle_name(), bundles.patch(&self.names.bundle, &PatchParams::default(), &patch)).await?;
        Ok(Some(answer))
    }
}

impl ObjectError {
    fn is(&self, code: u16) -> bool {
        matches!(self, ObjectError::Api { error, .. } if matches!(&**error, ::kube::Error::Api(status) if status.code == code))
    }
}

async fn answered<T>(verb: &'static str, object: String, ask: impl Future<Output = Result<T, ::kube::Error>>) -> Result<T, ObjectError> {
    match tokio::time::timeout(ANSWER, ask).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(ObjectError::Api { verb, object, error: Box::new(error) }),
        Err(_) => Err(ObjectError::Silent { verb, object }),
    }
}

fn given(found: &Secret) -> Result<Option<Given>, HierarchyError> {
    let name = format!("{}/{}", found.namespace().unwrap_or_default(), found.name_any());
    let pem = secret::read(&name, found.data.as_ref().unwrap_or(&Default::default()))?;
    pem.as_ref().map(hierarchy::given).transpose()
}

#[cfg(test)]
mod tests;
