//! The decision about a request before a pod's application, and how a denial ends. Pure, but for the wait for another decision.

use std::sync::Arc;

use http::Uri;
use http::request::Parts;
use http::uri::PathAndQuery;
use mesh_model::policy::path::NormalPath;
use tokio::sync::watch;

use crate::conn::ServerAddr;
use crate::outcome::{DenyReason, Outcome, RequestFailure, Side};
use crate::policy::decide::{Asked, decide_request};
use crate::policy::tokens::{Believed, Lines};
use crate::policy::{Denial, DenialReason, Peer, Permit, Transport, WorkloadPolicy};
use crate::route::request;

/// Judges a request at `now`, in seconds since 1970. What it has seen is what is forwarded: the path is brought into its normal form here,
/// and what is of one hop, tokens and what only this agent may say are taken out of the headers. What the request asks to switch to stays.
///
/// # Errors
/// How the request ends.
pub fn request(
    policy: &WorkloadPolicy,
    peer: &Peer,
    server: ServerAddr,
    transport: Transport,
    parts: &mut Parts,
    now: u64,
) -> Result<Permit, Outcome> {
    let bad = |detail: String| Outcome::Request(RequestFailure::BadRequest { detail: detail.into() });
    request::settle(parts)?;
    request::trim(&mut parts.headers);
    let path = NormalPath::of(parts.uri.path().as_bytes()).map_err(|error| bad(error.to_string()))?.into_owned();
    if path.as_str() != parts.uri.path() {
        let target = match parts.uri.query() {
            Some(query) => format!("{}?{query}", path.as_str()),
            None => path.as_str().to_owned(),
        };
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        uri.path_and_query = Some(PathAndQuery::try_from(target).map_err(|error| bad(error.to_string()))?);
        parts.uri = Uri::from_parts(uri).map_err(|error| bad(error.to_string()))?;
    }
    let token = match policy.tokens() {
        Some(tokens) => tokens.judge(parts, now).map_err(denied)?,
        None => Believed::nothing(),
    };
    let host = parts.headers.get(http::header::HOST).and_then(|host| host.to_str().ok());
    let lines = Lines(&parts.headers);
    let asked = Asked { method: parts.method.as_str(), host, path: &path, headers: &lines };
    decide_request(policy, peer, server, transport, asked, &token).map_err(denied)
}

/// A request that was allowed and has no end of its own: its connection was switched to another protocol. When what is in force for the
/// workload changes, it is judged again.
pub struct Switched {
    /// What is in force.
    pub policy: watch::Receiver<Arc<WorkloadPolicy>>,
    /// Who asked.
    pub peer: Peer,
    /// Whom.
    pub server: ServerAddr,
    /// By which way.
    pub transport: Transport,
    /// The request as it was judged, with its tokens.
    pub head: Parts,
    /// When it came, in seconds since 1970: a token that is believed then is not taken back because it expires.
    pub now: u64,
}

impl Switched {
    /// Waits until policy no longer allows it, for ever if need be, and says how it ends.
    pub async fn revoked(mut self) -> Outcome {
        // What may have changed since it was judged is not missed.
        self.policy.mark_changed();
        loop {
            if self.policy.changed().await.is_err() {
                return denied(Denial { reason: DenialReason::WorkloadGone, policy: None });
            }
            let now = self.policy.borrow_and_update().clone();
            if let Err(outcome) = request(&now, &self.peer, self.server, self.transport, &mut self.head.clone(), self.now) {
                return super::withdrawn(outcome);
            }
        }
    }
}

/// How it ends what policy denies.
pub fn denied(denial: Denial) -> Outcome {
    let policy = denial.policy;
    let by = |reason| Outcome::PolicyDenied { reason, policy: policy.clone() };
    match denial.reason {
        DenialReason::MtlsRequired => Outcome::MtlsRequired { policy },
        DenialReason::NoIdentity => Outcome::PeerProtocol { detail: "the peer proved no identity".into() },
        DenialReason::DenyPolicy => by(DenyReason::DenyPolicy),
        DenialReason::InvalidPolicy => by(DenyReason::InvalidPolicy),
        DenialReason::NoAllowPolicy => by(DenyReason::NoAllowPolicy),
        DenialReason::RulesMissing(_) => by(DenyReason::NoRules),
        DenialReason::Token(error) => {
            Outcome::Request(RequestFailure::Unauthenticated { detail: error.to_string().into(), body: error.body() })
        }
        DenialReason::WorkloadGone => Outcome::PodGone { side: Side::Server },
    }
}

#[cfg(test)]
mod tests;
