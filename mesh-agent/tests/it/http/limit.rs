//! How many requests a workload takes (RateLimit), counted at the server's agent.

use std::time::Duration;

use mesh_lab::peer::{Curled, End};

use super::*;

fn rate_limit(name: &str, app: &str, limits: &Value) -> Value {
    json!({
        "apiVersion": "nodemesh.dev/v1alpha1",
        "kind": "RateLimit",
        "metadata": { "namespace": "shop", "name": name },
        "spec": { "selector": { "matchLabels": { "app": app } }, "limits": limits },
    })
}

/// Puts the limits of a pod in force.
fn apply_limits(app: &str, limits: &Value) {
    HTTP.apply(&format!("limit-{app}"), &[rate_limit(&format!("limit-{app}"), app, limits)]);
}

fn get(client: &str, server: &str, path: &str, more: &[&str]) -> Curled {
    let url = format!("http://{}{path}", at(&HTTP.pod(server), 8080));
    HTTP.pod(client).curl(&[more, &[&url]].concat()).unwrap()
}

fn statuses(client: &str, server: &str, path: &str, more: &[&str], count: usize) -> Vec<u16> {
    (0..count).map(|_| get(client, server, path, more).status).collect()
}

fn seconds(answer: &Curled, header: &str) -> u64 {
    answer.header(header).parse().unwrap_or_else(|_| panic!("{header}: {answer:?}"))
}

#[test]
fn a_burst_then_429_until_the_budget_is_refilled() {
    for (server, node) in [("limited", "n2"), ("limited-near", "n1")] {
        let object = format!("shop/limit-{server}");
        let before = get("client", server, "/", &[]);
        assert_eq!((before.status, before.header("ratelimit-limit")), (200, ""), "{before:?}");
        apply_limits(server, &json!([{ "requests": 1, "per": "6s", "burst": 3 }]));
        for left in [2, 1, 0] {
            // That the application takes out what is of its own hop does not take this away.
            let answer = get("client", server, "/?connection=ratelimit-limit", &["--http1.1"]);
            assert_eq!((answer.status, answer.header("ratelimit-limit"), answer.header("retry-after")), (200, "3", ""), "{answer:?}");
            assert_eq!(seconds(&answer, "ratelimit-remaining"), left, "{answer:?}");
            assert!((1..=18).contains(&seconds(&answer, "ratelimit-reset")), "{answer:?}");
        }
        for version in ["--http1.1", "--http2-prior-knowledge"] {
            let answer = get("client", server, "/", &[version]);
            assert_eq!((answer.status, answer.body.as_str()), (429, "rate limit exceeded"), "{answer:?}");
            assert_eq!((answer.header("ratelimit-limit"), answer.header("ratelimit-remaining")), ("3", "0"), "{answer:?}");
            assert!((1..=6).contains(&seconds(&answer, "retry-after")), "{answer:?}");
        }
        let grpc = get("client", server, "/a.B/c", &["--http2-prior-knowledge", "-X", "POST", "-H", "content-type: application/grpc"]);
        assert_eq!((grpc.status, grpc.header("grpc-status")), (200, "8"), "{grpc:?}");
        assert!((1..=6).contains(&seconds(&grpc, "retry-after")), "{grpc:?}");

        let destination = format!("shop/{server}");
        let fields = [("direction", "inbound"), ("status", "429"), ("destination_workload", destination.as_str())];
        let line = HTTP.access(node, &fields);
        let told = (text(&line, "outcome"), text(&line, "flags"), text(&line, "rate_limit"));
        assert_eq!(told, ("rate_limited", "RL", object.as_str()), "{line}");
        HTTP.wait_sum(node, "nodemesh_rate_limit_refusals_total", &[("limit", &object)], 3.0);
        let labels = [("reporter", "destination"), ("destination_workload", server), ("response_code", "429"), ("response_flags", "RL")];
        HTTP.wait_sum(node, "istio_requests_total", &labels, 2.0);

        let wait = seconds(&get("client", server, "/", &[]), "retry-after");
        std::thread::sleep(Duration::from_secs(wait));
        assert_eq!(get("client", server, "/", &[]).status, 200, "whoever waits as told is served");
        assert_eq!(get("client", server, "/", &[]).status, 429);

        // Another limit is another budget, and none is none.
        apply_limits(server, &json!([{ "requests": 1, "per": "60s", "burst": 5 }]));
        assert_eq!(statuses("client", server, "/", &[], 6), [200, 200, 200, 200, 200, 429]);
        HTTP.withdraw(&format!("limit-{server}"));
        let after = get("client", server, "/", &[]);
        assert_eq!((after.status, after.header("ratelimit-limit")), (200, ""), "{after:?}");
    }
}

#[test]
fn budgets_by_header_source_and_path() {
    let limit = |by: Value| json!([{ "requests": 1, "unit": "hour", "burst": 2, "by": by }]);
    apply_limits("keyed", &limit(json!({ "header": "X-Key" })));
    for key in [&["-H", "x-key: gold"][..], &["-H", "x-key: tin"], &[]] {
        assert_eq!(statuses("client", "keyed", "/", key, 3), [200, 200, 429], "{key:?}");
    }
    apply_limits("keyed", &limit(json!({ "source": true })));
    // Whatever the other two do: who is nobody has a budget with all who are nobody.
    for client in ["client", "second", "stranger"] {
        assert_eq!(statuses(client, "keyed", "/", &[], 3), [200, 200, 429], "{client}");
    }
    // Of the identity of `client`, in another pod of the same service account.
    assert_eq!(get("limited", "keyed", "/", &[]).status, 429);
    apply_limits("keyed", &limit(json!({ "pathPrefix": "/api" })));
    assert_eq!(statuses("client", "keyed", "/apis", &[], 4), [200; 4]);
    assert_eq!(statuses("client", "keyed", "/api/a", &[], 2), [200, 200]);
    assert_eq!(statuses("client", "keyed", "/x/..//%61pi", &["--path-as-is"], 1), [429], "however it is spelt");
    // Denied before it is counted: nothing is taken of the budget.
    let deny = json!([{ "to": [{ "operation": { "paths": ["/api/closed"] } }] }]);
    let deny = mesh_lab::manifests::authorization_policy("shop", "limit-deny", &[("app", "keyed")], "DENY", &deny);
    HTTP.apply("limit-keyed", &[rate_limit("limit-keyed", "keyed", &limit(json!({ "header": "x-key" }))), deny]);
    assert_eq!(statuses("client", "keyed", "/api/closed", &[], 4), [403; 4]);
    assert_eq!(statuses("client", "keyed", "/", &[], 3), [200, 200, 429]);
    HTTP.withdraw("limit-keyed");
}

#[test]
fn a_connection_that_is_no_http_counts_as_one_request() {
    for (server, node) in [("tcp-limited", "n2"), ("tcp-near", "n1")] {
        let _echo = HTTP.pod(server).serve("echo", 7000).unwrap();
        let target = at(&HTTP.pod(server), 7000);
        apply_limits(
            server,
            &json!([{ "requests": 1, "unit": "hour", "burst": 2, "by": { "source": true } }, { "requests": 1, "unit": "hour", "by": { "header": "x-key" } }]),
        );
        for client in ["client", "stranger"] {
            for _ in 0..2 {
                let report = HTTP.pod(client).connect(target, "hello").unwrap();
                assert_eq!(report.received, "hello", "{client}: {report:?}");
            }
            let report = HTTP.pod(client).connect(target, "hello").unwrap();
            assert_eq!((report.received.as_str(), report.end), ("", End::Reset), "{client}: {report:?}");
        }
        let destination = format!("shop/{server}");
        let line = HTTP.access(node, &[("direction", "inbound"), ("outcome", "rate_limited"), ("destination_workload", &destination)]);
        let object = format!("shop/limit-{server}");
        assert_eq!((text(&line, "flags"), text(&line, "rate_limit")), ("RL", object.as_str()), "{line}");
        HTTP.wait_sum(node, "nodemesh_rate_limit_refusals_total", &[("limit", &object)], 2.0);
        HTTP.withdraw(&format!("limit-{server}"));
        assert_eq!(HTTP.pod("client").connect(target, "hello").unwrap().received, "hello");
    }
}
