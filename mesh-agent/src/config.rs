//! The only reader of flags and environment.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, Subcommand};
use mesh_cni::conflist::{self, WithIstio};
use mesh_sources::SourceSettings;

use crate::capture::cni::installer::{Installer, Places};
use crate::link::LinkSettings;
use crate::ops::access::{AccessFormat, AccessLevel};
use crate::ops::log::LogFormat;

/// Nodemesh's node agent: captures the connections of this node's enrolled pods, gives each pod an identity, encrypts what crosses
/// nodes and enforces who may talk to whom. Every flag is also an environment variable.
#[derive(Parser, Debug, Clone)]
#[command(name = "mesh-agent", version, about, long_about = None)]
pub struct Cli {
    /// What to do; without a command the agent runs.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Settings of a run.
    #[command(flatten)]
    pub config: Config,
}

/// Commands beside running.
#[derive(Subcommand, Debug, Clone)]
pub enum Command {
    /// Detaches the programs, takes back what was set in the pods' network namespaces, and removes every pin of this instance. Pods are
    /// then as without the mesh. Refused while an agent of the instance runs.
    Cleanup,
    /// Says what this node lacks, one sentence a lack, and exits with 1 if there is one.
    Preflight,
}

/// Settings.
#[derive(clap::Args, Debug, Clone)]
pub struct Config {
    /// Name of this node, as pods name it in `spec.nodeName`.
    #[arg(long, env = "NODEMESH_NODE", default_value_t = host_name(), value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub node: String,
    /// Directory of Kubernetes YAML that describes the mesh; followed while running. Either this or --kubernetes.
    #[arg(long, env = "NODEMESH_MANIFESTS", value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// The mesh is described by a Kubernetes API server: that of the cluster in which the agent runs, or --kubeconfig's.
    #[arg(long, env = "NODEMESH_KUBERNETES")]
    pub kubernetes: bool,
    /// File that says where the API server is and who we are, for an agent that does not run in a pod. Goes with --kubernetes.
    #[arg(long, env = "NODEMESH_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The cgroup v2 below which connections are captured.
    #[arg(long, env = "NODEMESH_CGROUP_ROOT", value_name = "DIR", default_value = "/sys/fs/cgroup")]
    pub cgroup_root: PathBuf,
    /// The cgroup above all pods; by default kubepods or kubepods.slice below the cgroup root, whichever is there.
    #[arg(long, env = "NODEMESH_PODS_CGROUP", value_name = "DIR")]
    pub pods_cgroup: Option<PathBuf>,
    /// The host's /proc, which shows the processes of pods: with --kubernetes, their network namespaces are found by them.
    #[arg(long, env = "NODEMESH_HOST_PROC", value_name = "DIR", default_value = "/proc")]
    pub host_proc: PathBuf,
    /// The bpf filesystem.
    #[arg(long, env = "NODEMESH_BPFFS", value_name = "DIR", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,
    /// Name below which everything in the kernel is pinned; agents of different instances do not know each other.
    #[arg(long, env = "NODEMESH_INSTANCE", default_value = "default", value_parser = instance)]
    pub instance: String,
    /// Where agents of this node find each other: a directory an instance, with the lock of the one that serves and the socket by which the
    /// next takes its place. Both must see the same one.
    #[arg(long, env = "NODEMESH_RUN_DIR", value_name = "DIR", default_value = "/run/nodemesh")]
    pub run_dir: PathBuf,
    /// What to do once another agent has taken this one's place and the last connection has ended: exit, or stay until SIGTERM, for
    /// supervisors that start again what has ended (Kubernetes): the older agent would come back and take its place back.
    #[arg(long, env = "NODEMESH_AFTER_HANDOVER", value_name = "exit|stay", default_value = "exit")]
    pub after_handover: AfterHandover,
    /// The node's CNI plug-ins: a directory into which the mesh's own is put, which holds a pod's start until this agent has it in hand.
    /// Goes with --cni-conf-dir.
    #[arg(long, env = "NODEMESH_CNI_BIN_DIR", value_name = "DIR")]
    pub cni_bin_dir: Option<PathBuf>,
    /// The node's network configurations: a directory, in the first of which the mesh's CNI plug-in is kept. Goes with --cni-bin-dir.
    #[arg(long, env = "NODEMESH_CNI_CONF_DIR", value_name = "DIR")]
    pub cni_conf_dir: Option<PathBuf>,
    /// The CNI plug-in that is put there.
    #[arg(long, env = "NODEMESH_CNI_BINARY", value_name = "FILE", default_value = "/usr/lib/nodemesh/mesh-cni")]
    pub cni_binary: PathBuf,
    /// How long the CNI plug-in waits for this agent, before the kubelet is told to try again.
    #[arg(long, env = "NODEMESH_CNI_TIMEOUT", value_name = "DURATION", default_value = "30s", value_parser = cni_timeout)]
    pub cni_timeout: Duration,
    /// What the CNI plug-in does with a new pod where no agent runs: hold it, or allow it to start, unknown to the mesh.
    #[arg(long, env = "NODEMESH_CNI_ON_UNREACHABLE", value_name = "hold|allow-unmeshed", default_value = "hold")]
    pub cni_on_unreachable: CniOnUnreachable,
    /// What to do where Istio's CNI plug-in is in the node's network configuration: refuse to stand beside it, or coexist. A pod must then
    /// be in one of the meshes only.
    #[arg(long, env = "NODEMESH_CNI_WITH_ISTIO", value_name = "refuse|coexist", default_value = "refuse")]
    pub cni_with_istio: CniWithIstio,
    /// Name servers that say where the hosts of ServiceEntries are, address:port; by default those of /etc/resolv.conf.
    #[arg(long, env = "NODEMESH_DNS_SERVER", value_name = "ADDRESS", value_delimiter = ',')]
    pub dns_server: Vec<SocketAddr>,
    /// The kernel programs.
    #[arg(long, env = "NODEMESH_BPF_OBJECT", value_name = "FILE", default_value = "/usr/lib/nodemesh/mesh-ebpf.o")]
    pub bpf_object: PathBuf,
    /// Address of the certificate authority, https://host:port; several are tried in turn.
    #[arg(long, env = "NODEMESH_CA_ADDRESS", value_name = "URL", value_delimiter = ',')]
    pub ca_address: Vec<String>,
    /// The authority's roots (PEM): whom to trust when asking for certificates, and for peers.
    #[arg(long, env = "NODEMESH_CA_ROOT", value_name = "FILE")]
    pub ca_root: Option<PathBuf>,
    /// The token that proves this node to the authority; read anew for each request.
    #[arg(long, env = "NODEMESH_CA_TOKEN_FILE", value_name = "FILE")]
    pub ca_token_file: Option<PathBuf>,
    /// Validity to ask for.
    #[arg(long, env = "NODEMESH_CERTIFICATE_LIFETIME", value_name = "DURATION", default_value = "24h", value_parser = duration)]
    pub certificate_lifetime: Duration,
    /// Certificates and keys that the agent shows servers outside the mesh where a DestinationRule asks for it: a directory with
    /// `{namespace of the clients}/{credentialName}/ca.crt`, `tls.crt` and `tls.key`. Read again when they change.
    #[arg(long, env = "NODEMESH_CREDENTIALS", value_name = "DIR", default_value = "/var/run/nodemesh/credentials")]
    pub credentials: PathBuf,
    /// Where Prometheus and the readiness probe look.
    #[arg(long, env = "NODEMESH_METRICS_LISTEN", value_name = "ADDRESS", default_value = "[::]:15020")]
    pub metrics_listen: SocketAddr,
    /// Where the operator looks; must be a loopback address.
    #[arg(long, env = "NODEMESH_ADMIN_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:15000", value_parser = loopback)]
    pub admin_listen: SocketAddr,
    /// Threads that carry connections; by default one a core.
    #[arg(long, env = "NODEMESH_WORKERS", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Option<u16>,
    /// Which finished connections are logged, a line each on standard output; denials always are unless this is off.
    #[arg(long, env = "NODEMESH_ACCESS_LOG", default_value = "all", value_name = "off|denied|all")]
    pub access_log: AccessLevel,
    /// The form of access log lines; by default that of the log.
    #[arg(long, env = "NODEMESH_ACCESS_LOG_FORMAT", value_name = "text|json")]
    pub access_log_format: Option<AccessFormat>,
    /// Most access log lines a second; what is more is counted.
    #[arg(long, env = "NODEMESH_ACCESS_LOG_RATE", default_value_t = 200)]
    pub access_log_rate: u32,
    /// Level of the log: error, warn, info, debug, trace, or a filter as `info,mesh_agent::tunnel=debug`.
    #[arg(long, env = "NODEMESH_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
    /// The log's form.
    #[arg(long, env = "NODEMESH_LOG_FORMAT", default_value = "text", value_name = "text|json")]
    pub log_format: LogFormat,
    /// How long connections may go on after SIGTERM.
    #[arg(long, env = "NODEMESH_DRAIN_TIME", value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub drain_time: Duration,
    /// How long connecting to an application may take.
    #[arg(long, env = "NODEMESH_CONNECT_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub connect_timeout: Duration,
    /// How long the head of an HTTP/1 request may take, from its first byte; then its connection is closed.
    #[arg(long, env = "NODEMESH_HTTP_HEAD_TIMEOUT", value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub http_head_timeout: Duration,
    /// How long a client may send nothing of a request's body that its server waits for, as long as that has not begun to answer; then the
    /// request is answered with 408. 0s: for any time.
    #[arg(long, env = "NODEMESH_HTTP_BODY_IDLE_TIMEOUT", value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub http_body_idle_timeout: Duration,
    /// Most connections of one pod at once, in and out together; what is more is refused. 0: any number. By default a sixteenth of the
    /// descriptors that the process may have (its hard limit): with three tunnels to the pod for each connection, of which those that carry
    /// nothing give way, one pod then takes a quarter at most.
    #[arg(long, env = "NODEMESH_MAX_CONNECTIONS_PER_POD", value_name = "N")]
    pub max_connections_per_pod: Option<u32>,
    /// Name of the cluster in metrics.
    #[arg(long, env = "NODEMESH_CLUSTER", default_value = "Kubernetes")]
    pub cluster: String,
    /// DNS suffix of the cluster, in service host names.
    #[arg(long, env = "NODEMESH_CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
}

/// What an agent does that has been replaced and has drained.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterHandover {
    /// It ends, with exit code 0.
    Exit,
    /// It waits for SIGTERM.
    Stay,
}

/// What the CNI plug-in does with a new pod where no agent runs.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum CniOnUnreachable {
    /// It waits, then fails: the kubelet tries again.
    Hold,
    /// It lets the pod start.
    AllowUnmeshed,
}

impl CniOnUnreachable {
    /// In the plug-in's configuration.
    pub fn name(self) -> &'static str {
        match self {
            CniOnUnreachable::Hold => "hold",
            CniOnUnreachable::AllowUnmeshed => "allow-unmeshed",
        }
    }
}

/// What to do where Istio's CNI plug-in is in the node's network configuration.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum CniWithIstio {
    /// Leave the configuration alone.
    Refuse,
    /// Stand behind it.
    Coexist,
}

/// What is missing or contradictory; all of it at once.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

/// The settings of the certificate authority, complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaSettings {
    /// Addresses.
    pub addresses: Vec<String>,
    /// Roots.
    pub root: PathBuf,
    /// Token.
    pub token: PathBuf,
}

/// What a run needs beyond defaults, checked together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Required {
    /// Where the mesh is described.
    pub source: SourceSettings,
    /// The authority.
    pub ca: CaSettings,
    /// The pods' cgroup.
    pub pods_cgroup: PathBuf,
}

impl Config {
    /// Checks what no single flag's parser can; every mistake is in the error, each with its flag and its variable.
    pub fn required(&self) -> Result<Required, ConfigError> {
        let mut missing = Vec::new();
        let mut want = |given: bool, flag: &str, variable: &str, what: &str| {
            if !given {
                missing.push(format!("--{flag} (or {variable}) is not set: {what}"));
            }
        };
        want(
            !self.ca_address.is_empty(),
            "ca-address",
            "NODEMESH_CA_ADDRESS",
            "give the certificate authority's address, https://host:port",
        );
        want(self.ca_root.is_some(), "ca-root", "NODEMESH_CA_ROOT", "give the file with the authority's root certificates");
        want(self.ca_token_file.is_some(), "ca-token-file", "NODEMESH_CA_TOKEN_FILE", "give the file with this node's token");
        let source = SourceSettings::choose(self.manifests.as_deref(), self.kubernetes, self.kubeconfig.as_deref());
        if let Err(error) = &source {
            missing.insert(0, error.in_words("NODEMESH_"));
        }
        if self.cni_bin_dir.is_some() != self.cni_conf_dir.is_some() {
            let (given, missed, variable) = match self.cni_bin_dir {
                Some(_) => ("--cni-bin-dir", "--cni-conf-dir", "NODEMESH_CNI_CONF_DIR"),
                None => ("--cni-conf-dir", "--cni-bin-dir", "NODEMESH_CNI_BIN_DIR"),
            };
            missing.push(format!("{missed} (or {variable}) is not set, and {given} is: the CNI plug-in needs both; give both or neither"));
        }
        for address in &self.ca_address {
            if !address.starts_with("https://") {
                missing.push(format!("--ca-address {address}: must begin with https://, certificates are not asked for in the clear"));
            }
        }
        match (source, &self.ca_root, &self.ca_token_file) {
            (Ok(source), Some(root), Some(token)) if missing.is_empty() => Ok(Required {
                source,
                ca: CaSettings { addresses: self.ca_address.clone(), root: root.clone(), token: token.clone() },
                pods_cgroup: self.pods_cgroup(),
            }),
            _ => Err(ConfigError(missing)),
        }
    }

    /// How mesh-control, or whoever is the authority, is called.
    pub fn link(&self, ca: &CaSettings) -> LinkSettings {
        let mut settings = LinkSettings::new(ca.addresses.clone(), ca.root.clone(), ca.token.clone());
        settings.cluster = Some(self.cluster.clone()).filter(|cluster| !cluster.is_empty());
        settings
    }

    /// Where the CNI plug-in goes, if it goes anywhere.
    pub fn cni_places(&self) -> Option<Places> {
        Some(Places { binaries: self.cni_bin_dir.clone()?, configurations: self.cni_conf_dir.clone()? })
    }

    /// The CNI plug-in on this node, whose socket `socket` is; `None` if it is not to be there.
    pub fn cni_installer(&self, socket: &Path) -> Option<Installer> {
        let with_istio = match self.cni_with_istio {
            CniWithIstio::Refuse => WithIstio::Refuse,
            CniWithIstio::Coexist => WithIstio::Coexist,
        };
        let entry = conflist::entry(socket, self.cni_on_unreachable.name(), self.cni_timeout.as_secs());
        Some(Installer { places: self.cni_places()?, binary: self.cni_binary.clone(), entry, with_istio })
    }

    /// The pods' cgroup.
    pub fn pods_cgroup(&self) -> PathBuf {
        // The kubelet's two cgroup drivers, cgroupfs and systemd, name it differently.
        let usual = || ["kubepods", "kubepods.slice"].map(|name| self.cgroup_root.join(name));
        let found = || usual().into_iter().find(|place| place.is_dir());
        self.pods_cgroup.clone().or_else(found).unwrap_or_else(|| self.cgroup_root.join("kubepods"))
    }
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn instance(text: &str) -> Result<String, String> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if text.is_empty() || text.len() > 64 || !text.bytes().all(fine) {
        return Err("1 to 64 letters, digits, '-' and '_'".into());
    }
    Ok(text.into())
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|e| format!("{e}; give an address and port, as 127.0.0.1:15000"))?;
    if !address.ip().is_loopback() {
        return Err("must be a loopback address: whoever reaches the admin endpoint can change the agent".into());
    }
    Ok(address)
}

/// What the plug-in takes: whole seconds, less than container runtimes wait.
fn cni_timeout(text: &str) -> Result<Duration, String> {
    let given = duration(text)?;
    let fine = given.subsec_nanos() == 0 && (2..=200).contains(&given.as_secs());
    fine.then_some(given).ok_or_else(|| "whole seconds, from 2s to 200s: container runtimes wait no longer".into())
}

/// A number and a unit: `500ms`, `30s`, `5m`, `24h`.
fn duration(text: &str) -> Result<Duration, String> {
    let error = || format!("\"{text}\" is no duration; give a number and a unit, as 500ms, 30s, 5m, 24h");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| error())?;
    let seconds = |factor: u64| number.checked_mul(factor).map(Duration::from_secs).ok_or_else(error);
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => seconds(1),
        "m" => seconds(60),
        "h" => seconds(3600),
        _ => Err(error()),
    }
}

#[cfg(test)]
mod tests;
