//! What the container runtime says: environment and standard input, by the CNI specification.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::protocol::PodName;

/// Versions of the specification that are spoken.
pub const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Most bytes of a network configuration that are read.
pub const MAX_INPUT: u64 = 4 << 20;
/// How long the agent is waited for unless the configuration says otherwise.
const WAIT: u64 = 30;
/// Longest wait that may be set: the runtime gives up by then.
const MAX_WAIT: u64 = 200;

/// An error, as the specification has it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct CniError {
    /// By the specification's table.
    pub code: u32,
    /// For the operator.
    pub message: String,
}

impl CniError {
    /// The version is not spoken.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// The environment lacks something, or it is not understood.
    pub const ENVIRONMENT: u32 = 4;
    /// Reading or writing.
    pub const IO: u32 = 5;
    /// The configuration is no JSON of the right form.
    pub const DECODE: u32 = 6;
    /// The configuration is not of use.
    pub const CONFIGURATION: u32 = 7;
    /// It may go better later.
    pub const TRY_AGAIN: u32 = 11;
    /// STATUS: no ADD could be done.
    pub const NOT_AVAILABLE: u32 = 50;
    /// The agent's refusal; from 100 on codes are a plug-in's own.
    pub const REFUSED: u32 = 100;

    /// One of these.
    pub fn new(code: u32, message: impl Into<String>) -> Self {
        CniError { code, message: message.into() }
    }
}

/// What to do when the agent cannot be reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unreachable {
    /// Wait, then fail: kubelet tries again, and the pod does not start before the mesh is there.
    #[default]
    Hold,
    /// Let the pod start. It is unknown to the kernel, which denies its connections where unknown pods are denied.
    AllowUnmeshed,
}

/// The plug-in's part of a network configuration.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetConf {
    /// Version of the specification.
    #[serde(default)]
    pub cni_version: String,
    /// The agent's socket.
    #[serde(default)]
    pub socket: Option<PathBuf>,
    /// What to do without it.
    #[serde(default)]
    pub on_unreachable: Unreachable,
    /// How long it is waited for.
    #[serde(default)]
    pub timeout_seconds: Option<u64>,
    /// What the plug-ins before this one made.
    #[serde(default)]
    pub prev_result: Option<Box<RawValue>>,
    /// GC: what is still valid (1.1.0; `cni.dev/attachments` by older runtimes).
    #[serde(default, rename = "cni.dev/valid-attachments", alias = "cni.dev/attachments")]
    pub valid_attachments: Vec<ValidAttachment>,
}

/// An attachment that is still valid.
#[derive(Debug, Deserialize)]
pub struct ValidAttachment {
    /// Of this sandbox.
    #[serde(rename = "containerID")]
    pub container_id: Box<str>,
}

impl NetConf {
    /// Reads one. A version that is not spoken is an error.
    pub fn parse(input: &[u8]) -> Result<NetConf, CniError> {
        let conf: NetConf = serde_json::from_slice(input)
            .map_err(|error| CniError::new(CniError::DECODE, format!("the network configuration is not understood: {error}")))?;
        if !VERSIONS.contains(&conf.cni_version.as_str()) {
            return Err(CniError::new(
                CniError::INCOMPATIBLE_VERSION,
                format!("cniVersion \"{}\" is not spoken; set one of {}", conf.cni_version, VERSIONS.join(", ")),
            ));
        }
        Ok(conf)
    }

    /// The agent's socket.
    pub fn socket(&self) -> Result<&PathBuf, CniError> {
        let socket = self.socket.as_ref().filter(|path| path.is_absolute());
        socket.ok_or_else(|| CniError::new(CniError::CONFIGURATION, "socket: give the absolute path of the agent's socket"))
    }

    /// How long the agent is waited for.
    pub fn wait(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds.unwrap_or(WAIT).clamp(1, MAX_WAIT))
    }

    /// The result of the plug-ins before this one.
    pub fn prev_result(&self) -> Result<&RawValue, CniError> {
        self.prev_result.as_deref().ok_or_else(|| {
            CniError::new(CniError::CONFIGURATION, "there is no prevResult: the plug-in must stand behind the network's own in the list")
        })
    }

    /// The pod's addresses that it tells: those of the interface `ifname`, at most one a family.
    pub fn addresses(&self, ifname: &str) -> Result<Vec<IpAddr>, CniError> {
        let result: PrevResult = serde_json::from_str(self.prev_result()?.get())
            .map_err(|error| CniError::new(CniError::DECODE, format!("prevResult is not understood: {error}")))?;
        let mut addresses: Vec<IpAddr> = Vec::new();
        for ip in &result.ips {
            let interface = ip.interface.and_then(|i| result.interfaces.get(usize::try_from(i).ok()?));
            if interface.is_some_and(|i| i.sandbox.as_deref().unwrap_or_default().is_empty() || i.name != ifname) {
                continue;
            }
            let text = ip.address.split('/').next().unwrap_or_default();
            let address: IpAddr = text.parse().map_err(|_| {
                CniError::new(CniError::DECODE, format!("prevResult: \"{}\" is no address of the form 10.1.2.3/24", ip.address))
            })?;
            let address = address.to_canonical();
            if !addresses.iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
                addresses.push(address);
            }
        }
        Ok(addresses)
    }
}

#[derive(Deserialize)]
struct PrevResult {
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Ip>,
}

#[derive(Deserialize)]
struct Interface {
    #[serde(default)]
    name: String,
    #[serde(default)]
    sandbox: Option<String>,
}

#[derive(Deserialize)]
struct Ip {
    address: String,
    #[serde(default)]
    interface: Option<i64>,
}

/// What the environment says of the pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Call {
    /// `CNI_CONTAINERID`.
    pub container: Box<str>,
    /// `CNI_NETNS`; a DEL may come without.
    pub netns: Option<PathBuf>,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_ARGS`; `None` if this is no pod of Kubernetes.
    pub pod: Option<PodName>,
}

impl Call {
    /// Reads the variables by `get`.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Call, CniError> {
        let want = |name: &str| {
            let value = get(name).filter(|value| !value.is_empty());
            value.ok_or_else(|| CniError::new(CniError::ENVIRONMENT, format!("{name} is not set")))
        };
        Ok(Call {
            container: want("CNI_CONTAINERID")?.into(),
            ifname: want("CNI_IFNAME")?,
            netns: get("CNI_NETNS").filter(|path| !path.is_empty()).map(PathBuf::from),
            pod: pod(&get("CNI_ARGS").unwrap_or_default()),
        })
    }
}

/// `K8S_POD_NAMESPACE=…;K8S_POD_NAME=…;K8S_POD_UID=…`, among others.
fn pod(arguments: &str) -> Option<PodName> {
    let get = |key: &str| {
        let pairs = arguments.split(';').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(name, value)| *name == key && !value.is_empty()).map(|(_, value)| value.into()).next()
    };
    Some(PodName { namespace: get("K8S_POD_NAMESPACE")?, name: get("K8S_POD_NAME")?, uid: get("K8S_POD_UID") })
}

#[cfg(test)]
mod tests;
