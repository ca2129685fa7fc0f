//! Connections to what is neither a pod nor a Service: whether the client means a host of a ServiceEntry, and what becomes of it if not. Pure.
//!
//! A host that has addresses is told by them. One that has none is told by what the client says, the server name of its TLS or the host of
//! its HTTP requests; and of what says nothing of the kind, by whether the address that was dialled is one of those that the node's own name
//! servers have for the host. What is taken for a host goes to the host's own endpoints, whatever was dialled: a name that is made up leads
//! nowhere else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_model::service::{Discovery, DnsEndpoint, Service, ServicePort};
use mesh_model::settings::OutboundTraffic;
use mesh_model::snapshot::{Meant, Snapshot};
use mesh_model::traffic::TlsMode;
use mesh_model::workload::Workload;

use super::asked::Asked;
use super::detect::{Declared, Protocol};
use crate::names::Names;
use crate::outcome::{Outcome, UpstreamFailure};

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
        let strangers = self.snapshot.services_of_stranger(self.address);
        if !strangers.is_empty() {
            // Of several Services with the endpoint one that demands TLS is enough: another's lack of a rule takes nothing from it.
            return match strangers.iter().find(|service| self.demands_tls(service)) {
                None => Way::Pass,
                Some(service) => {
                    let detail = format!(
                        "it is an endpoint of Service {}, for which a DestinationRule demands TLS, and was dialled by its own address: give the \
                         Service a cluster IP, and dial that",
                        service.name
                    );
                    Way::Refuse(Outcome::Upstream(UpstreamFailure::TlsUnknown { detail: detail.into() }))
                }
            };
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
        if let Some(meant) = self.by_address(names, opaque).or_else(|| self.by_port(registry_only && protocol == Protocol::Opaque)) {
            return self.whole(meant);
        }
        // It may be the host whose name no server has told of yet, and what goes there must not go in the clear.
        if let Some((service, _)) = self.candidates.iter().find(|(service, port)| {
            opaque(port)
                && self.demands_tls(service)
                && port.discovery.names().is_some_and(|all| all.iter().any(|name| !names.knows(&name.host)))
        }) {
            let detail =
                format!("no name server has said yet where {} is, and a DestinationRule demands TLS towards it", service.name.name);
            return Way::Refuse(Outcome::Upstream(UpstreamFailure::TlsUnknown { detail: detail.into() }));
        }
        match registry_only {
            false => Way::Pass,
            true => Way::Refuse(Outcome::Unregistered { host: host.map(Arc::from) }),
        }
    }

    /// Names on whose answers it may depend what becomes of a connection on which this is spoken, that names this host.
    pub fn unsettled(&self, protocol: Protocol, host: Option<&str>) -> Vec<DnsEndpoint> {
        let told =
            |fits: fn(&ServicePort) -> bool| meant(self.snapshot, self.client, self.address, host).is_some_and(|(_, port)| fits(port));
        let fits: fn(&ServicePort) -> bool = match protocol {
            _ if self.at.is_some() => return Vec::new(),
            Protocol::Http1 if told(speaks_http) => return Vec::new(),
            Protocol::Tls if told(speaks_tls) => return Vec::new(),
            Protocol::Http2 => speaks_http,
            Protocol::Http1 | Protocol::Tls | Protocol::Opaque => {
                |port| matches!(Declared::of(&port.app_protocol, &port.name), Declared::Tcp | Declared::Unknown)
            }
        };
        let fitting = self.candidates.iter().filter(|(_, port)| fits(port));
        fitting.filter_map(|(_, port)| port.discovery.names()).flat_map(|names| names.iter().cloned()).collect()
    }

    /// Whether some port's DestinationRule demands TLS towards a Service, or refuses what it demands.
    fn demands_tls(&self, service: &Service) -> bool {
        service.ports.iter().any(|port| {
            let policy = self.snapshot.traffic(self.client, &service.name, port.port, None);
            policy.is_some_and(|policy| matches!(policy.tls, TlsMode::Originate(_) | TlsMode::Refuse(_)))
        })
    }

    fn whole(&self, (service, port): Meant<'_>) -> Way {
        Way::Whole(Asked::of_port(self.snapshot, self.client, service, port))
    }

    /// The host that has the address among those that its names stand for.
    fn by_address(&self, names: &Names, fits: impl Fn(&ServicePort) -> bool) -> Option<Meant<'s>> {
        self.candidates.iter().copied().find(|(_, port)| fits(port) && names.stands_for(port, self.address.ip()))
    }

    /// The host that the port alone stands for, as in Istio, where it declares TCP: one that goes wherever the client does; and, where the
    /// connection would be refused, the only one that there is in the client's namespace. That one has endpoints of its own.
    fn by_port(&self, or_refused: bool) -> Option<Meant<'s>> {
        let mut opaque = self.candidates.iter().copied().filter(|(_, port)| Declared::of(&port.app_protocol, &port.name) == Declared::Tcp);
        let dialled = |meant: &Meant<'_>| matches!(meant.1.discovery, Discovery::Dialled { .. });
        match (opaque.clone().find(dialled), opaque.next(), opaque.next()) {
            (Some(meant), ..) => Some(meant),
            (None, Some(only), None) if or_refused && only.0.name.namespace == self.client.namespace => Some(only),
            (None, ..) => None,
        }
    }
}

#[cfg(test)]
mod tests;
