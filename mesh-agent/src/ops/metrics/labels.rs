//! Istio's labels of a TCP connection, and the facts that they are made from.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use mesh_model::identity::Identity;
use mesh_model::service::NamespacedName;
use mesh_model::workload::{Workload, WorkloadUid};
use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};

use crate::outcome::ResponseFlag;

/// Which side of the connection reports.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reporter {
    /// The client's agent.
    Source,
    /// The server's agent.
    Destination,
}

impl Reporter {
    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Reporter::Source => "source",
            Reporter::Destination => "destination",
        }
    }
}

/// How the connection is secured on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Security {
    /// mTLS with both identities proven.
    MutualTls,
    /// Plaintext (a same-node connection inside the kernel, too).
    None,
    /// It ended before that was settled.
    Unknown,
}

impl Security {
    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Security::MutualTls => "mutual_tls",
            Security::None => "none",
            Security::Unknown => "unknown",
        }
    }
}

/// One end of a connection, as far as it is known.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PeerInfo {
    /// The workload at that address, by our configuration.
    pub workload: Option<Arc<Workload>>,
    /// The identity it has proven (by certificate or network namespace).
    pub identity: Option<Identity>,
}

/// The Service through which a connection was dialled.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ServiceRef {
    /// Its name.
    pub name: NamespacedName,
    /// Its full host name, as `reviews.default.svc.cluster.local`.
    pub host: Arc<str>,
}

/// All that the labels of a connection are made from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConnectionLabels {
    /// Who reports.
    pub reporter: Reporter,
    /// The client.
    pub source: PeerInfo,
    /// The server.
    pub destination: PeerInfo,
    /// The Service, where one was dialled.
    pub service: Option<ServiceRef>,
    /// Security on the wire.
    pub security: Security,
}

/// The identity of a peer within the cache: cheap to make, all parts are shared.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct PeerKey {
    pub(super) workload: Option<WorkloadUid>,
    identity: Option<Identity>,
}

/// Key of the cache of resolved label sets.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct TupleKey {
    reporter: Reporter,
    security: Security,
    pub(super) source: PeerKey,
    pub(super) destination: PeerKey,
    pub(super) service: Option<NamespacedName>,
}

impl TupleKey {
    pub(super) fn of(labels: &ConnectionLabels) -> TupleKey {
        let peer = |peer: &PeerInfo| PeerKey {
            workload: peer.workload.as_ref().map(|workload| workload.uid.clone()),
            identity: peer.identity.clone(),
        };
        TupleKey {
            reporter: labels.reporter,
            security: labels.security,
            source: peer(&labels.source),
            destination: peer(&labels.destination),
            service: labels.service.as_ref().map(|service| service.name.clone()),
        }
    }

    /// Whether it speaks of the workload.
    pub(super) fn names(&self, uid: &WorkloadUid) -> bool {
        self.source.workload.as_ref() == Some(uid) || self.destination.workload.as_ref() == Some(uid)
    }
}

const PEER_LABELS: usize = 8;

/// Values of one side's labels, in Istio's order; absent is `None`.
type PeerValues = [Option<Arc<str>>; PEER_LABELS];

const SOURCE_NAMES: [&str; PEER_LABELS] = [
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
];

const DESTINATION_NAMES: [&str; PEER_LABELS] = [
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
];

/// The resolved values: two workloads of one Deployment give the same.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct TcpLabels {
    reporter: Reporter,
    source: PeerValues,
    service: [Option<Arc<str>>; 3],
    destination: PeerValues,
    security: Security,
}

/// How a connection was protected, as an operator sorts them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Protection {
    /// Encrypted, both known.
    MutualTls,
    /// Between two pods of this node inside the kernel: both known, nothing on a wire.
    WithinNode,
    /// From a client that proved nothing.
    Plaintext,
}

impl TcpLabels {
    /// `None` for what is counted at its other end, or ended before that was settled.
    pub(super) fn protection(&self) -> Option<Protection> {
        let [_, _, _, _, principal, ..] = &self.source;
        match (self.security, self.reporter) {
            (Security::MutualTls, _) => Some(Protection::MutualTls),
            (Security::None, Reporter::Destination) if principal.is_some() => Some(Protection::WithinNode),
            (Security::None, Reporter::Destination) => Some(Protection::Plaintext),
            (Security::None, Reporter::Source) | (Security::Unknown, _) => None,
        }
    }
}

fn given(value: &Arc<str>) -> Option<Arc<str>> {
    (!value.is_empty()).then(|| value.clone())
}

fn values(peer: &PeerInfo, cluster: &Arc<str>) -> PeerValues {
    let principal = peer.identity.as_ref().map(|identity| Arc::from(identity.to_string()));
    match &peer.workload {
        Some(workload) => {
            let names = &workload.canonical;
            [
                given(&names.workload),
                given(&names.service),
                given(&names.revision),
                given(&workload.namespace),
                principal,
                given(&names.app),
                given(&names.version),
                given(cluster),
            ]
        }
        None => [None, None, None, None, principal, None, None, None],
    }
}

impl TcpLabels {
    pub(super) fn of(labels: &ConnectionLabels, cluster: &Arc<str>) -> TcpLabels {
        let service = match &labels.service {
            Some(service) => [given(&service.host), given(&service.name.namespace), given(&service.name.name)],
            None => [None, None, None],
        };
        TcpLabels {
            reporter: labels.reporter,
            source: values(&labels.source, cluster),
            service,
            destination: values(&labels.destination, cluster),
            security: labels.security,
        }
    }

    /// Where connections are counted for which there is no room: everything but the reporter is unknown.
    pub(super) fn overflow(reporter: Reporter) -> TcpLabels {
        const NO_PEER: PeerValues = [const { None }; PEER_LABELS];
        TcpLabels { reporter, source: NO_PEER, service: [None, None, None], destination: NO_PEER, security: Security::Unknown }
    }
}

/// A label set with the flag that differs between its series.
pub(super) struct Flagged<'a>(pub(super) &'a TcpLabels, pub(super) ResponseFlag);

impl EncodeLabelSet for Flagged<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder) -> Result<(), fmt::Error> {
        self.0.encode(encoder, "tcp", self.1)
    }
}

impl TcpLabels {
    /// Writes all, with what differs between series of the same workloads.
    pub(super) fn encode(&self, encoder: &mut LabelSetEncoder, protocol: &str, flag: ResponseFlag) -> Result<(), fmt::Error> {
        let labels = self;
        put(encoder, "reporter", labels.reporter.as_str())?;
        for (name, value) in SOURCE_NAMES.iter().zip(&labels.source) {
            put(encoder, name, value.as_deref().unwrap_or("unknown"))?;
        }
        let service = ["destination_service", "destination_service_namespace", "destination_service_name"];
        for (name, value) in service.iter().zip(&labels.service) {
            put(encoder, name, value.as_deref().unwrap_or("unknown"))?;
        }
        for (name, value) in DESTINATION_NAMES.iter().zip(&labels.destination) {
            put(encoder, name, value.as_deref().unwrap_or("unknown"))?;
        }
        put(encoder, "request_protocol", protocol)?;
        put(encoder, "response_flags", flag.as_str())?;
        put(encoder, "connection_security_policy", labels.security.as_str())
    }
}

/// Writes one label. The library writes values as they are, so they are escaped here as both text formats want it.
pub(super) fn put(encoder: &mut LabelSetEncoder, name: &str, value: &str) -> fmt::Result {
    let mut label = encoder.encode_label();
    let mut key = label.encode_label_key()?;
    key.write_str(name)?;
    let mut out = key.encode_label_value()?;
    let mut rest = value;
    while let Some(at) = rest.find(['\\', '"', '\n']) {
        let (plain, special) = rest.split_at(at);
        out.write_str(plain)?;
        out.write_str(match special.as_bytes().first() {
            Some(b'\n') => "\\n",
            Some(b'"') => "\\\"",
            _ => "\\\\",
        })?;
        rest = special.get(1..).unwrap_or_default();
    }
    out.write_str(rest)?;
    out.finish()
}
