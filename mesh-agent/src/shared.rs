//! What every connection needs: [`Shared`] by all threads, [`Worker`] by one.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use mesh_model::identity::Identity;
use mesh_model::service::NamespacedName;
use mesh_model::snapshot::Snapshot;
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

use crate::agent::budget::Full;
use crate::agent::directory::{claimed_service, service_ref};
use crate::agent::pods::LocalPod;
use crate::capture::load::LoadError;
use crate::capture::maps::Origins;
use crate::config::Config;
use crate::identity::{Certificate, CertificateWatch, Secrets};
use crate::names::Names;
use crate::ops::ServiceRef;
use crate::ops::drain::DrainWatch;
use crate::ops::metrics::{Kind, Metrics, Refused};
use crate::ops::record::Telemetry;
use crate::outbound::egress::EgressCounters;
use crate::outcome::{Outcome, Side};
use crate::policy::{KeyStore, limits};
use crate::route::counters::RequestCounters;
use crate::route::serve::Manners;
use crate::route::tables::Tables;
use crate::tunnel::pool::LocalFuture;
use crate::tunnel::{self, Credentials, CredentialsUnavailable, Dialer, PoolKey, Pools, TunnelError};
use crate::upstream::cluster::{Cluster, Clusters};
use crate::upstream::connect;
use crate::upstream::copy::{Ended, How};
use crate::upstream::http::HttpPools;
use crate::upstream::originate::Credentials as OriginationCredentials;

/// Shared by all threads.
pub struct Shared {
    /// The mesh now.
    pub snapshot: ArcSwap<Snapshot>,
    /// Where connections are recorded.
    pub telemetry: Arc<Telemetry>,
    /// Certificates.
    pub secrets: Secrets,
    /// Bounds of tunnels.
    pub tunnel: Arc<tunnel::Settings>,
    /// What tunnels count.
    pub counters: Arc<tunnel::TunnelCounters>,
    /// How long connecting to an application may take.
    pub connect_timeout: Duration,
    /// How long the head of an HTTP/1 request may take.
    pub http_head_timeout: Duration,
    /// How long a client may send nothing of a request's body before it is answered; `None` for any time.
    pub http_body_idle_timeout: Option<Duration>,
    /// Where the pins are.
    pub pins: std::path::PathBuf,
    /// Turns of the routes in force.
    pub tables: Tables,
    /// Where requests go.
    pub clusters: Arc<Clusters>,
    /// What the names of ServiceEntries stand for.
    pub names: Arc<Names>,
    /// Connections to what is neither pod nor Service.
    pub egress: Arc<EgressCounters>,
    /// Where clients' own certificates are, for TLS that is begun on their behalf.
    pub credentials: Arc<OriginationCredentials>,
    /// What requests count.
    pub requests: Arc<RequestCounters>,
    /// Budgets of the RateLimits in force.
    pub limits: Arc<limits::Registry>,
    /// Keys of issuers.
    pub keys: Arc<KeyStore>,
    cluster: String,
    cluster_domain: String,
}

impl Shared {
    /// What is asked of clients that speak HTTP.
    pub fn manners(&self) -> Manners {
        Manners { head_timeout: self.http_head_timeout, counters: self.requests.clone() }
    }

    /// From the settings and the parts.
    pub fn new(
        config: &Config,
        snapshot: Arc<Snapshot>,
        telemetry: Arc<Telemetry>,
        secrets: Secrets,
        keys: Arc<KeyStore>,
        pins: &std::path::Path,
    ) -> Self {
        let names: Arc<Names> = Arc::default();
        Shared {
            snapshot: ArcSwap::new(snapshot),
            telemetry,
            secrets,
            tunnel: Arc::default(),
            counters: Arc::default(),
            connect_timeout: config.connect_timeout,
            http_head_timeout: config.http_head_timeout,
            http_body_idle_timeout: Some(config.http_body_idle_timeout).filter(|timeout| !timeout.is_zero()),
            pins: pins.to_path_buf(),
            tables: Tables::default(),
            clusters: Arc::new(Clusters::new(names.clone())),
            names,
            egress: Arc::default(),
            credentials: Arc::new(OriginationCredentials::new(&config.credentials)),
            requests: Arc::default(),
            limits: Arc::default(),
            keys,
            cluster: config.cluster.clone(),
            cluster_domain: config.cluster_domain.clone(),
        }
    }

    /// What peers are told of a pod: a claim, good for their labels.
    pub fn baggage(&self, pod: &LocalPod) -> Arc<str> {
        pod.baggage.get_or_init(|| tunnel::hbone::baggage(&self.cluster, &pod.workload).into()).clone()
    }

    /// The Service by whose host name a peer says that `server` was dialled; see [`claimed_service`].
    pub fn claimed_service(&self, snapshot: &Snapshot, host: &str, server: SocketAddr) -> Option<ServiceRef> {
        claimed_service(snapshot, host, server, &self.cluster_domain)
    }

    /// A Service, as metrics name it.
    pub fn service(&self, name: &NamespacedName) -> ServiceRef {
        service_ref(name, &self.cluster_domain)
    }
}

impl Shared {
    /// What becomes of what a pod is refused because it has reached its limit: counted, and said once in the log.
    pub fn overload(&self, pod: &LocalPod, refused: Refused, full: Full) -> Outcome {
        // By the name by which an operator finds it.
        let limit = match refused {
            Refused::Tunnel => "tunnels to a pod (three for each of --max-connections-per-pod)",
            Refused::Outbound | Refused::Plaintext | Refused::Stream => "connections of a pod (--max-connections-per-pod)",
        };
        let outcome = Outcome::Overload { limit };
        self.telemetry.metrics().agent.pod_limit(refused);
        if full.first {
            let advice = outcome.meaning().advice;
            tracing::warn!(pod = %pod.name(), ?refused, "a pod has reached its limit; {advice}");
        }
        outcome
    }
}

impl Shared {
    /// What is wrong with files that TLS towards servers needs, a sentence each.
    pub fn tls_problems(&self) -> Vec<String> {
        let of = |cluster: Arc<Cluster>| {
            let say = |(namespace, reason): (Arc<str>, Arc<str>)| {
                format!(
                    "the DestinationRule's tls for Service {}, clients of namespace {namespace}: {reason}; they are refused",
                    cluster.name
                )
            };
            cluster.tls_problems().into_iter().map(say).collect::<Vec<_>>()
        };
        let mut all: Vec<String> = self.clusters.all().into_iter().flat_map(of).collect();
        all.sort();
        all.dedup();
        all
    }

    /// Registers what all workers count.
    pub fn collect(&self, metrics: &Metrics) {
        collect_tunnels(metrics, &self.counters);
        crate::route::counters::collect(metrics, &self.requests, &self.clusters);
        crate::policy::limits::collect(metrics, &self.limits);
        self.names.collect(metrics);
        self.egress.collect(metrics);
    }
}

/// Registers what tunnels count.
fn collect_tunnels(metrics: &Metrics, counters: &Arc<tunnel::TunnelCounters>) {
    let counters = counters.clone();
    metrics.collect(move |samples| {
        let roles = [("outbound", &counters.client), ("inbound", &counters.server)];
        let mut open = samples.family("nodemesh_tunnels_open", "Tunnels that stand.", Kind::Gauge);
        for (side, role) in roles {
            open.sample(&[("direction", side)], role.open.get() as f64);
        }
        let mut handshakes = samples.family("nodemesh_tunnel_handshakes", "Handshakes of tunnels, by result.", Kind::Counter);
        for (side, role) in roles {
            handshakes.sample(&[("direction", side), ("result", "ok")], role.handshakes.get() as f64);
            for (failure, count) in role.failures() {
                // The outcome's own name, so that a metric and a line of a log speak of the same.
                let outcome = Outcome::TunnelHandshakeFailed { failure, detail: "".into() };
                handshakes.sample(&[("direction", side), ("result", outcome.meaning().name)], count as f64);
            }
        }
        let mut streams = samples.family("nodemesh_tunnel_streams", "Connections carried by tunnels.", Kind::Counter);
        for (side, role) in roles {
            streams.sample(&[("direction", side)], role.streams.get() as f64);
        }
        let mut refused = samples.family("nodemesh_tunnel_streams_refused", "Connections that the serving side refused.", Kind::Counter);
        for (side, role) in roles {
            refused.sample(&[("direction", side)], role.refused.get() as f64);
        }
        for (name, help, kind, value) in [
            ("nodemesh_tunnel_reused", "Connections that found an open tunnel.", Kind::Counter, counters.reused.get()),
            ("nodemesh_tunnel_retried", "Connections asked for again because a tunnel proved dead.", Kind::Counter, counters.retried.get()),
            ("nodemesh_tunnel_dials_failed", "Tunnels that could not be dialled.", Kind::Counter, counters.dials_failed.get()),
            ("nodemesh_tunnels_idle", "Tunnels at hand for the next connection.", Kind::Gauge, counters.idle.get()),
        ] {
            samples.family(name, help, kind).sample(&[], value as f64);
        }
    });
}

/// What one worker has.
pub struct Worker {
    /// Shared by all.
    pub shared: Arc<Shared>,
    /// What captured connections dialled.
    pub origins: Origins,
    /// Tunnels to other agents.
    pub pools: Pools,
    /// HTTP connections to servers.
    pub http: Rc<HttpPools>,
    /// Tasks that accept connections; once the drain has begun they end with what waits at their listeners.
    pub acceptors: TaskTracker,
    /// Tasks of connections; the drain waits for them.
    pub connections: TaskTracker,
    pods: Rc<LocalPods>,
    drain: DrainWatch,
}

/// The pods that a worker serves, as its tunnels need them.
#[derive(Default)]
struct LocalPods {
    by_address: RefCell<HashMap<IpAddr, Arc<LocalPod>>>,
    credentials: RefCell<HashMap<Identity, Known>>,
}

/// A certificate with the TLS configurations made of it.
struct Known {
    watch: CertificateWatch,
    made: Option<(Arc<Certificate>, Arc<Credentials>)>,
}

impl Worker {
    /// One, with nothing open yet.
    pub fn new(shared: Arc<Shared>, drain: DrainWatch) -> Result<Self, LoadError> {
        let pods: Rc<LocalPods> = Rc::default();
        let (dialling, certificates) = (pods.clone(), pods.clone());
        let limit = shared.tunnel.connect_timeout;
        let dialer = FromPods { pods: dialling, limit };
        let pools =
            Pools::new(dialer, move |identity: &Identity| certificates.current(identity), shared.tunnel.clone(), shared.counters.clone());
        Ok(Worker {
            origins: Origins::open(&shared.pins)?,
            pools,
            http: Rc::default(),
            acceptors: TaskTracker::new(),
            connections: TaskTracker::new(),
            pods,
            drain,
            shared,
        })
    }

    /// Takes a pod on, until it is gone.
    pub fn adopt(&self, pod: &Arc<LocalPod>) {
        self.pods.adopt(pod);
        let (pods, pools, http, pod) = (self.pods.clone(), self.pools.clone(), self.http.clone(), pod.clone());
        tokio::task::spawn_local(async move {
            pod.gone.cancelled().await;
            pods.dismiss(&pod);
            http.forget(&pod.workload.uid);
            // Tunnels that were dialled from its namespace serve nobody else.
            for address in &pod.workload.addresses {
                pools.forget_source(*address);
            }
        });
    }

    /// What to show as an identity of a pod of this node.
    pub fn credentials(&self, identity: &Identity) -> Result<Arc<Credentials>, CredentialsUnavailable> {
        self.pods.current(identity)
    }

    /// For those who must know when to end.
    pub fn drain_watch(&self) -> DrainWatch {
        self.drain.clone()
    }

    /// Waits until every connection has ended. They are told to when the drain's deadline passes.
    pub async fn drained(&self) {
        self.acceptors.close();
        self.acceptors.wait().await;
        self.connections.close();
        self.connections.wait().await;
    }
}

impl LocalPods {
    fn adopt(&self, pod: &Arc<LocalPod>) {
        for address in &pod.workload.addresses {
            self.by_address.borrow_mut().insert(*address, pod.clone());
        }
        let known = Known { watch: pod.certificate.clone(), made: None };
        self.credentials.borrow_mut().entry(pod.workload.identity.clone()).or_insert(known);
    }

    fn dismiss(&self, pod: &Arc<LocalPod>) {
        let mut by_address = self.by_address.borrow_mut();
        by_address.retain(|_, there| !Arc::ptr_eq(there, pod));
        if !by_address.values().any(|there| there.workload.identity == pod.workload.identity) {
            self.credentials.borrow_mut().remove(&pod.workload.identity);
        }
    }

    fn current(&self, identity: &Identity) -> Result<Arc<Credentials>, CredentialsUnavailable> {
        let mut all = self.credentials.borrow_mut();
        let known = all.get_mut(identity).ok_or_else(|| CredentialsUnavailable("no pod of this node has the identity".into()))?;
        let certificate = known.watch.usable().map_err(|unusable| CredentialsUnavailable(unusable.to_string().into()))?;
        if let Some((of, credentials)) = &known.made
            && Arc::ptr_eq(of, &certificate)
        {
            return Ok(credentials.clone());
        }
        let credentials = Credentials::new(certificate.key.clone(), certificate.roots.clone(), &[])
            .map(Arc::new)
            .map_err(|error| CredentialsUnavailable(error.to_string().into()))?;
        known.made = Some((certificate, credentials.clone()));
        Ok(credentials)
    }
}

/// Dials from the namespace of the pod that has the source address.
struct FromPods {
    pods: Rc<LocalPods>,
    limit: Duration,
}

impl Dialer for FromPods {
    fn dial<'a>(&'a self, key: &'a PoolKey) -> LocalFuture<'a, io::Result<TcpStream>> {
        let pod = self.pods.by_address.borrow().get(&key.source).cloned();
        Box::pin(async move {
            let pod = pod.ok_or_else(|| io::Error::other(format!("no pod of this node has the address {}", key.source)))?;
            connect::dial(&pod.netns, key.source, key.destination, self.limit).await
        })
    }
}

/// Ends a connection with a reset, so that its application learns that something went wrong.
pub fn reset(stream: TcpStream) {
    // If even that fails the connection is closed in order, which is all that is left.
    let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
}

/// How a connection ended that a tunnel carried, or was to carry; `told` is what ended it if it was cancelled, also before the peer had
/// accepted it.
pub fn outcome_of_tunnelled(ended: Result<Ended, TunnelError>, told: Option<Outcome>) -> Outcome {
    match (ended, told) {
        (Ok(ended), told) => outcome_of(ended.how, told),
        (Err(TunnelError::Abandoned), Some(told)) => told,
        (Err(error), _) => error.outcome(),
    }
}

/// How a relayed connection ended; `told` is what ended it if it was cancelled.
pub fn outcome_of(how: How, told: Option<Outcome>) -> Outcome {
    match how {
        How::Eof => Outcome::Completed,
        How::Reset(Side::Client) => Outcome::ClientReset,
        How::Reset(Side::Server) => Outcome::ServerReset,
        How::Cancelled => told.unwrap_or_else(|| Outcome::internal("it was cancelled and nobody says why")),
        How::Idle => Outcome::IdleTimeout,
        How::Lost(detail) => Outcome::TunnelLost { detail },
    }
}
