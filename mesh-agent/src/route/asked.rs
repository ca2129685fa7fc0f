//! What is asked of the connections of one client to a Service's port: whether the agent looks into them, and where they go as a whole. Pure.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_model::route::{RouteTable, Target, TcpRule, TlsRule};
use mesh_model::service::{NamespacedName, Service, ServicePort};
use mesh_model::snapshot::Snapshot;
use mesh_model::workload::Workload;

use super::detect::{Declared, Protocol};
use crate::outcome::{Outcome, RequestFailure};

/// What holds for a client of a Service's port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asked {
    /// The Service.
    pub service: NamespacedName,
    /// Its port.
    pub port: u16,
    /// What the port declares to speak.
    pub declared: Declared,
    /// The routes that hold for the client.
    pub table: Option<Arc<RouteTable>>,
    /// Only other clients have a rule: this one's connections come to the agent all the same, and go on as they are.
    pub of_others: bool,
}

/// Where a connection goes that is not taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Whole<'t> {
    /// To the Service that was dialled.
    Own(Target),
    /// To a backend of this rule, with its number in the table.
    Tcp(usize, &'t TcpRule),
    /// To a backend of this rule, with its number in the table.
    Tls(usize, &'t TlsRule),
}

impl Asked {
    /// What some object asks for, for this client of what it dialled; `None` if nothing does, for any client.
    pub fn of(snapshot: &Snapshot, client: &Workload, dialled: SocketAddr) -> Option<Asked> {
        let (service, port) = snapshot.meant_by(&client.namespace, dialled)?;
        if !snapshot.is_routed(&service.name, port.port) {
            return None;
        }
        Some(Asked::of_port(snapshot, client, service, port))
    }

    /// As [`Asked::of`], of a port that is known.
    pub fn of_port(snapshot: &Snapshot, client: &Workload, service: &Service, port: &ServicePort) -> Asked {
        let table = snapshot.routes(&service.name, port.port).and_then(|routes| routes.table(&client.namespace)).cloned();
        let nothing =
            || snapshot.traffic(client, &service.name, port.port, None).is_none() && snapshot.backend_session(&service.name).is_none();
        // A host of a ServiceEntry is there for the agent alone: whoever knows it asks for it.
        let of_others = service.entry.is_none() && table.is_none() && nothing();
        let declared = Declared::of(&port.app_protocol, &port.name);
        Asked { service: service.name.clone(), port: port.port, declared, table, of_others }
    }

    /// Whether the first bytes of a connection are looked at.
    pub fn is_looked_into(&self) -> bool {
        !self.of_others && !matches!((self.declared, self.table.as_deref()), (Declared::Tcp, _) | (_, Some(RouteTable::Tcp(_))))
    }

    /// Whether a connection on which this is spoken is taken apart into requests.
    pub fn is_taken_apart(&self, protocol: Protocol) -> bool {
        !self.of_others
            && matches!((protocol, self.table.as_deref()), (Protocol::Http1 | Protocol::Http2, None | Some(RouteTable::Http { .. })))
    }

    /// Where a connection of a client goes that is not taken apart: by what it dialled, and by the server name of its TLS if it has one.
    ///
    /// # Errors
    /// The port has rules for server names, and none is for this one.
    pub fn whole(&self, client: &Workload, dialled: IpAddr, server_name: Option<&str>) -> Result<Whole<'_>, Outcome> {
        match self.table.as_deref() {
            // Routes for requests say nothing of what is none.
            None | Some(RouteTable::Http { .. }) => Ok(Whole::Own(self.own())),
            Some(RouteTable::Tcp(rules)) => {
                let found = rules.iter().enumerate().find(|(_, rule)| rule.scope.holds(client, dialled));
                Ok(found.map_or_else(|| Whole::Own(self.own()), |(number, rule)| Whole::Tcp(number, rule)))
            }
            Some(RouteTable::Tls(rules)) => {
                let name = server_name.unwrap_or_default();
                let fits = |rule: &TlsRule| rule.hosts.is_empty() || rule.hosts.iter().any(|host| names(host, name));
                let found = rules.iter().enumerate().find(|(_, rule)| fits(rule) && rule.scope.holds(client, dialled));
                let (number, rule) = found.ok_or(Outcome::Request(RequestFailure::NoRoute))?;
                Ok(Whole::Tls(number, rule))
            }
        }
    }

    /// The Service that was dialled, as a target.
    pub fn own(&self) -> Target {
        Target::Service { service: self.service.clone(), port: self.port, subset: None }
    }

    /// How a connection ends for which its rule has no backend.
    pub fn no_backend(&self) -> Outcome {
        let detail = format!("no route of Service {} has a backend for the connection", self.service).into();
        Outcome::Request(RequestFailure::InvalidRoute { detail })
    }
}

/// Whether a host of a rule is a server name; `*.` stands for one label or more.
fn names(host: &str, name: &str) -> bool {
    match host.strip_prefix('*') {
        Some("") => true,
        Some(suffix) => name.strip_suffix(suffix).is_some_and(|rest| !rest.is_empty()),
        None => host.eq_ignore_ascii_case(name),
    }
}

#[cfg(test)]
mod tests;
