//! Starting a program of the cluster so that it outlives this tool and can be found again.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use super::layout;
use super::state::Recorder;

/// Becomes the program in its group: out of it, it could not be found again if this tool died before writing it down.
///
/// What this tool inherited from its caller beyond the standard streams stays behind: a lock held by such a descriptor would
/// otherwise be held as long as the cluster lives. (Only bash closes descriptors of two digits.)
const BECOME: &str = r#"for open in /proc/$$/fd/*; do open=${open##*/}; if ((open > 2)); then eval "exec $open>&-"; fi; done
echo $$ > "$0" && exec "$@""#;

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
        command.args(["bash", "-c", BECOME]).arg(self.cgroup.join("cgroup.procs")).args(&self.words);
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
        assert_eq!(arguments[..5], ["nsenter", "--net=/run/netns/x", "--", "bash", "-c"]);
        assert_eq!(arguments[6..], ["/sys/fs/cgroup/x/cgroup.procs", "/bin/etcd", "--data-dir=d"]);
    }

    #[test]
    fn inherits_nothing_but_the_standard_streams() {
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path().join("cgroup.procs");
        std::fs::write(dir.path().join("held"), "").unwrap();
        // As a caller does that holds a lock: descriptors of one and of two digits, open in every program after it.
        let script = r#"exec 5<"$0" 27<"$0"; exec bash -c "$1" "$2" ls -l /proc/self/fd"#;
        let output = std::process::Command::new("bash")
            .args(["-c", script])
            .arg(dir.path().join("held"))
            .arg(super::BECOME)
            .arg(&group)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let open = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(open.contains(" 1 -> "), "{open}");
        assert!(!open.contains("held"), "{open}");
        assert!(!std::fs::read_to_string(group).unwrap().trim().is_empty(), "it entered no group");
    }
}
