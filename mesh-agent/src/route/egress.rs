//! Connections to what is neither a pod nor a Service: whether the client means a host of a ServiceEntry, and what becomes of it if not. Pure.
//!
//! A host that has addresses is told by them. One that has none is told by what the client says, the server name of its TLS or the host of
//! its HTTP requests; and of what says nothing of the kind, by whether the address that was dialled is one of those that the node's own name
//! servers have for the host. What is taken for a host goes to the host's own endpoints, whatever was dialled: a name that is made up leads
//! nowhere else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_model::service::{Discovery, Service, ServicePort};
use mesh_model::settings::OutboundTraffic;
use mesh_model::snapshot::{Meant, Snapshot};
use mesh_model::workload::Workload;

use super::asked::Asked;
use super::detect::{Declared, Protocol};
use crate::names::Names;
use crate::outcome::Outcome;

/// For how long a client may be silent until it is taken for one whose server speaks first.
const SILENCE: Duration = Duration::from_secs(1);

/// What a client dialled, with what is known of it.
pub struct Dialled<'s> {
    snapshot: &'s Snapshot,
    client: &'s Workload,
    address: SocketAddr,
    /// The host that has the address.
    at: Option<Meant<'s>>,
    /// Hosts without addresses that it may be.
    candidates: Vec<Meant<'s>>,
}

/// How a connection begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Look {
    /// What is spoken does not matter.
    No,
    /// The client's first bytes are waited for, so long at most; `None`: for as long as it takes.
    First(Option<Duration>),
}

/// What becomes of a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Way {
    /// It goes to a host as a whole.
    Whole(Asked),
    /// It is taken apart into requests, each of which says its host.
    Requests,
    /// It goes on to what was dialled, as it is.
    Pass,
    /// It is refused.
    Refuse(Outcome),
}

/// Whether requests are what a port speaks, as far as it says.
fn speaks_http(port: &ServicePort) -> bool {
    matches!(Declared::of(&port.app_protocol, &port.name), Declared::Http | Declared::Http2 | Declared::Unknown)
}

/// Whether TLS may be what a port speaks.
fn speaks_tls(port: &ServicePort) -> bool {
    matches!(Declared::of(&port.app_protocol, &port.name), Declared::Tls | Declared::Tcp | Declared::Unknown)
}

/// The host that a client means by an address and the host that it names.
pub fn meant<'s>(snapshot: &'s Snapshot, client: &Workload, dialled: SocketAddr, host: Option<&str>) -> Option<Meant<'s>> {
    let Some(host) = host else { return snapshot.meant_by(&client.namespace, dialled) };
    snapshot
        .meant_by_name(&client.namespace, dialled, host)
        .or_else(|| snapshot.entry_named(&client.namespace, host, dialled.port()).filter(|(service, _)| service.is_by_name()))
}

/// As [`meant`], for a request.
pub fn meant_by_request<'s>(snapshot: &'s Snapshot, client: &Workload, dialled: SocketAddr, host: Option<&str>) -> Option<Meant<'s>> {
    meant(snapshot, client, dialled, host).filter(|(_, port)| speaks_http(port))
}

impl<'s> Dialled<'s> {
    /// Looks it up.
    pub fn of(snapshot: &'s Snapshot, client: &'s Workload, address: SocketAddr) -> Dialled<'s> {
        let at = snapshot.meant_by(&client.namespace, address);
        let candidates = match at {
            Some(_) => Vec::new(),
            None => snapshot.entries_by_name(&client.namespace, address.port()).collect(),
        };
        Dialled { snapshot, client, address, at, candidates }
    }

    /// A Service whose endpoint was dialled by its own address, as clients of headless Services do; it is no pod.
    pub fn stranger(&self) -> Option<&'s Arc<Service>> {
        self.snapshot.service_of_stranger(self.address)
    }

    fn policy(&self) -> OutboundTraffic {
        self.snapshot.settings().outbound_traffic
    }

    /// Whether the first bytes matter.
    pub fn look(&self) -> Look {
        if let Some((service, port)) = self.at {
            let asked = Asked::of_port(self.snapshot, self.client, service, port);
            return match (asked.is_looked_into(), asked.declared) {
                (false, _) => Look::No,
                (true, Declared::Http | Declared::Http2 | Declared::Tls) => Look::First(None),
                (true, Declared::Tcp | Declared::Unknown) => Look::First(Some(SILENCE)),
            };
        }
        let opaque = self.candidates.iter().all(|(_, port)| Declared::of(&port.app_protocol, &port.name) == Declared::Tcp);
        match (self.stranger(), self.policy(), opaque) {
            (Some(_), ..) | (None, OutboundTraffic::AllowAny, true) => Look::No,
            // A refusal of a request is an answer.
            (None, OutboundTraffic::RegistryOnly, _) | (None, OutboundTraffic::AllowAny, false) => Look::First(Some(SILENCE)),
        }
    }

    /// What becomes of it: `protocol` is what is spoken, `host` what the client names.
    pub fn way(&self, names: &Names, protocol: Protocol, host: Option<&str>) -> Way {
        if let Some((service, port)) = self.at {
            let asked = Asked::of_port(self.snapshot, self.client, service, port);
            if asked.is_taken_apart(protocol) && speaks_http(port) {
                return Way::Requests;
            }
            let (service, port) = meant(self.snapshot, self.client, self.address, host).unwrap_or((service, port));
            return Way::Whole(Asked::of_port(self.snapshot, self.client, service, port));
        }
        if self.stranger().is_some() {
            return Way::Pass;
        }
        let registry_only = self.policy() == OutboundTraffic::RegistryOnly;
        let named = meant(self.snapshot, self.client, self.address, host);
        match protocol {
            Protocol::Http1 if registry_only || named.is_some_and(|(_, port)| speaks_http(port)) => return Way::Requests,
            // The host of the first request is not to be had without taking the connection apart.
            Protocol::Http2 if registry_only || self.by_address(names, speaks_http).is_some() => return Way::Requests,
            Protocol::Tls => {
                if let Some(meant) = named.filter(|(_, port)| speaks_tls(port)) {
                    return self.whole(meant);
                }
            }
            Protocol::Http1 | Protocol::Http2 | Protocol::Opaque => {}
        }
        // Nothing that it says leads to a host.
        let opaque = |port: &ServicePort| matches!(Declared::of(&port.app_protocol, &port.name), Declared::Tcp | Declared::Unknown);
        if let Some(meant) = self.by_address(names, opaque).or_else(|| self.by_port(registry_only)) {
            return self.whole(meant);
        }
        match registry_only {
            false => Way::Pass,
            true => Way::Refuse(Outcome::Unregistered { host: host.map(Arc::from) }),
        }
    }

    fn whole(&self, (service, port): Meant<'_>) -> Way {
        Way::Whole(Asked::of_port(self.snapshot, self.client, service, port))
    }

    /// The host that has the address among those that its names stand for.
    fn by_address(&self, names: &Names, fits: impl Fn(&ServicePort) -> bool) -> Option<Meant<'s>> {
        self.candidates.iter().copied().find(|(_, port)| fits(port) && names.stands_for(port, self.address.ip()))
    }

    /// The host that the port alone stands for, as in Istio, where it declares TCP: one that goes wherever the client does; and, where the
    /// connection would be refused, the only one that there is. That one has endpoints of its own.
    fn by_port(&self, registry_only: bool) -> Option<Meant<'s>> {
        let mut opaque = self.candidates.iter().copied().filter(|(_, port)| Declared::of(&port.app_protocol, &port.name) == Declared::Tcp);
        let dialled = |meant: &Meant<'_>| matches!(meant.1.discovery, Discovery::Dialled { .. });
        match (opaque.clone().find(dialled), opaque.next(), opaque.next()) {
            (Some(meant), ..) => Some(meant),
            (None, Some(only), None) if registry_only => Some(only),
            (None, ..) => None,
        }
    }
}

#[cfg(test)]
mod tests;
