//! What exists because of the cluster, written down before it is made, and the removal of all of it.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use mesh_lab::netns;
use mesh_lab::record::ProcessId;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::cgroups::{self, Hierarchies};
use super::layout::{self, CONTROL_NAMESPACE, Node};

const FILE: &str = "state.json";

/// A program of the cluster.
#[derive(Clone, Serialize, Deserialize, PartialEq, Eq, Debug)]
pub struct Program {
    /// As in its log's name: `kubelet-n1`.
    pub name: String,
    /// Its process.
    pub process: ProcessId,
}

/// The content of the state file.
#[derive(Clone, Serialize, Deserialize, PartialEq, Eq, Debug)]
pub struct State {
    /// How many.
    pub nodes: u8,
    /// The start went through to its end.
    pub complete: bool,
    /// Those that it uses.
    pub hierarchies: Hierarchies,
    /// Directories outside of the cluster's own that were made as places to mount on, parents first.
    pub directories: Vec<PathBuf>,
    /// In the order of their start.
    pub programs: Vec<Program>,
}

impl State {
    /// A cluster that is about to be made.
    pub fn new(nodes: u8, hierarchies: Hierarchies, directories: Vec<PathBuf>) -> Self {
        Self { nodes, complete: false, hierarchies, directories, programs: Vec::new() }
    }

    /// The cluster of this machine, if there is one.
    ///
    /// # Errors
    /// Its file can't be read.
    pub fn load() -> Result<Option<Self>> {
        let file = layout::root().join(FILE);
        match fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).map(Some).with_context(|| {
                format!(
                    "{} is not a state of this version of the tool: `down` of the version that made it removes its cluster",
                    file.display()
                )
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", file.display())),
        }
    }

    /// Writes it whole or not at all.
    pub fn save(&self) -> Result<()> {
        let file = layout::root().join(FILE);
        let fresh = file.with_extension("new");
        fs::write(&fresh, serde_json::to_vec_pretty(self).context(FILE)?).with_context(|| format!("writing {}", fresh.display()))?;
        fs::rename(&fresh, &file).with_context(|| format!("replacing {}", file.display()))
    }

    /// The program of this name.
    pub fn program(&self, name: &str) -> Option<&Program> {
        self.programs.iter().find(|program| program.name == name)
    }

    /// The start went through and every program still runs.
    pub fn runs(&self) -> bool {
        self.complete && self.dead().is_none()
    }

    /// A program that ended.
    pub fn dead(&self) -> Option<&Program> {
        self.programs.iter().find(|program| !program.process.alive())
    }

    /// Every network namespace.
    pub fn namespaces(&self) -> Vec<String> {
        Node::all(self.nodes).map(Node::namespace).chain([CONTROL_NAMESPACE.to_owned()]).collect()
    }

    /// Removes everything but the cluster's own directory; what is gone already is fine, so a failure can be taken up again.
    ///
    /// # Errors
    /// Names all that stayed.
    pub fn tear_down(&self) -> Result<()> {
        let mut failures = Vec::new();
        let mut note = |result: Result<()>| {
            if let Err(error) = result {
                failures.push(format!("{error:#}"));
            }
        };
        // Containers and their shims are in the groups too, which is why this comes before the programs one by one.
        note(cgroups::remove(&self.hierarchies.all(self.nodes)));
        for program in self.programs.iter().filter(|program| program.process.alive()) {
            // Its number can't belong to another process: number and start are compared.
            let pid = Pid::from_raw(program.process.pid().cast_signed());
            note(kill(pid, Signal::SIGKILL).with_context(|| format!("ending {} ({pid})", program.name)));
        }
        note(netns::remove(&self.namespaces()));
        for directory in self.directories.iter().rev() {
            match fs::remove_dir(directory) {
                Err(error) if !matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::DirectoryNotEmpty) => {
                    note(Err(error).with_context(|| format!("removing {}", directory.display())));
                }
                _ => {}
            }
        }
        if failures.is_empty() { Ok(()) } else { bail!("the cluster left behind: {}", failures.join("; ")) }
    }
}

/// Held while the cluster is made or removed. The lock is the cluster's directory itself, so that it leaves no file behind.
pub struct Lock {
    _directory: Flock<File>,
}

impl Lock {
    /// Makes the directory if need be and waits until no other process holds it.
    pub fn acquire() -> Result<Self> {
        let root = layout::root();
        loop {
            fs::create_dir_all(root).with_context(|| format!("making {}", root.display()))?;
            let directory = File::open(root).with_context(|| format!("opening {}", root.display()))?;
            let held = match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
                Ok(held) => held,
                Err((directory, nix::errno::Errno::EWOULDBLOCK)) => {
                    println!("waiting for another `cargo xtask cluster` to end");
                    Flock::lock(directory, FlockArg::LockExclusive).map_err(|(_, error)| error).context("locking the cluster")?
                }
                Err((_, error)) => return Err(error).with_context(|| format!("locking {}", root.display())),
            };
            // Whoever held it before may have removed it.
            let same = |found: fs::Metadata, ours: fs::Metadata| (found.dev(), found.ino()) == (ours.dev(), ours.ino());
            let ours = held.metadata().with_context(|| format!("looking at {}", root.display()))?;
            if fs::metadata(root).is_ok_and(|found| same(found, ours)) {
                return Ok(Self { _directory: held });
            }
        }
    }

    /// Removes the cluster's directory and what it held.
    pub fn remove_directory(&self) -> Result<()> {
        let root = layout::root();
        fs::remove_dir_all(root).with_context(|| format!("removing {}", root.display()))?;
        if let Some(parent) = root.parent() {
            // Others may keep something beside it.
            let _ = fs::remove_dir(parent);
        }
        Ok(())
    }
}

/// The state of a cluster that is being made, by several threads.
pub struct Recorder(Mutex<State>);

impl Recorder {
    /// Writes the state down.
    pub fn new(state: State) -> Result<Self> {
        state.save()?;
        Ok(Self(Mutex::new(state)))
    }

    /// Adds a program.
    pub fn started(&self, name: &str, pid: u32) -> Result<()> {
        let process = ProcessId::of(pid).with_context(|| format!("{name} ended at once"))?;
        self.change(|state| state.programs.push(Program { name: name.to_owned(), process }))
    }

    /// Changes the state and writes it down.
    pub fn change(&self, change: impl FnOnce(&mut State)) -> Result<()> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        state.save()
    }

    /// The state as it is.
    pub fn state(&self) -> State {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Those of the directories and their parents that don't exist, parents first.
pub fn missing_directories<'a>(wanted: impl IntoIterator<Item = &'a Path>) -> Vec<PathBuf> {
    let mut missing = Vec::new();
    for directory in wanted {
        let mut way: Vec<&Path> = directory.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
        way.reverse();
        for step in way {
            if !missing.iter().any(|known| known == step) {
                missing.push(step.to_owned());
            }
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::{Program, State, missing_directories};
    use crate::cluster::cgroups::Hierarchies;
    use mesh_lab::record::ProcessId;
    use std::path::{Path, PathBuf};

    fn state() -> State {
        State::new(2, Hierarchies { unified: "/u".into(), legacy: vec!["/v1/cpu".into()] }, vec!["/a/b".into()])
    }

    #[test]
    fn survives_its_file() {
        let mut state = state();
        let process = ProcessId::of(std::process::id()).unwrap();
        state.programs.push(Program { name: "etcd".to_owned(), process });
        let text = serde_json::to_vec(&state).unwrap();
        assert_eq!(serde_json::from_slice::<State>(&text).unwrap(), state);
    }

    #[test]
    fn runs_only_when_complete_and_alive() {
        let mut state = state();
        let process = ProcessId::of(std::process::id()).unwrap();
        state.programs.push(Program { name: "etcd".to_owned(), process });
        assert!(!state.runs(), "its start did not end");
        state.complete = true;
        assert!(state.runs());
        // The same number with another start is another process.
        let text = serde_json::to_string(&process).unwrap();
        let mut other: serde_json::Value = serde_json::from_str(&text).unwrap();
        other["start"] = 1.into();
        state.programs.push(Program { name: "kubelet-n1".to_owned(), process: serde_json::from_value(other).unwrap() });
        assert!(!state.runs());
        assert_eq!(state.dead().unwrap().name, "kubelet-n1");
    }

    #[test]
    fn lists_missing_parents_once_and_first() {
        let wanted = ["/proc/none/x/y", "/proc/none/x/z", "/proc"].map(Path::new);
        let expected = ["/proc/none", "/proc/none/x", "/proc/none/x/y", "/proc/none/x/z"].map(PathBuf::from);
        assert_eq!(missing_directories(wanted), expected);
    }
}
