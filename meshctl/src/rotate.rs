//! `meshctl certs rotate`: a new root for the mesh, step by step, with traffic running.
//!
//! The steps are mesh-control's, which alone has the keys; it is asked by an annotation of the ConfigMap that tells agents whom to trust. What
//! mesh-control cannot see is looked at here: whether every agent knows the new root before it signs, and whether no agent shows a
//! certificate below the old one when that is trusted no more.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use http::Method;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;
use kube::api::{Patch, PatchParams};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::agent::{self, ADMIN, Certificate, Report};
use crate::certs::span;
use crate::cluster::{Cluster, Target};
use crate::output::Output;

/// The ConfigMap with the roots.
const BUNDLE: &str = "nodemesh-ca-roots";
/// Its annotation that asks for a step.
const REQUEST: &str = "nodemesh.dev/rotate";
/// Its annotation with the answer.
const ANSWER: &str = "nodemesh.dev/rotation";
/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// How long mesh-control may take to answer: it looks every ten seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long agents that are behind are left alone before they are asked to renew.
const NUDGE: Duration = Duration::from_secs(30);

/// What to do.
#[derive(clap::Args)]
pub struct Arguments {
    /// One step only; without it all that are left are made, one after the other, each as soon as every agent is ready for it.
    step: Option<Step>,
    /// How long to wait for agents that are not ready for a step, seconds; 0: not at all.
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// Go on without a node whose agent does not answer, as one that is lost; its pods may be refused when it comes back, until it has renewed
    /// their certificates. May be given several times.
    #[arg(long, value_name = "NODE")]
    without: Vec<String>,
}

/// A step, or a look.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// Say where the rotation stands.
    Status,
    /// Make a new root, and have agents trust it beside the old one.
    Prepare,
    /// Sign below the new root.
    Activate,
    /// Have agents renew what is below the old root.
    Taint,
    /// Have agents trust the old root no more.
    Revoke,
    /// Give up a root that is prepared.
    Abort,
}

impl Step {
    const fn word(self) -> &'static str {
        match self {
            Step::Status => "status",
            Step::Prepare => "prepare",
            Step::Activate => "activate",
            Step::Taint => "taint",
            Step::Revoke => "revoke",
            Step::Abort => "abort",
        }
    }
}

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Phase {
    #[default]
    Idle,
    Prepared,
    Activated,
    Tainted,
}

impl Phase {
    const fn next(self) -> Step {
        match self {
            Phase::Idle => Step::Prepare,
            Phase::Prepared => Step::Activate,
            Phase::Activated => Step::Taint,
            Phase::Tainted => Step::Revoke,
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Phase::Idle => "idle: one root is trusted",
            Phase::Prepared => "prepared: a new root is trusted beside the old one, which signs",
            Phase::Activated => "activated: the new root signs, the old one is trusted beside it",
            Phase::Tainted => "tainted: agents renew what is below the old root",
        }
    }
}

/// Where it stands, as mesh-control says.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
struct State {
    phase: Phase,
    since: u64,
    #[serde(default)]
    old: Option<String>,
    #[serde(default)]
    new: Option<String>,
}

/// What mesh-control answers.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    request: String,
    #[serde(default)]
    refused: Option<String>,
    #[serde(default)]
    retry_after: Option<u64>,
    state: State,
}

/// Makes a step or all; false if one is refused or agents are not ready for it.
///
/// # Errors
/// The API server's; nobody answers.
pub async fn run(target: &Target, output: Output, arguments: &Arguments) -> Result<bool> {
    let cluster = target.connect().await?;
    let mut state = known(&cluster).await?.state;
    match arguments.step {
        Some(Step::Status) => {
            output.show(&state, || describe(&state, now()))?;
            Ok(true)
        }
        Some(step) => make(&cluster, step, &mut state, arguments).await,
        None => loop {
            let step = state.phase.next();
            if !make(&cluster, step, &mut state, arguments).await? {
                return Ok(false);
            }
            if state.phase == Phase::Idle {
                println!("rotated: every certificate of the mesh is below {}", short(state.new.as_deref()));
                return Ok(true);
            }
        },
    }
}

/// Makes one step once every agent is ready for it, and sees to it that all of them follow.
async fn make(cluster: &Cluster, step: Step, state: &mut State, arguments: &Arguments) -> Result<bool> {
    let (patience, start) = (Duration::from_secs(arguments.timeout), Instant::now());
    loop {
        // Anew after each wait: what was so before it need not be so any more.
        if state.phase.next() == step && !agents_ready(cluster, step, state, arguments).await? {
            return Ok(false);
        }
        let answer = ask(cluster, step).await?;
        let before = std::mem::replace(state, answer.state);
        let Some(why) = answer.refused else {
            println!("{}: {}", step.word(), state.phase.word());
            // An agent that believes a root which is gone believes what a thief of its key signs.
            let gone = match step {
                Step::Revoke => before.old,
                Step::Abort => before.new,
                _ => None,
            };
            return match gone {
                Some(gone) => agents_forget(cluster, &gone, arguments).await,
                None => Ok(true),
            };
        };
        if state.phase != before.phase && arguments.step.is_none() {
            println!("{why}: going on from there");
            return Ok(true);
        }
        match answer.retry_after.map(Duration::from_secs) {
            Some(wait) if start.elapsed() + wait <= patience => {
                println!("{why}: waiting");
                tokio::time::sleep(wait).await;
            }
            _ => {
                eprintln!("refused: {why}");
                return Ok(false);
            }
        }
    }
}

/// Waits until the agents are ready for a step; false if they are not in time.
async fn agents_ready(cluster: &Cluster, step: Step, state: &State, arguments: &Arguments) -> Result<bool> {
    if !matches!(step, Step::Activate | Step::Revoke) {
        return Ok(true);
    }
    await_agents(cluster, step.word(), arguments, |certificate| not_ready(certificate, step, state)).await
}

/// Waits until no agent believes a root any more; false if some do after all that time.
async fn agents_forget(cluster: &Cluster, root: &str, arguments: &Arguments) -> Result<bool> {
    let believes = |certificate: &Certificate| {
        certificate.trusted.iter().any(|trusted| trusted == root).then_some("still believes the root that is gone")
    };
    await_agents(cluster, "end", arguments, believes).await
}

/// Waits until nothing holds up `what`; false if something does after all that time. Agents that are behind are asked to renew.
async fn await_agents(
    cluster: &Cluster,
    what: &str,
    arguments: &Arguments,
    holds_up: impl Fn(&Certificate) -> Option<&'static str>,
) -> Result<bool> {
    let (start, mut said) = (Instant::now(), String::new());
    let patience = Duration::from_secs(arguments.timeout);
    let mut nudged = Instant::now();
    loop {
        let mut reports = agent::reports(cluster).await?;
        reports.retain(|report| report.version.is_some() || !arguments.without.contains(&report.node));
        let behind = behind(&reports, &holds_up);
        let Some(first) = behind.first() else { return Ok(true) };
        let message = if behind.len() == 1 { first.why.clone() } else { format!("{}, and {} more", first.why, behind.len() - 1) };
        if start.elapsed() >= patience {
            eprintln!("not ready to {what}: {message}");
            return Ok(false);
        }
        if said != message {
            println!("waiting to {what}: {message}");
            said = message;
        }
        if nudged.elapsed() >= NUDGE && start.elapsed() >= NUDGE {
            nudged = Instant::now();
            let mut pods: Vec<&str> = behind.iter().filter(|one| one.may_renew).map(|one| one.pod).collect();
            pods.dedup();
            for pod in pods {
                // What fails shows at the next look.
                let _ = agent::ask(cluster, pod, ADMIN, Method::POST, "/certs/renew").await;
            }
        }
        tokio::time::sleep(LOOK * 3).await;
    }
}

/// An agent that is not ready for a step.
struct Behind<'a> {
    pod: &'a str,
    why: String,
    may_renew: bool,
}

/// What keeps a certificate's agent from being ready for a step.
fn not_ready(certificate: &Certificate, step: Step, state: &State) -> Option<&'static str> {
    let knows = |root: &Option<String>| root.as_ref().is_some_and(|root| certificate.trusted.contains(root));
    match step {
        Step::Activate if !knows(&state.new) => Some("does not know the new root yet"),
        Step::Revoke if state.new.is_none() || certificate.root != state.new => Some("is not below the new root yet"),
        _ => None,
    }
}

fn behind<'a>(reports: &'a [Report], holds_up: impl Fn(&Certificate) -> Option<&'static str>) -> Vec<Behind<'a>> {
    let mut all = Vec::new();
    for report in reports {
        if report.version.is_none() {
            let why = report.awaited.as_deref().unwrap_or("not known why");
            let why = format!("node {0}: its agent does not answer: {why}; if the node is lost, go on with --without {0}", report.node);
            all.push(Behind { pod: &report.pod, why, may_renew: false });
        }
        for certificate in &report.certificates {
            let place = format!("node {}: {}", report.node, certificate.identity);
            let why = if certificate.state == "ready" {
                let Some(why) = holds_up(certificate) else { continue };
                format!("{place} {why}")
            } else {
                format!("{place} has no certificate: {}", certificate.last_error.as_deref().unwrap_or(&certificate.state))
            };
            all.push(Behind { pod: &report.pod, why, may_renew: true });
        }
    }
    all
}

/// Asks mesh-control for a step.
async fn ask(cluster: &Cluster, step: Step) -> Result<Answer> {
    // Unique among those of people who do this at the same time.
    let name = format!("{}-{}", now(), std::process::id());
    let patch = json!({ "metadata": { "annotations": { REQUEST: format!("{}/{name}", step.word()) } } });
    let asked = cluster.own::<ConfigMap>().patch(BUNDLE, &PatchParams::default(), &Patch::Merge(patch)).await;
    asked.with_context(|| format!("asking for a step at ConfigMap {}/{BUNDLE}", cluster.namespace))?;
    let start = Instant::now();
    loop {
        let answer = known(cluster).await?;
        if answer.request == name {
            return Ok(answer);
        }
        if start.elapsed() >= PATIENCE {
            // Nobody would look at the agents before it is made then.
            let patch = json!({ "metadata": { "annotations": { REQUEST: null } } });
            let withdrawn = cluster.own::<ConfigMap>().patch(BUNDLE, &PatchParams::default(), &Patch::Merge(patch)).await;
            withdrawn.context("mesh-control has not answered, and the request cannot be withdrawn")?;
            bail!(
                "mesh-control has not answered within {} s, and the request is withdrawn: see `meshctl status` and the log of deployment/mesh-control",
                PATIENCE.as_secs()
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn known(cluster: &Cluster) -> Result<Answer> {
    let bundle = cluster.own::<ConfigMap>().get(BUNDLE).await;
    let bundle = bundle.with_context(|| format!("reading ConfigMap {}/{BUNDLE}: is the mesh installed?", cluster.namespace))?;
    let Some(text) = bundle.annotations().get(ANSWER) else { return Ok(Answer::default()) };
    serde_json::from_str(text)
        .with_context(|| format!("annotation {ANSWER} of ConfigMap {}/{BUNDLE} is not what this meshctl knows", cluster.namespace))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn short(fingerprint: Option<&str>) -> &str {
    fingerprint.and_then(|all| all.get(..16)).unwrap_or("an unknown root")
}

fn describe(state: &State, now: u64) -> String {
    let mut text = format!("{}\n", state.phase.word());
    if state.since > 0 {
        text += &format!("since {}\n", span(now.saturating_sub(state.since)));
    }
    for (name, root) in [("old root", &state.old), ("new root", &state.new)] {
        if let Some(root) = root {
            text += &format!("{name} sha256:{root}\n");
        }
    }
    text + &format!("next: meshctl certs rotate {}\n", state.phase.next().word())
}

#[cfg(test)]
mod tests;
