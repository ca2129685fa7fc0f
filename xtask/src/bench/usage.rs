//! What processes cost: CPU time of their cgroup, memory of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

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
        cpu_stat(&self.cgroup, "usage_usec ")
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

fn cpu_stat(cgroup: &Path, field: &str) -> Result<u64> {
    let file = cgroup.join("cpu.stat");
    let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    text.lines().find_map(|line| line.strip_prefix(field)?.parse().ok()).with_context(|| format!("{} has no {field}", file.display()))
}

/// How much of the machine's CPU time others took from a moment on: a benchmark beside a compiler measures the compiler.
///
/// Only time in user mode is looked at. Time in the kernel can't be told apart, because interrupts are booked on whom they meet.
#[derive(Debug)]
pub struct Others {
    start: Instant,
    cgroup: PathBuf,
    /// Microseconds.
    everyone: u64,
    ours: u64,
}

impl Others {
    /// From now on, beside the processes of this cgroup.
    pub fn beside(cgroup: &Path) -> Result<Self> {
        let everyone = user_micros(&fs::read_to_string("/proc/stat").context("reading /proc/stat")?)?;
        Ok(Self { start: Instant::now(), cgroup: cgroup.to_owned(), everyone, ours: cpu_stat(cgroup, "user_usec ")? })
    }

    /// Their share until now: 1 is all cores.
    pub fn share(&self) -> Result<f64> {
        let now = Self::beside(&self.cgroup)?;
        let others = (now.everyone - self.everyone).saturating_sub(now.ours - self.ours);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(others as f64 / 1e6 / self.start.elapsed().as_secs_f64() / cores as f64)
    }
}

/// `user` and `nice` of proc(5)'s /proc/stat, which counts in hundredths of a second.
fn user_micros(text: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu ")).context("/proc/stat has no line `cpu`")?;
    let numbers: Vec<u64> = line.split_whitespace().take(2).map(str::parse).collect::<Result<_, _>>().context("/proc/stat")?;
    Ok(numbers.iter().sum::<u64>() * 10_000)
}

#[cfg(test)]
mod tests {
    use super::user_micros;

    #[test]
    fn user_time_is_user_and_nice() {
        assert_eq!(user_micros("cpu  100 20 999 5 0 0 0 0 0 0\ncpu0 1 2 3").expect("parses"), 1_200_000);
        assert!(user_micros("intr 1").is_err());
    }
}
