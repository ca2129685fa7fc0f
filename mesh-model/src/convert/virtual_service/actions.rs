//! What is done instead of forwarding: `redirect`, `directResponse`; and `delegate`, which is not.

use std::sync::Arc;

use k8s_openapi::ByteString;
use serde::Deserialize;

use super::super::Input;
use super::super::fields::Fields;
use super::filters::refuse;
use crate::problem::Severity;
use crate::route::{Filter, PathRewrite, Redirect};
use crate::virtual_service::HttpRoute;

/// How Istio writes what a rule matched in a redirection's path.
const MATCHED: &str = "%PREFIX()%";

pub(super) fn read(input: &mut Input<'_>, map: &mut Fields<'_>, route: &mut HttpRoute) {
    let at = map.at.clone();
    if let Some((at, _)) = map.take("delegate") {
        refuse(input, route, at, "is not supported; write the other object's rules here");
        return;
    }
    let (redirects, responds, forwards) = (map.has("redirect"), map.has("directResponse"), !route.route.is_empty());
    match [redirects, responds, forwards].iter().filter(|said| **said).count() {
        0 if route.filters.iter().any(|filter| matches!(filter, Filter::Refuse(_))) => {}
        0 => refuse(input, route, at.clone(), "says nothing to do; write route, redirect or directResponse"),
        1 => {}
        _ => input.error(at.clone(), "has several of redirect, directResponse and route, of which the first counts; leave one"),
    }
    if let Some(map) = map.map(input, "redirect") {
        let before = input.findings.len();
        let redirect = redirect(input, map);
        act(input, route, before, Filter::Redirect(redirect));
    }
    if let Some(mut map) = map.map(input, "directResponse") {
        let before = input.findings.len();
        let status_at = map.at.key("status");
        let status = map.number(input, "status", 200..=599);
        if status.is_none() && input.findings.len() == before {
            input.error(status_at, "is missing; write a status code");
        }
        let body = map.map(input, "body").map(|map| body(input, map)).unwrap_or_default();
        map.rest(input);
        if !redirects {
            act(input, route, before, Filter::Respond { status: status.unwrap_or(500), body });
        }
    }
    if redirects || responds {
        route.route.clear();
    }
}

/// The filter, or a refusal if there have been errors in it.
fn act(input: &Input<'_>, route: &mut HttpRoute, since: usize, filter: Filter) {
    let error = input.findings.iter().skip(since).find(|finding| finding.severity == Severity::Error);
    route.filters.push(match error {
        Some(error) => Filter::Refuse(format!("{} {}", error.field, error.message).into()),
        None => filter,
    });
}

fn redirect(input: &mut Input<'_>, mut map: Fields<'_>) -> Redirect {
    let at = map.at.clone();
    let path = map.text(input, "uri").map(|uri| match uri.strip_prefix(MATCHED) {
        Some(rest) => PathRewrite::Prefix(rest.into()),
        None => PathRewrite::Full(uri.into()),
    });
    let authority = map.text(input, "authority");
    let scheme = map.text(input, "scheme");
    if scheme.is_some_and(|scheme| !["http", "https"].contains(&scheme)) {
        input.error(at.key("scheme"), "is neither http nor https");
    }
    let mut port = map.number::<u16>(input, "port", 1..=65535);
    match map.text(input, "derivePort") {
        None | Some("FROM_REQUEST_PORT") => {}
        Some("FROM_PROTOCOL_DEFAULT") => {
            port = match scheme {
                Some("http") => Some(80),
                Some("https") => Some(443),
                _ => port,
            }
        }
        Some(other) => {
            input.error(at.key("derivePort"), format!("\"{other}\" is not a way; write FROM_PROTOCOL_DEFAULT or FROM_REQUEST_PORT"))
        }
    }
    let (host, own) = match authority.and_then(|text| text.rsplit_once(':')) {
        // Not the end of an IPv6 address.
        Some((host, number)) if !number.contains(']') => (Some(host), number.parse().ok()),
        _ => (authority, None),
    };
    let status = map.number(input, "redirectCode", 0..=599).filter(|code| *code != 0).unwrap_or(301);
    if ![301, 302, 303, 307, 308].contains(&status) {
        input.error(at.key("redirectCode"), format!("{status} is not a redirection; write 301, 302, 303, 307 or 308"));
    }
    map.rest(input);
    Redirect { scheme: scheme.map(Into::into), host: host.map(Into::into), port: port.or(own), path, status }
}

fn body(input: &mut Input<'_>, mut map: Fields<'_>) -> Arc<[u8]> {
    let text = map.text(input, "string").map(|text| text.as_bytes().into());
    let mut bytes = None;
    if let Some((at, value)) = map.take("bytes") {
        match ByteString::deserialize(value) {
            Ok(ByteString(read)) => bytes = Some(read.into()),
            Err(_) => input.error(at, "is not Base64; write the body as string: if it is text"),
        }
    }
    map.rest(input);
    text.or(bytes).unwrap_or_default()
}
