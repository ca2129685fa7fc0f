//! ServiceEntries: their hosts as Services of their namespace, found by address or by name as far as a client knows them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::Snapshot;
use super::build::Sorted;
use super::endpoints::Members;
use crate::object::{Kind, Object};
use crate::problem::{Origin, Severity};
use crate::service::{Discovery, DnsEndpoint, EndpointTraits, Entry, NamespacedName, Service, ServiceEndpoint, ServicePort};
use crate::service_entry::{EntryAddress, EntryPort, Resolution, ServiceEntry};

/// The hosts of ServiceEntries. Those that share a host or an address stand by age.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Entries {
    by_host: HashMap<Arc<str>, Vec<Arc<Service>>>,
    by_address: HashMap<SocketAddr, Vec<(Arc<Service>, usize)>>,
    ranges: Vec<(IpNet, Arc<Service>)>,
    /// Those that no single address stands for, by port.
    by_port: BTreeMap<u16, Vec<Arc<Service>>>,
    /// Addresses of endpoints of Services that are no pods', with every Service that has them.
    strangers: HashMap<SocketAddr, Vec<Arc<Service>>>,
}

impl Entries {
    pub(super) fn has_host(&self, host: &str) -> bool {
        self.by_host.contains_key(host)
    }

    pub(super) fn first_at(&self, address: SocketAddr) -> Option<&(Arc<Service>, usize)> {
        self.by_address.get(&address)?.first()
    }
}

/// A port of a Service.
pub type Meant<'s> = (&'s Arc<Service>, &'s ServicePort);

impl Snapshot {
    /// The Service whose address a client dials, or the host of a ServiceEntry that its namespace knows: one of its own namespace first,
    /// then the oldest; a single address goes before a range.
    pub fn meant_by(&self, client_namespace: &str, dialled: SocketAddr) -> Option<Meant<'_>> {
        let dialled = SocketAddr::new(dialled.ip().to_canonical(), dialled.port());
        if let Some((service, port)) = self.by_service_address.get(&dialled) {
            return Some((service, service.ports.get(*port)?));
        }
        if self.is_pods(dialled.ip()) {
            return None;
        }
        let exact = self.entries.by_address.get(&dialled).map(Vec::as_slice).unwrap_or_default();
        let of = |service: &Arc<Service>| service.ports.iter().position(|port| port.port == dialled.port());
        let within = self.entries.ranges.iter().filter(|(net, _)| net.contains(&dialled.ip()));
        let within = within.filter_map(|(_, service)| Some((service, of(service)?)));
        let found =
            nearest(client_namespace, exact.iter().map(|(service, port)| (service, *port))).or_else(|| nearest(client_namespace, within));
        let (service, port) = found?;
        Some((service, service.ports.get(port)?))
    }

    /// Whether an address is a pod's, which it stays whatever a ServiceEntry says: nobody gets what is meant for a pod by naming its address.
    pub fn is_pods(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.workload_at(ip).is_some() || self.held.iter().any(|pod| pod.addresses.contains(&ip))
    }

    /// The endpoints behind the address of a Service; `None` if it is none's.
    pub fn behind(&self, address: SocketAddr) -> Option<&[ServiceEndpoint]> {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        let (service, port) = self.by_service_address.get(&address)?;
        Some(&service.ports.get(*port)?.endpoints)
    }

    /// Ports of endpoints that are no pods' and that clients reach by their own addresses, of Services of which a DestinationRule says how.
    pub fn ports_of_strangers(&self) -> BTreeSet<u16> {
        let is_ruled = |service: &Arc<Service>| self.has_traffic(&service.name);
        let ruled = self.entries.strangers.iter().filter(|(_, services)| services.iter().any(is_ruled));
        ruled.map(|(address, _)| address.port()).collect()
    }

    /// The host of a ServiceEntry, known to a namespace and with this port, that a client names: the host itself, or the longest wildcard
    /// that it is below.
    pub fn entry_named(&self, client_namespace: &str, host: &str, port: u16) -> Option<Meant<'_>> {
        let of = |service: &Arc<Service>| service.ports.iter().position(|there| there.port == port);
        host_names(host).find_map(|name| {
            let services = self.entries.by_host.get(name.as_str())?;
            let (service, port) = nearest(client_namespace, services.iter().filter_map(|service| Some((service, of(service)?))))?;
            Some((service, service.ports.get(port)?))
        })
    }

    /// As [`Snapshot::meant_by`], where the client says the host as well: of ServiceEntries' hosts that share the address it is that one.
    pub fn meant_by_name(&self, client_namespace: &str, dialled: SocketAddr, host: &str) -> Option<Meant<'_>> {
        let meant = self.meant_by(client_namespace, dialled)?;
        if meant.0.entry.is_none() {
            return Some(meant);
        }
        let ip = dialled.ip().to_canonical();
        let stands_for = |service: &Service| {
            service.addresses.contains(&ip) || service.entry.iter().flat_map(|entry| &entry.ranges).any(|net| net.contains(&ip))
        };
        let named = self.entry_named(client_namespace, host, dialled.port());
        Some(named.filter(|(service, _)| stands_for(service)).unwrap_or(meant))
    }

    /// The Service, or the host of a ServiceEntry that the namespace knows, of this very name.
    pub fn host(&self, namespace: &str, host: &str) -> Option<&Arc<Service>> {
        if let Some(name) = NamespacedName::of_service_host(host) {
            return self.services.get(&name);
        }
        let services = self.entries.by_host.get(host)?;
        Some(nearest(namespace, services.iter().map(|service| (service, 0)))?.0)
    }

    /// The hosts of ServiceEntries that no address stands for, known to a namespace and with this port, by age.
    pub fn entries_by_name(&self, client_namespace: &str, port: u16) -> impl Iterator<Item = Meant<'_>> {
        let services = self.entries.by_port.get(&port).into_iter().flatten();
        let known = services.filter(move |service| service.is_by_name() && service.is_known_to(client_namespace));
        known.filter_map(move |service| Some((service, service.ports.iter().find(|there| there.port == port)?)))
    }

    /// Ports of those hosts of ServiceEntries that cannot be told by a single address, as far as `is_for` says yes to them.
    pub fn ports_by_name(&self, is_for: impl Fn(&Service) -> bool) -> BTreeSet<u16> {
        let all = self.entries.by_port.iter();
        all.filter(|(_, services)| services.iter().any(|service| is_for(service))).map(|(port, _)| *port).collect()
    }

    /// The hosts of ServiceEntries, in the order of their names.
    pub fn entries(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values().filter(|service| service.entry.is_some())
    }

    /// The first Service that has an address among its endpoints which is no pod's.
    pub fn service_of_stranger(&self, address: SocketAddr) -> Option<&Arc<Service>> {
        self.services_of_stranger(address).first()
    }

    /// Every Service that has an address among its endpoints which is no pod's, in the order of their names.
    pub fn services_of_stranger(&self, address: SocketAddr) -> &[Arc<Service>] {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        self.entries.strangers.get(&address).map(Vec::as_slice).unwrap_or_default()
    }
}

/// `host` and the wildcards that it is below, the longest first.
fn host_names(host: &str) -> impl Iterator<Item = String> {
    let ends = host.match_indices('.').map(|(dot, _)| format!("*{}", host.get(dot..).unwrap_or_default()));
    std::iter::once(host.to_owned()).chain(ends)
}

/// Of those that a namespace knows the first of its own, or the first.
fn nearest<'s>(namespace: &str, all: impl Iterator<Item = (&'s Arc<Service>, usize)>) -> Option<(&'s Arc<Service>, usize)> {
    let mut first = None;
    for (service, port) in all.filter(|(service, _)| service.is_known_to(namespace)) {
        if *service.name.namespace == *namespace {
            return Some((service, port));
        }
        first.get_or_insert((service, port));
    }
    first
}

/// Fills the snapshot's ServiceEntries. After its Services.
pub(super) fn join(snapshot: &mut Snapshot, sorted: &mut Sorted<'_>, members: &Members<'_>, previous: Option<&Snapshot>) {
    let mut strangers: HashMap<SocketAddr, Vec<Arc<Service>>> = HashMap::new();
    for service in snapshot.services.values() {
        let endpoints = service.ports.iter().flat_map(|port| &port.endpoints);
        for endpoint in endpoints.filter(|endpoint| !snapshot.is_pods(endpoint.address.ip())) {
            let there = strangers.entry(endpoint.address).or_default();
            // Two ports may lead to one address.
            if there.last().is_none_or(|last| !Arc::ptr_eq(last, service)) {
                there.push(service.clone());
            }
        }
    }
    snapshot.entries.strangers = strangers;
    let mut entries: Vec<(&Origin, &Arc<ServiceEntry>)> = sorted
        .all(Kind::ServiceEntry)
        .filter_map(|(origin, object)| match object {
            Object::ServiceEntry(entry) => Some((origin, entry)),
            _ => None,
        })
        .collect();
    entries.sort_by_cached_key(|(_, entry)| (entry.created.unwrap_or(i64::MAX), entry.name.clone()));
    // By host within a namespace, in the order of the first entry that has it.
    let mut order: Vec<NamespacedName> = Vec::new();
    let mut hosts: BTreeMap<NamespacedName, Vec<(&Origin, &Arc<ServiceEntry>)>> = BTreeMap::new();
    for (origin, entry) in entries {
        for host in entry.hosts.iter().filter(|host| is_usable(entry, host)) {
            let name = NamespacedName { namespace: entry.name.namespace.clone(), name: host.clone() };
            let there = hosts.entry(name.clone()).or_default();
            if there.is_empty() {
                order.push(name);
            }
            there.push((origin, entry));
        }
    }
    for name in order {
        let Some(entries) = hosts.get(&name) else { continue };
        let service = host(snapshot, sorted, members, &name, entries);
        let service = match previous.and_then(|previous| previous.services.get(&name)) {
            Some(same) if **same == service => same.clone(),
            _ => Arc::new(service),
        };
        place(snapshot, sorted, &service, entries);
        snapshot.services.insert(name, service);
    }
}

/// A wildcard that would have to be looked up is not used; it has been said.
fn is_usable(entry: &ServiceEntry, host: &str) -> bool {
    let looked_up = matches!(entry.resolution, Resolution::Dns | Resolution::DnsRoundRobin) && entry.endpoints.is_empty();
    !(looked_up && host.starts_with('*'))
}

/// What the entries of a namespace say of a host: the older counts where two say something of one port.
fn host(
    snapshot: &Snapshot,
    sorted: &mut Sorted<'_>,
    members: &Members<'_>,
    name: &NamespacedName,
    entries: &[(&Origin, &Arc<ServiceEntry>)],
) -> Service {
    let mut ports: Vec<ServicePort> = Vec::new();
    let mut addresses: Vec<IpAddr> = Vec::new();
    let mut entry = Entry::default();
    for (number, (origin, from)) in entries.iter().enumerate() {
        if number == 0 {
            (entry.export_to, entry.alt_names) = (from.export_to.clone(), from.alt_names.clone());
        }
        for (same, field) in
            [(entry.export_to == from.export_to, "spec.exportTo"), (entry.alt_names == from.alt_names, "spec.subjectAltNames")]
        {
            if !same {
                let message = format!("is not what the older entry for {} says, which counts; write the same in both", name.name);
                sorted.problem(Severity::Warn, origin, format!("ServiceEntry {}", from.name), field, message);
            }
        }
        for net in &from.addresses {
            match net.prefix_len() == net.max_prefix_len() {
                true if !addresses.contains(&net.addr()) => addresses.push(net.addr()),
                false if !entry.ranges.contains(net) => entry.ranges.push(*net),
                true | false => {}
            }
        }
        for (index, port) in from.ports.iter().enumerate() {
            if ports.iter().any(|there| there.port == port.number) {
                let message = format!("{} of host {} is a port of an older entry too, which counts: remove one", port.number, name.name);
                let field = format!("spec.ports[{index}].number");
                sorted.problem(Severity::Warn, origin, format!("ServiceEntry {}", from.name), &field, message);
                continue;
            }
            ports.push(self::port(snapshot, members, name, from, port));
        }
    }
    Service { name: name.clone(), addresses, ports, entry: Some(entry) }
}

fn port(snapshot: &Snapshot, members: &Members<'_>, name: &NamespacedName, entry: &ServiceEntry, port: &EntryPort) -> ServicePort {
    let traits = |traits: &Arc<EndpointTraits>| Some(traits.clone());
    let mut endpoints: Vec<ServiceEndpoint> = Vec::new();
    let mut names: Vec<DnsEndpoint> = Vec::new();
    let dns = matches!(entry.resolution, Resolution::Dns | Resolution::DnsRoundRobin);
    let first = entry.resolution == Resolution::DnsRoundRobin;
    if entry.resolution != Resolution::None {
        for endpoint in entry.endpoints.iter().take(if first { 1 } else { usize::MAX }) {
            let number = endpoint.port(port);
            match &endpoint.address {
                // What stands for a Service are its pods: behind its address nobody would know them.
                EntryAddress::Ip(ip) => match snapshot.behind(SocketAddr::new(*ip, number)) {
                    Some(behind) => endpoints.extend(behind.iter().cloned()),
                    None => {
                        let workload = snapshot.workload_at(*ip).map(|workload| workload.uid.clone());
                        endpoints.push(ServiceEndpoint {
                            address: SocketAddr::new(*ip, number),
                            workload,
                            traits: traits(&endpoint.traits),
                        });
                    }
                },
                EntryAddress::Name(host) if of_service(snapshot, host, number).is_some() => {
                    endpoints.extend(of_service(snapshot, host, number).into_iter().flatten().cloned());
                }
                EntryAddress::Name(host) => names.push(DnsEndpoint { host: host.clone(), port: number, traits: traits(&endpoint.traits) }),
            }
        }
    }
    let number = port.target.unwrap_or(port.number);
    if dns && entry.endpoints.is_empty() {
        names.push(DnsEndpoint { host: name.name.clone(), port: number, traits: None });
    }
    if entry.resolution == Resolution::Static && entry.endpoints.is_empty() {
        let ready = |pod: &&super::workloads::Pod| !pod.object.terminating && pod.object.ready;
        for pod in members.with_labels(&entry.name.namespace, &entry.selector).filter(ready) {
            let own = |ip: &IpAddr| ServiceEndpoint {
                address: SocketAddr::new(*ip, number),
                workload: Some(pod.workload.uid.clone()),
                traits: None,
            };
            endpoints.extend(pod.workload.addresses.iter().map(own));
        }
    }
    endpoints.sort_by_key(|endpoint| endpoint.address);
    endpoints.dedup_by_key(|endpoint| endpoint.address);
    let discovery = match entry.resolution {
        Resolution::None => Discovery::Dialled { target: port.target },
        Resolution::Static => Discovery::Named,
        Resolution::Dns | Resolution::DnsRoundRobin => Discovery::Dns { names: names.into(), first },
    };
    ServicePort { port: port.number, name: port.name.clone(), app_protocol: port.protocol.clone(), endpoints, discovery }
}

/// The endpoints of the Service that a name is the host of, on one of its ports.
fn of_service<'s>(snapshot: &'s Snapshot, host: &str, port: u16) -> Option<&'s [ServiceEndpoint]> {
    let service = snapshot.services.get(&NamespacedName::of_service_host(host)?)?;
    Some(&service.ports.iter().find(|there| there.port == port)?.endpoints)
}

/// Makes it known by its host and its addresses.
fn place(snapshot: &mut Snapshot, sorted: &mut Sorted<'_>, service: &Arc<Service>, entries: &[(&Origin, &Arc<ServiceEntry>)]) {
    // Of hosts of one entry that share its addresses, what is spoken tells which is meant.
    let together = |other: &Service| {
        other.name.namespace == service.name.namespace && entries.iter().any(|(_, entry)| entry.hosts.contains(&other.name.name))
    };
    let mut taken: Vec<(SocketAddr, NamespacedName)> = Vec::new();
    let mut pods: Vec<SocketAddr> = Vec::new();
    for (index, port) in service.ports.iter().enumerate() {
        for ip in &service.addresses {
            let address = SocketAddr::new(*ip, port.port);
            if snapshot.is_pods(*ip) {
                pods.push(address);
                continue;
            }
            if let Some((other, _)) = snapshot.by_service_address.get(&address) {
                taken.push((address, other.name.clone()));
                continue;
            }
            let there = snapshot.entries.by_address.entry(address).or_default();
            // Each namespace may have its own.
            match there.iter().find(|(other, _)| other.name.namespace == service.name.namespace && !together(other)) {
                Some((other, _)) => taken.push((address, other.name.clone())),
                None => there.push((service.clone(), index)),
            }
        }
    }
    let of_address = |address: &SocketAddr| entries.iter().find(|(_, entry)| entry.addresses.iter().any(|net| net.contains(&address.ip())));
    for address in pods {
        let Some((origin, entry)) = of_address(&address) else { continue };
        let message = format!("{address} is a pod's address, which stays the pod's; write an address that is nobody's");
        sorted.problem(Severity::Warn, origin, format!("ServiceEntry {}", entry.name), "spec.addresses", message);
    }
    for (address, other) in taken {
        let Some((origin, entry)) = of_address(&address) else { continue };
        let what = if other.is_entry() { "the older ServiceEntry's host" } else { "Service" };
        let message = format!("{address} is an address of {what} {other} already, which keeps it; write another address");
        sorted.problem(Severity::Warn, origin, format!("ServiceEntry {}", entry.name), "spec.addresses", message);
    }
    let ranges = service.entry.iter().flat_map(|entry| &entry.ranges);
    if service.addresses.is_empty() || ranges.clone().next().is_some() {
        for port in &service.ports {
            snapshot.entries.by_port.entry(port.port).or_default().push(service.clone());
        }
    }
    snapshot.entries.ranges.extend(ranges.map(|net| (*net, service.clone())));
    snapshot.entries.by_host.entry(service.name.name.clone()).or_default().push(service.clone());
}

#[cfg(test)]
mod tests;
