//! `match` of a rule. One that cannot be read in full is left out: it must not become wider than it was meant.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde_json::Value;

use super::super::Input;
use super::super::fields::Fields;
use super::gateways;
use crate::problem::{FieldPath, Severity};
use crate::route::{PathMatch, Pattern, RequestMatch, TextMatch};
use crate::virtual_service::{ConnectionMatch, HttpMatch};

const EFFECT: &str = "the match is not used, so that the next one or the next rule has its requests";

/// Whether errors have been found since. Says what follows from them.
pub(super) fn broken(input: &mut Input<'_>, since: usize) -> bool {
    let mut broken = false;
    for finding in input.findings.iter_mut().skip(since).filter(|finding| finding.severity == Severity::Error) {
        finding.message = format!("{}; {EFFECT}", finding.message);
        broken = true;
    }
    broken
}

/// `None` if it is for gateways alone.
pub(super) fn http(input: &mut Input<'_>, mut map: Fields<'_>) -> Option<HttpMatch> {
    let for_mesh = gateways(input, &mut map).unwrap_or(true);
    let mut one = HttpMatch { name: map.text(input, "name").map(Into::into), ..HttpMatch::default() };
    one.port = map.number(input, "port", 1..=65535);
    one.request = RequestMatch {
        path: take(input, &mut map, "uri").and_then(|uri| match uri {
            TextMatch::Exact(path) => Some(PathMatch::Exact(path)),
            TextMatch::Prefix(start) => Some(PathMatch::Prefix(start)),
            TextMatch::Regex(pattern) => Some(PathMatch::Regex(pattern)),
            TextMatch::Present => None,
        }),
        ignore_path_case: map.boolean(input, "ignoreUriCase").unwrap_or(false),
        method: take(input, &mut map, "method"),
        headers: named(input, &mut map, "headers", header_name),
        without_headers: named(input, &mut map, "withoutHeaders", header_name),
        query: named(input, &mut map, "queryParams", |name| Ok(name.into())),
        scheme: take(input, &mut map, "scheme"),
        authority: take(input, &mut map, "authority"),
        source_labels: map.labels(input, "sourceLabels").unwrap_or_default(),
        source_namespace: map.text(input, "sourceNamespace").map(Into::into),
    };
    map.unsupported(input, "statPrefix", "is not supported: metrics carry the rule's name");
    unknown(input, map);
    for_mesh.then_some(one)
}

pub(super) fn connection(input: &mut Input<'_>, mut map: Fields<'_>, tls: bool) -> Option<ConnectionMatch> {
    let for_mesh = gateways(input, &mut map).unwrap_or(true);
    let mut one = ConnectionMatch { port: map.number(input, "port", 1..=65535), ..ConnectionMatch::default() };
    if tls {
        let at = map.at.key("sniHosts");
        one.hosts = map.texts(input, "sniHosts").into_iter().map(|(_, host)| host.to_ascii_lowercase().into()).collect();
        if one.hosts.is_empty() {
            input.error(at, "is missing; write the server names");
        } else if one.hosts.iter().any(|host| **host == *"*") {
            one.hosts.clear();
        }
    }
    for (at, text) in map.texts(input, "destinationSubnets") {
        match subnet(text) {
            Some(net) => one.scope.destinations.push(net),
            None => input.error(at, format!("\"{text}\" is neither an IP address nor a subnet; write it as 10.96.0.0/16")),
        }
    }
    one.scope.source_labels = map.labels(input, "sourceLabels").unwrap_or_default();
    one.scope.source_namespace = map.text(input, "sourceNamespace").map(Into::into);
    if let Some((at, _)) = map.take("sourceSubnet") {
        input.error(at, "is not supported, as in Istio; write sourceLabels or sourceNamespace");
    }
    unknown(input, map);
    for_mesh.then_some(one)
}

fn subnet(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

/// What is not known may narrow the match.
fn unknown(input: &mut Input<'_>, map: Fields<'_>) {
    let before = input.findings.len();
    map.rest(input);
    for finding in input.findings.iter_mut().skip(before) {
        finding.severity = Severity::Error;
        finding.message = "is not a field of a match that is known; check its spelling and place".into();
    }
}

fn take(input: &mut Input<'_>, map: &mut Fields<'_>, key: &str) -> Option<TextMatch> {
    let (at, value) = map.take(key)?;
    text(input, at, value).filter(|read| *read != TextMatch::Present)
}

fn named(
    input: &mut Input<'_>,
    map: &mut Fields<'_>,
    key: &str,
    name: impl Fn(&str) -> Result<Arc<str>, String>,
) -> Vec<(Arc<str>, TextMatch)> {
    let Some((at, value)) = map.take(key) else { return Vec::new() };
    let Some(mut all) = Fields::of(input, at.clone(), value) else { return Vec::new() };
    let mut read = Vec::new();
    for key in value.as_object().into_iter().flat_map(|all| all.keys()) {
        // Nothing below a name means, as an empty mapping does, that it is there.
        let by = match all.take(key) {
            Some((at, value)) => text(input, at, value),
            None => Some(TextMatch::Present),
        };
        match name(key) {
            Ok(name) => read.extend(by.map(|by| (name, by))),
            Err(message) => input.error(at.key(key), message),
        }
    }
    read
}

/// `exact`, `prefix` or `regex`; present if it says nothing.
pub(super) fn text(input: &mut Input<'_>, at: FieldPath, value: &Value) -> Option<TextMatch> {
    let mut map = Fields::of(input, at, value)?;
    let at = map.at.clone();
    let exact = map.text(input, "exact").map(|text| TextMatch::Exact(text.into()));
    let prefix = map.text(input, "prefix").map(|text| TextMatch::Prefix(text.into()));
    let mut regex = None;
    if let Some(pattern) = map.text(input, "regex") {
        match Pattern::new(pattern) {
            Ok(pattern) => regex = Some(TextMatch::Regex(pattern)),
            Err(message) => input.error(at.key("regex"), message),
        }
    }
    unknown(input, map);
    let mut said: Vec<_> = exact.into_iter().chain(prefix).chain(regex).collect();
    if said.len() > 1 {
        input.error(at, "says several of exact, prefix and regex; leave one");
    }
    Some(said.pop().unwrap_or(TextMatch::Present))
}

/// A header's name in lower case.
pub(super) fn header_name(name: &str) -> Result<Arc<str>, String> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || !name.bytes().all(token) {
        return Err(format!("\"{name}\" is not a header's name"));
    }
    Ok(name.to_ascii_lowercase().into())
}
