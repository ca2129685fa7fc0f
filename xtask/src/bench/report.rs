//! What was measured: medians, ratios to no mesh, and the goals they are held to.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path as File;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Serialize;

use super::envoy;
use super::load::{Load, Sample};
use super::many::Memory;
use super::path::PathId;
use crate::command;

/// Least ratios to no mesh, in the order of [`Load::ALL`].
const GOALS: [(PathId, [f64; 4]); 4] = [
    (PathId::SameNode, [0.9, 0.9, 0.9, 0.9]),
    (PathId::CrossNode, [0.55, 0.20, 0.24, 0.30]),
    (PathId::CrossNodeHttp, [0.15, 0.10, 0.15, 0.0]),
    (PathId::CrossNodeGrpc, [0.15, 0.10, 0.0, 0.0]),
];
/// Of the mesh and of the Envoys, doing the same.
const RIVALS: [(PathId, PathId, &str); 2] = [
    (PathId::CrossNodeHttp, PathId::EnvoyHttp, "cross-node-http beside envoy-http"),
    (PathId::CrossNodeGrpc, PathId::EnvoyGrpc, "cross-node-grpc beside envoy-grpc"),
];
/// Most memory of an agent whose node has the pods of [`Memory`].
const MEMORY_GOAL: u64 = 30_000_000;

/// How it was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    pub rounds: u32,
    pub seconds: u64,
    /// The profile of agent and control plane, or where they were found.
    pub build: String,
}

/// One load on one path in one round.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Cell {
    /// It was measured.
    Measured(Sample),
    /// It could not be.
    Failed { error: String },
}

impl Cell {
    /// Its value for the line of progress.
    pub fn short(&self, load: Load) -> String {
        match self {
            Self::Measured(sample) => super::table::value(load, sample.value),
            Self::Failed { .. } => "failed".to_owned(),
        }
    }
}

/// A path's rounds.
#[derive(Clone, Debug)]
pub struct PathReport {
    pub id: PathId,
    /// By the load's key.
    pub rounds: Vec<BTreeMap<&'static str, Cell>>,
}

impl PathReport {
    pub fn new(id: PathId) -> Self {
        Self { id, rounds: Vec::new() }
    }

    fn samples(&self, load: Load) -> impl Iterator<Item = &Sample> {
        self.rounds.iter().filter_map(move |round| match round.get(load.key()) {
            Some(Cell::Measured(sample)) => Some(sample),
            _ => None,
        })
    }

    /// The median of a figure over the rounds; of the undisturbed ones, if there are any.
    pub fn median(&self, load: Load, figure: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        let all: Vec<&Sample> = self.samples(load).collect();
        let any_undisturbed = all.iter().any(|sample| !sample.is_disturbed());
        median(all.into_iter().filter(|sample| !any_undisturbed || !sample.is_disturbed()).filter_map(figure).collect())
    }

    /// The median of the load's own value.
    pub fn value(&self, load: Load) -> Option<f64> {
        self.median(load, |sample| Some(sample.value))
    }

    /// Most memory of a process of the path, over all rounds and loads.
    pub fn rss_bytes(&self) -> Option<u64> {
        Load::ALL.iter().flat_map(|load| self.samples(*load)).filter_map(|sample| sample.rss_bytes).max()
    }

    fn failures(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (round, cells) in (1..).zip(&self.rounds) {
            for (load, cell) in cells {
                match cell {
                    Cell::Failed { error } => found.push(format!("{}, {load}, round {round}: not measured: {error}", self.id)),
                    Cell::Measured(sample) if sample.failures > 0 => {
                        let (failed, answered) = (sample.failures, sample.requests);
                        found.push(format!("{}, {load}, round {round}: {failed} requests failed beside {answered} answered", self.id));
                    }
                    Cell::Measured(_) => {}
                }
            }
        }
        found
    }
}

/// CPU seconds for each request of a sample; None for bulk and for paths with nothing between.
pub fn cpu_per_request(sample: &Sample) -> Option<f64> {
    (sample.requests > 0).then_some(sample.cpu_seconds? / sample.requests as f64)
}

/// CPU seconds for each 10⁹ bytes of a sample.
pub fn cpu_per_gigabyte(sample: &Sample) -> Option<f64> {
    (sample.bytes > 0).then_some(sample.cpu_seconds? / sample.bytes as f64 * 1e9)
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (upper, lower) = (values.len() / 2, values.len().checked_sub(1)? / 2);
    Some((values.get(lower)? + values.get(upper)?) / 2.0)
}

/// A goal and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Goal {
    pub what: String,
    pub path: &'static str,
    /// The load's key, or `rss_bytes`.
    pub figure: &'static str,
    pub wanted: f64,
    /// None if it was not measured.
    pub reached: Option<f64>,
    pub met: bool,
}

/// Everything.
#[derive(Debug)]
pub struct Report {
    pub settings: Settings,
    pub paths: Vec<PathReport>,
    pub memory: Option<Result<Memory, String>>,
    pub goals: Vec<Goal>,
    /// What was not as it should be.
    pub notes: Vec<String>,
}

impl Report {
    pub fn new(settings: Settings, paths: Vec<PathReport>, memory: Option<Result<Memory, String>>) -> Self {
        let mut notes: Vec<String> = paths.iter().flat_map(PathReport::failures).collect();
        let samples = || paths.iter().flat_map(|path| Load::ALL.iter().flat_map(|load| path.samples(*load)));
        let disturbed = samples().filter(|sample| sample.is_disturbed()).count();
        if disturbed > 0 {
            let worst = samples().map(|sample| sample.others_share).fold(0.0, f64::max) * 100.0;
            let all = samples().count();
            notes.push(format!(
                "other programs disturbed {disturbed} of {all} measurements, taking up to {worst:.0} % of all cores; \
                 those count only where a load on a path has no others"
            ));
        }
        if let Some(Err(error)) = &memory {
            notes.push(format!("memory with many pods: not measured: {error}"));
        }
        let mut report = Self { settings, paths, memory, goals: Vec::new(), notes };
        report.goals = report.judge();
        report
    }

    /// The path, if it was measured.
    pub fn path(&self, id: PathId) -> Option<&PathReport> {
        self.paths.iter().find(|path| path.id == id)
    }

    /// A path's value of a load over that of its baseline.
    pub fn ratio(&self, id: PathId, load: Load) -> Option<f64> {
        let baseline = self.path(id.baseline()?)?.value(load)?;
        Some(self.path(id)?.value(load)? / baseline)
    }

    fn judge(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        for (id, wanted) in GOALS {
            let Some(path) = self.path(id) else { continue };
            for (load, wanted) in Load::ALL.into_iter().zip(wanted) {
                if !path.rounds.iter().any(|round| round.contains_key(load.key())) {
                    continue;
                }
                let reached = self.ratio(id, load);
                let what = format!("{}: {} as a ratio to no mesh", id.title(), load.title());
                let met = reached.is_some_and(|reached| reached >= wanted);
                goals.push(Goal { what, path: id.key(), figure: load.key(), wanted, reached, met });
            }
        }
        // What Envoy does in the same run is the least.
        for ((mesh, envoy, path), load) in RIVALS.into_iter().flat_map(|pair| Load::ALL.map(|load| (pair, load))) {
            let (Some(ours), Some(theirs)) = (self.ratio(mesh, load), self.ratio(envoy, load)) else { continue };
            let what = format!("{}: {} beside {}", mesh.title(), load.title(), envoy.title());
            goals.push(Goal { what, path, figure: load.key(), wanted: theirs, reached: Some(ours), met: ours > theirs });
        }
        if let Some(memory) = &self.memory {
            let reached = memory.as_ref().ok().map(|memory| memory.busy_rss_bytes.max(memory.idle_rss_bytes));
            let pods = memory.as_ref().map_or_else(|_| "many".to_owned(), |memory| memory.pods.to_string());
            goals.push(Goal {
                what: format!("memory of an agent with {pods} pods, in bytes"),
                path: PathId::CrossNode.key(),
                figure: "rss_bytes",
                wanted: MEMORY_GOAL as f64,
                reached: reached.map(|bytes| bytes as f64),
                met: reached.is_some_and(|bytes| bytes <= MEMORY_GOAL),
            });
        }
        goals
    }

    /// Every load of every path was measured in every round, and the memory if it was asked for.
    pub fn is_complete(&self) -> bool {
        let cells = || self.paths.iter().flat_map(|path| &path.rounds).flat_map(BTreeMap::values);
        let something = cells().next().is_some();
        something && !cells().any(|cell| matches!(cell, Cell::Failed { .. })) && !matches!(self.memory, Some(Err(_)))
    }

    /// No goal is missed.
    pub fn meets_goals(&self) -> bool {
        self.goals.iter().all(|goal| goal.met)
    }

    /// Writes it for machines.
    pub fn write(&self, file: &File) -> Result<()> {
        let paths: Vec<serde_json::Value> = self.paths.iter().map(|path| self.path_json(path)).collect();
        let memory = match &self.memory {
            Some(Ok(memory)) => serde_json::to_value(memory).context("memory")?,
            Some(Err(error)) => serde_json::json!({ "error": error }),
            None => serde_json::Value::Null,
        };
        let all = serde_json::json!({
            "machine": machine(),
            "tools": tools(),
            "settings": self.settings,
            "paths": paths,
            "many_pods": memory,
            "goals": self.goals,
            "notes": self.notes,
        });
        let text = serde_json::to_string_pretty(&all).context("writing JSON")?;
        fs::write(file, text + "\n").with_context(|| format!("writing {}", file.display()))
    }

    fn path_json(&self, path: &PathReport) -> serde_json::Value {
        let mut medians = BTreeMap::new();
        let mut ratios = BTreeMap::new();
        for load in Load::ALL {
            medians.insert(load.key().to_owned(), path.value(load));
            if path.id.baseline().is_some() {
                ratios.insert(load.key(), self.ratio(path.id, load));
            }
            if load != Load::Bulk {
                let name = load.key().trim_start_matches("requests_per_second_");
                medians.insert(format!("p50_micros_{name}"), path.median(load, |sample| sample.p50_micros));
                medians.insert(format!("p99_micros_{name}"), path.median(load, |sample| sample.p99_micros));
                medians.insert(format!("cpu_seconds_per_request_{name}"), path.median(load, cpu_per_request));
            }
        }
        medians.insert("cpu_seconds_per_gigabyte".to_owned(), path.median(Load::Bulk, cpu_per_gigabyte));
        serde_json::json!({
            "path": path.id.key(),
            "what": path.id.title(),
            "baseline": path.id.baseline().map(PathId::key),
            "medians": medians,
            "ratios": ratios,
            "rss_bytes": path.rss_bytes(),
            "rounds": path.rounds,
        })
    }
}

/// Facts of the machine; the figures are worth little without them.
pub fn machine() -> BTreeMap<&'static str, String> {
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).and_then(|line| line.split_once(':'));
        line.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    BTreeMap::from([
        ("kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
        ("architecture", std::env::consts::ARCH.to_owned()),
        ("cores", std::thread::available_parallelism().map_or(0, usize::from).to_string()),
        ("processor", field(&read("/proc/cpuinfo"), "model name")),
        ("memory", field(&read("/proc/meminfo"), "MemTotal")),
    ])
}

/// Which programs took part.
fn tools() -> BTreeMap<&'static str, String> {
    let first = |program: &str, flag: &str| {
        let output = Command::new(program).arg(flag).output().ok();
        let text = output.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
        String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned()
    };
    let commit = command::answer(command::without_cargo_environment("git").args(["describe", "--always", "--dirty"]));
    BTreeMap::from([
        ("nodemesh", commit.unwrap_or_default()),
        ("nginx", first("nginx", "-v")),
        ("wrk", first("wrk", "-v")),
        ("h2load", first("h2load", "--version")),
        ("iperf3", first("iperf3", "--version")),
        ("envoy", envoy::VERSION.to_owned()),
    ])
}

#[cfg(test)]
mod tests;
