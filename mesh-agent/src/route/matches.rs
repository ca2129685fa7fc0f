//! Which rule a request has: the first of the table that matches. Pure.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Uri};
use mesh_model::route::{HttpRule, PathMatch, RequestMatch, TextMatch};
use mesh_model::workload::Workload;

/// A request, as rules look at it.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Its target: path and query count.
    pub uri: &'a Uri,
    /// Host without port, in lower case; empty if there is none.
    pub host: &'a str,
    /// Its headers.
    pub headers: &'a HeaderMap,
}

/// The client, as rules look at it.
#[derive(Clone, Copy, Debug)]
pub struct ClientView<'a> {
    /// Labels of its workload.
    pub labels: &'a BTreeMap<String, String>,
    /// Namespace of its workload.
    pub namespace: &'a str,
}

/// The first rule that matches.
pub fn find<'r>(rules: &'r [Arc<HttpRule>], request: RequestView<'_>, client: ClientView<'_>) -> Option<(usize, &'r Arc<HttpRule>)> {
    rules.iter().enumerate().find(|(_, rule)| matches(&rule.matches, request, client))
}

/// The first rule that a request of a workload matches.
pub fn find_for<'r>(rules: &'r [Arc<HttpRule>], request: &Parts, client: &Workload) -> Option<(usize, &'r Arc<HttpRule>)> {
    let host = host_of(&request.uri, &request.headers);
    let view = RequestView { method: &request.method, uri: &request.uri, host: &host, headers: &request.headers };
    find(rules, view, ClientView { labels: &client.labels, namespace: &client.namespace })
}

/// Whether everything that is asked holds.
pub fn matches(asked: &RequestMatch, request: RequestView<'_>, client: ClientView<'_>) -> bool {
    path(asked, request.uri.path())
        && asked.method.as_ref().is_none_or(|method| method.matches(request.method.as_str()))
        && asked.headers.iter().all(|(name, text)| has(request.headers, name, text))
        && !asked.without_headers.iter().any(|(name, text)| has(request.headers, name, text))
        && (asked.query.is_empty() || query(&asked.query, request.uri.query().unwrap_or_default()))
        && asked.scheme.as_ref().is_none_or(|scheme| scheme.matches("http"))
        && asked.authority.as_ref().is_none_or(|authority| authority.matches(request.host))
        && asked.source_namespace.as_ref().is_none_or(|namespace| **namespace == *client.namespace)
        && asked.source_labels.iter().all(|(key, value)| client.labels.get(key) == Some(value))
}

fn path(asked: &RequestMatch, path: &str) -> bool {
    let path = if path.is_empty() { "/" } else { path };
    let start = |start: &str| match asked.ignore_path_case {
        true => path.get(..start.len()).is_some_and(|head| head.eq_ignore_ascii_case(start)),
        false => path.starts_with(start),
    };
    match &asked.path {
        None => true,
        Some(PathMatch::Exact(whole)) if asked.ignore_path_case => whole.eq_ignore_ascii_case(path),
        Some(PathMatch::Exact(whole)) => **whole == *path,
        Some(PathMatch::Prefix(prefix)) => start(prefix),
        Some(PathMatch::Segments(prefix)) => path.strip_prefix(&**prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        Some(PathMatch::Regex(pattern)) => pattern.is_match(path),
    }
}

/// Whether a header is there and its value matches.
fn has(headers: &HeaderMap, name: &str, asked: &TextMatch) -> bool {
    match asked {
        TextMatch::Present => headers.contains_key(name),
        asked => header(headers, name).is_some_and(|value| asked.matches(&value)),
    }
}

/// The value of a header; those of a repeated one joined by commas (RFC 9110, 5.2). What is no UTF-8 matches nothing.
fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<Cow<'h, str>> {
    let text = |value: &'h HeaderValue| std::str::from_utf8(value.as_bytes()).ok();
    let mut values = headers.get_all(name).iter();
    let mut joined = Cow::Borrowed(text(values.next()?)?);
    for value in values {
        let joined = joined.to_mut();
        joined.push(',');
        joined.push_str(text(value)?);
    }
    Some(joined)
}

/// Of a parameter that is repeated the first value counts, as the Gateway API recommends.
fn query(asked: &[(Arc<str>, TextMatch)], query: &str) -> bool {
    asked.iter().all(|(name, text)| {
        let first = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| *key == **name);
        first.is_some_and(|(_, value)| text.matches(&value))
    })
}

/// Host of a request without its port, in lower case: of the target (`:authority`, absolute form) before the header.
pub fn host_of(uri: &Uri, headers: &HeaderMap) -> String {
    let authority = match uri.authority() {
        Some(authority) => authority.as_str(),
        None => headers.get(http::header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default(),
    };
    without_port(authority).to_ascii_lowercase()
}

/// `host:port` without the port; IPv6 addresses keep their brackets.
pub fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && (!host.contains(':') || host.ends_with(']')) => host,
        _ => authority,
    }
}

#[cfg(test)]
mod tests;
