//! The service by which agents get keys: a call is answered when there is something that the agent does not know, or when it has waited
//! long enough.
//!
//! Only what a RequestAuthentication names is in the book, and so in an answer; nobody can have this program ask an issuer by a call. Keys
//! are public: whether the node has a pod that needs them is not looked at.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_model::policy::request_authentication::{KeyLocation, MAX_URL};
use mesh_proto::nodemesh::fetched_keys::Outcome;
use mesh_proto::nodemesh::key_source::Source;
use mesh_proto::nodemesh::keys_server::Keys;
use mesh_proto::nodemesh::{FetchKeysRequest, FetchKeysResponse, FetchedKeys, KeySet as KeySetWire, KeySource, KnownKeys};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::schedule::{Book, MOST};
use crate::ca::authenticate::Authenticator;
use crate::ca::limit::Rate;
use crate::gate::Gate;
use crate::metrics::Metrics;

/// Its name in metrics and log.
const SERVICE: &str = "keys";
/// How often a node may ask: its policies may change all at once.
const PER_NODE: Rate = Rate { per_second: 5.0, burst: 50.0 };
/// Calls of a node at once: an agent has one that waits, and so has the one whose place it takes.
const AT_ONCE: usize = 2;
/// Longest version, in bytes; what is longer is none of ours.
const MAX_VERSION: usize = 128;
/// Longest failure, in bytes: agents keep a thousand characters of what they are told.
const MAX_FAILURE: usize = 4000;
/// Longest request, in bytes.
pub const MAX_REQUEST: usize = MOST * (MAX_URL + 1024);
/// Keys in an answer, in bytes, as long as it is more than one set; the next call brings the rest.
const MAX_KEYS: usize = 512 * 1024;
/// Replicas' clocks may be apart by this much.
const SKEW: Duration = Duration::from_secs(60);
/// What is said of a place that is in no RequestAuthentication.
const UNKNOWN: &str = "mesh-control knows no RequestAuthentication that names it";

/// The service.
pub struct KeysService {
    gate: Arc<Gate>,
    book: watch::Receiver<Arc<Book>>,
    patience: Duration,
    stop: CancellationToken,
}

impl KeysService {
    /// Of a book. `patience`: longest time that a call waits for news; it ends before that once `stop` is cancelled.
    pub fn new(
        authenticator: Arc<dyn Authenticator>,
        book: watch::Receiver<Arc<Book>>,
        patience: Duration,
        stop: CancellationToken,
        metrics: Arc<Metrics>,
    ) -> KeysService {
        let gate = Arc::new(Gate::new(SERVICE, authenticator, PER_NODE, metrics).at_once(AT_ONCE));
        KeysService { gate, book, patience, stop }
    }

    /// Whom it lets in, to be asked before a call's body is read.
    pub fn gate(&self) -> Arc<Gate> {
        self.gate.clone()
    }

    async fn await_news(&self, known: &[Known], wait: Duration) -> FetchKeysResponse {
        let mut book = self.book.clone();
        let waited = tokio::time::sleep(wait.min(self.patience));
        tokio::pin!(waited);
        loop {
            let news = news(&book.borrow_and_update(), known, SystemTime::now(), false);
            if !news.keys.is_empty() {
                return news;
            }
            let changed = tokio::select! {
                changed = book.changed() => changed.is_ok(),
                () = &mut waited => false,
                () = self.stop.cancelled() => return news,
            };
            if !changed {
                return self::news(&book.borrow_and_update(), known, SystemTime::now(), true);
            }
        }
    }
}

#[tonic::async_trait]
impl Keys for KeysService {
    async fn fetch(&self, request: Request<FetchKeysRequest>) -> Result<Response<FetchKeysResponse>, Status> {
        let node = self.gate.enter(&request).await?;
        let FetchKeysRequest { known, wait_ms } = request.into_inner();
        let known: Result<Vec<Known>, &'static str> = match known.len() {
            ..=MOST => known.into_iter().map(Known::read).collect(),
            _ => Err("it asks for too many places"),
        };
        match known {
            Ok(known) => Ok(Response::new(self.await_news(&known, Duration::from_millis(wait_ms.into())).await)),
            Err(why) => Err(self.gate.refuse(&node, "malformed", Status::invalid_argument(why))),
        }
    }
}

/// What an agent knows of a place.
struct Known {
    location: KeyLocation,
    version: String,
    fetched: SystemTime,
    failure: String,
}

impl Known {
    fn read(wire: KnownKeys) -> Result<Known, &'static str> {
        let location = match wire.source.and_then(|source| source.source) {
            Some(Source::JwksUri(url) | Source::Issuer(url)) if url.len() > MAX_URL => {
                return Err("known.source: is longer than 2048 bytes, which no RequestAuthentication's may be");
            }
            Some(Source::JwksUri(uri)) => KeyLocation::Jwks(uri.into()),
            Some(Source::Issuer(issuer)) => KeyLocation::Issuer(issuer.into()),
            None => return Err("it asks for keys without saying from where"),
        };
        if wire.version.len() > MAX_VERSION {
            return Err("known.version: is longer than 128 bytes, which none that was told is");
        }
        if wire.failure.len() > MAX_FAILURE {
            return Err("known.failure: is longer than 4000 bytes; send no more than 1000 characters of what was told");
        }
        let fetched = UNIX_EPOCH.checked_add(Duration::from_millis(wire.fetched_unix_ms)).unwrap_or(UNIX_EPOCH);
        Ok(Known { location, version: wire.version, fetched, failure: wire.failure })
    }
}

/// What an agent does not know yet. `last`: it is answered whatever there is, so it is told too of what is in no RequestAuthentication;
/// before that, this replica may only be behind the agent. Pure.
fn news(book: &Book, known: &[Known], now: SystemTime, last: bool) -> FetchKeysResponse {
    let mut answer = FetchKeysResponse::default();
    let mut bytes = 0;
    for known in known {
        let standing = book.get(&known.location);
        let outcome = match standing.and_then(|standing| standing.set.as_ref()) {
            Some(set) => {
                // Another replica may have fetched later what the agent has. Of a clock that is far ahead no time is believed.
                let is_newer = known.version.is_empty() || set.fetched > known.fetched || known.fetched > now + SKEW;
                if *set.version == *known.version || !is_newer {
                    continue;
                }
                bytes += set.text.len();
                if bytes > MAX_KEYS && !answer.keys.is_empty() {
                    break;
                }
                let fetched = set.fetched.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
                let fetched_unix_ms = u64::try_from(fetched).unwrap_or(u64::MAX);
                Outcome::Set(KeySetWire { version: set.version.to_string(), fetched_unix_ms, jwks: set.text.to_string() })
            }
            None => {
                let failure = match standing {
                    Some(standing) => standing.failure.as_deref(),
                    None => last.then_some(UNKNOWN),
                };
                match failure {
                    Some(failure) if known.version.is_empty() && *failure != *known.failure => Outcome::Failure(failure.to_owned()),
                    _ => continue,
                }
            }
        };
        let source = match &known.location {
            KeyLocation::Jwks(uri) => Source::JwksUri(uri.to_string()),
            KeyLocation::Issuer(issuer) => Source::Issuer(issuer.to_string()),
        };
        answer.keys.push(FetchedKeys { source: Some(KeySource { source: Some(source) }), outcome: Some(outcome) });
    }
    answer
}

#[cfg(test)]
mod tests;
