//! The mesh in a world: its certificate authority beside the nodes, and one agent a node. All flags are named here and only here.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::http::{Response, http_get, request};
use crate::node::Node;
use crate::process::{Finished, Process, wait_until};
use crate::world::World;

const CA_PORT: u16 = 15012;
const METRICS_PORT: u16 = 15020;
const ADMIN_PORT: u16 = 15000;
const CONTROL_ADMIN_PORT: u16 = 15014;

/// How to start the mesh.
#[derive(Clone, Debug)]
pub struct MeshOptions {
    /// The directory with `mesh-agent` and `mesh-control`.
    pub binaries: PathBuf,
    /// The kernel object.
    pub bpf_object: PathBuf,
    /// How long certificates live, as agents ask for it; None: their default.
    pub certificate_lifetime: Option<Duration>,
    /// More flags for every agent.
    pub agent_flags: Vec<String>,
    /// More flags for the control plane.
    pub control_flags: Vec<String>,
    /// The log filter of both (a level, or a list of `<target>=<level>`).
    pub log: String,
    /// How long to wait for readiness.
    pub patience: Duration,
}

impl MeshOptions {
    /// Binaries and kernel object of a target directory, of the profile that this program was built with.
    ///
    /// # Errors
    /// Names what isn't built and the command that builds it.
    pub fn found() -> Result<Self> {
        let executable = std::env::current_exe().context("finding this program")?;
        let profile =
            executable.ancestors().skip(1).find(|directory| directory.join("mesh-agent").is_file()).with_context(|| {
                format!("mesh-agent is not built near {}: cargo build -p mesh-agent -p mesh-control", executable.display())
            })?;
        Self::in_directory(profile)
    }

    /// Binaries of this directory (`target/debug`, `target/release`), and the kernel object of `target/bpf` or of
    /// `NODEMESH_BPF_OBJECT`.
    ///
    /// # Errors
    /// Names what isn't built and the command that builds it.
    pub fn in_directory(binaries: &Path) -> Result<Self> {
        for binary in ["mesh-agent", "mesh-control"] {
            if !binaries.join(binary).is_file() {
                bail!("{binary} is not in {}: cargo build -p mesh-agent -p mesh-control", binaries.display());
            }
        }
        let bpf_object = match std::env::var_os("NODEMESH_BPF_OBJECT") {
            Some(path) => PathBuf::from(path),
            None => binaries.parent().unwrap_or(binaries).join("bpf/mesh-ebpf.o"),
        };
        if !bpf_object.is_file() {
            bail!("{} is missing: cargo xtask build-ebpf", bpf_object.display());
        }
        Ok(Self {
            binaries: binaries.to_owned(),
            bpf_object,
            certificate_lifetime: None,
            agent_flags: Vec::new(),
            control_flags: Vec::new(),
            log: "info".to_owned(),
            patience: Duration::from_secs(20),
        })
    }
}

/// The control plane and the agents of a world. Dropping it kills them.
#[derive(Debug)]
pub struct Mesh {
    /// The certificate authority; None after it was stopped.
    pub control: Option<Control>,
    agents: Vec<Agent>,
}

impl Mesh {
    /// Starts the authority and an agent on every node, and waits until all are ready.
    ///
    /// # Errors
    /// One ends or isn't ready in time; carries its log.
    pub fn start(world: &World, options: &MeshOptions) -> Result<Self> {
        let control = Control::start(world, options)?;
        let mut agents = Vec::new();
        for node in world.nodes() {
            agents.push(Agent::start(world, &node, options)?);
        }
        for agent in &mut agents {
            agent.wait_ready(options.patience)?;
        }
        Ok(Self { control: Some(control), agents })
    }

    /// The agent of a node.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn agent(&mut self, node: &str) -> Result<&mut Agent> {
        self.agents.iter_mut().find(|agent| agent.node.name() == node).with_context(|| format!("no agent on node {node}"))
    }

    /// Starts a node's agent anew after it ended or crashed, and waits until it is ready.
    ///
    /// # Errors
    /// It ends, or isn't ready in time; carries its log.
    pub fn restart(&mut self, world: &World, node: &str, options: &MeshOptions) -> Result<()> {
        let agent = self.agent(node)?;
        agent.process.kill();
        *agent = Agent::start(world, &agent.node.clone(), options)?;
        agent.wait_ready(options.patience)
    }

    /// Puts another agent in the place of a node's, which is returned: both may run.
    ///
    /// # Errors
    /// There is none on the node.
    pub fn replace(&mut self, by: Agent) -> Result<Agent> {
        let name = by.node.name().to_owned();
        Ok(std::mem::replace(self.agent(&name)?, by))
    }

    /// All agents, in the order of the nodes.
    pub fn agents(&self) -> &[Agent] {
        &self.agents
    }

    /// Lets everything run on when this guard goes; for worlds that are kept.
    pub fn detach(self) {
        if let Some(control) = self.control {
            control.process.detach();
        }
        for agent in self.agents {
            agent.process.detach();
        }
    }
}

/// The running authority.
#[derive(Debug)]
pub struct Control {
    /// Its process.
    pub process: Process,
    /// The roots it signs under, as it wrote them.
    pub roots: PathBuf,
}

impl Control {
    /// Starts it in the world's control place, and waits until it serves.
    ///
    /// # Errors
    /// It ends or writes no roots in time; carries its log.
    pub fn start(world: &World, options: &MeshOptions) -> Result<Self> {
        let tokens = world.directory().join("tokens");
        for node in world.nodes() {
            write_token(&tokens, node.name())?;
        }
        let roots = world.directory().join("roots.pem");
        let mut words = vec![
            options.binaries.join("mesh-control").display().to_string(),
            format!("--manifests={}", world.manifests().directory().display()),
            format!("--node-tokens={}", tokens.display()),
            format!("--listen=0.0.0.0:{CA_PORT}"),
            format!("--admin=127.0.0.1:{CONTROL_ADMIN_PORT}"),
            format!("--dns-names={}", world.control_address()),
            format!("--bundle-out={}", roots.display()),
        ];
        words.push(format!("--log-level={}", options.log));
        words.extend(options.control_flags.iter().cloned());
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut process = world.control_plane().spawn(&words, &world.log_file("mesh-control"), &[])?;
        let netns = world.control_plane().netns;
        let url = format!("http://127.0.0.1:{CONTROL_ADMIN_PORT}/healthz/ready");
        let waited = wait_until("mesh-control is ready", options.patience, || {
            !process.is_running() || (roots.is_file() && http_get(&netns, &url).is_ok_and(|answer| answer.status == 200))
        });
        if waited.is_err() || !process.is_running() {
            bail!("mesh-control did not become ready; it wrote:\n{}", process.log());
        }
        Ok(Self { process, roots })
    }
}

/// A random token for the node's agent, readable by root only.
fn write_token(directory: &Path, node: &str) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let file = directory.join(node);
    if file.exists() {
        return Ok(());
    }
    let mut bytes = [0; 32];
    let mut random = fs::File::open("/dev/urandom").context("opening /dev/urandom")?;
    std::io::Read::read_exact(&mut random, &mut bytes).context("reading /dev/urandom")?;
    let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut written =
        fs::File::options().create_new(true).write(true).mode(0o600).open(&file).with_context(|| format!("writing {}", file.display()))?;
    std::io::Write::write_all(&mut written, token.as_bytes()).with_context(|| format!("writing {}", file.display()))
}

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    /// Its process.
    pub process: Process,
    node: Node,
}

impl Agent {
    /// Starts it on the node, without waiting for readiness.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(world: &World, node: &Node, options: &MeshOptions) -> Result<Self> {
        Self::start_as(world, node, "agent", options)
    }

    /// As [`Self::start`], in a cgroup of this name, as the container of another pod would be: for an agent beside the first.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start_as(world: &World, node: &Node, name: &str, options: &MeshOptions) -> Result<Self> {
        let instance = format!("{}-{}", world.id(), node.name());
        world.own_instance(&instance)?;
        let mut words = vec![
            options.binaries.join("mesh-agent").display().to_string(),
            format!("--node={}", node.name()),
            format!("--manifests={}", world.manifests().directory().display()),
            format!("--cgroup-root={}", node.cgroup().display()),
            format!("--pods-cgroup={}", node.pods_cgroup().display()),
            format!("--instance={instance}"),
            format!("--run-dir={}", world.directory().join("run").display()),
            format!("--credentials={}", world.directory().join("credentials").display()),
            format!("--ca-address=https://{}:{CA_PORT}", world.control_address()),
            format!("--ca-root={}", world.directory().join("roots.pem").display()),
            format!("--ca-token-file={}", world.directory().join("tokens").join(node.name()).display()),
            format!("--metrics-listen=0.0.0.0:{METRICS_PORT}"),
            format!("--admin-listen=127.0.0.1:{ADMIN_PORT}"),
            format!("--bpf-object={}", options.bpf_object.display()),
            format!("--log-level={}", options.log),
            "--log-format=json".to_owned(),
        ];
        if let Some(lifetime) = options.certificate_lifetime {
            words.push(format!("--certificate-lifetime={}s", lifetime.as_secs()));
        }
        words.extend(options.agent_flags.iter().cloned());
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let process = node.spawn_agent_in(name, &words, &[])?;
        Ok(Self { process, node: node.clone() })
    }

    /// Takes away what agents left on a node, as `mesh-agent cleanup` does.
    ///
    /// # Errors
    /// It can't be started. That it refuses is no error.
    pub fn cleanup(world: &World, node: &Node, options: &MeshOptions) -> Result<Finished> {
        let words = [
            options.binaries.join("mesh-agent").display().to_string(),
            format!("--instance={}-{}", world.id(), node.name()),
            format!("--run-dir={}", world.directory().join("run").display()),
            "cleanup".to_owned(),
        ];
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        node.exec_host(&words, options.patience)
    }

    /// Its node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// The lines of its access log, oldest first.
    pub fn access_log(&self) -> Vec<serde_json::Value> {
        let lines = self.log();
        let lines = lines.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        lines.filter(|line| line.get("direction").is_some() && line.get("outcome").is_some()).collect()
    }

    /// Waits for a line of its access log that bears all these fields.
    ///
    /// # Errors
    /// There is none within `limit`; carries the lines that there are.
    pub fn wait_for_access(&self, fields: &[(&str, &str)], limit: Duration) -> Result<serde_json::Value> {
        let mut lines = Vec::new();
        let mut found = None;
        let is =
            |line: &serde_json::Value| fields.iter().all(|(key, value)| line.get(key).and_then(serde_json::Value::as_str) == Some(value));
        let waited = wait_until("a line of the access log", limit, || {
            lines = self.access_log();
            found = lines.iter().rev().find(|line| is(line)).cloned();
            found.is_some()
        });
        if waited.is_err() {
            let shown: Vec<String> = lines.iter().rev().take(10).map(ToString::to_string).collect();
            bail!("{}: no access log line with {fields:?}; the last are:\n{}", self.node.name(), shown.join("\n"));
        }
        found.context("a line of the access log")
    }

    /// Its log: every agent that ran on the node, in order.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Waits until its readiness page says so.
    ///
    /// # Errors
    /// It ended, or isn't ready in time; carries what it waits for and its log.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        let mut last = String::new();
        let node = self.node.clone();
        let waited = wait_until("the agent is ready", limit, || {
            let answer = metrics_page(&node, "/healthz/ready");
            let ready = matches!(&answer, Ok(answer) if answer.status == 200);
            last = answer.map_or_else(|error| format!("{error:#}"), |answer| answer.body);
            ready || !self.process.is_running()
        });
        if waited.is_err() || !self.process.is_running() {
            bail!("the agent of {} is not ready: {}\n{}", self.node.name(), last.trim(), tail(&self.log()));
        }
        Ok(())
    }

    /// Its metrics.
    ///
    /// # Errors
    /// It doesn't serve them.
    pub fn metrics(&self) -> Result<Metrics> {
        let answer = metrics_page(&self.node, "/metrics")?;
        if answer.status != 200 {
            bail!("metrics of {}: status {}", self.node.name(), answer.status);
        }
        Ok(Metrics { text: answer.body })
    }

    /// A page of its admin endpoint.
    ///
    /// # Errors
    /// It doesn't serve it.
    pub fn admin(&self, path: &str) -> Result<Response> {
        http_get(&self.node.netns(), &format!("http://127.0.0.1:{ADMIN_PORT}{path}"))
    }

    /// Posts to its admin endpoint.
    ///
    /// # Errors
    /// It doesn't serve it.
    pub fn admin_post(&self, path: &str, body: &str) -> Result<Response> {
        request(&self.node.netns(), "POST", &format!("http://127.0.0.1:{ADMIN_PORT}{path}"), body)
    }

    /// Kills it as a crash would: nothing is cleaned up.
    pub fn crash(&mut self) {
        self.process.kill();
    }

    /// Asks it to drain, and waits for its end at most for `limit`. Returns whether it ended by itself.
    ///
    /// # Errors
    /// It is gone already.
    pub fn terminate(&mut self, limit: Duration) -> Result<bool> {
        self.process.signal(Signal::SIGTERM)?;
        Ok(self.process.wait(limit)?.is_some())
    }
}

/// The end of a log, without lines that only repeat the one before.
fn tail(log: &str) -> String {
    const LINES: usize = 12;
    let message =
        |line: &str| serde_json::from_str::<serde_json::Value>(line).ok().and_then(|line| line.get("message").map(ToString::to_string));
    let mut lines: Vec<&str> = log.lines().collect();
    lines.dedup_by(|next, line| message(next).is_some_and(|text| message(line) == Some(text)));
    lines.get(lines.len().saturating_sub(LINES)..).unwrap_or_default().join("\n")
}

fn metrics_page(node: &Node, path: &str) -> Result<Response> {
    http_get(&node.netns(), &format!("http://127.0.0.1:{METRICS_PORT}{path}"))
}

/// A page of metrics in Prometheus' text format.
#[derive(Debug, Clone)]
pub struct Metrics {
    text: String,
}

impl Metrics {
    /// A page in Prometheus' text format.
    pub fn new(text: String) -> Self {
        Metrics { text }
    }

    /// The page.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The samples of a name that bear all these labels: the part in braces, and the value.
    pub fn samples(&self, name: &str, labels: &[(&str, &str)]) -> Vec<(&str, f64)> {
        self.text
            .lines()
            .filter_map(|line| {
                let rest = line.strip_prefix(name)?;
                let (series, value) = match rest.strip_prefix('{') {
                    Some(rest) => rest.rsplit_once("} ")?,
                    None => ("", rest.strip_prefix(' ')?),
                };
                let number = value.split(' ').next()?.parse().ok()?;
                labels.iter().all(|(key, value)| has_label(series, key, value)).then_some((series, number))
            })
            .collect()
    }

    /// The sum of those samples; 0 where there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.samples(name, labels).iter().map(|(_, value)| value).sum()
    }

    /// The buckets of a histogram, summed over its series: upper bound, as it is written, and how many lie below it.
    pub fn buckets(&self, name: &str) -> std::collections::BTreeMap<String, f64> {
        let mut all = std::collections::BTreeMap::new();
        for (series, count) in self.samples(&format!("{name}_bucket"), &[]) {
            let bound = series.split(',').find_map(|label| label.strip_prefix("le=\"")?.strip_suffix('"'));
            if let Some(bound) = bound {
                *all.entry(bound.to_owned()).or_default() += count;
            }
        }
        all
    }
}

fn has_label(series: &str, key: &str, value: &str) -> bool {
    let wanted = format!("{key}=\"{value}\"");
    series.match_indices(&wanted).any(|(at, _)| at == 0 || series.as_bytes().get(at - 1) == Some(&b','))
}

#[cfg(test)]
mod tests {
    use super::Metrics;

    #[test]
    fn sums_the_samples_that_bear_the_labels() {
        let text = "# TYPE a counter\na_total{reporter=\"source\",x=\"1\"} 2\na_total{reporter=\"destination\",x=\"1\"} 40 1700\n\
                    a_total_more 7\na_total{other_reporter=\"source\"} 100\n";
        let metrics = Metrics { text: text.to_owned() };
        assert_eq!(metrics.sum("a_total", &[("reporter", "source")]), 2.0);
        let histogram =
            Metrics { text: "h_bucket{le=\"0.1\",r=\"a\"} 2\nh_bucket{r=\"b\",le=\"0.1\"} 3\nh_bucket{le=\"+Inf\"} 9\n".into() };
        assert_eq!(histogram.buckets("h"), [("+Inf".to_owned(), 9.0), ("0.1".to_owned(), 5.0)].into());
        assert_eq!(metrics.sum("a_total", &[("x", "1")]), 42.0);
        assert_eq!(metrics.sum("a_total_more", &[]), 7.0);
        assert_eq!(metrics.sum("b_total", &[]), 0.0);
    }
}
