//! Nothing of the mesh stays in a pod that left it, on a node that it was taken from, or of a pod that is gone.

use std::path::PathBuf;

use mesh_lab::manifests::{pod, service_account};
use mesh_lab::process::wait_until;
use mesh_lab::{Agent, Pod, PodSpec};
use serde_json::json;

use crate::world::*;

const PORT: u16 = 7500;
/// The mark of delivered connections.
const RULE: &str = "fwmark 0x6e6d";

/// What the mesh sets in a pod's namespace: rules and routes of both families, and settings.
fn left(pod: &Pod) -> Vec<String> {
    let run = |words: &[&str]| pod.exec(words, LIMIT).unwrap().stdout;
    let mut left = Vec::new();
    for family in ["-4", "-6"] {
        left.extend(run(&["ip", family, "rule"]).lines().filter(|line| line.contains(RULE)).map(str::to_owned));
        left.extend(run(&["ip", family, "route", "show", "table", "100"]).lines().map(str::to_owned));
    }
    for setting in ["ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect"] {
        if run(&["cat", &format!("/proc/sys/net/{setting}")]).trim() != "0" {
            left.push(setting.to_owned());
        }
    }
    left
}

fn pins(cluster: &Ground, node: &str) -> PathBuf {
    PathBuf::from(format!("/sys/fs/bpf/nodemesh/{}-{node}", cluster.world.id()))
}

fn links(cluster: &Ground, node: &str) -> usize {
    let version = format!("v{}", mesh_common::ABI_VERSION);
    std::fs::read_dir(pins(cluster, node).join(version).join("netns")).unwrap().count()
}

#[test]
fn a_pod_that_leaves_has_its_namespace_back_once_nothing_needs_it() {
    let pods = [
        ("n1", PodSpec::new("shop", "client").service_account("client")),
        ("n1", PodSpec::new("shop", "other").service_account("other")),
        ("n2", PodSpec::new("shop", "server").service_account("server")),
    ];
    let mut mesh = ground("leave", &pods).start();
    let [client, other, server] = ["client", "other", "server"].map(|name| mesh.pod(name));
    let _echo = [client.serve("echo", PORT).unwrap(), other.serve("echo", PORT).unwrap()];
    let label = |mesh: &Cluster, pods: &[&Pod], word: &str| {
        for of in pods {
            let mut object = pod(of);
            object["metadata"]["labels"]["nodemesh.dev/mesh"] = json!(word);
            mesh.apply(&format!("pod-{}-{}", of.namespace(), of.name()), &[service_account(of.namespace(), of.service_account()), object]);
        }
    };
    assert_eq!(left(&client).len(), 7, "{:?}", left(&client));
    let kept = server.spawn_peer(&["tick", &at(&client, PORT).to_string(), "--interval", "20", "--seconds", "60"]).unwrap();
    wait_until("the connection lives", LIMIT, || kept.ticks() >= 3).unwrap();
    label(&mesh, &[&client], "disabled");
    wait_until("nothing is left", LIMIT, || left(&client).is_empty()).unwrap_or_else(|error| panic!("{error}: {:?}", left(&client)));
    assert_eq!(left(&other).len(), 7, "of another pod all stays");
    assert_eq!(server.connect(at(&client, PORT), "plain").unwrap().received, "plain");
    // It comes back.
    label(&mesh, &[&client], "enabled");
    mesh.wait_served(&client);
    assert_eq!(left(&client).len(), 7);
    assert_eq!(server.connect(at(&client, PORT), "meshed").unwrap().received, "meshed");

    // One leaves while nobody is there to see it.
    mesh.mesh.agent("n1").unwrap().crash();
    let mut object = pod(&other);
    object["metadata"]["labels"]["nodemesh.dev/mesh"] = json!("disabled");
    mesh.put("pod-shop-other", &[service_account("shop", "other"), object]);
    let options = mesh.options.clone();
    let Cluster { mesh: running, ground } = &mut mesh;
    running.restart(&ground.world, "n1", &options).unwrap();
    wait_until("nothing is left", LIMIT, || left(&other).is_empty()).unwrap_or_else(|error| panic!("{error}: {:?}", left(&other)));
    assert_eq!(left(&client).len(), 7);
    assert_eq!(server.connect(at(&other, PORT), "plain").unwrap().received, "plain");
}

#[test]
fn cleanup_leaves_nothing_on_the_node_and_refuses_while_an_agent_runs() {
    let pods = [
        ("n1", PodSpec::new("shop", "client").service_account("client")),
        ("n1", PodSpec::new("shop", "near").service_account("server")),
        ("n1", PodSpec::new(OUTSIDE, "outsider")),
        ("n2", PodSpec::new("shop", "server").service_account("server")),
    ];
    let mut mesh = ground("cleanup", &pods).start();
    let [client, near, outsider, server] = ["client", "near", "outsider", "server"].map(|name| mesh.pod(name));
    let _servers = [near.serve("echo", PORT).unwrap(), server.serve("echo", PORT).unwrap(), outsider.serve("echo", PORT).unwrap()];
    assert_eq!(client.connect(at(&server, PORT), "before").unwrap().received, "before");
    let node = mesh.node("n1");
    let refused = Agent::cleanup(&mesh.world, &node, &mesh.options).unwrap();
    assert_eq!(refused.code(), Some(1), "{refused:?}");
    let pid = format!("pid {}", mesh.agent("n1").process.pid());
    assert!(refused.stderr.contains(&pid) && refused.stderr.contains("end it first"), "{refused:?}");
    assert_eq!(left(&client).len(), 7);

    mesh.mesh.agent("n1").unwrap().crash();
    // What is none of the mesh's is not touched.
    outsider.sysctl(&[("net/ipv4/fwmark_reflect", "1")]).unwrap();
    let done = Agent::cleanup(&mesh.world, &node, &mesh.options).unwrap();
    let said = done.success().unwrap();
    for words in [client.netns(), near.netns()] {
        assert!(said.contains(&words.display().to_string()), "{words:?} in {said}");
    }
    assert!(said.contains("2 of them restored") && said.contains("pins removed"), "{said}");
    assert!(!said.contains(&outsider.netns().display().to_string()), "{said}");
    assert!(!pins(&mesh, "n1").exists());
    for pod in [&client, &near] {
        assert_eq!(left(pod), [""; 0], "{}", pod.name());
    }
    assert_eq!(left(&outsider), ["ipv4/fwmark_reflect"]);
    // As without the mesh.
    assert_eq!(client.connect(at(&near, PORT), "plain").unwrap().received, "plain");
    let again = Agent::cleanup(&mesh.world, &node, &mesh.options).unwrap();
    assert!(again.success().unwrap().contains("0 network namespaces"), "{again:?}");
}

#[test]
fn links_of_namespaces_that_are_known_by_a_process_go_with_them() {
    let pods = [("n1", PodSpec::new("shop", "stays")), ("n1", PodSpec::new("shop", "first")), ("n1", PodSpec::new("shop", "second"))];
    let ground = ground("orphans", &pods);
    let [first, second] = ["first", "second"].map(|name| ground.pod(name));
    let announce = |of: &Pod| {
        let process = of.spawn(&["sleep", "600"]).unwrap();
        let mut object = pod(of);
        object["metadata"]["annotations"]["nodemesh.dev/netns"] = json!(format!("/proc/{}/ns/net", process.pid()));
        ground.put(&format!("pod-shop-{}", of.name()), &[service_account("shop", of.service_account()), object]);
        wait_until("it is in its namespace", LIMIT, || {
            let of_process = std::fs::metadata(format!("/proc/{}/ns/net", process.pid()));
            let inode = |metadata: std::fs::Metadata| std::os::unix::fs::MetadataExt::ino(&metadata);
            of_process.map(inode).ok() == std::fs::metadata(of.netns()).map(inode).ok()
        })
        .unwrap();
        process
    };
    let processes = [announce(&first), announce(&second)];
    let mut mesh = ground.start();
    assert_eq!(links(&mesh, "n1"), 3);
    let [one, other] = processes;
    let go = |mesh: &Cluster, pod: Pod, process: mesh_lab::process::Process| {
        drop(process);
        pod.clone().remove().unwrap();
        mesh.changed(|| mesh.world.manifests().remove_pod(&pod).unwrap());
    };
    go(&mesh, first, one);
    wait_until("its link is gone", LIMIT, || links(&mesh, "n1") == 2).unwrap();
    // And of one that goes while no agent runs, by the next.
    mesh.mesh.agent("n1").unwrap().crash();
    drop(other);
    second.clone().remove().unwrap();
    mesh.world.manifests().remove_pod(&second).unwrap();
    let options = mesh.options.clone();
    let Cluster { mesh: running, ground } = &mut mesh;
    running.restart(&ground.world, "n1", &options).unwrap();
    wait_until("its link is gone", LIMIT, || links(&mesh, "n1") == 1).unwrap();
}
