//! To which ports of which Service a route is attached.

use crate::gateway::ParentRef;
use crate::service::NamespacedName;
use crate::snapshot::Snapshot;

/// The ports that a parent means; an error says why there are none.
pub(super) fn ports(snapshot: &Snapshot, parent: &ParentRef) -> Result<(NamespacedName, Vec<u16>), String> {
    let name = NamespacedName { namespace: parent.namespace.clone(), name: parent.name.clone() };
    let Some(service) = snapshot.service(&name) else {
        return Err(format!("Service {name} does not exist or is only a DNS name"));
    };
    // Traffic to pods' own addresses never sees a route (GEP-1294).
    if service.addresses.is_empty() {
        return Err(format!("Service {name} has no address of its own, so that nobody dials it"));
    }
    let fits = |number: u16, section: &str| {
        parent.port.is_none_or(|port| port == number) && parent.section.as_ref().is_none_or(|name| **name == *section)
    };
    let ports: Vec<u16> = service.ports.iter().filter(|port| fits(port.port, &port.name)).map(|port| port.port).collect();
    if ports.is_empty() {
        let named = match (&parent.section, parent.port) {
            (Some(section), Some(port)) => format!(" {port} named \"{section}\""),
            (Some(section), None) => format!(" named \"{section}\""),
            (None, Some(port)) => format!(" {port}"),
            (None, None) => String::new(),
        };
        return Err(format!("Service {name} has no TCP port{named}"));
    }
    Ok((name, ports))
}
