//! The person's tool: installs the mesh, looks at it, takes it away. One file a command.
//!
//! Exit codes: 0 it is done and all is well, 1 something is wrong (what, was said), 2 the command line was not understood. Of `explain`:
//! 0 allowed, 1 denied or nowhere to go, 2 it cannot be told.

mod agent;
mod certs;
mod chart;
mod check;
mod cluster;
mod config;
mod explain;
mod finding;
mod install;
mod output;
mod rotate;
mod status;
mod uninstall;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use cluster::Target;
use output::{Format, Output};

/// Installs Nodemesh on a Kubernetes cluster and says how it fares.
#[derive(Parser)]
#[command(name = "meshctl", version, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    target: Target,
    /// Form of the results.
    #[arg(long, short = 'o', global = true, value_enum, default_value_t, hide_default_value = true)]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Installs the mesh, or upgrades it, and waits until it is ready. Needs Helm; the chart is within this program.
    Install(install::Arguments),
    /// Takes the mesh away, from every node. Pods go on without it.
    Uninstall(uninstall::Arguments),
    /// Says what is wrong and what mends it: with the cluster, and with the mesh if it is installed.
    Check(check::Arguments),
    /// The mesh at a glance, a line a node.
    Status,
    /// What an agent has in force, for its node or for one pod.
    Config(config::Arguments),
    /// Whether a connection or a request would be allowed, by what, and where it would go: 0 it would, 1 it would not, 2 it cannot be told.
    Explain(explain::Arguments),
    /// Certificates on the nodes.
    Certs(certs::Arguments),
}

fn main() -> ExitCode {
    let Cli { target, output, command } = Cli::parse();
    let output = Output::new(output);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    runtime.block_on(async {
        let done = match &command {
            Command::Install(arguments) => install::run(&target, output, arguments).await,
            Command::Uninstall(arguments) => uninstall::run(&target, arguments).await,
            Command::Check(arguments) => check::run(&target, output, arguments).await,
            Command::Status => status::run(&target, output).await,
            Command::Config(arguments) => config::run(&target, output, arguments).await,
            Command::Certs(arguments) => certs::run(&target, output, arguments).await,
            Command::Explain(arguments) => {
                let answer = explain::run(&target, output, arguments).await.unwrap_or_else(|error| {
                    fail(&error);
                    explain::Answer::Unknown
                });
                return ExitCode::from(answer as u8);
            }
        };
        match done {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => fail(&error),
        }
    })
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}
