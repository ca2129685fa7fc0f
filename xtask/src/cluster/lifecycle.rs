//! Making the cluster and removing it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};

use super::cgroups::Hierarchies;
use super::layout::{self, CONTROL_NAMESPACE, Node};
use super::state::{Lock, Recorder, State, missing_directories};
use super::{addons, certificates, control_plane, network, node};
use crate::image::catalog;
use crate::{command, go};

/// Debian packages that the cluster's programs come from.
const PACKAGES: [&str; 8] =
    ["etcd-server", "containerd", "runc", "containernetworking-plugins", "nftables", "iptables", "iproute2", "util-linux"];

/// What a cluster is made of besides the programs in the cache.
pub struct Parts {
    images: Vec<PathBuf>,
    registry: PathBuf,
}

/// Installs and builds what is missing.
pub fn prepare() -> Result<Parts> {
    mesh_lab::packages::install(&PACKAGES)?;
    go::KUBERNETES.provide()?;
    let directory = command::cache().join("images");
    let programs = catalog::programs()?;
    let images = vec![catalog::pause(&programs, &directory)?.file, catalog::coredns(&directory)?.file];
    Ok(Parts { images, registry: programs.program("registry") })
}

/// Makes the cluster, unless it runs already. What a start that was broken off left behind is removed first.
pub fn up(nodes: u8) -> Result<()> {
    let start = Instant::now();
    let lock = Lock::acquire()?;
    if let Some(state) = State::load()? {
        if state.runs() && state.nodes == nodes {
            println!("the cluster is running, with {nodes} nodes");
            return Ok(());
        }
        if state.runs() {
            bail!("a cluster with {} nodes is running: `cargo xtask cluster down` first", state.nodes);
        }
        match state.dead() {
            Some(program) if state.complete => println!("{} of the last cluster has ended: making it anew", program.name),
            _ => println!("removing what a start that was broken off left behind"),
        }
        remove(&state, &lock)?;
        drop(lock);
        return up(nodes);
    }
    let parts = prepare()?;
    let prepared = start.elapsed();
    make(nodes, &parts).with_context(|| {
        format!(
            "the cluster did not start; its logs are in {}, `cargo xtask cluster down` removes what there is of it",
            layout::root().join("log").display()
        )
    })?;
    println!(
        "the cluster runs: {nodes} nodes after {:.1} s ({:.1} s of them to check what it is made of)",
        start.elapsed().as_secs_f64(),
        prepared.as_secs_f64()
    );
    Ok(())
}

fn make(nodes: u8, parts: &Parts) -> Result<()> {
    let hierarchies = Hierarchies::detect()?;
    if let Some(group) = hierarchies.all(nodes).iter().find(|group| group.exists()) {
        bail!("cgroup {} exists and is not this cluster's: remove it (rmdir) or whoever made it", group.display());
    }
    let state = State::new(nodes, hierarchies.clone(), missing_directories(node::mount_points()));
    if let Some(name) = state.namespaces().iter().find(|name| mesh_lab::netns::path(name).exists()) {
        bail!("network namespace {name} exists and is not this cluster's: remove it (ip netns del {name}) or whoever made it");
    }
    let recorder = Recorder::new(state)?;
    for place in node::mount_points() {
        fs::create_dir_all(place).with_context(|| format!("making {}", place.display()))?;
    }
    for directory in [layout::root().join("log"), layout::registry(), layout::root().join("bin")] {
        fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    }
    // It runs on when the place that it was built in is cleaned.
    let registry = layout::root().join("bin/registry");
    fs::copy(&parts.registry, &registry).with_context(|| format!("copying {}", parts.registry.display()))?;
    let kubectl = layout::kubectl();
    symlink(go::KUBERNETES.program("kubectl"), &kubectl).with_context(|| format!("linking {}", kubectl.display()))?;
    hierarchies.create(nodes)?;
    certificates::create(nodes)?;
    network::create(nodes)?;

    let prepared = std::thread::scope(|scope| {
        let threads: Vec<_> = Node::all(nodes)
            .map(|node| {
                let (hierarchies, recorder) = (&hierarchies, &recorder);
                scope.spawn(move || node::prepare(node, hierarchies, recorder, &parts.images).with_context(|| node.name()))
            })
            .collect();
        control_plane::start(&hierarchies, &recorder, &registry)?;
        addons::create(nodes)?;
        threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("the thread of a node panicked"))?).collect::<Result<Vec<_>>>()
    })?;
    for prepared in &prepared {
        node::join(prepared, &hierarchies, &recorder)?;
    }
    addons::await_ready(nodes, &recorder)?;
    recorder.change(|state| state.complete = true)
}

/// Removes the cluster, whatever state it is in.
pub fn down() -> Result<()> {
    if !layout::root().exists() {
        println!("there is no cluster");
        return Ok(());
    }
    let lock = Lock::acquire()?;
    match State::load()? {
        Some(state) => remove(&state, &lock)?,
        // A start that ended before it had made anything outside of this directory.
        None => lock.remove_directory()?,
    }
    println!("the cluster is removed");
    Ok(())
}

fn remove(state: &State, lock: &Lock) -> Result<()> {
    state.tear_down()?;
    lock.remove_directory()
}

/// The cluster that runs.
///
/// # Errors
/// Says how to start one.
pub fn running() -> Result<State> {
    let Some(state) = State::load()? else { bail!("there is no cluster: `cargo xtask cluster up` makes one") };
    if !mesh_lab::netns::path(CONTROL_NAMESPACE).exists() {
        bail!("the cluster's namespaces are gone (was the machine restarted?): `cargo xtask cluster up` makes it anew");
    }
    Ok(state)
}
