//! The answer: one value for a person's text and for JSON.

use std::fmt;
use std::net::SocketAddr;

use http::request::Parts;
use mesh_model::route::RuleOrigin;
use mesh_model::service::NamespacedName;
use serde::Serialize;

use crate::outcome::Outcome;
use crate::route::matches;

/// An answer.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Number of the configuration that it is about.
    pub config_version: u64,
    /// What becomes of it.
    pub verdict: Verdict,
    /// The same in a sentence.
    pub summary: String,
    /// The client.
    pub source: Party,
    /// What it dials.
    pub destination: Party,
    /// What it asks; nothing if it is about the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestLine>,
    /// On the way to the backends, in its order.
    pub steps: Vec<Step>,
    /// Where it goes from there.
    pub backends: Vec<Backend>,
}

/// What becomes of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// It goes through.
    Allowed,
    /// Policy refuses it.
    Denied,
    /// There is nowhere for it to go.
    Nowhere,
    /// It depends on what the question does not say, or on chance.
    Unknown,
}

/// Where on a byte's way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum At {
    /// The client's pod.
    Source,
    /// connect(), in the kernel of the client's node.
    Capture,
    /// What is spoken, and who looks into it.
    Protocol,
    /// The rule of a route.
    Route,
    /// What the rule changes.
    Filter,
    /// Where the rule leads.
    Backend,
    /// What the DestinationRule says of it.
    Traffic,
    /// How it gets to the endpoint.
    Encryption,
    /// The policies of the server's pod.
    Policy,
}

/// An object of the configuration.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Object {
    /// Its kind.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Number of its rule, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<usize>,
    /// Name of its rule.
    #[serde(rename = "ruleName", skip_serializing_if = "Option::is_none")]
    pub rule_name: Option<String>,
}

impl Object {
    /// One without rules.
    pub fn new(kind: &str, name: &NamespacedName) -> Object {
        Object { kind: kind.into(), namespace: name.namespace.to_string(), name: name.name.to_string(), rule: None, rule_name: None }
    }

    /// Who wrote a rule.
    pub fn of_rule(origin: &RuleOrigin) -> Object {
        Object {
            kind: origin.object.kind.name().into(),
            namespace: origin.object.namespace.to_string(),
            name: origin.object.name.to_string(),
            rule: Some(origin.rule),
            rule_name: origin.name.as_ref().map(ToString::to_string),
        }
    }
}

/// One step of the way.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Step {
    /// Where.
    pub at: At,
    /// What becomes of it here.
    pub verdict: Verdict,
    /// The object that decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<Object>,
    /// Why.
    pub reason: String,
    /// What would change it, or where to look.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

impl Step {
    /// It goes on.
    pub fn good(at: At, reason: impl Into<String>) -> Step {
        Step { at, verdict: Verdict::Allowed, object: None, reason: reason.into(), mend: None }
    }

    /// The question does not say enough.
    pub fn unknown(at: At, reason: impl Into<String>) -> Step {
        Step { verdict: Verdict::Unknown, ..Step::good(at, reason) }
    }

    /// It ends so: what log and metrics would say of it. `answered` tells that it is a request, which then has an answer.
    pub fn failed(at: At, outcome: &Outcome, answered: bool) -> Step {
        let kind = match outcome {
            Outcome::MtlsRequired { .. } => "PeerAuthentication",
            _ => "AuthorizationPolicy",
        };
        let status = if answered { format!("; the answer is {}", outcome.http_status().as_u16()) } else { String::new() };
        Step {
            at,
            verdict: if outcome.is_denial() { Verdict::Denied } else { Verdict::Nowhere },
            object: outcome.policy().map(|policy| Object::new(kind, policy)),
            reason: format!("{outcome}{status}"),
            mend: Some(outcome.meaning().advice.into_owned()),
        }
    }

    /// With the object that decides.
    pub fn by(self, object: Object) -> Step {
        Step { object: Some(object), ..self }
    }

    /// With what would change it.
    pub fn mend(self, mend: impl Into<String>) -> Step {
        Step { mend: Some(mend.into()), ..self }
    }
}

/// How bytes get to an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Encryption {
    /// Mutual TLS to the agent of another node.
    MutualTls,
    /// Mutual TLS from and to the agent of the one node.
    MutualTlsWithinNode,
    /// TLS that the client's agent begins as a DestinationRule asks, to a server that is not in the mesh.
    Tls,
    /// Within the kernel of one node.
    Kernel,
    /// In the clear.
    Plaintext,
}

/// Where it may arrive.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Endpoint {
    /// Its address.
    pub address: SocketAddr,
    /// namespace/name of its pod, if it is one that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The pod's node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// How it gets there; nothing if it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
    /// What becomes of it.
    pub verdict: Verdict,
    /// Why.
    pub steps: Vec<Step>,
}

/// Where a rule leads.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Backend {
    /// What it is, for people.
    pub target: String,
    /// Its weight; nothing if there is no choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// What comes to it, in percent.
    pub percent: f64,
    /// What becomes of it.
    pub verdict: Verdict,
    /// On the way there.
    pub steps: Vec<Step>,
    /// Where it may arrive.
    pub endpoints: Vec<Endpoint>,
}

impl Backend {
    /// One to which everything goes.
    pub fn whole(target: String, endpoints: Vec<Endpoint>) -> Backend {
        Backend::of(target, None, 100.0, Vec::new(), endpoints)
    }

    /// One with its share.
    pub fn of(target: String, weight: Option<u32>, percent: f64, steps: Vec<Step>, endpoints: Vec<Endpoint>) -> Backend {
        let verdict = chain(&steps, endpoints.iter().map(|endpoint| endpoint.verdict));
        Backend { target, weight, percent, verdict, steps, endpoints }
    }
}

/// One of the two ends.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Party {
    /// `Pod`, `Service`, `Workload` or `Address`.
    pub kind: &'static str,
    /// Its name, or address.
    pub name: String,
    /// For whom it stands, where the name is not the pod's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The pod's node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The identity that it proves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// The port that is dialled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) if self.kind == "Address" && self.name.contains(':') => write!(f, "{} [{}]:{port}", self.kind, self.name),
            Some(port) => write!(f, "{} {}:{port}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// A request, as its log line would name it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct RequestLine {
    /// Its method.
    pub method: String,
    /// Its target.
    pub path: String,
    /// Its host, without port.
    pub host: String,
}

impl RequestLine {
    pub(super) fn of(parts: &Parts) -> RequestLine {
        RequestLine {
            method: parts.method.to_string(),
            path: parts.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned(),
            host: matches::host_of(&parts.uri, &parts.headers),
        }
    }
}

/// The worst of steps that come one after the other, then what the ways that fork have in common.
pub(super) fn chain(steps: &[Step], ways: impl Iterator<Item = Verdict>) -> Verdict {
    let bad = |wanted: Verdict| steps.iter().any(|step| step.verdict == wanted);
    for verdict in [Verdict::Denied, Verdict::Nowhere, Verdict::Unknown] {
        if bad(verdict) {
            return verdict;
        }
    }
    ways.reduce(|one, other| match (one, other) {
        (one, other) if one == other => one,
        (Verdict::Denied | Verdict::Nowhere, Verdict::Denied | Verdict::Nowhere) => Verdict::Denied,
        _ => Verdict::Unknown,
    })
    .unwrap_or(Verdict::Allowed)
}

pub(super) fn overall(steps: &[Step], backends: &[Backend]) -> Verdict {
    chain(steps, backends.iter().filter(|backend| backend.percent > 0.0).map(|backend| backend.verdict))
}

/// The answer in a sentence.
pub(super) fn summary(verdict: Verdict, steps: &[Step], backends: &[Backend]) -> String {
    let ways = backends.iter().filter(|backend| backend.percent > 0.0);
    let mut all = steps.iter().chain(ways.clone().flat_map(|b| b.steps.iter().chain(b.endpoints.iter().flat_map(|e| &e.steps))));
    let reason = |step: &Step| step.reason.clone();
    match verdict {
        Verdict::Allowed => {
            let mut ways: Vec<&str> = ways.flat_map(|b| &b.endpoints).filter_map(|e| e.encryption).map(Encryption::words).collect();
            ways.sort_unstable();
            ways.dedup();
            if ways.is_empty() { "it is answered".to_owned() } else { format!("it gets there, {}", ways.join(" or ")) }
        }
        Verdict::Denied | Verdict::Nowhere => {
            let found = all.find(|step| matches!(step.verdict, Verdict::Denied | Verdict::Nowhere));
            found.map(reason).unwrap_or_default()
        }
        Verdict::Unknown => {
            let undecided = "it depends on the endpoint: some are reached, some are not".to_owned();
            all.find(|step| step.verdict == Verdict::Unknown).map_or(undecided, reason)
        }
    }
}

impl Encryption {
    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Encryption::MutualTls => "by mutual TLS",
            Encryption::MutualTlsWithinNode => "by mutual TLS within the node",
            Encryption::Tls => "by TLS",
            Encryption::Kernel => "within the kernel of one node",
            Encryption::Plaintext => "in the clear",
        }
    }
}
