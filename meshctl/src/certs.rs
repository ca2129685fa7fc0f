//! `meshctl certs`: whose certificates the agents hold, and until when. The root's rotation is in [`crate::rotate`].

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use serde::Serialize;

use crate::agent::{self, Certificate, Report};
use crate::cluster::Target;
use crate::output::{Cell, Colour, Output, Table};

/// What to do.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Lists the certificates of every node (what is done without a command).
    List,
    /// Gives the mesh a new root, with traffic running: prepare, activate, taint, revoke.
    Rotate(crate::rotate::Arguments),
}

/// A certificate on a node.
#[derive(Serialize, Clone, Debug, PartialEq, Eq)]
struct OnNode<'a> {
    node: &'a str,
    #[serde(flatten)]
    certificate: &'a Certificate,
}

/// Shows them; false if one cannot be used or an agent does not answer.
///
/// # Errors
/// The API server's.
pub async fn run(target: &Target, output: Output, arguments: &Arguments) -> Result<bool> {
    match &arguments.command {
        None | Some(Command::List) => {}
        Some(Command::Rotate(arguments)) => return crate::rotate::run(target, output, arguments).await,
    }
    let reports = agent::reports(&target.connect().await?).await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let all = all(&reports);
    output.show(&all, || render(&all, now, output.colours))?;
    for report in reports.iter().filter(|report| report.version.is_none()) {
        eprintln!("node {}: its agent does not answer: {}", report.node, report.awaited.as_deref().unwrap_or_default());
    }
    Ok(reports.iter().all(|report| report.version.is_some()) && all.iter().all(|on_node| on_node.certificate.state == "ready"))
}

/// By node and identity.
fn all(reports: &[Report]) -> Vec<OnNode<'_>> {
    let mut all: Vec<_> = reports
        .iter()
        .flat_map(|report| report.certificates.iter().map(|certificate| OnNode { node: &report.node, certificate }))
        .collect();
    all.sort_by_key(|on_node| (on_node.node, &on_node.certificate.identity));
    all
}

fn render(all: &[OnNode<'_>], now: u64, colours: bool) -> String {
    if all.is_empty() {
        return "no certificates: no pod is in the mesh\n".to_owned();
    }
    let mut table = Table::new(["NODE", "IDENTITY", "STATE", "EXPIRES IN", "FAILURES", "LAST ERROR"]);
    for OnNode { node, certificate } in all {
        let colour = if certificate.state == "ready" { Colour::Green } else { Colour::Red };
        table.row([
            Cell::from(*node),
            certificate.identity.as_str().into(),
            Cell::coloured(certificate.state.as_str(), colour),
            certificate.not_after.map_or_else(|| "-".to_owned(), |end| span(end.saturating_sub(now))).into(),
            certificate.failures.to_string().into(),
            certificate.last_error.as_deref().unwrap_or_default().into(),
        ]);
    }
    table.render(colours)
}

/// Seconds in a person's words, to two units.
pub fn span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m"),
        (0, _, _) => format!("{hours}h{minutes:02}m"),
        _ => format!("{days}d{hours}h"),
    }
}

#[cfg(test)]
mod tests;
