//! What the kernel and the process must have before anything is loaded. Each lack is one sentence that names it.

use std::path::{Path, PathBuf};

/// A lack.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Lack {
    /// Too old.
    #[error("the kernel is {0}; Nodemesh needs Linux 5.15 or newer")]
    Kernel(String),
    /// No type information.
    #[error("the kernel has no BTF ({0} is missing); it must be built with CONFIG_DEBUG_INFO_BTF=y")]
    Btf(PathBuf),
    /// Not cgroup v2.
    #[error(
        "{0} is not a directory of a cgroup v2 hierarchy; give one with --cgroup-root (often /sys/fs/cgroup, or /sys/fs/cgroup/unified beside cgroup v1)"
    )]
    Cgroup(PathBuf),
    /// The pods' cgroup is elsewhere.
    #[error("--pods-cgroup {0} is not a cgroup below --cgroup-root {1}")]
    PodsCgroup(PathBuf, PathBuf),
    /// No bpf filesystem.
    #[error("{0} is not a bpf filesystem; mount one there (mount -t bpf bpf {0}) or give another with --bpffs")]
    Bpffs(PathBuf),
    /// A missing capability.
    #[error("the process lacks {0}, which it needs to {1}")]
    Capability(&'static str, &'static str),
}

/// Where to look; the paths are parameters so that each lack can be seen in a test.
#[derive(Debug, Clone)]
pub struct Places {
    /// `/sys/kernel/btf/vmlinux`.
    pub btf: PathBuf,
    /// The cgroup to attach to.
    pub cgroup_root: PathBuf,
    /// The cgroup above all pods.
    pub pods_cgroup: PathBuf,
    /// The bpf filesystem.
    pub bpffs: PathBuf,
    /// `/proc/self/status`.
    pub status: PathBuf,
    /// `/proc/sys/kernel/osrelease`.
    pub release: PathBuf,
}

impl Places {
    /// The usual places.
    pub fn new(cgroup_root: &Path, pods_cgroup: &Path, bpffs: &Path) -> Self {
        Places {
            btf: "/sys/kernel/btf/vmlinux".into(),
            cgroup_root: cgroup_root.into(),
            pods_cgroup: pods_cgroup.into(),
            bpffs: bpffs.into(),
            status: "/proc/self/status".into(),
            release: "/proc/sys/kernel/osrelease".into(),
        }
    }
}

const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// Every lack, not only the first.
pub fn check(places: &Places) -> Vec<Lack> {
    let mut lacks = Vec::new();
    if let Ok(release) = std::fs::read_to_string(&places.release)
        && version(&release).is_some_and(|v| v < (5, 15))
    {
        lacks.push(Lack::Kernel(release.trim().into()));
    }
    if !places.btf.exists() {
        lacks.push(Lack::Btf(places.btf.clone()));
    }
    if filesystem(&places.cgroup_root) != Some(CGROUP2_MAGIC) {
        lacks.push(Lack::Cgroup(places.cgroup_root.clone()));
    } else if !places.pods_cgroup.starts_with(&places.cgroup_root) || !places.pods_cgroup.is_dir() {
        lacks.push(Lack::PodsCgroup(places.pods_cgroup.clone(), places.cgroup_root.clone()));
    }
    if filesystem(&places.bpffs) != Some(BPF_FS_MAGIC) {
        lacks.push(Lack::Bpffs(places.bpffs.clone()));
    }
    let capabilities = std::fs::read_to_string(&places.status).ok().and_then(|s| effective(&s)).unwrap_or(0);
    lacks.extend(missing(capabilities));
    lacks
}

fn filesystem(path: &Path) -> Option<u64> {
    rustix::fs::statfs(path).ok().map(|s| s.f_type as u64)
}

/// Major and minor of a kernel release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.trim().split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn missing(capabilities: u64) -> Vec<Lack> {
    let has = |bit: u32| capabilities & (1 << bit) != 0;
    let (net_admin, sys_admin, bpf) = (12, 21, 39);
    let mut lacks = Vec::new();
    if !has(bpf) && !has(sys_admin) {
        lacks.push(Lack::Capability("CAP_BPF", "load eBPF programs"));
    }
    if !has(net_admin) {
        lacks.push(Lack::Capability("CAP_NET_ADMIN", "attach them, to mark sockets and to add a rule to a pod's routing"));
    }
    if !has(sys_admin) {
        lacks.push(Lack::Capability("CAP_SYS_ADMIN", "open sockets inside the pods' network namespaces"));
    }
    lacks
}

#[cfg(test)]
mod tests;
