//! What requests count beyond Istio's metrics, and how the clusters do, for a scrape.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::ops::metrics::{Kind, Metrics, Samples};
use crate::outcome::{Outcome, RequestFailure};
use crate::upstream::cluster::Clusters;
use crate::upstream::health::Reason;

/// Counters of all workers.
#[derive(Default)]
pub struct RequestCounters {
    retries: AtomicU64,
    retry_refusals: [AtomicU64; RETRY_BOUNDS.len()],
    mirrors: [AtomicU64; 3],
    mirrors_under_way: AtomicUsize,
    ejections: [AtomicU64; 3],
    refusals: [AtomicU64; REFUSALS.len()],
    secured: [AtomicU64; 3],
}

/// Copies of requests that may be under way at once on the node.
const MIRRORS: usize = 1024;

/// A copy that is under way.
pub struct Mirror(Arc<RequestCounters>);

impl Drop for Mirror {
    fn drop(&mut self) {
        self.0.mirrors_under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What can keep an attempt from being made again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RetryBound {
    /// `maxRetries` of a DestinationRule.
    MaxRetries,
    /// The retry budget of an XBackendTrafficPolicy.
    Budget,
    /// A RateLimit of the host of a ServiceEntry.
    RateLimit,
}

const RETRY_BOUNDS: [(RetryBound, &str); 3] =
    [(RetryBound::MaxRetries, "maxRetries"), (RetryBound::Budget, "budget"), (RetryBound::RateLimit, "rateLimit")];
const MIRROR_RESULTS: [&str; 3] = ["sent", "failed", "skipped"];
/// Why bytes of an HTTP/1 client are refused before there is a request ([`Violation`](super::guard::Violation)), and what takes too long.
const REFUSALS: [&str; 10] = [
    "bare_lf",
    "bare_cr",
    "folded_header",
    "header_name",
    "content_length",
    "transfer_encoding",
    "chunk",
    "head_too_large",
    "head_timeout",
    "body_timeout",
];
const HANDSHAKES: [&str; 3] = ["full", "resumed", "failed"];
const REASONS: [Reason; 3] = [Reason::Consecutive5xx, Reason::ConsecutiveGateway, Reason::ConsecutiveLocal];

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl RequestCounters {
    /// An attempt is made again.
    pub fn retried(&self) {
        add(&self.retries);
    }

    /// An attempt is not made again because a bound does not let it.
    pub fn retry_refused(&self, by: RetryBound) {
        if let Some((_, counter)) = RETRY_BOUNDS.iter().zip(&self.retry_refusals).find(|((bound, _), _)| *bound == by) {
            add(counter);
        }
    }

    /// TLS towards a server was begun: whether a session was resumed; `None` if it failed.
    pub fn secured(&self, resumed: Option<bool>) {
        let [full, again, failed] = &self.secured;
        add(match resumed {
            Some(false) => full,
            Some(true) => again,
            None => failed,
        });
    }

    /// A place for a copy among those that may be under way at once on the node.
    pub fn mirror_begins(self: &Arc<Self>) -> Option<Mirror> {
        let one_more = |open: usize| (open < MIRRORS).then_some(open + 1);
        self.mirrors_under_way.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(Mirror(self.clone()))
    }

    /// A copy was answered.
    pub fn mirrored(&self) {
        let [sent, _, _] = &self.mirrors;
        add(sent);
    }

    /// A copy was not answered.
    pub fn mirror_failed(&self) {
        let [_, failed, _] = &self.mirrors;
        add(failed);
    }

    /// A copy was not sent: its target is not there, the request was too large to keep, or too many are under way.
    pub fn mirror_skipped(&self) {
        let [_, _, skipped] = &self.mirrors;
        add(skipped);
    }

    /// An endpoint was ejected.
    pub fn ejected(&self, reason: Reason) {
        if let Some((_, counter)) = REASONS.iter().zip(&self.ejections).find(|(known, _)| **known == reason) {
            add(counter);
        }
    }

    /// A request's body did not come to its end.
    pub fn body_broke(&self, how: &Outcome) {
        if matches!(how, Outcome::Request(RequestFailure::BodyTimedOut)) {
            self.refused("body_timeout");
        }
    }

    /// How often [`RequestCounters::refused`] counted.
    #[cfg(test)]
    pub(super) fn refusals(&self) -> u64 {
        self.refusals.iter().map(|counter| counter.load(Ordering::Relaxed)).sum()
    }

    /// A client's bytes were refused, or not waited for any longer.
    pub fn refused(&self, why: &'static str) {
        if let Some((_, counter)) = REFUSALS.iter().zip(&self.refusals).find(|(known, _)| **known == why) {
            add(counter);
        }
    }
}

/// Registers them.
pub fn collect(metrics: &Metrics, counters: &Arc<RequestCounters>, clusters: &Arc<Clusters>) {
    let (counters, clusters) = (counters.clone(), clusters.clone());
    metrics.collect(move |samples| {
        samples
            .family("nodemesh_request_retries", "Attempts of requests beyond the first.", Kind::Counter)
            .sample(&[], counters.retries.load(Ordering::Relaxed) as f64);
        let help = "Attempts that were not made again because of a bound: maxRetries of a DestinationRule, a retry budget, or a RateLimit of \
                    a ServiceEntry.";
        let mut family = samples.family("nodemesh_request_retry_refusals", help, Kind::Counter);
        for ((_, bound), counter) in RETRY_BOUNDS.iter().zip(&counters.retry_refusals) {
            family.sample(&[("bound", bound)], counter.load(Ordering::Relaxed) as f64);
        }
        let mut family = samples.family("nodemesh_request_mirrors", "Copies of requests, by what came of them.", Kind::Counter);
        for (result, counter) in MIRROR_RESULTS.iter().zip(&counters.mirrors) {
            family.sample(&[("result", result)], counter.load(Ordering::Relaxed) as f64);
        }
        let mut family = samples.family("nodemesh_endpoint_ejections", "Endpoints ejected by outlier detection, by reason.", Kind::Counter);
        for (reason, counter) in REASONS.iter().zip(&counters.ejections) {
            family.sample(&[("reason", reason.as_str())], counter.load(Ordering::Relaxed) as f64);
        }
        let mut family = samples.family(
            "nodemesh_http_guard_refusals",
            "Connections and requests of clients refused for what their bytes are or for how long they took, by reason.",
            Kind::Counter,
        );
        for (reason, counter) in REFUSALS.iter().zip(&counters.refusals) {
            family.sample(&[("reason", reason)], counter.load(Ordering::Relaxed) as f64);
        }
        let help = "TLS handshakes with servers, begun here as a DestinationRule asks, by result.";
        let mut family = samples.family("nodemesh_origination_handshakes", help, Kind::Counter);
        for (result, counter) in HANDSHAKES.iter().zip(&counters.secured) {
            family.sample(&[("result", result)], counter.load(Ordering::Relaxed) as f64);
        }
        of_clusters(samples, &clusters);
    });
}

fn of_clusters(samples: &mut Samples<'_, '_>, clusters: &Clusters) {
    let all: Vec<_> = clusters.all().into_iter().map(|cluster| (cluster.name.to_string(), cluster)).collect();
    let now = std::time::Instant::now();
    let mut family =
        samples.family("nodemesh_cluster_endpoints", "Endpoints of a Service's port, by whether requests may go there.", Kind::Gauge);
    for (name, cluster) in &all {
        let (usable, ejected) = cluster.counts(now);
        family.sample(&[("cluster", name), ("state", "usable")], usable as f64);
        family.sample(&[("cluster", name), ("state", "ejected")], ejected as f64);
    }
    let mut family =
        samples.family("nodemesh_circuit_open", "What is in use of each bound of a connectionPool, of all clients.", Kind::Gauge);
    let usage: Vec<_> = all.iter().map(|(name, cluster)| (name, cluster.usage())).collect();
    for (name, usage) in &usage {
        for (bound, (open, _)) in usage {
            family.sample(&[("cluster", name), ("bound", bound)], *open as f64);
        }
    }
    let mut family =
        samples.family("nodemesh_circuit_refusals", "What each bound of a connectionPool has refused, of all clients.", Kind::Counter);
    for (name, usage) in &usage {
        for (bound, (_, refused)) in usage {
            family.sample(&[("cluster", name), ("bound", bound)], *refused as f64);
        }
    }
}
