//! Programs in a place: a network namespace and a cgroup.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// Where a program runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The namespace's file.
    pub netns: PathBuf,
    /// The cgroup's directory.
    pub cgroup: PathBuf,
}

/// A program that ended.
#[derive(Debug)]
pub struct Finished {
    /// How; None if its time was up and it was killed.
    pub status: Option<ExitStatus>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// How long it ran.
    pub took: Duration,
}

impl Finished {
    /// It ended by itself with code 0.
    pub fn ok(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// Its exit code; None after a signal or a timeout.
    pub fn code(&self) -> Option<i32> {
        self.status.and_then(|status| status.code())
    }

    /// Its standard output, if it ended with code 0.
    ///
    /// # Errors
    /// Carries status and standard error otherwise.
    pub fn success(&self) -> Result<&str> {
        match self.status {
            Some(status) if status.success() => Ok(&self.stdout),
            Some(status) => bail!("{status}: {} {}", self.stderr.trim(), self.stdout.trim()),
            None => bail!("killed after {:?}: {} {}", self.took, self.stderr.trim(), self.stdout.trim()),
        }
    }
}

impl Place {
    /// A command that enters the place and then becomes the program: the process keeps one pid throughout.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = self.interactive(words);
        command.process_group(0);
        command
    }

    /// As [`Self::command`], in this program's process group: for a person at a terminal.
    pub fn interactive(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        let mut namespace = OsString::from("--net=");
        namespace.push(&self.netns);
        command
            .arg(namespace)
            .args(["--", "sh", "-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(self.cgroup.join("cgroup.procs"))
            .args(words);
        command
    }

    /// Runs a program to its end, at most for `limit`.
    ///
    /// # Errors
    /// It can't be started. A program that fails or is killed at the limit is no error: see [`Finished`].
    pub fn exec(&self, words: &[&str], limit: Duration) -> Result<Finished> {
        self.exec_with_input(words, b"", limit)
    }

    /// As [`Self::exec`], with bytes for its standard input.
    ///
    /// # Errors
    /// As [`Self::exec`].
    pub fn exec_with_input(&self, words: &[&str], input: &[u8], limit: Duration) -> Result<Finished> {
        let start = Instant::now();
        let mut child = self
            .command(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", words.join(" ")))?;
        let stdout = collect(child.stdout.take());
        let stderr = collect(child.stderr.take());
        if let Some(mut stdin) = child.stdin.take() {
            let input = input.to_vec();
            std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &input));
        }
        let status = wait(&mut child, limit)?;
        if status.is_none() {
            let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
            child.wait().context("reaping")?;
        }
        let text = |thread: JoinHandle<Vec<u8>>| String::from_utf8_lossy(&thread.join().unwrap_or_default()).into_owned();
        Ok(Finished { status, stdout: text(stdout), stderr: text(stderr), took: start.elapsed() })
    }

    /// Starts a program that runs until its guard is dropped; both outputs go to `log`.
    ///
    /// # Errors
    /// It can't be started.
    pub fn spawn(&self, words: &[&str], log: &Path, environment: &[(&str, &str)]) -> Result<Process> {
        let output = File::options().create(true).append(true).open(log).with_context(|| format!("opening {}", log.display()))?;
        let errors = output.try_clone().context("duplicating the log")?;
        let child = self
            .command(words)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("starting {}", words.join(" ")))?;
        Ok(Process { child, log: log.to_owned(), words: words.iter().map(|&word| word.to_owned()).collect() })
    }
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait().context("waiting for a child")? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// A running program. Dropping it kills and reaps it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
    words: Vec<String>,
}

impl Process {
    /// Its pid in this machine.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote so far to both outputs.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The file behind [`Self::log`].
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// It has not ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).with_context(|| format!("signalling {}", self.words.join(" ")))
    }

    /// Waits for its end, at most for `limit`; None if it is still running then.
    ///
    /// # Errors
    /// The kernel refuses to wait.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        wait(&mut self.child, limit)
    }

    /// SIGTERM, then SIGKILL where it hasn't ended within `limit`.
    ///
    /// # Errors
    /// The kernel refuses to wait.
    pub fn stop(mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let _ = self.signal(Signal::SIGTERM);
        self.wait(limit)
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(&mut self) {
        // The program leads a process group of its own, so its children go with it.
        let _ = killpg(Pid::from_raw(self.pid().cast_signed()), Signal::SIGKILL);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Lets it run on when this guard goes; for worlds that are kept.
    pub fn detach(self) {
        std::mem::forget(self);
    }

    /// Waits until its output holds `needle`.
    ///
    /// # Errors
    /// It ended before, or `limit` passed; carries the output.
    pub fn wait_for_log(&mut self, needle: &str, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let running = self.is_running();
            if self.log().contains(needle) {
                return Ok(());
            }
            if !running {
                bail!("`{}` ended before it said {needle:?}; it wrote:\n{}", self.words.join(" "), self.log());
            }
            if Instant::now() >= deadline {
                bail!("`{}` did not say {needle:?} within {limit:?}; it wrote:\n{}", self.words.join(" "), self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Asks `ready` every few milliseconds until it says yes.
///
/// # Errors
/// `limit` passed; names `what`.
pub fn wait_until(what: &str, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !ready() {
        if Instant::now() >= deadline {
            bail!("{what}: not within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
