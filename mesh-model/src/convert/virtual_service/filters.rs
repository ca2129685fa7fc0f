//! What is done with requests on their way: `corsPolicy`, `fault`, `headers`, `rewrite`, `mirror`, `timeout`. In Envoy's order.

use std::sync::Arc;

use super::super::Input;
use super::super::fields::Fields;
use super::{destination, matches, retry};
use crate::problem::FieldPath;
use crate::route::{Cors, Fault, Filter, HeaderEdit, OriginMatch, PathRewrite, Rewrite, Substitution, TextMatch};
use crate::virtual_service::HttpRoute;

/// Of so many requests.
const WHOLE: u32 = 1_000_000;

pub(super) fn read(input: &mut Input<'_>, map: &mut Fields<'_>, route: &mut HttpRoute) {
    if let Some(map) = map.map(input, "corsPolicy") {
        let cors = cors(input, map);
        route.filters.push(Filter::Cors(cors));
    }
    if let Some(map) = map.map(input, "fault") {
        fault(input, map, route);
    }
    if let Some(map) = map.map(input, "headers") {
        let edits = headers(input, map);
        route.filters.extend(edits);
    }
    if let Some(map) = map.map(input, "rewrite") {
        rewrite(input, map, route);
    }
    let percentage = percentage(input, map, "mirrorPercentage");
    // Two older names for it.
    let old = map.number(input, "mirrorPercent", 0..=100).or_else(|| map.number(input, "mirror_percent", 0..=100));
    let share = percentage.or(old.map(|percent: u32| percent * (WHOLE / 100))).unwrap_or(WHOLE);
    if let Some(map) = map.map(input, "mirror") {
        let to = destination(input, map);
        route.mirrors.push((to, (share, WHOLE)));
    }
    for mut map in map.maps(input, "mirrors") {
        let share = self::percentage(input, &mut map, "percentage").unwrap_or(WHOLE);
        match map.map(input, "destination") {
            Some(to) => {
                let to = destination(input, to);
                route.mirrors.push((to, (share, WHOLE)));
            }
            None => input.error(map.at.key("destination"), "is missing; write host: and a Service's name"),
        }
        map.rest(input);
    }
    route.timeout = map.duration(input, "timeout").filter(|time| !time.is_zero());
    if let Some(map) = map.map(input, "retries") {
        retry::read(input, map, route);
    }
}

/// `percentage: {value: …}`, in millionths.
fn percentage(input: &mut Input<'_>, map: &mut Fields<'_>, key: &str) -> Option<u32> {
    let mut map = map.map(input, key)?;
    let before = input.findings.len();
    let value = map.decimal(input, "value", 0.0..=100.0);
    map.rest(input);
    match value {
        // In range; as protobuf reads it, nothing is 0.
        Some(value) => Some((value * f64::from(WHOLE / 100)).round() as u32),
        None if input.findings.len() > before => None,
        None => Some(0),
    }
}

fn fault(input: &mut Input<'_>, mut map: Fields<'_>, route: &mut HttpRoute) {
    if let Some(mut map) = map.map(input, "delay") {
        let at = map.at.clone();
        let before = input.findings.len();
        let share = fault_share(input, &mut map);
        map.unsupported(input, "exponentialDelay", "is not supported; write fixedDelay");
        let time = map.positive(input, "fixedDelay");
        map.rest(input);
        match time {
            Some(time) if share > 0 => route.filters.push(Filter::Delay { time, share: (share, WHOLE) }),
            None if input.findings.len() == before => input.error(at.key("fixedDelay"), "is missing; write how long requests wait"),
            _ => {}
        }
    }
    if let Some(mut map) = map.map(input, "abort") {
        let at = map.at.clone();
        let before = input.findings.len();
        let share = fault_share(input, &mut map);
        let http = map.number(input, "httpStatus", 200..=599).map(Fault::Http);
        let grpc_at = at.key("grpcStatus");
        let grpc = map.text(input, "grpcStatus").and_then(|text| {
            let code = grpc_code(text);
            if code.is_none() {
                input.error(grpc_at, format!("\"{text}\" is not a status of gRPC; write one such as UNAVAILABLE"));
            }
            code.map(Fault::Grpc)
        });
        if let Some((at, _)) = map.take("http2Error") {
            input.error(at, "is not supported; write httpStatus or grpcStatus");
        }
        map.rest(input);
        match http.or(grpc) {
            Some(fault) if share > 0 => route.filters.push(Filter::Abort { fault, share: (share, WHOLE) }),
            None if input.findings.len() == before => input.error(at, "says no status; write httpStatus or grpcStatus"),
            _ => {}
        }
    }
    map.rest(input);
}

fn fault_share(input: &mut Input<'_>, map: &mut Fields<'_>) -> u32 {
    let old = map.number(input, "percent", 0..=100).map(|percent: u32| percent * (WHOLE / 100));
    let said = map.has("percentage");
    let share = percentage(input, map, "percentage").or(old);
    if !said && old.is_none() {
        input.warn(map.at.key("percentage"), "is missing, which means no request; write percentage: {value: 100} for all");
    }
    share.unwrap_or(0)
}

fn grpc_code(text: &str) -> Option<u16> {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    let by_name = NAMES.iter().position(|name| *name == text).and_then(|code| u16::try_from(code).ok());
    by_name.or_else(|| text.parse().ok().filter(|code| usize::from(*code) < NAMES.len()))
}

fn cors(input: &mut Input<'_>, mut map: Fields<'_>) -> Cors {
    let mut origins = Vec::new();
    let mut any_or = |text: TextMatch| match text {
        TextMatch::Exact(all) if *all == *"*" => origins.push(OriginMatch::Any),
        other => origins.push(OriginMatch::Text(other)),
    };
    for (at, value) in map.list(input, "allowOrigins") {
        match matches::text(input, at.clone(), value) {
            Some(TextMatch::Present) => input.error(at, "says nothing; write exact, prefix or regex"),
            // One that is not understood lets nobody in.
            Some(text) if !input.findings.iter().any(|finding| finding.field.starts_with(&at)) => any_or(text),
            _ => {}
        }
    }
    for (_, text) in map.texts(input, "allowOrigin") {
        any_or(TextMatch::Exact(text.into()));
    }
    let mut texts = |input: &mut Input<'_>, key: &str| map.texts(input, key).into_iter().map(|(_, text)| Arc::from(text)).collect();
    let (methods, headers, expose) = (texts(input, "allowMethods"), texts(input, "allowHeaders"), texts(input, "exposeHeaders"));
    let cors = Cors {
        origins,
        methods,
        headers,
        expose,
        credentials: map.boolean(input, "allowCredentials").unwrap_or(false),
        max_age: map.duration(input, "maxAge"),
    };
    map.unsupported(input, "unmatchedPreflights", "is not supported: preflights of other origins go on to the backend");
    map.rest(input);
    cors
}

/// `headers`, of a rule or of one of its destinations.
pub(super) fn headers(input: &mut Input<'_>, mut map: Fields<'_>) -> Vec<Filter> {
    let mut filters = Vec::new();
    let mut host = None;
    if let Some(map) = map.map(input, "request") {
        let edit = edit(input, map, Some(&mut host));
        filters.push(Filter::RequestHeaders(edit));
    }
    if let Some(map) = map.map(input, "response") {
        let edit = edit(input, map, None);
        filters.push(Filter::ResponseHeaders(edit));
    }
    if host.is_some() {
        filters.push(Filter::Rewrite(Rewrite { authority: host, path: None }));
    }
    map.rest(input);
    filters
}

/// `host` takes what the request's host is set to, which is no header like the others.
fn edit(input: &mut Input<'_>, mut map: Fields<'_>, mut host: Option<&mut Option<Arc<str>>>) -> HeaderEdit {
    let mut edit = HeaderEdit::default();
    for (key, to) in [("set", &mut edit.set), ("add", &mut edit.add)] {
        let at = map.at.key(key);
        for (name, value) in map.labels(input, key).unwrap_or_default() {
            let at = at.key(&name);
            if !value.bytes().all(|b| b == b'\t' || (b >= b' ' && b != 0x7f)) {
                input.error(at, "is not a value that a header may have");
                continue;
            }
            if value.matches('%').count() > 1 {
                input.warn(at.clone(), "is sent as it is written: Envoy's variables between % are not supported");
            }
            if let Some(host) = &mut host
                && key == "set"
                && (name.eq_ignore_ascii_case("host") || name == ":authority")
            {
                **host = Some(value.into());
                continue;
            }
            match matches::header_name(&name) {
                Ok(name) => to.push((name, value.into())),
                Err(message) => input.error(at, message),
            }
        }
    }
    for (at, name) in map.texts(input, "remove") {
        match matches::header_name(name) {
            Ok(name) => edit.remove.push(name),
            Err(message) => input.error(at, message),
        }
    }
    map.rest(input);
    edit
}

fn rewrite(input: &mut Input<'_>, mut map: Fields<'_>, route: &mut HttpRoute) {
    let authority = map.text(input, "authority").map(Arc::from);
    let mut path = map.text(input, "uri").map(|uri| PathRewrite::Prefix(uri.into()));
    let at = map.at.key("uriRegexRewrite");
    if let Some(mut map) = map.map(input, "uriRegexRewrite") {
        if path.is_some() {
            input.error(at.clone(), "stands beside uri, of which only one may be; leave one out");
        }
        let pattern = map.text(input, "match").unwrap_or_default();
        let by = map.text(input, "rewrite").unwrap_or_default();
        match Substitution::new(pattern, by) {
            Ok(substitution) => path = Some(PathRewrite::Regex(substitution)),
            Err(message) => refuse(input, route, at.key("match"), message),
        }
        map.rest(input);
    }
    map.rest(input);
    if authority.is_some() || path.is_some() {
        route.rewrite = Some(Rewrite { authority, path });
    }
}

/// An error without whose mending the rule's requests are answered with 500.
pub(super) fn refuse(input: &mut Input<'_>, route: &mut HttpRoute, at: FieldPath, message: impl Into<String>) {
    let message = message.into();
    route.filters.push(Filter::Refuse(format!("{at} {message}").into()));
    input.error(at, format!("{message}; the rule's requests are answered with 500 until it is mended"));
}
