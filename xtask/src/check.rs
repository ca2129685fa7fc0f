//! `cargo xtask check`: everything that a machine can judge without running the mesh.

use std::process::Command;

use anyhow::{Context, Result, anyhow};

use crate::{build_ebpf, command};

const DENY_VERSION: &str = "0.20.2";
/// Packages of user space: the kernel programs have a panic handler of their own and are judged apart.
const USER_SPACE: [&str; 3] = ["--workspace", "--exclude", "mesh-ebpf"];

/// Says what could not be looked at, if anything; an error is a check that failed.
type Check = fn() -> Result<String>;

/// Which checks to run. Without a flag: all of them.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only these, by name.
    #[arg(value_parser = ["fmt", "clippy", "ebpf", "crds", "doc", "deny"])]
    only: Vec<String>,
}

/// Runs them all, also after one failed; false if one did.
pub fn run(arguments: &Arguments) -> Result<bool> {
    let checks: [(&str, &str, Check); 6] = [
        ("fmt", "formatting", formatting),
        ("clippy", "clippy, user space", clippy),
        ("ebpf", "clippy and build, kernel programs", kernel_programs),
        ("crds", "the chart's definitions of our kinds", definitions),
        ("doc", "documentation", documentation),
        ("deny", "licences, sources and advisories of dependencies", dependencies),
    ];
    let mut results = Vec::new();
    for (name, what, check) in checks {
        if arguments.only.is_empty() || arguments.only.iter().any(|wanted| wanted == name) {
            println!("\n== {what}");
            let result = check();
            if let Err(error) = &result {
                println!("{error:#}");
            }
            results.push((what, result));
        }
    }
    println!();
    for (what, result) in &results {
        match result {
            Ok(note) if note.is_empty() => println!("ok    {what}"),
            Ok(note) => println!("ok    {what} ({note})"),
            Err(error) => println!("FAIL  {what}: {}", error.to_string().lines().next().unwrap_or_default()),
        }
    }
    Ok(results.iter().all(|(_, result)| result.is_ok()))
}

fn component(name: &str, probe: &[&str]) -> Result<()> {
    if command::answer(command::cargo().args(probe)).is_some() {
        return Ok(());
    }
    println!("installing rustup component {name}");
    command::run(Command::new("rustup").args(["component", "add", name])).with_context(|| format!("cargo has no {name}"))
}

fn formatting() -> Result<String> {
    component("rustfmt", &["fmt", "--version"])?;
    command::run(command::cargo().args(["fmt", "--all", "--check"])).map_err(|_| anyhow!("run `cargo fmt --all`"))?;
    Ok(String::new())
}

fn clippy() -> Result<String> {
    component("clippy", &["clippy", "--version"])?;
    command::run(command::cargo().arg("clippy").args(USER_SPACE).args(["--all-targets", "--", "-D", "warnings"]))?;
    Ok(String::new())
}

/// Debian's compiler for BPF has no clippy, and the stable one has no core for BPF. But clippy doesn't link: the stable one reads the
/// programs as if for this machine, with BPF's panic strategy.
fn kernel_programs() -> Result<String> {
    component("clippy", &["clippy", "--version"])?;
    let flags = ["-Cpanic=abort".to_owned(), format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH)];
    let mut cargo = command::cargo();
    cargo
        .args(["clippy", "--package", "mesh-ebpf", "--target-dir"])
        .arg(command::target().join("bpf-clippy"))
        .args(["--", "-D", "warnings"]);
    command::run(cargo.env("RUSTC_BOOTSTRAP", "1").env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}")))?;
    build_ebpf::run(&build_ebpf::Arguments::default())?;
    Ok(String::new())
}

fn definitions() -> Result<String> {
    crate::crds::check()?;
    Ok(String::new())
}

fn documentation() -> Result<String> {
    command::run(command::cargo().arg("doc").args(USER_SPACE).args(["--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    Ok(String::new())
}

fn dependencies() -> Result<String> {
    let deny = command::cargo_tool("cargo-deny", DENY_VERSION)?;
    let check = |what: &[&str]| {
        let mut command = command::without_cargo_environment(&deny);
        command.args(["--workspace", "check", "--hide-inclusion-graph"]).args(what);
        command
    };
    command::run(&mut check(&["bans", "licenses", "sources"]))?;
    if advisories_reachable() {
        command::run(&mut check(&["advisories"]))?;
        return Ok(String::new());
    }
    println!("advisories were NOT checked: their database (github.com/rustsec/advisory-db) can't be reached from here");
    Ok("advisories not checked: their database can't be reached".to_owned())
}

fn advisories_reachable() -> bool {
    let mut git = Command::new("git");
    git.args(["ls-remote", "--exit-code", "https://github.com/rustsec/advisory-db", "HEAD"]);
    let limit = ["-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=10"];
    let mut bounded = Command::new("timeout");
    bounded.args(["20", "git"]).args(limit).args(git.get_args()).env("GIT_TERMINAL_PROMPT", "0");
    command::answer(&mut bounded).is_some()
}
