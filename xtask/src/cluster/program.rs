//! Starting a program of the cluster so that it outlives this tool and can be found again.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use super::layout;
use super::state::Recorder;

/// A program and where it runs.
pub struct Launch {
    /// Names its log and its entry in the state.
    pub name: String,
    /// The namespaces to enter, as options of nsenter(1); none: those of the thread which starts it.
    pub namespaces: Vec<OsString>,
    /// The control group that it enters first.
    pub cgroup: PathBuf,
    /// Program and arguments.
    pub words: Vec<OsString>,
}

/// A program that was started.
pub struct Started {
    name: String,
    child: Child,
}

impl Launch {
    /// Starts it, in a session of its own, and writes it down.
    pub fn start(&self, recorder: &Recorder) -> Result<Started> {
        let log = layout::log(&self.name);
        let output = File::options().create(true).append(true).open(&log).with_context(|| format!("opening {}", log.display()))?;
        let errors = output.try_clone().context("duplicating a log")?;
        let child =
            self.command().stdin(Stdio::null()).stdout(output).stderr(errors).spawn().with_context(|| format!("starting {}", self.name))?;
        recorder.started(&self.name, child.id())?;
        Ok(Started { name: self.name.clone(), child })
    }

    /// Every program of the chain becomes the next one: the process keeps one number throughout.
    fn command(&self) -> Command {
        let mut command = Command::new("setsid");
        if !self.namespaces.is_empty() {
            command.arg("nsenter").args(&self.namespaces).arg("--");
        }
        // Out of its group it could not be found again if this tool died before writing it down: without the group it does not start.
        command.args(["sh", "-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(self.cgroup.join("cgroup.procs")).args(&self.words);
        command.current_dir(layout::root());
        command
    }
}

impl Started {
    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// An error with the end of its log, if it ended.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait().with_context(|| format!("asking for {}", self.name))? {
            None => Ok(()),
            Some(status) => anyhow::bail!("{} ended with {status}:\n{}", self.name, tail(&layout::log(&self.name))),
        }
    }
}

/// The last lines of a log.
pub fn tail(log: &Path) -> String {
    let text = String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(15)..).unwrap_or_default().join("\n")
}

/// The option of nsenter(1) for a named network namespace.
pub fn network(namespace: &str) -> OsString {
    let mut option = OsString::from("--net=");
    option.push(mesh_lab::netns::path(namespace));
    option
}

/// Words of a command line.
pub fn words<const N: usize>(program: impl AsRef<OsStr>, arguments: [String; N]) -> Vec<OsString> {
    std::iter::once(program.as_ref().to_owned()).chain(arguments.map(OsString::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::{Launch, words};

    #[test]
    fn enters_the_group_before_it_becomes_the_program() {
        let launch = Launch {
            name: "etcd".to_owned(),
            namespaces: vec!["--net=/run/netns/x".into()],
            cgroup: "/sys/fs/cgroup/x".into(),
            words: words("/bin/etcd", ["--data-dir=d".to_owned()]),
        };
        let command = launch.command();
        let arguments: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        assert_eq!(command.get_program(), "setsid");
        assert_eq!(arguments[..5], ["nsenter", "--net=/run/netns/x", "--", "sh", "-c"]);
        assert_eq!(arguments[6..], ["/sys/fs/cgroup/x/cgroup.procs", "/bin/etcd", "--data-dir=d"]);
    }
}
