//! Identity, certificates and the tunnel between nodes: what is seen on the link, who is named, and whether a data plane of another make
//! can talk to ours and ours to it.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use http::{Method, Request, Version};
use mesh_lab::manifests::{authorization_policy, service};
use mesh_lab::peer::End;
use mesh_lab::process::wait_until;
use mesh_lab::{Control, MeshOptions, Pod, PodSpec};
use mesh_proto::ca::IstioCertificateRequest;
use mesh_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use rcgen::{CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, KeyPair, SanType};
use rustls::AlertDescription;
use serde_json::json;
use tonic::Code;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use crate::foreign::{Authority, Leaf, Shown, Tunnel, connect, drown, inside, inside_namespace, refusal, throw, tls, uris};
use crate::world::{Cluster, Ground, LIMIT, SOON, at, at6, canonical, ground, number, text};

#[test]
fn only_tls_crosses_the_link_and_both_sides_are_named() {
    let client = PodSpec::new("shop", "client").service_account("frontend");
    let server = PodSpec::new("shop", "server").service_account("backend");
    let ground = ground("link", &[("n1", client), ("n2", server)]);
    ground.put("service", &[service("shop", "greeter", &["10.96.0.77", "fd00:96::77"], "server", &[("tcp", 80, 7000)])]);
    let cluster = ground.start();
    let (client, server) = (cluster.pod("client"), cluster.pod("server"));
    let _echo = server.serve("echo", 7000).unwrap();
    let needle = "a needle that must not be found";

    let link = cluster.world.capture_fabric("link").unwrap();
    let inner = mesh_lab::Capture::start(&server.place(), cluster.world.directory(), "server").unwrap();
    let mut reports = Vec::new();
    for to in [at(&server, 7000), at6(&server, 7000), "10.96.0.77:80".parse().unwrap(), "[fd00:96::77]:80".parse().unwrap()] {
        let report = client.connect(to, needle).unwrap();
        assert_eq!((report.received.as_str(), report.end, report.peer), (needle, End::Eof, Some(to)), "{report:?}");
        reports.push(report);
    }
    // The same search finds it where it may be.
    assert!(inner.finish(Duration::from_millis(200)).unwrap().contains(needle.as_bytes()));
    let trace = link.finish(Duration::from_millis(200)).unwrap();
    assert!(!trace.contains(needle.as_bytes()));
    let pods = [client.addresses(), server.addresses()].concat();
    let between = |from: &SocketAddr, to: &SocketAddr| pods.contains(&from.ip()) || pods.contains(&to.ip());
    let ports: Vec<u16> = trace.opened().filter(|(from, to)| between(from, to)).map(|(_, to)| to.port()).collect();
    assert!(!ports.is_empty() && ports.iter().all(|port| *port == 15008), "{ports:?}");
    let plain: Vec<_> = trace.plaintext().into_iter().filter(|plain| between(&plain.from, &plain.to)).collect();
    assert!(plain.is_empty(), "{plain:?}");
    let bytes: u64 = trace.streams().filter(|(from, to, _)| between(from, to)).map(|(_, _, stream)| stream.length()).sum();
    assert!(bytes as usize > needle.len() * 8, "{bytes} bytes");

    let (frontend, backend) = (client.spiffe_id(), server.spiffe_id());
    for report in &reports {
        let mut traces = Vec::new();
        for (node, direction) in [("n1", "outbound"), ("n2", "inbound")] {
            let fields = [
                ("direction", direction),
                ("client", &*canonical(report.local.unwrap()).to_string()),
                ("source_workload", "shop/client"),
                ("destination_workload", "shop/server"),
                ("source_identity", &frontend),
                ("destination_identity", &backend),
                ("security", "mutual_tls"),
                ("outcome", "completed"),
            ];
            let line = cluster.access(node, &fields);
            assert_eq!(
                (number(&line, "bytes_received"), number(&line, "bytes_sent")),
                (needle.len() as u64, needle.len() as u64),
                "{line}"
            );
            traces.push(text(&line, "trace_id").to_owned());
        }
        assert!(traces[0].len() == 32 && traces[0] == traces[1], "both logs name the same trace: {traces:?}");
    }
    for (node, reporter) in [("n1", "source"), ("n2", "destination")] {
        let labels = [
            ("reporter", reporter),
            ("source_principal", &*frontend),
            ("destination_principal", &*backend),
            ("connection_security_policy", "mutual_tls"),
        ];
        cluster.wait_sum(node, "istio_tcp_connections_opened_total", &labels, 4.0);
        cluster.wait_sum(node, "istio_tcp_connections_closed_total", &labels, 4.0);
    }
    // The tunnel is used again: fewer handshakes than connections, or as many where each went another way.
    let handshakes = cluster.sum("n1", "nodemesh_tunnel_handshakes_total", &[("direction", "outbound"), ("result", "ok")]);
    assert!(handshakes >= 1.0, "{}", cluster.lines("n1", "nodemesh_tunnel"));
}

/// A mesh under a root whose key the test holds.
pub fn under(authority: &Authority, name: &str, pods: &[(&str, PodSpec)]) -> Cluster {
    let mut ground = ground(name, pods);
    ground.options.control_flags.extend(authority.flags(&ground.world));
    ground.start()
}

/// What `nodemesh_tunnel_handshakes` of a node counts for a result.
pub fn handshakes(cluster: &Cluster, node: &str, direction: &str, result: &str) -> f64 {
    cluster.sum(node, "nodemesh_tunnel_handshakes_total", &[("direction", direction), ("result", result)])
}

#[test]
fn a_data_plane_of_another_make_is_served() {
    let authority = Authority::new("the test's root");
    let pods = [
        ("n1", PodSpec::new("shop", "caller").service_account("caller")),
        ("n2", PodSpec::new("shop", "server").service_account("server")),
        ("n2", PodSpec::new("shop", "other").service_account("other")),
    ];
    let mut ground = ground("interop", &pods);
    ground.options.control_flags.extend(authority.flags(&ground.world));
    let services = [
        service("shop", "echoes", &["10.96.0.81"], "server", &[("tcp", 80, 7000)]),
        service("shop", "names", &["10.96.0.82"], "server", &[("tcp", 80, 7001)]),
        service("shop", "others", &["10.96.0.83"], "other", &[("tcp", 80, 7000)]),
    ];
    ground.put("services", &services);
    let cluster = ground.start();
    let (caller, server, other) = (cluster.pod("caller"), cluster.pod("server"), cluster.pod("other"));
    let modes = ["echo", "peer-name", "reset", "sink", "half-close", "banner"];
    let servers: Vec<_> = modes.iter().zip(7000..).map(|(mode, port)| server.serve(mode, port).unwrap()).collect();
    let (denied, elsewhere) = (server.serve("echo", 7010).unwrap(), other.serve("echo", 7020).unwrap());
    let deny = json!([
        { "to": [{ "operation": { "ports": ["7010"] } }] },
        // What the caller claims in `forwarded` is no address to judge by.
        { "from": [{ "source": { "ipBlocks": ["192.0.2.0/24"] } }] },
    ]);
    cluster.apply("deny", &[authorization_policy("shop", "no-7010", &[("app", "server")], "DENY", &deny)]);
    let shown = authority.issue(&Leaf::of(&caller.spiffe_id()));
    let to = SocketAddr::new(server.ipv4().into(), 15008);
    let target = |port: u16| at(&server, port).to_string();

    inside(&caller, async {
        let mut tunnel = Tunnel::open(to, &shown).await.unwrap();
        // Leaf and intermediate travel, the root does not.
        assert_eq!(tunnel.server.len(), 2);
        assert_eq!(uris(&tunnel.server[0]), [server.spiffe_id()]);

        let mut stream = tunnel.connect(&target(7000)).await.unwrap();
        assert_eq!(stream.response.status(), 200);
        let baggage = stream.response.headers().get("baggage").expect("baggage").to_str().unwrap().to_owned();
        assert!(baggage.contains("k8s.namespace.name=shop") && baggage.contains("service.name=server"), "{baggage}");
        let body: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
        assert_eq!(stream.send(&body, LIMIT).await.unwrap(), body.len());
        stream.finish();
        assert_eq!(stream.receive(usize::MAX).await.unwrap(), body);
        assert_eq!(tunnel.most_streams(), 200);

        // The application sees whom the tunnel comes from, not what is claimed.
        let mut stream = tunnel.connect(&target(7001)).await.unwrap();
        let names = String::from_utf8(stream.receive(usize::MAX).await.unwrap()).unwrap();
        assert!(names.contains(&caller.ipv4().to_string()) && !names.contains("192.0.2.7"), "{names}");

        // Half-close, both ways.
        let mut stream = tunnel.connect(&target(7003)).await.unwrap();
        stream.send(b"12345", LIMIT).await.unwrap();
        stream.finish();
        assert_eq!(stream.receive(usize::MAX).await.unwrap(), b"{\"bytes\":5}\n");
        let mut stream = tunnel.connect(&target(7004)).await.unwrap();
        assert_eq!(stream.receive(usize::MAX).await.unwrap(), b"220 greeter ready\r\n");
        assert_eq!(stream.send(b"late", LIMIT).await.unwrap(), 4);
        stream.finish();
        // A server that speaks first.
        let mut stream = tunnel.connect(&target(7005)).await.unwrap();
        assert_eq!(stream.receive(19).await.unwrap(), b"220 greeter ready\r\n");
        drop(stream);

        // Aborts stay aborts.
        let mut stream = tunnel.connect(&target(7002)).await.unwrap();
        stream.send(b"x", LIMIT).await.unwrap();
        assert_eq!(stream.aborted().await, h2::Reason::CANCEL);
        let mut stream = tunnel.connect(&target(7003)).await.unwrap();
        stream.send(b"x", LIMIT).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        stream.up.send_reset(h2::Reason::CANCEL);
        tokio::time::sleep(Duration::from_millis(100)).await;

        // The table of refusals.
        assert_eq!(tunnel.status(&target(7010)).await, 401);
        assert_eq!(tunnel.status(&target(7099)).await, 503, "nobody listens");
        for own in [15001, 15006, 15008] {
            assert_eq!(tunnel.status(&target(own)).await, 503, "{own}");
        }
        assert_eq!(tunnel.status(&server.ipv4().to_string()).await, 400, "no port");
        for address in [at(&other, 7020), at(&caller, 7000), at6(&server, 7000), "127.0.0.1:7000".parse().unwrap()] {
            assert_eq!(tunnel.status(&address.to_string()).await, 400, "{address} is not this connection's own destination");
        }
        let name = tunnel.status("greeter.shop.svc.cluster.local:7000").await;
        assert!([400, 503].contains(&name.as_u16()), "a name is no pod's address: {name}");
        for authority in ["nonsense", "[::1", "a:b:c"] {
            if authority.parse::<http::uri::Authority>().is_ok() {
                assert_eq!(tunnel.status(authority).await, 400, "{authority}");
            }
        }
        let get =
            Request::builder().method(Method::GET).version(Version::HTTP_2).uri(format!("https://{}/", target(7000))).body(()).unwrap();
        assert_eq!(tunnel.request(get).await.unwrap().response.status(), 400);
        let mut bare = connect(&target(7000));
        bare.headers_mut().clear();
        assert_eq!(tunnel.request(bare).await.unwrap().response.status(), 200, "no header is needed");
        for (name, value) in [("forwarded", "for=\"not an address"), ("traceparent", "00-xyz"), ("baggage", "=;,=,,")] {
            let mut odd = connect(&target(7000));
            odd.headers_mut().insert(name, value.parse().unwrap());
            assert_eq!(tunnel.request(odd).await.unwrap().response.status(), 200, "{name} is a label and no more");
        }

        // The Service that is said to have been dialled counts if the pod is an endpoint of it on that port.
        for host in [
            "echoes.shop.svc.cluster.local",
            "names.shop.svc.cluster.local",
            "others.shop.svc.cluster.local",
            "liar.shop.svc.cluster.local",
            "echoes.shop.svc.cluster.local.liar",
            "\"liar",
        ] {
            let mut claiming = connect(&target(7000));
            claiming.headers_mut().insert("forwarded", format!("for=\"192.0.2.7:4242\";host={host}").parse().unwrap());
            assert_eq!(tunnel.request(claiming).await.unwrap().response.status(), 200, "{host}");
        }

        // Many at once on one connection, and on IPv6.
        let mut streams = Vec::new();
        for _ in 0..100 {
            streams.push(tunnel.connect(&target(7000)).await.unwrap());
        }
        for (i, stream) in streams.iter_mut().enumerate() {
            stream.send(i.to_string().as_bytes(), LIMIT).await.unwrap();
            stream.finish();
        }
        for (i, stream) in streams.iter_mut().enumerate() {
            assert_eq!(stream.receive(usize::MAX).await.unwrap(), i.to_string().as_bytes());
        }
        let mut tunnel = Tunnel::open(SocketAddr::new(server.ipv6().unwrap().into(), 15008), &shown).await.unwrap();
        let mut stream = tunnel.connect(&at6(&server, 7000).to_string()).await.unwrap();
        stream.send(b"six", LIMIT).await.unwrap();
        stream.finish();
        assert_eq!(stream.receive(usize::MAX).await.unwrap(), b"six");
    });

    assert_eq!(denied.accepted(), 0, "a denied connection reached the application");
    assert_eq!(elsewhere.accepted(), 0, "one pod's tunnel reached another pod");
    let ends = || servers[3].served().iter().filter_map(|served| served.end).collect::<Vec<_>>();
    wait_until("the abort at the application", SOON, || ends().contains(&End::Reset))
        .unwrap_or_else(|error| panic!("{error}: {:?}", ends()));
    let line = cluster.access("n2", &[("outcome", "policy_denied"), ("source_identity", &caller.spiffe_id())]);
    assert_eq!(
        (text(&line, "policy"), text(&line, "direction"), text(&line, "destination_workload")),
        ("shop/no-7010", "inbound", "shop/server")
    );
    cluster.access("n2", &[("direction", "inbound"), ("outcome", "connect_refused")]);
    cluster.access("n2", &[("direction", "inbound"), ("outcome", "own_port")]);
    // Nothing that the peer claims becomes a label, but a Service that it may have dialled.
    let opened = |service: &[(&str, &str)]| cluster.sum("n2", "istio_tcp_connections_opened_total", service);
    assert_eq!(opened(&[("destination_service", "echoes.shop.svc.cluster.local"), ("destination_service_name", "echoes")]), 1.0);
    for service in ["names", "others"] {
        assert_eq!(opened(&[("destination_service_name", service)]), 0.0, "{service}");
    }
    let page = cluster.metrics("n2");
    for claim in ["liar", "elsewhere", "v9"] {
        assert!(!page.text().contains(claim), "{claim}: {}", cluster.lines("n2", "istio_"));
    }

    certificates_that_are_refused(&cluster, &authority, &caller, to, &shown);
    the_authority_signs_for_the_nodes_own_pods_only(&cluster, &caller, &server, to);
}

/// Wrong certificates: each is refused by an alert, counted by its reason, named in the log, while others are served.
fn certificates_that_are_refused(cluster: &Cluster, authority: &Authority, caller: &Pod, to: SocketAddr, good: &Shown) {
    let identity = caller.spiffe_id();
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    let honest = || Leaf::of(&identity);
    let issue = |leaf: Leaf| Some(authority.issue(&leaf));
    let stranger = Authority::new("another root");
    let named = |uris: &[&str]| Leaf { uris: uris.iter().map(|uri| (*uri).to_owned()).collect(), ..honest() };
    let cases: Vec<(&str, Option<Shown>, &str)> = vec![
        ("none", None, "handshake_no_certificate"),
        ("expired", issue(Leaf { from: now - hour, until: now - hour / 60, ..honest() }), "handshake_certificate_time"),
        ("of the future", issue(Leaf { from: now + hour, until: now + 2 * hour, ..honest() }), "handshake_certificate_time"),
        ("self-signed", Some(honest().self_signed()), "handshake_untrusted"),
        ("of another root", Some(stranger.issue(&honest())), "handshake_untrusted"),
        ("for servers only", issue(Leaf { usages: vec![ExtendedKeyUsagePurpose::ServerAuth], ..honest() }), "handshake_untrusted"),
        ("of no identity", issue(named(&["https://example.com/"])), "handshake_untrusted"),
        ("of a broken identity", issue(named(&["spiffe://cluster.local/ns/shop"])), "handshake_untrusted"),
        ("of two identities", issue(named(&[&identity, "spiffe://cluster.local/ns/shop/sa/other"])), "handshake_untrusted"),
        ("of another trust domain", issue(named(&["spiffe://elsewhere.example/ns/shop/sa/caller"])), "handshake_trust_domain"),
    ];
    let target = to.ip().to_string() + ":7000";
    let ticking = caller.spawn_peer(&["tick", &target, "--interval", "20"]).unwrap();
    wait_until("rounds", LIMIT, || ticking.ticks() > 2).unwrap();
    let mut wrong = Vec::new();
    for (what, shown, result) in &cases {
        let before = handshakes(cluster, "n2", "inbound", result);
        // Refused with an alert that says something.
        match inside(caller, refusal(to, shown.as_ref())) {
            Ok(alert) if alert != AlertDescription::InternalError => {}
            other => wrong.push((what, other)),
        }
        let counted = || handshakes(cluster, "n2", "inbound", result) == before + 1.0;
        wait_until(what, SOON, counted).unwrap_or_else(|error| panic!("{error}: {}", cluster.lines("n2", "nodemesh_tunnel_handshakes")));
    }
    assert!(wrong.is_empty(), "{wrong:?}");
    // The log says why, once a kind at least, and whom it was about.
    let log = cluster.agent("n2").log();
    for words in ["no certificate", "expired", "not valid yet", "root that we trust", "elsewhere.example"] {
        assert!(log.lines().any(|line| line.contains(words) && line.contains(&caller.ipv4().to_string())), "nothing of {words:?}:\n{log}");
    }
    assert!(!log.contains("panicked"), "{log}");
    // Meanwhile and after, others were served.
    let ticks = ticking.ticks();
    wait_until("more rounds", LIMIT, || ticking.ticks() > ticks).unwrap();
    inside(caller, async {
        assert_eq!(Tunnel::open(to, good).await.unwrap().status(&target).await, 200);
    });
}

async fn sign(roots: String, to: SocketAddr, token: &str, identity: &str, key: &KeyPair) -> Result<Vec<String>, tonic::Status> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
    let csr = params.serialize_request(key).unwrap().pem().unwrap();
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(roots)).domain_name(to.ip().to_string());
    let channel = Endpoint::from_shared(format!("https://{to}")).unwrap().tls_config(tls).unwrap().connect().await.unwrap();
    let mut request = tonic::Request::new(IstioCertificateRequest::for_workload(csr, 3600, identity.to_owned()));
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    Ok(IstioCertificateServiceClient::new(channel).create_certificate(request).await?.into_inner().cert_chain)
}

/// With the token of a node, for pods of that node; and what was signed is good for our server.
fn the_authority_signs_for_the_nodes_own_pods_only(cluster: &Cluster, caller: &Pod, server: &Pod, to: SocketAddr) {
    let world = &cluster.world;
    let roots = || std::fs::read_to_string(world.directory().join("roots.pem")).unwrap();
    let token = std::fs::read_to_string(world.directory().join("tokens/n1")).unwrap();
    let ca = SocketAddr::new(world.control_address().into(), 15012);
    let key = KeyPair::generate().unwrap();
    let ask = |token: &str, identity: &str| {
        let asked = async { sign(roots(), ca, token, identity, &key).await };
        inside_namespace(&world.control_plane().netns, asked)
    };
    for (token, identity, code) in [
        ("0123456789abcdef0123456789abcdef", caller.spiffe_id(), Code::Unauthenticated),
        ("", caller.spiffe_id(), Code::Unauthenticated),
        (token.as_str(), server.spiffe_id(), Code::PermissionDenied),
        (token.as_str(), "spiffe://cluster.local/ns/shop/sa/nobody".to_owned(), Code::PermissionDenied),
        (token.as_str(), "spiffe://elsewhere.example/ns/shop/sa/caller".to_owned(), Code::PermissionDenied),
    ] {
        let status = ask(token, &identity).unwrap_err();
        assert_eq!(status.code(), code, "{identity}: {status}");
        assert!(token.is_empty() || !status.message().contains(token), "{status}");
    }
    let chain = ask(&token, &caller.spiffe_id()).unwrap();
    let shown = Shown::from_pem(&chain, &key);
    inside(caller, async {
        let mut tunnel = Tunnel::open(to, &shown).await.unwrap();
        assert_eq!(tunnel.status(&at(server, 7000).to_string()).await, 200);
    });
    // It says which identity it refused to which node.
    let log = cluster.mesh.control.as_ref().unwrap().process.log();
    assert!(log.lines().any(|line| line.contains(&server.spiffe_id()) && line.contains("n1")), "{log}");
}

#[test]
fn certificates_are_renewed_under_traffic() {
    let lifetime = Duration::from_secs(8);
    let mut ground =
        ground("renewal", &[("n1", PodSpec::new("shop", "client")), ("n2", PodSpec::new("shop", "server").service_account("server"))]);
    ground.options.certificate_lifetime = Some(lifetime);
    let cluster = ground.start();
    let (client, server) = (cluster.pod("client"), cluster.pod("server"));
    let _echo = server.serve("echo", 7000).unwrap();
    let to = at(&server, 7000);
    let issued = |node: &str| cluster.sum(node, "nodemesh_certificate_renewals_total", &[("result", "issued")]);
    let before = [issued("n1"), issued("n2")];
    let ticking = client.spawn_peer(&["tick", &to.to_string(), "--interval", "20"]).unwrap();
    let begun = Instant::now();
    let mut calls = 0;
    // Longer than any certificate of the beginning is valid, twice over.
    while begun.elapsed() < lifetime * 2 + Duration::from_secs(1) {
        let report = client.connect(to, "hello").unwrap();
        assert_eq!(
            (report.received.as_str(), report.end),
            ("hello", End::Eof),
            "after {:?} and {calls} calls: {report:?}",
            begun.elapsed()
        );
        calls += 1;
        std::thread::sleep(Duration::from_millis(25));
    }
    for (node, before) in ["n1", "n2"].into_iter().zip(before) {
        assert!(issued(node) >= before + 2.0, "{}", cluster.lines(node, "nodemesh_certificate"));
        assert_eq!(cluster.sum(node, "nodemesh_certificate_renewals_total", &[("result", "failed")]), 0.0);
        let expiry = cluster.metrics(node);
        let expiry = expiry.samples("nodemesh_certificate_expiration_timestamp_seconds", &[]);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(!expiry.is_empty() && expiry.iter().all(|(_, at)| (now..now + 9.0).contains(at)), "{expiry:?} at {now}");
    }
    // More than one handshake: later connections show the new certificates.
    assert!(handshakes(&cluster, "n2", "inbound", "ok") > 1.0, "{}", cluster.lines("n2", "nodemesh_tunnel"));
    // The connection of the beginning lives on, though its certificate's time is over.
    let ticks = ticking.ticks();
    wait_until("more rounds", LIMIT, || ticking.ticks() > ticks).unwrap();
}

/// Servers of HTTP/1.1 and of HTTP/2, at ports 80 and 81 of a Service whose requests are parsed.
fn put_web(ground: &Ground) {
    let route = |port: u16| {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": { "namespace": "shop", "name": format!("web-{port}") },
            "spec": {
                "parentRefs": [{ "group": "", "kind": "Service", "name": "web", "port": port }],
                "rules": [{ "backendRefs": [{ "name": "web", "port": port }] }],
            },
        })
    };
    let ports = [("http", 80, 8080), ("http2", 81, 8080)];
    ground.put("web", &[service("shop", "web", &["10.97.5.1"], "server", &ports), route(80), route(81)]);
}

#[test]
fn requests_of_one_client_do_not_go_on_over_certificates_that_have_expired() {
    let lifetime = Duration::from_secs(8);
    let mut ground =
        ground("outlived", &[("n1", PodSpec::new("shop", "client")), ("n2", PodSpec::new("shop", "server").service_account("server"))]);
    ground.options.certificate_lifetime = Some(lifetime);
    put_web(&ground);
    let cluster = ground.start();
    let (client, server) = (cluster.pod("client"), cluster.pod("server"));
    let _server = server.serve_http("web", 8080).unwrap();
    let streams = || cluster.sum("n2", "nodemesh_tunnel_streams_total", &[("direction", "inbound")]);
    // No pause is long enough for a connection of the agents to be closed as unused.
    for port in [80, 81] {
        let before = streams();
        let count = 20 * (2 * lifetime.as_secs() + 2);
        let url = format!("http://10.97.5.1:{port}/[1-{count}]");
        let words = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code} %{num_connects}\\n", "--http1.1", "--rate", "20/s", &url];
        let begun = std::time::Instant::now();
        let said = client.exec(&words, lifetime * 5).unwrap().stdout;
        let answers: Vec<&str> = said.lines().collect();
        assert_eq!(answers.len() as u64, count, "{said}");
        assert!(answers.iter().all(|answer| answer.starts_with("200 ")), "{port}: {said}");
        assert_eq!(answers.iter().filter(|answer| **answer != "200 0").count(), 1, "{port}: the client has one connection: {said}");
        let opened = streams() - before;
        // However long it took: one for each certificate, which is renewed at about half of its lifetime, and not one for each request.
        let most = begun.elapsed().div_duration_f64(lifetime / 2) + 3.0;
        assert!((2.0..=most).contains(&opened), "{port}: {opened} streams for two lifetimes and more of a certificate, {most}");
    }
    // Each of the requests is recorded with what carried it.
    let lines = cluster.agent("n1").access_log();
    let requests: Vec<_> = lines.iter().filter(|line| line.get("path").is_some()).collect();
    assert!(!requests.is_empty() && requests.iter().all(|line| text(line, "security") == "mutual_tls"), "{:?}", requests.last());
}

#[test]
fn requests_of_one_client_do_not_go_on_under_roots_that_are_trusted_no_more() {
    let mut ground =
        ground("uprooted", &[("n1", PodSpec::new("shop", "client")), ("n2", PodSpec::new("shop", "server").service_account("server"))]);
    let flags = ground.options.control_flags.clone();
    ground.options.control_flags.extend(Authority::new("the first root").flags(&ground.world));
    put_web(&ground);
    let mut cluster = ground.start();
    let (client, server) = (cluster.pod("client"), cluster.pod("server"));
    let _server = server.serve_http("web", 8080).unwrap();
    let _echo = server.serve("echo", 7000).unwrap();
    let ticking = client.spawn_peer(&["tick", &at(&server, 7000).to_string(), "--interval", "20"]).unwrap();
    let _clients = [80, 81].map(|port| {
        let url = format!("http://10.97.5.1:{port}/{port}/[1-3000]");
        client.spawn(&["curl", "-s", "-o", "/dev/null", "--http1.1", "--rate", "20/s", &url]).unwrap()
    });
    // By port and by how they ended.
    let count = |cluster: &Cluster, port: u16, good: bool| {
        let path = format!("/{port}/");
        let lines = cluster.agent("n1").access_log();
        lines.iter().filter(|line| text(line, "path").starts_with(&path) && (text(line, "status") == "200") == good).count()
    };
    let more = |cluster: &Cluster| {
        for port in [80, 81] {
            let before = count(cluster, port, true);
            let said = || format!("{port}: {:?}", cluster.agent("n1").access_log().last());
            wait_until("answers", LIMIT, || count(cluster, port, true) > before + 10).unwrap_or_else(|error| panic!("{error}: {}", said()));
        }
    };
    // Of the connections that carry requests, those that have ended.
    let ended = |cluster: &Cluster| {
        let lines = cluster.agent("n2").access_log();
        lines.iter().filter(|line| text(line, "direction") == "inbound" && text(line, "server").ends_with(":8080")).count()
    };
    more(&cluster);
    assert_eq!(ended(&cluster), 0, "the connections of the beginning");

    let handshaken = handshakes(&cluster, "n2", "inbound", "ok");
    let next = Authority::new("the second root");
    drop(cluster.mesh.control.take());
    let options = MeshOptions { control_flags: [flags, next.flags(&cluster.world)].concat(), ..cluster.options.clone() };
    let issued = ["n1", "n2"].map(|node| cluster.sum(node, "nodemesh_certificate_renewals_total", &[("result", "issued")]));
    cluster.mesh.control = Some(Control::start(&cluster.world, &options).unwrap());
    for (node, before) in ["n1", "n2"].into_iter().zip(issued) {
        let renewed = || cluster.sum(node, "nodemesh_certificate_renewals_total", &[("result", "issued")]) > before;
        wait_until("certificates under the second root", LIMIT, renewed).unwrap_or_else(|error| panic!("{error}: {node}"));
    }
    more(&cluster);
    // What carried them before carries none any more; there were handshakes under the new root instead.
    wait_until("the connections of the beginning end", LIMIT, || ended(&cluster) >= 2).unwrap();
    assert!(handshakes(&cluster, "n2", "inbound", "ok") > handshaken, "{}", cluster.lines("n2", "nodemesh_tunnel"));
    // Where one agent knew of the change before the other, requests failed, and say why.
    let lines = cluster.agent("n1").access_log();
    for line in lines.iter().filter(|line| !text(line, "path").is_empty() && text(line, "status") != "200") {
        assert!(text(line, "outcome").contains("handshake") || text(line, "outcome").contains("tunnel"), "{line}");
    }
    // The connection that is merely relayed lives on.
    let ticks = ticking.ticks();
    wait_until("more rounds", LIMIT, || ticking.ticks() > ticks).unwrap();
}

#[test]
fn silence_of_a_listener_for_plaintext_is_no_way_in() {
    let authority = Authority::new("the test's root");
    let cluster = under(&authority, "ports", &[("n1", PodSpec::new("shop", "caller")), ("n2", PodSpec::new("shop", "server"))]);
    let (caller, server) = (cluster.pod("caller"), cluster.pod("server"));
    let echo = server.serve("echo", 7000).unwrap();
    // The agent's own listeners, dialled by a stranger as they are: none leads anywhere.
    inside(&caller, async {
        for port in [15001, 15006] {
            let said = throw(at(&server, port), b"hello", Duration::from_secs(5)).await;
            assert_eq!(said.as_deref(), Some(&b""[..]), "{port}");
        }
        // TLS without the protocol that is spoken there. Who offers none is taken to speak HTTP/2, and must.
        let shown = authority.issue(&Leaf::of(&caller.spiffe_id()));
        let tunnel = SocketAddr::new(server.ipv4().into(), 15008);
        assert!(tls(tunnel, Some(&shown), &[b"http/1.1"]).await.is_err());
        if let Ok(mut stream) = tls(tunnel, Some(&shown), &[]).await {
            let said = drown(&mut stream, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", Duration::from_secs(5)).await;
            assert!(said.is_some_and(|said| !said.starts_with(b"HTTP/1")));
        }
    });
    // From a captured pod, too.
    for port in [15001, 15006, 15008] {
        let report = caller.connect(at(&server, port), "x").unwrap();
        assert!(!report.connected || report.received_bytes == 0, "{port}: {report:?}");
    }
    assert_eq!(echo.accepted(), 0);
    assert_eq!(caller.connect(at(&server, 7000), "x").unwrap().received, "x");
}
