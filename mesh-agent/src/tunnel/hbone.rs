//! HBONE: HTTP/2 CONNECT inside mutual TLS, as Istio's ambient data plane speaks it. Headers here are pure; the roles are below.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use h2::{Ping, PingPong};
use http::header::{FORWARDED, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode};
use mesh_model::workload::Workload;

use super::error::Refusal;
use super::server::{Connection, Incoming};
use crate::conn::ClientAddr;

pub mod client;
pub mod relay;
pub mod server;

/// Window of a stream, of a connection, and the largest frame: what ztunnel offers.
pub const STREAM_WINDOW: u32 = 4 << 20;
/// See [`STREAM_WINDOW`].
pub const CONNECTION_WINDOW: u32 = 16 << 20;
/// See [`STREAM_WINDOW`].
pub const FRAME: u32 = 1 << 20;
/// What waits to be written to a connection before its streams are held back.
pub const SEND_BUFFER: usize = 256 << 10;

/// Claims about the workload at either end, as in Istio.
pub const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
/// W3C Trace Context.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Why a request was refused. Ours; others ignore it.
pub const REASON: HeaderName = HeaderName::from_static("nodemesh-reason");

/// Texts of a peer longer than this are not looked at.
const MAX_TEXT: usize = 1024;

/// `Forwarded` of RFC 7239, as far as HBONE uses it.
pub fn forwarded(client: SocketAddr, host: Option<&str>) -> String {
    match host {
        Some(host) => format!("for=\"{client}\";host={host}"),
        None => format!("for=\"{client}\""),
    }
}

/// The client's own end and the host, from a `Forwarded` header. Where its first element breaks the grammar nothing of it is taken.
pub fn parse_forwarded(value: &str) -> (Option<SocketAddr>, Option<&str>) {
    let (client, host) = forwarded_element(value).unwrap_or_default();
    (client.and_then(|client| client.parse().ok()), host)
}

/// `for` and `host` of the first `forwarded-element` of RFC 7239 (4), `None` if it is malformed. Later elements are from earlier proxies.
/// Quoted strings with escapes count as malformed: neither parameter needs one.
fn forwarded_element(mut rest: &str) -> Option<(Option<&str>, Option<&str>)> {
    const SPACE: [char; 2] = [' ', '\t'];
    let (mut client, mut host) = (None, None);
    loop {
        rest = rest.trim_start_matches(SPACE);
        if !rest.is_empty() && !rest.starts_with([';', ',']) {
            let (name, behind) = rest.split_once('=').filter(|(name, _)| is_token(name))?;
            let (value, behind) = match behind.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"').filter(|(text, _)| !text.contains('\\'))?,
                None => behind
                    .split_at_checked(behind.find([';', ',', ' ', '\t']).unwrap_or(behind.len()))
                    .filter(|(text, _)| is_token(text))?,
            };
            let place = match name {
                _ if name.eq_ignore_ascii_case("for") => Some(&mut client),
                _ if name.eq_ignore_ascii_case("host") => Some(&mut host),
                _ => None,
            };
            if place.is_some_and(|place| place.replace(value).is_some()) {
                return None;
            }
            rest = behind.trim_start_matches(SPACE);
        }
        match rest.strip_prefix(';') {
            Some(behind) => rest = behind,
            None if rest.is_empty() || rest.starts_with(',') => return Some((client, host)),
            None => return None,
        }
    }
}

/// A `token` of RFC 9110 (5.6.2).
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// `baggage` (W3C Baggage) of a workload: the members that ztunnel sends and reads, absent ones left out.
pub fn baggage(cluster: &str, workload: &Workload) -> String {
    let names = &workload.canonical;
    let members = [
        ("k8s.cluster.name", cluster),
        ("k8s.namespace.name", &*workload.namespace),
        ("k8s.deployment.name", &*names.workload),
        ("service.name", &*names.service),
        ("service.version", &*names.revision),
    ];
    let mut text = String::with_capacity(160);
    for (key, value) in members.into_iter().filter(|(_, value)| !value.is_empty()) {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(key);
        text.push('=');
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => text.push(char::from(byte)),
                other => {
                    let _ = write!(text, "%{other:02X}");
                }
            }
        }
    }
    text
}

/// A text header that is fit for a log or label.
pub fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok()).filter(|text| text.len() <= MAX_TEXT)
}

/// A header's value from a text of ours; what cannot be one is left out.
fn value(text: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(text).ok()
}

/// Understands a CONNECT request, or says why not.
pub fn judge(connection: &Connection, request: &Request<impl Sized>) -> Result<Incoming, Refusal> {
    let bad = |reason: String| Refusal::new(StatusCode::BAD_REQUEST, reason);
    if request.method() != Method::CONNECT {
        return Err(bad(format!("the method {} is not CONNECT", request.method())));
    }
    if request.extensions().get::<h2::ext::Protocol>().is_some() {
        return Err(bad("extended CONNECT is not supported".into()));
    }
    let authority = request.uri().authority().ok_or_else(|| bad("no :authority".into()))?;
    let target: SocketAddr = authority
        .as_str()
        .parse()
        .map_err(|_| bad(format!("the :authority {:?} is not an address and a port", clip(authority.as_str()))))?;
    let local = connection.local().0.ip();
    if target.ip().to_canonical() != local.to_canonical() {
        return Err(bad(format!("the :authority {target} is not this connection's destination {local}")));
    }
    let mut incoming = connection.incoming(target.port())?;
    let headers = request.headers();
    if let Some(forwarded) = text(headers, &FORWARDED) {
        let (client, host) = parse_forwarded(forwarded);
        incoming.client = client.map(ClientAddr);
        incoming.host = host.map(Into::into);
    }
    incoming.baggage = text(headers, &BAGGAGE).map(Into::into);
    incoming.traceparent = text(headers, &TRACEPARENT).map(Into::into);
    Ok(incoming)
}

fn clip(text: &str) -> &str {
    let mut end = text.len().min(100);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// Asks the peer again and again whether it lives; returns when it did not answer in time, or the connection is gone.
async fn keepalive(ping: Option<PingPong>, interval: Duration, timeout: Duration) {
    let Some(mut ping) = ping else { return std::future::pending().await };
    loop {
        tokio::time::sleep(interval).await;
        match tokio::time::timeout(timeout, ping.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            // The connection itself tells what has become of it.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests;
