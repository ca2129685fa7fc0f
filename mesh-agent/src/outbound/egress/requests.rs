//! Requests of one connection to hosts of ServiceEntries, each to the host that it names itself.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hyper::body::Incoming;
use hyper::{Request, Response};
use mesh_model::service::{DnsEndpoint, NamespacedName};
use mesh_model::settings::OutboundTraffic;

use crate::agent::pods::LocalPod;
use crate::conn::{ClientAddr, OrigDst};
use crate::names::FIRST_ANSWER;
use crate::ops::record::Connection;
use crate::outcome::{Outcome, RequestFailure};
use crate::route::body::ReplyBody;
use crate::route::detect::host_of;
use crate::route::egress::meant_by_request;
use crate::route::exchange::Client;
use crate::route::serve::Service;
use crate::shared::Worker;

/// Hosts that one connection has requests for, at most; the client needs another for more.
const HOSTS: usize = 64;

/// Who answers for a host, and the names that its endpoints have.
type Found = (Rc<Client>, Option<Arc<[DnsEndpoint]>>);

/// See the module.
pub(super) struct ByName {
    /// For what goes nowhere.
    nowhere: Rc<Client>,
    hosts: RefCell<HashMap<NamespacedName, Rc<Client>>>,
}

impl ByName {
    /// `known` is the connection with no host.
    pub(super) fn new(
        worker: Rc<Worker>,
        pod: Arc<LocalPod>,
        client: ClientAddr,
        dialled: OrigDst,
        http2: bool,
        known: Connection,
    ) -> Rc<ByName> {
        let name = known.labels.service.as_ref().map(|service| service.name.clone());
        let name = name.unwrap_or_else(|| NamespacedName { namespace: "".into(), name: "".into() });
        let nowhere = Client::new(worker, pod, client, dialled, name, dialled.0.port(), http2, known);
        Rc::new(ByName { nowhere, hosts: RefCell::default() })
    }

    /// Whose request it is, by what it says, and the names that the host's endpoints have.
    fn client(&self, request: &Request<Incoming>) -> Result<Found, Outcome> {
        let nowhere = &self.nowhere;
        let named = match request.uri().authority() {
            Some(authority) => Some(authority.as_str()),
            None => request.headers().get(http::header::HOST).and_then(|host| host.to_str().ok()),
        };
        let host = named.and_then(host_of);
        let snapshot = nowhere.worker.shared.snapshot.load();
        let workload = nowhere.pod.current(&snapshot);
        let meant = meant_by_request(&snapshot, &workload, nowhere.dialled.0, host.as_deref());
        let Some((service, port)) = meant else {
            return Err(match snapshot.settings().outbound_traffic {
                OutboundTraffic::RegistryOnly => Outcome::Unregistered { host: host.map(Arc::from) },
                OutboundTraffic::AllowAny => Outcome::Request(RequestFailure::Misdirected),
            });
        };
        let mut hosts = self.hosts.borrow_mut();
        if let Some(client) = hosts.get(&service.name) {
            return Ok((client.clone(), port.discovery.names().cloned()));
        }
        if hosts.len() >= HOSTS {
            return Err(Outcome::Request(RequestFailure::Misdirected));
        }
        nowhere.worker.shared.egress.entry.fetch_add(1, Ordering::Relaxed);
        let mut known = nowhere.connection.clone();
        known.labels.service = Some(nowhere.worker.shared.service(&service.name));
        let (worker, pod) = (nowhere.worker.clone(), nowhere.pod.clone());
        let client = Client::new(worker, pod, nowhere.address, nowhere.dialled, service.name.clone(), port.port, nowhere.http2, known);
        hosts.insert(service.name.clone(), client.clone());
        Ok((client, port.discovery.names().cloned()))
    }
}

impl Service for ByName {
    async fn answer(self: Rc<Self>, request: Request<Incoming>) -> Response<ReplyBody> {
        match self.client(&request) {
            Ok((client, names)) => {
                self.nowhere.worker.shared.names.settle(names.as_deref().unwrap_or_default(), FIRST_ANSWER).await;
                client.answer(request).await
            }
            Err(outcome) => {
                self.nowhere.worker.shared.egress.refused.fetch_add(1, Ordering::Relaxed);
                self.nowhere.refuse(request, outcome)
            }
        }
    }
}
