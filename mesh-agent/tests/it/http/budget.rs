//! How many retries all the requests to a Service may have together (XBackendTrafficPolicy).

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use super::*;

fn policy(name: &str, created: &str, spec: &Value) -> Value {
    let mut spec = spec.clone();
    spec["targetRefs"] = json!([{ "group": "", "kind": "Service", "name": "budgeted" }]);
    json!({
        "apiVersion": "gateway.networking.x-k8s.io/v1alpha1",
        "kind": "XBackendTrafficPolicy",
        "metadata": { "namespace": "shop", "name": name, "creationTimestamp": created },
        "spec": spec,
    })
}

/// How often the server has been asked so far, this request included.
fn asked(client: &str) -> u64 {
    let answer = HTTP.pod(client).curl(&[&url("budget", "/ok")]).unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.seen().total
}

#[test]
fn a_service_that_fails_gets_no_more_retries_than_its_budget_has() {
    let retry = json!({ "codes": [503], "attempts": 3, "backoff": "1ms" });
    let to_budgeted = route("budget", &json!([{ "retry": retry, "backendRefs": [to("budgeted")] }]));
    let constraint =
        json!({ "retryConstraint": { "budget": { "percent": 20, "interval": "1h" }, "minRetryRate": { "count": 0, "interval": "1s" } } });
    let generous = json!({ "retryConstraint": { "budget": { "percent": 100 }, "minRetryRate": { "count": 1000 } } });
    let older = policy("older", "2026-01-01T00:00:00Z", &constraint);
    let younger = policy("younger", "2026-02-01T00:00:00Z", &generous);
    HTTP.apply("budget", &[to_budgeted.clone(), older, younger]);
    let problems = HTTP.admin("n1", "/problems").to_string();
    assert!(problems.contains("shop/younger") && problems.contains("older"), "{problems}");

    // Two clients of one node count together; each request is on a connection of its own, so that both workers have some.
    let refused = HTTP.sum("n1", "nodemesh_request_retry_refusals_total", &[("bound", "budget")]);
    let before = asked("client");
    const FAILING: u64 = 60;
    for number in 0..FAILING {
        let client = if number % 2 == 0 { "client" } else { "second" };
        let answer = HTTP.pod(client).curl(&[&url("budget", "/fail?status=503")]).unwrap();
        assert_eq!(answer.status, 503, "{answer:?}");
    }
    let attempts = asked("client") - before - 1;
    // A fifth of all requests: those that failed and the two that asked. One may be under way to the limit.
    let retries = attempts - FAILING;
    assert!((11..=(FAILING + 2) / 5).contains(&retries), "{retries} retries of {FAILING} requests");
    let line = HTTP.access("n1", &[("path", "/fail"), ("status", "503"), ("outcome", "retry_budget")]);
    assert_eq!(text(&line, "flags"), "UO", "{line}");
    let more = HTTP.sum("n1", "nodemesh_request_retry_refusals_total", &[("bound", "budget")]) - refused;
    assert!(more >= 40.0, "{}", HTTP.lines("n1", "nodemesh_request_retry"));

    // Without a policy each request has the attempts that its rule asks for.
    HTTP.apply("budget", &[to_budgeted]);
    let before = asked("client");
    for _ in 0..5 {
        assert_eq!(HTTP.pod("client").curl(&[&url("budget", "/fail?status=503")]).unwrap().status, 503);
    }
    assert_eq!(asked("client") - before - 1, 5 * 4);
    HTTP.withdraw("budget");
}

#[test]
fn a_service_keeps_its_sessions_without_a_route() {
    let spec = json!({ "sessionPersistence": { "type": "Header", "sessionName": "x-session-of-shop" } });
    let mut sticky = policy("sticky", "2026-01-01T00:00:00Z", &spec);
    sticky["spec"]["targetRefs"][0]["name"] = json!("sticky");
    HTTP.apply("sticky", &[sticky]);
    let client = HTTP.pod("client");
    let first = client.curl(&[&url("sticky", "/")]).unwrap();
    let session = first.header("x-session-of-shop").to_owned();
    assert!(first.status == 200 && !session.is_empty(), "{first:?}");
    let header = format!("x-session-of-shop: {session}");
    for _ in 0..8 {
        let answer = client.curl(&["-H", &header, &url("sticky", "/")]).unwrap();
        assert_eq!(answer.seen().name, first.seen().name, "{answer:?}");
    }
    HTTP.withdraw("sticky");
}

/// A server that answers the first request from its head alone, and reads on; the second it answers with how many bytes its body had.
fn answers_early(listener: &TcpListener) -> std::io::Result<()> {
    let (mut first, _) = listener.accept()?;
    read_head(&mut first)?;
    first.write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")?;
    std::thread::spawn(move || std::io::copy(&mut first, &mut std::io::sink()));
    let (mut second, _) = listener.accept()?;
    let mut rest = read_head(&mut second)?;
    while !rest.ends_with(b"0\r\n\r\n") {
        let mut some = [0; 4096];
        match second.read(&mut some)? {
            0 => break,
            read => rest.extend_from_slice(&some[..read]),
        }
    }
    let body = rest.iter().filter(|byte| **byte == b'z').count().to_string();
    write!(second, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// What came after the head of a request.
fn read_head(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        if let Some(end) = all.windows(4).position(|four| four == b"\r\n\r\n") {
            return Ok(all.split_off(end + 4));
        }
        let mut some = [0; 1024];
        match stream.read(&mut some)? {
            0 => return Ok(all),
            read => all.extend_from_slice(&some[..read]),
        }
    }
}

#[test]
fn a_body_that_is_still_coming_when_a_server_has_failed_is_there_in_whole_for_the_next() {
    let listener = HTTP.pod("stranger").in_netns(|| TcpListener::bind("0.0.0.0:9310").unwrap()).unwrap();
    let host = "early.outside.svc.cluster.local";
    let route = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": { "name": "early", "namespace": "shop" },
        "spec": { "hosts": [host], "http": [{
            "retries": { "attempts": 1, "retryOn": "5xx", "backoff": "500ms" }, "route": [{ "destination": { "host": host } }],
        }] },
    });
    HTTP.apply("rule-early", &[route]);
    std::thread::spawn(move || answers_early(&listener).unwrap());
    let upload = "z() { head -c $1 /dev/zero | tr '\\0' z; }; (z 8000; sleep 0.3; z 200000) | \
                  curl -sS -X POST -H 'Expect:' -H 'Transfer-Encoding: chunked' -T - http://10.97.2.9/early";
    let finished = HTTP.pod("client").exec(&["sh", "-c", upload], LIMIT).unwrap();
    assert_eq!(finished.stdout, "208000", "{finished:?}");
    HTTP.withdraw("rule-early");
}
