//! The breaker of a manifest as Istio's users have it, unchanged, through its whole course.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mesh_lab::ask::{Answered, Asked};

use super::case::get;
use super::stage::{CONSISTENT, PRODUCER, ask, fresh, pod, service, set};
use crate::cluster;
use crate::e2e::bed::{Bed, LIMIT, apply, ready};
use crate::e2e::view::{nodes, sum};

const RULE: &str = include_str!("../../../../deploy/samples/istio/destination-rule.yaml");
/// `baseEjectionTime` and `consecutiveErrors` there.
const EJECTED: Duration = Duration::from_secs(30);
const ERRORS: usize = 5;
/// Requests at a time: of two servers one would have none of them once in a million.
const MANY: u32 = 20;
const EJECTIONS: &str = "nodemesh_endpoint_ejections_total";

fn make() -> Result<()> {
    let nodes = nodes()?;
    let (near, far) = (nodes.first().context("a cluster without nodes")?, nodes.last().context("a cluster without nodes")?);
    let objects = pod("well", near, "hello")
        + &pod("sick", far, "hello")
        + &service("hello-world", "{set: hello}")
        + &service("sick", "{app: sick}")
        + RULE;
    apply(PRODUCER, &objects)?;
    ready(PRODUCER, &["well", "sick"])?;
    let words = ["-n", PRODUCER, "wait", "--for=condition=Reconciled", "--timeout=30s", "destinationrule", "hello-world"];
    cluster::ask(&words).map(drop)
}

fn asks(path: &str) -> Result<Vec<Answered>> {
    let asked: Vec<Asked> = vec![get("", format!("hello-world{path}")).times(MANY).asked];
    ask(PRODUCER, &asked)?.pop().context("no answers")
}

fn by(answers: &[Answered], name: &str) -> usize {
    answers.iter().filter(|answer| answer.seen().is_some_and(|seen| seen.name == name)).count()
}

/// Lets the sick server fail until it gets no requests: when the requests began of which it failed the last, and how many it failed in all.
fn trip() -> Result<(Instant, usize)> {
    let path = format!("/trip-{}?status=503&only=sick", fresh());
    let begun = Instant::now();
    let (mut last, mut failed) = (begun, 0);
    loop {
        let start = Instant::now();
        let answers = asks(&path)?;
        let now = answers.iter().filter(|answer| answer.status == 503).count();
        if let Some(other) = answers.iter().find(|answer| !matches!(answer.status, 200 | 503)) {
            bail!("an answer that no server gave: {other:?}");
        }
        if now == 0 && failed > 0 {
            return Ok((last, failed));
        }
        if now > 0 {
            last = start;
        }
        failed += now;
        if begun.elapsed() > CONSISTENT {
            bail!("{failed} failures of one server and it is asked still; or never was");
        }
    }
}

pub fn breaker(bed: &mut Bed) -> Result<String> {
    set(bed)?;
    make()?;
    let before = sum(EJECTIONS, &[])?;
    let (ejected, _) = trip()?;
    if sum(EJECTIONS, &[])? <= before {
        bail!("{EJECTIONS} did not rise");
    }
    let mut asked = 0;
    let back = loop {
        let answers = asks("/well")?;
        asked += answers.len();
        if let Some(bad) = answers.iter().find(|answer| answer.status != 200) {
            bail!("a request failed while the sick server was out: {bad:?}");
        }
        if by(&answers, "sick") > 0 {
            break ejected.elapsed();
        }
        if ejected.elapsed() > LIMIT {
            bail!("the server that was ejected is not let back in after {:.0} s", ejected.elapsed().as_secs_f64());
        }
        std::thread::sleep(Duration::from_millis(500));
    };
    // It cannot have been out since before the requests began that led to it.
    if back < EJECTED {
        bail!("the server that was ejected is asked again after {:.1} s, not {EJECTED:?}", back.as_secs_f64());
    }
    // By now the rule has been in force for long: so many failures it takes, and no more.
    let (_, failed) = trip()?;
    if failed != ERRORS {
        bail!("it took {failed} failures to eject a server, not {ERRORS}");
    }
    cluster::ask(&["-n", PRODUCER, "delete", "destinationrule", "hello-world"])?;
    cluster::ask(&["-n", PRODUCER, "delete", "pod", "well", "sick", "--wait=false"])?;
    Ok(format!("out after {failed} failures, {asked} requests passed it by, let back in after {:.1} s", back.as_secs_f64()))
}
