//! `cargo xtask bench`: how fast the mesh is, beside no mesh and beside Envoy, in one run on one machine.

mod calls;
mod certificates;
mod envoy;
mod load;
mod many;
mod path;
mod report;
mod stage;
mod table;
mod usage;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::{build_ebpf, command};
use load::{Load, Sample};
use path::{Path, PathId};
use report::{Cell, PathReport, Report, Settings};

/// How often a disturbed measurement is made, at most, and for how long altogether beyond what all would take undisturbed.
const ATTEMPTS: u32 = 3;
const SPARE: Duration = Duration::from_secs(60);

/// Speed and memory of the mesh, beside no mesh at all and beside a pair of Envoys.
///
/// Everything runs in network namespaces of this machine: nginx and iperf3 in a server's pod; wrk, h2load (for
/// gRPC) and iperf3 in a client's. Rounds
/// are interleaved, so that a machine that slows down slows all paths; figures are medians. Absolute figures say more about the
/// machine than about the mesh: compare the ratios.
#[derive(clap::Args)]
pub struct Arguments {
    /// Write everything, each round's figures too, to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Rounds over all paths and loads.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: u32,
    /// Seconds that each load lasts.
    #[arg(long, value_name = "S", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Only these paths, and those that their ratios refer to.
    #[arg(long, value_name = "PATHS", value_delimiter = ',')]
    only: Vec<PathId>,
    /// Only these loads.
    #[arg(long, value_name = "LOADS", value_delimiter = ',')]
    loads: Vec<Load>,
    /// How many pods the node has whose agent's memory is measured; 0 leaves that out.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u8).range(0..=200))]
    pods: u8,
    /// The cargo profile of agent and control plane. Figures of `dev` say nothing.
    #[arg(long, value_name = "PROFILE", default_value = "release")]
    profile: String,
    /// Measure the mesh-agent and mesh-control in this directory, with ../bpf/mesh-ebpf.o, instead of building them: to compare builds.
    #[arg(long, value_name = "DIR", conflicts_with = "profile")]
    binaries: Option<PathBuf>,
    /// Exit with failure also where a goal is missed.
    #[arg(long)]
    strict: bool,
}

/// Runs it; false if something could not be measured, or (strict) if a goal is missed.
pub fn run(arguments: &Arguments) -> Result<bool> {
    command::need_root("the benchmark")?;
    let start = Instant::now();
    let wanted = path::with_baselines(&arguments.only);
    let loads = if arguments.loads.is_empty() { Load::ALL.to_vec() } else { arguments.loads.clone() };
    let meshed = wanted.iter().any(|id| id.is_meshed());
    let many = arguments.pods > 0 && (meshed || arguments.only.is_empty());
    mesh_lab::packages::ensure(&[
        "iproute2",
        "util-linux",
        "tcpdump",
        "curl",
        "nginx-light",
        "nghttp2-client",
        "wrk",
        "iperf3",
        "openssl",
    ])?;
    build(&arguments.profile, (meshed || many) && arguments.binaries.is_none())?;
    let envoy = if wanted.iter().any(|id| id.is_envoy()) { Some(envoy::binary()?) } else { None };
    let built = command::target().join(if arguments.profile == "dev" { "debug" } else { &arguments.profile });
    let binaries = arguments.binaries.clone().unwrap_or(built);

    let mut plain = if wanted.iter().all(|id| id.is_meshed()) { None } else { Some(stage::Stage::new("bench-plain")?) };
    let mut mesh = if meshed { Some(stage::Stage::new("bench-mesh")?) } else { None };
    let mut paths = Vec::new();
    for id in &wanted {
        let path = match (id, &mut plain, &mut mesh) {
            (PathId::Direct | PathId::DirectLocal | PathId::DirectGrpc, Some(plain), _) => plain.direct(*id)?,
            (PathId::Envoy | PathId::EnvoyHttp | PathId::EnvoyGrpc, Some(plain), _) => {
                plain.envoy(*id, envoy.as_deref().context("no Envoy")?)?
            }
            (PathId::SameNode | PathId::CrossNode, _, Some(mesh)) => {
                mesh.start_mesh(&binaries)?;
                mesh.meshed(*id)?
            }
            (PathId::CrossNodeHttp, _, Some(mesh)) => {
                mesh.start_mesh(&binaries)?;
                mesh.routed()?
            }
            (PathId::CrossNodeGrpc, _, Some(mesh)) => {
                mesh.start_mesh(&binaries)?;
                mesh.called()?
            }
            _ => continue,
        };
        paths.push(path);
    }
    let loads: Vec<Load> = loads.into_iter().filter(|load| paths.iter().any(|path| path.id.carries(*load))).collect();
    let build = match &arguments.binaries {
        Some(directory) => directory.display().to_string(),
        None => format!("profile {}", arguments.profile),
    };
    let settings = Settings { rounds: arguments.rounds, seconds: arguments.seconds, build };
    let expected = u64::from(arguments.rounds) * arguments.seconds * (paths.len() * loads.len()) as u64;
    println!(
        "{} paths, {} loads, {} rounds of {} s each: about {expected} s, longer if other programs disturb",
        paths.len(),
        loads.len(),
        settings.rounds,
        settings.seconds
    );
    let reports = measure(&paths, &loads, &settings)?;
    drop(paths);
    // The others' processes must not weigh on what is measured next.
    for stage in [plain, mesh].into_iter().flatten() {
        stage.remove()?;
    }
    let pods = if many { Some(many::measure(&binaries, arguments.pods)) } else { None };

    let report = Report::new(settings, reports, pods);
    table::print(&report);
    println!("took {:.0} s", start.elapsed().as_secs_f64());
    if let Some(file) = &arguments.json {
        report.write(file)?;
    }
    Ok(report.is_complete() && (!arguments.strict || report.meets_goals()))
}

/// Builds what is measured, and the lab's own peer, which guards worlds.
fn build(profile: &str, mesh: bool) -> Result<()> {
    command::build_programs("dev", &["mesh-lab-peer"])?;
    if mesh {
        println!("building the kernel programs, mesh-agent and mesh-control (profile {profile})");
        build_ebpf::run(&build_ebpf::Arguments::default())?;
        command::run(command::cargo().args(["build", "--profile", profile, "-p", "mesh-agent", "-p", "mesh-control"]))?;
    }
    Ok(())
}

/// Measures, and does so again where other programs took part of the CPU time meanwhile, as long as there is `spare` time. The least
/// disturbed sample counts.
fn undisturbed(path: &Path, load: Load, time: Duration, spare: &mut Duration) -> Result<Sample> {
    let mut best = path.measure(load, time)?;
    for _ in 1..ATTEMPTS {
        if !best.is_disturbed() || *spare < time {
            break;
        }
        *spare -= time;
        let again = path.measure(load, time)?;
        if again.others_share < best.others_share {
            best = again;
        }
    }
    Ok(best)
}

/// All rounds: in each, every load on every path, one path after the other.
fn measure(paths: &[Path], loads: &[Load], settings: &Settings) -> Result<Vec<PathReport>> {
    let mut reports: Vec<PathReport> = paths.iter().map(|path| PathReport::new(path.id)).collect();
    for path in paths {
        // Connections, caches and buffers as they are after a while, not as they are at first.
        let _ = path.measure(Load::Many, Duration::from_secs(1));
    }
    let mut spare = SPARE;
    for round in 1..=settings.rounds {
        for report in &mut reports {
            report.rounds.push(BTreeMap::new());
        }
        for load in loads {
            print!("round {round}, {:<16}", load.title());
            // Another path begins each round: what a path leaves behind must not always meet the same one.
            let first = round as usize % paths.len().max(1);
            let mut turns: Vec<_> = paths.iter().zip(&mut reports).collect();
            turns.rotate_left(first);
            for (path, report) in turns.into_iter().filter(|(path, _)| path.id.carries(*load)) {
                let cell = match undisturbed(path, *load, Duration::from_secs(settings.seconds), &mut spare) {
                    Ok(sample) => Cell::Measured(sample),
                    Err(error) => Cell::Failed { error: format!("{error:#}") },
                };
                print!("  {} {}", path.id, cell.short(*load));
                let _ = std::io::Write::flush(&mut std::io::stdout());
                if let Some(round) = report.rounds.last_mut() {
                    round.insert(load.key(), cell);
                }
            }
            println!();
        }
    }
    Ok(reports)
}
