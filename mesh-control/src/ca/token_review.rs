//! Who asks, by Kubernetes: the agent's projected service-account token, reviewed by the API server.
//!
//! ```text
//!  token ─► claims (unverified: refuse early, never accept) ─► cache ─► one review a token at a time ─► pod ─► node
//! ```
//!
//! - The API server verifies signature, lifetime, audience, and that the pod the token is bound to still lives.
//! - The account must be the agents'; the pod must exist with the token's UID, run under that account and on the token's node.
//! - An address that shows bad tokens without pause shares few places with its like: it cannot hold up the agents.
//! - While the API server does not answer, nobody is accepted beyond the short life of an earlier answer.
//!
//! Permissions: `create` on `tokenreviews.authentication.k8s.io` (cluster), `get` on `pods` in the agents' namespace.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ::kube::Client;
use ::kube::api::{Api, PostParams};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::authenticate::{Authentication, Authenticator, Caller, sha256};
use super::limit::{Limiter, Rate};
use super::refusal::Refusal;

mod cache;
mod claims;
mod judge;

use cache::{Begin, Cache};
use claims::Claims;

/// Whose tokens are accepted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReviewSettings {
    /// The audience that tokens must be made for.
    pub audience: Arc<str>,
    /// Namespace of the agents.
    pub namespace: Arc<str>,
    /// Service account of the agents.
    pub service_account: Arc<str>,
}

/// Longest time for a review, waiting for its turn included.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a positive answer is believed, if the token does not end sooner.
const POSITIVE: Duration = Duration::from_secs(30);
/// How long a refusal is repeated without asking again.
const NEGATIVE: Duration = Duration::from_secs(1);
/// Answers that are remembered.
const REMEMBERED: usize = 8192;
/// Reviews at once: the API server is everybody's.
const AT_ONCE: usize = 16;

/// Reviews at once for addresses that show one bad token after the other: what they make up must not hold up the agents.
const AT_ONCE_SUSPECT: usize = 2;
/// How often an address may show a bad token before it is one of those.
const FAILURES: Rate = Rate { per_second: 1.0, burst: 10.0 };
/// Addresses that are remembered before those are forgotten that have behaved for long enough.
const ADDRESSES: usize = 1024;

/// Why a token is not accepted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TokenRefusal {
    /// It is no JSON Web Token.
    #[error("the token is not a Kubernetes service-account token (a JSON Web Token)")]
    Form,
    /// It is made for others.
    #[error("the token is not made for the audience \"{0}\"; project one with this audience")]
    Audience(Arc<str>),
    /// It is not an agent's.
    #[error("the token is of {found}, not of the agents' service account {wanted}")]
    NotAgent {
        /// Whose it is.
        found: Box<str>,
        /// Whose it should be.
        wanted: Box<str>,
    },
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// The API server does not accept it.
    #[error("the API server does not accept the token: {0}")]
    Rejected(Box<str>),
    /// It is bound to no pod, so that it could be used from anywhere.
    #[error("the token is not bound to a pod; project it into the agent's pod instead of making it by hand")]
    Unbound,
    /// The pod that it is bound to is not what it should be.
    #[error("the agent's pod {pod}: {message}")]
    Pod {
        /// Name of the pod.
        pod: Box<str>,
        /// What is wrong.
        message: Box<str>,
    },
    /// The API server cannot be asked.
    #[error("the API server cannot be asked about the token: {0}")]
    Unavailable(Box<str>),
}

/// Accepts agents by the API server's word.
pub struct TokenReviews(Arc<Reviewer>);

struct Reviewer {
    settings: ReviewSettings,
    reviews: Api<TokenReview>,
    pods: Api<Pod>,
    room: Semaphore,
    narrow: Semaphore,
    failures: Mutex<Limiter>,
    cache: Mutex<Cache>,
}

/// What came of a review; `None` while it is under way.
type Outcome = Option<Result<Caller, TokenRefusal>>;

impl TokenReviews {
    /// By a client of the API server.
    pub fn new(client: Client, settings: ReviewSettings) -> TokenReviews {
        TokenReviews(Arc::new(Reviewer {
            reviews: Api::all(client.clone()),
            pods: Api::namespaced(client, &settings.namespace),
            settings,
            room: Semaphore::new(AT_ONCE),
            narrow: Semaphore::new(AT_ONCE_SUSPECT),
            failures: Mutex::new(Limiter::new(FAILURES)),
            cache: Mutex::new(Cache::new(REMEMBERED)),
        }))
    }

    async fn judge(&self, token: &str, from: Option<IpAddr>) -> Result<Caller, TokenRefusal> {
        let claims = Claims::read(token).ok_or(TokenRefusal::Form)?;
        // Whatever a signature says, these cannot be accepted: the API server is spared the question.
        claims.plausible(&self.0.settings)?;
        let key = sha256(token.as_bytes());
        let begin = self.0.cache.lock().begin(key, Instant::now());
        let mut outcome = match begin {
            Begin::Known(result) => return result,
            Begin::Join(outcome) => outcome,
            Begin::Ask(sender, outcome) => {
                let (reviewer, token) = (self.0.clone(), token.to_owned());
                // A task of its own: whoever asked first may go away while others wait for the same answer.
                tokio::spawn(async move {
                    let result = reviewer.review(&token, &claims, from).await;
                    reviewer.note(&result, from);
                    let keep = match &result {
                        Ok(_) => claims.left(SystemTime::now()).min(POSITIVE),
                        Err(TokenRefusal::Unavailable(_)) => Duration::ZERO,
                        Err(_) => NEGATIVE,
                    };
                    reviewer.cache.lock().done(key, result.clone(), Instant::now(), keep);
                    sender.send_replace(Some(result));
                });
                outcome
            }
        };
        let lost = || TokenRefusal::Unavailable("the review was broken off".into());
        let found = outcome.wait_for(Option::is_some).await.map_err(|_| lost())?.clone();
        found.unwrap_or_else(|| Err(lost()))
    }
}

impl Reviewer {
    async fn review(&self, token: &str, claims: &Claims, from: Option<IpAddr>) -> Result<Caller, TokenRefusal> {
        let late = || TokenRefusal::Unavailable(format!("no answer within {} s", ANSWER.as_secs()).into());
        tokio::time::timeout(ANSWER, self.ask(token, claims, from)).await.map_err(|_| late())?
    }

    /// Remembers which address showed a bad token.
    fn note(&self, result: &Result<Caller, TokenRefusal>, from: Option<IpAddr>) {
        if let (Err(refusal), Some(from)) = (result, from)
            && !matches!(refusal, TokenRefusal::Unavailable(_))
        {
            let (now, mut failures) = (Instant::now(), self.failures.lock());
            failures.admit(&from.to_string().into(), now);
            if failures.len() > ADDRESSES {
                failures.sweep(now);
            }
        }
    }

    async fn ask(&self, token: &str, claims: &Claims, from: Option<IpAddr>) -> Result<Caller, TokenRefusal> {
        let suspect = from.is_some_and(|from| !self.failures.lock().has(&from.to_string(), Instant::now()));
        let _permit = if suspect { &self.narrow } else { &self.room }.acquire().await;
        let spec = TokenReviewSpec { token: Some(token.into()), audiences: Some(vec![self.settings.audience.to_string()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let answer = self.reviews.create(&PostParams::default(), &review).await;
        let answer = answer.map_err(|error| unavailable("tokenreviews.authentication.k8s.io", "create", &error))?;
        let bound = judge::review(answer.status.unwrap_or_default(), &self.settings, claims, SystemTime::now())?;
        let pod = self.pods.get_opt(&bound.pod).await.map_err(|error| unavailable("pods", "get", &error))?;
        judge::pod(pod.as_ref(), &bound, &self.settings)
    }
}

fn unavailable(resource: &str, verb: &str, error: &::kube::Error) -> TokenRefusal {
    let message = match error {
        ::kube::Error::Api(status) if status.code == 403 => {
            format!("permission to {verb} {resource} is missing ({}); grant it to mesh-control", status.message)
        }
        ::kube::Error::Api(status) => format!("{verb} {resource}: {} {}", status.code, status.message),
        error => {
            // Its own words are of Rust's types; the innermost are the system's.
            let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
            format!("{verb} {resource}: {}", causes.last().map(ToString::to_string).unwrap_or_default())
        }
    };
    TokenRefusal::Unavailable(message.chars().take(300).collect::<String>().into())
}

impl Authenticator for TokenReviews {
    fn authenticate<'a>(&'a self, token: &'a str, from: Option<IpAddr>) -> Authentication<'a> {
        Box::pin(async move { self.judge(token, from).await.map_err(Refusal::Token) })
    }
}

#[cfg(test)]
mod tests;
