//! A request as it came, made safe to forward: one meaning, one host, no headers of one hop. Pure.

use http::header::{self, HeaderValue};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method, Uri, Version};

use super::filter::{strip_hop, strip_own_hop, upgrade_of};
use crate::outcome::{Outcome, RequestFailure};

/// Refuses what has no meaning or two (RFC 9112, 3.2 and 6.1), and settles the host: the target's, if it names one, is also the header's.
pub fn settle(parts: &mut Parts) -> Result<(), Outcome> {
    let bad = |detail: &str| Err(Outcome::Request(RequestFailure::BadRequest { detail: detail.into() }));
    if parts.method == Method::CONNECT {
        return Err(Outcome::Request(RequestFailure::ConnectMethod));
    }
    let framed = parts.headers.contains_key(header::TRANSFER_ENCODING);
    if framed && parts.headers.contains_key(header::CONTENT_LENGTH) {
        return bad("a request with Content-Length and Transfer-Encoding");
    }
    if framed && parts.version == Version::HTTP_10 {
        return bad("a request of HTTP/1.0 with Transfer-Encoding");
    }
    let mut lengths = parts.headers.get_all(header::CONTENT_LENGTH).iter();
    if let Some(first) = lengths.next()
        && (lengths.next().is_some() || !first.as_bytes().iter().all(u8::is_ascii_digit))
    {
        return bad("a Content-Length that is repeated or no number");
    }
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = hosts.next().cloned();
    if hosts.next().is_some() {
        return bad("a request with several Host headers");
    }
    match parts.uri.authority() {
        Some(authority) => {
            // User information has no place in a target that is forwarded.
            if authority.as_str().contains('@') {
                return bad("a target with user information");
            }
            let host = HeaderValue::from_str(authority.as_str());
            match host {
                Ok(host) => parts.headers.insert(header::HOST, host),
                Err(_) => return bad("a target whose host is no header"),
            };
        }
        None if host.is_none() && parts.version != Version::HTTP_10 => return bad("a request without a host"),
        None => {}
    }
    if host.is_some_and(|host| !host.is_empty() && host.to_str().ok().is_none_or(|host| host.parse::<Authority>().is_err())) {
        return bad("a Host that is no host");
    }
    Ok(())
}

/// Takes out what is of one hop, before anybody looks at the request: what rules and policies see, and what is added then, is what is
/// forwarded, whatever `Connection` named. What it asks to switch to, if it may, stays for them to see.
pub fn trim(headers: &mut HeaderMap) {
    let upgrade = upgrade_of(headers);
    strip_hop(headers);
    // This agent has answered it: the body is asked for as it is read.
    headers.remove(header::EXPECT);
    if let Some(upgrade) = upgrade {
        ask_to_switch(headers, upgrade);
    }
}

/// What a request that was trimmed asks to switch to, taken out of it; and what is of one hop, if somebody has added that since.
pub fn take_upgrade(headers: &mut HeaderMap) -> Option<HeaderValue> {
    let upgrade = upgrade_of(headers);
    strip_own_hop(headers);
    headers.remove(header::EXPECT);
    upgrade
}

fn ask_to_switch(headers: &mut HeaderMap, to: HeaderValue) {
    headers.insert(header::UPGRADE, to);
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
}

/// Brings a request into the form of the version that its server is spoken to in; `secure`: in TLS that is begun here.
pub fn address(parts: &mut Parts, http2: bool, secure: bool, upgrade: Option<&HeaderValue>) -> Result<(), Outcome> {
    let bad = |detail: String| Outcome::Request(RequestFailure::BadRequest { detail: detail.into() });
    let target = parts.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    if http2 {
        let host = parts.headers.remove(header::HOST).unwrap_or(HeaderValue::from_static("localhost"));
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(if secure { Scheme::HTTPS } else { Scheme::HTTP });
        uri.authority = Some(Authority::try_from(host.as_bytes()).map_err(|error| bad(error.to_string()))?);
        uri.path_and_query = Some(target);
        parts.uri = Uri::from_parts(uri).map_err(|error| bad(error.to_string()))?;
        parts.version = Version::HTTP_2;
        return Ok(());
    }
    parts.uri = Uri::from(target);
    parts.version = Version::HTTP_11;
    if let Some(upgrade) = upgrade {
        ask_to_switch(&mut parts.headers, upgrade.clone());
    }
    Ok(())
}

/// The deadline that a gRPC client sets: a number of at most eight digits and a unit (gRPC over HTTP/2).
pub fn grpc_timeout(headers: &HeaderMap) -> Option<std::time::Duration> {
    use std::time::Duration;
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
