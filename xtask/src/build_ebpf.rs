//! `cargo xtask build-ebpf`: the kernel programs, by rustup's nightly or by Debian's compiler, whichever is there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use object::{Object as _, ObjectSection as _};
use sha2::{Digest as _, Sha256};

use crate::command;

const BPF_LINKER_VERSION: &str = "0.13.0";
const DEBIAN_PACKAGES: [&str; 7] =
    ["rustc-web", "cargo-web", "rust-web-src", "libstd-rust-web-dev-bpf", "llvm-22-dev", "libpolly-22-dev", "libzstd-dev"];
const DEBIAN_LLVM: &str = "/usr/lib/llvm-22/bin";

/// How to build the kernel programs.
#[derive(clap::Args, Default)]
pub struct Arguments {
    /// Toolchain: rustup's nightly with rust-src and bpf-linker, or Debian 12's packages; auto takes the one that is there.
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    pub route: Choice,
    /// The rustup toolchain of route `rustup`.
    #[arg(long, default_value = "nightly")]
    pub nightly: String,
    /// Build even if the sources are those of the last build.
    #[arg(long)]
    pub force: bool,
}

/// What was asked for.
#[derive(Clone, Copy, ValueEnum, Default, PartialEq)]
pub enum Choice {
    /// Rustup's if it is complete, else Debian's, else rustup's with its parts installed.
    #[default]
    Auto,
    /// rustup nightly, `-Z build-std=core`.
    Rustup,
    /// Debian 12's rustc-web with its prebuilt core.
    Debian,
}

/// A toolchain that is complete and can build.
pub enum Route {
    /// rustup's toolchain of this name, and the linker.
    Rustup {
        /// Its name.
        toolchain: String,
        /// bpf-linker.
        linker: PathBuf,
    },
    /// Debian's, and the linker.
    Debian {
        /// bpf-linker.
        linker: PathBuf,
    },
}

/// Where the object lies after a build.
pub fn object_path() -> PathBuf {
    command::target().join("bpf/mesh-ebpf.o")
}

/// Builds where needed and returns the object's path.
pub fn run(arguments: &Arguments) -> Result<PathBuf> {
    let object = object_path();
    let stamp_file = object.with_extension("stamp");
    let route = prepare(arguments.route, if arguments.nightly.is_empty() { "nightly" } else { &arguments.nightly })?;
    let stamp = stamp(&route)?;
    println!("build-ebpf: route {route}");
    if !arguments.force && object.is_file() && fs::read_to_string(&stamp_file).is_ok_and(|last| last == stamp) {
        println!("build-ebpf: unchanged, {}", describe(&object)?);
        return Ok(object);
    }
    let target = target_triple()?;
    let directory = command::target().join("bpf-build");
    let mut cargo = route.cargo("build", &[])?;
    cargo.args(["--release", "--package", "mesh-ebpf", "--target", target, "--target-dir"]).arg(&directory);
    command::run(&mut cargo).context("the kernel programs did not build")?;
    let built = directory.join(target).join("release/mesh-ebpf");
    let parent = object.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    // A reader must never see half an object, nor a stamp that belongs to another one.
    let _ = fs::remove_file(&stamp_file);
    let fresh = object.with_extension("new");
    fs::copy(&built, &fresh).with_context(|| format!("copying {}", built.display()))?;
    fs::rename(&fresh, &object).with_context(|| format!("replacing {}", object.display()))?;
    let summary = describe(&object)?;
    fs::write(&stamp_file, stamp).with_context(|| format!("writing {}", stamp_file.display()))?;
    println!("build-ebpf: built {summary}");
    Ok(object)
}

/// Picks the toolchain and installs what it lacks.
pub fn prepare(choice: Choice, nightly: &str) -> Result<Route> {
    match choice {
        Choice::Rustup => rustup(nightly),
        Choice::Debian => debian(),
        Choice::Auto => {
            if let (Ok(()), Some(linker)) = (rustup_complete(nightly), command::on_path("bpf-linker")) {
                return Ok(Route::Rustup { toolchain: nightly.to_owned(), linker });
            }
            if command::on_path("apt-get").is_some() {
                return debian();
            }
            rustup(nightly).context("no toolchain for the kernel programs: neither rustup's nightly nor Debian's packages (no apt-get)")
        }
    }
}

fn rustup_complete(toolchain: &str) -> Result<()> {
    let sysroot = command::answer(command::without_cargo_environment("rustup").args(["run", toolchain, "rustc", "--print", "sysroot"]))
        .ok_or_else(|| anyhow!("rustup has no toolchain `{toolchain}`"))?;
    if !Path::new(&sysroot).join("lib/rustlib/src/rust/library/core").is_dir() {
        bail!("rustup's toolchain `{toolchain}` lacks the component rust-src");
    }
    Ok(())
}

fn rustup(toolchain: &str) -> Result<Route> {
    if command::on_path("rustup").is_none() {
        bail!("route rustup: rustup is not on PATH (https://rustup.rs), or use --route debian on Debian 12");
    }
    if let Err(missing) = rustup_complete(toolchain) {
        println!("build-ebpf: {missing}; installing it with rustup");
        command::run(command::without_cargo_environment("rustup").args([
            "toolchain",
            "install",
            toolchain,
            "--profile",
            "minimal",
            "--component",
            "rust-src",
        ]))
        .context("route rustup")?;
        rustup_complete(toolchain).context("route rustup")?;
    }
    let linker = match command::on_path("bpf-linker") {
        Some(linker) => linker,
        None => install_linker(&format!("bpf-linker-{BPF_LINKER_VERSION}"), &[], None).context("route rustup")?,
    };
    Ok(Route::Rustup { toolchain: toolchain.to_owned(), linker })
}

fn debian() -> Result<Route> {
    mesh_lab::packages::install(&DEBIAN_PACKAGES).context("route debian: the kernel programs' compiler")?;
    let linker = install_linker(
        &format!("bpf-linker-{BPF_LINKER_VERSION}-llvm22"),
        &["--no-default-features", "--features", "llvm-22"],
        Some(DEBIAN_LLVM),
    )
    .context("route debian")?;
    Ok(Route::Debian { linker })
}

fn install_linker(name: &str, options: &[&str], llvm: Option<&str>) -> Result<PathBuf> {
    let root = command::cache().join(name);
    let linker = root.join("bin/bpf-linker");
    if linker.is_file() {
        return Ok(linker);
    }
    println!("build-ebpf: installing bpf-linker {BPF_LINKER_VERSION} into {} (about a minute)", root.display());
    let mut cargo = command::cargo();
    cargo.args(["install", "bpf-linker", "--version", BPF_LINKER_VERSION, "--locked"]).args(options).arg("--root").arg(&root);
    if let Some(llvm) = llvm {
        cargo.env("PATH", path_with(llvm)?);
    }
    // Its own directory: the workspace's may be locked by the cargo that is building this.
    cargo.env("CARGO_TARGET_DIR", command::target().join("tools"));
    command::run(&mut cargo)?;
    Ok(linker)
}

fn path_with(first: &str) -> Result<std::ffi::OsString> {
    let rest = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths(std::iter::once(PathBuf::from(first)).chain(std::env::split_paths(&rest))).context("PATH")
}

/// Little or big endian as this machine, since the programs run on it.
fn target_triple() -> Result<&'static str> {
    if cfg!(target_endian = "little") { Ok("bpfel-unknown-none") } else { bail!("big-endian machines are not supported") }
}

impl Route {
    /// Cargo of this route with the given verb, more rustc flags, and what the target needs.
    pub fn cargo(&self, verb: &str, more_flags: &[&str]) -> Result<Command> {
        let (mut cargo, linker) = match self {
            Self::Rustup { toolchain, linker } => {
                let mut cargo = command::without_cargo_environment("rustup");
                cargo.args(["run", toolchain, "cargo", verb, "-Z", "build-std=core"]).env_remove("RUSTC").env_remove("RUSTUP_TOOLCHAIN");
                (cargo, linker)
            }
            Self::Debian { linker } => {
                let mut cargo = command::without_cargo_environment("/usr/bin/cargo");
                cargo.arg(verb).env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1").env("PATH", path_with(DEBIAN_LLVM)?);
                (cargo, linker)
            }
        };
        let mut flags = vec![
            "-Cdebuginfo=2".to_owned(),
            "-Clink-arg=--btf".to_owned(),
            format!("-Clinker={}", linker.display()),
            format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
        ];
        flags.extend(more_flags.iter().map(|&flag| flag.to_owned()));
        cargo.env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
        Ok(cargo)
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rustup { toolchain, linker } => write!(f, "rustup ({toolchain}, {})", linker.display()),
            Self::Debian { linker } => write!(f, "debian (/usr/bin/rustc, {})", linker.display()),
        }
    }
}

/// A digest of everything that goes into the object.
fn stamp(route: &Route) -> Result<String> {
    let compiler = match route {
        Route::Rustup { toolchain, .. } => {
            command::answer(command::without_cargo_environment("rustup").args(["run", toolchain, "rustc", "-V"]))
        }
        Route::Debian { .. } => command::answer(Command::new("/usr/bin/rustc").arg("-V")),
    };
    let mut digest = Sha256::new();
    digest.update(format!("{route}\n{}\n{}\n", compiler.unwrap_or_default(), std::env::consts::ARCH));
    digest.update(include_bytes!("build_ebpf.rs"));
    let root = command::root();
    let mut files = vec![root.join("Cargo.toml"), root.join("Cargo.lock")];
    for part in ["mesh-ebpf", "mesh-common"] {
        collect(&root.join(part), &mut files)?;
    }
    files.sort();
    for file in files {
        let Ok(text) = fs::read(&file) else { continue };
        digest.update(format!("{} {}\n", file.display(), text.len()));
        digest.update(text);
    }
    Ok(format!("{:x}", digest.finalize()))
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("reading {}", directory.display()))?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// Checks that the file is a BPF object with type information, and says what it holds.
fn describe(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let object = object::File::parse(&*bytes).with_context(|| format!("{} is not an ELF file", path.display()))?;
    if object.architecture() != object::Architecture::Bpf {
        bail!("{} is built for {:?}, not for BPF", path.display(), object.architecture());
    }
    if object.section_by_name(".BTF").is_none() {
        bail!("{} carries no BTF: the linker ignored --btf", path.display());
    }
    let programs: Vec<&str> = object
        .sections()
        .filter(|section| section.kind() == object::SectionKind::Text && section.size() > 0)
        .filter_map(|section| section.name().ok())
        .filter(|name| *name != ".text")
        .collect();
    Ok(format!("{} ({} KiB; {} programs: {})", path.display(), bytes.len() / 1024, programs.len(), programs.join(", ")))
}
