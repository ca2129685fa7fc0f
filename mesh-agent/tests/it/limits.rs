//! One pod's connections are bounded, in whichever direction, and those of others go on.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_lab::manifests::authorization_policy;
use mesh_lab::peer::{Client, HoldReport};
use mesh_lab::process::wait_until;
use mesh_lab::{Pod, PodSpec};
use serde_json::json;

use crate::foreign::{Authority, Leaf, Tunnel, inside};
use crate::world::*;

const LIMIT_OF_A_POD: u64 = 20;

/// Opens so many, which are looked at a few seconds later.
fn hold(from: &Pod, to: SocketAddr, connections: u64) -> Client {
    let words = ["hold", &to.to_string(), "--connections", &connections.to_string(), "--seconds", "4"];
    let mut client = from.spawn_peer(&words).unwrap();
    client.process.wait_for_log("holding", LIMIT).unwrap();
    client
}

fn alive(client: Client) -> u64 {
    let report: HoldReport = client.finish(LIMIT).unwrap();
    report.alive
}

#[test]
fn no_pod_has_more_than_its_share() {
    let server = |name: &str| ("n2", PodSpec::new("shop", name).service_account("server"));
    let pods = [
        ("n1", PodSpec::new("shop", "greedy").service_account("client")),
        ("n1", PodSpec::new("shop", "modest").service_account("client")),
        ("n1", PodSpec::new(OUTSIDE, "outsider")),
        server("first"),
        server("second"),
        server("third"),
        server("fourth"),
    ];
    let mut ground = ground("limits", &pods);
    let authority = Authority::new("the test's root");
    ground.options.control_flags.extend(authority.flags(&ground.world));
    ground.options.agent_flags.push(format!("--max-connections-per-pod={LIMIT_OF_A_POD}"));
    let mesh = ground.start();
    let [greedy, modest, outsider] = ["greedy", "modest", "outsider"].map(|name| mesh.pod(name));
    let servers = ["first", "second", "third", "fourth"].map(|name| mesh.pod(name));
    let _echoes = servers.each_ref().map(|server| server.serve("echo", 7400).unwrap());
    let [first, second, third, fourth] = servers.each_ref().map(|server| at(server, 7400));
    let refusals =
        |node: &str, kind: &str, wanted: f64| mesh.wait_sum(node, "nodemesh_pod_limit_refusals_total", &[("kind", kind)], wanted);
    let overflows = |node: &str, reporter: &str, labels: &[(&str, &str)], wanted: f64| {
        let labels = [&[("reporter", reporter), ("response_flags", "UO")][..], labels].concat();
        mesh.wait_sum(node, "istio_tcp_connections_closed_total", &labels, wanted);
    };
    let served = |from: &Pod, to| assert_eq!(from.connect(to, "hello").unwrap().received, "hello", "{to}");

    let of = |pod: &Pod, key: &str| mesh.workload(pod).and_then(|workload| workload[key].as_u64()).unwrap_or_else(|| panic!("{key}"));
    // One after the other, as far as the agents are concerned.
    let hold_both = |from: [&Pod; 2], to: [SocketAddr; 2], counted: &Pod| {
        let held = hold(from[0], to[0], 15);
        wait_until("all of the first are there", SOON, || of(counted, "connections") == 15).unwrap();
        [held, hold(from[1], to[1], 15)]
    };

    // Out of a pod.
    let held = hold_both([&greedy, &greedy], [first, second], &greedy);
    overflows("n1", "source", &[("source_workload", "greedy"), ("destination_workload", "second")], 10.0);
    refusals("n1", "outbound", 10.0);
    let line = mesh.access("n1", &[("direction", "outbound"), ("outcome", "overload"), ("source_workload", "shop/greedy")]);
    assert!(text(&line, "flags") == "UO" && text(&line, "reason").contains("--max-connections-per-pod"), "{line}");
    let report = greedy.connect(second, "one more").unwrap();
    assert_eq!(report.received_bytes, 0, "{report:?}");
    served(&modest, first);
    served(&modest, third);
    assert_eq!(held.map(alive), [15, 5]);

    // Into one through tunnels. The client's node learns why.
    let held = hold_both([&greedy, &modest], [third, third], &servers[2]);
    overflows("n2", "destination", &[("source_workload", "modest"), ("destination_workload", "third")], 10.0);
    refusals("n2", "stream", 10.0);
    let line = mesh.access("n1", &[("outcome", "unavailable_at_peer"), ("destination_workload", "shop/third")]);
    assert!(text(&line, "reason").contains("503") && text(&line, "reason").contains("--max-connections-per-pod"), "{line}");
    served(&modest, fourth);
    assert_eq!(held.map(alive), [15, 5]);

    // Into one in the clear, where the agent carries it: what is to be audited the kernel does not judge.
    let audit = json!([{ "to": [{ "operation": { "ports": ["7400"] } }] }]);
    mesh.apply("audit", &[authorization_policy("shop", "audit", &[("app", "fourth")], "AUDIT", &audit)]);
    let held = hold(&outsider, fourth, 25);
    overflows("n2", "destination", &[("source_workload", "outsider"), ("destination_workload", "fourth")], 5.0);
    refusals("n2", "plaintext", 5.0);
    served(&outsider, third);
    assert_eq!(alive(held), LIMIT_OF_A_POD);

    // Tunnels that carry nothing: the oldest give way, also to honest ones.
    let shown = authority.issue(&Leaf::of(&modest.spiffe_id()));
    let tunnel = |to: SocketAddr| SocketAddr::new(to.ip(), 15008);
    assert_eq!((of(&servers[2], "maxConnections"), of(&servers[2], "maxTunnels")), (LIMIT_OF_A_POD, 3 * LIMIT_OF_A_POD));
    let given_way = || {
        // The page is of the agent's last look after its pods, twice a second.
        std::thread::sleep(Duration::from_millis(700));
        wait_until("the oldest give way", SOON, || of(&servers[2], "tunnels") <= 2 * LIMIT_OF_A_POD).unwrap();
    };
    inside(&modest, async {
        let mut tunnels = Vec::new();
        for i in 0..75 {
            // An idle one of our own agents hears of it only when it is looked after.
            if i % 15 == 0 {
                given_way();
            }
            let mut tunnel = Tunnel::open(tunnel(third), &shown).await.unwrap_or_else(|error| panic!("{i}: {error}"));
            let mut stream = tunnel.connect(&third.to_string()).await.unwrap();
            stream.send(b"hello", LIMIT).await.unwrap();
            stream.finish();
            assert_eq!(stream.receive(usize::MAX).await.unwrap(), b"hello", "{i}");
            tunnels.push(tunnel);
        }
        given_way();
        served(&greedy, third);
    });
    refusals("n2", "tunnel", 0.0);
    // Those of somebody who never shakes hands: refused, and nobody else's.
    let held = hold(&outsider, tunnel(fourth), 80);
    wait_until("tunnels are refused", SOON, || mesh.sum("n2", "nodemesh_pod_limit_refusals_total", &[("kind", "tunnel")]) >= 20.0).unwrap();
    served(&modest, third);
    assert!(alive(held) <= 3 * LIMIT_OF_A_POD);

    // Each place came back, and each pod was told of once.
    for to in [first, second, third, fourth] {
        served(&greedy, to);
        served(&outsider, to);
    }
    for server in &servers {
        let empty = || mesh.workload(server).is_some_and(|workload| workload["connections"] == 0);
        wait_until("no place is taken", SOON, empty).unwrap_or_else(|_| panic!("{:?}", mesh.workload(server)));
    }
    let told = |node: &str, pod: &str| {
        mesh.agent(node).log().lines().filter(|line| line.contains("reached its limit") && line.contains(pod)).count()
    };
    assert_eq!((told("n1", "shop/greedy"), told("n2", "shop/third"), told("n2", "shop/fourth")), (1, 1, 2), "connections, and tunnels");
}
