//! `cargo xtask cluster`: a real Kubernetes on this machine, nodes and all, from nothing.
//!
//! Every program is the released one. A node is a network namespace, a mount namespace and a host name; the control plane and the
//! bridge that joins the nodes have a network namespace of their own, which has no way out: nothing that runs in the cluster reaches
//! the world, and nothing of the world reaches it. Whatever exists because of the cluster is written down before it is made
//! ([`state`]), so that `down` finds it after any crash.

mod addons;
mod certificates;
mod cgroups;
mod client;
mod control_plane;
mod layout;
mod lifecycle;
mod network;
mod node;
mod node_files;
mod program;
mod state;
mod status;

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Subcommand;

use crate::command;
use crate::image::archive;
use layout::Node;

pub use client::{apply, apply_in, ask, feed, inside, kubectl, talk};
pub use layout::NODE_CGROUP;
pub use node_files::PAUSE;

/// A real Kubernetes on this machine.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes the cluster and waits until it is ready. Installs and builds what it lacks (some ten minutes the first time, on two cores).
    Up {
        /// How many nodes.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=i64::from(layout::MAX_NODES)))]
        nodes: u8,
    },
    /// Ends and removes everything that the cluster is and left behind.
    Down,
    /// Shows programs, nodes, pods, and where things are.
    Status,
    /// Runs the cluster's kubectl.
    Kubectl {
        /// Its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Gives the nodes images from archives, as `docker save` or `cargo xtask image` write them.
    Load {
        /// The archives.
        #[arg(required = true, value_name = "IMAGE.tar")]
        archives: Vec<PathBuf>,
    },
    /// Runs a program where it reaches the API server and the pods, with KUBECONFIG set.
    Exec {
        /// The program and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Runs a program on a node: in its network, its mounts, its host name.
    Enter {
        /// The node: n1, n2, …
        node: String,
        /// The program and its arguments; a shell if there is none.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Installs and builds what `up` needs, and starts nothing.
    Prepare,
}

/// Runs the command; false if it says that the cluster is not well.
pub fn run(arguments: &Arguments) -> Result<bool> {
    command::need_root("the cluster")?;
    match &arguments.command {
        Command::Up { nodes } => up(*nodes)?,
        Command::Down => lifecycle::down()?,
        Command::Status => return status::print(),
        Command::Kubectl { words } => become_program(client::kubectl().args(words))?,
        Command::Load { archives } => {
            for archive in archives {
                load(archive)?;
            }
        }
        Command::Exec { words } => become_words(client::inside, words)?,
        Command::Enter { node, words } => enter(node, words)?,
        Command::Prepare => drop(lifecycle::prepare()?),
    }
    Ok(true)
}

/// Makes the cluster unless it runs, and says where it is.
pub fn up(nodes: u8) -> Result<()> {
    lifecycle::up(nodes)?;
    println!("{}", status::places(&lifecycle::running()?));
    Ok(())
}

/// Makes the cluster of two nodes unless one runs, of however many.
pub fn up_unless_running() -> Result<()> {
    match lifecycle::running() {
        Ok(_) => Ok(()),
        Err(_) => up(2),
    }
}

/// A program on a node: in its network, its mounts, its host name.
pub fn on(name: &str, program: &str) -> Result<std::process::Command> {
    let state = lifecycle::running()?;
    let node = named(&state, name)?;
    Ok(node::on(node, containerd(&state, node)?, program))
}

/// Kills the process of a node's agent, as its crash would; returns which it was.
pub fn kill_agent(name: &str) -> Result<u32> {
    let pid = agent(name)?;
    let process = rustix::process::Pid::from_raw(i32::try_from(pid)?).context("a process")?;
    rustix::process::kill_process(process, rustix::process::Signal::KILL).context("killing an agent")?;
    Ok(pid)
}

/// Stops the API server as it is, so that nobody is answered and no connection ends; or lets it go on.
pub fn pause_api_server(pause: bool) -> Result<()> {
    let state = lifecycle::running()?;
    let program = state.program("kube-apiserver").context("the cluster has no API server")?;
    let process = rustix::process::Pid::from_raw(program.process.pid().cast_signed()).context("a process")?;
    let signal = if pause { rustix::process::Signal::STOP } else { rustix::process::Signal::CONT };
    rustix::process::kill_process(process, signal).context("a signal to the API server")
}

/// Resident memory of a node's agent, bytes.
pub fn agent_memory(name: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent(name)?)).context("reading what an agent takes")?;
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kilobytes.context("a process without resident memory")? * 1024)
}

/// The process of a node's agent; of several, as one hands over to another, any.
fn agent(name: &str) -> Result<u32> {
    let state = lifecycle::running()?;
    let processes = cgroups::processes(&state.hierarchies.node(named(&state, name)?));
    let agent = processes
        .into_iter()
        .find(|&pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "mesh-agent"));
    agent.with_context(|| format!("no agent runs on {name}"))
}

fn named(state: &state::State, name: &str) -> Result<Node> {
    let names = || Node::all(state.nodes).map(Node::name).collect::<Vec<_>>().join(", ");
    Node::all(state.nodes).find(|node| node.name() == name).with_context(|| format!("there is no node {name}; there are {}", names()))
}

/// Gives every node the images of an archive, and serves them to whoever pulls.
pub fn load(archive: &Path) -> Result<()> {
    let state = lifecycle::running()?;
    for node in Node::all(state.nodes) {
        node::load(node, containerd(&state, node)?, archive)?;
    }
    let names = archive::publish(archive, &layout::registry())?;
    println!("loaded {} on {} nodes", names.join(", "), state.nodes);
    Ok(())
}

fn containerd(state: &state::State, node: Node) -> Result<u32> {
    let name = format!("containerd-{}", node.name());
    match state.program(&name) {
        Some(program) if program.process.alive() => Ok(program.process.pid()),
        _ => bail!("{name} does not run: `cargo xtask cluster up` makes the cluster anew"),
    }
}

fn enter(name: &str, words: &[String]) -> Result<()> {
    let state = lifecycle::running()?;
    let node = named(&state, name)?;
    let process = containerd(&state, node)?;
    let shell = ["bash".to_owned()];
    become_words(|program| node::on(node, process, &program), if words.is_empty() { &shell } else { words })
}

fn become_words(place: impl FnOnce(String) -> std::process::Command, words: &[String]) -> Result<()> {
    let (program, arguments) = words.split_first().context("a program to run")?;
    become_program(place(program.clone()).args(arguments))
}

/// The program takes this one's place, with its terminal and its exit code.
fn become_program(program: &mut std::process::Command) -> Result<()> {
    lifecycle::running()?;
    Err(program.exec()).with_context(|| format!("starting `{}`", command::line(program)))
}
