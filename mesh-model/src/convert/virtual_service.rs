//! VirtualService (`networking.istio.io`): routing by host.
//!
//! A mistake costs the match, the backend or the field it stands in; where leaving that out would be no answer, requests are refused.

use std::sync::Arc;

use super::fields::{Fields, spec};
use super::host::{export_to, host};
use super::{Input, Reading};
use crate::object::Object;
use crate::problem::{FieldPath, Finding};
use crate::route::Filter;
use crate::virtual_service::{ConnectionMatch, ConnectionRoute, Destination, HttpMatch, HttpRoute, Share, VirtualService};

mod actions;
mod filters;
mod matches;
mod retry;

/// What stands for the clients in the mesh among `gateways`.
const MESH: &str = "mesh";

pub(super) fn convert(input: &mut Input<'_>) -> Reading {
    let Some((mut spec, created)) = spec(input) else { return Reading::Unreadable };
    let before = input.findings.len();
    let mut hosts: Vec<Arc<str>> = Vec::new();
    for (at, text) in spec.texts(input, "hosts") {
        match host(text, &input.name.namespace) {
            Ok(host) => hosts.push(host),
            Err(message) => input.error(at, message),
        }
    }
    hosts.sort();
    hosts.dedup();
    if hosts.is_empty() && input.findings.len() == before {
        input.error(FieldPath::of("spec.hosts"), "names no host; write the names of the Services that the rules are for");
    }
    let export_to = export_to(input, &mut spec);
    let gateways = gateways(input, &mut spec);
    let mesh = gateways.unwrap_or(true);
    if !mesh {
        let message = "does not name mesh: the rules are for gateways alone, of which this mesh has none";
        input.findings.push(Finding::info(FieldPath::of("spec.gateways"), message));
    }
    let mut http = Vec::new();
    for (number, (at, value)) in spec.list(input, "http").into_iter().enumerate() {
        if let Some(map) = Fields::of(input, at, value) {
            http.push(http_route(input, map, number));
        }
    }
    let tls = connection_routes(input, &mut spec, "tls");
    let tcp = connection_routes(input, &mut spec, "tcp");
    spec.rest(input);
    if hosts.is_empty() {
        return Reading::Unreadable;
    }
    let virtual_service = VirtualService { name: input.name.clone(), created, hosts, export_to, mesh, http, tls, tcp };
    let object = Object::VirtualService(Arc::new(virtual_service));
    if input.failed() { Reading::Cautious(object) } else { Reading::Good(object) }
}

/// Whether `gateways` names the mesh; `None` if it says nothing.
fn gateways(input: &mut Input<'_>, map: &mut Fields<'_>) -> Option<bool> {
    let names = map.texts(input, "gateways");
    (!names.is_empty()).then(|| names.iter().any(|(_, name)| *name == MESH))
}

fn http_route(input: &mut Input<'_>, mut map: Fields<'_>, number: usize) -> HttpRoute {
    let mut route = HttpRoute { number, name: map.text(input, "name").map(Into::into), ..HttpRoute::default() };
    let (given, list) = (map.has("match"), map.list(input, "match"));
    // A rule without a match is for all.
    if !given || (list.is_empty() && !failed_below(input, &map.at.key("match"))) {
        route.matches.push(HttpMatch::default());
    }
    for (at, value) in list {
        let before = input.findings.len();
        let read = Fields::of(input, at.clone(), value).and_then(|map| matches::http(input, map));
        if matches::broken(input, before) {
            continue;
        }
        route.matches.extend(read);
    }
    filters::read(input, &mut map, &mut route);
    for (at, value) in map.list(input, "route") {
        let Some(share) = Fields::of(input, at, value) else {
            route.filters.push(Filter::Refuse("a part of the rule's route cannot be read".into()));
            continue;
        };
        route.route.push(self::share(input, share, true));
    }
    weigh(input, &map, &mut route.route);
    actions::read(input, &mut map, &mut route);
    map.rest(input);
    route
}

fn connection_routes(input: &mut Input<'_>, spec: &mut Fields<'_>, list: &str) -> Vec<ConnectionRoute> {
    let mut routes = Vec::new();
    for (number, (at, value)) in spec.list(input, list).into_iter().enumerate() {
        let Some(mut map) = Fields::of(input, at, value) else { continue };
        let mut route = ConnectionRoute { number, ..ConnectionRoute::default() };
        let matches = map.list(input, "match");
        if matches.is_empty() {
            if list == "tls" {
                input.error(map.at.key("match"), "is missing; write sniHosts. The rule is not used");
            } else if !failed_below(input, &map.at.key("match")) {
                route.matches.push(ConnectionMatch::default());
            }
        }
        for (at, value) in matches {
            let before = input.findings.len();
            let read = Fields::of(input, at, value).and_then(|map| matches::connection(input, map, list == "tls"));
            if !matches::broken(input, before) {
                route.matches.extend(read);
            }
        }
        for map in map.maps(input, "route") {
            route.route.push(share(input, map, false));
        }
        if route.route.is_empty() {
            input.error(map.at.key("route"), "names no destination; connections are refused");
        }
        weigh(input, &map, &mut route.route);
        map.rest(input);
        routes.push(route);
    }
    routes
}

fn failed_below(input: &Input<'_>, at: &FieldPath) -> bool {
    input.findings.iter().any(|finding| finding.field.starts_with(at))
}

/// An item of `route`. Its weight is [`UNWEIGHED`] if it has none.
fn share(input: &mut Input<'_>, mut map: Fields<'_>, http: bool) -> Share {
    let at = map.at.key("destination");
    let destination = map.map(input, "destination").map(|map| self::destination(input, map));
    if destination.is_none() && !failed_below(input, &at) {
        input.error(at, "is missing; write host: and a Service's name. Its share of the requests is refused");
    }
    let nobody = || Destination { host: "".into(), subset: None, port: None };
    let weight = map.number(input, "weight", 0..=i32::MAX as u64).unwrap_or(UNWEIGHED);
    let mut filters = Vec::new();
    if http && let Some(map) = map.map(input, "headers") {
        filters = filters::headers(input, map);
    }
    map.rest(input);
    Share { destination: destination.unwrap_or_else(nobody), weight, filters }
}

/// More than can be written.
const UNWEIGHED: u32 = u32::MAX;

/// What has no weight has none of the requests, unless it is alone.
fn weigh(input: &mut Input<'_>, map: &Fields<'_>, route: &mut [Share]) {
    if let [only] = route
        && only.weight == UNWEIGHED
    {
        only.weight = 100;
    }
    for share in route.iter_mut().filter(|share| share.weight == UNWEIGHED) {
        share.weight = 0;
    }
    if !route.is_empty() && route.iter().all(|share| share.weight == 0) {
        input.error(map.at.key("route"), "gives no destination a weight above 0: everything is refused; write weights");
    }
}

fn destination(input: &mut Input<'_>, mut map: Fields<'_>) -> Destination {
    let at = map.at.key("host");
    let before = input.findings.len();
    let text = map.text(input, "host").unwrap_or_default();
    let read = match host(text, &input.name.namespace) {
        Ok(host) if !host.contains('*') => host,
        _ => {
            if input.findings.len() == before {
                input.error(at, format!("\"{text}\" is not a host that requests can go to; write a Service's name"));
            }
            text.into()
        }
    };
    let subset = map.text(input, "subset").map(Into::into);
    let mut port = None;
    if let Some(mut map) = map.map(input, "port") {
        port = map.number(input, "number", 1..=65535);
        map.rest(input);
    }
    map.rest(input);
    Destination { host: read, subset, port }
}

#[cfg(test)]
mod tests;
