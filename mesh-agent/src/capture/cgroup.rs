//! Which cgroup is whose: the numbers by which the kernel programs tell the agent, the pods and the host's own processes apart.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

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
    #[error("{0} is not below a mounted cgroup v2 hierarchy that shows its root")]
    NotMounted(PathBuf),
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
    /// Which part of it is mounted there.
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

/// Depth of a cgroup in its hierarchy; the root's is 0.
pub fn level(path: &Path, mounts: &[Mount]) -> Result<u32, CgroupError> {
    mounts
        .iter()
        .filter(|mount| mount.root == Path::new("/"))
        .find_map(|mount| path.strip_prefix(&mount.at).ok())
        .map(|below| below.components().count() as u32)
        .ok_or_else(|| CgroupError::NotMounted(path.into()))
}

/// The path of the process's own cgroup, from `/proc/self/cgroup` (the line `0::/…`).
pub fn own(proc_self_cgroup: &str, mounts: &[Mount]) -> Result<PathBuf, CgroupError> {
    let path = proc_self_cgroup.lines().find_map(|l| l.strip_prefix("0::/")).ok_or(CgroupError::NoOwn)?;
    let mount = mounts.iter().find(|mount| mount.root == Path::new("/")).ok_or_else(|| CgroupError::NotMounted(path.into()))?;
    Ok(mount.at.join(path))
}

/// Refuses an agent's cgroup that cannot tell the agent from others.
pub fn check_own(own: &Path, pods: &Path, mounts: &[Mount]) -> Result<(), CgroupError> {
    let shared = |why| Err(CgroupError::SharedOwn(own.into(), why));
    if mounts.iter().any(|mount| mount.at == own) {
        return shared("it is the root, where the kernel's own threads are");
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
