//! DestinationRules: who is sent requests, who is left out, and what is refused.

use super::*;

#[test]
fn the_breaker_of_an_unchanged_istio_manifest_is_seen_to_trip_eject_and_let_back_in() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/samples/istio/destination-rule.yaml");
    let mut rule: Value = serde_yaml_ng::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    rule["metadata"]["namespace"] = json!("shop");
    rule["spec"]["host"] = json!("breaker");
    // A shorter time, or a test would last as long.
    rule["spec"]["trafficPolicy"]["outlierDetection"]["baseEjectionTime"] = json!("8s");
    rule["spec"]["trafficPolicy"]["outlierDetection"]["maxEjectionPercent"] = json!(50);
    HTTP.apply("rule-breaker", &[rule]);
    let client = HTTP.pod("client");
    let get = |path: &str| client.curl(&[&url("breaker", path)]).unwrap();
    // Both serve.
    let names = |count: usize| (0..count).map(|_| get("/").seen().name).collect::<Vec<_>>();
    wait_until("both endpoints serve", LIMIT, || {
        let names = names(8);
        names.contains(&"v1".to_owned()) && names.contains(&"v2".to_owned())
    })
    .unwrap();
    // Five gateway errors in a row of one of them; those of the other are kept apart by its good answers.
    let ejected = || HTTP.sum("n1", "nodemesh_cluster_endpoints", &[("cluster", "shop/breaker:80"), ("state", "ejected")]) > 0.0;
    wait_until("one is ejected, and gets nothing as long as it is", LIMIT, || {
        if !ejected() {
            get("/bad?status=503");
            return false;
        }
        let after = names(6);
        // On a busy machine its time may have been over before the last of them.
        if !ejected() {
            return false;
        }
        assert!(after.iter().all(|name| *name == after[0]), "{after:?}");
        true
    })
    .unwrap();
    assert!(HTTP.agent("n1").log().contains("an endpoint is left out"), "it is said");
    assert!(HTTP.sum("n1", "nodemesh_endpoint_ejections_total", &[("reason", "consecutive_gateway_failure")]) >= 1.0);
    wait_until("both serve again", LIMIT, || {
        let names = names(8);
        names.contains(&"v1".to_owned()) && names.contains(&"v2".to_owned())
    })
    .unwrap();
    HTTP.withdraw("rule-breaker");
}

/// A DestinationRule of `shop` with this `connectionPool.http`.
fn pool(name: &str, host: &str, http: &Value) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": { "name": name, "namespace": "shop" },
        "spec": { "host": host, "trafficPolicy": { "connectionPool": { "http": http } } },
    })
}

#[test]
fn an_answer_that_may_not_be_tried_again_is_passed_on() {
    let routes = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": { "name": "retried", "namespace": "shop" },
        "spec": { "hosts": ["retried"], "http": [{
            "retries": { "attempts": 1, "retryOn": "5xx", "backoff": "3s" },
            "route": [{ "destination": { "host": "retried" } }],
        }] },
    });
    HTTP.apply("rule-retried", &[routes, pool("retried", "retried", &json!({ "maxRetries": 1 }))]);
    let client = HTTP.pod("client");
    // One waits to be tried again; there may be no other at the same time.
    let answers: Vec<_> = std::thread::scope(|scope| {
        let ask = || client.curl(&["http://10.97.2.6/retried?status=503"]).unwrap();
        let asking: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        asking.into_iter().map(|one| one.join().unwrap()).collect()
    });
    for answer in &answers {
        assert_eq!((answer.status, answer.seen().target.as_str()), (503, "/retried?status=503"), "the server's own: {answer:?}");
    }
    let line = HTTP.access("n1", &[("path", "/retried"), ("outcome", "retry_overflow")]);
    assert_eq!((text(&line, "flags"), text(&line, "status"), text(&line, "attempts")), ("UO", "503", "1"), "{line}");
    assert!(HTTP.sum("n1", "nodemesh_request_retry_refusals_total", &[]) >= 1.0);
    HTTP.withdraw("rule-retried");
}

#[test]
fn requests_at_once_on_a_connection_are_bounded() {
    HTTP.apply("rule-streams", &[pool("streams", "streams.outside.svc.cluster.local", &json!({ "maxConcurrentStreams": 1 }))]);
    let client = HTTP.pod("client");
    let open = |bound: &str| HTTP.sum("n1", "nodemesh_circuit_open", &[("cluster", "outside/streams:80"), ("bound", bound)]);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        // On one connection of the client.
        let asking = scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let words = ["h2load", "-n", "3", "-c", "1", "-m", "3", "http://10.97.2.7/?delay=1500"];
                let finished = client.exec(&words, LIMIT).unwrap();
                assert_eq!(finished.code(), Some(0), "{finished:?}");
            }
        });
        let seen = wait_until("each of three requests has its connection", LIMIT, || (open("requests"), open("connections")) == (3.0, 3.0));
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        asking.join().unwrap();
        seen.unwrap();
    });
    HTTP.withdraw("rule-streams");
}

#[test]
fn of_few_connections_an_unused_one_makes_room_for_who_waits() {
    let rule = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": { "name": "few", "namespace": "shop" },
        "spec": { "host": "few", "trafficPolicy": { "connectionPool": {
            "tcp": { "maxConnections": 1 }, "http": { "idleTimeout": "1s", "http1MaxPendingRequests": 100 },
        } } },
    });
    HTTP.apply("rule-few", &[rule]);
    let client = HTTP.pod("client");
    let statuses = |words: &[&str]| {
        let begin = ["curl", "-sS", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code}\n"];
        let finished = client.exec(&[&begin[..], words].concat(), LIMIT).unwrap();
        finished.stdout.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    // One after the other by turns to two servers, then many at once: each connection that is kept is in somebody's way.
    assert_eq!(statuses(&["http://10.97.2.8/few-[1-40]"]), vec!["200"; 40]);
    let at_once = ["-Z", "--parallel-immediate", "--parallel-max", "8", "http://10.97.2.8/at-once-[1-24]?delay=20"];
    assert_eq!(statuses(&at_once), vec!["200"; 24]);
    let open = || HTTP.sum("n1", "nodemesh_circuit_open", &[("cluster", "shop/few:80"), ("bound", "connections")]);
    wait_until("no place is held by what is closed", LIMIT, || open() == 0.0).unwrap();
    assert_eq!(statuses(&["http://10.97.2.8/few-again"]), ["200"]);
    HTTP.withdraw("rule-few");
}

#[test]
fn a_deadline_is_held_against_an_endpoint_only_if_it_had_the_request_and_the_rule_said_so() {
    let objects = [
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": { "name": "hasty", "namespace": "shop" },
            "spec": { "host": "hasty", "trafficPolicy": {
                "outlierDetection": { "consecutive5xxErrors": 3, "baseEjectionTime": "8s", "maxEjectionPercent": 100 },
            } },
        }),
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": { "name": "hasty", "namespace": "shop" },
            "spec": { "hosts": ["hasty"], "http": [{ "timeout": "400ms", "route": [{ "destination": { "host": "hasty" } }] }] },
        }),
    ];
    HTTP.apply("rule-hasty", &objects);
    let client = HTTP.pod("client");
    let ejected = || HTTP.sum("n1", "nodemesh_cluster_endpoints", &[("cluster", "shop/hasty:80"), ("state", "ejected")]);
    // A client that has no time at all.
    let grpc = ["--http2-prior-knowledge", "-X", "POST", "-H", "content-type: application/grpc", "-H", "te: trailers"];
    for _ in 0..12 {
        let answer = client.curl(&[&grpc[..], &["-H", "grpc-timeout: 1n", "http://10.97.2.10/none"]].concat()).unwrap();
        assert_eq!((answer.status, answer.header("grpc-status")), (200, "4"), "{answer:?}");
    }
    assert!(ejected() < 1.0, "the client's deadline is not the endpoint's fault");
    // Clients that take longer for their bodies than the rule gives for all.
    let upload = "for n in 1 2 3 4 5 6 7 8; do (printf z; sleep 1) | curl -s -o /dev/null -w '%{http_code}\\n' \
                  -X POST -H 'Expect:' -H 'Transfer-Encoding: chunked' -T - http://10.97.2.10/slow & done; wait";
    let finished = client.exec(&["sh", "-c", upload], LIMIT).unwrap();
    assert_eq!(finished.stdout.lines().collect::<Vec<_>>(), ["504"; 8], "{finished:?}");
    assert!(ejected() < 1.0, "nor is a body that does not come");
    // An endpoint that had all of it and does not answer.
    let late = wait_until("an endpoint that is late is ejected", LIMIT, || {
        client.curl(&["http://10.97.2.10/late?delay=3000"]).unwrap();
        ejected() >= 1.0
    });
    late.unwrap();
    HTTP.withdraw("rule-hasty");
}

#[test]
fn a_request_whose_client_has_gone_holds_no_place() {
    HTTP.apply("rule-given-up", &[pool("given-up", "given-up", &json!({ "http2MaxRequests": 4 }))]);
    let client = HTTP.pod("client");
    let open = || HTTP.sum("n1", "nodemesh_circuit_open", &[("cluster", "shop/given-up:80"), ("bound", "requests")]);
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let words = ["curl", "-sS", version, "-m", "3", "http://10.97.2.11/given-up?delay=60000"];
        std::thread::scope(|scope| {
            let asking: Vec<_> = (0..4).map(|_| scope.spawn(|| client.exec(&words, LIMIT).unwrap())).collect();
            wait_until("each has a place", LIMIT, || open() == 4.0).unwrap();
            // curl says that it gave up.
            assert!(asking.into_iter().all(|one| one.join().unwrap().code() == Some(28)), "{version}");
        });
        wait_until("their places are free", SOON, || open() == 0.0).unwrap_or_else(|error| panic!("{version}: {error}: {}", open()));
        assert_eq!(client.curl(&[version, "http://10.97.2.11/"]).unwrap().status, 200, "{version}");
    }
    HTTP.withdraw("rule-given-up");
}
