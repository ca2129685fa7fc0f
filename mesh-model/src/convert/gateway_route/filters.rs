//! Filters of HTTPRoute and GRPCRoute. One that is not understood answers with an error: to leave it out would be to do something else
//! than was asked for.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::{BackendWire, Input, part, reference, text};
use crate::gateway::RouteFilter;
use crate::problem::FieldPath;
use crate::route::{Cors, Filter, HeaderEdit, OriginMatch, PathRewrite, Redirect, Rewrite, TextMatch};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FilterWire {
    #[serde(rename = "type")]
    type_: String,
    request_header_modifier: Option<Value>,
    response_header_modifier: Option<Value>,
    request_redirect: Option<Value>,
    #[serde(rename = "urlRewrite")]
    url_rewrite: Option<Value>,
    request_mirror: Option<Value>,
    cors: Option<Value>,
    extension_ref: Option<ExtensionWire>,
    #[serde(rename = "externalAuth")]
    _external_auth: Option<Value>,
}

#[derive(Deserialize)]
struct ExtensionWire {
    group: Option<String>,
    kind: Option<String>,
    name: Option<String>,
}

#[derive(Deserialize)]
struct HeadersWire {
    set: Option<Vec<HeaderWire>>,
    add: Option<Vec<HeaderWire>>,
    remove: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct HeaderWire {
    name: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RedirectWire {
    scheme: Option<String>,
    hostname: Option<String>,
    path: Option<PathWire>,
    port: Option<i64>,
    status_code: Option<u16>,
}

#[derive(Deserialize)]
struct RewriteWire {
    hostname: Option<String>,
    path: Option<PathWire>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PathWire {
    #[serde(rename = "type")]
    type_: String,
    replace_full_path: Option<String>,
    replace_prefix_match: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MirrorWire {
    backend_ref: Value,
    percent: Option<u32>,
    fraction: Option<FractionWire>,
}

#[derive(Deserialize)]
struct FractionWire {
    numerator: u32,
    denominator: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CorsWire {
    allow_origins: Option<Vec<String>>,
    allow_methods: Option<Vec<String>>,
    allow_headers: Option<Vec<String>>,
    expose_headers: Option<Vec<String>>,
    allow_credentials: Option<bool>,
    max_age: Option<i64>,
}

/// Seconds that a browser may remember an answer, where a filter does not say (`HTTPCORSFilter.maxAge`).
const MAX_AGE: i64 = 5;

/// A rule's filters, and whether some of them cannot be had together.
pub(super) fn of_rule(input: &mut Input<'_>, at: &FieldPath, values: Vec<Value>, grpc: bool) -> (Vec<RouteFilter>, bool) {
    let mut filters = read(input, at, values, grpc);
    let incompatible = has_both(&filters);
    if incompatible {
        let message = "have both a RequestRedirect and a URLRewrite, of which only one may be; remove one of them";
        input.error(at.clone(), format!("{message}; {}", super::ANSWERED));
        filters = vec![RouteFilter::Ready(Filter::Refuse(format!("{at} {message}").into()))];
    }
    (filters, incompatible)
}

/// A backend's filters. CORS is for whole rules, since a browser asks before a backend is chosen.
pub(super) fn of_backend(input: &mut Input<'_>, at: &FieldPath, values: Vec<Value>, grpc: bool) -> Vec<RouteFilter> {
    let mut filters = read(input, at, values, grpc);
    for (i, filter) in filters.iter_mut().enumerate() {
        if matches!(filter, RouteFilter::Ready(Filter::Cors(_))) {
            *filter = refuse(input, &at.index(i), "CORS is done for a rule, not for one of its backends; move it to the rule".into());
        }
    }
    if has_both(&filters) {
        let message = "have both a RequestRedirect and a URLRewrite, of which only one may be; remove one of them";
        filters = vec![refuse(input, at, message.into())];
    }
    filters
}

fn has_both(filters: &[RouteFilter]) -> bool {
    let has = |wanted: fn(&Filter) -> bool| filters.iter().any(|filter| matches!(filter, RouteFilter::Ready(filter) if wanted(filter)));
    has(|filter| matches!(filter, Filter::Redirect(_))) && has(|filter| matches!(filter, Filter::Rewrite(_)))
}

fn refuse(input: &mut Input<'_>, at: &FieldPath, message: String) -> RouteFilter {
    input.error(at.clone(), format!("{message}; {}", super::ANSWERED));
    RouteFilter::Ready(Filter::Refuse(format!("{at}: {message}").into()))
}

fn read(input: &mut Input<'_>, at: &FieldPath, values: Vec<Value>, grpc: bool) -> Vec<RouteFilter> {
    let mut filters = Vec::with_capacity(values.len());
    for (i, value) in values.iter().enumerate() {
        let at = at.index(i);
        let before = input.findings.len();
        let mut extension = None;
        let filter = match part::<FilterWire>(input, &at, value, super::ANSWERED) {
            Some(wire) => {
                extension = extension_of(&wire);
                match filter(input, &at, wire, grpc) {
                    Ok(filter) => filter,
                    Err(message) => Some(refuse(input, &at, message)),
                }
            }
            None => None,
        };
        // An error in a part of it has been told already.
        let broken = super::error_since(input, before).map(|why| match extension {
            Some(to) => RouteFilter::Extension { to, why },
            None => RouteFilter::Ready(Filter::Refuse(why)),
        });
        filters.extend(broken.or(filter));
    }
    filters
}

/// What an ExtensionRef leads to.
fn extension_of(wire: &FilterWire) -> Option<Arc<str>> {
    let to = wire.extension_ref.as_ref().filter(|_| wire.type_ == "ExtensionRef")?;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    Some(format!("{} {} of group \"{}\"", text(&to.kind), text(&to.name), text(&to.group)).into())
}

/// Reads one; `None` if something in it, which is then among the findings, is wrong.
fn filter(input: &mut Input<'_>, at: &FieldPath, wire: FilterWire, grpc: bool) -> Result<Option<RouteFilter>, String> {
    let missing = |field: &str| format!("is a {} without {field}", wire.type_);
    let filter = match wire.type_.as_str() {
        "RequestHeaderModifier" => {
            let value = wire.request_header_modifier.ok_or_else(|| missing("requestHeaderModifier"))?;
            headers(input, &at.key("requestHeaderModifier"), &value).map(Filter::RequestHeaders)
        }
        "ResponseHeaderModifier" => {
            let value = wire.response_header_modifier.ok_or_else(|| missing("responseHeaderModifier"))?;
            headers(input, &at.key("responseHeaderModifier"), &value).map(Filter::ResponseHeaders)
        }
        "RequestMirror" => {
            let value = wire.request_mirror.ok_or_else(|| missing("requestMirror"))?;
            return Ok(mirror(input, &at.key("requestMirror"), &value));
        }
        "RequestRedirect" if !grpc => {
            let value = wire.request_redirect.ok_or_else(|| missing("requestRedirect"))?;
            redirect(input, &at.key("requestRedirect"), &value).map(Filter::Redirect)
        }
        "URLRewrite" if !grpc => {
            let value = wire.url_rewrite.ok_or_else(|| missing("urlRewrite"))?;
            rewrite(input, &at.key("urlRewrite"), &value).map(Filter::Rewrite)
        }
        "CORS" if !grpc => {
            let value = wire.cors.ok_or_else(|| missing("cors"))?;
            cors(input, &at.key("cors"), &value).map(Filter::Cors)
        }
        "ExtensionRef" => {
            return Err("is an ExtensionRef, of which the mesh knows none; remove it, or write a filter of another type".into());
        }
        "ExternalAuth" => return Err("is an ExternalAuth, which is not done: there is no external authorizer to ask".into()),
        other => return Err(format!("\"{other}\" is not a type of filter that is known for this kind of route")),
    };
    Ok(filter.map(RouteFilter::Ready))
}

fn headers(input: &mut Input<'_>, at: &FieldPath, value: &Value) -> Option<HeaderEdit> {
    let wire: HeadersWire = part(input, at, value, super::ANSWERED)?;
    let mut list = |field: &str, wires: Option<Vec<HeaderWire>>| {
        let mut headers: Vec<(Arc<str>, Arc<str>)> = Vec::new();
        for (i, wire) in wires.unwrap_or_default().into_iter().enumerate() {
            let at = at.key(field).index(i);
            match (text::changeable_name(&wire.name), text::header_value(&wire.value)) {
                (Ok(name), Ok(_)) if headers.iter().any(|(other, _)| *other == name) => {
                    input.warn(at, format!("is a second entry for \"{name}\", of which only the first counts; remove it"));
                }
                (Ok(name), Ok(value)) => headers.push((name, value)),
                (Err(message), _) => input.error(at.key("name"), format!("{message}; {}", super::ANSWERED)),
                (_, Err(message)) => input.error(at.key("value"), format!("{message}; {}", super::ANSWERED)),
            }
        }
        headers
    };
    let (set, add) = (list("set", wire.set), list("add", wire.add));
    let mut remove = Vec::new();
    for (i, name) in wire.remove.unwrap_or_default().iter().enumerate() {
        match text::changeable_name(name) {
            Ok(name) => remove.push(name),
            Err(message) => input.error(at.key("remove").index(i), format!("{message}; {}", super::ANSWERED)),
        }
    }
    Some(HeaderEdit { set, add, remove })
}

fn path(input: &mut Input<'_>, at: &FieldPath, wire: PathWire) -> Option<PathRewrite> {
    let read = match (wire.type_.as_str(), wire.replace_full_path, wire.replace_prefix_match) {
        ("ReplaceFullPath", Some(full), _) => text::path(&full).map(PathRewrite::Full),
        ("ReplacePrefixMatch", _, Some(prefix)) => text::path(&prefix).map(PathRewrite::Prefix),
        ("ReplaceFullPath", None, _) => Err("is without replaceFullPath".into()),
        ("ReplacePrefixMatch", ..) => Err("is without replacePrefixMatch".into()),
        (other, ..) => Err(format!("\"{other}\" is not a change of a path; write ReplaceFullPath or ReplacePrefixMatch")),
    };
    read.map_err(|message| input.error(at.clone(), format!("{message}; {}", super::ANSWERED))).ok()
}

fn host(input: &mut Input<'_>, at: &FieldPath, name: Option<String>) -> Option<Arc<str>> {
    text::host(&name?).map_err(|message| input.error(at.key("hostname"), format!("{message}; {}", super::ANSWERED))).ok()
}

fn redirect(input: &mut Input<'_>, at: &FieldPath, value: &Value) -> Option<Redirect> {
    let wire: RedirectWire = part(input, at, value, super::ANSWERED)?;
    let host = host(input, at, wire.hostname);
    let path = wire.path.and_then(|wire| path(input, &at.key("path"), wire));
    if let Some(scheme) = wire.scheme.as_deref().filter(|scheme| !matches!(*scheme, "http" | "https")) {
        input.error(at.key("scheme"), format!("\"{scheme}\" is not a scheme; write http or https"));
    }
    let status = wire.status_code.unwrap_or(302);
    if !matches!(status, 301..=303 | 307 | 308) {
        input.error(at.key("statusCode"), format!("{status} is not a redirection; write 301, 302, 303, 307 or 308"));
    }
    let port = wire.port.map(super::port).transpose();
    let port = port.map_err(|message| input.error(at.key("port"), message)).ok().flatten();
    Some(Redirect { scheme: wire.scheme.map(Arc::from), host, port, path, status })
}

fn rewrite(input: &mut Input<'_>, at: &FieldPath, value: &Value) -> Option<Rewrite> {
    let wire: RewriteWire = part(input, at, value, super::ANSWERED)?;
    let authority = host(input, at, wire.hostname);
    let path = wire.path.and_then(|wire| path(input, &at.key("path"), wire));
    Some(Rewrite { authority, path })
}

fn mirror(input: &mut Input<'_>, at: &FieldPath, value: &Value) -> Option<RouteFilter> {
    let wire: MirrorWire = part(input, at, value, super::ANSWERED)?;
    let share = match (wire.percent, wire.fraction) {
        (None, None) => Ok((100, 100)),
        (Some(percent), None) => Ok((percent, 100)),
        (None, Some(fraction)) => Ok((fraction.numerator, fraction.denominator.unwrap_or(100))),
        (Some(_), Some(_)) => Err("has both percent and fraction, of which only one may be; remove one of them".to_owned()),
    };
    let share =
        share.and_then(
            |(part, whole)| {
                if whole > 0 && part <= whole { Ok((part, whole)) } else { Err(format!("{part} of {whole} is not a share")) }
            },
        );
    let share = share.map_err(|message| input.error(at.clone(), format!("{message}; {}", super::ANSWERED))).ok()?;
    let at = at.key("backendRef");
    let wire: BackendWire = part(input, &at, &wire.backend_ref, super::ANSWERED)?;
    reference(input, &at, wire).map(|to| RouteFilter::Mirror { to, share })
}

fn cors(input: &mut Input<'_>, at: &FieldPath, value: &Value) -> Option<Cors> {
    let wire: CorsWire = part(input, at, value, super::ANSWERED)?;
    let mut list = |field: &str, texts: Option<Vec<String>>, read: fn(&str) -> Result<Arc<str>, String>| {
        let mut values = Vec::new();
        for (i, text) in texts.unwrap_or_default().iter().enumerate() {
            match read(text) {
                Ok(value) => values.push(value),
                Err(message) => input.error(at.key(field).index(i), format!("{message}; {}", super::ANSWERED)),
            }
        }
        values
    };
    let method: fn(&str) -> Result<Arc<str>, String> =
        |text| if text::is_token(text) { Ok(text.into()) } else { Err(format!("\"{}\" is not a method", text.escape_default())) };
    let (methods, headers) =
        (list("allowMethods", wire.allow_methods, method), list("allowHeaders", wire.allow_headers, text::header_name));
    let expose = list("exposeHeaders", wire.expose_headers, text::header_name);
    let mut origins = Vec::new();
    for (i, text) in wire.allow_origins.unwrap_or_default().iter().enumerate() {
        match origin(text) {
            Ok(origin) => origins.push(origin),
            Err(message) => input.error(at.key("allowOrigins").index(i), format!("{message}; {}", super::ANSWERED)),
        }
    }
    let max_age = match u64::try_from(wire.max_age.unwrap_or(MAX_AGE)) {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => {
            input.error(at.key("maxAge"), format!("is not a number of seconds; {}", super::ANSWERED));
            None
        }
    };
    Some(Cors { origins, methods, headers, expose, credentials: wire.allow_credentials.unwrap_or(false), max_age })
}

fn origin(text: &str) -> Result<OriginMatch, String> {
    if text == "*" {
        return Ok(OriginMatch::Any);
    }
    let wrong = || format!("\"{}\" is not an origin; write e.g. https://www.example.com or https://*.example.com", text.escape_default());
    let (scheme, host) = text.split_once("://").ok_or_else(wrong)?;
    let scheme_fine = scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b));
    let fine = |host: &str| !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:[]_".contains(&b));
    match host.strip_prefix('*') {
        _ if !scheme_fine => Err(wrong()),
        // Any host of the scheme.
        Some("") => Ok(OriginMatch::Wildcard { scheme: format!("{scheme}://").into(), suffix: "".into() }),
        Some(suffix) if fine(suffix) => Ok(OriginMatch::Wildcard { scheme: format!("{scheme}://").into(), suffix: suffix.into() }),
        None if fine(host) => Ok(OriginMatch::Text(TextMatch::Exact(text.into()))),
        _ => Err(wrong()),
    }
}
