//! Speaking to the API server: kubectl in the control plane's namespace.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::layout::{self, CONTROL_NAMESPACE, kubeconfig};
use super::program::network;

/// A program in the control plane's namespace with the person's credentials: it reaches API server, nodes, pods, and nothing else.
pub fn inside(program: impl Into<OsString>) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(network(CONTROL_NAMESPACE)).arg("--").arg(program.into()).env("KUBECONFIG", kubeconfig("admin"));
    command
}

/// The kubectl of the cluster's own version.
pub fn kubectl() -> Command {
    inside(layout::kubectl())
}

/// `kubectl apply --server-side` of these documents.
pub fn apply(manifests: &str) -> Result<()> {
    apply_with(&[], manifests)
}

/// The same for objects that name no namespace.
pub fn apply_in(namespace: &str, manifests: &str) -> Result<()> {
    apply_with(&["-n", namespace], manifests)
}

fn apply_with(flags: &[&str], manifests: &str) -> Result<()> {
    feed(&[flags, &["apply", "--server-side", "--force-conflicts", "-f", "-"]].concat(), manifests)
}

/// Runs kubectl with `manifests` on its standard input.
///
/// # Errors
/// Carries what it wrote to its standard error.
pub fn feed(arguments: &[&str], manifests: &str) -> Result<()> {
    talk(arguments, manifests).map(drop)
}

/// What kubectl answers with `input` on its standard input.
///
/// # Errors
/// Carries what it wrote to its standard error.
pub fn talk(arguments: &[&str], input: &str) -> Result<String> {
    let mut child = kubectl()
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting kubectl")?;
    // Beside the reading: what it writes may not wait for what it has not read.
    let writer = child.stdin.take().map(|mut stdin| {
        let input = input.to_owned();
        std::thread::spawn(move || stdin.write_all(input.as_bytes()))
    });
    let output = child.wait_with_output().context("waiting for kubectl")?;
    if !output.status.success() {
        bail!("kubectl {} ended with {}: {}", arguments.join(" "), output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    if let Some(writer) = writer {
        writer.join().map_err(|_| anyhow!("the writer panicked"))?.context("writing to kubectl")?;
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What kubectl answers.
///
/// # Errors
/// Carries what it wrote to its standard error.
pub fn ask(arguments: &[&str]) -> Result<String> {
    let output = kubectl().args(arguments).output().context("starting kubectl")?;
    if !output.status.success() {
        bail!("kubectl {} ended with {}: {}", arguments.join(" "), output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Asks until `enough` says yes to the answer; in between, `alive` may give up.
///
/// # Errors
/// `limit` passed: carries the last answer.
pub fn ask_until(
    what: &str,
    arguments: &[&str],
    limit: Duration,
    alive: impl Fn() -> Result<()>,
    enough: impl Fn(&str) -> bool,
) -> Result<String> {
    let deadline = Instant::now() + limit;
    loop {
        let answer = ask(arguments);
        if let Ok(answer) = &answer
            && enough(answer)
        {
            return Ok(answer.clone());
        }
        alive()?;
        if Instant::now() >= deadline {
            let last = answer.unwrap_or_else(|error| format!("{error:#}"));
            bail!("{what}: not within {} s; the last answer was:\n{last}", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
