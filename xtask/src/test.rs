//! `cargo xtask test`: builds all, runs every test, and closes with one line of totals.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::{build_ebpf, command, e2e};

/// Which tests to run. Without a flag: all but those on a cluster.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only the tests that need neither root nor the kernel programs.
    #[arg(long, conflicts_with = "it")]
    unit: bool,
    /// Only the tests in namespaces, on the real kernel (root).
    #[arg(long)]
    it: bool,
    /// Only the end-to-end tests, on a real Kubernetes on this machine (root); see `cargo xtask cluster`.
    #[arg(long, conflicts_with_all = ["unit", "it"])]
    cluster: bool,
    /// Tests of namespaces at a time; each has nodes, agents and programs of its own.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Only tests whose name contains this.
    filter: Option<String>,
}

/// Sums of cargo's own summaries.
#[derive(Default, Debug, PartialEq, Eq, Clone, Copy)]
struct Totals {
    passed: u64,
    failed: u64,
    skipped: u64,
}

/// Runs them; false if one failed or none ran.
pub fn run(arguments: &Arguments) -> Result<bool> {
    let mut totals = Totals::default();
    if arguments.cluster {
        let steps = e2e::run(arguments.filter.as_deref())?;
        totals.add(Totals { passed: steps.passed, failed: steps.failed, skipped: 0 });
        println!("\n{}", totals.line());
        return Ok(totals.good());
    }
    if !arguments.it {
        // Of the workspace's default members: a fuzzer, which `--bins` would start even where its manifest says `test = false`, runs until it is stopped.
        heading("unit tests");
        let mut cargo = command::cargo();
        cargo.args(["test", "--lib", "--bins", "--no-fail-fast"]);
        totals.add(watch(cargo, arguments, &[])?);
        heading("examples in the documentation");
        let mut cargo = command::cargo();
        cargo.args(["test", "--doc", "--no-fail-fast"]);
        totals.add(watch(cargo, arguments, &[])?);
    }
    if !arguments.unit {
        command::need_root("the test bed")?;
        heading("building what the test bed runs");
        let object = build_ebpf::run(&build_ebpf::Arguments::default())?;
        mesh_lab::packages::ensure(&["iproute2", "util-linux", "tcpdump", "curl", "nginx-light", "nghttp2-client", "wrk"])?;
        command::build_programs("dev", &["mesh-lab-peer", "mesh-agent", "mesh-cni", "mesh-control"])?;
        for (crate_name, names) in crates_with_tests()? {
            heading(&format!("{crate_name} on this kernel"));
            // By the tests' names and not by the package, for the reason that `build_programs` has.
            let mut cargo = command::cargo();
            cargo.args(["test", "--no-fail-fast"]).env("NODEMESH_BPF_OBJECT", &object);
            cargo.args(names.iter().flat_map(|name| ["--test", name.as_str()]));
            let cores = std::thread::available_parallelism().map_or(2, usize::from);
            let threads = arguments.threads.unwrap_or(cores.clamp(2, 8));
            totals.add(watch(cargo, arguments, &[format!("--test-threads={threads}")])?);
        }
        mesh_lab::sweep(mesh_lab::Kept::Leave).context("removing what tests left behind")?;
    }
    println!("\n{}", totals.line());
    Ok(totals.good())
}

fn heading(text: &str) {
    println!("\n== {text}");
}

/// Members of the workspace that have a `tests` directory, with the names of the tests in it.
fn crates_with_tests() -> Result<Vec<(String, Vec<String>)>> {
    let mut crates = Vec::new();
    let root = command::root();
    for entry in std::fs::read_dir(&root).with_context(|| format!("reading {}", root.display()))? {
        let path = entry?.path();
        let tests = tests_in(&path.join("tests"));
        if path.join("Cargo.toml").is_file()
            && !tests.is_empty()
            && let Some(name) = path.file_name()
        {
            crates.push((name.to_string_lossy().into_owned(), tests));
        }
    }
    // The test bed first: where it fails, nothing that stands on it says anything.
    crates.sort_by_key(|(name, _)| (name != "mesh-lab", name.clone()));
    Ok(crates)
}

fn tests_in(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let is_test = |path: &Path| path.extension().is_some_and(|extension| extension == "rs") || path.join("main.rs").is_file();
    let paths = entries.flatten().map(|entry| entry.path()).filter(|path| is_test(path));
    paths.filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned())).collect()
}

/// Runs cargo, passes its output on, and adds up its summaries.
fn watch(mut cargo: Command, arguments: &Arguments, more: &[String]) -> Result<Totals> {
    cargo.arg("--").args(more).args(&arguments.filter);
    cargo.stdout(Stdio::piped());
    let line = command::line(&cargo);
    let mut child = cargo.spawn().with_context(|| format!("starting `{line}`"))?;
    let mut totals = Totals::default();
    if let Some(stdout) = child.stdout.take() {
        let mut reader = BufReader::new(stdout);
        let mut bytes = Vec::new();
        while reader.read_until(b'\n', &mut bytes).context("reading cargo's output")? > 0 {
            let text = String::from_utf8_lossy(&bytes);
            if let Some(found) = summary(&text) {
                totals.add(found);
            }
            print!("{text}");
            let _ = std::io::stdout().flush();
            bytes.clear();
        }
    }
    let status = child.wait().context("waiting for cargo")?;
    if !status.success() && totals.failed == 0 {
        // A crate that doesn't compile, or a test program that died: no summary counts it.
        println!("`{line}` ended with {status}; counted as one failure");
        totals.failed = 1;
    }
    Ok(totals)
}

/// The numbers of a line like `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
fn summary(line: &str) -> Option<Totals> {
    let rest = line.trim_end().strip_prefix("test result: ")?;
    let number = |word: &str| {
        let end = rest.find(word)?;
        rest.get(..end)?.split_whitespace().last()?.parse().ok()
    };
    Some(Totals { passed: number(" passed")?, failed: number(" failed")?, skipped: number(" ignored")? })
}

impl Totals {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    fn good(self) -> bool {
        self.failed == 0 && self.passed > 0
    }

    fn line(self) -> String {
        let skipped = if self.skipped > 0 { format!(", {} skipped", self.skipped) } else { String::new() };
        format!("{} passed, {} failed{skipped}", self.passed, self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::{Totals, summary};

    #[test]
    fn reads_cargos_summary() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.01s\n";
        assert_eq!(summary(line), Some(Totals { passed: 12, failed: 3, skipped: 1 }));
        assert_eq!(summary("test a ... ok"), None);
        assert_eq!(summary("test result: "), None);
    }

    #[test]
    fn nothing_run_is_not_good() {
        assert!(!Totals::default().good());
        assert!(!Totals { passed: 9, failed: 1, skipped: 0 }.good());
        assert_eq!(Totals { passed: 9, failed: 0, skipped: 2 }.line(), "9 passed, 0 failed, 2 skipped");
        assert_eq!(Totals { passed: 9, failed: 0, skipped: 0 }.line(), "9 passed, 0 failed");
    }
}
