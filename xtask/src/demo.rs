//! `cargo xtask demo`: the main job of the mesh, on real programs, each claim checked.

pub mod console;
mod stage;
mod steps;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Subcommand;

use crate::{build_ebpf, command};
use console::Console;

/// Worlds of the demo begin so.
const PREFIX: &str = "demo-";

/// Two nodes of pods, a certificate authority, an agent a node, and what they do.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// Write the steps to this file: {"steps":[{"name","ok","detail"}]}.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leave everything running, and say how to enter a pod and what to try.
    #[arg(long)]
    keep: bool,
    /// Build agent and control plane optimised: takes longer, runs faster.
    #[arg(long)]
    release: bool,
    /// Build nothing: take mesh-agent and mesh-control from this directory, and the kernel object from NODEMESH_BPF_OBJECT or ../bpf.
    #[arg(long, value_name = "DIR", conflicts_with = "release")]
    binaries: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Removes every trace of demos that were kept.
    Down,
    /// Runs a program in a pod of a demo that was kept.
    Enter {
        /// The pod: `shop/frontend`, or `frontend`.
        pod: String,
        /// The program and its arguments; a shell if there is none.
        #[arg(last = true)]
        words: Vec<String>,
    },
}

/// Runs it; false if a step failed.
pub fn run(arguments: &Arguments) -> Result<bool> {
    command::need_root("the demo")?;
    match &arguments.command {
        Some(Command::Down) => down(),
        Some(Command::Enter { pod, words }) => enter(pod, words),
        None => show(arguments),
    }
}

fn show(arguments: &Arguments) -> Result<bool> {
    mesh_lab::packages::ensure(&["iproute2", "util-linux", "tcpdump", "curl", "nginx-light", "redis-server", "redis-tools"])?;
    let binaries = match &arguments.binaries {
        Some(directory) => directory.canonicalize().with_context(|| format!("--binaries {}", directory.display()))?,
        None => build(arguments.release)?,
    };

    let mut console = Console::new();
    let mut stage = None;
    console.step("the stage is set", || {
        let (set, detail) = stage::Stage::set(&binaries)?;
        stage = Some(set);
        Ok(detail)
    });
    for (name, _) in steps::ALL.iter().filter(|_| stage.is_none()) {
        console.skipped(name);
    }
    if let Some(mut stage) = stage {
        console.topology(&stage);
        for (name, step) in steps::ALL {
            console.step(name, || step(&mut stage));
        }
        if arguments.keep {
            let id = stage.world.id().to_owned();
            stage.keep()?;
            console.kept(&id);
        } else {
            console.step("everything is removed again", || stage.remove());
        }
    }
    if let Some(file) = &arguments.json {
        console.write_json(file)?;
    }
    Ok(console.finish())
}

/// Builds what the demo runs; returns the directory of the binaries.
fn build(release: bool) -> Result<PathBuf> {
    let kind = if release { "optimised" } else { "unoptimised: quickest to build, the times below say nothing about speed" };
    println!("building the kernel programs, then mesh-agent, mesh-control and the demo's own peer ({kind})");
    build_ebpf::run(&build_ebpf::Arguments::default())?;
    if release {
        // With the features of its image, for the sake of the times. The peer that this program finds is the one beside it.
        command::run(command::cargo().args(["build", "--release", "-p", "mesh-agent", "-p", "mesh-control"]))?;
        command::build_programs("dev", &["mesh-lab-peer"])?;
    } else {
        command::build_programs("dev", &["mesh-agent", "mesh-control", "mesh-lab-peer"])?;
    }
    Ok(command::target().join(if release { "release" } else { "debug" }))
}

fn down() -> Result<bool> {
    let removed = mesh_lab::sweep(mesh_lab::Kept::Remove(PREFIX))?;
    match removed.as_slice() {
        [] => println!("nothing to remove"),
        names => println!("removed: {}", names.join(", ")),
    }
    Ok(true)
}

fn enter(pod: &str, words: &[String]) -> Result<bool> {
    let worlds = mesh_lab::kept(PREFIX)?;
    let Some(world) = worlds.last() else {
        bail!("no demo is running; `cargo xtask demo --keep` leaves one");
    };
    let name = if pod.contains('/') { pod.to_owned() } else { format!("shop/{pod}") };
    let Some(place) = world.pods.get(&name) else {
        let names: Vec<&str> = world.pods.keys().map(String::as_str).collect();
        bail!("{} has no pod {name}; it has {}", world.id, names.join(", "));
    };
    let words: Vec<&str> = if words.is_empty() { vec!["bash"] } else { words.iter().map(String::as_str).collect() };
    let status = place.interactive(&words).status().with_context(|| format!("running {} in {name}", words.join(" ")))?;
    Ok(status.success())
}
