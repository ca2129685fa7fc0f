//! What is not there refuses: no pod of the mesh is ever passed in the clear because something is missing, late, or dead.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use mesh_lab::manifests::{authorization_policy, peer_authentication, pod, service, service_account};
use mesh_lab::peer::{End, Report};
use mesh_lab::process::wait_until;
use mesh_lab::{Agent, Control, MeshOptions, Place, Pod, PodSpec, http_get};
use serde_json::{Value, json};

use crate::world::*;

/// Nothing of what a client sends may be seen on the link in the clear.
const NEEDLE: &str = "a needle that must not be found";
/// Says whether a pod is in the mesh.
const LABEL: &str = "nodemesh.dev/mesh";

fn refused(client: &Pod, to: SocketAddr) -> Report {
    let report = client.peer(&["connect", &to.to_string(), "--send", NEEDLE, "--half-close", "--timeout", "3"], LIMIT).unwrap();
    assert_eq!(report.received_bytes, 0, "{report:?}");
    assert!(matches!(report.end, End::NotConnected | End::Reset), "{report:?}");
    report
}

/// Refused in the kernel, before anything was sent.
fn refused_at_connect(client: &Pod, to: SocketAddr) {
    let report = refused(client, to);
    assert_eq!((report.connected, report.errno), (false, Some(1)), "{report:?}");
}

fn ready_page(agent: &Agent) -> (u16, String) {
    let answer = http_get(&agent.node().netns(), "http://127.0.0.1:15020/healthz/ready").expect("the readiness page");
    (answer.status, answer.body)
}

#[test]
fn without_certificate_or_namespace_a_pod_is_refused_both_ways() {
    let pods = [
        ("n1", PodSpec::new("shop", "client").service_account("client")),
        ("n1", PodSpec::new("shop", "near").service_account("server")),
        ("n1", PodSpec::new("shop", "lost").service_account("lost")),
        ("n1", PodSpec::new(OUTSIDE, "outsider")),
        ("n2", PodSpec::new("shop", "server").service_account("server")),
        ("n2", PodSpec::new(OUTSIDE, "stranger")),
    ];
    let ground = ground("failclosed", &pods);
    let [client, near, lost, outsider, server, stranger] =
        ["client", "near", "lost", "outsider", "server", "stranger"].map(|name| ground.pod(name));
    // The pod is there, its announcement names another namespace than its own.
    let mut wrong = pod(&lost);
    wrong["metadata"]["annotations"]["nodemesh.dev/netns"] = json!("/run/netns/there-is-no-such-namespace");
    ground.put("pod-shop-lost", &[service_account("shop", "lost"), wrong]);
    let servers: Vec<_> = [&client, &near, &lost, &server, &stranger].iter().map(|pod| pod.serve("echo", 7200).unwrap()).collect();

    // The authority was there once, so that its roots are known, and is away when the agents start.
    let control = Control::start(&ground.world, &ground.options).unwrap();
    drop(control);
    let capture = ground.world.capture_fabric("failclosed").unwrap();
    let mut agents: Vec<Agent> =
        ground.world.nodes().iter().map(|node| Agent::start(&ground.world, node, &ground.options).unwrap()).collect();
    let waits = |agent: &Agent, words: &[&str]| {
        let mut last = (0, String::new());
        let _ = wait_until("readiness names what is awaited", LIMIT, || {
            let answer = http_get(&agent.node().netns(), "http://127.0.0.1:15020/healthz/ready");
            last = answer.map_or((0, String::new()), |answer| (answer.status, answer.body));
            last.0 == 503 && words.iter().all(|word| last.1.contains(word))
        });
        assert!(last.0 == 503 && words.iter().all(|word| last.1.contains(word)), "{words:?} in {last:?}:\n{}", agent.log());
    };
    waits(&agents[0], &["shop/client", "certificate", "shop/lost", "/run/netns/there-is-no-such-namespace"]);
    waits(&agents[1], &["shop/server", "certificate"]);

    // Out of a pod that is held: to the mesh, to a neighbour, out of the mesh.
    for to in [&server, &near, &stranger] {
        refused_at_connect(&client, at(to, 7200));
        refused_at_connect(&client, at6(to, 7200));
    }
    let fields = [("outcome", "source_held"), ("source_workload", "shop/client"), ("flags", "DENY")];
    agents[0].wait_for_access(&fields, SOON).unwrap();
    // Into one: plaintext finds no listener and is dropped in the kernel.
    for (from, to) in [(&outsider, &near), (&outsider, &server), (&stranger, &client)] {
        refused(from, at(to, 7200));
        refused(from, at6(to, 7200));
    }
    assert!(servers.iter().all(|server| server.accepted() == 0));
    // The process in the pod whose namespace is not known is one of an unknown pod.
    refused_at_connect(&lost, at(&stranger, 7200));
    agents[0].wait_for_access(&[("outcome", "unknown_pod")], SOON).unwrap();
    // What is not of the mesh goes on, and so does what stays inside a pod.
    assert_eq!(outsider.connect(at(&stranger, 7200), "outside").unwrap().received, "outside");
    assert_eq!(client.connect("127.0.0.1:7200".parse().unwrap(), "own").unwrap().received, "own");

    // The authority comes, and with it everything but the pod whose namespace is not there.
    let _control = Control::start(&ground.world, &ground.options).unwrap();
    agents[1].wait_ready(Duration::from_secs(60)).unwrap();
    wait_until("the pods with certificates are served", LIMIT, || {
        let body = ready_page(&agents[0]).1;
        !body.contains("shop/client") && !body.contains("shop/near")
    })
    .unwrap();
    waits(&agents[0], &["shop/lost"]);
    wait_until("client and server talk", LIMIT, || client.connect(at(&server, 7200), NEEDLE).is_ok_and(|report| report.received == NEEDLE))
        .unwrap();
    assert_eq!(client.connect(at(&near, 7200), NEEDLE).unwrap().received, NEEDLE);
    // Nobody reaches the one that is still held, neither in the kernel nor through a tunnel.
    refused_at_connect(&client, at(&lost, 7200));
    agents[0].wait_for_access(&[("outcome", "destination_held"), ("destination_workload", "shop/lost")], SOON).unwrap();
    refused(&server, at(&lost, 7200));
    assert_eq!(servers[2].accepted(), 0);
    let trace = capture.finish(Duration::from_millis(100)).unwrap();
    assert!(!trace.contains(NEEDLE.as_bytes()), "{:?}", trace.plaintext());
    // With its namespace announced it is served.
    ground.world.manifests().put_pod(&lost).unwrap();
    agents[0].wait_ready(LIMIT).unwrap();
    assert_eq!(server.connect(at(&lost, 7200), "found").unwrap().received, "found");
}

#[test]
fn a_killed_agent_leaves_no_way_around_it_and_the_next_goes_on() {
    let pods = [
        ("n1", PodSpec::new("shop", "client").service_account("client")),
        ("n1", PodSpec::new("shop", "other").service_account("other")),
        ("n1", PodSpec::new("shop", "near").service_account("server")),
        ("n1", PodSpec::new(OUTSIDE, "outsider")),
        ("n2", PodSpec::new("shop", "server").service_account("server")),
        ("n2", PodSpec::new(OUTSIDE, "stranger")),
    ];
    let ground = ground("killed", &pods);
    let rules = json!([{ "from": [{ "source": { "principals": ["cluster.local/ns/shop/sa/other"] } }] }]);
    ground.put("policy", &[authorization_policy("shop", "no-others", &[("app", "near")], "DENY", &rules)]);
    let mut mesh = ground.start();
    let [client, other, near, outsider, server, stranger] =
        ["client", "other", "near", "outsider", "server", "stranger"].map(|name| mesh.pod(name));
    let servers: Vec<_> = [&client, &near, &server, &stranger].iter().map(|pod| pod.serve("echo", 7210).unwrap()).collect();
    for (from, to) in [(&client, &server), (&server, &near), (&outsider, &near), (&client, &near)] {
        assert_eq!(from.connect(at(to, 7210), "before").unwrap().received, "before");
    }
    let tick = |from: &Pod, to: &Pod| from.spawn_peer(&["tick", &at(to, 7210).to_string(), "--interval", "20", "--seconds", "90"]).unwrap();
    let (direct, tunnelled) = (tick(&client, &near), tick(&client, &server));
    wait_until("both live", LIMIT, || direct.ticks() >= 3 && tunnelled.ticks() >= 3).unwrap();
    let accepted: Vec<usize> = servers.iter().map(mesh_lab::peer::Server::accepted).collect();

    let capture = mesh.world.capture_fabric("killed").unwrap();
    mesh.mesh.agent("n1").unwrap().crash();
    let report: Report = tunnelled.finish(LIMIT).expect("what the agent carried ends with it");
    assert!(matches!(report.end, End::Reset | End::Eof), "{report:?}");
    for address in [at, at6] {
        refused(&client, address(&server, 7210));
        refused(&server, address(&near, 7210));
        refused(&server, address(&client, 7210));
        refused(&outsider, address(&near, 7210));
        refused(&stranger, address(&client, 7210));
        // The kernel goes on judging by itself what it judged before.
        assert_eq!(client.connect(address(&near, 7210), "direct").unwrap().received, "direct");
        refused_at_connect(&other, address(&near, 7210));
        // What is none of the mesh's business goes on.
        assert_eq!(client.connect(address(&stranger, 7210), "away").unwrap().received, "away");
    }
    let arrived: Vec<usize> = servers.iter().zip(&accepted).map(|(server, before)| server.accepted() - before).collect();
    assert_eq!(arrived, [0, 2, 0, 2], "client, near, server, stranger");
    let trace = capture.finish(Duration::from_millis(100)).unwrap();
    assert!(!trace.contains(NEEDLE.as_bytes()));

    // Meanwhile a pod comes and a policy changes; the next agent finds both, and the live connection is judged anew.
    let late = mesh.add_pod("n1", PodSpec::new("shop", "late").service_account("late"));
    let options = mesh.options.clone();
    let Cluster { mesh: running, ground } = &mut mesh;
    running.restart(&ground.world, "n1", &options).unwrap();
    mesh.wait_served(&late);
    for (from, to) in [(&client, &server), (&server, &near), (&outsider, &near), (&client, &near), (&late, &near), (&late, &server)] {
        let report = from.connect(at(to, 7210), "after").unwrap();
        assert_eq!(report.received, "after", "{} to {}: {report:?}", from.name(), to.name());
    }
    refused_at_connect(&other, at(&near, 7210));
    let ticks = direct.ticks();
    wait_until("the direct connection lived through it", LIMIT, || direct.ticks() > ticks + 3).unwrap();

    // Again, and this time the live connection is forbidden while nobody is there.
    mesh.mesh.agent("n1").unwrap().crash();
    let rules = json!([{ "from": [{ "source": { "principals": ["cluster.local/ns/shop/sa/client"] } }] }]);
    mesh.put("policy", &[authorization_policy("shop", "no-clients", &[("app", "near")], "DENY", &rules)]);
    let Cluster { mesh: running, ground } = &mut mesh;
    running.restart(&ground.world, "n1", &options).unwrap();
    let report: Report = direct.finish(SOON).expect("the connection that is no longer allowed ends");
    assert_eq!(report.end, End::Reset, "{report:?}");
    refused_at_connect(&client, at(&near, 7210));
    assert_eq!(other.connect(at(&near, 7210), "mine now").unwrap().received, "mine now");
}

#[test]
fn unknown_pods_are_refused_unless_they_are_to_pass() {
    let pods = [
        ("n1", PodSpec::new("vault", "near").service_account("server")),
        ("n2", PodSpec::new(OUTSIDE, "stranger")),
        ("n2", PodSpec::new("vault", "vault").service_account("server")),
    ];
    let ground = ground("unknown", &pods);
    ground.put("vault-mode", &[peer_authentication("vault", "strict", "STRICT")]);
    let mesh = ground.start();
    let [near, stranger, vault] = ["near", "stranger", "vault"].map(|name| mesh.pod(name));
    let servers = [near.serve("echo", 7220).unwrap(), stranger.serve("echo", 7220).unwrap(), vault.serve("echo", 7220).unwrap()];
    // Its processes run, and nobody told the agent.
    let unknown = mesh.node("n1").add_pod(PodSpec::new("shop", "unknown")).unwrap();
    let _own = unknown.serve("echo", 7220).unwrap();
    for to in [&near, &stranger, &vault] {
        refused_at_connect(&unknown, at(to, 7220));
        refused_at_connect(&unknown, at6(to, 7220));
    }
    let line = mesh.access("n1", &[("outcome", "unknown_pod"), ("flags", "DENY")]);
    assert!(text(&line, "server").ends_with(":7220"), "{line}");
    mesh.wait_sum("n1", "nodemesh_kernel_refusals_total", &[("reason", "unknown_pod")], 6.0);
    // What stays inside the pod is its own business, also by the address that stands for the host itself.
    for own in ["127.0.0.1:7220", "[::1]:7220", "0.0.0.0:7220", "[::]:7220"] {
        assert_eq!(unknown.connect(own.parse().unwrap(), "own").unwrap().received, "own", "{own}");
    }

    mesh.apply("mesh", &[settings(json!({ "unknownPods": "pass" }))]);
    assert_eq!(unknown.connect(at(&stranger, 7220), "passes").unwrap().received, "passes");
    // To pass is not to be trusted.
    for to in [&near, &vault] {
        refused(&unknown, at(to, 7220));
        mesh.access(to.node().name(), &[("outcome", "mtls_required"), ("destination_workload", &to.full_name())]);
    }
    assert_eq!(servers.each_ref().map(mesh_lab::peer::Server::accepted), [0, 1, 0]);

    // A probe of the host needs no identity under STRICT; what else runs on it, and what comes from another node, does.
    let node = mesh.node("n1");
    let probe = |place: &Place, to: SocketAddr| -> Report {
        mesh_lab::peer::run(place, &["connect", &to.to_string(), "--send", "probe", "--half-close", "--timeout", "3"], LIMIT).unwrap()
    };
    let kubelet = node.host("kubelet").unwrap();
    for to in [at(&near, 7220), at6(&near, 7220)] {
        let report = probe(&kubelet, to);
        assert_eq!((report.received.as_str(), report.peer), ("probe", Some(to)), "{report:?}");
    }
    let inside = node.pods_cgroup().join("host-network-pod");
    let cgroup = mesh_lab::Cgroup::create(inside).unwrap();
    let host_network = Place { netns: node.netns(), cgroup: cgroup.path().to_owned() };
    let other_node = mesh.node("n2").host("kubelet").unwrap();
    for place in [&host_network, &other_node] {
        let report = probe(place, at(&near, 7220));
        assert_eq!((report.end, report.received_bytes), (End::Reset, 0), "{place:?}: {report:?}");
    }
    assert_eq!(servers[0].accepted(), 2);
}

#[test]
fn requests_are_sent_as_their_server_is_reached_now_on_connections_of_whatever_age() {
    let pods = [
        ("n1", PodSpec::new("shop", "client").service_account("client")),
        ("n2", PodSpec::new("shop", "server").service_account("server").label(LABEL, "disabled")),
    ];
    let ground = ground("joining", &pods);
    let route = |port: u16| {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": { "namespace": "shop", "name": format!("late-{port}") },
            "spec": {
                "parentRefs": [{ "group": "", "kind": "Service", "name": "late", "port": port }],
                "rules": [{ "backendRefs": [{ "name": "late", "port": port }] }],
            },
        })
    };
    let ports = [("http", 80, 8080), ("http2", 81, 8080)];
    ground.put("late", &[service("shop", "late", &["10.97.5.1"], "server", &ports), route(80), route(81)]);
    let mesh = ground.start();
    let [client, server] = ["client", "server"].map(|name| mesh.pod(name));
    let _server = server.serve_http("late", 8080).unwrap();
    // To a server of HTTP/1.1 and to one of HTTP/2, each on one connection: one worker has all its requests and never lets its own connection
    // to the server rest.
    let _clients = [("one", 80), ("two", 81)].map(|(path, port)| {
        let url = format!("http://10.97.5.1:{port}/{path}/[1-3000]");
        let needle = format!("x-needle: {NEEDLE}");
        client.spawn(&["curl", "-s", "-o", "/dev/null", "--http1.1", "--rate", "20/s", "-H", &needle, &url]).unwrap()
    });
    // So many of both that were answered more, and were recorded as sent so.
    let sent = |security: &str| {
        let count = |path: &str| {
            let lines = mesh.agent("n1").access_log();
            let ours = |line: &&Value| text(line, "path").starts_with(path) && text(line, "status") == "200";
            lines.iter().filter(ours).filter(|line| text(line, "security") == security).count()
        };
        let [one, two] = ["/one/", "/two/"].map(count);
        wait_until(security, LIMIT, || count("/one/") > one + 10 && count("/two/") > two + 10)
            .unwrap_or_else(|error| panic!("{error}: {:?}", mesh.agent("n1").access_log().last()));
    };
    let label = |word: &str| {
        let mut object = pod(&server);
        object["metadata"]["labels"][LABEL] = json!(word);
        mesh.apply("pod-shop-server", &[service_account("shop", "server"), object]);
    };
    let seen = |name: &str, security: &str| {
        let capture = mesh.world.capture_fabric(name).unwrap();
        sent(security);
        capture.finish(Duration::from_millis(100)).unwrap().contains(NEEDLE.as_bytes())
    };
    assert!(seen("before", "none"), "the same search finds it where it may be");

    label("enabled");
    mesh.wait_served(&server);
    // The first of them by the tunnel; requests that were under way before are over.
    sent("mutual_tls");
    assert!(!seen("joined", "mutual_tls"));

    label("disabled");
    sent("none");
    assert!(seen("left", "none"));
}

/// The agent's own check of its node, with flags; by way of another program where `through` names one.
fn preflight(through: &[&str], flags: &[&str]) -> Output {
    let agent = MeshOptions::found().expect("built binaries").binaries.join("mesh-agent").display().to_string();
    let words: Vec<&str> = through.iter().copied().chain([agent.as_str()]).chain(flags.iter().copied()).collect();
    Command::new(words[0]).args(&words[1..]).output().expect("it runs")
}

fn says(output: &Output, sentences: &[&str]) {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{text}");
    for sentence in sentences {
        assert!(text.lines().any(|line| line.contains(sentence)), "{sentence:?} is not in:\n{text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn what_a_node_lacks_is_said_in_sentences() {
    let cgroup2 = mesh_lab::cgroup::mount_point().unwrap();
    let root = format!("--cgroup-root={}", cgroup2.display());
    let pods = format!("--pods-cgroup={}", cgroup2.display());
    let fine = [root.as_str(), pods.as_str(), "--bpffs=/sys/fs/bpf"];
    // A world is what mounts the bpf filesystem.
    let _world = mesh_lab::World::new("preflight").unwrap();
    fn check<'a>(flags: &[&'a str]) -> Vec<&'a str> {
        [flags, &["preflight"]].concat()
    }
    let good = preflight(&[], &check(&fine));
    assert!(good.status.success(), "{}{}", String::from_utf8_lossy(&good.stdout), String::from_utf8_lossy(&good.stderr));

    says(
        &preflight(&[], &check(&["--cgroup-root=/tmp", &pods, "--bpffs=/sys/fs/bpf"])),
        &["/tmp is not a directory of a cgroup v2 hierarchy"],
    );
    says(
        &preflight(&[], &check(&[&root, "--pods-cgroup=/tmp", "--bpffs=/tmp"])),
        &["--pods-cgroup /tmp is not a cgroup", "/tmp is not a bpf filesystem"],
    );
    let poor = ["setpriv", "--bounding-set=-bpf,-sys_admin,-net_admin", "--inh-caps=-bpf,-sys_admin,-net_admin"];
    says(
        &preflight(&poor, &check(&fine)),
        &["the process lacks CAP_BPF", "the process lacks CAP_NET_ADMIN", "the process lacks CAP_SYS_ADMIN"],
    );
    assert!(Path::new("/sys/kernel/btf/vmlinux").exists());
    let hidden = ["unshare", "--mount", "--propagation=private", "sh", "-c", "mount -t tmpfs none /sys/kernel/btf && exec \"$@\"", "sh"];
    says(&preflight(&hidden, &check(&fine)), &["the kernel has no BTF (/sys/kernel/btf/vmlinux is missing)"]);

    // A run says the same, and what is not set.
    let run = ["--manifests=/tmp", "--ca-address=https://127.0.0.1:1", "--ca-root=/dev/null", "--ca-token-file=/dev/null"];
    says(&preflight(&[], &[&run[..], &["--cgroup-root=/tmp", "--bpffs=/tmp"]].concat()), &["cgroup v2", "/tmp is not a bpf filesystem"]);
    says(
        &preflight(&[], &fine),
        &[
            "neither --manifests (or NODEMESH_MANIFESTS) nor --kubernetes (or NODEMESH_KUBERNETES=true) is set",
            "--ca-address (or NODEMESH_CA_ADDRESS) is not set",
        ],
    );
}

#[test]
fn a_kernel_object_that_is_none_stops_the_agent_by_name() {
    let ground = ground("noobject", &[("n1", PodSpec::new("shop", "client"))]);
    let _control = Control::start(&ground.world, &ground.options).unwrap();
    let object = ground.world.directory().join("empty.o");
    std::fs::write(&object, b"").unwrap();
    let options = MeshOptions { bpf_object: object.clone(), ..ground.options.clone() };
    let mut agent = Agent::start(&ground.world, &ground.node("n1"), &options).unwrap();
    let status = agent.process.wait(LIMIT).unwrap().expect("it ends");
    assert_eq!(status.code(), Some(1), "{}", agent.log());
    assert!(agent.log().contains(&object.display().to_string()), "{}", agent.log());
    let _: Vec<Value> = agent.access_log();
}
