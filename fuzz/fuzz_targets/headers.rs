//! Single headers and whole heads: trace ids and deadlines agree with patterns that say the same; what a request is settled to has one
//! host and nothing of one hop.
#![no_main]
#![allow(clippy::unwrap_used)]

use std::sync::LazyLock;
use std::time::Duration;

use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Uri, Version};
use libfuzzer_sys::fuzz_target;
use mesh_agent::ops::trace::TraceParent;
use mesh_agent::route::filter::strip_hop;
use mesh_agent::route::request::{grpc_timeout, settle, take_upgrade, trim};
use regex::Regex;

/// W3C Trace Context, 3.2: of a later version more may follow.
static TRACEPARENT: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new("^(?:00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}|[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(?:-(?s:.)*)?)$")
        .unwrap()
});
static GRPC_TIMEOUT: LazyLock<Regex> = LazyLock::new(|| Regex::new("^([0-9]{1,8})([HMSmun])$").unwrap());

fn model_trace_id(text: &str) -> Option<&str> {
    let found = TRACEPARENT.captures(text)?;
    if text.starts_with("ff") || text.starts_with("00") && found.get(1).is_none() {
        return None;
    }
    let part = |a, b| found.get(a).or(found.get(b)).unwrap().as_str();
    let is_id = |text: &str| text.bytes().any(|byte| byte != b'0');
    (is_id(part(1, 3)) && is_id(part(2, 4))).then(|| part(1, 3))
}

fn model_timeout(text: &str) -> Option<Duration> {
    let found = GRPC_TIMEOUT.captures(text)?;
    let nanoseconds = match &found[2] {
        "H" => 3_600_000_000_000,
        "M" => 60_000_000_000,
        "S" => 1_000_000_000,
        "m" => 1_000_000,
        "u" => 1000,
        _ => 1,
    };
    let number = u128::from(found[1].parse::<u64>().unwrap());
    Some(
        Duration::from_secs(u64::try_from(number * nanoseconds / 1_000_000_000).unwrap())
            + Duration::from_nanos(u64::try_from(number * nanoseconds % 1_000_000_000).unwrap()),
    )
}

/// A request as the HTTP library reads it, if it does.
fn request(bytes: &[u8]) -> Option<http::request::Parts> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Request::new(&mut headers);
    parsed.parse(bytes).ok()?.is_complete().then_some(())?;
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = Method::from_bytes(parsed.method?.as_bytes()).ok()?;
    parts.uri = parsed.path?.parse::<Uri>().ok()?;
    parts.version = if parsed.version? == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
    for header in parsed.headers.iter() {
        parts.headers.append(HeaderName::from_bytes(header.name.as_bytes()).ok()?, HeaderValue::from_bytes(header.value).ok()?);
    }
    Some(parts)
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let read = TraceParent::parse(text).map(|parent| parent.trace_id());
        assert_eq!(read.as_deref(), model_trace_id(text), "{text:?}");
    }
    if let Ok(value) = HeaderValue::from_bytes(bytes) {
        let text = value.to_str().ok();
        let headers = HeaderMap::from_iter([(HeaderName::from_static("grpc-timeout"), value.clone())]);
        assert_eq!(grpc_timeout(&headers), text.and_then(model_timeout), "{text:?}");
    }
    let Some(mut parts) = request(bytes) else { return };
    let came = parts.clone();
    if settle(&mut parts).is_err() {
        return;
    }
    assert!(parts.method != Method::CONNECT);
    let hosts: Vec<_> = parts.headers.get_all(header::HOST).iter().collect();
    assert!(hosts.len() == 1 || hosts.is_empty() && came.version == Version::HTTP_10);
    if let Some(authority) = came.uri.authority() {
        assert_eq!(hosts.first().and_then(|host| host.to_str().ok()), Some(authority.as_str()));
    }
    assert!(!(parts.headers.contains_key(header::CONTENT_LENGTH) && parts.headers.contains_key(header::TRANSFER_ENCODING)));
    let host = hosts.first().map(|host| (*host).clone());
    let length = parts.headers.get(header::CONTENT_LENGTH).cloned();
    trim(&mut parts.headers);
    let trimmed = parts.headers.clone();
    trim(&mut parts.headers);
    assert_eq!(trimmed, parts.headers);
    take_upgrade(&mut parts.headers);
    for name in [header::CONNECTION, header::UPGRADE, header::TRANSFER_ENCODING, header::EXPECT, header::PROXY_AUTHORIZATION] {
        assert!(!parts.headers.contains_key(&name), "{name} goes on");
    }
    assert!(parts.headers.get_all(header::TE).iter().all(|value| value == "trailers"));
    // What says where and how long stays, whatever `Connection` names.
    assert_eq!((parts.headers.get(header::HOST), parts.headers.get(header::CONTENT_LENGTH)), (host.as_ref(), length.as_ref()));
    let once = parts.headers.clone();
    strip_hop(&mut parts.headers);
    assert_eq!(once, parts.headers);
});
