//! Network namespaces with names, and doing things inside them.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

/// Where a named namespace is found, by `ip netns` and by `nsenter --net=`.
pub fn path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// Runs lines of `ip -batch` in a namespace (None: this process's own).
///
/// # Errors
/// Names the line that failed, as `ip` reports it.
pub fn ip(namespace: Option<&str>, lines: &[String]) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(namespace) = namespace {
        command.args(["-n", namespace]);
    }
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting `ip` (package iproute2)")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all((lines.join("\n") + "\n").as_bytes()).context("writing to `ip -batch`")?;
    }
    let output = child.wait_with_output().context("waiting for `ip`")?;
    if !output.status.success() {
        let place = namespace.map_or_else(|| "this machine's namespace".to_owned(), |name| format!("namespace {name}"));
        bail!("ip in {place}: {}\n{}", String::from_utf8_lossy(&output.stderr).trim(), lines.join("\n"));
    }
    Ok(())
}

/// Removes named namespaces; those that are gone are fine.
///
/// # Errors
/// One can't be removed.
pub fn remove(names: &[String]) -> Result<()> {
    let lines: Vec<String> = names.iter().filter(|name| path(name).exists()).map(|name| format!("netns del {name}")).collect();
    if lines.is_empty() { Ok(()) } else { ip(None, &lines) }
}

/// Runs a closure in the namespace, on a thread of its own that ends with it. Sockets opened there belong to the namespace for good.
///
/// The thread stays in this process's cgroup: programs attached to a pod's cgroup don't see it. Use the peer program for those.
///
/// # Errors
/// The namespace is gone, this process lacks CAP_SYS_ADMIN, or the closure panicked.
pub fn within<T: Send>(namespace: &Path, work: impl FnOnce() -> T + Send) -> Result<T> {
    let file = File::open(namespace).with_context(|| format!("opening namespace {}", namespace.display()))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET).with_context(|| format!("entering namespace {}", namespace.display()))?;
            Ok(work())
        });
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Writes kernel settings in a namespace; names as in `sysctl`, with `/` or `.` between parts.
///
/// # Errors
/// Names the setting that the kernel refused.
pub fn sysctl(namespace: &Path, settings: &[(&str, &str)]) -> Result<()> {
    within(namespace, || {
        for (name, value) in settings {
            let file = Path::new("/proc/sys").join(name.replace('.', "/"));
            std::fs::write(&file, value).with_context(|| format!("setting {name}={value}"))?;
        }
        Ok(())
    })?
}
