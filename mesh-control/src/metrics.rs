//! What operators can count.

use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

use mesh_model::limit::WHOLE;
use mesh_sources::SourceStatus;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::budgets::BudgetId;

/// One label, of a value that this program chooses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub struct Reason {
    /// The value.
    pub reason: &'static str,
}

/// One label: which certificate.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub struct Which {
    /// `root`, `intermediate` or `serving`.
    pub certificate: &'static str,
}

/// One label: what came of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub struct ResultLabel {
    /// The value.
    pub result: &'static str,
}

/// Two labels: a service for agents, and what came of a call.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub struct Call {
    /// The service.
    pub service: &'static str,
    /// `let_in`, or why the call was refused.
    pub result: &'static str,
}

/// Labels: a budget.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OfBudget {
    rate_limit: String,
    limit: String,
    service: String,
}

/// All that is counted. Handles are cheap to clone and count into the same.
pub struct Metrics {
    registry: Registry,
    /// Certificates issued to workloads.
    pub issued: Counter,
    refused: Family<Reason, Counter>,
    connections: Family<ResultLabel, Counter>,
    expiry: Family<Which, Gauge<f64, AtomicU64>>,
    /// Connections that stand.
    pub open: Gauge,
    /// Nodes with a token.
    pub nodes: Gauge,
    /// Identities that may be signed for.
    pub identities: Gauge,
    /// Whether this replica leads: 1 or 0.
    pub leader: Gauge,
    statuses: Family<ResultLabel, Counter>,
    calls: Family<Call, Counter>,
    jwks: Family<ResultLabel, Counter>,
    lent: Family<OfBudget, Gauge<f64, AtomicU64>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

impl Metrics {
    /// Nothing counted yet.
    pub fn new() -> Metrics {
        let mut metrics = Metrics {
            registry: Registry::default(),
            issued: Counter::default(),
            refused: Family::default(),
            connections: Family::default(),
            expiry: Family::default(),
            open: Gauge::default(),
            nodes: Gauge::default(),
            identities: Gauge::default(),
            leader: Gauge::default(),
            statuses: Family::default(),
            calls: Family::default(),
            jwks: Family::default(),
            lent: Family::default(),
        };
        let Metrics { registry, issued, refused, connections, expiry, open, nodes, identities, leader, statuses, calls, jwks, lent } =
            &mut metrics;
        registry.register(
            "nodemesh_control_leader",
            "Whether this replica leads, which writes the status of objects and lends budgets: 1 or 0",
            leader.clone(),
        );
        registry.register(
            "nodemesh_control_calls",
            "Calls of agents to services beside the certificate authority, by what came of them",
            calls.clone(),
        );
        registry.register("nodemesh_control_jwks_fetches", "Fetches of keys from issuers of tokens, by what came of them", jwks.clone());
        registry.register("nodemesh_control_status_writes", "Writes of the status of objects, by what came of them", statuses.clone());
        registry.register(
            "nodemesh_control_budget_lent_ratio",
            "Part of a Service's budget that is lent to agents, from 0 to 1",
            lent.clone(),
        );
        registry.register("nodemesh_ca_certificates_issued", "Certificates issued to workloads", issued.clone());
        registry.register("nodemesh_ca_requests_refused", "Requests for a certificate that were refused, by reason", refused.clone());
        registry.register("nodemesh_ca_connections", "Connections to the certificate authority, by what came of them", connections.clone());
        registry.register("nodemesh_ca_connections_open", "Connections to the certificate authority that stand", open.clone());
        registry.register(
            "nodemesh_ca_certificate_expiration_timestamp_seconds",
            "When a certificate of the authority itself ends, Unix time",
            expiry.clone(),
        );
        registry.register("nodemesh_ca_nodes", "Nodes that have a token", nodes.clone());
        registry.register(
            "nodemesh_ca_identities",
            "Identities of pods in the mesh, for which certificates may be issued",
            identities.clone(),
        );
        registry.register(
            "nodemesh_build",
            "The build",
            Info::new(vec![("version", env!("CARGO_PKG_VERSION")), ("component", "mesh-control"), ("arch", std::env::consts::ARCH)]),
        );
        metrics
    }

    /// Shows how the configuration's source fares, at each scrape.
    pub fn show_source(&mut self, source: watch::Receiver<SourceStatus>) {
        self.registry.register_collector(Box::new(SourceCollector(source)));
    }

    /// Counts a refused request; `reason` is a name that this program chose.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Reason { reason }).inc();
    }

    /// How many requests were refused for a reason.
    pub fn refusals(&self, reason: &'static str) -> u64 {
        self.refused.get_or_create(&Reason { reason }).get()
    }

    /// Counts a connection.
    pub fn connection(&self, result: &'static str) {
        self.connections.get_or_create(&ResultLabel { result }).inc();
    }

    /// How many connections came to this.
    pub fn connections(&self, result: &'static str) -> u64 {
        self.connections.get_or_create(&ResultLabel { result }).get()
    }

    /// Counts a call to a service for agents; both are names that this program chose.
    pub fn called(&self, service: &'static str, result: &'static str) {
        self.calls.get_or_create(&Call { service, result }).inc();
    }

    /// Shows what is lent of each budget, in parts of the whole, and of no other.
    pub fn lent(&self, budgets: impl Iterator<Item = (BudgetId, u64)>) {
        self.lent.clear();
        for (BudgetId { limit, index, service }, parts) in budgets {
            let labels = OfBudget { rate_limit: limit.to_string(), limit: index.to_string(), service: service.to_string() };
            self.lent.get_or_create(&labels).set(parts as f64 / f64::from(WHOLE));
        }
    }

    /// How many calls came to this.
    pub fn calls(&self, service: &'static str, result: &'static str) -> u64 {
        self.calls.get_or_create(&Call { service, result }).get()
    }

    /// Shows what another part collects, at each scrape.
    pub fn collect(&mut self, collector: Box<dyn Collector>) {
        self.registry.register_collector(collector);
    }

    /// Counts a fetch of an issuer's keys; the result is a name that this program chose.
    pub fn jwks_fetched(&self, result: &'static str) {
        self.jwks.get_or_create(&ResultLabel { result }).inc();
    }

    /// How many fetches came to this.
    pub fn jwks_fetches(&self, result: &'static str) -> u64 {
        self.jwks.get_or_create(&ResultLabel { result }).get()
    }

    /// Counts a write of an object's status.
    pub fn status_written(&self, result: &'static str) {
        self.statuses.get_or_create(&ResultLabel { result }).inc();
    }

    /// Notes when a certificate of the authority ends.
    pub fn expires(&self, certificate: &'static str, end: SystemTime) {
        let seconds = end.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        self.expiry.get_or_create(&Which { certificate }).set(seconds);
    }

    /// The text of a scrape (OpenMetrics 1.0).
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// The configuration's source, as the agents show it too.
#[derive(Debug)]
struct SourceCollector(watch::Receiver<SourceStatus>);

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OfSource {
    source: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OfKind {
    source: &'static str,
    kind: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct OfError {
    source: &'static str,
    kind: &'static str,
    reason: &'static str,
}

impl Collector for SourceCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> std::fmt::Result {
        let status = self.0.borrow();
        let source = status.source;
        let connected: Family<OfSource, Gauge> = Family::default();
        connected.get_or_create(&OfSource { source }).set(i64::from(status.connected));
        let age: Family<OfKind, Gauge<f64, AtomicU64>> = Family::default();
        let objects: Family<OfKind, Gauge> = Family::default();
        let errors: Family<OfError, Counter> = Family::default();
        for (kind, status) in &status.kinds {
            let labels = OfKind { source, kind: kind.name() };
            if let Some(heard) = status.heard {
                age.get_or_create(&labels).set(heard.elapsed().as_secs_f64());
            }
            objects.get_or_create(&labels).set(i64::try_from(status.objects).unwrap_or(i64::MAX));
            for (reason, count) in &status.errors {
                errors.get_or_create(&OfError { source, kind: kind.name(), reason: reason.name() }).inc_by(*count);
            }
        }
        let encoder = &mut encoder;
        family(encoder, "nodemesh_config_source_connected", "Whether the configuration's source can be read: 1 or 0", &connected)?;
        let help = "Time since anything was heard from the API server about a kind of object";
        family(encoder, "nodemesh_config_source_age_seconds", help, &age)?;
        family(encoder, "nodemesh_config_source_objects", "Objects of a kind in force", &objects)?;
        family(encoder, "nodemesh_config_source_errors", "Requests to the API server that came to nothing, by reason", &errors)
    }
}

fn family(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, metric: &impl EncodeMetric) -> std::fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}
