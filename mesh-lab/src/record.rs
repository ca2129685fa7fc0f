//! What exists because of a world, written down before it is made, and the removal of all of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::netns;
use crate::process::Place;

/// One directory a world.
pub const STATE: &str = "/run/nodemesh-lab";
/// Where programs and maps are pinned.
pub const BPFFS: &str = "/sys/fs/bpf";
const MOUNTED: &str = "/run/nodemesh-lab/mounted-bpffs";
const FILE: &str = "world.json";

/// A process, told from a later one with its number by its start.
#[derive(Clone, Copy, Serialize, Deserialize, PartialEq, Eq, Debug)]
pub struct ProcessId {
    pid: u32,
    /// Clock ticks after boot.
    start: u64,
}

impl ProcessId {
    /// The process of this number that runs at this moment.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        start_of(&stat).map(|start| Self { pid, start })
    }

    /// It has not ended.
    pub fn alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Its number in this machine.
    pub fn pid(self) -> u32 {
        self.pid
    }
}

/// Field 22 of proc(5)'s stat; the second, a name in brackets, may hold anything. None for a zombie.
fn start_of(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Everything a world has on this machine.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) struct Record {
    pub(crate) id: String,
    pub(crate) owner: Option<ProcessId>,
    pub(crate) cgroup: PathBuf,
    pub(crate) namespaces: BTreeSet<String>,
    pub(crate) pins: BTreeSet<PathBuf>,
    /// Pods by `namespace/name`, for those who come later to look around.
    pub(crate) pods: BTreeMap<String, Place>,
}

/// A world that was kept.
#[derive(Clone, Debug)]
pub struct KeptWorld {
    /// Its name.
    pub id: String,
    /// Its directory.
    pub directory: PathBuf,
    /// Its pods by `namespace/name`.
    pub pods: BTreeMap<String, Place>,
}

/// The kept worlds whose name begins so.
///
/// # Errors
/// A record can't be read.
pub fn kept(prefix: &str) -> Result<Vec<KeptWorld>> {
    let mut found = Vec::new();
    for directory in directories()? {
        let record = Record::load(&directory)?;
        if record.owner.is_none() && record.id.starts_with(prefix) {
            found.push(KeptWorld { id: record.id, directory, pods: record.pods });
        }
    }
    Ok(found)
}

/// What to do with worlds that were kept on purpose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kept {
    /// They stay.
    Leave,
    /// They go too, as long as their name begins so.
    Remove(&'static str),
}

impl Record {
    /// Its directory.
    pub(crate) fn directory(&self) -> PathBuf {
        Path::new(STATE).join(&self.id)
    }

    /// Writes it whole or not at all.
    pub(crate) fn save(&self) -> Result<()> {
        let directory = self.directory();
        fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
        let fresh = directory.join("world.json.new");
        let text = serde_json::to_vec_pretty(self).context("world.json")?;
        fs::write(&fresh, text).with_context(|| format!("writing {}", fresh.display()))?;
        fs::rename(&fresh, directory.join(FILE)).with_context(|| format!("replacing {FILE} in {}", directory.display()))
    }

    pub(crate) fn load(directory: &Path) -> Result<Self> {
        let file = directory.join(FILE);
        let text = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("reading {}", file.display()))
    }

    /// Removes everything but the record itself, so that a failure can be taken up again; what is gone already is fine.
    pub(crate) fn tear_down(&self) -> Result<()> {
        let mut failures = Vec::new();
        let mut note = |result: Result<()>| {
            if let Err(error) = result {
                failures.push(format!("{error:#}"));
            }
        };
        // Every process of the world is in its cgroup: one enters before it becomes its program, and can't where the cgroup is gone.
        // Programs attached through a pinned link are detached when the last pin and the last process are gone.
        note(Cgroup::at(&self.cgroup).remove());
        for pin in &self.pins {
            if pin.exists() {
                note(fs::remove_dir_all(pin).with_context(|| format!("removing pins {}", pin.display())));
            }
        }
        let names: Vec<String> = self.namespaces.iter().cloned().collect();
        note(netns::remove(&names));
        if failures.is_empty() { Ok(()) } else { bail!("world {} left behind: {}", self.id, failures.join("; ")) }
    }

    /// Removes the record. Call with the [`lock`] held.
    pub(crate) fn forget(&self) -> Result<()> {
        let directory = self.directory();
        fs::remove_dir_all(&directory).with_context(|| format!("removing {}", directory.display()))?;
        release_bpffs()
    }
}

/// Serialises worlds that come and go in several processes.
pub(crate) fn lock() -> Result<Flock<File>> {
    fs::create_dir_all(STATE).with_context(|| format!("making {STATE}: worlds need root"))?;
    let path = Path::new(STATE).join("lock");
    let file = File::options().create(true).append(true).open(&path).with_context(|| format!("opening {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error).with_context(|| format!("locking {}", path.display()))
}

/// Mounts the bpf filesystem where it isn't, and remembers that. Call with the [`lock`] held.
pub(crate) fn provide_bpffs() -> Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    if has_bpffs(&table) {
        return Ok(());
    }
    fs::write(MOUNTED, "").with_context(|| format!("writing {MOUNTED}"))?;
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>).with_context(|| format!("mounting bpf at {BPFFS}"))
}

fn has_bpffs(table: &str) -> bool {
    table.lines().any(|line| {
        line.split_once(" - ")
            .is_some_and(|(mount, filesystem)| mount.split(' ').nth(4) == Some(BPFFS) && filesystem.split(' ').next() == Some("bpf"))
    })
}

/// Unmounts the bpf filesystem if a world mounted it, no world is left, and nobody else pinned anything in it.
fn release_bpffs() -> Result<()> {
    if !Path::new(MOUNTED).exists() || !directories()?.is_empty() {
        return Ok(());
    }
    let ours = Path::new(BPFFS).join("nodemesh");
    if ours.is_dir() && fs::read_dir(&ours).is_ok_and(|mut entries| entries.next().is_none()) {
        fs::remove_dir(&ours).with_context(|| format!("removing {}", ours.display()))?;
    }
    // A fresh one holds the kernel's own two files.
    let foreign = |name: &std::ffi::OsStr| name != "maps.debug" && name != "progs.debug";
    if fs::read_dir(BPFFS).is_ok_and(|entries| !entries.flatten().any(|entry| foreign(&entry.file_name()))) {
        umount2(BPFFS, MntFlags::empty()).with_context(|| format!("unmounting {BPFFS}"))?;
        fs::remove_file(MOUNTED).with_context(|| format!("removing {MOUNTED}"))?;
    }
    Ok(())
}

pub(crate) fn directories() -> Result<Vec<PathBuf>> {
    let Ok(entries) = fs::read_dir(STATE) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("reading {STATE}"))?.path();
        if path.join(FILE).is_file() {
            found.push(path);
        }
    }
    Ok(found)
}

/// Removes every world whose owner is gone, and kept ones if asked. Returns the names of those removed.
///
/// # Errors
/// Something can't be removed; the rest has been.
pub fn sweep(kept: Kept) -> Result<Vec<String>> {
    let _lock = lock()?;
    let mut removed = Vec::new();
    let mut failures = Vec::new();
    for directory in directories()? {
        let record = match Record::load(&directory) {
            Ok(record) => record,
            Err(error) => {
                failures.push(format!("{error:#}"));
                continue;
            }
        };
        let goes = match (record.owner, kept) {
            (Some(owner), _) => !owner.alive(),
            (None, Kept::Remove(prefix)) => record.id.starts_with(prefix),
            (None, Kept::Leave) => false,
        };
        if goes {
            match record.tear_down().and_then(|()| record.forget()) {
                Ok(()) => removed.push(record.id),
                Err(error) => failures.push(format!("{error:#}")),
            }
        }
    }
    release_bpffs()?;
    if failures.is_empty() { Ok(removed) } else { bail!("{}", failures.join("\n")) }
}

#[cfg(test)]
mod tests {
    use super::{ProcessId, has_bpffs, start_of};

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let stat = "42 (a) b ) S 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 98765 1 1";
        assert_eq!(start_of(stat), Some(98765));
    }

    #[test]
    fn a_zombie_is_gone() {
        assert_eq!(start_of("42 (x) Z 1 42 42 0 -1 4 1 0 0 0 0 0 0 0 20 0 1 0 98765 1 1"), None);
    }

    #[test]
    fn this_process_lives() {
        assert!(ProcessId::of(std::process::id()).is_some_and(ProcessId::alive));
    }

    #[test]
    fn bpf_must_be_mounted_at_its_place() {
        assert!(has_bpffs("50 23 0:40 / /sys/fs/bpf rw,nosuid shared:5 - bpf bpf rw,mode=700"));
        assert!(!has_bpffs("50 23 0:40 / /mnt/bpf rw - bpf bpf rw\n23 1 0:21 / /sys/fs/bpf rw - sysfs sysfs rw"));
    }
}
