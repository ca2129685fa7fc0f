//! What processes cost: CPU time of their cgroup, memory of their own.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// A process whose cost counts as the path's.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Its pid.
    pub pid: u32,
    /// Its cgroup, which holds nothing else.
    pub cgroup: PathBuf,
}

impl Watched {
    /// CPU time of the cgroup since it was made, in microseconds.
    pub fn cpu_micros(&self) -> Result<u64> {
        let file = self.cgroup.join("cpu.stat");
        let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        text.lines()
            .find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok())
            .with_context(|| format!("{} has no usage_usec", file.display()))
    }

    /// Lets [`Self::peak_bytes`] begin anew. Where the kernel was built without that, the peak is that since the start.
    pub fn reset_peak(&self) {
        let _ = fs::write(format!("/proc/{}/clear_refs", self.pid), "5");
    }

    /// Most resident memory since the start or the reset.
    pub fn peak_bytes(&self) -> Result<u64> {
        self.status("VmHWM:")
    }

    /// Resident memory.
    pub fn rss_bytes(&self) -> Result<u64> {
        self.status("VmRSS:")
    }

    fn status(&self, field: &str) -> Result<u64> {
        let file = format!("/proc/{}/status", self.pid);
        let text = fs::read_to_string(&file).with_context(|| format!("reading {file}: has the process ended?"))?;
        let kib = text.lines().find_map(|line| line.strip_prefix(field)?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        Ok(kib.with_context(|| format!("{file} has no {field}"))? * 1024)
    }
}
