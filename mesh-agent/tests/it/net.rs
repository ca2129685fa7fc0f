//! Capturing what pods dial: what the application sees of it, and what is left alone.

use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;
use std::time::Duration;

use mesh_lab::manifests::peer_authentication;
use mesh_lab::peer::{End, Report, binary};
use mesh_lab::{Pod, PodSpec};
use serde_json::json;

use crate::world::*;

/// A port that the settings exclude.
const EXCLUDED_PORT: u16 = 7999;

/// One mesh for this module, `l4` and `services`. Nobody changes its settings.
pub static MESH: LazyLock<Cluster> = LazyLock::new(|| {
    let web = |name| PodSpec::new("shop", name).label("app", "web");
    let pods = [
        ("n1", PodSpec::new("shop", "client").service_account("client")),
        ("n1", PodSpec::new("shop", "near").service_account("server")),
        ("n2", PodSpec::new("shop", "server").service_account("server")),
        ("n2", PodSpec::new("shop", "apart").host(200)),
        ("n2", PodSpec::new("vault", "vault").service_account("vault")),
        ("n1", PodSpec::new("vault", "strong").service_account("vault")),
        ("n1", PodSpec::new("shop", "meter").service_account("meter")),
        ("n2", PodSpec::new("shop", "metered").service_account("metered")),
        ("n1", PodSpec::new(OUTSIDE, "outsider")),
        ("n2", PodSpec::new(OUTSIDE, "stranger")),
        ("n1", web("web1")),
        ("n2", web("web2")),
        ("n2", PodSpec::new("shop", "moving1").label("app", "moving")),
        ("n2", PodSpec::new("shop", "moving2").label("app", "moving")),
    ];
    let ground = ground("net", &pods);
    // Clients send data in the SYN without having a cookie, and every listener, the agent's own too, takes it.
    for pod in ["client", "near", "server"] {
        ground.pod(pod).sysctl(&[("net.ipv4.tcp_fastopen", "1543")]).expect("TCP Fast Open");
    }
    let apart = format!("{}/32", ground.pod("apart").ipv4());
    ground.put("mesh", &[settings(json!({ "excludedPorts": [EXCLUDED_PORT], "excludedCidrs": [apart] }))]);
    ground.put("vault-mode", &[peer_authentication("vault", "strict", "STRICT")]);
    ground.put("services", &crate::services::objects());
    ground.start()
});

fn client() -> Pod {
    MESH.pod("client")
}

/// The agent's line on a connection, outbound or local, that reached the other side.
fn outbound_line(report: &Report, to: &Pod) -> serde_json::Value {
    let direction = if to.node().name() == "n1" { "local" } else { "outbound" };
    MESH.access_of("n1", direction, report)
}

#[test]
fn client_and_server_see_each_others_own_addresses() {
    for name in ["server", "near"] {
        let to = MESH.pod(name);
        let server = to.serve("peer-name", 7010).unwrap();
        for (dialled, mapped) in [(at(&to, 7010), false), (at6(&to, 7010), false), (at(&to, 7010), true)] {
            let words = ["connect", &dialled.to_string(), if mapped { "--mapped" } else { "--half-close" }];
            let report = client().peer(&words, LIMIT).unwrap();
            assert_eq!(report.end, End::Eof, "{name} {dialled}: {report:?}");
            let peer = report.peer.unwrap();
            assert_eq!(canonical(peer), dialled, "getpeername shows what was dialled");
            assert_eq!(peer.is_ipv6(), dialled.is_ipv6() || mapped, "a v4-mapped address stays mapped for its application");
            let local = canonical(report.local.unwrap());
            assert!(client().addresses().contains(&local.ip()) && local.is_ipv4() == dialled.is_ipv4(), "{report:?}");
            let seen: serde_json::Value = serde_json::from_str(&report.received).unwrap();
            let end = |field: &str| canonical(text(&seen, field).parse().unwrap());
            assert_eq!((end("peer"), end("local")), (local, dialled), "the server sees the client's own address and port");
            let line = outbound_line(&report, &to);
            assert_eq!(text(&line, "server"), dialled.to_string(), "{line}");
            assert_eq!(text(&line, "outcome"), "completed", "{line}");
        }
        assert_eq!(server.accepted(), 3);
    }
}

#[test]
fn every_way_to_connect() {
    let bound = format!("{}:41234", client().ipv4());
    let ways: [&[&str]; 6] =
        [&[], &["--nonblocking"], &["--bind", &bound], &["--mapped"], &["--fast-open", "connect"], &["--fast-open", "sendto"]];
    for name in ["server", "near"] {
        let to = MESH.pod(name);
        let _echo = to.serve("echo", 7011).unwrap();
        // Twice: with TCP Fast Open the first round may only fetch a cookie.
        for way in ways.iter().chain(&ways) {
            let dialled = at(&to, 7011).to_string();
            let words = [&["connect", &dialled, "--send", r"a\x00b\n", "--half-close"], *way].concat();
            let report = client().peer(&words, LIMIT).unwrap();
            assert_eq!((report.received.as_str(), report.end), ("a\0b\n", End::Eof), "{name} {way:?}: {report:?}");
            assert_eq!(report.peer.map(canonical), Some(at(&to, 7011)), "{name} {way:?}: {report:?}");
            if way.contains(&"--bind") {
                assert_eq!(report.local.map(|address| address.port()), Some(41234));
            }
            let line = outbound_line(&report, &to);
            assert_eq!((number(&line, "bytes_received"), number(&line, "bytes_sent")), (4, 4), "{name} {way:?}: {line}");
        }
    }
}

#[test]
fn fast_open_data_stays_with_its_own_connection() {
    // Two destinations of one client at once, data in both SYNs: each must get its own.
    let (server, near) = (MESH.pod("server"), MESH.pod("near"));
    let (_one, _two) = (server.serve("echo", 7012).unwrap(), near.serve("echo", 7012).unwrap());
    let targets: Vec<SocketAddr> = vec![at(&server, 7012), at6(&server, 7012), at(&near, 7012), at6(&near, 7012)];
    std::thread::scope(|scope| {
        for to in targets {
            scope.spawn(move || {
                for round in 0..5 {
                    let needle = format!("round {round} to {to}");
                    let words = ["connect", &to.to_string(), "--fast-open", "sendto", "--send", &needle, "--half-close"];
                    let report = client().peer(&words, LIMIT).unwrap();
                    assert_eq!((report.received.as_str(), report.end), (needle.as_str(), End::Eof), "{report:?}");
                }
            });
        }
    });
}

#[test]
fn what_is_refused_says_so_at_once() {
    // Nobody listens there. Across nodes the agent has accepted by the time that is known, so the end is a reset.
    let near = client().peer(&["connect", &at(&MESH.pod("near"), 1).to_string()], LIMIT).unwrap();
    assert_eq!((near.connected, near.errno), (false, Some(111)), "{near:?}");
    let far = client().peer(&["connect", &at(&MESH.pod("server"), 1).to_string()], LIMIT).unwrap();
    assert_eq!((far.end, far.received_bytes), (End::Reset, 0), "{far:?}");
    let line = MESH.access_of("n2", "inbound", &far);
    assert_eq!(text(&line, "outcome"), "connect_refused", "{line}");
    let line = MESH.access_of("n1", "outbound", &far);
    assert_eq!(text(&line, "outcome"), "unavailable_at_peer", "{line}");
}

#[test]
fn datagrams_are_left_alone() {
    let to = MESH.pod("server");
    let capture = MESH.world.capture_fabric("datagrams").unwrap();
    let mut server = to.spawn(&[&binary().unwrap().display().to_string(), "udp-echo", "--listen", "[::]:7100"]).unwrap();
    server.wait_for_log("listening", LIMIT).unwrap();
    for address in [at(&to, 7100), at6(&to, 7100)] {
        for way in [&["udp"][..], &["udp", "--connect"]] {
            let dialled = address.to_string();
            let words = [way, &[&dialled, "--send", "hello"]].concat();
            let report = client().peer(&words, LIMIT).unwrap();
            assert_eq!((report.received.as_str(), report.peer), ("hello", Some(address)), "{report:?}");
        }
    }
    let trace = capture.finish(Duration::from_millis(100)).unwrap();
    let crossed = trace.datagrams().iter().filter(|(_, to)| to.port() == 7100).count();
    assert_eq!(crossed, 4, "{:?}", trace.datagrams());
}

#[test]
fn a_pod_talks_to_itself_without_the_mesh() {
    let server = client().serve("echo", 7013).unwrap();
    let own = client().addresses();
    let loopback: [IpAddr; 2] = ["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()];
    let mut ports = Vec::new();
    for address in loopback.iter().chain(&own) {
        let to = SocketAddr::new(*address, 7013);
        let report = client().connect(to, "to myself").unwrap();
        assert_eq!((report.received.as_str(), report.peer), ("to myself", Some(to)), "{report:?}");
        let local = report.local.unwrap();
        assert_eq!(local.ip(), *address, "no hop: {report:?}");
        ports.push(local.port());
    }
    let seen: Vec<u16> = server.served().iter().filter(|served| served.end.is_none()).map(|served| served.peer.port()).collect();
    assert_eq!(seen, ports);
    // Something that is logged for sure, so that what came before it would be there.
    let near = MESH.pod("near");
    let _echo = near.serve("echo", 7014).unwrap();
    MESH.access_of("n1", "local", &client().connect(at(&near, 7014), "x").unwrap());
    let lines = MESH.agent("n1").access_log();
    let server = |line: &serde_json::Value| text(line, "server").to_owned();
    assert!(!lines.iter().any(|line| server(line).ends_with(":7013")), "the mesh saw what a pod said to itself");
}

#[test]
fn excluded_ports_and_ranges_go_in_the_clear() {
    let apart = MESH.pod("apart");
    let (_by_port, _by_range) = (apart.serve("echo", EXCLUDED_PORT).unwrap(), apart.serve("echo", 7015).unwrap());
    let capture = MESH.world.capture_fabric("excluded").unwrap();
    let cases = [
        (at6(&apart, EXCLUDED_PORT), "excluded by its port", true),
        (at(&apart, 7015), "excluded by its range", true),
        (at6(&apart, 7015), "neither port nor range", false),
    ];
    for (to, needle, _) in cases {
        let report = client().connect(to, needle).unwrap();
        assert_eq!((report.received.as_str(), report.peer), (needle, Some(to)), "{report:?}");
    }
    let trace = capture.finish(Duration::from_millis(100)).unwrap();
    for (to, needle, clear) in cases {
        assert_eq!(trace.contains(needle.as_bytes()), clear, "{to}");
    }
}

#[test]
fn only_tls_crosses_between_nodes() {
    let (meter, to) = (MESH.pod("meter"), MESH.pod("metered"));
    let _echo = to.serve("echo", 7016).unwrap();
    let capture = MESH.world.capture_fabric("tls").unwrap();
    for address in [at(&to, 7016), at6(&to, 7016)] {
        assert_eq!(meter.connect(address, "a needle in the haystack").unwrap().received, "a needle in the haystack");
    }
    let trace = capture.finish(Duration::from_millis(100)).unwrap();
    assert!(!trace.contains(b"a needle in the haystack"));
    let ours = |address: SocketAddr| meter.addresses().contains(&address.ip()) || to.addresses().contains(&address.ip());
    let between: Vec<_> = trace.opened().filter(|(from, to)| ours(*from) && ours(*to)).collect();
    assert!(!between.is_empty() && between.iter().all(|(_, to)| to.port() == 15008), "{between:?}");
    let plain: Vec<_> = trace.plaintext().into_iter().filter(|plain| ours(plain.from) && ours(plain.to)).collect();
    assert_eq!(plain, []);
}
