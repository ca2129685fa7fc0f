//! gRPC by tonic, through routes: every kind of call, statuses with their details, deadlines, cancellation, retries, policy, and what is
//! counted of messages.

use mesh_lab::manifests::authorization_policy;
use mesh_lab::peer::{CallReport, Server};

use super::*;

/// The mesh that these tests share.
struct Calls {
    cluster: Cluster,
    one: Server,
    _others: [Server; 3],
}

/// Services; the last three have a server each, the others have `one` and `two`.
const SERVICES: [&str; 10] = ["kinds", "status", "cancel", "balanced", "retried", "routed", "hasty", "one", "two", "locked"];

static CALLS: LazyLock<Calls> = LazyLock::new(|| {
    let ground = ground(
        "calls",
        &[
            ("n1", PodSpec::new("shop", "client")),
            ("n2", PodSpec::new("shop", "one").label("kind", "calls")),
            ("n1", PodSpec::new("shop", "two").label("kind", "calls")),
            ("n2", PodSpec::new("shop", "locked")),
            ("n2", PodSpec::new("shop", "plain")),
        ],
    );
    let mut objects = Vec::new();
    for (name, number) in SERVICES.iter().zip(1..) {
        let mut service = service("shop", name, &[&format!("10.97.0.{number}")], name, &[("grpc", 80, 9000)]);
        let several = number <= SERVICES.len() - 3;
        let backend = if *name == "kinds" || *name == "cancel" { "one" } else { *name };
        service["spec"]["selector"] = if several && backend == *name { json!({ "kind": "calls" }) } else { json!({ "app": backend }) };
        objects.push(service);
        if *name != "routed" && *name != "hasty" {
            objects.push(grpc_route(name, &json!([{ "backendRefs": [to(name)] }])));
        }
    }
    objects.push(service("shop", "plain", &["10.97.0.20"], "plain", &[("http2", 80, 8080)]));
    objects.push(grpc_route("plain", &json!([{ "backendRefs": [to("plain")] }])));
    // So that the server's agent judges and counts calls too.
    let allow = json!([{ "to": [{ "operation": { "methods": ["POST"] } }] }]);
    objects.push(authorization_policy("shop", "one", &[("app", "one")], "ALLOW", &allow));
    objects.extend(rules());
    ground.put("objects", &objects);
    let cluster = ground.start();
    let [one, two, locked] = ["one", "two", "locked"].map(|name| cluster.pod(name).serve_grpc(name, 9000).expect("a gRPC server"));
    let plain = cluster.pod("plain").serve_http("plain", 8080).expect("a server");
    Calls { cluster, one, _others: [two, locked, plain] }
});

fn grpc_route(name: &str, rules: &Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "GRPCRoute",
        "metadata": { "namespace": "shop", "name": name, "creationTimestamp": "2026-01-01T00:00:00Z" },
        "spec": { "parentRefs": [{ "group": "", "kind": "Service", "name": name, "port": 80 }], "rules": rules },
    })
}

/// What single tests are about. All is there from the start, so that no test waits for what another has changed.
fn rules() -> [Value; 4] {
    let balanced = json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": { "namespace": "shop", "name": "balanced" },
        "spec": { "host": "balanced", "trafficPolicy": { "loadBalancer": { "simple": "ROUND_ROBIN" } } },
    });
    let method = |method: &str| json!({ "service": "nodemesh.lab.v1.Calls", "method": method });
    let routed = json!([
        { "matches": [{ "method": method("Unary"), "headers": [{ "name": "x-to", "value": "two" }] }, { "method": method("Spread") }], "backendRefs": [to("two")] },
        { "matches": [{ "method": { "type": "RegularExpression", "service": "nodemesh[.]lab[.].*", "method": "Una.*" } }], "backendRefs": [to("one")] },
    ]);
    let allow = json!([{ "to": [{ "operation": { "paths": ["/nodemesh.lab.v1.Calls/Unary"] } }] }]);
    let hasty = json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": { "namespace": "shop", "name": "hasty" },
        "spec": { "hosts": ["hasty"], "http": [{ "timeout": "3s", "route": [{ "destination": { "host": "hasty" } }] }] },
    });
    [balanced, hasty, grpc_route("routed", &routed), authorization_policy("shop", "locked", &[("app", "locked")], "ALLOW", &allow)]
}

fn service_url(service: &str) -> String {
    let number = SERVICES.iter().position(|name| *name == service).unwrap() + 1;
    format!("http://10.97.0.{number}:80")
}

fn call(service: &str, words: &[&str]) -> Vec<CallReport> {
    CALLS.cluster.pod("client").grpc(&[&[service_url(service).as_str()], words].concat(), LIMIT).unwrap()
}

fn one_call(service: &str, words: &[&str]) -> CallReport {
    let mut reports = call(service, words);
    assert_eq!(reports.len(), 1, "{reports:?}");
    reports.remove(0)
}

#[test]
fn every_kind_of_call_is_carried_and_its_messages_are_counted() {
    for (kind, more, answers, messages) in [
        ("unary", &[][..], 1, 1),
        ("collect", &["--messages", "5"], 1, 5),
        ("spread", &["--answers", "6"], 6, 1),
        ("chat", &["--messages", "4"], 4, 4),
    ] {
        let report = one_call("kinds", &[&["--kind", kind], more].concat());
        assert_eq!((report.code, report.messages), (0, messages), "{kind}: {report:?}");
        assert_eq!((report.servers, report.texts), (vec!["one".to_owned(); answers], vec!["hello".to_owned(); answers]), "{kind}");
    }
    for (node, reporter) in [("n1", "source"), ("n2", "destination")] {
        // The server's agent too knows by which Service its pod was called, of which it has several.
        let labels =
            [("reporter", reporter), ("destination_service_name", "kinds"), ("request_protocol", "grpc"), ("grpc_response_status", "0")];
        CALLS.cluster.wait_sum(node, "istio_requests_total", &labels, 4.0);
        CALLS.cluster.wait_sum(node, "istio_request_messages_total", &labels, 11.0);
        CALLS.cluster.wait_sum(node, "istio_response_messages_total", &labels, 12.0);
    }
    let line = CALLS.cluster.access("n1", &[("route", "GRPCRoute shop/kinds rule 0"), ("path", "/nodemesh.lab.v1.Calls/Chat")]);
    let told = (text(&line, "protocol"), text(&line, "grpc_status"), text(&line, "status"), text(&line, "outcome"));
    assert_eq!(told, ("grpc", "0", "200", "completed"), "{line}");
}

#[test]
fn statuses_come_with_message_and_details_in_headers_and_trailers() {
    // A status alone stands in the headers; after answers it stands in the trailers.
    for (kind, answers) in [("unary", 0), ("spread", 2)] {
        let words = ["--kind", kind, "--answers", "2", "--code", "9", "--message", "späte Antwort", "--details", "why"];
        let report = one_call("status", &words);
        assert_eq!((report.code, report.message.as_str(), report.details.as_str()), (9, "späte Antwort", "why"), "{kind}: {report:?}");
        assert_eq!(report.texts.len(), answers, "{kind}");
        assert!(report.metadata.contains(&("x-served-by".to_owned(), "peer".to_owned())), "{kind}: {report:?}");
    }
    let labels = [("reporter", "source"), ("destination_service_name", "status"), ("response_code", "200"), ("grpc_response_status", "9")];
    CALLS.cluster.wait_sum("n1", "istio_requests_total", &labels, 2.0);
}

#[test]
fn a_deadline_is_the_clients_and_the_meshs() {
    let begun = one_call("cancel", &["--text", "deadline", "--delay", "20000", "--timeout", "400"]);
    // The library gives up by itself, with either.
    assert!([1, 4].contains(&begun.code), "{begun:?}");
    wait_until("the server stops", SOON, || CALLS.one.process.log().contains("cancelled deadline")).unwrap();
    // A client and a server that heed no deadline.
    let grpc = ["--http2-prior-knowledge", "-X", "POST", "-H", "content-type: application/grpc", "-H", "te: trailers"];
    let words = [&grpc[..], &["-H", "grpc-timeout: 300m", "http://10.97.0.20/late.Service/Late?delay=4000"]].concat();
    let answer = CALLS.cluster.pod("client").curl(&words).unwrap();
    assert_eq!((answer.status, answer.header("grpc-status")), (200, "4"), "{answer:?}");
    let line = CALLS.cluster.access("n1", &[("direction", "outbound"), ("path", "/late.Service/Late")]);
    let told = (text(&line, "outcome"), text(&line, "grpc_status"), text(&line, "flags"));
    assert_eq!(told, ("request_timeout", "4", "UT"), "{line}");
}

#[test]
fn a_stream_of_answers_that_takes_too_long_ends_with_a_status() {
    let report = one_call("hasty", &["--kind", "spread", "--answers", "1000", "--delay", "50", "--text", "too-long"]);
    assert_eq!((report.code, report.message.as_str()), (4, "the request took too long"), "{report:?}");
    assert!(!report.texts.is_empty() && report.texts.len() < 60, "{report:?}");
    let line = CALLS.cluster.access("n1", &[("direction", "outbound"), ("route", "VirtualService shop/hasty rule 0")]);
    let told = (text(&line, "outcome"), text(&line, "status"), text(&line, "grpc_status"), text(&line, "flags"));
    assert_eq!(told, ("request_timeout", "200", "4", "UT"), "{line}");
}

#[test]
fn what_a_client_gives_up_is_given_up_at_the_server() {
    for (kind, words) in [("unary", &["--delay", "30000"][..]), ("spread", &["--delay", "100", "--answers", "1000"])] {
        let name = format!("gone-{kind}");
        let report = one_call("cancel", &[&["--kind", kind, "--text", &name, "--cancel", "600"], words].concat());
        assert_eq!(report.code, 1, "{report:?}");
        let told = format!("cancelled {name}");
        wait_until("the server hears of it", SOON, || CALLS.one.process.log().contains(&told))
            .unwrap_or_else(|error| panic!("{kind}: {error}: {}", CALLS.one.process.log()));
    }
    for (node, direction) in [("n1", "outbound"), ("n2", "inbound")] {
        let line =
            CALLS.cluster.access(node, &[("direction", direction), ("path", "/nodemesh.lab.v1.Calls/Spread"), ("outcome", "client_reset")]);
        assert_eq!((text(&line, "status"), text(&line, "flags")), ("200", "DR"), "{line}");
    }
}

#[test]
fn calls_of_one_connection_are_shared_by_the_servers() {
    for more in [&[][..], &["--at-once"]] {
        let reports = call("balanced", &[&["--calls", "40"], more].concat());
        let of = |name: &str| reports.iter().filter(|report| report.servers == [name]).count();
        assert_eq!((of("one"), of("two")), (20, 20), "{more:?}: {reports:?}");
    }
}

#[test]
fn calls_go_where_method_and_metadata_say() {
    let served = |words: &[&str]| one_call("routed", words).servers;
    assert_eq!(served(&[]), ["one"]);
    assert_eq!(served(&["--metadata", "x-to=two"]), ["two"]);
    assert_eq!(served(&["--kind", "spread"]), ["two"]);
    let report = one_call("routed", &["--kind", "collect"]);
    assert_eq!(report.code, 12, "no rule is for it: {report:?}");
    let labels = [("reporter", "source"), ("destination_service_name", "routed"), ("grpc_response_status", "12"), ("response_flags", "NR")];
    CALLS.cluster.wait_sum("n1", "istio_requests_total", &labels, 1.0);
}

#[test]
fn an_unavailable_server_is_asked_again_and_another_as_well() {
    let report = one_call("retried", &["--fails", "1", "--key", "once"]);
    assert_eq!((report.code, report.texts.len()), (0, 1), "each server fails once, and there are three attempts: {report:?}");
    let line = CALLS.cluster.access("n1", &[("direction", "outbound"), ("route", "GRPCRoute shop/retried rule 0"), ("grpc_status", "0")]);
    assert_eq!(text(&line, "attempts"), "3", "{line}");
    let report = one_call("retried", &["--fails", "9", "--key", "always"]);
    assert_eq!((report.code, report.message.as_str()), (14, "told to be unavailable"), "{report:?}");
    let line = CALLS.cluster.access("n1", &[("route", "GRPCRoute shop/retried rule 0"), ("grpc_status", "14")]);
    assert_eq!((text(&line, "outcome"), text(&line, "flags")), ("retries_used_up", "URX"), "{line}");
    // After an answer there is no second attempt.
    let report = one_call("retried", &["--kind", "spread", "--answers", "1", "--code", "14", "--message", "late"]);
    assert_eq!((report.code, report.texts.len()), (14, 1), "{report:?}");
}

#[test]
fn policy_is_by_method_and_says_permission_denied() {
    assert_eq!(one_call("locked", &[]).code, 0);
    for kind in ["collect", "spread", "chat"] {
        let report = one_call("locked", &["--kind", kind]);
        assert_eq!((report.code, report.message.as_str()), (7, "RBAC: access denied"), "{kind}: {report:?}");
    }
    let labels =
        [("reporter", "destination"), ("destination_workload", "locked"), ("grpc_response_status", "7"), ("response_flags", "DENY")];
    CALLS.cluster.wait_sum("n2", "istio_requests_total", &labels, 3.0);
    let line =
        CALLS.cluster.access("n2", &[("direction", "inbound"), ("path", "/nodemesh.lab.v1.Calls/Chat"), ("outcome", "no_allow_policy")]);
    assert_eq!((text(&line, "grpc_status"), text(&line, "status")), ("7", "200"), "{line}");
}
