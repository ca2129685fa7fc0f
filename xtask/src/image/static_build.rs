//! Our own programs for images: linked statically with musl where its target is to be had, else with this machine's glibc beside them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::layer::File;
use super::libraries;
use crate::command;

/// Programs that were built.
pub struct Built {
    directory: PathBuf,
}

impl Built {
    /// The files that a program needs in an image.
    pub fn files(&self, path: &str, program: &str) -> Result<Vec<File>> {
        libraries::with_libraries(path, &self.directory.join(program))
    }

    /// A program on this machine.
    pub fn program(&self, program: &str) -> PathBuf {
        self.directory.join(program)
    }
}

/// Builds the packages' programs, optimised.
pub fn build(packages: &[&str]) -> Result<Built> {
    // A directory of its own: a build in the usual one must not wait for this one, nor throw its results away.
    let target_directory = command::target().join("images-build");
    let mut cargo = command::cargo();
    cargo.args(["build", "--release"]).arg("--target-dir").arg(&target_directory);
    // Backtraces keep their functions' names; line tables are three quarters of the size.
    cargo.env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo");
    for package in packages {
        cargo.args(["--package", package]);
    }
    let directory = match musl() {
        Ok(triple) => {
            let wrapper = compiler()?;
            let name = triple.replace('-', "_");
            cargo.args(["--target", &triple]).env(format!("CC_{name}"), &wrapper);
            target_directory.join(&triple).join("release")
        }
        Err(reason) => {
            println!("image: no static programs ({reason:#}); the images carry this machine's C library");
            target_directory.join("release")
        }
    };
    command::run(&mut cargo).with_context(|| format!("building {} for images", packages.join(", ")))?;
    Ok(Built { directory })
}

/// The musl target of this machine's architecture, installed.
fn musl() -> Result<String> {
    let triple = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let sysroot = command::answer(command::without_cargo_environment(rustc()).args(["--print", "sysroot"])).context("no rustc")?;
    if Path::new(&sysroot).join("lib/rustlib").join(&triple).join("lib").is_dir() {
        return Ok(triple);
    }
    println!("image: installing rustup's target {triple}");
    command::run(command::without_cargo_environment("rustup").args(["target", "add", &triple])).context("rustup target add")?;
    Ok(triple)
}

fn rustc() -> std::ffi::OsString {
    std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())
}

/// A C compiler for musl: aws-lc is C and assembly.
fn compiler() -> Result<PathBuf> {
    mesh_lab::packages::install(&["musl-tools"])?;
    command::on_path("musl-gcc").context("musl-gcc is not on PATH (package musl-tools)")
}
