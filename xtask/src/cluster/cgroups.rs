//! Control groups: one of the control plane, one a node, in whatever hierarchies the machine has.
//!
//! All processes of the cluster are in one of them in the version 2 hierarchy, so that ending the group ends the cluster.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mesh_lab::Cgroup;
use serde::{Deserialize, Serialize};

use super::layout::Node;

const ROOT: &str = "/sys/fs/cgroup";
/// Where runc looks for version 2 beside version 1.
const BESIDE: &str = "/sys/fs/cgroup/unified";
const CONTROL: &str = "nodemesh-control";
/// What a kubelet can't do without in version 2.
const NEEDED: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];
/// What it uses where it is there.
const USED: [&str; 6] = ["cpu", "cpuset", "memory", "pids", "io", "hugetlb"];

/// How control groups are mounted on this machine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hierarchies {
    /// Version 2.
    pub unified: PathBuf,
    /// Version 1; none on a machine that has version 2 only.
    pub legacy: Vec<PathBuf>,
}

impl Hierarchies {
    /// Those of this machine.
    pub fn detect() -> Result<Self> {
        Self::find(&fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?)
    }

    /// From the text of a mountinfo file; fields are those of proc(5).
    fn find(table: &str) -> Result<Self> {
        let mounts = |wanted: &'static str| {
            table.lines().filter_map(move |line| {
                let (mount, filesystem) = line.split_once(" - ")?;
                let point = Path::new(mount.split(' ').nth(4)?);
                (filesystem.split(' ').next()? == wanted).then(|| point.to_owned())
            })
        };
        if mounts("cgroup2").any(|point| point == Path::new(ROOT)) {
            return Ok(Self { unified: ROOT.into(), legacy: Vec::new() });
        }
        if !mounts("cgroup2").any(|point| point == Path::new(BESIDE)) {
            bail!(
                "cgroup v2 is mounted neither at {ROOT} nor at {BESIDE}: boot with systemd.unified_cgroup_hierarchy=1, \
                 or mkdir -p {BESIDE} && mount -t cgroup2 cgroup2 {BESIDE}"
            );
        }
        let mut legacy: Vec<PathBuf> = mounts("cgroup").filter(|point| point.parent() == Some(Path::new(ROOT))).collect();
        legacy.sort();
        legacy.dedup();
        for controller in ["cpu", "cpuset", "memory"] {
            if !legacy.iter().any(|point| point.ends_with(controller) || has_controller(point, controller)) {
                bail!("the cgroup v1 controller {controller} is not mounted below {ROOT}, which a kubelet needs");
            }
        }
        Ok(Self { unified: BESIDE.into(), legacy })
    }

    /// The kubelet must be told that version 1 is on purpose.
    pub fn is_legacy(&self) -> bool {
        !self.legacy.is_empty()
    }

    /// The control plane's group.
    pub fn control(&self) -> PathBuf {
        self.unified.join(CONTROL)
    }

    /// A node's group, under which its kubelet makes `kubepods`.
    pub fn node(&self, node: Node) -> PathBuf {
        self.unified.join(node.cgroup())
    }

    /// The group of containerd, kubelet and kube-proxy of a node. A leaf: version 2 allows processes only in leaves.
    pub fn system(&self, node: Node) -> PathBuf {
        self.node(node).join("system")
    }

    /// Every group that a cluster of so many nodes makes, in every hierarchy.
    pub fn all(&self, nodes: u8) -> Vec<PathBuf> {
        let trees = std::iter::once(&self.unified).chain(&self.legacy);
        let of_nodes = trees.flat_map(|tree| Node::all(nodes).map(move |node| tree.join(node.cgroup())));
        std::iter::once(self.control()).chain(of_nodes).collect()
    }

    /// Makes them.
    pub fn create(&self, nodes: u8) -> Result<()> {
        Cgroup::create(self.control())?;
        if !self.is_legacy() {
            delegate(&self.unified, &NEEDED)?;
        }
        for node in Node::all(nodes) {
            Cgroup::create(self.node(node))?;
            if !self.is_legacy() {
                delegate(&self.node(node), &NEEDED)?;
            }
            Cgroup::create(self.system(node))?;
            for tree in &self.legacy {
                let group = tree.join(node.cgroup());
                Cgroup::create(&group)?;
                // A new group of version 1's cpuset is empty, and nothing can run in it.
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    if let Ok(all) = fs::read_to_string(tree.join(file)) {
                        fs::write(group.join(file), all).with_context(|| format!("writing {file} of {}", group.display()))?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn has_controller(point: &Path, controller: &str) -> bool {
    point.file_name().is_some_and(|name| name.to_string_lossy().split(',').any(|part| part == controller))
}

/// Lets the groups below use the controllers.
fn delegate(group: &Path, needed: &[&str]) -> Result<()> {
    let file = group.join("cgroup.controllers");
    let available = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let has = |controller: &str| available.split_whitespace().any(|word| word == controller);
    let missing: Vec<&str> = needed.iter().copied().filter(|controller| !has(controller)).collect();
    if !missing.is_empty() {
        bail!(
            "{} lacks the controllers {}: a kubelet needs them (in a container, run it with its own cgroup namespace and --privileged; \
             with systemd, Delegate=yes on the unit)",
            group.display(),
            missing.join(", ")
        );
    }
    let words: Vec<String> = USED.iter().filter(|controller| has(controller)).map(|controller| format!("+{controller}")).collect();
    let file = group.join("cgroup.subtree_control");
    fs::write(&file, words.join(" ")).with_context(|| {
        format!(
            "writing `{}` to {}: a group other than the machine's root must hold no process of its own",
            words.join(" "),
            file.display()
        )
    })
}

/// Ends every process in the groups and removes them; those that are gone are fine.
///
/// # Errors
/// One can't be removed: it is named; the others are gone.
pub fn remove(groups: &[PathBuf]) -> Result<()> {
    let mut failures = Vec::new();
    for group in groups.iter().filter(|group| group.exists()) {
        // Only version 2 can end a whole group; the same processes are in version 1's, which need only be cleared away.
        let result = if group.join("cgroup.kill").exists() { Cgroup::at(group).remove() } else { clear(group) };
        if let Err(error) = result {
            failures.push(format!("{error:#}"));
        }
    }
    if failures.is_empty() { Ok(()) } else { bail!("{}", failures.join("; ")) }
}

/// Every process in a group and in those below it.
pub fn processes(group: &Path) -> Vec<u32> {
    let own = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let below = fs::read_dir(group).into_iter().flatten().flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    own.lines().filter_map(|line| line.parse().ok()).chain(below.flat_map(|entry| processes(&entry.path()))).collect()
}

fn clear(group: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match remove_tree(group) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() >= deadline => bail!("cgroup {} can't be removed: {error}", group.display()),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn remove_tree(group: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

#[cfg(test)]
mod tests {
    use super::Hierarchies;
    use crate::cluster::layout::Node;
    use std::path::PathBuf;

    const V1: &str = "30 1 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      31 1 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
                      32 1 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

    #[test]
    fn version_two_alone() {
        let found = Hierarchies::find("24 1 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n").unwrap();
        assert!(!found.is_legacy());
        assert_eq!(found.system(Node(2)), PathBuf::from("/sys/fs/cgroup/node2/system"));
        assert_eq!(found.all(1).len(), 2);
    }

    #[test]
    fn version_two_beside_version_one() {
        let table = format!("{V1}33 1 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
        let found = Hierarchies::find(&table).unwrap();
        assert!(found.is_legacy());
        assert_eq!(found.node(Node(1)), PathBuf::from("/sys/fs/cgroup/unified/node1"));
        assert!(found.all(2).contains(&PathBuf::from("/sys/fs/cgroup/memory/node2")));
        assert_eq!(found.all(2).len(), 1 + 4 * 2);
    }

    #[test]
    fn controllers_mounted_together_count() {
        let table = "30 1 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                     31 1 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
                     32 1 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                     33 1 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert!(Hierarchies::find(table).is_ok());
    }

    #[test]
    fn says_what_to_mount() {
        let error = Hierarchies::find(V1).unwrap_err().to_string();
        assert!(error.contains("mount -t cgroup2"), "{error}");
        let error = Hierarchies::find("33 1 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n").unwrap_err().to_string();
        assert!(error.contains("controller cpu"), "{error}");
    }
}
