//! What the API server's answers mean. Pure.

use std::time::SystemTime;

use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use k8s_openapi::api::core::v1::Pod;

use super::claims::{Claims, username};
use super::{ReviewSettings, TokenRefusal};
use crate::ca::authenticate::Caller;

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// The pod that an accepted token is bound to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Bound {
    pub(super) pod: String,
    pub(super) uid: String,
    /// API servers before 1.30 don't name it; the pod's own node counts then.
    pub(super) node: Option<String>,
}

/// An answer to a review: accepted, for us, of the agents' account, bound to one pod.
pub(super) fn review(
    status: TokenReviewStatus,
    settings: &ReviewSettings,
    claims: &Claims,
    now: SystemTime,
) -> Result<Bound, TokenRefusal> {
    if status.authenticated != Some(true) {
        if claims.expired(now) {
            return Err(TokenRefusal::Expired);
        }
        let said = status.error.filter(|error| !error.is_empty()).unwrap_or_else(|| "it is unknown there".into());
        return Err(TokenRefusal::Rejected(said.chars().take(300).collect::<String>().into()));
    }
    // A server that does not know of audiences leaves the field out: its word says nothing about whom the token is for.
    if !status.audiences.iter().flatten().any(|audience| **audience == *settings.audience) {
        return Err(TokenRefusal::Audience(settings.audience.clone()));
    }
    let user = status.user.unwrap_or_default();
    let (found, wanted) = (user.username.unwrap_or_default(), username(settings));
    if found != wanted {
        return Err(TokenRefusal::NotAgent { found: found.into(), wanted: wanted.into() });
    }
    let extra = user.extra.unwrap_or_default();
    let one = |key: &str| match extra.get(key).map(Vec::as_slice) {
        Some([value]) if !value.is_empty() => Some(value.clone()),
        _ => None,
    };
    match (one(POD_NAME), one(POD_UID)) {
        (Some(pod), Some(uid)) => Ok(Bound { pod, uid, node: one(NODE_NAME) }),
        _ => Err(TokenRefusal::Unbound),
    }
}

/// The pod: it must be the very one, an agent, running where the token says.
pub(super) fn pod(pod: Option<&Pod>, bound: &Bound, settings: &ReviewSettings) -> Result<Caller, TokenRefusal> {
    let wrong = |message: String| Err(TokenRefusal::Pod { pod: bound.pod.as_str().into(), message: message.into() });
    let Some(pod) = pod else { return wrong("does not exist".into()) };
    if pod.metadata.uid.as_deref() != Some(&*bound.uid) {
        return wrong(format!("is not the one with the UID {} that the token is bound to", bound.uid));
    }
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed") {
        return wrong(format!("has terminated ({phase})"));
    }
    let Some(spec) = &pod.spec else { return wrong("has no spec".into()) };
    if spec.service_account_name.as_deref() != Some(&*settings.service_account) {
        return wrong(format!("does not run under the service account {}", settings.service_account));
    }
    match (spec.node_name.as_deref().filter(|node| !node.is_empty()), &bound.node) {
        (None, _) => wrong("is on no node yet".into()),
        (Some(node), Some(said)) if node != said => wrong(format!("runs on node {node}, the token was made on {said}")),
        (Some(node), _) => Ok(Caller { node: node.into() }),
    }
}
