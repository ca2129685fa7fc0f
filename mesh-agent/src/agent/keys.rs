//! Asks mesh-control for the keys of the issuers that this node's policies believe, and fills their slots.
//!
//! One call after the other waits at mesh-control for news, so that keys that an issuer has changed are here as soon as they are there. A
//! policy that comes with a place of its own has the call made anew at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mesh_model::jwt::Jwks;
use mesh_model::policy::request_authentication::KeyLocation;
use mesh_model::snapshot::Snapshot;
use mesh_proto::nodemesh::fetched_keys::Outcome;
use mesh_proto::nodemesh::key_source::Source;
use mesh_proto::nodemesh::keys_client::KeysClient;
use mesh_proto::nodemesh::{FetchKeysRequest, FetchKeysResponse, FetchedKeys, KeySource, KnownKeys};
use tokio::task::JoinSet;
use tonic::Code;

use crate::link::{Link, LinkError};
use crate::ops::metrics::{Kind, Metrics};
use crate::policy::KeyStore;
use crate::policy::keys::{self, KeySet, Slot};
use crate::policy::tokens::Tokens;

mod kept;

pub(super) use kept::Kept;

/// How long a call waits for news; mesh-control ends it after about as long.
const WAIT: Duration = Duration::from_secs(8);
/// Longest time for an answer, beyond that.
const ANSWER: Duration = Duration::from_secs(8);
/// Largest answer.
const MAX_ANSWER: usize = 1 << 20;
/// Places that are asked for, at most: as many as mesh-control fetches from.
const MOST: usize = 500;
/// Between two calls of which the first brought nothing although it did not wait.
const PAUSE: Duration = Duration::from_secs(1);
/// After a first call that failed; it doubles with each more, up to [`SLOWEST`].
const AGAIN: Duration = Duration::from_millis(500);
const SLOWEST: Duration = Duration::from_secs(10);
/// After a call to an authority that has no keys to give.
const ELSEWHERE: Duration = Duration::from_secs(300);
/// How long keys are waited for where no agent serves the node, and where one does. Without them tokens are refused, and all else works.
pub(super) const AT_START: Duration = Duration::from_secs(2);
pub(super) const AT_HANDOVER: Duration = Duration::from_secs(6);

/// What came of calls.
#[derive(Default)]
struct Calls {
    answered: AtomicU64,
    failed: AtomicU64,
}

/// Starts the calls, in a task of the agent, and shows in the metrics what comes of them.
pub(super) fn start(link: Arc<Link>, kept: Kept, tasks: &mut JoinSet<&'static str>, metrics: &Metrics) -> Arc<KeyStore> {
    let store: Arc<KeyStore> = Arc::default();
    keys::collect(metrics, &store);
    let calls: Arc<Calls> = Arc::default();
    let counted = calls.clone();
    metrics.collect(move |samples| {
        let help = "Calls to mesh-control for keys of issuers, by what came of them.";
        let mut family = samples.family("nodemesh_jwks_calls", help, Kind::Counter);
        family.sample(&[("result", "answered")], counted.answered.load(Ordering::Relaxed) as f64);
        family.sample(&[("result", "failed")], counted.failed.load(Ordering::Relaxed) as f64);
    });
    let asked = store.clone();
    tasks.spawn(async move {
        follow(&link, &asked, &kept, &calls).await;
        "keys of issuers"
    });
    store
}

/// From where the keys come that a node's pods need.
pub(super) fn needed(snapshot: &Snapshot, node: &str) -> Vec<KeyLocation> {
    let ours = snapshot.workloads().filter(|workload| workload.enrolled && !workload.host_network && *workload.node == *node);
    let tokens = ours.filter_map(|workload| Tokens::of(snapshot.authentication_for(workload)));
    tokens.flat_map(|tokens| tokens.locations().collect::<Vec<_>>()).collect()
}

/// Waits for the keys that policies are about to need, for a while: an agent that takes another's place must not refuse what that one let
/// through. Where mesh-control has none to give, or says nothing, those count that were left.
pub(super) async fn at_hand(store: &KeyStore, left: FetchKeysResponse, limit: Duration) {
    if tokio::time::timeout(limit, store.settled()).await.is_err() {
        tracing::warn!("mesh-control has not said which keys issuers have: until it does, tokens are believed by what was known of old");
    }
    let empty: Vec<Arc<Slot>> = store.slots().into_iter().filter(|slot| slot.set().is_none()).collect();
    take(&empty, left);
}

/// What the agent before this one left: to be read before the first call.
pub(super) fn left(kept: &Kept) -> FetchKeysResponse {
    kept.read(SystemTime::now()).unwrap_or_else(|error| {
        tracing::warn!(%error, "which keys of issuers the agent before this one had cannot be read");
        FetchKeysResponse::default()
    })
}

/// Keeps what the slots hold, if that is news. That it cannot be kept is said once.
fn keep(kept: &Kept, store: &KeyStore, news: bool, said: &mut bool) {
    let done = if news { kept.write(&store.slots()) } else { kept.confirm(SystemTime::now()) };
    if let Err(error) = done
        && !std::mem::replace(said, true)
    {
        tracing::warn!(%error, "keys of issuers cannot be kept for the next agent, should that start while mesh-control is away");
    }
}

async fn follow(link: &Link, store: &KeyStore, kept: &Kept, calls: &Calls) {
    let mut changes = store.changes();
    let mut failures = 0_u32;
    let mut complaint = String::new();
    let mut unkept = false;
    loop {
        changes.borrow_and_update();
        let slots: Vec<Arc<Slot>> = store.slots().into_iter().take(MOST).collect();
        if slots.is_empty() {
            // The sender lives in the store.
            let _ = changes.changed().await;
            continue;
        }
        let begun = Instant::now();
        let call = link.call(WAIT + ANSWER, request(&slots), |channel, request| async move {
            KeysClient::new(channel).max_decoding_message_size(MAX_ANSWER).fetch(request).await
        });
        let answered = tokio::select! {
            answered = call => answered,
            _ = changes.changed() => continue,
        };
        let pause = match answered {
            Ok(answered) => {
                calls.answered.fetch_add(1, Ordering::Relaxed);
                failures = 0;
                complaint.clear();
                let news = take(&slots, answered.message);
                store.tell();
                keep(kept, store, news, &mut unkept);
                if news || begun.elapsed() >= PAUSE { Duration::ZERO } else { PAUSE }
            }
            Err(error) => {
                calls.failed.fetch_add(1, Ordering::Relaxed);
                let elsewhere = matches!(&error, LinkError::Refused { code: Code::Unimplemented, .. });
                let words = match elsewhere {
                    true => "the certificate authority is no mesh-control, and has no keys to give; write them into jwks".to_owned(),
                    false => format!("mesh-control cannot be asked: {error}"),
                };
                for slot in &slots {
                    slot.fail(&words, elsewhere);
                }
                store.tell();
                if words != complaint {
                    tracing::warn!(error = words, "keys of issuers cannot be asked for; those that are here stay in force");
                    complaint = words;
                }
                let wait = AGAIN.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX)).min(SLOWEST);
                failures = failures.saturating_add(1);
                if elsewhere { ELSEWHERE } else { wait.mul_f64(0.5 + rand::random::<f64>() / 2.0) }
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = changes.changed() => {}
        }
    }
}

/// What is known, to be told what is not.
fn request(slots: &[Arc<Slot>]) -> FetchKeysRequest {
    let known = slots.iter().map(|slot| {
        let set = slot.set();
        let fetched = set.as_ref().map(|set| set.fetched.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis());
        KnownKeys {
            source: Some(source(slot.location())),
            version: set.map(|set| set.version.to_string()).unwrap_or_default(),
            fetched_unix_ms: u64::try_from(fetched.unwrap_or_default()).unwrap_or(u64::MAX),
            failure: slot.told().map(|why| why.to_string()).unwrap_or_default(),
        }
    });
    FetchKeysRequest { known: known.collect(), wait_ms: u32::try_from(WAIT.as_millis()).unwrap_or(u32::MAX) }
}

fn source(location: &KeyLocation) -> KeySource {
    let source = match location {
        KeyLocation::Jwks(uri) => Source::JwksUri(uri.to_string()),
        KeyLocation::Issuer(issuer) => Source::Issuer(issuer.to_string()),
    };
    KeySource { source: Some(source) }
}

/// Puts an answer into the slots; what was not asked for is not taken. Returns whether any of it was news.
fn take(slots: &[Arc<Slot>], answer: FetchKeysResponse) -> bool {
    let mut news = false;
    for FetchedKeys { source: from, outcome } in answer.keys {
        let Some(slot) = slots.iter().find(|slot| Some(source(slot.location())) == from) else { continue };
        let location = slot.location();
        match outcome {
            Some(Outcome::Set(set)) => match Jwks::parse(set.jwks.as_bytes()) {
                Ok(jwks) => {
                    tracing::info!(source = %location, keys = jwks.len(), version = set.version, "keys of an issuer are in force");
                    let fetched = UNIX_EPOCH.checked_add(Duration::from_millis(set.fetched_unix_ms)).unwrap_or(UNIX_EPOCH);
                    slot.fill(KeySet { version: set.version.into(), fetched, jwks: Arc::new(jwks), text: set.jwks.into() });
                    news = true;
                }
                Err(error) => {
                    news |= slot.fail(&format!("what mesh-control gave: {error}"), false);
                    tracing::error!(source = %location, %error, "what mesh-control gave as keys of an issuer is of no use");
                }
            },
            Some(Outcome::Failure(why)) => {
                let why: String = why.chars().take(1000).collect();
                if slot.fail(&why, true) {
                    tracing::warn!(source = %location, why, "there are no keys of an issuer: no token of it is believed");
                    news = true;
                }
            }
            None => {}
        }
    }
    news
}

#[cfg(test)]
mod tests;
