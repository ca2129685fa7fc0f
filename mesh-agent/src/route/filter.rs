//! What is changed in a request and its response, and which requests are answered at once. Pure.

use http::header::{self, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Uri};
use mesh_model::route::{HeaderEdit, PathMatch, PathRewrite, Redirect, RequestMatch, Rewrite};

use super::matches::without_port;

/// Why a change is impossible: the result would be no valid request. The answer is then 500.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Impossible(String);

/// Changes headers: removed, then set, then added.
pub fn edit(headers: &mut HeaderMap, edit: &HeaderEdit) {
    for name in &edit.remove {
        headers.remove(&**name);
    }
    let pair = |(name, value): &(std::sync::Arc<str>, std::sync::Arc<str>)| {
        Some((HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_bytes(value.as_bytes()).ok()?))
    };
    for (name, value) in edit.set.iter().filter_map(pair) {
        headers.insert(name, value);
    }
    for (name, value) in edit.add.iter().filter_map(pair) {
        headers.append(name, value);
    }
}

/// Changes headers of a request, where `host` and `:authority` mean its authority.
pub fn edit_request(uri: &mut Uri, headers: &mut HeaderMap, change: &HeaderEdit) -> Result<(), Impossible> {
    edit(headers, change);
    let is_host = |name: &str| matches!(name, "host" | ":authority");
    match change.set.iter().chain(&change.add).find(|(name, _)| is_host(name)) {
        Some((_, host)) => set_authority(uri, headers, host),
        None => Ok(()),
    }
}

/// Rewrites host and path.
pub fn rewrite(uri: &mut Uri, headers: &mut HeaderMap, rewrite: &Rewrite, matched: &RequestMatch) -> Result<(), Impossible> {
    if let Some(path) = &rewrite.path {
        let path = rewritten(uri.path(), path, matched.path.as_ref());
        let target = match uri.query() {
            Some(query) => format!("{path}?{query}"),
            None => path,
        };
        let target = PathAndQuery::try_from(target).map_err(|error| Impossible(format!("the rewritten path is invalid: {error}")))?;
        let mut parts = uri.clone().into_parts();
        parts.path_and_query = Some(target);
        *uri = Uri::from_parts(parts).map_err(|error| Impossible(error.to_string()))?;
    }
    match &rewrite.authority {
        Some(authority) => set_authority(uri, headers, authority),
        None => Ok(()),
    }
}

/// Sets the host wherever the request names it.
fn set_authority(uri: &mut Uri, headers: &mut HeaderMap, host: &str) -> Result<(), Impossible> {
    let wrong = |error: &dyn std::fmt::Display| Impossible(format!("\"{host}\" is no host: {error}"));
    let value = HeaderValue::from_str(host).map_err(|error| wrong(&error))?;
    if uri.authority().is_some() {
        let mut parts = uri.clone().into_parts();
        parts.authority = Some(Authority::try_from(host).map_err(|error| wrong(&error))?);
        *uri = Uri::from_parts(parts).map_err(|error| wrong(&error))?;
    }
    if uri.authority().is_none() || headers.contains_key(http::header::HOST) {
        headers.insert(http::header::HOST, value);
    }
    Ok(())
}

/// The path after a change. Of a prefix of segments the slashes are kept single (Gateway API's table of `ReplacePrefixMatch`).
fn rewritten(path: &str, change: &PathRewrite, matched: Option<&PathMatch>) -> String {
    match change {
        PathRewrite::Full(whole) => whole.to_string(),
        PathRewrite::Regex(substitution) => substitution.apply(path),
        PathRewrite::Prefix(by) => match matched {
            Some(PathMatch::Segments(prefix)) => {
                let rest = path.strip_prefix(&**prefix).unwrap_or(path).trim_start_matches('/');
                let by = by.trim_end_matches('/');
                let slash = path.strip_prefix(&**prefix).is_some_and(|rest| rest.starts_with('/'));
                match (by.is_empty(), rest.is_empty()) {
                    (true, true) => "/".to_owned(),
                    (false, true) if !slash => by.to_owned(),
                    _ => format!("{by}/{rest}"),
                }
            }
            Some(PathMatch::Prefix(prefix)) => format!("{by}{}", path.get(prefix.len()..).unwrap_or_default()),
            _ => by.to_string(),
        },
    }
}

/// `Location` of a redirection. `port` is the Service's port that was dialled.
pub fn location(redirect: &Redirect, uri: &Uri, headers: &HeaderMap, matched: &RequestMatch, port: u16) -> Result<HeaderValue, Impossible> {
    let asked = match uri.authority() {
        Some(authority) => authority.as_str(),
        None => headers.get(http::header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default(),
    };
    let scheme = redirect.scheme.as_deref().unwrap_or(Scheme::HTTP.as_str());
    let host = redirect.host.as_deref().unwrap_or(without_port(asked));
    let well_known = |scheme: &str| match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    };
    let port = redirect.port.or_else(|| redirect.scheme.as_deref().and_then(well_known)).unwrap_or(port);
    let port = if well_known(scheme) == Some(port) { String::new() } else { format!(":{port}") };
    let path = match &redirect.path {
        Some(change) => rewritten(uri.path(), change, matched.path.as_ref()),
        None => uri.path().to_owned(),
    };
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let text = format!("{scheme}://{host}{port}{path}{query}");
    HeaderValue::try_from(text).map_err(|error| Impossible(format!("the redirection's target is invalid: {error}")))
}

/// Headers that are of one hop only (RFC 9110, 7.6.1), `TE: trailers` apart, which gRPC needs. What `Connection` names goes too.
pub fn strip_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(http::header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        // Those that say where and how long: naming them takes nothing from the request. `Connection` must name `TE` (RFC 9110, 10.1.4).
        .filter(|name| !matches!(*name, header::HOST | header::CONTENT_LENGTH | header::AUTHORIZATION | header::TE))
        .collect();
    for name in named {
        headers.remove(name);
    }
    strip_own_hop(headers);
}

/// As [`strip_hop`], but for what `Connection` names: that is taken out when a message comes, and what is in it later is there to stay.
pub fn strip_own_hop(headers: &mut HeaderMap) {
    const HOP: [HeaderName; 5] =
        [header::CONNECTION, header::PROXY_AUTHENTICATE, header::PROXY_AUTHORIZATION, header::TRANSFER_ENCODING, header::UPGRADE];
    // This end understands trailers.
    let trailers = headers.get_all(http::header::TE).iter().any(|value| {
        let words = value.to_str().unwrap_or_default().split(',');
        words.map(str::trim).any(|word| word.eq_ignore_ascii_case("trailers"))
    });
    for name in &HOP {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    // Of no use without an upgrade to HTTP/2, which is not passed on.
    headers.remove("http2-settings");
    headers.remove("proxy-connection");
    headers.remove(http::header::TE);
    if trailers {
        headers.insert(http::header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Whether a request asks to switch protocols, as the guard of its connection sees it: byte by byte, whatever else stands there.
pub fn asks_to_switch(headers: &HeaderMap) -> bool {
    let asks = headers
        .get_all(http::header::CONNECTION)
        .iter()
        .any(|value| value.as_bytes().split(|byte| *byte == b',').any(|word| word.trim_ascii().eq_ignore_ascii_case(b"upgrade")));
    asks && headers.contains_key(http::header::UPGRADE)
}

/// The protocol that a request asks to switch to, if it may: one alone, and none that would carry requests that nobody judges and counts
/// (`h2c`, another version of HTTP, TLS). A server need not heed what is asked (RFC 9110, 7.8), and so it is not asked.
pub fn upgrade_of(headers: &HeaderMap) -> Option<HeaderValue> {
    if !asks_to_switch(headers) {
        return None;
    }
    let mut all = headers.get_all(http::header::UPGRADE).iter();
    let (Some(only), None) = (all.next(), all.next()) else { return None };
    let protocol = only.to_str().ok()?.trim().to_ascii_lowercase();
    let name = protocol.split('/').next().unwrap_or_default();
    let other = !matches!(name, "" | "h2c" | "h2" | "h3" | "http" | "tls") && !protocol.contains(',');
    other.then(|| only.clone())
}

#[cfg(test)]
mod tests;
