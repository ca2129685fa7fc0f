//! Session persistence: which endpoint a client's session has, as the client carries it in a cookie or header. Pure.
//!
//! The value names the endpoint's address and, for a session with an end, when that is. It is no secret and no permission: one that names
//! what is no endpoint of the Service is not heeded.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use http::header::{COOKIE, HeaderName, HeaderValue, SET_COOKIE};
use mesh_model::route::{Session, SessionBy};

/// The value that names an endpoint until `until` (seconds since 1970), if there is an end.
fn encode(endpoint: SocketAddr, until: Option<u64>) -> String {
    let text = match until {
        Some(until) => format!("{endpoint};{until}"),
        None => endpoint.to_string(),
    };
    URL_SAFE_NO_PAD.encode(text)
}

/// The endpoint that a value names, with the session's end.
fn decode(value: &str) -> Option<(SocketAddr, Option<u64>)> {
    // No address with a time is longer.
    if value.len() > 128 {
        return None;
    }
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(value).ok()?).ok()?;
    match text.split_once(';') {
        Some((endpoint, until)) => Some((endpoint.parse().ok()?, Some(until.parse().ok()?))),
        None => Some((text.parse().ok()?, None)),
    }
}

/// A cookie of a request.
pub fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let all = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(';'));
    all.filter_map(|pair| pair.trim().split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// The endpoint of the session that a request belongs to, and its end. `now` is in seconds since 1970.
pub fn endpoint(session: &Session, headers: &HeaderMap, now: u64) -> Option<(SocketAddr, Option<u64>)> {
    let value = match &session.by {
        SessionBy::Cookie { name, .. } => cookie(headers, name)?,
        SessionBy::Header(name) => headers.get(&**name)?.to_str().ok()?,
    };
    let (endpoint, until) = decode(value)?;
    // Where the rule has an end a value without one is an old one, or made up.
    let lasts = match session.absolute_timeout {
        Some(_) => until.is_some_and(|until| until > now),
        None => true,
    };
    lasts.then_some((endpoint, until))
}

/// What the response says so that the client comes back to the endpoint. `until` is the end of the session that it belongs to already.
pub fn header(session: &Session, endpoint: SocketAddr, until: Option<u64>, now: u64) -> Option<(HeaderName, HeaderValue)> {
    let until = session.absolute_timeout.map(|timeout| until.unwrap_or(now + timeout.as_secs()));
    let value = encode(endpoint, until);
    match &session.by {
        SessionBy::Header(name) => Some((HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_str(&value).ok()?)),
        SessionBy::Cookie { name, path, permanent } => {
            let age = until.filter(|_| *permanent).map(|until| Duration::from_secs(until.saturating_sub(now)));
            Some((SET_COOKIE, set_cookie(name, &value, path, age)?))
        }
    }
}

/// `Set-Cookie` (RFC 6265) of a cookie that scripts have no use for.
pub fn set_cookie(name: &str, value: &str, path: &str, age: Option<Duration>) -> Option<HeaderValue> {
    let mut text = format!("{name}={value}; HttpOnly");
    if !path.is_empty() {
        text += "; Path=";
        text += path;
    }
    if let Some(age) = age {
        text += &format!("; Max-Age={}", age.as_secs());
    }
    HeaderValue::from_str(&text).ok()
}

#[cfg(test)]
mod tests;
