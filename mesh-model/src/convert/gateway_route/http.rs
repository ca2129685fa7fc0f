//! Rules of HTTPRoute: matches, timeouts, retries and sessions.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::{Input, backends, duration, fault, filters, part, text};
use crate::convert::typed;
use crate::gateway::{RequestRule, RouteFilter, RouteMatch};
use crate::problem::FieldPath;
use crate::route::{Filter, PathMatch, Pattern, RequestMatch, RetryOn, RetryPolicy, Session, SessionBy, TextMatch};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuleWire {
    name: Option<String>,
    matches: Option<Vec<Value>>,
    filters: Option<Vec<Value>>,
    backend_refs: Option<Vec<Value>>,
    timeouts: Option<Value>,
    retry: Option<Value>,
    session_persistence: Option<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MatchWire {
    path: Option<PathWire>,
    headers: Option<Vec<HeaderWire>>,
    query_params: Option<Vec<HeaderWire>>,
    method: Option<String>,
}

#[derive(Deserialize)]
struct PathWire {
    #[serde(rename = "type")]
    type_: Option<String>,
    value: Option<String>,
}

/// Condition on a header or a query parameter.
#[derive(Deserialize)]
pub(super) struct HeaderWire {
    #[serde(rename = "type")]
    type_: Option<String>,
    name: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TimeoutsWire {
    request: Option<String>,
    backend_request: Option<String>,
}

#[derive(Deserialize)]
struct RetryWire {
    codes: Option<Vec<i64>>,
    attempts: Option<i64>,
    backoff: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SessionWire {
    #[serde(rename = "type")]
    type_: Option<String>,
    session_name: Option<String>,
    absolute_timeout: Option<String>,
    idle_timeout: Option<String>,
    cookie_config: Option<CookieWire>,
    cookie: Option<CookieWire>,
    header: Option<SessionHeaderWire>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct CookieWire {
    name: Option<String>,
    path: Option<String>,
    lifetime_type: Option<String>,
}

#[derive(Deserialize)]
struct SessionHeaderWire {
    name: Option<String>,
}

/// Retries where a rule asks for some and does not say how many.
const ATTEMPTS: u32 = 1;

pub(super) fn rule(input: &mut Input<'_>, at: &FieldPath, index: usize, value: &Value) -> RequestRule {
    let before = input.findings.len();
    let Some(wire) = part::<RuleWire>(input, at, value, super::ANSWERED) else { return lost(input, before) };
    let matches = matches(input, &at.key("matches"), wire.matches, r#match);
    let broken = input.findings.len();
    let (timeout, try_timeout) = wire.timeouts.map_or((None, None), |value| timeouts(input, &at.key("timeouts"), &value));
    let retry = wire.retry.and_then(|value| retry(input, &at.key("retry"), &value));
    let session = wire.session_persistence.and_then(|value| session(input, &at.key("sessionPersistence"), index, &value, super::ANSWERED));
    let refs = backends(input, &at.key("backendRefs"), wire.backend_refs, |input, at, values| {
        filters::of_backend(input, at, values.unwrap_or_default(), false)
    });
    let refused = super::error_since(input, broken);
    let (mut filters, incompatible) = filters::of_rule(input, &at.key("filters"), wire.filters.unwrap_or_default(), false);
    prefix_needs_one(input, at, &matches, &mut filters);
    if let Some(why) = refused {
        filters.insert(0, RouteFilter::Ready(Filter::Refuse(why)));
    }
    RequestRule {
        name: wire.name.map(Arc::from),
        matches,
        filters,
        backends: refs,
        timeout,
        try_timeout,
        retry,
        session,
        fault: fault(input, before, incompatible),
    }
}

/// Stands for a rule of which nothing is understood: what no other rule takes may have been meant by it.
pub(super) fn lost(input: &Input<'_>, before: usize) -> RequestRule {
    let fault = fault(input, before, false);
    let refused = fault.as_ref().map(|fault| fault.message.clone());
    RequestRule {
        name: None,
        matches: vec![RouteMatch { refused, ..RouteMatch::default() }],
        filters: Vec::new(),
        backends: Vec::new(),
        timeout: None,
        try_timeout: None,
        retry: None,
        session: None,
        fault,
    }
}

/// The matches of a rule; without any it has one for all requests. What is not understood of one is its own matter.
pub(super) fn matches(
    input: &mut Input<'_>,
    at: &FieldPath,
    values: Option<Vec<Value>>,
    read: impl Fn(&mut Input<'_>, &FieldPath, &Value) -> RouteMatch,
) -> Vec<RouteMatch> {
    let values = values.unwrap_or_default();
    if values.is_empty() {
        return vec![RouteMatch::default()];
    }
    let mut matches = Vec::with_capacity(values.len());
    for (i, value) in values.iter().enumerate() {
        let before = input.findings.len();
        let found = read(input, &at.index(i), value);
        let refused = super::error_since(input, before);
        matches.push(RouteMatch { refused, ..found });
    }
    matches
}

fn r#match(input: &mut Input<'_>, at: &FieldPath, value: &Value) -> RouteMatch {
    let (wire, unknown) = match typed::<MatchWire>(value) {
        Ok(read) => read,
        Err(finding) => {
            input.error(finding.field.below(at), finding.message);
            return RouteMatch::default();
        }
    };
    for field in unknown {
        input.error(field.below(at), "is not a part of a match that is known here; check its spelling and place");
    }
    let mut matches = RequestMatch::default();
    if let Some(wire) = wire.path {
        match path(&wire) {
            Ok(path) => matches.path = Some(path),
            Err(message) => input.error(at.key("path"), message),
        }
    }
    if let Some(method) = wire.method {
        if text::is_token(&method) {
            matches.method = Some(TextMatch::Exact(method.into()));
        } else {
            input.error(at.key("method"), format!("\"{}\" is not a method; write e.g. GET", method.escape_default()));
        }
    }
    matches.headers = headers(input, &at.key("headers"), wire.headers);
    let at = at.key("queryParams");
    for (i, wire) in wire.query_params.unwrap_or_default().into_iter().enumerate() {
        let name: Arc<str> = wire.name.as_str().into();
        if name.is_empty() {
            input.error(at.index(i).key("name"), "is empty; write the parameter's name");
        } else {
            condition(input, &at.index(i), &mut matches.query, name, wire);
        }
    }
    RouteMatch { matches, ..RouteMatch::default() }
}

fn path(wire: &PathWire) -> Result<PathMatch, String> {
    let value = wire.value.as_deref().unwrap_or("/");
    let kind = wire.type_.as_deref().unwrap_or("PathPrefix");
    if matches!(kind, "Exact" | "PathPrefix") && !value.starts_with('/') {
        return Err(format!("\"{}\" is not a path; begin it with /", value.escape_default()));
    }
    match kind {
        "Exact" => Ok(PathMatch::Exact(text::path(value)?)),
        "PathPrefix" => Ok(PathMatch::Segments(text::path(value.strip_suffix('/').unwrap_or(value))?)),
        "RegularExpression" => Pattern::new(value).map(PathMatch::Regex),
        other => Err(format!("\"{other}\" is not a type of match; write Exact, PathPrefix or RegularExpression")),
    }
}

/// Conditions on headers, by their names in lower case.
pub(super) fn headers(input: &mut Input<'_>, at: &FieldPath, wires: Option<Vec<HeaderWire>>) -> Vec<(Arc<str>, TextMatch)> {
    let mut headers = Vec::new();
    for (i, wire) in wires.unwrap_or_default().into_iter().enumerate() {
        match text::header_name(&wire.name) {
            Ok(name) => condition(input, &at.index(i), &mut headers, name, wire),
            Err(message) => input.error(at.index(i).key("name"), message),
        }
    }
    headers
}

/// Of several conditions on one name the first counts.
fn condition(input: &mut Input<'_>, at: &FieldPath, all: &mut Vec<(Arc<str>, TextMatch)>, name: Arc<str>, wire: HeaderWire) {
    if all.iter().any(|(other, _)| *other == name) {
        input.warn(at.clone(), format!("is a second condition on \"{name}\", of which only the first counts; remove it"));
        return;
    }
    let value = match wire.type_.as_deref() {
        None | Some("Exact") => Ok(TextMatch::Exact(wire.value.into())),
        Some("RegularExpression") => Pattern::new(&wire.value).map(TextMatch::Regex).map_err(|message| (at.key("value"), message)),
        Some(other) => Err((at.key("type"), format!("\"{other}\" is not a type of match; write Exact or RegularExpression"))),
    };
    match value {
        Ok(value) => all.push((name, value)),
        Err((at, message)) => input.error(at, message),
    }
}

/// A path whose matched beginning is replaced needs a beginning that is known.
fn prefix_needs_one(input: &mut Input<'_>, at: &FieldPath, matches: &[RouteMatch], filters: &mut [RouteFilter]) {
    use crate::route::PathRewrite::Prefix;
    let unknown =
        matches.iter().filter(|found| found.refused.is_none()).any(|found| matches!(found.matches.path, Some(PathMatch::Regex(_))));
    for (i, filter) in filters.iter_mut().enumerate().filter(|_| unknown) {
        let replaces = match filter {
            RouteFilter::Ready(Filter::Rewrite(rewrite)) => matches!(rewrite.path, Some(Prefix(_))),
            RouteFilter::Ready(Filter::Redirect(redirect)) => matches!(redirect.path, Some(Prefix(_))),
            _ => false,
        };
        if replaces {
            let message = "replaces a prefix, but the rule matches a path by a pattern, which has none; match it by PathPrefix";
            input.error(at.key("filters").index(i), format!("{message}; {}", super::ANSWERED));
            *filter = RouteFilter::Ready(Filter::Refuse(message.into()));
        }
    }
}

fn timeouts(input: &mut Input<'_>, at: &FieldPath, value: &Value) -> (Option<Duration>, Option<Duration>) {
    let Some(wire) = part::<TimeoutsWire>(input, at, value, super::ANSWERED) else { return (None, None) };
    let mut read = |field: &str, text: Option<String>| {
        let time = self::time(input, &at.key(field), text, super::ANSWERED)?;
        // Zero is no limit.
        (!time.is_zero()).then_some(time)
    };
    let (request, attempt) = (read("request", wire.request), read("backendRequest", wire.backend_request));
    if let (Some(request), Some(attempt)) = (request, attempt)
        && attempt > request
    {
        input.warn(at.key("backendRequest"), "is longer than the whole request may take, so that it never counts");
    }
    (request, attempt)
}

fn time(input: &mut Input<'_>, at: &FieldPath, text: Option<String>, effect: &str) -> Option<Duration> {
    match duration::parse(&text?) {
        Ok(time) => Some(time),
        Err(message) => {
            input.error(at.clone(), format!("{message}; {effect}"));
            None
        }
    }
}

fn retry(input: &mut Input<'_>, at: &FieldPath, value: &Value) -> Option<RetryPolicy> {
    let wire: RetryWire = part(input, at, value, super::ANSWERED)?;
    let mut statuses = Vec::new();
    for (i, code) in wire.codes.unwrap_or_default().into_iter().enumerate() {
        match u16::try_from(code) {
            Ok(code) if (400..600).contains(&code) => statuses.push(code),
            _ => input.error(at.key("codes").index(i), format!("{code} is not an error's code; write one from 400 to 599")),
        }
    }
    statuses.sort_unstable();
    statuses.dedup();
    let attempts = match wire.attempts.map(u32::try_from) {
        None => ATTEMPTS,
        Some(Ok(attempts)) => attempts,
        Some(Err(_)) => {
            input.error(at.key("attempts"), "is not a number of retries; write 1 or more");
            return None;
        }
    };
    let backoff = time(input, &at.key("backoff"), wire.backoff, super::ANSWERED);
    // What never reached an application, or was lost on the way, is tried again too (HTTPRouteRetry: "SHOULD").
    let on = RetryOn { statuses, connect_failure: true, refused_stream: true, reset: true, ..RetryOn::default() };
    Some(RetryPolicy { attempts, backoff, on })
}

/// Session persistence, in the spelling of 1.6 (`sessionName`, `cookieConfig`) or the later one. `effect`: what follows of a mistake.
pub(in crate::convert) fn session(input: &mut Input<'_>, at: &FieldPath, rule: usize, value: &Value, effect: &str) -> Option<Session> {
    let wire: SessionWire = part(input, at, value, effect)?;
    if wire.idle_timeout.is_some() {
        input.warn(at.key("idleTimeout"), "is not done: nothing remembers when a session was last used; write absoluteTimeout");
    }
    let absolute_timeout = time(input, &at.key("absoluteTimeout"), wire.absolute_timeout, effect).filter(|time| !time.is_zero());
    let named = |name: Option<String>| name.or(wire.session_name.clone()).filter(|name| !name.is_empty());
    let by = match wire.type_.as_deref() {
        None | Some("Cookie") => {
            let old = wire.cookie.is_none();
            let cookie = wire.cookie.or(wire.cookie_config).unwrap_or_default();
            let at = at.key(if old { "cookieConfig" } else { "cookie" });
            // Rules that share a host must not overwrite each other's.
            let name = named(cookie.name).unwrap_or_else(|| format!("nodemesh-{:08x}", number(&input.name.to_string(), rule)));
            if !text::is_token(&name) {
                input.error(at.key("name"), format!("\"{}\" is not a cookie's name", name.escape_default()));
            }
            let path = cookie.path.unwrap_or_else(|| "/".into());
            if !path.starts_with('/') || path.contains(';') || text::header_value(&path).is_err() {
                input.error(at.key("path"), format!("\"{}\" is not a cookie's path", path.escape_default()));
            }
            let permanent = match cookie.lifetime_type.as_deref() {
                None | Some("Session") => false,
                Some("Permanent") if absolute_timeout.is_some() => true,
                Some("Permanent") => {
                    input.warn(at.key("lifetimeType"), "is Permanent without an absoluteTimeout to say how long; it ends with the browser");
                    false
                }
                Some(other) => {
                    input.error(at.key("lifetimeType"), format!("\"{other}\" is not a lifetime; write Session or Permanent"));
                    false
                }
            };
            SessionBy::Cookie { name: name.into(), path: path.into(), permanent }
        }
        Some("Header") => {
            let name = named(wire.header.and_then(|header| header.name)).unwrap_or_else(|| "x-session".into());
            match text::changeable_name(&name) {
                Ok(name) => SessionBy::Header(name),
                Err(message) => {
                    input.error(at.key("header").key("name"), message);
                    return None;
                }
            }
        }
        Some(other) => {
            input.error(at.key("type"), format!("\"{other}\" is not a type of session; write Cookie or Header"));
            return None;
        }
    };
    Some(Session { by, absolute_timeout })
}

/// The same for the same rule, on every node (FNV-1a).
fn number(route: &str, rule: usize) -> u32 {
    let bytes = route.bytes().chain(rule.to_string().into_bytes());
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
