//! The images that this repository makes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::generate_simple_self_signed;

use super::layer::{Content, File};
use super::static_build::{self, Built};
use super::{Archive, Config, libraries, write};
use crate::{build_ebpf, command, go};

/// Whoever runs without root in our images; the number that distroless images made customary.
const NOBODY: u32 = 65532;
/// What the manifests of the conformance suite ask for.
const ECHO_NAME: &str = "registry.k8s.io/gateway-api/echo-advanced:v1.5.1";
/// The cluster's DNS server.
pub const COREDNS_NAME: &str = "docker.io/nodemesh/lab-coredns:1";
/// Programs for tests to run in a pod.
pub const TOOLS_NAME: &str = "docker.io/nodemesh/lab-tools:1";
/// The peer program, whose servers tell what they were asked.
pub const PEER_NAME: &str = "docker.io/nodemesh/lab-peer:1";
/// Where the agent's image has the kernel programs.
const BPF_OBJECT: &str = "/usr/lib/nodemesh/mesh-ebpf.o";
/// Where it has the CNI plug-in, which the agent puts on its node.
const CNI_PLUGIN: &str = "/usr/lib/nodemesh/mesh-cni";
/// Where Debian's systems have their roots, and the agent's image too.
const ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Agent and control plane, built for their images.
pub fn mesh() -> Result<Built> {
    static_build::build(&["mesh-agent", "mesh-cni", "mesh-control"])
}

/// The programs of a cluster that are ours, built for their images.
pub fn programs() -> Result<Built> {
    static_build::build(&["mesh-lab-programs"])
}

/// The agent with the kernel programs and the CNI plug-in. It runs as root: it enters pods' namespaces and loads programs.
pub fn agent(built: &Built, out: &Path) -> Result<Archive> {
    let object = build_ebpf::run(&build_ebpf::Arguments::default())?;
    let mut files = built.files("/usr/bin/mesh-agent", "mesh-agent")?;
    files.extend(built.files(CNI_PLUGIN, "mesh-cni")?);
    files.push(File { path: BPF_OBJECT.to_owned(), mode: 0o644, owner: 0, content: Content::Copy(object) });
    files.push(File::directory("/tmp", 0o1777, 0));
    files.push(File { path: ROOTS.to_owned(), mode: 0o644, owner: 0, content: Content::Copy(system_roots()?) });
    let config = Config {
        entrypoint: vec!["/usr/bin/mesh-agent".to_owned()],
        environment: vec![path(), ("NODEMESH_BPF_OBJECT".to_owned(), BPF_OBJECT.to_owned())],
        labels: labels("The data plane of Nodemesh, one a node"),
        ..Config::default()
    };
    write(&format!("nodemesh/agent:{VERSION}"), &libraries::unique(files), &config, &out.join("agent.tar"))
}

/// The roots of this machine, by which the agent verifies servers on the internet where a DestinationRule names no others.
fn system_roots() -> Result<PathBuf> {
    mesh_lab::packages::install(&["ca-certificates"])?;
    let file = PathBuf::from(ROOTS);
    anyhow::ensure!(file.is_file(), "{ROOTS} is missing: install the package ca-certificates");
    Ok(file)
}

/// The control plane.
pub fn control(built: &Built, out: &Path) -> Result<Archive> {
    let mut files = built.files("/usr/bin/mesh-control", "mesh-control")?;
    files.push(File::directory("/tmp", 0o1777, 0));
    let config = Config {
        entrypoint: vec!["/usr/bin/mesh-control".to_owned()],
        environment: vec![path()],
        user: Some(NOBODY),
        labels: labels("The certificate authority of Nodemesh"),
        ..Config::default()
    };
    write(&format!("nodemesh/control:{VERSION}"), &files, &config, &out.join("control.tar"))
}

/// The process that holds a pod's namespaces.
pub fn pause(programs: &Built, out: &Path) -> Result<Archive> {
    let files = programs.files("/pause", "pause")?;
    let config = Config { entrypoint: vec!["/pause".to_owned()], user: Some(NOBODY), ..Config::default() };
    write(crate::cluster::PAUSE, &files, &config, &out.join("pause.tar"))
}

/// CoreDNS.
pub fn coredns(out: &Path) -> Result<Archive> {
    let program = go::COREDNS.provide()?.join("coredns");
    let config = Config { entrypoint: vec!["/coredns".to_owned()], ..Config::default() };
    write(COREDNS_NAME, &[File::program("/coredns", program)], &config, &out.join("coredns.tar"))
}

/// A server that answers as `hashicorp/http-echo` does.
pub fn http_echo(programs: &Built, out: &Path) -> Result<Archive> {
    let files = programs.files("/http-echo", "http-echo")?;
    let config = Config { entrypoint: vec!["/http-echo".to_owned()], user: Some(NOBODY), ..Config::default() };
    write("hashicorp/http-echo", &files, &config, &out.join("http-echo.tar"))
}

/// Client and server that do as a test says.
pub fn peer(out: &Path) -> Result<Archive> {
    let files = static_build::build(&["mesh-lab"])?.files("/mesh-lab-peer", "mesh-lab-peer")?;
    let config = Config { entrypoint: vec!["/mesh-lab-peer".to_owned()], user: Some(NOBODY), ..Config::default() };
    write(PEER_NAME, &files, &config, &out.join("peer.tar"))
}

/// Client and server of the conformance suite.
pub fn echo(out: &Path) -> Result<Archive> {
    let directory = go::ECHO.provide()?;
    let pair = certificate(out)?;
    let files = [
        File::program("/usr/local/bin/client", directory.join("client")),
        File::program("/usr/local/bin/server", directory.join("server")),
        File::data("/cert.crt", pair.0),
        File::data("/cert.key", pair.1),
    ];
    let config = Config { entrypoint: vec!["/usr/local/bin/server".to_owned()], environment: vec![path()], ..Config::default() };
    write(ECHO_NAME, &files, &config, &out.join("echo.tar"))
}

/// The pair of the echo server's TLS ports. It proves nothing to anybody; it is kept so that the image stays the same.
fn certificate(directory: &Path) -> Result<(String, String)> {
    let (certificate, key) = (directory.join("echo.crt"), directory.join("echo.key"));
    if let (Ok(certificate), Ok(key)) = (fs::read_to_string(&certificate), fs::read_to_string(&key)) {
        return Ok((certificate, key));
    }
    let made = generate_simple_self_signed(["echo".to_owned()]).context("the echo server's certificate")?;
    let pair = (made.cert.pem(), made.signing_key.serialize_pem());
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    fs::write(&certificate, &pair.0).with_context(|| format!("writing {}", certificate.display()))?;
    fs::write(&key, &pair.1).with_context(|| format!("writing {}", key.display()))?;
    Ok(pair)
}

/// curl, nginx, netcat and a shell from this machine's packages, with their libraries: what tests run in a pod.
pub fn tools(out: &Path) -> Result<Archive> {
    mesh_lab::packages::ensure(&["curl", "nginx-light", "netcat-openbsd"])?;
    let programs = [
        "sh", "cat", "date", "echo", "env", "head", "hostname", "ls", "mkdir", "seq", "sleep", "tail", "true", "wc", "grep", "sed", "curl",
        "nc", "nginx", "getent",
    ];
    let mut files = Vec::new();
    for program in programs {
        let place = on_path(program)?;
        files.extend(libraries::with_libraries(&format!("/usr/bin/{program}"), &place)?);
    }
    files.push(File::link("/bin", "usr/bin"));
    files.push(File::directory("/tmp", 0o1777, 0));
    files.push(File::directory("/var/lib/nginx", 0o755, NOBODY.into()));
    files.push(File::data("/etc/passwd", "root:x:0:0:root:/:/bin/sh\nnobody:x:65532:65532:nobody:/:/bin/sh\n"));
    files.push(File::data("/etc/group", "root:x:0:\nnobody:x:65532:\n"));
    files.push(File::data("/etc/nsswitch.conf", "passwd: files\nhosts: files dns\n"));
    files.push(File::data("/etc/nginx/nginx.conf", NGINX));
    let config = Config {
        entrypoint: vec!["/usr/bin/nginx".to_owned()],
        arguments: ["-c", "/etc/nginx/nginx.conf"].map(str::to_owned).to_vec(),
        environment: vec![path()],
        ..Config::default()
    };
    write(TOOLS_NAME, &libraries::unique(files), &config, &out.join("tools.tar"))
}

/// Answers every path with the pod's name.
const NGINX: &str = "daemon off;
user nobody nobody;
pid /tmp/nginx.pid;
error_log /dev/stderr notice;
events {}
http {
  access_log /dev/stdout;
  server {
    listen 80;
    listen [::]:80;
    location / {
      default_type text/plain;
      return 200 \"$hostname\\n\";
    }
  }
}
";

fn on_path(program: &str) -> Result<std::path::PathBuf> {
    let found = command::on_path(program).or_else(|| {
        let administrators = ["/usr/sbin", "/sbin"].map(|directory| Path::new(directory).join(program));
        administrators.into_iter().find(|candidate| candidate.is_file())
    });
    found.with_context(|| format!("`{program}` is not on PATH"))
}

fn path() -> (String, String) {
    ("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned())
}

fn labels(description: &str) -> Vec<(String, String)> {
    [
        ("org.opencontainers.image.title", "Nodemesh"),
        ("org.opencontainers.image.description", description),
        ("org.opencontainers.image.version", VERSION),
        ("org.opencontainers.image.licenses", env!("CARGO_PKG_LICENSE")),
        ("org.opencontainers.image.source", env!("CARGO_PKG_REPOSITORY")),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}
