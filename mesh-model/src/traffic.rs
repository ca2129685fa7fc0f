//! How clients talk to a host: Istio's DestinationRule as values. Defaults are what holds without one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::service::NamespacedName;

/// A DestinationRule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DestinationRule {
    /// Its name.
    pub name: NamespacedName,
    /// `metadata.creationTimestamp`, seconds since 1970, if given: of several for one host the oldest holds.
    pub created: Option<i64>,
    /// The host, in full and in lower case (`reviews.default.svc.cluster.local`), or with `*` first.
    pub host: Arc<str>,
    /// Namespaces whose clients it is for (`exportTo`); empty for all. `.` is written out.
    pub export_to: Vec<Arc<str>>,
    /// Labels of the clients it is for (`workloadSelector`); empty for all.
    pub selector: BTreeMap<String, String>,
    /// For the whole host.
    pub policy: Arc<TrafficPolicy>,
    /// For single ports: what they say, the rest is the defaults, not the host's (as in Istio).
    pub ports: BTreeMap<u16, Arc<TrafficPolicy>>,
    /// Parts of the host's pods.
    pub subsets: BTreeMap<Arc<str>, Subset>,
}

/// A part of a host's pods.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subset {
    /// Their labels.
    pub labels: BTreeMap<String, String>,
    /// What holds for it: the host's with what it says itself in its place.
    pub policy: Arc<TrafficPolicy>,
    /// For single ports.
    pub ports: BTreeMap<u16, Arc<TrafficPolicy>>,
}

/// How to talk to a host.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TrafficPolicy {
    /// Bounds on connections and requests.
    pub pool: ConnectionPool,
    /// When an endpoint is left out for a while; `None`: never.
    pub outlier: Option<OutlierDetection>,
    /// Which endpoint a request goes to.
    pub balancer: Balancer,
    /// Preference of near endpoints.
    pub locality: Locality,
    /// How long a new endpoint gets less than its share.
    pub warmup: Option<Warmup>,
    /// What is done about TLS towards the application itself.
    pub tls: TlsMode,
}

/// Bounds on connections and requests, of the clients of one workload. `None`: no bound.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ConnectionPool {
    /// Open connections.
    pub max_connections: Option<u32>,
    /// For connecting.
    pub connect_timeout: Option<Duration>,
    /// Without a byte either way, for connections that are not parsed.
    pub tcp_idle_timeout: Option<Duration>,
    /// After which a connection is closed when it is idle next.
    pub max_connection_duration: Option<Duration>,
    /// Keepalive probes of connections that no tunnel carries.
    pub keepalive: Option<Keepalive>,
    /// Requests that wait for a connection.
    pub max_pending_requests: Option<u32>,
    /// Requests in flight.
    pub max_requests: Option<u32>,
    /// After so many requests a connection is closed; 1: no keep-alive.
    pub max_requests_per_connection: Option<u32>,
    /// Retries in flight.
    pub max_retries: Option<u32>,
    /// After which an unused connection is closed.
    pub http_idle_timeout: Option<Duration>,
    /// Streams at once on an HTTP/2 connection.
    pub max_concurrent_streams: Option<u32>,
    /// HTTP/1.1 requests go out as HTTP/2 (`h2UpgradePolicy: UPGRADE`).
    pub upgrade_to_http2: bool,
}

/// Keepalive of TCP. `None` leaves the system's.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Keepalive {
    /// Quiet time before the first probe.
    pub time: Option<Duration>,
    /// Between two probes.
    pub interval: Option<Duration>,
    /// Probes without an answer until the connection is given up.
    pub probes: Option<u32>,
}

/// When an endpoint is ejected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OutlierDetection {
    /// After so many 5xx in a row (a failed connection and a timeout are one); 0: never.
    pub consecutive_5xx: u32,
    /// After so many 502, 503, 504, failed connections or timeouts in a row; 0: never.
    pub consecutive_gateway: u32,
    /// With [`OutlierDetection::split_local_origin`]: after so many failures of the connection in a row; 0: never.
    pub consecutive_local: u32,
    /// Failures of the connection are counted for [`OutlierDetection::consecutive_local`] alone.
    pub split_local_origin: bool,
    /// Between two looks at who comes back.
    pub interval: Duration,
    /// How long the first time; the n-th time n times as long.
    pub base_ejection: Duration,
    /// At most so many percent at once; one at least.
    pub max_ejection_percent: u8,
    /// With less than so many percent healthy nobody counts as ejected.
    pub min_health_percent: u8,
}

impl Default for OutlierDetection {
    fn default() -> Self {
        OutlierDetection {
            consecutive_5xx: 5,
            consecutive_gateway: 0,
            consecutive_local: 5,
            split_local_origin: false,
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection_percent: 10,
            min_health_percent: 0,
        }
    }
}

/// Which endpoint a request goes to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Balancer {
    /// The less loaded of two that chance picks.
    #[default]
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// The address that was dialled, where it is an endpoint's.
    Passthrough,
    /// By a hash of the request.
    Hash {
        /// Of what.
        key: HashKey,
        /// By which table.
        table: HashTable,
    },
}

/// What of a request is hashed. Where it is absent any endpoint will do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HashKey {
    /// A header, by its name in lower case.
    Header(Arc<str>),
    /// A cookie; with `ttl` one is made for a client that has none.
    Cookie {
        /// Name.
        name: Arc<str>,
        /// Path of the one that is made.
        path: Arc<str>,
        /// Age of the one that is made; 0 is the browser's session.
        ttl: Option<Duration>,
    },
    /// The client's address.
    SourceIp,
    /// A query parameter.
    Query(Arc<str>),
}

/// By which table a hash finds its endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HashTable {
    /// Ketama's ring, with at least so many places.
    Ring {
        /// Places.
        minimum: u32,
    },
    /// Maglev, with a prime number of places.
    Maglev {
        /// Places.
        size: u32,
    },
}

/// Localities and how many percent go there.
pub type Shares = Vec<(Arc<str>, u32)>;

/// Preference of near endpoints.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Locality {
    /// `None` is Istio's default: near ones first if outlier detection is on, without it all alike.
    pub enabled: Option<bool>,
    /// From where (`region/zone/sub-zone`, each may be `*`) how many percent go where.
    pub distribute: Vec<(Arc<str>, Shares)>,
    /// From which region to which if there is none left.
    pub failover: Vec<(Arc<str>, Arc<str>)>,
    /// Labels by whose equality, in this order, endpoints are near.
    pub failover_priority: Vec<Arc<str>>,
}

/// Slow start of a new endpoint.
#[derive(Clone, PartialEq, Debug)]
pub struct Warmup {
    /// How long.
    pub duration: Duration,
    /// Percent of its share at the beginning.
    pub minimum_percent: u8,
    /// Above 1 it grows early, below 1 late (Envoy).
    pub aggression: f64,
}

impl Eq for Warmup {}

/// TLS towards the application.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum TlsMode {
    /// What the mesh does anyway.
    #[default]
    Mesh,
    /// Plaintext, also where the mesh could encrypt. The mesh does not follow this towards its own pods.
    Disable,
    /// TLS is begun here (SIMPLE, MUTUAL).
    Originate(Origination),
    /// TLS was asked for in a way that is not supported or not understood: connections are refused, since any other TLS, or none, is
    /// weaker than what was asked for. The reason is for people.
    Refuse(Arc<str>),
}

/// TLS that is begun on behalf of the client.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Origination {
    /// Server name; if unset the request's host (Istio's auto-SNI) or, of what is no HTTP, the Service's.
    pub sni: Option<Arc<str>>,
    /// Names one of which the server's certificate must have; the server name if empty.
    pub subject_alt_names: Vec<Arc<str>>,
    /// By whom the server's certificate must be signed.
    pub trust: Trust,
    /// What the server is shown (MUTUAL).
    pub client: Option<ClientCertificate>,
}

/// By whom a server's certificate must be signed.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub enum Trust {
    /// By a root of the agent's system.
    #[default]
    System,
    /// By a root in this file.
    File(Arc<str>),
    /// By a root in the file `ca.crt` of the credential of this name.
    Credential(Arc<str>),
    /// By anybody (`insecureSkipVerify`).
    Anybody,
}

/// A certificate with its key.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum ClientCertificate {
    /// In these files.
    Files {
        /// The chain.
        certificate: Arc<str>,
        /// The key.
        key: Arc<str>,
    },
    /// In the files `tls.crt` and `tls.key` of the credential of this name.
    Credential(Arc<str>),
}
