//! Two nodes with clients and a server, without a mesh or with one. Both worlds are built alike, down to the wires.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path as File, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mesh_lab::manifests::{authorization_policy, namespace, peer_authentication, service};
use mesh_lab::process::wait_until;
use mesh_lab::{Mesh, MeshOptions, Pod, PodSpec, Process, World};
use serde_json::json;

use super::calls;
use super::envoy::{Pair, Way};
use super::load::SCRIPT;
use super::path::{BULK_PORT, GRPC_METHOD, GRPC_PORT, HTTP_PORT, Path, PathId};
use super::usage::Watched;

const NAMESPACE: &str = "bench";
/// Address of the Service whose requests are routed.
const WEB: &str = "10.99.0.1";
/// Congestion controls that don't pace, the kernel's own default first. A namespace may only use what its host allows.
const UNPACED: [&str; 2] = ["cubic", "reno"];
const PATIENCE: Duration = Duration::from_secs(15);

/// A world and what runs in it.
#[derive(Debug)]
pub struct Stage {
    far: Pod,
    near: Pod,
    /// Those that no policy allows, on the nodes of `far` and `near`.
    strangers: [Pod; 2],
    server: Pod,
    /// A server of requests that are routed and judged one by one.
    web: Pod,
    script: PathBuf,
    message: PathBuf,
    envoys: Vec<Pair>,
    mesh: Option<Mesh>,
    nginx: [Process; 2],
    // Last: what is above must go before the world does.
    world: World,
}

impl Stage {
    /// Builds the world and starts the server.
    pub fn new(name: &str) -> Result<Self> {
        let world = World::new(name)?;
        let one = world.add_node("n1")?;
        let two = world.add_node("n2")?;
        for place in [one.netns(), two.netns(), world.fabric().netns] {
            bare_bridge(&place)?;
        }
        let spec = |name: &str, account: &str| PodSpec::new(NAMESPACE, name).service_account(account);
        let far = one.add_pod(spec("client", "client"))?;
        let near = two.add_pod(spec("client-near", "client"))?;
        let strangers = [one.add_pod(spec("stranger", "stranger"))?, two.add_pod(spec("stranger-near", "stranger"))?];
        let server = two.add_pod(spec("server", "server"))?;
        let web = two.add_pod(spec("web", "server"))?;
        for pod in [&far, &near, &server, &web] {
            prepare(pod)?;
        }
        let script = world.directory().join("summary.lua");
        fs::write(&script, SCRIPT).with_context(|| format!("writing {}", script.display()))?;
        let message = calls::write_message(world.directory())?;
        let nginx = [nginx(&world, &server)?, nginx(&world, &web)?];
        Ok(Self { far, near, strangers, server, script, message, web, envoys: Vec::new(), mesh: None, nginx, world })
    }

    fn path(&self, id: PathId, client: &Pod) -> Path {
        Path {
            id,
            client: client.clone(),
            server: self.server.clone(),
            address: self.server.ipv4().to_string(),
            http_port: HTTP_PORT,
            bulk_port: BULK_PORT,
            between: Vec::new(),
            script: self.script.clone(),
            message: self.message.clone(),
        }
    }

    /// The path with nothing between; in a world without a mesh.
    pub fn direct(&self, id: PathId) -> Result<Path> {
        let path = self.path(id, if id == PathId::DirectLocal { &self.near } else { &self.far });
        if id != PathId::DirectGrpc {
            return Ok(path);
        }
        let address = self.web.ipv4().to_string();
        let status = calls::call(&path.client, &format!("{address}:{GRPC_PORT}"), GRPC_METHOD)?;
        ensure!(status == "0", "the server answers calls with status {status} of gRPC");
        Ok(Path { address, http_port: GRPC_PORT, ..path })
    }

    /// The path through two Envoys; starts them.
    pub fn envoy(&mut self, id: PathId, binary: &File) -> Result<Path> {
        let (way, server) = match id {
            PathId::EnvoyHttp => (Way::REQUESTS, &self.web),
            PathId::EnvoyGrpc => (Way::CALLS, &self.web),
            _ => (Way::CONNECTIONS, &self.server),
        };
        let pair = Pair::start(&self.world, binary, &self.far, server, way)?;
        let between = pair.between.clone();
        self.envoys.push(pair);
        let path = self.path(id, &self.far);
        Ok(Path { address: "127.0.0.1".to_owned(), http_port: way.out_http, bulk_port: way.out_bulk, between, ..path })
    }

    /// Enrols the pods, states who may call the server, and starts agents and authority; fine if they run.
    pub fn start_mesh(&mut self, binaries: &File) -> Result<()> {
        if self.mesh.is_some() {
            return Ok(());
        }
        let principals = json!([self.far.spiffe_id().trim_start_matches("spiffe://")]);
        let ports = json!([HTTP_PORT.to_string(), BULK_PORT.to_string()]);
        let rules = json!([{ "from": [{ "source": { "principals": principals } }], "to": [{ "operation": { "ports": ports } }] }]);
        let requests = json!([{
            "from": [{ "source": { "principals": principals } }],
            "to": [{ "operation": { "methods": ["GET"], "paths": ["/*"] } }],
        }]);
        let route = json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": { "namespace": NAMESPACE, "name": "web" },
            "spec": {
                "parentRefs": [{ "group": "", "kind": "Service", "name": "web" }],
                "rules": [{ "matches": [{ "path": { "type": "PathPrefix", "value": "/" } }], "backendRefs": [{ "name": "web", "port": 80 }] }],
            },
        });
        let mut objects = vec![
            service(NAMESPACE, "web", &[WEB], "web", &[("http", 80, HTTP_PORT)]),
            route,
            authorization_policy(NAMESPACE, "requests", &[("app", self.web.name())], "ALLOW", &requests),
            namespace(NAMESPACE, Some(true)),
            peer_authentication(NAMESPACE, "default", "STRICT"),
            authorization_policy(NAMESPACE, "callers", &[("app", self.server.name())], "ALLOW", &rules),
        ];
        objects.extend(calls::objects(NAMESPACE, self.web.name(), &principals));
        let manifests = self.world.manifests();
        manifests.put("mesh", &objects)?;
        manifests.put_world(&self.world)?;
        self.mesh = Some(Mesh::start(&self.world, &MeshOptions::in_directory(binaries)?)?);
        Ok(())
    }

    /// A path through the mesh, after a proof that it is one: the allowed client is carried the way it should, another is refused.
    pub fn meshed(&mut self, id: PathId) -> Result<Path> {
        let local = id == PathId::SameNode;
        let (client, [far, near]) = (if local { &self.near } else { &self.far }, &self.strangers);
        let path = self.path(id, client);
        let mesh = self.mesh.as_mut().context("the mesh does not run")?;
        let between =
            mesh.agents().iter().map(|agent| Ok(Watched { pid: agent.process.pid(), cgroup: agent.node().host("agent")?.cgroup }));
        let between = between.collect::<Result<Vec<_>>>()?;

        let agent = mesh.agent(client.node().name())?;
        let counts = || -> Result<(f64, f64)> {
            let metrics = agent.metrics()?;
            let direct = metrics.sum("nodemesh_kernel_verdicts_total", &[("verdict", "direct")]);
            Ok((direct, metrics.sum("nodemesh_tunnel_streams_total", &[])))
        };
        let server = SocketAddr::new(self.server.ipv4().into(), HTTP_PORT);
        let before = counts()?;
        let request = "GET / HTTP/1.1\\r\\nHost: server\\r\\nConnection: close\\r\\n\\r\\n";
        let report = client.connect(server, request)?;
        ensure!(report.received.starts_with("HTTP/1.1 200"), "{id}: the allowed client got no answer: {report:?}");
        let mut after = before;
        let carried = wait_until("the agent counts the connection", PATIENCE, || {
            after = counts().unwrap_or(before);
            if local { after.0 > before.0 } else { after.1 > before.1 }
        });
        if carried.is_err() || (local && after.1 > before.1) || (!local && after.0 > before.0) {
            bail!("{id}: (judged in the kernel, carried by a tunnel) went from {before:?} to {after:?} for one connection");
        }
        let stranger = if local { near } else { far };
        let refused = stranger.connect(server, request)?;
        ensure!(refused.received.is_empty(), "{id}: a client that the policy doesn't allow got an answer: {refused:?}");
        Ok(Path { between, ..path })
    }

    /// The path on which requests are routed and judged one by one, after a proof that they are.
    pub fn routed(&mut self) -> Result<Path> {
        let mesh = self.mesh.as_mut().context("the mesh does not run")?;
        let between =
            mesh.agents().iter().map(|agent| Ok(Watched { pid: agent.process.pid(), cgroup: agent.node().host("agent")?.cgroup }));
        let between = between.collect::<Result<Vec<_>>>()?;
        let server = SocketAddr::new(WEB.parse().context("an address")?, 80);
        let ask =
            |client: &Pod, method: &str| client.request(server, &format!("{method} / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n"));
        let answered = |client: &Pod, method: &str, status: &str| -> Result<()> {
            let report = ask(client, method)?;
            ensure!(report.received.starts_with(status), "{method} was not answered with {status}: {report:?}");
            Ok(())
        };
        answered(&self.far, "GET", "HTTP/1.1 200")?;
        answered(&self.far, "POST", "HTTP/1.1 403")?;
        answered(&self.strangers[0], "GET", "HTTP/1.1 403")?;
        for (agent, reporter) in mesh.agents().iter().zip(["source", "destination"]) {
            let counted = || agent.metrics().is_ok_and(|metrics| metrics.sum("istio_requests_total", &[("reporter", reporter)]) > 0.0);
            wait_until("both agents count requests", PATIENCE, counted)?;
        }
        Ok(Path { address: WEB.to_owned(), http_port: 80, between, ..self.path(PathId::CrossNodeHttp, &self.far) })
    }

    /// The path on which calls of gRPC are routed and judged one by one, after a proof that they are.
    pub fn called(&mut self) -> Result<Path> {
        let mesh = self.mesh.as_ref().context("the mesh does not run")?;
        let between =
            mesh.agents().iter().map(|agent| Ok(Watched { pid: agent.process.pid(), cgroup: agent.node().host("agent")?.cgroup }));
        let between = between.collect::<Result<Vec<_>>>()?;
        calls::prove(&self.far, &self.strangers[0])?;
        Ok(Path { address: calls::ADDRESS.to_owned(), http_port: 80, between, ..self.path(PathId::CrossNodeGrpc, &self.far) })
    }

    /// Ends everything in it.
    pub fn remove(mut self) -> Result<()> {
        for nginx in &mut self.nginx {
            ensure!(nginx.is_running(), "nginx ended while it was measured: {}", nginx.log());
        }
        drop((self.envoys, self.mesh, self.nginx));
        self.world.remove()
    }
}

/// Takes netfilter's hooks off the bridges of a namespace, where the kernel has them: without a mesh, bytes go as fast as they can.
fn bare_bridge(netns: &File) -> Result<()> {
    if !File::new("/proc/sys/net/bridge").exists() {
        return Ok(());
    }
    let settings = [
        ("net/bridge/bridge-nf-call-iptables", "0"),
        ("net/bridge/bridge-nf-call-ip6tables", "0"),
        ("net/bridge/bridge-nf-call-arptables", "0"),
    ];
    mesh_lab::netns::sysctl(netns, &settings)
}

/// Room for many short connections at once, the same in every pod that is measured.
pub fn prepare(pod: &Pod) -> Result<()> {
    // Not what the host may have set: BBR paces by timers, and it would be those that are measured.
    let allowed = fs::read_to_string("/proc/sys/net/ipv4/tcp_allowed_congestion_control").unwrap_or_default();
    if let Some(name) = UNPACED.into_iter().find(|name| allowed.split_whitespace().any(|word| word == *name)) {
        pod.sysctl(&[("net/ipv4/tcp_congestion_control", name)])?;
    }
    pod.sysctl(&[("net/ipv4/ip_local_port_range", "16384 65535"), ("net/ipv4/tcp_tw_reuse", "1")])
}

/// nginx with a small answer made of nothing: the server costs as little as it can, so that the path is what is measured.
pub fn nginx(world: &World, pod: &Pod) -> Result<Process> {
    let directory = world.directory().join(format!("nginx-{}", pod.name()));
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    let at = directory.display();
    calls::write_message(&directory)?;
    let of_calls = calls::nginx(&directory);
    let configuration = format!(
        "daemon off; user root; worker_processes 2; pid {at}/pid; error_log {at}/error.log;\n\
         events {{ worker_connections 8192; }}\n\
         http {{\n\
         client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;\n\
         uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n\
         access_log off; keepalive_requests 1000000000; keepalive_timeout 1h; tcp_nodelay on;\n\
         server {{ listen 0.0.0.0:{HTTP_PORT} backlog=4096; location / {{ return 200 \"hello from the server\\n\"; }} }}\n{of_calls}\
         }}\n"
    );
    let file = directory.join("nginx.conf");
    fs::write(&file, configuration).with_context(|| format!("writing {}", file.display()))?;
    let mut process = pod.spawn(&["nginx", "-p", &at.to_string(), "-c", &file.to_string_lossy()])?;
    let netns = pod.netns();
    let url = format!("http://127.0.0.1:{HTTP_PORT}/");
    let answers = wait_until("nginx answers", PATIENCE, || {
        !process.is_running() || mesh_lab::http_get(&netns, &url).is_ok_and(|answer| answer.status == 200)
    });
    if answers.is_err() || !process.is_running() {
        bail!("nginx does not answer: {}{}", process.log(), fs::read_to_string(directory.join("error.log")).unwrap_or_default());
    }
    Ok(process)
}
