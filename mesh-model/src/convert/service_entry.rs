//! ServiceEntry (`networking.istio.io`): hosts that are no Services, and where they are.
//!
//! What is demanded is what Istio's own validation demands. A mistake in an endpoint or address costs that one; without a host, a port or
//! a resolution that can be read nothing is left.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::fields::{Fields, spec};
use super::host::{alt_names, export_to};
use super::{Input, Reading};
use crate::object::Object;
use crate::problem::FieldPath;
use crate::service::{EndpointTraits, NamespacedName};
use crate::service_entry::{EntryAddress, EntryEndpoint, EntryPort, Resolution, ServiceEntry};

pub(super) fn convert(input: &mut Input<'_>) -> Reading {
    let Some((mut spec, created)) = spec(input) else { return Reading::Unreadable };
    let hosts = hosts(input, &mut spec);
    let ports = ports(input, &mut spec);
    let resolution = resolution(input, &mut spec);
    let (Some(resolution), false, false) = (resolution, hosts.is_empty(), ports.is_empty()) else {
        if hosts.is_empty() && !input.failed() {
            input.error(FieldPath::of("spec.hosts"), "is missing; write the full names of the hosts");
        }
        if ports.is_empty() && !input.failed() {
            input.error(FieldPath::of("spec.ports"), "is missing; write at least one port with its number, name and protocol");
        }
        return Reading::Unreadable;
    };
    match spec.text(input, "location") {
        None | Some("MESH_EXTERNAL" | "MESH_INTERNAL") => {}
        Some(other) => input.error(
            FieldPath::of("spec.location"),
            format!(
                "\"{other}\" is neither MESH_EXTERNAL nor MESH_INTERNAL; pods of the mesh are reached through tunnels, all else is not"
            ),
        ),
    }
    let addresses = addresses(input, &mut spec, resolution);
    let endpoints: Vec<_> = spec.maps(input, "endpoints").into_iter().filter_map(|map| endpoint(input, map, &ports, resolution)).collect();
    let selector = selector(input, &mut spec);
    let export_to = export_to(input, &mut spec);
    let (alt_names, wrong) = alt_names(input, &mut spec);
    wrong.into_iter().for_each(|(at, message)| input.error(at, message));
    spec.rest(input);
    let entry =
        ServiceEntry { name: input.name.clone(), created, hosts, addresses, ports, resolution, endpoints, selector, export_to, alt_names };
    contradictions(input, &entry);
    let good = !input.failed();
    let object = Object::ServiceEntry(Arc::new(entry));
    if good { Reading::Good(object) } else { Reading::Cautious(object) }
}

/// A host name in full, in lower case; with `wildcard` it may begin with `*.`.
fn name(text: &str, wildcard: bool) -> Option<Arc<str>> {
    let lower = text.to_ascii_lowercase();
    let full = lower.strip_suffix('.').unwrap_or(&lower);
    let named = match wildcard {
        true => full.strip_prefix("*.").unwrap_or(full),
        false => full,
    };
    let fine = |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    (full.len() <= 253 && full.contains('.') && named.split('.').all(fine)).then(|| full.into())
}

fn hosts(input: &mut Input<'_>, spec: &mut Fields<'_>) -> Vec<Arc<str>> {
    let mut hosts: Vec<Arc<str>> = Vec::new();
    for (at, text) in spec.texts(input, "hosts") {
        if text.parse::<IpAddr>().is_ok() {
            input.error(at, format!("\"{text}\" is an address; write it into addresses, and a name here"));
            continue;
        }
        match name(text, true) {
            Some(host) if NamespacedName::of_service_host(&host).is_some() => {
                input.error(at, format!("\"{text}\" is the host of a Service, which only a Service can have; write another name"));
            }
            Some(host) if hosts.contains(&host) => {}
            Some(host) => hosts.push(host),
            None => input.error(at, format!("\"{text}\" is not the full name of a host; write one as api.example.com, or *. and its end")),
        }
    }
    hosts
}

fn ports(input: &mut Input<'_>, spec: &mut Fields<'_>) -> Vec<EntryPort> {
    const PROTOCOLS: [&str; 11] = ["http", "http2", "grpc", "grpc-web", "https", "tls", "tcp", "mongo", "mysql", "redis", ""];
    let mut ports: Vec<EntryPort> = Vec::new();
    for mut map in spec.maps(input, "ports") {
        let at = map.at.clone();
        let before = input.findings.len();
        let number = map.number::<u16>(input, "number", 1..=65535);
        if number.is_none() && input.findings.len() == before {
            input.error(at.key("number"), "is missing; write the port that clients dial");
        }
        let name = map.text(input, "name").unwrap_or_default();
        let protocol = map.text(input, "protocol").unwrap_or_default().to_ascii_lowercase();
        let target = map.number::<u16>(input, "targetPort", 0..=65535).filter(|port| *port != 0);
        map.rest(input);
        let Some(number) = number else { continue };
        if protocol == "udp" {
            input.warn(at.key("protocol"), "UDP is not taken by the mesh and always passes: the port is not used");
            continue;
        }
        if !PROTOCOLS.contains(&&*protocol) {
            let message = format!(
                "\"{protocol}\" is not a protocol that is known; it is taken for TCP. Known are HTTP, HTTP2, GRPC, HTTPS, TLS and TCP"
            );
            input.warn(at.key("protocol"), message);
        }
        if ports.iter().any(|other| other.number == number) {
            input.error(at.key("number"), format!("{number} is the number of an earlier port too, which counts; write each once"));
            continue;
        }
        if !name.is_empty() && ports.iter().any(|other| *other.name == *name) {
            input.error(at.key("name"), format!("\"{name}\" is the name of an earlier port too; give each its own"));
        }
        let protocol = if PROTOCOLS.contains(&&*protocol) { protocol.as_str() } else { "tcp" };
        ports.push(EntryPort { number, name: name.into(), protocol: protocol.into(), target });
    }
    ports
}

fn resolution(input: &mut Input<'_>, spec: &mut Fields<'_>) -> Option<Resolution> {
    let before = input.findings.len();
    match spec.text(input, "resolution") {
        None if input.findings.len() > before => None,
        None | Some("NONE") => Some(Resolution::None),
        Some("STATIC") => Some(Resolution::Static),
        Some("DNS") => Some(Resolution::Dns),
        Some("DNS_ROUND_ROBIN") => Some(Resolution::DnsRoundRobin),
        Some(other) => {
            let message = format!("\"{other}\" is not a resolution that is known; write NONE, STATIC, DNS or DNS_ROUND_ROBIN");
            input.error(FieldPath::of("spec.resolution"), message);
            None
        }
    }
}

fn addresses(input: &mut Input<'_>, spec: &mut Fields<'_>, resolution: Resolution) -> Vec<IpNet> {
    let mut addresses: Vec<IpNet> = Vec::new();
    for (at, text) in spec.texts(input, "addresses") {
        let read =
            text.parse::<IpAddr>().map(|ip| IpNet::from(ip.to_canonical())).or_else(|_| text.parse::<IpNet>().map(|net| net.trunc()));
        match read {
            Ok(net) if net.prefix_len() < net.max_prefix_len() && !matches!(resolution, Resolution::None | Resolution::Static) => {
                input.error(
                    at,
                    format!("\"{text}\" is a range, which goes with the resolutions NONE and STATIC only; write single addresses"),
                );
            }
            Ok(net) if net.addr().is_unspecified() || net.addr().is_loopback() => {
                input.error(at, format!("\"{text}\" is no address of a host elsewhere; write one that clients dial, or leave it out"));
            }
            Ok(net) if addresses.contains(&net) => {}
            Ok(net) => addresses.push(net),
            Err(_) => input.error(at, format!("\"{text}\" is neither an IP address nor a range such as 10.0.0.0/8")),
        }
    }
    addresses
}

fn endpoint(input: &mut Input<'_>, mut map: Fields<'_>, ports: &[EntryPort], resolution: Resolution) -> Option<EntryEndpoint> {
    let at = map.at.clone();
    let before = input.findings.len();
    let address = match map.text(input, "address") {
        Some(text) if text.starts_with("unix:") => {
            input.warn(
                at.key("address"),
                "is a socket of the file system, which no pod has in common with the agent: the endpoint is not used",
            );
            None
        }
        Some(text) => match (text.parse::<IpAddr>(), resolution) {
            (Ok(ip), _) if ip.is_loopback() || ip.is_unspecified() => {
                input.error(at.key("address"), format!("\"{text}\" is no address of a host elsewhere; write the endpoint's own"));
                None
            }
            (Ok(ip), _) => Some(EntryAddress::Ip(ip.to_canonical())),
            (Err(_), Resolution::Dns | Resolution::DnsRoundRobin) => {
                let name = name(text, false);
                if name.is_none() {
                    input.error(at.key("address"), format!("\"{text}\" is neither an IP address nor the full name of a host"));
                }
                name.map(EntryAddress::Name)
            }
            (Err(_), _) => {
                input.error(at.key("address"), format!("\"{text}\" is not an IP address; write one, or resolution: DNS for names"));
                None
            }
        },
        None => {
            if input.findings.len() == before {
                input.error(at.key("address"), "is missing; write the endpoint's address");
            }
            None
        }
    };
    let mut numbers = BTreeMap::new();
    if let Some(mut map) = map.map(input, "ports") {
        for port in ports.iter().filter(|port| !port.name.is_empty()) {
            if let Some(number) = map.number::<u16>(input, &port.name, 1..=65535) {
                numbers.insert(port.name.clone(), number);
            }
        }
        map.rest(input);
    }
    let labels = map.labels(input, "labels").unwrap_or_default();
    let weight = map.number::<u32>(input, "weight", 0..=u64::from(u16::MAX)).filter(|weight| *weight > 0).unwrap_or(1);
    let locality = map.text(input, "locality").unwrap_or_default();
    let mut parts = locality.split('/').map(Arc::<str>::from);
    let (region, zone) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    map.unsupported(input, "network", "is not supported: the endpoint is dialled at its own address");
    map.unsupported(input, "serviceAccount", "is not supported: the identity of a pod of the mesh is known, and others prove none");
    map.rest(input);
    let traits = Arc::new(EndpointTraits { weight, labels, region, zone });
    Some(EntryEndpoint { address: address?, ports: numbers, traits })
}

fn selector(input: &mut Input<'_>, spec: &mut Fields<'_>) -> BTreeMap<String, String> {
    let Some(mut map) = spec.map(input, "workloadSelector") else { return BTreeMap::new() };
    let at = map.at.clone();
    let labels = map.labels(input, "labels").unwrap_or_default();
    map.rest(input);
    if labels.is_empty() {
        input.error(at.key("labels"), "names no label, so that no pod is selected; write those that the pods have");
    }
    labels
}

/// What does not go together, as in Istio.
fn contradictions(input: &mut Input<'_>, entry: &ServiceEntry) {
    let wildcard = entry.hosts.iter().position(|host| host.starts_with('*'));
    let endpoints = FieldPath::of("spec.endpoints");
    match entry.resolution {
        Resolution::None if !entry.endpoints.is_empty() || !entry.selector.is_empty() => {
            input.error(endpoints, "stands beside resolution NONE, by which the client's own address counts; write STATIC or DNS");
        }
        Resolution::Static if entry.endpoints.is_empty() && entry.selector.is_empty() && !input.failed() => {
            input.warn(endpoints, "is empty: with resolution STATIC nobody is reached; name the endpoints, or write DNS");
        }
        Resolution::Dns | Resolution::DnsRoundRobin => {
            if let Some(at) = wildcard.filter(|_| entry.endpoints.is_empty()) {
                let message =
                    "a wildcard cannot be looked up; write whole names, name endpoints, or resolution: NONE. The host is not used";
                input.error(FieldPath::of("spec.hosts").index(at), message);
            }
            if !entry.selector.is_empty() {
                let message = "selects pods, whose addresses are known; write resolution: STATIC. It is not used";
                input.error(FieldPath::of("spec.workloadSelector"), message);
            }
            if entry.resolution == Resolution::DnsRoundRobin && entry.endpoints.len() > 1 {
                input.error(endpoints, "has more than one item beside resolution DNS_ROUND_ROBIN; the first counts. Write DNS for several");
            }
        }
        Resolution::None | Resolution::Static => {}
    }
    if !entry.endpoints.is_empty() && !entry.selector.is_empty() {
        input.error(FieldPath::of("spec.workloadSelector"), "stands beside endpoints, of which only one may be; remove one of them");
    }
}

#[cfg(test)]
mod tests;
