//! Connections through the agents: judged, carried byte for byte, ended as the applications end them, counted.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_lab::peer::{End, Report};
use mesh_lab::process::wait_until;
use mesh_lab::{Pod, peer};
use serde_json::Value;

use crate::net::MESH;
use crate::world::*;

/// The three ways to a server: tunnelled, direct on one node, and as plaintext that the kernel judges as it arrives.
fn ways() -> [(&'static str, Pod, Pod); 3] {
    [
        ("across nodes", MESH.pod("client"), MESH.pod("server")),
        ("same node", MESH.pod("client"), MESH.pod("near")),
        ("from outside", MESH.pod("outsider"), MESH.pod("server")),
    ]
}

#[test]
fn plaintext_from_outside_is_judged_and_passes_where_it_may() {
    let outsider = MESH.pod("outsider");
    for (name, port) in [("server", 7040), ("near", 7041)] {
        let to = MESH.pod(name);
        let server = to.serve("peer-name", port).unwrap();
        for dialled in [at(&to, port), at6(&to, port)] {
            let report = outsider.connect(dialled, "").unwrap();
            assert_eq!((report.end, report.peer), (End::Eof, Some(dialled)), "{report:?}");
            let seen: Value = serde_json::from_str(&report.received).unwrap();
            let end = |field: &str| canonical(text(&seen, field).parse().unwrap());
            assert_eq!((end("peer"), end("local")), (report.local.unwrap(), dialled), "the client's own address and port");
            let line = MESH.access_of(to.node().name(), "inbound", &report);
            let shown = [text(&line, "security"), text(&line, "outcome"), text(&line, "destination_workload"), text(&line, "server")];
            let wanted = [String::from("none"), "completed".into(), to.full_name(), dialled.to_string()];
            assert_eq!(shown, wanted.each_ref().map(String::as_str), "{line}");
            assert!(line.get("source_identity").is_none(), "plaintext proves no identity: {line}");
        }
        assert_eq!(server.accepted(), 2);
        let labels = [
            ("reporter", "destination"),
            ("destination_workload", name),
            ("destination_principal", "spiffe://cluster.local/ns/shop/sa/server"),
            ("source_principal", "unknown"),
            ("connection_security_policy", "none"),
        ];
        assert!(MESH.sum(to.node().name(), "istio_tcp_connections_opened_total", &labels) >= 2.0);
    }
}

#[test]
fn plaintext_is_refused_where_mtls_is_demanded() {
    let outsider = MESH.pod("outsider");
    let decisions = |node: &str| MESH.sum(node, "nodemesh_policy_decisions_total", &[("decision", "deny"), ("reason", "mtls_required")]);
    for name in ["vault", "strong"] {
        let to = MESH.pod(name);
        let node = to.node().name().to_owned();
        let echo = to.serve("echo", 7042).unwrap();
        let before = decisions(&node);
        for dialled in [at(&to, 7042), at6(&to, 7042)] {
            let report = outsider.connect(dialled, "let me in").unwrap();
            assert_eq!((report.end, report.received_bytes), (End::Reset, 0), "{report:?}");
            let client = report.local.unwrap().to_string();
            let fields = [("client", client.as_str()), ("outcome", "mtls_required"), ("policy", "vault/strict"), ("security", "none")];
            MESH.access(&node, &fields);
        }
        assert_eq!(echo.accepted(), 0, "no byte and no connection reaches the application");
        assert_eq!(decisions(&node), before + 2.0);
        // With an identity it is another matter.
        let client = MESH.pod("client");
        assert_eq!(client.connect(at(&to, 7042), "friend").unwrap().received, "friend");
    }
}

#[test]
fn a_server_that_speaks_first_is_heard_at_once() {
    for (way, client, to) in ways() {
        let _server = to.serve_with(&["--mode", "banner", "--listen", "[::]:7043"]).unwrap();
        let words = ["connect", &at(&to, 7043).to_string(), "--read-first", "19", "--send", "QUIT", "--half-close"];
        let report = client.peer(&words, LIMIT).unwrap();
        assert_eq!((report.received.as_str(), report.end), ("220 greeter ready\r\nQUIT", End::Eof), "{way}: {report:?}");
        let micros = report.connect_micros + report.first_byte_micros.unwrap();
        assert!(micros < 1_000_000, "{way}: the greeting took {micros} µs");
    }
}

#[test]
fn each_direction_closes_by_itself() {
    for (way, client, to) in ways() {
        // The server says all and closes; the client still has something to say.
        let server = to.serve("half-close", 7044).unwrap();
        let report = client.peer(&["connect", &at(&to, 7044).to_string(), "--read-first", "19", "--send", "late"], LIMIT).unwrap();
        assert_eq!((report.received.as_str(), report.end), ("220 greeter ready\r\n", End::Eof), "{way}: {report:?}");
        served(way, &server, End::Eof, 4);
        // The client says all and closes; only then the server answers.
        let server = to.serve("sink", 7045).unwrap();
        let report = client.connect(at(&to, 7045), "twelve bytes").unwrap();
        assert_eq!((report.received.as_str(), report.end), ("{\"bytes\":12}\n", End::Eof), "{way}: {report:?}");
        served(way, &server, End::Eof, 12);
    }
}

#[test]
fn an_abort_stays_an_abort() {
    for (way, client, to) in ways() {
        let _server = to.serve("reset", 7046).unwrap();
        let report = client.peer(&["connect", &at(&to, 7046).to_string(), "--send", "x"], LIMIT).unwrap();
        assert_eq!((report.connected, report.end), (true, End::Reset), "{way}: {report:?}");
        outcome(way, &report, &to, "server_reset");
        let server = to.serve("sink", 7047).unwrap();
        let report = client.peer(&["connect", &at(&to, 7047).to_string(), "--send", "x", "--hold", "200", "--reset"], LIMIT).unwrap();
        assert_eq!(report.end, End::Done, "{way}: {report:?}");
        served(way, &server, End::Reset, 1);
        outcome(way, &report, &to, "client_reset");
    }
}

/// Waits until the server's only connection ended in this way after so many bytes.
fn served(way: &str, server: &peer::Server, end: End, bytes: u64) {
    let last = || server.served().last().map(|served| (served.end, served.received_bytes));
    let _ = wait_until("the connection's end at the server", SOON, || last().is_some_and(|(end, _)| end.is_some()));
    assert_eq!(last(), Some((Some(end), bytes)), "{way}");
}

/// Both agents log who aborted; the kernel only that somebody did.
fn outcome(way: &str, report: &Report, to: &Pod, wanted: &str) {
    let ends: Vec<Value> = match way {
        "across nodes" => vec![MESH.access_of("n1", "outbound", report), MESH.access_of("n2", "inbound", report)],
        "from outside" => vec![MESH.access_of(to.node().name(), "inbound", report)],
        _ => vec![MESH.access_of(to.node().name(), "local", report)],
    };
    let wanted = if way == "across nodes" { wanted } else { "aborted" };
    for line in ends {
        assert_eq!(text(&line, "outcome"), wanted, "{way}: {line}");
    }
}

#[test]
fn large_transfers_arrive_whole_both_ways_at_once() {
    const SIZE: u64 = 64 << 20;
    for (way, client, to) in ways() {
        let _server = to.serve("bulk", 7048).unwrap();
        let report = client.bulk(at(&to, 7048), SIZE, SIZE, Duration::from_secs(60)).unwrap();
        assert!(report.ok && (report.sent_bytes, report.received_bytes) == (SIZE, SIZE), "{way}: {report:?}");
        assert_eq!(report.sent_sha256, report.server_sha256, "{way}");
    }
}

#[test]
fn many_connections_at_once_keep_apart() {
    let to = MESH.pod("server");
    let _echo = to.serve("echo", 7049).unwrap();
    std::thread::scope(|scope| {
        for name in ["client", "near", "outsider", "meter"] {
            for family in [at(&to, 7049), at6(&to, 7049)] {
                scope.spawn(move || {
                    let client = MESH.pod(name);
                    for round in 0..5 {
                        let needle = format!("{name} {family} {round}");
                        assert_eq!(client.connect(family, &needle).unwrap().received, needle);
                    }
                });
            }
        }
    });
}

#[test]
fn both_ends_count_what_crossed_under_both_identities() {
    let (meter, to) = (MESH.pod("meter"), MESH.pod("metered"));
    let _server = to.serve("banner", 7050).unwrap();
    let principals = [
        ("source_principal", "spiffe://cluster.local/ns/shop/sa/meter"),
        ("destination_principal", "spiffe://cluster.local/ns/shop/sa/metered"),
    ];
    let sums = |node: &str, reporter: &str| {
        let mut labels = vec![("reporter", reporter), ("connection_security_policy", "mutual_tls")];
        labels.extend(principals);
        ["opened", "closed"]
            .map(|what| MESH.sum(node, &format!("istio_tcp_connections_{what}_total"), &labels))
            .into_iter()
            .chain(["received", "sent"].map(|what| MESH.sum(node, &format!("istio_tcp_{what}_bytes_total"), &labels)))
            .collect::<Vec<f64>>()
    };
    let before = [sums("n1", "source"), sums("n2", "destination")];
    let live =
        meter.spawn_peer(&["connect", &at(&to, 7050).to_string(), "--read-first", "19", "--send", "hello", "--timeout", "2"]).unwrap();
    let alive = |node: &str| MESH.admin(node, "/connections?workload=shop/meter");
    for node in ["n1", "n2"] {
        wait_until("the live connection is shown", SOON, || {
            let shown = alive(node);
            shown["connections"].as_array().is_some_and(|all| {
                all.iter()
                    .any(|one| one["server"] == at(&to, 7050).to_string().as_str() && one["bytes_sent"] == 24 && one["bytes_received"] == 5)
            })
        })
        .unwrap_or_else(|error| panic!("{error}: {}", alive(node)));
    }
    // Nobody closes, so the client gives up after two seconds and closes; the server then too.
    let report: Report = live.finish(LIMIT).unwrap();
    assert_eq!((report.end, report.received_bytes), (End::Timeout, 24), "{report:?}");
    MESH.access_of("n2", "inbound", &report);
    for (index, (node, reporter)) in [("n1", "source"), ("n2", "destination")].into_iter().enumerate() {
        let line = MESH.access_of(node, if index == 0 { "outbound" } else { "inbound" }, &report);
        assert_eq!((number(&line, "bytes_received"), number(&line, "bytes_sent")), (5, 24), "{line}");
        assert_eq!(text(&line, "source_identity"), meter.spiffe_id(), "{line}");
        assert_eq!(text(&line, "destination_identity"), to.spiffe_id(), "{line}");
        assert_eq!((text(&line, "source_workload"), text(&line, "destination_workload")), ("shop/meter", "shop/metered"), "{line}");
        let now = sums(node, reporter);
        let grown: Vec<f64> = now.iter().zip(&before[index]).map(|(now, before)| now - before).collect();
        assert_eq!(grown, [1.0, 1.0, 5.0, 24.0], "{node}: opened, closed, received, sent");
    }
}

#[test]
fn a_tunnel_is_used_again() {
    let (client, to) = (MESH.pod("client"), MESH.pod("vault"));
    let _echo = to.serve("echo", 7051).unwrap();
    let reused = || MESH.sum("n1", "nodemesh_tunnel_reused_total", &[]);
    let before = reused();
    let target: SocketAddr = at(&to, 7051);
    for _ in 0..20 {
        assert_eq!(client.connect(target, "again").unwrap().received, "again");
    }
    // A worker has a pool of its own, so each may have made one.
    let workers = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    let grown = reused() - before;
    assert!(grown >= 20.0 - workers - 1.0, "{grown} of 20 connections found an open tunnel");
}
