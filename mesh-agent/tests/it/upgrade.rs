//! Pods and agents come, go and change while connections live.

use std::time::Duration;

use mesh_lab::manifests::{authorization_policy, pod, service, service_account};
use mesh_lab::peer::{BulkReport, Client, End, Report};
use mesh_lab::process::wait_until;
use mesh_lab::{Pod, PodSpec, http_get};
use serde_json::json;

use crate::world::*;

fn tick(from: &Pod, to: &Pod, port: u16) -> Client {
    let client = from.spawn_peer(&["tick", &at(to, port).to_string(), "--interval", "20", "--seconds", "120"]).unwrap();
    wait_until("the connection lives", LIMIT, || client.ticks() >= 3).unwrap_or_else(|_| panic!("{}", client.process.log()));
    client
}

fn goes_on(client: &Client) {
    let ticks = client.ticks();
    wait_until("the connection goes on", LIMIT, || client.ticks() > ticks + 5).unwrap_or_else(|_| panic!("{}", client.process.log()));
}

#[test]
fn an_agent_that_is_asked_to_end_lets_connections_finish() {
    let pods = [
        ("n1", PodSpec::new("shop", "client").service_account("client")),
        ("n2", PodSpec::new("shop", "server").service_account("server")),
        ("n2", PodSpec::new("shop", "slow").service_account("server")),
        ("n1", PodSpec::new(OUTSIDE, "outsider")),
    ];
    let mut ground = ground("drain", &pods);
    ground.options.agent_flags.push("--drain-time=8s".to_owned());
    let mut mesh = ground.start();
    let [client, server, slow, outsider] = ["client", "server", "slow", "outsider"].map(|name| mesh.pod(name));
    let _servers = [server.serve("echo", 7300).unwrap(), slow.serve("bulk", 7301).unwrap()];

    // The client's agent: a connection that ends in time ends by itself, one that does not is ended at the deadline.
    let words = ["tick", &at(&server, 7300).to_string(), "--interval", "20", "--seconds", "4"];
    let short = client.spawn_peer(&words).unwrap();
    let long = tick(&client, &server, 7300);
    wait_until("the short one lives", LIMIT, || short.ticks() >= 3).unwrap();
    let asked = std::time::Instant::now();
    assert!(!mesh.mesh.agent("n1").unwrap().terminate(Duration::ZERO).unwrap(), "it drains");
    let mut shown = String::new();
    wait_until("readiness says that it drains", SOON, || {
        let answer = http_get(&mesh.node("n1").netns(), "http://127.0.0.1:15020/healthz/ready").expect("the page is served while draining");
        shown = format!("{} {}", answer.status, answer.body);
        answer.status == 503 && answer.body.contains("drain")
    })
    .unwrap_or_else(|error| panic!("{error}: {shown}"));
    goes_on(&long);
    // What comes now is refused, not passed around the agent that ends.
    let report =
        client.peer(&["connect", &at(&server, 7300).to_string(), "--send", "late", "--half-close", "--timeout", "2"], LIMIT).unwrap();
    assert_eq!(report.received_bytes, 0, "{report:?}");
    let report: Report = short.finish(LIMIT).unwrap();
    assert_eq!(report.end, End::Done, "it ended by itself: {report:?}");
    let report: Report = long.finish(LIMIT).unwrap();
    assert_eq!(report.end, End::Reset, "it was ended: {report:?}");
    let agent = mesh.mesh.agent("n1").unwrap();
    let status = agent.process.wait(LIMIT).unwrap().expect("it ends");
    assert!(status.success(), "{status}: {}", agent.log());
    assert!((6..14).contains(&asked.elapsed().as_secs()), "{:?}", asked.elapsed());
    agent.wait_for_access(&[("direction", "outbound"), ("outcome", "drained")], SOON).unwrap();

    let options = mesh.options.clone();
    let Cluster { mesh: running, ground } = &mut mesh;
    running.restart(&ground.world, "n1", &options).unwrap();
    // The server's agent: it ends as soon as the last connection has.
    let bulk = client.spawn_peer(&["bulk", &at(&slow, 7301).to_string(), "--send", "67108864", "--receive", "67108864"]).unwrap();
    let plain = outsider.spawn_peer(&["tick", &at(&server, 7300).to_string(), "--interval", "20", "--seconds", "3"]).unwrap();
    wait_until("both run", LIMIT, || {
        plain.ticks() >= 3 && !mesh.admin("n2", "/connections?workload=shop/slow")["connections"].as_array().unwrap().is_empty()
    })
    .unwrap();
    assert!(!mesh.mesh.agent("n2").unwrap().terminate(Duration::ZERO).unwrap(), "it drains");
    let report: BulkReport = bulk.finish(Duration::from_secs(40)).unwrap();
    assert!(report.ok, "{report:?}");
    let report: Report = plain.finish(LIMIT).unwrap();
    assert_eq!(report.end, End::Done, "{report:?}");
    let agent = mesh.mesh.agent("n2").unwrap();
    let status = agent.process.wait(LIMIT).unwrap().expect("it ends");
    assert!(status.success(), "{status}: {}", agent.log());
}

#[test]
fn a_pod_joins_and_leaves_without_a_restart() {
    let pods = [
        ("n1", PodSpec::new("shop", "client").service_account("client")),
        ("n2", PodSpec::new("shop", "server").service_account("server")),
        ("n1", PodSpec::new("shop", "near").service_account("server")),
        ("n1", PodSpec::new(OUTSIDE, "outsider").service_account("outsider")),
    ];
    let mesh = ground("join", &pods).start();
    let [client, server, near, outsider] = ["client", "server", "near", "outsider"].map(|name| mesh.pod(name));
    let servers = [server.serve("echo", 7310).unwrap(), near.serve("echo", 7310).unwrap(), outsider.serve("echo", 7310).unwrap()];
    let label = |of: &Pod, word: Option<&str>| {
        let mut object = pod(of);
        if let Some(word) = word {
            object["metadata"]["labels"]["nodemesh.dev/mesh"] = json!(word);
        }
        let name = format!("pod-{}-{}", of.namespace(), of.name());
        mesh.apply(&name, &[service_account(of.namespace(), of.service_account()), object]);
    };
    let security = |from: &Pod, to: &Pod| {
        let report = from.connect(at(to, 7310), "hello").unwrap();
        assert_eq!((report.received.as_str(), report.peer), ("hello", Some(at(to, 7310))), "{report:?}");
        let direction = if from.node().name() == to.node().name() && from.namespace() != OUTSIDE { "local" } else { "inbound" };
        text(&mesh.access_of(to.node().name(), direction, &report), "security").to_owned()
    };
    assert_eq!(security(&client, &server), "mutual_tls");
    assert_eq!(security(&client, &near), "none");

    // The client leaves. Its processes run on, its server keeps its socket; what it says now is plaintext from outside.
    let own = client.serve("echo", 7310).unwrap();
    let through = [tick(&client, &server, 7310), tick(&server, &client, 7310)];
    label(&client, Some("disabled"));
    assert_eq!(security(&client, &server), "none");
    for (from, to) in [(&client, &near), (&client, &outsider), (&server, &client), (&near, &client), (&outsider, &client)] {
        let report = from.connect(at(to, 7310), "hello").unwrap();
        assert_eq!(report.received, "hello", "{} to {}: {report:?}", from.name(), to.name());
    }
    assert!(mesh.workload(&client).is_none());
    drop(through);
    // And comes back.
    label(&client, None);
    mesh.wait_served(&client);
    assert_eq!(security(&client, &server), "mutual_tls");
    assert_eq!(security(&client, &near), "none");
    assert_eq!(server.connect(at(&client, 7310), "hello").unwrap().received, "hello");
    assert!(own.accepted() >= 4);

    // One that was never in it joins, with a server that was started long before.
    label(&outsider, Some("enabled"));
    mesh.wait_served(&outsider);
    let report = server.connect(at(&outsider, 7310), "hello").unwrap();
    assert_eq!(report.received, "hello", "{report:?}");
    let line = mesh.access_of("n1", "inbound", &report);
    assert_eq!((text(&line, "security"), text(&line, "source_identity")), ("mutual_tls", server.spiffe_id().as_str()), "{line}");
    let report = outsider.connect(at(&server, 7310), "hello").unwrap();
    let line = mesh.access_of("n2", "inbound", &report);
    assert_eq!((text(&line, "security"), text(&line, "source_identity")), ("mutual_tls", outsider.spiffe_id().as_str()), "{line}");
    assert!(servers.iter().all(|server| server.accepted() > 0));
}

#[test]
fn a_pod_that_vanishes_ends_its_connections_and_no_others() {
    let pods = [
        ("n1", PodSpec::new("shop", "client").service_account("client")),
        ("n2", PodSpec::new("shop", "server").service_account("server")),
        ("n2", PodSpec::new("shop", "torn").service_account("server")),
        ("n1", PodSpec::new("shop", "fleeting").service_account("fleeting")),
        ("n2", PodSpec::new("shop", "stays").service_account("server")),
    ];
    let mesh = ground("vanish", &pods).start();
    let [client, server, torn, fleeting, stays] = ["client", "server", "torn", "fleeting", "stays"].map(|name| mesh.pod(name));
    let _servers = [
        server.serve("bulk", 7320).unwrap(),
        torn.serve("bulk", 7320).unwrap(),
        stays.serve("echo", 7320).unwrap(),
        stays.serve("sink", 7321).unwrap(),
    ];
    let alive = tick(&client, &stays, 7320);
    let lives = |name: &str| {
        let shown = mesh.admin("n1", &format!("/connections?workload=shop/{name}"));
        shown["connections"].as_array().is_some_and(|all| !all.is_empty())
    };
    let start = |to: &Pod| {
        let words = ["bulk", &at(to, 7320).to_string(), "--send", "20000000000", "--timeout", "60"];
        let bulk = client.spawn_peer(&words).unwrap();
        let arrived = || {
            let shown = mesh.admin("n2", &format!("/connections?workload=shop/{}", to.name()));
            shown["connections"][0]["bytes_received"].as_u64().is_some_and(|bytes| bytes > 1_000_000)
        };
        wait_until("the transfer runs", LIMIT, arrived).unwrap();
        bulk
    };
    // As a kubelet takes one down: processes first, the announcement after.
    let bulk = start(&server);
    server.clone().remove().unwrap();
    mesh.changed(|| mesh.world.manifests().remove_pod(&server).unwrap());
    let report: BulkReport = bulk.finish(SOON).expect("the transfer ends");
    assert!(!report.ok && report.error.is_some(), "{report:?}");
    // As a node loses one: announced as gone while its processes and sockets are still there, out of reach.
    let bulk = start(&torn);
    torn.unplug().unwrap();
    mesh.changed(|| mesh.world.manifests().remove_pod(&torn).unwrap());
    let report: BulkReport = bulk.finish(SOON).expect("the transfer ends");
    assert!(!report.ok && report.error.is_some(), "{report:?}");
    mesh.access("n1", &[("outcome", "server_pod_gone"), ("destination_workload", "shop/torn")]);
    // The client's side of it.
    let held = fleeting.spawn_peer(&["tick", &at(&stays, 7320).to_string(), "--interval", "20", "--seconds", "60"]).unwrap();
    wait_until("it lives", LIMIT, || held.ticks() >= 3).unwrap();
    fleeting.clone().remove().unwrap();
    mesh.changed(|| mesh.world.manifests().remove_pod(&fleeting).unwrap());
    wait_until("no connection of it is left", LIMIT, || !lives("fleeting")).unwrap();
    goes_on(&alive);
    assert_eq!(client.connect(at(&stays, 7321), "four").unwrap().received, "{\"bytes\":4}\n");
    for node in ["n1", "n2"] {
        assert!(!mesh.agent(node).log().contains("panicked"), "{}", mesh.agent(node).log());
    }
}

#[test]
fn an_address_that_is_used_again_belongs_to_its_new_pod() {
    let pods = [
        ("n1", PodSpec::new("shop", "client").service_account("client")),
        ("n2", PodSpec::new("shop", "server").service_account("server").host(77)),
        ("n1", PodSpec::new("shop", "near").service_account("server").host(78)),
    ];
    let mesh = ground("reuse", &pods).start();
    let client = mesh.pod("client");
    let rules = json!([{ "from": [{ "source": { "principals": ["cluster.local/ns/shop/sa/client"] } }] }]);
    mesh.apply("policy", &[authorization_policy("shop", "thief-sees-no-clients", &[("app", "closed")], "DENY", &rules)]);
    for (old, node, number, direction) in [("server", "n2", 77, "outbound"), ("near", "n1", 78, "local")] {
        let first = mesh.pod(old);
        let echo = first.serve("echo", 7330).unwrap();
        let report = client.connect(at(&first, 7330), "first").unwrap();
        assert_eq!(report.received, "first", "{report:?}");
        assert_eq!(text(&mesh.access_of("n1", direction, &report), "destination_identity"), first.spiffe_id());
        drop(echo);
        first.clone().remove().unwrap();
        // The address has a new owner before the mesh hears of it: nothing is let through under the old name.
        let second = mesh.node(node).add_pod(PodSpec::new("shop", &format!("new-{old}")).service_account("heir").host(number)).unwrap();
        assert_eq!(second.ipv4(), first.ipv4());
        forget_neighbours(&mesh, &client);
        let echo = second.serve("echo", 7330).unwrap();
        let target = at(&second, 7330).to_string();
        let early = || client.peer(&["connect", &target, "--send", "early", "--half-close", "--timeout", "3"], LIMIT).unwrap();
        if direction == "outbound" {
            let report = early();
            assert_eq!((report.received_bytes, echo.accepted()), (0, 0), "{report:?}");
        } else {
            // On its own node the agent notices that the old pod's namespace is gone, and holds the address.
            wait_until("the kernel refuses the address", SOON, || early().errno == Some(1)).unwrap();
            mesh.access("n1", &[("outcome", "destination_held"), ("destination_workload", &first.full_name())]);
        }
        mesh.changed(|| {
            mesh.world.manifests().put_pod(&second).unwrap();
            mesh.world.manifests().remove_pod(&first).unwrap();
        });
        mesh.wait_forgotten(&first);
        mesh.wait_served(&second);
        let report = client.connect(at(&second, 7330), "second").unwrap();
        assert_eq!(report.received, "second", "{report:?}");
        let line = mesh.access_of("n1", direction, &report);
        assert_eq!(text(&line, "destination_identity"), second.spiffe_id(), "{line}");
        assert_eq!(text(&line, "destination_workload"), second.full_name(), "{line}");
        // And a third, of which policy thinks otherwise.
        second.clone().remove().unwrap();
        let third = mesh
            .node(node)
            .add_pod(PodSpec::new("shop", &format!("closed-{old}")).service_account("server").label("app", "closed").host(number))
            .unwrap();
        forget_neighbours(&mesh, &client);
        let echo = third.serve("echo", 7330).unwrap();
        mesh.changed(|| {
            mesh.world.manifests().put_pod(&third).unwrap();
            mesh.world.manifests().remove_pod(&second).unwrap();
        });
        mesh.wait_forgotten(&second);
        mesh.wait_served(&third);
        let report = client.connect(at(&third, 7330), "third").unwrap();
        assert_eq!((report.received_bytes, echo.accepted()), (0, 0), "{report:?}");
        mesh.access(node, &[("policy", "shop/thief-sees-no-clients"), ("destination_workload", &third.full_name())]);
    }
}

/// As network plug-ins do by announcing an address's new owner: hardware addresses that were learnt are forgotten.
fn forget_neighbours(mesh: &Cluster, pod: &Pod) {
    const FLUSH: [&str; 5] = ["ip", "neigh", "flush", "nud", "all"];
    pod.exec(&FLUSH, LIMIT).unwrap().success().unwrap();
    for node in mesh.world.nodes() {
        node.exec_host(&FLUSH, LIMIT).unwrap().success().unwrap();
    }
}

#[test]
fn a_direct_connection_keeps_its_name_through_agents() {
    let pods = [
        ("n1", PodSpec::new("shop", "client").service_account("client")),
        ("n1", PodSpec::new("shop", "server").service_account("server")),
    ];
    let ground = ground("names", &pods);
    ground.put("service", &[service("shop", "store", &["10.96.0.91"], "server", &[("tcp", 80, 7340)])]);
    let mut mesh = ground.start();
    let (client, server) = (mesh.pod("client"), mesh.pod("server"));
    let _echo = server.serve("echo", 7340).unwrap();
    let through = |to: &str| {
        let held = client.spawn_peer(&["tick", to, "--interval", "20", "--seconds", "120"]).unwrap();
        wait_until("the connection lives", LIMIT, || held.ticks() >= 3).unwrap_or_else(|_| panic!("{}", held.process.log()));
        held
    };
    let first = through("10.96.0.91:80");
    let options = mesh.options.clone();
    let restart = |mesh: &mut Cluster| {
        let Cluster { mesh: running, ground } = mesh;
        running.restart(&ground.world, "n1", &options).unwrap();
    };
    restart(&mut mesh);
    let second = through("10.96.0.91:80");
    restart(&mut mesh);
    // One of the agent before last, one of the last, one of this. Long enough, and the numbers that are not in use would be forgotten.
    let third = through("10.96.0.91:80");
    goes_on(&first);
    let labels = |reporter: &'static str| {
        [
            ("reporter", reporter),
            ("source_workload", "client"),
            ("source_principal", "spiffe://cluster.local/ns/shop/sa/client"),
            ("destination_workload", "server"),
            ("destination_service", "store.shop.svc.cluster.local"),
            ("destination_service_name", "store"),
        ]
    };
    for (count, mut held) in [(1.0, first), (2.0, second), (3.0, third)] {
        held.process.kill();
        for reporter in ["source", "destination"] {
            mesh.wait_sum("n1", "istio_tcp_connections_closed_total", &labels(reporter), count);
        }
    }
    let named = |line: &&serde_json::Value| {
        text(line, "source_workload") == "shop/client"
            && text(line, "destination_workload") == "shop/server"
            && text(line, "service") == "store.shop.svc.cluster.local"
    };
    let lines = || mesh.agent("n1").access_log().into_iter().filter(|line| text(line, "direction") == "local").collect::<Vec<_>>();
    wait_until("three lines of three ends", SOON, || lines().iter().filter(named).count() == 3).unwrap_or_else(|_| panic!("{:?}", lines()));
    assert_eq!(mesh.sum("n1", "istio_tcp_connections_closed_total", &[("source_workload", "unknown")]), 0.0);
}
