//! The agent's own metrics, `nodemesh_*`: typed handles for what is counted in the data path.

use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::labels::put;

/// One or two labels whose values are chosen by this program.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Static<const N: usize>(pub [(&'static str, &'static str); N]);

impl<const N: usize> EncodeLabelSet for Static<N> {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> fmt::Result {
        self.0.iter().try_for_each(|(name, value)| put(encoder, name, value))
    }
}

type Counted<const N: usize> = Family<Static<N>, Counter>;

/// Handles of the agent's own metrics. Cheap to clone; all clones count into the same.
#[derive(Clone, Debug)]
pub struct AgentMetrics {
    decisions: Counted<2>,
    /// The one of `decisions` that each connection needs.
    allowed: Counter,
    dry_run: Counter,
    renewals: Counted<1>,
    overloads: Counted<1>,
    /// Version of the configuration in force.
    pub config_version: Gauge,
    /// When it was applied, Unix seconds.
    pub config_applied: Gauge<f64, AtomicU64>,
    /// Objects of it that were refused or have fields that are not done.
    pub config_problems: Gauge,
    /// Pods of this node that are enrolled and held.
    pub pods_held: Gauge<i64, AtomicI64>,
    /// Pods of this node that are enrolled and served.
    pub pods_ready: Gauge<i64, AtomicI64>,
    /// Pods of this node whose network the container runtime has told.
    pub cni_attachments: Gauge,
    cni_adds: Family<Static<1>, Histogram, fn() -> Histogram>,
    access_lines: Counted<1>,
}

impl AgentMetrics {
    pub(super) fn register(registry: &mut Registry) -> AgentMetrics {
        let decisions = Counted::default();
        let allowed = decisions.get_or_create_owned(&Static([("decision", "allow"), ("reason", "allowed")]));
        let metrics = AgentMetrics {
            decisions,
            allowed,
            dry_run: Counter::default(),
            renewals: Family::default(),
            overloads: Family::default(),
            config_version: Gauge::default(),
            config_applied: Gauge::default(),
            config_problems: Gauge::default(),
            pods_held: Gauge::default(),
            pods_ready: Gauge::default(),
            cni_attachments: Gauge::default(),
            cni_adds: Family::new_with_constructor(cni_histogram),
            access_lines: Family::default(),
        };
        let m = &metrics;
        registry.register("nodemesh_policy_decisions", "Decisions about connections by the agent, by reason", m.decisions.clone());
        registry.register("nodemesh_policy_dry_run_denials", "Connections allowed that a policy in dry run would deny", m.dry_run.clone());
        registry.register("nodemesh_certificate_renewals", "Certificates requested, by result", m.renewals.clone());
        registry.register(
            "nodemesh_pod_limit_refusals",
            "Connections, streams of tunnels and tunnels refused because their pod had reached its limit",
            m.overloads.clone(),
        );
        registry.register("nodemesh_config_version", "Version of the configuration in force", m.config_version.clone());
        registry.register(
            "nodemesh_config_applied_timestamp_seconds",
            "When the configuration in force was applied, Unix time",
            m.config_applied.clone(),
        );
        registry.register(
            "nodemesh_config_problems",
            "Problems of the configuration in force: objects refused or not wholly understood",
            m.config_problems.clone(),
        );
        registry.register("nodemesh_pods_held", "Pods of this node that are enrolled and not yet served", m.pods_held.clone());
        registry.register("nodemesh_pods_ready", "Pods of this node that are enrolled and served", m.pods_ready.clone());
        registry.register(
            "nodemesh_cni_attachments",
            "Pods of this node whose network the container runtime has told the agent",
            m.cni_attachments.clone(),
        );
        registry.register(
            "nodemesh_cni_add_seconds",
            "Time from the CNI plug-in's question, as a pod starts, to the agent's answer",
            m.cni_adds.clone(),
        );
        registry.register(
            "nodemesh_access_log_lines",
            "Lines of the access log: written, suppressed by the rate limit, lost because the writer was behind",
            m.access_lines.clone(),
        );
        registry.register(
            "nodemesh_build",
            "The agent's build",
            Info::new(vec![("version", env!("CARGO_PKG_VERSION")), ("component", "mesh-agent"), ("arch", std::env::consts::ARCH)]),
        );
        // Series that alerts are built on exist from the start, or their first increase would be invisible.
        for result in [CertificateResult::Issued, CertificateResult::Failed] {
            drop(m.renewals.get_or_create(&result.labels()));
        }
        for result in [AddResult::Captured, AddResult::Outside, AddResult::Failed, AddResult::Abandoned] {
            drop(m.cni_adds.get_or_create(&result.labels()));
        }
        for refused in [Refused::Outbound, Refused::Plaintext, Refused::Stream, Refused::Tunnel] {
            drop(m.overloads.get_or_create(&refused.labels()));
        }
        for line in [LineResult::Written, LineResult::Suppressed, LineResult::Lost] {
            drop(m.access_lines.get_or_create(&line.labels()));
        }
        metrics
    }

    /// Counts a connection that policy allowed.
    pub fn allowed(&self) {
        self.allowed.inc();
    }

    /// Counts a connection that was denied; `reason` is the name of its [`Outcome`](crate::outcome::Outcome).
    pub fn denied(&self, reason: &'static str) {
        self.decisions.get_or_create(&Static([("decision", "deny"), ("reason", reason)])).inc();
    }

    /// Counts a connection that a policy in dry run would have denied.
    pub fn dry_run_denial(&self) {
        self.dry_run.inc();
    }

    /// Counts the answer to a request for a certificate.
    pub fn certificate(&self, result: CertificateResult) {
        self.renewals.get_or_create(&result.labels()).inc();
    }

    /// Counts what was refused because a pod had reached its limit.
    pub fn pod_limit(&self, refused: Refused) {
        self.overloads.get_or_create(&refused.labels()).inc();
    }

    /// Notes how long the start of a pod has waited for this agent.
    pub fn cni_add(&self, result: AddResult, seconds: f64) {
        self.cni_adds.get_or_create(&result.labels()).observe(seconds);
    }

    pub(crate) fn access_lines(&self, result: LineResult) -> Counter {
        self.access_lines.get_or_create_owned(&result.labels())
    }
}

/// What came of a request for a certificate.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CertificateResult {
    /// It was issued and is used.
    Issued,
    /// It was not.
    Failed,
}

impl CertificateResult {
    fn labels(self) -> Static<1> {
        Static([(
            "result",
            match self {
                CertificateResult::Issued => "issued",
                CertificateResult::Failed => "failed",
            },
        )])
    }
}

/// From a millisecond to the half minute after which a plug-in gives up.
fn cni_histogram() -> Histogram {
    Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0])
}

/// What came of the question whether a pod may start.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AddResult {
    /// It may, in the mesh.
    Captured,
    /// It may, out of the mesh.
    Outside,
    /// It may not.
    Failed,
    /// Nobody waited for the answer, or another agent is to give it.
    Abandoned,
}

impl AddResult {
    fn labels(self) -> Static<1> {
        Static([(
            "result",
            match self {
                AddResult::Captured => "captured",
                AddResult::Outside => "outside",
                AddResult::Failed => "failed",
                AddResult::Abandoned => "abandoned",
            },
        )])
    }
}

/// What a pod that has reached its limit is refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Refused {
    /// A connection of its own.
    Outbound,
    /// A connection to it in the clear.
    Plaintext,
    /// A connection to it through a tunnel.
    Stream,
    /// A tunnel to it.
    Tunnel,
}

impl Refused {
    fn labels(self) -> Static<1> {
        Static([(
            "kind",
            match self {
                Refused::Outbound => "outbound",
                Refused::Plaintext => "plaintext",
                Refused::Stream => "stream",
                Refused::Tunnel => "tunnel",
            },
        )])
    }
}

/// What came of a line of the access log.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum LineResult {
    Written,
    Suppressed,
    Lost,
}

impl LineResult {
    fn labels(self) -> Static<1> {
        Static([(
            "result",
            match self {
                LineResult::Written => "written",
                LineResult::Suppressed => "suppressed",
                LineResult::Lost => "lost",
            },
        )])
    }
}
