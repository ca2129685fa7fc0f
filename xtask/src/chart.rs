//! The chart, read with a real Helm.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::{command, go};

/// For Helm.
#[derive(clap::Args)]
pub struct Arguments {
    /// What Helm is to do.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs Helm in the workspace's directory; false if it failed.
pub fn run(arguments: &Arguments) -> Result<bool> {
    Ok(helm()?.args(&arguments.arguments).status()?.success())
}

/// Helm, with files of its own in the cache: what a developer has configured must not change what is tested.
pub fn helm() -> Result<Command> {
    let directory = go::HELM.provide()?;
    let mut helm = command::without_cargo_environment(directory.join("helm"));
    apart(&mut helm, &directory);
    Ok(helm)
}

/// Lets a program that runs Helm find this one, with files of its own.
pub fn on_path(program: &mut Command) -> Result<()> {
    let directory = go::HELM.provide()?;
    let path = std::env::var("PATH").unwrap_or_default();
    program.env("PATH", format!("{}:{path}", directory.display()));
    apart(program, &directory);
    Ok(())
}

fn apart(program: &mut Command, directory: &Path) {
    for (variable, place) in [("HELM_CACHE_HOME", "cache"), ("HELM_CONFIG_HOME", "config"), ("HELM_DATA_HOME", "data")] {
        program.env(variable, home(directory).join(place));
    }
}

fn home(directory: &Path) -> PathBuf {
    directory.join("home")
}

#[cfg(test)]
mod tests;
