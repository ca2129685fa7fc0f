//! Recording packets of a namespace with tcpdump.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::pcap::Trace;
use crate::process::{Place, Process};
use crate::world::World;

/// A running capture. Dropping it ends it; the file stays as long as the world.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    file: PathBuf,
}

impl World {
    /// Starts recording everything on the link between the nodes. Returns once tcpdump listens.
    ///
    /// # Errors
    /// tcpdump can't be started.
    pub fn capture_fabric(&self, name: &str) -> Result<Capture> {
        Capture::start(&self.fabric(), self.directory(), name)
    }
}

impl Capture {
    /// Starts recording everything that the place's namespace sees on any interface, into `captures/<name>.pcap`.
    ///
    /// # Errors
    /// tcpdump can't be started.
    pub fn start(place: &Place, directory: &Path, name: &str) -> Result<Self> {
        let file = directory.join("captures").join(format!("{name}.pcap"));
        let log = directory.join("logs").join(format!("tcpdump-{name}.log"));
        let target = file.to_string_lossy().into_owned();
        let words = ["tcpdump", "-n", "-U", "-s", "0", "-B", "65536", "--immediate-mode", "-Z", "root", "-i", "any", "-w", &target];
        let mut process = place.spawn(&words, &log, &[]).context("starting tcpdump")?;
        process.wait_for_log("listening on", Duration::from_secs(10))?;
        Ok(Self { process, file })
    }

    /// The file, readable at any time.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Ends the capture and reads it. `settle` is how long packets under way may take to be seen.
    ///
    /// # Errors
    /// tcpdump failed, or lost packets: a search in what is left would prove nothing.
    pub fn finish(mut self, settle: Duration) -> Result<Trace> {
        std::thread::sleep(settle);
        self.process.signal(Signal::SIGINT)?;
        self.process.wait(Duration::from_secs(10))?.context("tcpdump did not end")?;
        let log = self.process.log();
        let lost = log.lines().find_map(|line| line.trim().strip_suffix(" packets dropped by kernel"));
        if let Some(lost) = lost
            && lost != "0"
        {
            anyhow::bail!("tcpdump lost {lost} packets");
        }
        Trace::read(&self.file)
    }
}
