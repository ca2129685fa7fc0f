//! One agent takes the place of another while clients connect.

use std::net::{IpAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mesh_agent::capture::accept;
use mesh_agent::sys::netns::{Migration, NetNs, Sysctls};
use mesh_lab::manifests::authorization_policy;
use mesh_lab::peer::{Client, End, RepeatReport, Report};
use mesh_lab::process::wait_until;
use mesh_lab::{Agent, Pod, PodSpec, http_get};
use serde_json::json;

use crate::world::*;

const PORT: u16 = 7400;

fn tick(from: &Pod, to: &Pod) -> Client {
    let client = from.spawn_peer(&["tick", &at(to, PORT).to_string(), "--interval", "20", "--seconds", "120"]).unwrap();
    wait_until("the connection lives", LIMIT, || client.ticks() >= 3).unwrap_or_else(|_| panic!("{}", client.process.log()));
    client
}

fn goes_on(client: &Client) {
    let ticks = client.ticks();
    wait_until("the connection goes on", LIMIT, || client.ticks() > ticks + 5).unwrap_or_else(|_| panic!("{}", client.process.log()));
}

fn says(agent: &Agent, words: &str) {
    wait_until(words, LIMIT, || agent.log().contains(words)).unwrap_or_else(|error| panic!("{error}:\n{}", agent.log()));
}

/// Nodes with pods on each, and one that only the agent can judge plaintext for.
fn pods() -> [(&'static str, PodSpec); 6] {
    [
        ("n1", PodSpec::new("shop", "client").service_account("client")),
        ("n1", PodSpec::new("shop", "near").service_account("server")),
        ("n1", PodSpec::new("shop", "audited").service_account("server")),
        ("n2", PodSpec::new("shop", "server").service_account("server")),
        ("n2", PodSpec::new("shop", "other").service_account("other")),
        ("n2", PodSpec::new(OUTSIDE, "outsider")),
    ]
}

#[test]
fn a_newer_agent_takes_over_and_no_connection_fails() {
    let mut ground = ground("handover", &pods());
    ground.options.agent_flags.push("--drain-time=60s".to_owned());
    ground.put("audit", &[authorization_policy("shop", "audit", &[("app", "audited")], "AUDIT", &json!([{}]))]);
    let mut mesh = ground.start();
    let [client, near, audited, server, other, outsider] =
        ["client", "near", "audited", "server", "other", "outsider"].map(|name| mesh.pod(name));
    let _servers: Vec<_> = [&client, &near, &audited, &server].iter().map(|pod| pod.serve("echo", PORT).unwrap()).collect();
    // Out of the node, into it, by plaintext through the agent and past it, within the node.
    let ways = [(&client, &server), (&server, &client), (&other, &client), (&outsider, &audited), (&outsider, &near), (&client, &near)];
    let lasting = ways.map(|(from, to)| tick(from, to));
    let repeating = ways.map(|(from, to)| from.spawn_peer(&["repeat", &at(to, PORT).to_string(), "--seconds", "12"]).unwrap());
    wait_until("all connect", LIMIT, || repeating.iter().all(|client| client.ticks() > 10)).unwrap();

    let mut staying = mesh.options.clone();
    staying.agent_flags.push("--after-handover=stay".to_owned());
    let newer = Agent::start_as(&mesh.world, &mesh.node("n1"), "agent-newer", &staying).unwrap();
    let mut older = mesh.mesh.replace(newer).unwrap();
    says(mesh.agent("n1"), "the agent before this one is relieved");
    says(&older, "another agent serves this one's pods: draining");
    mesh.mesh.agent("n1").unwrap().wait_ready(LIMIT).unwrap();
    let rounds = repeating.each_ref().map(Client::ticks);
    for (client, before) in repeating.iter().zip(rounds) {
        wait_until("new connections", LIMIT, || client.ticks() > before + 20).unwrap();
    }
    lasting.iter().for_each(goes_on);
    for ((from, to), client) in ways.iter().zip(repeating) {
        let report: RepeatReport = client.finish(LIMIT).unwrap();
        assert_eq!(report.failures, [""; 0], "{} to {} of {}", from.name(), to.name(), report.rounds);
    }
    // The ports are the newer one's, and so is the kernel.
    assert!(older.process.is_running());
    let page = http_get(&mesh.node("n1").netns(), "http://127.0.0.1:15020/healthz/ready").unwrap();
    assert_eq!(page.status, 200, "{}", page.body);
    assert!(!mesh.admin("n1", "/workloads").as_array().unwrap().is_empty());

    // What the older one still carries obeys a policy that changes now; all else goes on.
    let rules = json!([{ "from": [{ "source": { "principals": [other.spiffe_id()] } }] }]);
    mesh.apply("no-others", &[authorization_policy("shop", "no-others", &[("app", "client")], "DENY", &rules)]);
    let [out, into, denied, plain, past, direct] = lasting;
    let report: Report = denied.finish(SOON).expect("what is denied ends");
    assert_eq!(report.end, End::Reset, "{report:?}");
    older.wait_for_access(&[("outcome", "policy_revoked"), ("policy", "shop/no-others")], SOON).unwrap();
    let rest = [out, into, plain, past, direct];
    rest.iter().for_each(goes_on);

    // The last connection ends, and with it the older agent.
    drop(rest);
    let status = older.process.wait(LIMIT).unwrap().expect("it ends");
    assert!(status.success(), "{status}: {}", older.log());
    says(mesh.agent("n1"), "the agent before this one has ended");
    for (from, to) in [(&client, &server), (&server, &client), (&outsider, &audited), (&outsider, &near), (&client, &near)] {
        assert_eq!(from.connect(at(to, PORT), "alone").unwrap().received, "alone");
    }
    for pod in [&client, &near, &audited] {
        let setting = pod.exec(&["cat", "/proc/sys/net/ipv4/tcp_migrate_req"], LIMIT).unwrap();
        assert_eq!(setting.stdout.trim(), "0", "the pod's own setting");
    }

    // A third takes over from one that is draining already.
    let lasting = tick(&client, &server);
    assert!(!mesh.mesh.agent("n1").unwrap().terminate(Duration::ZERO).unwrap());
    says(mesh.agent("n1"), "asked to end: draining");
    let third = Agent::start_as(&mesh.world, &mesh.node("n1"), "agent-third", &staying).unwrap();
    let mut second = mesh.mesh.replace(third).unwrap();
    says(mesh.agent("n1"), "the agent before this one is relieved");
    mesh.mesh.agent("n1").unwrap().wait_ready(LIMIT).unwrap();
    for (from, to) in [(&client, &server), (&server, &client), (&outsider, &audited)] {
        assert_eq!(from.connect(at(to, PORT), "third").unwrap().received, "third");
    }
    goes_on(&lasting);
    drop(lasting);
    assert!(second.process.wait(LIMIT).unwrap().expect("it ends").success(), "{}", second.log());
    assert!(!second.log().contains("panicked"));

    // One that is to stay does, until it is asked to end.
    let fourth = Agent::start_as(&mesh.world, &mesh.node("n1"), "agent-fourth", &mesh.options).unwrap();
    let mut third = mesh.mesh.replace(fourth).unwrap();
    says(&third, "waiting for SIGTERM");
    assert!(third.process.is_running());
    assert!(third.terminate(LIMIT).unwrap(), "it ends");
    assert!(third.process.wait(LIMIT).unwrap().expect("it has ended").success(), "{}", third.log());
    says(mesh.agent("n1"), "the agent before this one has ended");
    assert_eq!(client.connect(at(&server, PORT), "fourth").unwrap().received, "fourth");
}

#[test]
fn connections_that_wait_at_a_closing_listener_go_to_the_next() {
    let ground = ground("migration", &[("n1", PodSpec::new("shop", "pod"))]);
    let pod = ground.pod("pod");
    let netns = Arc::new(NetNs::open(&pod.netns()).unwrap());
    let addresses = pod.addresses();
    let setting = || pod.exec(&["cat", "/proc/sys/net/ipv4/tcp_migrate_req"], LIMIT).unwrap().stdout.trim().to_owned();
    let closed = |migrating: bool| {
        let older = accept::listen(&netns, &addresses, 1).unwrap();
        let newer = accept::listen(&netns, &addresses, 1).unwrap();
        let dial = |address: &IpAddr| netns.run(|| TcpStream::connect((*address, accept::OUTBOUND_PORT))).unwrap().unwrap();
        let clients: Vec<TcpStream> = addresses.iter().flat_map(|address| std::iter::repeat_n(address, 40)).map(dial).collect();
        let migration = migrating.then(|| Migration::start(netns.clone(), Sysctls::of(Path::new("/proc"))).unwrap());
        assert_eq!(setting(), if migrating { "1" } else { "0" });
        drop(older);
        let accepted: Vec<_> = newer[0].outbound.iter().flat_map(|listener| std::iter::from_fn(|| listener.accept().ok())).collect();
        drop(migration);
        assert_eq!(setting(), "0", "the pod's own setting");
        (clients.len(), accepted.len())
    };
    let (dialled, accepted) = closed(true);
    assert_eq!(accepted, dialled);
    // That is what the setting is for.
    let (dialled, accepted) = closed(false);
    assert!((1..dialled).contains(&accepted), "{accepted} of {dialled}");
}

#[test]
fn policy_is_followed_by_an_agent_that_was_asked_to_end() {
    let mut ground = ground("drainpolicy", &pods());
    ground.options.agent_flags.push("--drain-time=60s".to_owned());
    let mut mesh = ground.start();
    let [client, server, other] = ["client", "server", "other"].map(|name| mesh.pod(name));
    let _servers = [client.serve("echo", PORT).unwrap(), server.serve("echo", PORT).unwrap()];
    let (allowed, denied) = (tick(&server, &client), tick(&other, &client));
    assert!(!mesh.mesh.agent("n1").unwrap().terminate(Duration::ZERO).unwrap(), "it drains");
    says(mesh.agent("n1"), "asked to end: draining");
    let rules = json!([{ "from": [{ "source": { "principals": [other.spiffe_id()] } }] }]);
    mesh.apply("no-others", &[authorization_policy("shop", "no-others", &[("app", "client")], "DENY", &rules)]);
    let report: Report = denied.finish(SOON).expect("what is denied ends");
    assert_eq!(report.end, End::Reset, "{report:?}");
    mesh.access("n1", &[("outcome", "policy_revoked"), ("policy", "shop/no-others")]);
    goes_on(&allowed);
    drop(allowed);
    let agent = mesh.mesh.agent("n1").unwrap();
    let status = agent.process.wait(SOON).unwrap().expect("it ends as soon as the last connection has");
    assert!(status.success(), "{status}: {}", agent.log());
}

#[test]
fn an_agent_does_not_serve_beside_one_that_does_not_hand_over() {
    let ground = ground("held", &[("n1", PodSpec::new("shop", "client"))]);
    let _control = mesh_lab::Control::start(&ground.world, &ground.options).unwrap();
    let node = ground.node("n1");
    let directory = ground.world.directory().join("run").join(format!("{}-{}", ground.world.id(), node.name()));
    std::fs::create_dir_all(&directory).unwrap();
    let held = std::fs::File::create(directory.join("lock")).unwrap();
    held.lock().unwrap();
    std::fs::write(directory.join("lock"), "4711\n").unwrap();
    let mut agent = Agent::start(&ground.world, &node, &ground.options).unwrap();
    let status = agent.process.wait(LIMIT).unwrap().expect("it ends");
    assert_eq!(status.code(), Some(1), "{}", agent.log());
    let lock = directory.join("lock").display().to_string();
    for words in ["pid 4711", lock.as_str(), "end it", "--instance"] {
        assert!(agent.log().contains(words), "{words:?} in:\n{}", agent.log());
    }
    // Its holder is gone, and nothing else is needed.
    drop(held);
    let mut agent = Agent::start(&ground.world, &node, &ground.options).unwrap();
    agent.wait_ready(LIMIT).unwrap();
}
