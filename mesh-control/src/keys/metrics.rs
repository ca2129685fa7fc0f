//! What operators see of the keys.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;

use super::schedule::Book;
use crate::metrics::Metrics;

/// Places whose age is told one by one; the number of places is told for all.
const TOLD: usize = 100;

/// Shows the book, at each scrape.
pub fn show(metrics: &mut Metrics, book: watch::Receiver<Arc<Book>>) {
    metrics.collect(Box::new(Shown(book)));
}

#[derive(Debug)]
struct Shown(watch::Receiver<Arc<Book>>);

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct State {
    state: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Source {
    source: String,
}

impl Collector for Shown {
    fn encode(&self, mut encoder: DescriptorEncoder) -> std::fmt::Result {
        let book = self.0.borrow().clone();
        let (ages, counts): (Family<Source, Gauge<f64, AtomicU64>>, Family<State, Gauge>) = Default::default();
        for state in ["fresh", "stale", "missing"] {
            counts.get_or_create(&State { state }).set(0);
        }
        let now = SystemTime::now();
        for standing in book.values() {
            let state = match (&standing.set, &standing.failure) {
                (Some(_), None) => "fresh",
                (Some(_), Some(_)) => "stale",
                (None, _) => "missing",
            };
            counts.get_or_create(&State { state }).inc();
        }
        for (location, set) in book.iter().filter_map(|(location, standing)| Some((location, standing.set.as_ref()?))).take(TOLD) {
            let age = now.duration_since(set.fetched).unwrap_or_default().as_secs_f64();
            ages.get_or_create(&Source { source: location.to_string() }).set(age);
        }
        let encoder = &mut encoder;
        let help =
            "Places from which keys of issuers are fetched: fresh, stale (the last attempt failed, older keys are in force), missing";
        family(encoder, "nodemesh_control_jwks_sources", help, &counts)?;
        family(encoder, "nodemesh_control_jwks_age_seconds", "Time since the keys of an issuer were fetched", &ages)
    }
}

fn family(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, metric: &impl EncodeMetric) -> std::fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}
