//! What the workers know of a pod.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use mesh_model::snapshot::Snapshot;
use mesh_model::workload::Workload;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::agent::budget::Budget;
use crate::identity::CertificateWatch;
use crate::policy::{Towards, WorkloadPolicy};
use crate::sys::netns::NetNs;

/// A pod that is served: what the workers need of it.
pub struct LocalPod {
    /// The pod.
    pub workload: Arc<Workload>,
    /// Its namespace.
    pub netns: Arc<NetNs>,
    /// What may reach it.
    pub policy: watch::Receiver<Arc<WorkloadPolicy>>,
    /// What it may send to hosts outside.
    pub towards: Arc<ArcSwap<Towards>>,
    /// Its certificate.
    pub certificate: CertificateWatch,
    /// Cancelled when it is no longer served.
    pub gone: CancellationToken,
    /// Places for its connections, in and out.
    pub connections: Arc<Budget>,
    /// Places for tunnels to it.
    pub tunnels: Arc<Budget>,
    /// What peers are told of it, once anybody was.
    pub baggage: OnceLock<Arc<str>>,
}

impl LocalPod {
    /// `namespace/name`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.workload.namespace, self.workload.name)
    }

    /// As the configuration has it now: its labels may have changed since it was first served.
    pub fn current(&self, snapshot: &Snapshot) -> Arc<Workload> {
        snapshot.workload(&self.workload.uid).unwrap_or(&self.workload).clone()
    }

    /// Its address of the same family as `like`.
    pub fn address(&self, like: IpAddr) -> Option<IpAddr> {
        self.workload.addresses.iter().copied().find(|own| own.is_ipv4() == like.is_ipv4())
    }
}
