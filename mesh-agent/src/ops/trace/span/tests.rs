use std::collections::BTreeMap;

use http::HeaderMap;

use super::*;
use crate::ops::fixtures::{address, connection, named};
use crate::ops::trace::{Hop, Sampler};
use crate::outcome::{RequestFailure, Side};
use crate::policy::limits::Standing;

const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn finished(reporter: Reporter, traceparent: Option<&str>) -> Finished {
    let mut headers = HeaderMap::new();
    if let Some(value) = traceparent {
        headers.insert("traceparent", value.parse().unwrap());
        headers.insert("tracestate", "congo=t61".parse().unwrap());
    }
    let hop = Hop::of(&headers, Some(Sampler::new(1_000_000)), || (0xaa, 0xbb));
    let mut connection = connection();
    connection.labels.reporter = reporter;
    Finished {
        open: Open::of(hop, &headers, true).unwrap(),
        connection,
        line: RequestLine {
            method: "GET".into(),
            path: "/cart/7".into(),
            authority: "cart.shop:8080".into(),
            protocol: RequestProtocol::Http,
            status: 200,
            grpc_status: None,
            route: Some("HTTPRoute shop/cart rule 0".into()),
            attempts: 1,
        },
        totals: RequestTotals { duration: Duration::from_millis(20), request_bytes: 3, response_bytes: 5, ..RequestTotals::default() },
        outcome: Outcome::Completed,
        end: UNIX_EPOCH + Duration::from_secs(1_000),
    }
}

fn words(attributes: &[KeyValue]) -> BTreeMap<&str, String> {
    let word = |value: &Option<AnyValue>| match value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("{other:?}"),
    };
    let all: BTreeMap<&str, String> = attributes.iter().map(|attribute| (attribute.key.as_str(), word(&attribute.value))).collect();
    assert_eq!(all.len(), attributes.len(), "each once: {attributes:?}");
    all
}

#[test]
fn a_client_span_by_the_conventions() {
    let mut request = finished(Reporter::Source, Some(GOOD));
    request.line.attempts = 3;
    let span = request.span();
    assert_eq!(span.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes());
    assert_eq!((&span.span_id[..], &span.parent_span_id[..]), (&0xbb_u64.to_be_bytes()[..], &0xb7ad_6b71_6920_3331_u64.to_be_bytes()[..]));
    assert_eq!((span.trace_state.as_str(), span.flags), ("congo=t61", 0x301));
    assert_eq!((span.kind(), span.name.as_str(), span.status.as_ref()), (SpanKind::Client, "GET", None));
    assert_eq!((span.start_time_unix_nano, span.end_time_unix_nano), (999_980_000_000, 1_000_000_000_000));
    let told = words(&span.attributes);
    for (key, value) in [
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("http.request.resend_count", "2"),
        ("http.request.body.size", "3"),
        ("http.response.body.size", "5"),
        ("url.scheme", "http"),
        ("url.path", "/cart/7"),
        ("network.protocol.version", "2"),
        ("server.address", "cart.shop"),
        ("server.port", "8080"),
        ("network.peer.address", "10.2.0.7"),
        ("network.peer.port", "8080"),
        ("nodemesh.outcome", "completed"),
        ("nodemesh.response_flags", "-"),
        ("nodemesh.connection_security_policy", "mutual_tls"),
        ("nodemesh.route", "HTTPRoute shop/cart rule 0"),
        ("nodemesh.destination.service", "cart.shop.svc.cluster.local"),
        ("nodemesh.source.workload", "web"),
        ("nodemesh.source.principal", "spiffe://cluster.local/ns/shop/sa/web"),
        ("nodemesh.destination.workload", "cart"),
        ("nodemesh.destination.namespace", "shop"),
        ("nodemesh.destination.principal", "spiffe://cluster.local/ns/shop/sa/cart"),
    ] {
        assert_eq!(told.get(key).map(String::as_str), Some(value), "{key} of {told:?}");
    }
    assert!(!told.contains_key("error.type") && !told.contains_key("client.address"), "{told:?}");
    assert_eq!(request.subject().unwrap().name.as_ref(), "web-a");
}

#[test]
fn a_server_span_is_the_servers() {
    let request = finished(Reporter::Destination, None);
    let span = request.span();
    assert_eq!(
        (span.kind(), span.parent_span_id.as_slice(), span.flags, span.trace_state.as_str()),
        (SpanKind::Server, &[][..], 0x101, "")
    );
    let told = words(&span.attributes);
    assert_eq!((told["network.peer.address"].as_str(), told["client.address"].as_str()), ("10.1.0.5", "10.1.0.5"));
    assert_eq!(told["network.peer.port"], "40000");
    let subject = request.subject();
    assert_eq!(subject.unwrap().name.as_ref(), "cart-b");
    let resource = resource(subject, "east", "n1");
    let told = words(&resource.attributes);
    let wanted = [
        ("k8s.cluster.name", "east"),
        ("k8s.namespace.name", "shop"),
        ("k8s.node.name", "n1"),
        ("k8s.pod.name", "cart-b"),
        ("service.instance.id", "uid-cart-b"),
        ("service.name", "cart"),
        ("service.namespace", "shop"),
        ("service.version", "v1"),
    ];
    assert_eq!(told.iter().map(|(key, value)| (*key, value.as_str())).collect::<Vec<_>>(), wanted);
    assert_eq!(words(&super::resource(None, "east", "n1").attributes)["service.name"], "unknown");
}

#[test]
fn whose_failure_it_is() {
    let denied = Outcome::PolicyDenied { reason: crate::outcome::DenyReason::DenyPolicy, policy: Some(named("shop/no-cron")) };
    let used_up = Outcome::Request(RequestFailure::RetriesUsedUp { status: 503 });
    let standing = Standing { limit: 5, remaining: 0, reset: Default::default(), retry_after: None };
    let limited = Outcome::Request(RequestFailure::RateLimited { limit: named("shop/orders"), standing });
    for (outcome, status, client, server) in [
        (Outcome::Completed, 200, None, None),
        (Outcome::Completed, 302, None, None),
        (Outcome::Completed, 404, Some("404"), None),
        (Outcome::Completed, 500, Some("500"), Some("500")),
        (denied, 403, Some("policy_deny"), None),
        (limited, 429, Some("rate_limited"), None),
        (used_up, 503, Some("retries_used_up"), Some("retries_used_up")),
        (Outcome::ClientReset, 0, Some("client_reset"), Some("client_reset")),
        (Outcome::ServerReset, 200, Some("server_reset"), Some("server_reset")),
        (Outcome::PodGone { side: Side::Server }, 200, Some("pod_gone"), Some("pod_gone")),
    ] {
        for (reporter, wanted) in [(Reporter::Source, client), (Reporter::Destination, server)] {
            let mut request = finished(reporter, None);
            (request.outcome, request.line.status) = (outcome.clone(), status);
            let span = request.span();
            let told = words(&span.attributes);
            let named = wanted.map(|_| outcome.meaning().name).filter(|_| outcome != Outcome::Completed).or(wanted);
            assert_eq!(told.get("error.type").map(String::as_str), named, "{outcome:?} {status} {reporter:?}");
            assert_eq!(span.status.map(|status| status.code()), wanted.map(|_| StatusCode::Error));
            assert_eq!(told.contains_key("http.response.status_code"), status > 0);
        }
    }
    let mut request = finished(Reporter::Source, None);
    request.outcome = Outcome::PolicyDenied { reason: crate::outcome::DenyReason::DenyPolicy, policy: Some(named("shop/no-cron")) };
    assert_eq!(words(&request.span().attributes)["nodemesh.policy"], "shop/no-cron");
}

#[test]
fn grpc_by_its_own_status() {
    for (grpc, client, server) in [(0, None, None), (5, Some("5"), None), (13, Some("13"), Some("13")), (99, Some("99"), None)] {
        for (reporter, wanted) in [(Reporter::Source, client), (Reporter::Destination, server)] {
            let mut request = finished(reporter, None);
            request.line.protocol = RequestProtocol::Grpc;
            request.line.grpc_status = Some(grpc);
            request.line.path = "/shop.Cart/Add".into();
            let span = request.span();
            let told = words(&span.attributes);
            assert_eq!(
                (span.name.as_str(), told["rpc.system.name"].as_str(), told["rpc.method"].as_str()),
                ("shop.Cart/Add", "grpc", "shop.Cart/Add")
            );
            assert_eq!(told["rpc.response.status_code"], grpc.to_string());
            assert_eq!(told.get("error.type").map(String::as_str), wanted, "{grpc} {reporter:?}");
        }
    }
}

#[test]
fn nothing_that_a_client_invents_grows_without_bound() {
    let mut request = finished(Reporter::Source, None);
    request.line.method = "BREW".into();
    request.line.path = format!("/{}", "ä".repeat(4000)).into();
    request.line.authority = "user:secret@[fd00::7]:81".into();
    let span = request.span();
    let told = words(&span.attributes);
    assert_eq!(
        (span.name.as_str(), told["http.request.method"].as_str(), told["http.request.method_original"].as_str()),
        ("HTTP", "_OTHER", "BREW")
    );
    assert!(told["url.path"].len() <= LONGEST);
    assert_eq!((told["server.address"].as_str(), told["server.port"].as_str()), ("fd00::7", "81"));
    assert!(!told.values().any(|value| value.contains("secret")), "{told:?}");
    for (text, wanted) in [
        ("a", ("a", None)),
        ("a:1", ("a", Some(1))),
        ("::1", ("::1", None)),
        ("[::1]", ("::1", None)),
        ("", ("", None)),
        ("a:x", ("a", None)),
    ] {
        assert_eq!(authority(text), wanted, "{text}");
    }
    assert_eq!(cut(&"x".repeat(LONGEST)).len(), LONGEST);
    assert_eq!(cut(&"x".repeat(LONGEST + 1)).len(), LONGEST);
    // Nor does what waits to be sent.
    request.line.method = "M".repeat(5000).into();
    request.line.authority = format!("{}secret@host", "u".repeat(5000)).into();
    let Finished { open, connection, line, totals, end, .. } = request.clone();
    let outcome = Outcome::Unregistered { host: Some("h".repeat(5000).into()) };
    let waits = Finished::new(open, connection, &line, totals, outcome, end);
    assert!([&waits.line.method, &waits.line.path, &waits.line.authority].iter().all(|text| text.len() <= LONGEST));
    assert_eq!(&*waits.line.authority, "host");
    assert!(matches!(&waits.outcome, Outcome::Unregistered { host: Some(host) } if host.len() == LONGEST));
    request.connection.server = Some(address("[::ffff:10.0.0.1]:80"));
    assert_eq!(words(&request.span().attributes)["network.peer.address"], "10.0.0.1");
}
