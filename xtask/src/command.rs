//! Running other programs: cargo without this cargo's environment, and answers of small tools.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The workspace's directory.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Cargo's target directory, the one this tool was built into.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => root().join(directory),
        None => root().join("target"),
    }
}

/// Where built tools are kept between runs: `$NODEMESH_CACHE`, `$XDG_CACHE_HOME/nodemesh` or `~/.cache/nodemesh`.
pub fn cache() -> PathBuf {
    if let Some(directory) = std::env::var_os("NODEMESH_CACHE").filter(|directory| !directory.is_empty()) {
        return root().join(directory);
    }
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    base.unwrap_or_else(|| PathBuf::from("/root/.cache")).join("nodemesh")
}

/// The cargo that started this tool.
pub fn cargo() -> Command {
    without_cargo_environment(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Builds programs of the workspace by a profile. Without `-p`: features are then those of all default members together, as in `cargo test`.
/// For each other set of packages cargo would build most dependencies once more.
pub fn build_programs(profile: &str, programs: &[&str]) -> Result<()> {
    let mut cargo = cargo();
    cargo.args(["build", "--profile", profile]);
    for program in programs {
        cargo.args(["--bin", program]);
    }
    run(&mut cargo)
}

/// A program in the workspace's directory, freed from the variables that `cargo run` set for this tool:
/// another cargo or rustc must not take them for its own settings.
pub fn without_cargo_environment(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let kept = matches!(&*text, "CARGO_HOME" | "CARGO_TARGET_DIR" | "CARGO_TERM_COLOR" | "CARGO_NET_OFFLINE");
        let ours = text == "CARGO" || text.starts_with("CARGO_") && !text.starts_with("CARGO_REGISTR") && !text.starts_with("CARGO_HTTP");
        if ours && !kept {
            command.env_remove(&name);
        }
    }
    command
}

/// The program of a crate on the registry, in the cache by its version; built if it isn't there.
pub fn cargo_tool(name: &str, version: &str) -> Result<PathBuf> {
    let root = cache().join(format!("{name}-{version}"));
    let program = root.join("bin").join(name);
    if !program.is_file() {
        println!("installing {name} {version} into {} (some minutes, once)", root.display());
        let mut cargo = cargo();
        cargo.args(["install", name, "--version", version, "--locked", "--root"]).arg(&root);
        run(cargo.env("CARGO_TARGET_DIR", target().join("tools")))?;
    }
    Ok(program)
}

/// The command as a person would type it, for messages.
pub fn line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Runs it with this terminal; an error names the command.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("could not start `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", line(command));
    }
    Ok(())
}

/// Runs it and gives its standard output, trimmed; None if it is missing or fails.
pub fn answer(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The program's place on PATH.
pub fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|candidate| candidate.is_file())
}

/// An error that says what to do, unless this process is root.
pub fn need_root(what: &str) -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    let root = status.lines().find_map(|entry| entry.strip_prefix("Uid:")).and_then(|ids| ids.split_whitespace().nth(1)) == Some("0");
    if !root {
        bail!("{what} needs root: it makes network namespaces and cgroups and loads programs into the kernel; run it with sudo");
    }
    Ok(())
}
