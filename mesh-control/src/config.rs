//! Settings: flags that are also environment variables, read here and nowhere else.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use mesh_sources::SourceSettings;

use crate::ca::authority::ServerName;
use crate::ca::hierarchy::CaFiles;
use crate::ca::keeper::CaSource;
use crate::ca::lifetime::Lifetimes;
use crate::ca::objects::ObjectNames;
use crate::ca::service::ServiceLimits;
use crate::ca::token_review::ReviewSettings;
use crate::log::{self, LogFormat};
use crate::server::ServerLimits;

/// Nodemesh's certificate authority: signs for each node's agent the identities of the pods that run on that node.
///
/// It serves Istio's IstioCertificateService (gRPC over TLS). Every flag is also an environment variable: NODEMESH_CONTROL_ and its
/// name in capitals, e.g. NODEMESH_CONTROL_NODE_TOKENS.
#[derive(Parser, Debug, Clone, Default)]
#[command(name = "mesh-control", version)]
pub struct Flags {
    /// Where to serve certificates: address and port.
    #[arg(long, env = "NODEMESH_CONTROL_LISTEN", default_value = "[::]:15012", value_name = "ADDRESS")]
    pub listen: String,
    /// Where to serve /metrics, /healthz/live and /healthz/ready.
    #[arg(long, env = "NODEMESH_CONTROL_ADMIN", default_value = "127.0.0.1:15014", value_name = "ADDRESS")]
    pub admin: String,
    /// Tokens of the nodes: a directory with one file a node (name: the node's, content: the token), or a file of lines
    /// "NODE TOKEN". Followed when changed.
    #[arg(long, env = "NODEMESH_CONTROL_NODE_TOKENS", value_name = "PATH")]
    pub node_tokens: Option<String>,
    /// Directory of manifests that say which pods run where: the same files that the agents read. Followed when changed.
    #[arg(long, env = "NODEMESH_CONTROL_MANIFESTS", value_name = "DIR")]
    pub manifests: Option<String>,
    /// A Kubernetes API server says which pods run where: that of the cluster in which this runs, or --kubeconfig's. Either this or
    /// --manifests.
    #[arg(long, env = "NODEMESH_CONTROL_KUBERNETES")]
    pub kubernetes: bool,
    /// File that says where the API server is and who we are, outside of a pod. Goes with --kubernetes.
    #[arg(long, env = "NODEMESH_CONTROL_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<String>,
    /// Namespace of the agents, whose service-account tokens the API server reviews. Used with --kubernetes and without --node-tokens.
    #[arg(long, env = "NODEMESH_CONTROL_AGENT_NAMESPACE", default_value = "nodemesh-system", value_name = "NAME")]
    pub agent_namespace: String,
    /// Service account of the agents.
    #[arg(long, env = "NODEMESH_CONTROL_AGENT_SERVICE_ACCOUNT", default_value = "mesh-agent", value_name = "NAME")]
    pub agent_service_account: String,
    /// Audience that the agents' tokens must be made for.
    #[arg(long, env = "NODEMESH_CONTROL_TOKEN_AUDIENCE", default_value = "nodemesh-ca", value_name = "AUDIENCE")]
    pub token_audience: String,
    /// Names and addresses in the certificate that this server shows, separated by commas.
    #[arg(
        long,
        env = "NODEMESH_CONTROL_DNS_NAMES",
        default_value = "mesh-control.nodemesh-system.svc,localhost,127.0.0.1,::1",
        value_name = "NAMES"
    )]
    pub dns_names: String,
    /// Signing certificate of an authority that exists (ca-cert.pem). A root gets an intermediate below it.
    #[arg(long, env = "NODEMESH_CONTROL_CA_CERT", value_name = "FILE")]
    pub ca_cert: Option<String>,
    /// Its key (ca-key.pem).
    #[arg(long, env = "NODEMESH_CONTROL_CA_KEY", value_name = "FILE")]
    pub ca_key: Option<String>,
    /// Its roots (root-cert.pem); may be left out if --ca-cert is one.
    #[arg(long, env = "NODEMESH_CONTROL_ROOT_CERT", value_name = "FILE")]
    pub root_cert: Option<String>,
    /// The certificates between it and the roots (cert-chain.pem).
    #[arg(long, env = "NODEMESH_CONTROL_CERT_CHAIN", value_name = "FILE")]
    pub cert_chain: Option<String>,
    /// Where an authority that is made here is kept over restarts (mode 0700). Without it, it is lost with the process.
    #[arg(long, env = "NODEMESH_CONTROL_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<String>,
    /// Secret that keeps the authority, in the namespace of --agent-namespace: filled if it is empty, else in the form of Istio's cacerts or
    /// of cert-manager. Needs --kubernetes.
    #[arg(long, env = "NODEMESH_CONTROL_CA_SECRET", value_name = "NAME")]
    pub ca_secret: Option<String>,
    /// ConfigMap beside it in which the roots are published, for the agents' --ca-root.
    #[arg(long, env = "NODEMESH_CONTROL_BUNDLE_CONFIG_MAP", default_value = "nodemesh-ca-roots", value_name = "NAME")]
    pub bundle_config_map: String,
    /// Lease by which replicas agree which of them leads, in the namespace of --agent-namespace; it must exist. The one that leads writes the
    /// status of objects and lends the budgets of RateLimits. Without it no status is written, and budgets are lent as by an only replica.
    /// Needs --kubernetes.
    #[arg(long, env = "NODEMESH_CONTROL_LEASE", value_name = "NAME")]
    pub lease: Option<String>,
    /// Where agents reach this replica and no other: the replicas that do not lead send agents to the one that does. An address, with a port
    /// if it is not that of --listen.
    #[arg(long, env = "NODEMESH_CONTROL_ADVERTISE", value_name = "ADDRESS")]
    pub advertise: Option<String>,
    /// Where to write the roots in PEM, for the agents' --ca-root.
    #[arg(long, env = "NODEMESH_CONTROL_BUNDLE_OUT", value_name = "FILE")]
    pub bundle_out: Option<String>,
    /// Lifetime of certificates for which none is asked: e.g. 24h, 90m, 1h30m, 20s.
    #[arg(long, env = "NODEMESH_CONTROL_DEFAULT_LIFETIME", default_value = "24h", value_name = "DURATION")]
    pub default_lifetime: String,
    /// Longest lifetime of a certificate; longer ones are asked for in vain.
    #[arg(long, env = "NODEMESH_CONTROL_MAX_LIFETIME", default_value = "24h", value_name = "DURATION")]
    pub max_lifetime: String,
    /// Roots (PEM) that may vouch for issuers of tokens, beside those that the system or Mozilla trusts: for issuers with certificates of your
    /// own. Read for each fetch of keys.
    #[arg(long, env = "NODEMESH_CONTROL_JWKS_ROOTS", value_name = "FILE")]
    pub jwks_roots: Option<String>,
    /// How often the keys of issuers that RequestAuthentications name are fetched; an issuer may ask for more by Cache-Control.
    #[arg(long, env = "NODEMESH_CONTROL_JWKS_REFRESH", default_value = "20m", value_name = "DURATION")]
    pub jwks_refresh: String,
    /// What is logged: off, error, warn, info, debug, trace, or a list of target=level.
    #[arg(long, env = "NODEMESH_CONTROL_LOG_LEVEL", default_value = "info", value_name = "LEVEL")]
    pub log_level: String,
    /// Form of the log: text or json.
    #[arg(long, env = "NODEMESH_CONTROL_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    pub log_format: String,
}

/// A Lease.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseName {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl fmt::Display for LeaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// How keys of issuers are fetched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeySettings {
    /// File of roots, beside those of the system.
    pub roots: Option<PathBuf>,
    /// From one fetch to the next.
    pub refresh: Duration,
}

impl Default for KeySettings {
    /// Every 20 minutes, as istiod.
    fn default() -> Self {
        KeySettings { roots: None, refresh: Duration::from_secs(1200) }
    }
}

/// How agents prove on which node they are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AgentProof {
    /// By a token a node: file or directory of them.
    NodeTokens(PathBuf),
    /// By service-account tokens that the API server of [`Config::mesh`] reviews.
    TokenReview(ReviewSettings),
}

/// The settings in force.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// Where certificates are served.
    pub listen: SocketAddr,
    /// Where operators look.
    pub admin: SocketAddr,
    /// How agents prove who they are.
    pub agents: AgentProof,
    /// Where the mesh is described.
    pub mesh: SourceSettings,
    /// Names of the server.
    pub names: Vec<ServerName>,
    /// Where the authority comes from.
    pub source: CaSource,
    /// Objects of the cluster that keep the authority instead.
    pub objects: Option<ObjectNames>,
    /// Which Lease tells who leads.
    pub lease: Option<LeaseName>,
    /// Where agents reach this replica.
    pub advertise: Option<SocketAddr>,
    /// Where the roots are written.
    pub bundle_out: Option<PathBuf>,
    /// Lifetimes of workloads' certificates.
    pub lifetimes: Lifetimes,
    /// How keys of issuers are fetched.
    pub keys: KeySettings,
    /// Bounds of the endpoint.
    pub server: ServerLimits,
    /// Bounds of the service.
    pub service: ServiceLimits,
    /// What is logged.
    pub log_level: String,
    /// Form of the log.
    pub log_format: LogFormat,
}

/// A setting that cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct SettingError {
    /// The flag.
    pub setting: &'static str,
    /// What was given, if it was.
    pub given: Option<String>,
    /// What is wrong and what would be right.
    pub message: String,
}

impl fmt::Display for SettingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.given {
            Some(given) => write!(f, "{} \"{}\": {}", self.setting, given.escape_default(), self.message),
            None => write!(f, "{}: {}", self.setting, self.message),
        }
    }
}

/// Longest lifetime that may be set.
const LONGEST: Duration = Duration::from_secs(90 * 24 * 3600);
/// Shortest lifetime that may be set.
const SHORTEST: Duration = Duration::from_secs(5);

/// How long a request waits for its pod to come from the API server, of which the agent may have heard first.
const PATIENCE: Duration = Duration::from_secs(2);

impl Config {
    /// From flags; every setting is judged before the first error is returned.
    pub fn from_flags(flags: Flags) -> Result<Config, Vec<SettingError>> {
        let mut errors = Errors(Vec::new());
        let listen: Option<SocketAddr> = errors.parsed("--listen", &flags.listen, "write e.g. [::]:15012");
        let admin = errors.parsed("--admin", &flags.admin, "write e.g. 127.0.0.1:15014");
        let mesh = errors.mesh(flags.manifests.as_deref(), flags.kubernetes, flags.kubeconfig.as_deref());
        let own: Arc<str> = flags.agent_namespace.as_str().into();
        let review = errors.review(flags.token_audience, flags.agent_namespace, flags.agent_service_account);
        let agents = match flags.node_tokens.filter(|path| !path.is_empty()) {
            Some(path) => Some(AgentProof::NodeTokens(path.into())),
            None if flags.kubernetes => review.map(AgentProof::TokenReview),
            None => {
                let message = "is not set; name the file or directory with the nodes' tokens, or let an API server judge by --kubernetes";
                errors.add("--node-tokens", None, message);
                None
            }
        };
        let names = errors.names(&flags.dns_names);
        let files = errors.ca_files(flags.ca_cert, flags.ca_key, flags.root_cert, flags.cert_chain);
        let objects = flags.ca_secret.filter(|name| !name.is_empty()).map(|secret| {
            if !flags.kubernetes {
                errors.add("--ca-secret", Some(&secret), "is an object of a cluster: add --kubernetes");
            }
            if files.is_some() || flags.state_dir.is_some() {
                errors.add("--ca-secret", Some(&secret), "and --ca-cert or --state-dir are different authorities: leave one out");
            }
            ObjectNames { namespace: own.clone(), secret: secret.into(), bundle: flags.bundle_config_map.into() }
        });
        let lease = flags.lease.filter(|name| !name.is_empty()).map(|name| {
            if !flags.kubernetes {
                errors.add("--lease", Some(&name), "is an object of a cluster: add --kubernetes");
            }
            LeaseName { namespace: own.clone(), name: name.into() }
        });
        let advertise = flags.advertise.filter(|text| !text.is_empty());
        let advertise: Option<SocketAddr> = advertise.and_then(|text| match (text.parse::<IpAddr>(), listen) {
            (Ok(address), Some(listen)) => Some(SocketAddr::new(address, listen.port())),
            _ => errors.parsed("--advertise", &text, "write e.g. 10.0.0.7 or 10.0.0.7:15012"),
        });
        let refresh = errors.refresh(&flags.jwks_refresh);
        let default = errors.lifetime("--default-lifetime", &flags.default_lifetime);
        let max = errors.lifetime("--max-lifetime", &flags.max_lifetime);
        if let (Some(default), Some(max)) = (default, max)
            && default > max
        {
            errors.add("--default-lifetime", Some(&flags.default_lifetime), "is longer than --max-lifetime; lower it, or raise the other");
        }
        if let Err(message) = log::check(&flags.log_level) {
            errors.add("--log-level", Some(&flags.log_level), message);
        }
        let log_format = flags.log_format.parse::<LogFormat>().map_err(|m| errors.add("--log-format", Some(&flags.log_format), m)).ok();
        let (Some(listen), Some(admin), Some(agents), Some(mesh), Some(default), Some(max), Some(refresh), Some(log_format), []) =
            (listen, admin, agents, mesh, default, max, refresh, log_format, &*errors.0)
        else {
            return Err(errors.0);
        };
        let patience = if flags.kubernetes { PATIENCE } else { Duration::ZERO };
        Ok(Config {
            listen,
            admin,
            agents,
            mesh,
            names,
            objects,
            lease,
            advertise,
            source: CaSource { files, state_dir: flags.state_dir.map(PathBuf::from) },
            bundle_out: flags.bundle_out.map(PathBuf::from),
            lifetimes: Lifetimes { default, max },
            keys: KeySettings { roots: flags.jwks_roots.filter(|path| !path.is_empty()).map(PathBuf::from), refresh },
            server: ServerLimits::default(),
            service: ServiceLimits { patience, ..ServiceLimits::default() },
            log_level: flags.log_level,
            log_format,
        })
    }
}

struct Errors(Vec<SettingError>);

impl Errors {
    fn add(&mut self, setting: &'static str, given: Option<&str>, message: impl Into<String>) {
        self.0.push(SettingError { setting, given: given.map(str::to_owned), message: message.into() });
    }

    fn parsed<T: FromStr<Err: fmt::Display>>(&mut self, setting: &'static str, text: &str, hint: &str) -> Option<T> {
        text.parse().map_err(|error: T::Err| self.add(setting, Some(text), format!("{error}; {hint}"))).ok()
    }

    fn review(&mut self, audience: String, namespace: String, account: String) -> Option<ReviewSettings> {
        let before = self.0.len();
        if audience.is_empty() || !audience.bytes().all(|byte| byte.is_ascii_graphic()) {
            self.add("--token-audience", Some(&audience), "is not a word of visible ASCII characters");
        }
        for (setting, name) in [("--agent-namespace", &namespace), ("--agent-service-account", &account)] {
            if name.starts_with("*.") || !is_dns_name(name) || name.bytes().any(|byte| byte.is_ascii_uppercase() || byte == b'_') {
                self.add(setting, Some(name), "is not a name as Kubernetes has them");
            }
        }
        let settings = ReviewSettings { audience: audience.into(), namespace: namespace.into(), service_account: account.into() };
        (self.0.len() == before).then_some(settings)
    }

    fn mesh(&mut self, manifests: Option<&str>, kubernetes: bool, kubeconfig: Option<&str>) -> Option<SourceSettings> {
        let path = |text: Option<&str>| text.filter(|text| !text.is_empty()).map(PathBuf::from);
        let choice = SourceSettings::choose(path(manifests).as_deref(), kubernetes, path(kubeconfig).as_deref());
        choice.map_err(|error| self.add("--manifests", None, error.in_words("NODEMESH_CONTROL_"))).ok()
    }

    fn lifetime(&mut self, setting: &'static str, text: &str) -> Option<Duration> {
        match duration(text) {
            None => self.add(setting, Some(text), "is not a duration; write e.g. 24h, 90m, 1h30m or 20s"),
            Some(time) if time < SHORTEST || time > LONGEST => self.add(setting, Some(text), "is not between 5s and 90d"),
            Some(time) => return Some(time),
        }
        None
    }

    fn refresh(&mut self, text: &str) -> Option<Duration> {
        let parsed = duration(text).filter(|time| (Duration::from_secs(1)..=Duration::from_secs(24 * 3600)).contains(time));
        if parsed.is_none() {
            self.add("--jwks-refresh", Some(text), "is not a duration between 1s and 24h; write e.g. 20m");
        }
        parsed
    }

    fn names(&mut self, text: &str) -> Vec<ServerName> {
        let mut names = BTreeSet::new();
        for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            if let Ok(address) = name.parse::<IpAddr>() {
                names.insert(ServerName::Ip(address));
            } else if is_dns_name(name) {
                names.insert(ServerName::Dns(name.to_ascii_lowercase()));
            } else {
                self.add("--dns-names", Some(name), "is neither a DNS name nor an address");
            }
        }
        if names.is_empty() {
            self.add("--dns-names", Some(text), "names nothing; name what agents dial");
        }
        names.into_iter().collect()
    }

    fn ca_files(
        &mut self,
        certificate: Option<String>,
        key: Option<String>,
        roots: Option<String>,
        chain: Option<String>,
    ) -> Option<CaFiles> {
        let path = |text: String| PathBuf::from(text);
        match (certificate, key) {
            (Some(certificate), Some(key)) => {
                Some(CaFiles { certificate: path(certificate), key: path(key), roots: roots.map(path), chain: chain.map(path) })
            }
            (None, None) => {
                for (setting, given) in [("--root-cert", roots), ("--cert-chain", chain)] {
                    if let Some(given) = given {
                        self.add(setting, Some(&given), "is of no use without --ca-cert and --ca-key");
                    }
                }
                None
            }
            (Some(given), None) => {
                self.add("--ca-cert", Some(&given), "needs --ca-key");
                None
            }
            (None, Some(given)) => {
                self.add("--ca-key", Some(&given), "needs --ca-cert");
                None
            }
        }
    }
}

fn is_dns_name(name: &str) -> bool {
    let rest = name.strip_prefix("*.").unwrap_or(name);
    name.len() <= 253
        && rest.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

/// Reads `1h30m` and the like; units d, h, m, s.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = 0_u64;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, tail) = rest.split_at_checked(digits)?;
        let mut tail = tail.chars();
        let unit = match tail.next()? {
            'd' => 24 * 3600,
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return None,
        };
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(unit)?)?;
        rest = tail.as_str();
    }
    (!text.is_empty()).then_some(Duration::from_secs(total))
}

#[cfg(test)]
mod tests;
