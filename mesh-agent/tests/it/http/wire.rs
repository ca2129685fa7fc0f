//! What HTTP is on the wire: versions, switches, what is refused, and what is no HTTP at all.

use super::*;

#[test]
fn websockets_are_carried_once_both_sides_have_switched() {
    let asking = json!([{ "path": { "type": "PathPrefix", "value": "/" }, "headers": [{ "name": "Upgrade", "value": "websocket" }] }]);
    apply_route("upgrade", &json!([{ "matches": asking, "backendRefs": [to("two")] }]));
    let request = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\nframes";
    let to = address("upgrade", 80).to_string();
    // The server sends back what comes for as long as it is there.
    let report = HTTP.pod("client").peer(&["connect", &to, "--send", request, "--timeout", "2"], LIMIT).unwrap();
    let (head, rest) = report.received.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{report:?}"));
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(head.to_ascii_lowercase().contains("upgrade: websocket"), "{head}");
    assert_eq!(rest, "frames", "{report:?}");
    let line = HTTP.access("n1", &[("path", "/ws"), ("status", "101")]);
    assert_eq!((number(&line, "bytes_received"), number(&line, "bytes_sent")), (6, 6), "{line}");
    let status = |target: &str| {
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
        let report = HTTP.pod("client").peer(&["connect", &to, "--send", &request, "--timeout", "2"], LIMIT).unwrap();
        report.received.split(' ').nth(1).unwrap_or_default().to_owned()
    };
    assert_eq!(status("/ws?switch=WebSocket"), "101", "a protocol's name has no case");
    assert_eq!((status("/ws?switch=other"), status("/ws?switch=")), ("502".into(), "502".into()), "nobody asked for it");
}

#[test]
fn what_two_readers_could_understand_differently_is_refused() {
    apply_route("changing", &json!([{ "backendRefs": [to("two")] }]));
    let client = HTTP.pod("client");
    let ask = |request: &str| client.request(address("changing", 80), request).unwrap().received;
    let fine = ask("POST /smuggled-0 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
    assert!(fine.starts_with("HTTP/1.1 200"), "{fine}");
    for (what, request) in [
        ("two framings", "POST /smuggled HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (
            "two framings, the other way round",
            "POST /smuggled HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        ),
        ("lengths that differ", "POST /smuggled HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
        ("a list of lengths", "POST /smuggled HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\nabc"),
        ("a signed length", "POST /smuggled HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc"),
        ("an unknown coding", "POST /smuggled HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        ("chunked not last", "POST /smuggled HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
        ("a folded header", "GET /smuggled HTTP/1.1\r\nHost: a\r\nX-A: b\r\n c\r\n\r\n"),
        ("a space before the colon", "GET /smuggled HTTP/1.1\r\nHost : a\r\n\r\n"),
        ("two hosts", "GET /smuggled HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n"),
        ("no host", "GET /smuggled HTTP/1.1\r\nConnection: close\r\n\r\n"),
        ("a bare CR", "GET /smuggled HTTP/1.1\r\nHost: a\rX: b\r\n\r\n"),
        ("bare LFs", "GET /smuggled HTTP/1.1\nHost: a\n\n"),
        ("a bare LF in a header", "GET /smuggled HTTP/1.1\r\nHost: a\nX-B: c\r\n\r\n"),
        ("chunked of HTTP/1.0", "POST /smuggled HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ] {
        let answer = ask(request);
        assert!(answer.starts_with("HTTP/1.1 400") || answer.starts_with("HTTP/1.0 400"), "{what}: {answer:?}");
        assert!(!answer.contains("smuggled"), "{what} reached the server: {answer:?}");
    }
    for (what, request) in [
        ("a chunk's size", "POST /bad-chunk HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n0\r\n\r\n"),
        (
            "a size that overflows",
            "POST /bad-chunk HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        ),
        ("no end of a chunk", "POST /bad-chunk HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n"),
    ] {
        let answer = ask(request);
        assert!(!answer.starts_with("HTTP/1.1 200"), "{what}: {answer:?}");
    }
    let connect = ask("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nConnection: close\r\n\r\n");
    assert!(connect.starts_with("HTTP/1.1 405"), "{connect}");
    let absolute = ask("GET http://inner.example/absolute?x HTTP/1.1\r\nHost: claimed.example\r\nConnection: close\r\n\r\n");
    assert!(absolute.contains("\"target\":\"/absolute?x\"") && absolute.contains("\"host\":\"inner.example\""), "{absolute}");
    let star = ask("OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(star.starts_with("HTTP/1.1 200"), "{star}");
}

#[test]
fn headers_are_bounded() {
    apply_route("hash", &json!([{ "backendRefs": [to("two")] }]));
    let client = HTTP.pod("client");
    let many: String = (0..10_000).map(|i| format!("X-{i}: y\n")).collect();
    let long = format!("X-Long: {}\n", "y".repeat(1 << 20));
    for (what, headers) in [("many", many), ("long", long)] {
        let file = HTTP.world.directory().join(format!("headers-{what}"));
        std::fs::write(&file, headers).unwrap();
        for version in ["--http1.1", "--http2-prior-knowledge"] {
            let answer = client.curl(&[version, "-H", &format!("@{}", file.display()), &url("hash", "/bomb")]).unwrap();
            assert!(matches!(answer.status, 0 | 400..=499), "{version} {what}: {answer:.300?}");
            assert!(!answer.body.contains("bomb"), "{version} {what}");
        }
    }
    assert_eq!(client.curl(&[&url("hash", "/")]).unwrap().status, 200, "others are served");
}

#[test]
fn requests_follow_one_another_on_a_connection() {
    apply_route("opaque", &json!([{ "backendRefs": [to("two")] }]));
    let client = HTTP.pod("client");
    let pipelined = "GET /first HTTP/1.1\r\nHost: a\r\n\r\nPOST /second HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: x-t\r\n\r\n\
                     3;ext=1\r\nabc\r\n0\r\nX-T: 1\r\n\r\nGET /third HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let answer = client.request(address("opaque", 80), pipelined).unwrap().received;
    let places: Vec<_> = ["/first", "/second", "/third"].iter().map(|path| answer.find(path)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{answer}");
    assert!(answer.contains("\"body\":3"), "{answer}");
    // A body that is announced and waited with.
    let big = HTTP.world.directory().join("announced");
    std::fs::write(&big, vec![b'x'; 5 << 20]).unwrap();
    let answer =
        client.curl(&["-H", "Expect: 100-continue", "--data-binary", &format!("@{}", big.display()), &url("opaque", "/big")]).unwrap();
    assert_eq!((answer.status, answer.seen().body), (200, 5 << 20));
    let answer = client.curl(&["-o", "/dev/null", &url("opaque", "/big?size=20000000")]).unwrap();
    assert_eq!(answer.exit, Some(0), "{answer:?}");
}

#[test]
fn a_server_that_speaks_first_is_heard_where_routes_are() {
    let mut all_ports = route("session", &json!([{ "backendRefs": [to("two")] }]));
    all_ports["spec"]["parentRefs"][0].as_object_mut().unwrap().remove("port");
    HTTP.apply("route-session", &[all_ports]);
    let _greeters = ["v1", "v2"].map(|pod| HTTP.pod(pod).serve("banner", 7070).unwrap());
    let report = HTTP.pod("client").connect(address("session", 90), "").unwrap();
    assert!(report.received.starts_with("220 greeter"), "{report:?}");
    // The route is for the port that HTTP is spoken on.
    assert_eq!(HTTP.pod("client").curl(&[&url("session", "/")]).unwrap().seen().name, "v2");
    let line = HTTP.access("n1", &[("direction", "outbound"), ("dialled", &address("session", 90).to_string())]);
    assert_eq!(text(&line, "outcome"), "completed", "{line}");
}
