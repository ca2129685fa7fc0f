//! Cluster IPs: resolved to an endpoint when dialled, on both families.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_lab::manifests::{pod, service, service_account};
use mesh_lab::peer::End;
use mesh_lab::process::wait_until;
use serde_json::{Value, json};

use crate::net::MESH;
use crate::world::*;

/// The services of the shared mesh.
pub fn objects() -> Vec<Value> {
    vec![
        service("shop", "web", &["10.96.0.10", "fd00:96::10"], "web", &[("http", 80, 8080)]),
        service("shop", "one", &["10.96.0.11", "fd00:96::11"], "server", &[("tcp", 90, 7030)]),
        service("shop", "near", &["10.96.0.12", "fd00:96::12"], "near", &[("tcp", 90, 7030)]),
        service("shop", "self", &["10.96.0.13", "fd00:96::13"], "client", &[("tcp", 90, 7031)]),
        service(OUTSIDE, "stranger", &["10.96.0.14", "fd00:96::14"], "stranger", &[("tcp", 90, 7032)]),
        service("shop", "empty", &["10.96.0.15", "fd00:96::15"], "nobody", &[("tcp", 90, 90)]),
        service("shop", "moving", &["10.96.0.16", "fd00:96::16"], "moving", &[("tcp", 90, 7033)]),
    ]
}

fn ips(last: u8, port: u16) -> [SocketAddr; 2] {
    [format!("10.96.0.{last}:{port}").parse().unwrap(), format!("[fd00:96::{last}]:{port}").parse().unwrap()]
}

#[test]
fn every_endpoint_gets_its_share() {
    let client = MESH.pod("client");
    let servers = [MESH.pod("web1").serve("peer-name", 8080).unwrap(), MESH.pod("web2").serve("peer-name", 8080).unwrap()];
    for (dialled, round) in ips(10, 80).into_iter().flat_map(|to| (0..10).map(move |round| (to, round))) {
        let report = client.connect(dialled, "").unwrap();
        assert_eq!((report.peer, report.end), (Some(dialled), End::Eof), "round {round}: {report:?}");
        let seen: Value = serde_json::from_str(&report.received).unwrap();
        assert_eq!(canonical(text(&seen, "peer").parse().unwrap()), report.local.unwrap());
    }
    let [near, far] = servers.map(|server| server.accepted());
    assert_eq!(near + far, 20);
    assert!(near > 0 && far > 0, "{near} on the same node, {far} on the other");
}

#[test]
fn a_service_is_named_in_metrics_and_log() {
    let (meter, server, near) = (MESH.pod("meter"), MESH.pod("server"), MESH.pod("near"));
    let _servers = [server.serve("echo", 7030).unwrap(), near.serve("echo", 7030).unwrap()];
    for (last, name, direction, pod) in [(11, "one", "outbound", &server), (12, "near", "local", &near)] {
        let host = format!("{name}.shop.svc.cluster.local");
        for dialled in ips(last, 90) {
            let report = meter.connect(dialled, "hello").unwrap();
            assert_eq!((report.received.as_str(), report.peer), ("hello", Some(dialled)), "{report:?}");
            let line = MESH.access_of("n1", direction, &report);
            let endpoint = if dialled.is_ipv4() { at(pod, 7030) } else { at6(pod, 7030) };
            let shown = [text(&line, "service"), text(&line, "dialled"), text(&line, "server")];
            assert_eq!(shown, [&host, &dialled.to_string(), &endpoint.to_string()].map(String::as_str), "{line}");
        }
        let labels = [
            ("reporter", "source"),
            ("source_workload", "meter"),
            ("destination_service", host.as_str()),
            ("destination_service_name", name),
            ("destination_workload", pod.name()),
        ];
        MESH.wait_sum("n1", "istio_tcp_connections_opened_total", &labels, 2.0);
        MESH.wait_sum("n1", "istio_tcp_received_bytes_total", &labels, 10.0);
    }
}

#[test]
fn an_endpoint_outside_the_mesh_is_reached_in_the_clear() {
    let (client, stranger) = (MESH.pod("client"), MESH.pod("stranger"));
    let _server = stranger.serve("peer-name", 7032).unwrap();
    for dialled in ips(14, 90) {
        let report = client.connect(dialled, "").unwrap();
        assert_eq!((report.peer, report.end), (Some(dialled), End::Eof), "{report:?}");
        let seen: Value = serde_json::from_str(&report.received).unwrap();
        assert_eq!(canonical(text(&seen, "peer").parse().unwrap()), report.local.unwrap());
    }
}

#[test]
fn a_pod_can_be_its_own_endpoint() {
    let client = MESH.pod("client");
    let _echo = client.serve("echo", 7031).unwrap();
    for dialled in ips(13, 90) {
        let report = client.connect(dialled, "hairpin").unwrap();
        assert_eq!((report.received.as_str(), report.peer), ("hairpin", Some(dialled)), "{report:?}");
    }
}

#[test]
fn a_service_without_endpoints_refuses_at_once() {
    let client = MESH.pod("client");
    let refused = || MESH.sum("n1", "nodemesh_kernel_refusals_total", &[("reason", "no_endpoint")]);
    let before = refused();
    for dialled in ips(15, 90) {
        let report = client.peer(&["connect", &dialled.to_string()], LIMIT).unwrap();
        assert_eq!((report.connected, report.end), (false, End::NotConnected), "{report:?}");
        assert!(report.connect_micros < 1_000_000, "{report:?}");
        let fields = [("outcome", "no_endpoint"), ("source_workload", "shop/client"), ("service", "empty.shop.svc.cluster.local")];
        MESH.access("n1", &fields);
    }
    wait_until("both refusals are counted", SOON, || refused() == before + 2.0).unwrap();
    // A port that the service hasn't: nothing answers there.
    let report = client.peer(&["connect", "10.96.0.15:91", "--timeout", "3"], LIMIT).unwrap();
    assert!(!report.connected, "{report:?}");
}

#[test]
fn a_service_follows_its_pods() {
    let client = MESH.pod("client");
    let pods = [MESH.pod("moving1"), MESH.pod("moving2")];
    let servers = [pods[0].serve("echo", 7033).unwrap(), pods[1].serve("echo", 7033).unwrap()];
    let ready = |of: usize, ready: bool| {
        let mut object = pod(&pods[of]);
        object["status"]["conditions"][0]["status"] = json!(if ready { "True" } else { "False" });
        MESH.apply(&format!("pod-shop-{}", pods[of].name()), &[service_account("shop", "default"), object]);
    };
    for (unready, served) in [(0, 1), (1, 0)] {
        ready(unready, false);
        let before = servers[served].accepted();
        for dialled in ips(16, 90) {
            for _ in 0..4 {
                assert_eq!(client.connect(dialled, "here").unwrap().received, "here");
            }
        }
        wait_until("the ready pod took them all", Duration::from_secs(1), || servers[served].accepted() == before + 8).unwrap();
        ready(unready, true);
    }
}
