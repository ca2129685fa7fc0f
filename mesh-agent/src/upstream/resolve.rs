//! What was dialled → the workload to reach, or why it cannot be reached. Pure.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_common::flow::Origin;
use mesh_model::service::NamespacedName;
use mesh_model::snapshot::Snapshot;
use mesh_model::workload::Workload;

use crate::capture::accept::is_own_port;
use crate::conn::{OrigDst, ServerAddr};
use crate::outcome::Outcome;

/// Where a captured connection goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// What the application dialled.
    pub dialled: OrigDst,
    /// The server application.
    pub server: ServerAddr,
    /// Its workload.
    pub workload: Arc<Workload>,
    /// The Service that was dialled, if one was.
    pub service: Option<NamespacedName>,
}

/// The Service behind a dialled address, if it is one's.
pub fn service_of(snapshot: &Snapshot, dialled: SocketAddr) -> Option<NamespacedName> {
    snapshot.service_at(dialled).map(|(service, _)| service.name.clone())
}

/// Resolves. The endpoint is the kernel's choice, unless it has left the Service since: then any that is there now, by `pick`, which is
/// given the number of candidates.
pub fn resolve(snapshot: &Snapshot, origin: &Origin, pick: impl FnOnce(usize) -> usize) -> Result<Target, Outcome> {
    let dialled = SocketAddr::from(origin.dialled);
    let mut server = SocketAddr::from(origin.endpoint);
    let mut service = None;
    if let Some((found, port)) = snapshot.service_at(dialled) {
        service = Some(found.name.clone());
        if !port.endpoints.iter().any(|e| e.address == server) {
            let candidates: Vec<_> = port.endpoints.iter().map(|e| e.address).filter(|a| a.is_ipv4() == dialled.is_ipv4()).collect();
            server = candidates
                .len()
                .checked_sub(1)
                .and_then(|last| candidates.get(pick(candidates.len()).min(last)).copied())
                .ok_or(Outcome::NoEndpoint)?;
        }
    }
    if is_own_port(server.port()) {
        return Err(Outcome::OwnPort);
    }
    // The kernel hands over only what it knows to be in the mesh. If the configuration has moved on since, there is no tunnel to it any
    // more, and plaintext is not an answer to that.
    match snapshot.workload_at(server.ip()) {
        Some(workload) if workload.enrolled => {
            Ok(Target { dialled: OrigDst(dialled), server: ServerAddr(server), workload: workload.clone(), service })
        }
        _ => Err(Outcome::UnknownDestination),
    }
}
