//! The node agent's program.

use std::process::ExitCode;

use clap::Parser;
use mesh_agent::agent::{self, cleanup};
use mesh_agent::config::{Cli, Command, Config};
use mesh_agent::ops::log;

fn main() -> ExitCode {
    let Cli { command, config } = Cli::parse();
    match command {
        None => run(config),
        Some(Command::Preflight) => preflight(&config),
        Some(Command::Cleanup) => cleanup(&config),
    }
}

fn run(config: Config) -> ExitCode {
    let log = match log::init(config.log_format, &config.log_level) {
        Ok(log) => log,
        Err(error) => return fail(&error),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    match tokio::task::LocalSet::new().block_on(&runtime, agent::run(config, log)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the agent ends");
            fail(&error)
        }
    }
}

fn preflight(config: &Config) -> ExitCode {
    let lacks = agent::lacks(config);
    if lacks.is_empty() {
        println!("this node has all that the agent needs");
        return ExitCode::SUCCESS;
    }
    for lack in lacks {
        println!("{lack}");
    }
    ExitCode::FAILURE
}

fn cleanup(config: &Config) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    match runtime.block_on(cleanup::run(config)) {
        Ok(done) => {
            println!("{done}");
            if done.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => fail(&error),
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("mesh-agent: {error}");
    ExitCode::FAILURE
}
