//! What operators look at: metrics, access log, admin endpoint.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, SystemTime};

use mesh_lab::manifests::{authorization_policy, service};
use mesh_lab::peer::End;
use mesh_lab::process::wait_until;
use mesh_lab::{Pod, PodSpec};
use serde_json::json;

use crate::strict::{Exposition, open_metrics, prometheus};
use crate::world::{Cluster, LIMIT, OUTSIDE, SOON, at, canonical, ground, number, text};

/// Every label of a TCP metric, in Istio's order.
const LABELS: [&str; 22] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "request_protocol",
    "response_flags",
];

const FAMILIES: [&str; 4] = [
    "istio_tcp_connections_opened_total",
    "istio_tcp_connections_closed_total",
    "istio_tcp_sent_bytes_total",
    "istio_tcp_received_bytes_total",
];

/// A request as it is, so that every header can be chosen; head and body of the answer.
fn ask(cluster: &Cluster, node: &str, port: u16, request: &str) -> (u16, String, String) {
    let exchange = || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), LIMIT).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8(answer).unwrap()
    };
    let answer = mesh_lab::netns::within(&cluster.node(node).netns(), exchange).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP: {answer}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{head}"));
    (status, head.to_ascii_lowercase(), body.to_owned())
}

fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n")
}

/// Both formats, each read strictly, of the same content.
fn scrape(cluster: &Cluster, node: &str) -> Exposition {
    let (status, head, body) =
        ask(cluster, node, 15020, &get("/metrics", "Host: localhost\r\nAccept: application/openmetrics-text;version=1.0.0\r\n"));
    assert!(status == 200 && head.contains("application/openmetrics-text"), "{head}");
    let open = open_metrics(&body);
    let (status, head, body) = ask(cluster, node, 15020, &get("/metrics", "Host: localhost\r\n"));
    assert!(status == 200 && head.contains("text/plain"), "{head}");
    let plain = prometheus(&body);
    let names = |page: &Exposition| {
        page.samples
            .iter()
            .map(|sample| sample.name.clone())
            .filter(|name| name.starts_with("istio_"))
            .collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(names(&open), names(&plain));
    for sample in plain.samples.iter().filter(|sample| sample.name.starts_with("istio_")) {
        let labels: Vec<&str> = sample.labels.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(labels[..22], LABELS, "{sample:?}");
        assert_eq!(labels[22..], ["connection_security_policy"], "{sample:?}");
        assert!(sample.labels.iter().all(|(_, value)| !value.is_empty()), "{sample:?}");
    }
    plain
}

/// The labels that tell who talked to whom.
fn between<'a>(reporter: &'a str, source: &'a str, destination: &'a str) -> [(&'a str, &'a str); 3] {
    [("reporter", reporter), ("source_workload", source), ("destination_workload", destination)]
}

fn eventually(cluster: &Cluster, node: &str, what: &str, check: impl Fn(&Exposition) -> bool) -> Exposition {
    let mut page = scrape(cluster, node);
    let waited = wait_until(what, SOON, || {
        page = scrape(cluster, node);
        check(&page)
    });
    assert!(waited.is_ok(), "{what} at {node}:\n{}", cluster.metrics(node).text());
    page
}

#[test]
fn operators_see_what_happened() {
    let version = |spec: PodSpec| spec.label("version", "v3");
    let pods = [
        ("n1", version(PodSpec::new("shop", "client").service_account("frontend"))),
        ("n1", PodSpec::new(OUTSIDE, "outsider")),
        ("n2", version(PodSpec::new("shop", "server").service_account("backend"))),
        ("n2", PodSpec::new("shop", "near").service_account("frontend")),
    ];
    let ground = ground("observe", &pods);
    ground.put("service", &[service("shop", "store", &["10.96.0.90"], "server", &[("tcp", 80, 7000)])]);
    let deny = json!([{ "to": [{ "operation": { "ports": ["7009"] } }] }]);
    ground.put("policy", &[authorization_policy("shop", "closed", &[("app", "server")], "DENY", &deny)]);
    let cluster = ground.start();
    let [client, server, near, outsider] = ["client", "server", "near", "outsider"].map(|name| cluster.pod(name));
    let _sink = server.serve("sink", 7000).unwrap();
    let _echo = server.serve("echo", 7001).unwrap();
    let _closed = server.serve("echo", 7009).unwrap();

    bytes_and_labels(&cluster, &client, &near, &outsider, &server);
    the_agents_own_metrics(&cluster, &client, &near, &server);
    admin(&cluster, &client, &server);
    access_levels(&cluster, &client, &near, &server);
}

/// 1000 bytes up and 15 down, by the Service: the same at both reporters and on every way, and never the wrong way round.
fn bytes_and_labels(cluster: &Cluster, client: &Pod, near: &Pod, outsider: &Pod, server: &Pod) {
    let up = "x".repeat(1000);
    let down = "{\"bytes\":1000}\n";
    for (from, to) in [(client, "10.96.0.90:80".parse().unwrap()), (near, "10.96.0.90:80".parse().unwrap()), (outsider, at(server, 7000))] {
        let report = from.connect(to, &up).unwrap();
        assert_eq!((&*report.received, report.end), (down, End::Eof), "{}: {report:?}", from.name());
    }
    let ways = [
        ("n1", "source", "client", "mutual_tls"),
        ("n2", "destination", "client", "mutual_tls"),
        ("n2", "source", "near", "none"),
        ("n2", "destination", "near", "none"),
        ("n2", "destination", "outsider", "none"),
    ];
    for (node, reporter, source, security) in ways {
        let who = between(reporter, source, "server");
        let page = eventually(cluster, node, &format!("{source} by {reporter}"), |page| page.sum(FAMILIES[1], &who) == 1.0);
        assert_eq!(page.sum(FAMILIES[0], &who), 1.0, "{who:?}");
        assert_eq!(page.sum(FAMILIES[2], &who), down.len() as f64, "sent to {who:?}");
        assert_eq!(page.sum(FAMILIES[3], &who), 1000.0, "received from {who:?}");
        let by_service = source != "outsider";
        let meshed = source != "outsider";
        let expected = [
            ("source_workload_namespace", if meshed { "shop" } else { OUTSIDE }),
            ("source_principal", if meshed { "spiffe://cluster.local/ns/shop/sa/frontend" } else { "unknown" }),
            ("source_version", if source == "client" { "v3" } else { "unknown" }),
            ("source_app", source),
            ("source_cluster", "Kubernetes"),
            ("destination_service", if by_service { "store.shop.svc.cluster.local" } else { "unknown" }),
            ("destination_service_name", if by_service { "store" } else { "unknown" }),
            ("destination_service_namespace", if by_service { "shop" } else { "unknown" }),
            ("destination_principal", if meshed { "spiffe://cluster.local/ns/shop/sa/backend" } else { "unknown" }),
            ("destination_workload_namespace", "shop"),
            ("destination_canonical_service", "server"),
            ("destination_canonical_revision", "v3"),
            ("destination_version", "v3"),
            ("destination_app", "server"),
            ("request_protocol", "tcp"),
            ("response_flags", "-"),
            ("connection_security_policy", security),
        ];
        let sample = page.all(FAMILIES[1], &who).next().expect("a sample");
        for (label, value) in expected {
            // Who sent plaintext has no identity; what identity the server has is nothing that was shown to it.
            if label == "destination_principal" && !meshed {
                continue;
            }
            assert_eq!(sample.label(label), Some(value), "{label} of {who:?}");
        }
    }
    let denied = client.connect(at(server, 7009), "x").unwrap();
    assert_eq!(denied.received_bytes, 0);
    for (node, reporter) in [("n1", "source"), ("n2", "destination")] {
        let who = [&between(reporter, "client", "server")[..], &[("response_flags", "DENY")]].concat();
        eventually(cluster, node, "the denial", |page| page.sum(FAMILIES[1], &who) == 1.0);
    }
    // While a connection lives, its bytes are counted.
    let ticking = client.spawn_peer(&["tick", &at(server, 7001).to_string(), "--interval", "20"]).unwrap();
    wait_until("rounds", LIMIT, || ticking.ticks() > 5).unwrap();
    let who = between("destination", "client", "server");
    eventually(cluster, "n2", "bytes of a living connection", |page| page.sum(FAMILIES[3], &who) > 1000.0);
    eventually(cluster, "n1", "bytes of a living connection", |page| {
        page.sum(FAMILIES[2], &between("source", "client", "server")) > down.len() as f64
    });
}

fn the_agents_own_metrics(cluster: &Cluster, client: &Pod, near: &Pod, server: &Pod) {
    let before = scrape(cluster, "n2");
    let verdict = |page: &Exposition, kind| page.sum("nodemesh_kernel_verdicts_total", &[("verdict", kind)]);
    assert_eq!(near.connect(at(server, 7001), "x").unwrap().received, "x");
    assert!(!near.connect(at(server, 7009), "x").unwrap().connected);
    let page = eventually(cluster, "n2", "the kernel's verdicts", |page| {
        verdict(page, "direct") == verdict(&before, "direct") + 1.0 && verdict(page, "deny") == verdict(&before, "deny") + 1.0
    });
    assert_eq!(page.sum("nodemesh_kernel_refusals_total", &[("reason", "policy_denied")]), 1.0);
    let before = scrape(cluster, "n1");
    assert_eq!(client.connect(at(server, 7001), "x").unwrap().received, "x");
    eventually(cluster, "n1", "the verdict for the agent", |page| verdict(page, "agent") == verdict(&before, "agent") + 1.0);

    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    let certificate = "nodemesh_certificate_expiration_timestamp_seconds";
    let expiries: Vec<f64> = page.all(certificate, &[]).map(|sample| sample.value).collect();
    assert!(!expiries.is_empty() && expiries.iter().all(|at| (now + 3600.0..now + 25.0 * 3600.0).contains(at)), "{expiries:?}");
    assert!(page.sum("nodemesh_certificate_renewals_total", &[("result", "issued")]) >= 2.0);
    assert!(page.sum("nodemesh_config_version", &[]) >= 1.0);
    let applied = page.sum("nodemesh_config_applied_timestamp_seconds", &[]);
    assert!((now - 300.0..now + 1.0).contains(&applied), "{applied}");
    assert_eq!((page.sum("nodemesh_pods_ready", &[]), page.sum("nodemesh_pods_held", &[])), (2.0, 0.0));
    let map = |name: &str, of: &str| page.sum(&format!("nodemesh_ebpf_map_{name}"), &[("map", of)]);
    assert_eq!((map("entries", "PODS"), map("capacity", "PODS")), (2.0, 4096.0));
    assert!(map("entries", "WORKLOADS") >= 4.0 && map("entries", "POLICIES") >= 2.0);
    assert!(page.sum("nodemesh_tunnels_open", &[("direction", "inbound")]) >= 1.0);
    assert!(scrape(cluster, "n1").sum("nodemesh_tunnels_open", &[("direction", "outbound")]) >= 1.0);
    assert!(page.sum("nodemesh_policy_decisions_total", &[("decision", "allow")]) >= 1.0);
    assert_eq!(page.sum("nodemesh_kernel_map_full_total", &[]), 0.0);
    assert_eq!(page.sum("nodemesh_kernel_events_lost_total", &[]), 0.0);
    assert!(page.samples.iter().any(|sample| sample.name.starts_with("nodemesh_build") && sample.label("component") == Some("mesh-agent")));
    for (path, status) in [("/healthz/ready", 200), ("/healthz/live", 200), ("/nothing", 404)] {
        assert_eq!(ask(cluster, "n2", 15020, &get(path, "Host: localhost\r\n")).0, status, "{path}");
    }
}

fn admin(cluster: &Cluster, client: &Pod, server: &Pod) {
    // What was opened before is told by how it was protected, also once it is over.
    let opened = |node: &str, kind: &str| number(&cluster.admin(node, "/connections?limit=0")["opened"], kind);
    wait_until("connections of each kind", SOON, || {
        ["mutual_tls", "within_node", "plaintext"].iter().all(|kind| opened("n2", kind) > 0) && opened("n1", "mutual_tls") > 0
    })
    .unwrap();
    assert_eq!(opened("n1", "plaintext"), 0);
    let config = cluster.admin("n1", "/config");
    assert_eq!(config["version"].as_f64().unwrap(), cluster.sum("n1", "nodemesh_config_version", &[]));
    assert!(config["services"].as_array().unwrap().contains(&json!("shop/store")), "{config}");
    assert!(config["workloads"].as_array().unwrap().contains(&json!("shop/server")), "{config}");
    let policies = cluster.admin("n2", "/policies").to_string();
    assert!(policies.contains("shop/closed"), "{policies}");
    let certificates = cluster.admin("n1", "/certs").to_string();
    assert!(certificates.contains(&client.spiffe_id()) && !certificates.contains(&server.spiffe_id()), "{certificates}");
    assert!(!certificates.contains("PRIVATE"), "{certificates}");

    // What lives, and a lever to end it.
    let ticking = client.spawn_peer(&["tick", &at(server, 7001).to_string(), "--interval", "20"]).unwrap();
    wait_until("rounds", LIMIT, || ticking.ticks() > 2).unwrap();
    let mut shown = json!(null);
    for (node, direction) in [("n1", "outbound"), ("n2", "inbound")] {
        let page = cluster.admin(node, &format!("/connections?workload=shop/client&direction={direction}"));
        shown = page["connections"].as_array().unwrap().last().unwrap_or_else(|| panic!("{page}")).clone();
        assert_eq!(shown["source"]["identity"], json!(client.spiffe_id()), "{shown}");
        assert_eq!(shown["destination"]["identity"], json!(server.spiffe_id()), "{shown}");
        assert_eq!(
            (shown["destination"]["workload"].as_str(), shown["security"].as_str()),
            (Some("shop/server"), Some("mutual_tls")),
            "{shown}"
        );
        assert!(number(&shown, "bytes_received") > 0 && number(&shown, "bytes_sent") > 0, "{shown}");
    }
    let closed = cluster.agent("n2").admin_post(&format!("/connections/close?id={}", shown["id"]), "").unwrap();
    assert_eq!(closed.status, 200, "{}", closed.body);
    let report: mesh_lab::peer::Report = ticking.finish(SOON).unwrap();
    assert_eq!(report.end, End::Reset, "{report:?}");
    let at_client = canonical(report.local.unwrap()).to_string();
    cluster.access("n2", &[("direction", "inbound"), ("client", &at_client), ("outcome", "closed_by_operator")]);

    // Renewal on demand.
    let issued = || cluster.sum("n1", "nodemesh_certificate_renewals_total", &[("result", "issued")]);
    let before = issued();
    let asked = cluster.agent("n1").admin_post(&format!("/certs/renew?identity={}", client.spiffe_id()), "").unwrap();
    assert_eq!(asked.status, 200, "{}", asked.body);
    wait_until("a new certificate", SOON, || issued() > before).unwrap();
    assert_eq!(client.connect(at(server, 7001), "x").unwrap().received, "x");
    let unknown = cluster.agent("n1").admin_post("/certs/renew?identity=spiffe://cluster.local/ns/shop/sa/nobody", "").unwrap();
    assert!((400..500).contains(&unknown.status), "{}", unknown.body);

    // Levels of the log, while it runs.
    let debug = |node: &str| cluster.agent(node).log().lines().filter(|line| line.contains("\"DEBUG\"")).count();
    assert_eq!(debug("n1"), 0);
    assert_eq!(cluster.agent("n1").admin_post("/log?level=debug", "").unwrap().status, 200);
    cluster.apply("more", &[service("shop", "more", &["10.96.0.91"], "server", &[("tcp", 80, 7000)])]);
    wait_until("lines of the level debug", SOON, || debug("n1") > 0).unwrap();
    assert_eq!(cluster.agent("n1").admin_post("/log?level=info", "").unwrap().status, 200);
    assert_eq!(cluster.agent("n1").admin_post("/log?level=loud", "").unwrap().status, 400);
    assert_eq!(debug("n2"), 0);

    // Only for who stands on the node and asks for the node.
    for (headers, status) in [
        ("Host: localhost:15000\r\n", 200),
        ("Host: 127.0.0.1:15000\r\n", 200),
        ("Host: evil.example\r\n", 403),
        ("Host: 127.0.0.1:15000\r\nOrigin: http://evil.example\r\n", 403),
        ("", 400),
    ] {
        let got = ask(cluster, "n1", 15000, &get("/config", headers)).0;
        assert!(got == status || status == 400 && got == 403, "{headers:?}: {got}");
    }
    let admin_of_node = SocketAddr::new(cluster.node("n1").addresses()[0], 15000);
    let report = client.connect(admin_of_node, "GET / HTTP/1.0\r\n\r\n").unwrap();
    assert!(!report.connected, "{report:?}");
}

/// The access log can be made to say less, or more of one workload.
fn access_levels(cluster: &Cluster, client: &Pod, near: &Pod, server: &Pod) {
    let set = |query: &str| assert_eq!(cluster.agent("n2").admin_post(&format!("/log?{query}"), "").unwrap().status, 200, "{query}");
    let line_of = |report: &mesh_lab::peer::Report| {
        let client = canonical(report.local.unwrap()).to_string();
        cluster.agent("n2").access_log().into_iter().find(|line| text(line, "client") == client)
    };
    set("access=denied");
    let quiet = client.connect(at(server, 7001), "x").unwrap();
    let denied = client.connect(at(server, 7009), "x").unwrap();
    assert_eq!(text(&cluster.access_of("n2", "inbound", &denied), "policy"), "shop/closed");
    assert_eq!(line_of(&quiet), None);
    set("access=all&workload=shop/client");
    let told = client.connect(at(server, 7001), "x").unwrap();
    let line = cluster.access_of("n2", "inbound", &told);
    assert!(number(&line, "duration_ms") < 10_000 && text(&line, "time").ends_with('Z'), "{line}");
    set("access=off");
    set("access=default&workload=shop/client");
    let silent = client.connect(at(server, 7009), "x").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(line_of(&silent), None);
    let unheard = near.connect(at(server, 7001), "x").unwrap();
    set("access=all");
    let told = client.connect(at(server, 7001), "x").unwrap();
    cluster.access_of("n2", "inbound", &told);
    // What only the kernel sees end it reports again a moment later.
    wait_until("a line of a connection within the node", SOON, || {
        let told = near.connect(at(server, 7001), "x").unwrap();
        std::thread::sleep(Duration::from_millis(300));
        line_of(&told).is_some_and(|line| text(&line, "direction") == "local")
    })
    .unwrap();
    assert_eq!(line_of(&unheard), None);
}
