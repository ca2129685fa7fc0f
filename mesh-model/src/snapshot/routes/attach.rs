//! To which ports of which Services, or hosts of ServiceEntries, a route is attached.

use std::collections::HashMap;
use std::sync::Arc;

use crate::gateway::ParentRef;
use crate::object::{Kind, Object};
use crate::service::NamespacedName;
use crate::service_entry::ServiceEntry;
use crate::snapshot::Snapshot;
use crate::snapshot::build::Sorted;

/// What parents may be beside Services.
pub(super) type Entries = HashMap<NamespacedName, Arc<ServiceEntry>>;

/// All ServiceEntries.
pub(super) fn entries(sorted: &Sorted<'_>) -> Entries {
    let entry = |object: &Object| match object {
        Object::ServiceEntry(entry) => Some((entry.name.clone(), entry.clone())),
        _ => None,
    };
    sorted.all(Kind::ServiceEntry).filter_map(|(_, object)| entry(object)).collect()
}

/// A Service, or the host of a ServiceEntry, and ports of it.
pub(super) type Place = (NamespacedName, Vec<u16>);

/// What a parent means to a route of a namespace; an error says why it is nothing.
pub(super) fn places(snapshot: &Snapshot, entries: &Entries, namespace: &str, parent: &ParentRef) -> Result<Vec<Place>, String> {
    let name = NamespacedName { namespace: parent.namespace.clone(), name: parent.name.clone() };
    if parent.is_entry() {
        return hosts(snapshot, entries, namespace, parent, &name);
    }
    let Some(service) = snapshot.service(&name).filter(|service| service.entry.is_none()) else {
        return Err(format!("Service {name} does not exist or is only a DNS name"));
    };
    // Traffic to pods' own addresses never sees a route (GEP-1294).
    if service.addresses.is_empty() {
        return Err(format!("Service {name} has no address of its own, so that nobody dials it"));
    }
    let ports: Vec<u16> = service.ports.iter().filter(|port| fits(parent, port.port, &port.name)).map(|port| port.port).collect();
    if ports.is_empty() {
        return Err(format!("Service {name} has no TCP port{}", asked(parent)));
    }
    Ok(vec![(name, ports)])
}

/// Those of a ServiceEntry.
fn hosts(snapshot: &Snapshot, entries: &Entries, namespace: &str, parent: &ParentRef, name: &NamespacedName) -> Result<Vec<Place>, String> {
    let Some(entry) = entries.get(name) else {
        return Err(format!("ServiceEntry {name} does not exist, or is not understood"));
    };
    let ports: Vec<u16> = entry.ports.iter().filter(|port| fits(parent, port.number, &port.name)).map(|port| port.number).collect();
    if ports.is_empty() {
        return Err(format!("ServiceEntry {name} has no TCP port{}", asked(parent)));
    }
    let host = |host: &Arc<str>| NamespacedName { namespace: name.namespace.clone(), name: host.clone() };
    // Who owns the entry says what holds for those that know it, whether the own namespace does or not.
    let known = |host: &NamespacedName| {
        snapshot.service(host).is_some_and(|service| namespace == &*name.namespace || service.is_known_to(namespace))
    };
    let places: Vec<Place> = entry.hosts.iter().map(host).filter(known).map(|host| (host, ports.clone())).collect();
    if places.is_empty() {
        return Err(format!("ServiceEntry {name} has no host that namespace {namespace} knows; look at its exportTo and hosts"));
    }
    Ok(places)
}

fn fits(parent: &ParentRef, number: u16, name: &str) -> bool {
    parent.port.is_none_or(|port| port == number) && parent.section.as_ref().is_none_or(|section| **section == *name)
}

/// Which port is meant, for the end of a sentence.
fn asked(parent: &ParentRef) -> String {
    match (&parent.section, parent.port) {
        (Some(section), Some(port)) => format!(" {port} named \"{section}\""),
        (Some(section), None) => format!(" named \"{section}\""),
        (None, Some(port)) => format!(" {port}"),
        (None, None) => String::new(),
    }
}
