//! Which connections serve alike, and who is at their other end.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_model::identity::Identity;
use mesh_model::service::NamespacedName;
use mesh_model::workload::{Workload, WorkloadUid};

use crate::conn::ServerAddr;
use crate::upstream::originate::SecuredKey;

/// Which connections serve alike.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ConnectionKey {
    /// The pod that they come from.
    pub client: WorkloadUid,
    /// Where they lead.
    pub server: SocketAddr,
    /// The pod there, so that an address given to another pod is another server.
    pub workload: Option<WorkloadUid>,
    /// The identities between which a tunnel carries them; `None`: they go in the clear, or in TLS of their own alone. A pod that has
    /// joined the mesh, or left it, is another server.
    pub tunnel: Option<(Identity, Identity)>,
    /// HTTP/2.
    pub http2: bool,
    /// The Service that it was opened for, which the tunnel names to the server's agent for its records.
    pub service: Option<NamespacedName>,
    /// TLS that was begun here.
    pub tls: Option<SecuredKey>,
}

/// Whom to connect to.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its address.
    pub address: ServerAddr,
    /// Its workload, if it is one that is known.
    pub workload: Option<Arc<Workload>>,
}

impl Server {
    /// Whether it is reached through a tunnel.
    pub fn is_meshed(&self) -> bool {
        self.workload.as_ref().is_some_and(|workload| workload.enrolled)
    }

    /// Between which identities a client's tunnel to it is, if it is reached through one.
    pub fn tunnel_from(&self, client: &Workload) -> Option<(Identity, Identity)> {
        let server = self.workload.as_ref().filter(|workload| workload.enrolled)?;
        Some((client.identity.clone(), server.identity.clone()))
    }
}
