//! The certificate authority as a program.

use std::process::ExitCode;

use clap::Parser;
use mesh_control::config::Flags;
use mesh_control::{Config, Control, log};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let config = match Config::from_flags(Flags::parse()) {
        Ok(config) => config,
        Err(errors) => {
            for error in errors {
                eprintln!("mesh-control: {error}");
            }
            return ExitCode::from(2);
        }
    };
    match start(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh-control: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(config: Config) -> anyhow::Result<()> {
    log::init(config.log_format, &config.log_level).map_err(anyhow::Error::msg)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut stop = std::pin::pin!(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        });
        // A start may wait for an API server, longer than a pod's end may take.
        let control = tokio::select! {
            started = Control::start(config) => started?,
            () = &mut stop => return Ok(()),
        };
        Ok(control.run(stop).await?)
    })
}
