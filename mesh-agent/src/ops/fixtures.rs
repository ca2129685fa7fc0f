//! What the tests of this module share: workloads, connections, a clock that stands until it is moved, a place to write to.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mesh_model::identity::{Identity, TrustDomain};
use mesh_model::service::NamespacedName;
use mesh_model::workload::{Canonical, Workload, WorkloadUid};
use parking_lot::Mutex;

use super::access::{AccessConfig, AccessLog, Direction};
use super::clock::Clock;
use super::metrics::labels::{ConnectionLabels, PeerInfo, Reporter, Security, ServiceRef};
use super::metrics::{Metrics, MetricsConfig};
use super::record::{Connection, Telemetry};

pub(crate) fn named(text: &str) -> NamespacedName {
    let (namespace, name) = text.split_once('/').unwrap();
    NamespacedName { namespace: namespace.into(), name: name.into() }
}

/// Pod `deployment-suffix` of a Deployment in namespace `shop`.
pub(crate) fn workload(deployment: &str, suffix: &str) -> Arc<Workload> {
    let name = format!("{deployment}-{suffix}");
    Arc::new(Workload {
        uid: WorkloadUid(format!("uid-{name}").into()),
        namespace: "shop".into(),
        name: name.into(),
        identity: Identity::new(TrustDomain::default(), "shop", deployment).unwrap(),
        node: "node-1".into(),
        addresses: vec![],
        enrolled: true,
        host_network: false,
        netns: None,
        labels: Arc::default(),
        canonical: Canonical {
            workload: deployment.into(),
            service: deployment.into(),
            revision: "v1".into(),
            app: deployment.into(),
            version: "".into(),
        },
    })
}

pub(crate) fn peer(deployment: &str, suffix: &str) -> PeerInfo {
    let workload = workload(deployment, suffix);
    PeerInfo { identity: Some(workload.identity.clone()), workload: Some(workload) }
}

pub(crate) fn labels(source: PeerInfo, destination: PeerInfo) -> ConnectionLabels {
    ConnectionLabels {
        reporter: Reporter::Source,
        source,
        destination,
        service: Some(ServiceRef { name: named("shop/cart"), host: "cart.shop.svc.cluster.local".into() }),
        security: Security::MutualTls,
    }
}

pub(crate) fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub(crate) fn connection() -> Connection {
    Connection {
        labels: labels(peer("web", "a"), peer("cart", "b")),
        direction: Direction::Outbound,
        client: address("10.1.0.5:40000"),
        server: Some(address("10.2.0.7:8080")),
        dialled: Some(address("10.96.0.9:80")),
        trace_id: None,
        upstream_tls: None,
    }
}

pub(crate) struct StillClock(Mutex<Duration>, Instant);

impl StillClock {
    pub(crate) fn new() -> Arc<StillClock> {
        Arc::new(StillClock(Mutex::default(), Instant::now()))
    }

    pub(crate) fn advance(&self, by: Duration) {
        *self.0.lock() += by;
    }
}

impl Clock for StillClock {
    fn now(&self) -> Instant {
        self.1 + *self.0.lock()
    }

    fn wall(&self) -> SystemTime {
        // 2026-11-23T12:00:00Z
        UNIX_EPOCH + Duration::from_secs(1_795_435_200) + *self.0.lock()
    }
}

/// Bytes that were written.
#[derive(Clone, Default)]
pub(crate) struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().clone()).unwrap()
    }
}

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) struct World {
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) clock: Arc<StillClock>,
    pub(crate) sink: Sink,
}

pub(crate) fn world(access: AccessConfig) -> World {
    let (clock, sink) = (StillClock::new(), Sink::default());
    let metrics = Arc::new(Metrics::new(MetricsConfig::default()));
    let access = Arc::new(AccessLog::start(access, sink.clone(), &metrics.agent, clock.now()).unwrap());
    World { telemetry: Telemetry::with_clock(metrics, access, clock.clone()), clock, sink }
}

impl World {
    pub(crate) fn scrape(&self) -> String {
        self.telemetry.metrics().expose(super::metrics::Format::OpenMetrics, self.clock.now()).unwrap()
    }

    /// The access log so far, a line each.
    pub(crate) fn lines(&self) -> Vec<String> {
        assert!(self.telemetry.access().flush(Duration::from_secs(10)));
        self.sink.text().lines().map(str::to_owned).collect()
    }
}
