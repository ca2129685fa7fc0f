//! What the configuration in force has for one application's connection, looked up once and kept until there is a newer one. A connection
//! is served by one thread, so that its requests take no lock that all connections share.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use mesh_model::route::{Backend, Target};
use mesh_model::service::NamespacedName;
use mesh_model::snapshot::Snapshot;
use mesh_model::workload::Workload;

use super::exchange::Client;
use super::tables::Turns;
use crate::names::FIRST_ANSWER;
use crate::upstream::bounds::Bounds;
use crate::upstream::cluster::{Cluster, ClusterName, Missing};
use crate::upstream::members;

/// See the module.
pub struct Plan {
    /// The configuration.
    snapshot: Arc<Snapshot>,
    /// The client's workload, as that has it.
    pub workload: Arc<Workload>,
    /// The routes of the Service that was dialled, if it has any.
    pub turns: Option<Arc<Turns>>,
    /// Where requests go that no rule sends elsewhere: the Service itself.
    pub own: Backend,
    /// Where requests went so far. Bounded: they are backends of the routes.
    upstreams: RefCell<Vec<Rc<Upstream>>>,
}

/// Somewhere that requests go, and what bounds those of the client's workload.
pub struct Upstream {
    service: NamespacedName,
    port: u16,
    subset: Option<Arc<str>>,
    /// Who is there.
    pub cluster: Arc<Cluster>,
    /// The bounds.
    pub bounds: Arc<Bounds>,
}

impl Plan {
    /// What a configuration has for a client.
    pub fn of(snapshot: &Arc<Snapshot>, client: &Client) -> Plan {
        let workload = client.pod.current(snapshot);
        let turns = client.worker.shared.tables.get(snapshot, &client.service, client.port, &workload.namespace);
        let target = Target::Service { service: client.service.clone(), port: client.port, subset: None };
        let own = Backend { target, weight: 1, filters: Vec::new() };
        Plan { snapshot: snapshot.clone(), workload, turns, own, upstreams: RefCell::default() }
    }

    /// Where requests to a Service's port, or a subset, go.
    ///
    /// # Errors
    /// There is no such thing. That is looked up again each time.
    pub fn upstream(
        &self,
        client: &Client,
        service: &NamespacedName,
        port: u16,
        subset: Option<&Arc<str>>,
    ) -> Result<Rc<Upstream>, Missing> {
        let same = |known: &&Rc<Upstream>| known.port == port && known.service == *service && known.subset.as_ref() == subset;
        if let Some(known) = self.upstreams.borrow().iter().find(same) {
            return Ok(known.clone());
        }
        let (service, subset) = (service.clone(), subset.cloned());
        let cluster = self.cluster(client, ClusterName { service: service.clone(), port, subset: subset.clone(), v4: client.v4() })?;
        let bounds = cluster.bounds(&client.pod.workload.uid);
        let upstream = Rc::new(Upstream { service, port, subset, cluster, bounds });
        self.upstreams.borrow_mut().push(upstream.clone());
        Ok(upstream)
    }

    /// Waits until the names behind a port of a ServiceEntry's host have been asked for.
    pub async fn settle(&self, client: &Client, service: &NamespacedName, port: u16) {
        let ports = self.snapshot.service(service).map(|service| &service.ports);
        let names = ports.and_then(|ports| ports.iter().find(|there| there.port == port)?.discovery.names());
        client.worker.shared.names.settle(names.map(|names| &**names).unwrap_or_default(), FIRST_ANSWER).await;
    }

    fn cluster(&self, client: &Client, name: ClusterName) -> Result<Arc<Cluster>, Missing> {
        let clusters = &client.worker.shared.clusters;
        // Of a Service with both families the client's is preferred, since its pod has an address of that for certain.
        let cluster = clusters.get(&self.snapshot, &self.workload, &name)?;
        match members::other_family(&client.pod.workload, name.v4).filter(|_| cluster.is_empty()) {
            Some(v4) => clusters.get(&self.snapshot, &self.workload, &ClusterName { v4, ..name }),
            None => Ok(cluster),
        }
    }
}
