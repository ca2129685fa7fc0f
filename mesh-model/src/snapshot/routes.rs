//! Routes, by the Service's port that they are for, and what is to be said of each in its status.

use super::Snapshot;
use crate::route::{ParentStatus, PortRoutes};
use crate::service::NamespacedName;

impl Snapshot {
    /// The routes of a Service's port; `None` if it has none, for no client.
    pub fn routes(&self, service: &NamespacedName, port: u16) -> Option<&PortRoutes> {
        self.routes.get(&(service.clone(), port))
    }

    /// What is to be said in the status of Gateway API routes, one for each of their parents that is ours.
    pub fn route_statuses(&self) -> &[ParentStatus] {
        &self.route_statuses
    }
}
