//! How a source fares: whether it can be read, since when, and what it still waits for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use mesh_model::object::Kind;
use serde_json::{Value, json};

/// Why a request to the API server came to nothing, as a metric's label.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Reason {
    /// Nobody answers there, or the connection broke.
    Unreachable,
    /// An answer, or its next part, did not come in time.
    Timeout,
    /// It does not know us (401), or our own credentials cannot be read.
    Unauthorized,
    /// It knows us and refuses (403): a permission is missing.
    Forbidden,
    /// The kind is not served (404).
    NotFound,
    /// What we knew is too old to be continued (410): everything is listed anew.
    Expired,
    /// It asks for patience (429).
    Throttled,
    /// It failed (5xx).
    ServerError,
    /// It refused the request for another reason (4xx).
    Rejected,
    /// Its answer is no list, no event or no JSON.
    Malformed,
}

impl Reason {
    /// As a label's value.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Unreachable => "unreachable",
            Reason::Timeout => "timeout",
            Reason::Unauthorized => "unauthorized",
            Reason::Forbidden => "forbidden",
            Reason::NotFound => "not_found",
            Reason::Expired => "expired",
            Reason::Throttled => "throttled",
            Reason::ServerError => "server_error",
            Reason::Rejected => "rejected",
            Reason::Malformed => "malformed",
        }
    }
}

/// Something that failed and has not worked since.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// Its class.
    pub reason: Reason,
    /// What happened, and where it can be mended here, how.
    pub message: Arc<str>,
    /// Since when.
    pub since: Instant,
}

/// How far a kind of object is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// It has not been listed yet.
    Awaited,
    /// Its objects are known and followed.
    Synced,
    /// The API server does not have the kind.
    Absent,
}

impl Progress {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Progress::Awaited => "awaited",
            Progress::Synced => "synced",
            Progress::Absent => "absent",
        }
    }
}

/// How one kind of object fares.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KindStatus {
    /// How far it is known.
    pub progress: Progress,
    /// Objects in force.
    pub objects: usize,
    /// When anything last came from the API server about it, be it a sign of life only.
    pub heard: Option<Instant>,
    /// When its objects last changed.
    pub changed: Option<Instant>,
    /// Lists that were taken in full.
    pub lists: u64,
    /// What failed last and has not worked since.
    pub failure: Option<Failure>,
    /// Failures by class, since the start.
    pub errors: BTreeMap<Reason, u64>,
}

impl Default for KindStatus {
    fn default() -> Self {
        KindStatus { progress: Progress::Awaited, objects: 0, heard: None, changed: None, lists: 0, failure: None, errors: BTreeMap::new() }
    }
}

/// How a source fares.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceStatus {
    /// `manifests` or `kubernetes`.
    pub source: &'static str,
    /// Where from, for people: a directory or a server's address.
    pub place: Arc<str>,
    /// Whether it can be read.
    pub connected: bool,
    /// Since when that is so.
    pub since: Instant,
    /// Why it cannot be read.
    pub failure: Option<Arc<str>>,
    /// By kind of object; empty for manifests, which are read as a whole.
    pub kinds: BTreeMap<Kind, KindStatus>,
}

impl SourceStatus {
    /// Of a source that was not read yet.
    pub fn new(source: &'static str, place: Arc<str>, kinds: impl IntoIterator<Item = Kind>) -> SourceStatus {
        let kinds = kinds.into_iter().map(|kind| (kind, KindStatus::default())).collect();
        SourceStatus { source, place, connected: false, since: Instant::now(), failure: None, kinds }
    }

    /// What has to come before anything can be in force; `None` if nothing.
    pub fn awaited(&self) -> Option<String> {
        let waiting: Vec<_> = self.kinds.iter().filter(|(_, status)| status.progress == Progress::Awaited).collect();
        if waiting.is_empty() {
            return None;
        }
        let names: Vec<&str> = waiting.iter().map(|(kind, _)| kind.name()).collect();
        let mut text = format!("the first list of {} from {}", names.join(", "), self.place);
        // Kinds mostly fail together and for one reason. What has failed for longest is the cause rather than what followed from it.
        let mut failures: Vec<&Failure> = waiting.iter().filter_map(|(_, status)| status.failure.as_ref()).collect();
        failures.sort_by_key(|failure| failure.since);
        let mut seen = BTreeSet::new();
        failures.retain(|failure| seen.insert(&*failure.message));
        if let Some(first) = failures.first() {
            text = format!("{text}: {}", first.message);
        }
        if failures.len() > 1 {
            text = format!("{text} (and {} more reasons)", failures.len() - 1);
        }
        Some(text)
    }

    /// For an operator to read. Ages are in seconds before `now`.
    pub fn describe(&self, now: Instant) -> Value {
        let age = |at: Instant| now.saturating_duration_since(at).as_secs_f64();
        let kind = |status: &KindStatus| {
            let errors: BTreeMap<&str, u64> = status.errors.iter().map(|(reason, count)| (reason.name(), *count)).collect();
            json!({
                "state": status.progress.name(),
                "objects": status.objects,
                "heardSecondsAgo": status.heard.map(age),
                "changedSecondsAgo": status.changed.map(age),
                "lists": status.lists,
                "failure": status.failure.as_ref().map(|failure| json!({
                    "reason": failure.reason.name(), "message": &*failure.message, "forSeconds": age(failure.since),
                })),
                "errors": errors,
            })
        };
        json!({
            "source": self.source,
            "place": &*self.place,
            "connected": self.connected,
            "forSeconds": age(self.since),
            "failure": self.failure.as_deref(),
            "awaited": self.awaited(),
            "kinds": self.kinds.iter().map(|(of, status)| (of.name().to_owned(), kind(status))).collect::<serde_json::Map<_, _>>(),
        })
    }
}
