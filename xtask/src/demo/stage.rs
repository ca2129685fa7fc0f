//! The stage: who is on which node, which programs run in the pods, and the mesh around them.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mesh_lab::peer::Server;
use mesh_lab::{Capture, Mesh, MeshOptions, Pod, PodSpec, Process, World};

use crate::command;

/// Renewal at half of it can be waited for.
pub const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(30);

/// Texts that only this run knows: found somewhere, they came from here.
pub struct Secrets {
    /// On the pages of the web servers.
    pub page: String,
    /// In the cache.
    pub value: String,
    /// What the greeter says first.
    pub greeting: String,
}

/// Everything on stage.
pub struct Stage {
    pub secrets: Secrets,
    pub frontend: Pod,
    pub batch: Pod,
    pub outsider: Pod,
    pub web: Pod,
    pub cache: Pod,
    pub options: MeshOptions,
    /// The link between the nodes, recorded from the start.
    pub link: Option<Capture>,
    /// What the web server's pod sees itself, so that a search that finds nothing on the link is known to be able to find.
    pub inside: Option<Capture>,
    pub mesh: Mesh,
    programs: Vec<Process>,
    servers: Vec<Server>,
    // Last: what is above must go before the world does.
    pub world: World,
}

impl Stage {
    /// Builds the world, starts the programs, then the mesh.
    pub fn set(binaries: &Path) -> Result<(Self, String)> {
        let start = Instant::now();
        let mut options = MeshOptions::in_directory(binaries)?;
        options.certificate_lifetime = Some(CERTIFICATE_LIFETIME);
        let world = World::new("demo")?;
        let one = world.add_node("n1")?;
        let two = world.add_node("n2")?;
        let pod = |node: &mesh_lab::Node, name: &str| node.add_pod(PodSpec::new("shop", name).service_account(name));
        let frontend = pod(&one, "frontend")?;
        let batch = pod(&one, "batch")?;
        let web_local = one.add_pod(PodSpec::new("shop", "web-local").service_account("web"))?;
        let outsider = one.add_pod(PodSpec::new("outside", "outsider"))?;
        let web = pod(&two, "web")?;
        let cache = pod(&two, "cache")?;
        let greeter = pod(&two, "greeter")?;

        let secrets = Secrets { page: secret("page")?, value: secret("value")?, greeting: secret("greeting")? };
        let programs = vec![nginx(&world, &web, &secrets.page)?, nginx(&world, &web_local, &secrets.page)?, redis(&world, &cache)?];
        let banner = format!("220 {}\r\n", secrets.greeting);
        let servers =
            vec![greeter.serve_with(&["--mode", "banner", "--banner", &banner, "--listen", "[::]:2525"])?, greeter.serve("echo", 7000)?];
        let link = world.capture_fabric("link")?;
        let inside = Capture::start(&mesh_lab::Place { netns: web.netns(), cgroup: world.fabric().cgroup }, world.directory(), "web")?;

        for file in ["10-shop.yaml", "20-services.yaml", "30-security.yaml", "40-greeter-clients.yaml"] {
            put(&world, file, file)?;
        }
        world.manifests().put_world(&world)?;
        let mesh = Mesh::start(&world, &options)?;
        let pods: usize = world.nodes().iter().map(|node| node.pods().len()).sum();
        let detail = format!(
            "2 nodes, {pods} pods, nginx, redis, a greeter, the certificate authority and 2 agents, ready after {:.1} s",
            start.elapsed().as_secs_f64()
        );
        let stage = Self {
            secrets,
            frontend,
            batch,
            outsider,
            web,
            cache,
            options,
            link: Some(link),
            inside: Some(inside),
            mesh,
            programs,
            servers,
            world,
        };
        Ok((stage, detail))
    }

    /// Leaves everything running.
    pub fn keep(self) -> Result<()> {
        // Captures end here: on a demo that stays they would fill the machine's memory.
        drop((self.link, self.inside));
        self.mesh.detach();
        self.programs.into_iter().for_each(Process::detach);
        self.servers.into_iter().for_each(|server| server.process.detach());
        self.world.keep()
    }

    /// Removes everything, and looks whether it is gone.
    pub fn remove(self) -> Result<String> {
        let id = self.world.id().to_owned();
        let cgroup = self.frontend.node().cgroup();
        drop((self.link, self.inside, self.mesh, self.programs, self.servers));
        self.world.remove()?;
        let mut left = Vec::new();
        for directory in ["/run/netns", "/run/nodemesh-lab", "/sys/fs/bpf/nodemesh"] {
            let entries =
                fs::read_dir(directory).map(|entries| entries.flatten().map(|entry| entry.path()).collect()).unwrap_or(Vec::new());
            left.extend(entries.into_iter().filter(|path| path.to_string_lossy().contains(&id)));
        }
        left.extend(Some(cgroup).filter(|path| path.exists()));
        if !left.is_empty() {
            bail!("left behind: {left:?}");
        }
        Ok("no process, namespace, cgroup, pin or file of it is left".to_owned())
    }
}

/// Copies a manifest of the demo into the world, under `name`.
pub fn put(world: &World, file: &str, name: &str) -> Result<()> {
    let path = command::root().join("deploy/demo").join(file);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    world.manifests().put_text(name.trim_end_matches(".yaml"), &text)
}

fn secret(kind: &str) -> Result<String> {
    let mut bytes = [0; 12];
    let mut random = fs::File::open("/dev/urandom").context("opening /dev/urandom")?;
    std::io::Read::read_exact(&mut random, &mut bytes).context("reading /dev/urandom")?;
    Ok(format!("{kind}-{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
}

fn directory(world: &World, pod: &Pod) -> Result<std::path::PathBuf> {
    let directory = world.directory().join("files").join(pod.name());
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    Ok(directory)
}

/// Where a web server's access log is.
pub fn access_log(world: &World, pod: &Pod) -> Result<String> {
    let file = directory(world, pod)?.join("access.log");
    Ok(fs::read_to_string(&file).unwrap_or_default())
}

fn nginx(world: &World, pod: &Pod, page: &str) -> Result<Process> {
    let directory = directory(world, pod)?;
    let at = directory.display();
    let configuration = format!(
        "daemon off; user root; worker_processes 1; pid {at}/pid; error_log {at}/error.log;\n\
         events {{ worker_connections 256; }}\n\
         http {{\n\
         client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;\n\
         uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n\
         access_log {at}/access.log;\n\
         server {{ listen 8080; listen [::]:8080; root {at}/pages; }}\n\
         }}\n"
    );
    fs::create_dir_all(directory.join("pages")).context("making the pages")?;
    fs::write(directory.join("pages/index.html"), format!("<h1>{}</h1>\n<p>{page}</p>\n", pod.name())).context("writing the page")?;
    let file = directory.join("nginx.conf");
    fs::write(&file, configuration).with_context(|| format!("writing {}", file.display()))?;
    let mut process = pod.spawn(&["nginx", "-p", &at.to_string(), "-c", &file.to_string_lossy()])?;
    await_port(pod, 8080, &mut process)?;
    Ok(process)
}

fn redis(world: &World, pod: &Pod) -> Result<Process> {
    let directory = directory(world, pod)?;
    let words =
        ["redis-server", "--port", "6379", "--bind", "*", "-::*", "--protected-mode", "no", "--save", "", "--appendonly", "no", "--dir"];
    let mut process = pod.spawn(&[&words[..], &[&directory.to_string_lossy()]].concat())?;
    await_port(pod, 6379, &mut process)?;
    Ok(process)
}

fn await_port(pod: &Pod, port: u16, process: &mut Process) -> Result<()> {
    let listening = mesh_lab::process::wait_until("a server listens", Duration::from_secs(10), || {
        !process.is_running() || pod.in_netns(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()).unwrap_or(false)
    });
    if listening.is_err() || !process.is_running() {
        bail!("no server on port {port} of {}: {}", pod.full_name(), process.log());
    }
    Ok(())
}
