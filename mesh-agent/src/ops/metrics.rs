//! The registry of all that the agent counts, and its text.
//!
//! Values are either counted here (typed handles, each an atomic) or live elsewhere (kernel maps, the certificate store, configuration) and
//! are asked for at a scrape by a collector.

use std::sync::Arc;
use std::time::Instant;

use mesh_model::service::NamespacedName;
use mesh_model::workload::WorkloadUid;
use parking_lot::{Mutex, RwLock};
use prometheus_client::registry::Registry;

pub mod agent;
pub mod expose;
pub mod kernel;
pub mod labels;
pub mod requests;
pub mod samples;
pub mod series;
pub mod server;

pub use agent::{AgentMetrics, Refused};
pub use expose::Format;
pub use kernel::{FlowTotals, KernelFlows};
pub use samples::{CertificateSample, Kind, MapSample, Samples};
pub use series::{Opened, Series, TcpSeries};

use labels::ConnectionLabels;

/// Settings of the metrics.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MetricsConfig {
    /// Name of the cluster, in the labels `source_cluster` and `destination_cluster`. Istio's default is `Kubernetes`.
    pub cluster: Arc<str>,
    /// Most pairs of workloads whose connections are told apart.
    pub max_pairs: usize,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        MetricsConfig { cluster: Arc::from("Kubernetes"), max_pairs: 20_000 }
    }
}

type Hook = Box<dyn Fn(Instant) + Send + Sync>;

/// Everything that is counted.
pub struct Metrics {
    tcp: Arc<TcpSeries>,
    /// The agent's own.
    pub agent: AgentMetrics,
    registry: RwLock<Registry>,
    hooks: RwLock<Vec<Hook>>,
    /// One scrape at a time: two would do the same work twice over.
    scraping: Mutex<()>,
}

impl Metrics {
    /// A registry with nothing counted yet.
    pub fn new(config: MetricsConfig) -> Metrics {
        let mut registry = Registry::default();
        let tcp = Arc::new(TcpSeries::new(config.cluster, config.max_pairs));
        registry.register_collector(Box::new(series::TcpCollector(tcp.clone())));
        let agent = AgentMetrics::register(&mut registry);
        let metrics =
            Metrics { tcp: tcp.clone(), agent, registry: RwLock::new(registry), hooks: RwLock::default(), scraping: Mutex::new(()) };
        metrics.collect(move |samples| {
            samples
                .family("nodemesh_metrics_series", "Label sets of TCP metrics that are kept.", Kind::Gauge)
                .sample(&[], tcp.len() as f64);
            samples
                .family(
                    "nodemesh_metrics_overflow",
                    "Connections counted without names, because the limit of label sets is reached.",
                    Kind::Counter,
                )
                .sample(&[], tcp.overflowed() as f64);
        });
        metrics
    }

    /// The series of a connection; find it once, when the connection opens.
    pub fn series(&self, labels: &ConnectionLabels) -> Arc<Series> {
        self.tcp.resolve(labels)
    }

    /// A series that no scrape shows.
    pub(super) fn uncounted(&self) -> Arc<Series> {
        self.tcp.uncounted()
    }

    /// Lets the series of a workload go that is gone.
    pub fn forget(&self, workload: &WorkloadUid, now: Instant) {
        self.tcp.forget(workload, now);
    }

    /// Lets the series of a Service go that is gone.
    pub fn forget_service(&self, service: &NamespacedName, now: Instant) {
        self.tcp.forget_service(service, now);
    }

    /// Connections since the agent's start, by how they were protected.
    pub fn opened(&self) -> Opened {
        self.tcp.opened()
    }

    /// Registers a collector for values that live elsewhere. It runs at each scrape, must not wait, and owns the families that it names.
    pub fn collect(&self, collector: impl Fn(&mut Samples<'_, '_>) + Send + Sync + 'static) {
        self.registry.write().register_collector(Box::new(samples::Closure(Box::new(collector))));
    }

    /// Registers work that must be done before a scrape, as adding what living connections carried since the last one.
    pub fn before_scrape(&self, hook: impl Fn(Instant) + Send + Sync + 'static) {
        self.hooks.write().push(Box::new(hook));
    }

    /// The text of a scrape. It walks all connections that live and all series: call it outside of the threads that carry connections.
    pub fn expose(&self, format: Format, now: Instant) -> Result<String, std::fmt::Error> {
        let _one = self.scraping.lock();
        for hook in self.hooks.read().iter() {
            hook(now);
        }
        self.tcp.sweep(now);
        expose::text(&self.registry.read(), format)
    }
}

#[cfg(test)]
pub(crate) mod tests;
