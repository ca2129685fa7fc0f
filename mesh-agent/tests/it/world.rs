//! Two nodes with pods, and the mesh on them, in one call; and what tests ask of it.
//!
//! ```ignore
//! let mesh = ground("name", &[("n1", PodSpec::new("shop", "client")), ("n2", PodSpec::new("shop", "server"))]).start();
//! let _echo = mesh.pod("server").serve("echo", 7000).unwrap();
//! let report = mesh.pod("client").connect(at(&mesh.pod("server"), 7000), "hello").unwrap();
//! ```
//!
//! A mesh costs seconds to start, so tests of one area may share one in a `LazyLock`: each then uses pods or ports of its own, and
//! looks at what it can tell from that of others (by workload, by the client's port). Nobody drops a static; the lab's guardian
//! removes its world when this process ends.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mesh_lab::manifests::namespace;
use mesh_lab::mesh::Metrics;
use mesh_lab::peer::Report;
use mesh_lab::process::wait_until;
use mesh_lab::{Agent, Mesh, MeshOptions, Node, Pod, PodSpec, World};
use serde_json::{Value, json};

/// Longest time that anything but a large transfer may take here.
pub const LIMIT: Duration = Duration::from_secs(20);
/// Longest time until a counter, a log line or a changed file takes effect.
pub const SOON: Duration = Duration::from_secs(8);
/// The Kubernetes namespace whose pods are not in the mesh; all others are.
pub const OUTSIDE: &str = "outside";

/// Nodes, pods and manifests; no mesh yet.
pub struct Ground {
    pub world: World,
    pub options: MeshOptions,
}

/// A running mesh. Derefs to its ground.
pub struct Cluster {
    // Dropped first: processes before the world they run in.
    pub mesh: Mesh,
    pub ground: Ground,
}

/// Nodes `n1` and `n2` with these pods, and the manifests of all of it. Pods of the namespace `outside` are not in the mesh.
pub fn ground(name: &str, pods: &[(&str, PodSpec)]) -> Ground {
    let world = World::new(name).expect("a world");
    for node in ["n1", "n2"] {
        world.add_node(node).expect("a node");
    }
    let ground = Ground { world, options: MeshOptions::found().expect("built binaries") };
    ground.put("namespace-outside", &[namespace(OUTSIDE, None)]);
    for (node, spec) in pods {
        ground.node(node).add_pod(spec.clone()).expect("a pod");
    }
    ground.world.manifests().put_world(&ground.world).expect("manifests");
    for pod in ground.pods().iter().filter(|pod| pod.namespace() != OUTSIDE) {
        ground.put(&format!("namespace-{}", pod.namespace()), &[namespace(pod.namespace(), Some(true))]);
    }
    ground
}

impl Ground {
    /// Starts authority and agents, and waits until all are ready.
    pub fn start(self) -> Cluster {
        let mesh = Mesh::start(&self.world, &self.options).expect("the mesh starts");
        Cluster { mesh, ground: self }
    }

    /// A node by its name.
    pub fn node(&self, name: &str) -> Node {
        self.world.nodes().into_iter().find(|node| node.name() == name).unwrap_or_else(|| panic!("no node {name}"))
    }

    /// Every pod of both nodes.
    pub fn pods(&self) -> Vec<Pod> {
        self.world.nodes().iter().flat_map(Node::pods).collect()
    }

    /// A pod by its name, whichever its namespace.
    pub fn pod(&self, name: &str) -> Pod {
        self.pods().into_iter().find(|pod| pod.name() == name).unwrap_or_else(|| panic!("no pod {name}"))
    }

    /// Adds a pod with its manifest. Its agent takes a moment: see [`Cluster::wait_served`].
    pub fn add_pod(&self, node: &str, spec: PodSpec) -> Pod {
        let pod = self.node(node).add_pod(spec).expect("a pod");
        self.world.manifests().put_pod(&pod).expect("its manifest");
        pod
    }

    /// Replaces the manifest file of this name. Agents take a moment: see [`Cluster::apply`].
    pub fn put(&self, name: &str, objects: &[Value]) {
        self.world.manifests().put(name, objects).expect("a manifest");
    }

    /// Removes it.
    pub fn remove(&self, name: &str) {
        self.world.manifests().remove(name).expect("a manifest goes");
    }
}

impl std::ops::Deref for Cluster {
    type Target = Ground;
    fn deref(&self) -> &Ground {
        &self.ground
    }
}

impl Drop for Cluster {
    /// What the agents said goes with the world; a test that fails shows the end of it.
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The access log is written by a thread of its own.
            std::thread::sleep(Duration::from_millis(300));
            for agent in self.mesh.agents() {
                let log = agent.log();
                let lines: Vec<&str> = log.lines().collect();
                let last = lines.get(lines.len().saturating_sub(30)..).unwrap_or_default();
                eprintln!("the agent of {} wrote last:\n{}", agent.node().name(), last.join("\n"));
                let Ok(metrics) = agent.metrics() else { continue };
                let of_kernel = |line: &&str| line.starts_with("nodemesh_kernel_") && !line.ends_with(" 0");
                let lines: Vec<&str> = metrics.text().lines().filter(of_kernel).collect();
                eprintln!("and its kernel has counted:\n{}", lines.join("\n"));
            }
        }
    }
}

impl Cluster {
    /// The agent of a node.
    pub fn agent(&self, node: &str) -> &Agent {
        self.mesh.agents().iter().find(|agent| agent.node().name() == node).unwrap_or_else(|| panic!("no agent on {node}"))
    }

    /// Replaces a manifest file and waits until every agent has it in force. Something in it must differ.
    pub fn apply(&self, name: &str, objects: &[Value]) {
        self.changed(|| self.put(name, objects));
    }

    /// Removes a manifest file and waits until no agent has it in force.
    pub fn withdraw(&self, name: &str) {
        self.changed(|| self.remove(name));
    }

    /// Does something to the manifests and waits until every agent has put a newer configuration in force.
    pub fn changed(&self, change: impl FnOnce()) {
        let version = |agent: &Agent| agent.metrics().map(|metrics| metrics.sum("nodemesh_config_version", &[])).unwrap_or_default();
        let before: Vec<f64> = self.mesh.agents().iter().map(version).collect();
        change();
        let newer = || self.mesh.agents().iter().zip(&before).all(|(agent, before)| version(agent) > *before);
        wait_until("the agents take over the changed manifests", SOON, newer).expect("a newer configuration");
        // The number is shown when the loop takes a configuration up; the same turn of it writes the kernel's maps.
        std::thread::sleep(Duration::from_millis(100));
    }

    /// Waits until the agent of the pod's node serves it.
    pub fn wait_served(&self, pod: &Pod) {
        let served = || self.workload(pod).is_some_and(|workload| workload["state"] == "ready");
        wait_until("the pod is served", LIMIT, served).unwrap_or_else(|error| panic!("{error}: {:?}", self.workload(pod)));
    }

    /// Waits until no agent knows the pod any more. Two files are two changes: an agent may take over the one before the other.
    pub fn wait_forgotten(&self, pod: &Pod) {
        let name = pod.full_name();
        let knows = |agent: &Agent| {
            let config = self.admin(agent.node().name(), "/config");
            config["workloads"].as_array().is_none_or(|workloads| workloads.iter().any(|workload| *workload == name.as_str()))
        };
        wait_until("every agent forgets the pod", SOON, || !self.mesh.agents().iter().any(knows)).expect("the pod is forgotten");
    }

    /// What the admin endpoint of its node says of a pod.
    pub fn workload(&self, pod: &Pod) -> Option<Value> {
        let name = pod.full_name();
        let all = self.admin(pod.node().name(), "/workloads");
        all.as_array()?.iter().find(|workload| workload["name"] == name.as_str()).cloned()
    }

    /// A page of a node's admin endpoint.
    pub fn admin(&self, node: &str, path: &str) -> Value {
        let answer = self.agent(node).admin(path).expect("the admin endpoint answers");
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        serde_json::from_str(&answer.body).expect("JSON")
    }

    /// A node's metrics.
    pub fn metrics(&self, node: &str) -> Metrics {
        self.agent(node).metrics().expect("metrics")
    }

    /// The sum of a node's samples of a name that bear all these labels.
    pub fn sum(&self, node: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.metrics(node).sum(name, labels)
    }

    /// Waits until that sum is exactly this.
    pub fn wait_sum(&self, node: &str, name: &str, labels: &[(&str, &str)], wanted: f64) {
        let mut last = f64::NAN;
        let waited = wait_until("a counter", SOON, || {
            last = self.sum(node, name, labels);
            last == wanted
        });
        assert!(waited.is_ok(), "{name}{labels:?} of {node} is {last}, not {wanted}:\n{}", self.lines(node, name));
    }

    /// Every sample of a name, for messages.
    pub fn lines(&self, node: &str, name: &str) -> String {
        self.metrics(node).text().lines().filter(|line| line.starts_with(name)).collect::<Vec<_>>().join("\n")
    }

    /// Waits for a line of a node's access log that bears all these fields.
    pub fn access(&self, node: &str, fields: &[(&str, &str)]) -> Value {
        self.agent(node).wait_for_access(fields, SOON).expect("an access log line")
    }

    /// The access log line of a connection that a client reports of, on a node and in a direction (`outbound`, `inbound`, `local`).
    pub fn access_of(&self, node: &str, direction: &str, report: &Report) -> Value {
        let client = canonical(report.local.expect("the client connected")).to_string();
        self.access(node, &[("direction", direction), ("client", &client)])
    }
}

/// IPv4 address and port of a pod.
pub fn at(pod: &Pod, port: u16) -> SocketAddr {
    SocketAddr::new(pod.ipv4().into(), port)
}

/// IPv6 address and port of a pod.
pub fn at6(pod: &Pod, port: u16) -> SocketAddr {
    SocketAddr::new(pod.ipv6().expect("an IPv6 address").into(), port)
}

/// With a mapped IPv4 address written as IPv4.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(IpAddr::to_canonical(&address.ip()), address.port())
}

/// A text field of a log line; empty if it isn't there.
pub fn text<'a>(line: &'a Value, field: &str) -> &'a str {
    line.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// A number of a log line.
pub fn number(line: &Value, field: &str) -> u64 {
    line.get(field).and_then(Value::as_u64).unwrap_or_else(|| panic!("no number {field} in {line}"))
}

/// The mesh's settings, with this `spec`.
pub fn settings(spec: Value) -> Value {
    json!({ "apiVersion": "nodemesh.dev/v1alpha1", "kind": "Mesh", "metadata": { "name": "default" }, "spec": spec })
}
