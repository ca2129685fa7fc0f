//! Would a connection or a request be allowed, by which object, where would it go and how: answered by the functions that the data path
//! itself calls, over a snapshot. Pure; nothing is sent, and no permit that is made here leaves.
//!
//! ```text
//!  find ─ names → pods, Services ─► way ─ capture, protocol, rule, backends ─► hop ─ how it gets to an endpoint ─► server ─ policy
//! ```
//!
//! What is not in a snapshot is not in an answer: whether a pod's certificate is there, which endpoints are ejected, what a network policy
//! of the cluster says.

mod find;
mod hop;
mod question;
mod server;
mod value;
mod way;

use std::sync::Arc;

use http::request::Parts;
use mesh_model::snapshot::Snapshot;
use serde_json::Value;

use super::admin::{ActionError, Query};
use crate::outcome::{Outcome, Side};
use crate::policy::KeyStore;
use find::{Place, Who};
pub use question::Question;
pub use value::{At, Backend, Encryption, Endpoint, Explanation, Object, Party, RequestLine, Step, Verdict};

/// What the page takes.
pub const USAGE: &str = "whether a connection or request would be allowed, by what, and where it would go: ?from=ns/pod|workload|IP, \
                         to=ns/service|pod|workload[:port]|IP:port|host:port|https://host, port=N, method=GET, path=/x, \
                         header=name:value (repeated), sni=name";

/// Why there is no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unanswered {
    /// The question is wrong; the text says what is right.
    #[error("{0}")]
    Bad(String),
    /// What it names is not there; the text says what is named alike.
    #[error("{0}")]
    Unknown(String),
}

impl From<Unanswered> for ActionError {
    fn from(why: Unanswered) -> Self {
        match why {
            Unanswered::Bad(text) => ActionError::BadRequest(text),
            Unanswered::Unknown(text) => ActionError::NotFound(text),
        }
    }
}

/// As [`page`], at this moment: tokens have an end.
pub fn answer(snapshot: &Snapshot, keys: &Arc<KeyStore>, query: &Query) -> Result<Value, ActionError> {
    page(snapshot, keys, query, std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs())
}

/// The admin endpoint's page. `now` is in seconds since 1970, for tokens; `keys` are those of issuers that this agent has.
///
/// # Errors
/// The parameters are wrong, or what they name does not exist.
pub fn page(snapshot: &Snapshot, keys: &Arc<KeyStore>, query: &Query, now: u64) -> Result<Value, ActionError> {
    let explanation = explain(snapshot, &Question::of(query, keys, now)?)?;
    serde_json::to_value(explanation).map_err(|error| ActionError::Failed(error.to_string()))
}

/// Answers a question.
///
/// # Errors
/// What it names does not exist, or it does not say enough.
pub fn explain(snapshot: &Snapshot, question: &Question) -> Result<Explanation, Unanswered> {
    let source = find::source(snapshot, &question.from)?;
    let place = find::destination(snapshot, &question.to, question.port, &source)?;
    let request = question.request.as_ref().map(|asked| asked.parts(&place)).transpose()?;
    let mut steps = Vec::new();
    let mut backends = Vec::new();
    match &source.who {
        Who::Held(pod) => {
            let outcome = Outcome::PodHeld { side: Side::Client, awaited: pod.reason.clone() };
            steps.push(Step::failed(At::Source, &outcome, false));
        }
        Who::Pod(workload) if workload.enrolled => {
            let way = way::Way { snapshot, client: workload, question, request: request.as_ref() };
            way.explain(&place, &mut steps, &mut backends);
        }
        Who::Pod(_) | Who::Outside(_) => outside(snapshot, question, &source, &place, request.as_ref(), &mut steps, &mut backends),
    }
    let verdict = value::overall(&steps, &backends);
    Ok(Explanation {
        config_version: snapshot.version(),
        verdict,
        summary: value::summary(verdict, &steps, &backends),
        source: source.party(),
        destination: place.party(),
        request: request.as_ref().map(RequestLine::of),
        steps,
        backends,
    })
}

/// A client that is not in the mesh: the mesh sees of it what arrives.
fn outside(
    snapshot: &Snapshot,
    question: &Question,
    source: &find::Source<'_>,
    place: &Place<'_>,
    request: Option<&Parts>,
    steps: &mut Vec<Step>,
    backends: &mut Vec<Backend>,
) {
    let what = "is not in the mesh: its connections are left alone and arrive in the clear, from nobody that is known";
    let step = Step::good(At::Source, format!("{} {what}", source.named));
    steps.push(match &source.who {
        Who::Pod(workload) if !workload.host_network => {
            step.mend("label it or its namespace nodemesh.dev/mesh=enabled, and it has an identity")
        }
        _ => step,
    });
    let targets = place.targets();
    if targets.is_empty() {
        return steps.push(Step::failed(At::Backend, &Outcome::NoEndpoint, false));
    }
    let reach = |address| match hop::clear(snapshot, address, &source.address(address), "the client is not in the mesh") {
        Ok(hop) => server::endpoint(snapshot, hop, request, question),
        Err(outcome) => server::unreachable(snapshot, address, &outcome, request.is_some()),
    };
    backends.push(Backend::whole(place.party().to_string(), targets.into_iter().map(reach).collect()));
}

#[cfg(test)]
mod tests;
