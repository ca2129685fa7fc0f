//! Hosts outside the mesh: by ServiceEntries, and without them as outboundTrafficPolicy says. Servers outside are pods of the lab that no
//! manifest names, so that the mesh knows nothing of their addresses.

use std::sync::LazyLock;

use mesh_lab::manifests::service;
use mesh_lab::peer::End;
use mesh_lab::process::wait_until;
use mesh_lab::{Pod, PodSpec, packages};
use serde_json::{Value, json};

use crate::world::*;

/// The name server of a world, on the first of its servers outside.
const DNS_PORT: u16 = 5353;

/// A mesh with pods outside it that no manifest names.
struct Open {
    cluster: Cluster,
    outside: Vec<Pod>,
}

impl std::ops::Deref for Open {
    type Target = Cluster;
    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl Open {
    /// `one` and `two` serve HTTP at 8080 and echo at 7090; the name server says that every name below `one.test` is at the first, and every
    /// name below `two.test` at the second.
    fn start(name: &str, spec: Value) -> Open {
        packages::ensure(&["dnsmasq-base"]).expect("dnsmasq");
        let mut ground = ground(
            name,
            &[("n1", PodSpec::new("shop", "client").label("app", "client")), ("n2", PodSpec::new("shop", "server").label("app", "server"))],
        );
        let outside =
            ["one", "two"].map(|name| ground.node("n2").add_pod(PodSpec::new("elsewhere", name)).expect("a pod outside")).to_vec();
        for server in &outside {
            std::mem::forget(server.serve_http(server.name(), 8080).expect("a server"));
            std::mem::forget(server.serve("echo", 7090).expect("a server"));
        }
        let [port, one, two] = [
            format!("--port={DNS_PORT}"),
            format!("--address=/one.test/{}", outside[0].ipv4()),
            format!("--address=/two.test/{}", outside[1].ipv4()),
        ];
        let words = [
            "dnsmasq",
            "--keep-in-foreground",
            "--no-resolv",
            "--no-hosts",
            "--user=root",
            "--pid-file=",
            "--log-facility=-",
            "--local-ttl=1",
        ];
        let words: Vec<&str> = words.into_iter().chain([port.as_str(), one.as_str(), two.as_str()]).collect();
        std::mem::forget(outside[0].spawn(&words).expect("a name server"));
        ground.options.agent_flags.push(format!("--dns-server={}", at(&outside[0], DNS_PORT)));
        ground.put("services", &[service("shop", "server", &["10.97.8.1"], "server", &[("http", 80, 8080)])]);
        ground.put("settings", &[settings(spec)]);
        let cluster = ground.start();
        std::mem::forget(cluster.pod("server").serve_http("server", 8080).expect("a server"));
        Open { cluster, outside }
    }
}

static ANY: LazyLock<Open> = LazyLock::new(|| Open::start("egress", json!({ "outboundTrafficPolicy": { "mode": "ALLOW_ANY" } })));
static ONLY: LazyLock<Open> = LazyLock::new(|| Open::start("registry", json!({ "outboundTrafficPolicy": { "mode": "REGISTRY_ONLY" } })));

fn istio(kind: &str, name: &str, spec: Value) -> Value {
    json!({ "apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": { "namespace": "shop", "name": name }, "spec": spec })
}

fn entry(name: &str, spec: Value) -> Value {
    istio("ServiceEntry", name, spec)
}

#[test]
fn a_host_with_an_address_has_routes_as_a_service_has() {
    let (client, one) = (ANY.pod("client"), &ANY.outside[0]);
    let host = "static.example";
    let spec = json!({
        "hosts": [host], "addresses": ["10.97.9.1"], "resolution": "STATIC", "exportTo": ["."],
        "ports": [{ "number": 80, "name": "http", "protocol": "HTTP" }, { "number": 90, "name": "tcp", "protocol": "TCP" }],
        "endpoints": [{ "address": one.ipv4().to_string(), "ports": { "http": 8080, "tcp": 7090 } }],
    });
    let rules = json!({ "hosts": [host], "http": [
        { "match": [{ "uri": { "prefix": "/teapot" } }], "fault": { "abort": { "httpStatus": 418, "percentage": { "value": 100 } } }, "route": [{ "destination": { "host": host } }] },
        { "match": [{ "uri": { "prefix": "/slow" } }], "timeout": "300ms", "route": [{ "destination": { "host": host } }] },
        { "headers": { "request": { "set": { "x-added": "by-route" } } }, "route": [{ "destination": { "host": host } }] },
    ] });
    ANY.apply("static", &[entry("static", spec), istio("VirtualService", "static", rules)]);
    let get = |path: &str| client.curl(&["-H", &format!("Host: {host}"), &format!("http://10.97.9.1{path}")]).unwrap();
    let answer = get("/");
    let seen = answer.seen();
    assert_eq!(
        (answer.status, seen.name.as_str(), seen.host.as_str(), seen.all("x-added")),
        (200, "one", host, vec!["by-route"]),
        "{answer:?}"
    );
    assert_eq!((get("/teapot").status, get("/slow?delay=1000").status), (418, 504));
    let labels = [
        ("destination_service", host),
        ("destination_service_name", host),
        ("destination_service_namespace", "shop"),
        ("connection_security_policy", "none"),
        ("response_code", "200"),
    ];
    ANY.wait_sum("n1", "istio_requests_total", &labels, 1.0);
    let line = ANY.access("n1", &[("service", host), ("status", "418")]);
    assert_eq!(text(&line, "route"), "VirtualService shop/static rule 0", "{line}");

    let report = client.connect("10.97.9.1:90".parse().unwrap(), "hello").unwrap();
    assert_eq!((report.received.as_str(), report.peer), ("hello", Some("10.97.9.1:90".parse().unwrap())), "{report:?}");
    let line = ANY.access_of("n1", "outbound", &report);
    assert_eq!((text(&line, "service"), text(&line, "server")), (host, at(one, 7090).to_string().as_str()), "{line}");
}

#[test]
fn a_gateway_route_has_a_host_as_its_parent_and_hosts_as_its_backends() {
    let client = ANY.pod("client");
    let of = |name: &str, address: &str, pod: &Pod| {
        let spec = json!({
            "hosts": [format!("{name}.example")], "addresses": [address], "resolution": "STATIC", "exportTo": ["."],
            "ports": [{ "number": 80, "name": "http", "protocol": "HTTP" }],
            "endpoints": [{ "address": pod.ipv4().to_string(), "ports": { "http": 8080 } }],
        });
        entry(name, spec)
    };
    let to = |host: &str| json!([{ "group": "networking.istio.io", "kind": "Hostname", "name": host, "port": 80 }]);
    let route = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": { "namespace": "shop", "name": "gw" },
        "spec": { "parentRefs": [{ "group": "networking.istio.io", "kind": "ServiceEntry", "name": "gw-one" }], "rules": [
            { "matches": [{ "path": { "value": "/two" } }], "backendRefs": to("gw-two.example") },
            { "filters": [{ "type": "RequestHeaderModifier", "requestHeaderModifier": { "set": [{ "name": "x-added", "value": "by-route" }] } }],
              "backendRefs": to("gw-one.example") },
        ] },
    });
    let entries = [of("gw-one", "10.97.9.7", &ANY.outside[0]), of("gw-two", "10.97.9.8", &ANY.outside[1])];
    ANY.apply("gw", &[&entries[..], &[route]].concat());
    let get = |path: &str| client.curl(&["-H", "Host: gw-one.example", &format!("http://10.97.9.7{path}")]).unwrap();
    let answer = get("/one");
    let seen = answer.seen();
    assert_eq!((answer.status, seen.name.as_str(), seen.all("x-added")), (200, "one", vec!["by-route"]), "{answer:?}");
    let line = ANY.access("n1", &[("service", "gw-one.example"), ("path", "/one")]);
    assert!(text(&line, "route").starts_with("HTTPRoute shop/gw"), "{line}");
    let answer = get("/two");
    let seen = answer.seen();
    assert_eq!((answer.status, seen.name.as_str(), seen.all("x-added").len()), (200, "two", 0), "{answer:?}");
    ANY.withdraw("gw");
}

#[test]
fn a_name_leads_to_the_endpoints_of_its_own_entry() {
    let (client, two) = (ANY.pod("client"), &ANY.outside[1]);
    // The client dials the second server, as if its own name server had said so, or as if it lied.
    let get = |host: &str| client.curl(&["-H", &format!("Host: {host}"), &format!("http://{}/", at(two, 8080))]).unwrap();
    assert_eq!(get("api.one.test").seen().name, "two", "nothing is known of the host");
    let ports = json!([{ "number": 8080, "name": "http", "protocol": "HTTP" }]);
    ANY.apply("named", &[entry("named", json!({ "hosts": ["api.one.test"], "ports": ports, "resolution": "DNS" }))]);
    // The first waits until the name is looked up.
    let answer = get("api.one.test");
    assert_eq!((answer.status, answer.seen().name.as_str()), (200, "one"), "where it is the node's name server says: {answer:?}");
    assert_eq!(get("other.one.test").seen().name, "two", "of another host nothing is known");
    assert!(ANY.sum("n1", "istio_requests_total", &[("destination_service", "api.one.test"), ("response_code", "200")]) >= 1.0);
    let line = ANY.access("n1", &[("service", "api.one.test"), ("status", "200")]);
    assert_eq!(text(&line, "server"), at(&ANY.outside[0], 8080).to_string(), "{line}");
    // Two requests of one connection, each by its own name.
    let url = format!("http://{}/", at(two, 8080));
    let one_of = |host: &'static str| ["-sS", "-o", "/dev/null", "-w", "%{http_code} %{num_connects} ", "-H", host];
    let words = [&["curl"][..], &one_of("Host: api.one.test"), &[&url, "--next"], &one_of("Host: other.one.test"), &[&url]].concat();
    let both = client.exec(&words, LIMIT).unwrap();
    assert_eq!(both.stdout.trim(), "200 1 421 0", "{both:?}");
    ANY.withdraw("named");
    assert_eq!(get("api.one.test").seen().name, "two", "what is taken away is gone");
}

#[test]
fn connections_that_are_no_http_are_told_by_their_address() {
    let (client, [one, two]) = (ANY.pod("client"), [&ANY.outside[0], &ANY.outside[1]]);
    let ports = json!([{ "number": 7090, "name": "db", "protocol": "TCP" }]);
    ANY.apply("db", &[entry("db", json!({ "hosts": ["db.two.test"], "ports": ports, "resolution": "DNS" }))]);
    wait_until("the name is looked up", SOON, || {
        let report = client.connect(at(two, 7090), "hello").unwrap();
        assert_eq!((report.received.as_str(), report.peer), ("hello", Some(at(two, 7090))), "it works all the while: {report:?}");
        text(&ANY.access_of("n1", "outbound", &report), "service") == "db.two.test"
    })
    .unwrap();
    let report = client.connect(at(one, 7090), "hello").unwrap();
    assert_eq!((report.received.as_str(), report.end), ("hello", End::Eof), "{report:?}");
    let line = ANY.access_of("n1", "outbound", &report);
    assert_eq!((text(&line, "server"), text(&line, "outcome")), (at(one, 7090).to_string().as_str(), "completed"), "{line}");
    let passed = [("destination_service_name", "PassthroughCluster"), ("destination_service", "unknown")];
    assert!(ANY.sum("n1", "istio_tcp_connections_opened_total", &passed) >= 1.0, "{}", ANY.lines("n1", "istio_tcp_connections_opened"));
    assert!(ANY.sum("n1", "nodemesh_egress_connections_total", &[("result", "passed")]) >= 1.0);
    ANY.withdraw("db");
}

#[test]
fn what_is_not_in_the_registry_is_refused_and_said() {
    let (client, [one, two]) = (ONLY.pod("client"), [&ONLY.outside[0], &ONLY.outside[1]]);
    let get = |to: &str, host: &str| client.curl(&["-H", &format!("Host: {host}"), &format!("http://{to}/")]).unwrap();
    let answer = get(&at(two, 8080).to_string(), "api.one.test");
    assert_eq!(answer.status, 502, "{answer:?}");
    assert!(answer.body.contains("REGISTRY_ONLY"), "{answer:?}");
    let line = ONLY.access("n1", &[("direction", "outbound"), ("status", "502")]);
    assert_eq!((text(&line, "outcome"), text(&line, "authority")), ("registry_only", "api.one.test"), "{line}");
    let report = client.connect(at(two, 7090), "hello").unwrap();
    assert_eq!((report.received.as_str(), report.end), ("", End::Reset), "{report:?}");
    let line = ONLY.access_of("n1", "outbound", &report);
    assert_eq!(text(&line, "outcome"), "registry_only", "{line}");
    assert!(line.to_string().contains("REGISTRY_ONLY"), "{line}");
    let refused = [("destination_service_name", "BlackHoleCluster"), ("response_flags", "DENY")];
    ONLY.wait_sum("n1", "istio_tcp_connections_closed_total", &refused, 1.0);
    ONLY.wait_sum("n1", "nodemesh_egress_connections_total", &[("result", "refused")], 2.0);

    // Pods and Services are in the registry, and so is what an entry names.
    assert_eq!(get("10.97.8.1", "server").seen().name, "server");
    assert_eq!(get(&at(&ONLY.pod("server"), 8080).to_string(), "server").seen().name, "server");
    let ports = json!([{ "number": 8080, "name": "http", "protocol": "HTTP" }, { "number": 7090, "name": "db", "protocol": "TCP" }]);
    ONLY.apply("named", &[entry("named", json!({ "hosts": ["api.one.test"], "ports": ports, "resolution": "DNS" }))]);
    let resolved = || ONLY.sum("n1", "nodemesh_dns_names", &[("state", "resolved")]) == 1.0;
    wait_until("the name is looked up", SOON, resolved).unwrap();
    assert_eq!(get(&at(two, 8080).to_string(), "api.one.test").seen().name, "one", "not to where the client says");
    assert_eq!(get(&at(one, 8080).to_string(), "evil.one.test").status, 502);
    let report = client.connect(at(one, 7090), "hello").unwrap();
    assert_eq!(report.received, "hello", "{report:?}");
    ONLY.withdraw("named");
    assert_eq!(get(&at(one, 8080).to_string(), "api.one.test").status, 502);
    assert_eq!(client.connect(at(one, 7090), "hello").unwrap().end, End::Reset);
}

#[test]
fn what_is_sent_to_a_host_is_limited_at_its_clients() {
    let (client, one) = (ANY.pod("client"), &ANY.outside[0]);
    let spec = json!({
        "hosts": ["limited.example"], "addresses": ["10.97.9.2"], "resolution": "STATIC", "exportTo": ["."],
        "ports": [{ "number": 80, "name": "http", "protocol": "HTTP" }, { "number": 90, "name": "tcp", "protocol": "TCP" }],
        "endpoints": [{ "address": one.ipv4().to_string(), "ports": { "http": 8080, "tcp": 7090 } }],
    });
    let limit = |scope: &str, limits: Value| {
        json!({
            "apiVersion": "nodemesh.dev/v1alpha1",
            "kind": "RateLimit",
            "metadata": { "namespace": "shop", "name": "limited" },
            "spec": {
                "targetRefs": [{ "group": "networking.istio.io", "kind": "ServiceEntry", "name": "limited" }],
                "scope": scope,
                "limits": limits,
            },
        })
    };
    let retries = json!({
        "hosts": ["limited.example"],
        "http": [{ "retries": { "attempts": 5, "retryOn": "5xx", "backoff": "1ms" }, "route": [{ "destination": { "host": "limited.example" } }] }],
    });
    let put =
        |limit: Value| ANY.apply("limited", &[entry("limited", spec.clone()), istio("VirtualService", "limited", retries.clone()), limit]);
    let get = |path: &str| client.curl(&["-H", "Host: limited.example", &format!("http://10.97.9.2{path}")]).unwrap();
    let statuses = |path: &str, count: usize| (0..count).map(|_| get(path).status).collect::<Vec<u16>>();

    put(limit("endpoint", json!([{ "requests": 1, "unit": "hour", "burst": 3 }])));
    let first = get("/?connection=ratelimit-limit");
    assert_eq!((first.status, first.header("ratelimit-limit"), first.header("ratelimit-remaining")), (200, "3", "2"), "{first:?}");
    assert_eq!(statuses("/", 2), [200, 200]);
    let over = get("/");
    assert_eq!((over.status, over.body.as_str(), over.header("ratelimit-remaining")), (429, "rate limit exceeded", "0"), "{over:?}");
    let line = ANY.access("n1", &[("direction", "outbound"), ("status", "429"), ("service", "limited.example")]);
    let told = (text(&line, "outcome"), text(&line, "flags"), text(&line, "rate_limit"));
    assert_eq!(told, ("rate_limited", "RL", "shop/limited"), "{line}");
    ANY.wait_sum("n1", "nodemesh_rate_limit_refusals_total", &[("limit", "shop/limited")], 1.0);

    // Each attempt is one more that the host sees; what it said is passed on when there may be no other.
    put(limit("endpoint", json!([{ "requests": 2, "unit": "hour", "burst": 3 }])));
    let failed = get("/?status=503");
    assert_eq!((failed.status, failed.header("ratelimit-remaining")), (503, "0"), "as it stands after the last: {failed:?}");
    assert_eq!(get("/?status=503").status, 429);
    let seen = [("service", "limited.example"), ("status", "503"), ("direction", "outbound")];
    assert_eq!(text(&ANY.access("n1", &seen), "attempts"), "3");
    ANY.wait_sum("n1", "nodemesh_request_retry_refusals_total", &[("bound", "rateLimit")], 1.0);

    // By path, in the form in which paths are judged; a connection that is no HTTP counts as one.
    put(limit(
        "endpoint",
        json!([
            { "requests": 1, "unit": "hour", "burst": 2, "by": { "pathPrefix": "/api" } },
            { "requests": 1, "unit": "hour", "burst": 9 },
        ]),
    ));
    assert_eq!((statuses("/apis", 3), statuses("/x/..//%61pi/a", 3)), (vec![200; 3], vec![200, 200, 429]));
    let connect = || client.connect("10.97.9.2:90".parse().unwrap(), "hello").unwrap();
    for _ in 0..4 {
        assert_eq!(connect().received, "hello");
    }
    let refused = connect();
    assert_eq!((refused.received.as_str(), refused.end), ("", End::Reset), "{refused:?}");
    assert_eq!(text(&ANY.access_of("n1", "outbound", &refused), "outcome"), "rate_limited");

    // One budget for all clients, which goes to the node that has the only one that asks.
    put(limit("service", json!([{ "requests": 4, "unit": "second" }])));
    let budget = [("limit", "shop/limited"), ("service", "shop/limited.example")];
    let share = |node: &str| ANY.sum(node, "nodemesh_rate_limit_share_ratio", &budget);
    let all = wait_until("the budget is where the requests are", LIMIT, || {
        assert!([200, 429].contains(&get("/").status));
        share("n1") > 0.9 && share("n2") < 0.1
    });
    assert!(all.is_ok(), "{}", ANY.lines("n1", "nodemesh_rate_limit"));
    ANY.withdraw("limited");
}

#[test]
fn tls_is_told_by_its_server_name() {
    packages::ensure(&["openssl"]).expect("openssl");
    let (client, [one, two]) = (ANY.pod("client"), [&ANY.outside[0], &ANY.outside[1]]);
    let [key, certificate] = ["key", "certificate"].map(|name| ANY.world.directory().join(name).display().to_string());
    let make =
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=tls.one.test", "-keyout", &key, "-out", &certificate];
    one.exec(&make, LIMIT).unwrap().success().unwrap();
    let _server = one.spawn(&["openssl", "s_server", "-accept", "8443", "-key", &key, "-cert", &certificate, "-www", "-quiet"]).unwrap();
    let ports = json!([{ "number": 8443, "name": "tls", "protocol": "TLS" }]);
    ANY.apply("tls", &[entry("tls", json!({ "hosts": ["*.one.test"], "ports": ports, "resolution": "STATIC", "endpoints": [{ "address": one.ipv4().to_string() }] }))]);
    // The client dials the second server, where nobody listens.
    let get = |host: &str| {
        let resolve = format!("{host}:8443:{}", two.ipv4());
        client.curl(&["-k", "--resolve", &resolve, &format!("https://{host}:8443/")]).unwrap()
    };
    wait_until("the server listens", SOON, || get("tls.one.test").status == 200).unwrap();
    let line = ANY.access("n1", &[("service", "*.one.test"), ("outcome", "completed")]);
    assert_eq!(text(&line, "server"), at(one, 8443).to_string(), "{line}");
    assert_eq!(get("tls.two.test").status, 0, "another name goes where it was dialled");
    ANY.withdraw("tls");
    assert_eq!(get("tls.one.test").status, 0);
}
