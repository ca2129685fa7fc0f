//! `cargo xtask fuzz`: the fuzzers of `fuzz/`, built by the stable compiler with the coverage that libFuzzer steers by, each for a while.
//!
//! What a fuzzer finds worth keeping goes to `target/fuzz/corpus`; the seeds in `fuzz/corpus` are read and never written.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, bail};

use crate::command;

const CARGO_FUZZ_VERSION: &str = "0.13.2";
/// Seconds that one input may take, and MiB that a fuzzer may have.
const LIMITS: [&str; 2] = ["-timeout=10", "-rss_limit_mb=2048"];
/// Lines of a fuzzer's output, and bytes of its input, that are shown where it found something.
const SHOWN_LINES: usize = 40;
const SHOWN_BYTES: usize = 512;

/// Which fuzzers to run, and for how long.
#[derive(clap::Args)]
pub struct Arguments {
    /// Seconds for each, of which as many run at once as there are processors.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Only these, by name; without one, all.
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
}

/// What a run of a fuzzer came to.
#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
struct Figures {
    /// Inputs that were run.
    runs: u64,
    /// Places that can be counted, over all code that is linked.
    counters: u64,
    /// Of them, those that some input came to.
    coverage: u64,
    /// Inputs that are kept because each comes somewhere that no other comes to.
    corpus: u64,
}

/// Builds and runs them; false if one found something, or did nothing.
pub fn run(arguments: &Arguments) -> Result<bool> {
    let known = known()?;
    if let Some(unknown) = arguments.targets.iter().find(|target| !known.contains(target)) {
        bail!("there is no fuzzer {unknown}; there are {}", known.join(", "));
    }
    let wanted = if arguments.targets.is_empty() { known } else { arguments.targets.clone() };
    let programs = build()?;
    let waiting: Mutex<VecDeque<String>> = Mutex::new(wanted.into());
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let good = Mutex::new(true);
    let at_once = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some(target) = next() {
                    match fuzz(&programs, &target, arguments.seconds) {
                        Ok(Figures { runs, counters, coverage, corpus }) => {
                            println!("ok    {target:<8} {runs} runs, coverage {coverage} of {counters}, {corpus} inputs kept");
                        }
                        Err(error) => {
                            println!("FAIL  {target}: {error:#}");
                            *good.lock().unwrap_or_else(PoisonError::into_inner) = false;
                        }
                    }
                }
            });
        }
    });
    Ok(good.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn crate_directory() -> PathBuf {
    command::root().join("fuzz")
}

/// Names of all fuzzers.
fn known() -> Result<Vec<String>> {
    let directory = crate_directory().join("fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs")
            && let Some(name) = path.file_stem()
        {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Builds them and gives the programs' directory. The compiler is the usual one: its coverage pass needs no nightly, only sanitizers would.
fn build() -> Result<PathBuf> {
    let cargo_fuzz = command::cargo_tool("cargo-fuzz", CARGO_FUZZ_VERSION)?;
    let target = command::target().join("fuzz");
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut build = command::without_cargo_environment(cargo_fuzz);
    // What is fuzzed is what is shipped: no code that is there for fuzzers alone.
    build.args(["fuzz", "build", "--sanitizer", "none", "--no-cfg-fuzzing", "--strip-dead-code", "--target", &triple]);
    build.arg("--fuzz-dir").arg(crate_directory()).arg("--target-dir").arg(&target);
    // A build that is quick, and quick enough.
    build.env("CARGO_PROFILE_RELEASE_LTO", "off");
    build.env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16").env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1");
    command::run(&mut build)?;
    Ok(target.join(triple).join("release"))
}

fn fuzz(programs: &Path, target: &str, seconds: u64) -> Result<Figures> {
    let seeds = crate_directory().join("corpus").join(target);
    if fs::read_dir(&seeds).map_or(0, Iterator::count) == 0 {
        bail!("it has no seeds in {}", seeds.display());
    }
    let work = command::target().join("fuzz");
    let (corpus, artifacts) = (work.join("corpus").join(target), work.join("artifacts").join(target));
    for directory in [&corpus, &artifacts] {
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    }
    let program = programs.join(target);
    let mut fuzzer = Command::new(&program);
    // It writes to the first directory and reads all.
    fuzzer.arg(&corpus).arg(&seeds).args(LIMITS).args(["-print_final_stats=1", &format!("-max_total_time={seconds}")]);
    fuzzer.arg(format!("-artifact_prefix={}/", artifacts.display()));
    // What a panic says is at the end of the output then, and not before a screen of frames.
    fuzzer.env("RUST_BACKTRACE", "0");
    let output = fuzzer.output().with_context(|| format!("could not start {}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(found(&program, &said, output.status));
    }
    let figures = Figures::read(&said);
    figures.check().map_err(|why| anyhow!("{why}; it wrote:\n{}", last_lines(&said)))?;
    Ok(figures)
}

/// What it found, and how to see it again.
fn found(program: &Path, said: &str, status: std::process::ExitStatus) -> anyhow::Error {
    let mut text = format!("it ended with {status}; it wrote:\n{}", last_lines(said));
    if let Some(artifact) = said.lines().find_map(|line| line.split_once("Test unit written to ")).map(|(_, path)| path.trim()) {
        let input = fs::read(artifact).unwrap_or_default();
        let _ = write!(text, "\nthe input is {artifact} ({} bytes):\n{}", input.len(), hexdump(&input));
        let _ = write!(text, "again:  {} {artifact}", program.display());
    }
    anyhow!(text)
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(SHOWN_LINES)..).unwrap_or_default().join("\n")
}

/// Sixteen bytes a line: place, numbers, characters.
fn hexdump(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (line, bytes) in bytes.chunks(16).take(SHOWN_BYTES / 16).enumerate() {
        let numbers: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let characters: String =
            bytes.iter().map(|byte| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' }).collect();
        let _ = writeln!(text, "{:08x}  {:<47}  |{characters}|", line * 16, numbers.join(" "));
    }
    if bytes.len() > SHOWN_BYTES {
        let _ = writeln!(text, "… {} bytes more", bytes.len() - SHOWN_BYTES);
    }
    text
}

impl Figures {
    /// From what libFuzzer writes: `INFO: Loaded 1 modules   (7000 inline 8-bit counters): …`, lines with `cov: 300 ft: 900 corp: 20/1Kb`,
    /// and `stat::number_of_executed_units: 5000` at the end.
    fn read(said: &str) -> Figures {
        let behind = |line: &str, word: &str| {
            let rest = line.split_once(word)?.1.trim_start();
            rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        let mut figures = Figures::default();
        for line in said.lines() {
            if line.contains("inline 8-bit counters") {
                figures.counters = behind(line, "(").unwrap_or(figures.counters);
            }
            figures.coverage = behind(line, " cov: ").unwrap_or(figures.coverage);
            figures.corpus = behind(line, " corp: ").unwrap_or(figures.corpus);
            figures.runs = behind(line, "stat::number_of_executed_units:").unwrap_or(figures.runs);
        }
        figures
    }

    /// A fuzzer that ran nothing, or that cannot see where its inputs lead, has shown nothing.
    fn check(self) -> Result<(), &'static str> {
        match self {
            Figures { runs: 0, .. } => Err("it ran no input"),
            Figures { counters: 0, .. } | Figures { coverage: 0, .. } => Err("it is not instrumented, and so was blind"),
            Figures { corpus: 0, .. } => Err("it kept no input"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "INFO: Running with entropic power schedule (0xFF, 100).\n\
        INFO: Loaded 1 modules   (91350 inline 8-bit counters): 91350 [0x55d, 0x55e), \n\
        INFO: Loaded 1 PC tables (91350 PCs): 91350 [0x55d,0x56f), \n\
        #7\tINITED cov: 210 ft: 260 corp: 5/80b exec/s: 0 rss: 40Mb\n\
        #65536\tpulse  cov: 301 ft: 900 corp: 20/1Kb lim: 661 exec/s: 21845 rss: 60Mb\n\
        Done 200000 runs in 3 second(s)\n\
        stat::number_of_executed_units: 200000\n\
        stat::peak_rss_mb:              60\n";

    #[test]
    fn figures_are_libfuzzers_own() {
        let figures = Figures::read(SAID);
        assert_eq!(figures, Figures { runs: 200_000, counters: 91_350, coverage: 301, corpus: 20 });
        assert_eq!(figures.check(), Ok(()));
    }

    #[test]
    fn a_fuzzer_that_did_nothing_is_a_failure() {
        let blind = SAID.replace("inline 8-bit counters", "");
        assert!(Figures::read(&blind).check().is_err());
        assert!(Figures::read(&SAID.replace("cov: ", "")).check().is_err());
        assert!(Figures::read(&SAID.replace("200000", "0")).check().is_err());
        assert!(Figures::read("").check().is_err());
    }

    #[test]
    fn bytes_are_shown_in_lines_of_sixteen() {
        assert_eq!(hexdump(b"GET \0"), format!("00000000  {:<47}  |GET .|\n", "47 45 54 20 00"));
        assert!(hexdump(&[0; 600]).ends_with("… 88 bytes more\n"));
    }
}
