//! To which endpoint requests go and what is done to them on purpose: hashes, sessions, localities, warm-up, copies by share, faults.

use mesh_lab::peer::{Curled, Server};

use super::*;

/// The mesh that these tests share: two servers in two zones, the client in the zone of the first.
struct Traffic {
    cluster: Cluster,
    _servers: [Server; 4],
}

const SERVICES: [&str; 11] = ["ring", "maglev", "source", "baked", "cookie", "header", "copied", "shadow", "faulty", "zones", "warm"];

static TRAFFIC: LazyLock<Traffic> = LazyLock::new(|| {
    let ground = ground(
        "traffic",
        &[
            ("n1", PodSpec::new("shop", "client")),
            ("n1", PodSpec::new("shop", "v1").label("kind", "echo")),
            ("n2", PodSpec::new("shop", "v2").label("kind", "echo")),
            ("n2", PodSpec::new("shop", "shadow")),
            ("n2", PodSpec::new("shop", "old").label("kind", "warm")),
        ],
    );
    let nodes: Vec<Value> = ground
        .world
        .nodes()
        .iter()
        .map(|node| {
            let mut object = mesh_lab::manifests::node(node);
            object["metadata"]["labels"]["topology.kubernetes.io/region"] = json!("north");
            object["metadata"]["labels"]["topology.kubernetes.io/zone"] = json!(format!("north-{}", node.name()));
            object
        })
        .collect();
    ground.put("nodes", &nodes);
    let mut objects = Vec::new();
    for (name, number) in SERVICES.iter().zip(1..) {
        let mut service = service("shop", name, &[&format!("10.97.0.{number}")], name, &[("http", 80, 8080)]);
        service["spec"]["selector"] = match *name {
            "shadow" => json!({ "app": "shadow" }),
            "warm" => json!({ "kind": "warm" }),
            _ => json!({ "kind": "echo" }),
        };
        objects.push(service);
    }
    objects.extend(rules());
    ground.put("objects", &objects);
    let cluster = ground.start();
    let servers = ["v1", "v2", "shadow", "old"].map(|name| cluster.pod(name).serve_http(name, 8080).expect("a server"));
    Traffic { cluster, _servers: servers }
});

/// What the tests are about. All is there from the start, so that no test waits for what another has changed.
fn rules() -> Vec<Value> {
    let mut all = hashes();
    all.extend(sessions());
    all.extend([copies(), faults()]);
    all.extend(endpoints());
    all
}

fn hashes() -> Vec<Value> {
    vec![
        hashed("ring", &json!({ "httpHeaderName": "x-user", "ringHash": { "minimumRingSize": 256 } })),
        hashed("maglev", &json!({ "httpQueryParameterName": "user", "maglev": { "tableSize": 251 } })),
        hashed("source", &json!({ "useSourceIp": true })),
        hashed("baked", &json!({ "httpCookie": { "name": "user", "path": "/shop", "ttl": "60s" } })),
    ]
}

fn sessions() -> [Value; 2] {
    let persistent = |kind: &str| {
        let own = json!({ "sessionName": "where", "type": kind });
        let mut route = route_in(
            "shop",
            &kind.to_ascii_lowercase(),
            &json!([{ "backendRefs": [to(&kind.to_ascii_lowercase())], "sessionPersistence": own }]),
        );
        route["spec"]["parentRefs"][0]["port"] = json!(80);
        route
    };
    ["Cookie", "Header"].map(persistent)
}

fn copies() -> Value {
    let mirror = |share: &Value| {
        let mut mirror = json!({ "backendRef": to("shadow") });
        mirror.as_object_mut().unwrap().extend(share.as_object().unwrap().clone());
        json!([{ "type": "RequestMirror", "requestMirror": mirror }])
    };
    let rule = |path: &str, share: &Value| json!({ "matches": [{ "path": { "type": "Exact", "value": path } }], "filters": mirror(share), "backendRefs": [to("copied")] });
    let rules = json!([
        rule("/none", &json!({ "percent": 0 })),
        rule("/all", &json!({ "percent": 100 })),
        rule("/half", &json!({ "fraction": { "numerator": 1, "denominator": 2 } })),
    ]);
    route_in("shop", "copied", &rules)
}

fn faults() -> Value {
    let path = |path: &str| json!([{ "uri": { "exact": path } }]);
    let to = json!([{ "destination": { "host": "faulty" } }]);
    let delay = |percent: u32| json!({ "delay": { "fixedDelay": "60s", "percentage": { "value": percent } } });
    let abort = |percent: u32| json!({ "abort": { "httpStatus": 418, "percentage": { "value": percent } } });
    let grpc = json!({ "abort": { "grpcStatus": "RESOURCE_EXHAUSTED", "percentage": { "value": 100 } } });
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": { "namespace": "shop", "name": "faulty" },
        "spec": { "hosts": ["faulty"], "http": [
            { "match": path("/delayed"), "fault": delay(100), "route": to },
            { "match": path("/undelayed"), "fault": delay(0), "route": to },
            { "match": path("/aborted"), "fault": abort(100), "route": to },
            { "match": path("/unaborted"), "fault": abort(0), "route": to },
            { "match": path("/grpc"), "fault": grpc, "route": to },
        ] },
    })
}

fn endpoints() -> [Value; 4] {
    let near = json!({
        "loadBalancer": { "simple": "ROUND_ROBIN", "localityLbSetting": { "enabled": true } },
        "outlierDetection": { "consecutive5xxErrors": 2, "interval": "1s", "baseEjectionTime": "60s", "maxEjectionPercent": 100 },
    });
    // Policies are for HTTP that is taken apart, which a route asks for.
    let slow = json!({ "loadBalancer": { "simple": "ROUND_ROBIN", "warmup": { "duration": "600s" } } });
    let plain = |service: &str| route_in("shop", service, &json!([{ "backendRefs": [to(service)] }]));
    [destination_rule("zones", &near), plain("zones"), destination_rule("warm", &slow), plain("warm")]
}

fn get(service: &str, path: &str, words: &[&str]) -> Curled {
    let number = SERVICES.iter().position(|name| *name == service).unwrap() + 1;
    let url = format!("http://10.97.0.{number}{path}");
    TRAFFIC.cluster.pod("client").curl(&[words, &[&url]].concat()).unwrap()
}

fn server(service: &str, path: &str, words: &[&str]) -> String {
    let answer = get(service, path, words);
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.seen().name
}

fn destination_rule(host: &str, policy: &Value) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": { "namespace": "shop", "name": host },
        "spec": { "host": host, "trafficPolicy": policy },
    })
}

fn hashed(host: &str, by: &Value) -> Value {
    destination_rule(host, &json!({ "loadBalancer": { "consistentHash": by } }))
}

/// What users of these numbers are served by, each asked for three times.
fn served(users: std::ops::Range<u32>, ask: impl Fn(u32) -> String) -> Vec<String> {
    users
        .map(|user| {
            let names = [ask(user), ask(user), ask(user)];
            assert!(names.iter().all(|name| *name == names[0]), "{user}: {names:?}");
            names[0].clone()
        })
        .collect()
}

fn both(names: &[String]) -> bool {
    names.iter().any(|name| name == "v1") && names.iter().any(|name| name == "v2")
}

#[test]
fn a_hash_decides_by_header_query_source_and_cookie() {
    let by_header = |user: u32| server("ring", "/", &["-H", &format!("x-user: {user}")]);
    let by_query = |user: u32| server("maglev", &format!("/?user={user}"), &[]);
    assert!(both(&served(0..12, by_header)));
    assert!(both(&served(0..12, by_query)));
    served(0..2, |_| server("source", "/", &[]));
    let answer = get("baked", "/", &[]);
    let cookie = answer.header("set-cookie").to_owned();
    assert!(cookie.starts_with("user=") && cookie.contains("Path=/shop") && cookie.contains("Max-Age=60"), "{cookie}");
    let pair = cookie.split(';').next().unwrap().to_owned();
    let name = answer.seen().name;
    served(0..2, |_| {
        let again = get("baked", "/", &["-H", &format!("Cookie: a=b; {pair}")]);
        assert_eq!((again.header("set-cookie"), again.seen().name.as_str()), ("", name.as_str()), "{again:?}");
        again.seen().name
    });
}

#[test]
fn a_session_stays_with_its_endpoint() {
    for service in ["cookie", "header"] {
        let mut names = Vec::new();
        for _ in 0..12 {
            let answer = get(service, "/", &[]);
            let name = answer.seen().name;
            let session = match service {
                "cookie" => format!("Cookie: {}", answer.header("set-cookie").split(';').next().unwrap()),
                _ => format!("where: {}", answer.header("where")),
            };
            for _ in 0..3 {
                assert_eq!(server(service, "/", &["-H", &session]), name, "{session}");
            }
            names.push(name);
        }
        assert!(both(&names), "{service}: {names:?}");
        // One that names nobody is not heeded.
        let forged = if service == "cookie" { "Cookie: where=MTAuMC4wLjE6ODA" } else { "where: MTAuMC4wLjE6ODA" };
        server(service, "/", &["-H", forged]);
    }
}

#[test]
fn copies_are_made_of_the_share_that_is_asked_for() {
    let sent = || TRAFFIC.cluster.sum("n1", "nodemesh_request_mirrors_total", &[("result", "sent")]);
    let ask = |path: &str| {
        for _ in 0..20 {
            server("copied", path, &["-d", "copied"]);
        }
    };
    let before = sent();
    ask("/none");
    ask("/all");
    TRAFFIC.cluster.wait_sum("n1", "nodemesh_request_mirrors_total", &[("result", "sent")], before + 20.0);
    ask("/half");
    // That none or all of twenty are is one in a million each.
    wait_until("some copies", SOON, || sent() > before + 20.0).unwrap();
    assert!(sent() < before + 40.0);
}

#[test]
fn faults_are_injected_into_the_share_that_is_asked_for() {
    let late = get("faulty", "/delayed", &["-m", "1"]);
    assert_eq!((late.exit, late.status), (Some(28), 0), "{late:?}");
    for path in ["/undelayed", "/unaborted"] {
        assert!((0..10).all(|_| get("faulty", path, &[]).status == 200), "{path}");
    }
    assert!((0..10).all(|_| get("faulty", "/aborted", &[]).status == 418));
    let answer = get("faulty", "/grpc", &["--http2-prior-knowledge", "-X", "POST", "-H", "content-type: application/grpc"]);
    assert_eq!((answer.status, answer.header("grpc-status")), (200, "8"), "{answer:?}");
    let labels = [("reporter", "source"), ("destination_service_name", "faulty"), ("response_code", "418"), ("response_flags", "FI")];
    TRAFFIC.cluster.wait_sum("n1", "istio_requests_total", &labels, 10.0);
    let line = TRAFFIC.cluster.access("n1", &[("path", "/aborted"), ("status", "418")]);
    assert_eq!(text(&line, "outcome"), "fault_injected", "{line}");
}

#[test]
fn the_own_zone_serves_until_it_fails() {
    assert!((0..10).all(|_| server("zones", "/", &[]) == "v1"));
    for _ in 0..2 {
        assert_eq!(get("zones", "/?status=500", &[]).status, 500);
    }
    assert!((0..10).all(|_| server("zones", "/", &[]) == "v2"));
    let ejected = [("cluster", "shop/zones:80"), ("state", "ejected")];
    assert_eq!(TRAFFIC.cluster.sum("n1", "nodemesh_cluster_endpoints", &ejected), 1.0);
}

#[test]
fn a_new_endpoint_gets_less_at_first() {
    // What is there from the start is not new.
    assert_eq!(server("warm", "/", &[]), "old");
    let pod = TRAFFIC.cluster.add_pod("n2", PodSpec::new("shop", "new").label("kind", "warm"));
    let _server = pod.serve_http("new", 8080).unwrap();
    TRAFFIC.cluster.wait_served(&pod);
    wait_until("the new one has some", LIMIT, || server("warm", "/", &[]) == "new").unwrap();
    let names: Vec<String> = (0..200).map(|_| server("warm", "/", &[])).collect();
    let new = names.iter().filter(|name| *name == "new").count();
    // Where its turn comes it is passed over nine times of ten, by chance: of two hundred it has some ten, where it would have a hundred.
    assert!((1..=40).contains(&new), "{names:?}");
}
