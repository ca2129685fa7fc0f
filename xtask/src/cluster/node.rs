//! A node: a network namespace, a mount namespace and a host name, in which containerd, kubelet and kube-proxy run unmodified.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mesh_lab::netns;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::cgroups::Hierarchies;
use super::layout::{NODE_CGROUP, Node, kubeconfig, pki};
use super::node_files;
use super::program::{Launch, Started, network, words};
use super::state::Recorder;
use crate::{command, go};

/// Where Debian's package puts the CNI plug-ins.
const PLUGINS: &str = "/usr/lib/cni";
const BPFFS: &str = "/sys/fs/bpf";
const PATIENCE: Duration = Duration::from_secs(30);

/// Directories that each node has for itself: place on the node, and name below the node's directory.
const OWN: [(&str, &str); 9] = [
    ("/run", "run"),
    ("/var/lib/kubelet", "kubelet"),
    ("/var/lib/containerd", "containerd"),
    ("/var/lib/cni", "cni-state"),
    ("/var/lib/nodemesh", "nodemesh"),
    ("/etc/cni/net.d", "cni"),
    ("/opt/cni/bin", "cni-bin"),
    ("/var/log/pods", "pods"),
    ("/var/log/containers", "containers"),
];

/// The places to mount on; they must be there before any node is made.
pub fn mount_points() -> impl Iterator<Item = &'static Path> {
    OWN.iter().map(|(place, _)| Path::new(*place))
}

/// A node whose containerd runs.
pub struct Prepared {
    node: Node,
    containerd: u32,
}

/// Makes a node; returns when its containerd runs and has the images.
pub fn prepare(node: Node, hierarchies: &Hierarchies, recorder: &Recorder, images: &[PathBuf]) -> Result<Prepared> {
    write_files(node, hierarchies)?;
    let containerd = format!("containerd-{}", node.name());
    let arguments = [format!("--config={}", node.directory().join("containerd.toml").display())];
    let launch =
        Launch { name: containerd, namespaces: Vec::new(), cgroup: hierarchies.system(node), words: words("containerd", arguments) };
    // The thread that makes the namespaces is the parent of what begins in them, and ends with this call.
    let mut started = netns::within(&netns::path(&node.namespace()), || {
        enter(node, hierarchies)?;
        launch.start(recorder)
    })??;
    await_answer(node, &mut started)?;
    for image in images {
        load(node, started.pid(), image)?;
    }
    Ok(Prepared { node, containerd: started.pid() })
}

/// Starts kubelet and kube-proxy, which want an API server.
pub fn join(prepared: &Prepared, hierarchies: &Hierarchies, recorder: &Recorder) -> Result<()> {
    let node = prepared.node;
    let config = |name: &str| format!("--config={}", node.directory().join(name).display());
    let kubelet = [
        config("kubelet.yaml"),
        format!("--kubeconfig={}", kubeconfig(&node.name()).display()),
        format!("--node-ip={},{}", node.ipv4(), node.ipv6()),
        format!("--hostname-override={}", node.name()),
        "--v=2".to_owned(),
    ];
    let program = |name: &str| go::KUBERNETES.program(name);
    for (name, words) in
        [("kubelet", words(program("kubelet"), kubelet)), ("kube-proxy", words(program("kube-proxy"), [config("kube-proxy.yaml")]))]
    {
        let name = format!("{name}-{}", node.name());
        let namespaces = namespaces(node, prepared.containerd);
        Launch { name, namespaces, cgroup: hierarchies.system(node), words }.start(recorder)?;
    }
    Ok(())
}

/// Options of nsenter(1) that lead onto a node, by one of its processes.
pub fn namespaces(node: Node, process: u32) -> Vec<OsString> {
    let of = |kind: &str, name: &str| OsString::from(format!("--{kind}=/proc/{process}/ns/{name}"));
    vec![network(&node.namespace()), of("mount", "mnt"), of("uts", "uts")]
}

fn write_files(node: Node, hierarchies: &Hierarchies) -> Result<()> {
    let directory = node.directory();
    for (_, name) in OWN {
        let own = directory.join(name);
        fs::create_dir_all(&own).with_context(|| format!("making {}", own.display()))?;
    }
    for (name, text) in node_files::all(node, &pki(), hierarchies.is_legacy())? {
        let file = directory.join(name);
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        }
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    }
    // The node's own folder of plug-ins, so that one installed on a node is on that node only.
    for plugin in fs::read_dir(PLUGINS).with_context(|| format!("reading {PLUGINS} (package containernetworking-plugins)"))? {
        let plugin = plugin.with_context(|| format!("reading {PLUGINS}"))?;
        let link = directory.join("cni-bin").join(plugin.file_name());
        symlink(plugin.path(), &link).with_context(|| format!("linking {}", link.display()))?;
    }
    // What programs expect below /run.
    let run = directory.join("run");
    for name in ["lock", "netns"] {
        let below = run.join(name);
        fs::create_dir_all(&below).with_context(|| format!("making {}", below.display()))?;
    }
    let cgroup = run.join(Path::new(NODE_CGROUP).strip_prefix("/run").unwrap_or(Path::new("cgroup")));
    fs::create_dir_all(&cgroup).with_context(|| format!("making {}", cgroup.display()))
}

/// Gives the calling thread, and what it starts, a mount namespace and a host name of its own. Nothing of it reaches the machine's own.
fn enter(node: Node, hierarchies: &Hierarchies) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS).context("a mount namespace")?;
    propagate("/", MsFlags::MS_PRIVATE)?;
    for (place, name) in OWN {
        bind(&node.directory().join(name), Path::new(place))?;
    }
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), Some("mode=700")).with_context(|| format!("mounting bpf at {BPFFS}"))?;
    bind(&hierarchies.node(node), Path::new(NODE_CGROUP))?;
    // Pods that ask for it see mounts come and go, as on a machine that systemd started.
    propagate("/", MsFlags::MS_SHARED)?;
    rustix::system::sethostname(node.name().as_bytes()).context("the host name")
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("mounting {} at {}", from.display(), to.display()))
}

fn propagate(place: &str, kind: MsFlags) -> Result<()> {
    mount(None::<&str>, place, None::<&str>, kind | MsFlags::MS_REC, None::<&str>).with_context(|| format!("propagation of {place}"))
}

fn await_answer(node: Node, containerd: &mut Started) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        containerd.check()?;
        let mut ctr = on(node, containerd.pid(), "ctr");
        if command::answer(ctr.args(["--connect-timeout", "1s", "version"])).is_some() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("containerd does not answer after {} s", PATIENCE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Gives a running node the images of an archive; `process` is one of the node's.
///
/// # Errors
/// The node doesn't run, or containerd refuses the archive.
pub fn load(node: Node, process: u32, archive: &Path) -> Result<()> {
    // The archive comes as standard input: its path may be hidden on the node, which has some directories of its own.
    let input = fs::File::open(archive).with_context(|| format!("opening {}", archive.display()))?;
    let output = on(node, process, "ctr")
        .args(["--namespace", "k8s.io", "images", "import", "-"])
        .stdin(input)
        .output()
        .context("starting ctr (package containerd)")?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        bail!("containerd of {} does not take {}: {reason}", node.name(), archive.display());
    }
    Ok(())
}

/// A program on a node.
pub fn on(node: Node, process: u32, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.args(namespaces(node, process)).arg("--").arg(program);
    command
}
