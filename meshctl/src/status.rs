//! `meshctl status`: a line a node. OPEN are connections that live; MTLS, LOCAL (between pods of the node, inside its kernel) and CLEAR (taken from
//! clients that proved nothing) those that were opened since the agent's start.

use anyhow::Result;
use k8s_openapi::api::apps::v1::Deployment;
use serde::Serialize;

use crate::agent::{self, Report};
use crate::cluster::{self, Target};
use crate::install::Rollout;
use crate::output::{Cell, Colour, Output, Table};

/// The mesh at a glance.
#[derive(Serialize)]
struct Status {
    /// The control plane's pods: ready and wanted; none if it is not installed.
    control: Option<(i32, i32)>,
    agents: Vec<Report>,
}

/// Shows it; false if something is not ready.
///
/// # Errors
/// The API server's.
pub async fn run(target: &Target, output: Output) -> Result<bool> {
    let cluster = target.connect().await?;
    let control = cluster.own::<Deployment>().get_opt(cluster::DEPLOYMENT).await?.map(|deployment| Rollout::of_control(&deployment));
    let status = Status { control: control.map(|rollout| (rollout.ready, rollout.wanted)), agents: agent::reports(&cluster).await? };
    output.show(&status, || render(&status, output.colours))?;
    let held = status.agents.iter().any(|report| report.held().next().is_some());
    Ok(control.is_some_and(Rollout::complete) && !status.agents.is_empty() && status.agents.iter().all(|report| report.ready) && !held)
}

fn render(status: &Status, colours: bool) -> String {
    let head = ["NODE", "AGENT", "READY", "PODS", "HELD", "OPEN", "MTLS", "LOCAL", "CLEAR", "CONFIG", "PROBLEMS", "WAITING FOR"];
    let mut table = Table::new(head);
    for report in &status.agents {
        let held = report.held().count();
        let number = |number: Option<u64>| Cell::from(number.map_or_else(|| "-".to_owned(), |number| number.to_string()));
        let opened = report.connections.map(|connections| connections.opened);
        let answered = report.version.is_some();
        let if_answered = |count: usize| number(answered.then_some(count as u64));
        let bad = |count: usize, colour: Colour| if count == 0 { if_answered(0) } else { Cell::coloured(count.to_string(), colour) };
        table.row([
            report.node.as_str().into(),
            report.version.as_deref().unwrap_or("-").into(),
            if report.ready { Cell::coloured("yes", Colour::Green) } else { Cell::coloured("no", Colour::Red) },
            if_answered(report.workloads.len()),
            bad(held, Colour::Red),
            number(report.connections.map(|connections| connections.total)),
            number(opened.map(|opened| opened.mutual_tls)),
            number(opened.map(|opened| opened.within_node)),
            match opened {
                Some(opened) if opened.plaintext > 0 => Cell::coloured(opened.plaintext.to_string(), Colour::Yellow),
                opened => number(opened.map(|opened| opened.plaintext)),
            },
            number(report.config_version),
            bad(report.problems.len(), Colour::Yellow),
            report.awaited.as_deref().unwrap_or_default().into(),
        ]);
    }
    let control = match status.control {
        Some((ready, wanted)) => format!("control plane: {ready}/{wanted} ready\n"),
        None => "control plane: not installed\n".to_owned(),
    };
    let agents = if table.is_empty() { "no agents\n".to_owned() } else { table.render(colours) };
    control + &agents
}

#[cfg(test)]
mod tests;
