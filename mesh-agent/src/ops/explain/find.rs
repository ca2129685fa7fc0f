//! Names of a question → pods and Services of the snapshot, or which names are like it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_model::service::{NamespacedName, Service, ServicePort};
use mesh_model::snapshot::{HeldPod, Snapshot};
use mesh_model::workload::Workload;

use super::{Party, Unanswered};
use crate::conn::ClientAddr;

/// Names that are told where one is unknown.
const TOLD: usize = 3;
/// How alike they must be, of 1.
const ALIKE: f64 = 0.55;

/// Who calls.
pub(super) enum Who<'s> {
    /// A pod.
    Pod(&'s Arc<Workload>),
    /// A pod that belongs into the mesh and is not understood.
    Held(&'s Arc<HeldPod>),
    /// Somebody at an address that is no pod's.
    Outside(IpAddr),
}

/// The client.
pub(super) struct Source<'s> {
    /// Who it is.
    pub(super) who: Who<'s>,
    /// As it was named.
    pub(super) named: String,
    /// It was named by what it belongs to.
    stands_for: bool,
}

/// What is dialled.
pub(super) enum Place<'s> {
    /// A Service at its address; a ServiceEntry's host without one at no address.
    Service { service: &'s Arc<Service>, port: &'s ServicePort, dialled: SocketAddr },
    /// Addresses of pods, or of nobody that is known, one of which is dialled.
    Direct { kind: &'static str, name: String, targets: Vec<SocketAddr> },
}

impl Source<'_> {
    /// Its own end of a connection to an address.
    pub(super) fn address(&self, like: SocketAddr) -> ClientAddr {
        match &self.who {
            Who::Pod(workload) => own_end(workload, like),
            Who::Held(pod) => ClientAddr(SocketAddr::new(of_family(&pod.addresses, like).unwrap_or(like.ip()), 0)),
            Who::Outside(ip) => ClientAddr(SocketAddr::new(*ip, 0)),
        }
    }

    /// Its address of one family; nothing if it has none.
    fn has(&self, v4: bool) -> bool {
        match &self.who {
            Who::Pod(workload) => workload.addresses.iter().any(|own| own.is_ipv4() == v4),
            Who::Held(pod) => pod.addresses.iter().any(|own| own.is_ipv4() == v4),
            Who::Outside(ip) => ip.is_ipv4() == v4,
        }
    }

    pub(super) fn party(&self) -> Party {
        let of = |kind| Party { kind, name: self.named.clone(), pod: None, node: None, identity: None, port: None };
        match &self.who {
            Who::Pod(workload) => Party {
                pod: self.stands_for.then(|| full_name(workload)),
                node: some(&workload.node),
                identity: workload.enrolled.then(|| workload.identity.to_string()),
                ..of(if self.stands_for { "Workload" } else { "Pod" })
            },
            Who::Held(pod) => Party { node: some(&pod.node), ..of("Pod") },
            Who::Outside(_) => of("Address"),
        }
    }
}

impl Place<'_> {
    /// Every address at which a connection may arrive, of the family that is dialled.
    pub(super) fn targets(&self) -> Vec<SocketAddr> {
        match self {
            Place::Service { port, dialled, .. } => {
                port.endpoints.iter().map(|endpoint| endpoint.address).filter(|to| to.is_ipv4() == dialled.is_ipv4()).collect()
            }
            Place::Direct { targets, .. } => targets.clone(),
        }
    }

    /// What a client that has dialled it writes into `Host`.
    pub(super) fn host(&self) -> String {
        let (host, port) = match self {
            Place::Service { service, port, .. } => (service.name.service_host(), port.port),
            Place::Direct { targets, .. } => match targets.first() {
                Some(SocketAddr::V6(to)) => (format!("[{}]", to.ip()), to.port()),
                Some(SocketAddr::V4(to)) => (to.ip().to_string(), to.port()),
                None => ("localhost".to_owned(), 80),
            },
        };
        if port == 80 { host } else { format!("{host}:{port}") }
    }

    pub(super) fn party(&self) -> Party {
        let of = |kind, name: String, port| Party { kind, name, pod: None, node: None, identity: None, port };
        match self {
            Place::Service { service, port, .. } => {
                let kind = if service.entry.is_some() { "ServiceEntry host" } else { "Service" };
                of(kind, service.name.to_string(), Some(port.port))
            }
            Place::Direct { kind, name, targets } => of(kind, name.clone(), targets.first().map(|to| to.port())),
        }
    }
}

pub(super) fn full_name(workload: &Workload) -> String {
    format!("{}/{}", workload.namespace, workload.name)
}

/// A pod's own end of a connection to an address.
pub(super) fn own_end(workload: &Workload, like: SocketAddr) -> ClientAddr {
    ClientAddr(SocketAddr::new(of_family(&workload.addresses, like).unwrap_or(like.ip()), 0))
}

fn of_family(own: &[IpAddr], like: SocketAddr) -> Option<IpAddr> {
    own.iter().copied().find(|own| own.is_ipv4() == like.is_ipv4()).or_else(|| own.first().copied())
}

pub(super) fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// Finds the client.
pub(super) fn source<'s>(snapshot: &'s Snapshot, text: &str) -> Result<Source<'s>, Unanswered> {
    let named = text.to_owned();
    if let Ok(ip) = text.parse::<IpAddr>() {
        let held = snapshot.held().iter().find(|pod| pod.addresses.contains(&ip.to_canonical()));
        return Ok(match (held, snapshot.workload_at(ip)) {
            (Some(pod), _) => Source { who: Who::Held(pod), named, stands_for: false },
            (None, Some(workload)) => Source { who: Who::Pod(workload), named: full_name(workload), stands_for: false },
            (None, None) => Source { who: Who::Outside(ip.to_canonical()), named, stands_for: false },
        });
    }
    let (_, name) = split(text, "from")?;
    if let Some(pod) = snapshot.held().iter().find(|pod| pod.name == name) {
        return Ok(Source { who: Who::Held(pod), named: name.to_string(), stands_for: false });
    }
    let pods = pods(snapshot, &name);
    // Of several that are alike the first by name stands for all.
    let Some(workload) = pods.first() else { return Err(unknown(snapshot, "pod or workload", &name, false)) };
    Ok(Source { who: Who::Pod(workload), named: name.to_string(), stands_for: workload.name != name.name })
}

/// Finds what is dialled.
pub(super) fn destination<'s>(snapshot: &'s Snapshot, text: &str, port: Option<u16>, source: &Source<'_>) -> Result<Place<'s>, Unanswered> {
    // As people paste them; a path is asked about by --path.
    let (text, port) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
        (Some(rest), _) => (rest.split('/').next().unwrap_or_default(), port.or_else(|| default_port(rest, 80))),
        (None, Some(rest)) => (rest.split('/').next().unwrap_or_default(), port.or_else(|| default_port(rest, 443))),
        (None, None) => (text, port),
    };
    let address = match (text.parse::<SocketAddr>(), text.parse::<IpAddr>(), port) {
        (Ok(address), ..) => Some(SocketAddr::new(address.ip().to_canonical(), port.unwrap_or(address.port()))),
        (_, Ok(ip), Some(port)) => Some(SocketAddr::new(ip.to_canonical(), port)),
        (_, Ok(_), None) => return Err(Unanswered::Bad(format!("to={text}: which port? Give it behind the address or as port="))),
        _ => None,
    };
    if let Some(dialled) = address {
        let meant = match &source.who {
            Who::Pod(workload) => snapshot.meant_by(&workload.namespace, dialled),
            Who::Held(_) | Who::Outside(_) => snapshot.service_at(dialled),
        };
        return Ok(match (meant, snapshot.workload_at(dialled.ip())) {
            (Some((service, port)), _) => Place::Service { service, port, dialled },
            (None, Some(workload)) => Place::Direct { kind: "Pod", name: full_name(workload), targets: vec![dialled] },
            (None, None) => Place::Direct { kind: "Address", name: dialled.ip().to_string(), targets: vec![dialled] },
        });
    }
    let (text, port) = match text.rsplit_once(':') {
        Some((name, number)) => {
            let number = number.parse().map_err(|_| Unanswered::Bad(format!("to={text}: {number} is no port")))?;
            (name, port.or(Some(number)))
        }
        None => (text, port),
    };
    if !text.contains('/') && text.contains('.') {
        return at_host(snapshot, text, port, source);
    }
    let (kind, name) = split(text, "to")?;
    if let Some(service) = snapshot.service(&name).filter(|_| kind != Some("pod") && kind != Some("workload")) {
        return at_service(service, port, source);
    }
    let held: Vec<IpAddr> = snapshot.held().iter().filter(|pod| pod.name == name).flat_map(|pod| pod.addresses.clone()).collect();
    let pods = if kind == Some("service") { Vec::new() } else { pods(snapshot, &name) };
    if pods.is_empty() && (held.is_empty() || kind == Some("service")) {
        return Err(unknown(snapshot, if kind == Some("service") { "Service" } else { "Service, pod or workload" }, &name, true));
    }
    let port = match port {
        Some(port) => port,
        None => only_port(snapshot, &pods, &name)?,
    };
    let of = |addresses: &[IpAddr]| addresses.iter().copied().find(|own| source.has(own.is_ipv4())).or(addresses.first().copied());
    let addresses: Vec<IpAddr> = match pods.is_empty() {
        true => of(&held).into_iter().collect(),
        false => pods.iter().filter_map(|pod| of(&pod.addresses)).collect(),
    };
    let kind = if pods.first().is_some_and(|pod| pod.name != name.name) { "Workload" } else { "Pod" };
    let targets = addresses.into_iter().map(|ip| SocketAddr::new(ip, port)).collect();
    Ok(Place::Direct { kind, name: name.to_string(), targets })
}

/// The port of a scheme, where the authority says none.
fn default_port(rest: &str, port: u16) -> Option<u16> {
    let authority: http::uri::Authority = rest.split('/').next()?.parse().ok()?;
    authority.port().is_none().then_some(port)
}

/// The host of a ServiceEntry, or of a Service in full, that the client knows.
fn at_host<'s>(snapshot: &'s Snapshot, host: &str, port: Option<u16>, source: &Source<'_>) -> Result<Place<'s>, Unanswered> {
    let namespace = match &source.who {
        Who::Pod(workload) => &*workload.namespace,
        Who::Held(pod) => &*pod.name.namespace,
        Who::Outside(_) => "",
    };
    let host = host.to_ascii_lowercase();
    let named = port.and_then(|port| snapshot.entry_named(namespace, &host, port)).map(|(service, _)| service);
    match named.or_else(|| snapshot.host(namespace, &host)) {
        Some(service) => at_service(service, port, source),
        None => Err(Unanswered::Unknown(format!(
            "to={host}: no Service, and no ServiceEntry that namespace {namespace} knows, has this host{}: ask about its address",
            port.map(|port| format!(" on port {port}")).unwrap_or_default()
        ))),
    }
}

fn at_service<'s>(service: &'s Arc<Service>, port: Option<u16>, source: &Source<'_>) -> Result<Place<'s>, Unanswered> {
    let has = || service.ports.iter().map(|port| port.port.to_string()).collect::<Vec<_>>().join(", ");
    let port = match (port, &service.ports[..]) {
        (Some(wanted), ports) => ports
            .iter()
            .find(|port| port.port == wanted)
            .ok_or_else(|| Unanswered::Unknown(format!("Service {} has no port {wanted}, only: {}", service.name, has())))?,
        (None, [only]) => only,
        (None, _) => return Err(Unanswered::Bad(format!("Service {} has the ports {}: say which", service.name, has()))),
    };
    let dialled = service.addresses.iter().find(|own| source.has(own.is_ipv4())).or(service.addresses.first());
    Ok(match dialled {
        Some(ip) => Place::Service { service, port, dialled: SocketAddr::new(*ip, port.port) },
        None if service.entry.is_some() => {
            let any = if source.has(true) { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
            Place::Service { service, port, dialled: SocketAddr::new(any, port.port) }
        }
        // A headless one has no address of its own: the client finds and dials its pods.
        None => {
            let targets = port.endpoints.iter().map(|endpoint| endpoint.address).collect();
            Place::Direct { kind: "Service", name: service.name.to_string(), targets }
        }
    })
}

/// The pod of a name, or those of the workload of that name, in order of their names.
fn pods<'s>(snapshot: &'s Snapshot, name: &NamespacedName) -> Vec<&'s Arc<Workload>> {
    let here = || snapshot.workloads().filter(|workload| workload.namespace == name.namespace);
    let mut found: Vec<_> = here().filter(|workload| workload.name == name.name).collect();
    if found.is_empty() {
        found = here().filter(|workload| workload.canonical.workload == name.name).collect();
    }
    found.sort_by_key(|workload| &workload.name);
    found
}

/// The port that Services know the pods by, if it is one.
fn only_port(snapshot: &Snapshot, pods: &[&Arc<Workload>], name: &NamespacedName) -> Result<u16, Unanswered> {
    let ours = |uid: &Option<_>| uid.as_ref().is_some_and(|uid| pods.iter().any(|pod| pod.uid == *uid));
    let all = snapshot.services().flat_map(|service| &service.ports).flat_map(|port| &port.endpoints);
    let ports: BTreeSet<u16> = all.filter(|endpoint| ours(&endpoint.workload)).map(|endpoint| endpoint.address.port()).collect();
    let mut each = ports.iter();
    match (each.next(), each.next()) {
        (Some(port), None) => Ok(*port),
        (None, _) => Err(Unanswered::Bad(format!("to={name}: which port? Give it behind the name or as port="))),
        _ => {
            let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
            Err(Unanswered::Bad(format!("to={name}: which port? Services know it by {}", ports.join(", "))))
        }
    }
}

/// `namespace/name`, or `kind/namespace/name`.
fn split<'t>(text: &'t str, parameter: &str) -> Result<(Option<&'t str>, NamespacedName), Unanswered> {
    let bad = || {
        let expected = "namespace/name (before it pod/, workload/ or service/ if several have that name), or an address";
        Unanswered::Bad(format!("{parameter}={text}: expected {expected}"))
    };
    let parts: Vec<&str> = text.split('/').collect();
    let (kind, namespace, name) = match parts[..] {
        [namespace, name] => (None, namespace, name),
        [kind @ ("pod" | "workload" | "service"), namespace, name] => (Some(kind), namespace, name),
        _ => return Err(bad()),
    };
    if namespace.is_empty() || name.is_empty() {
        return Err(bad());
    }
    Ok((kind, NamespacedName { namespace: namespace.into(), name: name.into() }))
}

fn unknown(snapshot: &Snapshot, what: &str, name: &NamespacedName, services: bool) -> Unanswered {
    let of = |name: &Arc<str>, workload: &Workload| NamespacedName { namespace: workload.namespace.clone(), name: name.clone() };
    let mut all: BTreeSet<NamespacedName> = BTreeSet::new();
    for workload in snapshot.workloads() {
        all.insert(of(&workload.name, workload));
        all.insert(of(&workload.canonical.workload, workload));
    }
    all.extend(snapshot.services().filter(|_| services).map(|service| service.name.clone()));
    let text = name.to_string();
    let alike = |other: &NamespacedName| {
        let own = strsim::normalized_damerau_levenshtein(&name.name, &other.name);
        strsim::normalized_damerau_levenshtein(&text, &other.to_string()).max(own * 0.9)
    };
    let mut near: Vec<(f64, &NamespacedName)> =
        all.iter().map(|other| (alike(other), other)).filter(|(alike, _)| *alike >= ALIKE).collect();
    near.sort_by(|(one, _), (other, _)| other.total_cmp(one));
    let near: Vec<String> = near.iter().take(TOLD).map(|(_, name)| name.to_string()).collect();
    let hint = match near.is_empty() {
        true => "GET /config lists what there is".to_owned(),
        false => format!("is it {}?", near.join(", ")),
    };
    Unanswered::Unknown(format!("there is no {what} {name}: {hint}"))
}
