//! Hosts that are no Services: Istio's ServiceEntry as values.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::service::{EndpointTraits, NamespacedName};

/// A ServiceEntry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceEntry {
    /// Its name.
    pub name: NamespacedName,
    /// `metadata.creationTimestamp`, seconds since 1970, if given: of several for one host and port the oldest holds.
    pub created: Option<i64>,
    /// The hosts, in full and in lower case, or with `*.` first.
    pub hosts: Vec<Arc<str>>,
    /// Addresses that stand for the hosts; a single one is a range of its full length.
    pub addresses: Vec<IpNet>,
    /// The ports.
    pub ports: Vec<EntryPort>,
    /// How endpoints are found.
    pub resolution: Resolution,
    /// The endpoints that are named.
    pub endpoints: Vec<EntryEndpoint>,
    /// Labels of the pods of the entry's namespace that are its endpoints; empty for none.
    pub selector: BTreeMap<String, String>,
    /// Namespaces whose clients know the hosts (`exportTo`); empty for all. `.` is written out.
    pub export_to: Vec<Arc<str>>,
    /// Names of which a server's certificate must have one where a DestinationRule has TLS begun and says none (`subjectAltNames`).
    pub alt_names: Vec<Arc<str>>,
}

/// A port of a ServiceEntry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EntryPort {
    /// The number that clients dial.
    pub number: u16,
    /// Its name, by which endpoints give their own number for it.
    pub name: Arc<str>,
    /// What is spoken, in lower case as `appProtocol` has it; empty if nothing is said.
    pub protocol: Arc<str>,
    /// Port of endpoints that give none.
    pub target: Option<u16>,
}

/// How the endpoints of a ServiceEntry are found.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Resolution {
    /// What the client dialled is the endpoint.
    #[default]
    None,
    /// They are named with their addresses.
    Static,
    /// They are named by names; every address that the DNS has for them is one.
    Dns,
    /// As [`Resolution::Dns`], but a new connection goes to the first address of the answer alone.
    DnsRoundRobin,
}

/// An endpoint that is named.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EntryEndpoint {
    /// Where it is.
    pub address: EntryAddress,
    /// Its own port numbers, by the names of the entry's ports.
    pub ports: BTreeMap<Arc<str>, u16>,
    /// What else is said of it.
    pub traits: Arc<EndpointTraits>,
}

/// Where an endpoint is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EntryAddress {
    /// There.
    Ip(IpAddr),
    /// Where the DNS says; in lower case.
    Name(Arc<str>),
}

impl EntryEndpoint {
    /// Its number for a port of the entry.
    pub fn port(&self, port: &EntryPort) -> u16 {
        self.ports.get(&port.name).copied().unwrap_or(port.target.unwrap_or(port.number))
    }
}
