//! The developer's tool: `cargo xtask <command>`. One file a command.

mod bench;
mod build_ebpf;
mod chart;
mod check;
mod cluster;
mod command;
mod conformance;
mod crds;
mod demo;
mod e2e;
mod go;
mod image;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, tests and shows Nodemesh.
///
/// Every command installs what it lacks (Debian packages, cargo tools into ~/.cache/nodemesh) and says what it installs.
/// The commands that touch the kernel need root.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Builds the kernel programs into target/bpf/mesh-ebpf.o.
    BuildEbpf(build_ebpf::Arguments),
    /// Shows the mesh at work: two nodes, a CA, an agent a node, real programs; every claim is checked.
    Demo(demo::Arguments),
    /// Builds all and runs every test; closes with `N passed, N failed`.
    Test(test::Arguments),
    /// Formatting, clippy with warnings denied, documentation, licences and sources of dependencies.
    Check(check::Arguments),
    /// Speed and memory of the mesh, beside no mesh and beside Envoy, as ratios in one run.
    Bench(bench::Arguments),
    /// A real Kubernetes on this machine: several nodes, every program the released one.
    Cluster(cluster::Arguments),
    /// Writes container images of agent and control plane, without a container engine.
    Image(image::Arguments),
    /// Writes the definitions of our kinds into the chart, from the types that describe them.
    Crds(crds::Arguments),
    /// Runs the chart's Helm, which is built if it isn't there: `cargo xtask helm template nodemesh deploy/chart`.
    Helm(chart::Arguments),
    /// The Gateway API's own conformance suite for meshes, on the cluster.
    Conformance(conformance::Arguments),
    /// Removes what crashed runs left on this machine (processes, namespaces, cgroups, pins).
    Sweep,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::BuildEbpf(arguments) => build_ebpf::run(&arguments).map(|_| true),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Cluster(arguments) => cluster::run(&arguments),
        Command::Image(arguments) => image::run(&arguments).map(|()| true),
        Command::Crds(arguments) => crds::run(&arguments),
        Command::Helm(arguments) => chart::run(&arguments),
        Command::Conformance(arguments) => conformance::run(&arguments),
        Command::Sweep => mesh_lab::sweep(mesh_lab::Kept::Leave).map(|removed| {
            println!("{} abandoned worlds removed", removed.len());
            true
        }),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
