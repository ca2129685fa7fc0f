//! Routes, by the Service's port that they are for, and what is to be said of each in its status.

use std::collections::HashMap;
use std::sync::Arc;

use super::Snapshot;
use super::build::Sorted;
use crate::route::{ParentStatus, PortRoutes, RouteTable};
use crate::service::NamespacedName;

mod attach;
mod gateway;
mod order;
mod resolve;

/// Tables by Service and port.
pub(super) type Routes = HashMap<(NamespacedName, u16), PortRoutes>;

/// Fills the snapshot's routes. After its Services, ServiceEntries and DestinationRules.
pub(super) fn join(snapshot: &mut Snapshot, sorted: &mut Sorted<'_>, previous: Option<&Snapshot>) {
    let mut routes = Routes::new();
    // A Gateway API route has its Service's port for its group of clients; whoever comes after fills only what is left.
    gateway::join(snapshot, sorted, &mut routes);
    if let Some(previous) = previous {
        share(&mut routes, &previous.routes);
    }
    snapshot.routes = routes;
}

/// Takes over tables that have not changed, so that whoever holds one sees that it is the same.
fn share(routes: &mut Routes, before: &Routes) {
    let keep = |table: &mut Arc<RouteTable>, old: Option<&Arc<RouteTable>>| {
        if let Some(old) = old
            && *table == *old
        {
            *table = old.clone();
        }
    };
    for (port, tables) in routes {
        let Some(old) = before.get(port) else { continue };
        if let Some(table) = &mut tables.producer {
            keep(table, old.producer.as_ref());
        }
        for (namespace, table) in &mut tables.consumers {
            keep(table, old.consumers.get(namespace));
        }
    }
}

impl Snapshot {
    /// The routes of a Service's port; `None` if it has none, for no client.
    pub fn routes(&self, service: &NamespacedName, port: u16) -> Option<&PortRoutes> {
        self.routes.get(&(service.clone(), port))
    }

    /// What is to be said in the status of Gateway API routes, one for each of their parents that is ours, by route and parent.
    pub fn route_statuses(&self) -> &[ParentStatus] {
        &self.route_statuses
    }
}

#[cfg(test)]
mod tests;
