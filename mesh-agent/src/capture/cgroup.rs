//! Which cgroup is whose: the numbers by which the kernel programs tell the agent, the pods and the host's own processes apart.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// Why a cgroup is not found.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A file.
    #[error("{path}: {error}")]
    Io {
        /// The path.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
    /// No mount.
    #[error(
        "{0} is not below a mounted cgroup v2 hierarchy whose place can be told: mount the node's /sys/fs/cgroup there, or run the agent in the machine's own cgroup namespace"
    )]
    NotMounted(PathBuf),
    /// The agent is not where its mount leads.
    #[error("the agent's own cgroup {own} is not below {mount}: mount the node's whole hierarchy there and give it with --cgroup-root", own = .own.display(), mount = .mount.display())]
    OwnElsewhere {
        /// As the process is told.
        own: PathBuf,
        /// Where it was looked for.
        mount: PathBuf,
    },
    /// The process.
    #[error("/proc/self/cgroup names no cgroup v2")]
    NoOwn,
    /// Too many would be taken for the agent.
    #[error(
        "the agent runs in the cgroup {0}, which others share: {1}; start it in a cgroup of its own, because the kernel programs trust whoever is in it"
    )]
    SharedOwn(PathBuf, &'static str),
}

/// Id of a cgroup: the inode number of its directory (Linux 5.5).
pub fn id(path: &Path) -> Result<u64, CgroupError> {
    std::fs::metadata(path).map(|m| m.ino()).map_err(|error| CgroupError::Io { path: path.into(), error })
}

/// A mounted cgroup v2 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where.
    pub at: PathBuf,
    /// Which part of it is mounted there, as a process of this one's cgroup namespace is told (cgroup_namespaces(7)).
    pub root: PathBuf,
}

/// The cgroup v2 mounts of `/proc/self/mountinfo`.
pub fn mounts(mountinfo: &str) -> Vec<Mount> {
    let parse = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        if right.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = left.split(' ').skip(3);
        Some(Mount { root: fields.next()?.into(), at: fields.next()?.into() })
    };
    mountinfo.lines().filter_map(parse).collect()
}

/// The mount through which a path is seen: the deepest, and of several at one place the last.
pub fn mount_of<'a>(path: &Path, mounts: &'a [Mount]) -> Result<&'a Mount, CgroupError> {
    let above = mounts.iter().filter(|mount| path.starts_with(&mount.at));
    above.max_by_key(|mount| mount.at.components().count()).ok_or_else(|| CgroupError::NotMounted(path.into()))
}

/// What `/proc` says is of use only in the machine's own cgroup namespace: elsewhere every path begins at the namespace's root, whose place in
/// the hierarchy it does not tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum View {
    /// The machine's.
    Whole,
    /// A container's.
    Part,
}

impl View {
    /// This process's. The machine's own namespace has a fixed number (the kernel's `PROC_CGROUP_INIT_INO`).
    pub fn of_this_process() -> Result<Self, CgroupError> {
        let whole = id(Path::new("/proc/self/ns/cgroup"))? == 0xEFFF_FFFB;
        Ok(if whole { View::Whole } else { View::Part })
    }
}

/// Depth of a cgroup in its hierarchy; the root's is 0.
pub fn level(path: &Path, mount: &Mount, view: View) -> Result<u32, CgroupError> {
    let below = path.strip_prefix(&mount.at).map_err(|_| CgroupError::NotMounted(path.into()))?;
    let depth = |path: &Path| path.components().filter(|part| matches!(part, Component::Normal(_))).count() as u32;
    let above = match view {
        View::Whole => depth(&mount.root),
        View::Part if is_root(&mount.at) => 0,
        View::Part => return Err(CgroupError::NotMounted(path.into())),
    };
    Ok(above + depth(below))
}

/// Whether a directory is the hierarchy's root, which alone has no such file (cgroup v2, "Core Interface Files").
fn is_root(directory: &Path) -> bool {
    directory.join("cgroup.procs").exists() && !directory.join("cgroup.events").exists()
}

/// The path of the process's own cgroup below a mount, from `/proc/self/cgroup` (the line `0::/…`) where that tells it.
pub fn own(proc_self_cgroup: &str, mount: &Mount, view: View) -> Result<PathBuf, CgroupError> {
    let path = proc_self_cgroup.lines().find_map(|l| l.strip_prefix("0::")).ok_or(CgroupError::NoOwn)?;
    let found = match view {
        View::Whole => Path::new(path).strip_prefix(&mount.root).ok().map(|below| mount.at.join(below)),
        View::Part => holding(&mount.at, std::process::id(), DEEPEST),
    };
    found.ok_or_else(|| CgroupError::OwnElsewhere { own: path.into(), mount: mount.at.clone() })
}

/// Cgroups of pods are four or five levels deep, more where nodes are containers themselves.
const DEEPEST: u32 = 16;

/// The cgroup below a directory that holds a process, by the number that it has in this process's namespace.
fn holding(directory: &Path, pid: u32, depth: u32) -> Option<PathBuf> {
    let lists = |processes: String| processes.lines().any(|line| line.parse() == Ok(pid));
    if std::fs::read_to_string(directory.join("cgroup.procs")).is_ok_and(lists) {
        return Some(directory.into());
    }
    let depth = depth.checked_sub(1)?;
    let children = std::fs::read_dir(directory).ok()?.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    children.into_iter().find_map(|child| holding(&child.path(), pid, depth))
}

/// Refuses an agent's cgroup that cannot tell the agent from others.
pub fn check_own(own: &Path, pods: &Path, mount: &Mount) -> Result<(), CgroupError> {
    let shared = |why| Err(CgroupError::SharedOwn(own.into(), why));
    if mount.at == own {
        return shared("it is the topmost, where the node's other processes are");
    }
    if pods.starts_with(own) {
        return shared("the pods are below it");
    }
    if let Ok(processes) = std::fs::read_to_string(own.join("cgroup.procs"))
        && processes.lines().any(|pid| pid != std::process::id().to_string())
    {
        tracing::warn!(cgroup = %own.display(), "other processes are in the agent's cgroup: inside a pod's network namespace they would pass for the agent");
    }
    Ok(())
}

/// Reads a file of /proc.
pub fn read(path: &str) -> Result<String, CgroupError> {
    std::fs::read_to_string(path).map_err(|error| CgroupError::Io { path: path.into(), error })
}

#[cfg(test)]
mod tests;
