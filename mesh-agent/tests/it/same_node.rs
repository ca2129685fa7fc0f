//! Two pods of one node: judged in the kernel at connect, carried by the kernel, counted by the kernel.

use std::net::SocketAddr;
use std::sync::{LazyLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use mesh_lab::manifests::{authorization_policy, namespace};
use mesh_lab::peer::{End, Report};
use mesh_lab::{Pod, PodSpec};
use serde_json::{Value, json};

use crate::world::*;

/// Written to by the test that changes settings of the whole mesh.
static MESH: LazyLock<RwLock<Cluster>> = LazyLock::new(|| {
    let pods = [
        ("n1", PodSpec::new("shop", "client").service_account("client")),
        ("n1", PodSpec::new("shop", "other").service_account("other")),
        ("n1", PodSpec::new("shop", "server").service_account("server")),
        ("n1", PodSpec::new("guarded", "guarded").service_account("server")),
        ("n1", PodSpec::new("changing", "changing").service_account("server")),
        ("n1", PodSpec::new("secret", "whisperer").service_account("client")),
        ("n1", PodSpec::new("secret", "listener").service_account("server")),
        ("n1", PodSpec::new("turns", "caller").service_account("client")),
        ("n1", PodSpec::new("turns", "callee").service_account("server")),
        ("n1", PodSpec::new(OUTSIDE, "outsider")),
    ];
    let ground = ground("samenode", &pods);
    let mut secret = namespace("secret", Some(true));
    secret["metadata"]["labels"]["nodemesh.dev/same-node"] = json!("encrypt");
    ground.put("namespace-secret", &[secret]);
    let from = |who: &str| json!([{ "from": [{ "source": { "principals": [format!("cluster.local/ns/shop/sa/{who}")] } }] }]);
    let mut allowed = from("client");
    allowed[0]["to"] = json!([{ "operation": { "ports": ["7101", "7102"] } }]);
    ground.put(
        "guarded-policies",
        &[
            authorization_policy("guarded", "no-others", &[], "DENY", &from("other")),
            authorization_policy("guarded", "clients", &[], "ALLOW", &allowed),
        ],
    );
    RwLock::new(ground.start())
});

fn mesh() -> RwLockReadGuard<'static, Cluster> {
    MESH.read().unwrap_or_else(PoisonError::into_inner)
}

fn mesh_alone() -> RwLockWriteGuard<'static, Cluster> {
    MESH.write().unwrap_or_else(PoisonError::into_inner)
}

/// opened, closed, received (client to server), sent; of one pair of workloads.
fn counts(mesh: &Cluster, reporter: &str, from: &str, to: &str) -> [f64; 4] {
    let labels = [("reporter", reporter), ("source_workload", from), ("destination_workload", to), ("connection_security_policy", "none")];
    let sum = |name: &str| mesh.sum("n1", name, &labels);
    [
        sum("istio_tcp_connections_opened_total"),
        sum("istio_tcp_connections_closed_total"),
        sum("istio_tcp_received_bytes_total"),
        sum("istio_tcp_sent_bytes_total"),
    ]
}

/// Waits until a pair's counts have grown by exactly this for both reporters.
fn grown(mesh: &Cluster, from: &str, to: &str, before: [f64; 4], wanted: [f64; 4]) {
    for reporter in ["source", "destination"] {
        let mut now = [f64::NAN; 4];
        let _ = mesh_lab::process::wait_until("counts", SOON, || {
            let sums = counts(mesh, reporter, from, to);
            now = std::array::from_fn(|i| sums[i] - before[i]);
            now == wanted
        });
        assert_eq!(now, wanted, "{reporter}: opened, closed, received, sent of {from} to {to}");
    }
}

/// What would have moved, had the agent carried something.
fn by_agent(mesh: &Cluster) -> (f64, f64, f64) {
    (
        mesh.sum("n1", "nodemesh_tunnel_streams_total", &[]),
        mesh.sum("n1", "nodemesh_tunnel_handshakes_total", &[]),
        mesh.sum("n1", "nodemesh_kernel_verdicts_total", &[("verdict", "agent")]),
    )
}

fn refused(report: &Report) {
    // A cgroup program's no is EPERM for connect().
    assert_eq!((report.connected, report.errno, report.end), (false, Some(1), End::NotConnected), "{report:?}");
    assert!(report.connect_micros < 1_000_000, "refused at once: {report:?}");
}

#[test]
fn the_kernel_counts_every_byte_and_the_agent_sees_none() {
    let mesh = mesh_alone();
    let (client, server) = (mesh.pod("client"), mesh.pod("server"));
    let _echo = server.serve("echo", 7100).unwrap();
    let agent = by_agent(&mesh);
    let direct = || mesh.sum("n1", "nodemesh_kernel_verdicts_total", &[("verdict", "direct")]);
    // Counters of the kernel are summed up twice a second: those of an earlier test come in until then.
    std::thread::sleep(Duration::from_secs(1));
    let (verdicts, before) = (direct(), counts(&mesh, "source", "client", "server"));
    let mut reports = Vec::new();
    for words in [
        vec![at(&server, 7100).to_string()],
        vec![at6(&server, 7100).to_string()],
        vec![at(&server, 7100).to_string(), "--mapped".to_owned()],
    ] {
        let words: Vec<&str> =
            ["connect", "--send", "hello world", "--half-close"].into_iter().chain(words.iter().map(String::as_str)).collect();
        let report = client.peer(&words, LIMIT).unwrap();
        assert_eq!((report.received.as_str(), report.end), ("hello world", End::Eof), "{report:?}");
        reports.push(report);
    }
    grown(&mesh, "client", "server", before, [3.0, 3.0, 33.0, 33.0]);
    mesh_lab::process::wait_until("three verdicts", SOON, || direct() - verdicts == 3.0).unwrap();
    assert_eq!(by_agent(&mesh), agent, "streams, handshakes and verdicts of the agent");
    for report in &reports {
        let line = mesh.access_of("n1", "local", report);
        assert_eq!((number(&line, "bytes_received"), number(&line, "bytes_sent")), (11, 11), "{line}");
        let shown = [text(&line, "source_identity"), text(&line, "destination_identity"), text(&line, "security"), text(&line, "outcome")];
        assert_eq!(shown, [client.spiffe_id().as_str(), server.spiffe_id().as_str(), "none", "completed"], "{line}");
    }
}

#[test]
fn every_way_to_end_is_counted_exactly() {
    let mesh = mesh();
    let (client, server) = (mesh.pod("other"), mesh.pod("server"));
    let before = counts(&mesh, "source", "other", "server");
    let _servers: Vec<_> =
        ["bulk", "half-close", "sink", "reset"].iter().zip(7110..).map(|(mode, port)| server.serve(mode, port).unwrap()).collect();
    let to = |port| at(&server, port).to_string();
    // Large, both ways at once: what the client announces, the bytes, the server's digest.
    const SIZE: u64 = 64 << 20;
    let report = client.bulk(at(&server, 7110), SIZE, SIZE, Duration::from_secs(60)).unwrap();
    assert!(report.ok, "{report:?}");
    let (mut received, mut sent) = (SIZE as f64 + 16.0, SIZE as f64 + 65.0);
    grown(&mesh, "other", "server", before, [1.0, 1.0, received, sent]);
    // The server closes first.
    client.peer(&["connect", &to(7111), "--read-first", "19", "--send", "late"], LIMIT).unwrap();
    (received, sent) = (received + 4.0, sent + 19.0);
    grown(&mesh, "other", "server", before, [2.0, 2.0, received, sent]);
    // The client aborts.
    let report = client.peer(&["connect", &to(7112), "--send", "xyz", "--hold", "100", "--reset"], LIMIT).unwrap();
    assert_eq!(report.end, End::Done, "{report:?}");
    received += 3.0;
    grown(&mesh, "other", "server", before, [3.0, 3.0, received, sent]);
    // The server aborts.
    let report = client.peer(&["connect", &to(7113), "--send", "xy"], LIMIT).unwrap();
    assert_eq!(report.end, End::Reset, "{report:?}");
    received += 2.0;
    grown(&mesh, "other", "server", before, [4.0, 4.0, received, sent]);
    // Nobody listens: nothing was established, so nothing is counted.
    let report = client.peer(&["connect", &to(1)], LIMIT).unwrap();
    assert_eq!(report.errno, Some(111), "{report:?}");
    grown(&mesh, "other", "server", before, [4.0, 4.0, received, sent]);
}

#[test]
fn policy_is_enforced_at_connect() {
    let mesh = mesh();
    let guarded = mesh.pod("guarded");
    let servers = [guarded.serve("echo", 7101).unwrap(), guarded.serve("echo", 7103).unwrap()];
    for dialled in [at(&guarded, 7101), at6(&guarded, 7101)] {
        assert_eq!(mesh.pod("client").connect(dialled, "allowed").unwrap().received, "allowed");
        refused(&mesh.pod("other").connect(dialled, "denied").unwrap());
    }
    let fields = [
        ("direction", "local"),
        ("source_workload", "shop/other"),
        ("destination_workload", "guarded/guarded"),
        ("outcome", "policy_denied"),
        ("policy", "guarded/no-others"),
        ("flags", "DENY"),
        ("source_identity", "spiffe://cluster.local/ns/shop/sa/other"),
    ];
    mesh.access("n1", &fields);
    // Allowed as a client, but not on this port.
    refused(&mesh.pod("client").connect(at(&guarded, 7103), "denied").unwrap());
    mesh.access("n1", &[("outcome", "no_allow_policy"), ("source_workload", "shop/client"), ("destination_workload", "guarded/guarded")]);
    assert_eq!(servers.each_ref().map(mesh_lab::peer::Server::accepted), [2, 0], "what was denied never arrived");
    let denied = [("destination_workload", "guarded"), ("source_workload", "other"), ("response_flags", "DENY")];
    mesh.wait_sum("n1", "istio_tcp_connections_closed_total", &[&denied[..], &[("reporter", "destination")]].concat(), 2.0);
    let refusals = |reason| mesh.sum("n1", "nodemesh_kernel_refusals_total", &[("reason", reason)]);
    let counted = || refusals("policy_denied") >= 2.0 && refusals("no_allow_policy") >= 1.0;
    mesh_lab::process::wait_until("the refusals are counted", SOON, counted).unwrap();
}

#[test]
fn a_live_direct_connection_ends_when_policy_changes() {
    let mesh = mesh();
    let (client, other, to) = (mesh.pod("client"), mesh.pod("other"), mesh.pod("changing"));
    let _echo = to.serve("echo", 7104).unwrap();
    let rules = json!([{ "from": [{ "source": { "principals": ["cluster.local/ns/shop/sa/client"] } }] }]);
    let deny = authorization_policy("changing", "no-clients", &[], "DENY", &rules);
    for (round, dialled) in [(1.0, at(&to, 7104)), (2.0, at6(&to, 7104))] {
        let tick = |pod: &Pod| pod.spawn_peer(&["tick", &dialled.to_string(), "--interval", "20", "--seconds", "60"]).unwrap();
        let (doomed, allowed) = (tick(&client), tick(&other));
        mesh_lab::process::wait_until("both live", LIMIT, || doomed.ticks() >= 3 && allowed.ticks() >= 3).unwrap();
        mesh.apply("changing", std::slice::from_ref(&deny));
        let report: Report = doomed.finish(SOON).expect("the connection is ended");
        assert_eq!(report.end, End::Reset, "{report:?}");
        refused(&client.connect(dialled, "again").unwrap());
        let ticks = allowed.ticks();
        mesh_lab::process::wait_until("the other lives on", LIMIT, || allowed.ticks() > ticks + 3).unwrap();
        mesh.access("n1", &[("outcome", "policy_denied"), ("policy", "changing/no-clients"), ("source_workload", "shop/client")]);
        // The one that was ended: one line, which says why and what it carried.
        let line = mesh.access_of("n1", "local", &report);
        let shown = ["outcome", "flags", "policy", "source_workload", "destination_workload"].map(|field| text(&line, field));
        assert_eq!(shown, ["policy_revoked", "DENY", "changing/no-clients", "shop/client", "changing/changing"], "{line}");
        assert!(number(&line, "bytes_received") > 0 && number(&line, "bytes_sent") > 0 && number(&line, "duration_ms") > 0, "{line}");
        mesh.withdraw("changing");
        assert_eq!(client.connect(dialled, "again").unwrap().received, "again");
        // Of each round: one ended, one refused, one completed.
        for reporter in ["source", "destination"] {
            let who = [("reporter", reporter), ("source_workload", "client"), ("destination_workload", "changing")];
            mesh.wait_sum("n1", "istio_tcp_connections_opened_total", &who, 3.0 * round);
            for (flag, each) in [("DENY", 2.0), ("-", 1.0)] {
                mesh.wait_sum("n1", "istio_tcp_connections_closed_total", &[&who[..], &[("response_flags", flag)]].concat(), each * round);
            }
        }
        mesh.wait_sum("n1", "nodemesh_policy_decisions_total", &[("reason", "policy_revoked")], round);
        let at_client = canonical(report.local.unwrap()).to_string();
        assert_eq!(mesh.agent("n1").access_log().iter().filter(|line| text(line, "client") == at_client).count(), 1);
    }
}

/// A connection that went through tunnels, and is logged so by both roles of the one agent.
fn encrypted(mesh: &Cluster, client: &Pod, server: &Pod, port: u16) {
    for dialled in [at(server, port), at6(server, port)] {
        let agent = by_agent(mesh);
        let report = client.connect(dialled, "in secret").unwrap();
        assert_eq!((report.end, report.peer), (End::Eof, Some(dialled)), "{report:?}");
        let seen: Value = serde_json::from_str(&report.received).unwrap();
        let seen: SocketAddr = text(&seen, "peer").parse().unwrap();
        assert_eq!(Some(canonical(seen)), report.local, "the server sees the client's own address and port");
        for direction in ["outbound", "inbound"] {
            let line = mesh.access_of("n1", direction, &report);
            assert_eq!((text(&line, "security"), text(&line, "outcome")), ("mutual_tls", "completed"), "{line}");
            assert_eq!(text(&line, "source_identity"), client.spiffe_id(), "{line}");
        }
        assert!(by_agent(mesh).0 > agent.0, "a tunnel carried it");
    }
}

#[test]
fn a_namespace_can_demand_encryption() {
    let mesh = mesh();
    let (whisperer, listener) = (mesh.pod("whisperer"), mesh.pod("listener"));
    let _server = listener.serve("peer-name", 7105).unwrap();
    encrypted(&mesh, &whisperer, &listener, 7105);
    // One side of such a namespace is enough, whichever.
    encrypted(&mesh, &mesh.pod("client"), &listener, 7105);
    let server = mesh.pod("server");
    let _server = server.serve("peer-name", 7106).unwrap();
    encrypted(&mesh, &whisperer, &server, 7106);
}

#[test]
fn the_whole_mesh_can_demand_encryption() {
    let mesh = mesh_alone();
    let (caller, callee) = (mesh.pod("caller"), mesh.pod("callee"));
    let _server = callee.serve("peer-name", 7107).unwrap();
    let direct = || mesh.access_of("n1", "local", &caller.connect(at(&callee, 7107), "").unwrap());
    direct();
    mesh.apply("mesh", &[settings(json!({ "sameNode": "encrypt" }))]);
    encrypted(&mesh, &caller, &callee, 7107);
    mesh.withdraw("mesh");
    direct();
}
