//! A pod's start, as a container runtime does it: the real plug-in asks a running agent. Manifests give the pod no network, as an API
//! server cannot yet: where its namespace is and what its addresses are, the plug-in says.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use mesh_lab::manifests::peer_authentication;
use mesh_lab::process::wait_until;
use mesh_lab::{Agent, Pod, PodSpec};
use serde_json::{Value, json};

use crate::world::{Cluster, LIMIT, OUTSIDE, SOON, at, ground};

const PORT: u16 = 7000;

/// The plug-in of a node, and what the runtime tells it.
struct Runtime {
    program: PathBuf,
    socket: PathBuf,
    seconds: u64,
}

impl Runtime {
    fn of(cluster: &Cluster, seconds: u64) -> Runtime {
        let socket = instance(cluster).join("cni.sock");
        Runtime { program: cluster.options.binaries.join("mesh-cni"), socket, seconds }
    }

    /// One call for a pod with these addresses.
    fn call(&self, command: &str, pod: &Pod, addresses: &[String]) -> Child {
        let interface = json!({ "name": "eth0", "sandbox": pod.netns() });
        let ips: Vec<Value> = addresses.iter().map(|address| json!({ "address": address, "interface": 0 })).collect();
        let input = json!({
            "cniVersion": "1.0.0", "name": "net", "type": "mesh-cni", "socket": self.socket, "timeoutSeconds": self.seconds,
            "prevResult": { "cniVersion": "1.0.0", "interfaces": [interface], "ips": ips },
        });
        let names = format!("K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_UID={}", pod.namespace(), pod.name(), pod.uid());
        let mut child = Command::new(&self.program)
            .env_clear()
            .envs([("CNI_COMMAND", command), ("CNI_CONTAINERID", pod.uid()), ("CNI_IFNAME", "eth0"), ("CNI_PATH", "/opt/cni/bin")])
            .env("CNI_NETNS", pod.netns())
            .env("CNI_ARGS", format!("IgnoreUnknown=1;{names}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("mesh-cni is built: cargo build -p mesh-cni");
        child.stdin.take().unwrap().write_all(input.to_string().as_bytes()).unwrap();
        child
    }

    fn start(&self, pod: &Pod) -> Child {
        let addresses: Vec<String> = pod.addresses().iter().map(|ip| format!("{ip}/{}", if ip.is_ipv4() { 24 } else { 64 })).collect();
        self.call("ADD", pod, &addresses)
    }
}

fn instance(cluster: &Cluster) -> PathBuf {
    cluster.world.directory().join("run").join(format!("{}-n1", cluster.world.id()))
}

/// The result, if the pod may start: what the network's own plug-in had said.
fn allowed(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    serde_json::from_str(&said).unwrap()
}

/// Code and message, if it may not.
fn refused(output: &Output) -> (u64, String) {
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success(), "{said}");
    let error: Value = serde_json::from_str(&said).unwrap();
    (error["code"].as_u64().unwrap(), error["msg"].as_str().unwrap().to_owned())
}

/// The pod as an API server has it before the kubelet reports its addresses.
fn pending(cluster: &Cluster, pod: &Pod) {
    let object = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "namespace": pod.namespace(), "name": pod.name(), "uid": pod.uid(), "labels": pod.labels() },
        "spec": { "nodeName": "n1", "serviceAccountName": pod.service_account(), "containers": [{ "name": "app" }] },
        "status": { "phase": "Pending" },
    });
    cluster.put(&format!("pod-{}-{}", pod.namespace(), pod.name()), &[object]);
}

fn new_pod(cluster: &Cluster, namespace: &str, name: &str) -> Pod {
    cluster.node("n1").add_pod(PodSpec::new(namespace, name).service_account(name)).unwrap()
}

fn mesh(name: &str) -> Cluster {
    let ground = ground(
        name,
        &[("n1", PodSpec::new("shop", "near")), ("n2", PodSpec::new("shop", "server")), ("n2", PodSpec::new(OUTSIDE, "outsider"))],
    );
    ground.put("strict", &[peer_authentication("shop", "strict", "STRICT")]);
    ground.start()
}

fn kept(cluster: &Cluster) -> Vec<String> {
    let list = |path: &Path| {
        std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.file_name().into_string().unwrap()).collect()
    };
    list(&instance(cluster).join("attached"))
}

/// Out of the pod and into it, by mTLS.
fn is_in_the_mesh(cluster: &Cluster, pod: &Pod) {
    let server = cluster.pod("server");
    let _echo = server.serve("echo", PORT).unwrap();
    let report = pod.connect(at(&server, PORT), "out").unwrap();
    assert_eq!(report.received, "out", "{report:?}");
    let line = cluster.access_of("n2", "inbound", &report);
    assert_eq!(line["source_identity"], pod.spiffe_id(), "{line}");
    let _own = pod.serve("echo", PORT).unwrap();
    let report = cluster.pod("outsider").connect(at(pod, PORT), "in the clear").unwrap();
    assert_eq!(report.received_bytes, 0, "{report:?}");
}

#[test]
fn a_pod_starts_once_it_is_captured_and_stays_so() {
    let mut cluster = mesh("cni");
    let runtime = Runtime::of(&cluster, 20);
    let pod = new_pod(&cluster, "shop", "late");
    let mut asking = runtime.start(&pod);
    std::thread::sleep(Duration::from_millis(300));
    assert!(asking.try_wait().unwrap().is_none(), "nobody knows the pod yet");
    pending(&cluster, &pod);
    let result = allowed(&asking.wait_with_output().unwrap());
    assert_eq!(result["ips"][0]["address"], format!("{}/24", pod.ipv4()), "{result}");
    // At once: nothing waits for anything here.
    is_in_the_mesh(&cluster, &pod);
    assert_eq!(cluster.sum("n1", "nodemesh_cni_add_seconds_count", &[("result", "captured")]), 1.0);
    cluster.wait_sum("n1", "nodemesh_cni_attachments", &[], 1.0);
    assert_eq!(kept(&cluster), [format!("{}.json", pod.uid())]);
    assert!(runtime.call("CHECK", &pod, &[]).wait_with_output().unwrap().status.success());

    // One that is none of the mesh's.
    let plain = new_pod(&cluster, OUTSIDE, "plain");
    pending(&cluster, &plain);
    allowed(&runtime.start(&plain).wait_with_output().unwrap());
    assert_eq!(cluster.sum("n1", "nodemesh_cni_add_seconds_count", &[("result", "outside")]), 1.0);

    // No agent: nobody starts. No process is in the pod by which the next agent could find it.
    let options = cluster.options.clone();
    cluster.mesh.agent("n1").unwrap().crash();
    let other = new_pod(&cluster, "shop", "other");
    pending(&cluster, &other);
    let begin = Instant::now();
    let (code, message) = refused(&Runtime::of(&cluster, 2).start(&other).wait_with_output().unwrap());
    assert!(code == 11 && message.contains("cannot be reached") && message.contains("shop/other"), "{code} {message}");
    assert!(begin.elapsed() >= Duration::from_secs(1), "an agent that is being replaced is waited for");
    let waiting = runtime.start(&other);
    let Cluster { mesh, ground } = &mut cluster;
    mesh.restart(&ground.world, "n1", &options).unwrap();
    cluster.wait_served(&pod);
    is_in_the_mesh(&cluster, &pod);
    allowed(&waiting.wait_with_output().unwrap());
    is_in_the_mesh(&cluster, &other);

    // What the API server says at last is what the runtime had said.
    let before = cluster.workload(&pod).unwrap()["netnsCookie"].clone();
    let mut object = mesh_lab::manifests::pod(&pod);
    object["metadata"]["annotations"] = json!({});
    let logged = |cluster: &Cluster| cluster.agent("n1").log().matches("no longer served").count();
    let count = logged(&cluster);
    cluster.apply("pod-shop-late", &[object]);
    assert_eq!(cluster.workload(&pod).unwrap()["netnsCookie"], before);
    assert_eq!(logged(&cluster), count, "it was never let go of");

    for pod in [&pod, &plain, &other] {
        assert!(runtime.call("DEL", pod, &[]).wait_with_output().unwrap().status.success());
    }
    cluster.wait_sum("n1", "nodemesh_cni_attachments", &[], 0.0);
    assert_eq!(kept(&cluster), [""; 0]);
}

#[test]
fn a_pod_that_is_deleted_while_it_starts_is_refused_for_good() {
    let cluster = mesh("cnigone");
    let pod = new_pod(&cluster, "shop", "brief");
    pending(&cluster, &pod);
    // Without an address it is not served.
    let mut asking = Runtime::of(&cluster, 20).call("ADD", &pod, &[]);
    wait_until("the agent knows it", SOON, || cluster.workload(&pod).is_some_and(|pod| pod["awaited"].to_string().contains("an address")))
        .unwrap();
    assert!(asking.try_wait().unwrap().is_none());
    cluster.remove("pod-shop-brief");
    let (code, message) = refused(&asking.wait_with_output().unwrap());
    assert!(code == 100 && message.contains("deleted"), "{code} {message}");
    cluster.wait_sum("n1", "nodemesh_cni_attachments", &[], 0.0);
}

#[test]
fn many_pods_start_at_once() {
    let cluster = mesh("cnimany");
    let runtime = Runtime::of(&cluster, 60);
    let pods: Vec<Pod> = (0..40).map(|n| new_pod(&cluster, "shop", &format!("many{n}"))).collect();
    pods.iter().for_each(|pod| pending(&cluster, pod));
    let asking: Vec<Child> = pods.iter().map(|pod| runtime.start(pod)).collect();
    for child in asking {
        allowed(&child.wait_with_output().unwrap());
    }
    assert_eq!(cluster.sum("n1", "nodemesh_cni_add_seconds_count", &[("result", "captured")]), pods.len() as f64);
    is_in_the_mesh(&cluster, &pods[pods.len() - 1]);
    // One by one, each known and with its certificate at hand.
    let calls = |result: &str| {
        let labels = [("result", result)];
        (cluster.sum("n1", "nodemesh_cni_add_seconds_sum", &labels), cluster.sum("n1", "nodemesh_cni_add_seconds_count", &labels))
    };
    let before = calls("captured");
    for n in 0..20 {
        let pod = cluster.node("n1").add_pod(PodSpec::new("shop", &format!("warm{n}"))).unwrap();
        pending(&cluster, &pod);
        let known = || cluster.workload(&pod).is_some();
        wait_until("the agent knows it", LIMIT, known).unwrap();
        allowed(&runtime.start(&pod).wait_with_output().unwrap());
    }
    let after = calls("captured");
    println!("ADD, warm: {:.1} ms on average", (after.0 - before.0) / (after.1 - before.1) * 1000.0);
    let metrics = cluster.metrics("n1");
    for (bucket, calls) in metrics.samples("nodemesh_cni_add_seconds_bucket", &[("result", "captured")]) {
        println!("ADD, all: {bucket}: {calls}");
    }
}

#[test]
fn pods_start_while_one_agent_takes_the_place_of_another() {
    let mut cluster = mesh("cnihand");
    let runtime = Runtime::of(&cluster, 60);
    let pods: Vec<Pod> = (0..8).map(|n| new_pod(&cluster, "shop", &format!("hand{n}"))).collect();
    pods.iter().for_each(|pod| pending(&cluster, pod));
    let (first, rest) = pods.split_first().unwrap();
    allowed(&runtime.start(first).wait_with_output().unwrap());
    let newer = Agent::start_as(&cluster.world, &cluster.node("n1"), "agent-newer", &cluster.options).unwrap();
    for pod in rest {
        allowed(&runtime.start(pod).wait_with_output().unwrap());
    }
    let mut older = cluster.mesh.replace(newer).unwrap();
    cluster.mesh.agent("n1").unwrap().wait_ready(LIMIT).unwrap();
    assert!(older.process.wait(LIMIT).unwrap().expect("it ends").success(), "{}", older.log());
    // What the older one was told, the newer one knows.
    cluster.wait_sum("n1", "nodemesh_cni_attachments", &[], pods.len() as f64);
    pods.iter().for_each(|pod| cluster.wait_served(pod));
    is_in_the_mesh(&cluster, first);
    let last = new_pod(&cluster, "shop", "handlast");
    pending(&cluster, &last);
    allowed(&runtime.start(&last).wait_with_output().unwrap());
    is_in_the_mesh(&cluster, &last);
}

#[test]
fn the_agent_keeps_the_plug_in_on_its_node_until_it_is_cleaned() {
    let ground = ground("cniplug", &[("n1", PodSpec::new("shop", "near"))]);
    let (node, mut options) = (ground.node("n1"), ground.options.clone());
    let [bin, conf] = ["cni-bin", "cni-conf"].map(|name| ground.world.directory().join(name));
    for directory in [&bin, &conf] {
        std::fs::create_dir(directory).unwrap();
    }
    let network = "{\"cniVersion\": \"1.0.0\", \"name\": \"net\", \"plugins\": [{\"type\": \"bridge\"}]}\n";
    let file = conf.join("10-net.conflist");
    std::fs::write(&file, network).unwrap();
    let places = [format!("--cni-bin-dir={}", bin.display()), format!("--cni-conf-dir={}", conf.display())];
    options.agent_flags.extend(places.clone());
    options.agent_flags.push(format!("--cni-binary={}", options.binaries.join("mesh-cni").display()));
    let _control = mesh_lab::Control::start(&ground.world, &options).unwrap();
    let mut agent = Agent::start(&ground.world, &node, &options).unwrap();
    agent.wait_ready(LIMIT).unwrap();
    let entry = || {
        let list: Value = serde_json::from_str(&std::fs::read_to_string(&file).ok()?).ok()?;
        list["plugins"].as_array()?.iter().find(|plugin| plugin["type"] == "mesh-cni").cloned()
    };
    let is_in = || wait_until("the plug-in is in the list", SOON, || entry().is_some()).unwrap();
    is_in();
    // What was put there works: the agent is reached by what the entry says.
    let mut input = entry().unwrap();
    input["cniVersion"] = "1.1.0".into();
    input["name"] = "net".into();
    let mut child = Command::new(bin.join("mesh-cni"))
        .env_clear()
        .env("CNI_COMMAND", "STATUS")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.to_string().as_bytes()).unwrap();
    let status = child.wait_with_output().unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stdout));
    // The network's own installer writes its file anew.
    std::fs::write(&file, network).unwrap();
    is_in();
    assert!(agent.metrics().unwrap().text().contains("nodemesh_cni_installed 1"));
    assert!(agent.admin("/cni").unwrap().body.contains("installed"));
    // Without an agent new pods are held, until the mesh is taken away.
    assert!(agent.terminate(LIMIT).unwrap());
    assert!(entry().is_some());
    let mut words = vec![
        options.binaries.join("mesh-agent").display().to_string(),
        format!("--instance={}-n1", ground.world.id()),
        format!("--run-dir={}", ground.world.directory().join("run").display()),
    ];
    words.extend(places);
    words.push("cleanup".to_owned());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let cleaned = node.exec_host(&words, LIMIT).unwrap();
    assert!(cleaned.ok() && cleaned.stdout.contains("10-net.conflist: the CNI plug-in taken out"), "{cleaned:?}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), network);
    assert!(!bin.join("mesh-cni").exists());
}
