//! Policy and connections that are already open: when what is in force for the workload changes, each is decided again.

use std::sync::Arc;

use tokio::sync::watch;

use super::decide::{Denial, DenialReason, Peer, Permit, Transport, WorkloadPolicy, decide};
use crate::conn::ServerAddr;

/// An open connection's hold on the policy of the workload it leads to.
#[derive(Debug)]
pub struct Live {
    policy: watch::Receiver<Arc<WorkloadPolicy>>,
    peer: Peer,
    server: ServerAddr,
    transport: Transport,
}

impl Live {
    /// Decides about a new connection and keeps what is needed to decide again. A policy that changes in between is not missed.
    pub fn open(
        mut policy: watch::Receiver<Arc<WorkloadPolicy>>,
        peer: Peer,
        server: ServerAddr,
        transport: Transport,
    ) -> Result<(Permit, Live), Denial> {
        let now = policy.borrow_and_update().clone();
        let permit = decide(&now, &peer, server, transport)?;
        Ok((permit, Live { policy, peer, server, transport }))
    }

    /// Waits until the connection is no longer allowed, for ever if need be, and says why. Does nothing while nothing changes. A sender
    /// that is dropped means that the workload is gone. May be dropped and called again.
    pub async fn revoked(&mut self) -> Denial {
        loop {
            if self.policy.changed().await.is_err() {
                return Denial { reason: DenialReason::WorkloadGone, policy: None };
            }
            let now = self.policy.borrow_and_update().clone();
            if let Err(denial) = decide(&now, &self.peer, self.server, self.transport) {
                return denial;
            }
        }
    }
}

/// Puts a policy in force for a workload. Its connections are woken only if it differs; returns whether it does.
pub fn publish(workload: &watch::Sender<Arc<WorkloadPolicy>>, policy: WorkloadPolicy) -> bool {
    workload.send_if_modified(|current| {
        let differs = **current != policy;
        if differs {
            *current = Arc::new(policy);
        }
        differs
    })
}

#[cfg(test)]
mod tests;
