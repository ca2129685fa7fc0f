//! Control groups, version 2.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A directory of the cgroup v2 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    path: PathBuf,
}

/// Where cgroup v2 is mounted: `/sys/fs/cgroup` on most systems, `/sys/fs/cgroup/unified` beside version 1.
///
/// # Errors
/// It is mounted nowhere.
pub fn mount_point() -> Result<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    find_mount(&table).context("cgroup v2 is mounted nowhere: mount it (mount -t cgroup2 none /sys/fs/cgroup/unified) or boot with systemd.unified_cgroup_hierarchy=1")
}

/// The mount point of cgroup v2 in the text of a mountinfo file; fields are those of proc(5).
fn find_mount(table: &str) -> Option<PathBuf> {
    table.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?;
        (filesystem.split(' ').next()? == "cgroup2").then(|| PathBuf::from(point))
    })
}

impl Cgroup {
    /// The cgroup of this directory, which may not exist (any more).
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Makes it, with its parents.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        fs::create_dir_all(&path).with_context(|| format!("making cgroup {}", path.display()))?;
        Ok(Self { path })
    }

    /// Makes a cgroup below it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::create(self.path.join(name))
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its processes, without those of cgroups below.
    ///
    /// # Errors
    /// It is gone.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let file = self.path.join("cgroup.procs");
        let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Kills every process in it and below, waits until they are gone, and removes it with all cgroups below. Fine if it is gone.
    ///
    /// # Errors
    /// After five seconds something still lives in it.
    pub fn remove(&self) -> Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let kill = self.path.join("cgroup.kill");
            if let Err(error) = fs::write(&kill, "1")
                && self.path.exists()
            {
                return Err(error).with_context(|| format!("writing {}", kill.display()));
            }
            match remove_tree(&self.path) {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() >= deadline => {
                    bail!("cgroup {} can't be removed: {error}", self.path.display());
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

fn remove_tree(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

#[cfg(test)]
mod tests {
    use super::find_mount;
    use std::path::Path;

    #[test]
    fn finds_version_two_beside_version_one() {
        let table = "40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
                     41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(find_mount(table).as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
    }

    #[test]
    fn version_one_alone_is_none() {
        assert_eq!(find_mount("40 31 0:37 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"), None);
    }
}
