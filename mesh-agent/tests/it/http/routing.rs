//! Where requests go and what is done with them on the way.

use super::*;

#[test]
fn requests_go_where_their_rule_says() {
    apply_route(
        "matching",
        &json!([
            { "matches": [{ "path": { "type": "PathPrefix", "value": "/v2" } }, { "headers": [{ "name": "Version", "value": "two" }] }], "backendRefs": [to("two")] },
            { "matches": [{ "path": { "type": "Exact", "value": "/exact" }, "method": "POST" }], "backendRefs": [to("three")] },
            { "matches": [{ "path": { "type": "PathPrefix", "value": "/v1" } }], "backendRefs": [to("one")] },
            { "matches": [{ "path": { "type": "PathPrefix", "value": "/nowhere" } }], "backendRefs": [to("missing")] },
            { "matches": [{ "path": { "type": "PathPrefix", "value": "/nobody" } }], "backendRefs": [to("nobody")] },
            { "matches": [{ "path": { "type": "PathPrefix", "value": "/none" } }] },
        ]),
    );
    let client = HTTP.pod("client");
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let get = |path: &str, more: &[&str]| client.curl(&[&[version, &url("matching", path)], more].concat()).unwrap();
        for (path, more, name) in [
            ("/v2", &[][..], "v2"),
            ("/v2/x?y=1", &[], "v2"),
            ("/v1", &[], "v1"),
            ("/v1/", &["-H", "version: two"], "v1"),
            ("/other", &["-H", "version: two"], "v2"),
            ("/exact", &["-X", "POST", "-d", "body"], "v3"),
        ] {
            let answer = get(path, more);
            assert_eq!((answer.status, answer.seen().name.as_str()), (200, name), "{version} {path} {more:?}: {answer:?}");
            assert_eq!(answer.seen().target, path, "{answer:?}");
        }
        for (path, status) in [("/v2example", 404), ("/exact", 404), ("/nowhere", 500), ("/none", 500), ("/nobody", 503)] {
            let answer = get(path, &[]);
            assert_eq!(answer.status, status, "{version} {path}: {answer:?}");
        }
    }
    // Another port of the Service, and the pod itself, see no route.
    for direct in [url("matching", ":8080/v2example"), format!("http://{}/v2example", at(&HTTP.pod("v1"), 8080))] {
        assert_eq!(client.curl(&[&direct]).unwrap().status, 200, "{direct}");
    }
    let labels = [
        ("reporter", "source"),
        ("source_workload", "client"),
        ("destination_workload", "v2"),
        ("destination_service_name", "two"),
        ("response_code", "200"),
        ("request_protocol", "http"),
        ("connection_security_policy", "mutual_tls"),
        ("response_flags", "-"),
    ];
    assert!(HTTP.sum("n1", "istio_requests_total", &labels) >= 6.0, "{}", HTTP.lines("n1", "istio_requests_total"));
    let missing = [("destination_service_name", "matching"), ("response_code", "404"), ("response_flags", "NR")];
    HTTP.wait_sum("n1", "istio_requests_total", &missing, 4.0);
    let line = HTTP.access("n1", &[("direction", "outbound"), ("path", "/v2/x"), ("status", "200")]);
    assert_eq!(text(&line, "route"), "HTTPRoute shop/matching rule 0", "{line}");
}

#[test]
fn filters_change_requests_and_responses() {
    let headers = |kind: &str| json!({ "set": [{ "name": "X-Set", "value": kind }], "add": [{ "name": "X-Add", "value": kind }], "remove": ["X-Gone"] });
    apply_route(
        "filters",
        &json!([
            {
                "matches": [{ "path": { "type": "PathPrefix", "value": "/rewrite" }, "headers": [{ "name": "X-Picked", "value": "1" }] }],
                "backendRefs": [to("three")],
            },
            {
                "matches": [{ "path": { "type": "PathPrefix", "value": "/rewrite" } }],
                "filters": [
                    { "type": "RequestHeaderModifier", "requestHeaderModifier": headers("request") },
                    { "type": "ResponseHeaderModifier", "responseHeaderModifier": headers("response") },
                    { "type": "URLRewrite", "urlRewrite": { "hostname": "inner.example", "path": { "type": "ReplacePrefixMatch", "replacePrefixMatch": "/new" } } },
                ],
                "backendRefs": [to("two")],
            },
            {
                "matches": [{ "path": { "type": "PathPrefix", "value": "/redirect" } }],
                "filters": [{ "type": "RequestRedirect", "requestRedirect": { "hostname": "else.example", "statusCode": 301, "path": { "type": "ReplaceFullPath", "replaceFullPath": "/there" } } }],
            },
            {
                "matches": [{ "path": { "type": "PathPrefix", "value": "/secure" } }],
                "filters": [{ "type": "RequestRedirect", "requestRedirect": { "scheme": "https", "port": 8443 } }],
            },
            {
                "matches": [{ "path": { "type": "PathPrefix", "value": "/cors" } }],
                "filters": [{ "type": "CORS", "cors": { "allowOrigins": ["https://www.example.com"], "allowMethods": ["PUT"] } }],
                "backendRefs": [to("one")],
            },
            {
                "matches": [{ "path": { "type": "PathPrefix", "value": "/unknown" } }],
                "filters": [{ "type": "ExtensionRef", "extensionRef": { "group": "x.example", "kind": "Thing", "name": "a" } }],
                "backendRefs": [to("one")],
            },
        ]),
    );
    let client = HTTP.pod("client");
    let answer = client.curl(&["-H", "x-add: client", "-H", "x-gone: 1", &url("filters", "/rewrite/a?b=c")]).unwrap();
    let seen = answer.seen();
    assert_eq!((seen.name.as_str(), seen.target.as_str(), seen.host.as_str()), ("v2", "/new/a?b=c", "inner.example"), "{answer:?}");
    assert_eq!((seen.all("x-set"), seen.all("x-add"), seen.all("x-gone")), (vec!["request"], vec!["client", "request"], vec![]));
    assert_eq!((answer.header("x-set"), answer.header("x-add")), ("response", "response"));
    // What a client says is of its own hop is not looked at, and nothing else is taken out for it.
    assert_eq!(client.curl(&["-H", "x-picked: 1", &url("filters", "/rewrite/a")]).unwrap().seen().name, "v3");
    let named = ["-H", "x-picked: 1", "-H", "Connection: x-picked, x-set", &url("filters", "/rewrite/a")];
    let seen = client.curl(&named).unwrap().seen();
    assert_eq!((seen.name.as_str(), seen.all("x-picked"), seen.all("x-set")), ("v2", vec![], vec!["request"]));
    let answer = client.curl(&[&url("filters", "/redirect/x?q")]).unwrap();
    assert_eq!((answer.status, answer.header("location")), (301, "http://else.example/there?q"), "{answer:?}");
    let answer = client.curl(&["-H", "Host: shop.example:8080", &url("filters", "/secure/x")]).unwrap();
    assert_eq!((answer.status, answer.header("location")), (302, "https://shop.example:8443/secure/x"), "{answer:?}");
    let preflight = ["-X", "OPTIONS", "-H", "Origin: https://www.example.com", "-H", "Access-Control-Request-Method: PUT"];
    let answer = client.curl(&[&preflight[..], &[&url("filters", "/cors")]].concat()).unwrap();
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, "https://www.example.com"), "{answer:?}");
    assert_eq!((answer.header("access-control-allow-methods"), answer.header("x-served-by")), ("PUT", ""));
    let answer = client.curl(&["-H", "Origin: https://www.example.com", &url("filters", "/cors")]).unwrap();
    assert_eq!((answer.seen().name.as_str(), answer.header("access-control-allow-origin")), ("v1", "https://www.example.com"));
    assert_eq!(client.curl(&[&url("filters", "/unknown")]).unwrap().status, 500, "what is not supported is not left out");
}

#[test]
fn routes_of_the_clients_namespace_replace_those_of_the_service() {
    let all = |service: &str| json!([{ "backendRefs": [to(service)] }]);
    HTTP.apply("route-consumer", &[route("consumer", &all("one")), route_in("away", "consumer", &all("three"))]);
    for (client, name) in [("client", "v1"), ("visitor", "v3")] {
        let answer = HTTP.pod(client).curl(&[&url("consumer", "/")]).unwrap();
        assert_eq!((answer.status, answer.seen().name.as_str()), (200, name), "{client}: {answer:?}");
    }
}

#[test]
fn weights_hold_exactly_over_all_connections() {
    let weighted = |service: &str, weight: u32| json!({ "name": service, "port": 80, "weight": weight });
    apply_route("weights", &json!([{ "backendRefs": [weighted("one", 7), weighted("two", 3), weighted("missing", 0)] }]));
    let client = HTTP.pod("client");
    // Each on a connection of its own, so that both workers have some.
    let names: Vec<String> = (0..40).map(|_| client.curl(&[&url("weights", "/")]).unwrap().seen().name).collect();
    let of = |name: &str| names.iter().filter(|other| *other == name).count();
    assert_eq!((of("v1"), of("v2")), (28, 12), "{names:?}");
}

#[test]
fn a_session_stays_with_its_backend_whatever_the_weights_say() {
    let weighted = |service: &str, weight: u32| json!({ "name": service, "port": 80, "weight": weight });
    let rule = |path: &str, weights: [u32; 2]| {
        json!({
            "matches": [{ "path": { "type": "PathPrefix", "value": path } }],
            "sessionPersistence": { "type": "Header", "sessionName": "X-Stay" },
            "backendRefs": [weighted("one", weights[0]), weighted("two", weights[1])],
        })
    };
    apply_route("stays", &json!([rule("/alike", [1, 1]), rule("/first", [1, 0]), rule("/none", [0, 0])]));
    let client = HTTP.pod("client");
    let first: Vec<_> = (0..2).map(|_| client.curl(&[&url("stays", "/alike")]).unwrap()).collect();
    let names: Vec<String> = first.iter().map(|answer| answer.seen().name).collect();
    assert_ne!(names[0], names[1], "without a session it is the weights' matter");
    for answer in &first {
        let session = format!("x-stay: {}", answer.header("x-stay"));
        for path in ["/alike", "/alike", "/alike", "/first", "/none"] {
            let again = client.curl(&["-H", &session, &url("stays", path)]).unwrap();
            assert_eq!((again.status, again.seen().name), (200, answer.seen().name), "{path}: {again:?}");
        }
    }
    assert_eq!(client.curl(&["-H", "x-stay: bm9ib2R5", &url("stays", "/none")]).unwrap().status, 500, "nobody's session");
}

#[test]
fn a_server_outside_the_mesh_is_reached_in_the_clear() {
    let strange = json!({ "name": "strange", "namespace": OUTSIDE, "port": 80 });
    apply_route("grpc", &json!([{ "backendRefs": [strange] }]));
    let answer = HTTP.pod("client").curl(&[&url("grpc", "/")]).unwrap();
    assert_eq!((answer.status, answer.seen().name.as_str()), (200, "stranger"), "{answer:?}");
    let labels = [("destination_service_name", "strange"), ("connection_security_policy", "none"), ("response_code", "200")];
    HTTP.wait_sum("n1", "istio_requests_total", &labels, 1.0);
}

#[test]
fn copies_go_to_mirrors_and_their_answers_to_nobody() {
    let mirror = |service: &str| json!({ "type": "RequestMirror", "requestMirror": { "backendRef": to(service) } });
    apply_route("mirror", &json!([{ "filters": [mirror("three"), mirror("missing")], "backendRefs": [to("one")] }]));
    let client = HTTP.pod("client");
    let before = client.curl(&[&url("matching", ":8080/")]).unwrap().status;
    assert_eq!(before, 200);
    let answer = client.curl(&["-d", "copied", &url("mirror", "/mirrored?status=418")]).unwrap();
    assert_eq!((answer.status, answer.seen().name.as_str()), (418, "v1"), "{answer:?}");
    HTTP.wait_sum("n1", "nodemesh_request_mirrors_total", &[("result", "sent")], 1.0);
}

#[test]
fn an_answer_that_takes_too_long_is_504() {
    apply_route(
        "timeout",
        &json!([
            { "matches": [{ "path": { "type": "PathPrefix", "value": "/total" } }], "timeouts": { "request": "300ms" }, "backendRefs": [to("two")] },
            { "matches": [{ "path": { "type": "PathPrefix", "value": "/try" } }], "timeouts": { "request": "5s", "backendRequest": "300ms" }, "backendRefs": [to("two")] },
            { "matches": [{ "path": { "type": "PathPrefix", "value": "/off" } }], "timeouts": { "request": "0s" }, "backendRefs": [to("two")] },
        ]),
    );
    let client = HTTP.pod("client");
    for (path, status) in [("/total", 504), ("/try", 504), ("/off", 200)] {
        assert_eq!(client.curl(&[&url("timeout", &format!("{path}?delay=1000"))]).unwrap().status, status, "{path}");
        assert_eq!(client.curl(&[&url("timeout", path)]).unwrap().status, 200, "{path} without delay");
    }
    HTTP.wait_sum(
        "n1",
        "istio_requests_total",
        &[("response_code", "504"), ("response_flags", "UT"), ("destination_service_name", "two")],
        2.0,
    );
}

#[test]
fn failures_are_tried_again_as_often_as_the_rule_says() {
    apply_route(
        "retry",
        &json!([
            { "matches": [{ "path": { "type": "PathPrefix", "value": "/thrice" } }], "retry": { "codes": [503], "attempts": 2, "backoff": "10ms" }, "backendRefs": [to("two")] },
            { "matches": [{ "path": { "type": "PathPrefix", "value": "/once" } }], "backendRefs": [to("two")] },
        ]),
    );
    let client = HTTP.pod("client");
    let get = |rest: &str| client.curl(&["-d", "kept for the next attempt", &url("retry", rest)]).unwrap();
    let answer = get("/thrice?fails=2&key=thrice");
    assert_eq!((answer.status, answer.seen().body), (200, 25), "{answer:?}");
    let line = HTTP.access("n1", &[("path", "/thrice"), ("status", "200")]);
    assert_eq!(text(&line, "attempts"), "3", "{line}");
    assert_eq!(get("/thrice?fails=9&key=never").status, 503, "the last answer is passed on");
    let line = HTTP.access("n1", &[("path", "/thrice"), ("status", "503")]);
    assert_eq!((text(&line, "flags"), text(&line, "outcome")), ("URX", "retries_used_up"), "{line}");
    assert_eq!(get("/thrice?fails=1&key=other&with=500").status, 500, "a code that is not listed");
    assert_eq!(get("/once?fails=1&key=once").status, 503, "nobody asked");
    // More than is kept cannot be sent again.
    let big = format!("@{}", HTTP.world.directory().join("big").display());
    std::fs::write(HTTP.world.directory().join("big"), vec![b'x'; 1 << 20]).unwrap();
    let answer = client.curl(&["--data-binary", &big, &url("retry", "/thrice?fails=1&key=big")]).unwrap();
    assert_eq!(answer.status, 503, "{answer:?}");
}
